//! Who this edge is to the ledger: opening a session, going on with one, being fenced.
//!
//! A start number is on disk before it leaves ([`Session::ticket`]), so that a start that died cannot fence
//! a later one. Without a journal a fenced edge stops: another process goes on in its name. With one the
//! journal's lock proves that this process is the only one, so it opens again and keeps its cells.

use super::writer::{Step, Ticket};
use super::{Driver, Mono, Stream};
use crate::journal::{JournalEntry, Kept, entries_of};
use crate::status::SessionState;
use tollgate_core::command::OpenSessionReply;
use tollgate_core::ids::{Boot, Incarnation, NodeId, Nonce, Seq, SessionId};
use tollgate_core::ledger::sessions::SESSION_RETENTION_MS;
use tollgate_core::message::EdgeMessage;
use tollgate_core::reporter::Reporter;

/// An unanswered opening is repeated, at another node, after this.
const OPEN_AGAIN_MS: u64 = 1000;
/// Pause before another node is asked because one could not answer.
const ELSEWHERE_MS: u64 = 100;
/// How often an open session is opened again under the same number, which changes nothing but when the ledger heard
/// of it: an edge that has no use to report must not be taken for one that is gone.
const SAY_AGAIN_MS: u64 = 24 * 3_600_000;

const _: () = assert!(SAY_AGAIN_MS * 7 < SESSION_RETENTION_MS);

enum Phase {
    Opening {
        /// The session to go on with.
        session: Option<SessionId>,
        asked: Option<(NodeId, Mono)>,
    },
    Open {
        session: SessionId,
        boot: Boot,
        /// When the ledger was told last.
        said_at: Mono,
    },
    Failed(String),
    Closed,
}

/// See the module's text.
pub(super) struct Session {
    phase: Phase,
    nonce: Nonce,
    /// When the start number is on disk.
    ticket: Option<Ticket>,
    /// What a journal held before this start, until a session is open.
    kept: Option<Kept>,
    incarnation: Option<Incarnation>,
}

impl Session {
    pub(super) fn new(nonce: Nonce, kept: Option<Kept>) -> Self {
        let session = kept
            .as_ref()
            .and_then(|kept| kept.session)
            .map(|(session, _)| session);
        let phase = Phase::Opening {
            session,
            asked: None,
        };
        Self {
            phase,
            nonce,
            ticket: None,
            kept,
            incarnation: None,
        }
    }

    pub(super) fn boot(&self) -> Option<Boot> {
        match self.phase {
            Phase::Open { boot, .. } => Some(boot),
            _ => None,
        }
    }

    pub(super) fn is_opening(&self) -> bool {
        matches!(self.phase, Phase::Opening { .. })
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Failed(_) | Phase::Closed)
    }

    pub(super) fn set_closed(&mut self) {
        self.phase = Phase::Closed;
    }

    pub(super) fn state(&self) -> SessionState {
        match &self.phase {
            Phase::Opening { .. } => SessionState::Opening,
            Phase::Open { session, boot, .. } => SessionState::Open {
                session: *session,
                boot: *boot,
            },
            Phase::Failed(reason) => SessionState::Failed(reason.clone()),
            Phase::Closed => SessionState::Closed,
        }
    }

    /// The open session, if the ledger is to hear of it again.
    fn to_say_again(&self, now: Mono) -> Option<SessionId> {
        match self.phase {
            Phase::Open {
                session, said_at, ..
            } if now.since_ms(said_at) >= SAY_AGAIN_MS => Some(session),
            _ => None,
        }
    }

    /// The node that was asked cannot answer: ask another one soon.
    pub(super) fn handle_unable(&mut self, now: Mono, node: NodeId) {
        if let Phase::Opening {
            asked: Some((to, at)),
            ..
        } = &mut self.phase
            && *to == node
        {
            *at = Mono(now.0.saturating_sub(OPEN_AGAIN_MS - ELSEWHERE_MS));
        }
    }
}

impl Driver {
    /// Stops for good; the status says why.
    pub(super) fn fail(&mut self, reason: String) {
        tracing::error!(%reason, "this edge stops");
        self.view.set_open(false);
        self.session.phase = Phase::Failed(reason);
    }

