//! Calls over QUIC: one connection per node pair and direction, one long-lived framed stream per class on it.
//!
//! A frame is a call number (u64, little-endian) and the call's bytes; the answer carries the same number. A lane (a
//! stream and the task that owns it) is opened by the first call and again after it broke; everything unanswered on a
//! broken lane has an unknown fate. Next: [`super::inbound`], the other end.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use tollgate_core::ids::NodeId;
use tollgate_wire::frame::{COALESCE_MAX, Class, FrameReadError, PushError};
use tollgate_wire::quic::{Connection, Dialer, Endpoint, Framed, Protocol};

use super::transport::{CallError, Peer, Transport};
use crate::storage::SnapshotFile;

/// Calls that may wait for a lane to send them; further ones are refused.
pub const LANE_QUEUE_MAX: usize = 1024;

/// Calls of one lane without an answer; more wait in the queue.
pub const UNANSWERED_MAX: usize = 1024;

/// Piece of a snapshot in one frame.
pub(crate) const SNAPSHOT_PIECE_BYTES: usize = 256 * 1024;

/// Bytes of the call number in front of each payload.
pub(crate) const NUMBER_BYTES: usize = 8;

/// The classes on which nodes call each other.
const CLASSES: [Class; 3] = [Class::Control, Class::Append, Class::Forward];

/// Connections to the other nodes, made when asked for.
pub struct Peers {
    endpoint: Endpoint,
    known: Mutex<BTreeMap<u64, Arc<Link>>>,
}

/// One node, with its lanes.
struct Link {
    address: String,
    dialer: Dialer,
    lanes: [mpsc::Sender<Job>; CLASSES.len()],
}

struct Job {
    payload: Vec<u8>,
    answer: oneshot::Sender<Result<Vec<u8>, CallError>>,
}

impl Peers {
    /// Calls from this endpoint.
    #[must_use]
    pub fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            known: Mutex::new(BTreeMap::new()),
        }
    }

    fn link(&self, to: &Peer) -> Arc<Link> {
        // Nothing panics while it is held; a map of links is valid after any insert.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match known.get(&to.node) {
            Some(link) if link.address == to.address => link.clone(),
            _ => {
                let link = Arc::new(Link::new(self.endpoint.clone(), to));
                known.insert(to.node, link.clone());
                link
            }
        }
    }
}

impl Link {
    fn new(endpoint: Endpoint, to: &Peer) -> Self {
        let dialer = Dialer::new(
            endpoint,
            NodeId(to.node),
            to.address.clone(),
            Protocol::Raft,
        );
        let lanes = CLASSES.map(|class| {
            let (queue, jobs) = mpsc::channel(LANE_QUEUE_MAX);
            // Ends when the link is dropped: with the queue's last sender.
            tokio::spawn(keep_lane(dialer.clone(), class, jobs));
            queue
        });
        Self {
            address: to.address.clone(),
            dialer,
            lanes,
        }
    }
}

impl Transport for Peers {
    fn call(
        &self,
        to: &Peer,
        class: Class,
        payload: Vec<u8>,
        deadline: Duration,
    ) -> BoxFuture<'static, Result<Vec<u8>, CallError>> {
        let link = self.link(to);
        let (answer, answered) = oneshot::channel();
        let queued = match CLASSES.iter().position(|known| *known == class) {
            Some(lane) => link.lanes[lane]
                .try_send(Job { payload, answer })
                .map_err(|error| {
                    CallError::Unreachable(match error {
                        mpsc::error::TrySendError::Full(_) => "too many calls are waiting".into(),
                        mpsc::error::TrySendError::Closed(_) => "the node stops".into(),
                    })
                }),
            None => Err(CallError::Unreachable(format!(
                "{class:?} is no class of calls"
            ))),
        };
        Box::pin(async move {
            queued?;
            let result = tokio::time::timeout(deadline, answered).await;
            drop(link);
            match result {
                Ok(Ok(result)) => result,
                Ok(Err(_)) => Err(CallError::Broken("the node stops".into())),
                Err(_) => Err(CallError::Deadline(deadline)),
            }
        })
    }

    fn send_snapshot(
        &self,
        to: &Peer,
        start: Vec<u8>,
        file: SnapshotFile,
        deadline: Duration,
    ) -> BoxFuture<'static, Result<Vec<u8>, CallError>> {
        let link = self.link(to);
        Box::pin(async move {
            let sent = async {
                let connection = link
                    .dialer
                    .connection()
                    .await
                    .map_err(|error| CallError::Unreachable(error.to_string()))?;
                stream_snapshot(&connection, start, file).await
            };
            tokio::time::timeout(deadline, sent)
                .await
                .unwrap_or(Err(CallError::Deadline(deadline)))
        })
    }
}

