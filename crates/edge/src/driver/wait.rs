//! [`Waiters`]: checks that wait for units. A waiter is only ever told to look again: the units are in
//! the cell, so a check that was given up loses nothing.

use crate::cell::EdgeCell;
use std::collections::{BTreeMap, BTreeSet};
use tokio::sync::oneshot;
use tollgate_core::account::AccountId;
use tollgate_core::ids::Units;
use tollgate_core::lessee::Cell;
use tollgate_core::time::Mono;

/// Checks that may wait at a time; further ones are told at once that their answer is not available.
pub(super) const WAITERS_MAX: usize = 16_384;

/// Tells a check to look again; dropped, it tells it not to.
pub(crate) type Wake = oneshot::Sender<()>;

struct Waiter {
    wake: Wake,
    cost: Units,
    /// Those that were short.
    accounts: Vec<AccountId>,
}

/// See the module's text.
#[derive(Default)]
pub(super) struct Waiters {
    last: u64,
    all: BTreeMap<u64, Waiter>,
    by_account: BTreeMap<AccountId, BTreeSet<u64>>,
}

impl Waiters {
    /// A check waits until every one of `accounts` holds its cost, or one of them refuses.
    pub(super) fn add(&mut self, wake: Wake, cost: Units, accounts: Vec<AccountId>) {
        if self.all.len() >= WAITERS_MAX {
            return;
        }
        self.last += 1;
        for account in &accounts {
            self.by_account
                .entry(account.clone())
                .or_default()
                .insert(self.last);
        }
        self.all.insert(
            self.last,
            Waiter {
                wake,
                cost,
                accounts,
            },
        );
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(super) fn has(&self, account: &AccountId) -> bool {
        self.by_account.contains_key(account)
    }

    /// Every account that somebody waits for.
    pub(super) fn accounts(&self) -> Vec<AccountId> {
        self.by_account.keys().cloned().collect()
    }

    /// Wakes those waiting for `account` that can go on, oldest first, as many as its units cover; all of
    /// them where it refuses. Answers what the cell should hold for one more of those that still wait.
    pub(super) fn look<'c>(
        &mut self,
        now: Mono,
        account: &AccountId,
        cell: impl Fn(&AccountId) -> Option<&'c EdgeCell>,
    ) -> Option<Units> {
        let ids = self.by_account.get(account)?;
        let own = cell(account)?;
        let mut promised: Units = 0;
        let mut largest = None;
        let mut woken = Vec::new();
        for id in ids {
            let Some(waiter) = self.all.get(id) else {
                continue;
            };
            let covered = own.free().saturating_sub(promised) >= waiter.cost;
            let enough = |other: &AccountId| cell(other).is_some_and(|c| c.free() >= waiter.cost);
            if covered && waiter.accounts.iter().all(enough) {
                promised = promised.saturating_add(waiter.cost);
                woken.push(*id);
            } else if own.refused(now, waiter.cost).is_some() {
                woken.push(*id);
            } else if !covered {
                largest = largest.max(Some(waiter.cost));
            }
        }
        for id in woken {
            if let Some(waiter) = self.remove(id) {
                // Nobody waits any more: as good.
                let _ = waiter.wake.send(());
            }
        }
        Some(promised.saturating_add(largest?))
    }

    /// Forgets checks that were given up.
    pub(super) fn prune(&mut self) {
        let given_up = self
            .all
            .iter()
            .filter(|(_, waiter)| waiter.wake.is_closed());
        for id in given_up.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.remove(id);
        }
    }

    fn remove(&mut self, id: u64) -> Option<Waiter> {
        let waiter = self.all.remove(&id)?;
        for account in &waiter.accounts {
            if let Some(ids) = self.by_account.get_mut(account) {
                ids.remove(&id);
                if ids.is_empty() {
                    self.by_account.remove(account);
                }
            }
        }
        Some(waiter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tollgate_core::lessee::Refusal;
    use tollgate_core::message::LeaseState;
    use tollgate_counters::CellBlock;

    fn account(name: &str) -> AccountId {
        AccountId::parse(&format!("live/acme/-/customer/{name}/open")).unwrap()
    }

    #[test]
    fn as_many_are_woken_as_units_cover_and_all_by_a_refusal() {
        let block = Arc::new(CellBlock::new());
        let cells: BTreeMap<_, _> = ["a", "b"]
            .into_iter()
            .enumerate()
            .map(|(place, name)| (account(name), EdgeCell::new(block.clone(), place)))
            .collect();
        let mut waiters = Waiters::default();
        let mut wait = |cost, names: &[&str]| {
            let (wake, woken) = oneshot::channel();
            waiters.add(wake, cost, names.iter().map(|name| account(name)).collect());
            woken
        };
        let mut first = wait(2, &["a"]);
        let mut both = wait(1, &["a", "b"]);
        let mut late = wait(2, &["a"]);
        assert_eq!(waiters.accounts(), [account("a"), account("b")]);
        cells[&account("a")].deposit(3);
        let need = waiters.look(Mono(0), &account("a"), |a| cells.get(a));
        assert_eq!(need, Some(4), "two for the first, two for the last");
        assert!(first.try_recv().is_ok());
        assert!(both.try_recv().is_err(), "b is short");
        assert!(late.try_recv().is_err(), "one unit is left");
        cells[&account("b")].set_refusal(Some(Refusal {
            state: LeaseState::NoneForGood,
            until: None,
            need: 1,
        }));
        let need = waiters.look(Mono(0), &account("b"), |a| cells.get(a));
        assert_eq!(need, None);
        assert!(both.try_recv().is_ok());
        drop(late);
        waiters.prune();
        assert!(waiters.is_empty() && waiters.by_account.is_empty());
    }
}
