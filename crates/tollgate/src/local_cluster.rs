//! A cluster of real processes on loopback, in one folder: what the demo, the chaos runner and the tests drive.
//!
//! Owns: ports, certificates, configuration files, starting, killing, stopping. Nothing here is special: the files it
//! writes are those of `cluster/`, with other ports. Read next: `commands/demo` for what is done with it.

use crate::args::{Admin, Certs};
use crate::commands::certs;
use crate::output::Failure;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::time::Instant;
use tollgate_ports::Ports;

/// Nodes of the cluster.
pub const NODES: usize = 3;

/// Edges of the cluster.
pub const EDGES: usize = 2;

/// The cluster's name in every certificate.
pub const CLUSTER: &str = "demo";

/// How long a process may take to do what is waited for.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// A process and what is known of it.
pub struct Process {
    program: PathBuf,
    name: String,
    config: PathBuf,
    log: PathBuf,
    command: &'static str,
    child: Option<Child>,
}

/// The processes.
pub struct LocalCluster {
    /// The folder of everything.
    pub dir: PathBuf,
    /// QUIC addresses by node, from node 1.
    pub quic: Vec<SocketAddr>,
    /// Admin addresses by node, from node 1.
    pub admin: Vec<SocketAddr>,
    /// HTTP addresses by edge, from edge 1.
    pub http: Vec<SocketAddr>,
    /// What a killed process listened on stays its own until it is started again.
    _ports: Ports,
    program: PathBuf,
    nodes: Vec<Process>,
    edges: Vec<Process>,
}

impl Process {
    /// Starts it; what it prints goes to its log.
    ///
    /// # Errors
    /// [`Failure`] naming the program.
    pub fn start(&mut self) -> Result<(), Failure> {
        let open = || File::options().create(true).append(true).open(&self.log);
        let failed = |e| Failure::failed(format!("starting {}: {e}", self.name));
        let child = Command::new(&self.program)
            .args([self.command, "--config"])
            .arg(&self.config)
            .stdin(Stdio::null())
            .stdout(Stdio::from(open().map_err(failed)?))
            .stderr(Stdio::from(open().map_err(failed)?))
            .spawn()
            .map_err(failed)?;
        self.child = Some(child);
        Ok(())
    }

    /// Its name: `node-1`, `edge-2`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// `kill -9`, and waits until it is gone.
    ///
    /// # Errors
    /// [`Failure`] when it does not run.
    pub fn kill(&mut self) -> Result<(), Failure> {
        let Some(mut child) = self.child.take() else {
            return Err(Failure::failed(format!("{} does not run", self.name)));
        };
        child
            .kill()
            .and_then(|()| child.wait())
            .map_err(Failure::failed)?;
        Ok(())
    }

