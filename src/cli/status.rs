//! `gennaker status`: what runs, what ran last, and how the server groups are.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::client::Client;
use super::remote::{RemoteArgs, Target, answer, fault, print};
use super::screen::Screen;
use super::view::{Tree, all_visible};
use super::{Failure, Outcome, block_on};
use crate::clock::Clock;

/// Flags.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  gennaker status                  all applications, and what runs
  gennaker status shop             its pipelines, executions, load balancers
                                   and server groups
  gennaker status shop/deploy      the pipeline's last executions
  gennaker status shop/deploy#12   the tree of one execution

Exit status: 0 when it could be asked, whatever the answer says; 1 failed; 2
no such thing, or the token does not hold; 5 the server cannot be reached, or
cannot work now.

JSON: {\"applications\", \"executions\"}, {\"application\"}, {\"pipeline\"} or
{\"execution\"}, as the API has them (see the queries in
client-examples/operations)")]
pub struct Args {
    /// What to look at
    #[arg(value_name = "APP[/PIPELINE[#N]]")]
    target: Option<Target>,
    /// How many executions, the newest first
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u8).range(1..=100))]
    last: u8,
    #[command(flatten)]
    remote: RemoteArgs,
}

const EXECUTION: &str = "
fragment execution on Execution {
  id applicationName name kind number status startedByName createdAt startedAt endedAt elapsed
  failure { code message hint }
}";

const OVERVIEW: &str = "
query Overview($last: Int!) {
  applications(first: 100) {
    nodes {
      name description
      pipelines(first: 100) { totalCount }
      serverGroups(first: 50) { nodes { name isEnabled healthyCount instanceCount } }
    }
  }
  running: executions(filter: { statuses: [NOT_STARTED, RUNNING, PAUSED] }, first: 100) { nodes { ...execution } }
  executions(first: $last) { nodes { ...execution } }
}";

const APPLICATION: &str = "
query Application($name: String!, $last: Int!) {
  application(name: $name) {
    name description email
    pipelines(first: 100) { nodes { name revision updatedAt } }
    executions(first: $last) { nodes { ...execution } }
    loadBalancers(first: 50) { nodes { name account location urls problem } }
    serverGroups(first: 50) {
      nodes {
        name account location isEnabled healthyCount instanceCount labels problem
        capacity { min desired max }
      }
    }
  }
}";

const PIPELINE: &str = "
query Pipeline($application: String!, $name: String!, $last: Int!) {
  pipeline(application: $application, name: $name) {
    name revision updatedAt
    definition { description parameters { name description default } stages { key kind name } }
    executions(first: $last) { nodes { ...execution } }
  }
}";

const ONE: &str = "
query One($application: String!, $pipeline: String, $number: Int!) {
  execution(application: $application, pipeline: $pipeline, number: $number) {
    ...execution
    parameters
    url
    cancellation { byName at reason mode }
    stages {
      id parentId key name kind status position startedAt endedAt waitsFor
      progress { completed total unit message }
      tasks { name status startedAt endedAt }
      failure { code message hint logTail }
    }
  }
}";

