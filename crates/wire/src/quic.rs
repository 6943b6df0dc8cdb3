//! QUIC between nodes and edges: endpoints, the protocols spoken on them, and every transport limit.
//!
//! An [`Endpoint`] accepts and dials on one UDP socket with the certificates of a [`Tls`]. A connection
//! counts only once both sides have verified each other *and* the accepting side has admitted the
//! dialler's role to the protocol: it says so with one `welcome` frame, so that a refusal is an error of
//! [`Endpoint::dial`], with the peer's reason in it. Which version each side speaks is in the ALPN name;
//! where none fits, both sides fall back to `tollgate-versions`, on which the accepting side does nothing
//! but say what it speaks.
//!
//! Refuses 0-RTT, datagrams, session resumption, and to log. Next: [`Connection`], [`Dialer`].

mod connection;
mod dialer;
mod error;

pub use connection::{
    Accepted, Connection, Framed, Opening, Question, RequestError, SendHalf, StreamError,
};
pub use dialer::{BACKOFF_FIRST, BACKOFF_MAX, Dialer, LIVED_MIN};
pub use error::{AcceptError, DialError, ListenError};

use crate::frame::{Class, FrameReader, FrameWriter};
use crate::identity::{IdentityError, PeerIdentity, Role, node_server_name};
use crate::tls::Tls;
use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use quinn::{ConnectionError, TransportErrorCode, VarInt};
use rustls_pki_types::CertificateDer;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tollgate_core::ids::NodeId;

/// A peer that says nothing for so long is gone. Below the contact time of edges (5 s); a peer that
/// *restarted* is noticed at once, by a stateless reset.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a quiet connection says something; several must be lost before [`IDLE_TIMEOUT`].
pub const KEEP_ALIVE: Duration = Duration::from_millis(500);
/// For the handshake and the welcome; a dial that takes longer failed.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(2);
/// For the first frame of a stream that a peer opened.
pub const FIRST_FRAME_DEADLINE: Duration = Duration::from_secs(5);
/// Round trip assumed before the first is measured: how soon a lost first packet is sent again (3 times).
pub const INITIAL_ROUND_TRIP: Duration = Duration::from_millis(100);
/// Streams one peer may have open at a time; opening more waits.
pub const STREAMS_MAX: u32 = 256;
/// Bytes of one stream in flight or unread: at least the largest frame.
pub const STREAM_WINDOW: u32 = 2 * 1024 * 1024;
/// Bytes of one connection in flight or unread: the most a peer can make us hold. Also the other way.
pub const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;
/// Connections of one endpoint; further ones are refused.
pub const CONNECTIONS_MAX: usize = 4096;
/// From so many connections on, a dialler must first prove its address (costs it a round trip).
pub const RETRY_ABOVE: usize = 512;
/// Handshakes begun but not yet taken by [`Endpoint::accept`].
pub const INCOMING_MAX: usize = 1024;
/// Bytes kept for one such handshake, and for all of them.
pub const INCOMING_BYTES_MAX: (u64, u64) = (64 * 1024, 16 * 1024 * 1024);
/// How long [`Endpoint::close`] waits for peers to hear of it.
pub const CLOSE_DEADLINE: Duration = Duration::from_secs(1);

// What depends on each other, where the two meet.
const _: () = assert!(KEEP_ALIVE.as_millis() * 3 < IDLE_TIMEOUT.as_millis());
const _: () = {
    let mut next = 0;
    while next < Class::ALL.len() {
        // Else a frame could never arrive whole.
        assert!(Class::ALL[next].payload_max() < STREAM_WINDOW as usize);
        next += 1;
    }
    assert!(STREAM_WINDOW <= CONNECTION_WINDOW);
};

/// Spoken by every version: the accepting side says what else it speaks, and closes.
const VERSIONS_ALPN: &str = "tollgate-versions";
/// The dialler may be sent the welcome, nothing else.
const WELCOMES_MAX: u32 = 1;
/// Longest reason taken from a peer, in bytes: it goes into errors and logs.
const REASON_BYTES_MAX: usize = 512;

/// A protocol and its version, as it stands in ALPN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Between nodes: Raft, confirmations, forwarded commands.
    Raft,
    /// From edges to nodes: leases, keepalives, reports.
    Edge,
}

impl Protocol {
    /// Every protocol.
    pub const ALL: [Self; 2] = [Self::Raft, Self::Edge];

