//! [`Journal`]: what an edge must still know after a crash, in an append-only file.
//!
//! Owns the file, its lock and its format (records of `tollgate_wire::record`). Every append is synced
//! before it returns, so whatever leaves the edge afterwards can be found again. A torn tail is cut off:
//! what was being written had not left. Damage before it is an error: something that did leave may be
//! gone. Refuses to be shared: a second process on the same journal would be a second edge on one
//! identity. Next: `driver/session.rs`, which decides what is written when.

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Write};
use std::path::{Path, PathBuf};
use tollgate_core::account::Name;
use tollgate_core::command::{Report, SpentLine, UsageLine};
use tollgate_core::ids::{Incarnation, Nonce, Seq, SessionId};
use tollgate_core::reporter::{JournalRecord, left_of_checkpoint};
use tollgate_wire::codec::{self, DecodeError, EncodeError};
use tollgate_wire::record::{self, RecordReadError, RecordReader, RecordTooLong};

/// A journal longer than this, and than twice what it must keep, is rewritten.
pub(crate) const CUT_BYTES: u64 = 1024 * 1024;
/// Lines of one part of a checkpoint: a part stays far below the largest record.
const LINES_PER_PART: usize = 4096;
/// What a decoded entry may claim.
const BUDGET: usize = codec::budget(record::RECORD_MAX);

/// One record of the file. Append only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JournalEntry {
    /// First of every file: whose it is.
    Head {
        /// The cluster.
        cluster: Name,
        /// The edge's name in its certificate.
        identity: Name,
    },
    /// A start number; written before it is sent.
    Start(Nonce),
    /// The session of everything that follows.
    Session {
        /// Its id.
        session: SessionId,
        /// The life of the data it belongs to.
        incarnation: Incarnation,
    },
    /// A sealed report.
    Report(Report),
    /// A part of what the report of this number would say; counts once all parts are there.
    Checkpoint {
        /// The number.
        seq: Seq,
        /// Which part, from 0.
        part: u32,
        /// How many there are.
        parts: u32,
        /// Use of accounts.
        spent: Vec<SpentLine>,
        /// Use of meters.
        usage: Vec<UsageLine>,
    },
    /// Everything up to this number is applied.
    Acknowledged(Seq),
    /// The session was closed, with everything reported: the next start opens a new one.
    Closed,
}

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The system failed.
    #[error("journal {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process has it.
    #[error(
        "journal {} is in use by another process: two edges on one journal would be one identity twice; \
         stop the other one or give this one a journal and a certificate of its own",
        path.display()
    )]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// Something that was written is damaged.
    #[error(
        "journal {} is damaged {source}; use that was not acknowledged may stand behind that place. \
         Check the disk. To go on without it, move the file away: the edge then opens a new session, and \
         what the file held is lost to billing, never counted twice",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where and how.
        source: RecordReadError,
    },
    /// An intact record of something else, or of a newer release.
    #[error("journal {}: the record that ends at byte {offset} is none of this release's: {source}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Where the record ends.
        offset: u64,
        /// What the decoder said.
        source: DecodeError,
    },
    /// The journal of another edge or cluster.
    #[error("journal {} belongs to {found}, this is {expected}: give each edge a journal of its own", path.display())]
    OtherOwner {
        /// The file.
        path: PathBuf,
        /// Cluster and edge in the file.
        found: String,
        /// Cluster and edge of this process.
        expected: String,
    },
    /// A record cannot be made.
    #[error("journal: {0}")]
    Encode(#[from] EncodeError),
    /// A record is too long.
    #[error("journal: {0}")]
    TooLong(#[from] RecordTooLong),
}

/// What a journal says that is still of use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// The last start number.
    pub nonce: Nonce,
    /// The session, once one was opened.
    pub session: Option<(SessionId, Incarnation)>,
    /// Everything up to here is applied.
    pub acknowledged: Seq,
    /// Sealed reports after that, in order.
    pub reports: VecDeque<Report>,
    /// The last whole checkpoint, less what the reports after it say.
    pub checkpoint: Option<(Seq, Vec<SpentLine>, Vec<UsageLine>)>,
    partial: Option<Partial>,
}

