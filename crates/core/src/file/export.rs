//! A catalog as a file: what applied to the same catalog changes nothing.
//!
//! Plans come in their newest version, keys without their secrets (nothing that is stored gives the
//! SHA-256 back), so a file exported here makes plans, customers and licences anew, but no keys.

use super::field::Field;
use super::{CatalogFile, CustomerEntry, KeyEntry, LicenseEntry, LimitEntry, PlanEntry};
use crate::catalog::{Catalog, Key, License, Limit, Plan};
use serde::Serialize;

impl CatalogFile {
    /// The whole catalog as a file.
    #[must_use]
    pub fn from_catalog(catalog: &Catalog) -> Self {
        let is_newest = |plan: &&Plan| {
            catalog
                .newest_plan(plan.id.as_str())
                .is_some_and(|newest| newest.version == plan.version)
        };
        let customer = |id| CustomerEntry {
            id: Some(Field::text(id)),
        };
        Self {
            plan: catalog.plans().filter(is_newest).map(plan).collect(),
            customer: catalog.customers().map(|c| customer(&c.id)).collect(),
            license: catalog.licenses().map(license).collect(),
            key: catalog.keys().map(key).collect(),
            route: Vec::new(),
        }
    }
}

fn plan(plan: &Plan) -> PlanEntry {
    PlanEntry {
        id: Some(Field::text(&plan.id)),
        limit: plan.limits.iter().map(limit).collect(),
    }
}

fn limit(limit: &Limit) -> LimitEntry {
    let quota = i64::try_from(limit.quota);
    LimitEntry {
        name: Some(Field::text(&limit.name)),
        meter: Some(Field::text(&limit.meter)),
        per: word(&limit.per),
        quota: quota.ok().map(Field::Integer),
        window: word(&limit.window),
        overage: word(&limit.overage),
        ..LimitEntry::default()
    }
}

fn license(license: &License) -> LicenseEntry {
    LicenseEntry {
        id: Some(Field::text(&license.id)),
        customer: Some(Field::text(&license.customer)),
        plan: Some(Field::text(&license.plan)),
        plan_version: license
            .version
            .map(|version| Field::Integer(i64::from(version))),
        status: word(&license.status),
    }
}

fn key(key: &Key) -> KeyEntry {
    KeyEntry {
        id: Some(Field::text(&key.id)),
        license: Some(Field::text(&key.license)),
        environment: word(&key.environment),
        ..KeyEntry::default()
    }
}

/// The word of the format for a value that is one: the one it serialises to.
fn word(value: &impl Serialize) -> Option<Field> {
    let json = serde_json::to_value(value).ok()?;
    json.as_str().map(Field::text)
}