    /// Its name and version on the wire.
    #[must_use]
    pub const fn alpn(self) -> &'static str {
        match self {
            Self::Raft => "tollgate-raft/1",
            Self::Edge => "tollgate-edge/1",
        }
    }

    /// The role a dialler must have.
    #[must_use]
    pub const fn dialler(self) -> Role {
        match self {
            Self::Raft => Role::Node,
            Self::Edge => Role::Edge,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.alpn())
    }
}

/// Why a side closed a connection; on the wire as an application error code, with words beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum CloseCode {
    /// Nothing is wrong: the work is done, or the process stops.
    Done = 0,
    /// No protocol version in common.
    Version = 1,
    /// The peer's certificate is for another role than the protocol asks.
    Role = 2,
    /// The peer broke the protocol: an oversized frame, bytes that are no message.
    Protocol = 3,
    /// The `Hello` did not fit: another cluster, incarnation or version.
    Hello = 4,
}

impl From<CloseCode> for VarInt {
    fn from(code: CloseCode) -> Self {
        Self::from_u32(code as u32)
    }
}

/// A UDP socket that accepts and dials. Clones share it.
#[derive(Clone, Debug)]
pub struct Endpoint {
    quinn: quinn::Endpoint,
    tls: Tls,
    protocols: Vec<Protocol>,
}

impl Endpoint {
    /// Accepts `protocols` on `address`, and dials from there. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// [`ListenError`], for example when the port is in use.
    pub fn listen(
        address: SocketAddr,
        tls: &Tls,
        protocols: &[Protocol],
    ) -> Result<Self, ListenError> {
        let failed = |source| ListenError { address, source };
        let mut alpns: Vec<&str> = protocols.iter().map(|protocol| protocol.alpn()).collect();
        alpns.push(VERSIONS_ALPN);
        let server = server_config(tls, &alpns);
        let socket = std::net::UdpSocket::bind(address).map_err(failed)?;
        let runtime = Arc::new(quinn::TokioRuntime);
        let quinn = quinn::Endpoint::new(restartable(tls), Some(server), socket, runtime)
            .map_err(failed)?;
        Ok(Self {
            quinn,
            tls: tls.clone(),
            protocols: protocols.to_vec(),
        })
    }

