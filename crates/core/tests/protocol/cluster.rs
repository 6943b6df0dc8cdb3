//! A small cluster in one place: the ledger, two nodes, two edges, and a bag of messages between them.
//!
//! Whoever drives it decides what happens next, message by message: each lies in the bag with the number of
//! times it will arrive, in whatever order it is drawn. Nodes see the ledger through a replica that may lag.
//! [`Cluster::check`] counts, after every step, what everybody holds against what the ledger let out.

use crate::lessee_script::PlainCell;
use crate::world::{World, account, catalog, name, slot};
use tollgate_core::command::{
    Assign, Command, OpenNode, OpenSession, OpenSessionReply, Position, PositionReply, Reply,
    Report,
};
use tollgate_core::ids::{Boot, Incarnation, LeaseNo, NodeId, Nonce, Revision, SessionId, Units};
use tollgate_core::issuer::{self, Issuer, ResolveLease};
use tollgate_core::ledger::Ledger;
use tollgate_core::ledger::accounts::Row;
use tollgate_core::lessee::{self, Cell, Lessee};
use tollgate_core::message::{Held, Lease, LeaseAnswer, Recall, SessionAnswer, SlotAnswer};
use tollgate_core::reporter::{JournalRecord, Reporter};
use tollgate_core::time::Mono;

/// A message on its way. Edges are meant by their boot: one that died gets nothing.
#[derive(Clone, Debug)]
enum Message {
    Lease(usize, Lease),
    Held(usize, Held),
    Resolve(usize, Boot, LeaseNo, Units),
    Position(usize, Position),
    Report(Report),
    Stands(usize, PositionReply),
    Reported(SessionAnswer),
    Answer((NodeId, Boot), LeaseAnswer),
    Resolved((NodeId, Boot), Boot, LeaseNo, Revision, Option<SlotAnswer>),
    Recall((NodeId, Boot), Boot, Recall),
}

struct Node {
    id: NodeId,
    boot: Boot,
    nonce: u64,
    issuer: Issuer,
    replica: Ledger,
}

struct Edge {
    lessee: Lessee<PlainCell>,
    reporter: Reporter,
    session: SessionId,
    nonce: u64,
    /// The journal and how much of it is synced; an edge without one opens a new session at each start.
    journal: Option<(Vec<JournalRecord>, usize)>,
    /// Costs of checks that wait for units.
    waiting: Vec<Units>,
    /// Whether a resolve is under way for them.
    resolving: bool,
    /// Units admitted under this session.
    admitted: Units,
}

pub(crate) struct Cluster {
    pub(crate) world: World,
    now: Mono,
    nodes: Vec<Node>,
    edges: Vec<Edge>,
    bag: Vec<(Message, u8)>,
    /// How often each new message will arrive, round and round.
    fates: Vec<u8>,
    sent: usize,
    highest_limit: Units,
    pub(crate) admitted: Units,
    /// Admitted units whose record a crash took from a journal: exactly these are never billed.
    pub(crate) forgotten: Units,
    /// Units admitted by starts without a journal that crashed: some of these are never billed.
    pub(crate) perhaps_forgotten: Units,
    observed: Mono,
}

impl Cluster {
    /// Node 1 issues the slot; both edges are open, the second with a journal.
    pub(crate) fn new(limit: Units, fates: Vec<u8>) -> Self {
        let mut world = World::new();
        world.tell(catalog(&[("calls", limit)]));
        let nodes = (1..=2)
            .map(|id| Node::start(&mut world, NodeId(id), 1))
            .collect();
        let edges = (1..=2)
            .map(|n| Edge::start(&mut world, n, n == 2))
            .collect();
        let mut this = Self {
            world,
            now: Mono(1000),
            nodes,
            edges,
            bag: Vec::new(),
            fates,
            sent: 0,
            highest_limit: limit,
            admitted: 0,
            forgotten: 0,
            perhaps_forgotten: 0,
            observed: Mono(1000),
        };
        this.assign(0);
        for node in 0..2 {
            this.follow(node);
        }
        for edge in 0..2 {
            this.connect(edge);
            this.hear(edge);
        }
        this
    }

    /// The slot goes to a node; nobody is told but the ledger.
    pub(crate) fn assign(&mut self, node: usize) {
        let slots = vec![(slot(), self.world.ledger.route(slot()).epoch)];
        let Node { id, boot, .. } = self.nodes[node];
        self.world.tell(Command::Assign(Assign {
            slots,
            node: id,
            boot,
        }));
    }

