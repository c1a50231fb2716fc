//! The programs below `client-examples` do what they say.

use std::path::Path;
use std::time::Duration;

use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::harness::{Hello, Outcome, Server, trial_with};

pub fn trials() -> Vec<Trial> {
    vec![trial_with("examples", "the_live_feed_follows_an_execution_to_its_end", python(), live_feed)]
}

fn python() -> Result<(), String> {
    let found = std::process::Command::new("python3").arg("--version").output();
    if found.is_ok_and(|output| output.status.success()) { Ok(()) } else { Err("python3".to_owned()) }
}

async fn live_feed() -> Outcome {
    let server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    let definition =
        json!({ "stages": [{ "key": "w", "kind": "wait", "name": "A while", "config": { "seconds": 1 } }] });
    hello.save("short", &definition).await?;
    hello.start("short", Value::Null).await?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("client-examples/live-feed/live_feed.py");
    let mut command = tokio::process::Command::new("python3");
    command.arg(script).args([&server.url(), "hello", "short", "1"]).env("GENNAKER_TOKEN", server.token());
    command.kill_on_drop(true);
    let ended = tokio::time::timeout(Duration::from_secs(60), command.output()).await??;
    let output = String::from_utf8_lossy(&ended.stdout).into_owned();
    anyhow::ensure!(ended.status.success(), "{}\n{output}\n{}", ended.status, String::from_utf8_lossy(&ended.stderr));
    anyhow::ensure!(output.contains("A while: SUCCEEDED"), "{output}");
    anyhow::ensure!(output.trim_end().ends_with("short #1: SUCCEEDED"), "{output}");
    Ok(())
}
