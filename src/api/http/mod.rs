//! HTTP: routes, headers, and who is let in. Everything under `/graphql` needs a token, from the
//! first start on, and so does `/metrics` unless a setting says otherwise; the explorer's own files,
//! `/healthz` and `/readyz` do not.

mod assets;
mod graphql;
mod media;
mod observe;
mod origin;
mod reply;
mod request;
mod sse;
mod websocket;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{any, get};
use tokio::sync::Semaphore;

use super::probes::Probes;
use super::{Context, Options, Schema};
use crate::auth::{Authenticator, Unauthenticated};
use crate::clock::Clock;
use crate::model::Actor;
use media::Media;
use reply::Fault;

pub use origin::Origin;

/// What the handlers share.
pub(super) struct App {
    schema: Schema,
    authenticator: Authenticator,
    clock: Clock,
    options: Options,
    /// WebSockets and event streams that may be open at a time.
    connections: Arc<Semaphore>,
    probes: Probes,
}

/// All routes.
pub(super) fn routes(app: Arc<App>) -> Router {
    let cors = middleware::from_fn_with_state(Arc::clone(&app), origin::cors);
    let draining = middleware::from_fn_with_state(Arc::clone(&app), draining);
    Router::new()
        .route("/graphql", any(graphql::serve).layer(cors))
        .route("/graphql/ws", any(websocket::upgrade))
        .merge(assets::routes())
        .fallback(reply::no_such_page)
        .layer(draining)
        // Below here: what answers until the very end.
        .route("/healthz", get("ok\n"))
        .route("/readyz", get(observe::ready))
        .route("/metrics", get(observe::metrics))
        .layer(middleware::from_fn(headers))
        .layer(middleware::from_fn(observe::observe))
        .with_state(app)
}

/// Begins nothing new when the server is about to end; what has begun goes on.
async fn draining(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    if !app.options.lifecycle.draining.is_cancelled() {
        return next.run(request).await;
    }
    let mut response = Fault::stopping().reply(Media::Json);
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    headers.insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
    response
}

/// What every answer says to browsers; the explorer's page has a policy of its own.
async fn headers(request: Request, next: Next) -> Response {
    const ALWAYS: [(HeaderName, HeaderValue); 5] = [
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
        (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
    ];
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.extend(ALWAYS);
    headers
        .entry(header::CONTENT_SECURITY_POLICY)
        .or_insert(HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

impl App {
    pub(super) fn new(context: Context) -> Self {
        let authenticator = Authenticator::new(context.store.clone(), context.clock.clone());
        let (clock, options, probes) = (context.clock.clone(), context.config.clone(), context.probes.clone());
        let connections = Arc::new(Semaphore::new(options.socket.connections_max));
        let schema = super::graphql::schema(context, authenticator.clone());
        Self { schema, authenticator, clock, options, connections, probes }
    }

    /// Who sends the request, by its `Authorization` header.
    async fn actor(&self, headers: &HeaderMap) -> Result<Actor, Fault> {
        let token = bearer(headers).ok_or(Unauthenticated::Missing)?;
        let actor = self.authenticator.authenticate(token).await?;
        tracing::Span::current().record("principal", &actor.name);
        Ok(actor)
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(bearer_in)
}

/// The token in `Bearer gnk_…`.
fn bearer_in(text: &str) -> Option<&str> {
    let (scheme, token) = text.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}
