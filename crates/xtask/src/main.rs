//! `cargo xtask <step>`: every check of this repository under one name, the same here and in CI.
//!
//! Owns: finding the step, the table at the end, the exit code. Refuses: to know what a step does (`steps.rs` is the
//! list, as data) or how to install what a step needs (`.ci/run` does).
//! Read next: `steps.rs`.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a tool for people prints"
)]

mod run;
mod steps;

use std::process::ExitCode;
use std::time::Instant;

use run::{Outcome, run};
use steps::{CI, Step};

/// The exit code for a step that is none, as in the product's own command line.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.split_first() {
        Some((name, [])) if name == "ci" => ci(),
        Some((name, extra)) => match steps::named(name) {
            Some(step) => exit_code(single(step, extra)),
            None => usage(&format!("no step is called {name:?}")),
        },
        None => usage("which step?"),
    }
}

fn exit_code(passed: bool) -> ExitCode {
    if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Runs one step with further arguments.
fn single(step: &Step, extra: &[String]) -> bool {
    let outcome = run(step, extra, &mut std::io::stdout());
    println!("{}", outcome.line(step));
    outcome.failure.is_none()
}

/// Runs every step of CI in order, all of them even if one fails, and says how each went.
fn ci() -> ExitCode {
    let begun = Instant::now();
    let outcomes: Vec<(&Step, Outcome)> = CI
        .iter()
        .map(|step| (step, run(step, &[], &mut std::io::stdout())))
        .collect();
    let took = begun.elapsed().as_secs_f64();
    let failed = outcomes
        .iter()
        .filter(|(_, outcome)| outcome.failure.is_some())
        .count();
    let total = |count: fn(&Outcome) -> u64| outcomes.iter().map(|(_, o)| count(o)).sum::<u64>();

    println!("\n{:<10} {:>9} {:>7}  result", "step", "seconds", "tests");
    for (step, outcome) in &outcomes {
        println!("{}", outcome.row(step));
    }
    println!("{:<10} {took:>9.1}", "in all");
    println!(
        "tests: {} passed, {} failed, {} ignored",
        total(|o| o.tests.passed),
        total(|o| o.tests.failed),
        total(|o| o.tests.ignored),
    );
    println!("ci: {} passed, {failed} failed", outcomes.len() - failed);
    exit_code(failed == 0)
}

fn usage(problem: &str) -> ExitCode {
    eprintln!(
        "xtask: {problem}\n\nusage: cargo xtask ci | cargo xtask <step> [arguments for its command]\n"
    );
    for step in steps::all() {
        let in_ci = if CI.iter().any(|of_ci| of_ci.name == step.name) {
            "ci"
        } else {
            ""
        };
        eprintln!("  {:<10} {in_ci:<3} {}", step.name, step.shows);
    }
    ExitCode::from(EXIT_USAGE)
}
