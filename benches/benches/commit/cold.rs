//! A check of a key that the edge has never seen, through the real edge crate against three whole nodes.
//!
//! Compares its latency with that of one commit as an edge sees it: a frame to the same node, one command
//! agreed on, a frame back. Both in turns. Beside it the log entries that a check leads to, those included
//! that nobody waits for.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tollgate::admin_client::AdminClient;
use tollgate::args::Admin;
use tollgate_benches::workload::Numbers;
use tollgate_core::account::{Environment, Name};
use tollgate_core::command::OpenSessionReply;
use tollgate_core::credential::{self, RANDOM_BYTES};
use tollgate_core::ids::{Incarnation, NodeId, Nonce, SessionId, Slot};
use tollgate_core::message::{EdgeMessage, Hello, NodeMessage, Route, Sender};
use tollgate_edge::{CheckRequest, Edge, EdgeConfig, NodeConfig, TlsConfig};
use tollgate_node::server::Server;
use tollgate_wire::codec;
use tollgate_wire::frame::Class;
use tollgate_wire::identity::Role;
use tollgate_wire::quic::{Connection, Endpoint, Framed, Protocol};
use tollgate_wire::tls::{Tls, TlsFiles};

use crate::cluster::{ADMIN, EDGE, NAME, Prepared};
use crate::load::Latency;

const KEYS: usize = 300;
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A log without a new entry for so long stands still.
const QUIET: Duration = Duration::from_millis(15);
/// After so many looks the check goes on in a log that never does.
const LOOKS_MAX: usize = 40;

/// Longer than the bench: no report of use becomes an entry between two looks at the log.
const REPORT_SPACING: Duration = Duration::from_secs(30);

/// A customer and its credential.
struct Key {
    customer: String,
    id: Name,
    secret_sha256: [u8; 32],
    credential: String,
}

/// What was found.
pub(crate) struct Cold {
    pub(crate) keys: usize,
    /// Log entries from a quiet log before a check to the moment after it, which may hold one that nobody
    /// waited for (units acquired ahead): how many checks had how many.
    pub(crate) entries: Vec<(u64, usize)>,
    pub(crate) check: Latency,
    pub(crate) commit: Latency,
    /// A check of the same key again.
    pub(crate) warm: Latency,
}

/// Starts three servers and an edge, checks each key once.
pub(crate) async fn measure(prepared: &Prepared) -> Cold {
    let mut servers = Vec::new();
    for config in &prepared.configs {
        servers.push(Server::start(config.clone()).await.unwrap());
    }
    for server in &servers {
        server.serves().await;
    }
    let admin = AdminClient::new(&Admin {
        addr: servers.iter().map(Server::admin).collect(),
        tls_dir: prepared.home.clone(),
        admin: ADMIN.to_owned(),
    });
    let admin = admin.unwrap();
    let leader = settled(&admin).await;
    let keys = keys();
    let body = json!({ "file": catalog(&keys), "reason": "the bench's keys" });
    let _: Value = admin.post("/admin/v1/apply", &[], &body).await.unwrap();

    let edge = Edge::connect(edge_config(prepared)).await.unwrap();
    assert!(edge.ready(PATIENCE).await, "{:?}", edge.status());
    let mut committers = Committers::connect(prepared).await;
    let mut found = Cold {
        keys: keys.len(),
        entries: Vec::new(),
        check: Latency::default(),
        commit: Latency::default(),
        warm: Latency::default(),
    };
    for key in &keys {
        let before = quiet(&leader).await;
        let asked = Instant::now();
        let decision = edge
            .check_or_wait(&CheckRequest::new(&key.credential))
            .await;
        found.check.record(asked.elapsed());
        assert!(
            decision.reason().verdict().is_allowed(),
            "{}: {decision:?}",
            key.customer
        );
        note(&mut found.entries, applied(&leader).await - before);
        let again = Instant::now();
        let decision = edge.check(&CheckRequest::new(&key.credential));
        found.warm.record(again.elapsed());
        assert!(decision.reason().verdict().is_allowed(), "{decision:?}");
        found
            .commit
            .record(committers.commit(Slot::of(&key.customer)).await);
    }
    found.entries.sort_unstable();
    edge.close(PATIENCE).await;
    for server in servers {
        server.stop();
        server.ended().await.unwrap();
    }
    found
}

fn note(counts: &mut Vec<(u64, usize)>, entries: u64) {
    match counts.iter_mut().find(|(known, _)| *known == entries) {
        Some((_, checks)) => *checks += 1,
        None => counts.push((entries, 1)),
    }
}

