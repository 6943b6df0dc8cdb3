//! Issuers told by script, with the ledger beside them: one line per message, one per answer.
//!
//! A replica follows the ledger at once, and wakes its issuer, unless the script says `lag`; `applied` ends
//! that. A proposed position arrives when the script says `commit`, and its answer when it says
//! `answer`: both speak of the account's newest proposal, and each may come as often as the script likes.

use crate::words::Words;
use crate::world::{World, account, position_text, slot};
use std::collections::BTreeMap;
use tollgate_core::command::{Command, Position, PositionReply, Reply};
use tollgate_core::ids::{Boot, Epoch, LeaseNo, NodeId, Units};
use tollgate_core::issuer::{Issuer, Output, ResolveLease};
use tollgate_core::ledger::Ledger;
use tollgate_core::message::{
    AnswerLine, Held, Lease, LeaseAnswer, LeaseLine, LeaseState, SlotAnswer, SlotLease, SlotOutcome,
};
use tollgate_core::time::Mono;

struct Node {
    issuer: Issuer,
    replica: Ledger,
    lags: bool,
}

struct Proposal {
    by: u64,
    position: Position,
    reply: Option<PositionReply>,
}

pub(crate) struct IssuerScript {
    world: World,
    now: Mono,
    nodes: BTreeMap<u64, Node>,
    proposals: Vec<Proposal>,
    told: Vec<String>,
}

impl IssuerScript {
    pub(crate) fn new() -> Self {
        Self {
            world: World::new(),
            now: Mono(0),
            nodes: BTreeMap::new(),
            proposals: Vec::new(),
            told: Vec::new(),
        }
    }

    /// Runs one line of a script; answers with what came of it, one thing a line.
    pub(crate) fn run(&mut self, line: &str) -> String {
        let words = Words::new(line);
        let command = words.word();
        match command {
            "issuer" => self.start(&words),
            "lease" => self.lease(&words),
            "resolve" => self.resolve(&words),
            "held" => self.held(&words),
            "connected" | "disconnected" => self.connection(command, &words),
            "commit" => self.commit(words.word()),
            "answer" => self.answer(words.word()),
            "lag" => self.node(&words).lags = true,
            "applied" => {
                self.node(&words).lags = false;
                self.follow();
            }
            "wait" => self.wait(words.word().parse().unwrap()),
            "pool" => self.pool(&words),
            _ => return self.ledger(line),
        }
        words.end();
        self.outputs();
        std::mem::take(&mut self.told).join("\n")
    }

    fn ledger(&mut self, line: &str) -> String {
        let answer = self.world.run(line);
        self.follow();
        self.outputs();
        self.told.insert(0, answer);
        std::mem::take(&mut self.told).join("\n")
    }

    fn start(&mut self, words: &Words<'_>) {
        let (node, boot) = (words.need("node"), words.need("boot"));
        let issuer = Issuer::new(NodeId(node), Boot(boot));
        let replica = self.world.ledger.clone();
        self.nodes.insert(
            node,
            Node {
                issuer,
                replica,
                lags: false,
            },
        );
    }

    /// The node a line speaks to: the first, unless it names one.
    fn node(&mut self, words: &Words<'_>) -> &mut Node {
        self.nodes
            .get_mut(&words.get("at").unwrap_or(1))
            .expect("no such issuer")
    }

    fn follow(&mut self) {
        for node in self.nodes.values_mut().filter(|node| !node.lags) {
            node.replica = self.world.ledger.clone();
            node.issuer.handle_applied(self.now, &node.replica);
        }
    }

    fn lease(&mut self, words: &Words<'_>) {
        let now = self.now;
        let want = words.number("want");
        let line = LeaseLine {
            lease_no: LeaseNo(words.need("no")),
            carried: words.number("carried"),
            want_total: want,
            need_total: words.get("need").unwrap_or(want),
            surrendered_total: words.number("surrendered"),
            demand: words.number("demand"),
            closing: words.flag("closing"),
            account: account(words.word()),
        };
        let epoch = Epoch(words.get("epoch").unwrap_or(1));
        let part = SlotLease {
            slot: slot(),
            epoch,
            lines: vec![line],
        };
        let lease = Lease {
            boot: Boot(words.need("edge")),
            slots: vec![part],
        };
        let node = self.node(words);
        match node.issuer.handle_lease(now, &node.replica, &lease) {
            Some(answer) => self.tell_answer(&answer),
            None => self.told.push("no answer yet".into()),
        }
    }

    fn resolve(&mut self, words: &Words<'_>) {
        let now = self.now;
        let (boot, lease_no) = (Boot(words.need("edge")), LeaseNo(words.need("no")));
        let (want, need) = (words.number("want"), words.number("need"));
        let at = words.get::<u64>("at").unwrap_or(1);
        let accounts: Vec<_> = std::iter::from_fn(|| words.try_word())
            .map(account)
            .collect();
        let node = self.nodes.get_mut(&at).expect("no such issuer");
        let request = ResolveLease {
            boot,
            lease_no,
            want,
            need,
            accounts: &accounts,
        };
        match node.issuer.handle_resolve(now, &node.replica, &request) {
            Some(part) => self.tell_part(boot, &part),
            None => self
                .told
                .push("no lease part: another node issues this slot".into()),
        }
    }

    fn held(&mut self, words: &Words<'_>) {
        let now = self.now;
        let held = Held {
            boot: Boot(words.need("edge")),
            number: words.need("recall"),
            held: words.number("kept"),
            lease_no: LeaseNo(words.number("no")),
            granted_seen: words.number("seen"),
            account: account(words.word()),
        };
        let node = self.node(words);
        node.issuer.handle_held(now, &node.replica, &held);
    }

