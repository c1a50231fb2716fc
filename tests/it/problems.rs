//! What is in a load balancer's way reaches people by the feed, when it begins and when it ends.

use std::time::Duration;

use anyhow::Context as _;
use gennaker::cli::client::{Client, Subscription};
use gennaker::clock::Clock;
use gennaker::model::{Place, Share};
use gennaker::providers::host::client::HostProvider;
use gennaker::providers::{Operation, Provider as _};
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::{DEPLOY_MAX, Hello, Outcome, Server, follow, trial, wait_for};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("problems", "a_share_with_nothing_healthy_is_told_over_the_feed_when_it_begins_and_ends", starved_share),
        trial("problems", "a_load_balancer_without_a_healthy_instance_is_told_over_the_feed", nothing_healthy),
        trial("problems", "what_is_shown_while_the_host_is_away_says_that_it_may_be_old", host_away),
    ]
}

const MAX: Duration = Duration::from_secs(60);

const FEED: &str = "
subscription Feed($after: String) {
  notifications(after: $after) {
    cursor
    notification {
      occasion subject text applicationName account location loadBalancerName loadBalancer { problem }
      executionName execution { id } stage { id }
    }
  }
}";

/// The next message: its cursor, and itself.
async fn next(feed: &mut Subscription) -> anyhow::Result<(String, Value)> {
    let data = tokio::time::timeout(MAX, feed.next()).await.context("no message came")??;
    let mut data = data.context("the feed goes on")?;
    let cursor = data["notifications"]["cursor"].as_str().context("a cursor")?.to_owned();
    Ok((cursor, data["notifications"]["notification"].take()))
}

async fn starved_share() -> Outcome {
    let mut server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    hello.deploy("1.0.0").await?.succeeded()?;
    hello.deploy("2.0.0").await?.succeeded()?;
    let provider = HostProvider::connect(server.host_provider()?).await?;
    let clock = Clock::system();
    let place = Place { account: "local".to_owned(), location: "local".to_owned() };
    let op = |key: &str| Operation {
        key: format!("ex_problems/{key}"),
        fence: 1,
        deadline: clock.now() + Duration::from_secs(60),
    };
    let shares = async |key: &str, shares: &[(&str, u32)]| {
        let share = |(name, basis_points): &(&str, u32)| Share {
            server_group: (*name).to_owned(),
            basis_points: *basis_points,
        };
        let shares: Vec<Share> = shares.iter().map(share).collect();
        provider.ensure_shares(&op(key), &place, "hello", &shares).await
    };

    let mut feed = hello.client.subscribe(FEED, &json!({ "after": null })).await?;
    shares("shares", &[("hello-v001", 9_000)]).await?;
    provider.ensure_enabled(&op("disable"), &place, "hello-v001", false).await?;
    let (_, begun) = next(&mut feed).await?;
    let why = "the share of 90 % of server group `hello-v001` goes to the others: it has no healthy, enabled instance";
    let wanted = json!({
        "occasion": "LOAD_BALANCER_PROBLEM",
        "subject": "load balancer hello at local/local: there is a problem",
        "text": why, "applicationName": "hello",
        "account": "local", "location": "local", "loadBalancerName": "hello", "loadBalancer": { "problem": why },
        "executionName": null, "execution": null, "stage": null,
    });
    anyhow::ensure!(begun == wanted, "{begun}");
    provider.ensure_enabled(&op("enable"), &place, "hello-v001", true).await?;
    let (cursor, over) = next(&mut feed).await?;
    anyhow::ensure!(over["occasion"] == "LOAD_BALANCER_PROBLEM_OVER" && over["loadBalancerName"] == "hello", "{over}");
    anyhow::ensure!(over["text"] == format!("No longer the case: {why}"), "{over}");

    // What begins while no server runs is told by the next one, and not again by the one after.
    server.kill().await?;
    shares("more shares", &[("hello-v000", 500), ("hello-v001", 9_000)]).await?;
    server.restart().await?;
    let mut feed = hello.client.subscribe(FEED, &json!({ "after": cursor })).await?;
    let (cursor, begun) = next(&mut feed).await?;
    let text = begun["text"].as_str().unwrap_or_default();
    anyhow::ensure!(
        begun["occasion"] == "LOAD_BALANCER_PROBLEM" && text.contains("5 % of server group `hello-v000`"),
        "{begun}"
    );
    server.kill().await?;
    server.restart().await?;
    // So is what ends.
    let mut feed = hello.client.subscribe(FEED, &json!({ "after": cursor })).await?;
    shares("no shares", &[]).await?;
    let (_, over) = next(&mut feed).await?;
    anyhow::ensure!(over["occasion"] == "LOAD_BALANCER_PROBLEM_OVER", "{over}");
    let listed = hello.client.query("{ notifications { nodes { occasion } } }", Value::Null).await?;
    let nodes = listed["notifications"]["nodes"].as_array().context("a list")?;
    let count = |occasion: &str| nodes.iter().filter(|node| node["occasion"] == occasion).count();
    let counts = (count("LOAD_BALANCER_PROBLEM"), count("LOAD_BALANCER_PROBLEM_OVER"));
    anyhow::ensure!(counts == (2, 2), "{listed}");
    Ok(())
}

