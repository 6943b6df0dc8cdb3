//! The observer's own ledger: the rules of the design written down a second time, with plain maps.
//!
//! Shares no code with the core beyond the types of commands and replies. It replays the committed log,
//! says what every reply and every touched row must be, and keeps what only a checker needs: the highest
//! limit ever in force, every settled unit, every report that was applied.

use super::catalog;
use std::collections::{BTreeMap, BTreeSet};
use tollgate_core::account::{AccountId, Name};
use tollgate_core::command::{
    Assign, AssignReply, CloseSession, Command, Entry, LineOutcome, OpenNode, OpenNodeReply,
    OpenSession, OpenSessionReply, Position, PositionOutcome, PositionReply, Reply, Report,
    ReportReply, SpentLine,
};
use tollgate_core::ids::{Boot, Epoch, NodeId, Nonce, Seq, SessionId, Slot};
use tollgate_core::time::LedgerTime;

/// The row of an account, as it must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct NaiveRow {
    pub(super) settled: u64,
    pub(super) out: u64,
    pub(super) excess: u64,
    pub(super) epoch: u64,
    pub(super) acquired: u64,
    pub(super) returned: u64,
}

/// A session, with every report that was applied.
#[derive(Clone, Debug)]
pub(super) struct NaiveSession {
    identity: String,
    boot: Boot,
    nonce: Nonce,
    pub(super) reports: Vec<Vec<SpentLine>>,
    hashes: Vec<u64>,
    closed: bool,
}

/// What an entry must do.
#[derive(Clone, Debug, Default)]
pub(super) struct Expected {
    /// One per command; `None` where the observer has no opinion.
    pub(super) replies: Vec<Option<Reply>>,
    /// Rows touched, as they are afterwards.
    pub(super) rows: Vec<(AccountId, NaiveRow)>,
}

/// See the module's text.
#[derive(Default)]
pub(super) struct Naive {
    pub(super) rows: BTreeMap<AccountId, NaiveRow>,
    pub(super) limits: BTreeMap<AccountId, u64>,
    pub(super) sessions: BTreeMap<SessionId, NaiveSession>,
    pub(super) slots: BTreeMap<Slot, (u64, Option<(NodeId, Boot)>)>,
    nodes: BTreeMap<NodeId, (Boot, Nonce)>,
    /// Owner of every (slot, epoch) there ever was.
    owners: BTreeMap<(Slot, u64), (NodeId, Boot)>,
    by_identity: BTreeMap<(String, AccountId), u64>,
    last_boot: u64,
    last_session: u64,
    time: LedgerTime,
    changes: BTreeSet<Name>,
    /// Limits put in force since the observer looked.
    pub(super) raised: Vec<(usize, usize, u64)>,
    touched: Vec<AccountId>,
    /// The first rule that the log itself broke.
    pub(super) broken: Option<(&'static str, AccountId, String)>,
}

/// K of the design: hashes kept per session.
const HASHES_KEPT: usize = 8;

impl Naive {
    /// Applies an entry.
    pub(super) fn apply(&mut self, entry: &Entry) -> Expected {
        self.time = self.time.max(entry.time);
        self.touched.clear();
        let mut replies = Vec::with_capacity(entry.commands.len());
        for command in &entry.commands {
            replies.push(match command {
                Command::OpenNode(c) => Some(Reply::OpenNode(self.open_node(c))),
                Command::OpenSession(c) => Some(Reply::OpenSession(self.open_session(c))),
                Command::Assign(c) => Some(Reply::Assign(self.assign(c))),
                Command::Position(c) => Some(Reply::Position(self.position(c))),
                Command::Report(c) => Some(Reply::Report(self.report(c))),
                Command::CloseSession(c) => Some(Reply::CloseSession(self.close(c))),
                Command::Tick => Some(Reply::Tick(self.time)),
                // No node of the simulator has a pepper.
                Command::NamePepper(_) => None,
                Command::Admin(c) => {
                    if let Some((key, limits)) = catalog::change_of(c)
                        && self.changes.insert(key)
                    {
                        for (customer, limit, quota) in limits {
                            self.limits.insert(catalog::account(customer, limit), quota);
                            self.raised.push((customer, limit, quota));
                        }
                    }
                    None
                }
            });
        }
        self.touched.sort_unstable();
        self.touched.dedup();
        let row = |account: &AccountId| (account.clone(), self.row(account));
        Expected {
            replies,
            rows: self.touched.iter().map(row).collect(),
        }
    }

