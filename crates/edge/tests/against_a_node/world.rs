//! A cluster in one process: the real ledger and one real issuer per node behind real QUIC, without Raft.
//!
//! What is proposed is applied at once, or when the test says so. Every node reads the same ledger.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tollgate_core::account::{Environment, Name, Per, Window};
use tollgate_core::admin::{AdminCommand, AdminReply, Change, Item};
use tollgate_core::catalog::{Limit, Overage, PepperId, Refusal, SecretMac};
use tollgate_core::command::{
    Assign, CloseSession, Command, Entry, OpenNode, OpenNodeReply, OpenSession, OpenSessionReply,
    Reply, ReportReply,
};
use tollgate_core::credential;
use tollgate_core::ids::{Boot, Incarnation, NodeId, Nonce, Revision, Seq, SessionId, Slot, Units};
use tollgate_core::issuer::{Issuer, Output, ResolveLease};
use tollgate_core::ledger::Ledger;
use tollgate_core::message::{
    EdgeMessage, Hello, NodeMessage, Resolve, ResolveAnswer, ResolveOutcome, Sender, SessionAnswer,
};
use tollgate_core::time::{LedgerTime, Mono};
use tollgate_edge::{CheckRequest, Edge, EdgeConfig, NodeConfig, Reason, SessionState, TlsConfig};
use tollgate_wire::certs::{Authority, Validity};
use tollgate_wire::codec;
use tollgate_wire::frame::{Class, FrameWriter};
use tollgate_wire::identity::Role;
use tollgate_wire::quic::{Accepted, Connection, Endpoint, Framed, Protocol, SendHalf};
use tollgate_wire::tls::Tls;

/// Far longer than anything here takes; only a hang meets it.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
const CLUSTER: &str = "c";

type Queue = mpsc::UnboundedSender<NodeMessage>;

/// One connection of an edge, as its node sees it.
struct Contact {
    identity: Name,
    boot: Option<Boot>,
    queues: BTreeMap<Class, Queue>,
    connection: Connection,
}

struct Node {
    boot: Boot,
    issuer: Issuer,
    contacts: BTreeMap<u64, Contact>,
    /// Answers nothing at all.
    mute: bool,
}

/// What edges asked, over all nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Asked {
    /// Questions who somebody is, each once however often it came.
    pub(crate) resolves: u64,
    pub(crate) leases: u64,
    pub(crate) held: u64,
    pub(crate) reports: u64,
}

pub(crate) struct State {
    pub(crate) ledger: Ledger,
    started: Instant,
    nodes: BTreeMap<NodeId, Node>,
    /// Connections of edges so far.
    pub(crate) contacts: u64,
    pub(crate) asked: Asked,
    /// Every report that came, in order.
    pub(crate) reports: Vec<(SessionId, Boot, Seq)>,
    /// Whose keepalives came, in order, each once in a row.
    pub(crate) kept_alive: Vec<Boot>,
    /// Proposals wait until this is false.
    pub(crate) hold_positions: bool,
    held: VecDeque<(NodeId, Command)>,
    /// Reports are applied, but their answers are lost.
    pub(crate) lose_report_answers: bool,
    /// Nobody opens a session.
    pub(crate) refuse_sessions: bool,
    keys: u32,
    questions: BTreeSet<(Boot, u64)>,
}

