//! Transitions per second and the delay from one stage's end to the next one's first effect, on
//! SQLite, beside a bare batched loop of the same rows and the disk's own fsync.

use std::collections::HashMap;
use std::io::{Seek, Write as _};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use gennaker::clock::Clock;
use gennaker::engine::contract::{Effect, Next, Registry, Repeat, Stage, StepContext, StepError};
use gennaker::engine::{Engine, Options};
use gennaker::model::{Execution, ExecutionId, OnFailure, Status};
use gennaker::store::{Commit, Durability, Store, Write};
use sea_orm::{ConnectionTrait, Database, Statement, TransactionTrait, Value};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::figures::{head, line, ms, note, percentile};

const EXECUTIONS: usize = 500;
const STAGES: usize = 20;

/// When each execution's last stage ended, and the delays seen.
#[derive(Default)]
struct Delays {
    ended: Mutex<HashMap<ExecutionId, Instant>>,
    seen: Mutex<Vec<Duration>>,
}

/// A stage that ends at once, with or without an effect.
struct Tick {
    delays: Arc<Delays>,
    effect: bool,
}

#[derive(serde::Deserialize)]
struct Empty {}

impl Stage for Tick {
    const KIND: &'static str = "tick";
    const TITLE: &'static str = "Tick";
    const DESCRIPTION: &'static str = "Ends at once.";
    type Config = Empty;
    type Cursor = ();

    fn schema(&self) -> serde_json::Value {
        json!({ "type": "object" })
    }
    fn example(&self) -> serde_json::Value {
        json!({})
    }
    fn tasks(&self, _: &Empty) -> Vec<&'static str> {
        Vec::new()
    }
    fn task(&self, (): &()) -> usize {
        0
    }
    async fn step(&self, cx: &StepContext, _: &Empty, (): ()) -> Result<Next<()>, StepError> {
        if self.effect {
            let execution = cx.execution().id;
            let effect =
                Effect { key: "tick", what: "tick".into(), repeat: Repeat::Keyed, timeout: Duration::from_secs(5) };
            let delays = &self.delays;
            let called = cx
                .effect(effect, |_| async move {
                    if let Some(ended) = delays.ended.lock().expect("not poisoned").get(&execution) {
                        delays.seen.lock().expect("not poisoned").push(ended.elapsed());
                    }
                    Ok::<(), std::convert::Infallible>(())
                })
                .await;
            if called.is_err() {
                return Err(StepError::fail("EFFECT", "the effect was not made"));
            }
            self.delays.ended.lock().expect("not poisoned").insert(execution, Instant::now());
        }
        Ok(Next::Done(json!({})))
    }
}

pub async fn run() {
    head(&format!("engine: {EXECUTIONS} executions in flight, {STAGES} stages each, SQLite"));
    for durability in [Durability::Full, Durability::Normal] {
        // In turns, so that both meet the same moods of the machine; the middle one of each.
        let (mut bares, mut quick, mut rates) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..3 {
            bares.push(bare_loop(durability, false).await);
            quick.push(bare_loop(durability, true).await);
            rates.push(transitions(durability, false).await.0);
        }
        let (bare, quick, rate) = (middle(&mut bares), middle(&mut quick), middle(&mut rates));
        let bar = if durability == Durability::Full { 2_000.0 } else { 5_000.0 };
        line(
            &format!("transitions/s, synchronous={durability:?}"),
            &format!("{rate:.0}/s"),
            &format!("≥ {bar:.0}/s on an idle machine"),
            rate >= bar,
        );
        line(
            &format!("  beside a bare batched loop of the same rows ({bare:.0}/s)"),
            &format!("{:.0} %", rate / bare * 100.0),
            "≥ 40 % (aim 60 %)",
            rate >= bare * 0.4,
        );
        note(
            &format!("  beside the same loop with all rows of a table in one statement ({quick:.0}/s)"),
            &format!("{:.0} %", rate / quick * 100.0),
        );
        let dir = tempdir("fsync");
        let fsync = fsync_p99(&dir);
        let mut delays = paced(durability, rate * 0.2).await;
        let p99 = percentile(&mut delays, 0.99);
        let p50 = percentile(&mut delays, 0.5);
        let bar = if durability == Durability::Full {
            fsync * 2 + Duration::from_millis(2)
        } else {
            Duration::from_millis(5)
        };
        line(
            &format!("  stage's end to next effect at 20 % of the rate, p50 {} p99", ms(p50)),
            &ms(p99),
            &format!("< {} (fsync p99 {})", ms(bar), ms(fsync)),
            p99 < bar,
        );
    }
}

