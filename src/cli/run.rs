//! `gennaker run`: starts a pipeline, and follows it to its end.

use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::client::{Client, Error};
use super::follow::follow;
use super::remote::{RemoteArgs, Target, answer, fault, print, span, warn};
use super::screen::Screen;
use super::view::{Tree, visible};
use super::{Failure, Outcome, block_on};
use crate::model::Status;

/// Flags.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  gennaker run shop/deploy -p version=1.2.0 --wait
  gennaker run shop/deploy -p version=1.2.0 -p replicas:=3 --wait \\
      --timeout 30m --cancel-on-timeout
  gennaker run shop/deploy --idempotency-key build-4711 --json

Exit status: 0 succeeded (without --wait: started), 1 failed, 2 bad input
(also a token that does not hold), 3 cancelled, 4 timed out, 5 the server
cannot be reached, or cannot work now: with --wait after two minutes in which
it was away. Then, and after Ctrl-C (130), what was started goes on.

JSON: {\"execution\": {id, number, name, application, status, url, failure},
       \"isReplay\": BOOL}")]
pub struct Args {
    /// Which pipeline
    #[arg(value_name = "APP/PIPELINE")]
    pipeline: Target,
    /// A parameter: NAME=TEXT, or NAME:=JSON for what is not a text; may be repeated
    #[arg(short, long = "parameter", value_name = "NAME=VALUE", value_parser = parameter)]
    parameters: Vec<(String, Value)>,
    /// Show the execution until it has ended; the exit code says how
    #[arg(long)]
    wait: bool,
    /// Wait no longer than this: 90s, 30m, 2h
    #[arg(long, value_name = "TIME", value_parser = span, requires = "wait")]
    timeout: Option<Duration>,
    /// Cancel the execution when the timeout is over
    #[arg(long, requires = "timeout")]
    cancel_on_timeout: bool,
    /// The same key again finds the same execution instead of starting another; 1 to 128 characters
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Plain lines even on a terminal
    #[arg(long)]
    plain: bool,
    #[command(flatten)]
    remote: RemoteArgs,
}

const START: &str = "
mutation Start($input: StartPipelineInput!) {
  startPipeline(input: $input) {
    execution { id number name applicationName status url }
    isReplay
    userErrors { code message field }
  }
}";

const CANCEL: &str = "
mutation Cancel($input: CancelExecutionInput!) {
  cancelExecution(input: $input) { execution { id status } userErrors { code message field } }
}";

const LOOK: &str = "
query Look($id: ID!) {
  node(id: $id) {
    ... on Execution {
      id number name applicationName status url
      failure { code message hint logTail }
    }
  }
}";

fn parameter(text: &str) -> Result<(String, Value), String> {
    let equals = text.find('=').ok_or("write NAME=TEXT or NAME:=JSON")?;
    let value = &text[equals + 1..];
    let (name, value) = match text[..equals].strip_suffix(':') {
        Some(name) => {
            let value = serde_json::from_str(value)
                .map_err(|error| format!("the value of `{name}` is not JSON ({error}); a plain text goes with `=`"))?;
            (name, value)
        }
        None => (&text[..equals], Value::from(value)),
    };
    if name.is_empty() { Err("a parameter has a name".to_owned()) } else { Ok((name.to_owned(), value)) }
}

/// Starts it.
///
/// # Errors
/// When the server refuses or cannot be reached.
pub fn run(args: Args) -> Outcome {
    block_on(start(args))
}

