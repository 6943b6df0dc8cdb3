//! [`EdgeConfig`]: everything an edge can be told, in one typed struct.
//!
//! Owns names, defaults and ranges. Refuses unknown fields and values out of range, naming the field and
//! what it may be. Reads no file: the caller has the text.

use serde::Deserialize;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;
use tollgate_core::account::Name;
use tollgate_core::ids::NodeId;
use tollgate_wire::tls::TlsFiles;

/// Nodes an edge can be configured with.
pub const NODES_MAX: usize = 16;

/// What an edge is told.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EdgeConfig {
    /// The cluster's name; also in every certificate.
    pub cluster: Name,
    /// The nodes, 1 to [`NODES_MAX`]: the edge keeps a connection to each.
    pub nodes: Vec<NodeConfig>,
    /// Certificates.
    pub tls: TlsConfig,
    /// Where use is written down before it is reported. Without it a crash of the process loses the use
    /// of the last `report_spacing` and whatever was not acknowledged, and every start is a new session.
    /// Costs one `fdatasync` per report and two per `journal_interval` while there is use.
    #[serde(default)]
    pub journal: Option<PathBuf>,
    /// How much use a crash may lose, with a journal: 500 ms to 1 m, default 1 s. At most a
    /// quarter of it may go by in a pass over all cells; `Status::journal_late` counts where it is not kept.
    #[serde(default = "second", deserialize_with = "crate::duration::deserialize")]
    pub journal_interval: Duration,
    /// How long use is summed before it is reported: 100 ms to 30 s, default 1 s. Shorter: the ledger
    /// knows sooner; each report is a command of the log.
    #[serde(default = "second", deserialize_with = "crate::duration::deserialize")]
    pub report_spacing: Duration,
    /// How often each node is asked whether the view is current: 100 ms to 2 s, default 1 s.
    #[serde(default = "second", deserialize_with = "crate::duration::deserialize")]
    pub keepalive: Duration,
    /// How long a check may wait for what this edge does not have: 10 ms to 1 m, default 2 s (longer
    /// than a takeover of a slot).
    #[serde(
        default = "cold_deadline",
        deserialize_with = "crate::duration::deserialize"
    )]
    pub cold_deadline: Duration,
    /// How long a view that nobody confirms is trusted: 2 s to 10 m, default 30 s. Afterwards every check
    /// is refused as `unavailable`, because a key may have been revoked meanwhile.
    #[serde(
        default = "max_stale",
        deserialize_with = "crate::duration::deserialize"
    )]
    pub max_stale: Duration,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// Its id; its certificate must say the same.
    pub id: NodeId,
    /// `host:port` of its QUIC endpoint.
    pub address: String,
}

/// Certificates, each a PEM file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// The authorities believed.
    pub ca: PathBuf,
    /// This edge's certificate, of the role `edge`.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl From<&TlsConfig> for TlsFiles {
    fn from(tls: &TlsConfig) -> Self {
        let TlsConfig {
            ca,
            certificate,
            key,
        } = tls.clone();
        Self {
            ca,
            certificate,
            key,
        }
    }
}

/// Why a configuration cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not TOML, an unknown field, a value of another type.
    #[error("{0}")]
    Toml(String),
    /// A value that cannot be.
    #[error("`{field}` is {found}: expected {expected}")]
    Range {
        /// The field.
        field: String,
        /// Its value.
        found: String,
        /// What it may be.
        expected: String,
    },
}

fn second() -> Duration {
    Duration::from_secs(1)
}

fn cold_deadline() -> Duration {
    Duration::from_secs(2)
}

fn max_stale() -> Duration {
    Duration::from_secs(30)
}

impl EdgeConfig {
    /// Reads and validates a configuration.
    ///
    /// # Errors
    /// [`ConfigError`] names the field.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let config: Self =
            toml::from_str(text).map_err(|error| ConfigError::Toml(error.to_string()))?;
        config.validate()?;
        Ok(config)
    }

    /// Checks every field against its range.
    ///
    /// # Errors
    /// [`ConfigError::Range`] for the first that is out of it.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let range = |field: &str, found: String, expected: String| {
            Err(ConfigError::Range {
                field: field.to_owned(),
                found,
                expected,
            })
        };
        if self.nodes.is_empty() || self.nodes.len() > NODES_MAX {
            let found = format!("a list of {}", self.nodes.len());
            return range("nodes", found, format!("1 to {NODES_MAX} nodes"));
        }
        let mut ids = BTreeSet::new();
        for node in &self.nodes {
            if !ids.insert(node.id) {
                let found = format!("{} twice", node.id);
                return range("nodes.id", found, "each node once".to_owned());
            }
            if !node.address.contains(':') {
                let expected = "host:port, as in 10.0.0.1:7443".to_owned();
                return range("nodes.address", format!("`{}`", node.address), expected);
            }
        }
        let ms = Duration::from_millis;
        for (field, found, from, to) in [
            (
                "journal_interval",
                self.journal_interval,
                ms(500),
                ms(60_000),
            ),
            ("report_spacing", self.report_spacing, ms(100), ms(30_000)),
            ("keepalive", self.keepalive, ms(100), ms(2000)),
            ("cold_deadline", self.cold_deadline, ms(10), ms(60_000)),
            ("max_stale", self.max_stale, ms(2000), ms(600_000)),
        ] {
            if found < from || found > to {
                return range(field, format!("{found:?}"), format!("{from:?} to {to:?}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"
        cluster = "demo"
        nodes = [{ id = 1, address = "127.0.0.1:7443" }]
        tls = { ca = "ca.pem", certificate = "edge.pem", key = "edge.key" }
    "#;

    fn error(more: &str) -> String {
        // At the beginning, so that a table before it does not swallow it.
        EdgeConfig::parse(&format!("{more}\n{SMALL}"))
            .expect_err("must be refused")
            .to_string()
    }

    #[test]
    fn a_small_file_gets_the_defaults() {
        let config = EdgeConfig::parse(SMALL).unwrap();
        assert_eq!(config.report_spacing, Duration::from_secs(1));
        assert_eq!(
            (config.journal, config.max_stale),
            (None, Duration::from_secs(30))
        );
        assert_eq!(config.nodes[0].id, NodeId(1));
    }

    #[test]
    fn errors_name_the_field_and_what_it_may_be() {
        assert_eq!(
            error(r#"report_spacing = "1ms""#),
            "`report_spacing` is 1ms: expected 100ms to 30s"
        );
        assert!(error("report_spacng = 3").contains("unknown field `report_spacng`"));
        assert!(error(r#"max_stale = "soon""#).contains("`soon` is no duration: expected"));
        let twice = SMALL.replace("[{", "[{ id = 1, address = \"b:1\" }, {");
        let found = EdgeConfig::parse(&twice)
            .expect_err("must be refused")
            .to_string();
        assert_eq!(found, "`nodes.id` is 1 twice: expected each node once");
        let none = SMALL.replace(r#"[{ id = 1, address = "127.0.0.1:7443" }]"#, "[]");
        let found = EdgeConfig::parse(&none)
            .expect_err("must be refused")
            .to_string();
        assert_eq!(found, "`nodes` is a list of 0: expected 1 to 16 nodes");
    }
}