/// A checkpoint whose parts are not all there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Partial {
    seq: Seq,
    /// The part that comes next, and how many there are.
    next: u32,
    parts: u32,
    spent: Vec<SpentLine>,
    usage: Vec<UsageLine>,
}

impl Kept {
    fn take(&mut self, entry: JournalEntry) {
        match entry {
            JournalEntry::Head { .. } => {}
            JournalEntry::Start(nonce) => self.nonce = self.nonce.max(nonce),
            JournalEntry::Session {
                session,
                incarnation,
            } => {
                if self.session != Some((session, incarnation)) {
                    let nonce = self.nonce;
                    *self = Self {
                        nonce,
                        session: Some((session, incarnation)),
                        ..Self::default()
                    };
                }
            }
            JournalEntry::Closed => {
                *self = Self {
                    nonce: self.nonce,
                    ..Self::default()
                }
            }
            JournalEntry::Report(report) => {
                // What the checkpoint before it said and this report does not is for the next one.
                self.checkpoint = self
                    .checkpoint
                    .take()
                    .filter(|(seq, ..)| *seq == report.seq)
                    .map(|(seq, spent, usage)| {
                        let (spent, usage) = left_of_checkpoint((spent, usage), &report);
                        (seq.next(), spent, usage)
                    })
                    .filter(|(_, spent, usage)| !(spent.is_empty() && usage.is_empty()));
                self.reports.push_back(report);
            }
            JournalEntry::Acknowledged(seq) => {
                self.acknowledged = self.acknowledged.max(seq);
                let acknowledged = self.acknowledged;
                self.reports.retain(|report| report.seq > acknowledged);
            }
            JournalEntry::Checkpoint {
                seq,
                part: next,
                parts,
                spent,
                usage,
            } => {
                self.take_part(Partial {
                    seq,
                    next,
                    parts,
                    spent,
                    usage,
                });
            }
        }
    }

    fn take_part(&mut self, mut part: Partial) {
        match self.partial.take() {
            Some(mut all)
                if (all.seq, all.next, all.parts) == (part.seq, part.next, part.parts) =>
            {
                all.spent.append(&mut part.spent);
                all.usage.append(&mut part.usage);
                part = Partial {
                    next: part.next,
                    ..all
                };
            }
            _ if part.next == 0 => {}
            _ => return,
        }
        part.next += 1;
        if part.next >= part.parts {
            self.checkpoint = Some((part.seq, part.spent, part.usage));
        } else {
            self.partial = Some(part);
        }
    }

    /// For `Reporter::resume`.
    #[must_use]
    pub fn records(&self) -> Vec<JournalRecord> {
        let mut records = vec![JournalRecord::Acknowledged(self.acknowledged)];
        records.extend(self.reports.iter().cloned().map(JournalRecord::Report));
        if let Some((seq, spent, usage)) = self.checkpoint.clone() {
            records.push(JournalRecord::Checkpoint { seq, spent, usage });
        }
        records
    }

    /// The entries that say the same.
    fn entries(&self) -> Vec<JournalEntry> {
        let mut entries = vec![JournalEntry::Start(self.nonce)];
        if let Some((session, incarnation)) = self.session {
            entries.push(JournalEntry::Session {
                session,
                incarnation,
            });
        }
        entries.extend(self.records().into_iter().flat_map(entries_of));
        entries
    }
}

