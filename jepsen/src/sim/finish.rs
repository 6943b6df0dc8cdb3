//! The end of a run: everything heals, and what was promised to happen in the end must happen.

use super::catalog;
use super::check::{Outcome, Purpose};
use super::world::{Event, World};
use tollgate_core::account::AccountId;
use tollgate_core::ids::Incarnation;
use tollgate_core::ledger::Ledger;
use tollgate_core::lessee::Cell as _;

/// How long the cluster has to settle everything once all is healed.
const SETTLE_MS: u64 = 30_000;
/// How long an edge that asks may go without what is there.
const SERVE_MS: u64 = 12_000;
/// Pause before a client asks again.
const ASK_AGAIN_MS: u64 = 300;
/// By how much a limit is raised once nothing is left.
const RAISE: u64 = 5;

/// After this long without a check nothing is under way.
const QUIET_MS: u64 = 5000;

/// A step of the end.
#[derive(Clone, Debug)]
pub(super) enum Finish {
    Heal,
    Settle {
        since: u64,
    },
    Look,
    /// Nothing moves any more: the books of a run without faults must be exact.
    Exact,
}

/// What is asked of one account, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Round {
    /// One unit, by one edge or by all.
    One,
    /// Everything that is left, at once, by one edge.
    All,
    /// One more: must be refused.
    More,
    /// One more after the limit was raised.
    Raised,
}

/// A round under way.
pub(super) struct Probe {
    /// Accounts still to be probed.
    rest: Vec<usize>,
    number: usize,
    round: Round,
    cost: u64,
    since: u64,
    /// Askers that were not served yet: the check under way, when to ask again, how the last one ended.
    askers: Vec<Asker>,
}

struct Asker {
    edge: usize,
    check: Option<u64>,
    last: Option<Outcome>,
    again_at: u64,
}

impl World {
    /// Lets the run go on for longer than planned.
    pub(super) fn postpone_end(&mut self, ms: u64) {
        self.end_at += ms;
    }

    pub(super) fn finish(&mut self, step: &Finish) {
        match *step {
            Finish::Heal if self.now < self.end_at => {
                let rest = self.end_at - self.now;
                self.at(rest, Event::Finish(Finish::Heal));
            }
            Finish::Heal => self.heal(),
            Finish::Settle { since } => match self.unsettled() {
                None => self.settled(),
                Some(what) if self.now > since + SETTLE_MS => {
                    let text = format!("{SETTLE_MS} ms after everything healed, {what}");
                    self.truth.fail("L liveness", None, text);
                }
                Some(_) => self.at(200, Event::Finish(Finish::Settle { since })),
            },
            Finish::Look => self.look(),
            Finish::Exact => self.end_exactly(),
        }
    }

    fn heal(&mut self) {
        self.story
            .tell(self.now, || "* everything heals".to_owned());
        self.busy = false;
        self.loses_surrender = false;
        self.network.heal();
        for node in 0..self.nodes.len() {
            self.nodes[node].lags_until = 0;
            self.at(1, Event::StartNode { node });
        }
        for edge in 0..self.edges.len() {
            if !self.scenario.edges_stay_dead || edge == 0 {
                self.at(1, Event::StartEdge { edge });
            }
        }
        let since = self.now;
        self.at(500, Event::Finish(Finish::Settle { since }));
    }

    /// What is not as it should be yet.
    fn unsettled(&self) -> Option<String> {
        if !self.raft.all_asked_are_committed() {
            return Some("a change of the catalog is not committed".to_owned());
        }
        let index = self.raft.index();
        for node in &self.nodes {
            if node.ledger.index() < index {
                return Some(format!(
                    "n{} is at index {} of {index}",
                    node.number,
                    node.ledger.index()
                ));
            }
        }
        for slot in &self.slots {
            let owner = self
                .truth
                .naive
                .slots
                .get(slot)
                .and_then(|(_, owner)| *owner);
            let lives = |node: &super::node::Node| {
                owner.is_some_and(|(id, boot)| node.id() == id && node.boot == Some(boot))
            };
            if !self.nodes.iter().any(lives) {
                return Some(format!(
                    "slot {slot} belongs to {owner:?}, which is no live boot"
                ));
            }
        }
        let edges = self.edges.iter().filter(|edge| edge.up);
        edges.filter_map(|edge| self.edge_unsettled(edge)).next()
    }

