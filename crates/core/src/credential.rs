//! How a key looks in a client's hands: `tg_live_` or `tg_test_`, then 50 base-62 characters.
//!
//! ```text
//! tg_live_ 7k 3Jx0aZ91Qp <32: the secret> <6: the checksum>
//! prefix   slot  random
//!          '--- 12: the public id
//! ```
//! The public id is looked up and shown; its first two characters are the slot of the customer, so an edge
//! finds the issuer before it knows the caller. The checksum is the CRC-32 of all before it: a mistyped or
//! made-up key is refused offline. Scanners for leaked keys look for `tg_(live|test)_[0-9A-Za-z]{50}`.
//! Nothing here is stored: edges pass on the SHA-256 of the secret, nodes keep an HMAC of that
//! ([`crate::catalog::SecretMac`]). No type and no error here prints a secret.

use crate::account::{Environment, Name};
use crate::ids::Slot;
use sha2::{Digest, Sha256};
use std::fmt;

/// Characters of a public id: two for the slot, ten drawn at random (59 bits).
pub const KEY_ID_CHARS: usize = SLOT_CHARS + 10;

/// Characters of a secret: 190.5 bits.
pub const SECRET_CHARS: usize = 32;

/// Length of a credential, in bytes.
pub const CREDENTIAL_BYTES: usize = PREFIX_CHARS + KEY_ID_CHARS + SECRET_CHARS + CHECKSUM_CHARS;

/// Random bytes that [`compose`] needs: 16 for each group of characters, so that the remainder which
/// favours some characters is below one in 2^68.
pub const RANDOM_BYTES: usize = 16 * (1 + SECRET_CHARS / SECRET_GROUP_CHARS);

/// Characters before the public id, which say the environment.
pub const PREFIX_CHARS: usize = 8;
const SLOT_CHARS: usize = 2;
const CHECKSUM_CHARS: usize = 6;
const SECRET_GROUP_CHARS: usize = 8;
const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

const _: () = assert!(
    62 * 62 >= crate::ids::SLOTS as u64,
    "two characters hold every slot"
);
const _: () = assert!(
    62_u64.pow(6) > u32::MAX as u64,
    "six characters hold every checksum"
);
const _: () = assert!(SECRET_CHARS.is_multiple_of(SECRET_GROUP_CHARS));

/// Why a text is no credential. Never quotes the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// It is longer or shorter.
    #[error("has {found} bytes, a key has {CREDENTIAL_BYTES}: copy it whole")]
    Length {
        /// Its length in bytes.
        found: usize,
    },
    /// It does not begin like one.
    #[error("does not begin with tg_live_ or tg_test_: expected a key of this product")]
    Prefix,
    /// It has other characters.
    #[error("has characters other than 0-9 A-Z a-z after its prefix: copy it again")]
    Character,
    /// Its checksum is another.
    #[error("has a wrong checksum: it was mistyped or made up, copy it again")]
    Checksum,
    /// Its public id names no slot.
    #[error("has a public id that names no slot: it was not made by this product")]
    Slot,
}

/// A credential in its parts, borrowed from the text.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Presented<'a> {
    /// Live or test.
    pub environment: Environment,
    /// The public id.
    pub key: &'a str,
    /// The secret.
    pub secret: &'a str,
}

impl fmt::Debug for Presented<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Presented({} {})", self.environment, self.key)
    }
}

impl Presented<'_> {
    /// What edges send and files carry: SHA-256 of the secret's 32 characters.
    #[must_use]
    pub fn secret_sha256(&self) -> [u8; 32] {
        Sha256::digest(self.secret.as_bytes()).into()
    }

    /// The slot in the public id.
    #[must_use]
    pub fn slot(&self) -> Slot {
        match slot_of_key(self.key) {
            Some(slot) => slot,
            None => unreachable!("parse refuses a public id without a slot"),
        }
    }
}

/// Takes a credential apart, if it is one by form and checksum; says nothing of whether it is known.
///
/// No allocation; reads at most [`CREDENTIAL_BYTES`] bytes.
///
/// # Errors
/// [`CredentialError`] says what is wrong with its form.
pub fn parse(text: &str) -> Result<Presented<'_>, CredentialError> {
    if text.len() != CREDENTIAL_BYTES {
        return Err(CredentialError::Length { found: text.len() });
    }
    let (environment, rest) = if let Some(rest) = text.strip_prefix(prefix(Environment::Live)) {
        (Environment::Live, rest)
    } else if let Some(rest) = text.strip_prefix(prefix(Environment::Test)) {
        (Environment::Test, rest)
    } else {
        return Err(CredentialError::Prefix);
    };
    // Also makes every byte offset below a boundary of characters.
    if !rest.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(CredentialError::Character);
    }
    let (signed, checksum) = text.split_at(CREDENTIAL_BYTES - CHECKSUM_CHARS);
    if number(checksum) != Some(u64::from(crc32fast::hash(signed.as_bytes()))) {
        return Err(CredentialError::Checksum);
    }
    let (key, rest) = rest.split_at(KEY_ID_CHARS);
    if slot_of_key(key).is_none() {
        return Err(CredentialError::Slot);
    }
    Ok(Presented {
        environment,
        key,
        secret: &rest[..SECRET_CHARS],
    })
}

