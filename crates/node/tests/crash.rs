//! Power cuts: the store under a disk that forgets what was not synced (`shim/lose_unsynced.c`).
//!
//! A child process works on a store and prints what was acknowledged; the layer kills it before a chosen write and
//! takes back every unsynced change. Opened again, the store must hold all that was acknowledged. The same test
//! with a layer that ignores syncs must fail, or it proves nothing.
//!
//! `CRASH_POINTS=n` sets the number of crash points (default 200).

#![allow(clippy::unwrap_used, reason = "a failing test should say where")]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the child's only way to tell"
)]

mod toy;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

use openraft::storage::{
    IOFlushed, RaftLogReader, RaftLogStorage, RaftSnapshotBuilder, RaftStateMachine,
};
use openraft::type_config::TypeConfigExt;
use tollgate_node::config::ServerConfig;
use tollgate_node::raft::types::{Entry, LogId, TypeConfig, Vote};
use tollgate_node::server::Server;
use tollgate_node::storage::{
    EXIT_STORAGE, EXIT_SYNC_FAILED, LogStore, SnapshotFile, StateStore, Store,
};
use tollgate_ports::Ports;
use tollgate_wire::certs::{Authority, Validity};
use tollgate_wire::identity::Role;
use toy::{apply, entry_of};

/// Appends per life of a child.
const STEPS: u64 = 150;