    /// Asks it to end cleanly (SIGTERM) and waits for that.
    ///
    /// # Errors
    /// [`Failure`] when it does not end, or not cleanly, with the end of its log.
    pub async fn stop(&mut self) -> Result<(), Failure> {
        let Some(mut child) = self.child.take() else {
            return Ok(());
        };
        let pid = i32::try_from(child.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)
                .map_err(Failure::failed)?;
        }
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = child.try_wait().map_err(Failure::failed)? {
                if status.success() {
                    return Ok(());
                }
                let log = self.end_of_log();
                return Err(Failure::failed(format!(
                    "{} ended with {status}:\n{log}",
                    self.name
                )));
            }
            if Instant::now() > deadline {
                child.kill().map_err(Failure::failed)?;
                let log = self.end_of_log();
                return Err(Failure::failed(format!(
                    "{} did not end within {} s of SIGTERM:\n{log}",
                    self.name,
                    DEADLINE.as_secs()
                )));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Fails if it has ended on its own.
    ///
    /// # Errors
    /// [`Failure`] with the end of its log.
    pub fn must_run(&mut self) -> Result<(), Failure> {
        let ended = match &mut self.child {
            Some(child) => child.try_wait().map_err(Failure::failed)?,
            None => return Ok(()),
        };
        match ended {
            None => Ok(()),
            Some(status) => {
                let log = self.end_of_log();
                Err(Failure::failed(format!(
                    "{} ended with {status}:\n{log}",
                    self.name
                )))
            }
        }
    }

    fn end_of_log(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // Nobody is left to tell: the demo is ending, by an error of its own most likely.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl LocalCluster {
    /// Chooses ports and makes certificates; starts nothing. `program` is the `tollgate` binary.
    ///
    /// # Errors
    /// [`Failure`] naming the file.
    pub fn prepare(dir: &Path, program: &Path) -> Result<Self, Failure> {
        fs::create_dir_all(dir.join("data"))
            .map_err(|e| Failure::failed(format!("{}: {e}", dir.display())))?;
        certs::make(&Certs {
            dir: dir.join("tls"),
            cluster: CLUSTER.to_owned(),
            node: (1..=NODES as u64).collect(),
            edge: (1..=EDGES).map(|edge| format!("edge-{edge}")).collect(),
            admin: vec!["admin".to_owned()],
            host: vec!["localhost".to_owned(), "127.0.0.1".to_owned()],
            days: 30,
        })?;
        let ports =
            Ports::claim(2 * NODES + EDGES).map_err(|error| Failure::failed(error.to_string()))?;
        let (quic, tcp) = ports.addresses().split_at(NODES);
        let (admin, http) = tcp.split_at(NODES);
        let (quic, admin, http) = (quic.to_vec(), admin.to_vec(), http.to_vec());
        let mut this = Self {
            dir: dir.to_owned(),
            program: program.to_owned(),
            quic,
            admin,
            http,
            _ports: ports,
            nodes: Vec::new(),
            edges: Vec::new(),
        };
        for (i, node) in (1..=NODES).enumerate() {
            let text = node_config(node, this.quic[i], this.admin[i], &this.quic);
            let process = this.process(&format!("node-{node}"), "server", &text)?;
            this.nodes.push(process);
        }
        for edge in 1..=EDGES {
            let text = edge_config(edge, this.http[edge - 1], &this.quic);
            let process = this.process(&format!("edge-{edge}"), "edge", &text)?;
            this.edges.push(process);
        }
        Ok(this)
    }

    /// Lets an edge reach the nodes at other addresses (those of proxies), from its next start on.
    ///
    /// # Errors
    /// [`Failure`] naming the file.
    pub fn reroute(&self, edge: usize, nodes: &[SocketAddr]) -> Result<(), Failure> {
        let text = edge_config(edge, self.http[edge - 1], nodes);
        self.write(&format!("edge-{edge}"), &text).map(drop)
    }

    /// Lets the nodes reach each other at other addresses (those of proxies); to be called before their first start,
    /// which makes the addresses known to the cluster.
    ///
    /// # Errors
    /// [`Failure`] naming the file.
    pub fn reroute_nodes(&self, nodes: &[SocketAddr]) -> Result<(), Failure> {
        for (i, node) in (1..=NODES).enumerate() {
            let text = node_config(node, self.quic[i], self.admin[i], nodes);
            self.write(&format!("node-{node}"), &text)?;
        }
        Ok(())
    }

    fn write(&self, name: &str, config: &str) -> Result<PathBuf, Failure> {
        let path = self.dir.join(format!("{name}.toml"));
        fs::write(&path, config)
            .map_err(|e| Failure::failed(format!("{}: {e}", path.display())))?;
        Ok(path)
    }

    fn process(&self, name: &str, command: &'static str, config: &str) -> Result<Process, Failure> {
        let config = self.write(name, config)?;
        let log = self.dir.join(format!("{name}.log"));
        let program = self.program.clone();
        Ok(Process {
            program,
            name: name.to_owned(),
            config,
            log,
            command,
            child: None,
        })
    }

    /// A node by its number, from 1.
    pub fn node(&mut self, node: u64) -> &mut Process {
        let index = usize::try_from(node).unwrap_or(0).saturating_sub(1);
        &mut self.nodes[index]
    }

    /// The process id of a node, from 1, while it runs.
    #[must_use]
    pub fn pid(&self, node: usize) -> Option<u32> {
        self.nodes.get(node.checked_sub(1)?)?.pid()
    }

    /// All nodes.
    pub fn nodes(&mut self) -> &mut [Process] {
        &mut self.nodes
    }

    /// All edges.
    pub fn edges(&mut self) -> &mut [Process] {
        &mut self.edges
    }

    /// How the admin API is reached.
    #[must_use]
    pub fn admin_args(&self) -> Admin {
        Admin {
            addr: self.admin.clone(),
            tls_dir: self.dir.join("tls"),
            admin: "admin".to_owned(),
        }
    }

    /// Fails if a process that should run has ended.
    ///
    /// # Errors
    /// [`Failure`] with the end of its log.
    pub fn must_run(&mut self) -> Result<(), Failure> {
        self.nodes
            .iter_mut()
            .chain(&mut self.edges)
            .try_for_each(Process::must_run)
    }
}

fn node_config(node: usize, quic: SocketAddr, admin: SocketAddr, all: &[SocketAddr]) -> String {
    let members: String = all
        .iter()
        .enumerate()
        .map(|(i, quic)| format!("\n[[member]]\nnode = {}\nquic = \"{quic}\"\n", i + 1))
        .collect();
    format!(
        "cluster = \"{CLUSTER}\"\nnode = {node}\ndata_dir = \"data/node-{node}\"\n\n\
         [listen]\nquic = \"{quic}\"\nadmin = \"{admin}\"\n\n\
         [tls]\nca = \"tls/ca.pem\"\ncertificate = \"tls/node-{node}.pem\"\nkey = \"tls/node-{node}.key\"\n\n\
         [pepper]\nfile = \"tls/pepper\"\n{members}"
    )
}

fn edge_config(edge: usize, http: SocketAddr, nodes: &[SocketAddr]) -> String {
    let nodes: String = nodes
        .iter()
        .enumerate()
        .map(|(i, quic)| format!("  {{ id = {}, address = \"{quic}\" }},\n", i + 1))
        .collect();
    format!(
        "[http]\nlisten = \"{http}\"\n\n[edge]\ncluster = \"{CLUSTER}\"\nnodes = [\n{nodes}]\n\
         journal = \"data/edge-{edge}.journal\"\n\n[edge.tls]\nca = \"tls/ca.pem\"\n\
         certificate = \"tls/edge-edge-{edge}.pem\"\nkey = \"tls/edge-edge-{edge}.key\"\n"
    )
}
