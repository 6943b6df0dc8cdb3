//! The list of steps. Owns every command line of a check; refuses logic. A new check is one more entry here.
//!
//! Read next: `run.rs` for how a step is run and judged.

/// One check: a command with a name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    /// What `cargo xtask` calls it.
    pub(crate) name: &'static str,
    /// What its success shows, in a line.
    pub(crate) shows: &'static str,
    /// The program; `cargo` means the one that runs us.
    pub(crate) program: &'static str,
    /// Its arguments; a caller's own go in front of a `--`.
    pub(crate) args: &'static [&'static str],
    /// Added to its environment.
    pub(crate) env: &'static [(&'static str, &'static str)],
    /// What success takes.
    pub(crate) success: Success,
}

/// What a step must do to have passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Success {
    /// Its command exits with 0.
    ExitCode,
    /// As well, it ran at least one test: a filter that matches nothing must not look green.
    RanTests,
}

/// The runner on real processes sees the whole product; without this, the simulator is built without it.
pub(crate) const CHAOS: &str = "tollgate-jepsen/chaos";

const CARGO: Step = Step {
    name: "",
    shows: "",
    program: "cargo",
    args: &[],
    env: &[],
    success: Success::ExitCode,
};

/// What `cargo xtask ci` runs, cheapest first.
pub(crate) const CI: &[Step] = &[
    Step {
        name: "lock",
        shows: "Cargo.lock names what the manifests ask for, and all of it can be had",
        args: &["fetch", "--locked"],
        ..CARGO
    },
    Step {
        name: "fmt",
        shows: "formatted",
        args: &["fmt", "--all", "--check"],
        ..CARGO
    },
    Step {
        name: "clippy",
        shows: "no lint of ours or clippy's fires, tests and benches included",
        args: &[
            "clippy",
            "--workspace",
            "--all-targets",
            "--features",
            CHAOS,
            "--",
            "-D",
            "warnings",
        ],
        ..CARGO
    },
    Step {
        name: "docs",
        shows: "the documentation builds and its links lead somewhere",
        args: &[
            "doc",
            "--workspace",
            "--no-deps",
            "--document-private-items",
        ],
        // The documentation is for those who work here: private items are in it, and may be linked to.
        env: &[(
            "RUSTDOCFLAGS",
            "-D warnings -A rustdoc::private-intra-doc-links",
        )],
        ..CARGO
    },
    Step {
        name: "test",
        shows: "the README's second command: all tests, the crate arrows and cluster/ as it is among them",
        args: &["test", "--workspace"],
        success: Success::RanTests,
        ..CARGO
    },
    Step {
        name: "test-chaos",
        shows: "the tests of the chaos runner, which that command builds without",
        args: &["test", "--workspace", "--features", CHAOS, "chaos"],
        success: Success::RanTests,
        ..CARGO
    },
    Step {
        name: "loom",
        shows: "every interleaving of the cells is right, and loom catches each broken variant",
        args: &[
            "test",
            "-p",
            "tollgate-counters",
            "--release",
            "--test",
            "loom_*",
        ],
        // The flag changes every crate: a folder of its own spares the others a rebuild.
        env: &[
            ("RUSTFLAGS", "--cfg loom"),
            ("CARGO_TARGET_DIR", "target-loom"),
        ],
        success: Success::RanTests,
        ..CARGO
    },
    Step {
        name: "sim",
        shows: "1,000 seeds of whole simulated clusters under faults break no promise and no assertion; full size: 10,000",
        args: &[
            "run",
            // With the core's assertions, which a release build is without.
            "--profile",
            "proof",
            "-p",
            "tollgate-jepsen",
            "--bin",
            "sim",
            "--",
            "run",
            "--seeds",
            "1000",
        ],
        ..CARGO
    },
    Step {
        name: "few-faults",
        shows: "the simulator catches planted faults; in full, all of them in five ranges: cargo xtask planted",
        args: &[
            "run",
            "--release",
            "-p",
            "tollgate-jepsen",
            "--features",
            "planted",
            "--bin",
            "sim",
            "--",
            "planted",
            "--ranges",
            "1",
            "--seeds",
            "500",
            "epoch_kept_across_a_restart",
            "returned_as_a_delta",
            "rest_of_a_lost_edge_freed",
            "last_seq_instead_of_in_order",
            "answers_to_an_old_lease_no_accepted",
            "surrender_resent_to_the_next_issuer",
            "refusal_answers_any_need",
            "none_for_good_remembered_across_a_raise",
            "acknowledge_before_commit",
            "start_numbers_counted_from_one",
            "plan_change_opens_a_new_account",
        ],
        ..CARGO
    },
    Step {
        name: "build",
        shows: "the binary, as it is shipped and as chaos runs it",
        args: &["build", "--release"],
        ..CARGO
    },
    Step {
        name: "demo",
        shows: "the README's first command ends in a verdict that holds",
        args: &["run", "--release", "--", "demo"],
        ..CARGO
    },
    Step {
        name: "demo-again",
        shows: "and so does another story",
        args: &["run", "--release", "--", "demo", "--seed", "2"],
        ..CARGO
    },
    Step {
        name: "chaos",
        shows: "15 kills -9 and cut links on real processes break no promise; full size: 200 kills",
        args: &[
            "run",
            "--release",
            "-p",
            "tollgate-jepsen",
            "--features",
            "chaos",
            "--bin",
            "chaos",
            "--",
            "run",
            "--kills",
            "15",
        ],
        ..CARGO
    },
    Step {
        name: "cut",
        shows: "links between edges and nodes cut for 3 s: held units are spent, every unit settles once",
        args: &[
            "run",
            "--release",
            "-p",
            "tollgate-jepsen",
            "--features",
            "chaos",
            "--bin",
            "chaos",
            "--",
            "cut",
        ],
        ..CARGO
    },
    Step {
        name: "rejoin",
        shows: "an isolated follower returns and deposes nobody; full size: 5 returns",
        args: &[
            "run",
            "--release",
            "-p",
            "tollgate-jepsen",
            "--features",
            "chaos",
            "--bin",
            "chaos",
            "--",
            "rejoin",
            "--rounds",
            "1",
        ],
        ..CARGO
    },
    Step {
        name: "healthy",
        shows: "quotas used up while nothing is wrong: usable to their end, and metered to the unit",
        args: &[
            "run",
            "--release",
            "-p",
            "tollgate-jepsen",
            "--features",
            "chaos",
            "--bin",
            "chaos",
            "--",
            "healthy",
        ],
        ..CARGO
    },
];

