//! One connection of an edge: its three streams, its limits, and its end.

use super::{
    Bound, EDGES_MAX, HELLO_DEADLINE, OUTGOING_MAX, REBIND_DEADLINE, Service, Violation,
    WRITE_DEADLINE, WRITTEN_AT_ONCE, control, count, lease, report,
};
use crate::issuing::{Input, Outlet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tollgate_core::account::Name;
use tollgate_core::ids::Boot;
use tollgate_core::message::{EdgeMessage, NodeMessage};
use tollgate_wire::codec;
use tollgate_wire::frame::{Class, FrameReader, FrameWriter, PushError};
use tollgate_wire::quic::{Accepted, CloseCode, Connection, SendHalf};

/// Messages of the widest class fit this.
const MESSAGE_BUDGET: usize = codec::budget(Class::Lease.payload_max());

const _: () = assert!(Class::Control.payload_max() <= Class::Lease.payload_max());
const _: () = assert!(Class::Report.payload_max() <= Class::Lease.payload_max());

/// What the parts of one connection share.
pub(super) struct Contact {
    pub(super) service: Arc<Service>,
    pub(super) number: u64,
    /// The edge's name in its certificate.
    pub(super) identity: Name,
    pub(super) bound: watch::Sender<Option<Bound>>,
    pub(super) outlet: Outlet,
}

impl Contact {
    /// The boot this connection serves, once it is known.
    pub(super) async fn bound(&self) -> Result<Bound, Violation> {
        let mut bound = self.bound.subscribe();
        match tokio::time::timeout(HELLO_DEADLINE, bound.wait_for(Option::is_some)).await {
            Ok(Ok(bound)) => match *bound {
                Some(bound) => Ok(bound),
                None => unreachable!("it was waited for"),
            },
            _ => Err(Violation::Hello(format!(
                "no boot was named within {HELLO_DEADLINE:?}: open a session or say Hello with a boot first"
            ))),
        }
    }

    /// The boot this connection serves, for a message that names `boot`: waits a little for a newer one, whose
    /// `Hello` may come after it on another stream. `None` for a message of an older boot: nobody waits for it.
    pub(super) async fn bound_for(&self, boot: Boot) -> Result<Option<Bound>, Violation> {
        let known = self.bound().await?;
        if boot <= known.boot {
            return Ok((boot == known.boot).then_some(known));
        }
        let mut bound = self.bound.subscribe();
        let newer = bound.wait_for(|bound| bound.is_some_and(|bound| bound.boot >= boot));
        match tokio::time::timeout(REBIND_DEADLINE, newer).await {
            Ok(Ok(bound)) => Ok(bound.filter(|bound| bound.boot == boot)),
            _ => Err(Violation::Protocol(format!(
                "a message of boot {boot} on the connection of boot {}: say Hello with a new boot first",
                known.boot
            ))),
        }
    }

    /// From now on the connection serves this boot.
    pub(super) async fn bind(&self, bound: Bound) {
        let before = self.bound.send_replace(Some(bound));
        if before == Some(bound) {
            return;
        }
        if let Some(before) = before {
            self.tell(Input::Disconnected(before.boot, self.number))
                .await;
        }
        self.tell(Input::Connected(bound.boot, self.outlet.clone()))
            .await;
    }

    /// Hands something to the issuer; waits while its queue is full, which holds up this edge's stream.
    pub(super) async fn tell(&self, input: Input) {
        // The task is gone only when the node stops.
        drop(self.service.issuer.send(input).await);
    }
}

/// Serves one connection until it ends.
pub async fn serve(service: Arc<Service>, connection: Connection) {
    if service.counts.connections.fetch_add(1, Ordering::Relaxed) >= EDGES_MAX as u64 {
        connection.close(
            CloseCode::Done,
            &format!("{EDGES_MAX} edges are connected: ask another node"),
        );
    } else {
        let peer = connection.peer().clone();
        match serve_streams(&service, &connection).await {
            Ok(()) => tracing::debug!(edge = %peer, "an edge's connection ended"),
            Err(violation) => {
                count(&service.counts.violations);
                tracing::warn!(edge = %peer, %violation, "an edge's connection is closed");
                let code = match violation {
                    Violation::Hello(_) => CloseCode::Hello,
                    Violation::Protocol(_) => CloseCode::Protocol,
                };
                connection.close(code, &violation.to_string());
            }
        }
    }
    service.counts.connections.fetch_sub(1, Ordering::Relaxed);
}

async fn serve_streams(service: &Arc<Service>, connection: &Connection) -> Result<(), Violation> {
    let number = service.counts.contacts.fetch_add(1, Ordering::Relaxed) + 1;
    let (lease_sender, lease_queue) = mpsc::channel(OUTGOING_MAX);
    let (control_sender, control_queue) = mpsc::channel(OUTGOING_MAX);
    let contact = Arc::new(Contact {
        service: service.clone(),
        number,
        identity: connection.peer().name().clone(),
        bound: watch::Sender::new(None),
        outlet: Outlet {
            contact: number,
            lease: lease_sender,
            control: control_sender,
        },
    });
    let mut queues = Queues {
        lease: Some(lease_queue),
        control: Some(control_queue),
        report: true,
    };
    let mut parts = JoinSet::new();
    let hello = tokio::time::sleep(HELLO_DEADLINE);
    tokio::pin!(hello);
    let result = loop {
        tokio::select! {
            opening = connection.accept() => match opening {
                Ok(opening) => {
                    let contact = contact.clone();
                    // The stream's first frame is waited for beside the others.
                    parts.spawn(async move { Part::Opened(opening.identify().await, contact) });
                }
                Err(_) => break Ok(()),
            },
            Some(part) = parts.join_next() => match part {
                Ok(Part::Opened(Ok(accepted), contact)) => {
                    if let Err(violation) = begin(&mut parts, &mut queues, accepted, contact) {
                        break Err(violation);
                    }
                }
                Ok(Part::Opened(Err(tollgate_wire::frame::FrameReadError::Io(_)), _) | Part::Ended(Ok(()))) => {}
                Ok(Part::Opened(Err(error), _)) => break Err(Violation::Protocol(error.to_string())),
                Ok(Part::Ended(Err(violation))) => break Err(violation),
                Err(error) => break Err(Violation::Protocol(format!("a part of the connection failed: {error}"))),
            },
            () = &mut hello, if queues.control.is_some() => {
                break Err(Violation::Hello(format!("no Hello within {HELLO_DEADLINE:?}")));
            }
            () = service.fatal.stopping() => {
                connection.close(CloseCode::Done, "the node stops: ask another");
                break Ok(());
            }
        }
    };
    parts.shutdown().await;
    let bound = *contact.bound.borrow();
    if let Some(bound) = bound {
        contact.tell(Input::Disconnected(bound.boot, number)).await;
    }
    result
}

/// The queues of streams that are not open yet: each class once.
struct Queues {
    lease: Option<mpsc::Receiver<NodeMessage>>,
    control: Option<mpsc::Receiver<NodeMessage>>,
    report: bool,
}

enum Part {
    Opened(
        Result<Accepted, tollgate_wire::frame::FrameReadError>,
        Arc<Contact>,
    ),
    Ended(Result<(), Violation>),
}

fn begin(
    parts: &mut JoinSet<Part>,
    queues: &mut Queues,
    accepted: Accepted,
    contact: Arc<Contact>,
) -> Result<(), Violation> {
    let Accepted::Framed(class, framed) = accepted else {
        return Err(Violation::Protocol(
            "a request: edges speak on Control, Lease and Report streams".into(),
        ));
    };
    let again = || {
        Violation::Protocol(format!(
            "a second {class:?} stream: expected one of each class"
        ))
    };
    match class {
        Class::Control => {
            let queue = queues.control.take().ok_or_else(again)?;
            parts.spawn(async move { Part::Ended(control::serve(&contact, framed, queue).await) });
        }
        Class::Lease => {
            let queue = queues.lease.take().ok_or_else(again)?;
            parts.spawn(async move { Part::Ended(lease::serve(&contact, framed, queue).await) });
        }
        Class::Report => {
            if !std::mem::take(&mut queues.report) {
                return Err(again());
            }
            parts.spawn(async move { Part::Ended(report::serve(&contact, framed).await) });
        }
        other => {
            return Err(Violation::Protocol(format!(
                "a stream of class {other:?}: edges speak on Control, Lease and Report streams"
            )));
        }
    }
    Ok(())
}

/// The next message of a stream; `None` when the edge ended it or is gone.
pub(super) async fn receive<R: tokio::io::AsyncRead + Unpin>(
    reader: &mut FrameReader<R>,
) -> Result<Option<EdgeMessage>, Violation> {
    use tollgate_wire::frame::FrameReadError;
    match reader.next().await {
        Ok(Some(payload)) => match codec::decode::<EdgeMessage, MESSAGE_BUDGET>(payload) {
            Ok(message) => Ok(Some(message)),
            Err(error) => Err(Violation::Protocol(error.to_string())),
        },
        Ok(None) | Err(FrameReadError::Io(_)) => Ok(None),
        Err(error) => Err(Violation::Protocol(error.to_string())),
    }
}

/// Writes a queue to a stream until either ends.
pub(super) async fn write(
    mut writer: FrameWriter<SendHalf>,
    mut queue: mpsc::Receiver<NodeMessage>,
) -> Result<(), Violation> {
    let mut waiting = Vec::with_capacity(WRITTEN_AT_ONCE);
    while queue.recv_many(&mut waiting, WRITTEN_AT_ONCE).await > 0 {
        for message in waiting.drain(..) {
            push(&mut writer, &message).await?;
        }
        if !flush(&mut writer).await? {
            return Ok(());
        }
    }
    Ok(())
}

/// Appends a message; makes room first when much is waiting.
pub(super) async fn push(
    writer: &mut FrameWriter<SendHalf>,
    message: &NodeMessage,
) -> Result<(), Violation> {
    match writer.push_value(message) {
        Err(PushError::Full { .. }) => {
            flush(writer).await?;
            push_fresh(writer, message);
        }
        Err(error) => tracing::error!(%error, "a message for an edge is dropped"),
        Ok(()) => {}
    }
    Ok(())
}

fn push_fresh(writer: &mut FrameWriter<SendHalf>, message: &NodeMessage) {
    if let Err(error) = writer.push_value(message) {
        tracing::error!(%error, "a message for an edge is dropped");
    }
}

/// Writes what waits; `false` when the edge is gone.
pub(super) async fn flush(writer: &mut FrameWriter<SendHalf>) -> Result<bool, Violation> {
    match tokio::time::timeout(WRITE_DEADLINE, writer.flush()).await {
        Ok(written) => Ok(written.is_ok()),
        Err(_) => Err(Violation::Protocol(format!(
            "nothing was read for {WRITE_DEADLINE:?}"
        ))),
    }
}
