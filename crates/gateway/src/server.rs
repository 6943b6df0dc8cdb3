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

/// Connections at a time; further ones wait in the system's queue.
pub(crate) const CONNECTIONS_MAX: usize = 8192;
/// Checks being answered at a time over all connections; further ones get a 503 at once.
pub(crate) const CHECKS_MAX: usize = 16_384;
/// Bodies being read at a time over all connections; further ones get a 503 at once. With all of them stalled at their
/// longest, they take 1 GiB.
pub(crate) const BODIES_MAX: usize = 4 * CHECKS_MAX;
/// HTTP/2 streams of one connection at a time.
pub(crate) const STREAMS_MAX: u32 = 256;
/// How long a client may take for the head of a request, and how long a connection may be idle.
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
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let graceful = GracefulShutdown::new();
        tokio::pin!(stop);
        loop {
            let accepted = tokio::select! {
                accepted = accept(&self.listener, &connections) => accepted,
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

async fn accept(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> io::Result<(TcpStream, Permit)> {
    // Room first: who is not accepted waits in the system's queue.
    let permit = connections
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
