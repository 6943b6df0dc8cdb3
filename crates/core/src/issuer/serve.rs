//! What an account of the issuer needs next: grant, acquire, recall, refuse, return, drop.
//!
//! [`Issuer::serve`] runs after everything that touches an account and is the only place that decides;
//! [`Issuer::care`] runs by time. The book keeps the invariant whatever is decided here.

use super::book::{Book, Row};
use super::{Issuer, Output};
use crate::account::AccountId;
use crate::command::PositionLine;
use crate::ids::{Boot, Slot, Units};
use crate::ledger::{EdgeBoot, Ledger};
use crate::message::{AnswerLine, LeaseState, Recall, SlotAnswer, SlotOutcome};
use crate::time::Mono;
use std::collections::BTreeSet;

/// Below this limit nothing is acquired ahead: only what is leased at once.
const AHEAD_LIMIT_MIN: Units = 10_000;
/// Acquired ahead: at most this part of the limit (0.1 %).
const AHEAD_PART: Units = 1000;
/// Acquired ahead: at most this many seconds of demand.
const AHEAD_SECONDS: Units = 2;
/// Of a limit, at most this part may stay with edges that are asked to hand in (0.1 %): what is usable
/// before the first refusal is P3's other 99.9 %.
const KEEP_PART: Units = 1000;
/// An unanswered position is proposed again after this.
const POSITION_REPEAT_MS: u64 = 500;
/// A pool that did not move for this long is returned.
const POOL_IDLE_MS: u64 = 10_000;
/// A row whose edge is neither connected nor heard of for this long is dropped.
const ROW_SILENT_MS: u64 = 600_000;
/// Accounts looked after in one [`Issuer::handle_timeout`], beyond those that are busy.
const CARE_SLICE: usize = 4096;

/// Whether an answer ends a wait without units.
pub(super) fn is_refusal(state: LeaseState) -> bool {
    match state {
        LeaseState::NoneNow | LeaseState::NoneForGood | LeaseState::NoLimit => true,
        LeaseState::Granted
        | LeaseState::Pending
        | LeaseState::Recalling
        | LeaseState::Closed
        | LeaseState::Stale => false,
    }
}

impl Issuer {
    /// Brings an account forward: takes the replica's word, grants, acquires, recalls, and tells every row
    /// whose standing changed, except `asking`, which gets its answer from the caller.
    pub(super) fn serve(
        &mut self,
        now: Mono,
        ledger: &Ledger,
        slot: Slot,
        account: &AccountId,
        asking: Option<Boot>,
    ) {
        let Some(slot_book) = self.slots.get_mut(&slot) else {
            return;
        };
        let epoch = slot_book.epoch;
        let Some(book) = slot_book.accounts.get_mut(account) else {
            return;
        };
        let stored = ledger.account(account).copied().unwrap_or_default();
        if stored.epoch == epoch {
            // Within its own epoch the replica's total counts as an answer: a late duplicate of a
            // position may have been granted more than the answer that came.
            book.take_acquired(now, stored.acquired_total);
            book.returned_known = book.returned_known.max(stored.returned_total);
        }
        let limit = ledger.limit(account);
        let room = limit.map_or(0, |limit| stored.room(limit));
        if room == 0 {
            // Nothing to be had: a position under way may still bring something, but nobody waits for it.
            book.asked = None;
        }
        let (served, units) = book.grant(now, room);
        self.counts.granted = self.counts.granted.saturating_add(units);
        let wanted = book.shortfall(now, room);
        if let Some(limit) = limit
            && book.asked.is_none()
            && wanted > 0
            && room > 0
        {
            let units = wanted.saturating_add(ahead(limit, book.demand())).min(room);
            book.asked = Some((book.acquired.saturating_add(units), now));
            self.propose(slot, account);
        } else if book.rows.is_empty() && book.available > 0 {
            // No edge leases it any more: what is in the pool would only be stranded by a crash.
            book.return_pool(now);
            self.propose(slot, account);
        }
        self.repeat_position(now, slot, account);
        self.recall(now, slot, account, limit, stored.out);
        self.tell(ledger, slot, account, &served, asking);
        self.note_busy(slot, account);
    }

    fn book_of(&mut self, slot: Slot, account: &AccountId) -> Option<&mut Book> {
        self.slots.get_mut(&slot)?.accounts.get_mut(account)
    }

    pub(super) fn stop_waiting(&mut self, slot: Slot, account: &AccountId, boot: Boot) {
        if let Some(book) = self.book_of(slot, account) {
            book.stop_waiting(boot);
        }
        self.note_busy(slot, account);
    }

