//! Stages of executions, with their tasks, progress and failures.

use std::collections::HashMap;
use std::sync::Arc;

use async_graphql::dataloader::{self, DataLoader};
use async_graphql::{Context, Enum, ID, Object, Result, SimpleObject};
use chrono::{DateTime, Utc};
use serde_json::Value;

use super::access::Principal;
use super::definition::{NotificationRule, OnFailure};
use super::execution::{Execution, Status};
use super::ids::Key;
use super::scalars::{Duration, Json};
use super::session::session;
use crate::api::error::{fault, stored};
use crate::model::{self, ExecutionId, StageId};
use crate::secrets;
use crate::store::Store;

/// All stages of one execution.
pub type Siblings = Arc<Vec<Arc<model::Stage>>>;

/// Reads the stages of several executions with one query.
pub struct Loader(pub Store);

impl dataloader::Loader<ExecutionId> for Loader {
    type Value = Siblings;
    type Error = Arc<crate::store::Error>;

    async fn load(&self, keys: &[ExecutionId]) -> Result<HashMap<ExecutionId, Siblings>, Self::Error> {
        let mut all: HashMap<ExecutionId, Vec<Arc<model::Stage>>> = keys.iter().map(|key| (*key, Vec::new())).collect();
        for stage in self.0.stages(keys).await.map_err(Arc::new)? {
            all.entry(stage.execution).or_default().push(Arc::new(stage));
        }
        for stages in all.values_mut() {
            stages.sort_by_key(|stage| stage.position);
        }
        Ok(all.into_iter().map(|(key, stages)| (key, Arc::new(stages))).collect())
    }
}

/// The stages of an execution.
pub async fn load(ctx: &Context<'_>, execution: ExecutionId) -> Result<Siblings> {
    let loader = ctx.data::<DataLoader<Loader>>()?;
    Ok(loader.load_one(execution).await.map_err(|error| fault(&error))?.unwrap_or_default())
}

/// The stage of that id, if it may be seen.
pub async fn find(ctx: &Context<'_>, id: StageId) -> Result<Option<Stage>> {
    let session = session(ctx)?;
    let Some(stage) = session.api.store.stage(id).await.map_err(stored)? else { return Ok(None) };
    let Some(mut execution) = session.execution(stage.execution).await? else { return Ok(None) };
    let siblings: Siblings = Arc::new(std::mem::take(&mut execution.stages).into_iter().map(Arc::new).collect());
    let row = siblings.iter().find(|row| row.id == id).cloned();
    Ok(row.map(|row| Stage::new(row, siblings, Arc::new(execution))))
}

/// From a start to an end, or to now.
pub fn elapsed(
    ctx: &Context<'_>,
    started_at: Option<DateTime<Utc>>,
    ended_at: Option<DateTime<Utc>>,
) -> Result<Option<Duration>> {
    let now = session(ctx)?.api.clock.now();
    Ok(started_at.map(|start| Duration((ended_at.unwrap_or(now) - start).max(chrono::TimeDelta::zero()))))
}

/// JSON without what its keys say is secret. References (`secret://…`) say nothing and stay.
pub fn masked(value: &Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(
            fields
                .iter()
                .map(|(key, value)| {
                    let hide =
                        value.as_str().is_some_and(|text| !secrets::is_reference(text)) && secrets::names_secret(key);
                    (key.clone(), if hide { Value::from(secrets::MASKED) } else { masked(value) })
                })
                .collect(),
        ),
        Value::Array(items) => Value::Array(items.iter().map(masked).collect()),
        other => other.clone(),
    }
}

/// Where a stage stands within its parent.
#[derive(Enum, Debug, Clone, Copy, PartialEq, Eq)]
#[graphql(remote = "model::Phase")]
pub enum Phase {
    /// Must end well before the parent's own first step.
    Before,
    /// Made by the parent's steps; a stage of the pipeline is of this phase too.
    Body,
    /// Runs once the parent's steps are done.
    After,
    /// Brings things back after a failure, a timeout or a cancel.
    Unwind,
}

/// One stage of one execution.
#[derive(Clone)]
pub struct Stage {
    row: Arc<model::Stage>,
    siblings: Siblings,
    execution: Arc<model::Execution>,
}

impl Stage {
    pub fn new(row: Arc<model::Stage>, siblings: Siblings, execution: Arc<model::Execution>) -> Self {
        Self { row, siblings, execution }
    }

    fn sibling(&self, row: &Arc<model::Stage>) -> Self {
        Self::new(Arc::clone(row), Arc::clone(&self.siblings), Arc::clone(&self.execution))
    }
}

