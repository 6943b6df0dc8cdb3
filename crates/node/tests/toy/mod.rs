//! A small machine for storage and Raft tests: cells of bytes, a count of batches, an audit entry now and then.
//!
//! Owns no idea of units; see `tollgate_core::ledger` for the real one.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses a part of it"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, RwLock};

use openraft::storage::{RaftLogStorageExt, RaftStateMachine};
use openraft::{EntryPayload, StorageError};
use tollgate_node::raft::types::{Entry, LogId, TypeConfig};
use tollgate_node::storage::{
    Change, Identity, LogStore, Machine, Records, RestoreError, StateStore, Store, StoreConfig,
    StoreError,
};

/// Every so many batches leave an audit entry.
pub const AUDIT_EVERY: u64 = 5;
const COUNT: &[u8] = b"#count";

#[derive(Default, Clone, Debug, PartialEq, Eq)]
pub struct Toy {
    pub cells: BTreeMap<Vec<u8>, Vec<u8>>,
    dirty: BTreeSet<Vec<u8>>,
    audit: Vec<(u64, Vec<u8>)>,
    digest: u128,
}

fn hash(key: &[u8], value: &[u8]) -> u128 {
    let mut bytes = (key.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(key);
    bytes.extend_from_slice(value);
    xxhash_rust::xxh3::xxh3_128(&bytes)
}

impl Toy {
    pub fn shared() -> Arc<RwLock<Self>> {
        Arc::new(RwLock::new(Self::default()))
    }

    pub fn count(&self) -> u64 {
        self.cells.get(COUNT).map_or(0, |bytes| {
            u64::from_le_bytes(bytes.as_slice().try_into().unwrap())
        })
    }

    pub fn put(&mut self, key: &[u8], value: &[u8]) {
        if let Some(old) = self.cells.insert(key.to_vec(), value.to_vec()) {
            self.digest = self.digest.wrapping_sub(hash(key, &old));
        }
        self.digest = self.digest.wrapping_add(hash(key, value));
        self.dirty.insert(key.to_vec());
    }

    pub fn remove(&mut self, key: &[u8]) {
        if let Some(old) = self.cells.remove(key) {
            self.digest = self.digest.wrapping_sub(hash(key, &old));
            self.dirty.insert(key.to_vec());
        }
    }
}

/// A batch that writes one cell; an empty value removes it.
pub fn batch(key: &str, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![u8::try_from(key.len()).unwrap()];
    bytes.extend_from_slice(key.as_bytes());
    bytes.extend_from_slice(value);
    bytes
}

impl Machine for Toy {
    fn apply(&mut self, index: u64, batch: &[u8]) -> Vec<Vec<u8>> {
        let count = self.count() + 1;
        self.put(COUNT, &count.to_le_bytes());
        if let Some((&length, rest)) = batch.split_first()
            && let Some((key, value)) = rest.split_at_checked(length.into())
        {
            if value.is_empty() {
                self.remove(key);
            } else {
                self.put(key, value);
            }
        }
        if count.is_multiple_of(AUDIT_EVERY) {
            self.audit.push((
                count / AUDIT_EVERY,
                format!("{count} at {index}").into_bytes(),
            ));
        }
        vec![count.to_le_bytes().to_vec()]
    }

    fn digest(&self) -> u128 {
        self.digest
    }

    fn take_dirty(&mut self) -> Vec<Change> {
        let dirty = std::mem::take(&mut self.dirty);
        dirty
            .into_iter()
            .map(|key| {
                let value = self.cells.get(&key).cloned();
                (key, value)
            })
            .collect()
    }

    fn take_audit(&mut self) -> Vec<(u64, Vec<u8>)> {
        std::mem::take(&mut self.audit)
    }

    fn restore(&mut self, records: Records<'_>, digest: u128) -> Result<(), RestoreError> {
        let mut fresh = Self::default();
        for record in records {
            let (key, value) = record?;
            fresh.put(&key, &value);
        }
        if fresh.digest != digest {
            return Err(RestoreError::Digest {
                found: fresh.digest,
                expected: digest,
            });
        }
        fresh.dirty.clear();
        *self = fresh;
        Ok(())
    }
}

pub fn identity(node: u64) -> Identity {
    Identity {
        cluster: "test".into(),
        incarnation: 1,
        node,
    }
}

/// Opens a folder with a new toy in it.
pub fn open(dir: &Path, node: u64) -> Result<(Store, Arc<RwLock<Toy>>), StoreError> {
    let toy = Toy::shared();
    let mut config = StoreConfig::new(dir, identity(node));
    config.ballast_bytes = 0;
    // Often, so that crashes hit checkpoints too.
    config.checkpoint_interval = std::time::Duration::from_millis(5);
    let store = Store::open(&config, toy.clone())?;
    Ok((store, toy))
}

/// A normal entry of term 1 that writes one cell.
pub fn entry(index: u64, key: &str, value: &[u8]) -> Entry {
    entry_of(1, index, key, value)
}

/// A normal entry of some term.
pub fn entry_of(term: u64, index: u64, key: &str, value: &[u8]) -> Entry {
    Entry {
        log_id: log_id(term, index),
        payload: EntryPayload::Normal(batch(key, value).into()),
    }
}

pub fn log_id(term: u64, index: u64) -> LogId {
    LogId::new_term_index(term, index)
}

/// Appends and waits until it is acknowledged.
pub async fn append(
    log: &mut LogStore,
    entries: Vec<Entry>,
) -> Result<(), StorageError<TypeConfig>> {
    log.blocking_append(entries).await
}

/// Applies as openraft does, without anybody waiting for the replies.
pub async fn apply(state: &mut StateStore, entries: Vec<Entry>) -> std::io::Result<()> {
    state
        .apply(futures::stream::iter(
            entries.into_iter().map(|entry| Ok((entry, None))),
        ))
        .await
}

/// A toy behind Raft: each command of a batch is one of the toy's; `panic` is a bug in apply.
#[derive(Default)]
pub struct Replicated(pub Toy);

impl Machine for Replicated {
    fn apply(&mut self, index: u64, batch: &[u8]) -> Vec<Vec<u8>> {
        let mut room = Vec::new();
        let batch = tollgate_node::batch::Batch::unpack(batch, &mut room).unwrap();
        let commands = batch.commands.into_iter();
        commands
            .flat_map(|command| {
                assert!(**command != *b"panic", "a bug in apply");
                self.0.apply(index, command)
            })
            .collect()
    }

    fn digest(&self) -> u128 {
        self.0.digest()
    }

    fn take_dirty(&mut self) -> Vec<Change> {
        self.0.take_dirty()
    }

    fn take_audit(&mut self) -> Vec<(u64, Vec<u8>)> {
        self.0.take_audit()
    }

    fn restore(&mut self, records: Records<'_>, digest: u128) -> Result<(), RestoreError> {
        self.0.restore(records, digest)
    }
}
