//! [`Pace`]: when the driver passes over all cells, and which passes are written to the journal.
//!
//! A crash loses the use since the last pass whose checkpoint is on disk. So a checkpoint follows its pass at once,
//! and the next one whose checkpoint is written begins half a `journal_interval` later at most: the other half is for
//! the pass itself and the write. A pass rests for some times its own duration, that many accounts slow the measuring
//! down and not the driver; but never so long that the promise breaks. Knows no cells and no disk.

use tollgate_core::time::Mono;

/// How often cells are measured and use is collected.
pub(super) const OBSERVE_MS: u64 = 250;
/// A pass over all cells is followed by at least so many times its own duration without one.
const REST: u64 = 8;

/// See the module's text.
pub(super) struct Pace {
    /// Half the `journal_interval` of an edge that keeps a journal.
    half_ms: Option<u64>,
    due_at: Mono,
    /// From the begin of the last pass to when the next is due.
    gap_ms: u64,
    /// The begin of the last pass that is, or is to be, written down.
    checkpointed_at: Mono,
}

impl Pace {
    pub(super) fn new(journal_interval_ms: Option<u64>) -> Self {
        Self {
            half_ms: journal_interval_ms.map(|interval| interval / 2),
            due_at: Mono(0),
            gap_ms: OBSERVE_MS,
            checkpointed_at: Mono(0),
        }
    }

    pub(super) fn is_due(&self, now: Mono) -> bool {
        now >= self.due_at
    }

    pub(super) fn until_due_ms(&self, now: Mono) -> u64 {
        self.due_at.since_ms(now)
    }

    /// A pass began and ended. Answers whether what it collected is to be written down now: the next would be too late.
    pub(super) fn handle_pass(&mut self, began: Mono, ended: Mono) -> bool {
        let pass_ms = ended.since_ms(began);
        let rested_ms = pass_ms.saturating_mul(REST + 1);
        let rested_ms = match self.half_ms {
            Some(half_ms) => rested_ms.min(half_ms.max(pass_ms)),
            None => rested_ms,
        };
        self.gap_ms = rested_ms.max(OBSERVE_MS);
        self.due_at = began.plus_ms(self.gap_ms);
        let age_ms = began.since_ms(self.checkpointed_at);
        let due = self
            .half_ms
            .is_some_and(|half_ms| age_ms.saturating_add(self.gap_ms) > half_ms);
        if due {
            self.checkpointed_at = began;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The oldest that use may be which a crash loses: over passes that take so long, each checkpoint on disk so long
    /// after its pass.
    fn oldest_lost_ms(interval_ms: u64, pass_ms: u64, write_ms: u64) -> u64 {
        let mut pace = Pace::new(Some(interval_ms));
        let (mut now, mut on_disk, mut oldest) = (Mono(1_000_000), None, 0);
        for _ in 0..1000 {
            now = now.plus_ms(pace.until_due_ms(now));
            let ended = now.plus_ms(pass_ms);
            if pace.handle_pass(now, ended) {
                let written = ended.plus_ms(write_ms);
                if let Some(before) = on_disk.replace(now) {
                    oldest = oldest.max(written.since_ms(before));
                }
            }
            now = ended;
        }
        oldest
    }

    #[test]
    fn a_crash_loses_no_more_than_the_journal_interval() {
        for interval_ms in [500, 1000, 2000, 60_000] {
            for pass_ms in 0..=interval_ms / 4 {
                let write_ms = interval_ms / 2 - pass_ms;
                let oldest = oldest_lost_ms(interval_ms, pass_ms, write_ms);
                assert!(
                    oldest <= interval_ms,
                    "{oldest} ms at {interval_ms}, passes of {pass_ms}, writes of {write_ms}"
                );
            }
        }
    }

    #[test]
    fn passes_rest_as_long_as_the_promise_lets_them() {
        let gap = |interval, pass: u64| {
            let mut pace = Pace::new(interval);
            pace.handle_pass(Mono(1000), Mono(1000 + pass));
            pace.gap_ms
        };
        assert_eq!(gap(Some(1000), 3), OBSERVE_MS);
        assert_eq!(gap(Some(1000), 40), 360);
        assert_eq!(gap(Some(1000), 90), 500);
        assert_eq!(gap(Some(60_000), 90), 810);
        assert_eq!(gap(None, 90), 810);
    }

    #[test]
    fn a_checkpoint_is_no_more_often_than_needed() {
        let mut pace = Pace::new(Some(1000));
        pace.handle_pass(Mono(10_000), Mono(10_001));
        let written: Vec<bool> = (1..5)
            .map(|n| pace.handle_pass(Mono(10_000 + n * 250), Mono(10_001 + n * 250)))
            .collect();
        assert_eq!(written, [false, true, false, true]);
    }
}
