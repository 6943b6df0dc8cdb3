//! Administration over HTTPS: `/admin/v1`, for certificates of role `admin`; `/metrics`, `/livez`, `/readyz` too.
//!
//! Every node answers: reads from its own replica, changes through the leader. A change names a reason, may name
//! the catalog it saw (`If-Match`) and a key under which a repeat is safe (`Idempotency-Key`); it takes effect
//! whole or not at all. Refusals are problem details (RFC 9457). The listener of [`serve_metrics`] has only what
//! tells of no customer, so that it needs no certificate. Parts: [`changes`], [`listings`], [`status`],
//! [`metrics`].

mod changes;
mod listings;
mod metrics;
mod problem;
mod status;

use crate::consensus::{Consensus, Proposer};
use crate::fatal::Fatal;
use crate::issuing::IssuerCounts;
use crate::machine::SharedLedger;
use crate::pepper::Pepper;
use crate::server::{ServerError, Serving};
use crate::storage::Store;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use problem::Refused;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tollgate_core::account::Name;
use tollgate_core::ids::NodeId;
use tollgate_wire::first_bytes::FirstBytes;
use tollgate_wire::identity::{PeerIdentity, Role};
use tollgate_wire::tls::Tls;

/// Largest body of a request, in bytes: what `tollgate apply` sends, too. A larger catalog is applied in several files;
/// one of this size takes effect within one log entry, at which every node works about a tenth of a second.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;
/// Connections of one listener at once; more wait.
pub const CONNECTIONS_MAX: usize = 256;
/// For the TLS handshake.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// To begin (until it is clear which version of HTTP the peer speaks), for the head of each request, and for the answer
/// to a ping, of which as long a silence over HTTP/2 makes one.
pub const HEAD_DEADLINE: Duration = Duration::from_secs(10);
/// For a whole request, from its head to its answer.
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(20);

/// The catalog's revision, in every answer.
pub const REVISION_HEADER: HeaderName = HeaderName::from_static("x-tollgate-revision");

/// What administration sees of the node.
pub struct View {
    pub(crate) cluster: Name,
    pub(crate) node: NodeId,
    pub(crate) ledger: SharedLedger,
    pub(crate) consensus: Arc<dyn Consensus>,
    pub(crate) proposer: Proposer,
    pub(crate) pepper: Pepper,
    pub(crate) serving: Serving,
    pub(crate) issuer_counts: Arc<IssuerCounts>,
    pub(crate) store: Arc<Store>,
    pub(crate) data_dir: PathBuf,
    pub(crate) members: BTreeMap<u64, String>,
}

/// A TCP port that is listened on.
pub struct AdminListener {
    /// Where: the real port where 0 was asked for.
    pub address: SocketAddr,
    tcp: TcpListener,
}

impl AdminListener {
    /// Takes a port; `field` is where the configuration names it.
    ///
    /// # Errors
    /// [`ServerError::Tcp`].
    pub async fn bind(field: &'static str, address: SocketAddr) -> Result<Self, ServerError> {
        let failed = |source| ServerError::Tcp {
            field,
            address,
            source,
        };
        let tcp = TcpListener::bind(address).await.map_err(failed)?;
        let address = tcp.local_addr().map_err(failed)?;
        Ok(Self { address, tcp })
    }
}

/// Who asks: the certificate's, put beside every request of its connection.
#[derive(Clone, Debug)]
pub(crate) struct Caller(PeerIdentity);

