//! What runs at clouds, from the cached view: accounts, clusters, server groups, instances, load
//! balancers and security groups. Belongs to the application that its name begins with.

use std::collections::BTreeSet;

use async_graphql::{Context, Enum, ID, Object, Result, SimpleObject};
use chrono::{DateTime, Utc};

use super::application::Application;
use super::connection::{Connection, PageArgs};
use super::ids::Key;
use super::scalars::{Duration, Json, Url};
use super::session::{Session, not_found, session};
use super::stage::masked;
use crate::api::error::{Code, coded, nearest, shown};
use crate::model::{self, HealthSource, Place, Probe, names};
use crate::providers::{self, LogPlace};

/// The sort key and cursor of what has a place and a name.
fn key(place: &Place, name: &str) -> String {
    format!("{}/{}/{name}", place.account, place.location)
}

/// Whether the actor may see what has that name: by its application.
fn visible(session: &Session<'_>, name: &str) -> bool {
    match names::parse(name) {
        Some(name) => session.sees_application(&name.application),
        None => session.sees(&model::Resource::Server),
    }
}

async fn application_of(ctx: &Context<'_>, name: &str) -> Result<Option<Application>> {
    match names::parse(name) {
        Some(name) => Ok(session(ctx)?.application_named(&name.application).await?.map(Application)),
        None => Ok(None),
    }
}

/// A provider's error as an error of a field.
fn by_provider(error: &providers::Error) -> async_graphql::Error {
    use providers::ErrorKind;
    let code = match error.kind {
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::Unavailable | ErrorKind::Exhausted => Code::Unavailable,
        ErrorKind::Conflict | ErrorKind::Invalid | ErrorKind::Fenced => Code::BadRequest,
    };
    coded(code, error.message.clone())
}

/// An account at a cloud.
pub struct Account(pub model::Account);

/// An account at a cloud.
#[Object]
impl Account {
    /// Opaque and global.
    pub async fn id(&self) -> ID {
        Key::Account(self.0.name.clone()).id()
    }
    /// Unique.
    async fn name(&self) -> &str {
        &self.0.name
    }
    /// The provider's kind: one of `providerKinds`.
    async fn provider(&self) -> &str {
        &self.0.provider
    }
    /// Regions, zones, namespaces or hosts.
    async fn locations(&self) -> &[String] {
        &self.0.locations
    }
}

/// All generations of what runs under one name at one place.
pub struct Cluster {
    pub place: Place,
    pub name: String,
}

impl Cluster {
    /// Those the actor may see and whose name passes, with their cursors.
    pub fn all(session: &Session<'_>, pass: impl Fn(&str) -> bool) -> Vec<(String, Self)> {
        let groups = session.api.inventory.server_groups();
        let clusters: BTreeSet<(Place, String)> = groups
            .into_iter()
            .filter(|group| pass(&group.spec.name) && visible(session, &group.spec.name))
            .filter_map(|group| Some((group.spec.place, names::cluster_of(&group.spec.name)?)))
            .collect();
        clusters.into_iter().map(|(place, name)| (key(&place, &name), Self { place, name })).collect()
    }

    pub fn find(session: &Session<'_>, place: &Place, name: &str) -> Option<Self> {
        let all = Self::all(session, |group| names::cluster_of(group).as_deref() == Some(name));
        all.into_iter().map(|(_, cluster)| cluster).find(|cluster| cluster.place == *place)
    }
}

