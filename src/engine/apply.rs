//! What a decision or a step's outcome does to the rows: pure, on the execution in memory, with a
//! list of what changed for the commit.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::Options;
use super::contract::{Cause, DynStage, NOT_MADE, Next, Registry, StepError};
use super::decide::{Decision, failure, is_unwind};
use super::notices;
use super::timers::retry_delay;
use crate::model::{
    ChildSpec, Execution, Failure, IntentId, Occasion, Phase, Progress, Stage, StageId, Status, Task, Unwinding, Wake,
};
use crate::store::IntentOutcome;

/// The signal whose wait means that a person has to approve.
pub(super) const JUDGE: &str = "judge";
/// Failed tries of one step after which the stage fails.
const RETRIES_MAX: i32 = 10;
/// Stages an execution may have, children included.
const STAGES_MAX: usize = 2_000;
/// Children within children.
const DEPTH_MAX: usize = 8;
/// Bytes of a failure's message, hint or cause.
const TEXT_MAX: usize = 4 * 1024;
/// A poll comes back after this long at the earliest: a step that never waits is a busy loop.
const POLL_MIN: Duration = Duration::from_millis(5);

/// What a turn changed, for its commit.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Index of the stage; true: people see the change, so there is an event.
    pub stages: BTreeMap<usize, bool>,
    /// The execution's own fields.
    pub execution: bool,
    pub intents: Vec<(IntentId, IntentOutcome)>,
    pub notifications: Vec<notices::Told>,
    /// Top-level stages that ended: their cluster claims are given back.
    pub released: Vec<StageId>,
}

impl Changes {
    pub fn is_empty(&self) -> bool {
        self.stages.is_empty() && !self.execution && self.intents.is_empty()
    }

    fn seen(&mut self, index: usize) {
        self.stages.insert(index, true);
    }

    fn silent(&mut self, index: usize) {
        self.stages.entry(index).or_insert(false);
    }
}

/// What is fixed while something is applied.
pub(super) struct Setting<'a> {
    pub registry: &'a Registry,
    pub options: &'a Options,
    pub now: DateTime<Utc>,
}

/// How a step ended.
#[derive(Debug)]
pub(super) enum StepEnd {
    Returned(Result<Next<Value>, StepError>),
    /// A call was refused before it was made: the step counts as not run.
    NotMade,
    /// Ended from without, since the stage has to end.
    Interrupted,
    Panicked(String),
}

/// What a step leaves behind.
#[derive(Debug)]
pub(super) struct Report {
    pub stage: StageId,
    /// The stage's row as the step saw it.
    pub before: Seen,
    pub end: StepEnd,
    pub progress: Option<Progress>,
    pub outputs: Map<String, Value>,
    pub intents: Vec<(IntentId, IntentOutcome)>,
}

