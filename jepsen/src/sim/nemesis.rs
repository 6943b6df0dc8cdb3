//! What goes wrong, and when it is undone.

use super::catalog;
use super::network::Actor;
use super::scenario::Fault;
use super::wire::Asker;
use super::world::{Event, World};
use tollgate_core::command::{Assign, Command, OpenSession};
use tollgate_core::ids::{Incarnation, Slot};
use tollgate_core::message::Lease;

/// The end of a fault.
#[derive(Clone, Debug)]
pub(super) enum Undo {
    Mend(Vec<(Actor, Actor)>),
    StartNode(usize),
    /// Not an end: a crash that was planned for a certain moment.
    CrashEdge(usize),
}

/// Pause longer than an account takes to be idle.
const SILENCE_MS: u64 = 36_000;

impl World {
    /// One fault, and the next one's time.
    pub(super) fn next_fault(&mut self) {
        if !self.busy || self.scenario.faults.is_empty() {
            return;
        }
        let (low, high) = self.scenario.fault_gap_ms;
        let gap = self.random.faults.between(low, high);
        self.at(gap, Event::Fault);
        let fault = self.random.faults.pick(&self.scenario.faults.clone());
        self.inject(fault);
    }

    fn inject(&mut self, fault: Fault) {
        let nodes = self.nodes.len();
        let node = self.random.faults.index(nodes);
        let edge = self.random.faults.index(self.edges.len());
        match fault {
            Fault::IsolateNode => self.isolate(&[node]),
            Fault::IsolateLeader => {
                if let Some(leader) = self.raft.leader {
                    self.isolate(&[leader]);
                }
            }
            Fault::SplitNodes => {
                let half: Vec<usize> = (0..nodes)
                    .filter(|_| self.random.faults.chance(500))
                    .collect();
                self.isolate(&half);
            }
            Fault::CutEdge => {
                let links = (0..nodes).flat_map(|node| both(Actor::Edge(edge), Actor::Node(node)));
                self.cut(links.collect());
            }
            Fault::CutLink => {
                let mut links = both(Actor::Edge(edge), Actor::Node(node)).to_vec();
                match self.random.faults.below(3) {
                    0 => drop(links.pop()),
                    1 => drop(links.remove(0)),
                    _ => {}
                }
                self.cut(links);
            }
            Fault::CrashNode => {
                self.crash_node(node);
                let delay = self.random.faults.pick(&[20, 300, 1500, 4000]);
                self.at(delay, Event::Undo(Undo::StartNode(node)));
            }
            Fault::CrashEdge => {
                if self.edges[edge].keeps_journal && self.random.faults.chance(400) {
                    // In the middle of its next write to the journal.
                    self.edges[edge].crashes_at_next_write = true;
                } else {
                    self.crash_and_restart(edge);
                }
            }
            Fault::ForceTakeover => {
                let slot = self.any_slot();
                self.force_takeover(slot);
            }
            Fault::ChangeLeader => {
                let leader = self.raft.leader;
                self.elect(leader);
            }
            Fault::ChangeLimit => self.change_limit(),
            Fault::LagReplica => {
                self.nodes[node].lags_until = self.now + self.random.faults.between(300, 4000);
            }
            Fault::Reconnect => {
                if self.random.faults.chance(500) {
                    self.edges[edge].lose_link(node);
                }
                self.drop_contact(node, edge);
            }
            Fault::LeaveEdge => {
                if self.edges[edge].serves() {
                    self.edges[edge].leaving = true;
                    self.story.tell(self.now, || format!("* e{edge} leaves"));
                }
            }
            Fault::FenceEdge => self.fence_edge(edge),
            Fault::LoseSurrender => self.loses_surrender = true,
            Fault::Silence => {
                if self.silent_until == 0 {
                    self.silent_until = self.now + SILENCE_MS;
                    self.story.tell(self.now, || "* silence".to_owned());
                    let rest = self.scenario.run_ms.saturating_sub(self.now);
                    self.postpone_end(SILENCE_MS.saturating_sub(rest) + 2000);
                }
            }
        }
    }

    /// An edge crashes and, in most runs, starts again some time later.
    pub(super) fn crash_and_restart(&mut self, edge: usize) {
        self.crash_edge(edge);
        if !self.scenario.edges_stay_dead || self.random.faults.chance(500) {
            self.start_edge_later(edge, 3000);
        }
    }

    fn isolate(&mut self, side: &[usize]) {
        let mut links = Vec::new();
        for inside in side {
            for outside in (0..self.nodes.len()).filter(|node| !side.contains(node)) {
                links.extend(both(Actor::Node(*inside), Actor::Node(outside)));
            }
        }
        self.cut(links);
    }

