//! Use on its way to the ledger: from cells to the reporter, to the journal, to a node.
//!
//! Owns the pace (`report_spacing`, `journal_interval`) and which node reports go to. Order, repeats and
//! "written before sent" are [`Reporter`]'s.

use super::nodes::Stream;
use super::writer::{Step, Ticket, Writer};
use super::{Driver, Mono};
use crate::journal::{Journal, JournalError, entries_of};
use std::collections::BTreeMap;
use std::time::Duration;
use tollgate_core::account::AccountId;
use tollgate_core::command::ReportReply;
use tollgate_core::ids::{NodeId, Seq, Units};
use tollgate_core::lessee::Cell;
use tollgate_core::message::{EdgeMessage, SessionAnswer};
use tollgate_core::reporter::{Event, JournalRecord, Reporter};

/// Pause before reports go to another node because one could not serve.
const ELSEWHERE_MS: u64 = 100;

/// See the module's text.
pub(super) struct Reports {
    /// From the first session on.
    pub(super) reporter: Option<Reporter>,
    pub(super) writer: Writer,
    /// Units of each account handed to the reporter.
    reported: BTreeMap<AccountId, Units>,
    /// Where reports go, as long as it answers.
    node: Option<NodeId>,
    /// Where they went last and got no answer.
    avoid: Option<NodeId>,
    /// Nothing is sent before this moment.
    not_before: Mono,
    /// A pass whose use is to be written down, and when it began.
    checkpoint_due: Option<Mono>,
    /// The checkpoint on its way to the disk: when it is there, and when its pass began.
    writing: Option<(Ticket, Mono)>,
    /// When the last pass began of which all use is on disk.
    safe_until: Option<Mono>,
    pub(super) journal_late: u64,
    /// Accounts with a cell, and the units in them, at the last look.
    pub(super) accounts: usize,
    pub(super) held: Units,
}

impl Reports {
    pub(super) fn new(journal: Option<Journal>) -> Self {
        Self {
            reporter: None,
            writer: Writer::new(journal),
            reported: BTreeMap::new(),
            node: None,
            avoid: None,
            not_before: Mono(0),
            checkpoint_due: None,
            writing: None,
            safe_until: None,
            journal_late: 0,
            accounts: 0,
            held: 0,
        }
    }

    pub(super) fn unacknowledged(&self) -> usize {
        self.reporter.as_ref().map_or(0, Reporter::unacknowledged)
    }

    pub(super) fn is_settled(&self) -> bool {
        self.reporter.as_ref().is_none_or(Reporter::is_settled)
    }

    /// A connection is new: what went by an old one of the same node may be lost.
    pub(super) fn handle_up(&mut self, node: NodeId) {
        if self.node == Some(node) {
            self.resend();
        }
    }

    /// A node is gone: reports go elsewhere.
    pub(super) fn handle_down(&mut self, now: Mono, node: NodeId) {
        if self.node == Some(node) {
            self.node = None;
            self.avoid = Some(node);
            self.not_before = now;
            self.resend();
        }
    }

    /// A node cannot serve, for example because it finds no leader: ask another one, soon.
    pub(super) fn handle_unable(&mut self, now: Mono, node: NodeId) {
        self.handle_down(now, node);
        self.not_before = now.plus_ms(ELSEWHERE_MS);
    }

    /// The use collected by the pass that began at `now` is to be on disk soon.
    pub(super) fn checkpoint_due(&mut self, now: Mono) {
        self.checkpoint_due = Some(now);
    }

    /// Looks whether the checkpoint under way is on disk, and whether it was late. `interval_ms` is what was promised.
    fn look_at_checkpoint(&mut self, now: Mono, interval_ms: u64) {
        let Some((ticket, collected_at)) = self.writing else {
            return;
        };
        if !self.writer.is_done(ticket) {
            return;
        }
        self.writing = None;
        let before = self.safe_until.replace(collected_at);
        let age_ms = before.map_or(0, |before| now.since_ms(before));
        if age_ms > interval_ms {
            self.journal_late = self.journal_late.saturating_add(1);
            tracing::warn!(
                age_ms,
                interval_ms,
                "the journal is late: a crash would have lost use that is older than journal_interval"
            );
        }
    }

    fn resend(&mut self) {
        if let Some(reporter) = &mut self.reporter {
            reporter.handle_reconnected();
        }
    }
}

