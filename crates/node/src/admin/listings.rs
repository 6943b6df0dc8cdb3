//! What administrators read: the catalog, accounts, usage and the audit log, from this node's replica, in pages.
//!
//! Every page says where the next begins (`next`, to be sent as `after`), or `null` at the end; one that filters may
//! hold fewer rows than asked, or none, before the end. Rows are read a few at a time, and the replica's lock is let
//! go of in between: `apply` waits for no listing, however large the ledger is. A page is therefore of more than one
//! moment where the ledger changes meanwhile.

use super::View;
use super::changes::name;
use super::problem::Refused;
use crate::machine::decode_audit;
use axum::Json;
use axum::extract::{Query, State};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use tollgate_core::account::{AccountId, Environment, Name};
use tollgate_core::catalog::{Catalog, Key};
use tollgate_core::ledger::Ledger;
use tollgate_core::ledger::records::UsageKey;
use tollgate_core::time::LedgerTime;

/// Rows read while the replica's lock is held: well below a millisecond.
const SLICE_ROWS: usize = 256;
/// Rows looked at for one page; what a filter leaves out counts.
const LOOKED_AT_MAX: usize = 64 * 1024;
/// Licences whose usage is looked at for one page.
const LICENSES_LOOKED_AT_MAX: usize = 16 * 1024;

/// Rows of a page when nothing is said.
pub(super) const PAGE_DEFAULT: usize = 100;
/// Most rows of a page.
pub(super) const PAGE_MAX: usize = 1000;

/// Query of every listing.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Page {
    after: Option<String>,
    limit: Option<usize>,
    customer: Option<String>,
    license: Option<String>,
}

impl Page {
    fn limit(&self) -> Result<usize, Refused> {
        match self.limit {
            None => Ok(PAGE_DEFAULT),
            Some(limit) if (1..=PAGE_MAX).contains(&limit) => Ok(limit),
            Some(limit) => Err(Refused::field(
                "limit",
                &limit.to_string(),
                &format!("1 to {PAGE_MAX}"),
            )),
        }
    }

    /// Where it begins, for rows whose id is a name.
    fn after(&self) -> Result<Option<Name>, Refused> {
        let text = self.after.as_deref();
        text.map(|text| name("after", text)).transpose()
    }

    fn customer(&self) -> Result<Option<Name>, Refused> {
        self.customer
            .as_deref()
            .map(|text| name("customer", text))
            .transpose()
    }

    fn license(&self) -> Result<Option<Name>, Refused> {
        self.license
            .as_deref()
            .map(|text| name("license", text))
            .transpose()
    }
}

/// Takes rows from `read` until a page is full: each with its id, and what is shown of it unless a filter leaves it
/// out. `read` is asked for the rows after an id, under the lock, again and again.
async fn page<K>(
    view: &View,
    limit: usize,
    mut last: Option<K>,
    read: impl Fn(&Ledger, Option<&K>) -> Vec<(K, Option<Value>)>,
) -> (Vec<Value>, Option<K>) {
    let mut items = Vec::new();
    let mut looked_at = 0;
    loop {
        let slice = read(&view.ledger.read(), last.as_ref());
        let ended = slice.len() < SLICE_ROWS;
        looked_at += slice.len();
        for (id, shown) in slice {
            if shown.is_some() && items.len() == limit {
                return (items, last);
            }
            items.extend(shown);
            last = Some(id);
        }
        if ended {
            return (items, None);
        }
        if looked_at >= LOOKED_AT_MAX {
            return (items, last);
        }
        tokio::task::yield_now().await;
    }
}

fn answer<K: ToString>(kind: &str, (items, next): (Vec<Value>, Option<K>)) -> Json<Value> {
    Json(json!({ kind: items, "next": next.map(|id| id.to_string()) }))
}

