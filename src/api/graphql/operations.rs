//! Operations on what runs at clouds. Each is one stage, run as an execution of its application,
//! to be followed like any other.

use async_graphql::{Context, InputObject, Object, Result};
use serde_json::{Map, Value, json};

use super::command::{CommandError, NEEDS_VALIDATE_ONLY, Refused, settle, settle_checked, started_payload};
use super::health::HealthCheckProtocol;
use super::scalars::Duration;
use super::security_group::Protocol;
use super::selectors::{LoadBalancerSelector, SecurityGroupSelector, ServerGroupSelector};
use super::session::{Session, session};
use crate::api::error::shown;
use crate::engine::commands::{self, StartOperation, Started};
use crate::model::{OnFailure, Place, StageSpec, names};

// Numbers are taken as they come: the stages' schemas say which are allowed, with the field.

/// Where a load balancer listens.
#[derive(InputObject)]
pub struct ListenerInput {
    /// The network address.
    #[graphql(default = "127.0.0.1")]
    address: String,
    /// The port, or the first of a range.
    port: i64,
    /// The last port of the range; the first free one of it is taken and kept.
    port_to: Option<i64>,
}

/// A check of instances.
#[derive(InputObject)]
pub struct HealthCheckInput {
    /// How it asks.
    protocol: HealthCheckProtocol,
    /// HTTP: the path that is asked for.
    path: Option<String>,
    /// HTTP: the answers that are healthy; 200 when absent.
    statuses: Option<Vec<i64>>,
    /// HTTP: the port; the instance's own when absent.
    port: Option<i64>,
    /// HTTP: text that the body must contain.
    body_contains: Option<String>,
    /// COMMAND: the command that is run.
    command: Option<Vec<String>>,
    /// From one probe to the next.
    #[graphql(default_with = "Some(Duration::from(1_000))")]
    interval: Option<Duration>,
    /// How long an answer may take.
    #[graphql(default_with = "Some(Duration::from(1_000))")]
    timeout: Option<Duration>,
    /// Passes in a row that make an instance healthy.
    #[graphql(default_with = "Some(1)")]
    healthy_threshold: Option<i64>,
    /// Failures in a row that make it unhealthy.
    #[graphql(default_with = "Some(3)")]
    unhealthy_threshold: Option<i64>,
    /// Failures within this time from the start do not count.
    #[graphql(default_with = "Some(Duration::from(10_000))")]
    start_grace: Option<Duration>,
}

impl From<HealthCheckInput> for Value {
    fn from(check: HealthCheckInput) -> Self {
        let mut value = Map::new();
        let mut put = |key: &str, field: Option<Value>| {
            if let Some(field) = field {
                value.insert(key.into(), field);
            }
        };
        let protocol = match check.protocol {
            HealthCheckProtocol::Http => "http",
            HealthCheckProtocol::Tcp => "tcp",
            HealthCheckProtocol::Command => "command",
        };
        put("protocol", Some(protocol.into()));
        put("path", check.path.map(Into::into));
        put("statuses", check.statuses.map(Into::into));
        put("port", check.port.map(Into::into));
        put("bodyContains", check.body_contains.map(Into::into));
        put("command", check.command.map(Into::into));
        put("intervalMs", check.interval.map(|span| span.millis().into()));
        put("timeoutMs", check.timeout.map(|span| span.millis().into()));
        put("healthyThreshold", check.healthy_threshold.map(Into::into));
        put("unhealthyThreshold", check.unhealthy_threshold.map(Into::into));
        put("startGraceMs", check.start_grace.map(|span| span.millis().into()));
        Self::Object(value)
    }
}

