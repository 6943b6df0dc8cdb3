//! Counts of checks by reason, and whether any check is still running; striped, so that threads do not
//! share a line, and written without a locked step by a thread that has its stripe alone.
//!
//! A check says [`Counts::enter`] first and [`Entered::leave`] last. Between the two it may hold units and
//! add use; [`Quiet`] proves that all checks that had entered by some moment have left, which is when the
//! driver may read a cell for the last time. Refuses to know what is counted. Next: `stripes.rs`.

use crate::decision::Reason;
use crate::stripes::{self, SHARED, STRIPES};
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering, compiler_fence, fence};

/// The reasons there are.
const REASONS: usize = Reason::ALL.len();

#[repr(align(64))]
struct Stripe {
    entered: AtomicU64,
    /// By reason; the last for looks that gave no decision.
    left: [AtomicU64; REASONS + 1],
}

/// See the module's text.
pub(crate) struct Counts {
    stripes: Box<[Stripe; STRIPES]>,
}

/// Checks answered since the start, by reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckCounts([u64; REASONS]);

impl CheckCounts {
    /// Checks that were answered for this reason.
    #[must_use]
    pub fn of(&self, reason: Reason) -> u64 {
        self.0.get(reason as usize).copied().unwrap_or_default()
    }

    /// Every reason with its count.
    pub fn iter(&self) -> impl Iterator<Item = (Reason, u64)> {
        Reason::ALL.iter().map(|reason| (*reason, self.of(*reason)))
    }
}

/// A running check; it ends on the thread that it began on.
pub(crate) struct Entered<'a> {
    stripe: &'a Stripe,
    /// The thread has the stripe alone.
    alone: bool,
    same_thread: PhantomData<*const ()>,
}

/// Adds one. Both ways are a Release, paired with the Acquire in `Stripe::is_quiet`.
#[inline]
fn add_one(count: &AtomicU64, alone: bool) {
    if alone {
        // ORDERING: nobody else writes it, so nothing is lost between the two.
        let next = count.load(Ordering::Relaxed).wrapping_add(1);
        count.store(next, Ordering::Release);
    } else {
        count.fetch_add(1, Ordering::SeqCst);
        // ORDERING: a locked step alone does not order what other places are read after it, but on x86.
        fence(Ordering::SeqCst);
    }
}

impl Counts {
    pub(crate) fn new() -> Self {
        let stripe = || Stripe {
            entered: AtomicU64::new(0),
            left: std::array::from_fn(|_| AtomicU64::new(0)),
        };
        let stripes: Box<[Stripe]> = std::iter::repeat_with(stripe).take(STRIPES).collect();
        match stripes.try_into() {
            Ok(stripes) => Self { stripes },
            Err(_) => unreachable!("as many were taken"),
        }
    }

    /// A check begins. It must look at the edge's state only after this.
    #[inline]
    pub(crate) fn enter(&self) -> Entered<'_> {
        let (stripe, alone) = match stripes::alone() {
            Some(own) => (&self.stripes[own], true),
            None => (&self.stripes[SHARED], false),
        };
        add_one(&stripe.entered, alone);
        // ORDERING: with the barrier of `fence` either the check sees the driver's change of the edge's state,
        // or the driver sees that the check has entered. The compiler keeps the order here; the processor is
        // made to by that barrier, or by the locked step of a stripe that is shared.
        compiler_fence(Ordering::SeqCst);
        Entered {
            stripe,
            alone,
            same_thread: PhantomData,
        }
    }

    /// Which stripes are quiet at some moment within this call.
    pub(crate) fn look(&self) -> Look {
        if !stripes::fence() {
            return Look([false; STRIPES]);
        }
        Look(std::array::from_fn(|at| self.stripes[at].is_quiet()))
    }

    pub(crate) fn totals(&self) -> CheckCounts {
        CheckCounts(std::array::from_fn(|reason| {
            let of = |stripe: &Stripe| stripe.left[reason].load(Ordering::Relaxed);
            self.stripes.iter().map(of).fold(0, u64::wrapping_add)
        }))
    }
}

impl Entered<'_> {
    /// The check ends: it holds no units and adds no use any more. Who sees this sees the use that it added.
    #[inline]
    pub(crate) fn leave(self, reason: Reason) {
        add_one(&self.stripe.left[reason as usize], self.alone);
        std::mem::forget(self);
    }

    /// As [`Entered::leave`], without a decision: the caller will look again.
    pub(crate) fn leave_cold(self) {
        drop(self);
    }
}

