//! The catalog as a set of records, for checkpoints and snapshots.
//!
//! Enum variants are only ever appended: their order is on disks.

use super::Catalog;
use super::changes::ChangeLog;
use super::model::{Customer, Key, License, Plan};
use crate::account::Name;
use crate::admin::replies::Remembered;
use crate::admin::staging::{Part, PartKey};
use crate::ids::Revision;
use crate::ledger::records::KIND_CATALOG;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

pub(super) const KIND_META: u8 = KIND_CATALOG;
pub(super) const KIND_PLAN: u8 = KIND_CATALOG + 1;
pub(super) const KIND_CUSTOMER: u8 = KIND_CATALOG + 2;
pub(super) const KIND_LICENSE: u8 = KIND_CATALOG + 3;
pub(super) const KIND_KEY: u8 = KIND_CATALOG + 4;
pub(super) const KIND_STAGED: u8 = KIND_CATALOG + 5;
pub(super) const KIND_REPLY: u8 = KIND_CATALOG + 6;

/// What the catalog knows of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CatalogMeta {
    /// The last change.
    pub revision: Revision,
}

/// The name of a record of the catalog.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum CatalogKey {
    /// The one [`CatalogMeta`].
    Meta,
    /// A version of a plan.
    Plan(Name, u32),
    /// A customer.
    Customer(Name),
    /// A licence.
    License(Name),
    /// A key, by public id.
    Key(Name),
    /// A staged part of a catalog file.
    Staged(PartKey),
    /// A remembered answer, by its number.
    Reply(u64),
}

/// A record of the catalog.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum CatalogRecord {
    /// See [`CatalogKey::Meta`].
    Meta(CatalogMeta),
    /// See [`CatalogKey::Plan`].
    Plan(Arc<Plan>),
    /// See [`CatalogKey::Customer`].
    Customer(Customer),
    /// See [`CatalogKey::License`].
    License(License),
    /// See [`CatalogKey::Key`].
    Key(Key),
    /// See [`CatalogKey::Staged`].
    Staged(Part),
    /// See [`CatalogKey::Reply`].
    Reply(Remembered),
}

impl Catalog {
    /// Digest of all records.
    pub(crate) fn digest(&self) -> u128 {
        [
            self.meta.digest(),
            self.plans.digest(),
            self.customers.digest(),
            self.licenses.digest(),
            self.keys.digest(),
            self.staging.digest(),
            self.replies.digest(),
        ]
        .into_iter()
        .fold(0, u128::wrapping_add)
    }

    /// Keys of the records that changed since the last call.
    pub(crate) fn take_dirty(&mut self) -> Vec<CatalogKey> {
        let mut keys = Vec::new();
        keys.extend(
            self.meta
                .take_dirty()
                .into_iter()
                .map(|()| CatalogKey::Meta),
        );
        keys.extend(
            self.plans
                .take_dirty()
                .into_iter()
                .map(|(id, v)| CatalogKey::Plan(id, v)),
        );
        keys.extend(
            self.customers
                .take_dirty()
                .into_iter()
                .map(CatalogKey::Customer),
        );
        keys.extend(
            self.licenses
                .take_dirty()
                .into_iter()
                .map(CatalogKey::License),
        );
        keys.extend(self.keys.take_dirty().into_iter().map(CatalogKey::Key));
        keys.extend(
            self.staging
                .take_dirty()
                .into_iter()
                .map(CatalogKey::Staged),
        );
        keys.extend(self.replies.take_dirty().into_iter().map(CatalogKey::Reply));
        keys
    }

    /// The record under a key; `None` when it was removed.
    pub(crate) fn record(&self, key: &CatalogKey) -> Option<CatalogRecord> {
        match key {
            CatalogKey::Meta => self.meta.get(&()).copied().map(CatalogRecord::Meta),
            CatalogKey::Plan(id, version) => self
                .plans
                .get(&(id.clone(), *version))
                .cloned()
                .map(CatalogRecord::Plan),
            CatalogKey::Customer(id) => {
                self.customers.get(id).cloned().map(CatalogRecord::Customer)
            }
            CatalogKey::License(id) => self.licenses.get(id).cloned().map(CatalogRecord::License),
            CatalogKey::Key(id) => self.keys.get(id).cloned().map(CatalogRecord::Key),
            CatalogKey::Staged(key) => self.staging.part(key).cloned().map(CatalogRecord::Staged),
            CatalogKey::Reply(number) => self
                .replies
                .numbered(*number)
                .cloned()
                .map(CatalogRecord::Reply),
        }
    }

    /// Every record.
    pub(crate) fn records(&self) -> impl Iterator<Item = (CatalogKey, CatalogRecord)> + '_ {
        use CatalogKey as K;
        use CatalogRecord as R;
        let meta = self.meta.iter().map(|((), v)| (K::Meta, R::Meta(*v)));
        let plans = self
            .plans
            .iter()
            .map(|((id, version), v)| (K::Plan(id.clone(), *version), R::Plan(Arc::clone(v))));
        let customers = self
            .customers
            .iter()
            .map(|(k, v)| (K::Customer(k.clone()), R::Customer(v.clone())));
        let licenses = self
            .licenses
            .iter()
            .map(|(k, v)| (K::License(k.clone()), R::License(v.clone())));
        let keys = self
            .keys
            .iter()
            .map(|(k, v)| (K::Key(k.clone()), R::Key(v.clone())));
        let staged = self
            .staging
            .parts()
            .map(|(k, v)| (K::Staged(k.clone()), R::Staged(v.clone())));
        let replies = self
            .replies
            .iter()
            .map(|(k, v)| (K::Reply(*k), R::Reply(v.clone())));
        meta.chain(plans)
            .chain(customers)
            .chain(licenses)
            .chain(keys)
            .chain(staged)
            .chain(replies)
    }

    /// Takes one record in, in whatever order they come; `false` when it does not fit its key.
    pub(crate) fn restore(&mut self, key: CatalogKey, record: CatalogRecord) -> bool {
        match (key, record) {
            (CatalogKey::Meta, CatalogRecord::Meta(meta)) => {
                self.meta.put((), meta);
                self.changes = ChangeLog::starting_after(meta.revision.index);
            }
            (CatalogKey::Plan(id, version), CatalogRecord::Plan(plan))
                if plan.id == id && plan.version == version =>
            {
                self.put_plan(plan);
            }
            (CatalogKey::Customer(id), CatalogRecord::Customer(customer)) if customer.id == id => {
                self.put_customer(customer);
            }
            (CatalogKey::License(id), CatalogRecord::License(license)) if license.id == id => {
                self.put_license(license);
            }
            (CatalogKey::Key(id), CatalogRecord::Key(key)) if key.id == id => self.put_key(key),
            (CatalogKey::Staged(key), CatalogRecord::Staged(part)) => self.staging.put(key, part),
            (CatalogKey::Reply(number), CatalogRecord::Reply(reply)) => {
                self.replies.put(number, reply);
            }
            _ => return false,
        }
        true
    }
}
