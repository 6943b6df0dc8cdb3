//! Three servers, their certificates, and an administrator.

use super::edge::Edge;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;
use tollgate_core::ids::{Boot, NodeId, SessionId, Slot};
use tollgate_node::config::ServerConfig;
use tollgate_node::server::{Server, ServerError};
use tollgate_ports::Ports;
use tollgate_wire::certs::{Authority, Validity};
use tollgate_wire::identity::{Role, any_node_server_name};
use tollgate_wire::tls::Tls;

pub(crate) const NAME: &str = "loop";
/// Far longer than anything here takes; only a hang meets it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);

pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("must not hang: {what}"))
}

/// Asks until the answer is yes.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut ask: impl FnMut() -> F) {
    soon(what, async {
        while !ask().await {
            tokio::time::sleep(PAUSE).await;
        }
    })
    .await;
}

pub(crate) struct Cluster {
    pub(crate) home: TempDir,
    authority: Authority,
    nodes: BTreeMap<u64, Server>,
    ports: Ports,
}

pub(crate) fn logs() {
    let filter = tracing_subscriber::EnvFilter::from_env("TOLLGATE_LOG");
    drop(
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_test_writer()
            .try_init(),
    );
}

impl Cluster {
    /// Certificates and ports; nothing runs.
    pub(crate) fn prepared() -> Self {
        logs();
        let home = tempfile::tempdir().unwrap();
        let authority = Authority::create(home.path(), NAME, Validity::days(1), false).unwrap();
        let this = Self {
            home,
            authority,
            nodes: BTreeMap::new(),
            ports: Ports::claim(3).unwrap(),
        };
        for node in 1..=3 {
            this.issue(Role::Node, &node.to_string());
        }
        this.issue(Role::Admin, "root");
        this.issue(Role::Edge, "e1");
        let pepper = this.home.path().join("pepper");
        std::fs::write(&pepper, [7; 32]).unwrap();
        set_mode(&pepper, 0o600);
        this
    }

    /// Three nodes that serve, every slot owned.
    pub(crate) async fn start() -> Self {
        let mut this = Self::prepared();
        for node in 1..=3 {
            let server = Server::start(this.config(node)).await.unwrap();
            this.nodes.insert(node, server);
        }
        this.settled().await;
        this
    }

    /// Waits until every slot has an owner and every view is confirmed.
    pub(crate) async fn settled(&self) {
        for node in self.nodes.keys() {
            eventually("the node is ready", || async move {
                let (status, _) = self.ask(*node, "root", "GET", "/readyz", &[], None).await;
                status == 200 && self.status(*node).await["unowned"] == json!(0)
            })
            .await;
        }
    }

    pub(crate) async fn start_node(&mut self, node: u64) -> Result<(), ServerError> {
        let server = Server::start(self.config(node)).await?;
        self.nodes.insert(node, server);
        Ok(())
    }

    pub(crate) fn take(&mut self, node: u64) -> Server {
        self.nodes.remove(&node).unwrap()
    }

    /// Stops a node so that it can be started again.
    pub(crate) async fn stop_node(&mut self, node: u64) {
        let server = self.take(node);
        server.stop();
        soon("a node stops", server.ended()).await.unwrap();
        self.port_is_free(node).await;
    }

    /// Waits until a node that has ended can be started again: within one process its socket may outlive it by a moment,
    /// for as long as the last of its connections drain.
    pub(crate) async fn port_is_free(&self, node: u64) {
        let quic = self.quic(node);
        eventually("its port is free", || async move {
            std::net::UdpSocket::bind(quic).is_ok()
        })
        .await;
    }

    fn quic(&self, node: u64) -> SocketAddr {
        self.ports.addresses()[usize::try_from(node).unwrap() - 1]
    }

    pub(crate) fn issue(&self, role: Role, name: &str) {
        let peer = (role, name);
        self.authority
            .issue(self.home.path(), peer, &[], Validity::days(1), false)
            .unwrap();
    }

    fn tls(&self, role: Role, name: &str) -> Tls {
        let file = |end: &str| self.home.path().join(format!("{role}-{name}.{end}"));
        let files = tollgate_wire::tls::TlsFiles {
            ca: self.home.path().join("ca.pem"),
            certificate: file("pem"),
            key: file("key"),
        };
        Tls::load(files, role).unwrap()
    }

    pub(crate) fn config_text(&self, node: u64) -> String {
        let members: String = (1..=3)
            .zip(self.ports.addresses())
            .map(|(id, quic)| format!("[[member]]\nnode = {id}\nquic = \"{quic}\"\n"))
            .collect();
        let quic = self.quic(node);
        format!(
            "cluster = \"{NAME}\"\nnode = {node}\ndata_dir = \"data-{node}\"\n\
             [listen]\nquic = \"{quic}\"\nadmin = \"127.0.0.1:0\"\nmetrics = \"127.0.0.1:0\"\n\
             [tls]\nca = \"ca.pem\"\ncertificate = \"node-{node}.pem\"\nkey = \"node-{node}.key\"\n\
             [pepper]\nfile = \"pepper\"\n[storage]\nballast_mib = 0\n{members}"
        )
    }

