//! [`Rows`]: the accounts open at an edge, by slot, so that a new owner of a slot costs a look at its rows
//! and at no others.

use super::row::Row;
use crate::account::AccountId;
use crate::ids::Slot;
use std::collections::BTreeMap;

/// See the module's text. Walks go in the order of slots, then accounts.
pub(super) struct Rows<C> {
    slots: BTreeMap<Slot, BTreeMap<AccountId, Row<C>>>,
}

impl<C> Rows<C> {
    pub(super) fn new() -> Self {
        Self {
            slots: BTreeMap::new(),
        }
    }

    pub(super) fn get(&self, account: &AccountId) -> Option<&Row<C>> {
        self.slots.get(&account.slot())?.get(account)
    }

    pub(super) fn get_mut(&mut self, account: &AccountId) -> Option<&mut Row<C>> {
        self.slots.get_mut(&account.slot())?.get_mut(account)
    }

    pub(super) fn insert(&mut self, account: AccountId, row: Row<C>) {
        let rows = self.slots.entry(account.slot()).or_default();
        rows.insert(account, row);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&AccountId, &Row<C>)> {
        self.slots.values().flatten()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&AccountId, &mut Row<C>)> {
        self.slots.values_mut().flatten()
    }

    pub(super) fn retain(&mut self, mut keep: impl FnMut(&AccountId, &mut Row<C>) -> bool) {
        self.slots.retain(|_, rows| {
            rows.retain(&mut keep);
            !rows.is_empty()
        });
    }

    pub(super) fn of_slot_mut(
        &mut self,
        slot: Slot,
    ) -> impl Iterator<Item = (&AccountId, &mut Row<C>)> {
        self.slots.get_mut(&slot).into_iter().flatten()
    }
}
