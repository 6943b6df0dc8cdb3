//! Frames over in-memory streams; quic.rs has them over real connections.

use super::*;
use futures::FutureExt;
use proptest::prelude::*;
use tokio::io::{DuplexStream, duplex};

fn frame(class: Class, payload: &[u8]) -> Vec<u8> {
    let mut writer = FrameWriter::new((), class);
    writer.push(payload).unwrap();
    writer.buffer
}

/// Reads a whole byte string as frames of `class`; no await point is ever pending.
fn read_all(class: Class, bytes: &[u8]) -> Result<Vec<Vec<u8>>, FrameReadError> {
    let mut reader = FrameReader::new(bytes, class);
    let mut frames = Vec::new();
    while let Some(payload) = reader.next().now_or_never().expect("memory never waits")? {
        frames.push(payload.to_vec());
    }
    Ok(frames)
}

fn error(bytes: &[u8]) -> String {
    let found = read_all(Class::Report, bytes).expect_err("no frames");
    // Whatever was wrong stays wrong.
    let mut reader = FrameReader::new(bytes, Class::Report);
    for _ in 0..2 {
        let error = loop {
            match reader.next().now_or_never().expect("memory never waits") {
                Ok(frame) => assert!(frame.is_some(), "an error turned into an end"),
                Err(error) => break error,
            }
        };
        assert_eq!(error.to_string(), found.to_string());
    }
    found.to_string()
}

#[test]
fn bytes_of_a_frame() {
    assert_eq!(
        frame(Class::Report, b"abc"),
        [1, 4, 3, 0, 0, 0, b'a', b'b', b'c']
    );
    assert_eq!(frame(Class::Request, b""), [1, 1, 0, 0, 0, 0]);
}

#[test]
fn class_numbers_are_stable() {
    let numbers: Vec<u8> = Class::ALL.iter().map(|class| *class as u8).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7]);
    for number in 0..=u8::MAX {
        let class = Class::try_from(number);
        assert_eq!(
            class
                .map(|class| class as u8)
                .unwrap_or_else(|number| number),
            number
        );
        assert_eq!(class.is_ok(), numbers.contains(&number));
    }
}

#[test]
fn errors_name_what_was_found_and_expected() {
    let good = frame(Class::Report, b"abc");
    assert_eq!(
        error(&good[..5]),
        "the stream ended 5 bytes into a frame of at least 6"
    );
    assert_eq!(
        error(&good[..6]),
        "the stream ended 6 bytes into a frame of 9"
    );
    assert_eq!(
        error(&[&good[..], &good[..8]].concat()),
        "the stream ended 8 bytes into a frame of 9"
    );
    assert_eq!(
        error(&[2, 4, 0, 0, 0, 0]),
        "frame version 2, this side speaks 1: upgrade the older side"
    );
    assert_eq!(
        error(&[1, 9, 0, 0, 0, 0]),
        "frame class 9, this side knows 1 to 7"
    );
    assert_eq!(
        error(&[1, 3, 0, 0, 0, 0]),
        "a Lease frame on a Report stream"
    );
    assert_eq!(
        error(&[1, 4, 0xff, 0xff, 0xff, 0xff]),
        "a Report frame of 4294967295 bytes, expected at most 65536"
    );
}

#[test]
fn a_payload_beyond_the_limit_is_refused_on_both_sides() {
    let limit = Class::Control.payload_max();
    let mut writer = FrameWriter::new((), Class::Control);
    writer.push(b"before").unwrap();
    let pending = writer.pending();
    let error = writer
        .push(&vec![0; limit + 1])
        .expect_err("too long")
        .to_string();
    assert_eq!(
        error,
        "a payload of 65537 bytes, Control frames take at most 65536"
    );
    assert_eq!(writer.pending(), pending, "what was before it is untouched");
    writer.push(&vec![0; limit]).unwrap();
    let frames = read_all(Class::Control, &writer.buffer).unwrap();
    assert_eq!(frames.iter().map(Vec::len).collect::<Vec<_>>(), [6, limit]);

    let mut reader = FrameReader::new(&writer.buffer[..], Class::Control).with_limit(5);
    let error = reader
        .next()
        .now_or_never()
        .unwrap()
        .expect_err("too long")
        .to_string();
    assert_eq!(error, "a Control frame of 6 bytes, expected at most 5");
}

#[test]
fn a_claimed_length_allocates_one_chunk() {
    let length = u32::try_from(Class::Append.payload_max()).unwrap();
    let mut bytes = vec![FRAME_VERSION, Class::Append as u8];
    bytes.extend(length.to_le_bytes());
    let mut reader = FrameReader::new(&bytes[..], Class::Append);
    assert!(reader.next().now_or_never().unwrap().is_err());
    assert!(
        reader.buffer.capacity() <= 3 * READ_CHUNK,
        "{}",
        reader.buffer.capacity()
    );
}

#[test]
fn a_writer_asks_for_a_flush_when_enough_is_waiting() {
    let mut writer = FrameWriter::new(Vec::new(), Class::Lease);
    let payload = vec![7; 1000];
    let full = loop {
        if let Err(error) = writer.push(&payload) {
            break error;
        }
    };
    assert!(matches!(full, PushError::Full { pending } if pending >= COALESCE_MAX));
    writer.flush().now_or_never().unwrap().unwrap();
    writer.push(&payload).unwrap();
    writer.flush().now_or_never().unwrap().unwrap();
    let frames = read_all(Class::Lease, &writer.sink).unwrap();
    assert!(frames.len() > 250 && frames.iter().all(|frame| *frame == payload));
}

