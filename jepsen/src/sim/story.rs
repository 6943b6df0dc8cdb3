//! What happened, twice: as a hash of everything (every run) and as readable lines (only when asked for).

use std::collections::VecDeque;

/// Lines kept of a run.
const LINES_MAX: usize = 20_000;

/// FNV-1a over what the run feeds it.
#[derive(Clone, Copy, Debug)]
pub(super) struct TraceHash(u64);

impl TraceHash {
    pub(super) fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    pub(super) fn add(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(0x0000_0100_0000_01b3);
    }

    pub(super) fn value(self) -> u64 {
        self.0
    }
}

impl std::fmt::Write for TraceHash {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for chunk in text.as_bytes().chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.add(u64::from_le_bytes(word));
        }
        Ok(())
    }
}

/// See the module's text.
pub(super) struct Story {
    pub(super) hash: TraceHash,
    on: bool,
    lines: VecDeque<(u64, String)>,
}

impl Story {
    pub(super) fn new(on: bool) -> Self {
        Self {
            hash: TraceHash::new(),
            on,
            lines: VecDeque::new(),
        }
    }

    /// Adds a line, if anyone wants to read it.
    pub(super) fn tell(&mut self, now: u64, line: impl FnOnce() -> String) {
        if self.on {
            if self.lines.len() == LINES_MAX {
                self.lines.pop_front();
            }
            self.lines.push_back((now, line()));
        }
    }

    /// The last `count` lines that concern a customer, or everyone (marked by `*`).
    pub(super) fn about(&self, customer: Option<&str>, count: usize) -> Vec<String> {
        let concerns = |line: &str| {
            line.starts_with('*') || customer.is_none_or(|customer| line.contains(customer))
        };
        let mut last: Vec<String> = self
            .lines
            .iter()
            .rev()
            .filter(|(_, line)| concerns(line))
            .take(count)
            .map(|(at, line)| format!("{:>9.3} s  {line}", seconds(*at)))
            .collect();
        last.reverse();
        last
    }
}

fn seconds(ms: u64) -> f64 {
    std::time::Duration::from_millis(ms).as_secs_f64()
}
