//! The lessee: an edge's side of leases (design §6). Decides what to ask of which issuer, takes answers
//! into cells, hands units in.
//!
//! Sans-IO. In: `handle_*(now, …)` and [`Lessee::observe`]. Out: [`Lessee::poll`]. The cells themselves
//! belong to the driver (atomics in an edge, plain numbers in the simulator); grants go to the cell, never
//! to whoever waits. What keeps it safe:
//!
//! * an answer counts only under the (epoch, `lease_no`) the row is bound to, and only by its growth;
//! * units leave the cell before the message that surrenders them, and never go back;
//! * a new epoch, and `stale`, draw a new number: everything counts from zero, what is in the cell is
//!   `carried`.

mod bundle;
mod row;
mod rows;
mod unsent;

pub use bundle::{LEASE_BYTES_MAX, LEASE_LINES_MAX};

use crate::account::AccountId;
use crate::ids::{Boot, Epoch, LeaseNo, NodeId, Revision, Slot, Units};
use crate::message::{
    AnswerLine, Held, Lease, LeaseAnswer, LeaseState, Recall, Route, SlotAnswer, SlotLease,
    SlotOutcome,
};
use crate::time::Mono;
use bundle::Bundles;
use row::Row;
use rows::Rows;
use std::collections::{BTreeMap, VecDeque};
use unsent::Unsent;

/// What the lessee needs of a cell. The driver's own checks use it at the same time.
pub trait Cell {
    /// Adds granted units.
    fn deposit(&self, units: Units);
    /// Takes out units nobody is using: at most `at_most`, answers how many.
    fn withdraw(&self, at_most: Units) -> Units;
    /// Units there to spend.
    fn free(&self) -> Units;
    /// Units spent since the cell was made; never falls.
    fn used(&self) -> Units;
    /// What a check that finds too little is refused by without asking; `None`: it asks.
    fn set_refusal(&self, refusal: Option<Refusal>);
}

/// A remembered refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What the issuer said: `NoneNow`, `NoneForGood` or `NoLimit`.
    pub state: LeaseState,
    /// Until when; `None`: until the catalog changes.
    pub until: Option<Mono>,
    /// What could not be had beyond what the cell held, and what it handed in since; at least 1. A check that
    /// lacks less asks. 1 where nothing is left at all.
    pub need: Units,
}

impl Refusal {
    /// Whether it refuses, at `now`, a check that lacks so many units beyond what the cell holds.
    #[must_use]
    pub fn refuses(&self, now: Mono, lacking: Units) -> bool {
        lacking >= self.need && self.until.is_none_or(|until| now < until)
    }
}

/// What a lessee wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// To a node.
    Lease {
        /// The node that owns the slots.
        to: NodeId,
        /// The request.
        lease: Lease,
    },
    /// To the node that recalled, after the leases queued before it.
    Held {
        /// The node.
        to: NodeId,
        /// The answer.
        held: Held,
    },
    /// This boot is fenced: the driver opens again (with its journal's lock) or stops.
    Fenced,
}

/// When rows that have something to say and nobody to tell are looked at again, if no route came before.
const LOOK_AGAIN_MS: u64 = 1000;
/// How long a `none_now` is remembered.
const REFUSAL_MS: u64 = 1000;

/// Counts for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Lease requests sent.
    pub leases: u64,
    /// Units granted and taken in.
    pub granted: Units,
    /// Units surrendered.
    pub surrendered: Units,
    /// Numbers drawn again for a new epoch or a stale row.
    pub redrawn: u64,
}

/// See the module's text.
pub struct Lessee<C> {
    boot: Boot,
    last_lease_no: LeaseNo,
    /// The highest number that grants of a dropped row were taken under: a late copy of a `Resolve`'s answer
    /// up to it opens nothing again.
    let_go_no: LeaseNo,
    rows: Rows<C>,
    routes: BTreeMap<Slot, Route>,
    /// Rows with something to say.
    unsent: Unsent,
    revision: Revision,
    /// After [`Lessee::surrender_all`]: what answers bring is handed in at once.
    leaving: bool,
    outputs: VecDeque<Output>,
    counts: Counts,
}

