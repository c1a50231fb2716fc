//! Deletes a security group that nothing uses.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{cloud, schema};
use crate::engine::contract::{Cause, Next, Stage, StepContext, StepError};
use crate::inventory::Inventory;
use crate::model::Place;

pub(super) struct DeleteSecurityGroup {
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
    /// It may have been deleted; it is gone with the provider's answer.
    Delete,
}

impl Stage for DeleteSecurityGroup {
    const KIND: &'static str = "deleteSecurityGroup";
    const TITLE: &'static str = "Delete security group";
    const DESCRIPTION: &'static str =
        "Deletes a security group. Refused while something uses it; one that is absent is fine.";
    const TIMEOUT: Duration = Duration::from_secs(10 * 60);
    type Config = Config;
    type Cursor = Cursor;

    fn schema(&self) -> Value {
        let name = json!({"name": schema::name("security group")});
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
        vec!["Look", "Delete"]
    }
    fn task(&self, cursor: &Cursor) -> usize {
        match cursor {
            Cursor::Look => 0,
            Cursor::Delete => 1,
        }
    }

    async fn step(&self, cx: &StepContext, config: &Config, cursor: Cursor) -> Result<Next<Cursor>, StepError> {
        let place = Place { account: config.account.clone(), location: config.location.clone() };
        let name = &config.name;
        match cursor {
            Cursor::Look => {
                cloud::own_unnumbered(cx, "security group", name)?;
                let snapshot = cloud::fresh(&self.inventory, &place.account).await?;
                let load_balancers = snapshot
                    .load_balancers
                    .iter()
                    .filter(|found| found.spec.place == place && found.spec.security_groups.contains(name))
                    .map(|found| format!("load balancer `{}`", found.spec.name));
                let server_groups = snapshot
                    .server_groups
                    .iter()
                    .filter(|group| group.spec.place == place && group.spec.security_groups.contains(name))
                    .map(|group| format!("server group `{}`", group.spec.name));
                let users: Vec<_> = load_balancers.chain(server_groups).collect();
                if users.is_empty() {
                    return Ok(Next::Goto(Cursor::Delete));
                }
                Err(StepError::Fail(
                    Cause::new("IN_USE", format!("security group `{name}` is used by {}", users.join(", ")))
                        .hint("take it out of these first, or delete them"),
                ))
            }
            Cursor::Delete => {
                let provider = cloud::provider(&self.inventory, &place.account)?;
                cloud::change(cx, "delete", format!("delete security group `{name}`"), |operation| async move {
                    provider.ensure_security_group_deleted(&operation, &place, name).await
                })
                .await?;
                Ok(Next::Done(json!({"securityGroup": name})))
            }
        }
    }
}
