//! The scenarios: the plan of a seed, takeovers one by one, all links cut, an isolated follower that returns, and none
//! of that.
//!
//! Owns: what is done between the start and the judgement of a run, and findings of a scenario's own. Read next:
//! `run.rs` for the frame around them.

use super::checker::Finding;
use super::checker::cut::{Cut, held_while_cut};
use super::checker::usable::used_before_refused;
use super::clients::AskingAside;
use super::cluster::until;
use super::evidence::Recovery;
use super::nemesis::{PROBE_CUSTOMERS, service};
use super::plan::{EDGES, Plan, Target, Way};
use super::run::{Options, Run, Verdict};
use std::sync::Arc;
use std::time::Duration;
use tollgate::output::Failure;

/// Fresh customers of the probe of a takeover. That all of them miss the slots of one of three nodes happens once in
/// 16,000 takeovers.
const TAKEOVER_CUSTOMERS: usize = 24;

/// Longest median time of a takeover, in microseconds.
const TAKEOVER_MEDIAN_US_MAX: u64 = 1_000_000;

/// Longest time of a takeover, in microseconds.
const TAKEOVER_WORST_US_MAX: u64 = 2_000_000;

/// Time under load in which the edges learn what demand the hot customer has.
const WARM_UP: Duration = Duration::from_secs(8);

/// Time under load between two takeovers.
const BETWEEN_TAKEOVERS: Duration = Duration::from_secs(2);

/// How long links are cut, or a node is.
const CUT: Duration = Duration::from_secs(3);

/// Plays the plan of a seed.
///
/// # Errors
/// [`Failure`] when the run cannot be judged.
pub async fn full(mut options: Options, plan: &Plan) -> Result<Verdict, Failure> {
    // Two probes a round, and one before and after.
    options.fresh = (2 * plan.rounds.len() + 2) * PROBE_CUSTOMERS;
    let mut run = Run::start(options).await?;
    run.nemesis.play(&mut run.cluster, plan).await?;
    run.finish(Vec::new(), plan.kills()).await
}

/// Kills the leader, then an issuer, each `rounds` times, and measures how long leases stay away.
///
/// # Errors
/// [`Failure`] when the run cannot be judged.
pub async fn takeover(mut options: Options, rounds: u64) -> Result<Verdict, Failure> {
    let probes = 2 * usize::try_from(rounds).unwrap_or(0) + 1;
    options.fresh = probes * (TAKEOVER_CUSTOMERS + PROBE_CUSTOMERS) + PROBE_CUSTOMERS;
    let mut run = Run::start(options).await?;
    tokio::time::sleep(WARM_UP).await;
    let mut findings = Vec::new();
    for (role, promise) in [
        (
            Target::Leader,
            "the leader's death: first leases from the new issuer, median <= 1 s, worst <= 2 s",
        ),
        (
            Target::Issuer,
            "an issuer's death: first leases from the new issuer, median <= 1 s, worst <= 2 s",
        ),
    ] {
        let mut finding = Finding::new(promise);
        let mut times = Vec::new();
        for round in 1..=rounds {
            match take_over(&mut run, role, round).await? {
                Some(took) => times.push(took),
                None => finding.violation(format!("round {round}: no lease at all")),
            }
        }
        judge_takeovers(&mut finding, times);
        findings.push(finding);
    }
    let hot = hot(&run);
    let mut verdict = run.finish(vec![hot], 2 * rounds).await?;
    verdict.add(findings);
    Ok(verdict)
}

