//! The embeddable edge: answers whether a call is allowed, from memory, and keeps that memory honest.
//!
//! Owns what an edge holds: the principals it has seen, the cells with units leased to it, its session
//! of reports and its journal. Refuses to be a server (that is the gateway), to decide anything about
//! units that its lessee or the issuer decides (`tollgate_core`), and to guess: without a proof that
//! its view is current it refuses.
//!
//! # The two ways through
//! * **check**: [`Edge::check`] → `view` (credential → principal) → `principal` (its cells) →
//!   `counters::take_all` → [`Decision`]. No await, no lock, no allocation when it allows.
//! * **grant**: `driver` (one task: `core::lessee`, `core::reporter`, waiters) → `link` (one per node)
//!   → node, and back into the cell; whoever waits is only told to look again.
//!
//! Read [`Edge`] first, then `view.rs`, then `driver/mod.rs`.

mod cell;
mod checks;
mod clock;
mod config;
mod counts;
mod credential;
mod decision;
mod driver;
mod duration;
mod edge;
mod fake;
mod journal;
mod link;
mod principal;
mod sip;
mod sources;
mod status;
mod stripes;
mod view;

pub use checks::Checks;
pub use config::{ConfigError, EdgeConfig, NODES_MAX, NodeConfig, TlsConfig};
pub use counts::CheckCounts;
pub use decision::{
    CheckRequest, Cost, CostError, Decision, LimitKind, LimitState, Outcome, Reason, Verdict,
};
pub use edge::{Edge, EdgeError};
pub use fake::FakeEdge;
pub use journal::JournalError;
pub use status::{Left, NodeStatus, SessionState, Status, TrafficCounts};

/// Parts that the package's own tests and benches look into; no promise of stability.
#[doc(hidden)]
pub mod internals {
    pub use crate::journal::{Journal, JournalEntry, Kept};
}