/// `GET /keys`
pub(super) async fn keys(
    State(view): State<Arc<View>>,
    Query(query): Query<Page>,
) -> Result<Json<Value>, Refused> {
    let (customer, license) = (query.customer()?, query.license()?);
    let (limit, after) = (query.limit()?, query.after()?);
    let read = |ledger: &Ledger, after: Option<&Name>| {
        let (catalog, time) = (ledger.catalog(), ledger.time());
        let of_customer = |key: &Key, customer: &Name| {
            catalog
                .license(key.license.as_str())
                .is_some_and(|l| l.customer == *customer)
        };
        let wanted = |key: &Key| {
            license.as_ref().is_none_or(|l| key.license == *l)
                && customer.as_ref().is_none_or(|c| of_customer(key, c))
        };
        let row = |key: &Key| {
            let shown = wanted(key).then(|| key_row(catalog, key, time));
            (key.id.clone(), shown)
        };
        catalog
            .keys_after(after)
            .take(SLICE_ROWS)
            .map(row)
            .collect()
    };
    Ok(answer("keys", page(&view, limit, after, read).await))
}

fn key_row(catalog: &Catalog, key: &Key, time: LedgerTime) -> Value {
    let secret = |secret: &tollgate_core::catalog::Secret| {
        json!({
            "pepper": secret.mac.pepper.0,
            "valid_from_ms": secret.valid_from.0,
            "valid_until_ms": secret.valid_until.map(|until| until.0),
        })
    };
    json!({
        "id": key.id,
        "license": key.license,
        "customer": catalog.license(key.license.as_str()).map(|license| &license.customer),
        "environment": key.environment,
        "revoked": key.is_revoked(time),
        "revoked_at_ms": key.revoked_at.map(|at| at.0),
        "secrets": key.secrets.iter().map(secret).collect::<Vec<_>>(),
    })
}

/// `GET /customers`
pub(super) async fn customers(
    State(view): State<Arc<View>>,
    Query(query): Query<Page>,
) -> Result<Json<Value>, Refused> {
    let (limit, after) = (query.limit()?, query.after()?);
    let read = |ledger: &Ledger, after: Option<&Name>| {
        let rows = ledger.catalog().customers_after(after).take(SLICE_ROWS);
        rows.map(|customer| (customer.id.clone(), Some(json!(customer))))
            .collect()
    };
    Ok(answer("customers", page(&view, limit, after, read).await))
}

/// `GET /licenses`
pub(super) async fn licenses(
    State(view): State<Arc<View>>,
    Query(query): Query<Page>,
) -> Result<Json<Value>, Refused> {
    let customer = query.customer()?;
    let (limit, after) = (query.limit()?, query.after()?);
    let read = |ledger: &Ledger, after: Option<&Name>| {
        let rows = ledger.catalog().licenses_after(after).take(SLICE_ROWS);
        rows.map(|license| {
            let wanted = customer.as_ref().is_none_or(|c| license.customer == *c);
            (license.id.clone(), wanted.then(|| json!(license)))
        })
        .collect()
    };
    Ok(answer("licenses", page(&view, limit, after, read).await))
}

/// The name of a version of a plan: `ID@VERSION`.
struct PlanVersion(Name, u32);

impl std::fmt::Display for PlanVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.0, self.1)
    }
}

/// `GET /plans`: every version of every plan.
pub(super) async fn plans(
    State(view): State<Arc<View>>,
    Query(query): Query<Page>,
) -> Result<Json<Value>, Refused> {
    let limit = query.limit()?;
    let version = |text: &str| {
        let (id, version) = text.rsplit_once('@')?;
        Some((name("after", id).ok()?, version.parse().ok()?))
    };
    let expected = "ID@VERSION, as `next` of the page before";
    let after = match query.after.as_deref() {
        None => None,
        Some(text) => Some(version(text).ok_or_else(|| Refused::field("after", text, expected))?),
    };
    let read = |ledger: &Ledger, after: Option<&(Name, u32)>| {
        let rows = ledger.catalog().plans_after(after).take(SLICE_ROWS);
        rows.map(|plan| ((plan.id.clone(), plan.version), Some(json!(plan))))
            .collect()
    };
    let (items, next) = page(&view, limit, after, read).await;
    let next = next.map(|(id, version)| PlanVersion(id, version));
    Ok(answer("plans", (items, next)))
}

