//! The Control stream: hello, session, keepalives, what changed, and news that no edge asked for.

use super::connection::{Contact, flush, push, receive, write};
use super::notices::Notice;
use super::{Bound, HELLO_DEADLINE, PROTOCOL_VERSIONS, Violation, count};
use crate::clock;
use crate::consensus::ProposeError;
use std::sync::Arc;
use tokio::sync::mpsc;
use tollgate_core::command::{Command, OpenSession, OpenSessionReply, Reply};
use tollgate_core::ids::{Boot, Nonce, Revision, SessionId};
use tollgate_core::ledger::EdgeBoot;
use tollgate_core::message::{EdgeMessage, Hello, NodeMessage, Sender};
use tollgate_wire::codec;
use tollgate_wire::frame::Class;
use tollgate_wire::quic::Framed;

/// How often an `OpenSession` of unknown fate is proposed again before the edge is told to ask another node.
const OPEN_ATTEMPTS: usize = 3;

/// Room for the names of one `Changes`: what does not fit is told as "everyone".
const CHANGES_BYTES_MAX: usize = Class::Control.payload_max() - 256;

pub(super) async fn serve(
    contact: &Arc<Contact>,
    framed: Framed,
    queue: mpsc::Receiver<NodeMessage>,
) -> Result<(), Violation> {
    let Framed {
        mut writer,
        mut reader,
    } = framed;
    let first = receive(&mut reader).await?;
    let Some(EdgeMessage::Hello(hello)) = first else {
        let found = first.as_ref().map_or("nothing", name);
        return Err(Violation::Hello(format!(
            "the first frame is {found}: expected Hello"
        )));
    };
    let notice = contact.service.notices.borrow().clone();
    greet(contact, &hello).await?;
    push(&mut writer, &NodeMessage::Hello(own_hello(contact))).await?;
    push(&mut writer, &whole_table(&notice)).await?;
    if !flush(&mut writer).await? {
        return Ok(());
    }
    let reading = async {
        while let Some(message) = receive(&mut reader).await? {
            take(contact, message).await?;
        }
        Ok(())
    };
    tokio::select! {
        ended = reading => ended,
        ended = write(writer, queue) => ended,
        () = tell_news(contact, notice) => Ok(()),
    }
}

/// The word for a message in errors.
pub(super) fn name(message: &EdgeMessage) -> &'static str {
    match message {
        EdgeMessage::Hello(_) => "Hello",
        EdgeMessage::OpenSession { .. } => "OpenSession",
        EdgeMessage::Keepalive { .. } => "Keepalive",
        EdgeMessage::Resolve(_) => "Resolve",
        EdgeMessage::Lease(_) => "Lease",
        EdgeMessage::Held(_) => "Held",
        EdgeMessage::Report(_) => "Report",
        EdgeMessage::CloseSession { .. } => "CloseSession",
        EdgeMessage::Changes { .. } => "Changes",
    }
}

fn own_hello(contact: &Contact) -> Hello {
    let service = &contact.service;
    let (node, boot) = service.node;
    Hello {
        cluster: service.cluster.clone(),
        incarnation: Some(service.ledger.read().incarnation()),
        sender: Sender::Node { node, boot },
        versions: PROTOCOL_VERSIONS,
    }
}

fn whole_table(notice: &Notice) -> NodeMessage {
    NodeMessage::Routes {
        index: notice.routes_index,
        routes: notice.routes.to_vec(),
    }
}

/// Takes a `Hello` in; one that names a boot binds the connection to it.
async fn greet(contact: &Contact, hello: &Hello) -> Result<(), Violation> {
    let service = &contact.service;
    if hello.cluster != service.cluster {
        return Err(Violation::Hello(format!(
            "the edge belongs to cluster `{}`, this is `{}`",
            hello.cluster, service.cluster
        )));
    }
    let incarnation = service.ledger.read().incarnation();
    if let Some(theirs) = hello.incarnation.filter(|theirs| *theirs != incarnation) {
        return Err(Violation::Hello(format!(
            "the edge knows incarnation {theirs}, this cluster is in incarnation {incarnation}: open a new session"
        )));
    }
    let (low, high) = hello.versions;
    if low > PROTOCOL_VERSIONS.1 || high < PROTOCOL_VERSIONS.0 {
        return Err(Violation::Hello(format!(
            "the edge speaks versions {low} to {high}, this node {} to {}: upgrade the older side",
            PROTOCOL_VERSIONS.0, PROTOCOL_VERSIONS.1
        )));
    }
    match hello.sender {
        Sender::Edge { boot: None } => Ok(()),
        Sender::Edge { boot: Some(boot) } => bind_to(contact, boot).await,
        Sender::Node { node, .. } => Err(Violation::Hello(format!(
            "node {node} says Hello where an edge is expected"
        ))),
    }
}

