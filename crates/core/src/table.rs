//! A map of replicated records that knows its digest and which records changed.
//!
//! Every change goes through [`Table::put`], [`Table::update`] or [`Table::remove`], so the rolling state
//! digest and the list of records for the next checkpoint cannot be forgotten. The digest is the wrapping
//! sum of one 128-bit hash per record, which each record keeps: order does not matter, a change costs one
//! hash, and a full scan at start-up gives the same number.
//!
//! Records are found by a hash of their keys, a few steps whatever their number, and listed by an order of them. The
//! hash is only looked up by: nothing depends on its order.
//!
//! A record may have a memo `M`: what its owner computed from other records, to be had again without looking
//! them up. It is no part of the state: never digested, never stored, empty after a restart. Next:
//! [`crate::ledger`].

use crate::digest::StableHasher;
use std::borrow::Borrow;
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashMap}; // HASH ORDER: only looked up by key
use std::hash::{BuildHasherDefault, Hash};

/// A record with its share of the digest, and whether its key is among the changed ones already.
#[derive(Clone, Debug)]
struct Entry<V, M> {
    value: V,
    memo: M,
    hash: u128,
    dirty: bool,
}

/// See the module's text.
#[derive(Clone, Debug)]
pub struct Table<K, V, M = ()> {
    kind: u8,
    /// In no order; `None` where one was taken out.
    entries: Vec<Option<Entry<V, M>>>,
    /// Places of `entries` that are `None`.
    free: Vec<usize>,
    // HASH ORDER: only looked up by key
    places: HashMap<K, usize, BuildHasherDefault<DefaultHasher>>,
    order: BTreeMap<K, usize>,
    /// Each changed key once since the last [`Table::take_dirty`], removed ones perhaps more often.
    dirty: Vec<K>,
    digest: u128,
    /// Kept for its buffer.
    hasher: StableHasher,
}

impl<K: Ord + Clone + Hash, V: Hash, M: Default> Table<K, V, M> {
    /// An empty table; `kind` keeps equal keys of different tables apart in the digest.
    #[must_use]
    pub fn new(kind: u8) -> Self {
        Self {
            kind,
            entries: Vec::new(),
            free: Vec::new(),
            places: HashMap::default(), // HASH ORDER: only looked up by key
            order: BTreeMap::new(),
            dirty: Vec::new(),
            digest: 0,
            hasher: StableHasher::default(),
        }
    }

    /// The record under a key.
    pub fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let place = *self.places.get(key)?;
        self.value_at(place)
    }

    fn value_at(&self, place: usize) -> Option<&V> {
        let entry = self.entries.get(place).and_then(Option::as_ref);
        debug_assert!(entry.is_some(), "an index names a record");
        entry.map(|entry| &entry.value)
    }

    /// Whether there is a record under a key.
    pub fn contains<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.places.contains_key(key)
    }

    /// All records, in order of their keys.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&K, &V)> {
        let entries = self.order.iter();
        entries.filter_map(|(key, place)| Some((key, self.value_at(*place)?)))
    }

    /// The records whose keys lie in a range, in order.
    pub fn range<Q: Ord + ?Sized, R: std::ops::RangeBounds<Q>>(
        &self,
        range: R,
    ) -> impl DoubleEndedIterator<Item = (&K, &V)>
    where
        K: Borrow<Q>,
    {
        let entries = self.order.range(range);
        entries.filter_map(|(key, place)| Some((key, self.value_at(*place)?)))
    }

    /// How many records there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Writes a record, whatever was there; its memo is empty.
    pub fn put(&mut self, key: K, value: V) {
        let hash = hash(&mut self.hasher, self.kind, &key, &value);
        self.digest = self.digest.wrapping_add(hash);
        let entry = Entry {
            value,
            memo: M::default(),
            hash,
            dirty: true,
        };
        let Some(place) = self.places.get(&key) else {
            self.dirty.push(key.clone());
            return self.add(key, entry);
        };
        let old = self.entries.get_mut(*place);
        if let Some(old) = old.and_then(|old| old.replace(entry)) {
            self.digest = self.digest.wrapping_sub(old.hash);
            if !old.dirty {
                self.dirty.push(key);
            }
        }
    }

    fn add(&mut self, key: K, entry: Entry<V, M>) {
        let place = self.free.pop().unwrap_or(self.entries.len());
        match self.entries.get_mut(place) {
            Some(free) => *free = Some(entry),
            None => self.entries.push(Some(entry)),
        }
        self.places.insert(key.clone(), place);
        self.order.insert(key, place);
    }

    /// Changes a record in place; `None` when there is none.
    pub fn update<R>(&mut self, key: &K, change: impl FnOnce(&mut V) -> R) -> Option<R> {
        self.update_with_memo(key, |value, _| change(value))
    }

    /// Changes a record in place, with its memo at hand; `None` when there is none.
    pub fn update_with_memo<R>(
        &mut self,
        key: &K,
        change: impl FnOnce(&mut V, &mut M) -> R,
    ) -> Option<R> {
        let place = *self.places.get(key)?;
        let entry = self.entries.get_mut(place)?.as_mut()?;
        let result = change(&mut entry.value, &mut entry.memo);
        let before = entry.hash;
        let after = hash(&mut self.hasher, self.kind, key, &entry.value);
        if before != after {
            entry.hash = after;
            self.digest = self.digest.wrapping_sub(before).wrapping_add(after);
            if !std::mem::replace(&mut entry.dirty, true) {
                self.dirty.push(key.clone());
            }
        }
        Some(result)
    }

    /// Takes a record out.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let place = self.places.remove(key)?;
        self.order.remove(key);
        self.free.push(place);
        let old = self.entries.get_mut(place)?.take()?;
        self.digest = self.digest.wrapping_sub(old.hash);
        if !old.dirty {
            self.dirty.push(key.clone());
        }
        Some(old.value)
    }

    /// The digest of all records.
    #[must_use]
    pub fn digest(&self) -> u128 {
        self.digest
    }

    /// The keys changed since the last call, in order; their records are to be written or, where there
    /// is none any more, removed.
    pub fn take_dirty(&mut self) -> BTreeSet<K> {
        let keys = std::mem::take(&mut self.dirty);
        for key in &keys {
            let place = self.places.get(key);
            let entry = place.and_then(|place| self.entries.get_mut(*place));
            if let Some(Some(entry)) = entry {
                entry.dirty = false;
            }
        }
        keys.into_iter().collect()
    }
}

