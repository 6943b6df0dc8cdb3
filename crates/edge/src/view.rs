//! [`View`]: what an edge has seen of the catalog, and the decision on it: the hot path.
//!
//! Owns the two bounded maps (principals, remembered denials), how fresh they are, and the counts. Checks
//! read it on any thread without a lock; only the driver writes. Refuses to wait and to ask: it says
//! [`Cold`] and the caller decides whether to. Next: `driver/mod.rs`, which fills it.

use crate::cell::EdgeCell;
use crate::clock;
use crate::counts::{Counts, Entered};
use crate::credential::{self, Hash, HashKeys, Place, Proof};
use crate::decision::{CheckRequest, Outcome, Reason};
use crate::principal::{Principal, Purse};
use crate::sources::Sources;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tollgate_core::ids::{Incarnation, Revision, Units};
use tollgate_core::time::Mono;

/// Principals an edge remembers; beyond them the one unused for longest is forgotten.
pub(crate) const PRINCIPALS_MAX: usize = 1_000_000;
/// Denied credentials an edge remembers; beyond them the oldest is forgotten.
pub(crate) const DENIALS_MAX: usize = 65_536;
/// What a refusal for lack of an answer suggests to wait, in ms.
const UNAVAILABLE_RETRY_MS: u64 = 1000;
/// What a source that presents too many unknown credentials is told to wait, in ms.
const SOURCE_RETRY_MS: u64 = 1000;

/// A denial that is remembered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Denial {
    pub(crate) reason: Reason,
    /// Log index of the catalog revision it was computed at; void once the edge knows of a higher one.
    pub(crate) index: u64,
}

/// Whether a check takes or only looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Take,
    Peek,
}

/// What was missing for a decision; asking and waiting may bring it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cold {
    /// Nobody has said yet who this is.
    Unknown(Hash),
    /// A cell holds too little, and no refusal stands.
    Short,
    /// No session yet, or no proof that the view is current.
    NotReady,
}

/// What a look at the view gave.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer {
    /// The decision; where `cold` stands, the one for a caller that does not wait.
    pub(crate) outcome: Outcome,
    pub(crate) cold: Option<Cold>,
}

/// Keys of the maps are keyed hashes already.
#[derive(Default)]
pub(crate) struct TakeHash(u64);

impl Hasher for TakeHash {
    fn write(&mut self, bytes: &[u8]) {
        unreachable!("keys are a word or two, not {} bytes", bytes.len());
    }
    #[inline]
    fn write_u64(&mut self, place: u64) {
        self.0 = place;
    }
    #[inline]
    #[allow(
        clippy::cast_possible_truncation,
        reason = "one half is as good as the other"
    )]
    fn write_u128(&mut self, bits: u128) {
        self.0 = bits as u64;
    }
    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}

type Map<K, V> = papaya::HashMap<K, V, BuildHasherDefault<TakeHash>>;

/// What stands at a place of the principals.
struct Entry {
    proof: Proof,
    purse: Purse,
    /// Makes an entry of the map as long as a cache line: at 48 bytes every other one would lie in two.
    _fill: [u64; 2],
}

const _: () = assert!(size_of::<(Place, Entry)>() == 64);

/// See the module's text.
pub(crate) struct View {
    hash_keys: HashKeys,
    /// Who is in it was named by a node.
    principals: Map<Place, Entry>,
    /// By the 128 bits: anyone can get into it.
    denials: Map<u128, Denial>,
    pub(crate) sources: Sources,
    pub(crate) counts: Counts,
    /// Whether checks are answered at all: from the first session until the edge stops.
    open: AtomicBool,
    /// When the view was last proved current, in ms of the edge's clock; 0: never.
    fresh_at: AtomicU64,
    /// How old that proof may look: less than it may be, as the clock of checks may be late.
    max_stale_ms: u64,
    incarnation: AtomicU64,
    /// Log index of the catalog revision that was acted on.
    acted: AtomicU64,
    /// Log index of the highest catalog revision heard of.
    known: AtomicU64,
}