    pub(super) fn row(&self, account: &AccountId) -> NaiveRow {
        self.rows.get(account).copied().unwrap_or_default()
    }

    /// What may still be acquired of an account.
    pub(super) fn room(&self, account: &AccountId) -> u64 {
        let row = self.row(account);
        let limit = self.limits.get(account).copied().unwrap_or(0);
        limit.saturating_sub(row.settled - row.excess + row.out)
    }

    pub(super) fn has_change(&self, key: &Name) -> bool {
        self.changes.contains(key)
    }

    /// Settled units of an account that came from the sessions of one identity.
    pub(super) fn settled_by(&self, identity: &str, account: &AccountId) -> u64 {
        self.by_identity
            .get(&(identity.to_owned(), account.clone()))
            .copied()
            .unwrap_or(0)
    }

    /// Hash of the report applied under a number.
    pub(super) fn hash_of(&self, session: SessionId, seq: u64) -> Option<u64> {
        let at = usize::try_from(seq.checked_sub(1)?).ok()?;
        self.sessions.get(&session)?.hashes.get(at).copied()
    }

    fn open_node(&mut self, open: &OpenNode) -> OpenNodeReply {
        if let Some((boot, nonce)) = self.nodes.get(&open.node) {
            if open.nonce == *nonce {
                return OpenNodeReply::Boot(*boot);
            }
            if open.nonce < *nonce {
                return OpenNodeReply::StaleNonce { last: *nonce };
            }
        }
        self.last_boot += 1;
        let boot = Boot(self.last_boot);
        self.nodes.insert(open.node, (boot, open.nonce));
        let owned: Vec<Slot> = self
            .slots
            .iter()
            .filter(|(_, (_, owner))| owner.is_some_and(|(node, _)| node == open.node))
            .map(|(slot, _)| *slot)
            .collect();
        for slot in owned {
            self.set_owner(slot, open.node, boot);
        }
        OpenNodeReply::Boot(boot)
    }

    fn set_owner(&mut self, slot: Slot, node: NodeId, boot: Boot) -> u64 {
        let entry = self.slots.entry(slot).or_default();
        entry.0 += 1;
        entry.1 = Some((node, boot));
        self.owners.insert((slot, entry.0), (node, boot));
        entry.0
    }

    fn assign(&mut self, assign: &Assign) -> AssignReply {
        let latest = self.nodes.get(&assign.node).map(|(boot, _)| *boot);
        if latest != Some(assign.boot) {
            return AssignReply::StaleBoot { latest };
        }
        let mut assigned = Vec::new();
        for (slot, expected) in &assign.slots {
            if self.slots.entry(*slot).or_default().0 == expected.0 {
                let epoch = self.set_owner(*slot, assign.node, assign.boot);
                assigned.push((*slot, Epoch(epoch)));
            }
        }
        AssignReply::Assigned(assigned)
    }

    fn open_session(&mut self, open: &OpenSession) -> OpenSessionReply {
        let Some(id) = open.session else {
            let again = self.sessions.iter().rev().find(|(_, session)| {
                session.identity == open.identity.as_str()
                    && session.nonce == open.nonce
                    && !session.closed
            });
            if let Some((id, session)) = again {
                return opened(*id, session);
            }
            self.last_boot += 1;
            self.last_session += 1;
            let session = NaiveSession {
                identity: open.identity.as_str().to_owned(),
                boot: Boot(self.last_boot),
                nonce: open.nonce,
                reports: Vec::new(),
                hashes: Vec::new(),
                closed: false,
            };
            let reply = opened(SessionId(self.last_session), &session);
            self.sessions.insert(SessionId(self.last_session), session);
            return reply;
        };
        let Some(session) = self.sessions.get_mut(&id) else {
            return OpenSessionReply::Unknown;
        };
        if session.identity != open.identity.as_str() {
            return OpenSessionReply::Unknown;
        }
        if session.closed {
            return OpenSessionReply::Expired;
        }
        if open.nonce < session.nonce {
            return OpenSessionReply::StaleNonce {
                last: session.nonce,
            };
        }
        if open.nonce > session.nonce {
            self.last_boot += 1;
            session.boot = Boot(self.last_boot);
            session.nonce = open.nonce;
        }
        opened(id, session)
    }

