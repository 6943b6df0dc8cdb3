//! One thread at a time: every operation against a naive model, and the edges of the ranges.
//!
//! What threads may do to each other is `loom_*.rs`'s business.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use proptest::prelude::*;
use tollgate_counters::{
    CellBlock, CellRef, MAX_HELD, Overfull, QUOTAS_PER_BLOCK, QuotaCell, Reading, Refused, Short,
    Take, USAGES_PER_BLOCK, UsageCell, UsageRef, look_all, take_all,
};

fn cell_with(units: u64) -> QuotaCell {
    let cell = QuotaCell::new();
    cell.deposit(units).unwrap();
    cell
}

#[test]
fn takes_what_is_free_and_no_more() {
    let cell = cell_with(5);
    assert_eq!(cell.try_take(6), Err(Short { free: 5 }));
    assert_eq!(cell.try_take(3), Ok(()));
    assert_eq!(
        cell.read(),
        Reading { used: 0, free: 2 },
        "in hand, in neither number"
    );
    cell.commit(2);
    cell.put_back(1);
    assert_eq!(
        cell.read(),
        Reading { used: 2, free: 3 },
        "a reservation settled in part"
    );
}

#[test]
fn a_cost_of_zero_takes_nothing_even_from_an_empty_cell() {
    let cell = QuotaCell::new();
    assert_eq!(cell.try_take(0), Ok(()));
    assert_eq!(
        take_all(
            [Take {
                cell: &cell,
                cost: 0
            }]
            .into_iter()
        ),
        Ok(())
    );
    assert_eq!(cell.read(), Reading { used: 0, free: 0 });
}

#[test]
fn withdraws_what_is_there() {
    let cell = cell_with(5);
    assert_eq!(cell.withdraw(2), 2);
    assert_eq!(cell.withdraw(u64::MAX), 3);
    assert_eq!(cell.withdraw(u64::MAX), 0);
}

#[test]
fn refuses_a_deposit_beyond_what_it_can_hold_and_says_why() {
    let cell = cell_with(MAX_HELD - 3);
    take_all(
        [Take {
            cell: &cell,
            cost: 10,
        }]
        .into_iter(),
    )
    .unwrap();
    let before = cell.read();
    for units in [4, MAX_HELD, u64::MAX] {
        let overfull = Overfull {
            units,
            free: before.free,
            used: 10,
        };
        assert_eq!(
            cell.deposit(units),
            Err(overfull),
            "used units count against it too"
        );
        assert_eq!(cell.read(), before);
    }
    assert_eq!(cell.deposit(3), Ok(()));
    assert_eq!(
        cell.deposit(1).unwrap_err().to_string(),
        "deposit of 1 units refused: the cell has 9223372036854775797 free and 10 used, and may \
         hold at most 9223372036854775807 of both; no account grants that many, so look for what \
         granted them"
    );
}

#[test]
fn names_the_first_cell_that_refuses_and_changes_none() {
    let cells = [cell_with(9), cell_with(1), cell_with(0)];
    let takes = cells.iter().map(|cell| Take { cell, cost: 2 });
    assert_eq!(take_all(takes), Err(Refused { index: 1, free: 1 }));
    assert_eq!(cells.each_ref().map(QuotaCell::free), [9, 1, 0]);
    assert_eq!(cells.each_ref().map(QuotaCell::used), [0, 0, 0]);
}

/// Passes the first look and is refused while taking: the way back that threads otherwise cause.
#[test]
fn rolls_back_when_the_same_cell_twice_is_too_much() {
    let cells = [cell_with(9), cell_with(3)];
    let takes = [0, 1, 1].map(|index: usize| Take {
        cell: &cells[index],
        cost: 2,
    });
    assert_eq!(
        take_all(takes.into_iter()),
        Err(Refused { index: 2, free: 1 })
    );
    assert_eq!(
        cells.each_ref().map(QuotaCell::read),
        [(9, 0), (3, 0)].map(reading)
    );
    cells[1].deposit(1).unwrap();
    assert_eq!(take_all(takes.into_iter()), Ok(()));
    assert_eq!(
        cells.each_ref().map(QuotaCell::read),
        [(7, 2), (0, 4)].map(reading)
    );
}