/// Serves administration until the node stops.
pub async fn serve(listener: AdminListener, tls: Tls, view: Arc<View>, fatal: Fatal) {
    let acceptor = TlsAcceptor::from(tls.server_config(&["h2", "http/1.1"]));
    let router = Router::new()
        .route("/admin/v1/apply", post(changes::apply))
        .route(
            "/admin/v1/keys",
            get(listings::keys).post(changes::create_key),
        )
        .route("/admin/v1/keys/{id}/revoke", post(changes::revoke_key))
        .route("/admin/v1/customers", get(listings::customers))
        .route("/admin/v1/licenses", get(listings::licenses))
        .route("/admin/v1/plans", get(listings::plans))
        .route("/admin/v1/usage", get(listings::usage))
        .route("/admin/v1/accounts", get(listings::accounts))
        .route("/admin/v1/audit", get(listings::audit))
        .route("/admin/v1/status", get(status::status))
        .layer(middleware::from_fn(only_admins))
        .merge(open_routes())
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(view.clone(), with_revision))
        .with_state(view);
    take_connections(listener, CONNECTIONS_MAX, fatal, move |tcp| {
        let (acceptor, router) = (acceptor.clone(), router.clone());
        async move {
            let stream = match tokio::time::timeout(HANDSHAKE_DEADLINE, acceptor.accept(tcp)).await
            {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => {
                    tracing::info!(%error, "an administrator's connection was refused");
                    return;
                }
                Err(_) => return,
            };
            let peer = stream
                .get_ref()
                .1
                .peer_certificates()
                .and_then(<[_]>::first);
            match peer.map(PeerIdentity::from_certificate) {
                Some(Ok(peer)) => speak(stream, router.layer(axum::Extension(Caller(peer)))).await,
                // TLS asks for a certificate of this cluster: it has verified one.
                other => tracing::warn!(?other, "an administrator without an identity"),
            }
        }
    })
    .await;
}

/// Serves what needs no certificate until the node stops.
pub async fn serve_metrics(listener: AdminListener, view: Arc<View>, fatal: Fatal) {
    let router = open_routes().fallback(unknown_path).with_state(view);
    take_connections(listener, CONNECTIONS_MAX, fatal, move |tcp| {
        speak(tcp, router.clone())
    })
    .await;
}

fn open_routes() -> Router<Arc<View>> {
    Router::new()
        .route("/metrics", get(metrics::metrics))
        .route("/livez", get(status::livez))
        .route("/readyz", get(status::readyz))
}

