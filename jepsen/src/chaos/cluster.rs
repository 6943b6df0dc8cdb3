//! The processes under test, every link between them through a proxy, and what their admin API says.
//!
//! Owns: `tollgate server` three times, `tollgate edge` twice, one proxy per (edge, node) link and one in front of each
//! node for the other nodes, whose datagrams it tells apart by where they are from. All processes end with the
//! value, whatever ends it. Refuses: to judge what is answered. Read next: `nemesis.rs`.

use super::evidence::{NodeEnd, Row, Use};
use super::plan::{Way, Weather};
use crate::proxy::{Chance, Direction, Faults, Proxy};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;
use tollgate::admin_client::AdminClient;
use tollgate::local_cluster::{EDGES, LocalCluster, NODES};
use tollgate::output::Failure;

/// How long something may take to come about before the runner gives up on the run.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// How often something waited for is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// How long one node may take to say how it stands.
const STATUS_DEADLINE: Duration = Duration::from_secs(1);

/// Rows asked for at once.
const PAGE: usize = 1_000;

/// The cluster.
pub struct Cluster {
    local: LocalCluster,
    admin: AdminClient,
    /// By edge, then by node.
    edge_links: Vec<Vec<Proxy>>,
    /// By node: what the other nodes send to it.
    node_links: Vec<Proxy>,
    /// By node, then by edge: which processes the runner wants to run.
    nodes_run: [bool; NODES],
    edges_run: [bool; EDGES],
}

/// How a node says it stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// The node.
    pub node: u64,
    /// Its term.
    pub term: u64,
    /// Whom it takes for the leader.
    pub leader: Option<u64>,
    /// The log index of its ledger.
    pub ledger_index: u64,
    /// Digest of its ledger.
    pub digest: String,
    /// Log index of its catalog revision.
    pub revision: u64,
    /// Slots by owner.
    pub slots: BTreeMap<u64, u64>,
    /// Units in suspense.
    pub suspense: u64,
    /// Alarms by name, those above 0.
    pub alarms: BTreeMap<String, u64>,
}

impl Standing {
    fn read(value: &Value) -> Option<Self> {
        let number = |value: &Value, field: &str| value.get(field).and_then(Value::as_u64);
        let mut slots = BTreeMap::new();
        for (node, count) in value.get("slots")?.as_object()? {
            slots.insert(node.parse().ok()?, count.as_u64()?);
        }
        let alarms = value.get("alarms").and_then(Value::as_object);
        let alarms = alarms.into_iter().flatten();
        Some(Self {
            node: number(value, "node")?,
            term: number(value, "term")?,
            leader: number(value, "leader"),
            ledger_index: number(value, "ledger_index")?,
            digest: value.get("digest")?.as_str()?.to_owned(),
            revision: revision_index(value)?,
            slots,
            suspense: number(value, "suspense_units").unwrap_or(0),
            alarms: alarms
                .filter_map(|(name, count)| {
                    Some((name.clone(), count.as_u64().filter(|n| *n > 0)?))
                })
                .collect(),
        })
    }

    /// As evidence.
    #[must_use]
    pub fn end(&self) -> NodeEnd {
        NodeEnd {
            node: self.node,
            digest_index: self.ledger_index,
            digest: self.digest.clone(),
            revision: self.revision,
        }
    }
}

/// The log index in the `revision` of an answer: the number after the dash of `1-812`.
#[must_use]
pub fn revision_index(answer: &Value) -> Option<u64> {
    let text = answer.get("revision")?.as_str()?;
    text.rsplit_once('-')?.1.parse().ok()
}

