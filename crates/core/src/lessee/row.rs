//! One account at the edge: the totals of its opening, and what it wants next.
//!
//! Owns the arithmetic of grants and surrenders; the module above owns numbers, routes and messages.

use super::{Cell, Refusal};
use crate::account::AccountId;
use crate::ids::{Epoch, LeaseNo, Revision, Units};
use crate::message::{AnswerLine, LeaseLine, LeaseState};
use crate::time::Mono;

/// Asking ahead starts when the cell holds less than this many seconds of demand …
const LOW_SECONDS: Units = 4;
/// … and asks for this many.
const FULL_SECONDS: Units = 8;
/// Accounts of little demand ask for as much as they used so far, up to this: 1, 2, 4 … 64.
const GROWTH_MAX: Units = 64;
/// A cell unused for this long keeps nothing from a recall and asks for nothing ahead, whatever its smoothed
/// demand still says: that takes half a minute to fall from a million.
const QUIET_MS: u64 = 1000;
/// A cell unused for this long is handed in.
const IDLE_MS: u64 = 30_000;
/// First pause before a request without an answer is repeated; doubles.
const REPEAT_MS: u64 = 20;
/// The pause doubles up to this.
const REPEAT_MS_MAX: u64 = 1000;
/// Weight of a new sample of demand when it rises (1/2) and when it falls (1/8).
const RISE: u64 = 2;
const FALL: u64 = 8;

/// See the module's text.
pub(super) struct Row<C> {
    pub(super) cell: C,
    /// The number of a `Resolve` that may have opened this row at the issuer, until an answer is taken.
    resolved: Option<LeaseNo>,
    /// The need that the issuer may be judging beyond `need_total`, for a `Resolve` may have asked: any until the
    /// first answer, then the one it named last, until it was granted or refused.
    judging: Units,
    /// Whether an answer was taken under this opening, and the highest number one was ever taken under.
    answered: bool,
    taken: LeaseNo,
    /// The issuer's epoch this opening belongs to; `None` while no opening stands.
    epoch: Option<Epoch>,
    lease_no: LeaseNo,
    carried: Units,
    granted_seen: Units,
    want_total: Units,
    need_total: Units,
    surrendered_total: Units,
    surrender_taken: Units,
    closing: bool,
    /// Smoothed use in units per second, and the last sample's time and count.
    demand: Units,
    sampled: (Mono, Units),
    used_at: Mono,
    refusal: Option<(Refusal, Revision)>,
    sent_at: Option<Mono>,
    pause_ms: u64,
}

impl<C: Cell> Row<C> {
    /// A row without an opening; `taken`: grants under this number and below may have been taken already.
    pub(super) fn new(now: Mono, cell: C, taken: LeaseNo) -> Self {
        let used = cell.used();
        Self {
            cell,
            resolved: None,
            judging: Units::MAX,
            answered: false,
            taken,
            epoch: None,
            lease_no: LeaseNo(0),
            carried: 0,
            granted_seen: 0,
            want_total: 0,
            need_total: 0,
            surrendered_total: 0,
            surrender_taken: 0,
            closing: false,
            demand: 0,
            sampled: (now, used),
            used_at: now,
            refusal: None,
            sent_at: None,
            pause_ms: REPEAT_MS,
        }
    }

    /// Whether no opening stands: nothing was asked, or the last one was closed.
    pub(super) fn unbound(&self) -> bool {
        self.epoch.is_none()
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing
    }

    /// The highest number that an answer was ever taken under.
    pub(super) fn taken(&self) -> LeaseNo {
        self.taken
    }

    pub(super) fn bound_to(&self) -> Option<Epoch> {
        self.epoch
    }

    /// The opening that stands and what was granted under it so far; zeros where none does.
    pub(super) fn seen(&self) -> (LeaseNo, Units) {
        match self.epoch {
            Some(_) => (self.lease_no, self.granted_seen),
            None => (LeaseNo(0), 0),
        }
    }

