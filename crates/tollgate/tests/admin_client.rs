//! The admin client against nodes in trouble: every address is tried, a change keeps its key, a refusal ends it.
#![allow(clippy::unwrap_used, reason = "tests")]

use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tollgate::admin_client::{AdminClient, IDEMPOTENCY_KEY, Patience};
use tollgate::args::{Admin, Certs};
use tollgate::commands::certs;
use tollgate::output::{Exit, Failure};
use tollgate_wire::identity::Role;
use tollgate_wire::tls::{Tls, TlsFiles};

/// Short where a node stays silent, long where it answers: no test waits for the long ones.
const PATIENCE: Patience = Patience {
    connect: Duration::from_secs(20),
    handshake: Duration::from_millis(300),
    read: Duration::from_secs(20),
    change: Duration::from_secs(20),
    total: Duration::from_secs(60),
};

/// How a node behaves.
#[derive(Clone, Copy)]
enum Node {
    /// Takes connections and says nothing.
    Silent,
    /// Reads the request and breaks off.
    BreaksOff,
    /// Answers.
    Says(u16, &'static str),
}

/// Requests as they came: first line and idempotency key.
type Heard = Arc<Mutex<Vec<(String, Option<String>)>>>;

struct World {
    dir: tempfile::TempDir,
    heard: Heard,
    addrs: Vec<SocketAddr>,
}

fn make_certs(dir: &Path, cluster: &str) {
    let made = certs::make(&Certs {
        dir: dir.join(cluster),
        cluster: cluster.to_owned(),
        node: vec![1],
        edge: Vec::new(),
        admin: vec!["admin".to_owned()],
        host: vec!["localhost".to_owned()],
        days: 1,
    });
    made.unwrap();
}

async fn world(nodes: &[Node]) -> World {
    let dir = tempfile::tempdir().unwrap();
    make_certs(dir.path(), "demo");
    let file = |name: &str| dir.path().join("demo").join(name);
    let files = TlsFiles {
        ca: file("ca.pem"),
        certificate: file("node-1.pem"),
        key: file("node-1.key"),
    };
    let tls = Tls::load(files, Role::Node).unwrap();
    let heard = Heard::default();
    let mut addrs = Vec::new();
    for node in nodes.iter().copied() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        addrs.push(listener.local_addr().unwrap());
        let acceptor = TlsAcceptor::from(tls.server_config(&["http/1.1"]));
        tokio::spawn(serve(listener, acceptor, node, heard.clone()));
    }
    World { dir, heard, addrs }
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, node: Node, heard: Heard) {
    let mut kept = Vec::new();
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        if matches!(node, Node::Silent) {
            kept.push(tcp);
            continue;
        }
        // A client that does not trust us, or that we do not trust, goes away here.
        let Ok(mut stream) = acceptor.accept(tcp).await else {
            continue;
        };
        let (mut text, mut buffer) = (String::new(), [0; 4096]);
        while !text.contains("\r\n\r\n") {
            match stream.read(&mut buffer).await {
                Ok(n) if n > 0 => text.push_str(&String::from_utf8_lossy(&buffer[..n])),
                _ => break,
            }
        }
        let key = text.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case(IDEMPOTENCY_KEY)
                .then(|| value.to_owned())
        });
        let first = text.lines().next().unwrap_or_default().to_owned();
        heard.lock().unwrap().push((first, key));
        if let Node::Says(status, body) = node {
            let length = body.len();
            let answer = format!("HTTP/1.1 {status} x\r\ncontent-length: {length}\r\n\r\n{body}");
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
        }
    }
}

impl World {
    fn client(&self, admin: &str, addrs: &[SocketAddr]) -> AdminClient {
        let args = Admin {
            addr: addrs.to_vec(),
            tls_dir: self.dir.path().join(admin),
            admin: "admin".to_owned(),
        };
        AdminClient::new(&args).unwrap().patient(PATIENCE)
    }

    async fn post(&self, addrs: &[SocketAddr]) -> Result<Value, Failure> {
        let body = json!({ "reason": "a test" });
        self.client("demo", addrs).post("/change", &[], &body).await
    }

    fn keys(&self) -> Vec<String> {
        let heard = self.heard.lock().unwrap();
        heard.iter().filter_map(|(_, key)| key.clone()).collect()
    }
}

/// A port where nobody listens: it was free, and is given back.
async fn nobody() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

#[tokio::test]
async fn a_change_goes_to_every_address_under_one_key_until_one_answers() {
    let trouble = r#"{"title":"The cluster does not answer","detail":"no leader"}"#;
    let world = world(&[
        Node::Silent,
        Node::BreaksOff,
        Node::Says(503, trouble),
        Node::Says(200, r#"{"done":true}"#),
    ])
    .await;
    let mut addrs = world.addrs.clone();
    addrs.insert(0, nobody().await);
    assert_eq!(world.post(&addrs).await.unwrap(), json!({ "done": true }));
    let keys = world.keys();
    assert_eq!(keys.len(), 3, "{keys:?}");
    assert!(
        keys.iter().all(|key| *key == keys[0] && key.len() == 32),
        "{keys:?}"
    );

    // Another change has another key.
    world.post(&addrs[4..]).await.unwrap();
    assert_ne!(world.keys()[3], keys[0]);
}

#[tokio::test]
async fn a_question_goes_to_every_address_too() {
    let world = world(&[Node::BreaksOff, Node::Says(500, "{}"), Node::Says(200, "7")]).await;
    let found: u64 = world.client("demo", &world.addrs).get("/x").await.unwrap();
    assert_eq!((found, world.heard.lock().unwrap().len()), (7, 3));
}

#[tokio::test]
async fn a_refusal_is_every_nodes_and_ends_it() {
    let taken = r#"{"title":"The idempotency key is taken","detail":"choose another"}"#;
    let world = world(&[Node::Says(409, taken), Node::Says(200, "{}")]).await;
    let failure = world.post(&world.addrs).await.unwrap_err();
    assert_eq!(failure.exit, Exit::Conflict);
    assert_eq!(
        failure.message,
        "The idempotency key is taken: choose another"
    );
    assert_eq!(world.heard.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn nobody_answered_says_whether_the_change_may_have_been_made() {
    let world = world(&[Node::BreaksOff]).await;
    let failure = world.post(&world.addrs).await.unwrap_err();
    assert_eq!(failure.exit, Exit::Unavailable);
    assert!(
        failure.message.contains("may have been made or not"),
        "{failure}"
    );

    let failure = world.post(&[nobody().await]).await.unwrap_err();
    assert_eq!(failure.exit, Exit::Unavailable);
    assert!(failure.message.contains("was not made"), "{failure}");

    let asked = world.client("demo", &world.addrs).get::<Value>("/x").await;
    let failure = asked.unwrap_err();
    assert!(!failure.message.contains("change"), "{failure}");
}

#[tokio::test]
async fn a_certificate_of_another_cluster_is_named_and_no_unavailability() {
    let world = world(&[Node::Says(200, "{}")]).await;
    make_certs(world.dir.path(), "other");
    let asked = world.client("other", &world.addrs).get::<Value>("/x").await;
    let failure = asked.unwrap_err();
    assert_eq!(failure.exit, Exit::Failed);
    assert!(
        failure.message.contains("the certificate of this cluster?"),
        "{failure}"
    );
    assert!(world.heard.lock().unwrap().is_empty());
}
