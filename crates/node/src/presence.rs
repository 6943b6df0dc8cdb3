//! Who is alive, as the leader sees it, and when it may judge so (design §5, takeover).
//!
//! Pure: [`crate::overseer`] says what was heard and what time it is. A node is silent when two rounds of
//! confirmations are missed. One that is heard again under the same boot was judged too soon, at the price of all its
//! slots: it is given twice as long from then on, up to [`SILENCE_MAX_MS`]. A stall of the leader itself is not the
//! others' silence. A new leader has heard nobody yet: it gives the others that long, except its predecessor, whose
//! silence is why it was elected; that one gets a few messages' time, for a leadership that was handed over.

use crate::confirm::CONFIRM_INTERVAL;
use std::collections::{BTreeMap, BTreeSet};
use tollgate_core::ids::{Boot, NodeId, Slot};
use tollgate_core::ledger::Ledger;
use tollgate_core::time::{Mono, Received};

/// Silence after which a node's slots move, in ms: two rounds of confirmations and the way of the second.
pub const SILENCE_MS: u64 = 600;
/// The same for a node that was judged too soon before, at most: a takeover is never later than two seconds.
pub const SILENCE_MAX_MS: u64 = 1500;
/// How long a node is given more time after it was judged too soon, in ms.
pub const FLAP_MEMORY_MS: u64 = 60_000;
/// Between two looks of a leader that runs, at most, in ms: what goes beyond is its own stall.
pub const STALL_MS: u64 = 100;
/// What a new leader gives its predecessor, and waits at most for everyone else's first word, in ms.
pub const FIRST_WORD_MS: u64 = 100;
/// How long slots that never had an owner wait for all voters, in ms: else the first node would get all.
pub const FIRST_OWNERS_WAIT_MS: u64 = 3000;

const _: () = assert!(SILENCE_MS as u128 > 2 * CONFIRM_INTERVAL.as_millis());

/// See the module's text. One per leadership.
#[derive(Clone, Debug)]
pub struct Presence {
    since: Mono,
    looked_at: Mono,
    predecessor: Option<NodeId>,
    heard: BTreeMap<NodeId, (Boot, Mono)>,
    /// The latest boot of each node by the ledger: one that changes while we lead is a sign of life.
    boots: BTreeMap<NodeId, Boot>,
    /// Who is silent, under which boot.
    silent: BTreeMap<NodeId, Boot>,
    /// How long nodes that were judged too soon are given, and when that was last.
    patience: BTreeMap<NodeId, (u64, Mono)>,
}

impl Presence {
    /// A leadership that begins now.
    #[must_use]
    pub fn new(
        now: Mono,
        predecessor: Option<NodeId>,
        ledger: &Ledger,
        voters: &BTreeSet<NodeId>,
    ) -> Self {
        let boots = voters
            .iter()
            .filter_map(|node| Some((*node, ledger.node_boot(*node)?)))
            .collect();
        Self {
            since: now,
            looked_at: now,
            predecessor,
            heard: BTreeMap::new(),
            boots,
            silent: BTreeMap::new(),
            patience: BTreeMap::new(),
        }
    }

    /// A node confirmed under a boot.
    pub fn handle_heard(&mut self, at: Received, node: NodeId, boot: Boot) {
        let (known, last) = self.heard.entry(node).or_insert((boot, at.0));
        if boot >= *known {
            (*known, *last) = (boot, at.0.max(*last));
        }
    }

    /// The nodes that count as alive, each with its boot; `None` while it is too early to say.
    #[must_use]
    pub fn live(
        &mut self,
        now: Mono,
        ledger: &Ledger,
        voters: &BTreeSet<NodeId>,
    ) -> Option<BTreeMap<NodeId, Boot>> {
        self.forgive_stall(now);
        self.follow_boots(now, ledger, voters);
        let leading_ms = now.since_ms(self.since);
        let all_heard = voters.iter().all(|node| self.heard.contains_key(node));
        if !all_heard && leading_ms < FIRST_WORD_MS {
            return None;
        }
        let without_owner = Slot::all().any(|slot| ledger.route(slot).owner.is_none());
        if without_owner && !all_heard && leading_ms < FIRST_OWNERS_WAIT_MS {
            return None;
        }
        self.follow_silence(now, voters);
        let alive = |node: &NodeId| match self.heard.get(node) {
            Some((boot, _)) => (!self.silent.contains_key(node)).then_some(*boot),
            None if self.predecessor == Some(*node) => None,
            None => (leading_ms < SILENCE_MS)
                .then(|| self.boots.get(node).copied())
                .flatten(),
        };
        Some(
            voters
                .iter()
                .filter_map(|node| Some((*node, alive(node)?)))
                .collect(),
        )
    }