    /// Begins an opening; what is in the cell is carried.
    pub(super) fn bind_new(&mut self, lease_no: LeaseNo, epoch: Epoch) {
        self.answered = false;
        self.epoch = Some(epoch);
        if !(crate::planted::idle_account_reopened_at_zero() && self.lease_no > LeaseNo(0)) {
            self.lease_no = lease_no;
        }
        self.carried = self.cell.free();
        self.judging = Units::MAX;
        self.granted_seen = 0;
        self.want_total = 0;
        self.need_total = 0;
        self.surrendered_total = 0;
        self.surrender_taken = 0;
        self.closing = false;
        self.sent_at = None;
        self.pause_ms = REPEAT_MS;
    }

    /// Begins an opening in place of another; a check that waited still waits. Answers whether the issuer
    /// must hear of it at once.
    pub(super) fn redraw(&mut self, lease_no: LeaseNo, epoch: Epoch) -> bool {
        let waited = self.lacks();
        let (surrendered, lost) = (
            self.surrendered_total,
            self.surrendered_total.saturating_sub(self.surrender_taken),
        );
        self.bind_new(lease_no, epoch);
        if crate::planted::surrendered_total_kept_into_the_next_epoch() {
            self.surrendered_total = surrendered;
        }
        if crate::planted::surrender_resent_to_the_next_issuer() {
            self.carried = self.carried.saturating_add(lost);
            self.surrendered_total = lost;
        }
        if waited > 0 {
            self.want_total = waited;
            self.need_total = waited;
        }
        self.has_something_to_say()
    }

    /// A check lacks units: it found less than `need`. Answers whether to ask.
    pub(super) fn want(&mut self, now: Mono, need: Units) -> bool {
        let missing = need.saturating_sub(self.cell.free());
        if missing == 0 {
            return false;
        }
        self.closing = false;
        let need_total = self.granted_seen.saturating_add(missing);
        if need_total > self.need_total {
            self.need_total = need_total;
            self.sent_at = None;
            self.pause_ms = REPEAT_MS;
        }
        let more = self.target().max(need).saturating_sub(self.cell.free());
        self.want_total = self
            .want_total
            .max(self.granted_seen.saturating_add(more.max(missing)));
        self.used_at = now;
        true
    }

    /// How much the cell should hold for what was seen of its use.
    fn target(&self) -> Units {
        let by_demand = self.demand.saturating_mul(FULL_SECONDS);
        by_demand.max(self.cell.used().clamp(1, GROWTH_MAX))
    }

    /// What checks wait for beyond what was granted.
    pub(super) fn lacks(&self) -> Units {
        self.need_total.saturating_sub(self.granted_seen)
    }

    /// What a `none_now` that was taken refuses beyond what was granted; `None` where it comes late: more was
    /// granted since, or nobody waits for as much as it judged.
    pub(super) fn refused_need(&self, line: &AnswerLine) -> Option<Units> {
        if crate::planted::refusal_answers_any_need() {
            return Some(self.lacks()).filter(|need| *need > 0);
        }
        let need = line.need_total.saturating_sub(self.granted_seen);
        let is_newest = line.granted_total == self.granted_seen;
        let waits = line.need_total <= self.need_total.max(self.judging);
        (need > 0 && is_newest && waits).then_some(need)
    }

    /// The issuer is judging this need.
    pub(super) fn note_judging(&mut self, need_total: Units) {
        self.judging = need_total;
    }

    pub(super) fn stop_waiting(&mut self) {
        self.need_total = self.granted_seen;
        self.want_total = self.granted_seen;
    }

    /// A `Resolve` that named this account was answered: its number may be the one that the issuer opened.
    /// Never one at or below a number whose grants were taken already: they would count twice.
    pub(super) fn offer(&mut self, resolved: LeaseNo) {
        if resolved > self.taken {
            self.resolved = Some(resolved);
        }
    }

    /// Begins the opening that a `Resolve` may have begun at the issuer, whose answer did not come or came
    /// from another node: under another number, what it granted would be lost. Answers whether there is one.
    pub(super) fn bind_resolved(&mut self, epoch: Epoch) -> bool {
        let Some(resolved) = self.resolved else {
            return false;
        };
        self.bind_new(resolved, epoch);
        self.carried = 0;
        true
    }

