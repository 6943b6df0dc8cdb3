//! Records of a file that grows at its end, the edge's journal: each with a format version, its length and checksums.
//!
//! The length has a checksum of its own, so that a damaged one is not taken for the end of the file. Refuses to write,
//! sync or repair files, and to decide what damage leads to: that depends on what was acknowledged, which only the
//! file's owner knows. What a node stores in sled and in snapshots has the envelope of `tollgate-node`'s storage.
//!
//! The checksum is CRC-32: it finds damage, not malice. Next: [`crate::codec`], which the payloads are in.

use std::io::{self, Read};

/// Version of the format, the first byte of every record. 0 never becomes one: a hole in a file reads as zeros.
pub const RECORD_VERSION: u8 = 1;

/// Bytes that [`append`] adds: version, length, checksum of the two, checksum of the payload.
pub const APPEND_OVERHEAD: usize = 13;

/// Most bytes in one payload of a file of records; [`append`] refuses more, and so does its reader.
pub const RECORD_MAX: usize = 8 * 1024 * 1024;

/// The payload is longer than [`RECORD_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a record of {found} bytes, files take at most {RECORD_MAX}")]
pub struct RecordTooLong {
    /// Bytes of the payload.
    pub found: usize,
}

/// Appends `payload` as one record of a file of records to `buffer`.
///
/// # Errors
/// [`RecordTooLong`]; `buffer` is as before.
pub fn append(payload: &[u8], buffer: &mut Vec<u8>) -> Result<(), RecordTooLong> {
    let too_long = RecordTooLong {
        found: payload.len(),
    };
    if payload.len() > RECORD_MAX {
        return Err(too_long);
    }
    let length = u32::try_from(payload.len())
        .map_err(|_| too_long)?
        .to_le_bytes();
    let head = [RECORD_VERSION, length[0], length[1], length[2], length[3]];
    buffer.reserve(APPEND_OVERHEAD + payload.len());
    buffer.extend_from_slice(&head);
    buffer.extend_from_slice(&crc32fast::hash(&head).to_le_bytes());
    buffer.extend_from_slice(&crc32fast::hash(payload).to_le_bytes());
    buffer.extend_from_slice(payload);
    Ok(())
}

/// Why a file of records gave no further one. `offset` is where the record begins: everything before it
/// was read and is intact.
#[derive(Debug, thiserror::Error)]
pub enum RecordReadError {
    /// A torn tail: the file ends inside the record, or only zeros follow (a file that grew before its
    /// bytes were written). What a crash during an append leaves; nothing that was synced is like this.
    #[error("at byte {offset}: the file ends inside a record, {found} bytes of {}", match expected {
        Some(expected) => format!("{expected}"),
        None => format!("at least {APPEND_OVERHEAD}"),
    })]
    Torn {
        /// Where the record begins.
        offset: u64,
        /// Bytes from there to the end of the file.
        found: u64,
        /// Bytes of the whole record, if its length is known.
        expected: Option<u64>,
    },
    /// The record is there and wrong. In the middle of a file that is a damaged disk. At its end
    /// (`last`) it may also be a torn append whose sectors were written out of order; the owner knows
    /// whether the record was ever synced.
    #[error(
        "at byte {offset}: damaged {part}{}: its checksum says {stored:08x}, its bytes give {computed:08x}",
        if *last { " of the last record" } else { ", with more of the file behind it" }
    )]
    Damaged {
        /// Where the record begins.
        offset: u64,
        /// `length` or `payload`.
        part: &'static str,
        /// The checksum in the record.
        stored: u32,
        /// The checksum of what is there.
        computed: u32,
        /// Nothing follows in the file.
        last: bool,
    },
    /// Intact so far, but in another format: written by a newer release.
    #[error(
        "at byte {offset}: record version {found}, this release reads {RECORD_VERSION}: use the newer release"
    )]
    Version {
        /// Where the record begins.
        offset: u64,
        /// The version byte.
        found: u8,
    },
    /// Intact so far, but longer than any record: not a file of records of this release.
    #[error("at byte {offset}: a record of {found} bytes, expected at most {RECORD_MAX}")]
    TooLong {
        /// Where the record begins.
        offset: u64,
        /// The length it states.
        found: u64,
    },
    /// The file could not be read.
    #[error("at byte {offset}: {source}")]
    Io {
        /// Where the record begins.
        offset: u64,
        /// What the system said.
        source: io::Error,
    },
}

