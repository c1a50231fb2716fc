//! Pipelines that start by themselves: by a timetable and by another pipeline's end, over kills
//! of the server and with two servers on one database.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use gennaker::cli::client::Client;
use gennaker::clock::Clock;
use libtest_mimic::Trial;
use sea_orm::ConnectionTrait as _;
use serde_json::{Value, json};

use crate::harness::documents::{CANCEL, CREATE, SAVE, START};
use crate::harness::{Options, Outcome, Schema, Server, postgres, trial, trial_with, wait_for};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("triggers", "a_timetable_starts_its_pipeline_and_shows_what_comes", timetable),
        trial("triggers", "a_kill_neither_repeats_nor_ends_a_timetable", killed_in_between),
        trial("triggers", "an_end_starts_the_other_pipeline_although_the_server_is_killed", killed_at_the_end),
        trial("triggers", "an_end_that_is_a_failure_or_a_cancel_starts_what_waits_for_it", other_ends),
        trial("triggers", "what_cannot_be_read_is_told_once_and_stands_in_no_others_way", unreadable),
        trial("triggers", "the_sweep_finds_what_the_timer_does_not_know_of", swept),
        trial_with("triggers", "two_servers_start_each_slot_once", postgres(), two_servers),
    ]
}

const MAX: Duration = Duration::from_secs(60);

const RUNS: &str = "
query ($name: String!) {
  pipeline(application: \"timed\", name: $name) {
    triggers {
      key kind enabled nextAt nextRuns(first: 100) lastError lastRunAt lastRun { number } problem source { name }
    }
    executions(first: 100) {
      totalCount
      nodes {
        number status startedByName parameters
        trigger { kind key reason scheduledAt source { number pipelineName status execution { number } } }
      }
    }
  }
}";

fn definition(name: &str, seconds: u64, triggers: Value) -> Value {
    json!({
        "application": { "name": "timed" },
        "name": name,
        "parameters": [{ "name": "from", "default": "nobody" }],
        "stages": [{ "key": "wait", "kind": "wait", "config": { "seconds": seconds } }],
        "triggers": triggers,
    })
}

fn every_second() -> Value {
    json!([{ "key": "always", "kind": "cron", "config": { "expression": "* * * * * *" } }])
}

async fn prepared(client: &Client) -> Outcome {
    client.mutate(CREATE, json!({ "name": "timed" })).await?;
    Ok(())
}

async fn runs(client: &Client, pipeline: &str) -> anyhow::Result<Value> {
    Ok(client.query(RUNS, json!({ "name": pipeline })).await?["pipeline"].take())
}

/// Waits until the pipeline has had that many executions.
async fn wait_for_runs(client: &Client, pipeline: &str, count: u64) -> anyhow::Result<Value> {
    wait_for(&format!("{count} runs of {pipeline}"), MAX, || async move {
        let found = runs(client, pipeline).await.ok()?;
        (found["executions"]["totalCount"].as_u64()? >= count).then_some(found)
    })
    .await
}

/// Each slot is there once.
fn each_once(found: &Value) -> anyhow::Result<usize> {
    let nodes = found["executions"]["nodes"].as_array().context("executions")?;
    let slots: BTreeSet<&str> = nodes.iter().filter_map(|node| node["trigger"]["scheduledAt"].as_str()).collect();
    anyhow::ensure!(slots.len() == nodes.len(), "{} slots, {} executions: {found:#}", slots.len(), nodes.len());
    Ok(slots.len())
}

async fn timetable() -> Outcome {
    let server = Server::start().await?;
    let client = server.client();
    prepared(&client).await?;
    client.mutate(SAVE, definition("often", 0, every_second())).await?;
    let found = wait_for_runs(&client, "often", 3).await?;
    each_once(&found)?;
    let newest = &found["executions"]["nodes"][0];
    anyhow::ensure!(newest["startedByName"] == "admin" && newest["trigger"]["key"] == "always", "{newest}");
    anyhow::ensure!(newest["trigger"]["reason"].as_str().is_some_and(|text| text.contains("was due at")), "{newest}");
    let trigger = &found["triggers"][0];
    anyhow::ensure!(trigger["nextRuns"].as_array().map(Vec::len) == Some(100), "{trigger}");
    anyhow::ensure!(trigger["lastRun"]["number"].is_i64() && trigger["lastError"].is_null(), "{trigger}");
    anyhow::ensure!(trigger["problem"].is_null(), "{trigger}");
    // Saved without it, it stops.
    client.mutate(SAVE, definition("often", 0, json!([]))).await?;
    let before = runs(&client, "often").await?["executions"]["totalCount"].clone();
    // Another of the same timetable, to see that its instants have come.
    client.mutate(SAVE, definition("witness", 0, every_second())).await?;
    wait_for_runs(&client, "witness", 2).await?;
    let after = runs(&client, "often").await?;
    anyhow::ensure!(after["executions"]["totalCount"] == before && after["triggers"] == json!([]), "{after}");
    let mut faulty = every_second();
    faulty[0]["config"]["timeZone"] = json!("Europe/Berlim");
    let error = client.mutate(SAVE, definition("often", 0, faulty)).await.expect_err("no such zone");
    anyhow::ensure!(error.to_string().contains("did you mean `Europe/Berlin`"), "{error}");
    Ok(())
}

