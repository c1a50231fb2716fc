//! Account and location are part of every address: a server says which it reaches, and two that
//! share a database do not have two hosts under one of them.

use std::time::Duration;

use anyhow::Context as _;
use gennaker::cli::demo::setup;
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::harness::{Hello, Options, Outcome, Schema, Server, follow, postgres, ready, trial, trial_with, wait_for};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("location", "a_server_deploys_to_the_location_that_it_is_told_and_to_no_other", elsewhere),
        trial_with("location", "two_hosts_at_one_location_are_told_and_at_two_are_not", postgres(), two_hosts),
    ]
}

const MAX: Duration = Duration::from_secs(180);

const SHOWN: &str = "{
  accounts { name locations }
  serverGroups { nodes { name account location instances { host location } } }
  loadBalancers { nodes { name location host } }
}";

/// The document, with another location in all of it.
fn at(location: &str, mut document: Value) -> Value {
    fn walk(value: &mut Value, location: &str) {
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    match value {
                        Value::String(text) if key == "location" => location.clone_into(text),
                        other => walk(other, location),
                    }
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| walk(item, location)),
            _ => {}
        }
    }
    walk(&mut document, location);
    document
}

/// A pipeline that starts one instance.
fn definition(location: &str) -> Value {
    let cluster = json!({
        "account": "local", "location": location, "strategy": { "kind": "none" },
        "capacity": { "min": 1, "desired": 1, "max": 1 },
        "launch": {
            "artifact": { "path": crate::harness::gennaker() },
            "command": ["./gennaker", "sample-app", "--version", "1"],
        },
    });
    at(location, json!({ "stages": [{ "key": "deploy", "kind": "deploy", "config": { "clusters": [cluster] } }] }))
}

async fn elsewhere() -> Outcome {
    let flags = ["--location", "b", "--host-name", "machine-1.example.org"].map(ToOwned::to_owned).to_vec();
    let server = Server::start_with(Options { flags, ..Options::default() }).await?;
    let client = server.client();
    setup::create_application(&client).await?;
    let ports = server.load_balancer_ports();
    let hello = Hello::of(&server, ([127, 0, 0, 1], ports.0).into())?;
    let run = async |name: &str, definition: &Value| {
        hello.save(name, definition).await?;
        let execution = hello.start(name, Value::Null).await?;
        follow(&client, &execution, MAX).await
    };
    let network = json!({ "stages": [
        { "key": "sg", "kind": "upsertSecurityGroup", "config": {
            "location": "b", "name": "hello", "inbound": [{ "cidr": "127.0.0.0/8", "portFrom": 1, "portTo": 65535 }],
        } },
        { "key": "lb", "kind": "upsertLoadBalancer", "requires": ["sg"], "config": {
            "location": "b", "name": "hello", "listeners": [{ "port": ports.0, "portTo": ports.1 }],
            "securityGroups": ["hello"],
        } },
    ] });
    run("network", &network).await?.succeeded().with_context(|| server.log())?;
    run("there", &definition("b")).await?.succeeded().with_context(|| server.log())?;
    let shown = client.query(SHOWN, Value::Null).await?;
    let expected = json!({
        "accounts": [{ "name": "local", "locations": ["b"] }],
        "serverGroups": { "nodes": [{
            "name": "hello-v000", "account": "local", "location": "b",
            "instances": [{ "host": "machine-1.example.org", "location": "b" }],
        }] },
        "loadBalancers": { "nodes": [{ "name": "hello", "location": "b", "host": "machine-1.example.org" }] },
    });
    anyhow::ensure!(shown == expected, "{shown:#}");

    // What it does not reach is not put anywhere else.
    let refused =
        hello.save("lost", &definition("local")).await.err().map(|error| error.to_string()).unwrap_or_default();
    anyhow::ensure!(refused.contains("account `local` has no location `local`; it has `b`"), "{refused}");
    anyhow::ensure!(client.query(SHOWN, Value::Null).await? == expected, "nothing else was made");

    // The same host as another location would be lost to everybody.
    let mut other = tokio::process::Command::from(server.command());
    let other = other.args(["serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(server.dir().join("other"));
    let other = tokio::time::timeout(MAX, other.kill_on_drop(true).output()).await??;
    let said = String::from_utf8_lossy(&other.stderr);
    anyhow::ensure!(other.status.code() == Some(1), "{said}");
    anyhow::ensure!(said.contains("account local, location b, not of local, local"), "{said}");
    // A start that failed has made no token that nobody was shown.
    let listed = server.command().args(["token", "list", "--data-dir"]).arg(server.dir().join("other")).output()?;
    let listed = (listed.status.success(), String::from_utf8_lossy(&listed.stdout).into_owned());
    anyhow::ensure!(listed.0 && !listed.1.contains("made by the first start"), "{listed:?}");
    Ok(())
}

async fn two_hosts() -> Outcome {
    let schema = Schema::create().await?;
    let outcome = two_hosts_on(&schema.url).await;
    schema.drop().await?;
    outcome
}

async fn two_hosts_on(url: &str) -> Outcome {
    let options = Options { database_url: Some(url.to_owned()), ..Options::default() };
    let mut one = Server::start_with(options.clone()).await?;
    let elsewhere = one.dir().join("another-host");
    let start = |location: &str| {
        let mut start = tokio::process::Command::from(one.command());
        start.args(["serve", "--listen", "127.0.0.1:0", "--location", location, "--data-dir"]);
        start.arg(one.dir().join("other")).arg("--host-dir").arg(elsewhere.join(location)).kill_on_drop(true);
        start
    };
    let refused = tokio::time::timeout(MAX, start("local").output()).await??;
    let said = String::from_utf8_lossy(&refused.stderr);
    anyhow::ensure!(refused.status.code() == Some(1), "{said}");
    for word in ["another server on this database", "account local, location local", "--location", "--host-dir"] {
        anyhow::ensure!(said.contains(word), "`{word}` is not in {said}");
    }
    anyhow::ensure!(ready(&one).await?.0 == 200, "it was not let in");

    // Another location is another host's, and both are fine; so is the same host.
    let options = Options { token: Some(one.token().to_owned()), ..options };
    let flags = ["--location", "b"].map(ToOwned::to_owned).to_vec();
    let two = Server::start_with(Options { flags, ..options.clone() }).await?;
    let three = Server::start_beside(&one).await?;
    for server in [&one, &two, &three] {
        // A server answers a moment before its engine is registered.
        let is_ready = || async { ready(server).await.ok().filter(|(status, _)| *status == 200) };
        if let Err(error) = wait_for("readiness", MAX, is_ready).await {
            return Err(error.context(format!("{:?}", ready(server).await?)));
        }
    }
    drop(three);
    // Whoever is gone for good stands in nobody's way once its lease is over.
    one.kill().await?;
    let four = Server::start_with(options).await?;
    wait_for("readiness", MAX, || async { ready(&four).await.ok().filter(|(status, _)| *status == 200) }).await?;
    drop(four);
    drop(two);
    stop_host(&one, &elsewhere.join("local")).await
}

/// The host that the refused server had started before it looked around.
async fn stop_host(server: &Server, dir: &std::path::Path) -> Outcome {
    let mut stop = tokio::process::Command::from(server.command());
    let done = stop.args(["host", "stop", "--dir"]).arg(dir).output().await?;
    anyhow::ensure!(done.status.success(), "{done:?}");
    Ok(())
}
