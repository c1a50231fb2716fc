//! The same on PostgreSQL, where there is one.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use chrono::{DateTime, TimeDelta, Utc};
use gennaker::cli::client::Client;
use gennaker::cli::demo::setup::FOLLOW;
use gennaker::clock::Clock;
use gennaker::model::Cursor;
use libtest_mimic::Trial;
use sea_orm::{ConnectionTrait as _, DbBackend, Statement};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::harness::{
    Calls, Hello, Options, Outcome, Schema, Server, Two, follow, gennaker, postgres, trial_with, wait_for,
};

pub fn trials() -> Vec<Trial> {
    vec![
        trial_with("postgres", "a_deploy_survives_a_kill_of_the_server", postgres(), deploy_and_kill),
        trial_with("postgres", "two_servers_share_the_work_and_each_is_told_what_the_other_does", postgres(), share),
        trial_with("postgres", "what_a_killed_server_had_goes_on_at_the_other_within_the_lease", postgres(), takeover),
        trial_with("postgres", "a_word_given_at_one_server_reaches_the_execution_at_the_other", postgres(), steered),
        trial_with("postgres", "a_deploy_goes_on_at_the_other_server", postgres(), deploy_goes_on),
        trial_with("postgres", "servers_that_start_at_once_do_not_race_in_migrating", postgres(), at_once),
        trial_with("postgres", "servers_that_start_at_once_on_an_empty_database_all_serve", postgres(), serve_at_once),
    ]
}

const MAX: Duration = Duration::from_secs(180);

/// A schema of the trial's own, removed at its end.
async fn with_schema(run: impl AsyncFnOnce(String) -> Outcome) -> Outcome {
    let schema = Schema::create().await?;
    let outcome = run(schema.url.clone()).await;
    schema.drop().await?;
    outcome
}

async fn deploy_and_kill() -> Outcome {
    with_schema(async |url| {
        let mut server = Server::start_with(Options { database_url: Some(url), ..Options::default() }).await?;
        let hello = Hello::create(&server).await?;
        hello.deploy("1.0.0").await?.succeeded()?;
        let load = hello.load(100, false);
        let execution = hello.start("deploy hello", json!({ "version": "2.0.0" })).await?;
        // In the middle of it: the new group is there, and the old one still serves.
        wait_for("the new group", Duration::from_secs(120), || async {
            (hello.names().await.ok()?.len() == 2).then_some(())
        })
        .await?;
        server.kill().await?;
        server.restart().await?;
        let followed = follow(&hello.client, &execution, Duration::from_secs(180)).await?;
        followed.succeeded()?;
        let report = load.stop().await;
        anyhow::ensure!(report.failed == 0, "{:?}", report.failures);
        let names = hello.names().await?;
        anyhow::ensure!(names == [("hello-v000".to_owned(), false), ("hello-v001".to_owned(), true)], "{names:?}");
        Ok(())
    })
    .await
}

/// The lease of a server. Its work goes on elsewhere within it, since it last beat before it was
/// killed; on top of it comes the second between two looks at the others, one for the search for
/// what is due, and some for a machine that is busy.
const LEASE: TimeDelta = TimeDelta::seconds(15);
const SLACK: TimeDelta = TimeDelta::seconds(3);
/// A server beats this often at the least: no takeover comes sooner than that before the lease is over.
const BEAT: TimeDelta = TimeDelta::milliseconds(7_500);
/// What needs no notice from another server is found by looking every five seconds: sooner than
/// that it was told.
const TOLD: TimeDelta = TimeDelta::seconds(4);

/// An execution as a subscriber at the other server saw it.
struct Seen {
    number: i64,
    events: Vec<Event>,
}

struct Event {
    cursor: Cursor,
    occurred: DateTime<Utc>,
    received: DateTime<Utc>,
    body: Value,
}

impl Seen {
    fn status(&self) -> &str {
        let status = |event: &Event| event.body["changed"]["status"].as_str().map(str::len).is_some();
        let last = self.events.iter().rev().find(|event| status(event));
        last.and_then(|event| event.body["changed"]["status"].as_str()).unwrap_or("?")
    }

    /// No event is missing, and each came without waiting for the next look; the first is a snapshot.
    fn is_whole_and_prompt(&self) -> Outcome {
        for pair in self.events.windows(2) {
            let (before, event) = (&pair[0], &pair[1]);
            anyhow::ensure!(event.cursor.seq == before.cursor.seq + 1, "#{}: a gap before {}", self.number, event.body);
            let late = event.received - event.occurred;
            anyhow::ensure!(late < TOLD, "#{}: {late} late: {}", self.number, event.body);
        }
        Ok(())
    }
}