pub(crate) struct World {
    pub(crate) home: TempDir,
    authority: Authority,
    state: Arc<Mutex<State>>,
    addresses: BTreeMap<NodeId, SocketAddr>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub(crate) fn limit(name_: &str, per: Per, quota: Units) -> Limit {
    Limit {
        name: name(name_),
        meter: name("requests"),
        per,
        quota,
        window: Window::Open,
        overage: Overage::Reject,
    }
}

impl World {
    /// A cluster of so many nodes that share the slots.
    pub(crate) fn with_nodes(nodes: u64) -> Self {
        let home = tempfile::tempdir().unwrap();
        let authority = Authority::create(home.path(), CLUSTER, Validity::days(1), false).unwrap();
        let state = State {
            ledger: Ledger::new(Incarnation(1)),
            started: Instant::now(),
            nodes: BTreeMap::new(),
            contacts: 0,
            asked: Asked::default(),
            reports: Vec::new(),
            kept_alive: Vec::new(),
            hold_positions: false,
            held: VecDeque::new(),
            lose_report_answers: false,
            refuse_sessions: false,
            keys: 0,
            questions: BTreeSet::new(),
        };
        let state = Arc::new(Mutex::new(state));
        let mut world = Self {
            home,
            authority,
            state,
            addresses: BTreeMap::new(),
            tasks: Vec::new(),
        };
        for node in (1..=nodes).map(NodeId) {
            world.state().start(node);
            world.listen(node);
        }
        world
            .state()
            .spread(&(1..=nodes).map(NodeId).collect::<Vec<_>>());
        let state = world.state.clone();
        world.tasks.push(tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(20)).await;
                state.lock().unwrap().tick();
            }
        }));
        world
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // A test that asks twice in one statement would wait for itself.
        let patience = Instant::now() + DEADLINE;
        loop {
            match self.state.try_lock() {
                Ok(state) => return state,
                Err(error) => assert!(Instant::now() < patience, "{error}"),
            }
            std::thread::yield_now();
        }
    }

    fn listen(&mut self, node: NodeId) {
        let tls = self.tls(Role::Node, &node.to_string());
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let endpoint = Endpoint::listen(any, &tls, &[Protocol::Edge]).unwrap();
        self.addresses.insert(node, endpoint.local_addr().unwrap());
        let state = self.state.clone();
        self.tasks.push(tokio::spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                let state = state.clone();
                tokio::spawn(async move {
                    if let Ok(connection) = incoming.establish().await {
                        serve(state, node, connection).await;
                    }
                });
            }
        }));
    }

    fn tls(&self, role: Role, name: &str) -> Tls {
        let files =
            self.authority
                .issue(self.home.path(), (role, name), &[], Validity::days(1), true);
        Tls::load(files.unwrap(), role).unwrap()
    }

    /// The configuration of an edge that knows every node.
    pub(crate) fn config(&self, edge: &str) -> EdgeConfig {
        let files = self
            .authority
            .issue(
                self.home.path(),
                (Role::Edge, edge),
                &[],
                Validity::days(1),
                true,
            )
            .unwrap();
        EdgeConfig {
            cluster: name(CLUSTER),
            nodes: self
                .addresses
                .iter()
                .map(|(id, address)| NodeConfig {
                    id: *id,
                    address: address.to_string(),
                })
                .collect(),
            tls: TlsConfig {
                ca: files.ca,
                certificate: files.certificate,
                key: files.key,
            },
            journal: None,
            journal_interval: Duration::from_millis(500),
            report_spacing: Duration::from_millis(100),
            keepalive: Duration::from_millis(200),
            cold_deadline: Duration::from_secs(10),
            max_stale: Duration::from_secs(600),
        }
    }

    pub(crate) fn journal(&self) -> PathBuf {
        self.home.path().join("journal")
    }

    pub(crate) fn config_with_journal(&self, edge: &str) -> EdgeConfig {
        EdgeConfig {
            journal: Some(self.journal()),
            ..self.config(edge)
        }
    }

    /// An edge that answers checks.
    pub(crate) async fn edge(&self, edge: &str) -> Edge {
        ready(self.config(edge)).await
    }

    /// Waits until the state is as `is` wants it.
    pub(crate) async fn until(&self, what: &str, mut is: impl FnMut(&mut State) -> bool) {
        let ended = tokio::time::timeout(DEADLINE, async {
            while !is(&mut self.state()) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        assert!(ended.await.is_ok(), "never: {what}");
    }
}

pub(crate) async fn ready(config: EdgeConfig) -> Edge {
    // Seen with RUST_LOG, when a test fails; only the first one succeeds.
    let log = tracing_subscriber::fmt().with_test_writer();
    let _ = log
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .try_init();
    let edge = Edge::connect(config).await.unwrap();
    assert!(edge.ready(DEADLINE).await, "{:?}", edge.status());
    edge
}

/// Checks so often, each of them allowed.
pub(crate) async fn allow(edge: &Edge, credential: &str, checks: usize) {
    for _ in 0..checks {
        let decision = edge.check_or_wait(&CheckRequest::new(credential)).await;
        assert_eq!(decision.reason(), Reason::Ok, "{:?}", edge.status());
    }
}

/// The session an edge has open, and its boot.
pub(crate) fn open_session(edge: &Edge) -> (SessionId, Boot) {
    match edge.status().session {
        SessionState::Open { session, boot } => (session, boot),
        other => panic!("{other:?}"),
    }
}

/// Waits until the edge is as `is` wants it.
pub(crate) async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let ended = tokio::time::timeout(DEADLINE, async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    assert!(ended.await.is_ok(), "never: {what}");
}

impl State {
    fn now(&self) -> Mono {
        Mono(u64::try_from(self.started.elapsed().as_millis()).unwrap() + 1)
    }

    pub(crate) fn apply(&mut self, command: Command) -> Reply {
        let index = self.ledger.index() + 1;
        let entry = Entry {
            time: LedgerTime(1_700_000_000_000 + index),
            commands: vec![command],
        };
        let before = (self.ledger.catalog().revision(), self.ledger.routes_index());
        let reply = self.ledger.apply(index, &entry).remove(0);
        let now = self.now();
        for node in self.nodes.values_mut() {
            node.issuer.handle_applied(now, &self.ledger);
        }
        self.tell_news(before);
        reply
    }

    fn tell_news(&mut self, (revision, routes_index): (Revision, u64)) {
        let mut news = Vec::new();
        if self.ledger.routes_index() > routes_index {
            news.push(self.routes());
        }
        if self.ledger.catalog().revision() > revision {
            news.push(NodeMessage::Push {
                revision: self.ledger.catalog().revision(),
            });
        }
        for contact in self
            .nodes
            .values()
            .filter(|n| !n.mute)
            .flat_map(|n| n.contacts.values())
        {
            for message in &news {
                contact.send(Class::Control, message.clone());
            }
        }
    }

    fn routes(&self) -> NodeMessage {
        let routes = Slot::all().map(|slot| self.ledger.route(slot)).collect();
        NodeMessage::Routes {
            index: self.ledger.routes_index(),
            routes,
        }
    }

    /// Starts a node anew: a new boot, an empty book.
    fn start(&mut self, id: NodeId) {
        let nonce = Nonce(self.ledger.index() + 1);
        let Reply::OpenNode(OpenNodeReply::Boot(boot)) =
            self.apply(Command::OpenNode(OpenNode { node: id, nonce }))
        else {
            panic!("no boot")
        };
        let issuer = Issuer::new(id, boot);
        self.nodes.insert(
            id,
            Node {
                boot,
                issuer,
                contacts: BTreeMap::new(),
                mute: false,
            },
        );
    }

    /// Gives the slots to these nodes in turn.
    pub(crate) fn spread(&mut self, nodes: &[NodeId]) {
        for (turn, node) in nodes.iter().enumerate() {
            let slots = Slot::all().filter(|slot| slot.index() % nodes.len() == turn);
            let slots = slots
                .map(|slot| (slot, self.ledger.route(slot).epoch))
                .collect();
            let boot = self.nodes[node].boot;
            self.apply(Command::Assign(Assign {
                slots,
                node: *node,
                boot,
            }));
        }
    }

    /// The node answers nothing any more; its connections stay.
    pub(crate) fn mute(&mut self, node: NodeId) {
        self.nodes.get_mut(&node).unwrap().mute = true;
    }

    /// Cuts every connection; edges dial again.
    pub(crate) fn cut(&mut self) {
        for contact in self.nodes.values().flat_map(|node| node.contacts.values()) {
            contact
                .connection
                .close(tollgate_wire::quic::CloseCode::Done, "cut by the test");
        }
    }

    /// The session ends, and not by its edge.
    pub(crate) fn end(&mut self, session: SessionId) {
        let known = self.ledger.session(session).unwrap();
        let close = CloseSession {
            session,
            boot: known.boot,
            last_seq: known.last_seq,
        };
        let reply = self.apply(Command::CloseSession(close));
        assert!(
            matches!(reply, Reply::CloseSession(ReportReply::Settled { .. })),
            "{reply:?}"
        );
    }

    /// A session as an edge of this name opens it, without the edge.
    pub(crate) fn open_session(&mut self, edge: &str, nonce: Nonce) -> (SessionId, Boot) {
        let open = OpenSession {
            session: None,
            nonce,
            identity: name(edge),
            incarnation: self.ledger.incarnation(),
        };
        match self.apply(Command::OpenSession(open)) {
            Reply::OpenSession(OpenSessionReply::Opened { session, boot, .. }) => (session, boot),
            other => panic!("{other:?}"),
        }
    }

    /// Another process goes on with the session, as a copy of its journal would.
    pub(crate) fn fence(&mut self, session: SessionId) {
        let known = self.ledger.session(session).unwrap();
        let (identity, nonce) = (known.identity.clone(), known.nonce);
        let incarnation = self.ledger.incarnation();
        let open = OpenSession {
            session: Some(session),
            nonce,
            identity,
            incarnation,
        };
        let next = OpenSession {
            nonce: Nonce(nonce.0.wrapping_add(1).max(1)),
            ..open
        };
        self.apply(Command::OpenSession(next));
    }

    fn admin(&mut self, change: Change) -> AdminReply {
        let command = AdminCommand {
            principal: name("tester"),
            idempotency_key: None,
            base_revision: None,
            reason: "a test".into(),
            change,
        };
        match self.apply(Command::Admin(Box::new(command))) {
            Reply::Admin(reply) => *reply,
            other => panic!("{other:?}"),
        }
    }

    /// A customer with a plan of its own and one key; answers the credential.
    pub(crate) fn add_customer(&mut self, customer: &str, limits: &[Limit]) -> String {
        self.set_limits(customer, limits);
        let license = format!("{customer}-license");
        let items = vec![
            Item::Customer { id: name(customer) },
            Item::License {
                id: name(&license),
                customer: name(customer),
                plan: name(customer),
                version: None,
                status: None,
            },
        ];
        let reply = self.admin(Change::Apply { items });
        assert!(matches!(reply, AdminReply::Done { .. }), "{reply:?}");
        self.add_key(customer)
    }

    pub(crate) fn set_limits(&mut self, customer: &str, limits: &[Limit]) {
        let items = vec![Item::Plan {
            id: name(customer),
            limits: limits.to_vec(),
        }];
        let reply = self.admin(Change::Apply { items });
        assert!(matches!(reply, AdminReply::Done { .. }), "{reply:?}");
    }

    /// Another key of the customer's licence.
    pub(crate) fn add_key(&mut self, customer: &str) -> String {
        self.keys += 1;
        let mut random = [0; credential::RANDOM_BYTES];
        random[..4].copy_from_slice(&self.keys.to_be_bytes());
        let composed = credential::compose(Environment::Live, Slot::of(customer), &random);
        let secret = credential::parse(&composed.text).unwrap().secret_sha256();
        let reply = self.admin(Change::CreateKey {
            license: name(&format!("{customer}-license")),
            environment: Environment::Live,
            id: composed.key,
            mac: mac(secret),
            valid_until: None,
        });
        assert!(matches!(reply, AdminReply::KeyCreated { .. }), "{reply:?}");
        composed.text
    }

    pub(crate) fn revoke(&mut self, credential: &str) {
        let key = name(credential::parse(credential).unwrap().key);
        let reply = self.admin(Change::RevokeKey { key });
        assert!(matches!(reply, AdminReply::Done { .. }), "{reply:?}");
    }

    /// (settled, out, excess) summed over all accounts.
    pub(crate) fn sums(&self) -> (Units, Units, Units) {
        self.ledger
            .accounts()
            .fold((0, 0, 0), |(settled, out, excess), (_, row)| {
                (settled + row.settled, out + row.out, excess + row.excess)
            })
    }

    /// Units settled, and units that are out but in no node's pool: with edges, or stranded.
    pub(crate) fn settled_and_with_edges(&self) -> (Units, Units) {
        let pools: Units = self.nodes.values().map(|node| node.issuer.pooled()).sum();
        let (settled, out, _) = self.sums();
        (settled, out - pools)
    }

    pub(crate) fn used(&self) -> Units {
        self.ledger.usage().map(|(_, units)| units).sum()
    }

    fn tick(&mut self) {
        let now = self.now();
        if !self.hold_positions {
            for (id, command) in std::mem::take(&mut self.held) {
                self.propose(id, command);
            }
        }
        for node in self.nodes.values_mut() {
            node.issuer.handle_timeout(now, &self.ledger);
        }
        self.pump();
    }

    fn propose(&mut self, id: NodeId, command: Command) {
        if self.hold_positions {
            self.held.push_back((id, command));
            return;
        }
        let Reply::Position(reply) = self.apply(command) else {
            panic!("no position")
        };
        let now = self.now();
        self.nodes
            .get_mut(&id)
            .unwrap()
            .issuer
            .handle_position(now, &self.ledger, &reply);
    }

    /// Carries out what the issuers want.
    fn pump(&mut self) {
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            while let Some(output) = self.nodes.get_mut(&id).unwrap().issuer.poll() {
                let node = &self.nodes[&id];
                match output {
                    Output::Propose(position) => self.propose(id, Command::Position(position)),
                    Output::Answer(answer) => {
                        node.send(answer.boot, Class::Lease, NodeMessage::Lease(answer));
                    }
                    Output::Recall { to, recall } => {
                        node.send(to, Class::Lease, NodeMessage::Recall(recall));
                    }
                }
            }
        }
    }

    fn handle(&mut self, id: NodeId, contact: u64, class: Class, message: EdgeMessage) {
        let now = self.now();
        let answer = match message {
            EdgeMessage::Hello(hello) => {
                self.greet(id, contact, &hello);
                None
            }
            EdgeMessage::OpenSession { .. } if self.refuse_sessions => None,
            EdgeMessage::OpenSession { session, nonce } => {
                let identity = self.nodes[&id].contacts[&contact].identity.clone();
                let incarnation = self.ledger.incarnation();
                let open = OpenSession {
                    session,
                    nonce,
                    identity,
                    incarnation,
                };
                let Reply::OpenSession(reply) = self.apply(Command::OpenSession(open)) else {
                    panic!("no session")
                };
                if let OpenSessionReply::Opened { boot, .. } = reply {
                    self.bind(id, contact, boot);
                }
                Some(NodeMessage::Session(reply))
            }
            EdgeMessage::Keepalive {
                boot, sent_mark, ..
            } => {
                if self.kept_alive.last() != Some(&boot) {
                    self.kept_alive.push(boot);
                }
                Some(NodeMessage::Keepalive {
                    sent_mark,
                    contact,
                    confirmed_age_ms: Some(1),
                    time: self.ledger.time(),
                    revision: self.ledger.catalog().revision(),
                    routes_index: self.ledger.routes_index(),
                })
            }
            EdgeMessage::Changes { since } => Some(NodeMessage::Changes {
                revision: self.ledger.catalog().revision(),
                customers: self.ledger.catalog().customers_changed_since(since),
            }),
            EdgeMessage::Resolve(resolve) => {
                if self.questions.insert((resolve.boot, resolve.nonce)) {
                    self.asked.resolves += 1;
                }
                Some(NodeMessage::Resolve(self.resolve(id, &resolve)))
            }
            EdgeMessage::Lease(lease) => {
                self.asked.leases += 1;
                let issuer = &mut self.nodes.get_mut(&id).unwrap().issuer;
                issuer
                    .handle_lease(now, &self.ledger, &lease)
                    .map(NodeMessage::Lease)
            }
            EdgeMessage::Held(held) => {
                self.asked.held += 1;
                let issuer = &mut self.nodes.get_mut(&id).unwrap().issuer;
                issuer.handle_held(now, &self.ledger, &held);
                None
            }
            EdgeMessage::Report(report) => {
                self.asked.reports += 1;
                let (session, boot) = (report.session, report.boot);
                self.reports.push((session, boot, report.seq));
                let Reply::Report(reply) = self.apply(Command::Report(report)) else {
                    panic!("no report")
                };
                (!self.lose_report_answers).then_some(NodeMessage::Report(SessionAnswer {
                    session,
                    boot,
                    reply,
                }))
            }
            EdgeMessage::CloseSession { last_seq } => {
                // Not known yet who this is: it asks again.
                let Some(boot) = self.nodes[&id].contacts[&contact].boot else {
                    return;
                };
                // Or it asked twice, and the session is closed: the first answer is under way.
                let tollgate_core::ledger::EdgeBoot::Live(session) = self.ledger.edge_boot(boot)
                else {
                    return;
                };
                let close = CloseSession {
                    session,
                    boot,
                    last_seq,
                };
                let Reply::CloseSession(reply) = self.apply(Command::CloseSession(close)) else {
                    panic!("no close")
                };
                Some(NodeMessage::Closed(SessionAnswer {
                    session,
                    boot,
                    reply,
                }))
            }
        };
        let node = &self.nodes[&id];
        if let (Some(answer), Some(contact), false) =
            (answer, node.contacts.get(&contact), node.mute)
        {
            contact.send(class, answer);
        }
        self.pump();
    }

    fn greet(&mut self, id: NodeId, contact: u64, hello: &Hello) {
        let node = &self.nodes[&id];
        let theirs = Hello {
            cluster: name(CLUSTER),
            incarnation: Some(self.ledger.incarnation()),
            sender: Sender::Node {
                node: id,
                boot: node.boot,
            },
            versions: (1, 1),
        };
        if !node.mute {
            node.contacts[&contact].send(Class::Control, NodeMessage::Hello(theirs));
            node.contacts[&contact].send(Class::Control, self.routes());
        }
        if let Sender::Edge { boot: Some(boot) } = hello.sender {
            self.bind(id, contact, boot);
        }
    }

    fn bind(&mut self, id: NodeId, contact: u64, boot: Boot) {
        let node = self.nodes.get_mut(&id).unwrap();
        node.contacts.get_mut(&contact).unwrap().boot = Some(boot);
        node.issuer.handle_connected(boot);
    }

    fn resolve(&mut self, id: NodeId, resolve: &Resolve) -> ResolveAnswer {
        let catalog = self.ledger.catalog();
        let revision = catalog.revision();
        let found = catalog.resolve(
            resolve.key.as_str(),
            &mac(resolve.secret_sha256),
            self.ledger.time(),
        );
        let (outcome, lease) = match found {
            Ok(principal) => {
                let accounts: Vec<_> = principal
                    .limits
                    .iter()
                    .map(|limit| limit.account.clone())
                    .collect();
                let request = ResolveLease {
                    boot: resolve.boot,
                    lease_no: resolve.lease_no,
                    want: resolve.want,
                    need: resolve.need,
                    accounts: &accounts,
                };
                let now = self.now();
                let issuer = &mut self.nodes.get_mut(&id).unwrap().issuer;
                let lease = issuer.handle_resolve(now, &self.ledger, &request);
                (ResolveOutcome::Principal(Arc::new(principal)), lease)
            }
            Err(Refusal::Revoked) => (ResolveOutcome::Revoked, None),
            Err(Refusal::LicenseSuspended) => (ResolveOutcome::LicenseSuspended, None),
            Err(Refusal::Invalid) => (ResolveOutcome::Invalid, None),
        };
        ResolveAnswer {
            nonce: resolve.nonce,
            revision,
            outcome,
            lease,
        }
    }
}