/// The entries for a record of the reporter: one, or the parts of a checkpoint.
pub(crate) fn entries_of(record: JournalRecord) -> Vec<JournalEntry> {
    let (seq, spent, usage) = match record {
        JournalRecord::Report(report) => return vec![JournalEntry::Report(report)],
        JournalRecord::Acknowledged(seq) => return vec![JournalEntry::Acknowledged(seq)],
        JournalRecord::Checkpoint { seq, spent, usage } => (seq, spent, usage),
    };
    let chunks = spent.len().max(usage.len()).div_ceil(LINES_PER_PART).max(1);
    let parts = u32::try_from(chunks).unwrap_or(u32::MAX);
    let mut spent = spent.into_iter();
    let mut usage = usage.into_iter();
    let part_of = |part| JournalEntry::Checkpoint {
        seq,
        part,
        parts,
        spent: spent.by_ref().take(LINES_PER_PART).collect(),
        usage: usage.by_ref().take(LINES_PER_PART).collect(),
    };
    (0..parts).map(part_of).collect()
}

/// See the module's text.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    head: JournalEntry,
    file: File,
    size_bytes: u64,
    /// Size after the last cut: what must be kept was so large then.
    cut_bytes: u64,
    kept: Kept,
    /// Held as long as this lives.
    _lock: File,
}

impl Journal {
    /// Opens or makes the journal of this edge, locks it, and answers what it says.
    ///
    /// # Errors
    /// See [`JournalError`]; the file is as it was, but for a torn tail.
    pub fn open(path: &Path, cluster: &Name, identity: &Name) -> Result<Self, JournalError> {
        let failed = |source| JournalError::Io {
            path: path.to_owned(),
            source,
        };
        let lock = lock(path)?;
        let file = open_file(path).map_err(failed)?;
        let head = JournalEntry::Head {
            cluster: cluster.clone(),
            identity: identity.clone(),
        };
        let (entries, size_bytes) = read(path, &file)?;
        let on_disk = file.metadata().map_err(failed)?.len();
        if on_disk > size_bytes {
            tracing::warn!(
                journal = %path.display(), from = size_bytes, bytes = on_disk - size_bytes,
                "cut off a torn tail: it had not left this edge"
            );
            file.set_len(size_bytes)
                .and_then(|()| file.sync_all())
                .map_err(failed)?;
        }
        let mut journal = Self {
            path: path.to_owned(),
            head: head.clone(),
            file,
            size_bytes,
            cut_bytes: 0,
            kept: Kept::default(),
            _lock: lock,
        };
        match entries.first() {
            None => {
                journal.append(&[head])?;
                sync_folder(path).map_err(failed)?;
            }
            Some(first) if *first == head => {}
            Some(first) => return Err(journal.other_owner(first)),
        }
        entries
            .into_iter()
            .for_each(|entry| journal.kept.take(entry));
        Ok(journal)
    }

    /// What it says.
    #[must_use]
    pub fn kept(&self) -> &Kept {
        &self.kept
    }

    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends and syncs; afterwards what was appended may leave the edge. Blocks on the disk.
    ///
    /// # Errors
    /// See [`JournalError`]; what is on disk is unknown then, so nothing more may be appended.
    pub fn append(&mut self, entries: &[JournalEntry]) -> Result<(), JournalError> {
        if entries.is_empty() {
            return Ok(());
        }
        let bytes = encode(entries)?;
        self.write(&bytes).map_err(|source| self.failed(source))?;
        entries
            .iter()
            .cloned()
            .for_each(|entry| self.kept.take(entry));
        if self.size_bytes > CUT_BYTES.max(self.cut_bytes.saturating_mul(2)) {
            self.cut()?;
        }
        Ok(())
    }

    /// Puts the file aside as `PATH.lost-SESSION`, with a number where that is taken, and begins an empty one,
    /// keeping only the start number: reports whose fate is unknown are kept for people, never sent under
    /// another session.
    ///
    /// # Errors
    /// As [`Journal::append`].
    pub fn put_aside(&mut self) -> Result<PathBuf, JournalError> {
        let session = self
            .kept
            .session
            .map_or(SessionId(0), |(session, _)| session);
        // The lock is ours, so no other process takes the name between the look and the rename.
        let mut aside = with_suffix(&self.path, &format!(".lost-{session}"));
        let mut number = 1_u64;
        while aside.try_exists().map_err(|source| self.failed(source))? {
            number += 1;
            aside = with_suffix(&self.path, &format!(".lost-{session}-{number}"));
        }
        std::fs::rename(&self.path, &aside).map_err(|source| self.failed(source))?;
        self.kept = Kept {
            nonce: self.kept.nonce,
            ..Kept::default()
        };
        self.cut()?;
        Ok(aside)
    }

