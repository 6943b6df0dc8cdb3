//! Whatever is told in whatever order: restored, repeated and late, the catalog is the same.

use crate::book::{
    Book, CALLS, EACH, account, acme, command, customer, license, limit, mac, name, plan,
};
use proptest::prelude::*;
use tollgate_core::account::{Environment, Per};
use tollgate_core::admin::{AdminCommand, AdminReply, Change, Item};
use tollgate_core::audit;
use tollgate_core::catalog::LicenseStatus;
use tollgate_core::ledger::Ledger;

fn any_item() -> impl Strategy<Value = Item> {
    let id = |letter: char| (0..4_u8).prop_map(move |n| name(&format!("{letter}{n}")));
    let per = prop_oneof![Just(Per::Customer), Just(Per::License), Just(Per::Key)];
    let any_limit = (0..3_u8, per, 0..5_u64)
        .prop_map(|(n, per, quota)| limit(&format!("l{n}{}", per as u8), per, quota));
    prop_oneof![
        (id('p'), prop::collection::vec(any_limit, 0..3))
            .prop_map(|(id, limits)| Item::Plan { id, limits }),
        id('c').prop_map(|id| Item::Customer { id }),
        (id('l'), id('c'), id('p'), prop::option::of(0..3_u32)).prop_map(
            |(id, customer, plan, version)| Item::License {
                id,
                customer,
                plan,
                version,
                status: None
            }
        ),
        (id('k'), id('l'), prop::option::of(0..3_u8)).prop_map(|(id, license, byte)| Item::Key {
            id,
            license,
            environment: Environment::Live,
            mac: byte.map(mac),
        }),
    ]
}

fn any_change() -> impl Strategy<Value = Change> {
    let items = || prop::collection::vec(any_item(), 1..8);
    let upload = || (0..6_u8).prop_map(|n| name(&format!("u{n}")));
    let key = || (0..6_u8).prop_map(|n| name(&format!("k{n}")));
    let license = || (0..4_u8).prop_map(|n| name(&format!("l{n}")));
    prop_oneof![
        6 => items().prop_map(|items| Change::Apply { items }),
        2 => (upload(), 0..3_u32, items()).prop_map(|(upload, part, items)| Change::Stage { upload, part, items }),
        1 => (upload(), 0..3_u32, any::<u64>())
            .prop_map(|(upload, parts, hash)| Change::Commit { upload, parts, hash }),
        1 => (license(), key(), any::<u8>()).prop_map(|(license, id, byte)| Change::CreateKey {
            license,
            environment: Environment::Test,
            id,
            mac: mac(byte),
            valid_until: None,
        }),
        1 => key().prop_map(|key| Change::RevokeKey { key }),
        1 => (key(), any::<u8>(), 0..5000_u64).prop_map(|(key, byte, overlap_ms)| Change::RotateKey {
            key,
            mac: mac(byte),
            overlap_ms,
        }),
        1 => (license(), prop_oneof![
            Just(LicenseStatus::Active),
            Just(LicenseStatus::Suspended),
            Just(LicenseStatus::Cancelled)
        ]).prop_map(|(license, status)| Change::SetLicenseStatus { license, status }),
        1 => any::<u64>().prop_map(|units| Change::WriteOff { account: account(CALLS), units }),
    ]
}

/// A file that is applied in full, then whatever happens.
fn any_commands() -> impl Strategy<Value = Vec<AdminCommand>> {
    let ground = || {
        let limits: Vec<_> = [Per::Customer, Per::License, Per::Key]
            .map(|per| limit(&format!("l0{}", per as u8), per, 3))
            .into();
        let ids = |f: fn(u8) -> Item| (0..4).map(f);
        ids(|n| customer(&format!("c{n}")))
            .chain((0..4).map(|n| plan(&format!("p{n}"), &limits)))
            .chain(ids(|n| license(&format!("l{n}"), &format!("c{n}"), "p0")))
            .collect::<Vec<_>>()
    };
    prop::collection::vec(any_change(), 0..30).prop_map(move |changes| {
        let first = Change::Apply { items: ground() };
        let changes = std::iter::once(first).chain(changes);
        changes.map(command).collect()
    })
}

