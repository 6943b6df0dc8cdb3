//! [`Door`]: the HTTP server and its limits.
//!
//! Owns accepting, connections, graceful stop. Every limit is a constant here. Next: `check.rs`.

use crate::metrics::Metrics;
use crate::{check, health, metrics, problem};
use axum::Router;
use axum::extract::State;
use axum::routing::{get, post};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use serde::Deserialize;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tollgate_edge::Checks;
use tollgate_wire::first_bytes::FirstBytes;

/// Connections at a time; further ones wait in the system's queue.
pub(crate) const CONNECTIONS_MAX: usize = 8192;
/// Checks being answered at a time over all connections; further ones get a 503 at once.
pub(crate) const CHECKS_MAX: usize = 16_384;
/// Bodies being read at a time over all connections; further ones get a 503 at once. With all of them stalled at their
/// longest, they take 1 GiB.
pub(crate) const BODIES_MAX: usize = 4 * CHECKS_MAX;
/// HTTP/2 streams of one connection at a time.
pub(crate) const STREAMS_MAX: u32 = 256;
/// How long a client may take to begin (until it is clear which version of HTTP it speaks), and for the head of each
/// request; how long a connection may be idle over HTTP/1. One over HTTP/2 may be idle for as long as its client answers
/// the pings that go out this often.
pub(crate) const HEAD_DEADLINE: Duration = Duration::from_secs(60);
/// Bytes of the head of a request.
pub(crate) const HEAD_BYTES_MAX: usize = 16 * 1024;
/// How long requests that are being answered may go on after the stop.
pub(crate) const DRAIN_DEADLINE: Duration = Duration::from_secs(5);
/// Pause after the system refused a connection (out of file descriptors), so as not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What an HTTP door is told.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpConfig {
    /// Where it listens (TCP). It speaks to gateways and applications of the same operator: keep it off
    /// public networks.
    pub listen: SocketAddr,
}

/// Why a door cannot open.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// The address cannot be listened on.
    #[error(
        "cannot listen on {address} (TCP): {source}; choose another address for `http.listen`, or stop what uses it"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

/// What handlers share.
pub(crate) struct Shared<E> {
    pub(crate) edge: E,
    pub(crate) metrics: Metrics,
    pub(crate) bodies: Semaphore,
    pub(crate) checks: Semaphore,
}

/// An HTTP door that listens. See the module's text.
pub struct Door<E> {
    listener: TcpListener,
    address: SocketAddr,
    /// Room for connections.
    room: Arc<Semaphore>,
    shared: Arc<Shared<E>>,
}

impl<E: Checks> Door<E> {
    /// Listens; nothing is answered before [`Door::serve`].
    ///
    /// # Errors
    /// [`DoorError::Listen`].
    pub async fn open(edge: E, config: &HttpConfig) -> Result<Self, DoorError> {
        let failed = |source| DoorError::Listen {
            address: config.listen,
            source,
        };
        let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self {
            listener,
            address,
            room: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            shared: Arc::new(Shared {
                edge,
                metrics: Metrics::default(),
                bodies: Semaphore::new(BODIES_MAX),
                checks: Semaphore::new(CHECKS_MAX),
            }),
        })
    }

    /// Where it listens: the real port where 0 was asked for.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `stop` is over, then finishes what is being answered, at most for a few seconds.
    pub async fn serve(self, stop: impl Future<Output = ()>) {
        let router = router(self.shared.clone());
        let graceful = GracefulShutdown::new();
        tokio::pin!(stop);
        loop {
            let accepted = tokio::select! {
                accepted = accept(&self.listener, &self.room) => accepted,
                () = &mut stop => break,
            };
            let (stream, permit) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            // Answers are small and waited for.
            if stream.set_nodelay(true).is_err() {
                continue;
            }
            let stream = FirstBytes::within(HEAD_DEADLINE, stream);
            let service = TowerToHyperService::new(router.clone());
            let connection = builder()
                .serve_connection(TokioIo::new(stream), service)
                .into_owned();
            let connection = graceful.watch(connection);
            let shared = self.shared.clone();
            tokio::spawn(async move {
                shared.metrics.connection_opened();
                // A client that breaks off is its own business.
                let _ = connection.await;
                shared.metrics.connection_closed();
                drop(permit);
            });
        }
        drop(self.listener);
        if tokio::time::timeout(DRAIN_DEADLINE, graceful.shutdown())
            .await
            .is_err()
        {
            tracing::warn!("requests were still being answered {DRAIN_DEADLINE:?} after the stop");
        }
    }
}

