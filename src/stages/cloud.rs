//! What the stages that change clouds share: the one way to call a provider, whose a name is, which
//! server group is meant, and the line before a cluster.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::known;
use crate::engine::contract::{Cause, Effect, Next, Repeat, StepContext, StepError, Ticket, cluster_topic};
use crate::inventory::Inventory;
use crate::model::{HealthState, Instance, Place, ServerGroup, names};
use crate::providers::{self, ErrorKind, Operation, Provider, Snapshot};
use crate::store::{ClusterClaim, ClusterKey};

/// How long a provider may take to answer a change, fetching what it needs for it included.
const CALL_TIMEOUT: Duration = Duration::from_secs(300);
/// From one look at the inventory to the next where no notice comes.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The same for those who wait in line for a cluster.
const CLAIM_EVERY: Duration = Duration::from_secs(5);

/// Changes something at a provider, behind an intent. The provider knows the operation's key, so
/// the call is repeated after an unknown outcome.
pub(super) async fn change<T, F, Fut>(cx: &StepContext, key: &str, what: String, call: F) -> Result<T, StepError>
where
    T: Send,
    F: FnOnce(Operation) -> Fut + Send,
    Fut: Future<Output = Result<T, providers::Error>> + Send,
{
    let made = cx.effect(effect(key, &what), |ticket| call(operation(ticket))).await;
    made.map_err(|error| error.into_step(|error| refused(&what, &error)))
}

/// The same for a server group: only while the stage holds the group's cluster.
pub(super) async fn change_group<T, F, Fut>(
    cx: &StepContext,
    (place, name): (&Place, &str),
    key: &str,
    what: String,
    call: F,
) -> Result<T, StepError>
where
    T: Send,
    F: FnOnce(Operation) -> Fut + Send,
    Fut: Future<Output = Result<T, providers::Error>> + Send,
{
    let cluster = own(cx, "server group", name)?.cluster;
    let cluster = ClusterKey { place: place.clone(), cluster };
    let made = cx.effect_on_cluster(&cluster, effect(key, &what), |ticket| call(operation(ticket))).await;
    made.map_err(|error| error.into_step(|error| refused(&what, &error)))
}

fn effect<'a>(key: &'a str, what: &str) -> Effect<'a> {
    Effect { key, what: what.to_owned(), repeat: Repeat::Keyed, timeout: CALL_TIMEOUT }
}

fn operation(ticket: Ticket) -> Operation {
    Operation { key: ticket.operation, fence: ticket.fence, deadline: ticket.deadline }
}

/// What a provider's refusal does to a step.
pub(super) fn refused(what: &str, error: &providers::Error) -> StepError {
    let code = match error.kind {
        ErrorKind::NotFound => "NOT_FOUND",
        ErrorKind::Conflict => "CONFLICT",
        ErrorKind::Invalid => "INVALID",
        ErrorKind::Fenced => "FENCED",
        ErrorKind::Exhausted => "EXHAUSTED",
        ErrorKind::Unavailable => "PROVIDER_UNAVAILABLE",
    };
    let cause = Cause::new(code, format!("cannot {what}: {}", error.message));
    match error.kind {
        ErrorKind::Unavailable => StepError::Retry(cause.hint("look whether the provider runs and can be reached")),
        // Another worker has taken over; this one's step ends, and its commit will be refused.
        ErrorKind::Fenced => StepError::Retry(cause),
        _ => StepError::Fail(cause),
    }
}

/// Everything in the account, read now. For decisions that a stale view would make dangerous.
pub(super) async fn fresh(inventory: &Inventory, account: &str) -> Result<Arc<Snapshot>, StepError> {
    inventory.refresh(account).await.map_err(|error| refused(&format!("read account `{account}`"), &error))
}

pub(super) fn provider(inventory: &Inventory, account: &str) -> Result<Arc<dyn Provider>, StepError> {
    inventory.provider(account).map_err(|error| refused(&format!("use account `{account}`"), &error))
}

/// Account and location exist; said at save time and again at the start.
pub(super) fn check_place(inventory: &Inventory, place: &Place) -> Result<(), (&'static str, String)> {
    check_place_parts(inventory, Some(&place.account), Some(&place.location))
}

