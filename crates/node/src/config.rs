//! What a node is told: one TOML file, checked as a whole before anything is opened.
//!
//! Paths are relative to the file. Every field's text gives its unit and default; [`ServerConfig::validate`]
//! names the field, what stands there and what may. Refuses unknown fields: a misspelt one would be a default in
//! silence. Next: [`crate::server`].

use crate::raft::Settings;
use crate::storage::{Identity, StoreConfig};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tollgate_core::ids::{Incarnation, NodeId};
use tollgate_wire::identity::{PeerIdentity, Role};
use tollgate_wire::tls::TlsFiles;

/// Most members a cluster starts with.
pub const MEMBERS_MAX: usize = 7;

/// Log entries kept behind a snapshot for members that are a little late.
pub const KEEP_ENTRIES: u64 = 1000;

/// Largest configuration file, in bytes.
pub const CONFIG_BYTES_MAX: u64 = 64 * 1024;

/// The configuration of one node.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerConfig {
    /// The cluster's name, as in every certificate: 1 to 40 of `a-z 0-9 -`.
    pub cluster: String,
    /// This node's id, as in its certificate; at least 1, never used again after its data was lost.
    pub node: u64,
    /// Folder of the log, the state and the snapshots; made at the first start.
    pub data_dir: PathBuf,
    /// Where it listens.
    pub listen: Listen,
    /// The members the cluster begins with, this node among them. Alike on every node.
    #[serde(rename = "member")]
    pub members: Vec<Member>,
    /// Its certificates.
    pub tls: TlsSection,
    /// The secret under which key secrets are stored.
    pub pepper: PepperSection,
    /// Timing of Raft; the defaults suit one data centre.
    #[serde(default)]
    pub raft: RaftSection,
    /// Storage; the defaults suit a small disk.
    #[serde(default)]
    pub storage: StorageSection,
}

/// Listening addresses. Port 0 takes a free one.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listen {
    /// QUIC for nodes and edges (UDP).
    pub quic: SocketAddr,
    /// HTTPS for administration (TCP); asks for a certificate of role `admin`.
    pub admin: SocketAddr,
    /// Plain HTTP for `/metrics`, `/livez`, `/readyz` (TCP); absent: not served. They tell of no customer and
    /// need no certificate, so keep the address private.
    pub metrics: Option<SocketAddr>,
}

/// One member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Its id.
    pub node: u64,
    /// `host:port` of its QUIC listener, as the others reach it.
    pub quic: String,
}

/// Certificate files.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsSection {
    /// The authorities believed, PEM.
    pub ca: PathBuf,
    /// The node's certificate, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

/// The pepper.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PepperSection {
    /// A file of at least 32 random bytes that only the node's user may read (mode 0600 or 0400); the same on
    /// every node, never changed: a node with another pepper than the cluster's stops and says so.
    pub file: PathBuf,
}

/// Timing of Raft, in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RaftSection {
    /// Between heartbeats of the leader; default 100.
    pub heartbeat_ms: u64,
    /// Shortest silence after which a follower stands for election; default 250.
    pub election_min_ms: u64,
    /// Longest; default 400.
    pub election_max_ms: u64,
    /// Log entries between two snapshots; default 20,000.
    pub snapshot_entries: u64,
}

impl Default for RaftSection {
    fn default() -> Self {
        Self {
            heartbeat_ms: 100,
            election_min_ms: 250,
            election_max_ms: 400,
            snapshot_entries: 20_000,
        }
    }
}

/// Storage.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StorageSection {
    /// Memory for sled's pages, in MiB; default 64.
    pub cache_mib: u64,
    /// Between two checkpoints of the state, in milliseconds; default 200.
    pub checkpoint_ms: u64,
    /// Disk kept in reserve for a start on a full disk, in MiB; default 8, 0 for none.
    pub ballast_mib: u64,
}

impl Default for StorageSection {
    fn default() -> Self {
        Self {
            cache_mib: 64,
            checkpoint_ms: 200,
            ballast_mib: 8,
        }
    }
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is too large to be one.
    #[error("the configuration {} has {found} bytes, expected at most {CONFIG_BYTES_MAX}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        found: u64,
    },
    /// The file is no TOML, or has a field too many, too few, or of another type.
    #[error("the configuration {}: {reason}", path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// Line, field, what was expected.
        reason: String,
    },
    /// A value cannot be.
    #[error("the configuration field `{field}`: found {found}, expected {expected}")]
    Value {
        /// The field.
        field: String,
        /// What stands there.
        found: String,
        /// What may stand there.
        expected: String,
    },
}

