//! What leaves an execution for those who watch: events, kept small, and messages to people.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use crate::model::{EventBody, Execution, Failure, Notification, NotificationId, Occasion, Stage, Status};

/// The bytes a JSON value takes as text, near enough, without writing it.
pub(super) fn size(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) => 5,
        Value::Number(_) => 8,
        Value::String(text) => text.len() + 2,
        Value::Array(items) => 2 + items.iter().map(|item| size(item) + 1).sum::<usize>(),
        Value::Object(members) => 2 + members.iter().map(|(name, value)| name.len() + 4 + size(value)).sum::<usize>(),
    }
}

/// The execution without its stages.
pub(super) fn header(execution: &Execution) -> Execution {
    Execution {
        stages: Vec::new(),
        application_name: execution.application_name.clone(),
        name: execution.name.clone(),
        started_by_name: execution.started_by_name.clone(),
        trigger: execution.trigger.clone(),
        parameters: execution.parameters.clone(),
        notifications: execution.notifications.clone(),
        cancel: execution.cancel.clone(),
        failure: execution.failure.clone(),
        ..*execution
    }
}

/// The event that the execution's own fields changed.
pub(super) fn execution_event(execution: &Execution, max: usize) -> EventBody {
    let mut execution = header(execution);
    if size(&execution.parameters) > max / 2 {
        execution.parameters = left_out();
    }
    shorten(&mut execution.failure, max);
    EventBody::ExecutionChanged { execution: Box::new(execution) }
}

/// The event that a stage changed: without config and cursor, large outputs left out.
pub(super) fn stage_event(stage: &Stage, max: usize) -> EventBody {
    let outputs = if size(&stage.outputs) > max / 2 { left_out() } else { stage.outputs.clone() };
    let mut stage = Stage {
        config: Value::Null,
        resolved: None,
        cursor: Value::Null,
        outputs,
        key: stage.key.clone(),
        kind: stage.kind.clone(),
        name: stage.name.clone(),
        requires: stage.requires.clone(),
        wake: stage.wake.clone(),
        progress: stage.progress.clone(),
        tasks: stage.tasks.clone(),
        failure: stage.failure.clone(),
        ..*stage
    };
    shorten(&mut stage.failure, max);
    if let Some(progress) = &mut stage.progress {
        let end = progress.message.floor_char_boundary(max / 16);
        progress.message.truncate(end);
    }
    EventBody::StageChanged { stage: Box::new(stage) }
}

/// What stands in an event for a value that is too large for it; the row has it whole.
fn left_out() -> Value {
    json!({ "leftOut": "too large for an event; read the stage" })
}

fn shorten(failure: &mut Option<Failure>, max: usize) {
    let Some(failure) = failure else { return };
    let texts = [Some(&mut failure.message), failure.hint.as_mut(), failure.cause.as_mut(), failure.log_tail.as_mut()];
    for text in texts.into_iter().flatten() {
        let end = text.floor_char_boundary(max / 16);
        text.truncate(end);
    }
}

/// The message of an execution's rules on this occasion, if one of them asks for it.
pub(super) fn execution(execution: &Execution, occasion: Occasion, at: DateTime<Utc>) -> Option<Notification> {
    let what = match occasion {
        Occasion::Started => "started",
        Occasion::Completed => "succeeded",
        Occasion::Failed => "failed",
        Occasion::Canceled => "was canceled",
        Occasion::ApprovalNeeded => "waits for approval",
    };
    let title = title(execution);
    let text = match (&execution.failure, &execution.cancel) {
        (Some(failure), _) => failure.message.clone(),
        (None, Some(cancel)) if execution.status == Status::Canceled => {
            format!("canceled by {}: {}", cancel.by_name, cancel.reason)
        }
        _ => format!("started by {}", execution.started_by_name),
    };
    notice(execution, None, occasion, format!("{title} {what}"), text, at)
}

/// The same about one of its stages.
pub(super) fn stage(
    execution: &Execution,
    stage: &Stage,
    occasion: Occasion,
    at: DateTime<Utc>,
) -> Option<Notification> {
    let subject = format!("{} waits for approval: {}", title(execution), stage.name);
    let instructions = stage.resolved.as_ref().and_then(|config| config.get("instructions")).and_then(Value::as_str);
    let text = instructions.filter(|text| !text.is_empty()).unwrap_or("a person has to decide whether it goes on");
    notice(execution, Some(stage), occasion, subject, super::apply::cut(text), at)
}

fn title(execution: &Execution) -> String {
    format!("{} / {} #{}", execution.application_name, execution.name, execution.number)
}

fn notice(
    execution: &Execution,
    stage: Option<&Stage>,
    occasion: Occasion,
    subject: String,
    text: String,
    at: DateTime<Utc>,
) -> Option<Notification> {
    execution.notifications.iter().any(|rule| rule.on.contains(&occasion)).then(|| Notification {
        id: NotificationId::new(),
        occasion,
        application_name: execution.application_name.clone(),
        execution: execution.id,
        execution_name: execution.name.clone(),
        execution_number: execution.number,
        stage: stage.map(|stage| stage.id),
        subject,
        text,
        created_at: at,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_a_value_is_near_that_of_its_text() {
        let value = json!({"a": [1, 2, {"b": "text"}], "c": null, "d": true});
        let (guess, exact) = (size(&value), value.to_string().len());
        assert!(guess >= exact && guess < exact * 2, "{guess} for {exact}");
    }
}
