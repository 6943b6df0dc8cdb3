//! Who becomes a connection, and what both sides learn where somebody does not.

use crate::{ANY, Certificates, meet, soon};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};
use tollgate_core::ids::NodeId;
use tollgate_wire::certs::{Authority, Validity};
use tollgate_wire::identity::{PeerIdentity, Role, any_node_server_name};
use tollgate_wire::quic::{AcceptError, DialError, Endpoint, Protocol};
use tollgate_wire::tls::Tls;

const OTHER_AUTHORITY: &str = "not issued by an authority in the CA file of this side";

#[tokio::test]
async fn both_sides_know_each_other_and_the_protocol() {
    let certificates = Certificates::of("c");
    let node = certificates.node("1");
    let (dialled, accepted) = meet(&certificates.edge("a"), &node, Protocol::Edge).await;
    let (dialled, accepted) = (dialled.unwrap(), accepted.unwrap());
    assert_eq!(dialled.peer(), &PeerIdentity::node("c", NodeId(1)).unwrap());
    assert_eq!(accepted.peer().to_string(), "tollgate://c/edge/a");
    assert_eq!(
        (dialled.protocol(), accepted.protocol()),
        (Protocol::Edge, Protocol::Edge)
    );

    let (dialled, accepted) = meet(&certificates.node("2"), &node, Protocol::Raft).await;
    assert_eq!(accepted.unwrap().peer().node_id(), Some(NodeId(2)));
    assert_eq!(dialled.unwrap().protocol().alpn(), "tollgate-raft/1");
}

#[tokio::test]
async fn an_edge_is_refused_on_the_protocol_of_nodes() {
    let certificates = Certificates::of("c");
    let (node, edge) = (certificates.node("1"), certificates.edge("a"));
    let (dialled, accepted) = meet(&edge, &node, Protocol::Raft).await;
    let expected = "tollgate://c/edge/a";
    let error = dialled.expect_err("not a node");
    assert!(
        matches!(&error, DialError::Refused { own, reason, .. }
            if own.to_string() == expected
            && reason.contains("may not speak tollgate-raft/1: that is for the role node")),
        "{error}"
    );
    assert!(
        matches!(accepted, Err(AcceptError::Role { peer, .. }) if peer.to_string() == expected)
    );
}

#[tokio::test]
async fn a_version_that_does_not_fit_is_named_on_both_sides() {
    let certificates = Certificates::of("c");
    let tls = certificates.tls(Role::Node, "1");
    let node = Endpoint::listen(ANY, &tls, &[Protocol::Raft]).unwrap();
    let (dialled, accepted) = meet(&certificates.edge("a"), &node, Protocol::Edge).await;
    let error = dialled.expect_err("no version in common");
    assert!(
        matches!(&error, DialError::Version { offered: Protocol::Edge, spoken, .. } if spoken == "tollgate-raft/1"),
        "{error}"
    );
    assert!(
        error.to_string().ends_with(
            "with tollgate-edge/1, but it speaks tollgate-raft/1: upgrade the older side"
        ),
        "{error}"
    );
    assert!(
        matches!(accepted, Err(AcceptError::Version { spoken, .. }) if spoken == "tollgate-raft/1")
    );
}

#[tokio::test]
async fn another_authority_is_not_believed() {
    let (ours, theirs) = (Certificates::of("c"), Certificates::of("c"));
    let (dialled, accepted) = meet(&theirs.edge("a"), &ours.node("1"), Protocol::Edge).await;
    let error = dialled.expect_err("not ours");
    assert!(
        matches!(&error, DialError::Untrusted { reason, .. } if reason.contains(OTHER_AUTHORITY)),
        "{error}"
    );
    assert!(matches!(accepted, Err(AcceptError::Handshake { .. })));
}

