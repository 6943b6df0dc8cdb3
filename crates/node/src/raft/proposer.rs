//! Turns commands into log entries: what arrives while a commit is under way becomes the next round.
//!
//! One round at a time, no waiting when idle: the queue that builds up during a commit *is* the batch. A round is up to
//! [`ROUND_ENTRIES_MAX`] entries that share the flush on every node. A follower sends its rounds to the leader, whose
//! proposer queues them like its own. A command ends in a reply, *certainly not taken*, or *unknown fate*; it is never
//! sent again once it may have been taken: that is the caller's, for whom repeating is safe. It is answered within
//! [`PROPOSE_DEADLINE`]: no round outlasts what its oldest command may wait, and none takes a command that could not wait
//! for a round any more. Next: [`super::types::Batch`], what the log carries.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt;
use openraft::errors::{ClientWriteError, Fatal};
use serde_bytes::{ByteBuf, Bytes};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tollgate_wire::frame::Class;

use super::message::{self, Answer, Call, Fate};
use super::node::Hooks;
use super::transport::{CallError, Peer, Transport};
use super::types::{Batch, Raft, Replies};
use crate::batch::{self, BATCH_BYTES_MAX};
use crate::consensus::PROPOSE_DEADLINE;
use crate::machine;
use crate::storage::RECORD_BYTES_MAX;

/// Bytes of one encoded log entry's commands: the record around it fits the store's bound.
pub const ENTRY_BYTES_MAX: usize = RECORD_BYTES_MAX - 256;

/// Commands in one log entry.
pub const COMMANDS_PER_ENTRY_MAX: usize = 8192;

/// Log entries proposed together; they share one flush and one append call.
pub const ROUND_ENTRIES_MAX: usize = 12;

/// Bytes of commands forwarded in one call: the replies, which are larger, must fit a frame too.
const FORWARD_BYTES_MAX: usize = 128 * 1024;

/// Commands that may wait for their round; further ones are refused at once.
pub const QUEUE_MAX: usize = 32_768;

/// Bytes of commands that may wait for their round.
pub const QUEUE_BYTES_MAX: usize = 64 << 20;

/// How long a command waits to be taken, over elections and full queues, before it is given back. From then on until
/// [`PROPOSE_DEADLINE`] is the least that is left for the round it is taken in.
const TAKE_DEADLINE: Duration = Duration::from_secs(2);

const _: () = assert!(TAKE_DEADLINE.as_millis() < PROPOSE_DEADLINE.as_millis());

/// How long a round may take to commit and apply before its fate counts as unknown.
const COMMIT_DEADLINE: Duration = Duration::from_millis(2500);

/// Pause after a round that nobody took, unless the leader changes meanwhile.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// Why a command has no reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Certainly not taken: this node does not lead, and the command was for the leader alone.
    #[error("this node does not lead, node {leader:?} may")]
    NotLeader {
        /// The leader, as far as known.
        leader: Option<u64>,
    },
    /// Certainly not taken: nobody led, or the leader could not be reached, for 2 s.
    #[error("no leader took the command within {TAKE_DEADLINE:?}: {0}")]
    NotTaken(String),
    /// Certainly not taken: too many commands or bytes are waiting.
    #[error("too many commands are waiting")]
    Overloaded,
    /// It may have been applied, or may yet be.
    #[error("the fate of the command is unknown: {0}")]
    UnknownFate(String),
    /// Certainly not taken: it fits no log entry.
    #[error("the command has {found} bytes, expected at most {limit}")]
    TooLarge {
        /// Its size.
        found: usize,
        /// The bound.
        limit: usize,
    },
    /// Certainly not taken: the node stops.
    #[error("the node stops")]
    Stopped,
}

type Reply = Result<Vec<u8>, ProposeError>;

struct Job {
    command: ByteBuf,
    /// Came from another node: goes no further.
    forwarded: bool,
    queued_at: Instant,
    answer: oneshot::Sender<Reply>,
    _room: Room,
}

/// A command's share of [`QUEUE_BYTES_MAX`], given back when it is dropped.
struct Room {
    bytes: usize,
    queued: Arc<AtomicUsize>,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.queued.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The way into the proposer. Clones share it.
#[derive(Clone)]
pub(crate) struct Queue {
    jobs: mpsc::Sender<Job>,
    queued: Arc<AtomicUsize>,
}

impl Queue {
    pub(crate) fn new() -> (Self, Incoming) {
        let (jobs, incoming) = mpsc::channel(QUEUE_MAX);
        (
            Self {
                jobs,
                queued: Arc::default(),
            },
            Incoming(incoming),
        )
    }

