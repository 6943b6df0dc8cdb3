//! The nemesis's plan: which faults, when, for how long, as data made from a seed.
//!
//! Owns: the draw, and how a plan reads. Pure: the same seed and number of kills give the same plan. A plan names
//! roles (the leader, an issuer), not processes: who holds them is found at the moment, and what was really done is
//! in the timeline of the run. Refuses: to do anything; `nemesis.rs` does.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Nodes of the cluster.
pub const NODES: u64 = 3;

/// Edges of the cluster.
pub const EDGES: u64 = 2;

/// Splitmix64 (Steele, Lea and Flood 2014): one number of state, the same everywhere.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A stream of a seed; streams of different names are unrelated.
    #[must_use]
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut random = Self(seed);
        Self(random.next().wrapping_add(stream))
    }

    /// 64 random bits.
    #[allow(
        clippy::should_implement_trait,
        reason = "it never ends, so it is no iterator"
    )]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high.saturating_sub(low) + 1)
    }

    /// A position in a list of `length`; 0 for an empty one.
    pub fn index(&mut self, length: usize) -> usize {
        let length = u64::try_from(length).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.next() % length).unwrap_or(0)
    }
}

/// Whom a fault hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// The Raft leader.
    Leader,
    /// A node that does not lead.
    Follower,
    /// The node that leases the hot customer's slot.
    Issuer,
    /// An edge, from 1.
    Edge(u64),
}

/// Which way a link is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// Both.
    Both,
    /// What the edge sends is lost.
    FromEdge,
    /// What the edge is sent is lost.
    ToEdge,
}

/// One fault; it lasts for the round's `hold_ms`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// `kill -9`, each a little after the one before; then started again in the same order.
    Kill {
        /// Whom. Roles are looked up one after the other, among those still alive.
        targets: Vec<Target>,
        /// Kill them once more, so long after their start: in the middle of their recovery.
        again_after_ms: Option<u64>,
    },
    /// The link between an edge and a node, or all links of the edge.
    CutEdge {
        /// The edge, from 1.
        edge: u64,
        /// The node, from 1; none: all of them.
        node: Option<u64>,
        /// Which way.
        way: Way,
    },
    /// A node is cut off from the other nodes; edges still reach it.
    Isolate(Target),
}

impl Fault {
    /// Processes that it kills.
    #[must_use]
    pub fn kills(&self) -> u64 {
        match self {
            Self::Kill {
                targets,
                again_after_ms,
            } => targets.len() as u64 * if again_after_ms.is_some() { 2 } else { 1 },
            Self::CutEdge { .. } | Self::Isolate(_) => 0,
        }
    }
}

/// What the links between edges and nodes do all through a round, cut or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Weather {
    /// Time each datagram takes, in milliseconds.
    pub delay_ms: u64,
    /// Time up to which one takes longer, in milliseconds.
    pub jitter_ms: u64,
    /// Of 100, so many are lost.
    pub loss_percent: u32,
    /// Of 100, so many come twice.
    pub duplication_percent: u32,
    /// Of 100, so many are held back until the next has passed.
    pub reordering_percent: u32,
}

/// One round: calm, fault, hold, repair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Round {
    /// Time without a fault before, in milliseconds.
    pub calm_ms: u64,
    /// The links' state.
    pub weather: Weather,
    /// What is done.
    pub fault: Fault,
    /// How long it lasts, in milliseconds.
    pub hold_ms: u64,
    /// Between two kills, and between two starts, of one fault, in milliseconds.
    pub stagger_ms: u64,
}

/// A plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// What it was made from.
    pub seed: u64,
    /// Its rounds, in order.
    pub rounds: Vec<Round>,
}

impl Plan {
    /// Draws rounds until they hold at least `kills` kills.
    #[must_use]
    pub fn new(seed: u64, kills: u64) -> Self {
        let mut random = Random::new(seed, 1);
        // Kinds are dealt from a shuffled deck, so that a run of its length has met each.
        let mut deck: Vec<u64> = Vec::new();
        let (mut rounds, mut planned) = (Vec::new(), 0);
        while planned < kills {
            if deck.is_empty() {
                deck = shuffled(&mut random);
            }
            let Some(kind) = deck.pop() else { break };
            let round = round(kind, &mut random);
            planned += round.fault.kills();
            rounds.push(round);
        }
        Self { seed, rounds }
    }

    /// Kills it holds.
    #[must_use]
    pub fn kills(&self) -> u64 {
        self.rounds.iter().map(|round| round.fault.kills()).sum()
    }
}

/// Kinds of rounds, each as often as it is to come up.
const DECK: [u64; 16] = [0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 8, 9, 10];

fn shuffled(random: &mut Random) -> Vec<u64> {
    let mut deck = DECK.to_vec();
    for last in (1..deck.len()).rev() {
        let other = random.index(last + 1);
        deck.swap(last, other);
    }
    deck
}

