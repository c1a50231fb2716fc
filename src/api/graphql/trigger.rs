//! What starts pipelines without anybody asking, and what an execution says of it.

use async_graphql::{Context, Object, Result, SimpleObject};
use chrono::{DateTime, Utc};

use super::execution::{Execution, Status};
use super::pipeline::Pipeline;
use super::scalars::Json;
use super::session::session;
use super::stage::masked;
use crate::api::error::{Code, coded, stored};
use crate::engine::contract::{Timetable, When};
use crate::model;
use crate::store;

/// Instants that may be asked for at once.
const RUNS_MAX: i32 = 100;

/// A trigger of a pipeline as it stands.
#[derive(Clone)]
pub struct Trigger(model::Trigger);

impl From<model::Trigger> for Trigger {
    fn from(row: model::Trigger) -> Self {
        Self(row)
    }
}

impl Trigger {
    /// What the pipeline's newest revision says of it.
    async fn spec(&self, ctx: &Context<'_>) -> Result<Option<model::TriggerSpec>> {
        let pipeline = session(ctx)?.pipeline(self.0.pipeline).await?;
        Ok(pipeline.and_then(|pipeline| {
            pipeline.definition.triggers.into_iter().find(|spec| spec.key == self.0.key && spec.kind == self.0.kind)
        }))
    }

    async fn timetable(&self, ctx: &Context<'_>) -> Result<Option<Box<dyn Timetable>>> {
        let Some(spec) = self.spec(ctx).await?.filter(|spec| spec.enabled) else { return Ok(None) };
        let Some(kind) = session(ctx)?.api.registry.trigger(&spec.kind) else { return Ok(None) };
        Ok(match kind.read(&spec.config) {
            Ok(When::Time(table)) => Some(table),
            Ok(When::Ended(_)) | Err(_) => None,
        })
    }
}

/// What starts a pipeline without anybody asking, as it stands. It acts as the principal who
/// saved the pipeline's newest revision, with that principal's roles of the moment.
#[Object]
impl Trigger {
    /// Unique within the pipeline.
    async fn key(&self) -> &str {
        &self.0.key
    }
    /// One of `triggerKinds`.
    async fn kind(&self) -> &str {
        &self.0.kind
    }
    /// False: it is kept, and starts nothing.
    async fn enabled(&self) -> bool {
        self.0.enabled
    }
    /// The pipeline that it starts.
    async fn pipeline(&self, ctx: &Context<'_>) -> Result<Option<Pipeline>> {
        Ok(session(ctx)?.pipeline(self.0.pipeline).await?.map(Pipeline))
    }
    /// As the kind's schema says.
    async fn config(&self, ctx: &Context<'_>) -> Result<Option<Json>> {
        Ok(self.spec(ctx).await?.map(|spec| Json(masked(&spec.config))))
    }
    /// The pipeline whose executions' ends start this one; null for other kinds, and where it was
    /// deleted.
    async fn source(&self, ctx: &Context<'_>) -> Result<Option<Pipeline>> {
        match self.0.source {
            Some(id) => Ok(session(ctx)?.pipeline(id).await?.map(Pipeline)),
            None => Ok(None),
        }
    }
    /// The instant it waits for; null where it has no timetable or is disabled.
    async fn next_at(&self) -> Option<DateTime<Utc>> {
        self.0.next_at
    }
    /// The next instants of its timetable, from now on; empty where it has none or is disabled.
    async fn next_runs(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "How many: 1 to 100.", default = 5)] first: i32,
    ) -> Result<Vec<DateTime<Utc>>> {
        if !(1..=RUNS_MAX).contains(&first) {
            return Err(coded(Code::PageLimitExceeded, format!("`first` has to be 1 to {RUNS_MAX}, not {first}")));
        }
        let Some(table) = self.timetable(ctx).await? else { return Ok(Vec::new()) };
        let start = session(ctx)?.api.clock.now();
        let runs = std::iter::successors(table.next(start), |run| table.next(*run));
        Ok(runs.take(usize::try_from(first).unwrap_or_default()).collect())
    }
    /// The execution that it started last; null where it has started none, or that is not kept any more.
    async fn last_run(&self, ctx: &Context<'_>) -> Result<Option<Execution>> {
        match self.0.last_execution {
            Some(id) => Ok(session(ctx)?.execution(id).await?.map(Execution::whole)),
            None => Ok(None),
        }
    }
    /// When it started that.
    async fn last_run_at(&self) -> Option<DateTime<Utc>> {
        self.0.last_at
    }
    /// Why it did not start its pipeline when it last should have; null once it has again.
    async fn last_error(&self) -> Option<&str> {
        self.0.last_error.as_deref()
    }
    /// When that was.
    async fn last_error_at(&self) -> Option<DateTime<Utc>> {
        self.0.last_error_at
    }
    /// The newest instant that was let go by, since no server was there in its time.
    async fn last_missed_at(&self) -> Option<DateTime<Utc>> {
        self.0.last_missed_at
    }
    /// Why it can start nothing as it stands: the pipeline it waits for was deleted, or this
    /// server does not know its kind or cannot read its pipeline.
    async fn problem(&self, ctx: &Context<'_>) -> Result<Option<String>> {
        let session = session(ctx)?;
        if session.api.registry.trigger(&self.0.kind).is_none() {
            return Ok(Some(format!("trigger kind `{}` is not known to this server", self.0.kind)));
        }
        match session.api.store.pipeline(self.0.pipeline).await {
            Err(error @ store::Error::Corrupt { .. }) => {
                let what = "save the pipeline again, or start the newer server that wrote it";
                return Ok(Some(format!("{error}; {what}")));
            }
            read => {
                read.map_err(stored)?;
            }
        }
        let Some(source) = self.0.source else { return Ok(None) };
        let there = session.api.store.pipeline(source).await.map_err(stored)?.is_some();
        Ok((!there).then(|| {
            "the pipeline it waits for was deleted; save this pipeline again once there is another".to_owned()
        }))
    }
}

/// Why an execution was started, where nobody asked for it.
#[derive(SimpleObject)]
pub struct ExecutionTrigger {
    /// The trigger's key as of then.
    key: String,
    /// The trigger's kind.
    kind: String,
    /// A sentence for people.
    reason: String,
    /// The instant of the timetable.
    scheduled_at: Option<DateTime<Utc>>,
    /// The execution whose end it was.
    source: Option<ExecutionSource>,
}

/// The execution whose end started another.
#[derive(SimpleObject, Clone)]
#[graphql(complex)]
pub struct ExecutionSource {
    #[graphql(skip)]
    id: model::ExecutionId,
    /// Its application's name as of then.
    application_name: String,
    /// Its pipeline's name as of then.
    pipeline_name: String,
    /// Its number within that pipeline.
    number: i64,
    /// How it ended.
    status: Status,
}

#[async_graphql::ComplexObject]
impl ExecutionSource {
    /// The execution itself; null where it is not kept any more.
    async fn execution(&self, ctx: &Context<'_>) -> Result<Option<Execution>> {
        Ok(session(ctx)?.execution(self.id).await?.map(Execution::whole))
    }
}

impl From<&model::Triggered> for ExecutionTrigger {
    fn from(why: &model::Triggered) -> Self {
        Self {
            key: why.key.clone(),
            kind: why.kind.clone(),
            reason: why.reason.clone(),
            scheduled_at: why.scheduled_at,
            source: why.source.as_ref().map(|source| ExecutionSource {
                id: source.execution,
                application_name: source.application.clone(),
                pipeline_name: source.pipeline.clone(),
                number: source.number,
                status: source.status.into(),
            }),
        }
    }
}
