//! A steady load of HTTP requests over a few connections, every answer counted: what the demo and
//! the tests put on a load balancer while something is deployed behind it.
//!
//! Nothing is retried and nothing is forgiven, so that a failure of the rollout is seen: an answer
//! other than 200, a connection that breaks, or a wait beyond the timeout each count as a failure.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

/// What to send.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where to.
    pub target: SocketAddr,
    /// Path and query, from the `/` on.
    pub path: String,
    /// Over all connections.
    pub requests_per_second: u32,
    /// How many are open at a time; each has one request under way.
    pub connections: u32,
    /// A request that breaks with its connection before an answer began is sent once more on a new
    /// one, as browsers do with a GET. For tests that kill the data plane itself.
    pub retry_broken: bool,
}

/// Longest wait for one answer.
const TIMEOUT: Duration = Duration::from_secs(10);
const BODY_MAX: usize = 64 * 1024;
const FAILURES_KEPT: usize = 100;

/// What came back so far.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Requests, each counted once.
    pub sent: u64,
    /// Of them, those without an answer 200 in time.
    pub failed: u64,
    /// Requests sent once more; zero unless [`Options::retry_broken`].
    pub retried: u64,
    /// Per second since the start: version to answers.
    pub seconds: BTreeMap<u64, BTreeMap<String, u64>>,
    /// The first failures: milliseconds since the start, and what happened.
    pub failures: Vec<(u64, String)>,
    /// Latency in microseconds of each answer, unsorted.
    pub latencies_us: Vec<u32>,
}

impl Report {
    /// Answers by version over the whole time.
    #[must_use]
    pub fn versions(&self) -> BTreeMap<String, u64> {
        let mut sum = BTreeMap::new();
        for (version, count) in self.seconds.values().flatten() {
            *sum.entry(version.clone()).or_default() += count;
        }
        sum
    }

    /// The latency below which this share of answers (0 to 1) came.
    #[must_use]
    pub fn latency(&self, share: f64) -> Option<Duration> {
        let mut sorted = self.latencies_us.clone();
        sorted.sort_unstable();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let index = ((sorted.len() as f64 * share) as usize).min(sorted.len().checked_sub(1)?);
        Some(Duration::from_micros(u64::from(sorted[index])))
    }
}

/// A running load.
#[derive(Debug)]
pub struct Load {
    stop: CancellationToken,
    workers: JoinSet<()>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    options: Options,
    start: Instant,
    report: Mutex<Report>,
}

impl Load {
    /// Starts sending.
    #[must_use]
    pub fn start(options: Options) -> Self {
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared { start: Instant::now(), report: Mutex::default(), options });
        let mut workers = JoinSet::new();
        for index in 0..shared.options.connections.max(1) {
            workers.spawn(worker(Arc::clone(&shared), stop.clone(), index));
        }
        Self { stop, workers, shared }
    }

    /// What came back so far.
    #[must_use]
    pub fn report(&self) -> Report {
        self.shared.report().clone()
    }

    /// Since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.shared.start.elapsed()
    }

    /// Lets open requests end, and gives the sum.
    pub async fn stop(mut self) -> Report {
        self.stop.cancel();
        while self.workers.join_next().await.is_some() {}
        self.shared.report().clone()
    }
}

impl Shared {
    fn report(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn worker(shared: Arc<Shared>, stop: CancellationToken, index: u32) {
    let options = &shared.options;
    let workers = options.connections.max(1);
    let period = Duration::from_secs(1) * workers / options.requests_per_second.max(1);
    let mut ticks = tokio::time::interval_at(shared.start + period * index / workers, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut connection = None;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let sent_at = Instant::now();
        let mut outcome = ask(&mut connection, options).await;
        let mut retried = 0;
        if options.retry_broken && matches!(outcome, Err(Fault { broken: true, .. })) {
            connection = None;
            retried = 1;
            outcome = ask(&mut connection, options).await;
        }
        if outcome.is_err() {
            connection = None;
        }
        record(&shared, sent_at, retried, outcome);
    }
}

fn record(shared: &Shared, sent_at: Instant, retried: u64, outcome: Result<String, Fault>) {
    let since = shared.start.elapsed();
    let mut report = shared.report();
    report.sent += 1;
    report.retried += retried;
    match outcome {
        Ok(version) => {
            report.latencies_us.push(u32::try_from(sent_at.elapsed().as_micros()).unwrap_or(u32::MAX));
            *report.seconds.entry(since.as_secs()).or_default().entry(version).or_default() += 1;
        }
        Err(fault) => {
            report.failed += 1;
            if report.failures.len() < FAILURES_KEPT {
                let at = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
                report.failures.push((at, fault.what));
            }
        }
    }
}

struct Fault {
    what: String,
    /// The connection broke before an answer began.
    broken: bool,
}

impl Fault {
    fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), broken: false }
    }
}

type Connection = SendRequest<Empty<Bytes>>;

/// One request; the version that answered.
async fn ask(connection: &mut Option<Connection>, options: &Options) -> Result<String, Fault> {
    tokio::time::timeout(TIMEOUT, async {
        // One that was closed while nothing was under way is no failure: every client opens another.
        let usable = match connection.as_mut() {
            Some(sender) => sender.ready().await.is_ok(),
            None => false,
        };
        if !usable {
            *connection = Some(connect(options.target).await?);
        }
        let sender = connection.as_mut().ok_or_else(|| Fault::new("no connection"))?;
        let request = hyper::Request::get(&options.path)
            .header(hyper::header::HOST, options.target.to_string())
            .body(Empty::new())
            .map_err(|error| Fault::new(error.to_string()))?;
        let answer = sender
            .send_request(request)
            .await
            .map_err(|error| Fault { what: format!("connection broken: {}", deepest(&error)), broken: true })?;
        let status = answer.status();
        let version = answer.headers().get("x-version").and_then(|value| value.to_str().ok()).map(str::to_owned);
        let body = Limited::new(answer.into_body(), BODY_MAX)
            .collect()
            .await
            .map_err(|error| Fault { what: format!("answer broken off: {error}"), broken: false })?
            .to_bytes();
        if status != hyper::StatusCode::OK {
            return Err(Fault::new(format!("answered {status}: {}", cut(&body))));
        }
        Ok(version.unwrap_or_else(|| cut(&body)))
    })
    .await
    .unwrap_or_else(|_| Err(Fault::new(format!("no answer within {} s", TIMEOUT.as_secs()))))
}

async fn connect(target: SocketAddr) -> Result<Connection, Fault> {
    let fault = |error: String| Fault { what: format!("cannot connect: {error}"), broken: true };
    let stream = TcpStream::connect(target).await.map_err(|error| fault(error.to_string()))?;
    let _ = stream.set_nodelay(true);
    let (sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| fault(error.to_string()))?;
    // Ends by itself when the sender is dropped or the peer closes.
    tokio::spawn(connection);
    Ok(sender)
}

fn cut(body: &[u8]) -> String {
    String::from_utf8_lossy(body).trim().chars().take(80).collect()
}

fn deepest(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
