//! Administration: the commands that change the catalog or correct a balance, and how they are judged.
//!
//! `apply` is total: whatever a command says, the answer is an [`AdminReply`], and a command either takes
//! effect whole or not at all. In this order: its form; the answer remembered under its idempotency key
//! ([`replies`]); its base revision; its contents ([`upsert`]). Every changed record appends its entry to
//! the audit chain in the same apply ([`crate::audit`]). Who may send a command is decided at the rim, by
//! certificate. Next: [`staging`] for files larger than one log entry.

#![cfg_attr(
    not(test),
    warn(
        clippy::arithmetic_side_effects,
        clippy::iter_over_hash_type,
        clippy::float_arithmetic
    )
)]

mod keys;
pub mod replies;
pub mod staging;
mod trial;
mod upsert;

pub use replies::REPLIES_MAX;
pub use staging::{PARTS_MAX, STAGED_BYTES_MAX, UPLOAD_TTL_MS, UPLOADS_MAX};
pub use trial::Trial;

use crate::account::{AccountId, Environment, Name};
use crate::audit::{Action, Statement};
use crate::catalog::{Key, LicenseStatus, Limit, Problem, Secret, SecretMac};
use crate::digest::StableHasher;
use crate::ids::{Revision, Units};
use crate::ledger::Ledger;
use crate::time::LedgerTime;
use replies::Remembered;
use serde::{Deserialize, Serialize};
use serde_json::json;
use staging::{Part, PartKey};
use std::hash::Hash;
use std::sync::Arc;

/// Longest reason, in bytes.
pub const REASON_BYTES_MAX: usize = 512;

/// Most records in one command; what a log entry holds bounds it further.
pub const ITEMS_MAX: usize = 4096;

/// Bytes that [`parts`] puts into one part, by [`Item::size_bytes`]: leaves room in a log entry of 64 KiB.
pub const PART_BYTES_MAX: usize = 48 * 1024;

/// A change asked by an administrator.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AdminCommand {
    /// Who asks: the name in the certificate.
    pub principal: Name,
    /// Chosen by the sender: the same key gets the same answer.
    pub idempotency_key: Option<Name>,
    /// The catalog the sender has seen; refused when it has changed since. `None` takes any.
    pub base_revision: Option<Revision>,
    /// Why, for the audit log: 1 to [`REASON_BYTES_MAX`] bytes, one line.
    pub reason: Arc<str>,
    /// What.
    pub change: Change,
}

/// What an [`AdminCommand`] changes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Change {
    /// Makes or changes the records named, all or none. What is not named stays as it is.
    Apply {
        /// At most [`ITEMS_MAX`], in any order.
        items: Vec<Item>,
    },
    /// Puts a part of a larger file by, see [`staging`]. Takes no effect and is not remembered.
    Stage {
        /// Names the upload.
        upload: Name,
        /// Which part, from 0, below [`PARTS_MAX`].
        part: u32,
        /// At most [`ITEMS_MAX`].
        items: Vec<Item>,
    },
    /// Like `Apply`, with the items of all parts staged under a name by the same principal.
    Commit {
        /// Names the upload.
        upload: Name,
        /// How many parts it has.
        parts: u32,
        /// [`items_hash`] of all items: parts of two files of one name are never mixed.
        hash: u64,
    },
    /// Makes a key; its secret was drawn by the node, which stores only this.
    CreateKey {
        /// The licence.
        license: Name,
        /// Live or test.
        environment: Environment,
        /// The public id drawn.
        id: Name,
        /// What is stored of the secret drawn.
        mac: SecretMac,
        /// When the secret ends, in ledger time.
        valid_until: Option<LedgerTime>,
    },
    /// Revokes a key for good.
    RevokeKey {
        /// Its public id.
        key: Name,
    },
    /// Gives a key another secret; those it has end after an overlap. Counters and history stay.
    RotateKey {
        /// Its public id.
        key: Name,
        /// What is stored of the secret drawn.
        mac: SecretMac,
        /// How long the secrets before stay valid; 0 ends them at once.
        overlap_ms: u64,
    },
    /// Suspends, cancels or resumes a licence.
    SetLicenseStatus {
        /// The licence.
        license: Name,
        /// Its new status.
        status: LicenseStatus,
    },
    /// Frees stranded units of an account. If a holder of them lives after all, as many may be admitted
    /// beyond the limit; the answer and the audit entry show that bound.
    WriteOff {
        /// The account.
        account: AccountId,
        /// At most this many.
        units: Units,
    },
}

