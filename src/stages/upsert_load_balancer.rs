//! Creates or changes a load balancer and waits until it listens. Where it does not come to that,
//! the load balancer of before is brought back.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{cloud, known, schema};
use crate::engine::contract::{Cause, INVENTORY_TOPIC, Next, Stage, StepContext, StepError};
use crate::inventory::Inventory;
use crate::model::{
    ChildSpec, Execution, Listener, LoadBalancer, LoadBalancerHealthCheck, LoadBalancerProblemKind, LoadBalancerSpec,
    OnFailure, Place, Stage as StageRow, addresses_meet,
};

pub(super) struct UpsertLoadBalancer {
    pub inventory: Inventory,
}

/// Listeners that are not open after this long will not be.
const OPEN_WITHIN: TimeDelta = TimeDelta::seconds(60);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Config {
    #[serde(default = "cloud::local")]
    account: String,
    #[serde(default = "cloud::local")]
    location: String,
    name: String,
    listeners: Vec<Listener>,
    #[serde(default)]
    health_check: Option<LoadBalancerHealthCheck>,
    #[serde(default)]
    security_groups: Vec<String>,
    #[serde(default = "drain_seconds")]
    drain_seconds: u64,
}

const fn drain_seconds() -> u64 {
    30
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(tag = "at", rename_all = "camelCase")]
pub(super) enum Cursor {
    /// Looking at what is there.
    #[default]
    Look,
    /// What was there is saved, as a config of this kind; the change may have been made.
    Put { before: Option<Value> },
    /// Its listeners are being opened.
    Open { before: Option<Value>, since: DateTime<Utc> },
}

impl Config {
    fn place(&self) -> Place {
        Place { account: self.account.clone(), location: self.location.clone() }
    }

    fn spec(&self) -> LoadBalancerSpec {
        LoadBalancerSpec {
            place: self.place(),
            name: self.name.clone(),
            listeners: self.listeners.clone(),
            health_check: self.health_check.clone(),
            security_groups: self.security_groups.clone(),
            drain_seconds: self.drain_seconds,
        }
    }
}

impl Stage for UpsertLoadBalancer {
    const KIND: &'static str = "upsertLoadBalancer";
    const TITLE: &'static str = "Create or update load balancer";
    const DESCRIPTION: &'static str =
        "Creates a load balancer, or changes the one of that name, and waits until all of its listeners are open.";
    const TIMEOUT: Duration = Duration::from_secs(10 * 60);
    type Config = Config;
    type Cursor = Cursor;