fn reading((free, used): (u64, u64)) -> Reading {
    Reading { used, free }
}

#[test]
fn shares_of_a_cell_are_one_cell_in_one_order() {
    let (own, customer) = (Arc::new(CellBlock::new()), Arc::new(CellBlock::new()));
    let quota = |block: &Arc<CellBlock>, index| CellRef::new(Arc::clone(block), index).unwrap();
    let one_key = quota(&customer, 2);
    let other_key = quota(&customer, 2);
    one_key.deposit(4).unwrap();
    take_all(
        [Take {
            cell: &other_key,
            cost: 1,
        }]
        .into_iter(),
    )
    .unwrap();
    assert_eq!(one_key.read(), Reading { used: 1, free: 3 });
    assert_eq!(one_key, other_key);
    assert_ne!(quota(&own, 0), quota(&own, 1));

    let mut one = vec![quota(&own, 1), quota(&customer, 2), quota(&own, 0)];
    let mut two = vec![quota(&own, 0), quota(&own, 1), quota(&customer, 2)];
    one.sort();
    two.sort();
    assert_eq!(one, two);
}

/// A record that ends with its block, as an edge's principal may.
struct Record {
    block: CellBlock,
}

impl AsRef<CellBlock> for Record {
    fn as_ref(&self) -> &CellBlock {
        &self.block
    }
}

#[test]
fn a_share_keeps_the_record_alive_that_its_block_is_in() {
    let record = Arc::new(Record {
        block: CellBlock::new(),
    });
    let quota = CellRef::new(Arc::clone(&record), 1).unwrap();
    let usage = UsageRef::new(Arc::clone(&record), 0).unwrap();
    record.block.quotas()[1].deposit(2).unwrap();
    record.block.usages()[0].add(7);
    drop(record);
    assert_eq!((quota.free(), usage.admitted()), (2, 7));
}

#[test]
fn a_look_takes_nothing() {
    let cells = [cell_with(3), cell_with(1)];
    let takes = |cost| cells.iter().map(move |cell| Take { cell, cost });
    assert_eq!(look_all(takes(1)), Ok(()));
    assert_eq!(look_all(takes(2)), Err(Refused { index: 1, free: 1 }));
    assert_eq!(cells.each_ref().map(QuotaCell::free), [3, 1]);
}

#[test]
fn a_block_ends_where_it_says() {
    let block = Arc::new(CellBlock::new());
    for (count, made) in [
        (
            QUOTAS_PER_BLOCK,
            (0..300)
                .filter_map(|i| CellRef::new(Arc::clone(&block), i))
                .count(),
        ),
        (
            USAGES_PER_BLOCK,
            (0..300)
                .filter_map(|i| UsageRef::new(Arc::clone(&block), i))
                .count(),
        ),
    ] {
        assert_eq!(count, made);
    }
    let usage = UsageRef::new(Arc::clone(&block), 1).unwrap();
    usage.add(3);
    assert_eq!(block.usages().each_ref().map(UsageCell::admitted), [0, 3]);
    assert_eq!(std::ptr::from_ref(&*block).addr() % 64, 0, "one line");
}

/// What a cell is, without atomics, together with the units that left the model.
#[derive(Clone, Debug, Default)]
struct Naive {
    free: u64,
    used: u64,
    hand: u64,
    withdrawn: u64,
    deposited: u64,
}

#[derive(Clone, Debug)]
enum Step {
    Deposit(usize, u64),
    Withdraw(usize, u64),
    Take(usize, u64),
    PutBack(usize, u64),
    Commit(usize, u64),
    TakeAll(Vec<(usize, u64)>),
}

const CELLS: usize = 3;

