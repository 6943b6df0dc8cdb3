//! The registry of sessions with what it is asked by: boot, start, identity, and how long they were silent.
//!
//! Every index here is a function of the sessions alone, whatever order they came in; a change goes through
//! [`Registry::put`], [`Registry::update`] or [`Registry::remove`], so none can be forgotten. Decides
//! nothing: [`super::sessions`] does.

use super::records::KIND_SESSION;
use super::sessions::Session;
use crate::account::Name;
use crate::ids::{Boot, Nonce, SessionId};
use crate::table::Table;
use crate::time::LedgerTime;
use std::collections::{BTreeMap, BTreeSet};

/// See the module's text.
#[derive(Clone, Debug)]
pub(crate) struct Registry {
    sessions: Table<SessionId, Session>,
    /// The latest boot of each open session.
    boots: BTreeMap<Boot, SessionId>,
    /// Every open session by its start: a repeat of an unanswered first open finds its session.
    starts: BTreeSet<(Name, Nonce, SessionId)>,
    /// Every session by its last command.
    seen: BTreeSet<(LedgerTime, SessionId)>,
    identities: BTreeMap<Name, OfIdentity>,
}

/// The sessions of one identity.
#[derive(Clone, Debug, Default)]
struct OfIdentity {
    all: usize,
    closed: BTreeSet<(LedgerTime, SessionId)>,
}

impl Registry {
    pub(crate) fn new() -> Self {
        Self {
            sessions: Table::new(KIND_SESSION),
            boots: BTreeMap::new(),
            starts: BTreeSet::new(),
            seen: BTreeSet::new(),
            identities: BTreeMap::new(),
        }
    }

    pub(crate) fn get(&self, id: SessionId) -> Option<&Session> {
        self.sessions.get(&id)
    }

    pub(crate) fn put(&mut self, id: SessionId, session: Session) {
        self.remove(id);
        self.enter(id, &session);
        self.sessions.put(id, session);
    }

    /// Changes a session in place; nothing happens when there is none.
    pub(crate) fn update(&mut self, id: SessionId, change: impl FnOnce(&mut Session)) {
        let Some(old) = self.sessions.get(&id) else {
            return;
        };
        let before = Standing::of(old);
        let identity = old.identity.clone();
        self.sessions.update(&id, change);
        let Some(new) = self.sessions.get(&id) else {
            return;
        };
        let after = Standing::of(new);
        if before != after {
            self.leave(id, identity.clone(), before);
            self.stand(id, identity, after);
        }
    }

    pub(crate) fn remove(&mut self, id: SessionId) {
        if let Some(old) = self.sessions.remove(&id) {
            let standing = Standing::of(&old);
            self.leave(id, old.identity, standing);
        }
    }

    fn enter(&mut self, id: SessionId, session: &Session) {
        self.stand(id, session.identity.clone(), Standing::of(session));
    }

    fn stand(&mut self, id: SessionId, identity: Name, standing: Standing) {
        self.seen.insert((standing.seen, id));
        let of = self.identities.entry(identity.clone()).or_default();
        of.all = of.all.saturating_add(1);
        if standing.closed {
            of.closed.insert((standing.seen, id));
        } else {
            self.boots.insert(standing.boot, id);
            self.starts.insert((identity, standing.nonce, id));
        }
    }

    fn leave(&mut self, id: SessionId, identity: Name, standing: Standing) {
        self.seen.remove(&(standing.seen, id));
        if let Some(of) = self.identities.get_mut(&identity) {
            of.all = of.all.saturating_sub(1);
            of.closed.remove(&(standing.seen, id));
            if of.all == 0 {
                self.identities.remove(&identity);
            }
        }
        if !standing.closed {
            self.boots.remove(&standing.boot);
            self.starts.remove(&(identity, standing.nonce, id));
        }
    }

    /// The newest open session of an identity under a start number.
    pub(crate) fn started(&self, identity: &Name, nonce: Nonce) -> Option<(SessionId, &Session)> {
        let of = |session| (identity.clone(), nonce, SessionId(session));
        let (_, _, id) = self.starts.range(of(0)..=of(u64::MAX)).next_back()?;
        self.sessions.get(id).map(|session| (*id, session))
    }

    /// The open session whose latest boot this is.
    pub(crate) fn of_boot(&self, boot: Boot) -> Option<SessionId> {
        self.boots.get(&boot).copied()
    }

    /// How many sessions an identity has, open or closed.
    pub(crate) fn count_of(&self, identity: &Name) -> usize {
        self.identities.get(identity).map_or(0, |of| of.all)
    }

    /// The closed session of an identity that was closed first.
    pub(crate) fn oldest_closed(&self, identity: &Name) -> Option<SessionId> {
        let closed = &self.identities.get(identity)?.closed;
        closed.first().map(|(_, id)| *id)
    }

    /// Sessions whose last command came before a moment, the longest silent first.
    pub(crate) fn silent_since(&self, time: LedgerTime) -> impl Iterator<Item = SessionId> {
        let silent = self.seen.range(..(time, SessionId(0)));
        silent.map(|(_, id)| *id)
    }

    /// How many are open.
    pub(crate) fn open(&self) -> usize {
        self.boots.len()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.sessions.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (SessionId, &Session)> {
        self.sessions.iter().map(|(id, session)| (*id, session))
    }

    pub(crate) fn digest(&self) -> u128 {
        self.sessions.digest()
    }

    pub(crate) fn take_dirty(&mut self) -> BTreeSet<SessionId> {
        self.sessions.take_dirty()
    }
}

/// What the indexes know of a session.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Standing {
    boot: Boot,
    nonce: Nonce,
    seen: LedgerTime,
    closed: bool,
}

impl Standing {
    fn of(session: &Session) -> Self {
        Self {
            boot: session.boot,
            nonce: session.nonce,
            seen: session.seen,
            closed: session.closed,
        }
    }
}
