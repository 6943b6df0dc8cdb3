//! The proxy between plain sockets. What a [`Line`](super::Line) decides is tested beside it; here is what needs sockets.

use std::time::Duration;

use super::*;

/// How long a test waits for what must come before it fails.
const DEADLINE: Duration = Duration::from_secs(20);

fn loopback() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

/// A client, a target and a proxy between them.
struct Setting {
    client: UdpSocket,
    target: UdpSocket,
    proxy: Proxy,
}

async fn client_of(proxy: &Proxy) -> UdpSocket {
    let client = UdpSocket::bind(loopback()).await.unwrap();
    client.connect(proxy.address()).await.unwrap();
    client
}

async fn setting(seed: u64) -> Setting {
    let target = UdpSocket::bind(loopback()).await.unwrap();
    let proxy = Proxy::start(loopback(), target.local_addr().unwrap(), seed)
        .await
        .unwrap();
    Setting {
        client: client_of(&proxy).await,
        target,
        proxy,
    }
}

/// The next datagram, which must come, and whom it is from.
async fn next(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 64];
    let received = tokio::time::timeout(DEADLINE, socket.recv_from(&mut buffer)).await;
    let (length, from) = received.expect("a datagram before the deadline").unwrap();
    (buffer[..length].to_vec(), from)
}

/// Waits until `holds`, looking again whenever the others have had a turn.
async fn until(what: &str, holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, wait)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}

/// Sends the numbers 0 to 99 through a link with these faults; what arrives, in its order.
async fn hundred(seed: u64, faults: Faults) -> Vec<u8> {
    let Setting {
        client,
        target,
        proxy,
    } = setting(seed).await;
    proxy.set(Direction::Out, faults);
    for byte in 0..100 {
        client.send(&[byte]).await.unwrap();
    }
    until("all have had their fate", || {
        let counts = proxy.counts(Direction::Out);
        counts.arrived == 100 && counts.forwarded + counts.lost == 100 + counts.duplicated
    })
    .await;
    let mut arrived = Vec::new();
    for _ in 0..proxy.counts(Direction::Out).forwarded {
        arrived.push(next(&target).await.0[0]);
    }
    arrived
}

#[tokio::test]
async fn loss_has_the_seeds_pattern_each_time() {
    let loss = Faults {
        loss: Chance::percent(30),
        ..Faults::default()
    };
    let first = hundred(42, loss).await;
    assert!((55..85).contains(&first.len()), "{} of 100", first.len());
    assert_eq!(hundred(42, loss).await, first);
    assert_ne!(hundred(43, loss).await, first);
}

#[tokio::test]
async fn reordering_inverts_and_loses_nothing() {
    let faults = Faults {
        reordering: Chance::ALWAYS,
        ..Faults::default()
    };
    let mut arrived = hundred(1, faults).await;
    // On a machine that stands still for HOLD_MAX a pair may keep its order; all of them do not.
    let inverted = arrived.windows(2).filter(|pair| pair[0] > pair[1]).count();
    assert!(inverted > 0, "{arrived:?}");
    arrived.sort_unstable();
    assert_eq!(arrived, (0..100).collect::<Vec<_>>());
}

