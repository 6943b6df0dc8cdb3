//! One Raft node: openraft over a store and a transport, with its proposer, and a watch on everything that ends it.
//!
//! Implements [`Consensus`], by which the rest of the node speaks to Raft. A fatal error of Raft or of storage turns up
//! in [`RaftNode::fatal`]: whoever holds the node ends the process then; nothing here goes on after it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use openraft::async_runtime::WatchReceiver;
use openraft::{BasicNode, ServerState};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use tollgate_core::ids::NodeId;
use tollgate_core::time::LedgerTime;
use tollgate_wire::frame::Class;

use super::inbound::{Inbound, READ_INDEX_DEADLINE};
use super::message::{self, Answer, Call};
use super::network::Factory;
use super::proposer::{self, Leader, Proposer, Queue};
use super::settings::{Settings, SettingsError};
use super::transport::{Peer, Transport};
use super::types::{Raft, TypeConfig};
use crate::consensus::{ConfirmError, Confirmed, Consensus, OnConfirm, ProposeError, Standing};
use crate::storage::Store;

type Metrics = openraft::RaftMetrics<TypeConfig>;

/// How often the log's size is looked at, and storage for a failure.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// What Raft is given by the rest of the node.
#[derive(Clone)]
pub struct Hooks {
    /// The guarded clock that stamps entries; asked on the leader only.
    pub time: Arc<dyn Fn() -> LedgerTime + Send + Sync>,
    /// What the leader says to a confirmation, once it has proved its leadership.
    pub on_confirm: OnConfirm,
}

/// Why a Raft node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting cannot work.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// openraft refused what it found in the store, or could not read it.
    #[error("Raft does not start on this data: {0}")]
    Raft(String),
}

/// A running Raft node. Clones share it.
#[derive(Clone)]
pub struct RaftNode {
    shared: Arc<Shared>,
}

struct Shared {
    own: u64,
    raft: Raft,
    inbound: Inbound,
    queue: Queue,
    transport: Arc<dyn Transport>,
    leader: watch::Receiver<Leader>,
    standing: watch::Receiver<Standing>,
    applied: watch::Receiver<Option<u64>>,
    fatal: watch::Receiver<Option<String>>,
    stop: watch::Sender<bool>,
    tasks: Mutex<JoinSet<()>>,
}

