//! The judge must be able to condemn: each test breaks one promise in an otherwise good run, by as little as there is.

use super::super::evidence::{Account, Change, EdgeCrash, Evidence, Kills, NodeEnd, Recovery, Row};
use super::super::evidence::{Subject, Use, What};
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

fn costing(subject: u32, cost: u32, complete_us: u64, outcome: Outcome) -> Operation {
    Operation {
        cost,
        ..operation(subject, complete_us, outcome)
    }
}

/// A run without a fault: `small` uses up its 3 units, `raised` goes from 2 to 4, `gone` loses its key; `two` has 10
/// units, of which its key `x` uses 4 of its own 5 at once and its key `y` 3 of its own 100.
fn good() -> (Evidence, Vec<Operation>) {
    let subject = |customer: &str, key: &str, accounts: &[u32]| Subject {
        customer: customer.to_owned(),
        key: key.to_owned(),
        accounts: accounts.to_owned(),
    };
    let subjects = vec![
        subject("small", "s", &[0]),
        subject("raised", "r", &[1]),
        subject("gone", "g", &[2]),
        subject("two", "x", &[3, 4]),
        subject("two", "y", &[3, 5]),
    ];
    let account = |name: &str, customer: &str, limit_name: &str, limit| Account {
        account: format!("live/{name}"),
        customer: customer.to_owned(),
        limit_name: limit_name.to_owned(),
        limit,
    };
    let accounts = vec![
        account("small", "small", "all", 3),
        account("raised", "raised", "all", 2),
        account("gone", "gone", "all", 100),
        account("two", "two", "all", 10),
        account("two/x", "two", "part", 5),
        account("two/y", "two", "part", 100),
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
    history.push(costing(3, 4, 100, Outcome::Ok));
    history.push(costing(4, 3, 200, Outcome::Ok));
    let row = |name: &str, settled, limit| Row {
        account: format!("live/{name}"),
        settled,
        excess: 0,
        out: 0,
        limit: Some(limit),
    };
    let used = |customer: &str, units| Use {
        customer: customer.to_owned(),
        units,
    };
    let change = |what, at, revision| Change {
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
        ledger: vec![
            row("small", 3, 3),
            row("raised", 4, 4),
            row("gone", 1, 100),
            row("two", 7, 10),
            row("two/x", 4, 5),
            row("two/y", 3, 100),
        ],
        usage: vec![
            used("small", 3),
            used("raised", 4),
            used("gone", 1),
            used("two", 7),
        ],
        changes: vec![
            change(raise(4), SECOND, 800),
            change(What::Revoke { subject: 2 }, 2 * SECOND, 812),
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
        accounts,
        ..Evidence::default()
    };
    (evidence, history)
}

/// A raise of the account of `raised`.
fn raise(to: u64) -> What {
    What::Raise { account: 1, to }
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
        found.contains("live/small: admitted 4 of 3, 1 too many"),
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
        "live/raised: admitted 3 of 2, 1 too many"
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
        "live/gone: 1 surely admitted, 0 billed: 1 lost, at most 0 may be"
    );
}

#[test]
fn one_unit_billed_twice_is_seen_and_an_unknown_one_may_be_billed() {
    let (mut evidence, mut history) = good();
    evidence.ledger[2].settled = 2;
    evidence.usage[2].units = 2;
    assert_eq!(
        violations(&evidence, &history),
        "live/gone: billed 2, but clients were told of 1 admitted and 0 are unknown\n\
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
    let lost = "live/gone: 1 surely admitted, 0 billed: 1 lost, at most 0 may be";
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
        found.contains("live/raised: raised to 4, acknowledged; at the end its limit is Some(2)"),
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
        what: raise(9),
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
        "raised: metered 5, but at most 4 were admitted\nraised: 5 metered, 4 settled on `all`"
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
        // Its key was revoked: not that.
        history.retain(|o| o.complete_us != 40 * SECOND);
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
        "small, key s: a check of 1 refused for quota until 38000 ms, 2000 ms before the end, although free were \
         1 of 3 of live/small"
    );
    evidence.ledger[0].out = 1;
    assert_eq!(violations(&evidence, &history), "", "a crash keeps it");

    evidence.ledger[0].out = 0;
    history.push(operation(0, 36 * SECOND + 1, Outcome::Unknown));
    assert_eq!(violations(&evidence, &history), "", "it was just leased");
}

#[test]
fn a_check_on_several_accounts_is_held_to_every_one_of_them() {
    // The customer has 10 units; its keys get 11 of them, each within its own.
    let (mut evidence, mut history) = good();
    history.push(costing(4, 4, 300, Outcome::Ok));
    evidence.ledger[3].settled = 11;
    evidence.ledger[5].settled = 7;
    evidence.usage[3].units = 11;
    let found = violations(&evidence, &history);
    assert_eq!(
        found,
        "live/two: admitted 11 of 10, 1 too many\n\
         live/two: settled 11 - excess 0 + out 0 = 11, limit 10"
    );

    // One account was not taken from, or the other twice.
    let (mut evidence, history) = good();
    evidence.ledger[4].settled = 0;
    assert_eq!(
        violations(&evidence, &history),
        "live/two/x: 4 surely admitted, 0 billed: 4 lost, at most 0 may be\n\
         two: 7 metered, 3 settled on `part`"
    );
    let (mut evidence, history) = good();
    evidence.ledger[3].settled = 10;
    assert_eq!(
        violations(&evidence, &history),
        "live/two: billed 10, but clients were told of 7 admitted and 0 are unknown\n\
         two: 7 metered, 10 settled on `all`"
    );
    // A refused check took from none; one of unknown fate may have taken from both.
    let (mut evidence, mut history) = good();
    history.push(costing(3, 2, 300, Outcome::refused("quota_exceeded")));
    assert_eq!(violations(&evidence, &history), "");
    evidence.ledger[3].settled = 9;
    assert!(violations(&evidence, &history).contains("live/two: billed 9"));
    history.push(costing(3, 2, 300, Outcome::Unknown));
    evidence.ledger[4].settled = 6;
    evidence.usage[3].units = 9;
    evidence.ledger[4].limit = Some(6);
    assert_eq!(violations(&evidence, &history), "");
}

#[test]
fn only_the_account_of_a_revoked_key_may_end_without_a_limit() {
    let (mut evidence, history) = good();
    evidence.ledger[2].limit = None;
    evidence.ledger[2].out = 99;
    assert_eq!(violations(&evidence, &history), "", "its key was revoked");
    evidence.ledger[2].out = 100;
    assert_eq!(
        violations(&evidence, &history),
        "live/gone: settled 1 - excess 0 + out 100 = 101, limit 100"
    );
    let (mut evidence, history) = good();
    let key_x = Change {
        what: What::Revoke { subject: 3 },
        invoke_us: 30 * SECOND,
        acked_us: None,
        revision: 0,
    };
    evidence.changes.push(key_x);
    evidence.ledger[4].limit = None;
    assert_eq!(violations(&evidence, &history), "");
    evidence.ledger[3].limit = None;
    assert_eq!(
        violations(&evidence, &history),
        "live/two: the ledger knows no limit for it",
        "key y takes from it as well"
    );
}

#[test]
fn what_a_killed_edge_may_lose_counts_for_every_account_of_its_checks() {
    let (mut evidence, history) = good();
    for account in [3, 4, 5] {
        evidence.ledger[account].settled = 0;
    }
    evidence.usage[3].units = 0;
    let found = violations(&evidence, &history);
    assert!(
        found.contains("live/two: 7 surely admitted, 0 billed: 7 lost"),
        "{found}"
    );
    let crash = |at_us| vec![EdgeCrash { edge: 1, at_us }];
    evidence.edge_crashes = crash(100 + SECOND);
    assert_eq!(violations(&evidence, &history), "");
    // The check of 4 at 100 us had been written down.
    evidence.edge_crashes = crash(101 + SECOND);
    let found = violations(&evidence, &history);
    assert!(
        found.contains("live/two: 7 surely admitted, 0 billed: 7 lost, at most 3 may be"),
        "{found}"
    );
    assert!(
        found.contains("live/two/x: 4 surely admitted, 0 billed: 4 lost, at most 0 may be"),
        "{found}"
    );
}

#[test]
fn a_refusal_is_right_while_one_account_has_less_left_than_the_check_costs() {
    let refused = |cost| {
        let (evidence, mut history) = good();
        let refusal = Outcome::refused("quota_exceeded");
        history.push(costing(3, 9, 38 * SECOND, refusal));
        history.push(costing(3, cost, 38 * SECOND, refusal));
        violations(&evidence, &history)
    };
    // 3 are left for the customer, 1 for the key.
    assert_eq!(refused(2), "");
    assert_eq!(
        refused(1),
        "two, key x: a check of 1 refused for quota until 38000 ms, 2000 ms before the end, although free were \
         3 of 10 of live/two, 1 of 5 of live/two/x"
    );
    // The other key was admitted meanwhile: what was free then, nobody knows.
    let (mut evidence, mut history) = good();
    history.push(costing(
        3,
        1,
        38 * SECOND,
        Outcome::refused("quota_exceeded"),
    ));
    history.push(costing(4, 1, 36 * SECOND + 1, Outcome::Ok));
    for (account, settled) in [(3, 8), (5, 4)] {
        evidence.ledger[account].settled = settled;
    }
    evidence.usage[3].units = 8;
    assert_eq!(violations(&evidence, &history), "");
}

#[test]
fn a_refusal_from_before_a_raise_says_nothing_of_what_it_gave() {
    let (mut evidence, mut history) = good();
    let refusal = operation(1, 38 * SECOND, Outcome::refused("quota_exceeded"));
    history.push(refusal);
    let mut raised = |acked_us| {
        evidence.changes.push(Change {
            what: raise(9),
            invoke_us: 34 * SECOND,
            acked_us,
            revision: 812,
        });
        evidence.ledger[1].limit = Some(9);
        let found = violations(&evidence, &history);
        evidence.changes.pop();
        found
    };
    assert_eq!(raised(Some(36 * SECOND + 1)), "", "too near to the raise");
    assert_eq!(raised(None), "", "it may have been made at the end");
    assert_eq!(
        raised(Some(36 * SECOND)),
        "raised, key r: a check of 1 refused for quota until 38000 ms, 2000 ms before the end, although free were \
         5 of 9 of live/raised"
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
    let (evidence, mut history) = good();
    assert!(violations(&evidence, &[]).contains("no check was admitted"));
    history.retain(|o| o.subject != 3);
    history.iter_mut().for_each(|o| o.cost = 1);
    let found = violations(&evidence, &history);
    assert!(
        found.contains("no check of more than one unit was admitted"),
        "{found}"
    );
    history.retain(|o| o.subject < 3);
    let found = violations(&evidence, &history);
    assert!(
        found.contains("no check that takes from several accounts was admitted"),
        "{found}"
    );
}
