//! Runs one step: says what, shows its output as it comes, counts its tests, judges it.
//!
//! Owns: the child process and the reading of `test result:` lines. Refuses: to retry, to time out (`.ci/run` bounds
//! the whole), to swallow output.

use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::steps::{CHAOS, Step, Success};

/// How a step went.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) took: Duration,
    pub(crate) tests: Tests,
    /// Why it did not pass.
    pub(crate) failure: Option<String>,
}

/// Test counts, summed over a step's test binaries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tests {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) ignored: u64,
}

impl Outcome {
    /// The verdict on a step that was run alone.
    pub(crate) fn line(&self, step: &Step) -> String {
        let tests = match step.success {
            Success::RanTests => format!(", {} tests passed", self.tests.passed),
            Success::ExitCode => String::new(),
        };
        let took = self.took.as_secs_f64();
        match &self.failure {
            None => format!("{}: passed in {took:.1} s{tests}", step.name),
            Some(why) => format!("{}: FAILED after {took:.1} s: {why}", step.name),
        }
    }

    /// The step's row in CI's table.
    pub(crate) fn row(&self, step: &Step) -> String {
        let tests = match step.success {
            Success::RanTests => self.tests.passed.to_string(),
            Success::ExitCode => String::new(),
        };
        let result = self
            .failure
            .as_ref()
            .map_or("passed".to_owned(), |why| format!("FAILED: {why}"));
        format!(
            "{:<10} {:>9.1} {tests:>7}  {result}",
            step.name,
            self.took.as_secs_f64()
        )
    }
}

/// Runs `step` in the workspace's root, with `extra` arguments in front of its `--`; shows on `shown` what it says.
pub(crate) fn run(step: &Step, extra: &[String], shown: &mut dyn Write) -> Outcome {
    let arguments = arguments(step, extra);
    let env: String = step
        .env
        .iter()
        .map(|(name, value)| format!("{name}={value:?} "))
        .collect();
    let heading = format!(
        "\n== {}: {env}{} {}",
        step.name,
        step.program,
        arguments.join(" ")
    );
    let begun = Instant::now();
    let mut tests = Tests::default();
    let ran = writeln!(shown, "{heading}")
        .and_then(|()| watch(&mut command(step, &arguments), &mut tests, shown));
    let failure = match ran {
        Err(error) => Some(format!("{} could not be run: {error}", step.program)),
        Ok(Some(failure)) => Some(failure),
        Ok(None) if step.success == Success::RanTests && tests.passed == 0 => {
            Some("it ran no test; expected at least one".to_owned())
        }
        Ok(None) => None,
    };
    Outcome {
        took: begun.elapsed(),
        tests,
        failure,
    }
}

fn arguments(step: &Step, extra: &[String]) -> Vec<String> {
    let dashes = step.args.iter().position(|arg| *arg == "--");
    let (own, after) = step.args.split_at(dashes.unwrap_or(step.args.len()));
    // Cargo lets `--workspace` win over `-p`, which nobody who adds `-p` means; and it refuses a feature of a package
    // that is not among those named.
    let names_package = extra.iter().any(|arg| arg == "-p" || arg == "--package");
    let own = own
        .iter()
        .filter(|arg| !(names_package && ["--workspace", "--features", CHAOS].contains(*arg)));
    own.map(|arg| (*arg).to_owned())
        .chain(extra.iter().cloned())
        .chain(after.iter().map(|arg| (*arg).to_owned()))
        .collect()
}

fn command(step: &Step, arguments: &[String]) -> Command {
    let program = match step.program {
        "cargo" => std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()),
        other => other.into(),
    };
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir(root())
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    // `cargo run` describes this package to us by such variables. Passed on, they would differ from those of a cargo
    // started by hand, and build scripts that watch them (ring's) would build again at every change between the two.
    for (name, _) in std::env::vars_os() {
        let name_text = name.to_string_lossy();
        if name_text.starts_with("CARGO_PKG_") || name_text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command.envs(step.env.iter().copied());
    command
}

/// The workspace's root, two folders above this package.
fn root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.ancestors().nth(2).unwrap_or(package).to_owned()
}

