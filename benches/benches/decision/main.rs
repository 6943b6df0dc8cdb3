//! A decision on the edge against a bare keyed atomic and a rate limiter.
//!
//! `cargo bench -p tollgate-benches --bench decision` prints one table: instructions (callgrind) and time
//! (alternating rounds), both as ratios to the bare keyed atomic; exits with 1 where a goal is missed.
//! `... -- principals N` prints the times for another number of principals than 100,000;
//! `... -- candidates [instructions | two-threads]` shows models of a decision with other maps and layouts.
//!
//! The goal for a complete decision: at most 520 instructions and 4 times the bare keyed atomic, aimed
//! at 370 and 2.5. The bare keyed atomic is dashmap with a fast hash (ahash), the harder of the two
//! that are shown. Read next: `edge.rs` (the real thing), `docs/benches.md` (what came out).
#![allow(clippy::print_stdout, reason = "a bench prints its table")]
#![allow(clippy::unwrap_used, reason = "a bench fails by panicking")]

use tollgate_benches::workload::{Credential, composed, credentials, zipf_stream};
use tollgate_benches::{Runner, instructions, machine, rounds};

mod candidates;
mod edge;
mod maps;
mod peers;
mod principal;

use peers::{Bare, BareWithClock, GovernorKeyed};

const PRINCIPALS: usize = 100_000;
const STREAM: usize = 1 << 18;
/// A round is a part of the stream, about 10 ms: short, so that both of a pair meet the same
/// neighbours on the machine.
const ROUND: usize = 1 << 16;
const ROUNDS: usize = 121;
/// Fewer than for times, as callgrind is slow: the count does not depend on it.
const PRINCIPALS_COUNTED: usize = 10_000;
const CHECKS_COUNTED: u64 = 50_000;

const GOAL_INSTRUCTIONS: f64 = 520.0;
const GOAL_RATIO: f64 = 4.0;

type Build = fn(&[Credential]) -> Box<dyn Runner>;
type Named = (&'static str, Build);

macro_rules! case {
    ($case:ty) => {
        |credentials| Box::new(<$case>::new(credentials)) as Box<dyn Runner>
    };
}
use case;

/// What all is a multiple of.
const BARE: Named = ("bare keyed atomic (ahash)", case!(Bare<ahash::RandomState>));

/// The real decision first, which has goals.
const CASES: &[Named] = &[
    ("edge::check", case!(edge::Check)),
    ("edge::admit", case!(edge::Admit)),
    (
        "bare keyed atomic and a clock",
        case!(BareWithClock<ahash::RandomState>),
    ),
    (
        "bare keyed atomic (std SipHash-1-3)",
        case!(Bare<peers::StdHash>),
    ),
    ("governor keyed, one limiter", case!(GovernorKeyed<1>)),
    ("governor keyed, two limiters", case!(GovernorKeyed<2>)),
    ("governor keyed, three limiters", case!(GovernorKeyed<3>)),
];

/// Not for time: these refuse.
const REFUSALS: &[Named] = &[("edge::check, refused", case!(edge::Refused))];

/// The product's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["count", name, checks] => count(name, checks.parse().unwrap()),
        ["candidates", "instructions"] => print_instructions(candidates::ALL),
        ["candidates", "two-threads"] => print_two_threads(candidates::ALL),
        ["candidates"] => print_times(candidates::ALL, PRINCIPALS),
        ["principals", number] => print_times(CASES, number.parse().unwrap()),
        ["two-threads"] => print_two_threads(CASES),
        [] if !print_decision() => std::process::exit(1),
        [] => {}
        _ => println!(
            "usage: [two-threads | principals N | candidates [instructions | two-threads]], not {words:?}"
        ),
    }
}

