//! Usage records: what was metered, by licence, hour, environment, meter and key (design §8).
//!
//! A line that names no licence, key or meter of the catalog goes to suspense, so that nobody makes records
//! out of names that do not exist; what is left is capped per licence and hour, and ends after
//! [`USAGE_RETENTION_HOURS`], a bounded number of records with every `Tick`. The indexes here are functions
//! of the records alone: a restored replica has the same ones. Next: [`super::sessions`], who reports.

use super::Ledger;
use super::records::{KIND_USAGE, USAGE_KEYS_PER_HOUR_MAX, UsageKey};
use crate::account::Name;
use crate::command::UsageLine;
use crate::ids::{SessionId, Units};
use crate::table::Table;
use crate::time::LedgerTime;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

/// How long usage records are kept, in hours after their own: 35 days.
pub const USAGE_RETENTION_HOURS: u64 = 35 * 24;

/// Records that one `Tick` takes out: a few milliseconds of `apply`. What is left goes with the next ones,
/// for which [`Ledger::retention_is_behind`] asks.
pub const USAGE_RETIRED_PER_TICK_MAX: usize = 4096;

/// See the module's text.
#[derive(Clone, Debug)]
pub(crate) struct Usage {
    records: Table<UsageKey, Units>,
    /// How many records each licence has in each hour.
    hours: BTreeMap<u64, BTreeMap<Name, usize>>,
}

impl Usage {
    pub(crate) fn new() -> Self {
        Self {
            records: Table::new(KIND_USAGE),
            hours: BTreeMap::new(),
        }
    }

    pub(crate) fn get(&self, key: &UsageKey) -> Option<Units> {
        self.records.get(key).copied()
    }

    pub(crate) fn put(&mut self, key: UsageKey, units: Units) {
        if !self.records.contains(&key) {
            let licenses = self.hours.entry(key.hour).or_default();
            let count = licenses.entry(key.license.clone()).or_default();
            *count = count.saturating_add(1);
        }
        self.records.put(key, units);
    }

    fn remove(&mut self, key: &UsageKey) {
        if self.records.remove(key).is_none() {
            return;
        }
        let Some(licenses) = self.hours.get_mut(&key.hour) else {
            return;
        };
        if let Some(count) = licenses.get_mut(&key.license) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                licenses.remove(&key.license);
            }
        }
        if licenses.is_empty() {
            self.hours.remove(&key.hour);
        }
    }

    /// How many records a licence has in an hour.
    fn in_hour(&self, license: &Name, hour: u64) -> usize {
        let licenses = self.hours.get(&hour);
        licenses
            .and_then(|licenses| licenses.get(license))
            .copied()
            .unwrap_or(0)
    }

    /// Keys of records before an hour, oldest hours first.
    fn before(&self, hour: u64) -> impl Iterator<Item = &UsageKey> {
        let old = self.hours.range(..hour);
        old.flat_map(|(hour, licenses)| licenses.keys().map(move |license| (license, *hour)))
            .flat_map(|(license, hour)| {
                let next = UsageKey::first_of(license, hour.saturating_add(1));
                self.records.range(UsageKey::first_of(license, hour)..next)
            })
            .map(|(key, _)| key)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&UsageKey, Units)> {
        self.records.iter().map(|(key, units)| (key, *units))
    }

    pub(crate) fn digest(&self) -> u128 {
        self.records.digest()
    }

    pub(crate) fn take_dirty(&mut self) -> BTreeSet<UsageKey> {
        self.records.take_dirty()
    }
}

/// The first hour whose usage is kept at a moment.
fn first_kept_hour(time: LedgerTime) -> u64 {
    time.hour().saturating_sub(USAGE_RETENTION_HOURS)
}

impl Ledger {
    pub(crate) fn count_usage(&mut self, session: SessionId, line: &UsageLine) {
        if !self.catalog.knows_use(line) {
            let name = format!("{}/{}/{}", line.license, line.key, line.meter);
            return self.suspend(session, &name, line.units);
        }
        let mut key = UsageKey {
            license: line.license.clone(),
            hour: self.meta.time.hour(),
            environment: line.environment,
            meter: line.meter.clone(),
            key: Some(line.key.clone()),
        };
        let full = self.usage.in_hour(&key.license, key.hour) >= USAGE_KEYS_PER_HOUR_MAX;
        if full && self.usage.get(&key).is_none() {
            key.key = None;
        }
        match self.usage.get(&key).unwrap_or(0).checked_add(line.units) {
            Some(units) => self.usage.put(key, units),
            None => self.suspend(session, line.license.as_str(), line.units),
        }
    }

    /// Takes out usage older than [`USAGE_RETENTION_HOURS`], at most [`USAGE_RETIRED_PER_TICK_MAX`] records.
    pub(crate) fn retire_usage(&mut self) {
        let old: Vec<UsageKey> = self
            .usage
            .before(first_kept_hour(self.meta.time))
            .take(USAGE_RETIRED_PER_TICK_MAX)
            .cloned()
            .collect();
        for key in &old {
            self.usage.remove(key);
        }
    }

    pub(crate) fn has_old_usage(&self) -> bool {
        let first = first_kept_hour(self.meta.time);
        self.usage.hours.range(..first).next().is_some()
    }

    /// Usage records, in order of licence, hour, environment, meter, key.
    pub fn usage(&self) -> impl Iterator<Item = (&UsageKey, Units)> {
        self.usage.iter()
    }

    /// The first licence after `after` that has usage records. O(log n).
    #[must_use]
    pub fn license_with_usage(&self, after: Option<&Name>) -> Option<&Name> {
        let from = match after {
            // No record lies in the last hour of time, so this stands between two licences.
            Some(license) => Bound::Excluded(UsageKey::first_of(license, u64::MAX)),
            None => Bound::Unbounded,
        };
        let mut next = self.usage.records.range((from, Bound::Unbounded));
        next.next().map(|(key, _)| &key.license)
    }

    /// The usage records of one licence after `after`, in order: for readers that take them bit by bit.
    pub fn usage_of<'a>(
        &'a self,
        license: &Name,
        after: Option<&UsageKey>,
    ) -> impl Iterator<Item = (&'a UsageKey, Units)> {
        let from = match after {
            Some(key) => Bound::Excluded(key.clone()),
            None => Bound::Included(UsageKey::first_of(license, 0)),
        };
        let to = Bound::Excluded(UsageKey::first_of(license, u64::MAX));
        let records = self.usage.records.range((from, to));
        records.map(|(key, units)| (key, *units))
    }
}
