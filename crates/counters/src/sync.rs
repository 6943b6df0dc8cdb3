//! The atomics of this crate: the standard library's, or loom's under `--cfg loom`.
//!
//! Everything else imports them from here, so that what the loom models explore is the code that
//! runs. Nothing but the choice belongs in this file.

#[cfg(loom)]
pub(crate) use loom::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
#[cfg(not(loom))]
pub(crate) use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Marks the place of a planted bug: runs `$wrong` in a loom build while `$bug` is active, and is
/// nothing at all in any other build.
macro_rules! planted {
    ($bug:ident, $wrong:block) => {
        #[cfg(loom)]
        if crate::planted::active(crate::planted::Bug::$bug) $wrong
    };
}
pub(crate) use planted;