/// The same where one of them, or both, may not be known yet.
pub(super) fn check_place_parts(
    inventory: &Inventory,
    account: Option<&str>,
    location: Option<&str>,
) -> Result<(), (&'static str, String)> {
    let accounts = inventory.accounts();
    if accounts.is_empty() {
        // Not known yet; the stage's first step says so.
        return Ok(());
    }
    let quoted = |names: &mut dyn Iterator<Item = &String>| names.map(|name| format!("`{name}`")).collect::<Vec<_>>();
    let Some(name) = account else {
        // Whichever account it will be, it has to have the location.
        let mut known = accounts.iter().flat_map(|account| &account.locations);
        return match location {
            Some(location) if !known.any(|known| known == location) => {
                let names = quoted(&mut accounts.iter().flat_map(|account| &account.locations)).join(", ");
                Err(("location", format!("no account has a location `{location}`; there is {names}")))
            }
            _ => Ok(()),
        };
    };
    let Some(account) = accounts.iter().find(|account| account.name == name) else {
        let names = quoted(&mut accounts.iter().map(|account| &account.name)).join(", ");
        return Err(("account", format!("there is no account `{name}`; there is {names}")));
    };
    match location {
        Some(location) if !account.locations.iter().any(|known| known == location) => {
            let names = quoted(&mut account.locations.iter()).join(", ");
            Err(("location", format!("account `{name}` has no location `{location}`; it has {names}")))
        }
        _ => Ok(()),
    }
}

/// The name belongs to the execution's application.
pub(super) fn own(cx: &StepContext, what: &str, name: &str) -> Result<names::Name, StepError> {
    let application = &cx.execution().application_name;
    let parsed = names::parse(name).ok_or_else(|| {
        StepError::Fail(
            Cause::new("MALFORMED_NAME", format!("{what} name `{name}` is not of the form application-stack-detail"))
                .hint(format!("use `{application}`, `{application}-<stack>` or `{application}-<stack>-<detail>`")),
        )
    })?;
    if parsed.application == *application {
        return Ok(parsed);
    }
    Err(StepError::Fail(
        Cause::new(
            "OTHER_APPLICATION",
            format!("{what} `{name}` belongs to application `{}`, not to `{application}`", parsed.application),
        )
        .hint(format!("use a name that begins with `{application}`, or run this in the other application")),
    ))
}

/// The same for names of load balancers and security groups, which have no sequence.
pub(super) fn own_unnumbered(cx: &StepContext, what: &str, name: &str) -> Result<(), StepError> {
    own(cx, what, name)?;
    check_unnumbered(what, name).map_err(|(_, message)| StepError::fail("MALFORMED_NAME", message))
}

/// The name of a load balancer or security group is of the grammar and has no sequence; said at
/// save time too.
pub(super) fn check_unnumbered(what: &str, name: &str) -> Result<(), (String, String)> {
    let message = match names::parse(name) {
        None => format!("{what} name `{name}` is not of the form application-stack-detail"),
        Some(names::Name { push: Some(push), cluster, .. }) => {
            format!("{what} name `{name}` ends like a server group's (`{push}`); use `{cluster}`")
        }
        Some(_) => return Ok(()),
    };
    Err(("/name".to_owned(), message))
}

/// The server groups of a cluster, newest first.
pub(super) fn members<'a>(snapshot: &'a Snapshot, place: &Place, cluster: &str) -> Vec<&'a ServerGroup> {
    let of_cluster = |group: &&ServerGroup| {
        group.spec.place == *place && names::parse(&group.spec.name).is_some_and(|name| name.cluster == cluster)
    };
    let mut members: Vec<_> = snapshot.server_groups.iter().filter(of_cluster).collect();
    members.sort_by(|a, b| (b.created_at, &b.spec.name).cmp(&(a.created_at, &a.spec.name)));
    members
}

pub(super) fn find<'a>(snapshot: &'a Snapshot, place: &Place, name: &str) -> Option<&'a ServerGroup> {
    snapshot.server_groups.iter().find(|group| group.spec.place == *place && group.spec.name == name)
}

/// Up by all sources.
pub(super) fn is_up(instance: &Instance) -> bool {
    instance.state == HealthState::Up && instance.health.iter().all(|health| health.state == HealthState::Up)
}

pub(super) fn up(group: &ServerGroup) -> usize {
    group.instances.iter().filter(|instance| is_up(instance)).count()
}

/// `2 of 3 healthy`, as progress.
pub(super) fn progress(cx: &StepContext, healthy: usize, total: usize) {
    let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
    cx.progress(count(healthy.min(total)), count(total), "instances", format!("{healthy} of {total} healthy"));
}

