//! `tollgate demo`: the whole of it on one machine, ending in a verdict that can fail.
//!
//! Three nodes and two edges as processes on loopback; the shipped access log through both edges, each client a
//! customer; a hot customer under sustained load; the Raft leader and then an issuer killed with `kill -9`, after how
//! many requests the seed says; one quota raised and one key revoked while it runs. The verdict compares what clients were told with the durable
//! ledger: nothing in between is asked. Parts: [`story`] (who asks for what), [`verdict`] (what must hold).

pub mod story;
pub mod verdict;

use crate::admin_client::AdminClient;
use crate::args::Demo;
use crate::load::{self, Check, Client, Tally};
use crate::local_cluster::{DEADLINE, LocalCluster};
use crate::output::{Failure, Format, Progress, say, show};
use crate::watch::{self, Accounts, ClusterView};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use story::{Kills, Story};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use verdict::{Figures, Takeover, Verdict};

/// Connections that replay the log, over both edges.
const LOG_CONNECTIONS: usize = 16;

/// Connections of the hot customer, over both edges.
const HOT_CONNECTIONS: usize = 4;

/// Checks of the hot customer per second: sustained, but not all that this machine can do. Three nodes, two
/// edges and their clients share it, and a leader that gets no processor is deposed, rightly.
const HOT_PER_SECOND: u32 = 5_000;

/// How often the cluster is asked while something is waited for.
const ASK_EVERY: Duration = Duration::from_millis(10);

/// How long the edges take to forget the demand of clients that are gone.
const FADING: Duration = Duration::from_secs(1);

/// A ledger that did not change for so long is still: several times a commit.
const STILL: Duration = Duration::from_millis(300);

/// How long the hot customer is under load with nothing else going on, for the figure of hot leases.
const HOT_ALONE: Duration = Duration::from_secs(2);

/// Runs the command.
///
/// # Errors
/// [`Failure`] when something did not start, or a promise broke.
pub async fn run(format: Format, args: &Demo) -> Result<(), Failure> {
    let (dir, temporary) = folder(args)?;
    say(
        format,
        format!("Everything of this demo lies in {}", dir.display()),
    );
    let outcome = Play::start(format, args, &dir).await;
    let (verdict, mut play) = match outcome {
        Ok(mut play) => match play.act().await {
            Ok(verdict) => (verdict, play),
            Err(failure) => return Err(kept(failure, &dir)),
        },
        Err(failure) => return Err(kept(failure, &dir)),
    };
    show(format, &verdict, Verdict::people)?;
    if !verdict.holds {
        return Err(kept(
            Failure::failed("a promise broke: see the verdict"),
            &dir,
        ));
    }
    if args.stay {
        play.stay().await?;
    }
    drop(play);
    if temporary && !args.stay {
        std::fs::remove_dir_all(&dir)
            .map_err(|e| Failure::failed(format!("{}: {e}", dir.display())))?;
    }
    Ok(())
}

/// The hot connections, as a factor of their pace.
fn connections() -> u32 {
    u32::try_from(HOT_CONNECTIONS).unwrap_or(u32::MAX)
}

fn folder(args: &Demo) -> Result<(PathBuf, bool), Failure> {
    let (dir, temporary) = match &args.dir {
        Some(dir) => (dir.clone(), false),
        None => (
            std::env::temp_dir().join(format!("tollgate-demo-{}", std::process::id())),
            true,
        ),
    };
    if dir
        .read_dir()
        .is_ok_and(|mut entries| entries.next().is_some())
    {
        return Err(Failure::usage(format!(
            "{} is not empty: the demo begins with an empty folder",
            dir.display()
        )));
    }
    std::fs::create_dir_all(&dir)
        .map_err(|e| Failure::failed(format!("{}: {e}", dir.display())))?;
    let dir = dir.canonicalize().map_err(Failure::failed)?;
    Ok((dir, temporary))
}

