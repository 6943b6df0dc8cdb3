//! Hashes that every replica computes alike: fixed byte order, fixed widths, no seeds.
//!
//! Used for report contents and for the rolling state digest. The values of `derive(Hash)` are pinned by
//! a golden test here: a compiler that hashed otherwise would make a rolling upgrade look like divergence.

use std::hash::{Hash, Hasher};

/// A [`Hasher`] that gives the same result on every machine.
#[derive(Clone, Debug, Default)]
pub struct StableHasher {
    bytes: Vec<u8>,
}

impl Hasher for StableHasher {
    fn finish(&self) -> u64 {
        xxhash_rust::xxh3::xxh3_64(&self.bytes)
    }
    fn write(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }
    fn write_u8(&mut self, i: u8) {
        self.bytes.push(i);
    }
    fn write_u16(&mut self, i: u16) {
        self.write(&i.to_le_bytes());
    }
    fn write_u32(&mut self, i: u32) {
        self.write(&i.to_le_bytes());
    }
    fn write_u64(&mut self, i: u64) {
        self.write(&i.to_le_bytes());
    }
    fn write_u128(&mut self, i: u128) {
        self.write(&i.to_le_bytes());
    }
    fn write_usize(&mut self, i: usize) {
        self.write_u64(i as u64);
    }
    fn write_isize(&mut self, i: isize) {
        self.write(&(i as i64).to_le_bytes());
    }
}

impl StableHasher {
    /// The 128-bit hash of what was written; the buffer is emptied for the next use.
    pub fn take128(&mut self) -> u128 {
        let hash = xxhash_rust::xxh3::xxh3_128(&self.bytes);
        self.bytes.clear();
        hash
    }
}

/// 64-bit hash of a value.
pub fn hash64<T: Hash + ?Sized>(value: &T) -> u64 {
    let mut hasher = StableHasher::default();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::{AccountId, Environment};
    use crate::ids::SessionId;

    #[test]
    fn derived_hashes_are_those_on_disk() {
        let account = AccountId::parse("live/acme/-/customer/daily/open").unwrap();
        let value = (
            SessionId(7),
            &account,
            Environment::Test,
            Some(3_u16),
            [1_u64, 2],
        );
        assert_eq!(
            hash64(&value),
            973_724_441_605_017_176,
            "pinned: see the module's text"
        );
        let mut hasher = StableHasher::default();
        value.hash(&mut hasher);
        assert_eq!(
            hasher.take128(),
            216_397_339_552_912_750_596_746_767_649_849_850_974,
            "pinned: see the module's text"
        );
    }
}
