//! What must hold at the end of the demo, judged from clients' answers and the durable ledger.

use super::story::{RAISED, Story};
use crate::load::Tally;
use crate::output::{duration, number, table};
use crate::watch::Accounts;
use serde::Serialize;
use std::collections::BTreeMap;

/// Lease traffic of both edges over a stretch of time.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Leases {
    /// Round trips: leases and resolves.
    pub round_trips: u64,
    /// Checks decided.
    pub checks: u64,
}

impl Leases {
    /// Adds the counters of an edge's metrics page.
    pub fn add(&mut self, metrics: &str) {
        for line in metrics.lines() {
            let Some((series, value)) = line.rsplit_once(' ') else {
                continue;
            };
            let name = series.split('{').next().unwrap_or(series);
            let value = value.parse::<f64>().map_or(0, as_count);
            match name {
                "tollgate_edge_leases_total" | "tollgate_edge_resolves_total" => {
                    self.round_trips += value;
                }
                "tollgate_checks_total" => self.checks += value,
                _ => {}
            }
        }
    }

    /// What was added since an earlier reading.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            round_trips: self.round_trips.saturating_sub(before.round_trips),
            checks: self.checks.saturating_sub(before.checks),
        }
    }

    /// Round trips per thousand checks, in tenths.
    fn per_thousand(&self) -> String {
        let tenths = (self.round_trips * 10_000)
            .checked_div(self.checks)
            .unwrap_or(0);
        format!("{}.{}", tenths / 10, tenths % 10)
    }
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a counter of a metrics page is a whole number far below 2^53"
)]
fn as_count(value: f64) -> u64 {
    value as u64
}

/// A node killed.
#[derive(Debug, Serialize)]
pub struct Takeover {
    /// What it was.
    pub what: &'static str,
    /// Which one.
    pub node: u64,
    /// Slots it issued.
    pub slots: usize,
    /// From the kill until every slot of it had a living issuer.
    pub without_issuer_ms: u64,
}

/// Changes made while it ran.
#[derive(Debug, Serialize)]
pub struct Changes {
    /// From the acknowledged raise until both edges admitted again.
    pub raise_ms: u64,
    /// From the acknowledged revocation until both edges refused.
    pub revoke_ms: u64,
}

/// What was measured on the way.
#[derive(Debug)]
pub struct Figures {
    /// Leases while clients came for the first time.
    pub cold: Leases,
    /// Leases under sustained load on one account.
    pub hot: Leases,
    /// The kills.
    pub takeovers: Vec<Takeover>,
    /// The changes.
    pub changes: Changes,
}

/// What the cluster says at the end.
#[derive(Debug)]
pub struct Ledger {
    /// The quota accounts.
    pub accounts: Accounts,
    /// Metered units by customer.
    pub usage: BTreeMap<String, u64>,
}

/// Longest time until a change is known to every connected edge, in ms (promise P7).
const CHANGE_MS_MAX: u64 = 1_000;

/// An account of which something does not hold.
#[derive(Debug, Serialize)]
pub struct Broken {
    /// Its name.
    pub account: String,
    /// What is wrong.
    pub what: String,
}

