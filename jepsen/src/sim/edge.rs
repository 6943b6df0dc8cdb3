//! The driver of a simulated edge: its process, its connections, its session.
//!
//! What a check does is in [`super::check`]; how use is reported in [`super::metering`].

use super::catalog;
use super::cell::SimCell;
use super::check::Waiting;
use super::journal::Journal;
use super::network::Actor;
use super::wire::Wire;
use super::world::{Event, World};
use std::collections::BTreeMap;
use tollgate_core::account::AccountId;
use tollgate_core::command::{OpenSession, OpenSessionReply};
use tollgate_core::ids::{Boot, Incarnation, LeaseNo, Nonce, Revision, Seq, SessionId, Units};
use tollgate_core::lessee::{Cell as _, Lessee, Output};
use tollgate_core::reporter::Reporter;
use tollgate_core::time::Mono;

/// Pause between two measurements of the cells.
const TICK_MS: u64 = 250;
/// How often a crash takes the disk with the journal along.
const JOURNAL_LOST_PER_MILLE: u64 = 100;
/// Pause between two looks while a check waits.
const WAKE_MS: u64 = 50;
/// Repeat of what was not answered: hello, open, resolve.
const REPEAT_MS: u64 = 400;
/// A node that answered no keepalive for this long counts as lost, whatever else it said: a late welcome may
/// speak of a contact that another greeting has replaced.
const LINK_TTL_MS: u64 = 3000;

/// An edge's connection to a node.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Link {
    pub(super) boot: Option<Boot>,
    asked_at: Option<u64>,
    heard_at: u64,
    told_at: u64,
}

/// A limit of a resolved key, open at this edge.
#[derive(Clone, Debug)]
pub(super) struct Open {
    pub(super) account: AccountId,
    pub(super) cell: SimCell,
    /// The observer's number of the account.
    pub(super) observed: usize,
}

/// A resolve under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Resolving {
    lease_no: LeaseNo,
    need: u64,
    sent_at: u64,
    tries: usize,
}

/// See the module's text.
pub(super) struct Edge {
    pub(super) number: usize,
    pub(super) up: bool,
    pub(super) start: u32,
    pub(super) keeps_journal: bool,
    /// On disk.
    pub(super) journal: Journal,
    mono_ahead: u64,
    pub(super) session: Option<SessionId>,
    opening: Option<(OpenSession, u64, usize)>,
    pub(super) lessee: Option<Lessee<SimCell>>,
    /// What its leases said of each account that it handed in.
    pub(super) surrendered: BTreeMap<AccountId, (LeaseNo, Units)>,
    pub(super) reporter: Option<Reporter>,
    pub(super) links: Vec<Link>,
    pub(super) known: BTreeMap<usize, Vec<Open>>,
    resolving: BTreeMap<usize, Resolving>,
    pub(super) waiting: Vec<Waiting>,
    /// Use handed to the reporter, of each account.
    pub(super) reported: BTreeMap<AccountId, u64>,
    /// Use per customer that the reporter has not been told of.
    pub(super) usage: BTreeMap<usize, u64>,
    pub(super) checkpoint_at: u64,
    /// The process ends while its next journal write is not synced.
    pub(super) crashes_at_next_write: bool,
    pub(super) report_to: usize,
    pub(super) last_sent: Option<Seq>,
    woken: bool,
    pub(super) known_revision: Revision,
    /// Hands everything in and closes its session.
    pub(super) leaving: bool,
    /// Cells of the last synced journal, for the planted fault that resumes them.
    pub(super) old_book: Vec<(usize, AccountId, u64)>,
}

impl Edge {
    pub(super) fn new(number: usize, nodes: usize, keeps_journal: bool) -> Self {
        Self {
            number,
            up: false,
            start: 0,
            keeps_journal,
            journal: Journal::default(),
            mono_ahead: 0,
            session: None,
            opening: None,
            lessee: None,
            surrendered: BTreeMap::new(),
            reporter: None,
            links: vec![Link::default(); nodes],
            known: BTreeMap::new(),
            resolving: BTreeMap::new(),
            waiting: Vec::new(),
            reported: BTreeMap::new(),
            usage: BTreeMap::new(),
            checkpoint_at: 0,
            crashes_at_next_write: false,
            report_to: 0,
            last_sent: None,
            woken: false,
            known_revision: Revision::default(),
            leaving: false,
            old_book: Vec::new(),
        }
    }

