//! Creates or changes a security group: which connections its load balancers and server groups let in.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{cloud, known, schema};
use crate::engine::contract::{Next, Stage, StepContext, StepError};
use crate::inventory::Inventory;
use crate::model::{InboundRule, Place, SecurityGroupSpec};

pub(super) struct UpsertSecurityGroup {
    pub inventory: Inventory,
}

#[derive(Deserialize)]
pub(super) struct Config {
    #[serde(default = "cloud::local")]
    account: String,
    #[serde(default = "cloud::local")]
    location: String,
    name: String,
    #[serde(default)]
    description: String,
    inbound: Vec<InboundRule>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(tag = "at", rename_all = "camelCase")]
pub(super) enum Cursor {
    /// Checking the name.
    #[default]
    Check,
    /// The change may have been made; it is whole with the provider's answer.
    Put,
}

impl Config {
    fn place(&self) -> Place {
        Place { account: self.account.clone(), location: self.location.clone() }
    }
}

/// A range of ports goes upwards.
fn check_range(index: usize, from: u16, to: u16) -> Result<(), (String, String)> {
    if to < from {
        return Err((format!("/inbound/{index}/portTo"), "it is below the range's first port".to_owned()));
    }
    Ok(())
}

impl Stage for UpsertSecurityGroup {
    const KIND: &'static str = "upsertSecurityGroup";
    const TITLE: &'static str = "Create or update security group";
    const DESCRIPTION: &'static str =
        "Creates a security group, or gives the one of that name these rules. What no rule lets in stays out.";
    const TIMEOUT: Duration = Duration::from_secs(10 * 60);
    type Config = Config;
    type Cursor = Cursor;

    fn schema(&self) -> Value {
        let port = |what: &str| json!({"type": "integer", "minimum": 0, "maximum": 65_535, "description": what});
        let properties = json!({
            "name": schema::name("security group"),
            "description": {"type": "string", "maxLength": 1000, "default": "", "description": "What it is for."},
            "inbound": {
                "type": "array",
                "maxItems": 200,
                "description": "The connections that are let in; none, no entry.",
                "items": {
                    "type": "object",
                    "additionalProperties": false,
                    "properties": {
                        "cidr": {
                            "type": "string", "pattern": "^[0-9A-Fa-f.:]+/[0-9]{1,3}$", "maxLength": 50,
                            "description": "The network that may connect, as `10.0.0.0/8` or `::1/128`."
                        },
                        "protocol": {"enum": ["TCP", "HTTP"], "default": "TCP", "description": "The transport."},
                        "portFrom": port("The first port."),
                        "portTo": port("The last port.")
                    },
                    "required": ["cidr", "portFrom", "portTo"]
                }
            }
        });
        schema::object(schema::merged([schema::place(), properties]), &["name", "inbound"])
    }
    fn example(&self) -> Value {
        json!({
            "account": "local",
            "location": "local",
            "name": "hello",
            "description": "This machine only",
            "inbound": [{"cidr": "127.0.0.0/8", "protocol": "TCP", "portFrom": 8080, "portTo": 8099}]
        })
    }
    fn validate(&self, config: &Config) -> Result<(), (String, String)> {
        cloud::check_unnumbered("security group", &config.name)?;
        for (index, rule) in config.inbound.iter().enumerate() {
            check_range(index, rule.port_from, rule.port_to)?;
        }
        cloud::check_place(&self.inventory, &config.place()).map_err(|(field, message)| (format!("/{field}"), message))
    }
    fn validate_known(&self, config: &Value) -> Result<(), (String, String)> {
        if let Some(name) = known::optional::<String>(config, "name").flatten() {
            cloud::check_unnumbered("security group", &name)?;
        }
        for (index, rule) in config["inbound"].as_array().into_iter().flatten().enumerate() {
            let port = |name| known::optional::<u16>(rule, name).flatten();
            if let (Some(from), Some(to)) = (port("portFrom"), port("portTo")) {
                check_range(index, from, to)?;
            }
        }
        known::items::<InboundRule>(config, "inbound")?;
        known::check_place(&self.inventory, config)
    }
    fn tasks(&self, _: &Config) -> Vec<&'static str> {
        vec!["Check", "Create or update"]
    }
    fn task(&self, cursor: &Cursor) -> usize {
        match cursor {
            Cursor::Check => 0,
            Cursor::Put => 1,
        }
    }

    async fn step(&self, cx: &StepContext, config: &Config, cursor: Cursor) -> Result<Next<Cursor>, StepError> {
        match cursor {
            Cursor::Check => {
                cloud::own_unnumbered(cx, "security group", &config.name)?;
                self.validate(config).map_err(|(_, message)| StepError::fail("INVALID", message))?;
                Ok(Next::Goto(Cursor::Put))
            }
            Cursor::Put => {
                let provider = cloud::provider(&self.inventory, &config.account)?;
                let spec = SecurityGroupSpec {
                    place: config.place(),
                    name: config.name.clone(),
                    description: config.description.clone(),
                    inbound: config.inbound.clone(),
                };
                let what = format!("create or update security group `{}`", config.name);
                cloud::change(cx, "put", what, |operation| async move {
                    provider.ensure_security_group(&operation, &spec).await
                })
                .await?;
                Ok(Next::Done(json!({
                    "account": config.account,
                    "location": config.location,
                    "securityGroup": config.name,
                })))
            }
        }
    }
}
