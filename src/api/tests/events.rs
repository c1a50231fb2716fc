//! Following executions: no gap, no overlap, resumption, and the end.

use reqwest::header;

use super::socket::{Came, Socket};
use super::*;
use crate::model::{Cursor, ExecutionId, StreamId};

const FOLLOW: &str =
    "subscription($id: ID!, $after: String) { executionEvents(scope: {execution: {id: $id}}, after: $after) {
    __typename cursor occurredAt
    execution { id status stages { key status } }
    ... on StageChanged { stage { id key status kind config execution { id } } }
    ... on EventsTruncated { oldestCursor } } }";

/// All events until the end, each checked for its form.
async fn rest(socket: &mut Socket, id: &str) -> Vec<Value> {
    let mut events = Vec::new();
    loop {
        match socket.next().await {
            Came::Message(mut message) if message["type"] == "next" => {
                assert_eq!(message["id"], id);
                assert!(message["payload"].get("errors").is_none(), "{message}");
                events.push(message["payload"]["data"]["executionEvents"].take());
            }
            Came::Message(message) if message["type"] == "ping" => socket.send(&json!({"type": "pong"})).await,
            Came::Message(message) => {
                assert_eq!(message, json!({"id": id, "type": "complete"}));
                return events;
            }
            closed @ Came::Closed(..) => panic!("{closed:?}"),
        }
    }
}

fn seq(event: &Value) -> i64 {
    event["cursor"].as_str().and_then(|text| text.parse::<Cursor>().ok()).unwrap_or_else(|| panic!("{event}")).seq
}

/// Waits until the execution's only stage runs, so that time may move.
pub(super) async fn until_running(server: &Server, id: &str) {
    let mut socket = Socket::ready(server).await;
    socket.subscribe("r", FOLLOW, json!({"id": id})).await;
    while socket.message().await["payload"]["data"]["executionEvents"]["execution"]["stages"][0]["status"] != "RUNNING"
    {
    }
}

#[tokio::test]
async fn an_execution_is_followed_from_a_snapshot_to_its_end() {
    let server = Server::start().await;
    let id = server.start_waiting(30).await;
    let mut socket = Socket::ready(&server).await;
    socket.subscribe("1", FOLLOW, json!({"id": id})).await;
    let first = socket.message().await["payload"]["data"]["executionEvents"].take();
    assert_eq!(first["__typename"], "ExecutionSnapshot");
    until_running(&server, &id).await;
    server.clock.advance(Duration::from_secs(31));
    let mut events = vec![first];
    events.extend(rest(&mut socket, "1").await);
    for pair in events.windows(2) {
        assert_eq!(seq(&pair[1]), seq(&pair[0]) + 1, "no gap, no overlap: {pair:?}");
    }
    let last = events.last().expect("events");
    assert_eq!(last["execution"]["status"], "SUCCEEDED");
    assert!(events.iter().all(|event| event["execution"]["id"] == json!(id)));
    let stage = events.iter().rfind(|event| event["__typename"] == "StageChanged").expect("a stage changed");
    assert_eq!(stage["stage"]["config"], json!({"seconds": 30}), "what events leave out is still there");

    // Over: the snapshot and the end.
    socket.subscribe("2", FOLLOW, json!({"id": id})).await;
    let again = rest(&mut socket, "2").await;
    assert_eq!((again.len(), &again[0]["execution"]["status"]), (1, &json!("SUCCEEDED")));

    // From the first cursor on, everything again, with the objects as they were then.
    for (from, event) in events.iter().enumerate() {
        socket.subscribe("3", FOLLOW, json!({"id": id, "after": event["cursor"]})).await;
        let replay = rest(&mut socket, "3").await;
        assert_eq!(replay, events[from + 1..], "after {}", seq(event));
    }
}

