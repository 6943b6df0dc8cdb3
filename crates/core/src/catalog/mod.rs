//! The catalog half of the replicated ledger: who may, and how much (design §9).
//!
//! It answers from indexes: [`Catalog::limit`] runs once for every account a command touches. It judges
//! nothing: what may be changed, and by whom, is [`crate::admin`]'s; it keeps that module's tables only
//! because they are part of the same replicated records ([`records`]). Plans are versioned and never
//! changed in place; a limit keeps its *name* over all versions, so a change of plan changes a number and
//! never opens a new account. Next: [`model`], [`crate::file`] for how people write it.

#![cfg_attr(
    not(test),
    warn(
        clippy::arithmetic_side_effects,
        clippy::iter_over_hash_type,
        clippy::float_arithmetic
    )
)]

mod changes;
mod index;
pub mod model;
mod problem;
pub mod records;

pub use changes::{CHANGED_CUSTOMERS_MAX, CHANGES_MAX};
pub use model::{Customer, Key, License, LicenseStatus, Limit, Overage, PepperId, Plan};
pub use model::{Secret, SecretCheck, SecretMac};
pub(crate) use problem::Problems;
pub use problem::{PROBLEMS_MAX, Problem};
pub use records::{CatalogKey, CatalogMeta, CatalogRecord};

use crate::account::{AccountId, AccountParts, Name, Per, Subject};
use crate::admin::Item;
use crate::admin::replies::Replies;
use crate::admin::staging::Staging;
use crate::command::UsageLine;
use crate::ids::{Incarnation, Revision, Units};
use crate::message::{Principal, PrincipalLimit};
use crate::table::Table;
use crate::time::LedgerTime;
use changes::ChangeLog;
use index::Index;
use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;

/// Why a key names no caller; becomes a [`crate::message::ResolveOutcome`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such key, or another secret.
    #[error("the key is not known or its secret is another")]
    Invalid,
    /// The key was revoked, or this secret ended.
    #[error("the key was revoked or this secret of it ended")]
    Revoked,
    /// The licence is suspended or cancelled.
    #[error("the licence of the key is not active")]
    LicenseSuspended,
}

/// See the module's text. Part of [`crate::ledger::Ledger`], which alone changes it.
#[derive(Clone, Debug)]
pub struct Catalog {
    meta: Table<(), CatalogMeta>,
    plans: Table<(Name, u32), Arc<Plan>>,
    customers: Table<Name, Customer>,
    licenses: Table<Name, License>,
    keys: Table<Name, Key>,
    pub(crate) staging: Staging,
    pub(crate) replies: Replies,
    index: Index,
    changes: ChangeLog,
    /// Moves with every change of a record that [`Self::limit`] reads; of this process alone.
    generation: u64,
    /// What the whole catalog counts, where this is a part of it for a trial.
    whole: Option<[usize; 4]>,
}

impl Catalog {
    /// The empty catalog of a new life of a cluster.
    #[must_use]
    pub fn new(incarnation: Incarnation) -> Self {
        let mut meta = Table::new(records::KIND_META);
        meta.put(
            (),
            CatalogMeta {
                revision: Revision {
                    incarnation,
                    index: 0,
                },
            },
        );
        Self {
            meta,
            plans: Table::new(records::KIND_PLAN),
            customers: Table::new(records::KIND_CUSTOMER),
            licenses: Table::new(records::KIND_LICENSE),
            keys: Table::new(records::KIND_KEY),
            staging: Staging::new(records::KIND_STAGED),
            replies: Replies::new(records::KIND_REPLY),
            index: Index::default(),
            changes: ChangeLog::default(),
            generation: 0,
            whole: None,
        }
    }

    /// An empty catalog that answers [`Self::sizes`] and [`Self::revision`] like this one.
    pub(crate) fn bare_copy(&self) -> Self {
        Self {
            meta: self.meta.clone(),
            whole: Some(self.sizes()),
            ..Self::new(self.revision().incarnation)
        }
    }

    /// Copies what an item is judged by: the records it would change and those it names.
    pub(crate) fn copy_named(&self, item: &Item, into: &mut Self) {
        match item {
            Item::Plan { id, .. } => self.copy_plan(id, into),
            Item::Customer { id } => self.copy_customer(id, into),
            Item::License {
                id, customer, plan, ..
            } => {
                self.copy_license(id, into);
                self.copy_customer(customer, into);
                self.copy_plan(plan, into);
            }
            Item::Key { id, license, .. } => {
                self.copy_license(license, into);
                if let Some(key) = self.keys.get(id) {
                    into.put_key(key.clone());
                }
            }
        }
    }

