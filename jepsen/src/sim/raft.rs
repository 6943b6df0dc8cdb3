//! The model of Raft: one ordered log, leaders that change, entries that are lost before they commit.
//!
//! A node that believes it leads batches commands and appends entries to a list of its own. They commit,
//! in order, when it still leads and reaches a majority; when another leads instead, a prefix of what had
//! reached a majority survives and the rest is lost, and nobody is told which. Committed entries are
//! durable and reach every replica in order, each after its own lag. The proofs of Raft itself are
//! openraft's business; this model only brings about every fate that a proposal can have.

use super::network::Actor;
use super::wire::{Asker, Wire};
use super::world::{Event, World};
use std::collections::VecDeque;
use std::rc::Rc;
use tollgate_core::command::{Command, Entry};
use tollgate_core::time::LedgerTime;

/// How long after a leader's loss another is elected.
const ELECTION_MS: (u64, u64) = (250, 900);
/// How long a majority takes to store an entry.
const COMMIT_MS: (u64, u64) = (2, 15);
/// Ledger time of the first moment of a run: 2026-01-01.
const TIME_BEGINS: u64 = 1_767_225_600_000;
/// Repeat of the workload's own changes until they are in the log.
const CHANGE_REPEAT_MS: u64 = 300;

/// Who asked for a command, for the reply.
#[derive(Clone, Debug)]
pub(super) struct Proposal {
    pub(super) node: usize,
    pub(super) start: u32,
    pub(super) asker: Asker,
}

/// An entry that is not committed yet.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    entry: Entry,
    proposals: Vec<Proposal>,
    ready_at: u64,
    /// A majority could be reached when it was appended: another leader may have it.
    replicated: bool,
}

/// A committed entry.
#[derive(Clone, Debug)]
pub(super) struct Committed {
    pub(super) entry: Rc<Entry>,
    pub(super) proposals: Rc<Vec<Proposal>>,
    /// Who committed it: only that process answers.
    pub(super) leader: (usize, u32),
}

/// What a node knows of leadership, and what it appended as leader.
#[derive(Clone, Debug, Default)]
pub(super) struct Leadership {
    /// The leader this node believes in.
    pub(super) believes: Option<(u64, usize)>,
    /// The term it believes to lead.
    pub(super) leads: Option<u64>,
    pub(super) batch: Vec<(Proposal, Command)>,
    pub(super) flushing: bool,
    pub(super) pending: VecDeque<Pending>,
}

/// See the module's text.
pub(super) struct Raft {
    pub(super) term: u64,
    pub(super) leader: Option<usize>,
    pub(super) log: Vec<Committed>,
    election_at: Option<u64>,
    /// Changes of the workload, proposed again until they are committed.
    asked: VecDeque<(Command, Option<u64>)>,
}

impl Raft {
    pub(super) fn new() -> Self {
        Self {
            term: 0,
            leader: None,
            log: Vec::new(),
            election_at: None,
            asked: VecDeque::new(),
        }
    }

    /// The workload wants a change.
    pub(super) fn ask(&mut self, command: Command) {
        self.asked.push_back((command, None));
    }

    pub(super) fn all_asked_are_committed(&self) -> bool {
        self.asked.is_empty()
    }

    pub(super) fn index(&self) -> u64 {
        self.log.len() as u64
    }
}

impl World {
    /// Whether a node reaches a majority, both ways.
    fn has_majority(&self, node: usize) -> bool {
        let me = Actor::Node(node);
        let reached = (0..self.nodes.len()).filter(|other| {
            let other_actor = Actor::Node(*other);
            self.nodes[*other].up
                && self.network.reaches(me, other_actor)
                && self.network.reaches(other_actor, me)
        });
        self.nodes[node].up && reached.count() * 2 > self.nodes.len()
    }

