//! Credentials and the order in which they come: the same in every run.

/// A presented credential, as long as a real one: 50 bytes.
pub type Credential = [u8; 50];

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

/// `count` different credentials.
#[must_use]
pub fn credentials(count: usize) -> Vec<Credential> {
    const SYMBOLS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut numbers = Numbers::new(1);
    (0..count)
        .map(|_| {
            let mut credential = *b"tg_live_..........................................";
            for symbol in &mut credential[8..] {
                *symbol = SYMBOLS[numbers.below(SYMBOLS.len())];
            }
            credential
        })
        .collect()
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
    (0..length)
        .map(|_| {
            let drawn = (numbers.draw() >> 11) as f64 / (1_u64 << 53) as f64 * sum;
            let rank = cumulated.partition_point(|&below| below < drawn);
            credentials[by_rank[rank.min(credentials.len() - 1)]]
        })
        .collect()
}
