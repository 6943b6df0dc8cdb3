//! An edge with very many accounts: no message of its lessee outgrows a frame, and nothing is left unsaid.

use crate::lessee_script::PlainCell;
use std::collections::BTreeMap;
use tollgate_core::account::AccountId;
use tollgate_core::command::LINES_MAX;
use tollgate_core::ids::{Boot, Epoch, LeaseNo, NodeId, Revision, Slot, Units};
use tollgate_core::lessee::{Cell, LEASE_BYTES_MAX, LEASE_LINES_MAX, Lessee, Output};
use tollgate_core::message::{
    AnswerLine, Lease, LeaseAnswer, LeaseState, Route, SlotAnswer, SlotOutcome,
};
use tollgate_core::time::Mono;

const EDGE: Boot = Boot(9);
const ACCOUNTS: usize = 20_000;

fn owner(node: u64) -> (NodeId, Boot) {
    (NodeId(node), Boot(node))
}

fn routes(epoch: u64, node: u64) -> Vec<Route> {
    let route = |slot| Route {
        slot,
        epoch: Epoch(epoch),
        owner: Some(owner(node)),
    };
    Slot::all().map(route).collect()
}

/// Names of 50 to 300 bytes, `per_customer` in a slot.
fn accounts(count: usize, per_customer: usize) -> Vec<AccountId> {
    let account = |number: usize| {
        let customer = format!("customer-{}", number / per_customer);
        let key = "k".repeat(1 + number % 55);
        AccountId::parse(&format!(
            "live/{customer}/-/key={key}{number}/{}/open",
            "l".repeat(1 + number % 55)
        ))
        .unwrap()
    };
    (0..count).map(account).collect()
}

/// The issuer grants 5 units under an opening.
fn grant(lessee: &mut Lessee<PlainCell>, now: Mono, account: &AccountId, lease_no: LeaseNo) {
    let line = AnswerLine {
        account: account.clone(),
        lease_no,
        granted_total: 5,
        surrendered_total: 0,
        need_total: 0,
        remaining: 100,
        state: LeaseState::Granted,
    };
    let part = SlotAnswer {
        slot: account.slot(),
        outcome: SlotOutcome::Lines {
            epoch: Epoch(1),
            lines: vec![line],
        },
    };
    lessee.handle_slot_answer(now, owner(1), Revision::default(), &part);
}

/// A lessee with all of these open, each with 5 units of its first opening, all slots of node 1.
fn lessee(accounts: &[AccountId]) -> (Lessee<PlainCell>, BTreeMap<AccountId, PlainCell>) {
    let mut lessee = Lessee::new(EDGE);
    lessee.handle_routes(Mono(0), &routes(1, 1));
    let mut cells = BTreeMap::new();
    for account in accounts {
        let cell = PlainCell::default();
        let lease_no = lessee.draw();
        lessee.open(Mono(0), account, cell.clone(), Some(lease_no));
        cells.insert(account.clone(), cell);
        grant(&mut lessee, Mono(0), account, lease_no);
    }
    assert_eq!(lessee.poll(Mono(0)), None);
    (lessee, cells)
}

fn leases(lessee: &mut Lessee<PlainCell>, now: Mono) -> Vec<Lease> {
    let outputs = std::iter::from_fn(|| lessee.poll(now));
    let lease = |output| match output {
        Output::Lease { lease, .. } => lease,
        other => panic!("{other:?}"),
    };
    outputs.map(lease).collect()
}

/// Its bytes with every number at its widest: nine bytes each, three for a length or a slot.
fn widest_bytes(lease: &Lease) -> usize {
    let part = |part: &tollgate_core::message::SlotLease| {
        let lines = part
            .lines
            .iter()
            .map(|line| 3 + line.account.as_str().len() + 6 * 9 + 1);
        3 + 9 + 3 + lines.sum::<usize>()
    };
    1 + 9 + 3 + lease.slots.iter().map(part).sum::<usize>()
}

fn answer(lease: &Lease) -> LeaseAnswer {
    let slots = lease.slots.iter().map(|part| {
        let lines = part.lines.iter().map(|line| AnswerLine {
            account: line.account.clone(),
            lease_no: line.lease_no,
            granted_total: 5,
            surrendered_total: line.surrendered_total,
            need_total: 0,
            remaining: Units::MAX,
            state: LeaseState::Closed,
        });
        SlotAnswer {
            slot: part.slot,
            outcome: SlotOutcome::Lines {
                epoch: part.epoch,
                lines: lines.collect(),
            },
        }
    });
    LeaseAnswer {
        boot: EDGE,
        revision: Revision::default(),
        slots: slots.collect(),
    }
}

fn assert_within_bounds(leases: &[Lease]) {
    for lease in leases {
        let lines: usize = lease.slots.iter().map(|part| part.lines.len()).sum();
        assert!(lines <= LEASE_LINES_MAX, "{lines} lines");
        assert!(lease.slots.iter().all(|part| part.lines.len() <= LINES_MAX));
        let bytes = widest_bytes(lease);
        assert!(bytes <= LEASE_BYTES_MAX, "{bytes} bytes");
    }
}

