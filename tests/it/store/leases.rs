//! Leases, clusters' queues, reserved names, intents, retention.

use super::*;

cases!(
    both:
    a_lease_is_taken_over_when_its_owner_is_forgotten,
    due_executions_are_those_i_may_work_on,
    a_cluster_is_held_in_order_of_arrival,
    a_name_is_reserved_once,
    intents_are_kept_and_closed,
    pruning_takes_what_has_ended_and_leaves_the_rest,
    a_revision_goes_when_it_is_old_and_nothing_names_it
);

async fn a_lease_is_taken_over_when_its_owner_is_forgotten(at: &Home) {
    let (application, pipeline) = ground(&at.store, "hello").await;
    let stored = insert(&at.store, &execution(&application, Some(&pipeline), 1)).await;
    let (old, new) = (OwnerId::new(), OwnerId::new());
    at.store.owner_register(old, &[]).await.expect("registered");
    at.store.owner_register(new, &[]).await.expect("registered");
    assert!(at.store.owner_beat(old).await.expect("beat"));
    assert_eq!(at.store.owners().await.expect("read"), [(old, 1), (new, 0)]);

    let (lease, read) = at.store.execution_claim(old, stored.id).await.expect("claim").expect("taken");
    assert_eq!((lease.number, read), (1, stored.clone()));
    let (again, _) = at.store.execution_claim(old, stored.id).await.expect("claim").expect("mine");
    assert_eq!(again, lease);
    assert_eq!(at.store.execution_claim(new, stored.id).await.expect("claim"), None);

    at.store.owner_forget(old).await.expect("forgotten");
    assert!(!at.store.owner_beat(old).await.expect("the forgotten learn it"));
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
        at.store.owner_register(owner, &[]).await.expect("registered");
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
    assert_eq!(at.store.executions_due(me, now, 10).await.expect("read"), []);
    assert_eq!(at.store.executions_due(me, later, 10).await.expect("read"), [ids[2]]);
}

async fn a_cluster_is_held_in_order_of_arrival(at: &Home) {
    let (application, pipeline) = ground(&at.store, "hello").await;
    let me = OwnerId::new();
    at.store.owner_register(me, &[]).await.expect("registered");
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
    // What changes the cluster is committed only for who holds it.
    let held = async |index: usize| {
        let guard = Guard::ClusterHeld { key: key.clone(), stage: leases[index].1 };
        at.store.commit(Commit { guards: vec![guard], ..Commit::default() }).await
    };
    held(0).await.expect("it is first");
    for other in [1, 2, 3] {
        assert!(matches!(held(other).await, Err(CommitError::Refused(_))), "{other} is not first");
    }
    assert_eq!(claim(2).await, ahead(&[0]));
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
    at.store.owner_register(me, &[]).await.expect("registered");
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

    // Once the holder's execution is over the name is free again, for one of those who ask together.
    let over = at.store.execution(lease.execution).await.expect("read").expect("it is there");
    let (commit, _) = next(&over, |execution| execution.status = Status::Succeeded);
    at.store.commit(commit).await.expect("committed");
    let mut tasks = tokio::task::JoinSet::new();
    for (_, lease, stage) in results.iter().copied().filter(|(mine, ..)| !*mine) {
        let store = at.store.clone();
        tasks.spawn(async move { store.name_reserve(lease, &place(), "hello-v001", stage, 1).await.expect("asked") });
    }
    assert_eq!(tasks.join_all().await.iter().filter(|mine| **mine).count(), 1);
    assert_eq!(at.store.name_reserved(&place(), stage, 1).await.expect("read"), None);
}

async fn intents_are_kept_and_closed(at: &Home) {
    let (hello, pipeline) = ground(&at.store, "hello").await;
    let stored = insert(&at.store, &execution(&hello, Some(&pipeline), 1)).await;
    let mut intents: Vec<Intent> = (1..=3).map(|attempt| intent(&stored, attempt)).collect();
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
    let before: i64 = highest(at).await;
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
    assert!(highest(at).await > before);
}

async fn a_revision_goes_when_it_is_old_and_nothing_names_it(at: &Home) {
    let (hello, first) = ground(&at.store, "hello").await;
    let (_, other) = ground(&at.store, "other").await;
    // The second of five is run; the last two are saved later than the rest.
    let mut executions = Vec::new();
    for number in 2..=5 {
        let created_at = start() + TimeDelta::hours(if number < 4 { 0 } else { 2 });
        let pipeline = Pipeline { revision: number, updated_at: created_at, ..first.clone() };
        let revision = Revision {
            pipeline: first.id,
            number,
            definition: first.definition.clone(),
            created_at,
            created_by: PrincipalId::new(),
            created_by_name: "ann".to_owned(),
        };
        let add = Write::AddRevision { pipeline: Box::new(pipeline.clone()), revision: Box::new(revision) };
        at.store.commit(write(vec![add])).await.expect("committed");
        if number == 2 {
            let of_it = Execution { revision: number, ..execution(&hello, Some(&pipeline), 1) };
            executions.push(insert(&at.store, &of_it).await);
        }
    }
    let kept = async |pipeline: &Pipeline| {
        let page = at.store.revisions(pipeline.id, &self::first(100)).await.expect("read");
        page.items.into_iter().map(|(_, revision)| revision.number).collect::<Vec<_>>()
    };
    assert_eq!(at.store.prune_revisions(start() + TimeDelta::hours(1)).await.expect("pruned"), 2);
    assert_eq!((kept(&first).await, kept(&other).await), (vec![5, 4, 2], vec![1]));
    assert_eq!(at.store.prune_revisions(start() + TimeDelta::hours(1)).await.expect("pruned"), 0);
    // With its execution goes what it named.
    let (commit, _) = next(&executions[0], |execution| {
        execution.status = Status::Succeeded;
        execution.ended_at = Some(start());
    });
    at.store.commit(commit).await.expect("committed");
    assert_eq!(at.store.prune_executions(start() + TimeDelta::hours(1), 10).await.expect("pruned"), 1);
    assert_eq!(at.store.prune_revisions(start() + TimeDelta::hours(3)).await.expect("pruned"), 2);
    assert_eq!((kept(&first).await, kept(&other).await), (vec![5], vec![1]));
}

async fn highest(at: &Home) -> i64 {
    let row = one_row(&at.beside().await, "SELECT MAX(position) FROM event").await;
    row.try_get_by_index(0).expect("a number")
}
