//! [`Principal`]: a caller with its limits compiled to cells, ready to be taken from.
//!
//! Owns the two layouts: the usual one, where all cells of a principal lie in one block and so in one
//! cache line, and the general one, a list sorted by address (accounts shared with other keys, more than
//! fit a block). Refuses to make cells of accounts that are open already: two keys of one customer must
//! meet in the same cell. Made by the driver, read by checks. Next: `view.rs`.

use crate::cell::EdgeCell;
use crate::decision::{LimitKind, LimitState};
use std::sync::Arc;
use tollgate_core::account::{AccountId, Name};
use tollgate_core::ids::Units;
use tollgate_core::message::{Principal as Who, PrincipalLimit};
use tollgate_counters::{
    CellBlock, CellRef, QUOTAS_PER_BLOCK, Take, USAGES_PER_BLOCK, UsageRef, take_all,
};

/// See the module's text.
pub(crate) struct Principal {
    cells: Cells,
    usages: Usages,
    who: Arc<Who>,
    /// In the order of `who.limits`.
    accounts: Box<[EdgeCell]>,
}

enum Cells {
    /// The first `count` cells of one block, in the order of the limits, which is the order of addresses.
    Own { block: Arc<CellBlock>, count: usize },
    /// Sorted by address; `limits` says which limit each cell belongs to.
    Sorted {
        cells: Box<[CellRef]>,
        limits: Box<[usize]>,
    },
}

enum Usages {
    /// The first `count` usage cells of the block of [`Cells::Own`].
    Own {
        count: usize,
    },
    Apart(Box<[UsageRef]>),
}

/// A meter of a principal with the cell that counts it.
#[derive(Clone)]
pub(crate) struct MeterCell {
    pub(crate) meter: Name,
    pub(crate) usage: UsageRef,
    block: Arc<CellBlock>,
    index: usize,
}

/// What a principal is made of; the driver keeps it to report from.
pub(crate) struct Parts {
    pub(crate) accounts: Vec<(AccountId, EdgeCell)>,
    pub(crate) meters: Vec<MeterCell>,
}

/// Hands out the cells of new blocks.
#[derive(Default)]
struct NewCells {
    block: Option<Arc<CellBlock>>,
    quotas: usize,
    usages: usize,
}

impl NewCells {
    fn block(&mut self) -> Arc<CellBlock> {
        self.block
            .get_or_insert_with(|| Arc::new(CellBlock::new()))
            .clone()
    }

    fn quota(&mut self) -> EdgeCell {
        if self.quotas == QUOTAS_PER_BLOCK {
            *self = Self::default();
        }
        let cell = EdgeCell::new(self.block(), self.quotas);
        self.quotas += 1;
        cell
    }

    fn usage(&mut self, meter: &Name) -> MeterCell {
        if self.usages == USAGES_PER_BLOCK {
            *self = Self::default();
        }
        let (block, index) = (self.block(), self.usages);
        self.usages += 1;
        let Some(usage) = UsageRef::new(block.clone(), index) else {
            unreachable!("the index was checked against USAGES_PER_BLOCK")
        };
        MeterCell {
            meter: meter.clone(),
            usage,
            block,
            index,
        }
    }
}

impl Parts {
    /// Finds or makes the cells of `who`: `open` gives the cell of an account that is open, `former` are
    /// the meters this principal counted on before, which go on.
    pub(crate) fn gather(
        who: &Who,
        open: impl Fn(&AccountId) -> Option<EdgeCell>,
        former: &[MeterCell],
    ) -> Self {
        let mut new = NewCells::default();
        let accounts = who
            .limits
            .iter()
            .map(|PrincipalLimit { account, .. }| {
                let cell = open(account).unwrap_or_else(|| new.quota());
                (account.clone(), cell)
            })
            .collect();
        let mut meters: Vec<MeterCell> = Vec::new();
        for limit in &who.limits {
            if meters.iter().all(|known| known.meter != limit.meter) {
                let known = former.iter().find(|known| known.meter == limit.meter);
                meters.push(known.cloned().unwrap_or_else(|| new.usage(&limit.meter)));
            }
        }
        Self { accounts, meters }
    }
}

