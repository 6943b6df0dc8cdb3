//! `tollgate apply` and `tollgate key`: changes of the catalog, and what the node said of them.

use crate::admin_client::AdminClient;
use crate::args::{Apply, Change, Key};
use crate::output::{Failure, Format, Progress, say, show, table};
use serde_json::{Value, json};
use std::path::Path;
use tollgate_core::file::CatalogFile;

/// Largest catalog file that is read, in bytes; a node takes a megabyte at once.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Rows asked for at once.
const PAGE: usize = 1000;

/// Runs `apply`.
///
/// # Errors
/// [`Failure`] with every problem of the file, or the node's words.
pub async fn apply(format: Format, args: &Apply) -> Result<(), Failure> {
    let file = read(&args.file)?;
    let client = AdminClient::new(&args.admin)?;
    let path = if args.dry_run {
        "/admin/v1/apply?dry_run=true"
    } else {
        "/admin/v1/apply"
    };
    let body = json!({ "file": file, "reason": args.change.reason });
    let progress = Progress::new(format, "applying", 1);
    let done: Result<Value, Failure> = post(&client, path, &args.change, &body).await;
    progress.finish();
    show(format, &done?, |done| {
        let changed = done["changed"].as_u64().unwrap_or(0);
        let revision = done["revision"].as_str().unwrap_or("unknown");
        let would = if args.dry_run {
            "would change"
        } else {
            "changed"
        };
        let mut text = format!("{changed} records {would}; the catalog is at revision {revision}");
        for entry in done["diff"].as_array().into_iter().flatten() {
            let word = |field: &str| entry[field].as_str().unwrap_or_default().to_owned();
            text.push_str(&format!("\n  {} {}", word("action"), word("resource")));
        }
        text
    })
}

fn read(path: &Path) -> Result<CatalogFile, Failure> {
    let wrong = |e: &dyn std::fmt::Display| Failure::usage(format!("{}: {e}", path.display()));
    let bytes = std::fs::metadata(path).map_err(|e| wrong(&e))?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(wrong(&format!(
            "{bytes} bytes, expected at most {FILE_BYTES_MAX}: divide it"
        )));
    }
    let text = std::fs::read_to_string(path).map_err(|e| wrong(&e))?;
    let file: CatalogFile = toml::from_str(&text).map_err(|e| wrong(&e))?;
    // Said here, before anything is sent; the node checks again, and against its catalog.
    if let Err(problems) = file.validate() {
        let lines: String = problems
            .iter()
            .map(|problem| format!("\n  {problem}"))
            .collect();
        return Err(wrong(&format!("{} problems{lines}", problems.len())));
    }
    Ok(file)
}

async fn post(
    client: &AdminClient,
    path: &str,
    change: &Change,
    body: &Value,
) -> Result<Value, Failure> {
    let revision = change
        .base_revision
        .map(|revision| format!("\"{revision}\""));
    let mut headers = Vec::new();
    headers.extend(revision.as_deref().map(|revision| ("if-match", revision)));
    headers.extend(
        change
            .idempotency_key
            .as_deref()
            .map(|key| ("idempotency-key", key)),
    );
    client.post(path, &headers, body).await
}

/// Runs `key`.
///
/// # Errors
/// [`Failure`] with the node's words.
pub async fn key(format: Format, command: &Key) -> Result<(), Failure> {
    match command {
        Key::Create {
            license,
            environment,
            change,
            admin,
        } => {
            let client = AdminClient::new(admin)?;
            let body =
                json!({ "license": license, "environment": environment, "reason": change.reason });
            let made = post(&client, "/admin/v1/keys", change, &body).await?;
            show(format, &made, |made| {
                let word = |field: &str| made[field].as_str().unwrap_or_default().to_owned();
                format!(
                    "key {}\ncredential, shown only now:\n  {}",
                    word("key"),
                    word("credential")
                )
            })
        }
        Key::Revoke { id, change, admin } => {
            let client = AdminClient::new(admin)?;
            let body = json!({ "reason": change.reason });
            let path = format!("/admin/v1/keys/{}/revoke", crate::watch::encode(id));
            let done = post(&client, &path, change, &body).await?;
            show(format, &done, |done| match done["changed"].as_u64() {
                Some(0) => format!("key {id} was revoked before"),
                _ => format!("key {id} is revoked"),
            })
        }
        Key::List { admin } => {
            let client = AdminClient::new(admin)?;
            list(format, &client).await
        }
    }
}

async fn list(format: Format, client: &AdminClient) -> Result<(), Failure> {
    let keys = crate::watch::pages(client, "/admin/v1/keys", "keys", PAGE).await?;
    if keys.is_empty() {
        say(format, "no keys");
    }
    show(format, &keys, |keys| {
        let word = |key: &Value, field: &str| key[field].as_str().unwrap_or("-").to_owned();
        let state = |key: &Value| {
            let revoked = key["revoked"].as_bool().unwrap_or(false);
            if revoked { "revoked" } else { "valid" }.to_owned()
        };
        let rows = keys.iter().map(|key| {
            vec![
                word(key, "id"),
                word(key, "license"),
                word(key, "customer"),
                word(key, "environment"),
                state(key),
            ]
        });
        if keys.is_empty() {
            String::new()
        } else {
            table(
                &["key", "licence", "customer", "environment", "state"],
                rows,
            )
        }
    })
}
