//! Answers the calls of other nodes: Raft's own go to openraft, commands to the proposer, questions to the hook.
//!
//! A node speaks for itself only: an append or a vote that names another leader or candidate than the peer's
//! certificate is refused. Appends of one stream are handled one after another, everything else as it comes. Next:
//! [`super::quic`], the other end.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use openraft::ReadPolicy;
use serde_bytes::ByteBuf;
use tollgate_core::ids::NodeId;
use tollgate_wire::frame::{COALESCE_MAX, Class};
use tollgate_wire::quic::{Accepted, CloseCode, Connection, Framed};

use super::message::{self, Answer, Call, SnapshotAnswer, SnapshotStart};
use super::node::Hooks;
use super::proposer::Queue;
use super::quic::{NUMBER_BYTES, SNAPSHOT_PIECE_BYTES, take_number};
use super::types::{Raft, Snapshot, Vote};
use crate::consensus::OnConfirm;
use crate::storage::{SnapshotFile, StoreError};

/// Calls of one stream that are being answered at a time; more wait in the stream.
pub(crate) const ANSWERING_MAX: usize = 256;

/// How long a ReadIndex may take: several heartbeats.
pub(crate) const READ_INDEX_DEADLINE: Duration = Duration::from_secs(1);

/// Largest snapshot that is taken in, in bytes.
pub(crate) const SNAPSHOT_BYTES_MAX: u64 = 1 << 40;

/// A piece of a snapshot must follow the one before within this.
const PIECE_DEADLINE: Duration = Duration::from_secs(30);

/// Gives the names under which snapshots are received.
pub(crate) type IncomingPath = Arc<dyn Fn() -> PathBuf + Send + Sync>;

/// One node's answers. Clones share it.
#[derive(Clone)]
pub struct Inbound {
    pub(crate) raft: Raft,
    pub(crate) queue: Queue,
    pub(crate) hooks: Hooks,
    pub(crate) incoming: IncomingPath,
}

impl Inbound {
    /// Serves an admitted connection of another node until it closes.
    pub async fn serve(&self, connection: Connection) {
        self.serve_answering(connection, None).await;
    }

    /// As [`Self::serve`]; `on_question` answers single requests, which are none of Raft's.
    pub async fn serve_answering(&self, connection: Connection, on_question: Option<OnConfirm>) {
        let Some(NodeId(peer)) = connection.peer().node_id() else {
            connection.close(CloseCode::Role, "only nodes speak here");
            return;
        };
        // Every task below ends with its stream, and every stream with the connection.
        while let Ok(opening) = connection.accept().await {
            let (inbound, connection) = (self.clone(), connection.clone());
            let on_question = on_question.clone();
            tokio::spawn(async move {
                let result = match opening.identify().await {
                    Ok(Accepted::Framed(Class::Snapshot, framed)) => {
                        inbound.receive_snapshot(peer, framed).await
                    }
                    Ok(Accepted::Framed(class, framed)) => {
                        inbound.serve_lane(peer, class, framed).await
                    }
                    Ok(Accepted::Request(question)) => match on_question {
                        Some(answer) => {
                            let answer = answer(NodeId(peer), question.payload());
                            question.answer(&answer).await.map_err(|e| e.to_string())
                        }
                        None => Err("single requests are not answered here".to_owned()),
                    },
                    Err(error) => Err(error.to_string()),
                };
                if let Err(words) = result {
                    tracing::debug!(peer, words, "a stream of a node broke");
                    if connection.close_reason().is_none() && words.starts_with("protocol") {
                        connection.close(CloseCode::Protocol, &words);
                    }
                }
            });
        }
    }