fn kept(mut failure: Failure, dir: &std::path::Path) -> Failure {
    let more = format!("\nlogs and data are kept in {}", dir.display());
    failure.message.push_str(&more);
    failure
}

/// The demo under way.
struct Play {
    format: Format,
    started: Instant,
    story: Story,
    cluster: LocalCluster,
    admin: AdminClient,
    tally: Tally,
    stop_hot: Arc<AtomicBool>,
    hot: Option<JoinHandle<Tally>>,
    next_request: usize,
}

impl Play {
    async fn start(format: Format, args: &Demo, dir: &std::path::Path) -> Result<Self, Failure> {
        let started = Instant::now();
        let story = Story::new(args.seed)?;
        let program = std::env::current_exe().map_err(Failure::failed)?;
        let mut cluster = LocalCluster::prepare(dir, &program)?;
        for node in cluster.nodes() {
            node.start()?;
        }
        let admin = AdminClient::new(&cluster.admin_args())?;
        let tally = Tally::new(story.customers.len());
        let mut this = Self {
            format,
            started,
            story,
            cluster,
            admin,
            tally,
            stop_hot: Arc::new(AtomicBool::new(false)),
            hot: None,
            next_request: 0,
        };
        let view = this.wait_for_owners(&[]).await?;
        this.tell(format!(
            "three nodes, leader is node {}; every slot has an issuer",
            view.leader.unwrap_or_default()
        ));
        let file = this.story.file();
        this.apply(&file, "the demo's customers").await?;
        this.tell(format!(
            "{} customers with a quota and a key each",
            this.story.customers.len()
        ));
        for edge in this.cluster.edges() {
            edge.start()?;
        }
        this.wait_for_edges().await?;
        this.tell("two edges, connected to every node".to_owned());
        Ok(this)
    }

    fn tell(&self, line: impl std::fmt::Display) {
        let ms = self.started.elapsed().as_millis();
        say(
            self.format,
            format!("{:>3}.{:03} s  {line}", ms / 1000, ms % 1000),
        );
    }

    async fn apply(&self, toml: &str, reason: &str) -> Result<(), Failure> {
        let file: tollgate_core::file::CatalogFile =
            toml::from_str(toml).map_err(Failure::failed)?;
        let body = json!({ "file": file, "reason": reason });
        let _: Value = self.admin.post("/admin/v1/apply", &[], &body).await?;
        Ok(())
    }

    async fn act(&mut self) -> Result<Verdict, Failure> {
        let Kills {
            quarter,
            before_first,
            before_second,
            second,
        } = self.story.kills;
        let before = self.leases().await?;
        self.replay(quarter).await?;
        let cold = self.leases().await?.since(&before);
        self.tell("a quarter of the log is through, one check per client or few: cold");
        self.start_hot();
        // The demand of the log's clients fades first: what is measured is the hot customer alone.
        tokio::time::sleep(FADING).await;
        let before = self.leases().await?;
        tokio::time::sleep(HOT_ALONE).await;
        let hot = self.leases().await?.since(&before);
        self.replay(before_first).await?;
        let mut takeovers = vec![self.kill_leader(quarter).await?];
        let changes = self.change_live().await?;
        self.replay(before_second).await?;
        takeovers.push(self.kill_issuer(second, quarter).await?);
        self.replay(self.story.requests.len()).await?;
        self.end_load().await?;
        for edge in self.cluster.edges() {
            edge.stop().await?;
        }
        self.tell("edges ended: units surrendered, use reported, sessions closed");
        let ledger = verdict::Ledger {
            accounts: self.settled_accounts().await?,
            usage: watch::usage(&self.admin).await?,
        };
        Ok(Verdict::new(
            &self.story,
            &self.tally,
            &ledger,
            Figures {
                cold,
                hot,
                takeovers,
                changes,
            },
        ))
    }

