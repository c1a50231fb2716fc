//! Destroys a server group: out of traffic first, by a stage of its own before this one, then its
//! instances are stopped and it is gone.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::cloud::{self, Ready, Target};
use super::{disable_server_group, schema};
use crate::engine::contract::{INVENTORY_TOPIC, Next, Stage, StepContext, StepError};
use crate::inventory::Inventory;
use crate::model::{ChildSpec, OnFailure};

pub(super) struct DestroyServerGroup {
    pub inventory: Inventory,
}

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
    Destroy { name: String },
    /// Its instances are being stopped.
    Gone { name: String },
}

impl Stage for DestroyServerGroup {
    const KIND: &'static str = "destroyServerGroup";
    const TITLE: &'static str = "Destroy server group";
    const DESCRIPTION: &'static str = "Disables a server group, stops its instances and removes it. Refused for the last \
                                       healthy group of a cluster.";
    type Config = Config;
    type Cursor = Cursor;

    fn schema(&self) -> Value {
        let properties = schema::merged([schema::target(), disable_server_group::guard_properties()]);
        schema::one_target(schema::object(properties, &[]))
    }
    fn example(&self) -> Value {
        json!({"account": "local", "location": "local", "cluster": "hello-prod", "target": "oldest"})
    }
    fn validate(&self, config: &Config) -> Result<(), (String, String)> {
        config.target.check(&self.inventory)
    }
    fn validate_known(&self, config: &Value) -> Result<(), (String, String)> {
        Target::check_known(config, &self.inventory)
    }
    fn tasks(&self, _: &Config) -> Vec<&'static str> {
        vec!["Find server group", "Destroy", "Wait until it is gone"]
    }
    fn task(&self, cursor: &Cursor) -> usize {
        match cursor {
            Cursor::Find => 0,
            Cursor::Destroy { .. } => 1,
            Cursor::Gone { .. } => 2,
        }
    }

    fn before(&self, config: &Config) -> Vec<ChildSpec> {
        let target = &config.target;
        let mut disable = json!({
            "account": target.account,
            "location": target.location,
            "allowLast": config.allow_last,
            // Whether that is an error is said by this stage itself.
            "mayBeAbsent": true,
        });
        if let Some(name) = &target.server_group {
            disable["serverGroup"] = json!(name);
        }
        if let Some(cluster) = &target.cluster {
            disable["cluster"] = json!(cluster);
            disable["target"] = json!(match target.target.unwrap_or(cloud::Which::Newest) {
                cloud::Which::Newest => "newest",
                cloud::Which::Ancestor => "ancestor",
                cloud::Which::Oldest => "oldest",
            });
        }
        vec![ChildSpec {
            key: "disable".to_owned(),
            kind: "disableServerGroup".to_owned(),
            name: "Disable".to_owned(),
            requires: Vec::new(),
            config: disable,
            timeout_seconds: None,
            on_failure: OnFailure::FailPipeline,
        }]
    }

    async fn step(&self, cx: &StepContext, config: &Config, cursor: Cursor) -> Result<Next<Cursor>, StepError> {
        let place = config.target.place();
        match cursor {
            Cursor::Find => match config.target.ready(cx, &self.inventory, Cursor::Find).await? {
                Ready::Waiting(next) => Ok(next),
                Ready::Absent(name) if config.may_be_absent => {
                    Ok(Next::Done(json!({"serverGroup": name, "existed": false})))
                }
                Ready::Absent(name) => Err(config.target.absent(&self.inventory, &name)),
                Ready::Found(group) => Ok(Next::Goto(Cursor::Destroy { name: group.spec.name })),
            },
            Cursor::Destroy { name } => {
                let provider = cloud::provider(&self.inventory, &place.account)?;
                let (at, group) = (&place, &name);
                cloud::change_group(
                    cx,
                    (at, group),
                    "destroy",
                    format!("destroy server group `{name}`"),
                    |operation| async move { provider.ensure_server_group_destroyed(&operation, at, group).await },
                )
                .await?;
                Ok(Next::Goto(Cursor::Gone { name }))
            }
            Cursor::Gone { name } => {
                let seen = cloud::look(&self.inventory, &place, &name)
                    .await
                    .map_err(|error| cloud::refused(&format!("look at server group `{name}`"), &error))?;
                let Some(group) = seen else {
                    return Ok(Next::Done(json!({"serverGroup": name, "existed": true})));
                };
                let left = group.instances.len();
                let total = left.max(group.spec.capacity.desired as usize);
                let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
                cx.progress(
                    count(total - left),
                    count(total),
                    "instances",
                    format!("{left} instances are being stopped"),
                );
                Ok(Next::Poll {
                    cursor: Cursor::Gone { name },
                    after: cloud::LOOK_EVERY,
                    topic: Some(INVENTORY_TOPIC.to_owned()),
                })
            }
        }
    }
}