    /// Queues a command, in the order of calls; the future is its reply.
    pub(crate) fn submit(&self, command: Vec<u8>) -> impl Future<Output = Reply> + Send + use<> {
        let queued = self.enqueue(ByteBuf::from(command), false);
        async move { queued?.await.unwrap_or_else(|_| Err(unanswered())) }
    }

    /// Queues what another node sent; the future is the fate of each.
    pub(crate) fn take_forwarded(
        &self,
        commands: Vec<ByteBuf>,
    ) -> impl Future<Output = Vec<Fate>> + Send + use<> {
        let queued: Vec<_> = commands
            .into_iter()
            .map(|command| self.enqueue(command, true))
            .collect();
        async move {
            let mut fates = Vec::with_capacity(queued.len());
            for answer in queued {
                let reply = match answer {
                    Ok(answer) => answer.await.unwrap_or_else(|_| Err(unanswered())),
                    Err(error) => Err(error),
                };
                fates.push(match reply {
                    Ok(bytes) => Fate::Applied(ByteBuf::from(bytes)),
                    Err(ProposeError::UnknownFate(words)) => Fate::Unknown(words),
                    Err(error) => Fate::NotTaken(error.to_string()),
                });
            }
            fates
        }
    }

    fn enqueue(
        &self,
        command: ByteBuf,
        forwarded: bool,
    ) -> Result<oneshot::Receiver<Reply>, ProposeError> {
        let bytes = command.len();
        if bytes > COMMAND_BYTES_MAX {
            return Err(ProposeError::TooLarge {
                found: bytes,
                limit: COMMAND_BYTES_MAX,
            });
        }
        let before = self.queued.fetch_add(bytes, Ordering::Relaxed);
        let room = Room {
            bytes,
            queued: self.queued.clone(),
        };
        if before + bytes > QUEUE_BYTES_MAX {
            return Err(ProposeError::Overloaded);
        }
        let (answer, answered) = oneshot::channel();
        let job = Job {
            command,
            forwarded,
            queued_at: Instant::now(),
            answer,
            _room: room,
        };
        match self.jobs.try_send(job) {
            Ok(()) => Ok(answered),
            Err(mpsc::error::TrySendError::Full(_)) => Err(ProposeError::Overloaded),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(ProposeError::Stopped),
        }
    }
}

/// The other end of a [`Queue`].
pub(crate) struct Incoming(mpsc::Receiver<Job>);

/// Bytes of an encoded length, at most.
const LENGTH_BYTES_MAX: usize = 9;

/// Bytes of an entry beside its commands: how it is packed, ledger time and their number.
const ENTRY_OVERHEAD: usize = batch::HEAD_BYTES + 2 * LENGTH_BYTES_MAX;

const _: () = assert!(ENTRY_BYTES_MAX <= BATCH_BYTES_MAX);

/// Bytes of the largest command: alone in an entry, it fits.
const COMMAND_BYTES_MAX: usize = ENTRY_BYTES_MAX - ENTRY_OVERHEAD - LENGTH_BYTES_MAX;

const _: () = assert!(machine::COMMAND_BYTES_MAX <= COMMAND_BYTES_MAX);

/// A command's bytes in an entry, never less than they are.
fn encoded_bytes(command: &ByteBuf) -> usize {
    let length = match command.len() {
        0..=250 => 1,
        251..=65_535 => 3,
        _ => LENGTH_BYTES_MAX,
    };
    command.len() + length
}

/// Who leads, as this node knows it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) enum Leader {
    /// Nobody that is known.
    #[default]
    Unknown,
    /// This node.
    Here,
    /// Another node.
    There(Peer),
}

/// The proposer's task.
pub(crate) struct Proposer {
    pub(crate) raft: Raft,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) hooks: Hooks,
    pub(crate) leader: watch::Receiver<Leader>,
    pub(crate) stopping: watch::Receiver<bool>,
}

