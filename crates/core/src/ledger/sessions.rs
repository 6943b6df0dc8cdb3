//! Sessions and reports: exactly-once metering (design §8).
//!
//! **Invariant I9** (promise P4): reports of a session are applied strictly in order, each once; one that
//! comes again is acknowledged by its number and hash and changes nothing. A report is never refused for
//! an amount: what names no known account or license goes to suspense, kept and alarmed. Next:
//! [`super::usage`] for what is billed.

use super::records::SuspenseKey;
use super::{Alarm, Ledger};
use crate::account::{AccountId, Name};
use crate::command::{CloseSession, OpenSession, OpenSessionReply, Report, ReportReply, SpentLine};
use crate::ids::{Boot, Nonce, Seq, SessionId, Units};
use crate::ledger::accounts::Row;
use crate::time::LedgerTime;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// K: the last hashes kept per session, and the most reports an edge may have unacknowledged.
pub const UNACKNOWLEDGED_MAX: usize = 8;

/// How long a silent session is kept: 35 days.
pub const SESSION_RETENTION_MS: u64 = 35 * 24 * 3_600_000;

/// Sessions that one `Tick` takes out of the registry; what is left goes with the next ones.
pub const SESSIONS_RETIRED_PER_TICK_MAX: usize = 4096;

/// Sessions kept for one identity. Beyond it the one closed first makes room for another; open ones are
/// never forgotten before [`SESSION_RETENTION_MS`], since their edge may hold units and unsent reports.
/// An edge without a journal opens one with every start: this is one every three minutes for 35 days.
pub const SESSIONS_PER_IDENTITY_MAX: usize = 16_384;

/// Names in suspense that are kept one by one; more are summed under `other` of their session.
pub const SUSPENSE_NAMES_MAX: usize = 10_000;

/// Rows in suspense, names and `other` of sessions; more are summed under `other` of session 0.
pub const SUSPENSE_ROWS_MAX: usize = 20_000;

/// An edge's numbered stream of reports.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Session {
    /// The name in the edge's certificate; no other edge can go on with it.
    pub identity: Name,
    /// The latest boot; older ones are fenced.
    pub boot: Boot,
    /// The start number of that boot.
    pub nonce: Nonce,
    /// The last report applied.
    pub last_seq: Seq,
    /// Hashes of the last [`UNACKNOWLEDGED_MAX`] reports, newest last.
    pub hashes: VecDeque<u64>,
    /// Ledger time of its last command.
    pub seen: LedgerTime,
    /// Whether it was closed.
    pub closed: bool,
}

impl Ledger {
    pub(crate) fn open_session(&mut self, open: &OpenSession) -> OpenSessionReply {
        if open.incarnation != self.meta.incarnation {
            return OpenSessionReply::OtherIncarnation {
                current: self.meta.incarnation,
            };
        }
        match open.session {
            Some(id) => self.reopen_session(id, open),
            None => self.new_session(open),
        }
    }

    fn new_session(&mut self, open: &OpenSession) -> OpenSessionReply {
        // A repeat of an unanswered first open must not make a second session.
        if let Some((session, known)) = self.sessions.started(&open.identity, open.nonce) {
            return OpenSessionReply::Opened {
                session,
                boot: known.boot,
                last_seq: known.last_seq,
            };
        }
        if self.sessions.count_of(&open.identity) >= SESSIONS_PER_IDENTITY_MAX {
            let Some(closed) = self.sessions.oldest_closed(&open.identity) else {
                return OpenSessionReply::TooMany {
                    limit: SESSIONS_PER_IDENTITY_MAX as u64,
                };
            };
            self.sessions.remove(closed);
        }
        let boot = self.next_boot();
        self.meta.last_session = self.meta.last_session.next();
        let session = self.meta.last_session;
        self.sessions.put(
            session,
            Session {
                identity: open.identity.clone(),
                boot,
                nonce: open.nonce,
                last_seq: Seq(0),
                hashes: VecDeque::new(),
                seen: self.meta.time,
                closed: false,
            },
        );
        OpenSessionReply::Opened {
            session,
            boot,
            last_seq: Seq(0),
        }
    }

    fn reopen_session(&mut self, id: SessionId, open: &OpenSession) -> OpenSessionReply {
        let Some(known) = self.sessions.get(id) else {
            return self.missing_session(id, OpenSessionReply::Expired, OpenSessionReply::Unknown);
        };
        if known.identity != open.identity {
            return OpenSessionReply::Unknown;
        }
        if known.closed {
            return OpenSessionReply::Expired;
        }
        if open.nonce < known.nonce {
            return OpenSessionReply::StaleNonce { last: known.nonce };
        }
        let (last_seq, same_start) = (known.last_seq, open.nonce == known.nonce);
        let boot = if same_start {
            known.boot
        } else {
            self.next_boot()
        };
        let time = self.meta.time;
        self.sessions.update(id, |session| {
            session.boot = boot;
            session.nonce = open.nonce;
            session.seen = time;
        });
        OpenSessionReply::Opened {
            session: id,
            boot,
            last_seq,
        }
    }

    /// A session that is not in the registry: once given out (it ended by retention), or never.
    fn missing_session<R>(&self, id: SessionId, ended: R, never: R) -> R {
        if id <= self.meta.last_session && id != SessionId(0) {
            ended
        } else {
            never
        }
    }

