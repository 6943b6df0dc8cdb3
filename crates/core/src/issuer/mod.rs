//! The issuer: leases the accounts of its slots to edges, from memory, and acquires from the ledger ahead
//! of demand (design §5, §6).
//!
//! Sans-IO. In: `handle_*(now, …)`, with the node's own replica of the ledger to read. Out:
//! [`Issuer::poll`]. Safety does not depend on clocks: an issuer that does not know that it was deposed
//! leases only what it acquired, and everything it leased is still in `out`. Times here only pace retries,
//! recalls and returns. `book` keeps the invariant I2, `serve` decides what an account needs next.

mod book;
mod serve;

use crate::account::AccountId;
use crate::command::{
    LINES_MAX, LineOutcome, Position, PositionLine, PositionOutcome, PositionReply,
};
use crate::ids::{Boot, Epoch, LeaseNo, NodeId, Slot, Units};
use crate::ledger::{EdgeBoot, Ledger};
use crate::message::{
    AnswerLine, Held, Lease, LeaseAnswer, LeaseLine, LeaseState, Recall, SlotAnswer, SlotLease,
    SlotOutcome,
};
use crate::time::Mono;
use book::{Book, Opening};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;

/// Lines of requests under an epoch or boot this replica has not applied yet; the oldest makes room.
const HELD_LINES_MAX: usize = 65_536;
/// Such requests of one edge boot; its oldest makes room.
const HELD_MAX: usize = 8;
/// So long a request is held; its edge repeats it before.
const HELD_MS: u64 = 2000;
/// Busy accounts served in one [`Issuer::handle_applied`].
const BUSY_SLICE: usize = 4096;
/// Bytes of account names and totals in one position, so that it fits an entry of the log.
const POSITION_BYTES_MAX: usize = 32 * 1024;
/// Bytes of a line of a position beside the name: two totals of 9 and two lengths.
const LINE_BYTES: usize = 24;
/// What an issuer wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// To the ledger's proposer; the answer comes back by [`Issuer::handle_position`]. A lost one needs
    /// no word: it is proposed again.
    Propose(Position),
    /// To the edge named in it.
    Answer(LeaseAnswer),
    /// To one connected edge.
    Recall {
        /// The edge.
        to: Boot,
        /// The recall.
        recall: Recall,
    },
}

/// Counts for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Units granted in all.
    pub granted: Units,
    /// Units that were in pools of books dropped because their epoch ended.
    pub stranded: Units,
    /// Recalls sent.
    pub recalls: u64,
    /// Requests dropped because too many were held, or too long, for an epoch not applied yet.
    pub held_dropped: u64,
    /// Lines that stated more surrendered than can have been their edge's.
    pub overstated: u64,
}

struct SlotBook {
    epoch: Epoch,
    accounts: BTreeMap<AccountId, Book>,
    /// Highest `lease_no` of each boot whose row was dropped.
    watermarks: BTreeMap<Boot, LeaseNo>,
}

/// See the module's text.
pub struct Issuer {
    node: NodeId,
    boot: Boot,
    slots: BTreeMap<Slot, SlotBook>,
    connected: BTreeSet<Boot>,
    /// Accounts with a waiting row or a position under way.
    busy: BTreeSet<AccountId>,
    /// Requests that wait for the replica, oldest first.
    held: VecDeque<(Mono, Lease)>,
    outputs: VecDeque<Output>,
    positions: BTreeMap<Slot, BTreeMap<AccountId, PositionLine>>,
    recall_number: u64,
    routes_seen: u64,
    /// The last busy account served.
    busy_from: Option<AccountId>,
    /// The last account looked after.
    care_from: Option<(Slot, AccountId)>,
    counts: Counts,
}

