//! What a quota account is called, everywhere: one canonical text, in logs, on the wire, on disk, in JSON.
//!
//! `{environment}/{customer}/{license or -}/{subject}/{limit}/{window}`, for example
//! `live/acme/-/customer/daily/open` or `live/acme/-/key=0a1b2c/calls/open`. The owner is the license
//! where one stands, else the customer: two owners never share a counter. One allocation, cheap to clone,
//! ordered so that a customer's accounts lie together. Parsing refuses what is not canonical, so a hostile
//! name stops at the rim. Next: [`crate::catalog`] for the limit of an account.

use crate::ids::Slot;
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;
use std::sync::Arc;

/// Longest id of a customer, license, plan, key, limit or meter, in bytes.
pub const NAME_BYTES_MAX: usize = 64;

/// Longest canonical account name, in bytes: five names and the separators.
pub const ACCOUNT_BYTES_MAX: usize = 4 * NAME_BYTES_MAX + 64;

/// Why a text is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing stood there.
    #[error("is empty: expected 1 to {NAME_BYTES_MAX} characters of A-Z a-z 0-9 . _ : @ + -")]
    Empty,
    /// More than [`NAME_BYTES_MAX`] bytes.
    #[error("has {found} bytes: expected at most {NAME_BYTES_MAX}")]
    TooLong {
        /// Its length in bytes.
        found: usize,
    },
    /// A character outside the set.
    #[error("`{text}` has the character {found:?}: expected only A-Z a-z 0-9 . _ : @ + -")]
    Character {
        /// The text, as given.
        text: String,
        /// The first character that does not belong.
        found: char,
    },
    /// Only `-`, which stands for "no license" in account names.
    #[error("is `-`, which stands for \"none\": choose another name")]
    Reserved,
}

/// Checks a text against the rules for names.
///
/// # Errors
/// [`NameError`] says what was found and what was expected.
pub fn check_name(text: &str) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if text.len() > NAME_BYTES_MAX {
        return Err(NameError::TooLong { found: text.len() });
    }
    if text == "-" {
        return Err(NameError::Reserved);
    }
    let allowed = |byte: u8| {
        byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b':' | b'@' | b'+' | b'-')
    };
    // Asked for every name of every message: by bytes, since only ASCII is allowed.
    if text.bytes().all(allowed) {
        return Ok(());
    }
    let not_allowed = |c: &char| !u8::try_from(*c).is_ok_and(allowed);
    Err(NameError::Character {
        text: text.to_owned(),
        found: text.chars().find(not_allowed).unwrap_or_default(),
    })
}

/// Reads a checked text with one allocation: serde's own way to an `Arc<str>` takes two and a copy.
struct Text<T>(PhantomData<T>);

impl<'de, T: FromStr<Err: fmt::Display>> Visitor<'de> for Text<T> {
    type Value = T;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }
    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        T::from_str(text).map_err(E::custom)
    }
}

/// A type whose values are texts that a function has checked. One allocation, cheap to clone; read and written
/// everywhere as the text.
macro_rules! checked_text {
    ($(#[$attribute:meta])* $name:ident, $check:ident, $error:ident) => {
        $(#[$attribute])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = $error;
            fn from_str(text: &str) -> Result<Self, $error> {
                $check(text)?;
                Ok(Self(Arc::from(text)))
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str(Text(PhantomData))
            }
        }
    };
}

checked_text! {
    /// A checked name: id of a customer, license, plan, key, limit or meter.
    Name, check_name, NameError
}

impl Name {
    /// Takes a text as a name.
    ///
    /// # Errors
    /// [`NameError`] when it breaks the rules of [`check_name`].
    pub fn new(text: &str) -> Result<Self, NameError> {
        text.parse()
    }

    /// A name that no other sorts before: the lower end of ranges.
    pub(crate) fn least() -> Self {
        Self(Arc::from("+"))
    }
}

/// Which world a key belongs to; `test` is never billed and never shares an account with `live`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Environment {
    /// Billed.
    Live,
    /// Never billed.
    Test,
}

impl Environment {
    /// `live` or `test`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Test => "test",
        }
    }
}

impl fmt::Display for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// For whom a limit counts. `user` and `ip` are words of the file format that this version refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Per {
    /// One counter for all of a customer's licenses.
    Customer,
    /// One counter per license.
    License,
    /// One counter per key, kept when the key's license changes plans.
    Key,
}

/// What a quota counts in. Hours, days, months and billing periods come with the windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Window {
    /// No end: a balance.
    Open,
}

impl Window {
    /// Its part of the account name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
        }
    }
}

/// The subject of an account, as its name spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject<'a> {
    /// The customer as a whole.
    Customer,
    /// The license as a whole.
    License,
    /// One key, by public id.
    Key(&'a str),
}