#[tokio::test]
async fn duplicates_are_sent() {
    let arrived = hundred(
        1,
        Faults {
            duplication: Chance::ALWAYS,
            ..Faults::default()
        },
    )
    .await;
    assert_eq!(
        arrived,
        (0..100).flat_map(|byte| [byte, byte]).collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn a_delayed_datagram_comes() {
    let Setting {
        client,
        target,
        proxy,
    } = setting(1).await;
    let slow = Faults {
        delay: Duration::from_millis(30),
        ..Faults::default()
    };
    proxy.set(Direction::Out, slow);
    let sent = Instant::now();
    client.send(b"slow").await.unwrap();
    assert_eq!(next(&target).await.0, b"slow");
    // Never early, whatever the machine's load; how late is no matter here.
    assert!(sent.elapsed() >= slow.delay);
}

#[tokio::test]
async fn a_cut_passes_nothing_and_healing_passes_the_next() {
    let Setting {
        client,
        target,
        proxy,
    } = setting(1).await;
    client.send(b"before").await.unwrap();
    let (before, from) = next(&target).await;
    assert_eq!(before, b"before");

    proxy.cut_both();
    for _ in 0..10 {
        client.send(b"cut").await.unwrap();
        target.send_to(b"cut", from).await.unwrap();
    }
    until("all are cut", || {
        DIRECTIONS.iter().all(|way| proxy.counts(*way).cut == 10)
    })
    .await;

    proxy.heal();
    client.send(b"after").await.unwrap();
    assert_eq!(next(&target).await, (b"after".to_vec(), from));
    target.send_to(b"answer", from).await.unwrap();
    assert_eq!(next(&client).await, (b"answer".to_vec(), proxy.address()));
}

#[tokio::test]
async fn a_one_way_cut_passes_the_other_way() {
    let Setting {
        client,
        target,
        proxy,
    } = setting(1).await;
    proxy.cut(Direction::Back);
    client.send(b"request").await.unwrap();
    let (request, from) = next(&target).await;
    assert_eq!(request, b"request");
    target.send_to(b"lost answer", from).await.unwrap();
    until("the answer is cut", || {
        proxy.counts(Direction::Back).cut == 1
    })
    .await;
    assert!(!proxy.faults(Direction::Out).cut);

    proxy.heal();
    target.send_to(b"answer", from).await.unwrap();
    assert_eq!(next(&client).await.0, b"answer");
    assert_eq!(proxy.counts(Direction::Back).forwarded, 1);
}

#[tokio::test]
async fn healing_leaves_the_other_faults() {
    let Setting { proxy, .. } = setting(1).await;
    let loss = Faults {
        loss: Chance::percent(5),
        ..Faults::default()
    };
    proxy.set(Direction::Back, loss);
    proxy.cut(Direction::Back);
    assert_eq!(proxy.faults(Direction::Back), Faults { cut: true, ..loss });
    proxy.heal();
    assert_eq!(proxy.faults(Direction::Back), loss);
}

#[tokio::test]
async fn each_client_has_a_way_of_its_own() {
    let Setting {
        client,
        target,
        proxy,
    } = setting(1).await;
    let other = client_of(&proxy).await;
    client.send(b"a").await.unwrap();
    let (_, from_a) = next(&target).await;
    other.send(b"b").await.unwrap();
    let (_, from_b) = next(&target).await;
    assert_ne!(from_a, from_b);
    target.send_to(b"to b", from_b).await.unwrap();
    target.send_to(b"to a", from_a).await.unwrap();
    assert_eq!(next(&client).await.0, b"to a");
    assert_eq!(next(&other).await.0, b"to b");
}

#[tokio::test]
async fn one_client_is_cut_off_both_ways_and_another_is_not() {
    let Setting {
        client,
        target,
        proxy,
    } = setting(1).await;
    let other = client_of(&proxy).await;
    client.send(b"a").await.unwrap();
    let way = next(&target).await.1;
    proxy.cut_off(client.local_addr().unwrap());
    client.send(b"dropped").await.unwrap();
    target.send_to(b"dropped", way).await.unwrap();
    other.send(b"b").await.unwrap();
    assert_eq!(next(&target).await.0, b"b");
    until("both are dropped", || {
        proxy.counts(Direction::Out).cut == 1 && proxy.counts(Direction::Back).cut == 1
    })
    .await;
    proxy.heal();
    client.send(b"c").await.unwrap();
    assert_eq!(next(&target).await.0, b"c");
    target.send_to(b"d", way).await.unwrap();
    assert_eq!(next(&client).await.0, b"d");
}

#[tokio::test]
async fn a_target_that_was_down_is_reached_once_it_is_up() {
    let vacant = UdpSocket::bind(loopback()).await.unwrap();
    let address = vacant.local_addr().unwrap();
    drop(vacant);
    let proxy = Proxy::start(loopback(), address, 1).await.unwrap();
    let client = client_of(&proxy).await;
    client.send(b"to nobody").await.unwrap();
    until("it is sent on", || {
        proxy.counts(Direction::Out).forwarded == 1
    })
    .await;

    let target = UdpSocket::bind(address).await.unwrap();
    // The first one after may be spent on reporting that the one before was refused.
    client.send(b"one").await.unwrap();
    client.send(b"two").await.unwrap();
    let (first, _) = next(&target).await;
    assert!(first == b"one" || first == b"two");
}

#[tokio::test]
async fn more_clients_than_have_room_take_the_place_of_the_silent() {
    let Setting { target, proxy, .. } = setting(1).await;
    // All are kept open, or the system would give the same port again.
    let mut clients = Vec::new();
    for _ in 0..=CLIENTS_MAX {
        let client = client_of(&proxy).await;
        client.send(b"x").await.unwrap();
        clients.push((client, next(&target).await.1));
    }
    let (first, from) = clients.remove(0);
    target.send_to(b"to the forgotten", from).await.unwrap();
    first.send(b"again").await.unwrap();
    let (again, anew) = next(&target).await;
    assert_eq!(again, b"again");
    assert_ne!(anew, from);
    target.send_to(b"answer", anew).await.unwrap();
    assert_eq!(
        next(&first).await.0,
        b"answer",
        "nothing comes by the old way"
    );
}

#[tokio::test]
async fn dropping_the_proxy_frees_its_port() {
    let Setting {
        client,
        proxy,
        target,
    } = setting(1).await;
    client.send(b"x").await.unwrap();
    next(&target).await;
    let address = proxy.address();
    drop(proxy);
    let bind = async {
        while UdpSocket::bind(address).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, bind)
        .await
        .expect("the port is free again");
}