    /// Busy accounts are looked at whenever the replica or the time moved.
    fn note_busy(&mut self, slot: Slot, account: &AccountId) {
        let busy = self.book_of(slot, account).is_some_and(|book| {
            book.asked.is_some()
                || book.returned > book.returned_known
                || book.recall.open.is_some()
                || book.rows.values().any(Row::waits)
        });
        if busy {
            self.busy.insert(account.clone());
        } else {
            self.busy.remove(account);
        }
    }

    /// Puts the account's totals into the next position of its slot.
    fn propose(&mut self, slot: Slot, account: &AccountId) {
        let Some(book) = self.book_of(slot, account) else {
            return;
        };
        let line = PositionLine {
            account: account.clone(),
            acquired_total: book.asked.map_or(book.acquired, |(asked, _)| asked),
            returned_total: book.returned,
        };
        self.positions
            .entry(slot)
            .or_default()
            .insert(account.clone(), line);
    }

    fn repeat_position(&mut self, now: Mono, slot: Slot, account: &AccountId) {
        let Some(book) = self.book_of(slot, account) else {
            return;
        };
        let due = |at: Mono| now.since_ms(at) >= POSITION_REPEAT_MS;
        let mut repeat = false;
        if let Some((total, at)) = book.asked
            && due(at)
        {
            book.asked = Some((total, now));
            repeat = true;
        }
        if book.returned > book.returned_known && due(book.returned_at) {
            book.returned_at = now;
            repeat = true;
        }
        if repeat {
            self.propose(slot, account);
        }
    }

    /// Ends a recall whose time is over; starts one where it may help: a row waits, the ledger has no
    /// room, and units are out beyond this pool. It goes to every connected edge, since units of former
    /// epochs are in no book; only the edge that waits longest keeps what it has. That one is refused on the word
    /// of the others. Whoever else waits is not, before a recall that has asked it as well.
    fn recall(
        &mut self,
        now: Mono,
        slot: Slot,
        account: &AccountId,
        limit: Option<Units>,
        out: Units,
    ) {
        let Some(slot_book) = self.slots.get_mut(&slot) else {
            return;
        };
        let epoch = slot_book.epoch;
        let Some(book) = slot_book.accounts.get_mut(account) else {
            return;
        };
        book.recall.soon = false;
        if book.recall.end(now, &self.connected) {
            return;
        }
        // Without a limit there is nothing to recall for: the answer is `no_limit`.
        let (Some(first), Some(limit)) = (book.first_waiting(), limit) else {
            return;
        };
        if book.asked.is_some() || out <= book.available {
            return;
        }
        let due = book.recall.is_due(now, first);
        if !due && !book.recall.has_news(first) {
            return;
        }
        let only_rows = crate::planted::recall_only_to_rows_in_the_book();
        let targets: BTreeSet<Boot> = self
            .connected
            .iter()
            .filter(|boot| **boot != first && (!only_rows || book.rows.contains_key(boot)))
            .copied()
            .collect();
        let parts = KEEP_PART.saturating_mul(Units::try_from(targets.len()).unwrap_or(Units::MAX));
        let Some(keep) = limit.checked_div(parts) else {
            return;
        };
        if !due {
            book.recall.soon = true;
            return;
        }
        self.recall_number = self.recall_number.saturating_add(1);
        self.counts.recalls = self.counts.recalls.saturating_add(1);
        let number = self.recall_number;
        for to in targets.iter().copied() {
            let recall = Recall {
                slot,
                epoch,
                account: account.clone(),
                number,
                keep,
            };
            self.outputs.push_back(Output::Recall { to, recall });
        }
        book.recall.begin(now, number, first, targets);
    }

    /// Sends news to rows that were served, and the last word to those that wait in vain.
    fn tell(
        &mut self,
        ledger: &Ledger,
        slot: Slot,
        account: &AccountId,
        served: &[Boot],
        asking: Option<Boot>,
    ) {
        let Some(book) = self.book_of(slot, account) else {
            return;
        };
        let in_vain = |boot| book.asked.is_none() && !book.recall.decides(boot);
        let told: Vec<Boot> = book
            .rows
            .iter()
            .filter(|(boot, row)| served.contains(boot) || (row.waits() && in_vain(**boot)))
            .map(|(boot, _)| *boot)
            .filter(|boot| Some(*boot) != asking)
            .collect();
        for boot in told {
            self.tell_row(ledger, slot, account, boot);
        }
    }