/// The slot that a public id carries; `None` when it is no public id of ours.
#[must_use]
pub fn slot_of_key(id: &str) -> Option<Slot> {
    if id.len() != KEY_ID_CHARS || !id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return None;
    }
    let number = u16::try_from(number(&id[..SLOT_CHARS])?).ok()?;
    Slot::try_from(number).ok()
}

/// A new credential; shown once, then only its parts are kept.
#[derive(Clone, PartialEq, Eq)]
pub struct Composed {
    /// The whole text, with the secret.
    pub text: String,
    /// The public id.
    pub key: Name,
}

impl fmt::Debug for Composed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Composed({})", self.key)
    }
}

/// Makes a credential.
///
/// * `slot`: that of the customer, `Slot::of(customer)`.
/// * `random`: fresh from the operating system's source of randomness; equal bytes make equal keys.
#[must_use]
pub fn compose(environment: Environment, slot: Slot, random: &[u8; RANDOM_BYTES]) -> Composed {
    let (for_id, for_secret) = random.split_at(16);
    let mut id = String::with_capacity(KEY_ID_CHARS);
    push(&mut id, u128::from(slot.number()), SLOT_CHARS);
    push(&mut id, drawn(for_id), KEY_ID_CHARS - SLOT_CHARS);
    let key = match Name::new(&id) {
        Ok(key) => key,
        Err(error) => unreachable!("base-62 characters make a name: {error}"),
    };
    with_secret(environment, key, for_secret)
}

/// Makes another credential of a key that exists: the same public id, a new secret.
///
/// `None` when `key` is no public id of ours ([`slot_of_key`]).
#[must_use]
pub fn recompose(
    environment: Environment,
    key: &Name,
    random: &[u8; RANDOM_BYTES],
) -> Option<Composed> {
    slot_of_key(key.as_str())?;
    Some(with_secret(environment, key.clone(), &random[16..]))
}

fn with_secret(environment: Environment, key: Name, random: &[u8]) -> Composed {
    let mut text = String::with_capacity(CREDENTIAL_BYTES);
    text.push_str(prefix(environment));
    text.push_str(key.as_str());
    for group in random.chunks_exact(16) {
        push(&mut text, drawn(group), SECRET_GROUP_CHARS);
    }
    let checksum = crc32fast::hash(text.as_bytes());
    push(&mut text, u128::from(checksum), CHECKSUM_CHARS);
    Composed { text, key }
}

fn prefix(environment: Environment) -> &'static str {
    match environment {
        Environment::Live => "tg_live_",
        Environment::Test => "tg_test_",
    }
}

/// Appends the last `chars` base-62 digits of a number, the highest first.
fn push(text: &mut String, number: u128, chars: usize) {
    let start = text.len();
    let mut rest = number;
    for _ in 0..chars {
        let digit = usize::try_from(rest % 62).unwrap_or_default();
        text.insert(start, char::from(DIGITS[digit]));
        rest /= 62;
    }
}

/// The number that base-62 digits stand for; `None` when it leaves 64 bits or a character is none.
fn number(digits: &str) -> Option<u64> {
    digits.bytes().try_fold(0_u64, |sum, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'A'..=b'Z' => digit - b'A' + 10,
            b'a'..=b'z' => digit - b'a' + 36,
            _ => return None,
        };
        sum.checked_mul(62)?.checked_add(u64::from(value))
    })
}