/// Opens a door on `edge` and serves until `stop` is over.
///
/// # Errors
/// [`DoorError`] when it cannot open.
pub async fn serve<E: Checks>(
    edge: E,
    config: &HttpConfig,
    stop: impl Future<Output = ()>,
) -> Result<(), DoorError> {
    Door::open(edge, config).await?.serve(stop).await;
    Ok(())
}

type Permit = tokio::sync::OwnedSemaphorePermit;

async fn accept(listener: &TcpListener, room: &Arc<Semaphore>) -> io::Result<(TcpStream, Permit)> {
    // Room first: who is not accepted waits in the system's queue.
    let permit = room
        .clone()
        .acquire_owned()
        .await
        .map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, permit))
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(HEAD_BYTES_MAX)
        .pipeline_flush(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .keep_alive_interval(HEAD_DEADLINE);
    builder
}

fn router<E: Checks>(shared: Arc<Shared<E>>) -> Router {
    Router::new()
        .route("/v1/check", post(check::check::<E>))
        .route("/livez", get(health::live::<E>))
        .route("/readyz", get(health::ready::<E>))
        .route("/metrics", get(metrics::page::<E>))
        .fallback(problem::no_such_path)
        .method_not_allowed_fallback(problem::no_such_method)
        .layer(axum::middleware::from_fn_with_state(
            shared.clone(),
            count::<E>,
        ))
        .with_state(shared)
}

async fn count<E: Checks>(
    State(shared): State<Arc<Shared<E>>>,
    request: axum::extract::Request,
    next: axum::middleware::Next,
) -> axum::response::Response {
    let response = next.run(request).await;
    shared.metrics.count_response(response.status());
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::oneshot;
    use tollgate_edge::FakeEdge;

    /// Far longer than anything here takes; only a hang meets it.
    const PATIENCE: Duration = Duration::from_secs(30);

    async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
        tokio::time::timeout(PATIENCE, future)
            .await
            .unwrap_or_else(|_| panic!("must not hang: {what}"))
    }

    /// A door with room for one connection, which somebody has who says `said` and then nothing.
    async fn full(said: &[u8]) -> (Served, TcpStream) {
        let config = HttpConfig {
            listen: "127.0.0.1:0".parse().unwrap(),
        };
        let mut door = Door::open(Arc::new(FakeEdge::new()), &config)
            .await
            .unwrap();
        door.room = Arc::new(Semaphore::new(1));
        let (address, shared) = (door.address, door.shared.clone());
        let (stop, stopped) = oneshot::channel();
        let served = Served {
            address,
            stop,
            ended: tokio::spawn(door.serve(async move { drop(stopped.await) })),
        };
        let mut silent = TcpStream::connect(address).await.unwrap();
        silent.write_all(said).await.unwrap();
        soon("the door takes a connection", async {
            while shared.metrics.connections() == 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        (served, silent)
    }

    struct Served {
        address: SocketAddr,
        stop: oneshot::Sender<()>,
        ended: tokio::task::JoinHandle<()>,
    }

    /// The clock is `time` later at once.
    async fn later(time: Duration) {
        tokio::time::pause();
        tokio::time::advance(time).await;
        tokio::time::resume();
    }

    const PREFACE_BUT_ITS_END: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r";

    #[tokio::test]
    async fn who_never_says_which_http_it_speaks_gives_its_place_to_the_next() {
        for said in [b"", &b"PRI "[..], PREFACE_BUT_ITS_END] {
            let (served, mut silent) = full(said).await;
            let mut next = TcpStream::connect(served.address).await.unwrap();
            let request = b"GET /livez HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
            next.write_all(request).await.unwrap();

            later(HEAD_DEADLINE).await;
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
    async fn a_full_door_stops() {
        let (served, _silent) = full(b"PRI ").await;
        served.stop.send(()).unwrap();
        soon("a full door stops", served.ended).await.unwrap();
    }
}
