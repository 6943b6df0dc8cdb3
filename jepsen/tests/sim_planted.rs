//! The checks see: every fault that can be planted in the core is caught.
#![cfg(feature = "planted")]

use tollgate_core::planted::NAMES;
use tollgate_jepsen::sim::campaign::hunt;

#[test]
fn every_planted_fault_is_caught() {
    let missed: Vec<_> = NAMES
        .iter()
        .filter(|fault| hunt(fault, 1, 500).seeds == [None])
        .collect();
    assert!(missed.is_empty(), "not caught within 500 seeds: {missed:?}");
}
