//! `tollgate server`: a node, until SIGTERM.

use crate::args::Config;
use crate::output::Failure;
use tollgate_node::config::ServerConfig;

/// Runs the command.
///
/// # Errors
/// [`Failure`] when the file is wrong, something cannot be opened, or the node had to stop.
pub async fn run(args: &Config) -> Result<(), Failure> {
    let config = ServerConfig::load(&args.config).map_err(Failure::usage)?;
    tollgate_node::server::run(config)
        .await
        .map_err(Failure::failed)
}
