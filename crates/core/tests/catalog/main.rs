//! The catalog through the ledger's door: what is in force, what changes do, what a repeat does not.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod book;
mod file;
#[cfg(feature = "planted")]
mod planted;
mod properties;
mod staging;

use book::{
    Book, CALLS, EACH, SITE, account, acme, audit_of, command, customer, key, license, limit, mac,
    name, plan, status,
};
use staging::{large_file, stage};
use std::sync::Arc;
use tollgate_core::account::{Environment, Name, Per};
use tollgate_core::admin::{self, AdminCommand, AdminReply, Change, Item};
use tollgate_core::audit;
use tollgate_core::catalog::{LicenseStatus, PepperId, Refusal, SecretCheck, SecretMac};
use tollgate_core::command::{Assign, Command, OpenNode, Position, PositionLine};
use tollgate_core::ids::{Boot, Epoch, Incarnation, NodeId, Nonce, Revision};
use tollgate_core::time::LedgerTime;

#[test]
fn the_largest_active_license_counts_for_the_customer() {
    let mut book = acme();
    assert_eq!(book.limit(CALLS), Some(1000));
    book.change(status("acme-pro", LicenseStatus::Suspended));
    assert_eq!(book.limit(CALLS), Some(100));
    book.change(status("acme-free", LicenseStatus::Cancelled));
    assert_eq!(book.limit(CALLS), None);
    book.change(status("acme-pro", LicenseStatus::Active));
    assert_eq!(book.limit(CALLS), Some(1000));
    assert_eq!(
        book.limit("live/acme/-/customer/each/open"),
        None,
        "each is per key"
    );
    assert_eq!(book.limit("live/other/-/customer/calls/open"), None);
}

#[test]
fn license_and_key_accounts_have_their_own_license_s_limit() {
    let mut book = acme();
    assert_eq!(book.limit(SITE), Some(7));
    assert_eq!(
        book.limit("live/other/acme-pro/license/site/open"),
        None,
        "another's licence"
    );
    assert_eq!(
        book.limit("live/acme/acme-free/license/site/open"),
        None,
        "not in its plan"
    );
    assert_eq!(book.limit(EACH), Some(10));
    assert_eq!(
        book.limit("test/acme/-/key=k1/each/open"),
        None,
        "a live key has no test account"
    );
    assert_eq!(
        book.limit("live/other/-/key=k1/each/open"),
        None,
        "another's key"
    );
    book.change(Change::RevokeKey { key: name("k1") });
    assert_eq!(book.limit(EACH), None);
}

#[test]
fn what_was_ever_part_of_a_plan_stays_known() {
    let mut book = acme();
    let knows = |book: &Book, text: &str| {
        let answer = book.ledger.catalog().knows(&account(text));
        assert_eq!(
            book.restored().catalog().knows(&account(text)),
            answer,
            "also when restored"
        );
        answer
    };
    book.apply(&[plan("free", &[limit("calls", Per::Customer, 100)])]);
    assert_eq!(book.limit(EACH), None, "version 2 has no such limit");
    assert!(knows(&book, EACH));
    book.apply(&[license("acme-free", "acme", "pro")]);
    assert!(knows(&book, EACH), "the plan before had it");
    book.change(status("acme-pro", LicenseStatus::Cancelled));
    book.change(status("acme-free", LicenseStatus::Cancelled));
    book.change(Change::RevokeKey { key: name("k1") });
    for known in [CALLS, EACH, SITE] {
        assert!(knows(&book, known), "{known}");
        assert_eq!(book.limit(known), None, "{known}");
    }
    for unknown in [
        "live/acme/-/customer/other/open",
        "live/acme/-/customer/each/open",
        "live/other/-/customer/calls/open",
        "live/acme/-/key=k2/each/open",
        "test/acme/-/key=k1/each/open",
        "live/other/acme-pro/license/site/open",
    ] {
        assert!(!knows(&book, unknown), "{unknown}");
    }
}

