//! Snapshot files: a whole state and its audit entries in one checksummed file, which doubles as a backup.
//!
//! `TGSNAP`, version; head length, head, CRC-32; parts (kind, key length, content length, key, content); an end
//! with counts and the xxh3-128 of everything before it. A file is complete under its final name or not there at
//! all. Refuses a file of another cluster or incarnation. Next: [`super::state`], which builds and installs them.

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use super::checkpoint::{self, Checkpoint};
use super::fault::{At, Doing, StoreError};
use super::folder::{self, Identity};
use super::record::{self, RECORD_BYTES_MAX};
use super::store::Shared;
use crate::raft::types::SnapshotMeta;

const MAGIC: [u8; 8] = *b"TGSNAP\x00\x01";
const HEAD_BYTES_MAX: usize = RECORD_BYTES_MAX;
const KIND_END: u8 = 0;
const KIND_STATE: u8 = 1;
const KIND_AUDIT: u8 = 2;
const EXTENSION: &str = "snapshot";
const EXTENSION_PART: &str = "part";

/// What a snapshot covers and whose it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    pub(crate) cluster: String,
    pub(crate) incarnation: u64,
    pub(crate) meta: SnapshotMeta,
    pub(crate) digest: u128,
}

/// One piece of a snapshot.
pub(crate) enum Part<'a> {
    /// A record of the state: key, content.
    State(&'a [u8], &'a [u8]),
    /// An audit entry: number, content.
    Audit(u64, &'a [u8]),
}

/// A snapshot on disk. Cloning shares the open file, which stays readable when a newer snapshot replaces it.
#[derive(Clone, Debug)]
pub struct SnapshotFile {
    path: PathBuf,
    file: Arc<File>,
    meta: SnapshotMeta,
    bytes: u64,
}

fn digest_of(hasher: &Xxh3) -> [u8; 16] {
    hasher.digest128().to_le_bytes()
}

/// Writes to a file and hashes what goes by.
struct Hashed<W> {
    inner: W,
    hasher: Xxh3,
}

impl<W: Write> Hashed<W> {
    fn put(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.hasher.update(bytes);
        self.inner.write_all(bytes)
    }

    fn put_part(&mut self, kind: u8, key: &[u8], content: &[u8]) -> std::io::Result<()> {
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).map_err(std::io::Error::other);
        self.put(&[kind])?;
        self.put(&length(key)?.to_le_bytes())?;
        self.put(&length(content)?.to_le_bytes())?;
        self.put(key)?;
        self.put(content)
    }
}

/// Reads at its own position: several readers share one open file.
struct Positioned<'a> {
    file: &'a File,
    at: u64,
}

impl Read for Positioned<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        let taken = self.file.read_at(bytes, self.at)?;
        self.at += taken as u64;
        Ok(taken)
    }
}

/// Reads from a file and hashes what goes by.
struct Source<'a> {
    inner: BufReader<Positioned<'a>>,
    hasher: Xxh3,
    file: &'a SnapshotFile,
}

impl Source<'_> {
    fn take(&mut self, bytes: &mut [u8]) -> Result<(), StoreError> {
        match self.inner.read_exact(bytes) {
            Ok(()) => {
                self.hasher.update(bytes);
                Ok(())
            }
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                Err(self.file.damaged("an early end", "an end marker"))
            }
            Err(source) => Err(StoreError::Io {
                action: "read",
                path: self.file.path.clone(),
                source,
            }),
        }
    }

    fn take_u32(&mut self, limit: usize) -> Result<usize, StoreError> {
        let mut bytes = [0; 4];
        self.take(&mut bytes)?;
        let length = u32::from_le_bytes(bytes) as usize;
        if length > limit {
            return Err(self.file.damaged(
                format!("a part of {length} bytes"),
                format!("at most {limit}"),
            ));
        }
        Ok(length)
    }

    fn head(&mut self) -> Result<Head, StoreError> {
        let mut magic = [0; 8];
        self.take(&mut magic)?;
        if magic[..7] == MAGIC[..7] && magic[7] > MAGIC[7] {
            return Err(StoreError::Format {
                what: self.file.name(),
                found: magic[7].into(),
                expected: MAGIC[7].into(),
            });
        }
        if magic != MAGIC {
            return Err(self.file.damaged("another kind of file", "a snapshot"));
        }
        let length = self.take_u32(HEAD_BYTES_MAX)?;
        let mut body = vec![0; length];
        self.take(&mut body)?;
        let mut checksum = [0; 4];
        self.take(&mut checksum)?;
        if crc32fast::hash(&body) != u32::from_le_bytes(checksum) {
            return Err(self
                .file
                .damaged("a head that is not its checksum's", "an intact head"));
        }
        record::decode(&body, || self.file.name())
    }

    /// Reads all parts up to and including the end.
    fn parts(
        &mut self,
        mut each: impl FnMut(Part<'_>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let (mut key, mut content) = (Vec::new(), Vec::new());
        let mut counts = [0_u64; 2];
        loop {
            let mut kind = [0];
            self.take(&mut kind)?;
            if kind[0] == KIND_END {
                break;
            }
            let (key_length, length) = (
                self.take_u32(RECORD_BYTES_MAX)?,
                self.take_u32(RECORD_BYTES_MAX)?,
            );
            key.resize(key_length, 0);
            content.resize(length, 0);
            self.take(&mut key)?;
            self.take(&mut content)?;
            match (kind[0], <[u8; 8]>::try_from(key.as_slice())) {
                (KIND_STATE, _) => each(Part::State(&key, &content))?,
                (KIND_AUDIT, Ok(key)) => each(Part::Audit(u64::from_be_bytes(key), &content))?,
                (kind, _) => {
                    return Err(self
                        .file
                        .damaged(format!("a part of kind {kind}"), "1 or 2"));
                }
            }
            counts[usize::from(kind[0] - 1)] += 1;
        }
        for count in counts {
            let mut found = [0; 8];
            self.take(&mut found)?;
            if u64::from_le_bytes(found) != count {
                return Err(self.file.damaged(
                    format!("{count} parts"),
                    u64::from_le_bytes(found).to_string(),
                ));
            }
        }
        let expected = digest_of(&self.hasher);
        let mut found = [0; 16];
        self.take(&mut found)?;
        if found != expected {
            return Err(self
                .file
                .damaged("content that is not its checksum's", "intact content"));
        }
        if self.inner.read(&mut [0]).at("read", &self.file.path)? != 0 {
            return Err(self.file.damaged("bytes behind the end", "none"));
        }
        Ok(())
    }
}

