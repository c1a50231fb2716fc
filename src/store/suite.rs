//! The store suite: the same tests on SQLite (in a directory of its own) and PostgreSQL (in a
//! schema of its own; skipped, saying so, where none can be reached).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{ConnectionTrait, Database, DatabaseConnection};
use serde_json::{Value, json};
use uuid::Uuid;

use super::*;
use crate::model::{
    Action, Application, AuditId, AuditRow, Cancel, CancelMode, EventBody, Execution, Failure, IntentId, Notification,
    NotificationId, NotificationRule, Occasion, OnFailure, Phase, Pipeline, PipelineDefinition, Place, Principal,
    PrincipalId, PrincipalKind, Progress, Resource, Revision, Role, Stage, StageId, Task, Token, TokenId, Unwinding,
    Wake,
};

// --- the two databases -----------------------------------------------------------------------------

/// A database of the test's own, gone with it.
struct Home {
    store: Store,
    options: Options,
    clock: Clock,
    schema: Option<(DatabaseConnection, String)>,
}

const POSTGRES: &str = "postgres://postgres@127.0.0.1:5432/test";

fn start() -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 123_456_000).expect("an instant")
}

fn directory() -> PathBuf {
    std::env::temp_dir().join(format!("gennaker-store-{}", Uuid::new_v4().simple()))
}

impl Home {
    async fn sqlite() -> Self {
        let options =
            Options { database_url: None, data_dir: directory(), durability: Durability::Normal, queue_max: 4096 };
        let clock = Clock::manual(start());
        let store = Store::open(&options, clock.clone()).await.expect("opens");
        Self { store, options, clock, schema: None }
    }

    async fn postgres() -> Option<Self> {
        let url = std::env::var("GENNAKER_TEST_DATABASE_URL").unwrap_or_else(|_| POSTGRES.to_owned());
        let admin = match Database::connect(&url).await {
            Ok(admin) => admin,
            Err(error) => {
                eprintln!("skipped on PostgreSQL: {url} cannot be reached: {error}");
                return None;
            }
        };
        let schema = format!("t{}", Uuid::new_v4().simple());
        admin.execute_unprepared(&format!("CREATE SCHEMA {schema}")).await.expect("a schema");
        let options = Options {
            database_url: Some(format!("{url}?options=-csearch_path%3D{schema}")),
            data_dir: directory(),
            durability: Durability::Full,
            queue_max: 4096,
        };
        let clock = Clock::manual(start());
        let store = Store::open(&options, clock.clone()).await.expect("opens");
        Some(Self { store, options, clock, schema: Some((admin, schema)) })
    }

    async fn end(self) {
        self.store.close().await;
        match self.schema {
            Some((admin, schema)) => {
                admin.execute_unprepared(&format!("DROP SCHEMA {schema} CASCADE")).await.expect("dropped");
            }
            None => std::fs::remove_dir_all(&self.options.data_dir).expect("removed"),
        }
    }
}

/// One test, as `sqlite::name` and `postgresql::name`.
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let place = super::Home::sqlite().await;
                super::$name(&place).await;
                place.end().await;
            })*
        }
        mod postgresql {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                if let Some(place) = super::Home::postgres().await {
                    super::$name(&place).await;
                    place.end().await;
                }
            })*
        }
    };
}

on_both!(
    an_execution_reads_back_as_it_was_written,
    a_stage_reads_back_as_it_was_written,
    a_stale_version_is_refused_and_changes_nothing,
    a_refused_commit_touches_no_other,
    a_commit_that_breaks_a_constraint_fails_alone,
    parallel_starts_are_numbered_without_gaps,
    operations_are_numbered_within_the_application,
    parallel_starts_under_one_key_give_one_execution,
    streams_are_gapless_and_positions_in_commit_order,
    a_lease_is_taken_over_when_its_owner_is_forgotten,
    due_executions_are_those_i_may_work_on,
    a_cluster_is_held_in_order_of_arrival,
    a_name_is_reserved_once,
    lists_page_both_ways,
    executions_are_filtered,
    names_are_unique,
    an_application_with_running_executions_is_not_deleted,
    a_revision_is_kept_and_the_newest_is_guarded,
    intents_are_kept_and_closed,
    notices_follow_commits,
    principals_and_tokens_read_back,
    pruning_takes_what_has_ended_and_leaves_the_rest,
    a_newer_schema_is_refused,
    the_epoch_stays,
    a_closed_store_refuses_commits,
    the_notifications_stream_is_numbered_by_the_writer,
);

// --- things to write ---------------------------------------------------------------------------------

fn application(name: &str) -> Application {
    Application {
        id: ApplicationId::new(),
        name: name.to_owned(),
        description: "ünïcode 🚀 'quoted' \"double\" \\ back".to_owned(),
        email: None,
        created_at: start(),
        updated_at: start(),
        version: 1,
    }
}

fn pipeline(application: &Application, name: &str) -> (Pipeline, Revision) {
    let pipeline = Pipeline {
        id: PipelineId::new(),
        application: application.id,
        application_name: application.name.clone(),
        name: name.to_owned(),
        revision: 1,
        definition: PipelineDefinition { format_version: 1, description: "d".to_owned(), ..Default::default() },
        created_at: start(),
        updated_at: start(),
    };
    let revision = Revision {
        pipeline: pipeline.id,
        number: 1,
        definition: pipeline.definition.clone(),
        created_at: start(),
        created_by: PrincipalId::new(),
        created_by_name: "ann".to_owned(),
    };
    (pipeline, revision)
}

fn stage(execution: ExecutionId, position: i64) -> Stage {
    Stage {
        id: StageId::new(),
        execution,
        key: format!("s{position}"),
        parent: None,
        phase: Phase::Body,
        kind: "wait".to_owned(),
        name: "Wait".to_owned(),
        requires: Vec::new(),
        on_failure: OnFailure::FailPipeline,
        position,
        attempt: 1,
        status: Status::NotStarted,
        config: json!({"seconds": 1}),
        resolved: None,
        cursor: Value::Null,
        wake: Wake::Now,
        retries: 0,
        outputs: json!({}),
        progress: None,
        tasks: Vec::new(),
        failure: None,
        unwinding: None,
        timeout_seconds: 60,
        deadline: None,
        started_at: None,
        ended_at: None,
    }
}

fn execution(application: &Application, pipeline: Option<&Pipeline>, stages: i64) -> Execution {
    let id = ExecutionId::new();
    Execution {
        id,
        kind: if pipeline.is_some() { ExecutionKind::Pipeline } else { ExecutionKind::Operation },
        application: application.id,
        application_name: application.name.clone(),
        pipeline: pipeline.map(|pipeline| pipeline.id),
        name: "release".to_owned(),
        revision: 1,
        number: 0,
        status: Status::NotStarted,
        version: 1,
        event_seq: 0,
        started_by: PrincipalId::new(),
        started_by_name: "ann".to_owned(),
        parameters: json!({}),
        notifications: Vec::new(),
        cancel: None,
        failure: None,
        created_at: start(),
        started_at: None,
        ended_at: None,
        deadline: start() + TimeDelta::hours(1),
        stages: (0..stages).map(|position| stage(id, position)).collect(),
    }
}

fn write(writes: Vec<Write>) -> Commit {
    Commit { writes, ..Commit::default() }
}

/// An application with a pipeline, stored.
async fn ground(store: &Store, name: &str) -> (Application, Pipeline) {
    let application = application(name);
    let (pipeline, revision) = pipeline(&application, "release");
    let writes = vec![
        Write::InsertApplication(application.clone()),
        Write::InsertPipeline { pipeline: Box::new(pipeline.clone()), revision: Box::new(revision) },
    ];
    store.commit(write(writes)).await.expect("committed");
    (application, pipeline)
}

async fn insert(store: &Store, execution: &Execution) -> Execution {
    store.commit(write(vec![Write::InsertExecution(Box::new(execution.clone()))])).await.expect("committed");
    store.execution(execution.id).await.expect("read").expect("is there")
}

