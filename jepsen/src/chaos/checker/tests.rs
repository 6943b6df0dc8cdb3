//! The judge must be able to condemn: each test breaks one promise in an otherwise good run, by as little as there is.

use super::super::evidence::{Change, EdgeCrash, Evidence, Kills, NodeEnd, Recovery, Row, Subject};
use super::super::evidence::{Use, What};
use super::*;

const SECOND: u64 = 1_000_000;

fn operation(subject: u32, complete_us: u64, outcome: Outcome) -> Operation {
    Operation {
        client: 1,
        edge: 1,
        subject,
        cost: 1,
        invoke_us: complete_us - 10,
        complete_us,
        outcome,
    }
}

fn subject(customer: &str, limit: u64) -> Subject {
    Subject {
        customer: customer.to_owned(),
        account: format!("live/{customer}"),
        limit,
    }
}

/// A run without a fault: `small` uses up its 3 units, `raised` goes from 2 to 4, `gone` loses its key.
fn good() -> (Evidence, Vec<Operation>) {
    let subjects = vec![
        subject("small", 3),
        subject("raised", 2),
        subject("gone", 100),
    ];
    let mut history = Vec::new();
    for n in 1..=3 {
        history.push(operation(0, n * 100, Outcome::Ok));
    }
    history.push(operation(0, 400, Outcome::refused("quota_exceeded")));
    for at in [100, 200, 2 * SECOND, 3 * SECOND] {
        history.push(operation(1, at, Outcome::Ok));
    }
    history.push(operation(2, 100, Outcome::Ok));
    history.push(operation(
        2,
        40 * SECOND,
        Outcome::refused("credential_revoked"),
    ));
    let row = |customer: &str, settled, limit| Row {
        account: format!("live/{customer}"),
        settled,
        excess: 0,
        out: 0,
        limit: Some(limit),
    };
    let used = |customer: &str, units| Use {
        customer: customer.to_owned(),
        units,
    };
    let change = |subject, what, at, revision| Change {
        subject,
        what,
        invoke_us: at,
        acked_us: Some(at + 1_000),
        revision,
    };
    let node = |node| NodeEnd {
        node,
        digest_index: 900,
        digest: "abc".to_owned(),
        revision: 812,
    };
    let evidence = Evidence {
        ledger: vec![row("small", 3, 3), row("raised", 4, 4), row("gone", 1, 100)],
        usage: vec![used("small", 3), used("raised", 4), used("gone", 1)],
        changes: vec![
            change(1, What::Raise(4), SECOND, 800),
            change(2, What::Revoke, 2 * SECOND, 812),
        ],
        nodes: vec![node(1), node(2), node(3)],
        recoveries: vec![Recovery {
            round: 1,
            from: "start of node-1".to_owned(),
            from_us: SECOND,
            majority_lost: true,
            took_us: Some(RECOVERY_US_MAX),
        }],
        journal_interval_us: SECOND,
        max_stale_us: 30 * SECOND,
        calm_from_us: 35 * SECOND,
        kills: Kills {
            leader: 1,
            ..Kills::default()
        },
        kills_planned: 1,
        subjects,
        ..Evidence::default()
    };
    (evidence, history)
}

/// All violations, one a line.
fn violations(evidence: &Evidence, history: &[Operation]) -> String {
    let findings = judge(evidence, history);
    assert!(findings.iter().all(|f| !f.measured.is_empty()));
    let words: Vec<String> = findings.into_iter().flat_map(|f| f.violations).collect();
    words.join("\n")
}

#[test]
fn a_good_run_is_acquitted() {
    let (evidence, history) = good();
    assert_eq!(violations(&evidence, &history), "");
}

#[test]
fn one_unit_too_many_is_seen_even_if_the_ledger_agrees_with_it() {
    let (mut evidence, mut history) = good();
    history.push(operation(0, 500, Outcome::Ok));
    evidence.ledger[0].settled = 4;
    evidence.usage[0].units = 4;
    let found = violations(&evidence, &history);
    assert!(
        found.contains("small: admitted 4 of 3, 1 too many"),
        "{found}"
    );
    assert!(
        found.contains("live/small: settled 4 - excess 0 + out 0 = 4, limit 3"),
        "{found}"
    );
}

#[test]
fn a_unit_admitted_before_its_raise_was_asked_for_is_one_too_many() {
    let (evidence, mut history) = good();
    // The same number in all, one of them early.
    let late = history.iter().position(|o| o.complete_us == 2 * SECOND);
    history[late.unwrap()] = operation(1, SECOND - 1, Outcome::Ok);
    assert_eq!(
        violations(&evidence, &history),
        "raised: admitted 3 of 2, 1 too many"
    );
}

