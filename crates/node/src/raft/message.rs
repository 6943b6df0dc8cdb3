//! What nodes say to each other, as values; [`tollgate_wire::codec`] puts them into bytes.
//!
//! Variants are append only: their position is on the wire. Next: [`super::inbound`], which answers them.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use tollgate_wire::codec;
use tollgate_wire::frame::Class;

use super::types::{
    AppendRequest, AppendResponse, SnapshotMeta, SnapshotResponse, TransferRequest,
    TransferResponse, Vote, VoteRequest, VoteResponse,
};

/// Largest of all payloads in which a call or an answer travels.
const BUDGET: usize = codec::budget(Class::Append.payload_max());

/// A question to a node.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Call {
    Append(AppendRequest),
    Vote(VoteRequest),
    PreVote(VoteRequest),
    TransferLeader(TransferRequest),
    /// To the leader: prove that you lead, now. The bytes are for its [`OnConfirm`](crate::consensus::OnConfirm).
    Confirm(ByteBuf),
    /// To the leader: propose these commands.
    Forward(Vec<ByteBuf>),
}

/// What a node answers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Append(AppendResponse),
    Vote(VoteResponse),
    TransferLeader(TransferResponse),
    /// The read index, and what the leader's hook said.
    Confirmed(u64, ByteBuf),
    /// One fate per command, in order.
    Forwarded(Vec<Fate>),
    /// The node could not do it; in words.
    Failed(String),
}

/// What became of one forwarded command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Fate {
    /// Applied, with this reply.
    Applied(ByteBuf),
    /// Certainly not taken.
    NotTaken(String),
    /// May have been or may yet be applied.
    Unknown(String),
}

/// First frame of a snapshot's stream; pieces of the file follow, then an empty frame.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SnapshotStart {
    pub(crate) vote: Vote,
    pub(crate) meta: SnapshotMeta,
    pub(crate) bytes: u64,
}

/// The answer at its end.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum SnapshotAnswer {
    Done(SnapshotResponse),
    Failed(String),
}

/// The bytes of a message. All of them have an encoding; a failure is a mistake in their types.
pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, String> {
    codec::encode(value).map_err(|error| error.to_string())
}

/// The message in some bytes of a peer.
pub(crate) fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    codec::decode::<T, BUDGET>(bytes).map_err(|error| error.to_string())
}
