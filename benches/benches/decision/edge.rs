//! The real thing: `Edge::check` and `Edge::admit` of `tollgate-edge`, without a network.
//!
//! Each credential is a key of a customer with two quotas and one meter. The same handle, view and cells
//! as of a connected edge; only the driver is missing, which runs on another thread there.

use tollgate_benches::Case;
use tollgate_benches::workload::{Credential, composed};
use tollgate_edge::{CheckRequest, Edge, FakeEdge};

/// Units of a quota that no bench uses up.
const PLENTY: u64 = 1 << 40;

fn edge(credentials: &[Credential], second_quota: u64) -> Edge {
    let fake = FakeEdge::new();
    for (number, composed) in composed(credentials.len()).iter().enumerate() {
        let quotas = [("daily", PLENTY), ("monthly", second_quota)];
        fake.admit_key(composed, &Credential::customer(number), &quotas)
            .unwrap();
    }
    fake.into_edge()
}

/// The decision with what it is about, as a door needs it: customer, limits, what is left.
pub(crate) struct Check(Edge);

impl Check {
    pub(crate) fn new(credentials: &[Credential]) -> Self {
        Self(edge(credentials, PLENTY))
    }
}

impl Case for Check {
    #[inline]
    fn check(&self, credential: &Credential) -> bool {
        self.0
            .check(&CheckRequest::new(credential.text))
            .is_allowed()
    }
}

/// The decision alone.
pub(crate) struct Admit(Edge);

impl Admit {
    pub(crate) fn new(credentials: &[Credential]) -> Self {
        Self(edge(credentials, PLENTY))
    }
}

impl Case for Admit {
    #[inline]
    fn check(&self, credential: &Credential) -> bool {
        self.0
            .admit(&CheckRequest::new(credential.text))
            .is_allowed()
    }
}

/// Refused at the second quota from memory.
pub(crate) struct Refused(Edge);

impl Refused {
    pub(crate) fn new(credentials: &[Credential]) -> Self {
        Self(edge(credentials, 0))
    }
}

impl Case for Refused {
    #[inline]
    fn check(&self, credential: &Credential) -> bool {
        self.0
            .check(&CheckRequest::new(credential.text))
            .is_allowed()
    }
}
