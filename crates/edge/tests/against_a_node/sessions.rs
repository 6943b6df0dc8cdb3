//! Sessions, reports, the journal, cuts, and the end.

use crate::world::{DEADLINE, World, allow, limit, open_session, ready, until};
use std::time::Duration;
use tollgate_core::account::Per;
use tollgate_core::ids::NodeId;
use tollgate_edge::{CheckRequest, Edge, Reason, SessionState};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn use_is_settled_once_though_answers_are_lost_and_connections_cut() {
    let world = World::with_nodes(2);
    let key = world
        .state()
        .add_customer("acme", &[limit("daily", Per::Customer, 100_000)]);
    let edge = world.edge("e").await;
    world.state().lose_report_answers = true;
    allow(&edge, &key, 10).await;
    world
        .until("reported", |state| state.asked.reports > 0)
        .await;
    world.state().cut();
    until("connected again", || {
        edge.status().nodes.iter().all(|node| node.connected)
    })
    .await;
    allow(&edge, &key, 10).await;
    world
        .until("reported again", |state| state.asked.reports > 2)
        .await;
    world.state().lose_report_answers = false;
    let left = edge.close(DEADLINE).await;
    assert!(left.is_nothing(), "{left:?}");
    assert_eq!(world.state().settled_and_with_edges(), (20, 0));
    assert_eq!(world.state().used(), 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn held_units_are_spent_while_all_links_are_cut() {
    let world = World::with_nodes(1);
    let key = world
        .state()
        .add_customer("acme", &[limit("daily", Per::Customer, 100_000)]);
    let edge = world.edge("e").await;
    allow(&edge, &key, 40).await;
    until("asked ahead", || edge.status().held >= 20).await;
    world.state().mute(NodeId(1));
    world.state().cut();
    until("cut", || {
        edge.status().nodes.iter().all(|node| !node.connected)
    })
    .await;
    for _ in 0..20 {
        assert_eq!(edge.check(&CheckRequest::new(&key)).reason(), Reason::Ok);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_with_a_journal_goes_on_with_the_session_and_bills_what_it_had_written() {
    let world = World::with_nodes(1);
    let key = world
        .state()
        .add_customer("acme", &[limit("daily", Per::Customer, 100_000)]);
    let config = world.config_with_journal("e");
    let first = ready(config.clone()).await;
    let (session, boot) = open_session(&first);
    world.state().lose_report_answers = true;
    allow(&first, &key, 7).await;
    world.until("reported", |state| state.used() == 7).await;
    // As after a crash: nothing is closed, the unacknowledged report is in the journal only.
    drop(first);
    world.state().lose_report_answers = false;
    let second = loop {
        match Edge::connect(config.clone()).await {
            Ok(edge) => break edge,
            // The lock goes with the task that stops.
            Err(error) => assert!(error.to_string().contains("in use"), "{error}"),
        }
        tokio::task::yield_now().await;
    };
    assert!(second.ready(DEADLINE).await, "{:?}", second.status());
    let (again, later) = open_session(&second);
    assert_eq!(session, again);
    assert!(later > boot);
    allow(&second, &key, 3).await;
    let left = second.close(DEADLINE).await;
    assert!(left.is_nothing(), "{left:?}");
    assert_eq!(world.state().used(), 10);
    let (settled, _, excess) = world.state().sums();
    assert_eq!((settled, excess), (10, 0));
    let third = ready(config).await;
    let (new, _) = open_session(&third);
    assert!(new > session, "a closed session is not gone on with");
}

/// Checks until one is refused; answers how many were allowed.
async fn use_up(edge: &Edge, credential: &str) -> u64 {
    let mut allowed = 0;
    while edge
        .check_or_wait(&CheckRequest::new(credential))
        .await
        .is_allowed()
    {
        allowed += 1;
    }
    allowed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edge_whose_journal_is_lost_is_another_boot_and_spends_nothing_twice() {
    let world = World::with_nodes(1);
    let key = world
        .state()
        .add_customer("acme", &[limit("daily", Per::Customer, 500)]);
    let mut config = world.config_with_journal("e");
    let first = ready(config.clone()).await;
    let (_, boot) = open_session(&first);
    allow(&first, &key, 300).await;
    world.until("reported", |state| state.used() == 300).await;
    // Killed, and the volume with the journal is gone.
    drop(first);
    config.journal = Some(world.home.path().join("another volume"));
    let second = ready(config).await;
    let (_, later) = open_session(&second);
    assert!(later > boot, "boot {boot} came back as {later}");
    let allowed = use_up(&second, &key).await;
    assert!(300 + allowed <= 500, "{allowed} after 300 of 500");
    assert!(second.close(DEADLINE).await.is_nothing());
    assert_eq!(world.state().used(), 300 + allowed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_edges_of_one_identity_with_new_journals_are_two_sessions() {
    let world = World::with_nodes(1);
    let key = world
        .state()
        .add_customer("acme", &[limit("daily", Per::Customer, 500)]);
    let mut config = world.config("e");
    config.journal = Some(world.home.path().join("one"));
    let one = ready(config.clone()).await;
    config.journal = Some(world.home.path().join("other"));
    let other = ready(config).await;
    assert_ne!(open_session(&one).0, open_session(&other).0);
    let allowed = use_up(&one, &key).await + use_up(&other, &key).await;
    assert!(allowed <= 500, "{allowed} of 500");
    assert!(one.close(DEADLINE).await.is_nothing());
    assert!(other.close(DEADLINE).await.is_nothing());
    assert_eq!(world.state().used(), allowed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_whose_number_was_damaged_in_the_journal_is_not_numbered_alike() {
    let world = World::with_nodes(1);
    let mut config = world.config_with_journal("e");
    let first = ready(config.clone()).await;
    // As the first moments of a crashed start leave it, but for the last record: it is damaged, so it is cut off.
    let (copy, journal) = (
        world.home.path().join("damaged"),
        std::fs::read(world.journal()).unwrap(),
    );
    let mut reader = tollgate_wire::record::RecordReader::new(&journal[..]);
    // Its head and the number of its start.
    for _ in 0..2 {
        reader.next_record().unwrap().unwrap();
    }
    let mut cut = journal[..usize::try_from(reader.offset()).unwrap()].to_vec();
    *cut.last_mut().unwrap() ^= 1;
    std::fs::write(&copy, cut).unwrap();
    config.journal = Some(copy);
    let second = ready(config).await;
    assert_ne!(open_session(&first).1, open_session(&second).1);
}

/// Units that a crash at this moment would find in the last checkpoint, in a copy of the journal.
fn checkpointed(world: &World, copy: &std::path::Path) -> u64 {
    std::fs::copy(world.journal(), copy).unwrap();
    let journal = tollgate_edge::internals::Journal::open(
        copy,
        &crate::world::name("c"),
        &crate::world::name("e"),
    );
    let checkpoint = journal.unwrap().kept().checkpoint.clone();
    let spent = checkpoint.map(|(_, spent, _)| spent).unwrap_or_default();
    spent.iter().map(|line| line.leased).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn use_is_written_down_while_a_session_is_being_opened_again() {
    let world = World::with_nodes(1);
    let key = world
        .state()
        .add_customer("acme", &[limit("daily", Per::Customer, 100_000)]);
    let config = world.config_with_journal("e");
    let edge = ready(config.clone()).await;
    allow(&edge, &key, 40).await;
    until("asked ahead", || edge.status().held >= 20).await;
    world.until("settled", |state| state.used() == 40).await;
    let (session, _) = open_session(&edge);
    world.state().refuse_sessions = true;
    world.state().fence(session);
    // Use that is reported tells it.
    for _ in 0..2 {
        assert!(edge.check(&CheckRequest::new(&key)).is_allowed());
        until("opening", || edge.status().session == SessionState::Opening).await;
    }
    let before = edge.status().held;
    assert!(before >= 10, "{before}");
    for _ in 0..10 {
        assert!(edge.check(&CheckRequest::new(&key)).is_allowed());
    }
    let crashed = world.home.path().join("crashed");
    until("written", || checkpointed(&world, &crashed) >= 10).await;
    world.state().refuse_sessions = false;
    let left = edge.close(DEADLINE).await;
    assert!(left.is_nothing(), "{left:?}");
    assert_eq!(world.state().used(), 52);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn use_written_after_a_session_was_lost_is_reported_in_the_next_one() {
    use tollgate_core::command::SpentLine;
    use tollgate_core::ids::{Nonce, Seq};
    use tollgate_edge::internals::{Journal, JournalEntry};
    let world = World::with_nodes(1);
    world
        .state()
        .add_customer("acme", &[limit("daily", Per::Customer, 100)]);
    let account = "live/acme/-/customer/daily/open";
    let line = SpentLine {
        account: tollgate_core::account::AccountId::parse(account).unwrap(),
        leased: 0,
        unleased: 9,
    };
    // As a crash leaves it that comes before the new session is open.
    let name = crate::world::name;
    let mut journal = Journal::open(&world.journal(), &name("c"), &name("e")).unwrap();
    let checkpoint = JournalEntry::Checkpoint {
        seq: Seq(7),
        part: 0,
        parts: 1,
        spent: vec![line],
        usage: Vec::new(),
    };
    journal
        .append(&[JournalEntry::Start(Nonce(3)), checkpoint])
        .unwrap();
    drop(journal);
    let config = world.config_with_journal("e");
    let edge = ready(config).await;
    world.until("settled", |state| state.sums().0 == 9).await;
    let left = edge.close(DEADLINE).await;
    assert!(left.is_nothing(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_of_a_crashed_edge_becomes_its_next_report() {
    let world = World::with_nodes(1);
    let key = world
        .state()
        .add_customer("acme", &[limit("daily", Per::Customer, 100_000)]);
    let mut config = world.config_with_journal("e");
    // Longer than this test: nothing is reported, so that only the checkpoint has the use.
    config.report_spacing = Duration::from_secs(30);
    let first = ready(config.clone()).await;
    allow(&first, &key, 6).await;
    let crashed = world.home.path().join("crashed");
    until("checkpoint", || checkpointed(&world, &crashed) == 6).await;
    assert_eq!(world.state().asked.reports, 0);
    // The process is gone with all it had in memory; its disk is what was copied.
    config.journal = Some(crashed);
    config.report_spacing = Duration::from_millis(100);
    let second = ready(config).await;
    world.until("settled", |state| state.used() == 6).await;
    assert!(second.close(DEADLINE).await.reports == 0);
    assert_eq!(world.state().sums().0, 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fenced_edge_without_a_journal_stops_and_says_why() {
    let world = World::with_nodes(1);
    let key = world
        .state()
        .add_customer("acme", &[limit("daily", Per::Customer, 1000)]);
    let edge = world.edge("e").await;
    allow(&edge, &key, 1).await;
    let (session, _) = open_session(&edge);
    world.state().fence(session);
    let why = tokio::time::timeout(DEADLINE, edge.failed()).await.unwrap();
    assert_eq!(edge.status().session, SessionState::Failed(why.clone()));
    assert!(
        why.starts_with("fenced: another process opened session"),
        "{why}"
    );
    assert_eq!(
        edge.check(&CheckRequest::new(&key)).reason(),
        Reason::Unavailable
    );
    assert!(!edge.status().ready);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fenced_edge_with_its_journal_opens_again_and_keeps_its_cells() {
    let world = World::with_nodes(1);
    let key = world
        .state()
        .add_customer("acme", &[limit("daily", Per::Customer, 1000)]);
    let config = world.config_with_journal("e");
    let edge = ready(config).await;
    allow(&edge, &key, 5).await;
    let (session, boot) = open_session(&edge);
    world.state().fence(session);
    allow(&edge, &key, 5).await;
    until(
        "opened again",
        || matches!(edge.status().session, SessionState::Open { boot: later, .. } if later > boot),
    )
    .await;
    allow(&edge, &key, 5).await;
    let left = edge.close(DEADLINE).await;
    assert!(left.is_nothing(), "{left:?}");
    // What was on its way to the fenced boot stays out, with nobody.
    let (settled, _, excess) = world.state().sums();
    assert_eq!((settled, excess), (15, 0));
    assert_eq!(world.state().used(), 15);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_nobody_confirms_is_not_trusted_for_ever() {
    let world = World::with_nodes(1);
    let key = world
        .state()
        .add_customer("acme", &[limit("daily", Per::Customer, 1000)]);
    let mut config = world.config("e");
    config.max_stale = Duration::from_secs(2);
    config.cold_deadline = Duration::from_millis(10);
    let edge = ready(config).await;
    until("known", || {
        edge.check(&CheckRequest::new(&key)).is_allowed()
    })
    .await;
    world.state().mute(NodeId(1));
    until("stale", || edge.status().stale_ms > Some(2000)).await;
    assert_eq!(
        edge.check(&CheckRequest::new(&key)).reason(),
        Reason::Unavailable
    );
    assert!(edge.status().held > 0, "units were there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edge_of_another_cluster_and_a_wrong_node_are_told_so() {
    let world = World::with_nodes(2);
    let mut config = world.config("e");
    config.cluster = crate::world::name("other");
    let error = Edge::connect(config).await.err().unwrap().to_string();
    assert!(
        error.contains("`cluster` is `other`, but the certificate is for"),
        "{error}"
    );
    let mut config = world.config("e");
    config.nodes[0].address = config.nodes[1].address.clone();
    let edge = Edge::connect(config).await.unwrap();
    until("told", || edge.status().nodes[0].last_error.is_some()).await;
    let error = edge.status().nodes[0].last_error.clone().unwrap();
    assert!(error.contains("node-1.c.tollgate"), "{error}");
}
