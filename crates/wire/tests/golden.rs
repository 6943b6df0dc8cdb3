//! Frozen bytes of every message and log entry: `testdata/README.md` says what a difference means.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, which clippy does not see as such"
)]

use expect_test::expect_file;
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::{Debug, Write};
use std::sync::Arc;
use tollgate_core::account::{AccountId, Environment, Name, Per, Window};
use tollgate_core::admin::{AdminCommand, AdminReply, Change, Item};
use tollgate_core::catalog::{LicenseStatus, Limit, Overage, PepperId, Problem, SecretMac};
use tollgate_core::command::{
    Assign, AssignReply, CloseSession, Command, Entry, LineOutcome, NamePepperReply, OpenNode,
    OpenNodeReply, OpenSession, OpenSessionReply, Position, PositionLine, PositionOutcome,
    PositionReply, Reply, Report, ReportReply, SpentLine, UsageLine,
};
use tollgate_core::ids::{
    Boot, Epoch, Incarnation, LeaseNo, NodeId, Nonce, Revision, Seq, SessionId, Slot,
};
use tollgate_core::ledger::records::{Record, RecordKey};
use tollgate_core::message::{
    AnswerLine, EdgeMessage, Held, Hello, Lease, LeaseAnswer, LeaseLine, LeaseState, NodeMessage,
    Principal, PrincipalLimit, Recall, Resolve, ResolveAnswer, ResolveOutcome, Route, Sender,
    SessionAnswer, SlotAnswer, SlotLease, SlotOutcome,
};
use tollgate_core::time::LedgerTime;
use tollgate_wire::codec::{DecodeError, budget, decode, encode};

const BUDGET: usize = budget(64 * 1024);