/// The next state of an execution, with its event, as the engine commits it.
fn next(execution: &Execution, change: impl FnOnce(&mut Execution)) -> (Commit, Execution) {
    let mut changed = execution.clone();
    changed.version += 1;
    changed.event_seq += 1;
    change(&mut changed);
    let commit = Commit {
        guards: vec![Guard::ExecutionVersion { id: execution.id, version: execution.version }],
        writes: vec![Write::UpdateExecution { execution: Box::new(changed.clone()), wake_at: None }],
        events: vec![NewEvent {
            stream: StreamId::Execution(execution.id),
            seq: Some(changed.event_seq),
            at: start(),
            body: event_execution(&changed),
        }],
    };
    (commit, changed)
}

fn first(limit: u64) -> PageRequest {
    PageRequest { after: None, before: None, limit, backward: false }
}

fn place() -> Place {
    Place { account: "local".to_owned(), location: "local".to_owned() }
}

// --- tests ---------------------------------------------------------------------------------------------

async fn an_execution_reads_back_as_it_was_written(at: &Home) {
    let (application, pipeline) = ground(&at.store, "hello").await;
    let mut given = execution(&application, Some(&pipeline), 3);
    given.name = "naïve 🚀 \u{202e} 'x' \"y\" $1 ? %".to_owned();
    given.parameters = json!({"z": 1, "a": [1.5, null, "\u{0000}", {"ü": true}], "big": 9_007_199_254_740_993_i64});
    given.notifications = vec![NotificationRule { on: vec![Occasion::Failed, Occasion::ApprovalNeeded] }];
    given.stages[1].config = json!({"text": "x".repeat(256 * 1024)});
    let read = insert(&at.store, &given).await;
    given.number = 1;
    given.event_seq = 4;
    assert_eq!(read, given);

    let failure = Failure {
        code: "TIMEOUT".to_owned(),
        message: "m".repeat(5000),
        hint: None,
        stage: Some(given.stages[0].id),
        cause: Some("cause\n".to_owned()),
        attempt: 2,
        retryable: true,
        log_tail: Some("tail".to_owned()),
    };
    let (commit, changed) = next(&read, |execution| {
        execution.status = Status::Canceled;
        execution.started_at = Some(start() + TimeDelta::microseconds(1));
        execution.ended_at = Some(start() + TimeDelta::seconds(2));
        execution.deadline = start() - TimeDelta::days(20_000);
        execution.failure = Some(failure.clone());
        execution.cancel = Some(Cancel {
            by: PrincipalId::new(),
            by_name: "bo".to_owned(),
            at: start(),
            reason: "no".to_owned(),
            mode: CancelMode::Leave,
        });
    });
    at.store.commit(commit).await.expect("committed");
    assert_eq!(at.store.execution(given.id).await.expect("read"), Some(changed.clone()));
    assert_eq!(at.store.execution_by_number(application.id, Some(pipeline.id), 1).await.expect("read"), Some(changed));
    let (snapshot, seq) = at.store.execution_snapshot(given.id).await.expect("read").expect("is there");
    assert_eq!((snapshot.event_seq, seq), (5, 5));
    // The pipeline goes; the execution stays and says so.
    at.store.commit(write(vec![Write::DeletePipeline(pipeline.id)])).await.expect("committed");
    assert_eq!(at.store.execution(given.id).await.expect("read").expect("is there").pipeline, None);
}

async fn a_stage_reads_back_as_it_was_written(at: &Home) {
    let (application, pipeline) = ground(&at.store, "hello").await;
    let stored = insert(&at.store, &execution(&application, Some(&pipeline), 2)).await;
    let mut full = stage(stored.id, 2);
    full.parent = Some(stored.stages[0].id);
    full.phase = Phase::Unwind;
    full.requires = vec!["a".to_owned(), "b".to_owned()];
    full.on_failure = OnFailure::StopBranchThenFail;
    full.attempt = 7;
    full.status = Status::FailedContinue;
    full.resolved = Some(Value::Null);
    full.cursor = json!({"state": "waiting", "n": -1});
    full.wake = Wake::Signal { name: "judge".to_owned(), until: start(), payload: Some(json!({"proceed": true})) };
    full.retries = 3;
    full.outputs = json!({"o": "x".repeat(1024 * 1024)});
    full.progress = Some(Progress {
        completed: 2,
        total: 3,
        unit: "instances".to_owned(),
        message: "2 of 3 healthy".to_owned(),
        updated_at: start(),
    });
    full.tasks = vec![Task { name: "t".to_owned(), status: Status::Running, started_at: Some(start()), ended_at: None }];
    full.unwinding = Some(Unwinding { then: Status::Failed, deadline: start() });
    full.deadline = Some(start());
    full.started_at = Some(start());
    full.ended_at = Some(start());
    // Inserted, replaced within one commit, replaced by another: the last counts each time.
    let writes = vec![Write::PutStage(Box::new(stage(stored.id, 3))), Write::PutStage(Box::new(full.clone()))];
    at.store.commit(write(writes)).await.expect("committed");
    assert_eq!(at.store.stage(full.id).await.expect("read"), Some(full.clone()));
    let mut plain = full.clone();
    plain.resolved = None;
    plain.progress = None;
    plain.wake = Wake::At { at: start(), topic: None };
    let writes = vec![Write::PutStage(Box::new(full)), Write::PutStage(Box::new(plain.clone()))];
    at.store.commit(write(writes)).await.expect("committed");
    assert_eq!(at.store.stage(plain.id).await.expect("read"), Some(plain.clone()));
    let positions: Vec<i64> =
        at.store.execution(stored.id).await.expect("read").expect("there").stages.iter().map(|s| s.position).collect();
    assert_eq!(positions, [0, 1, 2, 3]);
    assert_eq!(at.store.stages(&[stored.id]).await.expect("read").len(), 4);
    // Its event is small.
    let EventBody::StageChanged { stage } = event_stage(&plain) else { panic!("a stage's event") };
    assert_eq!((stage.config, stage.resolved, stage.cursor), (Value::Null, None, Value::Null));
}

async fn a_stale_version_is_refused_and_changes_nothing(at: &Home) {
    let (application, pipeline) = ground(&at.store, "hello").await;
    let stored = insert(&at.store, &execution(&application, Some(&pipeline), 1)).await;
    let (won, after) = next(&stored, |execution| execution.status = Status::Running);
    let (lost, _) = next(&stored, |execution| execution.status = Status::Failed);
    at.store.commit(won).await.expect("committed");
    let guard = Guard::ExecutionVersion { id: stored.id, version: 1 };
    match at.store.commit(lost).await {
        Err(CommitError::Refused(refusal)) => assert_eq!(refusal.guard, guard),
        other => panic!("expected a refusal, got {other:?}"),
    }
    assert_eq!(at.store.execution(stored.id).await.expect("read"), Some(after));
    assert_eq!(at.store.event_bounds(StreamId::Execution(stored.id)).await.expect("read"), (1, 3));
}

/// Twenty race for each of ten executions: each is won once, whoever else was in the batch.
async fn a_refused_commit_touches_no_other(at: &Home) {
    let (application, pipeline) = ground(&at.store, "hello").await;
    let mut tasks = tokio::task::JoinSet::new();
    let mut ids = Vec::new();
    for _ in 0..10 {
        let stored = insert(&at.store, &execution(&application, Some(&pipeline), 1)).await;
        ids.push(stored.id);
        for racer in 0..20 {
            let (mut commit, _) = next(&stored, |execution| execution.status = Status::Running);
            let mut stage = stored.stages[0].clone();
            stage.outputs = json!({"racer": racer});
            commit.writes.push(Write::PutStage(Box::new(stage)));
            let store = at.store.clone();
            tasks.spawn(async move { (commit.events[0].stream, racer, store.commit(commit).await) });
        }
    }
    let mut winners = BTreeMap::new();
    while let Some(done) = tasks.join_next().await {
        let (stream, racer, result) = done.expect("no panic");
        match result {
            Ok(_) => assert_eq!(winners.insert(stream.key(), racer), None, "two won"),
            Err(error) => assert!(matches!(error, CommitError::Refused(_)), "{error}"),
        }
    }
    assert_eq!(winners.len(), 10);
    for id in ids {
        let read = at.store.execution(id).await.expect("read").expect("there");
        assert_eq!((read.version, read.event_seq), (2, 3));
        assert_eq!(read.stages[0].outputs, json!({"racer": winners[&id.uuid()]}));
        assert_eq!(at.store.events(StreamId::Execution(id), 0, 100).await.expect("read").len(), 3);
    }
}

