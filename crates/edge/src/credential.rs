//! Presented credentials: their keyed hash, and what of them may leave the edge.
//!
//! Owns the hash that principals are looked up by: 128 bits of SipHash-1-3 under keys drawn at start, so
//! that nobody outside can make two credentials meet. Refuses to keep a credential or to send its secret:
//! nodes get the public id and the SHA-256. The text format is [`tollgate_core::credential`]'s.

use crate::sip;
use tollgate_core::account::Name;
use tollgate_core::ids::Slot;

/// What a principal is looked up by.
pub(crate) type Hash = u128;

/// The keys of the hash, drawn once per process.
#[derive(Clone, Copy)]
pub(crate) struct HashKeys(pub(crate) (u64, u64));

impl HashKeys {
    /// # Errors
    /// When the system has no randomness to give.
    pub(crate) fn draw() -> Result<Self, getrandom::Error> {
        Ok(Self((getrandom::u64()?, getrandom::u64()?)))
    }

    #[inline]
    pub(crate) fn hash(&self, credential: &str) -> Hash {
        sip::hash(self.0, credential.as_bytes())
    }
}

/// The half of a hash that maps use.
#[inline]
#[allow(
    clippy::cast_possible_truncation,
    reason = "the low half is what is wanted"
)]
pub(crate) fn low_half(hash: Hash) -> u64 {
    hash as u64
}

/// What leaves the edge of a presented credential.
#[derive(Clone)]
pub(crate) struct Presented {
    pub(crate) key: Name,
    pub(crate) secret_sha256: [u8; 32],
    /// The slot of its customer.
    pub(crate) slot: Slot,
}

/// Whether the text can be a credential at all, by its form and checksum. No allocation.
pub(crate) fn is_well_formed(presented: &str) -> bool {
    tollgate_core::credential::parse(presented).is_ok()
}

/// What to ask a node about; `None` for what [`is_well_formed`] refuses.
pub(crate) fn parse(presented: &str) -> Option<Presented> {
    let parts = tollgate_core::credential::parse(presented).ok()?;
    let key = Name::new(parts.key).ok()?;
    Some(Presented {
        key,
        secret_sha256: parts.secret_sha256(),
        slot: parts.slot(),
    })
}
