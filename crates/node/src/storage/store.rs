//! Opens a data folder, in order, and refuses it rather than run on less than was acknowledged.
//!
//! One sled `Db` per node with the trees `log`, `meta`, `state`, `audit`. Its segments are 8 MiB, so that even a
//! page of sixteen largest records stays in the log: what sled puts beside it, as blobs, is never synced and hardly
//! ever freed. Order of a start: lock, identity, store, mark, log against the mark, state against its digest; only
//! then is the start counted. Next: [`super::log`] and [`super::state`], the two halves handed to openraft.

use std::fs::File;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockWriteGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, TrySendError};
use tokio::sync::watch;

use super::checkpoint::{self, Gate};
use super::fault::{At, Doing, StoreError};
use super::flusher::{FlushCounts, Flusher};
use super::folder::{self, Identity, Paths};
use super::log::{self, Bounds, LogStore};
use super::machine::Machine;
use super::mark::{Mark, Promise};
use super::recent::Recent;
use super::snapshot::{self, SnapshotFile};
use super::state::{Applied, StateStore};
use crate::raft::types::{LogId, Vote};

/// Size of sled's segments; see the module's text. Fixed for the life of a folder.
const SEGMENT_BYTES: usize = 8 << 20;

/// How long a start waits for the lock of sled, whose threads may outlive a closed store for a moment.
const LOCK_WAIT: Duration = Duration::from_secs(2);

/// A machine that the log drives, shared with its readers.
pub type SharedMachine = Arc<RwLock<dyn Machine>>;

/// How a data folder is opened.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// The folder; created when absent.
    pub dir: PathBuf,
    /// Whose data it must hold.
    pub identity: Identity,
    /// Memory for sled's pages, in bytes.
    pub cache_bytes: u64,
    /// Least time between two checkpoints; where they take long, more, up to 5 s. A restart replays at most this much
    /// of the log, and what a crash cut off.
    pub checkpoint_interval: Duration,
    /// Disk kept in reserve for a start on a full disk, in bytes; 0 for none.
    pub ballast_bytes: u64,
}

impl StoreConfig {
    /// The defaults: 64 MiB of cache, a checkpoint every 500 ms (a record that changes often is then written
    /// seldom), 8 MiB of ballast.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>, identity: Identity) -> Self {
        Self {
            dir: dir.into(),
            identity,
            cache_bytes: 64 << 20,
            checkpoint_interval: Duration::from_millis(500),
            ballast_bytes: 8 << 20,
        }
    }
}

/// What all parts of an open store share.
pub(crate) struct Shared {
    pub(crate) identity: Identity,
    pub(crate) paths: Paths,
    pub(crate) log: sled::Tree,
    pub(crate) meta: sled::Tree,
    pub(crate) state: sled::Tree,
    pub(crate) audit: sled::Tree,
    pub(crate) flusher: Flusher,
    pub(crate) gate: Arc<tokio::sync::Mutex<Gate>>,
    /// Log entries below this index are covered by a durable checkpoint or snapshot.
    pub(crate) covered: AtomicU64,
    /// Bytes appended to the log since the store was opened.
    pub(crate) appended_bytes: AtomicU64,
    pub(crate) applied_index: watch::Sender<Option<u64>>,
    machine: SharedMachine,
    applied: Mutex<Applied>,
    bounds: Mutex<Bounds>,
    recent: Mutex<Recent>,
    snapshot: Mutex<Option<SnapshotFile>>,
    failure: watch::Sender<Option<String>>,
    wake: Mutex<Option<Sender<()>>>,
    incoming: AtomicU64,
    _lock: File,
}

