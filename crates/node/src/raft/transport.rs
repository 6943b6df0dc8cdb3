//! How a call reaches another node: a seam, so that tests can cut links, and everything above knows no QUIC.
//!
//! A call is opaque bytes of one class with one answer. The error says whether the call may have been carried out.

use std::time::Duration;

use futures::future::BoxFuture;
use tollgate_wire::frame::Class;

use crate::storage::SnapshotFile;

/// A node to be called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its id.
    pub node: u64,
    /// `host:port` of its QUIC listener.
    pub address: String,
}

/// Why a call has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// It was certainly not sent.
    #[error("the node is not reachable: {0}")]
    Unreachable(String),
    /// The stream broke after it was sent: it may have been carried out.
    #[error("the connection broke before the answer: {0}")]
    Broken(String),
    /// No answer in time: it may have been carried out.
    #[error("no answer within {0:?}")]
    Deadline(Duration),
}

/// The way to other nodes.
pub trait Transport: Send + Sync + 'static {
    /// Calls a node and waits for its answer, at most `deadline`. Calls of one class to one node leave in the order
    /// in which this function was called, even before the future is polled.
    fn call(
        &self,
        to: &Peer,
        class: Class,
        payload: Vec<u8>,
        deadline: Duration,
    ) -> BoxFuture<'static, Result<Vec<u8>, CallError>>;

    /// Sends a snapshot: `start` first, then the file, and waits for the answer, at most `deadline`.
    fn send_snapshot(
        &self,
        to: &Peer,
        start: Vec<u8>,
        file: SnapshotFile,
        deadline: Duration,
    ) -> BoxFuture<'static, Result<Vec<u8>, CallError>>;
}