    async fn serve_lane(&self, peer: u64, class: Class, framed: Framed) -> Result<(), String> {
        let Framed {
            mut writer,
            mut reader,
        } = framed;
        let limit = if class == Class::Append {
            1
        } else {
            ANSWERING_MAX
        };
        let mut answering: FuturesUnordered<BoxFuture<'static, (u64, Vec<u8>)>> =
            FuturesUnordered::new();
        loop {
            let pending = writer.pending();
            let room = answering.len() < limit && pending < COALESCE_MAX;
            tokio::select! {
                frame = reader.next(), if room => {
                    let Some(frame) = frame.map_err(|error| error.to_string())? else {
                        return Ok(());
                    };
                    let Some((number, body)) = take_number(frame) else {
                        return Err("protocol: a call without a number".into());
                    };
                    let answer = self.handle(peer, class, body);
                    answering.push(Box::pin(async move { (number, answer.await) }));
                }
                Some((number, answer)) = answering.next(), if pending < COALESCE_MAX => {
                    let mut payload = Vec::with_capacity(NUMBER_BYTES + answer.len());
                    payload.extend_from_slice(&number.to_le_bytes());
                    payload.extend_from_slice(&answer);
                    writer.push(&payload).map_err(|error| error.to_string())?;
                }
                flushed = writer.flush(), if pending > 0 => {
                    flushed.map_err(|error| error.to_string())?;
                }
            }
        }
    }

    /// Begins to answer one call. Forwarded commands are queued before this returns, so that they keep their order.
    pub fn handle(&self, peer: u64, class: Class, payload: &[u8]) -> BoxFuture<'static, Vec<u8>> {
        let answer: BoxFuture<'static, Answer> = match message::decode::<Call>(payload) {
            Err(words) => Box::pin(std::future::ready(Answer::Failed(words))),
            Ok(call) => match refuse(&call, peer, class) {
                Some(words) => {
                    tracing::warn!(peer, words, "a call of a node is refused");
                    Box::pin(std::future::ready(Answer::Failed(words)))
                }
                None => self.begin(peer, call),
            },
        };
        Box::pin(async move {
            let failed = |words| message::encode(&Answer::Failed(words)).unwrap_or_default();
            message::encode(&answer.await).unwrap_or_else(failed)
        })
    }

    fn begin(&self, peer: u64, call: Call) -> BoxFuture<'static, Answer> {
        let raft = self.raft.clone();
        fn answer<T, E: std::fmt::Display>(result: Result<T, E>, wrap: fn(T) -> Answer) -> Answer {
            result.map_or_else(|error| Answer::Failed(error.to_string()), wrap)
        }
        match call {
            Call::Append(request) => {
                Box::pin(async move { answer(raft.append_entries(request).await, Answer::Append) })
            }
            Call::Vote(request) => {
                Box::pin(async move { answer(raft.vote(request).await, Answer::Vote) })
            }
            Call::PreVote(request) => {
                Box::pin(async move { answer(raft.pre_vote(request).await, Answer::Vote) })
            }
            Call::TransferLeader(request) => Box::pin(async move {
                answer(
                    raft.handle_transfer_leader(request).await,
                    Answer::TransferLeader,
                )
            }),
            Call::Confirm(question) => {
                let inbound = self.clone();
                Box::pin(async move {
                    match inbound.confirm(NodeId(peer), &question).await {
                        Ok((index, said)) => Answer::Confirmed(index, ByteBuf::from(said)),
                        Err(words) => Answer::Failed(words),
                    }
                })
            }
            Call::Forward(commands) => {
                let fates = self.queue.take_forwarded(commands);
                Box::pin(async move { Answer::Forwarded(fates.await) })
            }
        }
    }

    /// A ReadIndex here, then the hook: the question counts only with a leader that has proved itself after it.
    pub(crate) async fn confirm(
        &self,
        from: NodeId,
        question: &[u8],
    ) -> Result<(u64, Vec<u8>), String> {
        let proved = self.raft.get_read_log_id(ReadPolicy::ReadIndex);
        let (read, _) = tokio::time::timeout(READ_INDEX_DEADLINE, proved)
            .await
            .map_err(|_| format!("no quorum within {READ_INDEX_DEADLINE:?}"))?
            .map_err(|error| error.to_string())?;
        Ok((read.log_id().index, (self.hooks.on_confirm)(from, question)))
    }

    async fn receive_snapshot(&self, peer: u64, framed: Framed) -> Result<(), String> {
        let Framed {
            mut writer,
            mut reader,
        } = framed;
        let first = reader.next().await.map_err(|error| error.to_string())?;
        let start: SnapshotStart = message::decode(first.ok_or("no snapshot came")?)
            .map_err(|w| format!("protocol: {w}"))?;
        if let Some(words) = refuse_vote(&start.vote, peer) {
            return Err(words);
        }
        if start.bytes > SNAPSHOT_BYTES_MAX {
            return Err(format!("protocol: a snapshot of {} bytes", start.bytes));
        }
        let path = (self.incoming)();
        let mut part = Part::create(path).map_err(|error| error.to_string())?;
        loop {
            let piece = tokio::time::timeout(PIECE_DEADLINE, reader.next())
                .await
                .map_err(|_| "the snapshot stopped half way".to_owned())?
                .map_err(|error| error.to_string())?
                .ok_or("the snapshot ended half way")?;
            if piece.is_empty() {
                break;
            }
            if piece.len() > SNAPSHOT_PIECE_BYTES || part.bytes + piece.len() as u64 > start.bytes {
                return Err("protocol: a snapshot longer than announced".into());
            }
            part = part
                .write(piece.to_vec())
                .await
                .map_err(|error| error.to_string())?;
        }
        let installed = self.install(part, start).await;
        let answer = match installed {
            Ok(response) => SnapshotAnswer::Done(response),
            Err(words) => SnapshotAnswer::Failed(words),
        };
        let answer = message::encode(&answer)?;
        writer.push(&answer).map_err(|error| error.to_string())?;
        writer.flush().await.map_err(|error| error.to_string())?;
        if writer.into_inner().finish() {
            Ok(())
        } else {
            Err("the peer is gone".into())
        }
    }

    async fn install(
        &self,
        part: Part,
        start: SnapshotStart,
    ) -> Result<super::types::SnapshotResponse, String> {
        if part.bytes != start.bytes {
            return Err(format!("{} of {} bytes arrived", part.bytes, start.bytes));
        }
        let file = part.finish().map_err(|error| error.to_string())?;
        let snapshot = Snapshot {
            meta: start.meta,
            snapshot: file,
        };
        self.raft
            .install_full_snapshot(start.vote, snapshot)
            .await
            .map_err(|error| error.to_string())
    }
}

