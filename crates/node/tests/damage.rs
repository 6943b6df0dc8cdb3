//! Damage to what is stored: a start names it and refuses, or serves everything; it never panics and never
//! runs on less than was acknowledged.

#![allow(clippy::unwrap_used, reason = "a failing test should say where")]

mod toy;

use std::path::Path;
use std::sync::Once;

use openraft::storage::{RaftLogReader, RaftLogStorage, RaftSnapshotBuilder, RaftStateMachine};
use tollgate_core::ids::Incarnation;
use tollgate_core::ledger::records::{CLUSTER_VERSION, Record, RecordKey};
use tollgate_node::batch::Batch;
use tollgate_node::machine::SharedLedger;
use tollgate_node::raft::types::Vote;
use tollgate_node::storage::{REBUILD, Store, StoreConfig, StoreError};
use tollgate_wire::codec;
use toy::{append, apply, entry, log_id};

const ENTRIES: u64 = 60;

/// A folder with a log of which all was acknowledged, a vote, a checkpoint and audit entries.
async fn filled(dir: &Path) {
    let (store, _) = toy::open(dir, 1).unwrap();
    let (mut log, mut state) = store.halves();
    log.save_vote(&Vote::new_committed(7, 2)).await.unwrap();
    let entries = || {
        (0..ENTRIES)
            .map(|i| entry(i, &format!("k{i}"), &[b'v'; 300]))
            .collect()
    };
    append(&mut log, entries()).await.unwrap();
    apply(&mut state, entries()).await.unwrap();
}

/// Changes the closed store through sled, whose own checksums then hold: only ours can tell.
fn with_sled(dir: &Path, change: impl FnOnce(&sled::Db)) {
    let open = || {
        sled::Config::new()
            .path(dir.join("sled"))
            .segment_size(8 << 20)
            .open()
    };
    let db = (0..200).find_map(|_| match open() {
        Err(sled::Error::Io(_)) => {
            std::thread::yield_now();
            std::thread::sleep(std::time::Duration::from_millis(10));
            None
        }
        opened => Some(opened.unwrap()),
    });
    let db = db.expect("sled let go of its lock");
    change(&db);
    db.flush().unwrap();
}

fn flip(db: &sled::Db, tree: &str, key: &[u8], at: usize) {
    let tree = db.open_tree(tree).unwrap();
    let mut value = tree
        .get(key)
        .unwrap()
        .expect("the record to damage")
        .to_vec();
    value[at] ^= 0x20;
    tree.insert(key, value).unwrap();
}

fn remove(db: &sled::Db, tree: &str, key: &[u8]) {
    assert!(
        db.open_tree(tree).unwrap().remove(key).unwrap().is_some(),
        "the record to remove"
    );
}

