//! What the `tollgate` binary does: commands, the access log's reader, the load that demo and replay send.
//!
//! Owns: the command line and everything that prints (`output`). Refuses: to know the protocol; nodes and edges
//! do. Read next: `args.rs` for what there is, `commands/` for what it does.

pub mod access_log;
pub mod admin_client;
pub mod args;
pub mod commands;
pub mod host;
pub mod load;
pub mod local_cluster;
pub mod output;
pub mod program;
pub mod watch;
