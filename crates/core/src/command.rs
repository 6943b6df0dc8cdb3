//! What the log carries, and what applying it answers.
//!
//! A [`Entry`] is one log entry: the leader's ledger time and a list of intact commands, each judged and
//! answered alone. Every command may arrive twice or late; [`crate::ledger`] says why a repeat changes
//! nothing. Enum variants are only ever appended: their order is on disks. Next: [`crate::ledger`].

use crate::account::{AccountId, Environment, Name};
use crate::admin::{AdminCommand, AdminReply};
use crate::catalog::PepperId;
use crate::ids::{Boot, Epoch, Incarnation, NodeId, Nonce, Seq, SessionId, Slot, Units};
use crate::time::LedgerTime;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Most lines in one [`Position`], one [`Report`] list or one slot of a `Lease`: bounds frames and applies.
pub const LINES_MAX: usize = 512;

/// One log entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The proposing leader's guarded clock.
    pub time: LedgerTime,
    /// The commands, applied in this order.
    pub commands: Vec<Command>,
}

/// A change asked of the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// A node started: number its boot.
    OpenNode(OpenNode),
    /// An edge started: number its boot, in a new session or one it goes on with.
    OpenSession(OpenSession),
    /// Slots get an owner, if their epoch is still the expected one.
    Assign(Assign),
    /// An issuer's totals.
    Position(Position),
    /// An edge's use.
    Report(Report),
    /// A session ends.
    CloseSession(CloseSession),
    /// Ledger time goes on; sessions past retention end.
    Tick,
    /// A change of the catalog or a controlled correction, with its audit entry.
    Admin(Box<AdminCommand>),
    /// A node that starts says which pepper it has; the first one named is the cluster's.
    NamePepper(PepperId),
}

/// See [`Command::OpenNode`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenNode {
    /// The node, by the id in its data folder.
    pub node: NodeId,
    /// Its start number; the same one gets the same boot.
    pub nonce: Nonce,
}

/// See [`Command::OpenSession`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenSession {
    /// The session to go on with (from the journal); `None` asks for a new one.
    pub session: Option<SessionId>,
    /// The start number: counted up in the journal, or drawn at random where there is none.
    pub nonce: Nonce,
    /// The edge's name in its certificate.
    pub identity: Name,
    /// The life of the data the edge believes in; another one is refused.
    pub incarnation: Incarnation,
}

/// See [`Command::Assign`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assign {
    /// Slots with the epoch each is expected to have.
    pub slots: Vec<(Slot, Epoch)>,
    /// The new owner.
    pub node: NodeId,
    /// Its boot; refused unless this is the node's latest.
    pub boot: Boot,
}

/// An issuer's statement of what it acquired and returned in all under one epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The slot.
    pub slot: Slot,
    /// The epoch the totals belong to.
    pub epoch: Epoch,
    /// At most [`LINES_MAX`] accounts of the slot.
    pub lines: Vec<PositionLine>,
}

/// One account of a [`Position`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PositionLine {
    /// The account.
    pub account: AccountId,
    /// Units acquired under this epoch in all, if the ledger has room for them.
    pub acquired_total: Units,
    /// Units returned under this epoch in all; may exceed what was acquired (carried units).
    pub returned_total: Units,
}

/// A numbered statement of what an edge admitted since the report before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The stream it belongs to.
    pub session: SessionId,
    /// The boot that sends it; not part of the hash, so that a later boot can send it again.
    pub boot: Boot,
    /// Its number: the one after the last applied, or it is a repeat, or there is a gap.
    pub seq: Seq,
    /// [`Report::content_hash`] of the lines.
    pub hash: u64,
    /// What moves quota accounts.
    pub spent: Vec<SpentLine>,
    /// What is counted once per meter, for billing.
    pub usage: Vec<UsageLine>,
}

/// Use of one quota account.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SpentLine {
    /// The account.
    pub account: AccountId,
    /// Units that were leased before they were spent.
    pub leased: Units,
    /// Units admitted without a lease (debt, `allow`): counted in `excess`.
    pub unleased: Units,
}

/// Use of one meter by one key.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct UsageLine {
    /// Live or test.
    pub environment: Environment,
    /// The license that is billed.
    pub license: Name,
    /// The key that was presented.
    pub key: Name,
    /// What was counted.
    pub meter: Name,
    /// How much.
    pub units: Units,
}

/// See [`Command::CloseSession`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloseSession {
    /// The session.
    pub session: SessionId,
    /// The boot that closes it; a fenced one is refused.
    pub boot: Boot,
    /// Its last report; the close waits until that is applied.
    pub last_seq: Seq,
}

