//! `gennaker status`: what runs, what ran last, and how the server groups are.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::client::Client;
use super::remote::{PAGE, RemoteArgs, Target, answer, fault, pages, print};
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

JSON: {\"accounts\", \"applications\", \"running\", \"executions\"},
{\"application\"}, {\"pipeline\"} or {\"execution\"}, as the API has them
(see the queries in client-examples/operations); of a list with more than
1000 items `beyond` says how many are left out")]
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

/// The lists that are shown, each with what is selected of its items. They are asked for by themselves,
/// page by page.
const APPLICATIONS: &str = "name description pipelines(first: 1) { totalCount }";
const GROUPS_IN_SHORT: &str = "name isEnabled healthyCount instanceCount";
const PIPELINES: &str = "name revision updatedAt";
const LOAD_BALANCERS: &str = "name account location urls problem";
const GROUPS: &str = "
  name account location isEnabled healthyCount instanceCount labels problem
  capacity { min desired max }";
/// Items of a list that are shown, at the most.
const LIST_MAX: usize = 1_000;

const APPLICATION: &str = "
query Application($name: String!) {
  application(name: $name) { name description email }
}";

const PIPELINE: &str = "
query Pipeline($application: String!, $name: String!) {
  pipeline(application: $application, name: $name) {
    name revision updatedAt
    definition { description parameters { name description default } stages { key kind name } }
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
                let variables = json!({ "application": application, "name": pipeline });
                let mut data = ask(&client, &args, PIPELINE, variables, "pipeline").await?;
                let executions = Of::Pipeline(application, pipeline).last(&client, &args).await?;
                data["executions"] = executions.connection();
                (json!({ "pipeline": data }), of_pipeline(&data, application, &screen))
            }
            Some(Target { application, .. }) => {
                let mut data = ask(&client, &args, APPLICATION, json!({ "name": application }), "application").await?;
                let of = Of::Application(application);
                for (list, selection) in
                    [("pipelines", PIPELINES), ("loadBalancers", LOAD_BALANCERS), ("serverGroups", GROUPS)]
                {
                    data[list] = of.list(&client, &args, list, selection, LIST_MAX).await?.connection();
                }
                data["executions"] = of.last(&client, &args).await?.connection();
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

/// Whose list.
#[derive(Clone, Copy)]
enum Of<'a> {
    Server,
    Application(&'a str),
    Pipeline(&'a str, &'a str),
}

impl Of<'_> {
    /// Its last executions, as many as are wanted.
    async fn last(self, client: &Client, args: &Args) -> Result<Shown, Failure> {
        let last = self.list(client, args, "executions", "...execution", args.last.into()).await?;
        // That there are more is no surprise.
        Ok(Shown { beyond: 0, ..last })
    }

    /// A list of it: a name, perhaps with a filter.
    async fn list(
        self,
        client: &Client,
        args: &Args,
        list: &str,
        selection: &str,
        most: usize,
    ) -> Result<Shown, Failure> {
        let (field, filter) = list.split_once(' ').map_or((list, ""), |(field, filter)| (field, filter));
        let wanted = format!("{field}({filter} after: $after) {{ {PAGE} nodes {{ {selection} }} }}");
        let fragment = if selection.contains("...execution") { EXECUTION } else { "" };
        let (document, variables, path) = match self {
            Self::Server => (format!("query List($after: String) {{ {wanted} }}"), json!({}), format!("/{field}")),
            Self::Application(name) => (
                format!("query List($name: String!, $after: String) {{ application(name: $name) {{ {wanted} }} }}"),
                json!({ "name": name }),
                format!("/application/{field}"),
            ),
            Self::Pipeline(application, name) => (
                format!(
                    "query List($application: String!, $name: String!, $after: String) {{
                       pipeline(application: $application, name: $name) {{ {wanted} }}
                     }}"
                ),
                json!({ "application": application, "name": name }),
                format!("/pipeline/{field}"),
            ),
        };
        let items = pages(client, &format!("{document}{fragment}"), variables, &path, most).await.map_err(fault)?;
        let shown = |node: &Value| if args.remote.json { node.clone() } else { all_visible(node) };
        Ok(Shown { nodes: items.nodes.iter().map(shown).collect(), beyond: items.beyond })
    }
}

/// A list as it is shown.
struct Shown {
    nodes: Vec<Value>,
    /// How many there are behind them.
    beyond: u64,
}

impl Shown {
    /// As the API has it, with `beyond` where it is not the whole list.
    fn connection(self) -> Value {
        match self.beyond {
            0 => json!({ "nodes": self.nodes }),
            beyond => json!({ "nodes": self.nodes, "beyond": beyond }),
        }
    }
}

/// A line for what is not shown.
fn more(beyond: Option<u64>) -> Option<String> {
    beyond.filter(|beyond| *beyond > 0).map(|beyond| format!("  … and {beyond} more"))
}

/// The answer as it is with --json, and else as a terminal may have it.
async fn query(client: &Client, args: &Args, document: &str, variables: Value) -> Result<Value, Failure> {
    let fragment = if document.contains("...execution") { EXECUTION } else { "" };
    let data = client.query(&format!("{document}{fragment}"), variables).await.map_err(fault)?;
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
    const RUNNING: &str = "executions filter: { statuses: [NOT_STARTED, RUNNING, PAUSED] },";
    let selection = format!("{APPLICATIONS} serverGroups {{ {PAGE} nodes {{ {GROUPS_IN_SHORT} }} }}");
    let mut applications = Of::Server.list(client, args, "applications", &selection, LIST_MAX).await?;
    let accounts = query(client, args, "{ accounts { name problem } }", json!({})).await?["accounts"].take();
    let away = |account: &Value| Some(format!("account {}: {}", text(account, "name"), account["problem"].as_str()?));
    let mut lines: Vec<String> = accounts.as_array().into_iter().flatten().filter_map(away).collect();
    lines.push(screen.paint().bold("Applications"));
    for application in &mut applications.nodes {
        let name = text(application, "name");
        let mut groups = Shown { nodes: nodes(application, "/serverGroups/nodes"), beyond: 0 };
        if application["serverGroups"]["pageInfo"]["hasNextPage"] == true {
            groups = Of::Application(&name).list(client, args, "serverGroups", GROUPS_IN_SHORT, LIST_MAX).await?;
        }
        let enabled: Vec<_> = groups.nodes.iter().filter(|group| group["isEnabled"] == true).collect();
        let sum = |field: &str| enabled.iter().filter_map(|group| group[field].as_i64()).sum::<i64>();
        lines.push(format!(
            "  {name:<24} {:>2} pipelines   {:>2} server groups, {}{} of {} instances in traffic healthy",
            application["pipelines"]["totalCount"],
            groups.nodes.len() as u64 + groups.beyond,
            if groups.beyond > 0 { "at least " } else { "" },
            sum("healthyCount"),
            sum("instanceCount"),
        ));
        application["serverGroups"] = groups.connection();
    }
    if applications.nodes.is_empty() {
        lines.push("  none; `gennaker apply -f FILE` makes one".to_owned());
    }
    lines.extend(more(Some(applications.beyond)));
    let running = Of::Server.list(client, args, RUNNING, "...execution", LIST_MAX).await?;
    lines.extend(executions("Running", &running.nodes, screen));
    lines.extend(more(Some(running.beyond)));
    let last = Of::Server.last(client, args).await?;
    lines.extend(executions("Last", &last.nodes, screen));
    let mut beyond = serde_json::Map::new();
    for (list, count) in [("applications", applications.beyond), ("running", running.beyond)] {
        if count > 0 {
            beyond.insert(list.to_owned(), count.into());
        }
    }
    let mut document = json!({ "accounts": accounts, "applications": applications.nodes, "running": running.nodes,
            "executions": last.nodes });
    if !beyond.is_empty() {
        document["beyond"] = beyond.into();
    }
    Ok((document, lines))
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
    lines.extend(more(data["loadBalancers"]["beyond"].as_u64()));
    let groups = nodes(data, "/serverGroups/nodes");
    if !groups.is_empty() {
        lines.push(screen.paint().bold("Server groups"));
    }
    for group in &groups {
        // A group out of traffic is not asked for its health.
        let state = match group["isEnabled"] == true {
            true => format!("enabled   {} of {} healthy", group["healthyCount"], group["instanceCount"]),
            false => format!("disabled  {} instances, out of traffic", group["instanceCount"]),
        };
        let labels: Vec<_> = group["labels"].as_object().into_iter().flatten().map(|(k, v)| pair(k, v)).collect();
        let problem = group["problem"].as_str().map(|problem| format!("  {problem}")).unwrap_or_default();
        lines.push(format!("  {:<24} {state}  {}{problem}", text(group, "name"), labels.join(" "),));
    }
    lines.extend(more(data["serverGroups"]["beyond"].as_u64()));
    lines.push(screen.paint().bold("Pipelines"));
    for pipeline in nodes(data, "/pipelines/nodes") {
        lines.push(format!("  {:<24} revision {}", text(&pipeline, "name"), pipeline["revision"]));
    }
    lines.extend(more(data["pipelines"]["beyond"].as_u64()));
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
