//! [`Driver`]: the one task that keeps an edge supplied: it owns lessee, reporter, waiters and timers.
//!
//! Owns nothing that a check reads: those are the [`View`] and the cells, which it fills. In: what checks
//! lack ([`Ask`]), what nodes say ([`Event`]), time. Out: messages to nodes, entries to the journal, wakes.
//! Decides nothing about units: `core::lessee` does. Parts: `answers` (what nodes say), `session` (who this
//! edge is to the ledger), `reports` (use), `closing` (the end); `resolve`, `wait`, `known`, `freshness`,
//! `nodes` and `writer` each own one table.

mod answers;
mod closing;
mod freshness;
mod known;
mod nodes;
mod pace;
mod reports;
mod resolve;
mod session;
mod wait;
mod writer;

pub(crate) use wait::Wake;

use crate::cell::EdgeCell;
use crate::clock;
use crate::config::EdgeConfig;
use crate::credential::{Hash, Presented};
use crate::journal::Journal;
use crate::link::{Event, Introduction};
use crate::sources::SourceSlot;
use crate::status::{Left, SessionState, Status, TrafficCounts};
use crate::view::{DENIALS_MAX, View};
use closing::Closing;
use freshness::Freshness;
use known::Known;
use nodes::{Nodes, Stream};
use pace::Pace;
use reports::{Reports, ms};
use resolve::{Asker, Resolves};
use session::Session;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tollgate_core::account::AccountId;
use tollgate_core::ids::{Boot, Incarnation, NodeId, Nonce, Units};
use tollgate_core::lessee::{Cell, Lessee, Output};
use tollgate_core::message::EdgeMessage;
use tollgate_core::time::Mono;
use wait::Waiters;

/// Questions of checks waiting for the driver; further ones are told that there is no answer.
pub(crate) const ASKS_MAX: usize = 8192;
/// Messages of nodes waiting for the driver; links wait for room.
pub(crate) const EVENTS_MAX: usize = 1024;
/// Asks and events taken before the outputs are looked at.
const BATCH: usize = 512;
/// How often the driver looks at its timers while something waits.
const BUSY_TICK: Duration = Duration::from_millis(10);
/// A need that was told to the lessee is told again after this while checks wait.
const WANT_AGAIN_MS: u64 = 50;

/// What a check lacks.
pub(crate) enum Ask {
    /// Who presents this credential?
    Resolve {
        hash: Hash,
        presented: Presented,
        cost: Units,
        wake: Option<Wake>,
        source: Option<SourceSlot>,
    },
    /// Cells of these accounts held too little.
    Want {
        accounts: Vec<AccountId>,
        cost: Units,
        wake: Option<Wake>,
    },
    /// Hand in everything, report everything, end the session.
    Close {
        deadline: Duration,
        done: oneshot::Sender<Left>,
    },
}

/// See the module's text.
pub(crate) struct Driver {
    config: EdgeConfig,
    view: Arc<View>,
    asks: mpsc::Receiver<Ask>,
    events: mpsc::Receiver<Event>,
    introduction: watch::Sender<Introduction>,
    status: watch::Sender<Status>,
    nodes: Nodes,
    session: Session,
    lessee: Lessee<EdgeCell>,
    reports: Reports,
    resolves: Resolves,
    waiters: Waiters,
    known: Known,
    freshness: Freshness,
    /// Denied credentials in the view, oldest first.
    denials: VecDeque<Hash>,
    traffic: TrafficCounts,
    pace: Pace,
    kept_alive_at: Mono,
    wanted_at: Mono,
    closing: Option<Closing>,
}

/// What a driver is made with.
pub(crate) struct Inputs {
    pub(crate) config: EdgeConfig,
    pub(crate) view: Arc<View>,
    pub(crate) asks: mpsc::Receiver<Ask>,
    pub(crate) events: mpsc::Receiver<Event>,
    pub(crate) introduction: watch::Sender<Introduction>,
    pub(crate) status: watch::Sender<Status>,
    pub(crate) journal: Option<Journal>,
    /// The start number; on disk already where there is a journal.
    pub(crate) nonce: Nonce,
}

