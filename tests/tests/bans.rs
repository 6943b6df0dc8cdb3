//! Proves rules on source text that no dependency shows: no clock in the core, no bincode outside the wire, and so on.
//!
//! Owns: the list of bans, as data, and the reading of product code. Refuses: style, which clippy judges, and a
//! parser: it looks for words, with comments and tests left out, and may be fooled by whoever wants to.
//! Read next: `arrows.rs`, its companion on dependencies.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on fails by panicking"
)]

use std::fs;
use std::path::{Path, PathBuf};

/// Words that must not stand in the product code of some files.
struct Ban {
    /// The rule in a sentence.
    says: &'static str,
    /// What it bans; a word matches where neither neighbour is part of a name.
    words: &'static [&'static str],
    /// Whether it holds in the file of this path, which starts at the workspace's root and has `/`.
    holds_in: fn(&str) -> bool,
    /// A comment on the line or the one above that excuses it, with a reason after it.
    excuse: Option<&'static str>,
}

const BANS: &[Ban] = &[
    Ban {
        says: "only crates/wire knows bincode; others use its encode and decode",
        words: &["bincode"],
        holds_in: |path| !path.starts_with("crates/wire/") && !path.starts_with("tests/tests/"),
        excuse: None,
    },
    Ban {
        says: "core has no atomics and no locks: one thread drives it",
        words: &[
            "atomic",
            "AtomicBool",
            "AtomicU32",
            "AtomicU64",
            "AtomicUsize",
            "Mutex",
            "RwLock",
        ],
        holds_in: in_core,
        excuse: None,
    },
    Ban {
        says: "counters takes its atomics from its sync.rs, or loom would not see them",
        words: &["std::sync", "core::sync", "loom::sync"],
        holds_in: |path| {
            path.starts_with("crates/counters/src/") && path != "crates/counters/src/sync.rs"
        },
        excuse: None,
    },
    Ban {
        says: "core reads no clock: time comes in as an argument",
        words: &["SystemTime", "Instant::now", "time::Instant", "sleep"],
        holds_in: in_core,
        excuse: None,
    },
    Ban {
        says: "core does no input or output",
        words: &[
            "std::fs",
            "std::net",
            "std::env",
            "std::thread",
            "std::process",
            "std::io",
        ],
        holds_in: in_core,
        excuse: None,
    },
    Ban {
        says: "core has no order by hash, which differs from run to run: use BTreeMap, or say why with `// HASH ORDER:`",
        words: &["HashMap", "HashSet", "RandomState"],
        holds_in: in_core,
        excuse: Some("// HASH ORDER: "),
    },
    Ban {
        says: "of the product only the binary's crate prints, and a node that ends at once, its last words",
        words: &["print!", "println!", "eprint!", "eprintln!", "dbg!"],
        holds_in: |path| {
            path.starts_with("crates/")
                && !path.starts_with("crates/tollgate/")
                && !path.starts_with("crates/xtask/")
                && path != "crates/node/src/storage/fault.rs"
                && path != "crates/node/src/fatal.rs"
        },
        excuse: None,
    },
];

fn in_core(path: &str) -> bool {
    path.starts_with("crates/core/src/")
}

/// A file's lines of product code with their numbers: comments cut off, modules of tests left out.
fn product_code(text: &str) -> Vec<(usize, &str)> {
    let mut code = Vec::new();
    let mut lines = text.lines().enumerate().peekable();
    while let Some((at, line)) = lines.next() {
        let module_follows = lines
            .peek()
            .is_some_and(|(_, next)| next.starts_with("mod ") || next.starts_with("pub mod "));
        if line == "#[cfg(test)]" && module_follows {
            let inline = lines
                .next()
                .is_some_and(|(_, module)| module.ends_with('{'));
            // rustfmt puts the module's closing brace, and no other, at the line's start.
            while inline && lines.next().is_some_and(|(_, line)| line != "}") {}
        } else {
            code.push((at + 1, without_comment(line)));
        }
    }
    code
}

/// A line up to its comment; the slashes of `http://` begin none.
fn without_comment(line: &str) -> &str {
    let mut slashes = line.match_indices("//").map(|(at, _)| at);
    let comment = slashes.find(|at| !line[..*at].ends_with(':'));
    &line[..comment.unwrap_or(line.len())]
}

fn has_word(code: &str, word: &str) -> bool {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word).any(|(at, _)| {
        !code[..at].ends_with(is_name) && !code[at + word.len()..].starts_with(is_name)
    })
}

