//! `gennaker sample-app`: the application that the demo deploys. A real HTTP server that shows its
//! version and can be told to misbehave: start slowly, fail its health check, crash, answer slowly.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Query, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Status with which it ends when it is told to crash.
const CRASHED: i32 = 3;
/// The longest answer that `/slow` may be asked for.
const SLOW_MAX: Duration = Duration::from_secs(300);
const VERSION: HeaderName = HeaderName::from_static("x-version");

/// A real HTTP server to deploy: shows its version at /, its health at /health.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
Examples:
  gennaker sample-app --version 1.0.0
  gennaker sample-app --version bad --fail-health
  gennaker sample-app --version slow --start-delay-ms 5000 \\
      --crash-after-ms 9000

Exit status: 0 asked to end, 1 it cannot listen, 2 bad input, 3 it was told to
crash.")]
pub struct Args {
    /// Shown at / and in the header x-version
    #[arg(long)]
    pub version: String,
    /// Port to listen on; 0 takes a free one
    #[arg(long, env = "PORT", default_value_t = 8080)]
    pub port: u16,
    /// Address to listen on
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub address: IpAddr,
    /// Wait for this long before listening, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub start_delay_ms: u64,
    /// Answer /health with 503: always, or after that many requests
    #[arg(long, value_name = "always|N", num_args = 0..=1, default_missing_value = "always")]
    pub fail_health: Option<FailHealth>,
    /// End with status 3 after this time, in milliseconds
    #[arg(long, value_name = "MS")]
    pub crash_after_ms: Option<u64>,
    /// Answer each request this much later, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub answer_delay_ms: u64,
}

/// When the health check begins to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailHealth {
    /// From the start.
    Always,
    /// After this many requests other than for health.
    After(u64),
}

impl std::str::FromStr for FailHealth {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "always" => Ok(Self::Always),
            number => number
                .parse()
                .map(Self::After)
                .map_err(|_| format!("`{number}` is neither `always` nor a number of requests")),
        }
    }
}

/// Serves until SIGTERM or SIGINT, then finishes what is open.
///
/// # Errors
/// Where the port cannot be listened on.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    if let Some(after) = args.crash_after_ms {
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(after)).await;
            eprintln!("crashing, as told");
            std::process::exit(CRASHED);
        });
    }
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        println!("stopping: finishing what is open");
        stopping.cancel();
    });
    tokio::select! {
        () = tokio::time::sleep(Duration::from_millis(args.start_delay_ms)) => {}
        () = stop.cancelled() => return Ok(()),
    }
    let address = SocketAddr::new(args.address, args.port);
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    println!("sample-app {} listens on {}", args.version, listener.local_addr()?);
    serve(listener, args, stop).await?;
    println!("stopped");
    Ok(())
}

async fn serve(listener: TcpListener, args: Args, stop: CancellationToken) -> anyhow::Result<()> {
    let app = router(&args, stop.clone())?;
    axum::serve(listener, app)
        .with_graceful_shutdown(async move { stop.cancelled().await })
        .await
        .context("the server failed")
}

struct App {
    text: String,
    version: HeaderValue,
    fail_health: Option<FailHealth>,
    delay: Duration,
    requests: AtomicU64,
    stop: CancellationToken,
}

fn router(args: &Args, stop: CancellationToken) -> anyhow::Result<Router> {
    let app = Arc::new(App {
        text: format!("hello from {}\n", args.version),
        version: HeaderValue::from_str(&args.version).context("the version cannot stand in a header")?,
        fail_health: args.fail_health,
        delay: Duration::from_millis(args.answer_delay_ms),
        requests: AtomicU64::new(0),
        stop,
    });
    let pages = Router::new()
        .route("/", get(async |State(app): State<Arc<App>>| app.text.clone()))
        .route("/slow", get(slow))
        .route("/ws", any(echo))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), count_and_delay));
    Ok(pages
        .route("/health", get(health))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), show_version))
        .with_state(app))
}

async fn count_and_delay(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    app.requests.fetch_add(1, Ordering::Relaxed);
    if !app.delay.is_zero() {
        tokio::time::sleep(app.delay).await;
    }
    next.run(request).await
}

async fn show_version(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    response.headers_mut().insert(VERSION, app.version.clone());
    response
}

async fn health(State(app): State<Arc<App>>) -> (StatusCode, &'static str) {
    let fails = match app.fail_health {
        None => false,
        Some(FailHealth::Always) => true,
        Some(FailHealth::After(requests)) => app.requests.load(Ordering::Relaxed) >= requests,
    };
    if fails { (StatusCode::SERVICE_UNAVAILABLE, "unhealthy, as told\n") } else { (StatusCode::OK, "healthy\n") }
}

