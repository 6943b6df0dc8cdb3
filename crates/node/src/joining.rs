//! Whether a node with an empty log may take part: asked of the other members before Raft answers anybody.
//!
//! A member that lost its data would vote and acknowledge again what it no longer holds, so it is refused. An
//! empty log is right in two cases only: the cluster was never begun (every member says so, and the one with the
//! lowest id begins it), or it was begun a moment ago and has not numbered a start of this node yet. Until that is
//! known, connections of other nodes are served by [`answer_only`]. Next: [`crate::server`].

use crate::consensus::{OnConfirm, Standing};
use crate::machine::SharedLedger;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tollgate_core::ids::{Boot, NodeId};
use tollgate_wire::codec;
use tollgate_wire::quic::{Accepted, Connection, Dialer, Endpoint, Protocol};

/// Between two rounds of questions to members that have not answered.
const ASK_INTERVAL: Duration = Duration::from_millis(100);

/// For one answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(1);

/// Most bytes of an answer.
const ANSWER_BYTES_MAX: usize = 1024;

const BUDGET: usize = codec::budget(ANSWER_BYTES_MAX);

/// What a node asks another outside of Raft. Variants are append only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum NodeQuestion {
    /// What do you know of the cluster, and of me?
    Membership,
}

/// Answer to [`NodeQuestion::Membership`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Membership {
    /// Whether the answering node has a log.
    begun: bool,
    /// The latest boot of the asking node that its ledger knows.
    boot: Option<Boot>,
}

/// What an empty log means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joining {
    /// Nobody has a log: this node is to make the members known.
    Begin,
    /// A leader will send this node what it needs.
    Wait,
}

/// A member whose data was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the data folder is empty, but node {teller} says that the cluster has begun and that node {node} {}: its data \
     was lost or is elsewhere. Correct `data_dir`, or remove the node from the cluster and join with an empty folder \
     under a new id: an id is never used again after data loss",
    match boot { Some(boot) => format!("was started in it (boot {boot})"), None => "began it".to_owned() }
)]
pub struct DataLost {
    node: NodeId,
    teller: NodeId,
    boot: Option<Boot>,
}

/// Judges the answers so far; `None` while more are needed.
fn judge(
    node: NodeId,
    others: usize,
    lowest: bool,
    answers: &BTreeMap<NodeId, Membership>,
) -> Option<Result<Joining, DataLost>> {
    let lost =
        |(_, answer): &(&NodeId, &Membership)| answer.begun && (lowest || answer.boot.is_some());
    if let Some((teller, answer)) = answers.iter().find(lost) {
        return Some(Err(DataLost {
            node,
            teller: *teller,
            boot: answer.boot,
        }));
    }
    if answers.values().any(|answer| answer.begun) {
        return Some(Ok(Joining::Wait));
    }
    let all = answers.len() == others;
    all.then_some(Ok(if lowest {
        Joining::Begin
    } else {
        Joining::Wait
    }))
}

/// Answers other nodes from the replica and from where Raft stands.
#[must_use]
pub fn on_question(ledger: SharedLedger, standing: watch::Receiver<Standing>) -> OnConfirm {
    Arc::new(move |from, question| {
        let begun = {
            let standing = standing.borrow();
            standing.last_index > 0 || !standing.voters.is_empty()
        };
        match codec::decode::<NodeQuestion, BUDGET>(question) {
            Ok(NodeQuestion::Membership) => {
                let answer = Membership {
                    begun,
                    boot: ledger.read().node_boot(from),
                };
                codec::encode(&answer).unwrap_or_default()
            }
            Err(error) => {
                tracing::warn!(%from, %error, "a node asks in another tongue");
                Vec::new()
            }
        }
    })
}

