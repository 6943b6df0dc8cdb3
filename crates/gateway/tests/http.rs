//! The HTTP door over real sockets, on a fake edge.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, which clippy does not see as such"
)]

use expect_test::{Expect, expect};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tollgate_edge::{FakeEdge, Reason};
use tollgate_gateway::{Door, HttpConfig};

/// Far longer than anything here takes; only a hang meets it.
const DEADLINE: Duration = Duration::from_secs(30);

struct Served {
    edge: Arc<FakeEdge>,
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    door: tokio::task::JoinHandle<()>,
}

async fn serve() -> Served {
    let edge = Arc::new(FakeEdge::new());
    let config = HttpConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
    };
    let door = Door::open(edge.clone(), &config).await.unwrap();
    let address = door.local_addr();
    let (stop, stopped) = oneshot::channel();
    let door = tokio::spawn(door.serve(async move { drop(stopped.await) }));
    Served {
        edge,
        address,
        stop: Some(stop),
        door,
    }
}

impl Served {
    /// Sends a request as it is; answers the head's first line with some headers, and the body.
    async fn send(&self, request: &str) -> String {
        let exchange = async {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            // A server that answers early may reset: what was read counts.
            let _ = stream.read_to_string(&mut answer).await;
            answer
        };
        let answer = tokio::time::timeout(DEADLINE, exchange)
            .await
            .expect("must not hang");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let mut lines = head.lines();
        let status = lines
            .next()
            .unwrap_or_default()
            .trim_start_matches("HTTP/1.1 ")
            .to_owned();
        let kind = lines
            .find_map(|line| line.strip_prefix("content-type: "))
            .unwrap_or("-");
        format!("{status} ({kind})\n{body}\n")
    }