impl Drop for Entered<'_> {
    /// Also of a check that panicked: else none that came after would ever be known to have ended.
    fn drop(&mut self) {
        add_one(&self.stripe.left[REASONS], self.alone);
    }
}

impl Stripe {
    /// Whether no check was running on this stripe at some moment within this call.
    fn is_quiet(&self) -> bool {
        // ORDERING: what has left is read first: left(then) ≤ entered(then) ≤ entered(now), so equality
        // means that at the moment between the two readings nothing was running.
        let left = self.left.iter().map(|count| count.load(Ordering::Acquire));
        let left = left.fold(0, u64::wrapping_add);
        left == self.entered.load(Ordering::SeqCst)
    }
}

/// Which stripes were quiet at one look.
pub(crate) struct Look([bool; STRIPES]);

/// Proof in the making that every check that ran when this was made has ended. Made after the change that
/// later checks see.
pub(crate) struct Quiet {
    seen: [bool; STRIPES],
}

impl Default for Quiet {
    fn default() -> Self {
        Self {
            seen: [false; STRIPES],
        }
    }
}

impl Quiet {
    /// Takes in a look that began after this was made; `true` once all stripes were quiet at some moment since.
    pub(crate) fn is_reached(&mut self, look: &Look) -> bool {
        for (seen, quiet) in self.seen.iter_mut().zip(look.0) {
            *seen |= quiet;
        }
        self.seen.iter().all(|seen| *seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quiet_waits_for_the_checks_that_ran_and_for_no_others() {
        let counts = Counts::new();
        let running = counts.enter();
        let mut quiet = Quiet::default();
        assert!(!quiet.is_reached(&counts.look()));
        running.leave(Reason::Ok);
        assert!(quiet.is_reached(&counts.look()));
        let _later = counts.enter();
        assert!(
            quiet.is_reached(&counts.look()),
            "a later check does not matter"
        );
        assert_eq!(counts.totals().of(Reason::Ok), 1);
        assert_eq!(counts.totals().of(Reason::Unavailable), 0);
    }

    #[test]
    fn a_check_that_never_left_keeps_it_waiting_however_many_came_after() {
        let counts = Counts::new();
        let _running = counts.enter();
        let mut quiet = Quiet::default();
        for _ in 0..3 {
            counts.enter().leave(Reason::Ok);
            assert!(!quiet.is_reached(&counts.look()));
        }
    }

    #[test]
    fn a_check_that_panics_has_ended() {
        let counts = Counts::new();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _running = counts.enter();
            panic!("a bug of a caller's closure");
        }));
        panicked.unwrap_err();
        assert!(Quiet::default().is_reached(&counts.look()));
        assert_eq!(counts.totals().of(Reason::Ok), 0);
    }

    /// That the barrier itself is there `stripes.rs` tests, whose look is quick enough to catch it out.
    #[test]
    fn what_checks_did_before_it_is_reached_is_seen_and_later_ones_see_the_change() {
        const ROUNDS: u64 = 20_000;
        let counts = Counts::new();
        // Odd: open. Checks wait for the next round by it, and for the end.
        let round = AtomicU64::new(0);
        let done = AtomicU64::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while round.load(Ordering::Relaxed) < 2 * ROUNDS {
                    let entered = counts.enter();
                    // Relaxed on purpose: the order is the barrier's business.
                    if round.load(Ordering::Relaxed) % 2 == 1 {
                        let next = done.load(Ordering::Relaxed) + 1;
                        done.store(next, Ordering::Relaxed);
                    }
                    entered.leave(Reason::Ok);
                }
            });
            for turn in 0..ROUNDS {
                // Relaxed, and open for a time that differs, so that the change meets checks at every point.
                round.store(2 * turn + 1, Ordering::Relaxed);
                for _ in 0..turn % 61 {
                    std::hint::spin_loop();
                }
                round.store(2 * turn + 2, Ordering::Relaxed);
                let mut quiet = Quiet::default();
                while !quiet.is_reached(&counts.look()) {
                    std::thread::yield_now();
                }
                let last_word = done.load(Ordering::Relaxed);
                for _ in 0..100 {
                    assert_eq!(done.load(Ordering::Relaxed), last_word);
                }
            }
        });
    }
}
