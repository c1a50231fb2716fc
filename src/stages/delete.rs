//! What the stages that delete one named thing share: look who uses it, delete it, wait until it
//! is gone.

use std::future::Future;
use std::marker::PhantomData;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{cloud, known, schema};
use crate::engine::contract::{Cause, INVENTORY_TOPIC, Next, Stage, StepContext, StepError};
use crate::inventory::Inventory;
use crate::model::Place;
use crate::providers::{self, Operation, Provider, Snapshot};

/// Something that is deleted by its name once nothing uses it.
pub(super) trait Deletable: Send + Sync + 'static {
    const KIND: &'static str;
    const TITLE: &'static str;
    const DESCRIPTION: &'static str;
    /// In messages: `load balancer`.
    const WHAT: &'static str;
    /// Its name among the outputs: `loadBalancer`.
    const OUTPUT: &'static str;
    /// What to do where it is still used.
    const HINT: &'static str;

    /// What uses it: `server group `hello-v000``.
    fn users(snapshot: &Snapshot, place: &Place, name: &str) -> Vec<String>;
    fn is_there(snapshot: &Snapshot, place: &Place, name: &str) -> bool;
    fn delete(
        provider: &dyn Provider,
        operation: &Operation,
        place: &Place,
        name: &str,
    ) -> impl Future<Output = Result<(), providers::Error>> + Send;
}

/// The stage that deletes one of `D`.
pub(super) struct Delete<D> {
    inventory: Inventory,
    what: PhantomData<D>,
}

impl<D> Delete<D> {
    pub fn new(inventory: &Inventory) -> Self {
        Self { inventory: inventory.clone(), what: PhantomData }
    }
}

#[derive(Deserialize)]
pub(super) struct Config {
    #[serde(default = "cloud::local")]
    account: String,
    #[serde(default = "cloud::local")]
    location: String,
    name: String,
}

impl Config {
    fn place(&self) -> Place {
        Place { account: self.account.clone(), location: self.location.clone() }
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(tag = "at", rename_all = "camelCase")]
pub(super) enum Cursor {
    /// Looking who uses it.
    #[default]
    Look,
    /// It may have been deleted.
    Delete,
    /// What is left of it is ending.
    Gone,
}

impl<D: Deletable> Stage for Delete<D> {
    const KIND: &'static str = D::KIND;
    const TITLE: &'static str = D::TITLE;
    const DESCRIPTION: &'static str = D::DESCRIPTION;
    const TIMEOUT: Duration = Duration::from_secs(10 * 60);
    type Config = Config;
    type Cursor = Cursor;

    fn schema(&self) -> Value {
        let name = json!({"name": schema::name(D::WHAT)});
        schema::object(schema::merged([schema::place(), name]), &["name"])
    }
    fn example(&self) -> Value {
        json!({"account": "local", "location": "local", "name": "hello"})
    }
    fn validate(&self, config: &Config) -> Result<(), (String, String)> {
        cloud::check_place(&self.inventory, &config.place()).map_err(|(field, message)| (format!("/{field}"), message))
    }
    fn validate_known(&self, config: &Value) -> Result<(), (String, String)> {
        known::check_place(&self.inventory, config)
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
        let (place, name, what) = (config.place(), &config.name, D::WHAT);
        match cursor {
            Cursor::Look => {
                cloud::own_unnumbered(cx, what, name)?;
                let snapshot = cloud::fresh(&self.inventory, &place.account).await?;
                let users = D::users(&snapshot, &place, name);
                if users.is_empty() {
                    return Ok(Next::Goto(Cursor::Delete));
                }
                let cause = Cause::new("IN_USE", format!("{what} `{name}` is used by {}", users.join(", ")));
                Err(StepError::Fail(cause.hint(D::HINT)))
            }
            Cursor::Delete => {
                let provider = cloud::provider(&self.inventory, &place.account)?;
                cloud::change(cx, "delete", format!("delete {what} `{name}`"), |operation| async move {
                    D::delete(&*provider, &operation, &place, name).await
                })
                .await?;
                Ok(Next::Goto(Cursor::Gone))
            }
            Cursor::Gone => {
                let snapshot = cloud::fresh(&self.inventory, &place.account).await?;
                if !D::is_there(&snapshot, &place, name) {
                    return Ok(Next::Done(json!({D::OUTPUT: name})));
                }
                let topic = Some(INVENTORY_TOPIC.to_owned());
                Ok(Next::Poll { cursor: Cursor::Gone, after: cloud::LOOK_EVERY, topic })
            }
        }
    }
}
