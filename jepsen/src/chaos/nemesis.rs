//! Does what the plan says: finds who holds a role at the moment, kills, cuts, repairs, and measures the repairs.
//!
//! Owns: the timeline of what was really done, and the probes of service. Refuses: to choose; the plan did. A round
//! ends when service is back, so that each repair is measured by itself. Read next: `run.rs`.

use super::clients::Recorder;
use super::cluster::{Cluster, DEADLINE, until};
use super::evidence::{EdgeCrash, Kills, Recovery};
use super::history::Outcome;
use super::plan::{Fault, Plan, Round, Target, Weather};
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tollgate::output::Failure;

/// Fresh customers of one probe. Slots are spread evenly over three nodes, so that all of them miss the slots of one
/// node once in 130 probes.
pub const PROBE_CUSTOMERS: usize = 12;

/// Pause of a probe that was not admitted.
const ASK_AGAIN: Duration = Duration::from_millis(5);

/// Nodes that make a majority.
const MAJORITY: usize = 2;

/// Something that was done.
#[derive(Debug, Clone, Serialize)]
pub struct Deed {
    /// When, in microseconds since the run began.
    pub at_us: u64,
    /// What.
    pub what: String,
}

/// Where lines for people go.
pub type Tell = Arc<dyn Fn(String) + Send + Sync>;

/// The nemesis, with what it did.
pub struct Nemesis {
    recorder: Arc<Recorder>,
    tell: Tell,
    next_fresh: usize,
    /// What was done.
    pub timeline: Vec<Deed>,
    /// Kills of edges.
    pub edge_crashes: Vec<EdgeCrash>,
    /// Kills by role.
    pub kills: Kills,
    /// Measured repairs.
    pub recoveries: Vec<Recovery>,
}

/// A killed process, to be started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Node(u64),
    Edge(u64),
}

impl Nemesis {
    /// One that has done nothing yet.
    #[must_use]
    pub fn new(recorder: Arc<Recorder>, tell: Tell) -> Self {
        let next_fresh = recorder.workload.fresh.start;
        Self {
            recorder,
            tell,
            next_fresh,
            timeline: Vec::new(),
            edge_crashes: Vec::new(),
            kills: Kills::default(),
            recoveries: Vec::new(),
        }
    }

    /// Writes a deed down.
    pub fn did(&mut self, what: String) -> u64 {
        let at_us = self.recorder.now_us();
        (self.tell)(format!(
            "{:>9.3} s  {what}",
            Duration::from_micros(at_us).as_secs_f64()
        ));
        self.timeline.push(Deed { at_us, what });
        at_us
    }

    /// Customers that nobody has asked for, spread over slots; fewer when none are left.
    pub fn fresh(&mut self, count: usize) -> Vec<usize> {
        let from = self.next_fresh;
        self.next_fresh = (from + count).min(self.recorder.workload.fresh.end);
        (from..self.next_fresh).collect()
    }

    /// Asks for fresh customers at these edges until each was admitted once; when the last one was.
    pub fn probe(&mut self, edges: &[u32], customers: usize) -> JoinHandle<Option<u64>> {
        let subjects = self.fresh(customers);
        tokio::spawn(service(
            Arc::clone(&self.recorder),
            edges.to_vec(),
            subjects,
        ))
    }

    async fn recovered(
        &mut self,
        (round, from, from_us): (u64, String, u64),
        majority_lost: bool,
        probe: JoinHandle<Option<u64>>,
    ) -> Result<(), Failure> {
        let back_us = probe.await.map_err(Failure::failed)?;
        let took_us = back_us.map(|back_us| back_us.saturating_sub(from_us));
        let words = match took_us {
            Some(took) => format!("service {} ms after {from}", took / 1_000),
            None => format!("no service {} s after {from}", DEADLINE.as_secs()),
        };
        self.did(words);
        self.recoveries.push(Recovery {
            round,
            from,
            from_us,
            majority_lost,
            took_us,
        });
        Ok(())
    }

    /// Plays all rounds.
    ///
    /// # Errors
    /// [`Failure`] when a process ended by itself, or the cluster never came back.
    pub async fn play(&mut self, cluster: &mut Cluster, plan: &Plan) -> Result<(), Failure> {
        for (round, number) in plan.rounds.iter().zip(1..) {
            self.round(cluster, round, number).await?;
            cluster.must_run()?;
        }
        cluster.set_weather(Weather::default());
        Ok(())
    }

