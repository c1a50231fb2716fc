//! Applications: what people deploy.

use async_graphql::{Context, ID, InputObject, MaybeUndefined, Object, Result};
use chrono::{DateTime, Utc};

use super::cluster::Cluster;
use super::command::{payload, settle, settle_checked};
use super::connection::lists;
use super::execution::{Execution, ExecutionFilter};
use super::ids::Key;
use super::load_balancer::LoadBalancer;
use super::pipeline::Pipeline;
use super::place::Placed;
use super::security_group::SecurityGroup;
use super::selectors::ApplicationSelector;
use super::server_group::ServerGroup;
use super::session::{not_found, session};
use super::trigger::Trigger;
use crate::api::error::stored;
use crate::engine::commands::SaveApplication;
use crate::model::{self, names};

/// An application: what people deploy. Its name is the first part of the names of all that
/// belongs to it.
#[derive(Clone)]
pub struct Application(pub model::Application);

impl From<model::Application> for Application {
    fn from(row: model::Application) -> Self {
        Self(row)
    }
}

/// An application: what people deploy. Its name is the first part of the names of all that
/// belongs to it.
#[Object]
impl Application {
    /// Opaque and global.
    pub async fn id(&self) -> ID {
        Key::Application(self.0.id).id()
    }
    /// Unique.
    async fn name(&self) -> &str {
        &self.0.name
    }
    /// What it is.
    async fn description(&self) -> &str {
        &self.0.description
    }
    /// Whom to ask.
    async fn email(&self) -> Option<&str> {
        self.0.email.as_deref()
    }
    /// When it was made.
    async fn created_at(&self) -> DateTime<Utc> {
        self.0.created_at
    }
    /// When it was changed last.
    async fn updated_at(&self) -> DateTime<Utc> {
        self.0.updated_at
    }
    /// Rises by one with each change.
    async fn version(&self) -> i64 {
        self.0.version
    }
    #[graphql(flatten)]
    async fn lists(&self) -> ApplicationLists<'_> {
        ApplicationLists(self)
    }
}

lists!(
    ApplicationLists of Application by |it| it.0.id.to_string();
    /// Its pipelines, by name.
    fn pipelines(this, session, page) -> Pipeline {
        page.read(async |page| session.api.store.pipelines(Some(this.0.id), &page).await).await
    }
    /// Its executions, the newest first.
    fn executions(this, session, page, #[graphql(desc = "Which executions.")] filter: Option<ExecutionFilter>) -> Execution {
        let filter = filter.unwrap_or_default().with_application(this.0.id);
        page.read(async |page| session.api.store.executions(&filter, &page).await).await
    }
    /// What starts its pipelines without anybody asking, by pipeline and key; of its first 1,000.
    fn triggers(this, session, page) -> Trigger {
        let rows = session.api.store.triggers_of(this.0.id).await.map_err(stored)?;
        let items = rows.into_iter().map(|row| (format!("{}/{}", row.pipeline, row.key), Trigger::from(row)));
        page.slice(items.collect())
    }
    /// Its clusters: all generations of what runs under one name, by account, location and name.
    fn clusters(this, session, page) -> Cluster {
        page.slice(Cluster::all(&session, |name| this.owns(name)))
    }
    /// Its server groups, by account, location and name.
    fn server_groups(this, session, page) -> ServerGroup {
        page.slice(ServerGroup::all(&session, |name| this.owns(name)))
    }
    /// Its load balancers, by account, location and name.
    fn load_balancers(this, session, page) -> LoadBalancer {
        page.slice(LoadBalancer::all(&session, |name| this.owns(name)))
    }
    /// Its security groups, by account, location and name.
    fn security_groups(this, session, page) -> SecurityGroup {
        page.slice(SecurityGroup::all(&session, |name| this.owns(name)))
    }
);

impl Application {
    fn owns(&self, name: &str) -> bool {
        names::parse(name).is_some_and(|name| name.application == self.0.name)
    }
}

/// Queries for applications.
#[derive(Default)]
pub struct ApplicationQuery;