impl Driver {
    pub(crate) fn new(inputs: Inputs) -> Self {
        let Inputs {
            config,
            view,
            asks,
            events,
            introduction,
            status,
            journal,
            nonce,
        } = inputs;
        let kept = journal.as_ref().map(|journal| journal.kept().clone());
        let journal_interval_ms = journal.is_some().then(|| ms(config.journal_interval));
        Self {
            nodes: Nodes::new(&config.nodes),
            session: Session::new(nonce, kept),
            // No boot is 0: nothing is asked before a session is open.
            lessee: Lessee::new(Boot(0)),
            reports: Reports::new(journal),
            resolves: Resolves::default(),
            waiters: Waiters::default(),
            known: Known::default(),
            freshness: Freshness::default(),
            denials: VecDeque::new(),
            traffic: TrafficCounts::default(),
            pace: Pace::new(journal_interval_ms),
            kept_alive_at: Mono(0),
            wanted_at: Mono(0),
            closing: None,
            config,
            view,
            asks,
            events,
            introduction,
            status,
        }
    }

    /// The status before the driver has run.
    pub(crate) fn first_status(config: &EdgeConfig) -> Status {
        Status {
            session: SessionState::Opening,
            nodes: Nodes::new(&config.nodes).status(),
            revision: Freshness::default().acted(),
            stale_ms: None,
            ready: false,
            principals: 0,
            accounts: 0,
            held: 0,
            unacknowledged: 0,
            journal_late: 0,
            traffic: TrafficCounts::default(),
        }
    }

    /// Runs until the edge is closed or every handle to it is gone. Answers whom to tell what was left.
    pub(crate) async fn run(mut self) -> Option<(oneshot::Sender<Left>, Left)> {
        let mut tick = Instant::now();
        while !self.is_over() {
            // Not biased: neither asks nor news nor the disk may starve the others.
            tokio::select! {
                event = self.events.recv() => match event {
                    Some(event) => self.take_events(event),
                    None => break,
                },
                ask = self.asks.recv() => match ask {
                    Some(ask) => self.take_asks(ask),
                    None => break,
                },
                written = self.reports.writer.finished() => self.handle_written(written),
                () = tokio::time::sleep_until(tick) => {}
            }
            let now = clock::now();
            if Instant::now() >= tick {
                self.handle_time(now);
                let pause = Duration::from_millis(self.pace.until_due_ms(now));
                tick = Instant::now()
                    + if self.is_waiting() {
                        pause.min(BUSY_TICK)
                    } else {
                        pause
                    };
            } else if self.is_waiting() {
                tick = tick.min(Instant::now() + BUSY_TICK);
            }
            self.pump(now);
        }
        self.view.set_open(false);
        self.publish(clock::now());
        self.take_end()
    }

    fn take_events(&mut self, first: Event) {
        let mut next = Some(first);
        for _ in 0..BATCH {
            let Some(event) = next else { return };
            // The clock is read after the frame was taken in.
            self.handle_event(clock::now(), event);
            next = self.events.try_recv().ok();
        }
        if let Some(event) = next {
            self.handle_event(clock::now(), event);
        }
    }

    fn take_asks(&mut self, first: Ask) {
        let mut next = Some(first);
        let now = clock::now();
        for _ in 0..BATCH {
            let Some(ask) = next else { return };
            self.handle_ask(now, ask);
            next = self.asks.try_recv().ok();
        }
        if let Some(ask) = next {
            self.handle_ask(now, ask);
        }
    }

