//! What a step's outcome does to its stage.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Map, Value};

use super::children::{add_children, plan, unknown_kind};
use super::decision::finish;
use super::tasks::sync_tasks;
use super::{Changes, JUDGE, STAGES_MAX, Setting, cut, cut_front, delta, fail};
use crate::engine::contract::{Cause, NOT_MADE, Next, StepError};
use crate::engine::decide::failure;
use crate::engine::notices;
use crate::engine::timers::retry_delay;
use crate::model::{Execution, Failure, IntentId, Occasion, Phase, Progress, Stage, StageId, Status, Wake};
use crate::store::IntentOutcome;

/// Failed tries of one step after which the stage fails.
const RETRIES_MAX: i32 = 10;
/// The unit of the progress of a step that is tried again.
const ATTEMPTS: &str = "attempts";

/// A poll comes back after this long at the earliest: a step that never waits is a busy loop.
const POLL_MIN: Duration = Duration::from_millis(5);

/// How a step ended.
#[derive(Debug)]
pub enum StepEnd {
    Returned(Result<Next<Value>, StepError>),
    /// A call was refused before it was made: the step counts as not run.
    NotMade,
    /// Ended from without, since the stage has to end.
    Interrupted,
    Panicked(String),
}

/// What a step leaves behind.
#[derive(Debug)]
pub struct Report {
    pub stage: StageId,
    /// The stage's row as the step saw it.
    pub before: Seen,
    pub end: StepEnd,
    pub progress: Option<Progress>,
    pub outputs: Map<String, Value>,
    pub intents: Vec<(IntentId, IntentOutcome)>,
}

impl Report {
    /// Of a stage that is under way and whose kind is not known any more: it fails.
    pub fn of_unknown_kind(stage: &Stage) -> Self {
        Self {
            stage: stage.id,
            before: Seen::of(stage),
            end: StepEnd::Returned(Err(StepError::fail("UNKNOWN_KIND", unknown_kind(stage).message))),
            progress: None,
            outputs: Map::new(),
            intents: Vec::new(),
        }
    }
}

/// The part of a stage that a step's outcome replaces: by it one sees whether the outcome was
/// applied already (after a commit whose answer was lost).
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    pub attempt: i32,
    pub cursor: Value,
    pub wake: Wake,
    pub retries: i32,
}

impl Seen {
    pub fn of(stage: &Stage) -> Self {
        Self { attempt: stage.attempt, cursor: stage.cursor.clone(), wake: stage.wake.clone(), retries: stage.retries }
    }
}

/// What the holder remembers after an outcome, beside the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Later {
    /// Not before this instant, whatever the row says.
    pub not_before: Option<DateTime<Utc>>,
}

/// Applies a step's outcome.
pub fn outcome(execution: &mut Execution, report: &Report, setting: &Setting, changes: &mut Changes) -> Later {
    changes.intents.extend(report.intents.iter().cloned());
    let Some(index) = execution.stages.iter().position(|stage| stage.id == report.stage) else {
        return Later::default();
    };
    let stage = &mut execution.stages[index];
    if stage.status.is_complete() || Seen::of(stage) != report.before {
        return Later::default();
    }
    merge_outputs(execution, index, &report.outputs, setting, changes);
    let stage = &mut execution.stages[index];
    if let Some(progress) = &report.progress
        && stage.progress.as_ref() != Some(progress)
    {
        stage.progress = Some(progress.clone());
        changes.seen(index);
    }
    match &report.end {
        StepEnd::Interrupted => Later::default(),
        StepEnd::NotMade => Later { not_before: Some(setting.now + TimeDelta::seconds(1)) },
        StepEnd::Panicked(message) => {
            let message = format!("stage `{}` met a fault of its own code: {message}", stage.key);
            fail(stage, failure("PANIC", message, Some(stage.id)), index, changes);
            Later::default()
        }
        StepEnd::Returned(Ok(next)) => advance(execution, index, next, setting, changes),
        StepEnd::Returned(Err(StepError::Fail(cause))) => {
            let failure = failure_from(stage, cause, false);
            fail(stage, failure, index, changes);
            Later::default()
        }
        StepEnd::Returned(Err(StepError::Retry(cause))) if cause.code == NOT_MADE => {
            Later { not_before: Some(setting.now + TimeDelta::seconds(1)) }
        }
        StepEnd::Returned(Err(StepError::Retry(cause))) => retry(stage, cause, setting, index, changes),
    }
}