#[test]
fn a_clean_end_of_very_many_accounts_is_said_in_messages_that_fit() {
    for per_customer in [1, 20, 3 * LINES_MAX] {
        let accounts = accounts(ACCOUNTS, per_customer);
        let (mut lessee, cells) = lessee(&accounts);
        lessee.surrender_all();
        let sent = leases(&mut lessee, Mono(1));
        assert_within_bounds(&sent);
        let lines = sent.iter().flat_map(|lease| &lease.slots);
        let lines = lines.flat_map(|part| &part.lines);
        let surrendered: Units = lines.map(|line| line.surrendered_total).sum();
        assert_eq!(surrendered, 5 * ACCOUNTS as u64, "each line once");
        // As few as the bounds allow, but for slots that are full.
        assert!(sent.len() < 2 * ACCOUNTS / 256, "{} messages", sent.len());
        // Said again only when an issuer has had time for that much, and then once.
        let again_at = (2..2000).find(|now| !leases(&mut lessee, Mono(*now)).is_empty());
        let again_at = again_at.unwrap();
        assert!(
            again_at > 20 * ACCOUNTS as u64 / LEASE_LINES_MAX as u64,
            "{again_at}"
        );
        assert_eq!(lessee.poll(Mono(again_at + 1)), None);
        for lease in &sent {
            lessee.handle_answer(Mono(2), owner(1), &answer(lease));
        }
        assert!(lessee.surrendered_everything());
        assert!(cells.values().all(|cell| cell.free() == 0));
        assert_eq!(lessee.poll(Mono(60_000)), None);
    }
}

#[test]
fn accounts_that_go_idle_together_are_handed_in_by_messages_that_fit() {
    let accounts = accounts(ACCOUNTS, 20);
    let (mut lessee, _) = lessee(&accounts);
    lessee.observe(Mono(30_000));
    let sent = leases(&mut lessee, Mono(30_000));
    assert_within_bounds(&sent);
    let lines = sent.iter().flat_map(|lease| &lease.slots);
    assert_eq!(lines.map(|part| part.lines.len()).sum::<usize>(), ACCOUNTS);
}

#[test]
fn a_takeover_of_every_slot_looks_at_each_row_once() {
    // Not measured, but felt: a look at every row for each slot takes minutes here.
    let accounts = accounts(100_000, 20);
    let (mut lessee, cells) = lessee(&accounts);
    lessee.handle_routes(Mono(1), &routes(2, 2));
    assert_eq!(lessee.counts().redrawn, 100_000);
    assert_eq!(
        lessee.poll(Mono(1)),
        None,
        "nobody waits: the next issuer need not hear"
    );
    // The same news from every answer and push once more.
    lessee.handle_routes(Mono(2), &routes(2, 2));
    assert_eq!(lessee.counts().redrawn, 100_000);
    assert!(
        cells.values().all(|cell| cell.free() == 5),
        "units are kept"
    );
    lessee.surrender_all();
    let sent = leases(&mut lessee, Mono(3));
    let lines = sent.iter().flat_map(|lease| &lease.slots);
    let lines = lines.flat_map(|part| &part.lines);
    let numbers: std::collections::BTreeSet<_> = lines.map(|line| line.lease_no).collect();
    assert_eq!(numbers.len(), 100_000, "each row has a number of its own");
}

#[test]
fn accounts_that_nobody_uses_are_handed_in_and_dropped_and_open_nothing_twice() {
    let accounts = accounts(2000, 20);
    let (mut lessee, cells) = lessee(&accounts);
    let mut unused = accounts.clone();
    unused.retain(|account| account.as_str().contains("/-/key=kkk"));
    assert!((1..accounts.len()).contains(&unused.len()));
    let is_unused = |account: &AccountId, _: &PlainCell| unused.contains(account);
    assert_eq!(lessee.let_go(is_unused), 0);
    let sent = leases(&mut lessee, Mono(1));
    let parts = sent.iter().flat_map(|lease| &lease.slots);
    assert_eq!(
        parts.map(|part| part.lines.len()).sum::<usize>(),
        unused.len()
    );
    lessee.let_go(is_unused);
    assert_eq!(
        lessee.cells().count(),
        accounts.len(),
        "until they are closed"
    );
    for lease in &sent {
        lessee.handle_answer(Mono(3), owner(1), &answer(lease));
    }
    assert_eq!(lessee.let_go(is_unused), unused.len());
    assert_eq!(lessee.cells().count(), accounts.len() - unused.len());
    let units: Units = cells.values().map(Cell::free).sum();
    assert_eq!(units, 5 * (accounts.len() - unused.len()) as u64);
    // A late copy of the answer that opened one of them.
    let account = &unused[0];
    let number = 1 + accounts.iter().position(|other| other == account).unwrap() as u64;
    let lease_no = LeaseNo(number);
    let cell = PlainCell::default();
    lessee.open(Mono(5), account, cell.clone(), Some(lease_no));
    grant(&mut lessee, Mono(5), account, lease_no);
    assert_eq!(cell.free(), 0, "its units were handed in");
    // The row asks under a number of its own.
    lessee.handle_want(Mono(6), account, 1);
    let sent = leases(&mut lessee, Mono(6));
    assert!(sent[0].slots[0].lines[0].lease_no.0 > accounts.len() as u64);
}
