//! Sessions and reports: exactly-once metering (design §8).
//!
//! **Invariant I9** (promise P4): reports of a session are applied strictly in order, each once; one that
//! comes again is acknowledged by its number and hash and changes nothing. A report is never refused for
//! an amount: what names no known account or license goes to suspense, kept and alarmed.

use super::records::{SuspenseKey, USAGE_KEYS_PER_HOUR_MAX, UsageKey};
use super::{Alarm, Ledger};
use crate::account::{AccountId, Name};
use crate::command::{
    CloseSession, OpenSession, OpenSessionReply, Report, ReportReply, SpentLine, UsageLine,
};
use crate::ids::{Boot, Nonce, Seq, SessionId, Units};
use crate::ledger::accounts::Row;
use crate::time::LedgerTime;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// K: the last hashes kept per session, and the most reports an edge may have unacknowledged.
pub const UNACKNOWLEDGED_MAX: usize = 8;

/// How long a silent session is kept: 35 days.
pub const SESSION_RETENTION_MS: u64 = 35 * 24 * 3_600_000;

/// Names in suspense that are kept one by one; more are summed under `other`.
pub const SUSPENSE_NAMES_MAX: usize = 10_000;

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
        let repeat = self.sessions.iter().rev().find(|(_, session)| {
            session.identity == open.identity && session.nonce == open.nonce && !session.closed
        });
        if let Some((id, session)) = repeat {
            let (session_id, boot, last_seq) = (*id, session.boot, session.last_seq);
            return OpenSessionReply::Opened {
                session: session_id,
                boot,
                last_seq,
            };
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
        self.edge_boots.insert(boot, session);
        OpenSessionReply::Opened {
            session,
            boot,
            last_seq: Seq(0),
        }
    }

    fn reopen_session(&mut self, id: SessionId, open: &OpenSession) -> OpenSessionReply {
        let Some(known) = self.sessions.get(&id) else {
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
        self.edge_boots.remove(&known.boot);
        let boot = if same_start {
            known.boot
        } else {
            self.next_boot()
        };
        let time = self.meta.time;
        self.sessions.update(&id, |session| {
            session.boot = boot;
            session.nonce = open.nonce;
            session.seen = time;
        });
        self.edge_boots.insert(boot, id);
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
        let Some(session) = self.sessions.get(&report.session) else {
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
        self.sessions.update(&report.session, |session| {
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
        let Some(session) = self.sessions.get(&id) else {
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

    fn count_usage(&mut self, session: SessionId, line: &UsageLine) {
        if !self.catalog.knows_license(&line.license) {
            return self.suspend(session, line.license.as_str(), line.units);
        }
        let mut key = UsageKey {
            license: line.license.clone(),
            hour: self.meta.time.hour(),
            environment: line.environment,
            meter: line.meter.clone(),
            key: Some(line.key.clone()),
        };
        if !self.usage.contains(&key) && self.usage_keys_in_hour(&key) >= USAGE_KEYS_PER_HOUR_MAX {
            key.key = None;
        }
        match self
            .usage
            .get(&key)
            .copied()
            .unwrap_or(0)
            .checked_add(line.units)
        {
            Some(units) => self.usage.put(key, units),
            None => self.suspend(session, line.license.as_str(), line.units),
        }
    }

    fn usage_keys_in_hour(&self, key: &UsageKey) -> usize {
        let (from, to) = key.hour_range();
        self.usage
            .range(from..to)
            .take(USAGE_KEYS_PER_HOUR_MAX)
            .count()
    }

    fn suspend(&mut self, session: SessionId, name: &str, units: Units) {
        let key = SuspenseKey {
            session,
            name: Some(name.into()),
        };
        let full = self.suspense.len() >= SUSPENSE_NAMES_MAX && !self.suspense.contains(&key);
        let key = if full {
            SuspenseKey {
                session,
                name: None,
            }
        } else {
            key
        };
        let sum = self
            .suspense
            .get(&key)
            .copied()
            .unwrap_or(0)
            .saturating_add(units);
        self.suspense.put(key, sum);
        self.raise(Alarm::Suspense {
            session,
            name: name.to_owned(),
            units,
        });
    }

    pub(crate) fn close_session(&mut self, close: &CloseSession) -> ReportReply {
        if let Some(session) = self.sessions.get(&close.session)
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
        let Some(last_seq) = self.sessions.get(&close.session).map(|s| s.last_seq) else {
            unreachable!("checked above");
        };
        if last_seq != close.last_seq {
            return ReportReply::Gap {
                expected: last_seq.next(),
            };
        }
        let time = self.meta.time;
        self.sessions.update(&close.session, |session| {
            session.closed = true;
            session.seen = time;
        });
        self.edge_boots.remove(&close.boot);
        ReportReply::Settled { last_seq }
    }

    /// Takes sessions out of the registry that were silent for [`SESSION_RETENTION_MS`].
    pub(crate) fn retire_sessions(&mut self) {
        let limit = self.meta.time.0.saturating_sub(SESSION_RETENTION_MS);
        let old: Vec<SessionId> = self
            .sessions
            .iter()
            .filter(|(_, s)| s.seen.0 < limit)
            .map(|(id, _)| *id)
            .collect();
        for id in old {
            if let Some(session) = self.sessions.remove(&id) {
                self.edge_boots.remove(&session.boot);
            }
        }
    }

    /// Units of an account that are settled, for statements.
    #[must_use]
    pub fn settled(&self, account: &AccountId) -> Units {
        self.accounts.get(account).map_or(0, |row| row.settled)
    }
}