/// Serves a node's connection while this node may not take part: questions only. Ends once `admitted` turns.
pub async fn answer_only(
    connection: &Connection,
    on_question: &OnConfirm,
    mut admitted: watch::Receiver<bool>,
) {
    let Some(peer) = connection.peer().node_id() else {
        return;
    };
    loop {
        let opening = tokio::select! {
            opening = connection.accept() => opening,
            _ = admitted.wait_for(|admitted| *admitted) => return,
        };
        let Ok(opening) = opening else { return };
        // Anything else is dropped, which resets its stream: the caller tries again.
        if let Ok(Accepted::Request(question)) = opening.identify().await {
            let answer = on_question(peer, question.payload());
            drop(question.answer(&answer).await);
        }
    }
}

/// Asks the other members until it is clear what the empty log means.
///
/// # Errors
/// [`DataLost`]: this node must not take part.
pub async fn ask(
    endpoint: &Endpoint,
    node: NodeId,
    members: &BTreeMap<u64, String>,
) -> Result<Joining, DataLost> {
    let dialer = |(id, address): (&u64, &String)| {
        let to = NodeId(*id);
        (to != node).then(|| {
            (
                to,
                Dialer::new(endpoint.clone(), to, address.clone(), Protocol::Raft),
            )
        })
    };
    let others: Vec<(NodeId, Dialer)> = members.iter().filter_map(dialer).collect();
    let lowest = members.keys().next() == Some(&node.0);
    let mut answers = BTreeMap::new();
    loop {
        if let Some(judged) = judge(node, others.len(), lowest, &answers) {
            return judged;
        }
        let asked = others
            .iter()
            .map(|(to, dialer)| async move { Some((*to, ask_one(dialer).await?)) });
        let round = futures::future::join_all(asked).await;
        answers.extend(round.into_iter().flatten());
        if judge(node, others.len(), lowest, &answers).is_none() {
            tokio::time::sleep(ASK_INTERVAL).await;
        }
    }
}

async fn ask_one(dialer: &Dialer) -> Option<Membership> {
    let question = codec::encode(&NodeQuestion::Membership).ok()?;
    let connection = dialer.connection().await.ok()?;
    let answer = connection
        .request(&question, ANSWER_BYTES_MAX, ANSWER_DEADLINE)
        .await
        .ok()?;
    codec::decode::<Membership, BUDGET>(&answer).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: Membership = Membership {
        begun: false,
        boot: None,
    };
    const FRESH: Membership = Membership {
        begun: true,
        boot: None,
    };
    const KNOWN: Membership = Membership {
        begun: true,
        boot: Some(Boot(4)),
    };

    fn judged(node: u64, answers: &[(u64, Membership)]) -> Option<Result<Joining, DataLost>> {
        let answers = answers
            .iter()
            .map(|(node, answer)| (NodeId(*node), *answer))
            .collect();
        judge(NodeId(node), 2, node == 1, &answers)
    }

    #[test]
    fn the_lowest_begins_once_everyone_is_empty_and_never_where_something_was_begun() {
        assert_eq!(judged(1, &[(2, EMPTY)]), None);
        assert_eq!(
            judged(1, &[(2, EMPTY), (3, EMPTY)]),
            Some(Ok(Joining::Begin))
        );
        assert!(matches!(judged(1, &[(3, FRESH)]), Some(Err(_))));
        assert!(matches!(judged(1, &[(2, EMPTY), (3, KNOWN)]), Some(Err(_))));
    }

    #[test]
    fn another_waits_unless_a_start_of_it_is_known() {
        assert_eq!(judged(2, &[(1, EMPTY)]), None);
        assert_eq!(
            judged(2, &[(1, EMPTY), (3, EMPTY)]),
            Some(Ok(Joining::Wait))
        );
        assert_eq!(judged(2, &[(1, FRESH)]), Some(Ok(Joining::Wait)));
        let lost = judged(2, &[(1, FRESH), (3, KNOWN)]).unwrap().unwrap_err();
        assert!(lost.to_string().contains("new id"), "{lost}");
    }
}
