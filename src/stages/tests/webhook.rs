//! Webhooks against a real HTTP server.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::IntoResponse;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{World, shape, stage, waiting};
use crate::model::{Execution, Status};

/// What the server was asked.
#[derive(Debug, Clone)]
pub struct Call {
    pub method: Method,
    pub path: String,
    pub headers: HeaderMap,
    pub body: String,
}

#[derive(Clone, Default)]
pub struct Receiver {
    calls: Arc<Mutex<Vec<Call>>>,
    /// Statuses of the next answers; 200 after them.
    statuses: Arc<Mutex<Vec<u16>>>,
}

impl Receiver {
    /// Serves, answering the first calls with these statuses.
    pub async fn start(statuses: &[u16]) -> (Self, SocketAddr) {
        let receiver = Self { statuses: Arc::new(Mutex::new(statuses.to_vec())), ..Self::default() };
        let router = Router::new().fallback(answer).with_state(receiver.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(async move { axum::serve(listener, router).await });
        (receiver, address)
    }

    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().expect("not poisoned").clone()
    }
}

async fn answer(
    State(receiver): State<Receiver>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> impl IntoResponse {
    let body = String::from_utf8_lossy(&body).into_owned();
    let authorization =
        headers.get("authorization").map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let call = Call { method, path: uri.path().to_owned(), headers, body: body.clone() };
    receiver.calls.lock().expect("not poisoned").push(call);
    let mut statuses = receiver.statuses.lock().expect("not poisoned");
    let status = if statuses.is_empty() { 200 } else { statuses.remove(0) };
    let status = StatusCode::from_u16(status).expect("a status");
    // An echo: what must be masked comes back.
    (
        status,
        [("retry-after", "0"), ("x-request-id", "r1"), ("x-other", "o")],
        axum::Json(json!({"ok": true, "echo": [authorization, body]})),
    )
}

/// Reads a request and closes the connection without a word, the first `times`; then answers.
pub async fn rude(times: usize) -> (Arc<Mutex<usize>>, SocketAddr) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let count = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut buffer = [0; 4096];
            let _ = stream.read(&mut buffer).await;
            let number = {
                let mut count = counted.lock().expect("not poisoned");
                *count += 1;
                *count
            };
            if number > times {
                let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n").await;
            }
        }
    });
    (count, address)
}

