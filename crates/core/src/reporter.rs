//! The edge's side of reports: use is summed, sealed under numbers without gaps, sent until acknowledged
//! (design §8).
//!
//! Sans-IO. The driver adds what its cells used, writes what [`Reporter::poll_journal`] gives to the
//! journal and syncs it, sends what [`Reporter::poll_send`] gives. **A report leaves only after it was
//! written** (with a journal), so a boot that resumes knows every number that may have reached the ledger:
//! nothing is counted twice, and what was never written was never sent. The ledger's side is
//! [`crate::ledger::sessions`].

mod unreported;

pub use unreported::{Lines, REPORT_BYTES_MAX, left_of_checkpoint};

use crate::account::AccountId;
use crate::command::{Report, ReportReply, SpentLine, UsageLine};
use crate::ids::{Boot, Seq, SessionId, Units};
use crate::ledger::sessions::UNACKNOWLEDGED_MAX;
use crate::message::SessionAnswer;
use crate::time::Mono;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use unreported::Unreported;

/// First pause before a report without an answer is sent again; doubles.
const REPEAT_MS: u64 = 250;
/// The pause doubles up to this.
const REPEAT_MS_MAX: u64 = 4000;

/// A record of the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JournalRecord {
    /// A sealed report: may be sent once this is on disk.
    Report(Report),
    /// What the report of this number would say by now. Once that report is written, what it does not say is
    /// for the next: [`left_of_checkpoint`].
    Checkpoint {
        /// The number.
        seq: Seq,
        /// Use of accounts since the report before.
        spent: Vec<SpentLine>,
        /// Use of meters since the report before.
        usage: Vec<UsageLine>,
    },
    /// Everything up to this number is applied; the records before it may be cut off.
    Acknowledged(Seq),
}

/// Something the driver must act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A later boot of the session exists.
    Fenced,
    /// The session ended or was never known: go on in a new one, quarantine what is unacknowledged.
    SessionLost,
    /// The ledger knows a report that this journal does not: the journal lost its tail. Alarm, new session.
    LedgerAhead,
    /// The ledger holds other contents under a number of ours. Alarm, new session.
    Mismatch,
}

/// Why a journal cannot be resumed under the session it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ResumeError {
    /// Its tail was lost.
    #[error(
        "the ledger has applied report {ledger} of {session}, the journal ends at {journal}: \
         the journal lost its tail, go on in a new session"
    )]
    LedgerAhead {
        /// The session.
        session: SessionId,
        /// The last report the ledger applied.
        ledger: Seq,
        /// The last report in the journal.
        journal: Seq,
    },
    /// A report between is missing.
    #[error(
        "the journal of {session} lacks report {missing}: it is damaged, go on in a new session"
    )]
    Hole {
        /// The session.
        session: SessionId,
        /// The first number that is missing.
        missing: Seq,
    },
}

#[derive(Clone, Debug)]
struct Sealed {
    report: Report,
    /// On disk, or no journal is kept.
    written: bool,
    /// Handed to the journal.
    handed: bool,
    sent_at: Option<Mono>,
}

/// See the module's text.
#[derive(Clone, Debug)]
pub struct Reporter {
    session: SessionId,
    boot: Boot,
    journal: bool,
    last_seq: Seq,
    sealed: VecDeque<Sealed>,
    unreported: Unreported,
    open_since: Option<Mono>,
    pause_ms: u64,
}

impl Reporter {
    /// The reporter of a new session.
    #[must_use]
    pub fn new(session: SessionId, boot: Boot, journal: bool) -> Self {
        Self {
            session,
            boot,
            journal,
            last_seq: Seq(0),
            sealed: VecDeque::new(),
            unreported: Unreported::default(),
            open_since: None,
            pause_ms: REPEAT_MS,
        }
    }

