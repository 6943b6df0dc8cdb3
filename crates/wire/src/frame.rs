//! Messages on a stream: version byte, class byte, length, payload.
//!
//! A [`FrameWriter`] gathers frames and sends them in one write; a [`FrameReader`] gives them back one by
//! one from a buffer it keeps. Both work on any byte stream; in the product that is a QUIC stream
//! ([`crate::quic`]). The length is checked against the class's limit before anything is allocated, and
//! memory follows the bytes that have really arrived. Refuses to know what is in a payload.
//!
//! # Cancel safety
//! Both ends may be dropped between polls (`select!`, a deadline) and called again: nothing is lost,
//! doubled or torn. What cannot be undone is giving up the stream in the middle of a frame: the other
//! side then sees [`FrameReadError::Truncated`] or a reset, never a shorter message.

use crate::codec::{self, EncodeError};
use serde::Serialize;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Version of the frame format, the first byte of every frame.
pub const FRAME_VERSION: u8 = 1;

/// Version, class, length.
const HEADER: usize = 6;

/// Room made for one read.
const READ_CHUNK: usize = 16 * 1024;

/// Bytes a [`FrameWriter`] holds before it wants a flush; one more frame may go beyond it.
pub const COALESCE_MAX: usize = 256 * 1024;

/// What a buffer may keep of a large burst once it is empty again.
const RETAIN_MAX: usize = 256 * 1024;

/// What a stream carries; every frame of one stream names the same class.
///
/// One stream per class, so that a lost packet of one holds up no other. Numbers are on the wire:
/// append only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Class {
    /// One rare question and its answer, on a stream of their own.
    Request = 1,
    /// What must not wait: hello, keepalives, recalls, pushes; votes, heartbeats, confirmations.
    Control = 2,
    /// Leases and resolves.
    Lease = 3,
    /// Reports and their acknowledgement.
    Report = 4,
    /// Log entries from leader to follower.
    Append = 5,
    /// Commands on the way to the leader's proposer.
    Forward = 6,
    /// Pieces of a snapshot.
    Snapshot = 7,
}

impl Class {
    /// Every class, in the order of their numbers.
    pub const ALL: [Self; 7] = [
        Self::Request,
        Self::Control,
        Self::Lease,
        Self::Report,
        Self::Append,
        Self::Forward,
        Self::Snapshot,
    ];

    /// Most bytes in one payload of this class, the same on both sides: part of the protocol.
    #[must_use]
    pub const fn payload_max(self) -> usize {
        match self {
            // A report is at most 32 KiB; the slot table of 1,024 routes about as much.
            Self::Control | Self::Report => 64 * 1024,
            Self::Lease | Self::Forward | Self::Snapshot => 512 * 1024,
            // 16 log entries of 64 KiB with what surrounds them; the largest file for `apply`.
            Self::Request | Self::Append => 1024 * 1024 + 64 * 1024,
        }
    }
}

impl TryFrom<u8> for Class {
    type Error = u8;
    fn try_from(number: u8) -> Result<Self, u8> {
        Self::ALL
            .into_iter()
            .find(|class| *class as u8 == number)
            .ok_or(number)
    }
}

/// Why a [`FrameWriter`] did not take a payload; the frames before it are untouched.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The payload is longer than its class allows: split it.
    #[error("a payload of {found} bytes, {class:?} frames take at most {limit}")]
    TooLong {
        /// The stream's class.
        class: Class,
        /// Bytes of the payload.
        found: usize,
        /// [`Class::payload_max`], or what the writer was given.
        limit: usize,
    },
    /// Enough is waiting: flush, then push again.
    #[error("{pending} bytes are waiting to be flushed, at most {COALESCE_MAX} may")]
    Full {
        /// Bytes waiting.
        pending: usize,
    },
    /// The value has no bytes.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

