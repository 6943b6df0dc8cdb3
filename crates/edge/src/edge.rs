//! [`Edge`]: the handle that applications and doors hold.
//!
//! Owns the start (configuration, certificates, journal, driver, links), the waiting of cold checks and
//! the end. Refuses to decide: that is `view.rs`. Clones are cheap and share everything; when the last one
//! is gone the edge stops without a word, so close it ([`Edge::close`]).

use crate::clock;
use crate::config::{ConfigError, EdgeConfig};
use crate::counts::CheckCounts;
use crate::credential::{self, HashKeys};
use crate::decision::{CheckRequest, Decision, Outcome, Reason};
use crate::driver::{ASKS_MAX, Ask, Driver, EVENTS_MAX, Inputs, Wake};
use crate::journal::{Journal, JournalEntry, JournalError};
use crate::link::{Introduction, Link};
use crate::principal::Purse;
use crate::status::{Left, SessionState, Status};
use crate::view::{Answer, Cold, Mode, View};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tollgate_core::account::AccountId;
use tollgate_core::ids::Nonce;
use tollgate_wire::identity::Role;
use tollgate_wire::quic::{Endpoint, ListenError};
use tollgate_wire::tls::{Tls, TlsError};

/// Why an edge cannot start. None of these is cured by trying again.
#[derive(Debug, thiserror::Error)]
pub enum EdgeError {
    /// The configuration.
    #[error("configuration: {0}")]
    Config(#[from] ConfigError),
    /// The certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The certificate is of another cluster than the configuration.
    #[error(
        "`cluster` is `{configured}`, but the certificate is for {found}: use the certificate of this cluster"
    )]
    OtherCluster {
        /// In the configuration.
        configured: String,
        /// In the certificate.
        found: String,
    },
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// No UDP socket.
    #[error(transparent)]
    Socket(#[from] ListenError),
    /// No randomness.
    #[error("the system has no randomness to give: {0}")]
    Randomness(getrandom::Error),
}

/// How soon a check that waits for the edge to be ready looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// An edge: answers checks from memory. See the module's text.
#[derive(Clone)]
pub struct Edge {
    view: Arc<View>,
    asks: mpsc::Sender<Ask>,
    status: watch::Receiver<Status>,
    cold_deadline: Duration,
}

impl Edge {
    /// Starts an edge. It connects by itself, for as long as it takes: see [`Edge::ready`].
    ///
    /// Call it inside a tokio runtime with time and I/O.
    ///
    /// # Errors
    /// [`EdgeError`]: what is wrong on this machine; a cluster that does not answer is no error.
    pub async fn connect(config: EdgeConfig) -> Result<Self, EdgeError> {
        config.validate()?;
        let tls = Tls::load((&config.tls).into(), Role::Edge)?;
        if *tls.identity().cluster() != config.cluster {
            let (configured, found) = (config.cluster.to_string(), tls.identity().to_string());
            return Err(EdgeError::OtherCluster { configured, found });
        }
        let drawn = getrandom::u64().map_err(EdgeError::Randomness)?;
        let (journal, nonce) = match config.journal.clone() {
            Some(path) => {
                let (cluster, identity) = (config.cluster.clone(), tls.identity().name().clone());
                let open = move || open_journal(&path, &cluster, &identity, drawn);
                let opened = tokio::task::spawn_blocking(open).await;
                let (journal, nonce) = opened.map_err(|error| JournalError::Io {
                    path: config.journal.clone().unwrap_or_default(),
                    source: std::io::Error::other(error),
                })??;
                (Some(journal), nonce)
            }
            None => (None, Nonce(0).next_start(drawn)),
        };
        let endpoint = Endpoint::dialling(&tls)?;
        let max_stale_ms = u64::try_from(config.max_stale.as_millis()).unwrap_or(u64::MAX);
        let hash_keys = HashKeys::draw().map_err(EdgeError::Randomness)?;
        let view = Arc::new(View::new(hash_keys, max_stale_ms));
        let (asks, asks_in) = mpsc::channel(ASKS_MAX);
        let (events_out, events) = mpsc::channel(EVENTS_MAX);
        let introduction = Introduction {
            cluster: config.cluster.clone(),
            incarnation: None,
            boot: None,
        };
        let (introduction, introduced) = watch::channel(introduction);
        let (status, status_in) = watch::channel(Driver::first_status(&config));
        let mut links = JoinSet::new();
        for node in &config.nodes {
            let (endpoint, introduced) = (endpoint.clone(), introduced.clone());
            links.spawn(Link::new(node.clone(), endpoint, introduced, events_out.clone()).run());
        }
        let cold_deadline = config.cold_deadline;
        let driver = Driver::new(Inputs {
            config,
            view: view.clone(),
            asks: asks_in,
            events,
            introduction,
            status,
            journal,
            nonce,
        });
        tokio::spawn(async move {
            let end = driver.run().await;
            links.shutdown().await;
            endpoint.close("the edge stops").await;
            if let Some((done, left)) = end {
                // Whoever asked to close may be gone.
                let _ = done.send(left);
            }
        });
        Ok(Self {
            view,
            asks,
            status: status_in,
            cold_deadline,
        })
    }

