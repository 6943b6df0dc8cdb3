//! The command line: names, options and their help. No behaviour.

use crate::host::HostPort;
use crate::output::Format;
use clap::{Args, Parser, Subcommand};
use std::net::SocketAddr;
use std::path::PathBuf;

/// The licensing gate for API products: quotas that no crash can over-issue, checked from memory.
#[derive(Debug, Parser)]
#[command(
    name = "tollgate",
    version,
    max_term_width = 100,
    arg_required_else_help = true
)]
pub struct Cli {
    /// How results are printed.
    #[arg(long, global = true, value_enum, default_value = "table")]
    pub output: Format,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the whole of it on this machine: three nodes, two edges, a real access log, two kills, a verdict.
    Demo(Demo),
    /// Run a node of a cluster.
    Server(Config),
    /// Run an edge: serves POST /v1/check from memory.
    Edge(Config),
    /// Make certificates and the pepper of a cluster.
    Certs(Certs),
    /// Add and change what a file names: customers, plans, licences, keys. What it does not name stays.
    Apply(Apply),
    /// Create, list or revoke keys.
    Key {
        /// What to do with keys.
        #[command(subcommand)]
        command: Key,
    },
    /// Show metered use.
    Usage(Usage),
    /// Show quota accounts: settled, out, limit.
    Accounts(Accounts),
    /// Check the audit log.
    Audit {
        /// What to do with the audit log.
        #[command(subcommand)]
        command: Audit,
    },
    /// Show nodes, slots, sessions.
    Status(Status),
    /// Send the requests of an access log to edges as checks.
    Replay(Replay),
}

