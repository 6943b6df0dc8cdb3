//! `/livez` and `/readyz`: one line per part, `[+]` or `[-]`, in the way of Kubernetes' own.
//!
//! Live: the edge may still become ready by itself. Ready: it answers checks.

use crate::server::Shared;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use std::fmt::Write;
use std::sync::Arc;
use tollgate_edge::{Checks, SessionState, Status};

pub(crate) async fn live<E: Checks>(State(shared): State<Arc<Shared<E>>>) -> Response {
    let status = shared.edge.status();
    let over = matches!(
        status.session,
        SessionState::Failed(_) | SessionState::Closed
    );
    page(&[(!over, format!("session: {}", status.session))])
}

pub(crate) async fn ready<E: Checks>(State(shared): State<Arc<Shared<E>>>) -> Response {
    page(&parts(&shared.edge.status()))
}

fn parts(status: &Status) -> Vec<(bool, String)> {
    let open = matches!(status.session, SessionState::Open { .. });
    let fresh = match status.stale_ms {
        Some(ms) => format!(
            "view: last confirmed {ms} ms ago, at revision {}",
            status.revision
        ),
        None => "view: not confirmed yet".to_owned(),
    };
    let mut parts = vec![
        (open, format!("session: {}", status.session)),
        // The view is what is left when the session is open and the edge is not ready.
        (status.ready || (!open && status.stale_ms.is_some()), fresh),
    ];
    for node in &status.nodes {
        let state = match (&node.last_error, node.connected) {
            (_, true) => "connected",
            (Some(error), false) => error,
            (None, false) => "not connected yet",
        };
        // One node that is away makes no edge unready.
        let well = node.connected || status.ready;
        parts.push((
            well,
            format!("node {} at {}: {state}", node.node, node.address),
        ));
    }
    parts
}

fn page(parts: &[(bool, String)]) -> Response {
    let well = parts.iter().all(|(well, _)| *well);
    let mut text = String::new();
    for (well, line) in parts {
        let mark = if *well { '+' } else { '-' };
        // Writing to a text cannot fail.
        let _ = writeln!(text, "[{mark}]{line}");
    }
    text.push_str(if well { "ok\n" } else { "not ok\n" });
    let status = if well {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let mut response = (status, text).into_response();
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
