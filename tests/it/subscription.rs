//! `executionEvents`: snapshot, changes, resumption after a cursor, and the end.

use std::time::Duration;

use libtest_mimic::Trial;
use serde_json::{Value, json};

use gennaker::cli::demo::setup::FOLLOW;

use crate::harness::{Followed, Hello, Outcome, Server, follow, follow_with, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("subscription", "it_begins_with_a_snapshot_and_completes_at_the_end", snapshot_and_end),
        trial("subscription", "after_a_cursor_come_exactly_the_events_that_are_missing", resume),
        trial("subscription", "a_late_subscriber_gets_the_last_state_and_the_end", late),
        trial("subscription", "a_cursor_of_another_execution_is_refused", foreign_cursor),
        trial("subscription", "a_subscriber_goes_on_over_a_kill_without_a_gap", over_a_kill),
        trial("subscription", "the_notifications_of_an_execution_come_over_the_feed", notifications),
        trial("subscription", "failures_cancels_approvals_and_stages_are_told_too", other_notifications),
    ]
}

const MAX: Duration = Duration::from_secs(60);

async fn prepared() -> anyhow::Result<(Server, Hello)> {
    let server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    let definition = json!({
        "stages": [
            { "key": "a", "kind": "wait", "config": { "seconds": 1 } },
            { "key": "b", "kind": "wait", "config": { "seconds": 1 }, "requires": ["a"] },
        ],
        "notifications": [{ "on": ["STARTED", "COMPLETED"] }],
    });
    hello.save("waits", &definition).await?;
    Ok((server, hello))
}

async fn run(hello: &Hello) -> anyhow::Result<(String, Followed)> {
    let execution = hello.start("waits", Value::Null).await?;
    let followed = follow(&hello.client, &execution, MAX).await?;
    followed.succeeded()?;
    Ok((execution, followed))
}

fn cursors(followed: &Followed) -> Vec<String> {
    followed.events.iter().map(|event| event["cursor"].as_str().unwrap_or_default().to_owned()).collect()
}

async fn snapshot_and_end() -> Outcome {
    let (_server, hello) = prepared().await?;
    let (_, followed) = run(&hello).await?;
    let kinds: Vec<_> = followed.events.iter().map(|event| event["__typename"].as_str().unwrap_or_default()).collect();
    anyhow::ensure!(kinds[0] == "ExecutionSnapshot", "{kinds:?}");
    anyhow::ensure!(kinds.iter().filter(|kind| **kind == "ExecutionSnapshot").count() == 1, "{kinds:?}");
    anyhow::ensure!(followed.connections == 1, "{} connections", followed.connections);
    let stages = followed.stages();
    anyhow::ensure!(stages.len() == 2 && stages.iter().all(|stage| stage["status"] == "SUCCEEDED"), "{stages:?}");
    let mut distinct = cursors(&followed);
    distinct.dedup();
    anyhow::ensure!(distinct.len() == followed.events.len(), "each event has a cursor of its own");
    Ok(())
}

async fn resume() -> Outcome {
    let (_server, hello) = prepared().await?;
    let (execution, followed) = run(&hello).await?;
    let seen = cursors(&followed);
    for from in [0, seen.len() / 2, seen.len() - 1] {
        let mut again = Vec::new();
        let variables = json!({ "id": execution, "after": seen[from] });
        let mut subscription = hello.client.subscribe(FOLLOW, &variables).await?;
        while let Some(data) = tokio::time::timeout(MAX, subscription.next()).await?? {
            again.push(data["executionEvents"]["cursor"].as_str().unwrap_or_default().to_owned());
        }
        anyhow::ensure!(again == seen[from + 1..], "after event {from}: {again:?}, not {:?}", &seen[from + 1..]);
    }
    Ok(())
}

async fn late() -> Outcome {
    let (_server, hello) = prepared().await?;
    let (execution, followed) = run(&hello).await?;
    let late = follow(&hello.client, &execution, MAX).await?;
    anyhow::ensure!(late.events.len() == 1 && late.status() == "SUCCEEDED", "{:?}", late.events);
    anyhow::ensure!(late.cursor() == followed.cursor(), "the snapshot stands at the last event");
    Ok(())
}

async fn foreign_cursor() -> Outcome {
    let (_server, hello) = prepared().await?;
    let (_, one) = run(&hello).await?;
    let (other, _) = run(&hello).await?;
    for after in [one.cursor(), json!("not a cursor")] {
        let mut subscription = hello.client.subscribe(FOLLOW, &json!({ "id": other, "after": after })).await?;
        let error = match tokio::time::timeout(MAX, subscription.next()).await? {
            Err(error) => error,
            Ok(data) => anyhow::bail!("{after} was taken: {data:?}"),
        };
        anyhow::ensure!(matches!(error, gennaker::cli::client::Error::GraphQl(_)), "{error}");
        anyhow::ensure!(error.to_string().contains("cursor"), "{error}");
    }
    Ok(())
}