    async fn round(
        &mut self,
        cluster: &mut Cluster,
        round: &Round,
        number: u64,
    ) -> Result<(), Failure> {
        cluster.set_weather(round.weather);
        pause(round.calm_ms).await;
        self.did(format!(
            "round {number}: {}; links {}",
            round.fault, round.weather
        ));
        match &round.fault {
            Fault::Kill {
                targets,
                again_after_ms,
            } => {
                let victims = self.kill(cluster, targets, round, number).await?;
                self.restart(cluster, &victims, round, number, *again_after_ms)
                    .await
            }
            Fault::CutEdge { edge, node, way } => {
                cluster.cut_edge(*edge, *node, *way);
                pause(round.hold_ms).await;
                cluster.heal();
                let from_us = self.did("healed".to_owned());
                let edges = cluster.running_edges();
                let probe = self.probe(&edges, PROBE_CUSTOMERS);
                self.recovered((number, "the healing".to_owned(), from_us), false, probe)
                    .await
            }
            Fault::Isolate(target) => {
                let node = self.find(cluster, *target).await?;
                cluster.isolate(node);
                let from_us = self.did(format!("node-{node} is cut from the other nodes"));
                let edges = cluster.running_edges();
                let probe = self.probe(&edges, PROBE_CUSTOMERS);
                let from = format!("the cut of node-{node}");
                pause(round.hold_ms).await;
                self.recovered((number, from, from_us), false, probe)
                    .await?;
                cluster.heal();
                let from_us = self.did("healed".to_owned());
                let probe = self.probe(&edges, PROBE_CUSTOMERS);
                self.recovered((number, "the healing".to_owned(), from_us), false, probe)
                    .await
            }
        }
    }

    /// Kills, holds, and measures the takeover if a majority is left for one.
    async fn kill(
        &mut self,
        cluster: &mut Cluster,
        targets: &[Target],
        round: &Round,
        number: u64,
    ) -> Result<Vec<Victim>, Failure> {
        let mut victims = Vec::new();
        for target in targets {
            if !victims.is_empty() {
                pause(round.stagger_ms).await;
            }
            victims.push(self.kill_one(cluster, *target).await?);
        }
        let (edges, nodes) = (cluster.running_edges(), cluster.running_nodes());
        let of_nodes = victims
            .iter()
            .any(|victim| matches!(victim, Victim::Node(_)));
        let mut watch = None;
        if of_nodes && nodes.len() >= MAJORITY && !edges.is_empty() {
            let from_us = self.recorder.now_us();
            watch = Some((from_us, self.probe(&edges, PROBE_CUSTOMERS)));
        }
        pause(round.hold_ms).await;
        if let Some((from_us, probe)) = watch {
            let from = format!("the kill of {}", names(&victims));
            self.recovered((number, from, from_us), false, probe)
                .await?;
        }
        Ok(victims)
    }

    async fn kill_one(&mut self, cluster: &mut Cluster, target: Target) -> Result<Victim, Failure> {
        if let Target::Edge(edge) = target {
            cluster.kill_edge(edge)?;
            let at_us = self.did(format!("kill -9 of edge-{edge}"));
            let edge_number = u32::try_from(edge).unwrap_or(u32::MAX);
            self.edge_crashes.push(EdgeCrash {
                edge: edge_number,
                at_us,
            });
            self.kills.edge += 1;
            return Ok(Victim::Edge(edge));
        }
        let node = self.find(cluster, target).await?;
        let leads = cluster
            .leader()
            .await
            .is_some_and(|leader| leader.node == node);
        cluster.kill_node(node)?;
        let role = if leads { "the leader" } else { "not leading" };
        self.did(format!("kill -9 of node-{node}, {role}"));
        if leads {
            self.kills.leader += 1;
        } else {
            self.kills.follower += 1;
        }
        Ok(Victim::Node(node))
    }

    /// Starts the victims in their order, kills and starts them once more if asked to, and waits for service.
    async fn restart(
        &mut self,
        cluster: &mut Cluster,
        victims: &[Victim],
        round: &Round,
        number: u64,
        again_after_ms: Option<u64>,
    ) -> Result<(), Failure> {
        let mut from = self.start(cluster, victims, round).await?;
        if let Some(ms) = again_after_ms {
            pause(ms).await;
            for victim in victims {
                match victim {
                    Victim::Node(node) => {
                        let leader = cluster.leader().await;
                        cluster.kill_node(*node)?;
                        if leader.is_some_and(|leader| leader.node == *node) {
                            self.kills.leader += 1;
                        } else {
                            self.kills.follower += 1;
                        }
                        self.did(format!("kill -9 of node-{node} again"));
                    }
                    Victim::Edge(edge) => drop(self.kill_one(cluster, Target::Edge(*edge)).await?),
                }
            }
            pause(round.hold_ms).await;
            from = self.start(cluster, victims, round).await?;
        }
        let (from, from_us, majority_lost) = from;
        let edges = cluster.running_edges();
        let probe = self.probe(&edges, PROBE_CUSTOMERS);
        self.recovered((number, from, from_us), majority_lost, probe)
            .await
    }

