//! Every request has an id, which is in its answer and in all that is logged on its way, and is
//! counted. And the pages of those who watch: `/readyz` and `/metrics`.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use tokio::time::Instant;
use tracing::Instrument as _;

use super::App;
use super::media::Media;
use crate::api::error::shown;
use crate::api::request_id;
use crate::measure::api::{self as measure, Outcome, Transport};

/// Taken over from requests and given back in answers.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// A request that took longer is told of.
const SLOW: Duration = Duration::from_secs(1);

/// Around all others: the id, the span, the counters, the line in the log.
pub(super) async fn observe(request: Request, next: Next) -> Response {
    let given = request.headers().get(&REQUEST_ID).and_then(|value| value.to_str().ok());
    let id = request_id::choose(given);
    let path = shown(request.uri().path());
    let span = tracing::error_span!(
        "request",
        request.id = %id,
        method = shown(request.method().as_str()),
        path,
        principal = tracing::field::Empty,
    );
    let since = Instant::now();
    let mut response = request_id::within(id.clone(), next.run(request)).instrument(span.clone()).await;
    let took = since.elapsed();
    let (transport, outcome) = (transport(&path, &response), outcome(&response));
    // An upgrade that came about is no request: its operations are.
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        measure::request(transport, outcome, Some(took));
    }
    let (status, ms) = (response.status().as_u16(), u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
    span.in_scope(|| {
        if took > SLOW {
            tracing::info!(status, duration_ms = ms, "a request was answered slowly");
        } else {
            tracing::debug!(status, duration_ms = ms, "a request was answered");
        }
    });
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

fn transport(path: &str, response: &Response) -> Transport {
    match path {
        "/healthz" | "/readyz" | "/metrics" => Transport::Probe,
        "/graphql/ws" => Transport::WebSocket,
        "/graphql" => {
            let kind = response.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
            if kind == Some(Media::Events.content_type().as_bytes()) { Transport::Sse } else { Transport::Http }
        }
        _ => Transport::Page,
    }
}

/// As the answer says itself, or by its status.
fn outcome(response: &Response) -> Outcome {
    let status = response.status();
    match response.extensions().get::<Outcome>() {
        Some(outcome) => *outcome,
        None if status.is_server_error() => Outcome::Failed,
        None if status.is_client_error() => Outcome::Refused,
        None => Outcome::Ok,
    }
}

/// `/readyz`: 200 when the server can work, 503 when it cannot, and why.
pub(super) async fn ready(State(app): State<Arc<App>>) -> Response {
    let readiness = app.probes.ready().await;
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(&*readiness)).into_response()
}

/// `/metrics`: for whoever has a token, or for everybody where the settings say so.
pub(super) async fn metrics(State(app): State<Arc<App>>, headers: HeaderMap) -> Response {
    if !app.probes.metrics_public()
        && let Err(fault) = app.actor(&headers).await
    {
        return fault.reply(Media::Json);
    }
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, app.probes.metrics().await).into_response()
}
