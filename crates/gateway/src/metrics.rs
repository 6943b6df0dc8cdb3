//! `/metrics`: Prometheus' text format, written plainly.
//!
//! Owns the door's own counters; everything else is the edge's. Refuses labels with an unbounded set of
//! values: no customer, no key, no account.

use crate::server::Shared;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use std::fmt::{Display, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tollgate_edge::{CheckCounts, Checks, Status};

/// Upper ends of the buckets of `tollgate_check_duration_seconds`, in ns, with the text of each.
const BUCKETS: [(u64, &str); 19] = [
    (100, "1e-07"),
    (250, "2.5e-07"),
    (500, "5e-07"),
    (1_000, "1e-06"),
    (2_500, "2.5e-06"),
    (5_000, "5e-06"),
    (10_000, "1e-05"),
    (25_000, "2.5e-05"),
    (50_000, "5e-05"),
    (100_000, "0.0001"),
    (500_000, "0.0005"),
    (1_000_000, "0.001"),
    (5_000_000, "0.005"),
    (10_000_000, "0.01"),
    (50_000_000, "0.05"),
    (100_000_000, "0.1"),
    (500_000_000, "0.5"),
    (1_000_000_000, "1"),
    (2_500_000_000, "2.5"),
];

/// Classes of status codes, 1xx to 5xx.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// The door's counters.
#[derive(Default)]
pub(crate) struct Metrics {
    /// Checks per bucket, not cumulated; the last is for all that took longer.
    buckets: [AtomicU64; BUCKETS.len() + 1],
    sum_ns: AtomicU64,
    connections: AtomicU64,
    responses: [AtomicU64; CLASSES.len()],
}

impl Metrics {
    pub(crate) fn observe_check(&self, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BUCKETS.partition_point(|(end, _)| *end < ns);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }

    pub(crate) fn connection_opened(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn connection_closed(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    pub(crate) fn count_response(&self, status: StatusCode) {
        let class = usize::from(status.as_u16() / 100).saturating_sub(1);
        if let Some(count) = self.responses.get(class) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

pub(crate) async fn page<E: Checks>(State(shared): State<Arc<Shared<E>>>) -> Response {
    let text = render(
        &shared.edge.status(),
        &shared.edge.check_counts(),
        &shared.metrics,
    );
    let mut response = (StatusCode::OK, text).into_response();
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// A page in the making.
struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"));
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.line(format_args!("{name} {value}"));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a text cannot fail.
        let _ = writeln!(self.0, "{line}");
    }
}

fn render(status: &Status, counts: &CheckCounts, metrics: &Metrics) -> String {
    let mut page = Page(String::with_capacity(8 * 1024));
    page.family("tollgate_build_info", "gauge", "The release that runs.");
    let version = env!("CARGO_PKG_VERSION");
    page.line(format_args!(
        "tollgate_build_info{{version=\"{version}\"}} 1"
    ));
    page.family(
        "tollgate_checks_total",
        "counter",
        "Checks decided, by verdict and reason.",
    );
    for (reason, count) in counts.iter() {
        let verdict = reason.verdict();
        page.line(format_args!(
            "tollgate_checks_total{{verdict=\"{verdict}\",reason=\"{reason}\"}} {count}"
        ));
    }
    durations(&mut page, metrics);
    traffic(&mut page, status);
    standing(&mut page, status);
    page.single(
        "tollgate_http_connections",
        "gauge",
        "Connections to the HTTP door.",
        metrics.connections(),
    );
    page.family(
        "tollgate_http_responses_total",
        "counter",
        "Answers of the HTTP door, by class.",
    );
    for (class, count) in CLASSES.iter().zip(&metrics.responses) {
        let count = count.load(Ordering::Relaxed);
        page.line(format_args!(
            "tollgate_http_responses_total{{class=\"{class}\"}} {count}"
        ));
    }
    page.0
}

fn durations(page: &mut Page, metrics: &Metrics) {
    let name = "tollgate_check_duration_seconds";
    page.family(
        name,
        "histogram",
        "Time from a parsed request to its decision.",
    );
    let mut sum = 0;
    for ((_, end), count) in BUCKETS.iter().zip(&metrics.buckets) {
        sum += count.load(Ordering::Relaxed);
        page.line(format_args!("{name}_bucket{{le=\"{end}\"}} {sum}"));
    }
    sum += metrics.buckets[BUCKETS.len()].load(Ordering::Relaxed);
    page.line(format_args!("{name}_bucket{{le=\"+Inf\"}} {sum}"));
    let seconds = Duration::from_nanos(metrics.sum_ns.load(Ordering::Relaxed)).as_secs_f64();
    page.line(format_args!("{name}_sum {seconds}\n{name}_count {sum}"));
}

fn traffic(page: &mut Page, status: &Status) {
    let traffic = status.traffic;
    for (name, help, value) in [
        (
            "leases_total",
            "Requests for units, beside those that came with a resolve.",
            traffic.leases,
        ),
        (
            "lease_answers_total",
            "Answers to requests for units, unasked news included.",
            traffic.lease_answers,
        ),
        (
            "resolves_total",
            "Questions who a credential is, repeats included.",
            traffic.resolves,
        ),
        (
            "reports_total",
            "Reports of use sent, repeats included.",
            traffic.reports,
        ),
        (
            "reports_settled_total",
            "Reports of use acknowledged.",
            traffic.reports_settled,
        ),
        (
            "journal_late_total",
            "Checkpoints on disk later than journal_interval after the one before.",
            status.journal_late,
        ),
        (
            "recalls_total",
            "Recalls of units answered.",
            traffic.recalls,
        ),
        (
            "messages_dropped_total",
            "Messages that a full queue to a node did not take.",
            traffic.dropped,
        ),
        (
            "granted_units_total",
            "Units granted to this edge.",
            traffic.granted,
        ),
        (
            "surrendered_units_total",
            "Units handed back by this edge.",
            traffic.surrendered,
        ),
    ] {
        page.single(&format!("tollgate_edge_{name}"), "counter", help, value);
    }
}

fn standing(page: &mut Page, status: &Status) {
    page.family(
        "tollgate_edge_view_age_seconds",
        "gauge",
        "Age of the last proof that this edge's view is current; absent while there was none.",
    );
    if let Some(ms) = status.stale_ms {
        let seconds = Duration::from_millis(ms).as_secs_f64();
        page.line(format_args!("tollgate_edge_view_age_seconds {seconds}"));
    }
    let connected = status.nodes.iter().filter(|node| node.connected).count();
    for (name, help, value) in [
        (
            "ready",
            "1 while checks are answered.",
            u64::from(status.ready),
        ),
        (
            "held_units",
            "Units in the cells of this edge, free to be spent.",
            status.held,
        ),
        (
            "accounts",
            "Accounts with a cell here.",
            as_u64(status.accounts),
        ),
        (
            "principals",
            "Callers remembered.",
            as_u64(status.principals),
        ),
        (
            "unacknowledged_reports",
            "Reports without an answer.",
            as_u64(status.unacknowledged),
        ),
        ("nodes", "Nodes configured.", as_u64(status.nodes.len())),
        ("nodes_connected", "Nodes connected.", as_u64(connected)),
    ] {
        page.single(&format!("tollgate_edge_{name}"), "gauge", help, value);
    }
}

fn as_u64(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