impl View {
    pub(crate) fn new(hash_keys: HashKeys, max_stale_ms: u64) -> Self {
        Self {
            sources: Sources::new(hash_keys.words()),
            hash_keys,
            principals: Map::default(),
            denials: Map::default(),
            counts: Counts::new(),
            open: AtomicBool::new(false),
            fresh_at: AtomicU64::new(0),
            max_stale_ms: max_stale_ms.saturating_sub(clock::LATE_MS),
            incarnation: AtomicU64::new(0),
            acted: AtomicU64::new(0),
            known: AtomicU64::new(0),
        }
    }

    /// Decides at `now`, which may be [`clock::LATE_MS`] late. `with` gets the answer and whom it is about,
    /// if that is known; it runs while the check counts as running, so it must not wait.
    ///
    /// `with` stands in each branch, so that the answer of an allowed check is written where the caller
    /// wants it and nowhere else: copying it about cost a quarter of a check.
    #[inline]
    pub(crate) fn decide<R>(
        &self,
        now: Mono,
        request: &CheckRequest<'_>,
        mode: Mode,
        with: impl FnOnce(Answer, Option<&Purse>) -> R,
    ) -> R {
        let entered = self.counts.enter();
        let fresh_at = self.fresh_at.load(Ordering::Relaxed);
        let stale_ms = now.since_ms(Mono(fresh_at));
        let fresh = fresh_at > 0 && stale_ms <= self.max_stale_ms;
        if !(fresh && self.open.load(Ordering::SeqCst)) {
            let answer = self.cold((fresh_at > 0).then_some(stale_ms), Cold::NotReady);
            leave(entered, &answer);
            return with(answer, None);
        }
        let place = self.hash_keys.place(request.credential);
        let principals = self.principals.pin();
        let found = principals.get(&place);
        // Not sooner: what stands at the place comes from memory meanwhile.
        let bits = self.hash_keys.bits(request.credential);
        let Some(Entry { purse, .. }) = found.filter(|entry| entry.proof.bits() == bits) else {
            let answer = self.stranger(stale_ms, request.credential);
            leave(entered, &answer);
            return with(answer, None);
        };
        let cost = request.cost.units();
        let taken = match mode {
            Mode::Take => purse.take(cost),
            Mode::Peek => look(purse.principal(), now, cost),
        };
        match taken {
            Ok(()) => {
                let answer = self.final_answer(Some(stale_ms), Reason::Ok, None);
                let result = with(answer, Some(purse));
                entered.leave(Reason::Ok);
                result
            }
            Err(limit) => match remembered(now, purse.principal(), (limit, cost), mode) {
                Some(retry) => {
                    let answer = self.final_answer(Some(stale_ms), Reason::QuotaExceeded, retry);
                    let result = with(answer, Some(purse));
                    entered.leave(Reason::QuotaExceeded);
                    result
                }
                None => {
                    let answer = self.cold(Some(stale_ms), Cold::Short);
                    let result = with(answer, Some(purse));
                    entered.leave_cold();
                    result
                }
            },
        }
    }

    /// A credential that is no known principal's.
    #[cold]
    fn stranger(&self, stale_ms: u64, presented: &str) -> Answer {
        let stale_ms = Some(stale_ms);
        if presented.is_empty() {
            return self.final_answer(stale_ms, Reason::CredentialMissing, None);
        }
        if !credential::is_well_formed(presented) {
            return self.final_answer(stale_ms, Reason::CredentialInvalid, None);
        }
        let known = self.known.load(Ordering::Relaxed);
        let hash = self.hash(presented);
        match self.denials.pin().get(&hash.proof.bits()) {
            Some(denial) if denial.index >= known => {
                self.final_answer(stale_ms, denial.reason, None)
            }
            _ => self.cold(stale_ms, Cold::Unknown(hash)),
        }
    }

