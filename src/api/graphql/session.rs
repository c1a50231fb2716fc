//! Who asks, and what they may see. What may not be seen answers as what does not exist.

use async_graphql::{Context, Result};

use crate::api;
use crate::api::error::{Code, coded, denied, shown, stored};
use crate::auth::allow;
use crate::model::{self, Action, Actor, ApplicationId, ExecutionId, PipelineId, Resource};
use crate::near::did_you_mean;

/// One request: what to work with and on whose behalf.
#[derive(Clone, Copy)]
pub struct Session<'a> {
    pub api: &'a api::Context,
    pub actor: &'a Actor,
}

/// The session of a resolver.
pub fn session<'a>(ctx: &Context<'a>) -> Result<Session<'a>> {
    let actor = ctx.data::<Actor>().map_err(|_| coded(Code::Unauthenticated, "nobody is signed in"))?;
    Ok(Session { api: ctx.data::<api::Context>()?, actor })
}

/// What an application's objects are judged by.
pub fn of_application(application: &str) -> Resource {
    Resource::Application { application: application.to_owned() }
}

impl<'a> Session<'a> {
    /// An error unless the actor may.
    pub fn may(&self, action: Action, resource: &Resource) -> Result<()> {
        allow(self.actor, action, resource).map_err(denied)
    }

    /// Whether the actor may look at it.
    pub fn sees(&self, resource: &Resource) -> bool {
        allow(self.actor, Action::Read, resource).is_ok()
    }

    /// Whether the actor may see where messages go: addresses of people. Who may change pipelines may.
    pub fn sees_targets(&self) -> bool {
        allow(self.actor, Action::Save, &Resource::Server).is_ok()
    }

    pub fn sees_application(&self, name: &str) -> bool {
        self.sees(&of_application(name))
    }

    pub async fn application(&self, id: ApplicationId) -> Result<Option<model::Application>> {
        let found = self.api.store.application(id).await.map_err(stored)?;
        Ok(found.filter(|application| self.sees_application(&application.name)))
    }

    pub async fn application_named(&self, name: &str) -> Result<Option<model::Application>> {
        if !self.sees_application(name) {
            return Ok(None);
        }
        self.api.store.application_by_name(name).await.map_err(stored)
    }

    /// What to tell about a name that no application has.
    pub async fn no_application(&self, name: &str) -> Result<String> {
        let mut names = self.api.store.application_names().await.map_err(stored)?;
        names.retain(|name| self.sees_application(name));
        Ok(format!("there is no application `{}`{}", shown(name), did_you_mean(name, names.iter().map(String::as_str))))
    }

    pub async fn pipeline(&self, id: PipelineId) -> Result<Option<model::Pipeline>> {
        let found = self.api.store.pipeline(id).await.map_err(stored)?;
        Ok(found.filter(|pipeline| self.sees_pipeline(&pipeline.application_name, &pipeline.name)))
    }

    pub async fn pipeline_named(
        &self,
        application: &model::Application,
        name: &str,
    ) -> Result<Option<model::Pipeline>> {
        if !self.sees_pipeline(&application.name, name) {
            return Ok(None);
        }
        self.api.store.pipeline_by_name(application.id, name).await.map_err(stored)
    }

    /// What to tell about a name that no pipeline of the application has.
    pub async fn no_pipeline(&self, application: &model::Application, name: &str) -> Result<String> {
        let mut names = self.api.store.pipeline_names(application.id).await.map_err(stored)?;
        names.retain(|name| self.sees_pipeline(&application.name, name));
        Ok(format!(
            "application `{}` has no pipeline `{}`{}",
            application.name,
            shown(name),
            did_you_mean(name, names.iter().map(String::as_str))
        ))
    }

    fn sees_pipeline(&self, application: &str, pipeline: &str) -> bool {
        self.sees(&Resource::Pipeline { application: application.to_owned(), pipeline: pipeline.to_owned() })
    }

    /// With its stages.
    pub async fn execution(&self, id: ExecutionId) -> Result<Option<model::Execution>> {
        let found = self.api.store.execution(id).await.map_err(stored)?;
        Ok(found.filter(|execution| self.sees_execution(execution)))
    }

    pub fn sees_execution(&self, execution: &model::Execution) -> bool {
        self.sees(&Resource::Execution { application: execution.application_name.clone(), execution: execution.id })
    }
}

/// The error of a query whose name or id nothing has.
pub fn not_found(message: impl Into<String>) -> async_graphql::Error {
    coded(Code::NotFound, message)
}
