//! Executions: runs of pipelines and single operations.

use std::sync::Arc;

use async_graphql::{Context, Enum, ID, InputObject, Object, Result};
use chrono::{DateTime, Utc};

use super::access::Principal;
use super::application::Application;
use super::command::{Refused, payload, settle, started_payload};
use super::connection::{Connection, PageArgs, lists};
use super::definition::NotificationRule;
use super::events::{self, ExecutionEvent};
use super::ids::{self, Key};
use super::intent::Intent;
use super::pipeline::{Pipeline, PipelineRevision};
use super::scalars::{Duration, Json, Url};
use super::selectors::{ApplicationSelector, ExecutionSelector, PipelineSelector, StageSelector};
use super::session::{not_found, session};
use super::stage::{self, Failure, Stage};
use super::trigger::ExecutionTrigger;
use crate::api::error::{Code, coded, shown, stored};
use crate::engine::commands::{Judgment, StartPipeline};
use crate::model::{self, ApplicationId, PipelineId};
use crate::store;

/// Where an execution, a stage or a task stands.
#[derive(Enum, Debug, Clone, Copy, PartialEq, Eq)]
#[graphql(remote = "model::Status")]
pub enum Status {
    /// Not begun.
    NotStarted,
    /// In progress.
    Running,
    /// Held by a person; resumable.
    Paused,
    /// Ended well.
    Succeeded,
    /// Failed, and what is downstream goes on, as configured.
    FailedContinue,
    /// Failed; nothing downstream may run.
    Failed,
    /// Ended by a person or by a sibling's failure.
    Canceled,
    /// Failed; this branch ends, others go on.
    Stopped,
    /// Left out.
    Skipped,
}

/// What an execution runs.
#[derive(Enum, Debug, Clone, Copy, PartialEq, Eq)]
#[graphql(remote = "model::ExecutionKind")]
pub enum ExecutionKind {
    /// A run of a pipeline's revision.
    Pipeline,
    /// An ad-hoc operation: resize, disable, upsert a load balancer …
    Operation,
}

/// What cancelling does with what was begun.
#[derive(Enum, Debug, Clone, Copy, PartialEq, Eq)]
#[graphql(remote = "model::CancelMode")]
pub enum CancelMode {
    /// Bring back what was there before.
    Unwind,
    /// Leave everything as it is. While things are being brought back: end that after the call under
    /// way; the failure `UNWIND_INCOMPLETE` then says what is not back.
    Leave,
}

/// Which executions.
#[derive(InputObject, Default)]
pub struct ExecutionFilter {
    /// Of this application.
    application: Option<ApplicationSelector>,
    /// Of this pipeline.
    pipeline: Option<PipelineSelector>,
    /// Of this kind.
    kind: Option<ExecutionKind>,
    /// In one of these states.
    statuses: Option<Vec<Status>>,
}

impl ExecutionFilter {
    fn plain(&self) -> store::ExecutionFilter {
        store::ExecutionFilter {
            kind: self.kind.map(Into::into),
            statuses: self.statuses.iter().flatten().map(|&status| status.into()).collect(),
            ..store::ExecutionFilter::default()
        }
    }

    /// Within an application that is given by the field around it.
    pub fn with_application(&self, application: ApplicationId) -> store::ExecutionFilter {
        store::ExecutionFilter { application: Some(application), ..self.plain() }
    }

    /// Within a pipeline that is given by the field around it.
    pub fn with_pipeline(&self, application: ApplicationId, pipeline: PipelineId) -> store::ExecutionFilter {
        store::ExecutionFilter { pipeline: Some(pipeline), ..self.with_application(application) }
    }
}

/// One run of a pipeline, or a single operation.
#[derive(Clone)]
pub struct Execution {
    /// Its own columns; `stages` is empty.
    own: Arc<model::Execution>,
    /// Where they are known already; otherwise they are loaded.
    stages: Option<stage::Siblings>,
}

impl From<model::Execution> for Execution {
    /// Of an execution read without its stages.
    fn from(own: model::Execution) -> Self {
        Self { own: Arc::new(own), stages: None }
    }
}

impl Execution {
    /// Of an execution read with its stages.
    pub fn whole(mut own: model::Execution) -> Self {
        let stages = std::mem::take(&mut own.stages).into_iter().map(Arc::new).collect();
        Self { own: Arc::new(own), stages: Some(Arc::new(stages)) }
    }

    /// Of an execution as an event tells of it.
    pub fn of_event(own: Arc<model::Execution>, stages: stage::Siblings) -> Self {
        Self { own, stages: Some(stages) }
    }