    /// Whether an answer belongs to this opening. A row without any answer yet binds to the number of the
    /// `Resolve` that opened it at the issuer, whether or not it drew one of its own meanwhile.
    pub(super) fn takes(&mut self, epoch: Epoch, lease_no: LeaseNo) -> bool {
        let fits = self.epoch.is_none_or(|bound| bound == epoch);
        if self.resolved == Some(lease_no) && !self.answered && fits {
            self.redraw(lease_no, epoch);
            // A `Resolve` does not say what is carried: the issuer fixed it at 0.
            self.carried = 0;
        }
        if crate::planted::answers_to_an_old_lease_no_accepted() {
            return self.epoch.is_some();
        }
        let takes = self.epoch == Some(epoch) && self.lease_no == lease_no;
        if takes {
            self.answered = true;
            self.taken = self.taken.max(lease_no);
            self.resolved = None;
        }
        takes
    }

    /// Takes the growth of what was granted into the cell; answers it.
    pub(super) fn take_grant(&mut self, granted_total: Units) -> Units {
        let growth = granted_total.saturating_sub(self.granted_seen);
        if growth > 0 {
            self.granted_seen = granted_total;
            self.cell.deposit(growth);
            self.pause_ms = REPEAT_MS;
        }
        if self.granted_seen >= self.need_total && self.want_total > self.granted_seen {
            // The rest was a wish: it is asked for again when it is still needed.
            self.want_total = self.granted_seen;
        }
        growth
    }

    pub(super) fn note_surrender_taken(&mut self, surrendered_total: Units) {
        self.surrender_taken = self.surrender_taken.max(surrendered_total);
    }

    pub(super) fn set_refusal(&mut self, refusal: Option<Refusal>, revision: Revision) {
        self.judging = 0;
        self.refusal = refusal.map(|refusal| (refusal, revision));
        self.cell.set_refusal(refusal);
    }

    /// Units were handed in, and can be had again: a refusal that was about what the cell lacks besides them is
    /// about so much more.
    fn raise_refused_need(&mut self, units: Units) {
        if let Some((refusal, _)) = &mut self.refusal
            && refusal.state == LeaseState::NoneNow
        {
            refusal.need = refusal.need.saturating_add(units);
            self.cell.set_refusal(Some(*refusal));
        }
    }

    pub(super) fn forget_refusal_below(&mut self, revision: Revision) {
        let planted = crate::planted::none_for_good_remembered_across_a_raise();
        if let Some((_, at)) = self.refusal
            && at < revision
            && !planted
        {
            self.set_refusal(None, revision);
        }
    }

    /// The issuer dropped the row on our word. Units that came with the answer stay in the cell and are
    /// carried into the next opening. What was handed in since that word goes on being stated under the same
    /// number until the issuer has taken it: no other opening can.
    pub(super) fn close(&mut self) {
        if !self.closing || self.surrendered_total > self.surrender_taken {
            return;
        }
        self.epoch = None;
        self.answered = false;
        self.closing = false;
        self.want_total = 0;
        self.need_total = 0;
        self.granted_seen = 0;
        self.surrendered_total = 0;
        self.surrender_taken = 0;
    }

    /// Takes idle units out of the cell for the issuer: all while a check waits in vain for more than
    /// there is or nothing was used lately, else what exceeds a quarter second of demand, of which at most
    /// `keep` stays. Answers how many.
    pub(super) fn surrender_idle(&mut self, now: Mono, keep: Units) -> Units {
        let free = self.cell.free();
        let waits = self.lacks() > 0;
        let keep = if waits || self.is_quiet(now) {
            0
        } else {
            keep.min(self.demand / 4)
        };
        self.surrender(free.saturating_sub(keep))
    }

    fn is_quiet(&self, now: Mono) -> bool {
        self.cell.used() == self.sampled.1 && now.since_ms(self.used_at) >= QUIET_MS
    }

    /// What the issuer can still count as surrendered under this opening.
    fn countable(&self) -> Units {
        self.carried
            .saturating_add(self.granted_seen)
            .saturating_sub(self.surrendered_total)
    }