    pub(super) fn mono(&self, now: u64) -> Mono {
        Mono(now + self.mono_ahead)
    }

    pub(super) fn identity(number: usize) -> String {
        format!("edge-{number}")
    }

    pub(super) fn lose_link(&mut self, node: usize) {
        self.links[node] = Link::default();
    }

    /// Whether it may admit checks.
    pub(super) fn serves(&self) -> bool {
        self.up && self.lessee.is_some() && !self.leaving
    }
}

impl World {
    /// An edge starts from what its journal holds.
    pub(super) fn start_edge(&mut self, number: usize) {
        let mono_ahead = self.random.disk.below(1_000_000);
        let drawn = self.random.disk.next();
        let nodes = self.nodes.len();
        let first_node = self.random.work.index(nodes);
        let edge = &mut self.edges[number];
        if edge.up {
            return;
        }
        let (start, keeps) = (edge.start + 1, edge.keeps_journal);
        let (journal, old_book) = (
            std::mem::take(&mut edge.journal),
            std::mem::take(&mut edge.old_book),
        );
        *edge = Edge {
            start,
            up: true,
            mono_ahead,
            old_book,
            ..Edge::new(number, nodes, keeps)
        };
        edge.journal = journal;
        let nonce = edge.journal.next_start(drawn);
        let session = edge.journal.session;
        self.story.tell(self.now, || {
            format!("* e{number} starts, journal of session {session:?}")
        });
        self.open_session(number, session, nonce, first_node);
        self.at(
            1,
            Event::EdgeTick {
                edge: number,
                start,
            },
        );
    }

    fn open_session(
        &mut self,
        number: usize,
        session: Option<SessionId>,
        nonce: Nonce,
        node: usize,
    ) {
        let open = OpenSession {
            session,
            nonce,
            identity: catalog::name(&Edge::identity(number)),
            incarnation: Incarnation(1),
        };
        self.send(
            Actor::Edge(number),
            Actor::Node(node),
            Wire::Open(open.clone()),
        );
        self.edges[number].opening = Some((open, self.now, node));
    }

    /// An edge's process ends; what its journal had synced stays, unless the disk goes with it.
    pub(super) fn crash_edge(&mut self, number: usize) {
        let now = self.now;
        let edge = &mut self.edges[number];
        if !edge.up {
            return;
        }
        edge.up = false;
        let mut lost = 0;
        for open in edge.known.values().flatten() {
            lost += open.cell.bury();
        }
        edge.journal.crash(&mut self.random.disk);
        let keeps = edge.keeps_journal && !self.random.disk.chance(JOURNAL_LOST_PER_MILLE);
        if !keeps {
            edge.journal = Journal::default();
        }
        self.truth.edge_crashed(number, keeps, now);
        let stopped = std::mem::take(&mut self.edges[number].waiting);
        for waiting in stopped {
            self.check_lost(number, &waiting);
        }
        self.story.tell(now, || {
            let with = if keeps { "with" } else { "without" };
            format!(
                "* e{number} crashes with {lost} units in its cells and comes back {with} a journal"
            )
        });
        for node in 0..self.nodes.len() {
            if self.random.network.chance(500) {
                self.drop_contact(node, number);
            }
        }
    }

    /// Time goes on at an edge.
    pub(super) fn edge_tick(&mut self, number: usize, start: u32) {
        if self.start_of(Actor::Edge(number)) != Some(start) {
            return;
        }
        self.at(
            TICK_MS,
            Event::EdgeTick {
                edge: number,
                start,
            },
        );
        self.keep_links(number);
        self.repeat_opening(number);
        self.repeat_resolves(number);
        let mono = self.edges[number].mono(self.now);
        if let Some(lessee) = &mut self.edges[number].lessee {
            lessee.observe(mono);
        }
        self.meter(number);
        if self.edges[number].leaving {
            self.leave(number);
        }
        self.move_on(number);
    }

    /// A look between two ticks, while something waits.
    pub(super) fn edge_wake(&mut self, number: usize, start: u32) {
        if self.start_of(Actor::Edge(number)) == Some(start) {
            self.edges[number].woken = false;
            self.move_on(number);
        }
    }