/// Binds the connection to a boot that a session of this edge has; waits for a replica that lags.
async fn bind_to(contact: &Contact, boot: Boot) -> Result<(), Violation> {
    let session = tokio::time::timeout(HELLO_DEADLINE, known_session(contact, boot)).await;
    let Ok(session) = session else {
        return Err(Violation::Hello(format!(
            "boot {boot} is not known here within {HELLO_DEADLINE:?}"
        )));
    };
    match session {
        Some((session, identity)) if identity == contact.identity => {
            contact.bind(Bound { boot, session }).await;
            Ok(())
        }
        Some(_) => Err(Violation::Hello(format!(
            "boot {boot} belongs to a session of another edge than `{}`",
            contact.identity
        ))),
        // Fenced: whatever it asks is answered so, and it opens its session again.
        None => {
            contact
                .bind(Bound {
                    boot,
                    session: SessionId(0),
                })
                .await;
            Ok(())
        }
    }
}

async fn known_session(
    contact: &Contact,
    boot: Boot,
) -> Option<(SessionId, tollgate_core::account::Name)> {
    let service = &contact.service;
    loop {
        {
            let ledger = service.ledger.read();
            match ledger.edge_boot(boot) {
                EdgeBoot::Live(id) => {
                    return ledger
                        .session(id)
                        .map(|session| (id, session.identity.clone()));
                }
                EdgeBoot::Fenced => return None,
                EdgeBoot::NotYet => {}
            }
        }
        service.confirmation.applied().await;
    }
}

async fn take(contact: &Arc<Contact>, message: EdgeMessage) -> Result<(), Violation> {
    let service = &contact.service;
    let answer = match message {
        EdgeMessage::Hello(hello) => {
            greet(contact, &hello).await?;
            NodeMessage::Hello(own_hello(contact))
        }
        EdgeMessage::OpenSession { session, nonce } => {
            open_session(contact, session, nonce).await?
        }
        EdgeMessage::Keepalive { sent_mark, .. } => keepalive(contact, sent_mark),
        EdgeMessage::Changes { since } => changes(contact, since),
        other => {
            return Err(Violation::Protocol(format!(
                "{} on the Control stream: expected Hello, OpenSession, Keepalive or Changes",
                name(&other)
            )));
        }
    };
    if contact.outlet.control.try_send(answer).is_err() {
        count(&service.counts.unavailable);
    }
    Ok(())
}

fn keepalive(contact: &Contact, sent_mark: u64) -> NodeMessage {
    let service = &contact.service;
    let confirmed_age_ms = service.confirmation.age_ms(clock::mono());
    let ledger = service.ledger.read();
    NodeMessage::Keepalive {
        sent_mark,
        contact: contact.number,
        confirmed_age_ms,
        time: ledger.time(),
        revision: ledger.catalog().revision(),
        routes_index: ledger.routes_index(),
    }
}

fn changes(contact: &Contact, since: Revision) -> NodeMessage {
    let ledger = contact.service.ledger.read();
    let catalog = ledger.catalog();
    let customers = catalog.customers_changed_since(since);
    let fits = customers.as_ref().is_none_or(|names| {
        codec::encode(names).is_ok_and(|bytes| bytes.len() <= CHANGES_BYTES_MAX)
    });
    NodeMessage::Changes {
        revision: catalog.revision(),
        customers: if fits { customers } else { None },
    }
}

/// Has a boot numbered. The same nonce gets the same boot, so an unknown fate is asked again.
async fn open_session(
    contact: &Contact,
    session: Option<SessionId>,
    nonce: Nonce,
) -> Result<NodeMessage, Violation> {
    let service = &contact.service;
    let command = Command::OpenSession(OpenSession {
        session,
        nonce,
        identity: contact.identity.clone(),
        incarnation: service.ledger.read().incarnation(),
    });
    let mut answered = Err(ProposeError::Stopped);
    for _ in 0..OPEN_ATTEMPTS {
        answered = service.proposer.propose(&command).await;
        if !matches!(
            answered,
            Err(ProposeError::NotTaken(_) | ProposeError::UnknownFate(_))
        ) {
            break;
        }
    }
    match answered {
        Ok(Reply::OpenSession(reply)) => {
            if let OpenSessionReply::Opened { session, boot, .. } = reply {
                contact.bind(Bound { boot, session }).await;
            }
            Ok(NodeMessage::Session(reply))
        }
        other => super::report::unavailable(contact, other),
    }
}

/// Tells of changes of the slot table and of the catalog, until the connection ends.
async fn tell_news(contact: &Contact, mut told: Notice) {
    let mut notices = contact.service.notices.clone();
    loop {
        let notice = notices.borrow_and_update().clone();
        let routes = notice.changed_since(&told);
        if !routes.is_empty() {
            let news = NodeMessage::Routes {
                index: notice.routes_index,
                routes,
            };
            // Waits: news are few, and an edge that misses them would go on asking the wrong node.
            drop(contact.outlet.control.send(news).await);
        }
        if notice.revision > told.revision {
            let push = NodeMessage::Push {
                revision: notice.revision,
            };
            drop(contact.outlet.control.send(push).await);
        }
        told = notice;
        if notices.changed().await.is_err() {
            return;
        }
    }
}