async fn a_commit_that_breaks_a_constraint_fails_alone(at: &Home) {
    let (application, pipeline) = ground(&at.store, "hello").await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..40 {
        let stored = insert(&at.store, &execution(&application, Some(&pipeline), 1)).await;
        let (mut commit, _) = next(&stored, |execution| execution.status = Status::Running);
        if n == 20 {
            // An event that is there already.
            commit.events[0].seq = Some(1);
        }
        let store = at.store.clone();
        tasks.spawn(async move { (n, stored.id, store.commit(commit).await) });
    }
    while let Some(done) = tasks.join_next().await {
        let (n, id, result) = done.expect("no panic");
        let version = at.store.execution(id).await.expect("read").expect("there").version;
        if n == 20 {
            assert!(matches!(result, Err(CommitError::Unavailable(_))), "{result:?}");
            assert_eq!(version, 1);
        } else {
            assert!(result.is_ok(), "{result:?}");
            assert_eq!(version, 2);
        }
    }
}

async fn parallel_starts_are_numbered_without_gaps(at: &Home) {
    let (application, pipeline) = ground(&at.store, "hello").await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let execution = execution(&application, Some(&pipeline), 2);
        let commit = Commit {
            guards: vec![
                Guard::Application { id: application.id, version: None },
                Guard::PipelineRevision { id: pipeline.id, revision: 1 },
            ],
            writes: vec![Write::InsertExecution(Box::new(execution.clone()))],
            events: Vec::new(),
        };
        let store = at.store.clone();
        tasks.spawn(async move {
            let number = store.commit(commit).await.expect("committed").numbers[0];
            let read = store.execution(execution.id).await.expect("read").expect("there");
            assert_eq!(read.number, number);
            let events = store.events(StreamId::Execution(execution.id), 0, 10).await.expect("read");
            assert_eq!(events.iter().map(|event| event.seq).collect::<Vec<_>>(), [1, 2, 3]);
            assert_eq!(events[0].body, event_execution(&read));
            assert_eq!(events[1].body, event_stage(&read.stages[0]));
            number
        });
    }
    let mut numbers = tasks.join_all().await;
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=50).collect::<Vec<_>>());
}

async fn operations_are_numbered_within_the_application(at: &Home) {
    let (hello, pipeline) = ground(&at.store, "hello").await;
    let (other, _) = ground(&at.store, "other").await;
    let mut numbers = Vec::new();
    for execution in [
        execution(&hello, None, 1),
        execution(&hello, None, 1),
        execution(&other, None, 1),
        execution(&hello, Some(&pipeline), 1),
    ] {
        numbers.push(insert(&at.store, &execution).await.number);
    }
    assert_eq!(numbers, [1, 2, 1, 1]);
    let found = at.store.execution_by_number(hello.id, None, 2).await.expect("read").expect("there");
    assert_eq!((found.kind, found.number), (ExecutionKind::Operation, 2));
}

async fn parallel_starts_under_one_key_give_one_execution(at: &Home) {
    let (application, pipeline) = ground(&at.store, "hello").await;
    let principal = PrincipalId::new();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let execution = execution(&application, Some(&pipeline), 1);
        let guard = Guard::IdempotencyKeyFree { principal, key: "k".to_owned() };
        let record = IdempotencyRecord {
            principal,
            key: "k".to_owned(),
            input_hash: vec![0, 255],
            execution: execution.id,
            created_at: start(),
        };
        let commit = Commit {
            guards: vec![guard.clone()],
            writes: vec![Write::InsertExecution(Box::new(execution)), Write::InsertIdempotency(record.clone())],
            events: Vec::new(),
        };
        let store = at.store.clone();
        tasks.spawn(async move {
            match store.commit(commit).await {
                Ok(_) => Some(record),
                Err(CommitError::Refused(refusal)) => {
                    assert_eq!(refusal.guard, guard);
                    None
                }
                Err(error) => panic!("{error}"),
            }
        });
    }
    let winners: Vec<IdempotencyRecord> = tasks.join_all().await.into_iter().flatten().collect();
    assert_eq!(winners.len(), 1);
    assert_eq!(at.store.idempotency(principal, "k").await.expect("read").as_ref(), winners.first());
    let all = at.store.executions(&ExecutionFilter::default(), &first(100)).await.expect("read");
    assert_eq!(all.items.iter().map(|(_, e)| (e.id, e.number)).collect::<Vec<_>>(), [(winners[0].execution, 1)]);
}

/// Forty executions change in parallel while a reader looks: it never sees a position appear
/// below one that it has seen, nor a hole in a stream.
async fn streams_are_gapless_and_positions_in_commit_order(at: &Home) {
    const STEPS: i64 = 10;
    let (application, pipeline) = ground(&at.store, "hello").await;
    let mut tasks = tokio::task::JoinSet::new();
    let mut ids = Vec::new();
    for _ in 0..40 {
        let mut stored = insert(&at.store, &execution(&application, Some(&pipeline), 1)).await;
        ids.push(stored.id);
        let store = at.store.clone();
        tasks.spawn(async move {
            for _ in 0..STEPS {
                let (commit, after) = next(&stored, |execution| execution.status = Status::Running);
                store.commit(commit).await.expect("committed");
                stored = after;
            }
        });
    }
    let mut seen = 0_i64;
    let mut newest = 0_i64;
    let mut gone = false;
    loop {
        // Before the look: what was over by then is in it.
        let over = tasks.is_empty();
        let sql = "SELECT CAST(COUNT(*) AS bigint), CAST(COALESCE(MAX(position), 0) AS bigint), \
                   CAST(COALESCE(SUM(CASE WHEN position <= ? THEN 1 ELSE 0 END), 0) AS bigint) FROM event";
        let row = sql::one(&at.store.inner.read, sql, vec![rows::int(newest)]).await.expect("read").expect("a row");
        let (count, max, old): (i64, i64, i64) = (
            row.try_get_by_index(0).expect("count"),
            row.try_get_by_index(1).expect("max"),
            row.try_get_by_index(2).expect("old"),
        );
        assert_eq!(old, seen, "an event appeared below a position that was read");
        (seen, newest) = (count, max);
        if over && gone {
            break;
        }
        gone = over;
        while let Some(done) = tasks.try_join_next() {
            done.expect("no panic");
        }
        tokio::task::yield_now().await;
    }
    for id in ids {
        let events = at.store.events(StreamId::Execution(id), 0, 1000).await.expect("read");
        assert_eq!(events.iter().map(|event| event.seq).collect::<Vec<_>>(), (1..=STEPS + 2).collect::<Vec<_>>());
        assert!(events.is_sorted_by(|one, two| one.position < two.position));
        assert_eq!(at.store.events(StreamId::Execution(id), 5, 2).await.expect("read")[0].seq, 6);
    }
}

