//! Cold keys, round trips, refusals, changes, recalls.

use crate::world::{DEADLINE, World, limit, until};
use tollgate_core::account::Per;
use tollgate_core::ids::NodeId;
use tollgate_edge::{CheckRequest, Cost, Edge, Reason};

async fn reason(edge: &Edge, credential: &str) -> Reason {
    edge.check_or_wait(&CheckRequest::new(credential))
        .await
        .reason()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cold_key_costs_one_round_trip_and_the_next_checks_none() {
    let world = World::with_nodes(1);
    let key = world
        .state()
        .add_customer("acme", &[limit("daily", Per::Customer, 1000)]);
    let edge = world.edge("e").await;
    let decision = edge.check_or_wait(&CheckRequest::new(&key)).await;
    assert_eq!(decision.reason(), Reason::Ok);
    assert_eq!(decision.customer().unwrap().as_str(), "acme");
    let limits: Vec<_> = decision
        .limits()
        .map(|l| (l.name.to_string(), l.limit, l.remaining))
        .collect();
    assert_eq!(limits, [("daily".to_owned(), 1000, 999)]);
    for _ in 0..3 {
        assert_eq!(edge.check(&CheckRequest::new(&key)).reason(), Reason::Ok);
    }
    let asked = world.state().asked;
    assert_eq!(
        (asked.resolves, asked.leases),
        (1, 0),
        "resolve and lease in one round trip"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_allowed_check_allocates_nothing() {
    let world = World::with_nodes(1);
    let one = [
        limit("daily", Per::Customer, 100_000),
        limit("own", Per::Key, 100_000),
    ];
    let two = [one[0].clone(), limit("more", Per::License, 100_000)];
    let acme = world.state().add_customer("acme", &one);
    let bolt = world.state().add_customer("bolt", &two);
    // Shares the customer's cell with the key before, so its cells lie in two places.
    let other = world.state().add_key("acme");
    let keys = [acme, bolt, other];
    let edge = world.edge("e").await;
    let ten = Cost::new(10).unwrap();
    for key in &keys {
        // Also makes what this thread keeps.
        let request = CheckRequest::new(key).with_cost(ten);
        assert!(edge.check_or_wait(&request).await.is_allowed());
    }
    for key in &keys {
        let request = CheckRequest::new(key);
        until("units are here", || edge.check(&request).is_allowed()).await;
        let mut allowed = [false; 2];
        let counted = allocation_counter::measure(|| {
            let decision = edge.check(&request);
            allowed = [decision.is_allowed(), edge.admit(&request).is_allowed()];
        });
        assert_eq!(allowed, [true; 2], "{:?}", edge.status());
        assert_eq!(counted.count_total, 0);
    }
    let refused = allocation_counter::measure(|| {
        assert!(!edge.check(&CheckRequest::new("nobody's")).is_allowed());
    });
    assert_eq!(refused.count_total, 0, "nor does abuse");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checks_of_one_cold_key_ask_once() {
    let world = World::with_nodes(1);
    let key = world
        .state()
        .add_customer("acme", &[limit("daily", Per::Customer, 1000)]);
    let edge = world.edge("e").await;
    let checks: Vec<_> = (0..50)
        .map(|_| {
            let (edge, key) = (edge.clone(), key.clone());
            tokio::spawn(async move { reason(&edge, &key).await })
        })
        .collect();
    for check in checks {
        assert_eq!(check.await.unwrap(), Reason::Ok);
    }
    assert_eq!(world.state().asked.resolves, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_is_spent_to_the_last_unit_and_never_beyond() {
    let world = World::with_nodes(2);
    let key = world
        .state()
        .add_customer("acme", &[limit("daily", Per::Customer, 200)]);
    let edges = [world.edge("e").await, world.edge("f").await];
    let mut admitted = 0;
    for turn in 0..260 {
        match reason(&edges[turn % 2], &key).await {
            Reason::Ok => admitted += 1,
            Reason::QuotaExceeded => {}
            other => panic!("{other}"),
        }
    }
    assert_eq!(admitted, 200);
    for edge in &edges {
        assert!(edge.close(DEADLINE).await.is_nothing());
    }
    assert_eq!(world.state().sums(), (200, 0, 0));
    assert_eq!(world.state().used(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_large_check_says_nothing_of_small_ones() {
    let world = World::with_nodes(1);
    let quota = limit("daily", Per::Customer, 40);
    let known = world
        .state()
        .add_customer("acme", std::slice::from_ref(&quota));
    let cold = world.state().add_customer("bolt", &[quota]);
    let edge = world.edge("e").await;
    assert_eq!(reason(&edge, &known).await, Reason::Ok);
    for (key, used) in [(&known, 1), (&cold, 0)] {
        let large = CheckRequest::new(key).with_cost(Cost::new(50).unwrap());
        for _ in 0..2 {
            let refused = edge.check_or_wait(&large).await;
            assert_eq!(refused.reason(), Reason::QuotaExceeded);
        }
        for one in used..40 {
            assert_eq!(reason(&edge, key).await, Reason::Ok, "unit {one} of {key}");
        }
        assert_eq!(reason(&edge, key).await, Reason::QuotaExceeded);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_limits_are_taken_all_or_none_across_the_wire() {
    let world = World::with_nodes(1);
    let limits = [
        limit("a", Per::Customer, 100),
        limit("b", Per::License, 10),
        limit("c", Per::Key, 100),
        limit("d", Per::Key, 100),
    ];
    let key = world.state().add_customer("acme", &limits);
    let edge = world.edge("e").await;
    let two = CheckRequest::new(&key).with_cost(Cost::new(2).unwrap());
    for _ in 0..5 {
        assert_eq!(edge.check_or_wait(&two).await.reason(), Reason::Ok);
    }
    assert_eq!(
        edge.check_or_wait(&two).await.reason(),
        Reason::QuotaExceeded
    );
    assert!(edge.close(DEADLINE).await.is_nothing());
    let settled: Vec<_> = world
        .state()
        .ledger
        .accounts()
        .map(|(_, row)| row.settled)
        .collect();
    assert_eq!(settled, [10; 4]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_and_malformed_credentials_are_refused_and_remembered() {
    let world = World::with_nodes(1);
    let other = World::with_nodes(1);
    let stranger = other
        .state()
        .add_customer("acme", &[limit("daily", Per::Customer, 10)]);
    let edge = world.edge("e").await;
    assert_eq!(reason(&edge, "").await, Reason::CredentialMissing);
    assert_eq!(
        reason(&edge, "tg_live_typo").await,
        Reason::CredentialInvalid
    );
    assert_eq!(
        world.state().asked.resolves,
        0,
        "their form is checked offline"
    );
    assert_eq!(reason(&edge, &stranger).await, Reason::CredentialInvalid);
    assert_eq!(
        edge.check(&CheckRequest::new(&stranger)).reason(),
        Reason::CredentialInvalid
    );
    assert_eq!(world.state().asked.resolves, 1, "a refusal is remembered");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_key_and_a_raised_limit_arrive_by_push() {
    let world = World::with_nodes(1);
    let key = world
        .state()
        .add_customer("acme", &[limit("daily", Per::Customer, 2)]);
    let edge = world.edge("e").await;
    assert_eq!(reason(&edge, &key).await, Reason::Ok);
    assert_eq!(reason(&edge, &key).await, Reason::Ok);
    until("spent", || {
        edge.check(&CheckRequest::new(&key)).reason() == Reason::QuotaExceeded
    })
    .await;
    world
        .state()
        .set_limits("acme", &[limit("daily", Per::Customer, 3)]);
    until("raised", || {
        edge.check(&CheckRequest::new(&key)).is_allowed()
    })
    .await;
    let revision = world.state().ledger.catalog().revision();
    until("acted on", || edge.status().revision == revision).await;
    world.state().revoke(&key);
    until("revoked", || {
        edge.check(&CheckRequest::new(&key)).reason() == Reason::CredentialRevoked
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_issuer_is_silent_another_node_says_who_and_the_next_issuer_leases() {
    let world = World::with_nodes(2);
    let key = world
        .state()
        .add_customer("acme", &[limit("daily", Per::Customer, 1000)]);
    let edge = world.edge("e").await;
    world.state().spread(&[NodeId(1)]);
    world.state().mute(NodeId(1));
    let (edge_, key_) = (edge.clone(), key.clone());
    let check = tokio::spawn(async move { reason(&edge_, &key_).await });
    until("known", || edge.status().principals == 1).await;
    assert!(!check.is_finished(), "but nobody leases");
    world.state().spread(&[NodeId(2)]);
    assert_eq!(check.await.unwrap(), Reason::Ok);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_that_was_given_up_leaves_its_units_in_the_cell() {
    let world = World::with_nodes(1);
    let key = world
        .state()
        .add_customer("acme", &[limit("daily", Per::Customer, 1000)]);
    let edge = world.edge("e").await;
    world.state().hold_positions = true;
    let (edge_, key_) = (edge.clone(), key.clone());
    let check = tokio::spawn(async move { reason(&edge_, &key_).await });
    world.until("asked", |state| state.asked.resolves > 0).await;
    check.abort();
    world.state().hold_positions = false;
    until("units came", || edge.status().held > 0).await;
    assert_eq!(edge.check(&CheckRequest::new(&key)).reason(), Reason::Ok);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn looking_takes_nothing() {
    let world = World::with_nodes(1);
    let key = world
        .state()
        .add_customer("acme", &[limit("daily", Per::Customer, 5)]);
    let edge = world.edge("e").await;
    for _ in 0..9 {
        assert_eq!(
            edge.peek(&CheckRequest::new(&key)).await.reason(),
            Reason::Ok
        );
    }
    let six = CheckRequest::new(&key).with_cost(Cost::new(6).unwrap());
    assert_eq!(edge.peek(&six).await.reason(), Reason::QuotaExceeded);
    assert!(edge.close(DEADLINE).await.is_nothing());
    assert_eq!(world.state().settled_and_with_edges(), (0, 0));
}