impl Issuer {
    /// The issuer of one boot of a node; it owns what the ledger says it owns.
    #[must_use]
    pub fn new(node: NodeId, boot: Boot) -> Self {
        Self {
            node,
            boot,
            slots: BTreeMap::new(),
            connected: BTreeSet::new(),
            busy: BTreeSet::new(),
            held: VecDeque::new(),
            outputs: VecDeque::new(),
            positions: BTreeMap::new(),
            recall_number: 0,
            routes_seen: u64::MAX,
            busy_from: None,
            care_from: None,
            counts: Counts::default(),
        }
    }

    /// Counts since the start.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Units in the pools of this boot, over all accounts.
    #[must_use]
    pub fn pooled(&self) -> Units {
        let books = self.slots.values().flat_map(|slot| slot.accounts.values());
        books
            .map(|book| book.available)
            .fold(0, Units::saturating_add)
    }

    /// Units in this boot's pool of one account.
    #[must_use]
    pub fn pool(&self, account: &AccountId) -> Units {
        let book = self
            .slots
            .get(&account.slot())
            .and_then(|slot| slot.accounts.get(account));
        book.map_or(0, |book| book.available)
    }

    /// An edge's connection to this node is up: recalls reach it.
    pub fn handle_connected(&mut self, boot: Boot) {
        self.connected.insert(boot);
    }

    /// An edge's connection ended. Says nothing about what it holds: nothing is freed.
    pub fn handle_disconnected(&mut self, boot: Boot) {
        self.connected.remove(&boot);
    }

    /// An edge asks for units, or states what it surrendered. `None` while the request is held: for an
    /// epoch or a boot that this replica has not applied yet.
    pub fn handle_lease(
        &mut self,
        now: Mono,
        ledger: &Ledger,
        lease: &Lease,
    ) -> Option<LeaseAnswer> {
        self.follow_routes(ledger);
        let answer = self.judge(now, ledger, lease);
        if answer.is_none() {
            self.hold(now, lease.clone());
        }
        answer
    }

    /// The answer to a request; `None` if this replica cannot tell yet.
    fn judge(&mut self, now: Mono, ledger: &Ledger, lease: &Lease) -> Option<LeaseAnswer> {
        let newer = |s: &SlotLease| s.epoch > ledger.route(s.slot).epoch;
        match ledger.edge_boot(lease.boot) {
            EdgeBoot::NotYet => return None,
            EdgeBoot::Live(_) if lease.slots.iter().any(newer) => return None,
            EdgeBoot::Live(_) => {}
            EdgeBoot::Fenced => {
                let fenced = |s: &SlotLease| SlotAnswer {
                    slot: s.slot,
                    outcome: SlotOutcome::Fenced,
                };
                return Some(answer(
                    ledger,
                    lease.boot,
                    lease.slots.iter().map(fenced).collect(),
                ));
            }
        }
        let slots = lease
            .slots
            .iter()
            .map(|part| self.lease_slot(now, ledger, lease.boot, part))
            .collect();
        Some(answer(ledger, lease.boot, slots))
    }

    /// The lease part of a `Resolve`: opens rows of `accounts` (all of one slot) that are not open, under
    /// `lease_no`, and grants. `None` where this node is not the slot's issuer.
    pub fn handle_resolve(
        &mut self,
        now: Mono,
        ledger: &Ledger,
        request: &ResolveLease<'_>,
    ) -> Option<SlotAnswer> {
        self.follow_routes(ledger);
        let slot = request.accounts.first()?.slot();
        if !matches!(ledger.edge_boot(request.boot), EdgeBoot::Live(_)) {
            return None;
        }
        let epoch = self.owned(ledger, slot)?;
        let mut lines = Vec::with_capacity(request.accounts.len());
        for account in request
            .accounts
            .iter()
            .filter(|account| account.slot() == slot)
        {
            let open = self.row_no(slot, request.boot, account);
            if open.is_some_and(|open| open != request.lease_no) {
                continue;
            }
            let line = LeaseLine {
                account: account.clone(),
                lease_no: request.lease_no,
                carried: 0,
                want_total: request.want.max(request.need),
                need_total: request.need,
                surrendered_total: 0,
                demand: 0,
                closing: false,
            };
            lines.extend(self.lease_line(now, ledger, slot, request.boot, &line));
        }
        Some(SlotAnswer {
            slot,
            outcome: SlotOutcome::Lines { epoch, lines },
        })
    }

