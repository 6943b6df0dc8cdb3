//! The clocks of a node, read at its rim and nowhere else.
//!
//! [`mono`] goes on in suspend (CLOCK_BOOTTIME; `std`'s `Instant` stops), [`wall`] feeds ledger time and nothing
//! that a promise rests on.

use rustix::time::{ClockId, clock_gettime};
use std::time::{SystemTime, UNIX_EPOCH};
use tollgate_core::time::{LedgerTime, Mono};

/// Milliseconds since the machine started, suspend included.
#[must_use]
pub fn mono() -> Mono {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let millis = u64::try_from(now.tv_nsec / 1_000_000).unwrap_or(0);
    Mono(seconds.saturating_mul(1000).saturating_add(millis))
}

/// Milliseconds since 1970 by the system's wall clock; 0 for one set before that.
#[must_use]
pub fn wall() -> LedgerTime {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    LedgerTime(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