impl SnapshotFile {
    /// Opens a snapshot and reads its head; [`Self::verify`] reads the rest.
    ///
    /// # Errors
    /// [`StoreError`] when the file cannot be read or its head is damaged.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let file = Arc::new(File::open(path).at("open", path)?);
        let bytes = file.metadata().at("read", path)?.len();
        let meta = SnapshotMeta::default();
        let mut snapshot = Self {
            path: path.to_owned(),
            file,
            meta,
            bytes,
        };
        let meta = snapshot.source().head()?.meta;
        snapshot.meta = meta;
        Ok(snapshot)
    }

    /// What the snapshot covers.
    #[must_use]
    pub fn meta(&self) -> &SnapshotMeta {
        &self.meta
    }

    /// Size of the file.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Reads a piece of the file, for sending it; 0 at its end.
    ///
    /// # Errors
    /// The system's.
    pub fn read_at(&self, bytes: &mut [u8], offset: u64) -> std::io::Result<usize> {
        self.file.read_at(bytes, offset)
    }

    /// Where the file lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The audit entries in the snapshot, in order of their numbers. Reads the whole file.
    ///
    /// # Errors
    /// [`StoreError`] when the file is damaged.
    pub fn audit_entries(&self) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        let mut entries = Vec::new();
        self.each(|part| {
            if let Part::Audit(sequence, content) = part {
                entries.push((sequence, content.to_vec()));
            }
            Ok(())
        })?;
        Ok(entries)
    }

    /// The file's name, for the operator.
    pub(crate) fn name(&self) -> String {
        format!("snapshot {}", self.path.display())
    }

    fn damaged(&self, found: impl Into<String>, expected: impl Into<String>) -> StoreError {
        StoreError::Damaged {
            what: self.name(),
            found: found.into(),
            expected: expected.into(),
            repair: "move the file away and start again: the node builds a new one, or refuses and \
                     says so if it needed this one",
        }
    }

    fn source(&self) -> Source<'_> {
        let inner = BufReader::with_capacity(
            1 << 16,
            Positioned {
                file: &self.file,
                at: 0,
            },
        );
        Source {
            inner,
            hasher: Xxh3::new(),
            file: self,
        }
    }

    /// Reads the whole file and checks everything that can be checked without a machine.
    pub(crate) fn verify(&self, owner: Option<&Identity>) -> Result<Head, StoreError> {
        let mut source = self.source();
        let head = source.head()?;
        if let Some(owner) = owner
            && (head.cluster != owner.cluster || head.incarnation != owner.incarnation)
        {
            return Err(StoreError::Foreign {
                path: self.path.clone(),
                found: format!(
                    "cluster \"{}\" incarnation {}",
                    head.cluster, head.incarnation
                ),
                expected: format!(
                    "cluster \"{}\" incarnation {}",
                    owner.cluster, owner.incarnation
                ),
            });
        }
        source.parts(|_| Ok(()))?;
        Ok(head)
    }

    /// Hands out every part; call [`Self::verify`] first.
    pub(crate) fn each(
        &self,
        each: impl FnMut(Part<'_>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut source = self.source();
        source.head()?;
        source.parts(each)
    }

    /// Gives the file its final name in `dir`, durably; a file from elsewhere is copied.
    pub(crate) fn adopt(&self, dir: &Path) -> Result<Self, StoreError> {
        let target = dir.join(file_name(&self.meta));
        if self.path == target {
            return Ok(self.clone());
        }
        if self.path.parent() == Some(dir) {
            folder::sync_file(&self.file, &self.path);
            folder::rename_durably(&self.path, &target)?;
        } else {
            let part = target.with_extension(EXTENSION_PART);
            fs::copy(&self.path, &part).at("copy", &self.path)?;
            folder::sync_file(&File::open(&part).at("open", &part)?, &part);
            folder::rename_durably(&part, &target)?;
        }
        Self::open(&target)
    }
}

