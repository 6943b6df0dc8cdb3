//! Talks to the admin API of a cluster: HTTPS with a client certificate, the first node that answers.
//!
//! Owns: finding a node, one request each, problem details turned into a [`Failure`] with the right exit code.
//! Refuses: to repeat a change whose fate is unknown; the idempotency key is the user's way to do that.

use crate::args::Admin;
use crate::output::{Exit, Failure};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tollgate_wire::identity::{Role, any_node_server_name};
use tollgate_wire::tls::{Tls, TlsFiles};

/// Largest answer that is read, in bytes.
pub const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How long a node may take to accept a connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);

/// How long a node may take to answer; a change waits for a majority of disks.
const ANSWER_DEADLINE: Duration = Duration::from_secs(15);

/// A cluster's admin API, seen with one certificate.
#[derive(Debug, Clone)]
pub struct AdminClient {
    addrs: Vec<SocketAddr>,
    tls: Tls,
}

/// Headers of a request, beside what every request has.
pub type Headers<'a> = [(&'static str, &'a str)];

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
        })
    }

    /// The same API, asked at one address only.
    #[must_use]
    pub fn at(&self, addr: SocketAddr) -> Self {
        Self {
            addrs: vec![addr],
            tls: self.tls.clone(),
        }
    }

    /// The addresses asked.
    #[must_use]
    pub fn addrs(&self) -> &[SocketAddr] {
        &self.addrs
    }

    /// Reads something.
    ///
    /// # Errors
    /// [`Failure`] with the node's own words.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.ask(Method::GET, path, &[], None).await
    }

    /// Changes something.
    ///
    /// # Errors
    /// [`Failure`] with the node's own words.
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        headers: &Headers<'_>,
        body: &Value,
    ) -> Result<T, Failure> {
        self.ask(Method::POST, path, headers, Some(body)).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        headers: &Headers<'_>,
        body: Option<&Value>,
    ) -> Result<T, Failure> {
        let mut nobody = Vec::new();
        for addr in &self.addrs {
            let stream =
                match tokio::time::timeout(CONNECT_DEADLINE, TcpStream::connect(addr)).await {
                    Ok(Ok(stream)) => stream,
                    Ok(Err(e)) => {
                        nobody.push(format!("{addr}: {e}"));
                        continue;
                    }
                    Err(_) => {
                        nobody.push(format!(
                            "{addr}: no answer in {} s",
                            CONNECT_DEADLINE.as_secs()
                        ));
                        continue;
                    }
                };
            let asked = self.exchange(*addr, stream, method.clone(), path, headers, body);
            let bytes = match tokio::time::timeout(ANSWER_DEADLINE, asked).await {
                Ok(answer) => answer?,
                Err(_) => {
                    return Err(Failure::new(
                        Exit::Unavailable,
                        format!(
                            "{addr} did not answer within {} s; a change may have been made or not: \
                             look with `tollgate status`, or repeat it under one --idempotency-key",
                            ANSWER_DEADLINE.as_secs()
                        ),
                    ));
                }
            };
            return serde_json::from_slice(&bytes).map_err(|e| {
                Failure::failed(format!(
                    "{addr} answered {path} with something unexpected: {e}"
                ))
            });
        }
        let tried = nobody.join("; ");
        Err(Failure::new(
            Exit::Unavailable,
            format!("no node answers: {tried}"),
        ))
    }

    async fn exchange(
        &self,
        addr: SocketAddr,
        stream: TcpStream,
        method: Method,
        path: &str,
        headers: &Headers<'_>,
        body: Option<&Value>,
    ) -> Result<Bytes, Failure> {
        let broken = |e: &dyn std::fmt::Display| {
            Failure::new(
                Exit::Unavailable,
                format!("{addr}: the connection broke: {e}"),
            )
        };
        let cluster = self.tls.identity().cluster().as_str();
        let name = ServerName::try_from(any_node_server_name(cluster)).map_err(Failure::failed)?;
        let connector = TlsConnector::from(self.tls.client_config(&["http/1.1"]));
        let stream = connector.connect(name, stream).await.map_err(|e| {
            let hint = "is this an admin address, and the certificate of this cluster?";
            Failure::failed(format!("{addr}: TLS failed: {e}; {hint}"))
        })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| broken(&e))?;
        // Its error reaches the sender as well.
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", addr.to_string());
        for (header, value) in headers {
            request = request.header(*header, *value);
        }
        let bytes = match body {
            Some(body) => {
                request = request.header("content-type", "application/json");
                Bytes::from(serde_json::to_vec(body).map_err(Failure::failed)?)
            }
            None => Bytes::new(),
        };
        let request = request.body(Full::new(bytes)).map_err(Failure::usage)?;
        let response = sender.send_request(request).await.map_err(|e| broken(&e))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await;
        let body = body.map_err(|e| broken(&e))?.to_bytes();
        if status.is_success() {
            Ok(body)
        } else {
            Err(refused(addr, status, &body))
        }
    }
}

/// Problem details (RFC 9457) in the words of the node.
fn refused(addr: SocketAddr, status: StatusCode, body: &[u8]) -> Failure {
    let exit = match status {
        StatusCode::NOT_FOUND => Exit::NotFound,
        StatusCode::CONFLICT | StatusCode::PRECONDITION_FAILED => Exit::Conflict,
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => Exit::Unavailable,
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