fn middle(figures: &mut [f64]) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Stage changes per second, and the delays where effects were made.
async fn transitions(durability: Durability, effect: bool) -> (f64, Vec<Duration>) {
    let bench = Bench::open(durability, effect).await;
    let mut ids = Vec::new();
    for _ in 0..EXECUTIONS {
        ids.push(bench.start().await);
    }
    let begun = Instant::now();
    let stop = CancellationToken::new();
    let running = tokio::spawn({
        let (engine, stop) = (bench.engine.clone(), stop.clone());
        async move { engine.run(stop).await }
    });
    bench.wait_for_all(&ids).await;
    let took = begun.elapsed().as_secs_f64();
    stop.cancel();
    let _ = running.await;
    let delays = bench.delays.seen.lock().expect("not poisoned").clone();
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let rate = (EXECUTIONS * STAGES * 2) as f64 / took;
    (rate, delays)
}

/// How long executions start before delays are counted: by then the write-ahead log has its size,
/// as on a server that has run for a while.
const WARM_UP: Duration = Duration::from_secs(4);

/// The delays when executions start evenly so that `rate` transitions happen in a second.
async fn paced(durability: Durability, rate: f64) -> Vec<Duration> {
    let bench = Bench::open(durability, true).await;
    let stop = CancellationToken::new();
    let running = tokio::spawn({
        let (engine, stop) = (bench.engine.clone(), stop.clone());
        async move { engine.run(stop).await }
    });
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let gap = Duration::from_secs_f64((STAGES * 2) as f64 / rate);
    let mut ids = Vec::new();
    let mut due = tokio::time::interval(gap);
    let warm = Instant::now() + WARM_UP;
    let until = warm + Duration::from_secs(8);
    let mut counted = false;
    while Instant::now() < until {
        due.tick().await;
        ids.push(bench.start().await);
        if !counted && Instant::now() > warm {
            counted = true;
            bench.delays.seen.lock().expect("not poisoned").clear();
        }
    }
    bench.wait_for_all(&ids).await;
    stop.cancel();
    let _ = running.await;
    bench.delays.seen.lock().expect("not poisoned").clone()
}

struct Bench {
    store: Store,
    engine: Engine,
    delays: Arc<Delays>,
    application: gennaker::model::Application,
    clock: Clock,
    _dir: Dir,
}

impl Bench {
    async fn open(durability: Durability, effect: bool) -> Self {
        let dir = tempdir("engine");
        let clock = Clock::system();
        let options =
            gennaker::store::Options { database_url: None, data_dir: dir.0.clone(), durability, queue_max: 4096 };
        let store = Store::open(&options, clock.clone()).await.expect("a new database opens");
        let delays = Arc::new(Delays::default());
        let registry = Registry::default().with(Tick { delays: delays.clone(), effect });
        let engine =
            Engine::new(Options { sole_owner: true, ..Options::default() }, store.clone(), registry, clock.clone());
        let application = example_application(clock.now());
        let commit = Commit { writes: vec![Write::InsertApplication(application.clone())], ..Commit::default() };
        store.commit(commit).await.expect("the application is new");
        Self { store, engine, delays, application, clock, _dir: dir }
    }

    async fn start(&self) -> ExecutionId {
        let execution = example_execution(&self.application, STAGES, self.clock.now());
        let id = execution.id;
        let commit = Commit { writes: vec![Write::InsertExecution(Box::new(execution))], ..Commit::default() };
        self.store.commit(commit).await.expect("the execution is new");
        id
    }

