//! A trigger starts its pipeline: the claim of the slot, the execution, what the trigger says of
//! it, and the audit row are one commit. What may not start leaves its reason in the same way.

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Map, Value, json};

use super::{Code, Commands, Error, TRIES, about, allow, start};
use crate::engine::apply::cut;
use crate::expression;
use crate::model::{
    Action, Actor, Execution, ExecutionId, Pipeline, Resource, Trigger, TriggerSource, TriggerSpec, Triggered,
};
use crate::store::{Commit, CommitError, Guard, Refusal, SlotOutcome, Write};

/// Executions that may start each other in a row.
const DEPTH_MAX: u32 = 20;

/// What a trigger acts upon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Slot {
    /// A slot of its timetable.
    Time {
        /// The instant itself.
        at: DateTime<Utc>,
        /// The row's next instant: `at`, or an earlier one that was missed.
        due: DateTime<Utc>,
        /// The instant to wait for afterwards.
        next: Option<DateTime<Utc>>,
        /// The slot is late: no server was there in its time.
        late: bool,
    },
    /// An execution has ended.
    Ended(ExecutionId),
}

/// What became of a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fired {
    /// This execution was started, by this call.
    Started(ExecutionId),
    /// Nothing was started, for this reason; the trigger shows it.
    Refused(String),
    /// Somebody else has acted upon it, or the trigger is another now: look again.
    Gone,
}

impl Slot {
    /// Unique within the trigger.
    fn key(&self) -> String {
        match self {
            Self::Time { at, .. } => stamp(*at),
            Self::Ended(execution) => execution.to_string(),
        }
    }
}