impl Principal {
    pub(crate) fn new(who: Arc<Who>, parts: &Parts) -> Self {
        let accounts: Box<[EdgeCell]> = parts
            .accounts
            .iter()
            .map(|(_, cell)| cell.clone())
            .collect();
        let cells = Cells::of(&accounts);
        let usages = Usages::of(&cells, &parts.meters);
        Self {
            cells,
            usages,
            who,
            accounts,
        }
    }

    pub(crate) fn who(&self) -> &Who {
        &self.who
    }

    /// Takes `cost` from every limit and counts the use, or changes nothing and says which limit was short.
    #[inline]
    pub(crate) fn take(&self, cost: Units) -> Result<(), usize> {
        match &self.cells {
            Cells::Own { block, count } => {
                let own = block.quotas().iter().take(*count);
                take_all(own.map(|cell| Take { cell, cost })).map_err(|short| short.index)?;
                if let Usages::Own { count } = self.usages {
                    for usage in block.usages().iter().take(count) {
                        usage.add(cost);
                    }
                    return Ok(());
                }
            }
            Cells::Sorted { cells, limits } => {
                take_all(cells.iter().map(|cell| Take { cell, cost }))
                    .map_err(|short| limits.get(short.index).copied().unwrap_or_default())?;
            }
        }
        if let Usages::Apart(usages) = &self.usages {
            for usage in usages {
                usage.add(cost);
            }
        }
        Ok(())
    }

    /// The cell of a limit, by its place in the plan.
    pub(crate) fn cell(&self, limit: usize) -> Option<&EdgeCell> {
        self.accounts.get(limit)
    }

    /// Accounts whose cells hold less than `cost` now.
    pub(crate) fn short_of(&self, cost: Units) -> Vec<AccountId> {
        let accounts = self.who.limits.iter().zip(&*self.accounts);
        accounts
            .filter(|(_, cell)| cell.quota().free() < cost)
            .map(|(limit, _)| limit.account.clone())
            .collect()
    }

    /// Every limit with its cell.
    pub(crate) fn accounts(&self) -> impl Iterator<Item = (&PrincipalLimit, &EdgeCell)> {
        self.who.limits.iter().zip(&*self.accounts)
    }

    pub(crate) fn limits(&self) -> impl Iterator<Item = LimitState<'_>> {
        self.accounts().map(|(limit, cell)| LimitState {
            name: &limit.name,
            kind: LimitKind::Quota,
            limit: limit.quota,
            remaining: cell.remaining(limit.quota),
            reset_ms: None,
        })
    }
}

impl Cells {
    fn of(accounts: &[EdgeCell]) -> Self {
        let first = accounts.first();
        let own = |(place, cell): (usize, &EdgeCell)| {
            cell.index() == place
                && first.is_some_and(|first| Arc::ptr_eq(first.block(), cell.block()))
        };
        if let Some(first) = first
            && accounts.iter().enumerate().all(own)
        {
            return Self::Own {
                block: first.block().clone(),
                count: accounts.len(),
            };
        }
        let mut sorted: Vec<(CellRef, usize)> = accounts
            .iter()
            .enumerate()
            .filter_map(|(limit, cell)| cell.shared().map(|shared| (shared, limit)))
            .collect();
        sorted.sort();
        let (cells, limits): (Vec<_>, Vec<_>) = sorted.into_iter().unzip();
        Self::Sorted {
            cells: cells.into(),
            limits: limits.into(),
        }
    }
}

