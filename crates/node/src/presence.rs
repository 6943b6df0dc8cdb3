//! Who is alive, as the leader sees it, and when it may judge so (design §5, takeover).
//!
//! Pure: [`crate::overseer`] says what was heard and what time it is. A node is silent after 500 ms without a
//! confirmation. A new leader has heard nobody yet: it gives the others that long, except its predecessor, whose
//! silence is why it was elected; that one gets a few messages' time, for a leadership that was handed over.

use std::collections::{BTreeMap, BTreeSet};
use tollgate_core::ids::{Boot, NodeId};
use tollgate_core::ledger::Ledger;
use tollgate_core::time::{Mono, Received};

/// Silence after which a node's slots move, in ms.
pub const SILENCE_MS: u64 = 500;
/// What a new leader gives its predecessor, and waits at most for everyone else's first word, in ms.
pub const FIRST_WORD_MS: u64 = 100;
/// How long slots that never had an owner wait for all voters, in ms: else the first node would get all.
pub const FIRST_OWNERS_WAIT_MS: u64 = 3000;

/// See the module's text. One per leadership.
#[derive(Clone, Debug)]
pub struct Presence {
    since: Mono,
    predecessor: Option<NodeId>,
    heard: BTreeMap<NodeId, (Boot, Mono)>,
    /// The latest boot of each node by the ledger: one that changes while we lead is a sign of life.
    boots: BTreeMap<NodeId, Boot>,
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
            predecessor,
            heard: BTreeMap::new(),
            boots,
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
        self.follow_boots(now, ledger, voters);
        let leading_ms = now.since_ms(self.since);
        let all_heard = voters.iter().all(|node| self.heard.contains_key(node));
        if !all_heard && leading_ms < FIRST_WORD_MS {
            return None;
        }
        let without_owner =
            tollgate_core::ids::Slot::all().any(|slot| ledger.route(slot).owner.is_none());
        if without_owner && !all_heard && leading_ms < FIRST_OWNERS_WAIT_MS {
            return None;
        }
        let alive = |node: &NodeId| match self.heard.get(node) {
            Some((boot, at)) => (now.since_ms(*at) < SILENCE_MS).then_some(*boot),
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
        assert_eq!(nodes(&presence.live(Mono(1500), &ledger, &voters)), [2]);
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