    /// A node's replica catches up with the ledger.
    pub(crate) fn follow(&mut self, node: usize) {
        let (now, node) = (self.now, &mut self.nodes[node]);
        if node.replica.index() != self.world.ledger.index() {
            node.replica = self.world.ledger.clone();
        }
        node.issuer.handle_applied(now, &node.replica);
        self.pump();
    }

    /// An edge hears of routes and of the catalog.
    pub(crate) fn hear(&mut self, edge: usize) {
        let (now, ledger) = (self.now, &self.world.ledger);
        let lessee = &mut self.edges[edge].lessee;
        lessee.handle_routes(now, &[ledger.route(slot())]);
        lessee.handle_revision(ledger.catalog().revision());
        self.pump();
    }

    fn connect(&mut self, edge: usize) {
        let boot = self.edges[edge].lessee.boot();
        for node in &mut self.nodes {
            node.issuer.handle_connected(boot);
        }
    }

    pub(crate) fn set_limit(&mut self, limit: Units) {
        self.highest_limit = self.highest_limit.max(limit);
        self.world.tell(catalog(&[("calls", limit)]));
    }

    pub(crate) fn restart_node(&mut self, node: usize) {
        let Node { id, nonce, .. } = self.nodes[node];
        self.nodes[node] = Node::start(&mut self.world, id, nonce + 1);
        for edge in 0..self.edges.len() {
            self.connect(edge);
        }
    }

    /// An edge dies and starts again: its cells are gone. With a journal it goes on with its session.
    pub(crate) fn restart_edge(&mut self, edge: usize) {
        let old = &self.edges[edge];
        for node in &mut self.nodes {
            node.issuer.handle_disconnected(old.lessee.boot());
        }
        let nonce = old.nonce + 1;
        self.edges[edge] = match &old.journal {
            None => {
                self.perhaps_forgotten += old.admitted;
                Edge::start(&mut self.world, nonce, false)
            }
            Some((records, synced)) => {
                let records = records[..*synced].to_vec();
                let known = recorded(&records);
                self.forgotten += old.admitted - known;
                Edge::resume(
                    &mut self.world,
                    self.now,
                    old.session,
                    nonce,
                    records,
                    known,
                )
            }
        };
        self.connect(edge);
    }

    /// A check of some cost comes to an edge. One that finds too little waits, unless it is refused.
    pub(crate) fn want(&mut self, edge: usize, cost: Units) {
        self.edges[edge].waiting.push(cost);
        self.serve_checks(edge);
        if !self.edges[edge].resolving {
            self.resolve_again(edge);
        }
        self.pump();
    }

    /// How many checks wait.
    pub(crate) fn waiting(&self) -> usize {
        self.edges.iter().map(|edge| edge.waiting.len()).sum()
    }

    /// Whoever waits gives up.
    pub(crate) fn give_up(&mut self) {
        for edge in &mut self.edges {
            edge.waiting.clear();
        }
    }

    fn serve_checks(&mut self, edge: usize) {
        let (now, edge) = (self.now, &mut self.edges[edge]);
        let Some(cell) = edge.lessee.cell(&account("calls")).cloned() else {
            return;
        };
        let mut admitted = 0;
        edge.waiting.retain(|cost| {
            let taken = cell.spend(*cost);
            admitted += if taken { *cost } else { 0 };
            !taken
        });
        edge.reporter.add_spent(now, &account("calls"), admitted, 0);
        edge.admitted += admitted;
        self.admitted += admitted;
        let asks = |cost: &&Units| {
            let refusal = cell.refusal();
            !refusal.is_some_and(|refusal| refusal.refuses(now, *cost - cell.free()))
        };
        if let Some(most) = edge.waiting.iter().filter(asks).max() {
            edge.lessee.handle_want(now, &account("calls"), *most);
        }
    }

    /// An edge asks who a key is: that opens its row, or does not when it is open.
    pub(crate) fn resolve(&mut self, edge: usize, need: Units) {
        let edge = &mut self.edges[edge];
        let owner = edge.lessee.route(slot()).and_then(|route| route.owner);
        let at = owner.map_or(0, |(node, _)| index(node));
        let (boot, lease_no) = (edge.lessee.boot(), edge.lessee.draw());
        self.post(Message::Resolve(at, boot, lease_no, need));
    }

