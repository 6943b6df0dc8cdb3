//! [`Writer`]: the journal behind a task of its own, so that a slow disk holds up nothing but reports.

use crate::journal::{Journal, JournalEntry, JournalError};
use tokio::task::JoinHandle;
use tollgate_core::ids::Seq;

/// What is to be done with the journal, in order.
pub(super) enum Step {
    Append(JournalEntry),
    /// See [`Journal::put_aside`].
    PutAside,
}

type Written = (Box<Journal>, Result<(), JournalError>);

enum State {
    /// No journal is kept.
    None,
    Idle(Box<Journal>),
    Busy(JoinHandle<Written>),
    /// It failed: nothing may be sent that is not on disk.
    Broken,
}

/// See the module's text.
pub(super) struct Writer {
    state: State,
    steps: Vec<Step>,
    /// Steps given, handed to the disk, done.
    given: u64,
    handed: u64,
    done: u64,
    /// The last report handed to the disk.
    handed_seq: Option<Seq>,
}

/// How far the writer got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(u64);

impl Writer {
    pub(super) fn new(journal: Option<Journal>) -> Self {
        let state = journal.map_or(State::None, |journal| State::Idle(Box::new(journal)));
        Self {
            state,
            steps: Vec::new(),
            given: 0,
            handed: 0,
            done: 0,
            handed_seq: None,
        }
    }

    pub(super) fn keeps_journal(&self) -> bool {
        !matches!(self.state, State::None)
    }

    /// Queues steps; done once [`Writer::is_done`] says so of the ticket. Without a journal at once.
    pub(super) fn push(&mut self, steps: impl IntoIterator<Item = Step>) -> Ticket {
        if self.keeps_journal() {
            let before = self.steps.len();
            self.steps.extend(steps);
            self.given += (self.steps.len() - before) as u64;
        }
        Ticket(self.given)
    }

    pub(super) fn is_done(&self, ticket: Ticket) -> bool {
        self.done >= ticket.0
    }

    pub(super) fn is_idle(&self) -> bool {
        self.done == self.given
    }

    /// Whether a checkpoint may be queued: the one before is on disk, so they never pile up.
    pub(super) fn has_room(&self) -> bool {
        self.steps.is_empty()
    }

    /// Begins to write what is queued, unless a write is under way.
    pub(super) fn start(&mut self) {
        if self.steps.is_empty() || !matches!(self.state, State::Idle(_)) {
            return;
        }
        let State::Idle(mut journal) = std::mem::replace(&mut self.state, State::Broken) else {
            return;
        };
        let steps = std::mem::take(&mut self.steps);
        self.handed = self.given;
        self.handed_seq = steps
            .iter()
            .filter_map(|step| match step {
                Step::Append(JournalEntry::Report(report)) => Some(report.seq),
                _ => None,
            })
            .next_back();
        let task = move || {
            let result = carry_out(&mut journal, steps);
            (journal, result)
        };
        self.state = State::Busy(tokio::task::spawn_blocking(task));
    }

    /// Waits for the write under way; for ever if there is none. Answers the last report that is on disk
    /// by it. Cancel safe.
    pub(super) async fn finished(&mut self) -> Result<Option<Seq>, JournalError> {
        let State::Busy(task) = &mut self.state else {
            return std::future::pending().await;
        };
        let finished = task.await;
        self.state = State::Broken;
        let (journal, result) = finished.map_err(|error| JournalError::Io {
            path: "of this edge".into(),
            source: std::io::Error::other(error),
        })?;
        result?;
        self.state = State::Idle(journal);
        self.done = self.handed;
        Ok(self.handed_seq.take())
    }
}

fn carry_out(journal: &mut Journal, steps: Vec<Step>) -> Result<(), JournalError> {
    let mut entries = Vec::new();
    for step in steps {
        match step {
            Step::Append(entry) => entries.push(entry),
            Step::PutAside => {
                journal.append(&entries)?;
                entries.clear();
                let aside = journal.put_aside()?;
                tracing::error!(
                    aside = %aside.display(),
                    "the session of this journal is lost: what it held is put aside and is not billed"
                );
            }
        }
    }
    journal.append(&entries)
}