    pub(crate) fn report(&mut self, report: &Report) -> ReportReply {
        if let Err(refusal) = self.may_report(report.session, report.boot) {
            return refusal;
        }
        let Some(session) = self.sessions.get(report.session) else {
            unreachable!("checked above");
        };
        let hash = Report::content_hash(report.session, report.seq, &report.spent, &report.usage);
        if hash != report.hash {
            return self.mismatch(report);
        }
        let last_seq = session.last_seq;
        if report.seq <= last_seq && !crate::planted::last_seq_instead_of_in_order() {
            let age =
                usize::try_from(last_seq.0.saturating_sub(report.seq.0)).unwrap_or(usize::MAX);
            let kept = session.hashes.iter().rev().nth(age);
            return match kept {
                Some(kept) if *kept != hash => self.mismatch(report),
                _ => ReportReply::Settled { last_seq },
            };
        }
        if crate::planted::last_seq_instead_of_in_order() {
            if report.seq <= last_seq {
                return ReportReply::Settled { last_seq };
            }
        } else if report.seq != last_seq.next() {
            return ReportReply::Gap {
                expected: last_seq.next(),
            };
        }
        let time = self.meta.time;
        self.sessions.update(report.session, |session| {
            session.last_seq = report.seq;
            session.seen = time;
            session.hashes.push_back(hash);
            if session.hashes.len() > UNACKNOWLEDGED_MAX {
                session.hashes.pop_front();
            }
        });
        for line in &report.spent {
            self.settle(report.session, line);
        }
        for line in &report.usage {
            self.count_usage(report.session, line);
        }
        ReportReply::Settled {
            last_seq: report.seq,
        }
    }

    fn mismatch(&mut self, report: &Report) -> ReportReply {
        self.raise(Alarm::HashMismatch {
            session: report.session,
        });
        ReportReply::HashMismatch { seq: report.seq }
    }

    fn may_report(&self, id: SessionId, boot: Boot) -> Result<(), ReportReply> {
        let Some(session) = self.sessions.get(id) else {
            let (ended, never) = (ReportReply::Expired, ReportReply::Unknown);
            return Err(self.missing_session(id, ended, never));
        };
        if session.closed {
            return Err(ReportReply::Expired);
        }
        if session.boot != boot {
            return Err(ReportReply::Fenced);
        }
        Ok(())
    }

    fn settle(&mut self, session: SessionId, line: &SpentLine) {
        let units = line.leased.saturating_add(line.unleased);
        if !self.accounts.contains(&line.account) {
            if !self.catalog.knows(&line.account) {
                return self.suspend(session, line.account.as_str(), units);
            }
            self.accounts.put(line.account.clone(), Row::default());
        }
        let spent = self
            .accounts
            .update(&line.account, |row| row.spend(line.leased, line.unleased))
            .flatten();
        match spent {
            Some(0) => {}
            Some(excess) => {
                self.raise(Alarm::Excess {
                    account: line.account.clone(),
                    units: excess,
                });
            }
            None => {
                self.raise(Alarm::Overflow {
                    account: line.account.clone(),
                });
                self.suspend(session, line.account.as_str(), units);
            }
        }
    }

    pub(super) fn suspend(&mut self, session: SessionId, name: &str, units: Units) {
        let row = |session, name| SuspenseKey { session, name };
        let rows = self.suspense.len();
        let fits = |key: &SuspenseKey, most| rows < most || self.suspense.contains(key);
        let named = row(session, Some(name.into()));
        let other = row(session, None);
        let key = if fits(&named, SUSPENSE_NAMES_MAX) {
            named
        } else if fits(&other, SUSPENSE_ROWS_MAX) {
            other
        } else {
            row(SessionId(0), None)
        };
        let sum = self
            .suspense
            .get(&key)
            .copied()
            .unwrap_or(0)
            .saturating_add(units);
        self.suspense.put(key, sum);
        self.suspense_units = self.suspense_units.saturating_add(units);
        self.raise(Alarm::Suspense {
            session,
            name: name.to_owned(),
            units,
        });
    }

    pub(crate) fn close_session(&mut self, close: &CloseSession) -> ReportReply {
        if let Some(session) = self.sessions.get(close.session)
            && session.closed
            && session.boot == close.boot
        {
            return ReportReply::Settled {
                last_seq: session.last_seq,
            };
        }
        if let Err(refusal) = self.may_report(close.session, close.boot) {
            return refusal;
        }
        let Some(last_seq) = self.sessions.get(close.session).map(|s| s.last_seq) else {
            unreachable!("checked above");
        };
        if last_seq != close.last_seq {
            return ReportReply::Gap {
                expected: last_seq.next(),
            };
        }
        let time = self.meta.time;
        self.sessions.update(close.session, |session| {
            session.closed = true;
            session.seen = time;
        });
        ReportReply::Settled { last_seq }
    }

    /// Takes sessions out of the registry that were silent for [`SESSION_RETENTION_MS`], the longest silent
    /// first, at most [`SESSIONS_RETIRED_PER_TICK_MAX`].
    pub(crate) fn retire_sessions(&mut self) {
        let silent = self.sessions.silent_since(self.retention_limit());
        let old: Vec<SessionId> = silent.take(SESSIONS_RETIRED_PER_TICK_MAX).collect();
        for id in old {
            self.sessions.remove(id);
        }
    }

    /// Whether sessions or usage records are past their retention: the next `Tick` should not wait.
    #[must_use]
    pub fn retention_is_behind(&self) -> bool {
        let mut silent = self.sessions.silent_since(self.retention_limit());
        silent.next().is_some() || self.has_old_usage()
    }

    fn retention_limit(&self) -> LedgerTime {
        LedgerTime(self.meta.time.0.saturating_sub(SESSION_RETENTION_MS))
    }

    /// Units of an account that are settled, for statements.
    #[must_use]
    pub fn settled(&self, account: &AccountId) -> Units {
        self.accounts.get(account).map_or(0, |row| row.settled)
    }
}