    /// Tries the waiting checks again and sends what the lessee wants sent.
    pub(super) fn move_on(&mut self, number: usize) {
        self.retry_waiting(number);
        self.drain_lessee(number);
        self.send_reports(number);
        let edge = &mut self.edges[number];
        if !edge.woken && edge.up && !edge.waiting.is_empty() {
            edge.woken = true;
            let start = edge.start;
            self.at(
                WAKE_MS,
                Event::EdgeWake {
                    edge: number,
                    start,
                },
            );
        }
    }

    fn drain_lessee(&mut self, number: usize) {
        loop {
            let now = self.now;
            let edge = &mut self.edges[number];
            let mono = edge.mono(now);
            let Some(lessee) = &mut edge.lessee else {
                return;
            };
            let Some(output) = lessee.poll(mono) else {
                return;
            };
            let node = |id: tollgate_core::ids::NodeId| usize::try_from(id.0 - 1).unwrap_or(0);
            match output {
                Output::Lease { to, lease } => {
                    if edge.links[node(to)].boot.is_some() {
                        self.surrenders(number, node(to), &lease);
                        self.send(
                            Actor::Edge(number),
                            Actor::Node(node(to)),
                            Wire::Lease(lease),
                        );
                    }
                }
                Output::Held { to, held } => {
                    self.send(Actor::Edge(number), Actor::Node(node(to)), Wire::Held(held));
                }
                Output::Fenced => self.open_again(number),
            }
        }
    }

    /// A later boot of the session exists: a process with its journal's lock opens again.
    pub(super) fn open_again(&mut self, number: usize) {
        let edge = &mut self.edges[number];
        if edge.opening.is_some() {
            return;
        }
        if edge.leaving && !edge.keeps_journal {
            // The session is closed, only the answer was lost.
            self.left(number);
            return;
        }
        if !edge.keeps_journal {
            let text = format!("e{number} keeps no journal and was fenced");
            self.truth.fail("fence", None, text);
            return;
        }
        let nonce = edge.journal.next_start(self.random.disk.next());
        let session = edge.session;
        self.story.tell(self.now, || {
            format!("* e{number} is fenced and opens again")
        });
        self.open_session(number, session, nonce, 0);
    }

    fn repeat_opening(&mut self, number: usize) {
        let Some((open, at, node)) = self.edges[number].opening.clone() else {
            return;
        };
        if self.now < at + REPEAT_MS {
            return;
        }
        let next = (node + 1) % self.nodes.len();
        self.send(
            Actor::Edge(number),
            Actor::Node(next),
            Wire::Open(open.clone()),
        );
        self.edges[number].opening = Some((open, self.now, next));
    }

    fn keep_links(&mut self, number: usize) {
        let now = self.now;
        let edge = &mut self.edges[number];
        let Some(lessee) = &edge.lessee else { return };
        let boot = lessee.boot();
        let mut messages = Vec::new();
        for (node, link) in edge.links.iter_mut().enumerate() {
            if link.boot.is_some() && now > link.heard_at + LINK_TTL_MS {
                *link = Link::default();
            }
            if link.boot.is_none() {
                if link.asked_at.is_none_or(|at| now >= at + REPEAT_MS) {
                    link.asked_at = Some(now);
                    messages.push((node, Wire::Hello { boot }));
                }
            } else if now >= link.told_at + 1000 {
                link.told_at = now;
                messages.push((node, Wire::Keepalive { boot }));
            }
        }
        for (node, wire) in messages {
            self.send(Actor::Edge(number), Actor::Node(node), wire);
        }
    }

    /// Asks who a customer's key is, if that is not known or under way.
    pub(super) fn resolve_customer(&mut self, number: usize, customer: usize, need: u64) {
        let now = self.now;
        let edge = &mut self.edges[number];
        let Some(lessee) = &mut edge.lessee else {
            return;
        };
        if edge.resolving.contains_key(&customer) {
            return;
        }
        let lease_no = lessee.draw();
        edge.resolving.insert(
            customer,
            Resolving {
                lease_no,
                need,
                sent_at: now,
                tries: 0,
            },
        );
        self.send_resolve(number, customer);
    }

