//! What the simulated processes send each other: the core's messages, and what their drivers add.

use super::network::Actor;
use tollgate_core::account::AccountId;
use tollgate_core::command::{Command, OpenSession, OpenSessionReply, Reply, Report};
use tollgate_core::ids::{Boot, LeaseNo, Revision, Seq, SessionId, Units};
use tollgate_core::message::{Held, Lease, LeaseAnswer, Recall, Route, SessionAnswer, SlotAnswer};

/// A message on its way between two processes; dropped when its receiver started anew meanwhile.
#[derive(Clone, Debug)]
pub(super) struct Envelope {
    pub(super) from: Actor,
    pub(super) to: Actor,
    /// Which start of the receiver it is for.
    pub(super) to_start: u32,
    pub(super) from_start: u32,
    pub(super) wire: Wire,
}

/// Who waits for a reply from the leader.
#[derive(Clone, Debug)]
pub(super) enum Asker {
    /// The node itself: its boot, its issuer's position, or an assignment.
    Node,
    /// An edge connected to the node, about a boot of a session where it has one.
    Edge {
        edge: usize,
        start: u32,
        about: Option<(SessionId, Boot)>,
    },
    /// Nobody: the workload's changes are repeated until they are in the log.
    Nobody,
}

/// One limit of a resolved key: its position in the plan, its account.
pub(super) type Limits = Vec<(usize, AccountId)>;

/// The streams of a connection, each of which keeps its order; they overtake each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    Control,
    Lease,
    Report,
}

impl Stream {
    pub(super) const COUNT: usize = 3;
}

impl Wire {
    pub(super) fn stream(&self) -> Stream {
        match self {
            Self::Resolve { .. }
            | Self::Lease(_)
            | Self::Held(_)
            | Self::Resolved { .. }
            | Self::Answer(_) => Stream::Lease,
            Self::Report(_) | Self::Close { .. } | Self::Reported(_) | Self::Closed(_) => {
                Stream::Report
            }
            _ => Stream::Control,
        }
    }
}

/// See the module's text.
#[derive(Clone, Debug)]
pub(super) enum Wire {
    // edge → node
    Hello {
        boot: Boot,
    },
    Open(OpenSession),
    Keepalive {
        boot: Boot,
    },
    Resolve {
        boot: Boot,
        customer: usize,
        lease_no: LeaseNo,
        need: Units,
    },
    Lease(Lease),
    Held(Held),
    Report(Report),
    Close {
        session: SessionId,
        boot: Boot,
        last_seq: Seq,
    },
    Changes,
    // node → edge
    Welcome {
        boot: Boot,
        routes: Vec<Route>,
        revision: Revision,
    },
    Opened(OpenSessionReply),
    Alive {
        revision: Revision,
    },
    Resolved {
        customer: usize,
        lease_no: LeaseNo,
        limits: Option<Limits>,
        revision: Revision,
        lease: Option<SlotAnswer>,
    },
    Answer(LeaseAnswer),
    Recall(Recall),
    Reported(SessionAnswer),
    Closed(SessionAnswer),
    Push {
        revision: Revision,
    },
    Changed {
        revision: Revision,
    },
    Routes(Vec<Route>),
    // node ↔ node
    Beat {
        boot: Boot,
    },
    Lead {
        term: u64,
        index: u64,
    },
    Forward {
        asker: Asker,
        command: Box<Command>,
    },
    Reply {
        asker: Asker,
        reply: Box<Reply>,
    },
}