#[test]
fn a_change_of_plan_changes_numbers_and_never_the_account() {
    let mut book = acme();
    let before = book
        .ledger
        .catalog()
        .principal("k1", book.ledger.time())
        .unwrap();
    let raised = [
        limit("calls", Per::Customer, 5000),
        limit("each", Per::Key, 20),
    ];
    book.apply(&[plan("free", &raised)]);
    let after = book
        .ledger
        .catalog()
        .principal("k1", book.ledger.time())
        .unwrap();
    assert_eq!((before.plan.1, after.plan.1), (1, 2));
    for (before, after) in before.limits.iter().zip(&after.limits) {
        assert_eq!(before.account, after.account);
        assert!(before.quota < after.quota);
        let of_customer = before.name.as_str() == "calls";
        let in_force = if of_customer { 5000 } else { 20 };
        assert_eq!(book.ledger.limit(&after.account), Some(in_force));
    }
    assert_eq!(
        book.ledger.catalog().plan(&name("free"), 1).unwrap().limits[0].quota,
        100
    );
    assert!(matches!(
        book.apply(&[plan("free", &raised)]),
        AdminReply::Unchanged { .. }
    ));
    assert_eq!(
        book.ledger.catalog().newest_plan("free").unwrap().version,
        2
    );
}

#[test]
fn a_pinned_license_keeps_its_version() {
    let mut book = acme();
    let pinned = Item::License {
        id: name("acme-free"),
        customer: name("acme"),
        plan: name("free"),
        version: Some(1),
        status: None,
    };
    book.apply(&[pinned]);
    book.apply(&[plan("free", &[limit("each", Per::Key, 99)])]);
    assert_eq!(book.limit(EACH), Some(10));
    book.apply(&[license("acme-free", "acme", "free")]);
    assert_eq!(book.limit(EACH), Some(99));
}

#[test]
fn who_presents_a_key_and_why_not() {
    let mut book = acme();
    let file = key("k1", "acme-free", 2);
    let resolve = |book: &Book, key: &str, byte: u8| {
        let catalog = book.ledger.catalog();
        catalog
            .resolve(key, &mac(byte), book.ledger.time())
            .map(|p| p.license.to_string())
    };
    assert_eq!(resolve(&book, "k1", 1), Ok("acme-free".to_owned()));
    assert_eq!(resolve(&book, "k1", 2), Err(Refusal::Invalid));
    assert_eq!(resolve(&book, "k2", 1), Err(Refusal::Invalid));
    let other_pepper = SecretMac {
        hmac: [1; 32],
        pepper: PepperId(2),
    };
    let refused = book
        .ledger
        .catalog()
        .resolve("k1", &other_pepper, book.ledger.time());
    assert_eq!(refused, Err(Refusal::Invalid));

    // Rotation: both are good during the overlap of 3 s, then the new one only.
    book.change(Change::RotateKey {
        key: name("k1"),
        mac: mac(2),
        overlap_ms: 3000,
    });
    assert!(resolve(&book, "k1", 1).is_ok() && resolve(&book, "k1", 2).is_ok());
    for _ in 0..3 {
        book.tell(Command::Tick);
    }
    assert_eq!(resolve(&book, "k1", 1), Err(Refusal::Revoked));
    assert!(resolve(&book, "k1", 2).is_ok());
    let key = book.ledger.catalog().key("k1").unwrap();
    let time = book.ledger.time();
    assert_eq!(key.check(&[1; 32], PepperId(1), time), SecretCheck::Ended);
    assert!(key.accepts(&[2; 32], PepperId(1), time));
    assert!(
        !key.accepts(&[2; 32], PepperId(1), LedgerTime(0)),
        "not valid before it was made"
    );

    book.change(status("acme-free", LicenseStatus::Suspended));
    assert_eq!(resolve(&book, "k1", 2), Err(Refusal::LicenseSuspended));
    assert_eq!(
        resolve(&book, "k1", 3),
        Err(Refusal::Invalid),
        "no news for who guesses"
    );
    book.change(status("acme-free", LicenseStatus::Active));
    book.change(Change::RevokeKey { key: name("k1") });
    assert_eq!(resolve(&book, "k1", 2), Err(Refusal::Revoked));
    assert_eq!(resolve(&book, "k1", 3), Err(Refusal::Invalid));
    assert!(matches!(book.apply(&[file]), AdminReply::Unchanged { .. }));
    assert_eq!(
        resolve(&book, "k1", 2),
        Err(Refusal::Revoked),
        "a file revives nothing"
    );
}

