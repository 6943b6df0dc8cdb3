//! `/metrics` in the text format of Prometheus. No label names a customer: their number has no bound.

use super::{View, status};
use crate::clock;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tollgate_core::ids::Slot;

struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String does not fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &str, value: u64) {
        // As above.
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, "gauge", help);
        self.line(name, "", value);
    }

    fn counter(&mut self, name: &str, help: &str, value: &AtomicU64) {
        self.head(name, "counter", help);
        self.line(name, "", value.load(Ordering::Relaxed));
    }
}

pub(super) async fn metrics(State(view): State<Arc<View>>) -> impl IntoResponse {
    let mut text = Text(String::with_capacity(8192));
    raft(&mut text, &view);
    ledger(&mut text, &view);
    issuer(&mut text, &view);
    (
        [(
            header::CONTENT_TYPE,
            "text/plain; version=0.0.4; charset=utf-8",
        )],
        text.0,
    )
}

fn raft(text: &mut Text, view: &View) {
    let standing = view.consensus.standing().borrow().clone();
    let applied = view.consensus.applied().borrow().unwrap_or(0);
    text.gauge("tollgate_raft_term", "Raft's term.", standing.term);
    text.gauge(
        "tollgate_raft_is_leader",
        "1 while this node leads.",
        standing.is_leader.into(),
    );
    text.gauge(
        "tollgate_raft_has_leader",
        "1 while a leader is known.",
        standing.leader.is_some().into(),
    );
    text.gauge(
        "tollgate_raft_last_log_index",
        "Index of the last log entry.",
        standing.last_index,
    );
    text.gauge(
        "tollgate_raft_committed_index",
        "Index of the last agreed entry.",
        standing.committed_index,
    );
    text.gauge(
        "tollgate_raft_applied_index",
        "Index of the last applied entry.",
        applied,
    );
    let flushes = view.store.flush_counts();
    text.head(
        "tollgate_log_syncs_total",
        "counter",
        "Syncs of the log to the disk.",
    );
    text.line(
        "tollgate_log_syncs_total",
        "",
        flushes.syncs.load(Ordering::Relaxed),
    );
    text.head(
        "tollgate_log_appended_bytes_total",
        "counter",
        "Bytes appended to the log.",
    );
    text.line(
        "tollgate_log_appended_bytes_total",
        "",
        view.store.appended_bytes(),
    );
    if let (Some(free), _) = status::disk(view) {
        text.gauge(
            "tollgate_disk_free_bytes",
            "Free bytes under the data folder.",
            free,
        );
    }
}

fn ledger(text: &mut Text, view: &View) {
    let ledger = view.ledger.read();
    let sizes = ledger.sizes();
    text.gauge(
        "tollgate_ledger_time_ms",
        "Ledger time, ms since 1970.",
        ledger.time().0,
    );
    text.gauge(
        "tollgate_ledger_accounts",
        "Accounts with a row.",
        sizes.accounts as u64,
    );
    text.gauge(
        "tollgate_ledger_sessions",
        "Sessions known.",
        sizes.sessions_known as u64,
    );
    text.gauge(
        "tollgate_suspense_units",
        "Units in suspense: reported under names the catalog does not know.",
        ledger.suspense_units(),
    );
    let own = Slot::all().filter(|slot| {
        ledger
            .route(*slot)
            .owner
            .is_some_and(|(node, _)| node == view.node)
    });
    text.gauge(
        "tollgate_slots_owned",
        "Slots this node is issuer of.",
        own.count() as u64,
    );
    let ownerless = Slot::all().filter(|slot| ledger.route(*slot).owner.is_none());
    text.gauge(
        "tollgate_slots_unowned",
        "Slots without an issuer.",
        ownerless.count() as u64,
    );
    drop(ledger);
    text.head(
        "tollgate_alarms_total",
        "counter",
        "Alarms of the ledger and of the clocks since the start, by kind.",
    );
    for (kind, count) in view.ledger.alarms().all() {
        text.line(
            "tollgate_alarms_total",
            &format!("{{kind=\"{kind}\"}}"),
            count,
        );
    }
}

fn issuer(text: &mut Text, view: &View) {
    let counts = &view.issuer_counts;
    text.counter(
        "tollgate_issuer_granted_units_total",
        "Units granted to edges.",
        &counts.granted,
    );
    text.counter(
        "tollgate_issuer_stranded_units_total",
        "Units in pools of ended epochs.",
        &counts.stranded,
    );
    text.counter(
        "tollgate_issuer_recalls_total",
        "Recalls sent.",
        &counts.recalls,
    );
    text.counter(
        "tollgate_issuer_overstated_total",
        "Lines of leases that stated more surrendered than their edge can have had.",
        &counts.overstated,
    );
    text.counter(
        "tollgate_issuer_held_dropped_total",
        "Requests ahead of this replica that were dropped.",
        &counts.held_dropped,
    );
    text.counter(
        "tollgate_issuer_leases_total",
        "Lease requests taken.",
        &counts.leases,
    );
    text.counter(
        "tollgate_issuer_resolves_total",
        "Resolves taken.",
        &counts.resolves,
    );
    text.counter(
        "tollgate_issuer_positions_total",
        "Positions proposed.",
        &counts.positions,
    );
    text.counter(
        "tollgate_issuer_positions_unknown_total",
        "Positions of unknown fate.",
        &counts.positions_unknown,
    );
    text.counter(
        "tollgate_issuer_dropped_total",
        "Messages to edges dropped.",
        &counts.dropped,
    );
    text.gauge(
        "tollgate_issuer_pooled_units",
        "Units in pools.",
        counts.pooled.load(Ordering::Relaxed),
    );
    text.gauge(
        "tollgate_edges_connected",
        "Edges connected.",
        counts.connected.load(Ordering::Relaxed),
    );
    let service = view.serving.borrow().clone();
    text.gauge(
        "tollgate_serving",
        "1 while edges are served.",
        service.is_some().into(),
    );
    let Some(service) = service else { return };
    let counts = &service.counts;
    text.counter(
        "tollgate_edge_contacts_total",
        "Connections of edges so far.",
        &counts.contacts,
    );
    text.counter(
        "tollgate_edge_violations_total",
        "Connections closed for what the edge sent.",
        &counts.violations,
    );
    text.counter(
        "tollgate_reports_settled_total",
        "Reports acknowledged.",
        &counts.reports_settled,
    );
    text.counter(
        "tollgate_reports_refused_total",
        "Reports answered otherwise.",
        &counts.reports_refused,
    );
    text.counter(
        "tollgate_unavailable_total",
        "Requests of edges of unknown fate.",
        &counts.unavailable,
    );
    if let Some(age) = service.confirmation.age_ms(clock::mono()) {
        text.gauge(
            "tollgate_confirmed_age_ms",
            "Age of the confirmed view; absent without one.",
            age,
        );
    }
}
