//! Whole Raft nodes in one process: real QUIC on loopback, real sled in folders, links that a test can cut.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses a part of it"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::task::JoinHandle;
use tollgate_core::time::LedgerTime;
use tollgate_node::consensus::{Consensus, Standing};
use tollgate_node::raft::quic::Peers;
use tollgate_node::raft::{CallError, Hooks, Peer, RaftNode, Settings, Transport};
use tollgate_node::storage::{Machine, SnapshotFile, Store, StoreConfig, StoreError};
use tollgate_ports::Ports;
use tollgate_wire::certs::{Authority, Validity};
use tollgate_wire::frame::Class;
use tollgate_wire::identity::Role;
use tollgate_wire::quic::{Endpoint, Protocol};
use tollgate_wire::tls::Tls;

use crate::toy::{self, Replicated};

/// How long a condition is waited for before the test fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// Cut links, from node to node.
type Cuts = Arc<Mutex<BTreeSet<(u64, u64)>>>;

/// A transport whose links can be cut; what is cut is not sent, or not answered.
struct Cuttable {
    own: u64,
    peers: Peers,
    cuts: Cuts,
}

impl Cuttable {
    fn cut(&self, to: u64) -> bool {
        self.cuts.lock().unwrap().contains(&(self.own, to))
    }
}

impl Transport for Cuttable {
    fn call(
        &self,
        to: &Peer,
        class: Class,
        payload: Vec<u8>,
        deadline: Duration,
    ) -> BoxFuture<'static, Result<Vec<u8>, CallError>> {
        if self.cut(to.node) {
            return Box::pin(std::future::ready(Err(CallError::Unreachable(
                "cut".into(),
            ))));
        }
        let (back, cuts) = ((to.node, self.own), self.cuts.clone());
        let called = self.peers.call(to, class, payload, deadline);
        Box::pin(async move {
            let answer = called.await;
            let lost = cuts.lock().unwrap().contains(&back);
            if lost {
                Err(CallError::Broken("cut".into()))
            } else {
                answer
            }
        })
    }

    fn send_snapshot(
        &self,
        to: &Peer,
        start: Vec<u8>,
        file: SnapshotFile,
        deadline: Duration,
    ) -> BoxFuture<'static, Result<Vec<u8>, CallError>> {
        if self.cut(to.node) {
            return Box::pin(std::future::ready(Err(CallError::Unreachable(
                "cut".into(),
            ))));
        }
        self.peers.send_snapshot(to, start, file, deadline)
    }
}

/// One running node.
pub struct Node {
    pub raft: RaftNode,
    pub machine: Arc<RwLock<Replicated>>,
    pub store: Arc<Store>,
    endpoint: Endpoint,
    accepting: JoinHandle<()>,
}

/// A cluster and what it is started from.
pub struct Cluster {
    root: tempfile::TempDir,
    settings: Settings,
    members: BTreeMap<u64, String>,
    _ports: Ports,
    cuts: Cuts,
    nodes: BTreeMap<u64, Node>,
}

impl Cluster {
    /// Starts nodes 1 to `size` and makes them one cluster.
    pub async fn start(size: u64, settings: Settings) -> Self {
        let root = tempfile::tempdir().unwrap();
        let certs = root.path().join("certs");
        let authority = Authority::create(&certs, "test", Validity::days(2), false).unwrap();
        let mut members = BTreeMap::new();
        let ports = Ports::claim(usize::try_from(size).unwrap()).unwrap();
        for (node, address) in (1..=size).zip(ports.addresses()) {
            let name = node.to_string();
            authority
                .issue(&certs, (Role::Node, &name), &[], Validity::days(2), false)
                .unwrap();
            members.insert(node, address.to_string());
        }
        let cuts = Cuts::default();
        let mut cluster = Self {
            root,
            settings,
            members,
            _ports: ports,
            cuts,
            nodes: BTreeMap::new(),
        };
        for node in 1..=size {
            cluster.up(node).await;
        }
        for node in cluster.nodes.values() {
            node.raft.initialize(&cluster.members).await.unwrap();
        }
        cluster
    }

    fn dir(&self, node: u64) -> PathBuf {
        self.root.path().join(format!("node-{node}"))
    }

