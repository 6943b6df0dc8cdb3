//! Whether a quota can be used to its end while nothing is wrong.
//!
//! Owns: the judgement of every first refusal of a healthy run. A check takes from all accounts of its key or from none, so
//! its refusal is right if *one* of them had less left than it costs. Refuses to judge accounts whose limit grew.

use super::super::evidence::{Account, Subject};
use super::super::history::{Operation, Outcome};
use super::Finding;

/// Of 1,000 units so many must be usable before the first refusal, and all of a smaller quota.
const USABLE_PER_MILLE: u64 = 999;

/// P3 with healthy links: what of a quota was admitted, or on its way to be, when its first refusal came. A check of
/// unknown fate may have been admitted, so it counts as use.
///
/// A quota that met its end once explains later refusals too: the rest may lie in one edge's cell, too little for the
/// check that was refused there, and another edge goes by the issuer's word for a second (docs/protocol.md, "When units
/// run short"). That such a word does not stand for longer is judged at the run's end.
///
/// * `raised`: accounts whose limit grew during the run; keys that take from them are left out.
#[must_use]
pub fn used_before_refused(
    subjects: &[Subject],
    accounts: &[Account],
    raised: &[u32],
    history: &[Operation],
) -> Finding {
    let mut finding = Finding::new("99.9 % of a quota is usable before its first refusal");
    // By account: what was asked for and admitted.
    let mut used: Vec<Vec<(u64, u64)>> = vec![Vec::new(); accounts.len()];
    for operation in history {
        if matches!(operation.outcome, Outcome::Ok | Outcome::Unknown) {
            for account in &subjects[operation.subject as usize].accounts {
                used[*account as usize].push((operation.invoke_us, u64::from(operation.cost)));
            }
        }
    }
    let refused = |o: &&Operation| o.outcome == Outcome::Refused("quota_exceeded");
    let mut refusals: Vec<&Operation> = history.iter().filter(refused).collect();
    refusals.sort_unstable_by_key(|o| o.complete_us);
    let mut ended = vec![false; accounts.len()];
    let (mut several, mut dear, mut units, mut units_used) = (0_u64, 0_u64, 0_u64, 0_u64);
    for refusal in refusals {
        let Subject {
            customer,
            key,
            accounts: own,
        } = &subjects[refusal.subject as usize];
        if own.iter().any(|a| ended[*a as usize] || raised.contains(a)) {
            continue;
        }
        several += u64::from(own.len() > 1);
        dear += u64::from(refusal.cost > 1);
        let mut words = Vec::new();
        for index in own {
            let Account { account, limit, .. } = &accounts[*index as usize];
            let taken = used[*index as usize].iter();
            let taken = taken.filter(|(invoke_us, _)| *invoke_us <= refusal.complete_us);
            let taken: u64 = taken.map(|(_, cost)| cost).sum();
            let no_room = taken + u64::from(refusal.cost) > *limit;
            if no_room || taken * 1_000 >= limit * USABLE_PER_MILLE {
                ended[*index as usize] = true;
                units += limit;
                units_used += taken;
            }
            words.push(format!("{taken} of {limit} units of {account}"));
        }
        if !own.iter().any(|a| ended[*a as usize]) {
            finding.violation(format!(
                "{customer}, key {key}: a check of {} was refused after {}",
                refusal.cost,
                words.join(" and ")
            ));
        }
    }
    let judged = ended.iter().filter(|ended| **ended).count();
    if judged == 0 {
        finding.violation("no customer used up its quota".to_owned());
    }
    finding.measured = format!(
        "{judged} quotas met their end, {units_used} of {units} units used before; of these first refusals {several} were of \
         checks on several accounts, {dear} of checks of more than one unit"
    );
    finding
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One customer with 20 units and two keys of 2,000 and 8 units.
    fn world() -> (Vec<Subject>, Vec<Account>) {
        let account = |account: &str, limit| Account {
            account: account.to_owned(),
            customer: "c".to_owned(),
            limit_name: "l".to_owned(),
            limit,
        };
        let subject = |key: &str, own| Subject {
            customer: "c".to_owned(),
            key: key.to_owned(),
            accounts: vec![0, own],
        };
        let accounts = vec![account("all", 20), account("a", 2_000), account("b", 8)];
        (vec![subject("a", 1), subject("b", 2)], accounts)
    }

    /// Asked at `at_us`, answered 10 us later.
    fn check(subject: u32, cost: u32, at_us: u64, outcome: Outcome) -> Operation {
        Operation {
            client: 1,
            edge: 1,
            subject,
            cost,
            invoke_us: at_us,
            complete_us: at_us + 10,
            outcome,
        }
    }

    fn judged(history: &[Operation]) -> String {
        let (subjects, accounts) = world();
        let finding = used_before_refused(&subjects, &accounts, &[], history);
        finding.violations.join("\n")
    }

    const NO: Outcome = Outcome::Refused("quota_exceeded");

    /// 15 of the customer's 20 are used, 3 of them under key b, which has 8; then checks are refused.
    fn refused(refusals: &[(u32, u32)]) -> String {
        let mut history = vec![
            check(0, 12, 100, Outcome::Ok),
            check(1, 3, 200, Outcome::Ok),
        ];
        for ((subject, cost), at) in refusals.iter().zip(300..) {
            history.push(check(*subject, *cost, at, NO));
        }
        judged(&history)
    }

    #[test]
    fn a_check_may_be_refused_where_one_account_has_less_left_than_it_costs() {
        assert_eq!(refused(&[(0, 6)]), "", "5 are left for the customer");
        assert_eq!(refused(&[(1, 6)]), "", "and 5 for the key");
        let of_b =
            "c, key b: a check of 5 was refused after 15 of 20 units of all and 3 of 8 units of b";
        let of_a = "c, key a: a check of 5 was refused after 15 of 20 units of all and 12 of 2000 units of a";
        let none = "no customer used up its quota";
        assert_eq!(refused(&[(1, 5)]), format!("{of_b}\n{none}"));
        assert_eq!(
            refused(&[(0, 5), (1, 5)]),
            format!("{of_a}\n{of_b}\n{none}")
        );
    }

    #[test]
    fn only_the_first_refusal_of_a_quota_is_judged() {
        assert_eq!(refused(&[(0, 6), (0, 1), (1, 1)]), "");
        assert_eq!(refused(&[(0, 5), (0, 6)]).lines().count(), 1);
        // That key b met its end says nothing of what key a may use.
        let mut history = vec![check(1, 6, 100, Outcome::Ok), check(1, 3, 200, NO)];
        assert_eq!(judged(&history), "");
        history.push(check(0, 10, 300, NO));
        assert_eq!(judged(&history).lines().count(), 1);
    }

    #[test]
    fn what_was_asked_for_before_the_refusal_came_counts_and_what_came_later_does_not() {
        let mut history = vec![check(1, 4, 100, Outcome::Ok), check(1, 5, 300, NO)];
        assert_eq!(judged(&history), "");
        history[1].cost = 4;
        assert!(judged(&history).starts_with("c, key b: a check of 4"));
        for outcome in [Outcome::Ok, Outcome::Unknown] {
            let mut on_its_way = history.clone();
            on_its_way.push(check(1, 1, 310, outcome));
            assert_eq!(judged(&on_its_way), "");
            on_its_way[2].invoke_us += 1;
            assert!(judged(&on_its_way).starts_with("c, key b: a check of 4"));
        }
    }

    #[test]
    fn one_in_a_thousand_may_be_left_of_a_large_quota_and_none_of_a_small_one() {
        let (subjects, mut accounts) = world();
        accounts[0].limit = 5_000;
        let judged = |used, cost| {
            let history = [check(0, used, 100, Outcome::Ok), check(0, cost, 200, NO)];
            let finding = used_before_refused(&subjects, &accounts, &[], &history);
            finding.violated == 0
        };
        assert!(judged(1_998, 1));
        assert!(!judged(1_997, 1));
        assert!(judged(1_997, 4), "3 are left");
    }

    #[test]
    fn a_raised_account_is_not_judged_and_a_run_that_ended_no_quota_is_no_proof() {
        let (subjects, accounts) = world();
        let history = [check(1, 1, 100, NO)];
        let on = |raised: &[u32]| used_before_refused(&subjects, &accounts, raised, &history);
        assert_eq!(on(&[1]).violated, 2);
        assert_eq!(on(&[0]).violations, ["no customer used up its quota"]);
    }
}
