//! One edge's lessee told by script: what it hears, what its checks do, and what it says to whom.
//!
//! After every line the lessee is polled, so a message appears under the line that caused it.

use crate::issuer_script::{limit_name, state_text};
use crate::words::Words;
use crate::world::{account, slot};
use std::cell::Cell as Number;
use std::rc::Rc;
use tollgate_core::ids::{Boot, Epoch, Incarnation, LeaseNo, NodeId, Revision, Units};
use tollgate_core::lessee::{Cell, Lessee, Output, Refusal};
use tollgate_core::message::{
    AnswerLine, Lease, LeaseAnswer, LeaseLine, LeaseState, Recall, Route, SlotAnswer, SlotOutcome,
};
use tollgate_core::time::Mono;

/// A cell in plain numbers; clones are the same cell.
#[derive(Clone, Default)]
pub(crate) struct PlainCell(Rc<Numbers>);

#[derive(Default)]
struct Numbers {
    free: Number<Units>,
    used: Number<Units>,
    refusal: Number<Option<Refusal>>,
}

impl PlainCell {
    /// Admits a check, if the units are there.
    pub(crate) fn spend(&self, units: Units) -> bool {
        let there = self.0.free.get() >= units;
        if there {
            self.0.free.set(self.0.free.get() - units);
            self.0.used.set(self.0.used.get() + units);
        }
        there
    }

    pub(crate) fn refusal(&self) -> Option<Refusal> {
        self.0.refusal.get()
    }
}

impl Cell for PlainCell {
    fn deposit(&self, units: Units) {
        self.0.free.set(self.0.free.get() + units);
    }

    fn withdraw(&self, at_most: Units) -> Units {
        let units = at_most.min(self.0.free.get());
        self.0.free.set(self.0.free.get() - units);
        units
    }

    fn free(&self) -> Units {
        self.0.free.get()
    }

    fn used(&self) -> Units {
        self.0.used.get()
    }

    fn set_refusal(&self, refusal: Option<Refusal>) {
        self.0.refusal.set(refusal);
    }
}

/// Node `n` speaks under boot `n`.
fn node(number: u64) -> (NodeId, Boot) {
    (NodeId(number), Boot(number))
}

fn revision(index: u64) -> Revision {
    let incarnation = Incarnation(1);
    Revision { incarnation, index }
}

/// How often a driver measures its cells.
const OBSERVE_MS: u64 = 250;

pub(crate) struct LesseeScript {
    lessee: Lessee<PlainCell>,
    now: Mono,
    observed: Mono,
}

impl LesseeScript {
    pub(crate) fn new() -> Self {
        Self::of(Boot(9))
    }

    fn of(boot: Boot) -> Self {
        let (now, observed) = (Mono(0), Mono(0));
        let lessee = Lessee::new(boot);
        Self {
            lessee,
            now,
            observed,
        }
    }

    /// Runs one line of a script; answers with what came of it, one thing a line.
    pub(crate) fn run(&mut self, line: &str) -> String {
        let words = Words::new(line);
        let now = self.now;
        let mut told = Vec::new();
        match words.word() {
            "edge" => *self = Self::of(Boot(words.need("boot"))),
            "route" => self.route(&words),
            "draw" => told.push(format!("no {}", self.lessee.draw())),
            "open" => {
                let resolved = words.get("resolved").map(LeaseNo);
                self.lessee
                    .open(now, &account(words.word()), PlainCell::default(), resolved);
            }
            "check" => told.push(self.check(&words)),
            "answer" => self.answer(&words),
            "wrong-epoch" => self.wrong_epoch(&words),
            "fenced" => self.outcome(1, 0, SlotOutcome::Fenced),
            "recall" => self.recall(&words),
            "revision" => {
                let index = words.word().parse().unwrap();
                self.lessee.handle_revision(revision(index));
            }
            "wait" => {
                self.now = now.plus_ms(words.word().parse().unwrap());
                if self.now.since_ms(self.observed) >= OBSERVE_MS {
                    self.observed = self.now;
                    self.lessee.observe(self.now);
                }
            }
            "surrender-all" => self.lessee.surrender_all(),
            "show" => told.push(self.show(words.word())),
            other => panic!("no such command: {other}"),
        }
        words.end();
        while let Some(output) = self.lessee.poll(self.now) {
            told.push(output_text(&output));
        }
        told.join("\n")
    }

    fn route(&mut self, words: &Words<'_>) {
        let (epoch, owner) = (Epoch(words.need("epoch")), Some(node(words.need("node"))));
        let route = Route {
            slot: slot(),
            epoch,
            owner,
        };
        self.lessee.handle_routes(self.now, &[route]);
    }

