//! The administrator: raises quotas and revokes keys all through the run, and writes down what was acknowledged.
//!
//! Owns: one change at a time, repeated under one idempotency key until it is acknowledged or given up; a customer
//! whose change has an unknown fate is left alone from then on, so that a late one cannot pass for a lost one.

use super::clients::{Recorder, lock};
use super::cluster::{catalog, revision_index};
use super::evidence::{Change, What};
use super::plan::Random;
use super::workload::RAISE_UNITS;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tollgate::admin_client::AdminClient;
use tollgate::output::{Exit, Failure};

/// How long one change is repeated while nobody acknowledges it.
const GIVE_UP: Duration = Duration::from_secs(20);

/// Pause before it is repeated.
const AGAIN: Duration = Duration::from_millis(100);

/// Pause between two changes, in milliseconds, from and to.
const BETWEEN_MS: (u64, u64) = (200, 900);

/// The administrator at work.
pub struct Administrator {
    recorder: Arc<Recorder>,
    admin: AdminClient,
    random: Random,
    changes: Arc<Mutex<Vec<Change>>>,
    stop: Arc<AtomicBool>,
    /// Accounts whose limit may be raised again, with it.
    raisable: Vec<(usize, u64)>,
    /// Keys still to be revoked, the last first.
    revocable: Vec<usize>,
}

/// The administrator as a task.
pub struct AtWork {
    changes: Arc<Mutex<Vec<Change>>>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<Result<(), Failure>>,
}

impl AtWork {
    /// Begins; goes on until stopped.
    #[must_use]
    pub fn start(recorder: &Arc<Recorder>, admin: AdminClient, seed: u64) -> Self {
        let changes = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let workload = &recorder.workload;
        let raised = workload.raised.iter();
        let administrator = Administrator {
            raisable: raised
                .map(|account| (*account, workload.accounts[*account].limit))
                .collect(),
            revocable: workload.revoked.iter().rev().copied().collect(),
            recorder: Arc::clone(recorder),
            admin,
            random: Random::new(seed, 3),
            changes: Arc::clone(&changes),
            stop: Arc::clone(&stop),
        };
        let task = tokio::spawn(administrator.run());
        Self {
            changes,
            stop,
            task,
        }
    }

    /// Waits for the change under way, and answers all.
    ///
    /// # Errors
    /// [`Failure`] when the cluster called a change wrong.
    pub async fn stop(self) -> Result<Vec<Change>, Failure> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.map_err(Failure::failed)??;
        Ok(lock(&self.changes).clone())
    }
}

impl Administrator {
    async fn run(mut self) -> Result<(), Failure> {
        let mut number = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let ms = self.random.between(BETWEEN_MS.0, BETWEEN_MS.1);
            tokio::time::sleep(Duration::from_millis(ms)).await;
            number += 1;
            // Two raises to one revocation.
            if number % 3 == 0 {
                if let Some(subject) = self.revocable.pop() {
                    let subject = u32::try_from(subject).unwrap_or(u32::MAX);
                    self.change(number, What::Revoke { subject }).await?;
                }
            } else if !self.raisable.is_empty() {
                let at = self.random.index(self.raisable.len());
                let (account, limit) = self.raisable[at];
                let to = limit + RAISE_UNITS;
                let account = u32::try_from(account).unwrap_or(u32::MAX);
                if self.change(number, What::Raise { account, to }).await? {
                    self.raisable[at].1 = to;
                } else {
                    self.raisable.remove(at);
                }
            }
        }
        Ok(())
    }

    /// Asks for one change; whether it was acknowledged.
    async fn change(&mut self, number: u64, what: What) -> Result<bool, Failure> {
        let reason = "the chaos run changes it";
        let workload = &self.recorder.workload;
        let (path, body) = match what {
            What::Raise { account, to } => {
                let file = catalog(&workload.raise(account as usize, to))?;
                (
                    "/admin/v1/apply".to_owned(),
                    json!({ "file": file, "reason": reason }),
                )
            }
            What::Revoke { subject } => {
                let key = &workload.parties[subject as usize].key;
                (
                    format!("/admin/v1/keys/{key}/revoke"),
                    json!({ "reason": reason }),
                )
            }
        };
        let position = {
            let mut changes = lock(&self.changes);
            changes.push(Change {
                what,
                invoke_us: self.recorder.now_us(),
                acked_us: None,
                revision: 0,
            });
            changes.len() - 1
        };
        let key = format!("chaos-{number}");
        let give_up = Instant::now() + GIVE_UP;
        loop {
            let headers = [("idempotency-key", key.as_str())];
            match self.admin.post::<Value>(&path, &headers, &body).await {
                Ok(answer) => {
                    let mut changes = lock(&self.changes);
                    changes[position].acked_us = Some(self.recorder.now_us());
                    changes[position].revision = revision_index(&answer).unwrap_or(0);
                    return Ok(true);
                }
                // A file that is wrong stays wrong: a mistake of the runner, or of the node.
                Err(failure) if matches!(failure.exit, Exit::Usage | Exit::Conflict) => {
                    return Err(failure);
                }
                Err(_) if Instant::now() > give_up => return Ok(false),
                Err(_) => tokio::time::sleep(AGAIN).await,
            }
        }
    }
}
