//! Two cases in one process, in alternating rounds: the median of their ratios.

use std::panic::resume_unwind;
use std::sync::Barrier;
use std::time::Instant;

use crate::Runner;
use crate::workload::Credential;

/// What a comparison found.
#[derive(Clone, Copy, Debug)]
pub struct Comparison {
    /// Median over the rounds of (time of the candidate) / (time of the peer).
    pub ratio: f64,
    /// The quartiles of those ratios.
    pub quartiles: (f64, f64),
    /// Median thread-CPU time of one check of the peer, in nanoseconds. Not to be quoted alone.
    pub peer_ns: f64,
    /// The same of the candidate.
    pub candidate_ns: f64,
}

/// Lets `peer` and `candidate` do the same checks in turns, `rounds` times each, changing who begins;
/// each round is the next `length` of `credentials`, over and over.
///
/// # Panics
/// Where a case refuses a check or there is nothing to do: then nothing comparable was measured.
#[must_use]
pub fn compare(
    peer: &dyn Runner,
    candidate: &dyn Runner,
    credentials: &[Credential],
    length: usize,
    rounds: usize,
) -> Comparison {
    let time = |case: &dyn Runner, part: &[Credential]| {
        let begin = thread_cpu_ns();
        let admitted = case.run(part);
        let end = thread_cpu_ns();
        assert_eq!(
            admitted,
            part.len(),
            "a case refused checks: it did not do the work"
        );
        (end - begin) as f64 / part.len() as f64
    };
    time(peer, credentials);
    time(candidate, credentials);
    let parts = credentials
        .chunks_exact(length)
        .cycle()
        .take(rounds)
        .enumerate();
    let mut pairs: Vec<(f64, f64)> = parts
        .map(|(round, part)| {
            if round % 2 == 0 {
                (time(peer, part), time(candidate, part))
            } else {
                let candidate = time(candidate, part);
                (time(peer, part), candidate)
            }
        })
        .collect();
    let mut sorted = |by: fn(&(f64, f64)) -> f64, part: usize| {
        pairs.sort_by(|one, two| by(one).total_cmp(&by(two)));
        by(&pairs[(pairs.len() - 1) * part / 4])
    };
    let ratio = |pair: &(f64, f64)| pair.1 / pair.0;
    Comparison {
        ratio: sorted(ratio, 2),
        quartiles: (sorted(ratio, 1), sorted(ratio, 3)),
        peer_ns: sorted(|pair| pair.0, 2),
        candidate_ns: sorted(|pair| pair.1, 2),
    }
}

/// What a second thread costs.
#[derive(Clone, Copy, Debug)]
pub struct Beside {
    /// Median over the rounds of (thread-CPU time of a check on one of two threads) / (alone).
    pub slowdown: f64,
    /// Median of (CPU time of both threads) / (wall time): near 2 where they truly ran at once.
    pub parallelism: f64,
}

/// Lets `case` do the checks alone and then on two threads at once, `rounds` times; the second thread
/// begins in the middle of `credentials`.
///
/// # Panics
/// Where a check is refused, or a thread panics.
#[must_use]
pub fn beside_itself(case: &dyn Runner, credentials: &[Credential], rounds: usize) -> Beside {
    let (first, second) = credentials.split_at(credentials.len() / 2);
    let run = |parts: [&[Credential]; 2]| {
        let begin = thread_cpu_ns();
        for part in parts {
            assert_eq!(case.run(part), part.len(), "a case refused checks");
        }
        (thread_cpu_ns() - begin) as f64
    };
    run([first, second]);
    let (mut slowdowns, mut parallelisms): (Vec<f64>, Vec<f64>) = (0..rounds)
        .map(|_| {
            let alone = run([first, second]);
            let start = Barrier::new(2);
            let wall = Instant::now();
            let (one, two) = std::thread::scope(|scope| {
                let other = scope.spawn(|| {
                    start.wait();
                    run([second, first])
                });
                start.wait();
                let own = run([first, second]);
                (
                    own,
                    other.join().unwrap_or_else(|panic| resume_unwind(panic)),
                )
            });
            let wall = wall.elapsed().as_secs_f64() * 1e9;
            (f64::midpoint(one, two) / alone, (one + two) / wall)
        })
        .unzip();
    let median = |values: &mut Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Beside {
        slowdown: median(&mut slowdowns),
        parallelism: median(&mut parallelisms),
    }
}

/// CPU time of this thread: what other processes take of the core does not count.
fn thread_cpu_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}