    async fn wait_for_all(&self, ids: &[ExecutionId]) {
        let last = Instant::now() + Duration::from_secs(180);
        for id in ids {
            loop {
                let execution = self.store.execution(*id).await.expect("readable").expect("there");
                if execution.status.is_complete() {
                    assert_eq!(execution.status, Status::Succeeded, "{:?}", execution.failure);
                    break;
                }
                assert!(Instant::now() < last, "execution {id} does not end");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
}

/// An application to own executions.
pub fn example_application(now: DateTime<Utc>) -> gennaker::model::Application {
    gennaker::model::Application {
        id: gennaker::model::ApplicationId::new(),
        name: "bench".into(),
        description: String::new(),
        email: None,
        created_at: now,
        updated_at: now,
        version: 1,
    }
}

/// An execution whose stages run one after the other.
pub fn example_execution(application: &gennaker::model::Application, stages: usize, now: DateTime<Utc>) -> Execution {
    let id = ExecutionId::new();
    Execution {
        id,
        kind: gennaker::model::ExecutionKind::Operation,
        application: application.id,
        application_name: application.name.clone(),
        pipeline: None,
        name: "bench".into(),
        revision: 0,
        number: 0,
        status: Status::NotStarted,
        version: 1,
        event_seq: 0,
        started_by: gennaker::model::PrincipalId::new(),
        started_by_name: "bench".into(),
        trigger: None,
        parameters: json!({}),
        notifications: Vec::new(),
        cancel: None,
        failure: None,
        created_at: now,
        started_at: None,
        ended_at: None,
        deadline: now + chrono::TimeDelta::hours(1),
        stages: (0..stages).map(|place| stage(id, place)).collect(),
    }
}

fn stage(execution: ExecutionId, place: usize) -> gennaker::model::Stage {
    let requires = if place == 0 { Vec::new() } else { vec![format!("s{}", place - 1)] };
    gennaker::model::Stage {
        id: gennaker::model::StageId::new(),
        execution,
        key: format!("s{place}"),
        parent: None,
        phase: gennaker::model::Phase::Body,
        kind: "tick".into(),
        name: format!("Tick {place}"),
        requires,
        on_failure: OnFailure::FailPipeline,
        position: i64::try_from(place).expect("few stages"),
        attempt: 1,
        status: Status::NotStarted,
        config: json!({}),
        resolved: None,
        cursor: serde_json::Value::Null,
        wake: gennaker::model::Wake::Now,
        retries: 0,
        outputs: json!({}),
        progress: None,
        tasks: Vec::new(),
        failure: None,
        unwinding: None,
        timeout_seconds: 600,
        deadline: None,
        started_at: None,
        ended_at: None,
    }
}

/// A loop over one connection that writes the rows of the same transitions, 64 commits of the
/// engine to a transaction, and does nothing else: each commit is one execution row and, for the
/// stage that ends and the one that starts, a row and an event of about 500 bytes each. A statement
/// a row, or all rows of a table at once, as the engine's writer sends them.
async fn bare_loop(durability: Durability, at_once: bool) -> f64 {
    let dir = tempdir("bare");
    let url = format!("sqlite://{}?mode=rwc", dir.0.join("bare.db").display());
    let mut options = sea_orm::ConnectOptions::new(url);
    options.max_connections(1).sqlx_logging(false);
    let db = Database::connect(options).await.expect("a new database opens");
    let synchronous = if durability == Durability::Full { "FULL" } else { "NORMAL" };
    for sql in [
        "PRAGMA journal_mode=WAL",
        &format!("PRAGMA synchronous={synchronous}"),
        "CREATE TABLE execution (id BLOB PRIMARY KEY, status TEXT, version INTEGER, event_seq INTEGER, wake_at INTEGER, body TEXT)",
        "CREATE TABLE stage (id BLOB PRIMARY KEY, execution BLOB, status TEXT, body TEXT)",
        "CREATE TABLE event (position INTEGER PRIMARY KEY, stream BLOB, seq INTEGER, at INTEGER, body TEXT, UNIQUE (stream, seq))",
    ] {
        db.execute_unprepared(sql).await.expect("plain SQL");
    }
    let body = "x".repeat(500);
    let statement =
        |sql: &str, values: Vec<Value>| Statement::from_sql_and_values(sea_orm::DatabaseBackend::Sqlite, sql, values);
    let executions: Vec<uuid::Uuid> = (0..EXECUTIONS).map(|_| uuid::Uuid::now_v7()).collect();
    let stages: Vec<uuid::Uuid> = (0..EXECUTIONS * STAGES).map(|_| uuid::Uuid::now_v7()).collect();
    let transaction = db.begin().await.expect("begins");
    for id in &executions {
        let values = vec![(*id).into(), body.clone().into()];
        let sql = "INSERT INTO execution VALUES (?, 'RUNNING', 1, 0, 0, ?)";
        transaction.execute_raw(statement(sql, values)).await.expect("inserts");
    }
    for (place, id) in stages.iter().enumerate() {
        let values = vec![(*id).into(), executions[place / STAGES].into(), body.clone().into()];
        transaction
            .execute_raw(statement("INSERT INTO stage VALUES (?, ?, 'NOT_STARTED', ?)", values))
            .await
            .expect("inserts");
    }
    transaction.commit().await.expect("commits");

    let begun = Instant::now();
    let mut seqs = vec![0i64; EXECUTIONS];
    let mut commits = (0..STAGES).flat_map(|stage| (0..EXECUTIONS).map(move |execution| (stage, execution))).peekable();
    while commits.peek().is_some() {
        let transaction = db.begin().await.expect("begins");
        let (mut advanced, mut changed, mut appended) = (Vec::new(), Vec::new(), Vec::new());
        for (stage, execution) in commits.by_ref().take(64) {
            let id = executions[execution];
            advanced.push(vec![id.into(), body.clone().into()]);
            for status in ["SUCCEEDED", "RUNNING"] {
                let row =
                    vec![stages[execution * STAGES + stage].into(), id.into(), status.into(), body.clone().into()];
                changed.push(row);
                seqs[execution] += 1;
                appended.push(vec![id.into(), seqs[execution].into(), 0.into(), body.clone().into()]);
            }
        }
        for (rows, before, after) in [
            (
                advanced,
                "UPDATE execution SET version = version + 1, event_seq = event_seq + 2, body = new.column2 FROM (VALUES",
                ") AS new WHERE id = new.column1",
            ),
            (
                changed,
                "INSERT INTO stage (id, execution, status, body) VALUES",
                " ON CONFLICT (id) DO UPDATE SET status = excluded.status, body = excluded.body",
            ),
            (appended, "INSERT INTO event (stream, seq, at, body) VALUES", ""),
        ] {
            let at_once = if at_once { rows.len() } else { 1 };
            for rows in rows.chunks(at_once) {
                let marks = format!("({})", vec!["?"; rows[0].len()].join(","));
                let sql = format!("{before} {}{after}", vec![marks; rows.len()].join(","));
                let values: Vec<Value> = rows.iter().flatten().cloned().collect();
                transaction.execute_raw(statement(&sql, values)).await.expect("writes");
            }
        }
        transaction.commit().await.expect("commits");
    }
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let rate = (EXECUTIONS * STAGES * 2) as f64 / begun.elapsed().as_secs_f64();
    rate
}

/// The 99th percentile of writing 4 KiB and fsync, over 500 times.
fn fsync_p99(dir: &Dir) -> Duration {
    let mut file = std::fs::File::create(dir.0.join("fsync")).expect("a new file");
    let block = [7u8; 4096];
    let mut samples = Vec::new();
    for _ in 0..500 {
        let begun = Instant::now();
        file.seek(std::io::SeekFrom::Start(0)).expect("seeks");
        file.write_all(&block).expect("writes");
        file.sync_data().expect("syncs");
        samples.push(begun.elapsed());
    }
    percentile(&mut samples, 0.99)
}

/// A directory that goes with its owner.
pub struct Dir(pub std::path::PathBuf);

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl AsRef<Path> for Dir {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

/// A new directory beside the build's output, on the disk that is measured.
pub fn tempdir(what: &str) -> Dir {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("bench-{what}-{}", uuid::Uuid::now_v7().simple()));
    std::fs::create_dir_all(&path).expect("the build's directory is writable");
    Dir(path)
}
