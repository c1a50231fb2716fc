//! An execution and its tree of stages: what the engine decides upon and what people watch.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    ApplicationId, ExecutionId, ExecutionRule, NotificationRule, OnFailure, PipelineId, PrincipalId, StageId, Status,
    Triggered,
};

/// Whether an execution runs a saved pipeline or a single operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ExecutionKind {
    /// A run of a pipeline's revision.
    Pipeline,
    /// An ad-hoc operation: resize, disable, upsert a load balancer …
    Operation,
}

/// One run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Execution {
    /// Rises with time, so that it orders executions by their start.
    pub id: ExecutionId,
    /// Whether a pipeline runs or a single operation.
    pub kind: ExecutionKind,
    /// The application that it belongs to.
    pub application: ApplicationId,
    /// The application's name as of the start.
    pub application_name: String,
    /// None for operations, and where the pipeline was deleted since.
    pub pipeline: Option<PipelineId>,
    /// The pipeline's name as of the start, or the operation's title.
    pub name: String,
    /// The pipeline's revision that runs; 0 for operations.
    pub revision: i64,
    /// Counts from 1 within the pipeline, or within the application for operations.
    pub number: i64,
    /// Where it stands as a whole.
    pub status: Status,
    /// Rises by one with each commit that changes this execution or one of its stages; guards them.
    pub version: i64,
    /// The sequence number of the newest event in this execution's stream; 0 before the first.
    pub event_seq: i64,
    /// Who started it; where a trigger did, who saved the pipeline's revision.
    pub started_by: PrincipalId,
    /// That principal's name as of the start.
    pub started_by_name: String,
    /// Why it was started, where nobody asked for it; boxed, since most have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trigger: Option<Box<Triggered>>,
    /// An object: parameter name to value.
    pub parameters: Value,
    /// The rules of the pipeline and of its stages, as of the start.
    pub notifications: Vec<ExecutionRule>,
    /// The wish to end it early, once somebody had it.
    pub cancel: Option<Cancel>,
    /// Why it failed, if it has.
    pub failure: Option<Failure>,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
    /// When the engine began with it; None: not yet.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended; None: not yet.
    pub ended_at: Option<DateTime<Utc>>,
    /// The end at the latest; an execution past it is failed.
    pub deadline: DateTime<Utc>,
    /// In the order of the definition; children after their parents, by creation.
    pub stages: Vec<Stage>,
}

impl Execution {
    /// Its own fields, without its stages.
    #[must_use]
    pub fn header(&self) -> Self {
        // Field by field: to clone the stages only to drop them would be dear.
        Self {
            stages: Vec::new(),
            application_name: self.application_name.clone(),
            name: self.name.clone(),
            started_by_name: self.started_by_name.clone(),
            trigger: self.trigger.clone(),
            parameters: self.parameters.clone(),
            notifications: self.notifications.clone(),
            cancel: self.cancel.clone(),
            failure: self.failure.clone(),
            ..*self
        }
    }

    /// The stage of that id.
    #[must_use]
    pub fn stage(&self, id: StageId) -> Option<&Stage> {
        self.stages.iter().find(|stage| stage.id == id)
    }

    /// The direct children of a stage, in the order they were made.
    pub fn children(&self, parent: StageId) -> impl Iterator<Item = &Stage> {
        self.stages.iter().filter(move |stage| stage.parent == Some(parent))
    }
}

/// A wish to end an execution early, recorded once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancel {
    /// Who wanted it.
    pub by: PrincipalId,
    /// That principal's name as of then.
    pub by_name: String,
    /// When.
    pub at: DateTime<Utc>,
    /// Why, in that person's words; may be empty.
    pub reason: String,
    /// What happens to what was begun.
    pub mode: CancelMode,
}

/// What cancelling does with what was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum CancelMode {
    /// Bring back what was there before.
    #[default]
    Unwind,
    /// Leave everything as it is. While things are being brought back: end that after the call under way.
    Leave,
}

/// Where a child stands within its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Phase {
    /// Must end well before the parent's own first step.
    Before,
    /// Spawned by the parent's steps; a top-level stage is of this phase too.
    Body,
    /// Runs once the parent's steps are done.
    After,
    /// Brings things back after a failure, a timeout or a cancel; not ended by the same cancel.
    Unwind,
}

