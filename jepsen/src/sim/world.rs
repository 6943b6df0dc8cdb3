//! The run: virtual time, the queue of events, and the step that moves everything on.
//!
//! One thread, one seed. Events are ordered by (time, number); nothing else decides what happens next.
//! The drivers live beside it: [`super::raft`], [`super::node`], [`super::edge`],
//! [`super::nemesis`], [`super::finish`]. After every event [`super::truth`] is asked whether every promise
//! still holds.

use super::catalog;
use super::edge::Edge;
use super::finish::{Finish, Probe};
use super::nemesis::Undo;
use super::network::{Actor, Network};
use super::node::Node;
use super::raft::Raft;
use super::rng::Rng;
use super::scenario::Scenario;
use super::story::Story;
use super::truth::{Truth, Violation};
use super::wire::{Envelope, Wire};
use std::cmp::Ordering;
use std::collections::{BTreeSet, BinaryHeap};
use std::fmt::Write as _;
use tollgate_core::ids::Slot;

/// Events of one run at most: beyond, something runs in circles.
const EVENTS_MAX: u64 = 400_000;

/// Something that happens.
#[derive(Clone, Debug)]
pub(super) enum Event {
    Deliver(Envelope),
    StartNode {
        node: usize,
    },
    StartEdge {
        edge: usize,
    },
    NodeTick {
        node: usize,
        start: u32,
    },
    EdgeTick {
        edge: usize,
        start: u32,
    },
    EdgeWake {
        edge: usize,
        start: u32,
    },
    JournalSynced {
        edge: usize,
        start: u32,
        records: usize,
    },
    Flush {
        node: usize,
        start: u32,
    },
    Commit {
        node: usize,
        start: u32,
    },
    Apply {
        node: usize,
        start: u32,
        index: u64,
    },
    RaftTick,
    Check,
    Fault,
    Undo(Undo),
    Finish(Finish),
}

