//! The simulator's quota cell: plain numbers behind an `Rc`, with the observer's sum beside them.

use std::cell::Cell;
use std::rc::Rc;
use tollgate_core::ids::Units;
use tollgate_core::lessee::{self, Refusal};

#[derive(Debug, Default)]
struct Numbers {
    free: Cell<Units>,
    used: Cell<Units>,
    refusal: Cell<Option<Refusal>>,
    /// What the observer counts as held by edges of this account, over all living cells.
    held_by_edges: Rc<Cell<Units>>,
}

/// See the module's text. Clones are the same cell.
#[derive(Clone, Debug, Default)]
pub(super) struct SimCell(Rc<Numbers>);

impl SimCell {
    pub(super) fn new(held_by_edges: Rc<Cell<Units>>) -> Self {
        Self(Rc::new(Numbers {
            held_by_edges,
            ..Numbers::default()
        }))
    }

    /// Takes units for an admitted check; the caller saw that they are there.
    pub(super) fn spend(&self, units: Units) {
        self.change(self.0.free.get() - units);
        self.0.used.set(self.0.used.get() + units);
    }

    pub(super) fn refusal(&self) -> Option<Refusal> {
        self.0.refusal.get()
    }

    /// The process that held this cell is dead: nobody spends from it again.
    pub(super) fn bury(&self) -> Units {
        let lost = self.0.free.get();
        self.change(0);
        lost
    }

    /// Puts units in that no issuer granted: only a planted fault does.
    #[cfg_attr(
        not(feature = "planted"),
        allow(dead_code, reason = "only planted faults do this")
    )]
    pub(super) fn conjure(&self, units: Units) {
        self.change(self.0.free.get() + units);
    }

    fn change(&self, free: Units) {
        let sum = &self.0.held_by_edges;
        sum.set(sum.get() - self.0.free.get() + free);
        self.0.free.set(free);
    }
}

impl lessee::Cell for SimCell {
    fn deposit(&self, units: Units) {
        self.change(self.0.free.get() + units);
    }

    fn withdraw(&self, at_most: Units) -> Units {
        let units = at_most.min(self.0.free.get());
        self.change(self.0.free.get() - units);
        units
    }

    fn free(&self) -> Units {
        self.0.free.get()
    }

    fn used(&self) -> Units {
        self.0.used.get()
    }

    fn set_refusal(&self, refusal: Option<Refusal>) {
        self.0.refusal.set(refusal);
    }
}
