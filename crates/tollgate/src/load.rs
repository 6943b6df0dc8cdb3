//! Sends checks to edges over HTTP and keeps count of what clients were told.
//!
//! Owns: keep-alive connections to edges, the tally by subject and reason, the latency histogram. The tally is
//! evidence (the demo and the chaos runner compare it with the ledger), so an answer that never came is
//! counted as *unknown*, neither allowed nor refused. Refuses: to know Tollgate's internals; it sees only what a
//! client of `POST /v1/check` sees. Read next: `replay.rs` and `demo.rs`, which drive it.

use hdrhistogram::Histogram;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

/// Largest answer that is read, in bytes; a decision takes a few hundred.
pub const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// How long a client waits for a decision before it counts it as unknown.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

/// The reasons of refusals for want of units.
const FOR_WANT_OF_UNITS: [&str; 2] = ["quota_exceeded", "unavailable"];

/// Longest latency the histogram resolves, in nanoseconds (one minute); longer ones count as this.
const LATENCY_NS_MAX: u64 = 60_000_000_000;

/// One check to send.
#[derive(Debug, Clone)]
pub struct Check {
    /// Whose answers are summed together: an index that the caller gives meaning to.
    pub subject: usize,
    /// The credential, as a client presents it.
    pub credential: Arc<str>,
    /// The request's method.
    pub method: Arc<str>,
    /// The request's path.
    pub path: Arc<str>,
    /// The client's address, where it is one.
    pub client_ip: Option<Arc<str>>,
    /// Units it costs.
    pub cost: u64,
}

#[derive(Serialize)]
struct CheckBody<'a> {
    credential: &'a str,
    method: &'a str,
    path: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_ip: Option<&'a str>,
    cost: u64,
}

/// The part of a decision that is counted.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Answer {
    /// Whether the request may go on.
    pub allowed: bool,
    /// Why, in the design's words.
    pub reason: String,
}

/// Why no decision came.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Nobody listens there, or the connection broke before the request was sent: it was not decided.
    #[error("no connection to {addr}: {source}")]
    Connect {
        /// The edge's address.
        addr: SocketAddr,
        /// The operating system's word.
        source: std::io::Error,
    },
    /// The request may have been decided, but the answer never came.
    #[error("no answer from {addr}: {why}")]
    Unknown {
        /// The edge's address.
        addr: SocketAddr,
        /// What happened.
        why: String,
    },
    /// The edge answered something that is no decision.
    #[error("{addr} answered status {status}, expected 200 with a decision: {body}")]
    Status {
        /// The edge's address.
        addr: SocketAddr,
        /// The HTTP status.
        status: u16,
        /// The start of the body.
        body: String,
    },
}

/// One keep-alive connection to an edge.
pub struct Client {
    addr: SocketAddr,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl Client {
    /// A client of the edge at `addr`; it connects with the first check.
    #[must_use]
    pub fn new(addr: SocketAddr) -> Self {
        Self { addr, sender: None }
    }

    /// Asks for a decision.
    ///
    /// # Errors
    /// [`LoadError`] tells apart what was surely not decided and what may have been.
    pub async fn check(&mut self, check: &Check) -> Result<Answer, LoadError> {
        let asked = self.ask(check);
        let Ok(answer) = tokio::time::timeout(ANSWER_DEADLINE, asked).await else {
            self.sender = None;
            let why = format!("nothing within {} s", ANSWER_DEADLINE.as_secs());
            return Err(LoadError::Unknown {
                addr: self.addr,
                why,
            });
        };
        if answer.is_err() {
            self.sender = None;
        }
        answer
    }

    async fn ask(&mut self, check: &Check) -> Result<Answer, LoadError> {
        let addr = self.addr;
        let unknown = |why: String| LoadError::Unknown { addr, why };
        let body = CheckBody {
            credential: &check.credential,
            method: &check.method,
            path: &check.path,
            client_ip: check.client_ip.as_deref(),
            cost: check.cost,
        };
        let body = serde_json::to_vec(&body).map_err(|e| unknown(e.to_string()))?;
        let request = hyper::Request::post("/v1/check")
            .header("host", addr.to_string())
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| unknown(e.to_string()))?;
        let sender = self.connected().await?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|e| unknown(e.to_string()))?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await;
        let body = body.map_err(|e| unknown(e.to_string()))?.to_bytes();
        let cut = || {
            String::from_utf8_lossy(&body)
                .chars()
                .take(200)
                .collect::<String>()
        };
        if status != 200 {
            return Err(LoadError::Status {
                addr,
                status,
                body: cut(),
            });
        }
        serde_json::from_slice(&body).map_err(|_| LoadError::Status {
            addr,
            status,
            body: cut(),
        })
    }

    async fn connected(&mut self) -> Result<&mut SendRequest<Full<Bytes>>, LoadError> {
        let addr = self.addr;
        let refused = |source| LoadError::Connect { addr, source };
        if self.sender.as_ref().is_none_or(SendRequest::is_closed) {
            let stream = TcpStream::connect(addr).await.map_err(refused)?;
            stream.set_nodelay(true).map_err(refused)?;
            let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
                .await
                .map_err(|e| refused(std::io::Error::other(e)))?;
            // The connection's task ends with the connection; its error reaches the sender as well.
            tokio::spawn(connection);
            self.sender = Some(sender);
        }
        let Some(sender) = &mut self.sender else {
            unreachable!("connected above")
        };
        let ready = sender.ready().await;
        ready.map_err(|e| refused(std::io::Error::other(e)))?;
        Ok(sender)
    }
}

