//! [`QuotaCell`]: the units of one account that this edge holds.
//!
//! Owns the two numbers `free` and `used` and the steps between them. Refuses to know where units
//! come from and go to (the edge's driver and `core::lessee`), and to combine cells (`take.rs`).

use crate::sync::{AtomicU64, Ordering, planted};

/// The most that [`QuotaCell::deposit`] lets `free + used` grow to, in units.
///
/// Half the range: `put_back` must never wrap, and the units in the hands of running checks do not
/// show in either number. The ledger's own amounts are u64 and a cell only ever holds a part of
/// them, so a deposit refused here is a bug of the caller, not an account that is too large.
pub const MAX_HELD: u64 = u64::MAX / 2;

/// The units of one account that this edge may admit against (`free`) and has admitted (`used`).
///
/// 16 bytes. Any thread may take; deposits, withdrawals and readings belong to one thread at a time
/// (the driver). See the crate's documentation for what always holds.
#[derive(Debug)]
pub struct QuotaCell {
    /// Units that a check may take. Written by the driver (deposit, withdraw) and by checks.
    free: AtomicU64,
    /// Units of admitted checks since the cell was made. Written by checks only; never falls.
    used: AtomicU64,
}

/// A quota cell had fewer units free than asked for. Nothing was taken.
///
/// This is what the cell held at that moment, not a verdict on the account: its issuer may have
/// more, and a check that is running now may yet put its units back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Short {
    /// Units free when the cell was looked at.
    pub free: u64,
}

/// A deposit that would take a cell beyond [`MAX_HELD`]. Nothing was deposited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "deposit of {units} units refused: the cell has {free} free and {used} used, and may hold at \
     most {MAX_HELD} of both; no account grants that many, so look for what granted them"
)]
pub struct Overfull {
    /// Units of the refused deposit.
    pub units: u64,
    /// Units free at that moment.
    pub free: u64,
    /// Units used at that moment.
    pub used: u64,
}

/// What a cell showed to its driver, taken so that `used + free` is never more than what was
/// deposited and not withdrawn.
///
/// The difference to that amount was in the hands of checks. Where `free` is 0 and `used` is all of
/// it, no check has units of this cell in hand any more, and none will before the next deposit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Units of admitted checks since the cell was made.
    pub used: u64,
    /// Units that a check could have taken.
    pub free: u64,
}

impl QuotaCell {
    /// An empty cell.
    #[must_use]
    pub fn new() -> Self {
        Self {
            free: AtomicU64::new(0),
            used: AtomicU64::new(0),
        }
    }

    /// Adds granted `units`. Driver only.
    ///
    /// # Errors
    /// [`Overfull`] where `free + used` would pass [`MAX_HELD`]; the cell is unchanged.
    pub fn deposit(&self, units: u64) -> Result<(), Overfull> {
        let Reading { used, free } = self.read();
        let held = used
            .checked_add(free)
            .and_then(|held| held.checked_add(units));
        if held.is_none_or(|held| held > MAX_HELD) {
            return Err(Overfull { units, free, used });
        }
        planted!(DepositByStore, {
            self.free.store(free + units, Ordering::Relaxed);
            return Ok(());
        });
        // ORDERING: Relaxed. The addition is one step, so no take or put_back between the look above
        // and here is lost (loom_quota::take_and_deposit); a check needs nothing of the driver's but
        // the units themselves.
        self.free.fetch_add(units, Ordering::Relaxed);
        Ok(())
    }

    /// Takes out what is free, at most `at_most` units, and says how much it was. Driver only.
    ///
    /// Units out of the cell are the caller's: surrendered units never go back into it.
    #[must_use = "the units are out of the cell: whoever drops the number loses them"]
    pub fn withdraw(&self, at_most: u64) -> u64 {
        // ORDERING: Relaxed, as in `try_take`; loom_quota::take_and_withdraw.
        let mut free = self.free.load(Ordering::Relaxed);
        loop {
            let units = free.min(at_most);
            if units == 0 {
                return 0;
            }
            planted!(WithdrawByStore, {
                self.free.store(free - units, Ordering::Relaxed);
                return units;
            });
            match self.exchange_free(free, free - units) {
                Ok(()) => return units,
                Err(now) => free = now,
            }
        }
    }

