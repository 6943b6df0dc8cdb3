//! Timing and sizes of Raft, checked before anything starts.
//!
//! Defaults were measured (heartbeat 100 ms, election 250 to 400 ms: a new leader serves 640 ms after the old one
//! died, median). Refuses what cannot work, naming the field.

use std::sync::Arc;

use openraft::{Config, SnapshotPolicy};

/// How Raft behaves. All durations in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Between heartbeats of the leader; at least 20. A slow disk needs more.
    pub heartbeat_ms: u64,
    /// Shortest silence after which a follower stands for election; more than two heartbeats.
    pub election_min_ms: u64,
    /// Longest; more than the shortest.
    pub election_max_ms: u64,
    /// Log bytes after which a snapshot is built; costs one pass over the whole state.
    pub snapshot_bytes: u64,
    /// Log entries after which a snapshot is built, however small they are: they lengthen a restart.
    pub snapshot_entries: u64,
    /// Entries kept behind a snapshot for followers that are a little late, instead of sending them all of it.
    pub keep_entries: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            heartbeat_ms: 100,
            election_min_ms: 250,
            election_max_ms: 400,
            snapshot_bytes: 128 << 20,
            snapshot_entries: 20_000,
            keep_entries: 1_000,
        }
    }
}

/// A setting that cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {found}, expected {expected}")]
pub struct SettingsError {
    /// The field of [`Settings`].
    pub field: &'static str,
    /// Its value.
    pub found: u64,
    /// What it may be.
    pub expected: String,
}

/// Entries in one append call; the bytes are bounded by [`crate::storage::READ_BYTES_MAX`].
const ENTRIES_PER_APPEND_MAX: u64 = 256;

/// A snapshot is sent and installed within this, or sent again.
const SNAPSHOT_DEADLINE_MS: u64 = 10 * 60 * 1000;

/// openraft's internal queues: what may wait for its core.
const API_QUEUE_MAX: u64 = 4096;

impl Settings {
    /// Checks every field and gives openraft's own configuration.
    ///
    /// # Errors
    /// [`SettingsError`] for the first field that cannot work.
    pub fn config(&self, cluster: &str) -> Result<Arc<Config>, SettingsError> {
        let error = |field, found, expected: String| SettingsError {
            field,
            found,
            expected,
        };
        if self.heartbeat_ms < 20 {
            return Err(error(
                "heartbeat_ms",
                self.heartbeat_ms,
                "at least 20".into(),
            ));
        }
        let shortest = self.heartbeat_ms.saturating_mul(2);
        if self.election_min_ms <= shortest {
            let expected = format!("more than two heartbeats ({shortest})");
            return Err(error("election_min_ms", self.election_min_ms, expected));
        }
        if self.election_max_ms <= self.election_min_ms {
            let expected = format!("more than election_min_ms ({})", self.election_min_ms);
            return Err(error("election_max_ms", self.election_max_ms, expected));
        }
        if self.snapshot_entries <= self.keep_entries {
            let expected = format!("more than keep_entries ({})", self.keep_entries);
            return Err(error("snapshot_entries", self.snapshot_entries, expected));
        }
        let config = Config {
            cluster_name: cluster.to_owned(),
            heartbeat_interval: self.heartbeat_ms,
            election_timeout_min: self.election_min_ms,
            election_timeout_max: self.election_max_ms,
            install_snapshot_timeout: SNAPSHOT_DEADLINE_MS,
            max_payload_entries: ENTRIES_PER_APPEND_MAX,
            replication_lag_threshold: self.snapshot_entries.saturating_mul(10),
            // By bytes, which openraft does not count: `node` triggers it.
            snapshot_policy: SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: self.keep_entries,
            api_channel_size: Some(API_QUEUE_MAX),
            enable_pre_vote: Some(true),
            // The vote comes back uncommitted anyway; this says it twice.
            enable_leader_restore: Some(false),
            ..Config::default()
        };
        config.validate().map(Arc::new).map_err(|reason| {
            error(
                "election_min_ms",
                self.election_min_ms,
                format!("what openraft takes: {reason}"),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_work_and_every_wrong_field_is_named() {
        let good = Settings::default();
        let config = good.config("c").unwrap();
        assert_eq!(config.enable_pre_vote, Some(true));
        let wrong = [
            (
                Settings {
                    heartbeat_ms: 5,
                    ..good.clone()
                },
                "heartbeat_ms is 5",
            ),
            (
                Settings {
                    election_min_ms: 200,
                    ..good.clone()
                },
                "election_min_ms is 200",
            ),
            (
                Settings {
                    election_max_ms: 250,
                    ..good.clone()
                },
                "election_max_ms is 250",
            ),
            (
                Settings {
                    snapshot_entries: 10,
                    ..good
                },
                "snapshot_entries is 10",
            ),
        ];
        for (settings, words) in wrong {
            let error = settings.config("c").unwrap_err().to_string();
            assert!(error.starts_with(words), "{error}");
        }
    }
}
