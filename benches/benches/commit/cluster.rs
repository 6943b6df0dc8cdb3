//! Three nodes in this process: real QUIC with mutual TLS between them, real sled in folders.
//!
//! Owns certificates, ports and configuration files; from the same files come whole servers
//! (`cold.rs`) and, here, nodes without issuer and administration, whose proposer can be called.
//! Settings are the product's defaults. Next: `positions.rs`, what is proposed to them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use tokio::task::JoinHandle;
use tollgate_core::time::LedgerTime;
use tollgate_node::config::ServerConfig;
use tollgate_node::consensus::{Consensus, Proposer};
use tollgate_node::machine::SharedLedger;
use tollgate_node::raft::quic::Peers;
use tollgate_node::raft::{Hooks, RaftNode};
use tollgate_node::server::FIRST_INCARNATION;
use tollgate_node::storage::Store;
use tollgate_ports::Ports;
use tollgate_wire::certs::{Authority, Validity};
use tollgate_wire::identity::Role;
use tollgate_wire::quic::{Endpoint, Protocol};
use tollgate_wire::tls::Tls;

pub(crate) const NODES: u64 = 3;
pub(crate) const NAME: &str = "bench";
pub(crate) const EDGE: &str = "e1";
pub(crate) const ADMIN: &str = "root";

