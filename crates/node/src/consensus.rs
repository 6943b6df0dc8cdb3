//! What the node above Raft needs of it: a command becomes agreed on, a view is confirmed, who leads.
//!
//! The seam between [`crate::raft`], which knows nothing of units, and the issuer, the edge protocol and
//! administration, which know nothing of openraft. Bytes on this side are opaque to that one. Next:
//! [`Proposer`], which speaks commands and replies.

use futures::future::BoxFuture;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tollgate_core::command::{Command, Reply};
use tollgate_core::ids::NodeId;
use tollgate_wire::codec;

use crate::machine::COMMAND_BYTES_MAX;

/// How long a proposal is waited for before its fate counts as unknown.
pub const PROPOSE_DEADLINE: Duration = Duration::from_secs(3);

/// Where Raft stands, as this node knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Raft's term.
    pub term: u64,
    /// The leader of this term, once known.
    pub leader: Option<NodeId>,
    /// Whether this node is it.
    pub is_leader: bool,
    /// The voters of the newest membership known.
    pub voters: BTreeSet<NodeId>,
    /// Index of the last entry in the log.
    pub last_index: u64,
    /// Index of the last entry known to be agreed on.
    pub committed_index: u64,
}

/// Answer of the leader to a confirmation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confirmed {
    /// The view is current once this index is applied.
    pub read_index: u64,
    /// What [`OnConfirm`] said at the leader.
    pub answer: Vec<u8>,
}

/// Why a command has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// It was certainly not taken: no leader is known, or it could not be reached. Safe to repeat.
    #[error("the command was not taken: {0}; send it again")]
    NotTaken(String),
    /// It may have been applied or may yet be: only what is safe to repeat may be repeated.
    #[error("the fate of the command is unknown: {0}; it is safe to send it again")]
    UnknownFate(String),
    /// It is too large for a log entry.
    #[error("the command has {found} bytes, expected at most {limit}: divide it")]
    TooLarge {
        /// Bytes of the command.
        found: usize,
        /// The bound.
        limit: usize,
    },
    /// The node stops.
    #[error("the node is stopping: ask another")]
    Stopped,
}

/// Why a view could not be confirmed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the view is not confirmed: {0}")]
pub struct ConfirmError(pub String);

/// What the leader does when a node asks it to confirm: takes the question in and answers.
pub type OnConfirm = Arc<dyn Fn(NodeId, &[u8]) -> Vec<u8> + Send + Sync>;

/// Raft, as the rest of the node sees it.
pub trait Consensus: Send + Sync + 'static {
    /// Has a command agreed on and applied, wherever the leader is; answers its encoded reply, within
    /// [`PROPOSE_DEADLINE`]. Commands of one caller that are proposed one after another keep their order.
    fn propose(&self, command: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, ProposeError>>;

    /// A ReadIndex at the leader: it proves its leadership *after* the question came. The question also goes
    /// to its [`OnConfirm`].
    fn confirm(&self, question: Vec<u8>) -> BoxFuture<'_, Result<Confirmed, ConfirmError>>;

    /// Follows where Raft stands.
    fn standing(&self) -> watch::Receiver<Standing>;

    /// Follows the index of the last entry applied here.
    fn applied(&self) -> watch::Receiver<Option<u64>>;
}

/// Proposes commands and reads their replies. Clones share the way to the log.
#[derive(Clone)]
pub struct Proposer {
    consensus: Arc<dyn Consensus>,
}

const REPLY_BUDGET: usize = codec::budget(4 * COMMAND_BYTES_MAX);

impl Proposer {
    /// Proposes through `consensus`.
    #[must_use]
    pub fn new(consensus: Arc<dyn Consensus>) -> Self {
        Self { consensus }
    }

    /// Proposes one command; answered within [`PROPOSE_DEADLINE`], which is kept below: a timer for each command
    /// was a twentieth of the processor time of a commit.
    ///
    /// # Errors
    /// [`ProposeError`].
    pub async fn propose(&self, command: &Command) -> Result<Reply, ProposeError> {
        let bytes =
            codec::encode(command).map_err(|error| ProposeError::NotTaken(error.to_string()))?;
        if bytes.len() > COMMAND_BYTES_MAX {
            return Err(ProposeError::TooLarge {
                found: bytes.len(),
                limit: COMMAND_BYTES_MAX,
            });
        }
        let answered = self.consensus.propose(bytes).await?;
        codec::decode::<Reply, REPLY_BUDGET>(&answered)
            .map_err(|error| ProposeError::UnknownFate(format!("its reply is unreadable: {error}")))
    }
}
