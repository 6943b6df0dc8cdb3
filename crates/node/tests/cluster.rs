//! Three nodes in one process over QUIC and sled: leaders die, followers fall behind or are cut off.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failing test should say where"
)]

mod nodes;
mod toy;

use std::time::Duration;

use nodes::{Cluster, eventually, until};
use tollgate_node::consensus::{Consensus, PROPOSE_DEADLINE};
use tollgate_node::raft::{ProposeError, Settings};

/// Longer than several elections: what a cut lasts.
const SEVERAL_ELECTIONS: Duration = Duration::from_secs(3);

/// Room for a busy machine: a heartbeat is sent every 100 ms.
fn settings() -> Settings {
    Settings {
        election_min_ms: 400,
        election_max_ms: 800,
        ..Settings::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_dead_leader_is_replaced_and_catches_up_when_it_is_back() {
    let mut cluster = Cluster::start(3, settings()).await;
    let first = cluster.leader_among(&[1, 2, 3]).await;
    for node in [1, 2, 3] {
        for write in 0..10 {
            cluster
                .write(node, &format!("{node}-{write}"), "before")
                .await;
        }
    }
    cluster.equal_states(&[1, 2, 3]).await;

    cluster.down(first).await;
    let rest = cluster.running();
    let second = cluster.leader_among(&rest).await;
    assert_ne!(second, first);
    for node in &rest {
        for write in 0..10 {
            cluster
                .write(*node, &format!("{node}-{write}"), "after")
                .await;
        }
    }
    let digest = cluster.equal_states(&rest).await;

    cluster.up(first).await;
    // Applied as far as the others, and the same: the restarted log goes on where it ended.
    let again = cluster.equal_states(&[1, 2, 3]).await;
    assert_eq!(again, digest);
    for node in [1, 2, 3] {
        assert_eq!(
            cluster.cell(node, &format!("{second}-9")).unwrap(),
            b"after"
        );
        assert_eq!(
            cluster.cell(node, &format!("{first}-9")).unwrap(),
            b"before"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn all_nodes_stop_and_start_again_with_everything() {
    let mut cluster = Cluster::start(3, settings()).await;
    cluster.leader_among(&[1, 2, 3]).await;
    for write in 0..30 {
        cluster
            .write(1 + write % 3, &format!("k{write}"), "kept")
            .await;
    }
    let digest = cluster.equal_states(&[1, 2, 3]).await;
    let term = cluster.standing(1).term;
    for node in [1, 2, 3] {
        cluster.down(node).await;
    }
    for node in [1, 2, 3] {
        cluster.up(node).await;
    }
    let leader = cluster.leader_among(&[1, 2, 3]).await;
    assert!(
        cluster.standing(leader).term > term,
        "nobody leads on in an old term"
    );
    assert_eq!(cluster.equal_states(&[1, 2, 3]).await, digest);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_isolated_follower_that_returns_deposes_nobody() {
    let cluster = Cluster::start(3, settings()).await;
    let leader = cluster.leader_among(&[1, 2, 3]).await;
    cluster.write(leader, "k", "before").await;
    cluster.equal_states(&[1, 2, 3]).await;
    let term = cluster.standing(leader).term;
    let follower = (1..=3).find(|node| *node != leader).unwrap();
    let other = (1..=3)
        .find(|node| *node != leader && *node != follower)
        .unwrap();

    cluster.isolate(follower);
    tokio::time::sleep(SEVERAL_ELECTIONS).await;
    cluster.write(other, "k", "meanwhile").await;
    assert_eq!(
        cluster.cell(follower, "k").unwrap(),
        b"before",
        "it was cut off"
    );
    assert_eq!(
        cluster.standing(follower).term,
        term,
        "pre-vote: its term does not run away"
    );

    cluster.heal();
    until("the follower catches up", || {
        (cluster.cell(follower, "k")? == b"meanwhile").then_some(())
    })
    .await;
    cluster.write(follower, "k", "after").await;
    cluster.equal_states(&[1, 2, 3]).await;
    for node in [1, 2, 3] {
        let standing = cluster.standing(node);
        assert_eq!(
            (standing.leader.unwrap().0, standing.term),
            (leader, term),
            "node {node}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_leader_without_a_quorum_confirms_nothing_and_says_what_became_of_commands() {
    let cluster = Cluster::start(3, settings()).await;
    let leader = cluster.leader_among(&[1, 2, 3]).await;
    let others: Vec<u64> = (1..=3).filter(|node| *node != leader).collect();
    cluster.write(leader, "k", "before").await;
    cluster.isolate(leader);
    let error = cluster
        .node(leader)
        .raft
        .propose(toy::batch("k", b"lost?"))
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            ProposeError::UnknownFate(_) | ProposeError::NotTaken(_)
        ),
        "{error}"
    );
    // Also those that wait behind a round that goes nowhere.
    let raft = &cluster.node(leader).raft;
    let one_after_another = (0..40).map(|number| async move {
        tokio::time::sleep(PROPOSE_DEADLINE / 40 * number).await;
        let asked = Consensus::propose(raft, toy::batch("k", b"lost?"));
        tokio::time::timeout(2 * PROPOSE_DEADLINE, asked).await
    });
    for answered in futures::future::join_all(one_after_another).await {
        answered
            .expect("answered in time, with all time to spare")
            .unwrap_err();
    }
    cluster
        .node(leader)
        .raft
        .confirm(b"?".to_vec())
        .await
        .unwrap_err();
    let next = cluster.leader_among(&others).await;
    cluster.write(others[0], "k", "after").await;
    let confirmed = cluster
        .node(next)
        .raft
        .confirm(b"?".to_vec())
        .await
        .unwrap();

    cluster.heal();
    let digest = cluster.equal_states(&[1, 2, 3]).await;
    assert_ne!(digest, 0);
    assert_eq!(cluster.cell(leader, "k").unwrap(), b"after");
    assert!(*cluster.node(leader).raft.applied().borrow() >= Some(confirmed.read_index));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_node_confirms_through_the_leader_what_was_written_before() {
    let cluster = Cluster::start(3, settings()).await;
    let leader = cluster.leader_among(&[1, 2, 3]).await;
    for node in [1, 2, 3] {
        cluster.write(node, "k", "v").await;
        let written = cluster.standing(leader).last_index;
        let raft = &cluster.node(node).raft;
        let confirmed = eventually("a confirmation", || raft.confirm(b"hello".to_vec())).await;
        assert!(
            confirmed.read_index >= written,
            "{confirmed:?} after {written}"
        );
        let mut expected = node.to_le_bytes().to_vec();
        expected.extend_from_slice(b"hello");
        assert_eq!(
            confirmed.answer, expected,
            "the leader's hook saw who asked what"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn leadership_is_handed_over_on_request() {
    let cluster = Cluster::start(3, settings()).await;
    let leader = cluster.leader_among(&[1, 2, 3]).await;
    cluster.write(leader, "k", "v").await;
    cluster.equal_states(&[1, 2, 3]).await;
    let heir = leader % 3 + 1;
    cluster
        .node(leader)
        .raft
        .raft()
        .trigger()
        .transfer_leader(heir)
        .await
        .unwrap();
    until("the heir leads", || {
        cluster.standing(heir).is_leader.then_some(())
    })
    .await;
    assert_eq!(cluster.leader_among(&[1, 2, 3]).await, heir);
    cluster.write(leader, "k", "w").await;
    cluster.equal_states(&[1, 2, 3]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_node_that_was_away_too_long_gets_a_snapshot() {
    let small = Settings {
        snapshot_entries: 60,
        keep_entries: 10,
        ..settings()
    };
    let mut cluster = Cluster::start(3, small).await;
    let leader = cluster.leader_among(&[1, 2, 3]).await;
    let away = (1..=3).find(|node| *node != leader).unwrap();
    cluster.write(away, "k", "v").await;
    cluster.down(away).await;
    let large = "x".repeat(3000);
    for write in 0..150 {
        cluster.write(leader, &format!("k{write}"), &large).await;
    }
    let behind = until("the leader's log is purged", || {
        cluster
            .purged_and_snapshot(leader)
            .0
            .filter(|index| *index > 20)
    })
    .await;
    cluster.up(away).await;
    cluster.equal_states(&[1, 2, 3]).await;
    // The entries up to there are nowhere any more: they came as a snapshot.
    let (_, snapshot) = cluster.purged_and_snapshot(away);
    assert!(snapshot >= Some(behind), "{snapshot:?} after {behind}");
    // What was installed is what a restart finds.
    cluster.down(away).await;
    cluster.up(away).await;
    cluster.write(away, "k", "w").await;
    cluster.equal_states(&[1, 2, 3]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn commands_that_arrive_together_share_entries_and_get_their_own_replies() {
    let cluster = Cluster::start(3, settings()).await;
    let leader = cluster.leader_among(&[1, 2, 3]).await;
    cluster.write(leader, "k", "v").await;
    let before = cluster.standing(leader).last_index;
    let count = 3000;
    let mut waiting = Vec::new();
    for write in 0..count {
        // Queued by the call itself, on all three nodes in turn, as the rest of a node does.
        let raft = &cluster.node(1 + write % 3).raft;
        waiting.push(Consensus::propose(
            raft,
            toy::batch(&format!("k{write}"), b"v"),
        ));
    }
    let replies = futures::future::join_all(waiting).await;
    let mut counts: Vec<u64> = replies
        .into_iter()
        .map(|reply| u64::from_le_bytes(reply.unwrap().try_into().unwrap()))
        .collect();
    counts.sort_unstable();
    // The toy's reply is its running count: each command was applied once and answered with its own.
    assert_eq!(counts, (2..=1 + count).collect::<Vec<_>>());
    cluster.equal_states(&[1, 2, 3]).await;
    let entries = cluster.standing(leader).last_index - before;
    assert!(
        entries <= count / 20,
        "{count} commands took {entries} entries"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_largest_commands_pass_between_nodes() {
    let cluster = Cluster::start(3, settings()).await;
    let leader = cluster.leader_among(&[1, 2, 3]).await;
    cluster.write(leader, "k", "v").await;
    let largest = vec![b'x'; tollgate_node::machine::COMMAND_BYTES_MAX - 10];
    let mut waiting = Vec::new();
    for write in 0..60 {
        let raft = &cluster.node(1 + write % 3).raft;
        waiting.push(Consensus::propose(
            raft,
            toy::batch(&format!("k{write}"), &largest),
        ));
    }
    for reply in futures::future::join_all(waiting).await {
        reply.unwrap();
    }
    cluster.equal_states(&[1, 2, 3]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_callers_commands_keep_their_order() {
    let cluster = Cluster::start(3, settings()).await;
    let leader = cluster.leader_among(&[1, 2, 3]).await;
    let follower = leader % 3 + 1;
    cluster.write(follower, "k", "v").await;
    for node in [leader, follower] {
        let raft = &cluster.node(node).raft;
        let waiting: Vec<_> = (0..500)
            .map(|write| Consensus::propose(raft, toy::batch("k", format!("{write}").as_bytes())))
            .collect();
        let replies = futures::future::join_all(waiting).await;
        let counts: Vec<u64> = replies
            .into_iter()
            .map(|reply| u64::from_le_bytes(reply.unwrap().try_into().unwrap()))
            .collect();
        assert!(
            counts.is_sorted(),
            "proposed one after another, applied in another order"
        );
        assert_eq!(cluster.cell(leader, "k").unwrap(), b"499");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_cannot_be_taken_is_refused_at_once() {
    let cluster = Cluster::start(1, settings()).await;
    cluster.leader_among(&[1]).await;
    let raft = &cluster.node(1).raft;
    let error = raft.propose(vec![0; 70_000]).await.unwrap_err();
    assert!(
        matches!(error, ProposeError::TooLarge { found: 70_000, .. }),
        "{error}"
    );
    // The largest that is taken fits the store.
    let ProposeError::TooLarge { limit, .. } = error else {
        unreachable!()
    };
    raft.propose(vec![0; limit]).await.unwrap();
    let refused = raft.propose(vec![0; limit + 1]).await.unwrap_err();
    assert!(
        matches!(refused, ProposeError::TooLarge { .. }),
        "{refused}"
    );
    // More than the queue holds, queued without giving way: the rest is refused, what was taken is answered.
    let waiting: Vec<_> = (0..2000)
        .map(|_| Consensus::propose(raft, vec![0; limit]))
        .collect();
    let replies = futures::future::join_all(waiting).await;
    let refused = replies.iter().filter(|reply| reply.is_err()).count();
    assert!(
        refused > 0,
        "a queue of 64 MiB took 2,000 commands of 64 KiB"
    );
    assert!(replies.iter().any(Result::is_ok));

    raft.shutdown().await;
    let error = raft.propose(b"late".to_vec()).await.unwrap_err();
    assert_eq!(error, ProposeError::Stopped);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_bug_in_apply_stops_the_node() {
    let cluster = Cluster::start(1, settings()).await;
    cluster.leader_among(&[1]).await;
    let raft = &cluster.node(1).raft;
    let error = raft.propose(b"panic".to_vec()).await.unwrap_err();
    assert!(matches!(error, ProposeError::UnknownFate(_)), "{error}");
    let mut fatal = raft.fatal();
    let words = tokio::time::timeout(Duration::from_secs(30), fatal.wait_for(Option::is_some));
    let words = words.await.unwrap().unwrap().clone().unwrap();
    assert!(
        words.contains("Raft stopped") || words.contains("panicked"),
        "{words}"
    );
}
