//! The data folder: whose it is, who has it open, and files that are really there after a power cut.
//!
//! A new file is durable once it *and* its folder are synced. Identity is written last at creation: a folder with
//! an identity is complete, one without is empty or the rest of a start that was cut short. Next:
//! [`super::store`], which opens everything in order.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::fault::{self, At, StoreError};

/// First line of an identity file, before the number of the format.
const IDENTITY_TITLE: &str = "tollgate data folder, format ";

/// How all of the folder is written. 1 had log entries that were not packed; it was never released.
const FORMAT: u32 = 2;

/// Chunk in which the ballast is written.
const BALLAST_CHUNK: usize = 1 << 20;

/// Whose data a folder holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Name of the cluster; no control characters.
    pub cluster: String,
    /// Life of the cluster's data; a restore begins a new one.
    pub incarnation: u64,
    /// The node's id, never used again after its data was lost.
    pub node: u64,
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "cluster \"{}\" incarnation {} node {}",
            self.cluster, self.incarnation, self.node
        )
    }
}

/// The files of a data folder.
#[derive(Clone, Debug)]
pub(crate) struct Paths {
    pub(crate) root: PathBuf,
    pub(crate) identity: PathBuf,
    pub(crate) lock: PathBuf,
    pub(crate) mark: PathBuf,
    pub(crate) ballast: PathBuf,
    pub(crate) sled: PathBuf,
    pub(crate) snapshots: PathBuf,
}

impl Paths {
    pub(crate) fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            identity: root.join("identity"),
            lock: root.join("lock"),
            mark: root.join("mark"),
            ballast: root.join("ballast"),
            sled: root.join("sled"),
            snapshots: root.join("snapshots"),
        }
    }
}

/// Makes a file durable, content and size. A sync that fails ends the process.
pub(crate) fn sync_file(file: &File, path: &Path) {
    if let Err(error) = file.sync_all() {
        fault::sync_failed(path, &error);
    }
}

/// Makes a folder's entries durable. A sync that fails ends the process.
pub(crate) fn sync_dir(path: &Path) -> Result<(), StoreError> {
    let dir = File::open(path).at("open the folder", path)?;
    sync_file(&dir, path);
    Ok(())
}

/// Creates a folder with its parents and makes each of them durable.
pub(crate) fn create_dir(path: &Path) -> Result<(), StoreError> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent {
        create_dir(parent)?;
    }
    match fs::create_dir(path) {
        // Another node that starts beside this one was quicker.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        created => created.at("create the folder", path)?,
    }
    sync_dir(parent.unwrap_or(Path::new(".")))
}

/// Replaces a file in one step that survives a power cut: either the old or the new content is there.
pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let part = path.with_extension("part");
    let mut file = File::create(&part).at("create", &part)?;
    file.write_all(bytes).at("write", &part)?;
    sync_file(&file, &part);
    rename_durably(&part, path)
}

/// Renames within one folder and syncs it.
pub(crate) fn rename_durably(from: &Path, to: &Path) -> Result<(), StoreError> {
    fs::rename(from, to).at("rename", from)?;
    sync_dir(to.parent().unwrap_or(Path::new(".")))
}

/// Takes the folder for this process; held as long as the file is open.
pub(crate) fn lock(paths: &Paths) -> Result<File, StoreError> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&paths.lock)
        .at("create", &paths.lock)?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(
        |_| StoreError::InUse {
            path: paths.root.clone(),
        },
    )?;
    Ok(file)
}

fn identity_text(identity: &Identity, starts: u64) -> String {
    let body = format!(
        "{IDENTITY_TITLE}{FORMAT}\ncluster = {}\nincarnation = {}\nnode = {}\nstarts = {starts}\n",
        identity.cluster, identity.incarnation, identity.node
    );
    format!(
        "{body}checksum = {:08x}\n",
        crc32fast::hash(body.as_bytes())
    )
}

/// The format, and what it holds if that is [`FORMAT`].
fn parse_identity(text: &str) -> Option<(u32, Option<(Identity, u64)>)> {
    let (body, checksum) = text.trim_end().rsplit_once("checksum = ")?;
    if format!("{:08x}", crc32fast::hash(body.as_bytes())) != checksum {
        return None;
    }
    let mut lines = body.lines();
    let format = lines.next()?.strip_prefix(IDENTITY_TITLE)?.parse().ok()?;
    if format != FORMAT {
        return Some((format, None));
    }
    let mut field = |name: &str| -> Option<String> {
        Some(
            lines
                .next()?
                .strip_prefix(name)?
                .strip_prefix(" = ")?
                .to_owned(),
        )
    };
    let cluster = field("cluster")?;
    let incarnation = field("incarnation")?.parse().ok()?;
    let node = field("node")?.parse().ok()?;
    let starts = field("starts")?.parse().ok()?;
    let identity = Identity {
        cluster,
        incarnation,
        node,
    };
    Some((format, Some((identity, starts))))
}