#[test]
fn many_frames_leave_in_one_write() {
    #[derive(Default)]
    struct Counted(Vec<usize>);
    impl AsyncWrite for Counted {
        fn poll_write(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            bytes: &[u8],
        ) -> std::task::Poll<io::Result<usize>> {
            self.0.push(bytes.len());
            std::task::Poll::Ready(Ok(bytes.len()))
        }
        fn poll_flush(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<io::Result<()>> {
            std::task::Poll::Ready(Ok(()))
        }
        fn poll_shutdown(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<io::Result<()>> {
            std::task::Poll::Ready(Ok(()))
        }
    }
    let mut writer = FrameWriter::new(Counted::default(), Class::Lease);
    for number in 0..100_u64 {
        writer.push_value(&number).unwrap();
    }
    writer.flush().now_or_never().unwrap().unwrap();
    writer.flush().now_or_never().unwrap().unwrap();
    assert_eq!(writer.sink.0, [100 * (HEADER + 1)]);
}

fn pair(capacity: usize) -> (FrameWriter<DuplexStream>, FrameReader<DuplexStream>) {
    let (near, far) = duplex(capacity);
    (
        FrameWriter::new(near, Class::Lease),
        FrameReader::accepting(far),
    )
}

#[tokio::test]
async fn an_accepted_stream_learns_its_class_and_keeps_the_frame() {
    let (mut writer, mut reader) = pair(1024);
    assert!(
        reader.class().now_or_never().is_none(),
        "nothing has arrived"
    );
    writer.push(b"first").unwrap();
    writer.flush().await.unwrap();
    assert_eq!(reader.class().await.unwrap(), Some(Class::Lease));
    assert_eq!(reader.next().await.unwrap(), Some(&b"first"[..]));
    drop(writer);
    assert_eq!(reader.next().await.unwrap(), None);
    let (writer, mut reader) = pair(1024);
    drop(writer);
    assert_eq!(reader.class().await.unwrap(), None);
}

#[tokio::test]
async fn a_cancelled_flush_goes_on_where_it_was() {
    let (mut writer, mut reader) = pair(10);
    let payloads = [vec![1; 33], vec![2; 7], vec![], vec![3; 100]];
    for payload in &payloads {
        writer.push(payload).unwrap();
    }
    let mut received = Vec::new();
    // Each round polls each end once and drops its future: the pipe of 10 bytes stops both often.
    for _ in 0..1000 {
        let _ = writer.flush().now_or_never();
        if let Some(next) = reader.next().now_or_never() {
            received.push(next.unwrap().unwrap().to_vec());
        }
    }
    assert_eq!(received, payloads);
    writer.flush().await.unwrap();
    assert_eq!(writer.pending(), 0);
}

#[tokio::test]
async fn a_large_burst_is_not_kept() {
    let (near, far) = duplex(usize::MAX >> 8);
    let mut writer = FrameWriter::new(near, Class::Append);
    let mut reader = FrameReader::new(far, Class::Append);
    writer.push(&vec![0; Class::Append.payload_max()]).unwrap();
    writer.flush().await.unwrap();
    assert!(writer.buffer.capacity() <= RETAIN_MAX);
    assert!(reader.next().await.unwrap().is_some());
    drop(writer);
    assert!(reader.next().await.unwrap().is_none());
    assert!(reader.buffer.capacity() <= RETAIN_MAX + READ_CHUNK);
}

proptest! {
    /// Whatever the pieces in which bytes arrive, and however often a read is given up in between.
    #[test]
    fn pieces_and_cancelled_reads_change_nothing(
        payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..8),
        pieces in prop::collection::vec(1..64_usize, 1..20),
    ) {
        let bytes: Vec<u8> =
            payloads.iter().flat_map(|payload| frame(Class::Report, payload)).collect();
        let (mut near, far) = duplex(1 << 20);
        let mut reader = FrameReader::new(far, Class::Report);
        let mut received = Vec::new();
        let (mut sent, mut pieces) = (0, pieces.into_iter().cycle());
        while sent < bytes.len() {
            let piece = pieces.next().unwrap().min(bytes.len() - sent);
            near.write_all(&bytes[sent..sent + piece]).now_or_never().unwrap().unwrap();
            sent += piece;
            while let Some(next) = reader.next().now_or_never() {
                received.push(next.unwrap().unwrap().to_vec());
            }
        }
        drop(near);
        prop_assert!(reader.next().now_or_never().unwrap().unwrap().is_none());
        prop_assert_eq!(received, payloads);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = read_all(Class::Report, &bytes);
    }

    #[test]
    fn every_cut_is_an_error_or_a_frame_boundary(
        payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..30), 1..5),
        at in any::<prop::sample::Index>(),
    ) {
        let frames: Vec<Vec<u8>> =
            payloads.iter().map(|payload| frame(Class::Report, payload)).collect();
        let bytes = frames.concat();
        let cut = at.index(bytes.len());
        let boundary = (0..=frames.len()).find(|n| frames[..*n].concat().len() == cut);
        match read_all(Class::Report, &bytes[..cut]) {
            Ok(read) => prop_assert_eq!(Some(read.len()), boundary),
            Err(FrameReadError::Truncated { .. }) => prop_assert_eq!(boundary, None),
            Err(other) => prop_assert!(false, "{}", other),
        }
    }
}