    pub(crate) fn config(&self, node: u64) -> ServerConfig {
        self.load(node, &self.config_text(node)).unwrap()
    }

    pub(crate) fn load(
        &self,
        node: u64,
        text: &str,
    ) -> Result<ServerConfig, tollgate_node::config::ConfigError> {
        let path = self.home.path().join(format!("node-{node}.toml"));
        std::fs::write(&path, text).unwrap();
        ServerConfig::load(&path)
    }

    pub(crate) fn node(&self, node: u64) -> &Server {
        &self.nodes[&node]
    }

    /// Ends a node as a crash would look to the others: it says nothing and writes nothing more.
    pub(crate) async fn kill(&mut self, node: u64) {
        let server = self.take(node);
        soon("a killed node is gone", server.abandon()).await;
    }

    pub(crate) async fn stop(mut self) {
        for (node, server) in std::mem::take(&mut self.nodes) {
            server.stop();
            let ended = soon("a node stops", server.ended()).await;
            assert!(ended.is_ok(), "node {node}: {ended:?}");
        }
    }

    // --- an administrator ---

    pub(crate) async fn status(&self, node: u64) -> Value {
        let (_, answer) = self
            .ask(node, "root", "GET", "/admin/v1/status", &[], None)
            .await;
        answer
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let node = *self.nodes.keys().next().unwrap();
        let (status, answer) = self.ask(node, "root", "GET", path, &[], None).await;
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    }

    pub(crate) async fn post(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> (u16, Value) {
        let node = *self.nodes.keys().next().unwrap();
        self.ask(
            node,
            "root",
            "POST",
            path,
            headers,
            Some(body.to_string().into_bytes()),
        )
        .await
    }

    pub(crate) async fn apply(&self, file: Value) -> (u16, Value) {
        let body = json!({ "file": file, "reason": "a test" });
        self.post("/admin/v1/apply", &[], &body).await
    }

    pub(crate) async fn ask(
        &self,
        node: u64,
        who: &str,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Vec<u8>>,
    ) -> (u16, Value) {
        let role = if who == "e1" { Role::Edge } else { Role::Admin };
        let tls = self.tls(role, who);
        let address = self.nodes[&node].admin();
        let asked = async {
            let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
            let connector = tokio_rustls::TlsConnector::from(tls.client_config(&["http/1.1"]));
            let name = any_node_server_name(NAME).try_into().unwrap();
            let stream = connector.connect(name, tcp).await.unwrap();
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream))
                    .await
                    .unwrap();
            tokio::spawn(connection);
            let mut request = hyper::Request::builder()
                .method(method)
                .uri(path)
                .header("host", "node");
            for (header, value) in headers {
                request = request.header(*header, *value);
            }
            let request = request
                .body(Full::new(Bytes::from(body.unwrap_or_default())))
                .unwrap();
            let response = sender.send_request(request).await.unwrap();
            let status = response.status().as_u16();
            let bytes = response.into_body().collect().await.unwrap().to_bytes();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            (
                status,
                serde_json::from_slice(&bytes).unwrap_or(Value::String(text)),
            )
        };
        soon(path, asked).await
    }

    // --- edges ---

    /// Who issues a customer's slot, by the routes that an edge is told.
    pub(crate) async fn issuer_of(&self, customer: &str) -> u64 {
        let node = *self.nodes.keys().next().unwrap();
        let edge = self.edge(node).await;
        edge.issuer(Slot::of(customer)).unwrap().0
    }

    pub(crate) async fn issuer_other_than(&self, gone: u64, customer: &str) -> u64 {
        loop {
            let issuer = self.issuer_of(customer).await;
            if issuer != gone {
                return issuer;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    pub(crate) async fn edge_at_issuer(&self, customer: &str) -> Edge {
        let issuer = self.issuer_of(customer).await;
        self.edge(issuer).await
    }

    /// An edge that has said hello.
    pub(crate) async fn edge(&self, node: u64) -> Edge {
        let mut edge = self.dial("e1", node).await;
        edge.hello(None).await;
        edge.greeted().await;
        edge
    }

    /// An edge that is connected and has said nothing.
    pub(crate) async fn edge_named(&self, name: &str, node: u64) -> Edge {
        self.issue(Role::Edge, name);
        self.dial(name, node).await
    }

    /// The edge of a boot that another node numbered.
    pub(crate) async fn edge_of_boot(&self, node: u64, session: SessionId, boot: Boot) -> Edge {
        let mut edge = self.dial("e1", node).await;
        edge.hello(Some(boot)).await;
        edge.greeted().await;
        edge.belongs(session, boot);
        edge
    }

    async fn dial(&self, name: &str, node: u64) -> Edge {
        let address = self.nodes[&node].quic();
        let tls = self.tls(Role::Edge, name);
        Edge::dial(&tls, NodeId(node), address).await
    }
}

pub(crate) fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}
