//! Agreement: the one place that knows openraft.
//!
//! The log carries opaque batches of commands; what they mean is the [`Machine`](crate::storage::Machine)'s
//! affair. [`types`] fixes openraft's generics; [`RaftNode`] is what the rest of the node holds. Commands go
//! [`proposer`] → openraft → storage; calls between nodes go through a [`Transport`], which is [`quic`] in a node and
//! anything in a test. Refuses to read a clock for ledger time: it is handed one.

mod inbound;
mod message;
mod network;
mod node;
mod proposer;
pub mod quic;
mod settings;
pub mod transport;
pub mod types;

pub use inbound::Inbound;
pub use node::{Hooks, RaftNode, StartError};
pub use proposer::{
    COMMANDS_PER_ENTRY_MAX, ENTRY_BYTES_MAX, ProposeError, QUEUE_BYTES_MAX, QUEUE_MAX,
    ROUND_ENTRIES_MAX,
};
pub use settings::{Settings, SettingsError};
pub use transport::{CallError, Peer, Transport};
