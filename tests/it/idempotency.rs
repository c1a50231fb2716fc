//! Starting once: many calls with one key are one execution.

use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::harness::documents::START;
use crate::harness::{Hello, Outcome, Server, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("idempotency", "fifty_parallel_starts_with_one_key_are_one_execution", fifty),
        trial("idempotency", "a_key_used_again_with_another_input_is_refused", other_input),
        trial("idempotency", "a_key_is_known_after_a_kill", after_a_kill),
    ]
}

async fn prepared() -> anyhow::Result<(Server, Hello)> {
    let server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    let definition = json!({
        "parameters": [{ "name": "note", "default": "" }],
        "stages": [{ "key": "wait", "kind": "wait", "config": { "seconds": 1 } }],
    });
    hello.save("short", &definition).await?;
    Ok((server, hello))
}

fn input(key: &str, note: &str) -> Value {
    json!({
        "pipeline": { "name": { "application": "hello", "name": "short" } },
        "parameters": { "note": note },
        "idempotencyKey": key,
    })
}

async fn fifty() -> Outcome {
    let (_server, hello) = prepared().await?;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let client = hello.client.clone();
        calls.spawn(async move { client.mutate(START, input("one", "x")).await });
    }
    let (mut ids, mut first) = (std::collections::BTreeSet::new(), 0);
    while let Some(payload) = calls.join_next().await {
        let payload = payload??;
        ids.insert(payload["execution"]["id"].as_str().unwrap_or_default().to_owned());
        first += usize::from(payload["isReplay"] == false);
    }
    anyhow::ensure!(ids.len() == 1 && first == 1, "{ids:?}, {first} of them not a replay");
    let data = hello
        .client
        .query(
            "{ pipeline(application: \"hello\", name: \"short\") { executions(first: 10) { totalCount nodes { number } } } }",
            json!({}),
        )
        .await?;
    anyhow::ensure!(data["pipeline"]["executions"]["totalCount"] == 1, "{data}");
    Ok(())
}

async fn other_input() -> Outcome {
    let (_server, hello) = prepared().await?;
    hello.client.mutate(START, input("two", "x")).await?;
    let error = hello.client.mutate(START, input("two", "y")).await.expect_err("another input");
    anyhow::ensure!(error.code() == Some("IDEMPOTENCY_KEY_REUSED"), "{error} {:?}", error.code());
    Ok(())
}

async fn after_a_kill() -> Outcome {
    let (mut server, hello) = prepared().await?;
    let first = hello.client.mutate(START, input("three", "x")).await?;
    server.kill().await?;
    server.restart().await?;
    let second = hello.client.mutate(START, input("three", "x")).await?;
    anyhow::ensure!(first["execution"]["id"] == second["execution"]["id"] && second["isReplay"] == true, "{second}");
    Ok(())
}