fn refusal(dir: &Path) -> String {
    match toy::open(dir, 1) {
        Ok(_) => panic!("the folder was accepted"),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn every_kind_of_record_is_named_when_damaged() {
    let log_key = 17_u64.to_be_bytes();
    let audit_key = 12_u64.to_be_bytes();
    let cases: [(&str, &[u8], &str); 7] = [
        ("log", &log_key, "log record 17"),
        ("meta", b"vote", "meta record \"vote\""),
        ("state", b"c", "the checkpoint record"),
        ("state", b"r\0\0\0\0k5", "state record k5"),
        ("audit", &audit_key, "audit record 12"),
        ("log", &0_u64.to_be_bytes(), "log record 0"),
        ("log", &(ENTRIES - 1).to_be_bytes(), "log record 59"),
    ];
    for (tree, key, name) in cases {
        for at in [0, 2, 8] {
            let dir = tempfile::tempdir().unwrap();
            filled(dir.path()).await;
            with_sled(dir.path(), |db| flip(db, tree, key, at));
            let words = refusal(dir.path());
            assert!(words.contains(name), "{name:?} is not in {words:?}");
            let way_out = if at == 0 {
                "run the build that wrote it"
            } else {
                REBUILD
            };
            assert!(words.contains(way_out), "no way out in {words:?}");
            let damaged = words.contains(REBUILD);
            assert_eq!(damaged, way_out == REBUILD, "two ways out in {words:?}");
        }
    }
}

/// The ledger's store with one entry in it, or why it was refused.
fn open_ledger(dir: &Path) -> Result<Store, StoreError> {
    let mut config = StoreConfig::new(dir, toy::identity(1));
    config.ballast_bytes = 0;
    Store::open(&config, SharedLedger::new(Incarnation(1)).machine())
}

/// A folder of a cluster whose nodes raised the version together is not damaged: this build is too old for it.
#[tokio::test]
async fn state_of_a_later_cluster_version_asks_for_the_newer_build() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_ledger(dir.path()).unwrap();
    let (mut log, mut state) = store.halves();
    let entries = || {
        let bytes = Batch::default().pack().unwrap();
        let payload = openraft::EntryPayload::Normal(bytes.into());
        vec![tollgate_node::raft::types::Entry {
            log_id: log_id(1, 0),
            payload,
        }]
    };
    append(&mut log, entries()).await.unwrap();
    apply(&mut state, entries()).await.unwrap();
    drop((log, state, store));

    let meta = codec::encode(&RecordKey::Meta).unwrap();
    let key = [b"r\0\0\0\0", meta.as_slice()].concat();
    with_sled(dir.path(), |db| {
        let tree = db.open_tree("state").unwrap();
        let value = tree.get(&key).unwrap().expect("the meta record");
        let (head, body) = value.split_at(5);
        let record = codec::decode::<Record, { codec::budget(1 << 16) }>(body).unwrap();
        let Record::Meta(mut meta) = record else {
            panic!("{record:?}");
        };
        meta.cluster_version = CLUSTER_VERSION + 1;
        let body = codec::encode(&Record::Meta(meta)).unwrap();
        let mut checksum = crc32fast::Hasher::new();
        for part in [&head[..1], &key, &body] {
            checksum.update(part);
        }
        let checksum = checksum.finalize().to_le_bytes();
        let value = [&head[..1], &checksum, &body].concat();
        tree.insert(&key, value).unwrap();
    });
    let words = match open_ledger(dir.path()) {
        Ok(_) => panic!("the folder was accepted"),
        Err(error) => error.to_string(),
    };
    let (found, known) = (CLUSTER_VERSION + 1, CLUSTER_VERSION);
    let expected =
        format!("has format {found}, this build reads {known}; run the build that wrote it");
    assert!(words.contains(&expected), "{words}");
    assert!(!words.contains(REBUILD), "nothing is damaged: {words}");
}

#[tokio::test]
async fn missing_records_are_missed() {
    type Change = fn(&sled::Db);
    let cases: [(Change, &str); 6] = [
        // In the middle of the log.
        (
            |db| remove(db, "log", &30_u64.to_be_bytes()),
            "record 31 after record 29",
        ),
        // At its end: only the mark can tell.
        (
            |db| remove(db, "log", &59_u64.to_be_bytes()),
            "record 59, which was acknowledged",
        ),
        (
            |db| db.open_tree("log").unwrap().clear().unwrap(),
            "which was acknowledged",
        ),
        // A record of the state: only the digest can tell.
        (|db| remove(db, "state", b"r\0\0\0\0k5"), "add up to digest"),
        (|db| remove(db, "state", b"c"), "no checkpoint record"),
        (
            |db| remove(db, "audit", &12_u64.to_be_bytes()),
            "audit record 12",
        ),
    ];
    for (change, expected) in cases {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path()).await;
        with_sled(dir.path(), change);
        let words = refusal(dir.path());
        assert!(words.contains(expected), "{expected:?} is not in {words:?}");
        assert!(words.contains(REBUILD), "no way out in {words:?}");
    }
}

#[tokio::test]
async fn another_entry_under_the_marked_index_is_found() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let other = tempfile::tempdir().unwrap();
    {
        let (store, _) = toy::open(other.path(), 1).unwrap();
        let (mut log, _) = store.halves();
        let entries = (0..ENTRIES)
            .map(|i| entry(i, "another", b"content"))
            .collect();
        append(&mut log, entries).await.unwrap();
    }
    let key = (ENTRIES - 1).to_be_bytes();
    let mut foreign = None;
    with_sled(other.path(), |db| {
        foreign = db.open_tree("log").unwrap().get(key).unwrap();
    });
    with_sled(dir.path(), |db| {
        db.open_tree("log")
            .unwrap()
            .insert(key, foreign.unwrap())
            .unwrap();
    });
    let words = refusal(dir.path());
    assert!(
        words.contains("log record 59") && words.contains("as the mark says"),
        "{words}"
    );
}

#[tokio::test]
async fn the_vote_survives_the_loss_of_its_record() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    with_sled(dir.path(), |db| remove(db, "meta", b"vote"));
    let (store, _) = toy::open(dir.path(), 1).unwrap();
    let vote = store.halves().0.read_vote().await.unwrap();
    assert_eq!(vote, Some(Vote::new_committed(7, 2)), "the mark decides");
}

#[tokio::test]
async fn a_missing_or_damaged_file_is_named() {
    for (name, way) in [
        ("mark", "the mark"),
        ("identity", "the identity file"),
        ("sled/db", "no data file"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path()).await;
        let path = dir.path().join(name);
        let good = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let words = refusal(dir.path());
        assert!(
            words.contains(way) && words.contains(REBUILD),
            "{name}: {words}"
        );
        if name != "sled/db" {
            std::fs::write(&path, vec![0x55; good.len()]).unwrap();
            let words = refusal(dir.path());
            assert!(
                words.contains(way) && words.contains(REBUILD),
                "{name}: {words}"
            );
            std::fs::write(&path, good).unwrap();
            toy::open(dir.path(), 1).unwrap();
        }
    }
}