/// What clients were told.
#[derive(Debug, Clone)]
pub struct Tally {
    /// Units admitted by subject: surely.
    pub admitted: Vec<u64>,
    /// Units by subject whose decision never reached the client: admitted or not.
    pub unknown: Vec<u64>,
    /// Refusals by subject for want of units: the quota was used up, or none came in time.
    pub refused_for_units: Vec<u64>,
    /// Decisions by reason.
    pub reasons: BTreeMap<String, u64>,
    /// Checks that were surely not decided.
    pub unsent: u64,
    /// The first few different errors, for people.
    pub errors: Vec<String>,
    /// Time from asking to the answer, in nanoseconds.
    pub latency: Histogram<u64>,
}

/// Different errors kept word for word in a [`Tally`].
const ERRORS_KEPT: usize = 5;

impl Tally {
    /// An empty tally over `subjects` subjects.
    ///
    /// # Panics
    /// Never: the histogram's bounds are constants that fit each other.
    #[must_use]
    pub fn new(subjects: usize) -> Self {
        let latency = match Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3) {
            Ok(latency) => latency,
            Err(e) => unreachable!("constant bounds: {e}"),
        };
        Self {
            admitted: vec![0; subjects],
            unknown: vec![0; subjects],
            refused_for_units: vec![0; subjects],
            reasons: BTreeMap::new(),
            unsent: 0,
            errors: Vec::new(),
            latency,
        }
    }

    /// Takes one outcome in.
    pub fn note(&mut self, check: &Check, outcome: &Result<Answer, LoadError>, took: Duration) {
        match outcome {
            Ok(answer) => {
                let ns = u64::try_from(took.as_nanos()).unwrap_or(LATENCY_NS_MAX);
                self.latency.saturating_record(ns.clamp(1, LATENCY_NS_MAX));
                *self.reasons.entry(answer.reason.clone()).or_default() += 1;
                if answer.allowed {
                    self.admitted[check.subject] += check.cost;
                } else if FOR_WANT_OF_UNITS.contains(&answer.reason.as_str()) {
                    self.refused_for_units[check.subject] += 1;
                }
            }
            Err(error) => {
                match error {
                    LoadError::Connect { .. } => self.unsent += 1,
                    LoadError::Unknown { .. } | LoadError::Status { .. } => {
                        self.unknown[check.subject] += check.cost;
                    }
                }
                self.keep(error.to_string());
            }
        }
    }

    /// Keeps an error that says something new.
    fn keep(&mut self, error: String) {
        if self.errors.len() < ERRORS_KEPT && !self.errors.contains(&error) {
            self.errors.push(error);
        }
    }

    /// Adds another tally over the same subjects.
    pub fn merge(&mut self, other: &Self) {
        for (sum, more) in self.admitted.iter_mut().zip(&other.admitted) {
            *sum += more;
        }
        for (sum, more) in self.unknown.iter_mut().zip(&other.unknown) {
            *sum += more;
        }
        for (sum, more) in self
            .refused_for_units
            .iter_mut()
            .zip(&other.refused_for_units)
        {
            *sum += more;
        }
        for (reason, count) in &other.reasons {
            *self.reasons.entry(reason.clone()).or_default() += count;
        }
        self.unsent += other.unsent;
        for error in &other.errors {
            self.keep(error.clone());
        }
        // Both histograms have the same constant bounds, so nothing can be out of range.
        if let Err(e) = self.latency.add(&other.latency) {
            self.errors.push(format!("a latency was left out: {e}"));
        }
    }

    /// Decisions in all.
    #[must_use]
    pub fn decided(&self) -> u64 {
        self.reasons.values().sum()
    }

    /// Units whose fate is unknown to the clients.
    #[must_use]
    pub fn unknown_units(&self) -> u64 {
        self.unknown.iter().sum()
    }
}