impl Proposer {
    /// Works until the node stops; what is queued then is answered with [`ProposeError::Stopped`].
    pub(crate) async fn run(mut self, Incoming(mut queue): Incoming) {
        let mut held: VecDeque<Job> = VecDeque::new();
        loop {
            if held.is_empty() {
                tokio::select! {
                    job = queue.recv() => match job {
                        Some(job) => held.push_back(job),
                        None => return,
                    },
                    _ = self.stopping.wait_for(|stopping| *stopping) => break,
                }
            }
            while held.len() < QUEUE_MAX
                && let Ok(job) = queue.try_recv()
            {
                held.push_back(job);
            }
            if *self.stopping.borrow() {
                break;
            }
            drop_late(&mut held);
            let leader = self.leader.borrow_and_update().clone();
            if leader != Leader::Here && held.iter().any(|job| job.forwarded) {
                // Not after the call below, whose end they need not wait for.
                give_back(&mut held, &leader, "this node does not lead");
            }
            let untaken = match &leader {
                Leader::Here => self.propose(&mut held).await,
                Leader::There(peer) => self.forward(&mut held, peer).await,
                Leader::Unknown => Some("no leader is known".to_owned()),
            };
            if let Some(words) = untaken {
                give_back(&mut held, &leader, &words);
                if !held.is_empty() {
                    self.pause().await;
                }
            }
        }
        queue.close();
        while let Ok(job) = queue.try_recv() {
            held.push_back(job);
        }
        for job in held {
            drop(job.answer.send(Err(ProposeError::Stopped)));
        }
    }

    async fn pause(&mut self) {
        tokio::select! {
            () = tokio::time::sleep(RETRY_PAUSE) => {}
            // An error means that the node stops, which the loop looks at next.
            _ = self.leader.changed() => {}
            _ = self.stopping.wait_for(|stopping| *stopping) => {}
        }
    }

    /// Proposes one round from the front of `held`. Untaken commands are put back; the answer says why.
    async fn propose(&self, held: &mut VecDeque<Job>) -> Option<String> {
        let mut rounds: VecDeque<Vec<Job>> = VecDeque::new();
        let mut entries = Vec::new();
        let time = (self.hooks.time)();
        while entries.len() < ROUND_ENTRIES_MAX {
            let jobs = take_entry(held, ENTRY_BYTES_MAX - ENTRY_OVERHEAD);
            if jobs.is_empty() {
                break;
            }
            let commands = jobs.iter().map(|job| Bytes::new(&job.command)).collect();
            match (batch::Batch { time, commands }).pack() {
                Ok(bytes) => {
                    entries.push(Batch::from(bytes));
                    rounds.push_back(jobs);
                }
                Err(error) => fail(jobs, &ProposeError::NotTaken(error.to_string())),
            }
        }
        if entries.is_empty() {
            return None;
        }
        let deadline = round_deadline(rounds.iter().flatten(), COMMIT_DEADLINE);
        let mut untaken = None;
        match tokio::time::timeout_at(deadline, self.raft.client_write_many(entries)).await {
            Ok(Ok(mut results)) => {
                let mut rejected = Vec::new();
                while let Some(jobs) = rounds.pop_front() {
                    match tokio::time::timeout_at(deadline, results.next()).await {
                        Ok(Some(Ok(Ok(written)))) => answer(jobs, written.response),
                        Ok(Some(Ok(Err(ClientWriteError::ForwardToLeader(to))))) => {
                            // Rejected before it was appended: nothing of it is in any log.
                            untaken = Some(to.to_string());
                            rejected.push(jobs);
                        }
                        Ok(Some(Ok(Err(error)))) => fail(jobs, &unknown(&error)),
                        Ok(Some(Err(error))) => fail(jobs, &fatal(&error)),
                        Ok(None) => fail(jobs, &unknown(&"openraft gave no answer")),
                        Err(_) => fail(jobs, &unknown(&no_commit())),
                    }
                }
                hold_again(held, rejected.into_iter().flatten().collect());
            }
            Ok(Err(error)) => rounds
                .into_iter()
                .for_each(|jobs| fail(jobs, &fatal(&error))),
            Err(_) => rounds
                .into_iter()
                .for_each(|jobs| fail(jobs, &unknown(&no_commit()))),
        }
        untaken
    }

