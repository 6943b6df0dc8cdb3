//! Talks to the admin API of a cluster: HTTPS with a client certificate, whichever node can answer.
//!
//! Owns: trying one address after another until one has answered, problem details turned into a [`Failure`] with the
//! right exit code. A change carries one idempotency key to every address, so that it is made once whatever became of the
//! tries before. Refuses: to go round a second time; whoever asked decides that, under the same key.

use crate::args::{self, Admin};
use crate::host::HostPort;
use crate::output::{Exit, Failure};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tollgate_wire::identity::{Role, any_node_server_name};
use tollgate_wire::tls::{Tls, TlsFiles};

/// Largest answer that is read, in bytes.
pub const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The header under which a repeated change is made once.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// Random bytes of a drawn idempotency key.
const KEY_BYTES: usize = 16;

/// How long is waited for a node, at each step and in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// For a TCP connection.
    pub connect: Duration,
    /// For the TLS handshake.
    pub handshake: Duration,
    /// For the answer to a question.
    pub read: Duration,
    /// For the answer to a change, which waits for a majority of disks; a node gives up proposing it after 12 s.
    pub change: Duration,
    /// For all addresses together; the last try is cut to what is left.
    pub total: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            handshake: Duration::from_secs(5),
            read: Duration::from_secs(10),
            change: Duration::from_secs(15),
            total: Duration::from_secs(40),
        }
    }
}

/// A cluster's admin API, seen with one certificate.
#[derive(Debug, Clone)]
pub struct AdminClient {
    addrs: Vec<SocketAddr>,
    tls: Tls,
    patience: Patience,
}

/// Headers of a request, beside what every request has.
pub type Headers<'a> = [(&'static str, &'a str)];

/// What came of one address.
enum Tried {
    /// What was asked for.
    Answer(Bytes),
    /// No, and every other node would say so too.
    Refused(Failure),
    /// The request never reached it: no connection.
    NotReached(String),
    /// The request never reached it: the two do not accept each other's certificates.
    NotTrusted(String),
    /// It may have been done: no answer, or the node's word that it does not know.
    Unknown(String),
}

/// A request as it goes to every address.
struct Asked<'a> {
    method: Method,
    path: &'a str,
    headers: Vec<(&'static str, &'a str)>,
    body: Bytes,
    answer_in: Duration,
    /// Whether it changes anything: its fate is of interest then.
    change: bool,
}

/// Every body is JSON.
const JSON: (&str, &str) = ("content-type", "application/json");

fn json(body: &Value) -> Result<Bytes, Failure> {
    let bytes = serde_json::to_vec(body).map_err(Failure::failed)?;
    Ok(bytes.into())
}

/// Draws an idempotency key.
///
/// # Errors
/// [`Failure`] when the system has no randomness.
pub fn draw_key() -> Result<String, Failure> {
    let mut bytes = [0_u8; KEY_BYTES];
    getrandom::fill(&mut bytes).map_err(Failure::failed)?;
    Ok(tollgate_core::hex::encode(&bytes))
}

impl AdminClient {
    /// Reads the certificates.
    ///
    /// # Errors
    /// [`Failure`] naming the file.
    pub fn new(args: &Admin) -> Result<Self, Failure> {
        let file = |name: String| args.tls_dir.join(name);
        let files = TlsFiles {
            ca: file(tollgate_wire::certs::CA_CERTIFICATE.to_owned()),
            certificate: file(format!("admin-{}.pem", args.admin)),
            key: file(format!("admin-{}.key", args.admin)),
        };
        let tls = Tls::load(files, Role::Admin).map_err(Failure::usage)?;
        Ok(Self {
            addrs: args.addr.clone(),
            tls,
            patience: Patience::default(),
        })
    }

    /// As [`Self::new`], from the command line: names are looked up.
    ///
    /// # Errors
    /// [`Failure`] naming the file or the host.
    pub async fn from_args(args: &args::Reach) -> Result<Self, Failure> {
        let mut addr = Vec::new();
        for host in &args.addr {
            addr.extend(host.resolve().await?);
        }
        Self::new(&Admin {
            addr,
            tls_dir: args.tls_dir.clone(),
            admin: args.admin.clone(),
        })
    }

    /// The same API with another patience.
    #[must_use]
    pub fn patient(self, patience: Patience) -> Self {
        Self { patience, ..self }
    }

