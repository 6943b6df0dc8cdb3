//! The clock that stamps log entries: a leader's own wall clock, guarded by those of the other voters (design §4).
//!
//! Pure: [`crate::overseer`] reads the clocks. Ledger time never falls back, so a leader whose clock is a year ahead
//! would move it for good, and end every session with the next tick. Hence: the lower median of what was heard lately
//! stands when a majority of voters agrees on it; until then time goes on at the pace of the monotonic clock from
//! where it was, [`STEP_MAX_MS`] further at most. Whoever deviates from the majority is named, to be seen before it
//! leads.

use std::collections::{BTreeMap, BTreeSet};
use tollgate_core::ids::NodeId;
use tollgate_core::time::{LedgerTime, Mono};

/// A reading older than this says nothing, in ms.
pub const FRESH_MS: u64 = 5000;
/// Clocks this near to each other agree, in ms: far more than synchronised ones differ by.
pub const AGREE_MS: u64 = 5000;
/// How far ledger time may run ahead of the monotonic clock's pace while no majority agrees, in ms.
pub const STEP_MAX_MS: u64 = 1000;

/// See the module's text.
#[derive(Clone, Debug)]
pub struct GuardedClock {
    own: NodeId,
    /// Ledger time that nobody doubts, and when that was.
    anchor: (LedgerTime, Mono),
    /// How far each other node's wall clock is ahead of ours, in ms, and when it was read.
    ahead: BTreeMap<NodeId, (i64, Mono)>,
}

/// What the clocks say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The time to stamp.
    pub time: LedgerTime,
    /// Whether a majority of the voters agrees on it.
    pub agreed: bool,
    /// Voters whose clock is further than [`AGREE_MS`] from the majority's, each with how far it is ahead of it, in ms.
    pub deviating: BTreeMap<NodeId, i64>,
    /// How far the time that was agreed on lies from where time went on to by itself, in ms.
    pub step_ms: i64,
}

impl GuardedClock {
    /// The clock of a node whose ledger stands at `time`.
    #[must_use]
    pub fn new(own: NodeId, time: LedgerTime, now: Mono) -> Self {
        Self {
            own,
            anchor: (time, now),
            ahead: BTreeMap::new(),
        }
    }

    /// Another node told its wall clock; `own_wall` is ours of the same moment.
    pub fn handle_wall(
        &mut self,
        now: Mono,
        from: NodeId,
        theirs: LedgerTime,
        own_wall: LedgerTime,
    ) {
        if from != self.own {
            let ahead = i128::from(theirs.0) - i128::from(own_wall.0);
            let ahead = i64::try_from(ahead).unwrap_or(if ahead < 0 { i64::MIN } else { i64::MAX });
            self.ahead.insert(from, (ahead, now));
        }
    }

    /// Where ledger time stands by the entries of another leader. Not to be told what this clock stamped itself.
    pub fn follow(&mut self, now: Mono, time: LedgerTime) {
        self.anchor = (time, now);
    }

    /// Reads the clock; `own_wall` is this node's.
    #[must_use]
    pub fn read(&mut self, now: Mono, own_wall: LedgerTime, voters: &BTreeSet<NodeId>) -> Reading {
        let fresh = self
            .ahead
            .iter()
            .filter(|(node, (_, at))| voters.contains(node) && now.since_ms(*at) <= FRESH_MS);
        let mut readings: BTreeMap<NodeId, i64> =
            fresh.map(|(node, (ahead, _))| (*node, *ahead)).collect();
        readings.insert(self.own, 0);
        let median = lower_median(readings.values().copied().collect());
        let is_near = |ahead: i64| ahead.abs_diff(median) <= AGREE_MS;
        let near = readings.values().filter(|ahead| is_near(**ahead)).count();
        let agreed = !voters.is_empty() && near > voters.len() / 2;
        let time = LedgerTime(own_wall.0.saturating_add_signed(median));
        let paced = self.anchor.0.0.saturating_add(now.since_ms(self.anchor.1));
        if !agreed {
            let most = LedgerTime(paced.saturating_add(STEP_MAX_MS));
            return Reading {
                time: time.min(most),
                agreed,
                deviating: BTreeMap::new(),
                step_ms: 0,
            };
        }
        self.anchor = (time, now);
        readings.retain(|_, ahead| !is_near(*ahead));
        let step = i128::from(time.0) - i128::from(paced);
        Reading {
            time,
            agreed,
            deviating: readings
                .into_iter()
                .map(|(node, ahead)| (node, ahead.saturating_sub(median)))
                .collect(),
            step_ms: i64::try_from(step).unwrap_or(i64::MAX),
        }
    }
}