/// A record as a file states it: what it should be, whatever it was.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Item {
    /// A plan; other limits than its newest version's make the next version.
    Plan {
        /// Its id.
        id: Name,
        /// In order.
        limits: Vec<Limit>,
    },
    /// A customer.
    Customer {
        /// Its id.
        id: Name,
    },
    /// A licence.
    License {
        /// Its id.
        id: Name,
        /// Who pays; cannot change.
        customer: Name,
        /// The plan.
        plan: Name,
        /// The version it is pinned to; `None` follows the newest.
        version: Option<u32>,
        /// `None`: stays; active when new.
        status: Option<LicenseStatus>,
    },
    /// A key.
    Key {
        /// Its public id.
        id: Name,
        /// The licence; cannot change.
        license: Name,
        /// Live or test; cannot change.
        environment: Environment,
        /// What is stored of its secret; needed when new. An existing key is not rotated by a file.
        mac: Option<SecretMac>,
    },
}

impl Item {
    /// An upper bound of its size in memory and on the wire, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        // A number takes at most 9 bytes on the wire, a name its length and such a number.
        const NUMBER: usize = 9;
        let sum = |sizes: &[usize]| sizes.iter().fold(0_usize, |sum, n| sum.saturating_add(*n));
        let name = |name: &Name| sum(&[NUMBER, name.as_str().len()]);
        let sizes = match self {
            Self::Plan { id, limits } => {
                let limit = |l: &Limit| sum(&[name(&l.name), name(&l.meter), 5 * NUMBER]);
                let limits: Vec<usize> = limits.iter().map(limit).collect();
                sum(&[name(id), NUMBER, sum(&limits)])
            }
            Self::Customer { id } => name(id),
            Self::License {
                id, customer, plan, ..
            } => sum(&[name(id), name(customer), name(plan), 4 * NUMBER]),
            Self::Key { id, license, .. } => sum(&[name(id), name(license), 32, 4 * NUMBER]),
        };
        sum(&[NUMBER, sizes])
    }
}

/// Hash of items for [`Change::Commit`].
pub fn items_hash<'a>(items: impl IntoIterator<Item = &'a Item>) -> u64 {
    let mut hasher = StableHasher::default();
    for item in items {
        item.hash(&mut hasher);
    }
    std::hash::Hasher::finish(&hasher)
}

/// Divides items into parts that each fit one log entry. One part means that `Apply` will do.
#[must_use]
pub fn parts(items: Vec<Item>) -> Vec<Vec<Item>> {
    let mut parts = vec![Vec::new()];
    let mut size = 0_usize;
    for item in items {
        let grown = size.saturating_add(item.size_bytes());
        match parts.last_mut() {
            Some(part)
                if part.is_empty() || (grown <= PART_BYTES_MAX && part.len() < ITEMS_MAX) =>
            {
                size = grown;
                part.push(item);
            }
            _ => {
                size = item.size_bytes();
                parts.push(vec![item]);
            }
        }
    }
    parts
}

/// The answer to an [`AdminCommand`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum AdminReply {
    /// It took effect.
    Done {
        /// The catalog's revision with the change.
        revision: Revision,
        /// How many records changed.
        changed: u32,
    },
    /// A key was made.
    KeyCreated {
        /// The catalog's revision with the key.
        revision: Revision,
        /// Its public id: the first one drawn, when the command came again.
        key: Name,
    },
    /// Units were written off.
    WrittenOff {
        /// How many: also the most that may now be admitted beyond the limit.
        freed: Units,
        /// Still out.
        out: Units,
    },
    /// A part is put by.
    Staged {
        /// How many parts of its upload stand.
        parts: u32,
    },
    /// All is as asked already; nothing changed.
    Unchanged {
        /// The catalog's revision.
        revision: Revision,
    },
    /// The catalog changed since the sender looked: look again, decide again.
    Conflict {
        /// The base the command named.
        expected: Revision,
        /// What stands.
        current: Revision,
    },
    /// The contents are wrong; nothing changed. At most [`crate::catalog::PROBLEMS_MAX`] are told.
    Invalid(Vec<Problem>),
    /// What the command names does not exist: `license acme-free`, `upload 7f3a (2 of 5 parts)`.
    NotFound(Arc<str>),
    /// The idempotency key was used for another command; nothing changed.
    IdempotencyMismatch,
    /// The command breaks a bound; nothing changed.
    Malformed(Arc<str>),
}

