//! [`Bundles`]: lines that are due, gathered into one [`Lease`] per node, or several where one would grow
//! too large.
//!
//! Owns the bounds on a `Lease`. Refuses to know which lines are due: `mod.rs` does.

use crate::command::LINES_MAX;
use crate::ids::{Boot, Epoch, NodeId, Slot};
use crate::message::{Lease, LeaseLine, SlotLease};
use std::collections::BTreeMap;

/// Most lines in one [`Lease`]. An issuer answers a message as a whole, with a line for each of its lines:
/// more would only make the first answer later.
pub const LEASE_LINES_MAX: usize = 1024;

/// Most bytes of one [`Lease`], every number counted at its widest. A quarter of what a frame of its class
/// takes: the message and its answer both fit, whatever amounts are in them.
pub const LEASE_BYTES_MAX: usize = 128 * 1024;

/// A line beside its account's name: the name's length, six numbers and a flag. A line of the answer has
/// fewer.
const LINE_BYTES: usize = 64;
/// A slot's part beside its lines, at its widest: where the answer names another owner.
const SLOT_BYTES: usize = 48;

/// What is gathered for one node.
#[derive(Default)]
struct Bundle {
    slots: BTreeMap<Slot, SlotLease>,
    lines: usize,
    bytes: usize,
}

/// See the module's text.
pub(super) struct Bundles {
    boot: Boot,
    open: BTreeMap<NodeId, Bundle>,
    full: Vec<(NodeId, Lease)>,
}

impl Bundles {
    /// No lines yet, of an edge's boot.
    pub(super) fn new(boot: Boot) -> Self {
        Self {
            boot,
            open: BTreeMap::new(),
            full: Vec::new(),
        }
    }

    /// Adds a line for the node that owns its slot.
    pub(super) fn add(&mut self, to: NodeId, (slot, epoch): (Slot, Epoch), line: LeaseLine) {
        let bundle = self.open.entry(to).or_default();
        if !bundle.has_room(slot, &line) {
            let full = std::mem::take(bundle);
            self.full.push((to, full.close(self.boot)));
        }
        bundle.push((slot, epoch), line);
    }

    /// Every message, each node's in the order of its lines.
    pub(super) fn close(self) -> impl Iterator<Item = (NodeId, Lease)> {
        let boot = self.boot;
        let rest = self
            .open
            .into_iter()
            .map(move |(to, bundle)| (to, bundle.close(boot)));
        self.full.into_iter().chain(rest)
    }
}

impl Bundle {
    fn bytes_with(&self, slot: Slot, line: &LeaseLine) -> usize {
        let slot_bytes = if self.slots.contains_key(&slot) {
            0
        } else {
            SLOT_BYTES
        };
        self.bytes
            .saturating_add(slot_bytes)
            .saturating_add(LINE_BYTES)
            .saturating_add(line.account.as_str().len())
    }

    fn has_room(&self, slot: Slot, line: &LeaseLine) -> bool {
        let part_is_full = self
            .slots
            .get(&slot)
            .is_some_and(|part| part.lines.len() == LINES_MAX);
        // The head of the message is no longer than that of a slot's part.
        let bytes_max = LEASE_BYTES_MAX.saturating_sub(SLOT_BYTES);
        !part_is_full && self.lines < LEASE_LINES_MAX && self.bytes_with(slot, line) <= bytes_max
    }

    fn push(&mut self, (slot, epoch): (Slot, Epoch), line: LeaseLine) {
        self.bytes = self.bytes_with(slot, &line);
        self.lines = self.lines.saturating_add(1);
        let part = self.slots.entry(slot).or_insert_with(|| SlotLease {
            slot,
            epoch,
            lines: Vec::new(),
        });
        part.lines.push(line);
    }

    fn close(self, boot: Boot) -> Lease {
        Lease {
            boot,
            slots: self.slots.into_values().collect(),
        }
    }
}
