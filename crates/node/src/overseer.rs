//! What the leader does beyond Raft: hears who lives, gives slots of silent nodes to others, keeps ledger time
//! going, compares digests.
//!
//! Every proposal made on a suspicion names the epochs it expects, so a leader that stalled and wakes changes
//! nothing. When who is silent may be said is [`crate::presence`]'s; who gets the slots is
//! [`tollgate_core::placement`]'s. Runs on every node and is idle on followers.

use crate::agreement::{Agreement, Answer, Question, Verdict};
use crate::clock;
use crate::consensus::{Consensus, Proposer, Standing};
use crate::fatal::Fatal;
use crate::machine::SharedLedger;
use crate::presence::{Presence, SILENCE_MS};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tollgate_core::command::{Assign, AssignReply, Command, Reply};
use tollgate_core::ids::{Boot, NodeId};
use tollgate_core::placement;
use tollgate_core::time::{LedgerTime, Mono, Received};
use tollgate_wire::codec;

/// How often the leader looks around.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(25);
/// How long the answers to what a look brought are waited for.
pub const ROUND_DEADLINE: Duration = Duration::from_millis(500);
/// How often ledger time is moved on when nothing else does it, in ms.
pub const TICK_MS: u64 = 60_000;
/// How long one point of agreement stands, in ms.
pub const POINT_MS: u64 = 1000;
/// A clock reading older than this says nothing, in ms.
pub const CLOCK_FRESH_MS: u64 = 5000;

const QUESTION_BUDGET: usize = codec::budget(1024);

/// See the module's text.
pub struct Overseer {
    node: NodeId,
    ledger: SharedLedger,
    fatal: Fatal,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    term: Option<u64>,
    /// The leader before the one that stands.
    leaders: (Option<NodeId>, Option<NodeId>),
    presence: Option<Presence>,
    /// When each node was last heard, whoever led: what came before this node noticed that it leads.
    heard: BTreeMap<NodeId, (Boot, Mono)>,
    agreement: Agreement,
    pointed_at: Mono,
    ticked_at: Mono,
    voters: BTreeSet<NodeId>,
    /// How far each other node's wall clock is ahead of ours, in ms, and when it was read.
    clocks: BTreeMap<NodeId, (i64, Mono)>,
}

impl Overseer {
    /// The overseer of one node.
    #[must_use]
    pub fn new(node: NodeId, ledger: SharedLedger, fatal: Fatal) -> Self {
        Self {
            node,
            ledger,
            fatal,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change under the lock is complete in itself.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The leader's side of a confirmation: see [`crate::consensus::OnConfirm`].
    pub fn handle_question(&self, from: NodeId, question: &[u8]) -> Vec<u8> {
        let at = Received(clock::mono());
        let answer = match codec::decode::<Question, QUESTION_BUDGET>(question) {
            Ok(question) => self.take_question(at, from, question),
            Err(error) => {
                tracing::warn!(%from, %error, "a confirmation asks in another tongue");
                Answer {
                    point: None,
                    verdict: Verdict::Same,
                }
            }
        };
        codec::encode(&answer).unwrap_or_default()
    }

    fn take_question(&self, at: Received, from: NodeId, question: Question) -> Answer {
        let mut state = self.state();
        if question.boot != Boot(0) {
            state.heard.insert(from, (question.boot, at.0));
            if let Some(presence) = &mut state.presence {
                presence.handle_heard(at, from, question.boot);
            }
        }
        if from != self.node {
            let ahead = i128::from(question.wall.0) - i128::from(clock::wall().0);
            state
                .clocks
                .insert(from, (i64::try_from(ahead).unwrap_or(i64::MAX), at.0));
        }
        if let Some(digest) = question.digest {
            state.agreement.take(from, digest);
        }
        let verdict = state.agreement.verdict(from, &state.voters);
        Answer {
            point: state.agreement.point(),
            verdict,
        }
    }

    /// The guarded clock: the median of the wall clocks heard of lately and this node's own; of two, the lower.
    #[must_use]
    pub fn ledger_time(&self) -> LedgerTime {
        let now = clock::mono();
        let state = self.state();
        let fresh = state
            .clocks
            .values()
            .filter(|(_, at)| now.since_ms(*at) <= CLOCK_FRESH_MS);
        let ahead = lower_median(fresh.map(|(ahead, _)| *ahead).chain([0]).collect());
        LedgerTime(clock::wall().0.saturating_add_signed(ahead))
    }

    /// Looks after the cluster while this node leads it, until the node stops.
    pub async fn run(self: Arc<Self>, consensus: Arc<dyn Consensus>, proposer: Proposer) {
        let mut standing = consensus.standing();
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = look.tick() => {}
                changed = standing.changed() => if changed.is_err() { return },
                () = self.fatal.stopping() => return,
            }
            let seen = standing.borrow_and_update().clone();
            let due = self.look(clock::mono(), &seen);
            // One round at a time: the next look sees what this one brought.
            let proposals = due
                .into_iter()
                .map(|command| self.propose(&proposer, command));
            futures::future::join_all(proposals).await;
        }
    }

