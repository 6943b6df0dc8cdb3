//! openraft's log on sled: entries, vote, and how far the log was purged and committed.
//!
//! Tree `log` holds one record per index (u64 big-endian). Entries are written one by one, never as a batch: all
//! trees share one log file, so what survives a crash is a prefix and no hole can come of it, while a batch would
//! lock the whole store and cost a second write. Refuses entries out of order. Next: [`super::flusher`].

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};

use super::fault::{Doing, StoreError};
use super::flusher::{Change, Waiter};
use super::mark::{Promise, Tail};
use super::record::{self, RECORD_BYTES_MAX};
use super::store::Shared;
use crate::raft::types::{Entry, LogId, TypeConfig, Vote};

/// Bytes of entries handed out at once for replication or for applying; one entry always fits.
pub const READ_BYTES_MAX: usize = 1 << 20;

/// Keys removed from the end of the log in one atomic step.
const TRUNCATE_SLICE: u64 = 256;

pub(crate) const KEY_VOTE: &[u8] = b"vote";
pub(crate) const KEY_PURGED: &[u8] = b"purged";
pub(crate) const KEY_COMMITTED: &[u8] = b"committed";

/// Where the log begins and ends, in memory; sled has the same.
#[derive(Debug, Default)]
pub(crate) struct Bounds {
    pub(crate) purged: Option<LogId>,
    /// The newest entry, or the purged one when the log is empty.
    pub(crate) last: Option<LogId>,
    pub(crate) vote: Option<Vote>,
    pub(crate) committed: Option<LogId>,
    /// Where an empty log began to be filled; openraft begins at 0, its test suite anywhere.
    pub(crate) began_at: u64,
}

impl Bounds {
    fn first_index(&self) -> u64 {
        self.purged.map_or(0, |id| id.index + 1).max(self.began_at)
    }

    fn next_index(&self) -> u64 {
        self.last.map_or(0, |id| id.index + 1)
    }
}

/// The name of an entry's record, for the operator.
pub(crate) fn entry_name(index: u64) -> String {
    format!("log record {index}")
}

/// Writes one record of tree `meta`.
pub(crate) fn put_meta<T: serde::Serialize>(
    meta: &sled::Tree,
    key: &[u8],
    value: &T,
) -> Result<(), StoreError> {
    meta.insert(key, record::wrap(key, &record::encode(value)?))
        .doing("write to")?;
    Ok(())
}

/// Reads one record of tree `meta`.
pub(crate) fn get_meta<T: serde::de::DeserializeOwned>(
    meta: &sled::Tree,
    key: &[u8],
) -> Result<Option<T>, StoreError> {
    let Some(value) = meta.get(key).doing("read from")? else {
        return Ok(None);
    };
    let name = || format!("meta record \"{}\"", String::from_utf8_lossy(key));
    record::decode(record::unwrap(key, &value, name)?, name).map(Some)
}

/// Reads the log from end to end and holds it against the mark.
///
/// Contiguous from the purged index on, every record intact, the marked entry there and the same. What lies beyond
/// a gap *behind* the mark was never acknowledged and is cut off.
pub(crate) fn check(
    log: &sled::Tree,
    purged: Option<LogId>,
    promise: Promise,
) -> Result<Option<LogId>, StoreError> {
    let first = purged.map_or(0, |id| id.index + 1);
    let marked = promise.tail.filter(|tail| tail.index >= first);
    let mut last = purged;
    let mut next = first;
    for item in log.range(first.to_be_bytes()..) {
        let (key, value) = item.doing("read from")?;
        let index = index_of(&key)?;
        if index != next {
            if marked.is_none_or(|tail| tail.index < next) {
                tracing::warn!(
                    next,
                    index,
                    "entries behind a gap were never acknowledged: cut off"
                );
                break;
            }
            return Err(StoreError::damaged(
                "the log",
                format!("record {index} after record {}", next.wrapping_sub(1)),
                format!("record {next}"),
            ));
        }
        let body = record::unwrap(&key, &value, || entry_name(index))?;
        let (id, _) = record::log_id_of(body, || entry_name(index))?;
        if id.index != index || last.is_some_and(|last| id < last) {
            return Err(StoreError::damaged(
                entry_name(index),
                format!("entry {id}"),
                format!("an entry of index {index} after {last:?}"),
            ));
        }
        if let Some(tail) = marked.filter(|tail| tail.index == index) {
            let found = Tail::of(index, &value);
            if found != tail {
                return Err(StoreError::damaged(
                    entry_name(index),
                    format!("content with hash {:016x}", found.hash),
                    format!("{:016x} as the mark says", tail.hash),
                ));
            }
        }
        last = Some(id);
        next += 1;
    }
    if let Some(tail) = marked.filter(|tail| tail.index >= next) {
        return Err(StoreError::damaged(
            "the log",
            format!("an end after {} records, before index {next}", next - first),
            format!("record {}, which was acknowledged", tail.index),
        ));
    }
    Ok(last)
}

