//! `POST /v1/check` (design §14): one question, one decision.
//!
//! 200 whenever a decision was made, also when it refuses; a problem only where nothing could be asked.
//! Unknown fields are refused: a misspelt `cost` must not pass for 1.

use crate::problem::{Problem, cut};
use crate::server::{BODIES_MAX, CHECKS_MAX, Shared};
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;
use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tollgate_edge::{CheckRequest, Checks, Cost, Decision};

/// Bytes of the body of a check.
pub(crate) const BODY_BYTES_MAX: usize = 16 * 1024;
/// How long the body may take to arrive.
pub(crate) const BODY_DEADLINE: Duration = Duration::from_secs(10);
/// Bytes of a method.
const METHOD_BYTES_MAX: usize = 32;
/// Bytes of a path.
const PATH_BYTES_MAX: usize = 8 * 1024;

/// The fields of a body, for problems.
const FIELDS: &str = "credential, method, path, client_ip, cost, peek";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CheckBody<'a> {
    /// Absent or null: nothing was presented, which is a decision.
    #[serde(borrow, default)]
    credential: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    method: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    path: Option<Cow<'a, str>>,
    #[serde(default)]
    client_ip: Option<IpAddr>,
    #[serde(default)]
    cost: Option<u64>,
    #[serde(default)]
    peek: bool,
}

#[derive(Serialize)]
struct Answer<'a> {
    allowed: bool,
    verdict: &'static str,
    reason: &'static str,
    customer: Option<&'a str>,
    limits: Limits<'a>,
    retry_after_ms: Option<u64>,
    revision: String,
    stale_ms: Option<u64>,
}

struct Limits<'a>(&'a Decision);

#[derive(Serialize)]
struct Limit<'a> {
    name: &'a str,
    kind: &'static str,
    limit: u64,
    /// The edge's estimate of what is left for everyone.
    remaining: u64,
    reset_ms: Option<u64>,
}

impl Serialize for Limits<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut list = to.serialize_seq(None)?;
        for limit in self.0.limits() {
            list.serialize_element(&Limit {
                name: limit.name.as_str(),
                kind: limit.kind.as_str(),
                limit: limit.limit,
                remaining: limit.remaining,
                reset_ms: limit.reset_ms,
            })?;
        }
        list.end()
    }
}

pub(crate) async fn check<E: Checks>(
    State(shared): State<Arc<Shared<E>>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let content_type = headers.get(header::CONTENT_TYPE);
    if !content_type.is_some_and(is_json) {
        return Err(Problem::media_type(content_type));
    }
    let bytes = {
        let Ok(_permit) = shared.bodies.try_acquire() else {
            return Err(Problem::busy(BODIES_MAX, "bodies are being read"));
        };
        read(body).await?
    };
    let body = parse(&bytes)?;
    let request = body.request()?;
    // Only now: a body that comes slowly, or never, must not keep others from being answered.
    let Ok(_permit) = shared.checks.try_acquire() else {
        return Err(Problem::busy(CHECKS_MAX, "checks are being answered"));
    };
    let began = Instant::now();
    let decision = if body.peek {
        shared.edge.peek(&request).await
    } else {
        shared.edge.check_or_wait(&request).await
    };
    shared.metrics.observe_check(began.elapsed());
    Ok(answer(&decision))
}

fn answer(decision: &Decision) -> Response {
    let outcome = decision.outcome;
    let answer = Answer {
        allowed: decision.is_allowed(),
        verdict: decision.verdict().as_str(),
        reason: decision.reason().as_str(),
        customer: decision.customer().map(|name| name.as_str()),
        limits: Limits(decision),
        retry_after_ms: outcome.retry_after_ms,
        revision: outcome.revision.to_string(),
        stale_ms: outcome.stale_ms,
    };
    // Texts and numbers only: it cannot fail.
    let bytes = serde_json::to_vec(&answer).unwrap_or_default();
    let mut response = (StatusCode::OK, bytes).into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// `application/json`, with whatever parameters.
fn is_json(content_type: &HeaderValue) -> bool {
    let text = content_type.to_str().unwrap_or_default();
    let essence = text.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
}

async fn read(body: Body) -> Result<Bytes, Problem> {
    let collected = Limited::new(body, BODY_BYTES_MAX).collect();
    match tokio::time::timeout(BODY_DEADLINE, collected).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(Problem::body_too_long(BODY_BYTES_MAX))
        }
        Ok(Err(_)) => Err(Problem::body_broken()),
        Err(_) => Err(Problem::body_too_slow(BODY_DEADLINE.as_secs())),
    }
}

fn parse(bytes: &[u8]) -> Result<CheckBody<'_>, Problem> {
    serde_json::from_slice(bytes).map_err(|error| explain(bytes, &error))
}

