//! Starting executions: parameters, the key against double starts, one commit.

use chrono::{DateTime, Utc};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{Code, Commands, Error, StartOperation, StartPipeline, Started, TRIES, about, allow};
use crate::engine::{apply, notices, validate};
use crate::model::{
    Action, Actor, Application, ChildSpec, Execution, ExecutionId, ExecutionKind, ExecutionRule, Parameter, Pipeline,
    PipelineDefinition, Resource, StageSpec, Status,
};
use crate::store::{Commit, CommitError, Guard, IdempotencyRecord, Write};

/// Bytes of all parameters together.
const PARAMETERS_MAX: usize = 64 * 1024;
/// Characters of an operation's title.
const TITLE_MAX: usize = 200;

pub(super) async fn pipeline(commands: &Commands, actor: &Actor, start: StartPipeline) -> Result<Started, Error> {
    let key = key(start.idempotency_key.as_deref())?;
    let hash = hash(&json!({ "pipeline": start.pipeline, "parameters": start.parameters }));
    for _ in 0..TRIES {
        let Some(pipeline) = commands.store.pipeline(start.pipeline).await? else {
            return Err(Error::new(Code::NotFound, format!("there is no pipeline {}", start.pipeline)));
        };
        let resource =
            Resource::Pipeline { application: pipeline.application_name.clone(), pipeline: pipeline.name.clone() };
        allow(actor, Action::Start, &resource)?;
        if let Some(started) = replay(commands, actor, key, &hash).await? {
            return Ok(started);
        }
        let parameters = parameters(&pipeline.definition.parameters, &start.parameters)?;
        let detail = json!({ "revision": pipeline.revision, "parameters": parameters });
        let guard = Guard::PipelineRevision { id: pipeline.id, revision: pipeline.revision };
        let execution = of_pipeline(commands, actor, pipeline, parameters)?;
        let audit = commands.audit(actor, Action::Start, resource, with_execution(detail, execution.id));
        if let Some(started) = insert(commands, actor, execution, guard, key, &hash, audit).await? {
            return Ok(started);
        }
    }
    Err(Error::busy("the pipeline"))
}

pub(super) async fn operation(commands: &Commands, actor: &Actor, start: StartOperation) -> Result<Started, Error> {
    let key = key(start.idempotency_key.as_deref())?;
    let hash = hash(&json!({
        "application": start.application, "title": start.title, "stages": start.stages,
    }));
    title(&start.title)?;
    let definition = of_stages(&start.stages);
    for _ in 0..TRIES {
        let Some(application) = commands.store.application(start.application).await? else {
            return Err(Error::new(Code::NotFound, format!("there is no application {}", start.application)));
        };
        let resource = Resource::Application { application: application.name.clone() };
        allow(actor, Action::Operate, &resource)?;
        if let Some(started) = replay(commands, actor, key, &hash).await? {
            return Ok(started);
        }
        validate::definition(&definition, &commands.registry, &commands.options)?;
        let guard = Guard::Application { id: application.id, version: None };
        let kinds: Vec<&str> = start.stages.iter().map(|stage| stage.kind.as_str()).collect();
        let detail = json!({ "title": start.title, "kinds": kinds });
        let execution = of_operation(commands, actor, &application, &start.title, &start.stages)?;
        let audit = commands.audit(actor, Action::Operate, resource, with_execution(detail, execution.id));
        if let Some(started) = insert(commands, actor, execution, guard, key, &hash, audit).await? {
            return Ok(started);
        }
    }
    Err(Error::busy("the application"))
}

