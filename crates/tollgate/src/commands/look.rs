//! `tollgate usage`, `tollgate accounts`, `tollgate status`: what the cluster says of itself.

use crate::admin_client::AdminClient;
use crate::args::{Accounts, Status, Usage};
use crate::output::{Exit, Failure, Format, number, say, show, table, warn};
use crate::watch::{self, Account};
use serde_json::{Value, json};

/// Rows asked for at once.
const PAGE: usize = 1000;

/// Runs `usage`.
///
/// # Errors
/// [`Failure`] with the node's words.
pub async fn usage(format: Format, args: &Usage) -> Result<(), Failure> {
    let client = AdminClient::from_args(&args.admin).await?;
    let mut path = "/admin/v1/usage".to_owned();
    let filters = [("customer", &args.customer), ("license", &args.license)];
    for (name, value) in filters {
        if let Some(value) = value {
            let joint = if path.contains('?') { '&' } else { '?' };
            path.push_str(&format!("{joint}{name}={}", watch::encode(value)));
        }
    }
    let rows = watch::pages(&client, &path, "usage", PAGE).await?;
    if rows.is_empty() {
        say(format, "no use was reported yet");
    }
    show(format, &rows, |rows| {
        if rows.is_empty() {
            return String::new();
        }
        let word = |row: &Value, field: &str| row[field].as_str().unwrap_or("-").to_owned();
        let units = |row: &Value| row["units"].as_u64().unwrap_or(0);
        let total: u64 = rows.iter().map(units).sum();
        let mut shown: Vec<Vec<String>> = rows
            .iter()
            .map(|row| {
                let mut cells: Vec<String> = ["customer", "license", "environment", "meter", "key"]
                    .map(|f| word(row, f))
                    .into();
                cells.push(number(units(row)));
                cells
            })
            .collect();
        let mut sum = vec![String::new(); 6];
        sum[0] = "(total)".to_owned();
        sum[5] = number(total);
        shown.push(sum);
        table(
            &[
                "customer",
                "licence",
                "environment",
                "meter",
                "key",
                "units",
            ],
            shown,
        )
    })
}

/// Runs `accounts`.
///
/// # Errors
/// [`Failure`] with the node's words.
pub async fn accounts(format: Format, args: &Accounts) -> Result<(), Failure> {
    let client = AdminClient::from_args(&args.admin).await?;
    let all = watch::Accounts::read(&client, args.customer.as_deref()).await?;
    let rows: Vec<&Account> = all.iter().collect();
    if rows.is_empty() {
        say(
            format,
            "no account has a row yet: nothing was leased or used",
        );
    }
    show(format, &rows, |rows| {
        if rows.is_empty() {
            return String::new();
        }
        let shown = rows.iter().map(|row| {
            vec![
                row.account.clone(),
                number(row.settled),
                number(row.out),
                row.limit.map_or("none".to_owned(), number),
                number(row.excess),
            ]
        });
        table(&["account", "settled", "out", "limit", "excess"], shown)
    })
}

/// Runs `status`: asks every address.
///
/// # Errors
/// [`Failure`] when no node answers.
pub async fn status(format: Format, args: &Status) -> Result<(), Failure> {
    let client = AdminClient::from_args(&args.admin).await?;
    let mut nodes: Vec<Value> = Vec::new();
    let mut last = None;
    for host in &args.admin.addr {
        let one = client.at_host(host).await?;
        match one.get::<Value>("/admin/v1/status").await {
            Ok(mut status) => {
                status["address"] = json!(host.to_string());
                nodes.push(status);
            }
            Err(failure) => {
                warn(&failure.message);
                last = Some(failure.exit);
            }
        }
    }
    if nodes.is_empty() {
        let exit = last.unwrap_or(Exit::Unavailable);
        return Err(Failure::new(
            exit,
            "no status: no node of those named answered",
        ));
    }
    show(format, &nodes, |nodes| people(nodes))
}

fn people(nodes: &[Value]) -> String {
    let text = |node: &Value, field: &str| match &node[field] {
        Value::String(text) => text.clone(),
        Value::Number(n) => n.as_u64().map_or_else(|| n.to_string(), number),
        _ => "-".to_owned(),
    };
    let rows = nodes.iter().map(|node| {
        let own = node["node"].to_string();
        vec![
            text(node, "node"),
            text(node, "address"),
            text(node, "role"),
            text(node, "term"),
            text(node, "applied"),
            node["slots"][&own].as_u64().map_or("0".to_owned(), number),
            text(node, "edges_connected"),
            text(node, "revision"),
            node["digest"]
                .as_str()
                .unwrap_or("-")
                .chars()
                .take(12)
                .collect(),
        ]
    });
    let head = [
        "node", "admin", "role", "term", "applied", "slots", "edges", "revision", "digest",
    ];
    let mut out = table(&head, rows);
    let first = &nodes[0];
    out.push_str(&format!(
        "\n\ncluster {}: {} accounts, {} open sessions, {} slots without an issuer, {} units in suspense",
        text(first, "cluster"),
        text(first, "accounts"),
        first["sessions"]["open"],
        text(first, "unowned"),
        text(first, "suspense_units"),
    ));
    for (name, count) in first["alarms"].as_object().into_iter().flatten() {
        if count.as_u64().unwrap_or(0) > 0 {
            out.push_str(&format!("\nalarm {name}: {count}"));
        }
    }
    out
}
