//! What is wrong with a request, as RFC 9457 `application/problem+json`.
//!
//! A problem is never a decision: it says that nothing was decided, and what to send instead. Refuses to
//! quote a credential.

use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// Characters of a client's text that a problem quotes.
const QUOTED_CHARS_MAX: usize = 64;

/// See the module's text.
#[derive(Debug, Serialize)]
pub(crate) struct Problem {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    detail: String,
    /// The field of the body that is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
    #[serde(skip)]
    retry_after_s: Option<u32>,
}

impl Problem {
    fn new(status: StatusCode, kind: &'static str, title: &'static str, detail: String) -> Self {
        let status = status.as_u16();
        Self {
            kind,
            title,
            status,
            detail,
            field: None,
            retry_after_s: None,
        }
    }

    pub(crate) fn body_too_long(limit: usize) -> Self {
        let detail = format!("the body is longer than {limit} bytes, which no check needs");
        let kind = "/problems/body-too-long";
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, kind, "Body too long", detail)
    }

    pub(crate) fn body_too_slow(seconds: u64) -> Self {
        let detail = format!("the body did not arrive within {seconds} s");
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            "/problems/body-too-slow",
            "Body too slow",
            detail,
        )
    }

    pub(crate) fn body_broken() -> Self {
        let detail = "the body broke off".to_owned();
        Self::new(
            StatusCode::BAD_REQUEST,
            "/problems/malformed-body",
            "Malformed body",
            detail,
        )
    }

    pub(crate) fn malformed(detail: String) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "/problems/malformed-body",
            "Malformed body",
            detail,
        )
    }

    pub(crate) fn media_type(found: Option<&HeaderValue>) -> Self {
        let found = found.map_or("nothing".to_owned(), |value| match value.to_str() {
            Ok(text) => format!("`{}`", cut(text)),
            Err(_) => "something that is no text".to_owned(),
        });
        let detail = format!("the content type is {found}, expected `application/json`");
        let kind = "/problems/unsupported-media-type";
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            kind,
            "Unsupported media type",
            detail,
        )
    }

    pub(crate) fn field(field: &str, detail: String) -> Self {
        let kind = "/problems/invalid-field";
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        let field = Some(cut(field));
        Self {
            field,
            ..Self::new(status, kind, "Invalid field", detail)
        }
    }

    /// `limit` things are in the state `what`, and no more may be.
    pub(crate) fn busy(limit: usize, what: &str) -> Self {
        let detail = format!("{limit} {what}: try again soon, or ask another edge");
        let kind = "/problems/busy";
        let busy = Self::new(StatusCode::SERVICE_UNAVAILABLE, kind, "Busy", detail);
        Self {
            retry_after_s: Some(1),
            ..busy
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::BAD_REQUEST);
        // Strings and numbers only: it cannot fail.
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        let json = HeaderValue::from_static("application/problem+json");
        headers.insert(header::CONTENT_TYPE, json);
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

pub(crate) async fn no_such_path(uri: Uri) -> Problem {
    let detail = format!(
        "`{}` is not here: expected POST /v1/check, GET /livez, /readyz or /metrics",
        cut(uri.path())
    );
    Problem::new(
        StatusCode::NOT_FOUND,
        "/problems/not-found",
        "Not found",
        detail,
    )
}

pub(crate) async fn no_such_method(method: Method, uri: Uri) -> Problem {
    let detail = format!(
        "{} {} is not here: expected POST /v1/check, GET /livez, /readyz or /metrics",
        cut(method.as_str()),
        cut(uri.path())
    );
    let (status, title) = (StatusCode::METHOD_NOT_ALLOWED, "Method not allowed");
    Problem::new(status, "/problems/method-not-allowed", title, detail)
}

/// The beginning of a client's text.
pub(crate) fn cut(text: &str) -> String {
    text.chars().take(QUOTED_CHARS_MAX).collect()
}
