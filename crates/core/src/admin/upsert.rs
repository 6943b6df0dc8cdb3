//! How the records of a file become records of the catalog: all of them, or none.
//!
//! First every item is judged against the catalog and the other items, then, if there was no problem,
//! written; nothing between the two can fail.

use super::{AdminCommand, AdminReply, Item};
use crate::account::Name;
use crate::audit::{Action, Statement};
use crate::catalog::model::{FORMER_PLANS_MAX, LIMITS_PER_PLAN_MAX, QUOTA_MAX};
use crate::catalog::{
    Catalog, Customer, Key, License, LicenseStatus, Limit, Plan, Problem, Problems, Secret,
    SecretMac,
};
use crate::ids::Revision;
use crate::ledger::Ledger;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

/// Plan versions a cluster holds.
pub(super) const PLAN_VERSIONS_MAX: usize = 100_000;
/// Customers a cluster holds.
pub(super) const CUSTOMERS_MAX: usize = 4_000_000;
/// Licences a cluster holds.
pub(super) const LICENSES_MAX: usize = 4_000_000;
/// Keys a cluster holds.
pub(super) const KEYS_MAX: usize = 8_000_000;

pub(super) fn apply(ledger: &mut Ledger, command: &AdminCommand, items: &[Item]) -> AdminReply {
    if let Err(problems) = judge(&ledger.catalog, items) {
        return AdminReply::Invalid(problems);
    }
    let revision = next_revision(ledger);
    let mut writer = Writer {
        ledger,
        command,
        revision,
        changed: 0,
        plans: BTreeSet::new(),
        customers: BTreeSet::new(),
    };
    // Owners first: whatever the order of the file, each record finds what it names.
    for kind in 0..4 {
        for item in items.iter().filter(|item| order(item) == kind) {
            writer.write(item);
        }
    }
    writer.finish()
}

/// Writes one key that the caller judged; answers the new revision.
pub(super) fn write_key(
    ledger: &mut Ledger,
    command: &AdminCommand,
    action: Action,
    key: Key,
) -> Revision {
    let revision = next_revision(ledger);
    let license = ledger.catalog.license(key.license.as_str());
    let customers = license
        .map(|license| license.customer.clone())
        .into_iter()
        .collect();
    let before = ledger.catalog.key(key.id.as_str()).map(key_view);
    ledger.state(Statement {
        principal: &command.principal,
        reason: &command.reason,
        action,
        resource: format!("key/{}", key.id),
        before,
        after: Some(key_view(&key)),
        revision,
    });
    ledger.catalog.put_key(key);
    ledger.catalog.changed(revision.index, customers);
    revision
}

fn next_revision(ledger: &Ledger) -> Revision {
    Revision {
        incarnation: ledger.catalog.revision().incarnation,
        index: ledger.index(),
    }
}

fn order(item: &Item) -> u8 {
    match item {
        Item::Plan { .. } => 0,
        Item::Customer { .. } => 1,
        Item::License { .. } => 2,
        Item::Key { .. } => 3,
    }
}

// --- judging ---

/// What the catalog will hold once the items are written.
struct View<'a> {
    catalog: &'a Catalog,
    plans: BTreeSet<&'a Name>,
    customers: BTreeSet<&'a Name>,
    licenses: BTreeMap<&'a Name, &'a Name>,
    keys: BTreeSet<&'a Name>,
    problems: Problems,
}

fn judge(catalog: &Catalog, items: &[Item]) -> Result<(), Vec<Problem>> {
    let mut view = View {
        catalog,
        plans: BTreeSet::new(),
        customers: BTreeSet::new(),
        licenses: BTreeMap::new(),
        keys: BTreeSet::new(),
        problems: Problems::default(),
    };
    for item in items {
        let (kind, id, is_new) = match item {
            Item::Plan { id, .. } => ("plan", id, view.plans.insert(id)),
            Item::Customer { id } => ("customer", id, view.customers.insert(id)),
            Item::License { id, customer, .. } => {
                ("license", id, view.licenses.insert(id, customer).is_none())
            }
            Item::Key { id, .. } => ("key", id, view.keys.insert(id)),
        };
        if !is_new {
            view.problems.add(Problem::new(
                format!("{kind}[{id}]"),
                "a second one of this id",
                "each id once",
                "remove one of the two or give it another id",
            ));
        }
    }
    view.sizes();
    for item in items {
        match item {
            Item::Plan { id, limits } => view.plan(id, limits),
            Item::Customer { .. } => {}
            Item::License {
                id,
                customer,
                plan,
                version,
                ..
            } => {
                view.license(id, customer, plan, *version);
            }
            Item::Key {
                id,
                license,
                environment,
                mac,
            } => {
                let known = catalog.key(id.as_str());
                view.key(id, license, known, *environment, mac.as_ref());
            }
        }
    }
    view.problems.into_result(())
}

