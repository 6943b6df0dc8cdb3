//! The judge: holds what clients were told against what the ledger says at the end.
//!
//! Owns: one function per promise, each from the definition and nothing else. Shares no code with the product and
//! uses none of it; counts only *definite* answers against a promise, so that a violation is always real: a check of
//! unknown fate may have been admitted (it may be billed) or not (it breaks no limit).
//! Refuses: to run anything. Read next: `evidence.rs`, `history.rs` for what it is given.

mod administration;
pub mod cut;
pub mod usable;

use super::evidence::{Evidence, Row, What};
use super::history::{Operation, Outcome};
use administration::{changes_kept, revoked_is_refused};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Longest time from the repair to service, in microseconds.
pub const RECOVERY_US_MAX: u64 = 5_000_000;

/// A refusal says what was so within the last second; twice that, so that one on its way counts for nobody.
const REFUSED_US_MIN: u64 = 2_000_000;

/// What a promise may say in words when it is broken: the first few are enough to start from.
const VIOLATIONS_SHOWN: usize = 10;

/// The judgement of one promise.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was promised.
    pub promise: &'static str,
    /// How close it came, with numbers.
    pub measured: String,
    /// Violations in all.
    pub violated: u64,
    /// The first of them, each a sentence with numbers.
    pub violations: Vec<String>,
}

impl Finding {
    pub(super) fn new(promise: &'static str) -> Self {
        Self {
            promise,
            ..Self::default()
        }
    }

    pub(super) fn violation(&mut self, words: String) {
        self.violated += 1;
        if self.violations.len() < VIOLATIONS_SHOWN {
            self.violations.push(words);
        }
    }
}

/// Units of one subject, or of one account, as clients know them.
#[derive(Debug, Clone, Copy, Default)]
struct Count {
    ok: u64,
    unknown: u64,
    refused: u64,
    /// Checks, of whatever cost, without an answer: never sent, or of unknown fate.
    unanswered: u64,
}

/// What clients know of each account: the sum over the keys that take from it.
fn by_account(evidence: &Evidence, counts: &[Count]) -> Vec<Count> {
    let mut sums = vec![Count::default(); evidence.accounts.len()];
    for (subject, count) in evidence.subjects.iter().zip(counts) {
        for account in &subject.accounts {
            let sum = &mut sums[*account as usize];
            sum.ok += count.ok;
            sum.unknown += count.unknown;
            sum.refused += count.refused;
            sum.unanswered += count.unanswered;
        }
    }
    sums
}

/// Judges a run.
#[must_use]
pub fn judge(evidence: &Evidence, history: &[Operation]) -> Vec<Finding> {
    let mut counts = vec![Count::default(); evidence.subjects.len()];
    for operation in history {
        let count = &mut counts[operation.subject as usize];
        let cost = u64::from(operation.cost);
        match operation.outcome {
            Outcome::Ok => count.ok += cost,
            Outcome::Unknown => {
                count.unknown += cost;
                count.unanswered += 1;
            }
            Outcome::Refused(_) => count.refused += cost,
            Outcome::Unsent => count.unanswered += 1,
        }
    }
    let accounts = by_account(evidence, &counts);
    let ledger: BTreeMap<&str, &Row> = evidence
        .ledger
        .iter()
        .map(|row| (row.account.as_str(), row))
        .collect();
    vec![
        admitted_within_limit(evidence, history),
        ledger_within_limit(evidence),
        billed_within_admitted(evidence, &accounts, &ledger),
        metered_within_admitted(evidence, &counts),
        lost_within_bound(evidence, history, &accounts, &ledger),
        metered_as_settled(evidence, history, &ledger),
        changes_kept(evidence, history, &ledger),
        revoked_is_refused(evidence, history),
        replicas_agree(evidence),
        service_returns(evidence),
        held_units_serve(evidence, &counts),
        refused_is_used_up(evidence, history, &ledger),
        processes_behave(evidence),
        reached(evidence, history),
    ]
}

