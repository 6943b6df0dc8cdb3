//! The maps that could hold the principals, each behind the same decision.
//!
//! The key is the credential's hash, uniform already, so that no map hashes again.

use std::cell::RefCell;
use std::hash::{BuildHasherDefault, Hasher};
use std::marker::PhantomData;
use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};
use hashbrown::HashTable;
use tollgate_benches::Case;
use tollgate_benches::workload::Credential;

use crate::principal::{Clock, Entry, Node, Principal, credential_hash, decide};

/// Takes the low half of a key that is a hash.
#[derive(Default)]
pub(crate) struct Identity(u64);

impl Hasher for Identity {
    fn write(&mut self, bytes: &[u8]) {
        unreachable!("keys are u128, not {} bytes", bytes.len());
    }
    #[inline]
    fn write_u128(&mut self, key: u128) {
        self.0 = low(key);
    }
    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}

type BuildIdentity = BuildHasherDefault<Identity>;

#[inline]
#[allow(clippy::cast_possible_truncation, reason = "masked to 64 bits")]
fn low(key: u128) -> u64 {
    (key & u128::from(u64::MAX)) as u64
}

fn hashes(credentials: &[Credential]) -> impl Iterator<Item = u128> {
    credentials.iter().map(credential_hash)
}

fn principals<P: Principal>(credentials: &[Credential]) -> impl Iterator<Item = (u128, P)> {
    hashes(credentials).map(|key| (key, P::new()))
}

type Table<E> = HashTable<E>;

#[inline]
fn look_up<E: Entry>(table: &Table<E>, key: u128) -> Option<&E::Principal> {
    table
        .find(low(key), |entry| entry.key() == key)
        .map(Entry::principal)
}

fn add<E: Entry>(table: &mut Table<E>, key: u128) {
    table.insert_unique(low(key), E::new(key), |entry| low(entry.key()));
}

/// One immutable table: the floor of all maps, as nothing can ever be added to it.
pub(crate) struct Immutable<E, C>(Table<E>, PhantomData<C>);

impl<E: Entry, C: Clock> Immutable<E, C> {
    pub(crate) fn new(credentials: &[Credential]) -> Self {
        let mut table = Table::new();
        hashes(credentials).for_each(|key| add(&mut table, key));
        Self(table, PhantomData)
    }
}

impl<E: Entry, C: Clock> Case for Immutable<E, C> {
    #[inline]
    fn check(&self, credential: &Credential) -> bool {
        let found = look_up(&self.0, credential_hash(credential));
        found.is_some_and(|principal| decide::<_, C>(principal))
    }
}

const SHARDS: usize = 256;

/// The shard of a key: bits that the tables within use last.
#[inline]
#[allow(clippy::cast_possible_truncation, reason = "only its last bits count")]
fn shard(key: u128) -> usize {
    (key >> 64) as usize % SHARDS
}

fn sharded<E: Entry>(credentials: &[Credential]) -> Vec<Table<E>> {
    let mut tables: Vec<Table<E>> = (0..SHARDS).map(|_| Table::new()).collect();
    hashes(credentials).for_each(|key| add(&mut tables[shard(key)], key));
    tables
}

/// Immutable tables, each replaced as a whole when one of its principals changes.
pub(crate) struct Arcswap<E, C>(Box<[ArcSwap<Table<E>>]>, PhantomData<C>);

impl<E: Entry, C: Clock> Arcswap<E, C> {
    pub(crate) fn new(credentials: &[Credential]) -> Self {
        let tables = sharded(credentials)
            .into_iter()
            .map(ArcSwap::from_pointee)
            .collect();
        Self(tables, PhantomData)
    }
}

impl<E: Entry, C: Clock> Case for Arcswap<E, C> {
    #[inline]
    fn check(&self, credential: &Credential) -> bool {
        let key = credential_hash(credential);
        let table = self.0[shard(key)].load();
        look_up(&table, key).is_some_and(|principal| decide::<_, C>(principal))
    }
}

type Snapshot = Box<[Arc<Table<Arc<Node>>>]>;
type SnapshotCache = Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>;

thread_local! {
    static CACHE: RefCell<Option<SnapshotCache>> = const { RefCell::new(None) };
}

/// All tables behind one pointer that each thread caches: a check only compares that pointer.
///
/// One case of it in a process at a time: the threads' caches do not ask whose they are.
pub(crate) struct Cached<C>(Arc<ArcSwap<Snapshot>>, PhantomData<C>);

impl<C: Clock> Cached<C> {
    pub(crate) fn new(credentials: &[Credential]) -> Self {
        let tables: Snapshot = sharded(credentials).into_iter().map(Arc::new).collect();
        CACHE.set(None);
        Self(Arc::new(ArcSwap::from_pointee(tables)), PhantomData)
    }
}

impl<C: Clock> Case for Cached<C> {
    #[inline]
    fn check(&self, credential: &Credential) -> bool {
        let key = credential_hash(credential);
        CACHE.with_borrow_mut(|cache| {
            let cache = cache.get_or_insert_with(|| Cache::new(Arc::clone(&self.0)));
            let found = look_up(&cache.load()[shard(key)], key);
            found.is_some_and(|principal| decide::<_, C>(principal))
        })
    }
}

/// papaya, entry -> principal.
pub(crate) struct Papaya<P, C>(papaya::HashMap<u128, P, BuildIdentity>, PhantomData<C>);

impl<P: Principal, C: Clock> Papaya<P, C> {
    pub(crate) fn new(credentials: &[Credential]) -> Self {
        let map = papaya::HashMap::with_hasher(BuildIdentity::default());
        principals(credentials).for_each(|(key, principal)| {
            map.pin().insert(key, principal);
        });
        Self(map, PhantomData)
    }
}

impl<P: Principal, C: Clock> Case for Papaya<P, C> {
    #[inline]
    fn check(&self, credential: &Credential) -> bool {
        let map = self.0.pin();
        let found = map.get(&credential_hash(credential));
        found.is_some_and(|principal| decide::<_, C>(principal))
    }
}

/// scc's read-mostly map.
pub(crate) struct SccIndex<P: 'static, C>(scc::HashIndex<u128, P, BuildIdentity>, PhantomData<C>);

impl<P: Principal, C: Clock> SccIndex<P, C> {
    pub(crate) fn new(credentials: &[Credential]) -> Self {
        let map = scc::HashIndex::with_hasher(BuildIdentity::default());
        principals(credentials).for_each(|(key, principal)| {
            map.insert_sync(key, principal).ok();
        });
        Self(map, PhantomData)
    }
}

impl<P: Principal, C: Clock> Case for SccIndex<P, C> {
    #[inline]
    fn check(&self, credential: &Credential) -> bool {
        let key = credential_hash(credential);
        self.0
            .peek_with(&key, |_, principal| decide::<_, C>(principal))
            .unwrap_or(false)
    }
}

/// dashmap: a read takes a shard's lock.
pub(crate) struct Dash<P, C>(dashmap::DashMap<u128, P, BuildIdentity>, PhantomData<C>);

impl<P: Principal, C: Clock> Dash<P, C> {
    pub(crate) fn new(credentials: &[Credential]) -> Self {
        let map = dashmap::DashMap::with_hasher(BuildIdentity::default());
        principals(credentials).for_each(|(key, principal)| {
            map.insert(key, principal);
        });
        Self(map, PhantomData)
    }
}

impl<P: Principal, C: Clock> Case for Dash<P, C> {
    #[inline]
    fn check(&self, credential: &Credential) -> bool {
        let found = self.0.get(&credential_hash(credential));
        found.is_some_and(|principal| decide::<_, C>(&*principal))
    }
}