// ---------------------------------------------------------------- the child

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("{line}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

fn stop(error: &dyn std::fmt::Display) -> ! {
    eprintln!("storage refused: {error}");
    std::process::exit(EXIT_STORAGE)
}

/// What is written under an index: the mark by which the layer's event log follows it, and noise.
fn content(term: u64, index: u64) -> Entry {
    let mut noise = (index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ term;
    let length = match index % 12 {
        11 => 60_000,
        small => 100 + small * 150,
    };
    let mut value = format!("@E{index:08}@").into_bytes();
    for _ in 0..length {
        noise = noise
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        value.push((noise >> 56) as u8 | 0x80);
    }
    entry_of(term, index, &format!("cell{}", index % 40), &value)
}

trait OrStop<T> {
    /// Ends the process as a node does when storage refuses.
    fn or_stop(self) -> T;
}

impl<T> OrStop<T> for std::io::Result<T> {
    fn or_stop(self) -> T {
        self.unwrap_or_else(|error| stop(&error))
    }
}

struct Child {
    log: LogStore,
    state: StateStore,
    next: u64,
    applied: u64,
    term: u64,
    outstanding: tokio::task::JoinSet<()>,
}

impl Child {
    /// Appends without waiting, as openraft does.
    async fn append(&mut self, count: u64) {
        let entries: Vec<Entry> = (self.next..self.next + count)
            .map(|index| content(self.term, index))
            .collect();
        self.next += count;
        let (last, term) = (self.next - 1, self.term);
        let (sender, answer) = TypeConfig::oneshot();
        if let Err(error) = self.log.append(entries, IOFlushed::signal(sender)).await {
            stop(&error);
        }
        self.outstanding.spawn(async move {
            match answer.await.unwrap() {
                Ok(()) => say(&format!("ACK {} {last} {term}", last + 1 - count)),
                Err(error) => stop(&error),
            }
        });
    }

    async fn settle(&mut self) {
        while let Some(done) = self.outstanding.join_next().await {
            done.unwrap();
        }
    }

    async fn vote(&mut self) {
        self.term += 1;
        for vote in [Vote::new(self.term, 1), Vote::new_committed(self.term, 1)] {
            self.log.save_vote(&vote).await.or_stop();
        }
        say(&format!("VOTE {}", self.term));
    }

    async fn apply(&mut self, upto: u64) {
        if upto <= self.applied {
            return;
        }
        let entries = self
            .log
            .try_get_log_entries(self.applied..upto)
            .await
            .or_stop();
        self.log
            .save_committed(entries.last().map(|entry| entry.log_id))
            .await
            .or_stop();
        apply(&mut self.state, entries).await.or_stop();
        self.applied = upto;
    }

    /// Installs a snapshot that is far ahead, as a follower does that was away.
    async fn install(&mut self, store: &Store) {
        let Ok(donor) = std::env::var("CRASH_CHILD_DONOR") else {
            return;
        };
        self.settle().await;
        let incoming = store.incoming_path();
        // Not `fs::copy`, which goes past the layer.
        std::fs::write(&incoming, std::fs::read(donor).or_stop()).or_stop();
        let file = SnapshotFile::open(&incoming)
            .map_err(std::io::Error::from)
            .or_stop();
        let meta = file.meta().clone();
        let last = meta.last_log_id.unwrap();
        if Some(last) < self.log.get_log_state().await.unwrap().last_log_id {
            return;
        }
        self.term = last.committed_leader_id().term;
        self.vote().await;
        self.state.install_snapshot(&meta, file).await.or_stop();
        say(&format!("INSTALLED {}", last.index));
        self.log.purge(last).await.or_stop();
        self.applied = last.index + 1;
        self.next = last.index + 1;
    }

    async fn step(&mut self, step: u64, plain: bool) {
        self.append(1 + step % 3).await;
        if step % 4 == 3 {
            self.settle().await;
            let upto = self.next.saturating_sub(3);
            self.apply(upto).await;
        }
        if step % 17 == 16 {
            self.vote().await;
        }
        if step % 11 == 10 && !plain {
            self.settle().await;
            let keep = self.next.saturating_sub(2).max(self.applied);
            if keep > 0 && keep < self.next {
                say(&format!("CUT {keep}"));
                let kept = self.log.try_get_log_entries(keep - 1..keep).await.or_stop();
                let id = kept.first().map(|entry| entry.log_id);
                self.log.truncate_after(id).await.or_stop();
                self.next = id.map_or(self.next, |_| keep);
            }
        }
        if step % 25 == 24 {
            let builder = self.state.try_create_snapshot_builder(true).await;
            let snapshot = builder.unwrap().build_snapshot().await.or_stop();
            let last = snapshot.meta.last_log_id.unwrap();
            if last.index > 5 {
                let upto = last.index - 5;
                let entries = self.log.try_get_log_entries(upto..=upto).await.or_stop();
                self.log.purge(entries[0].log_id).await.or_stop();
            }
        }
    }
}

/// What openraft does first: installs a snapshot newer than the state, and purges the log that it replaces.
async fn start_as_openraft_does(log: &mut LogStore, state: &mut StateStore) -> Option<LogId> {
    let last = log.get_log_state().await.unwrap().last_log_id;
    let applied = state.applied_state().await.unwrap().0;
    if let Some(current) = state.get_current_snapshot().await.unwrap()
        && current.meta.last_log_id > applied
    {
        state
            .install_snapshot(&current.meta, current.snapshot)
            .await
            .or_stop();
    }
    match state.applied_state().await.unwrap().0 {
        Some(applied) if last < Some(applied) => {
            log.purge(applied).await.or_stop();
            Some(applied)
        }
        _ => last,
    }
}

/// Only does something when a parent below starts it with a folder to work in.
#[test]
fn child_process() {
    let Ok(dir) = std::env::var("CRASH_CHILD_DIR") else {
        return;
    };
    let plain = std::env::var("CRASH_CHILD_PLAIN").is_ok();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .unwrap();
    runtime.block_on(async {
        let (store, _) = match toy::open(Path::new(&dir), 1) {
            Ok(opened) => opened,
            Err(error) => stop(&error),
        };
        let (mut log, mut state) = store.halves();
        let last = start_as_openraft_does(&mut log, &mut state).await;
        let applied = state.applied_state().await.unwrap().0;
        let term = log
            .read_vote()
            .await
            .unwrap()
            .map_or(0, |vote| vote.leader_id.term);
        let mut child = Child {
            log,
            state,
            next: last.map_or(0, |id| id.index + 1),
            applied: applied.map_or(0, |id| id.index + 1),
            term,
            outstanding: tokio::task::JoinSet::new(),
        };
        child.vote().await;
        for step in 0..STEPS {
            child.step(step, plain).await;
            if step % 60 == 30 && !plain {
                child.install(&store).await;
            }
        }
        child.settle().await;
        say("DONE");
    });
}

// ---------------------------------------------------------------- the parent

/// What the child was told, from its own lines.
#[derive(Default)]
struct Told {
    /// Index to term of every acknowledged entry.
    entries: BTreeMap<u64, u64>,
    vote: u64,
    installed: Option<u64>,
}

impl Told {
    fn hear(&mut self, output: &str) {
        for line in output.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let number = |at: usize| words[at].parse::<u64>().unwrap();
            match words[0] {
                "ACK" => {
                    for index in number(1)..=number(2) {
                        self.entries.insert(index, number(3));
                    }
                }
                "VOTE" => self.vote = number(1),
                "CUT" => drop(self.entries.split_off(&number(1))),
                "INSTALLED" => self.installed = Some(number(1)),
                _ => {}
            }
        }
    }

    /// Opens the folder without the layer and looks for everything; `Err` says what is missing.
    async fn check(&self, dir: &Path) -> Result<(), String> {
        let (store, _) = toy::open(dir, 1).map_err(|error| error.to_string())?;
        let (mut log, mut state) = store.halves();
        let applied = state.applied_state().await.unwrap().0.map(|id| id.index);
        if applied < self.installed {
            return Err(format!(
                "the state went back to {applied:?} from {:?}",
                self.installed
            ));
        }
        let purged = log
            .get_log_state()
            .await
            .unwrap()
            .last_purged_log_id
            .map_or(0, |id| id.index + 1);
        if purged > applied.map_or(0, |index| index + 1) {
            return Err(format!("purged to {purged}, the state ends at {applied:?}"));
        }
        let found: BTreeMap<u64, Entry> = log
            .try_get_log_entries(..)
            .await
            .map_err(|error| error.to_string())?
            .into_iter()
            .map(|entry| (entry.log_id.index, entry))
            .collect();
        for (&index, &term) in self.entries.range(purged..) {
            match found.get(&index) {
                None => return Err(format!("entry {index} is gone")),
                Some(entry) if *entry != content(term, index) => {
                    return Err(format!("entry {index} is another: {}", entry.log_id));
                }
                Some(_) => {}
            }
        }
        let vote = log
            .read_vote()
            .await
            .unwrap()
            .map_or(0, |vote| vote.leader_id.term);
        if vote < self.vote {
            return Err(format!(
                "the vote went back to term {vote} from {}",
                self.vote
            ));
        }
        // And it still works.
        start_as_openraft_does(&mut log, &mut state).await;
        let next = log
            .get_log_state()
            .await
            .unwrap()
            .last_log_id
            .map_or(0, |id| id.index + 1);
        let term = vote + 1;
        toy::append(&mut log, vec![content(term, next)])
            .await
            .map_err(|error| error.to_string())?;
        Ok(())
    }
}

/// Compiles the layer once; `None`, said loudly, where that cannot be.
fn layer() -> Option<&'static Path> {
    static LAYER: OnceLock<Option<PathBuf>> = OnceLock::new();
    LAYER
        .get_or_init(|| {
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/shim/lose_unsynced.c");
            let dir = std::env::temp_dir().join(format!("lose-unsynced-{}", std::process::id()));
            std::fs::create_dir_all(&dir).unwrap();
            let target = dir.join("lose_unsynced.so");
            let result = Command::new("cc")
                .args(["-O1", "-shared", "-fPIC", "-o"])
                .arg(&target)
                .arg(&source)
                .arg("-ldl")
                .output();
            match result {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    eprintln!(
                        "SKIPPED: no C compiler \"cc\" for the layer that loses unsynced writes"
                    );
                    None
                }
                Err(error) => panic!("cc: {error}"),
                Ok(output) => {
                    let words = String::from_utf8_lossy(&output.stderr);
                    assert!(output.status.success(), "cc failed: {words}");
                    Some(target)
                }
            }
        })
        .as_deref()
}

