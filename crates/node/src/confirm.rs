//! Confirmations: a node's proof, by a ReadIndex at the leader, that its view is current (design §5).
//!
//! [`Confirmation`] answers "how old is what we know?"; [`run`] asks the leader every 250 ms, and at once when it
//! changes. A proof counts from the moment *before* the question left, and only once its read index is applied
//! here, so a node cut off with a minority cannot look fresh. Each question also tells the leader that this boot
//! lives, and carries the digest that the last answer asked for ([`crate::agreement`]).

use crate::agreement::{Answer, Question, Verdict};
use crate::clock;
use crate::consensus::{ConfirmError, Consensus, Standing};
use crate::fatal::Fatal;
use crate::machine::SharedLedger;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tollgate_core::ids::Boot;
use tollgate_core::time::{Mono, Sent};
use tollgate_wire::codec;

/// Between two questions.
pub const CONFIRM_INTERVAL: Duration = Duration::from_millis(250);
/// How long a proof holds, in milliseconds from the sending of its question.
pub const CONFIRM_TTL_MS: u64 = 2000;
/// A question without an answer is given up after this.
pub const CONFIRM_DEADLINE: Duration = Duration::from_secs(1);
/// Proofs kept whose read index may not be applied yet.
const PROOFS_MAX: usize = 16;

const ANSWER_BUDGET: usize = codec::budget(1024);

/// What this node can prove of its view. Clones share it.
#[derive(Clone)]
pub struct Confirmation {
    /// Newest last.
    proofs: Arc<Mutex<VecDeque<(Sent, u64)>>>,
    applied: watch::Receiver<Option<u64>>,
}

impl Confirmation {
    /// Nothing is proved yet.
    #[must_use]
    pub fn new(applied: watch::Receiver<Option<u64>>) -> Self {
        Self {
            proofs: Arc::default(),
            applied,
        }
    }

    /// How old the confirmed view is, in ms; `None` when there is none or it is older than [`CONFIRM_TTL_MS`].
    #[must_use]
    pub fn age_ms(&self, now: Mono) -> Option<u64> {
        let applied = *self.applied.borrow();
        let proofs = self.proofs.lock().unwrap_or_else(PoisonError::into_inner);
        let holds = |(_, read_index): &&(Sent, u64)| applied >= Some(*read_index);
        let (sent, _) = proofs.iter().rev().find(holds)?;
        let age = now.since_ms(sent.0);
        (age <= CONFIRM_TTL_MS).then_some(age)
    }

    /// Waits until the replica moves on.
    pub async fn applied(&self) {
        // The sender is gone only when the node stops.
        drop(self.applied.clone().changed().await);
    }

    fn note(&self, sent: Sent, read_index: u64) {
        let mut proofs = self.proofs.lock().unwrap_or_else(PoisonError::into_inner);
        if proofs.len() == PROOFS_MAX {
            proofs.pop_front();
        }
        proofs.push_back((sent, read_index));
    }
}

/// Tells the leader this node's wall clock once, before it has a boot; what the leader proves by it is not kept.
///
/// # Errors
/// [`ConfirmError`] when no leader answers within [`CONFIRM_DEADLINE`].
pub async fn tell_clock(consensus: &dyn Consensus) -> Result<(), ConfirmError> {
    let question = Question {
        boot: Boot(0),
        wall: clock::wall(),
        digest: None,
    };
    let bytes = codec::encode(&question).map_err(|error| ConfirmError(error.to_string()))?;
    match tokio::time::timeout(CONFIRM_DEADLINE, consensus.confirm(bytes)).await {
        Ok(answered) => answered.map(drop),
        Err(_) => Err(ConfirmError(format!(
            "no answer within {CONFIRM_DEADLINE:?}"
        ))),
    }
}

/// Asks until the node stops.
pub async fn run(
    confirmation: Confirmation,
    consensus: Arc<dyn Consensus>,
    ledger: SharedLedger,
    boot: Boot,
    fatal: Fatal,
) {
    let mut standing = consensus.standing();
    let mut point: Option<u64> = None;
    loop {
        let digest =
            point.and_then(|index| ledger.read().digest_at(index).map(|digest| (index, digest)));
        let question = Question {
            boot,
            wall: clock::wall(),
            digest,
        };
        let leader = standing.borrow_and_update().leader;
        let moved = |standing: &Standing| standing.leader != leader && standing.leader.is_some();
        if let Ok(bytes) = codec::encode(&question) {
            let sent = Sent(clock::mono());
            let asked = tokio::time::timeout(CONFIRM_DEADLINE, consensus.confirm(bytes));
            let answer = tokio::select! {
                answer = asked => answer,
                // A question to a leader that died is not waited for: its successor must hear of
                // everyone before it judges who is silent.
                changed = standing.wait_for(moved) => match changed {
                    Ok(_) => continue,
                    Err(_) => return,
                },
            };
            match answer {
                Ok(Ok(confirmed)) => {
                    confirmation.note(sent, confirmed.read_index);
                    match codec::decode::<Answer, ANSWER_BUDGET>(&confirmed.answer) {
                        Ok(Answer {
                            verdict: Verdict::Diverged(diverged),
                            ..
                        }) => {
                            fatal.report(diverged.to_string());
                            return;
                        }
                        Ok(answer) => point = answer.point.or(point),
                        Err(error) => {
                            tracing::warn!(%error, "the leader's confirmation is unreadable");
                        }
                    }
                }
                Ok(Err(error)) => tracing::debug!(%error, "no confirmation"),
                Err(_) => tracing::debug!("no confirmation within {CONFIRM_DEADLINE:?}"),
            }
        }
        tokio::select! {
            () = tokio::time::sleep(CONFIRM_INTERVAL) => {}
            changed = standing.wait_for(moved) => if changed.is_err() { return },
            () = fatal.stopping() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_counts_once_its_index_is_applied_and_until_it_is_too_old() {
        let (applied, receiver) = watch::channel(Some(4));
        let confirmation = Confirmation::new(receiver);
        assert_eq!(confirmation.age_ms(Mono(100)), None);
        confirmation.note(Sent(Mono(100)), 4);
        confirmation.note(Sent(Mono(300)), 5);
        assert_eq!(
            confirmation.age_ms(Mono(400)),
            Some(300),
            "the newer one's index is not applied"
        );
        applied.send_replace(Some(5));
        assert_eq!(confirmation.age_ms(Mono(400)), Some(100));
        assert_eq!(confirmation.age_ms(Mono(2300)), Some(2000));
        assert_eq!(confirmation.age_ms(Mono(2301)), None);
    }
}
