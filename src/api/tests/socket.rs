//! `graphql-transport-ws`, over a real socket with another library as the client.

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use super::*;

/// The client's end.
pub(super) struct Socket(WebSocketStream<MaybeTlsStream<TcpStream>>);

/// What came.
#[derive(Debug, PartialEq)]
pub(super) enum Came {
    Message(Value),
    Closed(u16, String),
}

async fn connect(server: &Server, headers: &[(&'static str, &str)]) -> Result<Socket, Box<Error>> {
    let mut request = format!("ws://{}/graphql/ws", server.address).into_client_request().map_err(Box::new)?;
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().expect("a value"));
    }
    let (socket, _) = tokio_tungstenite::connect_async(request).await.map_err(Box::new)?;
    Ok(Socket(socket))
}

impl Socket {
    /// Open, not initialised.
    pub async fn open(server: &Server) -> Self {
        connect(server, &[("sec-websocket-protocol", "graphql-transport-ws")]).await.expect("a connection")
    }

    /// Open and acknowledged.
    pub async fn ready(server: &Server) -> Self {
        let mut socket = Self::open(server).await;
        socket.init(server).await;
        socket
    }

    async fn init(&mut self, server: &Server) {
        let authorization = format!("Bearer {}", server.token);
        self.send(&json!({"type": "connection_init", "payload": {"authorization": authorization}})).await;
        assert_eq!(self.next().await, Came::Message(json!({"type": "connection_ack"})));
    }

    pub async fn send(&mut self, message: &Value) {
        self.0.send(Message::text(message.to_string())).await.expect("sent");
    }

    pub async fn subscribe(&mut self, id: &str, query: &str, variables: Value) {
        let payload = json!({"query": query, "variables": variables});
        self.send(&json!({"id": id, "type": "subscribe", "payload": payload})).await;
    }

    /// The next message, or the end.
    pub async fn next(&mut self) -> Came {
        loop {
            let message = tokio::time::timeout(PATIENCE, self.0.next()).await.expect("something comes");
            match message {
                Some(Ok(Message::Text(text))) => {
                    return Came::Message(serde_json::from_str(text.as_str()).expect("JSON"));
                }
                Some(Ok(Message::Close(Some(frame)))) => {
                    return Came::Closed(frame.code.into(), frame.reason.to_string());
                }
                Some(Ok(_)) => {}
                other => panic!("an end without a reason: {other:?}"),
            }
        }
    }

    /// The next message, which is no end.
    pub async fn message(&mut self) -> Value {
        match self.next().await {
            Came::Message(message) => message,
            closed @ Came::Closed(..) => panic!("{closed:?}"),
        }
    }

    /// The code of the end, which comes next.
    async fn closed(&mut self) -> u16 {
        match self.next().await {
            Came::Closed(code, reason) => {
                assert!(!reason.is_empty() && reason.len() <= 123, "{reason}");
                code
            }
            Came::Message(message) => panic!("{message}"),
        }
    }
}

#[tokio::test]
async fn each_breach_of_the_protocol_has_its_code() {
    let server = Server::start().await;
    let subscribe = json!({"id": "1", "type": "subscribe", "payload": {"query": "{viewer{name}}"}});
    let endless = json!({"id": "1", "type": "subscribe", "payload": {"query": "subscription{notifications{cursor}}"}});
    let long = "é".repeat(500);
    for (before, breach, code) in [
        (false, vec![subscribe.clone()], 4401),
        (false, vec![json!({"type": "connection_init"})], 4403),
        (false, vec![json!({"type": "connection_init", "payload": {"authorization": "Bearer gnk_x"}})], 4403),
        (false, vec![json!({"type": "connection_init", "payload": "x"})], 4400),
        (true, vec![json!({"type": "connection_init"})], 4429),
        (true, vec![json!({"type": long})], 4400),
        (true, vec![json!([])], 4400),
        (true, vec![json!({"type": "subscribe", "payload": {"query": "{viewer{name}}"}})], 4400),
        (true, vec![json!({"id": "1", "type": "subscribe", "payload": {"query": 1}})], 4400),
        (true, vec![json!({"id": 1, "type": "complete"})], 4400),
        (true, vec![endless.clone(), endless.clone()], 4409),
        (true, vec![json!({"id": "1", "type": "subscribe", "payload": {"query": "x".repeat(70_000)}})], 1009),
    ] {
        let mut socket = if before { Socket::ready(&server).await } else { Socket::open(&server).await };
        for message in &breach {
            socket.send(message).await;
        }
        assert_eq!(socket.closed().await, code, "{}", &breach[0].to_string()[..40.min(breach[0].to_string().len())]);
    }
    let mut socket = Socket::ready(&server).await;
    socket.0.send(Message::binary(vec![1, 2, 3])).await.expect("sent");
    assert_eq!(socket.closed().await, 4400);
    let mut socket = Socket::ready(&server).await;
    socket.0.send(Message::text("nonsense")).await.expect("sent");
    assert_eq!(socket.closed().await, 4400);
}

