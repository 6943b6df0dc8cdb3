//! The Report stream: reports and the end of a session, forwarded to the leader and answered after commit.
//!
//! One at a time: a report that overtook the one before it would only be told of a gap. An unknown fate is told as
//! `Unavailable`: the edge sends it again, and the ledger counts it once.

use super::connection::{Contact, flush, push, receive};
use super::{Bound, Violation, count};
use crate::consensus::ProposeError;
use std::sync::Arc;
use tollgate_core::command::{CloseSession, Command, Reply, Report, ReportReply};
use tollgate_core::ids::SessionId;
use tollgate_core::message::{EdgeMessage, NodeMessage, SessionAnswer};
use tollgate_wire::quic::Framed;

pub(super) async fn serve(contact: &Arc<Contact>, framed: Framed) -> Result<(), Violation> {
    let Framed {
        mut writer,
        mut reader,
    } = framed;
    while let Some(message) = receive(&mut reader).await? {
        let answer = match message {
            EdgeMessage::Report(report) => settle(contact, report).await?,
            EdgeMessage::CloseSession { last_seq } => {
                let Bound { boot, session } = contact.bound().await?;
                let close = CloseSession {
                    session,
                    boot,
                    last_seq,
                };
                match contact
                    .service
                    .proposer
                    .propose(&Command::CloseSession(close))
                    .await
                {
                    Ok(Reply::CloseSession(reply)) => NodeMessage::Closed(SessionAnswer {
                        session,
                        boot,
                        reply,
                    }),
                    other => unavailable(contact, other)?,
                }
            }
            other => {
                let found = super::control::name(&other);
                return Err(Violation::Protocol(format!(
                    "{found} on the Report stream: expected Report or CloseSession"
                )));
            }
        };
        push(&mut writer, &answer).await?;
        if !flush(&mut writer).await? {
            return Ok(());
        }
    }
    Ok(())
}

async fn settle(contact: &Contact, report: Report) -> Result<NodeMessage, Violation> {
    let Some(bound) = contact.bound_for(report.boot).await? else {
        // What the ledger would say.
        return Ok(NodeMessage::Report(SessionAnswer {
            session: report.session,
            boot: report.boot,
            reply: ReportReply::Fenced,
        }));
    };
    // A boot that was fenced before its connection was made has no session known here.
    if report.session != bound.session && bound.session != SessionId(0) {
        return Err(Violation::Protocol(format!(
            "a report of session {} on the connection of session {}",
            report.session, bound.session
        )));
    }
    let (session, boot) = (report.session, report.boot);
    let counts = &contact.service.counts;
    match contact
        .service
        .proposer
        .propose(&Command::Report(report))
        .await
    {
        Ok(Reply::Report(reply)) => {
            match reply {
                ReportReply::Settled { .. } => count(&counts.reports_settled),
                _ => count(&counts.reports_refused),
            }
            Ok(NodeMessage::Report(SessionAnswer {
                session,
                boot,
                reply,
            }))
        }
        other => unavailable(contact, other),
    }
}

/// No answer, or none that fits: the edge repeats. What can never fit ends the connection instead.
pub(super) fn unavailable(
    contact: &Contact,
    answered: Result<Reply, ProposeError>,
) -> Result<NodeMessage, Violation> {
    count(&contact.service.counts.unavailable);
    match answered {
        Err(ProposeError::TooLarge { found, limit }) => Err(Violation::Protocol(format!(
            "a message of {found} bytes, expected at most {limit}"
        ))),
        Err(error) => Ok(NodeMessage::Unavailable(error.to_string().into())),
        Ok(Reply::Malformed(why)) => Ok(NodeMessage::Unavailable(why)),
        Ok(other) => {
            tracing::error!(?other, "the ledger answered with something else");
            Ok(NodeMessage::Unavailable(
                "the ledger's answer does not fit".into(),
            ))
        }
    }
}