async fn start(args: Args) -> Outcome {
    let Some(pipeline) = args.pipeline.pipeline.clone().filter(|_| args.pipeline.number.is_none()) else {
        return Err(Failure::Input(anyhow::anyhow!(
            "`{}` names no pipeline; write APPLICATION/PIPELINE",
            args.pipeline
        )));
    };
    let mut parameters = Map::new();
    for (name, value) in &args.parameters {
        if parameters.insert(name.clone(), value.clone()).is_some() {
            return Err(Failure::Input(anyhow::anyhow!("parameter `{name}` is given twice")));
        }
    }
    let client = args.remote.client()?;
    let input = json!({
        "pipeline": { "name": { "application": args.pipeline.application, "name": pipeline } },
        "parameters": parameters,
        "idempotencyKey": args.idempotency_key,
    });
    let started = client.mutate(START, input).await.map_err(fault)?;
    let execution = &started["execution"];
    let name = format!("{}#{}", args.pipeline, execution["number"]);
    if !args.wait {
        if args.remote.json {
            answer(&json!({ "execution": shown(execution), "isReplay": started["isReplay"] }));
        } else {
            let again = if started["isReplay"] == true { "had been started already" } else { "started" };
            print(&visible(&format!("{name} {again}  {}", execution["url"].as_str().unwrap_or_default())));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let id = execution["id"].as_str().unwrap_or_default();
    let end = wait(&args, &client, id, &name).await?;
    let ended = match client.query(LOOK, json!({ "id": id })).await {
        Ok(ended) => ended,
        // What is known already is said all the same: that it took too long.
        Err(error) if matches!(end, End::TimedOut) => {
            warn(&format!("how it stands cannot be asked: {error}"));
            json!({ "node": execution })
        }
        Err(error) => return Err(lost(error, &name)),
    };
    if args.remote.json {
        let mut document = json!({ "execution": shown(&ended["node"]), "isReplay": started["isReplay"] });
        if matches!(end, End::TimedOut) {
            document["timedOut"] = true.into();
        }
        answer(&document);
    }
    Ok(ExitCode::from(match end {
        End::Ended(Status::Succeeded) => 0,
        End::Ended(Status::Canceled) => 3,
        End::Ended(_) => 1,
        End::TimedOut => 4,
        // As a shell says it of what was ended by Ctrl-C.
        End::Left => 130,
    }))
}

enum End {
    Ended(Status),
    TimedOut,
    Left,
}

async fn wait(args: &Args, client: &Client, id: &str, name: &str) -> Result<End, Failure> {
    // With --json, standard output is the answer's alone.
    let mut screen = if args.remote.json { Screen::silent() } else { Screen::new(args.plain) };
    let late = async {
        match args.timeout {
            Some(timeout) => tokio::time::sleep(timeout).await,
            None => std::future::pending().await,
        }
    };
    let watched = tokio::select! {
        tree = follow(client, id, &mut screen) => Some(tree.map_err(|error| lost(error, name))?),
        () = late => None,
        _ = super::asked_to_end() => {
            screen.keep();
            eprintln!("gennaker: {name} goes on. To end it: gennaker cancel '{name}'");
            return Ok(End::Left);
        }
    };
    screen.keep();
    match watched.as_ref().map(|tree| (tree, tree.ended())) {
        Some((tree, Some(status))) => {
            tell(tree, &mut screen);
            Ok(End::Ended(status))
        }
        Some((_, None)) => Err(Failure::Failed(anyhow::anyhow!("the server ended the feed of {name} before its end"))),
        None => {
            let waited = args.timeout.unwrap_or_default();
            if args.cancel_on_timeout {
                let reason = format!("not over within {waited:?}");
                let input = json!({ "execution": { "id": id }, "reason": reason });
                match client.mutate(CANCEL, input).await {
                    Ok(_) => eprintln!("gennaker: {name} is not over within {waited:?}; it is being cancelled"),
                    Err(error) => {
                        warn(&format!("{name} is not over within {waited:?}, and cannot be cancelled: {error}"));
                    }
                }
            } else {
                eprintln!(
                    "gennaker: {name} is not over within {waited:?}, and goes on. To end it: gennaker cancel '{name}'"
                );
            }
            Ok(End::TimedOut)
        }
    }
}

/// It was started, and how it goes cannot be seen.
fn lost(error: Error, name: &str) -> Failure {
    match fault(error) {
        Failure::Away(error) => Failure::Away(error.context(format!(
            "{name} was started and may go on; `gennaker status '{name}'` shows it when the server is back"
        ))),
        other => other,
    }
}

/// Why it failed, in full.
fn tell(tree: &Tree, screen: &mut Screen) {
    let Some(failure) = tree.failure() else { return };
    screen.line("");
    screen.line(&screen.paint().with("31", &format!("{}: {}", failure.code, failure.message)));
    if let Some(hint) = &failure.hint {
        screen.line(&format!("  {hint}"));
    }
    for line in failure.log_tail.iter().flat_map(|log| log.lines()) {
        screen.line(&screen.paint().dim(&format!("  | {line}")));
    }
}

fn shown(execution: &Value) -> Value {
    json!({
        "id": execution["id"],
        "number": execution["number"],
        "name": execution["name"],
        "application": execution["applicationName"],
        "status": execution["status"],
        "url": execution["url"],
        "failure": execution.get("failure").cloned().unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_texts_or_json() {
        assert_eq!(parameter("version=1.0"), Ok(("version".into(), json!("1.0"))));
        assert_eq!(parameter("a:=[1, true]"), Ok(("a".into(), json!([1, true]))));
        assert_eq!(parameter("text=x:=y"), Ok(("text".into(), json!("x:=y"))));
        for text in ["x", "=1", ":=1", "x:=y"] {
            assert!(parameter(text).is_err(), "{text}");
        }
    }
}
