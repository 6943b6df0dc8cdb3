//! Keeps one connection to one peer: dials when there is none, once at a time, with a back-off.
//!
//! The dial runs in a task of its own, so that a caller with a short deadline (a Raft call) does not
//! cancel it for the others; whoever asks meanwhile waits for the same dial. Refuses to dial on its own:
//! only when somebody asks.

use super::{Connection, DialError, Endpoint, Protocol};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tollgate_core::ids::NodeId;

/// Wait after the first failed dial; doubles with each further one.
pub const BACKOFF_FIRST: Duration = Duration::from_millis(50);
/// Longest wait between dials: how late a peer that came back is found.
pub const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// A connection that ended sooner counts as a failed dial: a peer that admits and then closes at once
/// (a `Hello` that does not fit) must not be dialled in a tight loop.
pub const LIVED_MIN: Duration = Duration::from_secs(1);

/// One connection to one node, made when asked for. Clones share it.
#[derive(Clone, Debug)]
pub struct Dialer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    endpoint: Endpoint,
    node: NodeId,
    address: String,
    protocol: Protocol,
    state: Mutex<State>,
}

type Outcome = Option<Result<Connection, DialError>>;

#[derive(Debug)]
enum State {
    Idle,
    Dialling {
        outcome: watch::Receiver<Outcome>,
        failures: u32,
    },
    Connected {
        connection: Connection,
        since: Instant,
        failures: u32,
    },
    Failed {
        failures: u32,
        until: Instant,
        last: DialError,
    },
}

enum Begun {
    AtOnce(Result<Connection, DialError>),
    Dialling(watch::Receiver<Outcome>),
}

impl Dialer {
    /// Will dial `node` at `address` (`host:port`, resolved at each dial).
    #[must_use]
    pub fn new(endpoint: Endpoint, node: NodeId, address: String, protocol: Protocol) -> Self {
        let state = Mutex::new(State::Idle);
        Self {
            shared: Arc::new(Shared {
                endpoint,
                node,
                address,
                protocol,
                state,
            }),
        }
    }

    /// The open connection, or a new one. Cancel safe: the dial goes on for whoever asks next.
    ///
    /// # Errors
    /// [`DialError`] of this dial; [`DialError::BackingOff`], at once, while the last failure is fresh.
    pub async fn connection(&self) -> Result<Connection, DialError> {
        let mut outcome = match self.shared.begin() {
            Begun::AtOnce(answer) => return answer,
            Begun::Dialling(outcome) => outcome,
        };
        let dialled = outcome
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|found| found.clone());
        // The task that dials is gone only with the runtime, as is then whoever waits here.
        dialled.unwrap_or_else(|| Err(self.shared.unresolved("the runtime stopped")))
    }

    /// The connection, if it is open; never dials.
    #[must_use]
    pub fn open_connection(&self) -> Option<Connection> {
        match &*self.shared.lock() {
            State::Connected { connection, .. } if connection.close_reason().is_none() => {
                Some(connection.clone())
            }
            _ => None,
        }
    }
}

impl State {
    fn failed(failures: u32, last: DialError) -> Self {
        Self::Failed {
            failures,
            until: Instant::now() + backoff(failures, random()),
            last,
        }
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Nothing panics while it is held; each state is valid alone.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers from what is there, or begins a dial unless one is running.
    fn begin(self: &Arc<Self>) -> Begun {
        let mut state = self.lock();
        if let State::Connected {
            connection,
            since,
            failures,
        } = &*state
        {
            let Some(source) = connection.close_reason() else {
                return Begun::AtOnce(Ok(connection.clone()));
            };
            let last = DialError::Failed {
                address: connection.remote_address(),
                source,
            };
            *state = if since.elapsed() < LIVED_MIN {
                State::failed(failures.saturating_add(1), last)
            } else {
                State::Idle
            };
        }
        let failures = match &*state {
            State::Dialling { outcome, .. } => return Begun::Dialling(outcome.clone()),
            State::Failed { until, last, .. } if *until > Instant::now() => {
                let retry_in = until.saturating_duration_since(Instant::now());
                let last = Box::new(last.clone());
                return Begun::AtOnce(Err(DialError::BackingOff { retry_in, last }));
            }
            State::Failed { failures, .. } => *failures,
            State::Idle | State::Connected { .. } => 0,
        };
        let (sender, outcome) = watch::channel(None);
        *state = State::Dialling {
            outcome: outcome.clone(),
            failures,
        };
        tokio::spawn(self.clone().dial(sender));
        Begun::Dialling(outcome)
    }

    async fn dial(self: Arc<Self>, sender: watch::Sender<Outcome>) {
        let dialled = self.resolve_and_dial().await;
        {
            let mut state = self.lock();
            let failures = match &*state {
                State::Dialling { failures, .. } => *failures,
                _ => 0,
            };
            *state = match &dialled {
                Ok(connection) => State::Connected {
                    connection: connection.clone(),
                    since: Instant::now(),
                    failures,
                },
                Err(last) => State::failed(failures.saturating_add(1), last.clone()),
            };
        }
        sender.send_replace(Some(dialled));
    }

    async fn resolve_and_dial(&self) -> Result<Connection, DialError> {
        let found = tokio::time::timeout(
            super::HANDSHAKE_DEADLINE,
            tokio::net::lookup_host(self.address.as_str()),
        )
        .await
        .map_err(|_| self.unresolved("the resolver does not answer"))?
        .map_err(|error| self.unresolved(&error.to_string()))?;
        let mut last = self.unresolved("nothing found");
        for address in found {
            match self.endpoint.dial(self.node, address, self.protocol).await {
                Ok(connection) => return Ok(connection),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn unresolved(&self, reason: &str) -> DialError {
        DialError::Resolve {
            address: self.address.clone(),
            reason: reason.to_owned(),
        }
    }
}

/// Wait before the next dial after `failures` in a row: doubling up to [`BACKOFF_MAX`], between half of
/// it and all of it by `random`, so that edges cut off together do not come back together.
fn backoff(failures: u32, random: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let longest = BACKOFF_FIRST
        .saturating_mul(1 << doublings)
        .min(BACKOFF_MAX);
    longest / 2 + (longest / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
}

fn random() -> u32 {
    // A wait without jitter is still a wait.
    getrandom::u32().unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_to_its_cap_and_never_leaves_its_half() {
        let ms = |failures, random| backoff(failures, random).as_millis();
        assert_eq!(
            [1, 2, 3, 4, 5, 6, 99].map(|n| ms(n, u32::MAX)),
            [50, 100, 200, 400, 800, 1000, 1000]
        );
        assert_eq!([1, 2, 6, 99].map(|n| ms(n, 0)), [25, 50, 500, 500]);
        assert_eq!(ms(u32::MAX, u32::MAX / 2 + 1), 750);
    }
}
