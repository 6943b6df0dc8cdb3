//! Stripes of threads: which of the counters of running checks a thread may write alone, without a locked step,
//! and [`fence`], which makes up for the steps left out.
//!
//! A check tells that it runs, then looks at the edge's state; the driver changes that state, then looks who
//! runs. One of the two must see the other, so both need a full barrier between their write and their read.
//! Checks are many and the driver looks seldom: it pays for both, by a system call that makes every running
//! thread of the process pass a barrier (membarrier(2), Linux 4.14). Where that call is refused no thread
//! has a stripe alone, and checks pay themselves. Refuses to count: `counts.rs` does.

use rustix::thread::{MembarrierCommand, membarrier};
use std::cell::{Cell, OnceCell};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Threads that have a stripe alone, at a time; further ones share the last.
const ALONE_MAX: usize = 128;
/// Stripes in all.
pub(crate) const STRIPES: usize = ALONE_MAX + 1;
/// The stripe of all who have none alone.
pub(crate) const SHARED: usize = ALONE_MAX;
/// This thread has not asked for a stripe yet.
const NOT_ASKED: usize = usize::MAX;

static TAKEN: [AtomicBool; ALONE_MAX] = [const { AtomicBool::new(false) }; ALONE_MAX];

thread_local! {
    static STRIPE: Cell<usize> = const { Cell::new(NOT_ASKED) };
    /// Apart from `STRIPE`, so that reading that one needs no look whether the thread is ending.
    static CLAIM: OnceCell<Claim> = const { OnceCell::new() };
}

/// A stripe that a thread has alone, until it ends.
struct Claim(usize);

impl Drop for Claim {
    fn drop(&mut self) {
        // What still runs on this thread, in other destructors, counts on the shared stripe.
        STRIPE.set(SHARED);
        if let Some(taken) = TAKEN.get(self.0) {
            // ORDERING: Release, paired with the Acquire in `ask`: the next owner goes on from the counts of this one.
            taken.store(false, Ordering::Release);
        }
    }
}

/// The stripe that this thread has alone, below [`SHARED`], if it has one.
#[inline]
pub(crate) fn alone() -> Option<usize> {
    let stripe = STRIPE.get();
    if stripe < SHARED {
        return Some(stripe);
    }
    ask_once(stripe)
}

#[cold]
fn ask_once(stripe: usize) -> Option<usize> {
    let stripe = if stripe == NOT_ASKED { ask() } else { stripe };
    (stripe < SHARED).then_some(stripe)
}

fn ask() -> usize {
    let free = |taken: &AtomicBool| {
        taken
            .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
    };
    let found = barriers_work()
        .then(|| TAKEN.iter().position(free))
        .flatten();
    let kept = found.is_some_and(|stripe| {
        let keep = CLAIM.try_with(|claim| claim.set(Claim(stripe)).is_ok());
        // A thread that ends has nowhere to keep a claim; it is given back.
        keep.unwrap_or_else(|_| {
            drop(Claim(stripe));
            false
        })
    });
    let stripe = found.filter(|_| kept).unwrap_or(SHARED);
    STRIPE.set(stripe);
    stripe
}

/// Whether the kernel makes other threads pass a barrier when asked to.
fn barriers_work() -> bool {
    static REGISTERED: OnceLock<bool> = OnceLock::new();
    *REGISTERED.get_or_init(|| {
        let registered = membarrier(MembarrierCommand::RegisterPrivateExpedited);
        if let Err(error) = &registered {
            tracing::info!(%error, "no membarrier(2) here: checks use locked steps, which costs them some 10 ns");
        }
        registered.is_ok()
    })
}

/// After this, whatever a check wrote before it looked at something that this thread changed is seen here, or
/// the check saw the change. `false`: the kernel refused, and nothing may be concluded.
#[must_use]
pub(crate) fn fence() -> bool {
    // Without barriers nobody has a stripe alone, and locked steps are barriers.
    std::sync::atomic::fence(Ordering::SeqCst);
    if !barriers_work() {
        return true;
    }
    let passed = membarrier(MembarrierCommand::PrivateExpedited);
    if let Err(error) = &passed {
        tracing::error!(%error, "membarrier(2) was granted and now refused: expected it to go on working; restart the edge");
    }
    passed.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::sync::Barrier;

    /// Waits in a loop that two processors leave at nearly the same moment; where there is but one free, gives way.
    fn wait(until: impl Fn() -> bool) {
        const SPINS: u32 = 2000;
        for spin in 0_u32.. {
            if until() {
                return;
            }
            if spin < SPINS {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }

    /// One test, as the stripes are the process's and tests run side by side.
    #[test]
    fn threads_have_stripes_alone_while_there_are_some_and_give_them_back() {
        assert!(fence());
        for _ in 0..3 {
            const THREADS: usize = ALONE_MAX + 20;
            let all_have = Barrier::new(THREADS);
            let stripes: Vec<Option<usize>> = std::thread::scope(|scope| {
                let ask = || {
                    let stripe = alone();
                    all_have.wait();
                    assert_eq!(stripe, alone());
                    stripe
                };
                let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(ask)).collect();
                let ended = threads.into_iter().map(|thread| thread.join().unwrap());
                ended.collect()
            });
            let alone: Vec<_> = stripes.iter().flatten().collect();
            let distinct: BTreeSet<_> = alone.iter().collect();
            assert_eq!(distinct.len(), alone.len(), "two threads had one stripe");
            // Other tests' threads have some.
            assert!(alone.len() > ALONE_MAX / 2, "{} had one alone", alone.len());
            assert!(alone.len() <= ALONE_MAX);
        }
    }

    /// Two threads that each write and then look (store buffering): one must see the other. Without the barrier
    /// some of these rounds fail on two x86 processors.
    #[test]
    fn of_a_check_and_a_driver_one_sees_the_other() {
        use std::sync::atomic::{AtomicU64, compiler_fence};
        const ROUNDS: u64 = 30_000;
        #[repr(align(128))]
        struct Apart(AtomicU64);
        let [check, driver, begun, ended] = [(); 4].map(|()| Apart(AtomicU64::new(0)));
        let saw = Apart(AtomicU64::new(0));
        let mut missed = 0;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..=ROUNDS {
                    wait(|| begun.0.load(Ordering::Acquire) >= round);
                    check.0.store(round, Ordering::Relaxed);
                    compiler_fence(Ordering::SeqCst);
                    let seen = driver.0.load(Ordering::Relaxed);
                    saw.0.store(seen, Ordering::Relaxed);
                    ended.0.store(round, Ordering::Release);
                }
            });
            for round in 1..=ROUNDS {
                begun.0.store(round, Ordering::Release);
                // So that the two meet at different points.
                for _ in 0..round % 40 {
                    compiler_fence(Ordering::SeqCst);
                }
                driver.0.store(round, Ordering::Relaxed);
                assert!(fence());
                let seen = check.0.load(Ordering::Relaxed);
                wait(|| ended.0.load(Ordering::Acquire) >= round);
                missed += u64::from(seen < round && saw.0.load(Ordering::Relaxed) < round);
            }
        });
        assert_eq!(missed, 0, "rounds in which neither saw the other");
    }
}
