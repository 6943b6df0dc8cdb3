//! Which pepper the cluster's secrets are stored under: one for all nodes, named by the first of them, for good.
//!
//! A node with another pepper would make keys that nobody else accepts, and refuse everybody else's. So it is told, by
//! the ids alone; what a pepper is, only nodes know. See [`crate::catalog::SecretMac`].

use super::Ledger;
use crate::catalog::PepperId;
use crate::command::NamePepperReply;

impl Ledger {
    /// The cluster's pepper; `None` before a node named its own.
    #[must_use]
    pub fn pepper(&self) -> Option<PepperId> {
        self.pepper.get(&()).copied()
    }

    pub(crate) fn name_pepper(&mut self, named: PepperId) -> NamePepperReply {
        if let Some(cluster) = self.pepper().or_else(|| self.pepper_of_keys(named))
            && cluster != named
        {
            return NamePepperReply::Other { cluster };
        }
        if self.pepper().is_none() {
            self.pepper.put((), named);
        }
        NamePepperReply::Same
    }

    /// Of a cluster that has keys and never named a pepper: `named`, if any key has it, else that of the first. A node
    /// that is the first with a wrong pepper does not make it the cluster's. Looks at every key, once in a cluster's life
    /// and with every start of such a node.
    fn pepper_of_keys(&self, named: PepperId) -> Option<PepperId> {
        let secrets = || self.catalog.keys().flat_map(|key| &key.secrets);
        let first = secrets().next()?.mac.pepper;
        let any = secrets().any(|secret| secret.mac.pepper == named);
        Some(if any { named } else { first })
    }
}
