//! [`EdgeCell`]: one account's cell as the lessee and the checks share it, with the issuer's last word.
//!
//! Owns the remembered refusal (read by a check only when the cell is short) and the estimate of what is
//! left for everyone. Refuses to decide what to ask for: `core::lessee` does. Next: `principal.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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

    /// A share of the cell that sorts by address.
    pub(crate) fn shared(&self) -> Option<CellRef> {
        CellRef::new(self.block.clone(), self.index)
    }

    /// The refusal that stands at `now`.
    pub(crate) fn refused(&self, now: Mono) -> Option<Refused> {
        // ORDERING: Relaxed: one number that decides alone; units that come at the same time are seen by
        // the next look at the cell.
        let refusal = self.word.refusal.load(Ordering::Relaxed);
        if refusal == NO_REFUSAL {
            return None;
        }
        match refusal >> STATE_BITS {
            FOR_GOOD_MS => Some(Refused::ForGood),
            until if now.0 < until => Some(Refused::Now {
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
        self.word.refusal.store(word, Ordering::Relaxed);
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
        assert_eq!(cell.refused(Mono(0)), None);
        let now = Refusal {
            state: LeaseState::NoneNow,
            until: Some(Mono(1000)),
        };
        cell.set_refusal(Some(now));
        assert_eq!(
            cell.refused(Mono(400)),
            Some(Refused::Now {
                retry_after_ms: 600
            })
        );
        assert_eq!(cell.refused(Mono(1000)), None);
        cell.set_refusal(Some(Refusal {
            state: LeaseState::NoneForGood,
            until: None,
        }));
        assert_eq!(cell.refused(Mono(u64::MAX)), Some(Refused::ForGood));
        cell.set_refusal(None);
        assert_eq!(cell.refused(Mono(0)), None);
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
