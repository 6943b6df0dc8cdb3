//! Whose principals changed lately: what an edge asks after a push, so that it fetches those only.
//!
//! A cache of the log, not replicated: a restored replica starts with an empty one and then cannot tell
//! about anything before its restart, which an edge answers by fetching everything it holds.

use crate::account::Name;
use std::collections::{BTreeSet, VecDeque};

/// Changes kept.
pub const CHANGES_MAX: usize = 1024;

/// Customers named in one answer; a change that touches more is told as "everyone".
pub const CHANGED_CUSTOMERS_MAX: usize = 1024;

/// Customers named over all changes kept.
const CHANGED_NAMES_MAX: usize = 64 * 1024;

#[derive(Clone, Debug, Default)]
pub(super) struct ChangeLog {
    /// Nothing is missing after this index.
    complete_after: u64,
    changes: VecDeque<Change>,
    names: usize,
}

#[derive(Clone, Debug)]
struct Change {
    index: u64,
    /// `None`: too many to name.
    customers: Option<Vec<Name>>,
}

impl ChangeLog {
    pub(super) fn starting_after(index: u64) -> Self {
        Self {
            complete_after: index,
            ..Self::default()
        }
    }

    pub(super) fn add(&mut self, index: u64, customers: BTreeSet<Name>) {
        let few = customers.len() <= CHANGED_CUSTOMERS_MAX;
        let customers = few.then(|| customers.into_iter().collect::<Vec<_>>());
        self.names = self
            .names
            .saturating_add(customers.as_ref().map_or(0, Vec::len));
        self.changes.push_back(Change { index, customers });
        while self.changes.len() > CHANGES_MAX || self.names > CHANGED_NAMES_MAX {
            let Some(oldest) = self.changes.pop_front() else {
                break;
            };
            self.names = self
                .names
                .saturating_sub(oldest.customers.map_or(0, |c| c.len()));
            self.complete_after = oldest.index;
        }
    }

    pub(super) fn since(&self, index: u64) -> Option<Vec<Name>> {
        if index < self.complete_after {
            return None;
        }
        let mut touched = BTreeSet::new();
        for change in self
            .changes
            .iter()
            .rev()
            .take_while(|change| change.index > index)
        {
            touched.extend(change.customers.as_ref()?.iter().cloned());
            if touched.len() > CHANGED_CUSTOMERS_MAX {
                return None;
            }
        }
        Some(touched.into_iter().collect())
    }
}
