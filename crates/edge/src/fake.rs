//! [`FakeEdge`]: an edge without a cluster, for the tests of applications.
//!
//! Decides with the same code as [`crate::Edge`], on callers and units that the test hands out. Time
//! stands still until the test moves it. Refuses to talk to anybody: what it was not given is refused.

use crate::cell::EdgeCell;
use crate::counts::CheckCounts;
use crate::credential::HashKeys;
use crate::decision::{CheckRequest, Decision, Outcome, Reason};
use crate::edge::Edge;
use crate::principal::{Parts, Purse};
use crate::status::{SessionState, Status, TrafficCounts};
use crate::view::{Answer, Cold, Denial, Mode, View};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tollgate_core::account::{
    AccountId, AccountParts, Environment, Name, NameError, Subject, Window,
};
use tollgate_core::credential::{Composed, RANDOM_BYTES, compose};
use tollgate_core::ids::{Boot, Incarnation, Revision, SessionId, Slot, Units};
use tollgate_core::lessee::{Cell, Refusal};
use tollgate_core::message::{LeaseState, Principal as Who, PrincipalLimit};
use tollgate_core::time::Mono;

/// See the module's text.
pub struct FakeEdge {
    view: View,
    now_ms: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    keys: u32,
    accounts: BTreeMap<AccountId, EdgeCell>,
}

impl Default for FakeEdge {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeEdge {
    /// A fake that knows nobody.
    #[must_use]
    pub fn new() -> Self {
        let view = View::new(HashKeys::new((1, 2)), u64::MAX);
        let revision = Revision {
            incarnation: Incarnation(1),
            index: 1,
        };
        view.set_revisions(revision, revision);
        view.set_fresh_at(Mono(1));
        view.set_open(true);
        Self {
            view,
            now_ms: AtomicU64::new(1),
            state: Mutex::default(),
        }
    }

    /// Makes a key of `customer` with these quotas (name, units) on the customer's account, all on the meter
    /// `requests`; answers its credential. Keys of one customer share what has the same name.
    ///
    /// # Errors
    /// [`NameError`] when a name breaks the rules for names.
    ///
    /// # Panics
    /// After 2³² − 1 keys.
    pub fn add_key(&self, customer: &str, quotas: &[(&str, Units)]) -> Result<String, NameError> {
        let number = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.keys = state.keys.checked_add(1).expect("fewer than 2³² keys");
            state.keys.to_be_bytes()
        };
        let random: [u8; RANDOM_BYTES] = std::array::from_fn(|at| number[at % number.len()]);
        let composed = compose(Environment::Live, Slot::of(customer), &random);
        self.admit_key(&composed, customer, quotas)?;
        Ok(composed.text)
    }

    /// As [`FakeEdge::add_key`], for a credential that exists already.
    ///
    /// # Errors
    /// As [`FakeEdge::add_key`].
    pub fn admit_key(
        &self,
        credential: &Composed,
        customer: &str,
        quotas: &[(&str, Units)],
    ) -> Result<(), NameError> {
        let (customer, meter) = (Name::new(customer)?, Name::new("requests")?);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut limits = Vec::new();
        for (limit, quota) in quotas {
            let name = Name::new(limit)?;
            let account = AccountId::new(&AccountParts {
                environment: Environment::Live,
                customer: customer.as_str(),
                license: None,
                subject: Subject::Customer,
                limit,
                window: Window::Open,
            });
            // Made of checked names.
            let Ok(account) = account else { continue };
            limits.push(PrincipalLimit {
                name,
                meter: meter.clone(),
                account,
                quota: *quota,
            });
        }
        let plan = (Name::new("fake")?, 1);
        let (license, key) = (customer.clone(), credential.key.clone());
        let environment = Environment::Live;
        let who = Arc::new(Who {
            environment,
            customer,
            license,
            key,
            plan,
            limits,
        });
        let parts = Parts::gather(&who, |account| state.accounts.get(account).cloned(), &[]);
        for ((account, cell), limit) in parts.accounts.iter().zip(&who.limits) {
            if !state.accounts.contains_key(account) {
                cell.deposit(limit.quota);
                cell.set_refusal(Some(Refusal {
                    state: LeaseState::NoneForGood,
                    until: None,
                    need: 1,
                }));
                state.accounts.insert(account.clone(), cell.clone());
            }
        }
        let purse = Purse::new(who, &parts);
        self.view.admit(self.view.hash(&credential.text), purse);
        Ok(())
    }

    /// An [`Edge`] that decides on what this fake was given, for what takes one, and for benches: it reads the
    /// machine's clock, and has nobody to ask.
    #[must_use]
    pub fn into_edge(self) -> Edge {
        let status = self.status();
        Edge::without_driver(self.view, status)
    }

    /// From now on the credential is denied for this reason.
    pub fn deny(&self, credential: &str, reason: Reason) {
        self.view.deny(
            self.view.hash(credential),
            Denial {
                reason,
                index: u64::MAX,
            },
        );
    }

    /// Moves time.
    pub fn advance_ms(&self, ms: u64) {
        self.now_ms.fetch_add(ms, Ordering::Relaxed);
    }

