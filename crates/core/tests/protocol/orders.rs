//! Cumulative messages in every order, exhaustively: few messages, each none to several times, the last one
//! at the end. What was said last stands, and nothing is counted twice on the way.

use crate::lessee_script::PlainCell;
use crate::world::{World, account, catalog, name, slot};
use tollgate_core::command::{
    Assign, Command, OpenNode, OpenSession, Position, PositionLine, Reply,
};
use tollgate_core::ids::{Boot, Epoch, Incarnation, LeaseNo, NodeId, Nonce, Revision, Units};
use tollgate_core::issuer::{Issuer, Output};
use tollgate_core::ledger::Ledger;
use tollgate_core::lessee::{Cell, Lessee};
use tollgate_core::message::{
    AnswerLine, Lease, LeaseAnswer, LeaseLine, LeaseState, Route, SlotAnswer, SlotLease,
    SlotOutcome,
};
use tollgate_core::time::Mono;

const NOW: Mono = Mono(1000);

/// Every sequence of `length` numbers below `messages`, each followed by the last number.
fn every_order(messages: usize, length: u32) -> impl Iterator<Item = Vec<usize>> {
    (0..messages.pow(length)).map(move |mut code| {
        let mut order = Vec::new();
        for _ in 0..length {
            order.push(code % messages);
            code /= messages;
        }
        order.push(messages - 1);
        order
    })
}

fn answer(lease_no: u64, granted_total: Units, state: LeaseState) -> LeaseAnswer {
    let line = AnswerLine {
        account: account("calls"),
        lease_no: LeaseNo(lease_no),
        granted_total,
        surrendered_total: 0,
        need_total: 12,
        remaining: 0,
        state,
    };
    let outcome = SlotOutcome::Lines {
        epoch: Epoch(1),
        lines: vec![line],
    };
    let slots = vec![SlotAnswer {
        slot: slot(),
        outcome,
    }];
    LeaseAnswer {
        boot: Boot(2),
        revision: Revision::default(),
        slots,
    }
}

#[test]
fn a_lessee_holds_what_the_last_answer_says_whatever_the_order() {
    let answers = [
        answer(1, 0, LeaseState::Pending),
        answer(1, 5, LeaseState::Granted),
        answer(1, 5, LeaseState::NoneNow),
        answer(1, 9, LeaseState::Recalling),
        answer(1, 12, LeaseState::Granted),
    ];
    let owner = (NodeId(1), Boot(1));
    for order in every_order(answers.len(), 5) {
        let mut lessee = Lessee::new(Boot(2));
        let route = Route {
            slot: slot(),
            epoch: Epoch(1),
            owner: Some(owner),
        };
        lessee.handle_routes(NOW, &[route]);
        lessee.open(NOW, &account("calls"), PlainCell::default(), None);
        lessee.handle_want(NOW, &account("calls"), 12);
        let cell = lessee.cell(&account("calls")).unwrap().clone();
        let mut highest = 0;
        for at in &order {
            let SlotOutcome::Lines { lines, .. } = &answers[*at].slots[0].outcome else {
                unreachable!("all answers have lines");
            };
            highest = highest.max(lines[0].granted_total);
            lessee.handle_answer(NOW, owner, &answers[*at]);
            assert_eq!(cell.free(), highest, "{order:?}");
        }
        assert_eq!(
            (cell.free(), cell.refusal(), lessee.is_waiting()),
            (12, None, false)
        );
    }
}

/// A ledger with a catalog, one issuer and two edges, boots 2 and 3; 7 units are out under its first epoch, the second stands.
pub(crate) fn opened(catalog: Command) -> Ledger {
    let mut world = World::new();
    world.tell(catalog);
    world.tell(Command::OpenNode(OpenNode {
        node: NodeId(1),
        nonce: Nonce(1),
    }));
    let assign = |epoch| {
        Command::Assign(Assign {
            slots: vec![(slot(), Epoch(epoch))],
            node: NodeId(1),
            boot: Boot(1),
        })
    };
    world.tell(assign(0));
    let acquired = PositionLine {
        account: account("calls"),
        acquired_total: 7,
        returned_total: 0,
    };
    world.tell(Command::Position(Position {
        slot: slot(),
        epoch: Epoch(1),
        lines: vec![acquired],
    }));
    world.tell(assign(1));
    for nonce in 1..=2 {
        world.tell(Command::OpenSession(OpenSession {
            session: None,
            nonce: Nonce(nonce),
            identity: name("edge"),
            incarnation: Incarnation(1),
        }));
    }
    world.ledger
}

fn line(lease_no: u64, carried: Units, want_total: Units, surrendered_total: Units) -> LeaseLine {
    LeaseLine {
        account: account("calls"),
        lease_no: LeaseNo(lease_no),
        carried,
        want_total,
        need_total: want_total,
        surrendered_total,
        demand: 0,
        closing: false,
    }
}

fn ask(issuer: &mut Issuer, ledger: &Ledger, boot: u64, line: LeaseLine) -> AnswerLine {
    let slots = vec![SlotLease {
        slot: slot(),
        epoch: Epoch(2),
        lines: vec![line],
    }];
    let lease = Lease {
        boot: Boot(boot),
        slots,
    };
    let answer = issuer.handle_lease(NOW, ledger, &lease).unwrap();
    let SlotOutcome::Lines { lines, .. } = &answer.slots[0].outcome else {
        panic!("the issuer owns the slot: {answer:?}");
    };
    lines[0].clone()
}

/// An issuer with 50 units in its pool, and the ledger that let them out.
fn with_a_pool() -> (Ledger, Issuer) {
    let mut ledger = opened(catalog(&[("calls", 1000)]));
    let mut issuer = Issuer::new(NodeId(1), Boot(1));
    ask(&mut issuer, &ledger, 3, line(1, 0, 50, 0));
    let Some(Output::Propose(position)) = issuer.poll() else {
        panic!("an empty pool is filled");
    };
    let index = ledger.index() + 1;
    ledger.begin(index, ledger.time());
    let reply = ledger.apply_command(&Command::Position(position));
    assert!(matches!(reply, Reply::Position(_)));
    issuer.handle_applied(NOW, &ledger);
    ask(&mut issuer, &ledger, 3, line(1, 0, 50, 50));
    assert_eq!(issuer.pool(&account("calls")), 50);
    (ledger, issuer)
}

#[test]
fn an_issuer_counts_what_the_last_line_says_whatever_the_order() {
    let lines = [
        line(1, 0, 5, 0),
        line(1, 0, 9, 2),
        line(1, 0, 9, 9),
        line(2, 7, 4, 0),
        line(2, 7, 4, 6),
    ];
    for order in every_order(lines.len(), 5) {
        let (ledger, mut issuer) = with_a_pool();
        // What each of the two openings was granted and surrendered, by the highest answer.
        let mut openings = [(0, 0), (0, 0)];
        for at in &order {
            let answer = ask(&mut issuer, &ledger, 2, lines[*at].clone());
            let opening = &mut openings[usize::try_from(answer.lease_no.0).unwrap() - 1];
            if answer.state != LeaseState::Stale {
                opening.0 = opening.0.max(answer.granted_total);
                opening.1 = opening.1.max(answer.surrendered_total);
            }
            let [(first, back), (second, carried_back)] = openings;
            let pool = 50 - first + back - second + carried_back;
            assert_eq!(issuer.pool(&account("calls")), pool, "{order:?}");
        }
        assert_eq!(openings[1], (4, 6), "{order:?}");
    }
}
