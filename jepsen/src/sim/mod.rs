//! Whole clusters of the pure core in virtual time, from one seed.
//!
//! Nodes, edges, network, disks and a model of Raft run on one thread; an observer that shares no code
//! with the core checks after every event that each promise of the design holds. The same seed gives the
//! same run, to the last message: [`Run::trace`] proves it. What is checked, and which planted faults prove
//! that the checks see: docs/simulator.md. Start reading at `world`.

pub mod campaign;
mod catalog;
mod cell;
mod check;
mod edge;
mod finish;
mod journal;
mod metering;
mod naive;
mod nemesis;
mod network;
mod node;
mod raft;
mod rng;
mod scenario;
mod story;
mod truth;
mod wire;
mod world;

use scenario::Scenario;
use world::World;

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Run {
    /// Its seed.
    pub seed: u64,
    /// Hash of everything that happened; equal for equal seeds and equal code.
    pub trace: u64,
    /// The first promise that broke, if one did.
    pub broken: Option<Broken>,
    /// Virtual time, in ms.
    pub virtual_ms: u64,
    /// Checks that clients made.
    pub checks: u64,
    /// Log entries committed.
    pub entries: u64,
    /// What kind of run it was, in words.
    pub scenario: String,
}

/// A promise that broke.
#[derive(Clone, Debug)]
pub struct Broken {
    /// The check that saw it, as docs/simulator.md names it.
    pub check: &'static str,
    /// What was found, with numbers.
    pub text: String,
    /// The last lines that concern the account, if the run was told to keep them.
    pub story: Vec<String>,
}

/// Runs one seed. Of what led to a violation the last `lines` lines are told; with 0 nothing is kept,
/// which is faster.
#[must_use]
pub fn run(seed: u64, lines: usize) -> Run {
    let scenario = Scenario::draw(seed);
    let words = format!("{scenario:?}");
    let mut world = World::new(scenario, lines > 0);
    let violation = world.run();
    let broken = violation.map(|violation| {
        let customer = violation
            .account
            .as_ref()
            .map(|account| account.parts().customer.to_owned());
        let at = violation
            .account
            .map_or(String::new(), |account| format!("{account}: "));
        Broken {
            check: violation.check,
            text: format!("{at}{}", violation.text),
            story: world.story.about(customer.as_deref(), lines),
        }
    });
    Run {
        seed,
        trace: world.story.hash.value(),
        broken,
        virtual_ms: world.now,
        checks: world.checks,
        entries: world.raft.index(),
        scenario: words,
    }
}
