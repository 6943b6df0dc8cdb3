//! Checkpoints: the changed records of the state and how far it was applied, as one atomic step.
//!
//! State lives in memory; the log covers what no checkpoint has. One batch of all changed records would be atomic,
//! but it locks the whole store, log included, for about 10 us a record. So the changes are first written packed
//! (`d` + checkpoint number + part), then the checkpoint record `c` names them, which is the step; then they are
//! spread over the records (`r` + generation + key) in small batches, and dropped. A start that finds changes named
//! by `c` spreads them again. Installing a snapshot writes a whole new generation and then flips `c`: a crash leaves
//! the old state or the new one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::fault::{Doing, StoreError};
use super::log::{entry_name, index_of};
use super::machine::{Change, Machine};
use super::record::{self, RECORD_BYTES_MAX};
use super::state::Applied;
use super::store::Shared;
use crate::raft::types::{LogId, StoredMembership};

/// Records written in one batch, and thus under one lock of the store: about a millisecond.
const SPREAD_SLICE: usize = 128;

/// Bytes of changes packed into one record; a larger change has one of its own.
const PACK_BYTES: usize = 48 * 1024;

/// Records removed in one go, of purged log or of a former generation.
const REMOVE_SLICE: usize = 1000;

/// For each second that a checkpoint took, so many pass before the next one begins: under load the same records
/// change again and again, and writing each of them every time took more of the processor than all commands did.
const PAUSE_FACTOR: u32 = 15;

/// Longest pause between two checkpoints, whatever the last one took: what a restart has to replay.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Key of the checkpoint record.
pub(crate) const KEY_CHECKPOINT: &[u8] = b"c";
const PREFIX_RECORD: u8 = b'r';
const PREFIX_CHANGES: u8 = b'd';

/// Changes as they are packed: key, and content or none when the record was removed.
type Packed = Vec<(ByteBuf, Option<ByteBuf>)>;

/// What the records in tree `state` amount to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    pub(crate) generation: u32,
    /// Counts checkpoints of this folder.
    pub(crate) number: u64,
    /// Packed changes that may not be spread over the records yet.
    pub(crate) parts: u32,
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

fn changes_key(number: u64, part: u32) -> Vec<u8> {
    let mut key = vec![PREFIX_CHANGES];
    key.extend_from_slice(&number.to_be_bytes());
    key.extend_from_slice(&part.to_be_bytes());
    key
}

/// Reads the checkpoint record; none in a new store.
fn read(state: &sled::Tree) -> Result<Option<Checkpoint>, StoreError> {
    let Some(value) = state.get(KEY_CHECKPOINT).doing("read from")? else {
        return Ok(None);
    };
    let name = || "the checkpoint record".to_owned();
    record::decode(record::unwrap(KEY_CHECKPOINT, &value, name)?, name).map(Some)
}

/// Writes the checkpoint record.
pub(crate) fn put(state: &sled::Tree, checkpoint: &Checkpoint) -> Result<(), StoreError> {
    let value = record::wrap(KEY_CHECKPOINT, &record::encode(checkpoint)?);
    state
        .insert(KEY_CHECKPOINT, value)
        .doing("write a checkpoint to")?;
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
    let mut next = Checkpoint {
        generation: gate.current.generation,
        number: gate.current.number + 1,
        parts: 0,
        applied: applied.last,
        membership: applied.membership,
        digest,
        audit_head: gate.current.audit_head,
    };
    // Before the step: a replay stores the same entries again, a checkpoint without them would lose them.
    for (sequence, content) in audit {
        put_audit(&shared.audit, sequence, &content)?;
        next.audit_head = next.audit_head.max(Some(sequence));
    }
    let packs = pack(dirty);
    for pack in &packs {
        let key = changes_key(next.number, next.parts);
        let value = record::wrap(&key, &record::encode(pack)?);
        shared
            .state
            .insert(key, value)
            .doing("write a checkpoint to")?;
        next.parts += 1;
    }
    put(&shared.state, &next)?;
    gate.current = next;
    for pack in &packs {
        spread(&shared.state, gate.current.generation, pack)?;
    }
    drop_changes(&shared.state, &mut gate.current)
}

/// Divides changes into records of bounded size.
fn pack(dirty: Vec<Change>) -> Vec<Packed> {
    let mut packs = Vec::new();
    let mut pack = Packed::new();
    let mut bytes = 0;
    for (key, content) in dirty {
        let size = key.len() + content.as_ref().map_or(0, Vec::len);
        if bytes + size > PACK_BYTES && !pack.is_empty() {
            packs.push(std::mem::take(&mut pack));
            bytes = 0;
        }
        bytes += size;
        pack.push((ByteBuf::from(key), content.map(ByteBuf::from)));
    }
    if !pack.is_empty() {
        packs.push(pack);
    }
    packs
}

