//! Instructions per check, counted by callgrind: two lengths, subtracted, so that building the maps
//! and starting the process drop out.
//!
//! Blind spots: a clock read counts about 10-20 instructions and costs some 30 ns; a cache miss and a
//! locked instruction count as one.

use std::process::Command;

/// Why no count could be taken.
#[derive(Debug)]
pub struct NoCount(pub String);

/// Instructions per check of the case for which `arguments` make this very program do `checks`
/// checks (given as the last argument) and exit.
///
/// # Errors
/// [`NoCount`] where valgrind is not installed or its output has no total.
pub fn per_check(arguments: &[&str], checks: u64) -> Result<f64, NoCount> {
    let short = total(arguments, checks)?;
    let long = total(arguments, checks * 2)?;
    Ok((long as f64 - short as f64) / checks as f64)
}

fn total(arguments: &[&str], checks: u64) -> Result<u64, NoCount> {
    let program = std::env::current_exe().map_err(|error| NoCount(error.to_string()))?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args(arguments)
        .arg(checks.to_string())
        .output()
        .map_err(|error| NoCount(format!("cannot start valgrind: {error}")))?;
    let words = String::from_utf8_lossy(&output.stderr);
    words
        .lines()
        .filter_map(|line| line.split("Collected :").nth(1))
        .find_map(|count| count.trim().parse().ok())
        .filter(|_| output.status.success())
        .ok_or_else(|| NoCount(format!("no total in valgrind's output: {words}")))
}
