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
        3 => who.prop_map(Step::Sync),
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

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    /// Messages are lost, repeated and reordered; owners change, processes die, limits move.
    #[test]
    fn nothing_is_held_that_is_not_out(
        (limit, steps) in limits().prop_flat_map(|limit| {
            let any = prop_oneof![12 => step(limit / 10 + 1), 1 => blow(limit)];
            (Just(limit), prop::collection::vec(any, 1..150))
        }),
        fates in prop::collection::vec(0..=3_u8, 1..20),
    ) {
        let mut cluster = Cluster::new(limit, fates);
        for step in &steps {
            run(&mut cluster, step);
        }
        wind_up(&mut cluster);
        let row = cluster.row();
        let billed = row.settled + cluster.forgotten;
        prop_assert!(billed <= cluster.admitted, "{}", cluster.held());
        prop_assert!(billed + cluster.perhaps_forgotten >= cluster.admitted, "{}", cluster.held());
    }

    /// Messages come late, twice and in any order, but none is lost and nobody dies: the totals at the end
    /// are those of the checks, whatever the order, and every unit is settled or back in the ledger.
    #[test]
    fn without_loss_every_unit_is_settled_or_back(
        (limit, steps) in limits().prop_flat_map(|limit| {
            (Just(limit), prop::collection::vec(step(limit / 20), 1..150))
        }),
        fates in prop::collection::vec(1..=3_u8, 1..20),
    ) {
        let mut cluster = Cluster::new(limit, fates);
        let mut asked = 0;
        for step in &steps {
            match step {
                // Two resolves at once may open two rows; what the first was granted is not freed then.
                Step::GiveUp | Step::Resolve(..) => continue,
                Step::Want(_, cost) if asked + cost > limit => continue,
                Step::Want(_, cost) => asked += cost,
                _ => {}
            }
            run(&mut cluster, step);
        }
        cluster.heal("all checks are admitted", |cluster| cluster.waiting() == 0);
        wind_up(&mut cluster);
        let row = cluster.row();
        prop_assert_eq!((row.settled, row.excess), (asked, 0), "{}", cluster.held());
        prop_assert_eq!(row.out, 0, "{}", cluster.held());
    }
}
