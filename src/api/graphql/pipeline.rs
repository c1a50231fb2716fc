//! Pipelines and their immutable revisions.

use async_graphql::{Context, ID, InputObject, Object, Result};
use chrono::{DateTime, Utc};

use super::access::Principal;
use super::application::Application;
use super::command::{NEEDS_VALIDATE_ONLY, Refused, payload, settle, settle_checked};
use super::connection::lists;
use super::definition::{Definition, NotificationRule, ParameterDefinition, StageDefinition, TriggerDefinition};
use super::execution::{Execution, ExecutionFilter};
use super::ids::Key;
use super::selectors::{ApplicationSelector, PipelineName, PipelineSelector};
use super::session::{not_found, session};
use super::trigger::Trigger;
use crate::api::error::stored;
use crate::engine::commands::{self, CheckPipeline, SavePipeline};
use crate::model::{self, PipelineDefinition};

/// A pipeline: a recipe of stages within an application.
#[derive(Clone)]
pub struct Pipeline(pub model::Pipeline);

impl From<model::Pipeline> for Pipeline {
    fn from(row: model::Pipeline) -> Self {
        Self(row)
    }
}

/// A pipeline: a recipe of stages within an application.
#[Object]
impl Pipeline {
    /// Opaque and global.
    pub async fn id(&self) -> ID {
        Key::Pipeline(self.0.id).id()
    }
    /// Unique within the application.
    async fn name(&self) -> &str {
        &self.0.name
    }
    /// The application it belongs to.
    async fn application(&self, ctx: &Context<'_>) -> Result<Option<Application>> {
        Ok(session(ctx)?.application(self.0.application).await?.map(Application))
    }
    /// The number of the newest revision, from 1.
    async fn revision(&self) -> i64 {
        self.0.revision
    }
    /// What the newest revision says.
    async fn definition(&self) -> Definition {
        Definition(self.0.definition.clone())
    }
    /// What starts it without anybody asking, in its order; at most 20.
    async fn triggers(&self, ctx: &Context<'_>) -> Result<Vec<Trigger>> {
        let rows = session(ctx)?.api.store.triggers(self.0.id).await.map_err(stored)?;
        Ok(rows.into_iter().map(Trigger::from).collect())
    }
    /// When it was made.
    async fn created_at(&self) -> DateTime<Utc> {
        self.0.created_at
    }
    /// When its newest revision was saved.
    async fn updated_at(&self) -> DateTime<Utc> {
        self.0.updated_at
    }
    /// The revision of that number.
    async fn pipeline_revision(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "From 1.")] number: i64,
    ) -> Result<Option<PipelineRevision>> {
        let found = session(ctx)?.api.store.revision(self.0.id, number).await.map_err(stored)?;
        Ok(found.map(PipelineRevision))
    }
    #[graphql(flatten)]
    async fn lists(&self) -> PipelineLists<'_> {
        PipelineLists(self)
    }
}

lists!(
    PipelineLists of Pipeline by |it| it.0.id.to_string();
    /// All its revisions, the newest first.
    fn revisions(this, session, page) -> PipelineRevision {
        page.read(async |page| session.api.store.revisions(this.0.id, &page).await).await
    }
    /// Its executions, the newest first.
    fn executions(this, session, page, #[graphql(desc = "Which executions.")] filter: Option<ExecutionFilter>) -> Execution {
        let filter = filter.unwrap_or_default().with_pipeline(this.0.application, this.0.id);
        page.read(async |page| session.api.store.executions(&filter, &page).await).await
    }
);

/// What a pipeline said at one time. Never changed.
pub struct PipelineRevision(pub model::Revision);

impl From<model::Revision> for PipelineRevision {
    fn from(row: model::Revision) -> Self {
        Self(row)
    }
}

/// What a pipeline said at one time. Never changed.
#[Object]
impl PipelineRevision {
    /// Opaque and global.
    pub async fn id(&self) -> ID {
        Key::Revision(self.0.pipeline, self.0.number).id()
    }
    /// Counts from 1 within the pipeline.
    async fn number(&self) -> i64 {
        self.0.number
    }
    /// What it says.
    async fn definition(&self) -> Definition {
        Definition(self.0.definition.clone())
    }
    /// When it was saved.
    async fn created_at(&self) -> DateTime<Utc> {
        self.0.created_at
    }
    /// Who saved it.
    async fn created_by(&self, ctx: &Context<'_>) -> Result<Option<Principal>> {
        let found = session(ctx)?.api.store.principal(self.0.created_by).await.map_err(stored)?;
        Ok(found.map(Principal))
    }
    /// The name, as of then, of who saved it.
    async fn created_by_name(&self) -> &str {
        &self.0.created_by_name
    }
    /// The pipeline.
    async fn pipeline(&self, ctx: &Context<'_>) -> Result<Option<Pipeline>> {
        Ok(session(ctx)?.pipeline(self.0.pipeline).await?.map(Pipeline))
    }
}

/// Queries for pipelines.
#[derive(Default)]
pub struct PipelineQuery;

#[Object]
impl PipelineQuery {
    /// The pipeline of that name in that application.
    async fn pipeline(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The application's name.")] application: String,
        #[graphql(desc = "The pipeline's name.")] name: String,
    ) -> Result<Option<Pipeline>> {
        let session = session(ctx)?;
        let Some(application) = session.application_named(&application).await? else {
            return Err(not_found(session.no_application(&application).await?));
        };
        match session.pipeline_named(&application, &name).await? {
            Some(found) => Ok(Some(found.into())),
            None => Err(not_found(session.no_pipeline(&application, &name).await?)),
        }
    }
    #[graphql(flatten)]
    async fn lists(&self) -> PipelineQueryLists<'_> {
        PipelineQueryLists(self)
    }
}