    /// Every 50 ms: elections, heartbeats, repeats of the workload's changes.
    pub(super) fn raft_tick(&mut self) {
        self.at(50, Event::RaftTick);
        let leads = |leader: usize| self.nodes[leader].raft.leads == Some(self.raft.term);
        let well = self
            .raft
            .leader
            .is_some_and(|leader| leads(leader) && self.has_majority(leader));
        if well {
            self.raft.election_at = None;
        } else {
            let due = match self.raft.election_at {
                Some(due) => due,
                None => {
                    let first = self.raft.term == 0;
                    let wait = self.random.raft.between(ELECTION_MS.0, ELECTION_MS.1);
                    let due = self.now + if first { 0 } else { wait };
                    self.raft.election_at = Some(due);
                    due
                }
            };
            if self.now >= due {
                self.elect(None);
            }
        }
        for node in 0..self.nodes.len() {
            if self.nodes[node].up && self.nodes[node].raft.leads.is_some() {
                self.lead(node);
            }
        }
        self.propose_asked();
    }

    /// A new leader, chosen among those that reach a majority, other than `not`.
    pub(super) fn elect(&mut self, not: Option<usize>) {
        let able: Vec<usize> = (0..self.nodes.len())
            .filter(|n| Some(*n) != not && self.has_majority(*n))
            .collect();
        if able.is_empty() {
            return;
        }
        let chosen = self.random.raft.pick(&able);
        self.raft.term += 1;
        self.raft.election_at = None;
        let term = self.raft.term;
        let old = self.raft.leader.replace(chosen);
        self.story
            .tell(self.now, || format!("* n{chosen} leads in term {term}"));
        if let Some(old) = old {
            self.inherit(old, chosen);
        }
        if old == Some(chosen) {
            self.nodes[chosen].raft.pending.clear();
        }
        self.nodes[chosen].raft.leads = Some(term);
        self.nodes[chosen].raft.believes = Some((term, chosen));
        self.lead(chosen);
    }

    /// A prefix of the old leader's entries survives; which one, chance decides.
    fn inherit(&mut self, old: usize, chosen: usize) {
        let pending = &mut self.nodes[old].raft.pending;
        let most = pending.iter().take_while(|p| p.replicated).count();
        let kept = self.random.raft.index(most + 1);
        let survivors: Vec<Pending> = pending.drain(..kept).collect();
        self.story.tell(self.now, || {
            format!("* of {most} replicated entries of n{old} {kept} survive under n{chosen}")
        });
        for survivor in survivors {
            self.append_committed(chosen, survivor);
        }
        self.catch_up();
    }

    /// Heartbeats: who leads, and how far the log is committed.
    fn lead(&mut self, node: usize) {
        let Some(term) = self.nodes[node].raft.leads else {
            return;
        };
        // A deposed leader knows no more than its replica.
        let current = self.raft.leader == Some(node) && self.raft.term == term;
        let index = if current { self.raft.index() } else { 0 };
        for other in 0..self.nodes.len() {
            if other != node {
                self.send(
                    Actor::Node(node),
                    Actor::Node(other),
                    Wire::Lead { term, index },
                );
            }
        }
    }

    /// A node hears a leader's heartbeat.
    pub(super) fn hear_leader(&mut self, node: usize, leader: usize, term: u64, index: u64) {
        let raft = &mut self.nodes[node].raft;
        if raft.believes.is_some_and(|(known, _)| known > term) {
            return;
        }
        raft.believes = Some((term, leader));
        if raft.leads.is_some_and(|mine| mine < term) {
            raft.leads = None;
            raft.pending.clear();
            raft.batch.clear();
            self.story.tell(self.now, || {
                format!("* n{node} learns that n{leader} leads")
            });
        }
        if index > self.nodes[node].heard_index {
            self.apply_later(node, index);
        }
    }

    /// Schedules a replica to catch up to an index, after its lag.
    fn apply_later(&mut self, node: usize, index: u64) {
        if !self.nodes[node].up {
            return;
        }
        self.nodes[node].heard_index = self.nodes[node].heard_index.max(index);
        let lag = if self.now < self.nodes[node].lags_until {
            self.random.raft.between(100, 2000)
        } else {
            self.random.raft.between(0, 3)
        };
        let start = self.nodes[node].start;
        self.at(lag, Event::Apply { node, start, index });
    }