/// A snapshot of a state far ahead of what a life reaches.
fn donor() -> &'static Path {
    static DONOR: OnceLock<PathBuf> = OnceLock::new();
    DONOR.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let target = std::env::temp_dir().join(format!("donor-{}.snapshot", std::process::id()));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            let (store, _) = toy::open(dir.path(), 2).unwrap();
            let (_, mut state) = store.halves();
            let entries = (900..1000).map(|index| content(1000, index)).collect();
            apply(&mut state, entries).await.unwrap();
            let mut builder = state.try_create_snapshot_builder(true).await.unwrap();
            let built = builder.build_snapshot().await.unwrap();
            std::fs::copy(built.snapshot.path(), &target).unwrap();
        });
        target
    })
}

struct Life {
    output: String,
    errors: String,
    status: ExitStatus,
}

/// One life of a child under the layer.
fn live(layer: &Path, dir: &Path, settings: &[(&str, String)]) -> Life {
    let undo = dir.with_extension("undo");
    std::fs::create_dir_all(&undo).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "child_process",
            "--nocapture",
            "--test-threads=1",
        ])
        .env("LD_PRELOAD", layer)
        .env("LOSE_DIR", dir)
        .env("UNDO_DIR", &undo)
        .env("CRASH_CHILD_DIR", dir)
        .env("CRASH_CHILD_DONOR", donor())
        .envs(settings.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let _ = std::fs::remove_dir_all(&undo);
    Life {
        output: String::from_utf8_lossy(&output.stdout).into_owned(),
        errors: String::from_utf8_lossy(&output.stderr).into_owned(),
        status: output.status,
    }
}

