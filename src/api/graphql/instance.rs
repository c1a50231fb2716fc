//! Instances: the running copies of a server group, and what is known of their health.

use async_graphql::{Context, Enum, ID, Object, Result, SimpleObject};
use chrono::{DateTime, Utc};

use super::health::HealthState;
use super::ids::Key;
use super::place::{At, Placed, by_provider};
use super::server_group::ServerGroup;
use super::session::session;
use crate::api::error::{Code, coded, shown};
use crate::inventory::Inventory;
use crate::model::{self, HealthSource, Place};
use crate::providers::{self, LogPlace};

/// One running copy.
pub struct Instance {
    pub place: Place,
    pub row: model::Instance,
}

impl Placed for Instance {
    const WHAT: &'static str = "instance";

    fn place(&self) -> &Place {
        &self.place
    }
    fn name(&self) -> &str {
        &self.row.id
    }
    fn owner(&self) -> &str {
        &self.row.server_group
    }
    fn known(inventory: &Inventory) -> Vec<Self> {
        let of = |group: model::ServerGroup| {
            let place = group.spec.place;
            group.instances.into_iter().map(move |row| Self { place: place.clone(), row })
        };
        inventory.server_groups().into_iter().flat_map(of).collect()
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
    #[graphql(flatten)]
    async fn at(&self) -> At {
        At::from(self.place())
    }
    /// The server group it belongs to.
    async fn server_group(&self, ctx: &Context<'_>) -> Result<Option<ServerGroup>> {
        Ok(ServerGroup::find(&session(ctx)?, &self.place, &self.row.server_group))
    }
    /// The name of the machine where it runs.
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
    /// it is complete or its writer has ended.
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

/// Queries for instances.
#[derive(Default)]
pub struct InstanceQuery;

#[Object]
impl InstanceQuery {
    /// The instance of that name at that place.
    async fn instance(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The account's name.", default = "local")] account: String,
        #[graphql(desc = "The location within the account.", default = "local")] location: String,
        #[graphql(desc = "Unique within account and location.")] name: String,
    ) -> Result<Option<Instance>> {
        Instance::asked(ctx, &Place { account, location }, &name)
    }
}
