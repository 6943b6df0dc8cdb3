//! Sessions that are no more when an edge wants to go on with them.

use crate::world::{DEADLINE, State, World, allow, limit, name, open_session, ready, until};
use std::collections::BTreeSet;
use std::path::Path;
use tollgate_core::account::{AccountId, Per};
use tollgate_core::command::{Command, Report, SpentLine};
use tollgate_core::ids::{Boot, Incarnation, Nonce, Seq, SessionId};
use tollgate_edge::internals::{Journal, JournalEntry};
use tollgate_edge::{Edge, SessionState};

/// The start number in the journals made here.
const START: Nonce = Nonce(3);

fn spent(units: u64) -> Vec<SpentLine> {
    let account = AccountId::parse("live/acme/-/customer/daily/open").unwrap();
    let line = SpentLine {
        account,
        leased: 0,
        unleased: units,
    };
    vec![line]
}

fn report(session: SessionId, boot: Boot, seq: Seq, spent: Vec<SpentLine>) -> Report {
    Report {
        session,
        boot,
        seq,
        hash: Report::content_hash(session, seq, &spent, &[]),
        spent,
        usage: Vec::new(),
    }
}

fn open_journal(path: &Path) -> Journal {
    Journal::open(path, &name("c"), &name("e")).unwrap()
}

/// A journal as a crash left it: one report, and a checkpoint of what would be in the next one.
fn leave_journal(world: &World, session: SessionId, incarnation: Incarnation) {
    let first = report(session, Boot(1), Seq(1), spent(9));
    let checkpoint = JournalEntry::Checkpoint {
        seq: Seq(2),
        part: 0,
        parts: 1,
        spent: spent(4),
        usage: Vec::new(),
    };
    let session = JournalEntry::Session {
        session,
        incarnation,
    };
    let entries = [
        JournalEntry::Start(START),
        session,
        JournalEntry::Report(first),
        checkpoint,
    ];
    open_journal(&world.journal()).append(&entries).unwrap();
}

