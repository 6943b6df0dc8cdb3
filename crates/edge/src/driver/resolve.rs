//! [`Resolves`]: questions of who a credential is, one per credential however many checks wait.
//!
//! Owns pacing, the choice of the node, and repeats: a repeat keeps its nonce and its `lease_no`, so an
//! answer that comes twice opens nothing twice. Refuses to judge answers: `driver/mod.rs` does.

use super::nodes::Nodes;
use super::wait::Wake;
use crate::credential::{Hash, Presented};
use crate::sources::SourceSlot;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use tollgate_core::ids::{Boot, LeaseNo, NodeId, Slot, Units};
use tollgate_core::message::Resolve;
use tollgate_core::time::Mono;

/// Credentials asked about at a time for checks; further checks are told that there is no answer.
pub(super) const RESOLVES_MAX: usize = 4096;
/// Known principals asked about at a time after a change of the catalog.
pub(super) const REFRESHES_MAX: usize = 256;
/// A question without an answer is repeated, to another node, after this; doubles.
const REPEAT_MS: u64 = 150;
const REPEAT_MS_MAX: u64 = 2000;
/// Pause before another node is asked because one said that it cannot tell.
const ELSEWHERE_MS: u64 = 15;
/// Questions that no check waits for are given up after this.
const PATIENCE_MS: u64 = 5000;
/// Units asked for with a first resolve: more than the first check needs, so that the second one finds
/// some; little, as most credentials of a cold edge are seen once.
const FIRST_WANT: Units = 4;

/// A credential that is asked about.
pub(super) struct Pending {
    pub(super) hash: Hash,
    pub(super) presented: Presented,
    pub(super) lease_no: LeaseNo,
    /// Checks that wait, with their costs.
    pub(super) waiting: Vec<(Wake, Units)>,
    pub(super) source: Option<SourceSlot>,
    /// Asked because the catalog changed, not for a check: never given up.
    pub(super) refresh: bool,
    need: Units,
    sent_to: Option<NodeId>,
    tried: u32,
    born: Mono,
    due: Mono,
}

/// See the module's text.
#[derive(Default)]
pub(super) struct Resolves {
    last_nonce: u64,
    pending: BTreeMap<u64, Pending>,
    by_hash: BTreeMap<Hash, u64>,
    timers: BTreeSet<(Mono, u64)>,
    /// Principals still to be asked about after a change.
    to_refresh: VecDeque<Hash>,
    refreshing: usize,
    pub(super) sent: u64,
}

/// A check that lacks an answer.
pub(super) struct Asker {
    pub(super) hash: Hash,
    pub(super) presented: Presented,
    pub(super) cost: Units,
    pub(super) wake: Option<Wake>,
    pub(super) source: Option<SourceSlot>,
}