/// The parts of an account's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccountParts<'a> {
    /// Live or test.
    pub environment: Environment,
    /// The customer that pays.
    pub customer: &'a str,
    /// The owning license; `None` where the customer owns the account.
    pub license: Option<&'a str>,
    /// Whose use is counted.
    pub subject: Subject<'a>,
    /// The stable name of the limit.
    pub limit: &'a str,
    /// The window it counts in.
    pub window: Window,
}

/// Why a text names no account.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` names no account ({why}): expected ENVIRONMENT/CUSTOMER/LICENSE or -/SUBJECT/LIMIT/WINDOW, \
     as in live/acme/-/customer/daily/open"
)]
pub struct AccountError {
    text: String,
    why: String,
}

checked_text! {
    /// The name of a quota account; see the module's text.
    AccountId, check_account, AccountError
}

impl AccountId {
    /// Puts a name together from its parts.
    ///
    /// # Errors
    /// [`AccountError`] when a part is no name.
    pub fn new(parts: &AccountParts<'_>) -> Result<Self, AccountError> {
        let subject = match parts.subject {
            Subject::Customer => "customer".to_owned(),
            Subject::License => "license".to_owned(),
            Subject::Key(key) => format!("key={key}"),
        };
        let text = format!(
            "{}/{}/{}/{}/{}/{}",
            parts.environment,
            parts.customer,
            parts.license.unwrap_or("-"),
            subject,
            parts.limit,
            parts.window.as_str()
        );
        Self::parse(&text)
    }

    /// Takes a text as an account's name, if it is canonical.
    ///
    /// # Errors
    /// [`AccountError`] says which part is wrong.
    pub fn parse(text: &str) -> Result<Self, AccountError> {
        text.parse()
    }

    /// The parts of the name.
    ///
    /// # Panics
    /// Never: the text was checked when the name was made.
    #[must_use]
    pub fn parts(&self) -> AccountParts<'_> {
        // Asked for whenever a limit is looked up: the names in it are not checked again.
        match split(&self.0) {
            Ok(parts) => parts,
            Err(why) => unreachable!("an account name is checked when made: {} ({why})", self.0),
        }
    }

    /// The slot that owns this account: that of its customer.
    #[must_use]
    pub fn slot(&self) -> Slot {
        // Asked for on every command and message: the second part is found without checking the others again.
        let customer = self.0.split('/').nth(1).unwrap_or_default();
        debug_assert_eq!(customer, self.parts().customer);
        Slot::of(customer)
    }
}

/// The first bytes of a text, for messages about hostile input.
fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

/// Whether a text is an account's name.
fn check_account(text: &str) -> Result<(), AccountError> {
    let checked = || {
        if text.len() > ACCOUNT_BYTES_MAX {
            return Err(format!("{} bytes, at most {ACCOUNT_BYTES_MAX}", text.len()));
        }
        let parts = split(text)?;
        check_name(parts.customer).map_err(|e| format!("customer {e}"))?;
        check_name(parts.limit).map_err(|e| format!("limit {e}"))?;
        if let Some(license) = parts.license {
            check_name(license).map_err(|e| format!("license {e}"))?;
        }
        if let Subject::Key(key) = parts.subject {
            check_name(key).map_err(|e| format!("key {e}"))?;
        }
        Ok(())
    };
    checked().map_err(|why| AccountError {
        text: cut(text),
        why,
    })
}

/// The parts of a text of an account name's shape; the names in it are as they come.
fn split(text: &str) -> Result<AccountParts<'_>, String> {
    let mut fields = text.split('/');
    let mut next = |name: &str| fields.next().ok_or_else(|| format!("{name} is missing"));
    let environment = match next("the environment")? {
        "live" => Environment::Live,
        "test" => Environment::Test,
        other => {
            return Err(format!(
                "environment `{}` is neither live nor test",
                cut(other)
            ));
        }
    };
    let customer = next("the customer")?;
    let license = next("the license")?;
    let subject = next("the subject")?;
    let limit = next("the limit")?;
    let window = match next("the window")? {
        "open" => Window::Open,
        other => {
            return Err(format!(
                "window `{}` is not known, only open is",
                cut(other)
            ));
        }
    };
    if fields.next().is_some() {
        return Err("more than six parts".to_owned());
    }
    let license = if license == "-" { None } else { Some(license) };
    let subject = match (subject, license) {
        ("customer", None) => Subject::Customer,
        ("license", Some(_)) => Subject::License,
        (other, None) => {
            let key = other
                .strip_prefix("key=")
                .ok_or("the subject is none of customer, key=ID")?;
            Subject::Key(key)
        }
        (_, Some(_)) => return Err("a license's own account has the subject license".to_owned()),
    };
    Ok(AccountParts {
        environment,
        customer,
        license,
        subject,
        limit,
        window,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_sorts_before_the_least() {
        let least = Name::least();
        assert_eq!(check_name(least.as_str()), Ok(()));
        for first in (0..128_u8).map(char::from) {
            if let Ok(name) = Name::new(&first.to_string()) {
                assert!(least <= name, "{name}");
            }
        }
    }
}
