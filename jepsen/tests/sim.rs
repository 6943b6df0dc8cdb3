//! The simulator's own promises: seeds repeat to the last message, and a short sweep finds nothing.

use tollgate_jepsen::sim;
use tollgate_jepsen::sim::campaign::sweep;

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in [1, 2, 3] {
        let (first, second) = (sim::run(seed, 0), sim::run(seed, 100));
        assert_eq!(first.trace, second.trace, "seed {seed}");
        assert_ne!(first.trace, sim::run(seed + 100, 0).trace);
    }
}

#[test]
fn no_promise_breaks_in_a_short_sweep() {
    let sweep = sweep(1, 40, |_| ());
    let broken: Vec<_> = sweep
        .broken
        .iter()
        .map(|run| (run.seed, &run.broken))
        .collect();
    assert!(broken.is_empty(), "{broken:?}");
    assert!(
        sweep.checks > 1000,
        "the runs made {} checks: the load is gone",
        sweep.checks
    );
}
