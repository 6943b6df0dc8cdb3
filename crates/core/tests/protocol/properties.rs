//! Cumulative statements under loss, repetition and any order.

use crate::world::{World, account, catalog, report, slot};
use proptest::prelude::*;
use tollgate_core::command::{
    Assign, Command, OpenNode, OpenSession, Position, PositionLine, SpentLine,
};
use tollgate_core::ids::{Boot, Epoch, Incarnation, NodeId, Nonce, Units};
use tollgate_core::ledger::Ledger;

const LIMIT: Units = 1000;

fn opened() -> World {
    let mut world = World::new();
    world.tell(catalog(&[("calls", LIMIT)]));
    world.tell(Command::OpenNode(OpenNode {
        node: NodeId(1),
        nonce: Nonce(1),
    }));
    let slots = vec![(slot(), Epoch(0))];
    world.tell(Command::Assign(Assign {
        slots,
        node: NodeId(1),
        boot: Boot(1),
    }));
    world.tell(Command::OpenSession(OpenSession {
        session: None,
        nonce: Nonce(1),
        identity: crate::world::name("edge-1"),
        incarnation: Incarnation(1),
    }));
    world
}

fn position(acquired_total: Units, returned_total: Units) -> Command {
    let line = PositionLine {
        account: account("calls"),
        acquired_total,
        returned_total,
    };
    Command::Position(Position {
        slot: slot(),
        epoch: Epoch(1),
        lines: vec![line],
    })
}

fn spend(seq: u64, leased: Units) -> Command {
    let line = SpentLine {
        account: account("calls"),
        leased,
        unleased: 0,
    };
    Command::Report(report(1, 2, seq, vec![line]))
}

/// One turn of an issuer that states its totals: how much more it asks for, how much of what it knows to
/// have it returns, how often and how late the statement arrives, and whether the answer does.
#[derive(Debug, Clone)]
struct Turn {
    ask: Units,
    give_back: Units,
    deliveries: usize,
    old: Vec<prop::sample::Index>,
    answered: bool,
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let old = prop::collection::vec(any::<prop::sample::Index>(), 0..3);
    let turn = (0..200_u64, 0..100_u64, 0..=3_usize, old, any::<bool>());
    let turn = turn.prop_map(|(ask, give_back, deliveries, old, answered)| Turn {
        ask,
        give_back,
        deliveries,
        old,
        answered,
    });
    prop::collection::vec(turn, 1..12)
}

/// Indexes of messages in the order they arrive, each 0 to 3 times; the last message arrives at the end.
fn arrivals(messages: usize) -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(0..=3_usize, messages).prop_flat_map(move |times| {
        let all: Vec<usize> = (0..messages).flat_map(|i| vec![i; times[i]]).collect();
        Just(all).prop_shuffle().prop_map(move |mut all| {
            all.push(messages - 1);
            all
        })
    })
}

fn checked(ledger: &Ledger) {
    if let Some(row) = ledger.account(&account("calls")) {
        assert!(row.settled - row.excess + row.out <= LIMIT, "I1: {row:?}");
        assert_eq!(row.excess, 0, "nothing was spent that was not out: {row:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn positions_are_safe_under_loss_repetition_and_any_order(turns in turns()) {
        let mut world = opened();
        let mut sent = vec![(0, 0)];
        let mut known = 0;
        let stands = |world: &World| world.ledger.account(&account("calls")).copied().unwrap_or_default();
        for turn in &turns {
            // An issuer returns only units that an answer told it of.
            let returned = (sent[sent.len() - 1].1 + turn.give_back).min(known);
            let message = (known + turn.ask, returned);
            sent.push(message);
            let late = turn.old.iter().map(|at| sent[at.index(sent.len())]);
            let late: Vec<_> = late.chain(vec![message; turn.deliveries]).collect();
            for (acquired, returned) in late {
                world.tell(position(acquired, returned));
                checked(&world.ledger);
                let row = stands(&world);
                prop_assert_eq!(row.out, row.acquired_total - row.returned_total);
            }
            if turn.answered && turn.deliveries > 0 {
                known = stands(&world).acquired_total;
            }
        }
        let (acquired, returned) = sent[sent.len() - 1];
        world.tell(position(acquired, returned));
        let row = stands(&world);
        let most = sent.iter().map(|(acquired, _)| *acquired).max().unwrap();
        prop_assert_eq!(row.returned_total, returned);
        prop_assert!(row.acquired_total <= most);
        prop_assert!(row.acquired_total >= acquired.min(LIMIT), "what there is room for stands");
        prop_assert!(world.ledger.take_alarms().is_empty());
    }

    #[test]
    fn reports_apply_once_and_in_order(
        (units, order) in prop::collection::vec(0..50_u64, 1..9)
            .prop_flat_map(|u| { let n = u.len(); (Just(u), arrivals(n)) })
    ) {
        let mut world = opened();
        world.tell(position(LIMIT, 0));
        let total: Units = units.iter().sum();
        for at in order {
            world.tell(spend(at as u64 + 1, units[at]));
            checked(&world.ledger);
        }
        // What was lost comes again, in order, as the edge repeats it.
        for (at, units) in units.iter().enumerate() {
            world.tell(spend(at as u64 + 1, *units));
        }
        let row = *world.ledger.account(&account("calls")).unwrap();
        prop_assert_eq!((row.settled, row.out), (total, LIMIT - total));
        let usage: Units = world.ledger.usage().map(|(_, units)| units).sum();
        prop_assert_eq!(usage, total);
    }

    #[test]
    fn the_same_log_gives_the_same_digest_and_records_restore_it(
        steps in prop::collection::vec((0..4_u8, 0..300_u64, 0..300_u64), 1..40)
    ) {
        let run = || {
            let mut world = opened();
            for (kind, a, b) in &steps {
                world.tell(match kind {
                    0 => position(*a, *b),
                    1 => spend(a % 12, *b),
                    2 => catalog(&[("calls", *a)]),
                    _ => Command::OpenNode(OpenNode { node: NodeId(a % 3), nonce: Nonce(*b) }),
                });
            }
            world.ledger
        };
        let (one, other) = (run(), run());
        prop_assert_eq!(one.digest(), other.digest());
        let mut records: Vec<_> = one.records().collect();
        records.reverse();
        let restored = Ledger::restore(records).unwrap();
        prop_assert_eq!(restored.digest(), one.digest());
    }

    #[test]
    fn dirty_records_are_enough_for_a_checkpoint(
        steps in prop::collection::vec((0..3_u8, 0..300_u64, 0..300_u64, any::<bool>()), 1..40)
    ) {
        let mut world = opened();
        let mut stored: std::collections::BTreeMap<_, _> = world.ledger.records().collect();
        world.ledger.take_dirty();
        for (kind, a, b, checkpoint) in steps {
            world.tell(match kind {
                0 => position(a, b),
                1 => spend(a % 12, b),
                _ => catalog(&[("calls", a)]),
            });
            if checkpoint {
                for key in world.ledger.take_dirty() {
                    match world.ledger.record(&key) {
                        Some(record) => stored.insert(key, record),
                        None => stored.remove(&key),
                    };
                }
                let restored = Ledger::restore(stored.clone()).unwrap();
                prop_assert_eq!(restored.digest(), world.ledger.digest());
            }
        }
    }
}
