//! What the leader does beyond Raft: hears who lives, gives slots of silent nodes to others, keeps ledger time
//! going, compares digests.
//!
//! Every proposal made on a suspicion names the epochs it expects, so a leader that stalled and wakes changes
//! nothing. When who is silent may be said is [`crate::presence`]'s; who gets the slots is
//! [`tollgate_core::placement`]'s; what time it is [`crate::guarded_clock`]'s. Runs on every node and is idle on
//! followers.

use crate::agreement::{Agreement, Answer, Question, Verdict};
use crate::clock;
use crate::consensus::{Consensus, PROPOSE_DEADLINE, Proposer, Standing};
use crate::fatal::Fatal;
use crate::guarded_clock::{self, GuardedClock, Reading};
use crate::machine::SharedLedger;
use crate::presence::{Presence, SILENCE_MS};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tollgate_core::command::{Assign, AssignReply, Command, Reply};
use tollgate_core::ids::{Boot, NodeId};
use tollgate_core::ledger::Ledger;
use tollgate_core::placement;
use tollgate_core::time::{LedgerTime, Mono, Received};
use tollgate_wire::codec;

/// How often the leader looks around.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(25);
/// How long the answers to what a look brought are waited for before another look may propose. What was proposed is
/// not given up then: a slow log must not keep the leader from ever getting an answer.
pub const ROUND_DEADLINE: Duration = Duration::from_millis(500);
/// Rounds of proposals under way at once: each ends with its own deadline.
pub const ROUNDS_MAX: usize = 8;
/// How often ledger time is moved on when nothing else does it, in ms.
pub const TICK_MS: u64 = 60_000;
/// How often while the ledger is behind with what is past its retention, in ms.
pub const TICK_BEHIND_MS: u64 = 1000;
/// How long one point of agreement stands, in ms.
pub const POINT_MS: u64 = 1000;

const _: () =
    assert!(PROPOSE_DEADLINE.as_millis() < ROUND_DEADLINE.as_millis() * ROUNDS_MAX as u128);

const DAY_MS: u64 = 24 * 3_600_000;

const QUESTION_BUDGET: usize = codec::budget(1024);

/// See the module's text.
pub struct Overseer {
    node: NodeId,
    ledger: SharedLedger,
    fatal: Fatal,
    state: Mutex<State>,
}

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
    clock: GuardedClock,
    /// Since when this leadership lasts.
    led_since: Mono,
    /// What was said of the clocks last: who deviates, and whether no majority agrees.
    clocks_told: (BTreeSet<NodeId>, bool),
}

