//! What administrators change: the catalog by a file, keys one by one.
//!
//! Each request becomes commands of the ledger under one idempotency key, the caller's or one drawn here: so an
//! unknown fate is asked again and never done twice. A file's keys carry the SHA-256 of their secrets; what is
//! stored (an HMAC under the pepper) is computed here. A created secret is in one answer and nowhere else.

use super::problem::Refused;
use super::{BODY_BYTES_MAX, Caller, View};
use crate::clock;
use crate::consensus::ProposeError;
use crate::pepper::Pepper;
use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tollgate_core::account::{Environment, Name};
use tollgate_core::admin::{self, AdminCommand, AdminReply, Change, Item, Trial};
use tollgate_core::audit::AuditEntry;
use tollgate_core::command::{Command, Reply};
use tollgate_core::credential;
use tollgate_core::file::CatalogFile;
use tollgate_core::hex;
use tollgate_core::ids::{Revision, Slot};

/// How long a change is proposed again while its fate is unknown, in ms.
const CHANGE_DEADLINE_MS: u64 = 12_000;

/// Pause before it is proposed again.
const CHANGE_PAUSE: Duration = Duration::from_millis(100);

/// Records looked up for a dry run while the replica's lock is held.
const COPIED_AT_ONCE: usize = 256;

/// How often a dry run begins anew because the catalog changed meanwhile.
const TRIALS_MAX: usize = 5;

/// Public ids drawn for one key before it is given up: two are equal once in 2^59.
const DRAWS_MAX: usize = 3;

/// A body of JSON, with its path in what is said about it.
async fn read<T: DeserializeOwned>(body: Body) -> Result<T, Refused> {
    let bytes = axum::body::to_bytes(body, BODY_BYTES_MAX)
        .await
        .map_err(|_| Refused::too_large(BODY_BYTES_MAX))?;
    serde_json::from_slice(&bytes).map_err(|error| Refused::malformed(format!("the body: {error}")))
}

/// What every change says of itself.
struct About {
    principal: Name,
    reason: Arc<str>,
    idempotency_key: Name,
    base_revision: Option<Revision>,
}

impl About {
    /// From headers, with the reason from wherever the caller put it.
    fn new(caller: &Caller, headers: &HeaderMap, reason: Option<String>) -> Result<Self, Refused> {
        let text = |name: &str| match headers.get(name).map(|value| value.to_str()) {
            None => Ok(None),
            Some(Ok(text)) => Ok(Some(text.trim().to_owned())),
            Some(Err(_)) => Err(Refused::field(name, "bytes beyond ASCII", "plain text")),
        };
        let reason = reason.or(text("x-tollgate-reason")?).ok_or_else(|| {
            Refused::malformed("no reason: say why in `reason` or the header X-Tollgate-Reason; the audit log keeps it")
        })?;
        if let Some(why) = admin::malformed_reason(&reason) {
            return Err(Refused::malformed(why));
        }
        let idempotency_key = match text("idempotency-key")? {
            Some(key) => Name::new(&key)
                .map_err(|error| Refused::malformed(format!("the Idempotency-Key {error}")))?,
            None => random_name()?,
        };
        let base_revision = match text(header::IF_MATCH.as_str())? {
            None => None,
            Some(any) if any == "*" => None,
            Some(tag) => {
                let expected = "a revision as in ETag: \"1-812\"";
                let parsed = tag.trim_matches('"').parse();
                Some(parsed.map_err(|_| Refused::field("If-Match", &tag, expected))?)
            }
        };
        let principal = caller.0.name().clone();
        Ok(Self {
            principal,
            reason: reason.into(),
            idempotency_key,
            base_revision,
        })
    }

    fn command(&self, change: Change) -> AdminCommand {
        AdminCommand {
            principal: self.principal.clone(),
            idempotency_key: Some(self.idempotency_key.clone()),
            base_revision: self.base_revision,
            reason: self.reason.clone(),
            change,
        }
    }
}

fn random_name() -> Result<Name, Refused> {
    let bytes = random::<16>()?;
    Name::new(&hex::encode(&bytes)).map_err(|error| Refused::internal(error.to_string()))
}

fn random<const N: usize>() -> Result<[u8; N], Refused> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|error| Refused::internal(format!("no randomness: {error}")))?;
    Ok(bytes)
}

/// The pepper, once it is known to be the cluster's: a key made under another one would open nothing.
fn pepper(view: &View) -> Result<&Pepper, Refused> {
    let cluster = view.ledger.read().pepper().ok_or_else(|| {
        Refused::unavailable("the pepper is not compared with the cluster's yet: the node starts")
    })?;
    view.pepper
        .is_the_clusters(cluster)
        .map_err(|error| Refused::unavailable(error.to_string()))?;
    Ok(&view.pepper)
}

