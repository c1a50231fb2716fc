//! Opening: locks, migrations, modes, and what only one of the databases has.

use super::*;

cases!(
    both: a_newer_schema_is_refused, the_epoch_stays;
    sqlite:
        a_second_server_on_the_data_directory_is_refused,
        the_data_is_for_its_owner_only,
        an_older_file_is_copied_before_it_is_migrated,
        a_file_that_is_no_database_is_left_as_it_is,
        pruning_gives_pages_back,
        a_full_queue_refuses_as_unavailable,
        a_new_start_on_the_file_may_take_everything_at_once;
    postgres:
        replicas_hear_of_each_other,
        servers_that_start_together_migrate_once,
        commits_outlive_lost_connections
);

async fn a_newer_schema_is_refused(at: &Home) {
    let beside = at.beside().await;
    let future = "INSERT INTO seaql_migrations (version, applied_at) VALUES ('m29990101_000001_future', 0)";
    beside.execute_unprepared(future).await.expect("written");
    beside.close().await.expect("closed");
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

async fn a_second_server_on_the_data_directory_is_refused(place: &Home) {
    match Store::open(&place.options, place.clock.clone()).await {
        Err(Error::Locked { dir, holder }) => {
            assert_eq!(dir, place.options.data_dir);
            assert_eq!(holder, Some(std::process::id()), "it says who has it");
        }
        other => panic!("expected a refusal, got {other:?}"),
    }
    // A command may work beside it.
    let tool = Store::open_beside(&place.options, place.clock.clone()).await.expect("opens");
    let (hello, _) = ground(&tool, "hello").await;
    tool.close().await;
    assert_eq!(place.store.application_by_name("hello").await.expect("read"), Some(hello));
}

async fn the_data_is_for_its_owner_only(place: &Home) {
    use std::os::unix::fs::PermissionsExt;
    ground(&place.store, "hello").await;
    let mode = |path: &std::path::Path| std::fs::metadata(path).expect("is there").permissions().mode() & 0o777;
    assert_eq!(mode(&place.options.data_dir), 0o700);
    for entry in std::fs::read_dir(&place.options.data_dir).expect("listed") {
        let path = entry.expect("an entry").path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
    let row = one_row(&place.beside().await, "PRAGMA auto_vacuum").await;
    assert_eq!(row.try_get_by_index::<i32>(0).expect("a number"), 2, "incremental");
}

async fn an_older_file_is_copied_before_it_is_migrated(place: &Home) {
    let (hello, _) = ground(&place.store, "hello").await;
    let undo = [
        "DROP TABLE owner",
        "DROP TABLE cluster_claim",
        "DROP TABLE name_reservation",
        "DELETE FROM seaql_migrations WHERE version LIKE '%leases' OR version LIKE '%served'",
    ];
    let beside = place.beside().await;
    for statement in undo {
        beside.execute_unprepared(statement).await.expect("undone");
    }
    beside.close().await.expect("closed");
    place.store.close().await;
    assert!(Store::open_beside(&place.options, place.clock.clone()).await.is_err(), "a tool does not migrate");
    let again = Store::open(&place.options, place.clock.clone()).await.expect("migrates");
    again.owner_register(OwnerId::new(), &[]).await.expect("the new tables are there");
    assert_eq!(again.application(hello.id).await.expect("read"), Some(hello.clone()));
    again.close().await;
    let copy = place.options.data_dir.join(format!("gennaker.db.before-{}", env!("CARGO_PKG_VERSION")));
    let copy = Database::connect(format!("sqlite:{}?mode=ro", copy.display())).await.expect("the copy opens");
    let count = |table: &str| format!("SELECT COUNT(*) FROM sqlite_master WHERE name = '{table}'");
    let row = one_row(&copy, &count("owner")).await;
    assert_eq!(row.try_get_by_index::<i64>(0).expect("a number"), 0, "as it was before");
    let row = one_row(&copy, "SELECT name FROM application").await;
    assert_eq!(row.try_get_by_index::<String>(0).expect("a name"), "hello");
    copy.close().await.expect("closed");
}

async fn a_file_that_is_no_database_is_left_as_it_is(place: &Home) {
    let dir = directory();
    std::fs::create_dir(&dir).expect("made");
    let path = dir.join("gennaker.db");
    let options = Options { data_dir: dir.clone(), ..place.options.clone() };
    let backup = dir.join("backup.db");
    gennaker::store::backup(&place.options, &backup, false).await.expect("a backup");
    let text = b"somebody's own file, which is no database".repeat(100);
    let mut torn = b"SQLite format 3\0".to_vec();
    torn.push(0x10);
    for content in [&b"x"[..], b"SQLite format 3", &torn, &text] {
        std::fs::write(&path, content).expect("written");
        let server = Store::open(&options, place.clock.clone()).await.map(drop);
        let tool = Store::open_beside(&options, place.clock.clone()).await.map(drop);
        let copy = gennaker::store::backup(&options, &dir.join("copy.db"), false).await.map(drop);
        for refused in [server, tool, copy] {
            match refused {
                Err(Error::Refused(said)) => {
                    assert!(said.starts_with(&format!("{} is no SQLite database", path.display())), "{said}");
                    assert!(said.contains("gennaker restore"), "{said}");
                }
                other => panic!("expected a refusal, got {other:?}"),
            }
        }
        assert_eq!(std::fs::read(&path).expect("read"), content, "it is what it was");
    }
    // It begins as one and goes on as none: SQLite finds that out, and the file is named.
    let mut bytes = std::fs::read(&backup).expect("read");
    bytes[16..].fill(0xa5);
    std::fs::write(&path, &bytes).expect("written");
    let error = Store::open(&options, place.clock.clone()).await.map(drop).expect_err("no database").to_string();
    assert!(error.contains(&path.display().to_string()), "{error}");
    assert_eq!(std::fs::read(&path).expect("read"), bytes, "it is what it was");

    // A restore keeps it aside as it is.
    std::fs::write(&path, b"x").expect("written");
    let restored = gennaker::store::restore(&options, &backup, true, start()).await.expect("restored");
    assert_eq!(std::fs::read(restored.kept.expect("kept")).expect("read"), b"x");
    // And an empty one is what a first start that was killed leaves.
    std::fs::write(&path, b"").expect("written");
    Store::open(&options, place.clock.clone()).await.expect("opens").close().await;
    std::fs::remove_dir_all(&dir).expect("removed");
}

async fn pruning_gives_pages_back(place: &Home) {
    let store = &place.store;
    let (hello, pipeline) = ground(store, "hello").await;
    for _ in 0..20 {
        let mut execution = execution(&hello, Some(&pipeline), 1);
        execution.stages[0].config = json!("x".repeat(100_000));
        execution.status = Status::Succeeded;
        execution.ended_at = Some(start());
        insert(store, &execution).await;
    }
    let beside = place.beside().await;
    let pages = async |pragma: &str| one_row(&beside, pragma).await.try_get_by_index::<i32>(0).expect("a number");
    let before = pages("PRAGMA page_count").await;
    assert_eq!(store.prune_executions(start() + TimeDelta::seconds(1), 100).await.expect("pruned"), 20);
    assert!(pages("PRAGMA page_count").await < before / 4);
    assert_eq!(pages("PRAGMA freelist_count").await, 0);
}

async fn a_full_queue_refuses_as_unavailable(place: &Home) {
    let options =
        Options { data_dir: directory(), durability: Durability::Full, queue_max: 1, ..place.options.clone() };
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

async fn replicas_hear_of_each_other(place: &Home) {
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
}

async fn a_new_start_on_the_file_may_take_everything_at_once(place: &Home) {
    let (hello, pipeline) = ground(&place.store, "hello").await;
    let stored = insert(&place.store, &execution(&hello, Some(&pipeline), 1)).await;
    let (dead, new) = (OwnerId::new(), OwnerId::new());
    place.store.owner_register(dead, &[]).await.expect("registered");
    place.store.execution_claim(dead, stored.id).await.expect("claim").expect("taken");
    place.store.close().await;
    let again = Store::open(&place.options, place.clock.clone()).await.expect("opens again");
    again.owner_register(new, &[]).await.expect("registered");
    assert_eq!(again.owners().await.expect("read"), [(new, 0)]);
    assert_eq!(again.executions_due(new, start(), 10).await.expect("read"), [stored.id]);
    let (lease, _) = again.execution_claim(new, stored.id).await.expect("claim").expect("taken");
    assert_eq!(lease.number, 2);
    again.close().await;
}

async fn servers_that_start_together_migrate_once(place: &Home) {
    let Schema { admin, name: schema, .. } = place.schema.as_ref().expect("PostgreSQL has a schema");
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
}

async fn commits_outlive_lost_connections(place: &Home) {
    let Schema { admin, name: schema, .. } = place.schema.as_ref().expect("PostgreSQL has a schema");
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
}
