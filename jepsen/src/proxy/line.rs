//! One direction of a faulty link, as a pure machine: datagrams arrive, some depart, later, twice, or out of order.
//!
//! Owns: what happens to the n-th datagram, decided by the seed and n alone, and the bounded queue of those under
//! way. Refuses: sockets and clocks; `now` comes in with every call. Read next: [`super`], the sockets around it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Most datagrams under way in one direction; more are dropped and counted, as a full switch would.
pub const QUEUE_DATAGRAMS_MAX: usize = 4_096;

/// Longest time that a datagram held back for reordering waits for one that could pass it.
pub const HOLD_MAX: Duration = Duration::from_millis(50);

const PER_MILLION: u32 = 1_000_000;

/// How often something happens, in millionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Chance {
    per_million: u32,
}

impl Chance {
    /// It does not happen.
    pub const NEVER: Self = Self { per_million: 0 };
    /// It always happens.
    pub const ALWAYS: Self = Self {
        per_million: PER_MILLION,
    };

    /// `percent` times in a hundred; above 100 is always.
    #[must_use]
    pub const fn percent(percent: u32) -> Self {
        Self::per_million(percent.saturating_mul(PER_MILLION / 100))
    }

    /// `per_million` times in a million; above a million is always.
    #[must_use]
    pub const fn per_million(per_million: u32) -> Self {
        if per_million < PER_MILLION {
            Self { per_million }
        } else {
            Self::ALWAYS
        }
    }

    /// Whether it happens for this draw.
    fn hits(self, draw: u64) -> bool {
        draw % u64::from(PER_MILLION) < u64::from(self.per_million)
    }
}

/// What one direction of a link does to its datagrams. The default does nothing to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Faults {
    /// Nothing passes, and what is under way is lost too.
    pub cut: bool,
    /// How often a datagram is lost.
    pub loss: Chance,
    /// How often a datagram comes twice; the second one has a jitter of its own.
    pub duplication: Chance,
    /// How often a datagram is held back until the next one of its flow has passed it, at most [`HOLD_MAX`]. One at a
    /// time per flow: `ALWAYS` swaps each pair. One that is held back never comes twice.
    pub reordering: Chance,
    /// Time that every datagram takes.
    pub delay: Duration,
    /// Time up to which a datagram takes longer, evenly spread; above the distance of two datagrams it reorders too.
    pub jitter: Duration,
}

/// What became of the datagrams of one direction.
/// `arrived + duplicated = forwarded + lost + cut + overflowed + unsendable + under way`, at any time; what is just
/// being sent is still under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Came in.
    pub arrived: u64,
    /// Sent on, copies counted.
    pub forwarded: u64,
    /// Dropped by chance.
    pub lost: u64,
    /// Dropped because the direction was cut, or the client was cut off.
    pub cut: u64,
    /// Dropped because [`QUEUE_DATAGRAMS_MAX`] were under way.
    pub overflowed: u64,
    /// Dropped because the socket would not send it, or its flow is gone.
    pub unsendable: u64,
    /// Copies made.
    pub duplicated: u64,
    /// Held back and passed by a later one of their flow.
    pub reordered: u64,
}

/// A datagram of the flow of one client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Datagram {
    pub(super) client: SocketAddr,
    pub(super) bytes: Vec<u8>,
}

/// When a datagram is due, and its place among those due then.
type Place = (Instant, u64);

/// One direction of a link.
#[derive(Debug)]
pub(super) struct Line {
    seed: u64,
    faults: Faults,
    /// The next datagram's number.
    number: u64,
    /// The next place's number: what is due at one time departs in this order.
    order: u64,
    queue: BTreeMap<Place, Datagram>,
    /// Where in the queue the datagram of a client is that waits to be passed.
    held: BTreeMap<SocketAddr, Place>,
    counts: Counts,
}

