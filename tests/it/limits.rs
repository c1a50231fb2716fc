//! Limits of the settings, small ones, as the running server keeps them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use gennaker::cli::client::Client;
use gennaker::cli::demo::setup;
use libtest_mimic::Trial;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::harness::documents::{SAVE, START};
use crate::harness::{Followed, Options, Outcome, Server, follow, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("limits", "a_config_that_is_too_large_is_refused_with_its_size", configs),
        trial("limits", "outputs_that_are_too_large_fail_their_stage", outputs),
        trial("limits", "what_is_too_large_for_an_event_is_read_from_the_execution", events),
        trial("limits", "no_more_steps_are_under_way_than_are_allowed", steps),
    ]
}

const MAX: Duration = Duration::from_secs(60);
/// How long a held request waits for another beside it.
const TOGETHER: Duration = Duration::from_millis(300);

async fn start(flags: &[&str]) -> anyhow::Result<(Server, Client)> {
    let flags = [&["--outbound-allow", "127.0.0.1"], flags].concat().iter().map(ToString::to_string).collect();
    let server = Server::start_with(Options { flags, ..Options::default() }).await?;
    let client = server.client();
    setup::create_application(&client).await?;
    Ok((server, client))
}

async fn begin(client: &Client, stages: Value) -> anyhow::Result<String> {
    client.mutate(SAVE, setup::saving("calls", json!({ "stages": stages }))).await?;
    let name = json!({ "application": setup::APPLICATION, "name": "calls" });
    let started = client.mutate(START, json!({ "pipeline": { "name": name } })).await?;
    Ok(started["execution"]["id"].as_str().unwrap_or_default().to_owned())
}

async fn run(client: &Client, stages: Value) -> anyhow::Result<Followed> {
    let execution = begin(client, stages).await?;
    follow(client, &execution, MAX).await
}

/// Answers `/N` with N bytes, and `/held/N` once it is let go; `/together` waits for another beside it.
#[derive(Default)]
struct Answering {
    let_go: Notify,
    under_way: AtomicUsize,
    most: AtomicUsize,
}

impl Answering {
    async fn start() -> anyhow::Result<(Arc<Self>, String)> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let answering = Arc::new(Self::default());
        tokio::spawn({
            let answering = Arc::clone(&answering);
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let answering = Arc::clone(&answering);
                    tokio::spawn(async move { answering.answer(stream).await });
                }
            }
        });
        Ok((answering, url))
    }

    async fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let path = head.split(' ').nth(1).unwrap_or_default();
        if path.starts_with("/held/") {
            self.let_go.notified().await;
        }
        if path == "/together" {
            let now = self.under_way.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(now, Ordering::SeqCst);
            let _ = tokio::time::timeout(TOGETHER, async {
                while self.under_way.load(Ordering::SeqCst) < 2 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
            .await;
            self.under_way.fetch_sub(1, Ordering::SeqCst);
        }
        let bytes = path.rsplit('/').next().and_then(|size| size.parse().ok()).unwrap_or(0);
        let body = "x".repeat(bytes);
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {bytes}\r\nconnection: close\r\n\r\n{body}");
        stream.write_all(answer.as_bytes()).await
    }
}

fn call(key: &str, url: &str, requires: &[&str]) -> Value {
    json!({ "key": key, "kind": "webhook", "requires": requires, "config": { "url": url, "method": "GET" } })
}

async fn configs() -> Outcome {
    let (_server, client) = start(&["--max-config-bytes", "1024"]).await?;
    let stage = |bytes: usize| {
        let config = json!({ "url": "http://127.0.0.1:1/", "method": "POST", "body": "x".repeat(bytes) });
        setup::saving("calls", json!({ "stages": [{ "key": "a", "kind": "webhook", "config": config }] }))
    };
    client.mutate(SAVE, stage(800)).await?;
    let error = client.mutate(SAVE, stage(1_024)).await.expect_err("too large").to_string();
    anyhow::ensure!(error.contains("at most 1024 are allowed") && error.contains("stages.0.config"), "{error}");
    Ok(())
}

async fn outputs() -> Outcome {
    let flags = ["--max-outputs-bytes", "1024", "--max-execution-outputs-bytes", "2048"];
    let (_server, client) = start(&flags).await?;
    let (_answering, url) = Answering::start().await?;
    let of = |bytes: usize| format!("{url}/{bytes}");
    run(&client, json!([call("a", &of(800), &[])])).await?.succeeded()?;
    let failure = run(&client, json!([call("a", &of(1_024), &[])])).await?.failure();
    anyhow::ensure!(failure["code"] == "OUTPUTS_TOO_LARGE", "{failure}");
    let said = failure["message"].as_str().unwrap_or_default();
    anyhow::ensure!(said.contains("`a` has outputs of more than 1024 bytes"), "{failure}");
    // Each by itself is small enough.
    let three = json!([call("a", &of(800), &[]), call("b", &of(800), &["a"]), call("c", &of(800), &["b"])]);
    let failure = run(&client, three).await?.failure();
    anyhow::ensure!(failure["code"] == "OUTPUTS_TOO_LARGE", "{failure}");
    let said = failure["message"].as_str().unwrap_or_default();
    anyhow::ensure!(said.contains("`c`") && said.contains("more than 2048 bytes"), "{failure}");
    Ok(())
}

async fn events() -> Outcome {
    const WATCH: &str = "subscription Watch($id: ID!) { executionEvents(scope: { execution: { id: $id } }) {
        __typename ... on StageChanged { stage { status outputs } } } }";
    const READ: &str = "query Read($id: ID!) { node(id: $id) { ... on Execution { stages { outputs } } } }";
    for (flags, left_out) in [(&["--max-event-bytes", "4096"][..], true), (&[], false)] {
        let (_server, client) = start(flags).await?;
        let (answering, url) = Answering::start().await?;
        let id = begin(&client, json!([call("a", &format!("{url}/held/5000"), &[])])).await?;
        let mut watch = client.subscribe(WATCH, &json!({ "id": id })).await?;
        let snapshot = watch.next().await?.unwrap_or_default();
        anyhow::ensure!(snapshot["executionEvents"]["__typename"] == "ExecutionSnapshot", "{snapshot}");
        answering.let_go.notify_one();
        let mut told = Value::Null;
        while let Some(event) = tokio::time::timeout(MAX, watch.next()).await?? {
            let stage = &event["executionEvents"]["stage"];
            if stage["status"] == "SUCCEEDED" {
                told = stage["outputs"].clone();
            }
        }
        let read = client.query(READ, json!({ "id": id })).await?;
        let read = &read["node"]["stages"][0]["outputs"];
        anyhow::ensure!(read["body"].as_str().map(str::len) == Some(5_000), "{read}");
        match left_out {
            true => anyhow::ensure!(told == json!({ "leftOut": "too large for an event; read the stage" }), "{told}"),
            false => anyhow::ensure!(told == *read, "{told}"),
        }
    }
    Ok(())
}

async fn steps() -> Outcome {
    // Without the limit two are seen at once, so that they would be seen with it.
    for (flags, expected) in [(&["--max-concurrent-steps", "1"][..], 1), (&[], 2)] {
        let (_server, client) = start(flags).await?;
        let (answering, url) = Answering::start().await?;
        let url = format!("{url}/together");
        run(&client, json!([call("a", &url, &[]), call("b", &url, &[])])).await?.succeeded()?;
        let most = answering.most.load(Ordering::SeqCst);
        anyhow::ensure!(most == expected, "{flags:?}: {most} at once");
    }
    Ok(())
}