    async fn siblings(&self, ctx: &Context<'_>) -> Result<stage::Siblings> {
        match &self.stages {
            Some(stages) => Ok(Arc::clone(stages)),
            None => stage::load(ctx, self.own.id).await,
        }
    }

    fn stage_of(&self, row: &Arc<model::Stage>, stages: &stage::Siblings) -> Stage {
        Stage::new(Arc::clone(row), Arc::clone(stages), Arc::clone(&self.own))
    }
}

/// One run of a pipeline, or a single operation.
#[Object]
impl Execution {
    /// Opaque and global.
    pub async fn id(&self) -> ID {
        Key::Execution(self.own.id).id()
    }
    /// What it runs.
    async fn kind(&self) -> ExecutionKind {
        self.own.kind.into()
    }
    /// Counts from 1 within the pipeline, or within the application for operations.
    async fn number(&self) -> i64 {
        self.own.number
    }
    /// The pipeline's name as of the start, or the operation's title.
    async fn name(&self) -> &str {
        &self.own.name
    }
    /// Where it stands.
    async fn status(&self) -> Status {
        self.own.status.into()
    }
    /// Rises by one with each change.
    async fn version(&self) -> i64 {
        self.own.version
    }
    /// The application's name as of the start.
    async fn application_name(&self) -> &str {
        &self.own.application_name
    }
    /// The application; null where it was deleted since.
    async fn application(&self, ctx: &Context<'_>) -> Result<Option<Application>> {
        Ok(session(ctx)?.application(self.own.application).await?.map(Application))
    }
    /// The pipeline; null for operations and where it was deleted since.
    async fn pipeline(&self, ctx: &Context<'_>) -> Result<Option<Pipeline>> {
        match self.own.pipeline {
            Some(id) => Ok(session(ctx)?.pipeline(id).await?.map(Pipeline)),
            None => Ok(None),
        }
    }
    /// The number of the pipeline's revision that runs; null for operations.
    async fn revision(&self) -> Option<i64> {
        Some(self.own.revision).filter(|number| *number > 0)
    }
    /// The pipeline's revision that runs.
    async fn pipeline_revision(&self, ctx: &Context<'_>) -> Result<Option<PipelineRevision>> {
        let Some(pipeline) = self.own.pipeline else { return Ok(None) };
        let found = session(ctx)?.api.store.revision(pipeline, self.own.revision).await.map_err(stored)?;
        Ok(found.map(PipelineRevision))
    }
    /// Who started it.
    async fn started_by(&self, ctx: &Context<'_>) -> Result<Option<Principal>> {
        let found = session(ctx)?.api.store.principal(self.own.started_by).await.map_err(stored)?;
        Ok(found.map(Principal))
    }
    /// The name, as of then, of who started it.
    async fn started_by_name(&self) -> &str {
        &self.own.started_by_name
    }
    /// Why it was started, where nobody asked for it.
    async fn trigger(&self) -> Option<ExecutionTrigger> {
        self.own.trigger.as_deref().map(ExecutionTrigger::from)
    }
    /// Parameter name to value.
    async fn parameters(&self) -> Json {
        Json(stage::masked(&self.own.parameters))
    }
    /// On which occasions of the whole execution whom to tell.
    async fn notifications(&self, ctx: &Context<'_>) -> Result<Vec<NotificationRule>> {
        let session = session(ctx)?;
        let rules = self.own.notifications.iter().filter(|rule| rule.stage.is_none());
        Ok(rules.map(|rule| NotificationRule::shown(&rule.rule(), &session)).collect())
    }
    /// The wish to end it early, if somebody had one.
    async fn cancellation(&self) -> Option<Cancellation> {
        self.own.cancel.as_ref().map(Cancellation::from)
    }
    /// Why it failed.
    async fn failure(&self) -> Option<Failure> {
        self.own.failure.as_ref().map(Failure::from)
    }
    /// When it was asked for.
    async fn created_at(&self) -> DateTime<Utc> {
        self.own.created_at
    }
    /// When it began.
    async fn started_at(&self) -> Option<DateTime<Utc>> {
        self.own.started_at
    }
    /// When it was over.
    async fn ended_at(&self) -> Option<DateTime<Utc>> {
        self.own.ended_at
    }
    /// The end at the latest.
    async fn deadline(&self) -> DateTime<Utc> {
        self.own.deadline
    }
    /// From its start to its end, or to now.
    async fn elapsed(&self, ctx: &Context<'_>) -> Result<Option<Duration>> {
        stage::elapsed(ctx, self.own.started_at, self.own.ended_at)
    }
    /// Its stages: those of the pipeline in its order, then children as they were made. The tree
    /// is in `Stage.parentId` and `Stage.children`.
    async fn stages(&self, ctx: &Context<'_>) -> Result<Vec<Stage>> {
        let stages = self.siblings(ctx).await?;
        Ok(stages.iter().map(|row| self.stage_of(row, &stages)).collect())
    }
    /// The stage that has that key in the pipeline.
    async fn stage(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "As in the pipeline.")] key: String,
    ) -> Result<Option<Stage>> {
        let stages = self.siblings(ctx).await?;
        let found = stages.iter().find(|stage| stage.parent.is_none() && stage.key == key);
        Ok(found.map(|row| self.stage_of(row, &stages)))
    }
    /// What happened to it, the oldest first, told as `executionEvents` tells it and with the same
    /// cursors: what lies behind one is what that subscription tells after it.
    async fn events(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "How many, at most; 25 when absent, at most 100 unless the server is set otherwise.")]
        first: Option<i32>,
        #[graphql(desc = "Only what happened after the event that had this cursor.")] after: Option<String>,
    ) -> Result<Connection<ExecutionEvent>> {
        let paging = PageArgs { first, after: None, last: None, before: None }.of(ctx, &[]);
        events::page(session(ctx)?, self.own.id, paging.first()?, after).await
    }
    /// What was about to be done outside, and what came of it; the oldest first, at most 1,000.
    async fn intents(&self, ctx: &Context<'_>) -> Result<Vec<Intent>> {
        let mut intents = session(ctx)?.api.store.intents(self.own.id).await.map_err(stored)?;
        intents.truncate(1_000);
        Ok(intents.into_iter().map(Intent::from).collect())
    }
    /// Opens this execution in the API's own explorer.
    async fn url(&self, ctx: &Context<'_>) -> Result<Url> {
        let query = format!(
            "{{ node(id: \"{}\") {{ ... on Execution {{ name number status stages {{ key status }} }} }} }}",
            Key::Execution(self.own.id).id().as_str()
        );
        let config = &session(ctx)?.api.config;
        let base = config.public_url.as_deref().unwrap_or(&config.base_url);
        let mut text = format!("{}/?query=", base.trim_end_matches('/'));
        for byte in query.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => text.push(char::from(byte)),
                _ => text.push_str(&format!("%{byte:02X}")),
            }
        }
        Ok(Url(text))
    }
}

