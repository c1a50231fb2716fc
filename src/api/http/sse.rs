//! Server-sent events ("distinct connections" of GraphQL over SSE): `next` for each result with
//! the cursor as its `id:`, `complete` at the end, a comment now and then so that nothing between
//! takes the connection for dead. A client that comes back with `Last-Event-ID` goes on behind
//! that event. A server that stops ends its streams without `complete`: there is more to come. Nothing
//! is queued: a slow client reads more slowly from the table.

use std::convert::Infallible;
use std::sync::Arc;

use async_graphql::parser::types::OperationType;
use axum::body::Body;
use axum::http::StatusCode;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use futures_util::stream::{self, BoxStream, Stream, StreamExt as _};
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;
use tracing::Instrument as _;

use super::App;
use super::media::Media;
use super::reply::{Fault, presentable};
use super::request::Ready;
use crate::api::error::Code;
use crate::api::graphql::LastCursor;
use crate::api::request_id;
use crate::measure::api::{self as measure, Limit, Open};

/// Executes the request as a stream of events. A token that is revoked or expires ends it.
pub fn serve(app: &Arc<App>, ready: Ready, token: String) -> Result<Response, Fault> {
    let Ok(permit) = Arc::clone(&app.connections).try_acquire_owned() else {
        measure::rejected(Limit::Connections);
        let message = "too many connections are open; try again later";
        return Err(Fault::new(StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, message));
    };
    let running = Running {
        app: Arc::clone(app),
        token,
        results: app.schema.execute_stream(ready.request),
        last: ready.last,
        is_subscription: ready.ty == OperationType::Subscription,
        look_at: app.clock.now() + app.options.socket.ping_every,
        id: request_id::current(),
        span: tracing::Span::current(),
        _open: Open::sse(),
        _subscription: (ready.ty == OperationType::Subscription).then(Open::subscription),
        _permit: permit,
    };
    let headers = [(header::CONTENT_TYPE, Media::Events.content_type())];
    Ok((headers, Body::from_stream(events(running))).into_response())
}

struct Running {
    app: Arc<App>,
    token: String,
    results: BoxStream<'static, async_graphql::Response>,
    last: LastCursor,
    is_subscription: bool,
    /// When the token is looked at again.
    look_at: DateTime<Utc>,
    /// What follows is still a part of the request.
    id: String,
    span: tracing::Span,
    _open: Open,
    _subscription: Option<Open>,
    _permit: OwnedSemaphorePermit,
}

fn events(running: Running) -> impl Stream<Item = Result<String, Infallible>> + Send {
    stream::unfold(Some(Box::new(running)), async |running| {
        let mut running: Box<Running> = running?;
        let (id, span) = (running.id.clone(), running.span.clone());
        let closing = running.app.options.lifecycle.closing.clone();
        let event = tokio::select! {
            biased;
            () = closing.cancelled() => return Some((Ok(": the server is stopping\n\n".to_owned()), None)),
            event = request_id::within(id, running.next()).instrument(span) => event,
        };
        Some(match event {
            Some(event) => (Ok(event), Some(running)),
            // The empty data is there because browsers take no notice of an event without any.
            None => (Ok("event: complete\ndata: \n\n".to_owned()), None),
        })
    })
}

impl Running {
    async fn next(&mut self) -> Option<String> {
        let clock = self.app.clock.clone();
        tokio::select! {
            // Time first, so that a busy stream is looked at too.
            biased;
            () = clock.sleep_until(self.look_at) => {
                self.look_at = clock.now() + self.app.options.socket.ping_every;
                match self.app.authenticator.authenticate(&self.token).await {
                    Ok(_) => Some(":\n\n".to_owned()),
                    Err(error) => {
                        self.results = stream::empty().boxed();
                        Some(self.event(&json!({"errors": Fault::from(error).errors()})))
                    }
                }
            }
            result = self.results.next() => {
                let (value, _) = presentable(result?);
                if self.is_subscription {
                    measure::event_sent();
                }
                Some(self.event(&value))
            }
        }
    }

    /// JSON has no line ends of its own, so one `data:` is enough.
    fn event(&self, value: &Value) -> String {
        match self.last.get().filter(|_| self.is_subscription) {
            Some(cursor) => format!("event: next\nid: {cursor}\ndata: {value}\n\n"),
            None => format!("event: next\ndata: {value}\n\n"),
        }
    }
}