async fn killed_in_between() -> Outcome {
    let mut server = Server::start().await?;
    let client = server.client();
    prepared(&client).await?;
    client.mutate(SAVE, definition("often", 0, every_second())).await?;
    for round in 1..=4 {
        let found = wait_for_runs(&client, "often", round * 2).await?;
        each_once(&found)?;
        server.kill().await?;
        server.restart().await?;
    }
    let found = wait_for_runs(&client, "often", 10).await?;
    each_once(&found)?;
    Ok(())
}

/// As when another server has saved a timetable whose instant comes before all that this one knows.
async fn swept() -> Outcome {
    let server = Server::start().await?;
    let client = server.client();
    prepared(&client).await?;
    let leap_day = json!([{ "key": "rare", "kind": "cron", "config": { "expression": "0 0 29 2 *" } }]);
    client.mutate(SAVE, definition("rare", 0, leap_day)).await?;
    let database = format!("sqlite://{}", server.data_dir().join("gennaker.db").display());
    let database = sea_orm::Database::connect(database).await?;
    for round in 1..=10 {
        let (begin, due) = (Instant::now(), Clock::system().now().timestamp_micros());
        let set = database.execute_unprepared(&format!("UPDATE pipeline_trigger SET next_at = {due}")).await?;
        anyhow::ensure!(set.rows_affected() == 1, "{set:?}");
        let found = wait_for("a run", Duration::from_secs(40), || async {
            let found = runs(&client, "rare").await.ok()?;
            let all = found["executions"]["nodes"].as_array()?;
            (all.len() == round && all.iter().all(|run| run["status"] == "SUCCEEDED")).then_some(found)
        })
        .await?;
        each_once(&found)?;
        // One that comes at once may be the timer's, which was just looking after a save or an end.
        if begin.elapsed() > Duration::from_secs(2) {
            return Ok(());
        }
    }
    anyhow::bail!("it always came at once")
}

async fn killed_at_the_end() -> Outcome {
    let mut server = Server::start().await?;
    let client = server.client();
    prepared(&client).await?;
    client.mutate(SAVE, definition("first", 1, json!([]))).await?;
    let after = json!([{
        "key": "after", "kind": "pipeline",
        "config": { "application": "timed", "pipeline": "first" },
        "parameters": { "from": "${ trigger.execution.pipeline } #${ trigger.execution.number }" },
    }]);
    client.mutate(SAVE, definition("second", 0, after)).await?;
    let pipeline = json!({ "name": { "application": "timed", "name": "first" } });
    for round in 1..=5_u64 {
        client.mutate(START, json!({ "pipeline": pipeline })).await?;
        // The kill comes as near to the end as can be: with the first answer that tells of it.
        wait_for("the end of the first", MAX, || async {
            let found = runs(&client, "first").await.ok()?;
            (found["executions"]["nodes"][0]["status"] == "SUCCEEDED").then_some(())
        })
        .await?;
        server.kill().await?;
        server.restart().await?;
        let found = wait_for_runs(&client, "second", round).await?;
        anyhow::ensure!(found["executions"]["totalCount"] == round, "once each: {found:#}");
        let newest = &found["executions"]["nodes"][0];
        anyhow::ensure!(newest["parameters"]["from"] == format!("first #{round}"), "{newest}");
        let source = &newest["trigger"]["source"];
        anyhow::ensure!(source["status"] == "SUCCEEDED" && source["execution"]["number"] == round, "{newest}");
    }
    let found = runs(&client, "second").await?;
    anyhow::ensure!(found["triggers"][0]["source"]["name"] == "first", "{found}");
    Ok(())
}

async fn other_ends() -> Outcome {
    let server = Server::start().await?;
    let client = server.client();
    prepared(&client).await?;
    let mut fails = definition("fails", 5, json!([]));
    fails["stages"][0]["timeoutSeconds"] = json!(1);
    client.mutate(SAVE, fails).await?;
    client.mutate(SAVE, definition("stays", 3600, json!([]))).await?;
    for (name, source, status) in [
        ("of a failure", "fails", "FAILED"),
        ("of no failure", "fails", "SUCCEEDED"),
        ("of a cancel", "stays", "CANCELED"),
        ("of no cancel", "stays", "FAILED"),
    ] {
        let config = json!({ "application": "timed", "pipeline": source, "statuses": [status] });
        let triggers = json!([{ "key": "after", "kind": "pipeline", "config": config }]);
        client.mutate(SAVE, definition(name, 0, triggers)).await?;
    }
    let start = async |name: &str| {
        let input = json!({ "pipeline": { "name": { "application": "timed", "name": name } } });
        anyhow::Ok(client.mutate(START, input).await?["execution"]["id"].take())
    };
    start("fails").await?;
    let stays = start("stays").await?;
    client.mutate(CANCEL, json!({ "execution": { "id": stays }, "reason": "enough" })).await?;
    for (name, source, status) in [("of a failure", "fails", "FAILED"), ("of a cancel", "stays", "CANCELED")] {
        let found = wait_for_runs(&client, name, 1).await?;
        anyhow::ensure!(found["executions"]["totalCount"] == 1, "{found:#}");
        let told = &found["executions"]["nodes"][0]["trigger"]["source"];
        anyhow::ensure!(told["pipelineName"] == source && told["status"] == status, "{found:#}");
        anyhow::ensure!(told["execution"]["number"] == 1, "{found:#}");
    }
    // Both ends are dealt with: what waits for others was not started.
    for name in ["of no failure", "of no cancel"] {
        let found = runs(&client, name).await?;
        anyhow::ensure!(found["executions"]["totalCount"] == 0, "{found:#}");
    }
    Ok(())
}