/// Where the file's product code breaks a ban, each as `path:line: word: rule`.
fn broken(path: &str, text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for ban in BANS.iter().filter(|ban| (ban.holds_in)(path)) {
        for (number, code) in product_code(text) {
            let Some(word) = ban.words.iter().find(|word| has_word(code, word)) else {
                continue;
            };
            let excused = ban.excuse.is_some_and(|excuse| {
                let nearby = &lines[number.saturating_sub(2)..number];
                let reasons = nearby.iter().filter_map(|line| line.split_once(excuse));
                reasons
                    .into_iter()
                    .any(|(_, reason)| !reason.trim().is_empty())
            });
            if !excused {
                found.push(format!("{path}:{number}: `{word}`: {}", ban.says));
            }
        }
    }
    found
}

/// All Rust files below `folder`.
fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

#[test]
fn no_source_breaks_a_ban() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut files = Vec::new();
    for folder in ["crates", "jepsen", "tests", "benches"] {
        sources(&root.join(folder), &mut files);
    }
    assert!(files.len() > 10, "found only {files:?}");
    let mut wrong = Vec::new();
    for file in files {
        let path = file
            .strip_prefix(root)
            .unwrap()
            .to_str()
            .unwrap()
            .replace('\\', "/");
        // A crate's tests may print and keep time; a `mod tests;` lies in a file of that name.
        let of_tests = path.starts_with("crates/")
            && (path.ends_with("/tests.rs") || path.contains("/tests/"));
        if !of_tests {
            wrong.extend(broken(&path, &fs::read_to_string(&file).unwrap()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn each_ban_catches_what_it_bans_and_nothing_beside() {
    let caught = |path: &str, text: &str| broken(path, text).len();
    let core = "crates/core/src/ledger.rs";
    for line in [
        "use std::time::SystemTime;",
        "let now = Instant::now();",
        "use std::collections::{BTreeMap, HashMap};",
        "use std::sync::{Arc, atomic::AtomicU64};",
        "let file = std::fs::read(path);",
        "println!(\"{account}\");",
        "let bytes = bincode::encode_to_vec(&row, config);",
    ] {
        assert_eq!(caught(core, line), 1, "{line}");
        assert_eq!(caught(core, &format!("    {line} // here")), 1, "{line}");
        assert_eq!(caught(core, &format!("// {line}")), 0, "a comment: {line}");
        let tests = format!("#[cfg(test)]\nmod tests {{\n    {line}\n}}\n");
        assert_eq!(caught(core, &tests), 0, "in tests: {line}");
        assert_eq!(
            caught(core, &format!("{tests}{line}\n")),
            1,
            "behind tests: {line}"
        );
        let outside = format!("#[cfg(test)]\nmod tests;\n{line}\n");
        assert_eq!(
            caught(core, &outside),
            1,
            "behind tests in a file of their own: {line}"
        );
    }
    assert_eq!(
        caught(core, "let instantly = sleepy(SystemTimes);"),
        0,
        "whole words only"
    );
}

#[test]
fn an_order_by_hash_is_excused_by_a_reason_beside_it() {
    let core = "crates/core/src/ledger.rs";
    let caught = |text: &str| broken(core, text).len();
    assert_eq!(
        caught("let map = HashMap::new(); // HASH ORDER: only looked up by key"),
        0
    );
    assert_eq!(
        caught("// HASH ORDER: only looked up by key\nlet map = HashMap::new();"),
        0
    );
    assert_eq!(
        caught("// HASH ORDER: far away\n\nlet map = HashMap::new();"),
        1
    );
    assert_eq!(caught("let map = HashMap::new(); // HASH ORDER: "), 1);
}

#[test]
fn a_ban_holds_where_it_says() {
    let caught = |path: &str, text: &str| broken(path, text).len();
    let cell = "use std::sync::atomic::AtomicU64;";
    assert_eq!(caught("crates/counters/src/quota.rs", cell), 1);
    assert_eq!(caught("crates/counters/src/sync.rs", cell), 0);
    assert_eq!(caught("crates/edge/src/edge.rs", cell), 0);
    assert_eq!(
        caught("crates/wire/src/codec.rs", "use bincode::Encode;"),
        0
    );
    assert_eq!(caught("jepsen/src/simulator.rs", "use bincode::Encode;"), 1);
    let stored = "crates/node/src/storage/record.rs";
    assert_eq!(caught(stored, "use bincode::Encode;"), 1);
    assert_eq!(caught("crates/edge/src/edge.rs", "    eprintln!();"), 1);
    assert_eq!(caught("crates/tollgate/src/main.rs", "    eprintln!();"), 0);
}
