//! What a catalog file would change, judged beside the ledger: for dry runs.
//!
//! A [`Trial`] copies of the catalog only what the file's records name, bit by bit, so that nobody has to hold the
//! ledger still for long; it notices when the catalog changed in between. Judging then is the same code that `apply`
//! runs ([`super::upsert`]), on the copy.

use super::{AdminCommand, AdminReply, Change, Item, malformed_reason, upsert};
use crate::account::Name;
use crate::audit::AuditEntry;
use crate::ids::Revision;
use crate::ledger::Ledger;
use std::sync::Arc;

/// See the module's text.
#[derive(Clone, Debug)]
pub struct Trial {
    copy: Ledger,
}

impl Trial {
    /// A trial against the catalog as it stands.
    #[must_use]
    pub fn new(ledger: &Ledger) -> Self {
        Self {
            copy: ledger.bare_copy(),
        }
    }

    /// The catalog's revision it is made against.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.copy.catalog.revision()
    }

    /// Copies what some records of the file name; `false` when the catalog changed since the trial began: begin anew.
    #[must_use]
    pub fn copy_named(&mut self, ledger: &Ledger, items: &[Item]) -> bool {
        if ledger.catalog.revision() != self.revision() {
            return false;
        }
        for item in items {
            ledger.catalog.copy_named(item, &mut self.copy.catalog);
        }
        true
    }

    /// What applying the whole file would answer, and the audit entries it would make.
    #[must_use]
    pub fn judge(
        mut self,
        principal: Name,
        reason: Arc<str>,
        base_revision: Option<Revision>,
        items: &[Item],
    ) -> (AdminReply, Vec<AuditEntry>) {
        if let Some(why) = malformed_reason(&reason) {
            return (AdminReply::Malformed(why.into()), Vec::new());
        }
        let current = self.revision();
        if let Some(expected) = base_revision.filter(|base| *base != current) {
            return (AdminReply::Conflict { expected, current }, Vec::new());
        }
        let command = AdminCommand {
            principal,
            idempotency_key: None,
            base_revision,
            reason,
            change: Change::Apply { items: Vec::new() },
        };
        let (index, time) = (self.copy.index().saturating_add(1), self.copy.time());
        self.copy.begin(index, time);
        let reply = upsert::apply(&mut self.copy, &command, items);
        (reply, self.copy.take_audit())
    }
}