/// Why a [`FrameReader`] gave no frame. All but [`FrameReadError::Io`] mean that the peer breaks the
/// protocol or went away; none is cured by reading on.
#[derive(Debug, thiserror::Error)]
pub enum FrameReadError {
    /// The stream ended inside a frame: the sender died or gave up half way.
    #[error("the stream ended {found} bytes into a frame of {}", match expected {
        Some(expected) => format!("{expected}"),
        None => format!("at least {HEADER}"),
    })]
    Truncated {
        /// Bytes of the frame that arrived, header included.
        found: usize,
        /// Bytes of the whole frame, if its header arrived.
        expected: Option<usize>,
    },
    /// The frame claims to be longer than its class allows; none of it was read.
    #[error("a {class:?} frame of {found} bytes, expected at most {limit}")]
    Oversized {
        /// The stream's class.
        class: Class,
        /// Bytes claimed.
        found: u64,
        /// [`Class::payload_max`], or what the reader was given.
        limit: usize,
    },
    /// The peer speaks another frame format.
    #[error("frame version {found}, this side speaks {FRAME_VERSION}: upgrade the older side")]
    Version {
        /// The version byte that arrived.
        found: u8,
    },
    /// A class this side does not know.
    #[error("frame class {found}, this side knows 1 to {}", Class::ALL.len())]
    UnknownClass {
        /// The class byte that arrived.
        found: u8,
    },
    /// A frame of another class than the stream's.
    #[error("a {found:?} frame on a {expected:?} stream")]
    WrongClass {
        /// The class that arrived.
        found: Class,
        /// The stream's class.
        expected: Class,
    },
    /// The stream failed: reset by the peer, connection lost.
    #[error("reading a frame: {0}")]
    Io(#[from] io::Error),
}

/// Gathers frames of one class and writes them together.
#[derive(Debug)]
pub struct FrameWriter<W> {
    sink: W,
    class: Class,
    limit: usize,
    buffer: Vec<u8>,
    /// How much of `buffer` the sink has taken.
    written: usize,
}

impl<W> FrameWriter<W> {
    /// Writes frames of `class` to `sink`.
    pub fn new(sink: W, class: Class) -> Self {
        Self {
            sink,
            class,
            limit: class.payload_max(),
            buffer: Vec::new(),
            written: 0,
        }
    }

    /// Appends a frame; it leaves with the next [`FrameWriter::flush`].
    ///
    /// # Errors
    /// [`PushError::TooLong`], [`PushError::Full`].
    pub fn push(&mut self, payload: &[u8]) -> Result<(), PushError> {
        self.push_with(|buffer| {
            buffer.extend_from_slice(payload);
            Ok(())
        })
    }

    /// Appends a frame whose payload is the encoded `value`, without a copy between.
    ///
    /// # Errors
    /// [`PushError::TooLong`], [`PushError::Full`], [`PushError::Encode`].
    pub fn push_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), PushError> {
        self.push_with(|buffer| codec::encode_into(value, buffer))
    }

    /// Bytes that wait for a flush, headers included.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.buffer.len() - self.written
    }

    /// The stream beneath; writing to it while frames are pending tears them.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.sink
    }

    /// The stream beneath; frames that were not flushed are gone.
    pub fn into_inner(self) -> W {
        self.sink
    }

    fn push_with(
        &mut self,
        fill: impl FnOnce(&mut Vec<u8>) -> Result<(), EncodeError>,
    ) -> Result<(), PushError> {
        let pending = self.pending();
        if pending >= COALESCE_MAX {
            return Err(PushError::Full { pending });
        }
        let start = self.buffer.len();
        self.buffer
            .extend_from_slice(&[FRAME_VERSION, self.class as u8, 0, 0, 0, 0]);
        let filled = fill(&mut self.buffer);
        let found = self.buffer.len() - start - HEADER;
        let result = match (filled, u32::try_from(found)) {
            (Err(error), _) => Err(error.into()),
            (Ok(()), Ok(length)) if found <= self.limit => {
                self.buffer[start + 2..start + HEADER].copy_from_slice(&length.to_le_bytes());
                return Ok(());
            }
            (Ok(()), _) => Err(PushError::TooLong {
                class: self.class,
                found,
                limit: self.limit,
            }),
        };
        self.buffer.truncate(start);
        result
    }
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// Writes all that is pending. Cancel safe: called again, it goes on where it was.
    ///
    /// # Errors
    /// What the stream says; it cannot be used any more then.
    pub async fn flush(&mut self) -> io::Result<()> {
        while self.written < self.buffer.len() {
            // One `write` that was not polled to the end has taken nothing; `written` covers the rest.
            match self.sink.write(&self.buffer[self.written..]).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                taken => self.written += taken,
            }
        }
        self.buffer.clear();
        self.buffer.shrink_to(RETAIN_MAX);
        self.written = 0;
        self.sink.flush().await
    }
}

