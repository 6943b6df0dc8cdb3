//! A kept run is judged again from its files alone, and still condemned or acquitted.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on fails by panicking"
)]

use tollgate_jepsen::chaos::evidence::{Account, Evidence, NodeEnd, Row, Subject, Use};
use tollgate_jepsen::chaos::history::{Operation, Outcome};
use tollgate_jepsen::chaos::kept;

/// A customer of four units with one key of a hundred, and as many admissions of two units as asked for, all of them billed.
fn run(admitted: u32) -> (Evidence, Vec<Operation>) {
    let history = (0..admitted).map(|n| Operation {
        client: 1,
        edge: 1,
        subject: 0,
        cost: 2,
        invoke_us: u64::from(n) * 10,
        complete_us: u64::from(n) * 10 + 5,
        outcome: Outcome::Ok,
    });
    let accounts = [("live/acme", "all", 4), ("live/acme/key", "part", 100)];
    let units = u64::from(admitted) * 2;
    let evidence = Evidence {
        subjects: vec![Subject {
            customer: "acme".to_owned(),
            key: "k".to_owned(),
            accounts: vec![0, 1],
        }],
        accounts: accounts
            .map(|(account, limit_name, limit)| Account {
                account: account.to_owned(),
                customer: "acme".to_owned(),
                limit_name: limit_name.to_owned(),
                limit,
            })
            .to_vec(),
        ledger: accounts
            .map(|(account, _, _)| Row {
                account: account.to_owned(),
                settled: units,
                excess: 0,
                out: 0,
                limit: Some(100),
            })
            .to_vec(),
        usage: vec![Use {
            customer: "acme".to_owned(),
            units,
        }],
        nodes: vec![NodeEnd {
            node: 1,
            digest_index: 9,
            digest: "d".to_owned(),
            revision: 1,
        }],
        ..Evidence::default()
    };
    (evidence, history.collect())
}

fn violations(admitted: u32) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let (evidence, history) = run(admitted);
    kept::keep(dir.path(), &evidence, &history).unwrap();
    let findings = kept::judge_again(dir.path()).unwrap();
    findings.into_iter().flat_map(|f| f.violations).collect()
}

#[test]
fn what_was_kept_is_judged_like_the_run() {
    assert_eq!(violations(2), [""; 0]);
    assert_eq!(violations(3), ["live/acme: admitted 6 of 4, 2 too many"]);
}

#[test]
fn a_folder_that_is_no_run_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    assert!(kept::judge_again(dir.path()).is_err());
}
