//! A ledger to talk to, and short ways to write what it is told.

use std::sync::Arc;
use tollgate_core::account::{AccountId, Environment, Name, Per, Window};
use tollgate_core::admin::{AdminCommand, AdminReply, Change, Item};
use tollgate_core::audit;
use tollgate_core::catalog::{LicenseStatus, Limit, Overage, PepperId, SecretMac};
use tollgate_core::command::{Command, Entry, Reply};
use tollgate_core::ids::{Incarnation, Revision};
use tollgate_core::ledger::Ledger;
use tollgate_core::time::LedgerTime;

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub(crate) fn account(text: &str) -> AccountId {
    AccountId::parse(text).unwrap()
}

pub(crate) fn limit(limit: &str, per: Per, quota: u64) -> Limit {
    Limit {
        name: name(limit),
        meter: name("requests"),
        per,
        quota,
        window: Window::Open,
        overage: Overage::Reject,
    }
}

pub(crate) fn plan(id: &str, limits: &[Limit]) -> Item {
    Item::Plan {
        id: name(id),
        limits: limits.to_vec(),
    }
}

pub(crate) fn customer(id: &str) -> Item {
    Item::Customer { id: name(id) }
}

pub(crate) fn license(id: &str, customer: &str, plan: &str) -> Item {
    Item::License {
        id: name(id),
        customer: name(customer),
        plan: name(plan),
        version: None,
        status: None,
    }
}

pub(crate) fn mac(byte: u8) -> SecretMac {
    SecretMac {
        hmac: [byte; 32],
        pepper: PepperId(1),
    }
}

pub(crate) fn key(id: &str, license: &str, byte: u8) -> Item {
    Item::Key {
        id: name(id),
        license: name(license),
        environment: Environment::Live,
        mac: Some(mac(byte)),
    }
}

pub(crate) fn command(change: Change) -> AdminCommand {
    AdminCommand {
        principal: name("ops"),
        idempotency_key: None,
        base_revision: None,
        reason: Arc::from("a test"),
        change,
    }
}

/// A ledger that is told one command per entry, a second apart.
pub(crate) struct Book {
    pub(crate) ledger: Ledger,
    pub(crate) index: u64,
}

impl Book {
    pub(crate) fn new() -> Self {
        Self {
            ledger: Ledger::new(Incarnation(1)),
            index: 0,
        }
    }

    pub(crate) fn tell(&mut self, command: Command) -> Reply {
        self.index += 1;
        let entry = Entry {
            time: LedgerTime(self.index * 1000),
            commands: vec![command],
        };
        self.ledger.apply(self.index, &entry).remove(0)
    }

    pub(crate) fn admin(&mut self, command: &AdminCommand) -> AdminReply {
        match self.tell(Command::Admin(Box::new(command.clone()))) {
            Reply::Admin(reply) => *reply,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn change(&mut self, change: Change) -> AdminReply {
        self.admin(&command(change))
    }

    pub(crate) fn apply(&mut self, items: &[Item]) -> AdminReply {
        self.change(Change::Apply {
            items: items.to_vec(),
        })
    }

    pub(crate) fn limit(&self, text: &str) -> Option<u64> {
        self.ledger.limit(&account(text))
    }

    pub(crate) fn revision(&self) -> Revision {
        self.ledger.catalog().revision()
    }

    pub(crate) fn restored(&self) -> Ledger {
        // Back to front: nothing may depend on the order of records.
        let mut records: Vec<_> = self.ledger.records().collect();
        records.reverse();
        Ledger::restore(records).unwrap()
    }
}

pub(crate) fn audit_of(book: &mut Book) -> Vec<audit::AuditEntry> {
    let entries = book.ledger.take_audit();
    assert_eq!(audit::verify(&entries), Ok(()));
    entries
}

/// acme on free (100 for all, 10 a key) with one key; a second licence on pro (1000 for all).
pub(crate) fn acme() -> Book {
    let mut book = Book::new();
    let reply = book.apply(&[
        key("k1", "acme-free", 1),
        license("acme-free", "acme", "free"),
        license("acme-pro", "acme", "pro"),
        customer("acme"),
        plan(
            "free",
            &[
                limit("calls", Per::Customer, 100),
                limit("each", Per::Key, 10),
            ],
        ),
        plan(
            "pro",
            &[
                limit("calls", Per::Customer, 1000),
                limit("site", Per::License, 7),
            ],
        ),
    ]);
    let revision = Revision {
        incarnation: Incarnation(1),
        index: 1,
    };
    assert_eq!(
        reply,
        AdminReply::Done {
            revision,
            changed: 6
        }
    );
    book
}

pub(crate) const CALLS: &str = "live/acme/-/customer/calls/open";
pub(crate) const EACH: &str = "live/acme/-/key=k1/each/open";
pub(crate) const SITE: &str = "live/acme/acme-pro/license/site/open";

pub(crate) fn status(license: &str, status: LicenseStatus) -> Change {
    Change::SetLicenseStatus {
        license: name(license),
        status,
    }
}
