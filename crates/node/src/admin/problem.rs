//! Refusals of the admin API as problem details (RFC 9457): what was found, what was expected, what to do.

use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::time::Duration;
use tollgate_core::catalog::Problem;
use tollgate_core::ids::Revision;

/// A refusal.
#[derive(Debug)]
pub(crate) struct Refused {
    status: StatusCode,
    /// Last part of `type`, `/problems/KIND`, as the edge's doors write it: stable, for programs.
    kind: &'static str,
    title: &'static str,
    detail: String,
    /// Further members.
    more: Vec<(&'static str, Value)>,
}

impl Refused {
    fn new(
        status: StatusCode,
        kind: &'static str,
        title: &'static str,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            status,
            kind,
            title,
            detail: detail.into(),
            more: Vec::new(),
        }
    }

    /// A request that says something impossible.
    pub(crate) fn malformed(detail: impl Into<String>) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "malformed",
            "The request is malformed",
            detail,
        )
    }

    /// A field of a request that says something impossible.
    pub(crate) fn field(field: &str, found: &str, expected: &str) -> Self {
        Self::malformed(format!("`{field}`: found `{found}`, expected {expected}"))
    }

    /// Contents that cannot be: every problem at once.
    pub(crate) fn invalid(problems: &[Problem]) -> Self {
        let detail = match problems {
            [one] => one.to_string(),
            more => format!("{} problems; nothing was changed", more.len()),
        };
        let title = "The contents are wrong";
        let mut refused = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", title, detail);
        refused.more.push((
            "problems",
            problems.iter().map(ToString::to_string).collect(),
        ));
        refused
    }

    /// What is named does not exist.
    pub(crate) fn not_found(what: impl std::fmt::Display) -> Self {
        let detail = format!("there is no {what}");
        Self::new(StatusCode::NOT_FOUND, "not-found", "Not found", detail)
    }

    /// The catalog moved on.
    pub(crate) fn conflict(expected: Revision, current: Revision) -> Self {
        let detail = format!(
            "the catalog is at revision {current}, the request was made for {expected}: look again, decide again"
        );
        let title = "The catalog has changed since";
        let mut refused = Self::new(StatusCode::PRECONDITION_FAILED, "conflict", title, detail);
        refused.more.push(("expected", json!(expected.to_string())));
        refused.more.push(("current", json!(current.to_string())));
        refused
    }

    /// An idempotency key used for two requests.
    pub(crate) fn idempotency() -> Self {
        let detail =
            "this Idempotency-Key was used for another request: choose a new one for a new change";
        let title = "The idempotency key is taken";
        Self::new(StatusCode::CONFLICT, "idempotency-mismatch", title, detail)
    }

    /// A body that is too large.
    pub(crate) fn too_large(limit: usize) -> Self {
        let detail = format!(
            "the body is larger than {limit} bytes: divide the file and apply the parts, owners before what names them"
        );
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too-large",
            "The body is too large",
            detail,
        )
    }

    /// A certificate of another role.
    pub(crate) fn forbidden(found: &str) -> Self {
        let detail = format!("the certificate is for {found}, expected one of role admin");
        Self::new(
            StatusCode::FORBIDDEN,
            "forbidden",
            "Not an administrator",
            detail,
        )
    }

    /// A method that the path does not know.
    pub(crate) fn method(method: &Method, path: &str) -> Self {
        let detail = format!("{path} does not take {method}");
        let title = "The method is not allowed";
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method-not-allowed",
            title,
            detail,
        )
    }

    /// No answer now; whether a change was made is not known.
    pub(crate) fn unavailable(detail: impl Into<String>) -> Self {
        let title = "The cluster does not answer";
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "unavailable",
            title,
            detail,
        )
    }

    /// The request took too long.
    pub(crate) fn late(limit: Duration) -> Self {
        let detail = format!(
            "no answer within {limit:?}; a change may have been made: repeat it under the same Idempotency-Key"
        );
        let title = "The request took too long";
        Self::new(StatusCode::GATEWAY_TIMEOUT, "timeout", title, detail)
    }

    /// Something that must not be.
    pub(crate) fn internal(detail: impl Into<String>) -> Self {
        let title = "The node is at fault";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", title, detail)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let Self {
            status,
            kind,
            title,
            detail,
            more,
        } = self;
        let mut body = json!({
            "type": format!("/problems/{kind}"),
            "title": title,
            "status": status.as_u16(),
            "detail": detail,
        });
        if let Value::Object(members) = &mut body {
            members.extend(
                more.into_iter()
                    .map(|(name, value)| (name.to_owned(), value)),
            );
        }
        let mut response = (status, body.to_string()).into_response();
        let kind = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }
}
