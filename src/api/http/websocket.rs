//! `/graphql/ws`: the protocol `graphql-transport-ws`. One task per connection owns the socket
//! and its state; each operation has a task that executes it and a bounded queue to the socket. A
//! client that does not keep up loses its operations one by one, each with the cursor behind
//! which it can go on; one that does not answer pings loses the connection.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_graphql::Value as Data;
use async_graphql::parser::types::OperationType;
use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::http::StatusCode;
use axum::http::header::HeaderMap;
use axum::response::Response;
use chrono::{DateTime, Utc};
use futures_util::stream::{BoxStream, StreamExt as _};
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinHandle;
use tokio_stream::StreamMap;
use tokio_stream::wrappers::ReceiverStream;
use tracing::Instrument as _;

use super::App;
use super::media::Media;
use super::origin::Judged;
use super::reply::{Fault, presentable};
use super::request::{Parameters, Ready};
use crate::api::error::Code;
use crate::api::request_id;
use crate::auth::Unauthenticated;
use crate::measure::api::{self as measure, Limit, Open, Outcome, Transport};
use crate::model::Actor;

const PROTOCOL: &str = "graphql-transport-ws";
/// What is said to whoever is connected when the server ends.
const STOPPING: &str = "The server is stopping; connect again";
/// The most that fits into a close frame.
const REASON_BYTES_MAX: usize = 123;
/// How long the other side may take to close after we did.
const GOODBYE_MAX: Duration = Duration::from_secs(1);

/// Why a connection is closed: the protocol's codes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Close {
    code: u16,
    reason: String,
}

impl Close {
    fn new(code: u16, reason: impl Into<String>) -> Self {
        let mut reason = reason.into();
        let mut end = reason.len().min(REASON_BYTES_MAX);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        reason.truncate(end);
        Self { code, reason }
    }

    fn invalid(what: &str) -> Self {
        Self::new(4400, format!("Invalid message: {what}"))
    }
}

/// The upgrade of a request to a connection.
pub async fn upgrade(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let refuse = |status, code, message: &str| Fault::new(status, code, message).reply(Media::Json);
    let upgrade = match upgrade {
        Ok(upgrade) => upgrade,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, Code::BadRequest, &error.body_text()),
    };
    if let Judged::Refused(message) = app.judge_origin(&headers) {
        return refuse(StatusCode::FORBIDDEN, Code::Forbidden, &message);
    }
    if !upgrade.requested_protocols().any(|protocol| protocol.as_bytes() == PROTOCOL.as_bytes()) {
        let message = "ask for the protocol `graphql-transport-ws` (Sec-WebSocket-Protocol)";
        return refuse(StatusCode::BAD_REQUEST, Code::BadRequest, message);
    }
    let Ok(permit) = Arc::clone(&app.connections).try_acquire_owned() else {
        measure::rejected(Limit::Connections);
        let message = "too many connections are open; try again later";
        return refuse(StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, message);
    };
    let max = app.options.socket.message_max;
    let token = super::bearer(&headers).map(str::to_owned);
    let sockets = app.options.lifecycle.sockets.clone();
    let (id, span) = (request_id::current(), tracing::Span::current());
    upgrade.protocols([PROTOCOL]).max_message_size(max).max_frame_size(max).on_upgrade(move |socket| {
        let run = Connection::new(app, token, permit).run(socket);
        sockets.track_future(request_id::within(id, run).instrument(span))
    })
}

/// What an operation's task puts into its queue; the queue's end is told as [`Out::End`].
enum Out {
    Frame(String),
    End,
}

/// One running operation.
struct Operation {
    task: JoinHandle<()>,
    /// The frame that says how it ended; `complete` when there is none.
    end: Arc<OnceLock<String>>,
}

impl Drop for Operation {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Connection {
    app: Arc<App>,
    /// From the upgrade's own headers; `connection_init` may bring another.
    token: Option<String>,
    actor: Option<Actor>,
    init_received: bool,
    awaits_pong: bool,
    operations: HashMap<String, Operation>,
    queues: StreamMap<String, BoxStream<'static, Out>>,
    _open: Open,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    fn new(app: Arc<App>, token: Option<String>, permit: OwnedSemaphorePermit) -> Self {
        Self {
            app,
            token,
            actor: None,
            init_received: false,
            awaits_pong: false,
            operations: HashMap::new(),
            queues: StreamMap::new(),
            _open: Open::websocket(),
            _permit: permit,
        }
    }

