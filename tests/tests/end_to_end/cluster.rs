//! The files of `cluster/`, copied beside fresh certificates and started.
//!
//! They are started as they are. Only where their ports are taken (a cluster started by hand, another run of these
//! tests) the copies get free ones.

use crate::process::{Exit, Process, Said, get, run, until};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use tollgate_ports::Ports;

/// The files that are started, and what they are started from.
const FILES: [&str; 5] = [
    "node1.toml",
    "node2.toml",
    "node3.toml",
    "edge.toml",
    "catalog.toml",
];

/// Every node.
const NODES: [usize; 3] = [1, 2, 3];

/// What one test starts.
pub(crate) struct Cluster {
    dir: TempDir,
    nodes: Vec<Process>,
    edge: Option<Process>,
    /// Port in the files to the port used.
    ports: BTreeMap<u16, u16>,
    _ports_held: Ports,
}

/// Every port in the files: what is listened on.
fn ports_of(text: &str) -> impl Iterator<Item = u16> {
    text.split("127.0.0.1:").skip(1).filter_map(|rest| {
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    })
}

impl Cluster {
    /// The files of `cluster/` in a folder of their own, with certificates made as cluster/README.md says.
    pub(crate) fn as_it_is() -> Self {
        Self::prepare(true)
    }

    /// The same with free ports: for what is not about the files.
    pub(crate) fn elsewhere() -> Self {
        Self::prepare(false)
    }

    fn prepare(as_it_is: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cluster");
        let texts = FILES.map(|file| fs::read_to_string(source.join(file)).unwrap());
        let ports = texts.iter().flat_map(|text| ports_of(text));
        let named: BTreeSet<u16> = ports.collect();
        let named: Vec<u16> = named.into_iter().collect();
        let theirs = as_it_is.then(|| Ports::claim_these(&named)).flatten();
        let held = theirs.unwrap_or_else(|| Ports::claim(named.len()).unwrap());
        let used = held.addresses().iter().map(SocketAddr::port);
        let ports: BTreeMap<u16, u16> = named.into_iter().zip(used).collect();
        // As the repository has it.
        fs::create_dir(dir.path().join("data")).unwrap();
        for (file, text) in FILES.iter().zip(&texts) {
            let mut text = text.clone();
            for (from, to) in &ports {
                text = text.replace(&format!("127.0.0.1:{from}"), &format!("127.0.0.1:{to}"));
            }
            fs::write(dir.path().join(file), text).unwrap();
        }
        let words = [
            "certs",
            "--dir",
            "tls",
            "--cluster",
            "demo",
            "--node",
            "1,2,3",
            "--edge",
            "a",
            "--admin",
            "admin",
        ];
        let made = run(dir.path(), &words, &[]);
        assert_eq!(made.exit(), Exit::Ok, "{made}");
        Self {
            dir,
            nodes: Vec::new(),
            edge: None,
            ports,
            _ports_held: held,
        }
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    fn address(&self, port: usize) -> SocketAddr {
        let port = u16::try_from(port).unwrap();
        SocketAddr::from(([127, 0, 0, 1], self.ports[&port]))
    }

    pub(crate) fn edge_address(&self) -> SocketAddr {
        self.address(8081)
    }

    pub(crate) fn metrics_address(&self, node: usize) -> SocketAddr {
        self.address(7300 + node)
    }

    pub(crate) fn start_node(&mut self, node: usize) {
        let process = Process::start(self.dir.path(), "server", &format!("node{node}.toml"));
        self.nodes.push(process);
    }

    /// Starts three and waits until each serves and every slot has an issuer.
    pub(crate) fn start_nodes(&mut self) {
        for node in NODES {
            self.start_node(node);
        }
        for node in NODES {
            let address = self.metrics_address(node);
            until(&format!("node {node} to be ready"), || {
                self.nodes.iter_mut().for_each(Process::must_run);
                get(&address, "/readyz").filter(|(status, _)| *status == 200)
            });
        }
        until("an issuer of every slot", || {
            let status = self.admin(&["status"]).json(Exit::Ok);
            (status[0]["unowned"] == 0).then_some(())
        });
    }

    pub(crate) fn start_edge(&mut self) {
        let mut edge = Process::start(self.dir.path(), "edge", "edge.toml");
        let address = self.edge_address();
        until("the edge to be ready", || {
            edge.must_run();
            get(&address, "/readyz").filter(|(status, _)| *status == 200)
        });
        self.edge = Some(edge);
    }

    pub(crate) fn stop_edge(&mut self) {
        self.edge.take().unwrap().stop();
    }

    pub(crate) fn stop_nodes(&mut self) {
        self.nodes.drain(..).for_each(Process::stop);
    }

    /// An operator's command, answered in JSON.
    pub(crate) fn admin(&self, words: &[&str]) -> Said {
        self.admin_for_people(&[words, &["--output", "json"]].concat())
    }

    /// An operator's command.
    pub(crate) fn admin_for_people(&self, words: &[&str]) -> Said {
        let addresses: Vec<String> = NODES
            .iter()
            .map(|node| format!("localhost:{}", self.address(7200 + node).port()))
            .collect();
        let env = [
            ("TOLLGATE_ADDR", addresses.join(",")),
            ("TOLLGATE_TLS_DIR", "tls".to_owned()),
        ];
        let env: Vec<(&str, &str)> = env
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        run(self.dir.path(), words, &env)
    }
}