/// Locks a mutex whose holders only assign: a panic in between cannot leave it half-changed.
fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn bounds(&self) -> MutexGuard<'_, Bounds> {
        hold(&self.bounds)
    }

    pub(crate) fn recent(&self) -> MutexGuard<'_, Recent> {
        hold(&self.recent)
    }

    pub(crate) fn applied(&self) -> MutexGuard<'_, Applied> {
        hold(&self.applied)
    }

    pub(crate) fn current_snapshot(&self) -> MutexGuard<'_, Option<SnapshotFile>> {
        hold(&self.snapshot)
    }

    /// The machine, for writing. A panic in an earlier apply is a bug: the node stops rather than diverge.
    pub(crate) fn machine_mut(&self) -> Result<RwLockWriteGuard<'_, dyn Machine>, StoreError> {
        self.machine.write().map_err(|_| StoreError::Stopped {
            words: "the state machine panicked in an earlier apply".into(),
        })
    }

    pub(crate) fn replace_snapshot(&self, file: SnapshotFile) -> Result<(), StoreError> {
        snapshot::remove_others(&self.paths.snapshots, &file)?;
        *self.current_snapshot() = Some(file);
        Ok(())
    }

    /// Notes that a durable checkpoint or snapshot covers the log up to here.
    pub(crate) fn cover(&self, upto: Option<LogId>) {
        if let Some(id) = upto {
            self.covered.fetch_max(id.index + 1, Ordering::AcqRel);
        }
    }

    pub(crate) fn wake_checkpointer(&self) {
        if let Some(wake) = &*hold(&self.wake) {
            // Full: it is about to run anyway.
            if let Err(TrySendError::Full(()) | TrySendError::Disconnected(())) = wake.try_send(())
            {
            }
        }
    }

    /// Notes that storage failed outside of openraft's sight.
    pub(crate) fn fail(&self, error: &StoreError) {
        self.failure.send_if_modified(|failure| {
            let first = failure.is_none();
            failure.get_or_insert_with(|| error.to_string());
            first
        });
    }
}

/// An open data folder. Dropping the last handle writes a last checkpoint and closes it.
pub struct Store {
    shared: Arc<Shared>,
    checkpointer: Option<JoinHandle<()>>,
    starts: u64,
}

impl Store {
    /// Opens a data folder and restores `machine` from it. Blocks on the disk.
    ///
    /// # Errors
    /// [`StoreError`]: each says what was found, what was expected and what to do.
    pub fn open(config: &StoreConfig, machine: SharedMachine) -> Result<Self, StoreError> {
        let paths = Paths::new(&config.dir);
        folder::create_dir(&paths.root)?;
        let lock = folder::lock(&paths)?;
        let known = folder::read_identity(&paths)?;
        if let Some((found, _)) = known
            .as_ref()
            .filter(|(found, _)| *found != config.identity)
        {
            return Err(StoreError::Foreign {
                path: paths.root,
                found: found.to_string(),
                expected: config.identity.to_string(),
            });
        }
        folder::create_dir(&paths.snapshots)?;
        let (db, trees) = open_trees(config, &paths, known.is_none())?;
        let mark = open_mark(&paths, known.is_none(), &trees)?;
        let (bounds, gate) = read_back(config, &trees, mark.promise(), &machine)?;
        let found = snapshot::find(&paths.snapshots, &config.identity)?;
        refuse_uncovered(&bounds, &gate, found.as_ref())?;
        let starts = known.map_or(0, |(_, starts)| starts) + 1;
        folder::write_identity(&paths, &config.identity, starts)?;
        folder::keep_ballast(&paths, config.ballast_bytes);

        let data = paths.sled.join("db");
        let file = File::open(&data).at("open", &data)?;
        let flusher = Flusher::start(db, file, &data, mark)?;
        let (wake, woken) = crossbeam_channel::bounded(1);
        let applied = Applied {
            last: gate.current.applied,
            membership: gate.current.membership.clone(),
        };
        let [log, meta, state, audit] = trees;
        let shared = Arc::new(Shared {
            identity: config.identity.clone(),
            paths,
            log,
            meta,
            state,
            audit,
            flusher,
            covered: AtomicU64::new(0),
            appended_bytes: AtomicU64::new(0),
            applied_index: watch::Sender::new(applied.last.map(|id| id.index)),
            machine,
            applied: Mutex::new(applied),
            bounds: Mutex::new(bounds),
            recent: Mutex::default(),
            snapshot: Mutex::new(None),
            failure: watch::Sender::new(None),
            wake: Mutex::new(Some(wake)),
            incoming: AtomicU64::new(0),
            gate: Arc::new(tokio::sync::Mutex::new(gate)),
            _lock: lock,
        });
        shared.cover(shared.applied().last);
        shared.cover(found.as_ref().and_then(|file| file.meta().last_log_id));
        *shared.current_snapshot() = found;
        let (for_thread, interval) = (shared.clone(), config.checkpoint_interval);
        let checkpointer = std::thread::Builder::new()
            .name("checkpointer".into())
            .spawn(move || checkpoint::run(&for_thread, interval, &woken))
            .at("start the checkpointer for", &shared.paths.root)?;
        Ok(Self {
            shared,
            checkpointer: Some(checkpointer),
            starts,
        })
    }