    fn copy_plan(&self, id: &Name, into: &mut Self) {
        if into.newest_plan(id.as_str()).is_some() {
            return;
        }
        let versions = self.plans.range((id.clone(), 0)..=(id.clone(), u32::MAX));
        for (key, plan) in versions {
            into.index.add_plan(plan);
            into.plans.put(key.clone(), Arc::clone(plan));
        }
    }

    fn copy_customer(&self, id: &Name, into: &mut Self) {
        if let Some(customer) = self.customers.get(id) {
            into.put_customer(customer.clone());
        }
    }

    fn copy_license(&self, id: &Name, into: &mut Self) {
        if let Some(license) = self.licenses.get(id) {
            into.put_license(license.clone());
        }
    }

    /// The units an account may hold in all, in force now; `None` where its owner or limit is not known,
    /// the licence is not active, or the key was revoked.
    ///
    /// A customer's account has the largest among the limits of the customer's active licences. No
    /// allocation; O(log n) and the few plans of one customer.
    #[must_use]
    pub fn limit(&self, account: &AccountId) -> Option<Units> {
        let parts = account.parts();
        let in_plan = |plan: Option<&Plan>, per| {
            let limits = plan
                .into_iter()
                .flat_map(move |plan| plan.limits.iter().map(move |l| (plan, l)));
            let mut named = limits.filter(move |(plan, limit)| {
                limit.per == per
                    && limit.window == parts.window
                    && is_named(plan, limit, parts.limit)
            });
            named.next().map(|(_, limit)| limit.quota)
        };
        match parts.subject {
            Subject::Customer => self
                .index
                .active_plans(parts.customer)
                .filter_map(|(plan, version)| in_plan(self.plan_of(plan, *version), Per::Customer))
                .max(),
            Subject::License => {
                let license = self.license_of(&parts)?;
                in_plan(self.plan_in_force(license), Per::License)
            }
            Subject::Key(id) => {
                let key = self
                    .keys
                    .get(id)
                    .filter(|key| key.environment == parts.environment)?;
                let license = self.licenses.get(&key.license)?;
                if license.customer.as_str() != parts.customer || key.revoked_at.is_some() {
                    return None;
                }
                in_plan(self.plan_in_force(license), Per::Key)
            }
        }
    }

    /// Whether the owner of an account exists and its limit was ever part of a plan of it, in force or
    /// not: use of such an account is settled, whatever changed since; use of any other is in suspense.
    #[must_use]
    pub fn knows(&self, account: &AccountId) -> bool {
        let parts = account.parts();
        let limit = stable_name(parts.limit);
        match parts.subject {
            Subject::Customer => self
                .index
                .customer_had(parts.customer, limit, Per::Customer),
            Subject::License => self
                .license_of(&parts)
                .is_some_and(|license| self.index.license_had(license, limit, Per::License)),
            Subject::Key(id) => {
                let key = self
                    .keys
                    .get(id)
                    .filter(|key| key.environment == parts.environment);
                let license = key.and_then(|key| self.licenses.get(&key.license));
                license.is_some_and(|license| {
                    license.customer.as_str() == parts.customer
                        && self.index.license_had(license, limit, Per::Key)
                })
            }
        }
    }

    /// Whether a line of usage names what may have been counted: a key of the licence, and a meter that a
    /// plan of the licence has or had. Use of anything else is in suspense.
    #[must_use]
    pub fn knows_use(&self, line: &UsageLine) -> bool {
        let key = self
            .keys
            .get(&line.key)
            .filter(|key| key.license == line.license && key.environment == line.environment);
        key.and_then(|key| self.licenses.get(&key.license))
            .is_some_and(|license| self.index.license_counted(license, &line.meter))
    }

    /// Who a key is, whatever its secret: for listings and for pushes to edges that already know it.
    ///
    /// # Errors
    /// [`Refusal`] says why it is no caller now.
    pub fn principal(&self, key: &str, time: LedgerTime) -> Result<Principal, Refusal> {
        let key = self.keys.get(key).ok_or(Refusal::Invalid)?;
        if key.is_revoked(time) {
            return Err(Refusal::Revoked);
        }
        let license = self.licenses.get(&key.license).ok_or(Refusal::Invalid)?;
        let plan = self
            .plan_in_force(license)
            .ok_or(Refusal::LicenseSuspended)?;
        let limits = plan
            .limits
            .iter()
            .map(|limit| principal_limit(key, license, plan, limit));
        Ok(Principal {
            environment: key.environment,
            customer: license.customer.clone(),
            license: license.id.clone(),
            key: key.id.clone(),
            plan: (plan.id.clone(), plan.version),
            limits: limits.collect(),
        })
    }

