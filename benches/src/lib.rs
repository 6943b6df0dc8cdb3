//! What every bench shares: the work to do, the rounds that compare, the instruction counts.
//!
//! Owns no case and no peer; those are in `benches/`. Refuses to quote an absolute number: results
//! are ratios of two cases in one run, with the facts of the machine beside them.

pub mod goals;
pub mod instructions;
pub mod machine;
pub mod rounds;
pub mod workload;

/// Something that answers checks: a peer, a candidate or the real thing.
pub trait Case: Sync {
    /// One check of `credential`; whether it was admitted.
    fn check(&self, credential: &workload::Credential) -> bool;
}

/// A [`Case`] with its loop compiled for it, so that the comparison pays no virtual call per check.
pub trait Runner: Sync {
    /// Checks each credential once; how many were admitted.
    fn run(&self, credentials: &[workload::Credential]) -> usize;
}

impl<C: Case> Runner for C {
    #[inline(never)]
    fn run(&self, credentials: &[workload::Credential]) -> usize {
        credentials
            .iter()
            .filter(|credential| self.check(credential))
            .count()
    }
}