struct Scheduled {
    at: u64,
    number: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    // The heap gives the greatest first: earlier is greater.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

/// The streams of random numbers.
pub(super) struct Streams {
    pub(super) network: Rng,
    pub(super) raft: Rng,
    pub(super) faults: Rng,
    pub(super) work: Rng,
    pub(super) disk: Rng,
}

/// See the module's text.
pub(super) struct World {
    pub(super) now: u64,
    number: u64,
    queue: BinaryHeap<Scheduled>,
    pub(super) scenario: Scenario,
    pub(super) random: Streams,
    pub(super) network: Network,
    pub(super) raft: Raft,
    pub(super) nodes: Vec<Node>,
    pub(super) edges: Vec<Edge>,
    pub(super) truth: Truth,
    pub(super) story: Story,
    /// Slots of the run's customers; the others are left alone to save time.
    pub(super) slots: BTreeSet<Slot>,
    pub(super) checks: u64,
    pub(super) next_change: u64,
    /// Checks and faults go on.
    pub(super) busy: bool,
    pub(super) silent_until: u64,
    /// The next surrender is not answered, see [`super::scenario::Fault::LoseSurrender`].
    pub(super) loses_surrender: bool,
    pub(super) end_at: u64,
    pub(super) probe: Option<Probe>,
    pub(super) done: bool,
}

/// Whether an event can put units where they were not: the others only take them away or count them.
fn moves_units(event: &Event) -> bool {
    match event {
        Event::Deliver(envelope) => matches!(
            envelope.wire,
            Wire::Lease(_)
                | Wire::Held(_)
                | Wire::Resolve { .. }
                | Wire::Reply { .. }
                | Wire::Answer(_)
                | Wire::Resolved { .. }
                | Wire::Recall(_)
        ),
        Event::NodeTick { .. } | Event::Commit { .. } | Event::Apply { .. } => true,
        Event::RaftTick | Event::Fault | Event::JournalSynced { .. } => true,
        _ => false,
    }
}

impl World {
    pub(super) fn new(scenario: Scenario, story: bool) -> Self {
        let seed = scenario.seed;
        let random = Streams {
            network: Rng::stream(seed, "network"),
            raft: Rng::stream(seed, "raft"),
            faults: Rng::stream(seed, "faults"),
            work: Rng::stream(seed, "work"),
            disk: Rng::stream(seed, "disk"),
        };
        let (nodes, edges) = (scenario.nodes, scenario.edges);
        let slots = (0..scenario.customers.len())
            .map(|c| Slot::of(&catalog::customer(c)))
            .collect();
        let mut world = Self {
            now: 0,
            number: 0,
            queue: BinaryHeap::new(),
            network: Network::new(nodes, edges, scenario.profile),
            raft: Raft::new(),
            nodes: (0..nodes).map(Node::new).collect(),
            edges: (0..edges)
                .map(|edge| Edge::new(edge, nodes, scenario.has_journal(edge)))
                .collect(),
            truth: Truth::new(&scenario.customers),
            story: Story::new(story),
            slots,
            random,
            checks: 0,
            next_change: 0,
            busy: true,
            silent_until: 0,
            loses_surrender: false,
            end_at: scenario.run_ms,
            probe: None,
            done: false,
            scenario,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        for node in 0..self.nodes.len() {
            self.at(node as u64, Event::StartNode { node });
        }
        for edge in 0..self.edges.len() {
            let delay = 20 + self.random.work.below(400);
            self.at(delay, Event::StartEdge { edge });
        }
        self.at(1, Event::RaftTick);
        let change = self.next_change();
        let setup = catalog::setup(change, &self.scenario.customers);
        self.raft.ask(setup);
        self.at(500, Event::Check);
        self.at(600, Event::Fault);
        let end = self.scenario.run_ms;
        self.at(end, Event::Finish(Finish::Heal));
    }

    pub(super) fn next_change(&mut self) -> u64 {
        self.next_change += 1;
        self.next_change
    }

    /// Schedules an event after a delay.
    pub(super) fn at(&mut self, delay: u64, event: Event) {
        self.number += 1;
        self.queue.push(Scheduled {
            at: self.now + delay,
            number: self.number,
            event,
        });
    }

    /// Runs to the end, or to the first broken promise.
    pub(super) fn run(&mut self) -> Option<Violation> {
        let mut events = 0;
        while let Some(Scheduled { at, event, .. }) = self.queue.pop() {
            self.now = at;
            events += 1;
            let moves = moves_units(&event);
            self.step(event);
            if moves {
                self.check_held();
            }
            if let Some(violation) = self.truth.violation.take() {
                return Some(violation);
            }
            if self.done {
                return None;
            }
            if events == EVENTS_MAX {
                let text = format!(
                    "{EVENTS_MAX} events in {} ms: something runs in circles",
                    self.now
                );
                self.truth.fail("L liveness", None, text);
            }
        }
        None
    }

    fn step(&mut self, event: Event) {
        self.story.hash.add(self.now);
        match event {
            Event::Deliver(envelope) => self.deliver(envelope),
            Event::StartNode { node } => self.start_node(node),
            Event::StartEdge { edge } => self.start_edge(edge),
            Event::NodeTick { node, start } => self.node_tick(node, start),
            Event::EdgeTick { edge, start } => self.edge_tick(edge, start),
            Event::EdgeWake { edge, start } => self.edge_wake(edge, start),
            Event::JournalSynced {
                edge,
                start,
                records,
            } => self.journal_synced(edge, start, records),
            Event::Flush { node, start } => self.flush(node, start),
            Event::Commit { node, start } => self.commit(node, start),
            Event::Apply { node, start, index } => self.apply(node, start, index),
            Event::RaftTick => self.raft_tick(),
            Event::Check => self.next_check(),
            Event::Fault => self.next_fault(),
            Event::Undo(undo) => self.undo(undo),
            Event::Finish(finish) => self.finish(&finish),
        }
    }

    /// Which start of a process runs now; `None` while it is down.
    pub(super) fn start_of(&self, actor: Actor) -> Option<u32> {
        let (up, start) = match actor {
            Actor::Node(node) => (self.nodes[node].up, self.nodes[node].start),
            Actor::Edge(edge) => (self.edges[edge].up, self.edges[edge].start),
        };
        up.then_some(start)
    }

    /// Puts a message on the network.
    pub(super) fn send(&mut self, from: Actor, to: Actor, wire: Wire) {
        let (Some(from_start), Some(to_start)) = (self.start_of(from), self.start_of(to)) else {
            return;
        };
        let [first, second] = self.network.send(
            &mut self.random.network,
            self.now,
            (from, to),
            wire.stream(),
        );
        if first.is_none() {
            self.story
                .tell(self.now, || format!("{from} → {to} LOST {wire:?}"));
        }
        if let Some(delay) = second {
            self.at(
                delay,
                Event::Deliver(Envelope {
                    from,
                    to,
                    from_start,
                    to_start,
                    wire: wire.clone(),
                }),
            );
        }
        if let Some(delay) = first {
            self.at(
                delay,
                Event::Deliver(Envelope {
                    from,
                    to,
                    from_start,
                    to_start,
                    wire,
                }),
            );
        }
    }

    fn deliver(&mut self, envelope: Envelope) {
        if self.start_of(envelope.to) != Some(envelope.to_start) {
            return;
        }
        // A cut that began meanwhile holds up what is under way, too.
        if !self.network.reaches(envelope.from, envelope.to) {
            return;
        }
        let Envelope {
            from,
            to,
            from_start,
            wire,
            ..
        } = envelope;
        let trace = !matches!(wire, Wire::Lead { .. } | Wire::Beat { .. });
        if trace {
            let _ = write!(self.story.hash, "{from}{to}{wire:?}");
            self.story
                .tell(self.now, || format!("{from} → {to} {wire:?}"));
        }
        match to {
            Actor::Node(node) => self.node_receives(node, from, from_start, wire),
            Actor::Edge(edge) => self.edge_receives(edge, from, wire),
        }
    }
}
