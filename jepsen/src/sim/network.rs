//! The model network: who can reach whom, and what happens to a message on the way.

use super::rng::Rng;
use super::wire::Stream;
use std::fmt;

/// A process that sends and receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Actor {
    Node(usize),
    Edge(usize),
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => write!(f, "n{node}"),
            Self::Edge(edge) => write!(f, "e{edge}"),
        }
    }
}

/// What the links do to messages; rates in 1/1000.
#[derive(Clone, Copy, Debug)]
pub(super) struct Profile {
    pub(super) loss: u64,
    pub(super) duplication: u64,
    /// Messages that take `slow_ms` instead: they arrive after later ones.
    pub(super) slow: u64,
    pub(super) delay_ms: (u64, u64),
    pub(super) slow_ms: (u64, u64),
}

impl Profile {
    /// Whether it is a healthy network's, however long its links are.
    pub(super) fn is_clean(&self) -> bool {
        (self.loss, self.duplication, self.slow) == (0, 0, 0)
    }

    /// A healthy network.
    pub(super) const CLEAN: Self = Self {
        loss: 0,
        duplication: 0,
        slow: 0,
        delay_ms: (1, 4),
        slow_ms: (0, 0),
    };
}

/// See the module's text.
pub(super) struct Network {
    pub(super) profile: Profile,
    nodes: usize,
    actors: usize,
    /// How many cuts forbid each direction.
    cuts: Vec<u32>,
    /// Messages of a link arrive in the order they were sent, on each of its streams: in runs without faults.
    in_order: bool,
    /// When the last message of each direction and stream arrives.
    last: Vec<u64>,
}

impl Network {
    pub(super) fn new(nodes: usize, edges: usize, profile: Profile) -> Self {
        let actors = nodes + edges;
        Self {
            profile,
            nodes,
            actors,
            cuts: vec![0; actors * actors],
            in_order: profile.is_clean(),
            last: vec![0; actors * actors * Stream::COUNT],
        }
    }

    fn at(&self, from: Actor, to: Actor) -> usize {
        let number = |actor| match actor {
            Actor::Node(node) => node,
            Actor::Edge(edge) => self.nodes + edge,
        };
        number(from) * self.actors + number(to)
    }

    pub(super) fn cut(&mut self, links: &[(Actor, Actor)]) {
        for (from, to) in links {
            let at = self.at(*from, *to);
            self.cuts[at] += 1;
        }
    }

    pub(super) fn mend(&mut self, links: &[(Actor, Actor)]) {
        for (from, to) in links {
            let at = self.at(*from, *to);
            self.cuts[at] = self.cuts[at].saturating_sub(1);
        }
    }

    /// Everything reaches everything again, without faults.
    pub(super) fn heal(&mut self) {
        self.cuts.fill(0);
        self.profile = Profile::CLEAN;
    }

    pub(super) fn reaches(&self, from: Actor, to: Actor) -> bool {
        from == to || self.cuts[self.at(from, to)] == 0
    }

    /// Delays after which a message sent now arrives: none, one, or two of them.
    pub(super) fn send(
        &mut self,
        rng: &mut Rng,
        now: u64,
        (from, to): (Actor, Actor),
        stream: Stream,
    ) -> [Option<u64>; 2] {
        if from == to {
            return [Some(0), None];
        }
        if !self.reaches(from, to) || rng.chance(self.profile.loss) {
            return [None, None];
        }
        let mut first = self.delay(rng);
        let second = rng
            .chance(self.profile.duplication)
            .then(|| self.delay(rng));
        if self.in_order {
            let at = self.at(from, to) * Stream::COUNT + stream as usize;
            self.last[at] = self.last[at].max(now + first);
            first = self.last[at] - now;
        }
        [Some(first), second]
    }

    fn delay(&self, rng: &mut Rng) -> u64 {
        let slow = rng.chance(self.profile.slow);
        let (low, high) = if slow {
            self.profile.slow_ms
        } else {
            self.profile.delay_ms
        };
        rng.between(low, high)
    }
}
