//! What administrators may and may not do.

use super::catalog;
use super::cluster::Cluster;
use serde_json::json;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_is_applied_whole_once_and_against_the_revision_it_was_made_for() {
    let cluster = Cluster::start().await;
    let body = json!({ "file": catalog(20), "reason": "first" });
    let dry = "/admin/v1/apply?dry_run=true";
    let (status, shown) = cluster.post(dry, &[], &body).await;
    assert_eq!(
        (status, shown["changed"].as_u64()),
        (200, Some(3)),
        "{shown}"
    );
    assert_eq!(shown["diff"][0]["resource"], json!("plan/free@1"));
    assert_eq!(
        cluster.get("/admin/v1/customers").await["customers"],
        json!([]),
        "a dry run changes nothing"
    );

    let mut wrong = body.clone();
    wrong["file"]["license"][0]["plan"] = json!("none");
    let (status, problem) = cluster.post(dry, &[], &wrong).await;
    assert_eq!(status, 422, "{problem}");

    let once = [("idempotency-key", "one")];
    let (status, done) = cluster.post("/admin/v1/apply", &once, &body).await;
    assert_eq!((status, &done["changed"]), (200, &json!(3)), "{done}");
    let again = cluster.post("/admin/v1/apply", &once, &body).await;
    assert_eq!(
        again,
        (200, done.clone()),
        "the same answer to the same request"
    );
    let other = json!({ "file": catalog(21), "reason": "first" });
    let (status, problem) = cluster.post("/admin/v1/apply", &once, &other).await;
    assert_eq!(status, 409, "{problem}");

    let old = [("if-match", "\"1-1\"")];
    let (status, problem) = cluster.post("/admin/v1/apply", &old, &other).await;
    assert_eq!(
        (status, &problem["current"]),
        (412, &done["revision"]),
        "{problem}"
    );
    let tag = format!("\"{}\"", done["revision"].as_str().unwrap());
    let (status, shown) = cluster.post(dry, &[("if-match", &tag)], &other).await;
    assert_eq!((status, &shown["changed"]), (200, &json!(1)), "{shown}");
    assert_eq!(
        shown["diff"][0]["resource"],
        json!("plan/free@2"),
        "what stands is compared with"
    );
    assert_eq!(shown["diff"][0]["before"]["limits"][0]["quota"], json!(20));
    let (status, problem) = cluster.post(dry, &old, &other).await;
    assert_eq!(status, 412, "{problem}");
    let (status, _) = cluster
        .post("/admin/v1/apply", &[("if-match", &tag)], &other)
        .await;
    assert_eq!(status, 200);

    let audit = cluster.get("/admin/v1/audit?after=0").await;
    let entries = audit["entries"].as_array().unwrap();
    assert_eq!(entries.len(), 4, "{audit}");
    assert_eq!(
        (&entries[0]["principal"], &entries[0]["reason"]),
        (&json!("root"), &json!("first"))
    );
    let page = cluster.get("/admin/v1/audit?after=1&limit=2").await;
    assert_eq!(
        (page["entries"].as_array().unwrap().len(), &page["next"]),
        (2, &json!(3))
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_larger_than_a_log_entry_is_applied_as_a_whole() {
    let cluster = Cluster::start().await;
    let ids: Vec<String> = (0..2000)
        .map(|n| format!("customer-number-{n:05}-of-a-large-file"))
        .collect();
    let customers: Vec<_> = ids.iter().map(|id| json!({ "id": id })).collect();
    let mut file = catalog(20);
    file["customer"] = json!(customers);
    file["license"] = json!([{ "id": "none", "customer": "nobody", "plan": "free" }]);
    let (status, problem) = cluster.apply(file.clone()).await;
    assert_eq!(status, 422, "{problem}");
    assert_eq!(
        cluster.get("/admin/v1/customers").await["customers"],
        json!([]),
        "nothing is half-applied"
    );
    file["license"] = json!([]);
    let (status, done) = cluster.apply(file).await;
    assert_eq!((status, &done["changed"]), (200, &json!(2001)), "{done}");
    let page = cluster.get("/admin/v1/customers?limit=1000").await;
    let after = page["next"].as_str().unwrap();
    assert_eq!(after, ids[999]);
    let page = cluster
        .get(&format!("/admin/v1/customers?limit=1000&after={after}"))
        .await;
    assert_eq!(
        (page["customers"].as_array().unwrap().len(), &page["next"]),
        (1000, &json!(null))
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_cannot_be_are_refused_with_words() {
    let cluster = Cluster::start().await;
    let mut windowed = catalog(20);
    windowed["plan"][0]["limit"][0]["window"] = json!("day");
    let mut unknown = catalog(20);
    unknown["plan"][0]["colour"] = json!("red");
    let reason = "a test";
    let cases = [
        (
            422,
            "plan[0].limit[0].window",
            json!({ "file": windowed, "reason": reason }),
        ),
        (
            400,
            "unknown field `colour`",
            json!({ "file": unknown, "reason": reason }),
        ),
        (400, "no reason", json!({ "file": catalog(20) })),
        (400, "unknown field `fiel`", json!({ "fiel": catalog(20) })),
        (
            400,
            "the reason is empty",
            json!({ "file": catalog(20), "reason": " " }),
        ),
    ];
    for (expected, words, body) in cases {
        let (status, problem) = cluster.post("/admin/v1/apply", &[], &body).await;
        assert_eq!(status, expected, "{problem}");
        assert!(problem.to_string().contains(words), "{words}: {problem}");
    }
    let ask = |method, path, body| cluster.ask(1, "root", method, path, &[], body);
    let (status, problem) = ask("POST", "/admin/v1/apply", Some(vec![b' '; 1024 * 1024 + 1])).await;
    assert_eq!(
        (status, &problem["title"]),
        (413, &json!("The body is too large"))
    );
    let (status, problem) = ask("POST", "/admin/v1/apply", Some(b"{\"file\":".to_vec())).await;
    assert_eq!(status, 400, "{problem}");
    let (status, problem) = ask("GET", "/admin/v1/nothing", None).await;
    assert_eq!((status, &problem["status"]), (404, &json!(404)));
    assert_eq!(problem["type"], json!("/problems/not-found"));
    let long = json!({ "file": catalog(20), "reason": "x".repeat(70_000) });
    for path in ["/admin/v1/apply", "/admin/v1/apply?dry_run=true"] {
        let (status, problem) = cluster.post(path, &[], &long).await;
        assert_eq!(status, 400, "{problem}");
        assert!(
            problem
                .to_string()
                .contains("the reason has 70000 bytes, at most 512"),
            "{problem}"
        );
    }
    let (status, problem) = ask("DELETE", "/admin/v1/keys", None).await;
    assert_eq!((status, &problem["status"]), (405, &json!(405)));
    let (status, problem) = ask("GET", "/admin/v1/accounts?limit=0", None).await;
    assert_eq!(status, 400, "{problem}");
    let (status, problem) = ask("GET", "/admin/v1/accounts?colour=red", None).await;
    assert_eq!(status, 400, "{problem}");
    let (status, problem) = ask(
        "POST",
        "/admin/v1/keys/none/revoke",
        Some(b"{\"reason\":\"x\"}".to_vec()),
    )
    .await;
    assert_eq!(status, 404, "{problem}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_of_another_role_administers_nothing() {
    let cluster = Cluster::start().await;
    let (status, problem) = cluster
        .ask(1, "e1", "GET", "/admin/v1/status", &[], None)
        .await;
    assert_eq!(status, 403, "{problem}");
    assert!(problem.to_string().contains("edge/e1"), "{problem}");
    let (status, _) = cluster.ask(1, "e1", "GET", "/livez", &[], None).await;
    assert_eq!(status, 200);
    let (status, text) = cluster.ask(2, "root", "GET", "/metrics", &[], None).await;
    assert_eq!(status, 200);
    let text = text.as_str().unwrap();
    assert!(text.contains("\ntollgate_slots_unowned 0\n"), "{text}");
    assert!(
        text.contains("tollgate_alarms_total{kind=\"excess\"} 0"),
        "{text}"
    );
    cluster.stop().await;
}
