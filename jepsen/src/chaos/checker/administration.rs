//! Whether administration holds: acknowledged changes are there at the end, revoked keys are refused.

use super::super::evidence::{Evidence, Row, What};
use super::super::history::{Operation, Outcome};
use super::Finding;
use std::collections::BTreeMap;

/// Longest time from an acknowledged revocation to the last admission under the key, on an edge whose node is current.
const PUSH_US_MAX: u64 = 1_000_000;

/// Clocks may drift so many hundredths apart.
const DRIFT_PERCENT: u64 = 1;

/// P5 for administration: what was acknowledged is there at the end, on every node.
pub(super) fn changes_kept(
    evidence: &Evidence,
    history: &[Operation],
    ledger: &BTreeMap<&str, &Row>,
) -> Finding {
    let mut finding = Finding::new("no acknowledged change is lost");
    let acked: Vec<_> = evidence
        .changes
        .iter()
        .filter(|change| change.acked_us.is_some())
        .collect();
    for (index, account) in evidence.accounts.iter().enumerate() {
        let name = account.account.as_str();
        let raises = |only_acked: bool| {
            let some = evidence.changes.iter();
            let some = some.filter(move |change| change.acked_us.is_some() || !only_acked);
            some.filter_map(move |change| match change.what {
                What::Raise { account, to } if account as usize == index => Some(to),
                _ => None,
            })
        };
        let Some(least) = raises(true).max() else {
            continue;
        };
        let most = raises(false).max().unwrap_or(least);
        match ledger.get(name).map(|row| row.limit) {
            Some(Some(limit)) if (least..=most).contains(&limit) => {}
            Some(found) => finding.violation(format!(
                "{name}: raised to {least}, acknowledged; at the end its limit is {found:?}"
            )),
            None => finding.violation(format!(
                "{name}: raised to {least}, acknowledged; at the end the ledger has no row for it"
            )),
        }
    }
    let newest = acked
        .iter()
        .map(|change| change.revision)
        .max()
        .unwrap_or(0);
    for node in &evidence.nodes {
        if node.revision < newest {
            finding.violation(format!(
                "node {}: at revision {}, but revision {newest} was acknowledged",
                node.node, node.revision
            ));
        }
    }
    let (mut by_client, mut asked_late) = (BTreeMap::new(), 0_u64);
    for change in &acked {
        if let What::Revoke { subject } = change.what {
            by_client.insert(subject, change.acked_us.unwrap_or(0));
        }
    }
    for operation in history {
        let Some(acked_us) = by_client.get(&operation.subject) else {
            continue;
        };
        if operation.invoke_us <= evidence.calm_from_us.max(*acked_us) + PUSH_US_MAX {
            continue;
        }
        asked_late += 1;
        if operation.outcome == Outcome::Ok {
            finding.violation(format!(
                "{}: its key was revoked, acknowledged; when all was repaired edge-{} still admitted it",
                evidence.subjects[operation.subject as usize].customer, operation.edge
            ));
        }
    }
    let unknown = evidence.changes.len() - acked.len();
    finding.measured = format!(
        "{} acknowledged, {unknown} of unknown fate; {asked_late} checks under revoked keys at the end",
        acked.len()
    );
    finding
}

/// P7's outer bound, which no partition may break: no edge trusts an unconfirmed view for longer.
pub(super) fn revoked_is_refused(evidence: &Evidence, history: &[Operation]) -> Finding {
    let mut finding = Finding::new("a revoked key is refused everywhere after max_stale");
    let mut revoked: BTreeMap<u32, u64> = BTreeMap::new();
    for change in &evidence.changes {
        if let (What::Revoke { subject }, Some(acked_us)) = (change.what, change.acked_us) {
            revoked.insert(subject, acked_us);
        }
    }
    let bound = evidence.max_stale_us + evidence.max_stale_us * DRIFT_PERCENT / 100;
    let mut latest = 0;
    for operation in history.iter().filter(|o| o.outcome == Outcome::Ok) {
        let Some(acked_us) = revoked.get(&operation.subject) else {
            continue;
        };
        let after = operation.invoke_us.saturating_sub(*acked_us);
        latest = latest.max(after);
        if after > bound {
            finding.violation(format!(
                "{}: admitted by edge-{} {} ms after its key's revocation was acknowledged, bound {} ms",
                evidence.subjects[operation.subject as usize].customer,
                operation.edge,
                after / 1_000,
                bound / 1_000
            ));
        }
    }
    finding.measured = format!(
        "{} keys; last admission {} ms after the acknowledgement, faults included (bound {} ms)",
        revoked.len(),
        latest / 1_000,
        bound / 1_000
    );
    finding
}