fn retry(stage: &mut Stage, cause: &Cause, setting: &Setting, index: usize, changes: &mut Changes) -> Later {
    stage.retries += 1;
    changes.seen(index);
    if stage.retries > RETRIES_MAX {
        let mut failure = failure_from(stage, cause, true);
        failure.hint.get_or_insert_with(|| format!("it was tried {} times", RETRIES_MAX + 1));
        fail(stage, failure, index, changes);
        return Later::default();
    }
    let at = setting.now + retry_delay(stage.retries);
    stage.progress = Some(retrying(stage.retries, &cause.message, setting.now));
    if let Wake::Signal { .. } = stage.wake {
        // What came with the signal stays in the row until a step has used it.
        return Later { not_before: Some(at) };
    }
    stage.wake = Wake::At { at, topic: None };
    Later::default()
}

/// What people see of a stage whose step is to be tried again, until it does something else.
fn retrying(failed: i32, message: &str, now: DateTime<Utc>) -> Progress {
    Progress {
        completed: i64::from(failed),
        total: i64::from(RETRIES_MAX) + 1,
        unit: ATTEMPTS.to_owned(),
        message: cut(&format!("it is tried again: {message}")),
        updated_at: now,
    }
}

fn advance(
    execution: &mut Execution,
    index: usize,
    next: &Next<Value>,
    setting: &Setting,
    changes: &mut Changes,
) -> Later {
    let now = setting.now;
    let stage = &mut execution.stages[index];
    match next {
        Next::Goto(cursor) => go_to(stage, cursor, Wake::Now, index, changes),
        Next::Poll { cursor, after, topic } => {
            let at = now + delta((*after).max(POLL_MIN));
            // One that waits longer than executions stay in memory has to be in the row.
            let same = *after < setting.options.idle_after
                && stage.cursor == *cursor
                && stage.retries == 0
                && matches!(&stage.wake, Wake::At { topic: present, .. } if present == topic);
            if same {
                // Nothing to save: the row's instant has come, so another owner would step at once.
                return Later { not_before: Some(at) };
            }
            go_to(stage, cursor, Wake::At { at, topic: topic.clone() }, index, changes);
        }
        Next::Wait { cursor, signal, timeout } => {
            let new = !matches!(&stage.wake, Wake::Signal { name, .. } if name == signal);
            let until = now + delta(*timeout);
            go_to(stage, cursor, Wake::Signal { name: (*signal).to_owned(), until, payload: None }, index, changes);
            changes.seen(index);
            if new && *signal == JUDGE {
                let notice = notices::stage(execution, &execution.stages[index], Occasion::ApprovalNeeded, now);
                changes.notifications.extend(notice);
            }
        }
        Next::Spawn { children, cursor } if children.is_empty() => go_to(stage, cursor, Wake::Now, index, changes),
        Next::Spawn { children, cursor } => {
            go_to(stage, cursor, Wake::Children, index, changes);
            changes.seen(index);
            if let Err(failure) = add_children(execution, index, Phase::Body, children, setting, changes) {
                fail(&mut execution.stages[index], *failure, index, changes);
                return Later::default();
            }
        }
        Next::Done(outputs) => {
            done(execution, index, outputs, setting, changes);
            return Later::default();
        }
    }
    sync_tasks(&mut execution.stages[index], setting, index, changes);
    Later::default()
}