impl Line {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            seed,
            faults: Faults::default(),
            number: 0,
            order: 0,
            queue: BTreeMap::new(),
            held: BTreeMap::new(),
            counts: Counts::default(),
        }
    }

    pub(super) fn set(&mut self, faults: Faults) {
        self.faults = faults;
    }

    pub(super) fn faults(&self) -> Faults {
        self.faults
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    #[cfg(test)]
    pub(super) fn under_way(&self) -> u64 {
        self.queue.len() as u64
    }

    /// Takes a datagram in.
    pub(super) fn arrive(&mut self, now: Instant, datagram: Datagram) {
        let fate = Fate::of(self.seed, self.number, &self.faults);
        self.number += 1;
        self.counts.arrived += 1;
        if self.faults.cut {
            self.counts.cut += 1;
            return;
        }
        if fate.lost {
            self.counts.lost += 1;
            return;
        }
        if self.queue.len() >= QUEUE_DATAGRAMS_MAX {
            self.counts.overflowed += 1;
            return;
        }
        let client = datagram.client;
        let due = now + self.faults.delay + fate.jitter;
        // One that was held but has departed by itself is not in the queue any more: nothing to pass.
        let passed = self
            .held
            .remove(&client)
            .and_then(|place| self.queue.remove(&place));
        if fate.held && passed.is_none() {
            let place = self.enqueue(due + HOLD_MAX, datagram);
            self.held.insert(client, place);
            return;
        }
        let copy = (fate.twice && !fate.held).then(|| datagram.clone());
        self.enqueue(due, datagram);
        if let Some(passed) = passed {
            self.counts.reordered += 1;
            self.enqueue(due, passed);
        }
        match copy {
            Some(_) if self.queue.len() >= QUEUE_DATAGRAMS_MAX => {}
            Some(copy) => {
                self.counts.duplicated += 1;
                self.enqueue(now + self.faults.delay + fate.jitter_of_copy, copy);
            }
            None => {}
        }
    }

    /// Counts a datagram of a client that is cut off.
    pub(super) fn drop_one(&mut self) {
        self.number += 1;
        self.counts.arrived += 1;
        self.counts.cut += 1;
    }

    fn enqueue(&mut self, due: Instant, datagram: Datagram) -> Place {
        let place = (due, self.order);
        self.order += 1;
        self.queue.insert(place, datagram);
        place
    }

    /// When the next datagram is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.queue.keys().next().map(|(due, _)| *due)
    }

    /// The next datagram that is due by `now`, to be sent; none while the direction is cut, which drops them.
    pub(super) fn depart(&mut self, now: Instant) -> Option<Datagram> {
        while self.next_due().is_some_and(|due| due <= now) {
            let (place, datagram) = self.queue.pop_first()?;
            if self.held.get(&datagram.client) == Some(&place) {
                self.held.remove(&datagram.client);
            }
            if self.faults.cut {
                self.counts.cut += 1;
                continue;
            }
            return Some(datagram);
        }
        None
    }

    /// Says that a datagram which departed was sent.
    pub(super) fn sent(&mut self) {
        self.counts.forwarded += 1;
    }

    /// Says that a datagram which departed could not be sent.
    pub(super) fn unsendable(&mut self) {
        self.counts.unsendable += 1;
    }
}

/// What happens to one datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fate {
    lost: bool,
    twice: bool,
    held: bool,
    jitter: Duration,
    jitter_of_copy: Duration,
}

impl Fate {
    /// The fate of datagram `number`. Each question has a draw of its own, so that changing one fault's chance does
    /// not change whom the others hit.
    fn of(seed: u64, number: u64, faults: &Faults) -> Self {
        let draw = |question: u64| mix(mix(seed.wrapping_add(number)).wrapping_add(question));
        let jitter = |draw: u64| {
            let most_us = u64::try_from(faults.jitter.as_micros()).unwrap_or(u64::MAX - 1);
            Duration::from_micros(draw % most_us.saturating_add(1))
        };
        Self {
            lost: faults.loss.hits(draw(0)),
            twice: faults.duplication.hits(draw(1)),
            held: faults.reordering.hits(draw(2)),
            jitter: jitter(draw(3)),
            jitter_of_copy: jitter(draw(4)),
        }
    }
}