/// What is run by hand: it rewrites files, takes long, judges times that a shared machine does not keep, or needs a tool
/// that CI does not install.
const BY_HAND: &[Step] = &[
    Step {
        name: "takeover",
        shows: "leader and issuer killed 20 times each: leases are back after 1 s in the median, 2 s at worst",
        args: &[
            "run",
            "--release",
            "-p",
            "tollgate-jepsen",
            "--features",
            "chaos",
            "--bin",
            "chaos",
            "--",
            "takeover",
            "--rounds",
            "20",
        ],
        ..CARGO
    },
    Step {
        name: "bench",
        shows: "both benches in turn meet their goals; on a quiet machine, with valgrind and etcd",
        args: &[
            "bench",
            "-p",
            "tollgate-benches",
            "--bench",
            "decision",
            "--bench",
            "commit",
            "--no-fail-fast",
        ],
        ..CARGO
    },
    Step {
        name: "golden",
        shows: "rewrites the expected answers of the core's scripts; read the diff before you commit it",
        args: &["test", "-p", "tollgate-core"],
        env: &[("REWRITE", "1"), ("UPDATE_EXPECT", "1")],
        success: Success::RanTests,
        ..CARGO
    },
    Step {
        name: "planted",
        shows: "each planted fault of the protocol is caught, by which check and after how many seeds",
        args: &[
            "run",
            "--release",
            "-p",
            "tollgate-jepsen",
            "--features",
            "planted",
            "--bin",
            "sim",
            "--",
            "planted",
        ],
        ..CARGO
    },
    Step {
        name: "deny",
        shows: "licences, banned and doubled crates, sources (needs cargo-deny)",
        args: &["deny", "check", "bans", "licenses", "sources"],
        ..CARGO
    },
];

/// Every step there is.
pub(crate) fn all() -> impl Iterator<Item = &'static Step> {
    CI.iter().chain(BY_HAND)
}

/// The step of this name.
pub(crate) fn named(name: &str) -> Option<&'static Step> {
    all().find(|step| step.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_has_a_name_of_its_own_and_says_what_it_shows() {
        let mut names: Vec<&str> = all().map(|step| step.name).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
        assert!(all().all(|step| !step.name.is_empty() && !step.shows.is_empty()));
        assert!(named("ci").is_none(), "ci is the list, not a step");
    }
}