impl<C: Cell> Lessee<C> {
    /// The lessee of one boot of an edge, with no accounts and no routes.
    #[must_use]
    pub fn new(boot: Boot) -> Self {
        Self {
            boot,
            last_lease_no: LeaseNo(0),
            let_go_no: LeaseNo(0),
            rows: Rows::new(),
            routes: BTreeMap::new(),
            unsent: Unsent::new(),
            revision: Revision::default(),
            leaving: false,
            outputs: VecDeque::new(),
            counts: Counts::default(),
        }
    }

    /// This edge's boot.
    #[must_use]
    pub fn boot(&self) -> Boot {
        self.boot
    }

    /// Counts since the start.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The cell of an account, if it is open here.
    #[must_use]
    pub fn cell(&self, account: &AccountId) -> Option<&C> {
        self.rows.get(account).map(|row| &row.cell)
    }

    /// Every account open here, with its cell.
    pub fn cells(&self) -> impl Iterator<Item = (&AccountId, &C)> {
        self.rows.iter().map(|(account, row)| (account, &row.cell))
    }

    /// The owner of a slot, as far as this edge knows.
    #[must_use]
    pub fn route(&self, slot: Slot) -> Option<Route> {
        self.routes.get(&slot).copied()
    }

    /// Draws the number for a `Resolve`: rows it opens bind to it.
    pub fn draw(&mut self) -> LeaseNo {
        self.last_lease_no = self.last_lease_no.next();
        self.last_lease_no
    }

    /// Opens an account with the driver's cell; one that is open keeps its own. To be called for every
    /// account that a `Resolve` named, open or not, before its answer's lease part is handed in: with
    /// `resolved`, that `Resolve`'s number, a row without any answer yet binds to it.
    pub fn open(&mut self, now: Mono, account: &AccountId, cell: C, resolved: Option<LeaseNo>) {
        if let Some(row) = self.rows.get_mut(account) {
            if let Some(resolved) = resolved {
                row.offer(resolved);
            }
            return;
        }
        let mut row = Row::new(now, cell, self.let_go_no);
        if let Some(resolved) = resolved {
            row.offer(resolved);
        }
        self.rows.insert(account.clone(), row);
    }

    /// Lets go of accounts that nobody can spend from any more, as `unused` says of their cells: what is in
    /// them is handed in, and once the issuer has closed a row it is dropped. So the accounts kept are those
    /// of callers the driver keeps, and some for a round trip. To be called as often as
    /// [`Lessee::observe`], after use was collected. Answers how many were dropped.
    pub fn let_go(&mut self, mut unused: impl FnMut(&AccountId, &C) -> bool) -> usize {
        let mut dropped: usize = 0;
        let mut idle = Vec::new();
        let let_go_no = &mut self.let_go_no;
        self.rows.retain(|account, row| {
            if row.is_closing() || !unused(account, &row.cell) {
                return true;
            }
            if !row.unbound() || row.cell.free() > 0 {
                idle.push(account.clone());
                return true;
            }
            *let_go_no = row.taken().max(*let_go_no);
            dropped = dropped.saturating_add(1);
            false
        });
        for account in idle {
            self.hand_in(&account);
        }
        dropped
    }

    /// A check found less than `need` units in the cell: ask for more.
    pub fn handle_want(&mut self, now: Mono, account: &AccountId, need: Units) {
        let Some(row) = self.rows.get_mut(account) else {
            return;
        };
        if row.unbound() {
            let route = self.routes.get(&account.slot());
            let Some(epoch) = route.map(|route| route.epoch) else {
                return;
            };
            if !row.bind_resolved(epoch) {
                self.last_lease_no = self.last_lease_no.next();
                row.bind_new(self.last_lease_no, epoch);
            }
        }
        if row.want(now, need)
            && let Some(at) = row.due_at()
        {
            self.unsent.insert(account.clone(), at);
        }
    }