async fn unreadable() -> Outcome {
    let server = Server::start().await?;
    let client = server.client();
    prepared(&client).await?;
    let after =
        json!([{ "key": "after", "kind": "pipeline", "config": { "application": "timed", "pipeline": "sound" } }]);
    for (name, triggers) in [("sound", every_second()), ("broken", every_second()), ("follower", after)] {
        client.mutate(SAVE, definition(name, 0, triggers)).await?;
        wait_for_runs(&client, name, 1).await?;
    }
    let count = async |name| runs(&client, name).await?["executions"]["totalCount"].as_u64().context("a count");
    let database = format!("sqlite://{}", server.data_dir().join("gennaker.db").display());
    let database = sea_orm::Database::connect(database).await?;
    let stored = |column: &str, value: &str| {
        let sql = match column {
            "definition" => {
                format!("UPDATE pipeline SET definition = json_set(definition, '$.formatVersion', {value})")
            }
            _ => format!("UPDATE pipeline_trigger SET position = {value}"),
        };
        let id = if column == "definition" { "id" } else { "pipeline_id" };
        let database = &database;
        async move {
            let others = "(SELECT id FROM pipeline WHERE name <> 'sound')";
            database.execute_unprepared(&format!("{sql} WHERE {id} IN {others}")).await
        }
    };
    let problems = "{ application(name: \"timed\") { triggers { nodes { key problem } } } }";
    // As a newer server would have written it; and as nobody would.
    for (column, fault, sound) in [("definition", "2", "1"), ("position", "'first'", "0")] {
        stored(column, fault).await?;
        // Two passes and more.
        let before = count("sound").await?;
        each_once(&wait_for_runs(&client, "sound", before + 6).await?)?;
        if column == "definition" {
            let seen = client.query(problems, Value::Null).await?;
            let nodes = seen["application"]["triggers"]["nodes"].as_array().context("triggers")?;
            let told = nodes.iter().filter(|node| node["problem"].as_str().is_some_and(|why| why.contains("newer")));
            anyhow::ensure!(nodes.len() == 3 && told.count() == 2, "{seen}");
        }
        stored(column, sound).await?;
        for name in ["broken", "follower"] {
            let before = count(name).await?;
            wait_for_runs(&client, name, before + 1).await?;
        }
    }
    let log = std::fs::read_to_string(server.dir().join("server.log"))?;
    let told = log.lines().filter(|line| line.contains("starts nothing until")).count();
    anyhow::ensure!(told == 2 && !log.contains("triggers could not be looked at"), "told {told} times\n{log}");
    Ok(())
}

async fn two_servers() -> Outcome {
    let schema = Schema::create().await?;
    let outcome = two_on(&schema.url).await;
    schema.drop().await?;
    outcome
}

async fn two_on(url: &str) -> Outcome {
    let options = Options { database_url: Some(url.to_owned()), ..Options::default() };
    let mut one = Server::start_with(options.clone()).await?;
    let other = Server::start_beside(&one).await?;
    let client = other.client();
    prepared(&client).await?;
    client.mutate(SAVE, definition("often", 0, every_second())).await?;
    let after = json!([{
        "key": "after", "kind": "pipeline", "config": { "application": "timed", "pipeline": "often" },
    }]);
    client.mutate(SAVE, definition("second", 0, after)).await?;
    // The other hears of it at its sweep at the latest; from then on both want every slot.
    one.client().mutate(SAVE, definition("also", 0, every_second())).await?;
    for pipeline in ["often", "also"] {
        each_once(&wait_for_runs(&client, pipeline, 8).await?)?;
    }
    let seconds = wait_for_runs(&client, "second", 6).await?;
    let nodes = seconds["executions"]["nodes"].as_array().context("executions")?;
    let sources: BTreeSet<i64> = nodes.iter().filter_map(|node| node["trigger"]["source"]["number"].as_i64()).collect();
    anyhow::ensure!(sources.len() == nodes.len(), "each end once: {seconds:#}");
    one.kill().await?;
    let before = runs(&client, "also").await?["executions"]["totalCount"].as_u64().context("a count")?;
    each_once(&wait_for_runs(&client, "also", before + 3).await?)?;
    Ok(())
}
