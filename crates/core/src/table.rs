//! A map of replicated records that knows its digest and which records changed.
//!
//! Every change goes through [`Table::put`], [`Table::update`] or [`Table::remove`], so the rolling state
//! digest and the list of records for the next checkpoint cannot be forgotten. The digest is the wrapping
//! sum of one 128-bit hash per record, which each record keeps: order does not matter, a change costs one
//! hash, and a full scan at start-up gives the same number.
//!
//! A record may have a memo `M`: what its owner computed from other records, to be had again without looking
//! them up. It is no part of the state: never digested, never stored, empty after a restart. Next:
//! [`crate::ledger`].

use crate::digest::StableHasher;
use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hash;

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
    records: BTreeMap<K, Entry<V, M>>,
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
            records: BTreeMap::new(),
            dirty: Vec::new(),
            digest: 0,
            hasher: StableHasher::default(),
        }
    }

    /// The record under a key.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.records.get(key).map(|entry| &entry.value)
    }

    /// Whether there is a record under a key.
    pub fn contains<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.records.contains_key(key)
    }

    /// All records, in order of their keys.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&K, &V)> {
        self.records.iter().map(|(key, entry)| (key, &entry.value))
    }

    /// The records whose keys lie in a range, in order.
    pub fn range<Q: Ord + ?Sized, R: std::ops::RangeBounds<Q>>(
        &self,
        range: R,
    ) -> impl DoubleEndedIterator<Item = (&K, &V)>
    where
        K: Borrow<Q>,
    {
        self.records
            .range(range)
            .map(|(key, entry)| (key, &entry.value))
    }

    /// How many records there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
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
        match self.records.insert(key.clone(), entry) {
            Some(old) => {
                self.digest = self.digest.wrapping_sub(old.hash);
                if !old.dirty {
                    self.dirty.push(key);
                }
            }
            None => self.dirty.push(key),
        }
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
        let entry = self.records.get_mut(key)?;
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
        let old = self.records.remove(key)?;
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
            if let Some(entry) = self.records.get_mut(key) {
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
