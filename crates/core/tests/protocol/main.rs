//! The protocol's pure parts, by script (`testdata/*.txt`, readable as documentation; `REWRITE=1` writes
//! the answers anew) and by property.

mod properties;
mod world;

use world::World;

#[test]
fn scripts() {
    datadriven::walk("testdata", |file| {
        let mut world = World::new();
        file.run(|case| {
            assert_eq!(case.directive, "run", "the only directive is run");
            let answers = case.input.lines().filter(|line| !line.trim().is_empty());
            let answers = answers.map(|line| format!("{}\n", world.run(line)));
            answers.collect::<String>()
        });
    });
}
