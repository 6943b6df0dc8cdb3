//! [`Unsent`]: the accounts whose issuer has to hear something, again and again until it answers.
//!
//! Owns when to look at them next: many may wait for answers at a time, and each input is followed by a look.

use crate::account::AccountId;
use crate::time::Mono;
use std::collections::BTreeSet;

/// See the module's text.
pub(super) struct Unsent {
    accounts: BTreeSet<AccountId>,
    /// None of them is due before this moment.
    quiet_until: Mono,
}

impl Unsent {
    pub(super) fn new() -> Self {
        Self {
            accounts: BTreeSet::new(),
            quiet_until: Mono(0),
        }
    }

    /// An account has something to say, due at `at`.
    pub(super) fn insert(&mut self, account: AccountId, at: Mono) {
        self.accounts.insert(account);
        self.quiet_until = self.quiet_until.min(at);
    }

    pub(super) fn remove(&mut self, account: &AccountId) {
        self.accounts.remove(account);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.accounts.is_empty()
    }

    /// Whether one of them may be due.
    pub(super) fn is_due(&self, now: Mono) -> bool {
        !self.accounts.is_empty() && now >= self.quiet_until
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &AccountId> {
        self.accounts.iter()
    }

    /// They were looked at: the first of them is due at `at`.
    pub(super) fn be_quiet_until(&mut self, at: Mono) {
        self.quiet_until = at;
    }
}
