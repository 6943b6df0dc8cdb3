//! An issuer's book of one account under one epoch: what it acquired and to which edge boots it granted it.
//!
//! **Invariant I2**: `acquired = available + Σ(granted − surrendered) + gone + returned`, checked by
//! [`Book::assert_balanced`] after every change. The book counts grants only: use is a demand hint. A row
//! that is dropped moves its net to `gone`; it never frees units. A book is never read back from another
//! epoch. Edges also surrender what former epochs granted them, which is in no book: all together never
//! more than was out when the book was opened, and beyond that each boot only what it was granted, so that
//! an edge that lies about what it carries puts no more than that at risk. Next: [`super`] for when which of
//! this happens.

use crate::ids::{Boot, LeaseNo, Units};
use crate::message::{Held, LeaseLine};
use crate::time::Mono;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

/// A recall is given this long to bring something; so long is also the least pause between two.
const RECALL_WAIT_MS: u64 = 300;
/// Pause from a recall of an account to the next while nothing was granted in between.
const RECALL_PAUSE_MS: u64 = 1000;
/// The pause doubles up to this while recalls bring nothing.
const RECALL_PAUSE_MS_MAX: u64 = 4000;

/// Units wanted ahead of need are granted as long as the edge asked within this time.
const WISH_MS: u64 = 2000;

/// Of one grant, at most this part of what is left (1/20 = 5 %): bounds what a killed edge strands.
const GRANT_PART: Units = 20;

/// See the module's text.
#[derive(Clone, Debug, Default)]
pub(super) struct Book {
    /// Units out under former epochs when the book was opened, less what came back of them.
    before: Units,
    /// What boots may still hold of what their dropped openings were granted.
    carried_by: BTreeMap<Boot, Units>,
    /// Highest `acquired_total` the ledger answered under this epoch.
    pub(super) acquired: Units,
    /// A position under way: the total it asks for and when it was last proposed.
    pub(super) asked: Option<(Units, Mono)>,
    /// Units returned under this epoch, as stated.
    pub(super) returned: Units,
    /// The part of `returned` that the ledger confirmed.
    pub(super) returned_known: Units,
    /// When `returned` was last proposed.
    pub(super) returned_at: Mono,
    /// The pool.
    pub(super) available: Units,
    /// Net of dropped rows; below 0 when they surrendered carried units.
    pub(super) gone: i128,
    pub(super) rows: BTreeMap<Boot, Row>,
    pub(super) recall: RecallState,
    /// Each boot's opening that ended on its word: units granted meanwhile come with a repeat of that word.
    closed: BTreeMap<Boot, Closed>,
    /// When units last moved; an idle pool is returned.
    pub(super) moved_at: Mono,
}

/// What was granted to one edge boot under one `lease_no`.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) lease_no: LeaseNo,
    pub(super) carried: Units,
    pub(super) granted_total: Units,
    pub(super) surrendered_total: Units,
    /// The part of `granted_total` that did not come back.
    kept: Units,
    pub(super) want_total: Units,
    pub(super) need_total: Units,
    pub(super) demand: Units,
    /// When its edge last asked: a wish without a waiting check fades after [`WISH_MS`].
    pub(super) asked_at: Mono,
    /// When the need that is not met yet was first heard of: the order of serving.
    pub(super) waiting_since: Option<Mono>,
    /// Whether its grants were waited for once already: see [`Book::take_held`].
    awaited: bool,
}

/// Takes back up to `stated` units from where they may come: of an opening's own grants, then of what its boot
/// carries from others, then of what was out before the book. Answers how many there were.
fn take_back<const N: usize>(stated: Units, sources: [&mut Units; N]) -> Units {
    let mut rest = stated;
    for source in sources {
        let part = rest.min(*source);
        *source = source.saturating_sub(part);
        rest = rest.saturating_sub(part);
    }
    stated.saturating_sub(rest)
}

impl Row {
    pub(super) fn waits(&self) -> bool {
        self.granted_total < self.need_total
    }

    fn net(&self) -> i128 {
        i128::from(self.granted_total).saturating_sub(i128::from(self.surrendered_total))
    }
}

