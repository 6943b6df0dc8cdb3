//! Wrong files, certificates, ports and names: each ends with the exit code for it and says what was found.

use crate::cluster::Cluster;
use crate::process::{Exit, run, run_unheard};
use std::fs;
use std::net::{TcpListener, UdpSocket};
use tollgate_ports::Ports;

/// Replaces a text in one of the files, which must hold it.
fn edit(cluster: &Cluster, file: &str, as_file: &str, from: &str, to: &str) {
    let text = fs::read_to_string(cluster.dir().join(file)).unwrap();
    assert!(text.contains(from), "{file} has no `{from}`");
    fs::write(cluster.dir().join(as_file), text.replace(from, to)).unwrap();
}

#[test]
fn a_wrong_configuration_is_named_and_nothing_is_started() {
    let cluster = Cluster::elsewhere();
    let dir = cluster.dir();
    let ended = |words: &[&str]| run(&dir, words, &[]);

    ended(&["server", "-c", "none.toml"]).fails(Exit::Usage, &["none.toml"]);
    ended(&["edge", "-c", "none.toml"]).fails(Exit::Usage, &["none.toml"]);
    ended(&["server"]).fails(Exit::Usage, &["--config"]);
    ended(&["no-such-command"]).fails(Exit::Usage, &["no-such-command"]);

    edit(
        &cluster,
        "node1.toml",
        "bad.toml",
        "node = 1\ndata_dir",
        "nodee = 1\nnode = 1\ndata_dir",
    );
    ended(&["server", "-c", "bad.toml"]).fails(Exit::Usage, &["bad.toml", "nodee"]);
    edit(&cluster, "edge.toml", "bad.toml", "journal =", "jurnal =");
    ended(&["edge", "-c", "bad.toml"]).fails(Exit::Usage, &["bad.toml", "jurnal"]);
    let made = fs::read_dir(dir.join("data")).unwrap().count();
    assert_eq!(made, 0, "nothing was made");

    // The certificate of another node, and of an edge.
    edit(
        &cluster,
        "node1.toml",
        "bad.toml",
        "tls/node-1.",
        "tls/node-2.",
    );
    ended(&["server", "-c", "bad.toml"]).fails(Exit::Failed, &["node", "1", "2"]);
    edit(
        &cluster,
        "node1.toml",
        "bad.toml",
        "tls/node-1.",
        "tls/edge-a.",
    );
    ended(&["server", "-c", "bad.toml"]).fails(Exit::Failed, &["edge", "node"]);
    edit(
        &cluster,
        "edge.toml",
        "bad.toml",
        "tls/edge-a.",
        "tls/node-1.",
    );
    ended(&["edge", "-c", "bad.toml"]).fails(Exit::Failed, &["edge", "node"]);
    edit(
        &cluster,
        "edge.toml",
        "bad.toml",
        "tls/edge-a.",
        "tls/edge-b.",
    );
    ended(&["edge", "-c", "bad.toml"]).fails(Exit::Failed, &["edge-b.pem"]);
}

#[test]
fn a_reader_that_has_seen_enough_ends_a_command_quietly() {
    let cluster = Cluster::elsewhere();
    for output in ["table", "json"] {
        let words = [
            "certs",
            "--dir",
            "tls",
            "--cluster",
            "demo",
            "--output",
            output,
        ];
        let said = run_unheard(&cluster.dir(), &words);
        assert_eq!((said.exit(), said.err()), (Exit::Ok, String::new()));
    }
}

#[test]
fn a_port_in_use_is_named() {
    let cluster = Cluster::elsewhere();
    let dir = cluster.dir();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let (udp_address, tcp_address) = (udp.local_addr().unwrap(), tcp.local_addr().unwrap());
    let listen = |file: &str, field: &str, address: &str| {
        let text = fs::read_to_string(dir.join(file)).unwrap();
        let change = |line: &str| {
            if line.starts_with(&format!("{field} = ")) {
                format!("{field} = \"{address}\"\n")
            } else {
                format!("{line}\n")
            }
        };
        // Only the first: members have fields of the same name.
        let (head, members) = text.split_once("[tls]").unwrap_or((&text, ""));
        let head: String = head.lines().map(change).collect();
        let members = if members.is_empty() {
            String::new()
        } else {
            format!("[tls]{members}")
        };
        fs::write(dir.join("taken.toml"), format!("{head}{members}")).unwrap();
    };
    listen("node1.toml", "quic", &udp_address.to_string());
    run(&dir, &["server", "-c", "taken.toml"], &[])
        .fails(Exit::Failed, &[&udp_address.to_string()]);
    listen("node1.toml", "admin", &tcp_address.to_string());
    run(&dir, &["server", "-c", "taken.toml"], &[])
        .fails(Exit::Failed, &["listen.admin", &tcp_address.to_string()]);
    listen("edge.toml", "listen", &tcp_address.to_string());
    run(&dir, &["edge", "-c", "taken.toml"], &[])
        .fails(Exit::Failed, &["http.listen", &tcp_address.to_string()]);
}

