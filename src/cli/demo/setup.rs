//! What the demo creates over the API before its first deploy: application, security group, load
//! balancer and pipeline.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};

use super::summary::Group;
use crate::cli::client::{Client, Error};

/// The application's name, and so that of its cluster, load balancer and security group.
pub const APPLICATION: &str = "hello";
/// The pipeline's name.
pub const PIPELINE: &str = "deploy hello";
/// Where everything stands.
pub const ACCOUNT: &str = "local";
/// Where everything stands.
pub const LOCATION: &str = "local";

/// The pipeline that looks at the application from outside, after each deploy.
pub const SMOKE: &str = "smoke hello";

/// Follows one execution. Variables: `id`, `after`.
pub const FOLLOW: &str = "
subscription Follow($id: ID!, $after: String) {
  executionEvents(scope: { execution: { id: $id } }, after: $after) {
    __typename
    cursor
    occurredAt
    ... on ExecutionSnapshot { snapshot: execution { ...execution stages { ...stage } } }
    ... on ExecutionChanged { changed: execution { ...execution } }
    ... on StageChanged { stage { ...stage } }
  }
}
fragment execution on Execution { id name number status startedAt endedAt failure { ...failure } }
fragment stage on Stage {
  id parentId name kind status position startedAt endedAt
  progress { completed total unit message updatedAt }
  tasks { name status startedAt endedAt }
  failure { ...failure }
}
fragment failure on Failure { code message hint logTail }";

/// Messages to people. Variables: none.
pub const NOTIFICATIONS: &str = "
subscription Notifications { notifications { notification { occasion subject execution { id } } } }";

const CREATE_APPLICATION: &str = "
mutation CreateApplication($input: CreateApplicationInput!) {
  createApplication(input: $input) { application { id name } userErrors { message field } }
}";

const UPSERT_SECURITY_GROUP: &str = "
mutation UpsertSecurityGroup($input: UpsertSecurityGroupInput!) {
  upsertSecurityGroup(input: $input) { execution { id } userErrors { message field } }
}";

const UPSERT_LOAD_BALANCER: &str = "
mutation UpsertLoadBalancer($input: UpsertLoadBalancerInput!) {
  upsertLoadBalancer(input: $input) { execution { id } userErrors { message field } }
}";

const SAVE_PIPELINE: &str = "
mutation SavePipeline($input: SavePipelineInput!) {
  savePipeline(input: $input) { pipeline { id name } userErrors { message field } }
}";

const START_PIPELINE: &str = "
mutation StartPipeline($input: StartPipelineInput!) {
  startPipeline(input: $input) { execution { id number } isReplay userErrors { message field } }
}";

const SMOKE_RUNS: &str = "
query SmokeRuns($application: String!, $name: String!) {
  pipeline(application: $application, name: $name) {
    executions(first: 100) {
      nodes { id number status trigger { kind reason source { number execution { id } } } }
    }
  }
}";

const LOAD_BALANCER: &str = "
query LoadBalancer($account: String!, $location: String!, $name: String!) {
  loadBalancer(account: $account, location: $location, name: $name) { name urls problem }
}";

const SERVER_GROUPS: &str = "
query ServerGroups($application: String!) {
  application(name: $application) {
    serverGroups(first: 100) { nodes { name isEnabled labels instances { id state } } }
  }
}";

/// Creates the application.
///
/// # Errors
/// When the API refuses.
pub async fn create_application(client: &Client) -> Result<(), Error> {
    let input = json!({
        "name": APPLICATION,
        "description": "A small HTTP server that says which version it is",
    });
    client.mutate(CREATE_APPLICATION, input).await?;
    Ok(())
}

/// Lets this machine in at the ports of the load balancer; the execution that does it.
///
/// # Errors
/// When the API refuses.
pub async fn upsert_security_group(client: &Client, ports: (u16, u16)) -> Result<String, Error> {
    let input = json!({
        "account": ACCOUNT,
        "location": LOCATION,
        "name": APPLICATION,
        "description": "This machine only",
        "inbound": [{ "cidr": "127.0.0.0/8", "protocol": "TCP", "portFrom": ports.0, "portTo": ports.1 }],
    });
    execution_id(&client.mutate(UPSERT_SECURITY_GROUP, input).await?)
}

