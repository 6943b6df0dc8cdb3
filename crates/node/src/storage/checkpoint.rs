//! Checkpoints: the changed records of the state and how far it was applied, in one atomic batch.
//!
//! State lives in memory; the log covers what no checkpoint has. A batch locks the whole store while it is written
//! (about 10 us a record), so one is due every interval *or* as soon as [`DIRTY_SOON_BYTES`] were applied.
//! Tree `state` holds `r` + generation + key for records and `c` for the checkpoint itself: installing a snapshot
//! writes a whole new generation and then flips `c`, so a crash leaves the old state or the new one.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::fault::{Doing, StoreError};
use super::log::{entry_name, index_of};
use super::machine::Machine;
use super::record::{self, RECORD_BYTES_MAX};
use super::state::Applied;
use super::store::Shared;
use crate::raft::types::{LogId, StoredMembership};

/// Bytes of applied batches after which a checkpoint does not wait for its interval: a few thousand commands.
pub const DIRTY_SOON_BYTES: u64 = 256 * 1024;

/// Records removed in one go, of purged log or of a former generation.
const REMOVE_SLICE: usize = 1000;

/// Key of the checkpoint record.
pub(crate) const KEY_CHECKPOINT: &[u8] = b"c";
const PREFIX_RECORD: u8 = b'r';

/// What the records in tree `state` amount to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    pub(crate) generation: u32,
    pub(crate) applied: Option<LogId>,
    pub(crate) membership: StoredMembership,
    pub(crate) digest: u128,
    /// Number of the newest audit entry stored before this checkpoint.
    pub(crate) audit_head: Option<u64>,
}

/// The checkpointer's own state, and the right to change tree `state`: whoever holds it freezes the tree.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    /// The checkpoint that tree `state` holds.
    pub(crate) current: Checkpoint,
    /// Records of other generations may still be there.
    pub(crate) leftovers: bool,
}

/// The key in tree `state` of a record.
pub(crate) fn state_key(generation: u32, key: &[u8]) -> Vec<u8> {
    let mut full = Vec::with_capacity(5 + key.len());
    full.push(PREFIX_RECORD);
    full.extend_from_slice(&generation.to_be_bytes());
    full.extend_from_slice(key);
    full
}

/// The name of a state record, for the operator.
pub(crate) fn state_name(key: &[u8]) -> String {
    format!("state record {}", key.escape_ascii())
}

/// The name of an audit record, for the operator.
pub(crate) fn audit_name(sequence: u64) -> String {
    format!("audit record {sequence}")
}

/// A state record in its envelope.
pub(crate) fn wrap_state(full_key: &[u8], content: &[u8]) -> Result<Vec<u8>, StoreError> {
    let value = record::wrap(full_key, content);
    if full_key.len() + value.len() > RECORD_BYTES_MAX + 64 {
        let (bytes, limit) = (full_key.len() + value.len(), RECORD_BYTES_MAX);
        return Err(StoreError::TooLarge {
            what: state_name(&full_key[5..]),
            bytes,
            limit,
        });
    }
    Ok(value)
}

/// Stores one audit entry; storing it again changes nothing.
pub(crate) fn put_audit(
    audit: &sled::Tree,
    sequence: u64,
    content: &[u8],
) -> Result<(), StoreError> {
    let key = sequence.to_be_bytes();
    audit
        .insert(key, record::wrap(&key, content))
        .doing("write to")?;
    Ok(())
}

/// The records of one generation, in order of their keys.
pub(crate) fn records(
    state: &sled::Tree,
    generation: u32,
) -> impl Iterator<Item = Result<(Vec<u8>, Vec<u8>), StoreError>> {
    state.scan_prefix(state_key(generation, b"")).map(|item| {
        let (full, value) = item.doing("read from")?;
        let key = full[5..].to_vec();
        let content = record::unwrap(&full, &value, || state_name(&full[5..]))?.to_vec();
        Ok((key, content))
    })
}

/// Reads the checkpoint record; none in a new store.
pub(crate) fn read(state: &sled::Tree) -> Result<Option<Checkpoint>, StoreError> {
    let Some(value) = state.get(KEY_CHECKPOINT).doing("read from")? else {
        return Ok(None);
    };
    let name = || "the checkpoint record".to_owned();
    record::decode(record::unwrap(KEY_CHECKPOINT, &value, name)?, name).map(Some)
}

/// Puts the checkpoint record into a batch.
pub(crate) fn put_into(batch: &mut sled::Batch, checkpoint: &Checkpoint) -> Result<(), StoreError> {
    batch.insert(
        KEY_CHECKPOINT,
        record::wrap(KEY_CHECKPOINT, &record::encode(checkpoint)?),
    );
    Ok(())
}

