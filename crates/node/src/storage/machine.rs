//! What the log drives: the state machine as storage sees it.
//!
//! Opaque on purpose: storage keeps records and never knows what they mean, so `tollgate_core`'s ledger and the
//! toy of the tests are stored alike. Next: [`super::state`], which feeds it and writes its records.

use super::fault::StoreError;

/// One record of the state: its key, and its content or `None` when it was removed.
pub type Change = (Vec<u8>, Option<Vec<u8>>);

/// All records of a state, one after another, as they are read from disk.
pub type Records<'a> = &'a mut dyn Iterator<Item = Result<(Vec<u8>, Vec<u8>), StoreError>>;

/// Why records make no state.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// A record could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A record is none of this machine's.
    #[error("a record of the state is unreadable: {0}")]
    Record(String),
    /// The records are of a later version of the machine: it would go on by another meaning.
    #[error("the state has version {found}, this build knows versions up to {known}")]
    Newer {
        /// The records' version.
        found: u32,
        /// The latest that this machine knows.
        known: u32,
    },
    /// Records are missing, doubled or changed.
    #[error("the records add up to digest {found:032x}, expected {expected:032x}")]
    Digest {
        /// Digest of what was read.
        found: u128,
        /// Digest stored beside it.
        expected: u128,
    },
}

/// A replicated state machine. The digest must be a function of the records alone: a machine restored from
/// all records of another one has its digest.
///
/// A record is at most [`RECORD_BYTES_MAX`](super::record::RECORD_BYTES_MAX) bytes, key and content together.
pub trait Machine: Send + Sync + 'static {
    /// Applies one batch and answers the encoded replies, in the order of its commands. Total and deterministic: a refusal is a reply; the same
    /// batches at the same indexes give the same state everywhere.
    fn apply(&mut self, index: u64, batch: &[u8]) -> Vec<Vec<u8>>;

    /// As [`Machine::apply`], on a node where nobody waits for the replies.
    fn apply_unanswered(&mut self, index: u64, batch: &[u8]) {
        drop(self.apply(index, batch));
    }

    /// Digest of the state after the last apply. Cheap: it is read at every checkpoint.
    fn digest(&self) -> u128;

    /// The records changed since the last call, each once, with what they are now.
    fn take_dirty(&mut self) -> Vec<Change>;

    /// The audit entries produced since the last call: number, content. A replay produces them again, alike.
    fn take_audit(&mut self) -> Vec<(u64, Vec<u8>)>;

    /// Replaces the whole state. Nothing of it is dirty afterwards.
    ///
    /// * `digest`: what the state must come to.
    ///
    /// # Errors
    /// [`RestoreError`]; the state is then what it was.
    fn restore(&mut self, records: Records<'_>, digest: u128) -> Result<(), RestoreError>;
}
