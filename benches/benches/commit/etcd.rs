//! The peer: three etcd members on the same disk, and callers that put 64 bytes of key and value each.
//!
//! Talks gRPC to them as etcd's own clients do (HTTP/2, many streams on few connections); the two
//! messages needed are put into bytes by hand, so that no code generator is. Refuses to guess: without
//! the `etcd` binary there is a reason instead of a number.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tollgate_ports::Ports;

use crate::load::{Caller, cpu_seconds};

const BINARY: &str = "etcd";
const MEMBERS: usize = 3;

/// Calls that one HTTP/2 connection carries at most; etcd's own load generator has ten to a connection.
const STREAMS_PER_CONNECTION: usize = 128;
const CONNECTIONS_MAX: usize = 48;

const START_DEADLINE: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Bytes of a key, and as many of a value: 64 together.
const KEY_BYTES: usize = 32;

type Send = SendRequest<Full<Bytes>>;

/// Three running members.
pub(crate) struct Etcd {
    members: Vec<Member>,
    pub(crate) version: String,
    _ports: Ports,
}

struct Member {
    child: Child,
    client: SocketAddr,
}

impl Drop for Member {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is gone then.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What is said instead of figures.
pub(crate) struct Skipped(pub(crate) String);

impl Etcd {
    /// Starts three members on folders under `home` and waits until they take puts.
    pub(crate) async fn start(home: &Path) -> Result<Self, Skipped> {
        let version = Command::new(BINARY)
            .arg("--version")
            .output()
            .map_err(|error| {
                Skipped(format!(
                    "`{BINARY}` cannot be started ({error}); on Debian: apt-get install etcd-server"
                ))
            })?;
        let version = String::from_utf8_lossy(&version.stdout)
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned();
        std::fs::create_dir(home).unwrap();
        let ports = Ports::claim(2 * MEMBERS).unwrap();
        let (clients, peers) = ports.addresses().split_at(MEMBERS);
        let cluster: Vec<String> = (0..)
            .zip(peers)
            .map(|(member, peer)| format!("m{member}=http://{peer}"))
            .collect();
        let mut members = Vec::new();
        for (number, (client, peer)) in clients.iter().zip(peers).enumerate() {
            let log = std::fs::File::create(home.join(format!("m{number}.log"))).unwrap();
            let child = Command::new(BINARY)
                .args(["--name", &format!("m{number}"), "--data-dir"])
                .arg(home.join(format!("m{number}")))
                .args(["--listen-client-urls", &format!("http://{client}")])
                .args(["--advertise-client-urls", &format!("http://{client}")])
                .args(["--listen-peer-urls", &format!("http://{peer}")])
                .args(["--initial-advertise-peer-urls", &format!("http://{peer}")])
                .args(["--initial-cluster", &cluster.join(",")])
                .args(["--initial-cluster-state", "new"])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()
                .map_err(|error| Skipped(format!("`{BINARY}` cannot be started: {error}")))?;
            let client = *client;
            members.push(Member { child, client });
        }
        let etcd = Self {
            members,
            version,
            _ports: ports,
        };
        for member in &etcd.members {
            etcd.ready(member.client).await?;
        }
        Ok(etcd)
    }

    async fn ready(&self, member: SocketAddr) -> Result<(), Skipped> {
        let putting = async {
            loop {
                if let Ok(send) = connect(member).await
                    && Put::new(send, member, 0).call().await.is_ok()
                {
                    return;
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        tokio::time::timeout(START_DEADLINE, putting)
            .await
            .map_err(|_| Skipped(format!("no member takes puts within {START_DEADLINE:?}")))
    }

    /// Callers with a key each, a third of them at each member.
    pub(crate) async fn callers(&self, callers: usize) -> Vec<Put> {
        let wanted = callers.div_ceil(STREAMS_PER_CONNECTION).max(MEMBERS);
        let mut connections = Vec::new();
        for number in 0..wanted.min(CONNECTIONS_MAX).min(callers) {
            let member = self.members[number % MEMBERS].client;
            connections.push((connect(member).await.unwrap(), member));
        }
        (0..callers)
            .map(|caller| {
                let (send, member) = &connections[caller % connections.len()];
                Put::new(send.clone(), *member, caller)
            })
            .collect()
    }

    /// Processor seconds of all members.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let pids = self.members.iter().map(|member| member.child.id());
        pids.map(cpu_seconds).sum()
    }
}

async fn connect(member: SocketAddr) -> Result<Send, String> {
    let words = |error: &dyn std::fmt::Display| format!("{member}: {error}");
    let tcp = TcpStream::connect(member)
        .await
        .map_err(|error| words(&error))?;
    tcp.set_nodelay(true).map_err(|error| words(&error))?;
    let (send, connection) = Builder::new(TokioExecutor::new())
        .initial_max_send_streams(STREAMS_PER_CONNECTION * 2)
        .handshake(TokioIo::new(tcp))
        .await
        .map_err(|error| words(&error))?;
    // Its end shows in the calls.
    tokio::spawn(async move { drop(connection.await) });
    Ok(send)
}

/// A caller that puts its key again and again.
pub(crate) struct Put {
    send: Send,
    uri: hyper::Uri,
    key: String,
    number: u64,
}

impl Put {
    fn new(send: Send, member: SocketAddr, caller: usize) -> Self {
        Self {
            send,
            uri: format!("http://{member}/etcdserverpb.KV/Put")
                .parse()
                .unwrap(),
            key: format!("caller-{caller:0width$}", width = KEY_BYTES - 7),
            number: 0,
        }
    }

    /// `PutRequest { key = 1, value = 2 }` in its gRPC frame.
    fn request(&self) -> Bytes {
        let value = format!("{:0width$}", self.number, width = KEY_BYTES);
        let mut message = Vec::with_capacity(2 * KEY_BYTES + 9);
        for (tag, field) in [(0x0a, self.key.as_bytes()), (0x12, value.as_bytes())] {
            message.push(tag);
            message.push(u8::try_from(field.len()).unwrap());
            message.extend_from_slice(field);
        }
        let length = u32::try_from(message.len()).unwrap();
        // Not compressed.
        let mut frame = vec![0];
        frame.extend_from_slice(&length.to_be_bytes());
        frame.extend_from_slice(&message);
        frame.into()
    }
}

impl Caller for Put {
    async fn call(&mut self) -> Result<(), String> {
        self.number += 1;
        let request = hyper::Request::post(self.uri.clone())
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(self.request()))
            .map_err(|error| error.to_string())?;
        let answer = self.send.send_request(request).await;
        let answer = answer.map_err(|error| error.to_string())?;
        let (head, body) = answer.into_parts();
        let body = body.collect().await.map_err(|error| error.to_string())?;
        let trailers = body.trailers().cloned().unwrap_or_default();
        // An answer without a message has its status in the head.
        let field = |name| trailers.get(name).or_else(|| head.headers.get(name));
        match field("grpc-status") {
            Some(status) if status == "0" => Ok(()),
            status => Err(format!(
                "grpc-status {status:?}, {:?}",
                field("grpc-message")
            )),
        }
    }
}
