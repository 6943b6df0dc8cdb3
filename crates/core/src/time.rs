//! Time as the core sees it: numbers that are handed in. Nothing here reads a clock.
//!
//! Three kinds that must not be mixed, hence three types: [`Mono`] (one machine's CLOCK_BOOTTIME),
//! [`LedgerTime`] (the replicated, guarded clock) and plain durations in milliseconds (what crosses
//! machines). [`Sent`] and [`Received`] mark on which side of a message a clock was read.

use serde::{Deserialize, Serialize};

/// Milliseconds of one machine's monotonic clock that goes on in suspend. Means nothing elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mono(pub u64);

impl Mono {
    /// This moment plus a duration; stays at the end of time rather than wrap.
    #[must_use]
    pub fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// How long ago `earlier` was; 0 when it is not earlier.
    #[must_use]
    pub fn since_ms(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// A clock reading taken *before* a message left: what was promised counts from here on the asking side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sent(pub Mono);

/// A clock reading taken *after* a message was taken in: what was promised counts from here on the
/// promising side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Received(pub Mono);

/// The ledger's clock: milliseconds since 1970-01-01 UTC, stamped by the leader, never falling.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct LedgerTime(pub u64);

impl LedgerTime {
    /// The hour this moment lies in, counted from the epoch: the grain of usage records.
    #[must_use]
    pub fn hour(self) -> u64 {
        self.0 / 3_600_000
    }
}