    /// A resolve that was lost is sent again, under a new number.
    fn resolve_again(&mut self, edge: usize) {
        let unknown = self.edges[edge].lessee.cell(&account("calls")).is_none();
        if let Some(need) = self.edges[edge].waiting.iter().max().copied()
            && unknown
        {
            self.edges[edge].resolving = true;
            self.resolve(edge, need);
        }
    }

    pub(crate) fn advance(&mut self, ms: u64) {
        self.now = self.now.plus_ms(ms);
        for node in &mut self.nodes {
            node.issuer.handle_timeout(self.now, &node.replica);
        }
        if self.now.since_ms(self.observed) >= 250 {
            self.observed = self.now;
            for edge in &mut self.edges {
                edge.lessee.observe(self.now);
            }
        }
        for edge in 0..self.edges.len() {
            self.serve_checks(edge);
        }
        self.pump();
    }

    /// Whoever could spend at an edge is gone; the next check asks who its caller is.
    pub(crate) fn let_go(&mut self, edge: usize) {
        let edge = &mut self.edges[edge];
        if edge.waiting.is_empty() {
            edge.lessee.let_go(|_, _| true);
            edge.resolving &= edge.lessee.cell(&account("calls")).is_some();
        }
        self.pump();
    }

    /// An edge seals a report, or only notes what it would say.
    pub(crate) fn seal(&mut self, edge: usize, report: bool) {
        let edge = &mut self.edges[edge];
        if report {
            edge.reporter.seal();
        } else if let Some((records, _)) = &mut edge.journal {
            records.extend(edge.reporter.checkpoint());
        }
        self.pump();
    }

    /// An edge's journal is synced.
    pub(crate) fn sync(&mut self, edge: usize) {
        let edge = &mut self.edges[edge];
        if let Some((records, synced)) = &mut edge.journal {
            *synced = records.len();
            edge.reporter.handle_written(edge.reporter.last_seq());
        }
        self.pump();
    }

    /// A clean end of an edge: it hands everything in.
    pub(crate) fn leave(&mut self, edge: usize) {
        self.edges[edge].lessee.surrender_all();
        self.pump();
    }

    fn post(&mut self, message: Message) {
        let times = self.fates[self.sent % self.fates.len()];
        self.sent += 1;
        if times > 0 {
            self.bag.push((message, times));
        }
    }

    /// One of the messages under way arrives; which one, the caller draws.
    pub(crate) fn deliver(&mut self, drawn: usize) {
        if self.bag.is_empty() {
            return;
        }
        let at = drawn % self.bag.len();
        self.bag[at].1 -= 1;
        let message = self.bag[at].0.clone();
        if self.bag[at].1 == 0 {
            self.bag.remove(at);
        }
        self.arrive(message);
        self.pump();
    }

    fn arrive(&mut self, message: Message) {
        let now = self.now;
        match message {
            Message::Lease(node, lease) => {
                let Node {
                    id,
                    boot,
                    issuer,
                    replica,
                    ..
                } = &mut self.nodes[node];
                if let Some(answer) = issuer.handle_lease(now, replica, &lease) {
                    let from = (*id, *boot);
                    self.post(Message::Answer(from, answer));
                }
            }
            Message::Held(node, held) => {
                let node = &mut self.nodes[node];
                node.issuer.handle_held(now, &node.replica, &held);
            }
            Message::Resolve(node, boot, lease_no, need) => {
                self.resolve_arrives(node, boot, lease_no, need);
            }
            Message::Position(node, position) => {
                let Reply::Position(reply) = self.world.tell(Command::Position(position)) else {
                    panic!("a position is answered as one");
                };
                self.post(Message::Stands(node, reply));
            }
            Message::Report(report) => {
                let (session, boot) = (report.session, report.boot);
                let Reply::Report(reply) = self.world.tell(Command::Report(report)) else {
                    panic!("a report is answered as one");
                };
                self.post(Message::Reported(SessionAnswer {
                    session,
                    boot,
                    reply,
                }));
            }
            Message::Stands(node, reply) => {
                let node = &mut self.nodes[node];
                node.issuer.handle_position(now, &node.replica, &reply);
            }
            Message::Reported(answer) => {
                if let Some(edge) = self.edge_of(answer.boot) {
                    let event = edge.reporter.handle_answer(&answer);
                    assert_eq!(event, None, "a living edge's report meets no surprise");
                }
            }
            Message::Answer(from, answer) => {
                if let Some(edge) = self.edge_of(answer.boot) {
                    edge.lessee.handle_answer(now, from, &answer);
                }
            }
            Message::Resolved(from, boot, lease_no, revision, part) => {
                if let Some(edge) = self.edge_of(boot) {
                    let cell = PlainCell::default();
                    edge.lessee
                        .open(now, &account("calls"), cell, Some(lease_no));
                    if let Some(part) = part {
                        edge.lessee.handle_slot_answer(now, from, revision, &part);
                    }
                }
            }
            Message::Recall(from, boot, recall) => {
                if let Some(edge) = self.edge_of(boot) {
                    edge.lessee.handle_recall(now, from, &recall);
                }
            }
        }
        for edge in 0..self.edges.len() {
            self.serve_checks(edge);
        }
    }

