//! [`take_all`]: one check's units from several cells, all or none.
//!
//! Owns the duty that every unit taken is either committed or put back. Refuses to order the list
//! for the caller (the edge does that once per principal, see [`CellRef`](crate::CellRef)) and to
//! conclude anything from a refusal.

use crate::quota::{QuotaCell, Short};
use crate::sync::planted;

/// What a check wants of one cell.
#[derive(Clone, Copy, Debug)]
pub struct Take<'c> {
    /// Where to take from.
    pub cell: &'c QuotaCell,
    /// Units to take; 0 takes nothing and never refuses.
    pub cost: u64,
}

/// The first cell that refused a check. No cell has changed by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Which of the list, from 0.
    pub index: usize,
    /// Units free in that cell when it was looked at.
    pub free: u64,
}

/// Takes every cost from its cell and counts it as used, or changes nothing.
///
/// Lock-free, no allocation; a list whose cells plainly lack units costs one load each and writes
/// nothing. While it runs, units may be in its hand that it will put back.
///
/// * `takes` is walked several times by cloning it and must yield the same each time, as an iterator
///   over a slice does. A cell may occur twice.
///
/// # What concurrent checks can rely on
/// Units are conserved and `used` never shows a check that is refused, whatever the order of lists.
/// With lists in **one global order** of cells, of several checks that would each fit alone at
/// least one is admitted. With opposite orders all may be refused: each holds what another needs.
/// Either way a refusal says what was free, not that the account is exhausted: ask the issuer.
///
/// # Errors
/// [`Refused`] with the first cell that had too few units free.
#[inline]
pub fn take_all<'c, L>(takes: L) -> Result<(), Refused>
where
    L: Iterator<Item = Take<'c>> + Clone,
{
    look_all(takes.clone())?;
    for (index, take) in takes.clone().enumerate() {
        if let Err(Short { free }) = take.cell.try_take(take.cost) {
            roll_back(takes, index);
            return Err(Refused { index, free });
        }
        planted!(CommitBeforeAll, { take.cell.commit(take.cost) });
    }
    planted!(CommitBeforeAll, { return Ok(()) });
    for take in takes {
        take.cell.commit(take.cost);
    }
    Ok(())
}

/// Says what would refuse these takes now, without taking: the first look of [`take_all`] alone.
///
/// For a caller with something slow to do before it takes, such as reading a clock: the cells arrive
/// from memory meanwhile, and what plainly lacks units is refused before. Units seen here may be gone
/// a moment later.
///
/// # Errors
/// [`Refused`] with the first cell that has too few units free.
#[inline]
pub fn look_all<'c>(takes: impl Iterator<Item = Take<'c>>) -> Result<(), Refused> {
    for (index, take) in takes.enumerate() {
        let free = take.cell.free();
        if free < take.cost {
            return Err(Refused { index, free });
        }
    }
    Ok(())
}

/// Puts back what the first `taken` of `takes` gave.
#[cold]
fn roll_back<'c>(takes: impl Iterator<Item = Take<'c>>, taken: usize) {
    planted!(NoPutBack, { return });
    planted!(PutBackTooMuch, {
        takes.for_each(|take| take.cell.put_back(take.cost));
        return;
    });
    for take in takes.take(taken) {
        planted!(CommitBeforeAll, { take.cell.uncommit(take.cost) });
        take.cell.put_back(take.cost);
    }
}