/// Waits in line for the cluster: None once it is held.
pub(super) async fn claim<C>(
    cx: &StepContext,
    place: &Place,
    cluster: &str,
    waiting: C,
) -> Result<Option<Next<C>>, StepError> {
    let key = ClusterKey { place: place.clone(), cluster: cluster.to_owned() };
    match cx.claim_cluster(&key).await? {
        ClusterClaim::Held => Ok(None),
        ClusterClaim::Waiting { ahead } => {
            let holder = match ahead.first() {
                Some(first) => cx.title(*first).await?,
                None => None,
            };
            let holder = holder.unwrap_or_else(|| "an execution that is just ending".to_owned());
            let more = match ahead.len() {
                0 | 1 => String::new(),
                more => format!(", then {} more", more - 1),
            };
            let message = format!("waits for {holder}{more}: it changes cluster `{cluster}`");
            cx.progress(0, i64::try_from(ahead.len()).unwrap_or(i64::MAX), "executions ahead", message);
            Ok(Some(Next::Poll { cursor: waiting, after: CLAIM_EVERY, topic: Some(cluster_topic(&key)) }))
        }
        ClusterClaim::Full { limit } => Err(StepError::Fail(
            Cause::new("CLUSTER_QUEUE_FULL", format!("{limit} operations already wait for cluster `{cluster}`"))
                .hint("cancel some of them, or start again once they are through"),
        )),
    }
}

/// Which server group: by name, or by its place in the cluster.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Target {
    #[serde(default = "local")]
    pub account: String,
    #[serde(default = "local")]
    pub location: String,
    #[serde(default)]
    pub server_group: Option<String>,
    #[serde(default)]
    pub cluster: Option<String>,
    #[serde(default)]
    pub target: Option<Which>,
}

/// By creation time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Which {
    Newest,
    /// The one before the newest.
    Ancestor,
    Oldest,
}

pub(super) fn local() -> String {
    "local".to_owned()
}

/// What [`Target::ready`] found.
pub(super) enum Ready<C> {
    /// In line for the cluster.
    Waiting(Next<C>),
    /// The cluster is held, and this is the group.
    Found(Box<ServerGroup>),
    /// The cluster is held, and there is no group of that name.
    Absent(String),
}

impl Target {
    pub fn place(&self) -> Place {
        Place { account: self.account.clone(), location: self.location.clone() }
    }

    /// What the schema cannot say.
    pub fn check(&self, inventory: &Inventory) -> Result<(), (String, String)> {
        check_place(inventory, &self.place()).map_err(|(field, message)| (format!("/{field}"), message))?;
        Self::check_name("serverGroup", self.server_group.as_deref())?;
        Self::check_name("cluster", self.cluster.as_deref())
    }

    /// The same of a config in which expressions stand.
    pub fn check_known(config: &Value, inventory: &Inventory) -> Result<(), (String, String)> {
        known::check_place(inventory, config)?;
        for field in ["serverGroup", "cluster"] {
            Self::check_name(field, known::optional::<String>(config, field).flatten().as_deref())?;
        }
        Ok(())
    }

    fn check_name(field: &str, name: Option<&str>) -> Result<(), (String, String)> {
        match name {
            Some(name) if names::parse(name).is_none() => {
                Err((format!("/{field}"), format!("`{name}` is not a name of the form application-stack-detail-v000")))
            }
            _ => Ok(()),
        }
    }