/// Waits until every slot has an issuer; the leader's API.
async fn settled(admin: &AdminClient) -> AdminClient {
    let waiting = async {
        loop {
            for address in admin.addrs() {
                let one = admin.at(*address);
                let status: Value = one.get("/admin/v1/status").await.unwrap();
                if status["role"] == "leader" && status["unowned"] == 0 {
                    return one;
                }
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    waited.unwrap_or_else(|_| panic!("not every slot has an issuer within {PATIENCE:?}"))
}

/// Log entries the leader has applied.
async fn applied(leader: &AdminClient) -> u64 {
    let status: Value = leader.get("/admin/v1/status").await.unwrap();
    status["ledger_index"].as_u64().unwrap()
}

/// Waits until the log stands still, so that what comes next comes of the check; where it stands.
async fn quiet(leader: &AdminClient) -> u64 {
    let mut before = applied(leader).await;
    for _ in 0..LOOKS_MAX {
        tokio::time::sleep(QUIET).await;
        let now = applied(leader).await;
        if now == before {
            break;
        }
        before = now;
    }
    before
}

fn keys() -> Vec<Key> {
    let mut numbers = Numbers::new(11);
    (0..KEYS)
        .map(|number| {
            let customer = format!("cold-{number}");
            let mut random = [0; RANDOM_BYTES];
            for chunk in random.chunks_mut(8) {
                chunk.copy_from_slice(&numbers.draw().to_le_bytes()[..chunk.len()]);
            }
            let composed = credential::compose(Environment::Live, Slot::of(&customer), &random);
            let secret_sha256 = credential::parse(&composed.text).unwrap().secret_sha256();
            Key {
                customer,
                id: composed.key,
                secret_sha256,
                credential: composed.text,
            }
        })
        .collect()
}

/// One plan with a large quota, a customer and a licence for each key.
fn catalog(keys: &[Key]) -> Value {
    let limit = json!({
        "name": "quota", "meter": "requests", "per": "customer", "quota": 1_000_000, "window": "open",
    });
    let hex = |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
    let each = |entry: &dyn Fn(&Key) -> Value| -> Vec<Value> { keys.iter().map(entry).collect() };
    json!({
        "plan": [{ "id": "plan", "limit": [limit] }],
        "customer": each(&|key| json!({ "id": key.customer })),
        "license": each(&|key| json!({ "id": key.customer, "customer": key.customer, "plan": "plan" })),
        "key": each(&|key| json!({
            "id": key.id, "license": key.customer, "secret_sha256": hex(&key.secret_sha256),
        })),
    })
}

fn edge_config(prepared: &Prepared) -> EdgeConfig {
    let file = |name: &str| prepared.home.join(name);
    let nodes = prepared.configs[0].members.iter().map(|member| NodeConfig {
        id: NodeId(member.node),
        address: member.quic.clone(),
    });
    let second = Duration::from_secs(1);
    EdgeConfig {
        cluster: Name::new(NAME).unwrap(),
        nodes: nodes.collect(),
        tls: TlsConfig {
            ca: file("ca.pem"),
            certificate: file(&format!("edge-{EDGE}.pem")),
            key: file(&format!("edge-{EDGE}.key")),
        },
        journal: None,
        journal_interval: second,
        report_spacing: REPORT_SPACING,
        keepalive: second,
        cold_deadline: 10 * second,
        max_stale: 30 * second,
    }
}

/// Connections of another edge to every node, for one commit at a time: its session opened again.
struct Committers {
    /// In the order of nodes.
    nodes: Vec<Committer>,
    routes: Vec<Route>,
    session: Option<SessionId>,
    nonce: Nonce,
    _endpoint: Endpoint,
}

struct Committer {
    control: Framed,
    _connection: Connection,
}

impl Committers {
    async fn connect(prepared: &Prepared) -> Self {
        let file = |name: String| prepared.home.join(name);
        let files = TlsFiles {
            ca: file("ca.pem".into()),
            certificate: file(format!("edge-{EDGE}.pem")),
            key: file(format!("edge-{EDGE}.key")),
        };
        let tls = Tls::load(files, Role::Edge).unwrap();
        let endpoint = Endpoint::dialling(&tls).unwrap();
        let (mut nodes, mut routes) = (Vec::new(), Vec::new());
        for config in &prepared.configs {
            let dialled = endpoint.dial(config.node_id(), config.listen.quic, Protocol::Edge);
            let connection = dialled.await.unwrap();
            let control = connection.open_framed(Class::Control).await.unwrap();
            let mut committer = Committer {
                control,
                _connection: connection,
            };
            let hello = Hello {
                cluster: Name::new(NAME).unwrap(),
                incarnation: Some(Incarnation(1)),
                sender: Sender::Edge { boot: None },
                versions: (1, 1),
            };
            committer.say(&EdgeMessage::Hello(hello)).await;
            routes = loop {
                if let NodeMessage::Routes { routes, .. } = committer.hear().await {
                    break routes;
                }
            };
            nodes.push(committer);
        }
        Self {
            nodes,
            routes,
            session: None,
            nonce: Nonce(0),
            _endpoint: endpoint,
        }
    }

    /// How long one commit takes that is asked for at the issuer of a slot.
    async fn commit(&mut self, slot: Slot) -> Duration {
        let (issuer, _) = self.routes[slot.index()].owner.unwrap();
        let node = &mut self.nodes[usize::try_from(issuer.0).unwrap() - 1];
        self.nonce = self.nonce.next();
        let open = EdgeMessage::OpenSession {
            session: self.session,
            nonce: self.nonce,
        };
        let asked = Instant::now();
        node.say(&open).await;
        loop {
            match node.hear().await {
                NodeMessage::Session(OpenSessionReply::Opened { session, .. }) => {
                    self.session = Some(session);
                    return asked.elapsed();
                }
                NodeMessage::Session(other) => panic!("a boot, not {other:?}"),
                // News of the slot table and the catalog.
                _ => {}
            }
        }
    }
}

impl Committer {
    async fn say(&mut self, message: &EdgeMessage) {
        self.control.writer.push_value(message).unwrap();
        self.control.writer.flush().await.unwrap();
    }

    async fn hear(&mut self) -> NodeMessage {
        let heard = tokio::time::timeout(PATIENCE, self.control.reader.next()).await;
        let payload = heard.expect("an answer in time").unwrap().unwrap();
        codec::decode::<NodeMessage, { codec::budget(1 << 20) }>(payload).unwrap()
    }
}