    fn position(&mut self, position: &Position) -> PositionReply {
        let current = self
            .slots
            .get(&position.slot)
            .map_or(0, |(epoch, _)| *epoch);
        let outcome = if current == position.epoch.0 {
            let mut lines = Vec::new();
            for line in &position.lines {
                let (acquired, returned) = (line.acquired_total, line.returned_total);
                let outcome = self.line(&line.account, current, acquired, returned);
                lines.push((line.account.clone(), outcome));
            }
            PositionOutcome::Lines(lines)
        } else {
            PositionOutcome::WrongEpoch {
                current: Epoch(current),
            }
        };
        PositionReply {
            slot: position.slot,
            epoch: position.epoch,
            outcome,
        }
    }

    fn line(
        &mut self,
        account: &AccountId,
        epoch: u64,
        acquired: u64,
        returned: u64,
    ) -> LineOutcome {
        let limit = self.limits.get(account).copied();
        if limit.is_none() && !self.rows.contains_key(account) {
            return LineOutcome::NoLimit {
                acquired_total: 0,
                returned_total: 0,
            };
        }
        self.touched.push(account.clone());
        let row = self.rows.entry(account.clone()).or_default();
        if row.epoch != epoch {
            (row.epoch, row.acquired, row.returned) = (epoch, 0, 0);
        }
        if returned > row.returned {
            let back = returned - row.returned;
            if back > row.out {
                let text = format!("returned {back} units while {} were out", row.out);
                self.broken
                    .get_or_insert(("I2 returned beyond out", account.clone(), text));
            }
            row.out -= back.min(row.out);
            row.returned = returned;
        }
        if acquired > row.acquired {
            let committed = row.settled - row.excess + row.out;
            let room = limit.unwrap_or(0).saturating_sub(committed);
            let granted = room.min(acquired - row.acquired);
            row.out += granted;
            row.acquired += granted;
        }
        let (acquired_total, returned_total) = (row.acquired, row.returned);
        match limit {
            Some(_) => LineOutcome::Stands {
                acquired_total,
                returned_total,
            },
            None => LineOutcome::NoLimit {
                acquired_total,
                returned_total,
            },
        }
    }

    fn report(&mut self, report: &Report) -> ReportReply {
        let Some(session) = self.sessions.get_mut(&report.session) else {
            return ReportReply::Unknown;
        };
        if session.closed {
            return ReportReply::Expired;
        }
        if session.boot != report.boot {
            return ReportReply::Fenced;
        }
        let last = session.reports.len();
        let seq = usize::try_from(report.seq.0).unwrap_or(usize::MAX);
        if seq <= last {
            let kept = last - seq < HASHES_KEPT;
            if kept && session.hashes[seq - 1] != report.hash {
                return ReportReply::HashMismatch { seq: report.seq };
            }
            return ReportReply::Settled {
                last_seq: Seq(last as u64),
            };
        }
        if seq > last + 1 {
            return ReportReply::Gap {
                expected: Seq(last as u64 + 1),
            };
        }
        session.reports.push(report.spent.clone());
        session.hashes.push(report.hash);
        for SpentLine {
            account,
            leased,
            unleased,
        } in &report.spent
        {
            self.touched.push(account.clone());
            let of = (session.identity.clone(), account.clone());
            *self.by_identity.entry(of).or_default() += leased + unleased;
            let row = self.rows.entry(account.clone()).or_default();
            let covered = row.out.min(*leased);
            row.out -= covered;
            row.settled += leased + unleased;
            row.excess += leased - covered + unleased;
            if covered < *leased {
                let text =
                    format!("a report settles {leased} leased units, only {covered} were out");
                self.broken
                    .get_or_insert(("I1 excess = 0", account.clone(), text));
            }
        }
        ReportReply::Settled {
            last_seq: report.seq,
        }
    }

    fn close(&mut self, close: &CloseSession) -> ReportReply {
        let Some(session) = self.sessions.get_mut(&close.session) else {
            return ReportReply::Unknown;
        };
        let last = Seq(session.reports.len() as u64);
        if session.closed {
            return match session.boot == close.boot {
                true => ReportReply::Settled { last_seq: last },
                false => ReportReply::Expired,
            };
        }
        if session.boot != close.boot {
            return ReportReply::Fenced;
        }
        if last != close.last_seq {
            return ReportReply::Gap {
                expected: last.next(),
            };
        }
        session.closed = true;
        ReportReply::Settled { last_seq: last }
    }
}

fn opened(session: SessionId, known: &NaiveSession) -> OpenSessionReply {
    let last_seq = Seq(known.reports.len() as u64);
    OpenSessionReply::Opened {
        session,
        boot: known.boot,
        last_seq,
    }
}
