//! The ledger as a set of records, for checkpoints and snapshots.
//!
//! [`RecordKey`] names a record, [`Record`] is it; [`Ledger::take_dirty`] lists what changed,
//! [`Ledger::restore`] builds a ledger from all records. Encoding is the business of `tollgate-wire`.
//! Enum variants are only ever appended: their order is on disks.

use super::Ledger;
use super::accounts::Row;
use super::sessions::Session;
use super::slots::{NodeEntry, SlotEntry};
use crate::account::{AccountId, Environment, Name};
use crate::catalog::{CatalogKey, CatalogRecord, PepperId};
use crate::digest::StableHasher;
use crate::ids::{Boot, Incarnation, NodeId, SessionId, Slot, Units};
use crate::time::LedgerTime;
use serde::{Deserialize, Serialize};
use std::hash::Hash;
use std::sync::Arc;

pub(crate) const KIND_META: u8 = 1;
pub(crate) const KIND_NODE: u8 = 2;
pub(crate) const KIND_SLOT: u8 = 3;
pub(crate) const KIND_SESSION: u8 = 4;
pub(crate) const KIND_ACCOUNT: u8 = 5;
pub(crate) const KIND_USAGE: u8 = 6;
pub(crate) const KIND_SUSPENSE: u8 = 7;
pub(crate) const KIND_PEPPER: u8 = 8;
/// First kind of the catalog's tables; the catalog numbers on from here.
pub(crate) const KIND_CATALOG: u8 = 32;

/// Keys of one license counted apart in one hour; more are summed under `other`.
pub const USAGE_KEYS_PER_HOUR_MAX: usize = 1000;

/// The version of the meaning of `apply`: raised by all nodes together. [`Ledger::restore`] refuses a later one.
pub const CLUSTER_VERSION: u32 = 1;

/// Counters and clocks of the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Meta {
    /// The life of this data.
    pub incarnation: Incarnation,
    /// What `apply` means.
    pub cluster_version: u32,
    /// Last applied index.
    pub index: u64,
    /// Ledger time.
    pub time: LedgerTime,
    /// Last boot given out.
    pub last_boot: Boot,
    /// Last session given out.
    pub last_session: SessionId,
    /// Index of the newest change of the slot table.
    pub routes_index: u64,
    /// Number and hash of the newest audit entry.
    pub audit_head: (u64, [u8; 32]),
}

impl Meta {
    pub(crate) fn new(incarnation: Incarnation) -> Self {
        Self {
            incarnation,
            cluster_version: CLUSTER_VERSION,
            index: 0,
            time: LedgerTime(0),
            last_boot: Boot(0),
            last_session: SessionId(0),
            routes_index: 0,
            audit_head: (0, [0; 32]),
        }
    }

    pub(crate) fn digest(&self) -> u128 {
        let mut hasher = StableHasher::default();
        (KIND_META, self).hash(&mut hasher);
        hasher.take128()
    }
}

/// A usage record: one meter of one key of one license in one hour. `key: None` sums the rest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct UsageKey {
    /// The license.
    pub license: Name,
    /// Hours since 1970, by ledger time when it was settled.
    pub hour: u64,
    /// Live or test.
    pub environment: Environment,
    /// The meter.
    pub meter: Name,
    /// The key; `None` beyond [`USAGE_KEYS_PER_HOUR_MAX`].
    pub key: Option<Name>,
}

impl UsageKey {
    /// A key that sorts before every key of a licence from an hour on, and after all of the hour before.
    pub(crate) fn first_of(license: &Name, hour: u64) -> Self {
        Self {
            license: license.clone(),
            hour,
            environment: Environment::Live,
            meter: Name::least(),
            key: None,
        }
    }
}

/// Where use of an unknown name is kept. `name: None` sums what exceeds the bound of names; under session 0
/// stands what exceeds the bound of sessions, too.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SuspenseKey {
    /// The session that reported it.
    pub session: SessionId,
    /// The account, license or license/key/meter it named.
    pub name: Option<Arc<str>>,
}

/// The name of a record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RecordKey {
    /// The one [`Meta`].
    Meta,
    /// A node.
    Node(NodeId),
    /// A slot.
    Slot(Slot),
    /// A session.
    Session(SessionId),
    /// A quota account.
    Account(AccountId),
    /// A usage record.
    Usage(UsageKey),
    /// A line in suspense.
    Suspense(SuspenseKey),
    /// A record of the catalog.
    Catalog(CatalogKey),
    /// The cluster's pepper.
    Pepper,
}

/// A record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// See [`RecordKey::Meta`].
    Meta(Meta),
    /// See [`RecordKey::Node`].
    Node(NodeEntry),
    /// See [`RecordKey::Slot`].
    Slot(SlotEntry),
    /// See [`RecordKey::Session`].
    Session(Session),
    /// See [`RecordKey::Account`].
    Account(Row),
    /// See [`RecordKey::Usage`].
    Usage(Units),
    /// See [`RecordKey::Suspense`].
    Suspense(Units),
    /// See [`RecordKey::Catalog`].
    Catalog(CatalogRecord),
    /// See [`RecordKey::Pepper`].
    Pepper(PepperId),
}

/// Why records make no ledger.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// A key came with a record of another kind.
    #[error("the record under {0:?} is of another kind: the data is damaged, rebuild the node")]
    Kind(RecordKey),
    /// There was no [`Meta`].
    #[error("the ledger's meta record is missing: the data is damaged, rebuild the node")]
    NoMeta,
    /// Later builds wrote it, under another meaning of `apply`: by this one's the replicas would differ.
    #[error(
        "the ledger has version {found}, this build knows versions up to {known}: run the newer build"
    )]
    Newer {
        /// The records' version.
        found: u32,
        /// [`CLUSTER_VERSION`].
        known: u32,
    },
}