#[Object]
impl ApplicationQuery {
    /// The application of that name.
    async fn application(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The application's name.")] name: String,
    ) -> Result<Option<Application>> {
        let session = session(ctx)?;
        match session.application_named(&name).await? {
            Some(found) => Ok(Some(found.into())),
            None => Err(not_found(session.no_application(&name).await?)),
        }
    }
    #[graphql(flatten)]
    async fn lists(&self) -> ApplicationQueryLists<'_> {
        ApplicationQueryLists(self)
    }
}

lists!(
    ApplicationQueryLists of ApplicationQuery;
    /// All applications, by name.
    fn applications(this, session, page) -> Application {
        session.may(model::Action::Read, &model::Resource::Server)?;
        page.read(async |page| session.api.store.applications(&page).await).await
    }
);

/// An application to make.
#[derive(InputObject)]
pub struct CreateApplicationInput {
    /// Letters, digits, `.` and `_`; lower case; unique.
    name: String,
    /// What it is.
    #[graphql(default)]
    description: String,
    /// Whom to ask.
    email: Option<String>,
    /// Check everything and make nothing; all faults are told. The payload has no application then.
    #[graphql(default)]
    validate_only: bool,
}

/// What to change of an application; what is absent stays.
#[derive(InputObject)]
pub struct UpdateApplicationInput {
    /// Which one.
    application: ApplicationSelector,
    /// What it is.
    description: Option<String>,
    /// Whom to ask; null takes it away.
    email: MaybeUndefined<String>,
    /// Check everything and change nothing; all faults are told. The payload has no application then.
    #[graphql(default)]
    validate_only: bool,
}

/// An application to delete.
#[derive(InputObject)]
pub struct DeleteApplicationInput {
    /// Which one.
    application: ApplicationSelector,
}

payload!(
    /// What `createApplication` came to.
    CreateApplicationPayload {
        /// The application that was made; null where the input was only checked.
        application: Application
    }
);
payload!(
    /// What `updateApplication` came to.
    UpdateApplicationPayload {
        /// The application as it is now; null where the input was only checked.
        application: Application
    }
);
payload!(
    /// What `deleteApplication` came to.
    DeleteApplicationPayload {
        /// The application as it was.
        application: Application
    }
);

/// Mutations of applications.
#[derive(Default)]
pub struct ApplicationMutation;

#[Object]
impl ApplicationMutation {
    /// Makes an application.
    async fn create_application(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "What to make.")] input: CreateApplicationInput,
    ) -> Result<Option<CreateApplicationPayload>> {
        let session = session(ctx)?;
        let CreateApplicationInput { name, description, email, validate_only } = input;
        let save = SaveApplication { name, description, email };
        let commands = &session.api.commands;
        let create = async {
            if validate_only {
                commands.check_application(session.actor, save, true).await?;
                return Ok(None);
            }
            Ok(Some(commands.create_application(session.actor, save).await?.into()))
        };
        settle_checked(create.await)
    }
    /// Changes an application; its name stays.
    async fn update_application(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "What to change.")] input: UpdateApplicationInput,
    ) -> Result<Option<UpdateApplicationPayload>> {
        let session = session(ctx)?;
        let update = async {
            let old = session.select_application(input.application).await?;
            let save = SaveApplication {
                name: old.name,
                description: input.description.unwrap_or(old.description),
                email: match input.email {
                    MaybeUndefined::Undefined => old.email,
                    MaybeUndefined::Null => None,
                    MaybeUndefined::Value(email) => Some(email),
                },
            };
            let commands = &session.api.commands;
            if input.validate_only {
                commands.check_application(session.actor, save, false).await?;
                return Ok(None);
            }
            Ok(Some(commands.update_application(session.actor, old.id, save).await?.into()))
        };
        settle_checked(update.await)
    }
    /// Deletes an application with its pipelines; refused while one of its executions runs. What
    /// runs at a cloud stays.
    async fn delete_application(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "What to delete.")] input: DeleteApplicationInput,
    ) -> Result<Option<DeleteApplicationPayload>> {
        let session = session(ctx)?;
        let delete = async {
            let old = session.select_application(input.application).await?;
            session.api.commands.delete_application(session.actor, old.id).await?;
            Ok(old.into())
        };
        settle(delete.await)
    }
}
