//! Things to write, and the commits that write them as the engine does.

use super::*;

pub fn application(name: &str) -> Application {
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

pub fn pipeline(application: &Application, name: &str) -> (Pipeline, Revision) {
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

pub fn stage(execution: ExecutionId, position: i64) -> Stage {
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

pub fn execution(application: &Application, pipeline: Option<&Pipeline>, stages: i64) -> Execution {
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
        trigger: None,
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

pub fn write(writes: Vec<Write>) -> Commit {
    Commit { writes, ..Commit::default() }
}

/// An application with a pipeline, stored.
pub async fn ground(store: &Store, name: &str) -> (Application, Pipeline) {
    let application = application(name);
    let (pipeline, revision) = pipeline(&application, "release");
    let writes = vec![
        Write::InsertApplication(application.clone()),
        Write::InsertPipeline { pipeline: Box::new(pipeline.clone()), revision: Box::new(revision) },
    ];
    store.commit(write(writes)).await.expect("committed");
    (application, pipeline)
}

pub async fn insert(store: &Store, execution: &Execution) -> Execution {
    store.commit(write(vec![Write::InsertExecution(Box::new(execution.clone()))])).await.expect("committed");
    store.execution(execution.id).await.expect("read").expect("is there")
}

/// The next state of an execution, with its event, as the engine commits it.
pub fn next(execution: &Execution, change: impl FnOnce(&mut Execution)) -> (Commit, Execution) {
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
            body: EventBody::execution(&changed),
        }],
    };
    (commit, changed)
}

/// An open intent of the execution's first stage.
pub fn intent(execution: &Execution, attempt: i32) -> Intent {
    Intent {
        id: IntentId::new(),
        execution: execution.id,
        stage: execution.stages[0].id,
        attempt,
        key: "create".to_owned(),
        what: "create server group hello-v001".to_owned(),
        lease_number: 4,
        created_at: start(),
        deadline: start() + TimeDelta::seconds(30),
        closed_at: None,
        outcome: None,
    }
}

pub fn first(limit: u64) -> PageRequest {
    PageRequest { after: None, before: None, limit, backward: false }
}

pub fn place() -> Place {
    Place { account: "local".to_owned(), location: "local".to_owned() }
}

pub fn notification(subject: &str) -> Notification {
    Notification {
        id: NotificationId::new(),
        occasion: Occasion::ApprovalNeeded,
        application_name: "hello".to_owned(),
        about: About::Execution(AboutExecution {
            execution: ExecutionId::new(),
            execution_name: "release".to_owned(),
            execution_number: 7,
            stage: Some(StageId::new()),
        }),
        subject: subject.to_owned(),
        text: "one\ntwo".to_owned(),
        created_at: start(),
    }
}

/// The next notice of one's own (other tests of the same database server may be heard too).
pub async fn heard<T: Clone>(receiver: &mut broadcast::Receiver<T>, mine: impl Fn(&T) -> bool) -> T {
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