#[test]
fn rotation_keeps_a_bounded_list() {
    let mut book = acme();
    let rotate = |byte, overlap_ms| Change::RotateKey {
        key: name("k1"),
        mac: mac(byte),
        overlap_ms,
    };
    for byte in 2..=6 {
        assert!(matches!(
            book.change(rotate(byte, 1_000_000)),
            AdminReply::Done { .. }
        ));
    }
    let AdminReply::Invalid(problems) = book.change(rotate(7, 1_000_000)) else {
        panic!()
    };
    assert_eq!(problems[0].field, "key[k1].secrets");
    for _ in 0..1000 {
        book.tell(Command::Tick);
    }
    assert!(
        matches!(book.change(rotate(8, 1_000_000)), AdminReply::Done { .. }),
        "five ended"
    );
    assert!(matches!(book.change(rotate(9, 0)), AdminReply::Done { .. }));
    let key = book.ledger.catalog().key("k1").unwrap();
    let accepts = |byte| key.accepts(&[byte; 32], PepperId(1), book.ledger.time());
    assert_eq!(
        [6, 8, 9].map(accepts),
        [false, false, true],
        "no overlap ends the others at once"
    );
}

#[test]
fn nothing_is_half_applied() {
    let mut book = acme();
    let (digest, head) = (book.restored().digest(), audit_of(&mut book).len());
    let reply = book.apply(&[
        customer("new"),
        plan("free", &[limit("calls", Per::Customer, 1)]),
        license("new-1", "new", "gold"),
        license("acme-pro", "new", "pro"),
        key("k1", "acme-pro", 1),
        key("k9", "nobody", 9),
        plan("empty", &[]),
        plan("twice", &[limit("a", Per::Key, 1), limit("a", Per::Key, 2)]),
        plan("pro", &[limit("calls", Per::Key, 1)]),
        customer("new"),
    ]);
    let AdminReply::Invalid(problems) = reply else {
        panic!("{reply:?}")
    };
    let fields: Vec<_> = problems.iter().map(|p| p.field.as_str()).collect();
    let expected = [
        "customer[new]",
        "license[new-1].plan",
        "license[acme-pro].customer",
        "key[k1].license",
        "key[k9].license",
        "plan[empty].limit",
        "plan[twice].limit[a]",
        "plan[pro].limit[calls]",
    ];
    assert_eq!(fields, expected);
    assert_eq!(book.limit(CALLS), Some(1000));
    assert!(book.ledger.catalog().customer("new").is_none());
    assert_eq!((audit_of(&mut book).len(), head), (0, 6));
    // Only the index and the time of the ledger went on.
    let mut idle = acme();
    idle.tell(Command::Tick);
    assert_ne!(digest, idle.ledger.digest());
    assert_eq!(book.ledger.digest(), idle.ledger.digest());
}