/// Watches an execution to its end, over one subscription that is never taken up again.
async fn watch(client: Client, execution: String) -> anyhow::Result<Seen> {
    let mut seen = Seen { number: 0, events: Vec::new() };
    let mut subscription = client.subscribe(FOLLOW, &json!({ "id": execution })).await?;
    while let Some(mut data) = tokio::time::timeout(MAX, subscription.next()).await?? {
        let body = data["executionEvents"].take();
        if let Some(number) = body["snapshot"]["number"].as_i64() {
            seen.number = number;
        }
        seen.events.push(Event {
            cursor: body["cursor"].as_str().context("a cursor")?.parse()?,
            occurred: body["occurredAt"].as_str().context("an instant")?.parse()?,
            received: Clock::system().now(),
            body,
        });
    }
    Ok(seen)
}

/// Every execution has made both calls, and each once.
fn each_once(calls: &Calls, executions: usize) -> Outcome {
    let wanted: BTreeMap<String, usize> =
        (1..=executions).flat_map(|number| ["first", "second"].map(|key| (format!("/{number}/{key}"), 1))).collect();
    let counts = calls.counts();
    anyhow::ensure!(counts == wanted, "{counts:?}");
    Ok(())
}

/// All are asked of one server; each does a good part of them, and whoever watches at the other
/// sees all of it.
async fn share() -> Outcome {
    const COUNT: usize = 40;
    with_schema(async |url| {
        let calls = Calls::start().await?;
        let two = Two::start(&url, calls.flags()).await?;
        two.hello.save("work", &calls.pipeline(1)).await?;
        let mut watching = JoinSet::new();
        for _ in 0..COUNT {
            let execution = two.hello.start("work", json!(null)).await?;
            watching.spawn(watch(two.there.client.clone(), execution));
        }
        let seen = watching.join_all().await.into_iter().collect::<anyhow::Result<Vec<Seen>>>()?;
        for seen in &seen {
            anyhow::ensure!(seen.status() == "SUCCEEDED", "#{} is {}", seen.number, seen.status());
            seen.is_whole_and_prompt()?;
        }
        each_once(&calls, COUNT)?;
        let (one, other) = two.began("work")?;
        eprintln!("{} of {COUNT} ran where they were asked for, {} at the other", one.len(), other.len());
        anyhow::ensure!(one.is_disjoint(&other) && one.len() + other.len() == COUNT, "{one:?} {other:?}");
        anyhow::ensure!(one.len().min(other.len()) >= COUNT / 4, "they share the work: {one:?} {other:?}");
        Ok(())
    })
    .await
}

/// Each has some in the middle of them when one is killed.
async fn takeover() -> Outcome {
    const COUNT: usize = 24;
    const PAUSE: u32 = 8;
    with_schema(async |url| {
        let calls = Calls::start().await?;
        let mut two = Two::start(&url, calls.flags()).await?;
        two.hello.save("work", &calls.pipeline(PAUSE)).await?;
        let mut watching = JoinSet::new();
        for at in 0..COUNT {
            let hello = if at % 2 == 0 { &two.hello } else { &two.there };
            watching.spawn(watch(two.there.client.clone(), hello.start("work", json!(null)).await?));
        }
        let pausing = "{ pipeline(application: \"hello\", name: \"work\") {
            executions(first: 100) { nodes { stages { key status } } } } }";
        wait_for("all of them to pause", MAX, || async {
            let data = two.there.client.query(pausing, json!({})).await.ok()?;
            let nodes = data["pipeline"]["executions"]["nodes"].as_array()?.clone();
            (nodes.len() == COUNT && nodes.iter().all(|node| node["stages"][1]["status"] == "RUNNING")).then_some(())
        })
        .await?;
        let (one, other) = two.began("work")?;
        anyhow::ensure!(!one.is_empty() && !other.is_empty(), "both have some: {one:?} {other:?}");
        let killed = Clock::system().now();
        two.one.kill().await?;
        let seen = watching.join_all().await.into_iter().collect::<anyhow::Result<Vec<Seen>>>()?;
        each_once(&calls, COUNT)?;
        for seen in &seen {
            anyhow::ensure!(seen.status() == "SUCCEEDED", "#{} is {}", seen.number, seen.status());
            seen.is_whole_and_prompt()?;
            let next = seen.events.iter().find(|event| event.occurred > killed).context("it went on")?;
            let after = next.occurred - killed;
            if one.contains(&seen.number) {
                let right = LEASE - BEAT < after && after < LEASE + SLACK;
                anyhow::ensure!(right, "#{} went on {after} after the kill", seen.number);
            } else {
                anyhow::ensure!(
                    after < TimeDelta::seconds(PAUSE.into()) + TOLD,
                    "#{} was held up {after}",
                    seen.number
                );
            }
        }
        // Back again, it has its part.
        two.one.restart().await?;
        follow(&two.hello.client, &two.hello.start("work", json!(null)).await?, MAX).await?.succeeded()
    })
    .await
}