async fn a_lease_is_taken_over_when_its_owner_is_forgotten(at: &Home) {
    let (application, pipeline) = ground(&at.store, "hello").await;
    let stored = insert(&at.store, &execution(&application, Some(&pipeline), 1)).await;
    let (old, new) = (OwnerId::new(), OwnerId::new());
    at.store.owner_register(old).await.expect("registered");
    at.store.owner_register(new).await.expect("registered");
    at.store.owner_beat(old).await.expect("beat");
    assert_eq!(at.store.owners().await.expect("read"), [(old, 1), (new, 0)]);

    let (lease, read) = at.store.execution_claim(old, stored.id).await.expect("claim").expect("taken");
    assert_eq!((lease.number, read), (1, stored.clone()));
    let (again, _) = at.store.execution_claim(old, stored.id).await.expect("claim").expect("mine");
    assert_eq!(again, lease);
    assert_eq!(at.store.execution_claim(new, stored.id).await.expect("claim"), None);

    at.store.owner_forget(old).await.expect("forgotten");
    at.store.owner_beat(old).await.expect_err("the forgotten learn it");
    let (taken, _) = at.store.execution_claim(new, stored.id).await.expect("claim").expect("taken");
    assert_eq!((taken.owner, taken.number), (new, 2));

    let (mut late, _) = next(&stored, |execution| execution.status = Status::Failed);
    let guard = Guard::Lease { execution: stored.id, owner: old, number: 1 };
    late.guards.push(guard.clone());
    match at.store.commit(late).await {
        Err(CommitError::Refused(refusal)) => assert_eq!(refusal.guard, guard),
        other => panic!("expected a refusal, got {other:?}"),
    }
    let late = at.store.name_reserve(lease, &place(), "hello-v001", stored.stages[0].id, 1).await;
    assert!(matches!(late, Err(CommitError::Refused(_))), "{late:?}");

    // The new owner's commits pass and leave the lease as it is; the end frees nobody's way in.
    let (mut commit, after) = next(&stored, |execution| execution.status = Status::Running);
    commit.guards.push(Guard::Lease { execution: stored.id, owner: new, number: 2 });
    commit.guards.push(Guard::NotCancelled { execution: stored.id });
    at.store.commit(commit).await.expect("committed");
    let (kept, _) = at.store.execution_claim(new, stored.id).await.expect("claim").expect("mine");
    assert_eq!(kept, taken);
    let (cancel, after) = next(&after, |execution| {
        execution.cancel = Some(Cancel {
            by: PrincipalId::new(),
            by_name: "bo".to_owned(),
            at: start(),
            reason: String::new(),
            mode: CancelMode::Unwind,
        });
    });
    at.store.commit(cancel).await.expect("committed");
    let (mut commit, _) = next(&after, |_| {});
    commit.guards.push(Guard::NotCancelled { execution: stored.id });
    assert!(matches!(at.store.commit(commit).await, Err(CommitError::Refused(_))));
    let (end, _) = next(&after, |execution| execution.status = Status::Canceled);
    at.store.commit(end).await.expect("committed");
    assert_eq!(at.store.execution_claim(new, stored.id).await.expect("claim"), None);
}

async fn due_executions_are_those_i_may_work_on(at: &Home) {
    let (application, pipeline) = ground(&at.store, "hello").await;
    let (me, other) = (OwnerId::new(), OwnerId::new());
    for owner in [me, other] {
        at.store.owner_register(owner).await.expect("registered");
    }
    let mut stored = Vec::new();
    for n in 0..4 {
        let mut execution = execution(&application, Some(&pipeline), 1);
        execution.created_at = start() + TimeDelta::seconds(n);
        stored.push(insert(&at.store, &execution).await);
    }
    let ids: Vec<ExecutionId> = stored.iter().map(|execution| execution.id).collect();
    at.store.execution_claim(me, ids[0]).await.expect("claim").expect("taken");
    at.store.execution_claim(other, ids[1]).await.expect("claim").expect("taken");
    // One sleeps until later.
    let (mut commit, _) = next(&stored[2], |execution| execution.status = Status::Running);
    let later = start() + TimeDelta::seconds(100);
    if let Write::UpdateExecution { wake_at, .. } = &mut commit.writes[0] {
        *wake_at = Some(later);
    }
    at.store.commit(commit).await.expect("committed");

    let now = start() + TimeDelta::seconds(50);
    assert_eq!(at.store.executions_due(me, now, 10).await.expect("read"), [ids[0], ids[3]]);
    assert_eq!(at.store.executions_due(me, later, 10).await.expect("read"), [ids[0], ids[3], ids[2]]);
    assert_eq!(at.store.executions_due(me, now, 1).await.expect("read"), [ids[0]]);
    assert_eq!(at.store.next_due(me).await.expect("read"), Some(start()));
    at.store.owner_forget(other).await.expect("forgotten");
    assert_eq!(at.store.executions_due(me, now, 10).await.expect("read"), [ids[0], ids[1], ids[3]]);
    for (index, wake) in [(0, None), (1, Some(start())), (3, None)] {
        let (mut commit, _) = next(&stored[index], |execution| {
            execution.status = if wake.is_some() { Status::Succeeded } else { Status::Running };
        });
        if let Write::UpdateExecution { wake_at, .. } = &mut commit.writes[0] {
            *wake_at = wake;
        }
        at.store.commit(commit).await.expect("committed");
    }
    // The ended is never due; the others wait for a signal.
    assert_eq!(at.store.next_due(me).await.expect("read"), Some(later));
    assert_eq!(at.store.executions_due(me, now, 10).await.expect("read"), []);
}

async fn a_cluster_is_held_in_order_of_arrival(at: &Home) {
    let (application, pipeline) = ground(&at.store, "hello").await;
    let me = OwnerId::new();
    at.store.owner_register(me).await.expect("registered");
    let key = ClusterKey { place: place(), cluster: "hello-prod".to_owned() };
    let mut leases = Vec::new();
    for _ in 0..4 {
        let stored = insert(&at.store, &execution(&application, Some(&pipeline), 1)).await;
        let (lease, _) = at.store.execution_claim(me, stored.id).await.expect("claim").expect("taken");
        leases.push((lease, stored.stages[0].id, stored));
    }
    let claim = async |index: usize| {
        let (lease, stage, _) = &leases[index];
        at.store.cluster_claim(*lease, &key, *stage, 2).await.expect("claimed")
    };
    let ahead = |indices: &[usize]| ClusterClaim::Waiting {
        ahead: indices.iter().map(|index| leases[*index].0.execution).collect(),
    };
    assert_eq!(claim(1).await, ClusterClaim::Held);
    assert_eq!(claim(0).await, ahead(&[1]));
    assert_eq!(claim(2).await, ahead(&[1, 0]));
    assert_eq!(claim(3).await, ClusterClaim::Full { limit: 2 });
    assert_eq!(claim(2).await, ahead(&[1, 0]), "asking again changes nothing");
    at.store.commit(write(vec![Write::ReleaseClusterClaims { stage: leases[1].1 }])).await.expect("committed");
    assert_eq!(claim(0).await, ClusterClaim::Held);
    assert_eq!(claim(2).await, ahead(&[0]));
    let queue = at.store.cluster_queue(&key).await.expect("read");
    assert_eq!(queue, [(leases[0].0.execution, leases[0].1), (leases[2].0.execution, leases[2].1)]);
    // An execution that ends leaves the queue.
    let (end, _) = next(&leases[0].2, |execution| execution.status = Status::Failed);
    at.store.commit(end).await.expect("committed");
    assert_eq!(claim(2).await, ClusterClaim::Held);
    let elsewhere = ClusterKey { cluster: "hello".to_owned(), ..key.clone() };
    let other = at.store.cluster_claim(leases[3].0, &elsewhere, leases[3].1, 2).await.expect("claimed");
    assert_eq!(other, ClusterClaim::Held);
}

