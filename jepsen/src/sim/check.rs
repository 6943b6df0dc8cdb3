//! What a client's check does at an edge: take from every cell or from none, else wait for units.

use super::edge::Open;
use super::network::Actor;
use super::world::{Event, World};
use tollgate_core::lessee::Cell as _;

/// How long a client waits.
const DEADLINE_MS: u64 = 1500;

/// Who made a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The load.
    Load,
    /// The end of the run wants to know whether this edge is served.
    Probe,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Admitted,
    /// An issuer said that nothing is left.
    Refused,
    /// Nobody answered in time.
    Unavailable,
}

/// A check that waits for units.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    pub(super) number: u64,
    pub(super) customer: usize,
    /// Only this limit of the customer, or all of them.
    pub(super) only: Option<usize>,
    pub(super) cost: u64,
    deadline: u64,
    pub(super) purpose: Purpose,
}

impl World {
    /// A client asks an edge.
    pub(super) fn check(
        &mut self,
        edge: usize,
        customer: usize,
        only: Option<usize>,
        cost: u64,
        purpose: Purpose,
    ) -> u64 {
        self.checks += 1;
        let number = self.checks;
        let deadline = self.now + DEADLINE_MS;
        let waiting = Waiting {
            number,
            customer,
            only,
            cost,
            deadline,
            purpose,
        };
        if !self.edges[edge].serves() {
            self.check_ended(edge, &waiting, Outcome::Unavailable);
            return number;
        }
        match self.try_check(edge, &waiting) {
            Some(outcome) => self.check_ended(edge, &waiting, outcome),
            None => self.edges[edge].waiting.push(waiting),
        }
        self.move_on(edge);
        number
    }

    /// One try; `None` while there is hope.
    fn try_check(&mut self, edge: usize, waiting: &Waiting) -> Option<Outcome> {
        let now = self.now;
        let mono = self.edges[edge].mono(now);
        let Some(known) = self.edges[edge].known.get(&waiting.customer) else {
            self.resolve_customer(edge, waiting.customer, waiting.cost);
            return (now >= waiting.deadline).then_some(Outcome::Unavailable);
        };
        let concerns = |at: usize| waiting.only.is_none_or(|only| only == at);
        let limits: Vec<Open> = known
            .iter()
            .enumerate()
            .filter(|(at, _)| concerns(*at))
            .map(|(_, o)| o.clone())
            .collect();
        let lacking: Vec<&Open> = limits
            .iter()
            .filter(|open| open.cell.free() < waiting.cost)
            .collect();
        if lacking.is_empty() {
            for open in &limits {
                open.cell.spend(waiting.cost);
                self.truth.admit(edge, open.observed, waiting.cost, now);
            }
            *self.edges[edge].usage.entry(waiting.customer).or_default() += waiting.cost;
            return Some(Outcome::Admitted);
        }
        let refused = |open: &&Open| {
            open.cell
                .refusal()
                .is_some_and(|refusal| refusal.refuses(mono, waiting.cost - open.cell.free()))
        };
        let refusing = lacking.iter().find(|open| refused(open));
        if let Some(open) = refusing {
            if self.busy && self.scenario.is_healthy() {
                self.truth
                    .refused_in_health(edge, open.observed, waiting.cost);
            }
            return Some(Outcome::Refused);
        }
        if let Some(lessee) = &mut self.edges[edge].lessee {
            for open in &lacking {
                lessee.handle_want(mono, &open.account, waiting.cost);
            }
        }
        (now >= waiting.deadline).then_some(Outcome::Unavailable)
    }

    /// Tries every waiting check of an edge again, first come, first served.
    pub(super) fn retry_waiting(&mut self, edge: usize) {
        let waiting = std::mem::take(&mut self.edges[edge].waiting);
        for check in waiting {
            match self.try_check(edge, &check) {
                Some(outcome) => self.check_ended(edge, &check, outcome),
                None => self.edges[edge].waiting.push(check),
            }
        }
    }

    fn check_ended(&mut self, edge: usize, check: &Waiting, outcome: Outcome) {
        self.story.hash.add(check.number * 4 + outcome as u64);
        self.story.tell(self.now, || {
            let customer = super::catalog::customer(check.customer);
            format!(
                "{} check {} of {} units of {customer}: {outcome:?}",
                Actor::Edge(edge),
                check.number,
                check.cost
            )
        });
        if check.purpose == Purpose::Probe {
            self.probe_ended(edge, outcome);
        }
    }

    /// The process that a check waited in is gone.
    pub(super) fn check_lost(&mut self, edge: usize, check: &Waiting) {
        self.check_ended(edge, check, Outcome::Unavailable);
    }

    /// The load: one check, and the next one's time.
    pub(super) fn next_check(&mut self) {
        if !self.busy {
            return;
        }
        let (low, high) = self.scenario.check_gap_ms;
        let gap = self.random.work.between(low, high);
        self.at(gap, Event::Check);
        if self.now < self.silent_until {
            return;
        }
        let work = &mut self.random.work;
        let hot = work.chance(850);
        let edges = if hot {
            self.scenario.hot_edges
        } else {
            self.edges.len()
        };
        let edge = work.index(edges);
        let customer = work.index(self.scenario.customers.len());
        let limits = &self.scenario.customers[customer];
        let least = limits.iter().map(|limit| limit.quota).min().unwrap_or(1);
        let only = work.chance(600).then(|| work.index(limits.len()));
        let quota = only.map_or(least, |only| limits[only].quota);
        let most = (quota / 1000 * self.scenario.cost_per_mille)
            .max(quota.min(1000) * self.scenario.cost_per_mille / 1000)
            .max(1);
        let debt = self.scenario.debt && work.chance(100);
        let cost = if work.chance(500) {
            1
        } else {
            work.between(1, most)
        };
        // On a healthy network half of them come to every edge at once, so that grants and recalls cross.
        let everywhere = self.scenario.is_healthy() && work.chance(500);
        if debt {
            self.record_without_lease(edge, customer);
        } else if everywhere {
            for edge in 0..self.edges.len() {
                self.check(edge, customer, only, cost, Purpose::Load);
            }
        } else {
            self.check(edge, customer, only, cost, Purpose::Load);
        }
    }

    /// Use that no lease covers, as `record` allows it: billed, and nobody else's units.
    fn record_without_lease(&mut self, number: usize, customer: usize) {
        let now = self.now;
        let units = self.random.work.between(1, 5);
        if !self.edges[number].serves() {
            return;
        }
        let edge = &mut self.edges[number];
        let mono = edge.mono(now);
        let (Some(open), Some(reporter)) = (
            edge.known.get(&customer).and_then(|known| known.first()),
            &mut edge.reporter,
        ) else {
            return;
        };
        reporter.add_spent(mono, &open.account, 0, units);
        self.truth.admit_unleased(number, open.observed, units, now);
    }
}
