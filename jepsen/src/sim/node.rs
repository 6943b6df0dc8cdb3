//! The driver of a simulated node: its replica, its issuer, its contacts with edges, its part as leader.
//!
//! Of a crash it keeps what a node's disk keeps: the start number and a checkpoint of the ledger; the log
//! itself is [`super::raft`]'s. The issuer always starts empty, under a new boot.

use super::catalog;
use super::network::Actor;
use super::raft::{Leadership, Proposal};
use super::wire::{Asker, Limits, Wire};
use super::world::{Event, World};
use std::collections::BTreeMap;
use tollgate_core::command::{CloseSession, Command, OpenNode, OpenNodeReply, Reply, ReportReply};
use tollgate_core::ids::{Boot, Incarnation, LeaseNo, NodeId, Nonce, Revision, SessionId, Units};
use tollgate_core::issuer::{Issuer, Output, ResolveLease};
use tollgate_core::ledger::Ledger;
use tollgate_core::ledger::records::{Record, RecordKey};
use tollgate_core::message::{LeaseAnswer, Route, SessionAnswer};
use tollgate_core::placement;
use tollgate_core::time::Mono;

/// Pause between two looks of an issuer at its accounts.
const TICK_MS: u64 = 100;
/// A node is silent when the leader did not hear it for this long.
const SILENT_MS: u64 = 500;
/// A contact without a keepalive ends after this.
const CONTACT_TTL_MS: u64 = 5000;
/// Repeat of what the ledger has not answered.
const REPEAT_MS: u64 = 300;

/// An edge connected to a node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Contact {
    pub(super) edge: usize,
    pub(super) start: u32,
    heard_at: u64,
}

/// See the module's text.
pub(super) struct Node {
    pub(super) number: usize,
    pub(super) up: bool,
    pub(super) start: u32,
    /// On disk: counted up and synced before it is sent.
    nonce: u64,
    /// On disk: the ledger's records as of the last checkpoint, and the digest they must give.
    checkpoint: BTreeMap<RecordKey, Record>,
    checkpoint_digest: u128,
    pub(super) boot: Option<Boot>,
    /// The boot before the last crash: an assignment to it must be refused.
    pub(super) former_boot: Option<Boot>,
    pub(super) ledger: Ledger,
    pub(super) issuer: Option<Issuer>,
    pub(super) raft: Leadership,
    pub(super) heard_index: u64,
    pub(super) lags_until: u64,
    /// The node's clock runs ahead of true time by this.
    pub(super) clock_ahead: u64,
    mono_ahead: u64,
    pub(super) contacts: BTreeMap<Boot, Contact>,
    /// As leader: when and under which boot each node was heard.
    heard: BTreeMap<NodeId, (Boot, u64)>,
    led_since: u64,
    placed: Option<(BTreeMap<NodeId, Boot>, u64, u64)>,
    asked_at: Option<u64>,
    told: (u64, Revision),
    ticks: u64,
}

impl Node {
    pub(super) fn new(number: usize) -> Self {
        Self {
            number,
            up: false,
            start: 0,
            nonce: 0,
            checkpoint: BTreeMap::new(),
            checkpoint_digest: 0,
            boot: None,
            former_boot: None,
            ledger: Ledger::new(Incarnation(1)),
            issuer: None,
            raft: Leadership::default(),
            heard_index: 0,
            lags_until: 0,
            clock_ahead: 0,
            mono_ahead: 0,
            contacts: BTreeMap::new(),
            heard: BTreeMap::new(),
            led_since: 0,
            placed: None,
            asked_at: None,
            told: (0, Revision::default()),
            ticks: 0,
        }
    }

    pub(super) fn id(&self) -> NodeId {
        NodeId(self.number as u64 + 1)
    }

    pub(super) fn mono(&self, now: u64) -> Mono {
        Mono(now + self.mono_ahead)
    }
}

