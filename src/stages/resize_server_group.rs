//! Changes how many instances a server group has, and waits until it has them.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::cloud::{self, Ready, Target};
use super::{disable_server_group, known, schema};
use crate::engine::contract::{INVENTORY_TOPIC, Next, Stage, StepContext, StepError};
use crate::inventory::Inventory;
use crate::model::{Capacity, ServerGroup};

pub(super) struct ResizeServerGroup {
    pub inventory: Inventory,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Config {
    #[serde(flatten)]
    target: Target,
    capacity: Capacity,
    #[serde(default)]
    allow_last: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(tag = "at", rename_all = "camelCase")]
pub(super) enum Cursor {
    /// In line for the cluster, then finding the group.
    #[default]
    Find,
    /// What it had is saved; the change may have been made.
    Resize { name: String, before: Capacity },
    /// Instances come or go.
    Settle { name: String, before: Capacity },
}

impl Stage for ResizeServerGroup {
    const KIND: &'static str = "resizeServerGroup";
    const TITLE: &'static str = "Resize server group";
    const DESCRIPTION: &'static str = "Changes a server group's capacity and waits until it has that many instances, healthy if it is enabled. \
         Refused where the last healthy group of a cluster would have none.";
    type Config = Config;
    type Cursor = Cursor;

    fn schema(&self) -> Value {
        let allow_last = disable_server_group::guard_properties()["allowLast"].take();
        let own = json!({"capacity": schema::capacity(), "allowLast": allow_last});
        let properties = schema::merged([schema::target(), own]);
        schema::one_target(schema::object(properties, &["capacity"]))
    }
    fn example(&self) -> Value {
        json!({
            "account": "local",
            "location": "local",
            "cluster": "hello-prod",
            "target": "newest",
            "capacity": {"min": 5, "desired": 5, "max": 5}
        })
    }
    fn validate(&self, config: &Config) -> Result<(), (String, String)> {
        config.target.check(&self.inventory)?;
        config.capacity.checked().map(|_| ()).map_err(|error| ("/capacity".to_owned(), error.to_string()))
    }
    fn validate_known(&self, config: &Value) -> Result<(), (String, String)> {
        Target::check_known(config, &self.inventory)?;
        known::check_capacity(config)
    }
    fn tasks(&self, _: &Config) -> Vec<&'static str> {
        vec!["Find server group", "Resize", "Wait for instances"]
    }
    fn task(&self, cursor: &Cursor) -> usize {
        match cursor {
            Cursor::Find => 0,
            Cursor::Resize { .. } => 1,
            Cursor::Settle { .. } => 2,
        }
    }

    async fn step(&self, cx: &StepContext, config: &Config, cursor: Cursor) -> Result<Next<Cursor>, StepError> {
        let place = config.target.place();
        match cursor {
            Cursor::Find => {
                config.capacity.checked().map_err(|error| StepError::fail("INVALID", error.to_string()))?;
                match config.target.ready(cx, &self.inventory, Cursor::Find).await? {
                    Ready::Waiting(next) => Ok(next),
                    Ready::Absent(name) => Err(config.target.absent(&self.inventory, &name)),
                    Ready::Found(group) => {
                        // Here and not beside the change: after it, a repeated step would refuse its own work.
                        if config.capacity.desired == 0 && !config.allow_last {
                            let snapshot = cloud::fresh(&self.inventory, &place.account).await?;
                            disable_server_group::guard(&group, &snapshot)?;
                        }
                        let before = group.spec.capacity;
                        cx.output("serverGroup", json!(group.spec.name));
                        // Read by an unwind, which may come before the end.
                        cx.output("previousCapacity", json!(before));
                        Ok(Next::Goto(Cursor::Resize { name: group.spec.name, before }))
                    }
                }
            }
            Cursor::Resize { name, before } => {
                let provider = cloud::provider(&self.inventory, &place.account)?;
                let capacity = config.capacity;
                let what = format!("resize server group `{name}` to {}", capacity.desired);
                let (at, group) = (&place, &name);
                cloud::change_group(cx, (at, group), "resize", what, |operation| async move {
                    provider.ensure_capacity(&operation, at, group, capacity).await
                })
                .await?;
                Ok(Next::Goto(Cursor::Settle { name, before }))
            }
            Cursor::Settle { name, before } => {
                let group = cloud::look(&self.inventory, &place, &name)
                    .await
                    .map_err(|error| cloud::refused(&format!("look at server group `{name}`"), &error))?
                    .ok_or_else(|| cloud::gone(&name))?;
                if settled(cx, &group, config.capacity) {
                    return Ok(Next::Done(json!({
                        "serverGroup": name,
                        "capacity": config.capacity,
                        "previousCapacity": before,
                    })));
                }
                Ok(Next::Poll {
                    cursor: Cursor::Settle { name, before },
                    after: cloud::LOOK_EVERY,
                    topic: Some(INVENTORY_TOPIC.to_owned()),
                })
            }
        }
    }
}

/// As many instances as wanted; healthy ones, unless the group is out of traffic, where health says
/// no more than that.
fn settled(cx: &StepContext, group: &ServerGroup, capacity: Capacity) -> bool {
    let (wanted, there, healthy) = (capacity.desired as usize, group.instances.len(), cloud::up(group));
    if group.spec.enabled && there <= wanted {
        cloud::progress(cx, healthy, wanted);
    } else {
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        let message = format!("{there} instances, {wanted} wanted");
        cx.progress(count(there.min(wanted)), count(wanted), "instances", message);
    }
    there == wanted && (!group.spec.enabled || healthy >= wanted)
}
