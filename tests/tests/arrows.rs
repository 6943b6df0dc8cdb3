//! Proves the crate arrows of docs/ARCHITECTURE.md: who may depend on whom, and what must not be below whom.
//!
//! Owns: the tables of what is allowed, held against `cargo tree` and `cargo metadata` (offline). Refuses: rules on
//! source text, which no dependency shows; `bans.rs` has those.
//! A new crate or a new arrow changes a table here, and needs a decision record.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Each workspace package and the workspace packages that may be below it, at any depth.
const MAY_BE_BELOW: &[(&str, &[&str])] = &[
    ("tollgate-core", &[]),
    ("tollgate-counters", &[]),
    ("tollgate-ports", &[]),
    ("tollgate-wire", &["tollgate-core"]),
    ("tollgate-node", &["tollgate-core", "tollgate-wire"]),
    (
        "tollgate-edge",
        &["tollgate-core", "tollgate-counters", "tollgate-wire"],
    ),
    (
        "tollgate-gateway",
        &[
            "tollgate-core",
            "tollgate-counters",
            "tollgate-edge",
            "tollgate-wire",
        ],
    ),
    (
        "tollgate",
        &[
            "tollgate-core",
            "tollgate-counters",
            "tollgate-edge",
            "tollgate-gateway",
            "tollgate-node",
            "tollgate-ports",
            "tollgate-wire",
        ],
    ),
    ("xtask", &[]),
    ("tollgate-jepsen", PRODUCT),
    ("tollgate-tests", PRODUCT),
    ("tollgate-benches", PRODUCT),
];

/// What is shipped; the proofs may see all of it.
const PRODUCT: &[&str] = &[
    "tollgate",
    "tollgate-core",
    "tollgate-counters",
    "tollgate-edge",
    "tollgate-gateway",
    "tollgate-node",
    "tollgate-ports",
    "tollgate-wire",
];

/// Packages, and the crates of others that must not be below them at any depth. A name stands for its family too:
/// `tokio` also for `tokio-util`.
const MUST_NOT_BE_BELOW: &[(&str, &[&str])] = &[
    (
        "tollgate-core",
        &[
            "tokio",
            "async-std",
            "mio",
            "socket2",
            "quinn",
            "rustls",
            "sled",
            "openraft",
            "rand",
            "fastrand",
            "getrandom",
            "chrono",
            "time",
            "tracing",
            "log",
            "bincode",
        ],
    ),
    (
        "tollgate-counters",
        &[
            "tokio",
            "quinn",
            "sled",
            "openraft",
            "rand",
            "getrandom",
            "serde",
            "bincode",
        ],
    ),
    ("tollgate-wire", &["sled", "openraft"]),
    ("tollgate-edge", &["sled", "openraft"]),
    ("tollgate-gateway", &["sled", "openraft"]),
];

/// Crates of others and the only packages that may name them in their manifest, in any section.
const FEW_USERS: &[(&str, &[&str])] = &[
    ("bincode", &["tollgate-wire"]),
    ("openraft", &["tollgate-node"]),
    ("sled", &["tollgate-node"]),
    ("loom", &["tollgate-counters"]),
];

/// Workspace packages that nothing may name in its manifest, not even for tests.
const SEEN_BY_NOTHING: &[&str] = &[
    "tollgate-jepsen",
    "tollgate-tests",
    "tollgate-benches",
    "xtask",
];

/// What `cargo` says to this, run offline and without touching Cargo.lock.
fn cargo(arguments: &[&str]) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(program)
        .args(arguments)
        .args(["--offline", "--locked"])
        .current_dir(root)
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "cargo {} failed: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// The names of all crates below `package` in a build of the product.
fn below(package: &str) -> BTreeSet<String> {
    let tree = cargo(&[
        "tree", "-p", package, "--edges", "normal", "--prefix", "none", "--format", "{p}",
    ]);
    let mut names: BTreeSet<String> = tree
        .lines()
        .filter_map(|line| line.split(' ').next())
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect();
    assert!(
        names.remove(package),
        "cargo tree left {package} itself out: {tree}"
    );
    names
}

