//! One module per command; each takes its parsed options and, where it prints, a
//! [`Format`](crate::output::Format).

pub mod audit;
pub mod catalog;
pub mod certs;
pub mod demo;
pub mod edge;
pub mod look;
pub mod replay;
pub mod server;

use crate::output::Failure;
use tokio::signal::unix::{SignalKind, signal};

/// Resolves when the process is asked to end: SIGTERM or Ctrl-C.
///
/// # Errors
/// [`Failure`] when the signals cannot be listened to.
fn terminated() -> Result<impl Future<Output = ()> + Send + 'static, Failure> {
    let mut term = signal(SignalKind::terminate()).map_err(Failure::failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::failed)?;
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