    /// Starts a node on its folder and address.
    pub async fn up(&mut self, node: u64) {
        let certs = self.root.path().join("certs");
        let tls = Tls::load(
            tollgate_wire::tls::TlsFiles {
                ca: certs.join("ca.pem"),
                certificate: certs.join(format!("node-{node}.pem")),
                key: certs.join(format!("node-{node}.key")),
            },
            Role::Node,
        )
        .unwrap();
        let address: SocketAddr = self.members[&node].parse().unwrap();
        // The tasks of the node before are still letting go of the port, and of the folder below.
        let listen = || std::future::ready(Endpoint::listen(address, &tls, &[Protocol::Raft]));
        let endpoint = eventually("the port is free", listen).await;
        let machine = Arc::new(RwLock::new(Replicated::default()));
        let mut config = StoreConfig::new(self.dir(node), toy::identity(node));
        config.ballast_bytes = 0;
        let open = || {
            let opened = match Store::open(&config, machine.clone()) {
                Err(error) if !matches!(error, StoreError::InUse { .. }) => panic!("{error}"),
                opened => opened,
            };
            std::future::ready(opened)
        };
        let store = Arc::new(eventually("the folder is free", open).await);
        let peers = Peers::new(endpoint.clone());
        let transport = Arc::new(Cuttable {
            own: node,
            peers,
            cuts: self.cuts.clone(),
        });
        let hooks = Hooks {
            time: Arc::new(|| LedgerTime(1)),
            on_confirm: Arc::new(|from, question| {
                let mut answer = from.0.to_le_bytes().to_vec();
                answer.extend_from_slice(question);
                answer
            }),
        };
        let raft = RaftNode::start(
            "test",
            node,
            store.clone(),
            transport,
            &self.settings,
            hooks,
        )
        .await;
        let raft = raft.unwrap();
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
        self.nodes.insert(
            node,
            Node {
                raft,
                machine,
                store,
                endpoint,
                accepting,
            },
        );
    }

    /// Stops a node; its folder stays.
    pub async fn down(&mut self, node: u64) {
        let gone = self.nodes.remove(&node).expect("the node runs");
        gone.endpoint.close("the test stops it").await;
        gone.raft.shutdown().await;
        gone.accepting.abort();
    }

    pub fn node(&self, node: u64) -> &Node {
        &self.nodes[&node]
    }

    pub fn running(&self) -> Vec<u64> {
        self.nodes.keys().copied().collect()
    }

    /// Cuts every link of a node, both ways.
    pub fn isolate(&self, node: u64) {
        let mut cuts = self.cuts.lock().unwrap();
        for other in self.members.keys().filter(|other| **other != node) {
            cuts.insert((node, *other));
            cuts.insert((*other, node));
        }
    }

    pub fn heal(&self) {
        self.cuts.lock().unwrap().clear();
    }

    pub fn standing(&self, node: u64) -> Standing {
        self.node(node).raft.standing().borrow().clone()
    }

    /// Waits until one of `among` leads and the others of them know it.
    pub async fn leader_among(&self, among: &[u64]) -> u64 {
        until("a leader that all know", || {
            let standings: Vec<_> = among.iter().map(|node| self.standing(*node)).collect();
            let leader = standings[0].leader?.0;
            let agreed = standings
                .iter()
                .all(|standing| standing.leader.map(|n| n.0) == Some(leader));
            (agreed && among.contains(&leader) && self.standing(leader).is_leader).then_some(leader)
        })
        .await
    }

    /// Waits until all of `among` have applied as much and agree on the state; gives back its digest.
    pub async fn equal_states(&self, among: &[u64]) -> u128 {
        until("equal states", || {
            let applied = |node: &u64| *self.node(*node).raft.applied().borrow();
            let first = applied(&among[0])?;
            let same = among.iter().all(|node| applied(node) == Some(first));
            let digests: BTreeSet<u128> = among
                .iter()
                .map(|node| self.node(*node).machine.read().unwrap().digest())
                .collect();
            (same && digests.len() == 1).then(|| digests.into_iter().next().unwrap())
        })
        .await
    }

    /// Proposes through a node until it is applied.
    pub async fn write(&self, node: u64, key: &str, value: &str) {
        let command = toy::batch(key, value.as_bytes());
        eventually("a write is applied", || {
            self.node(node).raft.propose(command.clone())
        })
        .await;
    }

    /// Up to where a node's log was purged, and what its snapshot covers.
    pub fn purged_and_snapshot(&self, node: u64) -> (Option<u64>, Option<u64>) {
        use openraft::async_runtime::WatchReceiver;
        let metrics = self.node(node).raft.raft().metrics();
        let metrics = metrics.borrow_watched();
        (
            metrics.purged.map(|id| id.index),
            metrics.snapshot.map(|id| id.index),
        )
    }

    pub fn cell(&self, node: u64, key: &str) -> Option<Vec<u8>> {
        self.node(node)
            .machine
            .read()
            .unwrap()
            .0
            .cells
            .get(key.as_bytes())
            .cloned()
    }
}

/// Waits for a condition, looking every few milliseconds.
pub async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let waiting = async {
        loop {
            if let Some(found) = look() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    match tokio::time::timeout(PATIENCE, waiting).await {
        Ok(found) => found,
        Err(_) => panic!("never within {PATIENCE:?}: {what}"),
    }
}

/// Tries until it succeeds.
pub async fn eventually<T, E: std::fmt::Display, F: Future<Output = Result<T, E>>>(
    what: &str,
    mut attempt: impl FnMut() -> F,
) -> T {
    let mut last = String::new();
    let trying = async {
        loop {
            match attempt().await {
                Ok(found) => return found,
                Err(error) => last = error.to_string(),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    match tokio::time::timeout(PATIENCE, trying).await {
        Ok(found) => found,
        Err(_) => panic!("never within {PATIENCE:?}: {what}; last: {last}"),
    }
}
