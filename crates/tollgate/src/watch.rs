//! What the admin API says of a cluster, as the commands and the demo read it.
//!
//! Owns: the shapes of the answers that are used here. Unknown fields are ignored: a newer node may say more.

use crate::admin_client::AdminClient;
use crate::output::Failure;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Accounts asked for at once.
const PAGE: usize = 1000;

/// Who leads and who issues, as one node sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClusterView {
    /// The answering node.
    pub node: u64,
    /// The leader, if one is known.
    pub leader: Option<u64>,
    /// Last log index applied.
    pub applied: u64,
    /// Slots by owner.
    pub slots: BTreeMap<u64, usize>,
    /// Slots without an owner.
    pub unowned: usize,
}

impl ClusterView {
    /// Asks the first node that answers.
    ///
    /// # Errors
    /// [`Failure`] when none does.
    pub async fn read(admin: &AdminClient) -> Result<Self, Failure> {
        admin.get("/admin/v1/status").await
    }

    /// Slots a node issues.
    #[must_use]
    pub fn slots_of(&self, node: u64) -> usize {
        self.slots.get(&node).copied().unwrap_or(0)
    }

    /// The nodes that issue slots.
    #[must_use]
    pub fn owners(&self) -> Vec<u64> {
        self.slots
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|(node, _)| *node)
            .collect()
    }

    /// Slots that nobody alive issues, if the nodes `dead` are.
    #[must_use]
    pub fn unowned_without(&self, dead: &[u64]) -> usize {
        self.unowned + dead.iter().map(|node| self.slots_of(*node)).sum::<usize>()
    }

    /// Whether every slot has an owner that is not among `dead`, and somebody leads.
    #[must_use]
    pub fn all_owned_without(&self, dead: &[u64]) -> bool {
        self.unowned_without(dead) == 0 && self.leader.is_some_and(|leader| !dead.contains(&leader))
    }
}

/// A quota account, as the ledger has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Its name.
    pub account: String,
    /// Units reported as used.
    pub settled: u64,
    /// Units that left the ledger and are neither settled nor returned.
    pub out: u64,
    /// The part of settled that was never out.
    pub excess: u64,
    /// The limit in force.
    pub limit: Option<u64>,
}

/// Reads a listing page by page; `kind` is the field its rows stand in.
///
/// # Errors
/// [`Failure`] when a page cannot be had.
pub async fn pages(
    admin: &AdminClient,
    path: &str,
    kind: &str,
    page: usize,
) -> Result<Vec<Value>, Failure> {
    let mut rows = Vec::new();
    let mut after = String::new();
    let joint = if path.contains('?') { '&' } else { '?' };
    loop {
        let mut answer: Value = admin
            .get(&format!("{path}{joint}limit={page}{after}"))
            .await?;
        if let Value::Array(found) = answer[kind].take() {
            rows.extend(found);
        }
        match answer["next"].as_str() {
            Some(next) => after = format!("&after={}", encode(next)),
            None => return Ok(rows),
        }
    }
}

/// The accounts of a ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accounts {
    rows: BTreeMap<String, Account>,
}

impl Accounts {
    /// Reads all, or those of one customer.
    ///
    /// # Errors
    /// [`Failure`] when a page cannot be had.
    pub async fn read(admin: &AdminClient, customer: Option<&str>) -> Result<Self, Failure> {
        let filter = customer.map(|customer| format!("?customer={}", encode(customer)));
        let path = format!("/admin/v1/accounts{}", filter.unwrap_or_default());
        let mut rows = BTreeMap::new();
        for row in pages(admin, &path, "accounts", PAGE).await? {
            let row: Account = serde_json::from_value(row).map_err(Failure::failed)?;
            rows.insert(row.account.clone(), row);
        }
        Ok(Self { rows })
    }

    /// Some accounts.
    pub fn of(rows: impl IntoIterator<Item = Account>) -> Self {
        let named = |row: Account| (row.account.clone(), row);
        Self {
            rows: rows.into_iter().map(named).collect(),
        }
    }

    /// One account.
    #[must_use]
    pub fn get(&self, account: &str) -> Option<&Account> {
        self.rows.get(account)
    }

    /// All, in order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &Account> {
        self.rows.values()
    }
}

/// Metered units by customer, over all its licences, environments, meters and keys.
///
/// # Errors
/// [`Failure`] when a page cannot be had.
pub async fn usage(admin: &AdminClient) -> Result<BTreeMap<String, u64>, Failure> {
    let mut sums = BTreeMap::new();
    for row in pages(admin, "/admin/v1/usage", "usage", PAGE).await? {
        let (Some(customer), Some(units)) = (row["customer"].as_str(), row["units"].as_u64())
        else {
            return Err(Failure::failed(format!("no row of usage: {row}")));
        };
        *sums.entry(customer.to_owned()).or_default() += units;
    }
    Ok(sums)
}

/// Percent-encodes what may not stand in a query value.
#[must_use]
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