/// Reads a file of records from its beginning. Give it a buffered reader.
#[derive(Debug)]
pub struct RecordReader<R> {
    source: R,
    payload: Vec<u8>,
    offset: u64,
}

impl<R: Read> RecordReader<R> {
    /// Reads records from `source`, which stands at the beginning of one.
    pub fn new(source: R) -> Self {
        Self {
            source,
            payload: Vec::new(),
            offset: 0,
        }
    }

    /// Bytes of the records read so far: where the next one begins, and where to cut a torn tail off.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The payload of the next record; `None` at the end of the file.
    ///
    /// # Errors
    /// [`RecordReadError`]; do not read on after one.
    pub fn next_record(&mut self) -> Result<Option<&[u8]>, RecordReadError> {
        let offset = self.offset;
        let mut header = [0; APPEND_OVERHEAD];
        let found = self.read_up_to(&mut header)?;
        if found == 0 {
            return Ok(None);
        }
        if found < APPEND_OVERHEAD {
            return Err(RecordReadError::Torn {
                offset,
                found: found as u64,
                expected: None,
            });
        }
        let (length, payload_checksum) = self.check_header(&header)?;
        let expected = (APPEND_OVERHEAD + length) as u64;
        self.payload.resize(length, 0);
        let mut payload = std::mem::take(&mut self.payload);
        let found = self.read_up_to(&mut payload)?;
        self.payload = payload;
        if found < length {
            let found = (APPEND_OVERHEAD + found) as u64;
            return Err(RecordReadError::Torn {
                offset,
                found,
                expected: Some(expected),
            });
        }
        let computed = crc32fast::hash(&self.payload);
        if computed != payload_checksum {
            let last = self.rest()?.0 == 0;
            let stored = payload_checksum;
            return Err(RecordReadError::Damaged {
                offset,
                part: "payload",
                stored,
                computed,
                last,
            });
        }
        self.offset += expected;
        Ok(Some(&self.payload))
    }

    /// Length and checksum of the payload that `header` announces.
    fn check_header(
        &mut self,
        header: &[u8; APPEND_OVERHEAD],
    ) -> Result<(usize, u32), RecordReadError> {
        let offset = self.offset;
        let word = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let (length, stored, computed) = (word(1), word(5), crc32fast::hash(&header[..5]));
        if stored != computed {
            let (rest, zeros) = self.rest()?;
            if zeros && header.iter().all(|byte| *byte == 0) {
                let found = rest + APPEND_OVERHEAD as u64;
                return Err(RecordReadError::Torn {
                    offset,
                    found,
                    expected: None,
                });
            }
            let (part, last) = ("length", rest == 0);
            return Err(RecordReadError::Damaged {
                offset,
                part,
                stored,
                computed,
                last,
            });
        }
        if header[0] != RECORD_VERSION {
            return Err(RecordReadError::Version {
                offset,
                found: header[0],
            });
        }
        match usize::try_from(length) {
            Ok(length) if length <= RECORD_MAX => Ok((length, word(9))),
            _ => Err(RecordReadError::TooLong {
                offset,
                found: length.into(),
            }),
        }
    }

    /// How many bytes are left, and whether all are zero. Reads them.
    fn rest(&mut self) -> Result<(u64, bool), RecordReadError> {
        let mut piece = [0; 4096];
        let (mut count, mut zeros) = (0, true);
        loop {
            let found = self.read_up_to(&mut piece)?;
            count += found as u64;
            zeros &= piece[..found].iter().all(|byte| *byte == 0);
            if found < piece.len() {
                return Ok((count, zeros));
            }
        }
    }

    /// Fills `buffer` as far as the file goes.
    fn read_up_to(&mut self, buffer: &mut [u8]) -> Result<usize, RecordReadError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.source.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(found) => filled += found,
                Err(source) if source.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(RecordReadError::Io {
                        offset: self.offset,
                        source,
                    });
                }
            }
        }
        Ok(filled)
    }
}

#[cfg(test)]
mod tests;