/// Runs `command`, passes its output on line by line, and counts its tests; a failure of its own is given in words.
fn watch(
    command: &mut Command,
    tests: &mut Tests,
    shown: &mut dyn Write,
) -> io::Result<Option<String>> {
    let mut child = command.spawn()?;
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).split(b'\n') {
            let line = line?;
            tests.add(&String::from_utf8_lossy(&line));
            shown.write_all(&line)?;
            shown.write_all(b"\n")?;
            shown.flush()?;
        }
    }
    let status = child.wait()?;
    Ok((!status.success()).then(|| status.to_string()))
}

impl Tests {
    /// Counts a line such as `test result: ok. 3 passed; 0 failed; 1 ignored; ...`; other lines count nothing.
    fn add(&mut self, line: &str) {
        let Some(result) = line.trim().strip_prefix("test result: ") else {
            return;
        };
        for part in result.split([';', '.']) {
            let Some((count, what)) = part.trim().split_once(' ') else {
                continue;
            };
            let Ok(count) = count.parse::<u64>() else {
                continue;
            };
            match what {
                "passed" => self.passed += count,
                "failed" => self.failed += count,
                "ignored" => self.ignored += count,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHELL: Step = Step {
        name: "shell",
        shows: "a step of these tests",
        program: "sh",
        args: &["-c"],
        env: &[(
            "GREETING",
            "test result: ok. 2 passed; 0 failed; 5 ignored; 0 measured",
        )],
        success: Success::RanTests,
    };

    fn shell(script: &str) -> Outcome {
        // Not to standard output: whoever counts the lines there would take these for real ones.
        run(&SHELL, &[script.to_owned()], &mut Vec::new())
    }

    #[test]
    fn tests_are_summed_over_all_binaries() {
        let outcome = shell("echo \"$GREETING\"; echo noise; echo \"$GREETING\"");
        assert_eq!(outcome.failure, None);
        assert_eq!(
            outcome.tests,
            Tests {
                passed: 4,
                failed: 0,
                ignored: 10
            }
        );
    }

    #[test]
    fn a_test_step_that_ran_no_test_has_failed() {
        let outcome = shell("echo 'test result: ok. 0 passed; 0 failed; 9 ignored; 0 measured'");
        assert!(outcome.failure.is_some_and(|why| why.contains("no test")));
    }

    #[test]
    fn an_exit_code_is_a_failure_and_is_named() {
        let outcome = shell("echo 'test result: FAILED. 7 passed; 1 failed; 0 ignored'; exit 3");
        assert_eq!((outcome.tests.passed, outcome.tests.failed), (7, 1));
        assert!(
            outcome.row(&SHELL).contains("FAILED: exit status: 3"),
            "{}",
            outcome.row(&SHELL)
        );
    }

    #[test]
    fn a_program_that_is_missing_is_a_failure_in_words() {
        let missing = Step {
            program: "no-such-program-here",
            ..SHELL
        };
        let outcome = run(&missing, &[], &mut Vec::new());
        assert!(
            outcome
                .failure
                .is_some_and(|why| why.starts_with("no-such-program-here could not"))
        );
    }

    #[test]
    fn further_arguments_go_in_front_of_the_dashes() {
        let step = Step {
            args: &[
                "clippy",
                "--workspace",
                "--features",
                CHAOS,
                "--",
                "-D",
                "warnings",
            ],
            ..SHELL
        };
        let with = |extra: &[&str]| {
            let extra: Vec<String> = extra.iter().map(|arg| (*arg).to_owned()).collect();
            arguments(&step, &extra).join(" ")
        };
        assert_eq!(
            with(&["--tests"]),
            "clippy --workspace --features tollgate-jepsen/chaos --tests -- -D warnings"
        );
        assert_eq!(with(&["-p", "x"]), "clippy -p x -- -D warnings");
        assert_eq!(arguments(&SHELL, &["true".into()]), ["-c", "true"]);
    }

    #[test]
    fn the_root_is_the_workspace() {
        assert!(root().join("Cargo.lock").is_file());
    }
}
