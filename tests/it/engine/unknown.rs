//! A COMMIT whose answer is lost, made or not: who sent it reads again, nothing is done twice, and
//! the execution goes on.

use std::collections::BTreeMap;

use gennaker::store::{Commit, CommitError, Guard, Write};
use libtest_mimic::Trial;

use super::*;
use crate::harness::{Cut, Fate};

pub fn trials() -> Vec<Trial> {
    vec![
        on_postgres("a_commit_without_an_answer_is_told_as_unknown_and_found_by_reading", told),
        on_postgres("an_execution_goes_on_whichever_commit_is_left_without_an_answer", goes_on),
    ]
}

/// The home's database through a proxy.
async fn through(home: &Home) -> anyhow::Result<(Cut, String)> {
    let (before, rest) = home.schema.url.split_once("://").ok_or_else(|| anyhow::anyhow!("no URL"))?;
    let (authority, path) = rest.split_once('/').ok_or_else(|| anyhow::anyhow!("no database in the URL"))?;
    let (user, host) = authority.rsplit_once('@').unwrap_or(("postgres", authority));
    let host = if host.rsplit_once(':').is_some() { host.to_owned() } else { format!("{host}:5432") };
    let cut = Cut::before(host).await?;
    // What is encrypted cannot be looked at.
    let url = format!("{before}://{user}@{}/{path}&sslmode=disable", cut.address);
    Ok((cut, url))
}

async fn told(home: &Home) -> Outcome {
    let (cut, url) = through(home).await?;
    let direct = home.replica("direct", options()).await?;
    let pipeline = direct.pipeline(home, vec![stage("a", &[], json!({ "steps": ["wait"] }))]).await?;
    let id = direct.begin(home, &pipeline).await?;
    let execution = direct.until(id, "the wait", waits).await?;
    let store = open(&url).await?;
    for (number, fate) in [Fate::Lost, Fate::Made].into_iter().enumerate() {
        let before = direct.read(id).await?;
        let after = Execution { version: before.version + 1, ..before.clone() };
        let intent = store::Intent {
            id: gennaker::model::IntentId::new(),
            execution: id,
            stage: execution.stages[0].id,
            attempt: 1,
            key: format!("cut-{number}"),
            what: "nothing".to_owned(),
            lease_number: 1,
            created_at: execution.created_at,
            deadline: execution.created_at,
            closed_at: None,
            outcome: None,
        };
        let commit = Commit {
            guards: vec![Guard::ExecutionVersion { id, version: before.version }],
            writes: vec![
                Write::InsertIntent(intent.clone()),
                Write::UpdateExecution { execution: Box::new(after.clone()), wake_at: None },
            ],
            events: vec![],
        };
        cut.after(0, fate);
        let answer = store.commit(commit.clone()).await;
        anyhow::ensure!(matches!(answer, Err(CommitError::Unknown(_))), "{fate:?}: {answer:?}");
        anyhow::ensure!(cut.cuts() == number + 1, "{fate:?}: {} cuts", cut.cuts());
        // Reading says what became of it, over a new connection.
        let found = wait_for("a new connection", SOON, || async { store.execution(id).await.ok().flatten() }).await?;
        let intents = store.intents(id).await?;
        let is_there = intents.iter().any(|found| found.id == intent.id);
        anyhow::ensure!(is_there == (fate == Fate::Made), "{fate:?}: {intents:?}");
        anyhow::ensure!(found.version == if is_there { after.version } else { before.version }, "{fate:?}: {found:?}");
        // The same commit again is refused where it was made, and made where it was not.
        let again = store.commit(commit).await;
        let refused = matches!(again, Err(CommitError::Refused(_)));
        anyhow::ensure!(refused == is_there && (refused || again.is_ok()), "{fate:?}: {again:?}");
        let kept = store.intents(id).await?.into_iter().filter(|found| found.id == intent.id).count();
        anyhow::ensure!(kept == 1, "{fate:?}: it is there {kept} times");
    }
    store.close().await;
    direct.stop().await
}

async fn open(url: &str) -> anyhow::Result<Store> {
    let place = store::Options {
        database_url: Some(url.to_owned()),
        data_dir: std::env::temp_dir(),
        durability: store::Durability::Full,
        queue_max: 1_000,
    };
    Ok(Store::open(&place, Clock::system()).await?)
}

async fn goes_on(home: &Home) -> Outcome {
    let (cut, url) = through(home).await?;
    // It only takes commands; the work is done behind the proxy.
    let store = open(&home.schema.url).await?;
    let commands = Engine::new(options(), store.clone(), home.world.registry("asked"), Clock::system()).commands();
    let worker = home.replica_at("worker", options(), &url).await?;
    let call = |key: &str| json!({ "call": { "key": key } });
    let stages = vec![
        stage("a", &[], json!({ "steps": [call("x"), "goto", call("y")] })),
        stage("b", &["a"], json!({ "steps": [{ "spawn": ["z"] }] })),
    ];
    let pipeline = worker.pipeline(home, stages).await?;
    let mut seen = 0;
    for fate in [Fate::Lost, Fate::Made] {
        // Heartbeats commit too, so not every number hits the execution itself: enough do.
        for commits in 0..12 {
            let cuts = cut.cuts();
            cut.after(commits, fate);
            let start = StartPipeline { pipeline: pipeline.id, parameters: Value::Null, idempotency_key: None };
            let id = commands.start_pipeline(&home.actor, start).await?.execution.id;
            let execution = worker.over(id).await?;
            anyhow::ensure!(execution.status == Status::Succeeded, "{fate:?} after {commits}: {execution:?}");
            wait_for("the cut", SOON, || async { (cut.cuts() == cuts + 1).then_some(()) }).await?;
            let mut calls: BTreeMap<String, usize> = BTreeMap::new();
            for call in home.world.calls().split_off(seen) {
                seen += 1;
                *calls.entry(call.ticket.operation).or_default() += 1;
            }
            let once = calls.len() == 3 && calls.values().all(|count| *count == 1);
            anyhow::ensure!(once, "{fate:?} after {commits}: each call is made once: {calls:?}");
        }
    }
    worker.stop().await?;
    store.close().await;
    Ok(())
}
