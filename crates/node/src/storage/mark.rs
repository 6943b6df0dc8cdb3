//! The durable mark: what this node has promised, in a file of two slots beside the store.
//!
//! sled drops damaged tails in silence, so it cannot be asked whether something is missing. The mark can: it is
//! synced after the log and before every acknowledgement, and a start that finds less than the mark refuses.
//! It holds the newest synced entry (index and hash) and the vote. Slots take turns, so that a torn write leaves
//! the other one; it promises less, never more. Next: [`super::flusher`], its only writer.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::fault::{At, StoreError};
use super::folder;
use crate::raft::types::Vote;

const MAGIC: [u8; 8] = *b"TGMARK\x00\x01";
/// Slots lie a page apart: no device tears both with one write.
const SLOT_STRIDE: usize = 4096;
const SLOT_BYTES: usize = 64;

/// One entry of the log, by index and by what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tail {
    /// Its index.
    pub(crate) index: u64,
    /// xxh3 of the stored record.
    pub(crate) hash: u64,
}

impl Tail {
    pub(crate) fn of(index: u64, value: &[u8]) -> Self {
        Self {
            index,
            hash: xxhash_rust::xxh3::xxh3_64(value),
        }
    }
}

/// What the mark says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Promise {
    /// The newest entry that was synced; none in an empty log.
    pub(crate) tail: Option<Tail>,
    /// The vote that was synced.
    pub(crate) vote: Option<Vote>,
}

impl Promise {
    fn encode(&self, sequence: u64) -> [u8; SLOT_BYTES] {
        let mut slot = [0_u8; SLOT_BYTES];
        slot[0..8].copy_from_slice(&MAGIC);
        slot[8..16].copy_from_slice(&sequence.to_le_bytes());
        let mut flags = 0_u8;
        if let Some(tail) = self.tail {
            flags |= 1;
            slot[17..25].copy_from_slice(&tail.index.to_le_bytes());
            slot[25..33].copy_from_slice(&tail.hash.to_le_bytes());
        }
        if let Some(vote) = self.vote {
            flags |= 2 | if vote.committed { 4 } else { 0 };
            slot[33..41].copy_from_slice(&vote.leader_id.term.to_le_bytes());
            slot[41..49].copy_from_slice(&vote.leader_id.voted_for.to_le_bytes());
        }
        slot[16] = flags;
        let checksum = crc32fast::hash(&slot[..SLOT_BYTES - 4]);
        slot[SLOT_BYTES - 4..].copy_from_slice(&checksum.to_le_bytes());
        slot
    }

    fn decode(slot: &[u8; SLOT_BYTES]) -> Option<(u64, Self)> {
        let word = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&slot[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        let mut checksum = [0; 4];
        checksum.copy_from_slice(&slot[SLOT_BYTES - 4..]);
        if slot[0..8] != MAGIC
            || crc32fast::hash(&slot[..SLOT_BYTES - 4]) != u32::from_le_bytes(checksum)
        {
            return None;
        }
        let flags = slot[16];
        let tail = (flags & 1 != 0).then(|| Tail {
            index: word(17),
            hash: word(25),
        });
        let vote = (flags & 2 != 0).then(|| {
            let (term, node) = (word(33), word(41));
            if flags & 4 != 0 {
                Vote::new_committed(term, node)
            } else {
                Vote::new(term, node)
            }
        });
        Some((word(8), Self { tail, vote }))
    }
}

/// The open mark file.
#[derive(Debug)]
pub(crate) struct Mark {
    file: File,
    path: PathBuf,
    sequence: u64,
    promise: Promise,
}

impl Mark {
    /// Creates a mark that promises nothing, durably.
    pub(crate) fn create(path: &Path) -> Result<Self, StoreError> {
        let promise = Promise::default();
        let mut bytes = vec![0; 2 * SLOT_STRIDE];
        bytes[..SLOT_BYTES].copy_from_slice(&promise.encode(0));
        folder::write_durably(path, &bytes)?;
        Self::open(path)
    }

    /// Opens the mark and reads the newer of its intact slots.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .at("open the mark", path)?;
        let mut newest: Option<(u64, Promise)> = None;
        for slot in [0, SLOT_STRIDE] {
            let mut bytes = [0; SLOT_BYTES];
            match file.read_exact_at(&mut bytes, slot as u64) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => continue,
                Err(source) => {
                    let path = path.to_owned();
                    return Err(StoreError::Io {
                        action: "read the mark",
                        path,
                        source,
                    });
                }
            }
            let found = Promise::decode(&bytes);
            if found.is_none() && bytes != [0; SLOT_BYTES] {
                tracing::warn!(path = %path.display(), slot, "a slot of the mark is unreadable");
            }
            newest = match (newest, found) {
                (Some(old), Some(new)) if old.0 > new.0 => Some(old),
                (old, new) => new.or(old),
            };
        }
        let Some((sequence, promise)) = newest else {
            return Err(StoreError::damaged(
                format!("the mark {}", path.display()),
                "no intact slot",
                "at least one of two",
            ));
        };
        Ok(Self {
            file,
            path: path.to_owned(),
            sequence,
            promise,
        })
    }

    /// What the mark says now.
    pub(crate) fn promise(&self) -> Promise {
        self.promise
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a promise and syncs it; nothing is written, and `false` answered, when it says the same.
    pub(crate) fn write(&mut self, promise: Promise) -> std::io::Result<bool> {
        if promise == self.promise {
            return Ok(false);
        }
        let sequence = self.sequence + 1;
        self.file.write_all_at(
            &promise.encode(sequence),
            (sequence % 2) * SLOT_STRIDE as u64,
        )?;
        self.file.sync_data()?;
        self.sequence = sequence;
        self.promise = promise;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn promise(index: u64) -> Promise {
        Promise {
            tail: Some(Tail {
                index,
                hash: index * 7,
            }),
            vote: Some(Vote::new_committed(index + 1, 3)),
        }
    }

    #[test]
    fn the_newest_promise_survives_and_a_torn_slot_leaves_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mark");
        let mut mark = Mark::create(&path).unwrap();
        assert_eq!(mark.promise(), Promise::default());
        for index in 0..5 {
            mark.write(promise(index)).unwrap();
        }
        drop(mark);
        assert_eq!(Mark::open(&path).unwrap().promise(), promise(4));

        let mut bytes = std::fs::read(&path).unwrap();
        bytes[SLOT_STRIDE + 20] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(
            Mark::open(&path).unwrap().promise(),
            promise(3),
            "the older slot"
        );

        bytes[20] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let words = Mark::open(&path).unwrap_err().to_string();
        assert!(
            words.contains("the mark") && words.contains("no intact slot"),
            "{words}"
        );
        std::fs::write(&path, b"").unwrap();
        assert!(Mark::open(&path).is_err(), "an empty mark is no mark");
    }
}