    /// An edge that decides on `view` for ever: there is nobody to ask.
    pub(crate) fn without_driver(view: View, status: Status) -> Self {
        let (asks, _) = mpsc::channel(1);
        let (_, status) = watch::channel(status);
        Self {
            view: Arc::new(view),
            asks,
            status,
            cold_deadline: Duration::ZERO,
        }
    }

    /// Waits until checks are answered: a session is open and the view is proved fresh. `false` if that
    /// takes longer than `deadline`, or will never be; [`Edge::status`] says why.
    pub async fn ready(&self, deadline: Duration) -> bool {
        let mut status = self.status.clone();
        let ready = status.wait_for(|status| status.ready || is_over(status));
        matches!(tokio::time::timeout(deadline, ready).await, Ok(Ok(status)) if status.ready)
    }

    /// Decides from memory: no await, no lock, and no allocation when it allows.
    ///
    /// What this edge has not got (an unknown caller, too few units) is `unavailable` here and asked for,
    /// so that the next check finds it; [`Edge::check_or_wait`] waits for it.
    #[must_use]
    pub fn check(&self, request: &CheckRequest<'_>) -> Decision {
        let now = clock::of_checks();
        self.view
            .decide(now, request, Mode::Take, |answer, who| Decision {
                outcome: self.outcome_or_ask(request, answer, who),
                principal: who.map(|purse| purse.principal().clone()),
            })
    }

    /// As [`Edge::check`] without the caller's limits: not even a reference is counted.
    #[must_use]
    pub fn admit(&self, request: &CheckRequest<'_>) -> Outcome {
        let now = clock::of_checks();
        self.view.decide(now, request, Mode::Take, |answer, who| {
            self.outcome_or_ask(request, answer, who)
        })
    }

    /// The outcome for a check that does not wait; what it lacks is asked for.
    #[inline]
    fn outcome_or_ask(
        &self,
        request: &CheckRequest<'_>,
        answer: Answer,
        who: Option<&Purse>,
    ) -> Outcome {
        match answer.cold {
            None => answer.outcome,
            Some(cold) => self.ask(request, lacking(cold, answer, who, request), None),
        }
    }

    /// As [`Edge::check`], but waits up to `cold_deadline` for what this edge has not got; then the answer
    /// is `unavailable`. A dropped call takes nothing with it: units go to the cell.
    pub async fn check_or_wait(&self, request: &CheckRequest<'_>) -> Decision {
        self.wait(request, Mode::Take).await
    }

    /// What [`Edge::check_or_wait`] would say, by the best estimate, without taking anything.
    pub async fn peek(&self, request: &CheckRequest<'_>) -> Decision {
        self.wait(request, Mode::Peek).await
    }

    async fn wait(&self, request: &CheckRequest<'_>, mode: Mode) -> Decision {
        let (mut decision, mut cold) = self.look(request, mode);
        // Most calls end here: no deadline is computed for them.
        if cold.is_none() {
            return decision;
        }
        let deadline = Instant::now() + self.cold_deadline;
        while let Some(lacking) = cold {
            let woken = if matches!(lacking, Lacking::Ready) {
                // What was published may be older than what was looked at.
                tokio::time::sleep_until(deadline.min(Instant::now() + LOOK_AGAIN)).await;
                let mut status = self.status.clone();
                let changed = status.wait_for(|status| status.ready || is_over(status));
                let result = tokio::time::timeout_at(deadline, changed).await;
                matches!(result, Ok(Ok(status)) if status.ready)
            } else {
                let (wake, woken) = oneshot::channel();
                let outcome = self.ask(request, lacking, Some(wake));
                if outcome.reason != Reason::Unavailable {
                    decision.outcome = outcome;
                    break;
                }
                matches!(tokio::time::timeout_at(deadline, woken).await, Ok(Ok(())))
            };
            // Also when nobody woke it: it may be there by now.
            (decision, cold) = self.look(request, mode);
            match &cold {
                None => return decision,
                Some(lacking) if !woken => {
                    let waited = self.cold_deadline.saturating_sub(deadline - Instant::now());
                    tracing::debug!(?waited, %lacking, "a check was not served in time");
                    break;
                }
                Some(_) => {}
            }
        }
        self.view.count(decision.reason());
        decision
    }

    fn look(&self, request: &CheckRequest<'_>, mode: Mode) -> (Decision, Option<Lacking>) {
        self.view
            .decide(clock::of_checks(), request, mode, |answer, who| {
                let cold = answer.cold.map(|cold| lacking(cold, answer, who, request));
                (
                    Decision {
                        outcome: answer.outcome,
                        principal: who.map(|purse| purse.principal().clone()),
                    },
                    cold,
                )
            })
    }

