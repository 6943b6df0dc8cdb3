//! The simulator's command line; see docs/simulator.md.
#![allow(clippy::print_stdout, reason = "a command line prints")]

use std::process::ExitCode;
use std::time::{Duration, Instant};
use tollgate_jepsen::sim::campaign::{Caught, hunt, sweep};
use tollgate_jepsen::sim::{Run, run};

const USAGE: &str = "\
usage: sim run [--seeds N] [--from N]            run seeds; none may break a promise
       sim seed N [--lines N]                    run one seed twice and tell what led to a violation
       sim planted [NAME] [--seeds N] [--ranges N]  prove that each planted fault is caught
                                                 (compiled with --features planted)";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match execute(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(problem) => {
            println!("{problem}\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn execute(args: &[String]) -> Result<bool, String> {
    let (command, rest) = args.split_first().ok_or("no command")?;
    match command.as_str() {
        "run" => {
            let [seeds, from] = options(rest, [("--seeds", 1000), ("--from", 1)])?.0;
            Ok(sweep_seeds(from, seeds))
        }
        "seed" => {
            let ([lines], seeds) = options(rest, [("--lines", 150)])?;
            match seeds.as_slice() {
                [seed] => Ok(tell_seed(number(seed)?, lines)),
                _ => Err("`seed` takes one number".to_owned()),
            }
        }
        "planted" => {
            let ([seeds, ranges], names) = options(rest, [("--seeds", 3000), ("--ranges", 5)])?;
            hunt_all(seeds, ranges, &names)
        }
        other => Err(format!("unknown command `{other}`")),
    }
}

/// Reads `--name N` options; what is left over are names.
fn options<const N: usize>(
    args: &[String],
    known: [(&str, u64); N],
) -> Result<([u64; N], Vec<String>), String> {
    let mut values = known.map(|(_, default)| default);
    let mut names = Vec::new();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match known.iter().position(|(name, _)| name == arg) {
            Some(at) => values[at] = number(args.next().ok_or(format!("{arg} needs a number"))?)?,
            None if arg.starts_with('-') => return Err(format!("unknown option `{arg}`")),
            None => names.push(arg.clone()),
        }
    }
    Ok((values, names))
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("`{text}` is no number"))
}

fn sweep_seeds(from: u64, seeds: u64) -> bool {
    let begun = Instant::now();
    let sweep = sweep(from, seeds, |run| {
        if let Some(broken) = &run.broken {
            println!("seed {}: {}: {}", run.seed, broken.check, broken.text);
            println!("  replay: {}", replay(run));
        }
    });
    let took = begun.elapsed();
    println!(
        "{} seeds, {} violations, {} the core's assertions; {} virtual hours, {} checks, {} log entries in {:.1} s ({:.0} seeds/s)",
        sweep.seeds,
        sweep.broken.len(),
        // This crate and the core are compiled alike.
        if cfg!(debug_assertions) {
            "with"
        } else {
            "WITHOUT"
        },
        sweep.virtual_ms / 3_600_000,
        sweep.checks,
        sweep.entries,
        took.as_secs_f64(),
        per_second(sweep.seeds, took),
    );
    sweep.broken.is_empty()
}

fn per_second(count: u64, took: Duration) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / took.as_secs_f64().max(0.001)
}

fn replay(run: &Run) -> String {
    format!(
        "cargo run -p tollgate-jepsen --profile proof --bin sim -- seed {}",
        run.seed
    )
}

fn tell_seed(seed: u64, lines: u64) -> bool {
    let lines = usize::try_from(lines).unwrap_or(usize::MAX).max(1);
    let (first, second) = (run(seed, lines), run(seed, 0));
    println!("{}", first.scenario);
    if let Some(broken) = &first.broken {
        for line in &broken.story {
            println!("{line}");
        }
        println!("seed {seed}: {}: {}", broken.check, broken.text);
        println!("replay: {}", replay(&first));
    } else {
        println!(
            "seed {seed}: every promise held for {} virtual ms",
            first.virtual_ms
        );
    }
    println!("trace {:016x}", first.trace);
    if first.trace != second.trace {
        println!(
            "a second run gave the trace {:016x}: the run is not deterministic",
            second.trace
        );
    }
    first.broken.is_none() && first.trace == second.trace
}

fn hunt_all(seeds: u64, ranges: u64, names: &[String]) -> Result<bool, String> {
    if !cfg!(feature = "planted") {
        return Err(
            "compiled without `--features planted`: there are no faults to find".to_owned(),
        );
    }
    let known = tollgate_core::planted::NAMES;
    if let Some(unknown) = names.iter().find(|name| !known.contains(&name.as_str())) {
        return Err(format!(
            "no fault `{unknown}`; there are: {}",
            known.join(", ")
        ));
    }
    let mut all_caught = true;
    println!(
        "{:<48} {:>7}  {:<32} caught by",
        "fault", "median", "seeds per range"
    );
    for fault in known
        .iter()
        .filter(|f| names.is_empty() || names.iter().any(|name| name == *f))
    {
        let caught = hunt(fault, ranges, seeds);
        println!("{}", line(&caught));
        all_caught &= caught.median().is_some_and(|median| median <= 500);
    }
    Ok(all_caught)
}

fn line(caught: &Caught) -> String {
    let or_dash = |seeds: Option<u64>| seeds.map_or("-".to_owned(), |seeds| seeds.to_string());
    let seeds: Vec<String> = caught.seeds.iter().map(|seeds| or_dash(*seeds)).collect();
    let checks: Vec<String> = caught
        .checks
        .iter()
        .map(|(check, times)| format!("{check} ({times})"))
        .collect();
    format!(
        "{:<48} {:>7}  {:<32} {}",
        caught.fault,
        or_dash(caught.median()),
        seeds.join(" "),
        checks.join(", ")
    )
}