impl Contact {
    fn send(&self, class: Class, message: NodeMessage) {
        if let Some(queue) = self.queues.get(&class) {
            // An edge that is gone hears nothing.
            let _ = queue.send(message);
        }
    }
}

impl Node {
    fn send(&self, boot: Boot, class: Class, message: NodeMessage) {
        let bound = |contact: &&Contact| contact.boot == Some(boot);
        if let Some(contact) = self.contacts.values().rfind(bound)
            && !self.mute
        {
            contact.send(class, message);
        }
    }
}

fn mac(secret_sha256: [u8; 32]) -> SecretMac {
    SecretMac {
        hmac: secret_sha256,
        pepper: PepperId(0),
    }
}

async fn serve(state: Arc<Mutex<State>>, id: NodeId, connection: Connection) {
    let number = {
        let mut state = state.lock().unwrap();
        state.contacts += 1;
        let number = state.contacts;
        let contact = Contact {
            identity: connection.peer().name().clone(),
            boot: None,
            queues: BTreeMap::new(),
            connection: connection.clone(),
        };
        state
            .nodes
            .get_mut(&id)
            .unwrap()
            .contacts
            .insert(number, contact);
        number
    };
    while let Ok(opening) = connection.accept().await {
        let state = state.clone();
        tokio::spawn(async move {
            if let Ok(Accepted::Framed(class, framed)) = opening.identify().await {
                stream(&state, id, number, class, framed).await;
            }
        });
    }
    let mut state = state.lock().unwrap();
    let node = state.nodes.get_mut(&id).unwrap();
    if let Some(Contact {
        boot: Some(boot), ..
    }) = node.contacts.remove(&number)
        && node
            .contacts
            .values()
            .all(|contact| contact.boot != Some(boot))
    {
        node.issuer.handle_disconnected(boot);
    }
}

async fn stream(
    state: &Mutex<State>,
    id: NodeId,
    number: u64,
    class: Class,
    Framed { writer, mut reader }: Framed,
) {
    let (queue, queued) = mpsc::unbounded_channel();
    tokio::spawn(write(writer, queued));
    if let Some(contact) = state
        .lock()
        .unwrap()
        .nodes
        .get_mut(&id)
        .unwrap()
        .contacts
        .get_mut(&number)
    {
        contact.queues.insert(class, queue);
    }
    while let Ok(Some(frame)) = reader.next().await {
        let message = codec::decode::<EdgeMessage, { codec::budget(512 * 1024) }>(frame).unwrap();
        state.lock().unwrap().handle(id, number, class, message);
    }
}

async fn write(
    mut writer: FrameWriter<SendHalf>,
    mut queued: mpsc::UnboundedReceiver<NodeMessage>,
) {
    while let Some(message) = queued.recv().await {
        writer.push_value(&message).unwrap();
        if writer.flush().await.is_err() {
            return;
        }
    }
}
