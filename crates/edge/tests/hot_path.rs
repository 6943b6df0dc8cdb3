//! Checks on many threads: never more is admitted than was there, and what is admitted is counted.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, which clippy does not see as such"
)]

use proptest::prelude::*;
use tollgate_edge::{CheckRequest, Cost, FakeEdge, Reason};

const THREADS: usize = 4;

/// Two keys of one customer share `shared`; the second has a limit more, which lies in another block.
fn run(quotas: (u64, u64), costs: &[(usize, u64)]) -> (u64, u64, FakeEdge, [String; 2]) {
    let edge = FakeEdge::new();
    let keys = [
        edge.add_key("acme", &[("shared", quotas.0)]).unwrap(),
        edge.add_key("acme", &[("more", quotas.1), ("shared", quotas.0)])
            .unwrap(),
    ];
    let admitted = std::thread::scope(|scope| {
        let work = |thread: usize| {
            let (edge, keys) = (&edge, &keys);
            move || {
                let mut admitted = [0; 2];
                for (key, cost) in costs.iter().skip(thread).step_by(THREADS) {
                    let request =
                        CheckRequest::new(&keys[*key]).with_cost(Cost::new(*cost).unwrap());
                    let decision = edge.check(&request);
                    if decision.is_allowed() {
                        admitted[*key] += cost;
                    } else {
                        assert_eq!(decision.reason(), Reason::QuotaExceeded);
                    }
                }
                admitted
            }
        };
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| scope.spawn(work(thread)))
            .collect();
        threads.into_iter().fold([0, 0], |sums, thread| {
            let admitted = thread.join().unwrap();
            [sums[0] + admitted[0], sums[1] + admitted[1]]
        })
    });
    (admitted[0], admitted[1], edge, keys)
}

proptest! {
    #[test]
    fn never_more_is_admitted_than_was_there_and_the_rest_is_still_there(
        quotas in (0_u64..200, 0_u64..200),
        costs in prop::collection::vec((0_usize..2, 1_u64..6), 0..300),
    ) {
        let (first, second, edge, keys) = run(quotas, &costs);
        prop_assert!(first + second <= quotas.0 && second <= quotas.1);
        let left: Vec<u64> = {
            let looked = edge.check(&CheckRequest::new(&keys[1]).with_cost(Cost::new(1 << 40).unwrap()));
            looked.limits().map(|limit| limit.remaining).collect()
        };
        prop_assert_eq!(left, [quotas.1 - second, quotas.0 - first - second]);
        prop_assert_eq!(edge.status().held, quotas.0 + quotas.1 - first - 2 * second);
    }
}

#[test]
fn one_hot_key_is_spent_to_the_last_unit_by_all_threads_together() {
    let costs = vec![(0, 1); 40_000];
    let (admitted, _, edge, _) = run((30_000, 0), &costs);
    assert_eq!(admitted, 30_000);
    assert_eq!(edge.check_counts().of(Reason::Ok), 30_000);
    assert_eq!(edge.check_counts().of(Reason::QuotaExceeded), 10_000);
}
