//! [`EdgeCell`]: one account's cell as the lessee and the checks share it, with the issuer's last word.
//!
//! Owns the remembered refusal (read by a check only when the cell is short) and the estimate of what is
//! left for everyone. Refuses to decide what to ask for: `core::lessee` does. Next: `principal.rs`.

use crate::clock::LATE_MS;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use tollgate_core::ids::Units;
use tollgate_core::lessee::{Cell, Refusal};
use tollgate_core::message::LeaseState;
use tollgate_core::time::Mono;
use tollgate_counters::{CellBlock, CellRef, QUOTAS_PER_BLOCK, QuotaCell};

/// No refusal stands.
const NO_REFUSAL: u64 = 0;
/// Low bits of a refusal: what the issuer said; above them until when, in ms.
const STATE_BITS: u32 = 2;
/// "Until the catalog changes."
const FOR_GOOD_MS: u64 = u64::MAX >> STATE_BITS;
/// The issuer has not spoken yet.
const NOTHING_TOLD: Units = Units::MAX;

/// See the module's text. Clones share the cell.
#[derive(Clone, Debug)]
pub(crate) struct EdgeCell {
    block: Arc<CellBlock>,
    /// Below [`QUOTAS_PER_BLOCK`].
    index: usize,
    word: Arc<IssuersWord>,
}

/// What the issuer said last; written by the driver only.
#[derive(Debug)]
struct IssuersWord {
    refusal: AtomicU64,
    /// What the refusal is about; written before it.
    refused_need: AtomicU64,
    /// Estimate of what was left for everyone …
    remaining: AtomicU64,
    /// … when this edge had used so much.
    used_then: AtomicU64,
}

/// Why a short cell refuses without asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Nothing is left at this moment; ask again in so many ms.
    Now { retry_after_ms: u64 },
    /// Everything is settled, or no limit is in force, until the catalog changes.
    ForGood,
}

impl EdgeCell {
    /// The cell `index` of `block`, which is nobody else's yet.
    pub(crate) fn new(block: Arc<CellBlock>, index: usize) -> Self {
        debug_assert!(index < QUOTAS_PER_BLOCK);
        let word = Arc::new(IssuersWord {
            refusal: AtomicU64::new(NO_REFUSAL),
            refused_need: AtomicU64::new(0),
            remaining: AtomicU64::new(NOTHING_TOLD),
            used_then: AtomicU64::new(0),
        });
        Self {
            block,
            index: index % QUOTAS_PER_BLOCK,
            word,
        }
    }

    pub(crate) fn quota(&self) -> &QuotaCell {
        &self.block.quotas()[self.index]
    }

    pub(crate) fn block(&self) -> &Arc<CellBlock> {
        &self.block
    }

    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// Whether whoever asks is the only one that has this cell: no principal has it, and no check is under way
    /// that could still take from it or put back. What is read of the cell afterwards is its last word.
    pub(crate) fn is_unshared(&self) -> bool {
        let unshared = Arc::strong_count(&self.word) == 1;
        // ORDERING: Acquire, paired with the Release of every share that was dropped: what its holder did to the
        // cell is seen.
        fence(Ordering::Acquire);
        unshared
    }

    /// A share of the cell that sorts by address.
    pub(crate) fn shared(&self) -> Option<CellRef> {
        CellRef::new(self.block.clone(), self.index)
    }

    /// The refusal that stands at `now`, which may be [`LATE_MS`] late, against a check of `cost` for which
    /// the cell holds too little.
    pub(crate) fn refused(&self, now: Mono, cost: Units) -> Option<Refused> {
        // ORDERING: Acquire, paired with the Release in `set_refusal`: with a refusal its own need is seen,
        // or one told since. So at worst a need told just now meets the end of the refusal before it, which
        // comes sooner; never does a need outlive the refusal that was about it.
        let refusal = self.word.refusal.load(Ordering::Acquire);
        if refusal == NO_REFUSAL {
            return None;
        }
        let lacking = cost.saturating_sub(self.quota().free());
        if lacking < self.word.refused_need.load(Ordering::Relaxed) {
            return None;
        }
        match refusal >> STATE_BITS {
            FOR_GOOD_MS => Some(Refused::ForGood),
            until if now.0.saturating_add(LATE_MS) < until => Some(Refused::Now {
                retry_after_ms: until - now.0,
            }),
            _ => None,
        }
    }