/// Proposes a command until it has an answer.
async fn settle(view: &View, command: AdminCommand) -> Result<AdminReply, Refused> {
    let command = Command::Admin(Box::new(command));
    let until = clock::mono().plus_ms(CHANGE_DEADLINE_MS);
    loop {
        let error = match view.proposer.propose(&command).await {
            Ok(Reply::Admin(reply)) => return Ok(*reply),
            Ok(Reply::Malformed(why)) => return Err(Refused::malformed(why.to_string())),
            Ok(other) => return Err(Refused::internal(format!("the ledger answered {other:?}"))),
            Err(error @ ProposeError::TooLarge { .. }) => {
                return Err(Refused::malformed(error.to_string()));
            }
            Err(error) => error,
        };
        if error == ProposeError::Stopped || clock::mono() >= until {
            return Err(Refused::unavailable(format!(
                "{error}; repeat the request under its Idempotency-Key"
            )));
        }
        tokio::time::sleep(CHANGE_PAUSE).await;
    }
}

/// What an answer of the ledger means to the caller.
fn judged(reply: AdminReply) -> Result<(Revision, u32), Refused> {
    match reply {
        AdminReply::Done { revision, changed } => Ok((revision, changed)),
        AdminReply::Unchanged { revision } => Ok((revision, 0)),
        AdminReply::Conflict { expected, current } => Err(Refused::conflict(expected, current)),
        AdminReply::Invalid(problems) => Err(Refused::invalid(&problems)),
        AdminReply::NotFound(what) => Err(Refused::not_found(what)),
        AdminReply::IdempotencyMismatch => Err(Refused::idempotency()),
        AdminReply::Malformed(why) => Err(Refused::malformed(why.to_string())),
        other @ (AdminReply::KeyCreated { .. }
        | AdminReply::WrittenOff { .. }
        | AdminReply::Staged { .. }) => Err(Refused::internal(format!(
            "the ledger answered with another command's {other:?}"
        ))),
    }
}

/// Query of [`apply`].
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ApplyQuery {
    dry_run: bool,
}

/// Body of [`apply`].
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Apply {
    file: CatalogFile,
    #[serde(default)]
    reason: Option<String>,
}

