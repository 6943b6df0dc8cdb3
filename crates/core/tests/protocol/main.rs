//! The protocol's pure parts, by script (`testdata/*.txt`, readable as documentation; `REWRITE=1` writes
//! the answers anew) and by property.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cluster;
mod cluster_properties;
mod issuer_bounds;
mod issuer_script;
mod lessee_bounds;
mod lessee_script;
mod orders;
mod properties;
mod reporter_bounds;
mod words;
mod world;

use issuer_script::IssuerScript;
use lessee_script::LesseeScript;
use world::World;

/// Runs the script `testdata/{name}.txt`: each line by `run`, which answers with a line or several.
fn script(name: &str, mut run: impl FnMut(&str) -> String) {
    datadriven::walk(&format!("testdata/{name}.txt"), |file| {
        file.run(|case| {
            assert_eq!(case.directive, "run", "the only directive is run");
            let lines = case.input.lines().filter(|line| !line.trim().is_empty());
            let answers = lines.map(&mut run).filter(|answer| !answer.is_empty());
            answers
                .map(|answer| format!("{answer}\n"))
                .collect::<String>()
        });
    });
}

#[test]
fn ledger() {
    let mut world = World::new();
    script("ledger", |line| world.run(line));
}

#[test]
fn issuer() {
    let mut script = IssuerScript::new();
    self::script("issuer", |line| script.run(line));
}

#[test]
fn lessee() {
    let mut script = LesseeScript::new();
    self::script("lessee", |line| script.run(line));
}