/// How many changes a whole life makes.
fn changes_of_a_life(layer: &Path) -> u64 {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("data");
    std::fs::create_dir(&dir).unwrap();
    let events = root.path().join("events");
    let life = live(layer, &dir, &[("EVENTS", events.display().to_string())]);
    assert!(
        life.output.contains("DONE"),
        "{} {}",
        life.output,
        life.errors
    );
    let text = std::fs::read_to_string(events).unwrap();
    let changes = text
        .lines()
        .filter(|line| matches!(line.as_bytes().first(), Some(b'W' | b'C' | b'R')));
    changes.count() as u64
}

/// Two lives that both end in a power cut, then the check.
fn crash_twice(
    layer: &Path,
    first: u64,
    second: u64,
    more: &[(&str, String)],
) -> Result<(), String> {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("data");
    std::fs::create_dir(&dir).unwrap();
    let mut told = Told::default();
    for at in [first, second] {
        let mut settings = vec![("LOSE_AT_WRITE", at.to_string())];
        settings.extend_from_slice(more);
        for (_, seed) in settings.iter_mut().filter(|(name, _)| *name == "KEEP_SEED") {
            *seed = (seed.parse::<u64>().unwrap() + first * 1000 + at).to_string();
        }
        let life = live(layer, &dir, &settings);
        told.hear(&life.output);
        if life.status.code() == Some(EXIT_STORAGE) {
            return Err(format!("the second start refused: {}", life.errors.trim()));
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(told.check(&dir))
}

fn crash_points() -> u64 {
    std::env::var("CRASH_POINTS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(200)
}

/// Runs `points` double crashes spread over a life; gives back what went wrong.
fn crash_everywhere(layer: &Path, points: u64, more: &[(&str, String)]) -> Vec<String> {
    let total = changes_of_a_life(layer);
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let point = next.fetch_add(1, Ordering::Relaxed) as u64;
                    if point >= points {
                        return;
                    }
                    let first = 1 + point * total / points;
                    let second = 1 + (point * 7919) % total;
                    if let Err(words) = crash_twice(layer, first, second, more) {
                        let words = format!("cut at {first}, then at {second}: {words}");
                        failures.lock().unwrap().push(words);
                    }
                }
            });
        }
    });
    println!("{points} double power cuts over {total} changes of a life");
    failures.into_inner().unwrap()
}