    /// Goes on with a session from its journal: what the ledger has not applied is sent again under the
    /// new boot, the last checkpoint becomes the next report.
    ///
    /// # Errors
    /// [`ResumeError`] when the journal and the ledger do not fit together; nothing may be sent then.
    pub fn resume(
        now: Mono,
        session: SessionId,
        boot: Boot,
        ledger: Seq,
        records: impl IntoIterator<Item = JournalRecord>,
    ) -> Result<Self, ResumeError> {
        let mut this = Self::new(session, boot, true);
        let mut checkpoint: Option<(Seq, Lines)> = None;
        let mut newest = Seq(0);
        for record in records {
            match record {
                JournalRecord::Report(report) => {
                    newest = newest.max(report.seq);
                    checkpoint = checkpoint
                        .filter(|(seq, _)| *seq == report.seq)
                        .map(|(seq, lines)| (seq.next(), left_of_checkpoint(lines, &report)));
                    if report.seq > ledger {
                        let next = this
                            .sealed
                            .back()
                            .map_or(ledger, |last| last.report.seq)
                            .next();
                        if report.seq != next {
                            return Err(ResumeError::Hole {
                                session,
                                missing: next,
                            });
                        }
                        let report = Report { boot, ..report };
                        this.sealed.push_back(Sealed {
                            report,
                            written: true,
                            handed: true,
                            sent_at: None,
                        });
                    }
                }
                JournalRecord::Checkpoint { seq, spent, usage } => {
                    checkpoint = Some((seq, (spent, usage)));
                }
                JournalRecord::Acknowledged(seq) => newest = newest.max(seq),
            }
        }
        if newest < ledger {
            return Err(ResumeError::LedgerAhead {
                session,
                ledger,
                journal: newest,
            });
        }
        this.last_seq = newest;
        if let Some((seq, lines)) = checkpoint
            && seq == newest.next()
        {
            this.add_lines(now, &lines);
        }
        Ok(this)
    }

    /// The session reported to.
    #[must_use]
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// The last number sealed.
    #[must_use]
    pub fn last_seq(&self) -> Seq {
        self.last_seq
    }

    /// Adds use of an account since the last call.
    pub fn add_spent(&mut self, now: Mono, account: &AccountId, leased: Units, unleased: Units) {
        if leased == 0 && unleased == 0 {
            return;
        }
        self.open_since.get_or_insert(now);
        self.unreported.add_spent(account, leased, unleased);
    }

    /// Adds use of a meter since the last call.
    pub fn add_usage(&mut self, now: Mono, line: &UsageLine) {
        if line.units == 0 {
            return;
        }
        self.open_since.get_or_insert(now);
        self.unreported.add_usage(line);
    }

    /// Adds what the last checkpoint before a crash says, where it goes on in a new session.
    pub fn add_lines(&mut self, now: Mono, (spent, usage): &Lines) {
        for line in spent {
            self.add_spent(now, &line.account, line.leased, line.unleased);
        }
        for line in usage {
            self.add_usage(now, line);
        }
    }

    /// How long the oldest use that is in no report has waited, in ms.
    #[must_use]
    pub fn open_for_ms(&self, now: Mono) -> Option<u64> {
        self.open_since.map(|since| now.since_ms(since))
    }