/// All generations of what runs under one name at one place.
#[Object]
impl Cluster {
    /// Opaque and global.
    pub async fn id(&self) -> ID {
        Key::Cluster(self.place.clone(), self.name.clone()).id()
    }
    /// `application[-stack[-detail]]`.
    async fn name(&self) -> &str {
        &self.name
    }
    /// The account's name.
    async fn account(&self) -> &str {
        &self.place.account
    }
    /// The location within the account.
    async fn location(&self) -> &str {
        &self.place.location
    }
    /// The stack in its name.
    async fn stack(&self) -> Option<String> {
        names::parse(&self.name)?.stack
    }
    /// The detail in its name.
    async fn detail(&self) -> Option<String> {
        names::parse(&self.name)?.detail
    }
    /// The application; null where Gennaker knows none of that name.
    async fn application(&self, ctx: &Context<'_>) -> Result<Option<Application>> {
        application_of(ctx, &self.name).await
    }
    /// Its server groups, by name.
    async fn server_groups(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "How many items from the start of the range: 1 to 100, 25 when absent.")] first: Option<i32>,
        #[graphql(desc = "Only items after this cursor.")] after: Option<String>,
        #[graphql(desc = "How many items from the end of the range instead: 1 to 100.")] last: Option<i32>,
        #[graphql(desc = "Only items before this cursor.")] before: Option<String>,
    ) -> Result<Connection<ServerGroup>> {
        let session = session(ctx)?;
        let mut all = ServerGroup::all(&session, |name| names::cluster_of(name).as_deref() == Some(&self.name));
        all.retain(|(_, group)| group.0.spec.place == self.place);
        PageArgs { first, after, last, before }.slice(all)
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

/// What a check says.
#[derive(Enum, Debug, Clone, Copy, PartialEq, Eq)]
#[graphql(remote = "model::HealthState")]
pub enum HealthState {
    /// Nothing is known yet.
    Unknown,
    /// It is starting.
    Starting,
    /// It is healthy.
    Up,
    /// It is not healthy.
    Down,
    /// Registered, but taken out of traffic.
    OutOfService,
    /// Finishing what it has.
    Draining,
    /// It has ended and will not be started again.
    Failed,
}

/// A server group: equal instances of one version.
#[derive(Clone)]
pub struct ServerGroup(pub model::ServerGroup);

impl ServerGroup {
    /// Those the actor may see and whose name passes, with their cursors.
    pub fn all(session: &Session<'_>, pass: impl Fn(&str) -> bool) -> Vec<(String, Self)> {
        let groups = session.api.inventory.server_groups().into_iter();
        groups
            .filter(|group| pass(&group.spec.name) && visible(session, &group.spec.name))
            .map(|group| (key(&group.spec.place, &group.spec.name), Self(group)))
            .collect()
    }

    pub fn find(session: &Session<'_>, place: &Place, name: &str) -> Option<Self> {
        session.api.inventory.server_group(place, name).filter(|_| visible(session, name)).map(Self)
    }

    fn place(&self) -> &Place {
        &self.0.spec.place
    }
}

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
    /// The account's name.
    async fn account(&self) -> &str {
        &self.place().account
    }
    /// The location within the account.
    async fn location(&self) -> &str {
        &self.place().location
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
        let session = session(ctx)?;
        let find = |name: &String| LoadBalancer::find(&session, self.place(), name);
        Ok(self.0.spec.load_balancers.iter().filter_map(find).collect())
    }
    /// The security groups it belongs to.
    async fn security_groups(&self, ctx: &Context<'_>) -> Result<Vec<SecurityGroup>> {
        let session = session(ctx)?;
        let find = |name: &String| SecurityGroup::find(&session, self.place(), name);
        Ok(self.0.spec.security_groups.iter().filter_map(find).collect())
    }
    /// When it was made.
    async fn created_at(&self) -> DateTime<Utc> {
        self.0.created_at
    }
    /// What the provider says is in the way: an artifact that cannot be fetched, a full port range.
    async fn problem(&self) -> Option<&str> {
        self.0.problem.as_deref()
    }
    /// How the limits asked for are enforced, or why they are not.
    async fn limits_enforced_by(&self) -> Option<&str> {
        self.0.limits_enforced_by.as_deref()
    }
}

/// How a check asks.
#[derive(Enum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum HealthCheckProtocol {
    /// GET of a path; healthy on one of the statuses.
    Http,
    /// A connection is accepted.
    Tcp,
    /// A command with the instance's environment exits with 0.
    Command,
}

/// A check of instances.
#[derive(SimpleObject)]
pub struct HealthCheck {
    /// How it asks.
    protocol: HealthCheckProtocol,
    /// The path that is asked for.
    path: Option<String>,
    /// The answers that are healthy.
    statuses: Vec<u16>,
    /// The port; the instance's own when absent.
    port: Option<u16>,
    /// Text that the body must contain.
    body_contains: Option<String>,
    /// The command that is run.
    command: Vec<String>,
    /// From one probe to the next.
    interval: Duration,
    /// How long an answer may take.
    timeout: Duration,
    /// Passes in a row that make an instance healthy.
    healthy_threshold: u32,
    /// Failures in a row that make it unhealthy.
    unhealthy_threshold: u32,
    /// Failures within this time from the start do not count.
    start_grace: Duration,
}

