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
    /// Storage refused a write.
    Storage(String),
    /// It must not go on.
    Fatal(String),
}

/// Exit code of a process that met a bug of its own.
pub const EXIT_BUG: i32 = 70;

/// Runs what must not panic. A panic ends the process with [`EXIT_BUG`]: whatever `work` was changing is half changed,
/// and a node that half lives is worse than one that is gone.
pub(crate) fn or_exit<T>(what: impl FnOnce() -> String, work: impl FnOnce() -> T) -> T {
    // Nothing that `work` touched is looked at after a panic.
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
        Ok(done) => done,
        Err(panic) => {
            let words = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no words");
            let what = what();
            tracing::error!(what, words, "a panic that must not be: the process ends");
            #[allow(
                clippy::print_stderr,
                reason = "the last words before the end must not depend on a logger"
            )]
            {
                eprintln!("tollgate: {what}: {words}");
            }
            std::process::exit(EXIT_BUG)
        }
    }
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
    /// Storage refused a write: the node must not go on.
    pub fn report_storage(&self, words: impl Into<String>) {
        self.stop(Stop::Storage(words.into()));
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    /// Set in the process that the test below starts: this one.
    const CHILD: &str = "TOLLGATE_TEST_PANIC";

    #[test]
    fn a_panic_ends_the_process_with_words_and_a_code() {
        if std::env::var_os(CHILD).is_some() {
            or_exit(
                || "applying log entry 7".to_owned(),
                || panic!("of {}", "mice"),
            );
        }
        let name = "fatal::tests::a_panic_ends_the_process_with_words_and_a_code";
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(EXIT_BUG), "{errors}");
        assert!(
            errors.contains("tollgate: applying log entry 7: of mice"),
            "{errors}"
        );
    }
}