#[derive(serde::Deserialize)]
struct Slow {
    #[serde(default)]
    ms: u64,
}

async fn slow(State(app): State<Arc<App>>, Query(slow): Query<Slow>) -> impl IntoResponse {
    tokio::time::sleep(Duration::from_millis(slow.ms).min(SLOW_MAX)).await;
    app.text.clone()
}

async fn echo(State(app): State<Arc<App>>, upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(async move |mut socket: WebSocket| {
        loop {
            let message = tokio::select! {
                message = socket.recv() => message,
                () = app.stop.cancelled() => {
                    let _ = socket.send(Message::Close(None)).await;
                    return;
                }
            };
            match message {
                Some(Ok(message @ (Message::Text(_) | Message::Binary(_)))) => {
                    if socket.send(message).await.is_err() {
                        return;
                    }
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use futures_util::{SinkExt, StreamExt};

    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn args(more: &[&str]) -> Args {
        let line = ["app", "--version", "2.0.0"].iter().chain(more);
        Cli::try_parse_from(line).expect("valid arguments").args
    }

    /// A running server, its address and how to stop it.
    async fn start(more: &[&str]) -> (SocketAddr, CancellationToken, tokio::task::JoinHandle<anyhow::Result<()>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let stop = CancellationToken::new();
        let task = tokio::spawn(serve(listener, args(more), stop.clone()));
        (address, stop, task)
    }

    async fn get(address: SocketAddr, path: &str) -> (u16, Option<String>, String) {
        use http_body_util::BodyExt as _;
        let stream = tokio::net::TcpStream::connect(address).await.expect("it listens");
        let io = hyper_util::rt::TokioIo::new(stream);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.expect("a connection");
        tokio::spawn(connection);
        let request = hyper::Request::get(path).header("host", "a").body(String::new()).expect("a request");
        let response = sender.send_request(request).await.expect("an answer");
        let version = response.headers().get(VERSION).map(|value| value.to_str().expect("text").to_owned());
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        (status, version, String::from_utf8(body.to_vec()).expect("text"))
    }

    #[test]
    fn arguments_say_how_to_misbehave() {
        assert_eq!(args(&[]).fail_health, None);
        assert_eq!(args(&["--fail-health"]).fail_health, Some(FailHealth::Always));
        assert_eq!(args(&["--fail-health", "always"]).fail_health, Some(FailHealth::Always));
        assert_eq!(args(&["--fail-health", "7", "--port", "0"]).fail_health, Some(FailHealth::After(7)));
        assert!(Cli::try_parse_from(["app", "--version", "1", "--fail-health", "never"]).is_err());
        assert!(Cli::try_parse_from(["app"]).is_err(), "the version is needed");
    }

    #[tokio::test]
    async fn it_shows_its_version_and_its_health() {
        let (address, ..) = start(&[]).await;
        let version = Some("2.0.0".to_owned());
        assert_eq!(get(address, "/").await, (200, version.clone(), "hello from 2.0.0\n".into()));
        assert_eq!(get(address, "/health").await, (200, version.clone(), "healthy\n".into()));
        assert_eq!(get(address, "/nothing").await.0, 404);
        let (mut socket, _) =
            tokio_tungstenite::connect_async(format!("ws://{address}/ws")).await.expect("a websocket");
        socket.send("hello".into()).await.expect("sent");
        assert_eq!(socket.next().await.expect("open").expect("read").to_text().expect("text"), "hello");
    }

    #[tokio::test]
    async fn its_health_fails_when_told() {
        let (address, ..) = start(&["--fail-health"]).await;
        assert_eq!(get(address, "/health").await.0, 503);
        let (address, ..) = start(&["--fail-health", "2"]).await;
        for expected in [200, 200, 503] {
            assert_eq!(get(address, "/health").await.0, expected);
            assert_eq!(get(address, "/").await.0, 200);
        }
    }

    #[tokio::test]
    async fn it_finishes_what_is_open_before_it_stops() {
        let (address, stop, task) = start(&["--answer-delay-ms", "50"]).await;
        let (mut socket, _) =
            tokio_tungstenite::connect_async(format!("ws://{address}/ws")).await.expect("a websocket");
        let open = tokio::spawn(get(address, "/slow?ms=200"));
        // The request is open once a later one, just as delayed, has been answered.
        assert_eq!(get(address, "/").await.0, 200);
        stop.cancel();
        assert_eq!(open.await.expect("no panic").2, "hello from 2.0.0\n");
        assert!(socket.next().await.expect("open").expect("read").is_close());
        tokio::time::timeout(Duration::from_secs(10), task).await.expect("stops").expect("no panic").expect("served");
        assert!(tokio::net::TcpStream::connect(address).await.is_err());
    }
}
