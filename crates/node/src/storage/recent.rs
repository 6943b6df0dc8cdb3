//! [`Recent`]: the newest entries of the log, as they were appended.
//!
//! An entry is read again at once by whoever replicates and applies it: from here without the store, its checksum, a
//! decoding and a copy. A cache only: whatever is not here is read from sled, and what is cut off the log is cut off
//! here, before anything is appended in its place. Next: [`super::log`].

use std::collections::VecDeque;

use crate::raft::types::Entry;

/// Bytes of records kept: several rounds of the proposer.
pub(crate) const RECENT_BYTES_MAX: usize = 4 << 20;

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    /// Of consecutive indexes, each with the bytes of its record.
    entries: VecDeque<(Entry, usize)>,
    bytes: usize,
}

impl Recent {
    /// The entry was appended; `bytes` is its record's size.
    pub(crate) fn push(&mut self, entry: Entry, bytes: usize) {
        let newest = self.entries.back().map(|(newest, _)| newest.log_id.index);
        if newest.is_some_and(|newest| newest.checked_add(1) != Some(entry.log_id.index)) {
            // The log began anew elsewhere: a snapshot was installed.
            *self = Self::default();
        }
        self.entries.push_back((entry, bytes));
        self.bytes += bytes;
        while self.bytes > RECENT_BYTES_MAX
            && let Some((_, bytes)) = self.entries.pop_front()
        {
            self.bytes -= bytes;
        }
    }

    /// The entry of an index, and its record's size.
    pub(crate) fn get(&self, index: u64) -> Option<(Entry, usize)> {
        let oldest = self.entries.front()?.0.log_id.index;
        let place = usize::try_from(index.checked_sub(oldest)?).ok()?;
        self.entries.get(place).cloned()
    }

    /// The log was cut: entries from this index on are gone.
    pub(crate) fn cut_from(&mut self, index: u64) {
        while self
            .entries
            .back()
            .is_some_and(|(newest, _)| newest.log_id.index >= index)
            && let Some((_, bytes)) = self.entries.pop_back()
        {
            self.bytes -= bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::types::LogId;
    use openraft::EntryPayload;
    use openraft::impls::leader_id_std::LeaderId;
    use openraft::vote::RaftLeaderId;

    fn entry(term: u64, index: u64) -> Entry {
        let log_id = LogId::new(LeaderId::new(term, 1).to_committed(), index);
        Entry {
            log_id,
            payload: EntryPayload::Blank,
        }
    }

    fn found(recent: &Recent, index: u64) -> Option<LogId> {
        recent.get(index).map(|(entry, _)| entry.log_id)
    }

    #[test]
    fn what_was_appended_is_found_until_it_is_cut_off() {
        let mut recent = Recent::default();
        assert_eq!(found(&recent, 0), None);
        (5..9).for_each(|index| recent.push(entry(1, index), 10));
        assert_eq!(found(&recent, 4), None);
        assert_eq!(found(&recent, 5), Some(entry(1, 5).log_id));
        assert_eq!(found(&recent, 9), None);
        recent.cut_from(7);
        assert_eq!(found(&recent, 7), None);
        recent.push(entry(2, 7), 10);
        assert_eq!(found(&recent, 7), Some(entry(2, 7).log_id));
        assert_eq!(recent.bytes, 30);
        recent.push(entry(2, 40), 10);
        assert_eq!(found(&recent, 7), None, "of a log that began before");
        assert_eq!(found(&recent, 40), Some(entry(2, 40).log_id));
        recent.cut_from(0);
        assert_eq!((recent.entries.len(), recent.bytes), (0, 0));
    }

    #[test]
    fn the_oldest_make_room() {
        let mut recent = Recent::default();
        let most = RECENT_BYTES_MAX / 1000;
        for index in 0..3 * most as u64 {
            recent.push(entry(1, index), 1000);
            assert!(recent.bytes <= RECENT_BYTES_MAX);
        }
        assert_eq!(recent.entries.len(), most);
        assert_eq!(found(&recent, 0), None);
        recent.push(entry(1, 3 * most as u64), RECENT_BYTES_MAX + 1);
        assert_eq!((recent.entries.len(), recent.bytes), (0, 0));
    }
}
