//! The commit path: what three nodes get agreed on and synced, beside the disk's own syncs and etcd.
//!
//! `cargo bench -p tollgate-benches --bench commit` prints all of it in one run; `... -- positions`,
//! `... -- etcd`, `... -- cold` one part; `... -- positions 8192` one row, for a profiler. It exits with 1
//! where a goal of a part that ran is missed, and names it; docs/benches.md says what the figures mean. Etcd
//! is left out, with the reason, where its binary is not installed: its goal is missed then.
//! Read next: `cluster.rs` (ours), `etcd.rs` (theirs), `cold.rs` (a key never seen).
#![allow(clippy::print_stdout, reason = "a bench prints its table")]
#![allow(clippy::unwrap_used, reason = "a bench fails by panicking")]

use std::time::Duration;

mod cluster;
mod cold;
mod etcd;
mod load;
mod place;
mod positions;

use tollgate_benches::goals::Goals;
use tollgate_benches::machine;

use cluster::{Cluster, Counts, Prepared};
use etcd::{Etcd, Put, Skipped};
use load::{Latency, Measured, closed_loop, cpu_seconds};
use place::{Place, Syncs};
use positions::Issuer;

const PARTS: [&str; 3] = ["positions", "etcd", "cold"];
const CALLERS: [usize; 4] = [1, 64, 1024, 8192];
const CALLERS_MAX: usize = 8192;
const WARM_UP: Duration = Duration::from_millis(1500);
const MEASURED: Duration = Duration::from_secs(4);
/// Pairs of rounds against etcd, in turns, at [`CALLERS_MAX`].
const ROUNDS: usize = 5;

/// Commands of one entry of the log, at so many callers.
const GOAL_PER_ENTRY: (usize, f64) = (1024, 100.0);

/// Commands for each of the leader's syncs, at so many callers.
const GOAL_PER_SYNC: (usize, f64) = (8192, 1000.0);

/// Commands per second as a multiple of etcd's puts, in turns at [`CALLERS_MAX`].
const GOAL_TIMES_ETCD: f64 = 12.0;

/// Threads of the runtime that nodes and callers share: two for each node.
const THREADS: usize = 6;

