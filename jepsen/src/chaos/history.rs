//! What clients saw: every check with the time it was asked, the time its answer came, and the answer.
//!
//! Owns: the raw history and its file (tab-separated, one operation a line), which is kept beside the verdict so that
//! anybody can judge again. Refuses: to know Tollgate; an answer that never came is *unknown* and stays so.
//! Read next: `checker.rs`.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write as _};
use std::path::Path;

/// Reasons of refusals as `POST /v1/check` words them; anything else is kept as [`OTHER`].
const REASONS: &[&str] = &[
    "credential_missing",
    "credential_invalid",
    "credential_expired",
    "credential_revoked",
    "license_suspended",
    "license_expired",
    "insufficient_scope",
    "feature_not_entitled",
    "seat_limit",
    "quota_exceeded",
    "rate_limited",
    "concurrency_exceeded",
    "unavailable",
    OTHER,
];

/// A reason that this file does not know.
pub const OTHER: &str = "other";

/// The first line of a history's file.
const HEADER: &str = "client\tedge\tsubject\tcost\tinvoke_us\tcomplete_us\toutcome";

/// What a client was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Admitted: surely.
    Ok,
    /// Refused: surely, for this reason.
    Refused(&'static str),
    /// Never decided: no connection, so the request was not sent.
    Unsent,
    /// Asked, and no answer came: admitted or not.
    Unknown,
}

impl Outcome {
    /// A refusal in the words of the answer.
    #[must_use]
    pub fn refused(reason: &str) -> Self {
        let known = REASONS.iter().find(|known| **known == reason);
        Self::Refused(known.copied().unwrap_or(OTHER))
    }

    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Refused(reason) => reason,
            Self::Unsent => "unsent",
            Self::Unknown => "unknown",
        }
    }

    fn parse(word: &str) -> Option<Self> {
        match word {
            "ok" => Some(Self::Ok),
            "unsent" => Some(Self::Unsent),
            "unknown" => Some(Self::Unknown),
            reason => {
                let known = REASONS.iter().find(|known| **known == reason)?;
                Some(Self::Refused(known))
            }
        }
    }
}

/// One check. Times are microseconds since the run began, on the clients' one monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    /// Which client asked; a client asks one at a time.
    pub client: u32,
    /// Which edge was asked, from 1.
    pub edge: u32,
    /// Whose key was shown: an index into the evidence's subjects.
    pub subject: u32,
    /// Units it would cost.
    pub cost: u32,
    /// Before the request was sent.
    pub invoke_us: u64,
    /// After the answer was there, or was given up.
    pub complete_us: u64,
    /// The answer.
    pub outcome: Outcome,
}

impl Operation {
    fn line(&self, text: &mut String) {
        text.clear();
        let Self {
            client,
            edge,
            subject,
            cost,
            invoke_us,
            complete_us,
            outcome,
        } = self;
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{client}\t{edge}\t{subject}\t{cost}\t{invoke_us}\t{complete_us}\t{}",
            outcome.word()
        );
    }

    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split('\t');
        let mut number = || fields.next()?.parse::<u64>().ok();
        let (client, edge, subject, cost) = (number()?, number()?, number()?, number()?);
        let (invoke_us, complete_us) = (number()?, number()?);
        let outcome = Outcome::parse(fields.next()?)?;
        let small = |number: u64| u32::try_from(number).ok();
        Some(Self {
            client: small(client)?,
            edge: small(edge)?,
            subject: small(subject)?,
            cost: small(cost)?,
            invoke_us,
            complete_us,
            outcome,
        })
    }
}

/// Writes a history.
///
/// # Errors
/// The file cannot be written.
pub fn write(path: &Path, history: &[Operation]) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    writeln!(file, "{HEADER}")?;
    let mut text = String::new();
    for operation in history {
        operation.line(&mut text);
        file.write_all(text.as_bytes())?;
    }
    file.flush()
}

/// Reads a history.
///
/// # Errors
/// The file cannot be read, or a line of it is no operation; the error names the line.
pub fn read(path: &Path) -> io::Result<Vec<Operation>> {
    let mut history = Vec::new();
    for (at, line) in BufReader::new(File::open(path)?).lines().enumerate() {
        let line = line?;
        if at == 0 && line == HEADER {
            continue;
        }
        let wrong = || {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("line {}: `{line}`, expected `{HEADER}`", at + 1),
            )
        };
        history.push(Operation::parse(&line).ok_or_else(wrong)?);
    }
    Ok(history)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_comes_back_from_its_file() {
        let outcomes = [
            Outcome::Ok,
            Outcome::refused("quota_exceeded"),
            Outcome::refused("a word nobody knows"),
            Outcome::Unsent,
            Outcome::Unknown,
        ];
        let history: Vec<Operation> = outcomes
            .into_iter()
            .zip(1..)
            .map(|(outcome, n)| Operation {
                client: n,
                edge: 2,
                subject: 3,
                cost: 1,
                invoke_us: 10,
                complete_us: 11,
                outcome,
            })
            .collect();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history.tsv");
        write(&path, &history).unwrap();
        assert_eq!(read(&path).unwrap(), history);
        assert_eq!(history[2].outcome, Outcome::Refused(OTHER));
        std::fs::write(&path, "1\t2\t3\t1\t5\t6\tmaybe\n").unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.starts_with("line 1: "), "{error}");
    }
}
