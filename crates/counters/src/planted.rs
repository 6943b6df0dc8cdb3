//! Deliberately broken variants of the cells, one or more per loom model, which loom must catch.
//!
//! Exists only under `--cfg loom`: the macro `planted!` in `sync.rs` leaves nothing of them in any
//! other build. A model that passes with its bug active proves nothing, so each has a test that
//! expects the failure. loom runs all threads of a model on the thread of its test, so that a
//! thread-local choice reaches every one of them and no other test.

use std::cell::Cell;

/// A bug that can be switched on for one model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// `try_take` looks and then stores, instead of exchanging what it looked at.
    TakeByStore,
    /// `try_take` reports a lost race as a refusal, instead of looking again.
    TakeGivesUp,
    /// `withdraw` looks and then stores.
    WithdrawByStore,
    /// `deposit` looks and then stores.
    DepositByStore,
    /// `put_back` looks and then stores.
    PutBackByStore,
    /// `take_all` leaves what it took from the earlier cells taken when a later one refuses.
    NoPutBack,
    /// `take_all` puts back into every cell of the list, also those it had not taken from.
    PutBackTooMuch,
    /// `take_all` counts units as used as soon as they are taken, and takes that back on a refusal.
    CommitBeforeAll,
    /// `commit` publishes nothing: its addition is `Relaxed`.
    CommitRelaxed,
    /// `commit` looks and then stores.
    CommitByStore,
    /// `read` looks at `free` before it looks at `used`.
    FreeBeforeUsed,
    /// `UsageCell::add` looks and then stores.
    AddByStore,
}

thread_local! {
    static ACTIVE: Cell<Option<Bug>> = const { Cell::new(None) };
}

/// Runs `model` with `bug` active on this thread.
fn with<R>(bug: Bug, model: impl FnOnce() -> R) -> R {
    struct Clear;
    impl Drop for Clear {
        fn drop(&mut self) {
            ACTIVE.set(None);
        }
    }
    ACTIVE.set(Some(bug));
    let _clear = Clear;
    model()
}

/// Explores `model` with `bug` active and expects loom to find an execution that breaks the
/// assertion which says `broken`, within three preemptions: the least that any model is explored to.
///
/// # Panics
/// Where the model passes in spite of the bug, or fails for another reason.
pub fn assert_caught(bug: Bug, broken: &str, model: fn()) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    let explored = std::panic::catch_unwind(|| with(bug, || builder.check(model)));
    let Err(panic) = explored else {
        panic!("{bug:?} was not caught: every execution of the model passed");
    };
    let message = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without words");
    assert!(
        message.contains(broken),
        "{bug:?} should break \"{broken}\", but: {message}"
    );
}

pub(crate) fn active(bug: Bug) -> bool {
    ACTIVE.get() == Some(bug)
}