impl From<&model::HealthCheck> for HealthCheck {
    fn from(check: &model::HealthCheck) -> Self {
        let (protocol, http, command) = match &check.probe {
            Probe::Http(http) => (HealthCheckProtocol::Http, Some(http.clone()), Vec::new()),
            Probe::Tcp {} => (HealthCheckProtocol::Tcp, None, Vec::new()),
            Probe::Command { command } => (HealthCheckProtocol::Command, None, command.clone()),
        };
        let (path, statuses, port, body_contains) = match http {
            Some(http) => (Some(http.path), http.statuses, http.port, http.body_contains),
            None => (None, Vec::new(), None, None),
        };
        Self {
            protocol,
            path,
            statuses,
            port,
            body_contains,
            command,
            interval: check.interval_ms.into(),
            timeout: check.timeout_ms.into(),
            healthy_threshold: check.healthy_threshold,
            unhealthy_threshold: check.unhealthy_threshold,
            start_grace: check.start_grace_ms.into(),
        }
    }
}

/// One running copy.
pub struct Instance {
    place: Place,
    row: model::Instance,
}

impl Instance {
    pub fn find(session: &Session<'_>, place: &Place, id: &str) -> Option<Self> {
        let groups = session.api.inventory.server_groups().into_iter();
        let mut instances = groups
            .filter(|group| group.spec.place == *place && visible(session, &group.spec.name))
            .flat_map(|group| group.instances);
        instances.find(|instance| instance.id == id).map(|row| Self { place: place.clone(), row })
    }
}

/// One running copy.
#[Object]
impl Instance {
    /// Opaque and global.
    pub async fn id(&self) -> ID {
        Key::Instance(self.place.clone(), self.row.id.clone()).id()
    }
    /// Unique within its account and location.
    async fn name(&self) -> &str {
        &self.row.id
    }
    /// The account's name.
    async fn account(&self) -> &str {
        &self.place.account
    }
    /// The location within the account.
    async fn location(&self) -> &str {
        &self.place.location
    }
    /// The server group it belongs to.
    async fn server_group(&self, ctx: &Context<'_>) -> Result<Option<ServerGroup>> {
        Ok(ServerGroup::find(&session(ctx)?, &self.place, &self.row.server_group))
    }
    /// Where it runs.
    async fn host(&self) -> &str {
        &self.row.host
    }
    /// Its network address.
    async fn address(&self) -> Option<String> {
        self.row.address.map(|address| address.to_string())
    }
    /// Its port.
    async fn port(&self) -> Option<u16> {
        self.row.port
    }
    /// The sum of all sources.
    async fn state(&self) -> HealthState {
        self.row.state.into()
    }
    /// What each source says.
    async fn health(&self) -> Vec<InstanceHealth> {
        self.row.health.iter().map(InstanceHealth::from).collect()
    }
    /// Rises with each start of a process for this instance.
    async fn incarnation(&self) -> u64 {
        self.row.incarnation
    }
    /// How often it was started again.
    async fn restarts(&self) -> u32 {
        self.row.restarts
    }
    /// The number of its process.
    async fn pid(&self) -> Option<u32> {
        self.row.pid
    }
    /// When its process was started.
    async fn launched_at(&self) -> Option<DateTime<Utc>> {
        self.row.launched_at
    }
    /// How the last process ended: `exit status 3`, `signal 9`.
    async fn last_exit(&self) -> Option<&str> {
        self.row.last_exit.as_deref()
    }
    /// The end of what it wrote.
    async fn log_tail(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "How much at the most; up to 65536.", default = 4096)] bytes: i32,
    ) -> Result<Option<String>> {
        let bytes = usize::try_from(bytes).ok().filter(|bytes| (1..=65_536).contains(bytes));
        let bytes = bytes.ok_or_else(|| coded(Code::BadRequest, "`bytes` is 1 to 65536"))?;
        let provider = session(ctx)?.api.inventory.provider(&self.place.account).map_err(|e| by_provider(&e))?;
        Ok(Some(provider.log_tail(&self.place, &self.row.id, bytes).await.map_err(|error| by_provider(&error))?))
    }
    /// What it wrote, part by part: nothing is lost and nothing comes twice. A line is given once
    /// it is complete.
    async fn log(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The cursor of the part before; the end of the log when absent.")] after: Option<String>,
        #[graphql(desc = "How much at the most; 1 to 65536.", default = 65_536)] bytes: i32,
    ) -> Result<Option<LogPart>> {
        let bytes = usize::try_from(bytes).ok().filter(|bytes| (1..=65_536).contains(bytes));
        let bytes = bytes.ok_or_else(|| coded(Code::BadRequest, "`bytes` is 1 to 65536"))?;
        let from = match after {
            Some(cursor) => Some(log_place(&cursor).ok_or_else(|| {
                coded(
                    Code::BadRequest,
                    format!("`{}` is no cursor of a log; take `cursor` of the part before", shown(&cursor)),
                )
            })?),
            None => None,
        };
        let provider = session(ctx)?.api.inventory.provider(&self.place.account).map_err(|e| by_provider(&e))?;
        let part = provider.log_part(&self.place, &self.row.id, from, bytes).await;
        Ok(Some(part.map_err(|error| by_provider(&error))?.into()))
    }
}

