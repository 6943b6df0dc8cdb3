//! `tollgate server`: a node, until SIGTERM.

use crate::args::Config;
use crate::output::{Exit, Failure};
use tollgate_node::config::ServerConfig;
use tollgate_node::storage::EXIT_STORAGE;

const _: () = assert!(Exit::Storage as i32 == EXIT_STORAGE);

/// Runs the command.
///
/// # Errors
/// [`Failure`] when the file is wrong, something cannot be opened, or the node had to stop.
pub async fn run(args: &Config) -> Result<(), Failure> {
    let config = ServerConfig::load(&args.config).map_err(Failure::usage)?;
    tollgate_node::server::run(config).await.map_err(|error| {
        let exit = match error.exit_code() {
            EXIT_STORAGE => Exit::Storage,
            _ => Exit::Failed,
        };
        Failure::new(exit, error.to_string())
    })
}
