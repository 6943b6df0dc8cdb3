//! SipHash-1-3 with 128 bits, as short as it can be for credentials of the usual length.
//!
//! Owns the one hash of the hot path. The crate `siphasher` computes the same (a test compares them); it
//! costs 50 instructions more, a tenth of a check, as it takes its input piece by piece. Source: Aumasson
//! and Bernstein, "SipHash: a fast short-input PRF", and the reference implementation's 128-bit variant.

use tollgate_core::credential::CREDENTIAL_BYTES;

/// Bytes that are mixed in at a time.
const WORD: usize = 8;

struct State([u64; 4]);

impl State {
    #[inline]
    fn new((key0, key1): (u64, u64)) -> Self {
        Self([
            key0 ^ 0x736f_6d65_7073_6575,
            // 0xee: the 128-bit variant.
            key1 ^ 0x646f_7261_6e64_6f6d ^ 0xee,
            key0 ^ 0x6c79_6765_6e65_7261,
            key1 ^ 0x7465_6462_7974_6573,
        ])
    }

    #[inline]
    fn round(&mut self) {
        let [v0, v1, v2, v3] = &mut self.0;
        *v0 = v0.wrapping_add(*v1);
        *v2 = v2.wrapping_add(*v3);
        *v1 = v1.rotate_left(13) ^ *v0;
        *v3 = v3.rotate_left(16) ^ *v2;
        *v0 = v0.rotate_left(32);
        *v2 = v2.wrapping_add(*v1);
        *v0 = v0.wrapping_add(*v3);
        *v1 = v1.rotate_left(17) ^ *v2;
        *v3 = v3.rotate_left(21) ^ *v0;
        *v2 = v2.rotate_left(32);
    }

    #[inline]
    fn mix(&mut self, word: u64) {
        self.0[3] ^= word;
        self.round();
        self.0[0] ^= word;
    }

    #[inline]
    fn squeeze(&mut self) -> u128 {
        (0..3).for_each(|_| self.round());
        let [v0, v1, v2, v3] = self.0;
        u128::from(v0 ^ v1 ^ v2 ^ v3)
    }
}

/// Keys of the hash, with what they make of the first word of most credentials.
#[derive(Clone, Copy)]
pub(crate) struct Keys {
    pub(crate) words: (u64, u64),
    after_usual: [u64; 4],
}

/// What most credentials begin with: just one word.
const USUAL: &[u8; WORD] = b"tg_live_";

impl Keys {
    pub(crate) fn new(words: (u64, u64)) -> Self {
        let mut state = State::new(words);
        state.mix(u64::from_le_bytes(*USUAL));
        Self {
            words,
            after_usual: state.0,
        }
    }

    /// The hash of `bytes`.
    #[inline]
    pub(crate) fn hash(&self, bytes: &[u8]) -> u128 {
        if let Ok(usual) = <&[u8; CREDENTIAL_BYTES]>::try_from(bytes)
            && let Some((first, rest)) = usual.split_first_chunk::<WORD>()
            && first == USUAL
        {
            // Of a known length: no loop is left.
            return State(self.after_usual).finish(rest, CREDENTIAL_BYTES);
        }
        self.hash_other(bytes)
    }

    #[cold]
    fn hash_other(&self, bytes: &[u8]) -> u128 {
        State::new(self.words).finish(bytes, bytes.len())
    }
}

impl State {
    /// Takes in the rest of an input of `length` bytes, of which whole words were taken in.
    #[inline(always)]
    fn finish(mut self, rest: &[u8], length: usize) -> u128 {
        let (words, rest) = rest.as_chunks::<WORD>();
        for word in words {
            self.mix(u64::from_le_bytes(*word));
        }
        let mut last = [0; WORD];
        last[..rest.len()].copy_from_slice(rest);
        let length = (length & 0xff) as u64;
        self.mix(u64::from_le_bytes(last) | (length << 56));
        self.0[2] ^= 0xee;
        let low = self.squeeze();
        self.0[1] ^= 0xdd;
        low | (self.squeeze() << 64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use siphasher::sip128::SipHasher13;

    proptest! {
        #[test]
        fn it_is_siphash_1_3_with_128_bits(
            keys: (u64, u64),
            bytes in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..300),
                prop::collection::vec(any::<u8>(), CREDENTIAL_BYTES),
                prop::collection::vec(any::<u8>(), CREDENTIAL_BYTES - WORD)
                    .prop_map(|rest| [USUAL.to_vec(), rest].concat()),
            ],
        ) {
            let expected = SipHasher13::new_with_keys(keys.0, keys.1).hash(&bytes).as_u128();
            prop_assert_eq!(Keys::new(keys).hash(&bytes), expected);
        }
    }
}