impl Overseer {
    /// The overseer of one node.
    #[must_use]
    pub fn new(node: NodeId, ledger: SharedLedger, fatal: Fatal) -> Self {
        let clock = GuardedClock::new(node, ledger.read().time(), clock::mono());
        let state = State {
            term: None,
            leaders: (None, None),
            presence: None,
            heard: BTreeMap::new(),
            agreement: Agreement::default(),
            pointed_at: Mono::default(),
            ticked_at: Mono::default(),
            voters: BTreeSet::new(),
            clock,
            led_since: Mono::default(),
            clocks_told: Default::default(),
        };
        Self {
            node,
            ledger,
            fatal,
            state: Mutex::new(state),
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
        state
            .clock
            .handle_wall(at.0, from, question.wall, clock::wall());
        if let Some(digest) = question.digest {
            state.agreement.take(from, digest);
        }
        let verdict = state.agreement.verdict(from, &state.voters);
        Answer {
            point: state.agreement.point(),
            verdict,
        }
    }

    /// The guarded clock: what this node stamps the entries with that it proposes as leader.
    #[must_use]
    pub fn ledger_time(&self) -> LedgerTime {
        let mut state = self.state();
        let State { clock, voters, .. } = &mut *state;
        clock.read(clock::mono(), clock::wall(), voters).time
    }

    /// Looks after the cluster while this node leads it, until the node stops.
    pub async fn run(self: Arc<Self>, consensus: Arc<dyn Consensus>, proposer: Proposer) {
        let mut standing = consensus.standing();
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut rounds = FuturesUnordered::new();
        let mut begun = Instant::now();
        loop {
            tokio::select! {
                _ = look.tick() => {}
                changed = standing.changed() => if changed.is_err() { return },
                Some(()) = rounds.next() => {}
                () = self.fatal.stopping() => return,
            }
            let seen = standing.borrow_and_update().clone();
            // The next look sees what a round brought; one that takes too long is not waited for, since another node
            // may fall silent meanwhile. A proposal made twice changes nothing: its epochs are spent.
            let waited = begun.elapsed() >= ROUND_DEADLINE && rounds.len() < ROUNDS_MAX;
            let may_propose = rounds.is_empty() || waited;
            let due = self.look(clock::mono(), &seen, may_propose);
            if !due.is_empty() {
                begun = Instant::now();
                rounds.push(self.propose_all(&proposer, due));
            }
        }
    }

    async fn propose_all(&self, proposer: &Proposer, due: Vec<Command>) {
        let proposals = due
            .into_iter()
            .map(|command| self.propose(proposer, command));
        futures::future::join_all(proposals).await;
    }

    /// What is to be proposed now.
    fn look(&self, now: Mono, standing: &Standing, may_propose: bool) -> Vec<Command> {
        let ledger = self.ledger.read();
        let mut state = self.state();
        let State { leaders, .. } = &mut *state;
        if standing.leader.is_some() && standing.leader != leaders.1 {
            *leaders = (leaders.1, standing.leader);
        }
        state.voters.clone_from(&standing.voters);
        if !standing.is_leader {
            (state.term, state.presence) = (None, None);
            state.clock.follow(now, ledger.time());
            return Vec::new();
        }
        if state.term != Some(standing.term) {
            self.begin_to_lead(now, &mut state, standing, &ledger);
        }
        self.compare(now, &mut state, ledger.newest_digest());
        self.look_at_clocks(now, &mut state);
        let mut due = Vec::new();
        let live = state
            .presence
            .as_mut()
            .and_then(|p| p.live(now, &ledger, &standing.voters));
        if !may_propose {
            return due;
        }
        if let Some(live) = live {
            due.extend(
                placement::plan(&ledger, &live)
                    .into_iter()
                    .map(Command::Assign),
            );
        }
        let since_tick = now.since_ms(state.ticked_at);
        if since_tick >= TICK_MS || (since_tick >= TICK_BEHIND_MS && ledger.retention_is_behind()) {
            state.ticked_at = now;
            due.push(Command::Tick);
        }
        due
    }

    fn begin_to_lead(&self, now: Mono, state: &mut State, standing: &Standing, ledger: &Ledger) {
        let predecessor = state.leaders.0.filter(|node| *node != self.node);
        let mut presence = Presence::new(now, predecessor, ledger, &standing.voters);
        for (node, (boot, at)) in &state.heard {
            if now.since_ms(*at) < SILENCE_MS {
                presence.handle_heard(Received(*at), *node, *boot);
            }
        }
        state.presence = Some(presence);
        state.term = Some(standing.term);
        (state.ticked_at, state.led_since) = (now, now);
        tracing::info!(term = standing.term, ?predecessor, "this node leads");
    }

    /// Says once of whom the clock deviates from the majority's, and when no majority agrees.
    fn look_at_clocks(&self, now: Mono, state: &mut State) {
        let State { clock, voters, .. } = &mut *state;
        let Reading {
            agreed,
            deviating,
            step_ms,
            time,
        } = clock.read(now, clock::wall(), voters);
        // A new cluster's time begins in 1970.
        let begins = i128::from(time.0) - i128::from(step_ms) < i128::from(DAY_MS);
        if step_ms.unsigned_abs() > guarded_clock::AGREE_MS && !begins {
            tracing::warn!(
                step_ms,
                time = time.0,
                "the voters' clocks agree on a time that steps"
            );
        }
        let undecided = !agreed && now.since_ms(state.led_since) > guarded_clock::FRESH_MS;
        let (told, told_undecided) = &mut state.clocks_told;
        for (node, ahead_ms) in &deviating {
            if !told.contains(node) {
                self.ledger.alarms().note_clock();
                tracing::error!(
                    %node, ahead_ms,
                    "this node's wall clock deviates from the majority's: set it, or ledger time stands on the others alone"
                );
            }
        }
        if undecided && !*told_undecided {
            self.ledger.alarms().note_clock();
            tracing::error!(
                "no majority of the voters' wall clocks agrees: ledger time goes on at the pace of this node's monotonic \
                 clock; set the clocks"
            );
        }
        if agreed {
            *told = deviating.into_keys().collect();
        }
        *told_undecided = undecided;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Batch;
    use crate::consensus::{ConfirmError, Confirmed, ProposeError};
    use futures::future::BoxFuture;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::watch;
    use tollgate_core::command::OpenNode;
    use tollgate_core::ids::{Incarnation, Nonce};

    /// A log that answers nothing; counts the proposals that wait for it.
    struct Stuck {
        waiting: AtomicUsize,
        standing: watch::Sender<Standing>,
    }

    impl Consensus for Stuck {
        fn propose(&self, _: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, ProposeError>> {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            Box::pin(std::future::pending())
        }
        fn confirm(&self, _: Vec<u8>) -> BoxFuture<'_, Result<Confirmed, ConfirmError>> {
            Box::pin(std::future::pending())
        }
        fn standing(&self) -> watch::Receiver<Standing> {
            self.standing.subscribe()
        }
        fn applied(&self) -> watch::Receiver<Option<u64>> {
            watch::channel(None).1
        }
    }

    fn question(boot: u64) -> Vec<u8> {
        let question = Question {
            boot: Boot(boot),
            wall: clock::wall(),
            digest: None,
        };
        codec::encode(&question).unwrap()
    }

    #[test]
    fn time_is_stamped_a_step_further_at_most_until_a_majority_agrees() {
        let ledger = SharedLedger::new(Incarnation(1));
        let overseer = Overseer::new(NodeId(1), ledger, Fatal::default());
        overseer.state().voters = [1, 2, 3].map(NodeId).into();
        let year = 365 * 24 * 3_600_000;
        assert!(overseer.ledger_time().0 < year, "the ledger stands at 1970");
        let before = clock::wall();
        overseer.handle_question(NodeId(2), &question(0));
        let agreed = overseer.ledger_time();
        assert!(agreed.0 + 1000 >= before.0, "{agreed:?} {before:?}");
    }

    #[tokio::test]
    async fn a_leader_goes_on_looking_while_the_log_is_stuck() {
        let ledger = SharedLedger::new(Incarnation(1));
        let open = Command::OpenNode(OpenNode {
            node: NodeId(1),
            nonce: Nonce(1),
        });
        let open = codec::encode(&open).unwrap();
        let batch = Batch {
            time: LedgerTime(1),
            commands: vec![open.as_slice().into()],
        };
        let batch = batch.pack().unwrap();
        ledger.machine().write().unwrap().apply(1, &batch);
        let fatal = Fatal::default();
        let overseer = Arc::new(Overseer::new(NodeId(1), ledger, fatal.clone()));
        let leads = Standing {
            term: 1,
            leader: Some(NodeId(1)),
            is_leader: true,
            voters: [NodeId(1)].into(),
            ..Standing::default()
        };
        let stuck = Arc::new(Stuck {
            waiting: AtomicUsize::new(0),
            standing: watch::Sender::new(leads),
        });
        let run = tokio::spawn(
            overseer
                .clone()
                .run(stuck.clone(), Proposer::new(stuck.clone())),
        );
        // Nothing is ever answered before its deadline of three seconds: two at once is a second look.
        let asked_twice = async {
            while stuck.waiting.load(Ordering::SeqCst) < 2 {
                overseer.handle_question(NodeId(1), &question(1));
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
        };
        tokio::time::timeout(PROPOSE_DEADLINE, asked_twice)
            .await
            .expect("the leader proposes again while the first proposal waits");
        fatal.stop(crate::fatal::Stop::Asked);
        run.await.unwrap();
    }
}