    fn cut(&mut self, links: Vec<(Actor, Actor)>) {
        self.story
            .tell(self.now, || format!("* cut {}", spell(&links)));
        self.network.cut(&links);
        let duration = self.random.faults.pick(&[200, 800, 2500, 6000]);
        self.at(duration, Event::Undo(Undo::Mend(links)));
    }

    pub(super) fn undo(&mut self, undo: Undo) {
        match undo {
            Undo::Mend(links) => {
                self.story
                    .tell(self.now, || format!("* mend {}", spell(&links)));
                self.network.mend(&links);
            }
            Undo::StartNode(node) => self.start_node(node),
            Undo::CrashEdge(edge) => self.crash_and_restart(edge),
        }
    }

    /// A lease leaves an edge. The first that hands units in after [`Fault::LoseSurrender`] still arrives; the answer
    /// does not, and meanwhile the slot is given away, of which the issuer hears late.
    pub(super) fn surrenders(&mut self, edge: usize, node: usize, lease: &Lease) {
        let told = &mut self.edges[edge].surrendered;
        let mut surrendering = None;
        for part in &lease.slots {
            for line in &part.lines {
                let total = (line.lease_no, line.surrendered_total);
                let before = told.insert(line.account.clone(), total);
                let before = before.filter(|(lease_no, _)| *lease_no == line.lease_no);
                if line.surrendered_total > before.map_or(0, |(_, units)| units) {
                    surrendering = Some(part.slot);
                }
            }
        }
        if let Some(slot) = surrendering
            && std::mem::take(&mut self.loses_surrender)
        {
            self.cut(vec![(Actor::Node(node), Actor::Edge(edge))]);
            self.nodes[node].lags_until = self.now + self.random.faults.between(300, 4000);
            self.force_takeover(slot);
        }
    }

    fn any_slot(&mut self) -> Slot {
        let slots: Vec<_> = self.slots.iter().copied().collect();
        self.random.faults.pick(&slots)
    }

    /// A slot moves although its owner lives; sometimes as a leader would ask that knows an old table.
    fn force_takeover(&mut self, slot: Slot) {
        let to = self.random.faults.index(self.nodes.len());
        let from = self.random.faults.index(self.nodes.len());
        let (now_boot, former, id) = (
            self.nodes[to].boot,
            self.nodes[to].former_boot,
            self.nodes[to].id(),
        );
        // A leader that stalled may even name a boot that is dead.
        let stale = self.random.faults.chance(300);
        let Some(boot) = former.filter(|_| stale).or(now_boot) else {
            return;
        };
        // The epoch that the asking node's replica shows: a lagging one asks in vain.
        let epoch = self.nodes[from].ledger.route(slot).epoch;
        let assign = Assign {
            slots: vec![(slot, epoch)],
            node: id,
            boot,
        };
        if self.nodes[from].up {
            self.propose(from, Asker::Node, Command::Assign(assign));
        }
    }

    fn change_limit(&mut self) {
        let customer = self.random.faults.index(self.scenario.customers.len());
        let limits = &mut self.scenario.customers[customer];
        let at = self.random.faults.index(limits.len());
        let old = limits[at].quota;
        limits[at].quota = match self.random.faults.below(4) {
            0 => old / 2,
            1 => old + 1,
            2 => old.saturating_mul(2),
            _ => old.saturating_sub(old / 10),
        };
        let limits = limits.clone();
        let change = self.next_change();
        self.raft.ask(catalog::change(change, customer, &limits));
    }

    /// Another process opens the edge's session under a later start number.
    fn fence_edge(&mut self, edge: usize) {
        let target = &self.edges[edge];
        if !target.serves() || !target.keeps_journal || target.session.is_none() {
            return;
        }
        let open = OpenSession {
            session: target.session,
            nonce: target.journal.nonce.next(),
            identity: catalog::name(&super::edge::Edge::identity(edge)),
            incarnation: Incarnation(1),
        };
        if let Some(leader) = self.raft.leader {
            self.propose(leader, Asker::Nobody, Command::OpenSession(open));
        }
    }
}

fn both(a: Actor, b: Actor) -> [(Actor, Actor); 2] {
    [(a, b), (b, a)]
}

fn spell(links: &[(Actor, Actor)]) -> String {
    let links: Vec<String> = links
        .iter()
        .map(|(from, to)| format!("{from}→{to}"))
        .collect();
    links.join(" ")
}
