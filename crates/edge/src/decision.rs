//! What is asked of an edge and what it answers (design §14): [`CheckRequest`], [`Decision`].
//!
//! Plain data. Refuses a cost of 0 and one that no account could ever hold: such a cost is a mistake of
//! the caller, not a decision. Next: `view.rs`, which decides.

use crate::principal::Principal;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use tollgate_core::account::Name;
use tollgate_core::catalog::model::QUOTA_MAX;
use tollgate_core::ids::{Revision, Units};

/// What one check takes of each limit of its caller: 1 to [`QUOTA_MAX`] units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cost(Units);

/// A cost that no check may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cost {found}: expected 1 to {QUOTA_MAX} units; to look without taking use peek")]
pub struct CostError {
    /// The cost given.
    pub found: Units,
}

impl Cost {
    /// One unit.
    pub const ONE: Self = Self(1);

    /// A cost of `units`.
    ///
    /// # Errors
    /// [`CostError`] for 0 and for more than any account can hold.
    pub const fn new(units: Units) -> Result<Self, CostError> {
        if units == 0 || units > QUOTA_MAX {
            return Err(CostError { found: units });
        }
        Ok(Self(units))
    }

    /// The units, never 0.
    #[must_use]
    pub const fn units(self) -> Units {
        self.0
    }
}

impl TryFrom<Units> for Cost {
    type Error = CostError;
    fn try_from(units: Units) -> Result<Self, CostError> {
        Self::new(units)
    }
}

/// One question: may the holder of this credential spend this much?
#[derive(Clone, Copy)]
pub struct CheckRequest<'a> {
    /// As presented, never logged. Empty counts as missing.
    pub credential: &'a str,
    /// What it takes of each limit.
    pub cost: Cost,
    /// Where the call came from, if known: sources that present many unknown credentials are slowed
    /// down, without a source nobody is.
    pub source: Option<IpAddr>,
}

impl<'a> CheckRequest<'a> {
    /// A check of one unit.
    #[must_use]
    pub fn new(credential: &'a str) -> Self {
        Self {
            credential,
            cost: Cost::ONE,
            source: None,
        }
    }

    /// With another cost.
    #[must_use]
    pub fn with_cost(self, cost: Cost) -> Self {
        Self { cost, ..self }
    }

    /// From this source.
    #[must_use]
    pub fn from_source(self, source: IpAddr) -> Self {
        Self {
            source: Some(source),
            ..self
        }
    }
}