/// Everything the catalog is asked, over all names the strategies use.
fn answers(ledger: &Ledger) -> Vec<String> {
    let catalog = ledger.catalog();
    let mut all = vec![catalog.revision().to_string()];
    for owner in 0..4 {
        for n in 0..3 {
            for text in [
                format!("live/c{owner}/-/customer/l{n}0/open"),
                format!("live/c{owner}/l{owner}/license/l{n}1/open"),
                format!("live/c{owner}/-/key=k{n}/l{n}2/open"),
            ] {
                let account = account(&text);
                let (limit, known) = (catalog.limit(&account), catalog.knows(&account));
                assert!(
                    known || limit.is_none(),
                    "what is in force is known: {text}"
                );
                all.push(format!("{text} {limit:?} {known}"));
            }
        }
    }
    for key in catalog.keys() {
        let principal = catalog.principal(key.id.as_str(), ledger.time());
        for limit in principal.iter().flat_map(|principal| &principal.limits) {
            let in_force = catalog.limit(&limit.account);
            assert!(
                in_force >= Some(limit.quota),
                "a principal's limit is in force: {limit:?}"
            );
        }
        all.push(format!("{principal:?}"));
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_restored_catalog_has_the_same_digest_and_answers(commands in any_commands()) {
        let mut book = Book::new();
        for command in &commands {
            book.admin(command);
            prop_assert_eq!(audit::verify(&book.ledger.take_audit()), Ok(()));
        }
        let mut restored = Book { ledger: book.restored(), index: book.index };
        prop_assert_eq!(restored.ledger.digest(), book.ledger.digest());
        prop_assert_eq!(answers(&restored.ledger), answers(&book.ledger));
        // And both go on alike.
        for command in &commands {
            prop_assert_eq!(restored.admin(command), book.admin(command));
        }
        prop_assert_eq!(restored.ledger.digest(), book.ledger.digest());
    }

    #[test]
    fn checkpoints_of_what_is_dirty_make_the_same_catalog(commands in any_commands()) {
        let mut book = Book::new();
        let mut disk = std::collections::BTreeMap::new();
        disk.extend(book.ledger.records());
        for command in &commands {
            book.admin(command);
            for key in book.ledger.take_dirty() {
                match book.ledger.record(&key) {
                    Some(record) => { disk.insert(key, record); }
                    None => { disk.remove(&key); }
                }
            }
        }
        let restored = Ledger::restore(disk).unwrap();
        prop_assert_eq!(restored.digest(), book.ledger.digest());
        prop_assert_eq!(answers(&restored), answers(&book.ledger));
    }

    #[test]
    fn repeated_and_late_commands_change_nothing(
        commands in any_commands(),
        copies in prop::collection::vec((any::<prop::sample::Index>(), 0..4_usize), 0..20),
    ) {
        let keyed: Vec<_> = commands
            .into_iter()
            .filter(|command| !matches!(command.change, Change::Stage { .. }))
            .enumerate()
            .map(|(n, command)| AdminCommand { idempotency_key: Some(name(&format!("n{n}"))), ..command })
            .collect();
        let records = |ledger: &Ledger| {
            // Log indexes differ by the copies' own entries; everything else must not.
            (answers_without_revision(ledger), plans(ledger), ledger.catalog().keys().count())
        };
        let mut once = Book::new();
        let first: Vec<_> = keyed.iter().map(|command| once.admin(command)).collect();
        let mut often = Book::new();
        for (n, command) in keyed.iter().enumerate() {
            let reply = often.admin(command);
            prop_assert!(same(&reply, &first[n]), "{:?} {:?}", reply, first[n]);
            let before = (often.ledger.catalog().revision(), answers(&often.ledger));
            for (index, _) in copies.iter().filter(|(_, at)| n % 4 == *at) {
                let old = index.index(n + 1);
                let again = often.admin(&keyed[old]);
                prop_assert!(same(&again, &first[old]), "{:?} {:?}", again, first[old]);
            }
            prop_assert_eq!((often.ledger.catalog().revision(), answers(&often.ledger)), before);
        }
        prop_assert_eq!(records(&once.ledger), records(&often.ledger));
        prop_assert_eq!(once.ledger.take_audit().len(), often.ledger.take_audit().len());
    }

    #[test]
    fn of_all_who_saw_one_revision_one_wins(racers in 2..8_usize) {
        let mut book = acme();
        let base = book.revision();
        let mut done = 0;
        for n in 0..racers {
            let items = vec![plan("free", &[limit("each", Per::Key, 100 + n as u64)])];
            let mut raise = command(Change::Apply { items });
            raise.base_revision = Some(base);
            match book.admin(&raise) {
                AdminReply::Done { .. } => done += 1,
                AdminReply::Conflict { expected, .. } => prop_assert_eq!(expected, base),
                other => prop_assert!(false, "{:?}", other),
            }
        }
        prop_assert_eq!((done, book.limit(EACH)), (1, Some(100)));
    }
}

fn answers_without_revision(ledger: &Ledger) -> Vec<String> {
    answers(ledger).split_off(1)
}

fn plans(ledger: &Ledger) -> Vec<String> {
    ledger
        .catalog()
        .plans()
        .map(|plan| format!("{plan:?}"))
        .collect()
}

/// The same answer but for the log indexes and times in it.
fn same(one: &AdminReply, other: &AdminReply) -> bool {
    use AdminReply::{Conflict, Done, Invalid, KeyCreated, Unchanged};
    match (one, other) {
        (Done { changed, .. }, Done { changed: other, .. }) => changed == other,
        (KeyCreated { key, .. }, KeyCreated { key: other, .. }) => key == other,
        (Unchanged { .. }, Unchanged { .. }) | (Conflict { .. }, Conflict { .. }) => true,
        (Invalid(one), Invalid(other)) => one
            .iter()
            .map(|p| &p.field)
            .eq(other.iter().map(|p| &p.field)),
        (one, other) => one == other,
    }
}