    /// Who presents a key with a secret of this HMAC.
    ///
    /// # Errors
    /// [`Refusal`]; only who knows a secret of the key learns more than `Invalid`.
    pub fn resolve(
        &self,
        key: &str,
        secret: &SecretMac,
        time: LedgerTime,
    ) -> Result<Principal, Refusal> {
        let check = match self.keys.get(key) {
            Some(key) => key.check(&secret.hmac, secret.pepper, time),
            None => SecretCheck::Unknown,
        };
        match check {
            SecretCheck::Valid => self.principal(key, time),
            SecretCheck::Ended => Err(Refusal::Revoked),
            SecretCheck::Unknown => Err(Refusal::Invalid),
        }
    }

    /// The incarnation and the log index of the last change of what edges act on.
    #[must_use]
    pub fn revision(&self) -> Revision {
        match self.meta.get(&()) {
            Some(meta) => meta.revision,
            None => unreachable!("the meta record is made with the catalog and never removed"),
        }
    }

    /// Customers whose principals or limits may differ from what they were at `since`, at most
    /// [`CHANGED_CUSTOMERS_MAX`]; `None` when that cannot be told: then all may.
    #[must_use]
    pub fn customers_changed_since(&self, since: Revision) -> Option<Vec<Name>> {
        if since.incarnation != self.revision().incarnation {
            return None;
        }
        self.changes.since(since.index)
    }

    /// A version of a plan.
    #[must_use]
    pub fn plan(&self, id: &Name, version: u32) -> Option<&Plan> {
        self.plans.get(&(id.clone(), version)).map(AsRef::as_ref)
    }

    /// The newest version of a plan.
    #[must_use]
    pub fn newest_plan(&self, id: &str) -> Option<&Plan> {
        self.index.plan(id).map(|plan| plan.newest.as_ref())
    }

    /// A customer.
    #[must_use]
    pub fn customer(&self, id: &str) -> Option<&Customer> {
        self.customers.get(id)
    }

    /// A licence.
    #[must_use]
    pub fn license(&self, id: &str) -> Option<&License> {
        self.licenses.get(id)
    }

    /// A key, by public id.
    #[must_use]
    pub fn key(&self, id: &str) -> Option<&Key> {
        self.keys.get(id)
    }

    /// All versions of all plans, by id and version.
    pub fn plans(&self) -> impl DoubleEndedIterator<Item = &Plan> {
        self.plans.iter().map(|(_, plan)| plan.as_ref())
    }

    /// All customers, by id.
    pub fn customers(&self) -> impl DoubleEndedIterator<Item = &Customer> {
        self.customers.iter().map(|(_, customer)| customer)
    }

    /// All licences, by id.
    pub fn licenses(&self) -> impl DoubleEndedIterator<Item = &License> {
        self.licenses.iter().map(|(_, license)| license)
    }

