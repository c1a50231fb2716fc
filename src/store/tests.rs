//! What needs the store's insides: a full disk, the length of SQLite's log, old documents. All
//! else is in `tests/it/store`, on both databases.

use chrono::DateTime;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;
use crate::model::{
    Application, Cancel, CancelMode, DeliveryState, EventBody, ExecutionRule, Failure, NotificationRule, Occasion,
    Phase, Pipeline, PipelineDefinition, PrincipalId, Progress, Revision, Role, Task, Trigger, TriggerId, Triggered,
    Unwinding, Wake,
};

/// A database of the test's own, gone with it.
struct Home {
    store: Store,
    options: Options,
}

impl Home {
    async fn new() -> Self {
        let data_dir = std::env::temp_dir().join(format!("gennaker-store-{}", Uuid::new_v4().simple()));
        let options = Options { database_url: None, data_dir, durability: Durability::Normal, queue_max: 4096 };
        let clock = Clock::manual(DateTime::from_timestamp(1_800_000_000, 0).expect("an instant"));
        let store = Store::open(&options, clock).await.expect("opens");
        Self { store, options }
    }

    async fn end(self) {
        self.store.close().await;
        std::fs::remove_dir_all(&self.options.data_dir).expect("removed");
    }
}

fn application(name: &str) -> Application {
    let now = DateTime::from_timestamp(1_800_000_000, 0).expect("an instant");
    Application {
        id: ApplicationId::new(),
        name: name.to_owned(),
        description: String::new(),
        email: None,
        created_at: now,
        updated_at: now,
        version: 1,
    }
}

fn write(writes: Vec<Write>) -> Commit {
    Commit { writes, ..Commit::default() }
}

/// Asked of the connection that commits.
#[tokio::test]
async fn a_commit_is_as_durable_as_the_setting_says() {
    assert_eq!(Durability::default(), Durability::Full);
    for (durability, level) in [(Durability::Full, 2), (Durability::Normal, 1)] {
        let data_dir = std::env::temp_dir().join(format!("gennaker-store-{}", Uuid::new_v4().simple()));
        let options = Options { database_url: None, data_dir, durability, queue_max: 64 };
        let store = Store::open(&options, Clock::system()).await.expect("opens");
        let home = Home { store, options };
        home.store.commit(write(vec![Write::InsertApplication(application("hello"))])).await.expect("committed");
        let sql = "UPDATE application SET version = 2 WHERE (SELECT synchronous FROM pragma_synchronous) = ?";
        for (asked, rows) in [(3 - level, 0), (level, 1)] {
            let op = prepare::Op::Count { sql, values: vec![rows::int(asked)] };
            let answer = home.store.write_op(op, None).await.expect("written").answer;
            assert!(matches!(answer, apply::Answer::Count(count) if count == rows), "{durability:?} {asked}");
        }
        home.end().await;
    }
}

#[tokio::test]
async fn a_full_disk_is_told_and_survived() {
    let home = Home::new().await;
    let store = &home.store;
    store.commit(write(vec![Write::InsertApplication(application("hello"))])).await.expect("committed");
    let limit = async |pages: &'static str| {
        let op = prepare::Op::Run { sql: pages, values: Vec::new() };
        let prepared = prepare::Prepared { ops: vec![op], ..Default::default() };
        store.write(prepared).await.expect("written");
    };
    let mut big = application("big");
    big.description = "x".repeat(1 << 20);
    for _ in 0..3 {
        // SQLite does not let it fall below what is used: the file is full. Of the connection, which
        // is made anew after each failure.
        limit("PRAGMA max_page_count = 1").await;
        match store.commit(write(vec![Write::InsertApplication(big.clone())])).await {
            Err(CommitError::Unavailable(message)) => assert!(message.contains("disk is full"), "{message}"),
            other => panic!("expected a full disk, got {other:?}"),
        }
    }
    limit("PRAGMA max_page_count = 1000000").await;
    store.commit(write(vec![Write::InsertApplication(big.clone())])).await.expect("there is room again");
    assert_eq!(store.application_names().await.expect("read"), ["big", "hello"]);
    home.end().await;
}

