//! A Tollgate node: one ledger, replicated by openraft, kept on sled, spoken to over QUIC.
//!
//! Owns everything with a disk, a clock or a socket on the cluster's side. Decides nothing about units: that is
//! `tollgate_core`'s. Read [`storage`] for what makes a write stable, then [`raft`] for how it is agreed on.

pub mod admin;
pub mod agreement;
pub mod batch;
pub mod clock;
pub mod config;
pub mod confirm;
pub mod consensus;
pub mod fatal;
pub mod guarded_clock;
pub mod issuing;
pub mod joining;
pub mod machine;
pub mod overseer;
pub mod pepper;
pub mod presence;
pub mod raft;
pub mod server;
pub mod service;
mod starting;
pub mod storage;