    fn schema(&self) -> Value {
        let port = |what: &str| json!({"type": "integer", "minimum": 1, "maximum": 65_535, "description": what});
        let properties = json!({
            "name": schema::name("load balancer"),
            "listeners": {
                "type": "array",
                "minItems": 1,
                "maxItems": 20,
                "description": "Where it listens for HTTP.",
                "items": {
                    "type": "object",
                    "additionalProperties": false,
                    "properties": {
                        "address": {
                            "type": "string", "minLength": 2, "maxLength": 45, "default": "127.0.0.1",
                            "description": "The IP address to listen on."
                        },
                        "port": port("The port, or the first of a range."),
                        "portTo": port("The last port of the range; the first free one is taken and kept.")
                    },
                    "required": ["port"]
                }
            },
            "healthCheck": schema::health_check("Its own check of the instances behind it, beside the instances' own."),
            "securityGroups": schema::names("Security groups whose rules let connections in; without any, nothing enters."),
            "drainSeconds": {
                "type": "integer", "minimum": 0, "maximum": 3_600, "default": 30,
                "description": "How long a request may go on after its instance was taken out."
            }
        });
        schema::object(schema::merged([schema::place(), properties]), &["name", "listeners"])
    }
    fn example(&self) -> Value {
        json!({
            "account": "local",
            "location": "local",
            "name": "hello",
            "listeners": [{"address": "127.0.0.1", "port": 8080, "portTo": 8099}],
            "healthCheck": {"protocol": "HTTP", "path": "/health", "interval": "PT1S"},
            "securityGroups": ["hello"],
            "drainSeconds": 10
        })
    }
    fn validate(&self, config: &Config) -> Result<(), (String, String)> {
        cloud::check_unnumbered("load balancer", &config.name)?;
        let listeners: Vec<_> = config.listeners.iter().cloned().enumerate().collect();
        check_listeners(&listeners)?;
        cloud::check_place(&self.inventory, &config.place()).map_err(|(field, message)| (format!("/{field}"), message))
    }
    fn validate_known(&self, config: &Value) -> Result<(), (String, String)> {
        if let Some(name) = known::optional::<String>(config, "name").flatten() {
            cloud::check_unnumbered("load balancer", &name)?;
        }
        for (index, listener) in config["listeners"].as_array().into_iter().flatten().enumerate() {
            let (port, to) = (known::optional(listener, "port"), known::optional(listener, "portTo"));
            check_range(index, port.flatten().unwrap_or(0), to.flatten())?;
        }
        check_listeners(&known::items(config, "listeners")?)?;
        known::check_reads::<LoadBalancerHealthCheck>(config, "healthCheck")?;
        known::check_place(&self.inventory, config)
    }
    fn tasks(&self, _: &Config) -> Vec<&'static str> {
        vec!["Look", "Create or update", "Wait until it listens"]
    }
    fn task(&self, cursor: &Cursor) -> usize {
        match cursor {
            Cursor::Look => 0,
            Cursor::Put { .. } => 1,
            Cursor::Open { .. } => 2,
        }
    }

    fn unwind(&self, _: &Execution, _: &StageRow, config: &Config, cursor: &Cursor) -> Vec<ChildSpec> {
        let (kind, title, restored) = match cursor {
            Cursor::Look => return Vec::new(),
            Cursor::Put { before: Some(before) } | Cursor::Open { before: Some(before), .. } => {
                ("upsertLoadBalancer", "Restore", before.clone())
            }
            Cursor::Put { before: None } | Cursor::Open { before: None, .. } => {
                let place = json!({"account": config.account, "location": config.location, "name": config.name});
                ("deleteLoadBalancer", "Delete", place)
            }
        };
        vec![ChildSpec {
            key: "restore".to_owned(),
            kind: kind.to_owned(),
            name: format!("{title} {}", config.name),
            requires: Vec::new(),
            config: restored,
            timeout_seconds: None,
            on_failure: OnFailure::FailPipeline,
        }]
    }

    async fn step(&self, cx: &StepContext, config: &Config, cursor: Cursor) -> Result<Next<Cursor>, StepError> {
        match cursor {
            Cursor::Look => self.look(cx, config).await,
            Cursor::Put { before } => {
                let provider = cloud::provider(&self.inventory, &config.account)?;
                let spec = config.spec();
                let what = format!("create or update load balancer `{}`", config.name);
                cloud::change(cx, "put", what, |operation| async move {
                    provider.ensure_load_balancer(&operation, &spec).await
                })
                .await?;
                Ok(Next::Goto(Cursor::Open { before, since: cx.now() }))
            }
            Cursor::Open { before, since } => self.open(cx, config, before, since).await,
        }
    }
}

/// A range of ports goes upwards.
fn check_range(index: usize, port: u16, to: Option<u16>) -> Result<(), (String, String)> {
    match to {
        Some(to) if to < port => {
            Err((format!("/listeners/{index}/portTo"), "it is below the range's first port".to_owned()))
        }
        _ => Ok(()),
    }
}