#[test]
fn an_unknown_fate_neither_breaks_a_limit_nor_excuses_a_loss() {
    let (mut evidence, mut history) = good();
    history.push(operation(0, 500, Outcome::Unknown));
    assert_eq!(violations(&evidence, &history), "");
    evidence.ledger[2].settled = 0;
    evidence.usage[2].units = 0;
    history.push(operation(2, 500, Outcome::Unknown));
    assert_eq!(
        violations(&evidence, &history),
        "gone: 1 surely admitted, 0 billed: 1 lost, at most 0 may be"
    );
}

#[test]
fn one_unit_billed_twice_is_seen_and_an_unknown_one_may_be_billed() {
    let (mut evidence, mut history) = good();
    evidence.ledger[2].settled = 2;
    evidence.usage[2].units = 2;
    assert_eq!(
        violations(&evidence, &history),
        "gone: billed 2, but clients were told of 1 admitted and 0 are unknown\n\
         gone: metered 2, but at most 1 were admitted"
    );
    history.push(operation(2, 500, Outcome::Unknown));
    assert_eq!(violations(&evidence, &history), "");
}

#[test]
fn use_is_lost_only_with_its_edge_and_only_its_last_interval() {
    let (mut evidence, history) = good();
    evidence.ledger[2].settled = 0;
    evidence.usage[2].units = 0;
    let lost = "gone: 1 surely admitted, 0 billed: 1 lost, at most 0 may be";
    assert_eq!(violations(&evidence, &history), lost, "no edge was killed");
    // The unit was admitted at 100 us.
    let crash = |edge, at_us| vec![EdgeCrash { edge, at_us }];
    evidence.edge_crashes = crash(1, 100 + SECOND);
    assert_eq!(violations(&evidence, &history), "");
    evidence.edge_crashes = crash(1, 101 + SECOND);
    assert_eq!(
        violations(&evidence, &history),
        lost,
        "it had been written down"
    );
    evidence.edge_crashes = crash(2, 100 + SECOND);
    assert_eq!(violations(&evidence, &history), lost, "it was another edge");
    evidence.edge_crashes = crash(1, 50);
    assert_eq!(
        violations(&evidence, &history),
        lost,
        "it came after the crash"
    );
}

#[test]
fn a_lost_acknowledged_change_is_seen() {
    let (mut evidence, history) = good();
    evidence.ledger[1].limit = Some(2);
    let found = violations(&evidence, &history);
    assert!(
        found.contains("raised: raised to 4, acknowledged; at the end its limit is Some(2)"),
        "{found}"
    );

    let (mut evidence, history) = good();
    evidence.nodes[1].revision = 811;
    assert_eq!(
        violations(&evidence, &history),
        "node 2: at revision 811, but revision 812 was acknowledged"
    );

    let (evidence, mut history) = good();
    history.push(operation(2, 40 * SECOND, Outcome::Ok));
    let found = violations(&evidence, &history);
    assert!(
        found.contains("gone: its key was revoked, acknowledged"),
        "{found}"
    );
}

#[test]
fn a_change_of_unknown_fate_may_be_there_or_not() {
    let (mut evidence, history) = good();
    evidence.changes.push(Change {
        subject: 1,
        what: What::Raise(9),
        invoke_us: 5 * SECOND,
        acked_us: None,
        revision: 0,
    });
    assert_eq!(violations(&evidence, &history), "");
    evidence.ledger[1].limit = Some(9);
    assert_eq!(violations(&evidence, &history), "");
    evidence.ledger[1].limit = Some(10);
    assert!(violations(&evidence, &history).contains("its limit is Some(10)"));
}

#[test]
fn a_stale_view_beyond_its_bound_is_seen() {
    let (mut evidence, mut history) = good();
    evidence.calm_from_us = 100 * SECOND;
    // Asked 30.3 s after the acknowledgement at 2.001 s, to the microsecond, and one later.
    let bound = 2 * SECOND + 1_000 + 30 * SECOND + 300_000;
    history.push(operation(2, bound + 10, Outcome::Unknown));
    evidence.ledger[2].settled = 2;
    evidence.usage[2].units = 2;
    history.push(operation(2, bound + 10, Outcome::Ok));
    assert_eq!(violations(&evidence, &history), "");
    history.push(operation(2, bound + 11, Outcome::Ok));
    let found = violations(&evidence, &history);
    assert!(
        found.contains("30300 ms after its key's revocation"),
        "{found}"
    );
}