    /// The ledger answered a position.
    pub fn handle_position(&mut self, now: Mono, ledger: &Ledger, reply: &PositionReply) {
        let PositionOutcome::Lines(lines) = &reply.outcome else {
            self.follow_routes(ledger);
            return;
        };
        for (account, outcome) in lines {
            let Some(book) = self.book_mut(reply.slot, reply.epoch, account) else {
                continue;
            };
            match *outcome {
                LineOutcome::Stands {
                    acquired_total,
                    returned_total,
                }
                | LineOutcome::NoLimit {
                    acquired_total,
                    returned_total,
                } => {
                    book.take_acquired(now, acquired_total);
                    book.returned_known = book.returned_known.max(returned_total);
                }
                LineOutcome::WrongSlot => book.asked = None,
            }
            self.serve(now, ledger, reply.slot, account, None);
        }
    }

    /// An edge answered a recall; what it surrendered came before, as a lease. Where the recall overtook a grant,
    /// that is said again, for it may be lost, and nobody is refused before the next recall.
    pub fn handle_held(&mut self, now: Mono, ledger: &Ledger, held: &Held) {
        let slot = held.account.slot();
        let Some(epoch) = self.owned(ledger, slot) else {
            return;
        };
        let Some(book) = self.book_mut(slot, epoch, &held.account) else {
            return;
        };
        if book.recall.number != held.number {
            return;
        }
        if book.take_held(held) {
            self.tell_row(ledger, slot, &held.account, held.boot);
        }
        self.serve(now, ledger, slot, &held.account, None);
    }

    /// The replica moved on: requests that were held and accounts that wait may be served now.
    pub fn handle_applied(&mut self, now: Mono, ledger: &Ledger) {
        self.follow_routes(ledger);
        for (since, lease) in std::mem::take(&mut self.held) {
            match self.judge(now, ledger, &lease) {
                Some(answer) => self.outputs.push_back(Output::Answer(answer)),
                None if now.since_ms(since) < HELD_MS => self.held.push_back((since, lease)),
                None => self.counts.held_dropped = self.counts.held_dropped.saturating_add(1),
            }
        }
        for account in self.next_busy() {
            self.serve(now, ledger, account.slot(), &account, None);
        }
    }

    /// The next slice of busy accounts, round and round.
    fn next_busy(&mut self) -> Vec<AccountId> {
        let after = self
            .busy_from
            .take()
            .map_or(Bound::Unbounded, Bound::Excluded);
        let next: Vec<AccountId> = self
            .busy
            .range((after, Bound::Unbounded))
            .take(BUSY_SLICE)
            .cloned()
            .collect();
        if next.len() == BUSY_SLICE {
            self.busy_from = next.last().cloned();
        }
        next
    }

    /// Time went on: repeats, recalls that ended, idle pools, silent rows. To be called every 50 to 100 ms.
    pub fn handle_timeout(&mut self, now: Mono, ledger: &Ledger) {
        self.handle_applied(now, ledger);
        for account in self.next_to_care_for() {
            self.care(now, ledger, &account);
        }
    }