/// Reads whose the folder is and how often it was started; none when the file is absent.
pub(crate) fn read_identity(paths: &Paths) -> Result<Option<(Identity, u64)>, StoreError> {
    let bytes = match fs::read(&paths.identity) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            let path = paths.identity.clone();
            return Err(StoreError::Io {
                action: "read",
                path,
                source,
            });
        }
    };
    match std::str::from_utf8(&bytes).ok().and_then(parse_identity) {
        Some((_, Some(found))) => Ok(Some(found)),
        Some((found, None)) => Err(StoreError::Format {
            what: format!("the data folder {}", paths.root.display()),
            found,
            expected: FORMAT,
        }),
        None => Err(StoreError::damaged(
            format!("the identity file {}", paths.identity.display()),
            format!("{} bytes that do not add up to their checksum", bytes.len()),
            "what an earlier start wrote",
        )),
    }
}

/// Writes the identity with a start counted up, before anything is sent under it.
pub(crate) fn write_identity(
    paths: &Paths,
    identity: &Identity,
    starts: u64,
) -> Result<(), StoreError> {
    write_durably(&paths.identity, identity_text(identity, starts).as_bytes())
}

/// Keeps `bytes` of disk in reserve. Not having them is a warning, not an error: the store may still fit.
pub(crate) fn keep_ballast(paths: &Paths, bytes: u64) {
    let held = fs::metadata(&paths.ballast).map_or(0, |metadata| metadata.len());
    if held >= bytes {
        return;
    }
    // Noise, not zeroes: a file system that compresses would keep none of it.
    let write = || -> std::io::Result<()> {
        let mut chunk = vec![0; BALLAST_CHUNK];
        getrandom::fill(&mut chunk).map_err(|error| std::io::Error::other(error.to_string()))?;
        let mut file = File::create(&paths.ballast)?;
        let mut left = bytes;
        while left > 0 {
            let take = usize::try_from(left)
                .unwrap_or(BALLAST_CHUNK)
                .min(BALLAST_CHUNK);
            file.write_all(&chunk[..take])?;
            left -= take as u64;
        }
        file.sync_all()
    };
    if let Err(error) = write() {
        let _ = fs::remove_file(&paths.ballast);
        tracing::warn!(path = %paths.ballast.display(), %error, "no room for the ballast file");
    }
}

/// Gives the ballast up, so that a start on a full disk has room to write; says whether there was any.
pub(crate) fn drop_ballast(paths: &Paths) -> bool {
    let dropped = fs::remove_file(&paths.ballast).is_ok();
    if dropped {
        tracing::warn!(
            path = %paths.ballast.display(),
            "the disk is full: the ballast was given up for this start; free space now"
        );
    }
    dropped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_reads_back_and_any_flipped_bit_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path());
        assert_eq!(read_identity(&paths).unwrap(), None);
        let identity = Identity {
            cluster: "a = b".into(),
            incarnation: 3,
            node: 9,
        };
        write_identity(&paths, &identity, 41).unwrap();
        assert_eq!(read_identity(&paths).unwrap(), Some((identity, 41)));
        let good = fs::read(&paths.identity).unwrap();
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            fs::write(&paths.identity, &bytes).unwrap();
            match read_identity(&paths) {
                Err(StoreError::Damaged { .. }) => {}
                // Trailing white space is not content.
                other => assert!(bit / 8 == good.len() - 1, "bit {bit}: {other:?}"),
            }
        }
    }

    #[test]
    fn nodes_that_start_at_once_make_their_common_folder_together() {
        let dir = tempfile::tempdir().unwrap();
        for round in 0..100 {
            let common = dir.path().join(round.to_string());
            let together = std::sync::Barrier::new(4);
            std::thread::scope(|scope| {
                for node in 0..4 {
                    let (common, together) = (&common, &together);
                    scope.spawn(move || {
                        together.wait();
                        create_dir(&common.join(format!("node-{node}"))).unwrap();
                    });
                }
            });
        }
    }

    #[test]
    fn a_folder_is_one_processes_own() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path());
        let held = lock(&paths).unwrap();
        assert!(matches!(lock(&paths), Err(StoreError::InUse { .. })));
        drop(held);
        lock(&paths).unwrap();
    }
}
