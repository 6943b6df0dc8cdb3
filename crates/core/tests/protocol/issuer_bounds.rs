//! What the issuer keeps and says at once has a bound, whatever edges ask for.

use crate::orders::opened;
use crate::world::{account, apply, catalog, name, slot};
use std::collections::BTreeSet;
use tollgate_core::account::{AccountId, Per, Window};
use tollgate_core::admin::Item;
use tollgate_core::catalog::{Limit, Overage};
use tollgate_core::command::Position;
use tollgate_core::ids::{Boot, Epoch, LeaseNo, NodeId};
use tollgate_core::issuer::{Issuer, Output};
use tollgate_core::message::{Lease, LeaseLine, SlotLease};
use tollgate_core::time::Mono;

/// Bytes that an entry of the log has for one command.
const COMMAND_BYTES: usize = 60 * 1024;

fn line(account: AccountId) -> LeaseLine {
    LeaseLine {
        account,
        lease_no: LeaseNo(1),
        carried: 0,
        want_total: 5,
        need_total: 5,
        surrendered_total: 0,
        demand: 0,
        closing: false,
    }
}

fn lease(boot: u64, epoch: u64, lines: Vec<LeaseLine>) -> Lease {
    let slots = vec![SlotLease {
        slot: slot(),
        epoch: Epoch(epoch),
        lines,
    }];
    Lease {
        boot: Boot(boot),
        slots,
    }
}

fn positions(issuer: &mut Issuer) -> Vec<Position> {
    let mut positions = Vec::new();
    while let Some(output) = issuer.poll() {
        if let Output::Propose(position) = output {
            positions.push(position);
        }
    }
    positions
}

#[test]
fn positions_of_long_names_fit_entries_and_none_is_left_out() {
    let names: Vec<String> = (0..500).map(|n| format!("{n:0>64}")).collect();
    let license = |id: &String| Item::License {
        id: name(id),
        customer: name("acme"),
        plan: name("plan"),
        version: None,
        status: None,
    };
    let calls = Limit {
        name: name("calls"),
        meter: name("requests"),
        per: Per::License,
        quota: 1000,
        window: Window::Open,
        overage: Overage::Reject,
    };
    let plan = Item::Plan {
        id: name("plan"),
        limits: vec![calls],
    };
    let mut items = vec![plan, Item::Customer { id: name("acme") }];
    items.extend(names.iter().map(license));
    let ledger = opened(apply(items));
    let mut issuer = Issuer::new(NodeId(1), Boot(1));
    let text = |id| format!("live/acme/{id}/license/calls/open");
    let lines = names
        .iter()
        .map(|id| line(AccountId::parse(&text(id)).unwrap()))
        .collect();
    issuer.handle_lease(Mono(1000), &ledger, &lease(2, 2, lines));
    let positions = positions(&mut issuer);
    let mut seen = BTreeSet::new();
    for position in &positions {
        let bytes: usize = position
            .lines
            .iter()
            .map(|line| line.account.as_str().len() + 2 + 9 + 9)
            .sum();
        assert!(bytes < COMMAND_BYTES, "{bytes}");
        for line in &position.lines {
            assert!(seen.insert(line.account.clone()), "{}", line.account);
        }
    }
    assert_eq!(seen.len(), names.len());
    assert!(positions.len() > 1, "else this tests nothing");
}

#[test]
fn a_request_from_the_future_is_held_for_a_while_and_crowds_nobody_out() {
    let ledger = opened(catalog(&[("calls", 1000)]));
    let mut issuer = Issuer::new(NodeId(1), Boot(1));
    let ahead = |boot| lease(boot, u64::MAX, vec![line(account("calls"))]);
    assert!(
        issuer
            .handle_lease(Mono(1000), &ledger, &ahead(3))
            .is_none()
    );
    for _ in 0..100 {
        assert!(
            issuer
                .handle_lease(Mono(1000), &ledger, &ahead(2))
                .is_none()
        );
    }
    assert_eq!(
        issuer.counts().held_dropped,
        92,
        "8 of boot 2 and 1 of boot 3 are kept"
    );
    issuer.handle_applied(Mono(2999), &ledger);
    assert_eq!(issuer.counts().held_dropped, 92);
    issuer.handle_applied(Mono(3000), &ledger);
    assert_eq!(issuer.counts().held_dropped, 101);
    assert!(issuer.poll().is_none(), "and nothing came of it");
}
