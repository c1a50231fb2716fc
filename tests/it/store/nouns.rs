//! Applications, pipelines, principals: names, revisions, lists.

use super::*;

cases!(
    both:
    lists_page_both_ways,
    executions_are_filtered,
    names_are_unique,
    an_application_with_running_executions_is_not_deleted,
    a_revision_is_kept_and_the_newest_is_guarded,
    principals_and_tokens_read_back
);

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
        (
            ExecutionFilter { kind: Some(ExecutionKind::Operation), ..Default::default() },
            vec![elsewhere.id, operation.id],
        ),
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
    let mut commit = write(vec![Write::InsertPipeline { pipeline: Box::new(second), revision: Box::new(revision) }]);
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
        guards: vec![Guard::Application { id: hello.id, version: None }, Guard::NoneRunning { application: hello.id }],
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