/// The verdict.
#[derive(Debug, Serialize)]
pub struct Verdict {
    /// Whether every promise held.
    pub holds: bool,
    /// Checks decided.
    pub checks: u64,
    /// Decisions by reason; `ok` are those allowed.
    pub reasons: BTreeMap<String, u64>,
    /// Units of checks whose answer never came, and checks that found no edge.
    pub unknown: u64,
    /// Accounts compared.
    pub accounts: usize,
    /// Units admitted, by clients' answers.
    pub admitted: u64,
    /// Units settled, by the ledger's accounts.
    pub settled: u64,
    /// Units metered, by the usage records.
    pub metered: u64,
    /// Units admitted beyond a limit.
    pub over_issued: u64,
    /// Sum over the accounts of what admitted, settled and metered units differ by. No edge is killed here, so nothing
    /// may be lost either.
    pub metering_difference: u64,
    /// Units of `excess` in the ledger.
    pub excess: u64,
    /// Units still out at the end: in pools of issuers that were killed, admitted by nobody.
    pub stranded: u64,
    /// Checks refused although their edge held units: those of the hot customer.
    pub held_refused: u64,
    /// Checks refused while units of their account were elsewhere: at the other edge longer than a recall may
    /// take, or with an issuer that had just been killed. Tiny quotas and busy machines; no promise.
    pub elsewhere_refused: u64,
    /// What does not hold, account by account; the first few.
    pub broken: Vec<Broken>,
    /// Leases while clients came for the first time.
    pub cold: Leases,
    /// Leases under sustained load on one account.
    pub hot: Leases,
    /// Latency of a check over HTTP in nanoseconds: p50, p99, p99.9.
    pub latency_ns: [u64; 3],
    /// The kills.
    pub takeovers: Vec<Takeover>,
    /// The changes.
    pub changes: Changes,
}

/// Broken accounts shown.
const BROKEN_SHOWN: usize = 10;

impl Verdict {
    /// Judges.
    #[must_use]
    pub fn new(story: &Story, tally: &Tally, ledger: &Ledger, figures: Figures) -> Self {
        let Figures {
            cold,
            hot,
            takeovers,
            changes,
        } = figures;
        let mut this = Self {
            holds: false,
            checks: tally.decided(),
            reasons: tally.reasons.clone(),
            unknown: tally.unknown_units() + tally.unsent,
            accounts: story.customers.len(),
            admitted: tally.admitted.iter().sum(),
            settled: 0,
            metered: 0,
            over_issued: 0,
            metering_difference: 0,
            excess: 0,
            stranded: 0,
            held_refused: tally.refused_for_units[story.hot],
            elsewhere_refused: 0,
            broken: Vec::new(),
            cold,
            hot,
            latency_ns: [0.5, 0.99, 0.999].map(|q| tally.latency.value_at_quantile(q)),
            takeovers,
            changes,
        };
        for subject in 0..story.customers.len() {
            this.judge(story, tally, ledger, subject);
        }
        this.holds = this.over_issued == 0
            && this.metering_difference == 0
            && this.excess == 0
            && this.held_refused == 0
            && this.changes.raise_ms <= CHANGE_MS_MAX
            && this.changes.revoke_ms <= CHANGE_MS_MAX;
        this
    }

    fn judge(&mut self, story: &Story, tally: &Tally, ledger: &Ledger, subject: usize) {
        let account = story.account(subject);
        let admitted = tally.admitted[subject];
        let row = ledger.accounts.get(&account);
        let settled = row.map_or(0, |row| row.settled);
        let customer = &*story.customers[subject].id;
        let metered = ledger.usage.get(customer).copied().unwrap_or(0);
        let limit = story.limit(subject);
        self.settled += settled;
        self.metered += metered;
        self.excess += row.map_or(0, |row| row.excess);
        let over = admitted.saturating_sub(limit);
        self.over_issued += over;
        // An answer that never came may have been a yes: it explains as much settled use, and no more.
        let most = admitted + tally.unknown[subject];
        let off = |counted: u64| admitted.saturating_sub(counted) + counted.saturating_sub(most);
        let difference = off(settled)
            .max(off(metered))
            .max(settled.abs_diff(metered));
        self.metering_difference += difference;
        let refused = tally.refused_for_units[subject];
        let mut break_with = |what: String| {
            if self.broken.len() < BROKEN_SHOWN {
                self.broken.push(Broken {
                    account: account.clone(),
                    what,
                });
            }
        };
        if over > 0 {
            break_with(format!("admitted {admitted} of {limit}"));
        }
        if difference > 0 {
            break_with(format!(
                "clients were admitted {admitted}, the ledger settled {settled} and metered {metered}"
            ));
        }
        // The raised customer was refused before the raise, rightly. What is still out after every edge
        // has handed in its units was stranded in the pool of an issuer that was killed.
        let limit = if subject == story.raised {
            RAISED.0
        } else {
            limit
        };
        let stranded = row.map_or(0, |row| row.out);
        self.stranded += stranded;
        if subject != story.hot && admitted + stranded < limit {
            self.elsewhere_refused += refused;
        }
    }