async fn nothing_healthy() -> Outcome {
    let server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    // One that takes longer for its first start than a check has patience is not missed yet.
    let mut definition = hello.pipeline();
    let delay = "/stages/0/config/clusters/0/launch/command/5";
    *definition.pointer_mut(delay).context("a start delay")? = json!("12000");
    hello.save("slow hello", &definition).await?;
    let execution = hello.start("slow hello", json!({ "version": "1.0.0" })).await?;
    follow(&hello.client, &execution, DEPLOY_MAX).await?.succeeded()?;
    let mut feed = hello.client.subscribe(FEED, &json!({ "after": null })).await?;
    let listed = hello.client.query("{ notifications { nodes { occasion } } }", Value::Null).await?;
    anyhow::ensure!(!listed.to_string().contains("LOAD_BALANCER"), "{listed}");
    let pids = instances(&hello.client).await?;
    anyhow::ensure!(pids.len() == 3, "{pids:?}");
    let all = |signal| pids.iter().try_for_each(|pid| killpg(Pid::from_raw(*pid), signal));
    // They live, listen and answer nobody.
    all(Signal::SIGSTOP)?;
    let begun = next(&mut feed).await;
    all(Signal::SIGCONT)?;
    let (_, begun) = begun?;
    let why = "requests are answered with 503: no instance of hello-v000 is healthy (0 of 3)";
    anyhow::ensure!(begun["occasion"] == "LOAD_BALANCER_PROBLEM" && begun["text"] == why, "{begun}");
    let (_, over) = next(&mut feed).await?;
    anyhow::ensure!(over["occasion"] == "LOAD_BALANCER_PROBLEM_OVER", "{over}");
    anyhow::ensure!(over["text"] == format!("No longer the case: {why}"), "{over}");
    anyhow::ensure!(over["loadBalancer"]["problem"].is_null(), "{over}");
    Ok(())
}

/// The processes of all instances.
async fn instances(client: &Client) -> anyhow::Result<Vec<i32>> {
    let data = client.query("{ serverGroups { nodes { instances { pid } } } }", Value::Null).await?;
    let nodes = data.pointer("/serverGroups/nodes/0/instances").and_then(Value::as_array).context("a list")?;
    nodes.iter().map(|node| Ok(i32::try_from(node["pid"].as_i64().context("a process")?)?)).collect()
}

async fn host_away() -> Outcome {
    const SHOWN: &str = "
{ accounts { name problem }
  loadBalancers { nodes { problem } }
  serverGroups { nodes { problem healthyCount } } }";
    const PROGRESS: &str = "
query Progress($id: ID!) {
  node(id: $id) { ... on Execution { stages { kind status progress { completed total unit message } } } }
}";
    let mut server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    hello.deploy("1.0.0").await?.succeeded()?;
    let shown = hello.client.query(SHOWN, Value::Null).await?;
    anyhow::ensure!(shown["accounts"] == json!([{ "name": "local", "problem": null }]), "{shown}");
    let directory = server.host_dir().display().to_string();
    server.gennaker(&["host", "stop", "--dir", &directory]).await?.with_status(0)?;
    let shown = wait_for("the account's problem", MAX, || async {
        let shown = hello.client.query(SHOWN, Value::Null).await.ok()?;
        shown["accounts"][0]["problem"].is_string().then_some(shown)
    })
    .await?;
    let why = shown["accounts"][0]["problem"].as_str().unwrap_or_default();
    anyhow::ensure!(why.starts_with("it could not be read since 20") && why.contains("`gennaker host stop`"), "{why}");
    let of_account = format!("the state of account `local` may be old: {why}");
    anyhow::ensure!(shown["loadBalancers"]["nodes"] == json!([{ "problem": of_account }]), "{shown}");
    anyhow::ensure!(shown["serverGroups"]["nodes"] == json!([{ "problem": of_account, "healthyCount": 3 }]), "{shown}");
    let status = server.gennaker(&["status"]).await?.with_status(0)?;
    anyhow::ensure!(status.out.starts_with(&format!("account local: {why}\n")), "{}", status.out);

    let execution = hello.start("deploy hello", json!({ "version": "2.0.0" })).await?;
    let progress = wait_for("the reason for the wait", MAX, || async {
        let data = hello.client.query(PROGRESS, json!({ "id": execution })).await.ok()?;
        let stages = data["node"]["stages"].as_array()?;
        let creates = stages.iter().find(|stage| stage["kind"] == "createServerGroup")?;
        creates["progress"]["message"].is_string().then(|| creates["progress"].clone())
    })
    .await?;
    let text = progress["message"].as_str().unwrap_or_default();
    anyhow::ensure!(text.starts_with("it is tried again: cannot read account `local`"), "{progress}");
    anyhow::ensure!(progress["unit"] == "attempts" && progress["total"] == 11, "{progress}");
    // A server that starts, starts the host.
    server.kill().await?;
    server.restart().await?;
    let hello = hello.asked_by(server.client());
    let ended = follow(&hello.client, &execution, DEPLOY_MAX).await?;
    ended.succeeded()?;
    let last = ended.stages().into_iter().find(|stage| stage["kind"] == "createServerGroup").context("it is there")?;
    let text = last["progress"]["message"].as_str().unwrap_or_default();
    anyhow::ensure!(!text.contains("tried again"), "{last}");
    let shown = hello.client.query(SHOWN, Value::Null).await?;
    anyhow::ensure!(shown["accounts"] == json!([{ "name": "local", "problem": null }]), "{shown}");
    Ok(())
}