    /// Starts the victims; what the repair counts from: the start that restores a majority, or the last one.
    async fn start(
        &mut self,
        cluster: &mut Cluster,
        victims: &[Victim],
        round: &Round,
    ) -> Result<(String, u64, bool), Failure> {
        let majority_lost = cluster.running_nodes().len() < MAJORITY;
        let mut from = (String::new(), self.recorder.now_us(), majority_lost);
        for (n, victim) in victims.iter().enumerate() {
            if n > 0 {
                pause(round.stagger_ms).await;
            }
            let had = cluster.running_nodes().len();
            match victim {
                Victim::Node(node) => cluster.start_node(*node)?,
                Victim::Edge(edge) => cluster.start_edge(*edge)?,
            }
            let name = names(&[*victim]);
            let at_us = self.did(format!("{name} started"));
            let restores = had < MAJORITY && cluster.running_nodes().len() == MAJORITY;
            // An edge that starts later is asked too, so the time then counts from its start.
            if !majority_lost || restores || matches!(victim, Victim::Edge(_)) {
                from = (format!("the start of {name}"), at_us, majority_lost);
            }
        }
        Ok(from)
    }

    /// Who holds a role; a node that runs, whatever happens, so that a plan always does its kills.
    ///
    /// # Errors
    /// [`Failure`] when no node runs, or a majority elects no leader.
    pub async fn find(&mut self, cluster: &Cluster, target: Target) -> Result<u64, Failure> {
        let running = cluster.running_nodes();
        let first = running.first().copied();
        let Some(first) = first else {
            return Err(Failure::failed(format!(
                "no node is left to be the {target}"
            )));
        };
        if target == Target::Leader {
            let known = cluster.leader().await;
            let can_elect = running.len() >= MAJORITY;
            return match known {
                Some(leader) => Ok(leader.node),
                None if can_elect => {
                    until("a leader", || async {
                        cluster.leader().await.map(|l| l.node)
                    })
                    .await
                }
                None => Ok(first),
            };
        }
        let leader = cluster.leader().await;
        let others = |node: &&u64| leader.as_ref().is_none_or(|leader| leader.node != **node);
        let followers: Vec<u64> = running.iter().filter(others).copied().collect();
        let slots = |node: u64| {
            let slots = leader.as_ref().map(|leader| &leader.slots);
            slots
                .and_then(|slots| slots.get(&node))
                .copied()
                .unwrap_or(0)
        };
        // The role of an issuer is shared by all nodes: the busiest of those that do not lead stands for it.
        let chosen = match target {
            Target::Issuer => followers.iter().max_by_key(|node| slots(**node)),
            _ => followers.first(),
        };
        Ok(chosen.copied().unwrap_or(first))
    }
}

/// Asks each subject, at the edges in turn, until it is admitted; when the last of them was. None when that takes
/// longer than [`DEADLINE`], or when there is nobody to ask for.
pub async fn service(
    recorder: Arc<Recorder>,
    edges: Vec<u32>,
    subjects: Vec<usize>,
) -> Option<u64> {
    let deadline = Instant::now() + DEADLINE;
    let mut probes = JoinSet::new();
    for (subject, edge) in subjects.into_iter().zip(edges.into_iter().cycle()) {
        let recorder = Arc::clone(&recorder);
        probes.spawn(async move {
            let mut asker = recorder.asker(edge);
            while Instant::now() < deadline {
                if recorder.ask(&mut asker, subject, 1).await == Outcome::Ok {
                    return Some(recorder.now_us());
                }
                tokio::time::sleep(ASK_AGAIN).await;
            }
            None
        });
    }
    let mut last = None;
    while let Some(probe) = probes.join_next().await {
        last = last.max(Some(probe.ok()??));
    }
    last
}

fn names(victims: &[Victim]) -> String {
    let name = |victim: &Victim| match victim {
        Victim::Node(node) => format!("node-{node}"),
        Victim::Edge(edge) => format!("edge-{edge}"),
    };
    victims.iter().map(name).collect::<Vec<_>>().join(", ")
}

async fn pause(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}
