//! [`Link`]: the connection to one node, made again and again.
//!
//! Owns dialling, `Hello`, the three streams and their bounded queues; hands every message to the driver
//! and sends what the driver queues. Refuses to know what a message leads to. One task per node; all its
//! streams are polled in it. Next: `driver/mod.rs`.

use crate::config::NodeConfig;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tollgate_core::account::Name;
use tollgate_core::ids::{Boot, Incarnation, NodeId};
use tollgate_core::lessee::LEASE_BYTES_MAX;
use tollgate_core::message::{EdgeMessage, Hello, NodeMessage, Sender};
use tollgate_core::reporter::REPORT_BYTES_MAX;
use tollgate_wire::codec::{self, DecodeError};
use tollgate_wire::frame::{Class, FrameReadError, FrameReader, FrameWriter, PushError};
use tollgate_wire::quic::{CloseCode, Connection, DialError, Dialer, Endpoint, Framed, Protocol};

/// The version of the edge's protocol, spoken and understood.
const VERSION: u16 = 1;
/// How long a node may take to say `Hello`.
const HELLO_DEADLINE: Duration = Duration::from_secs(3);
/// Messages waiting for a node, per stream. A full queue drops: what matters is repeated.
const CONTROL_QUEUE: usize = 256;
const LEASE_QUEUE: usize = 4096;
const REPORT_QUEUE: usize = 64;
/// What a message of a node may claim.
const BUDGET: usize = codec::budget(Class::Lease.payload_max());
// What the core builds fits the frames that carry it, with room for what surrounds it.
const _: () = assert!(LEASE_BYTES_MAX * 2 <= Class::Lease.payload_max());
const _: () = assert!(REPORT_BYTES_MAX * 2 <= Class::Report.payload_max());

/// What an edge says of itself in `Hello`; the driver keeps it up to date.
#[derive(Clone, Debug)]
pub(crate) struct Introduction {
    pub(crate) cluster: Name,
    pub(crate) incarnation: Option<Incarnation>,
    pub(crate) boot: Option<Boot>,
}

impl Introduction {
    /// The first frame, and again when a session was opened: it ties the connection to the boot.
    pub(crate) fn hello(&self) -> Hello {
        Hello {
            cluster: self.cluster.clone(),
            incarnation: self.incarnation,
            sender: Sender::Edge { boot: self.boot },
            versions: (VERSION, VERSION),
        }
    }
}

/// Queues towards one node; gone with its connection, so that nothing old is sent on a new one.
#[derive(Clone, Debug)]
pub(crate) struct Outbox {
    pub(crate) control: mpsc::Sender<EdgeMessage>,
    pub(crate) lease: mpsc::Sender<EdgeMessage>,
    pub(crate) report: mpsc::Sender<EdgeMessage>,
}