impl<'a> View<'a> {
    fn sizes(&mut self) {
        let catalog = self.catalog;
        let new = [
            ("plan", self.plans.len(), PLAN_VERSIONS_MAX),
            (
                "customer",
                count(&self.customers, |id| catalog.customer(id).is_none()),
                CUSTOMERS_MAX,
            ),
            (
                "license",
                self.licenses
                    .keys()
                    .filter(|id| catalog.license(id.as_str()).is_none())
                    .count(),
                LICENSES_MAX,
            ),
            (
                "key",
                count(&self.keys, |id| catalog.key(id).is_none()),
                KEYS_MAX,
            ),
        ];
        for (standing, (kind, new, most)) in catalog.sizes().into_iter().zip(new) {
            let sum = standing.saturating_add(new);
            if new > 0 && sum > most {
                self.problems.add(Problem::new(
                    kind,
                    format!("{sum} in all"),
                    format!("at most {most} in a cluster"),
                    "apply fewer, or run a second cluster",
                ));
            }
        }
    }

    fn plan(&mut self, id: &Name, limits: &[Limit]) {
        let field = format!("plan[{id}].limit");
        if limits.is_empty() || limits.len() > LIMITS_PER_PLAN_MAX {
            self.problems.add(Problem::new(
                &field,
                format!("{} limits", limits.len()),
                format!("1 to {LIMITS_PER_PLAN_MAX}"),
                "a plan needs a limit: quota = 0 allows nothing, a large one nearly everything",
            ));
        }
        let mut names = BTreeSet::new();
        for limit in limits {
            let field = format!("{field}[{}]", limit.name);
            if !names.insert(&limit.name) {
                self.problems.add(Problem::new(
                    &field,
                    "a second limit of this name",
                    "each name once in a plan",
                    "give one of the two another name",
                ));
            }
            if limit.quota > QUOTA_MAX {
                self.problems.add(Problem::new(
                    format!("{field}.quota"),
                    limit.quota,
                    format!("0 to {QUOTA_MAX}"),
                    "write a smaller number",
                ));
            }
            if let Some((version, before)) = self.catalog.last_with_limit(id, &limit.name)
                && !counts_alike(before, limit)
            {
                self.problems.add(Problem::new(
                    &field,
                    counting(limit),
                    format!("{} as in version {version}", counting(before)),
                    "a limit's name stands for one counter: give what counts otherwise another name",
                ));
            }
        }
    }

    fn license(&mut self, id: &Name, customer: &Name, plan: &Name, version: Option<u32>) {
        let field = format!("license[{id}]");
        if !self.customers.contains(customer) && self.catalog.customer(customer.as_str()).is_none()
        {
            self.unknown(&field, "customer", customer);
        }
        let newest = self.catalog.newest_plan(plan.as_str());
        if !self.plans.contains(plan) && newest.is_none() {
            self.unknown(&field, "plan", plan);
        }
        // A version that this very file is about to write cannot be named: its number is not known yet.
        if let Some(version) = version.filter(|v| self.catalog.plan(plan, *v).is_none()) {
            let expected = match newest {
                Some(newest) => format!(
                    "a version of plan {plan} that stands: 1 to {}",
                    newest.version
                ),
                None => format!("nothing: plan {plan} has no version yet"),
            };
            self.problems.add(Problem::new(
                format!("{field}.plan_version"),
                version,
                expected,
                "leave it out to follow the newest, or apply the plan first",
            ));
        }
        if let Some(known) = self
            .catalog
            .license(id.as_str())
            .filter(|l| l.customer != *customer)
        {
            self.fixed(
                format!("{field}.customer"),
                customer,
                &known.customer,
                "licence",
            );
        }
    }