/// A wish to end an execution early.
pub struct Cancellation(model::Cancel);

impl From<&model::Cancel> for Cancellation {
    fn from(cancel: &model::Cancel) -> Self {
        Self(cancel.clone())
    }
}

/// A wish to end an execution early.
#[Object]
impl Cancellation {
    /// Who had it; null where the principal is not there any more.
    async fn by(&self, ctx: &Context<'_>) -> Result<Option<Principal>> {
        let found = session(ctx)?.api.store.principal(self.0.by).await.map_err(stored)?;
        Ok(found.map(Principal))
    }
    /// The name, as of then, of who had it.
    async fn by_name(&self) -> &str {
        &self.0.by_name
    }
    /// When.
    async fn at(&self) -> DateTime<Utc> {
        self.0.at
    }
    /// Why.
    async fn reason(&self) -> &str {
        &self.0.reason
    }
    /// What becomes of what was begun.
    async fn mode(&self) -> CancelMode {
        self.0.mode.into()
    }
}

/// Queries for executions.
#[derive(Default)]
pub struct ExecutionQuery;

#[Object]
impl ExecutionQuery {
    /// The execution of that number.
    async fn execution(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The application's name.")] application: String,
        #[graphql(desc = "The pipeline's name; absent for operations.")] pipeline: Option<String>,
        #[graphql(desc = "Counts from 1 within the pipeline, or within the application for operations.")] number: i64,
    ) -> Result<Option<Execution>> {
        let selector = ExecutionSelector::Number(super::selectors::ExecutionNumber { application, pipeline, number });
        Ok(Some(Execution::whole(session(ctx)?.select_execution(selector).await.map_err(in_query)?)))
    }
    #[graphql(flatten)]
    async fn lists(&self) -> ExecutionQueryLists<'_> {
        ExecutionQueryLists(self)
    }
    /// The stage of that id.
    async fn stage(&self, ctx: &Context<'_>, #[graphql(desc = "A stage's id.")] id: ID) -> Result<Option<Stage>> {
        match ids::parse(&id)? {
            Key::Stage(key) => match stage::find(ctx, key).await? {
                Some(found) => Ok(Some(found)),
                None => Err(not_found(format!("there is no stage with the id `{}`", shown(&id)))),
            },
            _ => Err(coded(Code::BadRequest, format!("`{}` is not the id of a stage", shown(&id)))),
        }
    }
}

