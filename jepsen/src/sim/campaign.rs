//! Many seeds: sweeps that must find nothing, and planted faults that must be found.

use super::{Broken, Run, run};
use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What is said to have seen a violation where the core's own assertion did: with debug assertions compiled in it may
/// come before the observer's check.
pub const ASSERTION: &str = "assertion in the core";

/// What a sweep came to.
#[derive(Clone, Debug, Default)]
pub struct Sweep {
    /// Seeds run.
    pub seeds: u64,
    /// Runs in which a promise broke.
    pub broken: Vec<Run>,
    /// Virtual time of all runs, in ms.
    pub virtual_ms: u64,
    /// Checks that clients made.
    pub checks: u64,
    /// Log entries committed.
    pub entries: u64,
}

/// Runs `seeds` seeds from `from` on; `seen` is told each run as it ends.
pub fn sweep(from: u64, seeds: u64, mut seen: impl FnMut(&Run)) -> Sweep {
    let mut sweep = Sweep::default();
    for seed in from..from.saturating_add(seeds) {
        let run = caught(seed, || run(seed, 0));
        sweep.seeds += 1;
        sweep.virtual_ms += run.virtual_ms;
        sweep.checks += run.checks;
        sweep.entries += run.entries;
        seen(&run);
        if run.broken.is_some() {
            sweep.broken.push(run);
        }
    }
    sweep
}

/// A run, also if it ended in an assertion: a sweep goes on and says which seed it was.
fn caught(seed: u64, run: impl FnOnce() -> Run) -> Run {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| Run {
        seed,
        trace: 0,
        broken: Some(Broken {
            check: ASSERTION,
            text: words(panic.as_ref()),
            story: Vec::new(),
        }),
        virtual_ms: 0,
        checks: 0,
        entries: 0,
        scenario: String::new(),
    })
}

/// What a panic said.
fn words(panic: &(dyn Any + Send)) -> String {
    let owned = panic.downcast_ref::<String>().map(String::as_str);
    let borrowed = panic.downcast_ref::<&str>().copied();
    owned.or(borrowed).unwrap_or("it panicked").to_owned()
}

/// How a planted fault was caught.
#[derive(Clone, Debug)]
pub struct Caught {
    /// Its name.
    pub fault: &'static str,
    /// Per range of seeds: how many it took, `None` when it was not caught within the bound.
    pub seeds: Vec<Option<u64>>,
    /// Which checks caught it, how often.
    pub checks: BTreeMap<&'static str, u64>,
}

impl Caught {
    /// The median number of seeds over the ranges; `None` when half of them did not catch it.
    #[must_use]
    pub fn median(&self) -> Option<u64> {
        let mut seeds: Vec<u64> = self.seeds.iter().map(|s| s.unwrap_or(u64::MAX)).collect();
        seeds.sort_unstable();
        seeds
            .get(seeds.len() / 2)
            .copied()
            .filter(|median| *median != u64::MAX)
    }
}

/// Runs seeds under a planted fault until a check breaks, once per range; a range has at most `most` seeds.
///
/// Compiled without the feature `planted` no fault can be chosen and nothing is caught.
#[must_use]
pub fn hunt(fault: &'static str, ranges: u64, most: u64) -> Caught {
    let mut caught = Caught {
        fault,
        seeds: Vec::new(),
        checks: BTreeMap::new(),
    };
    choose(Some(fault));
    for range in 0..ranges {
        let first = 1 + range * 1_000_000;
        let found = (first..first + most).find_map(|seed| {
            let check = broken_check(seed)?;
            Some((seed - first + 1, check))
        });
        if let Some((_, check)) = found {
            *caught.checks.entry(check).or_default() += 1;
        }
        caught.seeds.push(found.map(|(seeds, _)| seeds));
    }
    choose(None);
    caught
}

fn broken_check(seed: u64) -> Option<&'static str> {
    // A fault may also trip an assertion of the core: that is being caught, too.
    let run = caught(seed, || run(seed, 0));
    run.broken.map(|Broken { check, .. }| check)
}

#[cfg(feature = "planted")]
fn choose(fault: Option<&str>) {
    tollgate_core::planted::choose(fault);
}

#[cfg(not(feature = "planted"))]
fn choose(_: Option<&str>) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_assertion_that_fails_is_a_violation_of_its_seed() {
        let run = caught(7, || panic!("I2: {} units", 3));
        let broken = run.broken.unwrap();
        assert_eq!(
            (run.seed, broken.check, broken.text.as_str()),
            (7, ASSERTION, "I2: 3 units")
        );
        let literal = caught(8, || panic!("I1"));
        assert_eq!(literal.broken.unwrap().text, "I1");
    }
}
