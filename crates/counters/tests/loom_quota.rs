//! loom models of one quota cell: whatever checks and driver do at once, no unit is lost or doubled.
//!
//! Each model stands beside the planted bugs that it must catch. Run by `cargo xtask loom`; empty in
//! any other build.
#![cfg(loom)]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use loom::sync::Arc;
use loom::thread;
use tollgate_counters::QuotaCell;
use tollgate_counters::planted::{Bug, assert_caught};

fn cell_with(units: u64) -> Arc<QuotaCell> {
    let cell = QuotaCell::new();
    cell.deposit(units).unwrap();
    Arc::new(cell)
}

/// Explores the models of three threads with at most three preemptions in an execution, so that they
/// end in about a second. They pass without the bound as well, in 0.7 and 1.2 million executions.
fn bounded(model: fn()) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(3));
    builder.check(model);
}

/// A check that admits itself on this cell alone; says how many units it used.
fn check(cell: &QuotaCell, cost: u64) -> u64 {
    match cell.try_take(cost) {
        Ok(()) => {
            cell.commit(cost);
            cost
        }
        Err(_) => 0,
    }
}

fn spawn_check(cell: &Arc<QuotaCell>, cost: u64) -> thread::JoinHandle<u64> {
    let cell = Arc::clone(cell);
    thread::spawn(move || check(&cell, cost))
}

/// Three units, two checks of two: one is admitted.
fn take_and_take_model() {
    let cell = cell_with(3);
    let other = spawn_check(&cell, 2);
    let admitted = check(&cell, 2) + other.join().unwrap();

    assert_eq!(admitted, 2, "admitted what fits");
    assert_eq!(cell.used(), admitted, "used is what was admitted");
    assert_eq!(cell.free() + cell.used(), 3, "units conserved");
}

#[test]
fn take_and_take() {
    loom::model(take_and_take_model);
}

#[test]
fn take_by_store_is_caught() {
    assert_caught(Bug::TakeByStore, "admitted what fits", take_and_take_model);
}

/// Room for both checks: a lost race is not a refusal, and no addition to `used` is lost.
fn room_for_both_model() {
    let cell = cell_with(2);
    let other = spawn_check(&cell, 1);
    let admitted = check(&cell, 1) + other.join().unwrap();

    assert_eq!(admitted, 2, "both admitted");
    assert_eq!(cell.used(), 2, "used is what was admitted");
    assert_eq!(cell.free(), 0, "units conserved");
}

#[test]
fn room_for_both() {
    loom::model(room_for_both_model);
}

#[test]
fn take_gives_up_is_caught() {
    assert_caught(Bug::TakeGivesUp, "both admitted", room_for_both_model);
}

#[test]
fn commit_by_store_is_caught() {
    assert_caught(
        Bug::CommitByStore,
        "used is what was admitted",
        room_for_both_model,
    );
}

/// A check against a surrender of everything: each unit goes to one of them.
fn take_and_withdraw_model() {
    let cell = cell_with(2);
    let taker = spawn_check(&cell, 1);
    let withdrawn = cell.withdraw(2);
    let admitted = taker.join().unwrap();

    assert_eq!(cell.used(), admitted, "used is what was admitted");
    assert_eq!(cell.free() + admitted + withdrawn, 2, "units conserved");
    assert!(withdrawn >= 1, "withdrew what no check took");
}

#[test]
fn take_and_withdraw() {
    loom::model(take_and_withdraw_model);
}

#[test]
fn withdraw_by_store_is_caught() {
    assert_caught(
        Bug::WithdrawByStore,
        "units conserved",
        take_and_withdraw_model,
    );
}

/// A check against a grant.
fn take_and_deposit_model() {
    let cell = cell_with(1);
    let taker = spawn_check(&cell, 1);
    cell.deposit(2).unwrap();
    let admitted = taker.join().unwrap();

    assert_eq!(admitted, 1, "the check fits before and after the grant");
    assert_eq!(cell.free() + admitted, 3, "units conserved");
}

#[test]
fn take_and_deposit() {
    loom::model(take_and_deposit_model);
}

#[test]
fn deposit_by_store_is_caught() {
    assert_caught(
        Bug::DepositByStore,
        "units conserved",
        take_and_deposit_model,
    );
}

/// A grant and a surrender while one check is admitted and another one is rolled back.
fn all_three_model() {
    let cell = cell_with(1);
    let taker = spawn_check(&cell, 1);
    let undecided = {
        let cell = Arc::clone(&cell);
        thread::spawn(move || {
            if cell.try_take(1).is_ok() {
                cell.put_back(1);
            }
        })
    };
    cell.deposit(1).unwrap();
    let withdrawn = cell.withdraw(1);
    let admitted = taker.join().unwrap();
    undecided.join().unwrap();

    assert_eq!(cell.used(), admitted, "used is what was admitted");
    assert_eq!(cell.free() + admitted + withdrawn, 2, "units conserved");
}

#[test]
fn all_three() {
    bounded(all_three_model);
}

#[test]
fn put_back_by_store_is_caught() {
    assert_caught(Bug::PutBackByStore, "units conserved", all_three_model);
}

/// What the driver reads never adds up to more than the cell was given.
fn reading_never_exceeds_model() {
    let cell = cell_with(2);
    let checks = [spawn_check(&cell, 1), spawn_check(&cell, 1)];
    let before = cell.read();
    assert!(
        before.used + before.free <= 2,
        "reading within what was deposited"
    );
    let withdrawn = cell.withdraw(1);
    let after = cell.read();
    assert!(
        after.used + after.free + withdrawn <= 2,
        "reading within what was deposited"
    );
    assert!(after.used >= before.used, "used never falls");
    for check in checks {
        check.join().unwrap();
    }
}

#[test]
fn reading_never_exceeds() {
    bounded(reading_never_exceeds_model);
}

#[test]
fn free_before_used_is_caught() {
    let broken = "reading within what was deposited";
    assert_caught(Bug::FreeBeforeUsed, broken, reading_never_exceeds_model);
}

#[test]
fn commit_relaxed_is_caught() {
    let broken = "reading within what was deposited";
    assert_caught(Bug::CommitRelaxed, broken, reading_never_exceeds_model);
}
