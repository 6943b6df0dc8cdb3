//! An edge with far more active accounts than one report holds: everything is reported, soon, each in turn.

use std::collections::{BTreeMap, VecDeque};
use tollgate_core::account::{AccountId, Environment, Name};
use tollgate_core::command::{LINES_MAX, Report, ReportReply, UsageLine};
use tollgate_core::ids::{Boot, Seq, SessionId, Units};
use tollgate_core::ledger::sessions::UNACKNOWLEDGED_MAX;
use tollgate_core::message::SessionAnswer;
use tollgate_core::reporter::{JournalRecord, REPORT_BYTES_MAX, Reporter};
use tollgate_core::time::Mono;

const ACTIVE: u64 = 5000;
const SPACING_MS: u64 = 1000;
/// A report is answered after this long, whatever its size.
const ANSWER_MS: u64 = 50;

fn account(number: u64) -> AccountId {
    AccountId::parse(&format!("live/customer-{number}/-/customer/daily/open")).unwrap()
}

fn usage_line(number: u64) -> UsageLine {
    UsageLine {
        environment: Environment::Live,
        license: Name::new(&format!("customer-{number}-license")).unwrap(),
        key: Name::new(&format!("key-of-customer-{number}")).unwrap(),
        meter: Name::new("requests").unwrap(),
        units: 1,
    }
}

/// Units reported so far, by the text of their account or key.
#[derive(Default)]
struct Reported {
    spent: BTreeMap<String, Units>,
    usage: BTreeMap<String, Units>,
    last: Seq,
}

impl Reported {
    fn take(&mut self, report: &Report) {
        assert_eq!(report.seq, self.last.next(), "in order, each once");
        self.last = report.seq;
        assert!(report.spent.len() <= LINES_MAX && report.usage.len() <= LINES_MAX);
        let spent = report.spent.iter().map(|line| {
            let name = line.account.as_str();
            *self.spent.entry(name.to_owned()).or_default() += line.leased;
            name.len() + 32
        });
        let spent_bytes: usize = spent.sum();
        let usage = report.usage.iter().map(|line| {
            let names = [&line.license, &line.key, &line.meter].map(|name| name.as_str().len());
            *self.usage.entry(line.key.to_string()).or_default() += line.units;
            names.iter().sum::<usize>() + 32
        });
        let bytes = spent_bytes + usage.sum::<usize>();
        assert!(bytes <= REPORT_BYTES_MAX, "{bytes} bytes");
    }
}

/// The driver's loop: seals what is due, sends, and answers some time later.
struct Driver {
    reporter: Reporter,
    under_way: VecDeque<(Mono, Seq)>,
    reported: Reported,
}

impl Driver {
    fn new() -> Self {
        Self {
            reporter: Reporter::new(SessionId(1), Boot(2), false),
            under_way: VecDeque::new(),
            reported: Reported::default(),
        }
    }

    fn pump(&mut self, now: Mono) {
        while self.under_way.front().is_some_and(|(at, _)| *at <= now) {
            let (_, last_seq) = self.under_way.pop_front().unwrap();
            let settled = SessionAnswer {
                session: SessionId(1),
                boot: Boot(2),
                reply: ReportReply::Settled { last_seq },
            };
            assert_eq!(self.reporter.handle_answer(&settled), None);
        }
        let due = |reporter: &Reporter| {
            let open = reporter.open_for_ms(now);
            open.is_some_and(|open| open >= SPACING_MS)
        };
        while due(&self.reporter) && self.reporter.seal() {}
        assert!(self.reporter.unacknowledged() <= UNACKNOWLEDGED_MAX);
        while let Some(report) = self.reporter.poll_send(now) {
            self.reported.take(&report);
            self.under_way
                .push_back((now.plus_ms(ANSWER_MS), report.seq));
        }
    }
}