    /// Only dials, from a port of the system's choice. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn dialling(tls: &Tls) -> Result<Self, ListenError> {
        let v6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
        let v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        // A v6 socket reaches both families, where the system has v6 at all.
        let quinn = quinn::Endpoint::client(v6)
            .or_else(|_| quinn::Endpoint::client(v4))
            .map_err(|source| ListenError {
                address: v4,
                source,
            })?;
        Ok(Self {
            quinn,
            tls: tls.clone(),
            protocols: Vec::new(),
        })
    }

    /// Where it listens: the real port where 0 was asked for.
    ///
    /// # Errors
    /// What the system says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.quinn.local_addr()
    }

    /// The next peer that dials; `None` once the endpoint is closed. Spawn [`Incoming::establish`], so
    /// that a slow handshake holds up no other. Cancel safe.
    pub async fn accept(&self) -> Option<Incoming> {
        loop {
            let incoming = self.quinn.accept().await?;
            let open = self.quinn.open_connections();
            if open >= CONNECTIONS_MAX {
                incoming.refuse();
            } else if open >= RETRY_ABOVE && incoming.may_retry() {
                // Fails only where it was not allowed to, which was asked.
                let _ = incoming.retry();
            } else {
                return Some(Incoming {
                    quinn: incoming,
                    protocols: self.protocols.clone(),
                });
            }
        }
    }

    /// Dials `node` at `address`, once. The answer is a connection on which the peer has admitted us.
    ///
    /// # Errors
    /// See [`DialError`]; [`Dialer`] adds reuse and back-off.
    pub async fn dial(
        &self,
        node: NodeId,
        address: SocketAddr,
        protocol: Protocol,
    ) -> Result<Connection, DialError> {
        let expected = node_server_name(self.tls.identity().cluster().as_str(), node);
        let config = client_config(&self.tls, &[protocol.alpn(), VERSIONS_ALPN]);
        let local = |reason: String| DialError::Local { address, reason };
        let connecting = self
            .quinn
            .connect_with(config, address, &expected)
            .map_err(|error| local(error.to_string()))?;
        let welcomed = async {
            let connection = connecting.await?;
            let welcome = connection.accept_uni().await?;
            // Its arrival is the message; the frame says that it is no accident.
            let mut reader = FrameReader::new(welcome, Class::Control);
            let intact = matches!(reader.next().await, Ok(Some([])));
            Ok((connection, intact))
        };
        let (connection, intact) = tokio::time::timeout(HANDSHAKE_DEADLINE, welcomed)
            .await
            .map_err(|_| DialError::Deadline { address })?
            .map_err(|error| self.explain(error, address, expected, protocol))?;
        let peer = peer_of(&connection).map_err(|error| local(error.to_string()))?;
        if !intact || alpn_of(&connection).as_deref() != Some(protocol.alpn().as_bytes()) {
            connection.close(CloseCode::Protocol.into(), b"no welcome");
            return Err(local(
                "its welcome is not the one of this protocol".to_owned(),
            ));
        }
        Ok(Connection::new(connection, peer, protocol))
    }

    /// Closes every connection with words, and waits a little for peers to hear them.
    pub async fn close(&self, reason: &str) {
        self.quinn.close(CloseCode::Done.into(), reason.as_bytes());
        // Beyond the deadline the peers find out by their own time-out.
        let _ = tokio::time::timeout(CLOSE_DEADLINE, self.quinn.wait_idle()).await;
    }

    /// What a failed handshake means: whose refusal it was, in whose words.
    fn explain(
        &self,
        error: ConnectionError,
        address: SocketAddr,
        expected: String,
        offered: Protocol,
    ) -> DialError {
        let own = self.tls.identity().clone();
        let alerts = 0x100..0x200;
        match error {
            ConnectionError::TransportError(error) if alerts.contains(&u64::from(error.code)) => {
                DialError::Untrusted {
                    address,
                    expected,
                    reason: words(error.reason.as_bytes()),
                }
            }
            ConnectionError::ConnectionClosed(close)
                if close.error_code == TransportErrorCode::crypto(NO_APPLICATION_PROTOCOL) =>
            {
                DialError::Version {
                    address,
                    offered,
                    spoken: "none of its versions".into(),
                }
            }
            ConnectionError::ConnectionClosed(close)
                if alerts.contains(&u64::from(close.error_code)) =>
            {
                DialError::Refused {
                    address,
                    own,
                    reason: words(&close.reason),
                }
            }
            ConnectionError::ApplicationClosed(close) => {
                let reason = words(&close.reason);
                if close.error_code == CloseCode::Version.into() {
                    DialError::Version {
                        address,
                        offered,
                        spoken: reason,
                    }
                } else if close.error_code == CloseCode::Role.into() {
                    DialError::Refused {
                        address,
                        own,
                        reason,
                    }
                } else {
                    let source = ConnectionError::ApplicationClosed(close);
                    DialError::Failed { address, source }
                }
            }
            ConnectionError::TimedOut => DialError::Deadline { address },
            source => DialError::Failed { address, source },
        }
    }
}

/// TLS alert 120.
const NO_APPLICATION_PROTOCOL: u8 = 120;

/// What was said about a refusal, without rustls' label for our own words, cut to a bound.
fn words(reason: &[u8]) -> String {
    let reason = &reason[..reason.len().min(REASON_BYTES_MAX)];
    let text = String::from_utf8_lossy(reason);
    text.strip_prefix("other error: ")
        .unwrap_or(&text)
        .to_owned()
}

/// A peer that dials.
#[derive(Debug)]
pub struct Incoming {
    quinn: quinn::Incoming,
    protocols: Vec<Protocol>,
}

impl Incoming {
    /// The peer's address; not yet proved.
    #[must_use]
    pub fn remote_address(&self) -> SocketAddr {
        self.quinn.remote_address()
    }

    /// Finishes the handshake and admits the peer, or tells it why not.
    ///
    /// # Errors
    /// See [`AcceptError`]; worth a line in the log, never more.
    pub async fn establish(self) -> Result<Connection, AcceptError> {
        let address = self.remote_address();
        tokio::time::timeout(HANDSHAKE_DEADLINE, self.admit())
            .await
            .unwrap_or(Err(AcceptError::Deadline { address }))
    }

