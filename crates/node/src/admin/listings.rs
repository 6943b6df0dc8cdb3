//! What administrators read: the catalog, accounts, usage and the audit log, from this node's replica, in pages.
//!
//! Every page says where the next begins (`next`, to be sent as `after`), or `null` at the end.

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
use tollgate_core::account::{AccountId, Name};
use tollgate_core::catalog::{Catalog, Key};
use tollgate_core::time::LedgerTime;

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

/// A page of rows that come in the order of their ids, under the `kind`'s name.
fn page<T>(
    kind: &str,
    page: &Page,
    rows: impl Iterator<Item = T>,
    id: impl Fn(&T) -> String,
    show: impl Fn(&T) -> Value,
) -> Result<Json<Value>, Refused> {
    let limit = page.limit()?;
    let after = page.after.as_deref();
    let mut rows = rows.skip_while(|row| after.is_some_and(|after| id(row).as_str() <= after));
    let shown: Vec<T> = rows.by_ref().take(limit).collect();
    let next = rows.next().and_then(|_| shown.last().map(&id));
    let items: Vec<Value> = shown.iter().map(show).collect();
    Ok(Json(json!({ kind: items, "next": next })))
}

/// `GET /keys`
pub(super) async fn keys(
    State(view): State<Arc<View>>,
    Query(query): Query<Page>,
) -> Result<Json<Value>, Refused> {
    let (customer, license) = (query.customer()?, query.license()?);
    let ledger = view.ledger.read();
    let (catalog, time) = (ledger.catalog(), ledger.time());
    let wanted = |key: &&Key| {
        let of_customer = |customer: &Name| {
            catalog
                .license(key.license.as_str())
                .is_some_and(|l| l.customer == *customer)
        };
        license
            .as_ref()
            .is_none_or(|license| key.license == *license)
            && customer.as_ref().is_none_or(of_customer)
    };
    page(
        "keys",
        &query,
        catalog.keys().filter(wanted),
        |key| key.id.to_string(),
        |key| key_row(catalog, key, time),
    )
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
    let ledger = view.ledger.read();
    page(
        "customers",
        &query,
        ledger.catalog().customers(),
        |c| c.id.to_string(),
        |c| json!(c),
    )
}

/// `GET /licenses`
pub(super) async fn licenses(
    State(view): State<Arc<View>>,
    Query(query): Query<Page>,
) -> Result<Json<Value>, Refused> {
    let customer = query.customer()?;
    let ledger = view.ledger.read();
    let rows = ledger.catalog().licenses().filter(|license| {
        customer
            .as_ref()
            .is_none_or(|customer| license.customer == *customer)
    });
    page(
        "licenses",
        &query,
        rows,
        |license| license.id.to_string(),
        |license| json!(license),
    )
}

/// `GET /plans`: every version of every plan, named `ID@VERSION`.
pub(super) async fn plans(
    State(view): State<Arc<View>>,
    Query(query): Query<Page>,
) -> Result<Json<Value>, Refused> {
    let limit = query.limit()?;
    let after = match query.after.as_deref() {
        None => None,
        Some(text) => Some(
            text.rsplit_once('@')
                .and_then(|(id, version)| {
                    Some((name("after", id).ok()?, version.parse::<u32>().ok()?))
                })
                .ok_or_else(|| {
                    Refused::field("after", text, "ID@VERSION, as `next` of the page before")
                })?,
        ),
    };
    let ledger = view.ledger.read();
    let mut rows = ledger.catalog().plans().skip_while(|plan| {
        after
            .as_ref()
            .is_some_and(|(id, version)| (&plan.id, plan.version) <= (id, *version))
    });
    let shown: Vec<_> = rows.by_ref().take(limit).collect();
    let next = rows.next().and_then(|_| {
        shown
            .last()
            .map(|plan| format!("{}@{}", plan.id, plan.version))
    });
    Ok(Json(json!({ "plans": shown, "next": next })))
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
    let ledger = view.ledger.read();
    let of_customer = |account: &AccountId| {
        customer
            .as_ref()
            .is_none_or(|c| account.parts().customer == c.as_str())
    };
    let mut rows = ledger
        .accounts_after(after.as_ref().map_or("", AccountId::as_str))
        .filter(|(account, _)| of_customer(account));
    let mut items = Vec::new();
    let mut last = None;
    for (account, row) in rows.by_ref().take(limit) {
        items.push(json!({
            "account": account,
            "settled": row.settled,
            "out": row.out,
            "excess": row.excess,
            "written_off": row.written_off,
            "limit": ledger.limit(account),
            "slot": account.slot(),
            "epoch": row.epoch,
        }));
        last = Some(account.clone());
    }
    let next = rows.next().and(last);
    Ok(Json(json!({ "accounts": items, "next": next })))
}

/// `GET /usage`: what was metered, summed over time per licence, environment, meter and key.
pub(super) async fn usage(
    State(view): State<Arc<View>>,
    Query(query): Query<Page>,
) -> Result<Json<Value>, Refused> {
    let (limit, customer, license) = (query.limit()?, query.customer()?, query.license()?);
    let ledger = view.ledger.read();
    let catalog = ledger.catalog();
    let owner = |license: &Name| {
        catalog
            .license(license.as_str())
            .map(|license| &license.customer)
    };
    // Sorted by what is shown, not by the hour in between.
    let mut sums: BTreeMap<String, (Value, u64)> = BTreeMap::new();
    for (key, units) in ledger.usage() {
        if license
            .as_ref()
            .is_some_and(|license| key.license != *license)
            || customer
                .as_ref()
                .is_some_and(|customer| owner(&key.license) != Some(customer))
        {
            continue;
        }
        let shown = key.key.as_ref().map_or("other", Name::as_str);
        let id = format!("{}/{}/{}/{shown}", key.license, key.environment, key.meter);
        let row = || {
            json!({
                "license": key.license,
                "customer": owner(&key.license),
                "environment": key.environment,
                "meter": key.meter,
                "key": shown,
            })
        };
        let (_, sum) = sums.entry(id).or_insert_with(|| (row(), 0));
        *sum = sum.saturating_add(units);
    }
    let total = sums
        .values()
        .fold(0_u64, |total, (_, units)| total.saturating_add(*units));
    let mut rows = sums.into_iter().skip_while(|(id, _)| {
        query
            .after
            .as_deref()
            .is_some_and(|after| id.as_str() <= after)
    });
    let mut items = Vec::new();
    let mut last = None;
    for (id, (mut row, units)) in rows.by_ref().take(limit) {
        row["units"] = json!(units);
        items.push(row);
        last = Some(id);
    }
    let next = rows.next().and(last);
    Ok(Json(
        json!({ "usage": items, "next": next, "total_units": total }),
    ))
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