/// How long anything may take that must happen; only a hang meets it.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Waits for a condition.
pub(crate) async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let waiting = async {
        loop {
            if let Some(found) = look() {
                return found;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    waited.unwrap_or_else(|_| panic!("never within {PATIENCE:?}: {what}"))
}

/// A folder with certificates and the configuration of each node; nothing runs.
pub(crate) struct Prepared {
    pub(crate) home: PathBuf,
    pub(crate) configs: Vec<ServerConfig>,
    _ports: Ports,
}

impl Prepared {
    pub(crate) fn new(home: &Path) -> Self {
        std::fs::create_dir(home).unwrap();
        let authority = Authority::create(home, NAME, Validity::days(1), false).unwrap();
        let issue = |role, name: &str| {
            authority
                .issue(home, (role, name), &[], Validity::days(1), false)
                .unwrap();
        };
        issue(Role::Edge, EDGE);
        issue(Role::Admin, ADMIN);
        let pepper = home.join("pepper");
        std::fs::write(&pepper, [7; 32]).unwrap();
        only_owner(&pepper);
        let ports = Ports::claim(NODES.try_into().unwrap()).unwrap();
        let members: String = (1..)
            .zip(ports.addresses())
            .map(|(node, quic)| format!("[[member]]\nnode = {node}\nquic = \"{quic}\"\n"))
            .collect();
        let configs = (1..)
            .zip(ports.addresses())
            .map(|(node, quic): (u64, _)| {
                issue(Role::Node, &node.to_string());
                let text = format!(
                    "cluster = \"{NAME}\"\nnode = {node}\ndata_dir = \"data-{node}\"\n\
                     [listen]\nquic = \"{quic}\"\nadmin = \"127.0.0.1:0\"\n\
                     [tls]\nca = \"ca.pem\"\ncertificate = \"node-{node}.pem\"\nkey = \"node-{node}.key\"\n\
                     [pepper]\nfile = \"pepper\"\n{members}"
                );
                let path = home.join(format!("node-{node}.toml"));
                std::fs::write(&path, text).unwrap();
                ServerConfig::load(&path).unwrap()
            })
            .collect();
        let home = home.to_owned();
        Self {
            home,
            configs,
            _ports: ports,
        }
    }
}

fn only_owner(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// One node.
pub(crate) struct Node {
    raft: RaftNode,
    ledger: SharedLedger,
    store: Arc<Store>,
    endpoint: Endpoint,
    accepting: JoinHandle<()>,
    pub(crate) proposer: Proposer,
}

impl Node {
    async fn start(config: &ServerConfig) -> Self {
        let tls = Tls::load(config.tls_files(), Role::Node).unwrap();
        let endpoint = Endpoint::listen(config.listen.quic, &tls, &[Protocol::Raft]).unwrap();
        let ledger = SharedLedger::new(FIRST_INCARNATION);
        let store = Store::open(&config.store_config(FIRST_INCARNATION), ledger.machine());
        let store = Arc::new(store.unwrap());
        let hooks = Hooks {
            time: Arc::new(wall_clock),
            on_confirm: Arc::new(|_, _| Vec::new()),
        };
        let (peers, settings) = (
            Arc::new(Peers::new(endpoint.clone())),
            config.raft_settings(),
        );
        let (cluster, node) = (&config.cluster, config.node);
        let raft = RaftNode::start(cluster, node, store.clone(), peers, &settings, hooks);
        let raft = raft.await.unwrap();
        let (accept, inbound) = (endpoint.clone(), raft.inbound().clone());
        let accepting = tokio::spawn(async move {
            while let Some(incoming) = accept.accept().await {
                let inbound = inbound.clone();
                tokio::spawn(async move {
                    if let Ok(connection) = incoming.establish().await {
                        inbound.serve(connection).await;
                    }
                });
            }
        });
        let proposer = Proposer::new(Arc::new(raft.clone()));
        Self {
            raft,
            ledger,
            store,
            endpoint,
            accepting,
            proposer,
        }
    }

    fn leads(&self) -> bool {
        Consensus::standing(&self.raft).borrow().is_leader
    }

    /// Where its counters stand.
    pub(crate) fn counts(&self) -> Counts {
        let flushes = self.store.flush_counts();
        let log = flushes.syncs.load(Ordering::Relaxed);
        Counts {
            entries: self.ledger.read().index(),
            flushes: log,
            syncs: log + flushes.mark_syncs.load(Ordering::Relaxed),
        }
    }
}

fn wall_clock() -> LedgerTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    LedgerTime(u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX))
}

/// What a node counted since its start.
#[derive(Clone, Copy)]
pub(crate) struct Counts {
    /// Log entries applied.
    pub(crate) entries: u64,
    /// Flushes of the log; each is followed by an `fdatasync` of it.
    pub(crate) flushes: u64,
    /// Every `fdatasync`: of the log, and of the mark behind it.
    pub(crate) syncs: u64,
}

/// Three nodes that agree on who leads.
pub(crate) struct Cluster {
    nodes: Vec<Node>,
}

impl Cluster {
    pub(crate) async fn start(prepared: &Prepared) -> Self {
        let mut nodes = Vec::new();
        for config in &prepared.configs {
            nodes.push(Node::start(config).await);
        }
        let members = prepared.configs[0]
            .members
            .iter()
            .map(|member| (member.node, member.quic.clone()))
            .collect();
        for node in &nodes {
            node.raft.initialize(&members).await.unwrap();
        }
        let cluster = Self { nodes };
        cluster.leader().await;
        cluster
    }

    /// Nodes in order, from node 1.
    pub(crate) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Which of [`Self::nodes`] leads.
    pub(crate) async fn leader(&self) -> usize {
        until("a leader that all know", || {
            let leader = self.nodes.iter().position(Node::leads)?;
            let known = self.nodes.iter().all(|node| {
                let standing = Consensus::standing(&node.raft);
                let standing = standing.borrow();
                standing
                    .leader
                    .is_some_and(|node| node.0 == leader as u64 + 1)
            });
            known.then_some(leader)
        })
        .await
    }

    /// Fails loudly when a replica raised an alarm or differs from the others.
    pub(crate) async fn agrees(&self) {
        until("equal digests on all nodes", || {
            let state = |node: &Node| {
                let ledger = node.ledger.read();
                (ledger.index(), ledger.digest())
            };
            let first = state(&self.nodes[0]);
            self.nodes
                .iter()
                .all(|node| state(node) == first)
                .then_some(())
        })
        .await;
        for node in &self.nodes {
            for (kind, count) in node.ledger.alarms().all() {
                assert_eq!(count, 0, "alarms of the ledger of kind {kind}");
            }
        }
    }

    pub(crate) async fn stop(self) {
        for node in self.nodes {
            node.endpoint.close("the bench is over").await;
            node.raft.shutdown().await;
            node.accepting.abort();
        }
    }
}