fn go_to(stage: &mut Stage, cursor: &Value, wake: Wake, index: usize, changes: &mut Changes) {
    if stage.retries > 0 {
        changes.seen(index); // people saw it retrying
    }
    stage.cursor = cursor.clone();
    stage.wake = wake;
    recovered(stage);
    changes.silent(index);
}

/// A step has worked out: if some did not before it, that is no longer what there is to say.
fn recovered(stage: &mut Stage) {
    if stage.retries > 0 && stage.progress.as_ref().is_some_and(|progress| progress.unit == ATTEMPTS) {
        stage.progress = None;
    }
    stage.retries = 0;
}

fn done(execution: &mut Execution, index: usize, outputs: &Value, setting: &Setting, changes: &mut Changes) {
    let stage = &mut execution.stages[index];
    let outputs = match outputs {
        Value::Null => Map::new(),
        Value::Object(members) => members.clone(),
        other => Map::from_iter([("result".to_owned(), other.clone())]),
    };
    recovered(stage);
    stage.wake = Wake::Children;
    changes.seen(index);
    merge_outputs(execution, index, &outputs, setting, changes);
    let stage = &mut execution.stages[index];
    if stage.failure.is_some() {
        return;
    }
    let config = stage.resolved.clone().unwrap_or_default();
    let outputs = stage.outputs.clone();
    let planned = plan(setting.registry.get(&stage.kind), stage, |kind| kind.after(&config, &outputs));
    match planned.and_then(|specs| {
        let any = !specs.is_empty();
        add_children(execution, index, Phase::After, &specs, setting, changes).map(|()| any)
    }) {
        Ok(false) => finish(execution, index, Status::Succeeded, setting, changes),
        Ok(true) => {}
        Err(failure) => fail(&mut execution.stages[index], *failure, index, changes),
    }
}

fn merge_outputs(
    execution: &mut Execution,
    index: usize,
    new: &Map<String, Value>,
    setting: &Setting,
    changes: &mut Changes,
) {
    if new.is_empty() {
        return;
    }
    let stage = &mut execution.stages[index];
    if !stage.outputs.is_object() {
        stage.outputs = Value::Object(Map::new());
    }
    let Value::Object(outputs) = &mut stage.outputs else { return };
    let mut changed = false;
    for (key, value) in new {
        if outputs.get(key) != Some(value) {
            outputs.insert(key.clone(), value.clone());
            changed = true;
        }
    }
    if !changed {
        return;
    }
    changes.seen(index);
    let (max, max_all) = (setting.options.outputs_max, setting.options.execution_outputs_max);
    let own = notices::size(&stage.outputs);
    // Small ones cannot add up to the limit of the whole: only large ones are added up.
    let too_large = if own > max {
        Some(format!("has outputs of more than {max} bytes"))
    } else if own > max_all / STAGES_MAX && sizes(execution) > max_all {
        Some(format!("has outputs that are too large beside those of the stages before: more than {max_all} bytes"))
    } else {
        None
    };
    if let Some(what) = too_large {
        let stage = &mut execution.stages[index];
        stage.outputs = Value::Object(Map::new());
        let message = format!("stage `{}` {what}", stage.key);
        fail(stage, failure("OUTPUTS_TOO_LARGE", message, Some(stage.id)), index, changes);
    }
}

fn sizes(execution: &Execution) -> usize {
    execution.stages.iter().map(|stage| notices::size(&stage.outputs)).sum()
}

fn failure_from(stage: &Stage, cause: &Cause, retryable: bool) -> Failure {
    Failure {
        code: cause.code.to_owned(),
        message: cut(&cause.message),
        hint: cause.hint.as_deref().map(cut),
        stage: Some(stage.id),
        cause: cause.cause.as_deref().map(cut),
        attempt: stage.attempt,
        retryable,
        log_tail: cause.log_tail.as_deref().map(cut_front),
    }
}
