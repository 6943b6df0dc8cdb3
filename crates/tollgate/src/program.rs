//! What the binary does from its first line on: parses the command line, sets up the log, hands over to [`commands`].
//!
//! A library's function, so that the end-to-end tests build the very same program without building it twice.

use crate::args::{Cli, Command};
use crate::commands;
use crate::output::{self, Exit, Failure};
use clap::Parser;
use std::io::IsTerminal;
use std::process::ExitCode;

/// Chooses what is logged, in the syntax of `tracing`'s filters.
const LOG_VARIABLE: &str = "TOLLGATE_LOG";

/// What is logged when nothing is chosen: rare events of ours, and only trouble of what we build on.
const LOG_DEFAULT: &str = "info,openraft=warn,quinn=warn,sled=warn";

/// Does what the command line says; the exit codes are those of [`Exit`].
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = std::env::var(LOG_VARIABLE).unwrap_or_else(|_| LOG_DEFAULT.to_owned());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    match run(&cli) {
        Ok(()) => ExitCode::from(Exit::Ok as u8),
        Err(failure) => {
            output::complain(&failure);
            ExitCode::from(failure.exit as u8)
        }
    }
}

fn run(cli: &Cli) -> Result<(), Failure> {
    match &cli.command {
        Command::Demo(args) => on_runtime(commands::demo::run(cli.output, args)),
        Command::Server(args) => on_runtime(commands::server::run(args)),
        Command::Edge(args) => on_runtime(commands::edge::run(args)),
        Command::Certs(args) => commands::certs::run(cli.output, args),
        Command::Replay(args) => on_runtime(commands::replay::run(cli.output, args)),
        Command::Apply(args) => on_runtime(commands::catalog::apply(cli.output, args)),
        Command::Key { command } => on_runtime(commands::catalog::key(cli.output, command)),
        Command::Usage(args) => on_runtime(commands::look::usage(cli.output, args)),
        Command::Accounts(args) => on_runtime(commands::look::accounts(cli.output, args)),
        Command::Audit { command } => on_runtime(commands::audit::run(cli.output, command)),
        Command::Status(args) => on_runtime(commands::look::status(cli.output, args)),
    }
}

fn on_runtime(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    tokio::runtime::Runtime::new()
        .map_err(Failure::failed)?
        .block_on(work)
}