/// One stage of one execution.
#[Object]
impl Stage {
    /// Opaque and global; the same over its attempts.
    pub async fn id(&self) -> ID {
        Key::Stage(self.row.id).id()
    }
    /// As in the pipeline, or given by the parent.
    async fn key(&self) -> &str {
        &self.row.key
    }
    /// What people see.
    async fn name(&self) -> &str {
        &self.row.name
    }
    /// One of `stageKinds`.
    async fn kind(&self) -> &str {
        &self.row.kind
    }
    /// Where it stands.
    async fn status(&self) -> Status {
        self.row.status.into()
    }
    /// Where it stands within its parent.
    async fn phase(&self) -> Phase {
        self.row.phase.into()
    }
    /// Place among the execution's stages, from 0.
    async fn position(&self) -> i64 {
        self.row.position
    }
    /// From 1; a restart makes the next one.
    async fn attempt(&self) -> i32 {
        self.row.attempt
    }
    /// Keys of the siblings that must have ended before this one starts.
    async fn requires(&self) -> &[String] {
        &self.row.requires
    }
    /// What its failure does to what is around it.
    async fn on_failure(&self) -> OnFailure {
        self.row.on_failure.into()
    }
    /// On which occasions of this stage whom to tell.
    async fn notifications(&self, ctx: &Context<'_>) -> Result<Vec<NotificationRule>> {
        let session = session(ctx)?;
        let own = |rule: &&model::ExecutionRule| {
            self.row.parent.is_none() && rule.stage.as_deref() == Some(self.row.key.as_str())
        };
        let rules = self.execution.notifications.iter().filter(own);
        Ok(rules.map(|rule| NotificationRule::shown(&rule.rule(), &session)).collect())
    }
    /// The execution it belongs to.
    async fn execution(&self) -> Execution {
        Execution::of_event(Arc::clone(&self.execution), Arc::clone(&self.siblings))
    }
    /// The id of the stage that made it; null for those of the pipeline.
    async fn parent_id(&self) -> Option<ID> {
        self.row.parent.map(|parent| Key::Stage(parent).id())
    }
    /// The stage that made it; null for those of the pipeline.
    async fn parent(&self) -> Option<Stage> {
        let parent = self.row.parent?;
        self.siblings.iter().find(|stage| stage.id == parent).map(|row| self.sibling(row))
    }
    /// The stages it made, in the order it made them.
    async fn children(&self) -> Vec<Stage> {
        let children = self.siblings.iter().filter(|stage| stage.parent == Some(self.row.id));
        children.map(|row| self.sibling(row)).collect()
    }
    /// The steps people see.
    async fn tasks(&self) -> Vec<Task> {
        self.row.tasks.iter().map(Task::from).collect()
    }
    /// How far it has come.
    async fn progress(&self) -> Option<Progress> {
        self.row.progress.as_ref().map(Progress::from)
    }
    /// Why it failed.
    async fn failure(&self) -> Option<Failure> {
        self.row.failure.as_ref().map(Failure::from)
    }
    /// What it was told to do, expressions evaluated once it has started. Secrets stand as
    /// references.
    async fn config(&self, ctx: &Context<'_>) -> Result<Option<Json>> {
        let of =
            |row: &model::Stage| row.resolved.clone().or_else(|| Some(row.config.clone()).filter(|c| !c.is_null()));
        if let Some(config) = of(&self.row) {
            return Ok(Some(Json(masked(&config))));
        }
        // Events are told without the config, which does not change.
        let row = session(ctx)?.api.store.stage(self.row.id).await.map_err(stored)?;
        Ok(row.as_ref().and_then(of).map(|config| Json(masked(&config))))
    }
    /// What later stages may read.
    async fn outputs(&self) -> Option<Json> {
        (!self.row.outputs.is_null()).then(|| Json(masked(&self.row.outputs)))
    }
    /// What it waits for a person to do: the name of the signal, `judge` for manual judgments.
    async fn waits_for(&self) -> Option<&str> {
        match &self.row.wake {
            model::Wake::Signal { name, payload: None, .. } if self.row.status == model::Status::Running => Some(name),
            _ => None,
        }
    }
    /// A person's word on it; null where nobody has judged it.
    async fn judgment(&self) -> Option<Judgment> {
        model::Judgment::of(&self.row).map(Judgment)
    }
    /// From its start to its failure by timeout.
    async fn timeout(&self) -> Duration {
        Duration::from(u64::try_from(self.row.timeout_seconds).unwrap_or(0).saturating_mul(1_000))
    }
    /// When it fails by timeout.
    async fn deadline(&self) -> Option<DateTime<Utc>> {
        self.row.deadline
    }
    /// When it began.
    async fn started_at(&self) -> Option<DateTime<Utc>> {
        self.row.started_at
    }
    /// When it was over.
    async fn ended_at(&self) -> Option<DateTime<Utc>> {
        self.row.ended_at
    }
    /// From its start to its end, or to now.
    async fn elapsed(&self, ctx: &Context<'_>) -> Result<Option<Duration>> {
        elapsed(ctx, self.row.started_at, self.row.ended_at)
    }
}