    /// Whether the cell holds units that this opening cannot hand in: they came with the last word of a
    /// closed one, or a `Resolve` opened the row. A new opening carries them.
    pub(super) fn cannot_state_its_cell(&self) -> bool {
        let countable = if self.unbound() { 0 } else { self.countable() };
        self.cell.free() > countable
    }

    fn surrender(&mut self, at_most: Units) -> Units {
        let countable = self.countable();
        let units = self.cell.withdraw(at_most.min(countable));
        self.surrendered_total = self.surrendered_total.saturating_add(units);
        if units > 0 {
            self.sent_at = None;
            self.pause_ms = REPEAT_MS;
            self.raise_refused_need(units);
        }
        units
    }

    /// Hands in the whole cell and ends the opening.
    pub(super) fn surrender_everything(&mut self) -> Units {
        if self.unbound() {
            return 0;
        }
        let units = self.surrender(Units::MAX);
        self.stop_waiting();
        self.closing = true;
        units
    }

    /// Samples the cell; asks ahead, or hands an idle cell in. Answers what was surrendered.
    pub(super) fn observe(&mut self, now: Mono) -> Units {
        let used = self.cell.used();
        let (at, before) = self.sampled;
        let elapsed = now.since_ms(at);
        if elapsed == 0 {
            return 0;
        }
        let spent = used.saturating_sub(before);
        self.sampled = (now, used);
        if spent > 0 {
            self.used_at = now;
        }
        let sample = spent.saturating_mul(1000).checked_div(elapsed).unwrap_or(0);
        let weight = if sample > self.demand { RISE } else { FALL };
        let kept = self.demand.saturating_mul(weight.saturating_sub(1));
        self.demand = kept.saturating_add(sample).checked_div(weight).unwrap_or(0);
        if self.unbound() {
            return 0;
        }
        if now.since_ms(self.used_at) >= IDLE_MS && !self.closing {
            return self.hand_in();
        }
        let low = self.demand.saturating_mul(LOW_SECONDS);
        let free = self.cell.free();
        if self.refusal.is_none() && free < low && !self.closing && !self.is_quiet(now) {
            let more = self
                .demand
                .saturating_mul(FULL_SECONDS)
                .saturating_sub(free);
            self.want_total = self.want_total.max(self.granted_seen.saturating_add(more));
        }
        0
    }

    fn hand_in(&mut self) -> Units {
        if crate::planted::idle_account_reopened_at_zero() {
            let units = self.surrender(Units::MAX);
            self.epoch = None;
            return units;
        }
        self.surrender_everything()
    }

    /// Whether the issuer has to hear something: a want, a surrender not taken yet, the end.
    pub(super) fn has_something_to_say(&self) -> bool {
        self.epoch.is_some()
            && (self.want_total > self.granted_seen
                || self.surrendered_total > self.surrender_taken
                || self.closing)
    }

    /// When it is time to say it (again); `None` where there is nothing to say.
    pub(super) fn due_at(&self) -> Option<Mono> {
        let at = |sent: Mono| sent.plus_ms(self.pause_ms);
        self.has_something_to_say()
            .then(|| self.sent_at.map_or(Mono(0), at))
    }

    /// The line went out at `now`, with so many messages at the same time: an issuer answers the last of them
    /// later, and saying all of it again meanwhile would only make that worse. Answers when it is due again.
    pub(super) fn wait_for_answer(&mut self, now: Mono, messages: u64) -> Mono {
        let enough = REPEAT_MS.saturating_mul(messages).min(REPEAT_MS_MAX);
        self.pause_ms = self.pause_ms.max(enough);
        now.plus_ms(self.pause_ms)
    }

    /// The line to send.
    pub(super) fn line(&mut self, now: Mono, account: &AccountId) -> LeaseLine {
        if self.sent_at.is_some() {
            self.pause_ms = self.pause_ms.saturating_mul(2).min(REPEAT_MS_MAX);
        }
        self.sent_at = Some(now);
        LeaseLine {
            account: account.clone(),
            lease_no: self.lease_no,
            carried: self.carried,
            want_total: self.want_total.max(self.granted_seen),
            need_total: self.need_total,
            surrendered_total: self.surrendered_total,
            demand: self.demand,
            closing: self.closing,
        }
    }
}
