//! What no edge of ours sends: the connection ends with words, the node goes on.

use super::cluster::Cluster;
use super::edge::Edge;
use tokio::io::AsyncWriteExt;
use tollgate_core::account::Name;
use tollgate_core::ids::{Boot, Incarnation, Seq};
use tollgate_core::message::{EdgeMessage, Hello, Lease, Sender};
use tollgate_wire::frame::{Class, FRAME_VERSION};

fn hello(cluster: &str, incarnation: u64, versions: (u16, u16)) -> EdgeMessage {
    EdgeMessage::Hello(Hello {
        cluster: Name::new(cluster).unwrap(),
        incarnation: Some(Incarnation(incarnation)),
        sender: Sender::Edge { boot: None },
        versions,
    })
}

async fn closed(mut edge: Edge, words: &[&str]) {
    // The rest of the connection may be refused before it was all sent.
    drop(edge.control.writer.flush().await);
    let reason = edge.closed_because().await;
    for word in words {
        assert!(reason.contains(word), "`{word}` in `{reason}`");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hello_that_does_not_fit_names_both_sides() {
    let cluster = Cluster::start().await;
    let mut names = 0..;
    let mut fresh = || format!("stranger-{}", names.next().unwrap());
    for (message, words) in [
        (hello("other", 1, (1, 1)), ["`other`", "`loop`"]),
        (hello("loop", 9, (1, 1)), ["incarnation 9", "incarnation 1"]),
        (hello("loop", 1, (7, 8)), ["versions 7 to 8", "1 to 1"]),
        (
            EdgeMessage::CloseSession { last_seq: Seq(0) },
            ["CloseSession", "expected Hello"],
        ),
    ] {
        let mut edge = cluster.edge_named(&fresh(), 1).await;
        edge.say(&message).await;
        closed(edge, &words).await;
    }
    let mut edge = cluster.edge_named(&fresh(), 1).await;
    edge.hello(None).await;
    edge.greeted().await;
    edge.say(&EdgeMessage::CloseSession { last_seq: Seq(0) })
        .await;
    closed(edge, &["CloseSession on the Control stream"]).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_that_are_none_close_the_connection_and_nothing_else() {
    let cluster = Cluster::start().await;
    let mut bystander = cluster.edge(1).await;
    bystander.open_session(1).await;

    let mut edge = cluster.edge_named("oversized", 1).await;
    let mut header = vec![FRAME_VERSION, Class::Control as u8];
    header.extend_from_slice(&u32::MAX.to_le_bytes());
    edge.control
        .writer
        .get_mut()
        .write_all(&header)
        .await
        .unwrap();
    closed(edge, &["4294967295 bytes", "at most 65536"]).await;

    let mut edge = cluster.edge_named("garbage", 1).await;
    edge.control.writer.push(&[251, 252, 253]).unwrap();
    closed(edge, &["EdgeMessage"]).await;

    let mut edge = cluster.edge_named("tongue", 1).await;
    edge.control
        .writer
        .get_mut()
        .write_all(&[9, 2, 0, 0, 0, 0])
        .await
        .unwrap();
    closed(edge, &["frame version 9"]).await;

    let mut edge = cluster.edge_named("twice", 1).await;
    edge.hello(None).await;
    edge.greeted().await;
    let mut second = edge.connection.open_framed(Class::Control).await.unwrap();
    second.writer.push(b"x").unwrap();
    second.writer.flush().await.unwrap();
    closed(edge, &["a second Control stream"]).await;

    let mut edge = cluster.edge_named("appender", 1).await;
    let mut foreign = edge.connection.open_framed(Class::Append).await.unwrap();
    foreign.writer.push(b"x").unwrap();
    foreign.writer.flush().await.unwrap();
    edge.hello(None).await;
    closed(edge, &["class Append"]).await;

    let mut edge = cluster.edge_named("impostor", 1).await;
    edge.hello(None).await;
    edge.greeted().await;
    edge.open_session(1).await;
    let lease = EdgeMessage::Lease(Lease {
        boot: Boot(9999),
        slots: Vec::new(),
    });
    edge.lease.writer.push_value(&lease).unwrap();
    edge.lease.writer.flush().await.unwrap();
    closed(edge, &["boot 9999"]).await;

    bystander.keepalive().await;
    let metrics = cluster.ask(1, "root", "GET", "/metrics", &[], None).await.1;
    assert!(
        metrics
            .as_str()
            .unwrap()
            .contains("\ntollgate_edge_violations_total 6\n"),
        "{metrics}"
    );
    cluster.stop().await;
}