#[test]
fn use_of_thousands_of_accounts_each_second_is_reported_without_a_lag_that_grows() {
    let mut driver = Driver::new();
    for second in 0..30 {
        let start = second * 1000;
        for number in 0..ACTIVE {
            driver
                .reporter
                .add_spent(Mono(start), &account(number), 1, 0);
            driver.reporter.add_usage(Mono(start), &usage_line(number));
        }
        for step in 0..100 {
            driver.pump(Mono(start + 10 * step));
        }
        if second < 3 {
            continue;
        }
        let Reported { spent, usage, .. } = &driver.reported;
        for (what, reported) in [("spent", spent), ("usage", usage)] {
            assert_eq!(
                reported.len() as u64,
                ACTIVE,
                "{what}: each has had its turn"
            );
            let least = reported.values().min().unwrap();
            assert!(*least + 2 > second, "{what}: {least} of {}", second + 1);
        }
    }
}

#[test]
fn each_unit_is_in_exactly_one_report() {
    let mut driver = Driver::new();
    for number in 0..ACTIVE {
        for _ in 0..=number % 3 {
            driver.reporter.add_spent(Mono(0), &account(number), 1, 0);
        }
        // Few of one kind leave their room to the other.
        if number % 100 == 0 {
            driver.reporter.add_usage(Mono(0), &usage_line(number));
        }
    }
    for now in 0..10_000 {
        driver.pump(Mono(now));
        if now % 7 == 0 && now < 1000 {
            // Busy while the others are sealed: in none, or in a later one.
            driver.reporter.add_spent(Mono(now), &account(2), 1, 0);
        }
    }
    assert!(driver.reporter.is_settled());
    let Reported { spent, usage, last } = driver.reported;
    assert_eq!(spent.len() as u64, ACTIVE);
    for number in 0..ACTIVE {
        let more = if number == 2 { 143 } else { 0 };
        assert_eq!(spent[account(number).as_str()], 1 + number % 3 + more);
    }
    assert_eq!(usage.values().sum::<Units>(), ACTIVE / 100);
    assert!(last.0 < 20, "{last} reports, though most were full");
}

#[test]
fn what_a_journal_lost_with_its_tail_is_what_was_used_since_the_last_checkpoint() {
    let mut first = Reporter::new(SessionId(1), Boot(2), true);
    for number in 0..ACTIVE {
        first.add_spent(Mono(0), &account(number), 2, 0);
        first.add_usage(Mono(0), &usage_line(number));
    }
    let mut journal = vec![first.checkpoint().unwrap()];
    // Used after the checkpoint: may be lost, must not be doubled.
    for number in 0..ACTIVE {
        first.add_spent(Mono(1), &account(number), 1, 0);
    }
    while first.seal() {}
    journal.extend(std::iter::from_fn(|| first.poll_journal()));
    journal.extend(first.checkpoint());
    assert_eq!(journal.len(), 1 + UNACKNOWLEDGED_MAX + 1);
    // Torn after each record.
    for end in 1..=journal.len() {
        let kept = journal[..end].to_vec();
        let reports = kept
            .iter()
            .filter(|r| matches!(r, JournalRecord::Report(_)));
        let last = Seq(reports.count() as u64);
        let next = Reporter::resume(Mono(0), SessionId(1), Boot(9), Seq(0), kept).unwrap();
        assert_eq!(next.last_seq(), last);
        let mut driver = Driver::new();
        driver.reporter = next;
        for now in 0..3000 {
            while let Some(JournalRecord::Report(report)) = driver.reporter.poll_journal() {
                driver.reporter.handle_written(report.seq);
            }
            driver.pump(Mono(now));
        }
        assert!(driver.reporter.is_settled());
        let Reported { spent, usage, .. } = driver.reported;
        assert_eq!(spent.len() as u64, ACTIVE, "torn after record {end}");
        assert!(spent.values().all(|units| (2..=3).contains(units)));
        assert_eq!(usage.values().sum::<Units>(), ACTIVE);
    }
}