/// The part of a stage that a step's outcome replaces: by it one sees whether the outcome was
/// applied already (after a commit whose answer was lost).
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Seen {
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
pub(super) struct Later {
    /// Not before this instant, whatever the row says.
    pub not_before: Option<DateTime<Utc>>,
}

/// Applies a step's outcome.
pub(super) fn outcome(execution: &mut Execution, report: &Report, setting: &Setting, changes: &mut Changes) -> Later {
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
    if let Wake::Signal { .. } = stage.wake {
        // What came with the signal stays in the row until a step has used it.
        return Later { not_before: Some(at) };
    }
    stage.wake = Wake::At { at, topic: None };
    Later::default()
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
    stage.retries = 0;
    changes.silent(index);
}

fn done(execution: &mut Execution, index: usize, outputs: &Value, setting: &Setting, changes: &mut Changes) {
    let stage = &mut execution.stages[index];
    let outputs = match outputs {
        Value::Null => Map::new(),
        Value::Object(members) => members.clone(),
        other => Map::from_iter([("result".to_owned(), other.clone())]),
    };
    stage.retries = 0;
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

fn fail(stage: &mut Stage, failure: Failure, index: usize, changes: &mut Changes) {
    if stage.failure.is_none() {
        let attempt = if failure.stage == Some(stage.id) { stage.attempt } else { failure.attempt };
        stage.failure = Some(Failure { attempt, ..failure });
        changes.seen(index);
    }
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

/// The beginning of a text, at most [`TEXT_MAX`] bytes.
pub(super) fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(TEXT_MAX)].to_owned()
}

fn cut_front(text: &str) -> String {
    text[text.ceil_char_boundary(text.len().saturating_sub(TEXT_MAX))..].to_owned()
}

pub(super) fn delta(span: Duration) -> TimeDelta {
    TimeDelta::from_std(span).unwrap_or(TimeDelta::days(365 * 100)).min(TimeDelta::days(365 * 100))
}

/// Applies a decision; steps, interruptions and waits are the runner's. `resolved` is the config
/// of the stage to start, evaluated, or why it could not be.
pub(super) fn decision(
    execution: &mut Execution,
    decision: &Decision,
    resolved: Option<Result<Value, Box<Failure>>>,
    setting: &Setting,
    changes: &mut Changes,
) {
    let place = |execution: &Execution, id: StageId| execution.stages.iter().position(|stage| stage.id == id);
    match decision {
        Decision::StartExecution => {
            execution.status = Status::Running;
            execution.started_at = Some(setting.now);
            changes.execution = true;
            changes.notifications.extend(notices::execution(execution, Occasion::Started, setting.now));
        }
        Decision::FailExecution(failure) => {
            execution.failure = Some(failure.clone());
            changes.execution = true;
        }
        Decision::FinishExecution { status, failure } => {
            execution.status = *status;
            execution.failure.clone_from(failure);
            execution.ended_at = Some(setting.now);
            changes.execution = true;
            let occasion = match status {
                Status::Canceled => Occasion::Canceled,
                Status::Failed => Occasion::Failed,
                _ => Occasion::Completed,
            };
            changes.notifications.extend(notices::execution(execution, occasion, setting.now));
        }
        Decision::StartStage(id) => {
            if let (Some(index), Some(resolved)) = (place(execution, *id), resolved) {
                start_stage(execution, index, resolved, setting, changes);
            }
        }
        Decision::Fail { stage, failure } => {
            if let Some(index) = place(execution, *stage) {
                fail(&mut execution.stages[index], failure.clone(), index, changes);
            }
        }
        Decision::End { stage, status, unwind } => {
            if let Some(index) = place(execution, *stage) {
                end(execution, index, *status, *unwind, setting, changes);
            }
        }
        Decision::Finish { stage, status } => {
            if let Some(index) = place(execution, *stage) {
                finish(execution, index, *status, setting, changes);
            }
        }
        Decision::Step(id) => {
            if let Some(index) = place(execution, *id)
                && execution.stages[index].cursor.is_null()
            {
                sync_tasks(&mut execution.stages[index], setting, index, changes);
            }
        }
        Decision::Interrupt(_) | Decision::WaitUntil(_) => {}
    }
}

fn start_stage(
    execution: &mut Execution,
    index: usize,
    resolved: Result<Value, Box<Failure>>,
    setting: &Setting,
    changes: &mut Changes,
) {
    let stage = &mut execution.stages[index];
    if stage.status != Status::NotStarted {
        return;
    }
    stage.status = Status::Running;
    stage.started_at = Some(setting.now);
    stage.deadline = Some(setting.now + TimeDelta::seconds(stage.timeout_seconds.clamp(1, 365 * 86_400)));
    stage.wake = Wake::Now;
    changes.seen(index);
    changes.notifications.extend(notices::stage(execution, &execution.stages[index], Occasion::Started, setting.now));
    let stage = &mut execution.stages[index];
    let kind = setting.registry.get(&stage.kind);
    let checked = resolved.and_then(|config| match kind {
        None => Err(unknown_kind(stage)),
        Some(kind) => match catch_unwind(AssertUnwindSafe(|| kind.validate_resolved(&config))) {
            Ok(Ok(())) => Ok(config),
            Ok(Err(faults)) => {
                let told: Vec<_> = faults.iter().map(|(at, message)| format!("config at `{at}`: {message}")).collect();
                let message = cut(&format!("stage `{}`: {}", stage.key, told.join("; ")));
                Err(boxed("CONFIG_INVALID", message, stage.id))
            }
            Err(_) => Err(boxed("PANIC", "the check of the config met a fault".to_owned(), stage.id)),
        },
    });
    let config = match checked {
        Ok(config) => config,
        Err(failure) => return fail(stage, *failure, index, changes),
    };
    let names = kind.map(|kind| catch_unwind(AssertUnwindSafe(|| kind.tasks(&config, &Value::Null).0)));
    if let Some(Ok(names)) = names {
        let task = |name: &&str| Task {
            name: (*name).to_owned(),
            status: Status::NotStarted,
            started_at: None,
            ended_at: None,
        };
        stage.tasks = names.iter().map(task).collect();
    }
    stage.resolved = Some(config.clone());
    let planned = plan(kind, stage, |kind| kind.before(&config));
    let added = planned.and_then(|specs| add_children(execution, index, Phase::Before, &specs, setting, changes));
    if let Err(failure) = added {
        fail(&mut execution.stages[index], *failure, index, changes);
    }
}

fn unknown_kind(stage: &Stage) -> Box<Failure> {
    boxed("UNKNOWN_KIND", format!("stage kind `{}` is not known to this server", stage.kind), stage.id)
}

/// A failure as an error: it is a large value.
fn boxed(code: &str, message: String, stage: StageId) -> Box<Failure> {
    Box::new(failure(code, message, Some(stage)))
}

/// Children of a kind's own making; a panic in there fails the stage, not the server.
fn plan(
    kind: Option<&std::sync::Arc<dyn DynStage>>,
    stage: &Stage,
    make: impl FnOnce(&dyn DynStage) -> Vec<ChildSpec>,
) -> Result<Vec<ChildSpec>, Box<Failure>> {
    let Some(kind) = kind else { return Err(unknown_kind(stage)) };
    catch_unwind(AssertUnwindSafe(|| make(kind.as_ref())))
        .map_err(|_| boxed("PANIC", format!("stage `{}` met a fault while planning its children", stage.key), stage.id))
}

fn end(
    execution: &mut Execution,
    index: usize,
    status: Status,
    unwind: bool,
    setting: &Setting,
    changes: &mut Changes,
) {
    let stage = &execution.stages[index];
    if stage.status.is_complete() || stage.unwinding.is_some() {
        return;
    }
    if let (true, Some(config)) = (unwind, &stage.resolved) {
        let make = |kind: &dyn DynStage| kind.unwind(execution, stage, config, &stage.cursor);
        let planned = plan(setting.registry.get(&stage.kind), stage, make);
        let added = planned.and_then(|specs| {
            let any = !specs.is_empty();
            add_children(execution, index, Phase::Unwind, &specs, setting, changes).map(|()| any)
        });
        match added {
            Ok(false) => {}
            Ok(true) => {
                let stage = &mut execution.stages[index];
                let deadline = setting.now + delta(setting.options.unwind_timeout);
                stage.unwinding = Some(Unwinding { then: status, deadline });
                stage.wake = Wake::Children;
                changes.seen(index);
                return;
            }
            Err(failure) => {
                let stage = &execution.stages[index];
                tracing::error!(
                    execution.id = %execution.id, stage.id = %stage.id, stage.kind = stage.kind,
                    "stage `{}` could not be brought back: {}", stage.key, failure.message
                );
            }
        }
    }
    finish(execution, index, status, setting, changes);
}

/// The stage is over.
fn finish(execution: &mut Execution, index: usize, status: Status, setting: &Setting, changes: &mut Changes) {
    let now = setting.now;
    let left = unwind_left(execution, index);
    let stage = &mut execution.stages[index];
    if stage.status.is_complete() {
        return;
    }
    if let Some(left) = left {
        not_back(stage, &left);
    }
    let begun = stage.status != Status::NotStarted;
    stage.status = status;
    stage.ended_at = Some(now);
    stage.wake = Wake::Now;
    stage.unwinding = None;
    let good = status == Status::Succeeded;
    for task in &mut stage.tasks {
        match task.status {
            Status::Running if good => task.status = Status::Succeeded,
            Status::Running => task.status = status,
            Status::NotStarted if good => task.status = Status::Skipped,
            _ => continue,
        }
        task.ended_at = task.started_at.map(|_| now);
    }
    changes.seen(index);
    if begun && stage.parent.is_none() {
        changes.released.push(stage.id);
        if let Some(occasion) = notices::ended(status) {
            changes.notifications.extend(notices::stage(execution, &execution.stages[index], occasion, now));
        }
    }
}

/// The unwind children that did not end well, once the stage's unwind is over.
fn unwind_left(execution: &Execution, index: usize) -> Option<String> {
    let stage = &execution.stages[index];
    stage.unwinding?;
    let left: Vec<String> = execution
        .children(stage.id)
        .filter(|child| child.phase == Phase::Unwind && !child.status.lets_downstream_start())
        .map(|child| format!("`{}`", child.name))
        .collect();
    (!left.is_empty()).then(|| left.join(", "))
}

/// Nobody may believe that all is as before when it is not: a cancelled stage says so as its
/// failure, a failed one in its hint.
fn not_back(stage: &mut Stage, left: &str) {
    const HINT: &str = "look at these stages and at the server groups, and enable what should serve";
    let message = format!("what was there before stage `{}` is not wholly back: {left} did not succeed", stage.name);
    match &mut stage.failure {
        Some(failure) => {
            let hint = failure.hint.take().map_or_else(String::new, |hint| format!("{hint}; "));
            failure.hint = Some(format!("{hint}{message}; {HINT}"));
        }
        None => {
            stage.failure = Some(Failure {
                hint: Some(HINT.to_owned()),
                attempt: stage.attempt,
                ..failure("UNWIND_INCOMPLETE", message, Some(stage.id))
            });
        }
    }
}

/// Brings the tasks people see in line with the cursor.
fn sync_tasks(stage: &mut Stage, setting: &Setting, index: usize, changes: &mut Changes) {
    let (Some(kind), Some(config)) = (setting.registry.get(&stage.kind), &stage.resolved) else { return };
    let Ok((names, current)) = catch_unwind(AssertUnwindSafe(|| kind.tasks(config, &stage.cursor))) else { return };
    let now = setting.now;
    let mut changed = false;
    for (place, name) in names.iter().enumerate() {
        if stage.tasks.len() <= place {
            stage.tasks.push(Task {
                name: (*name).to_owned(),
                status: Status::NotStarted,
                started_at: None,
                ended_at: None,
            });
            changed = true;
        }
        let task = &mut stage.tasks[place];
        let status = match (place.cmp(&current), task.status) {
            (std::cmp::Ordering::Less, Status::Running) => Status::Succeeded,
            (std::cmp::Ordering::Less, Status::NotStarted) => Status::Skipped,
            (std::cmp::Ordering::Equal, _) => Status::Running,
            (_, present) => present,
        };
        if status == task.status {
            continue;
        }
        changed = true;
        task.status = status;
        match status {
            Status::Running => {
                task.started_at.get_or_insert(now);
                task.ended_at = None;
            }
            Status::Succeeded => task.ended_at = Some(now),
            _ => {}
        }
    }
    if changed {
        changes.seen(index);
    }
}

fn add_children(
    execution: &mut Execution,
    parent: usize,
    phase: Phase,
    specs: &[ChildSpec],
    setting: &Setting,
    changes: &mut Changes,
) -> Result<(), Box<Failure>> {
    if specs.is_empty() {
        return Ok(());
    }
    let above = &execution.stages[parent];
    let (parent_id, parent_key, attempt) = (above.id, above.key.clone(), above.attempt);
    let refuse = |what: String| Err(boxed("CHILDREN_INVALID", format!("stage `{parent_key}`: {what}"), parent_id));
    if execution.stages.len() + specs.len() > STAGES_MAX {
        return refuse(format!("the execution would have more than {STAGES_MAX} stages"));
    }
    let mut depth = 1;
    let mut up = above.parent;
    while let Some(next) = up.and_then(|id| execution.stage(id)) {
        depth += 1;
        up = next.parent;
    }
    if depth >= DEPTH_MAX {
        return refuse(format!("stages would be nested more than {DEPTH_MAX} deep"));
    }
    let mut keys: std::collections::HashSet<&str> =
        execution.children(parent_id).filter(|child| child.phase == phase).map(|child| child.key.as_str()).collect();
    for spec in specs {
        if !keys.insert(&spec.key) {
            return refuse(format!("two children have the key `{}`", spec.key));
        }
        if setting.registry.get(&spec.kind).is_none() {
            return refuse(format!("child `{}` is of the unknown kind `{}`", spec.key, spec.kind));
        }
        if notices::size(&spec.config) > setting.options.config_max {
            return refuse(format!(
                "the config of child `{}` has more than {} bytes",
                spec.key, setting.options.config_max
            ));
        }
    }
    if let Some((spec, key)) =
        specs.iter().find_map(|spec| Some((spec, spec.requires.iter().find(|key| !keys.contains(key.as_str()))?)))
    {
        return refuse(format!("child `{}` requires `{key}`, which is not among its siblings", spec.key));
    }
    let made: Vec<Stage> = specs
        .iter()
        .enumerate()
        .filter_map(|(offset, spec)| {
            let kind = setting.registry.get(&spec.kind)?;
            let position = i64::try_from(execution.stages.len() + offset).unwrap_or(i64::MAX);
            Some(new_stage(execution, spec, kind.as_ref(), Some((parent_id, phase)), position, attempt))
        })
        .collect();
    for stage in made {
        changes.seen(execution.stages.len());
        execution.stages.push(stage);
    }
    Ok(())
}

/// A stage that has not begun.
pub(super) fn new_stage(
    execution: &Execution,
    spec: &ChildSpec,
    kind: &dyn DynStage,
    parent: Option<(StageId, Phase)>,
    position: i64,
    attempt: i32,
) -> Stage {
    let timeout = spec.timeout_seconds.unwrap_or_else(|| kind.timeout().as_secs()).max(1);
    // A child's id follows from its parent's: should the database be set back to an earlier state, the
    // child that is spawned again has the operation keys under which the first one's work is found.
    let id = parent.map_or_else(StageId::new, |(above, phase)| child_id(above, phase, attempt, &spec.key));
    Stage {
        id,
        execution: execution.id,
        key: spec.key.clone(),
        parent: parent.map(|(id, _)| id),
        phase: parent.map_or(Phase::Body, |(_, phase)| phase),
        kind: spec.kind.clone(),
        name: if spec.name.is_empty() { kind.title().to_owned() } else { spec.name.clone() },
        requires: spec.requires.clone(),
        on_failure: spec.on_failure,
        position,
        attempt,
        status: Status::NotStarted,
        config: spec.config.clone(),
        resolved: None,
        cursor: Value::Null,
        wake: Wake::Now,
        retries: 0,
        outputs: Value::Object(Map::new()),
        progress: None,
        tasks: Vec::new(),
        failure: None,
        unwinding: None,
        timeout_seconds: i64::try_from(timeout).unwrap_or(i64::MAX),
        deadline: None,
        started_at: None,
        ended_at: None,
    }
}

fn child_id(parent: StageId, phase: Phase, attempt: i32, key: &str) -> StageId {
    let phase = match phase {
        Phase::Before => 0_u8,
        Phase::Body => 1,
        Phase::After => 2,
        Phase::Unwind => 3,
    };
    let mut hash = Sha256::new();
    hash.update(parent.uuid().as_bytes());
    hash.update([phase]);
    hash.update(attempt.to_be_bytes());
    hash.update(key.as_bytes());
    let digest = hash.finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    uuid::Builder::from_random_bytes(bytes).into_uuid().into()
}

/// Whether an effect of this stage goes on although the execution is cancelled.
pub(super) fn ignores_cancel(execution: &Execution, stage: &Stage) -> bool {
    is_unwind(execution, stage)
}