impl fmt::Debug for CheckRequest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The credential is a secret.
        f.debug_struct("CheckRequest")
            .field("cost", &self.cost)
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum $name { $($(#[$variant_doc])* $variant,)* }

        impl $name {
            /// Every one, in order.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// As it stands in JSON and metrics.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words! {
    /// What becomes of a call.
    Verdict {
        /// Let it pass.
        Allow = "allow",
        /// Let it pass; it is beyond what is included.
        AllowOverage = "allow_overage",
        /// Not now: it came too fast.
        Throttle = "throttle",
        /// No.
        Refuse = "refuse",
    }
}

words! {
    /// Why. Reasons of kinds of limits that are not built yet stand here, so that callers can match them.
    Reason {
        /// Within all limits.
        Ok = "ok",
        /// Beyond what is included, within what may be billed.
        Overage = "overage",
        /// A limit in shadow mode would have refused.
        Shadow = "shadow",
        /// Nothing was presented.
        CredentialMissing = "credential_missing",
        /// Not a key, or none of ours; which of the two is not said.
        CredentialInvalid = "credential_invalid",
        /// Its time is over.
        CredentialExpired = "credential_expired",
        /// It was revoked, or this secret of it ended.
        CredentialRevoked = "credential_revoked",
        /// The licence does not allow use now.
        LicenseSuspended = "license_suspended",
        /// The licence's term is over.
        LicenseExpired = "license_expired",
        /// The key may not do this.
        InsufficientScope = "insufficient_scope",
        /// The plan does not contain this.
        FeatureNotEntitled = "feature_not_entitled",
        /// All seats are taken.
        SeatLimit = "seat_limit",
        /// The issuer said that nothing is left.
        QuotaExceeded = "quota_exceeded",
        /// Too fast.
        RateLimited = "rate_limited",
        /// Too many at a time.
        ConcurrencyExceeded = "concurrency_exceeded",
        /// The edge cannot tell: no units in time, no proof that its view is current, not started or stopped.
        Unavailable = "unavailable",
    }
}

impl Reason {
    /// The verdict that goes with it.
    #[must_use]
    pub const fn verdict(self) -> Verdict {
        match self {
            Self::Ok | Self::Shadow => Verdict::Allow,
            Self::Overage => Verdict::AllowOverage,
            Self::RateLimited => Verdict::Throttle,
            _ => Verdict::Refuse,
        }
    }
}

impl Verdict {
    /// Whether the call may pass.
    #[must_use]
    pub const fn is_allowed(self) -> bool {
        matches!(self, Self::Allow | Self::AllowOverage)
    }
}

/// The answer without what it is about: a few words that are cheap to copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Why; its verdict is [`Reason::verdict`].
    pub reason: Reason,
    /// When asking again may help, in ms from now; `None` when only a change of the catalog helps.
    pub retry_after_ms: Option<u64>,
    /// The catalog revision the edge has acted on.
    pub revision: Revision,
    /// How old the last proof is that this view was current, in ms; `None` while there was none.
    pub stale_ms: Option<u64>,
}

impl Outcome {
    /// Whether the call may pass.
    #[must_use]
    pub const fn is_allowed(&self) -> bool {
        self.reason.verdict().is_allowed()
    }
}

/// The answer to a check.
#[derive(Clone)]
pub struct Decision {
    /// What was decided.
    pub outcome: Outcome,
    pub(crate) principal: Option<Arc<Principal>>,
}

impl Decision {
    /// Whether the call may pass.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        self.outcome.is_allowed()
    }

    /// What becomes of the call.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.outcome.reason.verdict()
    }

    /// Why.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.outcome.reason
    }

    /// Who pays, if the caller is known.
    #[must_use]
    pub fn customer(&self) -> Option<&Name> {
        self.principal
            .as_ref()
            .map(|principal| &principal.who().customer)
    }

    /// The licence, if the caller is known.
    #[must_use]
    pub fn license(&self) -> Option<&Name> {
        self.principal
            .as_ref()
            .map(|principal| &principal.who().license)
    }

    /// The limits of the caller as the edge sees them at the moment of this call, in the plan's order.
    pub fn limits(&self) -> impl Iterator<Item = LimitState<'_>> {
        self.principal
            .iter()
            .flat_map(|principal| principal.limits())
    }
}

impl fmt::Debug for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decision")
            .field("outcome", &self.outcome)
            .field("customer", &self.customer())
            .finish_non_exhaustive()
    }
}

words! {
    /// What kind a limit is; rates, permits and seats come later.
    LimitKind {
        /// Units in a window.
        Quota = "quota",
    }
}

/// One limit of a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitState<'a> {
    /// Its stable name.
    pub name: &'a Name,
    /// What kind it is.
    pub kind: LimitKind,
    /// Units allowed in all.
    pub limit: Units,
    /// The edge's estimate of what is left of it for everyone: the issuer's last word, less this edge's
    /// own use since.
    pub remaining: Units,
    /// When its window ends, in ms; `None` for a balance.
    pub reset_ms: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cost_is_at_least_one_and_fits_an_account() {
        assert_eq!(Cost::new(1), Ok(Cost::ONE));
        assert_eq!(Cost::new(QUOTA_MAX).map(Cost::units), Ok(QUOTA_MAX));
        for found in [0, QUOTA_MAX + 1, Units::MAX] {
            assert_eq!(Cost::new(found), Err(CostError { found }));
        }
        let words = CostError { found: 0 }.to_string();
        assert_eq!(
            words,
            "cost 0: expected 1 to 9223372036854775807 units; to look without taking use peek"
        );
    }

    #[test]
    fn a_request_does_not_print_its_credential() {
        let request = CheckRequest::new("tg_live_secret");
        assert!(!format!("{request:?}").contains("secret"));
    }
}
