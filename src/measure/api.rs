//! What clients ask for.

use std::sync::LazyLock;
use std::time::Duration;

use metrics::{
    Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

/// How a request came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// GraphQL, answered at once.
    Http,
    /// GraphQL, answered by server-sent events.
    Sse,
    /// GraphQL over a WebSocket: one operation of a connection.
    WebSocket,
    /// Pages, their files, and paths that are none.
    Page,
    /// Health and metrics.
    Probe,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Answered as asked.
    Ok,
    /// Answered with errors of GraphQL.
    Errors,
    /// Refused: the request is at fault.
    Refused,
    /// The server is at fault.
    Failed,
}

/// Which limit was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Fields within fields.
    Depth,
    /// Fields, aliases, directives or items that a document asks for.
    Complexity,
    /// Bytes of a request's body.
    Body,
    /// WebSockets and event streams that are open.
    Connections,
    /// Operations of one connection.
    Operations,
    /// A subscriber that does not keep up.
    SlowReader,
}

const TRANSPORTS: [&str; 5] = ["http", "sse", "websocket", "page", "probe"];
const OUTCOMES: [&str; 4] = ["ok", "errors", "refused", "failed"];
const LIMITS: [&str; 6] = ["depth", "complexity", "body", "connections", "operations", "slow_reader"];

static REQUESTS: LazyLock<[[Counter; 4]; 5]> = LazyLock::new(|| {
    TRANSPORTS.map(|transport| {
        OUTCOMES.map(|outcome| counter!("gennaker_api_requests_total", "transport" => transport, "outcome" => outcome))
    })
});
static DURATION: LazyLock<[Histogram; 5]> = LazyLock::new(|| {
    TRANSPORTS.map(|transport| histogram!("gennaker_api_request_duration_seconds", "transport" => transport))
});
static REJECTED: LazyLock<[Counter; 6]> =
    LazyLock::new(|| LIMITS.map(|limit| counter!("gennaker_api_rejected_total", "limit" => limit)));
static CONNECTIONS: LazyLock<[Gauge; 2]> = LazyLock::new(|| {
    ["websocket", "sse"].map(|transport| gauge!("gennaker_api_connections", "transport" => transport))
});
static SUBSCRIPTIONS: LazyLock<Gauge> = LazyLock::new(|| gauge!("gennaker_api_subscriptions"));
static EVENTS: LazyLock<Counter> = LazyLock::new(|| counter!("gennaker_api_events_sent_total"));

pub(super) fn describe() {
    describe_counter!("gennaker_api_requests_total", "Requests, by how they came and what came of them.");
    describe_histogram!(
        "gennaker_api_request_duration_seconds",
        "From a request to the head of its answer, or to the end of an operation on a WebSocket that is no subscription."
    );
    describe_counter!(
        "gennaker_api_rejected_total",
        "Requests refused, and subscriptions ended, by the limit they met."
    );
    describe_gauge!("gennaker_api_connections", "WebSockets and event streams that are open.");
    describe_gauge!("gennaker_api_subscriptions", "Subscriptions that run.");
    describe_counter!("gennaker_api_events_sent_total", "Results handed to subscribers.");
    LazyLock::force(&REQUESTS);
    LazyLock::force(&DURATION);
    LazyLock::force(&REJECTED);
    CONNECTIONS.iter().for_each(|gauge| gauge.set(0.0));
    SUBSCRIPTIONS.set(0.0);
    LazyLock::force(&EVENTS);
}

/// A request was answered.
pub fn request(transport: Transport, outcome: Outcome, took: Option<Duration>) {
    REQUESTS[transport as usize][outcome as usize].increment(1);
    if let Some(took) = took {
        DURATION[transport as usize].record(took);
    }
}

/// Something was refused by a limit.
pub fn rejected(limit: Limit) {
    REJECTED[limit as usize].increment(1);
}

/// A result was handed to a subscriber.
pub fn event_sent() {
    EVENTS.increment(1);
}

/// Counts something as open until it is dropped.
#[derive(Debug)]
pub struct Open(&'static Gauge);

impl Open {
    fn new(gauge: &'static Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge)
    }

    /// A WebSocket.
    #[must_use]
    pub fn websocket() -> Self {
        Self::new(&CONNECTIONS[0])
    }

    /// A stream of server-sent events.
    #[must_use]
    pub fn sse() -> Self {
        Self::new(&CONNECTIONS[1])
    }

    /// A subscription.
    #[must_use]
    pub fn subscription() -> Self {
        Self::new(&SUBSCRIPTIONS)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}
