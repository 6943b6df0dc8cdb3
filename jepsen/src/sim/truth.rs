//! The observer: sees every process at once, keeps its own sums, and says which promise broke first.
//!
//! It counts what clients were told, not what the product says it counted. Its ledger is
//! [`super::naive`]. Checks and their names are listed in docs/simulator.md.

use super::catalog;
use super::metering::{JOURNAL_INTERVAL_MS, SYNC_MS};
use super::naive::{Expected, Naive};
use super::scenario::LimitSpec;
use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use tollgate_core::account::AccountId;
use tollgate_core::command::{Command, Entry, Reply, Report};
use tollgate_core::ids::{Seq, SessionId};
use tollgate_core::ledger::{Alarm, Ledger};

/// Of a limit, this part (0.1 %) may be in use at edges when a check is refused.
const KEEP_PART: u64 = 1000;

/// A broken promise.
#[derive(Clone, Debug)]
pub(super) struct Violation {
    /// Which check.
    pub(super) check: &'static str,
    /// The account it concerns.
    pub(super) account: Option<AccountId>,
    /// What was found, with numbers.
    pub(super) text: String,
}

/// An account name that an edge or the ledger uses.
struct Observed {
    account: AccountId,
    limit: (usize, usize),
    /// Units admitted from leases.
    admitted: u64,
    /// Units admitted without: debt.
    unleased: u64,
    held_by_edges: Rc<Cell<u64>>,
}

/// One limit of one customer, whatever account it is counted in.
#[derive(Default)]
struct Limited {
    admitted: u64,
    /// The highest limit ever in force.
    highest: u64,
}

/// What an edge admitted of an account, over all its starts.
#[derive(Clone, Copy, Default)]
struct ByEdge {
    admitted: u64,
    /// At most this may never be billed: what crashes may have lost.
    may_be_lost: u64,
}

/// See the module's text.
pub(super) struct Truth {
    pub(super) naive: Naive,
    expected: Vec<Expected>,
    digests: Vec<u128>,
    observed: Vec<Observed>,
    index: BTreeMap<AccountId, usize>,
    limited: BTreeMap<(usize, usize), Limited>,
    by_edge: BTreeMap<(usize, usize), ByEdge>,
    recent: BTreeMap<usize, VecDeque<(u64, usize, u64)>>,
    sent: BTreeMap<(SessionId, Seq), u64>,
    pub(super) violation: Option<Violation>,
}

impl Truth {
    pub(super) fn new(customers: &[Vec<LimitSpec>]) -> Self {
        let mut truth = Self {
            naive: Naive::default(),
            expected: Vec::new(),
            digests: Vec::new(),
            observed: Vec::new(),
            index: BTreeMap::new(),
            limited: BTreeMap::new(),
            by_edge: BTreeMap::new(),
            recent: BTreeMap::new(),
            sent: BTreeMap::new(),
            violation: None,
        };
        for (customer, limits) in customers.iter().enumerate() {
            for limit in 0..limits.len() {
                truth.observe(customer, limit, &catalog::account(customer, limit));
            }
        }
        truth
    }

    /// Notes a broken promise; the first one counts.
    pub(super) fn fail(&mut self, check: &'static str, account: Option<&AccountId>, text: String) {
        let account = account.cloned();
        self.violation.get_or_insert(Violation {
            check,
            account,
            text,
        });
    }

    /// The observer's number of an account that counts a limit.
    pub(super) fn observe(&mut self, customer: usize, limit: usize, account: &AccountId) -> usize {
        if let Some(number) = self.index.get(account) {
            return *number;
        }
        let number = self.observed.len();
        self.index.insert(account.clone(), number);
        self.observed.push(Observed {
            account: account.clone(),
            limit: (customer, limit),
            admitted: 0,
            unleased: 0,
            held_by_edges: Rc::new(Cell::new(0)),
        });
        self.limited.entry((customer, limit)).or_default();
        number
    }

    pub(super) fn held_by_edges(&self, number: usize) -> Rc<Cell<u64>> {
        Rc::clone(&self.observed[number].held_by_edges)
    }

    /// A client was told yes.
    pub(super) fn admit(&mut self, edge: usize, number: usize, units: u64, now: u64) {
        let observed = &mut self.observed[number];
        observed.admitted += units;
        self.note_use(edge, number, units, now);
        let limited = self.limited.entry(self.observed[number].limit).or_default();
        limited.admitted += units;
        if limited.admitted > limited.highest {
            let (admitted, highest) = (limited.admitted, limited.highest);
            let account = self.observed[number].account.clone();
            let text = format!("admitted {admitted} units, the limit was never above {highest}");
            self.fail("I3 over-issue", Some(&account), text);
        }
    }

    /// Use without a lease, as `record` allows it: billed, but not the limit's business.
    pub(super) fn admit_unleased(&mut self, edge: usize, number: usize, units: u64, now: u64) {
        self.observed[number].unleased += units;
        self.note_use(edge, number, units, now);
    }

