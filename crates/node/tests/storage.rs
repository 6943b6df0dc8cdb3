//! A store over its life: restarts, checkpoints, snapshots, purges, and whose folder it is.

#![allow(clippy::unwrap_used, reason = "a failing test should say where")]

mod toy;

use std::path::Path;

use openraft::storage::{RaftLogReader, RaftLogStorage, RaftSnapshotBuilder, RaftStateMachine};
use tollgate_node::raft::types::Vote;
use tollgate_node::storage::{RECORD_BYTES_MAX, StoreError};
use toy::{Toy, append, apply, entry, entry_of, log_id};

fn refusal(dir: &Path, node: u64) -> String {
    match toy::open(dir, node) {
        Ok(_) => panic!("the folder was accepted"),
        Err(error) => error.to_string(),
    }
}

/// The state that entries `0..end` lead to.
fn expected(end: u64) -> Toy {
    use tollgate_node::storage::Machine;
    let mut toy = Toy::default();
    for index in 0..end {
        toy.apply(
            index,
            &toy::batch(&format!("k{}", index % 7), format!("v{index}").as_bytes()),
        );
    }
    toy
}

fn numbered(range: std::ops::Range<u64>) -> Vec<tollgate_node::raft::types::Entry> {
    range
        .map(|i| entry(i, &format!("k{}", i % 7), format!("v{i}").as_bytes()))
        .collect()
}

#[tokio::test]
async fn a_restart_gives_back_log_vote_committed_and_state() {
    let dir = tempfile::tempdir().unwrap();
    {
        let (store, toy) = toy::open(dir.path(), 1).unwrap();
        let (mut log, mut state) = store.halves();
        log.save_vote(&Vote::new_committed(3, 1)).await.unwrap();
        append(&mut log, numbered(0..40)).await.unwrap();
        log.save_committed(Some(log_id(1, 29))).await.unwrap();
        apply(&mut state, numbered(0..30)).await.unwrap();
        assert_eq!(toy.read().unwrap().cells, expected(30).cells);
        assert_eq!(store.starts(), 1);
    }
    let (store, toy) = toy::open(dir.path(), 1).unwrap();
    let (mut log, mut state) = store.halves();
    assert_eq!(store.starts(), 2);
    assert_eq!(
        toy.read().unwrap().cells,
        expected(30).cells,
        "the last checkpoint is written at closing"
    );
    assert_eq!(state.applied_state().await.unwrap().0, Some(log_id(1, 29)));
    assert_eq!(log.read_committed().await.unwrap(), Some(log_id(1, 29)));
    assert_eq!(
        log.get_log_state().await.unwrap().last_log_id,
        Some(log_id(1, 39))
    );
    assert_eq!(log.try_get_log_entries(..).await.unwrap(), numbered(0..40));
    // Its own vote comes back uncommitted: a restarted leader is a follower.
    assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new(3, 1)));
}

#[tokio::test]
async fn a_vote_for_another_node_comes_back_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    {
        let (store, _) = toy::open(dir.path(), 1).unwrap();
        store
            .halves()
            .0
            .save_vote(&Vote::new_committed(3, 2))
            .await
            .unwrap();
    }
    let (store, _) = toy::open(dir.path(), 1).unwrap();
    let vote = store.halves().0.read_vote().await.unwrap();
    assert_eq!(vote, Some(Vote::new_committed(3, 2)));
}

#[tokio::test]
async fn a_folder_of_another_cluster_or_node_is_refused_naming_both() {
    let dir = tempfile::tempdir().unwrap();
    drop(toy::open(dir.path(), 1).unwrap());
    let words = refusal(dir.path(), 2);
    for part in [
        "cluster \"test\" incarnation 1 node 1",
        "node 2",
        "correct the configuration",
    ] {
        assert!(words.contains(part), "{part:?} is not in {words:?}");
    }
    let held = toy::open(dir.path(), 1).unwrap();
    let words = refusal(dir.path(), 1);
    assert!(words.contains("in use by another process"), "{words}");
    drop(held);
    assert_eq!(
        toy::open(dir.path(), 1).unwrap().0.starts(),
        3,
        "a refused start is not counted"
    );
}

