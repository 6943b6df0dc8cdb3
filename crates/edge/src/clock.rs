//! The edge's monotonic clock: the only place of this crate that reads one for decisions.
//!
//! CLOCK_BOOTTIME, because `Instant` stands still while a machine is suspended and a view that grew old
//! in suspend would pass for fresh. Next: `view.rs`, which compares against `max_stale`.

use rustix::time::{ClockId, clock_gettime};
use tollgate_core::time::Mono;

/// Milliseconds since the machine started, suspend included.
#[inline]
pub(crate) fn now() -> Mono {
    let now = clock_gettime(ClockId::Boottime);
    Mono(now.tv_sec.cast_unsigned() * 1000 + now.tv_nsec.cast_unsigned() / 1_000_000)
}