/// A person's word on a manual judgment.
pub struct Judgment(model::Judgment);

/// A person's word on a manual judgment.
#[Object]
impl Judgment {
    /// True: go on; false: stop.
    async fn proceed(&self) -> bool {
        self.0.proceed
    }
    /// The one of the stage's inputs that was chosen, if it has any.
    async fn input(&self) -> Option<&str> {
        self.0.input.as_deref()
    }
    /// Why.
    async fn comment(&self) -> Option<&str> {
        self.0.comment.as_deref()
    }
    /// When; null where an earlier version did not write it down.
    async fn at(&self) -> Option<DateTime<Utc>> {
        self.0.at
    }
    /// Who decided; null where the principal is not there any more, or an earlier version did not
    /// write it down.
    async fn by(&self, ctx: &Context<'_>) -> Result<Option<Principal>> {
        let Some(principal) = self.0.principal else { return Ok(None) };
        let found = session(ctx)?.api.store.principal(principal).await.map_err(stored)?;
        Ok(found.map(Principal))
    }
    /// The name, as of then, of who decided.
    async fn by_name(&self) -> &str {
        &self.0.by
    }
}

/// A step of a stage as people see it.
#[derive(SimpleObject)]
#[graphql(complex)]
pub struct Task {
    /// Unique within the stage.
    name: String,
    /// Where it stands.
    status: Status,
    /// When it began.
    started_at: Option<DateTime<Utc>>,
    /// When it was over.
    ended_at: Option<DateTime<Utc>>,
}

#[async_graphql::ComplexObject]
impl Task {
    /// From its start to its end, or to now.
    async fn elapsed(&self, ctx: &Context<'_>) -> Result<Option<Duration>> {
        elapsed(ctx, self.started_at, self.ended_at)
    }
}

impl From<&model::Task> for Task {
    fn from(task: &model::Task) -> Self {
        Self {
            name: task.name.clone(),
            status: task.status.into(),
            started_at: task.started_at,
            ended_at: task.ended_at,
        }
    }
}

/// How far a stage has come, in a unit of its own.
#[derive(SimpleObject)]
pub struct Progress {
    /// How many are done.
    completed: i64,
    /// How many there are.
    total: i64,
    /// Of what: `instances`, `seconds`, `attempts` …
    unit: String,
    /// A sentence for people: `2 of 3 healthy`.
    message: String,
    /// When this was so.
    updated_at: DateTime<Utc>,
}

impl From<&model::Progress> for Progress {
    fn from(progress: &model::Progress) -> Self {
        Self {
            completed: progress.completed,
            total: progress.total,
            unit: progress.unit.clone(),
            message: progress.message.clone(),
            updated_at: progress.updated_at,
        }
    }
}

/// Why something failed, for people and for programs.
pub struct Failure(model::Failure);

impl From<&model::Failure> for Failure {
    fn from(failure: &model::Failure) -> Self {
        Self(failure.clone())
    }
}

/// Why something failed, for people and for programs.
#[Object]
impl Failure {
    /// An upper-case word: `TIMEOUT`, `INSTANCES_NOT_HEALTHY` …
    async fn code(&self) -> &str {
        &self.0.code
    }
    /// What failed, on what.
    async fn message(&self) -> &str {
        &self.0.message
    }
    /// What to do about it.
    async fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }
    /// The stage in which it was met.
    async fn stage(&self, ctx: &Context<'_>) -> Result<Option<Stage>> {
        match self.0.stage {
            Some(id) => find(ctx, id).await,
            None => Ok(None),
        }
    }
    /// The error beneath, in its own words.
    async fn cause(&self) -> Option<&str> {
        self.0.cause.as_deref()
    }
    /// The attempt of the stage in which it was met.
    async fn attempt(&self) -> i32 {
        self.0.attempt
    }
    /// Whether trying again may help.
    async fn retryable(&self) -> bool {
        self.0.retryable
    }
    /// The end of what the failing instance wrote.
    async fn log_tail(&self) -> Option<&str> {
        self.0.log_tail.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_that_their_keys_call_secret_are_masked() {
        let value = json!({
            "environment": {"DB_PASSWORD": "hunter2", "API_TOKEN": "secret://env/GENNAKER_SECRET_X", "PORT": "1"},
            "headers": [{"Authorization": "Bearer x"}],
            "tokens": 3,
        });
        assert_eq!(
            masked(&value),
            json!({
                "environment": {"DB_PASSWORD": "***", "API_TOKEN": "secret://env/GENNAKER_SECRET_X", "PORT": "1"},
                "headers": [{"Authorization": "***"}],
                "tokens": 3,
            })
        );
    }
}