impl World {
    /// A node starts from what its disk holds.
    pub(super) fn start_node(&mut self, number: usize) {
        let (ahead, mono_ahead) = (
            self.random.disk.below(3000),
            self.random.disk.below(1_000_000),
        );
        let node = &mut self.nodes[number];
        if node.up {
            return;
        }
        node.up = true;
        node.start += 1;
        node.nonce += 1;
        (node.clock_ahead, node.mono_ahead) = (ahead, mono_ahead);
        if node.start > 1 {
            match Ledger::restore(node.checkpoint.clone()) {
                Ok(ledger) => node.ledger = ledger,
                Err(_) => node.ledger = Ledger::new(Incarnation(1)),
            }
            if !node.checkpoint.is_empty() && node.ledger.digest() != node.checkpoint_digest {
                let text = format!("n{number} restored another state than it had checkpointed");
                self.truth.fail("restore", None, text);
                return;
            }
        }
        node.heard_index = node.ledger.index();
        (node.boot, node.issuer, node.asked_at) = (None, None, None);
        node.raft = Leadership::default();
        node.contacts.clear();
        node.heard.clear();
        node.placed = None;
        node.told = (0, Revision::default());
        let (start, index) = (node.start, node.ledger.index());
        self.story
            .tell(self.now, || format!("* n{number} starts at index {index}"));
        self.at(
            1,
            Event::NodeTick {
                node: number,
                start,
            },
        );
    }

    /// A node stops: memory is gone, disk and log stay.
    pub(super) fn crash_node(&mut self, number: usize) {
        let node = &mut self.nodes[number];
        if !node.up {
            return;
        }
        node.up = false;
        node.issuer = None;
        node.former_boot = node.boot.take().or(node.former_boot);
        node.contacts.clear();
        self.story.tell(self.now, || format!("* n{number} crashes"));
        // A broken connection shows at once as often as not.
        for edge in 0..self.edges.len() {
            if self.random.network.chance(500) {
                self.edges[edge].lose_link(number);
            }
        }
    }

    /// Time goes on at a node.
    pub(super) fn node_tick(&mut self, number: usize, start: u32) {
        if self.start_of(Actor::Node(number)) != Some(start) {
            return;
        }
        self.at(
            TICK_MS,
            Event::NodeTick {
                node: number,
                start,
            },
        );
        let now = self.now;
        let node = &mut self.nodes[number];
        node.ticks += 1;
        let mono = node.mono(now);
        if node.ticks.is_multiple_of(5) {
            for key in node.ledger.take_dirty() {
                match node.ledger.record(&key) {
                    Some(record) => node.checkpoint.insert(key, record),
                    None => node.checkpoint.remove(&key),
                };
            }
            node.checkpoint_digest = node.ledger.digest();
        }
        let gone: Vec<Boot> = node
            .contacts
            .iter()
            .filter(|(_, contact)| now > contact.heard_at + CONTACT_TTL_MS)
            .map(|(boot, _)| *boot)
            .collect();
        for boot in gone {
            self.end_contact(number, boot);
        }
        let node = &mut self.nodes[number];
        if let Some(issuer) = &mut node.issuer {
            issuer.handle_timeout(mono, &node.ledger);
            self.drain(number);
        }
        self.introduce(number);
        if self.nodes[number].raft.leads.is_some() {
            self.place(number);
        } else {
            self.nodes[number].led_since = now;
        }
    }

    /// Asks for a boot, or says that it lives.
    fn introduce(&mut self, number: usize) {
        let node = &mut self.nodes[number];
        let Some((_, leader)) = node.raft.believes else {
            return;
        };
        match node.boot {
            Some(boot) if leader == number => {
                let id = node.id();
                node.heard.insert(id, (boot, self.now));
            }
            Some(boot) if node.ticks.is_multiple_of(2) => {
                self.send(
                    Actor::Node(number),
                    Actor::Node(leader),
                    Wire::Beat { boot },
                );
            }
            Some(_) => {}
            None if node.asked_at.is_none_or(|at| self.now >= at + REPEAT_MS) => {
                node.asked_at = Some(self.now);
                let open = OpenNode {
                    node: node.id(),
                    nonce: Nonce(node.nonce),
                };
                self.propose(number, Asker::Node, Command::OpenNode(open));
            }
            None => {}
        }
    }

