//! What happens between an open port and the first edge that is served.
//!
//! [`Door`] takes connections and sends each to who answers it; [`Starting`] takes part in Raft where that is right
//! ([`crate::joining`]), compares its pepper with the cluster's, has this start numbered by the ledger, and then runs
//! as issuer until the node stops. Next:
//! [`crate::issuing`], [`crate::service`].

use crate::admin::View;
use crate::confirm::{self, Confirmation};
use crate::consensus::OnConfirm;
use crate::fatal::Fatal;
use crate::issuing::{self, Issuing};
use crate::joining::{self, Joining};
use crate::raft::RaftNode;
use crate::server::Serving;
use crate::service::notices::{self, Notice};
use crate::service::{Service, ServiceCounts, connection};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tollgate_core::command::{Command, NamePepperReply, OpenNode, OpenNodeReply, Reply};
use tollgate_core::ids::{Boot, Nonce};
use tollgate_wire::quic::{CloseCode, Connection, Endpoint, Protocol};

/// Pause before a start that has no boot yet asks for one again.
const OPEN_PAUSE: Duration = Duration::from_millis(100);

/// What a connection meets.
#[derive(Clone)]
pub(crate) struct Door {
    raft: RaftNode,
    serving: Serving,
    /// Turns once this node may take part in Raft.
    admitted: watch::Receiver<bool>,
    on_question: OnConfirm,
}

impl Door {
    pub(crate) fn new(view: &View, raft: RaftNode, admitted: watch::Receiver<bool>) -> Self {
        let on_question = joining::on_question(view.ledger.clone(), view.consensus.standing());
        Self {
            raft,
            serving: view.serving.clone(),
            admitted,
            on_question,
        }
    }

    /// Takes connections of nodes and edges until the endpoint closes.
    pub(crate) async fn accept(self, endpoint: Endpoint, fatal: Fatal) {
        // Ends with the node: connections are its tasks.
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                incoming = endpoint.accept() => {
                    let Some(incoming) = incoming else { break };
                    let door = self.clone();
                    connections.spawn(async move {
                        match incoming.establish().await {
                            Ok(connection) => door.serve(connection).await,
                            Err(error) => tracing::info!(%error, "a connection was refused"),
                        }
                    });
                }
                Some(ended) = connections.join_next(), if !connections.is_empty() => {
                    if let Err(error) = ended
                        && error.is_panic()
                    {
                        fatal.report(format!("a connection's task failed: {error}"));
                    }
                }
            }
        }
    }

    async fn serve(self, connection: Connection) {
        match connection.protocol() {
            Protocol::Raft => {
                joining::answer_only(&connection, &self.on_question, self.admitted).await;
                self.raft
                    .inbound()
                    .serve_answering(connection, Some(self.on_question))
                    .await;
            }
            Protocol::Edge => {
                let service = self.serving.borrow().clone();
                match service {
                    Some(service) => connection::serve(service, connection).await,
                    None => connection.close(CloseCode::Done, "the node is starting: ask another"),
                }
            }
        }
    }
}

/// A start that has no boot yet.
pub(crate) struct Starting {
    pub(crate) view: Arc<View>,
    pub(crate) raft: RaftNode,
    pub(crate) endpoint: Endpoint,
    pub(crate) admit: watch::Sender<bool>,
    pub(crate) fatal: Fatal,
}