    /// A command for the leader, from a node that may be it.
    pub(super) fn propose(&mut self, node: usize, asker: Asker, command: Command) {
        let Some((_, leader)) = self.nodes[node].raft.believes else {
            return;
        };
        if leader == node {
            let start = self.nodes[node].start;
            self.enqueue(node, Proposal { node, start, asker }, command);
        } else {
            let wire = Wire::Forward {
                asker,
                command: Box::new(command),
            };
            self.send(Actor::Node(node), Actor::Node(leader), wire);
        }
    }

    /// A leader takes a command into its next batch.
    pub(super) fn enqueue(&mut self, node: usize, proposal: Proposal, command: Command) {
        if self.nodes[node].raft.leads.is_none() {
            return;
        }
        self.nodes[node].raft.batch.push((proposal, command));
        if !self.nodes[node].raft.flushing {
            self.nodes[node].raft.flushing = true;
            let start = self.nodes[node].start;
            let delay = self.random.raft.below(5);
            self.at(delay, Event::Flush { node, start });
        }
    }

    /// The batch becomes an entry.
    pub(super) fn flush(&mut self, node: usize, start: u32) {
        if self.start_of(Actor::Node(node)) != Some(start) {
            return;
        }
        self.nodes[node].raft.flushing = false;
        let batch = std::mem::take(&mut self.nodes[node].raft.batch);
        if self.nodes[node].raft.leads.is_none() || batch.is_empty() {
            return;
        }
        let time = LedgerTime(TIME_BEGINS + self.now + self.nodes[node].clock_ahead);
        let (proposals, commands): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        let entry = Entry { time, commands };
        self.acknowledge_early(node, &entry, &proposals);
        let replicated = self.has_majority(node);
        let delay = self.random.raft.between(COMMIT_MS.0, COMMIT_MS.1);
        let pending = Pending {
            entry,
            proposals,
            ready_at: self.now + delay,
            replicated,
        };
        self.nodes[node].raft.pending.push_back(pending);
        self.at(delay, Event::Commit { node, start });
    }

    /// What a majority has stored is committed, in order.
    pub(super) fn commit(&mut self, node: usize, start: u32) {
        if self.start_of(Actor::Node(node)) != Some(start) || self.raft.leader != Some(node) {
            return;
        }
        if self.nodes[node].raft.leads != Some(self.raft.term) {
            return;
        }
        if !self.has_majority(node) {
            if !self.nodes[node].raft.pending.is_empty() {
                self.at(30, Event::Commit { node, start });
            }
            return;
        }
        let mut moved = false;
        while self.nodes[node]
            .raft
            .pending
            .front()
            .is_some_and(|p| p.ready_at <= self.now)
        {
            if let Some(pending) = self.nodes[node].raft.pending.pop_front() {
                self.append_committed(node, pending);
                moved = true;
            }
        }
        if moved {
            self.catch_up();
        }
    }

    fn append_committed(&mut self, leader: usize, pending: Pending) {
        let entry = Rc::new(pending.entry);
        self.raft.log.push(Committed {
            entry: Rc::clone(&entry),
            proposals: Rc::new(pending.proposals),
            leader: (leader, self.nodes[leader].start),
        });
        let index = self.raft.index();
        self.story.tell(self.now, || {
            format!("* committed {index}: {:?}", entry.commands)
        });
        self.truth.commit(&entry);
    }

    /// The leader applies at once; the others hear of it, if they can.
    fn catch_up(&mut self) {
        let (Some(leader), index) = (self.raft.leader, self.raft.index()) else {
            return;
        };
        for node in 0..self.nodes.len() {
            if node == leader || self.network.reaches(Actor::Node(leader), Actor::Node(node)) {
                self.apply_later(node, index);
            }
        }
    }

    fn propose_asked(&mut self) {
        while let Some((command, _)) = self.raft.asked.front() {
            if !self.truth.is_committed(command) {
                break;
            }
            self.raft.asked.pop_front();
        }
        let Some(leader) = self.raft.leader else {
            return;
        };
        let now = self.now;
        let due = |at: Option<u64>| at.is_none_or(|at| now >= at + CHANGE_REPEAT_MS);
        let Some((command, at)) = self.raft.asked.front_mut() else {
            return;
        };
        if due(*at) {
            *at = Some(now);
            let command = command.clone();
            self.propose(leader, Asker::Nobody, command);
        }
    }
}