    /// Sends one round from the front of `held` to the leader.
    async fn forward(&self, held: &mut VecDeque<Job>, leader: &Peer) -> Option<String> {
        let mut jobs = take_entry(held, FORWARD_BYTES_MAX);
        if jobs.is_empty() {
            return None;
        }
        let call = Call::Forward(take_commands(&mut jobs));
        let encoded = message::encode(&call);
        if let Call::Forward(commands) = call {
            put_back(&mut jobs, commands);
        }
        let payload = match encoded {
            Ok(payload) => payload,
            Err(words) => {
                fail(jobs, &ProposeError::NotTaken(words));
                return None;
            }
        };
        // That it was not taken the leader says sooner than this, unless a command has waited here.
        let deadline = round_deadline(&jobs, PROPOSE_DEADLINE);
        let deadline = deadline.saturating_duration_since(Instant::now());
        let mut leads = self.leader.clone();
        let another = |now: &Leader| match now {
            Leader::Unknown => false,
            Leader::Here => true,
            Leader::There(peer) => peer != leader,
        };
        let called = tokio::select! {
            called = self.transport.call(leader, Class::Forward, payload, deadline) => called,
            // A leader that died answers nothing: what waits behind this must not wait for that.
            _ = leads.wait_for(another) => {
                fail(jobs, &unknown(&"the leader changed before it answered"));
                return None;
            }
        };
        let fates = match called.map(|answer| message::decode(&answer)) {
            Ok(Ok(Answer::Forwarded(fates))) if fates.len() == jobs.len() => fates,
            Ok(Ok(Answer::Failed(words))) | Err(CallError::Unreachable(words)) => {
                hold_again(held, jobs);
                return Some(words);
            }
            Ok(Ok(other)) => {
                fail(
                    jobs,
                    &unknown(&format!("an answer to another question: {other:?}")),
                );
                return None;
            }
            Ok(Err(words)) => {
                fail(jobs, &unknown(&words));
                return None;
            }
            Err(error) => {
                fail(jobs, &unknown(&error));
                return None;
            }
        };
        let mut untaken = None;
        for (job, fate) in jobs.into_iter().zip(fates).rev() {
            match fate {
                Fate::Applied(reply) => drop(job.answer.send(Ok(reply.into_vec()))),
                Fate::Unknown(words) => {
                    drop(job.answer.send(Err(ProposeError::UnknownFate(words))));
                }
                Fate::NotTaken(words) => {
                    untaken = Some(words);
                    held.push_front(job);
                }
            }
        }
        untaken
    }
}

/// When a round ends whatever became of it: `most` from now, or when its oldest command has to be answered.
fn round_deadline<'j>(jobs: impl IntoIterator<Item = &'j Job>, most: Duration) -> Instant {
    let oldest = jobs.into_iter().map(|job| job.queued_at).min();
    let most = Instant::now() + most;
    oldest.map_or(most, |oldest| most.min(oldest + PROPOSE_DEADLINE))
}

fn no_commit() -> String {
    format!("no commit within {COMMIT_DEADLINE:?}, or within {PROPOSE_DEADLINE:?} of being queued")
}

/// What a job says that was dropped: whoever ends in order answers all, so it may have been under way.
fn unanswered() -> ProposeError {
    unknown(&"the proposer ended without an answer")
}

fn unknown(words: &dyn std::fmt::Display) -> ProposeError {
    ProposeError::UnknownFate(words.to_string())
}

fn fatal(error: &Fatal<super::types::TypeConfig>) -> ProposeError {
    // Even a stopping core may have written the entry, and another node may find it.
    unknown(&format!("Raft has stopped: {error}"))
}

fn fail(jobs: Vec<Job>, error: &ProposeError) {
    for job in jobs {
        drop(job.answer.send(Err(error.clone())));
    }
}

/// Puts jobs that were not taken back before the others, in their order.
fn hold_again(held: &mut VecDeque<Job>, untaken: Vec<Job>) {
    for job in untaken.into_iter().rev() {
        held.push_front(job);
    }
}

/// Gives every job its reply.
fn answer(jobs: Vec<Job>, Replies(replies): Replies) {
    if replies.len() != jobs.len() {
        let words = format!("{} replies to {} commands", replies.len(), jobs.len());
        return fail(jobs, &unknown(&words));
    }
    for (job, reply) in jobs.into_iter().zip(replies) {
        // Nobody may wait any more: the caller had a deadline.
        drop(job.answer.send(Ok(reply)));
    }
}

/// Lends the commands out of their jobs to be encoded, which spares a copy of each; [`put_back`] ends it.
fn take_commands(jobs: &mut [Job]) -> Vec<ByteBuf> {
    jobs.iter_mut()
        .map(|job| std::mem::take(&mut job.command))
        .collect()
}

/// Gives commands back to the jobs they were taken from, which may have to be sent again.
fn put_back(jobs: &mut [Job], commands: Vec<ByteBuf>) {
    for (job, command) in jobs.iter_mut().zip(commands) {
        job.command = command;
    }
}

