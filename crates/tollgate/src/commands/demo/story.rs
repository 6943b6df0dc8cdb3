//! What the demo plays: customers made from the access log, their quotas, and who gets which fate, and when.
//!
//! Owns: the catalog file, the credentials, the order of requests, the moments of the kills, the expectation by customer.
//! Pure but for the log it is given; the same seed gives the same story. Read next: `super` for how it is played.

use crate::access_log::AccessLog;
use crate::load::Check;
use crate::output::Failure;
use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;
use tollgate_core::account::Environment;
use tollgate_core::credential::{self, RANDOM_BYTES};
use tollgate_core::ids::Slot;

/// The access log that the repository ships.
const LOG: &[u8] = include_bytes!("../../../testdata/access.log.gz");

/// Name of every limit of the demo: one account per customer.
pub const LIMIT: &str = "calls";

/// Units of the plan `standard`: more than any client of the log asks for.
const STANDARD: u64 = 1_000;

/// Units of the plan `tiny`: far too few for most.
const TINY: u64 = 3;

/// Every so many clients get the plan `tiny`.
const TINY_EVERY: usize = 4;

/// Units of the customer whose quota is raised while it runs, before and after.
pub const RAISED: (u64, u64) = (50, 400);

/// So many requests that follow each other in the log come in an order that the seed draws, as those of clients that
/// nobody waits for: which edge answers which of them differs with it.
const SHUFFLED: usize = 256;

/// Units of the hot customer: more than this machine can use up in the demo.
const HOT: u64 = 50_000_000;

/// A customer of the demo.
pub struct Customer {
    /// Its id: the client's address in the log, or a name.
    pub id: Arc<str>,
    /// Its plan.
    pub plan: &'static str,
    /// The public id of its key.
    pub key: String,
    /// The credential, as a client presents it.
    pub credential: Arc<str>,
    sha256: [u8; 32],
}

/// The moments of the kills, and who is killed second. Moments are counted in requests of the log: all of it is replayed, a
/// quarter before anything is done, a quarter without the first node, a quarter without the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kills {
    /// Requests of each of those quarters.
    pub quarter: usize,
    /// Requests after the first quarter, before the leader is killed.
    pub before_first: usize,
    /// Requests after the changes that are made then, before the second node is killed.
    pub before_second: usize,
    /// Which of the nodes that issue slots is killed second; to be taken modulo their number.
    pub second: usize,
}

impl Kills {
    fn draw(requests: usize, random: &mut Random) -> Self {
        // The fourth quarter is shared out: an eighth of all at most before each kill, the rest after the second.
        let eighth = requests / 8;
        Self {
            quarter: requests / 4,
            before_first: random.below(eighth + 1),
            before_second: random.below(eighth + 1),
            second: random.below(requests),
        }
    }
}

/// The story.
pub struct Story {
    /// All customers; the index is the subject of checks.
    pub customers: Vec<Customer>,
    /// The log's requests: [`SHUFFLED`] neighbours in any order, else in the log's.
    pub requests: Vec<Check>,
    /// When what is done to the nodes.
    pub kills: Kills,
    /// Index of the customer under sustained load.
    pub hot: usize,
    /// Index of the customer whose quota is raised.
    pub raised: usize,
    /// Index of the customer whose key is revoked.
    pub revoked: usize,
}