/// A part of what an instance wrote.
#[derive(SimpleObject)]
pub struct LogPart {
    /// Whole lines; a line longer than what was asked for comes in pieces.
    text: String,
    /// Give it as `after` to go on behind this part.
    cursor: String,
    /// What came between the cursor given and this part was removed.
    is_after_gap: bool,
    /// More is there already: ask at once.
    has_more: bool,
}

impl From<providers::LogPart> for LogPart {
    fn from(part: providers::LogPart) -> Self {
        let cursor = format!("{}.{}", part.end.generation, part.end.offset);
        Self { text: part.text, cursor, is_after_gap: part.after_gap, has_more: part.more }
    }
}

fn log_place(cursor: &str) -> Option<LogPlace> {
    let (generation, offset) = cursor.split_once('.')?;
    Some(LogPlace { generation: generation.parse().ok()?, offset: offset.parse().ok()? })
}

/// Which check says something of an instance's health.
#[derive(Enum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstanceHealthSource {
    /// The process lives and owns its port.
    Platform,
    /// The instance's own check.
    Instance,
    /// The check of a load balancer.
    LoadBalancer,
}

/// One source's word about one instance.
#[derive(SimpleObject)]
pub struct InstanceHealth {
    /// Whose word.
    source: InstanceHealthSource,
    /// The load balancer's name, if it is its word.
    load_balancer: Option<String>,
    /// What it says.
    state: HealthState,
    /// Why: `GET /health answered 503`.
    message: String,
}

impl From<&model::InstanceHealth> for InstanceHealth {
    fn from(health: &model::InstanceHealth) -> Self {
        let (source, load_balancer) = match &health.source {
            HealthSource::Platform => (InstanceHealthSource::Platform, None),
            HealthSource::Instance => (InstanceHealthSource::Instance, None),
            HealthSource::LoadBalancer { name } => (InstanceHealthSource::LoadBalancer, Some(name.clone())),
        };
        Self { source, load_balancer, state: health.state.into(), message: health.message.clone() }
    }
}

/// Spreads requests over server groups.
#[derive(Clone)]
pub struct LoadBalancer(pub model::LoadBalancer);

impl LoadBalancer {
    /// Those the actor may see and whose name passes, with their cursors.
    pub fn all(session: &Session<'_>, pass: impl Fn(&str) -> bool) -> Vec<(String, Self)> {
        let all = session.api.inventory.load_balancers().into_iter();
        all.filter(|one| pass(&one.spec.name) && visible(session, &one.spec.name))
            .map(|one| (key(&one.spec.place, &one.spec.name), Self(one)))
            .collect()
    }