    /// A node told which life of the data it serves.
    pub(super) fn handle_incarnation(&mut self, incarnation: Incarnation) {
        if self.session.incarnation.is_some() {
            return;
        }
        self.session.incarnation = Some(incarnation);
        let kept = self.session.kept.as_ref().and_then(|kept| kept.session);
        if let Some((session, before)) = kept
            && before != incarnation
        {
            tracing::error!(
                %session, %before, now = %incarnation,
                "the cluster was restored: the journal's session belongs to its former life"
            );
            self.open_new_session();
        }
    }

    /// Leaves the session that is lost: what it held is put aside, a new one is opened.
    fn open_new_session(&mut self) {
        self.session.kept = None;
        self.reports.writer.push([Step::PutAside]);
        self.open_again(None);
    }

    /// Opens under the next start number.
    fn open_again(&mut self, session: Option<SessionId>) {
        self.introduce(None, None);
        let drawn = match getrandom::u64() {
            Ok(drawn) => drawn,
            Err(error) => return self.fail(format!("the system has no randomness: {error}")),
        };
        self.session.nonce = self.session.nonce.next_start(drawn);
        if self.reports.writer.keeps_journal() {
            let start = JournalEntry::Start(self.session.nonce);
            self.session.ticket = Some(self.reports.writer.push([Step::Append(start)]));
        }
        self.session.phase = Phase::Opening {
            session,
            asked: None,
        };
    }

    pub(super) fn pump_session(&mut self, now: Mono) {
        self.say_again(now);
        let written = self
            .session
            .ticket
            .is_none_or(|ticket| self.reports.writer.is_done(ticket));
        let Phase::Opening { session, asked } = self.session.phase else {
            return;
        };
        let due = asked.is_none_or(|(_, at)| now.since_ms(at) >= OPEN_AGAIN_MS);
        if !(due && written && self.session.incarnation.is_some()) {
            return;
        }
        let Some(to) = self.nodes.any(asked.map(|(node, _)| node)) else {
            return;
        };
        let nonce = self.session.nonce;
        if self.nodes.send(
            to,
            Stream::Control,
            EdgeMessage::OpenSession { session, nonce },
        ) {
            self.session.phase = Phase::Opening {
                session,
                asked: Some((to, now)),
            };
        }
    }

    fn say_again(&mut self, now: Mono) {
        let (Some(session), Some(to)) = (self.session.to_say_again(now), self.nodes.any(None))
        else {
            return;
        };
        let open = EdgeMessage::OpenSession {
            session: Some(session),
            nonce: self.session.nonce,
        };
        if self.nodes.send(to, Stream::Control, open)
            && let Phase::Open { said_at, .. } = &mut self.session.phase
        {
            *said_at = now;
        }
    }

    pub(super) fn handle_session(&mut self, now: Mono, reply: &OpenSessionReply) {
        let Phase::Opening {
            session: wanted, ..
        } = self.session.phase
        else {
            return;
        };
        match *reply {
            OpenSessionReply::Opened { session, boot, last_seq } => {
                let resumed = wanted == Some(session);
                if !resumed && last_seq > Seq(0) {
                    // Somebody reported under it, and it was not this process: what its boot holds is theirs.
                    tracing::error!(%session, %boot, %last_seq, "a new session is in use; another one is opened");
                    return self.open_new_session();
                }
                if let Err(error) = self.take_session(now, session, boot, last_seq, resumed) {
                    tracing::error!(%error, "the journal cannot be gone on with");
                    self.open_new_session();
                }
            }
            OpenSessionReply::StaleNonce { last } => self.fail(format!(
                "a later start of this edge's session exists (number {last}, this one is {}): another \
                 process has, or had, a copy of its journal; remove the copy, or give this edge a new \
                 journal",
                self.session.nonce
            )),
            OpenSessionReply::Unknown | OpenSessionReply::Expired => {
                tracing::error!(?reply, ?wanted, "the session cannot be gone on with");
                self.open_new_session();
            }
            OpenSessionReply::TooMany { limit } => self.fail(format!(
                "the cluster keeps {limit} open sessions of this edge's identity and takes no other: give \
                 the edge a journal, so that a restart goes on with its session, or stop it cleanly, which \
                 closes it; each ends by itself after 35 days of silence"
            )),
            OpenSessionReply::OtherIncarnation { current } => {
                self.session.incarnation = Some(current);
                self.open_new_session();
            }
        }
    }

