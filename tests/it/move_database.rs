//! `gennaker migrate --to postgres://…`: a stopped SQLite server's data goes on in PostgreSQL, no
//! run and no cursor lost.

use std::time::Duration;

use anyhow::Context as _;
use gennaker::cli::demo::setup::FOLLOW;
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::harness::{Hello, Outcome, Schema, Server, follow, postgres, trial_with};

pub fn trials() -> Vec<Trial> {
    vec![trial_with("move_database", "runs_and_cursors_go_on_in_postgresql", postgres(), moved)]
}

const MAX: Duration = Duration::from_secs(180);

/// The sequence number in a cursor's text.
fn seq(event: &Value) -> anyhow::Result<i64> {
    let cursor = event["cursor"].as_str().context("a cursor")?;
    Ok(i64::from_str_radix(cursor.get(65..).context("a cursor's length")?, 16)?)
}

async fn moved() -> Outcome {
    let schema = Schema::create().await?;
    let mut server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    hello.deploy("1.0.0").await?.succeeded()?;
    hello.save_gated("gated").await?;
    let execution = hello.start("gated", json!({ "version": "2.0.0" })).await?;
    hello.asks(&execution).await?;
    let mut subscription = hello.client.subscribe(FOLLOW, &json!({ "id": execution })).await?;
    let mut last = subscription.next().await?.context("a snapshot")?["executionEvents"].take();
    drop(subscription);
    let query = "{ application(name: \"hello\") { executions(first: 100) { nodes { id number status name } } } }";
    let before = hello.client.query(query, json!({})).await?;

    let migrate = |server: &Server| server.command().args(["migrate", "--to", &schema.url, "--verify"]).output();
    let busy = migrate(&server)?;
    anyhow::ensure!(String::from_utf8_lossy(&busy.stderr).contains("in use by another server"), "{busy:?}");
    server.stop().await?;
    let file = server.data_dir().join("gennaker.db");
    let bytes = std::fs::read(&file)?;
    let output = migrate(&server)?;
    let said = String::from_utf8_lossy(&output.stdout);
    anyhow::ensure!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    anyhow::ensure!(said.contains("compared row by row") && said.contains("stage: "), "{said}");
    anyhow::ensure!(std::fs::read(&file)? == bytes, "the SQLite file is as it was");
    let again = migrate(&server)?;
    let complaint = String::from_utf8_lossy(&again.stderr);
    anyhow::ensure!(!again.status.success() && complaint.contains("not empty"), "{complaint}");

    server.options().database_url = Some(schema.url.clone());
    server.restart().await?;
    let after = hello.client.query(query, json!({})).await?;
    anyhow::ensure!(before == after, "{before}\n{after}");

    let mut subscription = hello.client.subscribe(FOLLOW, &json!({ "id": execution, "after": last["cursor"] })).await?;
    hello.approve(&execution).await?;
    while let Some(mut data) = tokio::time::timeout(MAX, subscription.next()).await?? {
        let event = data["executionEvents"].take();
        let kind = event["__typename"].as_str().unwrap_or_default();
        anyhow::ensure!(kind == "ExecutionChanged" || kind == "StageChanged", "a gap or a repeat: {event}");
        anyhow::ensure!(seq(&event)? == seq(&last)? + 1, "after {last} came {event}");
        last = event;
    }
    follow(&hello.client, &execution, MAX).await?.succeeded().with_context(|| server.log())?;
    let names = hello.names().await?;
    anyhow::ensure!(names == [("hello-v000".to_owned(), false), ("hello-v001".to_owned(), true)], "{names:?}");
    drop(server);
    schema.drop().await
}