    fn send_resolve(&mut self, number: usize, customer: usize) {
        let now = self.now;
        let nodes = self.nodes.len();
        let edge = &mut self.edges[number];
        let Some(lessee) = &edge.lessee else { return };
        let Some(resolving) = edge.resolving.get_mut(&customer) else {
            return;
        };
        let slot = tollgate_core::ids::Slot::of(&catalog::customer(customer));
        let owner = lessee.route(slot).and_then(|route| route.owner);
        let owner = owner.and_then(|(id, _)| usize::try_from(id.0 - 1).ok());
        // First the issuer, then whoever answers.
        let linked = |node: &usize| edge.links[*node].boot.is_some();
        let tried = (0..nodes)
            .map(|at| (resolving.tries + at) % nodes)
            .find(linked);
        let node = match owner
            .filter(|owner| linked(owner) && resolving.tries % 2 == 0)
            .or(tried)
        {
            Some(node) => node,
            None => return,
        };
        resolving.tries += 1;
        resolving.sent_at = now;
        let (lease_no, need) = (resolving.lease_no, resolving.need);
        let wire = Wire::Resolve {
            boot: lessee.boot(),
            customer,
            lease_no,
            need,
        };
        self.send(Actor::Edge(number), Actor::Node(node), wire);
    }

    fn repeat_resolves(&mut self, number: usize) {
        let now = self.now;
        let resolving = self.edges[number].resolving.iter();
        let due: Vec<usize> = resolving
            .filter(|(_, resolving)| now >= resolving.sent_at + REPEAT_MS)
            .map(|(customer, _)| *customer)
            .collect();
        for customer in due {
            self.send_resolve(number, customer);
        }
    }

    /// A message reaches an edge.
    pub(super) fn edge_receives(&mut self, number: usize, from: Actor, wire: Wire) {
        let Actor::Node(node) = from else { return };
        if matches!(wire, Wire::Welcome { .. } | Wire::Alive { .. }) {
            self.edges[number].links[node].heard_at = self.now;
        }
        match wire {
            Wire::Opened(reply) => self.opened(number, &reply),
            Wire::Welcome {
                boot,
                routes,
                revision,
            } => {
                let edge = &mut self.edges[number];
                let mono = edge.mono(self.now);
                edge.links[node].boot = Some(boot);
                if let Some(lessee) = &mut edge.lessee {
                    lessee.handle_routes(mono, &routes);
                }
                if let Some(reporter) = &mut edge.reporter {
                    reporter.handle_reconnected();
                }
                self.follow_revision(number, node, revision);
            }
            Wire::Alive { revision } | Wire::Push { revision } => {
                self.follow_revision(number, node, revision);
            }
            Wire::Changed { revision } => self.catalog_changed(number, revision),
            Wire::Reported(answer) => self.report_answered(number, &answer),
            Wire::Closed(answer) => self.session_closed(number, &answer),
            Wire::Resolved {
                customer,
                lease_no,
                limits,
                revision,
                lease,
            } => {
                self.resolved(number, node, (customer, lease_no, limits));
                let edge = &mut self.edges[number];
                let mono = edge.mono(self.now);
                let id = self.nodes[node].id();
                if let (Some(lessee), Some(part), Some(boot)) =
                    (&mut edge.lessee, lease, edge.links[node].boot)
                {
                    lessee.handle_slot_answer(mono, (id, boot), revision, &part);
                }
            }
            wire => self.lessee_receives(number, node, wire),
        }
        self.move_on(number);
    }

    fn lessee_receives(&mut self, number: usize, node: usize, wire: Wire) {
        let id = self.nodes[node].id();
        let edge = &mut self.edges[number];
        let mono = edge.mono(self.now);
        let (Some(lessee), Some(boot)) = (&mut edge.lessee, edge.links[node].boot) else {
            return;
        };
        match wire {
            Wire::Answer(answer) => lessee.handle_answer(mono, (id, boot), &answer),
            Wire::Recall(recall) => lessee.handle_recall(mono, (id, boot), &recall),
            Wire::Routes(routes) => lessee.handle_routes(mono, &routes),
            _ => {}
        }
    }

