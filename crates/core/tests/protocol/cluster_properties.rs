//! Issuers, lessees and reporters under loss, repetition and any order of their messages.

use crate::cluster::Cluster;
use proptest::prelude::*;
use tollgate_core::ids::Units;

/// One thing that happens. Nodes and edges are numbered 0 and 1.
#[derive(Clone, Debug)]
enum Step {
    Deliver(usize),
    Want(usize, Units),
    Resolve(usize, Units),
    GiveUp,
    Advance(u64),
    Follow(usize),
    Hear(usize),
    Seal(usize, bool),
    Sync(usize),
    Limit(Units),
    Assign(usize),
    RestartNode(usize),
    RestartEdge(usize),
    LetGo(usize),
}

fn step(most: Units) -> impl Strategy<Value = Step> {
    let who = 0..2_usize;
    prop_oneof![
        30 => (0..1000_usize).prop_map(Step::Deliver),
        10 => (who.clone(), 1..=most).prop_map(|(edge, cost)| Step::Want(edge, cost)),
        2 => (who.clone(), 1..=most).prop_map(|(edge, need)| Step::Resolve(edge, need)),
        1 => Just(Step::GiveUp),
        6 => prop_oneof![Just(20_u64), Just(250), Just(1000), Just(31_000)].prop_map(Step::Advance),
        8 => who.clone().prop_map(Step::Follow),
        3 => who.clone().prop_map(Step::Hear),
        4 => (who.clone(), any::<bool>()).prop_map(|(edge, report)| Step::Seal(edge, report)),
        3 => who.clone().prop_map(Step::Sync),
        3 => who.prop_map(Step::LetGo),
    ]
}

/// What breaks the quiet life: takeovers, restarts, changed limits.
fn blow(limit: Units) -> impl Strategy<Value = Step> {
    let who = 0..2_usize;
    prop_oneof![
        3 => who.clone().prop_map(Step::Assign),
        1 => who.clone().prop_map(Step::RestartNode),
        1 => who.prop_map(Step::RestartEdge),
        1 => (0..=2 * limit).prop_map(Step::Limit),
    ]
}

fn run(cluster: &mut Cluster, step: &Step) {
    match *step {
        Step::Deliver(drawn) => cluster.deliver(drawn),
        Step::Want(edge, cost) => cluster.want(edge, cost),
        Step::Resolve(edge, need) => cluster.resolve(edge, need),
        Step::GiveUp => cluster.give_up(),
        Step::Advance(ms) => cluster.advance(ms),
        Step::Follow(node) => cluster.follow(node),
        Step::Hear(edge) => cluster.hear(edge),
        Step::Seal(edge, report) => cluster.seal(edge, report),
        Step::Sync(edge) => cluster.sync(edge),
        Step::Limit(limit) => cluster.set_limit(limit),
        Step::Assign(node) => cluster.assign(node),
        Step::RestartNode(node) => cluster.restart_node(node),
        Step::RestartEdge(edge) => cluster.restart_edge(edge),
        Step::LetGo(edge) => cluster.let_go(edge),
    }
    cluster.check();
}

/// All reports acknowledged, all cells handed in, all pools returned.
fn wind_up(cluster: &mut Cluster) {
    cluster.give_up();
    cluster.heal("reports are settled", Cluster::reports_are_settled);
    for edge in 0..2 {
        cluster.leave(edge);
    }
    cluster.heal("cells are handed in", Cluster::everything_is_handed_in);
    cluster.heal("pools are returned", |cluster| cluster.in_pools() == 0);
    cluster.heal("reports are settled", Cluster::reports_are_settled);
}

const LIMITS: [Units; 4] = [20, 100, 1000, 20_000];

fn limits() -> impl Strategy<Value = Units> {
    prop::sample::select(LIMITS.to_vec())
}

type Life = ((Units, Vec<Step>), Vec<u8>);

/// Messages are lost, repeated and reordered; owners change, processes die, limits move.
fn hard_life() -> impl Strategy<Value = Life> {
    let steps = limits().prop_flat_map(|limit| {
        let any = prop_oneof![12 => step(limit / 10 + 1), 1 => blow(limit)];
        (Just(limit), prop::collection::vec(any, 1..150))
    });
    (steps, prop::collection::vec(0..=3_u8, 1..20))
}

/// Messages come late, twice and in any order, but none is lost and nobody dies.
fn easy_life() -> impl Strategy<Value = Life> {
    let steps = limits()
        .prop_flat_map(|limit| (Just(limit), prop::collection::vec(step(limit / 20), 1..150)));
    (steps, prop::collection::vec(1..=3_u8, 1..20))
}

fn live_hard(((limit, steps), fates): Life) {
    let mut cluster = Cluster::new(limit, fates);
    for step in &steps {
        run(&mut cluster, step);
    }
    wind_up(&mut cluster);
    let billed = cluster.row().settled + cluster.forgotten;
    assert!(billed <= cluster.admitted, "{}", cluster.held());
    assert!(
        billed + cluster.perhaps_forgotten >= cluster.admitted,
        "{}",
        cluster.held()
    );
}

/// The totals at the end are those of the checks, whatever the order, and every unit is settled or back.
fn live_easily(((limit, steps), fates): Life) {
    let mut cluster = Cluster::new(limit, fates);
    let mut asked = 0;
    for step in &steps {
        match step {
            Step::Want(_, cost) if asked + cost > limit => continue,
            Step::Want(_, cost) => asked += cost,
            // What a row was granted stays out when the answer comes after the row was left: for one of two
            // resolves at once, or for a close that overtakes messages of half a minute ago.
            Step::Resolve(..) | Step::Advance(31_000) | Step::GiveUp => continue,
            // The next check would resolve again.
            Step::LetGo(_) if cluster.is_resolving() => continue,
            _ => {}
        }
        run(&mut cluster, step);
    }
    cluster.heal("all checks are admitted", |cluster| cluster.waiting() == 0);
    wind_up(&mut cluster);
    let row = cluster.row();
    assert_eq!((row.settled, row.excess), (asked, 0), "{}", cluster.held());
    assert_eq!(row.out, 0, "{}", cluster.held());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn nothing_is_held_that_is_not_out(life in hard_life()) {
        live_hard(life);
    }

    #[test]
    fn without_loss_every_unit_is_settled_or_back(life in easy_life()) {
        live_easily(life);
    }
}

/// Faults that these properties must catch, each within 1,000 lives; the others are the simulator's.
#[cfg(feature = "planted")]
#[test]
fn planted_faults_are_caught() {
    use proptest::test_runner::{RngAlgorithm, TestError, TestRng, TestRunner};
    use std::cell::Cell;
    use tollgate_core::planted;
    let faults = [
        "epoch_kept_across_a_restart",
        "returned_as_a_delta",
        "idle_account_reopened_at_zero",
        "dropped_row_frees_its_units",
    ];
    let mut missed = Vec::new();
    for fault in faults {
        assert!(planted::choose(Some(fault)));
        let lives = Cell::new(0);
        let config = ProptestConfig {
            failure_persistence: None,
            max_shrink_iters: 0,
            ..ProptestConfig::with_cases(1000)
        };
        let random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        let found = TestRunner::new_with_rng(config, random).run(&hard_life(), |life| {
            lives.set(lives.get() + 1);
            live_hard(life);
            Ok(())
        });
        planted::choose(None);
        match found {
            Err(TestError::Fail(why, _)) => {
                println!("{fault}: caught in life {}: {why}", lives.get());
            }
            other => missed.push((fault, other.err())),
        }
    }
    assert!(missed.is_empty(), "not caught: {missed:?}");
}
