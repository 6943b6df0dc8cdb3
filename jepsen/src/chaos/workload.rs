//! Who asks for what: customers from far too small a quota to an ample one, one hot, and fresh ones for probes.
//!
//! Owns: the catalog as files, credentials, limits and keys by customer, the mix of the load and of its costs. Pure: the
//! same seed gives the same. Every customer has a limit of its own; the seed gives some a second one per licence or per
//! key, some a second key, under the same licence or another, and some checks that cost more than one unit: then one check
//! takes from several accounts, all or none, and one account is taken from by several keys.
//! Refuses: to ask; `clients.rs` does.

use super::evidence::{Account, Subject};
use super::plan::Random;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::ops::Range;
use std::sync::Arc;
use tollgate_core::account::Environment;
use tollgate_core::credential::{self, RANDOM_BYTES};
use tollgate_core::ids::Slot;

/// Name of the limit that every customer has, over all its keys.
const LIMIT: &str = "calls";

/// Name of the second limit, per licence or per key.
const SECOND: &str = "part";

/// Customers of one file; a node takes files of at most 1 MiB.
const CUSTOMERS_PER_FILE: usize = 1_000;

/// Units by which a raised quota grows each time.
pub const RAISE_UNITS: u64 = 100;

/// Units of a second limit that is no part of the first: more than can be used up in a run.
const SECOND_AMPLE: u64 = 100_000;

/// What checks of one customer cost, each as often as the others. Only those that its smallest quota has room for.
const COSTS: [&[u32]; 5] = [&[1], &[1], &[2], &[1, 2, 3], &[1, 10]];

/// What checks of the hot customer cost.
const HOT_COSTS: &[u32] = &[1, 2, 3];

/// A key, its customer and what a check under it takes from.
#[derive(Debug)]
pub struct Party {
    /// The customer's id.
    pub customer: String,
    /// The public id of the key.
    pub key: String,
    /// The credential, as a client presents it.
    pub credential: Arc<str>,
    /// What a check may cost, in units.
    pub costs: &'static [u32],
    /// Every account that a check takes its cost from, by position; the first is the customer's.
    pub accounts: Vec<usize>,
    license: String,
    sha256: [u8; 32],
}

/// For whom a second limit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Per {
    License,
    Key,
}

/// The limits of a customer's plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limits {
    /// Units for the customer as a whole.
    first: u64,
    /// Units for each licence, or each key.
    second: Option<(Per, u64)>,
}

impl Limits {
    /// The name of a plan with these limits.
    fn plan(&self) -> String {
        match self.second {
            None => self.first.to_string(),
            Some((Per::License, units)) => format!("{}-license-{units}", self.first),
            Some((Per::Key, units)) => format!("{}-key-{units}", self.first),
        }
    }

    fn smallest(&self) -> u64 {
        let second = self.second.map_or(self.first, |(_, units)| units);
        self.first.min(second)
    }
}

/// A customer: its plan and its keys.
#[derive(Debug)]
struct Customer {
    plan: String,
    limits: Limits,
    /// Positions of its keys among the parties.
    keys: Range<usize>,
}

/// Customers of one kind.
#[derive(Debug, Clone)]
struct Group {
    /// Positions of their keys among all.
    range: Range<usize>,
    /// Of 100 checks of the mixed load, so many are theirs.
    share: u64,
}

/// All customers.
#[derive(Debug)]
pub struct Workload {
    /// Each key is a subject of the history, by position.
    pub parties: Vec<Party>,
    /// Every account that checks take from; each is one of the evidence's, by position.
    pub accounts: Vec<Account>,
    customers: Vec<Customer>,
    /// Groups under load.
    groups: Vec<Group>,
    /// The key under sustained load.
    pub hot: usize,
    /// Accounts whose limit grows, each of a customer with a plan of its own.
    pub raised: Vec<usize>,
    /// Keys that are revoked, one after the other; where a customer has another, that one goes on.
    pub revoked: Vec<usize>,
    /// Keys that nobody shows but a probe, each once.
    pub fresh: Range<usize>,
}

