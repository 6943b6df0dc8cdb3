//! The pepper: the one secret that turns a presented secret into what is stored of it.
//!
//! Edges never hold it, so a stolen ledger opens nothing. Read once from a file that nobody else may read; its id
//! (a short hash) stands beside every stored HMAC, and in the ledger as the cluster's: a node with another one does
//! not serve. Refuses to print itself.

use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};
use std::fmt;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use tollgate_core::catalog::{PepperId, SecretMac};

/// Fewest bytes of a pepper file.
pub const PEPPER_BYTES_MIN: usize = 32;
/// Most bytes of a pepper file.
pub const PEPPER_BYTES_MAX: usize = 1024;

/// Why a pepper was refused.
#[derive(Debug, thiserror::Error)]
pub enum PepperError {
    /// The file cannot be read.
    #[error("cannot read the pepper {}: {source}; make it with `head -c 32 /dev/urandom`, mode 0600, \
        and give every node the same", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Others may read or write it.
    #[error("the pepper {} has mode {mode:04o}, expected 0600 or 0400: others could read it; \
        use `chmod 600`", path.display())]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Too few or too many bytes.
    #[error("the pepper {} has {found} bytes, expected {PEPPER_BYTES_MIN} to {PEPPER_BYTES_MAX}", path.display())]
    Length {
        /// The file.
        path: PathBuf,
        /// Its size, as far as it was read.
        found: usize,
    },
}

/// See the module's text.
#[derive(Clone)]
pub struct Pepper {
    file: PathBuf,
    secret: Vec<u8>,
    id: PepperId,
}

/// The cluster has another pepper than this node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the pepper {} has the id {}, but the cluster's keys are stored under the pepper with the id {}: this node would refuse \
     them all, and other nodes those made here. Every node has the same pepper: copy the file of a node that serves here, \
     or correct `pepper.file`",
    file.display(), found.0, expected.0
)]
pub struct OtherPepper {
    /// The node's file.
    pub file: PathBuf,
    /// The node's pepper.
    pub found: PepperId,
    /// The cluster's.
    pub expected: PepperId,
}

impl fmt::Debug for Pepper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pepper({})", self.id.0)
    }
}

impl Pepper {
    /// Reads and checks a pepper file.
    ///
    /// # Errors
    /// [`PepperError`].
    pub fn load(path: &Path) -> Result<Self, PepperError> {
        let failed = |source| PepperError::Read {
            path: path.to_owned(),
            source,
        };
        let file = std::fs::File::open(path).map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(PepperError::Mode {
                path: path.to_owned(),
                mode,
            });
        }
        let mut secret = Vec::new();
        file.take(PEPPER_BYTES_MAX as u64 + 1)
            .read_to_end(&mut secret)
            .map_err(failed)?;
        if !(PEPPER_BYTES_MIN..=PEPPER_BYTES_MAX).contains(&secret.len()) {
            return Err(PepperError::Length {
                path: path.to_owned(),
                found: secret.len(),
            });
        }
        let digest = Sha256::new()
            .chain_update(b"tollgate pepper id\0")
            .chain_update(&secret)
            .finalize();
        let id = PepperId(u32::from_le_bytes([
            digest[0], digest[1], digest[2], digest[3],
        ]));
        Ok(Self {
            file: path.to_owned(),
            secret,
            id,
        })
    }

    /// Names the pepper without telling it.
    #[must_use]
    pub fn id(&self) -> PepperId {
        self.id
    }

    /// Refuses to be another pepper than the cluster's.
    ///
    /// # Errors
    /// [`OtherPepper`].
    pub fn is_the_clusters(&self, cluster: PepperId) -> Result<(), OtherPepper> {
        if self.id == cluster {
            return Ok(());
        }
        Err(OtherPepper {
            file: self.file.clone(),
            found: self.id,
            expected: cluster,
        })
    }

    /// What is stored of a secret, given its SHA-256.
    ///
    /// # Panics
    /// Never: HMAC takes keys of any length.
    #[must_use]
    pub fn mac(&self, secret_sha256: &[u8; 32]) -> SecretMac {
        let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(&self.secret)
            .unwrap_or_else(|error| unreachable!("HMAC takes keys of any length: {error}"));
        mac.update(secret_sha256);
        SecretMac {
            hmac: mac.finalize().into_bytes().into(),
            pepper: self.id,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn written(bytes: &[u8], mode: u32) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pepper");
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        (dir, path)
    }

    #[test]
    fn short_open_or_missing_files_are_refused() {
        let (_dir, path) = written(&[7; 31], 0o600);
        assert!(matches!(
            Pepper::load(&path),
            Err(PepperError::Length { found: 31, .. })
        ));
        let (_dir, path) = written(&[7; 32], 0o640);
        assert!(matches!(
            Pepper::load(&path),
            Err(PepperError::Mode { mode: 0o640, .. })
        ));
        assert!(matches!(
            Pepper::load(&path.join("none")),
            Err(PepperError::Read { .. })
        ));
    }

    #[test]
    fn the_mac_depends_on_pepper_and_secret_and_neither_is_shown() {
        let load = |byte| {
            let (_dir, path) = written(&[byte; 32], 0o600);
            Pepper::load(&path).unwrap()
        };
        let (one, other) = (load(1), load(2));
        assert_ne!(one.id(), other.id());
        assert_eq!(one.mac(&[9; 32]), load(1).mac(&[9; 32]));
        assert_ne!(one.mac(&[9; 32]).hmac, one.mac(&[8; 32]).hmac);
        assert_ne!(one.mac(&[9; 32]).hmac, other.mac(&[9; 32]).hmac);
        assert_eq!(format!("{one:?}"), format!("Pepper({})", one.id().0));
    }

    #[test]
    fn another_pepper_than_the_clusters_is_named_by_file_and_ids() {
        let (_dir, path) = written(&[1; 32], 0o600);
        let pepper = Pepper::load(&path).unwrap();
        pepper.is_the_clusters(pepper.id()).unwrap();
        let words = pepper.is_the_clusters(PepperId(7)).unwrap_err().to_string();
        let (own, file) = (pepper.id().0.to_string(), path.to_str().unwrap());
        for part in [file, &own, "id 7", "copy the file", "`pepper.file`"] {
            assert!(words.contains(part), "`{part}` in `{words}`");
        }
    }
}