    /// The two halves for openraft.
    #[must_use]
    pub fn halves(&self) -> (LogStore, StateStore) {
        (
            LogStore {
                shared: self.shared.clone(),
            },
            StateStore {
                shared: self.shared.clone(),
            },
        )
    }

    /// How often this folder was started, this start included: rises with every start, durable before any use.
    #[must_use]
    pub fn starts(&self) -> u64 {
        self.starts
    }

    /// Counts of syncs and of the requests they answered.
    #[must_use]
    pub fn flush_counts(&self) -> Arc<FlushCounts> {
        self.shared.flusher.counts()
    }

    /// Bytes appended to the log since the store was opened.
    #[must_use]
    pub fn appended_bytes(&self) -> u64 {
        self.shared.appended_bytes.load(Ordering::Relaxed)
    }

    /// Turns to the reason when storage failed outside of openraft's sight; the node must then stop.
    #[must_use]
    pub fn failure(&self) -> watch::Receiver<Option<String>> {
        self.shared.failure.subscribe()
    }

    /// A name for a snapshot that is about to be received; removed at the next start if it is not installed.
    #[must_use]
    pub fn incoming_path(&self) -> PathBuf {
        let number = self.shared.incoming.fetch_add(1, Ordering::Relaxed);
        snapshot::incoming_path(&self.shared.paths.snapshots, number)
    }

    /// Lets a test purge what nothing covers: openraft's own suite does.
    #[doc(hidden)]
    pub fn allow_uncovered_purges(&self) {
        self.shared.covered.store(u64::MAX, Ordering::Release);
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        *hold(&self.shared.wake) = None;
        if let Some(thread) = self.checkpointer.take() {
            // It reports its own failures.
            drop(thread.join());
        }
    }
}

type Trees = [sled::Tree; 4];

/// Opens sled; a panic in there is damage like any other. A full disk gets one more chance without the ballast.
fn open_trees(
    config: &StoreConfig,
    paths: &Paths,
    is_new: bool,
) -> Result<(sled::Db, Trees), StoreError> {
    if !is_new && !paths.sled.join("db").is_file() {
        return Err(StoreError::damaged(
            format!("the store in {}", paths.sled.display()),
            "no data file",
            "the one of the earlier starts",
        ));
    }
    let result = match open_sled(config, paths) {
        Err(StoreError::Engine {
            source: sled::Error::Io(error),
            ..
        }) if error.kind() == std::io::ErrorKind::StorageFull && folder::drop_ballast(paths) => {
            open_sled(config, paths)
        }
        result => result,
    };
    let (db, trees) = result?;
    if is_new {
        for name in ["conf", "db"] {
            let path = paths.sled.join(name);
            folder::sync_file(&File::open(&path).at("open", &path)?, &path);
        }
        folder::sync_dir(&paths.sled)?;
        folder::sync_dir(&paths.root)?;
    }
    Ok((db, trees))
}

