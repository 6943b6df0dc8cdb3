//! openraft's state machine over a [`Machine`](super::Machine): apply in memory, snapshots as files.
//!
//! The machine lives behind a lock that the rest of the node reads through its own handle; only this module writes
//! to it. Refuses snapshots of another cluster. Next: [`super::checkpoint`] and [`super::snapshot`].

use std::io;
use std::sync::Arc;

use futures::{Stream, TryStreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use tokio::sync::{OwnedMutexGuard, watch};

use super::checkpoint::{self, Gate};
use super::fault::{Doing, StoreError};
use super::flusher::Change;
use super::snapshot::{self, SnapshotFile};
use super::store::Shared;
use crate::raft::types::{
    Entry, LogId, Replies, Snapshot, SnapshotMeta, StoredMembership, TypeConfig,
};

/// How far the state in memory was applied.
#[derive(Clone, Debug, Default)]
pub(crate) struct Applied {
    pub(crate) last: Option<LogId>,
    pub(crate) membership: StoredMembership,
}

/// The state half of a store, for openraft.
pub struct StateStore {
    pub(crate) shared: Arc<Shared>,
}

impl StateStore {
    /// Follows the index of the last applied entry; none before the first.
    #[must_use]
    pub fn applied_index(&self) -> watch::Receiver<Option<u64>> {
        self.shared.applied_index.subscribe()
    }

    fn apply_one(&self, entry: Entry, answered: bool) -> Result<Replies, StoreError> {
        let mut machine = self.shared.machine_mut()?;
        let id = entry.log_id;
        let mut replies = Replies::default();
        let mut membership = None;
        match entry.payload {
            EntryPayload::Blank => {}
            EntryPayload::Normal(batch) if !answered => {
                machine.apply_unanswered(id.index, batch.bytes());
            }
            EntryPayload::Normal(batch) => {
                replies = Replies(machine.apply(id.index, batch.bytes()));
            }
            EntryPayload::Membership(found) => {
                membership = Some(StoredMembership::new(Some(id), found));
            }
        }
        // Under the machine's lock: a checkpoint sees the records and the index of one moment.
        let mut applied = self.shared.applied();
        applied.last = Some(id);
        if let Some(membership) = membership {
            applied.membership = membership;
        }
        Ok(replies)
    }
}

/// Runs `work`, which blocks on the disk, off the async threads.
async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(StoreError::Stopped {
            words: format!("a storage task ended: {error}"),
        }),
    }
}

impl RaftStateMachine<TypeConfig> for StateStore {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let applied = self.shared.applied().clone();
        Ok((applied.last, applied.membership))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let index = entry.log_id.index;
            let replies = self.apply_one(entry, responder.is_some())?;
            self.shared.applied_index.send_replace(Some(index));
            if let Some(responder) = responder {
                responder.send(replies);
            }
        }
        Ok(())
    }

    /// Writes a checkpoint and freezes it; `None` when another snapshot is under way and none is required.
    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<Builder> {
        let gate = self.shared.gate.clone();
        let gate = if force {
            gate.lock_owned().await
        } else {
            gate.try_lock_owned().ok()?
        };
        let shared = self.shared.clone();
        let frozen = off_thread(move || {
            let mut gate = gate;
            checkpoint::write(&shared, &mut gate)?;
            Ok(gate)
        })
        .await;
        Some(Builder {
            shared: self.shared.clone(),
            frozen: Some(frozen),
        })
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        match self.try_create_snapshot_builder(true).await {
            Some(builder) => builder,
            None => Builder {
                shared: self.shared.clone(),
                frozen: None,
            },
        }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotFile,
    ) -> Result<(), io::Error> {
        let mut gate = self.shared.gate.clone().lock_owned().await;
        let shared = self.shared.clone();
        let expected = meta.clone();
        let gate = off_thread(move || {
            install(&shared, &mut gate, &expected, &snapshot)?;
            Ok(gate)
        })
        .await?;
        // Durable before openraft purges the log it replaces.
        self.shared.flusher.sync(Change::None).await?;
        self.shared.cover(meta.last_log_id);
        self.shared
            .applied_index
            .send_replace(meta.last_log_id.map(|id| id.index));
        drop(gate);
        self.shared.wake_checkpointer();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let current = self.shared.current_snapshot().clone();
        Ok(current.map(|file| Snapshot {
            meta: file.meta().clone(),
            snapshot: file,
        }))
    }
}

/// Replaces the state by a snapshot's. Verified first; a crash at any point leaves the old state or the new one.
fn install(
    shared: &Shared,
    gate: &mut Gate,
    meta: &SnapshotMeta,
    received: &SnapshotFile,
) -> Result<(), StoreError> {
    let head = received.verify(Some(&shared.identity))?;
    if head.meta != *meta {
        return Err(StoreError::damaged(
            received.name(),
            format!("a snapshot of {}", head.meta),
            format!("one of {meta}"),
        ));
    }
    let generation = gate
        .current
        .generation
        .checked_add(1)
        .ok_or_else(|| StoreError::Stopped {
            words: "every generation number of the state is used up".into(),
        })?;
    let mut next = checkpoint::Checkpoint {
        generation,
        number: gate.current.number + 1,
        parts: 0,
        applied: meta.last_log_id,
        membership: meta.last_membership.clone(),
        digest: head.digest,
        audit_head: gate.current.audit_head,
    };
    for item in shared
        .state
        .scan_prefix(checkpoint::state_key(next.generation, b""))
    {
        let (key, _) = item.doing("read from")?;
        shared.state.remove(key).doing("remove from")?;
    }
    received.each(|part| {
        match part {
            snapshot::Part::State(key, content) => {
                let full = checkpoint::state_key(next.generation, key);
                let value = checkpoint::wrap_state(&full, content)?;
                shared.state.insert(full, value).doing("write to")?;
            }
            snapshot::Part::Audit(sequence, content) => {
                checkpoint::put_audit(&shared.audit, sequence, content)?;
                next.audit_head = next.audit_head.max(Some(sequence));
            }
        }
        Ok(())
    })?;
    {
        let mut machine = shared.machine_mut()?;
        machine
            .restore(
                &mut checkpoint::records(&shared.state, next.generation),
                head.digest,
            )
            .map_err(|source| {
                StoreError::restore(format!("the state in {}", received.name()), source)
            })?;
        *shared.applied() = Applied {
            last: meta.last_log_id,
            membership: meta.last_membership.clone(),
        };
    }
    let file = received.adopt(&shared.paths.snapshots)?;
    checkpoint::put(&shared.state, &next)?;
    gate.current = next;
    gate.leftovers = true;
    shared.replace_snapshot(file)
}

/// Builds one snapshot from a frozen checkpoint.
pub struct Builder {
    shared: Arc<Shared>,
    frozen: Option<Result<OwnedMutexGuard<Gate>, StoreError>>,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let Some(frozen) = self.frozen.take() else {
            return Err(io::Error::other("this builder has built its snapshot"));
        };
        let gate = frozen?;
        let shared = self.shared.clone();
        let (gate, file) = off_thread(move || {
            let file = snapshot::write(&shared, &gate.current)?;
            Ok((gate, file))
        })
        .await?;
        // The file alone would do; with the checkpoint durable too a restart need not load it.
        self.shared.flusher.sync(Change::None).await?;
        self.shared.cover(file.meta().last_log_id);
        self.shared.replace_snapshot(file.clone())?;
        drop(gate);
        Ok(Snapshot {
            meta: file.meta().clone(),
            snapshot: file,
        })
    }
}