fn round(kind: u64, random: &mut Random) -> Round {
    let edge = random.between(1, EDGES);
    let node = random.between(1, NODES);
    let kill = |targets: &[Target]| Fault::Kill {
        targets: targets.to_vec(),
        again_after_ms: None,
    };
    let one_way = [Way::FromEdge, Way::ToEdge][random.index(2)];
    let cut = |node, way| Fault::CutEdge { edge, node, way };
    let isolated = [Target::Leader, Target::Follower, Target::Issuer][random.index(3)];
    let again = Some(random.between(20, 600));
    let (fault, hold) = match kind {
        0 => (kill(&[Target::Leader]), (50, 1_500)),
        1 => (kill(&[Target::Issuer]), (50, 1_500)),
        2 => (kill(&[Target::Follower]), (50, 1_500)),
        3 => (kill(&[Target::Edge(edge)]), (50, 1_000)),
        4 => (kill(&[Target::Leader, Target::Edge(edge)]), (50, 1_000)),
        // A majority is gone for a while.
        5 => (kill(&[Target::Leader, Target::Follower]), (100, 1_500)),
        6 => (
            kill(&[Target::Follower, Target::Follower, Target::Leader]),
            (100, 1_000),
        ),
        7 => {
            let targets = vec![Target::Leader];
            let fault = Fault::Kill {
                targets,
                again_after_ms: again,
            };
            (fault, (50, 500))
        }
        8 => (cut(None, Way::Both), (3_000, 3_000)),
        9 => (cut(Some(node), one_way), (500, 2_500)),
        _ => (Fault::Isolate(isolated), (500, 3_000)),
    };
    Round {
        calm_ms: random.between(200, 1_500),
        weather: weather(random),
        fault,
        hold_ms: random.between(hold.0, hold.1),
        stagger_ms: random.between(0, 200),
    }
}

fn weather(random: &mut Random) -> Weather {
    let mut percent = |most: u64| u32::try_from(random.between(0, most)).unwrap_or(0);
    let (loss_percent, duplication_percent, reordering_percent) =
        (percent(5), percent(10), percent(20));
    let fair = Weather::default();
    // A third of the rounds has clear links.
    match random.between(0, 2) {
        0 => fair,
        1 => Weather {
            delay_ms: random.between(1, 10),
            jitter_ms: random.between(0, 10),
            ..fair
        },
        _ => Weather {
            delay_ms: random.between(0, 20),
            jitter_ms: random.between(0, 20),
            loss_percent,
            duplication_percent,
            reordering_percent,
        },
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leader => f.write_str("leader"),
            Self::Follower => f.write_str("follower"),
            Self::Issuer => f.write_str("issuer"),
            Self::Edge(edge) => write!(f, "edge-{edge}"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill {
                targets,
                again_after_ms,
            } => {
                let names: Vec<String> = targets.iter().map(Target::to_string).collect();
                write!(f, "kill -9 {}", names.join(", "))?;
                match again_after_ms {
                    Some(ms) => write!(f, ", again {ms} ms after the start"),
                    None => Ok(()),
                }
            }
            Self::CutEdge { edge, node, way } => {
                match node {
                    Some(node) => write!(f, "cut edge-{edge} from node-{node}")?,
                    None => write!(f, "cut edge-{edge} from all nodes")?,
                }
                match way {
                    Way::Both => Ok(()),
                    Way::FromEdge => f.write_str(" (only what the edge sends)"),
                    Way::ToEdge => f.write_str(" (only what the edge is sent)"),
                }
            }
            Self::Isolate(target) => write!(f, "cut the {target} from the other nodes"),
        }
    }
}

impl fmt::Display for Weather {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::default() {
            return f.write_str("clear");
        }
        write!(f, "{}+{} ms", self.delay_ms, self.jitter_ms)?;
        for (percent, what) in [
            (self.loss_percent, "lost"),
            (self.duplication_percent, "doubled"),
            (self.reordering_percent, "reordered"),
        ] {
            if percent > 0 {
                write!(f, ", {percent} % {what}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "after {} ms {} for {} ms; links {}",
            self.calm_ms, self.fault, self.hold_ms, self.weather
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_comes_again_from_its_seed_and_not_from_another() {
        let plan = Plan::new(7, 50);
        assert_eq!(plan, Plan::new(7, 50));
        assert_ne!(plan, Plan::new(8, 50));
        assert!(plan.kills() >= 50 && plan.kills() < 50 + 6);
        // A longer plan begins like a shorter one.
        assert_eq!(
            Plan::new(7, 100).rounds[..plan.rounds.len()],
            plan.rounds[..]
        );
    }

    #[test]
    fn one_deck_holds_every_kind_of_fault() {
        let plan = Plan::new(3, 20);
        let has = |wanted: &dyn Fn(&Fault) -> bool| plan.rounds.iter().any(|r| wanted(&r.fault));
        for target in [Target::Leader, Target::Follower, Target::Issuer] {
            assert!(has(
                &|f| matches!(f, Fault::Kill { targets, .. } if targets[..] == [target])
            ));
        }
        assert!(has(&|f| matches!(
            f,
            Fault::Kill {
                again_after_ms: Some(_),
                ..
            }
        )));
        assert!(has(&|f| matches!(f, Fault::CutEdge { node: None, .. })));
        assert!(has(&|f| matches!(f, Fault::CutEdge { node: Some(_), .. })));
        assert!(has(&|f| matches!(f, Fault::Isolate(_))));
        let all =
            |f: &Fault| matches!(f, Fault::Kill { targets, .. } if targets.len() as u64 == NODES);
        assert!(has(&all));
    }

    #[test]
    fn a_round_reads_as_a_sentence() {
        let round = Round {
            calm_ms: 700,
            weather: Weather {
                delay_ms: 3,
                jitter_ms: 4,
                loss_percent: 2,
                ..Weather::default()
            },
            fault: Fault::CutEdge {
                edge: 2,
                node: Some(1),
                way: Way::ToEdge,
            },
            hold_ms: 900,
            stagger_ms: 0,
        };
        assert_eq!(
            round.to_string(),
            "after 700 ms cut edge-2 from node-1 (only what the edge is sent) for 900 ms; \
             links 3+4 ms, 2 % lost"
        );
    }
}