#[test]
fn nothing_acknowledged_is_lost_at_any_power_cut() {
    let Some(layer) = layer() else { return };
    let failures = crash_everywhere(layer, crash_points(), &[]);
    assert!(
        failures.is_empty(),
        "{} losses:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

#[test]
fn a_device_that_keeps_a_random_part_loses_nothing_either() {
    let Some(layer) = layer() else { return };
    let seed = [("KEEP_SEED", "77".to_owned())];
    let failures = crash_everywhere(layer, crash_points() / 4, &seed);
    assert!(
        failures.is_empty(),
        "{} losses:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

#[test]
fn without_the_fdatasync_the_same_test_finds_losses() {
    let Some(layer) = layer() else { return };
    let failures = crash_everywhere(layer, 12, &[("DEAF_SYNC", "1".to_owned())]);
    assert!(
        failures.len() >= 6,
        "only {} of 12 cuts were noticed",
        failures.len()
    );
}

/// Positions in the layer's event log.
#[derive(Default)]
struct Events {
    /// First write to the store's file that holds an entry.
    written: BTreeMap<u64, usize>,
    /// Begin and end of every sync, by file.
    syncs: BTreeMap<String, Vec<(usize, usize)>>,
    /// Writes by file.
    writes: BTreeMap<String, Vec<usize>>,
    acknowledged: BTreeMap<u64, usize>,
}

impl Events {
    fn read(text: &str) -> Self {
        let mut events = Self::default();
        let mut begun: BTreeMap<String, usize> = BTreeMap::new();
        for (at, line) in text.lines().enumerate() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                ["W", file, _, _, marks @ ..] => {
                    events
                        .writes
                        .entry((*file).to_owned())
                        .or_default()
                        .push(at);
                    for mark in marks.iter().filter(|_| *file == "db") {
                        events.written.entry(mark.parse().unwrap()).or_insert(at);
                    }
                }
                ["B", file] => drop(begun.insert((*file).to_owned(), at)),
                ["S", file] => {
                    let begin = begun.remove(*file).unwrap();
                    events
                        .syncs
                        .entry((*file).to_owned())
                        .or_default()
                        .push((begin, at));
                }
                ["A", "ACK", first, last, _] => {
                    for index in first.parse::<u64>().unwrap()..=last.parse().unwrap() {
                        events.acknowledged.insert(index, at);
                    }
                }
                _ => {}
            }
        }
        events
    }

    /// The end of the first sync of `file` that began after `at`.
    fn synced_after(&self, file: &str, at: usize) -> Option<usize> {
        self.syncs
            .get(file)?
            .iter()
            .find(|(begin, _)| *begin > at)
            .map(|(_, end)| *end)
    }

    /// Acknowledgements that came before the syncs they rest on.
    fn premature(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (index, acknowledged) in &self.acknowledged {
            let order = || -> Option<[usize; 3]> {
                let data = self.synced_after("db", *self.written.get(index)?)?;
                let mark = *self.writes.get("mark")?.iter().find(|at| **at > data)?;
                Some([data, mark, self.synced_after("mark", mark)?])
            };
            if order().is_none_or(|order| order[2] >= *acknowledged) {
                found.push(format!(
                    "entry {index} at event {acknowledged}: {:?}",
                    order()
                ));
            }
        }
        found
    }
}

#[test]
fn no_acknowledgement_without_syncs_that_began_after_the_write() {
    let Some(layer) = layer() else { return };
    for deaf in [false, true] {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("data");
        std::fs::create_dir(&dir).unwrap();
        let path = root.path().join("events");
        let mut settings = vec![
            ("EVENTS", path.display().to_string()),
            ("CRASH_CHILD_PLAIN", "1".to_owned()),
        ];
        if deaf {
            settings.push(("DEAF_SYNC", "1".to_owned()));
        }
        let life = live(layer, &dir, &settings);
        assert!(
            life.output.contains("DONE"),
            "{} {}",
            life.output,
            life.errors
        );
        let events = Events::read(&std::fs::read_to_string(path).unwrap());
        let acknowledged = events.acknowledged.len();
        assert!(acknowledged as u64 > STEPS, "{acknowledged} acknowledged");
        let premature = events.premature();
        if deaf {
            assert_eq!(
                premature.len(),
                acknowledged,
                "without syncs every one is premature"
            );
        } else {
            assert!(premature.is_empty(), "{}", premature.join("\n"));
        }
    }
}

#[test]
fn the_first_failed_sync_ends_the_process_and_the_next_start_has_everything() {
    let Some(layer) = layer() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    for at in [25, 26, 40, 41, 60] {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("data");
        std::fs::create_dir(&dir).unwrap();
        let life = live(layer, &dir, &[("EIO_AT_FSYNC", at.to_string())]);
        assert_eq!(
            life.status.code(),
            Some(EXIT_SYNC_FAILED),
            "{at}: {}",
            life.errors
        );
        assert!(
            life.errors.contains("tollgate: syncing"),
            "{at}: {}",
            life.errors
        );
        assert!(
            life.errors.contains("Check the disk"),
            "{at}: {}",
            life.errors
        );
        let mut told = Told::default();
        told.hear(&life.output);
        assert!(!told.entries.is_empty(), "{at}");
        runtime.block_on(told.check(&dir)).unwrap();
    }
}

#[test]
fn a_full_disk_stops_the_store_cleanly_and_loses_nothing() {
    let Some(layer) = layer() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    for at in [60, 90, 120] {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("data");
        std::fs::create_dir(&dir).unwrap();
        let life = live(layer, &dir, &[("ENOSPC_AT_WRITE", at.to_string())]);
        let code = life.status.code();
        let ended = code == Some(EXIT_STORAGE) || code == Some(EXIT_SYNC_FAILED);
        assert!(ended, "{at}: {:?} {}", life.status, life.errors);
        let mut told = Told::default();
        told.hear(&life.output);
        assert!(!told.entries.is_empty(), "{at}");
        runtime.block_on(told.check(&dir)).unwrap();
    }
}

// ---------------------------------------------------------------- a whole node on a full disk

/// A server in a process of its own, started by the test below. Says how many writes there were before it served.
#[test]
fn server_process() {
    let Ok(config) = std::env::var("CRASH_SERVER_CONFIG") else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let ended = runtime.block_on(async {
        let server = Server::start(ServerConfig::load(Path::new(&config)).unwrap()).await?;
        if let Ok(events) = std::env::var("EVENTS") {
            say(&format!("OPENED {}", writes_in(Path::new(&events))));
            server.serves().await;
            say(&format!("SERVED {}", writes_in(Path::new(&events))));
            server.stop();
        }
        server.ended().await
    });
    if let Err(error) = ended {
        eprintln!("{error}");
        std::process::exit(error.exit_code());
    }
}

fn writes_in(events: &Path) -> usize {
    let text = std::fs::read_to_string(events).unwrap_or_default();
    text.lines().filter(|line| line.starts_with('W')).count()
}

/// The folder of a cluster of one node.
fn folder_of_one() -> (tempfile::TempDir, Ports) {
    let home = tempfile::tempdir().unwrap();
    let authority = Authority::create(home.path(), "one", Validity::days(1), false).unwrap();
    authority
        .issue(
            home.path(),
            (Role::Node, "1"),
            &[],
            Validity::days(1),
            false,
        )
        .unwrap();
    let pepper = home.path().join("pepper");
    std::fs::write(&pepper, [7; 32]).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&pepper, mode).unwrap();
    let ports = Ports::claim(1).unwrap();
    let quic = ports.addresses()[0];
    let text = format!(
        "cluster = \"one\"\nnode = 1\ndata_dir = \"data\"\n[listen]\nquic = \"{quic}\"\nadmin = \"127.0.0.1:0\"\n\
         [tls]\nca = \"ca.pem\"\ncertificate = \"node-1.pem\"\nkey = \"node-1.key\"\n[pepper]\nfile = \"pepper\"\n\
         [storage]\nballast_mib = 0\n[[member]]\nnode = 1\nquic = \"{quic}\"\n"
    );
    std::fs::write(home.path().join("node.toml"), text).unwrap();
    (home, ports)
}

fn live_as_server(layer: &Path, setting: (&str, String)) -> Life {
    let (home, _ports) = folder_of_one();
    let undo = home.path().join("undo");
    std::fs::create_dir(&undo).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "server_process", "--nocapture"])
        .env("LD_PRELOAD", layer)
        .env("LOSE_DIR", home.path().join("data"))
        .env("UNDO_DIR", undo)
        .env("CRASH_SERVER_CONFIG", home.path().join("node.toml"))
        .env(setting.0, setting.1)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    Life {
        output: String::from_utf8_lossy(&output.stdout).into_owned(),
        errors: String::from_utf8_lossy(&output.stderr).into_owned(),
        status: output.status,
    }
}

