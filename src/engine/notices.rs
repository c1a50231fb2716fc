//! What leaves an execution for those who watch: events, kept small, and messages to people.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use crate::model::{
    About, AboutExecution, Delivery, DeliveryId, DeliveryState, EMAIL, EventBody, Execution, ExecutionRule, Failure,
    Notification, NotificationId, Occasion, Stage, Status,
};

/// A message and its ways out, to be written in one commit with what it tells about.
#[derive(Debug, Clone)]
pub(super) struct Told {
    pub notification: Notification,
    pub deliveries: Vec<Delivery>,
}

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

/// The event that the execution's own fields changed.
pub(super) fn execution_event(execution: &Execution, max: usize) -> EventBody {
    let mut execution = execution.header();
    if size(&execution.parameters) > max / 2 {
        execution.parameters = left_out();
    }
    shorten(&mut execution.failure, max);
    EventBody::ExecutionChanged { execution: Box::new(execution) }
}

/// The event that a stage changed: without config and cursor, large outputs left out.
pub(super) fn stage_event(stage: &Stage, max: usize) -> EventBody {
    let outputs = if size(&stage.outputs) > max / 2 { left_out() } else { stage.outputs.clone() };
    let mut stage = Stage { outputs, ..stage.header() };
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
pub(super) fn execution(execution: &Execution, occasion: Occasion, at: DateTime<Utc>) -> Option<Told> {
    let rules: Vec<&ExecutionRule> = asking(execution, occasion).filter(|rule| rule.stage.is_none()).collect();
    if rules.is_empty() {
        return None;
    }
    let text = match (&execution.failure, &execution.cancel) {
        (Some(failure), _) => failure_text(failure),
        (None, Some(cancel)) if execution.status == Status::Canceled => {
            format!("canceled by {}: {}", cancel.by_name, cancel.reason)
        }
        _ => format!("started by {}", execution.started_by_name),
    };
    let subject = format!("{} {}", title(execution), what(occasion));
    Some(tell(execution, None, &rules, occasion, (subject, text), at))
}

/// The message about a stage that is asked for by the stage's own rules, or, where a person has to
/// approve, by those of the pipeline too.
pub(super) fn stage(execution: &Execution, stage: &Stage, occasion: Occasion, at: DateTime<Utc>) -> Option<Told> {
    let about = |rule: &&ExecutionRule| match &rule.stage {
        // Keys are unique among the top-level stages; a child may bear the same.
        Some(key) => stage.parent.is_none() && *key == stage.key,
        None => occasion == Occasion::ApprovalNeeded,
    };
    let rules: Vec<&ExecutionRule> = asking(execution, occasion).filter(about).collect();
    if rules.is_empty() {
        return None;
    }
    let (subject, text) = if occasion == Occasion::ApprovalNeeded {
        let instructions =
            stage.resolved.as_ref().and_then(|config| config.get("instructions")).and_then(Value::as_str);
        let text = instructions.filter(|text| !text.is_empty()).unwrap_or("a person has to decide whether it goes on");
        (format!("{} waits for approval: {}", title(execution), stage.name), text.to_owned())
    } else {
        let text = match (&stage.failure, &execution.cancel) {
            (Some(failure), _) => failure_text(failure),
            (None, Some(cancel)) if stage.status == Status::Canceled => {
                format!("canceled by {}: {}", cancel.by_name, cancel.reason)
            }
            _ => format!("the execution was started by {}", execution.started_by_name),
        };
        (format!("{}: {} {}", title(execution), stage.name, what(occasion)), text)
    };
    Some(tell(execution, Some(stage), &rules, occasion, (subject, text), at))
}

/// What to tell of a stage that ended so; None: nothing.
pub(super) fn ended(status: Status) -> Option<Occasion> {
    match status {
        Status::Succeeded => Some(Occasion::Completed),
        Status::Failed | Status::FailedContinue | Status::Stopped => Some(Occasion::Failed),
        Status::Canceled => Some(Occasion::Canceled),
        Status::Skipped | Status::NotStarted | Status::Running | Status::Paused => None,
    }
}

fn what(occasion: Occasion) -> &'static str {
    match occasion {
        Occasion::Started => "started",
        Occasion::Completed => "succeeded",
        Occasion::Failed => "failed",
        Occasion::Canceled => "was canceled",
        Occasion::ApprovalNeeded => "waits for approval",
        Occasion::LoadBalancerProblem => "has a problem",
        Occasion::LoadBalancerProblemOver => "has a problem no more",
    }
}

fn failure_text(failure: &Failure) -> String {
    match &failure.hint {
        Some(hint) => format!("{}\n{hint}", failure.message),
        None => failure.message.clone(),
    }
}

fn title(execution: &Execution) -> String {
    format!("{} / {} #{}", execution.application_name, execution.name, execution.number)
}

fn asking(execution: &Execution, occasion: Occasion) -> impl Iterator<Item = &ExecutionRule> {
    execution.notifications.iter().filter(move |rule| rule.on.contains(&occasion))
}

fn tell(
    execution: &Execution,
    stage: Option<&Stage>,
    rules: &[&ExecutionRule],
    occasion: Occasion,
    (subject, text): (String, String),
    at: DateTime<Utc>,
) -> Told {
    // A stage's name comes from a person and may have lines.
    let subject = subject.chars().map(|char| if char.is_control() { ' ' } else { char }).collect();
    let notification = Notification {
        id: NotificationId::new(),
        occasion,
        application_name: execution.application_name.clone(),
        about: About::Execution(AboutExecution {
            execution: execution.id,
            execution_name: execution.name.clone(),
            execution_number: execution.number,
            stage: stage.map(|stage| stage.id),
        }),
        subject,
        text: super::apply::cut(&text),
        created_at: at,
    };
    let mut seen = std::collections::HashSet::new();
    let deliveries = rules
        .iter()
        .filter_map(|rule| rule.email.as_ref())
        .flat_map(|email| &email.to)
        // Several rules may name the same person, who wants one mail.
        .filter(|address| seen.insert(address.to_lowercase()))
        .map(|address| delivery(execution, &notification, EMAIL, address))
        .collect();
    Told { notification, deliveries }
}

fn delivery(execution: &Execution, notification: &Notification, channel: &str, target: &str) -> Delivery {
    Delivery {
        id: DeliveryId::new(),
        notification: notification.id,
        execution: execution.id,
        channel: channel.to_owned(),
        target: target.to_owned(),
        state: DeliveryState::Pending,
        attempts: 0,
        next_at: Some(notification.created_at),
        last_error: None,
        created_at: notification.created_at,
        sent_at: None,
    }
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
