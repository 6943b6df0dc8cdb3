//! loom models of [`take_all`] over several cells: all or none, whatever runs beside it.
//!
//! Each model stands beside the planted bugs that it must catch. Run by `cargo xtask loom`; empty in
//! any other build.
#![cfg(loom)]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use loom::sync::Arc;
use loom::thread;
use std::sync::atomic::{AtomicBool, Ordering};
use tollgate_counters::planted::{Bug, assert_caught};
use tollgate_counters::{QuotaCell, Refused, Take, take_all};

/// Cells that hold one unit each.
fn cells<const N: usize>() -> Arc<[QuotaCell; N]> {
    Arc::new(std::array::from_fn(|_| {
        let cell = QuotaCell::new();
        cell.deposit(1).unwrap();
        cell
    }))
}

/// Takes one unit of each cell that `order` names, in that order.
fn take_one_each(cells: &[QuotaCell], order: &[usize]) -> Result<(), Refused> {
    take_all(order.iter().map(|&index| Take {
        cell: &cells[index],
        cost: 1,
    }))
}

fn spawn_check<const N: usize>(
    cells: &Arc<[QuotaCell; N]>,
    order: &'static [usize],
) -> thread::JoinHandle<Result<(), Refused>> {
    let cells = Arc::clone(cells);
    thread::spawn(move || take_one_each(&*cells, order))
}

fn assert_conserved(cells: &[QuotaCell]) {
    for cell in cells {
        assert_eq!(cell.free() + cell.used(), 1, "units conserved");
    }
}

/// Two checks want both cells, in the orders given; says how many were admitted.
fn two_checks(one: &'static [usize], two: &'static [usize]) -> u64 {
    let cells = cells::<2>();
    let other = spawn_check(&cells, two);
    let answers = [take_one_each(&*cells, one), other.join().unwrap()];

    let admitted: u64 = answers.iter().map(|answer| u64::from(answer.is_ok())).sum();
    for refused in answers.iter().filter_map(|answer| answer.err()) {
        assert_eq!(refused.free, 0, "refused only by what it found taken");
    }
    assert_conserved(&*cells);
    for cell in cells.iter() {
        assert_eq!(cell.used(), admitted, "all or none");
    }
    assert!(admitted <= 1, "admitted what fits");
    admitted
}

fn opposite_orders_model() {
    two_checks(&[0, 1], &[1, 0]);
}

#[test]
fn opposite_orders() {
    loom::model(opposite_orders_model);
}

#[test]
fn no_put_back_is_caught() {
    assert_caught(Bug::NoPutBack, "units conserved", opposite_orders_model);
}

#[test]
fn put_back_too_much_is_caught() {
    assert_caught(
        Bug::PutBackTooMuch,
        "units conserved",
        opposite_orders_model,
    );
}

/// The limit of what is promised: with opposite orders both may be refused.
#[test]
fn opposite_orders_may_refuse_both() {
    static BOTH_REFUSED: AtomicBool = AtomicBool::new(false);
    loom::model(|| {
        if two_checks(&[0, 1], &[1, 0]) == 0 {
            BOTH_REFUSED.store(true, Ordering::Relaxed);
        }
    });
    assert!(
        BOTH_REFUSED.load(Ordering::Relaxed),
        "the documented limit is not one"
    );
}

fn one_order_model() {
    assert_eq!(two_checks(&[0, 1], &[0, 1]), 1, "one of them admitted");
}

#[test]
fn one_order() {
    loom::model(one_order_model);
}

/// Here the order of the caller's lists is what is broken.
#[test]
#[should_panic(expected = "one of them admitted")]
fn order_not_kept_is_caught() {
    loom::model(|| assert_eq!(two_checks(&[0, 1], &[1, 0]), 1, "one of them admitted"));
}

/// Three checks that overlap in a ring: one order of the cells leaves somebody admitted.
fn ring_model() {
    let cells = cells::<3>();
    let others = [spawn_check(&cells, &[1, 2]), spawn_check(&cells, &[0, 2])];
    let mut admitted = u64::from(take_one_each(&*cells, &[0, 1]).is_ok());
    for other in others {
        admitted += u64::from(other.join().unwrap().is_ok());
    }
    assert_eq!(admitted, 1, "one of them admitted");
    assert_conserved(&*cells);
    assert_eq!(
        cells.iter().map(QuotaCell::used).sum::<u64>(),
        2,
        "all or none"
    );
}

#[test]
fn ring_in_one_order() {
    loom::model(ring_model);
}

#[test]
fn no_put_back_in_the_ring_is_caught() {
    assert_caught(Bug::NoPutBack, "units conserved", ring_model);
}

/// The driver surrenders what a check is about to need of its second cell.
fn take_all_and_withdraw_model() {
    let cells = cells::<2>();
    let check = spawn_check(&cells, &[0, 1]);
    let withdrawn = cells[1].withdraw(1);
    let admitted = u64::from(check.join().unwrap().is_ok());

    assert_eq!(admitted + withdrawn, 1, "the unit goes to one of them");
    assert_eq!(
        [cells[0].used(), cells[1].used()],
        [admitted; 2],
        "all or none"
    );
    assert_eq!(cells[0].free() + admitted, 1, "units conserved");
    assert_eq!(cells[1].free(), 0, "units conserved");
}

#[test]
fn take_all_and_withdraw() {
    loom::model(take_all_and_withdraw_model);
}

#[test]
fn no_put_back_beside_withdraw_is_caught() {
    assert_caught(
        Bug::NoPutBack,
        "units conserved",
        take_all_and_withdraw_model,
    );
}

/// The driver never sees units of a refused check in `used`, and never sees it fall.
fn used_only_of_admitted_model() {
    let cells = cells::<2>();
    let both = spawn_check(&cells, &[0, 1]);
    let rival = spawn_check(&cells, &[1]);
    let seen = [cells[0].used(), cells[0].used()];
    let admitted = u64::from(both.join().unwrap().is_ok());
    rival.join().unwrap().ok();

    assert!(seen[0] <= seen[1], "used never falls");
    assert!(seen[1] <= admitted, "used shows admitted checks only");
    assert_eq!(cells[0].used(), admitted, "all or none");
    assert_conserved(&*cells);
}

#[test]
fn used_only_of_admitted() {
    loom::model(used_only_of_admitted_model);
}

#[test]
fn commit_before_all_is_caught() {
    let broken = "used shows admitted checks only";
    assert_caught(Bug::CommitBeforeAll, broken, used_only_of_admitted_model);
}
