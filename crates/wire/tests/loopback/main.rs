//! Real endpoints on loopback: who is let in, what breaks, what survives a reload and a restart.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, which clippy does not see as such"
)]

mod admission;
mod dialling;
mod streams;

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use tempfile::TempDir;
use tollgate_core::ids::NodeId;
use tollgate_wire::certs::{Authority, Validity};
use tollgate_wire::frame::{Class, FrameReadError};
use tollgate_wire::identity::Role;
use tollgate_wire::quic::{
    AcceptError, Accepted, Connection, DialError, Endpoint, Framed, Protocol,
};
use tollgate_wire::tls::{Tls, TlsFiles};

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
/// Far longer than anything here takes; only a hang meets it.
const DEADLINE: Duration = Duration::from_secs(30);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future)
        .await
        .expect("must not hang")
}

/// A cluster's authority and the certificates it has issued.
struct Certificates {
    home: TempDir,
    authority: Authority,
}

impl Certificates {
    fn of(cluster: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        let authority = Authority::create(home.path(), cluster, Validity::days(1), false).unwrap();
        Self { home, authority }
    }

    fn files(&self, role: Role, name: &str, validity: Validity) -> TlsFiles {
        self.authority
            .issue(self.home.path(), (role, name), &[], validity, true)
            .unwrap()
    }

    fn tls(&self, role: Role, name: &str) -> Tls {
        Tls::load(self.files(role, name, Validity::days(1)), role).unwrap()
    }

    fn node(&self, name: &str) -> Endpoint {
        Endpoint::listen(ANY, &self.tls(Role::Node, name), &Protocol::ALL).unwrap()
    }

    fn edge(&self, name: &str) -> Endpoint {
        Endpoint::dialling(&self.tls(Role::Edge, name)).unwrap()
    }
}

/// Dials node 1 at `server` and takes the dial there: what each side makes of it.
async fn meet(
    client: &Endpoint,
    server: &Endpoint,
    protocol: Protocol,
) -> (
    Result<Connection, DialError>,
    Result<Connection, AcceptError>,
) {
    let address = server.local_addr().unwrap();
    let accepted = async { server.accept().await.expect("open").establish().await };
    soon(async { tokio::join!(client.dial(NodeId(1), address, protocol), accepted) }).await
}

/// An edge connected to node 1; the endpoints keep it alive.
async fn edge_and_node() -> (Connection, Connection, (Endpoint, Endpoint)) {
    let certificates = Certificates::of("c");
    let (node, edge) = (certificates.node("1"), certificates.edge("a"));
    let (dialled, accepted) = meet(&edge, &node, Protocol::Edge).await;
    (dialled.unwrap(), accepted.unwrap(), (node, edge))
}

async fn accept_framed(connection: &Connection) -> Result<(Class, Framed), FrameReadError> {
    match connection.accept().await.expect("open").identify().await? {
        Accepted::Framed(class, framed) => Ok((class, framed)),
        Accepted::Request(_) => panic!("a request where a stream was expected"),
    }
}