/// Without a gap between commits, and so without an end to the log of its own accord.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_does_not_grow_for_ever() {
    let home = Home::new().await;
    let store = &home.store;
    let many: Vec<Application> = (0..100).map(|n| application(&format!("a{n}"))).collect();
    store.commit(write(many.iter().cloned().map(Write::InsertApplication).collect())).await.expect("committed");
    let log = home.options.data_dir.join("gennaker.db-wal");
    let size = || std::fs::metadata(&log).expect("is there").len();
    let mut most = 0;
    // 25 MiB in each round.
    for round in 0..10 {
        let commits = many.iter().map(|application| {
            let description = format!("{round}").repeat(1 << 18);
            store.commit(write(vec![Write::UpdateApplication(Application { description, ..application.clone() })]))
        });
        for result in futures_util::future::join_all(commits).await {
            result.expect("committed");
        }
        most = size().max(most);
    }
    // One round and its pages' headers may come on top.
    assert!(most < writer::LOG_MAX + (40 << 20), "{most} bytes");
    assert!(most > 64 << 20, "the limit was not put to the test: {most} bytes");
    store.close().await;
    // Nothing is left to carry over at the next start.
    assert!(!log.exists() || size() == 0);
    home.end().await;
}

#[tokio::test]
async fn a_connection_that_cannot_write_says_so_and_is_given_up() {
    let home = Home::new().await;
    let store = &home.store;
    store.check_write().await.expect("it is written to");
    let op = prepare::Op::Run { sql: "PRAGMA query_only = on", values: Vec::new() };
    let _ = store.write(prepare::Prepared { ops: vec![op], ..Default::default() }).await;
    let refused = store.commit(write(vec![Write::InsertApplication(application("hello"))])).await;
    let Err(CommitError::Unavailable(why)) = refused else { panic!("{refused:?}") };
    assert!(why.contains("read-only") && advice(&why).is_some(), "{why}");
    assert_eq!(store.application_names().await.expect("read"), Vec::<String>::new());
    store.check_write().await.expect("another connection writes");
    home.end().await;
}

/// An application with a pipeline; the pipeline's id.
async fn ground(store: &Store, events: Vec<NewEvent>) -> PipelineId {
    let application = application("hello");
    let now = application.created_at;
    let definition = PipelineDefinition { format_version: 1, ..PipelineDefinition::default() };
    let pipeline = Pipeline {
        id: PipelineId::new(),
        application: application.id,
        application_name: "hello".to_owned(),
        name: "release".to_owned(),
        revision: 1,
        definition: definition.clone(),
        created_at: now,
        updated_at: now,
    };
    let revision = Revision {
        pipeline: pipeline.id,
        number: 1,
        definition,
        created_at: now,
        created_by: PrincipalId::new(),
        created_by_name: "ann".to_owned(),
    };
    let id = pipeline.id;
    let writes = vec![
        Write::InsertApplication(application),
        Write::InsertPipeline { pipeline: Box::new(pipeline), revision: Box::new(revision) },
    ];
    store.commit(Commit { writes, events, ..Commit::default() }).await.expect("committed");
    id
}

/// On one thread the writer begins only when both wait: they are one batch.
#[tokio::test]
async fn an_end_is_heard_by_a_trigger_that_was_saved_before_it_in_its_batch() {
    let home = Home::new().await;
    let store = &home.store;
    let (source, execution) = (PipelineId::new(), ExecutionId::new());
    let trigger = Trigger {
        id: TriggerId::new(),
        pipeline: ground(store, Vec::new()).await,
        key: "after".to_owned(),
        kind: "pipeline".to_owned(),
        enabled: true,
        position: 0,
        source: Some(source),
        statuses: vec![Status::Succeeded],
        next_at: None,
        last_at: None,
        last_execution: None,
        last_error: None,
        last_error_at: None,
        last_missed_at: None,
    };
    let at = store.inner.clock.now();
    let end = Write::EndTriggers { pipeline: source, execution, status: Status::Succeeded, at };
    let (saved, ended) =
        tokio::join!(store.commit(write(vec![Write::PutTrigger(Box::new(trigger))])), store.commit(write(vec![end])));
    saved.expect("committed");
    assert_eq!(ended.expect("committed").triggered, 1);
    let pending = store.slots_pending(10).await.expect("read");
    assert_eq!(pending.iter().flatten().map(|slot| slot.source).collect::<Vec<_>>(), [execution]);
    home.end().await;
}

#[tokio::test]
async fn documents_of_a_later_format_are_refused_with_both_versions() {
    let home = Home::new().await;
    let store = &home.store;
    let at = store.inner.clock.now();
    let body = read_all::<EventBody>("eventBody").pop().expect("one");
    let id = ground(store, vec![NewEvent { stream: StreamId::Notifications, seq: None, at, body }]).await;
    assert!(store.pipeline(id).await.expect("read").is_some());
    assert_eq!(store.events(StreamId::Notifications, 0, 10).await.expect("read").len(), 1);
    for sql in [
        "UPDATE event SET format = 2",
        r#"UPDATE pipeline SET definition = '{"formatVersion":2,"stages":[],"later":true}'"#,
        r#"UPDATE revision SET definition = '{"formatVersion":2,"stages":[],"later":true}'"#,
    ] {
        let op = prepare::Op::Run { sql, values: Vec::new() };
        store.write(prepare::Prepared { ops: vec![op], ..Default::default() }).await.expect("written");
    }
    let said = [
        store.events(StreamId::Notifications, 0, 10).await.expect_err("later").to_string(),
        store.pipeline(id).await.expect_err("later").to_string(),
        store.revision(id, 1).await.expect_err("later").to_string(),
    ];
    for said in said {
        assert!(said.contains("format 2 is not known; this binary knows 1"), "{said}");
    }
    home.end().await;
}

