//! Hexadecimal text of hashes, for people and JSON; binary formats carry the bytes.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Lower-case text of some bytes.
#[must_use]
pub fn encode(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble & 0x0f)]);
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(*byte)])
        .collect()
}

/// The 32 bytes that 64 hexadecimal digits of either case stand for.
#[must_use]
pub fn decode32(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let nibble = |digit: u8| {
        char::from(digit)
            .to_digit(16)
            .and_then(|d| u8::try_from(d).ok())
    };
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = (nibble(pair[0])? << 4) | nibble(pair[1])?;
    }
    Some(bytes)
}

pub(crate) fn serialize<S: Serializer>(bytes: &[u8; 32], out: S) -> Result<S::Ok, S::Error> {
    if out.is_human_readable() {
        out.serialize_str(&encode(bytes))
    } else {
        bytes.serialize(out)
    }
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<[u8; 32], D::Error> {
    if from.is_human_readable() {
        let text = String::deserialize(from)?;
        decode32(&text).ok_or_else(|| {
            serde::de::Error::custom("no hash: expected 64 hexadecimal digits (32 bytes)")
        })
    } else {
        <[u8; 32]>::deserialize(from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_bytes_are_inverse() {
        let bytes: [u8; 32] = std::array::from_fn(|i| u8::try_from(i * 8 + 3).unwrap());
        assert_eq!(decode32(&encode(&bytes)), Some(bytes));
        assert_eq!(decode32(&encode(&bytes).to_uppercase()), Some(bytes));
        assert_eq!(decode32(&encode(&bytes)[1..]), None);
        assert_eq!(decode32(&"g".repeat(64)), None);
        assert_eq!(decode32(&"é".repeat(32)), None);
    }
}