    /// The same API, asked at one address only.
    #[must_use]
    pub fn at(&self, addr: SocketAddr) -> Self {
        Self {
            addrs: vec![addr],
            ..self.clone()
        }
    }

    /// The same API, asked at one host only, whichever of its addresses answers.
    ///
    /// # Errors
    /// [`Failure`] when the name is not known.
    pub async fn at_host(&self, host: &HostPort) -> Result<Self, Failure> {
        Ok(Self {
            addrs: host.resolve().await?,
            ..self.clone()
        })
    }

    /// The addresses asked.
    #[must_use]
    pub fn addrs(&self) -> &[SocketAddr] {
        &self.addrs
    }

    /// Reads something.
    ///
    /// # Errors
    /// [`Failure`] with the node's own words; [`Exit::Unavailable`] when no address answered.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let asked = Asked {
            method: Method::GET,
            path,
            headers: Vec::new(),
            body: Bytes::new(),
            answer_in: self.patience.read,
            change: false,
        };
        self.ask(&asked).await
    }

    /// Asks what a change would do.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn try_out<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &Value,
    ) -> Result<T, Failure> {
        let asked = Asked {
            method: Method::POST,
            path,
            headers: vec![JSON],
            body: json(body)?,
            answer_in: self.patience.change,
            change: false,
        };
        self.ask(&asked).await
    }

    /// Changes something, under the [`IDEMPOTENCY_KEY`] among `headers` or one drawn here.
    ///
    /// # Errors
    /// [`Failure`] with the node's own words; [`Exit::Unavailable`] when no address answered, and then the change may
    /// have been made, where the message says so.
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        headers: &Headers<'_>,
        body: &Value,
    ) -> Result<T, Failure> {
        let mut headers = headers.to_vec();
        let drawn = draw_key()?;
        if !headers.iter().any(|(name, _)| *name == IDEMPOTENCY_KEY) {
            headers.push((IDEMPOTENCY_KEY, &drawn));
        }
        headers.push(JSON);
        let asked = Asked {
            method: Method::POST,
            path,
            headers,
            body: json(body)?,
            answer_in: self.patience.change,
            change: true,
        };
        self.ask(&asked).await
    }

    async fn ask<T: DeserializeOwned>(&self, asked: &Asked<'_>) -> Result<T, Failure> {
        let until = Instant::now() + self.patience.total;
        let (mut tried, mut perhaps_done, mut trouble_is_trust) = (Vec::new(), false, true);
        for addr in &self.addrs {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                tried.push(format!(
                    "{addr}: not asked, {:?} were over",
                    self.patience.total
                ));
                trouble_is_trust = false;
                continue;
            }
            match self.try_at(*addr, asked, left).await {
                Tried::Answer(bytes) => {
                    return serde_json::from_slice(&bytes).map_err(|e| {
                        let path = asked.path;
                        Failure::failed(format!(
                            "{addr} answered {path} with something unexpected: {e}"
                        ))
                    });
                }
                Tried::Refused(failure) => return Err(failure),
                Tried::NotTrusted(why) => tried.push(format!("{addr}: {why}")),
                Tried::NotReached(why) => {
                    tried.push(format!("{addr}: {why}"));
                    trouble_is_trust = false;
                }
                Tried::Unknown(why) => {
                    tried.push(format!("{addr}: {why}"));
                    (perhaps_done, trouble_is_trust) = (true, false);
                }
            }
        }
        let exit = if trouble_is_trust {
            Exit::Failed
        } else {
            Exit::Unavailable
        };
        let fate = match (asked.change, perhaps_done) {
            (false, _) => "",
            (true, true) => "\nThe change may have been made or not.",
            (true, false) => "\nThe change was not made.",
        };
        let message = match tried.as_slice() {
            [one] => format!("no answer from {one}{fate}"),
            all => format!("no node answers:\n  {}{fate}", all.join("\n  ")),
        };
        Err(Failure::new(exit, message))
    }

    async fn try_at(&self, addr: SocketAddr, asked: &Asked<'_>, left: Duration) -> Tried {
        let patience = self.patience;
        let stream = match timeout(patience.connect.min(left), TcpStream::connect(addr)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(e)) => return Tried::NotReached(e.to_string()),
            Err(_) => return Tried::NotReached(format!("no connection in {:?}", patience.connect)),
        };
        let cluster = self.tls.identity().cluster().as_str();
        let name = match ServerName::try_from(any_node_server_name(cluster)) {
            Ok(name) => name,
            Err(e) => return Tried::NotTrusted(e.to_string()),
        };
        let connector = TlsConnector::from(self.tls.client_config(&["http/1.1"]));
        let limit = patience.handshake.min(left);
        let stream = match timeout(limit, connector.connect(name, stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(e)) if is_of_tls(&e) => return Tried::NotTrusted(not_trusted(&e)),
            Ok(Err(e)) => return Tried::NotReached(format!("no TLS: {e}")),
            Err(_) => return Tried::NotReached(format!("no TLS handshake in {limit:?}")),
        };
        let limit = asked.answer_in.min(left);
        match timeout(limit, exchange(addr, TokioIo::new(stream), asked)).await {
            Ok(Ok((status, body))) => judged(addr, status, body),
            // With TLS 1.3 a client hears only now that its certificate was refused.
            Ok(Err(e)) if is_of_tls(&*e) => Tried::NotTrusted(not_trusted(&*e)),
            Ok(Err(e)) => Tried::Unknown(format!("the connection broke: {e}")),
            Err(_) => Tried::Unknown(format!("no answer in {limit:?}")),
        }
    }
}