/// What was stored in the first format, by what it is. A file that was released is only added to.
const DOCUMENTS: &str = include_str!("fixtures/documents-1.json");
const EVENTS: [&str; 2] =
    [include_str!("fixtures/event-stage-1.json"), include_str!("fixtures/event-execution-1.json")];

fn documents(what: &str) -> Vec<Value> {
    let all: Value = serde_json::from_str(DOCUMENTS).expect("an object");
    let mut found = all[what].as_array().unwrap_or_else(|| panic!("no fixtures of `{what}`")).clone();
    if what == "eventBody" {
        found.extend(EVENTS.iter().map(|text| serde_json::from_str::<Value>(text).expect("a document")));
    }
    found
}

/// Reads each as today's type, and sees that nothing of it is lost when it is written again.
fn read_all<T: Serialize + DeserializeOwned>(what: &str) -> Vec<T> {
    let read = |document: Value| {
        let read: T =
            serde_json::from_value(document.clone()).unwrap_or_else(|error| panic!("{what}: {error}: {document}"));
        let again = serde_json::to_value(&read).expect("written");
        assert!(covers(&document, &again), "{what}: {document} came back as {again}");
        read
    };
    documents(what).into_iter().map(read).collect()
}

/// All that the old one says the new one says too; it may say more.
fn covers(old: &Value, new: &Value) -> bool {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            old.iter().all(|(key, value)| new.get(key).map_or(value.is_null(), |new| covers(value, new)))
        }
        (Value::Array(old), Value::Array(new)) => {
            old.len() == new.len() && old.iter().zip(new).all(|(old, new)| covers(old, new))
        }
        // The same instant may be written otherwise.
        (Value::String(one), Value::String(other)) if one != other => {
            let instant = |text: &str| DateTime::parse_from_rfc3339(text).ok();
            instant(one).is_some() && instant(one) == instant(other)
        }
        _ => old == new,
    }
}

/// Every variant of an enum has a fixture. Asked for one that it does not know, serde lists those
/// that it knows.
fn every_variant<T: DeserializeOwned>(what: &str, tag: Option<&str>) {
    let asked = tag.map_or_else(|| json!("?"), |tag| json!({ tag: "?" }));
    let Err(error) = serde_json::from_value::<T>(asked) else { panic!("`{what}` knows `?`") };
    let text = error.to_string();
    let known: Vec<&str> = text.split('`').skip(1).step_by(2).filter(|name| *name != "?").collect();
    assert!(known.len() > 1, "{what}: {text}");
    let found = documents(what);
    for name in known {
        let has = found.iter().any(|document| tag.map_or(document, |tag| &document[tag]) == name);
        assert!(has, "`{name}` of `{what}` has no fixture in fixtures/documents-1.json");
    }
}

#[test]
fn documents_of_format_1_are_still_read_and_every_variant_has_one() {
    read_all::<EventBody>("eventBody");
    every_variant::<EventBody>("eventBody", Some("type"));
    read_all::<IntentOutcome>("intentOutcome");
    every_variant::<IntentOutcome>("intentOutcome", Some("type"));
    read_all::<Wake>("wake");
    every_variant::<Wake>("wake", Some("on"));
    read_all::<PipelineDefinition>("definition");
    read_all::<Vec<NotificationRule>>("rules");
    read_all::<Vec<ExecutionRule>>("executionRules");
    read_all::<Triggered>("triggered");
    read_all::<DeliveryState>("deliveryState");
    every_variant::<DeliveryState>("deliveryState", None);
    read_all::<Cancel>("cancel");
    read_all::<Failure>("failure");
    read_all::<Progress>("progress");
    read_all::<Vec<Task>>("tasks");
    read_all::<Unwinding>("unwinding");
    read_all::<Vec<Role>>("roles");
    read_all::<Status>("status");
    every_variant::<Status>("status", None);
    read_all::<Phase>("phase");
    every_variant::<Phase>("phase", None);
    read_all::<ExecutionKind>("executionKind");
    every_variant::<ExecutionKind>("executionKind", None);
    read_all::<Occasion>("occasion");
    every_variant::<Occasion>("occasion", None);
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