    /// Whether everything ever added is acknowledged.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.open_since.is_none() && self.sealed.is_empty()
    }

    /// Reports without an acknowledgement.
    #[must_use]
    pub fn unacknowledged(&self) -> usize {
        self.sealed.len()
    }

    /// Seals a report from what was added, unless nothing was or [`UNACKNOWLEDGED_MAX`] are open: then use
    /// stays summed by account. What exceeds [`REPORT_BYTES_MAX`] has waited as long as before, and goes into
    /// the next: a driver seals again at once, until this answers `false` or nothing is left.
    pub fn seal(&mut self) -> bool {
        if self.open_since.is_none() || self.sealed.len() >= UNACKNOWLEDGED_MAX {
            return false;
        }
        let (spent, usage) = self.unreported.cut();
        if self.unreported.is_empty() {
            self.open_since = None;
        }
        let seq = self.last_seq.next();
        self.last_seq = seq;
        let hash = Report::content_hash(self.session, seq, &spent, &usage);
        let report = Report {
            session: self.session,
            boot: self.boot,
            seq,
            hash,
            spent,
            usage,
        };
        let written = !self.journal || crate::planted::report_sent_before_its_fsync();
        self.sealed.push_back(Sealed {
            report,
            written,
            handed: !self.journal,
            sent_at: None,
        });
        true
    }

    /// The next sealed report for the journal; after it is on disk: [`Reporter::handle_written`].
    pub fn poll_journal(&mut self) -> Option<JournalRecord> {
        let sealed = self.sealed.iter_mut().find(|sealed| !sealed.handed)?;
        sealed.handed = true;
        Some(JournalRecord::Report(sealed.report.clone()))
    }

    /// A record of the use that is in no report yet, for the journal; `None` when there is none. It stands
    /// until the next one, also after reports were sealed from it.
    #[must_use]
    pub fn checkpoint(&self) -> Option<JournalRecord> {
        self.open_since?;
        let (spent, usage) = self.unreported.lines();
        let seq = self.last_seq.next();
        Some(JournalRecord::Checkpoint { seq, spent, usage })
    }

    /// The journal is synced up to and including this report.
    pub fn handle_written(&mut self, seq: Seq) {
        for sealed in self
            .sealed
            .iter_mut()
            .filter(|sealed| sealed.report.seq <= seq)
        {
            sealed.written = true;
        }
    }

    /// The next report to send: written, and not sent yet or not answered for too long. In order.
    pub fn poll_send(&mut self, now: Mono) -> Option<Report> {
        let pause = self.pause_ms;
        let first = self.sealed.front()?;
        if first.sent_at.is_some_and(|at| now.since_ms(at) >= pause) {
            // The oldest got no answer: it and all after it go out again.
            self.pause_ms = pause.saturating_mul(2).min(REPEAT_MS_MAX);
            for sealed in &mut self.sealed {
                sealed.sent_at = None;
            }
        }
        let next = self
            .sealed
            .iter_mut()
            .find(|sealed| sealed.sent_at.is_none())?;
        if !next.written {
            return None;
        }
        next.sent_at = Some(now);
        Some(next.report.clone())
    }

    /// The connection is new, or the node cannot serve: everything unacknowledged goes out again.
    pub fn handle_reconnected(&mut self) {
        self.pause_ms = REPEAT_MS;
        for sealed in &mut self.sealed {
            sealed.sent_at = None;
        }
    }

    /// What the ledger said of a report. An answer about another session is none of this reporter's: reports of one
    /// that was lost may be answered after the next has begun. Nor is it news that an earlier boot is fenced.
    pub fn handle_answer(&mut self, answer: &SessionAnswer) -> Option<Event> {
        if !self.concerns(answer) {
            return None;
        }
        match answer.reply {
            ReportReply::Settled { last_seq } => {
                self.pause_ms = REPEAT_MS;
                while self
                    .sealed
                    .front()
                    .is_some_and(|first| first.report.seq <= last_seq)
                {
                    self.sealed.pop_front();
                }
                (last_seq > self.last_seq).then_some(Event::LedgerAhead)
            }
            ReportReply::Gap { expected } => {
                for sealed in self.sealed.iter_mut().filter(|s| s.report.seq >= expected) {
                    sealed.sent_at = None;
                }
                (expected > self.last_seq.next()).then_some(Event::LedgerAhead)
            }
            ReportReply::Fenced => (answer.boot == self.boot).then_some(Event::Fenced),
            ReportReply::Unknown | ReportReply::Expired => Some(Event::SessionLost),
            ReportReply::HashMismatch { .. } => Some(Event::Mismatch),
        }
    }

    /// Whether an answer is about this session.
    #[must_use]
    pub fn concerns(&self, answer: &SessionAnswer) -> bool {
        answer.session == self.session
    }

    /// A later boot of this same process (it still holds its journal's lock) goes on.
    pub fn handle_new_boot(&mut self, boot: Boot) {
        self.boot = boot;
        for sealed in &mut self.sealed {
            sealed.report.boot = boot;
            sealed.sent_at = None;
        }
    }

    /// Goes on in a new session after the old one was lost. Answers the reports whose fate is unknown: they
    /// are kept in quarantine by the driver, never sent under the new session.
    pub fn move_to(&mut self, session: SessionId, boot: Boot) -> Vec<Report> {
        let unknown = self.sealed.drain(..).map(|sealed| sealed.report).collect();
        self.session = session;
        self.boot = boot;
        self.last_seq = Seq(0);
        self.pause_ms = REPEAT_MS;
        unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Boot, SessionId};

    fn account() -> AccountId {
        AccountId::parse("live/acme/-/customer/daily/open").unwrap()
    }

    fn settled(last_seq: u64) -> SessionAnswer {
        SessionAnswer {
            session: SessionId(1),
            boot: Boot(2),
            reply: ReportReply::Settled {
                last_seq: Seq(last_seq),
            },
        }
    }

    #[test]
    fn answers_about_a_session_that_was_lost_do_not_touch_the_next() {
        let mut reporter = Reporter::new(SessionId(1), Boot(2), false);
        let seal = |reporter: &mut Reporter| {
            reporter.add_spent(Mono(0), &account(), 1, 0);
            assert!(reporter.seal());
        };
        seal(&mut reporter);
        seal(&mut reporter);
        assert_eq!(reporter.move_to(SessionId(5), Boot(6)).len(), 2);
        seal(&mut reporter);
        for reply in [
            ReportReply::Settled { last_seq: Seq(2) },
            ReportReply::Gap { expected: Seq(3) },
            ReportReply::HashMismatch { seq: Seq(1) },
            ReportReply::Expired,
            ReportReply::Fenced,
        ] {
            let late = SessionAnswer {
                reply,
                ..settled(0)
            };
            assert_eq!(reporter.handle_answer(&late), None, "{late:?}");
            assert_eq!(reporter.unacknowledged(), 1, "{late:?}");
        }
    }

    #[test]
    fn only_the_boot_that_reports_is_told_that_it_is_fenced() {
        let mut reporter = Reporter::new(SessionId(1), Boot(2), true);
        reporter.handle_new_boot(Boot(3));
        let fenced = |boot| SessionAnswer {
            boot,
            reply: ReportReply::Fenced,
            ..settled(0)
        };
        assert_eq!(reporter.handle_answer(&fenced(Boot(2))), None);
        assert_eq!(
            reporter.handle_answer(&fenced(Boot(3))),
            Some(Event::Fenced)
        );
    }

    #[test]
    fn a_report_is_not_sent_before_it_is_written() {
        let mut reporter = Reporter::new(SessionId(1), Boot(2), true);
        reporter.add_spent(Mono(0), &account(), 3, 0);
        assert!(reporter.seal());
        assert_eq!(reporter.poll_send(Mono(1)), None);
        assert!(
            matches!(reporter.poll_journal(), Some(JournalRecord::Report(r)) if r.seq == Seq(1))
        );
        assert_eq!(reporter.poll_send(Mono(1)), None);
        reporter.handle_written(Seq(1));
        assert_eq!(reporter.poll_send(Mono(1)).map(|r| r.seq), Some(Seq(1)));
        assert_eq!(
            reporter.poll_send(Mono(2)),
            None,
            "sent once until it is answered or late"
        );
        assert_eq!(reporter.handle_answer(&settled(1)), None);
        assert!(reporter.is_settled());
    }

    #[test]
    fn a_resumed_journal_sends_what_the_ledger_lacks_and_then_the_checkpoint() {
        let mut first = Reporter::new(SessionId(1), Boot(2), true);
        let mut journal = Vec::new();
        for _ in 0..3 {
            first.add_spent(Mono(0), &account(), 5, 0);
            first.seal();
            journal.extend(first.poll_journal());
        }
        first.add_spent(Mono(0), &account(), 7, 0);
        journal.extend(first.checkpoint());
        let mut next =
            Reporter::resume(Mono(0), SessionId(1), Boot(9), Seq(1), journal.clone()).unwrap();
        assert_eq!(
            next.poll_send(Mono(0)).map(|r| (r.seq, r.boot)),
            Some((Seq(2), Boot(9)))
        );
        assert_eq!(next.poll_send(Mono(0)).map(|r| r.seq), Some(Seq(3)));
        assert!(next.seal());
        next.poll_journal();
        next.handle_written(Seq(4));
        let fourth = next.poll_send(Mono(0)).unwrap();
        assert_eq!((fourth.seq, fourth.spent[0].leased), (Seq(4), 7));
        let lost_tail = Reporter::resume(Mono(0), SessionId(1), Boot(9), Seq(8), journal);
        assert!(matches!(lost_tail, Err(ResumeError::LedgerAhead { .. })));
    }

    #[test]
    fn a_checkpoint_is_void_once_its_report_is_written() {
        let mut first = Reporter::new(SessionId(1), Boot(2), true);
        first.add_spent(Mono(0), &account(), 5, 0);
        let mut journal = vec![first.checkpoint().unwrap()];
        first.seal();
        journal.extend(first.poll_journal());
        let next = Reporter::resume(Mono(0), SessionId(1), Boot(9), Seq(1), journal).unwrap();
        assert!(next.is_settled(), "the five units were settled by report 1");
    }

    #[test]
    fn sealing_stops_at_the_bound_and_use_stays_summed() {
        let mut reporter = Reporter::new(SessionId(1), Boot(2), false);
        for _ in 0..UNACKNOWLEDGED_MAX + 3 {
            reporter.add_spent(Mono(0), &account(), 1, 0);
            reporter.seal();
        }
        assert_eq!(reporter.unacknowledged(), UNACKNOWLEDGED_MAX);
        reporter.handle_answer(&settled(1));
        assert!(reporter.seal());
        assert_eq!(reporter.sealed.back().unwrap().report.spent[0].leased, 3);
    }
}