async fn a_name_is_reserved_once(at: &Home) {
    let (application, pipeline) = ground(&at.store, "hello").await;
    let me = OwnerId::new();
    at.store.owner_register(me).await.expect("registered");
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let stored = insert(&at.store, &execution(&application, Some(&pipeline), 1)).await;
        let (lease, _) = at.store.execution_claim(me, stored.id).await.expect("claim").expect("taken");
        let store = at.store.clone();
        tasks.spawn(async move {
            let stage = stored.stages[0].id;
            let mine = store.name_reserve(lease, &place(), "hello-v001", stage, 1).await.expect("asked");
            (mine, lease, stage)
        });
    }
    let results = tasks.join_all().await;
    let winners: Vec<_> = results.iter().filter(|(mine, ..)| *mine).collect();
    assert_eq!(winners.len(), 1);
    let (_, lease, stage) = *winners[0];
    assert!(at.store.name_reserve(lease, &place(), "hello-v001", stage, 1).await.expect("asked"), "still mine");
    assert!(!at.store.name_reserve(lease, &place(), "hello-v001", stage, 2).await.expect("asked"), "another attempt");
    assert_eq!(at.store.name_reserved(&place(), stage, 1).await.expect("read").as_deref(), Some("hello-v001"));
    assert_eq!(at.store.name_reserved(&place(), stage, 2).await.expect("read"), None);
    let elsewhere = Place { account: "other".to_owned(), ..place() };
    assert_eq!(at.store.name_reserved(&elsewhere, stage, 1).await.expect("read"), None);

    // Once the holder's execution is over the name is free again.
    let (_, lease_of_another, another) = *results.iter().find(|(mine, ..)| !*mine).expect("nineteen of them");
    let mut over = at.store.execution(lease.execution).await.expect("read").expect("it is there");
    over.status = Status::Succeeded;
    over.version += 1;
    let commit =
        Commit { writes: vec![Write::UpdateExecution { execution: Box::new(over), wake_at: None }], ..Commit::default() };
    at.store.commit(commit).await.expect("committed");
    assert!(at.store.name_reserve(lease_of_another, &place(), "hello-v001", another, 1).await.expect("asked"));
    assert_eq!(at.store.name_reserved(&place(), stage, 1).await.expect("read"), None);
}

/// Reads a list in slices, from both ends and from the middle, and compares with the whole.
async fn pages<T, F>(mut read: impl FnMut(PageRequest) -> F, expected: &[String], key: impl Fn(&T) -> String)
where
    F: Future<Output = Result<Page<T>, Error>>,
{
    for limit in [1, 2, 100] {
        let (mut forward, mut after) = (Vec::new(), None);
        loop {
            let page = read(PageRequest { after: after.clone(), ..first(limit) }).await.expect("read");
            assert_eq!(page.total, expected.len() as u64);
            assert_eq!(page.has_previous, after.is_some());
            forward.extend(page.items.iter().map(|(_, item)| key(item)));
            after = page.items.last().map(|(key, _)| key.clone());
            if !page.has_next {
                break;
            }
        }
        assert_eq!(forward, expected, "forwards by {limit}");

        let (mut backward, mut before) = (Vec::new(), None);
        loop {
            let request = PageRequest { before: before.clone(), backward: true, ..first(limit) };
            let page = read(request).await.expect("read");
            assert_eq!(page.has_next, before.is_some());
            let items: Vec<String> = page.items.iter().map(|(_, item)| key(item)).collect();
            backward.splice(0..0, items);
            before = page.items.first().map(|(key, _)| key.clone());
            if !page.has_previous {
                break;
            }
        }
        assert_eq!(backward, expected, "backwards by {limit}");
    }
    let all = read(first(100)).await.expect("read");
    let (start, end) = (all.items[0].0.clone(), all.items[expected.len() - 1].0.clone());
    let between = PageRequest { after: Some(start), before: Some(end.clone()), ..first(100) };
    let page = read(between).await.expect("read");
    assert_eq!(page.items.len(), expected.len() - 2);
    assert!(page.has_previous && page.has_next);
    let beyond = read(PageRequest { after: Some(end), ..first(100) }).await.expect("read");
    assert!(beyond.items.is_empty() && beyond.has_previous && !beyond.has_next);
}

async fn lists_page_both_ways(at: &Home) {
    let store = &at.store;
    let names = ["B", "_x", "a", "ab", "b", "ä"];
    let mut all_pipelines = Vec::new();
    let mut hello = Vec::new();
    let mut target = None;
    for (index, name) in names.iter().rev().enumerate() {
        let application = application(name);
        let mut writes = vec![Write::InsertApplication(application.clone())];
        for name in ["two", "one"] {
            let (pipeline, revision) = pipeline(&application, name);
            all_pipelines.push((name, pipeline.id));
            hello.push((application.id, pipeline.clone(), revision.clone()));
            writes.push(Write::InsertPipeline { pipeline: Box::new(pipeline), revision: Box::new(revision) });
        }
        let id = PrincipalId::new();
        writes.push(Write::InsertPrincipal(Principal {
            id,
            name: (*name).to_owned(),
            kind: PrincipalKind::Service,
            roles: vec![Role::Viewer],
            created_at: start(),
        }));
        writes.push(Write::InsertToken(Token {
            id: TokenId::new(),
            principal: id,
            description: index.to_string(),
            hash: vec![1],
            created_at: start(),
            expires_at: None,
            revoked_at: None,
        }));
        writes.push(Write::InsertAudit(AuditRow {
            id: AuditId::new(),
            at: start(),
            principal: id,
            principal_name: index.to_string(),
            action: Action::Save,
            resource: Resource::Server,
            detail: json!({"n": index}),
        }));
        writes.push(Write::InsertNotification(notification(&index.to_string())));
        store.commit(write(writes)).await.expect("committed");
        target = Some(hello[0].clone());
    }
    let (application, mut pipeline, mut revision) = target.expect("there are some");
    for number in 2..=6 {
        pipeline.revision = number;
        revision.number = number;
        let (pipeline, revision) = (Box::new(pipeline.clone()), Box::new(revision.clone()));
        store.commit(write(vec![Write::AddRevision { pipeline, revision }])).await.expect("committed");
    }
    let mut executions = Vec::new();
    let owner = store.application(application).await.expect("read").expect("there");
    for _ in 0..5 {
        executions.push(insert(store, &execution(&owner, None, 0)).await.id.to_string());
    }
    executions.reverse();

    let by_name: Vec<String> = names.iter().map(ToString::to_string).collect();
    pages(async |page| store.applications(&page).await, &by_name, |item| item.name.clone()).await;
    pages(async |page| store.principals(&page).await, &by_name, |item| item.name.clone()).await;
    let oldest: Vec<String> = (0..names.len()).map(|n| n.to_string()).collect();
    let newest: Vec<String> = oldest.iter().rev().cloned().collect();
    pages(async |page| store.tokens(&page).await, &oldest, |item| item.description.clone()).await;
    pages(async |page| store.audit(&page).await, &newest, |item| item.principal_name.clone()).await;
    pages(async |page| store.notifications(&page).await, &newest, |item| item.subject.clone()).await;
    all_pipelines.sort_unstable();
    let all_pipelines: Vec<String> = all_pipelines.iter().map(|(_, id)| id.to_string()).collect();
    pages(async |page| store.pipelines(None, &page).await, &all_pipelines, |item| item.id.to_string()).await;
    let numbers: Vec<String> = (1..=6).rev().map(|n: i32| n.to_string()).collect();
    pages(async |page| store.revisions(pipeline.id, &page).await, &numbers, |item| item.number.to_string()).await;
    let filter = ExecutionFilter { application: Some(application), ..Default::default() };
    pages(async |page| store.executions(&filter, &page).await, &executions, |item| item.id.to_string()).await;

    assert_eq!(store.application_names().await.expect("read"), by_name);
    assert_eq!(store.pipeline_names(application).await.expect("read"), ["one", "two"]);
    let page = store.pipelines(Some(application), &first(10)).await.expect("read");
    assert_eq!(page.items.iter().map(|(_, item)| item.name.as_str()).collect::<Vec<_>>(), ["one", "two"]);
    let wrong = PageRequest { after: Some("no key".to_owned()), ..first(10) };
    assert!(matches!(store.tokens(&wrong).await, Err(Error::Corrupt { .. })));
}

fn notification(subject: &str) -> Notification {
    Notification {
        id: NotificationId::new(),
        occasion: Occasion::ApprovalNeeded,
        application_name: "hello".to_owned(),
        execution: ExecutionId::new(),
        execution_name: "release".to_owned(),
        execution_number: 7,
        stage: Some(StageId::new()),
        subject: subject.to_owned(),
        text: "one\ntwo".to_owned(),
        created_at: start(),
    }
}