fn file_name(meta: &SnapshotMeta) -> String {
    let (term, index) = meta
        .last_log_id
        .map_or((0, 0), |id| (id.committed_leader_id().term, id.index));
    format!("{index:020}-{term}.{EXTENSION}")
}

/// Where a snapshot that is being received is kept until it is whole.
#[must_use]
pub(crate) fn incoming_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("incoming-{number}.{EXTENSION_PART}"))
}

/// Writes the frozen checkpoint as a snapshot, durably. Reads one record at a time.
pub(crate) fn write(shared: &Shared, frozen: &Checkpoint) -> Result<SnapshotFile, StoreError> {
    let meta = SnapshotMeta {
        last_log_id: frozen.applied,
        last_membership: frozen.membership.clone(),
    };
    let target = shared.paths.snapshots.join(file_name(&meta));
    let part = target.with_extension(EXTENSION_PART);
    let head = record::encode(&Head {
        cluster: shared.identity.cluster.clone(),
        incarnation: shared.identity.incarnation,
        meta,
        digest: frozen.digest,
    })?;
    let file = File::create(&part).at("create", &part)?;
    let mut out = Hashed {
        inner: BufWriter::with_capacity(1 << 16, file),
        hasher: Xxh3::new(),
    };
    let length = u32::try_from(head.len()).unwrap_or(u32::MAX);
    out.put(&MAGIC)
        .and_then(|()| out.put(&length.to_le_bytes()))
        .and_then(|()| out.put(&head))
        .and_then(|()| out.put(&crc32fast::hash(&head).to_le_bytes()))
        .at("write", &part)?;
    let mut counts = [0_u64; 2];
    for item in checkpoint::records(&shared.state, frozen.generation) {
        let (key, content) = item?;
        out.put_part(KIND_STATE, &key, &content)
            .at("write", &part)?;
        counts[0] += 1;
    }
    let audited = frozen.audit_head.map_or(0, |head| head.saturating_add(1));
    for item in shared.audit.range(..audited.to_be_bytes()) {
        let (key, value) = item.doing("read from")?;
        let sequence = super::log::index_of(&key)?;
        let content = record::unwrap(&key, &value, || checkpoint::audit_name(sequence))?;
        out.put_part(KIND_AUDIT, &key, content).at("write", &part)?;
        counts[1] += 1;
    }
    out.put(&[KIND_END])
        .and_then(|()| out.put(&counts[0].to_le_bytes()))
        .and_then(|()| out.put(&counts[1].to_le_bytes()))
        .at("write", &part)?;
    let digest = digest_of(&out.hasher);
    out.put(&digest).at("write", &part)?;
    let file = out
        .inner
        .into_inner()
        .map_err(std::io::IntoInnerError::into_error);
    folder::sync_file(&file.at("write", &part)?, &part);
    folder::rename_durably(&part, &target)?;
    SnapshotFile::open(&target)
}

/// The newest snapshot of a folder, verified; removes what a crash left half-written.
pub(crate) fn find(dir: &Path, owner: &Identity) -> Result<Option<SnapshotFile>, StoreError> {
    let mut names: Vec<PathBuf> = Vec::new();
    for item in fs::read_dir(dir).at("list", dir)? {
        let path = item.at("list", dir)?.path();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some(EXTENSION) => names.push(path),
            Some(EXTENSION_PART) => fs::remove_file(&path).at("remove", &path)?,
            _ => {}
        }
    }
    names.sort();
    let Some(newest) = names.pop() else {
        return Ok(None);
    };
    let file = SnapshotFile::open(&newest)?;
    file.verify(Some(owner))?;
    for older in names {
        fs::remove_file(&older).at("remove", &older)?;
    }
    Ok(Some(file))
}

/// Removes every snapshot of the folder but `keep`.
pub(crate) fn remove_others(dir: &Path, keep: &SnapshotFile) -> Result<(), StoreError> {
    for item in fs::read_dir(dir).at("list", dir)? {
        let path = item.at("list", dir)?.path();
        let is_snapshot = path
            .extension()
            .is_some_and(|extension| extension == EXTENSION);
        if is_snapshot && path != keep.path {
            fs::remove_file(&path).at("remove", &path)?;
        }
    }
    Ok(())
}