async fn take_over(run: &mut Run, role: Target, round: u64) -> Result<Option<u64>, Failure> {
    tokio::time::sleep(BETWEEN_TAKEOVERS).await;
    let standing = run.all_owned().await?;
    let node = run.nemesis.find(&run.cluster, role).await?;
    let slots = standing.slots.get(&node).copied().unwrap_or(0);
    if slots == 0 {
        return Err(Failure::failed(format!(
            "node {node} issues no slot: nothing to take over"
        )));
    }
    run.cluster.kill_node(node)?;
    match role {
        Target::Leader => run.nemesis.kills.leader += 1,
        _ => run.nemesis.kills.follower += 1,
    }
    let from_us = run
        .nemesis
        .did(format!("kill -9 of the {role}, node-{node}, {slots} slots"));
    let edges = run.cluster.running_edges();
    let probe = run.nemesis.probe(&edges, TAKEOVER_CUSTOMERS);
    let served = probe.await.map_err(Failure::failed)?;
    let took = served.map(|served| served.saturating_sub(from_us));
    run.nemesis.did(match took {
        Some(took) => format!("leases of all slots again after {} ms", took / 1_000),
        None => "no leases of all slots until the runner gave up".to_owned(),
    });
    let recovery = |from: String, from_us, took_us| Recovery {
        round,
        from,
        from_us,
        majority_lost: false,
        took_us,
    };
    run.nemesis
        .recoveries
        .push(recovery(format!("the kill of node-{node}"), from_us, took));
    run.cluster.start_node(node)?;
    let from_us = run.nemesis.did(format!("node-{node} started"));
    // It issues nothing until another node dies: slots are not moved without need. But it must vote and apply again.
    until("the restarted node has caught up", || async {
        let leader = run.cluster.leader().await?;
        let returned = run.cluster.standing(node).await?;
        (returned.ledger_index >= leader.ledger_index).then_some(())
    })
    .await?;
    let subjects = run.nemesis.fresh(PROBE_CUSTOMERS);
    let back = service(Arc::clone(&run.recorder), edges, subjects).await;
    let took_us = back.map(|back| back.saturating_sub(from_us));
    run.nemesis.recoveries.push(recovery(
        format!("the start of node-{node}"),
        from_us,
        took_us,
    ));
    run.cluster.must_run()?;
    Ok(took)
}

fn judge_takeovers(finding: &mut Finding, mut times: Vec<u64>) {
    times.sort_unstable();
    let (Some(median), Some(worst)) = (times.get(times.len() / 2), times.last()) else {
        finding.measured = "none was measured".to_owned();
        return;
    };
    if *median > TAKEOVER_MEDIAN_US_MAX {
        finding.violation(format!("the median is {} ms", median / 1_000));
    }
    if *worst > TAKEOVER_WORST_US_MAX {
        finding.violation(format!("the worst is {} ms", worst / 1_000));
    }
    finding.measured = format!(
        "{} kills: median {} ms, worst {} ms, until fresh customers of all slots were admitted at both edges",
        times.len(),
        median / 1_000,
        worst / 1_000
    );
}

/// Cuts all links between edges and nodes for three seconds, `rounds` times.
///
/// # Errors
/// [`Failure`] when the run cannot be judged.
pub async fn cut(mut options: Options, rounds: u64) -> Result<Verdict, Failure> {
    let probes = usize::try_from(rounds).unwrap_or(0) + 2;
    options.fresh = probes * PROBE_CUSTOMERS;
    let mut run = Run::start(options).await?;
    let asking = AskingAside::start(&run.recorder);
    let mut cuts = Vec::new();
    for round in 1..=rounds {
        tokio::time::sleep(WARM_UP).await;
        for edge in 1..=EDGES {
            run.cluster.cut_edge(edge, None, Way::Both);
        }
        let cut_us = run
            .nemesis
            .did("all links between edges and nodes are cut".to_owned());
        tokio::time::sleep(CUT).await;
        cuts.push(Cut {
            from_us: cut_us,
            to_us: run.recorder.now_us(),
        });
        run.cluster.heal();
        let from_us = run.nemesis.did("healed".to_owned());
        let edges = run.cluster.running_edges();
        let probe = run.nemesis.probe(&edges, PROBE_CUSTOMERS);
        let served = probe.await.map_err(Failure::failed)?;
        let took_us = served.map(|served| served.saturating_sub(from_us));
        let from = "the healing".to_owned();
        run.nemesis.did(format!(
            "fresh customers {} ms after it",
            took_us.unwrap_or(0) / 1_000
        ));
        let recovery = Recovery {
            round,
            from,
            from_us,
            majority_lost: false,
            took_us,
        };
        run.nemesis.recoveries.push(recovery);
        run.cluster.must_run()?;
    }
    let asides = asking.stop().await;
    let hot = hot(&run);
    let recorder = Arc::clone(&run.recorder);
    let mut verdict = run.finish(vec![hot], 0).await?;
    let edges = u32::try_from(EDGES).unwrap_or(u32::MAX);
    let held = held_while_cut(&recorder.history(), &asides, hot, &cuts, edges);
    verdict.add(vec![held]);
    Ok(verdict)
}

