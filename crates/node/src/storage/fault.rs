//! What can go wrong on disk, in words for the operator, and which of it ends the process.
//!
//! Three ways out, never mixed: a [`StoreError`] at start refuses to run; a write that fails later is handed to
//! openraft, which stops, and the node leaves with [`EXIT_STORAGE`] (through [`crate::server::ServerError`]); a *sync*
//! that fails ends the process on the spot with [`EXIT_SYNC_FAILED`], because the kernel may have dropped the pages and
//! a second try would report success over the hole (PostgreSQL's "fsyncgate", 2018).

use super::machine::RestoreError;
use std::io;
use std::path::{Path, PathBuf};

/// Exit code when a sync failed: nothing was acknowledged after it; a restart reads the disk again.
pub const EXIT_SYNC_FAILED: i32 = 74;

/// Exit code when storage refused a write (disk full, I/O error): stopped cleanly, nothing half-acknowledged.
pub const EXIT_STORAGE: i32 = 75;

/// What to do with a folder that cannot be trusted any more.
pub const REBUILD: &str = "do not start this node on this data again: move the folder away, remove the node \
     from the cluster, and let it join with an empty folder under a new node id";

/// Why a data folder was refused or stopped working.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file operation failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// sled failed.
    #[error("cannot {action} the store: {source}")]
    Engine {
        /// What was tried, as a verb.
        action: &'static str,
        /// sled's answer.
        source: sled::Error,
    },
    /// sled could not open its own files, or panicked over them.
    #[error("the store in {} is damaged: {words}; {REBUILD}", path.display())]
    Unreadable {
        /// The store's folder.
        path: PathBuf,
        /// What sled said.
        words: String,
    },
    /// A record, mark or file is not what was written.
    #[error("{what} is damaged: found {found}, expected {expected}; {repair}")]
    Damaged {
        /// The record or file, by name.
        what: String,
        /// What it holds.
        found: String,
        /// What it should hold.
        expected: String,
        /// What the operator can do.
        repair: &'static str,
    },
    /// The folder belongs to another cluster, incarnation or node.
    #[error(
        "the data folder {} belongs to {found}, but this node is configured as {expected}; \
         correct the configuration or the path", path.display()
    )]
    Foreign {
        /// The data folder.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// Who asked.
        expected: String,
    },
    /// Another process has the folder open.
    #[error("the data folder {} is in use by another process; stop it first", path.display())]
    InUse {
        /// The data folder.
        path: PathBuf,
    },
    /// Written by a build whose format this one does not read.
    #[error("{what} has format {found}, this build reads {expected}; run the build that wrote it")]
    Format {
        /// The record or file, by name.
        what: String,
        /// The version found.
        found: u32,
        /// The version read.
        expected: u32,
    },
    /// A record is larger than the store takes.
    #[error("{what} is {bytes} bytes long, the store takes up to {limit}; split it")]
    TooLarge {
        /// The record, by name.
        what: String,
        /// Its size.
        bytes: usize,
        /// The bound.
        limit: usize,
    },
    /// The state machine refused its records.
    #[error("{what} cannot be restored: {source}; {REBUILD}")]
    Restore {
        /// The state, with where its records came from.
        what: String,
        /// The machine's reason.
        source: Box<RestoreError>,
    },
    /// A thread of the store is gone or an earlier write failed.
    #[error("the store has stopped: {words}")]
    Stopped {
        /// Why.
        words: String,
    },
}

impl StoreError {
    /// Why no state came of the records in `what`. Only what is damaged asks for a rebuild; data of a newer build asks
    /// for that build.
    pub(crate) fn restore(what: String, source: RestoreError) -> Self {
        match source {
            RestoreError::Newer { found, known } => Self::Format {
                what,
                found,
                expected: known,
            },
            RestoreError::Store(error @ Self::Format { .. }) => error,
            source => Self::Restore {
                what,
                source: Box::new(source),
            },
        }
    }

    /// Damage that only a rebuild repairs.
    pub(crate) fn damaged(
        what: impl Into<String>,
        found: impl Into<String>,
        expected: impl Into<String>,
    ) -> Self {
        Self::Damaged {
            what: what.into(),
            found: found.into(),
            expected: expected.into(),
            repair: REBUILD,
        }
    }
}

impl From<StoreError> for io::Error {
    fn from(error: StoreError) -> Self {
        let kind = match &error {
            StoreError::Io { source, .. }
            | StoreError::Engine {
                source: sled::Error::Io(source),
                ..
            } => source.kind(),
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}

/// Attaches the operation and the path to an I/O error.
pub(crate) trait At<T> {
    /// Names what was tried, and on what.
    fn at(self, action: &'static str, path: &Path) -> Result<T, StoreError>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, StoreError> {
        self.map_err(|source| StoreError::Io {
            action,
            path: path.to_owned(),
            source,
        })
    }
}

/// Attaches the operation to an error of sled.
pub(crate) trait Doing<T> {
    /// Names what was tried.
    fn doing(self, action: &'static str) -> Result<T, StoreError>;
}

impl<T> Doing<T> for sled::Result<T> {
    fn doing(self, action: &'static str) -> Result<T, StoreError> {
        self.map_err(|source| StoreError::Engine { action, source })
    }
}

/// Ends the process because a sync failed. No destructor runs: none of them may write once more.
pub(crate) fn sync_failed(path: &Path, error: &io::Error) -> ! {
    tracing::error!(path = %path.display(), %error, "a sync failed, the process ends");
    #[allow(
        clippy::print_stderr,
        reason = "the last words before the end must not depend on a logger"
    )]
    {
        eprintln!(
            "tollgate: syncing {} failed: {error}. What was written since the last sync may be lost, so this \
             process ends and has acknowledged none of it. Check the disk; a restart reads back what is \
             really there, and refuses if that is less than what was acknowledged.",
            path.display()
        );
    }
    std::process::exit(EXIT_SYNC_FAILED)
}
