//! What a decision does to the execution and its stages.

use std::panic::{AssertUnwindSafe, catch_unwind};

use chrono::TimeDelta;
use serde_json::Value;

use super::children::{add_children, boxed, plan, unknown_kind};
use super::tasks::sync_tasks;
use super::{BETWEEN, Changes, Setting, cut, delta, fail};
use crate::engine::DEADLINE_MAX;
use crate::engine::contract::DynStage;
use crate::engine::decide::{Decision, failure};
use crate::engine::notices;
use crate::model::{Execution, Failure, Occasion, Phase, Stage, StageId, Status, Task, Unwinding, Wake};

/// Applies a decision; steps, interruptions and waits are the runner's. `resolved` is the config
/// of the stage to start, evaluated, or why it could not be.
pub fn decision(
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
    if stage.parent.is_none() {
        // It began later than was reckoned with: it has its whole time nevertheless, and its own end.
        let until = stage.deadline.unwrap_or(setting.now);
        let later = (until + delta(BETWEEN)).min(execution.created_at + delta(DEADLINE_MAX));
        if until >= execution.deadline && later > execution.deadline {
            execution.deadline = later;
            changes.execution = true;
        }
    }
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
pub(super) fn finish(
    execution: &mut Execution,
    index: usize,
    status: Status,
    setting: &Setting,
    changes: &mut Changes,
) {
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