/// `GET /accounts`: rows of the ledger.
pub(super) async fn accounts(
    State(view): State<Arc<View>>,
    Query(query): Query<Page>,
) -> Result<Json<Value>, Refused> {
    let (limit, customer) = (query.limit()?, query.customer()?);
    let after = match query.after.as_deref() {
        None => None,
        Some(text) => Some(
            AccountId::parse(text)
                .map_err(|error| Refused::malformed(format!("`after`: {error}")))?,
        ),
    };
    // A customer's accounts lie together, once in each environment.
    let prefixes: Vec<String> = match &customer {
        None => vec![String::new()],
        Some(customer) => [Environment::Live, Environment::Test]
            .map(|environment| format!("{environment}/{customer}/"))
            .into(),
    };
    let read = |ledger: &Ledger, after: Option<&AccountId>| {
        let after = after.map_or("", AccountId::as_str);
        let of_prefix = |prefix: &String| {
            let from = after.max(prefix.as_str());
            ledger
                .accounts_after(from)
                .take_while(|(account, _)| account.as_str().starts_with(prefix.as_str()))
                .take(SLICE_ROWS)
                .map(|(account, _)| (account.clone(), Some(account_row(ledger, account))))
                .collect::<Vec<_>>()
        };
        prefixes
            .iter()
            .flat_map(of_prefix)
            .take(SLICE_ROWS)
            .collect()
    };
    Ok(answer("accounts", page(&view, limit, after, read).await))
}

fn account_row(ledger: &Ledger, account: &AccountId) -> Value {
    let row = ledger.account(account).copied().unwrap_or_default();
    json!({
        "account": account,
        "settled": row.settled,
        "out": row.out,
        "excess": row.excess,
        "written_off": row.written_off,
        "limit": ledger.limit(account),
        "slot": account.slot(),
        "epoch": row.epoch,
    })
}

/// What usage is summed by within a licence; no key stands for the sum of those beyond the bound.
type Counted = (Environment, Name, Option<Name>);

/// Where a page of usage begins: after `LICENSE/ENVIRONMENT/METER/KEY`, with `-` for no key, or after all of a
/// `LICENSE`.
struct UsageId(Name, Option<Counted>);

impl UsageId {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('/');
        let license = Name::new(parts.next()?).ok()?;
        let Some(environment) = parts.next() else {
            return Some(Self(license, None));
        };
        let environment = match environment {
            "live" => Environment::Live,
            "test" => Environment::Test,
            _ => return None,
        };
        let meter = Name::new(parts.next()?).ok()?;
        let key = match parts.next()? {
            "-" => None,
            key => Some(Name::new(key).ok()?),
        };
        let ended = parts.next().is_none();
        ended.then_some(Self(license, Some((environment, meter, key))))
    }
}

impl std::fmt::Display for UsageId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self(license, counted) = self;
        match counted {
            None => license.fmt(f),
            Some((environment, meter, key)) => {
                let key = key.as_ref().map_or("-", Name::as_str);
                write!(f, "{license}/{environment}/{meter}/{key}")
            }
        }
    }
}

/// `GET /usage`: what was metered, summed over the hours that are kept, per licence, environment, meter and key.
pub(super) async fn usage(
    State(view): State<Arc<View>>,
    Query(query): Query<Page>,
) -> Result<Json<Value>, Refused> {
    let (limit, customer, wanted) = (query.limit()?, query.customer()?, query.license()?);
    let expected = "LICENSE/ENVIRONMENT/METER/KEY or LICENSE, as `next` of the page before";
    let mut last = match query.after.as_deref() {
        None => None,
        Some(text) => {
            Some(UsageId::parse(text).ok_or_else(|| Refused::field("after", text, expected))?)
        }
    };
    let mut items = Vec::new();
    let mut shown = None;
    for _ in 0..LICENSES_LOOKED_AT_MAX {
        let Some((license, owner)) = next_license(&view, wanted.as_ref(), last.as_ref()) else {
            return Ok(answer("usage", (items, None::<UsageId>)));
        };
        if customer.is_none() || customer == owner {
            let begun = last.take().filter(|UsageId(begun, _)| *begun == license);
            let after = begun.and_then(|UsageId(_, counted)| counted);
            let room = limit - items.len();
            let mut sums = sum_usage(&view, &license, after, room).await.into_iter();
            for (counted, units) in sums.by_ref().take(room) {
                items.push(usage_row(&license, owner.as_ref(), &counted, units));
                shown = Some(UsageId(license.clone(), Some(counted)));
            }
            if sums.next().is_some() {
                return Ok(answer("usage", (items, shown)));
            }
        }
        last = Some(UsageId(license, None));
        tokio::task::yield_now().await;
    }
    Ok(answer("usage", (items, last)))
}