    fn take_session(
        &mut self,
        now: Mono,
        session: SessionId,
        boot: Boot,
        last_seq: Seq,
        resumed: bool,
    ) -> Result<(), tollgate_core::reporter::ResumeError> {
        let journal = self.reports.writer.keeps_journal();
        match (
            &mut self.reports.reporter,
            self.session.kept.take(),
            resumed,
        ) {
            (None, Some(kept), true) => {
                let records = kept.records();
                let reporter = Reporter::resume(now, session, boot, last_seq, records)?;
                self.reports.reporter = Some(reporter);
            }
            (None, kept, _) => {
                let mut reporter = Reporter::new(session, boot, journal);
                // Written after the session before it was lost: in no report of any session.
                let unreported = kept.filter(|kept| kept.session.is_none());
                if let Some((_, spent, usage)) = unreported.and_then(|kept| kept.checkpoint) {
                    reporter.add_lines(now, &(spent, usage));
                }
                self.reports.reporter = Some(reporter);
            }
            (Some(reporter), _, true) => reporter.handle_new_boot(boot),
            (Some(reporter), _, false) => {
                let unknown = reporter.move_to(session, boot);
                if !unknown.is_empty() {
                    tracing::error!(
                        reports = unknown.len(),
                        "reports of the lost session have an unknown fate and are not sent again"
                    );
                }
            }
        }
        if let (false, Some(incarnation)) = (resumed, self.session.incarnation) {
            let entry = JournalEntry::Session {
                session,
                incarnation,
            };
            // What was written before counts for the session before: it is written anew.
            let checkpoint = self
                .reports
                .reporter
                .as_ref()
                .and_then(Reporter::checkpoint);
            let entries = checkpoint.into_iter().flat_map(entries_of);
            let entries = std::iter::once(entry).chain(entries);
            self.reports.writer.push(entries.map(Step::Append));
        }
        self.lessee.handle_new_boot(now, boot);
        self.introduce(self.session.incarnation, Some(boot));
        self.session.phase = Phase::Open {
            session,
            boot,
            said_at: now,
        };
        if self.closing.is_none() {
            self.view.set_open(true);
        }
        for node in self.nodes.connected().collect::<Vec<_>>() {
            // Ties the connections that stand to this boot; later ones begin with it.
            let hello = self.introduction.borrow().hello();
            self.nodes
                .send(node, Stream::Control, EdgeMessage::Hello(hello));
        }
        self.keep_alive(now);
        tracing::info!(%session, %boot, resumed, "session open");
        Ok(())
    }

    /// The ledger knows a later boot of this session.
    pub(super) fn handle_fenced(&mut self) {
        let Phase::Open { session, boot, .. } = self.session.phase else {
            return;
        };
        if self.reports.writer.keeps_journal() {
            tracing::warn!(%session, %boot, "fenced; the journal is still ours, opening again");
            self.open_again(Some(session));
        } else {
            self.fail(format!(
                "fenced: another process opened session {session} after boot {boot}, or the cluster did not hear of \
                 it for 35 days. Does another process use the same certificate? Give each edge its own, and a \
                 journal if it shall come back after this"
            ));
        }
    }

    /// The session ended without us, or its numbers do not fit: go on in a new one.
    pub(super) fn handle_session_lost(&mut self, why: &str) {
        if matches!(self.session.phase, Phase::Open { .. }) {
            tracing::error!(why, "the session is lost, a new one is opened");
            self.open_new_session();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ledger_hears_of_an_open_session_every_day() {
        let mut session = Session::new(Nonce(7), None);
        assert_eq!(
            session.to_say_again(Mono(3 * SAY_AGAIN_MS)),
            None,
            "opening"
        );
        session.phase = Phase::Open {
            session: SessionId(3),
            boot: Boot(4),
            said_at: Mono(1000),
        };
        assert_eq!(session.to_say_again(Mono(SAY_AGAIN_MS + 999)), None);
        assert_eq!(
            session.to_say_again(Mono(SAY_AGAIN_MS + 1000)),
            Some(SessionId(3))
        );
        session.phase = Phase::Closed;
        assert_eq!(session.to_say_again(Mono(3 * SAY_AGAIN_MS)), None);
    }
}
