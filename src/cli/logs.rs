//! `gennaker logs`: what an execution says, or what instances write.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};

use super::client::{Client, Error};
use super::follow::follow;
use super::remote::{RemoteArgs, Target, answer, fault, print, try_print};
use super::screen::Screen;
use super::view::all_visible;
use super::{Failure, Outcome, block_on};

/// Flags.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  gennaker logs shop/deploy#12            what the execution did, and why it
                                          failed
  gennaker logs shop/deploy#12 --follow   … until it ends
  gennaker logs --server-group shop-v003  the end of what its instances write
  gennaker logs --instance shop-v003-a1b2 --follow
                                          and what it goes on to write, until
                                          Ctrl-C

Lines of an instance begin with its name when there are several. With --follow
a line comes once it is complete or its writer has ended; none is lost and
none comes twice. What was removed meanwhile is told.

JSON: {\"execution\": {… stages, failure}} or {\"instances\": [{name, text}]};
with --follow a line each: {\"instance\", \"line\"} or {\"instance\", \"gap\": true}")]
pub struct Args {
    /// Which execution
    #[arg(value_name = "APP/PIPELINE#N", required_unless_present_any = ["instance", "server_group"])]
    execution: Option<Target>,
    /// An instance; may be repeated
    #[arg(long, value_name = "NAME", conflicts_with = "execution")]
    instance: Vec<String>,
    /// All instances of a server group; may be repeated
    #[arg(long, value_name = "NAME", conflicts_with = "execution")]
    server_group: Vec<String>,
    /// The account of instances and server groups
    #[arg(long, value_name = "NAME", default_value = "local")]
    account: String,
    /// The location of instances and server groups
    #[arg(long, value_name = "NAME", default_value = "local")]
    location: String,
    /// Go on with what comes
    #[arg(long, short)]
    follow: bool,
    /// How much of what was written before, in bytes of each instance
    #[arg(long, value_name = "BYTES", default_value_t = 8192, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    tail: u32,
    #[command(flatten)]
    remote: RemoteArgs,
}

const EXECUTION: &str = "
query Log($application: String!, $pipeline: String, $number: Int!) {
  execution(application: $application, pipeline: $pipeline, number: $number) {
    id name number status startedAt endedAt createdAt
    failure { ...failure }
    stages {
      id parentId key name kind status position startedAt endedAt
      progress { completed total unit message }
      tasks { name status startedAt endedAt }
      failure { ...failure }
    }
    intents { what result message createdAt closedAt }
  }
}
fragment failure on Failure { code message hint cause logTail }";

const GROUP: &str = "
query Group($account: String!, $location: String!, $name: String!) {
  serverGroup(account: $account, location: $location, name: $name) { instances { name } }
}";

const LOG: &str = "
query Part($account: String!, $location: String!, $name: String!, $after: String, $bytes: Int!) {
  instance(account: $account, location: $location, name: $name) {
    log(after: $after, bytes: $bytes) { text cursor isAfterGap hasMore }
  }
}";

/// Also of a line that has no end yet.
const TAIL: &str = "
query Tail($account: String!, $location: String!, $name: String!, $bytes: Int!) {
  instance(account: $account, location: $location, name: $name) { text: logTail(bytes: $bytes) }
}";

/// From one question for new lines to the next.
const EVERY: Duration = Duration::from_millis(500);
/// How long a server that went away is waited for.
const AWAY_MAX: Duration = Duration::from_secs(120);

/// Shows them.
///
/// # Errors
/// When there is no such thing, or the server cannot be reached.
pub fn run(args: Args) -> Outcome {
    block_on(async move {
        let client = args.remote.client()?;
        match &args.execution {
            Some(target) => of_execution(&client, target, &args).await,
            None => of_instances(&client, &args).await,
        }
    })
}