/// The index in a key of tree `log`.
pub(crate) fn index_of(key: &[u8]) -> Result<u64, StoreError> {
    <[u8; 8]>::try_from(key)
        .map(u64::from_be_bytes)
        .map_err(|_| {
            StoreError::damaged(
                "a key of the log",
                format!("{} bytes", key.len()),
                "8 bytes",
            )
        })
}

/// The log half of a store, for openraft. Cloning copies a pointer.
#[derive(Clone)]
pub struct LogStore {
    pub(crate) shared: Arc<Shared>,
}

impl LogStore {
    fn read(&self, index: u64) -> Result<Option<(sled::IVec, Entry)>, StoreError> {
        let key = index.to_be_bytes();
        let Some(value) = self.shared.log.get(key).doing("read from")? else {
            return Ok(None);
        };
        let name = || entry_name(index);
        let entry = record::decode_entry(record::unwrap(&key, &value, name)?, name)?;
        Ok(Some((value, entry)))
    }

    fn missing(index: u64) -> StoreError {
        StoreError::damaged(entry_name(index), "nothing", "a record")
    }

    /// Entries of `start..end` that the log holds, at most `bytes` of them, at least one if there is one.
    fn read_range(&self, start: u64, end: u64, bytes: usize) -> Result<Vec<Entry>, StoreError> {
        let (start, end) = {
            let bounds = self.shared.bounds();
            (
                start.max(bounds.first_index()),
                end.min(bounds.next_index()),
            )
        };
        let mut entries = Vec::new();
        let mut taken = 0;
        for index in start..end {
            let recent = self.shared.recent().get(index);
            let found = match recent {
                Some(found) => Some(found),
                None => self.read(index)?.map(|(value, entry)| (entry, value.len())),
            };
            let Some((entry, size)) = found else {
                // Purged or truncated meanwhile, or really gone: the bounds tell.
                let bounds = self.shared.bounds();
                if index < bounds.first_index() || index >= bounds.next_index() {
                    break;
                }
                return Err(Self::missing(index));
            };
            taken += size;
            if taken > bytes && !entries.is_empty() {
                break;
            }
            entries.push(entry);
        }
        Ok(entries)
    }

    fn write(&self, entry: Entry) -> Result<Tail, StoreError> {
        let index = entry.log_id.index;
        let expected = {
            let bounds = self.shared.bounds();
            bounds.last.map(|_| bounds.next_index())
        };
        if expected.is_some_and(|expected| expected != index) {
            return Err(StoreError::damaged(
                "an append",
                format!("entry {}", entry.log_id),
                format!("index {expected:?}"),
            ));
        }
        let key = index.to_be_bytes();
        let value = record::wrap(&key, &record::encode_entry(&entry)?);
        if value.len() > RECORD_BYTES_MAX {
            let (bytes, limit) = (value.len(), RECORD_BYTES_MAX);
            return Err(StoreError::TooLarge {
                what: entry_name(index),
                bytes,
                limit,
            });
        }
        let tail = Tail::of(index, &value);
        let size = value.len();
        self.shared
            .appended_bytes
            .fetch_add(size as u64, Ordering::Relaxed);
        self.shared.log.insert(key, value).doing("write to")?;
        let mut bounds = self.shared.bounds();
        if bounds.last.is_none() {
            bounds.began_at = index;
        }
        bounds.last = Some(entry.log_id);
        drop(bounds);
        self.shared.recent().push(entry, size);
        Ok(tail)
    }

