//! The cells of the hot path: what an edge holds for an account, and how a check takes from it.
//!
//! Owns the only atomics that a check touches: [`QuotaCell`] (units leased to this edge),
//! [`UsageCell`] (units admitted, per meter), [`CellBlock`] (one principal's cells in one cache
//! line) and [`take_all`] (all or nothing over several cells).
//!
//! Refuses to know accounts, leases, windows, clocks or messages: the edge's driver decides when to
//! deposit and withdraw, this crate only guarantees that no unit is lost or doubled on the way.
//! Nothing here waits, allocates (but for the making of a block) or counts references on a check.
//!
//! # Who calls what
//! Checks run on any thread: [`take_all`], then [`UsageCell::add`]. One thread at a time per cell,
//! the **driver**, calls [`QuotaCell::deposit`], [`QuotaCell::withdraw`] and [`QuotaCell::read`].
//!
//! # What always holds, for each quota cell
//! `deposited = free + used + withdrawn + units in the hands of running checks`.
//! `used` grows only by the cost of checks that were admitted as a whole, and never falls.
//!
//! # Memory ordering
//! `free` is `Relaxed` throughout: an account's units are conserved by the atomicity of each step
//! alone. `used` is added to with `Release` and read with `Acquire`, so that whoever reads it and
//! then `free` never counts a unit twice. No `SeqCst`: nothing needs an order over several cells,
//! and loom would treat it as `AcqRel`. Each `// ORDERING:` comment names the loom model in
//! `tests/` that fails when it is weakened.
//!
//! Read next: `quota.rs`, then `take.rs`; `tests/loom_*.rs` for the proofs.

mod block;
#[cfg(loom)]
#[macro_use]
pub mod planted;
mod quota;
mod sync;
mod take;
mod usage;

pub use block::{CellBlock, CellRef, QUOTAS_PER_BLOCK, USAGES_PER_BLOCK, UsageRef};
pub use quota::{MAX_HELD, Overfull, QuotaCell, Reading, Short};
pub use take::{Refused, Take, look_all, take_all};
pub use usage::UsageCell;