/// The recall of an account.
#[derive(Clone, Debug, Default)]
pub(super) struct RecallState {
    /// The newest one's number; 0 before the first.
    pub(super) number: u64,
    /// The newest one until it ends: who has not answered, whether it brought units.
    pub(super) open: Option<OpenRecall>,
    /// When the newest went out.
    sent_at: Option<Mono>,
    /// The pause after one that brought nothing; doubles.
    pause_ms: u64,
    /// Whether units were granted since the newest went out, or reached their edge after it did: an edge may
    /// hold them idle, so nobody may be refused before the next.
    granted_since: bool,
    /// Whom the newest spared, and whether what that edge holds is known all the same: the one before asked it,
    /// and nothing was granted since.
    spared: Option<(Boot, bool)>,
    /// Whether one comes as soon as its pause is over.
    pub(super) soon: bool,
}

impl RecallState {
    /// Whether the answer to a waiting edge hangs on a recall.
    pub(super) fn decides(&self, waiting: Boot) -> bool {
        self.open.is_some() || (self.soon && self.has_news(waiting))
    }

    /// Whether the next may go out, for an edge that waits.
    pub(super) fn is_due(&self, now: Mono, waiting: Boot) -> bool {
        let pause_ms = if self.has_news(waiting) {
            RECALL_WAIT_MS
        } else {
            self.pause_ms
        };
        self.sent_at
            .is_none_or(|sent_at| now.since_ms(sent_at) >= pause_ms)
    }

    /// Whether one would tell an edge that waits more than the last did: units were granted since, or it spared
    /// another edge, which may hold some idle.
    pub(super) fn has_news(&self, waiting: Boot) -> bool {
        let another = |(spared, is_known): (Boot, bool)| spared != waiting && !is_known;
        self.sent_at.is_none()
            || self.granted_since
            || (self.spared.is_some_and(another) && !crate::planted::spared_edge_never_asked())
    }

    /// Recalls from these edges, all but the one that waits.
    pub(super) fn begin(&mut self, now: Mono, number: u64, waiting: Boot, from: BTreeSet<Boot>) {
        let was_asked = self.spared.is_some_and(|(spared, _)| spared != waiting);
        self.spared = Some((waiting, was_asked && !self.granted_since));
        self.sent_at = Some(now);
        self.granted_since = false;
        self.soon = false;
        self.number = number;
        self.open = Some(OpenRecall {
            unanswered: from,
            brought: false,
        });
    }

    /// Ends the open one when all have answered or gone, or its time is over. Answers whether one is open still.
    pub(super) fn end(&mut self, now: Mono, connected: &BTreeSet<Boot>) -> bool {
        let Some(recall) = &mut self.open else {
            return false;
        };
        recall.unanswered.retain(|boot| connected.contains(boot));
        let waited_ms = self.sent_at.map_or(0, |sent_at| now.since_ms(sent_at));
        if !recall.unanswered.is_empty() && waited_ms < RECALL_WAIT_MS {
            return true;
        }
        self.pause_ms = match (recall.brought, self.pause_ms) {
            (true, _) | (false, 0) => RECALL_PAUSE_MS,
            (false, last) => last.saturating_mul(2).min(RECALL_PAUSE_MS_MAX),
        };
        self.open = None;
        false
    }
}

#[derive(Clone, Debug)]
pub(super) struct OpenRecall {
    pub(super) unanswered: BTreeSet<Boot>,
    pub(super) brought: bool,
}

/// An opening that ended on its edge's word. A grant that crossed that word is surrendered under the same
/// number, and nowhere else.
#[derive(Clone, Copy, Debug)]
struct Closed {
    lease_no: LeaseNo,
    carried: Units,
    granted_total: Units,
    surrendered_total: Units,
    awaited: bool,
}

/// What a line of a `Lease` met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opening {
    /// The row stands (opened now or before).
    Row,
    /// The row stands; what it is said to have surrendered cannot all have been its edge's, and counts in part.
    Overstated,
    /// Below the row's number, or at or below the watermark with no row: changes nothing. If the edge is
    /// still at that number it must draw a new one.
    Stale,
    /// The word of an opening that had ended on it before: what it was granted and surrendered in all.
    ClosedBefore(Units, Units),
}

impl Book {
    /// A new one, while `before` units are out under former epochs.
    pub(super) fn new(before: Units) -> Self {
        Self {
            before,
            ..Self::default()
        }
    }

