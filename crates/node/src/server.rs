//! A whole node: opens everything in order, says in words what is wrong, and closes everything in order.
//!
//! ```text
//! pepper, certificates ─► ports ─► store ─► Raft ─► NamePepper, OpenNode (a boot) ─► issuer, confirmations, edges
//! ```
//! Other nodes are answered as soon as Raft runs; edges once this start has its boot. A stop goes backwards: edges
//! are told, pools are returned, leadership is handed over, the store writes a last checkpoint. Next:
//! [`crate::starting`] for what happens between the ports and the first edge, then [`crate::service`] for edges
//! and [`crate::admin`] for people.

use crate::admin::{self, AdminListener};
use crate::config::{ConfigError, ServerConfig};
use crate::consensus::{Consensus, Proposer};
use crate::fatal::{Fatal, Stop};
use crate::machine::SharedLedger;
use crate::overseer::Overseer;
use crate::pepper::{Pepper, PepperError};
use crate::raft::quic::Peers;
use crate::raft::{Hooks, RaftNode, StartError};
use crate::service::Service;
use crate::starting::{Door, Starting};
use crate::storage::{EXIT_STORAGE, Store, StoreError};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tollgate_core::account::{Name, NameError};
use tollgate_core::ids::{Boot, Incarnation, NodeId};
use tollgate_wire::identity::{PeerIdentity, Role};
use tollgate_wire::quic::{Endpoint, ListenError, Protocol};
use tollgate_wire::tls::{Tls, TlsError};

/// The life of the data a new cluster begins with; a restore begins another.
pub const FIRST_INCARNATION: Incarnation = Incarnation(1);

/// How long a stop waits for a part of the node before it goes on without it.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// How long a stop waits for another leader.
const TRANSFER_DEADLINE: Duration = Duration::from_secs(1);

/// Why a node did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The pepper is missing or unsafe.
    #[error(transparent)]
    Pepper(#[from] PepperError),
    /// A certificate is missing or wrong.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The certificate is another node's.
    #[error(
        "the certificate {file} is for {found}, but the configuration says {expected}: \
        correct `cluster`, `node` or `tls.certificate`"
    )]
    OtherNode {
        /// The file.
        file: String,
        /// Whom it is for.
        found: Box<PeerIdentity>,
        /// Whom the configuration names.
        expected: String,
    },
    /// The cluster's name cannot be.
    #[error("the cluster's name {0}")]
    Name(#[from] NameError),
    /// The QUIC port cannot be listened on.
    #[error("`listen.quic`: {0}; stop what uses the port, or choose another")]
    Quic(#[from] ListenError),
    /// A TCP port cannot be listened on.
    #[error(
        "`{field}`: cannot listen on {address}: {source}; stop what uses the port, or choose another"
    )]
    Tcp {
        /// The field of the configuration.
        field: &'static str,
        /// Its value.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The data folder was refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Raft refused what it found.
    #[error(transparent)]
    Raft(#[from] StartError),
    /// Storage refused a write while the node ran; nothing of it was acknowledged.
    #[error(
        "storage refused a write, the node has stopped: {0}; make room or mend the disk, then start it again"
    )]
    Storage(String),
    /// A part of the node could not be started, or the node must not go on.
    #[error("{0}")]
    Fatal(String),
}

impl ServerError {
    /// The exit code of a process that ends with this error: [`EXIT_STORAGE`] where storage refused a write, else 1.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Storage(_) => EXIT_STORAGE,
            _ => 1,
        }
    }
}

/// Runs a node until it is asked to stop (SIGTERM, SIGINT) or must.
///
/// # Errors
/// [`ServerError`].
pub async fn run(config: ServerConfig) -> Result<(), ServerError> {
    // From here on: a signal during the start ends the node once it can end whole.
    let signals = listen_for_signals();
    let server = Server::start(config).await?;
    let fatal = server.fatal.clone();
    let signals = tokio::spawn(async move {
        match signals {
            Ok((mut terminate, mut interrupt)) => tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            },
            Err(error) => {
                tracing::error!(%error, "no signals can be received: stop this process with kill");
                std::future::pending::<()>().await;
            }
        }
        fatal.stop(Stop::Asked);
    });
    let ended = server.ended().await;
    signals.abort();
    ended
}

fn listen_for_signals() -> std::io::Result<(Signal, Signal)> {
    Ok((
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    ))
}

/// A running node.
pub struct Server {
    quic: SocketAddr,
    admin: SocketAddr,
    metrics: Option<SocketAddr>,
    node: NodeId,
    fatal: Fatal,
    raft: RaftNode,
    store: Arc<Store>,
    endpoint: Endpoint,
    serving: Serving,
    issuing: JoinHandle<()>,
    parts: JoinSet<()>,
}

