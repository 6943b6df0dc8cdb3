//! What the decision is measured against, and two of its parts alone.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::hint::black_box;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicI64, Ordering};

use dashmap::DashMap;
use governor::clock::MonotonicClock;
use governor::middleware::NoOpMiddleware;
use governor::state::keyed::DashMapStateStore;
use governor::{Quota, RateLimiter};
use tollgate_benches::Case;
use tollgate_benches::workload::{Credential, PEER_KEY_BYTES};

use crate::principal::{BootClock, Clock, Embedded, NoClock, Principal, credential_hash, decide};

/// The standard library's SipHash-1-3, with fixed keys so that counts repeat.
pub(crate) type StdHash = BuildHasherDefault<DefaultHasher>;

/// A hasher with fixed keys.
pub(crate) trait Fixed: BuildHasher + Clone + Sync {
    fn fixed() -> Self;
}

impl Fixed for ahash::RandomState {
    fn fixed() -> Self {
        Self::with_seeds(1, 2, 3, 4)
    }
}

impl Fixed for StdHash {
    fn fixed() -> Self {
        Self::default()
    }
}

type Key = [u8; PEER_KEY_BYTES];

/// The floor: the credential itself as key in a concurrent map, one `fetch_sub`, nothing checked.
pub(crate) struct Bare<S>(DashMap<Key, AtomicI64, S>);

impl<S: Fixed> Bare<S> {
    pub(crate) fn new(credentials: &[Credential]) -> Self {
        let map = DashMap::with_hasher(S::fixed());
        for credential in credentials {
            map.insert(*credential.key(), AtomicI64::new(i64::MAX));
        }
        Self(map)
    }
}

impl<S: Fixed> Case for Bare<S> {
    #[inline]
    fn check(&self, credential: &Credential) -> bool {
        self.0
            .get(credential.key())
            .is_some_and(|left| left.fetch_sub(1, Ordering::Relaxed) > 0)
    }
}

/// The same with a clock, as whoever lets units expire needs one.
pub(crate) struct BareWithClock<S>(Bare<S>);

impl<S: Fixed> BareWithClock<S> {
    pub(crate) fn new(credentials: &[Credential]) -> Self {
        Self(Bare::new(credentials))
    }
}

impl<S: Fixed> Case for BareWithClock<S> {
    #[inline]
    fn check(&self, credential: &Credential) -> bool {
        BootClock::now_ms() < black_box(u64::MAX) && self.0.check(credential)
    }
}

type Limiter = RateLimiter<
    Key,
    DashMapStateStore<Key, StdHash>,
    MonotonicClock,
    NoOpMiddleware<std::time::Instant>,
>;

/// What a user of governor would write for `N` limits of a key: `N` keyed limiters.
pub(crate) struct GovernorKeyed<const N: usize>([Limiter; N]);

impl<const N: usize> GovernorKeyed<N> {
    pub(crate) fn new(credentials: &[Credential]) -> Self {
        let quota = Quota::per_second(NonZeroU32::MAX);
        let limiters = std::array::from_fn(|_| {
            Limiter::new(
                quota,
                DashMap::with_hasher(StdHash::default()),
                MonotonicClock,
            )
        });
        let case = Self(limiters);
        for credential in credentials {
            case.check(credential);
        }
        case
    }
}

impl<const N: usize> Case for GovernorKeyed<N> {
    #[inline]
    fn check(&self, credential: &Credential) -> bool {
        self.0
            .iter()
            .all(|limiter| limiter.check_key(credential.key()).is_ok())
    }
}

/// The hash of the credential alone.
pub(crate) struct HashOnly;

impl HashOnly {
    pub(crate) fn new(_: &[Credential]) -> Self {
        Self
    }
}

impl Case for HashOnly {
    #[inline]
    fn check(&self, credential: &Credential) -> bool {
        black_box(credential_hash(credential)) != 0
    }
}

/// The cells alone: two quotas and usage of one principal, all in the first-level cache.
pub(crate) struct CellsOnly(Embedded);

impl CellsOnly {
    pub(crate) fn new(_: &[Credential]) -> Self {
        Self(Embedded::new())
    }
}

impl Case for CellsOnly {
    #[inline]
    fn check(&self, _: &Credential) -> bool {
        decide::<_, NoClock>(&self.0)
    }
}

/// The clock alone.
pub(crate) struct ClockOnly;

impl ClockOnly {
    pub(crate) fn new(_: &[Credential]) -> Self {
        Self
    }
}

impl Case for ClockOnly {
    #[inline]
    fn check(&self, _: &Credential) -> bool {
        black_box(BootClock::now_ms()) != 0
    }
}
