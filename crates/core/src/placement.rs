//! Who issues which slot: what the leader proposes when a node is silent or slots have no owner (design §5).
//!
//! Pure: the leader's driver says who is alive, the ledger's state says who owns what. The proposals carry
//! the epochs they expect, so a leader that stalled and wakes changes nothing (compare-and-set in
//! [`crate::ledger::slots`]). Only slots without a live owner move: a living issuer's pool would be stranded.

use crate::command::Assign;
use crate::ids::{Boot, NodeId, SLOTS};
use crate::ids::{Epoch, Slot};
use crate::ledger::Ledger;
use std::collections::BTreeMap;

/// The assignments that give every slot a live owner, spread evenly; empty when all have one.
///
/// `live` are the nodes heard of recently, each with the boot it was heard under. A node that is heard
/// under another boot than its latest counts as silent.
#[must_use]
pub fn plan(ledger: &Ledger, live: &BTreeMap<NodeId, Boot>) -> Vec<Assign> {
    let live: BTreeMap<NodeId, Boot> = live
        .iter()
        .filter(|(node, boot)| ledger.node_boot(**node) == Some(**boot))
        .map(|(node, boot)| (*node, *boot))
        .collect();
    if live.is_empty() {
        return Vec::new();
    }
    let mut load: BTreeMap<NodeId, usize> = live.keys().map(|node| (*node, 0)).collect();
    let mut orphans: Vec<(Slot, Epoch)> = Vec::new();
    for slot in Slot::all() {
        let route = ledger.route(slot);
        match route.owner {
            Some((node, boot)) if live.get(&node) == Some(&boot) => {
                if let Some(count) = load.get_mut(&node) {
                    *count = count.saturating_add(1);
                }
            }
            _ => orphans.push((slot, route.epoch)),
        }
    }
    let mut given: BTreeMap<NodeId, Vec<(Slot, Epoch)>> = BTreeMap::new();
    for orphan in orphans {
        let Some((node, count)) = load
            .iter_mut()
            .min_by_key(|(node, count)| (**count, **node))
        else {
            break;
        };
        *count = count.saturating_add(1);
        given.entry(*node).or_default().push(orphan);
    }
    debug_assert!(given.values().map(Vec::len).sum::<usize>() <= usize::from(SLOTS));
    given
        .into_iter()
        .filter_map(|(node, slots)| {
            live.get(&node).map(|boot| Assign {
                slots,
                node,
                boot: *boot,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Command, Entry, OpenNode};
    use crate::ids::{Incarnation, Nonce};
    use crate::time::LedgerTime;

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

    fn owned(ledger: &Ledger, node: u64) -> usize {
        let owner = |slot| ledger.route(slot).owner.map(|(node, _)| node);
        Slot::all()
            .filter(|slot| owner(*slot) == Some(NodeId(node)))
            .count()
    }

    #[test]
    fn slots_spread_evenly_and_only_orphans_move() {
        let mut ledger = Ledger::new(Incarnation(1));
        let mut live: BTreeMap<NodeId, Boot> = (1..=3)
            .map(|node| (NodeId(node), open(&mut ledger, node, 1)))
            .collect();
        let assigns = plan(&ledger, &live);
        apply(
            &mut ledger,
            assigns.into_iter().map(Command::Assign).collect(),
        );
        assert_eq!([1, 2, 3].map(|node| owned(&ledger, node)), [342, 341, 341]);
        assert!(plan(&ledger, &live).is_empty());
        live.remove(&NodeId(2));
        let assigns = plan(&ledger, &live);
        apply(
            &mut ledger,
            assigns.into_iter().map(Command::Assign).collect(),
        );
        assert_eq!([1, 2, 3].map(|node| owned(&ledger, node)), [512, 0, 512]);
    }

    #[test]
    fn a_node_heard_under_an_old_boot_gets_nothing() {
        let mut ledger = Ledger::new(Incarnation(1));
        let old = open(&mut ledger, 1, 1);
        open(&mut ledger, 1, 2);
        assert!(plan(&ledger, &BTreeMap::from([(NodeId(1), old)])).is_empty());
    }
}