/// Whichever server has the execution, a word that is given at the other is heard there at once.
async fn steered() -> Outcome {
    with_schema(async |url| {
        let two = Two::start(&url, Vec::new()).await?;
        let ask = json!({ "key": "ask", "kind": "manualJudgment", "config": { "instructions": "Go on?" } });
        two.hello.save("asks", &json!({ "stages": [ask] })).await?;
        for (number, cancel) in (1..=8).zip([false, true].into_iter().cycle()) {
            let starts = if number <= 4 { &two.hello } else { &two.there };
            let execution = starts.start("asks", json!(null)).await?;
            two.hello.asks(&execution).await?;
            let (one, _) = two.began("asks")?;
            let not_there = if one.contains(&number) { &two.there } else { &two.hello };
            let said = Clock::system().now();
            if cancel {
                not_there.client.mutate(CANCEL, json!({ "execution": { "id": execution } })).await?;
            } else {
                not_there.approve(&execution).await?;
            }
            let seen = watch(not_there.client.clone(), execution).await?;
            let last = seen.events.last().context("an event")?;
            let status = ["changed", "snapshot"].map(|key| last.body[key]["status"].as_str());
            let wanted = if cancel { "CANCELED" } else { "SUCCEEDED" };
            anyhow::ensure!(status.contains(&Some(wanted)), "#{number}: {}", last.body);
            let after = last.occurred - said;
            anyhow::ensure!(after < TOLD, "#{number} heard of it after {after}");
        }
        let (one, other) = two.began("asks")?;
        eprintln!("{} and {} executions were steered from the other server", one.len(), other.len());
        Ok(())
    })
    .await
}

const CANCEL: &str = "
mutation Cancel($input: CancelExecutionInput!) {
  cancelExecution(input: $input) { execution { id } userErrors { message field code } }
}";

/// In the middle of a deploy under load.
async fn deploy_goes_on() -> Outcome {
    with_schema(async |url| {
        let mut two = Two::start(&url, Vec::new()).await?;
        two.hello.deploy("1.0.0").await?.succeeded()?;
        let load = two.hello.load(100, false);
        let execution = two.hello.start("deploy hello", json!({ "version": "2.0.0" })).await?;
        wait_for("the new group", MAX, || async { (two.there.names().await.ok()?.len() == 2).then_some(()) }).await?;
        let (one, _) = two.began("deploy hello")?;
        let (killed, left) = if one.contains(&2) { (&mut two.one, &two.there) } else { (&mut two.other, &two.hello) };
        killed.kill().await?;
        follow(&left.client, &execution, MAX).await?.succeeded()?;
        let names = left.names().await?;
        anyhow::ensure!(names == [("hello-v000".to_owned(), false), ("hello-v001".to_owned(), true)], "{names:?}");
        killed.restart().await?;
        two.hello.deploy("3.0.0").await?.succeeded()?;
        let report = load.stop().await;
        anyhow::ensure!(report.failed == 0, "{:?}", report.failures);
        Ok(())
    })
    .await
}

/// Each comes up, and takes the token that one of them has shown.
async fn serve_at_once() -> Outcome {
    with_schema(async |url| {
        let options =
            Options { database_url: Some(url), token: Some("shown by another".to_owned()), ..Options::default() };
        // Each has a host, and so a location, of its own.
        let start = |location: &str| {
            let flags = vec!["--location".to_owned(), location.to_owned()];
            Server::start_with(Options { flags, ..options.clone() })
        };
        let (a, b, c) = tokio::join!(start("a"), start("b"), start("c"));
        let servers = [a?, b?, c?];
        let shown = servers.iter().map(Server::token).find(|token| token.starts_with("gnk_"));
        let token = shown.context("one of them shows a token")?;
        for server in &servers {
            let data =
                server.client().with_token(Some(token)).query("{ applications { totalCount } }", json!({})).await?;
            anyhow::ensure!(data["applications"]["totalCount"] == 0, "{data}");
        }
        Ok(())
    })
    .await
}

/// Of an empty database several at a time: all come up, with one schema and one epoch.
async fn at_once() -> Outcome {
    for _ in 0..5 {
        with_schema(async |url| {
            let start = || {
                let mut command = tokio::process::Command::new(gennaker());
                command.arg("migrate").env("DATABASE_URL", &url).kill_on_drop(true).output()
            };
            let (a, b, c) = tokio::join!(start(), start(), start());
            for output in [a?, b?, c?] {
                anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            }
            let db = sea_orm::Database::connect(&url).await?;
            let count = async |sql: &str| {
                let row = db.query_one_raw(Statement::from_string(DbBackend::Postgres, sql)).await?;
                anyhow::Ok(row.context("a row")?.try_get_by_index::<i64>(0)?)
            };
            anyhow::ensure!(count("SELECT COUNT(*) FROM meta WHERE key = 'epoch'").await? == 1, "one epoch");
            let (steps, distinct) = (
                count("SELECT COUNT(*) FROM seaql_migrations").await?,
                count("SELECT COUNT(DISTINCT version) FROM seaql_migrations").await?,
            );
            anyhow::ensure!(steps == distinct && steps > 2, "{steps} steps, {distinct} of them distinct");
            db.close().await?;
            Ok(())
        })
        .await?;
    }
    Ok(())
}
