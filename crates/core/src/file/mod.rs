//! The file people write: plans, customers, licences and keys (design §14), as data with its checks.
//!
//! `tollgate-core` reads no files: a command reads TOML (or JSON) into a [`CatalogFile`], whose
//! [`CatalogFile::validate`] says everything that is wrong at once, each time by the path of the field.
//! What needs the catalog to judge (a plan that is in neither) is said by the ledger in the same form.
//! Applying a file makes and changes what it names and leaves everything else as it is.
//! This version knows quotas in the window `open`; the other words of the format are refused by name,
//! never ignored. Next: [`field`] for how a value is taken, [`check`] for the rules.

mod check;
mod export;
pub mod field;

pub use check::{FileItems, FileKey};
use field::{Field, Withheld};
use serde::{Deserialize, Serialize};

/// A catalog file as it was written. Unknown fields are refused by name when it is read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CatalogFile {
    /// `[[plan]]`
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub plan: Vec<PlanEntry>,
    /// `[[customer]]`
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub customer: Vec<CustomerEntry>,
    /// `[[license]]`
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub license: Vec<LicenseEntry>,
    /// `[[key]]`
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub key: Vec<KeyEntry>,
    /// `[[route]]`: a word of the format that this version refuses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub route: Vec<Field>,
}

/// A plan. Other limits than its newest version's make the next version.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PlanEntry {
    /// A name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<Field>,
    /// `[[plan.limit]]`, 1 to 16 of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub limit: Vec<LimitEntry>,
}

/// A limit of a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitEntry {
    /// A name, once per plan, stable across versions: it is a part of the account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Field>,
    /// What is counted: `requests`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub meter: Option<Field>,
    /// For whom: `customer`, `license` or `key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per: Option<Field>,
    /// Units allowed: 0 (nothing) to 2^63 − 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota: Option<Field>,
    /// What it counts in: `open`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<Field>,
    /// What happens at its end: `reject`, also when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overage: Option<Field>,
    /// A word of the format that this version refuses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<Field>,
    /// A word of the format that this version refuses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<Field>,
    /// A word of the format that this version refuses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub permits: Option<Field>,
}

/// A customer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CustomerEntry {
    /// A name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<Field>,
}

/// A licence.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LicenseEntry {
    /// A name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<Field>,
    /// Who pays; cannot change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub customer: Option<Field>,
    /// The plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<Field>,
    /// A version that stands, to stay on it; follows the newest when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan_version: Option<Field>,
    /// `active`, `suspended` or `cancelled`; stays as it is when left out, active when new.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Field>,
}

/// A key. A file never carries a secret, only its SHA-256.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KeyEntry {
    /// The public id: the 12 characters after the prefix of the key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<Field>,
    /// The licence; cannot change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub license: Option<Field>,
    /// `live` (also when left out) or `test`; cannot change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<Field>,
    /// SHA-256 of the secret in hexadecimal; needed when the key is new.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_sha256: Option<Field>,
    /// Refused, and never shown.
    #[serde(skip_serializing)]
    pub secret: Option<Withheld>,
}
