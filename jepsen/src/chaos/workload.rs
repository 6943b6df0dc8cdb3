//! Who asks for what: customers from far too small a quota to an ample one, one hot, and fresh ones for probes.
//!
//! Owns: the catalog as files, credentials, limits by customer, the mix of the load. Pure: the same seed gives the
//! same. Each customer has one licence, one key and one account, so that a count of answers is a count of an account.
//! Refuses: to ask; `clients.rs` does.

use super::evidence::Subject;
use super::plan::Random;
use std::fmt::Write as _;
use std::ops::Range;
use std::sync::Arc;
use tollgate_core::account::Environment;
use tollgate_core::credential::{self, RANDOM_BYTES};
use tollgate_core::ids::Slot;

/// Name of every limit: one account per customer.
const LIMIT: &str = "calls";

/// Customers of one file; a node takes files of at most 1 MiB.
const CUSTOMERS_PER_FILE: usize = 1_000;

/// Units by which a raised quota grows each time.
pub const RAISE_UNITS: u64 = 100;

/// A customer.
#[derive(Debug)]
pub struct Party {
    /// Its id.
    pub customer: String,
    /// The public id of its key.
    pub key: String,
    /// The credential, as a client presents it.
    pub credential: Arc<str>,
    /// Its limit at the start, in units.
    pub limit: u64,
    plan: String,
    sha256: [u8; 32],
}

/// Customers of one kind: their positions among all.
#[derive(Debug, Clone)]
pub struct Group {
    /// Name of the kind, in customers' ids.
    pub name: &'static str,
    /// Their positions.
    pub range: Range<usize>,
    /// Of 100 checks of the mixed load, so many are theirs.
    share: u64,
}

/// All customers.
#[derive(Debug)]
pub struct Workload {
    /// Each is a subject of the history, by position.
    pub parties: Vec<Party>,
    /// Groups under load.
    groups: Vec<Group>,
    /// The customer under sustained load.
    pub hot: usize,
    /// Customers whose quota grows, each with a plan of its own.
    pub raised: Range<usize>,
    /// Customers whose keys are revoked, one after the other.
    pub revoked: Range<usize>,
    /// Customers that nobody asks for but a probe, each once.
    pub fresh: Range<usize>,
}

/// Name, customers, limit, share of the load.
const GROUPS: [(&str, usize, u64, u64); 6] = [
    ("tiny", 40, 3, 8),
    ("small", 20, 50, 12),
    ("medium", 20, 500, 30),
    ("ample", 20, 200_000, 40),
    ("raised", 10, 20, 6),
    ("revoked", 60, 100_000, 4),
];

/// Units of the hot customer: more than can be used up in a run.
const HOT_LIMIT: u64 = 500_000_000;

/// Units of a fresh customer: its probe may be asked several times.
const FRESH_LIMIT: u64 = 1_000;

impl Workload {
    /// Customers of a seed, `fresh` of them for probes.
    #[must_use]
    pub fn new(seed: u64, fresh: usize) -> Self {
        let mut random = Random::new(seed, 2);
        let mut parties = Vec::new();
        let mut groups = Vec::new();
        for (name, count, limit, share) in GROUPS {
            let from = parties.len();
            for n in 0..count {
                let plan = if name == "raised" {
                    format!("raised-{n}")
                } else {
                    name.to_owned()
                };
                parties.push(party(&format!("{name}-{n}"), plan, limit, &mut random));
            }
            let range = from..parties.len();
            groups.push(Group { name, range, share });
        }
        let hot = parties.len();
        parties.push(party("hot", "hot".to_owned(), HOT_LIMIT, &mut random));
        let from = parties.len();
        for n in 0..fresh {
            let id = format!("fresh-{n}");
            parties.push(party(&id, "fresh".to_owned(), FRESH_LIMIT, &mut random));
        }
        let range_of = |name: &str| {
            let group = groups.iter().find(|group| group.name == name);
            group.map_or(0..0, |group| group.range.clone())
        };
        let (raised, revoked) = (range_of("raised"), range_of("revoked"));
        let fresh = from..parties.len();
        Self {
            parties,
            groups,
            hot,
            raised,
            revoked,
            fresh,
        }
    }

