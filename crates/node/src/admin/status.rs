//! How the node stands: for people, for a load balancer, for whoever restarts it.

use super::View;
use super::problem::Refused;
use crate::clock;
use crate::machine::AlarmCounts;
use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tollgate_core::ids::{Epoch, Slot};
use tollgate_core::message::Route;

/// `GET /status`
pub(super) async fn status(State(view): State<Arc<View>>) -> Json<Value> {
    let standing = view.consensus.standing().borrow().clone();
    let applied = *view.consensus.applied().borrow();
    let service = view.serving.borrow().clone();
    let (free, total) = disk(&view);
    let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let issuer = &view.issuer_counts;
    let ledger = view.ledger.read();
    let routes: Vec<Route> = Slot::all().map(|slot| ledger.route(slot)).collect();
    let sizes = ledger.sizes();
    Json(json!({
        "cluster": view.cluster,
        "incarnation": ledger.incarnation(),
        "node": view.node,
        "boot": service.as_ref().map(|service| service.node.1),
        "role": role(&standing, view.node),
        "term": standing.term,
        "leader": standing.leader,
        "voters": standing.voters,
        "members": members(&view),
        "last_index": standing.last_index,
        "committed": standing.committed_index,
        "applied": applied.unwrap_or(0),
        "ledger_index": ledger.index(),
        "ledger_time_ms": ledger.time().0,
        "revision": ledger.catalog().revision().to_string(),
        "digest": format!("{:032x}", ledger.digest()),
        "confirmed_age_ms": service.as_ref().and_then(|s| s.confirmation.age_ms(clock::mono())),
        "slots": slots(&routes),
        "owners": owners(&routes),
        "unowned": routes.iter().filter(|route| route.owner.is_none()).count(),
        "routes_index": ledger.routes_index(),
        "sessions": {
            "open": sizes.sessions_open,
            "known": sizes.sessions_known,
        },
        "edges_connected": load(&issuer.connected),
        "accounts": sizes.accounts,
        "issuer": {
            "granted_units": load(&issuer.granted),
            "pooled_units": load(&issuer.pooled),
            "stranded_units": load(&issuer.stranded),
            "recalls": load(&issuer.recalls),
        },
        "suspense_units": ledger.suspense_units(),
        "alarms": alarms(view.ledger.alarms()),
        "disk": { "path": view.data_dir, "free_bytes": free, "total_bytes": total },
    }))
}

fn role(standing: &crate::consensus::Standing, node: tollgate_core::ids::NodeId) -> &'static str {
    if standing.is_leader {
        "leader"
    } else if standing.voters.contains(&node) {
        "follower"
    } else {
        "learner"
    }
}

fn members(view: &View) -> Value {
    view.members
        .iter()
        .map(|(node, quic)| json!({ "node": node, "quic": quic }))
        .collect()
}

/// Per node: how many slots it is issuer of.
fn slots(routes: &[Route]) -> BTreeMap<u64, usize> {
    let mut counts = BTreeMap::new();
    for (node, _) in routes.iter().filter_map(|route| route.owner) {
        *counts.entry(node.0).or_default() += 1;
    }
    counts
}

/// Per owner: how many slots, and the range of their epochs.
fn owners(routes: &[Route]) -> Value {
    let mut owners: BTreeMap<_, (usize, Epoch, Epoch)> = BTreeMap::new();
    for route in routes {
        let Some((node, boot)) = route.owner else {
            continue;
        };
        let owner = owners
            .entry((node, boot))
            .or_insert((0, route.epoch, route.epoch));
        owner.0 += 1;
        owner.1 = owner.1.min(route.epoch);
        owner.2 = owner.2.max(route.epoch);
    }
    let row = |((node, boot), (count, low, high)): (_, (usize, Epoch, Epoch))| json!({ "node": node, "boot": boot, "slots": count, "epoch_min": low, "epoch_max": high });
    owners.into_iter().map(row).collect()
}

fn alarms(counts: &AlarmCounts) -> Value {
    counts
        .all()
        .map(|(name, count)| (name.to_owned(), json!(count)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// Free and whole size of the disk under the data folder, in bytes.
pub(super) fn disk(view: &View) -> (Option<u64>, Option<u64>) {
    match rustix::fs::statvfs(&view.data_dir) {
        Ok(found) => (
            Some(found.f_bavail.saturating_mul(found.f_frsize)),
            Some(found.f_blocks.saturating_mul(found.f_frsize)),
        ),
        Err(_) => (None, None),
    }
}

/// `GET /livez`: the process runs and its state is whole.
pub(super) async fn livez(State(view): State<Arc<View>>) -> &'static str {
    // Takes the lock: a poisoned one ends the request, and the probe sees it.
    drop(view.ledger.read());
    "ok\n"
}

/// `GET /readyz`: edges are served, and the view is confirmed.
pub(super) async fn readyz(State(view): State<Arc<View>>) -> Result<&'static str, Refused> {
    let service = view.serving.borrow().clone();
    let service = service.ok_or_else(|| Refused::unavailable("this start has no boot yet"))?;
    match service.confirmation.age_ms(clock::mono()) {
        Some(_) => Ok("ready\n"),
        None => Err(Refused::unavailable(
            "the view is not confirmed: no leader is reached",
        )),
    }
}