    /// Finds or opens the row a line speaks of, and takes in what it surrenders.
    pub(super) fn take_line(
        &mut self,
        now: Mono,
        boot: Boot,
        line: &LeaseLine,
        watermark: &mut LeaseNo,
    ) -> Opening {
        match self.rows.get(&boot).map(|row| row.lease_no) {
            Some(open) if line.lease_no < open => return Opening::Stale,
            Some(open) if line.lease_no > open => {
                self.drop_row(boot, watermark);
                self.open_row(now, boot, line.lease_no, line.carried);
            }
            Some(_) => {}
            None if line.lease_no <= *watermark && !crate::planted::no_watermark() => {
                return self.take_last_word(now, boot, line);
            }
            None => self.open_row(now, boot, line.lease_no, line.carried),
        }
        let Some(row) = self.rows.get_mut(&boot) else {
            unreachable!("the row was found or opened above");
        };
        row.asked_at = now;
        row.demand = line.demand;
        row.want_total = row.want_total.max(line.want_total);
        row.need_total = row.need_total.max(line.need_total.min(line.want_total));
        if row.waits() {
            row.waiting_since.get_or_insert(now);
        }
        let most = row.carried.saturating_add(row.granted_total);
        let surrendered = line.surrendered_total.min(most).max(row.surrendered_total);
        let stated = surrendered.saturating_sub(row.surrendered_total);
        let carried = self.carried_by.entry(boot).or_default();
        let growth = take_back(stated, [&mut row.kept, carried, &mut self.before]);
        row.surrendered_total = row.surrendered_total.saturating_add(growth);
        if growth > 0 {
            // Who hands in units wishes for no more than the same line says: what it wished for before must
            // not bring them straight back while another edge asks in vain.
            row.want_total = line.want_total.max(row.need_total).max(row.granted_total);
            self.available = self.available.saturating_add(growth);
            self.moved_at = now;
            if let Some(recall) = &mut self.recall.open {
                recall.brought = true;
            }
        }
        self.assert_balanced();
        if growth < stated {
            return Opening::Overstated;
        }
        Opening::Row
    }

    /// Drops the row of an opening that ends on its edge's word. Answers what it was granted and surrendered.
    pub(super) fn close_row(&mut self, boot: Boot, watermark: &mut LeaseNo) -> (Units, Units) {
        let Some(row) = self.rows.get(&boot) else {
            return (0, 0);
        };
        let closed = Closed {
            lease_no: row.lease_no,
            carried: row.carried,
            granted_total: row.granted_total,
            surrendered_total: row.surrendered_total,
            awaited: row.awaited,
        };
        self.drop_row(boot, watermark);
        self.closed.insert(boot, closed);
        (closed.granted_total, closed.surrendered_total)
    }

    /// The word of an opening that may have ended on it before: what is handed in beyond that counts.
    fn take_last_word(&mut self, now: Mono, boot: Boot, line: &LeaseLine) -> Opening {
        let same = |closed: &&mut Closed| line.closing && closed.lease_no == line.lease_no;
        let Some(closed) = self.closed.get_mut(&boot).filter(same) else {
            return Opening::Stale;
        };
        let most = closed.carried.saturating_add(closed.granted_total);
        let stated = line.surrendered_total.min(most);
        let carried = self.carried_by.entry(boot).or_default();
        let growth = take_back(
            stated.saturating_sub(closed.surrendered_total),
            [carried, &mut self.before],
        );
        closed.surrendered_total = closed.surrendered_total.saturating_add(growth);
        let answer = Opening::ClosedBefore(closed.granted_total, closed.surrendered_total);
        if growth > 0 {
            self.gone = self.gone.saturating_sub(i128::from(growth));
            self.available = self.available.saturating_add(growth);
            self.moved_at = now;
            if let Some(recall) = &mut self.recall.open {
                recall.brought = true;
            }
        }
        self.assert_balanced();
        answer
    }

