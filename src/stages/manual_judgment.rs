//! Waits for a person's word: go on, or stop.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::schema;
use crate::engine::contract::{Cause, Next, Stage, StepContext, StepError};
use crate::model::Judgment;

pub(super) struct ManualJudgment;

/// The signal by which the word comes.
const SIGNAL: &str = Judgment::SIGNAL;
/// Where the pipeline says nothing: three days, and the minute by which the wait ends before.
const TIMEOUT: Duration = Duration::from_secs(3 * 24 * 60 * 60 + 60);

#[derive(Deserialize)]
pub(super) struct Config {
    #[serde(default)]
    instructions: String,
    #[serde(default)]
    inputs: Vec<String>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(tag = "at", rename_all = "camelCase")]
pub(super) enum Cursor {
    /// The question is not asked yet.
    #[default]
    Ask,
    Waiting {
        until: DateTime<Utc>,
    },
}

/// The word that woke this step, if there was one.
fn told(cx: &StepContext) -> Result<Option<Judgment>, StepError> {
    let Some(payload) = cx.signal() else { return Ok(None) };
    let judgment = Judgment::deserialize(payload).map_err(|error| {
        StepError::Fail(Cause::new("INVALID", "the judgment that came is not readable").because(error))
    })?;
    Ok(Some(judgment))
}

/// The failure of a stage that was told to stop.
fn stopped(judgment: &Judgment) -> StepError {
    let comment = match judgment.comment.as_deref().map(str::trim) {
        Some(comment) if !comment.is_empty() => format!(": {comment}"),
        _ => String::new(),
    };
    let by = if judgment.by.is_empty() { "somebody" } else { &judgment.by };
    StepError::Fail(
        Cause::new("JUDGMENT_STOPPED", format!("{by} decided to stop{comment}"))
            .hint("start the pipeline again once what stood against it is settled"),
    )
}

impl Stage for ManualJudgment {
    const KIND: &'static str = "manualJudgment";
    const TITLE: &'static str = "Manual judgment";
    const DESCRIPTION: &'static str =
        "Waits until a person says whether to go on or to stop, for three days unless the stage has another timeout.";
    const TIMEOUT: Duration = TIMEOUT;
    const SIGNALS: &'static [&'static str] = &[SIGNAL];
    type Config = Config;
    type Cursor = Cursor;

    fn schema(&self) -> Value {
        schema::object(
            json!({
                "instructions": {
                    "type": "string", "maxLength": 10_000, "default": "",
                    "description": "What the person should look at before deciding."
                },
                "inputs": {
                    "type": "array",
                    "items": {"type": "string", "minLength": 1, "maxLength": 200},
                    "maxItems": 50, "uniqueItems": true, "default": [],
                    "description": "Answers to choose one from when going on; later stages read it as `outputs.input`."
                }
            }),
            &[],
        )
    }
    fn example(&self) -> Value {
        json!({"instructions": "Look at the error rate of the new version.", "inputs": ["all regions", "one region"]})
    }
    fn tasks(&self, _: &Config) -> Vec<&'static str> {
        vec!["Wait for judgment"]
    }
    fn task(&self, _: &Cursor) -> usize {
        0
    }

    async fn step(&self, cx: &StepContext, config: &Config, cursor: Cursor) -> Result<Next<Cursor>, StepError> {
        let asked = if config.instructions.is_empty() { "waiting for a judgment" } else { &config.instructions };
        let until = match cursor {
            Cursor::Ask => {
                let until = patience_until(cx);
                cx.progress(0, 1, "judgments", asked);
                return Ok(wait(cx, until));
            }
            Cursor::Waiting { until } => until,
        };
        let Some(judgment) = told(cx)? else {
            if cx.timed_out() || cx.now() >= until {
                return Err(StepError::Fail(
                    Cause::new("JUDGMENT_TIMED_OUT", "nobody has decided in time")
                        .hint("start the pipeline again, or give the stage a longer timeout"),
                ));
            }
            return Ok(wait(cx, until));
        };
        if !judgment.proceed {
            // Who decided is told by the outputs, also where the stage fails by it.
            for (key, value) in judgment.outputs() {
                cx.output(&key, value);
            }
            return Err(stopped(&judgment));
        }
        let fits =
            config.inputs.is_empty() || judgment.input.as_ref().is_some_and(|input| config.inputs.contains(input));
        if !fits {
            let given = judgment.input.as_deref().unwrap_or_default();
            let message = format!("`{given}` is not one of the answers ({}); {asked}", config.inputs.join(", "));
            cx.progress(0, 1, "judgments", message);
            return Ok(wait(cx, until));
        }
        cx.progress(1, 1, "judgments", format!("{} decided to go on", judgment.by));
        Ok(Next::Done(Value::Object(judgment.outputs())))
    }
}

/// Until when a person's word is waited for: a moment before the stage's own deadline, since this
/// end says more than that one. A hundredth of the time, from a second to a minute.
fn patience_until(cx: &StepContext) -> DateTime<Utc> {
    let now = cx.now();
    let deadline = cx.stage().deadline.unwrap_or_else(|| now + TimeDelta::from_std(TIMEOUT).unwrap_or(TimeDelta::MAX));
    let moment = ((deadline - now) / 100).clamp(TimeDelta::seconds(1), TimeDelta::minutes(1));
    deadline - moment
}

fn wait(cx: &StepContext, until: DateTime<Utc>) -> Next<Cursor> {
    let timeout = (until - cx.now()).to_std().unwrap_or_default();
    Next::Wait { cursor: Cursor::Waiting { until }, signal: SIGNAL, timeout }
}
