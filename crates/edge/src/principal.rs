//! [`Principal`]: who a caller is and its limits with their cells; [`Purse`]: what a check takes from.
//!
//! Owns the two layouts of a purse: the usual one, where all cells of a principal lie in one block and so in
//! one cache line, and the general one, a list sorted by address (accounts shared with other keys, more
//! than fit a block). A purse is what the view finds at a credential's place, with no step in between.
//! Refuses to make cells of accounts that are open already: two keys of one customer must meet in the same
//! cell. Made by the driver, read by checks. Next: `view.rs`.

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
    who: Arc<Who>,
    /// In the order of `who.limits`.
    accounts: Box<[EdgeCell]>,
}

/// See the module's text. Small, so that it lies in the map's own entry.
pub(crate) struct Purse {
    cells: Cells,
    principal: Arc<Principal>,
}

enum Cells {
    /// The first cells of one block, in the order of the limits, which is the order of addresses.
    Own {
        block: Arc<CellBlock>,
        quotas: u8,
        usages: u8,
    },
    Apart(Box<Apart>),
}

/// Cells that lie in several places.
struct Apart {
    /// Sorted by address; `limits` says which limit each cell belongs to.
    quotas: Box<[CellRef]>,
    limits: Box<[usize]>,
    usages: Box<[UsageRef]>,
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
        let cells = parts.accounts.iter().map(|(_, cell)| cell.clone());
        Self {
            who,
            accounts: cells.collect(),
        }
    }

    pub(crate) fn who(&self) -> &Who {
        &self.who
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

impl Purse {
    pub(crate) fn new(who: Arc<Who>, parts: &Parts) -> Self {
        let principal = Arc::new(Principal::new(who, parts));
        Self {
            cells: Cells::of(&principal.accounts, &parts.meters),
            principal,
        }
    }

    pub(crate) fn principal(&self) -> &Arc<Principal> {
        &self.principal
    }

    /// Takes `cost` from every limit and counts the use, or changes nothing and says which limit was short.
    #[inline]
    pub(crate) fn take(&self, cost: Units) -> Result<(), usize> {
        match &self.cells {
            Cells::Own {
                block,
                quotas,
                usages,
            } => {
                // One copy for each number, so that none of them loops.
                match quotas {
                    1 => take_first::<1>(block, cost)?,
                    2 => take_first::<2>(block, cost)?,
                    _ => take_first::<3>(block, cost)?,
                }
                let [first, second] = block.usages();
                first.add(cost);
                if *usages > 1 {
                    second.add(cost);
                }
                Ok(())
            }
            Cells::Apart(apart) => apart.take(cost),
        }
    }
}

#[inline(always)]
fn take_first<const COUNT: usize>(block: &CellBlock, cost: Units) -> Result<(), usize> {
    const { assert!(COUNT <= QUOTAS_PER_BLOCK) };
    let Some(cells) = block.quotas().first_chunk::<COUNT>() else {
        unreachable!("a block has more cells")
    };
    take_all(cells.iter().map(|cell| Take { cell, cost })).map_err(|short| short.index)
}

impl Apart {
    #[inline(never)]
    fn take(&self, cost: Units) -> Result<(), usize> {
        let takes = self.quotas.iter().map(|cell| Take { cell, cost });
        take_all(takes)
            .map_err(|short| self.limits.get(short.index).copied().unwrap_or_default())?;
        for usage in &self.usages {
            usage.add(cost);
        }
        Ok(())
    }
}

impl Cells {
    fn of(accounts: &[EdgeCell], meters: &[MeterCell]) -> Self {
        Self::own(accounts, meters).unwrap_or_else(|| Self::apart(accounts, meters))
    }

    /// One to three cells from the start of one block, with one or two meters of the same block.
    fn own(accounts: &[EdgeCell], meters: &[MeterCell]) -> Option<Self> {
        let block = accounts.first()?.block();
        let quota = |(place, cell): (usize, &EdgeCell)| {
            cell.index() == place && Arc::ptr_eq(block, cell.block())
        };
        let usage = |(place, meter): (usize, &MeterCell)| {
            meter.index == place && Arc::ptr_eq(block, &meter.block)
        };
        let all = accounts.iter().enumerate().all(quota) && meters.iter().enumerate().all(usage);
        (all && !meters.is_empty()).then_some(Self::Own {
            block: block.clone(),
            quotas: u8::try_from(accounts.len()).ok()?,
            usages: u8::try_from(meters.len()).ok()?,
        })
    }

    fn apart(accounts: &[EdgeCell], meters: &[MeterCell]) -> Self {
        let mut sorted: Vec<(CellRef, usize)> = accounts
            .iter()
            .enumerate()
            .filter_map(|(limit, cell)| cell.shared().map(|shared| (shared, limit)))
            .collect();
        sorted.sort();
        let (quotas, limits): (Vec<_>, Vec<_>) = sorted.into_iter().unzip();
        Self::Apart(Box::new(Apart {
            quotas: quotas.into(),
            limits: limits.into(),
            usages: meters.iter().map(|meter| meter.usage.clone()).collect(),
        }))
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
        let purse = Purse::new(who, &parts);
        let (quotas, usages) = (2, 2);
        assert!(
            matches!(purse.cells, Cells::Own { quotas: q, usages: u, .. } if (q, u) == (quotas, usages))
        );
        parts.accounts[0].1.deposit(5);
        assert_eq!(purse.take(1), Err(1), "the second limit is empty");
        assert_eq!(
            parts.accounts[0].1.free(),
            5,
            "nothing was taken from the first"
        );
        parts.accounts[1].1.deposit(2);
        assert_eq!(purse.take(2), Ok(()));
        assert_eq!(purse.take(1), Err(1));
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
            Purse::new(first, &first_parts),
            Purse::new(second, &second_parts),
        );
        assert!(matches!(second.cells, Cells::Apart(_)));
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
        Purse::new(before, &parts).take(4).unwrap();
        let open: BTreeMap<_, _> = parts.accounts.iter().cloned().collect();
        let after = who("k1", &[(OWN, "requests"), (DAILY, "bytes")]);
        let next = Parts::gather(&after, |account| open.get(account).cloned(), &parts.meters);
        let purse = Purse::new(after, &next);
        next.accounts[1].1.deposit(9);
        purse.take(1).unwrap();
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