    /// The leader gives slots without a live owner to those who live.
    fn place(&mut self, number: usize) {
        let now = self.now;
        let node = &mut self.nodes[number];
        if now < node.led_since + SILENT_MS {
            return;
        }
        let live: BTreeMap<_, _> = node
            .heard
            .iter()
            .filter(|(_, (_, at))| now <= at + SILENT_MS)
            .map(|(id, (boot, _))| (*id, *boot))
            .collect();
        let routes = node.ledger.routes_index();
        let same = |placed: &(BTreeMap<_, _>, u64, u64)| {
            placed.0 == live && placed.1 == routes && now < placed.2 + 2 * REPEAT_MS
        };
        if node.placed.as_ref().is_some_and(same) {
            return;
        }
        // Looking at every slot is dear: not when those of the run are owned by the living.
        let owned = self.slots.iter().all(|slot| {
            node.ledger
                .route(*slot)
                .owner
                .is_some_and(|(id, boot)| live.get(&id) == Some(&boot))
        });
        let assigns = if owned {
            Vec::new()
        } else {
            placement::plan(&node.ledger, &live)
        };
        node.placed = Some((live, routes, now));
        for mut assign in assigns {
            assign.slots.retain(|(slot, _)| self.slots.contains(slot));
            if !assign.slots.is_empty() {
                self.propose(number, Asker::Node, Command::Assign(assign));
            }
        }
    }

    fn end_contact(&mut self, number: usize, boot: Boot) {
        let node = &mut self.nodes[number];
        node.contacts.remove(&boot);
        if let Some(issuer) = &mut node.issuer {
            issuer.handle_disconnected(boot);
        }
    }

    /// Connections of an edge to a node end, without either being told.
    pub(super) fn drop_contact(&mut self, number: usize, edge: usize) {
        let of_edge = |contact: &Contact| contact.edge == edge;
        let contacts = &self.nodes[number].contacts;
        let boots: Vec<Boot> = contacts
            .iter()
            .filter(|(_, c)| of_edge(c))
            .map(|(boot, _)| *boot)
            .collect();
        for boot in boots {
            self.end_contact(number, boot);
        }
    }

    /// The replica takes the log in up to an index.
    pub(super) fn apply(&mut self, number: usize, start: u32, index: u64) {
        if self.start_of(Actor::Node(number)) != Some(start) {
            return;
        }
        let from = self.nodes[number].ledger.index();
        for at in from + 1..=index.min(self.raft.index()) {
            let position = usize::try_from(at - 1).unwrap_or(usize::MAX);
            let committed = self.raft.log[position].clone();
            let node = &mut self.nodes[number];
            let replies = node.ledger.apply(at, &committed.entry);
            let alarms = node.ledger.take_alarms();
            node.ledger.take_audit();
            self.truth
                .applied(number, at, &node.ledger, &replies, &alarms);
            if committed.leader == (number, start) {
                for (proposal, reply) in committed.proposals.iter().zip(replies) {
                    self.reply(number, proposal, reply);
                }
            }
        }
        let now = self.now;
        let node = &mut self.nodes[number];
        if node.ledger.index() == from {
            return;
        }
        let mono = node.mono(now);
        if let Some(issuer) = &mut node.issuer {
            issuer.handle_applied(mono, &node.ledger);
        }
        self.drain(number);
        self.tell_edges(number);
    }

    fn reply(&mut self, number: usize, proposal: &Proposal, reply: Reply) {
        if proposal.node == number {
            if proposal.start == self.nodes[number].start {
                self.reply_arrives(number, &proposal.asker, reply);
            }
        } else if self.start_of(Actor::Node(proposal.node)) == Some(proposal.start) {
            let wire = Wire::Reply {
                asker: proposal.asker.clone(),
                reply: Box::new(reply),
            };
            self.send(Actor::Node(number), Actor::Node(proposal.node), wire);
        }
    }

    /// Planted fault: the leader answers reports before they are committed.
    pub(super) fn acknowledge_early(
        &mut self,
        number: usize,
        entry: &tollgate_core::command::Entry,
        proposals: &[Proposal],
    ) {
        if !tollgate_core::planted::acknowledge_before_commit() {
            return;
        }
        let mut ahead = self.nodes[number].ledger.clone();
        let replies = ahead.apply(ahead.index() + 1, entry);
        for (proposal, reply) in proposals.iter().zip(replies) {
            if matches!(reply, Reply::Report(_)) {
                self.reply(number, proposal, reply);
            }
        }
    }