    /// For people.
    #[must_use]
    pub fn people(&self) -> String {
        let mut rows = vec![vec!["checks".to_owned(), number(self.checks)]];
        rows.extend(
            self.reasons
                .iter()
                .map(|(reason, n)| vec![format!("· {reason}"), number(*n)]),
        );
        let good = |n: u64| {
            if n == 0 {
                "0".to_owned()
            } else {
                format!("{}  BROKEN", number(n))
            }
        };
        rows.push(vec![
            "accounts compared".to_owned(),
            number(self.accounts as u64),
        ]);
        rows.push(vec![
            "units admitted, by clients' answers".to_owned(),
            number(self.admitted),
        ]);
        rows.push(vec![
            "units settled, by the ledger".to_owned(),
            number(self.settled),
        ]);
        rows.push(vec![
            "units metered, by the usage records".to_owned(),
            number(self.metered),
        ]);
        rows.push(vec!["over-issued units".to_owned(), good(self.over_issued)]);
        rows.push(vec![
            "metering difference".to_owned(),
            good(self.metering_difference),
        ]);
        rows.push(vec!["excess in the ledger".to_owned(), good(self.excess)]);
        rows.push(vec![
            "units stranded by the kills".to_owned(),
            number(self.stranded),
        ]);
        rows.push(vec![
            "refusals of held units".to_owned(),
            good(self.held_refused),
        ]);
        rows.push(vec![
            "refusals while units were elsewhere".to_owned(),
            number(self.elsewhere_refused),
        ]);
        rows.push(vec![
            "answers that never came".to_owned(),
            number(self.unknown),
        ]);
        let trips = |l: &Leases| {
            format!(
                "{} ({} in {})",
                l.per_thousand(),
                number(l.round_trips),
                number(l.checks)
            )
        };
        rows.push(vec![
            "lease round trips per 1,000 checks, cold".to_owned(),
            trips(&self.cold),
        ]);
        rows.push(vec!["… hot".to_owned(), trips(&self.hot)]);
        let [p50, p99, p999] = self.latency_ns.map(duration);
        rows.push(vec![
            "check over HTTP, p50 / p99 / p99.9".to_owned(),
            format!("{p50} / {p99} / {p999}"),
        ]);
        for t in &self.takeovers {
            rows.push(vec![
                format!("kill -9 of {}, {} slots without an issuer", t.what, t.slots),
                format!("{} ms", t.without_issuer_ms),
            ]);
        }
        let Changes {
            raise_ms,
            revoke_ms,
        } = self.changes;
        let late = if raise_ms.max(revoke_ms) > CHANGE_MS_MAX {
            format!("  BROKEN: at most {CHANGE_MS_MAX} ms")
        } else {
            String::new()
        };
        rows.push(vec![
            "raise / revocation known to both edges".to_owned(),
            format!("{raise_ms} ms / {revoke_ms} ms{late}"),
        ]);
        let verdict = if self.holds {
            "every promise held"
        } else {
            "A PROMISE BROKE"
        };
        let broken: String = self
            .broken
            .iter()
            .map(|b| format!("\n  {}: {}", b.account, b.what))
            .collect();
        format!(
            "\n{}\n\n{}Verdict: {verdict}{broken}",
            table(&["verdict", ""], rows),
            self.about_stranded()
        )
    }

