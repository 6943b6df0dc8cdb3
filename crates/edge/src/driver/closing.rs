//! The end of an edge: no more checks, everything handed in, everything reported, the session ended.
//!
//! In this order, each step once the one before is complete: running checks end (they may put units back),
//! use is collected for the last time, units leave the cells, reports are acknowledged, the session closes.
//! A deadline ends it wherever it is; the answer says what was left.

use super::writer::Step;
use super::{Driver, Mono};
use crate::counts::Quiet;
use crate::journal::JournalEntry;
use crate::status::Left;
use std::time::Duration;
use tokio::sync::oneshot;
use tollgate_core::command::ReportReply;
use tollgate_core::ids::NodeId;
use tollgate_core::lessee::Cell;
use tollgate_core::message::SessionAnswer;

/// An unanswered end of the session is sent again, to another node, after this.
const CLOSE_AGAIN_MS: u64 = 500;

/// See the module's text.
pub(super) struct Closing {
    until: Mono,
    done: oneshot::Sender<Left>,
    left: Option<Left>,
    quiet: Quiet,
    /// The last use is collected and units are on their way back.
    handed_in: bool,
    asked: Option<(NodeId, Mono)>,
    closed: bool,
}

impl Driver {
    pub(super) fn begin_closing(
        &mut self,
        now: Mono,
        deadline: Duration,
        done: oneshot::Sender<Left>,
    ) {
        if self.closing.is_some() {
            return;
        }
        self.view.set_open(false);
        let ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
        self.closing = Some(Closing {
            until: now.plus_ms(ms),
            done,
            left: None,
            quiet: Quiet::default(),
            handed_in: false,
            asked: None,
            closed: false,
        });
    }

    pub(super) fn handle_closed(&mut self, answer: &SessionAnswer) {
        let (Some(closing), Some(reporter)) = (&mut self.closing, &self.reports.reporter) else {
            return;
        };
        if !reporter.concerns(answer) {
            return;
        }
        match answer.reply {
            ReportReply::Settled { .. } | ReportReply::Expired => {
                closing.closed = true;
                self.reports
                    .writer
                    .push([Step::Append(JournalEntry::Closed)]);
            }
            _ => {
                closing.asked = None;
                self.handle_report_answer(answer);
            }
        }
    }

    pub(super) fn pump_closing(&mut self, now: Mono) {
        let Some(closing) = &mut self.closing else {
            return;
        };
        if !closing.handed_in && closing.quiet.is_reached(&self.view.counts.look()) {
            closing.handed_in = true;
            self.collect(now);
            self.lessee.surrender_all();
            return;
        }
        let written = self.reports.writer.is_idle();
        let over = now >= closing.until || self.session.is_over() || (closing.closed && written);
        if over {
            self.finish_closing();
            return;
        }
        let ready = closing.handed_in
            && self.lessee.surrendered_everything()
            && self.reports.is_settled()
            && written
            && !closing.closed;
        let due = closing
            .asked
            .is_none_or(|(_, at)| now.since_ms(at) >= CLOSE_AGAIN_MS);
        if !(ready && due) || self.session.boot().is_none() {
            return;
        }
        let except = closing.asked.map(|(node, _)| node);
        let last_seq = self
            .reports
            .reporter
            .as_ref()
            .map(tollgate_core::reporter::Reporter::last_seq);
        if let Some(to) = self.nodes.any(except)
            && self.send_close(to, last_seq.unwrap_or_default())
            && let Some(closing) = &mut self.closing
        {
            closing.asked = Some((to, now));
        }
    }

    fn finish_closing(&mut self) {
        let cells = self.lessee.cells().map(|(_, cell)| cell.free());
        let left = Left {
            units: cells.fold(0, u64::saturating_add),
            reports: self.reports.unacknowledged(),
            closed: self.closing.as_ref().is_some_and(|closing| closing.closed),
        };
        if !self.session.is_over() {
            self.session.set_closed();
        }
        if let Some(closing) = &mut self.closing {
            closing.left = Some(left);
        }
    }

    /// Whom to tell what was left, once everything of this edge is gone.
    pub(super) fn take_end(&mut self) -> Option<(oneshot::Sender<Left>, Left)> {
        let closing = self.closing.take()?;
        Some((closing.done, closing.left?))
    }

    /// Whether the driver has nothing more to do.
    pub(super) fn is_over(&self) -> bool {
        self.closing
            .as_ref()
            .is_some_and(|closing| closing.left.is_some())
    }
}
