//! Each way in which three files can be wrong, and the reload; handshakes are in `tests/loopback.rs`.

use super::*;
use crate::certs::{Authority, Validity};
use std::fs;
use tempfile::TempDir;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn authority(cluster: &str) -> (TempDir, Authority) {
    let home = tempfile::tempdir().unwrap();
    let authority = Authority::create(home.path(), cluster, Validity::days(30), false).unwrap();
    (home, authority)
}

fn edge(home: &TempDir, authority: &Authority, name: &str) -> TlsFiles {
    authority
        .issue(
            home.path(),
            (Role::Edge, name),
            &[],
            Validity::days(10),
            true,
        )
        .unwrap()
}

fn error(files: &TlsFiles) -> String {
    Tls::load(files.clone(), Role::Edge)
        .expect_err("wrong files")
        .to_string()
}

#[test]
fn good_files_give_identity_and_expiry() {
    let (home, authority) = authority("c");
    let tls = Tls::load(edge(&home, &authority, "a"), Role::Edge).unwrap();
    assert_eq!(tls.identity().to_string(), "tollgate://c/edge/a");
    let left = tls.expires().duration_since(SystemTime::now()).unwrap();
    assert!(left > 9 * DAY && left < 11 * DAY, "{left:?}");
    assert_eq!(format!("{tls:?}").matches("PRIVATE").count(), 0);
}

#[test]
fn each_wrong_file_is_named_with_what_is_wrong() {
    let (home, authority) = authority("c");
    let good = edge(&home, &authority, "a");
    let at = |name: &str| home.path().join(name);

    let found = error(&TlsFiles {
        key: at("absent"),
        ..good.clone()
    });
    assert!(
        found.contains("cannot read") && found.contains("absent"),
        "{found}"
    );

    fs::write(at("text"), "hello").unwrap();
    let found = error(&TlsFiles {
        certificate: at("text"),
        ..good.clone()
    });
    assert!(
        found.contains("text holds no PEM section `CERTIFICATE`: 5 bytes of some"),
        "{found}"
    );
    let found = error(&TlsFiles {
        ca: at("text"),
        ..good.clone()
    });
    assert!(
        found.contains("text holds no PEM section `CERTIFICATE`"),
        "{found}"
    );
    let found = error(&TlsFiles {
        key: good.certificate.clone(),
        ..good.clone()
    });
    assert!(
        found.contains("edge-a.pem holds no PEM section `PRIVATE KEY`"),
        "{found}"
    );

    fs::write(
        at("junk"),
        "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n",
    )
    .unwrap();
    let found = error(&TlsFiles {
        certificate: at("junk"),
        ..good.clone()
    });
    assert!(found.contains("junk cannot be used"), "{found}");
    fs::write(
        at("large"),
        vec![b'\n'; usize::try_from(PEM_BYTES_MAX).unwrap() + 1],
    )
    .unwrap();
    let found = error(&TlsFiles {
        ca: at("large"),
        ..good.clone()
    });
    assert!(
        found.contains("large cannot be used: larger than 1048576 bytes"),
        "{found}"
    );

    let other = edge(&home, &authority, "b");
    let found = error(&TlsFiles {
        key: other.key,
        ..good.clone()
    });
    assert!(
        found.contains("edge-b.key is not the key of") && found.contains("edge-a.pem"),
        "{found}"
    );

    let (foreign_home, foreign) = self::authority("c");
    let foreign = edge(&foreign_home, &foreign, "a");
    let found = error(&TlsFiles {
        ca: foreign.ca,
        ..good.clone()
    });
    assert!(
        found.contains("is not issued by an authority in"),
        "{found}"
    );

    let found = Tls::load(good, Role::Node)
        .expect_err("an edge is no node")
        .to_string();
    assert!(
        found.ends_with("edge-a.pem is for tollgate://c/edge/a, expected role node"),
        "{found}"
    );
}

#[test]
fn validity_is_checked_for_certificate_and_authority() {
    let now = SystemTime::now();
    let past = Validity {
        not_before: now - 10 * DAY,
        not_after: now - DAY,
    };
    let future = Validity {
        not_before: now + DAY,
        not_after: now + 10 * DAY,
    };
    let (home, authority) = authority("c");
    let issue = |validity| {
        authority
            .issue(home.path(), (Role::Edge, "a"), &[], validity, true)
            .unwrap()
    };
    let found = error(&issue(past));
    assert!(found.contains("edge-a.pem expired at "), "{found}");
    let found = error(&issue(future));
    assert!(found.contains("edge-a.pem is not valid before "), "{found}");

    let old_home = tempfile::tempdir().unwrap();
    let old = Authority::create(old_home.path(), "c", past, false).unwrap();
    let found = error(&edge(&old_home, &old, "a"));
    assert!(found.contains("ca.pem expired at "), "{found}");
}

