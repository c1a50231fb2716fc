//! What needs the store's insides: a full disk, the length of SQLite's log, old documents. All
//! else is in `tests/it/store`, on both databases.

use chrono::DateTime;

use super::*;
use crate::model::{Application, CancelMode, EventBody};

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

#[tokio::test]
async fn a_full_disk_is_told_and_survived() {
    let home = Home::new().await;
    let store = &home.store;
    store.commit(write(vec![Write::InsertApplication(application("hello"))])).await.expect("committed");
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