    /// Asks the driver for what a check lacks; answers what to say to a check that does not wait. Never waits:
    /// a full queue drops the ask.
    #[cold]
    fn ask(&self, request: &CheckRequest<'_>, lacking: Lacking, wake: Option<Wake>) -> Outcome {
        let waits = wake.is_some();
        let (ask, answer) = match lacking {
            Lacking::Ready => return self.counted(waits, self.outcome(Reason::Unavailable)),
            Lacking::Units { accounts, answer } => (
                Ask::Want {
                    accounts,
                    cost: request.cost.units(),
                    wake,
                },
                answer,
            ),
            Lacking::Principal { hash, answer } => {
                let Some(presented) = credential::parse(request.credential) else {
                    return self.counted(waits, self.outcome(Reason::CredentialInvalid));
                };
                let source = match request.source {
                    Some(source) => match self.view.sources.admit(clock::now(), source) {
                        Some(slot) => Some(slot),
                        None => return self.counted(waits, self.view.throttled(&answer)),
                    },
                    None => None,
                };
                let cost = request.cost.units();
                (
                    Ask::Resolve {
                        hash,
                        presented,
                        cost,
                        wake,
                        source,
                    },
                    answer,
                )
            }
        };
        // A full queue drops the ask, and with it the wake: there is no answer then.
        if let Err(error) = self.asks.try_send(ask)
            && let Ask::Resolve {
                source: Some(source),
                ..
            } = error.into_inner()
        {
            self.view.sources.pay_back(source);
        }
        self.counted(waits, answer.outcome)
    }

    fn counted(&self, waits: bool, outcome: Outcome) -> Outcome {
        if !waits {
            self.view.count(outcome.reason);
        }
        outcome
    }

    fn outcome(&self, reason: Reason) -> Outcome {
        Outcome {
            reason,
            retry_after_ms: Some(1000),
            revision: self.view.revision(),
            stale_ms: self.view.stale_ms(clock::now()),
        }
    }

    /// Checks answered since the start, by reason.
    #[must_use]
    pub fn check_counts(&self) -> CheckCounts {
        self.view.counts.totals()
    }

    /// What the edge says about itself; at most 250 ms old, `ready` and `stale_ms` are of now.
    #[must_use]
    pub fn status(&self) -> Status {
        let now = clock::now();
        let mut status = self.status.borrow().clone();
        status.stale_ms = self.view.stale_ms(now);
        status.ready = self.view.is_ready(now);
        status
    }

    /// Waits until this edge has stopped for good and says why, and what to do; for ever while it has not, and
    /// when it is closed. It then refuses every check as `unavailable`: whoever runs it should end it.
    pub async fn failed(&self) -> String {
        let mut status = self.status.clone();
        let failed = |status: &Status| matches!(status.session, SessionState::Failed(_));
        if let Ok(status) = status.wait_for(failed).await
            && let SessionState::Failed(reason) = &status.session
        {
            return reason.clone();
        }
        // Nothing is published any more: it was closed.
        std::future::pending().await
    }

    /// Stops checks, hands in every unit, reports all use, ends the session; at most for `deadline`.
    /// Answers what was left, once the connections are closed and the journal is free for the next start.
    pub async fn close(&self, deadline: Duration) -> Left {
        let (done, left) = oneshot::channel();
        let nothing_known = Left {
            units: 0,
            reports: 0,
            closed: false,
        };
        if self.asks.send(Ask::Close { deadline, done }).await.is_err() {
            return nothing_known;
        }
        left.await.unwrap_or(nothing_known)
    }
}

/// What a check lacks, taken out of the view so that it can be asked for.
enum Lacking {
    Ready,
    Principal {
        hash: credential::Hash,
        answer: Answer,
    },
    Units {
        accounts: Vec<AccountId>,
        answer: Answer,
    },
}

impl fmt::Display for Lacking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready => f.write_str("the edge is not ready"),
            Self::Principal { .. } => f.write_str("nobody said who this is"),
            Self::Units { accounts, .. } => write!(f, "no units of {accounts:?}"),
        }
    }
}

#[cold]
fn lacking(cold: Cold, answer: Answer, who: Option<&Purse>, request: &CheckRequest<'_>) -> Lacking {
    match (cold, who) {
        (Cold::NotReady, _) => Lacking::Ready,
        (Cold::Unknown(hash), _) => Lacking::Principal { hash, answer },
        (Cold::Short, Some(purse)) => Lacking::Units {
            accounts: purse.principal().short_of(request.cost.units()),
            answer,
        },
        (Cold::Short, None) => Lacking::Ready,
    }
}

fn is_over(status: &Status) -> bool {
    use crate::status::SessionState::{Closed, Failed, Open, Opening};
    match status.session {
        Failed(_) | Closed => true,
        Opening | Open { .. } => false,
    }
}

/// The journal and a start number that is on disk.
fn open_journal(
    path: &std::path::Path,
    cluster: &tollgate_core::account::Name,
    identity: &tollgate_core::account::Name,
    drawn: u64,
) -> Result<(Journal, Nonce), JournalError> {
    let mut journal = Journal::open(path, cluster, identity)?;
    let nonce = journal.kept().nonce.next_start(drawn);
    journal.append(&[JournalEntry::Start(nonce)])?;
    Ok((journal, nonce))
}
