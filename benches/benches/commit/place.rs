//! Where the data lies, and how fast that disk syncs on its own.
//!
//! Owns the folder of a run and the bare `fdatasync` beside which every figure stands. Refuses a
//! filesystem in memory: there a sync costs nothing and every figure would be wrong.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::load::Latency;

/// Names another folder than the one under `target/`.
const FOLDER_VARIABLE: &str = "TOLLGATE_BENCH_DIR";

/// How long the disk is measured, before everything and after.
const MEASURED: Duration = Duration::from_secs(2);

/// What a sync covers: one small record appended.
const APPENDED_BYTES: usize = 512;

/// A folder on a disk, removed with everything in it at the end.
pub(crate) struct Place {
    home: tempfile::TempDir,
    filesystem: String,
}

impl Place {
    pub(crate) fn new() -> Result<Self, String> {
        let parent = std::env::var_os(FOLDER_VARIABLE)
            .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
        let home = tempfile::Builder::new()
            .prefix("commit-bench-")
            .tempdir_in(&parent)
            .map_err(|error| format!("{}: {error}", parent.display()))?;
        let (kind, mount) = filesystem(home.path())?;
        if ["tmpfs", "ramfs", "overlay"].contains(&kind.as_str()) {
            return Err(format!(
                "{} lies on {kind}: a sync there is none; name a folder on a disk in {FOLDER_VARIABLE}",
                parent.display()
            ));
        }
        let filesystem = format!("{kind} ({mount})");
        Ok(Self { home, filesystem })
    }

    pub(crate) fn path(&self) -> &Path {
        self.home.path()
    }

    pub(crate) fn filesystem(&self) -> &str {
        &self.filesystem
    }

    /// Appends and syncs, one after another, for [`MEASURED`].
    pub(crate) fn bare_syncs(&self) -> Syncs {
        let path = self.path().join("bare");
        let mut file = File::create(&path).unwrap();
        let mut latency = Latency::default();
        let began = Instant::now();
        while began.elapsed() < MEASURED {
            let sync = Instant::now();
            file.write_all(&[7; APPENDED_BYTES]).unwrap();
            file.sync_data().unwrap();
            latency.record(sync.elapsed());
        }
        let per_second = latency.len() as f64 / began.elapsed().as_secs_f64();
        std::fs::remove_file(&path).unwrap();
        Syncs {
            per_second,
            latency,
        }
    }
}

/// What the disk did on its own.
pub(crate) struct Syncs {
    pub(crate) per_second: f64,
    pub(crate) latency: Latency,
}

/// Kind and source of the filesystem a folder lies on.
fn filesystem(folder: &Path) -> Result<(String, String), String> {
    let folder = folder
        .canonicalize()
        .map_err(|error| format!("{}: {error}", folder.display()))?;
    let mounts = std::fs::read_to_string("/proc/self/mounts")
        .map_err(|error| format!("/proc/self/mounts: {error}"))?;
    let fields = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        Some((fields.next()?, fields.next()?, fields.next()?))
    });
    let longest = fields
        .filter(|(_, mount, _)| folder.starts_with(mount))
        .max_by_key(|(_, mount, _)| mount.len());
    longest
        .map(|(source, _, kind)| (kind.to_owned(), source.to_owned()))
        .ok_or_else(|| format!("no mount holds {}", folder.display()))
}