fn lower_median(mut readings: Vec<i64>) -> i64 {
    readings.sort_unstable();
    let middle = readings.len().saturating_sub(1) / 2;
    readings.get(middle).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const YEAR_MS: u64 = 365 * 24 * 3_600_000;
    const NOW: u64 = 50 * YEAR_MS;

    fn voters() -> BTreeSet<NodeId> {
        [1, 2, 3].map(NodeId).into()
    }

    /// Node 1's clock, whose own wall clock shows `wall`; the ledger stands at [`NOW`].
    fn clock() -> GuardedClock {
        GuardedClock::new(NodeId(1), LedgerTime(NOW), Mono(0))
    }

    fn hear(clock: &mut GuardedClock, at: u64, node: u64, theirs: u64, own: u64) {
        clock.handle_wall(Mono(at), NodeId(node), LedgerTime(theirs), LedgerTime(own));
    }

    #[test]
    fn the_median_follows_neither_end_and_of_two_the_lower() {
        assert_eq!(lower_median(vec![0]), 0);
        assert_eq!(lower_median(vec![0, 9_000_000]), 0);
        assert_eq!(lower_median(vec![0, -5]), -5);
        assert_eq!(lower_median(vec![0, 9_000_000, 20]), 20);
        assert_eq!(lower_median(vec![0, -9_000_000, 20]), 0);
    }

    #[test]
    fn a_new_leader_a_year_ahead_moves_ledger_time_by_no_more_than_a_step() {
        let mut clock = clock();
        for at in [0, 10, 500, 10_000] {
            let read = clock.read(Mono(at), LedgerTime(NOW + YEAR_MS + at), &voters());
            assert!(!read.agreed);
            assert_eq!(
                read.time,
                LedgerTime(NOW + at + STEP_MAX_MS),
                "however often it is asked"
            );
        }
        // One of the others is enough to know better; who is right stays open.
        let own = NOW + YEAR_MS + 10_100;
        hear(&mut clock, 10_100, 2, NOW + 10_100, own);
        let read = clock.read(Mono(10_100), LedgerTime(own), &voters());
        assert_eq!((read.time, read.agreed), (LedgerTime(NOW + 10_100), false));
        // Both: a majority agrees, and this node learns that it deviates.
        hear(&mut clock, 10_200, 3, NOW + 10_230, own + 100);
        let read = clock.read(Mono(10_200), LedgerTime(own + 100), &voters());
        assert_eq!((read.time, read.agreed), (LedgerTime(NOW + 10_230), true));
        assert_eq!(
            read.deviating.into_iter().collect::<Vec<_>>(),
            [(NodeId(1), i64::try_from(YEAR_MS - 30).unwrap())]
        );
    }

    #[test]
    fn a_majority_that_agrees_is_enough_after_a_long_stop_of_all() {
        let mut clock = clock();
        let later = NOW + YEAR_MS;
        assert_eq!(
            clock.read(Mono(5), LedgerTime(later), &voters()).time,
            LedgerTime(NOW + 5 + STEP_MAX_MS)
        );
        hear(&mut clock, 6, 2, later + 40, later + 6);
        let read = clock.read(Mono(6), LedgerTime(later + 6), &voters());
        assert_eq!((read.time, read.agreed), (LedgerTime(later + 6), true));
        assert!(read.step_ms > i64::try_from(AGREE_MS).unwrap());
        assert!(read.deviating.is_empty());
        // From here on its own pace counts, while the others are silent.
        let read = clock.read(
            Mono(6 + FRESH_MS + 1),
            LedgerTime(later + YEAR_MS),
            &voters(),
        );
        assert_eq!(
            read.time,
            LedgerTime(later + 6 + FRESH_MS + 1 + STEP_MAX_MS)
        );
    }

    #[test]
    fn a_follower_that_deviates_is_named_and_a_node_that_is_no_voter_counts_for_nothing() {
        let mut clock = clock();
        hear(&mut clock, 0, 2, NOW, NOW);
        hear(&mut clock, 0, 3, NOW - 9_000, NOW);
        hear(&mut clock, 0, 4, NOW + YEAR_MS, NOW);
        let read = clock.read(Mono(0), LedgerTime(NOW), &voters());
        assert_eq!((read.time, read.agreed), (LedgerTime(NOW), true));
        assert_eq!(
            read.deviating.into_iter().collect::<Vec<_>>(),
            [(NodeId(3), -9_000)]
        );
    }

    #[test]
    fn alone_a_node_is_its_own_majority_and_without_known_voters_nobody_is() {
        let mut clock = clock();
        let wall = LedgerTime(NOW + YEAR_MS);
        assert!(!clock.read(Mono(0), wall, &BTreeSet::new()).agreed);
        let read = clock.read(Mono(0), wall, &[NodeId(1)].into());
        assert_eq!((read.time, read.agreed), (wall, true));
    }
}
