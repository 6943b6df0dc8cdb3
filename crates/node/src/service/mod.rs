//! The edge protocol: what an edge may say on a connection, and how each thing is answered.
//!
//! Three long-lived framed streams per connection, one per class: Control ([`control`]), Lease ([`lease`]), Report
//! ([`report`]). The certificate names the edge; a connection serves one boot of it at a time, from the answer to
//! `OpenSession` or from a `Hello` that names a boot of that edge's session. Whatever breaks the protocol closes
//! the connection with words. Units are the issuer's affair, settled use the ledger's. Source: docs/protocol.md.

pub mod connection;
mod control;
mod lease;
pub mod notices;
mod report;

use crate::confirm::Confirmation;
use crate::consensus::Proposer;
use crate::fatal::Fatal;
use crate::issuing::Input;
use crate::machine::SharedLedger;
use crate::pepper::Pepper;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tollgate_core::account::Name;
use tollgate_core::ids::{Boot, NodeId};

/// Lowest and highest version of the edge protocol spoken here.
pub const PROTOCOL_VERSIONS: (u16, u16) = (1, 1);

/// A connection that has said no `Hello`, or not whose boot it serves, for so long is closed.
pub const HELLO_DEADLINE: Duration = Duration::from_secs(10);

/// How long a message of a new boot may come before the `Hello` that names the boot, on another stream.
pub const REBIND_DEADLINE: Duration = Duration::from_secs(2);

/// Messages waiting to be written to one stream; what exceeds it is dropped and asked for again.
pub const OUTGOING_MAX: usize = 1024;

/// Messages written at once.
const WRITTEN_AT_ONCE: usize = 64;

/// How long a message may take to leave; an edge that reads nothing for so long is cut off.
pub const WRITE_DEADLINE: Duration = Duration::from_secs(10);

/// Connections of edges at once; further ones are told so and closed.
pub const EDGES_MAX: usize = 2048;

/// What every connection of edges shares.
pub struct Service {
    /// The cluster's name.
    pub cluster: Name,
    /// This node, under its boot.
    pub node: (NodeId, Boot),
    /// The replica.
    pub ledger: SharedLedger,
    /// The way to the log.
    pub proposer: Proposer,
    /// The way to the issuer's task.
    pub issuer: mpsc::Sender<Input>,
    /// What can be proved of the replica.
    pub confirmation: Confirmation,
    /// The secret behind stored secrets.
    pub pepper: Pepper,
    /// News for every edge.
    pub notices: watch::Receiver<notices::Notice>,
    /// The end of the node.
    pub fatal: Fatal,
    /// Counts for metrics.
    pub counts: ServiceCounts,
}

/// What the service counts.
#[derive(Debug, Default)]
pub struct ServiceCounts {
    /// Connections of edges now.
    pub connections: AtomicU64,
    /// Connections so far: the number of the newest contact.
    pub contacts: AtomicU64,
    /// Connections closed because of what the edge sent.
    pub violations: AtomicU64,
    /// Reports answered with `Settled`.
    pub reports_settled: AtomicU64,
    /// Reports answered otherwise.
    pub reports_refused: AtomicU64,
    /// Reports and sessions whose fate was unknown.
    pub unavailable: AtomicU64,
}

/// The boot a connection serves, and the session it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bound {
    pub(crate) boot: Boot,
    pub(crate) session: tollgate_core::ids::SessionId,
}

/// What an edge did that ends its connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Violation {
    /// A `Hello` that does not fit.
    #[error("{0}")]
    Hello(String),
    /// Anything else.
    #[error("{0}")]
    Protocol(String),
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