/// P1 as clients see it: at every limit's time, what was surely admitted before the next raise was asked for.
fn admitted_within_limit(evidence: &Evidence, history: &[Operation]) -> Finding {
    let mut finding = Finding::new("admitted <= limit, for every account, at any time");
    let mut completions: Vec<Vec<(u64, u64)>> = vec![Vec::new(); evidence.accounts.len()];
    for operation in history.iter().filter(|o| o.outcome == Outcome::Ok) {
        for account in &evidence.subjects[operation.subject as usize].accounts {
            completions[*account as usize].push((operation.complete_us, u64::from(operation.cost)));
        }
    }
    let (mut exhausted, mut used_of_exhausted, mut limit_of_exhausted) = (0_u64, 0_u64, 0_u64);
    for (index, account) in evidence.accounts.iter().enumerate() {
        let mut limit = account.limit;
        // A raise counts from the moment it was asked for, acknowledged or not: it may have been made.
        let mut steps: Vec<(u64, u64)> = Vec::new();
        for change in &evidence.changes {
            if let What::Raise { account, to } = change.what
                && account as usize == index
            {
                steps.push((change.invoke_us, to));
            }
        }
        let done = &completions[index];
        let mut judge = |limit: u64, before: u64| {
            let admitted: u64 = done
                .iter()
                .filter(|(complete, _)| *complete < before)
                .map(|(_, cost)| cost)
                .sum();
            if admitted > limit {
                finding.violation(format!(
                    "{}: admitted {admitted} of {limit}, {} too many",
                    account.account,
                    admitted - limit
                ));
            }
            admitted
        };
        for (from, to) in steps {
            judge(limit, from);
            limit = limit.max(to);
        }
        let admitted = judge(limit, u64::MAX);
        // What is left of an account that was asked for more than it has.
        if admitted.saturating_mul(10) >= limit.saturating_mul(9) {
            exhausted += 1;
            used_of_exhausted += admitted.min(limit);
            limit_of_exhausted += limit;
        }
    }
    finding.measured = format!(
        "{} accounts; {exhausted} nearly or wholly used up: {used_of_exhausted} of {limit_of_exhausted} units",
        evidence.accounts.len()
    );
    finding
}

/// P1 as the ledger sees it.
fn ledger_within_limit(evidence: &Evidence) -> Finding {
    let mut finding = Finding::new("settled - excess + out <= limit and excess = 0, in the ledger");
    let ended = accounts_of_revoked_keys(evidence);
    let mut out = 0_u64;
    for row in &evidence.ledger {
        let Row {
            account,
            settled,
            excess,
            ..
        } = row;
        out += row.out;
        if *excess > 0 {
            finding.violation(format!(
                "{account}: excess {excess}, expected 0 (settled {settled})"
            ));
        }
        let taken = i128::from(*settled) - i128::from(*excess) + i128::from(row.out);
        match row.limit.or_else(|| ended.get(account.as_str()).copied()) {
            Some(limit) if taken > i128::from(limit) => finding.violation(format!(
                "{account}: settled {settled} - excess {excess} + out {} = {taken}, limit {limit}",
                row.out
            )),
            Some(_) => {}
            None => finding.violation(format!("{account}: the ledger knows no limit for it")),
        }
    }
    finding.measured = format!(
        "{} rows, {out} units still out at the end",
        evidence.ledger.len()
    );
    finding
}

/// Accounts from which only keys took that were revoked, or may have been, each with the limit it had: the catalog has
/// none for them any more.
fn accounts_of_revoked_keys(evidence: &Evidence) -> BTreeMap<&str, u64> {
    let mut goes_on = vec![false; evidence.accounts.len()];
    for (index, subject) in evidence.subjects.iter().enumerate() {
        let revoked = evidence.changes.iter().any(
            |change| matches!(change.what, What::Revoke { subject } if subject as usize == index),
        );
        for account in subject.accounts.iter().filter(|_| !revoked) {
            goes_on[*account as usize] = true;
        }
    }
    let accounts = evidence.accounts.iter().zip(goes_on);
    accounts
        .filter(|(_, goes_on)| !goes_on)
        .map(|(account, _)| (account.account.as_str(), account.limit))
        .collect()
}