/// Cuts a follower from the other nodes for three seconds, `rounds` times, and lets it return.
///
/// # Errors
/// [`Failure`] when the run cannot be judged.
pub async fn rejoin(mut options: Options, rounds: u64) -> Result<Verdict, Failure> {
    let probes = usize::try_from(rounds).unwrap_or(0) + 2;
    options.fresh = probes * PROBE_CUSTOMERS;
    let mut run = Run::start(options).await?;
    let mut finding = Finding::new("an isolated follower that returns deposes nobody");
    for round in 1..=rounds {
        let before = run.all_owned().await?;
        let node = run.nemesis.find(&run.cluster, Target::Follower).await?;
        run.cluster.isolate(node);
        run.nemesis.did(format!(
            "node-{node} is cut from the others; node-{} leads in term {}",
            before.node, before.term
        ));
        tokio::time::sleep(CUT).await;
        run.cluster.heal();
        let from_us = run.nemesis.did("healed".to_owned());
        let (leader, returned) = until("the follower has caught up", || async {
            let leader = run.cluster.leader().await?;
            let returned = run.cluster.standing(node).await?;
            let follows = returned.leader == Some(leader.node);
            (follows && returned.ledger_index >= leader.ledger_index).then_some((leader, returned))
        })
        .await?;
        let took_us = run.recorder.now_us().saturating_sub(from_us);
        run.nemesis.did(format!(
            "node-{node} has caught up after {} ms; node-{} leads in term {}",
            took_us / 1_000,
            leader.node,
            leader.term
        ));
        if (leader.node, leader.term, returned.term) != (before.node, before.term, before.term) {
            finding.violation(format!(
                "round {round}: node {} led in term {}; after the return of node {node} node {} leads in term {}",
                before.node, before.term, leader.node, leader.term
            ));
        }
        let from = format!("the return of node-{node}");
        let took_us = Some(took_us);
        let recovery = Recovery {
            round,
            from,
            from_us,
            majority_lost: false,
            took_us,
        };
        run.nemesis.recoveries.push(recovery);
        run.cluster.must_run()?;
    }
    finding.measured = format!("{rounds} returns");
    let mut verdict = run.finish(Vec::new(), 0).await?;
    verdict.add(vec![finding]);
    Ok(verdict)
}

/// Lets clients use up quotas at both edges while nothing is wrong.
///
/// # Errors
/// [`Failure`] when the run cannot be judged.
pub async fn healthy(mut options: Options, time: Duration) -> Result<Verdict, Failure> {
    options.fresh = 2 * PROBE_CUSTOMERS;
    let run = Run::start(options).await?;
    tokio::time::sleep(time).await;
    let hot = hot(&run);
    let recorder = Arc::clone(&run.recorder);
    let mut verdict = run.finish(vec![hot], 0).await?;
    let workload = &recorder.workload;
    let (subjects, accounts) = (workload.subjects(), &workload.accounts);
    let raised: Vec<u32> = workload
        .raised
        .iter()
        .filter_map(|account| u32::try_from(*account).ok())
        .collect();
    let used = used_before_refused(&subjects, accounts, &raised, &recorder.history());
    verdict.add(vec![used]);
    Ok(verdict)
}

fn hot(run: &Run) -> u32 {
    u32::try_from(run.recorder.workload.hot).unwrap_or(u32::MAX)
}
