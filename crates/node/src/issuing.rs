//! The issuer's task: one loop that owns [`Issuer`] and carries what goes in and out of it.
//!
//! In: what edges send, answers to positions, the replica's progress, time. Out: positions to the proposer, and
//! answers and recalls to the connections of edges. Decides nothing about units. Everything here is bounded and
//! may be dropped when full: positions are repeated by the issuer, requests by edges. Next: [`crate::service`].

use crate::clock;
use crate::consensus::{Consensus, Proposer};
use crate::fatal::Fatal;
use crate::machine::SharedLedger;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use tollgate_core::account::AccountId;
use tollgate_core::catalog::{Refusal, SecretMac};
use tollgate_core::command::{Command, PositionReply, Reply};
use tollgate_core::ids::{Boot, NodeId};
use tollgate_core::issuer::{Counts, Issuer, Output, ResolveLease};
use tollgate_core::message::{
    Held, Lease, NodeMessage, Resolve, ResolveAnswer, ResolveOutcome, SlotAnswer,
};

/// Messages waiting for the issuer, from all edges together; a full queue holds up the readers of streams.
pub const INPUTS_MAX: usize = 8192;
/// Messages taken from the queue before the replica's lock is let go.
pub const TAKEN_AT_ONCE: usize = 32;
/// Positions under way at once; further ones wait in the issuer, gathered by account.
pub const POSITIONS_MAX: usize = 512;
/// Between two looks at the time.
pub const TICK_INTERVAL: Duration = Duration::from_millis(50);
/// Ticks between two sums over all pools, which are for metrics only.
const POOLED_EVERY: u32 = 40;
/// What the clock is moved ahead by when a node stops, so that every pool counts as idle; below the time after
/// which rows are dropped.
const DRAIN_AHEAD_MS: u64 = 60_000;
/// Looks at all accounts that a stop takes at most: each looks at some thousands.
const DRAIN_ROUNDS_MAX: usize = 1024;
/// How long a stop waits for the ledger to take the pools back.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(1);

/// Where an edge's messages go: its connection's queues.
#[derive(Clone, Debug)]
pub struct Outlet {
    /// Number of the connection.
    pub contact: u64,
    /// To the lease stream.
    pub lease: mpsc::Sender<NodeMessage>,
    /// To the control stream.
    pub control: mpsc::Sender<NodeMessage>,
}

/// What goes into the issuer's task.
#[derive(Debug)]
pub enum Input {
    /// An edge's connection belongs to this boot now.
    Connected(Boot, Outlet),
    /// The connection of this number is gone.
    Disconnected(Boot, u64),
    /// See [`Lease`].
    Lease(Lease),
    /// See [`Held`].
    Held(Held),
    /// See [`Resolve`]; with what is stored of such a secret, and whether the node's view is confirmed.
    Resolve {
        /// The request.
        resolve: Resolve,
        /// The HMAC of the presented secret.
        mac: SecretMac,
        /// Whether the node could prove its view when the request came.
        confirmed: bool,
        /// Where the answer goes.
        outlet: mpsc::Sender<NodeMessage>,
    },
    /// The ledger answered a position.
    Position(PositionReply),
}

/// What the task counts, for metrics and status.
#[derive(Debug, Default)]
pub struct IssuerCounts {
    /// Units granted.
    pub granted: AtomicU64,
    /// Units stranded in pools of ended epochs.
    pub stranded: AtomicU64,
    /// Units in pools now.
    pub pooled: AtomicU64,
    /// Recalls sent.
    pub recalls: AtomicU64,
    /// Lines of leases that stated more surrendered than their edge can have had.
    pub overstated: AtomicU64,
    /// Requests ahead of this replica that were dropped.
    pub held_dropped: AtomicU64,
    /// Edges connected now.
    pub connected: AtomicU64,
    /// Lease requests taken.
    pub leases: AtomicU64,
    /// Resolves taken.
    pub resolves: AtomicU64,
    /// Positions proposed.
    pub positions: AtomicU64,
    /// Positions of unknown fate.
    pub positions_unknown: AtomicU64,
    /// Answers and recalls dropped because a connection's queue was full or gone.
    pub dropped: AtomicU64,
}

/// See the module's text.
pub struct Issuing {
    issuer: Issuer,
    ledger: SharedLedger,
    proposer: Proposer,
    outlets: BTreeMap<Boot, Outlet>,
    permits: Arc<Semaphore>,
    back: mpsc::Sender<Input>,
    counts: Arc<IssuerCounts>,
}