/// Takes jobs from the front, up to the bounds. Those that nobody waits for any more are dropped: they were never sent.
fn take_entry(held: &mut VecDeque<Job>, bytes_max: usize) -> Vec<Job> {
    let mut taken = Vec::new();
    let mut bytes = 0;
    while let Some(job) = held.pop_front() {
        if job.answer.is_closed() {
            continue;
        }
        bytes += encoded_bytes(&job.command);
        if bytes > bytes_max || taken.len() == COMMANDS_PER_ENTRY_MAX {
            held.push_front(job);
            break;
        }
        taken.push(job);
    }
    taken
}

/// Answers those in front that have waited too long behind others to be taken still.
fn drop_late(held: &mut VecDeque<Job>) {
    let now = Instant::now();
    let late = |job: &Job| now >= job.queued_at + TAKE_DEADLINE;
    while held.front().is_some_and(late)
        && let Some(job) = held.pop_front()
    {
        let words = "others were before it".to_owned();
        drop(job.answer.send(Err(ProposeError::NotTaken(words))));
    }
}

/// Answers those that have waited long enough, and forwarded ones at once: their node knows where to turn.
fn give_back(held: &mut VecDeque<Job>, leader: &Leader, words: &str) {
    let now = Instant::now();
    let waits = |job: &Job| now < job.queued_at + TAKE_DEADLINE;
    let keep = |job: &Job| waits(job) && (!job.forwarded || *leader == Leader::Here);
    for job in std::mem::take(held) {
        if keep(&job) {
            held.push_back(job);
            continue;
        }
        let error = match leader {
            Leader::There(peer) if job.forwarded => ProposeError::NotLeader {
                leader: Some(peer.node),
            },
            Leader::Unknown if job.forwarded => ProposeError::NotLeader { leader: None },
            _ => ProposeError::NotTaken(words.to_owned()),
        };
        drop(job.answer.send(Err(error)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(queue: &Queue, incoming: &mut Incoming) -> (Job, oneshot::Receiver<Reply>) {
        let answered = queue.enqueue(ByteBuf::from(b"command".to_vec()), false);
        (incoming.0.try_recv().unwrap(), answered.unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn no_command_is_taken_late_and_no_round_outlasts_its_oldest() {
        let (queue, mut incoming) = Queue::new();
        let (old, mut refused) = job(&queue, &mut incoming);
        tokio::time::advance(Duration::from_millis(1500)).await;
        let (young, mut waits) = job(&queue, &mut incoming);
        let left = |jobs: &VecDeque<Job>| round_deadline(jobs, COMMIT_DEADLINE) - Instant::now();
        let mut held = VecDeque::from([old, young]);
        assert_eq!(left(&held), Duration::from_millis(1500));
        drop_late(&mut held);
        assert_eq!(held.len(), 2);
        tokio::time::advance(Duration::from_millis(500)).await;
        drop_late(&mut held);
        assert!(matches!(
            refused.try_recv(),
            Ok(Err(ProposeError::NotTaken(_)))
        ));
        assert!(waits.try_recv().is_err(), "it is not answered yet");
        assert_eq!((held.len(), left(&held)), (1, COMMIT_DEADLINE));
    }

    #[tokio::test]
    async fn what_is_held_again_keeps_its_order() {
        let (queue, mut incoming) = Queue::new();
        let mut jobs = Vec::new();
        for number in 0..6_u8 {
            let answered = queue.enqueue(ByteBuf::from(vec![number]), false).unwrap();
            jobs.push((incoming.0.try_recv().unwrap(), answered));
        }
        let (jobs, _answers): (Vec<_>, Vec<_>) = jobs.into_iter().unzip();
        let mut held = VecDeque::from(jobs);
        let rounds = [take_entry(&mut held, 4), take_entry(&mut held, 4)];
        assert_eq!(rounds.each_ref().map(Vec::len), [2, 2]);
        hold_again(&mut held, rounds.into_iter().flatten().collect());
        let order: Vec<u8> = held.iter().map(|job| job.command[0]).collect();
        assert_eq!(order, [0, 1, 2, 3, 4, 5]);
    }

    #[tokio::test]
    async fn a_command_that_is_dropped_has_an_unknown_fate() {
        let (queue, mut incoming) = Queue::new();
        let (reply, fates) = (
            queue.submit(b"own".to_vec()),
            queue.take_forwarded(vec![ByteBuf::from(b"forwarded".to_vec())]),
        );
        while incoming.0.try_recv().is_ok() {}
        assert!(matches!(reply.await, Err(ProposeError::UnknownFate(_))));
        assert!(matches!(fates.await[..], [Fate::Unknown(_)]));
    }
}
