//! One admitted connection: long-lived framed streams, and single requests on streams of their own.
//!
//! A stream that is dropped before [`SendHalf::finish`] is *reset*: QUIC would otherwise end it cleanly,
//! and a cancelled call would look like a complete one. Next: [`super::Dialer`].

use super::{CloseCode, FIRST_FRAME_DEADLINE, Protocol};
use crate::frame::{Class, FrameReadError, FrameReader, FrameWriter, PushError};
use crate::identity::PeerIdentity;
use quinn::{ConnectionError, RecvStream, VarInt};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::AsyncWrite;

/// Code of a stream that was given up before its end.
const RESET_ABANDONED: VarInt = VarInt::from_u32(1);

/// An admitted connection. Clones share it; it closes when the last of them and of its streams is gone.
#[derive(Clone, Debug)]
pub struct Connection {
    quinn: quinn::Connection,
    peer: PeerIdentity,
    protocol: Protocol,
}

/// A long-lived stream of frames of one class, both ways.
#[derive(Debug)]
pub struct Framed {
    /// Towards the peer. `writer.into_inner().finish()` ends it cleanly; dropping it resets the stream.
    pub writer: FrameWriter<SendHalf>,
    /// From the peer.
    pub reader: FrameReader<RecvStream>,
}

/// No stream could be opened, or none comes: the connection is gone.
#[derive(Clone, Debug, thiserror::Error)]
#[error("connection to {peer}: {source}")]
pub struct StreamError {
    /// The other side.
    pub peer: PeerIdentity,
    /// What QUIC said.
    pub source: ConnectionError,
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// It cannot be sent at all: too long. Nothing was sent.
    #[error("request not sent: {0}")]
    Push(#[from] PushError),
    /// The connection was gone before. Nothing was sent: safe to send elsewhere.
    #[error("request not sent: {0}")]
    NotSent(#[from] StreamError),
    /// Unknown fate: it may have been carried out. Only what is safe to repeat may be repeated.
    #[error("no answer within {0:?}; the request may have been carried out")]
    Deadline(Duration),
    /// Unknown fate: the stream broke before the answer was complete.
    #[error("the request may have been carried out: {0}")]
    Broken(FrameReadError),
}

impl Connection {
    pub(super) fn new(quinn: quinn::Connection, peer: PeerIdentity, protocol: Protocol) -> Self {
        Self {
            quinn,
            peer,
            protocol,
        }
    }

    /// Who the other side is, by its certificate.
    #[must_use]
    pub fn peer(&self) -> &PeerIdentity {
        &self.peer
    }

    /// What is spoken here.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Where the other side is now.
    #[must_use]
    pub fn remote_address(&self) -> SocketAddr {
        self.quinn.remote_address()
    }

    /// The smoothed round trip time.
    #[must_use]
    pub fn round_trip(&self) -> Duration {
        self.quinn.rtt()
    }

    /// Why the connection is closed; `None` while it is open.
    #[must_use]
    pub fn close_reason(&self) -> Option<ConnectionError> {
        self.quinn.close_reason()
    }

    /// Waits until the connection is closed. Cancel safe.
    pub async fn closed(&self) -> ConnectionError {
        self.quinn.closed().await
    }

    /// Closes at once, telling the peer why; all streams break.
    pub fn close(&self, code: CloseCode, reason: &str) {
        self.quinn.close(code.into(), reason.as_bytes());
    }

    /// Opens a stream of frames of `class`. The peer sees it with the first frame that is flushed; wait
    /// for nothing on it before that. Waits while [`super::STREAMS_MAX`] are open. Cancel safe.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn open_framed(&self, class: Class) -> Result<Framed, StreamError> {
        let (send, receive) = self
            .quinn
            .open_bi()
            .await
            .map_err(|error| self.gone(error))?;
        prioritise(&send, class);
        Ok(Framed {
            writer: FrameWriter::new(SendHalf::new(send), class),
            reader: FrameReader::new(receive, class),
        })
    }

    /// The next stream that the peer opens. Spawn [`Opening::identify`], so that a stream whose first
    /// frame is late holds up no other. Cancel safe.
    ///
    /// # Errors
    /// [`StreamError`] once the connection is gone.
    pub async fn accept(&self) -> Result<Opening, StreamError> {
        let (send, receive) = self
            .quinn
            .accept_bi()
            .await
            .map_err(|error| self.gone(error))?;
        Ok(Opening {
            send: SendHalf::new(send),
            reader: FrameReader::accepting(receive),
        })
    }

    /// Asks one thing and waits for the answer. `limit`: most bytes of the answer. Dropping the call
    /// before its end resets the stream; the peer never sees half a request.
    ///
    /// # Errors
    /// See [`RequestError`], which tells what was certainly not sent from an unknown fate.
    pub async fn request(
        &self,
        payload: &[u8],
        limit: usize,
        deadline: Duration,
    ) -> Result<Vec<u8>, RequestError> {
        let asked = async {
            let Framed { mut writer, reader } = self.open_framed(Class::Request).await?;
            let mut reader = reader.with_limit(limit);
            writer.push(payload)?;
            let sent = writer.flush().await;
            // A peer that answers without reading to the end stops the stream: its answer counts.
            let finished = sent.is_ok() && writer.into_inner().finish();
            match reader.next().await {
                Ok(Some(answer)) if finished => Ok(answer.to_vec()),
                Ok(_) => Err(RequestError::Broken(FrameReadError::Truncated {
                    found: 0,
                    expected: None,
                })),
                Err(error) => Err(RequestError::Broken(error)),
            }
        };
        tokio::time::timeout(deadline, asked)
            .await
            .unwrap_or(Err(RequestError::Deadline(deadline)))
    }

    fn gone(&self, source: ConnectionError) -> StreamError {
        StreamError {
            peer: self.peer.clone(),
            source,
        }
    }
}

/// A stream the peer has opened; what for stands in its first frame.
#[derive(Debug)]
pub struct Opening {
    send: SendHalf,
    reader: FrameReader<RecvStream>,
}

/// What a peer opened a stream for.
#[derive(Debug)]
pub enum Accepted {
    /// Frames of this class, both ways, for long.
    Framed(Class, Framed),
    /// One question.
    Request(Question),
}

impl Opening {
    /// Waits for the first frame, at most [`FIRST_FRAME_DEADLINE`]. Dropping it resets the stream.
    ///
    /// # Errors
    /// [`FrameReadError`]; for anything but [`FrameReadError::Io`], close the connection with
    /// [`CloseCode::Protocol`].
    pub async fn identify(self) -> Result<Accepted, FrameReadError> {
        tokio::time::timeout(FIRST_FRAME_DEADLINE, self.first_frame())
            .await
            .unwrap_or_else(|_| {
                let late = format!("no first frame within {FIRST_FRAME_DEADLINE:?}");
                Err(io::Error::new(io::ErrorKind::TimedOut, late).into())
            })
    }

