//! `gennaker approve`, `reject` and `cancel`: a person's word to an execution that runs.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::client::Client;
use super::remote::{RemoteArgs, Target, answer, fault, print};
use super::view::visible;
use super::{Failure, Outcome, block_on};

/// Flags.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  gennaker approve shop/deploy#12
  gennaker approve shop/deploy#12 --stage go-live --input 'all regions' \\
      --comment 'looks good'

JSON: {\"execution\": {id, status}, \"stage\": KEY, \"proceed\": true}")]
pub struct ApproveArgs {
    // Before what is flattened: arguments behind it would stand under the last heading in it.
    /// The answer, where the stage offers several
    #[arg(long, value_name = "ANSWER")]
    input: Option<String>,
    #[command(flatten)]
    judge: JudgeArgs,
}

/// Flags.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  gennaker reject shop/deploy#12 --comment 'error rate is up'

JSON: {\"execution\": {id, status}, \"stage\": KEY, \"proceed\": false}")]
pub struct RejectArgs {
    #[command(flatten)]
    judge: JudgeArgs,
}

#[derive(Debug, clap::Args)]
struct JudgeArgs {
    /// Which execution
    #[arg(value_name = "APP/PIPELINE#N")]
    execution: Target,
    /// The stage's key; needed where several wait
    #[arg(long, value_name = "KEY")]
    stage: Option<String>,
    /// Why; shown to everyone
    #[arg(long, value_name = "TEXT")]
    comment: Option<String>,
    #[command(flatten)]
    remote: RemoteArgs,
}

/// Flags.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  gennaker cancel shop/deploy#12 --reason 'wrong version'
  gennaker cancel shop/deploy#12 --leave        leaves what was begun as it is

Cancelling brings back what was there before, as part of the execution; follow
it with `gennaker logs`.

JSON: {\"execution\": {id, status, cancellation}}")]
pub struct CancelArgs {
    /// Which execution; APP#N is an operation
    #[arg(value_name = "APP/PIPELINE#N")]
    execution: Target,
    /// Why; shown to everyone
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Leave what was begun as it is, instead of bringing back what was there
    #[arg(long)]
    leave: bool,
    #[command(flatten)]
    remote: RemoteArgs,
}

const WAITING: &str = "
query Waiting($application: String!, $pipeline: String, $number: Int!) {
  execution(application: $application, pipeline: $pipeline, number: $number) {
    id status
    stages { id key name waitsFor }
  }
}";

const JUDGE: &str = "
mutation Judge($input: JudgeStageInput!) {
  judgeStage(input: $input) { execution { id status } userErrors { code message field } }
}";

const CANCEL: &str = "
mutation Cancel($input: CancelExecutionInput!) {
  cancelExecution(input: $input) {
    execution { id status cancellation { byName at reason mode } }
    userErrors { code message field }
  }
}";

/// Lets a stage go on.
///
/// # Errors
/// When no stage waits, several do and none is named, or the server refuses.
pub fn approve(args: ApproveArgs) -> Outcome {
    block_on(judge(args.judge, true, args.input))
}

/// Stops a stage.
///
/// # Errors
/// As [`approve`].
pub fn reject(args: RejectArgs) -> Outcome {
    block_on(judge(args.judge, false, None))
}

async fn judge(args: JudgeArgs, proceed: bool, input: Option<String>) -> Outcome {
    let client = args.remote.client()?;
    args.execution.execution()?;
    let (id, key) = waiting(&client, &args).await?;
    let input = json!({ "stage": { "id": id }, "proceed": proceed, "input": input, "comment": args.comment });
    let judged = client.mutate(JUDGE, input).await.map_err(fault)?;
    if args.remote.json {
        answer(&json!({ "execution": judged["execution"], "stage": key, "proceed": proceed }));
    } else {
        let word = if proceed { "goes on" } else { "is stopped" };
        print(&visible(&format!("{}: stage `{key}` {word}", args.execution)));
    }
    Ok(ExitCode::SUCCESS)
}

/// The id and key of the stage that waits for a person.
async fn waiting(client: &Client, args: &JudgeArgs) -> Result<(String, String), Failure> {
    let Target { application, pipeline, number } = &args.execution;
    let variables = json!({ "application": application, "pipeline": pipeline, "number": number });
    let data = client.query(WAITING, variables).await.map_err(fault)?;
    let execution = &data["execution"];
    if execution.is_null() {
        return Err(Failure::Input(anyhow::anyhow!("there is no execution {}", args.execution)));
    }
    let text = |stage: &Value, key: &str| stage[key].as_str().unwrap_or_default().to_owned();
    let stages = execution["stages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let waits: Vec<_> = stages
        .iter()
        .filter(|stage| stage["waitsFor"] == "judge")
        .map(|stage| (text(stage, "id"), text(stage, "key")))
        .collect();
    let keys = waits.iter().map(|(_, key)| format!("`{key}`")).collect::<Vec<_>>().join(", ");
    match (&args.stage, waits.as_slice()) {
        (Some(wanted), _) => waits.iter().find(|(_, key)| key == wanted).cloned().ok_or_else(|| {
            let others = if keys.is_empty() { "no stage waits".to_owned() } else { format!("waiting: {keys}") };
            Failure::Input(anyhow::anyhow!("no stage `{wanted}` of {} waits for a person; {others}", args.execution))
        }),
        (None, [one]) => Ok(one.clone()),
        (None, []) => Err(Failure::Input(anyhow::anyhow!(
            "no stage of {} waits for a person; it is {}",
            args.execution,
            execution["status"].as_str().unwrap_or("unknown")
        ))),
        (None, _) => Err(Failure::Input(anyhow::anyhow!("several stages wait: {keys}; choose one with --stage"))),
    }
}

/// Ends an execution early.
///
/// # Errors
/// When the server refuses.
pub fn cancel(args: CancelArgs) -> Outcome {
    block_on(async move {
        let mode = if args.leave { "LEAVE" } else { "UNWIND" };
        let input = json!({ "execution": args.execution.execution()?, "reason": args.reason, "mode": mode });
        let cancelled = args.remote.client()?.mutate(CANCEL, input).await.map_err(fault)?;
        if args.remote.json {
            answer(&json!({ "execution": cancelled["execution"] }));
        } else {
            let what = if args.leave { "what was begun is left" } else { "what was there is brought back" };
            print(&format!("{} is being cancelled; {what}", args.execution));
        }
        Ok(ExitCode::SUCCESS)
    })
}
