//! The Lease stream: resolves, leases, and answers to recalls, handed to the issuer's task in their order.

use super::connection::{Contact, receive, write};
use super::{Bound, Violation};
use crate::clock;
use crate::issuing::Input;
use std::sync::Arc;
use tokio::sync::mpsc;
use tollgate_core::ids::Boot;
use tollgate_core::message::{EdgeMessage, NodeMessage};
use tollgate_wire::quic::Framed;

pub(super) async fn serve(
    contact: &Arc<Contact>,
    framed: Framed,
    queue: mpsc::Receiver<NodeMessage>,
) -> Result<(), Violation> {
    let Framed { writer, mut reader } = framed;
    let writing = write(writer, queue);
    let reading = async {
        while let Some(message) = receive(&mut reader).await? {
            let bound = contact.bound().await?;
            take(contact, bound, message).await?;
        }
        Ok(())
    };
    tokio::select! {
        ended = reading => ended,
        ended = writing => ended,
    }
}

async fn take(contact: &Contact, bound: Bound, message: EdgeMessage) -> Result<(), Violation> {
    let service = &contact.service;
    let input = match message {
        EdgeMessage::Lease(lease) => {
            own(bound, lease.boot)?;
            Input::Lease(lease)
        }
        EdgeMessage::Held(held) => {
            own(bound, held.boot)?;
            Input::Held(held)
        }
        EdgeMessage::Resolve(resolve) => {
            own(bound, resolve.boot)?;
            Input::Resolve {
                mac: service.pepper.mac(&resolve.secret_sha256),
                confirmed: service.confirmation.age_ms(clock::mono()).is_some(),
                outlet: contact.outlet.lease.clone(),
                resolve,
            }
        }
        other => {
            let found = super::control::name(&other);
            return Err(Violation::Protocol(format!(
                "{found} on the Lease stream: expected Resolve, Lease or Held"
            )));
        }
    };
    contact.tell(input).await;
    Ok(())
}

/// A connection speaks for one boot only.
fn own(bound: Bound, boot: Boot) -> Result<(), Violation> {
    if boot == bound.boot {
        return Ok(());
    }
    Err(Violation::Protocol(format!(
        "a message of boot {boot} on the connection of boot {}: each boot has its own connection",
        bound.boot
    )))
}