    /// Whether a resolve or its answer is under way, or a copy of one.
    pub(crate) fn is_resolving(&self) -> bool {
        let resolves =
            |message: &Message| matches!(message, Message::Resolve(..) | Message::Resolved(..));
        self.bag.iter().any(|(message, _)| resolves(message))
    }

    fn resolve_arrives(&mut self, node: usize, boot: Boot, lease_no: LeaseNo, need: Units) {
        let Node {
            id,
            boot: node_boot,
            issuer,
            replica,
            ..
        } = &mut self.nodes[node];
        let accounts = [account("calls")];
        let request = ResolveLease {
            boot,
            lease_no,
            want: need,
            need,
            accounts: &accounts,
        };
        let part = issuer.handle_resolve(self.now, replica, &request);
        let (from, revision) = ((*id, *node_boot), replica.catalog().revision());
        self.post(Message::Resolved(from, boot, lease_no, revision, part));
    }

    fn edge_of(&mut self, boot: Boot) -> Option<&mut Edge> {
        self.edges
            .iter_mut()
            .find(|edge| edge.lessee.boot() == boot)
    }

    /// What everybody wants to say goes into the bag.
    fn pump(&mut self) {
        let mut said = Vec::new();
        for (at, node) in self.nodes.iter_mut().enumerate() {
            let from = (node.id, node.boot);
            while let Some(output) = node.issuer.poll() {
                said.push(match output {
                    issuer::Output::Propose(position) => Message::Position(at, position),
                    issuer::Output::Answer(answer) => Message::Answer(from, answer),
                    issuer::Output::Recall { to, recall } => Message::Recall(from, to, recall),
                });
            }
        }
        for edge in &mut self.edges {
            while let Some(output) = edge.lessee.poll(self.now) {
                said.push(match output {
                    lessee::Output::Lease { to, lease } => Message::Lease(index(to), lease),
                    lessee::Output::Held { to, held } => Message::Held(index(to), held),
                    lessee::Output::Fenced => panic!("a living edge is not fenced"),
                });
            }
            while let Some(record) = edge.reporter.poll_journal() {
                edge.journal.as_mut().unwrap().0.push(record);
            }
            while let Some(report) = edge.reporter.poll_send(self.now) {
                said.push(Message::Report(report));
            }
        }
        for message in said {
            self.post(message);
        }
    }

    /// Everything heals: what is under way arrives in order, each once from here on, replicas follow, until
    /// `done` says so.
    ///
    /// # Panics
    /// When it does not within a hundred seconds of the cluster's time.
    pub(crate) fn heal(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        self.fates = vec![1];
        for _ in 0..2000 {
            let mut delivered = 0;
            while !self.bag.is_empty() {
                self.deliver(0);
                self.check();
                delivered += 1;
                assert!(
                    delivered < 10_000,
                    "messages beget messages: {}",
                    self.held()
                );
            }
            if done(self) {
                return;
            }
            for edge in 0..self.edges.len() {
                self.hear(edge);
                self.seal(edge, true);
                self.sync(edge);
                self.resolve_again(edge);
            }
            for node in 0..self.nodes.len() {
                self.follow(node);
            }
            self.advance(50);
            self.check();
        }
        panic!("not within a hundred seconds: {what}; {}", self.held());
    }

    pub(crate) fn row(&self) -> Row {
        self.world
            .ledger
            .account(&account("calls"))
            .copied()
            .unwrap_or_default()
    }

    pub(crate) fn reports_are_settled(&self) -> bool {
        self.edges.iter().all(|edge| edge.reporter.is_settled())
    }

    pub(crate) fn everything_is_handed_in(&self) -> bool {
        self.edges
            .iter()
            .all(|edge| edge.lessee.surrendered_everything())
    }

