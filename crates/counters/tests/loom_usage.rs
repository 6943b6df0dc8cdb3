//! loom model of a usage cell: no addition is lost and the reader never sees it fall.
//!
//! Stands beside the planted bug that it must catch. Run by `cargo xtask loom`; empty in any other
//! build.
#![cfg(loom)]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use loom::sync::Arc;
use loom::thread;
use tollgate_counters::UsageCell;
use tollgate_counters::planted::{Bug, assert_caught};

fn adds_and_reads_model() {
    let cell = Arc::new(UsageCell::new());
    let checks = [1, 2].map(|units| {
        let cell = Arc::clone(&cell);
        thread::spawn(move || cell.add(units))
    });
    let seen = [cell.admitted(), cell.admitted()];
    for check in checks {
        check.join().unwrap();
    }
    assert!(seen[0] <= seen[1], "usage never falls");
    assert_eq!(cell.admitted(), 3, "no addition lost");
}

#[test]
fn adds_and_reads() {
    loom::model(adds_and_reads_model);
}

#[test]
fn add_by_store_is_caught() {
    assert_caught(Bug::AddByStore, "no addition lost", adds_and_reads_model);
}