fn hash<K: Hash, V: Hash>(hasher: &mut StableHasher, kind: u8, key: &K, value: &V) -> u128 {
    (kind, key, value).hash(hasher);
    hasher.take128()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_depends_on_contents_only() {
        let mut one: Table<_, _> = Table::new(1);
        one.put(1_u64, 10_u64);
        one.put(2, 20);
        one.update(&1, |v| *v = 11);
        one.put(3, 30);
        one.remove(&3);
        let mut other: Table<_, _> = Table::new(1);
        other.put(2_u64, 20_u64);
        other.put(1, 11);
        assert_eq!(one.digest(), other.digest());
        other.update(&2, |v| *v = 21);
        assert_ne!(one.digest(), other.digest());
    }

    #[test]
    fn records_are_found_and_listed_alike_whatever_came_and_went() {
        let mut table: Table<_, _> = Table::new(1);
        let mut model = BTreeMap::new();
        // Keys come back, so places are used again.
        for step in 0_u64..2000 {
            let key = step.wrapping_mul(0x9e37_79b9_7f4a_7c15) % 61;
            if step % 3 == 0 {
                assert_eq!(table.remove(&key), model.remove(&key));
            } else {
                table.put(key, step);
                model.insert(key, step);
            }
            assert_eq!(table.get(&key), model.get(&key));
        }
        assert!(table.iter().eq(model.iter()));
        assert!(table.range(7..40).eq(model.range(7..40)));
        assert_eq!(table.len(), model.len());
        assert!(table.entries.len() <= 61, "places are used again");
    }

    #[test]
    fn dirty_names_what_changed_and_only_that() {
        let mut table: Table<_, _> = Table::new(1);
        table.put(1_u64, 10_u64);
        table.put(2, 20);
        assert_eq!(table.take_dirty(), BTreeSet::from([1, 2]));
        table.update(&1, |_| ());
        assert!(table.take_dirty().is_empty());
        table.remove(&2);
        assert_eq!(table.take_dirty(), BTreeSet::from([2]));
        // Once each, however often it changed, also when it was taken out between.
        table.update(&1, |v| *v = 11);
        table.update(&1, |v| *v = 12);
        table.remove(&1);
        table.put(1, 13);
        assert_eq!(table.take_dirty(), BTreeSet::from([1]));
        table.put(1, 14);
        assert_eq!(table.take_dirty(), BTreeSet::from([1]));
    }
}