    /// Takes the issuer's estimate of what is left for everyone.
    pub(crate) fn tell_remaining(&self, remaining: Units) {
        self.word
            .used_then
            .store(self.quota().used(), Ordering::Relaxed);
        self.word.remaining.store(remaining, Ordering::Relaxed);
    }

    /// The estimate of what is left for everyone: the issuer's last word less the own use since.
    pub(crate) fn remaining(&self, limit: Units) -> Units {
        let (told, used_then) = match self.word.remaining.load(Ordering::Relaxed) {
            NOTHING_TOLD => (limit, 0),
            told => (told, self.word.used_then.load(Ordering::Relaxed)),
        };
        let own = self.quota().used().saturating_sub(used_then);
        told.min(limit).saturating_sub(own)
    }
}

impl Cell for EdgeCell {
    fn deposit(&self, units: Units) {
        if let Err(overfull) = self.quota().deposit(units) {
            // Nothing is over-issued: the units stay in the ledger's `out`.
            tracing::error!(%overfull, "granted units are left out");
        }
    }

    fn withdraw(&self, at_most: Units) -> Units {
        self.quota().withdraw(at_most)
    }

    fn free(&self) -> Units {
        self.quota().free()
    }

    fn used(&self) -> Units {
        self.quota().used()
    }

    fn set_refusal(&self, refusal: Option<Refusal>) {
        if let Some(refusal) = refusal {
            let need = &self.word.refused_need;
            need.store(refusal.need, Ordering::Relaxed);
        }
        let word = refusal.map_or(NO_REFUSAL, |refusal| {
            let state = match refusal.state {
                LeaseState::NoneNow => 1,
                LeaseState::NoneForGood => 2,
                _ => 3,
            };
            let until = refusal
                .until
                .map_or(FOR_GOOD_MS, |until| until.0.min(FOR_GOOD_MS - 1));
            (until << STATE_BITS) | state
        });
        // ORDERING: Release, see `refused`.
        self.word.refusal.store(word, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell() -> EdgeCell {
        EdgeCell::new(Arc::new(CellBlock::new()), 1)
    }

    #[test]
    fn a_refusal_ends_by_time_by_word_or_not_at_all() {
        let cell = cell();
        assert_eq!(cell.refused(Mono(0), 1), None);
        let now = Refusal {
            state: LeaseState::NoneNow,
            until: Some(Mono(1000)),
            need: 1,
        };
        cell.set_refusal(Some(now));
        assert_eq!(
            cell.refused(Mono(400), 1),
            Some(Refused::Now {
                retry_after_ms: 600
            })
        );
        assert_eq!(cell.refused(Mono(1000 - LATE_MS), 1), None);
        cell.set_refusal(Some(Refusal {
            state: LeaseState::NoneForGood,
            until: None,
            need: 1,
        }));
        assert_eq!(cell.refused(Mono(u64::MAX), 1), Some(Refused::ForGood));
        cell.set_refusal(None);
        assert_eq!(cell.refused(Mono(0), 1), None);
    }

    #[test]
    fn a_refusal_is_about_what_was_asked_for_and_more() {
        let cell = cell();
        cell.deposit(5);
        // A check of 45 lacked 40.
        cell.set_refusal(Some(Refusal {
            state: LeaseState::NoneNow,
            until: Some(Mono(1000)),
            need: 40,
        }));
        let refused = |cost| cell.refused(Mono(0), cost).is_some();
        assert!(refused(45) && refused(46) && refused(u64::MAX));
        assert!(!refused(44) && !refused(6));
        // The same check lacks more when less is there; one that lacks less may still ask.
        assert_eq!(cell.withdraw(5), 5);
        assert!(refused(40) && !refused(39) && !refused(1));
    }

    #[test]
    fn the_estimate_is_the_issuers_word_less_the_own_use_since() {
        let cell = cell();
        cell.deposit(10);
        assert_eq!(cell.remaining(1000), 1000);
        cell.tell_remaining(900);
        cell.quota().try_take(4).unwrap();
        cell.quota().commit(4);
        assert_eq!(cell.remaining(1000), 896);
        assert_eq!(cell.remaining(500), 496, "a lowered limit bounds it");
    }
}