pub(super) fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Driver {
    /// Hands what was used since the last call to the reporter.
    pub(super) fn collect(&mut self, now: Mono) {
        let Some(reporter) = &mut self.reports.reporter else {
            return;
        };
        (self.reports.accounts, self.reports.held) = (0, 0);
        for (account, cell) in self.lessee.cells() {
            self.reports.accounts += 1;
            self.reports.held = self.reports.held.saturating_add(cell.free());
            // Only what all-or-none admitted is in `used`.
            let used = cell.used();
            let reported = match self.reports.reported.get_mut(account) {
                Some(reported) => reported,
                None if used == 0 => continue,
                None => self.reports.reported.entry(account.clone()).or_default(),
            };
            let units = used.saturating_sub(*reported);
            *reported = used;
            reporter.add_spent(now, account, units, 0);
        }
        self.known
            .collect(now, &self.view.counts, |line| reporter.add_usage(now, line));
    }

    /// Forgets accounts of which no principal in the view, and no check under way, has the cell: so there are
    /// at most as many as [`PRINCIPALS_MAX`](crate::view::PRINCIPALS_MAX) principals have limits, and those of
    /// principals that left the view until their issuers have heard. After [`Driver::collect`].
    pub(super) fn let_go(&mut self) {
        let Self {
            lessee,
            reports,
            waiters,
            ..
        } = self;
        let reported = &mut reports.reported;
        let dropped = lessee.let_go(|account, cell| {
            // In this order: what is used is read after nobody can use any more.
            let unused = cell.is_unshared() && !waiters.has(account);
            unused && reported.get(account).copied().unwrap_or_default() == cell.used()
        });
        if dropped > 0 {
            // A cell made anew counts from zero.
            reported.retain(|account, _| lessee.cell(account).is_some());
        }
    }

    /// While a session is being opened: units that are held are spent, so their use is written down. It is
    /// sealed only under a session that is known to stand.
    pub(super) fn keep_use(&mut self, now: Mono) {
        self.pump_journal(now);
    }

    pub(super) fn pump_reports(&mut self, now: Mono) {
        let spacing_ms = if self.closing.is_some() {
            0
        } else {
            ms(self.config.report_spacing)
        };
        let Some(reporter) = &mut self.reports.reporter else {
            return;
        };
        let is_due = |reporter: &Reporter| {
            let open = reporter.open_for_ms(now);
            open.is_some_and(|open| open >= spacing_ms)
        };
        // As many as may be unacknowledged: what one report cannot hold does not wait for another second.
        while is_due(reporter) && reporter.seal() {}
        self.pump_journal(now);
        if now < self.reports.not_before {
            return;
        }
        let node = self
            .reports
            .node
            .or_else(|| self.nodes.any(self.reports.avoid));
        self.reports.node = node;
        let (Some(node), Some(reporter)) = (node, &mut self.reports.reporter) else {
            return;
        };
        while let Some(report) = reporter.poll_send(now) {
            if self
                .nodes
                .send(node, Stream::Report, EdgeMessage::Report(report))
            {
                self.traffic.reports += 1;
            }
        }
    }

    /// Sealed reports to the journal, and the use that is in none.
    fn pump_journal(&mut self, now: Mono) {
        let Some(reporter) = &mut self.reports.reporter else {
            return;
        };
        let mut records: Vec<JournalRecord> =
            std::iter::from_fn(|| reporter.poll_journal()).collect();
        let mut collected_at = None;
        if self.reports.checkpoint_due.is_some() && self.reports.writer.has_room() {
            collected_at = self.reports.checkpoint_due.take();
            records.extend(reporter.checkpoint());
        }
        let entries = records.into_iter().flat_map(entries_of);
        let ticket = self.reports.writer.push(entries.map(Step::Append));
        if let Some(collected_at) = collected_at {
            self.reports.writing = Some((ticket, collected_at));
        }
        let interval_ms = ms(self.config.journal_interval);
        self.reports.look_at_checkpoint(now, interval_ms);
    }

    /// The journal is on disk up to somewhere, or it failed.
    pub(super) fn handle_written(&mut self, written: Result<Option<Seq>, JournalError>) {
        match (written, &mut self.reports.reporter) {
            (Ok(Some(seq)), Some(reporter)) => reporter.handle_written(seq),
            (Ok(_), _) => {}
            (Err(error), _) => self.fail(format!(
                "{error}. Use can no longer be kept safe, so none is admitted; what was written is \
                 reported by the next start"
            )),
        }
    }

    pub(super) fn handle_report_answer(&mut self, answer: &SessionAnswer) {
        let Some(reporter) = &mut self.reports.reporter else {
            return;
        };
        let before = reporter.unacknowledged();
        let event = reporter.handle_answer(answer);
        let settled = before.saturating_sub(reporter.unacknowledged());
        if let ReportReply::Settled { last_seq } = &answer.reply
            && settled > 0
        {
            self.traffic.reports_settled += u64::try_from(settled).unwrap_or(u64::MAX);
            self.reports.avoid = None;
            let entries = entries_of(JournalRecord::Acknowledged(*last_seq));
            self.reports
                .writer
                .push(entries.into_iter().map(Step::Append));
        }
        match event {
            None => {}
            Some(Event::Fenced) => self.handle_fenced(),
            Some(Event::SessionLost) => self.handle_session_lost("the ledger does not know it"),
            Some(Event::LedgerAhead) => {
                self.handle_session_lost("the ledger knows reports that this edge does not");
            }
            Some(Event::Mismatch) => {
                self.handle_session_lost("the ledger holds another report under a number of ours");
            }
        }
    }
}