/// Name, customers, limit, share of the load.
const GROUPS: [(&str, usize, u64, u64); 6] = [
    ("tiny", 40, 3, 8),
    ("small", 20, 50, 12),
    ("medium", 20, 500, 30),
    ("ample", 20, 200_000, 40),
    (RAISED, 10, 20, 6),
    (REVOKED, 60, 100_000, 4),
];

/// The group whose quota is raised.
const RAISED: &str = "raised";

/// The group whose keys are revoked.
const REVOKED: &str = "revoked";

/// Units of the hot customer: more than can be used up in a run.
const HOT_LIMIT: u64 = 500_000_000;

/// Units of a fresh customer: its probe may be asked several times.
const FRESH_LIMIT: u64 = 1_000;

impl Workload {
    /// Customers of a seed, `fresh` of them for probes.
    #[must_use]
    pub fn new(seed: u64, fresh: usize) -> Self {
        let mut random = Random::new(seed, 2);
        let mut this = Self {
            parties: Vec::new(),
            accounts: Vec::new(),
            customers: Vec::new(),
            groups: Vec::new(),
            hot: 0,
            raised: Vec::new(),
            revoked: Vec::new(),
            fresh: 0..0,
        };
        for (name, count, first, share) in GROUPS {
            let from = this.parties.len();
            for n in 0..count {
                // A second limit of a raised customer must not stand in the way of what the raise gave.
                let part = |random: &mut Random| match name {
                    RAISED => SECOND_AMPLE,
                    _ => (first * random.between(1, 3)).div_ceil(3),
                };
                let second = match random.between(0, 3) {
                    0 => Some((Per::Key, part(&mut random))),
                    1 => Some((Per::License, part(&mut random))),
                    _ => None,
                };
                let limits = Limits { first, second };
                let fitting = COSTS.iter().filter(|costs| {
                    let largest = costs.iter().max().copied().unwrap_or(0);
                    u64::from(largest) <= limits.smallest()
                });
                let fitting: Vec<_> = fitting.copied().collect();
                let costs = fitting[random.index(fitting.len())];
                let keys = match random.between(0, 3) {
                    0 => Keys::TwoOfOneLicense,
                    1 => Keys::TwoOfTwoLicenses,
                    _ => Keys::One,
                };
                let id = format!("{name}-{n}");
                let keys = this.add(&id, limits, costs, keys, &mut random);
                if name == RAISED {
                    if let Some(customer) = this.customers.last_mut() {
                        customer.plan.clone_from(&id);
                    }
                    this.raised.push(this.parties[keys.start].accounts[0]);
                } else if name == REVOKED {
                    this.revoked.push(keys.start);
                }
            }
            let range = from..this.parties.len();
            this.groups.push(Group { range, share });
        }
        let two = |units| Limits {
            first: units,
            second: Some((Per::Key, units)),
        };
        let hot = this.add("hot", two(HOT_LIMIT), HOT_COSTS, Keys::One, &mut random);
        this.hot = hot.start;
        let from = this.parties.len();
        for n in 0..fresh {
            let mut limits = two(FRESH_LIMIT);
            if n % 2 == 0 {
                limits.second = None;
            }
            let id = format!("fresh-{n}");
            this.add(&id, limits, &[1], Keys::One, &mut random);
        }
        this.fresh = from..this.parties.len();
        this
    }

    /// Adds a customer; answers its keys.
    fn add(
        &mut self,
        id: &str,
        limits: Limits,
        costs: &'static [u32],
        keys: Keys,
        random: &mut Random,
    ) -> Range<usize> {
        let from = self.parties.len();
        let mut account = |license: &str, subject: &str, limit: &str, units| {
            let name = format!("live/{id}/{license}/{subject}/{limit}/open");
            // Two keys of one licence share its account.
            let known = self.accounts.iter().rposition(|a| a.account == name);
            known.unwrap_or_else(|| {
                self.accounts.push(Account {
                    account: name,
                    customer: id.to_owned(),
                    limit_name: limit.to_owned(),
                    limit: units,
                });
                self.accounts.len() - 1
            })
        };
        for license in keys.licenses(id) {
            let (text, key, sha256) = credential(id, random);
            let mut accounts = vec![account("-", "customer", LIMIT, limits.first)];
            if let Some((per, units)) = limits.second {
                accounts.push(match per {
                    Per::License => account(&license, "license", SECOND, units),
                    Per::Key => account("-", &format!("key={key}"), SECOND, units),
                });
            }
            self.parties.push(Party {
                customer: id.to_owned(),
                key,
                credential: text,
                costs,
                accounts,
                license,
                sha256,
            });
        }
        let keys = from..self.parties.len();
        self.customers.push(Customer {
            plan: limits.plan(),
            limits,
            keys: keys.clone(),
        });
        keys
    }