/// `POST /apply`: makes and changes what a file names.
pub(super) async fn apply(
    State(view): State<Arc<View>>,
    Extension(caller): Extension<Caller>,
    Query(query): Query<ApplyQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Refused> {
    let request: Apply = read(body).await?;
    let about = About::new(&caller, &headers, request.reason)?;
    let checked = request
        .file
        .validate()
        .map_err(|problems| Refused::invalid(&problems))?;
    let pepper = pepper(&view)?;
    let items = checked.into_items(|sha256| pepper.mac(sha256));
    if query.dry_run {
        return dry_run(&view, about, items).await.map(Json);
    }
    let mut last = None;
    for command in commands(&about, items)? {
        let staging = matches!(command.change, Change::Stage { .. });
        match settle(&view, command).await? {
            AdminReply::Staged { .. } if staging => {}
            reply => last = Some(judged(reply)?),
        }
    }
    let (revision, changed) = last.ok_or_else(|| Refused::internal("nothing was committed"))?;
    Ok(Json(
        json!({ "revision": revision.to_string(), "changed": changed }),
    ))
}

/// The commands that apply some records: one, or the parts and their commit.
fn commands(about: &About, items: Vec<Item>) -> Result<Vec<AdminCommand>, Refused> {
    let hash = admin::items_hash(&items);
    let mut parts = admin::parts(items);
    if parts.len() == 1 {
        let items = parts.pop().unwrap_or_default();
        return Ok(vec![about.command(Change::Apply { items })]);
    }
    let upload = about.idempotency_key.clone();
    let count = u32::try_from(parts.len())
        .map_err(|_| Refused::malformed("more parts than an upload may have: divide the file"))?;
    let staged = parts
        .into_iter()
        .zip(0..)
        .map(|(items, part)| AdminCommand {
            // A part is not judged against the catalog; the commit is.
            base_revision: None,
            ..about.command(Change::Stage {
                upload: upload.clone(),
                part,
                items,
            })
        });
    let commit = Change::Commit {
        upload: upload.clone(),
        parts: count,
        hash,
    };
    Ok(staged.chain([about.command(commit)]).collect())
}

/// What some records would change, tried beside the replica.
async fn dry_run(view: &View, about: About, items: Vec<Item>) -> Result<Value, Refused> {
    for _ in 0..TRIALS_MAX {
        let Some(trial) = gather(view, &items).await else {
            continue;
        };
        let revision = trial.revision();
        let judging =
            move || trial.judge(about.principal, about.reason, about.base_revision, &items);
        let (reply, audit) = tokio::task::spawn_blocking(judging)
            .await
            .map_err(|error| Refused::internal(error.to_string()))?;
        let (_, changed) = judged(reply)?;
        let diff: Vec<Value> = audit.iter().map(difference).collect();
        return Ok(json!({
            "dry_run": true, "revision": revision.to_string(), "changed": changed, "diff": diff,
        }));
    }
    Err(Refused::unavailable(
        "the catalog changed while the file was compared with it: repeat the request",
    ))
}

/// Copies what the records name, some at a time: the replica is never held still for long. `None` when the catalog
/// changed meanwhile.
async fn gather(view: &View, items: &[Item]) -> Option<Trial> {
    let mut trial = Trial::new(&view.ledger.read());
    for some in items.chunks(COPIED_AT_ONCE) {
        if !trial.copy_named(&view.ledger.read(), some) {
            return None;
        }
        tokio::task::yield_now().await;
    }
    Some(trial)
}

fn difference(entry: &AuditEntry) -> Value {
    let value = |text: &Option<Arc<str>>| {
        text.as_deref()
            .map(|text| serde_json::from_str(text).unwrap_or_else(|_| json!(text)))
    };
    json!({
        "action": entry.action.as_str(),
        "resource": entry.resource,
        "before": value(&entry.before),
        "after": value(&entry.after),
    })
}

/// Body of [`create_key`].
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateKey {
    license: String,
    #[serde(default)]
    environment: Option<Environment>,
    #[serde(default)]
    reason: Option<String>,
}

/// `POST /keys`: makes a key; its credential is in this answer only.
pub(super) async fn create_key(
    State(view): State<Arc<View>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, Json<Value>), Refused> {
    let request: CreateKey = read(body).await?;
    let about = About::new(&caller, &headers, request.reason)?;
    let license = name("license", &request.license)?;
    let environment = request.environment.unwrap_or(Environment::Live);
    let customer = {
        let ledger = view.ledger.read();
        ledger
            .catalog()
            .license(license.as_str())
            .map(|license| license.customer.clone())
    };
    let customer = customer.ok_or_else(|| Refused::not_found(format!("license {license}")))?;
    let pepper = pepper(&view)?;
    for _ in 0..DRAWS_MAX {
        let composed = credential::compose(
            environment,
            Slot::of(customer.as_str()),
            &random::<{ credential::RANDOM_BYTES }>()?,
        );
        let presented = credential::parse(&composed.text)
            .map_err(|error| Refused::internal(format!("a composed key {error}")))?;
        let change = Change::CreateKey {
            license: license.clone(),
            environment,
            id: composed.key.clone(),
            mac: pepper.mac(&presented.secret_sha256()),
            valid_until: None,
        };
        let taken = |reply: &AdminReply| {
            matches!(reply, AdminReply::Invalid(_))
                && view
                    .ledger
                    .read()
                    .catalog()
                    .key(composed.key.as_str())
                    .is_some()
        };
        match settle(&view, about.command(change)).await? {
            AdminReply::KeyCreated { revision, key } => {
                // A repeat finds the key of the first request, whose secret nobody has any more but its receiver.
                let credential = (key == composed.key).then_some(composed.text);
                let body = json!({
                    "revision": revision.to_string(), "key": key, "credential": credential,
                });
                return Ok((StatusCode::CREATED, Json(body)));
            }
            reply if taken(&reply) => {}
            reply => {
                return Err(judged(reply)
                    .err()
                    .unwrap_or_else(|| Refused::internal("no key was made")));
            }
        }
    }
    Err(Refused::unavailable(
        "every public id drawn was taken: repeat with another Idempotency-Key",
    ))
}

/// Body of [`revoke_key`]; may be empty.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RevokeKey {
    reason: Option<String>,
}

/// `POST /keys/{id}/revoke`: for good.
pub(super) async fn revoke_key(
    State(view): State<Arc<View>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Refused> {
    let bytes = axum::body::to_bytes(body, BODY_BYTES_MAX)
        .await
        .map_err(|_| Refused::too_large(BODY_BYTES_MAX))?;
    let request: RevokeKey = if bytes.is_empty() {
        RevokeKey::default()
    } else {
        read(Body::from(bytes)).await?
    };
    let about = About::new(&caller, &headers, request.reason)?;
    let key = name("key", &id)?;
    let reply = settle(&view, about.command(Change::RevokeKey { key: key.clone() })).await?;
    let (revision, changed) = judged(reply)?;
    Ok(Json(
        json!({ "revision": revision.to_string(), "key": key, "changed": changed }),
    ))
}

pub(super) fn name(field: &str, text: &str) -> Result<Name, Refused> {
    Name::new(text).map_err(|error| Refused::malformed(format!("`{field}` {error}")))
}
