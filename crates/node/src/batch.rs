//! [`Batch`]: the commands of one log entry, and how they stand in the log: encoded, and compressed where that makes
//! them shorter.
//!
//! Names of accounts are long and much alike: of a full entry a third is left. The leader does it once, for its own disk,
//! both followers' and the way to them. Refuses to know what a command is. Next: [`crate::machine`], which applies
//! a batch; `raft/proposer.rs`, which makes them.

use serde::{Deserialize, Serialize};
use tollgate_core::time::LedgerTime;
use tollgate_wire::codec::{self, DecodeError, EncodeError};

/// Most bytes of a batch before it is compressed. It must fit a record of the log also when that gains nothing.
pub const BATCH_BYTES_MAX: usize = 64 * 1024;

/// Bytes that a stored batch begins with, at most: its form, and its length before.
pub const HEAD_BYTES: usize = 1 + LENGTH_BYTES;

const LENGTH_BYTES: usize = size_of::<u32>();

/// Below this nothing is gained that would be worth the time of the one caller who waits.
const COMPRESS_FROM: usize = 512;

const FORM_PLAIN: u8 = 0;
/// LZ4's block format, after the length.
const FORM_LZ4: u8 = 1;

const BUDGET: usize = codec::budget(2 * BATCH_BYTES_MAX);

/// The content of one log entry: commands as bytes, so that one unreadable command harms no other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch<'a> {
    /// The proposing leader's guarded clock.
    pub time: LedgerTime,
    /// The encoded commands, in order.
    #[serde(borrow)]
    pub commands: Vec<&'a serde_bytes::Bytes>,
}

/// Why bytes are no batch.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnpackError {
    /// Not even a form.
    #[error("is empty: expected a batch of commands")]
    Empty,
    /// Another version's.
    #[error(
        "has form {found}: expected {FORM_PLAIN} or {FORM_LZ4}; a newer version wrote it, update this node"
    )]
    Form {
        /// Its first byte.
        found: u8,
    },
    /// Not what was compressed.
    #[error("does not unpack to what its head says: {0}")]
    Compressed(String),
    /// Not what was encoded.
    #[error(transparent)]
    Encoded(#[from] DecodeError),
}

impl<'a> Batch<'a> {
    /// The bytes that stand in the log; at most [`HEAD_BYTES`] more than the batch encoded.
    ///
    /// # Errors
    /// [`EncodeError`].
    pub fn pack(&self) -> Result<Vec<u8>, EncodeError> {
        let plain = codec::encode(self)?;
        if plain.len() >= COMPRESS_FROM
            && let Ok(length) = u32::try_from(plain.len())
        {
            let most = lz4_flex::block::get_maximum_output_size(plain.len());
            let mut packed = vec![0; HEAD_BYTES + most];
            packed[0] = FORM_LZ4;
            packed[1..HEAD_BYTES].copy_from_slice(&length.to_le_bytes());
            // It only fails for want of room, of which there is enough; then the batch stays as it is.
            if let Ok(used) = lz4_flex::block::compress_into(&plain, &mut packed[HEAD_BYTES..])
                && used < plain.len()
            {
                packed.truncate(HEAD_BYTES + used);
                return Ok(packed);
            }
        }
        let mut packed = Vec::with_capacity(1 + plain.len());
        packed.push(FORM_PLAIN);
        packed.extend_from_slice(&plain);
        Ok(packed)
    }

    /// Reads what [`Batch::pack`] wrote. `room` is where it is unpacked to, and may be used again.
    ///
    /// No more memory than [`BATCH_BYTES_MAX`] is asked for, whatever the bytes say.
    ///
    /// # Errors
    /// [`UnpackError`] says what is wrong with them.
    pub fn unpack(packed: &'a [u8], room: &'a mut Vec<u8>) -> Result<Self, UnpackError> {
        let plain = match packed {
            [] => return Err(UnpackError::Empty),
            [FORM_PLAIN, plain @ ..] => plain,
            [FORM_LZ4, rest @ ..] => decompress(rest, room)?,
            [found, ..] => return Err(UnpackError::Form { found: *found }),
        };
        Ok(codec::decode::<Self, BUDGET>(plain)?)
    }
}

fn decompress<'a>(rest: &[u8], room: &'a mut Vec<u8>) -> Result<&'a [u8], UnpackError> {
    let damaged = |words: String| Err(UnpackError::Compressed(words));
    let Some((length, block)) = rest.split_first_chunk::<LENGTH_BYTES>() else {
        return damaged(format!("its head has {} bytes", 1 + rest.len()));
    };
    let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
    if length > BATCH_BYTES_MAX {
        return damaged(format!(
            "{length} bytes, expected at most {BATCH_BYTES_MAX}"
        ));
    }
    room.resize(length, 0);
    match lz4_flex::block::decompress_into(block, room) {
        Ok(found) if found == length => Ok(room),
        Ok(found) => damaged(format!("{found} bytes instead of {length}")),
        Err(error) => damaged(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_bytes::Bytes;

    fn batch(commands: &[Vec<u8>]) -> Batch<'_> {
        Batch {
            time: LedgerTime(7),
            commands: commands.iter().map(|bytes| Bytes::new(bytes)).collect(),
        }
    }

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked(
            commands in prop::collection::vec(prop::collection::vec(0..4_u8, 0..200), 0..200),
            noise in prop::collection::vec(any::<u8>(), 0..2000),
        ) {
            let commands = [commands, vec![noise]].concat();
            let batch = batch(&commands);
            let packed = batch.pack().unwrap();
            prop_assert!(packed.len() <= HEAD_BYTES + codec::encode(&batch).unwrap().len());
            let mut room = vec![9; 3];
            prop_assert_eq!(Batch::unpack(&packed, &mut room).unwrap(), batch);
        }

        #[test]
        fn damaged_bytes_are_an_error_or_another_batch_and_never_a_panic(
            at: prop::sample::Index,
            byte: u8,
            cut: prop::sample::Index,
        ) {
            let commands = vec![b"live/acme/-/customer/daily/open".to_vec(); 100];
            let mut packed = batch(&commands).pack().unwrap();
            prop_assert!(packed.len() < 1000, "it was compressed");
            let place = at.index(packed.len());
            packed[place] = byte;
            let (mut room, mut other) = (Vec::new(), Vec::new());
            let _ = Batch::unpack(&packed, &mut room);
            let _ = Batch::unpack(&packed[..cut.index(packed.len())], &mut other);
            prop_assert!(room.len() <= BATCH_BYTES_MAX);
        }
    }

    #[test]
    fn what_is_no_batch_is_named() {
        let said = |bytes: &[u8]| {
            let mut room = Vec::new();
            Batch::unpack(bytes, &mut room).unwrap_err().to_string()
        };
        assert_eq!(said(&[]), "is empty: expected a batch of commands");
        assert!(said(&[7, 1]).starts_with("has form 7: expected 0 or 1"));
        assert!(said(&[FORM_LZ4, 1, 0]).ends_with("its head has 3 bytes"));
        let mut huge = vec![FORM_LZ4];
        huge.extend(u32::MAX.to_le_bytes());
        assert!(said(&huge).ends_with("4294967295 bytes, expected at most 65536"));
    }
}