#[tokio::test]
async fn a_page_of_events_is_what_the_subscription_tells_behind_the_same_cursor() {
    const PAGE: &str = "query($id: ID!, $first: Int, $after: String) { node(id: $id) { ... on Execution {
        events(first: $first, after: $after) {
            totalCount pageInfo { hasNextPage hasPreviousPage endCursor }
            edges { cursor node {
                __typename cursor occurredAt
                execution { id status stages { key status } }
                ... on StageChanged { stage { id key status kind config execution { id } } }
                ... on EventsTruncated { oldestCursor } } } } } } }";

    let server = Server::start().await;
    let id = server.start_waiting(30).await;
    server.finish(&id, 31).await;
    let page = async |first: Value, after: &Value| {
        let variables = json!({"id": id, "first": first, "after": after});
        server.data(PAGE, variables).await["node"]["events"].take()
    };
    let nodes = |page: &Value| {
        let edges = page["edges"].as_array().expect("edges");
        assert!(edges.iter().all(|edge| edge["cursor"] == edge["node"]["cursor"]), "{page}");
        edges.iter().map(|edge| edge["node"].clone()).collect::<Vec<_>>()
    };
    let all = page(Value::Null, &Value::Null).await;
    let events = nodes(&all);
    assert_eq!((seq(&events[0]), &events[0]["__typename"]), (1, &json!("ExecutionChanged")));
    assert_eq!(events.last().expect("events")["execution"]["status"], "SUCCEEDED");
    assert_eq!(all["totalCount"], json!(events.len()));
    assert_eq!((&all["pageInfo"]["hasNextPage"], &all["pageInfo"]["hasPreviousPage"]), (&json!(false), &json!(false)));
    let mut socket = Socket::ready(&server).await;
    for (from, event) in events.iter().enumerate() {
        socket.subscribe("1", FOLLOW, json!({"id": id, "after": event["cursor"]})).await;
        let told = rest(&mut socket, "1").await;
        assert_eq!(told, events[from + 1..], "after {}", seq(event));
        let rest = page(Value::Null, &event["cursor"]).await;
        assert_eq!(nodes(&rest), told, "after {}", seq(event));
        assert_eq!(rest["pageInfo"]["hasPreviousPage"], true);
    }
    // By twos, from the end of one page to the next.
    let (mut after, mut seen) = (Value::Null, Vec::new());
    loop {
        let some = page(json!(2), &after).await;
        seen.extend(nodes(&some));
        after = some["pageInfo"]["endCursor"].clone();
        if some["pageInfo"]["hasNextPage"] == false {
            break;
        }
        assert_eq!(nodes(&some).len(), 2);
    }
    assert_eq!(seen, events);
    // Of a database that was restored since, and of what has not happened: said so, then a snapshot,
    // as the subscription does.
    let execution = StreamId::Execution(execution_id(&server).await).key();
    let newest = seq(events.last().expect("events"));
    for (epoch, seq) in [(uuid::Uuid::new_v4(), 1), (server.store.epoch(), 1_000)] {
        let cursor = json!(Cursor { epoch, stream: execution, seq }.to_string());
        socket.subscribe("1", FOLLOW, json!({"id": id, "after": cursor})).await;
        let timeless = |mut events: Vec<Value>| {
            events.iter_mut().for_each(|event| event["occurredAt"] = Value::Null);
            events
        };
        let told = timeless(rest(&mut socket, "1").await);
        let types: Vec<_> = told.iter().map(|event| &event["__typename"]).collect();
        assert_eq!(types, ["EventsTruncated", "ExecutionSnapshot"]);
        let again = page(Value::Null, &cursor).await;
        assert_eq!(timeless(nodes(&again)), told, "{again}");
        assert_eq!((&again["pageInfo"]["hasNextPage"], &again["totalCount"]), (&json!(false), &json!(newest)));
        // One at a time: the first stands where the second does and has the same execution.
        let one = page(json!(1), &cursor).await;
        assert_eq!((timeless(nodes(&one)), &one["pageInfo"]["hasNextPage"]), (told[..1].to_vec(), &json!(false)));
        let none = page(Value::Null, &one["pageInfo"]["endCursor"]).await;
        assert_eq!(nodes(&none), Vec::<Value>::new());
    }
    // Of another stream, of nothing; and too many.
    let other = Cursor { epoch: server.store.epoch(), stream: uuid::Uuid::new_v4(), seq: 1 }.to_string();
    for (first, after, wanted) in
        [(1, other.as_str(), "BAD_REQUEST"), (1, "x", "BAD_REQUEST"), (101, "", "PAGE_LIMIT_EXCEEDED")]
    {
        let after = Some(after).filter(|text| !text.is_empty());
        let answer = server.ask(PAGE, json!({"id": id, "first": first, "after": after})).await;
        assert_eq!(code(&answer), wanted, "{first} {after:?}: {answer}");
    }
}

