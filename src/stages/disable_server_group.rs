//! Takes a server group out of its load balancers and waits until what was open has ended. Refuses
//! to take out the last healthy group of a cluster unless that is allowed in so many words.

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::cloud::{self, Ready, Target};
use super::schema;
use crate::engine::contract::{Cause, INVENTORY_TOPIC, Next, Stage, StepContext, StepError};
use crate::inventory::Inventory;
use crate::model::{HealthState, ServerGroup, names};
use crate::providers::Snapshot;

pub(super) struct DisableServerGroup {
    pub inventory: Inventory,
}

/// Beyond the load balancers' own drain time, for the notice of it to get here.
const DRAIN_SLACK: TimeDelta = TimeDelta::seconds(5);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Config {
    #[serde(flatten)]
    target: Target,
    #[serde(default)]
    allow_last: bool,
    #[serde(default)]
    may_be_absent: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(tag = "at", rename_all = "camelCase")]
pub(super) enum Cursor {
    /// In line for the cluster, then finding the group.
    #[default]
    Find,
    /// The name is saved; the change may have been made.
    Disable { name: String },
    /// Open requests are ending.
    Drain { name: String, until: DateTime<Utc> },
}

/// The properties that say when it is fine to have nothing left.
pub(super) fn guard_properties() -> Value {
    json!({
        "allowLast": {
            "type": "boolean", "default": false,
            "description": "Do it even if no healthy enabled server group is left in the cluster."
        },
        "mayBeAbsent": {
            "type": "boolean", "default": false,
            "description": "Succeed where there is no such server group."
        }
    })
}

impl Stage for DisableServerGroup {
    const KIND: &'static str = "disableServerGroup";
    const TITLE: &'static str = "Disable server group";
    const DESCRIPTION: &'static str = "Takes a server group out of its load balancers and waits until its open requests \
                                       have ended. Refused for the last healthy group of a cluster.";
    type Config = Config;
    type Cursor = Cursor;

    fn schema(&self) -> Value {
        let properties = schema::merged([schema::target(), guard_properties()]);
        schema::one_target(schema::object(properties, &[]))
    }
    fn example(&self) -> Value {
        json!({"account": "local", "location": "local", "cluster": "hello-prod", "target": "ancestor"})
    }
    fn validate(&self, config: &Config) -> Result<(), (String, String)> {
        config.target.check(&self.inventory)
    }
    fn validate_known(&self, config: &Value) -> Result<(), (String, String)> {
        Target::check_known(config, &self.inventory)
    }
    fn tasks(&self, _: &Config) -> Vec<&'static str> {
        vec!["Find server group", "Disable", "Drain"]
    }
    fn task(&self, cursor: &Cursor) -> usize {
        match cursor {
            Cursor::Find => 0,
            Cursor::Disable { .. } => 1,
            Cursor::Drain { .. } => 2,
        }
    }

    async fn step(&self, cx: &StepContext, config: &Config, cursor: Cursor) -> Result<Next<Cursor>, StepError> {
        match cursor {
            Cursor::Find => match config.target.ready(cx, &self.inventory, Cursor::Find).await? {
                Ready::Waiting(next) => Ok(next),
                Ready::Absent(name) if config.may_be_absent => Ok(absent(&name)),
                Ready::Absent(name) => Err(config.target.absent(&self.inventory, &name)),
                Ready::Found(group) => Ok(Next::Goto(Cursor::Disable { name: group.spec.name })),
            },
            Cursor::Disable { name } => self.disable(cx, config, name).await,
            Cursor::Drain { name, until } => self.drain(cx, config, name, until).await,
        }
    }
}

