//! [`UsageCell`]: the units admitted on one meter.
//!
//! Owns one number that only grows. Refuses to decide anything: billing reads it, enforcement never
//! does (`quota.rs` is for that).

use crate::sync::{AtomicU64, Ordering, planted};

/// Units admitted on one meter since the cell was made. 8 bytes; never falls.
///
/// A check adds to it once, after [`take_all`](crate::take_all) has admitted it and before its
/// answer leaves; the driver reports the growth.
#[derive(Debug)]
pub struct UsageCell {
    /// Written by admitted checks only.
    admitted: AtomicU64,
}

impl UsageCell {
    /// A cell that has counted nothing.
    #[must_use]
    pub fn new() -> Self {
        Self {
            admitted: AtomicU64::new(0),
        }
    }

    /// Counts `units` of an admitted check.
    ///
    /// It would wrap after 2⁶⁴ units on one edge boot; quota cells bound what is admitted far
    /// below, and a meter without a quota counts requests or bytes.
    #[inline]
    pub fn add(&self, units: u64) {
        planted!(AddByStore, {
            let admitted = self.admitted.load(Ordering::Relaxed);
            self.admitted.store(admitted + units, Ordering::Relaxed);
            return;
        });
        // ORDERING: Relaxed: one step, and nothing is concluded from it about other cells: what was
        // spent and what was used are different columns (loom_usage::adds_and_reads).
        let admitted = self.admitted.fetch_add(units, Ordering::Relaxed);
        debug_assert!(admitted.checked_add(units).is_some(), "usage beyond u64");
    }

    /// Units admitted so far.
    #[inline]
    #[must_use]
    pub fn admitted(&self) -> u64 {
        // ORDERING: Relaxed: a single atomic that is only added to never falls for one reader.
        self.admitted.load(Ordering::Relaxed)
    }
}

impl Default for UsageCell {
    fn default() -> Self {
        Self::new()
    }
}