/// Hears of every outcome: how many more there are.
pub type Progress = Arc<dyn Fn(u64) + Send + Sync>;

/// Sends checks from an iterator over `connections` connections spread evenly over `edges`; answers the tally.
///
/// Each connection asks one check at a time, so at most `connections` are under way.
///
/// # Panics
/// If `edges` is empty.
pub async fn run<I>(
    edges: &[SocketAddr],
    connections: usize,
    subjects: usize,
    checks: I,
    progress: Progress,
) -> Tally
where
    I: Iterator<Item = Check> + Send + 'static,
{
    run_paced(
        edges,
        connections,
        subjects,
        checks,
        progress,
        Duration::ZERO,
    )
    .await
}

/// As [`run`], with at least `pace` from one check of a connection to its next. A connection that fell behind
/// does not make up for it.
///
/// # Panics
/// If `edges` is empty.
pub async fn run_paced<I>(
    edges: &[SocketAddr],
    connections: usize,
    subjects: usize,
    checks: I,
    progress: Progress,
    pace: Duration,
) -> Tally
where
    I: Iterator<Item = Check> + Send + 'static,
{
    assert!(!edges.is_empty(), "an edge to send checks to");
    let checks = Arc::new(tokio::sync::Mutex::new(checks.fuse()));
    let mut tasks = tokio::task::JoinSet::new();
    for (_, addr) in (0..connections.max(1)).zip(edges.iter().copied().cycle()) {
        let checks = Arc::clone(&checks);
        let progress = Arc::clone(&progress);
        tasks.spawn(async move {
            let mut tally = Tally::new(subjects);
            let mut client = Client::new(addr);
            let mut last: Option<Instant> = None;
            loop {
                if let Some(rest) = last.and_then(|last| pace.checked_sub(last.elapsed()))
                    && !rest.is_zero()
                {
                    tokio::time::sleep(rest).await;
                }
                let next = checks.lock().await.next();
                let Some(check) = next else { return tally };
                let asked = Instant::now();
                last = Some(asked);
                let outcome = client.check(&check).await;
                tally.note(&check, &outcome, asked.elapsed());
                progress(1);
            }
        });
    }
    let mut sum = Tally::new(subjects);
    while let Some(done) = tasks.join_next().await {
        match done {
            Ok(tally) => sum.merge(&tally),
            Err(e) => sum.errors.push(format!("a connection's task failed: {e}")),
        }
    }
    sum
}

/// Whether an edge says that it is ready.
pub async fn is_ready(addr: SocketAddr) -> bool {
    fetch(addr, "/readyz").await.is_ok()
}

/// An edge's metrics page.
///
/// # Errors
/// [`LoadError`] when it cannot be had.
pub async fn metrics(addr: SocketAddr) -> Result<String, LoadError> {
    fetch(addr, "/metrics").await
}

async fn fetch(addr: SocketAddr, path: &str) -> Result<String, LoadError> {
    let unknown = |why: String| LoadError::Unknown { addr, why };
    let mut client = Client::new(addr);
    let request = hyper::Request::get(path)
        .header("host", addr.to_string())
        .body(Full::new(Bytes::new()))
        .map_err(|e| unknown(e.to_string()))?;
    let sender = client.connected().await?;
    let response = sender
        .send_request(request)
        .await
        .map_err(|e| unknown(e.to_string()))?;
    let status = response.status().as_u16();
    let body = Limited::new(response.into_body(), METRICS_BYTES_MAX)
        .collect()
        .await;
    let body = body.map_err(|e| unknown(e.to_string()))?.to_bytes();
    let body = String::from_utf8_lossy(&body).into_owned();
    if status == 200 {
        Ok(body)
    } else {
        Err(LoadError::Status { addr, status, body })
    }
}

/// Largest metrics page that is read, in bytes.
const METRICS_BYTES_MAX: usize = 4 * 1024 * 1024;