/// Asks and shows.
///
/// # Errors
/// When there is no such thing, or the server cannot be reached.
pub fn run(args: Args) -> Outcome {
    block_on(async move {
        let client = args.remote.client()?;
        let screen = Screen::new(false);
        let (document, lines) = match &args.target {
            None => overview(&client, &args, &screen).await?,
            Some(Target { pipeline: _, number: Some(_), .. }) => one(&client, &args, &screen).await?,
            Some(Target { pipeline: Some(pipeline), application, .. }) => {
                let variables = json!({ "application": application, "name": pipeline, "last": args.last });
                let data = ask(&client, &args, PIPELINE, variables, "pipeline").await?;
                (json!({ "pipeline": data }), of_pipeline(&data, application, &screen))
            }
            Some(Target { application, .. }) => {
                let variables = json!({ "name": application, "last": args.last });
                let data = ask(&client, &args, APPLICATION, variables, "application").await?;
                (json!({ "application": data }), of_application(&data, &screen))
            }
        };
        if args.remote.json {
            answer(&document);
        } else {
            lines.iter().for_each(|line| print(line));
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// The answer as it is with --json, and else as a terminal may have it.
async fn query(client: &Client, args: &Args, document: &str, variables: Value) -> Result<Value, Failure> {
    let data = client.query(&format!("{document}{EXECUTION}"), variables).await.map_err(fault)?;
    Ok(if args.remote.json { data } else { all_visible(&data) })
}

async fn ask(client: &Client, args: &Args, document: &str, variables: Value, field: &str) -> Result<Value, Failure> {
    let mut data = query(client, args, document, variables).await?;
    match data[field].take() {
        Value::Null => Err(Failure::Input(anyhow::anyhow!("the server has no such {field}"))),
        found => Ok(found),
    }
}

async fn overview(client: &Client, args: &Args, screen: &Screen) -> Result<(Value, Vec<String>), Failure> {
    let data = query(client, args, OVERVIEW, json!({ "last": args.last })).await?;
    let applications = nodes(&data, "/applications/nodes");
    let mut lines = vec![screen.paint().bold("Applications")];
    for application in &applications {
        let groups = nodes(application, "/serverGroups/nodes");
        let enabled: Vec<_> = groups.iter().filter(|group| group["isEnabled"] == true).collect();
        let sum = |field: &str| enabled.iter().filter_map(|group| group[field].as_i64()).sum::<i64>();
        lines.push(format!(
            "  {:<24} {:>2} pipelines   {:>2} server groups, {} of {} instances in traffic healthy",
            text(application, "name"),
            application["pipelines"]["totalCount"],
            groups.len(),
            sum("healthyCount"),
            sum("instanceCount"),
        ));
    }
    if applications.is_empty() {
        lines.push("  none; `gennaker apply -f FILE` makes one".to_owned());
    }
    let running = nodes(&data, "/running/nodes");
    lines.extend(executions("Running", &running, screen));
    let last = nodes(&data, "/executions/nodes");
    lines.extend(executions("Last", &last, screen));
    Ok((json!({ "applications": applications, "running": running, "executions": last }), lines))
}

fn of_application(data: &Value, screen: &Screen) -> Vec<String> {
    let mut lines = vec![format!("{}  {}", screen.paint().bold(&text(data, "name")), text(data, "description"))];
    let balancers = nodes(data, "/loadBalancers/nodes");
    if !balancers.is_empty() {
        lines.push(screen.paint().bold("Load balancers"));
    }
    for balancer in &balancers {
        let urls: Vec<_> = balancer["urls"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let problem = balancer["problem"].as_str().map(|problem| format!("  {problem}")).unwrap_or_default();
        lines.push(format!("  {:<24} {}{problem}", text(balancer, "name"), urls.join(" ")));
    }
    let groups = nodes(data, "/serverGroups/nodes");
    if !groups.is_empty() {
        lines.push(screen.paint().bold("Server groups"));
    }
    for group in &groups {
        let traffic = if group["isEnabled"] == true { "enabled " } else { "disabled" };
        let labels: Vec<_> = group["labels"].as_object().into_iter().flatten().map(|(k, v)| pair(k, v)).collect();
        let problem = group["problem"].as_str().map(|problem| format!("  {problem}")).unwrap_or_default();
        lines.push(format!(
            "  {:<24} {traffic}  {} of {} healthy  {}{problem}",
            text(group, "name"),
            group["healthyCount"],
            group["instanceCount"],
            labels.join(" "),
        ));
    }
    lines.push(screen.paint().bold("Pipelines"));
    for pipeline in nodes(data, "/pipelines/nodes") {
        lines.push(format!("  {:<24} revision {}", text(&pipeline, "name"), pipeline["revision"]));
    }
    lines.extend(executions("Last", &nodes(data, "/executions/nodes"), screen));
    lines
}

fn of_pipeline(data: &Value, application: &str, screen: &Screen) -> Vec<String> {
    let title = screen.paint().bold(&format!("{application}/{}", text(data, "name")));
    let mut lines = vec![format!("{title}  revision {}", data["revision"])];
    let description = data["definition"]["description"].as_str().unwrap_or_default();
    lines.extend((!description.is_empty()).then(|| format!("  {description}")));
    for parameter in nodes(data, "/definition/parameters") {
        let default = match &parameter["default"] {
            Value::Null => "required".to_owned(),
            default => format!("{default} when absent"),
        };
        lines.push(format!("  -p {}=…  {} ({default})", text(&parameter, "name"), text(&parameter, "description")));
    }
    lines.extend(executions("Last", &nodes(data, "/executions/nodes"), screen));
    lines
}

async fn one(client: &Client, args: &Args, screen: &Screen) -> Result<(Value, Vec<String>), Failure> {
    let Some(target) = &args.target else { return Ok((Value::Null, Vec::new())) };
    let variables = json!({
        "application": target.application, "pipeline": target.pipeline, "number": target.number,
    });
    let data = ask(client, args, ONE, variables, "execution").await?;
    let mut tree = Tree::default();
    tree.apply(&json!({ "snapshot": data }));
    let mut lines = tree.draw(Clock::system().now(), screen.paint());
    for stage in nodes(&data, "/stages").iter().filter(|stage| stage["waitsFor"] == "judge") {
        lines.push(format!("  `{}` waits for a person: gennaker approve '{target}'", text(stage, "key")));
    }
    if let Some(failure) = tree.failure() {
        lines.push(screen.paint().with("31", &format!("  {}: {}", failure.code, failure.message)));
        lines.extend(failure.hint.iter().map(|hint| format!("  {hint}")));
    }
    Ok((json!({ "execution": data }), lines))
}

fn executions(title: &str, rows: &[Value], screen: &Screen) -> Vec<String> {
    let mut lines = Vec::new();
    if !rows.is_empty() {
        lines.push(screen.paint().bold(title));
    }
    for row in rows {
        let separator = if row["kind"] == "OPERATION" { ": " } else { "/" };
        let name = format!("{}{separator}{} #{}", text(row, "applicationName"), text(row, "name"), row["number"]);
        let status = text(row, "status");
        let colour = match status.as_str() {
            "SUCCEEDED" => "32",
            "FAILED" | "CANCELED" | "STOPPED" => "31",
            _ => "33",
        };
        let failure = row["failure"]["message"].as_str().map(|why| format!("  {why}")).unwrap_or_default();
        let status = screen.paint().with(colour, &format!("{status:<11}"));
        lines.push(format!("  {name:<40} {status} by {}{failure}", text(row, "startedByName")));
    }
    lines
}

fn nodes(value: &Value, path: &str) -> Vec<Value> {
    value.pointer(path).and_then(Value::as_array).cloned().unwrap_or_default()
}

fn text(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap_or_default().to_owned()
}

fn pair(key: &str, value: &Value) -> String {
    value.as_str().map_or_else(|| format!("{key}={value}"), |text| format!("{key}={text}"))
}