lists!(
    PipelineQueryLists of PipelineQuery;
    /// The pipelines of all applications, by name.
    fn pipelines(this, session, page) -> Pipeline {
        session.may(model::Action::Read, &model::Resource::Server)?;
        page.read(async |page| session.api.store.pipelines(None, &page).await).await
    }
);

/// A pipeline to make, or the next revision of one.
#[derive(InputObject)]
pub struct SavePipelineInput {
    /// The application it belongs to.
    application: ApplicationSelector,
    /// Its name; a pipeline of this name gets its next revision, otherwise it is made.
    name: String,
    /// What it is for.
    #[graphql(default)]
    description: String,
    /// The values that are given when it is started.
    #[graphql(default)]
    parameters: Vec<ParameterDefinition>,
    /// Its stages.
    stages: Vec<StageDefinition>,
    /// On which occasions people are told.
    #[graphql(default)]
    notifications: Vec<NotificationRule>,
    /// What starts it without anybody asking.
    #[graphql(default)]
    triggers: Vec<TriggerDefinition>,
    /// The revision that was read before; refused with `CONFLICT` when there is a newer one.
    /// 0: the pipeline must not exist yet.
    expected_revision: Option<i64>,
    /// Check everything and save nothing; all faults are told. The application need not be there
    /// yet. The payload's pipeline is null then.
    #[graphql(default)]
    validate_only: bool,
    /// With `validateOnly`: the pipelines that are to be made or changed together with this one.
    /// Its triggers may refer to them; they must not start each other in a circle.
    #[graphql(default)]
    validate_with: Vec<PipelineBesideInput>,
}

/// What a pipeline will be once it is saved too.
#[derive(InputObject)]
pub struct PipelineBesideInput {
    /// The application's name.
    application: String,
    /// The pipeline's name.
    name: String,
    /// The pipelines whose ends will start it.
    #[graphql(default)]
    started_by: Vec<PipelineName>,
}

impl From<PipelineName> for commands::PipelineName {
    fn from(input: PipelineName) -> Self {
        Self { application: input.application, name: input.name }
    }
}

impl From<PipelineBesideInput> for commands::PipelineBeside {
    fn from(input: PipelineBesideInput) -> Self {
        Self {
            name: commands::PipelineName { application: input.application, name: input.name },
            started_by: input.started_by.into_iter().map(Into::into).collect(),
        }
    }
}

/// A pipeline to delete.
#[derive(InputObject)]
pub struct DeletePipelineInput {
    /// Which one.
    pipeline: PipelineSelector,
}

payload!(
    /// What `savePipeline` came to.
    SavePipelinePayload {
        /// The pipeline with its new revision; null where it was only checked.
        pipeline: Pipeline
    }
);
payload!(
    /// What `deletePipeline` came to.
    DeletePipelinePayload {
        /// The pipeline as it was.
        pipeline: Pipeline
    }
);

/// Mutations of pipelines.
#[derive(Default)]
pub struct PipelineMutation;

#[Object]
impl PipelineMutation {
    /// Makes a pipeline, or saves the next revision of one. Configs are checked against the
    /// schemas of their stages' kinds; the error names the path of the first fault.
    async fn save_pipeline(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "What to save.")] input: SavePipelineInput,
    ) -> Result<Option<SavePipelinePayload>> {
        let session = session(ctx)?;
        let save = async {
            if !input.validate_only && !input.validate_with.is_empty() {
                return Err(Refused::invalid(NEEDS_VALIDATE_ONLY, &["validateWith"]));
            }
            let definition = PipelineDefinition {
                format_version: PipelineDefinition::FORMAT_VERSION,
                description: input.description,
                parameters: input.parameters.into_iter().map(Into::into).collect(),
                stages: input.stages.into_iter().map(Into::into).collect(),
                notifications: input.notifications.into_iter().map(Into::into).collect(),
                triggers: input.triggers.into_iter().map(Into::into).collect(),
            };
            let commands = &session.api.commands;
            let (name, expected_revision) = (input.name, input.expected_revision);
            if input.validate_only {
                let application = match input.application {
                    ApplicationSelector::Name(name) => name,
                    id => session.select_application(id).await?.name,
                };
                let beside = input.validate_with.into_iter().map(Into::into).collect();
                let check = CheckPipeline { application, name, definition, expected_revision, beside };
                commands.check_pipeline(session.actor, check).await?;
                return Ok(None);
            }
            let application = session.select_application(input.application).await?.id;
            let save = SavePipeline { application, name, definition, expected_revision };
            Ok(Some(commands.save_pipeline(session.actor, save).await?.into()))
        };
        settle_checked(save.await)
    }
    /// Deletes a pipeline; its executions stay.
    async fn delete_pipeline(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "What to delete.")] input: DeletePipelineInput,
    ) -> Result<Option<DeletePipelinePayload>> {
        let session = session(ctx)?;
        let delete = async {
            let old = session.select_pipeline(input.pipeline).await?;
            session.api.commands.delete_pipeline(session.actor, old.id).await?;
            Ok(old.into())
        };
        settle(delete.await)
    }
}