    pub fn find(session: &Session<'_>, place: &Place, name: &str) -> Option<Self> {
        session.api.inventory.load_balancer(place, name).filter(|_| visible(session, name)).map(Self)
    }
}

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
    /// The account's name.
    async fn account(&self) -> &str {
        &self.0.spec.place.account
    }
    /// The location within the account.
    async fn location(&self) -> &str {
        &self.0.spec.place.location
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
        let session = session(ctx)?;
        let find = |name: &String| SecurityGroup::find(&session, &self.0.spec.place, name);
        Ok(self.0.spec.security_groups.iter().filter_map(find).collect())
    }
    /// The server groups registered with it, enabled or not.
    async fn server_groups(&self, ctx: &Context<'_>) -> Result<Vec<ServerGroup>> {
        let session = session(ctx)?;
        let find = |name: &String| ServerGroup::find(&session, &self.0.spec.place, name);
        Ok(self.0.server_groups.iter().filter_map(find).collect())
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
    /// What is in its way: a port that is taken.
    async fn problem(&self) -> Option<&str> {
        self.0.problem.as_deref()
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

/// What lets connections in.
#[derive(Clone)]
pub struct SecurityGroup(pub model::SecurityGroup);

impl SecurityGroup {
    /// Those the actor may see and whose name passes, with their cursors.
    pub fn all(session: &Session<'_>, pass: impl Fn(&str) -> bool) -> Vec<(String, Self)> {
        let all = session.api.inventory.security_groups().into_iter();
        all.filter(|one| pass(&one.spec.name) && visible(session, &one.spec.name))
            .map(|one| (key(&one.spec.place, &one.spec.name), Self(one)))
            .collect()
    }

    pub fn find(session: &Session<'_>, place: &Place, name: &str) -> Option<Self> {
        session.api.inventory.security_group(place, name).filter(|_| visible(session, name)).map(Self)
    }
}

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
    /// The account's name.
    async fn account(&self) -> &str {
        &self.0.spec.place.account
    }
    /// The location within the account.
    async fn location(&self) -> &str {
        &self.0.spec.place.location
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
        let session = session(ctx)?;
        let find = |name: &String| LoadBalancer::find(&session, &self.0.spec.place, name);
        Ok(self.0.load_balancers.iter().filter_map(find).collect())
    }
    /// The server groups that use it.
    async fn server_groups(&self, ctx: &Context<'_>) -> Result<Vec<ServerGroup>> {
        let session = session(ctx)?;
        let find = |name: &String| ServerGroup::find(&session, &self.0.spec.place, name);
        Ok(self.0.server_groups.iter().filter_map(find).collect())
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

/// Queries for what runs at clouds.
#[derive(Default)]
pub struct InfrastructureQuery;

#[Object]
impl InfrastructureQuery {
    /// The accounts of clouds, at most 1,000.
    async fn accounts(&self, ctx: &Context<'_>) -> Result<Vec<Account>> {
        let session = session(ctx)?;
        session.may(model::Action::Read, &model::Resource::Server)?;
        Ok(session.api.inventory.accounts().into_iter().take(1_000).map(Account).collect())
    }
    /// The cluster of that name at that place.
    async fn cluster(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The account's name.", default = "local")] account: String,
        #[graphql(desc = "The location within the account.", default = "local")] location: String,
        #[graphql(desc = "`application[-stack[-detail]]`.")] name: String,
    ) -> Result<Option<Cluster>> {
        let (session, place) = (session(ctx)?, Place { account, location });
        let names = || Cluster::all(&session, |_| true).into_iter().map(|(_, one)| (one.place, one.name)).collect();
        found(Cluster::find(&session, &place, &name), "cluster", &place, &name, names)
    }
    /// All clusters, by account, location and name.
    async fn clusters(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "How many items from the start of the range: 1 to 100, 25 when absent.")] first: Option<i32>,
        #[graphql(desc = "Only items after this cursor.")] after: Option<String>,
        #[graphql(desc = "How many items from the end of the range instead: 1 to 100.")] last: Option<i32>,
        #[graphql(desc = "Only items before this cursor.")] before: Option<String>,
    ) -> Result<Connection<Cluster>> {
        PageArgs { first, after, last, before }.slice(Cluster::all(&session(ctx)?, |_| true))
    }
    /// The server group of that name at that place.
    async fn server_group(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The account's name.", default = "local")] account: String,
        #[graphql(desc = "The location within the account.", default = "local")] location: String,
        #[graphql(desc = "`application[-stack[-detail]]-vNNN`.")] name: String,
    ) -> Result<Option<ServerGroup>> {
        let (session, place) = (session(ctx)?, Place { account, location });
        let name_of = |one: ServerGroup| (one.0.spec.place, one.0.spec.name);
        let names = || ServerGroup::all(&session, |_| true).into_iter().map(|(_, one)| name_of(one)).collect();
        found(ServerGroup::find(&session, &place, &name), "server group", &place, &name, names)
    }
    /// All server groups, by account, location and name.
    async fn server_groups(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "How many items from the start of the range: 1 to 100, 25 when absent.")] first: Option<i32>,
        #[graphql(desc = "Only items after this cursor.")] after: Option<String>,
        #[graphql(desc = "How many items from the end of the range instead: 1 to 100.")] last: Option<i32>,
        #[graphql(desc = "Only items before this cursor.")] before: Option<String>,
    ) -> Result<Connection<ServerGroup>> {
        PageArgs { first, after, last, before }.slice(ServerGroup::all(&session(ctx)?, |_| true))
    }
    /// The instance of that name at that place.
    async fn instance(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The account's name.", default = "local")] account: String,
        #[graphql(desc = "The location within the account.", default = "local")] location: String,
        #[graphql(desc = "Unique within account and location.")] name: String,
    ) -> Result<Option<Instance>> {
        let (session, place) = (session(ctx)?, Place { account, location });
        found(Instance::find(&session, &place, &name), "instance", &place, &name, Vec::new)
    }
    /// The load balancer of that name at that place.
    async fn load_balancer(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The account's name.", default = "local")] account: String,
        #[graphql(desc = "The location within the account.", default = "local")] location: String,
        #[graphql(desc = "`application[-stack[-detail]]`.")] name: String,
    ) -> Result<Option<LoadBalancer>> {
        let (session, place) = (session(ctx)?, Place { account, location });
        let name_of = |one: LoadBalancer| (one.0.spec.place, one.0.spec.name);
        let names = || LoadBalancer::all(&session, |_| true).into_iter().map(|(_, one)| name_of(one)).collect();
        found(LoadBalancer::find(&session, &place, &name), "load balancer", &place, &name, names)
    }
    /// All load balancers, by account, location and name.
    async fn load_balancers(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "How many items from the start of the range: 1 to 100, 25 when absent.")] first: Option<i32>,
        #[graphql(desc = "Only items after this cursor.")] after: Option<String>,
        #[graphql(desc = "How many items from the end of the range instead: 1 to 100.")] last: Option<i32>,
        #[graphql(desc = "Only items before this cursor.")] before: Option<String>,
    ) -> Result<Connection<LoadBalancer>> {
        PageArgs { first, after, last, before }.slice(LoadBalancer::all(&session(ctx)?, |_| true))
    }
    /// The security group of that name at that place.
    async fn security_group(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The account's name.", default = "local")] account: String,
        #[graphql(desc = "The location within the account.", default = "local")] location: String,
        #[graphql(desc = "`application[-stack[-detail]]`.")] name: String,
    ) -> Result<Option<SecurityGroup>> {
        let (session, place) = (session(ctx)?, Place { account, location });
        let name_of = |one: SecurityGroup| (one.0.spec.place, one.0.spec.name);
        let names = || SecurityGroup::all(&session, |_| true).into_iter().map(|(_, one)| name_of(one)).collect();
        found(SecurityGroup::find(&session, &place, &name), "security group", &place, &name, names)
    }
    /// All security groups, by account, location and name.
    async fn security_groups(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "How many items from the start of the range: 1 to 100, 25 when absent.")] first: Option<i32>,
        #[graphql(desc = "Only items after this cursor.")] after: Option<String>,
        #[graphql(desc = "How many items from the end of the range instead: 1 to 100.")] last: Option<i32>,
        #[graphql(desc = "Only items before this cursor.")] before: Option<String>,
    ) -> Result<Connection<SecurityGroup>> {
        PageArgs { first, after, last, before }.slice(SecurityGroup::all(&session(ctx)?, |_| true))
    }
}

/// What was found, or an error with the nearest names at the place.
fn found<T>(
    found: Option<T>,
    what: &str,
    place: &Place,
    name: &str,
    names: impl FnOnce() -> Vec<(Place, String)>,
) -> Result<Option<T>> {
    if found.is_some() {
        return Ok(found);
    }
    let names = names();
    let near = nearest(name, names.iter().filter(|(at, _)| at == place).map(|(_, name)| name.as_str()));
    let (account, location) = (shown(&place.account), shown(&place.location));
    Err(not_found(format!("there is no {what} `{}` in {account}/{location}{near}", shown(name))))
}