/// The product's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (parts, callers) = match words[..] {
        [] => (PARTS.as_slice(), None),
        [part] if PARTS.contains(&part) => (words.as_slice(), None),
        ["positions", callers] if callers.parse::<usize>().is_ok_and(|n| n <= CALLERS_MAX) => {
            (&words[..1], callers.parse().ok())
        }
        _ => {
            println!("usage: [positions [CALLERS] | etcd | cold], not {words:?}");
            std::process::exit(2);
        }
    };
    let place = match Place::new() {
        Ok(place) => place,
        Err(words) => {
            println!("{words}");
            std::process::exit(1);
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()
        .unwrap();
    println!("{}", machine::facts());
    println!("data on {}", place.filesystem());
    let before = place.bare_syncs();
    println!("bare fdatasync before: {}", words_of(&before));
    let goals = runtime.block_on(run(&place, parts, callers, &before));
    let after = place.bare_syncs();
    println!("\nbare fdatasync after:  {}", words_of(&after));
    println!("{}", machine::facts());
    println!("{goals}");
    if !goals.met() {
        // `exit` drops nothing, and this removes the data.
        drop(place);
        std::process::exit(1);
    }
}

async fn run(place: &Place, parts: &[&str], callers: Option<usize>, disk: &Syncs) -> Goals {
    let mut goals = Goals::default();
    let wanted = |part| parts.contains(&part);
    if wanted("positions") || wanted("etcd") {
        let cluster = Cluster::start(&Prepared::new(&place.path().join("nodes"))).await;
        positions::prepare(&cluster, CALLERS_MAX).await;
        let mut ours = Ours {
            callers: Issuer::all(&cluster, CALLERS_MAX),
            cluster,
        };
        if wanted("positions") {
            print_positions(&mut ours, callers, disk, &mut goals).await;
        }
        if wanted("etcd") {
            print_etcd(&mut ours, place, &mut goals).await;
        }
        ours.cluster.agrees().await;
        ours.cluster.stop().await;
    }
    if wanted("cold") {
        print_cold(&Prepared::new(&place.path().join("servers"))).await;
    }
    goals
}

fn words_of(syncs: &Syncs) -> String {
    format!(
        "{:.0}/s, p50 {:?}, p99 {:?}",
        syncs.per_second,
        syncs.latency.at(0.5),
        syncs.latency.at(0.99)
    )
}

/// The three nodes with one caller for each account.
struct Ours {
    cluster: Cluster,
    callers: Vec<Issuer>,
}

/// Counters and processor seconds at one moment.
type Sample = (Counts, f64);

impl Ours {
    /// Lets the first `count` callers propose; `at` moves them to one node.
    async fn measure(&mut self, count: usize, at: Option<usize>) -> Measured<Sample> {
        let mut callers: Vec<Issuer> = self.callers.drain(..count).collect();
        if let Some(at) = at {
            let node = &self.cluster.nodes()[at];
            callers = callers.into_iter().map(|caller| caller.at(node)).collect();
        }
        let leader = &self.cluster.nodes()[self.cluster.leader().await];
        let sample = || (leader.counts(), cpu_seconds(std::process::id()));
        let (measured, callers) = closed_loop(callers, (WARM_UP, MEASURED), sample).await;
        self.callers.extend(callers);
        measured
    }
}

async fn print_positions(ours: &mut Ours, only: Option<usize>, disk: &Syncs, goals: &mut Goals) {
    let sizes: Vec<usize> = ours.callers.iter().map(Issuer::command_bytes).collect();
    let sum: usize = sizes.iter().sum();
    println!(
        "\npositions of the ledger, {:.1} bytes on average ({} to {}), one account a caller, three nodes in one process",
        sum as f64 / sizes.len() as f64,
        sizes.iter().min().unwrap(),
        sizes.iter().max().unwrap(),
    );
    println!(
        "a caller sits on the node that is issuer of its account; counters are the leader's, CPU is that of all and the callers"
    );
    println!(
        "{:<20}{:>10}{:>10}{:>10}{:>10}{:>12}{:>9}{:>9}{:>9}{:>8}",
        "callers",
        "cmds/s",
        "/entry",
        "/flush",
        "/fdatasync",
        "/bare sync",
        "p50 ms",
        "p99 ms",
        "p99.9",
        "CPU us"
    );
    if let Some(count) = only {
        let measured = ours.measure(count, None).await;
        print_row(&count.to_string(), &measured, disk);
        return judge_row(count, &measured, goals);
    }
    let leader = ours.cluster.leader().await;
    let single = [
        ("1, at the leader", leader),
        ("1, at a follower", (leader + 1) % 3),
    ];
    for (name, at) in single {
        let measured = ours.measure(1, Some(at)).await;
        print_row(name, &measured, disk);
    }
    for count in &CALLERS[1..] {
        let measured = ours.measure(*count, None).await;
        print_row(&count.to_string(), &measured, disk);
        judge_row(*count, &measured, goals);
    }
}

/// The goals of a row, where it has one.
fn judge_row(callers: usize, measured: &Measured<Sample>, goals: &mut Goals) {
    let ((before, _), (after, _)) = &measured.samples;
    let done = measured.done as f64;
    let (at, least) = GOAL_PER_ENTRY;
    if callers == at {
        let found = done / (after.entries - before.entries) as f64;
        goals.at_least(&format!("commands per entry at {at} callers"), least, found);
    }
    let (at, least) = GOAL_PER_SYNC;
    if callers == at {
        let found = done / (after.syncs - before.syncs) as f64;
        goals.at_least(
            &format!("commands per fdatasync at {at} callers"),
            least,
            found,
        );
    }
}

fn print_row(name: &str, measured: &Measured<Sample>, disk: &Syncs) {
    let ((before, cpu_before), (after, cpu_after)) = &measured.samples;
    let done = measured.done as f64;
    let per = |before: u64, after: u64| done / (after - before) as f64;
    println!(
        "{name:<20}{:>10.0}{:>10.1}{:>10.1}{:>10.1}{:>12.2}{}{:>8.0}{}",
        measured.per_second(),
        per(before.entries, after.entries),
        per(before.flushes, after.flushes),
        per(before.syncs, after.syncs),
        measured.per_second() / disk.per_second,
        measured.latency.columns(),
        (cpu_after - cpu_before) / done * 1e6,
        measured.remark(),
    );
}

async fn print_etcd(ours: &mut Ours, place: &Place, goals: &mut Goals) {
    let goal = format!("times etcd's puts per second at {CALLERS_MAX} callers");
    println!(
        "\nputs of three etcd members on the same disk, 32 + 32 bytes, one key a caller, gRPC"
    );
    let etcd = match Etcd::start(&place.path().join("etcd")).await {
        Ok(etcd) => etcd,
        Err(Skipped(reason)) => {
            println!("SKIPPED: {reason}");
            return goals.not_measured(&goal, GOAL_TIMES_ETCD, &reason);
        }
    };
    println!(
        "{}; its defaults, no TLS; CPU per put of the members + of the callers",
        etcd.version
    );
    println!(
        "{:<20}{:>10}{:>9}{:>9}{:>9}{:>12}",
        "callers", "puts/s", "p50 ms", "p99 ms", "p99.9", "CPU us"
    );
    let mut best: f64 = 0.0;
    for count in &CALLERS[..3] {
        let (measured, _) = puts(&etcd, etcd.callers(*count).await).await;
        best = best.max(measured.per_second());
        print_puts(&count.to_string(), &measured);
    }
    println!("\nin turns at {CALLERS_MAX} callers, changing who begins:");
    let mut theirs = etcd.callers(CALLERS_MAX).await;
    let mut ratios = Vec::new();
    for round in 0..ROUNDS {
        let (first, second);
        if round % 2 == 0 {
            first = ours.measure(CALLERS_MAX, None).await;
            (second, theirs) = puts(&etcd, theirs).await;
        } else {
            (second, theirs) = puts(&etcd, theirs).await;
            first = ours.measure(CALLERS_MAX, None).await;
        }
        best = best.max(second.per_second());
        let ratio = first.per_second() / second.per_second();
        ratios.push((ratio, first.per_second()));
        println!(
            "  ours {:>8.0} commands/s{}, etcd {:>8.0} puts/s{}: {ratio:.1}",
            first.per_second(),
            first.remark(),
            second.per_second(),
            second.remark(),
        );
        if round + 1 == ROUNDS {
            print_puts("etcd, last round", &second);
        }
    }
    ratios.sort_by(|one, two| one.0.total_cmp(&two.0));
    let (median, _) = ratios[ratios.len() / 2];
    goals.at_least(&goal, GOAL_TIMES_ETCD, median);
    ratios.sort_by(|one, two| one.1.total_cmp(&two.1));
    let (_, usual) = ratios[ratios.len() / 2];
    println!(
        "median {median:.1} times; against etcd's best at any number of callers ({best:.0}/s): {:.1} times",
        usual / best
    );
}

/// Processor seconds of the members and of this process.
type Cpu = (f64, f64);

async fn puts(etcd: &Etcd, callers: Vec<Put>) -> (Measured<Cpu>, Vec<Put>) {
    let sample = || (etcd.cpu_seconds(), cpu_seconds(std::process::id()));
    closed_loop(callers, (WARM_UP, MEASURED), sample).await
}

fn print_puts(name: &str, measured: &Measured<Cpu>) {
    let (before, after) = measured.samples;
    let per_put = |before: f64, after: f64| (after - before) / measured.done as f64 * 1e6;
    println!(
        "{name:<20}{:>10.0}{}{:>6.0} + {:>3.0}{}",
        measured.per_second(),
        measured.latency.columns(),
        per_put(before.0, after.0),
        per_put(before.1, after.1),
        measured.remark(),
    );
}

async fn print_cold(prepared: &Prepared) {
    let found = cold::measure(prepared).await;
    println!(
        "\n{} keys never seen, one after another: edge, QUIC, three nodes",
        found.keys
    );
    for (entries, checks) in &found.entries {
        println!(
            "{checks:>6} checks: {entries} log entries by the look at the log after the answer"
        );
    }
    println!("{:<34}{:>9}{:>9}{:>9}", "", "p50 ms", "p99 ms", "p99.9");
    let rows: [(&str, &Latency); 3] = [
        ("the cold check", &found.check),
        ("one commit at the same node", &found.commit),
        ("the same key again", &found.warm),
    ];
    for (name, latency) in rows {
        println!("{name:<34}{}", latency.columns());
    }
    let ratio = |share| found.check.at(share).as_secs_f64() / found.commit.at(share).as_secs_f64();
    println!(
        "a cold check takes {:.2} commits (p50), {:.2} (p99)",
        ratio(0.5),
        ratio(0.99)
    );
}
