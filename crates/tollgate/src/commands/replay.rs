//! `tollgate replay`: the requests of an access log, sent to edges as checks.

use crate::access_log::{AccessLog, ReadError, Tally as LogTally};
use crate::args::Replay;
use crate::host::HostPort;
use crate::load::{self, Check, Tally};
use crate::output::{Exit, Failure, Format, Progress, duration, number, show, table, warn};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex};
use tokio::net::TcpStream;

/// What a replay printed.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// Requests read from the log.
    pub requests: u64,
    /// Lines that were none.
    pub bad_lines: u64,
    /// Requests whose client has no key in the file given.
    pub without_key: u64,
    /// Decisions by reason.
    pub reasons: BTreeMap<String, u64>,
    /// Units admitted.
    pub admitted: u64,
    /// Units whose answer never came.
    pub unknown: u64,
    /// Checks that found nobody.
    pub unsent: u64,
    /// Latency percentiles in nanoseconds: 50, 99, 99.9.
    pub latency_ns: [u64; 3],
}

/// A log being turned into checks as they are sent, in bounded memory however long it is.
struct Reading {
    log: AccessLog<'static>,
    one: Option<Arc<str>>,
    keys: HashMap<String, Arc<str>>,
    without_key: u64,
    failed: Option<ReadError>,
}

/// The summary sums over all clients: they are one subject.
const SUBJECT: usize = 0;

impl Reading {
    /// The next request whose client has a credential.
    fn next(&mut self) -> Option<Check> {
        loop {
            let line = match self.log.next_line() {
                Ok(line) => line?,
                Err(e) => {
                    self.failed = Some(e);
                    return None;
                }
            };
            let credential = self.one.as_ref().or_else(|| self.keys.get(line.client));
            let Some(credential) = credential else {
                self.without_key += 1;
                continue;
            };
            // A log may hold host names, which are no addresses to an edge.
            let is_address = line.client.parse::<IpAddr>().is_ok();
            return Some(Check {
                subject: SUBJECT,
                credential: Arc::clone(credential),
                method: Arc::from(line.method),
                path: Arc::from(line.path),
                client_ip: is_address.then(|| Arc::from(line.client)),
                cost: 1,
            });
        }
    }
}

/// Where checks go: of a name's addresses the first that takes a connection.
async fn edges(hosts: &[HostPort]) -> Result<Vec<SocketAddr>, Failure> {
    let mut edges = Vec::new();
    for host in hosts {
        let found = host.resolve().await?;
        let mut reached = None;
        for addr in &found {
            if reached.is_none() && TcpStream::connect(addr).await.is_ok() {
                reached = Some(*addr);
            }
        }
        // One that nobody takes stays: its checks are counted as not sent.
        edges.extend(reached.or(found.first().copied()));
    }
    Ok(edges)
}

/// Runs the command.
///
/// # Errors
/// [`Failure`] when a file is wrong, the log ends early, or a check was not decided.
pub async fn run(format: Format, args: &Replay) -> Result<(), Failure> {
    let (one, keys) = credentials(args)?;
    let name = args.log.display();
    let log = File::open(&args.log).map_err(|e| Failure::usage(format!("{name}: {e}")))?;
    let log = AccessLog::open(log).map_err(|e| Failure::failed(format!("{name}: {e}")))?;
    let reading = Arc::new(Mutex::new(Reading {
        log,
        one,
        keys,
        without_key: 0,
        failed: None,
    }));
    let edges = edges(&args.addr).await?;
    let progress = Arc::new(Progress::new(format, "replayed", None));
    let (told, source) = (Arc::clone(&progress), Arc::clone(&reading));
    let advance = Arc::new(move |steps| told.advance(steps));
    // A line is read when a connection is free to send it: from a disk that is a matter of microseconds.
    let checks = std::iter::from_fn(move || source.lock().ok()?.next());
    let tally = load::run(&edges, args.connections, SUBJECT + 1, checks, advance).await;
    progress.finish();
    let reading = reading
        .lock()
        .map_err(|_| Failure::failed(format!("{name}: reading it panicked")))?;
    let log = reading.log.tally();
    for bad in &log.first_bad {
        warn(format!("{name}: {bad}"));
    }
    let more = log.bad.saturating_sub(log.first_bad.len() as u64);
    if more > 0 {
        warn(format!("{name}: {} more bad lines", number(more)));
    }
    for error in &tally.errors {
        warn(error);
    }
    let summary = summarise(log, reading.without_key, &tally);
    show(format, &summary, people)?;
    if let Some(e) = &reading.failed {
        return Err(Failure::failed(format!("{name}: {e}")));
    }
    decided(&tally)
}

/// Fails unless every check was decided.
fn decided(tally: &Tally) -> Result<(), Failure> {
    let (unknown, unsent) = (tally.unknown_units(), tally.unsent);
    match (unknown + unsent, tally.decided()) {
        (0, _) => Ok(()),
        (_, 0) => Err(Failure::new(
            Exit::Unavailable,
            "no edge decided anything: is --addr an edge's HTTP address?",
        )),
        _ => Err(Failure::failed(format!(
            "not every check was decided: {} not sent, {} without an answer; see the warnings above",
            number(unsent),
            number(unknown)
        ))),
    }
}

fn summarise(log: &LogTally, without_key: u64, tally: &Tally) -> Summary {
    Summary {
        requests: log.good,
        bad_lines: log.bad,
        without_key,
        reasons: tally.reasons.clone(),
        admitted: tally.admitted.iter().sum(),
        unknown: tally.unknown_units(),
        unsent: tally.unsent,
        latency_ns: [0.5, 0.99, 0.999].map(|q| tally.latency.value_at_quantile(q)),
    }
}

fn people(s: &Summary) -> String {
    let mut rows = vec![
        vec!["requests".to_owned(), number(s.requests)],
        vec!["bad lines".to_owned(), number(s.bad_lines)],
    ];
    if s.without_key > 0 {
        rows.push(vec![
            "requests without a key".to_owned(),
            number(s.without_key),
        ]);
    }
    rows.extend(
        s.reasons
            .iter()
            .map(|(reason, n)| vec![format!("· {reason}"), number(*n)]),
    );
    rows.push(vec!["units admitted".to_owned(), number(s.admitted)]);
    rows.push(vec!["units of unknown fate".to_owned(), number(s.unknown)]);
    rows.push(vec!["checks not sent".to_owned(), number(s.unsent)]);
    let [p50, p99, p999] = s.latency_ns.map(duration);
    rows.push(vec![
        "latency p50 / p99 / p99.9".to_owned(),
        format!("{p50} / {p99} / {p999}"),
    ]);
    table(&["replay", ""], rows)
}

type Credentials = (Option<Arc<str>>, HashMap<String, Arc<str>>);

fn credentials(args: &Replay) -> Result<Credentials, Failure> {
    if let Some(file) = &args.credential_file {
        let text = read(file)?;
        return Ok((Some(Arc::from(text.trim())), HashMap::new()));
    }
    let Some(file) = &args.keys else {
        return Ok((None, HashMap::new()));
    };
    let keys: HashMap<String, Arc<str>> = serde_json::from_str(&read(file)?).map_err(|e| {
        let expected = "expected a JSON object from client address to credential";
        Failure::usage(format!("{}: {e}; {expected}", file.display()))
    })?;
    Ok((None, keys))
}

fn read(file: &Path) -> Result<String, Failure> {
    fs::read_to_string(file).map_err(|e| Failure::usage(format!("{}: {e}", file.display())))
}