lists!(
    ExecutionQueryLists of ExecutionQuery;
    /// Executions, the newest first.
    fn executions(this, session, page, #[graphql(desc = "Which ones.")] filter: Option<ExecutionFilter>) -> Execution {
        session.may(model::Action::Read, &model::Resource::Server)?;
        let filter = filter.unwrap_or_default();
        let mut wanted = filter.plain();
        if let Some(application) = filter.application {
            wanted.application = Some(session.select_application(application).await.map_err(in_query)?.id);
        }
        if let Some(pipeline) = filter.pipeline {
            wanted.pipeline = Some(session.select_pipeline(pipeline).await.map_err(in_query)?.id);
        }
        page.read(async |page| session.api.store.executions(&wanted, &page).await).await
    }
);

/// What refuses a mutation as data is an error in a query.
pub fn in_query(refused: Refused) -> async_graphql::Error {
    match refused {
        Refused::Fault(error) => error,
        Refused::User(mut errors) => match errors.swap_remove(0) {
            error if error.code == super::command::UserErrorCode::NotFound => not_found(error.message),
            error => coded(Code::BadRequest, error.message),
        },
    }
}

/// A pipeline to start.
#[derive(InputObject)]
pub struct StartPipelineInput {
    /// Which one.
    pipeline: PipelineSelector,
    /// An object: parameter name to value.
    parameters: Option<Json>,
    /// 1 to 128 characters. For at least 24 hours another call with the same key and input
    /// answers with the execution that this one started, instead of starting another.
    idempotency_key: Option<String>,
}

/// An execution to cancel.
#[derive(InputObject)]
pub struct CancelExecutionInput {
    /// Which one.
    execution: ExecutionSelector,
    /// Why; shown to everyone.
    #[graphql(default)]
    reason: String,
    /// What becomes of what was begun.
    #[graphql(default_with = "CancelMode::Unwind")]
    mode: CancelMode,
}

/// A word on a manual judgment.
#[derive(InputObject)]
pub struct JudgeStageInput {
    /// The stage that waits.
    stage: StageSelector,
    /// True: go on; false: stop.
    proceed: bool,
    /// One of the stage's inputs, if it has any.
    input: Option<String>,
    /// Why; shown to everyone.
    comment: Option<String>,
}

started_payload!(
    /// What `startPipeline` came to.
    StartPipelinePayload
);
payload!(
    /// What `cancelExecution` came to.
    CancelExecutionPayload {
        /// The execution with the wish to cancel it.
        execution: Execution
    }
);
payload!(
    /// What `judgeStage` came to.
    JudgeStagePayload {
        /// The execution that goes on.
        execution: Execution
    }
);

/// Mutations of executions.
#[derive(Default)]
pub struct ExecutionMutation;

#[Object]
impl ExecutionMutation {
    /// Starts a pipeline's newest revision.
    async fn start_pipeline(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "What to start.")] input: StartPipelineInput,
    ) -> Result<Option<StartPipelinePayload>> {
        let session = session(ctx)?;
        let start = async {
            let start = StartPipeline {
                pipeline: session.select_pipeline(input.pipeline).await?.id,
                parameters: input.parameters.map_or(serde_json::Value::Null, |parameters| parameters.0),
                idempotency_key: input.idempotency_key,
            };
            Ok(session.api.commands.start_pipeline(session.actor, start).await?)
        };
        settle(start.await)
    }
    /// Ends an execution early. Cancelling what is being cancelled or over is `WRONG_STATE`.
    async fn cancel_execution(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "What to cancel, and how.")] input: CancelExecutionInput,
    ) -> Result<Option<CancelExecutionPayload>> {
        let session = session(ctx)?;
        let cancel = async {
            let execution = session.select_execution_id(input.execution).await?;
            let commands = &session.api.commands;
            let canceled = commands.cancel(session.actor, execution, &input.reason, input.mode.into()).await?;
            Ok(Execution::whole(canceled))
        };
        settle(cancel.await)
    }
    /// Decides a manual judgment.
    async fn judge_stage(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The stage and the decision.")] input: JudgeStageInput,
    ) -> Result<Option<JudgeStagePayload>> {
        let session = session(ctx)?;
        let judge = async {
            let stage = session.select_stage(input.stage).await?;
            let judgment = Judgment { stage, proceed: input.proceed, input: input.input, comment: input.comment };
            Ok(Execution::whole(session.api.commands.judge(session.actor, judgment).await?))
        };
        settle(judge.await)
    }
}