    /// P3 on a healthy network: nobody is refused what clients have not used, but for what edges may keep.
    pub(super) fn refused_in_health(&mut self, edge: usize, number: usize, cost: u64) {
        let limited = &self.limited[&self.observed[number].limit];
        let usable = limited.highest - limited.highest / KEEP_PART;
        if limited.admitted + cost <= usable {
            let (admitted, highest) = (limited.admitted, limited.highest);
            let account = self.observed[number].account.clone();
            let text =
                format!("e{edge} refused {cost} units while {admitted} of {highest} were used");
            self.fail("P3 refused while units are left", Some(&account), text);
        }
    }

    fn note_use(&mut self, edge: usize, number: usize, units: u64, now: u64) {
        self.by_edge.entry((edge, number)).or_default().admitted += units;
        let recent = self.recent.entry(edge).or_default();
        recent.push_back((now, number, units));
        while recent
            .front()
            .is_some_and(|(at, _, _)| now > at + 10 * JOURNAL_INTERVAL_MS)
        {
            recent.pop_front();
        }
    }

    /// Settled units of an account that came from one edge's sessions.
    fn settled_by(&self, edge: usize, number: usize) -> u64 {
        let account = &self.observed[number].account;
        self.naive
            .settled_by(&super::edge::Edge::identity(edge), account)
    }

    /// A crash may lose the use of the last journal interval, or without a journal what is not settled.
    pub(super) fn edge_crashed(&mut self, edge: usize, keeps_journal: bool, now: u64) {
        if keeps_journal {
            // The interval, the tick it is looked at in, and the sync.
            let since = now.saturating_sub(JOURNAL_INTERVAL_MS + 250 + 2 * SYNC_MS.1);
            let recent = self.recent.entry(edge).or_default();
            let late: Vec<_> = recent
                .iter()
                .filter(|(at, _, _)| *at >= since)
                .copied()
                .collect();
            recent.clear();
            for (_, number, units) in late {
                self.by_edge.entry((edge, number)).or_default().may_be_lost += units;
            }
            return;
        }
        for number in 0..self.observed.len() {
            let settled = self.settled_by(edge, number);
            let by_edge = self.by_edge.entry((edge, number)).or_default();
            by_edge.may_be_lost = by_edge.admitted.saturating_sub(settled);
        }
    }

    /// An entry is committed: what it does is decided here, whatever the replicas make of it.
    pub(super) fn commit(&mut self, entry: &Entry) {
        let expected = self.naive.apply(entry);
        for (customer, limit, quota) in std::mem::take(&mut self.naive.raised) {
            let limited = self.limited.entry((customer, limit)).or_default();
            limited.highest = limited.highest.max(quota);
        }
        if let Some((check, account, text)) = self.naive.broken.take() {
            self.fail(check, Some(&account), text);
        }
        for (account, row) in &expected.rows {
            let Some(number) = self.index.get(account).copied() else {
                continue;
            };
            let observed = &self.observed[number];
            let used = observed.admitted + observed.unleased;
            if row.settled > used {
                let text = format!("billed {} units, admitted {used}", row.settled);
                self.fail("I10 billed ≤ admitted", Some(account), text);
            }
        }
        self.expected.push(expected);
    }

    /// Whether a change of the workload is in the log.
    pub(super) fn is_committed(&self, command: &Command) -> bool {
        match command {
            Command::Admin(admin) => {
                catalog::change_of(admin).is_some_and(|(key, _)| self.naive.has_change(&key))
            }
            _ => true,
        }
    }

    /// A replica applied an entry.
    pub(super) fn applied(
        &mut self,
        node: usize,
        index: u64,
        ledger: &Ledger,
        replies: &[Reply],
        alarms: &[Alarm],
    ) {
        let at = usize::try_from(index - 1).unwrap_or(usize::MAX);
        let digest = ledger.digest();
        if at < self.digests.len() {
            if self.digests[at] != digest {
                self.fail(
                    "I13 digest",
                    None,
                    format!("n{node} differs at index {index}"),
                );
            }
            return;
        }
        self.digests.push(digest);
        if let Some(alarm) = alarms.iter().find(|alarm| !self.is_expected(alarm)) {
            self.fail("alarm", None, format!("index {index}: {alarm:?}"));
        }
        let expected = self.expected[at].clone();
        for (account, row) in &expected.rows {
            let found = ledger.account(account).copied().unwrap_or_default();
            let found = (
                found.settled,
                found.out,
                found.excess,
                found.epoch.0,
                found.acquired_total,
                found.returned_total,
            );
            let wanted = (
                row.settled,
                row.out,
                row.excess,
                row.epoch,
                row.acquired,
                row.returned,
            );
            if found != wanted {
                let text = format!(
                    "index {index}: (settled, out, excess, epoch, acquired, returned) is {found:?}, must be {wanted:?}"
                );
                self.fail("I1 model", Some(account), text);
            }
        }
        for (reply, wanted) in replies.iter().zip(&expected.replies) {
            if wanted.as_ref().is_some_and(|wanted| wanted != reply) {
                let text = format!("index {index}: answered {reply:?}, must be {wanted:?}");
                self.fail("I1 model", None, text);
            }
        }
        let routes = self.naive.slots.iter();
        let wrong = routes.into_iter().find(|(slot, (epoch, owner))| {
            let route = ledger.route(**slot);
            // The naive ledger is at the newest commit: compare only when this replica is there, too.
            at + 1 == self.expected.len() && (route.epoch.0, route.owner) != (*epoch, *owner)
        });
        if let Some((slot, wanted)) = wrong {
            let text = format!(
                "slot {slot} is {:?}, must be {wanted:?}",
                ledger.route(*slot)
            );
            self.fail("I18 epochs", None, text);
        }
    }