async fn executions_are_filtered(at: &Home) {
    let (hello, pipeline) = ground(&at.store, "hello").await;
    let (other, _) = ground(&at.store, "other").await;
    let run = insert(&at.store, &execution(&hello, Some(&pipeline), 1)).await;
    let operation = insert(&at.store, &execution(&hello, None, 1)).await;
    let elsewhere = insert(&at.store, &execution(&other, None, 1)).await;
    let (commit, _) = next(&operation, |execution| execution.status = Status::Succeeded);
    at.store.commit(commit).await.expect("committed");
    for (filter, expected) in [
        (ExecutionFilter::default(), vec![elsewhere.id, operation.id, run.id]),
        (ExecutionFilter { application: Some(hello.id), ..Default::default() }, vec![operation.id, run.id]),
        (ExecutionFilter { pipeline: Some(pipeline.id), ..Default::default() }, vec![run.id]),
        (ExecutionFilter { kind: Some(ExecutionKind::Operation), ..Default::default() }, vec![elsewhere.id, operation.id]),
        (
            ExecutionFilter { statuses: vec![Status::Succeeded, Status::Failed], ..Default::default() },
            vec![operation.id],
        ),
        (
            ExecutionFilter {
                application: Some(hello.id),
                statuses: vec![Status::NotStarted],
                kind: Some(ExecutionKind::Pipeline),
                pipeline: Some(pipeline.id),
            },
            vec![run.id],
        ),
    ] {
        let page = at.store.executions(&filter, &first(10)).await.expect("read");
        assert_eq!(page.items.iter().map(|(_, item)| item.id).collect::<Vec<_>>(), expected, "{filter:?}");
        assert_eq!(page.total, expected.len() as u64);
        assert!(page.items.iter().all(|(_, item)| item.stages.is_empty()));
    }
}

async fn names_are_unique(at: &Home) {
    let (hello, _) = ground(&at.store, "hello").await;
    let free = |name: &str| Guard::ApplicationNameFree { name: name.to_owned() };
    let mut commit = write(vec![Write::InsertApplication(application("hello"))]);
    commit.guards.push(free("hello"));
    match at.store.commit(commit).await {
        Err(CommitError::Refused(refusal)) => assert_eq!(refusal.guard, free("hello")),
        other => panic!("expected a refusal, got {other:?}"),
    }
    let (second, revision) = pipeline(&hello, "release");
    let guard = Guard::PipelineNameFree { application: hello.id, name: "release".to_owned() };
    let mut commit =
        write(vec![Write::InsertPipeline { pipeline: Box::new(second), revision: Box::new(revision) }]);
    commit.guards.push(guard);
    assert!(matches!(at.store.commit(commit).await, Err(CommitError::Refused(_))));

    // Twenty at once: one gets the name, the others hear why not.
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let mut commit = write(vec![Write::InsertApplication(application("wanted"))]);
        commit.guards.push(free("wanted"));
        let store = at.store.clone();
        tasks.spawn(async move { store.commit(commit).await });
    }
    let results = tasks.join_all().await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    assert!(results.iter().all(|result| matches!(result, Ok(_) | Err(CommitError::Refused(_)))), "{results:?}");

    let mut changed = hello.clone();
    changed.version = 2;
    changed.email = Some("a@b".to_owned());
    let update = |version| Commit {
        guards: vec![Guard::Application { id: hello.id, version: Some(version) }],
        writes: vec![Write::UpdateApplication(changed.clone())],
        events: Vec::new(),
    };
    at.store.commit(update(1)).await.expect("committed");
    assert!(matches!(at.store.commit(update(1)).await, Err(CommitError::Refused(_))));
    assert_eq!(at.store.application_by_name("hello").await.expect("read"), Some(changed));
}

async fn an_application_with_running_executions_is_not_deleted(at: &Home) {
    let (hello, pipeline) = ground(&at.store, "hello").await;
    let stored = insert(&at.store, &execution(&hello, Some(&pipeline), 1)).await;
    let delete = || Commit {
        guards: vec![
            Guard::Application { id: hello.id, version: None },
            Guard::NoneRunning { application: hello.id },
        ],
        writes: vec![Write::DeleteApplication(hello.id)],
        events: Vec::new(),
    };
    assert!(matches!(at.store.commit(delete()).await, Err(CommitError::Refused(_))));
    let delete_pipeline = || Commit {
        guards: vec![Guard::NonePipelineRunning { pipeline: pipeline.id }],
        writes: vec![Write::DeletePipeline(pipeline.id)],
        events: Vec::new(),
    };
    assert!(matches!(at.store.commit(delete_pipeline()).await, Err(CommitError::Refused(_))));
    let (commit, _) = next(&stored, |execution| execution.status = Status::Stopped);
    at.store.commit(commit).await.expect("committed");
    at.store.commit(delete()).await.expect("committed");
    assert_eq!(at.store.application(hello.id).await.expect("read"), None);
    assert_eq!(at.store.pipeline(pipeline.id).await.expect("read"), None);
    assert_eq!(at.store.revision(pipeline.id, 1).await.expect("read"), None);
    assert!(at.store.execution(stored.id).await.expect("read").is_some(), "executions stay");
    // Nothing starts in what is gone.
    let mut commit = write(vec![Write::InsertExecution(Box::new(execution(&hello, None, 1)))]);
    commit.guards.push(Guard::Application { id: hello.id, version: None });
    assert!(matches!(at.store.commit(commit).await, Err(CommitError::Refused(_))));
}

async fn a_revision_is_kept_and_the_newest_is_guarded(at: &Home) {
    let (_, stored) = ground(&at.store, "hello").await;
    let original = at.store.revision(stored.id, 1).await.expect("read").expect("there");
    let mut changed = stored.clone();
    changed.revision = 2;
    changed.definition.description = "second".to_owned();
    let revision = Revision { number: 2, definition: changed.definition.clone(), ..original.clone() };
    let save = || Commit {
        guards: vec![Guard::PipelineRevision { id: stored.id, revision: 1 }],
        writes: vec![Write::AddRevision { pipeline: Box::new(changed.clone()), revision: Box::new(revision.clone()) }],
        events: Vec::new(),
    };
    let (one, two) = tokio::join!(at.store.commit(save()), at.store.commit(save()));
    assert_eq!([&one, &two].iter().filter(|result| result.is_ok()).count(), 1, "{one:?} {two:?}");
    assert_eq!(at.store.pipeline_by_name(stored.application, "release").await.expect("read"), Some(changed.clone()));
    assert_eq!(at.store.revision(stored.id, 1).await.expect("read"), Some(original));
    assert_eq!(at.store.revision(stored.id, 2).await.expect("read"), Some(revision));
}

async fn intents_are_kept_and_closed(at: &Home) {
    let (hello, pipeline) = ground(&at.store, "hello").await;
    let stored = insert(&at.store, &execution(&hello, Some(&pipeline), 1)).await;
    let mut intents: Vec<Intent> = (1..=3)
        .map(|attempt| Intent {
            id: IntentId::new(),
            execution: stored.id,
            stage: stored.stages[0].id,
            attempt,
            key: "create".to_owned(),
            what: "create server group hello-v001".to_owned(),
            lease_number: 4,
            created_at: start(),
            deadline: start() + TimeDelta::seconds(30),
            closed_at: None,
            outcome: None,
        })
        .collect();
    at.store.commit(write(intents.iter().cloned().map(Write::InsertIntent).collect())).await.expect("committed");
    let outcome = IntentOutcome::Failed { message: "no".to_owned() };
    let closed = start() + TimeDelta::seconds(1);
    // Closed in the commit that opens another.
    let extra = Intent { id: IntentId::new(), ..intents[0].clone() };
    let writes = vec![
        Write::InsertIntent(extra.clone()),
        Write::CloseIntent { id: intents[1].id, at: closed, outcome: outcome.clone() },
        Write::CloseIntent { id: extra.id, at: closed, outcome: IntentOutcome::Done },
    ];
    at.store.commit(write(writes)).await.expect("committed");
    intents[1].closed_at = Some(closed);
    intents[1].outcome = Some(outcome);
    intents.push(Intent { closed_at: Some(closed), outcome: Some(IntentOutcome::Done), ..extra });
    assert_eq!(at.store.intents(stored.id).await.expect("read"), intents);
}