    /// The ledger's accounts once nothing moves any more: issuers return what the edges handed in.
    async fn settled_accounts(&self) -> Result<Accounts, Failure> {
        let deadline = Instant::now() + DEADLINE;
        let mut last = Accounts::read(&self.admin, None).await?;
        loop {
            tokio::time::sleep(STILL).await;
            let now = Accounts::read(&self.admin, None).await?;
            if now == last || Instant::now() > deadline {
                return Ok(now);
            }
            last = now;
        }
    }

    /// Replays the next `count` requests of the log.
    async fn replay(&mut self, count: usize) -> Result<(), Failure> {
        let from = self.next_request;
        let to = (from + count).min(self.story.requests.len());
        self.next_request = to;
        let checks: Vec<Check> = self.story.requests[from..to].to_vec();
        let progress = Arc::new(Progress::new(
            self.format,
            "requests of the log",
            Some(checks.len() as u64),
        ));
        let told = Arc::clone(&progress);
        let subjects = self.story.customers.len();
        let edges = self.cluster.http.clone();
        let advance = Arc::new(move |steps| told.advance(steps));
        let tally = load::run(
            &edges,
            LOG_CONNECTIONS,
            subjects,
            checks.into_iter(),
            advance,
        )
        .await;
        progress.finish();
        self.tally.merge(&tally);
        self.cluster.must_run()
    }

    fn start_hot(&mut self) {
        let stop = Arc::clone(&self.stop_hot);
        let check = self.story.hot_check();
        let checks =
            std::iter::from_fn(move || (!stop.load(Ordering::Relaxed)).then(|| check.clone()));
        let edges = self.cluster.http.clone();
        let subjects = self.story.customers.len();
        self.hot = Some(tokio::spawn(async move {
            let pace = Duration::from_secs(1) / HOT_PER_SECOND * connections();
            load::run_paced(
                &edges,
                HOT_CONNECTIONS,
                subjects,
                checks,
                Arc::new(|_| ()),
                pace,
            )
            .await
        }));
        self.tell("the hot customer is under sustained load at both edges");
    }

    async fn end_load(&mut self) -> Result<(), Failure> {
        self.stop_hot.store(true, Ordering::Relaxed);
        if let Some(hot) = self.hot.take() {
            let tally = hot.await.map_err(Failure::failed)?;
            self.tally.merge(&tally);
        }
        Ok(())
    }

    async fn kill_leader(&mut self, requests: usize) -> Result<Takeover, Failure> {
        let view = ClusterView::read(&self.admin).await?;
        let Some(leader) = view.leader else {
            return Err(Failure::failed(
                "no leader although every slot has an issuer",
            ));
        };
        self.kill(leader, "the Raft leader", requests).await
    }

    /// Kills one of the nodes that issue slots: which of them, `chosen` says. It may lead as well.
    async fn kill_issuer(&mut self, chosen: usize, requests: usize) -> Result<Takeover, Failure> {
        let view = ClusterView::read(&self.admin).await?;
        let owners = view.owners();
        let Some(issuer) = owners.get(chosen % owners.len().max(1)) else {
            return Err(Failure::failed("no node issues any slot"));
        };
        let what = if view.leader == Some(*issuer) {
            "an issuer that leads"
        } else {
            "an issuer"
        };
        self.kill(*issuer, what, requests).await
    }

    /// Kills a node, replays requests meanwhile, and starts it again.
    async fn kill(
        &mut self,
        node: u64,
        what: &'static str,
        requests: usize,
    ) -> Result<Takeover, Failure> {
        let slots = ClusterView::read(&self.admin).await?.slots_of(node);
        self.cluster.node(node).kill()?;
        let killed = Instant::now();
        self.tell(format!(
            "kill -9 of {what}, node {node}, which issued {slots} slots, after {} requests of the log",
            self.next_request
        ));
        let admin = self.admin.clone();
        let watch = tokio::spawn(async move {
            wait_for_owners(&admin, &[node])
                .await
                .map(|_| killed.elapsed())
        });
        self.replay(requests).await?;
        let without_issuer = watch.await.map_err(Failure::failed)??;
        self.tell(format!(
            "its slots had no issuer for {} ms; requests went on meanwhile",
            without_issuer.as_millis()
        ));
        self.cluster.node(node).start()?;
        self.wait_for_node(node).await?;
        self.tell(format!("node {node} is back"));
        Ok(Takeover {
            what,
            node,
            slots,
            without_issuer_ms: u64::try_from(without_issuer.as_millis()).unwrap_or(u64::MAX),
        })
    }