#[tokio::test]
async fn a_page_goes_on_where_the_one_before_it_ended() {
    const PAGE: &str = "query($id: ID!, $first: Int, $after: String) { node(id: $id) { ... on Execution {
        events(first: $first, after: $after) {
            pageInfo { endCursor } nodes {
                cursor execution { name status stages { key status outputs config } }
                ... on StageChanged { stage { key status config } } } } } } }";
    use sea_orm::ConnectionTrait as _;

    let server = Server::start().await;
    let id = server.start_waiting(30).await;
    server.finish(&id, 31).await;
    let page =
        async |first: Value, after: &Value| server.ask(PAGE, json!({"id": id, "first": first, "after": after})).await;
    let all = page(Value::Null, &Value::Null).await["data"]["node"]["events"]["nodes"].take();
    let all = all.as_array().expect("nodes");
    let some = page(json!(2), &Value::Null).await["data"]["node"]["events"].take();
    assert_eq!(some["nodes"], json!(all[..2]));
    // What lies before is not read again: let it be another.
    let url = format!("sqlite://{}", server.directory.join("gennaker.db").display());
    let database = sea_orm::Database::connect(url).await.expect("the database opens");
    let stream = StreamId::Execution(execution_id(&server).await).key().simple();
    let change = format!(
        "UPDATE event SET body = replace(body, '\"name\":\"wait\"', '\"name\":\"other\"') WHERE seq <= 2 AND stream = x'{stream}'"
    );
    let changed = database.execute_unprepared(&change).await.expect("it is written").rows_affected();
    assert_eq!(changed, 2);
    let rest = page(Value::Null, &some["pageInfo"]["endCursor"]).await;
    assert_eq!(rest["data"]["node"]["events"]["nodes"], json!(all[2..]), "{rest}");
    // One that begins before where a page has ended is folded from the log.
    for (after, at) in [(&Value::Null, 0), (&all[0]["cursor"], 1)] {
        let mut early = page(Value::Null, after).await["data"]["node"]["events"]["nodes"].take();
        assert_eq!(early[0]["execution"]["name"], "other", "{early}");
        early[0]["execution"]["name"] = json!("wait");
        assert_eq!(early[0], all[at]);
    }
}

#[tokio::test]
async fn a_cursor_that_cannot_be_followed_is_said_to_be_one() {
    let server = Server::start().await;
    let id = server.start_waiting(30).await;
    let other = server
        .data("mutation { startPipeline(input: {pipeline: {name: {application: \"hello\", name: \"wait\"}}}) { execution { id } } }", Value::Null)
        .await["startPipeline"]["execution"]["id"]
        .take();
    until_running(&server, &id).await;
    let mut socket = Socket::ready(&server).await;
    socket.subscribe("0", FOLLOW, json!({"id": other})).await;
    let cursor = socket.message().await["payload"]["data"]["executionEvents"]["cursor"].take();
    socket.send(&json!({"id": "0", "type": "complete"})).await;

    let mut refused = Socket::ready(&server).await;
    for (variables, code) in [
        (json!({"id": id, "after": cursor}), "BAD_REQUEST"),
        (json!({"id": id, "after": "x"}), "BAD_REQUEST"),
        (json!({"id": ExecutionId::new().to_string()}), "NOT_FOUND"),
    ] {
        refused.subscribe("1", FOLLOW, variables.clone()).await;
        let message = refused.message().await;
        assert_eq!(message["type"], "error", "{variables}: {message}");
        assert_eq!(message["payload"][0]["extensions"]["code"], code, "{variables}");
    }
    refused.subscribe("1", "subscription { executionEvents(scope: {all: true}) { cursor } }", Value::Null).await;
    assert_eq!(refused.message().await["payload"][0]["extensions"]["code"], "NOT_IMPLEMENTED");

    // Of a database that was restored since, or of events that are gone: said so, then a snapshot.
    let data = server.data("query($id: ID!) { node(id: $id) { id } }", json!({"id": id})).await;
    assert_eq!(data["node"]["id"], json!(id));
    let execution = execution_id(&server).await;
    for (epoch, seq) in [(uuid::Uuid::new_v4(), 1), (server.store.epoch(), 1_000)] {
        let cursor = Cursor { epoch, stream: StreamId::Execution(execution).key(), seq }.to_string();
        let mut socket = Socket::ready(&server).await;
        socket.subscribe("1", FOLLOW, json!({"id": id, "after": cursor})).await;
        let events = [socket.message().await, socket.message().await];
        let types: Vec<_> =
            events.iter().map(|event| &event["payload"]["data"]["executionEvents"]["__typename"]).collect();
        assert_eq!(types, ["EventsTruncated", "ExecutionSnapshot"]);
    }
}

