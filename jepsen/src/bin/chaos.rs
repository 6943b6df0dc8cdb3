//! The chaos runner's command line; see docs/chaos.md.
//!
//! Everything it starts ends with it: also on Ctrl-C, SIGTERM and a panic, because the processes belong to values that
//! are dropped. Exit code 0: all promises held; 1: one broke, or the run could not be judged; 2: wrong options.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line prints"
)]

use clap::{Args, Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tollgate::output::Failure;
use tollgate_jepsen::chaos::checker::Finding;
use tollgate_jepsen::chaos::plan::Plan;
use tollgate_jepsen::chaos::run::{Options, Verdict};
use tollgate_jepsen::chaos::{kept, scenarios};

/// Timelines up to so many lines are printed; longer ones are in the run's folder.
const TIMELINE_LINES_SHOWN: usize = 80;

/// Chaos on real processes: kills, cuts and an independent judge.
#[derive(Debug, Parser)]
#[command(name = "chaos", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Play the plan of a seed: kills of nodes and edges, cut links, bad weather.
    Run {
        /// At least so many kills -9.
        #[arg(long, default_value_t = 15)]
        kills: u64,
        #[command(flatten)]
        common: Common,
    },
    /// Print the plan of a seed and do nothing.
    Plan {
        /// Everything is drawn from it.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// At least so many kills -9.
        #[arg(long, default_value_t = 15)]
        kills: u64,
    },
    /// Kill the leader, then an issuer, again and again, and measure how long leases stay away.
    Takeover {
        /// So many times each.
        #[arg(long, default_value_t = 20)]
        rounds: u64,
        #[command(flatten)]
        common: Common,
    },
    /// Cut all links between edges and nodes for 3 s under load.
    Cut {
        /// So many times.
        #[arg(long, default_value_t = 1)]
        rounds: u64,
        #[command(flatten)]
        common: Common,
    },
    /// Cut a follower from the other nodes for 3 s and let it return.
    Rejoin {
        /// So many times.
        #[arg(long, default_value_t = 5)]
        rounds: u64,
        #[command(flatten)]
        common: Common,
    },
    /// Use up quotas at both edges while nothing is wrong.
    Healthy {
        /// For so many seconds.
        #[arg(long, default_value_t = 20)]
        seconds: u64,
        #[command(flatten)]
        common: Common,
    },
    /// Judge a kept run again.
    Check {
        /// Its folder.
        dir: PathBuf,
    },
}

#[derive(Debug, Args)]
struct Common {
    /// Everything is drawn from it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The `tollgate` binary; by default the one beside this program.
    #[arg(long)]
    binary: Option<PathBuf>,
    /// The run's folder, empty or new; by default a temporary one, removed after a good run.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Write the verdict there as JSON as well.
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match decide(&cli) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("chaos: {failure}");
            ExitCode::from(failure.exit as u8)
        }
    }
}

fn decide(cli: &Cli) -> Result<bool, Failure> {
    match &cli.command {
        Command::Run { kills, common } => {
            let plan = Plan::new(common.seed, *kills);
            play(
                common,
                &format!("run --kills {kills}"),
                |options| async move { scenarios::full(options, &plan).await },
            )
        }
        Command::Plan { seed, kills } => {
            let plan = Plan::new(*seed, *kills);
            for (round, number) in plan.rounds.iter().zip(1..) {
                println!("{number:>4}  {round}");
            }
            println!("{} rounds, {} kills", plan.rounds.len(), plan.kills());
            Ok(true)
        }
        Command::Takeover { rounds, common } => {
            play(common, &format!("takeover --rounds {rounds}"), |options| {
                scenarios::takeover(options, *rounds)
            })
        }
        Command::Cut { rounds, common } => {
            play(common, &format!("cut --rounds {rounds}"), |options| {
                scenarios::cut(options, *rounds)
            })
        }
        Command::Rejoin { rounds, common } => {
            play(common, &format!("rejoin --rounds {rounds}"), |options| {
                scenarios::rejoin(options, *rounds)
            })
        }
        Command::Healthy { seconds, common } => {
            play(common, &format!("healthy --seconds {seconds}"), |options| {
                scenarios::healthy(options, Duration::from_secs(*seconds))
            })
        }
        Command::Check { dir } => {
            let findings = kept::judge_again(dir)
                .map_err(|e| Failure::usage(format!("{}: {e}", dir.display())))?;
            findings.iter().for_each(show);
            Ok(findings.iter().all(|finding| finding.violated == 0))
        }
    }
}