    fn resolved(
        &mut self,
        number: usize,
        node: usize,
        answer: (usize, LeaseNo, Option<super::wire::Limits>),
    ) {
        let (customer, lease_no, limits) = answer;
        let edge = &mut self.edges[number];
        let mono = edge.mono(self.now);
        let (Some(lessee), Some(limits)) = (&mut edge.lessee, limits) else {
            return;
        };
        if edge.links[node].boot.is_none() {
            return;
        }
        let asked = edge.resolving.get(&customer);
        if asked.is_some_and(|asked| asked.lease_no == lease_no) {
            edge.resolving.remove(&customer);
        }
        let mut open = Vec::new();
        for (limit, account) in limits {
            let observed = self.truth.observe(customer, limit, &account);
            let is_new = lessee.cell(&account).is_none();
            let cell = SimCell::new(self.truth.held_by_edges(observed));
            lessee.open(mono, &account, cell, Some(lease_no));
            if is_new && tollgate_core::planted::journal_resume_with_the_old_lease_book() {
                resume_old_book(&edge.old_book, &account, lessee);
            }
            if let Some(cell) = lessee.cell(&account).cloned() {
                open.push(Open {
                    account,
                    cell,
                    observed,
                });
            }
        }
        edge.known.insert(customer, open);
    }

    fn follow_revision(&mut self, number: usize, node: usize, revision: Revision) {
        let known = self.edges[number].known_revision;
        if revision > known {
            self.send(Actor::Edge(number), Actor::Node(node), Wire::Changes);
        }
    }

    fn catalog_changed(&mut self, number: usize, revision: Revision) {
        let edge = &mut self.edges[number];
        let Some(lessee) = &mut edge.lessee else {
            return;
        };
        if revision <= edge.known_revision {
            return;
        }
        edge.known_revision = revision;
        lessee.handle_revision(revision);
        // What changed is fetched anew.
        let customers: Vec<usize> = edge.known.keys().copied().collect();
        for customer in customers {
            self.resolve_customer(number, customer, 0);
        }
    }

    fn opened(&mut self, number: usize, reply: &OpenSessionReply) {
        let now = self.now;
        let edge = &mut self.edges[number];
        let Some((open, _, _)) = edge.opening.clone() else {
            return;
        };
        let mono = edge.mono(now);
        match *reply {
            OpenSessionReply::Opened {
                session,
                boot,
                last_seq,
            } => {
                edge.opening = None;
                self.story.tell(now, || {
                    format!("* e{number} is boot {boot} of session {session}")
                });
                if let (Some(lessee), Some(reporter)) = (&mut edge.lessee, &mut edge.reporter) {
                    lessee.handle_new_boot(mono, boot);
                    reporter.handle_new_boot(boot);
                    for link in &mut edge.links {
                        *link = Link::default();
                    }
                    return;
                }
                edge.session = Some(session);
                edge.lessee = Some(Lessee::new(boot));
                self.begin_metering(number, session, boot, last_seq);
                self.keep_links(number);
            }
            OpenSessionReply::Expired if edge.leaving => self.left(number),
            OpenSessionReply::Expired if open.session.is_some() => {
                self.edges[number].journal.reset();
                self.open_session(number, None, open.nonce, 0);
            }
            // A late answer to an earlier try of this process.
            OpenSessionReply::Expired | OpenSessionReply::Unknown if open.session.is_none() => {}
            // The twin was faster.
            OpenSessionReply::StaleNonce { last } if last < open.nonce => {}
            OpenSessionReply::StaleNonce { last } => {
                let edge = &mut self.edges[number];
                edge.journal.nonce = edge.journal.nonce.max(last);
                let nonce = edge.journal.next_start(self.random.disk.next());
                self.open_session(number, open.session, nonce, 0);
            }
            ref other => {
                let text = format!("e{number} opened with {open:?} and got {other:?}");
                self.truth.fail("session", None, text);
            }
        }
    }
}

/// Planted fault: the cells of the former boot, as they were when the journal was synced last.
fn resume_old_book(
    book: &[(usize, AccountId, u64)],
    account: &AccountId,
    lessee: &Lessee<SimCell>,
) {
    let old = book.iter().find(|(_, known, _)| known == account);
    if let (Some((_, _, units)), Some(cell)) = (old, lessee.cell(account))
        && cell.free() == 0
    {
        cell.conjure(*units);
    }
}