    /// The slot table, or a part of it: lower epochs than known are ignored; rows of a slot with a higher
    /// one draw new numbers, carrying what is in their cells.
    pub fn handle_routes(&mut self, now: Mono, routes: &[Route]) {
        for route in routes {
            let known = self
                .routes
                .get(&route.slot)
                .map_or(Epoch(0), |known| known.epoch);
            if route.epoch > known {
                self.routes.insert(route.slot, *route);
                self.redraw_slot(now, route);
            }
        }
    }

    fn redraw_slot(&mut self, now: Mono, route: &Route) {
        for (account, row) in self.rows.of_slot_mut(route.slot) {
            if row.unbound() {
                continue;
            }
            self.last_lease_no = self.last_lease_no.next();
            self.counts.redrawn = self.counts.redrawn.saturating_add(1);
            if row.redraw(self.last_lease_no, route.epoch) {
                self.unsent.insert(account.clone(), now);
            } else {
                self.unsent.remove(account);
            }
        }
    }

    /// The catalog reached a revision: refusals computed below it are void.
    pub fn handle_revision(&mut self, revision: Revision) {
        if revision > self.revision {
            self.revision = revision;
            for (_, row) in self.rows.iter_mut() {
                row.forget_refusal_below(revision);
            }
        }
    }

    /// An issuer's answer, or its news; `from` is the node at the other end of the connection.
    pub fn handle_answer(&mut self, now: Mono, from: (NodeId, Boot), answer: &LeaseAnswer) {
        if answer.boot != self.boot {
            return;
        }
        for part in &answer.slots {
            self.handle_slot_answer(now, from, answer.revision, part);
        }
    }

    /// The lease part of a `Resolve`'s answer, or of a [`LeaseAnswer`].
    pub fn handle_slot_answer(
        &mut self,
        now: Mono,
        from: (NodeId, Boot),
        revision: Revision,
        part: &SlotAnswer,
    ) {
        match &part.outcome {
            SlotOutcome::Fenced => self.outputs.push_back(Output::Fenced),
            SlotOutcome::WrongEpoch(route) => self.handle_routes(now, &[*route]),
            SlotOutcome::Lines { epoch, lines } => {
                // Whoever answers for an epoch owns it: an edge may hear of a takeover here first.
                let route = Route {
                    slot: part.slot,
                    epoch: *epoch,
                    owner: Some(from),
                };
                self.handle_routes(now, &[route]);
                if self
                    .route(part.slot)
                    .is_some_and(|known| known.epoch > *epoch)
                {
                    // A former issuer: what it grants is lost to this edge, and stays in `out`.
                    return;
                }
                for line in lines {
                    self.handle_line(now, *epoch, revision, line);
                }
            }
        }
    }

    fn handle_line(&mut self, now: Mono, epoch: Epoch, revision: Revision, line: &AnswerLine) {
        let Some(row) = self.rows.get_mut(&line.account) else {
            return;
        };
        if !row.takes(epoch, line.lease_no) {
            return;
        }
        let granted = row.take_grant(line.granted_total);
        self.counts.granted = self.counts.granted.saturating_add(granted);
        row.note_surrender_taken(line.surrendered_total);
        match line.state {
            LeaseState::Granted => row.set_refusal(None, revision),
            LeaseState::Pending | LeaseState::Recalling => row.note_judging(line.need_total),
            LeaseState::NoneNow => {
                if let Some(need) = row.refused_need(line) {
                    let refusal = Refusal {
                        state: line.state,
                        until: Some(now.plus_ms(REFUSAL_MS)),
                        need,
                    };
                    self.refuse(&line.account, refusal, revision);
                }
            }
            LeaseState::NoneForGood | LeaseState::NoLimit => {
                let refusal = Refusal {
                    state: line.state,
                    until: None,
                    need: 1,
                };
                self.refuse(&line.account, refusal, revision);
            }
            LeaseState::Closed => row.close(),
            LeaseState::Stale => self.redraw_row(now, &line.account, epoch),
        }
        let cell_is_empty = self.cell(&line.account).is_none_or(|cell| cell.free() == 0);
        if self.leaving && !cell_is_empty {
            self.hand_in(&line.account);
        }
        match self.rows.get(&line.account).and_then(Row::due_at) {
            Some(at) => self.unsent.insert(line.account.clone(), at),
            None => self.unsent.remove(&line.account),
        }
    }

