//! What takes connections: plain or by TLS, from everybody or from known proxies only. A fault of
//! one connection, or of taking one, never ends the listener.

mod proxies;
pub mod tls;

use std::convert::Infallible;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response, StatusCode, header};
use axum::response::IntoResponse as _;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use ipnet::IpNet;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

pub use proxies::Client;
pub use tls::Certificates;

/// Connections at a time; more wait in the system's queue.
const CONNECTIONS_MAX: usize = 10_000;
/// What the machine itself may ask although it is no proxy.
const HEALTH: &str = "/healthz";
/// From the connection to the end of the TLS handshake, at most.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Until a request's headers are there, and from one request to the next on a connection.
const HEADERS_MAX: Duration = Duration::from_secs(60);
/// After a connection could not be taken (no file descriptors, no memory), until the next try.
const REST: Duration = Duration::from_millis(200);

/// How connections are taken.
#[derive(Debug, Clone)]
pub struct Options {
    /// By TLS, with the certificate that these hold at the time.
    pub certificates: Option<Certificates>,
    /// Requests are taken from these peers only, whose `X-Forwarded-For` is believed; from
    /// everybody when there are none.
    pub proxies: watch::Receiver<Vec<IpNet>>,
}

/// Serves until asked to stop; then takes no more connections, and returns when those that are
/// open have had their answers.
pub async fn serve(tcp: TcpListener, router: Router, options: Options, stop: CancellationToken) {
    let acceptor = options.certificates.as_ref().map(Certificates::acceptor);
    let connections = TaskTracker::new();
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accept(&tcp, &permits) => accepted,
        };
        let (stream, peer, permit) = match accepted {
            Ok(accepted) => accepted,
            Err(error) if of_one_connection(&error) => continue,
            Err(error) => {
                warn!("a connection cannot be taken, others are tried soon: {error}");
                tokio::time::sleep(REST).await;
                continue;
            }
        };
        let connection = Connection { peer, router: router.clone(), proxies: options.proxies.clone() };
        let (acceptor, stop) = (acceptor.clone(), stop.clone());
        connections.spawn(async move {
            connection.serve(stream, acceptor, stop).await;
            drop(permit);
        });
    }
    drop(tcp);
    connections.close();
    connections.wait().await;
}

type Accepted = (TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit);

async fn accept(tcp: &TcpListener, permits: &Arc<Semaphore>) -> std::io::Result<Accepted> {
    let permit = Arc::clone(permits).acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, peer) = tcp.accept().await?;
    Ok((stream, peer, permit))
}

/// The other side was gone before we looked: nothing is wrong here.
fn of_one_connection(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset)
}

struct Connection {
    peer: SocketAddr,
    router: Router,
    proxies: watch::Receiver<Vec<IpNet>>,
}

impl Connection {
    async fn serve(self, stream: TcpStream, acceptor: Option<TlsAcceptor>, stop: CancellationToken) {
        // Events are small and wanted at once.
        let _ = stream.set_nodelay(true);
        let Some(acceptor) = acceptor else { return self.speak(stream, stop).await };
        let peer = self.peer;
        let handshake = tokio::select! {
            () = stop.cancelled() => return,
            handshake = tokio::time::timeout(HANDSHAKE_MAX, acceptor.accept(stream)) => handshake,
        };
        match handshake {
            Ok(Ok(stream)) => self.speak(stream, stop).await,
            Ok(Err(error)) => debug!(%peer, "a TLS handshake failed: {error}"),
            Err(_) => debug!(%peer, "a TLS handshake took longer than {} s", HANDSHAKE_MAX.as_secs()),
        }
    }

    /// HTTP/1.1, with upgrades to WebSockets.
    async fn speak<S>(self, stream: S, stop: CancellationToken)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Self { peer, router, proxies } = self;
        let router = TowerToHyperService::new(router);
        let service = service_fn(move |mut request: Request<Incoming>| {
            // The machine itself may ask whether it is alive, as a container's health check does.
            let of_itself = || (peer.ip().is_loopback() && request.uri().path() == HEALTH).then(|| Client(peer.ip()));
            let client = proxies::client(peer.ip(), request.headers(), &proxies.borrow()).or_else(of_itself);
            let router = router.clone();
            async move {
                let Some(client) = client else { return Ok::<_, Infallible>(not_a_proxy()) };
                request.extensions_mut().insert(client);
                let answer = router.call(request.map(Body::new)).await;
                if answer.as_ref().is_ok_and(|answer| answer.status() == StatusCode::UNAUTHORIZED) {
                    debug!(client = %client.0, "a request without a valid token was refused");
                }
                answer
            }
        });
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(HEADERS_MAX);
        let connection = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
        let mut connection = std::pin::pin!(connection);
        let outcome = tokio::select! {
            outcome = connection.as_mut() => outcome,
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = outcome {
            debug!(%peer, "a connection broke: {error}");
        }
    }
}

fn not_a_proxy() -> Response<Body> {
    let headers = [(header::CONNECTION, "close"), (header::CONTENT_TYPE, "text/plain; charset=utf-8")];
    let text = "this server takes requests from its proxies only (see the setting trusted-proxies)\n";
    (StatusCode::FORBIDDEN, headers, text).into_response()
}