/// An edge whose journal names this session opens another one; what the journal held is neither billed nor gone.
async fn goes_on_in_a_new_one(world: &World, lost: SessionId) {
    let key = world
        .state()
        .add_customer("acme", &[limit("daily", Per::Customer, 100_000)]);
    let config = world.config_with_journal("e");
    let edge = ready(config).await;
    assert_ne!(open_session(&edge).0, lost);
    let held = open_journal(&world.home.path().join(format!("journal.lost-{lost}")));
    assert_eq!(held.kept().session.map(|(session, _)| session), Some(lost));
    assert_eq!(held.kept().reports[0].spent, spent(9));
    assert_eq!(held.kept().checkpoint, Some((Seq(2), spent(4), Vec::new())));
    allow(&edge, &key, 5).await;
    let left = edge.close(DEADLINE).await;
    assert!(left.is_nothing(), "{left:?}");
    assert_eq!(world.state().sums().0, 5);
    assert_eq!(world.state().used(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_with_a_session_that_nobody_knows() {
    let world = World::with_nodes(1);
    leave_journal(&world, SessionId(99), Incarnation(1));
    goes_on_in_a_new_one(&world, SessionId(99)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_with_a_session_that_ended() {
    let world = World::with_nodes(1);
    let (session, _) = world.state().open_session("e", START);
    world.state().end(session);
    leave_journal(&world, session, Incarnation(1));
    goes_on_in_a_new_one(&world, session).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_with_a_session_of_another_edge() {
    let world = World::with_nodes(1);
    let (session, _) = world.state().open_session("another", START);
    leave_journal(&world, session, Incarnation(1));
    goes_on_in_a_new_one(&world, session).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_with_a_session_whose_reports_the_journal_lost() {
    let world = World::with_nodes(1);
    let (session, boot) = world.state().open_session("e", START);
    for seq in [Seq(1), Seq(2)] {
        let report = report(session, boot, seq, Vec::new());
        world.state().apply(Command::Report(report));
    }
    leave_journal(&world, session, Incarnation(1));
    goes_on_in_a_new_one(&world, session).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_with_a_session_from_before_a_restore() {
    let world = World::with_nodes(1);
    leave_journal(&world, SessionId(1), Incarnation(7));
    // Its number is given out anew in this life of the data.
    let (next, _) = world.state().open_session("another", START);
    assert_eq!(next, SessionId(1));
    goes_on_in_a_new_one(&world, SessionId(1)).await;
}

/// Numbers of the reports that came for a session under a boot, each once, in order.
fn reported(world: &World, (session, boot): (SessionId, Boot)) -> BTreeSet<Seq> {
    let state = world.state();
    let of = state
        .reports
        .iter()
        .filter(|(s, b, _)| (*s, *b) == (session, boot));
    of.map(|(.., seq)| *seq).collect()
}

/// Numbers from one to another.
fn numbers(first: u64, last: u64) -> BTreeSet<Seq> {
    (first..=last).map(Seq).collect()
}

/// An edge that left a lost session reports and keeps alive in its new one, and a start from its journal goes on there.
async fn is_in_use(world: &World, edge: Edge, key: &str, lost: (SessionId, Option<Boot>)) {
    let (session, boot) = open_session(&edge);
    assert_ne!(session, lost.0);
    assert!(lost.1.is_none_or(|lost| lost < boot));
    let last_seq = |state: &State| state.ledger.session(session).unwrap().last_seq;
    let before = world.state().sums().0;
    for reports in 1..=3 {
        allow(&edge, key, 5).await;
        world
            .until("settled", |state| state.sums().0 == before + 5 * reports)
            .await;
    }
    let last = last_seq(&world.state());
    assert!(last >= Seq(3), "{last}");
    assert_eq!(reported(world, (session, boot)), numbers(1, last.0));
    world
        .until("kept alive", |state| state.kept_alive.last() == Some(&boot))
        .await;
    // Nothing came in the lost session's name once the new one was open.
    let expected: Vec<Boot> = lost.1.into_iter().chain([boot]).collect();
    assert_eq!(world.state().kept_alive, expected);
    let came: Vec<SessionId> = world.state().reports.iter().map(|(s, ..)| *s).collect();
    assert!(
        came.iter()
            .skip_while(|s| **s != session)
            .all(|s| *s == session)
    );
    // The process is gone with all it had in memory; its disk is what was copied.
    let crashed = world.home.path().join("crashed");
    std::fs::copy(world.journal(), &crashed).unwrap();
    drop(edge);
    let mut config = world.config("e");
    config.journal = Some(crashed);
    let next = ready(config).await;
    let (again, later) = open_session(&next);
    assert_eq!(again, session);
    assert!(later > boot);
    allow(&next, key, 5).await;
    let left = next.close(DEADLINE).await;
    assert!(left.is_nothing(), "{left:?}");
    let end = last_seq(&world.state());
    assert!(end > last);
    assert_eq!(
        reported(world, (session, later)),
        numbers(last.0 + 1, end.0)
    );
    assert!(world.state().kept_alive.contains(&later));
    let (settled, _, excess) = world.state().sums();
    assert_eq!((settled, excess), (before + 20, 0));
}

/// A world with an edge that has a journal and held units, and use that is settled.
async fn edge_with_a_journal() -> (World, Edge, String) {
    let world = World::with_nodes(1);
    let key = world
        .state()
        .add_customer("acme", &[limit("daily", Per::Customer, 100_000)]);
    let config = world.config_with_journal("e");
    let edge = ready(config).await;
    allow(&edge, &key, 10).await;
    world.until("settled", |state| state.used() == 10).await;
    (world, edge, key)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_session_after_a_start_with_a_lost_one_is_in_use() {
    let world = World::with_nodes(1);
    leave_journal(&world, SessionId(99), Incarnation(1));
    let key = world
        .state()
        .add_customer("acme", &[limit("daily", Per::Customer, 100_000)]);
    let config = world.config_with_journal("e");
    let edge = ready(config).await;
    is_in_use(&world, edge, &key, (SessionId(99), None)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_session_after_one_that_ended_under_a_running_edge_is_in_use() {
    let (world, edge, key) = edge_with_a_journal().await;
    let (lost, boot) = open_session(&edge);
    world.state().end(lost);
    // Use that is reported tells it.
    allow(&edge, &key, 1).await;
    until(
        "another session",
        || matches!(edge.status().session, SessionState::Open { session, .. } if session != lost),
    )
    .await;
    is_in_use(&world, edge, &key, (lost, Some(boot))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_session_after_one_that_could_not_be_opened_again_is_in_use() {
    let (world, edge, key) = edge_with_a_journal().await;
    let (lost, boot) = open_session(&edge);
    world.state().refuse_sessions = true;
    world.state().fence(lost);
    allow(&edge, &key, 1).await;
    until("opening", || edge.status().session == SessionState::Opening).await;
    world.state().end(lost);
    world.state().refuse_sessions = false;
    until("open", || edge.status().session != SessionState::Opening).await;
    is_in_use(&world, edge, &key, (lost, Some(boot))).await;
}
