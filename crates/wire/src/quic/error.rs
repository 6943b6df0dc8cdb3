//! Why there is no socket, no dialler let in, no connection to a peer: each with both sides named.

use super::{HANDSHAKE_DEADLINE, Protocol};
use crate::identity::{IdentityError, PeerIdentity};
use quinn::ConnectionError;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// The socket could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on UDP {address}: {source}{}", match source.kind() {
    io::ErrorKind::AddrInUse => "; another process has it, name another port",
    _ => "",
})]
pub struct ListenError {
    /// The address asked for.
    pub address: SocketAddr,
    /// What the system said.
    pub source: io::Error,
}

/// Why a peer that dialled us did not become a connection. It was told, where there was somebody to tell.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AcceptError {
    /// The handshake failed: a certificate that is not ours, an end in the middle.
    #[error("handshake with {address}: {source}")]
    Handshake {
        /// The peer's.
        address: SocketAddr,
        /// What QUIC said.
        source: ConnectionError,
    },
    /// The handshake took longer than [`HANDSHAKE_DEADLINE`].
    #[error("handshake with {address} took longer than {HANDSHAKE_DEADLINE:?}")]
    Deadline {
        /// The peer's.
        address: SocketAddr,
    },
    /// No protocol version in common.
    #[error("{peer} at {address} speaks no protocol of ours; this side speaks {spoken}")]
    Version {
        /// The peer's.
        address: SocketAddr,
        /// Who it is.
        peer: PeerIdentity,
        /// What this side speaks.
        spoken: String,
    },
    /// A role that may not speak this protocol.
    #[error("{peer} at {address} may not speak {protocol}: that is for the role {}", protocol.dialler())]
    Role {
        /// The peer's.
        address: SocketAddr,
        /// Who it is.
        peer: PeerIdentity,
        /// What it wanted to speak.
        protocol: Protocol,
    },
    /// Verified by TLS, and yet no identity of ours.
    #[error("{address}: {source}")]
    Identity {
        /// The peer's.
        address: SocketAddr,
        /// What is wrong.
        source: IdentityError,
    },
}

/// Why there is no connection to a peer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DialError {
    /// The name has no address. Try again later.
    #[error("`{address}` has no address: {reason}")]
    Resolve {
        /// Host and port.
        address: String,
        /// What the resolver said.
        reason: String,
    },
    /// No answer within [`HANDSHAKE_DEADLINE`]: down, or cut off. Try again later.
    #[error("{address} does not answer within {HANDSHAKE_DEADLINE:?}")]
    Deadline {
        /// Whom.
        address: SocketAddr,
    },
    /// We do not believe the peer: another authority, cluster or node, or expired. An operator's matter.
    #[error("refused {address}, dialled as {expected}: {reason}")]
    Untrusted {
        /// Whom.
        address: SocketAddr,
        /// The server name expected.
        expected: String,
        /// What the verifier said.
        reason: String,
    },
    /// The peer does not believe us, or not for this protocol. An operator's matter.
    #[error("{address} refused {own}: {reason}")]
    Refused {
        /// Whom.
        address: SocketAddr,
        /// Who we are.
        own: PeerIdentity,
        /// What the peer said.
        reason: String,
    },
    /// No protocol version in common: upgrade the older side.
    #[error("dialled {address} with {offered}, but it speaks {spoken}: upgrade the older side")]
    Version {
        /// Whom.
        address: SocketAddr,
        /// What we offered.
        offered: Protocol,
        /// What the peer speaks, in its words.
        spoken: String,
    },
    /// The connection failed while it was made. Try again later.
    #[error("dialling {address}: {source}")]
    Failed {
        /// Whom.
        address: SocketAddr,
        /// What QUIC said.
        source: ConnectionError,
    },
    /// The dial could not even begin: the endpoint is closed, the address is of a kind it cannot reach.
    #[error("cannot dial {address}: {reason}")]
    Local {
        /// Whom.
        address: SocketAddr,
        /// What QUIC said.
        reason: String,
    },
    /// The last dial failed not long ago; nothing was sent now. Only from a [`super::Dialer`].
    #[error("next dial in {retry_in:?}; the last failed: {last}")]
    BackingOff {
        /// When a dial may be tried again.
        retry_in: Duration,
        /// Why the last one failed.
        last: Box<DialError>,
    },
}
