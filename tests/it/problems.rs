//! What is in a load balancer's way reaches people by the feed, when it begins and when it ends.

use std::time::Duration;

use anyhow::Context as _;
use gennaker::cli::client::Subscription;
use gennaker::clock::Clock;
use gennaker::model::{Place, Share};
use gennaker::providers::host::client::HostProvider;
use gennaker::providers::{Operation, Provider as _};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::harness::{Hello, Outcome, Server, trial};

pub fn trials() -> Vec<Trial> {
    vec![trial("problems", "a_share_with_nothing_healthy_is_told_over_the_feed_when_it_begins_and_ends", starved_share)]
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
