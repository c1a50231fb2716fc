//! Deletes a load balancer that no server group uses.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{cloud, schema};
use crate::engine::contract::{Cause, INVENTORY_TOPIC, Next, Stage, StepContext, StepError};
use crate::inventory::Inventory;
use crate::model::Place;

pub(super) struct DeleteLoadBalancer {
    pub inventory: Inventory,
}

#[derive(Deserialize)]
pub(super) struct Config {
    #[serde(default = "cloud::local")]
    account: String,
    #[serde(default = "cloud::local")]
    location: String,
    name: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(tag = "at", rename_all = "camelCase")]
pub(super) enum Cursor {
    /// Looking who uses it.
    #[default]
    Look,
    /// It may have been deleted.
    Delete,
    /// Its connections are ending.
    Gone,
}

impl Stage for DeleteLoadBalancer {
    const KIND: &'static str = "deleteLoadBalancer";
    const TITLE: &'static str = "Delete load balancer";
    const DESCRIPTION: &'static str =
        "Deletes a load balancer. Refused while server groups are registered with it; one that is absent is fine.";
    const TIMEOUT: Duration = Duration::from_secs(10 * 60);
    type Config = Config;
    type Cursor = Cursor;

    fn schema(&self) -> Value {
        let name = json!({"name": schema::name("load balancer")});
        schema::object(schema::merged([schema::place(), name]), &["name"])
    }
    fn example(&self) -> Value {
        json!({"account": "local", "location": "local", "name": "hello"})
    }
    fn validate(&self, config: &Config) -> Result<(), (String, String)> {
        let place = Place { account: config.account.clone(), location: config.location.clone() };
        cloud::check_place(&self.inventory, &place).map_err(|(field, message)| (format!("/{field}"), message))
    }
    fn tasks(&self, _: &Config) -> Vec<&'static str> {
        vec!["Look", "Delete", "Wait until it is gone"]
    }
    fn task(&self, cursor: &Cursor) -> usize {
        match cursor {
            Cursor::Look => 0,
            Cursor::Delete => 1,
            Cursor::Gone => 2,
        }
    }

    async fn step(&self, cx: &StepContext, config: &Config, cursor: Cursor) -> Result<Next<Cursor>, StepError> {
        let place = Place { account: config.account.clone(), location: config.location.clone() };
        let name = &config.name;
        match cursor {
            Cursor::Look => {
                cloud::own_unnumbered(cx, "load balancer", name)?;
                let snapshot = cloud::fresh(&self.inventory, &place.account).await?;
                let users: Vec<_> = snapshot
                    .server_groups
                    .iter()
                    .filter(|group| group.spec.place == place && group.spec.load_balancers.contains(name))
                    .map(|group| format!("`{}`", group.spec.name))
                    .collect();
                if users.is_empty() {
                    return Ok(Next::Goto(Cursor::Delete));
                }
                Err(StepError::Fail(
                    Cause::new("IN_USE", format!("load balancer `{name}` is used by {}", users.join(", ")))
                        .hint("destroy these server groups first"),
                ))
            }
            Cursor::Delete => {
                let provider = cloud::provider(&self.inventory, &place.account)?;
                cloud::change(cx, "delete", format!("delete load balancer `{name}`"), |operation| async move {
                    provider.ensure_load_balancer_deleted(&operation, &place, name).await
                })
                .await?;
                Ok(Next::Goto(Cursor::Gone))
            }
            Cursor::Gone => {
                let snapshot = cloud::fresh(&self.inventory, &place.account).await?;
                let there =
                    snapshot.load_balancers.iter().any(|found| found.spec.place == place && found.spec.name == *name);
                if !there {
                    return Ok(Next::Done(json!({"loadBalancer": name})));
                }
                let topic = Some(INVENTORY_TOPIC.to_owned());
                Ok(Next::Poll { cursor: Cursor::Gone, after: cloud::LOOK_EVERY, topic })
            }
        }
    }
}
