//! openraft's network over a [`Transport`]: votes and heartbeats go before log entries, snapshots behind both.
//!
//! Clients are cheap: openraft makes one for every vote. Connections are the transport's.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use openraft::errors::{
    NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable,
};
use openraft::network::{Backoff, RPCOption};
use openraft::{BasicNode, OptionalSend, RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use tollgate_wire::frame::Class;

use super::message::{self, Answer, Call, SnapshotAnswer, SnapshotStart};
use super::transport::{CallError, Peer, Transport};
use super::types::{
    AppendRequest, AppendResponse, Snapshot, SnapshotResponse, TransferRequest, TransferResponse,
    TypeConfig, Vote, VoteRequest, VoteResponse,
};
use crate::storage::SnapshotFile;

/// An append with entries waits for a disk at the other end: longer than a heartbeat, which is what openraft would
/// give it, else a slow disk would be sent the same entries again and again.
const APPEND_DEADLINE: Duration = Duration::from_secs(2);

/// Waits of a caller whose peer is not reachable, in ms; the last one repeats.
const BACKOFF_MS: [u64; 4] = [20, 50, 100, 200];

/// Makes clients for one node.
#[derive(Clone)]
pub(crate) struct Factory {
    pub(crate) own: u64,
    pub(crate) transport: Arc<dyn Transport>,
}

/// A client for one peer.
pub(crate) struct Client {
    own: u64,
    peer: Peer,
    class: Class,
    transport: Arc<dyn Transport>,
}

impl Factory {
    fn client(&self, target: u64, node: &BasicNode, class: Class) -> Client {
        Client {
            own: self.own,
            peer: Peer {
                node: target,
                address: node.addr.clone(),
            },
            class,
            transport: self.transport.clone(),
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for Factory {
    type Network = Client;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Client {
        self.client(target, node, Class::Append)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &BasicNode) -> Client {
        self.client(target, node, Class::Control)
    }
}

type CallResult<T> = Result<T, RPCError<TypeConfig>>;

impl Client {
    async fn call(
        &self,
        class: Class,
        kind: RPCTypes,
        call: &Call,
        deadline: Duration,
    ) -> CallResult<Answer> {
        let payload = message::encode(call).map_err(NetworkError::from_string)?;
        let called = self
            .transport
            .call(&self.peer, class, payload, deadline)
            .await;
        let answer = called.map_err(|error| match error {
            CallError::Unreachable(words) => RPCError::Unreachable(Unreachable::from_string(words)),
            CallError::Broken(words) => RPCError::Network(NetworkError::from_string(words)),
            CallError::Deadline(timeout) => RPCError::Timeout(Timeout {
                action: kind,
                id: self.own,
                target: self.peer.node,
                timeout,
            }),
        })?;
        match message::decode(&answer).map_err(NetworkError::from_string)? {
            Answer::Failed(words) => Err(Unreachable::from_string(words).into()),
            answer => Ok(answer),
        }
    }
}

fn unexpected(answer: &Answer) -> RPCError<TypeConfig> {
    let words = format!("an answer to another question: {answer:?}");
    NetworkError::from_string(words).into()
}

impl RaftNetworkV2<TypeConfig> for Client {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        rpc: AppendRequest,
        option: RPCOption,
    ) -> CallResult<AppendResponse> {
        let deadline = if rpc.entries.is_empty() {
            option.soft_ttl()
        } else {
            APPEND_DEADLINE
        };
        let call = Call::Append(rpc);
        match self
            .call(self.class, RPCTypes::AppendEntries, &call, deadline)
            .await?
        {
            Answer::Append(response) => Ok(response),
            other => Err(unexpected(&other)),
        }
    }

    async fn vote(&mut self, rpc: VoteRequest, option: RPCOption) -> CallResult<VoteResponse> {
        let call = Call::Vote(rpc);
        match self
            .call(Class::Control, RPCTypes::Vote, &call, option.soft_ttl())
            .await?
        {
            Answer::Vote(response) => Ok(response),
            other => Err(unexpected(&other)),
        }
    }

    async fn pre_vote(&mut self, rpc: VoteRequest, option: RPCOption) -> CallResult<VoteResponse> {
        let call = Call::PreVote(rpc);
        match self
            .call(Class::Control, RPCTypes::Vote, &call, option.soft_ttl())
            .await?
        {
            Answer::Vote(response) => Ok(response),
            other => Err(unexpected(&other)),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse, StreamingError<TypeConfig>> {
        let bytes = snapshot.snapshot.bytes();
        let start = SnapshotStart {
            vote,
            meta: snapshot.meta,
            bytes,
        };
        let start = message::encode(&start).map_err(NetworkError::from_string)?;
        let deadline = option.soft_ttl();
        let sending = self
            .transport
            .send_snapshot(&self.peer, start, snapshot.snapshot, deadline);
        let answer = tokio::select! {
            closed = cancel => return Err(closed.into()),
            sent = sending => sent.map_err(|error| match error {
                CallError::Unreachable(words) => {
                    StreamingError::Unreachable(Unreachable::from_string(words))
                }
                CallError::Broken(words) => NetworkError::from_string(words).into(),
                CallError::Deadline(timeout) => StreamingError::Timeout(Timeout {
                    action: RPCTypes::InstallSnapshot,
                    id: self.own,
                    target: self.peer.node,
                    timeout,
                }),
            })?,
        };
        match message::decode(&answer).map_err(NetworkError::from_string)? {
            SnapshotAnswer::Done(response) => Ok(response),
            SnapshotAnswer::Failed(words) => Err(Unreachable::from_string(words).into()),
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferRequest,
        option: RPCOption,
    ) -> CallResult<TransferResponse> {
        let call = Call::TransferLeader(req);
        match self
            .call(
                Class::Control,
                RPCTypes::TransferLeader,
                &call,
                option.soft_ttl(),
            )
            .await?
        {
            Answer::TransferLeader(response) => Ok(response),
            other => Err(unexpected(&other)),
        }
    }

    fn backoff(&self) -> Option<Backoff> {
        let last = BACKOFF_MS[BACKOFF_MS.len() - 1];
        let waits = BACKOFF_MS.into_iter().chain(std::iter::repeat(last));
        Some(Backoff::new(waits.map(Duration::from_millis)))
    }
}