/// A load balancer to make or change.
#[derive(InputObject)]
pub struct UpsertLoadBalancerInput {
    /// The account's name.
    #[graphql(default = "local")]
    account: String,
    /// The location within the account.
    #[graphql(default = "local")]
    location: String,
    /// `application[-stack[-detail]]`.
    name: String,
    /// Where it listens; at least one.
    listeners: Vec<ListenerInput>,
    /// The check that it makes of every instance registered with it.
    health_check: Option<HealthCheckInput>,
    /// Names of the security groups whose rules let connections in; without any, nothing enters.
    #[graphql(default)]
    security_groups: Vec<String>,
    /// How long a connection may go on after its instance was taken out; 30 s when absent.
    #[graphql(default_with = "Some(Duration::from(30_000))")]
    drain: Option<Duration>,
    /// The same key and input again answer with the execution that the first call started.
    idempotency_key: Option<String>,
    /// Check everything and start nothing; all faults are told. The application need not be there
    /// yet. Whether the ports are free is seen when they are opened. The payload has no execution then.
    #[graphql(default)]
    validate_only: bool,
    /// With `validateOnly`: names of the security groups at the same place that are to be made
    /// together with it.
    #[graphql(default)]
    validate_with: Vec<String>,
}

/// A load balancer to delete.
#[derive(InputObject)]
pub struct DeleteLoadBalancerInput {
    /// Which one.
    load_balancer: LoadBalancerSelector,
    /// The same key and input again answer with the execution that the first call started.
    idempotency_key: Option<String>,
}

/// A rule that lets connections in.
#[derive(InputObject)]
pub struct InboundRuleInput {
    /// From these addresses: `10.0.0.0/8`.
    cidr: String,
    /// Of this sort.
    #[graphql(default_with = "Protocol::Tcp")]
    protocol: Protocol,
    /// To ports from this one …
    port_from: i64,
    /// … to this one.
    port_to: i64,
}

/// A security group to make or change.
#[derive(InputObject)]
pub struct UpsertSecurityGroupInput {
    /// The account's name.
    #[graphql(default = "local")]
    account: String,
    /// The location within the account.
    #[graphql(default = "local")]
    location: String,
    /// `application[-stack[-detail]]`.
    name: String,
    /// What it is for.
    #[graphql(default)]
    description: String,
    /// All its rules; no rule, no entry.
    inbound: Vec<InboundRuleInput>,
    /// The same key and input again answer with the execution that the first call started.
    idempotency_key: Option<String>,
    /// Check everything and start nothing; all faults are told. The application need not be there
    /// yet. The payload has no execution then.
    #[graphql(default)]
    validate_only: bool,
}

/// A security group to delete.
#[derive(InputObject)]
pub struct DeleteSecurityGroupInput {
    /// Which one.
    security_group: SecurityGroupSelector,
    /// The same key and input again answer with the execution that the first call started.
    idempotency_key: Option<String>,
}

/// How many instances: min ≤ desired ≤ max.
#[derive(InputObject)]
pub struct CapacityInput {
    /// The least.
    min: u32,
    /// The wanted number.
    desired: u32,
    /// The most.
    max: u32,
}

/// A server group to resize.
#[derive(InputObject)]
pub struct ResizeServerGroupInput {
    /// Which one.
    server_group: ServerGroupSelector,
    /// How many instances it shall have.
    capacity: CapacityInput,
    /// Go on although no other server group of the cluster takes traffic: nothing answers then.
    #[graphql(default)]
    allow_last: bool,
    /// The same key and input again answer with the execution that the first call started.
    idempotency_key: Option<String>,
}

/// A server group to take into traffic.
#[derive(InputObject)]
pub struct EnableServerGroupInput {
    /// Which one.
    server_group: ServerGroupSelector,
    /// The same key and input again answer with the execution that the first call started.
    idempotency_key: Option<String>,
}

/// A server group to take out of traffic.
#[derive(InputObject)]
pub struct DisableServerGroupInput {
    /// Which one.
    server_group: ServerGroupSelector,
    /// Go on although no other server group of the cluster takes traffic: nothing answers then.
    #[graphql(default)]
    allow_last: bool,
    /// The same key and input again answer with the execution that the first call started.
    idempotency_key: Option<String>,
}