#[tokio::test]
async fn a_folder_of_another_format_is_refused_and_named() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let path = dir.path().join("identity");
    let text = std::fs::read_to_string(&path).unwrap();
    let (body, _) = text.split_once("checksum = ").unwrap();
    let body = body.replacen("format 2", "format 1", 1);
    let checksum = crc32fast::hash(body.as_bytes());
    std::fs::write(&path, format!("{body}checksum = {checksum:08x}\n")).unwrap();
    let words = refusal(dir.path());
    assert!(
        words.ends_with("has format 1, this build reads 2; run the build that wrote it"),
        "{words}"
    );
}

#[tokio::test]
async fn a_snapshot_that_the_log_relies_on_is_not_done_without() {
    let dir = tempfile::tempdir().unwrap();
    let path = {
        let (store, _) = toy::open(dir.path(), 1).unwrap();
        let (mut log, mut state) = store.halves();
        let entries = || (0..ENTRIES).map(|i| entry(i, "k", b"v")).collect();
        append(&mut log, entries()).await.unwrap();
        apply(&mut state, entries()).await.unwrap();
        let built = state
            .try_create_snapshot_builder(true)
            .await
            .unwrap()
            .build_snapshot()
            .await;
        log.purge(log_id(1, ENTRIES - 1)).await.unwrap();
        built.unwrap().snapshot.path().to_owned()
    };
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let words = refusal(dir.path());
    assert!(
        words.contains("snapshot") && words.contains("move the file away"),
        "{words}"
    );
    std::fs::remove_file(&path).unwrap();
    // The checkpoint covers the log as well: the node runs, and openraft has a new snapshot built.
    drop(toy::open(dir.path(), 1).unwrap());
    with_sled(dir.path(), |db| {
        db.open_tree("state").unwrap().clear().unwrap();
    });
    let words = refusal(dir.path());
    assert!(
        words.contains("the state") && words.contains(REBUILD),
        "{words}"
    );
}

/// sled panics over some damage; those panics are caught, and need no backtrace here.
fn quiet_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let ours = info
                .location()
                .is_none_or(|at| !at.file().contains("sled-0."));
            if ours {
                usual(info);
            }
        }));
    });
}

/// Raw damage to sled's own file. sled drops what it cannot read in silence; the node must not.
#[tokio::test]
async fn flipped_bits_and_cut_ends_of_the_data_file_never_lose_anything_in_silence() {
    quiet_panics();
    let whole = tempfile::tempdir().unwrap();
    filled(whole.path()).await;
    // Let sled's threads go before the file is copied.
    with_sled(whole.path(), |_| ());
    let data = std::fs::read(whole.path().join("sled/db")).unwrap();
    let used = data.len() - data.iter().rev().take_while(|byte| **byte == 0).count();
    let (mut refused, mut served) = (0, 0);
    for step in 0..120_usize {
        let dir = tempfile::tempdir().unwrap();
        for name in ["identity", "mark", "sled/conf"] {
            let target = dir.path().join(name);
            std::fs::create_dir_all(target.parent().unwrap()).unwrap();
            std::fs::copy(whole.path().join(name), target).unwrap();
        }
        std::fs::create_dir_all(dir.path().join("sled/blobs")).unwrap();
        let mut bytes = data.clone();
        let at = step * used / 120 + step % 7;
        if step % 4 == 3 {
            bytes.truncate(at);
        } else {
            bytes[at] ^= 1 << (step % 8);
        }
        std::fs::write(dir.path().join("sled/db"), bytes).unwrap();
        match toy::open(dir.path(), 1) {
            Err(error) => {
                let words = error.to_string();
                assert!(
                    words.contains(REBUILD),
                    "step {step}: no way out in {words:?}"
                );
                refused += 1;
            }
            Ok((store, toy)) => {
                let (mut log, _) = store.halves();
                let entries = log.try_get_log_entries(..).await.unwrap();
                assert_eq!(entries.len() as u64, ENTRIES, "step {step}");
                assert_eq!(
                    log.read_vote().await.unwrap(),
                    Some(Vote::new_committed(7, 2))
                );
                let cells = toy.read().unwrap().cells.len() as u64;
                assert!(
                    cells == 0 || cells == ENTRIES + 1,
                    "step {step}: {cells} cells"
                );
                served += 1;
            }
        }
    }
    println!("damaged data files: {refused} refused, {served} served whole");
    assert!(refused >= 20, "the damage must have hit: {refused} refused");
}