    /// Raises a quota and revokes a key while everything runs; answers how long until both edges knew.
    async fn change_live(&mut self) -> Result<verdict::Changes, Failure> {
        let (raised, revoked) = (self.story.raised, self.story.revoked);
        self.apply(&self.story.raise(), "the customer asked for more")
            .await?;
        let acknowledged = Instant::now();
        self.wait_for_answer(raised, true).await?;
        let raise = acknowledged.elapsed();
        let customer = &self.story.customers[raised];
        self.tell(format!(
            "quota of {} raised from {} to {}: both edges admit again after {} ms",
            customer.id,
            story::RAISED.0,
            story::RAISED.1,
            raise.as_millis()
        ));
        let key = self.story.customers[revoked].key.clone();
        let path = format!("/admin/v1/keys/{key}/revoke");
        let body = json!({ "reason": "the demo revokes a key" });
        let _: Value = self.admin.post(&path, &[], &body).await?;
        let acknowledged = Instant::now();
        self.wait_for_answer(revoked, false).await?;
        let revoke = acknowledged.elapsed();
        self.tell(format!(
            "key {key} revoked: both edges refuse it after {} ms",
            revoke.as_millis()
        ));
        let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        Ok(verdict::Changes {
            raise_ms: ms(raise),
            revoke_ms: ms(revoke),
        })
    }

    /// Asks both edges until each answers as expected; what they admit meanwhile is counted like the rest.
    async fn wait_for_answer(&mut self, subject: usize, allowed: bool) -> Result<(), Failure> {
        let deadline = Instant::now() + DEADLINE;
        for addr in self.cluster.http.clone() {
            let mut client = Client::new(addr);
            loop {
                let check = self.story.check(subject);
                let asked = Instant::now();
                let outcome = client.check(&check).await;
                self.tally.note(&check, &outcome, asked.elapsed());
                match outcome {
                    Ok(answer) if answer.allowed == allowed => break,
                    Ok(_) if Instant::now() < deadline => tokio::time::sleep(ASK_EVERY).await,
                    Ok(answer) => {
                        return Err(Failure::failed(format!(
                            "{addr} still answers `{}` after {} s",
                            answer.reason,
                            DEADLINE.as_secs()
                        )));
                    }
                    Err(e) => return Err(Failure::failed(e)),
                }
            }
        }
        Ok(())
    }

    async fn wait_for_owners(&mut self, dead: &[u64]) -> Result<ClusterView, Failure> {
        let view = wait_for_owners(&self.admin, dead).await;
        self.cluster.must_run()?;
        view
    }