fn settled_of(ledger: &BTreeMap<&str, &Row>, account: &str) -> u64 {
    ledger.get(account).map_or(0, |row| row.settled)
}

/// P4, never too much.
fn billed_within_admitted(
    evidence: &Evidence,
    counts: &[Count],
    ledger: &BTreeMap<&str, &Row>,
) -> Finding {
    let mut finding = Finding::new("billed <= admitted, for every account");
    let (mut settled_sum, mut ok_sum, mut unknown_sum) = (0_u64, 0_u64, 0_u64);
    for (account, count) in evidence.accounts.iter().zip(counts) {
        let settled = settled_of(ledger, &account.account);
        let most = count.ok + count.unknown;
        if settled > most {
            finding.violation(format!(
                "{}: billed {settled}, but clients were told of {} admitted and {} are unknown",
                account.account, count.ok, count.unknown
            ));
        }
        settled_sum += settled;
        ok_sum += count.ok;
        unknown_sum += count.unknown;
    }
    let ours: BTreeSet<&str> = evidence
        .accounts
        .iter()
        .map(|a| a.account.as_str())
        .collect();
    for row in &evidence.ledger {
        if row.settled > 0 && !ours.contains(row.account.as_str()) {
            finding.violation(format!(
                "{}: billed {} on an account that nobody used",
                row.account, row.settled
            ));
        }
    }
    finding.measured =
        format!("{settled_sum} billed, {ok_sum} surely admitted, {unknown_sum} of unknown fate");
    finding
}

/// What edges that were killed admitted last, by subject: distance from its end to the crash, and cost.
fn last_use_of_killed_edges(evidence: &Evidence, history: &[Operation]) -> Vec<Vec<(u64, u64)>> {
    let mut last: Vec<Vec<(u64, u64)>> = vec![Vec::new(); evidence.subjects.len()];
    for crash in &evidence.edge_crashes {
        for operation in history {
            let theirs = operation.edge == crash.edge && operation.outcome == Outcome::Ok;
            // An answer that came after the crash was on its way: decided before it, so within the interval too
            // if it was asked within it.
            let before = crash.at_us.saturating_sub(operation.complete_us);
            if theirs
                && operation.invoke_us <= crash.at_us
                && before <= evidence.journal_interval_us
            {
                last[operation.subject as usize].push((before, u64::from(operation.cost)));
            }
        }
    }
    last
}

/// P4, never too much, in the other column: usage counts no unit that no client may have been told of.
fn metered_within_admitted(evidence: &Evidence, counts: &[Count]) -> Finding {
    let mut finding = Finding::new("metered <= admitted, for every customer");
    let mut most: BTreeMap<&str, u64> = BTreeMap::new();
    for (subject, count) in evidence.subjects.iter().zip(counts) {
        *most.entry(&subject.customer).or_default() += count.ok + count.unknown;
    }
    for used in &evidence.usage {
        let most = most.get(used.customer.as_str()).copied().unwrap_or(0);
        if used.units > most {
            finding.violation(format!(
                "{}: metered {}, but at most {most} were admitted",
                used.customer, used.units
            ));
        }
    }
    finding.measured = format!("{} customers with metered use", evidence.usage.len());
    finding
}