fn stamp(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

/// See [`Commands::fire_trigger`].
pub(super) async fn fire(commands: &Commands, trigger: &Trigger, slot: &Slot) -> Result<Fired, Error> {
    for _ in 0..TRIES {
        let Some(pipeline) = commands.store.pipeline(trigger.pipeline).await? else { return Ok(Fired::Gone) };
        let spec = pipeline.definition.triggers.iter().find(|spec| spec.key == trigger.key).cloned();
        let Some(spec) = spec else { return Ok(Fired::Gone) };
        let actor = acts_as(commands, &pipeline).await?;
        let revision = Guard::PipelineRevision { id: pipeline.id, revision: pipeline.revision };
        let resource =
            Resource::Pipeline { application: pipeline.application_name.clone(), pipeline: pipeline.name.clone() };
        let prepared = match &actor {
            Ok(actor) => prepare(commands, actor, pipeline, &spec, slot).await,
            Err(reason) => Err(Error::new(Code::Forbidden, reason.clone())),
        };
        let detail = json!({ "trigger": trigger.key, "slot": slot.key() });
        let (first, outcome, detail) = match prepared {
            Ok(execution) => {
                let mut detail = detail;
                detail["execution"] = json!(execution.id);
                detail["parameters"] = execution.parameters.clone();
                let id = execution.id;
                about(id);
                (Some(Write::InsertExecution(Box::new(execution))), SlotOutcome::Started(id), detail)
            }
            Err(error) if error.code == Code::Unavailable => return Err(error),
            Err(error) => {
                let mut detail = detail;
                detail["refused"] = json!(cut(&error.message));
                (None, SlotOutcome::Refused(cut(&error.message)), detail)
            }
        };
        // Without a principal there is nobody in whose name it could be noted.
        let audit = actor.as_ref().ok().map(|actor| commands.audit(actor, Action::Start, resource, detail));
        let mut commit = claim(trigger, slot, outcome.clone(), commands.clock.now());
        commit.guards.insert(0, revision);
        commit.writes.splice(0..0, first);
        commit.writes.extend(audit);
        match commands.store.commit(commit).await {
            Ok(_) => return Ok(fired(trigger, slot, outcome)),
            Err(CommitError::Refused(Refusal { guard: Guard::PipelineRevision { .. } })) => {}
            Err(CommitError::Refused(Refusal { guard: Guard::SlotFree { .. } })) => {
                // It was acted upon before a save put the row's instant back.
                if let Slot::Time { due, next, .. } = slot {
                    pass(commands, trigger, *due, *next, None).await?;
                }
                return Ok(Fired::Gone);
            }
            Err(CommitError::Refused(_)) => return Ok(Fired::Gone),
            Err(error) => return Err(error.into()),
        }
    }
    Err(Error::busy("the pipeline"))
}

fn fired(trigger: &Trigger, slot: &Slot, outcome: SlotOutcome) -> Fired {
    match outcome {
        SlotOutcome::Started(execution) => {
            tracing::info!(
                execution.id = %execution,
                "trigger `{}` started an execution for {}", trigger.key, slot.key()
            );
            Fired::Started(execution)
        }
        SlotOutcome::Refused(reason) => {
            tracing::warn!("trigger `{}` could not start its pipeline for {}: {reason}", trigger.key, slot.key());
            Fired::Refused(reason)
        }
    }
}

/// The commit that acts upon a slot once, but for what it starts.
fn claim(trigger: &Trigger, slot: &Slot, outcome: SlotOutcome, now: DateTime<Utc>) -> Commit {
    let (id, key) = (trigger.id, slot.key());
    match slot {
        Slot::Time { due, next, .. } => Commit {
            guards: vec![
                Guard::TriggerDue { trigger: id, next_at: *due },
                Guard::SlotFree { trigger: id, slot: key.clone() },
            ],
            writes: vec![
                Write::InsertSlot { trigger: id, slot: key, at: now, outcome },
                Write::MoveTrigger { trigger: id, next_at: *next, missed: None },
            ],
            events: Vec::new(),
        },
        Slot::Ended(_) => Commit {
            guards: vec![Guard::SlotPending { trigger: id, slot: key.clone() }],
            writes: vec![Write::CloseSlot { trigger: id, slot: key, at: now, outcome }],
            events: Vec::new(),
        },
    }
}

/// See [`Commands::pass_trigger`].
pub(super) async fn pass(
    commands: &Commands,
    trigger: &Trigger,
    due: DateTime<Utc>,
    next: Option<DateTime<Utc>>,
    missed: Option<DateTime<Utc>>,
) -> Result<(), Error> {
    let commit = Commit {
        guards: vec![Guard::TriggerDue { trigger: trigger.id, next_at: due }],
        writes: vec![Write::MoveTrigger { trigger: trigger.id, next_at: next, missed }],
        events: Vec::new(),
    };
    match commands.store.commit(commit).await {
        Ok(_) | Err(CommitError::Refused(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A trigger acts as the principal who saved the newest revision, with the roles of today.
async fn acts_as(commands: &Commands, pipeline: &Pipeline) -> Result<Result<Actor, String>, Error> {
    let Some(revision) = commands.store.revision(pipeline.id, pipeline.revision).await? else {
        return Ok(Err(format!("revision {} of the pipeline is not there", pipeline.revision)));
    };
    Ok(match commands.store.principal(revision.created_by).await? {
        Some(found) => Ok(Actor { principal: found.id, name: found.name, roles: found.roles }),
        None => Err(format!(
            "the principal `{}`, who saved revision {}, does not exist; let somebody else save the pipeline",
            revision.created_by_name, revision.number
        )),
    })
}

/// The execution, if it may start.
async fn prepare(
    commands: &Commands,
    actor: &Actor,
    pipeline: Pipeline,
    spec: &TriggerSpec,
    slot: &Slot,
) -> Result<Execution, Error> {
    let resource =
        Resource::Pipeline { application: pipeline.application_name.clone(), pipeline: pipeline.name.clone() };
    allow(actor, Action::Start, &resource)?;
    if !spec.enabled {
        return Err(Error::new(Code::WrongState, "the trigger is disabled"));
    }
    let source = match slot {
        Slot::Time { .. } => None,
        Slot::Ended(id) => {
            let gone = || Error::new(Code::NotFound, format!("execution {id}, whose end it was, is no longer kept"));
            let source = commands.store.execution(*id).await?.ok_or_else(gone)?;
            allow(
                actor,
                Action::Read,
                &Resource::Execution { application: source.application_name.clone(), execution: *id },
            )?;
            Some(source)
        }
    };
    let why = why(spec, slot, source.as_ref());
    if why.depth > DEPTH_MAX {
        let message = format!("{DEPTH_MAX} executions have started each other in a row; break the circle of triggers");
        return Err(Error::new(Code::WrongState, message));
    }
    let given = evaluate(spec, &why, source).await?;
    let parameters = start::parameters(&pipeline.definition.parameters, &given)?;
    let execution = start::of_pipeline(commands, actor, pipeline, parameters)?;
    Ok(Execution { trigger: Some(Box::new(why)), ..execution })
}

fn why(spec: &TriggerSpec, slot: &Slot, source: Option<&Execution>) -> Triggered {
    let depth = source.and_then(|source| source.trigger.as_ref()).map_or(0, |above| above.depth) + 1;
    let (scheduled_at, reason) = match (slot, source) {
        (Slot::Time { at, late, .. }, _) => {
            let late = if *late { ", late, since no server was there in its time" } else { "" };
            (Some(*at), format!("the trigger `{}` was due at {}{late}", spec.key, stamp(*at)))
        }
        (Slot::Ended(_), Some(source)) => {
            let status = source.status.as_str();
            (None, format!("{}/{} #{} ended as {status}", source.application_name, source.name, source.number))
        }
        (Slot::Ended(id), None) => (None, format!("execution {id} ended")),
    };
    let source = source.map(|source| TriggerSource {
        execution: source.id,
        application: source.application_name.clone(),
        pipeline: source.name.clone(),
        number: source.number,
        status: source.status,
    });
    Triggered { kind: spec.kind.clone(), key: spec.key.clone(), scheduled_at, source, depth, reason }
}

/// The parameters as configured, expressions evaluated.
async fn evaluate(spec: &TriggerSpec, why: &Triggered, source: Option<Execution>) -> Result<Value, Error> {
    if !expression::has_expression(&spec.parameters) {
        return Ok(spec.parameters.clone());
    }
    let (parameters, mut trigger) = (spec.parameters.clone(), variables(why));
    let evaluation = tokio::task::spawn_blocking(move || {
        if let Some(source) = source {
            trigger["stages"] = stages(&source);
            trigger["parameters"] = source.parameters;
        }
        expression::evaluate(&parameters, &json!({ "trigger": trigger }))
    });
    let fault = |message: String| Error::invalid(&["parameters"], message);
    evaluation
        .await
        .map_err(|_| fault("the expressions of the parameters met a fault".to_owned()))?
        .map_err(|error| fault(format!("parameters at `{}`: {}", error.pointer, error.message)))
}

/// What expressions may read of why an execution was started.
pub(in crate::engine) fn variables(why: &Triggered) -> Value {
    let mut trigger = json!({ "kind": why.kind, "key": why.key });
    if let Some(at) = why.scheduled_at {
        trigger["scheduledAt"] = json!(stamp(at));
    }
    if let Some(source) = &why.source {
        trigger["execution"] = json!({
            "id": source.execution,
            "application": source.application,
            "pipeline": source.pipeline,
            "number": source.number,
            "status": source.status.as_str(),
        });
    }
    trigger
}

fn stages(source: &Execution) -> Value {
    let top = source.stages.iter().filter(|stage| stage.parent.is_none());
    let stages: Map<String, Value> = top
        .map(|stage| (stage.key.clone(), json!({ "outputs": stage.outputs, "status": stage.status.as_str() })))
        .collect();
    Value::Object(stages)
}
