//! The edge's monotonic clock: the only place of this crate that reads one for decisions.
//!
//! CLOCK_BOOTTIME, because `Instant` stands still while a machine is suspended and a view that grew old
//! in suspend would pass for fresh. Two readings of it: [`now`], exact, for the driver and its marks, and
//! [`of_checks`], which may be [`LATE_MS`] late and costs a third. Next: `view.rs`, which compares against
//! `max_stale`; docs/decisions/0006-the-hot-path.md for why being late is safe.

use rustix::time::{ClockId, Timespec, clock_gettime};
use std::cell::Cell;
use tollgate_core::time::Mono;

/// How much [`of_checks`] may lie behind [`now`], in ms. Whoever compares it with an end that must hold takes
/// this off that end.
///
/// One tick of the kernel is at most 10 ms (HZ is at least 100). A processor whose duty the tick is may be
/// held up; since 5.18 Linux lets another one step in once five ticks are missing.
pub(crate) const LATE_MS: u64 = 60;

thread_local! {
    /// The kernel's tick that this thread saw last, and the time it read then.
    static LAST: Cell<(i64, i64, Mono)> = const { Cell::new((0, 0, Mono(0))) };
}

/// Milliseconds since the machine started, suspend included.
#[inline]
pub(crate) fn now() -> Mono {
    millis(clock_gettime(ClockId::Boottime))
}

/// As [`now`], read anew only once the kernel's tick has moved on.
///
/// The tick is told by the coarse wall clock: unlike the coarse monotonic one it jumps over a suspend, before
/// any thread runs again, so that nothing read before a suspend is taken for the time after it. Only its
/// being another one counts; that somebody may set it does not matter.
#[inline]
pub(crate) fn of_checks() -> Mono {
    let tick = clock_gettime(ClockId::RealtimeCoarse);
    let (seconds, nanos, then) = LAST.get();
    if (seconds, nanos) == (tick.tv_sec, tick.tv_nsec) {
        return then;
    }
    read_anew(tick)
}

#[cold]
fn read_anew(tick: Timespec) -> Mono {
    // After the tick: what is kept for it is never older than the tick is.
    let now = now();
    LAST.set((tick.tv_sec, tick.tv_nsec, now));
    now
}

#[inline]
fn millis(time: Timespec) -> Mono {
    Mono(time.tv_sec.cast_unsigned() * 1000 + time.tv_nsec.cast_unsigned() / 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_of_checks_follows_the_exact_one_and_never_leads() {
        let mut last = Mono(0);
        for _ in 0..5 {
            let read = of_checks();
            assert!(last <= read, "it only moves forward");
            assert!(read <= now(), "behind the exact one");
            last = read;
            let (seconds, nanos, _) = LAST.get();
            loop {
                let tick = clock_gettime(ClockId::RealtimeCoarse);
                if (tick.tv_sec, tick.tv_nsec) != (seconds, nanos) {
                    break;
                }
                std::hint::spin_loop();
            }
            let began = now();
            assert!(of_checks() >= began, "a new tick is read anew");
        }
    }
}