#[test]
fn every_change_is_explained_in_one_chain() {
    let mut book = acme();
    let mut entries = audit_of(&mut book);
    book.change(status("acme-pro", LicenseStatus::Suspended));
    book.change(Change::RevokeKey { key: name("k1") });
    entries.extend(audit_of(&mut book));
    assert_eq!(audit::verify(&entries), Ok(()));
    let told: Vec<_> = entries
        .iter()
        .map(|e| {
            let [before, after] = [&e.before, &e.after].map(|v| v.as_deref().unwrap_or("-"));
            format!(
                "{} {} {} {} {}\n  {before}\n  {after}",
                e.seq,
                e.revision,
                e.principal,
                e.action.as_str(),
                e.resource
            )
        })
        .collect();
    expect_test::expect![[r#"
        1 1-1 ops create plan/free@1
          -
          {"id":"free","limits":[{"meter":"requests","name":"calls","overage":"reject","per":"customer","quota":100,"window":"open"},{"meter":"requests","name":"each","overage":"reject","per":"key","quota":10,"window":"open"}],"version":1}
        2 1-1 ops create plan/pro@1
          -
          {"id":"pro","limits":[{"meter":"requests","name":"calls","overage":"reject","per":"customer","quota":1000,"window":"open"},{"meter":"requests","name":"site","overage":"reject","per":"license","quota":7,"window":"open"}],"version":1}
        3 1-1 ops create customer/acme
          -
          {"id":"acme"}
        4 1-1 ops create license/acme-free
          -
          {"customer":"acme","former_plans":[],"id":"acme-free","plan":"free","status":"active","version":null}
        5 1-1 ops create license/acme-pro
          -
          {"customer":"acme","former_plans":[],"id":"acme-pro","plan":"pro","status":"active","version":null}
        6 1-1 ops create key/k1
          -
          {"environment":"live","id":"k1","license":"acme-free","revoked_at":null,"secrets":[{"fingerprint":"72cd6e84","pepper":1,"valid_from":1000,"valid_until":null}]}
        7 1-2 ops update license/acme-pro
          {"customer":"acme","former_plans":[],"id":"acme-pro","plan":"pro","status":"active","version":null}
          {"customer":"acme","former_plans":[],"id":"acme-pro","plan":"pro","status":"suspended","version":null}
        8 1-3 ops revoke key/k1
          {"environment":"live","id":"k1","license":"acme-free","revoked_at":null,"secrets":[{"fingerprint":"72cd6e84","pepper":1,"valid_from":1000,"valid_until":null}]}
          {"environment":"live","id":"k1","license":"acme-free","revoked_at":3000,"secrets":[{"fingerprint":"72cd6e84","pepper":1,"valid_from":1000,"valid_until":null}]}"#]].assert_eq(&told.join("\n"));
}

#[test]
fn a_stale_base_is_refused() {
    let mut book = acme();
    let base = book.revision();
    let mut raise = command(Change::Apply {
        items: vec![plan("free", &[limit("each", Per::Key, 11)])],
    });
    raise.base_revision = Some(base);
    assert!(matches!(
        book.admin(&raise),
        AdminReply::Done { changed: 1, .. }
    ));
    let current = book.revision();
    assert_ne!(base, current);
    assert_eq!(
        book.admin(&raise),
        AdminReply::Conflict {
            expected: base,
            current
        }
    );
    raise.base_revision = Some(Revision {
        incarnation: Incarnation(2),
        index: current.index,
    });
    assert!(matches!(book.admin(&raise), AdminReply::Conflict { .. }));
    raise.base_revision = Some(current);
    assert_eq!(
        book.admin(&raise),
        AdminReply::Unchanged { revision: current }
    );
}

#[test]
fn the_same_key_gets_the_same_answer() {
    let mut book = acme();
    let create = |id: &str, byte| AdminCommand {
        idempotency_key: Some(name("first")),
        ..command(Change::CreateKey {
            license: name("acme-free"),
            environment: Environment::Live,
            id: name(id),
            mac: mac(byte),
            valid_until: None,
        })
    };
    let made = book.admin(&create("k2", 2));
    let AdminReply::KeyCreated { key: id, .. } = &made else {
        panic!("{made:?}")
    };
    assert_eq!(id.as_str(), "k2");
    // A node that is asked again draws another id and secret: still the same request.
    assert_eq!(book.admin(&create("k3", 3)), made);
    assert!(book.ledger.catalog().key("k3").is_none());
    let mut other = create("k4", 4);
    other.reason = Arc::from("another");
    assert_eq!(book.admin(&other), AdminReply::IdempotencyMismatch);
    other.principal = name("somebody");
    assert!(matches!(book.admin(&other), AdminReply::KeyCreated { .. }));

    // Refusals are remembered too: a late copy must not take effect after its sender was told so.
    let late = AdminCommand {
        idempotency_key: Some(name("late")),
        ..command(Change::RevokeKey { key: name("k5") })
    };
    let refused = book.admin(&late);
    assert_eq!(refused, AdminReply::NotFound("key k5".into()));
    book.apply(&[key("k5", "acme-free", 5)]);
    assert_eq!(book.admin(&late), refused);
    assert_eq!(book.ledger.catalog().key("k5").unwrap().revoked_at, None);
}

#[test]
fn the_ring_of_answers_is_bounded() {
    let mut book = acme();
    let numbered = |n: usize| AdminCommand {
        idempotency_key: Some(name(&format!("n{n}"))),
        ..command(Change::RevokeKey { key: name("none") })
    };
    for n in 0..=admin::REPLIES_MAX {
        book.admin(&numbered(n));
    }
    let remembered = |n: usize, book: &mut Book| {
        let mut other = numbered(n);
        other.reason = Arc::from("another");
        book.admin(&other) == AdminReply::IdempotencyMismatch
    };
    assert!(remembered(1, &mut book) && !remembered(0, &mut book));
    assert_eq!(book.restored().digest(), book.ledger.digest());
}

#[test]
fn the_form_of_a_command_is_checked() {
    let mut book = acme();
    let good = command(status("acme-pro", LicenseStatus::Suspended));
    let long = "x".repeat(admin::REASON_BYTES_MAX + 1);
    for reason in ["", "  ", "two\nlines", long.as_str()] {
        let bad = AdminCommand {
            reason: Arc::from(reason),
            ..good.clone()
        };
        assert!(
            matches!(book.admin(&bad), AdminReply::Malformed(_)),
            "{reason:?}"
        );
    }
    for change in [
        Change::Apply { items: vec![] },
        Change::Apply {
            items: vec![customer("a"); admin::ITEMS_MAX + 1],
        },
        stage("f", admin::PARTS_MAX, vec![customer("a")]),
        stage("f", 0, vec![]),
        Change::Commit {
            upload: name("f"),
            parts: 0,
            hash: 0,
        },
    ] {
        assert!(matches!(book.change(change), AdminReply::Malformed(_)));
    }
    assert_eq!(book.limit(CALLS), Some(1000));
}

#[test]
fn a_write_off_frees_what_is_out_and_says_what_that_may_cost() {
    let mut book = acme();
    let account = account(CALLS);
    let slot = account.slot();
    book.tell(Command::OpenNode(OpenNode {
        node: NodeId(1),
        nonce: Nonce(1),
    }));
    book.tell(Command::Assign(Assign {
        slots: vec![(slot, Epoch(0))],
        node: NodeId(1),
        boot: Boot(1),
    }));
    let lines = vec![PositionLine {
        account: account.clone(),
        acquired_total: 400,
        returned_total: 0,
    }];
    book.tell(Command::Position(Position {
        slot,
        epoch: Epoch(1),
        lines,
    }));
    assert_eq!(book.ledger.account(&account).unwrap().out, 400);

    let revision = book.revision();
    let write_off = |units| Change::WriteOff {
        account: account.clone(),
        units,
    };
    let once = AdminCommand {
        idempotency_key: Some(name("w")),
        ..command(write_off(300))
    };
    audit_of(&mut book);
    assert_eq!(
        book.admin(&once),
        AdminReply::WrittenOff {
            freed: 300,
            out: 100
        }
    );
    assert_eq!(
        book.admin(&once),
        AdminReply::WrittenOff {
            freed: 300,
            out: 100
        }
    );
    let entries = audit_of(&mut book);
    assert_eq!(entries.len(), 1);
    expect_test::expect![[r#"{"admitted_beyond_limit_at_most":300,"out":100,"written_off":300}"#]]
        .assert_eq(entries[0].after.as_deref().unwrap());
    assert_eq!(
        book.change(write_off(300)),
        AdminReply::WrittenOff { freed: 100, out: 0 }
    );
    assert_eq!(
        book.change(write_off(1)),
        AdminReply::Unchanged { revision }
    );
    assert_eq!(book.revision(), revision, "no edge has to act on it");
    let none = Change::WriteOff {
        account: book::account(EACH),
        units: 1,
    };
    assert!(matches!(book.change(none), AdminReply::NotFound(_)));
}

#[test]
fn an_edge_learns_whose_principals_changed() {
    let mut book = acme();
    let first = book.revision();
    book.apply(&[
        customer("other"),
        license("other-1", "other", "pro"),
        plan("x", &[limit("x", Per::Key, 1)]),
    ]);
    let second = book.revision();
    book.change(Change::RevokeKey { key: name("k1") });
    let third = book.revision();
    let since = |book: &Book, revision| {
        let names = book.ledger.catalog().customers_changed_since(revision);
        names.map(|names| {
            names
                .iter()
                .map(Name::to_string)
                .collect::<Vec<_>>()
                .join(" ")
        })
    };
    assert_eq!(since(&book, first).as_deref(), Some("acme other"));
    assert_eq!(since(&book, second).as_deref(), Some("acme"));
    assert_eq!(since(&book, third).as_deref(), Some(""));
    book.apply(&[plan("pro", &[limit("calls", Per::Customer, 2000)])]);
    assert_eq!(
        since(&book, third).as_deref(),
        Some("acme other"),
        "all who are on the plan"
    );
    let alien = Revision {
        incarnation: Incarnation(9),
        index: third.index,
    };
    assert_eq!(since(&book, alien), None);

    let restored = book.restored();
    assert_eq!(
        restored.catalog().customers_changed_since(third),
        None,
        "cannot tell"
    );
    let now = restored.catalog().revision();
    assert_eq!(
        restored.catalog().customers_changed_since(now),
        Some(vec![])
    );
}

#[test]
fn a_change_that_touches_too_many_is_told_as_everyone() {
    let mut book = Book::new();
    for part in admin::parts(large_file().into_iter().rev().collect()) {
        book.apply(&part);
    }
    let before = book.revision();
    assert!(matches!(
        book.apply(&[plan("free", &[limit("calls", Per::Customer, 4)])]),
        AdminReply::Done { changed: 1, .. }
    ));
    assert_eq!(book.ledger.catalog().customers_changed_since(before), None);
}