async fn take_connections<F>(
    listener: AdminListener,
    connections_max: usize,
    fatal: Fatal,
    mut serve: impl FnMut(TcpStream) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let room = Arc::new(Semaphore::new(connections_max));
    // Dropped with the last of them still open: a stop waits for nobody.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = accept(&listener.tcp, &room) => match accepted {
                Ok((tcp, permit)) => {
                    let served = serve(tcp);
                    connections.spawn(async move {
                        served.await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    // Out of file descriptors, most likely: some come back.
                    tracing::warn!(%error, "no connection could be taken");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
            () = fatal.stopping() => return,
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    // Room first: who is not accepted waits in the system's queue.
    let permit = room
        .clone()
        .acquire_owned()
        .await
        .map_err(io::Error::other)?;
    let (tcp, _) = listener.accept().await?;
    Ok((tcp, permit))
}

async fn speak(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, router: Router) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(64)
        .keep_alive_interval(HEAD_DEADLINE)
        .keep_alive_timeout(HEAD_DEADLINE);
    let stream = FirstBytes::within(HEAD_DEADLINE, stream);
    let service = TowerToHyperService::new(router.layer(middleware::from_fn(in_time)));
    if let Err(error) = builder
        .serve_connection(TokioIo::new(stream), service)
        .await
    {
        tracing::debug!(%error, "an administrator's connection broke");
    }
}

async fn in_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(REQUEST_DEADLINE, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Refused::late(REQUEST_DEADLINE).into_response(),
    }
}

async fn only_admins(request: Request, next: Next) -> Response {
    match request.extensions().get::<Caller>() {
        Some(Caller(peer)) if peer.role() == Role::Admin => next.run(request).await,
        caller => {
            let found = caller.map_or("nobody".to_owned(), |Caller(peer)| peer.to_string());
            Refused::forbidden(&found).into_response()
        }
    }
}

/// Every answer tells the catalog's revision; an answer of 200 also as its ETag.
async fn with_revision(State(view): State<Arc<View>>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let revision = view.ledger.read().catalog().revision();
    if let Ok(value) = HeaderValue::from_str(&revision.to_string()) {
        response
            .headers_mut()
            .entry(REVISION_HEADER)
            .or_insert(value);
    }
    if response.status().is_success()
        && let Ok(value) = HeaderValue::from_str(&format!("\"{revision}\""))
    {
        response.headers_mut().entry(header::ETAG).or_insert(value);
    }
    response
}

async fn unknown_path(request: Request) -> Refused {
    Refused::not_found(format!("path {}", request.uri().path()))
}

async fn wrong_method(request: Request) -> Refused {
    Refused::method(request.method(), request.uri().path())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fatal::Stop;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::watch;
    use tokio::task::JoinHandle;

    /// Far longer than anything here takes; only a hang meets it.
    const PATIENCE: Duration = Duration::from_secs(30);
    const PREFACE_BUT_ITS_END: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r";
    const REQUEST: &[u8] = b"GET /livez HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";

    async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
        tokio::time::timeout(PATIENCE, future)
            .await
            .unwrap_or_else(|_| panic!("must not hang: {what}"))
    }

    fn router() -> Router {
        Router::new().route("/livez", get(|| async { "ok" }))
    }

    /// A listener with room for one connection, which somebody has who says `said` and then nothing.
    async fn full(said: &[u8]) -> (SocketAddr, Fatal, JoinHandle<()>, TcpStream) {
        let listener = AdminListener::bind("test", "127.0.0.1:0".parse().unwrap())
            .await
            .unwrap();
        let (address, fatal) = (listener.address, Fatal::default());
        let (taken, mut was_taken) = watch::channel(false);
        let serving = take_connections(listener, 1, fatal.clone(), move |tcp| {
            let taken = taken.clone();
            async move {
                taken.send_replace(true);
                speak(tcp, router()).await;
            }
        });
        let serving = tokio::spawn(serving);
        let mut silent = TcpStream::connect(address).await.unwrap();
        silent.write_all(said).await.unwrap();
        soon("a connection is taken", was_taken.wait_for(|taken| *taken))
            .await
            .unwrap();
        (address, fatal, serving, silent)
    }

    #[tokio::test]
    async fn who_never_says_which_http_it_speaks_gives_its_place_to_the_next() {
        for said in [b"", &b"PRI "[..], PREFACE_BUT_ITS_END] {
            let (address, _fatal, _serving, mut silent) = full(said).await;
            let mut next = TcpStream::connect(address).await.unwrap();
            next.write_all(REQUEST).await.unwrap();

            tokio::time::pause();
            tokio::time::advance(HEAD_DEADLINE).await;
            tokio::time::resume();
            let mut answer = String::new();
            soon("the next is answered", next.read_to_string(&mut answer))
                .await
                .unwrap();
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            // Closed; a reset counts, for not all that it said was read.
            let rest = soon("the silent one is closed", silent.read(&mut [0])).await;
            assert!(matches!(rest, Ok(0) | Err(_)), "{rest:?}");
        }
    }

    #[tokio::test]
    async fn a_full_listener_stops() {
        let (_address, fatal, serving, _silent) = full(b"PRI ").await;
        fatal.stop(Stop::Asked);
        soon("a full listener stops", serving).await.unwrap();
    }

    /// As behind TLS: any stream.
    #[tokio::test(start_paused = true)]
    async fn a_peer_of_http_2_that_answers_nothing_any_more_is_let_go() {
        let (near, mut far) = tokio::io::duplex(64 * 1024);
        let spoken = tokio::spawn(speak(near, router()));
        // The whole preface, an empty SETTINGS, and never an answer to a ping.
        far.write_all(PREFACE_BUT_ITS_END).await.unwrap();
        far.write_all(b"\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        let given_up = tokio::time::timeout(3 * HEAD_DEADLINE, spoken).await;
        given_up.expect("the peer is given up").unwrap();
    }
}
