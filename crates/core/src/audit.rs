//! The hash-chained audit log: who changed what, why, from what, to what (promise P8).
//!
//! Entries are made by `apply`, one per changed record, and leave the ledger at once: only the chain's head
//! is replicated state. Each carries the hash of the one before, so that a log taken from anywhere verifies
//! offline with [`verify`], and against an anchor (a head written down elsewhere) with [`verify_from`].
//! The values of secrets never come here. Enum variants are only ever appended.

use crate::account::Name;
use crate::ids::Revision;
use crate::ledger::Ledger;
use crate::time::LedgerTime;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// Longest `before` or `after`, in bytes; a longer value is replaced by its start, length and hash.
pub const VALUE_BYTES_MAX: usize = 4096;

/// Characters kept of a value that was cut.
const VALUE_HEAD_CHARS: usize = 1024;

/// What the hash of an entry begins with: names this encoding, so that another can follow.
const ENCODING: &[u8] = b"tollgate-audit-1\0";

/// Number and hash of the newest entry; `(0, [0; 32])` before the first.
pub type Head = (u64, [u8; 32]);

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// A record was made.
    Create,
    /// A record was changed.
    Update,
    /// A key was revoked.
    Revoke,
    /// A key got another secret.
    Rotate,
    /// Stranded units were freed.
    WriteOff,
}

impl Action {
    /// Its word, as it enters the hash.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::Revoke => "revoke",
            Self::Rotate => "rotate",
            Self::WriteOff => "write_off",
        }
    }
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// Its number, from 1, without gaps.
    pub seq: u64,
    /// Ledger time.
    pub time: LedgerTime,
    /// Who: the name in the administrator's certificate.
    pub principal: Name,
    /// What.
    pub action: Action,
    /// To which record, as in `plan/free@2`, `license/acme-free` or `account/live/acme/-/…`.
    pub resource: Arc<str>,
    /// Why, in the administrator's words.
    pub reason: Arc<str>,
    /// The record before, as canonical JSON: keys in order, no spaces. `None` where there was none.
    pub before: Option<Arc<str>>,
    /// The record after.
    pub after: Option<Arc<str>>,
    /// The catalog's revision after the change.
    pub revision: Revision,
    /// Hash of the entry before; zeros in the first.
    #[serde(with = "crate::hex")]
    pub previous: [u8; 32],
    /// SHA-256 of everything above.
    #[serde(with = "crate::hex")]
    pub hash: [u8; 32],
}

impl AuditEntry {
    /// The hash the entry should carry: SHA-256 of the encoding's name, the numbers as 8 bytes little
    /// endian, each text with its length before it, an absent one as a zero byte (a present one after a
    /// byte 1), and `previous`, in the order of the fields.
    #[must_use]
    pub fn computed_hash(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(ENCODING);
        hash.update(self.seq.to_le_bytes());
        hash.update(self.time.0.to_le_bytes());
        text(&mut hash, self.principal.as_str());
        text(&mut hash, self.action.as_str());
        text(&mut hash, &self.resource);
        text(&mut hash, &self.reason);
        for value in [&self.before, &self.after] {
            hash.update([u8::from(value.is_some())]);
            if let Some(value) = value {
                text(&mut hash, value);
            }
        }
        hash.update(self.revision.incarnation.0.to_le_bytes());
        hash.update(self.revision.index.to_le_bytes());
        hash.update(self.previous);
        hash.finalize().into()
    }

    /// The head of a chain that ends with this entry.
    #[must_use]
    pub fn head(&self) -> Head {
        (self.seq, self.hash)
    }
}

fn text(hash: &mut Sha256, text: &str) {
    hash.update((text.len() as u64).to_le_bytes());
    hash.update(text.as_bytes());
}

/// Where a chain is broken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// A number is missing, doubled or out of order.
    #[error(
        "audit entry {found} stands where {expected} is expected: entries were removed, added or moved; \
         compare with another node's log"
    )]
    Number {
        /// The number that stands there.
        found: u64,
        /// The number that should.
        expected: u64,
    },
    /// An entry does not follow the one before it.
    #[error(
        "audit entry {seq} does not carry the hash of the entry before it: one of the two was replaced; \
         compare with another node's log"
    )]
    Previous {
        /// The entry.
        seq: u64,
    },
    /// An entry was altered.
    #[error(
        "audit entry {seq} does not hash to what it says: it was altered; compare with another node's log"
    )]
    Hash {
        /// The entry.
        seq: u64,
    },
}

/// Checks that entries follow each other and that none was altered. They may begin anywhere: what came
/// before the first is not looked at, and neither is what may be missing at the end; for both, see
/// [`verify_from`].
///
/// # Errors
/// [`ChainError`] names the first entry that does not fit.
pub fn verify(entries: &[AuditEntry]) -> Result<(), ChainError> {
    let Some(first) = entries.first() else {
        return Ok(());
    };
    let before = if first.seq == 1 {
        [0; 32]
    } else {
        first.previous
    };
    verify_from((first.seq.saturating_sub(1), before), entries).map(|_| ())
}

/// Checks that entries go on from a head; answers the new head, to be compared with an anchor.
///
/// # Errors
/// [`ChainError`] names the first entry that does not fit.
pub fn verify_from<'a>(
    head: Head,
    entries: impl IntoIterator<Item = &'a AuditEntry>,
) -> Result<Head, ChainError> {
    let (mut last, mut previous) = head;
    for entry in entries {
        let (seq, expected) = (entry.seq, last.saturating_add(1));
        if seq != expected {
            return Err(ChainError::Number {
                found: seq,
                expected,
            });
        }
        if entry.previous != previous {
            return Err(ChainError::Previous { seq });
        }
        if entry.hash != entry.computed_hash() {
            return Err(ChainError::Hash { seq });
        }
        (last, previous) = entry.head();
    }
    Ok((last, previous))
}

