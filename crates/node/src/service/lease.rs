//! The Lease stream: resolves, leases, and answers to recalls, handed to the issuer's task in their order.

use super::Violation;
use super::connection::{Contact, receive, write};
use crate::clock;
use crate::issuing::Input;
use std::sync::Arc;
use tokio::sync::mpsc;
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
            take(contact, message).await?;
        }
        Ok(())
    };
    tokio::select! {
        ended = reading => ended,
        ended = writing => ended,
    }
}

async fn take(contact: &Contact, message: EdgeMessage) -> Result<(), Violation> {
    let service = &contact.service;
    let boot = match &message {
        EdgeMessage::Lease(lease) => lease.boot,
        EdgeMessage::Held(held) => held.boot,
        EdgeMessage::Resolve(resolve) => resolve.boot,
        other => {
            let found = super::control::name(other);
            return Err(Violation::Protocol(format!(
                "{found} on the Lease stream: expected Resolve, Lease or Held"
            )));
        }
    };
    if contact.bound_for(boot).await?.is_none() {
        return Ok(());
    }
    let input = match message {
        EdgeMessage::Lease(lease) => Input::Lease(lease),
        EdgeMessage::Held(held) => Input::Held(held),
        EdgeMessage::Resolve(resolve) => Input::Resolve {
            mac: service.pepper.mac(&resolve.secret_sha256),
            confirmed: service.confirmation.age_ms(clock::mono()).is_some(),
            outlet: contact.outlet.lease.clone(),
            resolve,
        },
        _ => return Ok(()),
    };
    contact.tell(input).await;
    Ok(())
}
