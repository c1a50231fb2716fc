//! What the engine costs, beside what the disk and SQLite allow in the same run: transitions per
//! second with 500 executions in flight, and the time from a stage's end to the next one's first
//! effect. `cargo bench --bench engine [-- --quick]`
//!
//! A transition is one committed change of a stage's status with its event and its execution's
//! version.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use gennaker::app::local_actor;
use gennaker::clock::Clock;
use gennaker::engine::commands::{Commands, SaveApplication, SavePipeline, StartPipeline};
use gennaker::engine::contract::{Effect, EffectError, Next, Registry, Repeat, Stage, StepContext, StepError};
use gennaker::engine::{self, Engine};
use gennaker::model::{Actor, ExecutionId, PipelineDefinition, PipelineId};
use gennaker::store::{Durability, ExecutionFilter, Options, PageRequest, Store};
use sea_orm::sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sea_orm::sqlx::{ConnectOptions as _, Connection as _, Row as _, query};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// Stages of one execution, one after the other.
const STAGES: usize = 20;
/// Executions in flight.
const EXECUTIONS: usize = 500;
/// Transitions in one transaction of the bare loop.
const BATCH: usize = 100;

fn main() -> anyhow::Result<()> {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let executions = if quick { 50 } else { EXECUTIONS };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    println!("{executions} executions of {STAGES} stages in flight");
    for durability in [Durability::Full, Durability::Normal] {
        runtime.block_on(measure(durability, executions))?;
    }
    Ok(())
}

async fn measure(durability: Durability, executions: usize) -> anyhow::Result<()> {
    let dir = std::env::temp_dir().join(format!("gennaker-bench-{}", uuid::Uuid::new_v4().simple()));
    let fsync = fsync_p99(&dir.with_extension("fsync"))?;
    let ground = Ground::open(&dir, durability).await?;

    let rate = transitions(&ground, executions).await?;
    let gaps = gaps(&ground, rate * 0.2).await?;
    ground.store.close().await;
    let bare = bare_loop(&dir, durability).await?;
    std::fs::remove_dir_all(&dir)?;

    println!("{durability:?}");
    println!("  transitions            {rate:>10.0} /s   {:.0} % of the bare loop", rate / bare * 100.0);
    println!("  bare batched SQLite    {bare:>10.0} /s   {BATCH} transitions a transaction");
    println!("  stage end → effect     {:>10.2} ms  p99 at 20 % of that rate (p50 {:.2} ms)", gaps.1, gaps.0);
    println!("  fsync                  {:>10.2} ms  p99", fsync.as_secs_f64() * 1e3);
    Ok(())
}

/// A store with an engine's makings, and a pipeline of probes.
struct Ground {
    store: Store,
    clock: Clock,
    actor: Actor,
    probe: Probe,
    pipeline: PipelineId,
}

impl Ground {
    async fn open(dir: &Path, durability: Durability) -> anyhow::Result<Self> {
        let clock = Clock::system();
        let options = Options { database_url: None, data_dir: dir.to_owned(), durability, queue_max: 4096 };
        let store = Store::open(&options, clock.clone()).await?;
        let actor = local_actor(&store, &clock).await?;
        let probe = Probe::default();
        let mut ground = Self { store, clock, actor, probe, pipeline: uuid::Uuid::nil().into() };
        let commands = ground.engine().commands();
        let application = SaveApplication { name: "bench".into(), description: String::new(), email: None };
        let application = commands.create_application(&ground.actor, application).await?;
        let stages: Vec<Value> = (0..STAGES)
            .map(|at| {
                let requires: Vec<_> = at.checked_sub(1).map(|before| format!("s{before}")).into_iter().collect();
                json!({ "key": format!("s{at}"), "kind": Probe::KIND, "requires": requires, "config": {} })
            })
            .collect();
        let definition: PipelineDefinition = serde_json::from_value(json!({ "stages": stages }))?;
        let save = SavePipeline {
            application: application.id,
            name: "probes".into(),
            definition,
            expected_revision: None,
        };
        ground.pipeline = commands.save_pipeline(&ground.actor, save).await?.id;
        Ok(ground)
    }

