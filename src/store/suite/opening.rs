//! Opening: locks, migrations, modes, and what only one of the databases has.

use super::*;

on_both!(a_newer_schema_is_refused, the_epoch_stays,);

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

// --- of one database only ---

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
async fn a_full_disk_is_told_and_survived() {
    let place = Home::sqlite().await;
    let store = &place.store;
    ground(store, "hello").await;
    let limit = async |pages: &'static str| {
        let op = prepare::Op::Run { sql: pages, values: Vec::new() };
        let prepared = prepare::Prepared { ops: vec![op], ..Default::default() };
        store.inner.write.write(prepared).await.expect("written");
    };
    // SQLite does not let it fall below what is used: the file is full.
    limit("PRAGMA max_page_count = 1").await;
    let mut big = application("big");
    big.description = "x".repeat(1 << 20);
    for _ in 0..3 {
        match store.commit(write(vec![Write::InsertApplication(big.clone())])).await {
            Err(CommitError::Unavailable(message)) => assert!(message.contains("disk is full"), "{message}"),
            other => panic!("expected a full disk, got {other:?}"),
        }
    }
    limit("PRAGMA max_page_count = 1000000").await;
    store.commit(write(vec![Write::InsertApplication(big.clone())])).await.expect("there is room again");
    assert_eq!(store.application_names().await.expect("read"), ["big", "hello"]);
    place.end().await;
}

/// Without a gap between commits, and so without an end to the log of its own accord.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_does_not_grow_for_ever() {
    let place = Home::sqlite().await;
    let store = &place.store;
    let many: Vec<Application> = (0..100).map(|n| application(&format!("a{n}"))).collect();
    store.commit(write(many.iter().cloned().map(Write::InsertApplication).collect())).await.expect("committed");
    let log = place.options.data_dir.join("gennaker.db-wal");
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
    place.end().await;
}

/// What was answered is there after `kill -9`, and what is there is whole.
#[tokio::test]
async fn what_was_answered_outlives_a_killed_process() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};
    let dir = directory();
    let mut child = Command::new(std::env::current_exe().expect("this test's program"))
        .args(["--exact", "store::suite::opening::writes_until_killed", "--ignored", "--nocapture"])
        .env(CHILD_DIR, &dir)
        .stdout(Stdio::piped())
        .spawn()
        .expect("a process");
    let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    let mut answered = Vec::new();
    for line in lines.map_while(Result::ok) {
        answered.extend(line.strip_prefix("answered ").map(str::to_owned));
        if answered.len() == 100 {
            child.kill().expect("killed");
        }
    }
    child.wait().expect("ended");
    assert!(answered.len() >= 100);
    let options = Options { database_url: None, data_dir: dir.clone(), durability: Durability::Normal, queue_max: 64 };
    let store = Store::open(&options, Clock::manual(start())).await.expect("opens: the dead hold no lock");
    for name in &answered {
        assert!(store.application_by_name(name).await.expect("read").is_some(), "{name} was lost");
    }
    let names = store.application_names().await.expect("read");
    for name in names {
        let application = store.application_by_name(&name).await.expect("read").expect("there");
        assert_eq!(store.pipeline_names(application.id).await.expect("read"), ["release"], "{name} is not whole");
    }
    store.close().await;
    std::fs::remove_dir_all(dir).expect("removed");
}

const CHILD_DIR: &str = "GENNAKER_TEST_STORE_DIR";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the process that what_was_answered_outlives_a_killed_process kills"]
async fn writes_until_killed() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let options = Options { database_url: None, data_dir: dir.into(), durability: Durability::Normal, queue_max: 64 };
    let store = Store::open(&options, Clock::manual(start())).await.expect("opens");
    let writers = (0..8).map(async |writer| {
        // Ends by itself should nobody kill it.
        for n in 0..2000 {
            let name = format!("a{writer}.{n}");
            ground(&store, &name).await;
            println!("answered {name}");
        }
    });
    futures_util::future::join_all(writers).await;
}

#[tokio::test]
async fn pruning_gives_pages_back() {
    let place = Home::sqlite().await;
    let store = &place.store;
    let (hello, pipeline) = ground(store, "hello").await;
    for _ in 0..20 {
        let mut execution = execution(&hello, Some(&pipeline), 1);
        execution.stages[0].config = json!("x".repeat(100_000));
        execution.status = Status::Succeeded;
        execution.ended_at = Some(start());
        insert(store, &execution).await;
    }
    let pages = async |pragma: &str| {
        let row = sql::one(&store.inner.read, pragma, Vec::new()).await.expect("read").expect("a row");
        row.try_get_by_index::<i32>(0).expect("a number")
    };
    let before = pages("PRAGMA page_count").await;
    assert_eq!(store.prune_executions(start() + TimeDelta::seconds(1), 100).await.expect("pruned"), 20);
    assert!(pages("PRAGMA page_count").await < before / 4);
    assert_eq!(pages("PRAGMA freelist_count").await, 0);
    place.end().await;
}