/// Writes that every start of a node of its own makes, after those of opening the folder, before it rests.
const WRITES_TRIED: usize = 25;

#[test]
fn a_node_on_a_full_disk_leaves_with_its_own_exit_code() {
    let Some(layer) = layer() else { return };
    let events = tempfile::NamedTempFile::new().unwrap();
    let whole = live_as_server(layer, ("EVENTS", events.path().display().to_string()));
    assert_eq!(whole.status.code(), Some(0), "{}", whole.errors);
    let told = |word: &str| -> usize {
        let line = whole
            .output
            .lines()
            .find_map(|line| line.strip_prefix(word));
        line.unwrap().trim().parse().unwrap()
    };
    let (opened, served) = (told("OPENED"), told("SERVED"));
    assert!(opened + 4 < served, "{opened} {served}");
    let mut codes = Vec::new();
    // Which write is the one of a log and which that of a sync differs from life to life: each is tried in turn.
    for at in opened..opened + WRITES_TRIED {
        let life = live_as_server(layer, ("ENOSPC_AT_WRITE", at.to_string()));
        let code = life.status.code();
        // Where it meets a sync the process ends on the spot; where it meets the start, that is refused.
        let expected = [Some(EXIT_STORAGE), Some(EXIT_SYNC_FAILED), Some(1)];
        assert!(expected.contains(&code), "{at}: {code:?} {}", life.errors);
        if code == Some(EXIT_STORAGE) {
            assert!(life.errors.contains("make room"), "{at}: {}", life.errors);
            return;
        }
        codes.push(code);
    }
    panic!("no write of a node that runs was refused: {opened} {served} {codes:?}");
}