fn not_trusted(e: &dyn Error) -> String {
    let hint = "is this an admin address, and the certificate of this cluster?";
    format!("TLS failed: {}; {hint}", innermost(e))
}

/// The last of an error's causes: what really happened.
fn innermost(e: &dyn Error) -> String {
    let mut error = e;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// Whether TLS itself failed: a certificate was refused by one side or the other, or the other side speaks no TLS.
fn is_of_tls(e: &(dyn Error + 'static)) -> bool {
    let mut next = Some(e);
    while let Some(error) = next {
        let inside = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        if error.is::<tokio_rustls::rustls::Error>()
            || inside.is_some_and(|inner| inner.is::<tokio_rustls::rustls::Error>())
        {
            return true;
        }
        next = error.source();
    }
    false
}

type Stream = TokioIo<tokio_rustls::client::TlsStream<TcpStream>>;

async fn exchange(
    addr: SocketAddr,
    stream: Stream,
    asked: &Asked<'_>,
) -> Result<(StatusCode, Bytes), Box<dyn Error + Send + Sync>> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
    // Its error reaches the sender as well.
    tokio::spawn(connection);
    let mut request = Request::builder()
        .method(asked.method.clone())
        .uri(asked.path)
        .header("host", addr.to_string());
    for (header, value) in &asked.headers {
        request = request.header(*header, *value);
    }
    let request = request.body(Full::new(asked.body.clone()))?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
    Ok((status, body.collect().await?.to_bytes()))
}

/// What an answer means for the other addresses: a node in trouble (no leader, too slow, a fault of its own) speaks only
/// for itself.
fn judged(addr: SocketAddr, status: StatusCode, body: Bytes) -> Tried {
    if status.is_success() {
        return Tried::Answer(body);
    }
    let failure = refused(addr, status, &body);
    if status.is_server_error() {
        Tried::Unknown(failure.message)
    } else {
        Tried::Refused(failure)
    }
}

/// Problem details (RFC 9457) in the words of the node.
fn refused(addr: SocketAddr, status: StatusCode, body: &[u8]) -> Failure {
    let exit = match status {
        StatusCode::NOT_FOUND => Exit::NotFound,
        StatusCode::CONFLICT | StatusCode::PRECONDITION_FAILED => Exit::Conflict,
        StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => Exit::Usage,
        _ => Exit::Failed,
    };
    let problem: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let text = |field: &str| {
        problem
            .get(field)
            .and_then(Value::as_str)
            .map(str::to_owned)
    };
    let mut message = match (text("title"), text("detail")) {
        (Some(title), Some(detail)) => format!("{title}: {detail}"),
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => {
            let cut: String = String::from_utf8_lossy(body).chars().take(200).collect();
            format!("{addr} answered status {status}: {cut}")
        }
    };
    for problem in problem
        .get("problems")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        message.push_str("\n  ");
        match problem {
            Value::String(line) => message.push_str(line),
            other => message.push_str(&other.to_string()),
        }
    }
    Failure::new(exit, message)
}
