//! Starts, restarts, and starts that are refused.

use super::cluster::{Cluster, eventually, set_mode, soon};
use super::{QUOTA, catalog};
use serde_json::json;
use tollgate_node::server::{Server, ServerError};

async fn refused(cluster: &Cluster, text: &str) -> String {
    let config = match cluster.load(1, text) {
        Ok(config) => config,
        Err(error) => return error.to_string(),
    };
    match Server::start(config).await {
        Ok(_) => panic!("the start must be refused"),
        Err(error) => error.to_string(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_start_says_what_is_wrong() {
    let cluster = Cluster::prepared();
    let good = cluster.config_text(1);
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = format!("admin = \"{}\"", held.local_addr().unwrap());
    let held_udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = format!("[listen]\nquic = \"{}\"", held_udp.local_addr().unwrap());
    let own = good.lines().find(|line| line.starts_with("quic")).unwrap();
    let cases = [
        (
            good.replace("admin = \"127.0.0.1:0\"", &busy),
            "`listen.admin`: cannot listen on",
        ),
        (
            good.replace(&format!("[listen]\n{own}"), &port),
            "`listen.quic`",
        ),
        (good.replace("node-1.pem", "none.pem"), "none.pem"),
        (
            good.replace("node-1.", "node-2."),
            "but the configuration says node 1",
        ),
        (good.replace("node-1.", "admin-root."), "role node"),
        (
            good.replace("\"pepper\"", "\"no-pepper\""),
            "cannot read the pepper",
        ),
        (
            good.replace("cluster = \"loop\"", "cluster = \"pool\""),
            "node 1 of cluster pool",
        ),
        (
            good.replace("data_dir", "data_folder"),
            "unknown field `data_folder`",
        ),
    ];
    for (text, words) in cases {
        assert_ne!(text, good, "{words}");
        let error = refused(&cluster, &text).await;
        assert!(error.contains(words), "`{words}` in `{error}`");
    }
    let pepper = cluster.home.path().join("pepper");
    set_mode(&pepper, 0o644);
    let error = refused(&cluster, &good).await;
    assert!(error.contains("has mode 0644, expected 0600"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_of_another_node_or_in_use_is_refused() {
    let mut cluster = Cluster::prepared();
    cluster.start_node(1).await.unwrap();
    let text = cluster.config_text(2).replace("data-2", "data-1");
    let config = cluster.load(2, &text).unwrap();
    let in_use = Server::start(config.clone())
        .await
        .err()
        .map(|error| error.to_string());
    assert!(
        in_use
            .as_deref()
            .is_some_and(|words| words.contains("in use")),
        "{in_use:?}"
    );
    let first = cluster.take(1);
    first.stop();
    soon("a node without a majority stops", first.ended())
        .await
        .unwrap();
    let foreign = Server::start(config).await.err();
    assert!(
        matches!(foreign, Some(ServerError::Store(_))),
        "{foreign:?}"
    );
    let words = foreign.map(|error| error.to_string()).unwrap_or_default();
    assert!(
        words.contains("node 1") && words.contains("node 2"),
        "{words}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_is_there_after_every_node_was_stopped() {
    let mut cluster = Cluster::start().await;
    assert_eq!(cluster.apply(catalog(QUOTA)).await.0, 200);
    let before = cluster.status(1).await;
    for node in 1..=3 {
        cluster.stop_node(node).await;
    }
    for node in 1..=3 {
        cluster.start_node(node).await.unwrap();
    }
    cluster.settled().await;
    let after = cluster.status(1).await;
    assert_eq!(after["revision"], before["revision"]);
    assert!(after["boot"].as_u64() > before["boot"].as_u64(), "{after}");
    assert_eq!(
        cluster.get("/admin/v1/licenses").await["licenses"][0]["id"],
        json!("acme-free")
    );
    let audit = cluster.get("/admin/v1/audit?after=1&limit=1").await;
    assert_eq!(
        (&audit["entries"][0]["seq"], &audit["next"]),
        (&json!(2), &json!(2)),
        "{audit}"
    );
    eventually("all replicas have one digest", || async {
        let [one, two, three] = [
            cluster.status(1).await,
            cluster.status(2).await,
            cluster.status(3).await,
        ];
        one["digest"] == two["digest"] && two["digest"] == three["digest"]
    })
    .await;
    assert!(cluster.node(1).metrics().is_some());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_data_was_lost_is_refused() {
    let mut cluster = Cluster::start().await;
    cluster.stop_node(1).await;
    std::fs::remove_dir_all(cluster.home.path().join("data-1")).unwrap();
    let ended = match Server::start(cluster.config(1)).await {
        Ok(server) => soon("the node ends on its own", server.ended()).await,
        Err(error) => Err(error),
    };
    let words = ended
        .expect_err("an empty folder of a known member")
        .to_string();
    assert!(words.contains("new id"), "{words}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_another_pepper_is_refused_until_it_has_the_clusters() {
    let mut cluster = Cluster::start().await;
    cluster.stop_node(2).await;

    let other = cluster.home.path().join("pepper-2");
    std::fs::write(&other, [8; 32]).unwrap();
    set_mode(&other, 0o600);
    let text = cluster
        .config_text(2)
        .replace("file = \"pepper\"", "file = \"pepper-2\"");
    let ended = match Server::start(cluster.load(2, &text).unwrap()).await {
        Ok(server) => soon("the node ends on its own", server.ended()).await,
        Err(error) => Err(error),
    };
    let words = ended.expect_err("another pepper").to_string();
    for part in [other.to_str().unwrap(), "copy the file", "`pepper.file`"] {
        assert!(words.contains(part), "`{part}` in `{words}`");
    }

    cluster.port_is_free(2).await;
    cluster.start_node(2).await.unwrap();
    cluster.settled().await;
    cluster.stop().await;
}