async fn notices_follow_commits(at: &Home) {
    let (hello, pipeline) = ground(&at.store, "hello").await;
    let (mut appended, mut work) = (at.store.appended(), at.store.work());
    let stored = insert(&at.store, &execution(&hello, Some(&pipeline), 2)).await;
    let stream = StreamId::Execution(stored.id);
    assert_eq!(heard(&mut appended, |(grown, _)| *grown == stream).await, (stream, 3));
    assert_eq!(heard(&mut work, |id| *id == stored.id).await, stored.id);
    // A command (no lease) that wakes the execution gives work; the holder's own commit does not.
    let (lease, _) = at.store.execution_claim(OwnerId::new(), stored.id).await.expect("claim").expect("taken");
    let (mut own, after) = next(&stored, |execution| execution.status = Status::Running);
    own.guards.push(Guard::Lease { execution: stored.id, owner: lease.owner, number: lease.number });
    let (mut command, _) = next(&after, |_| {});
    for commit in [&mut own, &mut command] {
        if let Write::UpdateExecution { wake_at, .. } = &mut commit.writes[0] {
            *wake_at = Some(at.clock.now());
        }
    }
    at.store.commit(own).await.expect("committed");
    assert_eq!(heard(&mut appended, |(grown, _)| *grown == stream).await, (stream, 4));
    assert!(work.try_recv().is_err(), "the holder knows its own work");
    at.store.commit(command).await.expect("committed");
    assert_eq!(heard(&mut work, |id| *id == stored.id).await, stored.id);
    assert!(at.store.commit_latency().is_some());
}

