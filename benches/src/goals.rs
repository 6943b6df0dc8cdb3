//! Goals of a bench: what was to be reached, what was found, and whether the bench may end well.
//!
//! Owns the words and the verdict. Refuses to measure, and to take a figure that is missing for one that is good.

use std::fmt;

/// The goals of one run, in the order in which they were judged.
#[derive(Debug, Default)]
pub struct Goals(Vec<Goal>);

#[derive(Debug)]
struct Goal {
    words: String,
    met: bool,
}

impl Goals {
    /// Judges a figure that must be `least` or more; one that is no number is not.
    pub fn at_least(&mut self, what: &str, least: f64, found: f64) {
        let met = found >= least;
        let words = format!("at least {least} {what}: found {found:.1}");
        self.0.push(Goal { words, met });
    }

    /// A figure that could not be had: its goal is not met.
    pub fn not_measured(&mut self, what: &str, least: f64, why: &str) {
        let words = format!("at least {least} {what}: not measured, {why}");
        self.0.push(Goal { words, met: false });
    }

    /// Whether all were met.
    #[must_use]
    pub fn met(&self) -> bool {
        self.0.iter().all(|goal| goal.met)
    }
}

impl fmt::Display for Goals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, Goal { words, met }) in self.0.iter().enumerate() {
            let verdict = if *met { "met" } else { "MISSED" };
            let line_end = if place == 0 { "" } else { "\n" };
            write!(f, "{line_end}goal: {words}: {verdict}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_goal_has_a_line_and_one_that_is_missed_fails_the_run() {
        let mut goals = Goals::default();
        assert!(goals.met());
        goals.at_least("commands per entry", 100.0, 100.0);
        assert!(goals.met());
        goals.at_least("commands per fdatasync", 1000.0, 999.96);
        assert!(!goals.met());
        assert_eq!(
            goals.to_string(),
            "goal: at least 100 commands per entry: found 100.0: met\n\
             goal: at least 1000 commands per fdatasync: found 1000.0: MISSED"
        );
    }

    #[test]
    fn a_figure_that_is_missing_is_no_good_figure() {
        let mut goals = Goals::default();
        goals.at_least("commands per entry", 100.0, f64::NAN);
        assert!(!goals.met());
        let mut goals = Goals::default();
        goals.not_measured("times etcd's puts", 12.0, "no etcd");
        assert!(!goals.met());
        assert_eq!(
            goals.to_string(),
            "goal: at least 12 times etcd's puts: not measured, no etcd: MISSED"
        );
    }
}
