//! [`Unreported`]: use that is in no report yet, summed, and how a report is cut from it.
//!
//! Owns the bounds of one report. Refuses to know of numbers and answers: `reporter.rs` does.

use crate::account::{AccountId, Environment, Name};
use crate::command::{LINES_MAX, Report, SpentLine, UsageLine};
use crate::ids::Units;
use std::collections::BTreeMap;
use std::ops::Bound;

/// Most bytes of lines in one report, both lists together; what is left goes into the next.
pub const REPORT_BYTES_MAX: usize = 32 * 1024;
/// What each list may always have of them; what one list leaves the other may use.
const LIST_BYTES: usize = REPORT_BYTES_MAX / 2;
/// Fixed part of a line's size, beside its names.
const LINE_BYTES: usize = 32;

/// The lines of a report, or of a checkpoint.
pub type Lines = (Vec<SpentLine>, Vec<UsageLine>);

type MeterKey = (Environment, Name, Name, Name);

/// See the module's text.
#[derive(Clone, Debug, Default)]
pub(super) struct Unreported {
    spent: Sums<AccountId, (Units, Units)>,
    usage: Sums<MeterKey, Units>,
}

impl Unreported {
    pub(super) fn add_spent(&mut self, account: &AccountId, leased: Units, unleased: Units) {
        let sum = self.spent.sums.entry(account.clone()).or_default();
        sum.0 = sum.0.saturating_add(leased);
        sum.1 = sum.1.saturating_add(unleased);
    }

    pub(super) fn add_usage(&mut self, line: &UsageLine) {
        let sum = self.usage.sums.entry(meter_key(line)).or_default();
        *sum = sum.saturating_add(line.units);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.spent.sums.is_empty() && self.usage.sums.is_empty()
    }

    /// Takes out what goes into the next report.
    pub(super) fn cut(&mut self) -> Lines {
        let (mut spent, mut usage) = (Vec::new(), Vec::new());
        let mut room = LIST_BYTES;
        self.cut_spent(&mut room, &mut spent);
        room = room.saturating_add(LIST_BYTES);
        while usage.len() < LINES_MAX
            && let Some((key, units)) = self.usage.take_next(&mut room, meter_bytes)
        {
            usage.push(usage_line(key, units));
        }
        self.cut_spent(&mut room, &mut spent);
        (spent, usage)
    }

    fn cut_spent(&mut self, room: &mut usize, spent: &mut Vec<SpentLine>) {
        while spent.len() < LINES_MAX
            && let Some((account, units)) = self.spent.take_next(room, |a| a.as_str().len())
        {
            spent.push(spent_line(account, units));
        }
    }

    /// Every line, for a checkpoint.
    pub(super) fn lines(&self) -> Lines {
        let spent = self.spent.sums.iter();
        let usage = self.usage.sums.iter();
        (
            spent
                .map(|(account, units)| spent_line(account.clone(), *units))
                .collect(),
            usage
                .map(|(key, units)| usage_line(key.clone(), *units))
                .collect(),
        )
    }
}

/// Sums that are taken out in turn.
#[derive(Clone, Debug)]
struct Sums<K, V> {
    sums: BTreeMap<K, V>,
    /// The last key taken out: the next one comes after it, so that what sorts late is not reported late.
    last: Option<K>,
}

impl<K, V> Default for Sums<K, V> {
    fn default() -> Self {
        Self {
            sums: BTreeMap::new(),
            last: None,
        }
    }
}

impl<K: Ord + Clone, V> Sums<K, V> {
    /// The next sum, if its line fits the room in bytes that is left.
    fn take_next(&mut self, room: &mut usize, name_bytes: impl Fn(&K) -> usize) -> Option<(K, V)> {
        let after = match &self.last {
            Some(last) => (Bound::Excluded(last), Bound::Unbounded),
            None => (Bound::Unbounded, Bound::Unbounded),
        };
        let next = self.sums.range(after).next();
        let (key, _) = next.or_else(|| self.sums.first_key_value())?;
        *room = room.checked_sub(name_bytes(key).saturating_add(LINE_BYTES))?;
        let taken = self.sums.remove_entry(&key.clone())?;
        self.last = Some(taken.0.clone());
        Some(taken)
    }
}

/// What a checkpoint says that the report sealed after it does not: it was in a report still to come.
///
/// A checkpoint says no more than what was used then, and what was used is in reports or still open. So what
/// is left here was used, and is in no report up to this one: it may become the next.
#[must_use]
pub fn left_of_checkpoint((spent, usage): Lines, report: &Report) -> Lines {
    let reported = |line: &SpentLine| (line.account.clone(), (line.leased, line.unleased));
    let by_account: BTreeMap<_, _> = report.spent.iter().map(reported).collect();
    let by_meter: BTreeMap<_, _> = report
        .usage
        .iter()
        .map(|line| (meter_key(line), line.units))
        .collect();
    let spent = spent.into_iter().filter_map(|line| {
        let (leased, unleased) = by_account.get(&line.account).copied().unwrap_or_default();
        let left = SpentLine {
            leased: line.leased.saturating_sub(leased),
            unleased: line.unleased.saturating_sub(unleased),
            ..line
        };
        (left.leased > 0 || left.unleased > 0).then_some(left)
    });
    let usage = usage.into_iter().filter_map(|line| {
        let reported = by_meter.get(&meter_key(&line)).copied().unwrap_or_default();
        let units = line.units.saturating_sub(reported);
        (units > 0).then_some(UsageLine { units, ..line })
    });
    (spent.collect(), usage.collect())
}

fn meter_key(line: &UsageLine) -> MeterKey {
    (
        line.environment,
        line.license.clone(),
        line.key.clone(),
        line.meter.clone(),
    )
}

fn meter_bytes((_, license, key, meter): &MeterKey) -> usize {
    let names = [license, key, meter].map(|name| name.as_str().len());
    names.into_iter().fold(0, usize::saturating_add)
}

fn spent_line(account: AccountId, (leased, unleased): (Units, Units)) -> SpentLine {
    SpentLine {
        account,
        leased,
        unleased,
    }
}

fn usage_line((environment, license, key, meter): MeterKey, units: Units) -> UsageLine {
    UsageLine {
        environment,
        license,
        key,
        meter,
        units,
    }
}
