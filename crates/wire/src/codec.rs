//! Values to bytes and back: bincode 2 through serde, little-endian, variable-length integers.
//!
//! The only place that knows bincode. Encoding is deterministic for types without hash maps. Enum
//! variants are their position: append only; `testdata/` holds the bytes of every released message.
//! Refuses input that is longer than its limit, claims more than its budget, ends early, or goes on
//! after the value. Next: [`crate::frame`], [`crate::record`].

use serde::Serialize;
use serde::de::Deserialize;
use std::any::type_name;

/// Widest integer over its shortest encoding: a `u128` below 251 is one byte on the wire.
const WIDEST_INTEGER: usize = 16;

/// The budget [`decode`] needs so that every message of at most `encoded_max` bytes is accepted.
///
/// The budget counts each integer at its full width (a small `u64` counts 8, though it takes one byte),
/// each text and byte string at its length. So it is 16 times the bytes on the wire.
#[must_use]
pub const fn budget(encoded_max: usize) -> usize {
    encoded_max.saturating_mul(WIDEST_INTEGER)
}

/// A value could not be put into bytes: a mistake in its type (a sequence of unknown length, say).
#[derive(Debug, thiserror::Error)]
#[error("cannot encode a {what}: {reason}")]
pub struct EncodeError {
    /// The type.
    pub what: &'static str,
    /// What the encoder said.
    pub reason: String,
}

/// Bytes that are no value of the type asked for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// More bytes than the budget, whatever is in them.
    #[error("{found} bytes for a {what}, expected at most {limit}")]
    TooLong {
        /// The type asked for.
        what: &'static str,
        /// Bytes given.
        found: usize,
        /// The budget.
        limit: usize,
    },
    /// A length inside asks for more than the budget; nothing was allocated for it.
    #[error(
        "{found} bytes claim to hold a {what} of more than {limit} bytes (integers counted at full width)"
    )]
    OverBudget {
        /// The type asked for.
        what: &'static str,
        /// Bytes given.
        found: usize,
        /// The budget.
        limit: usize,
    },
    /// The bytes end inside the value.
    #[error("{found} bytes end inside a {what}")]
    Truncated {
        /// The type asked for.
        what: &'static str,
        /// Bytes given.
        found: usize,
    },
    /// The value ends before the bytes do.
    #[error("a {what} of {used} bytes is followed by {} more", found - used)]
    Trailing {
        /// The type asked for.
        what: &'static str,
        /// Bytes the value took.
        used: usize,
        /// Bytes given.
        found: usize,
    },
    /// Enough bytes, but not of this type: an unknown variant (a newer peer), text that is not UTF-8, a
    /// number out of its range.
    #[error("{found} bytes are no {what}: {reason}")]
    Invalid {
        /// The type asked for.
        what: &'static str,
        /// Bytes given.
        found: usize,
        /// What the decoder said.
        reason: String,
    },
}

/// The bytes of `value`.
///
/// # Errors
/// [`EncodeError`] where the type cannot be encoded at all; never for an amount or a size.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, EncodeError> {
    let mut bytes = Vec::new();
    encode_into(value, &mut bytes)?;
    Ok(bytes)
}

/// Appends the bytes of `value` to `buffer`, which is as before if this fails.
///
/// # Errors
/// As [`encode`].
pub fn encode_into<T: Serialize + ?Sized>(
    value: &T,
    buffer: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    let before = buffer.len();
    match bincode::serde::encode_into_std_write(value, buffer, bincode::config::standard()) {
        Ok(_) => Ok(()),
        Err(error) => {
            buffer.truncate(before);
            Err(EncodeError {
                what: type_name::<T>(),
                reason: error.to_string(),
            })
        }
    }
}