/// Writes what changed since the last checkpoint; nothing when nothing was applied. Not synced: the next sync
/// of the log covers it, and until then the log covers the state.
pub(crate) fn write(shared: &Shared, gate: &mut Gate) -> Result<(), StoreError> {
    let (dirty, audit, applied, digest) = {
        let mut machine = shared.machine_mut()?;
        let applied: Applied = shared.applied().clone();
        if applied.last == gate.current.applied {
            return Ok(());
        }
        (
            machine.take_dirty(),
            machine.take_audit(),
            applied,
            machine.digest(),
        )
    };
    shared.bytes_since_checkpoint.store(0, Ordering::Relaxed);
    let mut checkpoint = Checkpoint {
        generation: gate.current.generation,
        applied: applied.last,
        membership: applied.membership,
        digest,
        audit_head: gate.current.audit_head,
    };
    // Before the batch: a replay stores the same entries again, a checkpoint without them would lose them.
    for (sequence, content) in audit {
        put_audit(&shared.audit, sequence, &content)?;
        checkpoint.audit_head = checkpoint.audit_head.max(Some(sequence));
    }
    let mut batch = sled::Batch::default();
    for (key, content) in dirty {
        let full = state_key(checkpoint.generation, &key);
        match content {
            Some(content) => batch.insert(full.as_slice(), wrap_state(&full, &content)?),
            None => batch.remove(full),
        }
    }
    put_into(&mut batch, &checkpoint)?;
    shared
        .state
        .apply_batch(batch)
        .doing("write a checkpoint to")?;
    gate.current = checkpoint;
    Ok(())
}

/// Restores `machine` from tree `state` and checks it against the stored digest.
pub(crate) fn load(
    state: &sled::Tree,
    audit: &sled::Tree,
    machine: &mut dyn Machine,
) -> Result<Option<Checkpoint>, StoreError> {
    let Some(checkpoint) = read(state)? else {
        return match records(state, 0).next() {
            None => Ok(None),
            Some(_) => Err(StoreError::damaged(
                "tree state",
                "no checkpoint record",
                "one",
            )),
        };
    };
    machine
        .restore(
            &mut records(state, checkpoint.generation),
            checkpoint.digest,
        )
        .map_err(|source| StoreError::Restore {
            what: "tree state".into(),
            source: Box::new(source),
        })?;
    if let Some(head) = checkpoint.audit_head {
        let key = head.to_be_bytes();
        let Some(value) = audit.get(key).doing("read from")? else {
            return Err(StoreError::damaged(audit_name(head), "nothing", "a record"));
        };
        record::unwrap(&key, &value, || audit_name(head))?;
    }
    Ok(Some(checkpoint))
}

/// The checkpointer's thread: until the store closes or a write fails.
pub(crate) fn run(
    shared: &Arc<Shared>,
    interval: Duration,
    wake: &crossbeam_channel::Receiver<()>,
) {
    loop {
        let closing = match wake.recv_timeout(interval) {
            Ok(()) | Err(crossbeam_channel::RecvTimeoutError::Timeout) => false,
            Err(crossbeam_channel::RecvTimeoutError::Disconnected) => true,
        };
        let step = || -> Result<(), StoreError> {
            // While a snapshot holds the gate the tree is frozen; the log covers the state meanwhile.
            if let Ok(mut gate) = shared.gate.clone().try_lock_owned() {
                write(shared, &mut gate)?;
                if gate.leftovers {
                    gate.leftovers = remove_leftovers(shared, gate.current.generation)?;
                }
            }
            remove_purged(shared)
        };
        if let Err(error) = step() {
            tracing::error!(%error, "a checkpoint failed, the store stops");
            shared.fail(&error);
            return;
        }
        if closing {
            return;
        }
    }
}

/// Removes a slice of the records of other generations; says whether there may be more.
fn remove_leftovers(shared: &Shared, generation: u32) -> Result<bool, StoreError> {
    let below = shared
        .state
        .range(vec![PREFIX_RECORD]..state_key(generation, b""));
    let next = state_key(generation.saturating_add(1), b"");
    let above = shared.state.range(next..vec![PREFIX_RECORD + 1]);
    let mut removed = 0;
    for item in below.chain(above).take(REMOVE_SLICE) {
        let (key, _) = item.doing("read from")?;
        shared.state.remove(&key).doing("remove from")?;
        removed += 1;
    }
    Ok(removed == REMOVE_SLICE)
}

/// Removes a slice of the log's records behind the purged marker.
fn remove_purged(shared: &Shared) -> Result<(), StoreError> {
    let Some(purged) = shared.bounds().purged else {
        return Ok(());
    };
    for item in shared
        .log
        .range(..=purged.index.to_be_bytes())
        .take(REMOVE_SLICE)
    {
        let (key, _) = item.doing("read from")?;
        let index = index_of(&key)?;
        shared
            .log
            .remove(&key)
            .doing("purge the log of")
            .map_err(|error| {
                tracing::error!(record = entry_name(index), %error, "cannot purge");
                error
            })?;
    }
    Ok(())
}