/// A server group to destroy.
#[derive(InputObject)]
pub struct DestroyServerGroupInput {
    /// Which one.
    server_group: ServerGroupSelector,
    /// Go on although no other server group of the cluster takes traffic: nothing answers then.
    #[graphql(default)]
    allow_last: bool,
    /// The same key and input again answer with the execution that the first call started.
    idempotency_key: Option<String>,
}

started_payload!(
    /// What `upsertLoadBalancer` came to.
    UpsertLoadBalancerPayload
);
started_payload!(
    /// What `deleteLoadBalancer` came to.
    DeleteLoadBalancerPayload
);
started_payload!(
    /// What `upsertSecurityGroup` came to.
    UpsertSecurityGroupPayload
);
started_payload!(
    /// What `deleteSecurityGroup` came to.
    DeleteSecurityGroupPayload
);
started_payload!(
    /// What `resizeServerGroup` came to.
    ResizeServerGroupPayload
);
started_payload!(
    /// What `enableServerGroup` came to.
    EnableServerGroupPayload
);
started_payload!(
    /// What `disableServerGroup` came to.
    DisableServerGroupPayload
);
started_payload!(
    /// What `destroyServerGroup` came to.
    DestroyServerGroupPayload
);

/// Mutations of what runs at clouds.
#[derive(Default)]
pub struct OperationMutation;