impl Ledger {
    /// Keys of the records that changed since the last call.
    pub fn take_dirty(&mut self) -> Vec<RecordKey> {
        let mut keys = vec![RecordKey::Meta];
        keys.extend(self.nodes.take_dirty().into_iter().map(RecordKey::Node));
        keys.extend(self.slots.take_dirty().into_iter().map(RecordKey::Slot));
        keys.extend(
            self.sessions
                .take_dirty()
                .into_iter()
                .map(RecordKey::Session),
        );
        keys.extend(
            self.accounts
                .take_dirty()
                .into_iter()
                .map(RecordKey::Account),
        );
        keys.extend(self.usage.take_dirty().into_iter().map(RecordKey::Usage));
        keys.extend(
            self.suspense
                .take_dirty()
                .into_iter()
                .map(RecordKey::Suspense),
        );
        keys.extend(
            self.catalog
                .take_dirty()
                .into_iter()
                .map(RecordKey::Catalog),
        );
        let pepper = self.pepper.take_dirty().into_iter();
        keys.extend(pepper.map(|()| RecordKey::Pepper));
        keys
    }

    /// The record under a key; `None` when it was removed.
    #[must_use]
    pub fn record(&self, key: &RecordKey) -> Option<Record> {
        match key {
            RecordKey::Meta => Some(Record::Meta(self.meta.clone())),
            RecordKey::Node(id) => self.nodes.get(id).copied().map(Record::Node),
            RecordKey::Slot(slot) => self.slots.get(slot).copied().map(Record::Slot),
            RecordKey::Session(id) => self.sessions.get(*id).cloned().map(Record::Session),
            RecordKey::Account(id) => self.accounts.get(id).copied().map(Record::Account),
            RecordKey::Usage(key) => self.usage.get(key).map(Record::Usage),
            RecordKey::Suspense(key) => self.suspense.get(key).copied().map(Record::Suspense),
            RecordKey::Catalog(key) => self.catalog.record(key).map(Record::Catalog),
            RecordKey::Pepper => self.pepper().map(Record::Pepper),
        }
    }

    /// Every record, for snapshots.
    pub fn records(&self) -> impl Iterator<Item = (RecordKey, Record)> + '_ {
        let meta = std::iter::once((RecordKey::Meta, Record::Meta(self.meta.clone())));
        meta.chain(
            self.nodes
                .iter()
                .map(|(k, v)| (RecordKey::Node(*k), Record::Node(*v))),
        )
        .chain(
            self.slots
                .iter()
                .map(|(k, v)| (RecordKey::Slot(*k), Record::Slot(*v))),
        )
        .chain(
            self.sessions
                .iter()
                .map(|(k, v)| (RecordKey::Session(k), Record::Session(v.clone()))),
        )
        .chain(
            self.accounts
                .iter()
                .map(|(k, v)| (RecordKey::Account(k.clone()), Record::Account(*v))),
        )
        .chain(
            self.usage
                .iter()
                .map(|(k, v)| (RecordKey::Usage(k.clone()), Record::Usage(v))),
        )
        .chain(
            self.suspense
                .iter()
                .map(|(k, v)| (RecordKey::Suspense(k.clone()), Record::Suspense(*v))),
        )
        .chain(
            self.catalog
                .records()
                .map(|(k, v)| (RecordKey::Catalog(k), Record::Catalog(v))),
        )
        .chain(
            self.pepper()
                .map(|v| (RecordKey::Pepper, Record::Pepper(v))),
        )
    }

    /// A ledger from all its records, in any order. Stops at a meta record of a later version: where that comes first,
    /// as in the order of keys, nothing of a kind that this build does not know is asked for.
    ///
    /// # Errors
    /// [`RestoreError`] when a record does not fit its key, the meta record is missing, or it is of a later version.
    pub fn restore(
        records: impl IntoIterator<Item = (RecordKey, Record)>,
    ) -> Result<Self, RestoreError> {
        let mut ledger = Self::new(Incarnation(0));
        let mut meta = None;
        for (key, record) in records {
            match (key, record) {
                (RecordKey::Meta, Record::Meta(found)) => {
                    if found.cluster_version > CLUSTER_VERSION {
                        return Err(RestoreError::Newer {
                            found: found.cluster_version,
                            known: CLUSTER_VERSION,
                        });
                    }
                    meta = Some(found);
                }
                (RecordKey::Node(id), Record::Node(v)) => ledger.nodes.put(id, v),
                (RecordKey::Slot(slot), Record::Slot(v)) => ledger.slots.put(slot, v),
                (RecordKey::Session(id), Record::Session(v)) => ledger.sessions.put(id, v),
                (RecordKey::Account(id), Record::Account(v)) => ledger.accounts.put(id, v),
                (RecordKey::Usage(key), Record::Usage(v)) => ledger.usage.put(key, v),
                (RecordKey::Suspense(key), Record::Suspense(v)) => {
                    ledger.suspense_units = ledger.suspense_units.saturating_add(v);
                    ledger.suspense.put(key, v);
                }
                (RecordKey::Catalog(key), Record::Catalog(v)) => {
                    if !ledger.catalog.restore(key.clone(), v) {
                        return Err(RestoreError::Kind(RecordKey::Catalog(key)));
                    }
                }
                (RecordKey::Pepper, Record::Pepper(v)) => ledger.pepper.put((), v),
                (key, _) => return Err(RestoreError::Kind(key)),
            }
        }
        ledger.meta = meta.ok_or(RestoreError::NoMeta)?;
        ledger.take_dirty();
        Ok(ledger)
    }
}
