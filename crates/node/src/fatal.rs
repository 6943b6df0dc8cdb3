//! How the parts of a node learn that it stops, and how one of them makes it stop.
//!
//! The first reason stands. Whoever waits for [`Fatal::stopping`] cleans up and returns; [`crate::server`] turns
//! the reason into the process's last words.

use std::sync::Arc;
use tokio::sync::watch;

/// Why a node stops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It was asked to.
    Asked,
    /// It must not go on.
    Fatal(String),
}

/// See the module's text. Clones share it.
#[derive(Clone, Debug)]
pub struct Fatal {
    reason: Arc<watch::Sender<Option<Stop>>>,
}

impl Default for Fatal {
    fn default() -> Self {
        Self {
            reason: Arc::new(watch::Sender::new(None)),
        }
    }
}

impl Fatal {
    /// The node must not go on, in words for the operator.
    pub fn report(&self, words: impl Into<String>) {
        self.stop(Stop::Fatal(words.into()));
    }

    /// The node is to stop.
    pub fn stop(&self, stop: Stop) {
        self.reason.send_if_modified(|reason| {
            let first = reason.is_none();
            reason.get_or_insert(stop);
            first
        });
    }

    /// Waits until the node stops.
    pub async fn stopping(&self) {
        self.reason().await;
    }

    /// Waits until the node stops, and says why.
    pub async fn reason(&self) -> Stop {
        let mut reason = self.reason.subscribe();
        match reason.wait_for(Option::is_some).await {
            Ok(stop) => stop.clone().unwrap_or(Stop::Asked),
            Err(_) => unreachable!("the sender lives as long as self"),
        }
    }

    /// Whether it stops already.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.reason.borrow().is_some()
    }
}