async fn over_a_kill() -> Outcome {
    let (mut server, hello) = prepared().await?;
    let execution = hello.start("waits", Value::Null).await?;
    let (seen, mut sees) = tokio::sync::watch::channel(0);
    let following = tokio::spawn({
        let (client, execution) = (hello.client.clone(), execution.clone());
        async move { follow_with(&client, &execution, MAX, |events| _ = seen.send_replace(events.len())).await }
    });
    // In the middle of it: beyond the snapshot; the second stage is still to come or runs.
    tokio::time::timeout(MAX, sees.wait_for(|events| *events >= 2)).await??;
    server.kill().await?;
    server.restart().await?;
    let followed = following.await??;
    followed.succeeded()?;
    anyhow::ensure!(followed.connections >= 2, "{} connections", followed.connections);
    // What it saw over two connections is what a reader of the whole stream sees.
    let seen = cursors(&followed);
    let mut whole = vec![seen[0].clone()];
    let mut subscription = hello.client.subscribe(FOLLOW, &json!({ "id": execution, "after": seen[0] })).await?;
    while let Some(data) = tokio::time::timeout(MAX, subscription.next()).await?? {
        whole.push(data["executionEvents"]["cursor"].as_str().unwrap_or_default().to_owned());
    }
    anyhow::ensure!(seen == whole, "{seen:?}\n{whole:?}");
    Ok(())
}

async fn notifications() -> Outcome {
    let (_server, hello) = prepared().await?;
    let document = "subscription { notifications { notification { occasion subject } } }";
    let mut feed = hello.client.subscribe(document, &json!({})).await?;
    run(&hello).await?;
    let mut occasions = Vec::new();
    while occasions.len() < 2 {
        let data = tokio::time::timeout(MAX, feed.next()).await??.unwrap_or_default();
        let notification = &data["notifications"]["notification"];
        anyhow::ensure!(notification["subject"].as_str().is_some_and(|text| text.contains("waits")), "{data}");
        occasions.push(notification["occasion"].as_str().unwrap_or_default().to_owned());
    }
    anyhow::ensure!(occasions == ["STARTED", "COMPLETED"], "{occasions:?}");
    Ok(())
}

async fn other_notifications() -> Outcome {
    let (_server, hello) = prepared().await?;
    let document = "subscription { notifications { notification { occasion executionName stage { key } } } }";
    let mut feed = hello.client.subscribe(document, &json!({})).await?;
    let rule = json!([{ "on": ["FAILED", "CANCELED", "APPROVAL_NEEDED"] }]);
    let nowhere = json!({ "url": "http://127.0.0.1:1/", "method": "GET", "retries": 0 });
    hello
        .save(
            "fails",
            &json!({
                "stages": [{
                    "key": "call", "kind": "webhook", "config": nowhere,
                    "notifications": [{ "on": ["STARTED", "FAILED"] }],
                }],
                "notifications": rule,
            }),
        )
        .await?;
    hello
        .save(
            "asks",
            &json!({
                "stages": [{ "key": "ask", "kind": "manualJudgment", "config": { "instructions": "Well?" } }],
                "notifications": rule,
            }),
        )
        .await?;
    let mut next = async |wanted: [&str; 3]| {
        let data = tokio::time::timeout(MAX, feed.next()).await??.unwrap_or_default();
        let said = &data["notifications"]["notification"];
        let found = [&said["occasion"], &said["executionName"], &said["stage"]["key"]];
        anyhow::ensure!(found.map(|value| value.as_str().unwrap_or_default()) == wanted, "{data}, not {wanted:?}");
        anyhow::Ok(())
    };
    hello.start("fails", Value::Null).await?;
    next(["STARTED", "fails", "call"]).await?;
    next(["FAILED", "fails", "call"]).await?;
    next(["FAILED", "fails", ""]).await?;
    let execution = hello.start("asks", Value::Null).await?;
    next(["APPROVAL_NEEDED", "asks", "ask"]).await?;
    let cancel =
        "mutation Cancel($input: CancelExecutionInput!) { cancelExecution(input: $input) { userErrors { message } } }";
    hello.client.mutate(cancel, json!({ "execution": { "id": execution }, "reason": "no" })).await?;
    next(["CANCELED", "asks", ""]).await
}
