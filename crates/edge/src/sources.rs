//! How many unknown credentials each source may present: a fixed table of counters, one window of a
//! second each.
//!
//! Owns the slowing down of guessing. A credential that turns out to be a key is paid back, so that a busy
//! gateway with many callers is not slowed down by its own start. Sources share a counter when their keyed
//! hashes meet; memory never grows. Refuses to remember who was slowed down.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use tollgate_core::time::Mono;

/// Counters in the table.
const SOURCES: usize = 4096;
/// Unknown credentials a source may present per second; those that were keys do not count.
pub(crate) const UNKNOWN_PER_SECOND: u64 = 256;
/// Low bits of a counter: the count; above them the second it belongs to.
const COUNT_BITS: u32 = 24;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;

/// Which counter a source uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SourceSlot(usize);

/// See the module's text.
pub(crate) struct Sources {
    counters: Box<[AtomicU64]>,
    keys: (u64, u64),
}

impl Sources {
    pub(crate) fn new(keys: (u64, u64)) -> Self {
        Self {
            counters: (0..SOURCES).map(|_| AtomicU64::new(0)).collect(),
            keys,
        }
    }

    /// Counts one unknown credential of `source`; `None` when it had its share of this second.
    pub(crate) fn admit(&self, now: Mono, source: IpAddr) -> Option<SourceSlot> {
        use std::hash::{Hash, Hasher};
        let mut hasher = siphasher::sip::SipHasher13::new_with_keys(self.keys.0, self.keys.1);
        source.hash(&mut hasher);
        let slot = usize::try_from(hasher.finish() % (SOURCES as u64)).unwrap_or_default();
        let second = now.0 / 1000;
        let counted =
            self.counters[slot].fetch_update(Ordering::Relaxed, Ordering::Relaxed, |at| {
                let count = if at >> COUNT_BITS == second & (u64::MAX >> COUNT_BITS) {
                    at & COUNT_MASK
                } else {
                    0
                };
                (count < UNKNOWN_PER_SECOND).then_some((second << COUNT_BITS) | (count + 1))
            });
        counted.is_ok().then_some(SourceSlot(slot))
    }

    /// What was presented is a key: it does not count.
    pub(crate) fn pay_back(&self, slot: SourceSlot) {
        // Paying back into a later second only makes the limit a little wider.
        let _ = self.counters[slot.0].fetch_update(Ordering::Relaxed, Ordering::Relaxed, |at| {
            (at & COUNT_MASK > 0).then(|| at - 1)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_has_its_share_of_each_second_and_keys_do_not_count() {
        let sources = Sources::new((1, 2));
        let source = IpAddr::from([203, 0, 113, 9]);
        let mut last = None;
        for _ in 0..UNKNOWN_PER_SECOND {
            last = sources.admit(Mono(5_000), source);
            assert!(last.is_some());
        }
        assert_eq!(sources.admit(Mono(5_999), source), None);
        sources.pay_back(last.unwrap());
        assert!(sources.admit(Mono(5_999), source).is_some());
        assert_eq!(sources.admit(Mono(5_999), source), None);
        assert!(
            sources.admit(Mono(6_000), source).is_some(),
            "the next second is a new one"
        );
    }
}