fn open_sled(config: &StoreConfig, paths: &Paths) -> Result<(sled::Db, Trees), StoreError> {
    let sled_config = sled::Config::new()
        .path(&paths.sled)
        .segment_size(SEGMENT_BYTES)
        .cache_capacity(config.cache_bytes)
        .flush_every_ms(None);
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        let attempt =
            std::panic::catch_unwind(AssertUnwindSafe(|| -> sled::Result<(sled::Db, Trees)> {
                let db = sled_config.open()?;
                let trees = [
                    db.open_tree("log")?,
                    db.open_tree("meta")?,
                    db.open_tree("state")?,
                    db.open_tree("audit")?,
                ];
                Ok((db, trees))
            }));
        match attempt {
            Ok(Ok(opened)) => return Ok(opened),
            Ok(Err(sled::Error::Io(error))) if error.to_string().contains("acquire lock") => {
                if Instant::now() >= deadline {
                    return Err(StoreError::InUse {
                        path: paths.root.clone(),
                    });
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            Ok(Err(source @ sled::Error::Io(_))) => {
                return Err(StoreError::Engine {
                    action: "open",
                    source,
                });
            }
            Ok(Err(error)) => {
                return Err(StoreError::Unreadable {
                    path: paths.sled.clone(),
                    words: error.to_string(),
                });
            }
            Err(panic) => {
                let words = panic.downcast_ref::<String>().cloned().or_else(|| {
                    panic
                        .downcast_ref::<&str>()
                        .map(|words| (*words).to_owned())
                });
                return Err(StoreError::Unreadable {
                    path: paths.sled.clone(),
                    words: words.unwrap_or_else(|| "sled panicked".into()),
                });
            }
        }
    }
}

fn open_mark(paths: &Paths, is_new: bool, trees: &Trees) -> Result<Mark, StoreError> {
    if !is_new {
        return Mark::open(&paths.mark).map_err(|error| match error {
            StoreError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                StoreError::damaged(
                    missing_mark(&paths.mark),
                    "no such file",
                    "the one written at creation",
                )
            }
            error => error,
        });
    }
    // No identity: nothing was ever started here, or somebody removed it from a folder that was.
    let used = trees.iter().any(|tree| !tree.is_empty());
    let promised = match Mark::open(&paths.mark) {
        Ok(mark) => mark.promise() != Promise::default(),
        Err(StoreError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            false
        }
        Err(error) => return Err(error),
    };
    if used || promised {
        return Err(StoreError::damaged(
            format!("the identity file {}", paths.identity.display()),
            "no such file beside data",
            "the file written at the first start",
        ));
    }
    Mark::create(&paths.mark)
}

fn missing_mark(path: &Path) -> String {
    format!("the mark {}", path.display())
}

/// Holds log and state against mark and digest, and gives back what openraft starts from.
fn read_back(
    config: &StoreConfig,
    [log, meta, state, audit]: &Trees,
    promise: Promise,
    machine: &SharedMachine,
) -> Result<(Bounds, Gate), StoreError> {
    let purged: Option<LogId> = log::get_meta(meta, log::KEY_PURGED)?;
    let committed = log::get_meta::<Option<LogId>>(meta, log::KEY_COMMITTED)?.flatten();
    let stored: Option<Vote> = log::get_meta(meta, log::KEY_VOTE)?;
    let last = log::check(log, purged, promise)?;
    cut_behind(log, last)?;
    // The mark decides where the two differ, except that a vote only ever rises.
    let mut vote = match (stored, promise.vote) {
        (Some(stored), Some(marked)) if stored > marked => Some(stored),
        (stored, marked) => marked.or(stored),
    };
    // A leader that lost its tail and led on in the same term would give its indexes twice: start as a follower.
    if let Some(vote) = vote
        .as_mut()
        .filter(|v| v.leader_id.voted_for == config.identity.node)
    {
        vote.committed = false;
    }
    let mut held = machine.write().map_err(|_| StoreError::Stopped {
        words: "the state machine panicked".into(),
    })?;
    let current = checkpoint::load(state, audit, &mut *held)?.unwrap_or_default();
    let bounds = Bounds {
        purged,
        last,
        vote,
        committed,
        began_at: 0,
    };
    Ok((
        bounds,
        Gate {
            current,
            leftovers: true,
        },
    ))
}

/// Removes what `log::check` cut off, so that it cannot come back behind new entries.
fn cut_behind(log: &sled::Tree, last: Option<LogId>) -> Result<(), StoreError> {
    let next = last.map_or(0, |id| id.index + 1);
    for item in log.range(next.to_be_bytes()..).rev() {
        let (key, _) = item.doing("read from")?;
        log.remove(key).doing("truncate the log of")?;
    }
    Ok(())
}

/// The log may begin only where the state ends.
fn refuse_uncovered(
    bounds: &Bounds,
    gate: &Gate,
    snapshot: Option<&SnapshotFile>,
) -> Result<(), StoreError> {
    let covered = gate
        .current
        .applied
        .max(snapshot.and_then(|file| file.meta().last_log_id));
    if bounds.purged > covered {
        return Err(StoreError::damaged(
            "the state",
            format!("a checkpoint and snapshots up to {covered:?}"),
            format!("one that covers the log purged up to {:?}", bounds.purged),
        ));
    }
    Ok(())
}