/// What one administrative change has to say of one record; the ledger adds number, time and hashes.
pub(crate) struct Statement<'a> {
    pub(crate) principal: &'a Name,
    pub(crate) reason: &'a Arc<str>,
    pub(crate) action: Action,
    pub(crate) resource: String,
    pub(crate) before: Option<Value>,
    pub(crate) after: Option<Value>,
    pub(crate) revision: Revision,
}

impl Ledger {
    /// Adds an entry to the chain.
    pub(crate) fn state(&mut self, statement: Statement<'_>) {
        let (last, previous) = self.meta.audit_head;
        let mut entry = AuditEntry {
            seq: last.saturating_add(1),
            time: self.meta.time,
            principal: statement.principal.clone(),
            action: statement.action,
            resource: statement.resource.into(),
            reason: Arc::clone(statement.reason),
            before: statement.before.as_ref().map(bounded),
            after: statement.after.as_ref().map(bounded),
            revision: statement.revision,
            previous,
            hash: [0; 32],
        };
        entry.hash = entry.computed_hash();
        self.meta.audit_head = entry.head();
        self.audit(entry);
    }
}

/// Canonical JSON of a value; a long one is cut, and says so with the length and hash of the whole.
fn bounded(value: &Value) -> Arc<str> {
    let mut whole = String::new();
    canonical(value, &mut whole);
    if whole.len() <= VALUE_BYTES_MAX {
        return whole.into();
    }
    let cut = serde_json::json!({
        "cut_bytes": whole.len(),
        "cut_sha256": crate::hex::encode(&Sha256::digest(whole.as_bytes())),
        "start": whole.chars().take(VALUE_HEAD_CHARS).collect::<String>(),
    });
    let mut text = String::new();
    canonical(&cut, &mut text);
    text.into()
}

/// Keys in the order of their bytes, no spaces: the same text whatever the map's own order is (it depends
/// on a feature of `serde_json` that any other crate may switch on).
fn canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            let mut fields: Vec<_> = map.iter().collect();
            fields.sort_by_key(|(key, _)| *key);
            out.push('{');
            for (at, (key, value)) in fields.into_iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                out.push_str(&Value::from(key.as_str()).to_string());
                out.push(':');
                canonical(value, out);
            }
            out.push('}');
        }
        Value::Array(values) => {
            out.push('[');
            for (at, value) in values.iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                canonical(value, out);
            }
            out.push(']');
        }
        plain => out.push_str(&plain.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn canonical_text_does_not_depend_on_the_order_of_writing() {
        let mut text = String::new();
        canonical(
            &json!({"b": [1, {"z": null, "a": "x\"y"}], "a": true}),
            &mut text,
        );
        assert_eq!(text, r#"{"a":true,"b":[1,{"a":"x\"y","z":null}]}"#);
    }

    #[test]
    fn a_long_value_is_cut_and_says_of_what() {
        let long = json!({"x": "é".repeat(VALUE_BYTES_MAX)});
        let text = bounded(&long);
        assert!(text.len() <= VALUE_BYTES_MAX);
        let cut: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(cut["cut_bytes"], 2 * VALUE_BYTES_MAX + 8);
        assert_eq!(cut["cut_sha256"].as_str().unwrap().len(), 64);
    }

    fn chain(length: u64) -> Vec<AuditEntry> {
        let mut ledger = Ledger::new(crate::ids::Incarnation(1));
        for n in 0..length {
            ledger.state(Statement {
                principal: &Name::new("ops").unwrap(),
                reason: &Arc::from("a test"),
                action: Action::Update,
                resource: format!("plan/p@{n}"),
                before: None,
                after: Some(json!(n)),
                revision: Revision::default(),
            });
        }
        ledger.take_audit()
    }

    #[test]
    fn a_chain_verifies_and_every_alteration_of_it_shows() {
        let entries = chain(4);
        assert_eq!(verify(&entries), Ok(()));
        assert_eq!(verify(&entries[2..]), Ok(()));
        assert_eq!(verify_from((0, [0; 32]), &entries), Ok(entries[3].head()));

        let alter = |change: fn(&mut Vec<AuditEntry>)| {
            let mut altered = entries.clone();
            change(&mut altered);
            verify(&altered)
        };
        assert_eq!(
            alter(|e| e[1].reason = "another".into()),
            Err(ChainError::Hash { seq: 2 })
        );
        assert_eq!(
            alter(|e| e[1].before = Some("".into())),
            Err(ChainError::Hash { seq: 2 })
        );
        assert_eq!(
            alter(|e| e[0].previous = [1; 32]),
            Err(ChainError::Previous { seq: 1 })
        );
        assert_eq!(
            alter(|e| drop(e.remove(1))),
            Err(ChainError::Number {
                found: 3,
                expected: 2
            })
        );
        let rehashed = alter(|e| {
            e[1].reason = "another".into();
            e[1].hash = e[1].computed_hash();
        });
        assert_eq!(rehashed, Err(ChainError::Previous { seq: 3 }));
    }

    #[test]
    fn the_encoding_under_the_hash_is_the_released_one() {
        let entries = chain(1);
        expect_test::expect!["d864a4c7fcf9bbcf324972ed1de2e002d9eaa57a065111db84d71b107a86a7ee"]
            .assert_eq(&crate::hex::encode(&entries[0].hash));
    }
}
