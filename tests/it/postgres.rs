//! The same on PostgreSQL, where there is one.

use std::time::Duration;

use libtest_mimic::Trial;
use serde_json::json;

use crate::harness::{Hello, Options, Outcome, Schema, Server, follow, postgres, trial_with, wait_for};

pub fn trials() -> Vec<Trial> {
    vec![trial_with("postgres", "a_deploy_survives_a_kill_of_the_server", postgres(), deploy_and_kill)]
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