/// Runs a scenario and shows its verdict; whether all held.
fn play<F>(
    common: &Common,
    command: &str,
    scenario: impl FnOnce(Options) -> F,
) -> Result<bool, Failure>
where
    F: Future<Output = Result<Verdict, Failure>>,
{
    let binary = binary(common)?;
    let (dir, temporary) = folder(common)?;
    let options = Options {
        seed: common.seed,
        binary,
        dir: dir.clone(),
        tell: Arc::new(|line| eprintln!("{line}")),
        fresh: 0,
    };
    let runtime = tokio::runtime::Runtime::new().map_err(Failure::failed)?;
    let scenario = scenario(options);
    let outcome = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(Failure::failed)?;
        tokio::select! {
            verdict = scenario => verdict,
            _ = tokio::signal::ctrl_c() => Err(Failure::failed("interrupted: every process was ended")),
            _ = terminate.recv() => Err(Failure::failed("terminated: every process was ended")),
        }
    });
    let verdict = match outcome {
        Ok(verdict) => verdict,
        Err(failure) => {
            let message = format!(
                "{}\nlogs and data are kept in {}",
                failure.message,
                dir.display()
            );
            return Err(Failure { message, ..failure });
        }
    };
    report(common, command, &dir, &verdict)?;
    if verdict.holds && temporary {
        std::fs::remove_dir_all(&dir)
            .map_err(|e| Failure::failed(format!("{}: {e}", dir.display())))?;
    } else {
        println!("history, evidence, logs and data: {}", dir.display());
    }
    Ok(verdict.holds)
}

fn binary(common: &Common) -> Result<PathBuf, Failure> {
    let beside = || {
        let own = std::env::current_exe().ok()?;
        Some(own.parent()?.join("tollgate"))
    };
    let path = common.binary.clone().or_else(beside).unwrap_or_default();
    if path.is_file() {
        path.canonicalize().map_err(Failure::failed)
    } else {
        Err(Failure::usage(format!(
            "{}: no such file; build it (`cargo build --release`) or name it with --binary",
            path.display()
        )))
    }
}

fn folder(common: &Common) -> Result<(PathBuf, bool), Failure> {
    let (dir, temporary) = match &common.dir {
        Some(dir) => (dir.clone(), false),
        None => {
            let name = format!("tollgate-chaos-{}", std::process::id());
            (std::env::temp_dir().join(name), true)
        }
    };
    if dir
        .read_dir()
        .is_ok_and(|mut entries| entries.next().is_some())
    {
        let dir = dir.display();
        return Err(Failure::usage(format!(
            "{dir} is not empty: a run begins with an empty folder"
        )));
    }
    std::fs::create_dir_all(&dir)
        .map_err(|e| Failure::failed(format!("{}: {e}", dir.display())))?;
    Ok((dir.canonicalize().map_err(Failure::failed)?, temporary))
}

fn report(common: &Common, command: &str, dir: &Path, verdict: &Verdict) -> Result<(), Failure> {
    let broken = verdict
        .findings
        .iter()
        .filter(|finding| finding.violated > 0)
        .count();
    let Verdict {
        seconds,
        operations,
        ..
    } = verdict;
    println!(
        "{}: {} of {} promises held, over {operations} checks in {seconds} s",
        if verdict.holds { "HOLDS" } else { "BROKEN" },
        verdict.findings.len() - broken,
        verdict.findings.len()
    );
    // What broke stands first.
    verdict
        .findings
        .iter()
        .filter(|finding| finding.violated > 0)
        .for_each(show);
    verdict
        .findings
        .iter()
        .filter(|finding| finding.violated == 0)
        .for_each(show);
    let datagrams = verdict
        .datagrams
        .iter()
        .map(|(what, count)| format!("{count} {what}"));
    println!("datagrams: {}", datagrams.collect::<Vec<_>>().join(", "));
    println!(
        "again: cargo run --release -p tollgate-jepsen --features chaos --bin chaos -- {command} --seed {}",
        common.seed
    );
    let lines: Vec<String> = verdict
        .timeline
        .iter()
        .map(|deed| {
            format!(
                "{:>9}.{:03} s  {}",
                deed.at_us / 1_000_000,
                deed.at_us / 1_000 % 1_000,
                deed.what
            )
        })
        .collect();
    if lines.len() <= TIMELINE_LINES_SHOWN {
        println!("what was done:\n{}", lines.join("\n"));
    }
    let failed = |path: &Path, e: &dyn std::fmt::Display| {
        Failure::failed(format!("{}: {e}", path.display()))
    };
    let timeline = dir.join("timeline.txt");
    std::fs::write(&timeline, lines.join("\n")).map_err(|e| failed(&timeline, &e))?;
    if let Some(path) = &common.json {
        let json = serde_json::json!({
            "command": command,
            "seed": common.seed,
            "verdict": verdict,
        });
        let text = serde_json::to_string_pretty(&json).map_err(|e| failed(path, &e))?;
        std::fs::write(path, text).map_err(|e| failed(path, &e))?;
    }
    Ok(())
}

fn show(finding: &Finding) {
    let word = if finding.violated == 0 {
        "held  "
    } else {
        "BROKEN"
    };
    println!("  {word}  {}", finding.promise);
    println!("          {}", finding.measured);
    for violation in &finding.violations {
        println!("          - {}", violation.replace('\n', "\n            "));
    }
    let shown = u64::try_from(finding.violations.len()).unwrap_or(u64::MAX);
    if finding.violated > shown {
        println!("          - and {} more", finding.violated - shown);
    }
}