    /// The ledger answered what this node, or an edge through it, asked.
    fn reply_arrives(&mut self, number: usize, asker: &Asker, reply: Reply) {
        let now = self.now;
        let node = &mut self.nodes[number];
        let mono = node.mono(now);
        match (asker, reply) {
            (Asker::Node, Reply::OpenNode(OpenNodeReply::Boot(boot))) if node.boot.is_none() => {
                node.boot = Some(boot);
                node.issuer = Some(Issuer::new(node.id(), boot));
                self.story
                    .tell(now, || format!("* n{number} is boot {boot}"));
            }
            (Asker::Node, Reply::OpenNode(OpenNodeReply::StaleNonce { last })) => {
                let text = format!("n{number} was told that start {last} is newer than its own");
                self.truth.fail("node nonce", None, text);
            }
            (Asker::Node, Reply::Position(reply)) => {
                if let Some(issuer) = &mut node.issuer {
                    issuer.handle_position(mono, &node.ledger, &reply);
                    self.drain(number);
                }
            }
            (Asker::Edge { edge, start, about }, reply) => {
                if self.start_of(Actor::Edge(*edge)) != Some(*start) {
                    return;
                }
                let wire = match reply {
                    Reply::OpenSession(reply) => Wire::Opened(reply),
                    Reply::Report(reply) => Wire::Reported(answer(*about, reply)),
                    Reply::CloseSession(reply) => Wire::Closed(answer(*about, reply)),
                    _ => return,
                };
                self.send(Actor::Node(number), Actor::Edge(*edge), wire);
            }
            _ => {}
        }
    }

    /// Does what the issuer wants done.
    fn drain(&mut self, number: usize) {
        loop {
            let node = &mut self.nodes[number];
            let Some(output) = node.issuer.as_mut().and_then(Issuer::poll) else {
                return;
            };
            match output {
                Output::Propose(position) => {
                    self.propose(number, Asker::Node, Command::Position(position));
                }
                Output::Answer(answer) => self.answer(number, answer),
                Output::Recall { to, recall } => {
                    if let Some(contact) = self.nodes[number].contacts.get(&to).copied() {
                        self.send_to_contact(number, contact, Wire::Recall(recall));
                    }
                }
            }
        }
    }

    fn answer(&mut self, number: usize, answer: LeaseAnswer) {
        if let Some(contact) = self.nodes[number].contacts.get(&answer.boot).copied() {
            self.send_to_contact(number, contact, Wire::Answer(answer));
        }
    }

    fn send_to_contact(&mut self, number: usize, contact: Contact, wire: Wire) {
        if self.start_of(Actor::Edge(contact.edge)) == Some(contact.start) {
            self.send(Actor::Node(number), Actor::Edge(contact.edge), wire);
        }
    }

    fn routes(&self, number: usize) -> Vec<Route> {
        self.slots
            .iter()
            .map(|slot| self.nodes[number].ledger.route(*slot))
            .collect()
    }

    /// Pushes to every contact what changed.
    fn tell_edges(&mut self, number: usize) {
        let ledger = &self.nodes[number].ledger;
        let (routes, revision) = (ledger.routes_index(), ledger.catalog().revision());
        let told = std::mem::replace(&mut self.nodes[number].told, (routes, revision));
        let contacts: Vec<Contact> = self.nodes[number].contacts.values().copied().collect();
        if told.0 != routes {
            let routes = self.routes(number);
            for contact in &contacts {
                self.send_to_contact(number, *contact, Wire::Routes(routes.clone()));
            }
        }
        if told.1 != revision {
            for contact in contacts {
                self.send_to_contact(number, contact, Wire::Push { revision });
            }
        }
    }

    /// A message reaches a node.
    pub(super) fn node_receives(
        &mut self,
        number: usize,
        from: Actor,
        from_start: u32,
        wire: Wire,
    ) {
        match from {
            Actor::Node(other) => self.node_receives_from_node(number, other, from_start, wire),
            Actor::Edge(edge) => self.node_receives_from_edge(number, edge, from_start, wire),
        }
    }

    fn node_receives_from_node(&mut self, number: usize, other: usize, start: u32, wire: Wire) {
        match wire {
            Wire::Lead { term, index } => self.hear_leader(number, other, term, index),
            Wire::Beat { boot } => {
                let id = self.nodes[other].id();
                self.nodes[number].heard.insert(id, (boot, self.now));
            }
            Wire::Forward { asker, command } => {
                self.enqueue(
                    number,
                    Proposal {
                        node: other,
                        start,
                        asker,
                    },
                    *command,
                );
            }
            Wire::Reply { asker, reply } => self.reply_arrives(number, &asker, *reply),
            _ => {}
        }
    }

