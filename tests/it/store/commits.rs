//! Commits: guards, refusals, numbers, events, what reads back.

use super::*;

cases!(
    both:
    an_execution_reads_back_as_it_was_written,
    a_stage_reads_back_as_it_was_written,
    a_stale_version_is_refused_and_changes_nothing,
    a_refused_commit_touches_no_other,
    a_commit_that_breaks_a_constraint_fails_alone,
    what_follows_a_commit_happens_with_it_or_not_at_all,
    an_advance_moves_the_version_and_nothing_else,
    guards_hold_after_a_batch_that_failed,
    parallel_starts_are_numbered_without_gaps,
    operations_are_numbered_within_the_application,
    parallel_starts_under_one_key_give_one_execution,
    streams_are_gapless_and_positions_in_commit_order,
    the_notifications_stream_is_numbered_by_the_writer,
    notices_follow_commits,
    a_closed_store_refuses_commits
);

async fn an_execution_reads_back_as_it_was_written(at: &Home) {
    let (application, pipeline) = ground(&at.store, "hello").await;
    let mut given = execution(&application, Some(&pipeline), 3);
    given.name = "naïve 🚀 \u{202e} 'x' \"y\" $1 ? %".to_owned();
    given.parameters = json!({"z": 1, "a": [1.5, null, "\u{0000}", {"ü": true}], "big": 9_007_199_254_740_993_i64});
    given.notifications =
        vec![ExecutionRule { stage: None, on: vec![Occasion::Failed, Occasion::ApprovalNeeded], email: None }];
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
    full.tasks =
        vec![Task { name: "t".to_owned(), status: Status::Running, started_at: Some(start()), ended_at: None }];
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
    // Its event tells what others may see.
    let EventBody::StageChanged { stage } = EventBody::stage(&plain) else { panic!("a stage's event") };
    assert_eq!((stage.config, stage.resolved, stage.cursor), (Value::Null, None, Value::Null));
    assert_eq!(stage.outputs, plain.outputs);
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

async fn what_follows_a_commit_happens_with_it_or_not_at_all(at: &Home) {
    let (application, pipeline) = ground(&at.store, "hello").await;
    let stored = insert(&at.store, &execution(&application, Some(&pipeline), 1)).await;
    let not_cancelled = Guard::NotCancelled { execution: stored.id };
    let at_version = |version| Guard::ExecutionVersion { id: stored.id, version };
    let intents = async || at.store.intents(stored.id).await.expect("read");
    let following = |guard: &Guard, intent: &Intent| {
        let writes = vec![Write::InsertIntent(intent.clone())];
        at.store.following(Commit { guards: vec![guard.clone()], ..write(writes) })
    };
    let refused = |result: Result<_, CommitError>| match result {
        Err(CommitError::Refused(refusal)) => refusal.guard,
        other => panic!("expected a refusal, got {other:?}"),
    };

    // With it, and it sees what the first has written.
    let (commit, second) = next(&stored, |execution| execution.status = Status::Running);
    let kept = intent(&stored, 1);
    let (first, first_answer) = following(&at_version(2), &kept);
    let (stale, stale_answer) = following(&at_version(1), &intent(&stored, 2));
    at.store.commit_with(commit, vec![first, stale]).await.expect("committed");
    first_answer.wait().await.expect("committed");
    assert_eq!(refused(stale_answer.wait().await), at_version(1), "its own guard, and the others happen");
    assert_eq!(intents().await, std::slice::from_ref(&kept));

    // Not without it, whatever its own guards say.
    let (commit, _) = next(&stored, |execution| execution.status = Status::Failed);
    let (late, answer) = following(&not_cancelled, &intent(&stored, 3));
    assert_eq!(refused(at.store.commit_with(commit, vec![late]).await), at_version(1));
    assert_eq!(refused(answer.wait().await), at_version(1));
    assert_eq!(intents().await, std::slice::from_ref(&kept));

    // Nor where one of them breaks a constraint.
    let (commit, _) = next(&second, |execution| execution.status = Status::Failed);
    let (twice, answer) = following(&not_cancelled, &kept);
    let result = at.store.commit_with(commit, vec![twice]).await;
    assert!(matches!(result, Err(CommitError::Unavailable(_))), "{result:?}");
    assert!(matches!(answer.wait().await, Err(CommitError::Unavailable(_))));
    assert_eq!(at.store.execution(stored.id).await.expect("read").expect("there"), second);

    // A cancel in the first is seen by what follows.
    let (commit, _) = next(&second, |execution| {
        execution.cancel = Some(Cancel {
            by: PrincipalId::new(),
            by_name: "bo".to_owned(),
            at: start(),
            reason: String::new(),
            mode: CancelMode::Unwind,
        });
    });
    let (late, answer) = following(&not_cancelled, &intent(&stored, 4));
    at.store.commit_with(commit, vec![late]).await.expect("committed");
    assert_eq!(refused(answer.wait().await), not_cancelled);

    // What is never handed in is not waited for.
    let (dropped, answer) = following(&at_version(3), &intent(&stored, 5));
    drop(dropped);
    assert!(matches!(answer.wait().await, Err(CommitError::Unknown(_))));
    assert_eq!(intents().await, [kept]);
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

async fn an_advance_moves_the_version_and_nothing_else(at: &Home) {
    let (application, pipeline) = ground(&at.store, "hello").await;
    let stored = insert(&at.store, &execution(&application, Some(&pipeline), 1)).await;
    let owner = OwnerId::new();
    at.store.owner_register(owner, &[]).await.expect("registered");
    let (lease, _) = at.store.execution_claim(owner, stored.id).await.expect("claim").expect("taken");
    let advance = |version: i64| {
        let mut commit = write(vec![Write::AdvanceExecution { id: stored.id, version: version + 1, event_seq: 7 }]);
        commit.guards = vec![
            Guard::Lease { execution: stored.id, owner, number: lease.number },
            Guard::ExecutionVersion { id: stored.id, version },
        ];
        commit
    };
    // Of many that have read the same version, one goes through.
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let (store, commit) = (at.store.clone(), advance(stored.version));
        tasks.spawn(async move { store.commit(commit).await.is_ok() });
    }
    assert_eq!(tasks.join_all().await.into_iter().filter(|ok| *ok).count(), 1);
    at.store.commit(advance(stored.version + 1)).await.expect("committed");
    let read = at.store.execution(stored.id).await.expect("read").expect("there");
    assert_eq!(read, Execution { version: stored.version + 2, event_seq: 7, ..stored.clone() });
    assert_eq!(at.store.executions_due(owner, at.clock.now(), 10).await.expect("read"), [stored.id], "still due");
    // What a command writes in between counts for the next guard.
    let (mut cancel, canceled) = next(&read, |execution| execution.status = Status::Running);
    cancel.events.clear();
    at.store.commit(cancel).await.expect("committed");
    let refused = at.store.commit(advance(read.version)).await;
    assert!(matches!(refused, Err(CommitError::Refused(_))), "{refused:?}");
    at.store.commit(advance(canceled.version)).await.expect("committed");
    let read = at.store.execution(stored.id).await.expect("read").expect("there");
    assert_eq!((read.version, read.status), (canceled.version + 1, Status::Running));
}

async fn guards_hold_after_a_batch_that_failed(at: &Home) {
    let (application, pipeline) = ground(&at.store, "hello").await;
    let stored = insert(&at.store, &execution(&application, Some(&pipeline), 1)).await;
    for round in 0..10 {
        let read = at.store.execution(stored.id).await.expect("read").expect("there");
        let (good, _) = next(&read, |execution| execution.status = Status::Running);
        let (mut bad, _) = next(&read, |execution| execution.status = Status::Running);
        // A position's stream and number that are there already: found when it is written.
        bad.events[0].seq = Some(1);
        let (one, other) = tokio::join!(at.store.commit(bad), at.store.commit(good));
        assert!(one.is_err(), "round {round}");
        assert!(other.is_ok(), "round {round}: {other:?}");
        let after = at.store.execution(stored.id).await.expect("read").expect("there");
        assert_eq!(after.version, read.version + 1, "round {round}");
    }
    let events = at.store.events(StreamId::Execution(stored.id), 0, 100).await.expect("read");
    assert_eq!(events.len(), 12, "two of the start, one a round");
    assert!(events.is_sorted_by(|one, two| one.position < two.position));
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
            assert_eq!(events[0].body, EventBody::execution(&read));
            assert_eq!(events[1].body, EventBody::stage(&read.stages[0]));
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
    let beside = at.beside().await;
    let mut seen = 0_i64;
    let mut newest = 0_i64;
    let mut gone = false;
    loop {
        // Before the look: what was over by then is in it.
        let over = tasks.is_empty();
        let sql = format!(
            "SELECT CAST(COUNT(*) AS bigint), CAST(COALESCE(MAX(position), 0) AS bigint), \
                   CAST(COALESCE(SUM(CASE WHEN position <= {newest} THEN 1 ELSE 0 END), 0) AS bigint) FROM event"
        );
        let row = one_row(&beside, &sql).await;
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
    // On PostgreSQL, servers of other schemas are heard too.
    let own_work = std::iter::from_fn(|| work.try_recv().ok()).any(|id| id == stored.id);
    assert!(!own_work, "the holder knows its own work");
    at.store.commit(command).await.expect("committed");
    assert_eq!(heard(&mut work, |id| *id == stored.id).await, stored.id);
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