/// Compares the bytes of `samples` with `testdata/{file}`, decodes them again, and makes sure that
/// every variant of the enum is among them, in its place.
fn frozen<T: Serialize + DeserializeOwned + PartialEq + Debug>(file: &str, samples: &[T]) {
    let mut text = String::new();
    for (position, sample) in samples.iter().enumerate() {
        let bytes = encode(sample).unwrap();
        assert_eq!(
            usize::from(bytes[0]),
            position,
            "{sample:?} stands in its enum's order"
        );
        assert_eq!(decode::<T, BUDGET>(&bytes).as_ref(), Ok(sample));
        let shown = format!("{sample:?}");
        let name = shown.split(|c: char| !c.is_alphanumeric()).next().unwrap();
        write!(text, "{name}: ").unwrap();
        for byte in bytes {
            write!(text, "{byte:02x}").unwrap();
        }
        text.push('\n');
    }
    expect_file![format!("{}/testdata/{file}", env!("CARGO_MANIFEST_DIR"))].assert_eq(&text);

    // The first number behind the last variant is none: a variant without a sample is noticed.
    let behind = [u8::try_from(samples.len()).unwrap()];
    let result = decode::<T, BUDGET>(&behind);
    assert!(
        matches!(&result, Err(DecodeError::Invalid { reason, .. }) if reason.contains("variant")),
        "{file} lacks a sample of variant {}: {result:?}",
        behind[0]
    );
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn account() -> AccountId {
    AccountId::parse("live/acme/-/customer/calls/open").unwrap()
}

fn slot() -> Slot {
    account().slot()
}

fn revision() -> Revision {
    Revision {
        incarnation: Incarnation(1),
        index: 812,
    }
}

fn mac() -> SecretMac {
    SecretMac {
        hmac: [0xab; 32],
        pepper: PepperId(2),
    }
}

fn route() -> Route {
    Route {
        slot: slot(),
        epoch: Epoch(7),
        owner: Some((NodeId(2), Boot(300))),
    }
}

fn report() -> Report {
    let spent = vec![SpentLine {
        account: account(),
        leased: 1000,
        unleased: 3,
    }];
    let usage = vec![UsageLine {
        environment: Environment::Live,
        license: name("acme-free"),
        key: name("k1"),
        meter: name("requests"),
        units: 1003,
    }];
    let (session, boot, seq) = (SessionId(5), Boot(301), Seq(17));
    // A fixed hash: how it is made is the core's, here it is eight bytes.
    Report {
        session,
        boot,
        seq,
        hash: 0x0123_4567_89ab_cdef,
        spent,
        usage,
    }
}

fn slot_answers() -> Vec<SlotOutcome> {
    let line = AnswerLine {
        account: account(),
        lease_no: LeaseNo(9),
        granted_total: 70_000,
        surrendered_total: 250,
        need_total: 70_001,
        remaining: 5_000_000_000,
        state: LeaseState::Granted,
    };
    vec![
        SlotOutcome::Lines {
            epoch: Epoch(7),
            lines: vec![line],
        },
        SlotOutcome::WrongEpoch(route()),
        SlotOutcome::Fenced,
    ]
}

fn hello(sender: Sender) -> Hello {
    Hello {
        cluster: name("eu-1"),
        incarnation: Some(Incarnation(1)),
        sender,
        versions: (1, 2),
    }
}

fn senders() -> Vec<Sender> {
    vec![
        Sender::Node {
            node: NodeId(2),
            boot: Boot(300),
        },
        Sender::Edge {
            boot: Some(Boot(301)),
        },
    ]
}

fn resolve_outcomes() -> Vec<ResolveOutcome> {
    let limit = PrincipalLimit {
        name: name("calls"),
        meter: name("requests"),
        account: account(),
        quota: 1_000_000,
    };
    let principal = Principal {
        environment: Environment::Live,
        customer: name("acme"),
        license: name("acme-free"),
        key: name("k1"),
        plan: (name("free"), 3),
        limits: vec![limit],
    };
    vec![
        ResolveOutcome::Principal(Arc::new(principal)),
        ResolveOutcome::Invalid,
        ResolveOutcome::Revoked,
        ResolveOutcome::LicenseSuspended,
        ResolveOutcome::Unconfirmed,
    ]
}

fn report_replies() -> Vec<ReportReply> {
    vec![
        ReportReply::Settled { last_seq: Seq(17) },
        ReportReply::Gap { expected: Seq(16) },
        ReportReply::Fenced,
        ReportReply::Unknown,
        ReportReply::Expired,
        ReportReply::HashMismatch { seq: Seq(17) },
    ]
}

fn session_replies() -> Vec<OpenSessionReply> {
    vec![
        OpenSessionReply::Opened {
            session: SessionId(5),
            boot: Boot(301),
            last_seq: Seq(16),
        },
        OpenSessionReply::StaleNonce { last: Nonce(4) },
        OpenSessionReply::Unknown,
        OpenSessionReply::Expired,
        OpenSessionReply::OtherIncarnation {
            current: Incarnation(2),
        },
        OpenSessionReply::TooMany { limit: 16_384 },
    ]
}

fn items() -> Vec<Item> {
    let limit = Limit {
        name: name("calls"),
        meter: name("requests"),
        per: Per::Customer,
        quota: 1_000_000,
        window: Window::Open,
        overage: Overage::Reject,
    };
    vec![
        Item::Plan {
            id: name("free"),
            limits: vec![limit],
        },
        Item::Customer { id: name("acme") },
        Item::License {
            id: name("acme-free"),
            customer: name("acme"),
            plan: name("free"),
            version: Some(3),
            status: Some(LicenseStatus::Active),
        },
        Item::Key {
            id: name("k1"),
            license: name("acme-free"),
            environment: Environment::Test,
            mac: Some(mac()),
        },
    ]
}

fn changes() -> Vec<Change> {
    vec![
        Change::Apply { items: items() },
        Change::Stage {
            upload: name("u1"),
            part: 1,
            items: items(),
        },
        Change::Commit {
            upload: name("u1"),
            parts: 2,
            hash: 0x0123_4567_89ab_cdef,
        },
        Change::CreateKey {
            license: name("acme-free"),
            environment: Environment::Live,
            id: name("k2"),
            mac: mac(),
            valid_until: Some(LedgerTime(1_700_000_000_000)),
        },
        Change::RevokeKey { key: name("k1") },
        Change::RotateKey {
            key: name("k1"),
            mac: mac(),
            overlap_ms: 3_600_000,
        },
        Change::SetLicenseStatus {
            license: name("acme-free"),
            status: LicenseStatus::Suspended,
        },
        Change::WriteOff {
            account: account(),
            units: 500,
        },
    ]
}

fn admin_command() -> AdminCommand {
    AdminCommand {
        principal: name("ann"),
        idempotency_key: Some(name("once-1")),
        base_revision: Some(revision()),
        reason: "more for acme".into(),
        change: changes().remove(4),
    }
}

fn admin_replies() -> Vec<AdminReply> {
    vec![
        AdminReply::Done {
            revision: revision(),
            changed: 4,
        },
        AdminReply::KeyCreated {
            revision: revision(),
            key: name("k2"),
        },
        AdminReply::WrittenOff {
            freed: 500,
            out: 20,
        },
        AdminReply::Staged { parts: 2 },
        AdminReply::Unchanged {
            revision: revision(),
        },
        AdminReply::Conflict {
            expected: revision(),
            current: revision(),
        },
        AdminReply::Invalid(vec![Problem::new(
            "plan[0].id",
            "",
            "a name",
            "give it one",
        )]),
        AdminReply::NotFound("license acme-free".into()),
        AdminReply::IdempotencyMismatch,
        AdminReply::Malformed("the reason is empty".into()),
    ]
}

fn commands() -> Vec<Command> {
    vec![
        Command::OpenNode(OpenNode {
            node: NodeId(2),
            nonce: Nonce(4),
        }),
        Command::OpenSession(OpenSession {
            session: Some(SessionId(5)),
            nonce: Nonce(4),
            identity: name("gw-1"),
            incarnation: Incarnation(1),
        }),
        Command::Assign(Assign {
            slots: vec![(slot(), Epoch(6))],
            node: NodeId(2),
            boot: Boot(300),
        }),
        Command::Position(Position {
            slot: slot(),
            epoch: Epoch(7),
            lines: vec![PositionLine {
                account: account(),
                acquired_total: 70_000,
                returned_total: 251,
            }],
        }),
        Command::Report(report()),
        Command::CloseSession(CloseSession {
            session: SessionId(5),
            boot: Boot(301),
            last_seq: Seq(17),
        }),
        Command::Tick,
        Command::Admin(Box::new(admin_command())),
        Command::NamePepper(PepperId(3_000_000_000)),
    ]
}

#[test]
fn what_edges_send() {
    let line = LeaseLine {
        account: account(),
        lease_no: LeaseNo(9),
        carried: 12,
        want_total: 100_000,
        need_total: 70_001,
        surrendered_total: 250,
        demand: 8_000,
        closing: false,
    };
    frozen(
        "edge_message.txt",
        &[
            EdgeMessage::Hello(hello(senders().remove(1))),
            EdgeMessage::OpenSession {
                session: Some(SessionId(5)),
                nonce: Nonce(4),
            },
            EdgeMessage::Keepalive {
                boot: Boot(301),
                sent_mark: 1_234_567,
                revision: revision(),
            },
            EdgeMessage::Resolve(Resolve {
                boot: Boot(301),
                nonce: 77,
                key: name("k1"),
                secret_sha256: [0xcd; 32],
                lease_no: LeaseNo(9),
                want: 1000,
                need: 1,
            }),
            EdgeMessage::Lease(Lease {
                boot: Boot(301),
                slots: vec![SlotLease {
                    slot: slot(),
                    epoch: Epoch(7),
                    lines: vec![line],
                }],
            }),
            EdgeMessage::Held(Held {
                boot: Boot(301),
                number: 3,
                account: account(),
                held: 2,
                lease_no: LeaseNo(9),
                granted_seen: 70_000,
            }),
            EdgeMessage::Report(report()),
            EdgeMessage::CloseSession { last_seq: Seq(17) },
            EdgeMessage::Changes { since: revision() },
        ],
    );
}

#[test]
fn what_nodes_send() {
    let slot_answer = |outcome| SlotAnswer {
        slot: slot(),
        outcome,
    };
    frozen(
        "node_message.txt",
        &[
            NodeMessage::Hello(hello(senders().remove(0))),
            NodeMessage::Session(session_replies().remove(0)),
            NodeMessage::Keepalive {
                sent_mark: 1_234_567,
                contact: 8,
                confirmed_age_ms: Some(120),
                time: LedgerTime(1_700_000_000_000),
                revision: revision(),
                routes_index: 640,
            },
            NodeMessage::Resolve(ResolveAnswer {
                nonce: 77,
                revision: revision(),
                outcome: resolve_outcomes().remove(0),
                lease: Some(slot_answer(slot_answers().remove(0))),
            }),
            NodeMessage::Lease(LeaseAnswer {
                boot: Boot(301),
                revision: revision(),
                slots: slot_answers().into_iter().map(slot_answer).collect(),
            }),
            NodeMessage::Recall(Recall {
                slot: slot(),
                epoch: Epoch(7),
                account: account(),
                number: 3,
                keep: 12,
            }),
            NodeMessage::Report(SessionAnswer {
                session: SessionId(9),
                boot: Boot(301),
                reply: report_replies().remove(0),
            }),
            NodeMessage::Closed(SessionAnswer {
                session: SessionId(9),
                boot: Boot(301),
                reply: report_replies().remove(0),
            }),
            NodeMessage::Push {
                revision: revision(),
            },
            NodeMessage::Routes {
                index: 640,
                routes: vec![route()],
            },
            NodeMessage::Changes {
                revision: revision(),
                customers: Some(vec![name("acme")]),
            },
            NodeMessage::Unavailable("no leader".into()),
        ],
    );
}

#[test]
fn parts_of_messages() {
    frozen("sender.txt", &senders());
    frozen("slot_outcome.txt", &slot_answers());
    frozen("resolve_outcome.txt", &resolve_outcomes());
    frozen("report_reply.txt", &report_replies());
    frozen("open_session_reply.txt", &session_replies());
    frozen(
        "lease_state.txt",
        &[
            LeaseState::Granted,
            LeaseState::Pending,
            LeaseState::Recalling,
            LeaseState::NoneNow,
            LeaseState::NoneForGood,
            LeaseState::Closed,
            LeaseState::NoLimit,
            LeaseState::Stale,
        ],
    );
}

#[test]
fn what_the_log_carries() {
    frozen("command.txt", &commands());
    frozen("change.txt", &changes());
    frozen("item.txt", &items());
    frozen("environment.txt", &[Environment::Live, Environment::Test]);
    frozen("per.txt", &[Per::Customer, Per::License, Per::Key]);
    frozen("window.txt", &[Window::Open]);
    frozen("overage.txt", &[Overage::Reject]);
    frozen(
        "license_status.txt",
        &[
            LicenseStatus::Active,
            LicenseStatus::Suspended,
            LicenseStatus::Cancelled,
        ],
    );
}

/// An entry is its time and its commands' bytes one after the other: frozen with them.
#[test]
fn an_entry_is_time_and_commands() {
    let entry = Entry {
        time: LedgerTime(1_700_000_000_000),
        commands: commands(),
    };
    let mut expected = encode(&entry.time).unwrap();
    expected.push(9);
    for command in commands() {
        expected.extend(encode(&command).unwrap());
    }
    assert_eq!(encode(&entry).unwrap(), expected);
    assert_eq!(decode::<Entry, BUDGET>(&expected), Ok(entry));
}

/// The pepper's record on a disk: a node of any release must find it there.
#[test]
fn the_peppers_record() {
    assert_eq!(encode(&RecordKey::Pepper).unwrap(), [8]);
    let record = Record::Pepper(PepperId(3_000_000_000));
    let bytes = encode(&record).unwrap();
    assert_eq!(bytes, [8, 0xfc, 0x00, 0x5e, 0xd0, 0xb2]);
    assert_eq!(decode::<Record, BUDGET>(&bytes), Ok(record));
}

#[test]
fn what_applying_answers() {
    let stands = LineOutcome::Stands {
        acquired_total: 70_000,
        returned_total: 251,
    };
    let line_outcomes = [
        stands.clone(),
        LineOutcome::NoLimit {
            acquired_total: 70_000,
            returned_total: 251,
        },
        LineOutcome::WrongSlot,
    ];
    let position_outcomes = [
        PositionOutcome::Lines(vec![(account(), stands)]),
        PositionOutcome::WrongEpoch { current: Epoch(8) },
    ];
    let node_replies = [
        OpenNodeReply::Boot(Boot(300)),
        OpenNodeReply::StaleNonce { last: Nonce(4) },
    ];
    let assign_replies = [
        AssignReply::Assigned(vec![(slot(), Epoch(7))]),
        AssignReply::StaleBoot {
            latest: Some(Boot(302)),
        },
    ];
    let pepper_replies = [
        NamePepperReply::Same,
        NamePepperReply::Other {
            cluster: PepperId(3_000_000_000),
        },
    ];
    frozen("name_pepper_reply.txt", &pepper_replies);
    frozen("line_outcome.txt", &line_outcomes);
    frozen("position_outcome.txt", &position_outcomes);
    frozen("open_node_reply.txt", &node_replies);
    frozen("assign_reply.txt", &assign_replies);
    frozen("admin_reply.txt", &admin_replies());
    let [node, _] = node_replies;
    let [assign, _] = assign_replies;
    let [outcome, _] = position_outcomes;
    frozen(
        "reply.txt",
        &[
            Reply::OpenNode(node),
            Reply::OpenSession(session_replies().remove(0)),
            Reply::Assign(assign),
            Reply::Position(PositionReply {
                slot: slot(),
                epoch: Epoch(7),
                outcome,
            }),
            Reply::Report(report_replies().remove(0)),
            Reply::CloseSession(report_replies().remove(0)),
            Reply::Tick(LedgerTime(1_700_000_000_000)),
            Reply::Admin(Box::new(admin_replies().remove(0))),
            Reply::Malformed("no command".into()),
            Reply::NamePepper(pepper_replies[0]),
        ],
    );
}

proptest! {
    /// Bytes of a peer of another release, or of a hostile one: an error or a value, never a panic.
    #[test]
    fn changed_messages_never_panic(
        which in 0..3_usize,
        at in any::<prop::sample::Index>(),
        patch in prop::collection::vec(any::<u8>(), 1..12),
    ) {
        let mut bytes = match which {
            0 => encode(&EdgeMessage::Report(report())).unwrap(),
            1 => encode(&slot_answers()).unwrap(),
            _ => encode(&commands()).unwrap(),
        };
        let start = at.index(bytes.len());
        let end = bytes.len().min(start + patch.len());
        bytes.splice(start..end, patch);
        let _ = decode::<EdgeMessage, BUDGET>(&bytes);
        let _ = decode::<NodeMessage, BUDGET>(&bytes);
        let _ = decode::<Vec<SlotOutcome>, BUDGET>(&bytes);
        let _ = decode::<Vec<Command>, BUDGET>(&bytes);
        let _ = decode::<Reply, BUDGET>(&bytes);
    }
}