/// The table; whether the goals are met.
fn print_decision() -> bool {
    print_conditions(PRINCIPALS);
    println!(
        "{:36} {:>6} {:>6}   {:>5} {:13} {:>6} / bare",
        "", "instr.", "/ bare", "time", "/ bare", "ns"
    );
    let bare_count = instructions_of(BARE.0);
    println!("{:36} {bare_count:6.0}", BARE.0);
    let work = Work::new(PRINCIPALS);
    let mut met = true;
    for (at, case) in CASES.iter().enumerate() {
        let count = instructions_of(case.0);
        let found = work.compare(case);
        println!(
            "{:36} {count:6.0} {:6.2}   {}",
            case.0,
            count / bare_count,
            Line(found)
        );
        if at == 0 {
            met = count <= GOAL_INSTRUCTIONS && found.ratio <= GOAL_RATIO;
        }
    }
    for (name, _) in REFUSALS {
        let count = instructions_of(name);
        println!("{name:36} {count:6.0} {:6.2}", count / bare_count);
        met &= count <= GOAL_INSTRUCTIONS;
    }
    let verdict = if met { "met" } else { "MISSED" };
    println!("goals: {GOAL_INSTRUCTIONS} instructions, {GOAL_RATIO} times the bare: {verdict}");
    met
}

fn print_conditions(principals: usize) {
    println!("{}", machine::facts());
    println!(
        "{principals} principals, zipf 0.99; time: medians of {ROUNDS} rounds of {ROUND} checks, \
         thread-CPU, in turns with the bare [quartiles]; instructions: callgrind, {CHECKS_COUNTED} \
         checks against twice as many"
    );
}

/// The same checks for all.
struct Work {
    credentials: Vec<Credential>,
    stream: Vec<Credential>,
}

impl Work {
    fn new(principals: usize) -> Self {
        let credentials = credentials(&composed(principals));
        let stream = zipf_stream(&credentials, STREAM);
        Self {
            credentials,
            stream,
        }
    }

    fn compare(&self, (_, build): &Named) -> rounds::Comparison {
        // A fresh pair each, so that only two tables compete for the cache.
        let bare = BARE.1(&self.credentials);
        let case = build(&self.credentials);
        rounds::compare(&*bare, &*case, &self.stream, ROUND, ROUNDS)
    }
}

struct Line(rounds::Comparison);

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let found = &self.0;
        write!(
            f,
            "{:5.2} [{:5.2}-{:5.2}] {:6.1} / {:.1}",
            found.ratio, found.quartiles.0, found.quartiles.1, found.candidate_ns, found.peer_ns
        )
    }
}

fn print_times(cases: &[Named], principals: usize) {
    print_conditions(principals);
    let work = Work::new(principals);
    for case in cases {
        println!("{:52} {}", case.0, Line(work.compare(case)));
    }
}

fn print_two_threads(cases: &[Named]) {
    println!("{}", machine::facts());
    let work = Work::new(PRINCIPALS);
    println!("time of a check beside a second thread / alone [both threads' CPU seconds / wall]");
    for (name, build) in [BARE].iter().chain(cases) {
        let case = build(&work.credentials);
        let found = rounds::beside_itself(&*case, &work.stream, ROUNDS / 4);
        println!(
            "{name:52} {:5.2} [{:.2}]",
            found.slowdown, found.parallelism
        );
    }
}

fn print_instructions(cases: &[Named]) {
    for (name, _) in cases {
        println!("{name:52} {:7.1}", instructions_of(name));
    }
}

/// Instructions per check of the case of this name. Ends the process where they cannot be counted.
fn instructions_of(name: &str) -> f64 {
    match instructions::per_check(&["count", name], CHECKS_COUNTED) {
        Ok(count) => count,
        Err(instructions::NoCount(why)) => {
            println!("{name}: {why}");
            std::process::exit(1);
        }
    }
}

/// One process under callgrind: builds the case and does `checks` checks.
fn count(name: &str, checks: usize) {
    let credentials = credentials(&composed(PRINCIPALS_COUNTED));
    let stream = zipf_stream(&credentials, usize::try_from(CHECKS_COUNTED).unwrap());
    let mut all = [BARE].into_iter().chain(CASES.iter().copied());
    let mut others = REFUSALS.iter().chain(candidates::ALL).copied();
    let known = |case: &Named| case.0 == name;
    let (_, build) = all.find(known).or_else(|| others.find(known)).unwrap();
    let case = build(&credentials);
    let admitted: usize = stream
        .chunks(stream.len())
        .cycle()
        .take(checks / stream.len())
        .map(|part| case.run(part))
        .sum();
    println!("{admitted} of {checks} admitted");
}