    async fn admit(self) -> Result<Connection, AcceptError> {
        let address = self.quinn.remote_address();
        let handshake = |source| AcceptError::Handshake { address, source };
        let connection = self
            .quinn
            .accept()
            .map_err(handshake)?
            .await
            .map_err(handshake)?;
        let peer =
            peer_of(&connection).map_err(|source| AcceptError::Identity { address, source })?;
        let alpn = alpn_of(&connection).unwrap_or_default();
        let protocol = self
            .protocols
            .iter()
            .find(|protocol| protocol.alpn().as_bytes() == alpn.as_slice());
        let Some(&protocol) = protocol else {
            let spoken: Vec<&str> = self.protocols.iter().map(|known| known.alpn()).collect();
            let spoken = spoken.join(", ");
            connection.close(CloseCode::Version.into(), spoken.as_bytes());
            return Err(AcceptError::Version {
                address,
                peer,
                spoken,
            });
        };
        if peer.role() != protocol.dialler() {
            let error = AcceptError::Role {
                address,
                peer,
                protocol,
            };
            connection.close(CloseCode::Role.into(), error.to_string().as_bytes());
            return Err(error);
        }
        let welcome = connection.open_uni().await.map_err(handshake)?;
        let mut writer = FrameWriter::new(SendHalf::new(welcome), Class::Control);
        let sent = writer.push(b"").is_ok() && writer.flush().await.is_ok();
        if !sent || !writer.into_inner().finish() {
            let source = connection
                .close_reason()
                .unwrap_or(ConnectionError::LocallyClosed);
            return Err(handshake(source));
        }
        Ok(Connection::new(connection, peer, protocol))
    }
}

fn peer_of(connection: &quinn::Connection) -> Result<PeerIdentity, IdentityError> {
    let chain = connection
        .peer_identity()
        .and_then(|chain| chain.downcast::<Vec<CertificateDer<'static>>>().ok());
    match chain.as_deref().map(Vec::as_slice) {
        Some([leaf, ..]) => PeerIdentity::from_certificate(leaf),
        _ => Err(IdentityError::NoCertificate {
            reason: "the peer showed none".to_owned(),
        }),
    }
}

fn alpn_of(connection: &quinn::Connection) -> Option<Vec<u8>> {
    connection
        .handshake_data()?
        .downcast::<HandshakeData>()
        .ok()?
        .protocol
}

fn server_config(tls: &Tls, alpns: &[&str]) -> quinn::ServerConfig {
    let crypto = QuicServerConfig::try_from(tls.server_config(alpns))
        .expect("ring has the cipher suite of QUIC's first packets");
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config
        .transport_config(transport(0))
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size(INCOMING_BYTES_MAX.0)
        .incoming_buffer_size_total(INCOMING_BYTES_MAX.1);
    config
}

fn client_config(tls: &Tls, alpns: &[&str]) -> quinn::ClientConfig {
    let crypto = QuicClientConfig::try_from(tls.client_config(alpns))
        .expect("ring has the cipher suite of QUIC's first packets");
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport(WELCOMES_MAX));
    config
}

/// The limits above; `welcomes`: one-way streams that the peer may open.
fn transport(welcomes: u32) -> Arc<quinn::TransportConfig> {
    let mut config = quinn::TransportConfig::default();
    let idle = IDLE_TIMEOUT
        .try_into()
        .expect("two seconds fit QUIC's 62 bits of milliseconds");
    config
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .initial_rtt(INITIAL_ROUND_TRIP)
        .max_concurrent_bidi_streams(STREAMS_MAX.into())
        .max_concurrent_uni_streams(welcomes.into())
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(CONNECTION_WINDOW.into())
        .send_window(CONNECTION_WINDOW.into())
        .datagram_receive_buffer_size(None);
    Arc::new(config)
}

/// A peer holds on to a connection until its idle time-out, unless the process that comes back on the
/// same port can tell it that it knows nothing of it. So the key of these stateless resets comes from the
/// private key, not from chance, and connection ids carry no mark of the process that drew them.
fn restartable(tls: &Tls) -> quinn::EndpointConfig {
    let secret = tls.derive_secret("tollgate quic stateless reset");
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &secret);
    let mut config = quinn::EndpointConfig::new(Arc::new(key));
    config.cid_generator(|| Box::new(RandomIds));
    config
}

struct RandomIds;

impl RandomIds {
    const BYTES: usize = 8;
}

impl quinn::ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> quinn::ConnectionId {
        let mut id = [0; Self::BYTES];
        getrandom::fill(&mut id).expect("the system's random source, on which TLS rests, works");
        quinn::ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        Self::BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}
