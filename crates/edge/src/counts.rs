//! Counts of checks by reason, and whether any check is still running; striped, so that threads do not
//! share a line.
//!
//! A check says [`Counts::enter`] first and [`Entered::leave`] last. Between the two it may hold units and
//! add use; [`Quiet`] proves that all checks that had entered by some moment have left, which is when the
//! driver may read a cell for the last time. Refuses to know what is counted.

use crate::decision::Reason;
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Stripes; more threads than that share them.
const STRIPES: usize = 32;
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

thread_local! {
    static STRIPE: Cell<Option<usize>> = const { Cell::new(None) };
}

fn stripe_of_this_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    STRIPE.get().unwrap_or_else(|| {
        let stripe = NEXT.fetch_add(1, Ordering::Relaxed) % STRIPES;
        STRIPE.set(Some(stripe));
        stripe
    })
}

/// A running check.
pub(crate) struct Entered<'a>(&'a Stripe);

impl Counts {
    pub(crate) fn new() -> Self {
        let stripe = || Stripe {
            entered: AtomicU64::new(0),
            left: std::array::from_fn(|_| AtomicU64::new(0)),
        };
        Self {
            stripes: Box::new(std::array::from_fn(|_| stripe())),
        }
    }

    /// A check begins. It must look at the edge's state only after this.
    #[inline]
    pub(crate) fn enter(&self) -> Entered<'_> {
        let stripe = &self.stripes[stripe_of_this_thread() % STRIPES];
        // ORDERING: SeqCst, paired with the SeqCst store of the edge's state: either the check sees that
        // the edge stopped, or the driver sees that the check has entered. Free on x86.
        stripe.entered.fetch_add(1, Ordering::SeqCst);
        Entered(stripe)
    }

    pub(crate) fn totals(&self) -> CheckCounts {
        CheckCounts(std::array::from_fn(|reason| {
            let of = |stripe: &Stripe| stripe.left[reason].load(Ordering::Relaxed);
            self.stripes.iter().map(of).fold(0, u64::wrapping_add)
        }))
    }
}

impl Entered<'_> {
    /// The check ends: it holds no units and adds no use any more.
    #[inline]
    pub(crate) fn leave(self, reason: Reason) {
        // ORDERING: Release, paired with the Acquire in `Stripe::is_quiet`: who sees this sees the use
        // that the check added before.
        self.0.left[reason as usize].fetch_add(1, Ordering::Release);
    }

    /// As [`Entered::leave`], without a decision: the caller will look again.
    pub(crate) fn leave_cold(self) {
        self.0.left[REASONS].fetch_add(1, Ordering::Release);
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

/// Proof in the making that every check that ran when this was made has ended.
#[derive(Default)]
pub(crate) struct Quiet {
    seen: [bool; STRIPES],
}

impl Quiet {
    /// Looks again; `true` once all stripes were quiet at some moment since.
    pub(crate) fn is_reached(&mut self, counts: &Counts) -> bool {
        for (seen, stripe) in self.seen.iter_mut().zip(counts.stripes.iter()) {
            *seen = *seen || stripe.is_quiet();
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
        assert!(!quiet.is_reached(&counts));
        running.leave(Reason::Ok);
        assert!(quiet.is_reached(&counts));
        let _later = counts.enter();
        assert!(quiet.is_reached(&counts), "a later check does not matter");
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
            assert!(!quiet.is_reached(&counts));
        }
    }
}