    fn edge_unsettled(&self, edge: &super::edge::Edge) -> Option<String> {
        let number = edge.number;
        let (Some(_), Some(reporter)) = (&edge.lessee, &edge.reporter) else {
            return Some(format!("e{number} has no session"));
        };
        if edge.leaving {
            return Some(format!("e{number} could not close its session"));
        }
        if !reporter.is_settled() || !edge.usage.is_empty() {
            return Some(format!(
                "e{number} has {} reports unacknowledged",
                reporter.unacknowledged()
            ));
        }
        if !edge.waiting.is_empty() {
            return Some(format!("a check waits at e{number}"));
        }
        let revision = self.nodes[0].ledger.catalog().revision();
        if edge.links.iter().any(|link| link.boot.is_none()) || edge.known_revision < revision {
            return Some(format!(
                "e{number} is not connected or knows an old catalog"
            ));
        }
        None
    }

    /// Reports are settled: the books must agree; then edges ask for what is left.
    fn settled(&mut self) {
        self.story
            .tell(self.now, || "* everything is settled".to_owned());
        for edge in 0..self.edges.len() {
            if self.edges[edge].up {
                self.truth.check_billing(edge);
            }
        }
        let mut rest: Vec<usize> = self.truth.accounts().map(|(number, _)| number).collect();
        rest.reverse();
        self.next_account(rest);
    }

    fn next_account(&mut self, mut rest: Vec<usize>) {
        match rest.pop() {
            Some(number) => self.begin_round(rest, number, Round::One),
            None => self.end(),
        }
    }

    fn begin_round(&mut self, rest: Vec<usize>, number: usize, round: Round) {
        let usable = self.usable(number);
        let cost = if round == Round::All {
            usable.max(1)
        } else {
            1
        };
        let serving: Vec<usize> = (0..self.edges.len())
            .filter(|e| self.edges[*e].serves())
            .collect();
        if serving.is_empty() {
            return self.end();
        }
        let all = round == Round::One && !self.scenario.one_asks;
        let one = self.random.work.pick(&serving);
        let edges = if all { serving } else { vec![one] };
        self.story.tell(self.now, || {
            format!(
                "* {edges:?} ask for {cost} of {usable} usable units of account {number}: {round:?}"
            )
        });
        let ask = |edge| Asker {
            edge,
            check: None,
            last: None,
            again_at: 0,
        };
        let askers = edges.into_iter().map(ask).collect();
        self.probe = Some(Probe {
            rest,
            number,
            round,
            cost,
            since: self.now,
            askers,
        });
        self.at(1, Event::Finish(Finish::Look));
    }

    /// Units an edge could be given: in the ledger, in pools of owners, in cells.
    fn usable(&self, number: usize) -> u64 {
        let account = self.account(number);
        let room = self.truth.naive.room(&account);
        room + self.pools(&account) + self.truth.held_by_edges(number).get()
    }

    /// Edges with units of an account in their cells: (edge, units).
    fn holders(&self, number: usize) -> Vec<(usize, u64)> {
        let mut holders = Vec::new();
        for edge in self.edges.iter().filter(|edge| edge.up) {
            let open = edge
                .known
                .values()
                .flatten()
                .filter(|open| open.observed == number);
            let units: u64 = open.map(|open| open.cell.free()).sum();
            if units > 0 {
                holders.push((edge.number, units));
            }
        }
        holders
    }

    fn account(&self, number: usize) -> AccountId {
        let (customer, limit) = self.truth.limit_of(number);
        catalog::account(customer, limit)
    }

    /// Units in the pools of all issuers.
    fn pools(&self, account: &AccountId) -> u64 {
        self.nodes
            .iter()
            .filter_map(|node| node.issuer.as_ref())
            .map(|issuer| issuer.pool(account))
            .sum()
    }

    /// I2 after every event that moves units.
    pub(super) fn check_held(&mut self) {
        for number in 0..self.truth.count() {
            let account = self.truth.account(number);
            let pools = self.pools(&account);
            self.truth.held(number, pools);
        }
    }

    pub(super) fn probe_ended(&mut self, edge: usize, outcome: Outcome) {
        let now = self.now;
        let Some(probe) = &mut self.probe else { return };
        let Some(asker) = probe.askers.iter_mut().find(|asker| asker.edge == edge) else {
            return;
        };
        asker.check = None;
        asker.last = Some(outcome);
        asker.again_at = now + ASK_AGAIN_MS;
        if outcome == Outcome::Admitted {
            probe.askers.retain(|asker| asker.edge != edge);
        }
    }