/// Turns to the service once this start has its boot.
pub(crate) type Serving = watch::Receiver<Option<Arc<Service>>>;

impl Server {
    /// Opens everything and starts to serve; answers once other nodes are answered, which may be before this
    /// one has its boot.
    ///
    /// # Errors
    /// [`ServerError`]: nothing is left running.
    pub async fn start(config: ServerConfig) -> Result<Self, ServerError> {
        config.validate()?;
        let cluster = Name::new(&config.cluster)?;
        let node = config.node_id();
        let pepper = Pepper::load(&config.pepper.file)?;
        let tls = Tls::load(config.tls_files(), Role::Node)?;
        check_identity(&config, &tls)?;
        let doors = Doors::open(&config, &tls).await?;
        let ledger = SharedLedger::new(FIRST_INCARNATION);
        let store = open_store(&config, &ledger).await?;
        let fatal = Fatal::default();
        let overseer = Arc::new(Overseer::new(node, ledger.clone(), fatal.clone()));
        let raft = start_raft(&config, store.clone(), &doors.endpoint, &overseer).await?;
        let consensus: Arc<dyn Consensus> = Arc::new(raft.clone());
        let (serve, serving) = watch::channel(None);
        let view = Arc::new(admin::View {
            cluster,
            node,
            ledger,
            proposer: Proposer::new(consensus.clone()),
            consensus,
            pepper,
            serving: serving.clone(),
            issuer_counts: Arc::default(),
            store: store.clone(),
            data_dir: config.data_dir.clone(),
            members: config
                .members
                .iter()
                .map(|m| (m.node, m.quic.clone()))
                .collect(),
        });
        let Doors {
            endpoint,
            quic,
            admin,
            metrics,
        } = doors;
        let (admin_address, metrics_address) = (
            admin.address,
            metrics.as_ref().map(|metrics| metrics.address),
        );
        let (admit, admitted) = watch::channel(false);
        let door = Door::new(&view, raft.clone(), admitted);
        let mut parts = JoinSet::new();
        parts.spawn(door.accept(endpoint.clone(), fatal.clone()));
        parts.spawn(report_fatal(raft.clone(), store.clone(), fatal.clone()));
        parts.spawn(overseer.run(view.consensus.clone(), view.proposer.clone()));
        parts.spawn(admin::serve(admin, tls, view.clone(), fatal.clone()));
        if let Some(metrics) = metrics {
            parts.spawn(admin::serve_metrics(metrics, view.clone(), fatal.clone()));
        }
        let starting = Starting {
            view,
            raft: raft.clone(),
            endpoint: endpoint.clone(),
            admit,
            fatal: fatal.clone(),
        };
        let issuing = tokio::spawn(starting.run(serve));
        tracing::info!(%node, %quic, admin = %admin_address, "the node listens");
        Ok(Self {
            quic,
            admin: admin_address,
            metrics: metrics_address,
            node,
            fatal,
            raft,
            store,
            endpoint,
            serving,
            issuing,
            parts,
        })
    }

    /// Where nodes and edges reach it.
    #[must_use]
    pub fn quic(&self) -> SocketAddr {
        self.quic
    }

    /// Where administrators reach it.
    #[must_use]
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Where `/metrics` is served.
    #[must_use]
    pub fn metrics(&self) -> Option<SocketAddr> {
        self.metrics
    }

    /// Waits until this start has its boot and serves edges.
    pub async fn serves(&self) -> Boot {
        let mut serving = self.serving.clone();
        match serving.wait_for(Option::is_some).await {
            Ok(service) => service.as_ref().map_or(Boot(0), |service| service.node.1),
            // It ended before it had one.
            Err(_) => Boot(0),
        }
    }

    /// Asks the node to stop; [`Server::ended`] waits for it.
    pub fn stop(&self) {
        self.fatal.stop(Stop::Asked);
    }

    /// Waits until the node is asked to stop or must, and closes everything.
    ///
    /// # Errors
    /// [`ServerError::Storage`] or [`ServerError::Fatal`] with the reason, when it had to.
    pub async fn ended(mut self) -> Result<(), ServerError> {
        let reason = self.fatal.reason().await;
        match &reason {
            Stop::Asked => tracing::info!(node = %self.node, "the node stops"),
            Stop::Fatal(words) | Stop::Storage(words) => {
                tracing::error!(node = %self.node, words, "the node must stop");
            }
        }
        // The issuer returns its pools, for which Raft must still run.
        drop(tokio::time::timeout(STOP_DEADLINE, &mut self.issuing).await);
        if reason == Stop::Asked {
            self.hand_over().await;
        }
        self.raft.shutdown().await;
        self.endpoint.close("the node stops").await;
        let ended = async { while self.parts.join_next().await.is_some() {} };
        drop(tokio::time::timeout(STOP_DEADLINE, ended).await);
        self.parts.shutdown().await;
        let Self {
            store,
            raft,
            serving,
            ..
        } = self;
        drop((raft, serving));
        // Its last checkpoint blocks on the disk.
        drop(tokio::task::spawn_blocking(move || drop(store)).await);
        match reason {
            Stop::Asked => Ok(()),
            Stop::Storage(words) => Err(ServerError::Storage(words)),
            Stop::Fatal(words) => Err(ServerError::Fatal(words)),
        }
    }

