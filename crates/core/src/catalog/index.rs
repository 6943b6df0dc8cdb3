//! What the catalog computes from its records to answer quickly: a function of the records alone, whatever
//! the order they came in, so that a replica that was restored answers like one that was not.

use super::model::{License, LicenseStatus, Plan};
use crate::account::{Name, Per};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A plan as a licence names it: the version, or the newest.
type PlanRef = (Name, Option<u32>);

#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    plans: BTreeMap<Name, PlanIndex>,
    customers: BTreeMap<Name, CustomerIndex>,
    /// Customers with a licence on a plan now, in whatever status, each with how many.
    on_plan: BTreeMap<Name, BTreeMap<Name, u32>>,
}

/// One plan over all its versions.
#[derive(Clone, Debug)]
pub(super) struct PlanIndex {
    pub(super) newest: Arc<Plan>,
    /// Every limit any version ever had.
    limits: Vec<(Name, Per)>,
    /// Every meter any version ever counted on.
    meters: BTreeSet<Name>,
}

/// One customer over all its licences. Lists, since a customer is on few plans, however many licences.
#[derive(Clone, Debug, Default)]
struct CustomerIndex {
    /// Plans in force, each with how many active licences are on it.
    active: Vec<(PlanRef, u32)>,
    /// Plans any licence is or was on, each with how many.
    ever: Vec<(Name, u32)>,
}

impl Index {
    pub(super) fn add_plan(&mut self, plan: &Arc<Plan>) {
        let entry = self
            .plans
            .entry(plan.id.clone())
            .or_insert_with(|| PlanIndex {
                newest: Arc::clone(plan),
                limits: Vec::new(),
                meters: BTreeSet::new(),
            });
        if plan.version > entry.newest.version {
            entry.newest = Arc::clone(plan);
        }
        for limit in &plan.limits {
            entry.meters.insert(limit.meter.clone());
            let limit = (limit.name.clone(), limit.per);
            if !entry.limits.contains(&limit) {
                entry.limits.push(limit);
            }
        }
    }

    pub(super) fn add_license(&mut self, license: &License) {
        let customer = self.customers.entry(license.customer.clone()).or_default();
        if license.status == LicenseStatus::Active {
            count_up(
                &mut customer.active,
                (license.plan.clone(), license.version),
            );
        }
        for plan in plans_ever(license) {
            count_up(&mut customer.ever, plan.clone());
        }
        let on_plan = self.on_plan.entry(license.plan.clone()).or_default();
        let count = on_plan.entry(license.customer.clone()).or_default();
        *count = count.saturating_add(1);
    }

    pub(super) fn remove_license(&mut self, license: &License) {
        if let Some(on_plan) = self.on_plan.get_mut(&license.plan)
            && let Some(count) = on_plan.get_mut(&license.customer)
        {
            *count = count.saturating_sub(1);
            if *count == 0 {
                on_plan.remove(&license.customer);
            }
            if on_plan.is_empty() {
                self.on_plan.remove(&license.plan);
            }
        }
        let Some(customer) = self.customers.get_mut(&license.customer) else {
            return;
        };
        if license.status == LicenseStatus::Active {
            count_down(
                &mut customer.active,
                &(license.plan.clone(), license.version),
            );
        }
        for plan in plans_ever(license) {
            count_down(&mut customer.ever, plan);
        }
    }

    /// The customers with a licence on a plan.
    pub(super) fn customers_on(&self, plan: &Name) -> impl Iterator<Item = &Name> {
        self.on_plan.get(plan).into_iter().flat_map(BTreeMap::keys)
    }

    pub(super) fn plan(&self, id: &str) -> Option<&PlanIndex> {
        self.plans.get(id)
    }

    /// The plans in force for a customer.
    pub(super) fn active_plans(&self, customer: &str) -> impl Iterator<Item = &PlanRef> {
        let customer = self.customers.get(customer);
        customer
            .into_iter()
            .flat_map(|customer| customer.active.iter().map(|(plan, _)| plan))
    }

    /// Whether any plan a customer is or was on ever had a limit.
    pub(super) fn customer_had(&self, customer: &str, limit: &str, per: Per) -> bool {
        let had = |plan: &Name| {
            self.plan(plan.as_str())
                .is_some_and(|plan| plan.had(limit, per))
        };
        self.customers
            .get(customer)
            .is_some_and(|c| c.ever.iter().any(|(plan, _)| had(plan)))
    }

    /// Whether any plan a licence is or was on ever counted on a meter.
    pub(super) fn license_counted(&self, license: &License, meter: &Name) -> bool {
        plans_ever(license).any(|plan| {
            self.plan(plan.as_str())
                .is_some_and(|plan| plan.meters.contains(meter))
        })
    }

    /// Whether any plan a licence is or was on ever had a limit.
    pub(super) fn license_had(&self, license: &License, limit: &str, per: Per) -> bool {
        plans_ever(license).any(|plan| {
            self.plan(plan.as_str())
                .is_some_and(|plan| plan.had(limit, per))
        })
    }
}

impl PlanIndex {
    fn had(&self, limit: &str, per: Per) -> bool {
        self.limits
            .iter()
            .any(|(name, of)| name.as_str() == limit && *of == per)
    }
}

fn plans_ever(license: &License) -> impl Iterator<Item = &Name> {
    std::iter::once(&license.plan).chain(&license.former_plans)
}

fn count_up<T: PartialEq>(counts: &mut Vec<(T, u32)>, what: T) {
    match counts.iter_mut().find(|(known, _)| *known == what) {
        Some((_, count)) => *count = count.saturating_add(1),
        None => counts.push((what, 1)),
    }
}

fn count_down<T: PartialEq>(counts: &mut Vec<(T, u32)>, what: &T) {
    if let Some(at) = counts.iter().position(|(known, _)| known == what) {
        counts[at].1 = counts[at].1.saturating_sub(1);
        if counts[at].1 == 0 {
            counts.swap_remove(at);
        }
    }
}