    fn redraw_row(&mut self, now: Mono, account: &AccountId, epoch: Epoch) {
        let Some(row) = self.rows.get_mut(account) else {
            return;
        };
        self.last_lease_no = self.last_lease_no.next();
        self.counts.redrawn = self.counts.redrawn.saturating_add(1);
        if row.redraw(self.last_lease_no, epoch) {
            self.unsent.insert(account.clone(), now);
        } else {
            self.unsent.remove(account);
        }
    }

    /// Remembers a refusal. One that was computed at a catalog older than the one this edge knows says
    /// nothing: the row goes on waiting and asks again with back-off until the issuer has caught up.
    fn refuse(&mut self, account: &AccountId, refusal: Refusal, revision: Revision) {
        let known = self.revision;
        let Some(row) = self.rows.get_mut(account) else {
            return;
        };
        let planted = crate::planted::none_for_good_remembered_across_a_raise();
        if revision >= known || planted {
            // A check that waits for less than was refused is not answered by it.
            if !(1..refusal.need).contains(&row.lacks()) {
                row.stop_waiting();
            }
            row.set_refusal(Some(refusal), revision);
        }
    }

    /// An issuer wants idle units back.
    pub fn handle_recall(&mut self, now: Mono, from: (NodeId, Boot), recall: &Recall) {
        let route = Route {
            slot: recall.slot,
            epoch: recall.epoch,
            owner: Some(from),
        };
        self.handle_routes(now, &[route]);
        let mut held = 0;
        let (mut lease_no, mut granted_seen) = (LeaseNo(0), 0);
        let current = self
            .routes
            .get(&recall.slot)
            .is_some_and(|r| r.epoch == recall.epoch);
        if let Some(row) = self.rows.get_mut(&recall.account)
            && current
        {
            if row.cannot_state_its_cell() {
                self.last_lease_no = self.last_lease_no.next();
                row.redraw(self.last_lease_no, recall.epoch);
            }
            let units = row.surrender_idle(now, recall.keep);
            self.counts.surrendered = self.counts.surrendered.saturating_add(units);
            held = row.cell.free();
            (lease_no, granted_seen) = row.seen();
            if units > 0 {
                self.send_now(now, from.0, recall);
            }
        }
        let held = Held {
            boot: self.boot,
            number: recall.number,
            account: recall.account.clone(),
            held,
            lease_no,
            granted_seen,
        };
        self.outputs.push_back(Output::Held { to: from.0, held });
    }

    fn send_now(&mut self, now: Mono, to: NodeId, recall: &Recall) {
        let Some(row) = self.rows.get_mut(&recall.account) else {
            return;
        };
        let lines = vec![row.line(now, &recall.account)];
        if let Some(at) = row.due_at() {
            // Said again until it is answered.
            self.unsent.insert(recall.account.clone(), at);
        }
        let slots = vec![SlotLease {
            slot: recall.slot,
            epoch: recall.epoch,
            lines,
        }];
        self.outputs.push_back(Output::Lease {
            to,
            lease: Lease {
                boot: self.boot,
                slots,
            },
        });
    }

