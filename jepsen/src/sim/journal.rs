//! The model disk of an edge's journal: what was appended, and how much of it is synced.

use super::rng::Rng;
use tollgate_core::ids::{Nonce, SessionId};
use tollgate_core::reporter::JournalRecord;

/// See the module's text.
#[derive(Clone, Debug, Default)]
pub(super) struct Journal {
    /// Synced before anything is sent under it.
    pub(super) session: Option<SessionId>,
    /// The last start number; synced before it is sent.
    pub(super) nonce: Nonce,
    pub(super) records: Vec<JournalRecord>,
    synced: usize,
}

impl Journal {
    pub(super) fn next_start(&mut self, drawn: u64) -> Nonce {
        self.nonce = self.nonce.next_start(drawn);
        self.nonce
    }

    pub(super) fn append(&mut self, record: JournalRecord) {
        self.records.push(record);
    }

    pub(super) fn sync(&mut self, records: usize) {
        self.synced = self.synced.max(records.min(self.records.len()));
    }

    /// A crash keeps what was synced and by chance some of what followed.
    pub(super) fn crash(&mut self, rng: &mut Rng) {
        let unsynced = self.records.len() - self.synced;
        let kept = self.synced + rng.index(unsynced + 1);
        self.records.truncate(kept);
        self.synced = kept;
    }

    /// The session is over: the next start begins another.
    pub(super) fn reset(&mut self) {
        self.session = None;
        self.records.clear();
        self.synced = 0;
    }
}