#[test]
fn a_failed_reload_keeps_what_was_in_force() {
    let (home, authority) = authority("c");
    let files = edge(&home, &authority, "a");
    let tls = Tls::load(files.clone(), Role::Edge).unwrap();
    let before = tls.current.0.load_full();

    let other = edge(&home, &authority, "b");
    let good = (
        fs::read(&files.certificate).unwrap(),
        fs::read(&files.key).unwrap(),
    );
    fs::copy(&other.certificate, &files.certificate).unwrap();
    assert!(
        matches!(tls.reload(), Err(TlsError::KeyMismatch { .. })),
        "half written"
    );
    fs::copy(&other.key, &files.key).unwrap();
    let found = tls.reload().expect_err("another edge").to_string();
    assert!(
        found.ends_with("is for tollgate://c/edge/b, expected tollgate://c/edge/a"),
        "{found}"
    );
    assert!(Arc::ptr_eq(&before, &tls.current.0.load_full()));

    fs::write(&files.certificate, good.0).unwrap();
    fs::write(&files.key, good.1).unwrap();
    tls.reload().unwrap();
    assert!(!Arc::ptr_eq(&before, &tls.current.0.load_full()));
}

#[test]
fn a_derived_secret_follows_key_and_purpose() {
    let (home, authority) = authority("c");
    let files = edge(&home, &authority, "a");
    let first = Tls::load(files.clone(), Role::Edge).unwrap();
    let again = Tls::load(files, Role::Edge).unwrap();
    assert_eq!(first.derive_secret("x"), again.derive_secret("x"));
    assert_ne!(first.derive_secret("x"), first.derive_secret("y"));
    let other = Tls::load(edge(&home, &authority, "b"), Role::Edge).unwrap();
    assert_ne!(first.derive_secret("x"), other.derive_secret("x"));
}

/// Verified by webpki under an authority we believe, and refused by what the certificate says.
#[test]
fn peers_of_another_cluster_and_servers_that_are_no_node_are_refused() {
    let (home, ours) = authority("ours");
    let tls = Tls::load(edge(&home, &ours, "a"), Role::Edge).unwrap();
    // The same authority's key, misused: for another cluster, and for an edge that has a server's name.
    let issue = |uri: &str| {
        let key =
            rcgen::KeyPair::from_pem(&fs::read_to_string(home.path().join("ca.key")).unwrap());
        let ca = fs::read_to_string(home.path().join("ca.pem")).unwrap();
        let issuer = rcgen::Issuer::from_ca_cert_pem(&ca, key.unwrap()).unwrap();
        let mut params = rcgen::CertificateParams::new(["node-1.ours.tollgate".into()]).unwrap();
        params
            .subject_alt_names
            .push(rcgen::SanType::URI(uri.try_into().unwrap()));
        params.use_authority_key_identifier_extension = true;
        let certificate = params
            .signed_by(&rcgen::KeyPair::generate().unwrap(), &issuer)
            .unwrap();
        certificate.der().clone()
    };
    let now = UnixTime::now();
    let client = |uri: &str| {
        tls.current
            .verify_client_cert(&issue(uri), &[], now)
            .map(|_| ())
    };
    let server = |uri: &str| {
        let name = ServerName::try_from("node-1.ours.tollgate").unwrap();
        tls.current
            .verify_server_cert(&issue(uri), &[], &name, &[], now)
            .map(|_| ())
    };
    assert_eq!(client("tollgate://ours/edge/b"), Ok(()));
    assert_eq!(server("tollgate://ours/node/1"), Ok(()));
    let other = "other error: the peer belongs to cluster `theirs`, this is `ours`";
    assert_eq!(
        client("tollgate://theirs/edge/b")
            .expect_err("theirs")
            .to_string(),
        other
    );
    assert_eq!(
        server("tollgate://theirs/node/1")
            .expect_err("theirs")
            .to_string(),
        other
    );
    assert_eq!(
        server("tollgate://ours/edge/b")
            .expect_err("no node")
            .to_string(),
        "other error: the peer is tollgate://ours/edge/b, expected the role node"
    );
    let found = client("https://example.org")
        .expect_err("nobody")
        .to_string();
    assert!(found.contains("no tollgate://CLUSTER/ROLE/NAME"), "{found}");
    assert!(found.ends_with("only https://example.org"), "{found}");
}
