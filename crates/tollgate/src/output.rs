//! What commands print: tables for people, JSON for programs, progress on a terminal, exit codes.
//!
//! The only module of the product that prints. Errors go to standard error, results to standard output;
//! `--output json` prints one JSON value and nothing else. Read next: `args.rs`.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the one place that prints"
)]

use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Tables and sentences.
    Table,
    /// One JSON value.
    Json,
}

/// How a command ended: the process's exit code, stable for scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// It did what was asked.
    Ok = 0,
    /// It failed, or a promise was broken.
    Failed = 1,
    /// The command line or a file was wrong.
    Usage = 2,
    /// What was named does not exist.
    NotFound = 4,
    /// The catalog changed in between, or a record says otherwise.
    Conflict = 5,
    /// Nobody could answer: no node, no leader, no majority.
    Unavailable = 6,
    /// Storage refused a write of a running node: [`tollgate_node::storage::EXIT_STORAGE`]. A failed sync ends the
    /// process with 74, a bug with 70, before anything else is printed.
    Storage = 75,
}

/// A failure on its way to the user.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// What was found, what was expected, what to do.
    pub message: String,
}

impl Failure {
    /// A failure with its code.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
        }
    }

    /// For results that simply failed.
    pub fn failed(error: impl std::fmt::Display) -> Self {
        Self::new(Exit::Failed, error.to_string())
    }

    /// For a wrong file or option.
    pub fn usage(error: impl std::fmt::Display) -> Self {
        Self::new(Exit::Usage, error.to_string())
    }
}

/// Prints a line for people; nothing under `--output json`.
pub fn say(format: Format, line: impl AsRef<str>) {
    if format == Format::Table {
        print(line.as_ref());
    }
}

/// Writes a line to standard output. A reader that has seen enough (`| head`) ends the process quietly, as
/// it ends every well-behaved filter.
fn print(line: &str) {
    let written = writeln!(std::io::stdout().lock(), "{line}");
    if written.is_err_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe) {
        std::process::exit(Exit::Ok as i32);
    }
}

/// Prints a failure.
pub fn complain(failure: &Failure) {
    eprintln!("tollgate: {}", failure.message);
}

/// Prints a warning.
pub fn warn(line: impl AsRef<str>) {
    eprintln!("tollgate: {}", line.as_ref());
}

/// Prints a value as JSON, or what `people` makes of it.
///
/// # Errors
/// [`Failure`] when the value cannot be written as JSON.
pub fn show<T: Serialize>(
    format: Format,
    value: &T,
    people: impl FnOnce(&T) -> String,
) -> Result<(), Failure> {
    match format {
        Format::Json => {
            print(&serde_json::to_string_pretty(value).map_err(Failure::failed)?);
        }
        Format::Table => {
            let text = people(value);
            if !text.is_empty() {
                print(&text);
            }
        }
    }
    Ok(())
}

/// A table with a head; numbers are the caller's business to format.
#[must_use]
pub fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(head.iter().map(|name| name.to_uppercase()));
    for row in rows {
        table.add_row(row);
    }
    table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect::<Vec<_>>()
        .join("\n")
}

/// A number with thousands set apart.
#[must_use]
pub fn number(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Nanoseconds for people.
#[must_use]
pub fn duration(ns: u64) -> String {
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{}.{} µs", ns / 1_000, ns / 100 % 10),
        1_000_000..1_000_000_000 => format!("{}.{} ms", ns / 1_000_000, ns / 100_000 % 10),
        _ => format!("{}.{:02} s", ns / 1_000_000_000, ns / 10_000_000 % 100),
    }
}

/// A command line that a shell takes apart again into these words.
pub fn command_line(words: impl IntoIterator<Item = String>) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,=@%+".contains(c);
    let quoted = |word: String| {
        if !word.is_empty() && word.chars().all(plain) {
            word
        } else {
            format!("'{}'", word.replace('\'', "'\\''"))
        }
    };
    words.into_iter().map(quoted).collect::<Vec<_>>().join(" ")
}

/// How often progress is told where there is no terminal.
const PLAIN_PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// Progress of long work: a bar on a terminal, plain lines elsewhere, nothing under `--output json`.
pub struct Progress {
    bar: Option<ProgressBar>,
    plain: Option<Mutex<(u64, Instant)>>,
    what: String,
    total: Option<u64>,
}

impl Progress {
    /// Starts telling of `total` steps of `what`, or of as many as there will be.
    #[must_use]
    pub fn new(format: Format, what: &str, total: Option<u64>) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = (format == Format::Table && terminal).then(|| {
            let (bar, style) = match total {
                Some(total) => (
                    ProgressBar::new(total),
                    "{msg} {wide_bar} {pos}/{len} {per_sec} {eta}",
                ),
                None => (ProgressBar::new_spinner(), "{msg} {pos} {per_sec}"),
            };
            bar.set_style(
                ProgressStyle::with_template(style)
                    .unwrap_or_else(|_| ProgressStyle::default_bar()),
            );
            bar.set_message(what.to_owned());
            bar
        });
        let plain = (format == Format::Table && !terminal).then(|| Mutex::new((0, Instant::now())));
        Self {
            bar,
            plain,
            what: what.to_owned(),
            total,
        }
    }

    /// `steps` more are done.
    pub fn advance(&self, steps: u64) {
        if let Some(bar) = &self.bar {
            bar.inc(steps);
        }
        if let Some(plain) = &self.plain
            && let Ok(mut state) = plain.lock()
        {
            state.0 += steps;
            if state.1.elapsed() >= PLAIN_PROGRESS_EVERY {
                state.1 = Instant::now();
                let of = self.total.map(|total| format!(" of {}", number(total)));
                let of = of.unwrap_or_default();
                eprintln!("{}: {}{of}", self.what, number(state.0));
            }
        }
    }

    /// Ends the bar.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_is_taken_apart_into_its_words() {
        let words = [
            "tollgate",
            "--reason",
            "it's \"due\"",
            "",
            "$HOME",
            "a/b_c-1.2:3,4",
        ];
        let line = command_line(words.map(str::to_owned));
        let said = std::process::Command::new("sh")
            .args(["-c", &format!("printf '%s\\n' {line}")])
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8(said.stdout)
                .unwrap()
                .lines()
                .collect::<Vec<_>>(),
            words
        );
    }

    #[test]
    fn numbers_and_durations_read_well() {
        assert_eq!(
            ["0", "999", "1,000", "1,234,567"],
            [0, 999, 1000, 1_234_567].map(number)[..]
        );
        let read = [999, 1_234, 56_789_012, 3_456_789_012].map(duration);
        assert_eq!(["999 ns", "1.2 µs", "56.7 ms", "3.45 s"], read[..]);
    }
}