#[test]
fn replicas_that_differ_or_cannot_be_compared_are_seen() {
    let (mut evidence, history) = good();
    evidence.nodes[2].digest = "abd".to_owned();
    assert_eq!(
        violations(&evidence, &history),
        "at index 900: node 1: abc, node 2: abc, node 3: abd"
    );
    evidence.nodes[2].digest_index = 901;
    assert_eq!(
        violations(&evidence, &history),
        "the nodes never stood at one index: 900, 901"
    );
}

#[test]
fn slow_and_missing_service_are_seen() {
    let (mut evidence, history) = good();
    evidence.recoveries[0].took_us = Some(RECOVERY_US_MAX + 1);
    assert_eq!(
        violations(&evidence, &history),
        "round 1: 5000 ms from start of node-1"
    );
    evidence.recoveries[0].took_us = None;
    assert!(violations(&evidence, &history).contains("no service from start of node-1"));
}

#[test]
fn excess_a_difference_in_metering_and_a_refused_held_unit_are_seen() {
    let (mut evidence, history) = good();
    evidence.ledger[0].excess = 1;
    assert_eq!(
        violations(&evidence, &history),
        "live/small: excess 1, expected 0 (settled 3)"
    );

    let (mut evidence, history) = good();
    evidence.usage[1].units = 5;
    assert_eq!(
        violations(&evidence, &history),
        "raised: metered 5, but at most 4 were admitted\nraised: 5 metered, 4 settled"
    );

    let (mut evidence, history) = good();
    evidence.held_subjects = vec![0];
    assert_eq!(
        violations(&evidence, &history),
        "small: 1 refused, 0 without an answer, 3 admitted"
    );
    for outcome in [Outcome::Unknown, Outcome::Unsent] {
        let (mut evidence, mut history) = good();
        evidence.held_subjects = vec![2];
        history.pop();
        assert_eq!(violations(&evidence, &history), "");
        history.push(operation(2, 300, outcome));
        assert_eq!(
            violations(&evidence, &history),
            "gone: 0 refused, 1 without an answer, 1 admitted"
        );
    }

    let (mut evidence, history) = good();
    evidence.troubles = vec!["edge-1 ended with something left".to_owned()];
    assert_eq!(
        violations(&evidence, &history),
        "edge-1 ended with something left"
    );
}

#[test]
fn a_refusal_while_units_are_free_is_seen_unless_it_is_of_the_moment() {
    let (mut evidence, mut history) = good();
    // `small` has used 2 of 3 and is refused from 38 s on; the run ends at 40 s.
    history.remove(2);
    history.push(operation(
        0,
        38 * SECOND,
        Outcome::refused("quota_exceeded"),
    ));
    evidence.ledger[0].settled = 2;
    evidence.usage[0].units = 2;
    let found = violations(&evidence, &history);
    assert_eq!(
        found,
        "small: refused for quota for 37999 ms although 1 of 3 units were free"
    );
    evidence.ledger[0].out = 1;
    assert_eq!(violations(&evidence, &history), "", "a crash keeps it");

    evidence.ledger[0].out = 0;
    history.push(operation(0, 36 * SECOND + 1, Outcome::Unknown));
    assert_eq!(violations(&evidence, &history), "", "it was just leased");
}

#[test]
fn a_refusal_from_before_a_raise_says_nothing_of_what_it_gave() {
    let (mut evidence, mut history) = good();
    let refusal = operation(1, 38 * SECOND, Outcome::refused("quota_exceeded"));
    history.push(refusal);
    let mut raise = |acked_us| {
        evidence.changes.push(Change {
            subject: 1,
            what: What::Raise(9),
            invoke_us: 34 * SECOND,
            acked_us,
            revision: 812,
        });
        evidence.ledger[1].limit = Some(9);
        let found = violations(&evidence, &history);
        evidence.changes.pop();
        found
    };
    assert_eq!(raise(Some(36 * SECOND + 1)), "", "too near to the raise");
    assert_eq!(raise(None), "", "it may have been made at the end");
    assert_eq!(
        raise(Some(36 * SECOND)),
        "raised: refused for quota for 2000 ms although 5 of 9 units were free"
    );
}

#[test]
fn a_run_without_its_faults_or_without_service_is_no_proof() {
    let (mut evidence, history) = good();
    evidence.kills_planned = 2;
    assert_eq!(
        violations(&evidence, &history),
        "1 kills of 2 planned were done"
    );
    let (evidence, _) = good();
    assert!(violations(&evidence, &[]).contains("no check was admitted"));
}