/// The answer to one [`Command`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// To [`Command::OpenNode`].
    OpenNode(OpenNodeReply),
    /// To [`Command::OpenSession`].
    OpenSession(OpenSessionReply),
    /// To [`Command::Assign`]: the slots that changed owner, with their new epochs.
    Assign(AssignReply),
    /// To [`Command::Position`].
    Position(PositionReply),
    /// To [`Command::Report`].
    Report(ReportReply),
    /// To [`Command::CloseSession`].
    CloseSession(ReportReply),
    /// To [`Command::Tick`].
    Tick(LedgerTime),
    /// To [`Command::Admin`].
    Admin(Box<AdminReply>),
    /// The bytes were no command of this version.
    Malformed(Arc<str>),
    /// To [`Command::NamePepper`].
    NamePepper(NamePepperReply),
}

/// Answer to [`OpenNode`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OpenNodeReply {
    /// The boot that goes with the nonce.
    Boot(Boot),
    /// A later start of this node was already numbered: this process is a dead one.
    StaleNonce {
        /// The newest start number seen.
        last: Nonce,
    },
}

/// Answer to [`Command::NamePepper`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NamePepperReply {
    /// It is the cluster's.
    Same,
    /// The cluster's is another one: the node must not serve.
    Other {
        /// The cluster's.
        cluster: PepperId,
    },
}

/// Answer to [`OpenSession`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OpenSessionReply {
    /// The session is open under this boot; older boots of it are fenced.
    Opened {
        /// The session.
        session: SessionId,
        /// The boot.
        boot: Boot,
        /// The last report applied.
        last_seq: Seq,
    },
    /// A later start went on with this session: this process is a dead one.
    StaleNonce {
        /// The newest start number seen.
        last: Nonce,
    },
    /// No such session was ever given out, or not to this identity.
    Unknown,
    /// The session ended, by close or by retention.
    Expired,
    /// The data of this cluster is another life: open a new session.
    OtherIncarnation {
        /// The cluster's.
        current: Incarnation,
    },
    /// The identity has as many open sessions as are kept: keep a journal, so that a restart goes on with
    /// its session, or close sessions that are left; each ends by itself after 35 days of silence.
    TooMany {
        /// How many are kept.
        limit: u64,
    },
}

/// Answer to [`Assign`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AssignReply {
    /// The slots that changed, with their new epochs; those with another epoch than expected are left out.
    Assigned(Vec<(Slot, Epoch)>),
    /// The boot is not the node's latest: nothing changed.
    StaleBoot {
        /// The node's latest boot, if it ever had one.
        latest: Option<Boot>,
    },
}

/// Answer to [`Position`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PositionReply {
    /// The slot.
    pub slot: Slot,
    /// The epoch the position named.
    pub epoch: Epoch,
    /// The outcome.
    pub outcome: PositionOutcome,
}

/// What became of a [`Position`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PositionOutcome {
    /// Judged line by line, in the order of the lines.
    Lines(Vec<(AccountId, LineOutcome)>),
    /// The slot has another epoch: nothing changed.
    WrongEpoch {
        /// The slot's epoch.
        current: Epoch,
    },
}

/// What became of one line of a [`Position`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LineOutcome {
    /// The totals that stand.
    Stands {
        /// May be less than asked.
        acquired_total: Units,
        /// Returned in all under this epoch.
        returned_total: Units,
    },
    /// No limit is in force; returns still counted.
    NoLimit {
        /// What stands from before.
        acquired_total: Units,
        /// Returned in all under this epoch.
        returned_total: Units,
    },
    /// The account does not hash to the slot.
    WrongSlot,
}

/// Answer to [`Report`] and [`CloseSession`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReportReply {
    /// Everything up to here is applied; this report too.
    Settled {
        /// The last applied.
        last_seq: Seq,
    },
    /// A report before this one is missing.
    Gap {
        /// The number that is next.
        expected: Seq,
    },
    /// A later boot of the session exists.
    Fenced,
    /// No such session was ever given out.
    Unknown,
    /// The session ended.
    Expired,
    /// A report of this number with other contents was applied: never acknowledged.
    HashMismatch {
        /// The number.
        seq: Seq,
    },
}

impl Report {
    /// Hash of what the report says: session, number and lines, without the boot.
    #[must_use]
    pub fn content_hash(
        session: SessionId,
        seq: Seq,
        spent: &[SpentLine],
        usage: &[UsageLine],
    ) -> u64 {
        crate::digest::hash64(&(session, seq, spent, usage))
    }
}