/// P4, never too little: what clients were surely told is billed, but for the last use of edges that were killed.
fn lost_within_bound(
    evidence: &Evidence,
    history: &[Operation],
    counts: &[Count],
    ledger: &BTreeMap<&str, &Row>,
) -> Finding {
    let mut finding = Finding::new(
        "admitted - billed <= the use of a killed edge's last journal_interval, and 0 without a kill",
    );
    let by_subject = last_use_of_killed_edges(evidence, history);
    let mut last: Vec<Vec<(u64, u64)>> = vec![Vec::new(); evidence.accounts.len()];
    for (subject, theirs) in evidence.subjects.iter().zip(&by_subject) {
        for account in &subject.accounts {
            last[*account as usize].extend(theirs);
        }
    }
    let (mut lost_sum, mut bound_sum, mut widest) = (0_u64, 0_u64, 0_u64);
    for ((account, count), last) in evidence.accounts.iter().zip(counts).zip(&mut last) {
        let settled = settled_of(ledger, &account.account);
        let bound: u64 = last.iter().map(|(_, cost)| cost).sum();
        bound_sum += bound;
        let Some(lost) = count.ok.checked_sub(settled).filter(|lost| *lost > 0) else {
            continue;
        };
        lost_sum += lost;
        if lost > bound {
            finding.violation(format!(
                "{}: {} surely admitted, {settled} billed: {lost} lost, at most {bound} may be",
                account.account, count.ok
            ));
        }
        last.sort_unstable();
        let mut explained = 0;
        for (before, cost) in last {
            if explained >= lost {
                break;
            }
            explained += *cost;
            widest = widest.max(*before);
        }
    }
    finding.measured = format!(
        "{lost_sum} lost of at most {bound_sum}, over {} kills of edges; the last {} ms of {} before each explain it",
        evidence.edge_crashes.len(),
        widest / 1_000,
        evidence.journal_interval_us / 1_000
    );
    finding
}

/// Usage counts each admitted unit once, as each of a customer's limits does. They are columns of their own: what a killed edge
/// lost last may be missing in one and not in the other, a check being written down between the two.
fn metered_as_settled(
    evidence: &Evidence,
    history: &[Operation],
    ledger: &BTreeMap<&str, &Row>,
) -> Finding {
    let mut finding =
        Finding::new("metered use = settled, but for a killed edge's last journal_interval");
    let last = last_use_of_killed_edges(evidence, history);
    let metered: BTreeMap<&str, u64> = evidence
        .usage
        .iter()
        .map(|used| (used.customer.as_str(), used.units))
        .collect();
    let mut bounds: BTreeMap<&str, u64> = BTreeMap::new();
    for (subject, last) in evidence.subjects.iter().zip(&last) {
        *bounds.entry(&subject.customer).or_default() +=
            last.iter().map(|(_, cost)| cost).sum::<u64>();
    }
    // By customer and limit: every check takes from one account of each limit, and is metered once.
    let mut settled: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for account in &evidence.accounts {
        let limit = (account.customer.as_str(), account.limit_name.as_str());
        *settled.entry(limit).or_default() += settled_of(ledger, &account.account);
    }
    for ((customer, limit), settled) in settled {
        let units = metered.get(customer).copied().unwrap_or(0);
        let bound = bounds.get(customer).copied().unwrap_or(0);
        if units.abs_diff(settled) > bound {
            finding.violation(format!(
                "{customer}: {units} metered, {settled} settled on `{limit}`"
            ));
        }
    }
    finding.measured = format!(
        "{} units metered",
        evidence.usage.iter().map(|used| used.units).sum::<u64>()
    );
    finding
}

/// Replicas that have applied the same entries are alike.
fn replicas_agree(evidence: &Evidence) -> Finding {
    let mut finding = Finding::new("equal digests at an equal index, on all nodes");
    let mut by_index: BTreeMap<u64, BTreeSet<&str>> = BTreeMap::new();
    for node in &evidence.nodes {
        by_index
            .entry(node.digest_index)
            .or_default()
            .insert(&node.digest);
    }
    for (index, digests) in &by_index {
        if digests.len() > 1 {
            let nodes: Vec<String> = evidence
                .nodes
                .iter()
                .filter(|node| node.digest_index == *index)
                .map(|node| format!("node {}: {}", node.node, node.digest))
                .collect();
            finding.violation(format!("at index {index}: {}", nodes.join(", ")));
        }
    }
    // Digests that cannot be compared are no agreement.
    if by_index.len() != 1 {
        let indexes: Vec<String> = by_index.keys().map(u64::to_string).collect();
        finding.violation(format!(
            "the nodes never stood at one index: {}",
            if indexes.is_empty() {
                "none answered".to_owned()
            } else {
                indexes.join(", ")
            }
        ));
    }
    finding.measured = format!(
        "{} nodes at index {}",
        evidence.nodes.len(),
        by_index.keys().next_back().copied().unwrap_or(0)
    );
    finding
}