    async fn run(mut self, mut socket: WebSocket) {
        let close = self.serve(&mut socket).await;
        drop(self);
        if let Err(Some(Close { code, reason })) = close {
            let frame = Message::Close(Some(CloseFrame { code, reason: reason.into() }));
            // Until the other side has closed too, so that it reads ours.
            let goodbye = async { while socket.send(frame.clone()).await.is_ok() && socket.recv().await.is_some() {} };
            let _ = tokio::time::timeout(GOODBYE_MAX, goodbye).await;
        }
    }

    /// Until an end: with a reason to tell the other side, or none when it is gone.
    async fn serve(&mut self, socket: &mut WebSocket) -> Result<(), Option<Close>> {
        let clock = self.app.clock.clone();
        let closing = self.app.options.lifecycle.closing.clone();
        let mut timer = clock.now() + self.app.options.socket.init_timeout;
        loop {
            let reply = tokio::select! {
                () = closing.cancelled() => return Err(Some(Close::new(1001, STOPPING))),
                message = socket.recv() => match message {
                    None => return Err(None),
                    Some(Err(error)) => return Err(unreadable(&error)),
                    Some(Ok(message)) => {
                        let acknowledged = self.actor.is_some();
                        let reply = self.receive(message).await?;
                        if !acknowledged && self.actor.is_some() {
                            timer = self.next_ping(clock.now());
                        }
                        reply
                    }
                },
                Some((id, out)) = self.queues.next(), if !self.queues.is_empty() => Some(match out {
                    Out::Frame(frame) => frame,
                    Out::End => self.ended(&id),
                }),
                () = clock.sleep_until(timer) => {
                    timer = self.next_ping(clock.now());
                    Some(self.tick().await?)
                }
            };
            let Some(reply) = reply else { continue };
            // Longer than an operation waits, so that a client that comes back late still learns why
            // its operations have ended.
            let patience = self.app.options.socket.stall_max * 4;
            match tokio::time::timeout(patience, socket.send(Message::Text(reply.into()))).await {
                Ok(Ok(())) => {}
                // Gone, or as good as gone.
                Ok(Err(_)) | Err(_) => return Err(None),
            }
        }
    }

    fn next_ping(&self, now: DateTime<Utc>) -> DateTime<Utc> {
        now + self.app.options.socket.ping_every
    }

    /// Looks whether the client is still there and still welcome.
    async fn tick(&mut self) -> Result<String, Close> {
        if self.actor.is_none() {
            return Err(Close::new(4408, "Connection initialisation timeout"));
        }
        if self.awaits_pong {
            return Err(Close::new(1008, "No pong"));
        }
        self.authenticate().await?;
        self.awaits_pong = true;
        Ok(json!({"type": "ping"}).to_string())
    }

    async fn authenticate(&mut self) -> Result<Actor, Close> {
        match self.app.authenticator.authenticate(self.token.as_deref().unwrap_or_default()).await {
            Ok(actor) => {
                tracing::Span::current().record("principal", &actor.name);
                Ok(actor)
            }
            Err(Unauthenticated::Missing | Unauthenticated::Invalid) => Err(Close::new(4403, "Forbidden")),
            Err(error @ Unauthenticated::Store(_)) => {
                // Logged there; the client learns only that it may try again.
                let fault = Fault::from(error);
                Err(Close::new(1013, fault.message))
            }
        }
    }

    /// What to answer to a message.
    async fn receive(&mut self, message: Message) -> Result<Option<String>, Option<Close>> {
        let text = match message {
            Message::Text(text) => text,
            Message::Binary(_) => return Err(Some(Close::invalid("binary"))),
            // The library answers these itself.
            Message::Ping(_) | Message::Pong(_) => return Ok(None),
            Message::Close(_) => return Err(None),
        };
        let Ok(Value::Object(mut message)) = serde_json::from_str(&text) else {
            return Err(Some(Close::invalid("not a JSON object")));
        };
        let payload = message.remove("payload");
        let id = match message.remove("id") {
            Some(Value::String(id)) if !id.is_empty() && id.len() <= 128 => Some(id),
            None => None,
            Some(_) => return Err(Some(Close::invalid("`id` is a text of 1 to 128 bytes"))),
        };
        let ty = message.get("type").and_then(Value::as_str).unwrap_or_default();
        match (ty, id) {
            ("connection_init", None) => Ok(Some(self.init(payload).await?)),
            ("ping", None) => {
                let mut pong = json!({"type": "pong"});
                if let Some(payload) = payload {
                    pong["payload"] = payload;
                }
                Ok(Some(pong.to_string()))
            }
            ("pong", None) => {
                self.awaits_pong = false;
                Ok(None)
            }
            ("subscribe", Some(id)) => Ok(self.subscribe(id, payload)?),
            ("complete", Some(id)) => {
                self.queues.remove(&id);
                self.operations.remove(&id);
                Ok(None)
            }
            ("subscribe" | "complete", None) => Err(Some(Close::invalid("`id` is missing"))),
            _ => Err(Some(Close::invalid("unknown `type`, or an `id` where none belongs"))),
        }
    }

