//! What is found under a credential's hash, in two layouts, and the decision on it.

use std::hash::Hasher;
use std::sync::Arc;

use siphasher::sip128::{Hasher128, SipHasher13};
use tollgate_benches::workload::Credential;
use tollgate_counters::{CellBlock, CellRef, QuotaCell, Take, look_all, take_all};

/// SipHash-1-3-128 under a process key: what a principal is looked up by.
///
/// The length is known to the compiler, as that of a key of ours is: 55 instructions less than for a
/// slice of any length.
#[inline]
pub(crate) fn credential_hash(credential: &Credential) -> u128 {
    let mut hasher = SipHasher13::new_with_keys(0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210);
    hasher.write(credential.key());
    hasher.finish128().as_u128()
}

/// Where the time of a check comes from.
pub(crate) trait Clock: Sync + 'static {
    fn now_ms() -> u64;
}

/// No clock: what is left of a decision without its reading.
pub(crate) struct NoClock;

impl Clock for NoClock {
    #[inline]
    fn now_ms() -> u64 {
        1
    }
}

/// CLOCK_BOOTTIME, the only clock that also runs in suspend.
pub(crate) struct BootClock;

impl Clock for BootClock {
    #[inline]
    fn now_ms() -> u64 {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        now.tv_sec.cast_unsigned() * 1000 + now.tv_nsec.cast_unsigned() / 1_000_000
    }
}

/// What decides beside the cells.
#[derive(Clone)]
pub(crate) struct Rights {
    valid_until_ms: u64,
    scopes: u64,
    /// How many quota cells of the own block are this principal's.
    own_quotas: u8,
    /// Accounts shared with other principals, in the order of cells.
    #[allow(
        clippy::box_collection,
        reason = "one word, so that a node's rights fit a line"
    )]
    shared_quotas: Option<Box<Vec<CellRef>>>,
}

/// A principal as a map holds it.
pub(crate) trait Principal: Clone + Send + Sync + 'static {
    fn new() -> Self;
    fn rights(&self) -> &Rights;
    fn block(&self) -> &CellBlock;
}

/// Rights in the map's own entry, cells in an allocation of their own: an entry is replaced when a
/// right changes, and the cells stay where they are.
#[derive(Clone)]
pub(crate) struct Apart {
    rights: Rights,
    block: Arc<CellBlock>,
}

/// Rights and cells in one allocation: their addresses are known at once, but neither can be
/// replaced without the other.
#[derive(Clone)]
pub(crate) struct Embedded(Arc<(Rights, CellBlock)>);

/// Entry -> rights -> cells, each in an allocation of its own.
#[derive(Clone)]
pub(crate) struct Chained(Arc<Apart>);

const PLENTY: u64 = 1 << 40;

fn rights() -> Rights {
    Rights {
        valid_until_ms: u64::MAX,
        scopes: 0b11,
        own_quotas: 2,
        shared_quotas: None,
    }
}

fn block() -> CellBlock {
    let block = CellBlock::new();
    for cell in &block.quotas()[..2] {
        cell.deposit(PLENTY).unwrap();
    }
    block
}

impl Principal for Apart {
    fn new() -> Self {
        Self {
            rights: rights(),
            block: Arc::new(block()),
        }
    }
    #[inline]
    fn rights(&self) -> &Rights {
        &self.rights
    }
    #[inline]
    fn block(&self) -> &CellBlock {
        &self.block
    }
}

impl Principal for Embedded {
    fn new() -> Self {
        Self(Arc::new((rights(), block())))
    }
    #[inline]
    fn rights(&self) -> &Rights {
        &self.0.0
    }
    #[inline]
    fn block(&self) -> &CellBlock {
        &self.0.1
    }
}

impl Principal for Chained {
    fn new() -> Self {
        Self(Arc::new(Apart::new()))
    }
    #[inline]
    fn rights(&self) -> &Rights {
        self.0.rights()
    }
    #[inline]
    fn block(&self) -> &CellBlock {
        self.0.block()
    }
}

/// What an own table stores: a principal with the key that it is found by.
pub(crate) trait Entry: Send + Sync + 'static {
    type Principal: Principal;
    fn new(key: u128) -> Self;
    fn key(&self) -> u128;
    fn principal(&self) -> &Self::Principal;
}

/// The key in the table.
impl<P: Principal> Entry for (u128, P) {
    type Principal = P;
    fn new(key: u128) -> Self {
        (key, P::new())
    }
    #[inline]
    fn key(&self) -> u128 {
        self.0
    }
    #[inline]
    fn principal(&self) -> &P {
        &self.1
    }
}

/// Key, rights and cells in one allocation of two lines, and nothing but its address in the table.
pub(crate) struct Node {
    key: u128,
    rights: Rights,
    block: CellBlock,
}

const _: () = assert!(size_of::<Node>() == 128);

impl Principal for Arc<Node> {
    fn new() -> Self {
        Entry::new(0)
    }
    #[inline]
    fn rights(&self) -> &Rights {
        &self.rights
    }
    #[inline]
    fn block(&self) -> &CellBlock {
        &self.block
    }
}

impl Entry for Arc<Node> {
    type Principal = Self;
    fn new(key: u128) -> Self {
        Arc::new(Node {
            key,
            rights: rights(),
            block: block(),
        })
    }
    #[inline]
    fn key(&self) -> u128 {
        self.key
    }
    #[inline]
    fn principal(&self) -> &Self {
        self
    }
}

/// Scope, a look at the quotas, the clock and validity, then all quotas or none, then usage.
///
/// The look comes before the clock, since reading a clock waits for all loads before it and holds up
/// those after it: so the cells arrive together with the rights instead of after them.
#[inline]
pub(crate) fn decide<P: Principal, C: Clock>(principal: &P) -> bool {
    let rights = principal.rights();
    let block = principal.block();
    let own = block.quotas().get(..usize::from(rights.own_quotas));
    let own = own.unwrap_or_default().iter().map(one_of);
    let admitted = match &rights.shared_quotas {
        None => admit::<C>(rights, own),
        Some(shared) => admit_shared::<C>(rights, own, shared),
    };
    if admitted {
        block.usages()[0].add(1);
    }
    admitted
}

/// Apart, so that the usual case is compiled for itself.
#[inline(never)]
fn admit_shared<'c, C: Clock>(
    rights: &Rights,
    own: impl Iterator<Item = Take<'c>> + Clone,
    shared: &'c [CellRef],
) -> bool {
    admit::<C>(rights, own.chain(shared.iter().map(|cell| one_of(cell))))
}

#[inline(always)]
fn admit<'c, C: Clock>(rights: &Rights, takes: impl Iterator<Item = Take<'c>> + Clone) -> bool {
    const SCOPE: u64 = 0b10;
    rights.scopes & SCOPE != 0
        && look_all(takes.clone()).is_ok()
        && C::now_ms() < rights.valid_until_ms
        && take_all(takes).is_ok()
}

#[inline]
fn one_of(cell: &QuotaCell) -> Take<'_> {
    Take { cell, cost: 1 }
}