impl AdminCommand {
    /// Hash of what the sender asked: everything but what a node draws at random for it, so that a
    /// repeated request for a key gets the answer of the first one.
    #[must_use]
    pub fn content_hash(&self) -> u128 {
        let mut hasher = StableHasher::default();
        (&self.base_revision, &self.reason).hash(&mut hasher);
        match &self.change {
            Change::CreateKey {
                license,
                environment,
                id: _,
                mac: _,
                valid_until,
            } => {
                ("create", license, environment, valid_until).hash(&mut hasher);
            }
            Change::RotateKey {
                key,
                mac: _,
                overlap_ms,
            } => {
                ("rotate", key, overlap_ms).hash(&mut hasher);
            }
            change => ("change", change).hash(&mut hasher),
        }
        hasher.take128()
    }

    /// What is wrong with its form.
    fn malformed(&self) -> Option<String> {
        if let Some(why) = malformed_reason(&self.reason) {
            return Some(why);
        }
        match &self.change {
            Change::Apply { items } | Change::Stage { items, .. } if items.len() > ITEMS_MAX => {
                Some(format!(
                    "{} records in one command, at most {ITEMS_MAX}",
                    items.len()
                ))
            }
            Change::Apply { items } | Change::Stage { items, .. } if items.is_empty() => {
                Some("no records: name at least one".to_owned())
            }
            Change::Stage { part, .. } if *part >= PARTS_MAX => {
                Some(format!("part {part}: parts are 0 to {}", PARTS_MAX - 1))
            }
            Change::Commit { parts, .. } if *parts > PARTS_MAX || *parts == 0 => {
                Some(format!("{parts} parts: expected 1 to {PARTS_MAX}"))
            }
            _ => None,
        }
    }
}

/// What is wrong with a reason.
#[must_use]
pub fn malformed_reason(reason: &str) -> Option<String> {
    if reason.trim().is_empty() {
        return Some("the reason is empty: say why, in one line".to_owned());
    }
    if reason.len() > REASON_BYTES_MAX {
        let found = reason.len();
        return Some(format!(
            "the reason has {found} bytes, at most {REASON_BYTES_MAX}"
        ));
    }
    let is_one_line = !reason.chars().any(char::is_control);
    (!is_one_line).then(|| "the reason has control characters: write it in one line".to_owned())
}

pub(crate) fn apply(ledger: &mut Ledger, command: &AdminCommand) -> AdminReply {
    if let Some(why) = command.malformed() {
        return AdminReply::Malformed(why.into());
    }
    let now = ledger.time();
    ledger.catalog.staging.age(now);
    if let Change::Stage {
        upload,
        part,
        items,
    } = &command.change
    {
        return stage(ledger, command, upload, *part, items);
    }
    let Some(key) = &command.idempotency_key else {
        return judge(ledger, command);
    };
    let content = command.content_hash();
    if let Some(remembered) = ledger.catalog.replies.find(&command.principal, key) {
        return if remembered.content == content {
            remembered.reply.clone()
        } else {
            AdminReply::IdempotencyMismatch
        };
    }
    let reply = judge(ledger, command);
    let (principal, key) = (command.principal.clone(), key.clone());
    let remembered = Remembered {
        principal,
        key,
        content,
        reply: reply.clone(),
    };
    ledger.catalog.replies.remember(remembered);
    reply
}

fn stage(
    ledger: &mut Ledger,
    command: &AdminCommand,
    upload: &Name,
    part: u32,
    items: &[Item],
) -> AdminReply {
    let key = PartKey {
        principal: command.principal.clone(),
        upload: upload.clone(),
        part,
    };
    let staged = Part {
        time: ledger.time(),
        items: items.to_vec(),
    };
    match ledger.catalog.staging.stage(key, staged) {
        Some(parts) => AdminReply::Staged {
            parts: u32::try_from(parts).unwrap_or(u32::MAX),
        },
        None => AdminReply::Malformed(
            format!("upload {upload} would exceed {STAGED_BYTES_MAX} bytes: divide the file")
                .into(),
        ),
    }
}