/// The licence to sum next, and its customer.
fn next_license(
    view: &View,
    wanted: Option<&Name>,
    last: Option<&UsageId>,
) -> Option<(Name, Option<Name>)> {
    let ledger = view.ledger.read();
    let license = match (wanted, last) {
        (Some(wanted), Some(UsageId(done, counted)))
            if done > wanted || (done == wanted && counted.is_none()) =>
        {
            return None;
        }
        (Some(wanted), _) => wanted,
        (None, Some(UsageId(begun, Some(_)))) => begun,
        (None, Some(UsageId(done, None))) => ledger.license_with_usage(Some(done))?,
        (None, None) => ledger.license_with_usage(None)?,
    };
    let known = ledger.catalog().license(license.as_str());
    Some((
        license.clone(),
        known.map(|license| license.customer.clone()),
    ))
}

fn usage_row(
    license: &Name,
    customer: Option<&Name>,
    (environment, meter, key): &Counted,
    units: u64,
) -> Value {
    json!({
        "license": license,
        "customer": customer,
        "environment": environment,
        "meter": meter,
        "key": key.as_ref().map_or("other", Name::as_str),
        "units": units,
    })
}

/// Sums a licence's usage over its hours: the first `room` rows after `after` and one more, if there is one. The rows
/// that are kept only ever move forward, so one that was dropped for want of room is not begun again.
async fn sum_usage(
    view: &View,
    license: &Name,
    after: Option<Counted>,
    room: usize,
) -> BTreeMap<Counted, u64> {
    let mut sums: BTreeMap<Counted, u64> = BTreeMap::new();
    let mut last: Option<UsageKey> = None;
    loop {
        let slice: Vec<(UsageKey, u64)> = {
            let ledger = view.ledger.read();
            let records = ledger.usage_of(license, last.as_ref()).take(SLICE_ROWS);
            records.map(|(key, units)| (key.clone(), units)).collect()
        };
        let ended = slice.len() < SLICE_ROWS;
        last = slice.last().map(|(key, _)| key.clone()).or(last);
        for (key, units) in slice {
            let counted = (key.environment, key.meter, key.key);
            if after.as_ref().is_some_and(|after| counted <= *after) {
                continue;
            }
            let sum = sums.entry(counted).or_default();
            *sum = sum.saturating_add(units);
            if sums.len() > room + 1 {
                sums.pop_last();
            }
        }
        if ended {
            return sums;
        }
        tokio::task::yield_now().await;
    }
}

/// Query of [`audit`].
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct AuditPage {
    after: u64,
    limit: Option<usize>,
}

/// `GET /audit?after=N`: entries after number N, from the disk, and the newest from memory.
pub(super) async fn audit(
    State(view): State<Arc<View>>,
    Query(query): Query<AuditPage>,
) -> Result<Json<Value>, Refused> {
    let page = Page {
        limit: query.limit,
        ..Page::default()
    };
    let limit = page.limit()?;
    let (store, after) = (view.store.clone(), query.after);
    let stored = tokio::task::spawn_blocking(move || store.audit_after(after, limit)).await;
    let stored = stored
        .map_err(|error| Refused::internal(error.to_string()))?
        .map_err(|error| Refused::internal(error.to_string()))?;
    let damaged = || Refused::internal("a record of the audit log is none: see the node's log");
    let mut entries = Vec::with_capacity(limit);
    for content in &stored {
        entries.push(decode_audit(content).ok_or_else(damaged)?);
    }
    let ledger = view.ledger.read();
    let last = entries.last().map_or(after, |entry| entry.seq);
    let newer = ledger
        .audit_recent()
        .iter()
        .filter(|entry| entry.seq > last);
    entries.extend(newer.take(limit.saturating_sub(entries.len())).cloned());
    let last = entries.last().map_or(after, |entry| entry.seq);
    let more = last < ledger.audit_head();
    Ok(Json(
        json!({ "entries": entries, "next": more.then_some(last) }),
    ))
}