    fn handle_ask(&mut self, now: Mono, ask: Ask) {
        match ask {
            Ask::Close { deadline, done } => self.begin_closing(now, deadline, done),
            _ if self.closing.is_some() => {}
            // Answered between the check's look and now: it will find the answer.
            Ask::Resolve {
                hash, wake, source, ..
            } if self.view.knows(hash) => {
                if let Some(source) = source {
                    self.view.sources.pay_back(source);
                }
                if let Some(wake) = wake {
                    // Nobody waits any more: as good.
                    let _ = wake.send(());
                }
            }
            Ask::Resolve {
                hash,
                presented,
                cost,
                wake,
                source,
            } => {
                let asker = Asker {
                    hash,
                    presented,
                    cost,
                    wake,
                    source,
                };
                let lessee = &mut self.lessee;
                let unused = self.resolves.ask(now, asker, || lessee.draw());
                if let Some(source) = unused {
                    self.view.sources.pay_back(source);
                }
            }
            Ask::Want {
                accounts,
                cost,
                wake,
            } => self.want(now, accounts, cost, wake),
        }
    }

    /// A check found too little; by the time this is heard there may be enough.
    fn want(&mut self, now: Mono, accounts: Vec<AccountId>, cost: Units, wake: Option<Wake>) {
        let short: Vec<AccountId> = accounts
            .into_iter()
            .filter(|account| {
                self.lessee
                    .cell(account)
                    .is_some_and(|cell| cell.free() < cost)
            })
            .collect();
        for account in &short {
            self.lessee.handle_want(now, account, cost);
        }
        let Some(wake) = wake else { return };
        let refused = |account| {
            self.lessee
                .cell(account)
                .is_some_and(|c| c.refused(now, cost).is_some())
        };
        if short.is_empty() || short.iter().any(refused) {
            // Nobody waits any more: as good.
            let _ = wake.send(());
        } else {
            self.waiters.add(wake, cost, short);
        }
    }

    /// Wakes who can go on with an account; if `ask`, asks for more where somebody still waits.
    fn look_after(&mut self, now: Mono, account: &AccountId, ask: bool) {
        let lessee = &self.lessee;
        let need = self
            .waiters
            .look(now, account, |account| lessee.cell(account));
        if let (Some(need), true) = (need, ask) {
            self.lessee.handle_want(now, account, need);
        }
    }

    fn is_waiting(&self) -> bool {
        self.lessee.is_waiting()
            || !self.resolves.is_empty()
            || !self.waiters.is_empty()
            || self.session.is_opening()
            || self.freshness.is_refreshing()
            || self.closing.is_some()
    }

    /// What is due by time alone.
    fn handle_time(&mut self, now: Mono) {
        if now.since_ms(self.wanted_at) >= WANT_AGAIN_MS && !self.waiters.is_empty() {
            self.wanted_at = now;
            self.waiters.prune();
            for account in self.waiters.accounts() {
                self.look_after(now, &account, true);
            }
        }
        if self.pace.is_due(now) {
            self.lessee.observe(now);
            self.collect(now);
            self.let_go();
            self.publish(now);
            if self.pace.handle_pass(now, clock::now()) {
                self.reports.checkpoint_due(now);
            }
        }
        if now.since_ms(self.kept_alive_at) >= ms(self.config.keepalive) {
            self.keep_alive(now);
        }
    }

    /// Sends whatever is to be sent now.
    fn pump(&mut self, now: Mono) {
        self.pump_session(now);
        if let Some(boot) = self.session.boot() {
            self.pump_changes(now);
            self.pump_resolves(now, boot);
            while let Some(output) = self.lessee.poll(now) {
                self.handle_output(output);
            }
            self.pump_reports(now);
        } else if self.session.is_opening() {
            self.keep_use(now);
        }
        self.pump_closing(now);
        // Also before there is a reporter: no session is opened before its start number is on disk.
        self.reports.writer.start();
    }

    fn handle_output(&mut self, output: Output) {
        match output {
            Output::Lease { to, lease } => {
                // Not sent: the lessee repeats it.
                if self
                    .nodes
                    .send(to, Stream::Lease, EdgeMessage::Lease(lease))
                {
                    self.traffic.leases += 1;
                }
            }
            Output::Held { to, held } => {
                if self.nodes.send(to, Stream::Lease, EdgeMessage::Held(held)) {
                    self.traffic.recalls += 1;
                }
            }
            Output::Fenced => self.handle_fenced(),
        }
    }

