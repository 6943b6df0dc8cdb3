//! What an edge says about itself: for health, metrics and people.
//!
//! Plain data, published by the driver a few times a second. Refuses to name customers or keys.

use std::fmt;
use tollgate_core::ids::{Boot, NodeId, Revision, SessionId, Units};

/// Where an edge stands with the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// No node has numbered this start yet.
    Opening,
    /// Checks are answered, use is reported.
    Open {
        /// The session.
        session: SessionId,
        /// The boot.
        boot: Boot,
    },
    /// Stopped for good: why, and what to do. Checks are refused.
    Failed(String),
    /// Closed on request.
    Closed,
}

impl fmt::Display for SessionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Opening => f.write_str("no node has opened a session yet"),
            Self::Open { session, boot } => write!(f, "session {session} open under boot {boot}"),
            Self::Failed(reason) => write!(f, "stopped: {reason}"),
            Self::Closed => f.write_str("closed"),
        }
    }
}

/// One node, as seen from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    /// Its id.
    pub node: NodeId,
    /// Its address, as configured.
    pub address: String,
    /// Whether a connection stands and both sides said `Hello`.
    pub connected: bool,
    /// Why not, or why the last connection ended.
    pub last_error: Option<String>,
}

/// What went over the wire since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrafficCounts {
    /// Requests for units sent, beside those that came with a resolve.
    pub leases: u64,
    /// Lease answers taken in, unasked news included.
    pub lease_answers: u64,
    /// Resolves sent, repeats included.
    pub resolves: u64,
    /// Reports sent, repeats included.
    pub reports: u64,
    /// Reports acknowledged.
    pub reports_settled: u64,
    /// Recalls answered.
    pub recalls: u64,
    /// Messages that a full queue to a node did not take; they are repeated.
    pub dropped: u64,
    /// Units granted to this edge.
    pub granted: Units,
    /// Units handed back.
    pub surrendered: Units,
}

/// An edge at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Where it stands with the ledger.
    pub session: SessionState,
    /// Its nodes, in the order of the configuration.
    pub nodes: Vec<NodeStatus>,
    /// The catalog revision it has acted on.
    pub revision: Revision,
    /// How old the last proof is that this view was current, in ms; `None` while there was none.
    pub stale_ms: Option<u64>,
    /// Whether checks are answered: session open, view fresh.
    pub ready: bool,
    /// Principals remembered.
    pub principals: usize,
    /// Accounts with a cell.
    pub accounts: usize,
    /// Units in all cells, free to be spent.
    pub held: Units,
    /// Reports without an acknowledgement.
    pub unacknowledged: usize,
    /// Checkpoints that were on disk later than a `journal_interval` after the one before was collected: a crash
    /// then would have lost more than was promised.
    pub journal_late: u64,
    /// What went over the wire.
    pub traffic: TrafficCounts,
}

/// What an edge could not finish before it closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// Units still in cells or whose surrender no issuer confirmed: they stay in the ledger's `out`.
    pub units: Units,
    /// Reports without an acknowledgement; with a journal the next start sends them.
    pub reports: usize,
    /// Whether the ledger confirmed the end of the session.
    pub closed: bool,
}

impl Left {
    /// Whether nothing was left.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.units == 0 && self.reports == 0 && self.closed
    }
}
