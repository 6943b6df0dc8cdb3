//! `tollgate apply` and `tollgate key`: changes of the catalog, and what the node said of them.

use crate::admin_client::{AdminClient, IDEMPOTENCY_KEY, draw_key};
use crate::args::{Apply, Change, Key};
use crate::output::{Exit, Failure, Format, Progress, command_line, say, show, table};
use serde_json::{Value, json};
use std::path::Path;
use tollgate_core::file::CatalogFile;

/// Largest catalog file that is read, and largest request it may make, in bytes: what a node takes.
const FILE_BYTES_MAX: usize = tollgate_node::admin::BODY_BYTES_MAX;

/// Rows asked for at once.
const PAGE: usize = 1000;

/// Runs `apply`.
///
/// # Errors
/// [`Failure`] with every problem of the file, or the node's words.
pub async fn apply(format: Format, args: &Apply) -> Result<(), Failure> {
    let file = read(&args.file)?;
    let client = AdminClient::from_args(&args.admin).await?;
    let body = json!({ "file": file, "reason": args.change.reason });
    let bytes = body.to_string().len();
    if bytes > FILE_BYTES_MAX {
        return Err(Failure::usage(format!(
            "{}: it makes a request of {bytes} bytes, expected at most {FILE_BYTES_MAX}: divide it and apply the \
             parts, owners before what names them",
            args.file.display()
        )));
    }
    let progress = Progress::new(format, "applying", Some(1));
    let done: Result<Value, Failure> = if args.dry_run {
        client.try_out("/admin/v1/apply?dry_run=true", &body).await
    } else {
        post(&client, "/admin/v1/apply", &args.change, &body).await
    };
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
    if bytes > FILE_BYTES_MAX as u64 {
        return Err(wrong(&format!(
            "{bytes} bytes, expected at most {FILE_BYTES_MAX}: divide it and apply the parts, owners before what \
             names them"
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

/// Makes a change under the key given or one drawn here; when nobody answered, the failure says how to repeat it.
async fn post(
    client: &AdminClient,
    path: &str,
    change: &Change,
    body: &Value,
) -> Result<Value, Failure> {
    let revision = change
        .base_revision
        .map(|revision| format!("\"{revision}\""));
    let key = match &change.idempotency_key {
        Some(key) => key.clone(),
        None => draw_key()?,
    };
    let mut headers = vec![(IDEMPOTENCY_KEY, key.as_str())];
    headers.extend(revision.as_deref().map(|revision| ("if-match", revision)));
    let done = client.post(path, &headers, body).await;
    done.map_err(|mut failure| {
        if failure.exit == Exit::Unavailable {
            let again = again(std::env::args(), &key, change.idempotency_key.is_none());
            let more =
                format!("\nTo repeat it, made once however often it is asked for:\n  {again}");
            failure.message.push_str(&more);
        }
        failure
    })
}

/// The command under way, as it is repeated under the key it had.
fn again(words: impl Iterator<Item = String>, key: &str, drawn: bool) -> String {
    let mut words: Vec<String> = words.collect();
    if drawn {
        // Behind `--` it would be no option any more.
        let end = words.iter().position(|word| word == "--");
        let option = ["--idempotency-key".to_owned(), key.to_owned()];
        let at = end.unwrap_or(words.len());
        words.splice(at..at, option);
    }
    command_line(words)
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
            let client = AdminClient::from_args(admin).await?;
            let body =
                json!({ "license": license, "environment": environment, "reason": change.reason });
            let made = post(&client, "/admin/v1/keys", change, &body).await?;
            show(format, &made, |made| created(made, license))?;
            // Under a key drawn just now nobody else can have made it: an earlier try of ours did.
            match (&made["credential"], &change.idempotency_key) {
                (Value::Null, None) => Err(Failure::failed(
                    "the answer with the secret was lost on its way from a node that failed",
                )),
                _ => Ok(()),
            }
        }
        Key::Revoke { id, change, admin } => {
            let client = AdminClient::from_args(admin).await?;
            let body = json!({ "reason": change.reason });
            let path = format!("/admin/v1/keys/{}/revoke", crate::watch::encode(id));
            let done = post(&client, &path, change, &body).await?;
            show(format, &done, |done| match done["changed"].as_u64() {
                Some(0) => format!("key {id} was revoked before"),
                _ => format!("key {id} is revoked"),
            })
        }
        Key::List { admin } => {
            let client = AdminClient::from_args(admin).await?;
            list(format, &client).await
        }
    }
}

/// What `key create` says: the secret, or why there is none.
fn created(made: &Value, license: &str) -> String {
    let id = made["key"].as_str().unwrap_or_default();
    match made["credential"].as_str() {
        Some(credential) => format!("key {id}\ncredential, shown only now:\n  {credential}"),
        None => format!(
            "key {id} was made before, under this idempotency key; its secret was shown then and is kept nowhere.\n\
             If it never reached you, revoke this key and create another:\n  \
             tollgate key revoke {id} --reason 'its secret was lost'\n  \
             tollgate key create --license {license} --reason 'in place of {id}'"
        ),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> impl Iterator<Item = String> {
        line.split(' ').map(str::to_owned)
    }

    #[test]
    fn a_repeat_has_the_key_of_the_first_try() {
        let first = "tollgate key revoke 3d0000000001 --reason x";
        assert_eq!(
            again(words(first), "k1", true),
            format!("{first} --idempotency-key k1")
        );
        let typed = format!("{first} --idempotency-key mine");
        assert_eq!(again(words(&typed), "mine", false), typed);
        let dashes = "tollgate key revoke --reason x -- -3";
        assert_eq!(
            again(words(dashes), "k1", true),
            "tollgate key revoke --reason x --idempotency-key k1 -- -3"
        );
    }

    #[test]
    fn a_key_made_before_says_so_and_what_to_do() {
        let made = json!({ "revision": "1-8", "key": "3d0000000001", "credential": null });
        let said = created(&made, "acme-free");
        assert!(
            said.starts_with("key 3d0000000001 was made before"),
            "{said}"
        );
        assert!(said.contains("its secret was shown then"), "{said}");
        assert!(said.contains("key create --license acme-free"), "{said}");
        let made = json!({ "revision": "1-8", "key": "3d0000000001", "credential": "tg_live_x" });
        assert!(created(&made, "acme-free").ends_with("shown only now:\n  tg_live_x"));
    }
}
