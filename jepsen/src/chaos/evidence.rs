//! What a run leaves behind for judgement, beside the history: the ledger at the end, what was changed, what was done.
//!
//! Owns: plain records with their units, kept as JSON beside the history. All times are microseconds since the run
//! began, on the clients' monotonic clock. Refuses: to judge; `checker.rs` does. Nothing here is the product's own
//! type: a mistake in those must not reach the judge.

use serde::{Deserialize, Serialize};

/// All of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// The keys that were shown; the index is the history's `subject`.
    pub subjects: Vec<Subject>,
    /// What checks under them take from.
    pub accounts: Vec<Account>,
    /// The ledger's accounts at the end, as one node tells.
    pub ledger: Vec<Row>,
    /// Metered use at the end, by customer, as one node tells.
    pub usage: Vec<Use>,
    /// Every `kill -9` of an edge.
    pub edge_crashes: Vec<EdgeCrash>,
    /// The edges' `journal_interval`.
    pub journal_interval_us: u64,
    /// The edges' `max_stale`.
    pub max_stale_us: u64,
    /// Changes of the catalog, in order.
    pub changes: Vec<Change>,
    /// Where each node stood at the end.
    pub nodes: Vec<NodeEnd>,
    /// How long each repair took.
    pub recoveries: Vec<Recovery>,
    /// From here on every fault was lifted and every process ran.
    pub calm_from_us: u64,
    /// Kills of nodes and of edges that were really done.
    pub kills: Kills,
    /// Kills that the plan asked for.
    pub kills_planned: u64,
    /// A check is judged as *held* if its subject is here: it must never be refused.
    pub held_subjects: Vec<u32>,
    /// What went wrong with processes: ended by themselves, not when asked, units in suspense.
    pub troubles: Vec<String>,
}

/// A key. A check under it takes its cost from every one of its accounts, or from none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// The customer's id.
    pub customer: String,
    /// The key's public id.
    pub key: String,
    /// Its accounts: indexes into the evidence's.
    pub accounts: Vec<u32>,
}

/// A quota account, as the catalog makes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Its name, as the ledger writes it.
    pub account: String,
    /// The customer that it belongs to.
    pub customer: String,
    /// The name of its limit. Every check of a customer takes from one account of each of its limits.
    pub limit_name: String,
    /// Its limit at the start, in units.
    pub limit: u64,
}

/// An account of the ledger, in units.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The account, as the ledger writes it.
    pub account: String,
    /// Posted from reports.
    pub settled: u64,
    /// Posted beyond what was out.
    pub excess: u64,
    /// Left the ledger, and neither settled nor returned.
    pub out: u64,
    /// The limit in force; none if the catalog has no such limit.
    pub limit: Option<u64>,
}

/// Metered use of a customer, in units.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Use {
    /// The customer's id.
    pub customer: String,
    /// Units of all its meters and licences.
    pub units: u64,
}

/// A `kill -9` of an edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeCrash {
    /// The edge, from 1.
    pub edge: u32,
    /// After it was surely gone.
    pub at_us: u64,
}

/// A change of the catalog that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// What.
    pub what: What,
    /// Before it was asked for.
    pub invoke_us: u64,
    /// After the cluster acknowledged it; none: the answer never came, so it may have been made or not.
    pub acked_us: Option<u64>,
    /// The log index of the revision that the acknowledgement named; 0 without one.
    pub revision: u64,
}

/// Kinds of changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// The limit of an account becomes so many units.
    Raise {
        /// Which: an index into the evidence's accounts.
        account: u32,
        /// Its new limit.
        to: u64,
    },
    /// A key is revoked for good.
    Revoke {
        /// Which: an index into the evidence's subjects.
        subject: u32,
    },
}

/// Where a node stood at the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEnd {
    /// The node.
    pub node: u64,
    /// The index its digest belongs to.
    pub digest_index: u64,
    /// Digest of its state at that index.
    pub digest: String,
    /// Log index of its catalog revision.
    pub revision: u64,
}

/// From a repair to service: a check of a customer nobody has seen, admitted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    /// The round, from 1.
    pub round: u64,
    /// What it is counted from.
    pub from: String,
    /// When that was.
    pub from_us: u64,
    /// Whether the fault had taken the majority.
    pub majority_lost: bool,
    /// How long it took; none: there was no service within the deadline.
    pub took_us: Option<u64>,
}

/// Kills by role at the moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kills {
    /// Raft leaders.
    pub leader: u64,
    /// Other nodes.
    pub follower: u64,
    /// Edges.
    pub edge: u64,
}

impl Kills {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.leader + self.follower + self.edge
    }
}
