//! The replicated book of quota accounts: what every node computes from the log (design §4).
//!
//! `apply` is total: a refusal is a reply, nothing here fails, reads a clock, does I/O or asks who leads.
//! Parts: [`accounts`] (positions and what is out), [`sessions`] (boots and reports), [`usage`] (what is
//! billed), [`slots`] (who issues what), [`pepper`] (what secrets are stored under), [`crate::catalog`] (limits), [`records`] (what is kept on disk).
//!
//! **Invariant I1** (promise P1), kept in [`accounts`], guarded by `tests/ledger.rs`, `tests/protocol` and the simulator:
//! nothing is acquired unless `settled − excess + out ≤ limit` holds afterwards; units of anyone, alive
//! or crashed, stay in `out` until they are settled, returned or written off.

// `apply` runs on every node alike: a sum that panicked would stop them all at the same entry.
#![cfg_attr(
    not(test),
    warn(
        clippy::arithmetic_side_effects,
        clippy::iter_over_hash_type,
        clippy::float_arithmetic
    )
)]

pub mod accounts;
mod pepper;
pub mod records;
mod registry;
pub mod sessions;
pub mod slots;
pub mod usage;

use crate::account::AccountId;
use crate::admin;
use crate::audit::AuditEntry;
use crate::catalog::{Catalog, PepperId};
use crate::command::{Command, Entry, Reply};
use crate::ids::{Boot, Epoch, Incarnation, NodeId, SessionId, Slot, Units};
use crate::message::Route;
use crate::table::Table;
use crate::time::LedgerTime;
use accounts::{LimitMemo, Row};
use records::{Meta, SuspenseKey};
use registry::Registry;
use sessions::Session;
use slots::{NodeEntry, SlotEntry};
use std::ops::Bound;
use usage::Usage;

/// Something that must be looked at by a person; counted and logged by the node, never silent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// An issuer returned more than was out.
    ReturnedBeyondOut {
        /// The account.
        account: AccountId,
        /// The remainder that found nothing.
        units: Units,
    },
    /// A report used leased units that were not out, or units without a lease.
    Excess {
        /// The account.
        account: AccountId,
        /// Units added to `excess`.
        units: Units,
    },
    /// A report line named no known account or license.
    Suspense {
        /// The session that reported it.
        session: SessionId,
        /// The name it gave.
        name: String,
        /// The units.
        units: Units,
    },
    /// One report number came with two contents.
    HashMismatch {
        /// The session.
        session: SessionId,
    },
    /// A sum would have left the number range; the line went to suspense.
    Overflow {
        /// The account.
        account: AccountId,
    },
}

/// What the registry says of an edge's boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EdgeBoot {
    /// The latest boot of an open session.
    Live(SessionId),
    /// A later boot of its session exists, or the session ended.
    Fenced,
    /// Not numbered up to this index: the replica lags behind whoever told of it.
    NotYet,
}

/// How large the ledger is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Accounts with a row.
    pub accounts: usize,
    /// Sessions that are open.
    pub sessions_open: usize,
    /// Sessions, open or closed.
    pub sessions_known: usize,
}

/// Most alarms kept between two [`Ledger::take_alarms`]; later ones are counted by the caller's metric only.
pub const ALARMS_MAX: usize = 1024;

/// The replicated state. Equal logs give equal ledgers, equal [`Ledger::digest`]s and equal replies.
#[derive(Clone, Debug)]
pub struct Ledger {
    pub(crate) meta: Meta,
    pub(crate) nodes: Table<NodeId, NodeEntry>,
    pub(crate) slots: Table<Slot, SlotEntry>,
    /// At most one.
    pub(crate) pepper: Table<(), PepperId>,
    pub(crate) sessions: Registry,
    pub(crate) accounts: Table<AccountId, Row, LimitMemo>,
    pub(crate) usage: Usage,
    pub(crate) suspense: Table<SuspenseKey, Units>,
    pub(crate) catalog: Catalog,
    /// The sum of `suspense`.
    pub(crate) suspense_units: Units,
    alarms: Vec<Alarm>,
    audit: Vec<AuditEntry>,
}

impl Ledger {
    /// The ledger of a new cluster, before its first entry.
    #[must_use]
    pub fn new(incarnation: Incarnation) -> Self {
        let mut slots = Table::new(records::KIND_SLOT);
        for slot in Slot::all() {
            slots.put(
                slot,
                SlotEntry {
                    epoch: Epoch(0),
                    owner: None,
                },
            );
        }
        Self {
            meta: Meta::new(incarnation),
            nodes: Table::new(records::KIND_NODE),
            slots,
            pepper: Table::new(records::KIND_PEPPER),
            sessions: Registry::new(),
            accounts: Table::new(records::KIND_ACCOUNT),
            usage: Usage::new(),
            suspense: Table::new(records::KIND_SUSPENSE),
            catalog: Catalog::new(incarnation),
            suspense_units: 0,
            alarms: Vec::new(),
            audit: Vec::new(),
        }
    }

    /// A ledger of the same moment that holds nothing, with a catalog that still counts what it left out.
    pub(crate) fn bare_copy(&self) -> Self {
        Self {
            meta: self.meta.clone(),
            catalog: self.catalog.bare_copy(),
            ..Self::new(self.meta.incarnation)
        }
    }

    /// Applies one log entry; one reply per command, in order.
    pub fn apply(&mut self, index: u64, entry: &Entry) -> Vec<Reply> {
        self.begin(index, entry.time);
        entry
            .commands
            .iter()
            .map(|command| self.apply_command(command))
            .collect()
    }