    /// While this node did not run it heard nobody: that time counts for no one.
    fn forgive_stall(&mut self, now: Mono) {
        let stall = now.since_ms(self.looked_at).saturating_sub(STALL_MS);
        self.looked_at = now;
        if stall > 0 {
            self.since = self.since.plus_ms(stall);
            for (_, at) in self.heard.values_mut() {
                *at = at.plus_ms(stall).min(now);
            }
        }
    }

    fn follow_silence(&mut self, now: Mono, voters: &BTreeSet<NodeId>) {
        self.patience
            .retain(|_, (_, at)| now.since_ms(*at) < FLAP_MEMORY_MS);
        for node in voters {
            let Some((boot, at)) = self.heard.get(node).copied() else {
                continue;
            };
            let patience = self.patience.get(node).map_or(SILENCE_MS, |(ms, _)| *ms);
            if now.since_ms(at) >= patience {
                self.silent.insert(*node, boot);
            } else if self.silent.remove(node) == Some(boot) {
                let more = patience.saturating_mul(2).min(SILENCE_MAX_MS);
                self.patience.insert(*node, (more, now));
            }
        }
    }

    fn follow_boots(&mut self, now: Mono, ledger: &Ledger, voters: &BTreeSet<NodeId>) {
        for node in voters {
            let Some(boot) = ledger.node_boot(*node) else {
                continue;
            };
            if self.boots.insert(*node, boot) != Some(boot) {
                self.handle_heard(Received(now), *node, boot);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tollgate_core::command::{Command, Entry, OpenNode};
    use tollgate_core::ids::{Incarnation, Nonce};
    use tollgate_core::placement;
    use tollgate_core::time::LedgerTime;

    fn apply(ledger: &mut Ledger, commands: Vec<Command>) {
        let index = ledger.index() + 1;
        ledger.apply(
            index,
            &Entry {
                time: LedgerTime(index),
                commands,
            },
        );
    }

    fn open(ledger: &mut Ledger, node: u64, nonce: u64) -> Boot {
        let open = OpenNode {
            node: NodeId(node),
            nonce: Nonce(nonce),
        };
        apply(ledger, vec![Command::OpenNode(open)]);
        ledger.node_boot(NodeId(node)).unwrap()
    }

    fn nodes(live: &Option<BTreeMap<NodeId, Boot>>) -> Vec<u64> {
        live.as_ref().unwrap().keys().map(|node| node.0).collect()
    }

    fn three(owned: bool) -> (Ledger, BTreeSet<NodeId>, [Boot; 3]) {
        let mut ledger = Ledger::new(Incarnation(1));
        let boots = [1, 2, 3].map(|node| open(&mut ledger, node, 1));
        if owned {
            let live = [1, 2, 3].map(NodeId).into_iter().zip(boots).collect();
            let assigns = placement::plan(&ledger, &live);
            apply(
                &mut ledger,
                assigns.into_iter().map(Command::Assign).collect(),
            );
        }
        (ledger, [1, 2, 3].map(NodeId).into(), boots)
    }

    #[test]
    fn a_new_leader_judges_its_predecessor_soon_and_the_others_later() {
        let (ledger, voters, boots) = three(true);
        let mut presence = Presence::new(Mono(1000), Some(NodeId(1)), &ledger, &voters);
        presence.handle_heard(Received(Mono(1000)), NodeId(2), boots[1]);
        assert_eq!(presence.live(Mono(1050), &ledger, &voters), None);
        assert_eq!(nodes(&presence.live(Mono(1100), &ledger, &voters)), [2, 3]);
        presence.handle_heard(Received(Mono(1400)), NodeId(2), boots[1]);
        let before = look(&mut presence, 1100, 1000 + SILENCE_MS - 1, &ledger);
        assert_eq!(before, [2, 3]);
        let after = look(
            &mut presence,
            1000 + SILENCE_MS - 1,
            1000 + SILENCE_MS,
            &ledger,
        );
        assert_eq!(after, [2]);
    }

    /// Looks as a leader that runs does, and answers who lives at the end.
    fn look(presence: &mut Presence, from: u64, to: u64, ledger: &Ledger) -> Vec<u64> {
        let voters = [1, 2, 3].map(NodeId).into();
        let mut live = None;
        for at in (from..to).step_by(25).chain([to]) {
            live = presence.live(Mono(at), ledger, &voters);
        }
        nodes(&live)
    }

    /// Nodes 1 and 2 confirm all the time, node 3 at the moments given; answers when it began to count as silent.
    fn silences(heard: &[u64], until: u64) -> Vec<u64> {
        let (ledger, voters, boots) = three(true);
        let mut presence = Presence::new(Mono(0), None, &ledger, &voters);
        let mut silences = Vec::new();
        let mut lives = true;
        for at in (0..until).step_by(25) {
            presence.handle_heard(Received(Mono(at)), NodeId(1), boots[0]);
            presence.handle_heard(Received(Mono(at)), NodeId(2), boots[1]);
            if heard.contains(&at) {
                presence.handle_heard(Received(Mono(at)), NodeId(3), boots[2]);
            }
            let Some(live) = presence.live(Mono(at), &ledger, &voters) else {
                continue;
            };
            let now = live.contains_key(&NodeId(3));
            if lives && !now {
                silences.push(at);
            }
            lives = now;
        }
        silences
    }

    #[test]
    fn one_missed_round_is_no_silence_and_two_are() {
        assert_eq!(silences(&[0, 250, 800], 1000), Vec::<u64>::new());
        assert_eq!(silences(&[0, 250], 1000), [250 + SILENCE_MS]);
    }

    #[test]
    fn who_was_judged_too_soon_is_given_longer_and_in_the_end_as_long_as_before() {
        let rounds = |from: u64, to: u64| (from..to).step_by(250);
        let mut heard: Vec<u64> = rounds(0, 1000).collect();
        assert_eq!(silences(&heard, 10_000), [750 + SILENCE_MS]);
        // Back after 1000 ms of silence, then silent for as long again: not judged twice.
        heard.extend(rounds(1750, 3000));
        heard.extend(rounds(3750, 4000));
        assert_eq!(silences(&heard, 10_000)[1..], [3750 + 2 * SILENCE_MS]);
        heard.extend(rounds(5500, 6000));
        let third = silences(&heard, 10_000)[2];
        assert_eq!(third, 5750 + SILENCE_MAX_MS, "never longer than that");
        heard.extend(rounds(8000, 8000 + FLAP_MEMORY_MS + 1000));
        let last = *heard.last().unwrap();
        let silences = silences(&heard, last + 5000);
        assert_eq!(silences.last(), Some(&(last + SILENCE_MS)));
    }

    #[test]
    fn a_stall_of_the_leader_is_not_the_silence_of_the_others() {
        let (ledger, voters, boots) = three(true);
        let mut presence = Presence::new(Mono(0), None, &ledger, &voters);
        for (node, boot) in [1, 2, 3].map(NodeId).into_iter().zip(boots) {
            presence.handle_heard(Received(Mono(0)), node, boot);
        }
        assert_eq!(look(&mut presence, 0, 100, &ledger), [1, 2, 3]);
        // The process stood for three seconds and hears itself first.
        presence.handle_heard(Received(Mono(3100)), NodeId(1), boots[0]);
        assert_eq!(
            nodes(&presence.live(Mono(3100), &ledger, &voters)),
            [1, 2, 3]
        );
        // But who stays silent from then on is dead.
        assert_eq!(
            look(&mut presence, 3100, 3100 + SILENCE_MS, &ledger),
            Vec::<u64>::new()
        );
    }

    #[test]
    fn slots_without_an_owner_wait_for_everyone() {
        let (ledger, voters, boots) = three(false);
        let mut presence = Presence::new(Mono(0), None, &ledger, &voters);
        for (at, node) in [(10, 1), (20, 2)] {
            presence.handle_heard(
                Received(Mono(at)),
                NodeId(node),
                boots[usize::try_from(node).unwrap() - 1],
            );
        }
        assert_eq!(presence.live(Mono(400), &ledger, &voters), None);
        presence.handle_heard(Received(Mono(450)), NodeId(3), boots[2]);
        assert_eq!(
            nodes(&presence.live(Mono(460), &ledger, &voters)),
            [1, 2, 3]
        );
    }

    #[test]
    fn a_restart_is_a_sign_of_life_and_the_old_boot_none() {
        let (mut ledger, voters, boots) = three(true);
        let mut presence = Presence::new(Mono(0), None, &ledger, &voters);
        for (node, boot) in [1, 2, 3].map(NodeId).into_iter().zip(boots) {
            presence.handle_heard(Received(Mono(0)), node, boot);
        }
        let newer = open(&mut ledger, 3, 2);
        let live = presence.live(Mono(300), &ledger, &voters).unwrap();
        assert_eq!(live.get(&NodeId(3)), Some(&newer));
        presence.handle_heard(Received(Mono(310)), NodeId(3), boots[2]);
        let live = presence.live(Mono(320), &ledger, &voters).unwrap();
        assert_eq!(
            live.get(&NodeId(3)),
            Some(&newer),
            "a late word of the old boot changes nothing"
        );
    }
}
