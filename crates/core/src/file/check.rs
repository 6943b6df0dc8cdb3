//! The rules of a catalog file, as far as they can be judged without a catalog.

use super::field::Field;
use super::{CatalogFile, KeyEntry, LicenseEntry, LimitEntry, PlanEntry};
use crate::account::{Environment, NAME_BYTES_MAX, Name, NameError, Per, Window};
use crate::admin::Item;
use crate::catalog::model::LIMITS_PER_PLAN_MAX;
use crate::catalog::{LicenseStatus, Limit, Overage, Problem, Problems, SecretMac};
use crate::credential;
use crate::ids::{Slot, Units};
use std::collections::BTreeMap;

/// What a file states, checked. Keys still lack what only a node can compute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileItems {
    /// Plans, customers, licences.
    pub items: Vec<Item>,
    /// Keys.
    pub keys: Vec<FileKey>,
}

/// A key of a file: the SHA-256 of its secret is not what is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileKey {
    /// The public id.
    pub id: Name,
    /// The licence.
    pub license: Name,
    /// Live or test.
    pub environment: Environment,
    /// SHA-256 of the secret; `None` for a key that exists.
    pub secret_sha256: Option<[u8; 32]>,
}

impl FileItems {
    /// All records, with the keys' secrets as a node stores them: `mac` computes the HMAC of a SHA-256
    /// under the node's pepper.
    pub fn into_items(self, mut mac: impl FnMut(&[u8; 32]) -> SecretMac) -> Vec<Item> {
        let keys = self.keys.into_iter().map(|key| Item::Key {
            id: key.id,
            license: key.license,
            environment: key.environment,
            mac: key.secret_sha256.as_ref().map(&mut mac),
        });
        self.items.into_iter().chain(keys).collect()
    }
}

impl CatalogFile {
    /// Checks everything that can be checked without a catalog.
    ///
    /// # Errors
    /// All problems, at most [`crate::catalog::PROBLEMS_MAX`], in the order of the file.
    pub fn validate(&self) -> Result<FileItems, Vec<Problem>> {
        let mut check = Check::default();
        let mut items = Vec::new();
        for (at, plan) in self.plan.iter().enumerate() {
            items.extend(check.plan(&format!("plan[{at}]"), plan));
        }
        for (at, customer) in self.customer.iter().enumerate() {
            let id = check.id(&format!("customer[{at}]"), "customer", customer.id.as_ref());
            items.extend(id.map(|id| Item::Customer { id }));
        }
        for (at, license) in self.license.iter().enumerate() {
            items.extend(check.license(&format!("license[{at}]"), license));
        }
        let keys = self.key.iter().enumerate();
        let keys = keys
            .filter_map(|(at, key)| check.key(&format!("key[{at}]"), key))
            .collect();
        for (at, route) in self.route.iter().enumerate() {
            check.refuse(
                format!("route[{at}]"),
                Some(route),
                "no [[route]]",
                "this version charges every request one unit: leave [[route]] out",
            );
        }
        check.problems.into_result(FileItems { items, keys })
    }
}

const ONLY_OPEN_QUOTAS: &str =
    "this version has only quotas in the window open, a balance that never refills";

#[derive(Default)]
struct Check {
    problems: Problems,
    /// Where each id of each kind stands first.
    ids: BTreeMap<(&'static str, Name), String>,
    /// Licences of this file with their customers.
    customers: BTreeMap<Name, Name>,
}

impl Check {
    fn plan(&mut self, path: &str, plan: &PlanEntry) -> Option<Item> {
        let id = self.id(path, "plan", plan.id.as_ref());
        if plan.limit.is_empty() || plan.limit.len() > LIMITS_PER_PLAN_MAX {
            self.problems.add(Problem::new(
                format!("{path}.limit"),
                format!("{} limits", plan.limit.len()),
                format!("1 to {LIMITS_PER_PLAN_MAX}"),
                "add a [[plan.limit]]: quota = 0 allows nothing, a large one nearly everything",
            ));
        }
        let mut limits = Vec::with_capacity(plan.limit.len());
        let mut names = BTreeMap::new();
        for (at, limit) in plan.limit.iter().enumerate() {
            let path = format!("{path}.limit[{at}]");
            let Some(limit) = self.limit(&path, limit) else {
                continue;
            };
            if let Some(first) = names.insert(limit.name.clone(), path.clone()) {
                self.twice(format!("{path}.name"), &limit.name, &first);
            }
            limits.push(limit);
        }
        Some(Item::Plan { id: id?, limits })
    }