/// A stage as configured in a pipeline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StageSpec {
    /// Unique within the pipeline; letters, digits, `-` and `_`; at most 64.
    pub key: String,
    /// The kind's name in the registry: `deploy`, `webhook` …
    pub kind: String,
    /// What people see; the kind's title when empty.
    #[serde(default)]
    pub name: String,
    /// Keys of the stages that must have ended before this one starts.
    #[serde(default)]
    pub requires: Vec<String>,
    /// As the kind's schema says; texts in it may have expressions and `secret://` references.
    #[serde(default)]
    pub config: Value,
    /// What its failure does to the rest of the pipeline.
    #[serde(default)]
    pub on_failure: OnFailure,
    /// Seconds from the stage's start to its failure by timeout; the kind's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u64>,
    /// Who is told what about this stage, beside what the pipeline's own rules say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notifications: Vec<NotificationRule>,
}

/// A stage that a parent wants to run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChildSpec {
    /// Unique among the siblings of the same parent and attempt.
    pub key: String,
    /// The kind's name in the registry.
    pub kind: String,
    /// What people see; the kind's title when empty.
    pub name: String,
    /// Keys of siblings that must have ended before this one starts.
    pub requires: Vec<String>,
    /// As the kind's schema says.
    pub config: Value,
    /// From the child's start to its failure by timeout; the kind's default when absent.
    pub timeout_seconds: Option<u64>,
    /// What this child's failure does to its siblings and its parent.
    pub on_failure: OnFailure,
}

/// One stage of one execution.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// The same over its attempts.
    pub id: StageId,
    /// The execution that it is part of.
    pub execution: ExecutionId,
    /// As configured, or given by the parent; unique among siblings of one phase.
    pub key: String,
    /// The stage that spawned it; None at the top level.
    pub parent: Option<StageId>,
    /// Where it stands within its parent.
    pub phase: Phase,
    /// The kind's name in the registry.
    pub kind: String,
    /// What people see.
    pub name: String,
    /// Keys of siblings.
    pub requires: Vec<String>,
    /// What its failure does to its siblings and its parent.
    pub on_failure: OnFailure,
    /// Place among the execution's stages, from 0, by creation.
    pub position: i64,
    /// From 1; a restart makes the next one.
    pub attempt: i32,
    /// Where it stands.
    pub status: Status,
    /// As configured, expressions and secret references unresolved.
    pub config: Value,
    /// With expressions evaluated, once, at the stage's start; secret references stay references.
    pub resolved: Option<Value>,
    /// Where the stage's own steps stand; null before the first.
    pub cursor: Value,
    /// When the engine has to look at this stage again.
    pub wake: Wake,
    /// How often the present step has failed with a cause worth another try.
    pub retries: i32,
    /// What descendants and downstream stages may read; an object.
    pub outputs: Value,
    /// How far it has come, if its kind says so.
    pub progress: Option<Progress>,
    /// Its steps as people see them, in their order.
    pub tasks: Vec<Task>,
    /// Why it failed, if it has.
    pub failure: Option<Failure>,
    /// Set while the unwind runs: what the stage ends as when that is over.
    pub unwinding: Option<Unwinding>,
    /// From its start to its failure by timeout.
    pub timeout_seconds: i64,
    /// The instant of that failure; None before it has started.
    pub deadline: Option<DateTime<Utc>>,
    /// When its present attempt began; None: not yet.
    pub started_at: Option<DateTime<Utc>>,
    /// When its present attempt ended; None: not yet.
    pub ended_at: Option<DateTime<Utc>>,
}

impl Stage {
    /// Where it stands: without config, resolved config, cursor and outputs, which may be large.
    #[must_use]
    pub fn header(&self) -> Self {
        Self {
            config: Value::Null,
            resolved: None,
            cursor: Value::Null,
            outputs: Value::Null,
            key: self.key.clone(),
            kind: self.kind.clone(),
            name: self.name.clone(),
            requires: self.requires.clone(),
            wake: self.wake.clone(),
            progress: self.progress.clone(),
            tasks: self.tasks.clone(),
            failure: self.failure.clone(),
            ..*self
        }
    }
}