impl Story {
    /// Makes the story of a seed.
    ///
    /// # Errors
    /// [`Failure`] if the shipped log cannot be read.
    pub fn new(seed: u64) -> Result<Self, Failure> {
        let mut random = Random(seed);
        let mut credentials: HashMap<String, (Customer, u64)> = HashMap::new();
        let (mut checks, clients) = read_log(|client| {
            let entry = credentials
                .entry(client.to_owned())
                .or_insert_with(|| (customer(client, "standard", &mut random), 0));
            entry.1 += 1;
            Arc::clone(&entry.0.credential)
        })?;
        let mut customers = Vec::with_capacity(clients.len() + 1);
        let mut busiest: Vec<(u64, usize)> = Vec::new();
        for (i, client) in clients.iter().enumerate() {
            let Some((mut customer, requests)) = credentials.remove(&**client) else {
                unreachable!("every client of the log was given a customer");
            };
            if i % TINY_EVERY == TINY_EVERY - 1 {
                customer.plan = "tiny";
            }
            customers.push(customer);
            busiest.push((requests, i));
        }
        busiest.sort_unstable_by(|a, b| b.cmp(a));
        let (raised, revoked) = (busiest[0].1, busiest[1].1);
        customers[raised].plan = "raised";
        customers[revoked].plan = "standard";
        let hot = customers.len();
        customers.push(customer("hot", "hot", &mut random));
        for some in checks.chunks_mut(SHUFFLED) {
            for last in (1..some.len()).rev() {
                some.swap(last, random.below(last + 1));
            }
        }
        let kills = Kills::draw(checks.len(), &mut random);
        Ok(Self {
            customers,
            requests: checks,
            kills,
            hot,
            raised,
            revoked,
        })
    }

    /// One check of the hot customer.
    #[must_use]
    pub fn hot_check(&self) -> Check {
        self.check(self.hot)
    }

    /// One check of a customer.
    #[must_use]
    pub fn check(&self, subject: usize) -> Check {
        Check {
            subject,
            credential: Arc::clone(&self.customers[subject].credential),
            method: Arc::from("GET"),
            path: Arc::from("/v1/hot"),
            client_ip: None,
            cost: 1,
        }
    }

    /// The account of a customer.
    #[must_use]
    pub fn account(&self, subject: usize) -> String {
        format!(
            "live/{}/-/customer/{LIMIT}/open",
            self.customers[subject].id
        )
    }

    /// The highest limit a customer's account ever has.
    #[must_use]
    pub fn limit(&self, subject: usize) -> u64 {
        match self.customers[subject].plan {
            "tiny" => TINY,
            "raised" => RAISED.1,
            "hot" => HOT,
            _ => STANDARD,
        }
    }

    /// The catalog file: plans, customers, licences, keys.
    #[must_use]
    pub fn file(&self) -> String {
        let mut text = plans(RAISED.0);
        for c in &self.customers {
            let hex = tollgate_core::hex::encode(&c.sha256);
            // Writing to a String cannot fail.
            let _ = write!(
                text,
                "[[customer]]\nid = \"{id}\"\n\
                 [[license]]\nid = \"{id}\"\ncustomer = \"{id}\"\nplan = \"{plan}\"\n\
                 [[key]]\nid = \"{key}\"\nlicense = \"{id}\"\nsecret_sha256 = \"{hex}\"\n",
                id = c.id,
                plan = c.plan,
                key = c.key,
            );
        }
        text
    }

    /// The file that raises one quota.
    #[must_use]
    pub fn raise(&self) -> String {
        plan("raised", RAISED.1)
    }
}

/// The shipped log as checks, in order, and its clients, by subject; `credential` gives a client's.
fn read_log(
    mut credential: impl FnMut(&str) -> Arc<str>,
) -> Result<(Vec<Check>, Vec<Arc<str>>), Failure> {
    let unreadable = |e: &dyn std::fmt::Display| Failure::failed(format!("the shipped log: {e}"));
    let mut reader = AccessLog::open(LOG).map_err(|e| unreadable(&e))?;
    let mut checks = Vec::new();
    let mut clients: Vec<Arc<str>> = Vec::new();
    let mut subjects: HashMap<Arc<str>, usize> = HashMap::new();
    let mut words: HashMap<Box<str>, Arc<str>> = HashMap::new();
    while let Some(line) = reader.next_line().map_err(|e| unreadable(&e))? {
        let subject = match subjects.get(line.client) {
            Some(subject) => *subject,
            None => {
                let client: Arc<str> = Arc::from(line.client);
                clients.push(Arc::clone(&client));
                subjects.insert(client, clients.len() - 1);
                clients.len() - 1
            }
        };
        let mut word = |text: &str| match words.get(text) {
            Some(word) => Arc::clone(word),
            None => {
                let word: Arc<str> = Arc::from(text);
                words.insert(text.into(), Arc::clone(&word));
                word
            }
        };
        checks.push(Check {
            subject,
            credential: credential(line.client),
            method: word(line.method),
            path: word(line.path),
            client_ip: Some(Arc::clone(&clients[subject])),
            cost: 1,
        });
    }
    Ok((checks, clients))
}

