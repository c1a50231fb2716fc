//! Load balancers: they spread requests over server groups, and count them.

use async_graphql::{Context, ID, Object, Result, SimpleObject};
use chrono::{DateTime, Utc};

use super::account::with_problem_of;
use super::application::Application;
use super::connection::lists;
use super::health::HealthCheck;
use super::ids::Key;
use super::place::{At, Placed, application_of, by_provider, placed};
use super::scalars::{Duration, Url};
use super::security_group::SecurityGroup;
use super::server_group::ServerGroup;
use super::session::session;
use crate::model::{self, Place};

/// Spreads requests over server groups.
#[derive(Clone)]
pub struct LoadBalancer(pub model::LoadBalancer);

placed!(LoadBalancer, "load balancer", load_balancers, load_balancer);

/// Spreads requests over server groups.
#[Object]
impl LoadBalancer {
    /// Opaque and global.
    pub async fn id(&self) -> ID {
        Key::LoadBalancer(self.0.spec.place.clone(), self.0.spec.name.clone()).id()
    }
    /// `application[-stack[-detail]]`.
    async fn name(&self) -> &str {
        &self.0.spec.name
    }
    #[graphql(flatten)]
    async fn at(&self) -> At {
        At::from(self.place())
    }
    /// The name of the machine that listens; null where the provider does not say.
    async fn host(&self) -> Option<&str> {
        Some(self.0.host.as_str()).filter(|host| !host.is_empty())
    }
    /// The application; null where Gennaker knows none of that name.
    async fn application(&self, ctx: &Context<'_>) -> Result<Option<Application>> {
        application_of(ctx, &self.0.spec.name).await
    }
    /// Where it should listen.
    async fn listeners(&self) -> Vec<Listener> {
        let of = |listener: &model::Listener| Listener {
            address: listener.address.to_string(),
            port: listener.port,
            port_to: listener.port_to,
        };
        self.0.spec.listeners.iter().map(of).collect()
    }
    /// Where it listens, in the order of `listeners`.
    async fn urls(&self) -> Vec<Url> {
        self.0.bound.iter().map(|address| Url(format!("http://{address}/"))).collect()
    }
    /// The check that it makes of every instance registered with it.
    async fn health_check(&self) -> Option<HealthCheck> {
        self.0.spec.health_check.as_ref().map(HealthCheck::from)
    }
    /// How long a connection may go on after its instance was taken out.
    async fn drain(&self) -> Duration {
        Duration::from(self.0.spec.drain_seconds.saturating_mul(1_000))
    }
    /// The security groups whose rules let connections in; without any, nothing enters.
    async fn security_groups(&self, ctx: &Context<'_>) -> Result<Vec<SecurityGroup>> {
        SecurityGroup::named(ctx, self.place(), &self.0.spec.security_groups)
    }
    /// The server groups registered with it, enabled or not.
    async fn server_groups(&self, ctx: &Context<'_>) -> Result<Vec<ServerGroup>> {
        ServerGroup::named(ctx, self.place(), &self.0.server_groups)
    }
    /// Explicit shares of its traffic; server groups without one divide the rest by healthy
    /// instances.
    async fn shares(&self) -> Vec<Share> {
        let of =
            |share: &model::Share| Share { server_group: share.server_group.clone(), basis_points: share.basis_points };
        self.0.shares.iter().map(of).collect()
    }
    /// When it was made.
    async fn created_at(&self) -> DateTime<Utc> {
        self.0.created_at
    }
    /// What is in its way: a port that is taken, a share with nothing healthy, nothing healthy at all, too many
    /// connections; and that its account cannot be read, so that all this may be old.
    async fn problem(&self, ctx: &Context<'_>) -> Result<Option<String>> {
        with_problem_of(ctx, &self.0.spec.place.account, self.0.problem())
    }
    /// What passed through it, per server group and second, at most the last 600 seconds.
    async fn traffic(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "From this second on; the last minute when absent.")] since: Option<DateTime<Utc>>,
    ) -> Result<Option<Vec<TrafficSecond>>> {
        let api = session(ctx)?.api;
        let since = since.map_or_else(|| api.clock.now().timestamp() - 60, |since| since.timestamp());
        let place = &self.0.spec.place;
        let provider = api.inventory.provider(&place.account).map_err(|error| by_provider(&error))?;
        let seconds = provider.traffic(place, &self.0.spec.name, since).await.map_err(|error| by_provider(&error))?;
        Ok(Some(seconds.into_iter().map(TrafficSecond::from).collect()))
    }
}

/// Where a load balancer listens.
#[derive(SimpleObject)]
pub struct Listener {
    /// The network address.
    address: String,
    /// The port, or the first of a range.
    port: u16,
    /// The last port of the range; the first free one of it is taken and kept.
    port_to: Option<u16>,
}

/// A share of a load balancer's traffic.
#[derive(SimpleObject)]
pub struct Share {
    /// The server group's name.
    server_group: String,
    /// Hundredths of a per cent, 0 to 10,000.
    basis_points: u32,
}

/// What passed through a load balancer to one server group in one second.
#[derive(SimpleObject)]
pub struct TrafficSecond {
    /// The second.
    at: DateTime<Utc>,
    /// The server group's name.
    server_group: String,
    /// Requests.
    requests: u64,
    /// Answers from 100 to 199.
    informational: u64,
    /// Answers from 200 to 299.
    successful: u64,
    /// Answers from 300 to 399.
    redirected: u64,
    /// Answers from 400 to 499.
    client_errors: u64,
    /// Answers from 500 to 599.
    server_errors: u64,
    /// Requests that no instance answered.
    failed: u64,
    /// Requests tried again on another instance.
    retried: u64,
    /// How long answers took, in ascending buckets; empty ones are left out.
    latency: Vec<LatencyBucket>,
}

/// How many answers took about as long.
#[derive(SimpleObject)]
pub struct LatencyBucket {
    /// The longest of them, in microseconds.
    up_to_micros: u64,
    /// How many.
    count: u64,
}

impl From<model::TrafficSecond> for TrafficSecond {
    fn from(second: model::TrafficSecond) -> Self {
        let [informational, successful, redirected, client_errors, server_errors] = second.by_class;
        let bucket = |(up_to_micros, count)| LatencyBucket { up_to_micros, count };
        Self {
            at: DateTime::from_timestamp(second.second, 0).unwrap_or_default(),
            server_group: second.server_group,
            requests: second.requests,
            informational,
            successful,
            redirected,
            client_errors,
            server_errors,
            failed: second.failed,
            retried: second.retried,
            latency: second.latency.into_iter().map(bucket).collect(),
        }
    }
}

/// Queries for load balancers.
#[derive(Default)]
pub struct LoadBalancerQuery;

#[Object]
impl LoadBalancerQuery {
    /// The load balancer of that name at that place.
    async fn load_balancer(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The account's name.", default = "local")] account: String,
        #[graphql(desc = "The location within the account.", default = "local")] location: String,
        #[graphql(desc = "`application[-stack[-detail]]`.")] name: String,
    ) -> Result<Option<LoadBalancer>> {
        LoadBalancer::asked(ctx, &Place { account, location }, &name)
    }
    #[graphql(flatten)]
    async fn lists(&self) -> LoadBalancerQueryLists<'_> {
        LoadBalancerQueryLists(self)
    }
}

lists!(
    LoadBalancerQueryLists of LoadBalancerQuery;
    /// All load balancers, by account, location and name.
    fn load_balancers(this, session, page) -> LoadBalancer {
        page.slice(LoadBalancer::all(&session, |_| true))
    }
);
