//! Framed streams and requests: whole, broken, given up.

use crate::{DEADLINE, accept_framed, edge_and_node, soon};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tollgate_wire::frame::{Class, FrameReadError};
use tollgate_wire::quic::{Accepted, CloseCode, RequestError};

#[tokio::test]
async fn frames_travel_both_ways_on_streams_of_their_class() {
    let (edge, node, _endpoints) = edge_and_node().await;
    let mut ours = soon(edge.open_framed(Class::Lease)).await.unwrap();
    for number in 0..100_u64 {
        ours.writer.push_value(&number).unwrap();
    }
    soon(ours.writer.flush()).await.unwrap();
    let (class, mut theirs) = soon(accept_framed(&node)).await.unwrap();
    assert_eq!(class, Class::Lease);
    for number in 0..100_u64 {
        let frame = soon(theirs.reader.next()).await.unwrap().unwrap();
        assert_eq!(tollgate_wire::codec::decode::<u64, 16>(frame), Ok(number));
    }
    theirs.writer.push(b"answer").unwrap();
    soon(theirs.writer.flush()).await.unwrap();
    assert!(theirs.writer.into_inner().finish());
    assert_eq!(
        soon(ours.reader.next()).await.unwrap(),
        Some(&b"answer"[..])
    );
    assert_eq!(
        soon(ours.reader.next()).await.unwrap(),
        None,
        "finished, so a clean end"
    );
}

#[tokio::test]
async fn broken_frames_are_named() {
    let (edge, node, _endpoints) = edge_and_node().await;
    for (bytes, expected) in [
        (
            &[1, 3, 0xff, 0xff, 0xff, 0xff][..],
            "a Lease frame of 4294967295 bytes, expected at most 524288",
        ),
        (
            &[9, 3, 0, 0, 0, 0],
            "frame version 9, this side speaks 1: upgrade the older side",
        ),
        (
            &[1, 77, 0, 0, 0, 0],
            "frame class 77, this side knows 1 to 7",
        ),
        (
            &[1, 3, 9, 0, 0, 0, b'x'],
            "the stream ended 7 bytes into a frame of 15",
        ),
    ] {
        let mut ours = soon(edge.open_framed(Class::Lease)).await.unwrap();
        soon(ours.writer.get_mut().write_all(bytes)).await.unwrap();
        assert!(ours.writer.into_inner().finish());
        let read = async {
            let (_, mut framed) = accept_framed(&node).await?;
            framed
                .reader
                .next()
                .await
                .map(|frame| frame.map(<[u8]>::to_vec))
        };
        assert_eq!(soon(read).await.expect_err("broken").to_string(), expected);
    }
}

#[tokio::test]
async fn a_writer_dropped_in_the_middle_resets_and_never_ends_cleanly() {
    let (edge, node, _endpoints) = edge_and_node().await;
    let mut ours = soon(edge.open_framed(Class::Append)).await.unwrap();
    ours.writer.push(b"whole").unwrap();
    soon(ours.writer.flush()).await.unwrap();
    let (_, mut theirs) = soon(accept_framed(&node)).await.unwrap();
    assert_eq!(
        soon(theirs.reader.next()).await.unwrap(),
        Some(&b"whole"[..])
    );
    // Half of the next frame leaves, then the task is cancelled.
    soon(ours.writer.get_mut().write_all(&[1, 5, 9, 0, 0, 0, b'h']))
        .await
        .unwrap();
    drop(ours);
    let error = soon(theirs.reader.next()).await.expect_err("given up");
    assert!(
        matches!(&error, FrameReadError::Io(io) if io.kind() == std::io::ErrorKind::ConnectionReset),
        "{error}"
    );
}

#[tokio::test]
async fn requests_are_answered_on_streams_of_their_own() {
    let (edge, node, _endpoints) = edge_and_node().await;
    let server = tokio::spawn(async move {
        while let Ok(opening) = node.accept().await {
            match opening.identify().await.expect("a request") {
                Accepted::Request(question) if question.payload() == b"drop" => {}
                Accepted::Request(question) => {
                    let answer = [question.payload(), b"!"].concat();
                    question.answer(&answer).await.expect("somebody waits");
                }
                Accepted::Framed(class, _) => panic!("a {class:?} stream"),
            }
        }
    });
    let ask = |text: &'static str, limit| edge.request(text.as_bytes(), limit, DEADLINE);
    let (one, two) = soon(async { tokio::join!(ask("one", 10), ask("two", 10)) }).await;
    assert_eq!(
        (one.unwrap(), two.unwrap()),
        (b"one!".to_vec(), b"two!".to_vec())
    );

    let error = soon(ask("long", 4))
        .await
        .expect_err("beyond the limit")
        .to_string();
    assert!(
        error.ends_with("a Request frame of 5 bytes, expected at most 4"),
        "{error}"
    );
    let error = soon(ask("drop", 10)).await.expect_err("dropped");
    assert!(
        matches!(error, RequestError::Broken(FrameReadError::Io(_))),
        "{error}"
    );
    let long = vec![0; Class::Request.payload_max() + 1];
    let error = soon(edge.request(&long, 10, DEADLINE))
        .await
        .expect_err("too long");
    assert!(matches!(error, RequestError::Push(_)), "{error}");

    edge.close(CloseCode::Done, "bye");
    let error = soon(ask("late", 10)).await.expect_err("closed");
    assert!(matches!(error, RequestError::NotSent(_)), "{error}");
    soon(server).await.unwrap();
}

#[tokio::test]
async fn a_request_without_an_answer_ends_at_its_deadline_and_its_stream_is_gone() {
    let (edge, node, _endpoints) = edge_and_node().await;
    let error = soon(edge.request(b"?", 10, Duration::from_millis(20)))
        .await
        .expect_err("no answer");
    assert!(matches!(error, RequestError::Deadline(_)), "{error}");
    let Accepted::Request(question) = soon(soon(node.accept()).await.unwrap().identify())
        .await
        .unwrap()
    else {
        panic!("a request was sent");
    };
    // The asker has left and says so; what it says next arrives behind that.
    let mut ours = soon(edge.open_framed(Class::Control)).await.unwrap();
    ours.writer.push(b"next").unwrap();
    soon(ours.writer.flush()).await.unwrap();
    let (_, mut theirs) = soon(accept_framed(&node)).await.unwrap();
    assert!(soon(theirs.reader.next()).await.unwrap().is_some());
    let error = soon(question.answer(b"late"))
        .await
        .expect_err("nobody listens");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
}
