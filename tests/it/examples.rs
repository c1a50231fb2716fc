//! The programs below `client-examples` do what they say.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::harness::{Hello, Outcome, Server, follow, trial, trial_with, wait_for};

pub fn trials() -> Vec<Trial> {
    vec![
        trial_with("examples", "the_live_feed_follows_an_execution_to_its_end", python(), live_feed),
        trial("examples", "every_operation_runs_without_an_error", operations),
    ]
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

/// The documents, each run once; what is left at the end was forgotten.
struct Operations {
    hello: Hello,
    left: BTreeSet<String>,
}

fn directory() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("client-examples/operations")
}

impl Operations {
    fn text(&mut self, name: &str) -> anyhow::Result<String> {
        anyhow::ensure!(self.left.remove(name), "there is no operation {name}, or it was run already");
        Ok(std::fs::read_to_string(directory().join(format!("{name}.graphql")))?)
    }

    /// The data of a query, without errors.
    async fn query(&mut self, name: &str, variables: Value) -> anyhow::Result<Value> {
        let text = self.text(name)?;
        self.hello.client.query(&text, variables).await.map_err(|error| anyhow::anyhow!("{name}: {error}"))
    }

    /// The payload of a mutation, without errors of either kind.
    async fn mutate(&mut self, name: &str, variables: Value) -> anyhow::Result<Value> {
        let mut data = self.query(name, variables).await?;
        let payload = data.as_object_mut().and_then(|fields| fields.values_mut().next()).map(Value::take);
        let payload = payload.unwrap_or_default();
        anyhow::ensure!(payload["userErrors"] == json!([]), "{name}: {payload}");
        Ok(payload)
    }

    async fn ended(&self, payload: &Value) -> anyhow::Result<()> {
        let id = payload["execution"]["id"].as_str().unwrap_or_default();
        follow(&self.hello.client, id, Duration::from_secs(120)).await?.succeeded()
    }
}

async fn operations() -> Outcome {
    let server = Server::start().await?;
    let (from, to) = server.load_balancer_ports();
    let hello = Hello::create(&server).await?;
    hello.deploy("1.0.0").await?.succeeded()?;
    let mut left = BTreeSet::new();
    for entry in std::fs::read_dir(directory())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        left.extend(name.strip_suffix(".graphql").map(str::to_owned));
    }
    let mut all = Operations { hello, left };

    changes(&mut all, from, to).await?;
    executions(&mut all).await?;
    looks(&mut all).await?;
    anyhow::ensure!(all.left.is_empty(), "these operations are not run: {:?}", all.left);
    Ok(())
}

async fn changes(all: &mut Operations, from: u16, to: u16) -> Outcome {
    let made = all.mutate("create-application", json!({ "input": { "name": "toys", "description": "Toys" } })).await?;
    anyhow::ensure!(made["application"]["name"] == "toys", "{made}");
    let input = json!({ "application": { "name": "toys" }, "email": "toys@example.org" });
    let changed = all.mutate("update-application", json!({ "input": input })).await?;
    anyhow::ensure!(changed["application"]["email"] == "toys@example.org", "{changed}");

    let rule = json!({ "cidr": "127.0.0.0/8", "portFrom": from, "portTo": to });
    let group = all.mutate("upsert-security-group", json!({ "input": { "name": "toys", "inbound": [rule] } })).await?;
    all.ended(&group).await?;
    let input = json!({ "name": "toys", "listeners": [{ "port": from, "portTo": to }], "securityGroups": ["toys"] });
    let balancer = all.mutate("upsert-load-balancer", json!({ "input": input })).await?;
    all.ended(&balancer).await?;

    let mut input = json!({
        "application": { "name": "toys" },
        "name": "play",
        "stages": [{ "key": "ask", "kind": "manualJudgment", "config": {} }],
        "notifications": [{ "on": ["STARTED"] }],
        "validateOnly": true,
    });
    let checked = all.mutate("validate-pipeline", json!({ "input": input })).await?;
    anyhow::ensure!(checked["pipeline"].is_null(), "{checked}");
    let count =
        all.hello.client.query("{ application(name: \"toys\") { pipelines { totalCount } } }", json!({})).await?;
    anyhow::ensure!(count["application"]["pipelines"]["totalCount"] == 0, "checking saved something: {count}");
    input["validateOnly"] = json!(false);
    input["expectedRevision"] = json!(0);
    let saved = all.mutate("save-pipeline", json!({ "input": input })).await?;
    anyhow::ensure!(saved["pipeline"]["revision"] == 1, "{saved}");
    let definitions = all.query("definitions", json!({ "application": "toys" })).await?;
    let document = &definitions["application"]["pipelines"]["nodes"][0]["definition"]["document"];
    anyhow::ensure!(document["stages"][0]["key"] == "ask", "{definitions}");
    let resize = json!({ "name": "hello-v000", "count": 2, "key": "resize" });
    let resized = all.mutate("resize-server-group", resize).await?;
    all.ended(&resized).await
}

