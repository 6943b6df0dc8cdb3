//! What edges and nodes say to each other (docs/protocol.md, "Leases").
//!
//! Every amount is a cumulative total: a repeated, late or reordered message changes nothing by
//! construction. Enum variants are only ever appended. Next: [`crate::issuer`], [`crate::lessee`].

use crate::account::{AccountId, Environment, Name};
use crate::command::{Report, ReportReply};
use crate::ids::{
    Boot, Epoch, Incarnation, LeaseNo, NodeId, Nonce, Revision, Seq, SessionId, Slot, Units,
};
use crate::time::LedgerTime;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// First frame, both ways. A mismatch closes the connection with both values named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The cluster's name.
    pub cluster: Name,
    /// The life of the data; `None` from an edge that has not seen one yet.
    pub incarnation: Option<Incarnation>,
    /// Who speaks.
    pub sender: Sender,
    /// Lowest and highest protocol version spoken.
    pub versions: (u16, u16),
}

/// Who speaks in a [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sender {
    /// A node under one boot.
    Node {
        /// Its id.
        node: NodeId,
        /// Its boot.
        boot: Boot,
    },
    /// An edge; without a boot until its session is open.
    Edge {
        /// Its boot, once the ledger numbered it.
        boot: Option<Boot>,
    },
}

/// Asks for units of accounts of several slots of one issuer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The asking edge's boot.
    pub boot: Boot,
    /// One part per slot.
    pub slots: Vec<SlotLease>,
}

/// The part of a [`Lease`] that concerns one slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotLease {
    /// The slot.
    pub slot: Slot,
    /// The epoch the edge's rows belong to.
    pub epoch: Epoch,
    /// At most [`crate::command::LINES_MAX`] accounts.
    pub lines: Vec<LeaseLine>,
}

/// One account of a [`Lease`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseLine {
    /// The account.
    pub account: AccountId,
    /// The opening this line belongs to.
    pub lease_no: LeaseNo,
    /// Units of former openings that were in the cell when this one began; fixed by the first line.
    pub carried: Units,
    /// Units the edge wants granted under this opening in all.
    pub want_total: Units,
    /// Units granted under this opening in all at which the largest waiting check would pass; at most
    /// `want_total`, 0 when no check waits.
    pub need_total: Units,
    /// Units that left the cell for the issuer under this opening in all.
    pub surrendered_total: Units,
    /// Units used per second, smoothed: a hint for sizing, never part of the book.
    pub demand: Units,
    /// The last line of this opening: everything was surrendered, the row may go.
    pub closing: bool,
}

/// Answer to a [`Lease`], or news for rows that waited.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseAnswer {
    /// The boot it is for.
    pub boot: Boot,
    /// The catalog revision it was computed at: a refusal is void on any higher one.
    pub revision: Revision,
    /// One part per slot asked for.
    pub slots: Vec<SlotAnswer>,
}

/// The part of a [`LeaseAnswer`] that concerns one slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotAnswer {
    /// The slot.
    pub slot: Slot,
    /// What the issuer says.
    pub outcome: SlotOutcome,
}

/// What an issuer says of a slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SlotOutcome {
    /// It owns the slot under this epoch; one line per line asked.
    Lines {
        /// The epoch of the rows.
        epoch: Epoch,
        /// The answers.
        lines: Vec<AnswerLine>,
    },
    /// It does not own the slot under the epoch named.
    WrongEpoch(Route),
    /// The boot is fenced: a later start of its session exists.
    Fenced,
}

/// Who owns a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Hash)]
pub struct Route {
    /// The slot.
    pub slot: Slot,
    /// Its epoch; 0 before the first owner.
    pub epoch: Epoch,
    /// Its owner.
    pub owner: Option<(NodeId, Boot)>,
}

/// One account of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerLine {
    /// The account.
    pub account: AccountId,
    /// The opening the totals belong to.
    pub lease_no: LeaseNo,
    /// Units granted under it in all.
    pub granted_total: Units,
    /// Units the issuer has taken back under it in all: the edge stops repeating itself.
    pub surrendered_total: Units,
    /// The `need_total` it judged: a `none_now` refuses so much and more, and says nothing of less. 0 where no
    /// check waited.
    pub need_total: Units,
    /// Estimate of what is left for everyone: limit − settled + excess, from the issuer's replica.
    pub remaining: Units,
    /// Where the request stands.
    pub state: LeaseState,
}

/// Where a request for units stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LeaseState {
    /// The need is met.
    Granted,
    /// A position is under way; ask again, never remember as a refusal.
    Pending,
    /// A recall is under way (at most 300 ms); ask again, never remember as a refusal.
    Recalling,
    /// Nothing is left to lease or recall at this moment; remembered at most 1 s.
    NoneNow,
    /// Everything is settled; remembered until the catalog changes.
    NoneForGood,
    /// The row is gone; `granted_total` is its last word.
    Closed,
    /// No limit is in force for the account.
    NoLimit,
    /// The opening is older than a row that was dropped: draw a new `lease_no`.
    Stale,
}

/// Asks every connected edge to hand in idle units of an account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recall {
    /// The slot.
    pub slot: Slot,
    /// The issuer's epoch.
    pub epoch: Epoch,
    /// The account.
    pub account: AccountId,
    /// Its number, echoed by [`Held`].
    pub number: u64,
    /// Units an edge whose checks are using them may keep; it hands in the rest.
    pub keep: Units,
}