fn drawn(bytes: &[u8]) -> u128 {
    bytes
        .iter()
        .fold(0, |sum, byte| (sum << 8) | u128::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::check_name;
    use proptest::prelude::*;

    fn random(seed: u8) -> [u8; RANDOM_BYTES] {
        let hash = |n: usize| Sha256::digest([seed, u8::try_from(n / 32).unwrap()])[n % 32];
        std::array::from_fn(hash)
    }

    #[test]
    fn the_format_is_the_released_one() {
        let composed = compose(Environment::Live, Slot::of("acme"), &random(1));
        expect_test::expect!["tg_live_3dVMlc9nXYKZxxb5nv08AXRn1N5hAzjT3Vr8Y0FYdp1A0RqDgc"]
            .assert_eq(&composed.text);
        expect_test::expect!["Composed(3dVMlc9nXYKZ) Ok(Presented(live 3dVMlc9nXYKZ))"]
            .assert_eq(&format!("{composed:?} {:?}", parse(&composed.text)));
        assert_eq!(composed.text.len(), CREDENTIAL_BYTES);
    }

    #[test]
    fn every_slot_is_carried() {
        for slot in Slot::all() {
            let composed = compose(Environment::Test, slot, &random(2));
            let presented = parse(&composed.text).unwrap();
            assert_eq!(
                (presented.slot(), presented.environment),
                (slot, Environment::Test)
            );
            assert_eq!(presented.key, composed.key.as_str());
            assert_eq!(check_name(presented.key), Ok(()));
        }
    }

    #[test]
    fn every_mistyped_character_is_refused() {
        let composed = compose(Environment::Live, Slot::of("acme"), &random(3));
        for at in 0..CREDENTIAL_BYTES {
            for typed in "0Az_é ".chars() {
                let mut text: Vec<char> = composed.text.chars().collect();
                if text[at] != typed {
                    text[at] = typed;
                    let text: String = text.into_iter().collect();
                    assert!(parse(&text).is_err(), "{text}");
                }
            }
        }
        let cut = &composed.text[1..];
        assert_eq!(
            parse(cut),
            Err(CredentialError::Length {
                found: CREDENTIAL_BYTES - 1
            })
        );
        assert_eq!(parse(""), Err(CredentialError::Length { found: 0 }));
    }

    #[test]
    fn a_public_id_without_a_slot_is_refused() {
        let composed = compose(Environment::Live, Slot::of("acme"), &random(4));
        let mut text = composed.text.replace(composed.key.as_str(), "zz0000000000");
        text.truncate(CREDENTIAL_BYTES - CHECKSUM_CHARS);
        let checksum = crc32fast::hash(text.as_bytes());
        push(&mut text, u128::from(checksum), CHECKSUM_CHARS);
        assert_eq!(parse(&text), Err(CredentialError::Slot));
        assert_eq!(slot_of_key("zz0000000000"), None);
        assert_eq!(slot_of_key("00"), None);
        assert_eq!(slot_of_key("00000000000é"), None);
        assert_eq!(slot_of_key("GV0000000000").map(Slot::number), Some(1023));
        assert_eq!(slot_of_key("GW0000000000"), None);
    }

    #[test]
    fn another_secret_keeps_the_public_id() {
        let first = compose(Environment::Live, Slot::of("acme"), &random(5));
        let second = recompose(Environment::Live, &first.key, &random(6)).unwrap();
        let [one, other] = [&first, &second].map(|composed| parse(&composed.text).unwrap());
        assert_eq!(one.key, other.key);
        assert_ne!(one.secret, other.secret);
        assert_ne!(one.secret_sha256(), other.secret_sha256());
        let foreign = Name::new("not-ours").unwrap();
        assert_eq!(recompose(Environment::Live, &foreign, &random(7)), None);
    }

    #[test]
    fn nothing_prints_a_secret() {
        let composed = compose(Environment::Live, Slot::of("acme"), &random(8));
        let presented = parse(&composed.text).unwrap();
        let mistyped = composed
            .text
            .replace(presented.secret, &"x".repeat(SECRET_CHARS));
        let error = parse(&mistyped).unwrap_err();
        let printed = format!("{composed:?} {presented:?} {error:?} {error}");
        assert!(
            !printed.contains(presented.secret) && !printed.contains("xxxx"),
            "{printed}"
        );
    }

    proptest! {
        #[test]
        fn any_text_is_taken_or_refused(text in any::<String>()) {
            let _ = parse(&text);
            let _ = slot_of_key(&text);
        }

        #[test]
        fn any_text_of_the_right_length_too(
            prefix in prop_oneof![Just("tg_live_"), Just("tg_test_"), Just("tg_none_")],
            rest in ".{0,50}",
        ) {
            let mut text = format!("{prefix}{rest}");
            while text.len() < CREDENTIAL_BYTES { text.push('0'); }
            while text.len() > CREDENTIAL_BYTES { text.pop(); }
            prop_assert!(parse(&text).is_err(), "a checksum fits by chance once in 4 billion");
        }

        #[test]
        fn what_is_composed_is_parsed(bytes in prop::collection::vec(any::<u8>(), RANDOM_BYTES), customer in "[a-z]{1,8}") {
            let random: [u8; RANDOM_BYTES] = bytes.try_into().unwrap();
            let composed = compose(Environment::Live, Slot::of(&customer), &random);
            let presented = parse(&composed.text).unwrap();
            prop_assert_eq!(presented.slot(), Slot::of(&customer));
            prop_assert_eq!(presented.secret.len(), SECRET_CHARS);
        }
    }
}
