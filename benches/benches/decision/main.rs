//! A decision on the edge against a bare keyed atomic, and which map should hold the principals.
//!
//! `cargo bench -p tollgate-benches --bench decision` prints time ratios;
//! `... -- instructions` prints instructions per check (needs valgrind);
//! `... -- two-threads` prints what a second thread that does the same checks costs the first.
//!
//! The goal for a complete decision: at most 520 instructions and 4 times the bare keyed atomic, aimed
//! at 370 and 2.5. The bare keyed atomic is dashmap with a fast hash (ahash), the harder of the two
//! that are shown. Read next: `principal.rs` (layouts), `maps.rs` (candidates).
#![allow(clippy::print_stdout, reason = "a bench prints its table")]
#![allow(clippy::unwrap_used, reason = "a bench fails by panicking")]

use std::sync::Arc;

mod maps;
mod peers;
mod principal;

use tollgate_benches::workload::{Credential, credentials, zipf_stream};
use tollgate_benches::{Runner, instructions, machine, rounds};

use maps::{Arcswap, Cached, Dash, Immutable, Papaya, SccIndex};
use peers::{Bare, CellsOnly, ClockOnly, GovernorKeyed, HashOnly};
use principal::{Apart, BootClock, Chained, Embedded, NoClock, Node, Spent};

const PRINCIPALS: usize = 100_000;
const STREAM: usize = 1 << 18;
/// A round is a part of the stream, about 10 ms: short, so that both of a pair meet the same
/// neighbours on the machine.
const ROUND: usize = 1 << 16;
const ROUNDS: usize = 121;
/// Fewer than for times, as callgrind is slow: the count does not depend on it.
const PRINCIPALS_COUNTED: usize = 10_000;
const CHECKS_COUNTED: u64 = 50_000;

type Build = fn(&[Credential]) -> Box<dyn Runner>;

macro_rules! case {
    ($case:ty) => {
        |credentials| Box::new(<$case>::new(credentials)) as Box<dyn Runner>
    };
}

/// Peers and parts: what they are for is in `peers.rs`.
const PEERS: &[(&str, Build)] = &[
    ("bare keyed atomic (ahash)", case!(Bare<ahash::RandomState>)),
    (
        "bare keyed atomic (std SipHash-1-3)",
        case!(Bare<peers::StdHash>),
    ),
    ("governor keyed, one limiter", case!(GovernorKeyed<1>)),
    ("governor keyed, three limiters", case!(GovernorKeyed<3>)),
    ("part: SipHash-1-3-128 alone", case!(HashOnly)),
    ("part: CLOCK_BOOTTIME alone", case!(ClockOnly)),
    ("part: cells of one principal alone", case!(CellsOnly)),
];

/// Complete decisions: hash, map, principal, clock, two quota cells, usage.
const DECISIONS: &[(&str, Build)] = &[
    (
        "immutable map, key + rights + cells, no clock",
        case!(Immutable<Arc<Node>, NoClock>),
    ),
    (
        "immutable map, key + rights + cells",
        case!(Immutable<Arc<Node>, BootClock>),
    ),
    (
        "immutable map, rights in entry",
        case!(Immutable<(u128, Apart), BootClock>),
    ),
    (
        "immutable map, rights beside cells",
        case!(Immutable<(u128, Embedded), BootClock>),
    ),
    (
        "immutable map, three allocations",
        case!(Immutable<(u128, Chained), BootClock>),
    ),
    (
        "arc-swap shards, key + rights + cells, no clock",
        case!(Arcswap<Arc<Node>, NoClock>),
    ),
    (
        "arc-swap shards, key + rights + cells",
        case!(Arcswap<Arc<Node>, BootClock>),
    ),
    (
        "arc-swap shards, rights in entry",
        case!(Arcswap<(u128, Apart), BootClock>),
    ),
    (
        "arc-swap shards, rights beside cells",
        case!(Arcswap<(u128, Embedded), BootClock>),
    ),
    (
        "arc-swap shards, three allocations",
        case!(Arcswap<(u128, Chained), BootClock>),
    ),
    (
        "thread-cached shards, key + rights + cells, no clock",
        case!(Cached<NoClock>),
    ),
    (
        "thread-cached shards, key + rights + cells",
        case!(Cached<BootClock>),
    ),
    (
        "papaya, rights beside cells, no clock",
        case!(Papaya<Embedded, NoClock>),
    ),
    (
        "papaya, rights beside cells",
        case!(Papaya<Embedded, BootClock>),
    ),
    ("papaya, rights in entry", case!(Papaya<Apart, BootClock>)),
    (
        "papaya, three allocations",
        case!(Papaya<Chained, BootClock>),
    ),
    (
        "scc HashIndex, rights beside cells, no clock",
        case!(SccIndex<Embedded, NoClock>),
    ),
    (
        "scc HashIndex, rights beside cells",
        case!(SccIndex<Embedded, BootClock>),
    ),
    (
        "scc HashIndex, rights in entry",
        case!(SccIndex<Apart, BootClock>),
    ),
    (
        "scc HashIndex, three allocations",
        case!(SccIndex<Chained, BootClock>),
    ),
    (
        "dashmap, rights beside cells, no clock",
        case!(Dash<Embedded, NoClock>),
    ),
    (
        "dashmap, rights beside cells",
        case!(Dash<Embedded, BootClock>),
    ),
    ("dashmap, rights in entry", case!(Dash<Apart, BootClock>)),
    (
        "dashmap, three allocations",
        case!(Dash<Chained, BootClock>),
    ),
];