    async fn init(&mut self, payload: Option<Value>) -> Result<String, Close> {
        if std::mem::replace(&mut self.init_received, true) {
            return Err(Close::new(4429, "Too many initialisation requests"));
        }
        match payload {
            None | Some(Value::Null) => {}
            Some(Value::Object(payload)) => {
                let given = payload.iter().find(|(key, _)| key.eq_ignore_ascii_case("authorization"));
                if let Some((_, value)) = given {
                    self.token = value.as_str().and_then(super::bearer_in).map(str::to_owned);
                }
            }
            Some(_) => return Err(Close::invalid("`payload` is not an object")),
        }
        self.actor = Some(self.authenticate().await?);
        Ok(json!({"type": "connection_ack"}).to_string())
    }

    /// Begins an operation; what is wrong with it alone is answered for it alone.
    fn subscribe(&mut self, id: String, payload: Option<Value>) -> Result<Option<String>, Close> {
        let Some(actor) = self.actor.clone() else { return Err(Close::new(4401, "Unauthorized")) };
        if self.operations.contains_key(&id) {
            return Err(Close::new(4409, format!("Subscriber for {id} already exists")));
        }
        if self.app.options.lifecycle.draining.is_cancelled() {
            return Ok(Some(error_frame(&id, &Fault::stopping().errors())));
        }
        let parameters = Parameters::from_json(payload.unwrap_or_default());
        let parameters = parameters.map_err(|fault| Close::invalid(&fault.message))?;
        let max = self.app.options.socket.operations_max;
        if self.operations.len() >= max {
            measure::rejected(Limit::Operations);
            let message = format!("{max} operations run on this connection already; complete one, or open another");
            let fault = Fault::new(StatusCode::TOO_MANY_REQUESTS, Code::CostLimitExceeded, message);
            return Ok(Some(error_frame(&id, &fault.errors())));
        }
        let ready = match parameters.ready(&self.app, actor, None) {
            Ok(ready) => ready,
            Err(fault) => return Ok(Some(error_frame(&id, &fault.errors()))),
        };
        let (sender, queue) = mpsc::channel(self.app.options.socket.queue_max);
        let end = Arc::new(OnceLock::new());
        let execution = Execution { app: Arc::clone(&self.app), id: id.clone(), queue: sender, end: Arc::clone(&end) };
        let span = tracing::error_span!("operation", operation.id = id);
        let task = tokio::spawn(request_id::within(request_id::current(), execution.run(ready)).instrument(span));
        let ended = futures_util::stream::once(std::future::ready(Out::End));
        self.queues.insert(id.clone(), ReceiverStream::new(queue).map(Out::Frame).chain(ended).boxed());
        self.operations.insert(id, Operation { task, end });
        Ok(None)
    }

    /// The last frame of an operation whose queue is empty and closed.
    fn ended(&mut self, id: &str) -> String {
        let end = self.operations.remove(id).and_then(|operation| operation.end.get().cloned());
        end.unwrap_or_else(|| json!({"id": id, "type": "complete"}).to_string())
    }
}

/// A message that cannot be read: too long, or not of the protocol.
fn unreadable(error: &axum::Error) -> Option<Close> {
    let text = error.to_string().to_lowercase();
    if text.contains("too long") || text.contains("too large") || text.contains("too big") || text.contains("exceed") {
        return Some(Close::new(1009, "Message too big"));
    }
    None
}

fn error_frame(id: &str, errors: &Value) -> String {
    json!({"id": id, "type": "error", "payload": errors}).to_string()
}

/// Counts an operation when it is over, also when its client ends it.
struct Counted {
    outcome: Outcome,
    /// None: how long it took says nothing of the server.
    since: Option<tokio::time::Instant>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        measure::request(Transport::WebSocket, self.outcome, self.since.map(|since| since.elapsed()));
    }
}

/// The execution of one operation, in a task of its own.
struct Execution {
    app: Arc<App>,
    id: String,
    queue: mpsc::Sender<String>,
    end: Arc<OnceLock<String>>,
}

