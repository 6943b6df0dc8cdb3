//! A ledger told by script: one line per command, one line per answer.

use std::collections::VecDeque;
use std::sync::Arc;
use tollgate_core::account::{AccountId, Environment, Name, Per, Window};
use tollgate_core::admin::{AdminCommand, Change, Item};
use tollgate_core::catalog::{Limit, Overage, PepperId, SecretMac};
use tollgate_core::command::{
    Assign, CloseSession, Command, Entry, LineOutcome, OpenNode, OpenSession, Position,
    PositionLine, PositionOutcome, Reply, Report, SpentLine, UsageLine,
};
use tollgate_core::ids::{Boot, Epoch, Incarnation, NodeId, Nonce, Seq, SessionId, Slot};
use tollgate_core::ledger::Ledger;
use tollgate_core::time::LedgerTime;

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// The account of customer `acme` under a limit's name.
pub(crate) fn account(limit: &str) -> AccountId {
    AccountId::parse(&format!("live/acme/-/customer/{limit}/open")).unwrap()
}

pub(crate) fn slot() -> Slot {
    account("calls").slot()
}

/// One customer, `acme`, with one licence and one quota per name given.
pub(crate) fn catalog(limits: &[(&str, u64)]) -> Command {
    let limit = |(limit, quota): &(&str, u64)| Limit {
        name: name(limit),
        meter: name("requests"),
        per: Per::Customer,
        quota: *quota,
        window: Window::Open,
        overage: Overage::Reject,
    };
    let items = vec![
        Item::Plan {
            id: name("plan"),
            limits: limits.iter().map(limit).collect(),
        },
        Item::Customer { id: name("acme") },
        Item::License {
            id: name("acme-1"),
            customer: name("acme"),
            plan: name("plan"),
            version: None,
            status: None,
        },
        Item::Key {
            id: name("k1"),
            license: name("acme-1"),
            environment: Environment::Live,
            mac: Some(SecretMac {
                hmac: [1; 32],
                pepper: PepperId(1),
            }),
        },
    ];
    apply(items)
}

/// A change of the catalog.
pub(crate) fn apply(items: Vec<Item>) -> Command {
    Command::Admin(Box::new(AdminCommand {
        principal: name("ops"),
        idempotency_key: None,
        base_revision: None,
        reason: Arc::from("a test"),
        change: Change::Apply { items },
    }))
}

pub(crate) fn report(session: u64, boot: u64, seq: u64, spent: Vec<SpentLine>) -> Report {
    let usage = vec![UsageLine {
        environment: Environment::Live,
        license: name("acme-1"),
        key: name("k1"),
        meter: name("requests"),
        units: spent.iter().map(|line| line.leased + line.unleased).sum(),
    }];
    let (session, boot, seq) = (SessionId(session), Boot(boot), Seq(seq));
    let hash = Report::content_hash(session, seq, &spent, &usage);
    Report {
        session,
        boot,
        seq,
        hash,
        spent,
        usage,
    }
}

pub(crate) struct World {
    pub(crate) ledger: Ledger,
    index: u64,
}

impl World {
    pub(crate) fn new() -> Self {
        Self {
            ledger: Ledger::new(Incarnation(1)),
            index: 0,
        }
    }

    pub(crate) fn tell(&mut self, command: Command) -> Reply {
        self.index += 1;
        let entry = Entry {
            time: LedgerTime(self.index * 1000),
            commands: vec![command],
        };
        self.ledger.apply(self.index, &entry).remove(0)
    }

