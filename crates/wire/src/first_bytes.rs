//! [`FirstBytes`]: a deadline over what a peer says first on an HTTP connection.
//!
//! A server that speaks both versions of HTTP reads until it knows which one the peer speaks, and has no timer of its
//! own before that: a peer that says nothing, or stops in the middle of HTTP/2's preface, would hold its place for
//! ever. Refuses to judge what is said, and ends with the first byte that decides the version: from then on the
//! server's own deadlines count.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// What every HTTP/2 connection begins with, and no other (RFC 9113, 3.4).
const HTTP_2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A stream whose first bytes have a deadline. A read after it fails with [`io::ErrorKind::TimedOut`].
#[derive(Debug)]
pub struct FirstBytes<S> {
    stream: S,
    /// Until the version is decided.
    deadline: Option<Pin<Box<Sleep>>>,
    /// How much of the preface was read.
    matched: usize,
}

impl<S> FirstBytes<S> {
    /// Gives the peer `time` from now on until the version it speaks is decided.
    ///
    /// # Panics
    /// Outside of a tokio runtime with time.
    pub fn within(time: Duration, stream: S) -> Self {
        Self {
            stream,
            deadline: Some(Box::pin(tokio::time::sleep(time))),
            matched: 0,
        }
    }

    fn heard(&mut self, bytes: &[u8]) {
        let expected = HTTP_2_PREFACE.get(self.matched..).unwrap_or_default();
        self.matched = self.matched.saturating_add(bytes.len());
        if !expected.starts_with(bytes) || self.matched == HTTP_2_PREFACE.len() {
            self.deadline = None;
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for FirstBytes<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(context, buffer);
        let Some(deadline) = &mut this.deadline else {
            return read;
        };
        if read.is_ready() {
            this.heard(buffer.filled().get(before..).unwrap_or_default());
            return read;
        }
        deadline.as_mut().poll(context).map(|()| {
            let words = "the peer did not say in time which version of HTTP it speaks";
            Err(io::Error::new(io::ErrorKind::TimedOut, words))
        })
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for FirstBytes<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::time::Instant;

    const TIME: Duration = Duration::from_secs(10);

    fn stream() -> (FirstBytes<DuplexStream>, DuplexStream) {
        let (near, far) = tokio::io::duplex(1024);
        (FirstBytes::within(TIME, near), far)
    }

    /// What comes of reading once more; the clock goes on only when nothing else can.
    async fn next(stream: &mut FirstBytes<DuplexStream>) -> io::Result<u8> {
        stream.read_u8().await
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_at_the_deadline_and_not_before() {
        let (mut stream, _far) = stream();
        let began = Instant::now();
        let error = next(&mut stream).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
        assert_eq!(began.elapsed(), TIME);
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_of_the_preface_do_not_put_the_deadline_off() {
        let (mut stream, mut far) = stream();
        let began = Instant::now();
        for byte in &HTTP_2_PREFACE[..HTTP_2_PREFACE.len() - 1] {
            far.write_u8(*byte).await.unwrap();
            assert_eq!(next(&mut stream).await.unwrap(), *byte);
        }
        let error = next(&mut stream).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
        assert_eq!(began.elapsed(), TIME);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_said_its_version_may_be_silent() {
        let http_1 = b"GET / HTTP/1.1\r\n";
        let nearly_2 = b"PRI * HTTP/2.1";
        for first in [HTTP_2_PREFACE, http_1, nearly_2] {
            for piece in [1, 5, first.len()] {
                let (mut stream, mut far) = stream();
                for piece in first.chunks(piece) {
                    far.write_all(piece).await.unwrap();
                    stream.read_exact(&mut vec![0; piece.len()]).await.unwrap();
                }
                let silent = tokio::time::timeout(TIME * 3, next(&mut stream)).await;
                assert!(silent.is_err(), "{silent:?}");
                far.write_u8(7).await.unwrap();
                assert_eq!(next(&mut stream).await.unwrap(), 7);
            }
        }
    }
}
