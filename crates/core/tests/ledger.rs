//! The ledger against whoever means it harm: any command in any order, numbers at both ends of the range,
//! names that do not exist, more of everything than is kept.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;
use std::sync::Arc;
use tollgate_core::account::{AccountId, Environment, Name, Per, Window};
use tollgate_core::admin::{AdminCommand, Change, Item};
use tollgate_core::catalog::{LicenseStatus, Limit, Overage, PepperId, SecretMac};
use tollgate_core::command::{
    Assign, CloseSession, Command, Entry, NamePepperReply, OpenNode, OpenSession, OpenSessionReply,
    Position, PositionLine, Reply, Report, ReportReply, SpentLine, UsageLine,
};
use tollgate_core::ids::{Boot, Epoch, Incarnation, NodeId, Nonce, Seq, SessionId, Slot, Units};
use tollgate_core::ledger::Ledger;
use tollgate_core::ledger::records::{
    CLUSTER_VERSION, Record, RecordKey, RestoreError, USAGE_KEYS_PER_HOUR_MAX,
};
use tollgate_core::ledger::sessions::{
    SESSION_RETENTION_MS, SESSIONS_PER_IDENTITY_MAX, SUSPENSE_NAMES_MAX, SUSPENSE_ROWS_MAX,
};
use tollgate_core::ledger::usage::{USAGE_RETENTION_HOURS, USAGE_RETIRED_PER_TICK_MAX};
use tollgate_core::time::LedgerTime;

const HOUR_MS: u64 = 3_600_000;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn account(customer: &str, limit: &str) -> AccountId {
    AccountId::parse(&format!("live/{customer}/-/customer/{limit}/open")).unwrap()
}

fn limit(limit: &str, meter: &str, quota: Units) -> Limit {
    Limit {
        name: name(limit),
        meter: name(meter),
        per: Per::Customer,
        quota,
        window: Window::Open,
        overage: Overage::Reject,
    }
}

fn admin(change: Change) -> Command {
    Command::Admin(Box::new(AdminCommand {
        principal: name("ops"),
        idempotency_key: None,
        base_revision: None,
        reason: Arc::from("a test"),
        change,
    }))
}

fn plan(id: &str, limits: Vec<Limit>) -> Item {
    Item::Plan {
        id: name(id),
        limits,
    }
}

fn license(id: &str, customer: &str, plan: &str) -> Item {
    Item::License {
        id: name(id),
        customer: name(customer),
        plan: name(plan),
        version: None,
        status: None,
    }
}

fn key(id: &str, license: &str) -> Item {
    Item::Key {
        id: name(id),
        license: name(license),
        environment: Environment::Live,
        mac: Some(SecretMac {
            hmac: [1; 32],
            pepper: PepperId(1),
        }),
    }
}

/// A ledger that is told one command per entry.
struct Book {
    ledger: Ledger,
    now: u64,
}

impl Book {
    /// Customer `a` with licence `a-1`, whose plan has one limit for each of the meters, and some keys.
    fn new(meters: &[&str], keys: usize) -> Self {
        let mut book = Self {
            ledger: Ledger::new(Incarnation(1)),
            now: 1000 * HOUR_MS,
        };
        let limits = meters.iter().map(|m| limit(m, m, 1000)).collect();
        let mut items = vec![
            plan("p", limits),
            Item::Customer { id: name("a") },
            license("a-1", "a", "p"),
        ];
        items.extend((0..keys).map(|n| key(&format!("k{n:04}"), "a-1")));
        book.tell(admin(Change::Apply { items }));
        book
    }

    fn tell(&mut self, command: Command) -> Reply {
        let index = self.ledger.index() + 1;
        let entry = Entry {
            time: LedgerTime(self.now),
            commands: vec![command],
        };
        self.ledger.apply(index, &entry).remove(0)
    }

    fn open(&mut self, identity: &str, nonce: u64) -> OpenSessionReply {
        let open = OpenSession {
            session: None,
            nonce: Nonce(nonce),
            identity: name(identity),
            incarnation: Incarnation(1),
        };
        match self.tell(Command::OpenSession(open)) {
            Reply::OpenSession(reply) => reply,
            other => panic!("{other:?}"),
        }
    }

    fn opened(&mut self, identity: &str, nonce: u64) -> (SessionId, Boot) {
        match self.open(identity, nonce) {
            OpenSessionReply::Opened { session, boot, .. } => (session, boot),
            other => panic!("{other:?}"),
        }
    }