    /// What is to be done, oldest first; positions come together per slot.
    pub fn poll(&mut self) -> Option<Output> {
        if let Some((slot, mut lines)) = self.positions.pop_first() {
            let Some(epoch) = self.slots.get(&slot).map(|book| book.epoch) else {
                return self.poll();
            };
            let mut batch = Vec::new();
            let mut bytes: usize = 0;
            while batch.len() < LINES_MAX
                && bytes < POSITION_BYTES_MAX
                && let Some((account, line)) = lines.pop_first()
            {
                bytes = bytes.saturating_add(account.as_str().len().saturating_add(LINE_BYTES));
                batch.push(line);
            }
            if !lines.is_empty() {
                self.positions.insert(slot, lines);
            }
            return Some(Output::Propose(Position {
                slot,
                epoch,
                lines: batch,
            }));
        }
        self.outputs.pop_front()
    }

    /// Keeps a request until the replica can judge it. The oldest makes room: of the same boot, so that one
    /// edge cannot crowd out the others, then of all.
    fn hold(&mut self, now: Mono, lease: Lease) {
        let size = |lease: &Lease| {
            let lines = lease.slots.iter().map(|slot| slot.lines.len());
            lines.fold(1, usize::saturating_add)
        };
        let theirs = |held: &&(Mono, Lease)| held.1.boot == lease.boot;
        if self.held.iter().filter(theirs).count() >= HELD_MAX
            && let Some(at) = self.held.iter().position(|held| theirs(&held))
        {
            self.held.remove(at);
            self.counts.held_dropped = self.counts.held_dropped.saturating_add(1);
        }
        let held = self.held.iter().map(|(_, lease)| size(lease));
        let mut lines = held.fold(size(&lease), usize::saturating_add);
        while lines > HELD_LINES_MAX
            && let Some((_, oldest)) = self.held.pop_front()
        {
            lines = lines.saturating_sub(size(&oldest));
            self.counts.held_dropped = self.counts.held_dropped.saturating_add(1);
        }
        self.held.push_back((now, lease));
    }

    /// The epoch under which this boot owns a slot.
    fn owned(&self, ledger: &Ledger, slot: Slot) -> Option<Epoch> {
        let route = ledger.route(slot);
        (route.owner == Some((self.node, self.boot))).then_some(route.epoch)
    }

    /// Drops the books of slots that have another owner or epoch by now.
    fn follow_routes(&mut self, ledger: &Ledger) {
        if self.routes_seen == ledger.routes_index() {
            return;
        }
        self.routes_seen = ledger.routes_index();
        let me = Some((self.node, self.boot));
        let counts = &mut self.counts;
        let busy = &mut self.busy;
        let positions = &mut self.positions;
        self.slots.retain(|slot, book| {
            let route = ledger.route(*slot);
            let kept = route.owner == me && route.epoch == book.epoch;
            if !kept {
                for (account, book) in &book.accounts {
                    counts.stranded = counts.stranded.saturating_add(book.available);
                    busy.remove(account);
                }
                positions.remove(slot);
            }
            kept
        });
    }

    fn book_mut(&mut self, slot: Slot, epoch: Epoch, account: &AccountId) -> Option<&mut Book> {
        let book = self
            .slots
            .get_mut(&slot)
            .filter(|book| book.epoch == epoch)?;
        book.accounts.get_mut(account)
    }

    fn row_no(&self, slot: Slot, boot: Boot, account: &AccountId) -> Option<LeaseNo> {
        let book = self.slots.get(&slot)?.accounts.get(account)?;
        book.rows.get(&boot).map(|row| row.lease_no)
    }

    fn lease_slot(
        &mut self,
        now: Mono,
        ledger: &Ledger,
        boot: Boot,
        part: &SlotLease,
    ) -> SlotAnswer {
        let slot = part.slot;
        let outcome = match self.owned(ledger, slot) {
            Some(epoch) if epoch == part.epoch => {
                let mut lines = Vec::with_capacity(part.lines.len().min(LINES_MAX));
                for line in part.lines.iter().take(LINES_MAX) {
                    if line.account.slot() == slot {
                        lines.extend(self.lease_line(now, ledger, slot, boot, line));
                    }
                }
                SlotOutcome::Lines { epoch, lines }
            }
            _ => SlotOutcome::WrongEpoch(ledger.route(slot)),
        };
        SlotAnswer { slot, outcome }
    }