    #[inline]
    fn final_answer(&self, stale_ms: Option<u64>, reason: Reason, retry: Option<u64>) -> Answer {
        let revision = self.revision();
        let outcome = Outcome {
            reason,
            retry_after_ms: retry,
            revision,
            stale_ms,
        };
        Answer {
            outcome,
            cold: None,
        }
    }

    #[cold]
    fn cold(&self, stale_ms: Option<u64>, cold: Cold) -> Answer {
        let retry = Some(UNAVAILABLE_RETRY_MS);
        let answer = self.final_answer(stale_ms, Reason::Unavailable, retry);
        Answer {
            cold: Some(cold),
            ..answer
        }
    }

    /// The answer to a source that presents too many unknown credentials.
    pub(crate) fn throttled(&self, answer: &Answer) -> Outcome {
        let retry_after_ms = Some(SOURCE_RETRY_MS);
        Outcome {
            reason: Reason::RateLimited,
            retry_after_ms,
            ..answer.outcome
        }
    }

    /// Counts a decision that was made after waiting.
    pub(crate) fn count(&self, reason: Reason) {
        self.counts.enter().leave(reason);
    }

    /// The catalog revision that was acted on.
    #[inline]
    pub(crate) fn revision(&self) -> Revision {
        Revision {
            incarnation: Incarnation(self.incarnation.load(Ordering::Relaxed)),
            index: self.acted.load(Ordering::Relaxed),
        }
    }

    /// How old the last proof is that the view was current.
    pub(crate) fn stale_ms(&self, now: Mono) -> Option<u64> {
        let at = self.fresh_at.load(Ordering::Relaxed);
        (at > 0).then(|| now.since_ms(Mono(at)))
    }

    /// Whether checks are answered.
    pub(crate) fn is_ready(&self, now: Mono) -> bool {
        self.open.load(Ordering::SeqCst)
            && self
                .stale_ms(now)
                .is_some_and(|stale| stale <= self.max_stale_ms)
    }
}

/// What only the driver does.
impl View {
    pub(crate) fn hash(&self, credential: &str) -> Hash {
        self.hash_keys.hash(credential)
    }

    pub(crate) fn set_open(&self, open: bool) {
        // ORDERING: SeqCst, paired with `Counts::enter`.
        self.open.store(open, Ordering::SeqCst);
    }

    pub(crate) fn set_fresh_at(&self, at: Mono) {
        self.fresh_at.fetch_max(at.0.max(1), Ordering::Relaxed);
    }

    pub(crate) fn set_revisions(&self, acted: Revision, known: Revision) {
        self.incarnation
            .store(acted.incarnation.0, Ordering::Relaxed);
        self.known.store(known.index, Ordering::Relaxed);
        self.acted.store(acted.index, Ordering::Relaxed);
    }

    /// Whether a check of this credential would find a principal or a denial.
    pub(crate) fn knows(&self, hash: Hash) -> bool {
        let known = self.known.load(Ordering::Relaxed);
        self.has(hash)
            || self
                .denials
                .pin()
                .get(&hash.proof.bits())
                .is_some_and(|denial| denial.index >= known)
    }

    fn has(&self, hash: Hash) -> bool {
        let principals = self.principals.pin();
        let found = principals.get(&hash.place);
        found.is_some_and(|entry| entry.proof == hash.proof)
    }

    pub(crate) fn admit(&self, hash: Hash, purse: Purse) {
        let entry = Entry {
            proof: hash.proof,
            purse,
            _fill: [0; 2],
        };
        self.principals.pin().insert(hash.place, entry);
        self.denials.pin().remove(&hash.proof.bits());
    }

    pub(crate) fn deny(&self, hash: Hash, denial: Denial) {
        // The denial first: in between the credential is either still known or already denied.
        self.denials.pin().insert(hash.proof.bits(), denial);
        self.forget(hash);
    }

