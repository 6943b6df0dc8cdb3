//! The one thread that makes writes stable: flush, `fdatasync`, mark, and only then the acknowledgement.
//!
//! Everything that queued up while a sync ran shares the next one (group commit). sled's own flush is
//! `sync_file_range`, which neither empties the device's cache nor covers the file's size, so it is followed by an
//! `fdatasync` on the same file. All trees share one log: a flush makes a *prefix* of all writes durable.
//! Refuses to retry: after a failed flush every later request fails, after a failed sync there is no process.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender};
use openraft::storage::IOFlushed;
use tokio::sync::oneshot;

use super::fault::{self, At, StoreError};
use super::mark::{Mark, Promise, Tail};
use crate::raft::types::{TypeConfig, Vote};

/// Requests that may wait for a sync; the next one blocks its sender. openraft has a handful under way.
const QUEUE_MAX: usize = 4096;

/// What the newest write changes about the promise.
#[derive(Debug)]
pub(crate) enum Change {
    /// Nothing: only make what was written stable.
    None,
    /// The log now ends here.
    Tail(Option<Tail>),
    /// The vote is now this.
    Vote(Vote),
}

/// Who waits for it.
pub(crate) enum Waiter {
    /// openraft, for an append.
    Append(IOFlushed<TypeConfig>),
    /// A caller of [`Flusher::sync`].
    Caller(oneshot::Sender<io::Result<()>>),
}

impl Waiter {
    fn tell(self, result: io::Result<()>) {
        match self {
            Self::Append(callback) => callback.io_completed(result),
            // The caller gave up waiting: nobody to tell.
            Self::Caller(sender) => drop(sender.send(result)),
        }
    }
}

struct Work {
    change: Change,
    waiter: Waiter,
}

/// Counts of what the flusher did, for metrics and tests.
#[derive(Debug, Default)]
pub struct FlushCounts {
    /// Requests answered.
    pub requests: AtomicU64,
    /// `fdatasync` calls on the store's file that answered them.
    pub syncs: AtomicU64,
    /// `fdatasync` calls on the mark's file: one after each of those that changed the promise.
    pub mark_syncs: AtomicU64,
}

/// Handle of the flusher's thread.
pub(crate) struct Flusher {
    queue: Option<Sender<Work>>,
    thread: Option<JoinHandle<()>>,
    counts: Arc<FlushCounts>,
}

impl Flusher {
    /// Starts the thread. `file` must be the store's own data file.
    pub(crate) fn start(
        db: sled::Db,
        file: File,
        path: &Path,
        mark: Mark,
    ) -> Result<Self, StoreError> {
        let (queue, requests) = crossbeam_channel::bounded(QUEUE_MAX);
        let counts = Arc::new(FlushCounts::default());
        let state = Thread {
            db,
            file,
            path: path.to_owned(),
            mark,
            failed: None,
            counts: counts.clone(),
        };
        let thread = std::thread::Builder::new()
            .name("flusher".into())
            .spawn(move || state.run(&requests))
            .at("start the flusher for", path)?;
        Ok(Self {
            queue: Some(queue),
            thread: Some(thread),
            counts,
        })
    }

    /// Asks for everything written so far to be made stable. Requests are answered in order.
    pub(crate) fn submit(&self, change: Change, waiter: Waiter) {
        let work = Work { change, waiter };
        let refused = match &self.queue {
            Some(queue) => queue.send(work).err().map(|error| error.0),
            None => Some(work),
        };
        if let Some(work) = refused {
            work.waiter
                .tell(Err(io::Error::other("the flusher has stopped")));
        }
    }

    /// Makes everything written so far stable, and waits for it.
    pub(crate) async fn sync(&self, change: Change) -> io::Result<()> {
        let (sender, answer) = oneshot::channel();
        self.submit(change, Waiter::Caller(sender));
        answer
            .await
            .unwrap_or_else(|_| Err(io::Error::other("the flusher has stopped")))
    }

    /// What was done so far.
    pub(crate) fn counts(&self) -> Arc<FlushCounts> {
        self.counts.clone()
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // The thread only ends when its queue does; a panic in it was reported there.
            drop(thread.join());
        }
    }
}

struct Thread {
    db: sled::Db,
    file: File,
    path: PathBuf,
    mark: Mark,
    failed: Option<String>,
    counts: Arc<FlushCounts>,
}

impl Thread {
    fn run(mut self, requests: &Receiver<Work>) {
        while let Ok(first) = requests.recv() {
            let mut group = vec![first];
            group.extend(requests.try_iter().take(QUEUE_MAX));
            let result = self.flush(&group);
            self.counts
                .requests
                .fetch_add(group.len() as u64, Ordering::Relaxed);
            for work in group {
                work.waiter.tell(match &result {
                    Ok(()) => Ok(()),
                    Err((kind, words)) => Err(io::Error::new(*kind, words.clone())),
                });
            }
        }
    }

    /// One round for a whole group. An error is the group's answer and that of all later ones.
    fn flush(&mut self, group: &[Work]) -> Result<(), (io::ErrorKind, String)> {
        if let Some(words) = &self.failed {
            return Err((io::ErrorKind::Other, words.clone()));
        }
        // Taken before the flush: a change is sent only after its write, so the flush covers it.
        let promise = promise_after(self.mark.promise(), group);
        if let Err(error) = self.db.flush() {
            let kind = match &error {
                sled::Error::Io(source) => source.kind(),
                _ => io::ErrorKind::Other,
            };
            let words = format!("the store refused to write: {error}");
            tracing::error!(%error, "the store refused to write; nothing more is acknowledged");
            self.failed = Some(words.clone());
            return Err((kind, words));
        }
        if let Err(error) = self.file.sync_data() {
            fault::sync_failed(&self.path, &error);
        }
        self.counts.syncs.fetch_add(1, Ordering::Relaxed);
        match self.mark.write(promise) {
            Ok(synced) => self
                .counts
                .mark_syncs
                .fetch_add(synced.into(), Ordering::Relaxed),
            Err(error) => fault::sync_failed(self.mark.path(), &error),
        };
        Ok(())
    }
}

fn promise_after(mut promise: Promise, group: &[Work]) -> Promise {
    for work in group {
        match work.change {
            Change::None => {}
            Change::Tail(tail) => promise.tail = tail,
            Change::Vote(vote) => promise.vote = Some(vote),
        }
    }
    promise
}
