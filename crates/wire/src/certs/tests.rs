//! What is written, with which modes, and what is left alone.

use super::*;
use crate::tls::Tls;
use std::os::unix::fs::PermissionsExt;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn an_authority_issues_for_every_role() {
    let home = tempfile::tempdir().unwrap();
    let (ca, out) = (home.path().join("ca"), home.path().join("out"));
    Authority::create(&ca, "eu-1", Validity::days(30), false).unwrap();
    let authority = Authority::open(&ca).unwrap();
    assert_eq!(authority.cluster(), "eu-1");
    let extra = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    for (role, name, uri) in [
        (Role::Node, "7", "tollgate://eu-1/node/7"),
        (Role::Edge, "gw.a", "tollgate://eu-1/edge/gw.a"),
        (Role::Admin, "ann", "tollgate://eu-1/admin/ann"),
    ] {
        let files = authority
            .issue(&out, (role, name), &extra, Validity::days(1), false)
            .unwrap();
        assert_eq!((mode(&files.key), mode(&files.certificate)), (0o600, 0o644));
        assert_eq!(Tls::load(files, role).unwrap().identity().to_string(), uri);
    }
    assert_eq!(
        names(&out),
        [
            "admin-ann.key",
            "admin-ann.pem",
            "ca.pem",
            "edge-gw.a.key",
            "edge-gw.a.pem",
            "node-7.key",
            "node-7.pem"
        ]
    );
    assert_eq!(
        (mode(&ca.join(CA_KEY)), mode(&ca.join(CA_CERTIFICATE))),
        (0o600, 0o644)
    );
}

#[test]
fn nothing_is_overwritten_unless_asked() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path();
    let authority = Authority::create(folder, "c", Validity::days(1), false).unwrap();
    let before = fs::read(folder.join(CA_KEY)).unwrap();
    let error = Authority::create(folder, "c", Validity::days(1), false).expect_err("exists");
    assert_eq!(
        error.to_string(),
        format!(
            "{} exists: name another folder, or ask to overwrite",
            folder.join(CA_KEY).display()
        )
    );
    assert_eq!(fs::read(folder.join(CA_KEY)).unwrap(), before);

    let issue =
        |overwrite| authority.issue(folder, (Role::Edge, "a"), &[], Validity::days(1), overwrite);
    let files = issue(false).unwrap();
    let (key, certificate) = (
        fs::read(&files.key).unwrap(),
        fs::read(&files.certificate).unwrap(),
    );
    assert!(matches!(issue(false), Err(CertsError::Exists { .. })));
    assert_eq!(fs::read(&files.key).unwrap(), key);
    fs::remove_file(&files.key).unwrap();
    assert!(
        matches!(issue(false), Err(CertsError::Exists { .. })),
        "half of a pair is a pair"
    );
    assert_eq!(names(folder), ["ca.key", "ca.pem", "edge-a.pem"]);
    issue(true).unwrap();
    assert_ne!(fs::read(&files.certificate).unwrap(), certificate);
    assert_eq!(
        names(folder),
        ["ca.key", "ca.pem", "edge-a.key", "edge-a.pem"]
    );

    let other = tempfile::tempdir().unwrap();
    let other = Authority::create(other.path(), "c", Validity::days(1), false).unwrap();
    let error = other.issue(folder, (Role::Edge, "b"), &[], Validity::days(1), false);
    assert!(matches!(error, Err(CertsError::Exists { path }) if path.ends_with("ca.pem")));
    assert_eq!(
        names(folder),
        ["ca.key", "ca.pem", "edge-a.key", "edge-a.pem"]
    );
}

#[test]
fn what_a_crash_left_half_written_is_replaced() {
    let home = tempfile::tempdir().unwrap();
    let left = home.path().join("ca.key.new");
    fs::write(&left, "half").unwrap();
    Authority::create(home.path(), "c", Validity::days(1), false).unwrap();
    assert_eq!(names(home.path()), ["ca.key", "ca.pem"]);
    assert_eq!(mode(&home.path().join(CA_KEY)), 0o600);
}

#[test]
fn errors_say_what_is_wrong() {
    let home = tempfile::tempdir().unwrap();
    let (a, b) = (home.path().join("a"), home.path().join("b"));
    let error = |result: Result<Authority, CertsError>| result.expect_err("wrong").to_string();

    let found = error(Authority::open(&a));
    assert!(
        found.contains("a/ca.pem") && found.contains("No such file"),
        "{found}"
    );
    let found = error(Authority::create(&a, "Not DNS", Validity::days(1), false));
    assert!(found.contains("the cluster `Not DNS`"), "{found}");
    assert!(!a.exists());

    let authority = Authority::create(&a, "c", Validity::days(1), false).unwrap();
    Authority::create(&b, "c", Validity::days(1), false).unwrap();
    fs::copy(b.join(CA_KEY), a.join(CA_KEY)).unwrap();
    let found = error(Authority::open(&a));
    assert!(
        found.ends_with("ca.key is not the key of ca.pem"),
        "{found}"
    );

    for (peer, extra, expected) in [
        (
            (Role::Node, "one"),
            "localhost",
            "the node id `one` is no number",
        ),
        (
            (Role::Edge, "a/b"),
            "localhost",
            "the edge `a/b` has the character '/'",
        ),
        (
            (Role::Node, "1"),
            "not a name",
            "`not a name` is neither a DNS name nor an address",
        ),
    ] {
        let found = authority
            .issue(&a, peer, &[extra.to_owned()], Validity::days(1), false)
            .expect_err("wrong")
            .to_string();
        assert!(found.contains(expected), "{found}");
    }
    assert_eq!(names(&a), ["ca.key", "ca.pem"]);
}