/// Spreads neighbouring numbers evenly over all of u64: splitmix64's step and finalizer (Steele, Lea and Flood 2014).
pub(super) fn mix(number: u64) -> u64 {
    let z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn client(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn arrive(line: &mut Line, now: Instant, port: u16, bytes: &[u8]) {
        line.arrive(
            now,
            Datagram {
                client: client(port),
                bytes: bytes.to_vec(),
            },
        );
    }

    fn line(seed: u64, faults: Faults) -> Line {
        let mut line = Line::new(seed);
        line.set(faults);
        line
    }

    /// All that departs by `now`, one byte each.
    fn departed(line: &mut Line, now: Instant) -> Vec<u8> {
        let mut bytes = Vec::new();
        while let Some(datagram) = line.depart(now) {
            bytes.push(datagram.bytes[0]);
            line.sent();
        }
        bytes
    }

    fn assert_balanced(line: &Line) {
        let c = line.counts();
        let gone = c.forwarded + c.lost + c.cut + c.overflowed + c.unsendable;
        assert_eq!(c.arrived + c.duplicated, gone + line.under_way(), "{c:?}");
    }

    #[test]
    fn the_first_of_splitmix64_from_0_and_from_1234567() {
        // The reference generator's first outputs for these seeds.
        assert_eq!(mix(0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(mix(1_234_567), 6_457_827_717_110_365_317);
    }

    #[test]
    fn a_chance_hits_about_as_often_as_it_says() {
        let hits = |chance: Chance| (0..100_000).filter(|n| chance.hits(mix(*n))).count();
        assert_eq!(hits(Chance::NEVER), 0);
        assert_eq!(hits(Chance::ALWAYS), 100_000);
        assert_eq!(Chance::percent(101), Chance::ALWAYS);
        // Fixed draws, fixed answer; the standard deviation is 145.
        assert!((29_500..30_500).contains(&hits(Chance::percent(30))));
    }

    #[test]
    fn without_faults_all_pass_at_once_in_order() {
        let now = Instant::now();
        let mut line = line(1, Faults::default());
        for byte in 0..100 {
            arrive(&mut line, now, 1, &[byte]);
        }
        assert_eq!(departed(&mut line, now), (0..100).collect::<Vec<_>>());
        assert_eq!(
            line.counts(),
            Counts {
                arrived: 100,
                forwarded: 100,
                ..Counts::default()
            }
        );
    }

    #[test]
    fn a_delay_is_waited_out_and_keeps_the_order() {
        let now = Instant::now();
        let mut line = line(
            1,
            Faults {
                delay: 20 * MS,
                ..Faults::default()
            },
        );
        arrive(&mut line, now, 1, b"a");
        arrive(&mut line, now + MS, 1, b"b");
        assert_eq!(line.next_due(), Some(now + 20 * MS));
        assert_eq!(departed(&mut line, now + 19 * MS), b"");
        assert_eq!(departed(&mut line, now + 20 * MS), b"a");
        assert_eq!(departed(&mut line, now + 21 * MS), b"b");
        assert_eq!(line.next_due(), None);
    }

    #[test]
    fn jitter_stays_within_its_bound_and_varies() {
        let now = Instant::now();
        let mut line = line(
            1,
            Faults {
                delay: 10 * MS,
                jitter: 5 * MS,
                ..Faults::default()
            },
        );
        for _ in 0..1_000 {
            arrive(&mut line, now, 1, b"x");
        }
        assert_eq!(departed(&mut line, now + 10 * MS - MS / 1_000).len(), 0);
        let early = departed(&mut line, now + 12 * MS).len();
        assert!(
            (300..500).contains(&early),
            "{early} of 1,000 in the first two fifths"
        );
        assert_eq!(departed(&mut line, now + 15 * MS).len(), 1_000 - early);
    }

    #[test]
    fn the_seed_alone_decides_and_one_chance_does_not_move_another() {
        let now = Instant::now();
        let survivors = |seed: u64, faults: Faults| {
            let mut line = line(seed, faults);
            for byte in 0..=255 {
                arrive(&mut line, now, 1, &[byte]);
            }
            let mut all = departed(&mut line, now + HOLD_MAX);
            assert_balanced(&line);
            all.sort_unstable();
            all.dedup();
            all
        };
        let loss = Faults {
            loss: Chance::percent(30),
            ..Faults::default()
        };
        let first = survivors(7, loss);
        assert!((150..210).contains(&first.len()), "{}", first.len());
        assert_eq!(survivors(7, loss), first);
        assert_ne!(survivors(8, loss), first);
        let more = Faults {
            duplication: Chance::percent(20),
            reordering: Chance::percent(20),
            ..loss
        };
        assert_eq!(survivors(7, more), first, "the same ones are lost");
    }

    #[test]
    fn reordering_swaps_pairs_and_holds_the_last_one_only_so_long() {
        let now = Instant::now();
        let mut line = line(
            1,
            Faults {
                reordering: Chance::ALWAYS,
                ..Faults::default()
            },
        );
        for byte in 0..5 {
            arrive(&mut line, now, 1, &[byte]);
        }
        assert_eq!(departed(&mut line, now), [1, 0, 3, 2]);
        assert_eq!(line.next_due(), Some(now + HOLD_MAX));
        assert_eq!(departed(&mut line, now + HOLD_MAX), [4]);
        assert_eq!(line.counts().reordered, 2);
        // Departed by itself, it is no longer there to be passed: the next one is held in its turn.
        arrive(&mut line, now + HOLD_MAX, 1, &[5]);
        arrive(&mut line, now + HOLD_MAX, 1, &[6]);
        assert_eq!(departed(&mut line, now + HOLD_MAX), [6, 5]);
        assert_balanced(&line);
    }

    #[test]
    fn only_its_own_flow_passes_a_held_datagram() {
        let now = Instant::now();
        let mut line = line(
            1,
            Faults {
                reordering: Chance::ALWAYS,
                ..Faults::default()
            },
        );
        arrive(&mut line, now, 1, b"a");
        arrive(&mut line, now, 2, b"b");
        assert_eq!(departed(&mut line, now), b"");
        arrive(&mut line, now, 2, b"c");
        assert_eq!(departed(&mut line, now), b"cb");
    }

    #[test]
    fn duplication_makes_two_of_one() {
        let now = Instant::now();
        let mut line = line(
            1,
            Faults {
                duplication: Chance::ALWAYS,
                ..Faults::default()
            },
        );
        arrive(&mut line, now, 1, b"a");
        arrive(&mut line, now, 1, b"b");
        assert_eq!(departed(&mut line, now), b"aabb");
        assert_eq!(line.counts().duplicated, 2);
        assert_balanced(&line);
    }

    #[test]
    fn a_cut_also_loses_what_is_under_way() {
        let now = Instant::now();
        let slow = Faults {
            delay: 20 * MS,
            ..Faults::default()
        };
        let mut line = line(1, slow);
        arrive(&mut line, now, 1, b"a");
        line.set(Faults { cut: true, ..slow });
        arrive(&mut line, now, 1, b"b");
        assert_eq!(departed(&mut line, now + 20 * MS), b"");
        assert_eq!(line.counts().cut, 2);
        line.set(slow);
        arrive(&mut line, now + 20 * MS, 1, b"c");
        assert_eq!(departed(&mut line, now + 40 * MS), b"c");
        assert_balanced(&line);
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let now = Instant::now();
        let faults = Faults {
            delay: MS,
            duplication: Chance::percent(50),
            ..Faults::default()
        };
        let mut line = line(1, faults);
        for _ in 0..2 * QUEUE_DATAGRAMS_MAX {
            arrive(&mut line, now, 1, b"x");
        }
        assert_eq!(line.under_way(), QUEUE_DATAGRAMS_MAX as u64);
        assert!(line.counts().overflowed > 0);
        assert_balanced(&line);
    }
}
