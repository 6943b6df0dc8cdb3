//! The load: callers that each have one call under way, over a window of time.
//!
//! Owns the loop, the latencies and what this process and others used of the processor. Knows neither
//! side: ours and the peer's callers implement [`Caller`].

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::task::JoinSet;

/// Longest latency told apart.
const LATENCY_US_MAX: u64 = 60_000_000;

/// Latencies in microseconds, to three digits.
pub(crate) struct Latency(Histogram<u64>);

impl Default for Latency {
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).unwrap())
    }
}

impl Latency {
    pub(crate) fn record(&mut self, latency: Duration) {
        let us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.0.saturating_record(us);
    }

    pub(crate) fn len(&self) -> u64 {
        self.0.len()
    }

    /// The latency below which this share of all lies.
    pub(crate) fn at(&self, share: f64) -> Duration {
        Duration::from_micros(self.0.value_at_quantile(share))
    }

    /// p50, p99 and p99.9 as columns.
    pub(crate) fn columns(&self) -> String {
        [0.5, 0.99, 0.999]
            .map(|share| format!("{:>9.2}", self.at(share).as_secs_f64() * 1e3))
            .concat()
    }
}

/// One that calls, waits for the answer, and calls again.
pub(crate) trait Caller: Send + 'static {
    /// One call; an error is an answer that did not come, or another one than expected.
    fn call(&mut self) -> impl Future<Output = Result<(), String>> + Send;
}

/// What callers got done in the window.
pub(crate) struct Measured<S> {
    pub(crate) done: u64,
    pub(crate) failed: u64,
    /// The words of one of the failures.
    pub(crate) failure: Option<String>,
    pub(crate) seconds: f64,
    pub(crate) latency: Latency,
    /// What `sample` said at the window's begin and end.
    pub(crate) samples: (S, S),
}

impl<S> Measured<S> {
    pub(crate) fn per_second(&self) -> f64 {
        self.done as f64 / self.seconds
    }

    /// What is wrong with the measurement, for its row.
    pub(crate) fn remark(&self) -> String {
        match &self.failure {
            Some(words) => format!("  {} failed, one: {words}", self.failed),
            None => String::new(),
        }
    }
}

const WARMING: u8 = 0;
const MEASURING: u8 = 1;
const OVER: u8 = 2;

/// Lets all callers call at once: `warm_up` that does not count, then `measured`.
///
/// What ends in the window counts, whenever it began: each caller has one call under way at both ends.
pub(crate) async fn closed_loop<C: Caller, S>(
    callers: Vec<C>,
    (warm_up, measured): (Duration, Duration),
    sample: impl Fn() -> S,
) -> (Measured<S>, Vec<C>) {
    let phase = Arc::new(AtomicU8::new(WARMING));
    let mut tasks = JoinSet::new();
    for mut caller in callers {
        let phase = phase.clone();
        tasks.spawn(async move {
            let (mut latencies, mut failures) = (Vec::new(), Vec::new());
            while phase.load(Ordering::Relaxed) != OVER {
                let began = Instant::now();
                let called = caller.call().await;
                if phase.load(Ordering::Relaxed) != MEASURING {
                    continue;
                }
                match called {
                    Ok(()) => latencies.push(began.elapsed()),
                    Err(words) => failures.push(words),
                }
            }
            (caller, latencies, failures)
        });
    }
    tokio::time::sleep(warm_up).await;
    let before = sample();
    phase.store(MEASURING, Ordering::Relaxed);
    let began = Instant::now();
    tokio::time::sleep(measured).await;
    phase.store(OVER, Ordering::Relaxed);
    let seconds = began.elapsed().as_secs_f64();
    let samples = (before, sample());
    let mut latency = Latency::default();
    let (mut failed, mut failure) = (0, None);
    let mut callers = Vec::new();
    for (caller, latencies, failures) in tasks.join_all().await {
        latencies.into_iter().for_each(|one| latency.record(one));
        failed += failures.len() as u64;
        failure = failures.into_iter().next().or(failure);
        callers.push(caller);
    }
    let measured = Measured {
        done: latency.len(),
        failed,
        failure,
        seconds,
        latency,
        samples,
    };
    (measured, callers)
}

/// Linux counts processor time in hundredths of a second wherever it tells of it.
const TICKS_PER_SECOND: f64 = 100.0;

/// Processor seconds that a process used since its start, user and system.
pub(crate) fn cpu_seconds(process: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // The second field is a name in parentheses and may hold anything; utime and stime are the 14th and 15th.
    let after_name = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 = after_name
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    ticks as f64 / TICKS_PER_SECOND
}