    /// An edge answered the newest recall. It is not waited for any more; but where it had not seen all that it
    /// was granted, the recall overtook a grant, and what it holds will be known only from the next one. Answers
    /// whether that is so. It is so once for every grant: an edge that it never reaches keeps others waiting
    /// for one more recall, not for ever.
    pub(super) fn take_held(&mut self, held: &Held) -> bool {
        if let Some(open) = &mut self.recall.open {
            open.unanswered.remove(&held.boot);
        }
        let row = self.rows.get_mut(&held.boot);
        let row = row.map(|row| (row.lease_no, row.granted_total, &mut row.awaited));
        // An edge that has taken an opening's last word is at no number, or at a later one.
        let closed = self.closed.get_mut(&held.boot);
        let closed = closed.filter(|closed| closed.lease_no == held.lease_no);
        let closed =
            closed.map(|closed| (closed.lease_no, closed.granted_total, &mut closed.awaited));
        let Some((lease_no, granted_total, awaited)) = row.or(closed) else {
            return false;
        };
        let seen = match held.lease_no.cmp(&lease_no) {
            Ordering::Less => 0,
            Ordering::Equal => held.granted_seen,
            // It has left that opening: whatever of it is still under way will not be taken in.
            Ordering::Greater => granted_total,
        };
        let overtaken = seen < granted_total
            && !std::mem::replace(awaited, true)
            && !crate::planted::held_taken_as_final();
        self.recall.granted_since |= overtaken;
        overtaken
    }

    pub(super) fn open_row(&mut self, now: Mono, boot: Boot, lease_no: LeaseNo, carried: Units) {
        self.closed.remove(&boot);
        self.rows.insert(
            boot,
            Row {
                lease_no,
                carried,
                granted_total: 0,
                surrendered_total: 0,
                kept: 0,
                want_total: 0,
                need_total: 0,
                demand: 0,
                asked_at: now,
                waiting_since: None,
                awaited: false,
            },
        );
    }

    /// Drops a row: its net goes to `gone`, its number to the watermark. Answers its `granted_total`.
    pub(super) fn drop_row(&mut self, boot: Boot, watermark: &mut LeaseNo) -> Option<Units> {
        let row = self.rows.remove(&boot)?;
        *watermark = (*watermark).max(row.lease_no);
        let carried = self.carried_by.entry(boot).or_default();
        *carried = carried.saturating_add(row.kept);
        self.gone = self.gone.saturating_add(row.net());
        if crate::planted::dropped_row_frees_its_units() {
            self.free_gone(row.net());
        }
        self.assert_balanced();
        Some(row.granted_total)
    }

    /// Boots that never speak again repeat nothing. What they were granted may be carried by the next boot of
    /// the same process, so it counts as out before.
    pub(super) fn forget_boots(&mut self, gone: impl Fn(&Boot) -> bool) {
        let before = &mut self.before;
        self.carried_by.retain(|boot, units| {
            let gone = gone(boot);
            if gone {
                *before = before.saturating_add(*units);
            }
            *units > 0 && !gone
        });
        self.closed.retain(|boot, _| !gone(boot));
    }

    /// Planted faults only: what must never happen to a dropped row's units.
    pub(super) fn free_gone(&mut self, net: i128) {
        if let Ok(units) = Units::try_from(net) {
            self.gone = self.gone.saturating_sub(net);
            self.available = self.available.saturating_add(units);
        }
    }

    /// The net of a row, for the planted fault that frees it.
    pub(super) fn row_net(&self, boot: Boot) -> i128 {
        self.rows.get(&boot).map_or(0, Row::net)
    }

    /// Takes an answered `acquired_total` in. Only its growth ends the wait for an answer: a late copy of an
    /// answer says nothing of what was asked since, and a position for every copy would multiply them. What
    /// brought nothing ends when the replica shows no room, or is asked again.
    pub(super) fn take_acquired(&mut self, now: Mono, acquired_total: Units) {
        if acquired_total > self.acquired {
            self.asked = None;
            let growth = acquired_total.saturating_sub(self.acquired);
            self.acquired = acquired_total;
            self.available = self.available.saturating_add(growth);
            self.moved_at = now;
        }
        self.assert_balanced();
    }