    fn report(&mut self, to: (SessionId, Boot), seq: u64, usage: Vec<UsageLine>) -> ReportReply {
        match self.tell(Command::Report(report(to, seq, vec![], usage))) {
            Reply::Report(reply) => reply,
            other => panic!("{other:?}"),
        }
    }

    fn restored(&self) -> Ledger {
        let mut records: Vec<_> = self.ledger.records().collect();
        records.reverse();
        let restored = Ledger::restore(records).unwrap();
        assert_eq!(restored.digest(), self.ledger.digest());
        restored
    }
}

fn report(
    (session, boot): (SessionId, Boot),
    seq: u64,
    spent: Vec<SpentLine>,
    usage: Vec<UsageLine>,
) -> Report {
    let seq = Seq(seq);
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

fn used(key: &str, meter: &str, units: Units) -> UsageLine {
    UsageLine {
        environment: Environment::Live,
        license: name("a-1"),
        key: name(key),
        meter: name(meter),
        units,
    }
}

#[test]
fn usage_records_of_an_hour_are_capped_whatever_the_order_of_meters() {
    let meters = ["m0", "m1", "m2", "m3"];
    let mut book = Book::new(&meters, 400);
    let session = book.opened("e", 1);
    let mut seq = 0;
    for meter in meters {
        for part in 0..4 {
            let lines = (0..100).map(|n| used(&format!("k{:04}", part * 100 + n), meter, 2));
            seq += 1;
            book.report(session, seq, lines.collect());
        }
    }
    let records = book.ledger.usage().count();
    assert!(
        records <= USAGE_KEYS_PER_HOUR_MAX + meters.len(),
        "{records} records"
    );
    let others: Vec<_> = book
        .ledger
        .usage()
        .filter(|(key, _)| key.key.is_none())
        .map(|(key, units)| (key.meter.as_str(), units))
        .collect();
    assert_eq!(others, [("m2", 2 * 200), ("m3", 2 * 400)]);
    let sum: Units = book.ledger.usage().map(|(_, units)| units).sum();
    assert_eq!(sum, 4 * 400 * 2, "nothing is lost");
    book.now += HOUR_MS;
    book.report(session, seq + 1, vec![used("k0399", "m3", 1)]);
    assert_eq!(
        book.ledger.usage().count(),
        records + 1,
        "another hour has its own room"
    );
}

#[test]
fn usage_of_a_meter_or_key_that_does_not_exist_goes_to_suspense() {
    let mut book = Book::new(&["requests"], 1);
    let session = book.opened("e", 1);
    let foreign = UsageLine {
        environment: Environment::Test,
        ..used("k0000", "requests", 8)
    };
    let lines = vec![
        used("k0000", "requests", 1),
        used("k0000", "a", 2),
        used("nobody", "requests", 4),
        foreign,
    ];
    book.report(session, 1, lines);
    let kept: Vec<_> = book.ledger.usage().map(|(_, units)| units).collect();
    assert_eq!(kept, [1]);
    let mut names: Vec<_> = book
        .ledger
        .suspense()
        .map(|(key, units)| (key.name.as_deref().unwrap().to_owned(), units))
        .collect();
    names.sort();
    let expected = [
        ("a-1/k0000/a".to_owned(), 2),
        ("a-1/k0000/requests".to_owned(), 8),
        ("a-1/nobody/requests".to_owned(), 4),
    ];
    assert_eq!(names, expected);
    assert_eq!(book.ledger.suspense_units(), 14);
    assert_eq!(book.restored().suspense_units(), 14);
}

#[test]
fn a_meter_of_a_former_plan_and_a_revoked_key_still_count() {
    let mut book = Book::new(&["requests"], 1);
    let session = book.opened("e", 1);
    let items = vec![
        plan("other", vec![limit("bytes", "bytes", 5)]),
        license("a-1", "a", "other"),
    ];
    book.tell(admin(Change::Apply { items }));
    book.tell(admin(Change::RevokeKey { key: name("k0000") }));
    let lines = vec![used("k0000", "requests", 1), used("k0000", "bytes", 1)];
    book.report(session, 1, lines);
    assert_eq!(book.ledger.usage().count(), 2);
    assert_eq!(book.ledger.suspense_units(), 0);
}

#[test]
fn usage_ends_after_its_retention_a_bounded_number_with_every_tick() {
    let mut book = Book::new(&["requests"], 300);
    let session = book.opened("e", 1);
    let mut seq = 0;
    let hours = 2 * USAGE_RETIRED_PER_TICK_MAX as u64 / 300;
    for _ in 0..hours {
        let lines = (0..300).map(|n| used(&format!("k{n:04}"), "requests", 1));
        seq += 1;
        book.report(session, seq, lines.collect());
        book.now += HOUR_MS;
    }
    let all = book.ledger.usage().count();
    let first_hour = book.ledger.usage().next().unwrap().0.hour;
    // The first hour is kept to its last moment.
    book.now = (first_hour + USAGE_RETENTION_HOURS + 1) * HOUR_MS - 1;
    book.tell(Command::Tick);
    assert!(!book.ledger.retention_is_behind());
    assert_eq!(book.ledger.usage().count(), all);
    book.now += 1;
    book.tell(Command::Tick);
    assert_eq!(book.ledger.usage().count(), all - 300);
    book.now += 2 * USAGE_RETENTION_HOURS * HOUR_MS;
    let mut kept = all - 300;
    while kept > 0 {
        let mut restored = book.restored();
        book.tell(Command::Tick);
        let taken = kept - book.ledger.usage().count();
        assert!(taken > 0 && taken <= USAGE_RETIRED_PER_TICK_MAX, "{taken}");
        kept -= taken;
        let entry = Entry {
            time: LedgerTime(book.now),
            commands: vec![Command::Tick],
        };
        restored.apply(book.ledger.index(), &entry);
        assert_eq!(restored.digest(), book.ledger.digest());
    }
    assert!(!book.ledger.retention_is_behind());
}

#[test]
fn readers_walk_usage_licence_by_licence() {
    let mut book = Book::new(&["requests"], 2);
    let items = vec![
        license("a-0", "a", "p"),
        license("a-2", "a", "p"),
        key("z", "a-2"),
    ];
    book.tell(admin(Change::Apply { items }));
    let session = book.opened("e", 1);
    let of_another = UsageLine {
        license: name("a-2"),
        ..used("z", "requests", 9)
    };
    let lines = vec![used("k0001", "requests", 1), of_another];
    book.report(session, 1, lines.clone());
    book.now += HOUR_MS;
    book.report(session, 2, lines);
    let ledger = &book.ledger;
    let first = ledger.license_with_usage(None).unwrap();
    let second = ledger.license_with_usage(Some(first)).unwrap();
    assert_eq!((first.as_str(), second.as_str()), ("a-1", "a-2"));
    assert_eq!(ledger.license_with_usage(Some(second)), None);
    let units = |license, after| -> Vec<Units> {
        let of = ledger.usage_of(license, after);
        of.map(|(_, units)| units).collect()
    };
    assert_eq!(units(first, None), [1, 1]);
    assert_eq!(units(second, None), [9, 9]);
    let (earlier, _) = ledger.usage_of(first, None).next().unwrap();
    assert_eq!(units(first, Some(earlier)), [1]);
}

#[test]
fn an_identity_has_room_for_so_many_sessions_and_open_ones_stay() {
    let mut book = Book::new(&["requests"], 1);
    let first = book.opened("e", 1);
    let closing = book.opened("e", 2);
    let most = SESSIONS_PER_IDENTITY_MAX as u64;
    for nonce in 3..=most {
        book.opened("e", nonce);
    }
    assert_eq!(
        book.ledger.sizes().sessions_known,
        SESSIONS_PER_IDENTITY_MAX
    );
    let refused = OpenSessionReply::TooMany { limit: most };
    assert_eq!(book.open("e", most + 1), refused);
    assert_eq!(
        book.open("e", 1),
        OpenSessionReply::Opened {
            session: first.0,
            boot: first.1,
            last_seq: Seq(0)
        },
        "a repeat makes no session and needs no room"
    );
    book.opened("another", 1);
    let close = CloseSession {
        session: closing.0,
        boot: closing.1,
        last_seq: Seq(0),
    };
    book.tell(Command::CloseSession(close));
    let newest = book.opened("e", most + 1);
    assert!(book.ledger.session(closing.0).is_none(), "it made room");
    assert!(book.ledger.session(first.0).is_some());
    assert_eq!(book.open("e", most + 2), refused);
    assert_eq!(
        book.report(newest, 1, vec![used("k0000", "requests", 1)]),
        ReportReply::Settled { last_seq: Seq(1) }
    );
    assert_eq!(book.restored().sizes(), book.ledger.sizes());
    // What was silent for its retention goes, a bounded number with every tick.
    book.now += SESSION_RETENTION_MS + 1;
    book.tell(Command::Tick);
    assert!(book.ledger.retention_is_behind());
    while book.ledger.retention_is_behind() {
        book.tell(Command::Tick);
    }
    assert_eq!(book.ledger.sizes().sessions_known, 0);
}

#[test]
fn a_session_that_is_opened_again_under_its_number_is_not_silent() {
    let mut book = Book::new(&["requests"], 1);
    let (session, boot) = book.opened("e", 1);
    let again = Command::OpenSession(OpenSession {
        session: Some(session),
        nonce: Nonce(1),
        identity: name("e"),
        incarnation: Incarnation(1),
    });
    for _ in 0..3 {
        book.now += SESSION_RETENTION_MS - 1;
        book.tell(again.clone());
        book.tell(Command::Tick);
        assert_eq!(book.ledger.session(session).map(|s| s.boot), Some(boot));
    }
    book.now += SESSION_RETENTION_MS + 1;
    book.tell(Command::Tick);
    assert!(book.ledger.session(session).is_none());
}

#[test]
fn a_first_open_finds_its_session_by_the_latest_start_and_only_while_it_is_open() {
    let mut book = Book::new(&["requests"], 1);
    let (first, _) = book.opened("e", 1);
    let again = OpenSession {
        session: Some(first),
        nonce: Nonce(2),
        identity: name("e"),
        incarnation: Incarnation(1),
    };
    book.tell(Command::OpenSession(again));
    let (found, boot) = book.opened("e", 2);
    assert_eq!(found, first);
    let (second, _) = book.opened("e", 1);
    assert_ne!(second, first, "that start was gone on from");
    let close = CloseSession {
        session: first,
        boot,
        last_seq: Seq(0),
    };
    book.tell(Command::CloseSession(close));
    assert_ne!(book.opened("e", 2).0, first, "it is closed");
    assert_ne!(book.opened("another", 1).0, second);
}

#[test]
fn rows_in_suspense_are_bounded_whoever_makes_them() {
    let mut book = Book::new(&["requests"], 1);
    let unknown = |n: usize| UsageLine {
        license: name(&format!("none-{n}")),
        ..used("k", "m", 1)
    };
    let mut units = 0;
    let mut names = 0;
    for nonce in 0..(SUSPENSE_ROWS_MAX - SUSPENSE_NAMES_MAX) as u64 + 500 {
        let session = book.opened("e", nonce);
        let lines: Vec<_> = (0..if nonce < 100 { 101 } else { 1 })
            .map(|n| unknown(names + n))
            .collect();
        names += lines.len();
        units += lines.len() as u64;
        book.report(session, 1, lines);
        let close = CloseSession {
            session: session.0,
            boot: session.1,
            last_seq: Seq(1),
        };
        book.tell(Command::CloseSession(close));
    }
    let rows = book.ledger.suspense().count();
    assert!(rows <= SUSPENSE_ROWS_MAX + 1, "{rows}");
    let sum: Units = book.ledger.suspense().map(|(_, units)| units).sum();
    assert_eq!((sum, book.ledger.suspense_units()), (units, units));
}

// --- any command, in any order ---

#[test]
fn records_of_a_later_meaning_of_apply_are_refused_before_the_others_are_read() {
    let mut records: Vec<_> = Book::new(&["requests"], 1).ledger.records().collect();
    let Record::Meta(meta) = &mut records[0].1 else {
        panic!("the meta record is the first");
    };
    meta.cluster_version = CLUSTER_VERSION + 1;
    let mut read = 0;
    let error = Ledger::restore(records.into_iter().inspect(|_| read += 1)).unwrap_err();
    let (found, known) = (CLUSTER_VERSION + 1, CLUSTER_VERSION);
    assert_eq!(error, RestoreError::Newer { found, known });
    assert_eq!(
        read, 1,
        "later versions may have records that this one cannot read"
    );
    let words = error.to_string();
    assert!(words.contains("run the newer build"), "{words}");
}

fn pepper(book: &mut Book, id: u32) -> NamePepperReply {
    match book.tell(Command::NamePepper(PepperId(id))) {
        Reply::NamePepper(reply) => reply,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_first_pepper_named_is_the_clusters_for_good() {
    let mut book = Book::new(&["requests"], 0);
    assert_eq!(book.ledger.pepper(), None);
    let before = book.ledger.digest();
    assert_eq!(pepper(&mut book, 5), NamePepperReply::Same);
    assert_ne!(
        book.ledger.digest(),
        before,
        "replicas that differ in it show"
    );
    let written = |book: &mut Book| book.ledger.take_dirty().contains(&RecordKey::Pepper);
    assert!(written(&mut book));

    let cluster = PepperId(5);
    assert_eq!(pepper(&mut book, 6), NamePepperReply::Other { cluster });
    assert_eq!(pepper(&mut book, 5), NamePepperReply::Same);
    assert!(!written(&mut book));
    assert_eq!(book.restored().pepper(), Some(cluster));
}

#[test]
fn a_cluster_with_keys_that_named_none_takes_only_a_pepper_of_theirs() {
    let mut book = Book::new(&["requests"], 3);
    let cluster = PepperId(1);
    assert_eq!(pepper(&mut book, 6), NamePepperReply::Other { cluster });
    assert_eq!(book.ledger.pepper(), None);
    assert_eq!(pepper(&mut book, 1), NamePepperReply::Same);
    assert_eq!(book.ledger.pepper(), Some(cluster));

    let mut mixed = Book::new(&["requests"], 3);
    let mac = SecretMac {
        hmac: [1; 32],
        pepper: PepperId(6),
    };
    mixed.tell(admin(Change::CreateKey {
        license: name("a-1"),
        environment: Environment::Live,
        id: name("k9"),
        mac,
        valid_until: None,
    }));
    assert_eq!(pepper(&mut mixed, 6), NamePepperReply::Same);
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => 0..6_u64,
        3 => 0..1500_u64,
        2 => (u64::MAX - 3)..=u64::MAX,
        1 => any::<u64>(),
        1 => prop::sample::select(vec![1 << 31, 1 << 32, i64::MAX as u64, 1 << 63, u64::MAX / 3_600_000]),
    ]
}

fn small_name() -> impl Strategy<Value = Name> {
    prop::sample::select(vec!["a", "b", "a-1", "k1", "p", "requests", "+", "z"]).prop_map(name)
}

fn any_account() -> impl Strategy<Value = AccountId> {
    (small_name(), small_name())
        .prop_map(|(customer, limit)| account(customer.as_str(), limit.as_str()))
}

fn any_slot() -> impl Strategy<Value = Slot> {
    prop_oneof![
        4 => small_name().prop_map(|customer| Slot::of(customer.as_str())),
        1 => (0..1024_u16).prop_map(|slot| Slot::try_from(slot).unwrap()),
    ]
}

fn any_item() -> impl Strategy<Value = Item> {
    let any_limit = (small_name(), small_name(), number())
        .prop_map(|(name, meter, quota)| limit(name.as_str(), meter.as_str(), quota));
    prop_oneof![
        (small_name(), prop::collection::vec(any_limit, 0..4))
            .prop_map(|(id, limits)| Item::Plan { id, limits }),
        small_name().prop_map(|id| Item::Customer { id }),
        (
            small_name(),
            small_name(),
            small_name(),
            prop::option::of(any::<u32>())
        )
            .prop_map(|(id, customer, plan, version)| Item::License {
                id,
                customer,
                plan,
                version,
                status: None
            }),
        (small_name(), small_name()).prop_map(|(id, license)| key(id.as_str(), license.as_str())),
    ]
}

fn any_change() -> impl Strategy<Value = Change> {
    let items = || prop::collection::vec(any_item(), 0..6);
    prop_oneof![
        4 => items().prop_map(|items| Change::Apply { items }),
        1 => (small_name(), any::<u32>(), items())
            .prop_map(|(upload, part, items)| Change::Stage { upload, part: part % 3, items }),
        1 => (small_name(), any::<u32>(), any::<u64>())
            .prop_map(|(upload, parts, hash)| Change::Commit { upload, parts, hash }),
        1 => small_name().prop_map(|key| Change::RevokeKey { key }),
        1 => (small_name(), number()).prop_map(|(key, overlap_ms)| Change::RotateKey {
            key, mac: SecretMac { hmac: [2; 32], pepper: PepperId(1) }, overlap_ms
        }),
        1 => small_name().prop_map(|license| Change::SetLicenseStatus {
            license, status: LicenseStatus::Suspended
        }),
        2 => (any_account(), number()).prop_map(|(account, units)| Change::WriteOff { account, units }),
    ]
}

fn any_report() -> impl Strategy<Value = Report> {
    let spent =
        (any_account(), number(), number()).prop_map(|(account, leased, unleased)| SpentLine {
            account,
            leased,
            unleased,
        });
    let used = (
        any::<bool>(),
        small_name(),
        small_name(),
        small_name(),
        number(),
    )
        .prop_map(|(live, license, key, meter, units)| UsageLine {
            environment: if live {
                Environment::Live
            } else {
                Environment::Test
            },
            license,
            key,
            meter,
            units,
        });
    let lines = (
        prop::collection::vec(spent, 0..4),
        prop::collection::vec(used, 0..4),
    );
    (number(), number(), number(), lines).prop_map(|(session, boot, seq, (spent, usage))| {
        report((SessionId(session), Boot(boot)), seq, spent, usage)
    })
}

fn any_command() -> impl Strategy<Value = Command> {
    let line = (any_account(), number(), number()).prop_map(|(account, acquired, returned)| {
        PositionLine {
            account,
            acquired_total: acquired,
            returned_total: returned,
        }
    });
    prop_oneof![
        2 => (0..3_u64, number()).prop_map(|(node, nonce)| Command::OpenNode(OpenNode {
            node: NodeId(node), nonce: Nonce(nonce)
        })),
        3 => (prop::option::of(number()), number(), small_name(), 1..3_u64).prop_map(
            |(session, nonce, identity, incarnation)| Command::OpenSession(OpenSession {
                session: session.map(SessionId), nonce: Nonce(nonce), identity,
                incarnation: Incarnation(incarnation),
            })
        ),
        3 => (prop::collection::vec((any_slot(), number()), 0..4), 0..3_u64, number()).prop_map(
            |(slots, node, boot)| Command::Assign(Assign {
                slots: slots.into_iter().map(|(slot, epoch)| (slot, Epoch(epoch))).collect(),
                node: NodeId(node), boot: Boot(boot),
            })
        ),
        5 => (any_slot(), number(), prop::collection::vec(line, 0..4)).prop_map(
            |(slot, epoch, lines)| Command::Position(Position { slot, epoch: Epoch(epoch), lines })
        ),
        5 => any_report().prop_map(Command::Report),
        1 => any_report().prop_map(|mut report| { report.hash ^= 1; Command::Report(report) }),
        1 => (number(), number(), number()).prop_map(|(session, boot, seq)| {
            Command::CloseSession(CloseSession {
                session: SessionId(session), boot: Boot(boot), last_seq: Seq(seq)
            })
        }),
        1 => Just(Command::Tick),
        1 => (1..3_u32).prop_map(|pepper| Command::NamePepper(PepperId(pepper))),
        5 => any_change().prop_map(admin),
    ]
}

/// I1 for every account, and what rows promise of themselves.
fn sound(before: &Ledger, after: &Ledger) {
    for (account, row) in after.accounts() {
        assert!(row.excess <= row.settled, "{account}: {row:?}");
        let old = before.account(account).copied().unwrap_or_default();
        let committed = |row: &tollgate_core::ledger::accounts::Row| {
            u128::from(row.settled) - u128::from(row.excess) + u128::from(row.out)
        };
        if committed(row) > committed(&old) {
            let limit = after.limit(account).unwrap_or(0);
            assert!(
                committed(row) <= u128::from(limit),
                "I1: {account}: {old:?} {row:?}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Nothing panics, I1 holds, and a replica restored half way answers and counts like one that was not.
    #[test]
    fn whatever_is_told_the_ledger_stays_sound(
        entries in prop::collection::vec((number(), prop::collection::vec(any_command(), 1..4)), 1..40),
        at in any::<prop::sample::Index>(),
    ) {
        let mut ledger = Book::new(&["requests", "a"], 1).ledger;
        let restored_at = at.index(entries.len());
        let mut other: Option<Ledger> = None;
        for (at, (time, commands)) in entries.into_iter().enumerate() {
            if at == restored_at {
                let mut records: Vec<_> = ledger.records().collect();
                records.reverse();
                other = Some(Ledger::restore(records).unwrap());
            }
            let index = ledger.index() + 1;
            for command in commands {
                let entry = Entry { time: LedgerTime(time), commands: vec![command] };
                let before = ledger.clone();
                let replies = ledger.apply(index, &entry);
                if let Some(other) = &mut other {
                    prop_assert_eq!(&other.apply(index, &entry), &replies);
                    prop_assert_eq!(other.digest(), ledger.digest());
                    prop_assert_eq!(other.sizes(), ledger.sizes());
                    prop_assert_eq!(other.suspense_units(), ledger.suspense_units());
                }
                // Write-offs are an operator's decision to let go of units: they make room.
                sound(&before, &ledger);
            }
        }
    }
}
