//! `tollgate replay`: the requests of an access log, sent to edges as checks.

use crate::access_log::{AccessLog, Tally as LogTally};
use crate::args::Replay;
use crate::load::{self, Check, Tally};
use crate::output::{Failure, Format, Progress, duration, number, show, table, warn};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

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

/// A log turned into checks.
pub struct Requests {
    /// One per request, in order.
    pub checks: Vec<Check>,
    /// The clients, by subject.
    pub clients: Vec<Arc<str>>,
    /// What the log held besides.
    pub tally: LogTally,
    /// Requests of clients without a credential.
    pub without_key: u64,
}

/// Reads a log; `credential` gives a client's, or `None`.
///
/// # Errors
/// [`Failure`] when the log cannot be read to its end.
pub fn read_log(
    log: impl std::io::Read + Send,
    name: &str,
    mut credential: impl FnMut(&str) -> Option<Arc<str>>,
) -> Result<Requests, Failure> {
    let unreadable = |e: &dyn std::fmt::Display| Failure::failed(format!("{name}: {e}"));
    let mut reader = AccessLog::open(log).map_err(|e| unreadable(&e))?;
    let mut checks = Vec::new();
    let mut clients: Vec<Arc<str>> = Vec::new();
    let mut subjects: HashMap<Arc<str>, usize> = HashMap::new();
    let mut words: HashMap<Box<str>, Arc<str>> = HashMap::new();
    let mut without_key = 0;
    while let Some(line) = reader.next_line().map_err(|e| unreadable(&e))? {
        let Some(credential) = credential(line.client) else {
            without_key += 1;
            continue;
        };
        let subject = match subjects.get(line.client) {
            Some(subject) => *subject,
            None => {
                let client: Arc<str> = Arc::from(line.client);
                clients.push(Arc::clone(&client));
                subjects.insert(client, clients.len() - 1);
                clients.len() - 1
            }
        };
        let mut word = |text: &str| match words.get(text) {
            Some(word) => Arc::clone(word),
            None => {
                let word: Arc<str> = Arc::from(text);
                words.insert(text.into(), Arc::clone(&word));
                word
            }
        };
        checks.push(Check {
            subject,
            credential,
            method: word(line.method),
            path: word(line.path),
            client_ip: Some(Arc::clone(&clients[subject])),
            cost: 1,
        });
    }
    Ok(Requests {
        checks,
        clients,
        tally: reader.tally().clone(),
        without_key,
    })
}

/// Runs the command.
///
/// # Errors
/// [`Failure`] when a file is wrong or no edge decided anything.
pub async fn run(format: Format, args: &Replay) -> Result<(), Failure> {
    let (one, keys) = credentials(args)?;
    let log = File::open(&args.log)
        .map_err(|e| Failure::usage(format!("{}: {e}", args.log.display())))?;
    let requests = read_log(log, &args.log.display().to_string(), |client| {
        one.clone().or_else(|| keys.get(client).cloned())
    })?;
    let total = requests.checks.len() as u64;
    let progress = Arc::new(Progress::new(format, "replayed", total));
    let told = Arc::clone(&progress);
    let subjects = requests.clients.len();
    let advance = Arc::new(move |steps| told.advance(steps));
    let checks = requests.checks.into_iter();
    let tally = load::run(&args.addr, args.connections, subjects, checks, advance).await;
    progress.finish();
    let summary = summarise(total, &requests.tally, requests.without_key, &tally);
    for bad in &requests.tally.first_bad {
        warn(format!("{}: {bad}", args.log.display()));
    }
    for error in &tally.errors {
        warn(error);
    }
    show(format, &summary, people)?;
    if total > 0 && tally.decided() == 0 {
        return Err(Failure::failed(
            "no edge decided anything: is --addr an edge's HTTP address?",
        ));
    }
    Ok(())
}

fn summarise(requests: u64, log: &LogTally, without_key: u64, tally: &Tally) -> Summary {
    Summary {
        requests,
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
        rows.push(vec!["without a key".to_owned(), number(s.without_key)]);
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