/// Each workspace package with the names in its manifest, in any section.
fn manifests() -> BTreeMap<String, BTreeSet<String>> {
    let metadata = cargo(&["metadata", "--no-deps", "--format-version", "1"]);
    let metadata: Value = serde_json::from_str(&metadata).unwrap();
    let name = |value: &Value| value["name"].as_str().unwrap().to_owned();
    metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array().unwrap();
            (name(package), dependencies.iter().map(name).collect())
        })
        .collect()
}

fn how_to_see(package: &str, found: &str) -> String {
    format!("see `cargo tree -p {package} --edges normal -i {found}`")
}

#[test]
fn every_package_of_the_workspace_is_in_the_table() {
    let table: BTreeSet<String> = MAY_BE_BELOW
        .iter()
        .map(|(package, _)| (*package).to_owned())
        .collect();
    let workspace: BTreeSet<String> = manifests().into_keys().collect();
    assert_eq!(
        workspace, table,
        "a new crate needs a decision record, and its arrows a line in this file"
    );
}

#[test]
fn arrows_point_one_way() {
    let workspace: BTreeSet<&str> = MAY_BE_BELOW.iter().map(|(package, _)| *package).collect();
    let mut wrong = Vec::new();
    for (package, allowed) in MAY_BE_BELOW {
        for found in below(package) {
            if workspace.contains(found.as_str()) && !allowed.contains(&found.as_str()) {
                wrong.push(format!(
                    "{found} <- {package} is no arrow: {}",
                    how_to_see(package, &found)
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn nothing_forbidden_is_below() {
    let mut wrong = Vec::new();
    for (package, forbidden) in MUST_NOT_BE_BELOW {
        for found in below(package) {
            if let Some(family) = forbidden.iter().find(|family| is_of_family(&found, family)) {
                wrong.push(format!(
                    "{found} is below {package}, where no {family} may be: {}",
                    how_to_see(package, &found)
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn is_of_family(name: &str, family: &str) -> bool {
    name.strip_prefix(family)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '_']))
}

#[test]
fn a_family_is_a_name_and_what_it_leads() {
    assert!(is_of_family("tokio", "tokio"));
    assert!(is_of_family("tokio-util", "tokio"));
    assert!(is_of_family("rand_core", "rand"));
    assert!(!is_of_family("random", "rand"));
    assert!(!is_of_family("tokio", "tokio-util"));
}

#[test]
fn the_trees_are_not_empty() {
    // What proves that a forbidden crate would be seen: these are below, and found.
    assert!(below("tollgate-core").contains("serde"));
    assert!(below("tollgate-wire").contains("bincode"));
    assert!(below("tollgate").contains("tollgate-core"));
}

#[test]
fn what_has_few_users_has_no_other() {
    let mut wrong = Vec::new();
    for (package, names) in manifests() {
        for (name, users) in FEW_USERS {
            if names.contains(*name) && !users.contains(&package.as_str()) {
                wrong.push(format!(
                    "{package}'s Cargo.toml names {name}, which is for {} alone",
                    users.join(" and ")
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn nothing_sees_the_proofs() {
    let mut wrong = Vec::new();
    for (package, names) in manifests() {
        for proof in SEEN_BY_NOTHING {
            if names.contains(*proof) {
                wrong.push(format!(
                    "{proof} <- {package}: nothing may depend on {proof}, not even for tests"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_product_has_no_planted_bug_compiled_in() {
    let tree = cargo(&[
        "tree",
        "-p",
        "tollgate",
        "--edges",
        "normal,features",
        "--prefix",
        "none",
    ]);
    assert!(
        tree.contains("tollgate-core feature"),
        "no features in the tree: {tree}"
    );
    let planted: Vec<&str> = tree
        .lines()
        .filter(|line| line.contains("feature \"planted\""))
        .collect();
    assert!(
        planted.is_empty(),
        "the binary would be built with {planted:?}"
    );
}