    fn engine(&self) -> Engine {
        let options = engine::Options { sole_owner: true, ..engine::Options::default() };
        let registry = Registry::default().with(self.probe.clone());
        Engine::new(options, self.store.clone(), registry, self.clock.clone())
    }

    async fn start(&self, commands: &Commands) -> anyhow::Result<()> {
        let start = StartPipeline { pipeline: self.pipeline, parameters: Value::Null, idempotency_key: None };
        commands.start_pipeline(&self.actor, start).await?;
        Ok(())
    }

    async fn unfinished(&self) -> anyhow::Result<u64> {
        use gennaker::model::Status;
        let filter = ExecutionFilter {
            statuses: vec![Status::NotStarted, Status::Running],
            ..ExecutionFilter::default()
        };
        let page = PageRequest { after: None, before: None, limit: 1, backward: false };
        Ok(self.store.executions(&filter, &page).await?.total)
    }
}

/// All executions wait; then the engine starts and runs them to their ends.
async fn transitions(ground: &Ground, executions: usize) -> anyhow::Result<f64> {
    let engine = ground.engine();
    let commands = engine.commands();
    for _ in 0..executions {
        ground.start(&commands).await?;
    }
    let stop = CancellationToken::new();
    let start = Instant::now();
    let running = tokio::spawn({
        let (engine, stop) = (engine.clone(), stop.clone());
        async move { engine.run(stop).await }
    });
    while ground.unfinished().await? > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let took = start.elapsed();
    stop.cancel();
    running.await??;
    // Each stage starts and ends.
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    Ok((executions * STAGES * 2) as f64 / took.as_secs_f64())
}

/// Executions are started at a steady pace; milliseconds (p50, p99) from a stage's end to the next
/// one's effect.
async fn gaps(ground: &Ground, transitions_per_second: f64) -> anyhow::Result<(f64, f64)> {
    let engine = ground.engine();
    let commands = engine.commands();
    let stop = CancellationToken::new();
    let running = tokio::spawn({
        let (engine, stop) = (engine.clone(), stop.clone());
        async move { engine.run(stop).await }
    });
    ground.probe.clear();
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    let per_second = transitions_per_second / (STAGES * 2) as f64;
    let mut pace = tokio::time::interval(Duration::from_secs_f64(1.0 / per_second.max(1.0)));
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(5) {
        pace.tick().await;
        ground.start(&commands).await?;
    }
    while ground.unfinished().await? > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stop.cancel();
    running.await??;
    let mut gaps = ground.probe.gaps();
    gaps.sort_unstable();
    anyhow::ensure!(!gaps.is_empty(), "no gap was measured");
    let at = |share: usize| gaps[(gaps.len() * share / 100).min(gaps.len() - 1)].as_secs_f64() * 1e3;
    Ok((at(50), at(99)))
}

/// A stage with one effect, which notes when it came and when the stage ended.
#[derive(Clone, Default)]
struct Probe {
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    ended: HashMap<ExecutionId, Instant>,
    gaps: Vec<Duration>,
}