/// Service after every repair.
fn service_returns(evidence: &Evidence) -> Finding {
    let mut finding = Finding::new(
        "service again <= 5 s after the start that restores a majority, and after any other repair",
    );
    let mut times: BTreeMap<bool, Vec<u64>> = BTreeMap::new();
    for recovery in &evidence.recoveries {
        let Some(took) = recovery.took_us else {
            finding.violation(format!(
                "round {}: no service from {} until the runner gave up",
                recovery.round, recovery.from
            ));
            continue;
        };
        times.entry(recovery.majority_lost).or_default().push(took);
        if took > RECOVERY_US_MAX {
            finding.violation(format!(
                "round {}: {} ms from {}",
                recovery.round,
                took / 1_000,
                recovery.from
            ));
        }
    }
    let summary = |(majority_lost, mut times): (bool, Vec<u64>)| {
        times.sort_unstable();
        format!(
            "{} {}: median {} ms, worst {} ms",
            times.len(),
            if majority_lost {
                "after a lost majority"
            } else {
                "others"
            },
            times.get(times.len() / 2).copied().unwrap_or(0) / 1_000,
            times.last().copied().unwrap_or(0) / 1_000
        )
    };
    let summaries: Vec<String> = times.into_iter().rev().map(summary).collect();
    finding.measured = if summaries.is_empty() {
        "no repair was measured".to_owned()
    } else {
        summaries.join("; ")
    };
    finding
}

/// P6 where the run asks for it. Such a run kills no edge, so an answer that never came has no excuse either.
fn held_units_serve(evidence: &Evidence, counts: &[Count]) -> Finding {
    let mut finding = Finding::new("no check of held units is refused or left without an answer");
    let mut served = 0;
    for index in &evidence.held_subjects {
        let count = counts[*index as usize];
        served += count.ok;
        if count.refused > 0 || count.unanswered > 0 {
            finding.violation(format!(
                "{}: {} refused, {} without an answer, {} admitted",
                evidence.subjects[*index as usize].customer,
                count.refused,
                count.unanswered,
                count.ok
            ));
        }
    }
    finding.measured = if evidence.held_subjects.is_empty() {
        "not asked for in this run: killed edges lose what they hold".to_owned()
    } else {
        format!("{served} admitted")
    };
    finding
}