    pub(crate) fn in_cells(&self) -> Units {
        self.edges
            .iter()
            .flat_map(|edge| edge.lessee.cells())
            .map(|(_, cell)| cell.free())
            .sum()
    }

    pub(crate) fn in_pools(&self) -> Units {
        self.nodes
            .iter()
            .map(|node| node.issuer.pool(&account("calls")))
            .sum()
    }

    /// The promises, after every step.
    pub(crate) fn check(&mut self) {
        let row = self.row();
        let alarms = self.world.ledger.take_alarms();
        assert!(alarms.is_empty(), "{alarms:?}");
        assert_eq!(row.excess, 0, "nothing was used that was not out");
        assert!(
            row.settled + row.out <= self.highest_limit,
            "the ledger let out more: {row:?}"
        );
        assert!(
            row.settled <= self.admitted,
            "billed is at most what was admitted"
        );
        let alive = self.in_cells() + self.in_pools() + (self.admitted - row.settled);
        assert!(
            alive <= row.out,
            "somebody holds what is not out: {}",
            self.held()
        );
    }

    pub(crate) fn held(&self) -> String {
        format!(
            "cells {}, pools {}, admitted {}, {} checks wait; {:?}",
            self.in_cells(),
            self.in_pools(),
            self.admitted,
            self.waiting(),
            self.row()
        )
    }
}

impl Node {
    fn start(world: &mut World, id: NodeId, nonce: u64) -> Self {
        world.tell(Command::OpenNode(OpenNode {
            node: id,
            nonce: Nonce(nonce),
        }));
        let boot = world.ledger.node_boot(id).unwrap();
        let issuer = Issuer::new(id, boot);
        let replica = world.ledger.clone();
        Self {
            id,
            boot,
            nonce,
            issuer,
            replica,
        }
    }
}

impl Edge {
    fn start(world: &mut World, nonce: u64, keeps_journal: bool) -> Self {
        let identity = if keeps_journal { "edge-2" } else { "edge-1" };
        let (session, boot, _) = open(world, identity, None, nonce);
        Self {
            lessee: Lessee::new(boot),
            reporter: Reporter::new(session, boot, keeps_journal),
            session,
            nonce,
            journal: keeps_journal.then(Default::default),
            waiting: Vec::new(),
            resolving: false,
            admitted: 0,
        }
    }

    fn resume(
        world: &mut World,
        now: Mono,
        session: SessionId,
        nonce: u64,
        records: Vec<JournalRecord>,
        admitted: Units,
    ) -> Self {
        let (session, boot, last_seq) = open(world, "edge-2", Some(session), nonce);
        let resumed = Reporter::resume(now, session, boot, last_seq, records.clone());
        let synced = records.len();
        Self {
            lessee: Lessee::new(boot),
            reporter: resumed.unwrap(),
            session,
            nonce,
            journal: Some((records, synced)),
            waiting: Vec::new(),
            resolving: false,
            admitted,
        }
    }
}

fn open(
    world: &mut World,
    identity: &str,
    session: Option<SessionId>,
    nonce: u64,
) -> (SessionId, Boot, tollgate_core::ids::Seq) {
    let (nonce, incarnation) = (Nonce(nonce), Incarnation(1));
    let open = OpenSession {
        session,
        nonce,
        identity: name(identity),
        incarnation,
    };
    match world.tell(Command::OpenSession(open)) {
        Reply::OpenSession(OpenSessionReply::Opened {
            session,
            boot,
            last_seq,
        }) => (session, boot, last_seq),
        other => panic!("a session opens: {other:?}"),
    }
}

/// Units that a journal holds for its session: all its reports, and the checkpoint after the last of them.
fn recorded(records: &[JournalRecord]) -> Units {
    let units = |spent: &[tollgate_core::command::SpentLine]| -> Units {
        spent.iter().map(|line| line.leased + line.unleased).sum()
    };
    let mut sum = 0;
    let mut last = 0;
    let mut checkpoint = (0, 0);
    for record in records {
        match record {
            JournalRecord::Report(report) => {
                sum += units(&report.spent);
                last = report.seq.0;
            }
            JournalRecord::Checkpoint { seq, spent, .. } => checkpoint = (seq.0, units(spent)),
            JournalRecord::Acknowledged(_) => {}
        }
    }
    sum + if checkpoint.0 == last + 1 {
        checkpoint.1
    } else {
        0
    }
}

fn index(node: NodeId) -> usize {
    usize::try_from(node.0).unwrap() - 1
}