async fn of_execution(client: &Client, target: &Target, args: &Args) -> Outcome {
    target.execution()?;
    let ask = async || {
        let variables = json!({
            "application": target.application, "pipeline": target.pipeline, "number": target.number,
        });
        let mut data = client.query(EXECUTION, variables).await.map_err(fault)?;
        match data["execution"].take() {
            Value::Null => Err(Failure::Input(anyhow::anyhow!("there is no execution {target}"))),
            found => Ok(found),
        }
    };
    let mut execution = ask().await?;
    if args.follow {
        let id = execution["id"].as_str().unwrap_or_default().to_owned();
        let mut screen = if args.remote.json { Screen::silent() } else { Screen::new(true) };
        follow(client, &id, &mut screen).await.map_err(fault)?;
        execution = ask().await?;
    }
    if args.remote.json {
        answer(&json!({ "execution": execution }));
    } else {
        lines_of(&all_visible(&execution), args.follow).iter().for_each(|line| print(line));
    }
    Ok(ExitCode::SUCCESS)
}

/// What happened, in order, then why it failed. What was followed has told the first part already.
fn lines_of(execution: &Value, followed: bool) -> Vec<String> {
    let stages = execution["stages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let names: BTreeMap<_, _> = stages.iter().filter_map(|stage| Some((stage["id"].as_str()?, stage))).collect();
    let path = |stage: &Value| {
        let mut parts = vec![stage["name"].as_str().unwrap_or_default()];
        let mut above = stage["parentId"].as_str().and_then(|id| names.get(id));
        while let Some(parent) = above.filter(|_| parts.len() < 16) {
            parts.push(parent["name"].as_str().unwrap_or_default());
            above = parent["parentId"].as_str().and_then(|id| names.get(id));
        }
        parts.reverse();
        parts.join(" › ")
    };
    let mut told: Vec<(String, String)> = Vec::new();
    let mut tell = |at: &Value, line: String| told.extend(at.as_str().map(|at| (at.to_owned(), line)));
    let name = format!("{} #{}", execution["name"].as_str().unwrap_or_default(), execution["number"]);
    tell(&execution["startedAt"], format!("{name} started"));
    for stage in stages {
        let path = path(stage);
        tell(&stage["startedAt"], format!("{path} started"));
        for task in stage["tasks"].as_array().into_iter().flatten() {
            tell(&task["startedAt"], format!("{path} › {}", task["name"].as_str().unwrap_or_default()));
        }
        let why = stage["failure"]["message"].as_str().map(|why| format!(": {why}")).unwrap_or_default();
        tell(&stage["endedAt"], format!("{path} {}{why}", stage["status"].as_str().unwrap_or_default()));
    }
    for intent in execution["intents"].as_array().into_iter().flatten() {
        let result = intent["result"].as_str().map(|result| format!(" ({result})")).unwrap_or_default();
        tell(&intent["createdAt"], format!("  effect: {}{result}", intent["what"].as_str().unwrap_or_default()));
    }
    tell(&execution["endedAt"], format!("{name} {}", execution["status"].as_str().unwrap_or_default()));
    told.sort_by(|a, b| a.0.cmp(&b.0));
    let mut lines: Vec<_> =
        if followed { Vec::new() } else { told.into_iter().map(|(at, line)| format!("{at}  {line}")).collect() };
    for failed in stages.iter().filter(|stage| stage["failure"].is_object()) {
        let failure = &failed["failure"];
        let field = |name: &str| failure[name].as_str().unwrap_or_default();
        lines.push(format!("{}: {}: {}", path(failed), field("code"), field("message")));
        lines.extend(
            ["hint", "cause"].iter().filter(|name| !field(name).is_empty()).map(|name| format!("  {}", field(name))),
        );
        lines.extend(field("logTail").lines().map(|line| format!("  | {line}")));
    }
    lines
}

async fn of_instances(client: &Client, args: &Args) -> Outcome {
    let mut names = args.instance.clone();
    for group in &args.server_group {
        let data = client.query(GROUP, placed(args, group)).await.map_err(fault)?;
        let Some(instances) = data["serverGroup"]["instances"].as_array() else {
            return Err(Failure::Input(anyhow::anyhow!("there is no server group `{group}`")));
        };
        names.extend(instances.iter().filter_map(|instance| instance["name"].as_str()).map(str::to_owned));
    }
    if names.is_empty() {
        return Err(Failure::Failed(anyhow::anyhow!("the server group has no instances")));
    }
    let mut places: BTreeMap<String, Option<String>> = names.iter().map(|name| (name.clone(), None)).collect();
    let mut texts = Vec::new();
    for name in &names {
        let part = match args.follow {
            true => part(client, args, name, None, args.tail).await,
            false => tail(client, args, name).await,
        };
        let Some(part) = part.map_err(fault)? else {
            return Err(Failure::Input(anyhow::anyhow!("there is no instance `{name}`")));
        };
        places.insert(name.clone(), part["cursor"].as_str().map(str::to_owned));
        let text = part["text"].as_str().unwrap_or_default().to_owned();
        if args.follow || !args.remote.json {
            show(args, name, &text, names.len() > 1);
        }
        texts.push(json!({ "name": name, "text": text }));
    }
    if args.follow {
        return follow_instances(client, args, places).await;
    }
    if args.remote.json {
        answer(&json!({ "instances": texts }));
    }
    Ok(ExitCode::SUCCESS)
}

/// Shows what comes until Ctrl-C, or until no instance is left.
async fn follow_instances(client: &Client, args: &Args, mut places: BTreeMap<String, Option<String>>) -> Outcome {
    let several = places.len() > 1;
    let mut heard = tokio::time::Instant::now();
    let ended = super::asked_to_end();
    tokio::pin!(ended);
    while !places.is_empty() {
        let mut more = false;
        for name in places.keys().cloned().collect::<Vec<_>>() {
            let after = places.get(&name).cloned().flatten();
            match part(client, args, &name, after.as_deref(), 65_536).await {
                Ok(Some(part)) => {
                    heard = tokio::time::Instant::now();
                    if part["isAfterGap"] == true {
                        gap(args, &name);
                    }
                    if !show(args, &name, part["text"].as_str().unwrap_or_default(), several) {
                        return Ok(ExitCode::SUCCESS);
                    }
                    more |= part["hasMore"] == true;
                    places.insert(name, part["cursor"].as_str().map(str::to_owned));
                }
                // It is gone with its log.
                Ok(None) => drop(places.remove(&name)),
                Err(error) if error.code() == Some("NOT_FOUND") => drop(places.remove(&name)),
                Err(error) if error.is_temporary() && heard.elapsed() < AWAY_MAX => {}
                Err(error) => return Err(fault(error)),
            }
        }
        if !more {
            tokio::select! {
                _ = &mut ended => break,
                () = tokio::time::sleep(EVERY) => {}
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn tail(client: &Client, args: &Args, name: &str) -> Result<Option<Value>, Error> {
    let mut variables = placed(args, name);
    variables["bytes"] = json!(args.tail);
    let mut data = client.query(TAIL, variables).await?;
    Ok(Some(data["instance"].take()).filter(Value::is_object))
}

async fn part(
    client: &Client,
    args: &Args,
    name: &str,
    after: Option<&str>,
    bytes: u32,
) -> Result<Option<Value>, Error> {
    let mut variables = placed(args, name);
    variables["after"] = json!(after);
    variables["bytes"] = json!(bytes);
    let mut data = client.query(LOG, variables).await?;
    Ok(data.pointer_mut("/instance/log").map(Value::take).filter(Value::is_object))
}

fn placed(args: &Args, name: &str) -> Value {
    json!({ "account": args.account, "location": args.location, "name": name })
}

/// Whether somebody still reads.
fn show(args: &Args, name: &str, text: &str, several: bool) -> bool {
    text.lines().all(|line| match (args.remote.json, several) {
        (true, _) => try_print(&json!({ "instance": name, "line": line }).to_string()),
        (false, true) => try_print(&format!("{name}  {line}")),
        (false, false) => try_print(line),
    })
}

fn gap(args: &Args, name: &str) {
    if args.remote.json {
        print(&json!({ "instance": name, "gap": true }).to_string());
    } else {
        eprintln!("gennaker: some lines of {name} were removed before they could be shown");
    }
}
