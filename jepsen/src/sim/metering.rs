//! The driver of an edge's reports: use from the cells to the reporter, journal, send, acknowledgement.

use super::catalog;
use super::edge::Edge;
use super::nemesis::Undo;
use super::network::Actor;
use super::wire::Wire;
use super::world::{Event, World};
use tollgate_core::account::Environment;
use tollgate_core::command::{ReportReply, UsageLine};
use tollgate_core::ids::{Boot, Seq, SessionId};
use tollgate_core::lessee::Cell as _;
use tollgate_core::message::SessionAnswer;
use tollgate_core::reporter::{self, JournalRecord, Reporter};

/// How often use that is in no report is written to the journal.
pub(super) const JOURNAL_INTERVAL_MS: u64 = 1000;
/// How long a sync takes.
pub(super) const SYNC_MS: (u64, u64) = (1, 40);

impl World {
    /// The session is open: a new reporter, or one that goes on from the journal.
    pub(super) fn begin_metering(
        &mut self,
        number: usize,
        session: SessionId,
        boot: Boot,
        last: Seq,
    ) {
        let edge = &mut self.edges[number];
        let mono = edge.mono(self.now);
        if !edge.keeps_journal {
            edge.reporter = Some(Reporter::new(session, boot, false));
            return;
        }
        edge.journal.session = Some(session);
        let records = edge.journal.records.clone();
        match Reporter::resume(mono, session, boot, last, records) {
            Ok(reporter) => edge.reporter = Some(reporter),
            Err(error) => self
                .truth
                .fail("I10 journal", None, format!("e{number}: {error}")),
        }
    }

    /// Takes what the cells used to the reporter; seals, journals and sends what is due.
    pub(super) fn meter(&mut self, number: usize) {
        let now = self.now;
        let spacing = self.scenario.report_spacing_ms;
        let hurry = !self.busy;
        self.collect_use(number);
        let edge = &mut self.edges[number];
        let mono = edge.mono(now);
        let Some(reporter) = &mut edge.reporter else {
            return;
        };
        let open_for = reporter.open_for_ms(mono);
        if open_for.is_some_and(|age| age >= spacing || hurry || edge.leaving) {
            reporter.seal();
        }
        self.write_journal(number);
        self.send_reports(number);
    }

    fn collect_use(&mut self, number: usize) {
        let edge = &mut self.edges[number];
        let mono = edge.mono(self.now);
        let (Some(lessee), Some(reporter)) = (&edge.lessee, &mut edge.reporter) else {
            return;
        };
        for (account, cell) in lessee.cells() {
            let told = edge.reported.entry(account.clone()).or_default();
            let used = cell.used();
            reporter.add_spent(mono, account, used - *told, 0);
            *told = used;
        }
        for (customer, units) in std::mem::take(&mut edge.usage) {
            let line = UsageLine {
                environment: Environment::Live,
                license: catalog::license(customer),
                key: catalog::key(customer),
                meter: catalog::name(catalog::METER),
                units,
            };
            reporter.add_usage(mono, &line);
        }
    }

    fn write_journal(&mut self, number: usize) {
        let now = self.now;
        let edge = &mut self.edges[number];
        if !edge.keeps_journal {
            return;
        }
        let Some(reporter) = &mut edge.reporter else {
            return;
        };
        let before = edge.journal.records.len();
        while let Some(record) = reporter.poll_journal() {
            edge.journal.append(record);
        }
        let due = now >= edge.checkpoint_at + JOURNAL_INTERVAL_MS;
        if due || edge.journal.records.len() > before {
            edge.checkpoint_at = now;
            if let Some(record) = reporter.checkpoint() {
                edge.journal.append(record);
            }
        }
        let records = edge.journal.records.len();
        if records > before {
            edge.remember_book();
            let start = edge.start;
            let delay = self.random.disk.between(SYNC_MS.0, SYNC_MS.1);
            let sealed = matches!(
                edge.journal.records.get(before),
                Some(JournalRecord::Report(_))
            );
            if sealed && std::mem::take(&mut edge.crashes_at_next_write) && self.busy {
                let before_sync = self.random.disk.below(delay);
                self.at(before_sync, Event::Undo(Undo::CrashEdge(number)));
            }
            self.at(
                delay,
                Event::JournalSynced {
                    edge: number,
                    start,
                    records,
                },
            );
        }
    }