    /// Looks at the round under way: asks again, or judges it.
    fn look(&mut self) {
        let now = self.now;
        let Some(probe) = &self.probe else { return };
        let (number, round, cost) = (probe.number, probe.round, probe.cost);
        let waited = now - probe.since;
        let all_refused = probe
            .askers
            .iter()
            .all(|a| a.last == Some(Outcome::Refused) && a.check.is_none());
        let served = probe.askers.is_empty();
        let usable = self.usable(number);
        let in_vain = usable < cost;
        if served || (in_vain && all_refused && round != Round::Raised) {
            return self.end_round();
        }
        if waited > SERVE_MS {
            let edges: Vec<usize> = probe.askers.iter().map(|a| a.edge).collect();
            let lasts: Vec<_> = probe.askers.iter().map(|a| a.last).collect();
            let account = self.account(number);
            let (room, pools) = (self.truth.naive.room(&account), self.pools(&account));
            let holders = self.holders(number);
            let text = format!(
                "{edges:?} asked for {cost} for {waited} ms, {usable} units could be had \
                 (ledger {room}, pools {pools}, edges {holders:?}); last told {lasts:?}"
            );
            let check = if in_vain {
                "P3 a refusal is told"
            } else {
                "P3 served while units are left"
            };
            self.truth.fail(check, Some(&account), text);
            return;
        }
        let due: Vec<usize> = probe
            .askers
            .iter()
            .filter(|a| a.check.is_none() && now >= a.again_at)
            .map(|a| a.edge)
            .collect();
        let (customer, limit) = self.truth.limit_of(number);
        for edge in due {
            let check = self.checks + 1;
            if let Some(asker) = self
                .probe
                .as_mut()
                .and_then(|p| p.askers.iter_mut().find(|a| a.edge == edge))
            {
                asker.check = Some(check);
            }
            self.check(edge, customer, Some(limit), cost, Purpose::Probe);
        }
        self.at(50, Event::Finish(Finish::Look));
    }

    fn end_round(&mut self) {
        let Some(Probe {
            rest,
            number,
            round,
            ..
        }) = self.probe.take()
        else {
            return;
        };
        match round {
            Round::One => self.begin_round(rest, number, Round::All),
            Round::All => self.begin_round(rest, number, Round::More),
            Round::More => {
                let (customer, limit) = self.truth.limit_of(number);
                let limits = &mut self.scenario.customers[customer];
                let account = catalog::account(customer, limit);
                // What a lowered limit froze has to be made good first.
                let row = self.truth.naive.row(&account);
                let committed = row.settled - row.excess + row.out;
                limits[limit].quota = limits[limit].quota.max(committed) + RAISE;
                let limits = limits.clone();
                let change = self.next_change();
                self.raft.ask(catalog::change(change, customer, &limits));
                self.begin_round(rest, number, Round::Raised);
            }
            Round::Raised => self.next_account(rest),
        }
    }

    /// The last checks of a run.
    fn end(&mut self) {
        if self.scenario.is_calm() {
            self.at(QUIET_MS, Event::Finish(Finish::Exact));
        } else {
            self.end_exactly();
        }
    }

    fn end_exactly(&mut self) {
        if self.scenario.is_calm() {
            for (number, account) in self.numbered_accounts() {
                let pools = self.pools(&account);
                self.truth.check_nothing_stranded(number, pools);
            }
        }
        if self.scenario.seed.is_multiple_of(4) {
            self.replay_log();
        }
        self.done = true;
    }

    fn numbered_accounts(&self) -> Vec<(usize, AccountId)> {
        self.truth
            .accounts()
            .map(|(number, account)| (number, account.clone()))
            .collect()
    }

    /// A replica that reads the whole log from its beginning ends in the same state.
    fn replay_log(&mut self) {
        let mut replica = Ledger::new(Incarnation(1));
        let behind = self
            .nodes
            .iter()
            .filter(|node| node.up)
            .map(|node| node.ledger.index())
            .max();
        let behind = usize::try_from(behind.unwrap_or(0)).unwrap_or(0);
        for (at, committed) in self.raft.log.iter().take(behind).enumerate() {
            replica.apply(at as u64 + 1, &committed.entry);
        }
        if self
            .truth
            .final_digest()
            .is_some_and(|digest| digest != replica.digest())
        {
            self.truth.fail(
                "I13 replay",
                None,
                "a replay of the log gives another digest".to_owned(),
            );
        }
    }
}