/// The queue into the task.
#[must_use]
pub fn queue() -> (mpsc::Sender<Input>, mpsc::Receiver<Input>) {
    mpsc::channel(INPUTS_MAX)
}

impl Issuing {
    /// The issuer of one boot. `back` is the sending end of the queue that [`Issuing::run`] reads.
    #[must_use]
    pub fn new(
        (node, boot): (NodeId, Boot),
        ledger: SharedLedger,
        proposer: Proposer,
        back: mpsc::Sender<Input>,
        counts: Arc<IssuerCounts>,
    ) -> Self {
        Self {
            issuer: Issuer::new(node, boot),
            ledger,
            proposer,
            outlets: BTreeMap::new(),
            permits: Arc::new(Semaphore::new(POSITIONS_MAX)),
            back,
            counts,
        }
    }

    /// Runs until the node stops, then returns what is in pools.
    pub async fn run(
        mut self,
        consensus: Arc<dyn Consensus>,
        mut inputs: mpsc::Receiver<Input>,
        fatal: Fatal,
    ) {
        let mut applied = consensus.applied();
        let mut tick = tokio::time::interval(TICK_INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut ticks = 0_u32;
        let mut taken = Vec::with_capacity(TAKEN_AT_ONCE);
        loop {
            tokio::select! {
                _ = inputs.recv_many(&mut taken, TAKEN_AT_ONCE) => self.take(&mut taken),
                changed = applied.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.issuer.handle_applied(clock::mono(), &self.ledger.read());
                }
                _ = tick.tick() => {
                    self.issuer.handle_timeout(clock::mono(), &self.ledger.read());
                    ticks = ticks.wrapping_add(1);
                    if ticks.is_multiple_of(POOLED_EVERY) {
                        self.counts.pooled.store(self.issuer.pooled(), Ordering::Relaxed);
                    }
                }
                () = fatal.stopping() => break,
            }
            self.forward();
        }
        // Who is refused now asks the next issuer.
        drop(tokio::time::timeout(DRAIN_DEADLINE, self.drain(inputs)).await);
    }

    /// Returns every pool to the ledger. Beyond the deadline they stay in `out`: stranded, never over-issued.
    async fn drain(&mut self, mut inputs: mpsc::Receiver<Input>) {
        for _ in 0..DRAIN_ROUNDS_MAX {
            if self.issuer.pooled() == 0 {
                break;
            }
            let ahead = clock::mono().plus_ms(DRAIN_AHEAD_MS);
            self.issuer.handle_timeout(ahead, &self.ledger.read());
            self.forward();
        }
        // Every permit back means that every position has its answer or is given up.
        let all = u32::try_from(POSITIONS_MAX).unwrap_or(u32::MAX);
        loop {
            tokio::select! {
                _ = self.permits.acquire_many(all) => return,
                input = inputs.recv() => if input.is_none() { return },
            }
        }
    }