/// Makes the load balancer; the execution that does it.
///
/// # Errors
/// When the API refuses.
pub async fn upsert_load_balancer(client: &Client, ports: (u16, u16)) -> Result<String, Error> {
    let input = json!({
        "account": ACCOUNT,
        "location": LOCATION,
        "name": APPLICATION,
        "listeners": [{ "address": "127.0.0.1", "port": ports.0, "portTo": ports.1 }],
        "healthCheck": { "protocol": "HTTP", "path": "/health", "interval": "PT0.5S" },
        "securityGroups": [APPLICATION],
        "drain": "PT10S",
    });
    execution_id(&client.mutate(UPSERT_LOAD_BALANCER, input).await?)
}

/// Where the load balancer listens.
///
/// # Errors
/// When it does not, or the API refuses.
pub async fn load_balancer_address(client: &Client) -> Result<SocketAddr, Error> {
    let variables = json!({ "account": ACCOUNT, "location": LOCATION, "name": APPLICATION });
    let data = client.query(LOAD_BALANCER, variables).await?;
    let load_balancer = &data["loadBalancer"];
    let url = load_balancer["urls"][0].as_str().unwrap_or_default();
    let address = url.strip_prefix("http://").and_then(|rest| rest.trim_end_matches('/').parse().ok());
    address.ok_or_else(|| {
        let problem = load_balancer["problem"].as_str().unwrap_or("it has no open listener");
        Error::Broken(format!("load balancer {APPLICATION} does not listen: {problem}"))
    })
}

/// The pipeline *deploy hello*: red/black with three instances, then a check through the load
/// balancer.
#[must_use]
pub fn pipeline(executable: &Path, load_balancer: SocketAddr) -> Value {
    let file = executable.file_name().unwrap_or_default().to_string_lossy();
    json!({
        "description": "Red/black behind the load balancer, then a look at it from outside",
        "parameters": [{ "name": "version", "description": "The version to deploy" }],
        "stages": [
            {
                "key": "deploy",
                "kind": "deploy",
                "name": "Deploy red/black",
                "config": {
                    "clusters": [{
                        "account": ACCOUNT,
                        "location": LOCATION,
                        "strategy": { "kind": "redBlack" },
                        "capacity": { "min": 3, "desired": 3, "max": 3 },
                        "loadBalancers": [APPLICATION],
                        "securityGroups": [APPLICATION],
                        "healthCheck": { "protocol": "HTTP", "path": "/health", "interval": "PT0.5S" },
                        "labels": { "version": "${ parameters.version }" },
                        "launch": {
                            "artifact": { "path": executable },
                            "command": [
                                format!("./{file}"), "sample-app", "--version", "${ parameters.version }",
                                // A little, as real programs do, so that there is something to see.
                                "--start-delay-ms", "1000"
                            ],
                        },
                    }],
                },
            },
            {
                "key": "check",
                "kind": "webhook",
                "name": "Check through the load balancer",
                "requires": ["deploy"],
                "config": {
                    "url": format!("http://{load_balancer}/"),
                    "method": "GET",
                    "expectedStatuses": [200],
                },
            },
        ],
        "notifications": [{ "on": ["STARTED", "COMPLETED", "FAILED"] }],
    })
}