    fn pump_resolves(&mut self, now: Mono, boot: Boot) {
        let Self {
            resolves,
            lessee,
            known,
            nodes,
            ..
        } = self;
        resolves.open_refreshes(now, |hash| known.presented(hash).cloned(), || lessee.draw());
        let owner = |slot| Some(lessee.route(slot)?.owner?.0);
        let mut out = Vec::new();
        resolves.pump(now, boot, nodes, owner, |to, resolve| {
            out.push((to, resolve));
        });
        for (to, resolve) in out {
            nodes.send(to, Stream::Lease, EdgeMessage::Resolve(resolve));
        }
        if self.freshness.is_refreshing() && self.resolves.refreshes() == 0 {
            self.freshness.finish();
            self.tell_view();
        }
    }

    /// Asks what changed, if the catalog did.
    fn pump_changes(&mut self, now: Mono) {
        if self.known.len() == 0 && self.freshness.known() > self.freshness.acted() {
            // Nothing is held that could be old; answers below this revision are not taken.
            self.freshness.reach(self.freshness.known());
            self.tell_view();
        }
        let Some((teller, except)) = self.freshness.wants_changes(now) else {
            return;
        };
        let teller = teller.filter(|node| self.nodes.boot(*node).is_some());
        let Some(to) = teller.or_else(|| self.nodes.any(except)) else {
            return;
        };
        let since = self.freshness.acted();
        if self
            .nodes
            .send(to, Stream::Control, EdgeMessage::Changes { since })
        {
            self.freshness.asked(now, to);
        }
    }

    /// One keepalive to every connected node.
    fn keep_alive(&mut self, now: Mono) {
        let Some(boot) = self.session.boot() else {
            return;
        };
        self.kept_alive_at = now;
        for node in self.nodes.connected().collect::<Vec<_>>() {
            self.keep_alive_at(node, boot);
        }
    }

    fn keep_alive_at(&mut self, node: NodeId, boot: Boot) {
        // The clock is read before the message leaves.
        let sent_mark = clock::now().0;
        let revision = self.freshness.acted();
        let message = EdgeMessage::Keepalive {
            boot,
            sent_mark,
            revision,
        };
        self.nodes.send(node, Stream::Control, message);
    }

    /// What the driver knows of revisions, for checks.
    fn tell_view(&mut self) {
        self.view
            .set_revisions(self.freshness.acted(), self.freshness.known());
        if let Some(at) = self.freshness.fresh_at() {
            self.view.set_fresh_at(at);
        }
        let now = clock::now();
        if self.view.is_ready(now) && !self.status.borrow().ready {
            // Somebody may wait for just this.
            self.publish(now);
        }
    }

    /// Remembers a denied credential, forgetting the oldest for room.
    fn remember_denied(&mut self, hash: Hash) {
        if self.denials.len() >= DENIALS_MAX
            && let Some(oldest) = self.denials.pop_front()
        {
            self.view.forget_denial(oldest);
        }
        self.denials.push_back(hash);
    }

    fn introduce(&self, incarnation: Option<Incarnation>, boot: Option<Boot>) {
        self.introduction.send_modify(|introduction| {
            introduction.incarnation = incarnation;
            introduction.boot = boot;
        });
    }

    fn publish(&mut self, now: Mono) {
        let counts = self.lessee.counts();
        let status = Status {
            session: self.session.state(),
            nodes: self.nodes.status(),
            revision: self.freshness.acted(),
            stale_ms: self.view.stale_ms(now),
            ready: self.view.is_ready(now),
            principals: self.view.principals(),
            accounts: self.reports.accounts,
            held: self.reports.held,
            unacknowledged: self.reports.unacknowledged(),
            journal_late: self.reports.journal_late,
            traffic: TrafficCounts {
                resolves: self.resolves.sent,
                dropped: self.nodes.dropped,
                granted: counts.granted,
                surrendered: counts.surrendered,
                ..self.traffic
            },
        };
        self.status.send_replace(status);
    }
}