impl Resolves {
    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty() && self.to_refresh.is_empty()
    }

    /// Questions whose answers a change of the catalog waits for.
    pub(super) fn refreshes(&self) -> usize {
        self.refreshing + self.to_refresh.len()
    }

    /// A check asks; it joins the question that is open, or opens one under the number drawn by `draw`.
    /// Dropped, and so told that there is no answer, when too many are open. Answers the asker's source
    /// where no question was opened for it: it does not count.
    pub(super) fn ask(
        &mut self,
        now: Mono,
        asker: Asker,
        draw: impl FnOnce() -> LeaseNo,
    ) -> Option<SourceSlot> {
        let Asker {
            hash,
            presented,
            cost,
            wake,
            source,
        } = asker;
        let open = self.by_hash.get(&hash);
        if let Some(pending) = open.and_then(|nonce| self.pending.get_mut(nonce)) {
            pending.need = pending.need.max(cost);
            pending.waiting.extend(wake.map(|wake| (wake, cost)));
            return source;
        }
        if self.pending.len() >= RESOLVES_MAX + REFRESHES_MAX {
            return source;
        }
        let waiting = wake.map(|wake| (wake, cost)).into_iter().collect();
        self.open(now, (hash, presented, cost), draw(), waiting, source, false);
        None
    }

    fn open(
        &mut self,
        now: Mono,
        (hash, presented, need): (Hash, Presented, Units),
        lease_no: LeaseNo,
        waiting: Vec<(Wake, Units)>,
        source: Option<SourceSlot>,
        refresh: bool,
    ) {
        self.last_nonce += 1;
        let pending = Pending {
            hash,
            presented,
            lease_no,
            waiting,
            source,
            refresh,
            need,
            sent_to: None,
            tried: 0,
            born: now,
            due: now,
        };
        self.timers.insert((now, self.last_nonce));
        self.by_hash.insert(hash, self.last_nonce);
        self.pending.insert(self.last_nonce, pending);
    }

    /// Principals to ask about again.
    pub(super) fn refresh(&mut self, hashes: Vec<Hash>) {
        self.to_refresh.extend(hashes);
    }

    /// Opens questions for principals that are to be refreshed, as many as may be open.
    pub(super) fn open_refreshes(
        &mut self,
        now: Mono,
        presented: impl Fn(Hash) -> Option<Presented>,
        mut draw: impl FnMut() -> LeaseNo,
    ) {
        while self.refreshing < REFRESHES_MAX {
            let Some(hash) = self.to_refresh.pop_front() else {
                return;
            };
            let open = self
                .by_hash
                .get(&hash)
                .and_then(|nonce| self.pending.get_mut(nonce));
            if let Some(pending) = open {
                if !pending.refresh {
                    pending.refresh = true;
                    self.refreshing += 1;
                }
                continue;
            }
            // Forgotten meanwhile: whoever presents it is asked about anew.
            let Some(presented) = presented(hash) else {
                continue;
            };
            self.refreshing += 1;
            self.open(now, (hash, presented, 0), draw(), Vec::new(), None, true);
        }
    }

    /// Sends what is due: to the owner of the slot first, then to others in turn.
    pub(super) fn pump(
        &mut self,
        now: Mono,
        boot: Boot,
        nodes: &Nodes,
        owner: impl Fn(Slot) -> Option<NodeId>,
        mut send: impl FnMut(NodeId, Resolve),
    ) {
        let up: Vec<NodeId> = nodes.connected().collect();
        while let Some(&(due, nonce)) = self.timers.first() {
            if due > now {
                return;
            }
            self.timers.pop_first();
            let Some(pending) = self.pending.get_mut(&nonce) else {
                continue;
            };
            pending.waiting.retain(|(wake, _)| !wake.is_closed());
            let patience = now.since_ms(pending.born) < PATIENCE_MS;
            if pending.waiting.is_empty() && !pending.refresh && !patience {
                self.close(nonce);
                continue;
            }
            let first = owner(pending.presented.slot).filter(|node| up.contains(node));
            let to = match (pending.tried, first) {
                (0, Some(owner)) => Some(owner),
                _ => another(&up, pending.sent_to.or(first), pending.tried),
            };
            let pause = match to {
                Some(to) => {
                    self.sent += 1;
                    send(to, pending.question(nonce, boot));
                    pending.sent_to = Some(to);
                    pending.tried = pending.tried.saturating_add(1);
                    REPEAT_MS
                        .saturating_mul(1 << pending.tried.min(5))
                        .min(REPEAT_MS_MAX)
                        / 2
                }
                None => ELSEWHERE_MS,
            };
            self.set_timer(nonce, now.plus_ms(pause));
        }
    }

    fn set_timer(&mut self, nonce: u64, due: Mono) {
        if let Some(pending) = self.pending.get_mut(&nonce) {
            self.timers.remove(&(pending.due, nonce));
            pending.due = due;
            self.timers.insert((due, nonce));
        }
    }

    /// The node cannot tell: ask another one.
    pub(super) fn elsewhere(&mut self, now: Mono, nonce: u64) {
        self.set_timer(nonce, now.plus_ms(ELSEWHERE_MS));
    }

    /// A node is gone, or it cannot serve: what it was asked is asked elsewhere.
    pub(super) fn handle_down(&mut self, now: Mono, node: NodeId) {
        let asked = self
            .pending
            .iter()
            .filter(|(_, pending)| pending.sent_to == Some(node));
        for nonce in asked.map(|(nonce, _)| *nonce).collect::<Vec<_>>() {
            self.set_timer(nonce, now);
        }
    }

    /// The question is answered, or given up.
    pub(super) fn close(&mut self, nonce: u64) -> Option<Pending> {
        let pending = self.pending.remove(&nonce)?;
        self.timers.remove(&(pending.due, nonce));
        self.by_hash.remove(&pending.hash);
        if pending.refresh {
            self.refreshing -= 1;
        }
        Some(pending)
    }
}

impl Pending {
    fn question(&self, nonce: u64, boot: Boot) -> Resolve {
        let want = if self.refresh && self.waiting.is_empty() {
            0
        } else {
            FIRST_WANT
        };
        Resolve {
            boot,
            nonce,
            key: self.presented.key.clone(),
            secret_sha256: self.presented.secret_sha256,
            lease_no: self.lease_no,
            want: want.max(self.need),
            need: self.need,
        }
    }
}

/// A connected node other than the last one, if there is one.
fn another(up: &[NodeId], last: Option<NodeId>, tried: u32) -> Option<NodeId> {
    let others: Vec<NodeId> = up
        .iter()
        .copied()
        .filter(|node| Some(*node) != last)
        .collect();
    let turn = usize::try_from(tried).unwrap_or_default();
    match others.len() {
        0 => up.first().copied(),
        count => others.get(turn % count).copied(),
    }
}
