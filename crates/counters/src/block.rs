//! [`CellBlock`]: the cells of one principal in one cache line, and shared references to them.
//!
//! Owns the layout. Refuses to say which account a cell belongs to: the edge knows, and keeps a
//! block alive for as long as a cell of it holds units.

use std::cmp::Ordering;
use std::ops::Deref;

use crate::quota::QuotaCell;
use crate::sync::Arc;
use crate::usage::UsageCell;

/// Quota cells in a block.
pub const QUOTAS_PER_BLOCK: usize = 3;
/// Usage cells in a block.
pub const USAGES_PER_BLOCK: usize = 2;

/// Three quota cells and two usage cells: one line of 64 bytes, so that a check on its own accounts
/// misses the cache once.
///
/// Lines of other kinds of cells (rate, permits) will be blocks of their own layout beside this one.
/// It can stand alone behind an [`Arc`] or be a field of a larger record: its alignment keeps the
/// line to itself, so that nothing else bounces with it.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct CellBlock {
    quotas: [QuotaCell; QUOTAS_PER_BLOCK],
    usages: [UsageCell; USAGES_PER_BLOCK],
}

// loom's atomics carry its bookkeeping and are larger.
#[cfg(not(loom))]
const _: () = {
    assert!(size_of::<QuotaCell>() == 16);
    assert!(size_of::<UsageCell>() == 8);
    assert!(size_of::<CellBlock>() == 64);
    assert!(align_of::<CellBlock>() == 64);
    assert!(size_of::<CellRef>() == 16);
    assert!(size_of::<Option<CellRef>>() == 16);
};

impl CellBlock {
    /// A block of empty cells.
    #[must_use]
    pub fn new() -> Self {
        Self {
            quotas: std::array::from_fn(|_| QuotaCell::new()),
            usages: std::array::from_fn(|_| UsageCell::new()),
        }
    }

    /// Its quota cells.
    #[inline]
    #[must_use]
    pub fn quotas(&self) -> &[QuotaCell; QUOTAS_PER_BLOCK] {
        &self.quotas
    }

    /// Its usage cells.
    #[inline]
    #[must_use]
    pub fn usages(&self) -> &[UsageCell; USAGES_PER_BLOCK] {
        &self.usages
    }
}

impl Default for CellBlock {
    fn default() -> Self {
        Self::new()
    }
}

impl AsRef<CellBlock> for CellBlock {
    #[inline]
    fn as_ref(&self) -> &CellBlock {
        self
    }
}

/// A share of one quota cell: several principals may hold the same one (an account of their common
/// customer), and the driver holds one while the cell has units in it.
///
/// `H` is what the block lives in: the block alone, or a larger record of which it is a field.
/// A check borrows the cell through it and counts no references. Ordered and compared by the cell's
/// address, which is stable while any share of the block lives: a list of cells sorted by it has the
/// one global order that [`take_all`](crate::take_all) speaks of, in every principal.
#[derive(Debug)]
pub struct CellRef<H = CellBlock> {
    home: Arc<H>,
    /// Below `QUOTAS_PER_BLOCK`, checked by `new`.
    index: u8,
}

impl<H: AsRef<CellBlock>> CellRef<H> {
    /// A share of the quota cell `index` of the block in `home`; `None` from [`QUOTAS_PER_BLOCK`] on.
    #[must_use]
    pub fn new(home: Arc<H>, index: usize) -> Option<Self> {
        index_below(QUOTAS_PER_BLOCK, index).map(|index| Self { home, index })
    }

    fn address(&self) -> usize {
        std::ptr::from_ref::<QuotaCell>(self).addr()
    }
}

impl<H: AsRef<CellBlock>> Deref for CellRef<H> {
    type Target = QuotaCell;

    #[inline]
    fn deref(&self) -> &QuotaCell {
        &self.home.as_ref().as_ref().quotas[usize::from(self.index)]
    }
}

// Not derived: a derived one would ask for `H: Clone`.
impl<H> Clone for CellRef<H> {
    fn clone(&self) -> Self {
        Self {
            home: Arc::clone(&self.home),
            index: self.index,
        }
    }
}

impl<H: AsRef<CellBlock>> PartialEq for CellRef<H> {
    fn eq(&self, other: &Self) -> bool {
        self.address() == other.address()
    }
}

impl<H: AsRef<CellBlock>> Eq for CellRef<H> {}

impl<H: AsRef<CellBlock>> PartialOrd for CellRef<H> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<H: AsRef<CellBlock>> Ord for CellRef<H> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.address().cmp(&other.address())
    }
}

/// A share of one usage cell: keys of one licence count on the same meters. `H` as for [`CellRef`].
#[derive(Debug)]
pub struct UsageRef<H = CellBlock> {
    home: Arc<H>,
    /// Below `USAGES_PER_BLOCK`, checked by `new`.
    index: u8,
}

impl<H: AsRef<CellBlock>> UsageRef<H> {
    /// A share of the usage cell `index` of the block in `home`; `None` from [`USAGES_PER_BLOCK`] on.
    #[must_use]
    pub fn new(home: Arc<H>, index: usize) -> Option<Self> {
        index_below(USAGES_PER_BLOCK, index).map(|index| Self { home, index })
    }
}

impl<H: AsRef<CellBlock>> Deref for UsageRef<H> {
    type Target = UsageCell;

    #[inline]
    fn deref(&self) -> &UsageCell {
        &self.home.as_ref().as_ref().usages[usize::from(self.index)]
    }
}

// Not derived: a derived one would ask for `H: Clone`.
impl<H> Clone for UsageRef<H> {
    fn clone(&self) -> Self {
        Self {
            home: Arc::clone(&self.home),
            index: self.index,
        }
    }
}

fn index_below(count: usize, index: usize) -> Option<u8> {
    u8::try_from(index)
        .ok()
        .filter(|&index| usize::from(index) < count)
}
