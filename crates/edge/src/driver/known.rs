//! [`Known`]: the driver's record of each principal in the view: whose it is, what it counted, when it was
//! used.
//!
//! Owns what is reported of meters, and the bound on principals. A principal that leaves the view is
//! *retired*: its meters are read until every check that may still count on them has ended, so that no use
//! is lost. Refuses to touch accounts: their cells belong to the lessee's rows.

use crate::counts::{Counts, Quiet};
use crate::credential::{Hash, Presented};
use crate::principal::MeterCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tollgate_core::account::Name;
use tollgate_core::command::UsageLine;
use tollgate_core::ids::Units;
use tollgate_core::message::Principal as Who;
use tollgate_core::time::Mono;

/// A principal unused for so long is forgotten first when room is needed.
const IDLE_MS: u64 = 60_000;
/// Principals looked at to find an idle one; then the one whose turn it is goes.
const LOOKS_MAX: usize = 64;

struct Metered {
    cell: MeterCell,
    /// Units handed to the reporter.
    reported: Units,
}

struct Record {
    who: Arc<Who>,
    presented: Presented,
    meters: Vec<Metered>,
    used_at: Mono,
    turn: u64,
}

struct Retired {
    who: Arc<Who>,
    meters: Vec<Metered>,
    quiet: Quiet,
}

/// See the module's text.
#[derive(Default)]
pub(super) struct Known {
    records: BTreeMap<Hash, Record>,
    by_customer: BTreeMap<Name, BTreeSet<Hash>>,
    /// The order in which principals are looked at for room, by the number of their turn.
    turns: BTreeMap<u64, Hash>,
    last_turn: u64,
    retired: Vec<Retired>,
}

impl Known {
    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    /// The meters a principal counts on, to go on with.
    pub(super) fn meters(&self, hash: Hash) -> Vec<MeterCell> {
        let record = self.records.get(&hash);
        record.map_or(Vec::new(), |r| {
            r.meters.iter().map(|m| m.cell.clone()).collect()
        })
    }

    pub(super) fn presented(&self, hash: Hash) -> Option<&Presented> {
        self.records.get(&hash).map(|record| &record.presented)
    }

    /// Takes in a principal that is in the view now, or its new rights.
    pub(super) fn put(
        &mut self,
        now: Mono,
        hash: Hash,
        who: Arc<Who>,
        presented: Presented,
        meters: Vec<MeterCell>,
    ) {
        let before = self.take_out(hash);
        let turn = match &before {
            Some(before) => before.turn,
            None => self.next_turn(hash),
        };
        let mut former = before.map_or(Vec::new(), |before| before.meters);
        let go_on = |cell: MeterCell| {
            let same = former
                .iter()
                .position(|metered| metered.cell.meter == cell.meter);
            let reported = same.map_or(0, |place| former.swap_remove(place).reported);
            Metered { cell, reported }
        };
        let meters = meters.into_iter().map(go_on).collect();
        self.retire(who.clone(), former);
        self.by_customer
            .entry(who.customer.clone())
            .or_default()
            .insert(hash);
        self.records.insert(
            hash,
            Record {
                who,
                presented,
                meters,
                used_at: now,
                turn,
            },
        );
    }

    /// A principal left the view.
    pub(super) fn remove(&mut self, hash: Hash) {
        if let Some(record) = self.take_out(hash) {
            self.turns.remove(&record.turn);
            self.retire(record.who, record.meters);
        }
    }

    fn take_out(&mut self, hash: Hash) -> Option<Record> {
        let record = self.records.remove(&hash)?;
        if let Some(hashes) = self.by_customer.get_mut(&record.who.customer) {
            hashes.remove(&hash);
            if hashes.is_empty() {
                self.by_customer.remove(&record.who.customer);
            }
        }
        Some(record)
    }

    fn retire(&mut self, who: Arc<Who>, meters: Vec<Metered>) {
        if !meters.is_empty() {
            self.retired.push(Retired {
                who,
                meters,
                quiet: Quiet::default(),
            });
        }
    }

    /// The principal to forget for room.
    pub(super) fn give_way(&mut self, now: Mono) -> Option<Hash> {
        for look in 0..LOOKS_MAX {
            let (_, hash) = self.turns.pop_first()?;
            let used_at = self.records.get(&hash).map(|record| record.used_at);
            let busy = used_at.is_some_and(|at| now.since_ms(at) < IDLE_MS);
            if !busy || look + 1 == LOOKS_MAX {
                return Some(hash);
            }
            let turn = self.next_turn(hash);
            if let Some(record) = self.records.get_mut(&hash) {
                record.turn = turn;
            }
        }
        None
    }

    /// The end of the queue.
    fn next_turn(&mut self, hash: Hash) -> u64 {
        self.last_turn += 1;
        self.turns.insert(self.last_turn, hash);
        self.last_turn
    }