async fn stream_snapshot(
    connection: &Connection,
    start: Vec<u8>,
    file: SnapshotFile,
) -> Result<Vec<u8>, CallError> {
    let broken = |error: &dyn std::fmt::Display| CallError::Broken(error.to_string());
    let Framed {
        mut writer,
        mut reader,
    } = connection
        .open_framed(Class::Snapshot)
        .await
        .map_err(|error| CallError::Unreachable(error.to_string()))?;
    writer.push(&start).map_err(|error| broken(&error))?;
    let mut offset = 0;
    loop {
        writer.flush().await.map_err(|error| broken(&error))?;
        let from = file.clone();
        let read = tokio::task::spawn_blocking(move || {
            let mut piece = vec![0; SNAPSHOT_PIECE_BYTES];
            from.read_at(&mut piece, offset).map(|taken| {
                piece.truncate(taken);
                piece
            })
        });
        let piece = read
            .await
            .map_err(|error| broken(&error))?
            .map_err(|error| broken(&error))?;
        offset += piece.len() as u64;
        // An empty piece is the end; the stream stays open for the answer.
        writer.push(&piece).map_err(|error| broken(&error))?;
        if piece.is_empty() {
            writer.flush().await.map_err(|error| broken(&error))?;
            break;
        }
    }
    match reader.next().await {
        Ok(Some(answer)) => Ok(answer.to_vec()),
        Ok(None) => Err(CallError::Broken(
            "the stream ended without an answer".into(),
        )),
        Err(error) => Err(broken(&error)),
    }
}

/// Serves one queue of calls for as long as its link lives, over one lane after another.
async fn keep_lane(dialer: Dialer, class: Class, mut jobs: mpsc::Receiver<Job>) {
    while let Some(first) = jobs.recv().await {
        if first.answer.is_closed() {
            continue;
        }
        let opened = match dialer.connection().await {
            Ok(connection) => connection
                .open_framed(class)
                .await
                .map_err(|e| e.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match opened {
            Ok(framed) => {
                let mut lane = Lane::new(framed);
                let words = lane.run(first, &mut jobs).await;
                lane.fail_all(&words);
            }
            Err(words) => {
                // Whoever waits behind it would find the same: tell them at once, the dialler backs off.
                drop(
                    first
                        .answer
                        .send(Err(CallError::Unreachable(words.clone()))),
                );
                while let Ok(job) = jobs.try_recv() {
                    drop(job.answer.send(Err(CallError::Unreachable(words.clone()))));
                }
            }
        }
    }
}

/// One stream and what it owes.
struct Lane {
    framed: Framed,
    next: u64,
    unanswered: BTreeMap<u64, oneshot::Sender<Result<Vec<u8>, CallError>>>,
}

impl Lane {
    fn new(framed: Framed) -> Self {
        Self {
            framed,
            next: 0,
            unanswered: BTreeMap::new(),
        }
    }

    /// Carries calls until the stream breaks or nobody can call any more; gives back why.
    async fn run(&mut self, first: Job, jobs: &mut mpsc::Receiver<Job>) -> String {
        self.push(first);
        loop {
            if self.unanswered.len() >= UNANSWERED_MAX {
                // Calls that were given up keep their number until the answer comes or room is needed.
                self.unanswered.retain(|_, answer| !answer.is_closed());
            }
            let pending = self.framed.writer.pending();
            let room = pending < COALESCE_MAX && self.unanswered.len() < UNANSWERED_MAX;
            tokio::select! {
                job = jobs.recv(), if room => match job {
                    Some(job) => self.push(job),
                    None => return "the node stops".into(),
                },
                flushed = self.framed.writer.flush(), if pending > 0 => {
                    if let Err(error) = flushed {
                        return error.to_string();
                    }
                }
                frame = self.framed.reader.next() => {
                    let read = match frame {
                        Ok(Some(frame)) => take_number(frame).map(|(n, body)| (n, body.to_vec())),
                        Ok(None) => return "the peer ended the stream".into(),
                        Err(error) => return words_of(&error),
                    };
                    let Some((number, body)) = read else {
                        return "an answer without a number".into();
                    };
                    if let Some(answer) = self.unanswered.remove(&number) {
                        // Nobody may wait any more: the call had a deadline.
                        drop(answer.send(Ok(body)));
                    }
                }
            }
        }
    }

    fn push(&mut self, job: Job) {
        if job.answer.is_closed() {
            return;
        }
        let mut payload = Vec::with_capacity(NUMBER_BYTES + job.payload.len());
        payload.extend_from_slice(&self.next.to_le_bytes());
        payload.extend_from_slice(&job.payload);
        match self.framed.writer.push(&payload) {
            Ok(()) => {
                self.unanswered.insert(self.next, job.answer);
                self.next += 1;
            }
            Err(
                error @ (PushError::TooLong { .. } | PushError::Encode(_) | PushError::Full { .. }),
            ) => {
                drop(
                    job.answer
                        .send(Err(CallError::Unreachable(error.to_string()))),
                );
            }
        }
    }

    fn fail_all(&mut self, words: &str) {
        for answer in std::mem::take(&mut self.unanswered).into_values() {
            drop(answer.send(Err(CallError::Broken(words.to_owned()))));
        }
    }
}

/// Splits a payload into its call number and the rest.
pub(crate) fn take_number(payload: &[u8]) -> Option<(u64, &[u8])> {
    let (number, body) = payload.split_first_chunk::<NUMBER_BYTES>()?;
    Some((u64::from_le_bytes(*number), body))
}

pub(crate) fn words_of(error: &FrameReadError) -> String {
    error.to_string()
}