    /// Waits for the cluster and finds the group in a fresh snapshot.
    pub async fn ready<C>(&self, cx: &StepContext, inventory: &Inventory, waiting: C) -> Result<Ready<C>, StepError> {
        let place = self.place();
        check_place(inventory, &place).map_err(|(_, message)| StepError::fail("NOT_FOUND", message))?;
        let cluster = match (&self.server_group, &self.cluster) {
            (Some(name), _) => own(cx, "server group", name)?.cluster,
            (None, Some(cluster)) => own(cx, "cluster", cluster).map(|_| cluster.clone())?,
            (None, None) => return Err(StepError::fail("INVALID", "neither a server group nor a cluster is given")),
        };
        if let Some(next) = claim(cx, &place, &cluster, waiting).await? {
            return Ok(Ready::Waiting(next));
        }
        let snapshot = fresh(inventory, &place.account).await?;
        if let Some(name) = &self.server_group {
            return Ok(match find(&snapshot, &place, name).cloned() {
                Some(group) => Ready::Found(Box::new(group)),
                None => Ready::Absent(name.clone()),
            });
        }
        let members = members(&snapshot, &place, &cluster);
        let which = self.target.unwrap_or(Which::Newest);
        let found = match which {
            Which::Newest => members.first(),
            Which::Ancestor => members.get(1),
            // With one only, oldest and newest would be the same: that is no answer to build upon.
            Which::Oldest => members.last().filter(|_| members.len() > 1),
        };
        if let Some(group) = found {
            let group = Box::new((*group).clone());
            return Ok(Ready::Found(group));
        }
        let word = match which {
            Which::Newest => "newest",
            Which::Ancestor => "ancestor",
            Which::Oldest => "oldest",
        };
        Err(StepError::Fail(
            Cause::new(
                "NOT_FOUND",
                format!(
                    "cluster `{cluster}` at {}/{} has {} server groups, so there is no {word} one",
                    place.account,
                    place.location,
                    members.len()
                ),
            )
            .hint("check the cluster's name and place, or name a server group"),
        ))
    }

    /// The failure of a stage whose group is not there.
    pub fn absent(&self, snapshot_of: &Inventory, name: &str) -> StepError {
        let cluster = names::cluster_of(name).unwrap_or_default();
        let there: Vec<_> = snapshot_of
            .snapshot(&self.account)
            .map(|snapshot| {
                let members = members(&snapshot, &self.place(), &cluster);
                members.iter().take(5).map(|group| format!("`{}`", group.spec.name)).collect()
            })
            .unwrap_or_default();
        let hint = if there.is_empty() {
            format!("cluster `{cluster}` has no server groups there; check account, location and name")
        } else {
            format!("cluster `{cluster}` has {}", there.join(", "))
        };
        StepError::Fail(
            Cause::new("NOT_FOUND", format!("there is no server group `{name}` at {}/{}", self.account, self.location))
                .hint(hint),
        )
    }
}

/// A group that was there and is not any more while a stage waits for it.
pub(super) fn gone(name: &str) -> StepError {
    StepError::Fail(
        Cause::new("SERVER_GROUP_GONE", format!("server group `{name}` has disappeared while it was being changed"))
            .hint("somebody or something else has destroyed it; start again"),
    )
}

/// The latest view of a group; read anew where the cache does not know it. Ok(None): it is gone.
/// An account that cannot be read right now is `Err` of its message: look again later.
pub(super) async fn watch(
    inventory: &Inventory,
    place: &Place,
    name: &str,
) -> Result<Option<ServerGroup>, providers::Error> {
    if let Some(group) = inventory.server_group(place, name) {
        return Ok(Some(group));
    }
    look(inventory, place, name).await
}

/// The same, always read anew.
pub(super) async fn look(
    inventory: &Inventory,
    place: &Place,
    name: &str,
) -> Result<Option<ServerGroup>, providers::Error> {
    Ok(find(&*inventory.refresh(&place.account).await?, place, name).cloned())
}

/// Names as a hint shows them: those that look most like the wanted one first, a few at the most.
pub(super) fn nearest<'a>(wanted: &str, there: impl IntoIterator<Item = &'a str>) -> String {
    let mut there: Vec<_> = there.into_iter().map(|name| (strsim::jaro_winkler(wanted, name), name)).collect();
    there.sort_by(|one, other| other.0.total_cmp(&one.0).then_with(|| one.1.cmp(other.1)));
    there.into_iter().take(5).map(|(_, name)| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// The first thing an instance's checks complain about.
pub(super) fn complaint(instance: &Instance) -> String {
    let health = instance.health.iter().find(|health| health.state != HealthState::Up && !health.message.is_empty());
    let mut parts: Vec<String> = health.map(|health| health.message.clone()).into_iter().collect();
    if instance.restarts > 0 {
        let exit = instance.last_exit.as_deref().unwrap_or("unknown exit");
        parts.push(format!("restarted {} times, last {exit}", instance.restarts));
    }
    if parts.is_empty() {
        parts.push(format!("{:?}", instance.state).to_lowercase());
    }
    format!("`{}`: {}", instance.id, parts.join("; "))
}

/// Nulls of absent options left out, as configs are written.
pub(super) fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key, without_nulls(value)))
            .collect(),
        Value::Array(items) => items.into_iter().map(without_nulls).collect(),
        other => other,
    }
}