#[tokio::test]
async fn another_authority_is_not_let_in() {
    let (ours, theirs) = (Certificates::of("c"), Certificates::of("c"));
    // It believes us, as one that stole our `ca.pem` would; its own certificate does not help it.
    let stolen = theirs.files(Role::Edge, "a", Validity::days(1));
    let tls = Tls::load(stolen.clone(), Role::Edge).unwrap();
    let both = [
        &stolen.ca,
        &ours.files(Role::Edge, "x", Validity::days(1)).ca,
    ]
    .map(|ca| std::fs::read_to_string(ca).unwrap());
    std::fs::write(&stolen.ca, both.concat()).unwrap();
    tls.reload().unwrap();
    let edge = Endpoint::dialling(&tls).unwrap();
    let (dialled, accepted) = meet(&edge, &ours.node("1"), Protocol::Edge).await;
    let error = dialled.expect_err("not ours");
    assert!(
        matches!(&error, DialError::Refused { reason, .. } if reason.contains(OTHER_AUTHORITY)),
        "{error}"
    );
    assert!(matches!(accepted, Err(AcceptError::Handshake { .. })));
}

#[tokio::test]
async fn another_cluster_under_an_authority_we_believe_is_named() {
    let (ours, theirs) = (Certificates::of("ours"), Certificates::of("theirs"));
    let stolen = theirs.files(Role::Edge, "a", Validity::days(1));
    let (edge_tls, node_files) = (
        Tls::load(stolen.clone(), Role::Edge).unwrap(),
        ours.files(Role::Node, "1", Validity::days(1)),
    );
    let node_tls = Tls::load(node_files.clone(), Role::Node).unwrap();
    let both = [&stolen.ca, &node_files.ca]
        .map(|ca| std::fs::read_to_string(ca).unwrap())
        .concat();
    for (tls, files) in [(&edge_tls, &stolen), (&node_tls, &node_files)] {
        std::fs::write(&files.ca, &both).unwrap();
        tls.reload().unwrap();
    }
    let node = Endpoint::listen(ANY, &node_tls, &Protocol::ALL).unwrap();
    let edge = Endpoint::dialling(&edge_tls).unwrap();
    let (dialled, accepted) = meet(&edge, &node, Protocol::Edge).await;
    // The edge dials a node of its own cluster, which is not who answers.
    let error = dialled.expect_err("another cluster").to_string();
    assert!(
        error.contains("dialled as node-1.theirs.tollgate"),
        "{error}"
    );
    assert!(error.contains("node-1.ours.tollgate"), "{error}");
    assert!(accepted.is_err());
}

#[tokio::test]
async fn another_node_at_the_address_is_not_taken_for_the_one_dialled() {
    let certificates = Certificates::of("c");
    let (dialled, _) = meet(
        &certificates.edge("a"),
        &certificates.node("2"),
        Protocol::Edge,
    )
    .await;
    let error = dialled.expect_err("node 2 is not node 1").to_string();
    assert!(
        error.contains("dialled as node-1.c.tollgate") && error.contains("node-2.c.tollgate"),
        "{error}"
    );
}

#[tokio::test]
async fn an_expired_certificate_is_refused_on_either_side() {
    let certificates = Certificates::of("c");
    let second = Duration::from_secs(1);
    let issue = |length: u32| {
        let now = SystemTime::now();
        let short = Validity {
            not_before: now - 60 * second,
            not_after: now + length * second,
        };
        let load = |role, name| Tls::load(certificates.files(role, name, short), role).ok();
        load(Role::Edge, "short").zip(load(Role::Node, "1"))
    };
    // Long enough to be loaded, also where that is slow.
    let (edge_tls, node_tls) = [2, 8, 32]
        .into_iter()
        .find_map(issue)
        .expect("loaded in 32 s");
    // A condition, not a pause: until the certificates really are expired.
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    soon(async {
        while SystemTime::now() < node_tls.expires() + second {
            tick.tick().await;
        }
    })
    .await;

    let old_node = Endpoint::listen(ANY, &node_tls, &Protocol::ALL).unwrap();
    let (dialled, _) = meet(&certificates.edge("a"), &old_node, Protocol::Edge).await;
    let error = dialled.expect_err("expired");
    assert!(
        matches!(&error, DialError::Untrusted { reason, .. } if reason.contains("certificate expired")),
        "{error}"
    );

    let node = certificates.node("1");
    let old_edge = Endpoint::dialling(&edge_tls).unwrap();
    let (dialled, accepted) = meet(&old_edge, &node, Protocol::Edge).await;
    let error = dialled.expect_err("expired");
    assert!(
        matches!(&error, DialError::Refused { reason, .. } if reason.contains("certificate expired")),
        "{error}"
    );
    assert!(matches!(accepted, Err(AcceptError::Handshake { .. })));
}