/// The value that `bytes` hold, all of them.
///
/// `BUDGET` bounds what a hostile length can claim: use [`budget`] of the frame's or record's limit. A
/// text or byte string allocates at most `BUDGET`; a list starts with room for what it claims but never
/// more than serde's 1 MiB, and grows with the elements that are really there.
/// Do not give it types with lists of zero-sized elements: those cost no bytes, so no limit stops them.
///
/// # Errors
/// One [`DecodeError`] per way in which bytes can be wrong; never a panic.
pub fn decode<'a, T: Deserialize<'a>, const BUDGET: usize>(
    bytes: &'a [u8],
) -> Result<T, DecodeError> {
    use bincode::error::DecodeError as Wrong;
    let what = type_name::<T>();
    let found = bytes.len();
    if found > BUDGET {
        return Err(DecodeError::TooLong {
            what,
            found,
            limit: BUDGET,
        });
    }
    let config = bincode::config::standard().with_limit::<BUDGET>();
    match bincode::serde::borrow_decode_from_slice::<T, _>(bytes, config) {
        Ok((value, used)) if used == found => Ok(value),
        Ok((_, used)) => Err(DecodeError::Trailing { what, used, found }),
        Err(Wrong::LimitExceeded) => Err(DecodeError::OverBudget {
            what,
            found,
            limit: BUDGET,
        }),
        Err(Wrong::UnexpectedEnd { .. }) => Err(DecodeError::Truncated { what, found }),
        Err(other) => Err(DecodeError::Invalid {
            what,
            found,
            reason: other.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::Deserialize;
    use std::collections::BTreeMap;

    const LIMIT: usize = 4096;
    const BUDGET: usize = budget(LIMIT);

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    enum Shape {
        Nothing,
        Number(u64),
        Text {
            name: String,
            more: Option<Box<str>>,
        },
        List(Vec<(u64, i64)>),
        Map(BTreeMap<u16, String>),
        Nested(Vec<Vec<Vec<String>>>),
    }

    fn shapes() -> impl Strategy<Value = Shape> {
        prop_oneof![
            Just(Shape::Nothing),
            any::<u64>().prop_map(Shape::Number),
            (".{0,40}", any::<Option<String>>()).prop_map(|(name, more)| Shape::Text {
                name,
                more: more.map(Into::into)
            }),
            prop::collection::vec(any::<(u64, i64)>(), 0..20).prop_map(Shape::List),
            prop::collection::btree_map(any::<u16>(), ".{0,9}", 0..5).prop_map(Shape::Map),
        ]
    }

    fn error(bytes: &[u8]) -> String {
        decode::<Shape, BUDGET>(bytes)
            .expect_err("no value")
            .to_string()
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(shape in shapes()) {
            let bytes = encode(&shape).unwrap();
            prop_assert_eq!(decode::<Shape, { budget(1 << 20) }>(&bytes).unwrap(), shape);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..LIMIT + 100)) {
            let _ = decode::<Shape, BUDGET>(&bytes);
            let _ = decode::<Vec<Vec<String>>, BUDGET>(&bytes);
            let _ = decode::<Vec<BTreeMap<String, Vec<u64>>>, BUDGET>(&bytes);
        }

        #[test]
        fn every_cut_is_noticed(shape in shapes(), at in any::<prop::sample::Index>()) {
            let bytes = encode(&shape).unwrap();
            let cut = at.index(bytes.len());
            let result = decode::<Shape, { budget(1 << 20) }>(&bytes[..cut]);
            prop_assert!(matches!(result, Err(DecodeError::Truncated { .. })), "{:?}", result);
        }

        /// A claimed length meets the budget before anything is allocated: these would be terabytes.
        #[test]
        fn claimed_lengths_allocate_nothing(claimed in BUDGET as u64 + 1.., variant in 0..2_usize) {
            let mut bytes = encode(&[2_u8, 4][variant]).unwrap();
            if variant == 1 {
                bytes.extend([1, 7]); // a map with one key, 7
            }
            encode_into(&claimed, &mut bytes).unwrap();
            let result = decode::<Shape, BUDGET>(&bytes);
            prop_assert!(matches!(result, Err(DecodeError::OverBudget { .. })), "{:?}", result);
        }

        #[test]
        fn claimed_list_lengths_end_where_the_bytes_end(claimed in (1_u64 << 40)..) {
            let mut bytes = encode(&3_u8).unwrap();
            encode_into(&claimed, &mut bytes).unwrap();
            bytes.extend([1, 2, 3, 4]);
            let result = decode::<Shape, BUDGET>(&bytes);
            prop_assert!(matches!(result, Err(DecodeError::Truncated { .. })), "{:?}", result);
        }
    }

    #[test]
    fn errors_say_what_was_found_and_expected() {
        let what = type_name::<Shape>();
        assert_eq!(error(&[]), format!("0 bytes end inside a {what}"));
        assert_eq!(
            error(&[0, 9, 9]),
            format!("a {what} of 1 bytes is followed by 2 more")
        );
        assert!(
            error(&[17]).starts_with(&format!("1 bytes are no {what}: ")),
            "{}",
            error(&[17])
        );
        assert_eq!(
            error(&vec![0; BUDGET + 1]),
            format!("65537 bytes for a {what}, expected at most 65536"),
        );
        assert_eq!(
            error(&[2, 253, 0, 0, 0, 0, 0, 0, 0, 1]),
            format!(
                "10 bytes claim to hold a {what} of more than 65536 bytes (integers counted at full width)"
            ),
        );
    }

    /// A frame full of small numbers counts 16 times its size: the reason for [`budget`].
    #[test]
    fn the_budget_of_a_limit_accepts_every_message_within_the_limit() {
        let bytes = encode(&vec![1_u128; LIMIT - 3]).unwrap();
        assert_eq!(bytes.len(), LIMIT);
        assert!(decode::<Vec<u128>, BUDGET>(&bytes).is_ok());
        assert!(matches!(
            decode::<Vec<u128>, LIMIT>(&bytes),
            Err(DecodeError::OverBudget { .. })
        ));
    }

    #[test]
    fn a_failed_encode_leaves_the_buffer_as_it_was() {
        struct Unsized;
        impl Serialize for Unsized {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                let mut list = to.serialize_seq(Some(2))?;
                serde::ser::SerializeSeq::serialize_element(&mut list, &7_u8)?;
                Err(serde::ser::Error::custom("no second element"))
            }
        }
        let mut buffer = vec![1, 2, 3];
        let error = encode_into(&Unsized, &mut buffer)
            .expect_err("must fail")
            .to_string();
        assert!(
            error.contains("Unsized") && error.contains("no second element"),
            "{error}"
        );
        assert_eq!(buffer, [1, 2, 3]);
    }
}
