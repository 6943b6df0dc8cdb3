//! Very many accounts at one edge: no message outgrows its frame, everything is reported and handed in.

use crate::world::{DEADLINE, World, limit, until};
use std::sync::Arc;
use tokio::task::JoinSet;
use tollgate_core::account::Per;
use tollgate_edge::{CheckRequest, Edge, Reason};

/// Keys of so many customers, each with 16 accounts of its own: 20,480 accounts.
const CUSTOMERS: usize = 64;
const KEYS_PER_CUSTOMER: usize = 20;
/// Cold checks under way at a time.
const AT_ONCE: usize = 64;

fn keys(world: &World, customers: usize) -> Vec<String> {
    let limits: Vec<_> = (0..16)
        .map(|place| {
            limit(
                &format!("a-limit-of-the-key-number-{place}"),
                Per::Key,
                1000,
            )
        })
        .collect();
    let mut keys = Vec::new();
    for customer in 0..customers {
        let customer = format!("customer-{customer}");
        let mut state = world.state();
        keys.push(state.add_customer(&customer, &limits));
        keys.extend((1..KEYS_PER_CUSTOMER).map(|_| state.add_key(&customer)));
    }
    keys
}

/// One check with each key.
async fn check_all(edge: &Edge, keys: &Arc<Vec<String>>) {
    let mut checks = JoinSet::new();
    for part in 0..AT_ONCE {
        let (edge, keys) = (edge.clone(), keys.clone());
        checks.spawn(async move {
            for key in keys.iter().skip(part).step_by(AT_ONCE) {
                let decision = edge.check_or_wait(&CheckRequest::new(key)).await;
                assert_eq!(decision.reason(), Reason::Ok);
            }
        });
    }
    while let Some(ended) = checks.join_next().await {
        ended.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accounts_of_callers_that_left_are_handed_in_reported_and_forgotten() {
    let world = World::with_nodes(1);
    let keys = Arc::new(keys(&world, 16));
    let edge = world.edge("e").await;
    check_all(&edge, &keys).await;
    until("open", || edge.status().accounts == keys.len() * 16).await;
    for key in &*keys {
        world.state().revoke(key);
    }
    // All but those that the view has not given back to memory yet.
    until("forgotten", || edge.status().accounts < 2048).await;
    world
        .until("reported", |state| state.used() == keys.len() as u64)
        .await;
    let left = edge.close(DEADLINE).await;
    assert!(left.is_nothing(), "{left:?}");
    let (settled, with_edges) = world.state().settled_and_with_edges();
    assert_eq!((settled, with_edges), (keys.len() as u64 * 16, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edge_with_very_many_accounts_ends_cleanly_over_the_links_it_has() {
    let world = World::with_nodes(1);
    let keys = Arc::new(keys(&world, CUSTOMERS));
    let edge = world.edge("e").await;
    check_all(&edge, &keys).await;
    let accounts = CUSTOMERS * KEYS_PER_CUSTOMER * 16;
    until("open", || edge.status().accounts == accounts).await;
    let contacts = world.state().contacts;
    let left = edge.close(DEADLINE).await;
    assert!(left.is_nothing(), "{left:?}");
    assert_eq!(world.state().contacts, contacts, "no link was made again");
    let (settled, with_edges) = world.state().settled_and_with_edges();
    assert_eq!((settled, with_edges), (accounts as u64, 0));
    assert_eq!(world.state().used(), (CUSTOMERS * KEYS_PER_CUSTOMER) as u64);
}
