//! The one binary: parses the command line and hands over to `tollgate::commands`.

use clap::Parser;
use std::process::ExitCode;
use tollgate::args::{Cli, Command};
use tollgate::commands;
use tollgate::output::{self, Exit, Failure};

fn main() -> ExitCode {
    let cli = Cli::parse();
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
        Command::Certs(args) => commands::certs::run(cli.output, args),
        Command::Replay(args) => on_runtime(commands::replay::run(cli.output, args)),
        _ => Err(Failure::failed("not built yet")),
    }
}

fn on_runtime(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    tokio::runtime::Runtime::new()
        .map_err(Failure::failed)?
        .block_on(work)
}