/// Takes frames from a stream.
#[derive(Debug)]
pub struct FrameReader<R> {
    source: R,
    /// The stream's class; `None` until the first frame of an accepted stream names it.
    class: Option<Class>,
    /// Replaces [`Class::payload_max`].
    limit: Option<usize>,
    buffer: Vec<u8>,
    /// Where the next frame begins in `buffer`; what is before it was given out.
    start: usize,
}

impl<R> FrameReader<R> {
    /// Reads frames of `class` from `source`.
    pub fn new(source: R, class: Class) -> Self {
        Self {
            source,
            class: Some(class),
            limit: None,
            buffer: Vec::new(),
            start: 0,
        }
    }

    /// Reads frames of the class that the first one names.
    pub fn accepting(source: R) -> Self {
        Self {
            source,
            class: None,
            limit: None,
            buffer: Vec::new(),
            start: 0,
        }
    }

    /// Accepts payloads of at most `limit` bytes instead of [`Class::payload_max`].
    #[must_use]
    pub fn with_limit(mut self, limit: usize) -> Self {
        self.limit = Some(limit);
        self
    }

    /// The stream beneath; reading from it loses what is buffered here.
    pub fn get_mut(&mut self) -> &mut R {
        &mut self.source
    }

    /// The header of the frame at `start`, if it has arrived: its class and the length of its payload.
    fn header(&self) -> Result<Option<(Class, usize)>, FrameReadError> {
        let &[version, class, a, b, c, d] = match self.buffer[self.start..].first_chunk::<HEADER>()
        {
            Some(header) => header,
            None => return Ok(None),
        };
        if version != FRAME_VERSION {
            return Err(FrameReadError::Version { found: version });
        }
        let class =
            Class::try_from(class).map_err(|found| FrameReadError::UnknownClass { found })?;
        if let Some(expected) = self.class.filter(|expected| *expected != class) {
            return Err(FrameReadError::WrongClass {
                found: class,
                expected,
            });
        }
        let length = u32::from_le_bytes([a, b, c, d]);
        let limit = self.limit.unwrap_or(class.payload_max());
        match usize::try_from(length) {
            Ok(length) if length <= limit => Ok(Some((class, length))),
            _ => Err(FrameReadError::Oversized {
                class,
                found: length.into(),
                limit,
            }),
        }
    }
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// The class of the stream, once it is known; waits for the header of the first frame, which stays.
    /// `None` if the stream ended before one. Cancel safe.
    ///
    /// # Errors
    /// As [`FrameReader::next`].
    pub async fn class(&mut self) -> Result<Option<Class>, FrameReadError> {
        while self.class.is_none() {
            match self.header()? {
                Some((class, _)) => self.class = Some(class),
                None if self.fill(None).await? => {}
                None => return Ok(None),
            }
        }
        Ok(self.class)
    }

    /// The payload of the next frame; `None` when the stream ended between frames. Cancel safe.
    ///
    /// # Errors
    /// See [`FrameReadError`]; after one every further call fails alike.
    pub async fn next(&mut self) -> Result<Option<&[u8]>, FrameReadError> {
        let (from, to) = loop {
            let end = match self.header()? {
                Some((class, length)) => {
                    self.class = Some(class);
                    Some(self.start + HEADER + length)
                }
                None => None,
            };
            match end {
                Some(end) if end <= self.buffer.len() => break (self.start + HEADER, end),
                _ => {
                    if !self.fill(end.map(|end| end - self.start)).await? {
                        return Ok(None);
                    }
                }
            }
        };
        self.start = to;
        Ok(Some(&self.buffer[from..to]))
    }

    /// Reads what is there. `false`: the stream ended between frames. `expected` is the whole frame's
    /// length, if known.
    async fn fill(&mut self, expected: Option<usize>) -> Result<bool, FrameReadError> {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
            if self.buffer.is_empty() {
                self.buffer.shrink_to(RETAIN_MAX);
            }
        }
        // By chunks and not by the claimed length: memory follows what has arrived. Vec doubles.
        self.buffer.reserve(READ_CHUNK);
        if self.source.read_buf(&mut self.buffer).await? > 0 {
            return Ok(true);
        }
        match self.buffer.len() {
            0 => Ok(false),
            found => Err(FrameReadError::Truncated { found, expected }),
        }
    }
}

#[cfg(test)]
mod tests;