#[Object]
impl OperationMutation {
    /// Makes a load balancer, or changes one to what is given.
    async fn upsert_load_balancer(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "What to make.")] input: UpsertLoadBalancerInput,
    ) -> Result<Option<UpsertLoadBalancerPayload>> {
        let session = session(ctx)?;
        let listener = |listener: &ListenerInput| {
            let mut value = json!({"address": listener.address, "port": listener.port});
            if let Some(port_to) = listener.port_to {
                value["portTo"] = port_to.into();
            }
            value
        };
        let mut config = json!({
            "account": input.account,
            "location": input.location,
            "name": input.name,
            "listeners": input.listeners.iter().map(listener).collect::<Vec<_>>(),
            "securityGroups": input.security_groups,
        });
        if let Some(check) = input.health_check {
            config["healthCheck"] = check.into();
        }
        if let Some(drain) = input.drain {
            config["drainSeconds"] = drain.seconds().into();
        }
        let operation = Operation {
            kind: "upsertLoadBalancer",
            title: format!("Upsert load balancer {}", shown(&input.name)),
            name: input.name,
            config,
            idempotency_key: input.idempotency_key,
        };
        let upsert = async {
            if input.validate_only {
                let place = Place { account: input.account, location: input.location };
                let mut faults = operation.faults(&session)?;
                faults.extend(absent_groups(&session, &place, &input.security_groups, &input.validate_with).await?);
                return if faults.is_empty() { Ok(None) } else { Err(Refused::User(faults)) };
            }
            if !input.validate_with.is_empty() {
                return Err(Refused::invalid(NEEDS_VALIDATE_ONLY, &["validateWith"]));
            }
            operation.start(&session).await.map(Some)
        };
        settle_checked(upsert.await)
    }
    /// Deletes a load balancer; it fails while server groups are registered with it.
    async fn delete_load_balancer(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "What to delete.")] input: DeleteLoadBalancerInput,
    ) -> Result<Option<DeleteLoadBalancerPayload>> {
        let session = session(ctx)?;
        let delete = async {
            let spec = session.select_load_balancer(input.load_balancer).await?.spec;
            let operation = Operation {
                kind: "deleteLoadBalancer",
                title: format!("Delete load balancer {}", spec.name),
                config: placed(&spec.place, "name", &spec.name),
                name: spec.name,
                idempotency_key: input.idempotency_key,
            };
            operation.start(&session).await
        };
        settle(delete.await)
    }
    /// Makes a security group, or changes one to what is given.
    async fn upsert_security_group(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "What to make.")] input: UpsertSecurityGroupInput,
    ) -> Result<Option<UpsertSecurityGroupPayload>> {
        let rule = |rule: &InboundRuleInput| {
            let protocol = match rule.protocol {
                Protocol::Tcp => "TCP",
                Protocol::Http => "HTTP",
            };
            json!({
                "cidr": rule.cidr, "protocol": protocol, "portFrom": rule.port_from, "portTo": rule.port_to,
            })
        };
        let config = json!({
            "account": input.account,
            "location": input.location,
            "name": input.name,
            "description": input.description,
            "inbound": input.inbound.iter().map(rule).collect::<Vec<_>>(),
        });
        let operation = Operation {
            kind: "upsertSecurityGroup",
            title: format!("Upsert security group {}", shown(&input.name)),
            name: input.name,
            config,
            idempotency_key: input.idempotency_key,
        };
        let session = session(ctx)?;
        let upsert = async {
            if input.validate_only {
                let faults = operation.faults(&session)?;
                return if faults.is_empty() { Ok(None) } else { Err(Refused::User(faults)) };
            }
            operation.start(&session).await.map(Some)
        };
        settle_checked(upsert.await)
    }
    /// Deletes a security group; it fails while something uses it.
    async fn delete_security_group(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "What to delete.")] input: DeleteSecurityGroupInput,
    ) -> Result<Option<DeleteSecurityGroupPayload>> {
        let session = session(ctx)?;
        let delete = async {
            let spec = session.select_security_group(input.security_group).await?.spec;
            let operation = Operation {
                kind: "deleteSecurityGroup",
                title: format!("Delete security group {}", spec.name),
                config: placed(&spec.place, "name", &spec.name),
                name: spec.name,
                idempotency_key: input.idempotency_key,
            };
            operation.start(&session).await
        };
        settle(delete.await)
    }
    /// Gives a server group another number of instances.
    async fn resize_server_group(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "What to resize, and to what.")] input: ResizeServerGroupInput,
    ) -> Result<Option<ResizeServerGroupPayload>> {
        let CapacityInput { min, desired, max } = input.capacity;
        let capacity = json!({"min": min, "desired": desired, "max": max});
        let title = format!(" to {desired}");
        let change = Change {
            kind: "resizeServerGroup",
            verb: "Resize",
            title,
            more: vec![("capacity", capacity), ("allowLast", input.allow_last.into())],
        };
        settle(change.start(&session(ctx)?, input.server_group, input.idempotency_key).await)
    }
    /// Takes a server group into its load balancers' traffic.
    async fn enable_server_group(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "What to enable.")] input: EnableServerGroupInput,
    ) -> Result<Option<EnableServerGroupPayload>> {
        let change = Change { kind: "enableServerGroup", verb: "Enable", title: String::new(), more: Vec::new() };
        settle(change.start(&session(ctx)?, input.server_group, input.idempotency_key).await)
    }
    /// Takes a server group out of its load balancers' traffic; what is open is drained.
    async fn disable_server_group(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "What to disable.")] input: DisableServerGroupInput,
    ) -> Result<Option<DisableServerGroupPayload>> {
        let change = Change {
            kind: "disableServerGroup",
            verb: "Disable",
            title: String::new(),
            more: vec![("allowLast", input.allow_last.into())],
        };
        settle(change.start(&session(ctx)?, input.server_group, input.idempotency_key).await)
    }
    /// Stops all instances of a server group and removes it.
    async fn destroy_server_group(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "What to destroy.")] input: DestroyServerGroupInput,
    ) -> Result<Option<DestroyServerGroupPayload>> {
        let change = Change {
            kind: "destroyServerGroup",
            verb: "Destroy",
            title: String::new(),
            more: vec![("allowLast", input.allow_last.into())],
        };
        settle(change.start(&session(ctx)?, input.server_group, input.idempotency_key).await)
    }
}

fn placed(place: &Place, key: &str, name: &str) -> Value {
    json!({"account": place.account, "location": place.location, key: name})
}

