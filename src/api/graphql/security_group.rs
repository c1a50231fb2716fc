//! Security groups: which connections are let in.

use async_graphql::{Context, Enum, ID, Object, Result, SimpleObject};
use chrono::{DateTime, Utc};

use super::application::Application;
use super::connection::lists;
use super::ids::Key;
use super::load_balancer::LoadBalancer;
use super::place::{At, Placed, application_of, placed};
use super::server_group::ServerGroup;
use crate::model::{self, Place};

/// What lets connections in.
#[derive(Clone)]
pub struct SecurityGroup(pub model::SecurityGroup);

placed!(SecurityGroup, "security group", security_groups, security_group);

/// What lets connections in.
#[Object]
impl SecurityGroup {
    /// Opaque and global.
    pub async fn id(&self) -> ID {
        Key::SecurityGroup(self.0.spec.place.clone(), self.0.spec.name.clone()).id()
    }
    /// `application[-stack[-detail]]`.
    async fn name(&self) -> &str {
        &self.0.spec.name
    }
    #[graphql(flatten)]
    async fn at(&self) -> At {
        At::from(self.place())
    }
    /// The application; null where Gennaker knows none of that name.
    async fn application(&self, ctx: &Context<'_>) -> Result<Option<Application>> {
        application_of(ctx, &self.0.spec.name).await
    }
    /// What it is for.
    async fn description(&self) -> &str {
        &self.0.spec.description
    }
    /// Its rules; no rule, no entry.
    async fn inbound(&self) -> Vec<InboundRule> {
        self.0.spec.inbound.iter().map(InboundRule::from).collect()
    }
    /// The load balancers that use it.
    async fn load_balancers(&self, ctx: &Context<'_>) -> Result<Vec<LoadBalancer>> {
        LoadBalancer::named(ctx, self.place(), &self.0.load_balancers)
    }
    /// The server groups that use it.
    async fn server_groups(&self, ctx: &Context<'_>) -> Result<Vec<ServerGroup>> {
        ServerGroup::named(ctx, self.place(), &self.0.server_groups)
    }
    /// When it was made.
    async fn created_at(&self) -> DateTime<Utc> {
        self.0.created_at
    }
}

/// What a rule or a listener carries.
#[derive(Enum, Debug, Clone, Copy, PartialEq, Eq)]
#[graphql(remote = "model::Protocol")]
pub enum Protocol {
    /// Any connection.
    Tcp,
    /// HTTP.
    Http,
}

/// A rule that lets connections in.
#[derive(SimpleObject)]
pub struct InboundRule {
    /// From these addresses.
    cidr: String,
    /// Of this sort.
    protocol: Protocol,
    /// To ports from this one …
    port_from: u16,
    /// … to this one.
    port_to: u16,
}

impl From<&model::InboundRule> for InboundRule {
    fn from(rule: &model::InboundRule) -> Self {
        Self {
            cidr: rule.cidr.to_string(),
            protocol: rule.protocol.into(),
            port_from: rule.port_from,
            port_to: rule.port_to,
        }
    }
}

/// Queries for security groups.
#[derive(Default)]
pub struct SecurityGroupQuery;

#[Object]
impl SecurityGroupQuery {
    /// The security group of that name at that place.
    async fn security_group(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The account's name.", default = "local")] account: String,
        #[graphql(desc = "The location within the account.", default = "local")] location: String,
        #[graphql(desc = "`application[-stack[-detail]]`.")] name: String,
    ) -> Result<Option<SecurityGroup>> {
        SecurityGroup::asked(ctx, &Place { account, location }, &name)
    }
    #[graphql(flatten)]
    async fn lists(&self) -> SecurityGroupQueryLists<'_> {
        SecurityGroupQueryLists(self)
    }
}

lists!(
    SecurityGroupQueryLists of SecurityGroupQuery;
    /// All security groups, by account, location and name.
    fn security_groups(this, session, page) -> SecurityGroup {
        page.slice(SecurityGroup::all(&session, |_| true))
    }
);