fn failure(execution: &Execution) -> (String, String) {
    let failure = execution.failure.clone().expect("it failed");
    (failure.code, format!("{} {:?}", failure.message, failure.cause))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_server_is_called_again_and_secrets_stay_inside() {
    let (receiver, address) = Receiver::start(&[503]).await;
    let world = World::new().await;
    let config = json!({
        "url": format!("http://{address}/hook?x=1"),
        "headers": {"authorization": "secret://env/GENNAKER_SECRET_HOOK", "x-plain": "p"},
        "body": {"text": "hi", "token": "secret://env/GENNAKER_SECRET_HOOK"}
    });
    let execution = world.run(vec![stage("webhook", config)]).await;
    assert_eq!(execution.status, Status::Succeeded, "{:?}", shape(&execution));
    let calls = receiver.calls();
    assert_eq!(calls.len(), 2);
    for call in &calls {
        assert_eq!((&call.method, call.path.as_str()), (&Method::POST, "/hook"));
        assert_eq!(call.headers["authorization"], "hook-s3cr3t");
        assert_eq!(call.headers["x-plain"], "p");
        assert_eq!(call.headers["content-type"], "application/json");
        assert_eq!(call.body, r#"{"text":"hi","token":"hook-s3cr3t"}"#);
        assert_eq!(call.headers["idempotency-key"], calls[0].headers["idempotency-key"]);
    }
    let key = calls[0].headers["idempotency-key"].to_str().expect("text").to_owned();
    assert_eq!(key, format!("{}/{}/1/call", execution.id, execution.stages[0].id));
    assert_eq!(
        execution.stages[0].outputs,
        json!({
            "statusCode": 200,
            "headers": {"content-type": "application/json", "date": execution.stages[0].outputs["headers"]["date"],
                        "retry-after": "0", "x-request-id": "r1"},
            "body": {"ok": true, "echo": ["***", r#"{"text":"hi","token":"***"}"#]}
        })
    );
    let everything = format!("{execution:?}{:?}", world.store.intents(execution.id).await.expect("read"));
    assert!(!everything.contains("hook-s3cr3t"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_judged_and_failures_say_what_came() {
    let world = World::new().await;
    for (statuses, config, code, calls) in [
        (vec![404], json!({}), "UNEXPECTED_STATUS", 1),
        (vec![502], json!({}), "UNEXPECTED_STATUS", 1),
        (vec![502, 504], json!({"method": "GET"}), "", 3),
        (vec![503, 503, 503], json!({"retries": 2}), "UNEXPECTED_STATUS", 3),
        (vec![200], json!({"expectedStatuses": [201]}), "UNEXPECTED_STATUS", 1),
        (vec![418], json!({"expectedStatuses": [418]}), "", 1),
        (vec![], json!({"headers": {"x": "secret://env/GENNAKER_SECRET_NONE"}}), "SECRET_NOT_RESOLVED", 0),
    ] {
        let (receiver, address) = Receiver::start(&statuses).await;
        let mut whole = json!({"url": format!("http://{address}/")});
        whole.as_object_mut().expect("an object").extend(config.as_object().expect("an object").clone());
        let execution = world.run(vec![stage("webhook", whole)]).await;
        if code.is_empty() {
            assert_eq!(execution.status, Status::Succeeded, "{config}: {:?}", failure(&execution));
        } else {
            assert_eq!(failure(&execution).0, code, "{config}");
        }
        assert_eq!(receiver.calls().len(), calls, "{config}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nothing_listens_the_call_is_tried_again_and_a_private_address_is_refused() {
    let world = World::new().await;
    let config = json!({"url": "http://127.0.0.1:1/", "retries": 1});
    let execution = world.run(vec![stage("webhook", config)]).await;
    assert_eq!(failure(&execution).0, "CONNECTION_FAILED");
    assert_eq!(world.store.intents(execution.id).await.expect("read").len(), 2);
    let config = json!({"url": "http://10.1.2.3/", "retries": 5});
    let execution = world.run(vec![stage("webhook", config)]).await;
    let (code, message) = failure(&execution);
    assert_eq!(code, "CALL_REFUSED");
    assert!(message.contains("a private address"), "{message}");
    assert_eq!(world.store.intents(execution.id).await.expect("read").len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_is_dealt_with_as_the_config_says() {
    let world = World::new().await;
    let run = async |times: usize, config: Value| {
        let (count, address) = rude(times).await;
        let mut whole = json!({"url": format!("http://{address}/")});
        whole.as_object_mut().expect("an object").extend(config.as_object().expect("an object").clone());
        let execution = world.run(vec![stage("webhook", whole)]).await;
        let calls = *count.lock().expect("not poisoned");
        (execution, calls)
    };
    let (execution, calls) = run(1, json!({})).await;
    assert_eq!((failure(&execution).0.as_str(), calls), ("OUTCOME_UNKNOWN", 1));
    let (execution, calls) = run(1, json!({"method": "PUT"})).await;
    assert_eq!((execution.status, calls), (Status::Succeeded, 2));
    let (execution, calls) = run(1, json!({"onUnknownOutcome": "retry"})).await;
    assert_eq!((execution.status, calls), (Status::Succeeded, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_may_say_what_became_of_a_lost_answer() {
    let world = World::new().await;
    for (input, proceed, status, calls) in [
        (Some("call again"), true, Status::Succeeded, 2),
        (Some("took effect"), true, Status::Succeeded, 1),
        (None, false, Status::Failed, 1),
    ] {
        let (count, address) = rude(1).await;
        let config = json!({"url": format!("http://{address}/"), "onUnknownOutcome": "ask"});
        let server = world.serve();
        let id = world.start(&server, vec![stage("webhook", config)]).await;
        let execution = world.until(id, |execution| waiting(execution).is_some()).await;
        let question = waiting(&execution).expect("it waits");
        assert_eq!(question.config["inputs"], json!(["took effect", "call again"]));
        world.judge(&server, question, proceed, input).await;
        let execution = world.finished(id).await;
        server.stop().await;
        assert_eq!(execution.status, status, "{input:?} {:?}", shape(&execution));
        assert_eq!(*count.lock().expect("not poisoned"), calls, "{input:?}");
    }
}