    fn limit(&mut self, path: &str, limit: &LimitEntry) -> Option<Limit> {
        let name = self.name(format!("{path}.name"), limit.name.as_ref());
        let meter = self.word(
            format!("{path}.meter"),
            limit.meter.as_ref(),
            &[("requests", ())],
            "this version counts requests",
        );
        let per = self.word(
            format!("{path}.per"),
            limit.per.as_ref(),
            &[
                ("customer", Per::Customer),
                ("license", Per::License),
                ("key", Per::Key),
            ],
            "this version has no limits per user or address",
        );
        for (word, field) in [
            ("rate", &limit.rate),
            ("burst", &limit.burst),
            ("permits", &limit.permits),
        ] {
            let help = format!("{ONLY_OPEN_QUOTAS}: leave the limit out, or give it a quota");
            self.refuse(format!("{path}.{word}"), field.as_ref(), "nothing", &help);
        }
        let is_quota = limit.rate.is_none() && limit.burst.is_none() && limit.permits.is_none();
        if !is_quota && limit.quota.is_none() && limit.window.is_none() {
            return None;
        }
        let quota = self.quota(format!("{path}.quota"), limit.quota.as_ref());
        let window = self.word(
            format!("{path}.window"),
            limit.window.as_ref(),
            &[("open", Window::Open)],
            ONLY_OPEN_QUOTAS,
        );
        let overage = match &limit.overage {
            None => Some(Overage::Reject),
            overage => self.word(
                format!("{path}.overage"),
                overage.as_ref(),
                &[("reject", Overage::Reject)],
                "this version admits nothing beyond a quota",
            ),
        };
        let meter = meter.and_then(|()| Name::new("requests").ok());
        Some(Limit {
            name: name?,
            meter: meter?,
            per: per?,
            quota: quota?,
            window: window?,
            overage: overage?,
        })
    }

    fn license(&mut self, path: &str, license: &LicenseEntry) -> Option<Item> {
        let id = self.id(path, "license", license.id.as_ref());
        let customer = self.name(format!("{path}.customer"), license.customer.as_ref());
        let plan = self.name(format!("{path}.plan"), license.plan.as_ref());
        let version = match &license.plan_version {
            None => Some(None),
            Some(field) => self
                .version(format!("{path}.plan_version"), field)
                .map(Some),
        };
        let status = match &license.status {
            None => Some(None),
            status => self
                .word(
                    format!("{path}.status"),
                    status.as_ref(),
                    &[
                        ("active", LicenseStatus::Active),
                        ("suspended", LicenseStatus::Suspended),
                        ("cancelled", LicenseStatus::Cancelled),
                    ],
                    "this version knows no trials, arrears or terms",
                )
                .map(Some),
        };
        let (id, customer) = (id?, customer?);
        self.customers.insert(id.clone(), customer.clone());
        Some(Item::License {
            id,
            customer,
            plan: plan?,
            version: version?,
            status: status?,
        })
    }

    fn key(&mut self, path: &str, key: &KeyEntry) -> Option<FileKey> {
        let id = self.id(path, "key", key.id.as_ref());
        let license = self.name(format!("{path}.license"), key.license.as_ref());
        let environment = match &key.environment {
            None => Some(Environment::Live),
            environment => self.word(
                format!("{path}.environment"),
                environment.as_ref(),
                &[("live", Environment::Live), ("test", Environment::Test)],
                "there are only these two",
            ),
        };
        if key.secret.is_some() {
            self.problems.add(Problem::new(
                format!("{path}.secret"),
                "a secret (not shown)",
                "nothing",
                "a file never carries a secret: write secret_sha256, the SHA-256 of its 32 characters",
            ));
        }
        let secret = match &key.secret_sha256 {
            None => Some(None),
            Some(field) => self.hash(format!("{path}.secret_sha256"), field).map(Some),
        };
        let (id, license) = (id?, license?);
        self.slot(format!("{path}.id"), &id, &license);
        Some(FileKey {
            id,
            license,
            environment: environment?,
            secret_sha256: secret?,
        })
    }

