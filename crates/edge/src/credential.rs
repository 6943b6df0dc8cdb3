//! Presented credentials: their keyed hash, and what of them may leave the edge.
//!
//! Owns the [`Hash`] that they are looked up by: 128 bits of SipHash-1-3 under keys drawn at start, so
//! that nobody outside can make two credentials meet, and a place that is known sooner. Refuses to keep a credential or to send its secret:
//! nodes get the public id and the SHA-256. The text format is [`tollgate_core::credential`]'s.

use crate::sip;
use papaya::Equivalent;
use std::hash::Hasher;
use tollgate_core::account::Name;
use tollgate_core::credential::{CREDENTIAL_BYTES, KEY_ID_CHARS, PREFIX_CHARS};
use tollgate_core::ids::Slot;

/// What a credential is known by: 128 bits that prove it is the same text, and its place in a map.
///
/// The place of a credential of the usual length comes from its public id alone, by a few steps: a look-up is
/// on its way through memory while the 128 bits are still being computed, and those decide. Whoever chooses
/// public ids can make places meet, so only a map of known callers, whose ids nodes drew, goes by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Hash {
    place: u64,
    /// Two words and no `u128`, whose alignment would cost the map eight bytes an entry.
    halves: [u64; 2],
}

impl Hash {
    /// The 128 bits, as a key of maps in which anyone can put what they like.
    pub(crate) fn bits(self) -> u128 {
        let [low, high] = self.halves;
        u128::from(low) | u128::from(high) << 64
    }
}

impl std::hash::Hash for Hash {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.place);
    }
}

/// A presented credential on its way through the map of principals.
pub(crate) struct Sought<'a> {
    keys: HashKeys,
    text: &'a str,
    place: u64,
}

impl Sought<'_> {
    /// All of its hash.
    #[inline]
    pub(crate) fn hash(&self) -> Hash {
        let hash = sip::hash(self.keys.0, self.text.as_bytes());
        Hash {
            place: self.place,
            halves: [low_half(hash), low_half(hash >> 64)],
        }
    }
}

impl std::hash::Hash for Sought<'_> {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.place);
    }
}

impl Equivalent<Hash> for Sought<'_> {
    #[inline]
    fn equivalent(&self, known: &Hash) -> bool {
        self.hash().halves == known.halves
    }
}

/// The keys of the hash, drawn once per process.
#[derive(Clone, Copy)]
pub(crate) struct HashKeys(pub(crate) (u64, u64));

impl HashKeys {
    /// # Errors
    /// When the system has no randomness to give.
    pub(crate) fn draw() -> Result<Self, getrandom::Error> {
        Ok(Self((getrandom::u64()?, getrandom::u64()?)))
    }

    #[inline]
    pub(crate) fn seek<'a>(&self, text: &'a str) -> Sought<'a> {
        let place = match <&[u8; CREDENTIAL_BYTES]>::try_from(text.as_bytes()) {
            Ok(usual) => self.place(usual),
            Err(_) => sip_place(self.0, text),
        };
        Sought {
            keys: *self,
            text,
            place,
        }
    }

    /// The public id's words, each under a key, multiplied and folded.
    #[inline]
    fn place(&self, credential: &[u8; CREDENTIAL_BYTES]) -> u64 {
        const END: usize = PREFIX_CHARS + KEY_ID_CHARS;
        let word = |at: usize| {
            let bytes = credential[at..].first_chunk();
            bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
        };
        let first = word(PREFIX_CHARS) ^ self.0.0;
        let last = word(END - size_of::<u64>()) ^ self.0.1;
        let product = u128::from(first) * u128::from(last);
        low_half(product) ^ low_half(product >> 64)
    }
}

/// The place of a text of another length, which has no public id that is known to vary.
#[cold]
fn sip_place(keys: (u64, u64), text: &str) -> u64 {
    low_half(sip::hash(keys, text.as_bytes()))
}

#[inline]
#[allow(
    clippy::cast_possible_truncation,
    reason = "the low half is what is wanted"
)]
fn low_half(bits: u128) -> u64 {
    bits as u64
}

/// What leaves the edge of a presented credential.
#[derive(Clone)]
pub(crate) struct Presented {
    pub(crate) key: Name,
    pub(crate) secret_sha256: [u8; 32],
    /// The slot of its customer.
    pub(crate) slot: Slot,
}

/// Whether the text can be a credential at all, by its form and checksum. No allocation.
pub(crate) fn is_well_formed(presented: &str) -> bool {
    tollgate_core::credential::parse(presented).is_ok()
}

/// What to ask a node about; `None` for what [`is_well_formed`] refuses.
pub(crate) fn parse(presented: &str) -> Option<Presented> {
    let parts = tollgate_core::credential::parse(presented).ok()?;
    let key = Name::new(parts.key).ok()?;
    Some(Presented {
        key,
        secret_sha256: parts.secret_sha256(),
        slot: parts.slot(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two credentials that differ in their last character only.
    fn two(length: usize) -> [String; 2] {
        ['x', 'y'].map(|last| format!("{}{last}", "tg_live_".repeat(9).split_at(length - 1).0))
    }

    #[test]
    fn secrets_of_one_public_id_have_one_place_and_are_told_apart() {
        let keys = HashKeys((1, 2));
        let [one, other] = two(CREDENTIAL_BYTES);
        let (sought, known) = (keys.seek(&one), keys.seek(&other).hash());
        assert_eq!(sought.place, known.place);
        assert!(!sought.equivalent(&known));
        assert!(sought.equivalent(&keys.seek(&one).hash()));
        assert_ne!(sought.hash().bits(), known.bits());
    }

    #[test]
    fn each_character_of_a_public_id_moves_the_place() {
        let keys = HashKeys((3, 4));
        let [text, _] = two(CREDENTIAL_BYTES);
        let place = keys.seek(&text).place;
        for at in PREFIX_CHARS..PREFIX_CHARS + KEY_ID_CHARS {
            let mut changed = text.clone();
            changed.replace_range(at..=at, "Z");
            assert_ne!(keys.seek(&changed).place, place, "character {at}");
        }
        assert_ne!(HashKeys((3, 5)).seek(&text).place, place, "the keys count");
    }

    #[test]
    fn the_place_of_a_text_of_another_length_comes_from_all_of_it() {
        let keys = HashKeys((5, 6));
        for length in [1, CREDENTIAL_BYTES - 1, CREDENTIAL_BYTES + 1] {
            let [one, other] = two(length).map(|text| keys.seek(&text).hash());
            assert_ne!(one.place, other.place);
        }
    }
}
