//! Principals, their tokens, and the log of who did what.

use async_graphql::{Context, Enum, ID, InputObject, Object, Result, SimpleObject};
use chrono::{DateTime, Utc};

use super::command::{Refused, payload, settle};
use super::connection::lists;
use super::execution::{Execution, in_query};
use super::ids::{self, Key};
use super::scalars::Json;
use super::selectors::PrincipalSelector;
use super::session::session;
use super::stage::masked;
use crate::api::error::stored;
use crate::auth::{Authenticator, token};
use crate::model::{self, Resource};

/// What a principal may do at the most.
#[derive(Enum, Debug, Clone, Copy, PartialEq, Eq)]
#[graphql(remote = "model::Role")]
pub enum Role {
    /// Reads everything but secrets, tokens and the audit log.
    Viewer,
    /// Reads, saves pipelines and applications, starts, judges and cancels executions.
    Operator,
    /// Everything, principals and tokens included.
    Admin,
}

/// What sort of principal.
#[derive(Enum, Debug, Clone, Copy, PartialEq, Eq)]
#[graphql(remote = "model::PrincipalKind")]
pub enum PrincipalKind {
    /// A person.
    User,
    /// A program: a bot, a script, a continuous-integration server.
    Service,
    /// Gennaker itself.
    System,
}

/// What somebody wanted to do.
#[derive(Enum, Debug, Clone, Copy, PartialEq, Eq)]
#[graphql(remote = "model::Action")]
pub enum Action {
    /// Look at something.
    Read,
    /// Create, change or delete what is stored: applications, pipelines.
    Save,
    /// Start an execution.
    Start,
    /// Cancel an execution.
    Cancel,
    /// Decide a manual judgment.
    Judge,
    /// Change infrastructure outside a pipeline.
    Operate,
    /// Principals, tokens, the audit log.
    Administer,
}

/// Who may act: a person or a program. Tokens belong to one.
pub struct Principal(pub model::Principal);

impl From<model::Principal> for Principal {
    fn from(row: model::Principal) -> Self {
        Self(row)
    }
}

/// Who may act: a person or a program. Tokens belong to one.
#[Object]
impl Principal {
    /// Opaque and global.
    pub async fn id(&self) -> ID {
        Key::Principal(self.0.id).id()
    }
    /// Unique.
    async fn name(&self) -> &str {
        &self.0.name
    }
    /// What sort.
    async fn kind(&self) -> PrincipalKind {
        self.0.kind.into()
    }
    /// What it may do.
    async fn roles(&self) -> Vec<Role> {
        self.0.roles.iter().map(|&role| role.into()).collect()
    }
    /// When it was made.
    async fn created_at(&self) -> DateTime<Utc> {
        self.0.created_at
    }
}

/// A token of a principal. Its text is shown once, when it is made, and kept nowhere.
pub struct Token(pub model::Token);

impl From<model::Token> for Token {
    fn from(row: model::Token) -> Self {
        Self(row)
    }
}

/// A token of a principal. Its text is shown once, when it is made, and kept nowhere.
#[Object]
impl Token {
    /// Opaque and global.
    pub async fn id(&self) -> ID {
        Key::Token(self.0.id).id()
    }
    /// Whose it is.
    async fn principal(&self, ctx: &Context<'_>) -> Result<Option<Principal>> {
        let found = session(ctx)?.api.store.principal(self.0.principal).await.map_err(stored)?;
        Ok(found.map(Principal))
    }
    /// What it is for.
    async fn description(&self) -> &str {
        &self.0.description
    }
    /// When it was made.
    async fn created_at(&self) -> DateTime<Utc> {
        self.0.created_at
    }
    /// No longer valid from this instant on.
    async fn expires_at(&self) -> Option<DateTime<Utc>> {
        self.0.expires_at
    }
    /// When it was revoked.
    async fn revoked_at(&self) -> Option<DateTime<Utc>> {
        self.0.revoked_at
    }
}

/// One line of the audit log: who did what to what.
pub struct AuditEntry(pub model::AuditRow);

impl From<model::AuditRow> for AuditEntry {
    fn from(row: model::AuditRow) -> Self {
        Self(row)
    }
}