#[tokio::test]
async fn truncated_entries_stay_away_and_their_indexes_are_used_again() {
    let dir = tempfile::tempdir().unwrap();
    {
        let (store, _) = toy::open(dir.path(), 1).unwrap();
        let (mut log, _) = store.halves();
        append(&mut log, numbered(0..600)).await.unwrap();
        log.truncate_after(Some(log_id(1, 9))).await.unwrap();
        append(&mut log, vec![entry_of(2, 10, "k", b"second")])
            .await
            .unwrap();
    }
    let (store, _) = toy::open(dir.path(), 1).unwrap();
    let (mut log, _) = store.halves();
    let entries = log.try_get_log_entries(..).await.unwrap();
    assert_eq!(entries.len(), 11);
    assert_eq!(entries[10], entry_of(2, 10, "k", b"second"));
    log.truncate_after(None).await.unwrap();
    assert_eq!(log.get_log_state().await.unwrap().last_log_id, None);
}

#[tokio::test]
async fn an_entry_of_more_than_the_bound_is_refused_and_the_largest_leaves_no_blob() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = toy::open(dir.path(), 1).unwrap();
    let (mut log, _) = store.halves();
    let largest = vec![7; RECORD_BYTES_MAX - 40];
    append(&mut log, (0..64).map(|i| entry(i, "k", &largest)).collect())
        .await
        .unwrap();
    let blobs = std::fs::read_dir(dir.path().join("sled/blobs"))
        .unwrap()
        .count();
    assert_eq!(blobs, 0, "sled never syncs a blob");
    let error = append(&mut log, vec![entry(64, "k", &vec![7; RECORD_BYTES_MAX])]).await;
    let words = error.unwrap_err().to_string();
    assert!(
        words.contains("log record 64 is") && words.contains("65536"),
        "{words}"
    );
    // Reads for replication are bounded too, and never empty.
    let taken = log.limited_get_log_entries(0, 64).await.unwrap().len();
    assert!((1..=16).contains(&taken), "{taken}");
}

#[tokio::test]
async fn the_log_is_purged_only_up_to_what_is_durable_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    {
        let (store, _) = toy::open(dir.path(), 1).unwrap();
        let (mut log, mut state) = store.halves();
        append(&mut log, numbered(0..3000)).await.unwrap();
        apply(&mut state, numbered(0..2500)).await.unwrap();
        let words = log.purge(log_id(1, 2000)).await.unwrap_err().to_string();
        assert!(words.contains("purge up to"), "{words}");
        let mut builder = state.try_create_snapshot_builder(true).await.unwrap();
        let snapshot = builder.build_snapshot().await.unwrap();
        assert_eq!(snapshot.meta.last_log_id, Some(log_id(1, 2499)));
        log.purge(log_id(1, 2000)).await.unwrap();
        assert_eq!(
            log.try_get_log_entries(1990..2003).await.unwrap(),
            numbered(2001..2003)
        );
    }
    let (store, toy) = toy::open(dir.path(), 1).unwrap();
    let (mut log, mut state) = store.halves();
    assert_eq!(toy.read().unwrap().cells, expected(2500).cells);
    let bounds = log.get_log_state().await.unwrap();
    assert_eq!(bounds.last_purged_log_id, Some(log_id(1, 2000)));
    assert_eq!(bounds.last_log_id, Some(log_id(1, 2999)));
    assert_eq!(
        state
            .get_current_snapshot()
            .await
            .unwrap()
            .unwrap()
            .meta
            .last_log_id,
        Some(log_id(1, 2499))
    );
}

#[tokio::test]
async fn a_snapshot_carries_state_and_audit_and_replaces_what_was_there() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (sender, _) = toy::open(from.path(), 1).unwrap();
    let (mut log, mut state) = sender.halves();
    append(&mut log, numbered(0..200)).await.unwrap();
    apply(&mut state, numbered(0..200)).await.unwrap();
    let mut builder = state.try_create_snapshot_builder(true).await.unwrap();
    assert!(
        state.try_create_snapshot_builder(false).await.is_none(),
        "one at a time: the tree is frozen meanwhile"
    );
    // Entries applied while the tree is frozen are not in the snapshot.
    apply(&mut state, numbered(200..210)).await.unwrap();
    let snapshot = builder.build_snapshot().await.unwrap();
    assert_eq!(snapshot.meta.last_log_id, Some(log_id(1, 199)));
    {
        let (receiver, toy) = toy::open(to.path(), 2).unwrap();
        let (mut log, mut state) = receiver.halves();
        append(&mut log, vec![entry(0, "gone", b"x")])
            .await
            .unwrap();
        apply(&mut state, vec![entry(0, "gone", b"x")])
            .await
            .unwrap();
        state
            .install_snapshot(&snapshot.meta, snapshot.snapshot.clone())
            .await
            .unwrap();
        assert_eq!(toy.read().unwrap().cells, expected(200).cells);
        log.purge(log_id(1, 199)).await.unwrap();
        append(&mut log, numbered(200..201)).await.unwrap();
        apply(&mut state, numbered(200..201)).await.unwrap();
    }
    let (receiver, toy) = toy::open(to.path(), 2).unwrap();
    assert_eq!(toy.read().unwrap().cells, expected(201).cells);
    // The audit entries came along: the receiver's own snapshot has them all.
    let (_, mut state) = receiver.halves();
    let again = state
        .try_create_snapshot_builder(true)
        .await
        .unwrap()
        .build_snapshot()
        .await;
    let again = again.unwrap().snapshot;
    let mut builder = sender
        .halves()
        .1
        .try_create_snapshot_builder(true)
        .await
        .unwrap();
    let original = builder.build_snapshot().await.unwrap().snapshot;
    assert_eq!(
        again.audit_entries().unwrap(),
        original.audit_entries().unwrap()[..40]
    );
    assert_eq!(again.audit_entries().unwrap().len(), 40);
}

