//! Credentials and the order in which they come: the same in every run.

use tollgate_core::account::Environment;
use tollgate_core::credential::{CREDENTIAL_BYTES, Composed, RANDOM_BYTES, compose};
use tollgate_core::ids::Slot;

/// Bytes of the key that peers look up: what `performance.md` measured them with. A credential of ours is
/// longer by eight, which makes the comparison harder for us.
pub const PEER_KEY_BYTES: usize = 50;

/// A presented credential.
#[derive(Clone, Copy, Debug)]
pub struct Credential {
    /// As a request carries it.
    pub text: &'static str,
}

impl Credential {
    /// What peers look up, and models of a decision: its first bytes, no two alike.
    ///
    /// # Panics
    /// Where it is shorter.
    #[inline]
    #[must_use]
    pub fn key(&self) -> &[u8; PEER_KEY_BYTES] {
        let bytes = self.text.as_bytes().first_chunk();
        bytes.expect("no credential is shorter")
    }

    /// Who presents it: each credential is another customer's.
    #[must_use]
    pub fn customer(number: usize) -> String {
        format!("customer-{number}")
    }
}

/// Reproducible numbers (splitmix64). For workloads only.
#[derive(Clone, Debug)]
pub struct Numbers(u64);

impl Numbers {
    /// The sequence of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number of the sequence.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`.
    fn below(&mut self, bound: usize) -> usize {
        let wide = u128::from(self.draw()) * bound as u128;
        usize::try_from(wide >> 64).unwrap_or(usize::MAX)
    }
}

/// `count` different credentials, well formed.
#[must_use]
pub fn composed(count: usize) -> Vec<Composed> {
    let mut numbers = Numbers::new(1);
    (0..count)
        .map(|number| {
            let mut random = [0; RANDOM_BYTES];
            for bytes in random.chunks_mut(8) {
                bytes.copy_from_slice(&numbers.draw().to_le_bytes()[..bytes.len()]);
            }
            let slot = Slot::of(&Credential::customer(number));
            compose(Environment::Live, slot, &random)
        })
        .collect()
}

/// The texts one after the other in memory, which is kept for ever.
fn laid_out<'t>(texts: impl Iterator<Item = &'t str>) -> Vec<Credential> {
    let buffer: &'static str = texts.collect::<String>().leak();
    (0..buffer.len() / CREDENTIAL_BYTES)
        .map(|at| &buffer[at * CREDENTIAL_BYTES..(at + 1) * CREDENTIAL_BYTES])
        .map(|text| Credential { text })
        .collect()
}

/// The same credentials as they are presented.
#[must_use]
pub fn credentials(composed: &[Composed]) -> Vec<Credential> {
    laid_out(composed.iter().map(|composed| composed.text.as_str()))
}

/// `length` checks of `credentials`: zipf with exponent 0.99, popularity independent of position.
///
/// Laid out in the order of use, as requests arrive in a buffer that is warm: what is measured is the
/// look-up, not the fetching of the credential.
#[must_use]
pub fn zipf_stream(credentials: &[Credential], length: usize) -> Vec<Credential> {
    const EXPONENT: f64 = 0.99;
    let mut numbers = Numbers::new(2);
    let mut by_rank: Vec<usize> = (0..credentials.len()).collect();
    for end in (1..by_rank.len()).rev() {
        by_rank.swap(end, numbers.below(end + 1));
    }
    let mut sum = 0.0;
    let cumulated: Vec<f64> = (1..=credentials.len())
        .map(|rank| {
            sum += (rank as f64).powf(-EXPONENT);
            sum
        })
        .collect();
    let drawn = (0..length).map(|_| {
        let drawn = (numbers.draw() >> 11) as f64 / (1_u64 << 53) as f64 * sum;
        let rank = cumulated.partition_point(|&below| below < drawn);
        credentials[by_rank[rank.min(credentials.len() - 1)]].text
    });
    laid_out(drawn)
}