    fn take(&mut self, taken: &mut Vec<Input>) {
        let ledger = self.ledger.clone();
        let ledger = ledger.read();
        for input in taken.drain(..) {
            let now = clock::mono();
            match input {
                Input::Connected(boot, outlet) => {
                    self.outlets.insert(boot, outlet);
                    self.issuer.handle_connected(boot);
                }
                Input::Disconnected(boot, contact) => {
                    // Another connection of the same boot may have taken over.
                    if self
                        .outlets
                        .get(&boot)
                        .is_some_and(|outlet| outlet.contact == contact)
                    {
                        self.outlets.remove(&boot);
                        self.issuer.handle_disconnected(boot);
                    }
                }
                Input::Lease(lease) => {
                    self.counts.leases.fetch_add(1, Ordering::Relaxed);
                    let overstated = self.issuer.counts().overstated;
                    if let Some(answer) = self.issuer.handle_lease(now, &ledger, &lease) {
                        self.send(
                            lease.boot,
                            |outlet| &outlet.lease,
                            NodeMessage::Lease(answer),
                        );
                    }
                    if self.issuer.counts().overstated > overstated {
                        tracing::warn!(
                            boot = %lease.boot,
                            "an edge hands in more units than it can have had; the rest counts for nothing"
                        );
                    }
                }
                Input::Held(held) => self.issuer.handle_held(now, &ledger, &held),
                Input::Position(reply) => self.issuer.handle_position(now, &ledger, &reply),
                Input::Resolve {
                    resolve,
                    mac,
                    confirmed,
                    outlet,
                } => {
                    self.counts.resolves.fetch_add(1, Ordering::Relaxed);
                    let (outcome, lease) = if confirmed {
                        match ledger
                            .catalog()
                            .resolve(resolve.key.as_str(), &mac, ledger.time())
                        {
                            Ok(principal) => {
                                let accounts: Vec<AccountId> = principal
                                    .limits
                                    .iter()
                                    .map(|limit| limit.account.clone())
                                    .collect();
                                let lease = self.lease_of(&resolve, &accounts, &ledger);
                                (ResolveOutcome::Principal(Arc::new(principal)), lease)
                            }
                            Err(refusal) => (refused(refusal), None),
                        }
                    } else {
                        (ResolveOutcome::Unconfirmed, None)
                    };
                    let revision = ledger.catalog().revision();
                    let answer = ResolveAnswer {
                        nonce: resolve.nonce,
                        revision,
                        outcome,
                        lease,
                    };
                    if outlet.try_send(NodeMessage::Resolve(answer)).is_err() {
                        self.counts.dropped.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        }
    }

    fn lease_of(
        &mut self,
        resolve: &Resolve,
        accounts: &[AccountId],
        ledger: &tollgate_core::ledger::Ledger,
    ) -> Option<SlotAnswer> {
        let Resolve {
            boot,
            lease_no,
            want,
            need,
            ..
        } = *resolve;
        let request = ResolveLease {
            boot,
            lease_no,
            want,
            need,
            accounts,
        };
        self.issuer.handle_resolve(clock::mono(), ledger, &request)
    }

    /// Carries out what the issuer wants.
    fn forward(&mut self) {
        while let Some(output) = self.issuer.poll() {
            match output {
                Output::Answer(answer) => {
                    self.send(
                        answer.boot,
                        |outlet| &outlet.lease,
                        NodeMessage::Lease(answer),
                    );
                }
                Output::Recall { to, recall } => {
                    self.send(to, |outlet| &outlet.control, NodeMessage::Recall(recall));
                }
                Output::Propose(position) => self.propose(Command::Position(position)),
            }
        }
        let Counts {
            granted,
            stranded,
            recalls,
            held_dropped,
            overstated,
        } = self.issuer.counts();
        self.counts.granted.store(granted, Ordering::Relaxed);
        self.counts.stranded.store(stranded, Ordering::Relaxed);
        self.counts.recalls.store(recalls, Ordering::Relaxed);
        self.counts.overstated.store(overstated, Ordering::Relaxed);
        self.counts
            .held_dropped
            .store(held_dropped, Ordering::Relaxed);
        self.counts
            .connected
            .store(self.outlets.len() as u64, Ordering::Relaxed);
    }

    fn send(
        &self,
        to: Boot,
        queue: impl Fn(&Outlet) -> &mpsc::Sender<NodeMessage>,
        message: NodeMessage,
    ) {
        let sent = self
            .outlets
            .get(&to)
            .is_some_and(|outlet| queue(outlet).try_send(message).is_ok());
        if !sent {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn propose(&self, command: Command) {
        // Without a permit the position is dropped: the issuer repeats it, with what came meanwhile.
        let Ok(permit) = self.permits.clone().try_acquire_owned() else {
            return;
        };
        self.counts.positions.fetch_add(1, Ordering::Relaxed);
        let (proposer, back, counts) = (
            self.proposer.clone(),
            self.back.clone(),
            self.counts.clone(),
        );
        tokio::spawn(async move {
            let reply = proposer.propose(&command).await;
            drop(permit);
            match reply {
                Ok(Reply::Position(reply)) => {
                    // Gone when the node stops.
                    drop(back.send(Input::Position(reply)).await);
                }
                Ok(other) => {
                    tracing::error!(?other, "the ledger answered a position with something else");
                }
                Err(error) => {
                    counts.positions_unknown.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(%error, "a position has no answer");
                }
            }
        });
    }
}

fn refused(refusal: Refusal) -> ResolveOutcome {
    match refusal {
        Refusal::Invalid => ResolveOutcome::Invalid,
        Refusal::Revoked => ResolveOutcome::Revoked,
        Refusal::LicenseSuspended => ResolveOutcome::LicenseSuspended,
    }
}
