//! Server-sent events ("distinct connections" of GraphQL over SSE): `next` for each result with
//! the cursor as its `id:`, `complete` at the end. A client that comes back with `Last-Event-ID`
//! goes on behind that event.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use async_graphql::parser::types::OperationType;
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, BoxStream, Stream, StreamExt as _};
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;

use super::App;
use super::reply::{Fault, presentable};
use super::request::Ready;
use crate::api::error::Code;
use crate::api::graphql::LastCursor;

const COMMENT_EVERY: Duration = Duration::from_secs(15);

/// Executes the request as a stream of events. A token that is revoked or expires ends it.
pub fn serve(app: &Arc<App>, ready: Ready, token: String) -> Result<Response, Fault> {
    let Ok(permit) = Arc::clone(&app.connections).try_acquire_owned() else {
        let message = "too many connections are open; try again later";
        return Err(Fault::new(StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, message));
    };
    let running = Running {
        app: Arc::clone(app),
        token,
        results: app.schema.execute_stream(ready.request),
        last: ready.last,
        is_subscription: ready.ty == OperationType::Subscription,
        _permit: permit,
    };
    Ok(Sse::new(events(running)).keep_alive(KeepAlive::new().interval(COMMENT_EVERY)).into_response())
}

struct Running {
    app: Arc<App>,
    token: String,
    results: BoxStream<'static, async_graphql::Response>,
    last: LastCursor,
    is_subscription: bool,
    _permit: OwnedSemaphorePermit,
}

fn events(running: Running) -> impl Stream<Item = Result<Event, Infallible>> + Send {
    stream::unfold(Some(Box::new(running)), async |running| {
        let mut running = running?;
        Some(match running.next().await {
            Some(event) => (Ok(event), Some(running)),
            // `EventSource` takes no notice of an event without data, not even an empty one.
            None => (Ok(Event::default().event("complete").data("")), None),
        })
    })
}

impl Running {
    async fn next(&mut self) -> Option<Event> {
        let (clock, every) = (self.app.clock.clone(), self.app.options.socket.ping_every);
        loop {
            tokio::select! {
                result = self.results.next() => {
                    let (value, _) = presentable(result?);
                    return Some(self.event(&value));
                }
                () = clock.sleep(every) => {
                    if let Err(error) = self.app.authenticator.authenticate(&self.token).await {
                        self.results = stream::empty().boxed();
                        let fault = Fault::from(error);
                        return Some(self.event(&json!({"errors": fault.errors()})));
                    }
                }
            }
        }
    }

    fn event(&self, value: &Value) -> Event {
        let event = Event::default().event("next").data(value.to_string());
        match self.last.get().filter(|_| self.is_subscription) {
            Some(cursor) => event.id(cursor),
            None => event,
        }
    }
}