    async fn first_frame(self) -> Result<Accepted, FrameReadError> {
        let Self { send, mut reader } = self;
        let nothing = FrameReadError::Truncated {
            found: 0,
            expected: None,
        };
        let class = reader.class().await?.ok_or(nothing)?;
        prioritise(&send.quinn, class);
        let writer = FrameWriter::new(send, class);
        if class != Class::Request {
            return Ok(Accepted::Framed(class, Framed { writer, reader }));
        }
        let nothing = FrameReadError::Truncated {
            found: 0,
            expected: None,
        };
        let payload = reader.next().await?.ok_or(nothing)?.to_vec();
        Ok(Accepted::Request(Question { payload, writer }))
    }
}

/// One request of a peer. Dropped unanswered, its stream is reset and the peer learns at once.
#[derive(Debug)]
pub struct Question {
    payload: Vec<u8>,
    writer: FrameWriter<SendHalf>,
}

impl Question {
    /// What is asked.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// Answers. `Ok` means handed to QUIC, not that it arrived.
    ///
    /// # Errors
    /// [`io::Error`]: too long ([`io::ErrorKind::InvalidInput`]), or the peer no longer listens.
    pub async fn answer(mut self, payload: &[u8]) -> io::Result<()> {
        let too_long = |error| io::Error::new(io::ErrorKind::InvalidInput, error);
        self.writer.push(payload).map_err(too_long)?;
        self.writer.flush().await?;
        if self.writer.into_inner().finish() {
            Ok(())
        } else {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }
}

/// What must not wait goes before what may, when both are ready to be sent.
fn prioritise(stream: &quinn::SendStream, class: Class) {
    let priority = match class {
        Class::Control => 2,
        Class::Lease | Class::Append => 1,
        Class::Request | Class::Report | Class::Forward => 0,
        Class::Snapshot => -1,
    };
    // Fails only on a stream that is closed already, where it does not matter.
    let _ = stream.set_priority(priority);
}

/// The sending half of a stream, which is reset unless it was finished.
#[derive(Debug)]
pub struct SendHalf {
    quinn: quinn::SendStream,
    finished: bool,
}

impl SendHalf {
    pub(super) fn new(quinn: quinn::SendStream) -> Self {
        Self {
            quinn,
            finished: false,
        }
    }

    /// Ends the stream cleanly: what was written will arrive, as long as the connection lives. `false`
    /// if the stream is gone.
    pub fn finish(mut self) -> bool {
        self.finished = self.quinn.finish().is_ok();
        self.finished
    }
}

impl Drop for SendHalf {
    fn drop(&mut self) {
        if !self.finished {
            // Fails only on a stream that is closed already.
            let _ = self.quinn.reset(RESET_ABANDONED);
        }
    }
}

impl AsyncWrite for SendHalf {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.quinn), context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.quinn).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finished = true;
        Pin::new(&mut self.quinn).poll_shutdown(context)
    }
}