/// A person's word on a stage: what comes with the signal, and stays in the outputs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judgment {
    /// True: go on; false: stop.
    pub proceed: bool,
    /// The choice made, where the stage offers some.
    #[serde(default)]
    pub input: Option<String>,
    /// In the person's own words.
    #[serde(default)]
    pub comment: Option<String>,
    /// The principal's name as of then.
    #[serde(default)]
    pub by: String,
    /// None: by a version that did not write it down.
    #[serde(default)]
    pub principal: Option<PrincipalId>,
    /// When it was given; None: by a version that did not write it down.
    #[serde(default)]
    pub at: Option<DateTime<Utc>>,
}

impl Judgment {
    /// The signal that it comes with.
    pub const SIGNAL: &'static str = "judge";
    /// What the outputs say of it under `judgment`.
    const WORDS: [(&'static str, bool); 2] = [("proceed", true), ("stop", false)];

    /// What a stage has been told: waiting in its row until a step takes it, then among its outputs.
    #[must_use]
    pub fn of(stage: &Stage) -> Option<Self> {
        if let Wake::Signal { name, payload: Some(payload), .. } = &stage.wake
            && name == Self::SIGNAL
        {
            return Self::deserialize(payload).ok();
        }
        let outputs = stage.outputs.as_object()?;
        let word = outputs.get("judgment")?.as_str()?;
        let (_, proceed) = Self::WORDS.into_iter().find(|(known, _)| *known == word)?;
        let mut told = outputs.clone();
        told.insert("proceed".to_owned(), Value::Bool(proceed));
        // The outputs of something else may have the same name; those have no such members.
        Self::deserialize(Value::Object(told)).ok().filter(|judgment| !judgment.by.is_empty())
    }

    /// As the outputs of the stage have it.
    #[must_use]
    pub fn outputs(&self) -> Map<String, Value> {
        let word = Self::WORDS.into_iter().find(|(_, proceed)| *proceed == self.proceed).map(|(word, _)| word);
        [
            ("judgment", json!(word)),
            ("input", json!(self.input)),
            ("comment", json!(self.comment)),
            ("by", json!(self.by)),
            ("principal", json!(self.principal)),
            ("at", json!(self.at)),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into_iter()
        .collect()
    }
}

/// Why a stage is being brought back, and what it ends as afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unwinding {
    /// What the stage ends as when all is brought back.
    pub then: Status,
    /// The end of the unwind at the latest.
    pub deadline: DateTime<Utc>,
}

/// What a running stage waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "on", rename_all = "camelCase")]
pub enum Wake {
    /// For nothing: a step is due, or the stage has not begun or has ended.
    Now,
    /// For an instant, or for an earlier notice on the topic.
    At {
        /// When to look again.
        at: DateTime<Utc>,
        /// What else wakes it: a notice on this topic; None: nothing but the instant.
        topic: Option<String>,
    },
    /// For a person's or a program's signal, until the instant.
    Signal {
        /// The signal's name, such as [`Judgment::SIGNAL`].
        name: String,
        /// When to stop waiting for it.
        until: DateTime<Utc>,
        /// What the signal brought, until a step takes it; None: it has not come.
        payload: Option<Value>,
    },
    /// For the children it spawned.
    Children,
}

/// How far a stage has come, in a unit of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// How many of `total` are done.
    pub completed: i64,
    /// How many there are to do.
    pub total: i64,
    /// `instances`, `seconds`, `attempts` …
    pub unit: String,
    /// A sentence for people: `2 of 3 healthy`.
    pub message: String,
    /// When this was last true.
    pub updated_at: DateTime<Utc>,
}

/// A step of a stage as people see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Unique within the stage.
    pub name: String,
    /// Where it stands.
    pub status: Status,
    /// When it began; None: not yet.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended; None: not yet, or it never began.
    pub ended_at: Option<DateTime<Utc>>,
}

/// Why something failed, for people and for programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// A closed set of upper-case words: `TIMEOUT`, `INSTANCES_NOT_HEALTHY` …
    pub code: String,
    /// What failed, on what.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// The stage in which it was met.
    pub stage: Option<StageId>,
    /// The error beneath, in its own words.
    pub cause: Option<String>,
    /// The stage's attempt in which it was met, from 1.
    pub attempt: i32,
    /// Whether trying again may help.
    pub retryable: bool,
    /// The end of what the failing instance wrote, at most 4 KiB.
    pub log_tail: Option<String>,
}
