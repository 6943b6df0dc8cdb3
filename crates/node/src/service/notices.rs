//! News for every edge: that the slot table or the catalog changed, found once per node and not per connection.

use crate::consensus::Consensus;
use crate::fatal::Fatal;
use crate::machine::SharedLedger;
use std::sync::Arc;
use tokio::sync::watch;
use tollgate_core::ids::{Revision, Slot};
use tollgate_core::message::Route;

/// What edges are told of without asking.
#[derive(Clone, Debug)]
pub struct Notice {
    /// The catalog's revision.
    pub revision: Revision,
    /// Log index of the newest change of the slot table.
    pub routes_index: u64,
    /// The slot table, by slot.
    pub routes: Arc<[Route]>,
}

impl Notice {
    /// What the replica says now.
    #[must_use]
    pub fn of(ledger: &SharedLedger) -> Self {
        let ledger = ledger.read();
        Self {
            revision: ledger.catalog().revision(),
            routes_index: ledger.routes_index(),
            routes: Slot::all().map(|slot| ledger.route(slot)).collect(),
        }
    }

    /// The routes that differ from those of an older notice.
    #[must_use]
    pub fn changed_since(&self, older: &Self) -> Vec<Route> {
        let differs = |(new, old): &(&Route, &Route)| new != old;
        self.routes
            .iter()
            .zip(older.routes.iter())
            .filter(differs)
            .map(|(new, _)| *new)
            .collect()
    }
}

/// Follows the replica until the node stops.
pub async fn run(
    sender: watch::Sender<Notice>,
    ledger: SharedLedger,
    consensus: Arc<dyn Consensus>,
    fatal: Fatal,
) {
    let mut applied = consensus.applied();
    loop {
        tokio::select! {
            changed = applied.changed() => if changed.is_err() { return },
            () = fatal.stopping() => return,
        }
        let (revision, routes_index) = {
            let ledger = ledger.read();
            (ledger.catalog().revision(), ledger.routes_index())
        };
        let same = {
            let last = sender.borrow();
            (last.revision, last.routes_index) == (revision, routes_index)
        };
        if !same {
            sender.send_replace(Notice::of(&ledger));
        }
    }
}
