//! Names of the protocol's numbers, one type each, so that an epoch cannot be passed for a boot.
//!
//! Owns nothing but the types; who hands out each number is said at the type. Next: [`crate::account`].

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The number after this one.
            ///
            /// # Panics
            /// When the number space is used up, which takes centuries at a million a second.
            #[must_use]
            pub fn next(self) -> Self {
                assert!(self.0 < u64::MAX, concat!(stringify!($name), " numbers are used up"));
                Self(self.0.wrapping_add(1))
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// A node of the cluster; lives in its data folder, never reused after data loss.
    NodeId
}
number! {
    /// One ownership of a slot. Counted up by every `Assign` and by every boot of the owning node.
    Epoch
}
number! {
    /// One start of a process (node or edge), numbered by the ledger, unique in the cluster.
    Boot
}
number! {
    /// An edge's numbered stream of reports; given by the ledger.
    SessionId
}
number! {
    /// One opening of an issuer's row for an edge. Drawn by the edge from one counter per boot.
    LeaseNo
}
number! {
    /// The life of a cluster's data; a restore begins a new one.
    Incarnation
}
number! {
    /// A start number, always higher than the last and synced to disk by its owner before it is sent. A node counts
    /// them, an edge draws them: [`Nonce::next_start`].
    Nonce
}
number! {
    /// Position of a report in its session, from 1, without gaps.
    Seq
}

/// What an edge's start numbers go up by at most.
const START_STEP_BITS: u32 = 40;

impl Nonce {
    /// The number of an edge's next start, after the last one its journal knows of (0: of none). `drawn` is random.
    ///
    /// The ledger gives the same number the same boot, so a number must never come again from whoever does not
    /// know of it: an edge whose journal was lost, a journal whose last record was, a copy of a journal. So the first
    /// number is one of 2^62, and each later one lies up to 2^40 above the last: there is room for millions of starts.
    #[must_use]
    pub fn next_start(self, drawn: u64) -> Self {
        if crate::planted::start_numbers_counted_from_one() {
            return self.next();
        }
        match self.0 {
            0 => Self((drawn >> 2) | 1),
            last => Self(last.saturating_add(1 + (drawn >> (u64::BITS - START_STEP_BITS)))),
        }
    }
}

/// Units of a meter or quota: requests, bytes, milliseconds. Unsigned; every sum of them is checked.
pub type Units = u64;

/// How many slots there are; the number is part of the wire and of the data, it never changes.
pub const SLOTS: u16 = 1024;

/// A slot: the unit of ownership by issuers. Always below [`SLOTS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct Slot(u16);

impl Slot {
    /// The slot a customer (or, where there is none, a subject's value) belongs to:
    /// `xxh3_64(name, seed 0) mod 1024`.
    #[must_use]
    pub fn of(name: &str) -> Self {
        let hash = xxhash_rust::xxh3::xxh3_64(name.as_bytes());
        Self(u16::try_from(hash % u64::from(SLOTS)).unwrap_or_default())
    }

    /// The number of the slot, below [`SLOTS`].
    #[must_use]
    pub fn number(self) -> u16 {
        self.0
    }

    /// Position in a table of [`SLOTS`] entries.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    /// Every slot, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..SLOTS).map(Self)
    }
}

impl TryFrom<u16> for Slot {
    type Error = String;
    fn try_from(number: u16) -> Result<Self, String> {
        if number < SLOTS {
            Ok(Self(number))
        } else {
            Err(format!(
                "slot {number} does not exist: slots are 0 to {}",
                SLOTS - 1
            ))
        }
    }
}

impl From<Slot> for u16 {
    fn from(slot: Slot) -> u16 {
        slot.0
    }
}

impl std::fmt::Display for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A state of the catalog: the incarnation and the log index of its last change. Later is greater.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Revision {
    /// The life of the data this revision belongs to.
    pub incarnation: Incarnation,
    /// Log index of the change.
    pub index: u64,
}

impl std::fmt::Display for Revision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.incarnation, self.index)
    }
}

impl std::str::FromStr for Revision {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no revision: expected INCARNATION-INDEX, as in 1-812");
        let (incarnation, index) = text.split_once('-').ok_or_else(wrong)?;
        Ok(Self {
            incarnation: Incarnation(incarnation.parse().map_err(|_| wrong())?),
            index: index.parse().map_err(|_| wrong())?,
        })
    }
}
