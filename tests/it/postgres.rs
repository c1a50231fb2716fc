//! The same on PostgreSQL, where there is one.

use std::time::Duration;

use libtest_mimic::Trial;
use sea_orm::{ConnectionTrait, Database, DatabaseConnection};
use serde_json::json;

use crate::harness::{Hello, Options, Outcome, Server, follow, trial_with};

pub fn trials() -> Vec<Trial> {
    vec![trial_with("postgres", "a_deploy_survives_a_kill_of_the_server", reachable(), deploy_and_kill)]
}

/// Says where a PostgreSQL database is in which schemas may be made.
const URL: &str = "GENNAKER_TEST_DATABASE_URL";

fn url() -> String {
    std::env::var(URL).unwrap_or_else(|_| "postgres://postgres@127.0.0.1:5432/test".to_owned())
}

fn reachable() -> Result<(), String> {
    let missing = |error: String| format!("a PostgreSQL server at {URL} ({error})");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| missing(error.to_string()))?;
    runtime.block_on(async {
        let connection = tokio::time::timeout(Duration::from_secs(5), Database::connect(url())).await;
        match connection {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(missing(error.to_string())),
            Err(_) => Err(missing("no answer within 5 s".to_owned())),
        }
    })
}

/// A schema of the trial's own, removed at its end.
async fn with_schema(run: impl AsyncFnOnce(String) -> Outcome) -> Outcome {
    let name = format!("it_{}", uuid::Uuid::new_v4().simple());
    let admin: DatabaseConnection = Database::connect(url()).await?;
    admin.execute_unprepared(&format!("CREATE SCHEMA {name}")).await?;
    let outcome = run(format!("{}?options=-csearch_path%3D{name}", url())).await;
    admin.execute_unprepared(&format!("DROP SCHEMA {name} CASCADE")).await?;
    outcome
}

async fn deploy_and_kill() -> Outcome {
    with_schema(async |url| {
        let mut server = Server::start_with(Options { database_url: Some(url), ..Options::default() }).await?;
        let hello = Hello::create(&server).await?;
        hello.deploy("1.0.0").await?.succeeded()?;
        let load = hello.load(100, false);
        let execution = hello.start("deploy hello", json!({ "version": "2.0.0" })).await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
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
