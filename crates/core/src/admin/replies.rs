//! Answers to administrative commands, remembered under the key their sender chose.
//!
//! A command that comes again under its `idempotency_key` gets the first answer and changes nothing, on
//! every replica and after every restart, refusals too: a late copy of a command that was refused must
//! not take effect after its sender was told so. The ring holds the last [`REPLIES_MAX`] answers of all
//! principals; a copy later than that is judged anew, and a base revision then refuses it.

use super::AdminReply;
use crate::account::Name;
use crate::table::Table;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Answers remembered.
pub const REPLIES_MAX: usize = 1024;

/// One remembered answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Remembered {
    /// Who asked.
    pub principal: Name,
    /// The key chosen.
    pub key: Name,
    /// [`super::AdminCommand::content_hash`] of the command.
    pub content: u128,
    /// The answer.
    pub reply: AdminReply,
}

/// See the module's text.
#[derive(Clone, Debug)]
pub(crate) struct Replies {
    ring: Table<u64, Remembered>,
    numbers: BTreeMap<(Name, Name), u64>,
}

impl Replies {
    pub(crate) fn new(kind: u8) -> Self {
        Self {
            ring: Table::new(kind),
            numbers: BTreeMap::new(),
        }
    }

    pub(crate) fn find(&self, principal: &Name, key: &Name) -> Option<&Remembered> {
        let number = self.numbers.get(&(principal.clone(), key.clone()))?;
        self.ring.get(number)
    }

    pub(crate) fn remember(&mut self, remembered: Remembered) {
        let last = self
            .ring
            .iter()
            .next_back()
            .map_or(0, |(number, _)| *number);
        self.put(last.saturating_add(1), remembered);
        while self.ring.len() > REPLIES_MAX {
            let Some(oldest) = self.ring.iter().next().map(|(number, _)| *number) else {
                break;
            };
            if let Some(dropped) = self.ring.remove(&oldest) {
                self.numbers.remove(&(dropped.principal, dropped.key));
            }
        }
    }

    pub(crate) fn put(&mut self, number: u64, remembered: Remembered) {
        let name = (remembered.principal.clone(), remembered.key.clone());
        self.numbers.insert(name, number);
        self.ring.put(number, remembered);
    }

    pub(crate) fn numbered(&self, number: u64) -> Option<&Remembered> {
        self.ring.get(&number)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&u64, &Remembered)> {
        self.ring.iter()
    }

    pub(crate) fn digest(&self) -> u128 {
        self.ring.digest()
    }

    pub(crate) fn take_dirty(&mut self) -> BTreeSet<u64> {
        self.ring.take_dirty()
    }
}
