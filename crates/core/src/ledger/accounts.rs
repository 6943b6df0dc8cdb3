//! Positions: how units leave the ledger and come back, and the write-off of stranded ones.
//!
//! **Invariant I1** is kept in [`Ledger::position`] (nothing leaves beyond the limit) and in
//! [`Row::spend`] (use settles what is out, and only what is out). Source: docs/protocol.md, "Ledger".

use super::{Alarm, Ledger};
use crate::account::AccountId;
use crate::catalog::Catalog;
use crate::command::{LineOutcome, Position, PositionLine, PositionOutcome, PositionReply};
use crate::ids::{Epoch, Units};
use serde::{Deserialize, Serialize};

/// One quota account. The limit is not here: it is computed from the catalog when a command is applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Row {
    /// Units reported as used, in all.
    pub settled: Units,
    /// Units that left the ledger and are neither settled nor returned, whoever holds them.
    pub out: Units,
    /// The part of `settled` that was never out: debt, or a promise broken. Within `settled`.
    pub excess: Units,
    /// Units written off: freed by an operator's audited decision.
    pub written_off: Units,
    /// The epoch that `acquired_total` and `returned_total` belong to.
    pub epoch: Epoch,
    /// Units acquired under `epoch`.
    pub acquired_total: Units,
    /// Units returned under `epoch`; may exceed `acquired_total`.
    pub returned_total: Units,
}

impl Row {
    /// What counts against the limit: `settled − excess + out`.
    #[must_use]
    pub fn committed(&self) -> Units {
        debug_assert!(self.excess <= self.settled, "excess is a part of settled");
        self.settled
            .saturating_sub(self.excess)
            .saturating_add(self.out)
    }

    /// What may still be acquired under `limit`; 0 while a lowered limit freezes the account.
    #[must_use]
    pub fn room(&self, limit: Units) -> Units {
        limit.saturating_sub(self.committed())
    }

    /// What is not settled yet under `limit`: the estimate shown as `remaining`.
    #[must_use]
    pub fn unsettled(&self, limit: Units) -> Units {
        limit.saturating_sub(self.settled.saturating_sub(self.excess))
    }

    /// Settles use. `leased` units move from `out`; what was not out, and all `unleased`, is excess.
    /// `None`, and nothing changed, when a sum would overflow; else the growth of `excess`.
    pub(crate) fn spend(&mut self, leased: Units, unleased: Units) -> Option<Units> {
        let from_out = if crate::planted::debt_taken_from_others() {
            leased.saturating_add(unleased).min(self.out)
        } else {
            leased.min(self.out)
        };
        let used = leased.checked_add(unleased)?;
        let settled = self.settled.checked_add(used)?;
        let excess = self.excess.checked_add(used.saturating_sub(from_out))?;
        let grown = excess.saturating_sub(self.excess);
        self.out = self.out.saturating_sub(from_out);
        self.settled = settled;
        self.excess = excess;
        Some(grown)
    }
}

/// The limit of an account, as the catalog of a generation had it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LimitMemo(Option<(u64, Option<Units>)>);

impl LimitMemo {
    /// [`Catalog::limit`], looked up only when the catalog has changed since.
    fn limit(&mut self, catalog: &Catalog, account: &AccountId) -> Option<Units> {
        let now = catalog.generation();
        match self.0 {
            Some((generation, limit)) if generation == now => {
                debug_assert_eq!(limit, catalog.limit(account), "{account}: a stale limit");
                limit
            }
            _ => {
                let limit = catalog.limit(account);
                self.0 = Some((now, limit));
                limit
            }
        }
    }
}

impl Ledger {
    pub(crate) fn position(&mut self, position: &Position) -> PositionReply {
        let current = self.slot_entry(position.slot).epoch;
        let outcome = if position.epoch == current {
            let lines = position.lines.iter();
            PositionOutcome::Lines(
                lines
                    .map(|line| (line.account.clone(), self.position_line(position, line)))
                    .collect(),
            )
        } else {
            PositionOutcome::WrongEpoch { current }
        };
        PositionReply {
            slot: position.slot,
            epoch: position.epoch,
            outcome,
        }
    }

    fn position_line(&mut self, position: &Position, line: &PositionLine) -> LineOutcome {
        if line.account.slot() != position.slot {
            return LineOutcome::WrongSlot;
        }
        let catalog = &self.catalog;
        let judge = |row: &mut Row, memo: &mut LimitMemo| {
            let limit = memo.limit(catalog, &line.account);
            if row.epoch < position.epoch {
                row.epoch = position.epoch;
                row.acquired_total = 0;
                row.returned_total = 0;
            }
            let unreturned = give_back(row, line.returned_total);
            acquire(row, line.acquired_total, limit);
            let (acquired_total, returned_total) = (row.acquired_total, row.returned_total);
            (limit, acquired_total, returned_total, unreturned)
        };
        let mut outcome = self.accounts.update_with_memo(&line.account, judge);
        if outcome.is_none() {
            if catalog.limit(&line.account).is_none() {
                return LineOutcome::NoLimit {
                    acquired_total: 0,
                    returned_total: 0,
                };
            }
            self.accounts.put(line.account.clone(), Row::default());
            outcome = self.accounts.update_with_memo(&line.account, judge);
        }
        let Some((limit, acquired_total, returned_total, unreturned)) = outcome else {
            unreachable!("the row was made above");
        };
        if unreturned > 0 {
            self.raise(Alarm::ReturnedBeyondOut {
                account: line.account.clone(),
                units: unreturned,
            });
        }
        match limit {
            Some(_) => LineOutcome::Stands {
                acquired_total,
                returned_total,
            },
            None => LineOutcome::NoLimit {
                acquired_total,
                returned_total,
            },
        }
    }

    /// Frees stranded units of an account; the audit entry is the caller's. Answers how many were freed.
    pub(crate) fn write_off(&mut self, account: &AccountId, units: Units) -> Option<Units> {
        self.accounts.update(account, |row| {
            let freed = units.min(row.out);
            row.out = row.out.saturating_sub(freed);
            row.written_off = row.written_off.saturating_add(freed);
            freed
        })
    }
}

/// Takes the growth of `returned_total` out of `out`; answers the part that found nothing there.
fn give_back(row: &mut Row, returned_total: Units) -> Units {
    let growth = if crate::planted::returned_as_a_delta() {
        returned_total
    } else {
        returned_total.saturating_sub(row.returned_total)
    };
    let back = growth.min(row.out);
    row.out = row.out.saturating_sub(back);
    row.returned_total = row.returned_total.max(returned_total);
    growth.saturating_sub(back)
}

/// Lets as much of the growth of `acquired_total` out as the limit has room for.
fn acquire(row: &mut Row, acquired_total: Units, limit: Option<Units>) {
    let growth = acquired_total.saturating_sub(row.acquired_total);
    let room = limit.map_or(0, |limit| row.room(limit));
    let granted = growth.min(room);
    row.out = row.out.saturating_add(granted);
    row.acquired_total = row.acquired_total.saturating_add(granted);
    debug_assert!(
        granted == 0 || limit.is_some_and(|limit| row.committed() <= limit),
        "I1: nothing is acquired beyond the limit"
    );
}