    /// One line: takes it into the book, serves the account, answers. A line of an opening older than the
    /// row's is answered `stale`, too: late copies are ignored by the edge, but one that is still at that
    /// number (a `Resolve` opened a later one behind its back) would else ask in vain for ever.
    fn lease_line(
        &mut self,
        now: Mono,
        ledger: &Ledger,
        slot: Slot,
        boot: Boot,
        line: &LeaseLine,
    ) -> Option<AnswerLine> {
        let epoch = self.owned(ledger, slot)?;
        if line.surrendered_total > 0 {
            // What it hands in may have been granted to a boot that is fenced by now.
            self.care(now, ledger, &line.account);
        }
        let limit = ledger.limit(&line.account);
        let slot_book = self.slots.entry(slot).or_insert_with(|| SlotBook {
            epoch,
            accounts: BTreeMap::new(),
            watermarks: BTreeMap::new(),
        });
        let bare = |state| AnswerLine {
            account: line.account.clone(),
            lease_no: line.lease_no,
            granted_total: 0,
            surrendered_total: line.surrendered_total,
            need_total: 0,
            remaining: 0,
            state,
        };
        let row = ledger.account(&line.account);
        let may_return = row.is_some_and(|row| row.out > 0);
        if limit.is_none() && !may_return && !slot_book.accounts.contains_key(&line.account) {
            // Where nothing is to be had and nothing can come back, no book is made: what a hostile edge can fill is bounded
            // by the catalog and the ledger's rows. There is no row to drop either, so who ends its opening has ended it;
            // told anything else, it would say so again for ever.
            return Some(bare(if line.closing {
                LeaseState::Closed
            } else {
                LeaseState::NoLimit
            }));
        }
        let watermark = slot_book.watermarks.entry(boot).or_default();
        let book = slot_book.accounts.entry(line.account.clone());
        // The replica that told this epoch has every unit that former ones let out.
        let book = book.or_insert_with(|| Book::new(row.map_or(0, |row| row.out)));
        let closed = |granted_total, surrendered_total| AnswerLine {
            granted_total,
            surrendered_total,
            ..bare(LeaseState::Closed)
        };
        match book.take_line(now, boot, line, watermark) {
            Opening::Stale => return Some(bare(LeaseState::Stale)),
            Opening::ClosedBefore(granted_total, surrendered_total) => {
                self.serve(now, ledger, slot, &line.account, None);
                return Some(closed(granted_total, surrendered_total));
            }
            Opening::Overstated => {
                self.counts.overstated = self.counts.overstated.saturating_add(1);
            }
            Opening::Row => {}
        }
        if line.closing {
            let (granted_total, surrendered_total) = book.close_row(boot, watermark);
            self.serve(now, ledger, slot, &line.account, None);
            return Some(closed(granted_total, surrendered_total));
        }
        self.serve(now, ledger, slot, &line.account, Some(boot));
        let answer = self.answer_line(ledger, slot, boot, &line.account)?;
        if serve::is_refusal(answer.state) {
            self.stop_waiting(slot, &line.account, boot);
        }
        Some(answer)
    }
}

/// The lease part of a `Resolve`.
#[derive(Clone, Copy, Debug)]
pub struct ResolveLease<'a> {
    /// The asking edge.
    pub boot: Boot,
    /// The opening for rows not yet open.
    pub lease_no: LeaseNo,
    /// Units wanted of each account.
    pub want: Units,
    /// Units the waiting check needs of each account.
    pub need: Units,
    /// The accounts, all of one slot.
    pub accounts: &'a [AccountId],
}

fn answer(ledger: &Ledger, boot: Boot, slots: Vec<SlotAnswer>) -> LeaseAnswer {
    LeaseAnswer {
        boot,
        revision: ledger.catalog().revision(),
        slots,
    }
}