    /// Runs one line of a script.
    pub(crate) fn run(&mut self, line: &str) -> String {
        let mut words: VecDeque<&str> = line.split_whitespace().collect();
        let command = words.pop_front().unwrap();
        let mut number = |what: &str| -> u64 {
            let word = words
                .iter()
                .position(|w| w.starts_with(&format!("{what}=")))
                .map(|i| {
                    words
                        .remove(i)
                        .unwrap()
                        .split_once('=')
                        .unwrap()
                        .1
                        .parse()
                        .unwrap()
                });
            word.unwrap_or_else(|| panic!("{line}: {what}= is missing"))
        };
        match command {
            "catalog" => {
                let limits: Vec<(&str, u64)> = words
                    .iter()
                    .map(|w| w.split_once('=').unwrap())
                    .map(|(name, quota)| (name, quota.parse().unwrap()))
                    .collect();
                self.tell(catalog(&limits));
                String::from("applied")
            }
            "open-node" => {
                let open = OpenNode {
                    node: NodeId(number("node")),
                    nonce: Nonce(number("nonce")),
                };
                self.answer(Command::OpenNode(open))
            }
            "assign" => {
                let (node, boot) = (NodeId(number("node")), Boot(number("boot")));
                let slots = vec![(slot(), Epoch(number("expected")))];
                self.answer(Command::Assign(Assign { slots, node, boot }))
            }
            "open-session" => {
                let nonce = Nonce(number("nonce"));
                let session = words.iter().find_map(|w| w.strip_prefix("session="));
                let session = session.map(|id| SessionId(id.parse().unwrap()));
                let identity = name("edge-1");
                let incarnation = Incarnation(1);
                self.answer(Command::OpenSession(OpenSession {
                    session,
                    nonce,
                    identity,
                    incarnation,
                }))
            }
            "position" => {
                let epoch = Epoch(number("epoch"));
                let (acquired_total, returned_total) = (number("acquired"), number("returned"));
                let line = PositionLine {
                    account: account(words[0]),
                    acquired_total,
                    returned_total,
                };
                self.answer(Command::Position(Position {
                    slot: slot(),
                    epoch,
                    lines: vec![line],
                }))
            }
            "report" => {
                let (session, boot, seq) = (number("session"), number("boot"), number("seq"));
                let spent = words.iter().map(|w| spent(w)).collect();
                self.answer(Command::Report(report(session, boot, seq, spent)))
            }
            "close" => {
                let (session, boot) = (SessionId(number("session")), Boot(number("boot")));
                let last_seq = Seq(number("seq"));
                self.answer(Command::CloseSession(CloseSession {
                    session,
                    boot,
                    last_seq,
                }))
            }
            "show" => self.show(words[0]),
            other => panic!("no such command: {other}"),
        }
    }

    fn answer(&mut self, command: Command) -> String {
        let text = match self.tell(command) {
            Reply::Position(reply) => position_text(&reply.outcome),
            Reply::OpenNode(reply) => format!("{reply:?}"),
            Reply::OpenSession(reply) => format!("{reply:?}"),
            Reply::Assign(reply) => {
                format!("{reply:?}").replace(&format!("{:?}", slot()), "the slot")
            }
            Reply::Report(reply) | Reply::CloseSession(reply) => format!("{reply:?}"),
            other => format!("{other:?}"),
        };
        let alarms = self.ledger.take_alarms();
        if alarms.is_empty() {
            text
        } else {
            format!("{text}\nalarm: {alarms:?}")
        }
    }

    fn show(&self, limit: &str) -> String {
        let account = account(limit);
        let Some(row) = self.ledger.account(&account) else {
            return String::from("no row");
        };
        format!(
            "settled {}, out {}, excess {}, limit {}; under epoch {}: acquired {}, returned {}",
            row.settled,
            row.out,
            row.excess,
            self.ledger
                .limit(&account)
                .map_or("none".into(), |limit| limit.to_string()),
            row.epoch,
            row.acquired_total,
            row.returned_total
        )
    }
}

/// What became of a position, line by line.
pub(crate) fn position_text(outcome: &PositionOutcome) -> String {
    let PositionOutcome::Lines(lines) = outcome else {
        return format!("{outcome:?}");
    };
    let text = |outcome: &LineOutcome| match outcome {
        LineOutcome::Stands {
            acquired_total,
            returned_total,
        } => format!("stands: acquired {acquired_total}, returned {returned_total}"),
        other => format!("{other:?}"),
    };
    let texts: Vec<String> = lines.iter().map(|(_, outcome)| text(outcome)).collect();
    texts.join("; ")
}

/// `calls:30` is 30 leased units; `calls:30/5` has 5 unleased ones as well.
fn spent(word: &str) -> SpentLine {
    let (limit, units) = word.split_once(':').unwrap();
    let (leased, unleased) = units.split_once('/').unwrap_or((units, "0"));
    SpentLine {
        account: account(limit),
        leased: leased.parse().unwrap(),
        unleased: unleased.parse().unwrap(),
    }
}