/// Listeners, each with its place in the list, and no two of them at one port.
fn check_listeners(listeners: &[(usize, Listener)]) -> Result<(), (String, String)> {
    for (at, (index, listener)) in listeners.iter().enumerate() {
        check_range(*index, listener.port, listener.port_to)?;
        let meets = |other: &&Listener| {
            other.port == listener.port && other.port_to.is_none() && addresses_meet(other.address, listener.address)
        };
        let others = listeners[..at].iter().map(|(_, other)| other);
        if let Some(other) = others.into_iter().find(meets).filter(|_| listener.port_to.is_none()) {
            let all = if other.address == listener.address { "" } else { ", and one of the two means all addresses" };
            let (port, at) = (listener.port, other.address);
            let message = format!("another listener has port {port} of {at} already{all}");
            return Err((format!("/listeners/{index}/port"), message));
        }
    }
    Ok(())
}

impl UpsertLoadBalancer {
    async fn look(&self, cx: &StepContext, config: &Config) -> Result<Next<Cursor>, StepError> {
        let place = config.place();
        cloud::own_unnumbered(cx, "load balancer", &config.name)?;
        self.validate(config).map_err(|(_, message)| StepError::fail("INVALID", message))?;
        let snapshot = cloud::fresh(&self.inventory, &place.account).await?;
        for name in &config.security_groups {
            let there =
                snapshot.security_groups.iter().any(|found| found.spec.place == place && found.spec.name == *name);
            if !there {
                let message = format!("there is no security group `{name}` at {}/{}", place.account, place.location);
                return Err(StepError::Fail(
                    Cause::new("SECURITY_GROUP_NOT_FOUND", message).hint("create the security group first"),
                ));
            }
        }
        let before = snapshot
            .load_balancers
            .iter()
            .find(|found| found.spec.place == place && found.spec.name == config.name)
            .map(|found| cloud::without_nulls(serde_json::to_value(&found.spec).unwrap_or_default()));
        Ok(Next::Goto(Cursor::Put { before }))
    }

    async fn open(
        &self,
        cx: &StepContext,
        config: &Config,
        before: Option<Value>,
        since: DateTime<Utc>,
    ) -> Result<Next<Cursor>, StepError> {
        let place = config.place();
        let snapshot = cloud::fresh(&self.inventory, &place.account).await?;
        let found = snapshot
            .load_balancers
            .iter()
            .find(|found| found.spec.place == place && found.spec.name == config.name)
            .ok_or_else(|| {
                StepError::fail(
                    "NOT_FOUND",
                    format!("load balancer `{}` has disappeared while it was changed", config.name),
                )
            })?;
        let (open, wanted) = (found.bound.len(), config.listeners.len());
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        cx.progress(count(open.min(wanted)), count(wanted), "listeners", format!("{open} of {wanted} listen"));
        // What else is in its way (a share with nothing healthy) is no fault of this change.
        if open >= wanted {
            return Ok(Next::Done(outputs(found, before.is_none())));
        }
        if let Some(problem) = found.problems.iter().find(|problem| problem.kind == LoadBalancerProblemKind::Listener) {
            return Err(not_open(config, &problem.message));
        }
        if cx.now() - since >= OPEN_WITHIN {
            return Err(not_open(config, &format!("{open} of {wanted} listeners are open")));
        }
        Ok(Next::Poll {
            cursor: Cursor::Open { before, since },
            after: cloud::LOOK_EVERY,
            topic: Some(INVENTORY_TOPIC.to_owned()),
        })
    }
}

fn not_open(config: &Config, why: &str) -> StepError {
    StepError::Fail(
        Cause::new("LISTENER_NOT_OPEN", format!("load balancer `{}` does not listen: {why}", config.name))
            .hint("choose a free port, or a range of ports with portTo"),
    )
}

fn outputs(found: &LoadBalancer, created: bool) -> Value {
    let urls: Vec<_> = found.bound.iter().map(|bound| format!("http://{bound}/")).collect();
    json!({
        "account": found.spec.place.account,
        "location": found.spec.place.location,
        "loadBalancer": found.spec.name,
        "bound": found.bound,
        "urls": urls,
        "created": created,
    })
}