impl DisableServerGroup {
    async fn disable(&self, cx: &StepContext, config: &Config, name: String) -> Result<Next<Cursor>, StepError> {
        let place = config.target.place();
        // The guard looks in the very step that makes the call; the cluster is held meanwhile.
        let snapshot = cloud::fresh(&self.inventory, &place.account).await?;
        let Some(group) = cloud::find(&snapshot, &place, &name) else {
            return if config.may_be_absent { Ok(absent(&name)) } else { Err(cloud::gone(&name)) };
        };
        if !config.allow_last {
            guard(group, &snapshot)?;
        }
        let until = cx.now() + drain_time(group, &snapshot);
        let provider = cloud::provider(&self.inventory, &place.account)?;
        let (at, group) = (&place, &name);
        cloud::change_group(
            cx,
            (at, group),
            "disable",
            format!("disable server group `{name}`"),
            |operation| async move { provider.ensure_enabled(&operation, at, group, false).await },
        )
        .await?;
        Ok(Next::Goto(Cursor::Drain { name, until }))
    }

    async fn drain(
        &self,
        cx: &StepContext,
        config: &Config,
        name: String,
        until: DateTime<Utc>,
    ) -> Result<Next<Cursor>, StepError> {
        let seen = cloud::look(&self.inventory, &config.target.place(), &name)
            .await
            .map_err(|error| cloud::refused(&format!("look at server group `{name}`"), &error))?;
        let open = seen.as_ref().map_or(0, open);
        let late = cx.now() >= until;
        let total = seen.map_or(open, |group| group.instances.len());
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        if open == 0 || late {
            let said = if open == 0 { "drained".to_owned() } else { format!("{open} of {total} still had requests") };
            cx.progress(count(total - open), count(total), "instances", said);
            return Ok(Next::Done(json!({"serverGroup": name, "drained": open == 0})));
        }
        cx.progress(count(total - open), count(total), "instances", format!("{open} of {total} still finish requests"));
        Ok(Next::Poll {
            cursor: Cursor::Drain { name, until },
            after: cloud::LOOK_EVERY.min((until - cx.now()).to_std().unwrap_or_default()),
            topic: Some(INVENTORY_TOPIC.to_owned()),
        })
    }
}

fn absent(name: &str) -> Next<Cursor> {
    Next::Done(json!({"serverGroup": name, "existed": false}))
}

/// Refuses to take the last healthy instances of a cluster out of traffic. A group that is out
/// already, or has nothing healthy, takes nothing away.
pub(super) fn guard(group: &ServerGroup, snapshot: &Snapshot) -> Result<(), StepError> {
    let name = &group.spec.name;
    if !group.spec.enabled || cloud::up(group) == 0 {
        return Ok(());
    }
    let cluster = names::cluster_of(name).unwrap_or_default();
    let another = cloud::members(snapshot, &group.spec.place, &cluster)
        .into_iter()
        .any(|other| other.spec.name != *name && other.spec.enabled && cloud::up(other) > 0);
    if another {
        return Ok(());
    }
    Err(StepError::Fail(
        Cause::new(
            "WOULD_LEAVE_NOTHING",
            format!("`{name}` is the last enabled server group of cluster `{cluster}` with healthy instances"),
        )
        .hint("enable another server group first, or set allowLast if the cluster is to take no traffic"),
    ))
}

/// The longest drain time among its load balancers; nothing to wait for without any.
fn drain_time(group: &ServerGroup, snapshot: &Snapshot) -> TimeDelta {
    let of_group = |name: &String| {
        snapshot
            .load_balancers
            .iter()
            .find(|found| found.spec.place == group.spec.place && found.spec.name == *name)
            .map(|found| found.spec.drain_seconds)
    };
    let longest = group.spec.load_balancers.iter().filter_map(of_group).max();
    longest.map_or(TimeDelta::zero(), |seconds| {
        TimeDelta::try_seconds(i64::try_from(seconds).unwrap_or(i64::MAX)).unwrap_or(TimeDelta::days(1)) + DRAIN_SLACK
    })
}

/// Instances that still have requests, or that the load balancers have not taken out yet.
fn open(group: &ServerGroup) -> usize {
    if group.spec.load_balancers.is_empty() {
        return 0;
    }
    let busy = |state| matches!(state, HealthState::Draining | HealthState::Up);
    group.instances.iter().filter(|instance| busy(instance.state)).count()
}