    /// The principals of some customers, or all.
    pub(super) fn of_customers(&self, customers: Option<&[Name]>) -> Vec<Hash> {
        match customers {
            None => self.records.keys().copied().collect(),
            Some(customers) => customers
                .iter()
                .filter_map(|customer| self.by_customer.get(customer))
                .flatten()
                .copied()
                .collect(),
        }
    }

    /// What was admitted on meters since the last call.
    pub(super) fn collect(&mut self, now: Mono, counts: &Counts, mut add: impl FnMut(&UsageLine)) {
        for record in self.records.values_mut() {
            if grown(&record.who, &mut record.meters, &mut add) {
                record.used_at = now;
            }
        }
        if self.retired.is_empty() {
            return;
        }
        // Quiet first: what is read afterwards is the last word.
        let look = counts.look();
        self.retired.retain_mut(|retired| {
            let over = retired.quiet.is_reached(&look);
            grown(&retired.who, &mut retired.meters, &mut add);
            !over
        });
    }
}

fn grown(who: &Who, meters: &mut [Metered], add: &mut impl FnMut(&UsageLine)) -> bool {
    let mut any = false;
    for metered in meters {
        let admitted = metered.cell.usage.admitted();
        let units = admitted.saturating_sub(metered.reported);
        if units > 0 {
            any = true;
            metered.reported = admitted;
            add(&UsageLine {
                environment: who.environment,
                license: who.license.clone(),
                key: who.key.clone(),
                meter: metered.cell.meter.clone(),
                units,
            });
        }
    }
    any
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credential::HashKeys;
    use crate::decision::Reason;
    use crate::principal::Parts;
    use crate::principal::tests::who;
    use tollgate_core::ids::Slot;

    fn hash(number: usize) -> Hash {
        HashKeys::new((1, 2)).hash(&number.to_string())
    }

    fn put(known: &mut Known, hash: Hash, meter: &str) -> Vec<MeterCell> {
        let who = who("k1", &[("live/acme/-/key=k1/calls/open", meter)]);
        let meters = Parts::gather(&who, |_| None, &known.meters(hash)).meters;
        let key = who.key.clone();
        let presented = Presented {
            key,
            secret_sha256: [0; 32],
            slot: Slot::of("acme"),
        };
        known.put(Mono(0), hash, who, presented, meters.clone());
        meters
    }

    fn collected(known: &mut Known, counts: &Counts) -> Vec<(String, Units)> {
        let mut lines = Vec::new();
        known.collect(Mono(0), counts, |line| {
            lines.push((line.meter.to_string(), line.units));
        });
        lines
    }

    #[test]
    fn use_is_collected_once_also_from_what_left_the_view() {
        let (mut known, counts) = (Known::default(), Counts::new());
        let meters = put(&mut known, hash(1), "requests");
        meters[0].usage.add(3);
        assert_eq!(collected(&mut known, &counts), [("requests".to_owned(), 3)]);
        assert_eq!(collected(&mut known, &counts), []);
        let running = counts.enter();
        meters[0].usage.add(2);
        known.remove(hash(1));
        assert_eq!(collected(&mut known, &counts), [("requests".to_owned(), 2)]);
        meters[0].usage.add(4);
        running.leave(Reason::Ok);
        assert_eq!(collected(&mut known, &counts), [("requests".to_owned(), 4)]);
        assert!(known.retired.is_empty(), "nobody can count on it any more");
    }

    #[test]
    fn a_meter_goes_on_across_a_change_and_one_that_ends_is_read_to_its_end() {
        let (mut known, counts) = (Known::default(), Counts::new());
        let before = put(&mut known, hash(1), "requests");
        before[0].usage.add(1);
        assert_eq!(collected(&mut known, &counts).len(), 1);
        assert_eq!(put(&mut known, hash(1), "requests")[0].usage.admitted(), 1);
        assert_eq!(collected(&mut known, &counts), []);
        put(&mut known, hash(1), "bytes");
        before[0].usage.add(5);
        assert_eq!(collected(&mut known, &counts), [("requests".to_owned(), 5)]);
    }

    #[test]
    fn the_one_whose_turn_it_is_gives_way_and_mass_removal_looks_at_no_other() {
        let mut known = Known::default();
        for number in 1..=100_000 {
            put(&mut known, hash(number), "requests");
        }
        // Not measured, but felt: a look at every other for each removal takes minutes here.
        for number in (1..=100_000).rev().filter(|number| number % 4 != 0) {
            known.remove(hash(number));
        }
        assert_eq!((known.len(), known.turns.len()), (25_000, 25_000));
        // All were used just now: the last one that was looked at goes.
        let busy = Mono(IDLE_MS - 1);
        assert_eq!(known.give_way(busy), Some(hash(4 * LOOKS_MAX)));
        known.remove(hash(4 * LOOKS_MAX));
        assert_eq!(
            known.give_way(Mono(IDLE_MS)),
            Some(hash(4 * (LOOKS_MAX + 1)))
        );
        known.remove(hash(4 * (LOOKS_MAX + 1)));
        put(&mut known, hash(4), "bytes");
        assert_eq!((known.len(), known.turns.len()), (24_998, 24_998));
    }
}