/// One line of the audit log: who did what to what.
#[Object]
impl AuditEntry {
    /// Opaque and global.
    pub async fn id(&self) -> ID {
        Key::Audit(self.0.id).id()
    }
    /// When.
    async fn at(&self) -> DateTime<Utc> {
        self.0.at
    }
    /// Who.
    async fn principal(&self, ctx: &Context<'_>) -> Result<Option<Principal>> {
        let found = session(ctx)?.api.store.principal(self.0.principal).await.map_err(stored)?;
        Ok(found.map(Principal))
    }
    /// The name, as of then, of who.
    async fn principal_name(&self) -> &str {
        &self.0.principal_name
    }
    /// What sort of thing was done.
    async fn action(&self) -> Action {
        self.0.action.into()
    }
    /// The application it was done to or in.
    async fn application_name(&self) -> Option<&str> {
        match &self.0.resource {
            Resource::Server => None,
            Resource::Application { application }
            | Resource::Pipeline { application, .. }
            | Resource::Execution { application, .. } => Some(application),
        }
    }
    /// The pipeline it was done to.
    async fn pipeline_name(&self) -> Option<&str> {
        match &self.0.resource {
            Resource::Pipeline { pipeline, .. } => Some(pipeline),
            _ => None,
        }
    }
    /// The execution it was done to.
    async fn execution(&self, ctx: &Context<'_>) -> Result<Option<Execution>> {
        match &self.0.resource {
            Resource::Execution { execution, .. } => {
                Ok(session(ctx)?.execution(*execution).await?.map(Execution::whole))
            }
            _ => Ok(None),
        }
    }
    /// What was asked, without secrets.
    async fn detail(&self) -> Json {
        Json(masked(&self.0.detail))
    }
}

/// Queries for who may do what, and who did.
#[derive(Default)]
pub struct AccessQuery;

#[Object]
impl AccessQuery {
    /// Who asks: the principal of the token of this request.
    async fn viewer(&self, ctx: &Context<'_>) -> Result<Option<Principal>> {
        let session = session(ctx)?;
        let found = session.api.store.principal(session.actor.principal).await.map_err(stored)?;
        Ok(found.map(Principal))
    }
    /// The principal of that name.
    async fn principal(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The principal's name.")] name: String,
    ) -> Result<Option<Principal>> {
        let session = session(ctx)?;
        session.may(model::Action::Read, &Resource::Server)?;
        let found = session.select_principal(PrincipalSelector::Name(name)).await.map_err(in_query)?;
        Ok(Some(Principal(found)))
    }
    #[graphql(flatten)]
    async fn lists(&self) -> AccessQueryLists<'_> {
        AccessQueryLists(self)
    }
}

lists!(
    AccessQueryLists of AccessQuery;
    /// All principals.
    fn principals(this, session, page) -> Principal {
        session.may(model::Action::Read, &Resource::Server)?;
        page.read(async |page| session.api.store.principals(&page).await).await
    }
    /// All tokens, the oldest first. For admins.
    fn tokens(this, session, page) -> Token {
        session.may(model::Action::Administer, &Resource::Server)?;
        page.read(async |page| session.api.store.tokens(&page).await).await
    }
    /// Who did what, the newest first. For admins.
    fn audit_entries(this, session, page) -> AuditEntry {
        session.may(model::Action::Administer, &Resource::Server)?;
        page.read(async |page| session.api.store.audit(&page).await).await
    }
);

/// A token to make.
#[derive(InputObject)]
pub struct CreateTokenInput {
    /// Whose it will be.
    principal: PrincipalSelector,
    /// What it is for; at most 200 characters.
    #[graphql(default)]
    description: String,
    /// No longer valid from this instant on; without one it is valid until revoked.
    expires_at: Option<DateTime<Utc>>,
}

/// A token to revoke.
#[derive(InputObject)]
pub struct RevokeTokenInput {
    /// Which one.
    token: ID,
}

/// A token that was made, and its text.
#[derive(SimpleObject)]
pub struct CreatedToken {
    /// The token.
    token: Token,
    /// Its text, shown this once. Send it as `Authorization: Bearer …`.
    text: String,
}

payload!(
    /// What `createToken` came to.
    CreateTokenPayload {
        /// The token that was made, and its text.
        created: CreatedToken
    }
);
payload!(
    /// What `revokeToken` came to.
    RevokeTokenPayload {
        /// The token as it is now.
        token: Token
    }
);

/// Mutations of tokens.
#[derive(Default)]
pub struct AccessMutation;

#[Object]
impl AccessMutation {
    /// Makes a token of a principal. For admins.
    async fn create_token(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "What to make.")] input: CreateTokenInput,
    ) -> Result<Option<CreateTokenPayload>> {
        let session = session(ctx)?;
        let create = async {
            session.may(model::Action::Administer, &Resource::Server)?;
            let principal = session.select_principal(input.principal).await?;
            let (store, now) = (&session.api.store, session.api.clock.now());
            let made =
                token::issue(store, session.actor, &principal, &input.description, now, input.expires_at).await?;
            Ok(CreatedToken { token: Token(made.0), text: made.1 })
        };
        settle(create.await)
    }
    /// Makes a token invalid from now on. For admins.
    async fn revoke_token(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "What to revoke.")] input: RevokeTokenInput,
    ) -> Result<Option<RevokeTokenPayload>> {
        let session = session(ctx)?;
        let revoke = async {
            let Some(Key::Token(id)) = Key::parse(&input.token) else {
                return Err(Refused::invalid(ids::not_an_id(&input.token), &["token"]));
            };
            let revoked = token::revoke(&session.api.store, session.actor, id, session.api.clock.now()).await?;
            ctx.data::<Authenticator>()?.forget(id);
            Ok(Token(revoked))
        };
        settle(revoke.await)
    }
}