    /// Starts an entry: its index and time stand for every command that follows until the next one.
    /// For callers that decode the commands of a batch one by one.
    pub fn begin(&mut self, index: u64, time: LedgerTime) {
        self.meta.index = index;
        self.meta.time = self.meta.time.max(time);
    }

    /// Applies one command of the entry begun last.
    pub fn apply_command(&mut self, command: &Command) -> Reply {
        match command {
            Command::OpenNode(c) => Reply::OpenNode(self.open_node(c)),
            Command::OpenSession(c) => Reply::OpenSession(self.open_session(c)),
            Command::Assign(c) => Reply::Assign(self.assign(c)),
            Command::Position(c) => Reply::Position(self.position(c)),
            Command::Report(c) => Reply::Report(self.report(c)),
            Command::CloseSession(c) => Reply::CloseSession(self.close_session(c)),
            Command::Tick => {
                self.retire_sessions();
                self.retire_usage();
                Reply::Tick(self.meta.time)
            }
            Command::Admin(c) => Reply::Admin(Box::new(admin::apply(self, c))),
            Command::NamePepper(c) => Reply::NamePepper(self.name_pepper(*c)),
        }
    }

    /// Ledger time: that of the newest entry.
    #[must_use]
    pub fn time(&self) -> LedgerTime {
        self.meta.time
    }

    /// Index of the last applied entry.
    #[must_use]
    pub fn index(&self) -> u64 {
        self.meta.index
    }

    /// The life of this data.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.meta.incarnation
    }

    /// The catalog: who may, and how much.
    #[must_use]
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// The row of an account, once units were acquired or used.
    #[must_use]
    pub fn account(&self, account: &AccountId) -> Option<&Row> {
        self.accounts.get(account)
    }

    /// All accounts with a row, in order of their names.
    pub fn accounts(&self) -> impl DoubleEndedIterator<Item = (&AccountId, &Row)> {
        self.accounts.iter()
    }

    /// The accounts after a name, or whatever text, for listings in pages.
    pub fn accounts_after(&self, after: &str) -> impl Iterator<Item = (&AccountId, &Row)> {
        self.accounts
            .range::<str, _>((Bound::Excluded(after), Bound::Unbounded))
    }

    /// How many accounts have a row, and how many sessions are open and known.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        Sizes {
            accounts: self.accounts.len(),
            sessions_open: self.sessions.open(),
            sessions_known: self.sessions.len(),
        }
    }

    /// The limit in force for an account at this index; `None` where there is none.
    #[must_use]
    pub fn limit(&self, account: &AccountId) -> Option<Units> {
        self.catalog.limit(account)
    }

    /// Who owns a slot.
    #[must_use]
    pub fn route(&self, slot: Slot) -> Route {
        let entry = self.slot_entry(slot);
        Route {
            slot,
            epoch: entry.epoch,
            owner: entry.owner,
        }
    }

    /// The latest boot of a node.
    #[must_use]
    pub fn node_boot(&self, node: NodeId) -> Option<Boot> {
        self.nodes.get(&node).map(|entry| entry.boot)
    }

    /// A session of the registry.
    #[must_use]
    pub fn session(&self, session: SessionId) -> Option<&Session> {
        self.sessions.get(session)
    }

    /// All sessions, in order.
    pub fn sessions(&self) -> impl Iterator<Item = (SessionId, &Session)> {
        self.sessions.iter()
    }

    /// What the registry says of an edge's boot.
    #[must_use]
    pub fn edge_boot(&self, boot: Boot) -> EdgeBoot {
        match self.sessions.of_boot(boot) {
            Some(session) => EdgeBoot::Live(session),
            None if boot <= self.meta.last_boot => EdgeBoot::Fenced,
            None => EdgeBoot::NotYet,
        }
    }

    /// Log index of the newest change of the slot table.
    #[must_use]
    pub fn routes_index(&self) -> u64 {
        self.meta.routes_index
    }

    /// What named no known account or license.
    pub fn suspense(&self) -> impl Iterator<Item = (&SuspenseKey, Units)> {
        self.suspense.iter().map(|(key, units)| (key, *units))
    }

    /// The sum of [`Self::suspense`]; stays at the largest number rather than wrap.
    #[must_use]
    pub fn suspense_units(&self) -> Units {
        self.suspense_units
    }

    /// Digest of the whole state; equal on every replica at equal index.
    #[must_use]
    pub fn digest(&self) -> u128 {
        [
            self.meta.digest(),
            self.nodes.digest(),
            self.slots.digest(),
            self.pepper.digest(),
            self.sessions.digest(),
            self.accounts.digest(),
            self.usage.digest(),
            self.suspense.digest(),
            self.catalog.digest(),
        ]
        .into_iter()
        .fold(0, u128::wrapping_add)
    }

    /// Alarms since the last call.
    pub fn take_alarms(&mut self) -> Vec<Alarm> {
        std::mem::take(&mut self.alarms)
    }

    /// Audit entries since the last call, in order of their numbers.
    pub fn take_audit(&mut self) -> Vec<AuditEntry> {
        std::mem::take(&mut self.audit)
    }

    pub(crate) fn raise(&mut self, alarm: Alarm) {
        if self.alarms.len() < ALARMS_MAX {
            self.alarms.push(alarm);
        }
    }

    pub(crate) fn audit(&mut self, entry: AuditEntry) {
        self.audit.push(entry);
    }

    pub(crate) fn next_boot(&mut self) -> Boot {
        self.meta.last_boot = self.meta.last_boot.next();
        self.meta.last_boot
    }
}