    /// Where stranded units are and why that is safe, if there are any.
    fn about_stranded(&self) -> String {
        if self.stranded == 0 {
            return String::new();
        }
        format!(
            "{} stranded with the killed nodes: admitted to nobody and still counted as out, so never over-issued. \
             This version has no command that writes them off.\n\n",
            match self.stranded {
                1 => "1 unit is".to_owned(),
                units => format!("{} units are", number(units)),
            }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::Account;

    /// A demo of three units of customer 0, in which everything held.
    struct Ended {
        story: Story,
        tally: Tally,
        row: Account,
        metered: u64,
        changes: (u64, u64),
    }

    impl Ended {
        fn well() -> Self {
            let story = Story::new(1).unwrap();
            let mut tally = Tally::new(story.customers.len());
            tally.admitted[0] = 3;
            let row = Account {
                account: story.account(0),
                settled: 3,
                out: 0,
                excess: 0,
                limit: Some(story.limit(0)),
            };
            let (metered, changes) = (3, (5, 1));
            Self {
                story,
                tally,
                row,
                metered,
                changes,
            }
        }

        fn verdict(&self) -> Verdict {
            let customer = self.story.customers[0].id.to_string();
            let ledger = Ledger {
                accounts: Accounts::of([self.row.clone()]),
                usage: BTreeMap::from([(customer, self.metered)]),
            };
            let figures = Figures {
                cold: Leases::default(),
                hot: Leases::default(),
                takeovers: Vec::new(),
                changes: Changes {
                    raise_ms: self.changes.0,
                    revoke_ms: self.changes.1,
                },
            };
            Verdict::new(&self.story, &self.tally, &ledger, figures)
        }
    }

    /// The verdict after something went wrong.
    fn after(change: impl FnOnce(&mut Ended)) -> Verdict {
        let mut ended = Ended::well();
        change(&mut ended);
        ended.verdict()
    }

    #[test]
    fn what_held_holds() {
        let verdict = after(|_| ());
        assert!(verdict.holds, "{}", verdict.people());
        assert_eq!((verdict.settled, verdict.metered), (3, 3));
    }

    #[test]
    fn one_unit_settled_or_metered_more_or_less_breaks_it() {
        let faults: [fn(&mut Ended); 4] = [
            |e| e.row.settled = 2,
            |e| e.row.settled = 4,
            |e| e.metered = 2,
            |e| e.metered = 4,
        ];
        for fault in faults {
            let verdict = after(fault);
            assert_eq!((verdict.holds, verdict.metering_difference), (false, 1));
        }
    }

    #[test]
    fn an_unknown_answer_explains_a_unit_that_both_count() {
        let verdict = after(|e| (e.tally.unknown[0], e.row.settled, e.metered) = (1, 4, 4));
        assert!(verdict.holds);
        let verdict = after(|e| (e.tally.unknown[0], e.row.settled, e.metered) = (1, 4, 3));
        assert_eq!((verdict.holds, verdict.metering_difference), (false, 1));
    }

    #[test]
    fn a_change_that_took_longer_than_a_second_breaks_it() {
        assert!(after(|e| e.changes = (1_000, 1_000)).holds);
        for late in [(1_001, 1), (5, 1_001)] {
            let verdict = after(|e| e.changes = late);
            assert!(!verdict.holds);
            assert!(verdict.people().contains("BROKEN: at most 1000 ms"));
        }
    }

    #[test]
    fn stranded_units_are_explained_and_break_nothing() {
        assert!(!after(|_| ()).people().contains("stranded with"));
        for (out, line) in [
            (1, "\n1 unit is stranded with the killed nodes: "),
            (8_305, "\n8,305 units are stranded with the killed nodes: "),
        ] {
            let verdict = after(|e| e.row.out = out);
            assert!(verdict.holds);
            assert!(verdict.people().contains(line), "{}", verdict.people());
        }
    }

    #[test]
    fn over_issue_excess_and_refusals_of_held_units_break_it() {
        let story = Story::new(1).unwrap();
        let tiny = story.customers.iter().position(|c| c.plan == "tiny");
        let tiny = tiny.unwrap();
        let over = after(|e| e.tally.admitted[tiny] = story.limit(tiny) + 1);
        assert_eq!((over.holds, over.over_issued), (false, 1));
        assert!(!after(|e| e.row.excess = 1).holds);
        assert!(!after(|e| e.tally.refused_for_units[e.story.hot] = 1).holds);
    }
}