/// A change of one server group.
struct Change {
    kind: &'static str,
    verb: &'static str,
    /// What follows the group's name in the title.
    title: String,
    more: Vec<(&'static str, Value)>,
}

impl Change {
    async fn start(
        self,
        session: &Session<'_>,
        selector: ServerGroupSelector,
        idempotency_key: Option<String>,
    ) -> Result<Started, Refused> {
        let spec = session.select_server_group(selector).await?.spec;
        let mut config = placed(&spec.place, "serverGroup", &spec.name);
        let title = format!("{} {}{}", self.verb, spec.name, self.title);
        for (key, value) in self.more {
            config[key] = value;
        }
        Operation { kind: self.kind, title, name: spec.name, config, idempotency_key }.start(session).await
    }
}

/// One stage to run on its own.
struct Operation {
    kind: &'static str,
    title: String,
    /// Of what it acts on; its first part is the application.
    name: String,
    config: Value,
    idempotency_key: Option<String>,
}

impl Operation {
    async fn start(self, session: &Session<'_>) -> Result<Started, Refused> {
        let application = session.select_application_named(&self.application()?, &["name"]).await?.id;
        let start = StartOperation {
            application,
            stages: vec![self.stage()],
            title: self.title,
            idempotency_key: self.idempotency_key,
        };
        let started = session.api.commands.start_operation(session.actor, start).await;
        Ok(started.map_err(|error| as_given(self.kind, error))?)
    }

    /// What it would be refused for once its application is there.
    fn faults(&self, session: &Session<'_>) -> Result<Vec<CommandError>, Refused> {
        let (application, stages) = (self.application()?, [self.stage()]);
        let checked = session.api.commands.check_operation(session.actor, &application, &self.title, &stages);
        let faults = checked.err().into_iter().flatten();
        Ok(faults.map(|error| as_given(self.kind, error).into()).collect())
    }

    fn application(&self) -> Result<String, Refused> {
        names::parse(&self.name).map(|name| name.application).ok_or_else(|| {
            let message = format!("`{}` is no name of the form application[-stack[-detail]]", shown(&self.name));
            Refused::invalid(message, &["name"])
        })
    }

    fn stage(&self) -> StageSpec {
        StageSpec {
            key: self.kind.into(),
            kind: self.kind.into(),
            name: self.title.clone(),
            requires: Vec::new(),
            config: self.config.clone(),
            on_failure: OnFailure::FailPipeline,
            timeout_seconds: None,
            notifications: Vec::new(),
        }
    }
}

/// The one stage and its config are ours: what the caller gave begins below them, and has names of
/// its own.
fn as_given(kind: &str, mut error: commands::Error) -> commands::Error {
    const OURS: [&str; 3] = ["stages", "0", "config"];
    let ours = error.field.iter().zip(OURS).take_while(|(part, own)| part == own).count();
    error.field.drain(..ours);
    if ours == OURS.len()
        && let Some((_, message)) =
            error.message.strip_prefix(&format!("stage `{kind}`: config")).and_then(|rest| rest.split_once(": "))
    {
        error.message = message.to_owned();
    }
    for (unit, long) in [("Ms", "in milliseconds"), ("Seconds", "in seconds")] {
        if let Some(last) = error.field.last_mut()
            && let Some(given) = last.strip_suffix(unit)
        {
            *last = given.to_owned();
            error.message = format!("{long}, {}", error.message);
        }
    }
    error
}

/// The security groups that are neither there nor to be made together with the load balancer.
async fn absent_groups(
    session: &Session<'_>,
    place: &Place,
    names: &[String],
    beside: &[String],
) -> Result<Vec<CommandError>, Refused> {
    let mut faults = Vec::new();
    if session.api.inventory.provider(&place.account).is_err() {
        // That is a fault of its own.
        return Ok(faults);
    }
    for (index, name) in names.iter().enumerate().filter(|(_, name)| !beside.contains(name)) {
        match session.security_group_named(place, name, &["securityGroups", &index.to_string()]).await {
            Ok(_) => {}
            Err(Refused::User(absent)) => faults.extend(absent),
            Err(fault) => return Err(fault),
        }
    }
    Ok(faults)
}