impl Starting {
    /// Gets a boot, then serves as issuer until the node stops.
    pub(crate) async fn run(self, serve: watch::Sender<Option<Arc<Service>>>) {
        let started = tokio::select! {
            started = self.take_part() => started,
            () = self.fatal.stopping() => return,
        };
        let boot = match started {
            Ok(boot) => boot,
            Err(words) => {
                self.fatal.report(words);
                return;
            }
        };
        let Self { view, fatal, .. } = self;
        tracing::info!(node = %view.node, %boot, "this start is numbered");
        let (ledger, consensus) = (&view.ledger, &view.consensus);
        let confirmation = Confirmation::new(consensus.applied());
        let (notice_sender, notices) = watch::channel(Notice::of(ledger));
        let mut parts = JoinSet::new();
        parts.spawn(notices::run(
            notice_sender,
            ledger.clone(),
            consensus.clone(),
            fatal.clone(),
        ));
        parts.spawn(confirm::run(
            confirmation.clone(),
            consensus.clone(),
            ledger.clone(),
            boot,
            fatal.clone(),
        ));
        let (issuer, inputs) = issuing::queue();
        let task = Issuing::new(
            (view.node, boot),
            ledger.clone(),
            view.proposer.clone(),
            issuer.clone(),
            view.issuer_counts.clone(),
        );
        serve.send_replace(Some(Arc::new(Service {
            cluster: view.cluster.clone(),
            node: (view.node, boot),
            ledger: ledger.clone(),
            proposer: view.proposer.clone(),
            issuer,
            confirmation,
            pepper: view.pepper.clone(),
            notices,
            fatal: fatal.clone(),
            counts: ServiceCounts::default(),
        })));
        task.run(consensus.clone(), inputs, fatal).await;
        serve.send_replace(None);
        parts.shutdown().await;
    }

    /// Takes part in Raft, where that is right, compares peppers, and has this start numbered.
    async fn take_part(&self) -> Result<Boot, String> {
        let failed = |error: &dyn std::fmt::Display| error.to_string();
        let begun = self
            .raft
            .raft()
            .is_initialized()
            .await
            .map_err(|error| failed(&error))?;
        if !begun {
            let joining = joining::ask(&self.endpoint, self.view.node, &self.view.members).await;
            if joining.map_err(|error| failed(&error))? == Joining::Begin {
                self.raft
                    .initialize(&self.view.members)
                    .await
                    .map_err(|error| failed(&error))?;
            }
        }
        self.admit.send_replace(true);
        self.compare_peppers().await?;
        self.open().await
    }

    /// Has this start numbered; the same start number gets the same boot, so an unknown fate is asked again.
    async fn open(&self) -> Result<Boot, String> {
        let (node, starts) = (self.view.node, self.view.store.starts());
        let command = Command::OpenNode(OpenNode {
            node,
            nonce: Nonce(starts),
        });
        match self.answer_to(&command).await {
            Reply::OpenNode(OpenNodeReply::Boot(boot)) => Ok(boot),
            Reply::OpenNode(OpenNodeReply::StaleNonce { last }) => Err(format!(
                "the cluster knows start {last} of node {node}, but this data folder counts start {starts}: its data \
                 was lost or rolled back. A node id is never used again after that: remove the node from \
                 the cluster and join with an empty folder under a new id"
            )),
            other => Err(format!("the ledger answered OpenNode with {other:?}")),
        }
    }

    /// Refuses to serve with another pepper than the cluster's, which is the first that was named. The replica may know
    /// it; what it knows of that never changes.
    async fn compare_peppers(&self) -> Result<(), String> {
        let pepper = &self.view.pepper;
        let known = self.view.ledger.read().pepper();
        let cluster = match known {
            Some(cluster) => cluster,
            None => match self.answer_to(&Command::NamePepper(pepper.id())).await {
                Reply::NamePepper(NamePepperReply::Same) => pepper.id(),
                Reply::NamePepper(NamePepperReply::Other { cluster }) => cluster,
                other => return Err(format!("the ledger answered NamePepper with {other:?}")),
            },
        };
        pepper
            .is_the_clusters(cluster)
            .map_err(|error| error.to_string())
    }

    /// Proposes a command that may be repeated until it has an answer. The leader hears this node's clock first: from
    /// the second node of a new cluster on, a majority vouches for time.
    async fn answer_to(&self, command: &Command) -> Reply {
        loop {
            match confirm::tell_clock(&*self.view.consensus).await {
                Ok(_) => match self.view.proposer.propose(command).await {
                    Ok(reply) => return reply,
                    Err(error) => tracing::debug!(%error, "no answer yet"),
                },
                Err(error) => tracing::debug!(%error, "no leader to be told the clock yet"),
            }
            tokio::time::sleep(OPEN_PAUSE).await;
        }
    }
}