impl RaftNode {
    /// Starts Raft on an open store. It serves once it is a member: by [`Self::initialize`], or by a leader.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(
        cluster: &str,
        own: u64,
        store: Arc<Store>,
        transport: Arc<dyn Transport>,
        settings: &Settings,
        hooks: Hooks,
    ) -> Result<Self, StartError> {
        let config = settings.config(cluster)?;
        let (log, state) = store.halves();
        let applied = state.applied_index();
        let factory = Factory {
            own,
            transport: transport.clone(),
        };
        let raft = Raft::new(own, config, factory, log, state)
            .await
            .map_err(|error| StartError::Raft(error.to_string()))?;
        let (queue, incoming) = Queue::new();
        let (stop, stopping) = watch::channel(false);
        let (standing_sender, standing) = watch::channel(Standing::default());
        let (leader_sender, leader) = watch::channel(Leader::Unknown);
        let (fatal_sender, fatal) = watch::channel(None);
        let mut tasks = JoinSet::new();
        tasks.spawn(follow(raft.clone(), standing_sender, leader_sender));
        tasks.spawn(look_after(
            raft.clone(),
            store.clone(),
            settings.clone(),
            fatal_sender,
            stopping.clone(),
        ));
        let proposer = Proposer {
            raft: raft.clone(),
            transport: transport.clone(),
            hooks: hooks.clone(),
            leader: leader.clone(),
            stopping,
        };
        tasks.spawn(proposer.run(incoming));
        let inbound = Inbound {
            raft: raft.clone(),
            queue: queue.clone(),
            hooks,
            incoming: Arc::new(move || store.incoming_path()),
        };
        let shared = Shared {
            own,
            raft,
            inbound,
            queue,
            transport,
            leader,
            standing,
            applied,
            fatal,
            stop,
            tasks: Mutex::new(tasks),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Answers other nodes' calls.
    #[must_use]
    pub fn inbound(&self) -> &Inbound {
        &self.shared.inbound
    }

    /// openraft's handle, for membership, metrics and leadership transfer.
    #[must_use]
    pub fn raft(&self) -> &Raft {
        &self.shared.raft
    }

    /// Turns to the reason when this node must not go on. The process ends then.
    #[must_use]
    pub fn fatal(&self) -> watch::Receiver<Option<String>> {
        self.shared.fatal.clone()
    }

    /// Whether Raft stopped because storage refused a write.
    #[must_use]
    pub fn stopped_by_storage(&self) -> bool {
        let metrics = self.shared.raft.metrics();
        let state = metrics.borrow_watched().running_state.clone();
        matches!(state, Err(openraft::errors::Fatal::StorageError(_)))
    }

    /// Makes the members of a new cluster known; nothing happens where a log exists already. Every node may call it
    /// with the same members.
    ///
    /// # Errors
    /// [`StartError::Raft`] when this node is not among them, or has stopped.
    pub async fn initialize(&self, members: &BTreeMap<u64, String>) -> Result<(), StartError> {
        let failed = |error: &dyn std::fmt::Display| StartError::Raft(error.to_string());
        if self
            .shared
            .raft
            .is_initialized()
            .await
            .map_err(|error| failed(&error))?
        {
            return Ok(());
        }
        let nodes: BTreeMap<u64, BasicNode> = members
            .iter()
            .map(|(node, address)| {
                (
                    *node,
                    BasicNode {
                        addr: address.clone(),
                    },
                )
            })
            .collect();
        match self.shared.raft.initialize(nodes).await {
            Ok(()) => Ok(()),
            // A leader among the others was faster.
            Err(_) if matches!(self.shared.raft.is_initialized().await, Ok(true)) => Ok(()),
            Err(error) => Err(failed(&error)),
        }
    }

    /// Has a command agreed on and applied; its encoded reply.
    ///
    /// # Errors
    /// [`proposer::ProposeError`]: what was certainly not taken, and what has an unknown fate.
    pub async fn propose(&self, command: Vec<u8>) -> Result<Vec<u8>, proposer::ProposeError> {
        self.shared.queue.submit(command).await
    }

    /// Stops the proposer and Raft. The store closes when its last handle is dropped.
    pub async fn shutdown(&self) {
        self.shared.stop.send_replace(true);
        if let Err(error) = self.shared.raft.shutdown().await {
            tracing::warn!(%error, "Raft's task did not end well");
        }
        let mut tasks = self.shared.tasks.lock().await;
        while tasks.join_next().await.is_some() {}
    }

    async fn confirm_anywhere(&self, question: Vec<u8>) -> Result<Confirmed, ConfirmError> {
        let leader = self.shared.leader.borrow().clone();
        match leader {
            Leader::Unknown => Err(ConfirmError("no leader is known".into())),
            Leader::Here => {
                let confirmed = self
                    .shared
                    .inbound
                    .confirm(NodeId(self.shared.own), &question)
                    .await;
                confirmed
                    .map(|(read_index, answer)| Confirmed { read_index, answer })
                    .map_err(ConfirmError)
            }
            Leader::There(peer) => {
                let call = Call::Confirm(serde_bytes::ByteBuf::from(question));
                let payload = message::encode(&call).map_err(ConfirmError)?;
                let deadline = READ_INDEX_DEADLINE + LOOK_INTERVAL;
                let called = self
                    .shared
                    .transport
                    .call(&peer, Class::Control, payload, deadline)
                    .await;
                let answer = called.map_err(|error| ConfirmError(error.to_string()))?;
                match message::decode(&answer).map_err(ConfirmError)? {
                    Answer::Confirmed(read_index, answer) => Ok(Confirmed {
                        read_index,
                        answer: answer.into_vec(),
                    }),
                    Answer::Failed(words) => Err(ConfirmError(words)),
                    other => Err(ConfirmError(format!(
                        "an answer to another question: {other:?}"
                    ))),
                }
            }
        }
    }
}

impl Consensus for RaftNode {
    fn propose(&self, command: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, ProposeError>> {
        let reply = self.shared.queue.submit(command);
        Box::pin(async move {
            reply.await.map_err(|error| match error {
                proposer::ProposeError::UnknownFate(words) => ProposeError::UnknownFate(words),
                proposer::ProposeError::TooLarge { found, limit } => {
                    ProposeError::TooLarge { found, limit }
                }
                proposer::ProposeError::Stopped => ProposeError::Stopped,
                error @ (proposer::ProposeError::NotLeader { .. }
                | proposer::ProposeError::NotTaken(_)
                | proposer::ProposeError::Overloaded) => ProposeError::NotTaken(error.to_string()),
            })
        })
    }

    fn confirm(&self, question: Vec<u8>) -> BoxFuture<'_, Result<Confirmed, ConfirmError>> {
        Box::pin(self.confirm_anywhere(question))
    }

    fn standing(&self) -> watch::Receiver<Standing> {
        self.shared.standing.clone()
    }

    fn applied(&self) -> watch::Receiver<Option<u64>> {
        self.shared.applied.clone()
    }
}

fn standing_of(metrics: &Metrics) -> Standing {
    Standing {
        term: metrics.current_term,
        leader: metrics.current_leader.map(NodeId),
        is_leader: metrics.state == ServerState::Leader,
        voters: metrics.membership_config.voter_ids().map(NodeId).collect(),
        last_index: metrics.last_log_index.unwrap_or(0),
        committed_index: metrics.local_committed.map_or(0, |id| id.index),
    }
}

fn leader_of(metrics: &Metrics) -> Leader {
    match metrics.current_leader {
        Some(node) if node == metrics.id => Leader::Here,
        Some(node) => match metrics.membership_config.membership().get_node(&node) {
            Some(known) => Leader::There(Peer {
                node,
                address: known.addr.clone(),
            }),
            None => Leader::Unknown,
        },
        None => Leader::Unknown,
    }
}

/// Passes on where Raft stands, until Raft has stopped.
async fn follow(raft: Raft, standing: watch::Sender<Standing>, leader: watch::Sender<Leader>) {
    let mut metrics = raft.metrics();
    loop {
        let (now, leads) = {
            let metrics = metrics.borrow_watched();
            (standing_of(&metrics), leader_of(&metrics))
        };
        standing.send_if_modified(|old| std::mem::replace(old, now.clone()) != now);
        leader.send_if_modified(|old| std::mem::replace(old, leads.clone()) != leads);
        if metrics.changed().await.is_err() {
            return;
        }
    }
}

/// Watches for what ends the node, and has snapshots built when the log has grown.
async fn look_after(
    raft: Raft,
    store: Arc<Store>,
    settings: Settings,
    fatal: watch::Sender<Option<String>>,
    mut stopping: watch::Receiver<bool>,
) {
    let mut failure = store.failure();
    let mut metrics = raft.metrics();
    // Bytes and index at which a snapshot was asked for last.
    let (mut asked_bytes, mut asked_index) = (0, 0);
    let mut tick = tokio::time::interval(LOOK_INTERVAL);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            // Dropped with the core: its last words are in the metrics.
            _ = metrics.changed() => {}
            _ = failure.changed() => {}
            _ = stopping.wait_for(|stopping| *stopping) => return,
        }
        let (ended, last, snapshot) = {
            let metrics = metrics.borrow_watched();
            let snapshot = metrics.snapshot.map_or(0, |id| id.index);
            (
                metrics.running_state.clone().err(),
                metrics.last_log_index.unwrap_or(0),
                snapshot,
            )
        };
        let failed = failure.borrow().clone();
        if let Some(words) = failed.or_else(|| ended.map(|error| format!("Raft stopped: {error}")))
        {
            tracing::error!(words, "the node must stop");
            fatal.send_replace(Some(words));
            return;
        }
        let bytes = store.appended_bytes();
        let due = bytes - asked_bytes >= settings.snapshot_bytes
            || last.saturating_sub(snapshot.max(asked_index)) >= settings.snapshot_entries;
        if due {
            (asked_bytes, asked_index) = (bytes, last);
            if let Err(error) = raft.trigger().snapshot().await {
                tracing::warn!(%error, "no snapshot could be asked for");
            }
        }
    }
}