/// Writes packed changes to their records; again changes nothing.
fn spread(state: &sled::Tree, generation: u32, pack: &Packed) -> Result<(), StoreError> {
    for slice in pack.chunks(SPREAD_SLICE) {
        let mut batch = sled::Batch::default();
        for (key, content) in slice {
            let full = state_key(generation, key);
            match content {
                Some(content) => batch.insert(full.as_slice(), wrap_state(&full, content)?),
                None => batch.remove(full),
            }
        }
        state.apply_batch(batch).doing("write a checkpoint to")?;
    }
    Ok(())
}

/// Notes that the packed changes are in their records, and removes them.
fn drop_changes(state: &sled::Tree, current: &mut Checkpoint) -> Result<(), StoreError> {
    if current.parts == 0 {
        return Ok(());
    }
    let spread = Checkpoint {
        parts: 0,
        ..current.clone()
    };
    put(state, &spread)?;
    for part in 0..current.parts {
        state
            .remove(changes_key(current.number, part))
            .doing("remove from")?;
    }
    *current = spread;
    Ok(())
}

/// Finishes a checkpoint that a crash cut short, and removes changes that no checkpoint names.
fn finish(state: &sled::Tree, current: &mut Checkpoint) -> Result<(), StoreError> {
    for part in 0..current.parts {
        let key = changes_key(current.number, part);
        let name = || {
            format!(
                "part {part} of the changes of checkpoint {}",
                current.number
            )
        };
        let value = state.get(&key).doing("read from")?;
        let value = value.ok_or_else(|| StoreError::damaged(name(), "nothing", "a record"))?;
        let pack: Packed = record::decode(record::unwrap(&key, &value, name)?, name)?;
        spread(state, current.generation, &pack)?;
    }
    drop_changes(state, current)?;
    for item in state.scan_prefix([PREFIX_CHANGES]) {
        let (key, _) = item.doing("read from")?;
        state.remove(key).doing("remove from")?;
    }
    Ok(())
}

/// Restores `machine` from tree `state` and checks it against the stored digest.
pub(crate) fn load(
    state: &sled::Tree,
    audit: &sled::Tree,
    machine: &mut dyn Machine,
) -> Result<Option<Checkpoint>, StoreError> {
    let Some(mut checkpoint) = read(state)? else {
        return match records(state, 0).next() {
            None => Ok(None),
            Some(_) => Err(StoreError::damaged(
                "tree state",
                "no checkpoint record",
                "one",
            )),
        };
    };
    finish(state, &mut checkpoint)?;
    machine
        .restore(
            &mut records(state, checkpoint.generation),
            checkpoint.digest,
        )
        .map_err(|source| StoreError::restore("the state in tree state".into(), source))?;
    if let Some(head) = checkpoint.audit_head {
        let key = head.to_be_bytes();
        let Some(value) = audit.get(key).doing("read from")? else {
            return Err(StoreError::damaged(audit_name(head), "nothing", "a record"));
        };
        record::unwrap(&key, &value, || audit_name(head))?;
    }
    Ok(Some(checkpoint))
}

/// How long the next checkpoint waits for its turn after one that took so long; never shorter than the interval,
/// which the caller sees to.
fn pause_after(took: Duration) -> Duration {
    took.saturating_mul(PAUSE_FACTOR).min(PAUSE_MAX)
}

/// The checkpointer's thread: until the store closes or a write fails. Looks up every `interval`; a checkpoint is
/// written then if the last one is long enough ago ([`pause_after`]), and always at the end.
pub(crate) fn run(
    shared: &Arc<Shared>,
    interval: Duration,
    wake: &crossbeam_channel::Receiver<()>,
) {
    let mut due = Instant::now();
    loop {
        let closing = match wake.recv_timeout(interval) {
            Ok(()) | Err(crossbeam_channel::RecvTimeoutError::Timeout) => false,
            Err(crossbeam_channel::RecvTimeoutError::Disconnected) => true,
        };
        let mut step = || -> Result<(), StoreError> {
            // While a snapshot holds the gate the tree is frozen; the log covers the state meanwhile.
            if let Ok(mut gate) = shared.gate.clone().try_lock_owned() {
                let began = Instant::now();
                if closing || began >= due {
                    write(shared, &mut gate)?;
                    due = began + pause_after(began.elapsed());
                }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_take_a_small_share_of_the_time_but_never_stay_away() {
        let ms = Duration::from_millis;
        assert_eq!(
            pause_after(ms(0)),
            ms(0),
            "an idle store keeps its interval"
        );
        assert_eq!(pause_after(ms(100)), ms(1500));
        assert_eq!(pause_after(ms(60_000)), PAUSE_MAX);
        assert_eq!(pause_after(Duration::MAX), PAUSE_MAX);
    }
}