    /// A sync ended: everything appended before it began is on disk.
    pub(super) fn journal_synced(&mut self, number: usize, start: u32, records: usize) {
        if self.start_of(Actor::Edge(number)) != Some(start) {
            return;
        }
        let edge = &mut self.edges[number];
        edge.journal.sync(records);
        let written = edge.journal.records.iter().take(records).rev();
        let newest = written.into_iter().find_map(|record| match record {
            JournalRecord::Report(report) => Some(report.seq),
            _ => None,
        });
        if let (Some(seq), Some(reporter)) = (newest, &mut edge.reporter) {
            reporter.handle_written(seq);
        }
        self.send_reports(number);
    }

    /// Sends what may be sent, to one node until it does not answer.
    pub(super) fn send_reports(&mut self, number: usize) {
        let nodes = self.nodes.len();
        loop {
            let edge = &mut self.edges[number];
            let mono = edge.mono(self.now);
            let Some(reporter) = &mut edge.reporter else {
                return;
            };
            let Some(report) = reporter.poll_send(mono) else {
                return;
            };
            if edge.last_sent == Some(report.seq) {
                edge.report_to = (edge.report_to + 1) % nodes;
            }
            edge.last_sent = Some(report.seq);
            let to = edge.report_to;
            self.truth.report_sent(&report);
            self.send(Actor::Edge(number), Actor::Node(to), Wire::Report(report));
        }
    }

    /// The ledger's word on a report reaches the edge.
    pub(super) fn report_answered(&mut self, number: usize, answer: &SessionAnswer) {
        let reply = &answer.reply;
        let edge = &mut self.edges[number];
        let (Some(reporter), Some(session)) = (&mut edge.reporter, edge.session) else {
            return;
        };
        if let ReportReply::Settled { last_seq } = reply {
            let known = Seq(last_seq.0.min(reporter.last_seq().0));
            self.truth.acknowledged(session, known);
        }
        let event = reporter.handle_answer(answer);
        match event {
            None => {
                if let ReportReply::Settled { last_seq } = reply
                    && edge.keeps_journal
                {
                    edge.journal.append(JournalRecord::Acknowledged(*last_seq));
                }
            }
            Some(reporter::Event::Fenced) => self.open_again(number),
            // A late copy of a report that was settled met the closed session.
            Some(reporter::Event::SessionLost) if edge.leaving && reporter.is_settled() => {
                self.left(number);
            }
            Some(event) => {
                let text = format!("e{number} was told {reply:?} ({event:?})");
                self.truth.fail("I9 reports", None, text);
            }
        }
    }

    /// The edge hands everything in; once that is done it closes its session.
    pub(super) fn leave(&mut self, number: usize) {
        let edge = &mut self.edges[number];
        let (Some(lessee), Some(reporter)) = (&mut edge.lessee, &edge.reporter) else {
            return;
        };
        if !edge.waiting.is_empty() {
            return;
        }
        if !lessee.surrendered_everything() {
            lessee.surrender_all();
            return;
        }
        if reporter.is_settled()
            && let Some(session) = edge.session
        {
            let (boot, last_seq) = (lessee.boot(), reporter.last_seq());
            let to = self.random.work.index(self.nodes.len());
            let wire = Wire::Close {
                session,
                boot,
                last_seq,
            };
            self.send(Actor::Edge(number), Actor::Node(to), wire);
        }
    }

    /// The session is closed: the process ends, the next start begins another session.
    pub(super) fn session_closed(&mut self, number: usize, answer: &SessionAnswer) {
        let edge = &self.edges[number];
        if !edge.leaving || edge.session != Some(answer.session) {
            return;
        }
        match &answer.reply {
            ReportReply::Settled { .. } | ReportReply::Expired => self.left(number),
            ReportReply::Fenced => self.open_again(number),
            other => {
                let text = format!("e{number} closed its session and was told {other:?}");
                self.truth.fail("I9 reports", None, text);
            }
        }
    }

    /// The session of a leaving edge is closed: its process ends and starts anew.
    pub(super) fn left(&mut self, number: usize) {
        self.crash_edge(number);
        self.edges[number].journal.reset();
        self.start_edge_later(number, 500);
    }

    pub(super) fn start_edge_later(&mut self, number: usize, most_ms: u64) {
        let delay = 10 + self.random.faults.below(most_ms);
        self.at(delay, Event::StartEdge { edge: number });
    }
}

impl Edge {
    /// What a planted fault reads back after a restart: the cells as the journal's last sync saw them.
    fn remember_book(&mut self) {
        if tollgate_core::planted::journal_resume_with_the_old_lease_book() {
            let open = self
                .known
                .iter()
                .flat_map(|(c, open)| open.iter().map(|o| (*c, o)));
            self.old_book = open
                .map(|(c, o)| (c, o.account.clone(), o.cell.free()))
                .collect();
        }
    }
}