pub(super) async fn execution_id(server: &Server) -> ExecutionId {
    let page = crate::store::PageRequest { after: None, before: None, limit: 10, backward: false };
    let page = server.store.executions(&crate::store::ExecutionFilter::default(), &page).await.expect("a page");
    page.items.into_iter().map(|(_, execution)| execution).find(|execution| execution.number == 1).expect("one").id
}

#[tokio::test]
async fn messages_are_followed_from_now_on_and_after_a_cursor() {
    let server = Server::start().await;
    let feed = "subscription($after: String) { notifications(after: $after) { cursor isAfterGap notification { occasion subject execution { number } } } }";
    let mut socket = Socket::ready(&server).await;
    socket.subscribe("1", feed, Value::Null).await;
    // Answered after the subscription has begun, in the order of one connection's messages.
    let id = server.start_waiting(30).await;
    until_running(&server, &id).await;
    server.clock.advance(Duration::from_secs(31));
    let mut messages = Vec::new();
    while messages.len() < 2 {
        let mut message = socket.message().await;
        if message["type"] == "ping" {
            socket.send(&json!({"type": "pong"})).await;
            continue;
        }
        messages.push(message["payload"]["data"]["notifications"].take());
    }
    let occasions: Vec<_> = messages.iter().map(|message| &message["notification"]["occasion"]).collect();
    assert_eq!(occasions, ["STARTED", "COMPLETED"]);
    let mut again = Socket::ready(&server).await;
    again.subscribe("1", feed, json!({"after": messages[0]["cursor"]})).await;
    assert_eq!(again.message().await["payload"]["data"]["notifications"], messages[1]);
    let listed = server.data("{ notifications { totalCount nodes { occasion } } }", Value::Null).await;
    assert_eq!(listed["notifications"]["totalCount"], 2);
}

#[tokio::test]
async fn a_stream_of_server_sent_events_resumes_behind_its_last_event() {
    let server = Server::start().await;
    let id = server.start_waiting(30).await;
    until_running(&server, &id).await;
    let stream = |last: Option<String>| {
        let mut request = server.post().header(header::ACCEPT, "text/event-stream");
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let request = request.json(&json!({"query": FOLLOW, "variables": {"id": id}})).send();
        async {
            let response = request.await.expect("an answer");
            assert_eq!(response.headers()[header::CONTENT_TYPE], "text/event-stream");
            response
        }
    };
    let mut response = stream(None).await;
    let first = response.chunk().await.expect("a chunk").expect("not the end");
    server.clock.advance(Duration::from_secs(31));
    let text = String::from_utf8_lossy(&first).into_owned() + &response.text().await.expect("a stream that ends");
    let ids: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("id: ")).map(str::to_owned).collect();
    assert!(ids.len() > 2, "{text}");
    assert_eq!(text.matches("event: next").count(), ids.len());
    assert!(text.ends_with("event: complete\ndata: \n\n"), "{text}");
    let resumed = stream(Some(ids[0].clone())).await.text().await.expect("a stream that ends");
    assert_eq!(resumed.matches("event: next").count(), ids.len() - 1, "{resumed}");
    assert!(!resumed.contains("ExecutionSnapshot"));
    let query = server
        .post()
        .header(header::ACCEPT, "text/event-stream")
        .json(&json!({"query": "{viewer{name}}"}))
        .send()
        .await;
    let text = query.expect("an answer").text().await.expect("text");
    assert!(text.starts_with("event: next\ndata: {\"data\":{\"viewer\":{\"name\":\"ada\"}}}"), "{text}");
}