    /// What is to be proposed now.
    fn look(&self, now: Mono, standing: &Standing) -> Vec<Command> {
        let ledger = self.ledger.read();
        let mut state = self.state();
        let State { leaders, .. } = &mut *state;
        if standing.leader.is_some() && standing.leader != leaders.1 {
            *leaders = (leaders.1, standing.leader);
        }
        if !standing.is_leader {
            (state.term, state.presence) = (None, None);
            return Vec::new();
        }
        state.voters.clone_from(&standing.voters);
        if state.term != Some(standing.term) {
            let predecessor = state.leaders.0.filter(|node| *node != self.node);
            let mut presence = Presence::new(now, predecessor, &ledger, &standing.voters);
            for (node, (boot, at)) in &state.heard {
                if now.since_ms(*at) < SILENCE_MS {
                    presence.handle_heard(Received(*at), *node, *boot);
                }
            }
            state.presence = Some(presence);
            state.term = Some(standing.term);
            state.ticked_at = now;
            tracing::info!(term = standing.term, ?predecessor, "this node leads");
        }
        self.compare(now, &mut state, ledger.newest_digest());
        let mut due = Vec::new();
        let live = state
            .presence
            .as_mut()
            .and_then(|p| p.live(now, &ledger, &standing.voters));
        if let Some(live) = live {
            due.extend(
                placement::plan(&ledger, &live)
                    .into_iter()
                    .map(Command::Assign),
            );
        }
        if now.since_ms(state.ticked_at) >= TICK_MS {
            state.ticked_at = now;
            due.push(Command::Tick);
        }
        due
    }

    /// Names the next point of agreement, and looks at the own digest.
    fn compare(&self, now: Mono, state: &mut State, newest: Option<(u64, u128)>) {
        if let Verdict::Diverged(diverged) = state.agreement.verdict(self.node, &state.voters) {
            self.fatal.report(diverged.to_string());
        }
        if let Some(newest) = newest
            && now.since_ms(state.pointed_at) >= POINT_MS
            && state.agreement.point() != Some(newest.0)
        {
            state.agreement.begin(self.node, newest);
            state.pointed_at = now;
        }
    }

    async fn propose(&self, proposer: &Proposer, command: Command) {
        match (&command, proposer.propose(&command).await) {
            (
                Command::Assign(Assign { node, .. }),
                Ok(Reply::Assign(AssignReply::Assigned(slots))),
            ) => {
                tracing::info!(%node, slots = slots.len(), "slots assigned");
            }
            (_, Ok(reply)) => tracing::debug!(?reply, "the leader's proposal was applied"),
            // It is looked at again in a moment.
            (_, Err(error)) => tracing::debug!(%error, "the leader's proposal has no answer"),
        }
    }
}

fn lower_median(mut readings: Vec<i64>) -> i64 {
    readings.sort_unstable();
    let middle = readings.len().saturating_sub(1) / 2;
    readings.get(middle).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_follows_neither_end_and_of_two_the_lower() {
        assert_eq!(lower_median(vec![0]), 0);
        assert_eq!(lower_median(vec![0, 9_000_000]), 0);
        assert_eq!(lower_median(vec![0, -5]), -5);
        assert_eq!(lower_median(vec![0, 9_000_000, 20]), 20);
        assert_eq!(lower_median(vec![0, -9_000_000, 20]), 0);
    }
}
