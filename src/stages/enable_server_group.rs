//! Puts a server group into its load balancers and waits until all its instances take traffic.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::cloud::{self, Ready, Target};
use super::schema;
use crate::engine::contract::{INVENTORY_TOPIC, Next, Stage, StepContext, StepError};
use crate::inventory::Inventory;

pub(super) struct EnableServerGroup {
    pub inventory: Inventory,
}

#[derive(Deserialize)]
pub(super) struct Config {
    #[serde(flatten)]
    target: Target,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(tag = "at", rename_all = "camelCase")]
pub(super) enum Cursor {
    /// In line for the cluster, then finding the group.
    #[default]
    Find,
    /// The name is saved; the change may have been made.
    Enable { name: String },
    /// Instances are becoming healthy.
    Healthy { name: String },
}

impl Stage for EnableServerGroup {
    const KIND: &'static str = "enableServerGroup";
    const TITLE: &'static str = "Enable server group";
    const DESCRIPTION: &'static str =
        "Puts a server group into its load balancers and waits until all of its instances are healthy there.";
    type Config = Config;
    type Cursor = Cursor;

    fn schema(&self) -> Value {
        schema::one_target(schema::object(schema::target(), &[]))
    }
    fn example(&self) -> Value {
        json!({"account": "local", "location": "local", "serverGroup": "hello-prod-v001"})
    }
    fn validate(&self, config: &Config) -> Result<(), (String, String)> {
        config.target.check(&self.inventory)
    }
    fn validate_known(&self, config: &Value) -> Result<(), (String, String)> {
        Target::check_known(config, &self.inventory)
    }
    fn tasks(&self, _: &Config) -> Vec<&'static str> {
        vec!["Find server group", "Enable", "Wait until healthy"]
    }
    fn task(&self, cursor: &Cursor) -> usize {
        match cursor {
            Cursor::Find => 0,
            Cursor::Enable { .. } => 1,
            Cursor::Healthy { .. } => 2,
        }
    }

    async fn step(&self, cx: &StepContext, config: &Config, cursor: Cursor) -> Result<Next<Cursor>, StepError> {
        let place = config.target.place();
        match cursor {
            Cursor::Find => match config.target.ready(cx, &self.inventory, Cursor::Find).await? {
                Ready::Waiting(next) => Ok(next),
                Ready::Absent(name) => Err(config.target.absent(&self.inventory, &name)),
                Ready::Found(group) => Ok(Next::Goto(Cursor::Enable { name: group.spec.name })),
            },
            Cursor::Enable { name } => {
                let provider = cloud::provider(&self.inventory, &place.account)?;
                let (at, group) = (&place, &name);
                cloud::change_group(
                    cx,
                    (at, group),
                    "enable",
                    format!("enable server group `{name}`"),
                    |operation| async move { provider.ensure_enabled(&operation, at, group, true).await },
                )
                .await?;
                Ok(Next::Goto(Cursor::Healthy { name }))
            }
            Cursor::Healthy { name } => {
                // Others are disabled on the word that this one is healthy: always read anew.
                let group = cloud::look(&self.inventory, &place, &name)
                    .await
                    .map_err(|error| cloud::refused(&format!("look at server group `{name}`"), &error))?
                    .ok_or_else(|| cloud::gone(&name))?;
                let (healthy, desired) = (cloud::up(&group), group.spec.capacity.desired as usize);
                cloud::progress(cx, healthy, desired);
                if healthy >= desired {
                    return Ok(Next::Done(json!({"serverGroup": name, "healthy": healthy})));
                }
                Ok(Next::Poll {
                    cursor: Cursor::Healthy { name },
                    after: cloud::LOOK_EVERY,
                    topic: Some(INVENTORY_TOPIC.to_owned()),
                })
            }
        }
    }
}
