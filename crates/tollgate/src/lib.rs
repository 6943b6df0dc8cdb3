//! The parts of the `tollgate` binary that are worth testing on their own.
//!
//! Owns: reading access logs (`access_log`). Refuses: to print; `main.rs` and the commands do.
//! Read next: `access_log.rs`.

pub mod access_log;