/// Looks until something is there.
///
/// # Errors
/// [`Failure`] naming what never came.
pub async fn until<T, F>(what: &str, mut look: impl FnMut() -> F) -> Result<T, Failure>
where
    F: Future<Output = Option<T>>,
{
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look().await {
            return Ok(found);
        }
        if Instant::now() > deadline {
            let seconds = DEADLINE.as_secs();
            return Err(Failure::failed(format!("not within {seconds} s: {what}")));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

impl Cluster {
    /// Writes configurations and starts the proxies; starts no process.
    ///
    /// # Errors
    /// [`Failure`] naming the file or the port.
    pub async fn prepare(dir: &Path, program: &Path, seed: u64) -> Result<Self, Failure> {
        let local = LocalCluster::prepare(dir, program)?;
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut seed = seed;
        let mut proxy = async |target| {
            seed = seed.wrapping_add(1);
            let started = Proxy::start(any, target, seed).await;
            started.map_err(|e| Failure::failed(format!("a proxy for {target}: {e}")))
        };
        let (mut edge_links, mut node_links) = (Vec::new(), Vec::new());
        for edge in 1..=EDGES {
            let mut links = Vec::new();
            for target in &local.quic {
                links.push(proxy(*target).await?);
            }
            local.reroute(edge, &addresses(&links))?;
            edge_links.push(links);
        }
        for target in &local.quic {
            node_links.push(proxy(*target).await?);
        }
        local.reroute_nodes(&addresses(&node_links))?;
        let admin = AdminClient::new(&local.admin_args())?;
        Ok(Self {
            local,
            admin,
            edge_links,
            node_links,
            nodes_run: [false; NODES],
            edges_run: [false; EDGES],
        })
    }

    /// Edges' HTTP addresses, from edge 1.
    #[must_use]
    pub fn http(&self) -> Vec<SocketAddr> {
        self.local.http.clone()
    }

    /// The admin API, whichever node answers first.
    #[must_use]
    pub fn admin(&self) -> &AdminClient {
        &self.admin
    }

    /// Starts a node, from 1.
    ///
    /// # Errors
    /// [`Failure`] naming the program.
    pub fn start_node(&mut self, node: u64) -> Result<(), Failure> {
        self.local.node(node).start()?;
        self.nodes_run[index(node)] = true;
        Ok(())
    }

    /// `kill -9` of a node; it is gone on return.
    ///
    /// # Errors
    /// [`Failure`] when it had ended by itself, with the end of its log.
    pub fn kill_node(&mut self, node: u64) -> Result<(), Failure> {
        self.local.node(node).must_run()?;
        self.local.node(node).kill()?;
        self.nodes_run[index(node)] = false;
        Ok(())
    }

    /// Starts an edge, from 1.
    ///
    /// # Errors
    /// [`Failure`] naming the program.
    pub fn start_edge(&mut self, edge: u64) -> Result<(), Failure> {
        self.local.edges()[index(edge)].start()?;
        self.edges_run[index(edge)] = true;
        Ok(())
    }

    /// `kill -9` of an edge; it is gone on return.
    ///
    /// # Errors
    /// [`Failure`] when it had ended by itself, with the end of its log.
    pub fn kill_edge(&mut self, edge: u64) -> Result<(), Failure> {
        let process = &mut self.local.edges()[index(edge)];
        process.must_run()?;
        process.kill()?;
        self.edges_run[index(edge)] = false;
        Ok(())
    }

    /// Asks an edge to end, and waits for it.
    ///
    /// # Errors
    /// [`Failure`] when it does not end, or says that something was left.
    pub async fn stop_edge(&mut self, edge: u64) -> Result<(), Failure> {
        self.edges_run[index(edge)] = false;
        self.local.edges()[index(edge)].stop().await
    }

    /// Asks a node to end, and waits for it.
    ///
    /// # Errors
    /// [`Failure`] when it does not end, or not well.
    pub async fn stop_node(&mut self, node: u64) -> Result<(), Failure> {
        self.nodes_run[index(node)] = false;
        self.local.node(node).stop().await
    }

    /// Fails if a process has ended by itself.
    ///
    /// # Errors
    /// [`Failure`] with the end of its log.
    pub fn must_run(&mut self) -> Result<(), Failure> {
        self.local.must_run()
    }

    /// Nodes that run, from 1.
    #[must_use]
    pub fn running_nodes(&self) -> Vec<u64> {
        (1..)
            .zip(self.nodes_run)
            .filter(|(_, run)| *run)
            .map(|(node, _)| node)
            .collect()
    }

    /// Edges that run, from 1.
    #[must_use]
    pub fn running_edges(&self) -> Vec<u32> {
        (1..)
            .zip(self.edges_run)
            .filter(|(_, run)| *run)
            .map(|(edge, _)| edge)
            .collect()
    }

    /// What one node says; none if it does not answer.
    pub async fn standing(&self, node: u64) -> Option<Standing> {
        let admin = self.admin.at(self.local.admin[index(node)]);
        let asked = admin.get::<Value>("/admin/v1/status");
        let answer = tokio::time::timeout(STATUS_DEADLINE, asked).await;
        Standing::read(&answer.ok()?.ok()?)
    }

    /// What every running node says.
    pub async fn standings(&self) -> Vec<Standing> {
        let mut all = Vec::new();
        for node in self.running_nodes() {
            all.extend(self.standing(node).await);
        }
        all
    }

    /// The leader, if it runs and a running node knows it: the word of the highest term counts.
    pub async fn leader(&self) -> Option<Standing> {
        let all = self.standings().await;
        let newest = all.iter().max_by_key(|standing| standing.term)?;
        let leader = newest.leader?;
        all.iter().find(|standing| standing.node == leader).cloned()
    }

    /// Sets the state of all links between edges and nodes; cuts stay.
    pub fn set_weather(&self, weather: Weather) {
        for link in self.edge_links.iter().flatten() {
            for direction in [Direction::Out, Direction::Back] {
                link.set(
                    direction,
                    Faults {
                        cut: link.faults(direction).cut,
                        loss: Chance::percent(weather.loss_percent),
                        duplication: Chance::percent(weather.duplication_percent),
                        reordering: Chance::percent(weather.reordering_percent),
                        delay: Duration::from_millis(weather.delay_ms),
                        jitter: Duration::from_millis(weather.jitter_ms),
                    },
                );
            }
        }
    }

    /// Cuts an edge from a node, or from all of them.
    pub fn cut_edge(&self, edge: u64, node: Option<u64>, way: Way) {
        for (link, number) in self.edge_links[index(edge)].iter().zip(1..) {
            if node.is_none_or(|node| node == number) {
                match way {
                    Way::Both => link.cut_both(),
                    Way::FromEdge => link.cut(Direction::Out),
                    Way::ToEdge => link.cut(Direction::Back),
                }
            }
        }
    }

    /// Cuts a node from the other nodes, both ways; edges still reach it.
    pub fn isolate(&self, node: u64) {
        let own = self.local.quic[index(node)];
        for (link, number) in self.node_links.iter().zip(1..) {
            if number == node {
                link.cut_both();
            } else {
                // A node asks others from the address at which it is asked.
                link.cut_off(own);
            }
        }
    }

    /// Lifts every cut.
    pub fn heal(&self) {
        self.edge_links
            .iter()
            .flatten()
            .chain(&self.node_links)
            .for_each(Proxy::heal);
    }

    /// Datagrams that were lost, doubled, reordered or cut, over all links: what the proxies really did.
    #[must_use]
    pub fn datagrams(&self) -> BTreeMap<&'static str, u64> {
        let mut sums = BTreeMap::new();
        for link in self.edge_links.iter().flatten().chain(&self.node_links) {
            for direction in [Direction::Out, Direction::Back] {
                let counts = link.counts(direction);
                for (what, count) in [
                    ("forwarded", counts.forwarded),
                    ("lost", counts.lost),
                    ("cut", counts.cut),
                    ("doubled", counts.duplicated),
                    ("reordered", counts.reordered),
                ] {
                    *sums.entry(what).or_default() += count;
                }
            }
        }
        sums
    }

    /// The ledger's accounts.
    ///
    /// # Errors
    /// [`Failure`] when they cannot be had.
    pub async fn accounts(&self) -> Result<Vec<Row>, Failure> {
        let mut rows = Vec::new();
        for item in self.listing("accounts").await? {
            let number = |field: &str| item.get(field).and_then(Value::as_u64);
            let row = || {
                Some(Row {
                    account: item.get("account")?.as_str()?.to_owned(),
                    settled: number("settled")?,
                    excess: number("excess")?,
                    out: number("out")?,
                    limit: number("limit"),
                })
            };
            rows.push(row().ok_or_else(|| unexpected("an account", &item))?);
        }
        Ok(rows)
    }

    /// Applies a catalog file.
    ///
    /// # Errors
    /// [`Failure`] with the node's words.
    pub async fn apply(&self, toml: &str) -> Result<(), Failure> {
        let body = json!({ "file": catalog(toml)?, "reason": "the chaos run begins" });
        self.admin
            .post::<Value>("/admin/v1/apply", &[], &body)
            .await
            .map(drop)
    }

    /// Metered use by customer.
    ///
    /// # Errors
    /// [`Failure`] when it cannot be had.
    pub async fn usage(&self) -> Result<Vec<Use>, Failure> {
        let mut sums: BTreeMap<String, u64> = BTreeMap::new();
        for item in self.listing("usage").await? {
            let customer = item.get("customer").and_then(Value::as_str);
            let units = item.get("units").and_then(Value::as_u64);
            let (Some(customer), Some(units)) = (customer, units) else {
                return Err(unexpected("a line of usage", &item));
            };
            *sums.entry(customer.to_owned()).or_default() += units;
        }
        Ok(sums
            .into_iter()
            .map(|(customer, units)| Use { customer, units })
            .collect())
    }

    async fn listing(&self, kind: &str) -> Result<Vec<Value>, Failure> {
        let mut all = Vec::new();
        let mut after = String::new();
        loop {
            let path = format!("/admin/v1/{kind}?limit={PAGE}{after}");
            let page: Value = self.admin.get(&path).await?;
            let items = page.get(kind).and_then(Value::as_array);
            all.extend(
                items
                    .ok_or_else(|| unexpected("a page", &page))?
                    .iter()
                    .cloned(),
            );
            match page.get("next").and_then(Value::as_str) {
                Some(next) => after = format!("&after={}", percent_encoded(next)),
                None => return Ok(all),
            }
        }
    }
}

/// A catalog file as the admin API takes it.
///
/// # Errors
/// [`Failure`] when it is no TOML.
pub fn catalog(text: &str) -> Result<Value, Failure> {
    toml::from_str(text).map_err(Failure::failed)
}

fn unexpected(what: &str, found: &Value) -> Failure {
    Failure::failed(format!("the admin API answered {found} for {what}"))
}

fn percent_encoded(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
            char::from(byte).to_string()
        }
        other => format!("%{other:02X}"),
    };
    text.bytes().map(encode).collect()
}

fn addresses(links: &[Proxy]) -> Vec<SocketAddr> {
    links.iter().map(Proxy::address).collect()
}

/// Position of a process by its number, from 1.
fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(1).saturating_sub(1)
}
