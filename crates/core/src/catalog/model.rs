//! The records of the catalog: plans, customers, licences, keys.
//!
//! Plain data; who may change what is judged in [`crate::admin`]. Enum variants are only ever appended.

use crate::account::{Environment, Name, Per, Window};
use crate::ids::Units;
use crate::time::LedgerTime;
use serde::{Deserialize, Serialize};
use std::fmt;
use subtle::{Choice, ConstantTimeEq};

/// Most limits of one plan: every check takes from all that apply.
pub const LIMITS_PER_PLAN_MAX: usize = 16;

/// Most secrets a key keeps at once, ended ones included until room is needed.
pub const SECRETS_PER_KEY_MAX: usize = 6;

/// Plans a licence was on before that are remembered, so that late reports find their accounts.
pub const FORMER_PLANS_MAX: usize = 64;

/// Largest quota: what TOML and SQL hold in a signed 64-bit integer.
pub const QUOTA_MAX: Units = i64::MAX.unsigned_abs();

/// What happens when a quota is used up. Billing, grace and throttling come with the overage policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overage {
    /// Nothing more is admitted.
    Reject,
}

/// A bound on a meter.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Limit {
    /// Stable across versions: it is a part of the account's name. Unique within the plan.
    pub name: Name,
    /// What it counts.
    pub meter: Name,
    /// For whom it counts.
    pub per: Per,
    /// Units allowed, at most [`QUOTA_MAX`]; 0 allows nothing.
    pub quota: Units,
    /// What it counts in.
    pub window: Window,
    /// What happens at its end.
    pub overage: Overage,
}

/// One version of a plan; never changed once written.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Plan {
    /// The plan.
    pub id: Name,
    /// Counted from 1.
    pub version: u32,
    /// In the order of the file.
    pub limits: Vec<Limit>,
}

/// The account that pays.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Customer {
    /// Its id; its hash decides the slot of all its accounts.
    pub id: Name,
}

/// Whether a licence allows use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LicenseStatus {
    /// Use is allowed.
    Active,
    /// Use is refused until it is active again.
    Suspended,
    /// Use is refused; the licence ended.
    Cancelled,
}

/// A customer on a plan.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct License {
    /// Its id.
    pub id: Name,
    /// Who pays; never changes, the accounts hang on it.
    pub customer: Name,
    /// The plan.
    pub plan: Name,
    /// The version it is pinned to; `None` follows the newest.
    pub version: Option<u32>,
    /// Whether it allows use.
    pub status: LicenseStatus,
    /// Plans it was on before, oldest first, at most [`FORMER_PLANS_MAX`]; written by the ledger.
    pub former_plans: Vec<Name>,
}

/// Names the pepper an HMAC was made under; peppers live in the nodes' configuration.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct PepperId(pub u32);

/// What is stored of a secret: `HMAC-SHA-256(pepper, SHA-256(secret))` and which pepper it was.
///
/// Never printed: `Debug` shows the pepper only.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SecretMac {
    /// The HMAC.
    #[serde(with = "crate::hex")]
    pub hmac: [u8; 32],
    /// The pepper it was made under.
    pub pepper: PepperId,
}

impl fmt::Debug for SecretMac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretMac(pepper {})", self.pepper.0)
    }
}

/// One secret of a key with its validity, in ledger time.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Secret {
    /// What is stored of it.
    pub mac: SecretMac,
    /// First moment it is accepted.
    pub valid_from: LedgerTime,
    /// First moment it is no longer accepted; `None` while it has no end.
    pub valid_until: Option<LedgerTime>,
}

impl Secret {
    /// Whether it is accepted at a moment.
    #[must_use]
    pub fn is_valid(&self, time: LedgerTime) -> bool {
        self.valid_from <= time && self.valid_until.is_none_or(|end| time < end)
    }
}

/// How a presented secret compares with those of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretCheck {
    /// It is one of them and valid now.
    Valid,
    /// It is one of them, outside its validity.
    Ended,
    /// It is none of them.
    Unknown,
}

/// A credential of a licence.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Key {
    /// The public id; carries its slot, see [`crate::credential`].
    pub id: Name,
    /// The licence it belongs to; never changes.
    pub license: Name,
    /// Live or test; never changes.
    pub environment: Environment,
    /// At most [`SECRETS_PER_KEY_MAX`], oldest first.
    pub secrets: Vec<Secret>,
    /// When it was revoked, for good.
    pub revoked_at: Option<LedgerTime>,
}

impl Key {
    /// Compares a presented secret with every one of the key's, in a time that does not depend on how
    /// many bytes agree or on which of them it is.
    #[must_use]
    pub fn check(&self, hmac: &[u8; 32], pepper: PepperId, time: LedgerTime) -> SecretCheck {
        let mut known = Choice::from(0);
        let mut valid = Choice::from(0);
        for secret in &self.secrets {
            let same = secret.mac.hmac.ct_eq(hmac) & secret.mac.pepper.0.ct_eq(&pepper.0);
            known |= same;
            valid |= same & Choice::from(u8::from(secret.is_valid(time)));
        }
        match (bool::from(valid), bool::from(known)) {
            (true, _) => SecretCheck::Valid,
            (false, true) => SecretCheck::Ended,
            (false, false) => SecretCheck::Unknown,
        }
    }

    /// Whether a presented secret opens this key now; says nothing of the licence.
    #[must_use]
    pub fn accepts(&self, hmac: &[u8; 32], pepper: PepperId, time: LedgerTime) -> bool {
        !self.is_revoked(time) & (self.check(hmac, pepper, time) == SecretCheck::Valid)
    }

    /// Whether it was revoked by this moment.
    #[must_use]
    pub fn is_revoked(&self, time: LedgerTime) -> bool {
        self.revoked_at.is_some_and(|at| at <= time)
    }
}