    /// Says to an edge where its row stands, if it has one.
    pub(super) fn tell_row(
        &mut self,
        ledger: &Ledger,
        slot: Slot,
        account: &AccountId,
        boot: Boot,
    ) {
        let Some(epoch) = self.slots.get(&slot).map(|slot_book| slot_book.epoch) else {
            return;
        };
        let Some(line) = self.answer_line(ledger, slot, boot, account) else {
            return;
        };
        let refused = is_refusal(line.state);
        let part = SlotAnswer {
            slot,
            outcome: SlotOutcome::Lines {
                epoch,
                lines: vec![line],
            },
        };
        let answer = super::answer(ledger, boot, vec![part]);
        self.outputs.push_back(Output::Answer(answer));
        if refused {
            self.stop_waiting(slot, account, boot);
        }
    }

    /// Where a row stands.
    pub(super) fn answer_line(
        &self,
        ledger: &Ledger,
        slot: Slot,
        boot: Boot,
        account: &AccountId,
    ) -> Option<AnswerLine> {
        let book = self.slots.get(&slot)?.accounts.get(account)?;
        let row = book.rows.get(&boot)?;
        let limit = ledger.limit(account);
        let stored = ledger.account(account).copied().unwrap_or_default();
        let state = if !row.waits() {
            LeaseState::Granted
        } else if book.asked.is_some() {
            LeaseState::Pending
        } else if book.recall.decides(boot) {
            LeaseState::Recalling
        } else {
            match limit {
                None => LeaseState::NoLimit,
                Some(limit) if stored.unsettled(limit) == 0 && stored.out == 0 => {
                    LeaseState::NoneForGood
                }
                Some(_) => LeaseState::NoneNow,
            }
        };
        Some(AnswerLine {
            account: account.clone(),
            lease_no: row.lease_no,
            granted_total: row.granted_total,
            surrendered_total: row.surrendered_total,
            need_total: if row.waits() { row.need_total } else { 0 },
            remaining: limit.map_or(0, |limit| stored.unsettled(limit)),
            state,
        })
    }

    /// The next slice of accounts to look after, round and round.
    pub(super) fn next_to_care_for(&mut self) -> Vec<AccountId> {
        use std::ops::Bound;
        let (first, mut after) = match self.care_from.take() {
            Some((slot, account)) => (Bound::Included(slot), Some(account)),
            None => (Bound::Unbounded, None),
        };
        let mut next = Vec::new();
        for (slot, book) in self.slots.range((first, Bound::Unbounded)) {
            let from = after.take().map_or(Bound::Unbounded, Bound::Excluded);
            for account in book
                .accounts
                .range((from, Bound::Unbounded))
                .map(|(account, _)| account)
            {
                next.push(account.clone());
                if next.len() == CARE_SLICE {
                    self.care_from = Some((*slot, account.clone()));
                    return next;
                }
            }
        }
        next
    }

    /// Looks after an account: drops rows of fenced and of long silent edges, returns an idle pool.
    pub(super) fn care(&mut self, now: Mono, ledger: &Ledger, account: &AccountId) {
        let slot = account.slot();
        let connected = &self.connected;
        let Some(slot_book) = self.slots.get_mut(&slot) else {
            return;
        };
        let Some(book) = slot_book.accounts.get_mut(account) else {
            return;
        };
        let fenced = |boot: &Boot| ledger.edge_boot(*boot) == EdgeBoot::Fenced;
        let gone: Vec<Boot> = book
            .rows
            .iter()
            .filter(|(boot, row)| {
                let silent = now.since_ms(row.asked_at) >= ROW_SILENT_MS;
                fenced(boot) || (silent && !connected.contains(boot))
            })
            .map(|(boot, _)| *boot)
            .collect();
        for boot in gone {
            let net = book.row_net(boot);
            book.drop_row(boot, slot_book.watermarks.entry(boot).or_default());
            if crate::planted::rest_of_a_lost_edge_freed() && fenced(&boot) {
                book.free_gone(net);
            }
        }
        book.forget_boots(fenced);
        // A fenced boot is refused before its number matters.
        slot_book.watermarks.retain(|boot, _| !fenced(boot));
        let idle = now.since_ms(book.moved_at) >= POOL_IDLE_MS || ledger.limit(account).is_none();
        if book.available > 0 && idle && !book.rows.values().any(Row::waits) {
            book.return_pool(now);
            self.propose(slot, account);
        }
        self.note_busy(slot, account);
    }
}

/// How much to acquire beyond what is asked for.
fn ahead(limit: Units, demand: Units) -> Units {
    if limit < AHEAD_LIMIT_MIN {
        return 0;
    }
    demand.saturating_mul(AHEAD_SECONDS).min(limit / AHEAD_PART)
}