/// Options of `demo`.
#[derive(Debug, Args)]
pub struct Demo {
    /// Keep everything serving after the verdict and print what to try.
    #[arg(long)]
    pub stay: bool,
    /// Where data, certificates and logs go; by default a temporary folder, removed after a good run.
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Chooses keys, the order of the requests, after how many of them nodes are killed, and which issuer.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// Options of processes that run from a file.
#[derive(Debug, Args)]
pub struct Config {
    /// The TOML file; every field, of nodes and of edges, is explained in cluster/README.md.
    #[arg(long, short = 'c')]
    pub config: PathBuf,
}

/// Options of `certs`.
#[derive(Debug, Args)]
pub struct Certs {
    /// The folder; what is there is kept, what is missing is made.
    #[arg(long)]
    pub dir: PathBuf,
    /// The cluster's name.
    #[arg(long)]
    pub cluster: String,
    /// Ids of nodes.
    #[arg(long, value_delimiter = ',')]
    pub node: Vec<u64>,
    /// Names of edges.
    #[arg(long, value_delimiter = ',')]
    pub edge: Vec<String>,
    /// Names of administrators.
    #[arg(long, value_delimiter = ',')]
    pub admin: Vec<String>,
    /// Further DNS names or addresses in the nodes' certificates, for clients such as curl.
    #[arg(long, value_delimiter = ',', default_value = "localhost,127.0.0.1")]
    pub host: Vec<String>,
    /// Days of validity.
    #[arg(long, default_value_t = 365)]
    pub days: u32,
}

/// How programs reach the admin API.
#[derive(Debug, Clone)]
pub struct Admin {
    /// Admin addresses of nodes, tried in turn.
    pub addr: Vec<SocketAddr>,
    /// Folder with ca.pem, admin-NAME.pem and admin-NAME.key.
    pub tls_dir: PathBuf,
    /// Whose certificate to show.
    pub admin: String,
}

/// How people say where the admin API is.
#[derive(Debug, Args, Clone)]
pub struct Reach {
    /// Admin addresses of nodes (host:port), tried in turn until one answers.
    #[arg(long, env = "TOLLGATE_ADDR", value_delimiter = ',', required = true)]
    pub addr: Vec<HostPort>,
    /// Folder with ca.pem, admin-NAME.pem and admin-NAME.key.
    #[arg(long, env = "TOLLGATE_TLS_DIR")]
    pub tls_dir: PathBuf,
    /// Whose certificate to show.
    #[arg(long, env = "TOLLGATE_ADMIN", default_value = "admin")]
    pub admin: String,
}

/// What every change carries.
#[derive(Debug, Args, Clone)]
pub struct Change {
    /// Why: goes into the audit log.
    #[arg(long)]
    pub reason: String,
    /// A change is made once per key, however often it is asked for; drawn when left out, and shown where it is needed
    /// to repeat.
    #[arg(long)]
    pub idempotency_key: Option<String>,
    /// Refuse unless the catalog is at this revision.
    #[arg(long)]
    pub base_revision: Option<tollgate_core::ids::Revision>,
}

/// Options of `apply`.
#[derive(Debug, Args)]
pub struct Apply {
    /// The TOML file.
    #[arg(long, short = 'f')]
    pub file: PathBuf,
    /// Only say what would change.
    #[arg(long)]
    pub dry_run: bool,
    /// Why and how.
    #[command(flatten)]
    pub change: Change,
    /// Where.
    #[command(flatten)]
    pub admin: Reach,
}

/// What to do with keys.
#[derive(Debug, Subcommand)]
pub enum Key {
    /// Create a key; its secret is shown once.
    Create {
        /// The licence it belongs to.
        #[arg(long)]
        license: String,
        /// live or test.
        #[arg(long, default_value = "live")]
        environment: String,
        /// Why and how.
        #[command(flatten)]
        change: Change,
        /// Where.
        #[command(flatten)]
        admin: Reach,
    },
    /// Revoke a key for good; connected edges refuse it within a second.
    Revoke {
        /// Its public id.
        id: String,
        /// Why and how.
        #[command(flatten)]
        change: Change,
        /// Where.
        #[command(flatten)]
        admin: Reach,
    },
    /// List keys.
    List {
        /// Where.
        #[command(flatten)]
        admin: Reach,
    },
}

/// Options of `usage`.
#[derive(Debug, Args)]
pub struct Usage {
    /// Only this customer's licences.
    #[arg(long)]
    pub customer: Option<String>,
    /// Only this licence.
    #[arg(long)]
    pub license: Option<String>,
    /// Where.
    #[command(flatten)]
    pub admin: Reach,
}

/// Options of `accounts`.
#[derive(Debug, Args)]
pub struct Accounts {
    /// Only this customer's.
    #[arg(long)]
    pub customer: Option<String>,
    /// Where.
    #[command(flatten)]
    pub admin: Reach,
}

/// What to do with the audit log.
#[derive(Debug, Subcommand)]
pub enum Audit {
    /// Read the whole log of every node and check that no entry was altered, removed or moved.
    Verify {
        /// A head written down earlier, as NUMBER:HASH: the log must still contain it.
        #[arg(long)]
        anchor: Option<crate::commands::audit::Anchor>,
        /// Where; every address is asked.
        #[command(flatten)]
        admin: Reach,
    },
}

/// Options of `status`.
#[derive(Debug, Args)]
pub struct Status {
    /// Where; every address is asked.
    #[command(flatten)]
    pub admin: Reach,
}

/// Options of `replay`.
#[derive(Debug, Args)]
pub struct Replay {
    /// Combined or common log format, plain or gzip.
    pub log: PathBuf,
    /// HTTP addresses of edges (host:port); connections are spread over them.
    #[arg(long, value_delimiter = ',', required = true)]
    pub addr: Vec<HostPort>,
    /// One credential for every request, read from a file so that it is in no process list.
    #[arg(long, conflicts_with = "keys", required_unless_present = "keys")]
    pub credential_file: Option<PathBuf>,
    /// A JSON object from client address to credential.
    #[arg(long)]
    pub keys: Option<PathBuf>,
    /// Checks under way at once.
    #[arg(long, default_value_t = 32)]
    pub connections: usize,
}