/// The pipeline *smoke hello*: a look through the load balancer from outside, after each end of
/// *deploy hello* and, if `every_minute`, by a timetable too.
#[must_use]
pub fn smoke(load_balancer: SocketAddr, every_minute: bool) -> Value {
    let get = |key: &str, name: &str, path: &str| {
        json!({
            "key": key,
            "kind": "webhook",
            "name": name,
            "config": { "url": format!("http://{load_balancer}{path}"), "method": "GET", "expectedStatuses": [200] },
        })
    };
    let mut triggers = vec![json!({
        "key": "deployed",
        "kind": "pipeline",
        "config": { "application": APPLICATION, "pipeline": PIPELINE },
        "parameters": { "version": "${ trigger.parameters.version }" },
    })];
    if every_minute {
        triggers.push(json!({ "key": "minutely", "kind": "cron", "config": { "expression": "* * * * *" } }));
    }
    json!({
        "description": "A look at the application through its load balancer",
        "parameters": [{ "name": "version", "description": "The version that was deployed", "default": "" }],
        "stages": [
            get("health", "Health through the load balancer", "/health"),
            get("page", "Page through the load balancer", "/"),
        ],
        "triggers": triggers,
    })
}

/// A run of *smoke hello* as the demo looks at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SmokeRun {
    /// The execution's id.
    pub id: String,
    /// Counts from 1 within the pipeline.
    pub number: i64,
    /// As the API names it: `SUCCEEDED`.
    pub status: String,
    /// The kind of trigger that started it; empty where somebody did.
    pub trigger: String,
    /// Why it was started, for people.
    pub reason: String,
    /// The execution of *deploy hello* whose end it was.
    pub after: Option<String>,
}

/// The newest runs of *smoke hello*, the oldest of them first.
///
/// # Errors
/// When the API refuses.
pub async fn smoke_runs(client: &Client) -> Result<Vec<SmokeRun>, Error> {
    let data = client.query(SMOKE_RUNS, json!({ "application": APPLICATION, "name": SMOKE })).await?;
    let nodes = data.pointer("/pipeline/executions/nodes").and_then(Value::as_array).cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let run = |node: &Value| SmokeRun {
        id: text(&node["id"]),
        number: node["number"].as_i64().unwrap_or_default(),
        status: text(&node["status"]),
        trigger: text(&node["trigger"]["kind"]),
        reason: text(&node["trigger"]["reason"]),
        after: node.pointer("/trigger/source/execution/id").and_then(Value::as_str).map(str::to_owned),
    };
    Ok(nodes.iter().rev().map(run).collect())
}

/// The input of `savePipeline`: a definition under a name.
#[must_use]
pub fn saving(name: &str, mut definition: Value) -> Value {
    definition["application"] = json!({ "name": APPLICATION });
    definition["name"] = json!(name);
    definition
}

/// Saves the pipeline.
///
/// # Errors
/// When the API refuses.
pub async fn save_pipeline(client: &Client, definition: Value) -> Result<(), Error> {
    client.mutate(SAVE_PIPELINE, saving(PIPELINE, definition)).await?;
    Ok(())
}

/// Saves *smoke hello*, which needs *deploy hello* to be there.
///
/// # Errors
/// When the API refuses.
pub async fn save_smoke(client: &Client, definition: Value) -> Result<(), Error> {
    client.mutate(SAVE_PIPELINE, saving(SMOKE, definition)).await?;
    Ok(())
}

/// Starts the pipeline; the execution's id.
///
/// # Errors
/// When the API refuses.
pub async fn start_pipeline(client: &Client, version: &str) -> Result<String, Error> {
    let input = json!({
        "pipeline": { "name": { "application": APPLICATION, "name": PIPELINE } },
        "parameters": { "version": version },
        "idempotencyKey": format!("demo-{version}"),
    });
    execution_id(&client.mutate(START_PIPELINE, input).await?)
}

/// The application's server groups, by name.
///
/// # Errors
/// When the API refuses.
pub async fn server_groups(client: &Client) -> Result<Vec<Group>, Error> {
    let data = client.query(SERVER_GROUPS, json!({ "application": APPLICATION })).await?;
    let nodes = data.pointer("/application/serverGroups/nodes").and_then(Value::as_array).cloned().unwrap_or_default();
    let mut groups: Vec<_> = nodes.iter().map(Group::read).collect();
    groups.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(groups)
}

fn execution_id(payload: &Value) -> Result<String, Error> {
    payload["execution"]["id"]
        .as_str()
        .map(str::to_owned)
        .ok_or_else(|| Error::Broken(format!("an operation was accepted without an execution: {payload}")))
}