impl ServerConfig {
    /// Reads and checks a file; relative paths in it become relative to its folder.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let failed = |source| ConfigError::Read {
            path: path.to_owned(),
            source,
        };
        let found = std::fs::metadata(path).map_err(failed)?.len();
        if found > CONFIG_BYTES_MAX {
            return Err(ConfigError::TooLarge {
                path: path.to_owned(),
                found,
            });
        }
        let text = std::fs::read_to_string(path).map_err(failed)?;
        let mut config: Self = toml::from_str(&text).map_err(|error| ConfigError::Toml {
            path: path.to_owned(),
            reason: error.to_string().trim_end().to_owned(),
        })?;
        config.rebase(path.parent().unwrap_or(Path::new("")));
        config.validate()?;
        Ok(config)
    }

    /// Puts a folder before every relative path.
    fn rebase(&mut self, base: &Path) {
        let Self {
            data_dir,
            tls,
            pepper,
            ..
        } = self;
        for path in [
            data_dir,
            &mut tls.ca,
            &mut tls.certificate,
            &mut tls.key,
            &mut pepper.file,
        ] {
            *path = base.join(&*path);
        }
    }

    /// Checks the values against each other.
    ///
    /// # Errors
    /// [`ConfigError::Value`] for the first that cannot be.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let wrong = |field: &str, found: &dyn std::fmt::Display, expected: &str| {
            let (field, found) = (field.to_owned(), format!("`{found}`"));
            Err(ConfigError::Value {
                field,
                found,
                expected: expected.to_owned(),
            })
        };
        if let Err(error) = PeerIdentity::new(&self.cluster, Role::Admin, "check") {
            return wrong("cluster", &self.cluster, &error.to_string());
        }
        if self.node == 0 {
            return wrong("node", &self.node, "1 or more");
        }
        if self.members.is_empty() || self.members.len() > MEMBERS_MAX {
            let expected = format!("1 to {MEMBERS_MAX} members, 3 or 5 to survive a loss");
            return wrong("member", &self.members.len(), &expected);
        }
        let mut ids = BTreeSet::new();
        for member in &self.members {
            if member.node == 0 || !ids.insert(member.node) {
                return wrong("member.node", &member.node, "each id once, 1 or more");
            }
            let port = member.quic.rsplit_once(':').and_then(|(host, port)| {
                (!host.is_empty())
                    .then(|| port.parse::<u16>().ok())
                    .flatten()
            });
            if port.is_none_or(|port| port == 0) {
                return wrong(
                    "member.quic",
                    &member.quic,
                    "HOST:PORT, as in 127.0.0.1:7101",
                );
            }
        }
        if !ids.contains(&self.node) {
            let known = ids
                .iter()
                .map(u64::to_string)
                .collect::<Vec<_>>()
                .join(", ");
            return wrong("node", &self.node, &format!("one of the members: {known}"));
        }
        let raft = &self.raft;
        if !(20..=5_000).contains(&raft.heartbeat_ms) {
            return wrong("raft.heartbeat_ms", &raft.heartbeat_ms, "20 to 5000");
        }
        if raft.election_min_ms <= raft.heartbeat_ms.saturating_mul(2) {
            let expected = "more than twice raft.heartbeat_ms";
            return wrong("raft.election_min_ms", &raft.election_min_ms, expected);
        }
        if raft.election_max_ms <= raft.election_min_ms || raft.election_max_ms > 60_000 {
            return wrong(
                "raft.election_max_ms",
                &raft.election_max_ms,
                "more than raft.election_min_ms, at most 60000",
            );
        }
        if raft.snapshot_entries <= KEEP_ENTRIES {
            let expected = format!("more than {KEEP_ENTRIES}");
            return wrong("raft.snapshot_entries", &raft.snapshot_entries, &expected);
        }
        let storage = &self.storage;
        if !(8..=1_048_576).contains(&storage.cache_mib) {
            return wrong("storage.cache_mib", &storage.cache_mib, "8 to 1048576");
        }
        if !(10..=10_000).contains(&storage.checkpoint_ms) {
            return wrong(
                "storage.checkpoint_ms",
                &storage.checkpoint_ms,
                "10 to 10000",
            );
        }
        if storage.ballast_mib > 65_536 {
            return wrong("storage.ballast_mib", &storage.ballast_mib, "0 to 65536");
        }
        Ok(())
    }

    /// This node's id.
    #[must_use]
    pub fn node_id(&self) -> NodeId {
        NodeId(self.node)
    }

    /// Raft's settings.
    #[must_use]
    pub fn raft_settings(&self) -> Settings {
        Settings {
            heartbeat_ms: self.raft.heartbeat_ms,
            election_min_ms: self.raft.election_min_ms,
            election_max_ms: self.raft.election_max_ms,
            snapshot_entries: self.raft.snapshot_entries,
            keep_entries: KEEP_ENTRIES,
            ..Settings::default()
        }
    }

    /// How the data folder is opened.
    #[must_use]
    pub fn store_config(&self, incarnation: Incarnation) -> StoreConfig {
        let identity = Identity {
            cluster: self.cluster.clone(),
            incarnation: incarnation.0,
            node: self.node,
        };
        StoreConfig {
            cache_bytes: self.storage.cache_mib << 20,
            checkpoint_interval: Duration::from_millis(self.storage.checkpoint_ms),
            ballast_bytes: self.storage.ballast_mib << 20,
            ..StoreConfig::new(&self.data_dir, identity)
        }
    }

    /// The certificate files.
    #[must_use]
    pub fn tls_files(&self) -> TlsFiles {
        TlsFiles {
            ca: self.tls.ca.clone(),
            certificate: self.tls.certificate.clone(),
            key: self.tls.key.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
cluster = "demo"
node = 1
data_dir = "data/node1"
[listen]
quic = "127.0.0.1:7101"
admin = "127.0.0.1:7201"
[[member]]
node = 1
quic = "127.0.0.1:7101"
[tls]
ca = "certs/ca.pem"
certificate = "certs/node-1.pem"
key = "certs/node-1.key"
[pepper]
file = "pepper"
"#;

    fn check(text: &str) -> Result<ServerConfig, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.toml");
        std::fs::write(&path, text).unwrap();
        let shown = path.display().to_string();
        ServerConfig::load(&path).map_err(|error| error.to_string().replace(&shown, "FILE"))
    }

    #[test]
    fn a_complete_file_is_taken_and_its_paths_are_relative_to_it() {
        let config = check(GOOD).unwrap();
        assert!(config.data_dir.ends_with("data/node1") && config.data_dir.is_absolute());
        assert_eq!(config.raft, RaftSection::default());
    }

    #[test]
    fn the_files_of_cluster_are_three_nodes_of_one_cluster() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../cluster");
        let configs = [1, 2, 3].map(|node| {
            let config = ServerConfig::load(&folder.join(format!("node{node}.toml"))).unwrap();
            assert_eq!(config.node, node);
            assert_eq!(config.members.len(), 3);
            let own = &config.members[usize::try_from(node).unwrap() - 1];
            assert_eq!(own.quic, config.listen.quic.to_string());
            config
        });
        assert!(
            configs
                .iter()
                .all(|config| config.members == configs[0].members)
        );
        assert!(
            configs
                .iter()
                .all(|config| config.cluster == configs[0].cluster)
        );
    }

    #[test]
    fn wrong_files_are_refused_with_field_found_and_expected() {
        let cases = [
            (
                "node = 1\ndata",
                "node = 9\ndata",
                "field `node`: found `9`, expected one of the members: 1",
            ),
            (
                "cluster = \"demo\"",
                "cluster = \"De mo\"",
                "field `cluster`: found `De mo`, expected",
            ),
            (
                "[tls]",
                "[raft]\nheartbeat_ms = 1\n[tls]",
                "`raft.heartbeat_ms`: found `1`, expected 20 to 5000",
            ),
            (
                "[tls]",
                "[raft]\nelection_min_ms = 150\n[tls]",
                "expected more than twice raft.heartbeat_ms",
            ),
            (
                "quic = \"127.0.0.1:7101\"\n[tls]",
                "quic = \"nowhere\"\n[tls]",
                "`member.quic`: found `nowhere`, expected HOST:PORT",
            ),
            (
                "node = 1\ndata",
                "node = 1\ncolour = 2\ndata",
                "unknown field `colour`",
            ),
            ("data_dir = \"data/node1\"", "", "missing field `data_dir`"),
        ];
        for (from, to, expected) in cases {
            let text = GOOD.replace(from, to);
            assert_ne!(text, GOOD, "{from}");
            let error = check(&text).expect_err(expected);
            assert!(error.contains(expected), "{error}");
        }
    }
}
