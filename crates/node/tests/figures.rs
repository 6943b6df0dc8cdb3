//! Figures of the commit path on this machine: three nodes in one process, one disk. Not a test: run it with
//! `cargo test --release -p tollgate-node --test figures -- --ignored --nocapture`.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "figures are printed"
)]

mod nodes;
mod toy;

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nodes::Cluster;
use tollgate_node::consensus::Consensus;
use tollgate_node::raft::Settings;

const MEASURED: Duration = Duration::from_secs(4);

/// Syncs of a file that just grew, per second: the disk's own rate.
fn bare_syncs() -> f64 {
    let dir = tempfile::tempdir().unwrap();
    let mut file = std::fs::File::create(dir.path().join("f")).unwrap();
    let began = Instant::now();
    let mut syncs = 0;
    while began.elapsed() < Duration::from_secs(2) {
        file.write_all(&[7; 512]).unwrap();
        file.sync_data().unwrap();
        syncs += 1;
    }
    f64::from(syncs) / began.elapsed().as_secs_f64()
}

async fn measure(callers: usize) {
    let cluster = Arc::new(Cluster::start(3, Settings::default()).await);
    let leader = cluster.leader_among(&[1, 2, 3]).await;
    cluster.write(leader, "k", "v").await;
    let counts = cluster.node(leader).store.flush_counts();
    let (done, stop) = (
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let before = (
        cluster.standing(leader).last_index,
        counts.syncs.load(Ordering::Relaxed),
    );
    let began = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for caller in 0..callers {
        let (cluster, done, stop) = (cluster.clone(), done.clone(), stop.clone());
        // A third of the callers sits on each node.
        let node = (leader + caller as u64) % 3 + 1;
        tasks.spawn(async move {
            let mut latencies = Vec::new();
            let mut number = caller as u64;
            while !stop.load(Ordering::Relaxed) {
                number = number
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                let key = format!("{:06}", (number >> 33) % 100_000);
                let sent = Instant::now();
                let command = toy::batch(&key, &[b'x'; 57]);
                Consensus::propose(&cluster.node(node).raft, command)
                    .await
                    .unwrap();
                latencies.push(sent.elapsed());
                done.fetch_add(1, Ordering::Relaxed);
            }
            latencies
        });
    }
    tokio::time::sleep(MEASURED).await;
    stop.store(true, Ordering::Relaxed);
    let seconds = began.elapsed().as_secs_f64();
    let commands = done.load(Ordering::Relaxed) as f64;
    let entries = (cluster.standing(leader).last_index - before.0) as f64;
    let syncs = (counts.syncs.load(Ordering::Relaxed) - before.1) as f64;
    let mut latencies: Vec<Duration> = tasks.join_all().await.into_iter().flatten().collect();
    latencies.sort_unstable();
    let at = |share: usize| latencies[latencies.len() * share / 1000];
    println!(
        "{callers:>5} callers: {:>8.0} commands/s, {:>6.0} entries/s, {:>6.1} commands/entry, {:>7.1} commands/sync \
         of the leader, p50 {:?}, p99 {:?}, p99.9 {:?}",
        commands / seconds,
        entries / seconds,
        commands / entries,
        commands / syncs,
        at(500),
        at(990),
        at(999),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "prints figures, proves nothing"]
async fn commands_per_second() {
    println!("bare fdatasync after a 512 B append: {:.0}/s", bare_syncs());
    for callers in [1, 64, 1024, 8192] {
        measure(callers).await;
    }
    println!("bare fdatasync after a 512 B append: {:.0}/s", bare_syncs());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "prints figures, proves nothing"]
async fn time_without_a_leader() {
    let mut cluster = Cluster::start(3, Settings::default()).await;
    let mut gaps = Vec::new();
    for _ in 0..10 {
        let leader = cluster.leader_among(&[1, 2, 3]).await;
        let other = leader % 3 + 1;
        cluster.write(other, "k", "v").await;
        cluster.isolate(leader);
        let cut = Instant::now();
        cluster.write(other, "k", "w").await;
        gaps.push(cut.elapsed());
        cluster.heal();
        cluster.equal_states(&[1, 2, 3]).await;
    }
    gaps.sort_unstable();
    println!("cut of the leader to the first write on the next: {gaps:?}");
    let leader = cluster.leader_among(&[1, 2, 3]).await;
    let heir = leader % 3 + 1;
    let began = Instant::now();
    cluster
        .node(leader)
        .raft
        .raft()
        .trigger()
        .transfer_leader(heir)
        .await
        .unwrap();
    while !cluster.standing(heir).is_leader {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    cluster.write(heir, "k", "x").await;
    println!(
        "planned transfer to the first write on the heir: {:?}",
        began.elapsed()
    );
    cluster.down(leader).await;
}
