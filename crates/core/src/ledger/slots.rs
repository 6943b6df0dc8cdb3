//! Nodes, their boots, and who owns which slot.
//!
//! An epoch is the number of one ownership: it rises with every `Assign` and with every boot of the owner,
//! so an issuer that restarted can never act under the epoch of its former life.

use super::Ledger;
use crate::command::{Assign, AssignReply, OpenNode, OpenNodeReply};
use crate::ids::{Boot, Epoch, NodeId, Nonce, Slot};
use serde::{Deserialize, Serialize};

/// A node that ever started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NodeEntry {
    /// Its latest boot.
    pub boot: Boot,
    /// The start number of that boot.
    pub nonce: Nonce,
}

/// A slot's ownership.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SlotEntry {
    /// The number of this ownership; 0 before the first.
    pub epoch: Epoch,
    /// The issuer.
    pub owner: Option<(NodeId, Boot)>,
}

impl Ledger {
    pub(crate) fn slot_entry(&self, slot: Slot) -> SlotEntry {
        match self.slots.get(&slot) {
            Some(entry) => *entry,
            None => unreachable!("every slot has an entry from the first index on"),
        }
    }

    pub(crate) fn open_node(&mut self, open: &OpenNode) -> OpenNodeReply {
        if let Some(entry) = self.nodes.get(&open.node) {
            if open.nonce == entry.nonce {
                return OpenNodeReply::Boot(entry.boot);
            }
            if open.nonce < entry.nonce {
                return OpenNodeReply::StaleNonce { last: entry.nonce };
            }
        }
        let boot = self.next_boot();
        self.nodes.put(
            open.node,
            NodeEntry {
                boot,
                nonce: open.nonce,
            },
        );
        for slot in Slot::all() {
            let SlotEntry { epoch, owner } = self.slot_entry(slot);
            if owner.is_some_and(|(node, _)| node == open.node) {
                let kept = crate::planted::epoch_kept_across_a_restart();
                self.set_owner(
                    slot,
                    if kept { epoch } else { epoch.next() },
                    open.node,
                    boot,
                );
            }
        }
        OpenNodeReply::Boot(boot)
    }

    pub(crate) fn assign(&mut self, assign: &Assign) -> AssignReply {
        let latest = self.node_boot(assign.node);
        if latest != Some(assign.boot) && !crate::planted::slot_given_to_a_dead_boot() {
            return AssignReply::StaleBoot { latest };
        }
        let mut assigned = Vec::with_capacity(assign.slots.len());
        for &(slot, expected) in &assign.slots {
            let epoch = self.slot_entry(slot).epoch;
            if epoch == expected || crate::planted::assign_without_compare_and_set() {
                self.set_owner(slot, epoch.next(), assign.node, assign.boot);
                assigned.push((slot, epoch.next()));
            }
        }
        AssignReply::Assigned(assigned)
    }

    fn set_owner(&mut self, slot: Slot, epoch: Epoch, node: NodeId, boot: Boot) {
        debug_assert!(
            epoch > self.slot_entry(slot).epoch || crate::planted::epoch_kept_across_a_restart(),
            "epochs only rise"
        );
        self.slots.put(
            slot,
            SlotEntry {
                epoch,
                owner: Some((node, boot)),
            },
        );
        self.meta.routes_index = self.meta.index;
    }
}
