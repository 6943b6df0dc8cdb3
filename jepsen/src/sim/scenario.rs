//! What one seed stands for: the size of the cluster, the limits, the load, and which faults are on.
//!
//! Swarm testing: each fault is on in about half of the runs, so that combinations of few faults occur as
//! often as of many. A seventh of the seeds runs without faults.

use super::network::Profile;
use super::rng::Rng;

/// The limits a run draws from.
const LIMITS: [u64; 6] = [1, 3, 100, 100, 1000, 1_000_000];

/// How long a message takes; there and back always less than a recall waits.
const DELAYS_MS: [(u64, u64); 3] = [(1, 4), (1, 20), (5, 80)];

/// Which faults a run has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    /// One node cut off from the other nodes; edges still reach it.
    IsolateNode,
    /// The leader cut off from the other nodes.
    IsolateLeader,
    /// The nodes fall into two halves.
    SplitNodes,
    /// An edge cut off from every node.
    CutEdge,
    /// An edge cut off from one node, perhaps in one direction only.
    CutLink,
    /// A node stops and starts again; what it had in memory is gone.
    CrashNode,
    /// An edge stops and starts again; what its journal had not synced is gone.
    CrashEdge,
    /// A slot is given to another node while its owner lives.
    ForceTakeover,
    /// Another leader, although the old one is well.
    ChangeLeader,
    /// A limit is raised or lowered.
    ChangeLimit,
    /// A node's replica falls behind for a while.
    LagReplica,
    /// Connections between an edge and a node break and come back.
    Reconnect,
    /// An edge hands everything in, closes its session and starts anew.
    LeaveEdge,
    /// A twin of an edge with a journal opens its session: the edge is fenced.
    FenceEdge,
    /// Nobody checks anything for longer than an account takes to be idle.
    Silence,
    /// An issuer takes units in, its answer is lost, and the slot moves.
    LoseSurrender,
}

const FAULTS: [Fault; 16] = [
    Fault::IsolateNode,
    Fault::IsolateLeader,
    Fault::SplitNodes,
    Fault::CutEdge,
    Fault::CutLink,
    Fault::CrashNode,
    Fault::CrashEdge,
    Fault::ForceTakeover,
    Fault::ChangeLeader,
    Fault::ChangeLimit,
    Fault::LagReplica,
    Fault::Reconnect,
    Fault::LeaveEdge,
    Fault::FenceEdge,
    Fault::Silence,
    Fault::LoseSurrender,
];

/// What the edges keep on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Journals {
    None,
    All,
    /// Edges of even number keep one.
    Half,
}

/// One limit of a customer.
#[derive(Clone, Copy, Debug)]
pub(super) struct LimitSpec {
    pub(super) quota: u64,
}

/// See the module's text.
#[derive(Clone, Debug)]
pub(super) struct Scenario {
    pub(super) seed: u64,
    pub(super) nodes: usize,
    pub(super) edges: usize,
    /// Customers with their limits.
    pub(super) customers: Vec<Vec<LimitSpec>>,
    pub(super) profile: Profile,
    pub(super) faults: Vec<Fault>,
    /// Pause from one fault to the next.
    pub(super) fault_gap_ms: (u64, u64),
    pub(super) journals: Journals,
    /// Pause from one check to the next, over all edges.
    pub(super) check_gap_ms: (u64, u64),
    /// Largest cost of a check as a part of the limit, in 1/1000; at least 1 unit.
    pub(super) cost_per_mille: u64,
    /// Checks go to this many edges most of the time.
    pub(super) hot_edges: usize,
    /// How often edges send reports.
    pub(super) report_spacing_ms: u64,
    /// How long the faults last.
    pub(super) run_ms: u64,
    /// At the end only one edge asks, and it finds what the others hold.
    pub(super) one_asks: bool,
    /// Some use is recorded without a lease.
    pub(super) debt: bool,
    /// Edges that crashed stay away for good.
    pub(super) edges_stay_dead: bool,
}

impl Scenario {
    /// The scenario of a seed.
    pub(super) fn draw(seed: u64) -> Self {
        let mut rng = Rng::stream(seed, "scenario");
        let calm = rng.chance(150);
        let faults: Vec<Fault> = FAULTS
            .iter()
            .copied()
            .filter(|fault| !calm && is_on(&mut rng, *fault))
            .collect();
        let edges = match rng.below(10) {
            0..=5 => rng.between(1, 4),
            6..=8 => rng.between(4, 9),
            _ => rng.between(10, 20),
        };
        let edges = usize::try_from(edges).unwrap_or(1);
        let customers = (0..rng.between(1, 3))
            .map(|_| {
                let limits = rng.between(1, 2);
                (0..limits)
                    .map(|_| LimitSpec {
                        quota: rng.pick(&LIMITS),
                    })
                    .collect()
            })
            .collect();
        let gap = rng.pick(&[(5, 40), (20, 150), (50, 600)]);
        let fault_gap = rng.pick(&[(100, 800), (300, 2500), (1000, 5000)]);
        Self {
            seed,
            nodes: usize::try_from(rng.between(3, 5)).unwrap_or(3),
            edges,
            customers,
            profile: if calm {
                Profile {
                    delay_ms: rng.pick(&DELAYS_MS),
                    ..Profile::CLEAN
                }
            } else {
                draw_profile(&mut rng)
            },
            fault_gap_ms: fault_gap,
            journals: rng.pick(&[Journals::None, Journals::All, Journals::Half]),
            // Without faults it is races that go wrong, where limits come to their end: more load.
            check_gap_ms: if calm { (5, 40) } else { gap },
            cost_per_mille: rng.pick(&[0, 0, 10, 50, 200]),
            hot_edges: rng.index(edges) + 1,
            report_spacing_ms: rng.pick(&[500, 1000, 5000]),
            run_ms: rng.pick(&[8_000, 15_000, 30_000]),
            one_asks: rng.chance(500),
            debt: rng.chance(100),
            edges_stay_dead: rng.chance(200),
            faults,
        }
    }

    /// Whether nothing goes wrong in this run.
    pub(super) fn is_calm(&self) -> bool {
        self.faults.is_empty() && self.profile.loss == 0
    }

    /// Whether no message is lost or late, either: each stream keeps its order, an answer is back in 160 ms.
    pub(super) fn is_healthy(&self) -> bool {
        self.is_calm() && self.profile.is_clean()
    }

    /// Whether an edge keeps a journal.
    pub(super) fn has_journal(&self, edge: usize) -> bool {
        match self.journals {
            Journals::None => false,
            Journals::All => true,
            Journals::Half => edge.is_multiple_of(2),
        }
    }
}

fn is_on(rng: &mut Rng, fault: Fault) -> bool {
    match fault {
        Fault::Silence => rng.chance(120),
        _ => rng.chance(400),
    }
}

fn draw_profile(rng: &mut Rng) -> Profile {
    Profile {
        loss: rng.pick(&[0, 10, 50, 200]),
        duplication: rng.pick(&[0, 20, 100, 300]),
        slow: rng.pick(&[0, 20, 100]),
        delay_ms: rng.pick(&DELAYS_MS),
        slow_ms: rng.pick(&[(50, 300), (200, 3000)]),
    }
}