    fn connection(&mut self, command: &str, words: &Words<'_>) {
        let boot = Boot(words.need("edge"));
        let issuer = &mut self.node(words).issuer;
        match command {
            "connected" => issuer.handle_connected(boot),
            _ => issuer.handle_disconnected(boot),
        }
    }

    /// The newest proposal for an account.
    fn proposal(&mut self, name: &str) -> &mut Proposal {
        let newest = self.proposals.iter_mut().rev().find(|proposal| {
            let accounts = proposal.position.lines.iter().map(|line| &line.account);
            accounts
                .into_iter()
                .any(|account| limit_name(account.as_str()) == name)
        });
        newest.expect("nothing was proposed for this account")
    }

    /// The ledger applies a position, perhaps for the second time.
    fn commit(&mut self, name: &str) {
        let position = self.proposal(name).position.clone();
        let Reply::Position(reply) = self.world.tell(Command::Position(position)) else {
            panic!("a position is answered as one");
        };
        self.told
            .push(format!("ledger: {name} {}", position_text(&reply.outcome)));
        let alarms = self.world.ledger.take_alarms();
        assert!(alarms.is_empty(), "{alarms:?}");
        self.proposal(name).reply = Some(reply);
        self.follow();
    }

    /// The ledger's answer reaches the issuer.
    fn answer(&mut self, name: &str) {
        let now = self.now;
        let proposal = self.proposal(name);
        let (by, reply) = (
            proposal.by,
            proposal.reply.clone().expect("it was not committed"),
        );
        let node = self.nodes.get_mut(&by).expect("no such issuer");
        node.issuer.handle_position(now, &node.replica, &reply);
    }

    fn wait(&mut self, ms: u64) {
        self.now = self.now.plus_ms(ms);
        for node in self.nodes.values_mut() {
            node.issuer.handle_timeout(self.now, &node.replica);
        }
    }

    fn pool(&mut self, words: &Words<'_>) {
        let account = account(words.word());
        let issuer = &self.node(words).issuer;
        let (pool, counts) = (issuer.pool(&account), issuer.counts());
        self.told.push(format!(
            "pool {pool}; in all: granted {}, stranded {}, recalls {}",
            counts.granted, counts.stranded, counts.recalls
        ));
    }

    fn outputs(&mut self) {
        let mut nodes = std::mem::take(&mut self.nodes);
        for (number, node) in &mut nodes {
            while let Some(output) = node.issuer.poll() {
                match output {
                    Output::Propose(position) => self.propose(*number, position),
                    Output::Answer(answer) => self.tell_answer(&answer),
                    Output::Recall { to, recall } => self.told.push(format!(
                        "-> edge {to}: recall {} of {} under epoch {}",
                        recall.number,
                        limit_name(recall.account.as_str()),
                        recall.epoch
                    )),
                }
            }
        }
        self.nodes = nodes;
    }

    fn propose(&mut self, by: u64, position: Position) {
        let line = |line: &tollgate_core::command::PositionLine| {
            let name = limit_name(line.account.as_str());
            format!(
                "{name} acquired {}, returned {}",
                line.acquired_total, line.returned_total
            )
        };
        let lines: Vec<String> = position.lines.iter().map(line).collect();
        self.told.push(format!(
            "-> ledger: {} under epoch {}",
            lines.join("; "),
            position.epoch
        ));
        self.proposals.push(Proposal {
            by,
            position,
            reply: None,
        });
    }

    fn tell_answer(&mut self, answer: &LeaseAnswer) {
        for part in &answer.slots {
            self.tell_part(answer.boot, part);
        }
    }

    fn tell_part(&mut self, boot: Boot, part: &SlotAnswer) {
        let told = match &part.outcome {
            SlotOutcome::Lines { lines, .. } if lines.is_empty() => {
                vec![format!("-> edge {boot}: no lines")]
            }
            SlotOutcome::Lines { lines, epoch } => {
                let text =
                    |line| format!("-> edge {boot}: {} under epoch {epoch}", line_text(line));
                lines.iter().map(text).collect()
            }
            SlotOutcome::WrongEpoch(route) => {
                let owner = route
                    .owner
                    .map_or("nobody".into(), |(node, _)| format!("node {node}"));
                vec![format!(
                    "-> edge {boot}: wrong epoch, {owner} owns epoch {}",
                    route.epoch
                )]
            }
            SlotOutcome::Fenced => vec![format!("-> edge {boot}: fenced")],
        };
        self.told.extend(told);
    }
}

/// The limit's name in an account's.
pub(crate) fn limit_name(account: &str) -> &str {
    account.split('/').nth(4).unwrap()
}

fn line_text(line: &AnswerLine) -> String {
    let surrendered = match line.surrendered_total {
        0 => String::new(),
        units => format!(", surrendered {units}"),
    };
    let need = match line.need_total {
        0 => String::new(),
        units => format!(" for a need of {units}"),
    };
    let remaining: Units = line.remaining;
    format!(
        "{} no {}: {}{need}, granted {}{surrendered}, remaining {remaining}",
        limit_name(line.account.as_str()),
        line.lease_no,
        state_text(line.state),
        line.granted_total,
    )
}

/// A state in the words of the design.
pub(crate) fn state_text(state: LeaseState) -> &'static str {
    match state {
        LeaseState::Granted => "granted",
        LeaseState::Pending => "pending",
        LeaseState::Recalling => "recalling",
        LeaseState::NoneNow => "none_now",
        LeaseState::NoneForGood => "none_for_good",
        LeaseState::Closed => "closed",
        LeaseState::NoLimit => "no_limit",
        LeaseState::Stale => "stale",
    }
}