    pub(crate) fn forget(&self, hash: Hash) {
        // Only it: a guess that knows where a caller stands must not put that one out.
        let is_it = |_: &Place, entry: &Entry| entry.proof == hash.proof;
        let _gone = self.principals.pin().remove_if(&hash.place, is_it);
    }

    pub(crate) fn forget_denial(&self, hash: Hash) {
        self.denials.pin().remove(&hash.proof.bits());
    }

    pub(crate) fn principals(&self) -> usize {
        self.principals.len()
    }
}

#[inline]
fn leave(entered: Entered<'_>, answer: &Answer) {
    match answer.cold {
        None => entered.leave(answer.outcome.reason),
        Some(_) => entered.leave_cold(),
    }
}

/// A cell was short: `Some` where the issuer said that nothing is left, with when to ask again; `None`: ask.
#[inline(never)]
fn remembered(
    now: Mono,
    principal: &Principal,
    (limit, cost): (usize, Units),
    mode: Mode,
) -> Option<Option<u64>> {
    use crate::cell::Refused;
    let refused = |cell: &EdgeCell| cell.refused(now, cost);
    match principal.cell(limit).and_then(refused) {
        Some(Refused::Now { retry_after_ms }) => Some(Some(retry_after_ms)),
        Some(Refused::ForGood) => Some(None),
        // A look asks for nothing: by the last word there is too little.
        None => (mode == Mode::Peek).then_some(Some(UNAVAILABLE_RETRY_MS)),
    }
}

/// Whether a check of `cost` would probably pass: units here, or else by the issuer's last word.
#[cold]
fn look(principal: &Principal, now: Mono, cost: Units) -> Result<(), usize> {
    for (place, (limit, cell)) in principal.accounts().enumerate() {
        let here = cell.quota().free() >= cost;
        let elsewhere = cell.refused(now, cost).is_none() && cell.remaining(limit.quota) >= cost;
        if !(here || elsewhere) {
            return Err(place);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::principal::Parts;
    use crate::principal::tests::who;

    #[test]
    fn a_guess_that_is_denied_puts_out_nobody_who_stands_at_its_place() {
        let view = View::new(HashKeys::new((1, 2)), 2000);
        let credential = format!("tg_live_{}", "a".repeat(50));
        let guess = format!("tg_live_{}", "a".repeat(49) + "b");
        let who = who("k1", &[("live/acme/-/key=k1/calls/open", "requests")]);
        let parts = Parts::gather(&who, |_| None, &[]);
        view.admit(view.hash(&credential), Purse::new(who, &parts));
        let denial = Denial {
            reason: Reason::CredentialInvalid,
            index: 0,
        };
        assert_eq!(view.hash(&credential).place, view.hash(&guess).place);
        view.deny(view.hash(&guess), denial);
        assert!(view.has(view.hash(&credential)) && !view.has(view.hash(&guess)));
        view.deny(view.hash(&credential), denial);
        assert!(!view.has(view.hash(&credential)));
        assert!(view.knows(view.hash(&credential)), "as denied");
    }

    #[test]
    fn a_view_ends_earlier_by_as_much_as_the_clock_of_checks_may_be_late() {
        let view = View::new(HashKeys::new((1, 2)), 2000);
        view.set_open(true);
        view.set_fresh_at(Mono(10));
        let reason = |now| {
            let nobody = CheckRequest::new("");
            let now = Mono(now);
            view.decide(now, &nobody, Mode::Take, |answer, _| answer.outcome.reason)
        };
        let last = 10 + 2000 - clock::LATE_MS;
        assert_eq!(reason(last), Reason::CredentialMissing);
        assert_eq!(reason(last + 1), Reason::Unavailable);
        assert!(view.is_ready(Mono(last)) && !view.is_ready(Mono(last + 1)));
    }
}
