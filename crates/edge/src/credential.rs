//! Presented credentials: their keyed hash, and what of them may leave the edge.
//!
//! Owns the `Hash` that they are looked up by: 128 bits of SipHash-1-3 under keys drawn at start, so
//! that nobody outside can make two credentials meet, and a place that is known sooner. Refuses to keep a
//! credential or to send its secret: nodes get the public id and the SHA-256. The text format is
//! [`tollgate_core::credential`]'s.

use crate::sip;
use tollgate_core::account::Name;
use tollgate_core::credential::{CREDENTIAL_BYTES, KEY_ID_CHARS, PREFIX_CHARS};
use tollgate_core::ids::Slot;

/// What a credential is known by: 128 bits that prove it is the same text, and its place in a map.
///
/// The place of a credential of the usual length comes from a few of its characters, by a few steps: a look-up is on
/// its way through memory while the 128 bits are still being computed, and those decide. Whoever chooses
/// credentials can make places meet, so only a map of known callers, whose credentials nodes drew, goes by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Hash {
    pub(crate) place: Place,
    pub(crate) proof: Proof,
}

/// Where a known caller is looked for.
pub(crate) type Place = u64;

/// 128 bits, as two words: a `u128`'s alignment would cost the map eight bytes an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Proof([u64; 2]);

impl Proof {
    #[inline]
    fn of(bits: u128) -> Self {
        Self([low_half(bits), low_half(bits >> 64)])
    }

    /// The 128 bits.
    #[inline]
    pub(crate) fn bits(self) -> u128 {
        let Self([low, high]) = self;
        u128::from(low) | u128::from(high) << 64
    }
}

/// The keys of the hash, drawn once per process.
#[derive(Clone, Copy)]
pub(crate) struct HashKeys(sip::Keys);

impl HashKeys {
    /// # Errors
    /// When the system has no randomness to give.
    pub(crate) fn draw() -> Result<Self, getrandom::Error> {
        Ok(Self::new((getrandom::u64()?, getrandom::u64()?)))
    }

    pub(crate) fn new(words: (u64, u64)) -> Self {
        Self(sip::Keys::new(words))
    }

    /// The keys themselves.
    pub(crate) fn words(&self) -> (u64, u64) {
        self.0.words
    }

    pub(crate) fn hash(&self, credential: &str) -> Hash {
        Hash {
            place: self.place(credential),
            proof: Proof::of(self.bits(credential)),
        }
    }

    /// The bits of a credential's proof.
    // Not inlined: it needs all registers, and with those of the look-up around it would work in memory.
    #[inline(never)]
    pub(crate) fn bits(&self, credential: &str) -> u128 {
        self.0.hash(credential.as_bytes())
    }

    #[inline]
    pub(crate) fn place(&self, credential: &str) -> Place {
        match <&[u8; CREDENTIAL_BYTES]>::try_from(credential.as_bytes()) {
            Ok(usual) => self.place_of(usual),
            Err(_) => self.sip_place(credential),
        }
    }

    /// The place of a text of another length, which need not vary where credentials do.
    #[cold]
    fn sip_place(&self, text: &str) -> Place {
        low_half(self.0.hash(text.as_bytes()))
    }

    /// The public id, and 47 bits of the secret, so that secrets of one key lie apart: three words under the keys,
    /// multiplied and folded.
    #[inline]
    fn place_of(&self, credential: &[u8; CREDENTIAL_BYTES]) -> Place {
        const WORD: usize = size_of::<u64>();
        const ID_END: usize = PREFIX_CHARS + KEY_ID_CHARS;
        const _: () = assert!(2 * WORD >= KEY_ID_CHARS && ID_END + WORD <= CREDENTIAL_BYTES);
        let word = |at: usize| {
            let bytes = credential[at..].first_chunk();
            bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
        };
        let first = word(PREFIX_CHARS) ^ self.0.words.0;
        let last = word(ID_END - WORD) ^ word(ID_END) ^ self.0.words.1;
        let product = u128::from(first) * u128::from(last);
        low_half(product) ^ low_half(product >> 64)
    }
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
    fn a_credential_is_told_from_one_that_has_its_place() {
        let keys = HashKeys::new((1, 2));
        let [one, other] = two(CREDENTIAL_BYTES).map(|text| keys.hash(&text));
        assert_eq!(one.place, other.place, "they differ in the checksum only");
        assert_ne!(one.proof, other.proof);
        assert_eq!(keys.hash(&two(CREDENTIAL_BYTES)[0]), one);
    }

    #[test]
    fn each_character_of_a_public_id_and_the_first_of_a_secret_move_the_place() {
        let keys = HashKeys::new((3, 4));
        let [text, _] = two(CREDENTIAL_BYTES);
        let place = keys.place(&text);
        for at in PREFIX_CHARS..PREFIX_CHARS + KEY_ID_CHARS + size_of::<u64>() {
            let mut changed = text.clone();
            changed.replace_range(at..=at, "Z");
            assert_ne!(keys.place(&changed), place, "character {at}");
        }
        assert_ne!(HashKeys::new((3, 5)).place(&text), place, "the keys count");
    }

    #[test]
    fn the_place_of_a_text_of_another_length_comes_from_all_of_it() {
        let keys = HashKeys::new((5, 6));
        for length in [1, CREDENTIAL_BYTES - 1, CREDENTIAL_BYTES + 1] {
            let [one, other] = two(length).map(|text| keys.place(&text));
            assert_ne!(one, other);
        }
    }
}