#[tokio::test]
async fn new_connections_use_reloaded_certificates_and_old_ones_stay() {
    let certificates = Certificates::of("c");
    let tls = certificates.tls(Role::Node, "1");
    let node = Endpoint::listen(ANY, &tls, &Protocol::ALL).unwrap();
    let old_edge = certificates.edge("a");
    let (old, old_accepted) = meet(&old_edge, &node, Protocol::Edge).await;
    let (old, _old_accepted) = (old.unwrap(), old_accepted.unwrap());

    // Another authority takes over, in the same files: what a rotation leaves in the end.
    let next = Authority::create(certificates.home.path(), "c", Validity::days(1), true).unwrap();
    next.issue(
        certificates.home.path(),
        (Role::Node, "1"),
        &[],
        Validity::days(1),
        true,
    )
    .unwrap();
    let next = Certificates {
        home: tempfile::tempdir().unwrap(),
        authority: next,
    };
    let new_edge = next.edge("b");
    let (before, _) = meet(&new_edge, &node, Protocol::Edge).await;
    assert!(
        matches!(before, Err(DialError::Untrusted { .. })),
        "not reloaded yet"
    );
    tls.reload().unwrap();

    let (dialled, accepted) = meet(&new_edge, &node, Protocol::Edge).await;
    assert_eq!(accepted.unwrap().peer().name().as_str(), "b");
    assert!(dialled.is_ok());
    let (refused, _) = meet(&old_edge, &node, Protocol::Edge).await;
    assert!(
        matches!(refused, Err(DialError::Untrusted { .. })),
        "the old authority is gone"
    );
    assert!(old.close_reason().is_none(), "what stood stays");
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let certificates = Certificates::of("c");
    let address = certificates.node("1").local_addr().unwrap();
    let taken = std::net::UdpSocket::bind(ANY).unwrap();
    let address = SocketAddr::new(address.ip(), taken.local_addr().unwrap().port());
    let error = Endpoint::listen(address, &certificates.tls(Role::Node, "1"), &Protocol::ALL)
        .expect_err("in use")
        .to_string();
    assert!(
        error.starts_with(&format!("cannot listen on UDP {address}: ")),
        "{error}"
    );
    assert!(
        error.ends_with("another process has it, name another port"),
        "{error}"
    );
}

/// The same certificates serve HTTPS for administration: TLS over TCP, client certificates, one reload.
#[tokio::test]
async fn the_same_certificates_serve_tls_over_tcp() {
    let certificates = Certificates::of("c");
    let (node, admin) = (
        certificates.tls(Role::Node, "1"),
        certificates.tls(Role::Admin, "ann"),
    );
    let acceptor = tokio_rustls::TlsAcceptor::from(node.server_config(&["h2", "http/1.1"]));
    let connector = tokio_rustls::TlsConnector::from(admin.client_config(&["http/1.1"]));
    let (near, far) = tokio::io::duplex(64 * 1024);
    let name = any_node_server_name("c").try_into().unwrap();
    let (client, server) =
        soon(async { tokio::join!(connector.connect(name, near), acceptor.accept(far)) }).await;
    let (client, server) = (client.unwrap(), server.unwrap());
    let shown = server.get_ref().1.peer_certificates().unwrap();
    let peer = PeerIdentity::from_certificate(&shown[0]).unwrap();
    assert_eq!(peer.to_string(), "tollgate://c/admin/ann");
    assert_eq!(client.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));

    // An edge's certificate names no server: nobody serves administration with it.
    let edge = certificates.tls(Role::Edge, "a");
    let acceptor = tokio_rustls::TlsAcceptor::from(edge.server_config(&["http/1.1"]));
    let (near, far) = tokio::io::duplex(64 * 1024);
    let name = any_node_server_name("c").try_into().unwrap();
    let (client, _) =
        soon(async { tokio::join!(connector.connect(name, near), acceptor.accept(far)) }).await;
    assert!(client.is_err());
}