    /// All keys, by public id.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &Key> {
        self.keys.iter().map(|(_, key)| key)
    }

    /// The versions of plans after one, by id and version: for listings in pages.
    pub fn plans_after(&self, after: Option<&(Name, u32)>) -> impl Iterator<Item = &Plan> {
        self.plans.range(past(after)).map(|(_, plan)| plan.as_ref())
    }

    /// The customers after one.
    pub fn customers_after(&self, after: Option<&Name>) -> impl Iterator<Item = &Customer> {
        self.customers
            .range(past(after))
            .map(|(_, customer)| customer)
    }

    /// The licences after one.
    pub fn licenses_after(&self, after: Option<&Name>) -> impl Iterator<Item = &License> {
        self.licenses.range(past(after)).map(|(_, license)| license)
    }

    /// The keys after one.
    pub fn keys_after(&self, after: Option<&Name>) -> impl Iterator<Item = &Key> {
        self.keys.range(past(after)).map(|(_, key)| key)
    }

    /// How many plan versions, customers, licences and keys there are.
    pub(crate) fn sizes(&self) -> [usize; 4] {
        self.whole.unwrap_or([
            self.plans.len(),
            self.customers.len(),
            self.licenses.len(),
            self.keys.len(),
        ])
    }

    /// The newest version of a plan that has a limit of a name, and that limit.
    pub(crate) fn last_with_limit(&self, plan: &Name, limit: &Name) -> Option<(u32, &Limit)> {
        let versions = self
            .plans
            .range((plan.clone(), 0)..=(plan.clone(), u32::MAX))
            .rev();
        let mut having = versions.filter_map(|(_, plan)| {
            let found = plan.limits.iter().find(|known| known.name == *limit)?;
            Some((plan.version, found))
        });
        having.next()
    }

    fn plan_of(&self, id: &Name, version: Option<u32>) -> Option<&Plan> {
        match version {
            None => self.newest_plan(id.as_str()),
            Some(version) => self.plan(id, version),
        }
    }

    /// The plan version of a licence that allows use.
    fn plan_in_force(&self, license: &License) -> Option<&Plan> {
        match license.status {
            LicenseStatus::Active => self.plan_of(&license.plan, license.version),
            LicenseStatus::Suspended | LicenseStatus::Cancelled => None,
        }
    }

    fn license_of(&self, parts: &AccountParts<'_>) -> Option<&License> {
        let license = self.licenses.get(parts.license?)?;
        (license.customer.as_str() == parts.customer).then_some(license)
    }

    pub(crate) fn put_plan(&mut self, plan: impl Into<Arc<Plan>>) {
        let plan = plan.into();
        self.limits_may_change();
        self.index.add_plan(&plan);
        self.plans.put((plan.id.clone(), plan.version), plan);
    }

    pub(crate) fn put_customer(&mut self, customer: Customer) {
        self.limits_may_change();
        self.customers.put(customer.id.clone(), customer);
    }

    pub(crate) fn put_license(&mut self, license: License) {
        self.limits_may_change();
        if let Some(old) = self.licenses.get(&license.id) {
            self.index.remove_license(old);
        }
        self.index.add_license(&license);
        self.licenses.put(license.id.clone(), license);
    }

    pub(crate) fn put_key(&mut self, key: Key) {
        self.limits_may_change();
        self.keys.put(key.id.clone(), key);
    }

    fn limits_may_change(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    /// A number that is another one whenever an account's limit may be.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Moves the revision on to a log index and remembers whom the change touches.
    pub(crate) fn changed(&mut self, index: u64, customers: BTreeSet<Name>) {
        self.meta.update(&(), |meta| meta.revision.index = index);
        self.changes.add(index, customers);
    }

    /// Customers with a licence on one of these plans; stops when there are too many to name.
    pub(crate) fn customers_on(&self, plans: &BTreeSet<Name>, into: &mut BTreeSet<Name>) {
        for customer in plans.iter().flat_map(|plan| self.index.customers_on(plan)) {
            into.insert(customer.clone());
            if into.len() > CHANGED_CUSTOMERS_MAX {
                return;
            }
        }
    }
}

/// The range of what comes after a key, or of everything.
fn past<K: Clone>(after: Option<&K>) -> (Bound<K>, Bound<K>) {
    let from = after.map_or(Bound::Unbounded, |after| Bound::Excluded(after.clone()));
    (from, Bound::Unbounded)
}

fn principal_limit(key: &Key, license: &License, plan: &Plan, limit: &Limit) -> PrincipalLimit {
    let (owner, subject) = match limit.per {
        Per::Customer => (None, Subject::Customer),
        Per::License => (Some(license.id.as_str()), Subject::License),
        Per::Key => (None, Subject::Key(key.id.as_str())),
    };
    let versioned = crate::planted::plan_change_opens_a_new_account()
        .then(|| format!("{}{VERSION_MARK}{}", limit.name, plan.version));
    let account = AccountId::new(&AccountParts {
        environment: key.environment,
        customer: license.customer.as_str(),
        license: owner,
        subject,
        limit: versioned.as_deref().unwrap_or(limit.name.as_str()),
        window: limit.window,
    });
    match account {
        Ok(account) => PrincipalLimit {
            name: limit.name.clone(),
            meter: limit.meter.clone(),
            account,
            quota: limit.quota,
        },
        Err(error) => unreachable!("an account of checked names has a name: {error}"),
    }
}

/// What the planted fault puts between a limit's name and its plan's version.
const VERSION_MARK: &str = ".v";

/// Whether an account's limit name is that of a plan's limit.
fn is_named(plan: &Plan, limit: &Limit, name: &str) -> bool {
    if crate::planted::plan_change_opens_a_new_account() {
        return name
            .rsplit_once(VERSION_MARK)
            .is_some_and(|(stable, version)| {
                stable == limit.name.as_str() && version.parse() == Ok(plan.version)
            });
    }
    limit.name.as_str() == name
}

/// The name of the limit that an account's limit name stands for: itself.
fn stable_name(name: &str) -> &str {
    if crate::planted::plan_change_opens_a_new_account() {
        return name
            .rsplit_once(VERSION_MARK)
            .map_or(name, |(stable, _)| stable);
    }
    name
}
