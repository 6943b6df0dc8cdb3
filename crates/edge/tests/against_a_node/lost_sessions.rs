//! Sessions that are no more when an edge wants to go on with them.

use crate::world::{DEADLINE, World, allow, limit, name, open_session, ready};
use std::path::Path;
use tollgate_core::account::{AccountId, Per};
use tollgate_core::command::{CloseSession, Command, Report, SpentLine};
use tollgate_core::ids::{Boot, Incarnation, Nonce, Seq, SessionId};
use tollgate_edge::internals::{Journal, JournalEntry};

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
    let mut config = world.config("e");
    config.journal = Some(world.journal());
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
    let (session, boot) = world.state().open_session("e", START);
    let close = CloseSession {
        session,
        boot,
        last_seq: Seq(0),
    };
    world.state().apply(Command::CloseSession(close));
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
