//! The real binary, end to end: `cluster/` as it is, from certificates to a settled unit; bad input and its exit codes.
//!
//! Owns: nothing of the product; it sees what a user sees: files, commands, HTTP. Waits only for conditions, each with a
//! bound that nothing but a hang meets. Parts: [`cluster`] (the files of `cluster/`, started), [`process`] (commands and
//! HTTP), and the tests: here the good way, in [`badinput`] what is wrong.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests, which clippy does not see as such"
)]

mod badinput;
mod cluster;
mod process;

use cluster::Cluster;
use process::{Exit, get, post, until};
use serde_json::Value;

/// The customer and the licence of `cluster/catalog.toml`.
const CUSTOMER: &str = "acme";
const LICENSE: &str = "acme-starter";

/// Asks for a decision at the edge of `cluster/edge.toml`.
fn check(cluster: &Cluster, credential: &str) -> Value {
    let body =
        format!(r#"{{"credential":"{credential}","method":"GET","path":"/v1/orders/7","cost":1}}"#);
    let (status, answer) = post(&cluster.edge_address(), "/v1/check", &body).unwrap();
    assert_eq!(status, 200, "{answer}");
    serde_json::from_str(&answer).unwrap()
}

/// Creates a key under an idempotency key.
fn create_key(cluster: &Cluster, once: &str) -> Value {
    let words = ["key", "create", "--license", LICENSE, "--reason", "a test"];
    let words = [&words[..], &["--idempotency-key", once]].concat();
    cluster.admin(&words).json(Exit::Ok)
}

#[test]
fn the_files_of_cluster_lead_from_certificates_to_a_settled_unit() {
    let mut cluster = Cluster::as_it_is();
    cluster.start_nodes();
    let applied = cluster.admin(&["apply", "-f", "catalog.toml", "--reason", "a test"]);
    assert_eq!(
        applied.json(Exit::Ok)["changed"],
        3,
        "plan, customer, licence"
    );
    let again = cluster.admin(&["apply", "-f", "catalog.toml", "--reason", "a test"]);
    assert_eq!(again.json(Exit::Ok)["changed"], 0);

    let key = create_key(&cluster, "first");
    let credential = key["credential"].as_str().unwrap();
    // The secret is shown once; the key is made once.
    let repeated = create_key(&cluster, "first");
    assert_eq!(
        (&repeated["key"], &repeated["credential"]),
        (&key["key"], &Value::Null)
    );

    cluster.start_edge();
    // A check waits 2 s for its first units, less than a busy machine may need; a refusal as unavailable spends none.
    let answer = until("a decision", || {
        let answer = check(&cluster, credential);
        (answer["reason"] != "unavailable").then_some(answer)
    });
    assert_eq!(answer["allowed"], true, "{answer}");
    assert_eq!(answer["customer"], CUSTOMER);
    let limits: Vec<_> = answer["limits"]
        .as_array()
        .unwrap()
        .iter()
        .map(|l| &l["name"])
        .collect();
    assert_eq!(limits, ["calls", "calls-per-key"]);

    let usage = until("the unit in the usage records", || {
        let usage = cluster
            .admin(&["usage", "--customer", CUSTOMER])
            .json(Exit::Ok);
        usage.get(0).is_some().then_some(usage)
    });
    assert_eq!(
        (&usage[0]["units"], &usage[0]["key"], usage.get(1)),
        (&1.into(), &key["key"], None)
    );
    let accounts = cluster
        .admin(&["accounts", "--customer", CUSTOMER])
        .json(Exit::Ok);
    let settled: Vec<_> = accounts
        .as_array()
        .unwrap()
        .iter()
        .map(|row| &row["settled"])
        .collect();
    assert_eq!(settled, [1, 1], "one account per limit: {accounts}");

    for words in [
        &["status"][..],
        &["usage"],
        &["accounts"],
        &["key", "list"],
        &["audit", "verify"],
    ] {
        let said = cluster.admin_for_people(words);
        assert_eq!(said.exit(), Exit::Ok, "{words:?}: {said}");
        assert!(said.out().lines().count() > 1, "{words:?}: {said}");
    }
    assert_eq!(
        cluster
            .admin(&["status"])
            .json(Exit::Ok)
            .as_array()
            .unwrap()
            .len(),
        3
    );

    // A revoked key is refused; the edge hears of it by itself.
    let id = key["key"].as_str().unwrap();
    let revoked = cluster.admin(&["key", "revoke", id, "--reason", "a test"]);
    assert_eq!(revoked.json(Exit::Ok)["changed"], 1);
    until("the revocation at the edge", || {
        (check(&cluster, credential)["reason"] == "credential_revoked").then_some(())
    });

    badinput::against_a_running_cluster(&cluster);

    // A clean end says so by its exit code: units surrendered, use reported, the session closed; stores closed.
    cluster.stop_edge();
    cluster.stop_nodes();

    badinput::with_the_data_of_another_node(&cluster);
}

#[test]
fn a_node_without_its_cluster_lives_and_is_not_ready() {
    let mut cluster = Cluster::elsewhere();
    cluster.start_node(1);
    let metrics = cluster.metrics_address(1);
    until("life", || {
        get(&metrics, "/livez").filter(|(status, _)| *status == 200)
    });
    let (status, why) = get(&metrics, "/readyz").unwrap();
    assert_eq!(status, 503, "{why}");
}