    fn key(
        &mut self,
        id: &Name,
        license: &Name,
        known: Option<&Key>,
        environment: crate::account::Environment,
        mac: Option<&SecretMac>,
    ) {
        let field = format!("key[{id}]");
        if !self.licenses.contains_key(license) && self.catalog.license(license.as_str()).is_none()
        {
            self.unknown(&field, "license", license);
        }
        let Some(known) = known else {
            if mac.is_none() {
                self.problems.add(Problem::new(
                    format!("{field}.secret_sha256"),
                    "nothing",
                    "the SHA-256 of the secret: the key does not exist yet",
                    "add it, or make the key with `tollgate key create`",
                ));
            }
            return;
        };
        if known.license != *license {
            self.fixed(format!("{field}.license"), license, &known.license, "key");
        }
        if known.environment != environment {
            self.fixed(
                format!("{field}.environment"),
                &environment,
                &known.environment,
                "key",
            );
        }
        // Secrets under another pepper cannot be compared: such a key stays as it is.
        let comparable =
            |mac: &&SecretMac| known.secrets.iter().any(|s| s.mac.pepper == mac.pepper);
        let is_other = |mac: &&SecretMac| known.secrets.iter().all(|s| s.mac != **mac);
        if mac.filter(comparable).filter(is_other).is_some() {
            self.problems.add(Problem::new(
                format!("{field}.secret_sha256"),
                "another secret than the key has",
                "the same, or none",
                "a file does not replace secrets: rotate the key, or give a new key another id",
            ));
        }
    }

    fn unknown(&mut self, field: &str, kind: &str, id: &Name) {
        self.problems.add(Problem::new(
            format!("{field}.{kind}"),
            id,
            format!("a {kind} of this file or of the catalog"),
            format!("add [[{kind}]] id = \"{id}\" or correct the name"),
        ));
    }

    fn fixed(&mut self, field: String, found: &dyn Display, known: &dyn Display, kind: &str) {
        self.problems.add(Problem::new(
            field,
            found,
            format!("{known}, as when the {kind} was made"),
            format!("a {kind} keeps its owner, its counters hang on it: make another {kind}"),
        ));
    }
}

fn count(ids: &BTreeSet<&Name>, is_new: impl Fn(&str) -> bool) -> usize {
    ids.iter().filter(|id| is_new(id.as_str())).count()
}

fn counts_alike(one: &Limit, other: &Limit) -> bool {
    (&one.meter, one.per, one.window) == (&other.meter, other.per, other.window)
}

fn counting(limit: &Limit) -> String {
    let per = json!(limit.per);
    format!(
        "{} per {} in {}",
        limit.meter,
        per.as_str().unwrap_or("?"),
        limit.window.as_str()
    )
}

// --- writing ---

struct Writer<'a> {
    ledger: &'a mut Ledger,
    command: &'a AdminCommand,
    revision: Revision,
    changed: u32,
    /// Plans with a new version.
    plans: BTreeSet<Name>,
    /// Customers touched otherwise.
    customers: BTreeSet<Name>,
}