async fn executions(all: &mut Operations) -> Outcome {
    let text = all.text("follow-notifications")?;
    let mut messages = all.hello.client.subscribe(&text, &json!({ "after": null })).await?;
    let start = json!({ "application": "toys", "pipeline": "play", "key": "first" });
    let started = all.mutate("start-pipeline", start).await?;
    let id = started["execution"]["id"].clone();
    let message = tokio::time::timeout(Duration::from_secs(60), messages.next()).await??.unwrap_or_default();
    anyhow::ensure!(message["notifications"]["notification"]["occasion"] == "STARTED", "{message}");

    let running = all.query("running-executions", json!({})).await?;
    anyhow::ensure!(running["executions"]["nodes"][0]["id"] == id, "{running}");
    let waits = "query($id: ID!) { node(id: $id) { ... on Execution { stages { waitsFor } } } }";
    let client = all.hello.client.clone();
    wait_for("the question", Duration::from_secs(30), || async {
        let data = client.query(waits, json!({ "id": id })).await.ok()?;
        (data["node"]["stages"][0]["waitsFor"] == "judge").then_some(())
    })
    .await?;
    let judge = json!({ "application": "toys", "pipeline": "play", "number": 1, "stage": "ask", "proceed": true,
        "comment": "go" });
    all.mutate("judge-stage", judge).await?;
    let text = all.text("follow-execution")?;
    let mut events = client.subscribe(&text, &json!({ "execution": id })).await?;
    let mut last = Value::Null;
    while let Some(event) = tokio::time::timeout(Duration::from_secs(60), events.next()).await?? {
        last = event;
    }
    anyhow::ensure!(last["executionEvents"]["execution"]["status"] == "SUCCEEDED", "{last}");

    let input = json!({ "pipeline": { "name": { "application": "toys", "name": "play" } } });
    let start = "mutation($input: StartPipelineInput!) {
        startPipeline(input: $input) { execution { id } userErrors { message } } }";
    let second = client.mutate(start, input).await?["execution"]["id"].clone();
    let cancel = json!({ "execution": second, "reason": "enough" });
    let cancelled = all.mutate("cancel-execution", cancel).await?;
    anyhow::ensure!(cancelled["execution"]["cancellation"]["reason"] == "enough", "{cancelled}");
    let end = follow(&client, second.as_str().unwrap_or_default(), Duration::from_secs(60)).await?;
    anyhow::ensure!(end.status() == "CANCELED", "{}", end.status());
    let variables = json!({ "application": "toys", "pipeline": "play", "number": 1 });
    let one = all.query("execution", variables).await?;
    anyhow::ensure!(one["execution"]["stages"][0]["outputs"]["comment"] == "go", "{one}");
    let deleted = all.mutate("delete-pipeline", json!({ "application": "toys", "pipeline": "play" })).await?;
    anyhow::ensure!(deleted["pipeline"]["name"] == "play", "{deleted}");
    Ok(())
}

async fn looks(all: &mut Operations) -> Outcome {
    let overview = all.query("overview", json!({ "executions": 3 })).await?;
    anyhow::ensure!(overview["executions"]["nodes"].as_array().is_some_and(|nodes| nodes.len() == 3), "{overview}");
    let infrastructure = all.query("infrastructure", json!({ "application": "hello" })).await?;
    let group = &infrastructure["application"]["clusters"]["nodes"][0]["serverGroups"]["nodes"][0];
    anyhow::ensure!(group["name"] == "hello-v000" && group["capacity"]["desired"] == 2, "{infrastructure}");
    let instance = group["instances"][0]["name"].clone();
    let log = all.query("instance-log", json!({ "name": instance })).await?;
    anyhow::ensure!(log["instance"]["log"]["cursor"].is_string(), "{log}");
    let traffic = all.query("traffic", json!({ "name": "hello" })).await?;
    anyhow::ensure!(traffic["loadBalancer"]["traffic"].is_array(), "{traffic}");
    let triggers = all.query("triggers", json!({ "application": "hello" })).await?;
    anyhow::ensure!(triggers["application"]["triggers"]["nodes"].is_array(), "{triggers}");
    let kinds = all.query("kinds", json!({})).await?;
    anyhow::ensure!(kinds["stageKinds"].as_array().is_some_and(|kinds| kinds.len() > 5), "{kinds}");
    let audit = all.query("audit", json!({})).await?;
    anyhow::ensure!(audit["auditEntries"]["nodes"].as_array().is_some_and(|rows| rows.len() > 5), "{audit}");
    Ok(())
}