    /// Ends at once and in silence, as a crash looks to the other nodes; the data folder is let go of.
    #[doc(hidden)]
    pub async fn abandon(mut self) {
        self.issuing.abort();
        self.parts.abort_all();
        self.raft.shutdown().await;
        self.parts.shutdown().await;
    }

    /// Lets another voter lead, so that the cluster does not wait for an election.
    async fn hand_over(&self) {
        let mut standing = Consensus::standing(&self.raft);
        let to = {
            let standing = standing.borrow_and_update();
            let other = standing
                .voters
                .iter()
                .find(|voter| **voter != self.node)
                .copied();
            other.filter(|_| standing.is_leader)
        };
        let Some(to) = to else { return };
        match self.raft.raft().trigger().transfer_leader(to.0).await {
            Ok(()) => {
                let moved = standing.wait_for(|standing| !standing.is_leader);
                drop(tokio::time::timeout(TRANSFER_DEADLINE, moved).await);
            }
            Err(error) => tracing::warn!(%error, "leadership could not be handed over"),
        }
    }
}

fn check_identity(config: &ServerConfig, tls: &Tls) -> Result<(), ServerError> {
    let found = tls.identity();
    if found.cluster().as_str() == config.cluster && found.node_id() == Some(config.node_id()) {
        return Ok(());
    }
    Err(ServerError::OtherNode {
        file: config.tls.certificate.display().to_string(),
        found: Box::new(found.clone()),
        expected: format!("node {} of cluster {}", config.node, config.cluster),
    })
}

async fn open_store(
    config: &ServerConfig,
    ledger: &SharedLedger,
) -> Result<Arc<Store>, ServerError> {
    let (config, machine) = (config.store_config(FIRST_INCARNATION), ledger.machine());
    match tokio::task::spawn_blocking(move || Store::open(&config, machine)).await {
        Ok(opened) => Ok(Arc::new(opened?)),
        Err(error) => Err(ServerError::Fatal(format!(
            "opening the data folder failed: {error}"
        ))),
    }
}

/// The ports of a node, taken before anything else is touched.
struct Doors {
    endpoint: Endpoint,
    quic: SocketAddr,
    admin: AdminListener,
    metrics: Option<AdminListener>,
}

impl Doors {
    async fn open(config: &ServerConfig, tls: &Tls) -> Result<Self, ServerError> {
        let admin = AdminListener::bind("listen.admin", config.listen.admin).await?;
        let metrics = match config.listen.metrics {
            Some(address) => Some(AdminListener::bind("listen.metrics", address).await?),
            None => None,
        };
        let address = config.listen.quic;
        let endpoint = Endpoint::listen(address, tls, &Protocol::ALL)?;
        let quic = endpoint
            .local_addr()
            .map_err(|source| ListenError { address, source })?;
        Ok(Self {
            endpoint,
            quic,
            admin,
            metrics,
        })
    }
}

async fn start_raft(
    config: &ServerConfig,
    store: Arc<Store>,
    endpoint: &Endpoint,
    overseer: &Arc<Overseer>,
) -> Result<RaftNode, StartError> {
    let (clock, asked) = (overseer.clone(), overseer.clone());
    let hooks = Hooks {
        time: Arc::new(move || clock.ledger_time()),
        on_confirm: Arc::new(move |from, question| asked.handle_question(from, question)),
    };
    let peers = Arc::new(Peers::new(endpoint.clone()));
    let settings = config.raft_settings();
    RaftNode::start(&config.cluster, config.node, store, peers, &settings, hooks).await
}

async fn report_fatal(raft: RaftNode, store: Arc<Store>, fatal: Fatal) {
    let mut reason = raft.fatal();
    tokio::select! {
        found = reason.wait_for(Option::is_some) => {
            let Ok(words) = found else { return };
            let words = words.clone().unwrap_or_default();
            if store.failure().borrow().is_some() || raft.stopped_by_storage() {
                fatal.report_storage(words);
            } else {
                fatal.report(words);
            }
        }
        () = fatal.stopping() => {}
    }
}