    /// As [`Edge::check`](crate::Edge::check).
    #[must_use]
    pub fn check(&self, request: &CheckRequest<'_>) -> Decision {
        self.decide(request, Mode::Take)
    }

    /// As [`Edge::admit`](crate::Edge::admit).
    #[must_use]
    pub fn admit(&self, request: &CheckRequest<'_>) -> Outcome {
        let now = Mono(self.now_ms.load(Ordering::Relaxed));
        self.view
            .decide(now, request, Mode::Take, |answer, _| denied(answer))
    }

    /// As [`Edge::check_or_wait`](crate::Edge::check_or_wait); nothing comes by waiting here.
    pub async fn check_or_wait(&self, request: &CheckRequest<'_>) -> Decision {
        self.check(request)
    }

    /// As [`Edge::status`](crate::Edge::status): a fake is always ready.
    #[must_use]
    pub fn status(&self) -> Status {
        let now = Mono(self.now_ms.load(Ordering::Relaxed));
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let free = state.accounts.values().map(|cell| cell.free());
        Status {
            session: SessionState::Open {
                session: SessionId(1),
                boot: Boot(1),
            },
            nodes: Vec::new(),
            revision: self.view.revision(),
            stale_ms: self.view.stale_ms(now),
            ready: self.view.is_ready(now),
            principals: self.view.principals(),
            accounts: state.accounts.len(),
            held: free.fold(0, Units::saturating_add),
            unacknowledged: 0,
            journal_late: 0,
            traffic: TrafficCounts::default(),
        }
    }

    /// As [`Edge::check_counts`](crate::Edge::check_counts).
    #[must_use]
    pub fn check_counts(&self) -> CheckCounts {
        self.view.counts.totals()
    }

    /// As [`Edge::peek`](crate::Edge::peek).
    pub async fn peek(&self, request: &CheckRequest<'_>) -> Decision {
        self.decide(request, Mode::Peek)
    }

    fn decide(&self, request: &CheckRequest<'_>, mode: Mode) -> Decision {
        let now = Mono(self.now_ms.load(Ordering::Relaxed));
        self.view.decide(now, request, mode, |answer, who| {
            let outcome = denied(answer);
            Decision {
                outcome,
                principal: who.map(|purse| purse.principal().clone()),
            }
        })
    }
}

/// Nobody can be asked: who is unknown is nobody's.
fn denied(answer: Answer) -> Outcome {
    match answer.cold {
        Some(Cold::Unknown(_)) => Outcome {
            reason: Reason::CredentialInvalid,
            retry_after_ms: None,
            ..answer.outcome
        },
        _ => answer.outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::{Cost, Verdict};

    #[test]
    fn it_allows_what_was_given_and_refuses_the_rest() {
        let fake = FakeEdge::new();
        let key = fake
            .add_key("acme", &[("daily", 3), ("monthly", 100)])
            .unwrap();
        let other = fake.add_key("acme", &[("daily", 3)]).unwrap();
        let request = CheckRequest::new(&key);
        assert!(fake.check(&request).is_allowed());
        let decision = fake.check(&CheckRequest::new(&other));
        assert_eq!(decision.customer().map(Name::as_str), Some("acme"));
        let remaining: Vec<_> = decision
            .limits()
            .map(|l| (l.name.to_string(), l.remaining))
            .collect();
        assert_eq!(
            remaining,
            [("daily".to_owned(), 1)],
            "keys of one customer share its account"
        );
        let two = request.with_cost(Cost::new(2).unwrap());
        let refused = fake.check(&two);
        assert_eq!(
            (refused.verdict(), refused.reason()),
            (Verdict::Refuse, Reason::QuotaExceeded)
        );
        assert!(
            fake.check(&request).is_allowed(),
            "the refused one took nothing"
        );
        let left: Vec<_> = fake
            .check(&request)
            .limits()
            .map(|limit| limit.remaining)
            .collect();
        assert_eq!(left, [0, 98]);
    }

    #[test]
    fn an_edge_made_of_a_fake_decides_alike_and_asks_nobody() {
        let fake = FakeEdge::new();
        let key = fake.add_key("acme", &[("daily", 2)]).unwrap();
        let edge = fake.into_edge();
        let reason = |credential: &str| edge.check(&CheckRequest::new(credential)).reason();
        assert_eq!(reason(&key), Reason::Ok);
        assert!(edge.admit(&CheckRequest::new(&key)).is_allowed());
        assert_eq!(reason(&key), Reason::QuotaExceeded);
        let random = [9; RANDOM_BYTES];
        let stranger = compose(Environment::Live, Slot::of("bolt"), &random);
        assert_eq!(reason(&stranger.text), Reason::Unavailable);
        assert!(edge.status().ready);
    }

    #[test]
    fn strangers_and_denied_ones_are_told_why() {
        let fake = FakeEdge::new();
        let key = fake.add_key("acme", &[("daily", 3)]).unwrap();
        fake.deny(&key, Reason::CredentialRevoked);
        let reason = |credential: &str| fake.check(&CheckRequest::new(credential)).reason();
        assert_eq!(reason(&key), Reason::CredentialRevoked);
        assert_eq!(reason(""), Reason::CredentialMissing);
        assert_eq!(reason("tg_live_no"), Reason::CredentialInvalid);
    }
}
