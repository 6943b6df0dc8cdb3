//! One run from start to judgement: cluster up, catalog in, load on, whatever a scenario does, calm, ledger read, judged.
//!
//! Owns: the order of these, and what is kept in the run's folder. Scenarios are in `scenarios.rs`.

use super::changes::AtWork;
use super::checker::{self, Finding};
use super::clients::{Load, Recorder};
use super::cluster::{Cluster, Standing, until};
use super::evidence::Evidence;
use super::kept;
use super::nemesis::{Deed, Nemesis, PROBE_CUSTOMERS, Tell};
use super::workload::Workload;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tollgate::local_cluster::{EDGES, NODES};
use tollgate::output::Failure;

/// The edges' `journal_interval`, in microseconds: the default, as no configuration here changes it.
const JOURNAL_INTERVAL_US: u64 = 1_000_000;

/// The edges' `max_stale`, in microseconds: the default.
const MAX_STALE_US: u64 = 30_000_000;

/// How long clients go on after everything is repaired, so that what should have settled down is seen.
const CALM: Duration = Duration::from_secs(3);

/// Slots of a cluster: every one needs an owner.
const SLOTS: u64 = 1_024;

/// What a run is told.
pub struct Options {
    /// Everything is drawn from it.
    pub seed: u64,
    /// The `tollgate` binary.
    pub binary: PathBuf,
    /// The run's folder, empty.
    pub dir: PathBuf,
    /// Where lines for people go.
    pub tell: Tell,
    /// Customers kept for probes.
    pub fresh: usize,
}

/// A run under way.
pub struct Run {
    /// The processes.
    pub cluster: Cluster,
    /// The clients.
    pub recorder: Arc<Recorder>,
    /// What is done to the processes.
    pub nemesis: Nemesis,
    dir: PathBuf,
    load: Option<Load>,
    administrator: Option<AtWork>,
}

/// What came of it.
#[derive(Debug, Serialize)]
pub struct Verdict {
    /// One per promise.
    pub findings: Vec<Finding>,
    /// Whether all held.
    pub holds: bool,
    /// What was done, when.
    pub timeline: Vec<Deed>,
    /// Datagrams by what the proxies did to them.
    pub datagrams: BTreeMap<&'static str, u64>,
    /// How long the run took, in seconds.
    pub seconds: u64,
    /// Operations in the history.
    pub operations: usize,
}

impl Verdict {
    /// Adds a scenario's own findings, in front.
    pub fn add(&mut self, findings: Vec<Finding>) {
        self.holds &= findings.iter().all(|finding| finding.violated == 0);
        self.findings.splice(0..0, findings);
    }
}

impl Run {
    /// Starts everything and puts it under load.
    ///
    /// # Errors
    /// [`Failure`] naming what did not come up.
    pub async fn start(options: Options) -> Result<Self, Failure> {
        let Options {
            seed,
            binary,
            dir,
            tell,
            fresh,
        } = options;
        let cluster = Cluster::prepare(&dir, &binary, seed).await?;
        let recorder = Arc::new(Recorder::new(Workload::new(seed, fresh), cluster.http()));
        let nemesis = Nemesis::new(Arc::clone(&recorder), tell);
        let mut run = Self {
            cluster,
            recorder,
            nemesis,
            dir,
            load: None,
            administrator: None,
        };
        for node in (1..).take(NODES) {
            run.cluster.start_node(node)?;
        }
        run.all_owned().await?;
        for file in run.recorder.workload.files() {
            run.cluster.apply(&file).await?;
        }
        for edge in (1..).take(EDGES) {
            run.cluster.start_edge(edge)?;
        }
        run.nemesis.did("three nodes and two edges run".to_owned());
        run.serves().await?;
        run.load = Some(Load::start(&run.recorder, seed));
        let admin = run.cluster.admin().clone();
        run.administrator = Some(AtWork::start(&run.recorder, admin, seed));
        run.nemesis.did("all is served; the load begins".to_owned());
        Ok(run)
    }

    /// Waits until a leader is known and every slot has an owner that runs.
    ///
    /// # Errors
    /// [`Failure`] when that does not come, or a process ends by itself.
    pub async fn all_owned(&mut self) -> Result<Standing, Failure> {
        let owned = until("every slot has an issuer", || async {
            let leader = self.cluster.leader().await?;
            let running = self.cluster.running_nodes();
            let slots = leader
                .slots
                .iter()
                .filter(|(node, _)| running.contains(node));
            (slots.map(|(_, count)| count).sum::<u64>() == SLOTS).then_some(leader)
        })
        .await;
        self.cluster.must_run()?;
        owned
    }