fn step() -> impl Strategy<Value = Step> {
    let cell = 0..CELLS;
    let units = 0..20_u64;
    prop_oneof![
        (cell.clone(), units.clone()).prop_map(|(cell, units)| Step::Deposit(cell, units)),
        (cell.clone(), units.clone()).prop_map(|(cell, units)| Step::Withdraw(cell, units)),
        (cell.clone(), units.clone()).prop_map(|(cell, units)| Step::Take(cell, units)),
        (cell.clone(), units.clone()).prop_map(|(cell, units)| Step::PutBack(cell, units)),
        (cell.clone(), units.clone()).prop_map(|(cell, units)| Step::Commit(cell, units)),
        proptest::collection::vec((cell, units), 0..6).prop_map(Step::TakeAll),
    ]
}

/// The naive all-or-none: on a copy, which replaces the cells only if nothing refused.
fn naive_take_all(naive: &mut [Naive; CELLS], takes: &[(usize, u64)]) -> Result<(), usize> {
    // The real one looks at each cell before it takes of any, so that is what refuses first.
    if let Some(index) = takes
        .iter()
        .position(|&(cell, cost)| naive[cell].free < cost)
    {
        return Err(index);
    }
    let mut copy = naive.clone();
    for (index, &(cell, cost)) in takes.iter().enumerate() {
        copy[cell].free = copy[cell].free.checked_sub(cost).ok_or(index)?;
        copy[cell].used += cost;
    }
    *naive = copy;
    Ok(())
}

fn apply(cells: &[QuotaCell; CELLS], naive: &mut [Naive; CELLS], step: &Step) {
    match *step {
        Step::Deposit(cell, units) => {
            cells[cell].deposit(units).unwrap();
            naive[cell].free += units;
            naive[cell].deposited += units;
        }
        Step::Withdraw(cell, at_most) => {
            let units = naive[cell].free.min(at_most);
            assert_eq!(cells[cell].withdraw(at_most), units);
            naive[cell].free -= units;
            naive[cell].withdrawn += units;
        }
        Step::Take(cell, cost) => {
            let free = naive[cell].free;
            let taken = cells[cell].try_take(cost);
            if free >= cost {
                assert_eq!(taken, Ok(()));
                naive[cell].free -= cost;
                naive[cell].hand += cost;
            } else {
                assert_eq!(taken, Err(Short { free }));
            }
        }
        Step::PutBack(cell, at_most) => {
            let units = naive[cell].hand.min(at_most);
            cells[cell].put_back(units);
            naive[cell].hand -= units;
            naive[cell].free += units;
        }
        Step::Commit(cell, at_most) => {
            let units = naive[cell].hand.min(at_most);
            cells[cell].commit(units);
            naive[cell].hand -= units;
            naive[cell].used += units;
        }
        Step::TakeAll(ref takes) => {
            let list = takes.iter().map(|&(cell, cost)| Take {
                cell: &cells[cell],
                cost,
            });
            let answer = take_all(list).map_err(|refused| refused.index);
            assert_eq!(answer, naive_take_all(naive, takes));
        }
    }
}

proptest! {
    #[test]
    fn behaves_as_the_naive_model(steps in proptest::collection::vec(step(), 0..80)) {
        let cells: [QuotaCell; CELLS] = std::array::from_fn(|_| QuotaCell::new());
        let mut naive: [Naive; CELLS] = Default::default();
        for step in &steps {
            let before = cells.each_ref().map(QuotaCell::used);
            apply(&cells, &mut naive, step);
            for (index, (cell, naive)) in cells.iter().zip(&naive).enumerate() {
                let Naive { free, used, hand, withdrawn, deposited } = *naive;
                prop_assert_eq!(cell.read(), Reading { used, free }, "after {:?}", step);
                prop_assert_eq!(deposited, free + used + hand + withdrawn);
                prop_assert!(used >= before[index], "used never falls");
            }
        }
    }
}
