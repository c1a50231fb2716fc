//! Steering executions under way: cancel, judge.

use serde_json::{Value, json};

use super::{Code, Commands, Error, Judgment, TRIES, about, allow};
use crate::engine::apply::JUDGE;
use crate::engine::notices;
use crate::model::{
    self, Action, Actor, Cancel, CancelMode, EventBody, Execution, ExecutionId, Resource, Stage, Status, StreamId, Wake,
};
use crate::store::{Commit, CommitError, Guard, NewEvent, Write};

/// Characters of a reason or comment.
const TEXT_MAX: usize = 2_000;

pub(super) async fn cancel(
    commands: &Commands,
    actor: &Actor,
    id: ExecutionId,
    reason: &str,
    mode: CancelMode,
) -> Result<Execution, Error> {
    if reason.chars().count() > TEXT_MAX {
        return Err(Error::invalid(&["reason"], format!("a reason has at most {TEXT_MAX} characters")));
    }
    for _ in 0..TRIES {
        let mut execution = read(commands, id).await?;
        let resource = resource(&execution);
        allow(actor, Action::Cancel, &resource)?;
        if execution.status.is_complete() {
            let message = format!("the execution is over already: {}", execution.status.as_str());
            return Err(Error::new(Code::WrongState, message));
        }
        if let Some(cancel) = &execution.cancel {
            // What is being brought back may still be left as it is; nothing else is new.
            if (cancel.mode, mode) != (CancelMode::Unwind, CancelMode::Leave) {
                let message = format!("{} has cancelled the execution already", cancel.by_name);
                return Err(Error::new(Code::WrongState, message));
            }
        }
        execution.cancel = Some(Cancel {
            by: actor.principal,
            by_name: actor.name.clone(),
            at: commands.clock.now(),
            reason: reason.to_owned(),
            mode,
        });
        let body = |execution: &Execution| notices::execution_event(execution, commands.options.event_max);
        let detail = json!({ "reason": reason, "mode": mode });
        let audit = commands.audit(actor, Action::Cancel, resource, detail);
        if let Some(execution) = save(commands, execution, None, body, audit).await? {
            tracing::info!("`{}` cancelled execution `{}` #{}", actor.name, execution.name, execution.number);
            return Ok(execution);
        }
    }
    Err(Error::busy("the execution"))
}

pub(super) async fn judge(commands: &Commands, actor: &Actor, judgment: Judgment) -> Result<Execution, Error> {
    if judgment.comment.as_ref().is_some_and(|comment| comment.chars().count() > TEXT_MAX) {
        return Err(Error::invalid(&["comment"], format!("a comment has at most {TEXT_MAX} characters")));
    }
    let Some(stage) = commands.store.stage(judgment.stage).await? else {
        return Err(Error::new(Code::NotFound, format!("there is no stage {}", judgment.stage)));
    };
    about(stage.execution);
    for _ in 0..TRIES {
        let mut execution = read(commands, stage.execution).await?;
        let resource = resource(&execution);
        allow(actor, Action::Judge, &resource)?;
        if execution.cancel.is_some() {
            return Err(Error::new(Code::WrongState, "the execution is being cancelled"));
        }
        let Some(index) = execution.stages.iter().position(|row| row.id == judgment.stage) else {
            return Err(Error::new(Code::NotFound, format!("there is no stage {}", judgment.stage)));
        };
        let stage = &mut execution.stages[index];
        check(stage, &judgment)?;
        if let Wake::Signal { payload, .. } = &mut stage.wake {
            *payload = Some(json!(model::Judgment {
                proceed: judgment.proceed,
                input: judgment.input.clone(),
                comment: judgment.comment.clone(),
                by: actor.name.clone(),
                principal: Some(actor.principal),
                at: Some(commands.clock.now()),
            }));
        }
        let detail = json!({
            "stage": judgment.stage, "proceed": judgment.proceed, "input": judgment.input, "comment": judgment.comment,
        });
        let audit = commands.audit(actor, Action::Judge, resource, detail);
        let body = |execution: &Execution| notices::stage_event(&execution.stages[index], commands.options.event_max);
        if let Some(execution) = save(commands, execution, Some(index), body, audit).await? {
            let key = &execution.stages[index].key;
            tracing::info!("`{}` judged stage `{key}`: proceed = {}", actor.name, judgment.proceed);
            return Ok(execution);
        }
    }
    Err(Error::busy("the execution"))
}

/// Whether the stage waits for a judgment, and for this one.
fn check(stage: &Stage, judgment: &Judgment) -> Result<(), Error> {
    let waits = stage.status == Status::Running && stage.failure.is_none() && stage.unwinding.is_none();
    match &stage.wake {
        Wake::Signal { name, payload: None, .. } if waits && name == JUDGE => {}
        Wake::Signal { name, payload: Some(_), .. } if waits && name == JUDGE => {
            return Err(Error::new(Code::WrongState, format!("stage `{}` has been judged already", stage.name)));
        }
        _ => {
            let message = format!("stage `{}` does not wait for a judgment: {}", stage.name, stage.status.as_str());
            return Err(Error::new(Code::WrongState, message));
        }
    }
    let inputs: Vec<&str> = stage
        .resolved
        .as_ref()
        .and_then(|config| config.get("inputs"))
        .and_then(Value::as_array)
        .map(|inputs| inputs.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default();
    match &judgment.input {
        Some(input) if !inputs.contains(&input.as_str()) => {
            let message = match inputs.as_slice() {
                [] => format!("stage `{}` has no inputs to choose from", stage.name),
                inputs => format!("`{input}` is not one of the stage's inputs: {}", inputs.join(", ")),
            };
            Err(Error::invalid(&["input"], message))
        }
        None if judgment.proceed && !inputs.is_empty() => {
            Err(Error::invalid(&["input"], format!("choose one of the stage's inputs: {}", inputs.join(", "))))
        }
        _ => Ok(()),
    }
}

async fn read(commands: &Commands, id: ExecutionId) -> Result<Execution, Error> {
    let execution = commands.store.execution(id).await?;
    execution.ok_or_else(|| Error::new(Code::NotFound, format!("there is no execution {id}")))
}

fn resource(execution: &Execution) -> Resource {
    Resource::Execution { application: execution.application_name.clone(), execution: execution.id }
}

/// One commit: the execution one version on and due now, one stage or none, one event, the audit
/// row. None: it changed meanwhile.
async fn save(
    commands: &Commands,
    mut execution: Execution,
    stage: Option<usize>,
    body: impl Fn(&Execution) -> EventBody,
    audit: Write,
) -> Result<Option<Execution>, Error> {
    let now = commands.clock.now();
    let guard = Guard::ExecutionVersion { id: execution.id, version: execution.version };
    execution.version += 1;
    execution.event_seq += 1;
    let event = NewEvent {
        stream: StreamId::Execution(execution.id),
        seq: Some(execution.event_seq),
        at: now,
        body: body(&execution),
    };
    let mut writes =
        vec![Write::UpdateExecution { execution: Box::new(execution.header()), wake_at: Some(now) }, audit];
    writes.extend(stage.map(|index| Write::PutStage(Box::new(execution.stages[index].clone()))));
    match commands.store.commit(Commit { guards: vec![guard], writes, events: vec![event] }).await {
        Ok(_) => Ok(Some(execution)),
        Err(CommitError::Refused(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