    /// A check of some cost: admitted from the cell, refused from memory, or it asks and waits.
    fn check(&mut self, words: &Words<'_>) -> String {
        let cost = words.need("cost");
        let account = account(words.word());
        let cell = self
            .lessee
            .cell(&account)
            .expect("the account is not open")
            .clone();
        if cell.spend(cost) {
            return String::from("admitted");
        }
        match cell.refusal() {
            Some(refusal) if refusal.refuses(self.now, cost - cell.free()) => {
                format!("refused from memory: {}", state_text(refusal.state))
            }
            _ => {
                self.lessee.handle_want(self.now, &account, cost);
                String::from("waits")
            }
        }
    }

    fn answer(&mut self, words: &Words<'_>) {
        let line = AnswerLine {
            lease_no: LeaseNo(words.need("no")),
            granted_total: words.number("granted"),
            surrendered_total: words.number("surrendered"),
            need_total: words.number("need"),
            remaining: words.number("remaining"),
            account: account(words.word()),
            state: state(words.word()),
        };
        let epoch = Epoch(words.get("epoch").unwrap_or(1));
        let outcome = SlotOutcome::Lines {
            epoch,
            lines: vec![line],
        };
        self.outcome(
            words.get("from").unwrap_or(1),
            words.number("revision"),
            outcome,
        );
    }

    fn wrong_epoch(&mut self, words: &Words<'_>) {
        let (epoch, owner) = (Epoch(words.need("epoch")), Some(node(words.need("node"))));
        let route = Route {
            slot: slot(),
            epoch,
            owner,
        };
        self.outcome(1, 0, SlotOutcome::WrongEpoch(route));
    }

    fn outcome(&mut self, from: u64, at: u64, outcome: SlotOutcome) {
        let boot = self.lessee.boot();
        let slots = vec![SlotAnswer {
            slot: slot(),
            outcome,
        }];
        let answer = LeaseAnswer {
            boot,
            revision: revision(at),
            slots,
        };
        self.lessee.handle_answer(self.now, node(from), &answer);
    }

    fn recall(&mut self, words: &Words<'_>) {
        let recall = Recall {
            slot: slot(),
            epoch: Epoch(words.get("epoch").unwrap_or(1)),
            number: words.need("number"),
            keep: words.get("keep").unwrap_or(0),
            account: account(words.word()),
        };
        let from = node(words.get("from").unwrap_or(1));
        self.lessee.handle_recall(self.now, from, &recall);
    }

    fn show(&self, limit: &str) -> String {
        let Some(cell) = self.lessee.cell(&account(limit)) else {
            return String::from("not open");
        };
        let refusal = match cell.refusal() {
            None => String::from("none"),
            Some(Refusal { state, until, need }) => {
                let until = until.map_or(String::from("until the catalog changes"), |until| {
                    format!("for {} ms", until.since_ms(self.now))
                });
                format!("{} of {need} {until}", state_text(state))
            }
        };
        let waits = if self.lessee.is_waiting() {
            ", waits for an answer"
        } else {
            ""
        };
        format!(
            "free {}, used {}, refusal: {refusal}{waits}",
            cell.free(),
            cell.used()
        )
    }
}

fn state(word: &str) -> LeaseState {
    let all = [
        LeaseState::Granted,
        LeaseState::Pending,
        LeaseState::Recalling,
        LeaseState::NoneNow,
        LeaseState::NoneForGood,
        LeaseState::Closed,
        LeaseState::NoLimit,
        LeaseState::Stale,
    ];
    let found = all.into_iter().find(|state| state_text(*state) == word);
    found.unwrap_or_else(|| panic!("no such state: {word}"))
}

fn output_text(output: &Output) -> String {
    match output {
        Output::Lease { to, lease } => format!("-> node {to}: {}", lease_text(lease)),
        Output::Held { to, held } => {
            format!(
                "-> node {to}: recall {} answered, {} held, {} seen under no {}",
                held.number, held.held, held.granted_seen, held.lease_no
            )
        }
        Output::Fenced => String::from("this boot is fenced"),
    }
}

fn lease_text(lease: &Lease) -> String {
    let parts = lease.slots.iter().flat_map(|part| {
        let text = |line| format!("lease {} under epoch {}", line_text(line), part.epoch);
        part.lines.iter().map(text)
    });
    parts.collect::<Vec<_>>().join("; ")
}

fn line_text(line: &LeaseLine) -> String {
    let name = limit_name(line.account.as_str());
    let mut text = format!("{name} no {}: want {}", line.lease_no, line.want_total);
    let others = [
        ("need", line.need_total),
        ("carried", line.carried),
        ("surrendered", line.surrendered_total),
        ("demand", line.demand),
    ];
    for (what, units) in others.into_iter().filter(|(_, units)| *units > 0) {
        text.push_str(&format!(", {what} {units}"));
    }
    if line.closing {
        text.push_str(", closing");
    }
    text
}