#[tokio::test]
async fn a_client_that_says_nothing_is_let_go() {
    let server = Server::start().await;
    let mut silent = Socket::open(&server).await;
    let mut other = Socket::ready(&server).await;
    server.clock.advance(Duration::from_secs(11));
    assert_eq!(silent.closed().await, 4408);
    // After the pong it is asked again; without one it is let go.
    server.clock.advance(Duration::from_secs(10));
    assert_eq!(other.message().await, json!({"type": "ping"}));
    other.send(&json!({"type": "pong"})).await;
    // The answer to this says that the pong was read.
    other.send(&json!({"type": "ping", "payload": {"n": 1}})).await;
    assert_eq!(other.message().await, json!({"type": "pong", "payload": {"n": 1}}));
    server.clock.advance(Duration::from_secs(21));
    assert_eq!(other.message().await, json!({"type": "ping"}));
    server.clock.advance(Duration::from_secs(21));
    assert_eq!(other.closed().await, 1008);
}

#[tokio::test]
async fn a_connection_ends_with_its_token() {
    let server = Server::start().await;
    let mut socket = Socket::ready(&server).await;
    let tokens = server.data("{ tokens { nodes { id } } }", Value::Null).await;
    let revoke = "mutation($id: ID!) { revokeToken(input: {token: $id}) { userErrors { code } } }";
    server.data(revoke, json!({"id": tokens["tokens"]["nodes"][0]["id"]})).await;
    server.clock.advance(Duration::from_secs(21));
    assert_eq!(socket.closed().await, 4403);
}

#[tokio::test]
async fn queries_and_refusals_end_as_the_protocol_says() {
    let server = Server::start().await;
    let mut socket = Socket::ready(&server).await;
    socket.subscribe("1", "{ viewer { name } }", Value::Null).await;
    let result = json!({"data": {"viewer": {"name": "ada"}}});
    assert_eq!(socket.message().await, json!({"id": "1", "type": "next", "payload": result}));
    assert_eq!(socket.message().await, json!({"id": "1", "type": "complete"}));
    for query in [
        "{ nope }",
        "{",
        "subscription { notifications { nope } }",
        "subscription { executionEvents(scope: {execution: {id: \"x\"}}) { cursor } }",
    ] {
        socket.subscribe("1", query, Value::Null).await;
        let message = socket.message().await;
        assert_eq!((&message["type"], &message["id"]), (&json!("error"), &json!("1")), "{message}");
        assert!(message["payload"][0]["extensions"]["code"].is_string(), "{message}");
    }
    // The id is free again, and an unknown one is nothing to complain about.
    socket.send(&json!({"id": "unknown", "type": "complete"})).await;
    for _ in 0..3 {
        socket.subscribe("2", "subscription { notifications { cursor } }", Value::Null).await;
        socket.send(&json!({"id": "2", "type": "complete"})).await;
    }
    socket.subscribe("2", "{ viewer { name } }", Value::Null).await;
    assert_eq!(socket.message().await["id"], "2");
}

#[tokio::test]
async fn operations_of_a_connection_are_limited() {
    let server = Server::start_with(Server::narrow()).await;
    let mut socket = Socket::ready(&server).await;
    for id in ["1", "2", "3", "4"] {
        socket.subscribe(id, "subscription { notifications { cursor } }", Value::Null).await;
    }
    let message = socket.message().await;
    assert_eq!((&message["type"], &message["id"]), (&json!("error"), &json!("4")));
    assert_eq!(message["payload"][0]["extensions"]["code"], "COST_LIMIT_EXCEEDED");
}

#[tokio::test]
async fn pages_of_other_sites_and_other_protocols_stay_outside() {
    let server = Server::start().await;
    let protocol = ("sec-websocket-protocol", "graphql-transport-ws");
    let own = format!("http://{}", server.address);
    assert!(connect(&server, &[protocol, ("origin", &own)]).await.is_ok());
    for (headers, status) in [
        (vec![protocol, ("origin", "http://evil.example")], 403),
        (vec![protocol, ("origin", "null")], 403),
        (vec![("sec-websocket-protocol", "graphql-ws")], 400),
        (vec![], 400),
    ] {
        match connect(&server, &headers).await.err().map(|error| *error) {
            Some(Error::Http(response)) => assert_eq!(response.status().as_u16(), status, "{headers:?}"),
            other => panic!("{headers:?}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn connections_are_limited() {
    let mut options = Options::default();
    options.socket.connections_max = 1;
    let server = Server::start_with(options).await;
    let socket = Socket::ready(&server).await;
    let protocol = [("sec-websocket-protocol", "graphql-transport-ws")];
    assert!(
        matches!(connect(&server, &protocol).await.err().map(|error| *error), Some(Error::Http(response)) if response.status() == 503)
    );
    drop(socket);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while connect(&server, &protocol).await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "the place is free again");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_field_that_fails_within_an_event_is_told_with_it_and_the_next_event_comes() {
    let server = Server::start().await;
    let id = server.start_waiting(30).await;
    let mut socket = Socket::ready(&server).await;
    let query = "subscription($id: ID!) {
        executionEvents(scope: {execution: {id: $id}}) { cursor execution { events(first: 0) { totalCount } } } }";
    socket.subscribe("1", query, json!({"id": id})).await;
    let mut told = 0;
    loop {
        let message = socket.message().await;
        if message["type"] == "complete" {
            break;
        }
        if message["type"] == "ping" {
            continue;
        }
        assert_eq!((&message["type"], &message["payload"]["data"]), (&json!("next"), &Value::Null), "{message}");
        let path = json!(["executionEvents", "execution", "events"]);
        assert_eq!(message["payload"]["errors"][0]["path"], path, "{message}");
        told += 1;
        if told == 1 {
            server.finish(&id, 31).await;
        }
    }
    assert!(told > 1, "{told}");
}