    /// Takes `cost` units into the hand of the calling check.
    ///
    /// The caller owes the cell exactly one [`commit`](Self::commit) or
    /// [`put_back`](Self::put_back) of the same units (or a part of each: a reservation commits what
    /// it came to and puts back the rest). A cost of 0 takes nothing and never fails. Most callers
    /// want [`take_all`](crate::take_all), which keeps that duty for them.
    ///
    /// # Errors
    /// [`Short`] where fewer than `cost` are free; nothing was taken. A lost race is no reason: it
    /// looks again.
    #[inline]
    pub fn try_take(&self, cost: u64) -> Result<(), Short> {
        // ORDERING: Relaxed. The exchange below takes effect only on the value that was looked at,
        // whatever order other cells are seen in, so no unit is taken twice
        // (loom_quota::take_and_take). That `used` follows it is `commit`'s business.
        let mut free = self.free.load(Ordering::Relaxed);
        loop {
            let Some(rest) = free.checked_sub(cost) else {
                return Err(Short { free });
            };
            planted!(TakeByStore, {
                self.free.store(rest, Ordering::Relaxed);
                return Ok(());
            });
            match self.exchange_free(free, rest) {
                Ok(()) => return Ok(()),
                Err(now) => free = now,
            }
            planted!(TakeGivesUp, { return Err(Short { free }) });
        }
    }

    /// Returns `cost` units from the hand of the calling check to `free`: the roll-back of
    /// [`try_take`](Self::try_take).
    #[inline]
    pub fn put_back(&self, cost: u64) {
        planted!(PutBackByStore, {
            let free = self.free.load(Ordering::Relaxed);
            self.free.store(free + cost, Ordering::Relaxed);
            return;
        });
        // ORDERING: Relaxed, one step; loom_quota::all_three.
        let free = self.free.fetch_add(cost, Ordering::Relaxed);
        debug_assert!(
            free.checked_add(cost).is_some(),
            "units put back that were never taken"
        );
    }

    /// Counts `cost` units from the hand of the calling check as used: the check is admitted.
    ///
    /// Only once nothing can refuse the check any more: what is in `used` is reported, and a report
    /// cannot be taken back.
    #[inline]
    pub fn commit(&self, cost: u64) {
        planted!(CommitRelaxed, {
            self.used.fetch_add(cost, Ordering::Relaxed);
            return;
        });
        planted!(CommitByStore, {
            let used = self.used.load(Ordering::Relaxed);
            self.used.store(used + cost, Ordering::Release);
            return;
        });
        // ORDERING: Release, paired with the Acquire in `used`: who sees these units as used also
        // sees that they left `free`. A later addition of another thread continues the release
        // sequence, so one Acquire covers all that went before (loom_quota::reading_never_exceeds).
        let used = self.used.fetch_add(cost, Ordering::Release);
        debug_assert!(
            used.checked_add(cost).is_some(),
            "more units used than a cell can hold"
        );
    }

    /// The other half of the planted bug `CommitBeforeAll`.
    #[cfg(loom)]
    pub(crate) fn uncommit(&self, cost: u64) {
        self.used.fetch_sub(cost, Ordering::Release);
    }

    /// Units that a check could take now.
    #[inline]
    #[must_use]
    pub fn free(&self) -> u64 {
        // ORDERING: Relaxed: a first look or an estimate, decided anew by `try_take`.
        self.free.load(Ordering::Relaxed)
    }

    /// Units of admitted checks since the cell was made; never falls from one call to the next.
    #[inline]
    #[must_use]
    pub fn used(&self) -> u64 {
        // ORDERING: Acquire, paired with `commit`; that it never falls is the coherence of a single
        // atomic that is only added to (loom_take_all::used_only_of_admitted).
        self.used.load(Ordering::Acquire)
    }

    /// Both numbers, such that together they never exceed what was deposited and not withdrawn.
    /// Driver only: beside a deposit or a withdrawal the bound would have no meaning.
    #[must_use]
    pub fn read(&self) -> Reading {
        planted!(FreeBeforeUsed, {
            let free = self.free();
            return Reading {
                used: self.used(),
                free,
            };
        });
        // ORDERING: `used` first, by Acquire: each unit seen in it has left the `free` that is read
        // after it (loom_quota::reading_never_exceeds).
        let used = self.used();
        Reading {
            used,
            free: self.free(),
        }
    }

    /// One exchange of `free`; a failure gives the value to try with next.
    #[inline]
    fn exchange_free(&self, seen: u64, wanted: u64) -> Result<(), u64> {
        // ORDERING: Relaxed both ways, see the callers.
        self.free
            .compare_exchange_weak(seen, wanted, Ordering::Relaxed, Ordering::Relaxed)
            .map(|_| ())
    }
}

impl Default for QuotaCell {
    fn default() -> Self {
        Self::new()
    }
}