    async fn cut_after(&self, keep: Option<LogId>) -> Result<(), StoreError> {
        let (first, next) = {
            let bounds = self.shared.bounds();
            (bounds.first_index(), bounds.next_index())
        };
        let from = keep.map_or(0, |id| id.index + 1).max(first);
        if from >= next {
            return Ok(());
        }
        let tail = match from.checked_sub(1).filter(|index| *index >= first) {
            Some(index) => {
                let (value, _) = self.read(index)?.ok_or_else(|| Self::missing(index))?;
                Some(Tail::of(index, &value))
            }
            None => None,
        };
        // The mark first: if the entries were gone before it knew, the next start would miss them.
        self.shared
            .flusher
            .sync(Change::Tail(tail))
            .await
            .map_err(|error| StoreError::Stopped {
                words: format!("cannot lower the mark: {error}"),
            })?;
        {
            let mut bounds = self.shared.bounds();
            bounds.last = match from.checked_sub(1).filter(|index| *index >= first) {
                Some(_) => keep,
                None => bounds.purged,
            };
        }
        self.shared.recent().cut_from(from);
        // From the end backward, so that a crash between two slices leaves no hole.
        let mut end = next;
        while end > from {
            let start = end.saturating_sub(TRUNCATE_SLICE).max(from);
            let mut batch = sled::Batch::default();
            for index in start..end {
                batch.remove(&index.to_be_bytes());
            }
            self.shared
                .log
                .apply_batch(batch)
                .doing("truncate the log of")?;
            end = start;
        }
        Ok(())
    }
}

fn resolve<RB: RangeBounds<u64>>(range: &RB) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(index) => *index,
        Bound::Excluded(index) => index.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(index) => index.saturating_add(1),
        Bound::Excluded(index) => *index,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let (start, end) = resolve(&range);
        Ok(self.read_range(start, end, usize::MAX)?)
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, io::Error> {
        Ok(self.read_range(start, end, READ_BYTES_MAX)?)
    }

    /// Reads ahead of the state machine by at most [`READ_BYTES_MAX`], however long the range is.
    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl futures::Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = resolve(&range);
        let store = self.clone();
        let ahead = std::collections::VecDeque::<Entry>::new();
        futures::stream::try_unfold((store, ahead, start), move |(store, mut ahead, next)| {
            let read = if ahead.is_empty() && next < end {
                store.read_range(next, end, READ_BYTES_MAX)
            } else {
                Ok(Vec::new())
            };
            let step = read.map_err(io::Error::from).map(|entries| {
                ahead.extend(entries);
                ahead.pop_front().map(|entry| {
                    let next = entry.log_id.index + 1;
                    (entry, (store, ahead, next))
                })
            });
            std::future::ready(step)
        })
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.shared.bounds().vote)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let bounds = self.shared.bounds();
        Ok(LogState {
            last_purged_log_id: bounds.purged,
            last_log_id: bounds.last,
        })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        put_meta(&self.shared.meta, KEY_VOTE, vote)?;
        self.shared.flusher.sync(Change::Vote(*vote)).await?;
        self.shared.bounds().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        // Not synced: after a crash an older one is as good, the leader tells the rest.
        put_meta(&self.shared.meta, KEY_COMMITTED, &committed)?;
        self.shared.bounds().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        let bounds = self.shared.bounds();
        // It may name what a snapshot was to bring, which a crash prevented.
        Ok(bounds
            .committed
            .filter(|committed| Some(*committed) <= bounds.last))
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: IOFlushed<TypeConfig>,
    ) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut change = Change::None;
        for entry in entries {
            change = Change::Tail(Some(self.write(entry)?));
        }
        self.shared.flusher.submit(change, Waiter::Append(callback));
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        Ok(self.cut_after(last_log_id).await?)
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        let covered = self.shared.covered.load(Ordering::Acquire);
        if log_id.index >= covered {
            return Err(StoreError::damaged(
                "a purge",
                format!("a request to purge up to {log_id}"),
                format!(
                    "at most what a durable snapshot or checkpoint covers, below index {covered}"
                ),
            )
            .into());
        }
        // The marker alone decides; the records behind it are removed in slices by the checkpointer.
        put_meta(&self.shared.meta, KEY_PURGED, &log_id)?;
        {
            let mut bounds = self.shared.bounds();
            bounds.purged = Some(log_id);
            bounds.last = bounds.last.max(Some(log_id));
        }
        self.shared.wake_checkpointer();
        Ok(())
    }
}