    async fn post(&self, body: &str) -> String {
        self.send(&format!(
            "POST /v1/check HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        ))
        .await
    }

    async fn get(&self, path: &str) -> String {
        self.send(&format!(
            "GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
        ))
        .await
    }
}

fn check(found: &str, expected: &Expect) {
    expected.assert_eq(found);
}

#[tokio::test]
async fn every_decision_is_a_200_in_the_released_form() {
    let served = serve().await;
    let key = served
        .edge
        .add_key("acme", &[("daily", 1000), ("calls", 2)])
        .unwrap();
    let body = format!(
        r#"{{"credential":"{key}","method":"GET","path":"/v1/orders/7","client_ip":"203.0.113.9","cost":1,"peek":false}}"#
    );
    check(
        &served.post(&body).await,
        &expect![[r#"
        200 OK (application/json)
        {"allowed":true,"verdict":"allow","reason":"ok","customer":"acme","limits":[{"name":"daily","kind":"quota","limit":1000,"remaining":999,"reset_ms":null},{"name":"calls","kind":"quota","limit":2,"remaining":1,"reset_ms":null}],"retry_after_ms":null,"revision":"1-1","stale_ms":0}
    "#]],
    );
    let two = format!(r#"{{"credential":"{key}","cost":2}}"#);
    check(
        &served.post(&two).await,
        &expect![[r#"
        200 OK (application/json)
        {"allowed":false,"verdict":"refuse","reason":"quota_exceeded","customer":"acme","limits":[{"name":"daily","kind":"quota","limit":1000,"remaining":999,"reset_ms":null},{"name":"calls","kind":"quota","limit":2,"remaining":1,"reset_ms":null}],"retry_after_ms":null,"revision":"1-1","stale_ms":0}
    "#]],
    );
    check(
        &served.post("{}").await,
        &expect![[r#"
        200 OK (application/json)
        {"allowed":false,"verdict":"refuse","reason":"credential_missing","customer":null,"limits":[],"retry_after_ms":null,"revision":"1-1","stale_ms":0}
    "#]],
    );
    served.edge.deny(&key, Reason::CredentialRevoked);
    let answer = served.post(&body).await;
    assert!(
        answer.contains(r#""reason":"credential_revoked","customer":null"#),
        "{answer}"
    );
}

#[tokio::test]
async fn looking_takes_nothing() {
    let served = serve().await;
    let key = served.edge.add_key("acme", &[("daily", 1)]).unwrap();
    for _ in 0..3 {
        let answer = served
            .post(&format!(r#"{{"credential":"{key}","peek":true}}"#))
            .await;
        assert!(answer.contains(r#""allowed":true"#), "{answer}");
    }
    let answer = served.post(&format!(r#"{{"credential":"{key}"}}"#)).await;
    assert!(
        answer.contains(r#""allowed":true"#) && answer.contains(r#""remaining":0"#),
        "{answer}"
    );
}

#[tokio::test]
async fn a_body_that_is_no_check_is_told_which_field_is_wrong() {
    let served = serve().await;
    let mut told = String::new();
    for body in [
        "",
        "{",
        "[1]",
        r#"{"credential":"k","cots":1}"#,
        r#"{"credential":7}"#,
        r#"{"credential":"k","cost":0}"#,
        r#"{"credential":"k","cost":-1}"#,
        r#"{"credential":"k","cost":1.5}"#,
        r#"{"credential":"k","cost":9223372036854775808}"#,
        r#"{"credential":"k","cost":18446744073709551616}"#,
        r#"{"credential":"k","peek":"yes"}"#,
        r#"{"credential":"k","client_ip":"here"}"#,
        r#"{"credential":"k","method":"G E T"}"#,
        r#"{"credential":"k","path":"orders"}"#,
        r#"{"credential":"k","credential":"l"}"#,
    ] {
        told.push_str(&served.post(body).await);
    }
    check(
        &told,
        &expect![[r#"
        400 Bad Request (application/problem+json)
        {"type":"/problems/malformed-body","title":"Malformed body","status":400,"detail":"the body is no JSON: EOF while parsing a value at line 1 column 0"}
        400 Bad Request (application/problem+json)
        {"type":"/problems/malformed-body","title":"Malformed body","status":400,"detail":"the body is no JSON: EOF while parsing an object at line 1 column 1"}
        400 Bad Request (application/problem+json)
        {"type":"/problems/malformed-body","title":"Malformed body","status":400,"detail":"the body is a list, expected an object with credential, method, path, client_ip, cost, peek"}
        422 Unprocessable Entity (application/problem+json)
        {"type":"/problems/invalid-field","title":"Invalid field","status":422,"detail":"`cots` is no field of a check: expected credential, method, path, client_ip, cost, peek","field":"cots"}
        422 Unprocessable Entity (application/problem+json)
        {"type":"/problems/invalid-field","title":"Invalid field","status":422,"detail":"`credential` is a number, expected a text","field":"credential"}
        422 Unprocessable Entity (application/problem+json)
        {"type":"/problems/invalid-field","title":"Invalid field","status":422,"detail":"cost 0: expected 1 to 9223372036854775807 units; to look without taking use peek","field":"cost"}
        422 Unprocessable Entity (application/problem+json)
        {"type":"/problems/invalid-field","title":"Invalid field","status":422,"detail":"`cost` is a number, expected a whole number of units from 1 to 9223372036854775807","field":"cost"}
        422 Unprocessable Entity (application/problem+json)
        {"type":"/problems/invalid-field","title":"Invalid field","status":422,"detail":"`cost` is a number, expected a whole number of units from 1 to 9223372036854775807","field":"cost"}
        422 Unprocessable Entity (application/problem+json)
        {"type":"/problems/invalid-field","title":"Invalid field","status":422,"detail":"cost 9223372036854775808: expected 1 to 9223372036854775807 units; to look without taking use peek","field":"cost"}
        422 Unprocessable Entity (application/problem+json)
        {"type":"/problems/invalid-field","title":"Invalid field","status":422,"detail":"`cost` is a number, expected a whole number of units from 1 to 9223372036854775807","field":"cost"}
        422 Unprocessable Entity (application/problem+json)
        {"type":"/problems/invalid-field","title":"Invalid field","status":422,"detail":"`peek` is a text, expected true or false","field":"peek"}
        422 Unprocessable Entity (application/problem+json)
        {"type":"/problems/invalid-field","title":"Invalid field","status":422,"detail":"`client_ip` is a text, expected an IP address, as in 203.0.113.9","field":"client_ip"}
        422 Unprocessable Entity (application/problem+json)
        {"type":"/problems/invalid-field","title":"Invalid field","status":422,"detail":"`method` is `G E T`: expected an HTTP method of at most 32 letters, as in GET","field":"method"}
        422 Unprocessable Entity (application/problem+json)
        {"type":"/problems/invalid-field","title":"Invalid field","status":422,"detail":"`path` is `orders`: expected a path from `/` on, at most 8192 bytes","field":"path"}
        400 Bad Request (application/problem+json)
        {"type":"/problems/malformed-body","title":"Malformed body","status":400,"detail":"the body is no check: duplicate field `credential` at line 1 column 30"}
    "#]],
    );
}

#[tokio::test]
async fn bodies_that_are_too_long_or_of_another_kind_are_refused() {
    let served = serve().await;
    let long = format!(r#"{{"credential":"{}"}}"#, "x".repeat(17 * 1024));
    check(
        &served.post(&long).await,
        &expect![[r#"
        413 Payload Too Large (application/problem+json)
        {"type":"/problems/body-too-long","title":"Body too long","status":413,"detail":"the body is longer than 16384 bytes, which no check needs"}
    "#]],
    );
    let chunked = format!(
        "POST /v1/check HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: application/json\r\n\
         transfer-encoding: chunked\r\n\r\n{:x}\r\n{long}\r\n0\r\n\r\n",
        long.len()
    );
    assert!(served.send(&chunked).await.starts_with("413 "));
    let form = "POST /v1/check HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\
                content-type: application/x-www-form-urlencoded\r\ncontent-length: 0\r\n\r\n";
    check(
        &served.send(form).await,
        &expect![[r#"
        415 Unsupported Media Type (application/problem+json)
        {"type":"/problems/unsupported-media-type","title":"Unsupported media type","status":415,"detail":"the content type is `application/x-www-form-urlencoded`, expected `application/json`"}
    "#]],
    );
    let none =
        "POST /v1/check HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    assert!(
        served
            .send(none)
            .await
            .contains("the content type is nothing")
    );
    let charset = "POST /v1/check HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\
                   content-type: Application/JSON; charset=utf-8\r\ncontent-length: 2\r\n\r\n{}";
    assert!(served.send(charset).await.starts_with("200 "));
    check(
        &served.get("/v1/check").await,
        &expect![[r#"
        405 Method Not Allowed (application/problem+json)
        {"type":"/problems/method-not-allowed","title":"Method not allowed","status":405,"detail":"GET /v1/check is not here: expected POST /v1/check, GET /livez, /readyz or /metrics"}
    "#]],
    );
    check(
        &served.get("/v2/check").await,
        &expect![[r#"
        404 Not Found (application/problem+json)
        {"type":"/problems/not-found","title":"Not found","status":404,"detail":"`/v2/check` is not here: expected POST /v1/check, GET /livez, /readyz or /metrics"}
    "#]],
    );
}

#[tokio::test]
async fn health_says_what_it_looked_at() {
    let served = serve().await;
    check(
        &served.get("/livez").await,
        &expect![[r#"
        200 OK (text/plain; charset=utf-8)
        [+]session: session 1 open under boot 1
        ok

    "#]],
    );
    check(
        &served.get("/readyz").await,
        &expect![[r#"
        200 OK (text/plain; charset=utf-8)
        [+]session: session 1 open under boot 1
        [+]view: last confirmed 0 ms ago, at revision 1-1
        ok

    "#]],
    );
}

#[tokio::test]
async fn metrics_count_checks_by_verdict_and_reason_and_name_no_customer() {
    let served = serve().await;
    let key = served.edge.add_key("acme", &[("daily", 1)]).unwrap();
    for _ in 0..3 {
        served.post(&format!(r#"{{"credential":"{key}"}}"#)).await;
    }
    served.post("nothing").await;
    let page = served.get("/metrics").await;
    for line in [
        r#"tollgate_checks_total{verdict="allow",reason="ok"} 1"#,
        r#"tollgate_checks_total{verdict="refuse",reason="quota_exceeded"} 2"#,
        r#"tollgate_check_duration_seconds_bucket{le="1e-07"} "#,
        r#"tollgate_check_duration_seconds_bucket{le="+Inf"} 3"#,
        "tollgate_check_duration_seconds_count 3",
        "tollgate_edge_view_age_seconds 0",
        "tollgate_edge_leases_total 0",
        "tollgate_edge_ready 1",
        r#"tollgate_http_responses_total{class="2xx"} 3"#,
        r#"tollgate_http_responses_total{class="4xx"} 1"#,
    ] {
        assert!(page.contains(line), "{line} is not in:\n{page}");
    }
    assert!(!page.contains("acme") && !page.contains(&key), "{page}");
    for line in page.lines().filter(|line| line.starts_with("# TYPE ")) {
        let name = line.split(' ').nth(2).unwrap();
        assert!(
            page.contains(&format!("# HELP {name} ")),
            "{name} has no help"
        );
    }
}

#[tokio::test]
async fn what_is_being_sent_when_it_stops_is_answered_and_the_port_is_free() {
    let mut served = serve().await;
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    let body = r#"{"credential":""}"#;
    let head = format!(
        "POST /v1/check HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&body.as_bytes()[..5]).await.unwrap();
    // A whole exchange on another connection: by its end the door has taken the first one too.
    served.get("/livez").await;
    served.stop.take().unwrap().send(()).unwrap();
    stream.write_all(&body.as_bytes()[5..]).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(DEADLINE, stream.read_to_string(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    tokio::time::timeout(DEADLINE, &mut served.door)
        .await
        .unwrap()
        .unwrap();
    tokio::net::TcpListener::bind(served.address).await.unwrap();
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let served = serve().await;
    let config = HttpConfig {
        listen: served.address,
    };
    let error = Door::open(served.edge.clone(), &config)
        .await
        .err()
        .unwrap()
        .to_string();
    let expected = format!("cannot listen on {} (TCP): ", served.address);
    assert!(
        error.starts_with(&expected) && error.contains("http.listen"),
        "{error}"
    );
}