/// The next notice of one's own (other tests of the same database server may be heard too).
async fn heard<T: Clone>(receiver: &mut broadcast::Receiver<T>, mine: impl Fn(&T) -> bool) -> T {
    let wait = async {
        loop {
            match receiver.recv().await {
                Ok(notice) if mine(&notice) => return notice,
                Ok(_) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait).await.expect("a notice")
}

async fn principals_and_tokens_read_back(at: &Home) {
    let principal = Principal {
        id: PrincipalId::new(),
        name: "ann".to_owned(),
        kind: PrincipalKind::User,
        roles: vec![Role::Operator, Role::Admin],
        created_at: start(),
    };
    let token = Token {
        id: TokenId::new(),
        principal: principal.id,
        description: "laptop".to_owned(),
        hash: (0..=255).collect(),
        created_at: start(),
        expires_at: Some(start() + TimeDelta::days(1)),
        revoked_at: None,
    };
    let audit = AuditRow {
        id: AuditId::new(),
        at: start(),
        principal: principal.id,
        principal_name: "ann".to_owned(),
        action: Action::Administer,
        resource: Resource::Execution { application: "hello".to_owned(), execution: ExecutionId::new() },
        detail: json!({"a": [1, null]}),
    };
    let commit = || Commit {
        guards: vec![Guard::PrincipalNameFree { name: "ann".to_owned() }],
        writes: vec![
            Write::InsertPrincipal(principal.clone()),
            Write::InsertToken(token.clone()),
            Write::InsertAudit(audit.clone()),
        ],
        events: Vec::new(),
    };
    at.store.commit(commit()).await.expect("committed");
    assert!(matches!(at.store.commit(commit()).await, Err(CommitError::Refused(_))));
    assert_eq!(at.store.principal(principal.id).await.expect("read"), Some(principal.clone()));
    assert_eq!(at.store.principal_by_name("ann").await.expect("read"), Some(principal));
    assert_eq!(at.store.token(token.id).await.expect("read"), Some(token.clone()));
    assert_eq!(at.store.audit(&first(5)).await.expect("read").items[0].1, audit);
    for seconds in [5, 9] {
        let revoke = Write::RevokeToken { id: token.id, at: start() + TimeDelta::seconds(seconds) };
        at.store.commit(write(vec![revoke])).await.expect("committed");
    }
    let revoked = at.store.token(token.id).await.expect("read").expect("there").revoked_at;
    assert_eq!(revoked, Some(start() + TimeDelta::seconds(5)), "the first revocation counts");
}

async fn pruning_takes_what_has_ended_and_leaves_the_rest(at: &Home) {
    let (hello, pipeline) = ground(&at.store, "hello").await;
    let principal = PrincipalId::new();
    let mut ids = Vec::new();
    for n in 0..120 {
        let execution = execution(&hello, Some(&pipeline), 1);
        let record = IdempotencyRecord {
            principal,
            key: n.to_string(),
            input_hash: Vec::new(),
            execution: execution.id,
            created_at: start() + TimeDelta::minutes(n),
        };
        let intent = Intent {
            id: IntentId::new(),
            execution: execution.id,
            stage: execution.stages[0].id,
            attempt: 1,
            key: "k".to_owned(),
            what: "w".to_owned(),
            lease_number: 1,
            created_at: start(),
            deadline: start(),
            closed_at: None,
            outcome: None,
        };
        let writes = vec![
            Write::InsertExecution(Box::new(execution.clone())),
            Write::InsertIntent(intent),
            Write::InsertIdempotency(record),
        ];
        at.store.commit(write(writes)).await.expect("committed");
        let stored = at.store.execution(execution.id).await.expect("read").expect("there");
        let (commit, _) = next(&stored, |execution| {
            // Every twentieth goes on running.
            execution.status = if n % 20 == 0 { Status::Running } else { Status::Succeeded };
            execution.ended_at = (n % 20 != 0).then(|| start() + TimeDelta::minutes(n));
        });
        at.store.commit(commit).await.expect("committed");
        ids.push(stored);
    }
    let before: i64 = highest(&at.store).await;
    at.clock.advance(Duration::from_secs(24 * 3600 + 60 * 60));
    assert_eq!(at.store.prune_executions(start() + TimeDelta::minutes(110), 7).await.expect("pruned"), 7);
    assert!(at.store.execution(ids[1].id).await.expect("read").is_none(), "the oldest first");
    assert_eq!(at.store.prune_executions(start() + TimeDelta::minutes(110), 1000).await.expect("pruned"), 97);
    for (n, stored) in ids.iter().enumerate() {
        let kept = n % 20 == 0 || n >= 110;
        assert_eq!(at.store.execution(stored.id).await.expect("read").is_some(), kept, "{n}");
        assert_eq!(at.store.stage(stored.stages[0].id).await.expect("read").is_some(), kept);
        assert_eq!(at.store.intents(stored.id).await.expect("read").len(), usize::from(kept));
        let stream = StreamId::Execution(stored.id);
        let bounds = if kept { (1, 3) } else { (1, 0) };
        assert_eq!(at.store.event_bounds(stream).await.expect("read"), bounds);
    }
    assert!(at.store.idempotency(principal, "59").await.expect("read").is_none(), "older than a day");
    assert!(at.store.idempotency(principal, "61").await.expect("read").is_some(), "not a day old");
    // Neither numbers nor positions are used twice.
    assert_eq!(insert(&at.store, &execution(&hello, Some(&pipeline), 1)).await.number, 121);
    assert!(highest(&at.store).await > before);
}

async fn highest(store: &Store) -> i64 {
    let row = sql::one(&store.inner.read, "SELECT MAX(position) FROM event", Vec::new()).await.expect("read");
    row.expect("a row").try_get_by_index(0).expect("a number")
}

async fn a_newer_schema_is_refused(at: &Home) {
    let op = prepare::Op::Run {
        sql: "INSERT INTO seaql_migrations (version, applied_at) VALUES (?, ?)",
        values: vec![rows::text("m29990101_000001_future"), rows::int(0)],
    };
    let future = prepare::Prepared { ops: vec![op], ..Default::default() };
    at.store.inner.write.write(future).await.expect("written");
    at.store.close().await;
    match Store::open(&at.options, at.clock.clone()).await {
        Err(Error::NewerSchema { found, known }) => {
            assert_eq!(found, "m29990101_000001_future");
            assert!(known.starts_with("m2026"), "{known}");
        }
        other => panic!("expected a refusal, got {other:?}"),
    }
}

async fn the_epoch_stays(at: &Home) {
    let epoch = at.store.epoch();
    let (hello, _) = ground(&at.store, "hello").await;
    at.store.close().await;
    let again = Store::open(&at.options, at.clock.clone()).await.expect("opens again");
    assert_eq!(again.epoch(), epoch);
    assert_eq!(again.application(hello.id).await.expect("read"), Some(hello));
    again.close().await;
}

async fn a_closed_store_refuses_commits(at: &Home) {
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..100 {
        let store = at.store.clone();
        tasks.spawn(async move {
            let application = application(&format!("a{n}"));
            (application.name.clone(), store.commit(write(vec![Write::InsertApplication(application)])).await)
        });
    }
    tokio::task::yield_now().await;
    at.store.close().await;
    let results = tasks.join_all().await;
    let late = at.store.commit(write(vec![Write::InsertApplication(application("late"))])).await;
    assert!(matches!(late, Err(CommitError::Unavailable(_))), "{late:?}");
    let again = Store::open(&at.options, at.clock.clone()).await.expect("opens again");
    for (name, result) in results {
        let there = again.application_by_name(&name).await.expect("read").is_some();
        assert_eq!(there, result.is_ok(), "{name}: {result:?}");
    }
    again.close().await;
}

async fn the_notifications_stream_is_numbered_by_the_writer(at: &Home) {
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..30 {
        let notification = notification(&n.to_string());
        let commit = Commit {
            guards: Vec::new(),
            writes: vec![Write::InsertNotification(notification.clone())],
            events: vec![NewEvent {
                stream: StreamId::Notifications,
                seq: None,
                at: start(),
                body: EventBody::Notified { notification: Box::new(notification) },
            }],
        };
        let store = at.store.clone();
        tasks.spawn(async move { store.commit(commit).await.expect("committed") });
    }
    tasks.join_all().await;
    let events = at.store.events(StreamId::Notifications, 0, 1000).await.expect("read");
    assert_eq!(events.iter().map(|event| event.seq).collect::<Vec<_>>(), (1..=30).collect::<Vec<_>>());
    assert!(events.is_sorted_by(|one, two| one.position < two.position));
    assert_eq!(at.store.event_bounds(StreamId::Notifications).await.expect("read"), (1, 30));
}

// --- of one database only ----------------------------------------------------------------------------------

#[tokio::test]
async fn a_second_server_on_the_data_directory_is_refused() {
    let place = Home::sqlite().await;
    match Store::open(&place.options, place.clock.clone()).await {
        Err(Error::Locked(dir)) => assert_eq!(dir, place.options.data_dir),
        other => panic!("expected a refusal, got {other:?}"),
    }
    // A command may work beside it.
    let tool = Store::open_beside(&place.options, place.clock.clone()).await.expect("opens");
    let (hello, _) = ground(&tool, "hello").await;
    tool.close().await;
    assert_eq!(place.store.application_by_name("hello").await.expect("read"), Some(hello));
    place.end().await;
}

#[tokio::test]
async fn the_data_is_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let place = Home::sqlite().await;
    ground(&place.store, "hello").await;
    let mode = |path: &std::path::Path| std::fs::metadata(path).expect("is there").permissions().mode() & 0o777;
    assert_eq!(mode(&place.options.data_dir), 0o700);
    for entry in std::fs::read_dir(&place.options.data_dir).expect("listed") {
        let path = entry.expect("an entry").path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
    let row = sql::one(&place.store.inner.read, "PRAGMA auto_vacuum", Vec::new()).await.expect("read").expect("a row");
    assert_eq!(row.try_get_by_index::<i32>(0).expect("a number"), 2, "incremental");
    place.end().await;
}

#[tokio::test]
async fn an_older_file_is_copied_before_it_is_migrated() {
    let place = Home::sqlite().await;
    let (hello, _) = ground(&place.store, "hello").await;
    let undo = [
        "DROP TABLE owner",
        "DROP TABLE cluster_claim",
        "DROP TABLE name_reservation",
        "DELETE FROM seaql_migrations WHERE version LIKE '%leases'",
    ];
    let ops = undo.into_iter().map(|sql| prepare::Op::Run { sql, values: Vec::new() }).collect();
    let back = prepare::Prepared { ops, ..Default::default() };
    place.store.inner.write.write(back).await.expect("written");
    place.store.close().await;
    assert!(Store::open_beside(&place.options, place.clock.clone()).await.is_err(), "a tool does not migrate");
    let again = Store::open(&place.options, place.clock.clone()).await.expect("migrates");
    again.owner_register(OwnerId::new()).await.expect("the new tables are there");
    assert_eq!(again.application(hello.id).await.expect("read"), Some(hello.clone()));
    again.close().await;
    let copy = place.options.data_dir.join(format!("gennaker.db.before-{}", env!("CARGO_PKG_VERSION")));
    let copy = Database::connect(format!("sqlite:{}?mode=ro", copy.display())).await.expect("the copy opens");
    let count = |table: &str| format!("SELECT COUNT(*) FROM sqlite_master WHERE name = '{table}'");
    let row = sql::one(&copy, &count("owner"), Vec::new()).await.expect("read").expect("a row");
    assert_eq!(row.try_get_by_index::<i64>(0).expect("a number"), 0, "as it was before");
    let row = sql::one(&copy, "SELECT name FROM application", Vec::new()).await.expect("read").expect("a row");
    assert_eq!(row.try_get_by_index::<String>(0).expect("a name"), "hello");
    copy.close().await.expect("closed");
    place.end().await;
}

#[tokio::test]
async fn a_full_queue_refuses_as_unavailable() {
    let options =
        Options { database_url: None, data_dir: directory(), durability: Durability::Full, queue_max: 1 };
    let store = Store::open(&options, Clock::manual(start())).await.expect("opens");
    let commits = (0..200).map(|n| store.commit(write(vec![Write::InsertApplication(application(&format!("a{n}")))])));
    let results = futures_util::future::join_all(commits).await;
    assert!(results.iter().any(Result::is_ok));
    assert!(results.iter().any(|result| matches!(result, Err(CommitError::Unavailable(_)))));
    let total = store.applications(&first(1)).await.expect("read").total;
    assert_eq!(total, results.iter().filter(|result| result.is_ok()).count() as u64);
    store.close().await;
    std::fs::remove_dir_all(&options.data_dir).expect("removed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_hear_of_each_other() {
    let Some(place) = Home::postgres().await else { return };
    let other = Store::open(&place.options, place.clock.clone()).await.expect("a second server");
    assert_eq!(other.epoch(), place.store.epoch());
    let (mut appended, mut work) = (other.appended(), other.work());
    let (hello, pipeline) = ground(&place.store, "hello").await;
    // Until the other listens, notices are lost; they are hints.
    let (stream, id) = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            let stored = insert(&place.store, &execution(&hello, Some(&pipeline), 1)).await;
            let wait = tokio::time::timeout(Duration::from_millis(300), async {
                loop {
                    if let Ok((stream, 2)) = appended.recv().await
                        && stream == StreamId::Execution(stored.id)
                    {
                        return stream;
                    }
                }
            });
            if let Ok(stream) = wait.await {
                return (stream, stored.id);
            }
        }
    })
    .await
    .expect("heard");
    assert_eq!(stream, StreamId::Execution(id));
    assert_eq!(heard(&mut work, |heard| *heard == id).await, id);
    other.close().await;
    place.end().await;
}

#[test]
fn documents_of_format_1_are_still_read() {
    let body: EventBody = serde_json::from_str(include_str!("fixtures/event-stage-1.json")).expect("read");
    let EventBody::StageChanged { stage } = body else { panic!("a stage's event") };
    assert_eq!((stage.key.as_str(), stage.status), ("deploy", Status::Running));
    assert_eq!(stage.progress.map(|progress| progress.total), Some(3));
    let body: EventBody = serde_json::from_str(include_str!("fixtures/event-execution-1.json")).expect("read");
    let EventBody::ExecutionChanged { execution } = body else { panic!("an execution's event") };
    assert_eq!((execution.number, execution.cancel.map(|cancel| cancel.mode)), (42, Some(CancelMode::Unwind)));
}