    /// A public id must be one that a presented key can have, and lead to its customer's slot.
    fn slot(&mut self, path: String, id: &Name, license: &Name) {
        let Some(found) = credential::slot_of_key(id.as_str()) else {
            self.problems.add(Problem::new(
                path,
                format!("\"{id}\""),
                "a public id: the 12 characters after tg_live_ or tg_test_",
                "copy them from the key; `tollgate key create` makes one",
            ));
            return;
        };
        let slot = self
            .customers
            .get(license)
            .map(|customer| (customer, Slot::of(customer.as_str())));
        if let Some((customer, slot)) = slot.filter(|(_, slot)| *slot != found) {
            self.problems.add(Problem::new(
                path,
                format!("\"{id}\", which carries slot {found}"),
                format!("slot {slot}, that of customer {customer}"),
                "a key made for one customer cannot be another's: make a new one",
            ));
        }
    }

    /// The id of a record, once per kind.
    fn id(&mut self, path: &str, kind: &'static str, field: Option<&Field>) -> Option<Name> {
        let id = self.name(format!("{path}.id"), field)?;
        match self.ids.insert((kind, id.clone()), path.to_owned()) {
            None => Some(id),
            Some(first) => {
                self.twice(format!("{path}.id"), &id, &first);
                None
            }
        }
    }

    fn twice(&mut self, path: String, id: &Name, first: &str) {
        self.problems.add(Problem::new(
            path,
            format!("\"{id}\" again"),
            format!("a name that does not stand before: it is {first}'s"),
            "remove one of the two, or give it another name",
        ));
    }

    fn name(&mut self, path: String, field: Option<&Field>) -> Option<Name> {
        let (found, help) = match field {
            Some(Field::Text(text)) => match Name::new(text) {
                Ok(name) => return Some(name),
                Err(NameError::TooLong { found }) => {
                    (format!("a text of {found} bytes"), "choose a shorter one")
                }
                Err(NameError::Reserved) => (
                    shown(field),
                    "this one stands for \"none\" in accounts: choose another",
                ),
                Err(NameError::Empty | NameError::Character { .. }) => {
                    (shown(field), "choose one of these characters")
                }
            },
            other => (shown(other), "write one between quotes"),
        };
        let expected =
            format!("a name: 1 to {NAME_BYTES_MAX} characters of A-Z a-z 0-9 . _ : @ + -");
        self.problems.add(Problem::new(path, found, expected, help));
        None
    }

    fn word<T: Copy>(
        &mut self,
        path: String,
        field: Option<&Field>,
        words: &[(&str, T)],
        help: &str,
    ) -> Option<T> {
        if let Some(Field::Text(text)) = field
            && let Some((_, value)) = words.iter().find(|(word, _)| word == text)
        {
            return Some(*value);
        }
        let quoted: Vec<_> = words
            .iter()
            .map(|(word, _)| format!("\"{word}\""))
            .collect();
        let field_name = path.rsplit('.').next().unwrap_or_default();
        let help = format!("{help}: write {field_name} = {}", quoted.join(" or "));
        self.problems
            .add(Problem::new(path, shown(field), quoted.join(" or "), help));
        None
    }

    fn quota(&mut self, path: String, field: Option<&Field>) -> Option<Units> {
        if let Some(Field::Integer(number)) = field
            && let Ok(quota) = Units::try_from(*number)
        {
            return Some(quota);
        }
        self.problems.add(Problem::new(
            path,
            shown(field),
            format!("a whole number from 0 to {}", i64::MAX),
            "write units without quotes, as in quota = 1_000_000; 0 allows nothing",
        ));
        None
    }

    fn version(&mut self, path: String, field: &Field) -> Option<u32> {
        if let Field::Integer(number) = field
            && let Some(version) = u32::try_from(*number).ok().filter(|version| *version > 0)
        {
            return Some(version);
        }
        let help = "leave it out to follow the newest";
        self.problems.add(Problem::new(
            path,
            field,
            "the number of a version, from 1",
            help,
        ));
        None
    }

    fn hash(&mut self, path: String, field: &Field) -> Option<[u8; 32]> {
        let found = match field {
            Field::Text(text) => {
                if let Some(hash) = crate::hex::decode32(text) {
                    return Some(hash);
                }
                // Not quoted: it may be the secret itself.
                format!("a text of {} characters (not shown)", text.chars().count())
            }
            other => other.to_string(),
        };
        self.problems.add(Problem::new(
            path,
            found,
            "64 hexadecimal digits",
            "take the SHA-256 of the secret's 32 characters: printf %s SECRET | sha256sum",
        ));
        None
    }

    fn refuse(&mut self, path: String, field: Option<&Field>, expected: &str, help: &str) {
        if let Some(field) = field {
            self.problems.add(Problem::new(path, field, expected, help));
        }
    }
}

fn shown(field: Option<&Field>) -> String {
    field.map_or_else(|| "nothing".to_owned(), ToString::to_string)
}