    /// Waits until a restarted node answers and has applied what the others had when it was asked first.
    async fn wait_for_node(&mut self, node: u64) -> Result<(), Failure> {
        let index = usize::try_from(node).unwrap_or(0).saturating_sub(1);
        let target = ClusterView::read(&self.admin).await?.applied;
        let admin = self.admin.at(self.cluster.admin[index]);
        let deadline = Instant::now() + DEADLINE;
        loop {
            if ClusterView::read(&admin)
                .await
                .is_ok_and(|view| view.applied >= target && view.leader.is_some())
            {
                return Ok(());
            }
            self.cluster.must_run()?;
            if Instant::now() > deadline {
                return Err(Failure::failed(format!(
                    "node {node} has not caught up within {} s",
                    DEADLINE.as_secs()
                )));
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    async fn wait_for_edges(&mut self) -> Result<(), Failure> {
        let deadline = Instant::now() + DEADLINE;
        for addr in self.cluster.http.clone() {
            while !load::is_ready(addr).await {
                self.cluster.must_run()?;
                if Instant::now() > deadline {
                    return Err(Failure::failed(format!(
                        "the edge at {addr} is not ready within {} s",
                        DEADLINE.as_secs()
                    )));
                }
                tokio::time::sleep(ASK_EVERY).await;
            }
        }
        Ok(())
    }

    /// Lease round trips and checks at both edges, from their metrics.
    async fn leases(&self) -> Result<verdict::Leases, Failure> {
        let mut sum = verdict::Leases::default();
        for addr in &self.cluster.http {
            let text = load::metrics(*addr).await.map_err(Failure::failed)?;
            sum.add(&text);
        }
        Ok(sum)
    }

    /// Serves until it is asked to end; a node that was killed meanwhile, as the text invites to, is no failure.
    async fn stay(&mut self) -> Result<(), Failure> {
        for edge in self.cluster.edges() {
            edge.start()?;
        }
        self.wait_for_edges().await?;
        let program = std::env::current_exe().map_err(Failure::failed)?;
        let asked_to_end = super::terminated()?;
        say(
            self.format,
            self.what_to_try(&program.display().to_string()),
        );
        asked_to_end.await;
        for edge in self.cluster.edges() {
            edge.stop().await?;
        }
        for node in self.cluster.nodes() {
            if node.must_run().is_ok() {
                node.stop().await?;
            }
        }
        say(
            self.format,
            format!(
                "Ended; data and logs stay in {}",
                self.cluster.dir.display()
            ),
        );
        Ok(())
    }

    fn what_to_try(&self, tollgate: &str) -> String {
        let [first, second] = [self.cluster.http[0], self.cluster.http[1]];
        let credential = &self.story.customers[self.story.hot].credential;
        let dir = self.cluster.dir.display();
        let admin: Vec<String> = self.cluster.admin.iter().map(ToString::to_string).collect();
        let admin = admin.join(",");
        let mut pids = String::new();
        for node in 1..=3 {
            if let Some(pid) = self.cluster.pid(node) {
                pids.push_str(&format!("  kill -9 {pid}   # node {node}\n"));
            }
        }
        format!(
            "
Still serving. Try, in another terminal:

  curl -s http://{first}/v1/check -H 'content-type: application/json' \\
    -d '{{\"credential\":\"{credential}\",\"method\":\"GET\",\"path\":\"/v1/orders/7\",\"cost\":1}}'
  curl -s http://{second}/metrics

  export TOLLGATE_ADDR={admin} TOLLGATE_TLS_DIR={dir}/tls
  alias tollgate={tollgate}
  tollgate status
  tollgate usage --customer hot
  tollgate key create --license hot --reason 'another key'
  tollgate audit verify

Kill a node; checks go on, and `tollgate status` shows who took its slots over:

{pids}  tollgate server --config {dir}/node-1.toml   # starts node 1 again, until Ctrl-C

Data, logs and configuration: {dir}
Ctrl-C here ends it."
        )
    }
}

/// Asks until every slot belongs to a node that is not among `dead`.
async fn wait_for_owners(admin: &AdminClient, dead: &[u64]) -> Result<ClusterView, Failure> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let seen = ClusterView::read(admin).await;
        if let Ok(view) = &seen
            && view.all_owned_without(dead)
        {
            return seen;
        }
        if Instant::now() > deadline {
            let why = match seen {
                Ok(view) => format!("{} slots have no live issuer", view.unowned_without(dead)),
                Err(e) => e.message,
            };
            return Err(Failure::failed(format!(
                "after {} s: {why}",
                DEADLINE.as_secs()
            )));
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}