    /// Serves the rows from the pool, those that wait first and longest first; answers who got units, and how many.
    ///
    /// `room` is what the ledger could still give: with the pool, it is "what is left". While a row waits for
    /// more than the pool has, wishes are not served.
    pub(super) fn grant(&mut self, now: Mono, room: Units) -> (Vec<Boot>, Units) {
        let mut served = Vec::new();
        let mut granted: Units = 0;
        let mut in_vain = false;
        for boot in self.order_of_serving() {
            let left = room.saturating_add(self.available);
            let Some(row) = self.rows.get_mut(&boot) else {
                continue;
            };
            if in_vain && !row.waits() {
                // What was recalled for a check must not go back to fill another edge's stock.
                break;
            }
            let units = row.due(now, left).min(self.available);
            let missing = row.need_total.saturating_sub(row.granted_total);
            if units == 0 || units < missing {
                in_vain |= row.waits();
                continue;
            }
            self.available = self.available.saturating_sub(units);
            row.granted_total = row.granted_total.saturating_add(units);
            row.kept = row.kept.saturating_add(units);
            row.awaited = false;
            if !row.waits() {
                // A wish is served once. Kept, it would get part after part of what is left without any use.
                row.want_total = row.granted_total;
                row.waiting_since = None;
            }
            self.moved_at = now;
            self.recall.granted_since = true;
            granted = granted.saturating_add(units);
            served.push(boot);
        }
        self.assert_balanced();
        (served, granted)
    }

    fn order_of_serving(&self) -> Vec<Boot> {
        let mut order: Vec<(bool, Mono, Boot)> = self
            .rows
            .iter()
            .filter(|(_, row)| row.granted_total < row.want_total)
            .map(|(boot, row)| {
                (
                    row.waiting_since.is_none(),
                    row.waiting_since.unwrap_or(row.asked_at),
                    *boot,
                )
            })
            .collect();
        order.sort_unstable();
        order.into_iter().map(|(_, _, boot)| boot).collect()
    }

    /// Who has waited longest of those that a recall would tell more than the last did, or of all.
    pub(super) fn first_waiting(&self) -> Option<Boot> {
        self.rows
            .iter()
            .filter(|(_, row)| row.waits())
            .min_by_key(|(boot, row)| (!self.recall.has_news(**boot), row.waiting_since, **boot))
            .map(|(boot, _)| *boot)
    }

    /// A refused row waits no more: its edge asks again when a check wants units.
    pub(super) fn stop_waiting(&mut self, boot: Boot) {
        if let Some(row) = self.rows.get_mut(&boot) {
            row.need_total = row.granted_total;
            row.want_total = row.granted_total;
            row.waiting_since = None;
        }
    }

    /// What the rows are due beyond the pool, if `room` more could be had.
    pub(super) fn shortfall(&self, now: Mono, room: Units) -> Units {
        let left = room.saturating_add(self.available);
        let due = self
            .rows
            .values()
            .map(|row| row.due(now, left))
            .fold(0, Units::saturating_add);
        due.saturating_sub(self.available)
    }

    /// Demand of all rows, units per second.
    pub(super) fn demand(&self) -> Units {
        self.rows
            .values()
            .map(|row| row.demand)
            .fold(0, Units::saturating_add)
    }

    /// Puts the pool into `returned`; the caller states it to the ledger.
    pub(super) fn return_pool(&mut self, now: Mono) {
        self.returned = self.returned.saturating_add(self.available);
        self.available = 0;
        self.moved_at = now;
        self.assert_balanced();
    }

    /// I2.
    pub(super) fn assert_balanced(&self) {
        debug_assert_eq!(
            i128::from(self.acquired),
            self.rows
                .values()
                .map(Row::net)
                .chain([
                    i128::from(self.available),
                    self.gone,
                    i128::from(self.returned)
                ])
                .fold(0, i128::saturating_add),
            "I2: acquired = available + Σ(granted − surrendered) + gone + returned"
        );
    }
}

impl Row {
    /// The grant this row is due when `left` units are there for all: what it wants, at most 1/20 of what
    /// is left, but never less than a waiting check needs.
    fn due(&self, now: Mono, left: Units) -> Units {
        if !self.waits() && now.since_ms(self.asked_at) > WISH_MS {
            return 0;
        }
        let wanted = self.want_total.saturating_sub(self.granted_total);
        let missing = self.need_total.saturating_sub(self.granted_total);
        let part = left / GRANT_PART;
        wanted.min(part.max(missing).max(1))
    }
}
