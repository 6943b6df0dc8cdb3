//! Storage: what makes a write stable, and how a start proves that nothing acknowledged is missing.
//!
//! sled's own `flush` is not durable and it drops damaged tails in silence; openraft would restart a former leader
//! as leader. So: `fdatasync` before every acknowledgement ([`flusher`]), a durable [`mark`] beside the store, a log
//! that must be contiguous up to it ([`log`]), a state that must come to its digest ([`checkpoint`]), and a vote that
//! comes back uncommitted ([`store`]). Refuses to repair: a node short of its mark is rebuilt under a new id.
//!
//! ```text
//! append ─► tree log ─┐ (insert)                       apply ─► machine in memory
//!                     ▼                                              │ every 500 ms
//!   flusher: sled flush → fdatasync(db) → mark → acknowledged        ▼
//!                                                     tree state: changed records + checkpoint, one step
//! ```

mod audit;
mod checkpoint;
mod fault;
mod flusher;
mod folder;
mod log;
mod machine;
mod mark;
mod recent;
mod record;
mod snapshot;
mod state;
mod store;

pub use fault::{EXIT_STORAGE, EXIT_SYNC_FAILED, REBUILD, StoreError};
pub use flusher::FlushCounts;
pub use folder::Identity;
pub use log::{LogStore, READ_BYTES_MAX};
pub use machine::{Change, Machine, Records, RestoreError};
pub use record::RECORD_BYTES_MAX;
pub use snapshot::SnapshotFile;
pub use state::{Builder, StateStore};
pub use store::{SharedMachine, Store, StoreConfig};
