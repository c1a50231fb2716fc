//! Server groups: equal instances of one version.

use async_graphql::{Context, ID, Object, Result, SimpleObject};
use chrono::{DateTime, Utc};

use super::account::with_problem_of;
use super::application::Application;
use super::cluster::Cluster;
use super::connection::lists;
use super::health::HealthCheck;
use super::ids::Key;
use super::instance::Instance;
use super::load_balancer::LoadBalancer;
use super::place::{At, Placed, application_of, placed};
use super::scalars::Json;
use super::security_group::SecurityGroup;
use super::stage::masked;
use crate::model::{self, Place, names};

/// A server group: equal instances of one version.
#[derive(Clone)]
pub struct ServerGroup(pub model::ServerGroup);

placed!(ServerGroup, "server group", server_groups, server_group);

/// A server group: equal instances of one version.
#[Object]
impl ServerGroup {
    /// Opaque and global.
    pub async fn id(&self) -> ID {
        Key::ServerGroup(self.place().clone(), self.0.spec.name.clone()).id()
    }
    /// `application[-stack[-detail]]-vNNN`.
    async fn name(&self) -> &str {
        &self.0.spec.name
    }
    #[graphql(flatten)]
    async fn at(&self) -> At {
        At::from(self.place())
    }
    /// The number in its name.
    async fn sequence(&self) -> Option<u32> {
        names::parse(&self.0.spec.name)?.sequence
    }
    /// The application; null where Gennaker knows none of that name.
    async fn application(&self, ctx: &Context<'_>) -> Result<Option<Application>> {
        application_of(ctx, &self.0.spec.name).await
    }
    /// The cluster it is a generation of.
    async fn cluster(&self) -> Option<Cluster> {
        Some(Cluster { place: self.place().clone(), name: names::cluster_of(&self.0.spec.name)? })
    }
    /// Whether it takes traffic from its load balancers.
    async fn is_enabled(&self) -> bool {
        self.0.spec.enabled
    }
    /// How many instances it should have.
    async fn capacity(&self) -> Capacity {
        let model::Capacity { min, desired, max } = self.0.spec.capacity;
        Capacity { min, desired, max }
    }
    /// Its instances, at most 1,000.
    async fn instances(&self) -> Vec<Instance> {
        let of = |row: &model::Instance| Instance { place: self.place().clone(), row: row.clone() };
        self.0.instances.iter().take(1_000).map(of).collect()
    }
    /// How many instances it has.
    async fn instance_count(&self) -> usize {
        self.0.instances.len()
    }
    /// How many instances are up by all sources.
    async fn healthy_count(&self) -> usize {
        self.0.healthy()
    }
    /// Name to value.
    async fn labels(&self) -> Json {
        Json(serde_json::json!(self.0.spec.labels))
    }
    /// The check of each instance; without one a running instance counts as healthy.
    async fn health_check(&self) -> Option<HealthCheck> {
        self.0.spec.health_check.as_ref().map(HealthCheck::from)
    }
    /// What it runs, in the provider's own words. Secrets stand as references.
    async fn launch(&self) -> Json {
        Json(masked(&self.0.spec.launch))
    }
    /// The load balancers it belongs to.
    async fn load_balancers(&self, ctx: &Context<'_>) -> Result<Vec<LoadBalancer>> {
        LoadBalancer::named(ctx, self.place(), &self.0.spec.load_balancers)
    }
    /// The security groups it belongs to.
    async fn security_groups(&self, ctx: &Context<'_>) -> Result<Vec<SecurityGroup>> {
        SecurityGroup::named(ctx, self.place(), &self.0.spec.security_groups)
    }
    /// When it was made.
    async fn created_at(&self) -> DateTime<Utc> {
        self.0.created_at
    }
    /// What the provider says is in the way: an artifact that cannot be fetched, a full port range; and that its
    /// account cannot be read, so that all this may be old.
    async fn problem(&self, ctx: &Context<'_>) -> Result<Option<String>> {
        with_problem_of(ctx, &self.0.spec.place.account, self.0.problem.clone())
    }
    /// How the limits asked for are enforced, or why they are not.
    async fn limits_enforced_by(&self) -> Option<&str> {
        self.0.limits_enforced_by.as_deref()
    }
}

/// How many instances.
#[derive(SimpleObject)]
pub struct Capacity {
    /// The least.
    min: u32,
    /// The wanted number.
    desired: u32,
    /// The most.
    max: u32,
}

/// Queries for server groups.
#[derive(Default)]
pub struct ServerGroupQuery;

#[Object]
impl ServerGroupQuery {
    /// The server group of that name at that place.
    async fn server_group(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The account's name.", default = "local")] account: String,
        #[graphql(desc = "The location within the account.", default = "local")] location: String,
        #[graphql(desc = "`application[-stack[-detail]]-vNNN`.")] name: String,
    ) -> Result<Option<ServerGroup>> {
        ServerGroup::asked(ctx, &Place { account, location }, &name)
    }
    #[graphql(flatten)]
    async fn lists(&self) -> ServerGroupQueryLists<'_> {
        ServerGroupQueryLists(self)
    }
}

lists!(
    ServerGroupQueryLists of ServerGroupQuery;
    /// All server groups, by account, location and name.
    fn server_groups(this, session, page) -> ServerGroup {
        page.slice(ServerGroup::all(&session, |_| true))
    }
);
