//! Three whole nodes on loopback, with real certificates and sled: what administrators and edges see of them.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, which clippy does not see as such"
)]

mod admin;
mod badinput;
mod cluster;
mod edge;
mod start;

use cluster::{Cluster, eventually};
use serde_json::json;
use tollgate_core::command::ReportReply;
use tollgate_core::message::{LeaseState, NodeMessage, ResolveOutcome};

const QUOTA: u64 = 20;

fn catalog(quota: u64) -> serde_json::Value {
    json!({
        "plan": [{ "id": "free", "limit": [
            { "name": "calls", "meter": "requests", "per": "customer", "quota": quota, "window": "open" },
        ] }],
        "customer": [{ "id": "acme" }],
        "license": [{ "id": "acme-free", "customer": "acme", "plan": "free" }],
    })
}

/// A cluster that serves, with a key of the customer `acme`: its public id and secret.
async fn with_key() -> (Cluster, String, String) {
    let cluster = Cluster::start().await;
    let (status, answer) = cluster.apply(catalog(QUOTA)).await;
    assert_eq!(status, 200, "{answer}");
    let body = json!({ "license": "acme-free", "reason": "a test" });
    let (status, made) = cluster.post("/admin/v1/keys", &[], &body).await;
    assert_eq!(status, 201, "{made}");
    let credential = made["credential"].as_str().unwrap();
    let presented = tollgate_core::credential::parse(credential).unwrap();
    let (key, secret) = (presented.key.to_owned(), presented.secret.to_owned());
    (cluster, key, secret)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_resolves_with_units_in_one_round_trip_and_its_use_settles_once() {
    let (cluster, key, secret) = with_key().await;
    let mut edge = cluster.edge_at_issuer("acme").await;
    edge.open_session(1).await;
    let answer = edge.resolve(&key, &secret, 1, 5).await;
    let ResolveOutcome::Principal(principal) = &answer.outcome else {
        panic!("a principal, not {:?}", answer.outcome);
    };
    let account = principal.limits[0].account.clone();
    assert_eq!(principal.limits[0].quota, QUOTA);
    let granted = edge.granted_by(&answer, &account, 5).await;
    assert_eq!(granted, 5);

    let report = edge.report(1, &key, &account, 3);
    let settled = ReportReply::Settled {
        last_seq: tollgate_core::ids::Seq(1),
    };
    assert_eq!(edge.send_report(&report).await, settled);
    assert_eq!(
        edge.send_report(&report).await,
        settled,
        "a repeat is acknowledged and counted once"
    );
    let rows = cluster.get("/admin/v1/accounts").await;
    let row = &rows["accounts"][0];
    assert_eq!(
        (&row["settled"], &row["out"], &row["excess"]),
        (&json!(3), &json!(2), &json!(0)),
        "{rows}"
    );
    let usage = cluster.get("/admin/v1/usage?customer=acme").await;
    assert_eq!(usage["usage"][0]["units"], json!(3), "{usage}");
    let rows = cluster.get("/admin/v1/accounts?customer=acme").await;
    assert_eq!(rows["accounts"][0]["settled"], json!(3), "{rows}");
    let rows = cluster.get("/admin/v1/accounts?customer=acm").await;
    assert_eq!(
        rows["accounts"],
        json!([]),
        "a name that begins alike is another"
    );

    let body = json!({ "license": "acme-free", "reason": "a test" });
    let (_, made) = cluster.post("/admin/v1/keys", &[], &body).await;
    let second = made["key"].as_str().unwrap();
    let last_seq = tollgate_core::ids::Seq(2);
    let settled = ReportReply::Settled { last_seq };
    let report = edge.report(2, second, &account, 2);
    assert_eq!(edge.send_report(&report).await, settled);
    let mut units = std::collections::BTreeMap::new();
    let mut path = "/admin/v1/usage?limit=1".to_owned();
    loop {
        let page = cluster.get(&path).await;
        for row in page["usage"].as_array().unwrap() {
            let key = row["key"].as_str().unwrap().to_owned();
            units.insert(key, row["units"].clone());
        }
        assert!(page["usage"].as_array().unwrap().len() <= 1, "{page}");
        match page["next"].as_str() {
            Some(next) => path = format!("/admin/v1/usage?limit=1&after={next}"),
            None => break,
        }
    }
    let expected = [(key, json!(3)), (second.to_owned(), json!(2))];
    assert_eq!(units, expected.into());
    for nothing in ["license=none", "customer=none", "after=acme-free"] {
        let page = cluster.get(&format!("/admin/v1/usage?{nothing}")).await;
        assert_eq!(page, json!({ "usage": [], "next": null }), "{nothing}");
    }
    assert_eq!(edge.close_session(2).await, settled);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_issuer_dies_another_node_leases_what_is_left() {
    let (mut cluster, key, secret) = with_key().await;
    let issuer = cluster.issuer_of("acme").await;
    let mut edge = cluster.edge(issuer).await;
    let (session, boot) = edge.open_session(1).await;
    let answer = edge.resolve(&key, &secret, 1, 8).await;
    let account = edge::account_of(&answer);
    assert_eq!(edge.granted_by(&answer, &account, 8).await, 8);

    cluster.kill(issuer).await;
    let next = cluster.issuer_other_than(issuer, "acme").await;
    let mut edge = cluster.edge_of_boot(next, session, boot).await;
    let answer = edge.resolve(&key, &secret, 2, QUOTA - 8).await;
    assert_eq!(
        edge.granted_by(&answer, &account, QUOTA - 8).await,
        QUOTA - 8
    );
    // What the first issuer granted is still out: nothing more can be had.
    let line = edge.lease_until_decided(&account, 2, QUOTA - 8 + 1).await;
    assert!(
        matches!(line.state, LeaseState::NoneNow | LeaseState::NoneForGood),
        "{line:?}"
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_raised_limit_lifts_a_refusal_and_a_revoked_key_is_refused() {
    let (cluster, key, secret) = with_key().await;
    let mut edge = cluster.edge_at_issuer("acme").await;
    edge.open_session(1).await;
    let answer = edge.resolve(&key, &secret, 1, QUOTA).await;
    let account = edge::account_of(&answer);
    assert_eq!(edge.granted_by(&answer, &account, QUOTA).await, QUOTA);
    let line = edge.lease_until_decided(&account, 1, QUOTA + 1).await;
    assert_eq!(line.state, LeaseState::NoneNow, "{line:?}");

    let (status, answer) = cluster.apply(catalog(QUOTA + 5)).await;
    assert_eq!((status, &answer["changed"]), (200, &json!(1)), "{answer}");
    edge.pushed().await;
    let line = edge.lease_until_decided(&account, 1, QUOTA + 1).await;
    assert_eq!(
        (line.state, line.granted_total),
        (LeaseState::Granted, QUOTA + 1)
    );

    let path = format!("/admin/v1/keys/{key}/revoke");
    let (status, _) = cluster
        .post(&path, &[], &json!({ "reason": "leaked" }))
        .await;
    assert_eq!(status, 200);
    edge.pushed().await;
    let answer = edge.resolve(&key, &secret, 2, 1).await;
    assert_eq!(answer.outcome, ResolveOutcome::Revoked);
    let answer = edge
        .resolve(&key, "another secret altogether 123456", 2, 1)
        .await;
    assert_eq!(answer.outcome, ResolveOutcome::Invalid);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keepalives_tell_a_confirmed_view_and_a_boot_of_another_edge_is_refused() {
    let cluster = Cluster::start().await;
    let mut edge = cluster.edge(1).await;
    let (_, boot) = edge.open_session(1).await;
    eventually("the view is confirmed", || async {
        let mut other = cluster.edge(1).await;
        other.open_session(2).await;
        other.keepalive().await.is_some()
    })
    .await;
    let mut thief = cluster.edge_named("thief", 1).await;
    thief.hello(Some(boot)).await;
    assert!(thief.closed_because().await.contains("another edge"));
    let answer = edge.changes_since_zero().await;
    assert!(matches!(answer, NodeMessage::Changes { .. }));
    cluster.stop().await;
}