    /// Waits until fresh customers are admitted at every edge that runs.
    ///
    /// # Errors
    /// [`Failure`] when that does not come, or a process ends by itself.
    pub async fn serves(&mut self) -> Result<(), Failure> {
        let edges = self.cluster.running_edges();
        let probe = self.nemesis.probe(&edges, PROBE_CUSTOMERS);
        let served = probe.await.map_err(Failure::failed)?;
        self.cluster.must_run()?;
        match served {
            Some(_) => Ok(()),
            None => Err(Failure::failed(
                "fresh customers are not admitted although all is up",
            )),
        }
    }

    /// Lets everything settle down, ends it, reads the ledger and judges.
    ///
    /// * `held`: subjects whose checks must never have been refused.
    /// * `kills_planned`: kills the scenario wanted.
    ///
    /// # Errors
    /// [`Failure`] when the run cannot be judged.
    pub async fn finish(mut self, held: Vec<u32>, kills_planned: u64) -> Result<Verdict, Failure> {
        self.cluster.heal();
        self.serves().await?;
        let calm_from_us = self
            .nemesis
            .did("all is repaired; clients go on for a while".to_owned());
        // The administrator ends first, so that what its last raise gave must be had.
        let mut changes = Vec::new();
        if let Some(administrator) = self.administrator.take() {
            changes = administrator.stop().await?;
        }
        tokio::time::sleep(CALM).await;
        if let Some(load) = self.load.take() {
            load.stop().await;
        }
        let mut troubles = Vec::new();
        for edge in self.cluster.running_edges() {
            if let Err(failure) = self.cluster.stop_edge(u64::from(edge)).await {
                troubles.push(failure.message);
            }
        }
        self.nemesis.did("load and edges ended".to_owned());
        let nodes = self.agreed().await;
        for node in &nodes {
            if node.suspense > 0 {
                troubles.push(format!(
                    "node {}: {} units in suspense",
                    node.node, node.suspense
                ));
            }
        }
        let mut evidence = Evidence {
            subjects: self.recorder.workload.subjects(),
            accounts: self.recorder.workload.accounts.clone(),
            ledger: self.cluster.accounts().await?,
            usage: self.cluster.usage().await?,
            edge_crashes: self.nemesis.edge_crashes.clone(),
            journal_interval_us: JOURNAL_INTERVAL_US,
            max_stale_us: MAX_STALE_US,
            changes,
            nodes: nodes.iter().map(Standing::end).collect(),
            recoveries: self.nemesis.recoveries.clone(),
            calm_from_us,
            kills: self.nemesis.kills,
            kills_planned,
            held_subjects: held,
            troubles,
        };
        for node in self.cluster.running_nodes() {
            if let Err(failure) = self.cluster.stop_node(node).await {
                evidence.troubles.push(failure.message);
            }
        }
        self.judge(&evidence)
    }

    /// All running nodes at one index, or as they stand when that never comes.
    async fn agreed(&self) -> Vec<Standing> {
        let agreed = until("one index", || async {
            let all = self.cluster.standings().await;
            let one = all
                .windows(2)
                .all(|pair| pair[0].ledger_index == pair[1].ledger_index);
            (one && all.len() == NODES).then_some(all)
        })
        .await;
        match agreed {
            Ok(all) => all,
            Err(_) => self.cluster.standings().await,
        }
    }

    fn judge(self, evidence: &Evidence) -> Result<Verdict, Failure> {
        let history = self.recorder.history();
        let seconds = self.recorder.now_us() / 1_000_000;
        kept::keep(&self.dir, evidence, &history)
            .map_err(|e| Failure::failed(format!("{}: {e}", self.dir.display())))?;
        let findings = checker::judge(evidence, &history);
        let holds = findings.iter().all(|finding| finding.violated == 0);
        Ok(Verdict {
            findings,
            holds,
            timeline: self.nemesis.timeline.clone(),
            datagrams: self.cluster.datagrams(),
            seconds,
            operations: history.len(),
        })
    }
}
