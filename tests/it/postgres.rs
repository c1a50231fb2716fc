//! The same on PostgreSQL, where there is one.

use std::time::Duration;

use anyhow::Context as _;
use libtest_mimic::Trial;
use sea_orm::{ConnectionTrait as _, DbBackend, Statement};
use serde_json::json;

use crate::harness::{Hello, Options, Outcome, Schema, Server, follow, gennaker, postgres, trial_with, wait_for};

pub fn trials() -> Vec<Trial> {
    vec![
        trial_with("postgres", "a_deploy_survives_a_kill_of_the_server", postgres(), deploy_and_kill),
        trial_with(
            "postgres",
            "two_servers_share_the_work_and_one_takes_over_when_the_other_is_killed",
            postgres(),
            two,
        ),
        trial_with("postgres", "servers_that_start_at_once_do_not_race_in_migrating", postgres(), at_once),
    ]
}

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

/// On one machine both use one host; each is killed once in the middle of a deploy.
async fn two() -> Outcome {
    with_schema(async |url| {
        let options = Options { database_url: Some(url.clone()), ..Options::default() };
        let mut one = Server::start_with(options).await?;
        let other = Server::start_with(Options {
            database_url: Some(url),
            host_dir: Some(one.host_dir()),
            token: Some(one.token().to_owned()),
            ..Options::default()
        })
        .await?;
        let hello = Hello::create(&one).await?;
        hello.deploy("1.0.0").await?.succeeded()?;
        let there = Hello { client: other.client(), load_balancer: hello.load_balancer };
        let definition = json!({ "stages": [
            { "key": "a", "kind": "wait", "config": { "seconds": 3 } },
            { "key": "b", "kind": "wait", "config": { "seconds": 3 }, "requires": ["a"] },
        ] });
        hello.save("waits", &definition).await?;
        // Started at both; each sees the other's, over the same database.
        let mut started = Vec::new();
        for _ in 0..5 {
            started.push(hello.start("waits", json!(null)).await?);
            started.push(there.start("waits", json!(null)).await?);
        }
        started.push(hello.start("deploy hello", json!({ "version": "2.0.0" })).await?);
        tokio::time::sleep(Duration::from_millis(500)).await;
        one.kill().await?;
        let since = std::time::Instant::now();
        for execution in &started {
            follow(&there.client, execution, Duration::from_secs(180)).await?.succeeded()?;
        }
        // A lease of 15 s, the watch's step, and what was left to do.
        anyhow::ensure!(since.elapsed() < Duration::from_secs(90), "taken over after {:?}", since.elapsed());
        let names = there.names().await?;
        anyhow::ensure!(names == [("hello-v000".to_owned(), false), ("hello-v001".to_owned(), true)], "{names:?}");
        one.restart().await?;
        hello.deploy("3.0.0").await?.succeeded()?;
        drop(other);
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
