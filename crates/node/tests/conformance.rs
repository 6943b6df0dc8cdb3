//! openraft's own storage suite on our storage, with real flushes: one data folder per case.
#![allow(clippy::unwrap_used, reason = "a failing test should say where")]

mod toy;

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tollgate_node::raft::types::TypeConfig;
use tollgate_node::storage::{LogStore, StateStore, Store};

struct Builder;

/// Keeps the folder and the store of one case; dropped in this order.
struct Case {
    _store: Store,
    _dir: tempfile::TempDir,
}

impl StoreBuilder<TypeConfig, LogStore, StateStore, Case> for Builder {
    async fn build(&self) -> Result<(Case, LogStore, StateStore), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = toy::open(dir.path(), 0).unwrap();
        // The suite purges entries that no machine ever applied; a node never does.
        store.allow_uncovered_purges();
        let (log, state) = store.halves();
        Ok((
            Case {
                _store: store,
                _dir: dir,
            },
            log,
            state,
        ))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openrafts_suite_passes() {
    Suite::test_all(Builder).await.unwrap();
}