#[tokio::test]
async fn a_damaged_or_foreign_snapshot_replaces_nothing() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (sender, _) = toy::open(from.path(), 1).unwrap();
    let (_, mut state) = sender.halves();
    apply(&mut state, numbered(0..50)).await.unwrap();
    let mut builder = state.try_create_snapshot_builder(true).await.unwrap();
    let snapshot = builder.build_snapshot().await.unwrap();
    let good = std::fs::read(snapshot.snapshot.path()).unwrap();

    let (receiver, toy) = toy::open(to.path(), 2).unwrap();
    let (_, mut state) = receiver.halves();
    apply(&mut state, numbered(0..10)).await.unwrap();
    for at in (0..good.len()).step_by(7) {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        let path = receiver.incoming_path();
        std::fs::write(&path, &bytes).unwrap();
        let refused = match tollgate_node::storage::SnapshotFile::open(&path) {
            Ok(file) => state.install_snapshot(&snapshot.meta, file).await.is_err(),
            Err(StoreError::Damaged { .. } | StoreError::Format { .. }) => true,
            Err(error) => panic!("byte {at}: {error}"),
        };
        assert!(refused, "byte {at}");
        assert_eq!(toy.read().unwrap().cells, expected(10).cells, "byte {at}");
    }
    for length in (0..good.len()).step_by(13) {
        let path = receiver.incoming_path();
        std::fs::write(&path, &good[..length]).unwrap();
        let refused = match tollgate_node::storage::SnapshotFile::open(&path) {
            Ok(file) => state.install_snapshot(&snapshot.meta, file).await.is_err(),
            Err(_) => true,
        };
        assert!(refused, "length {length}");
    }
    assert_eq!(toy.read().unwrap().cells, expected(10).cells);
}

/// Run it where `FULL_DISK` is a folder of an empty file system of about 48 MiB, for example
/// `mount -t tmpfs -o size=48m none /mnt/small && FULL_DISK=/mnt/small cargo test -p tollgate-node --test storage -- --ignored`.
#[tokio::test]
#[ignore = "needs a small file system of its own, named by FULL_DISK"]
async fn a_full_disk_stops_the_node_and_the_ballast_lets_it_start_again() {
    let dir = std::path::PathBuf::from(std::env::var("FULL_DISK").unwrap()).join("data");
    let config = tollgate_node::storage::StoreConfig::new(&dir, toy::identity(1));
    let mut acknowledged = 0;
    {
        let store = tollgate_node::storage::Store::open(&config, Toy::shared()).unwrap();
        assert!(dir.join("ballast").is_file());
        let (mut log, _) = store.halves();
        let error = loop {
            let written = append(&mut log, vec![entry(acknowledged, "k", &[7; 30_000])]).await;
            match written {
                Ok(()) => acknowledged += 1,
                Err(error) => break error.to_string(),
            }
            assert!(acknowledged < 10_000, "the disk is not small");
        };
        assert!(error.contains("No space left"), "{error}");
        // Nothing is acknowledged after that, whatever becomes free.
        append(&mut log, vec![entry(acknowledged + 1, "k", b"v")])
            .await
            .unwrap_err();
    }
    let store = tollgate_node::storage::Store::open(&config, Toy::shared()).unwrap();
    let (mut log, _) = store.halves();
    let found = log.try_get_log_entries(..).await.unwrap().len() as u64;
    assert!(found >= acknowledged, "{found} of {acknowledged}");
    assert!(
        !dir.join("ballast").is_file(),
        "the ballast made room for the start"
    );
}