    /// Subject and cost of the next check of the mixed load.
    pub fn mixed(&self, random: &mut Random) -> (usize, u32) {
        let all: u64 = self.groups.iter().map(|group| group.share).sum();
        let mut draw = random.between(0, all - 1);
        for group in &self.groups {
            if draw < group.share {
                let subject = group.range.start + random.index(group.range.len());
                return (subject, self.cost(subject, random));
            }
            draw -= group.share;
        }
        (self.hot, self.cost(self.hot, random))
    }

    /// What the next check of a subject costs.
    pub fn cost(&self, subject: usize, random: &mut Random) -> u32 {
        let costs = self.parties[subject].costs;
        costs[random.index(costs.len())]
    }

    /// The catalog, as files to be applied in order: plans first.
    #[must_use]
    pub fn files(&self) -> Vec<String> {
        let plans: BTreeMap<&str, Limits> = self
            .customers
            .iter()
            .map(|customer| (customer.plan.as_str(), customer.limits))
            .collect();
        let mut files = vec![
            plans
                .into_iter()
                .map(|(id, limits)| plan(id, limits))
                .collect(),
        ];
        for some in self.customers.chunks(CUSTOMERS_PER_FILE) {
            files.push(some.iter().map(|customer| self.file(customer)).collect());
        }
        files
    }

    /// The file that gives an account of [`Self::raised`] a limit of `units`.
    ///
    /// # Panics
    /// When it is the account of nobody.
    #[must_use]
    pub fn raise(&self, account: usize, units: u64) -> String {
        let theirs =
            |customer: &&Customer| self.parties[customer.keys.start].accounts[0] == account;
        let Some(customer) = self.customers.iter().find(theirs) else {
            panic!("account {account} is no customer's: only those of `raised` can be raised");
        };
        let limits = Limits {
            first: units,
            ..customer.limits
        };
        plan(&customer.plan, limits)
    }

    /// What the judge is told of keys.
    #[must_use]
    pub fn subjects(&self) -> Vec<Subject> {
        let number = |at: &usize| u32::try_from(*at).unwrap_or(u32::MAX);
        let subject = |party: &Party| Subject {
            customer: party.customer.clone(),
            key: party.key.clone(),
            accounts: party.accounts.iter().map(number).collect(),
        };
        self.parties.iter().map(subject).collect()
    }

    fn file(&self, customer: &Customer) -> String {
        let mut text = String::new();
        let keys = &self.parties[customer.keys.clone()];
        let id = &keys[0].customer;
        // Writing to a String cannot fail.
        let _ = writeln!(text, "[[customer]]\nid = \"{id}\"");
        let licenses: BTreeSet<&str> = keys.iter().map(|key| key.license.as_str()).collect();
        for license in licenses {
            let _ = writeln!(
                text,
                "[[license]]\nid = \"{license}\"\ncustomer = \"{id}\"\nplan = \"{}\"",
                customer.plan
            );
        }
        for Party {
            key,
            license,
            sha256,
            ..
        } in keys
        {
            let hex = tollgate_core::hex::encode(sha256);
            let _ = writeln!(
                text,
                "[[key]]\nid = \"{key}\"\nlicense = \"{license}\"\nsecret_sha256 = \"{hex}\""
            );
        }
        text
    }
}

/// The keys of a customer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keys {
    One,
    TwoOfOneLicense,
    TwoOfTwoLicenses,
}

impl Keys {
    /// The licence of each key.
    fn licenses(self, customer: &str) -> Vec<String> {
        let first = customer.to_owned();
        match self {
            Self::One => vec![first],
            Self::TwoOfOneLicense => vec![first.clone(), first],
            Self::TwoOfTwoLicenses => vec![first, format!("{customer}-other")],
        }
    }
}

