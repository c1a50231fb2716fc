//! What the outside talks to: GraphQL over HTTP, WebSocket and server-sent events, and the page
//! to explore it with. Speaks to the rest only through [`Commands`], [`Store`] and [`Inventory`].

mod error;
pub mod graphql;
mod http;
mod inputs;
mod precheck;
pub mod probes;
mod request_id;
#[cfg(test)]
mod tests;

use axum::Router;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use error::Code;
pub use graphql::{Folds, Schema, sdl};
pub use http::Origin;
pub use precheck::Limits;

use crate::auth::Authenticator;
use crate::clock::Clock;
use crate::engine::commands::Commands;
use crate::engine::contract::Registry;
use crate::inventory::Inventory;
use crate::notifiers::Notifiers;
use crate::store::Store;

/// Settings of the API.
#[derive(Debug, Clone)]
pub struct Options {
    /// The server's own address: `http://127.0.0.1:8080`, without a slash at the end.
    pub base_url: String,
    /// What links begin with instead, where people reach it by another address.
    pub public_url: Option<String>,
    /// What may change while the server runs.
    pub live: watch::Receiver<Live>,
    /// How the API hears that the server is about to end.
    pub lifecycle: Lifecycle,
    /// From the request's first byte to the answer, at most; subscriptions are not meant.
    pub timeout: std::time::Duration,
    /// What a document may ask for at the most.
    pub limits: Limits,
    /// Settings of WebSockets and event streams.
    pub socket: SocketOptions,
}

/// Settings that may change while the server runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Live {
    /// Bytes of a request's body, at most; more is answered with 413.
    pub body_max: usize,
    /// Items of a page, at most.
    pub page_max: u64,
    /// Pages of these origins may use the API from browsers; pages of this server always may.
    pub origins: Vec<Origin>,
}

impl Default for Live {
    fn default() -> Self {
        Self { body_max: 1024 * 1024, page_max: 100, origins: Vec::new() }
    }
}

/// The end of the server, as the API is told of it. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Lifecycle {
    /// New requests are refused with 503; what runs goes on.
    pub draining: CancellationToken,
    /// WebSockets are closed and event streams end.
    pub closing: CancellationToken,
    /// The open WebSockets: they outlive their requests.
    pub sockets: TaskTracker,
}

/// Settings of WebSockets and event streams.
#[derive(Debug, Clone)]
pub struct SocketOptions {
    /// How long a client may take from the upgrade to `connection_init`.
    pub init_timeout: std::time::Duration,
    /// From one ping of the server to the next; a client that has not answered by then is gone.
    /// The token is looked at again at each.
    pub ping_every: std::time::Duration,
    /// Operations of one connection at a time.
    pub operations_max: usize,
    /// Bytes of a message from a client.
    pub message_max: usize,
    /// Results that may wait for a slow client, per operation.
    pub queue_max: usize,
    /// How long an operation waits for room in its queue, and the connection for the network.
    pub stall_max: std::time::Duration,
    /// Connections at a time, over all clients; one more is answered with 503.
    pub connections_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            base_url: "http://127.0.0.1:8080".into(),
            public_url: None,
            live: watch::channel(Live::default()).1,
            lifecycle: Lifecycle::default(),
            timeout: std::time::Duration::from_secs(30),
            limits: Limits::default(),
            socket: SocketOptions::default(),
        }
    }
}

impl Default for SocketOptions {
    fn default() -> Self {
        Self {
            init_timeout: std::time::Duration::from_secs(10),
            ping_every: std::time::Duration::from_secs(20),
            operations_max: 100,
            message_max: 64 * 1024,
            queue_max: 64,
            stall_max: std::time::Duration::from_secs(30),
            connections_max: 1_000,
        }
    }
}

/// What the API works with. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    /// What is read.
    pub store: Store,
    /// What is changed, in the name of who asks.
    pub commands: Commands,
    /// The kinds of stages and triggers that pipelines may name.
    pub registry: Registry,
    /// What runs in the clouds.
    pub inventory: Inventory,
    /// The channels that messages go out by.
    pub notifiers: Notifiers,
    /// What time it is.
    pub clock: Clock,
    /// Settings of the API.
    pub config: Options,
    /// What `/readyz` and `/metrics` answer from.
    pub probes: probes::Probes,
    /// Makes pages of events cheap; the default is an empty one.
    pub folds: Folds,
}

/// What executes documents; the caller puts the [`crate::model::Actor`] into each request's data.
#[must_use]
pub fn schema(context: Context) -> Schema {
    let authenticator = Authenticator::new(context.store.clone(), context.clock.clone());
    graphql::schema(context, authenticator)
}

/// All routes: `/healthz`, `/readyz`, `/metrics`, `/graphql`, `/graphql/ws`, and GraphiQL at `/`.
pub fn router(context: Context) -> Router {
    http::routes(std::sync::Arc::new(http::App::new(context)))
}