/// A snapshot file that is being received; removed unless it was finished.
struct Part {
    path: PathBuf,
    file: Option<std::fs::File>,
    bytes: u64,
    finished: bool,
}

impl Part {
    fn create(path: PathBuf) -> std::io::Result<Self> {
        let file = Some(std::fs::File::create(&path)?);
        Ok(Self {
            path,
            file,
            bytes: 0,
            finished: false,
        })
    }

    async fn write(mut self, piece: Vec<u8>) -> std::io::Result<Self> {
        tokio::task::spawn_blocking(move || {
            if let Some(file) = &mut self.file {
                file.write_all(&piece)?;
            }
            self.bytes += piece.len() as u64;
            Ok(self)
        })
        .await
        .map_err(std::io::Error::other)?
    }

    /// Hands the file over; storage verifies and syncs it before it counts.
    fn finish(mut self) -> Result<SnapshotFile, StoreError> {
        self.file = None;
        let file = SnapshotFile::open(&self.path)?;
        self.finished = true;
        Ok(file)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.finished {
            // The next start removes what is left of it.
            drop(std::fs::remove_file(&self.path));
        }
    }
}

fn refuse_vote(vote: &Vote, peer: u64) -> Option<String> {
    let named = vote.leader_id.voted_for;
    (named != peer).then(|| format!("protocol: node {peer} speaks for node {named}"))
}

/// Why a call may not come from this peer or on this stream.
fn refuse(call: &Call, peer: u64, class: Class) -> Option<String> {
    let fits = match call {
        Call::Append(_) => matches!(class, Class::Append | Class::Control),
        Call::Forward(_) => class == Class::Forward,
        Call::Vote(_) | Call::PreVote(_) | Call::TransferLeader(_) | Call::Confirm(_) => {
            class == Class::Control
        }
    };
    if !fits {
        return Some(format!(
            "protocol: a call of another class on a {class:?} stream"
        ));
    }
    match call {
        Call::Append(request) => refuse_vote(&request.vote, peer),
        Call::Vote(request) | Call::PreVote(request) => refuse_vote(&request.vote, peer),
        Call::TransferLeader(request) => refuse_vote(request.from_leader(), peer),
        Call::Confirm(_) | Call::Forward(_) => None,
    }
}