#[tokio::test]
async fn a_full_queue_refuses_as_unavailable() {
    let options = Options { database_url: None, data_dir: directory(), durability: Durability::Full, queue_max: 1 };
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

#[tokio::test]
async fn a_new_start_on_the_file_may_take_everything_at_once() {
    let place = Home::sqlite().await;
    let (hello, pipeline) = ground(&place.store, "hello").await;
    let stored = insert(&place.store, &execution(&hello, Some(&pipeline), 1)).await;
    let (dead, new) = (OwnerId::new(), OwnerId::new());
    place.store.owner_register(dead).await.expect("registered");
    place.store.execution_claim(dead, stored.id).await.expect("claim").expect("taken");
    place.store.close().await;
    let again = Store::open(&place.options, place.clock.clone()).await.expect("opens again");
    again.owner_register(new).await.expect("registered");
    assert_eq!(again.owners().await.expect("read"), [(new, 0)]);
    assert_eq!(again.executions_due(new, start(), 10).await.expect("read"), [stored.id]);
    let (lease, _) = again.execution_claim(new, stored.id).await.expect("claim").expect("taken");
    assert_eq!(lease.number, 2);
    again.close().await;
    place.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_start_together_migrate_once() {
    let Some(place) = Home::postgres().await else { return };
    let (admin, schema) = place.schema.as_ref().expect("PostgreSQL has a schema");
    place.store.close().await;
    for statement in [format!("DROP SCHEMA {schema} CASCADE"), format!("CREATE SCHEMA {schema}")] {
        admin.execute_unprepared(&statement).await.expect("an empty schema");
    }
    let opened = futures_util::future::join_all((0..4).map(|_| Store::open(&place.options, place.clock.clone()))).await;
    let stores: Vec<Store> = opened.into_iter().map(|store| store.expect("opens")).collect();
    assert!(stores.iter().all(|store| store.epoch() == stores[0].epoch()));
    let (hello, _) = ground(&stores[0], "hello").await;
    for store in &stores {
        assert_eq!(store.application(hello.id).await.expect("read"), Some(hello.clone()));
        store.close().await;
    }
    place.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_outlive_lost_connections() {
    let Some(place) = Home::postgres().await else { return };
    let (admin, schema) = place.schema.as_ref().expect("PostgreSQL has a schema");
    let (hello, pipeline) = ground(&place.store, "hello").await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let mut stored = insert(&place.store, &execution(&hello, Some(&pipeline), 1)).await;
        let store = place.store.clone();
        tasks.spawn(async move {
            let mut unknown = 0;
            for _ in 0..30 {
                let (commit, _) = next(&stored, |execution| execution.status = Status::Running);
                match store.commit(commit).await {
                    Ok(_) => {}
                    // Cut between COMMIT and its answer: the row tells.
                    Err(CommitError::Unknown(_)) => unknown += 1,
                    Err(error) => panic!("{error}"),
                }
                // A reader's connection may be cut too.
                stored = loop {
                    if let Ok(read) = store.execution(stored.id).await {
                        break read.expect("is there");
                    }
                };
            }
            (stored, unknown)
        });
    }
    for _ in 0..5 {
        let sql = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '{schema}'");
        admin.execute_unprepared(&sql).await.expect("cut");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for (stored, unknown) in tasks.join_all().await {
        let events = place.store.events(StreamId::Execution(stored.id), 0, 1000).await.expect("read");
        assert_eq!(events.len() as i64, stored.event_seq, "{unknown} unknown");
        assert!(stored.version >= 31 - unknown);
    }
    place.end().await;
}

#[test]
fn documents_of_format_1_are_still_read() {
    let body: EventBody = serde_json::from_str(include_str!("../fixtures/event-stage-1.json")).expect("read");
    let EventBody::StageChanged { stage } = body else { panic!("a stage's event") };
    assert_eq!((stage.key.as_str(), stage.status), ("deploy", Status::Running));
    assert_eq!(stage.progress.map(|progress| progress.total), Some(3));
    let body: EventBody = serde_json::from_str(include_str!("../fixtures/event-execution-1.json")).expect("read");
    let EventBody::ExecutionChanged { execution } = body else { panic!("an execution's event") };
    assert_eq!((execution.number, execution.cancel.map(|cancel| cancel.mode)), (42, Some(CancelMode::Unwind)));
}