impl Probe {
    fn with<T>(&self, look: impl FnOnce(&mut Seen) -> T) -> T {
        look(&mut self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    fn clear(&self) {
        self.with(|seen| *seen = Seen::default());
    }

    fn gaps(&self) -> Vec<Duration> {
        self.with(|seen| seen.gaps.clone())
    }
}

#[derive(Deserialize)]
struct Nothing {}

impl Stage for Probe {
    const KIND: &'static str = "probe";
    const TITLE: &'static str = "Probe";
    const DESCRIPTION: &'static str = "Does nothing, and notes when.";
    type Config = Nothing;
    type Cursor = ();

    fn schema(&self) -> Value {
        json!({ "type": "object" })
    }
    fn example(&self) -> Value {
        json!({})
    }
    fn tasks(&self, _: &Nothing) -> Vec<&'static str> {
        vec!["probe"]
    }
    fn task(&self, (): &()) -> usize {
        0
    }
    async fn step(&self, cx: &StepContext, _: &Nothing, (): ()) -> Result<Next<()>, StepError> {
        let execution = cx.execution().id;
        let effect = Effect { key: "probe", what: "probe".into(), repeat: Repeat::Keyed, timeout: Duration::from_secs(9) };
        let made = cx.effect(effect, |_| async {
            self.with(|seen| {
                if let Some(ended) = seen.ended.remove(&execution) {
                    seen.gaps.push(ended.elapsed());
                }
            });
            Ok::<(), String>(())
        });
        made.await.map_err(|error: EffectError<String>| error.into_step(|why| StepError::fail("PROBE", why)))?;
        self.with(|seen| seen.ended.insert(execution, Instant::now()));
        Ok(Next::Done(json!({})))
    }
}

/// The same rows as the engine wrote, in large transactions on the same file, by one connection.
async fn bare_loop(dir: &Path, durability: Durability) -> anyhow::Result<f64> {
    let synchronous = match durability {
        Durability::Full => SqliteSynchronous::Full,
        Durability::Normal => SqliteSynchronous::Normal,
    };
    let mut db = SqliteConnectOptions::new()
        .filename(dir.join("gennaker.db"))
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(synchronous)
        .connect()
        .await?;
    let rows = query("SELECT stream, body FROM event ORDER BY position LIMIT 4000").fetch_all(&mut db).await?;
    let events: Vec<(Vec<u8>, String)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    let stages = query("SELECT id, execution_id, tasks FROM stage LIMIT 4000").fetch_all(&mut db).await?;
    let stages: Vec<(Vec<u8>, Vec<u8>, String)> =
        stages.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
    anyhow::ensure!(!events.is_empty() && !stages.is_empty(), "there are no rows to write again");
    let mut position: i64 = query("SELECT max(position) FROM event").fetch_one(&mut db).await?.get(0);
    let start = Instant::now();
    let mut count = 0_usize;
    while start.elapsed() < Duration::from_secs(3) {
        let mut transaction = db.begin().await?;
        for _ in 0..BATCH {
            let (stream, body) = &events[count % events.len()];
            let (stage, execution, tasks) = &stages[count % stages.len()];
            position += 1;
            query("UPDATE stage SET status = ?, ended_at = ?, tasks = ?, cursor = ?, wake = ?, outputs = ? WHERE id = ?")
                .bind("SUCCEEDED")
                .bind(position)
                .bind(tasks)
                .bind("null")
                .bind(r#"{"on":"now"}"#)
                .bind("{}")
                .bind(stage)
                .execute(&mut *transaction)
                .await?;
            query("INSERT INTO event (position, stream, seq, at, format, body) VALUES (?, ?, ?, ?, 1, ?)")
                .bind(position)
                .bind(stream)
                .bind(position + 1_000_000_000)
                .bind(position)
                .bind(body)
                .execute(&mut *transaction)
                .await?;
            query("UPDATE execution SET version = version + 1, event_seq = event_seq + 1, wake_at = NULL WHERE id = ?")
                .bind(execution)
                .execute(&mut *transaction)
                .await?;
            count += 1;
        }
        transaction.commit().await?;
    }
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    Ok(count as f64 / start.elapsed().as_secs_f64())
}

/// How long the disk takes to keep 4 KiB.
fn fsync_p99(path: &PathBuf) -> anyhow::Result<Duration> {
    let mut file = std::fs::File::create(path).context("a file for fsync")?;
    let mut times = Vec::new();
    for _ in 0..300 {
        let start = Instant::now();
        file.write_all(&[7; 4096])?;
        file.sync_data()?;
        times.push(start.elapsed());
    }
    std::fs::remove_file(path)?;
    times.sort_unstable();
    Ok(times[times.len() * 99 / 100])
}