/// Answer to a [`Recall`]; the units themselves come as a [`Lease`] with a higher `surrendered_total`,
/// which goes out first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The answering boot.
    pub boot: Boot,
    /// The recall answered.
    pub number: u64,
    /// The account.
    pub account: AccountId,
    /// Units kept because checks are using them.
    pub held: Units,
    /// The opening that stands at the edge; 0 where none does.
    pub lease_no: LeaseNo,
    /// Units granted under it that had reached the edge. Where the issuer granted more, those were under way
    /// when the recall came, and this is not the edge's last word.
    pub granted_seen: Units,
}

/// Asks who a credential is, and opens the rows of its accounts in the same round trip.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolve {
    /// The edge's boot.
    pub boot: Boot,
    /// Names this request; echoed by the answer.
    pub nonce: u64,
    /// The key's public id.
    pub key: Name,
    /// SHA-256 of the presented secret.
    pub secret_sha256: [u8; 32],
    /// The opening for rows not yet open; a retry keeps it.
    pub lease_no: LeaseNo,
    /// Units wanted of each account.
    pub want: Units,
    /// Units the waiting check needs.
    pub need: Units,
}

/// Answer to a [`Resolve`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolveAnswer {
    /// The request's.
    pub nonce: u64,
    /// The catalog revision it was computed at.
    pub revision: Revision,
    /// Who it is, or why not.
    pub outcome: ResolveOutcome,
    /// Rows of the principal's accounts where this node is their issuer; `None` where another is.
    pub lease: Option<SlotAnswer>,
}

/// Who a credential is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ResolveOutcome {
    /// A known caller.
    Principal(Arc<Principal>),
    /// No such key, or another secret; which of the two is not said.
    Invalid,
    /// The key was revoked, or this secret ended.
    Revoked,
    /// The license does not allow use.
    LicenseSuspended,
    /// The node cannot prove that its view is current: ask another.
    Unconfirmed,
}

/// What an edge needs to know of a caller to decide alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Principal {
    /// Live or test.
    pub environment: Environment,
    /// The customer.
    pub customer: Name,
    /// The license.
    pub license: Name,
    /// The key's public id.
    pub key: Name,
    /// The plan's id and version.
    pub plan: (Name, u32),
    /// The limits that apply, in the order of the plan.
    pub limits: Vec<PrincipalLimit>,
}

/// One limit of a [`Principal`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PrincipalLimit {
    /// Its stable name.
    pub name: Name,
    /// What it counts.
    pub meter: Name,
    /// The account it counts in.
    pub account: AccountId,
    /// The units allowed.
    pub quota: Units,
}

/// What an edge sends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EdgeMessage {
    /// First frame.
    Hello(Hello),
    /// Number my boot.
    OpenSession {
        /// The session to go on with.
        session: Option<SessionId>,
        /// The start number.
        nonce: Nonce,
    },
    /// Once a second.
    Keepalive {
        /// The edge's boot.
        boot: Boot,
        /// Echoed; the edge's own clock before sending, in ms: only it reads meaning into it.
        sent_mark: u64,
        /// The catalog the edge has acted on.
        revision: Revision,
    },
    /// See [`Resolve`].
    Resolve(Resolve),
    /// See [`Lease`].
    Lease(Lease),
    /// See [`Held`].
    Held(Held),
    /// See [`Report`].
    Report(Report),
    /// The stream ends; units were surrendered and reports acknowledged.
    CloseSession {
        /// The last report.
        last_seq: Seq,
    },
    /// What changed after this revision?
    Changes {
        /// The edge's.
        since: Revision,
    },
}

/// What the ledger said of a report or an end, and of whose: an edge may be in another session by then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionAnswer {
    /// The session it was about.
    pub session: SessionId,
    /// The boot that asked.
    pub boot: Boot,
    /// What became of it.
    pub reply: ReportReply,
}

/// What a node sends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeMessage {
    /// First frame.
    Hello(Hello),
    /// Answer to `OpenSession`.
    Session(crate::command::OpenSessionReply),
    /// Answer to `Keepalive`.
    Keepalive {
        /// The edge's, back.
        sent_mark: u64,
        /// Number of this contact, given by the node.
        contact: u64,
        /// How old the node's confirmed view is, in ms; `None` when it has none.
        confirmed_age_ms: Option<u64>,
        /// Ledger time at the node.
        time: LedgerTime,
        /// The node's catalog revision.
        revision: Revision,
        /// Log index of the node's newest change of the slot table.
        routes_index: u64,
    },
    /// See [`ResolveAnswer`].
    Resolve(ResolveAnswer),
    /// See [`LeaseAnswer`].
    Lease(LeaseAnswer),
    /// See [`Recall`].
    Recall(Recall),
    /// Answer to a report.
    Report(SessionAnswer),
    /// Answer to `CloseSession`.
    Closed(SessionAnswer),
    /// A hint: the catalog has a newer revision.
    Push {
        /// The node's.
        revision: Revision,
    },
    /// The slot table, or the part of it that changed; `index` orders tables of different nodes.
    Routes {
        /// Log index of the newest change.
        index: u64,
        /// Slots with their owners.
        routes: Vec<Route>,
    },
    /// Answer to `Changes`.
    Changes {
        /// The revision reached.
        revision: Revision,
        /// Customers whose principals may differ; `None` when the node cannot tell: all.
        customers: Option<Vec<Name>>,
    },
    /// The node cannot serve the request; the edge asks another.
    Unavailable(Arc<str>),
}