impl Execution {
    async fn run(self, ready: Ready) {
        let is_subscription = ready.ty == OperationType::Subscription;
        let _subscription = is_subscription.then(Open::subscription);
        let since = (!is_subscription).then(tokio::time::Instant::now);
        let mut counted = Counted { outcome: Outcome::Ok, since };
        if let Err(errors) = self.follow(ready).await {
            counted.outcome = Outcome::Errors;
            // Set before the queue closes, which is what makes the connection look.
            let _ = self.end.set(error_frame(&self.id, &errors));
        }
    }

    /// Puts each result into the queue; the errors that end the operation otherwise.
    async fn follow(&self, ready: Ready) -> Result<(), Value> {
        let Ready { request, ty, last } = ready;
        let mut results = self.app.schema.execute_stream(request);
        let limit = self.app.options.timeout;
        let mut told = None;
        loop {
            let result = if ty == OperationType::Subscription {
                results.next().await
            } else {
                tokio::time::timeout(limit, results.next()).await.map_err(|_| {
                    let message = format!("no answer within {} s; ask for less", limit.as_secs());
                    Fault::new(StatusCode::GATEWAY_TIMEOUT, Code::Timeout, message).errors()
                })?
            };
            let Some(response) = result else { return Ok(()) };
            // What fails within an event is told with it, and the next one comes.
            let is_above = response.errors.iter().all(|error| error.path.len() < 2);
            let is_end =
                ty == OperationType::Subscription && response.data == Data::Null && response.is_err() && is_above;
            let (mut value, failed) = presentable(response);
            if failed || is_end {
                return Err(value["errors"].take());
            }
            let frame = json!({"id": self.id, "type": "next", "payload": value}).to_string();
            let stall_max = self.app.options.socket.stall_max;
            match self.queue.send_timeout(frame, stall_max).await {
                Ok(()) => {
                    told = last.get();
                    if ty == OperationType::Subscription {
                        measure::event_sent();
                    }
                }
                Err(mpsc::error::SendTimeoutError::Closed(_)) => return Ok(()),
                Err(mpsc::error::SendTimeoutError::Timeout(_)) => return Err(too_slow(told.as_deref())),
            }
        }
    }
}

fn too_slow(cursor: Option<&str>) -> Value {
    measure::rejected(Limit::SlowReader);
    json!([{
        "message": "results were not read in time; subscribe again behind the cursor in `extensions`",
        "extensions": {"code": Code::SlowConsumer.as_str(), "cursor": cursor},
    }])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::tests::Server;

    #[tokio::test]
    async fn a_slow_reader_loses_the_operation_and_learns_where_to_go_on() {
        let server = Server::start_with(Server::narrow()).await;
        let id = server.start_waiting(30).await;
        server.finish(&id, 31).await;
        let query = "subscription($id: ID!, $after: String) {
            executionEvents(scope: {execution: {id: $id}}, after: $after) { cursor } }";
        let first = server.cursor_at(1).await;
        let payload = json!({"query": query, "variables": {"id": id, "after": first}});
        let actor = server.app.authenticator.authenticate(&server.token).await.expect("known");
        let ready =
            Parameters::from_json(payload).and_then(|read| read.ready(&server.app, actor, None)).expect("ready");

        let (sender, mut queue) = mpsc::channel(server.app.options.socket.queue_max);
        let end = Arc::new(OnceLock::new());
        let app = Arc::clone(&server.app);
        Execution { app, id: "1".into(), queue: sender, end: Arc::clone(&end) }.run(ready).await;

        let mut cursors = Vec::new();
        while let Some(frame) = queue.recv().await {
            let frame: Value = serde_json::from_str(&frame).expect("JSON");
            cursors.push(frame["payload"]["data"]["executionEvents"]["cursor"].clone());
        }
        assert_eq!(cursors, [server.cursor_at(2).await, server.cursor_at(3).await]);
        let end: Value = serde_json::from_str(end.get().expect("an end")).expect("JSON");
        assert_eq!((&end["type"], &end["id"]), (&json!("error"), &json!("1")));
        assert_eq!(end["payload"][0]["extensions"], json!({"code": "SLOW_CONSUMER", "cursor": cursors[1]}));
    }

    #[test]
    fn a_reason_fits_into_a_close_frame() {
        let close = Close::invalid(&"é".repeat(200));
        assert!(close.reason.len() <= REASON_BYTES_MAX && close.reason.ends_with('é'));
    }
}