fn plan(id: &str, limits: Limits) -> String {
    let mut text = format!("[[plan]]\nid = \"{id}\"\n");
    let mut limit = |name: &str, per: &str, quota: u64| {
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "[[plan.limit]]\nname = \"{name}\"\nmeter = \"requests\"\n\
             per = \"{per}\"\nquota = {quota}\nwindow = \"open\"\noverage = \"reject\"\n"
        );
    };
    limit(LIMIT, "customer", limits.first);
    match limits.second {
        Some((Per::License, units)) => limit(SECOND, "license", units),
        Some((Per::Key, units)) => limit(SECOND, "key", units),
        None => {}
    }
    text
}

/// A credential for a customer: its text, the public id of its key, the hash of its secret.
fn credential(customer: &str, random: &mut Random) -> (Arc<str>, String, [u8; 32]) {
    let mut bytes = [0; RANDOM_BYTES];
    for chunk in bytes.chunks_mut(8) {
        let drawn = random.next().to_le_bytes();
        let length = chunk.len();
        chunk.copy_from_slice(&drawn[..length]);
    }
    let composed = credential::compose(Environment::Live, Slot::of(customer), &bytes);
    let Ok(presented) = credential::parse(&composed.text) else {
        unreachable!("a composed credential is one");
    };
    (
        Arc::from(composed.text.as_str()),
        presented.key.to_owned(),
        presented.secret_sha256(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use tollgate_core::account::AccountId;
    use tollgate_core::file::CatalogFile;

    #[test]
    fn the_files_are_valid_and_come_again() {
        let workload = Workload::new(1, 2_000);
        let files = workload.files();
        assert_eq!(
            files.len(),
            1 + workload.customers.len().div_ceil(CUSTOMERS_PER_FILE)
        );
        let file: CatalogFile = toml::from_str(&files.concat()).unwrap();
        let items = file.validate().map(|_| ());
        assert!(items.is_ok(), "{items:?}");
        assert_eq!(Workload::new(1, 2_000).files(), files);
        assert_ne!(Workload::new(2, 2_000).files(), files);
        let raise = workload.raise(workload.raised[0], 120);
        let file: CatalogFile = toml::from_str(&raise).unwrap();
        assert!(file.validate().is_ok());
        for account in &workload.accounts {
            assert!(AccountId::parse(&account.account).is_ok(), "{account:?}");
        }
    }

    #[test]
    fn the_mix_meets_every_key_and_no_fresh_customer() {
        let workload = Workload::new(1, 10);
        let mut random = Random::new(1, 1);
        let drawn: BTreeSet<usize> = (0..20_000).map(|_| workload.mixed(&mut random).0).collect();
        assert_eq!(drawn.len(), workload.hot, "all before the hot one");
        assert!(drawn.iter().all(|subject| *subject < workload.hot));
    }

    #[test]
    fn every_seed_has_several_limits_several_keys_and_several_costs_where_quotas_end() {
        for seed in 1..=20 {
            let workload = Workload::new(seed, 0);
            // The groups that a run uses up: tiny, small, medium.
            let ends = workload.groups[2].range.end;
            let parties = &workload.parties[..ends];
            let any = |what: &dyn Fn(&Party) -> bool| parties.iter().any(what);
            let has = |party: &Party, subject: &str| {
                let names = party
                    .accounts
                    .iter()
                    .map(|a| &workload.accounts[*a].account);
                names.into_iter().any(|name| name.contains(subject))
            };
            assert!(any(&|p| p.accounts.len() == 1), "seed {seed}");
            assert!(any(&|p| has(p, "/key=")), "seed {seed}");
            assert!(any(&|p| has(p, "/license/")), "seed {seed}");
            assert!(any(&|p| p.costs.len() > 1), "seed {seed}");
            assert!(any(&|p| p.costs == [10] || p.costs == [2]), "seed {seed}");
            let shared = parties.windows(2).any(|pair| {
                pair[0].customer == pair[1].customer && pair[0].license != pair[1].license
            });
            assert!(shared, "seed {seed}");
            let fits = |party: &Party| {
                let least = party.accounts.iter().map(|a| workload.accounts[*a].limit);
                u64::from(*party.costs.iter().max().unwrap()) <= least.min().unwrap()
            };
            assert!(parties.iter().all(fits), "seed {seed}");
        }
    }
}