    /// Measures every cell: demand, the need to ask ahead, idleness. To be called about every 250 ms; the
    /// cost is one visit per open account.
    pub fn observe(&mut self, now: Mono) {
        for (account, row) in self.rows.iter_mut() {
            let surrendered = row.observe(now);
            self.counts.surrendered = self.counts.surrendered.saturating_add(surrendered);
            if let Some(at) = row.due_at() {
                self.unsent.insert(account.clone(), at);
            }
        }
    }

    /// What is to be done now. Requests without an answer are repeated with back-off, so this is to be
    /// called after every input and every 10 to 50 ms while something waits.
    pub fn poll(&mut self, now: Mono) -> Option<Output> {
        if let Some(output) = self.outputs.pop_front() {
            return Some(output);
        }
        self.collect(now);
        self.outputs.pop_front()
    }

    /// Whether anything waits for an answer.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Gathers what is due into as few `Lease`s as their bounds allow.
    fn collect(&mut self, now: Mono) {
        if !self.unsent.is_due(now) {
            return;
        }
        let mut bundles = Bundles::new(self.boot);
        let mut due = Vec::new();
        // A row that has no owner to tell is looked at again when it gets one, or by then.
        let mut next = now.plus_ms(LOOK_AGAIN_MS);
        for account in self.unsent.iter() {
            match self.rows.get(account).and_then(Row::due_at) {
                Some(at) if at <= now => due.push(account.clone()),
                Some(at) => next = next.min(at),
                None => {}
            }
        }
        let messages = u64::try_from(due.len().div_ceil(LEASE_LINES_MAX)).unwrap_or(u64::MAX);
        for account in due {
            let slot = account.slot();
            let Some(Route {
                epoch,
                owner: Some((node, _)),
                ..
            }) = self.route(slot)
            else {
                continue;
            };
            let Some(row) = self.rows.get_mut(&account) else {
                continue;
            };
            if row.bound_to() == Some(epoch) {
                bundles.add(node, (slot, epoch), row.line(now, &account));
                next = next.min(row.wait_for_answer(now, messages));
            }
        }
        self.unsent.be_quiet_until(next);
        for (to, lease) in bundles.close() {
            self.counts.leases = self.counts.leases.saturating_add(1);
            self.outputs.push_back(Output::Lease { to, lease });
        }
    }

    /// Hands in everything in the cells, and what answers still bring, for a clean end. The driver stops its
    /// checks first.
    pub fn surrender_all(&mut self) {
        self.leaving = true;
        let accounts: Vec<AccountId> = self
            .rows
            .iter()
            .map(|(account, _)| account.clone())
            .collect();
        for account in accounts {
            self.hand_in(&account);
        }
    }

    fn hand_in(&mut self, account: &AccountId) {
        let Some(row) = self.rows.get_mut(account) else {
            return;
        };
        let epoch = self.routes.get(&account.slot()).map(|route| route.epoch);
        if let Some(epoch) = epoch
            && row.cannot_state_its_cell()
        {
            self.last_lease_no = self.last_lease_no.next();
            row.redraw(self.last_lease_no, epoch);
        }
        let units = row.surrender_everything();
        self.counts.surrendered = self.counts.surrendered.saturating_add(units);
        if let Some(at) = row.due_at() {
            self.unsent.insert(account.clone(), at);
        }
    }

    /// Whether every surrender was taken back by its issuer.
    #[must_use]
    pub fn surrendered_everything(&self) -> bool {
        self.unsent.is_empty() && self.rows.iter().all(|(_, row)| row.cell.free() == 0)
    }

    /// A later life of the same process: the ledger gave the edge a new boot. Cells are kept; every row
    /// draws a new number. Only for a process that still holds its journal's lock.
    pub fn handle_new_boot(&mut self, now: Mono, boot: Boot) {
        self.boot = boot;
        let accounts: Vec<AccountId> = self
            .rows
            .iter()
            .map(|(account, _)| account.clone())
            .collect();
        for account in accounts {
            if let Some(epoch) = self.rows.get(&account).and_then(Row::bound_to) {
                self.redraw_row(now, &account, epoch);
            }
        }
    }
}