fn judge(ledger: &mut Ledger, command: &AdminCommand) -> AdminReply {
    let current = ledger.catalog.revision();
    if let Some(expected) = command.base_revision.filter(|base| *base != current) {
        return AdminReply::Conflict { expected, current };
    }
    match &command.change {
        Change::Apply { items } => upsert::apply(ledger, command, items),
        Change::Stage { .. } => unreachable!("staging is handled before anything is judged"),
        Change::Commit {
            upload,
            parts,
            hash,
        } => commit(ledger, command, upload, *parts, *hash),
        Change::CreateKey {
            license,
            environment,
            id,
            mac,
            valid_until,
        } => {
            let secret = Secret {
                mac: mac.clone(),
                valid_from: ledger.time(),
                valid_until: *valid_until,
            };
            let key = Key {
                id: id.clone(),
                license: license.clone(),
                environment: *environment,
                secrets: vec![secret],
                revoked_at: None,
            };
            keys::create(ledger, command, key)
        }
        Change::RevokeKey { key } => keys::revoke(ledger, command, key),
        Change::RotateKey {
            key,
            mac,
            overlap_ms,
        } => keys::rotate(ledger, command, key, mac, *overlap_ms),
        Change::SetLicenseStatus { license, status } => {
            set_license_status(ledger, command, license, *status)
        }
        Change::WriteOff { account, units } => write_off(ledger, command, account, *units),
    }
}

fn commit(
    ledger: &mut Ledger,
    command: &AdminCommand,
    upload: &Name,
    parts: u32,
    hash: u64,
) -> AdminReply {
    let key = (command.principal.clone(), upload.clone());
    let Some(items) = ledger.catalog.staging.whole(&key, parts) else {
        let standing = ledger.catalog.staging.standing(&key);
        return AdminReply::NotFound(
            format!("upload {upload} ({standing} of {parts} parts)").into(),
        );
    };
    let found = items_hash(&items);
    if found != hash {
        return AdminReply::Invalid(vec![Problem::new(
            "commit.hash",
            format!("{found:016x}"),
            format!("{hash:016x}"),
            "parts of another file were staged under this name: stage all parts again",
        )]);
    }
    let reply = upsert::apply(ledger, command, &items);
    if matches!(
        reply,
        AdminReply::Done { .. } | AdminReply::Unchanged { .. }
    ) {
        ledger.catalog.staging.drop_upload(&key);
    }
    reply
}

fn set_license_status(
    ledger: &mut Ledger,
    command: &AdminCommand,
    id: &Name,
    status: LicenseStatus,
) -> AdminReply {
    let Some(license) = ledger.catalog.license(id.as_str()) else {
        return AdminReply::NotFound(format!("license {id}").into());
    };
    let item = Item::License {
        id: id.clone(),
        customer: license.customer.clone(),
        plan: license.plan.clone(),
        version: license.version,
        status: Some(status),
    };
    upsert::apply(ledger, command, std::slice::from_ref(&item))
}

fn write_off(
    ledger: &mut Ledger,
    command: &AdminCommand,
    account: &AccountId,
    units: Units,
) -> AdminReply {
    let Some(before) = ledger.account(account).copied() else {
        return AdminReply::NotFound(format!("account {account}").into());
    };
    let freed = ledger.write_off(account, units).unwrap_or_default();
    let after = ledger.account(account).copied().unwrap_or_default();
    if freed == 0 {
        return AdminReply::Unchanged {
            revision: ledger.catalog.revision(),
        };
    }
    let revision = ledger.catalog.revision();
    ledger.state(Statement {
        principal: &command.principal,
        reason: &command.reason,
        action: Action::WriteOff,
        resource: format!("account/{account}"),
        before: Some(json!({ "out": before.out, "written_off": before.written_off })),
        after: Some(json!({
            "out": after.out,
            "written_off": after.written_off,
            "admitted_beyond_limit_at_most": freed,
        })),
        revision,
    });
    AdminReply::WrittenOff {
        freed,
        out: after.out,
    }
}
