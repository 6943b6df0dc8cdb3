//! What is wrong with one field of a file or a command, said so that it can be mended.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Most problems told at once; the rest shows when these are mended.
pub const PROBLEMS_MAX: usize = 50;

/// Longest quotation of what was found, in characters.
const FOUND_CHARS_MAX: usize = 80;

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Problem {
    /// Where: the path of the field, as in `plan[0].limit[1].window` or `license[acme-free].plan`.
    pub field: String,
    /// What stands there.
    pub found: String,
    /// What may stand there.
    pub expected: String,
    /// What to do.
    pub help: String,
}

impl Problem {
    /// A problem; `found` is cut and cleaned of control characters.
    pub fn new(
        field: impl Into<String>,
        found: impl fmt::Display,
        expected: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        let (field, found) = (field.into(), quote(&found.to_string()));
        Self {
            field,
            found,
            expected: expected.into(),
            help: help.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            field,
            found,
            expected,
            help,
        } = self;
        write!(f, "{field}: found {found}, expected {expected}; {help}")
    }
}

/// The first characters of a text, fit for one line of a message.
fn quote(text: &str) -> String {
    let clean = text
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c });
    let mut short: String = clean.take(FOUND_CHARS_MAX).collect();
    if text.chars().nth(FOUND_CHARS_MAX).is_some() {
        short.push('…');
    }
    short
}

/// Problems as they are found, no more than [`PROBLEMS_MAX`].
#[derive(Debug, Default)]
pub(crate) struct Problems(Vec<Problem>);

impl Problems {
    pub(crate) fn add(&mut self, problem: Problem) {
        if self.0.len() < PROBLEMS_MAX {
            self.0.push(problem);
        }
    }

    pub(crate) fn into_result<T>(self, fine: T) -> Result<T, Vec<Problem>> {
        if self.0.is_empty() {
            Ok(fine)
        } else {
            Err(self.0)
        }
    }
}
