//! Applications: what people deploy.

use async_graphql::{Context, ID, InputObject, MaybeUndefined, Object, Result};
use chrono::{DateTime, Utc};

use super::command::{Refused, payload, settle};
use super::connection::{Connection, PageArgs};
use super::execution::{Execution, ExecutionFilter};
use super::ids::Key;
use super::infrastructure::{Cluster, LoadBalancer, SecurityGroup, ServerGroup};
use super::pipeline::Pipeline;
use super::selectors::ApplicationSelector;
use super::session::{not_found, session};
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
    /// Its pipelines, by name.
    async fn pipelines(
        &self,
        ctx: &Context<'_>,
        #[graphql(
            desc = "How many items from the start of the range; 25 when absent, at most 100 unless the server is set otherwise."
        )]
        first: Option<i32>,
        #[graphql(desc = "Only items after this cursor.")] after: Option<String>,
        #[graphql(desc = "How many items from the end of the range instead, within the same bound.")] last: Option<i32>,
        #[graphql(desc = "Only items before this cursor.")] before: Option<String>,
    ) -> Result<Connection<Pipeline>> {
        let store = &session(ctx)?.api.store;
        PageArgs::of(ctx, first, after, last, before)
            .read(async |page| store.pipelines(Some(self.0.id), &page).await)
            .await
    }
    /// Its executions, the newest first.
    async fn executions(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Which executions.")] filter: Option<ExecutionFilter>,
        #[graphql(
            desc = "How many items from the start of the range; 25 when absent, at most 100 unless the server is set otherwise."
        )]
        first: Option<i32>,
        #[graphql(desc = "Only items after this cursor.")] after: Option<String>,
        #[graphql(desc = "How many items from the end of the range instead, within the same bound.")] last: Option<i32>,
        #[graphql(desc = "Only items before this cursor.")] before: Option<String>,
    ) -> Result<Connection<Execution>> {
        let store = &session(ctx)?.api.store;
        let filter = filter.unwrap_or_default().with_application(self.0.id);
        PageArgs::of(ctx, first, after, last, before).read(async |page| store.executions(&filter, &page).await).await
    }
    /// Its clusters: all generations of what runs under one name, by account, location and name.
    async fn clusters(
        &self,
        ctx: &Context<'_>,
        #[graphql(
            desc = "How many items from the start of the range; 25 when absent, at most 100 unless the server is set otherwise."
        )]
        first: Option<i32>,
        #[graphql(desc = "Only items after this cursor.")] after: Option<String>,
        #[graphql(desc = "How many items from the end of the range instead, within the same bound.")] last: Option<i32>,
        #[graphql(desc = "Only items before this cursor.")] before: Option<String>,
    ) -> Result<Connection<Cluster>> {
        let session = session(ctx)?;
        PageArgs::of(ctx, first, after, last, before).slice(Cluster::all(&session, |name| self.owns(name)))
    }
    /// Its server groups, by account, location and name.
    async fn server_groups(
        &self,
        ctx: &Context<'_>,
        #[graphql(
            desc = "How many items from the start of the range; 25 when absent, at most 100 unless the server is set otherwise."
        )]
        first: Option<i32>,
        #[graphql(desc = "Only items after this cursor.")] after: Option<String>,
        #[graphql(desc = "How many items from the end of the range instead, within the same bound.")] last: Option<i32>,
        #[graphql(desc = "Only items before this cursor.")] before: Option<String>,
    ) -> Result<Connection<ServerGroup>> {
        let session = session(ctx)?;
        PageArgs::of(ctx, first, after, last, before).slice(ServerGroup::all(&session, |name| self.owns(name)))
    }
    /// Its load balancers, by account, location and name.
    async fn load_balancers(
        &self,
        ctx: &Context<'_>,
        #[graphql(
            desc = "How many items from the start of the range; 25 when absent, at most 100 unless the server is set otherwise."
        )]
        first: Option<i32>,
        #[graphql(desc = "Only items after this cursor.")] after: Option<String>,
        #[graphql(desc = "How many items from the end of the range instead, within the same bound.")] last: Option<i32>,
        #[graphql(desc = "Only items before this cursor.")] before: Option<String>,
    ) -> Result<Connection<LoadBalancer>> {
        let session = session(ctx)?;
        PageArgs::of(ctx, first, after, last, before).slice(LoadBalancer::all(&session, |name| self.owns(name)))
    }
    /// Its security groups, by account, location and name.
    async fn security_groups(
        &self,
        ctx: &Context<'_>,
        #[graphql(
            desc = "How many items from the start of the range; 25 when absent, at most 100 unless the server is set otherwise."
        )]
        first: Option<i32>,
        #[graphql(desc = "Only items after this cursor.")] after: Option<String>,
        #[graphql(desc = "How many items from the end of the range instead, within the same bound.")] last: Option<i32>,
        #[graphql(desc = "Only items before this cursor.")] before: Option<String>,
    ) -> Result<Connection<SecurityGroup>> {
        let session = session(ctx)?;
        PageArgs::of(ctx, first, after, last, before).slice(SecurityGroup::all(&session, |name| self.owns(name)))
    }
}

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
    /// All applications, by name.
    async fn applications(
        &self,
        ctx: &Context<'_>,
        #[graphql(
            desc = "How many items from the start of the range; 25 when absent, at most 100 unless the server is set otherwise."
        )]
        first: Option<i32>,
        #[graphql(desc = "Only items after this cursor.")] after: Option<String>,
        #[graphql(desc = "How many items from the end of the range instead, within the same bound.")] last: Option<i32>,
        #[graphql(desc = "Only items before this cursor.")] before: Option<String>,
    ) -> Result<Connection<Application>> {
        let session = session(ctx)?;
        session.may(model::Action::Read, &model::Resource::Server)?;
        PageArgs::of(ctx, first, after, last, before)
            .read(async |page| session.api.store.applications(&page).await)
            .await
    }
}

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
        /// The application that was made.
        application: Application
    }
);
payload!(
    /// What `updateApplication` came to.
    UpdateApplicationPayload {
        /// The application as it is now.
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
        let CreateApplicationInput { name, description, email } = input;
        let save = SaveApplication { name, description, email };
        let made = session.api.commands.create_application(session.actor, save).await;
        settle(made.map(Application).map_err(Refused::from))
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
            Ok(session.api.commands.update_application(session.actor, old.id, save).await?.into())
        };
        settle(update.await)
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