    fn node_receives_from_edge(&mut self, number: usize, edge: usize, start: u32, wire: Wire) {
        let (me, to) = (Actor::Node(number), Actor::Edge(edge));
        let for_edge = |about| Asker::Edge { edge, start, about };
        let now = self.now;
        let node = &mut self.nodes[number];
        let mono = node.mono(now);
        let revision = node.ledger.catalog().revision();
        match wire {
            Wire::Hello { boot } => self.greet(number, edge, start, boot),
            Wire::Open(open) => {
                self.propose(number, for_edge(None), Command::OpenSession(open));
            }
            Wire::Keepalive { boot } => {
                if let Some(contact) = node.contacts.get_mut(&boot) {
                    contact.heard_at = now;
                    self.send(me, to, Wire::Alive { revision });
                }
            }
            Wire::Resolve {
                boot,
                customer,
                lease_no,
                need,
            } => {
                self.resolve(number, (edge, start), (boot, customer, lease_no, need));
            }
            Wire::Lease(lease) => {
                let Some(issuer) = &mut node.issuer else {
                    return;
                };
                let answer = issuer.handle_lease(mono, &node.ledger, &lease);
                if let Some(answer) = answer {
                    self.send(me, to, Wire::Answer(answer));
                }
                self.drain(number);
            }
            Wire::Held(held) => {
                let Some(issuer) = &mut node.issuer else {
                    return;
                };
                issuer.handle_held(mono, &node.ledger, &held);
                self.drain(number);
            }
            Wire::Report(report) => {
                let about = Some((report.session, report.boot));
                self.propose(number, for_edge(about), Command::Report(report));
            }
            Wire::Close {
                session,
                boot,
                last_seq,
            } => {
                let close = CloseSession {
                    session,
                    boot,
                    last_seq,
                };
                let about = Some((session, boot));
                self.propose(number, for_edge(about), Command::CloseSession(close));
            }
            Wire::Changes => self.send(me, to, Wire::Changed { revision }),
            _ => {}
        }
    }

    fn greet(&mut self, number: usize, edge: usize, start: u32, boot: Boot) {
        let Some(own) = self.nodes[number].boot else {
            return;
        };
        if self.start_of(Actor::Edge(edge)) != Some(start) {
            return;
        }
        self.drop_contact(number, edge);
        let node = &mut self.nodes[number];
        node.contacts.insert(
            boot,
            Contact {
                edge,
                start,
                heard_at: self.now,
            },
        );
        if let Some(issuer) = &mut node.issuer {
            issuer.handle_connected(boot);
        }
        let revision = node.ledger.catalog().revision();
        let welcome = Wire::Welcome {
            boot: own,
            routes: self.routes(number),
            revision,
        };
        self.send(Actor::Node(number), Actor::Edge(edge), welcome);
    }

    fn resolve(&mut self, number: usize, to: (usize, u32), ask: (Boot, usize, LeaseNo, Units)) {
        let (edge, start) = to;
        let (boot, customer, lease_no, need) = ask;
        let mono = self.nodes[number].mono(self.now);
        let node = &mut self.nodes[number];
        let principal = node
            .ledger
            .catalog()
            .principal(catalog::key(customer).as_str(), node.ledger.time());
        let limits: Option<Limits> = principal.ok().map(|principal| {
            let limits = principal.limits.into_iter().enumerate();
            limits.map(|(at, limit)| (at, limit.account)).collect()
        });
        let accounts: Vec<_> = limits
            .iter()
            .flatten()
            .map(|(_, account)| account.clone())
            .collect();
        let request = ResolveLease {
            boot,
            lease_no,
            want: need,
            need,
            accounts: &accounts,
        };
        let lease = node
            .issuer
            .as_mut()
            .and_then(|issuer| issuer.handle_resolve(mono, &node.ledger, &request));
        let revision = node.ledger.catalog().revision();
        let wire = Wire::Resolved {
            customer,
            lease_no,
            limits,
            revision,
            lease,
        };
        // The answer belongs to the connection that asked: a later process of the edge never gets it.
        if self.start_of(Actor::Edge(edge)) == Some(start) {
            self.send(Actor::Node(number), Actor::Edge(edge), wire);
        }
        self.drain(number);
    }
}

fn answer(about: Option<(SessionId, Boot)>, reply: ReportReply) -> SessionAnswer {
    let (session, boot) = about.unwrap_or_default();
    SessionAnswer {
        session,
        boot,
        reply,
    }
}