/// P3 at the end of the run: where a key was only refused for the last two seconds, nothing else was admitted on its
/// accounts within them and none was raised, one of its accounts has less left in the ledger than the cheapest of these
/// checks would have cost. What crashed edges hold is gone from there; what live ones held they handed in when they
/// ended.
fn refused_is_used_up(
    evidence: &Evidence,
    history: &[Operation],
    ledger: &BTreeMap<&str, &Row>,
) -> Finding {
    let mut finding =
        Finding::new("who is refused for quota has less left to be leased than asked");
    let end = history.iter().map(|o| o.complete_us).max().unwrap_or(0);
    // By account: since when nothing was taken from it, or may have been, and nothing added.
    let mut quiet_since: Vec<u64> = vec![0; evidence.accounts.len()];
    let mut stirred = |account: u32, at_us: u64| {
        let since = &mut quiet_since[account as usize];
        *since = at_us.max(*since);
    };
    for operation in history {
        if matches!(operation.outcome, Outcome::Ok | Outcome::Unknown) {
            for account in &evidence.subjects[operation.subject as usize].accounts {
                stirred(*account, operation.complete_us);
            }
        }
    }
    // A refusal from before a raise says nothing of what the raise gave. One of unknown fate may still be made.
    for change in &evidence.changes {
        if let What::Raise { account, .. } = change.what {
            stirred(account, change.acked_us.unwrap_or(u64::MAX));
        }
    }
    // By subject: the cheapest check that was refused in time, and the last such refusal.
    let mut refused: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
    for operation in history {
        let accounts = &evidence.subjects[operation.subject as usize].accounts;
        let since = accounts.iter().map(|a| quiet_since[*a as usize]).max();
        let from = since.unwrap_or(0).saturating_add(REFUSED_US_MIN);
        let at = operation.complete_us;
        let late = at >= from && at + REFUSED_US_MIN >= end;
        if late && operation.outcome == Outcome::Refused("quota_exceeded") {
            let cost = u64::from(operation.cost);
            let found = refused.entry(operation.subject).or_insert((cost, at));
            *found = (found.0.min(cost), found.1.max(at));
        }
    }
    let mut stranded: BTreeMap<&str, u64> = BTreeMap::new();
    for (index, (cost, last)) in &refused {
        let subject = &evidence.subjects[*index as usize];
        let mut free = Vec::new();
        for account in &subject.accounts {
            let name = evidence.accounts[*account as usize].account.as_str();
            let Some(row) = ledger.get(name) else {
                // Nobody has leased of it, so all of it is left.
                free.push(format!("all of {name}"));
                continue;
            };
            stranded.insert(name, row.out);
            let limit = row.limit.unwrap_or(0);
            let taken = (row.settled + row.out).saturating_sub(row.excess);
            let left = limit.saturating_sub(taken);
            if left >= *cost {
                free.push(format!("{left} of {limit} of {name}"));
            }
        }
        if free.len() == subject.accounts.len() {
            finding.violation(format!(
                "{}, key {}: a check of {cost} refused for quota until {} ms, {} ms before the end, although free were {}",
                subject.customer,
                subject.key,
                last / 1_000,
                (end - last) / 1_000,
                free.join(", ")
            ));
        }
    }
    finding.measured = format!(
        "{} keys were refused to the end; crashed processes keep {} units of theirs",
        refused.len(),
        stranded.values().sum::<u64>()
    );
    finding
}

/// Nothing is left behind at a clean end, and nothing is in suspense.
fn processes_behave(evidence: &Evidence) -> Finding {
    let mut finding = Finding::new("processes end when they are asked, with nothing left");
    for trouble in &evidence.troubles {
        finding.violation(trouble.clone());
    }
    finding.measured = "edges and nodes were asked at the end".to_owned();
    finding
}

/// A run that met nothing proves nothing.
fn reached(evidence: &Evidence, history: &[Operation]) -> Finding {
    let mut finding = Finding::new("the run met what it is about");
    let accounts_of = |o: &Operation| evidence.subjects[o.subject as usize].accounts.len();
    let (mut ok, mut several_units, mut several_accounts) = (0_u64, 0_u64, 0_u64);
    for check in history.iter().filter(|o| o.outcome == Outcome::Ok) {
        ok += 1;
        several_units += u64::from(check.cost > 1);
        several_accounts += u64::from(accounts_of(check) > 1);
    }
    for (count, what) in [
        (ok, "no check was admitted"),
        (several_units, "no check of more than one unit was admitted"),
        (
            several_accounts,
            "no check that takes from several accounts was admitted",
        ),
    ] {
        if count == 0 {
            finding.violation(what.to_owned());
        }
    }
    let kills = evidence.kills;
    if kills.total() < evidence.kills_planned {
        finding.violation(format!(
            "{} kills of {} planned were done",
            kills.total(),
            evidence.kills_planned
        ));
    }
    finding.measured = format!(
        "{ok} checks admitted, {several_units} of more than one unit, {several_accounts} from several accounts; \
         {} kills: {} leaders, {} other nodes, {} edges",
        kills.total(),
        kills.leader,
        kills.follower,
        kills.edge
    );
    finding
}

#[cfg(test)]
mod tests;