pub(super) fn check_operation(
    commands: &Commands,
    actor: &Actor,
    application: &str,
    called: &str,
    stages: &[StageSpec],
) -> Result<(), Vec<Error>> {
    let resource = Resource::Application { application: application.to_owned() };
    allow(actor, Action::Operate, &resource).map_err(|denied| vec![denied])?;
    let mut faults: Vec<Error> = title(called).err().into_iter().collect();
    faults.extend(validate::faults(&of_stages(stages), &commands.registry, &commands.options));
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

fn title(title: &str) -> Result<(), Error> {
    if title.trim().is_empty() || title.chars().count() > TITLE_MAX {
        return Err(Error::invalid(&["title"], format!("the title has to have 1 to {TITLE_MAX} characters")));
    }
    Ok(())
}

fn of_stages(stages: &[StageSpec]) -> PipelineDefinition {
    PipelineDefinition {
        format_version: PipelineDefinition::FORMAT_VERSION,
        stages: stages.to_vec(),
        ..PipelineDefinition::default()
    }
}

fn with_execution(mut detail: Value, execution: ExecutionId) -> Value {
    detail["execution"] = json!(execution);
    detail
}

/// None: something changed meanwhile; read again.
async fn insert(
    commands: &Commands,
    actor: &Actor,
    mut execution: Execution,
    guard: Guard,
    key: Option<&str>,
    hash: &[u8],
    audit: Write,
) -> Result<Option<Started>, Error> {
    let mut commit = Commit { guards: vec![guard], ..Commit::default() };
    let id = execution.id;
    about(id);
    commit.writes = vec![Write::InsertExecution(Box::new(execution.clone())), audit];
    if let Some(key) = key {
        commit.guards.push(Guard::IdempotencyKeyFree { principal: actor.principal, key: key.to_owned() });
        commit.writes.push(Write::InsertIdempotency(IdempotencyRecord {
            principal: actor.principal,
            key: key.to_owned(),
            input_hash: hash.to_vec(),
            execution: id,
            created_at: execution.created_at,
        }));
    }
    match commands.store.commit(commit).await {
        Ok(committed) => {
            execution.number = committed.numbers.first().copied().unwrap_or_default();
            execution.event_seq = 1 + i64::try_from(execution.stages.len()).unwrap_or(i64::MAX - 1);
            tracing::info!("`{}` started execution `{}` #{}", actor.name, execution.name, execution.number);
            Ok(Some(Started { execution, replay: false }))
        }
        Err(CommitError::Refused(_)) => Ok(None),
        // It was sent and not answered: whether it is there can be read.
        Err(error @ CommitError::Unknown(_)) => match commands.store.execution(id).await? {
            Some(execution) => Ok(Some(Started { execution, replay: false })),
            None => Err(error.into()),
        },
        Err(error) => Err(error.into()),
    }
}

async fn replay(commands: &Commands, actor: &Actor, key: Option<&str>, hash: &[u8]) -> Result<Option<Started>, Error> {
    let Some(key) = key else { return Ok(None) };
    let Some(record) = commands.store.idempotency(actor.principal, key).await? else { return Ok(None) };
    if record.input_hash != hash {
        return Err(Error {
            code: Code::IdempotencyKeyReused,
            message: format!("the idempotency key `{key}` was used with another input; use a new key"),
            field: vec!["idempotencyKey".to_owned()],
        });
    }
    match commands.store.execution(record.execution).await? {
        Some(execution) => Ok(Some(Started { execution, replay: true })),
        None => Err(Error::new(
            Code::Conflict,
            format!("{} was started under this key and is no longer kept; use a new key", record.execution),
        )),
    }
}

fn key(key: Option<&str>) -> Result<Option<&str>, Error> {
    match key {
        Some(text) if text.is_empty() || text.chars().count() > 128 => {
            Err(Error::invalid(&["idempotencyKey"], "an idempotency key has 1 to 128 characters"))
        }
        other => Ok(other),
    }
}

/// SHA-256 of the input with the members of its objects in order.
fn hash(input: &Value) -> Vec<u8> {
    Sha256::digest(canonical(input).to_string()).to_vec()
}

fn canonical(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let mut members: Vec<(&String, &Value)> = members.iter().collect();
            members.sort_unstable_by_key(|(name, _)| *name);
            Value::Object(members.into_iter().map(|(name, value)| (name.clone(), canonical(value))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(canonical).collect()),
        other => other.clone(),
    }
}

/// What was given with the defaults of what was not.
pub(super) fn parameters(declared: &[Parameter], given: &Value) -> Result<Value, Error> {
    let empty = Map::new();
    let given = match given {
        Value::Null => &empty,
        Value::Object(members) => members,
        _ => return Err(Error::invalid(&["parameters"], "parameters have to be an object: name to value")),
    };
    let names = || declared.iter().map(|parameter| parameter.name.as_str());
    if let Some(unknown) = given.keys().find(|name| !names().any(|known| known == name.as_str())) {
        let near = crate::near::did_you_mean(unknown, names());
        return Err(Error::invalid(
            &["parameters", unknown],
            format!("the pipeline has no parameter `{unknown}`{near}"),
        ));
    }
    let mut merged = Map::new();
    for parameter in declared {
        let field = ["parameters", parameter.name.as_str()];
        let Some(value) = given.get(&parameter.name).or(parameter.default.as_ref()) else {
            let message = format!("parameter `{}` is required and has no default", parameter.name);
            return Err(Error::invalid(&field, message));
        };
        if !parameter.options.is_empty() && !parameter.options.contains(value) {
            let options: Vec<String> = parameter.options.iter().map(ToString::to_string).collect();
            let message = format!("parameter `{}` has to be one of {}", parameter.name, options.join(", "));
            return Err(Error::invalid(&field, message));
        }
        merged.insert(parameter.name.clone(), value.clone());
    }
    let merged = Value::Object(merged);
    if notices::size(&merged) > PARAMETERS_MAX {
        let message = format!("the parameters have more than {PARAMETERS_MAX} bytes");
        return Err(Error::invalid(&["parameters"], message));
    }
    Ok(merged)
}

pub(super) fn of_pipeline(
    commands: &Commands,
    actor: &Actor,
    pipeline: Pipeline,
    parameters: Value,
) -> Result<Execution, Error> {
    let execution = Execution {
        kind: ExecutionKind::Pipeline,
        application: pipeline.application,
        application_name: pipeline.application_name,
        pipeline: Some(pipeline.id),
        name: pipeline.name,
        revision: pipeline.revision,
        parameters,
        ..blank(commands, actor, rules(&pipeline.definition))
    };
    with_stages(execution, &pipeline.definition.stages, commands)
}

fn of_operation(
    commands: &Commands,
    actor: &Actor,
    application: &Application,
    title: &str,
    stages: &[StageSpec],
) -> Result<Execution, Error> {
    let execution = Execution {
        kind: ExecutionKind::Operation,
        application: application.id,
        application_name: application.name.clone(),
        name: title.to_owned(),
        ..blank(commands, actor, Vec::new())
    };
    with_stages(execution, stages, commands)
}

/// What the execution carries of the definition's rules.
fn rules(definition: &PipelineDefinition) -> Vec<ExecutionRule> {
    let of_stages = definition
        .stages
        .iter()
        .flat_map(|stage| stage.notifications.iter().map(|rule| ExecutionRule::new(Some(&stage.key), rule)));
    definition.notifications.iter().map(|rule| ExecutionRule::new(None, rule)).chain(of_stages).collect()
}

fn blank(commands: &Commands, actor: &Actor, notifications: Vec<ExecutionRule>) -> Execution {
    let now: DateTime<Utc> = commands.clock.now();
    Execution {
        id: ExecutionId::new(),
        kind: ExecutionKind::Operation,
        application: crate::model::ApplicationId::from(uuid::Uuid::nil()),
        application_name: String::new(),
        pipeline: None,
        name: String::new(),
        revision: 0,
        number: 0,
        status: Status::NotStarted,
        version: 1,
        event_seq: 0,
        started_by: actor.principal,
        started_by_name: actor.name.clone(),
        trigger: None,
        parameters: Value::Object(Map::new()),
        notifications,
        cancel: None,
        failure: None,
        created_at: now,
        started_at: None,
        ended_at: None,
        deadline: now,
        stages: Vec::new(),
    }
}

/// With its stages, and with a deadline, which follows from them.
fn with_stages(mut execution: Execution, stages: &[StageSpec], commands: &Commands) -> Result<Execution, Error> {
    for (index, spec) in (0i64..).zip(stages) {
        let Some(kind) = commands.registry.get(&spec.kind) else {
            let field = ["stages".to_owned(), index.to_string(), "kind".to_owned()];
            let message = format!("stage kind `{}` is not known to this server", spec.kind);
            return Err(Error { code: Code::Invalid, message, field: field.to_vec() });
        };
        let spec = ChildSpec {
            key: spec.key.clone(),
            kind: spec.kind.clone(),
            name: spec.name.clone(),
            requires: spec.requires.clone(),
            config: if spec.config.is_null() { Value::Object(Map::new()) } else { spec.config.clone() },
            timeout_seconds: spec.timeout_seconds,
            on_failure: spec.on_failure,
        };
        let stage = apply::new_stage(&execution, &spec, kind.as_ref(), None, index, 1);
        execution.stages.push(stage);
    }
    execution.deadline = apply::deadline(execution.created_at, &execution.stages, &commands.options);
    Ok(execution)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_members_does_not_change_the_hash() {
        let one = json!({"a": 1, "b": {"c": [1, 2], "d": null}});
        let other = json!({"b": {"d": null, "c": [1, 2]}, "a": 1});
        assert_eq!(hash(&one), hash(&other));
        assert_ne!(hash(&one), hash(&json!({"a": 1, "b": {"c": [2, 1], "d": null}})));
    }

    #[test]
    fn parameters_are_merged_with_defaults_and_checked() {
        let parameter = |name: &str, default: Option<Value>, options: Vec<Value>| Parameter {
            name: name.to_owned(),
            description: String::new(),
            default,
            options,
        };
        let declared =
            [parameter("version", None, vec![]), parameter("size", Some(json!(3)), vec![json!(1), json!(3)])];
        let merged = parameters(&declared, &json!({"version": "2"})).unwrap();
        assert_eq!(merged, json!({"version": "2", "size": 3}));
        let refused = |given| parameters(&declared, &given).unwrap_err();
        assert_eq!(refused(json!(null)).field, ["parameters", "version"]);
        assert_eq!(refused(json!({"version": 1, "size": 2})).field, ["parameters", "size"]);
        let unknown = refused(json!({"version": 1, "sizes": 2}));
        assert!(unknown.message.contains("did you mean `size`"), "{unknown}");
        assert_eq!(refused(json!([1])).field, ["parameters"]);
    }
}