impl CheckBody<'_> {
    fn request(&self) -> Result<CheckRequest<'_>, Problem> {
        let cost = Cost::new(self.cost.unwrap_or(1))
            .map_err(|error| Problem::field("cost", error.to_string()))?;
        if let Some(method) = &self.method
            && (method.is_empty()
                || method.len() > METHOD_BYTES_MAX
                || !method
                    .bytes()
                    .all(|byte| byte.is_ascii_alphabetic() || byte == b'-'))
        {
            let detail = format!(
                "`method` is `{}`: expected an HTTP method of at most {METHOD_BYTES_MAX} letters, as in GET",
                cut(method)
            );
            return Err(Problem::field("method", detail));
        }
        if let Some(path) = &self.path
            && (!path.starts_with('/') || path.len() > PATH_BYTES_MAX)
        {
            let detail = format!(
                "`path` is `{}`: expected a path from `/` on, at most {PATH_BYTES_MAX} bytes",
                cut(path)
            );
            return Err(Problem::field("path", detail));
        }
        let credential = self.credential.as_deref().unwrap_or_default();
        Ok(CheckRequest {
            credential,
            cost,
            source: self.client_ip,
        })
    }
}

/// Which field is wrong, and what it may be. Only for bodies that were refused, so it may take its time.
fn explain(bytes: &[u8], error: &serde_json::Error) -> Problem {
    let fields = match serde_json::from_slice::<Value>(bytes) {
        Ok(Value::Object(fields)) => fields,
        Ok(other) => {
            let found = kind_of(&other);
            return Problem::malformed(format!(
                "the body is {found}, expected an object with {FIELDS}"
            ));
        }
        // serde_json's words name places, not contents.
        Err(error) => return Problem::malformed(format!("the body is no JSON: {error}")),
    };
    for (field, value) in &fields {
        let expected = match field.as_str() {
            "credential" if !(value.is_string() || value.is_null()) => "a text",
            "method" | "path" if !(value.is_string() || value.is_null()) => "a text",
            "client_ip" if !is_ip(value) => "an IP address, as in 203.0.113.9",
            "cost" if !(value.is_u64() || value.is_null()) => {
                "a whole number of units from 1 to 9223372036854775807"
            }
            "peek" if !value.is_boolean() => "true or false",
            "credential" | "method" | "path" | "client_ip" | "cost" | "peek" => continue,
            _ => {
                let detail = format!("`{}` is no field of a check: expected {FIELDS}", cut(field));
                return Problem::field(field, detail);
            }
        };
        let detail = format!("`{field}` is {}, expected {expected}", kind_of(value));
        return Problem::field(field, detail);
    }
    // What is left is a field that stands twice.
    Problem::malformed(format!("the body is no check: {error}"))
}

fn is_ip(value: &Value) -> bool {
    value.is_null()
        || value
            .as_str()
            .is_some_and(|text| text.parse::<IpAddr>().is_ok())
}

/// What a value is, without its contents.
fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use hyper::body::Frame;
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::task::{Context, Poll};
    use tokio::sync::Semaphore;
    use tollgate_edge::FakeEdge;

    type Door = Arc<Shared<Arc<FakeEdge>>>;

    fn door(bodies: usize, checks: usize) -> Door {
        Arc::new(Shared {
            edge: Arc::new(FakeEdge::new()),
            metrics: Metrics::default(),
            bodies: Semaphore::new(bodies),
            checks: Semaphore::new(checks),
        })
    }

    async fn ask(door: Door, body: Body) -> u16 {
        let kind = HeaderValue::from_static("application/json");
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, kind)]);
        match check(State(door), headers, body).await {
            Ok(response) => response.status().as_u16(),
            Err(problem) => problem.into_response().status().as_u16(),
        }
    }

    /// A body that never comes.
    struct Never;

    impl hyper::body::Body for Never {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Pending
        }
    }

    /// Polls once.
    async fn begun(asked: Pin<&mut impl Future<Output = u16>>) {
        tokio::select! {
            biased;
            status = asked => panic!("it was answered: {status}"),
            () = std::future::ready(()) => {}
        }
    }

    #[tokio::test]
    async fn a_body_that_never_comes_keeps_nobody_from_being_answered() {
        let door = door(2, 1);
        let slow = ask(door.clone(), Body::new(Never));
        tokio::pin!(slow);
        begun(slow.as_mut()).await;
        assert_eq!(ask(door.clone(), Body::from("{}")).await, 200);

        let slow = ask(door.clone(), Body::new(Never));
        tokio::pin!(slow);
        begun(slow.as_mut()).await;
        assert_eq!(
            ask(door, Body::from("{}")).await,
            503,
            "bodies are bounded too"
        );
    }

    #[tokio::test]
    async fn more_checks_than_can_be_answered_are_told_so() {
        assert_eq!(ask(door(1, 0), Body::from("{}")).await, 503);
    }
}
