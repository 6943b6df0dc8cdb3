//! An issuer's book of one account under one epoch: what it acquired and to which edge boots it granted it.
//!
//! **Invariant I2**: `acquired = available + Σ(granted − surrendered) + gone + returned`, checked by
//! [`Book::assert_balanced`] after every change. The book counts grants only: use is a demand hint. A row
//! that is dropped moves its net to `gone`; it never frees units. A book is never read back from another
//! epoch. Next: [`super`] for when which of this happens.

use crate::ids::{Boot, LeaseNo, Units};
use crate::message::LeaseLine;
use crate::time::Mono;
use std::collections::{BTreeMap, BTreeSet};

/// Units wanted ahead of need are granted as long as the edge asked within this time.
const WISH_MS: u64 = 2000;

/// Of one grant, at most this part of what is left (1/20 = 5 %): bounds what a killed edge strands.
const GRANT_PART: Units = 20;

/// See the module's text.
#[derive(Clone, Debug, Default)]
pub(super) struct Book {
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
    pub(super) want_total: Units,
    pub(super) need_total: Units,
    pub(super) demand: Units,
    /// When its edge last asked: a wish without a waiting check fades after [`WISH_MS`].
    pub(super) asked_at: Mono,
    /// When the need that is not met yet was first heard of: the order of serving.
    pub(super) waiting_since: Option<Mono>,
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
    /// The newest recall: its number, when it went out, who has not answered, whether it brought units.
    pub(super) open: Option<OpenRecall>,
    /// No recall before this moment.
    pub(super) not_before: Mono,
    /// The pause after one that brought nothing; doubles.
    pub(super) pause_ms: u64,
}

#[derive(Clone, Debug)]
pub(super) struct OpenRecall {
    pub(super) number: u64,
    pub(super) sent_at: Mono,
    pub(super) unanswered: BTreeSet<Boot>,
    pub(super) brought: bool,
}

/// What a line of a `Lease` met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opening {
    /// The row stands (opened now or before).
    Row,
    /// Below the row's number, or at or below the watermark with no row: changes nothing. If the edge is
    /// still at that number it must draw a new one.
    Stale,
}

impl Book {
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
                return Opening::Stale;
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
        let growth = surrendered.saturating_sub(row.surrendered_total);
        row.surrendered_total = surrendered;
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
        Opening::Row
    }

    pub(super) fn open_row(&mut self, now: Mono, boot: Boot, lease_no: LeaseNo, carried: Units) {
        self.rows.insert(
            boot,
            Row {
                lease_no,
                carried,
                granted_total: 0,
                surrendered_total: 0,
                want_total: 0,
                need_total: 0,
                demand: 0,
                asked_at: now,
                waiting_since: None,
            },
        );
    }

    /// Drops a row: its net goes to `gone`, its number to the watermark. Answers its `granted_total`.
    pub(super) fn drop_row(&mut self, boot: Boot, watermark: &mut LeaseNo) -> Option<Units> {
        let row = self.rows.remove(&boot)?;
        *watermark = (*watermark).max(row.lease_no);
        self.gone = self.gone.saturating_add(row.net());
        if crate::planted::dropped_row_frees_its_units() {
            self.free_gone(row.net());
        }
        self.assert_balanced();
        Some(row.granted_total)
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
            if !row.waits() {
                // A wish is served once. Kept, it would get part after part of what is left without any use.
                row.want_total = row.granted_total;
                row.waiting_since = None;
            }
            self.moved_at = now;
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

    /// Who has waited longest.
    pub(super) fn first_waiting(&self) -> Option<Boot> {
        self.rows
            .iter()
            .filter(|(_, row)| row.waits())
            .min_by_key(|(boot, row)| (row.waiting_since, **boot))
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
