//! The clients: they ask edges over HTTP on keep-alive connections, and every question is written down.
//!
//! Owns: the clock of the history, the history while it grows, the load. Refuses: to interpret; a question without
//! an answer is *unknown*.

use super::checker::cut::{ASIDE_PAUSE_US, Aside};
use super::history::{Operation, Outcome};
use super::plan::Random;
use super::workload::Workload;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tollgate::load::{Check, Client, LoadError};

/// Connections of the mixed load to each edge.
const MIXED_PER_EDGE: u32 = 6;

/// Connections of the hot customer to each edge.
const HOT_PER_EDGE: u32 = 2;

/// Longest pause of a client between an answer and its next question, in microseconds.
const PAUSE_US_MAX: u64 = 6_000;

/// Pause of a client whose edge does not listen.
const UNSENT_PAUSE: Duration = Duration::from_millis(20);

/// A mutex's content, even if a holder panicked: what is kept under one here is whole after every step.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asks on behalf of customers and writes down what was answered.
#[derive(Debug)]
pub struct Recorder {
    /// Whose keys there are.
    pub workload: Workload,
    /// Edges' addresses, from edge 1.
    edges: Vec<SocketAddr>,
    begun: Instant,
    history: Mutex<Vec<Operation>>,
    next_client: AtomicU32,
}

/// One client at one edge.
pub struct Asker {
    number: u32,
    edge: u32,
    client: Client,
}

impl Recorder {
    /// An empty history that begins now.
    #[must_use]
    pub fn new(workload: Workload, edges: Vec<SocketAddr>) -> Self {
        Self {
            workload,
            edges,
            begun: Instant::now(),
            history: Mutex::new(Vec::new()),
            next_client: AtomicU32::new(1),
        }
    }

    /// Time since the run began, in microseconds: the time of all evidence.
    #[must_use]
    pub fn now_us(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// A client of an edge, from 1, that connects with its first question.
    #[must_use]
    pub fn asker(&self, edge: u32) -> Asker {
        let at = usize::try_from(edge).unwrap_or(1).saturating_sub(1);
        Asker {
            number: self.next_client.fetch_add(1, Ordering::Relaxed),
            edge,
            client: Client::new(self.edges[at]),
        }
    }

    /// Asks for `cost` units.
    pub async fn ask(&self, asker: &mut Asker, subject: usize, cost: u32) -> Outcome {
        let check = Check {
            subject,
            credential: Arc::clone(&self.workload.parties[subject].credential),
            method: Arc::from("GET"),
            path: Arc::from("/v1/orders/7"),
            client_ip: None,
            cost: u64::from(cost),
        };
        let invoke_us = self.now_us();
        let answer = asker.client.check(&check).await;
        let outcome = match &answer {
            Ok(answer) if answer.allowed => Outcome::Ok,
            Ok(answer) => Outcome::refused(&answer.reason),
            Err(LoadError::Connect { .. }) => Outcome::Unsent,
            Err(LoadError::Unknown { .. } | LoadError::Status { .. }) => Outcome::Unknown,
        };
        let operation = Operation {
            client: asker.number,
            edge: asker.edge,
            subject: u32::try_from(subject).unwrap_or(u32::MAX),
            cost,
            invoke_us,
            complete_us: self.now_us(),
            outcome,
        };
        lock(&self.history).push(operation);
        if outcome == Outcome::Unsent {
            tokio::time::sleep(UNSENT_PAUSE).await;
        }
        outcome
    }

    /// A copy of the history so far.
    #[must_use]
    pub fn history(&self) -> Vec<Operation> {
        lock(&self.history).clone()
    }
}

/// The load under way; dropping it ends it at once, with questions of unknown fate left out of the history.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

impl Load {
    /// Begins to ask at every edge.
    #[must_use]
    pub fn start(recorder: &Arc<Recorder>, seed: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for edge in (1..).take(recorder.edges.len()) {
            for n in 0..MIXED_PER_EDGE + HOT_PER_EDGE {
                let asker = recorder.asker(edge);
                let random = Random::new(seed, 1_000 + u64::from(asker.number));
                let hot = n < HOT_PER_EDGE;
                tasks.spawn(go_on(
                    Arc::clone(recorder),
                    asker,
                    random,
                    hot,
                    Arc::clone(&stop),
                ));
            }
        }
        Self { stop, tasks }
    }

    /// Lets every client take its last answer.
    pub async fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while self.tasks.join_next().await.is_some() {}
    }
}

async fn go_on(
    recorder: Arc<Recorder>,
    mut asker: Asker,
    mut random: Random,
    hot: bool,
    stop: Arc<AtomicBool>,
) {
    while !stop.load(Ordering::Relaxed) {
        let workload = &recorder.workload;
        let (subject, cost) = if hot {
            (workload.hot, workload.cost(workload.hot, &mut random))
        } else {
            workload.mixed(&mut random)
        };
        recorder.ask(&mut asker, subject, cost).await;
        let pause = Duration::from_micros(random.between(0, PAUSE_US_MAX));
        tokio::time::sleep(pause).await;
    }
}

/// Asks every edge, one question after another, something that needs neither units nor a node: who presents no
/// credential is refused from memory. A check that is not answered while these are does not wait for the machine.
#[derive(Debug)]
pub struct AskingAside {
    stop: Arc<AtomicBool>,
    tasks: JoinSet<Vec<Aside>>,
}

impl AskingAside {
    /// Begins to ask at every edge.
    #[must_use]
    pub fn start(recorder: &Arc<Recorder>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for edge in (1..).take(recorder.edges.len()) {
            tasks.spawn(ask_aside(Arc::clone(recorder), edge, Arc::clone(&stop)));
        }
        Self { stop, tasks }
    }

    /// Ends it; what was answered, edge by edge, in order.
    pub async fn stop(self) -> Vec<Aside> {
        self.stop.store(true, Ordering::Relaxed);
        self.tasks.join_all().await.concat()
    }
}

async fn ask_aside(recorder: Arc<Recorder>, edge: u32, stop: Arc<AtomicBool>) -> Vec<Aside> {
    let mut asker = recorder.asker(edge);
    let check = Check {
        subject: 0,
        credential: Arc::from(""),
        method: Arc::from("GET"),
        path: Arc::from("/v1/orders/7"),
        client_ip: None,
        cost: 1,
    };
    let mut answered = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let invoke_us = recorder.now_us();
        // A question without an answer counts for nothing here.
        if asker.client.check(&check).await.is_ok() {
            answered.push(Aside {
                edge,
                invoke_us,
                complete_us: recorder.now_us(),
            });
        }
        tokio::time::sleep(Duration::from_micros(ASIDE_PAUSE_US)).await;
    }
    answered
}