/// Not for time ratios: these refuse.
const REFUSALS: &[(&str, Build)] = &[(
    "refused at the second quota, scc HashIndex",
    case!(SccIndex<Spent, BootClock>),
)];

fn main() {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["count", name, checks] => count(name, checks.parse().unwrap()),
        ["instructions"] => print_instructions(),
        ["two-threads"] => print_two_threads(),
        [] => print_times(),
        _ => println!("usage: [instructions | two-threads], not {words:?}"),
    }
}

fn print_times() {
    println!("{}", machine::facts());
    println!(
        "{PRINCIPALS} principals, zipf 0.99, {ROUND} checks a round, {ROUNDS} rounds in turns"
    );
    let credentials = credentials(PRINCIPALS);
    let stream = zipf_stream(&credentials, STREAM);
    let peer_build = PEERS[0].1;
    println!(
        "median thread-CPU time / {} of the same rounds [quartiles]",
        PEERS[0].0
    );
    for (name, build) in PEERS[1..].iter().chain(DECISIONS) {
        // A fresh pair each, so that only two tables compete for the cache.
        let peer = peer_build(&credentials);
        let candidate = build(&credentials);
        let found = rounds::compare(&*peer, &*candidate, &stream, ROUND, ROUNDS);
        println!(
            "{name:52} {:5.2} [{:.2}-{:.2}]   {:6.1} / {:5.1} ns",
            found.ratio, found.quartiles.0, found.quartiles.1, found.candidate_ns, found.peer_ns
        );
    }
}

fn print_two_threads() {
    println!("{}", machine::facts());
    let credentials = credentials(PRINCIPALS);
    let stream = zipf_stream(&credentials, STREAM);
    println!("time of a check beside a second thread / alone [both threads' CPU seconds / wall]");
    for (name, build) in PEERS[..2].iter().chain(DECISIONS) {
        let case = build(&credentials);
        let found = rounds::beside_itself(&*case, &stream, ROUNDS / 4);
        println!(
            "{name:52} {:5.2} [{:.2}]",
            found.slowdown, found.parallelism
        );
    }
}

fn print_instructions() {
    println!("instructions per check (callgrind, {CHECKS_COUNTED} checks against twice as many)");
    for (name, _) in PEERS.iter().chain(DECISIONS).chain(REFUSALS) {
        match instructions::per_check(&["count", name], CHECKS_COUNTED) {
            Ok(count) => println!("{name:52} {count:7.1}"),
            Err(instructions::NoCount(why)) => {
                println!("{name}: {why}");
                std::process::exit(1);
            }
        }
    }
}

/// One process under callgrind: builds the case and does `checks` checks.
fn count(name: &str, checks: usize) {
    let credentials = credentials(PRINCIPALS_COUNTED);
    let stream = zipf_stream(&credentials, usize::try_from(CHECKS_COUNTED).unwrap());
    let mut all = PEERS.iter().chain(DECISIONS).chain(REFUSALS);
    let (_, build) = all.find(|(known, _)| *known == name).unwrap();
    let case = build(&credentials);
    let admitted: usize = stream
        .chunks(stream.len())
        .cycle()
        .take(checks / stream.len())
        .map(|part| case.run(part))
        .sum();
    println!("{admitted} of {checks} admitted");
}
