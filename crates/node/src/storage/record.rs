//! The envelope of every stored record: format version, checksum, body.
//!
//! The checksum covers the key as well, so that a record under another's key is damage too. It names the record;
//! that records are *missing* it cannot show: contiguity, the mark and the state digest do (see [`super::log`]).

use serde::{Serialize, de::DeserializeOwned};

use super::fault::StoreError;
use crate::raft::types::{Entry, LogId};
use tollgate_wire::codec;

/// Largest encoded record. Sixteen of them fit a page of the store without leaving its log (see [`super::store`]).
pub const RECORD_BYTES_MAX: usize = 64 * 1024;

/// Format of every record written by this build.
const VERSION: u8 = 1;

/// Version byte and CRC-32.
pub(crate) const HEADER_BYTES: usize = 5;

fn checksum(key: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[VERSION]);
    hasher.update(key);
    hasher.update(body);
    hasher.finalize()
}

/// Wraps `body` for storage under `key`.
pub(crate) fn wrap(key: &[u8], body: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(HEADER_BYTES + body.len());
    value.push(VERSION);
    value.extend_from_slice(&checksum(key, body).to_le_bytes());
    value.extend_from_slice(body);
    value
}

/// The body of a stored value; `name` is for the operator.
pub(crate) fn unwrap<'a>(
    key: &[u8],
    value: &'a [u8],
    name: impl Fn() -> String,
) -> Result<&'a [u8], StoreError> {
    let Some((header, body)) = value.split_at_checked(HEADER_BYTES) else {
        return Err(StoreError::damaged(
            name(),
            format!("{} bytes", value.len()),
            format!("at least {HEADER_BYTES}"),
        ));
    };
    if header[0] != VERSION {
        return Err(StoreError::Format {
            what: name(),
            found: header[0].into(),
            expected: VERSION.into(),
        });
    }
    let found = u32::from_le_bytes([header[1], header[2], header[3], header[4]]);
    let expected = checksum(key, body);
    if found != expected {
        return Err(StoreError::damaged(
            name(),
            format!("checksum {found:08x}"),
            format!("{expected:08x}"),
        ));
    }
    Ok(body)
}

/// Budget of a record's own lengths; see [`codec::budget`].
const BUDGET: usize = codec::budget(2 * RECORD_BYTES_MAX);

/// Encodes a value of openraft's types.
pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, StoreError> {
    codec::encode(value).map_err(|error| StoreError::Stopped {
        words: error.to_string(),
    })
}

/// Decodes a value of openraft's types; `name` is for the operator.
pub(crate) fn decode<T: DeserializeOwned>(
    body: &[u8],
    name: impl Fn() -> String,
) -> Result<T, StoreError> {
    codec::decode::<T, BUDGET>(body)
        .map_err(|error| StoreError::damaged(name(), error.to_string(), "a readable record"))
}

/// Bytes of a log id at the front of an entry's record: a start reads all of them, and decodes nothing else.
const LOG_ID_BYTES: usize = 16;

/// An entry's record without its envelope: term, index, encoded payload.
pub(crate) fn encode_entry(entry: &Entry) -> Result<Vec<u8>, StoreError> {
    let payload = encode(&entry.payload)?;
    let mut body = Vec::with_capacity(LOG_ID_BYTES + payload.len());
    body.extend_from_slice(&entry.log_id.committed_leader_id().term.to_le_bytes());
    body.extend_from_slice(&entry.log_id.index.to_le_bytes());
    body.extend_from_slice(&payload);
    Ok(body)
}

/// The log id of an entry's record, and its payload, still encoded.
pub(crate) fn log_id_of(
    body: &[u8],
    name: impl Fn() -> String,
) -> Result<(LogId, &[u8]), StoreError> {
    let damaged = || {
        let expected = format!("at least {LOG_ID_BYTES}");
        StoreError::damaged(name(), format!("{} bytes", body.len()), expected)
    };
    let (term, rest) = body.split_first_chunk::<8>().ok_or_else(damaged)?;
    let (index, payload) = rest.split_first_chunk::<8>().ok_or_else(damaged)?;
    let id = LogId::new_term_index(u64::from_le_bytes(*term), u64::from_le_bytes(*index));
    Ok((id, payload))
}

/// The entry of a record.
pub(crate) fn decode_entry(body: &[u8], name: impl Fn() -> String) -> Result<Entry, StoreError> {
    let (log_id, payload) = log_id_of(body, &name)?;
    Ok(Entry {
        log_id,
        payload: decode(payload, name)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_and_every_cut_is_found() {
        let value = wrap(b"key", b"some body");
        assert_eq!(unwrap(b"key", &value, || "r".into()).unwrap(), b"some body");
        for bit in 0..value.len() * 8 {
            let mut flipped = value.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(
                unwrap(b"key", &flipped, || "r".into()).is_err(),
                "bit {bit}"
            );
        }
        for length in 0..value.len() {
            assert!(
                unwrap(b"key", &value[..length], || "r".into()).is_err(),
                "length {length}"
            );
        }
        assert!(
            unwrap(b"kez", &value, || "r".into()).is_err(),
            "another key"
        );
    }
}
