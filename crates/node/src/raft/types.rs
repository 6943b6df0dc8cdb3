//! openraft's types, fixed for this project: every other module imports them from here.
//!
//! One leader per term (`leader_id_std`): a log id is then a term and an index, and a vote names one candidate.
//! Next: [`crate::storage::LogStore`] and [`crate::storage::StateStore`], which implement its storage traits.

use std::fmt;
use std::sync::Arc;

use openraft::alias;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

openraft::declare_raft_types!(
    /// What the log of this project carries: opaque batches in, opaque replies out.
    pub TypeConfig:
        D = Batch,
        R = Replies,
        NodeId = u64,
        Node = openraft::BasicNode,
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>,
);

/// A log entry's id: term and index.
pub type LogId = alias::LogIdOf<TypeConfig>;
/// A vote: term, candidate, and whether a quorum granted it.
pub type Vote = alias::VoteOf<TypeConfig>;
/// A log entry.
pub type Entry = alias::EntryOf<TypeConfig>;
/// A membership with the id of the entry that set it.
pub type StoredMembership = alias::StoredMembershipOf<TypeConfig>;
/// What a snapshot covers.
pub type SnapshotMeta = alias::SnapshotMetaOf<TypeConfig>;
/// A snapshot on disk, with what it covers.
pub type Snapshot = alias::SnapshotOf<TypeConfig, crate::storage::SnapshotFile>;

/// One log entry's content: the encoded batch of commands. Cloning copies a pointer.
#[derive(Clone, PartialEq, Eq)]
pub struct Batch(pub Arc<[u8]>);

impl Batch {
    /// The encoded batch.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for Batch {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "batch of {} bytes", self.0.len())
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Batch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Batch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        serde_bytes::ByteBuf::deserialize(deserializer).map(|bytes| Self(bytes.into_vec().into()))
    }
}

/// The encoded replies to one batch, in the order of its commands; empty for entries of Raft's own. They never leave
/// the process as such: openraft wants its answers to have an encoding.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replies(pub Vec<Vec<u8>>);

impl fmt::Display for Replies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} replies", self.0.len())
    }
}

/// The membership itself.
pub type Membership = openraft::Membership<u64, openraft::BasicNode>;
/// openraft's handle, over our state.
pub type Raft = openraft::Raft<TypeConfig, crate::storage::StateStore>;

pub(crate) type AppendRequest = openraft::raft::AppendEntriesRequest<TypeConfig>;
pub(crate) type AppendResponse = openraft::raft::AppendEntriesResponse<TypeConfig>;
pub(crate) type VoteRequest = openraft::raft::VoteRequest<TypeConfig>;
pub(crate) type VoteResponse = openraft::raft::VoteResponse<TypeConfig>;
pub(crate) type TransferRequest = openraft::raft::TransferLeaderRequest<TypeConfig>;
pub(crate) type TransferResponse = openraft::raft::TransferLeaderResponse<TypeConfig>;
pub(crate) type SnapshotResponse = openraft::raft::SnapshotResponse<TypeConfig>;