impl Writer<'_> {
    fn write(&mut self, item: &Item) {
        match item {
            Item::Plan { id, limits } => self.plan(id, limits),
            Item::Customer { id } => self.customer(id),
            Item::License {
                id,
                customer,
                plan,
                version,
                status,
            } => {
                let old = self.ledger.catalog.license(id.as_str()).cloned();
                let standing = old.as_ref().map_or(LicenseStatus::Active, |old| old.status);
                let license = License {
                    id: id.clone(),
                    customer: customer.clone(),
                    plan: plan.clone(),
                    version: *version,
                    status: status.unwrap_or(standing),
                    former_plans: old
                        .as_ref()
                        .map_or_else(Vec::new, |old| former_plans(old, plan)),
                };
                self.license(old.as_ref(), license);
            }
            Item::Key {
                id,
                license,
                environment,
                mac,
            } => {
                let known = self.ledger.catalog.key(id.as_str()).is_some();
                let Some(mac) = mac.as_ref().filter(|_| !known) else {
                    return;
                };
                let valid_from = self.ledger.time();
                self.key(Key {
                    id: id.clone(),
                    license: license.clone(),
                    environment: *environment,
                    secrets: vec![Secret {
                        mac: mac.clone(),
                        valid_from,
                        valid_until: None,
                    }],
                    revoked_at: None,
                });
            }
        }
    }

    fn plan(&mut self, id: &Name, limits: &[Limit]) {
        let newest = self.ledger.catalog.newest_plan(id.as_str());
        if newest.is_some_and(|newest| newest.limits == limits) {
            return;
        }
        let before = newest.map(|newest| json!(newest));
        let version = newest.map_or(0, |newest| newest.version).saturating_add(1);
        let plan = Plan {
            id: id.clone(),
            version,
            limits: limits.to_vec(),
        };
        self.state(before, Some(json!(plan)), format!("plan/{id}@{version}"));
        self.ledger.catalog.put_plan(plan);
        self.plans.insert(id.clone());
    }

    fn customer(&mut self, id: &Name) {
        if self.ledger.catalog.customer(id.as_str()).is_some() {
            return;
        }
        let customer = Customer { id: id.clone() };
        self.state(None, Some(json!(customer)), format!("customer/{id}"));
        self.ledger.catalog.put_customer(customer);
        self.customers.insert(id.clone());
    }

    fn license(&mut self, old: Option<&License>, license: License) {
        if old == Some(&license) {
            return;
        }
        let before = old.map(|old| json!(old));
        self.state(
            before,
            Some(json!(license)),
            format!("license/{}", license.id),
        );
        self.customers.insert(license.customer.clone());
        self.ledger.catalog.put_license(license);
    }

    fn key(&mut self, key: Key) {
        self.state(None, Some(key_view(&key)), format!("key/{}", key.id));
        if let Some(license) = self.ledger.catalog.license(key.license.as_str()) {
            self.customers.insert(license.customer.clone());
        }
        self.ledger.catalog.put_key(key);
    }

    fn state(&mut self, before: Option<Value>, after: Option<Value>, resource: String) {
        self.changed = self.changed.saturating_add(1);
        self.ledger.state(Statement {
            principal: &self.command.principal,
            reason: &self.command.reason,
            action: if before.is_some() {
                Action::Update
            } else {
                Action::Create
            },
            resource,
            before,
            after,
            revision: self.revision,
        });
    }

    fn finish(mut self) -> AdminReply {
        let catalog = &mut self.ledger.catalog;
        if self.changed == 0 {
            return AdminReply::Unchanged {
                revision: catalog.revision(),
            };
        }
        catalog.customers_on(&self.plans, &mut self.customers);
        catalog.changed(self.revision.index, self.customers);
        AdminReply::Done {
            revision: self.revision,
            changed: self.changed,
        }
    }
}

/// The plans a licence was on before it is put on `plan`.
fn former_plans(old: &License, plan: &Name) -> Vec<Name> {
    let mut former = old.former_plans.clone();
    if old.plan != *plan {
        former.retain(|known| *known != old.plan && known != plan);
        former.push(old.plan.clone());
    }
    let surplus = former.len().saturating_sub(FORMER_PLANS_MAX);
    former.drain(..surplus);
    former
}

/// A key for the audit log: its secrets show as fingerprints of what is stored of them.
fn key_view(key: &Key) -> Value {
    let secret = |secret: &Secret| {
        let fingerprint = Sha256::digest(secret.mac.hmac);
        json!({
            "fingerprint": crate::hex::encode(&fingerprint[..4]),
            "pepper": secret.mac.pepper.0,
            "valid_from": secret.valid_from.0,
            "valid_until": secret.valid_until.map(|until| until.0),
        })
    };
    json!({
        "environment": key.environment,
        "id": key.id,
        "license": key.license,
        "revoked_at": key.revoked_at.map(|at| at.0),
        "secrets": key.secrets.iter().map(secret).collect::<Vec<_>>(),
    })
}