impl Usages {
    fn of(cells: &Cells, meters: &[MeterCell]) -> Self {
        if let Cells::Own { block, .. } = cells {
            let own = |(place, meter): (usize, &MeterCell)| {
                meter.index == place && Arc::ptr_eq(&meter.block, block)
            };
            if meters.iter().enumerate().all(own) {
                return Self::Own {
                    count: meters.len(),
                };
            }
        }
        Self::Apart(meters.iter().map(|meter| meter.usage.clone()).collect())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use tollgate_core::account::Environment;
    use tollgate_core::lessee::Cell;

    /// A caller with limits of these (account, meter) names.
    pub(crate) fn who(key: &str, limits: &[(&str, &str)]) -> Arc<Who> {
        let name = |text: &str| Name::new(text).unwrap();
        let limits = limits.iter().map(|(account, meter)| PrincipalLimit {
            name: name(account.split('/').nth(4).unwrap()),
            meter: name(meter),
            account: AccountId::parse(account).unwrap(),
            quota: 1000,
        });
        Arc::new(Who {
            environment: Environment::Live,
            customer: name("acme"),
            license: name("acme-free"),
            key: name(key),
            plan: (name("free"), 1),
            limits: limits.collect(),
        })
    }

    const DAILY: &str = "live/acme/-/customer/daily/open";
    const OWN: &str = "live/acme/-/key=k1/calls/open";

    #[test]
    fn new_accounts_lie_in_one_block_and_are_taken_all_or_none() {
        let who = who("k1", &[(DAILY, "requests"), (OWN, "bytes")]);
        let parts = Parts::gather(&who, |_| None, &[]);
        let principal = Principal::new(who, &parts);
        assert!(matches!(principal.cells, Cells::Own { count: 2, .. }));
        assert!(matches!(principal.usages, Usages::Own { count: 2 }));
        parts.accounts[0].1.deposit(5);
        assert_eq!(principal.take(1), Err(1), "the second limit is empty");
        assert_eq!(
            parts.accounts[0].1.free(),
            5,
            "nothing was taken from the first"
        );
        parts.accounts[1].1.deposit(2);
        assert_eq!(principal.take(2), Ok(()));
        assert_eq!(principal.take(1), Err(1));
        let used: Vec<_> = parts.accounts.iter().map(|(_, cell)| cell.used()).collect();
        assert_eq!(used, [2, 2]);
        assert_eq!(
            parts
                .meters
                .iter()
                .map(|m| m.usage.admitted())
                .collect::<Vec<_>>(),
            [2, 2]
        );
    }

    #[test]
    fn keys_of_one_customer_meet_in_the_customers_cell_and_count_apart() {
        let first = who("k1", &[(DAILY, "requests")]);
        let first_parts = Parts::gather(&first, |_| None, &[]);
        let open: BTreeMap<_, _> = first_parts.accounts.iter().cloned().collect();
        let second = who(
            "k2",
            &[
                (DAILY, "requests"),
                ("live/acme/-/key=k2/calls/open", "requests"),
            ],
        );
        let second_parts = Parts::gather(&second, |account| open.get(account).cloned(), &[]);
        let (first, second) = (
            Principal::new(first, &first_parts),
            Principal::new(second, &second_parts),
        );
        assert!(matches!(second.cells, Cells::Sorted { .. }));
        first_parts.accounts[0].1.deposit(3);
        second_parts.accounts[1].1.deposit(3);
        assert_eq!(first.take(1), Ok(()));
        assert_eq!(second.take(2), Ok(()));
        assert_eq!(first.take(1), Err(0));
        assert_eq!(
            second.take(1),
            Err(0),
            "the shared cell is the first limit of the second key"
        );
        assert_eq!(first_parts.meters[0].usage.admitted(), 1);
        assert_eq!(second_parts.meters[0].usage.admitted(), 2);
    }

    #[test]
    fn a_changed_plan_keeps_cells_and_meters_that_go_on() {
        let before = who("k1", &[(OWN, "requests")]);
        let parts = Parts::gather(&before, |_| None, &[]);
        parts.accounts[0].1.deposit(9);
        Principal::new(before, &parts).take(4).unwrap();
        let open: BTreeMap<_, _> = parts.accounts.iter().cloned().collect();
        let after = who("k1", &[(OWN, "requests"), (DAILY, "bytes")]);
        let next = Parts::gather(&after, |account| open.get(account).cloned(), &parts.meters);
        let principal = Principal::new(after, &next);
        next.accounts[1].1.deposit(9);
        principal.take(1).unwrap();
        assert_eq!(next.accounts[0].1.used(), 5);
        assert_eq!(
            next.meters
                .iter()
                .map(|m| m.usage.admitted())
                .collect::<Vec<_>>(),
            [5, 1]
        );
    }
}