/// News of one node.
#[derive(Debug)]
pub(crate) enum Event {
    /// Both sides said `Hello`.
    Up {
        node: NodeId,
        boot: Boot,
        incarnation: Option<Incarnation>,
        outbox: Outbox,
    },
    /// It said something.
    Message { node: NodeId, message: NodeMessage },
    /// No connection, and why.
    Down { node: NodeId, reason: String },
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("{0}")]
    Hello(String),
    #[error("it says what is no message of this release: {0}")]
    Message(#[from] DecodeError),
    #[error(transparent)]
    Read(#[from] FrameReadError),
    #[error("our Hello cannot be sent: {0}")]
    Push(#[from] PushError),
    #[error("connection lost: {0}")]
    Lost(String),
}

/// See the module's text.
pub(crate) struct Link {
    config: NodeConfig,
    dialer: Dialer,
    introduction: watch::Receiver<Introduction>,
    events: mpsc::Sender<Event>,
}

impl Link {
    pub(crate) fn new(
        config: NodeConfig,
        endpoint: Endpoint,
        introduction: watch::Receiver<Introduction>,
        events: mpsc::Sender<Event>,
    ) -> Self {
        let dialer = Dialer::new(endpoint, config.id, config.address.clone(), Protocol::Edge);
        Self {
            config,
            dialer,
            introduction,
            events,
        }
    }

    /// Keeps the connection until the driver is gone.
    pub(crate) async fn run(self) {
        let mut told = String::new();
        loop {
            let reason = match self.dialer.connection().await {
                Ok(connection) => {
                    let error = self.serve(&connection).await;
                    let code = match error {
                        LinkError::Hello(_) => CloseCode::Hello,
                        LinkError::Lost(_) => CloseCode::Done,
                        _ => CloseCode::Protocol,
                    };
                    connection.close(code, &error.to_string());
                    if !matches!(error, LinkError::Hello(_)) {
                        // It stood: its end is news, whatever was told before.
                        told.clear();
                    }
                    error.to_string()
                }
                Err(DialError::BackingOff { retry_in, .. }) => {
                    tokio::time::sleep(retry_in).await;
                    continue;
                }
                Err(error) => error.to_string(),
            };
            if reason != told {
                told.clone_from(&reason);
                let event = Event::Down {
                    node: self.config.id,
                    reason,
                };
                if self.events.send(event).await.is_err() {
                    return;
                }
            }
        }
    }

    /// One connection from `Hello` to its end.
    async fn serve(&self, connection: &Connection) -> LinkError {
        let lost = |error: &dyn std::fmt::Display| LinkError::Lost(error.to_string());
        let opened = async {
            let control = connection.open_framed(Class::Control).await?;
            let lease = connection.open_framed(Class::Lease).await?;
            let report = connection.open_framed(Class::Report).await?;
            Ok::<_, tollgate_wire::quic::StreamError>((control, lease, report))
        };
        let (mut control, lease, report) = match opened.await {
            Ok(streams) => streams,
            Err(error) => return lost(&error),
        };
        let greeted = tokio::time::timeout(HELLO_DEADLINE, self.greet(&mut control)).await;
        let (boot, incarnation) = match greeted {
            Ok(Ok(node)) => node,
            Ok(Err(error)) => return or_close_reason(error, connection),
            Err(_) => return LinkError::Hello(format!("no Hello within {HELLO_DEADLINE:?}")),
        };
        let node = self.config.id;
        let (control_in, control_out) = mpsc::channel(CONTROL_QUEUE);
        let (lease_in, lease_out) = mpsc::channel(LEASE_QUEUE);
        let (report_in, report_out) = mpsc::channel(REPORT_QUEUE);
        let outbox = Outbox {
            control: control_in,
            lease: lease_in,
            report: report_in,
        };
        let up = Event::Up {
            node,
            boot,
            incarnation,
            outbox,
        };
        if self.events.send(up).await.is_err() {
            return LinkError::Lost("this edge stops".to_owned());
        }
        let error = tokio::select! {
            error = write(control.writer, control_out) => error,
            error = write(lease.writer, lease_out) => error,
            error = write(report.writer, report_out) => error,
            error = self.read(control.reader) => error,
            error = self.read(lease.reader) => error,
            error = self.read(report.reader) => error,
            closed = connection.closed() => lost(&closed),
        };
        or_close_reason(error, connection)
    }

    /// `Hello` both ways; answers the node's boot and the life of its data.
    async fn greet(&self, control: &mut Framed) -> Result<(Boot, Option<Incarnation>), LinkError> {
        let own = self.introduction.borrow().clone();
        control
            .writer
            .push_value(&EdgeMessage::Hello(own.hello()))?;
        control
            .writer
            .flush()
            .await
            .map_err(|error| LinkError::Lost(error.to_string()))?;
        let Some(frame) = control.reader.next().await? else {
            return Err(LinkError::Lost(
                "it ended the stream instead of a Hello".to_owned(),
            ));
        };
        let NodeMessage::Hello(theirs) = codec::decode::<NodeMessage, BUDGET>(frame)? else {
            return Err(LinkError::Hello("its first message is no Hello".to_owned()));
        };
        self.judge(&own, &theirs).map_err(LinkError::Hello)
    }

    /// Whether this is the node that was dialled, of the same cluster, life and protocol.
    fn judge(
        &self,
        own: &Introduction,
        theirs: &Hello,
    ) -> Result<(Boot, Option<Incarnation>), String> {
        if theirs.cluster != own.cluster {
            return Err(format!(
                "it belongs to cluster `{}`, this edge to `{}`: check the address",
                theirs.cluster, own.cluster
            ));
        }
        let (lowest, highest) = theirs.versions;
        if !(lowest..=highest).contains(&VERSION) {
            return Err(format!(
                "it speaks versions {lowest} to {highest} of the edge's protocol, this edge speaks \
                 {VERSION}: upgrade the older side"
            ));
        }
        if let (Some(own), Some(theirs)) = (own.incarnation, theirs.incarnation)
            && own != theirs
        {
            return Err(format!(
                "its data is incarnation {theirs}, this edge's session belongs to {own}: the cluster \
                 was restored; restart this edge, it then opens a new session"
            ));
        }
        match theirs.sender {
            Sender::Node { node, boot } if node == self.config.id => Ok((boot, theirs.incarnation)),
            Sender::Node { node, .. } => Err(format!(
                "it is node {node}, configured as {}: check `nodes`",
                self.config.id
            )),
            Sender::Edge { .. } => Err("it is an edge, not a node".to_owned()),
        }
    }

    async fn read<R>(&self, mut reader: FrameReader<R>) -> LinkError
    where
        R: tokio::io::AsyncRead + Unpin,
    {
        let node = self.config.id;
        loop {
            let message = match reader.next().await {
                Ok(Some(frame)) => match codec::decode::<NodeMessage, BUDGET>(frame) {
                    Ok(message) => message,
                    Err(error) => return error.into(),
                },
                Ok(None) => return LinkError::Lost("it ended a stream".to_owned()),
                Err(error) => return error.into(),
            };
            if self
                .events
                .send(Event::Message { node, message })
                .await
                .is_err()
            {
                return LinkError::Lost("this edge stops".to_owned());
            }
        }
    }
}

/// A broken stream is mostly the sign of a closed connection, whose words say more.
fn or_close_reason(error: LinkError, connection: &Connection) -> LinkError {
    match (&error, connection.close_reason()) {
        (LinkError::Read(_) | LinkError::Lost(_), Some(reason)) => {
            LinkError::Lost(reason.to_string())
        }
        _ => error,
    }
}

/// Sends what is queued, as much as there is at a time in one write. A message that makes no frame is dropped:
/// it would make none on the next connection either.
async fn write<W>(mut writer: FrameWriter<W>, mut queue: mpsc::Receiver<EdgeMessage>) -> LinkError
where
    W: tokio::io::AsyncWrite + Unpin,
{
    let mut next = None;
    loop {
        let first = match next.take() {
            Some(message) => message,
            None => match queue.recv().await {
                Some(message) => message,
                None => return LinkError::Lost("this edge stops".to_owned()),
            },
        };
        let mut message = Some(first);
        while let Some(some) = message {
            match writer.push_value(&some) {
                Ok(()) => {}
                Err(PushError::Full { .. }) => {
                    next = Some(some);
                    break;
                }
                Err(error @ (PushError::TooLong { .. } | PushError::Encode(_))) => {
                    tracing::error!(%error, "a message for a node is dropped");
                }
            }
            message = queue.try_recv().ok();
        }
        if let Err(error) = writer.flush().await {
            return LinkError::Lost(error.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tollgate_core::account::AccountId;
    use tollgate_core::ids::{Epoch, LeaseNo, Slot};
    use tollgate_core::message::{Lease, LeaseLine, SlotLease};

    fn lease(lines: usize) -> EdgeMessage {
        let account = AccountId::parse("live/acme/-/customer/daily/open").unwrap();
        let line = LeaseLine {
            account,
            lease_no: LeaseNo(1),
            carried: 0,
            want_total: 1,
            need_total: 1,
            surrendered_total: 0,
            demand: 0,
            closing: false,
        };
        EdgeMessage::Lease(Lease {
            boot: Boot(1),
            slots: vec![SlotLease {
                slot: Slot::of("acme"),
                epoch: Epoch(1),
                lines: vec![line; lines],
            }],
        })
    }

    #[tokio::test]
    async fn a_message_that_is_too_long_is_dropped_and_the_next_one_arrives() {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (queue, queued) = mpsc::channel(4);
        for message in [lease(1), lease(20_000), lease(2)] {
            queue.try_send(message).unwrap();
        }
        drop(queue);
        let writing = write(FrameWriter::new(near, Class::Lease), queued);
        let reading = async {
            let mut reader = FrameReader::new(far, Class::Lease);
            let mut arrived = Vec::new();
            while let Some(frame) = reader.next().await.unwrap() {
                arrived.push(codec::decode::<EdgeMessage, BUDGET>(frame).unwrap());
            }
            arrived
        };
        let (ended, arrived) = tokio::join!(writing, reading);
        assert_eq!(arrived, [lease(1), lease(2)]);
        assert_eq!(ended.to_string(), "connection lost: this edge stops");
    }
}