    fn is_expected(&self, alarm: &Alarm) -> bool {
        match alarm {
            Alarm::Excess { account, .. } => self
                .index
                .get(account)
                .is_some_and(|number| self.observed[*number].unleased > 0),
            _ => false,
        }
    }

    /// Whether a replica that replays the whole log ends where the others are.
    pub(super) fn final_digest(&self) -> Option<u128> {
        self.digests.last().copied()
    }

    /// An edge sent a report: one number never has two contents.
    pub(super) fn report_sent(&mut self, report: &Report) {
        let first = *self
            .sent
            .entry((report.session, report.seq))
            .or_insert(report.hash);
        if first != report.hash {
            let text = format!(
                "report {} of session {} was sent with two contents",
                report.seq, report.session
            );
            self.fail("I9 reports", None, text);
        }
    }

    /// An edge was told that its reports up to a number are settled.
    pub(super) fn acknowledged(&mut self, session: SessionId, last_seq: Seq) {
        let applied = self
            .naive
            .sessions
            .get(&session)
            .map_or(0, |s| s.reports.len() as u64);
        if last_seq.0 > applied {
            let text = format!(
                "session {session}: report {last_seq} was acknowledged, the log has applied {applied}"
            );
            self.fail("I9 acknowledged ⊆ applied", None, text);
            return;
        }
        // What the edge now forgets must be in the log with the contents it sent.
        for seq in 1..=last_seq.0 {
            let sent = self.sent.get(&(session, Seq(seq))).copied();
            let hash = self.naive.hash_of(session, seq);
            if sent.is_some() && hash.is_some() && sent != hash {
                let text =
                    format!("session {session}: report {seq} was applied with other contents");
                self.fail("I9 reports", None, text);
            }
        }
        let gone: Vec<_> = self
            .sent
            .range((session, Seq(0))..=(session, last_seq))
            .map(|(key, _)| *key)
            .collect();
        for key in gone {
            self.sent.remove(&key);
        }
    }

    /// Units that can still be spent, wherever they are, are never more than what is out.
    pub(super) fn held(&mut self, number: usize, pools: u64) {
        let observed = &self.observed[number];
        let row = self.naive.row(&observed.account);
        let cells = observed.held_by_edges.get();
        let unsettled = observed.admitted.saturating_sub(row.settled - row.excess);
        if pools + cells + unsettled > row.out {
            let text = format!(
                "pools {pools} + cells {cells} + used and unreported {unsettled} > out {}",
                row.out
            );
            let account = observed.account.clone();
            self.fail("I2 conservation", Some(&account), text);
        }
    }

    /// Accounts, by the observer's number.
    pub(super) fn accounts(&self) -> impl Iterator<Item = (usize, &AccountId)> {
        self.observed
            .iter()
            .enumerate()
            .map(|(number, observed)| (number, &observed.account))
    }

    /// How many accounts are observed.
    pub(super) fn count(&self) -> usize {
        self.observed.len()
    }

    /// The account of a number; cheap.
    pub(super) fn account(&self, number: usize) -> AccountId {
        self.observed[number].account.clone()
    }

    pub(super) fn limit_of(&self, number: usize) -> (usize, usize) {
        self.observed[number].limit
    }

    /// At the end: every admitted unit of an edge is billed, but for what its crashes may have lost.
    pub(super) fn check_billing(&mut self, edge: usize) {
        for number in 0..self.observed.len() {
            let ByEdge {
                admitted,
                may_be_lost,
            } = self
                .by_edge
                .get(&(edge, number))
                .copied()
                .unwrap_or_default();
            let settled = self.settled_by(edge, number);
            let account = self.observed[number].account.clone();
            if settled > admitted {
                let text = format!("e{edge} admitted {admitted} units and was billed {settled}");
                self.fail("I10 billed ≤ admitted", Some(&account), text);
            }
            if admitted - settled.min(admitted) > may_be_lost {
                let text = format!(
                    "e{edge} admitted {admitted} units, {settled} are settled, its crashes may have lost {may_be_lost}"
                );
                self.fail("I10 metering gap", Some(&account), text);
            }
        }
    }

    /// At the end of a run without faults nothing is stranded.
    pub(super) fn check_nothing_stranded(&mut self, number: usize, pools: u64) {
        let observed = &self.observed[number];
        let row = self.naive.row(&observed.account);
        let cells = observed.held_by_edges.get();
        if pools + cells != row.out {
            let text = format!("pools {pools} + cells {cells} ≠ out {}", row.out);
            let account = observed.account.clone();
            self.fail("I2 exact", Some(&account), text);
        }
    }
}
