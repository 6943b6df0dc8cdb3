//! The run's catalog: customers `c0`, `c1` … with a plan, a licence and a key each, and changes of limits.
//!
//! The observer reads limits out of these commands itself ([`super::naive`]), not out of the core's catalog.

use super::scenario::LimitSpec;
use std::sync::Arc;
use tollgate_core::account::{AccountId, AccountParts, Environment, Name, Per, Subject, Window};
use tollgate_core::admin::{AdminCommand, Change, Item};
use tollgate_core::catalog::{Limit, Overage, PepperId, SecretMac};
use tollgate_core::command::Command;

/// The meter of every limit.
pub(super) const METER: &str = "requests";

/// A name that is known to be one.
pub(super) fn name(text: &str) -> Name {
    match Name::new(text) {
        Ok(name) => name,
        Err(error) => unreachable!("{text} {error}"),
    }
}

pub(super) fn customer(number: usize) -> String {
    format!("c{number}")
}

pub(super) fn license(number: usize) -> Name {
    name(&format!("c{number}-l"))
}

pub(super) fn key(number: usize) -> Name {
    name(&format!("c{number}-k"))
}

/// For whom the limit at a position counts: all three kinds occur.
fn per(customer: usize, limit: usize) -> Per {
    match (customer + limit) % 3 {
        0 => Per::Customer,
        1 => Per::License,
        _ => Per::Key,
    }
}

/// The account of a limit, as the design names it.
pub(super) fn account(number: usize, limit: usize) -> AccountId {
    let (license, key) = (license(number), key(number));
    let (owner, subject) = match per(number, limit) {
        Per::Customer => (None, Subject::Customer),
        Per::License => (Some(license.as_str()), Subject::License),
        Per::Key => (None, Subject::Key(key.as_str())),
    };
    let parts = AccountParts {
        environment: Environment::Live,
        customer: &customer(number),
        license: owner,
        subject,
        limit: &format!("m{limit}"),
        window: Window::Open,
    };
    match AccountId::new(&parts) {
        Ok(account) => account,
        Err(error) => unreachable!("{error}"),
    }
}

fn plan(number: usize, limits: &[LimitSpec]) -> Item {
    let limit = |(at, spec): (usize, &LimitSpec)| Limit {
        name: name(&format!("m{at}")),
        meter: name(METER),
        per: per(number, at),
        quota: spec.quota,
        window: Window::Open,
        overage: Overage::Reject,
    };
    Item::Plan {
        id: name(&format!("c{number}-p")),
        limits: limits.iter().enumerate().map(limit).collect(),
    }
}

fn command(change: u64, items: Vec<Item>) -> Command {
    Command::Admin(Box::new(AdminCommand {
        principal: name("simulator"),
        idempotency_key: Some(name(&format!("change-{change}"))),
        base_revision: None,
        reason: Arc::from("the run wants it"),
        change: Change::Apply { items },
    }))
}

/// Makes everything; `change` numbers the commands of a run.
pub(super) fn setup(change: u64, customers: &[Vec<LimitSpec>]) -> Command {
    let mut items = Vec::new();
    for (number, limits) in customers.iter().enumerate() {
        items.push(plan(number, limits));
        items.push(Item::Customer {
            id: name(&customer(number)),
        });
        items.push(Item::License {
            id: license(number),
            customer: name(&customer(number)),
            plan: name(&format!("c{number}-p")),
            version: None,
            status: None,
        });
        items.push(Item::Key {
            id: key(number),
            license: license(number),
            environment: Environment::Live,
            mac: Some(SecretMac {
                hmac: [7; 32],
                pepper: PepperId(1),
            }),
        });
    }
    command(change, items)
}

/// Changes the limits of one customer.
pub(super) fn change(change: u64, number: usize, limits: &[LimitSpec]) -> Command {
    command(change, vec![plan(number, limits)])
}

/// A limit in force: (customer, limit, units).
pub(super) type Quota = (usize, usize, u64);

/// What a command of this file puts in force, under the key that makes repeats of it void.
pub(super) fn change_of(command: &AdminCommand) -> Option<(Name, Vec<Quota>)> {
    let Change::Apply { items } = &command.change else {
        return None;
    };
    let mut found = Vec::new();
    for item in items {
        if let Item::Plan { id, limits } = item {
            let digits: String = id.as_str().chars().filter(char::is_ascii_digit).collect();
            let number = digits.parse().unwrap_or(usize::MAX);
            found.extend(
                limits
                    .iter()
                    .enumerate()
                    .map(|(at, limit)| (number, at, limit.quota)),
            );
        }
    }
    Some((command.idempotency_key.clone()?, found))
}