fn plans(raised: u64) -> String {
    [
        ("standard", STANDARD),
        ("tiny", TINY),
        ("raised", raised),
        ("hot", HOT),
    ]
    .map(|(id, quota)| plan(id, quota))
    .concat()
}

fn plan(id: &str, quota: u64) -> String {
    format!(
        "[[plan]]\nid = \"{id}\"\n[[plan.limit]]\nname = \"{LIMIT}\"\nmeter = \"requests\"\n\
         per = \"customer\"\nquota = {quota}\nwindow = \"open\"\n"
    )
}

fn customer(id: &str, plan: &'static str, random: &mut Random) -> Customer {
    let composed = credential::compose(Environment::Live, Slot::of(id), &random.bytes());
    let Ok(presented) = credential::parse(&composed.text) else {
        unreachable!("a composed credential is one");
    };
    let (key, sha256) = (presented.key.to_owned(), presented.secret_sha256());
    let credential = Arc::from(composed.text.as_str());
    Customer {
        id: Arc::from(id),
        plan,
        key,
        credential,
        sha256,
    }
}

/// Splitmix64: the demo's keys are for show, and all that it draws must come again from the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`; 0 where there is none.
    fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.next() % end).unwrap_or(0)
    }

    fn bytes(&mut self) -> [u8; RANDOM_BYTES] {
        let mut bytes = [0; RANDOM_BYTES];
        for chunk in bytes.chunks_mut(8) {
            let next = self.next().to_le_bytes();
            let n = chunk.len();
            chunk.copy_from_slice(&next[..n]);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tollgate_core::file::CatalogFile;

    #[test]
    fn the_story_is_a_valid_catalog_and_comes_again() {
        let story = Story::new(1).unwrap();
        assert_eq!(story.requests.len(), 10_000);
        let file: CatalogFile = toml::from_str(&story.file()).unwrap();
        let items = file
            .validate()
            .map_err(|problems| format!("{problems:?}"))
            .unwrap();
        drop(items);
        assert_eq!(Story::new(1).unwrap().file(), story.file());
        assert_ne!(Story::new(2).unwrap().file(), story.file());
    }

    #[test]
    fn the_seed_chooses_order_and_moments_within_the_frame() {
        let order = |story: &Story| -> Vec<usize> {
            story.requests.iter().map(|check| check.subject).collect()
        };
        let sorted = |story: &Story| {
            let mut subjects = order(story);
            subjects.sort_unstable();
            subjects
        };
        let first = Story::new(1).unwrap();
        let again = Story::new(1).unwrap();
        assert_eq!(order(&again), order(&first));
        assert_eq!(again.kills, first.kills);
        let mut kills = Vec::new();
        for seed in 1..=20 {
            let story = Story::new(seed).unwrap();
            // Every request of the log, once.
            assert_eq!(sorted(&story), sorted(&first), "seed {seed}");
            if seed > 1 {
                assert_ne!(order(&story), order(&first), "seed {seed}");
            }
            let Kills {
                quarter,
                before_first,
                before_second,
                second,
            } = story.kills;
            let replayed = 3 * quarter + before_first + before_second;
            assert!(replayed <= story.requests.len(), "seed {seed}");
            kills.push((before_first, before_second, second % 2));
        }
        let differ = |of: fn(&(usize, usize, usize)) -> usize| {
            let all: std::collections::BTreeSet<usize> = kills.iter().map(of).collect();
            all.len()
        };
        assert!(differ(|k| k.0) > 15, "{kills:?}");
        assert!(differ(|k| k.1) > 15, "{kills:?}");
        assert_eq!(differ(|k| k.2), 2, "{kills:?}");
    }
}