    /// The subject of the next check of the mixed load.
    pub fn mixed(&self, random: &mut Random) -> usize {
        let all: u64 = self.groups.iter().map(|group| group.share).sum();
        let mut draw = random.between(0, all - 1);
        for group in &self.groups {
            if draw < group.share {
                return group.range.start + random.index(group.range.len());
            }
            draw -= group.share;
        }
        self.hot
    }

    /// The catalog, as files to be applied in order: plans first.
    #[must_use]
    pub fn files(&self) -> Vec<String> {
        let mut plans = String::new();
        let mut seen = std::collections::BTreeSet::new();
        for party in &self.parties {
            if seen.insert(&party.plan) {
                plans.push_str(&plan(&party.plan, party.limit));
            }
        }
        let mut files = vec![plans];
        for some in self.parties.chunks(CUSTOMERS_PER_FILE) {
            files.push(some.iter().map(customer).collect());
        }
        files
    }

    /// The file that gives a customer of [`Self::raised`] a quota of `units`.
    #[must_use]
    pub fn raise(&self, subject: usize, units: u64) -> String {
        plan(&self.parties[subject].plan, units)
    }

    /// What the judge is told.
    #[must_use]
    pub fn subjects(&self) -> Vec<Subject> {
        let subject = |party: &Party| Subject {
            customer: party.customer.clone(),
            account: format!("live/{}/-/customer/{LIMIT}/open", party.customer),
            limit: party.limit,
        };
        self.parties.iter().map(subject).collect()
    }
}

fn plan(id: &str, quota: u64) -> String {
    format!(
        "[[plan]]\nid = \"{id}\"\n[[plan.limit]]\nname = \"{LIMIT}\"\nmeter = \"requests\"\n\
         per = \"customer\"\nquota = {quota}\nwindow = \"open\"\noverage = \"reject\"\n"
    )
}

fn customer(party: &Party) -> String {
    let Party {
        customer,
        key,
        plan,
        ..
    } = party;
    let mut hex = String::new();
    for byte in party.sha256 {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
    }
    format!(
        "[[customer]]\nid = \"{customer}\"\n\
         [[license]]\nid = \"{customer}\"\ncustomer = \"{customer}\"\nplan = \"{plan}\"\n\
         [[key]]\nid = \"{key}\"\nlicense = \"{customer}\"\nsecret_sha256 = \"{hex}\"\n"
    )
}

fn party(id: &str, plan: String, limit: u64, random: &mut Random) -> Party {
    let mut bytes = [0; RANDOM_BYTES];
    for chunk in bytes.chunks_mut(8) {
        let drawn = random.next().to_le_bytes();
        let length = chunk.len();
        chunk.copy_from_slice(&drawn[..length]);
    }
    let composed = credential::compose(Environment::Live, Slot::of(id), &bytes);
    let Ok(presented) = credential::parse(&composed.text) else {
        unreachable!("a composed credential is one");
    };
    Party {
        customer: id.to_owned(),
        key: presented.key.to_owned(),
        credential: Arc::from(composed.text.as_str()),
        limit,
        plan,
        sha256: presented.secret_sha256(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tollgate_core::file::CatalogFile;

    #[test]
    fn the_files_are_valid_and_come_again() {
        let workload = Workload::new(1, 2_000);
        let files = workload.files();
        assert_eq!(
            files.len(),
            1 + workload.parties.len().div_ceil(CUSTOMERS_PER_FILE)
        );
        let file: CatalogFile = toml::from_str(&files.concat()).unwrap();
        let items = file.validate().map(|_| ());
        assert!(items.is_ok(), "{items:?}");
        assert_eq!(Workload::new(1, 2_000).files(), files);
        assert_ne!(Workload::new(2, 2_000).files(), files);
        let raise = workload.raise(workload.raised.start, 120);
        let file: CatalogFile = toml::from_str(&raise).unwrap();
        assert!(file.validate().is_ok());
    }

    #[test]
    fn the_mix_meets_every_group_and_no_fresh_customer() {
        let workload = Workload::new(1, 10);
        let mut random = Random::new(1, 1);
        let drawn: std::collections::BTreeSet<usize> =
            (0..10_000).map(|_| workload.mixed(&mut random)).collect();
        assert_eq!(drawn.len(), workload.hot, "all before the hot one");
        assert!(drawn.iter().all(|subject| *subject < workload.hot));
    }
}