    /// Rewrites the file with what must be kept; a crash leaves the old or the new one.
    fn cut(&mut self) -> Result<(), JournalError> {
        let mut entries = vec![self.head.clone()];
        entries.extend(self.kept.entries());
        let bytes = encode(&entries)?;
        let new = with_suffix(&self.path, ".new");
        let replace = || {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .open(&new)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            std::fs::rename(&new, &self.path)?;
            sync_folder(&self.path)?;
            open_file(&self.path)
        };
        self.file = replace().map_err(|source| self.failed(source))?;
        self.size_bytes = bytes.len() as u64;
        self.cut_bytes = self.size_bytes;
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.file.sync_data()?;
        self.size_bytes += bytes.len() as u64;
        Ok(())
    }

    fn failed(&self, source: io::Error) -> JournalError {
        JournalError::Io {
            path: self.path.clone(),
            source,
        }
    }

    fn other_owner(&self, found: &JournalEntry) -> JournalError {
        let name = |entry: &JournalEntry| match entry {
            JournalEntry::Head { cluster, identity } => format!("edge {identity} of {cluster}"),
            _ => "nobody: it does not begin with a head".to_owned(),
        };
        let (found, expected) = (name(found), name(&self.head));
        JournalError::OtherOwner {
            path: self.path.clone(),
            found,
            expected,
        }
    }
}

/// Takes the lock that goes with a journal. A file of its own, as the journal is replaced when it is cut.
fn lock(path: &Path) -> Result<File, JournalError> {
    let lock_path = with_suffix(path, ".lock");
    let failed = |source| JournalError::Io {
        path: lock_path.clone(),
        source,
    };
    let lock = open_file(&lock_path).map_err(failed)?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(JournalError::Locked {
            path: path.to_owned(),
        }),
        Err(error) => Err(failed(error.into())),
    }
}

fn open_file(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

/// Every entry, and how many bytes of the file they are; the rest is a torn tail.
fn read(path: &Path, file: &File) -> Result<(Vec<JournalEntry>, u64), JournalError> {
    let mut entries = Vec::new();
    let mut reader = RecordReader::new(BufReader::new(file));
    loop {
        let before = reader.offset();
        let payload = match reader.next_record() {
            Ok(Some(payload)) => payload,
            Ok(None) => return Ok((entries, before)),
            // The last record alone: either it was being written, or it was damaged later. If it had
            // left, the ledger knows a report that this journal lacks, and says so.
            Err(RecordReadError::Torn { .. } | RecordReadError::Damaged { last: true, .. }) => {
                return Ok((entries, before));
            }
            Err(RecordReadError::Io { source, .. }) => {
                return Err(JournalError::Io {
                    path: path.to_owned(),
                    source,
                });
            }
            Err(source) => {
                return Err(JournalError::Damaged {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        let entry = codec::decode::<JournalEntry, BUDGET>(payload);
        entries.push(entry.map_err(|source| JournalError::Foreign {
            path: path.to_owned(),
            offset: reader.offset(),
            source,
        })?);
    }
}

fn encode(entries: &[JournalEntry]) -> Result<Vec<u8>, JournalError> {
    let mut bytes = Vec::new();
    for entry in entries {
        record::append(&codec::encode(entry)?, &mut bytes)?;
    }
    Ok(bytes)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// A rename, and a new file, last only once their folder is synced.
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
#[path = "journal/tests.rs"]
mod tests;