#[test]
fn commands_without_a_cluster_say_so() {
    let cluster = Cluster::elsewhere();
    let ports = Ports::claim(1).unwrap();
    let nobody = ports.addresses()[0].to_string();
    let env = [
        ("TOLLGATE_ADDR", nobody.as_str()),
        ("TOLLGATE_TLS_DIR", "tls"),
    ];
    let dir = cluster.dir();
    let ended = |words: &[&str]| run(&dir, words, &env);

    ended(&["status"]).fails(Exit::Unavailable, &[&nobody]);
    ended(&["usage"]).fails(Exit::Unavailable, &["no answer from ", &nobody]);
    let words = ["key", "create", "--license", "x", "--reason", "it's a test"];
    let said = ended(&words);
    said.fails(
        Exit::Unavailable,
        &[
            "was not made",
            "--reason 'it'\\''s a test' --idempotency-key ",
        ],
    );

    ended(&["apply", "-f", "none.toml", "--reason", "x"]).fails(Exit::Usage, &["none.toml"]);
    edit(
        &cluster,
        "catalog.toml",
        "bad.toml",
        "quota = 1_000",
        "quota = 1_000\n  rate = \"10/s\"",
    );
    ended(&["apply", "-f", "bad.toml", "--reason", "x"])
        .fails(Exit::Usage, &["plan[0].limit[0].rate"]);
    edit(
        &cluster,
        "catalog.toml",
        "bad.toml",
        "quota = 1_000",
        "quoota = 1_000",
    );
    ended(&["apply", "-f", "bad.toml", "--reason", "x"]).fails(Exit::Usage, &["quoota"]);
    ended(&["status", "--addr", "nonsense"]).fails(Exit::Usage, &["host:port"]);
    ended(&["status", "--tls-dir", "elsewhere"]).fails(Exit::Usage, &["elsewhere"]);

    fs::write(dir.join("credential"), "tg_live_x").unwrap();
    fs::write(
        dir.join("log"),
        "no line of a log\n203.0.113.9 - - [17/May/2015:10:05:03 +0000] \"GET / HTTP/1.1\" 200 1\n",
    )
    .unwrap();
    let words = [
        "replay",
        "log",
        "--credential-file",
        "credential",
        "--addr",
        &nobody,
    ];
    ended(&words).fails(Exit::Unavailable, &["line 1: ", "no edge decided anything"]);

    fs::create_dir(dir.join("full")).unwrap();
    fs::write(dir.join("full/file"), "").unwrap();
    ended(&["demo", "--dir", "full"]).fails(Exit::Usage, &["is not empty"]);
}

/// What only a running cluster can refuse.
pub(crate) fn against_a_running_cluster(cluster: &Cluster) {
    let ended = |words: &[&str]| cluster.admin_for_people(words);
    let with_reason = |words: &[&str]| ended(&[words, &["--reason", "x"]].concat());
    with_reason(&["key", "revoke", "no-such-key"]).fails(Exit::NotFound, &["no-such-key"]);
    with_reason(&["key", "create", "--license", "nobodys"]).fails(Exit::NotFound, &["nobodys"]);
    let words = ["apply", "-f", "catalog.toml", "--base-revision", "1-1"];
    with_reason(&words).fails(Exit::Conflict, &["1-1"]);
    // One key, two requests.
    let words = [
        "key",
        "create",
        "--license",
        "acme-starter",
        "--environment",
        "test",
        "--idempotency-key",
        "first",
    ];
    with_reason(&words).fails(Exit::Conflict, &["idempotency key is taken"]);
    let anchor = format!("1:{}", "0".repeat(64));
    ended(&["audit", "verify", "--anchor", &anchor]).fails(Exit::Failed, &["was replaced"]);

    // Certificates of another cluster, and of another role.
    let words = [
        "certs",
        "--dir",
        "other",
        "--cluster",
        "other",
        "--admin",
        "admin",
    ];
    let made = run(&cluster.dir(), &words, &[]);
    assert_eq!(made.exit(), Exit::Ok, "{made}");
    ended(&["usage", "--tls-dir", "other"])
        .fails(Exit::Failed, &["the certificate of this cluster?"]);
    let tls = cluster.dir().join("tls");
    for kind in ["pem", "key"] {
        fs::copy(
            tls.join(format!("edge-a.{kind}")),
            tls.join(format!("admin-edge.{kind}")),
        )
        .unwrap();
    }
    ended(&["usage", "--admin", "edge"]).fails(Exit::Usage, &["admin-edge.pem", "edge"]);
}

/// A data folder belongs to one node for good.
pub(crate) fn with_the_data_of_another_node(cluster: &Cluster) {
    edit(
        cluster,
        "node2.toml",
        "bad.toml",
        "data/node-2",
        "data/node-1",
    );
    let said = run(&cluster.dir(), &["server", "-c", "bad.toml"], &[]);
    said.fails(Exit::Failed, &["node-1", "node 1", "node 2"]);
}
