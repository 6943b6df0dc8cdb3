//! Keys: made, revoked, given another secret. What is stored of secrets comes from the node that drew them.

use super::{AdminCommand, AdminReply, upsert};
use crate::account::Name;
use crate::audit::Action;
use crate::catalog::model::SECRETS_PER_KEY_MAX;
use crate::catalog::{Key, Problem, Secret, SecretMac};
use crate::ledger::Ledger;
use crate::time::LedgerTime;

pub(super) fn create(ledger: &mut Ledger, command: &AdminCommand, key: Key) -> AdminReply {
    if ledger.catalog.license(key.license.as_str()).is_none() {
        return AdminReply::NotFound(format!("license {}", key.license).into());
    }
    let taken = ledger.catalog.key(key.id.as_str()).is_some();
    let full = ledger.catalog.sizes()[3] >= upsert::KEYS_MAX;
    if taken || full {
        let (found, help) = if taken {
            (
                "one that exists",
                "draw another public id and send the command again",
            )
        } else {
            (
                "as many as a cluster holds",
                "remove what is not used any more",
            )
        };
        let field = format!("key[{}]", key.id);
        return AdminReply::Invalid(vec![Problem::new(field, found, "a new key", help)]);
    }
    let id = key.id.clone();
    let revision = upsert::write_key(ledger, command, Action::Create, key);
    AdminReply::KeyCreated { revision, key: id }
}

pub(super) fn revoke(ledger: &mut Ledger, command: &AdminCommand, id: &Name) -> AdminReply {
    let Some(key) = ledger.catalog.key(id.as_str()) else {
        return AdminReply::NotFound(format!("key {id}").into());
    };
    if key.revoked_at.is_some() {
        return AdminReply::Unchanged {
            revision: ledger.catalog.revision(),
        };
    }
    let revoked = Key {
        revoked_at: Some(ledger.time()),
        ..key.clone()
    };
    let revision = upsert::write_key(ledger, command, Action::Revoke, revoked);
    AdminReply::Done {
        revision,
        changed: 1,
    }
}

pub(super) fn rotate(
    ledger: &mut Ledger,
    command: &AdminCommand,
    id: &Name,
    mac: &SecretMac,
    overlap_ms: u64,
) -> AdminReply {
    let Some(key) = ledger.catalog.key(id.as_str()) else {
        return AdminReply::NotFound(format!("key {id}").into());
    };
    let now = ledger.time();
    if let Some(at) = key.revoked_at {
        return AdminReply::Invalid(vec![Problem::new(
            format!("key[{id}]"),
            format!("one revoked at {} ms", at.0),
            "a key in use",
            "make a new key: a revoked one stays so for good",
        )]);
    }
    let mut rotated = key.clone();
    let end = LedgerTime(now.0.saturating_add(overlap_ms));
    for secret in &mut rotated.secrets {
        secret.valid_until = Some(secret.valid_until.map_or(end, |until| until.min(end)));
    }
    if rotated.secrets.len() >= SECRETS_PER_KEY_MAX {
        rotated
            .secrets
            .retain(|secret| secret.valid_until.is_none_or(|until| now < until));
    }
    if rotated.secrets.len() >= SECRETS_PER_KEY_MAX {
        return AdminReply::Invalid(vec![Problem::new(
            format!("key[{id}].secrets"),
            rotated.secrets.len(),
            format!("fewer than {}", SECRETS_PER_KEY_MAX),
            "wait until one ends, or rotate with a shorter overlap",
        )]);
    }
    rotated.secrets.push(Secret {
        mac: mac.clone(),
        valid_from: now,
        valid_until: None,
    });
    let revision = upsert::write_key(ledger, command, Action::Rotate, rotated);
    AdminReply::Done {
        revision,
        changed: 1,
    }
}
