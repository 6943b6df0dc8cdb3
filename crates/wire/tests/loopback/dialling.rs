//! One connection per peer: shared, made again, not in a tight loop; and peers that die.

use crate::{ANY, Certificates, DEADLINE, accept_framed, soon};
use tokio::io::AsyncWriteExt;
use tollgate_core::ids::NodeId;
use tollgate_wire::frame::{Class, FrameReadError};
use tollgate_wire::identity::Role;
use tollgate_wire::quic::{CloseCode, DialError, Dialer, Endpoint, Protocol};

#[tokio::test]
async fn a_dialler_shares_one_connection_and_one_dial() {
    let certificates = Certificates::of("c");
    let node = certificates.node("1");
    let address = node.local_addr().unwrap().to_string();
    let (accepted, mut arrivals) = tokio::sync::mpsc::unbounded_channel();
    let server = node.clone();
    tokio::spawn(async move {
        while let Some(incoming) = server.accept().await {
            let _ = accepted.send(incoming.establish().await.expect("an edge"));
        }
    });
    let dialer = Dialer::new(certificates.edge("a"), NodeId(1), address, Protocol::Edge);
    assert!(dialer.open_connection().is_none());
    // The first asker gives up at once; its dial goes on for the others.
    assert!(futures::FutureExt::now_or_never(dialer.connection()).is_none());
    let (one, two) = soon(async { tokio::join!(dialer.connection(), dialer.connection()) }).await;
    let (one, _two) = (one.unwrap(), two.unwrap());
    assert!(dialer.open_connection().is_some());
    let first = soon(arrivals.recv()).await.unwrap();
    assert!(arrivals.try_recv().is_err(), "one dial for three askers");

    // Closed by the node: the next asker gets another connection, once the back-off allows.
    first.close(CloseCode::Hello, "another incarnation");
    soon(one.closed()).await;
    assert!(dialer.open_connection().is_none());
    let again = soon(async {
        loop {
            match dialer.connection().await {
                Ok(connection) => break connection,
                Err(DialError::BackingOff { retry_in, last }) => {
                    assert!(last.to_string().contains("another incarnation"), "{last}");
                    tokio::time::sleep(retry_in).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    })
    .await;
    assert!(again.close_reason().is_none());
    assert!(soon(arrivals.recv()).await.is_some());
}

#[tokio::test]
async fn a_peer_that_always_closes_is_not_dialled_in_a_tight_loop() {
    let certificates = Certificates::of("c");
    let node = certificates.node("1");
    let address = node.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Some(incoming) = node.accept().await {
            let connection = incoming.establish().await.expect("an edge");
            // Only after its first frame, as with a `Hello` that does not fit.
            let _ = accept_framed(&connection).await;
            connection.close(CloseCode::Hello, "another cluster");
        }
    });
    let dialer = Dialer::new(certificates.edge("a"), NodeId(1), address, Protocol::Edge);
    let last = soon(async {
        loop {
            match dialer.connection().await {
                Ok(connection) => {
                    let mut hello = connection.open_framed(Class::Control).await.unwrap();
                    hello.writer.push(b"hello").unwrap();
                    hello.writer.flush().await.unwrap();
                    connection.closed().await;
                }
                Err(DialError::BackingOff { last, .. }) => break last,
                Err(error) => panic!("{error}"),
            }
        }
    })
    .await;
    assert!(last.to_string().contains("another cluster"), "{last}");
}

#[tokio::test]
async fn an_address_without_a_listener_is_an_error_and_then_a_back_off() {
    let certificates = Certificates::of("c");
    let dialer = Dialer::new(
        certificates.edge("a"),
        NodeId(1),
        "no such host:1".into(),
        Protocol::Edge,
    );
    let error = soon(dialer.connection()).await.expect_err("no address");
    assert!(
        matches!(&error, DialError::Resolve { address, .. } if address == "no such host:1"),
        "{error}"
    );
    // A socket that nobody reads from: silence.
    let silent = std::net::UdpSocket::bind(ANY).unwrap();
    let address = silent.local_addr().unwrap();
    let error = soon(
        certificates
            .edge("a")
            .dial(NodeId(1), address, Protocol::Edge),
    )
    .await;
    assert!(
        matches!(error, Err(DialError::Deadline { .. })),
        "{error:?}"
    );
}

/// A node dies in the middle of a frame and comes back on its port: the edge learns at once, by a
/// stateless reset, and not by the idle time-out.
#[test]
fn a_node_that_died_in_the_middle_of_a_frame_and_came_back_is_noticed() {
    let certificates = Certificates::of("c");
    let node_tls = certificates.tls(Role::Node, "1");
    let runtime = || {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap()
    };
    let (ours, theirs) = (runtime(), runtime());
    let edge = ours.block_on(async { certificates.edge("a") });
    let node = theirs.block_on(async { Endpoint::listen(ANY, &node_tls, &Protocol::ALL).unwrap() });
    let address = node.local_addr().unwrap();
    let serve = theirs.spawn(async move {
        let connection = node.accept().await.unwrap().establish().await.unwrap();
        let mut framed = connection.open_framed(Class::Control).await.unwrap();
        framed
            .writer
            .get_mut()
            .write_all(&[1, 2, 9, 0, 0, 0, b'h'])
            .await
            .unwrap();
        (framed, connection, node)
    });
    let (connection, mut reader) = ours.block_on(soon(async {
        let connection = edge.dial(NodeId(1), address, Protocol::Edge).await.unwrap();
        let (_, framed) = accept_framed(&connection).await.unwrap();
        (connection, framed.reader)
    }));
    // Its tasks are stopped where they are, before anything is dropped: no stream and no connection is
    // closed in words. What it holds is dropped when nobody is left to send for it.
    let held = theirs.block_on(serve).unwrap();
    theirs.shutdown_timeout(DEADLINE);
    drop(held);

    let again = runtime();
    let _node = again.block_on(soon(async {
        loop {
            match Endpoint::listen(address, &node_tls, &Protocol::ALL) {
                Ok(node) => break node,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    }));
    ours.block_on(soon(async {
        let error = reader.next().await.expect_err("half a frame");
        assert!(matches!(error, FrameReadError::Io(_)), "{error}");
        let reason = connection.closed().await.to_string();
        assert_eq!(reason, "reset by peer");
    }));
}
