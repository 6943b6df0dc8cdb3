//! A kept run is judged again from its files alone, and still condemned or acquitted.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on fails by panicking"
)]

use tollgate_jepsen::chaos::evidence::{Evidence, NodeEnd, Row, Subject, Use};
use tollgate_jepsen::chaos::history::{Operation, Outcome};
use tollgate_jepsen::chaos::kept;

/// One account of two units, and as many admissions as asked for, all of them billed.
fn run(admitted: u32) -> (Evidence, Vec<Operation>) {
    let history = (0..admitted).map(|n| Operation {
        client: 1,
        edge: 1,
        subject: 0,
        cost: 1,
        invoke_us: u64::from(n) * 10,
        complete_us: u64::from(n) * 10 + 5,
        outcome: Outcome::Ok,
    });
    let evidence = Evidence {
        subjects: vec![Subject {
            customer: "acme".to_owned(),
            account: "live/acme".to_owned(),
            limit: 2,
        }],
        ledger: vec![Row {
            account: "live/acme".to_owned(),
            settled: u64::from(admitted),
            excess: 0,
            out: 0,
            limit: Some(u64::from(admitted)),
        }],
        usage: vec![Use {
            customer: "acme".to_owned(),
            units: u64::from(admitted),
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
    assert_eq!(violations(3), ["acme: admitted 3 of 2, 1 too many"]);
}

#[test]
fn a_folder_that_is_no_run_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    assert!(kept::judge_again(dir.path()).is_err());
}
