//! Events: what is stored of one, and what one tells.

use sea_orm::QueryResult;
use uuid::Uuid;

use super::Reader;
use crate::model::{Event, EventBody, Execution, Stage, StreamId};
use crate::store::Error;

pub const EVENT: &str = "position, stream, seq, at, format, body";

pub fn read_event(row: &QueryResult, stream: StreamId) -> Result<Event, Error> {
    let reader = &mut Reader::new(row, "event");
    let position = reader.get()?;
    let _stream: Uuid = reader.get()?;
    let seq = reader.get()?;
    let at = reader.time()?;
    reader.format()?;
    let body: EventBody = reader.json()?;
    Ok(Event { stream, seq, position, at, body })
}

/// The execution's own fields, as an event tells them.
#[must_use]
pub fn event_execution(execution: &Execution) -> EventBody {
    // Field by field, since cloning the stages to drop them would be dear.
    EventBody::ExecutionChanged {
        execution: Box::new(Execution {
            id: execution.id,
            kind: execution.kind,
            application: execution.application,
            application_name: execution.application_name.clone(),
            pipeline: execution.pipeline,
            name: execution.name.clone(),
            revision: execution.revision,
            number: execution.number,
            status: execution.status,
            version: execution.version,
            event_seq: execution.event_seq,
            started_by: execution.started_by,
            started_by_name: execution.started_by_name.clone(),
            trigger: execution.trigger.clone(),
            parameters: execution.parameters.clone(),
            notifications: execution.notifications.clone(),
            cancel: execution.cancel.clone(),
            failure: execution.failure.clone(),
            created_at: execution.created_at,
            started_at: execution.started_at,
            ended_at: execution.ended_at,
            deadline: execution.deadline,
            stages: Vec::new(),
        }),
    }
}

/// Outputs of a stage that are longer than this, as JSON, are left out of its events.
const OUTPUTS_IN_EVENT_MAX: usize = 32 * 1024;

/// Outputs as an event tells them: whole, or how long they are.
fn event_outputs(outputs: &serde_json::Value) -> serde_json::Value {
    struct Count(usize);
    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    if serde_json::to_writer(&mut count, outputs).is_ok() && count.0 <= OUTPUTS_IN_EVENT_MAX {
        return outputs.clone();
    }
    serde_json::json!({ "omittedBytes": count.0 })
}

/// The stage as an event tells it: without config, resolved config and cursor; outputs of more
/// than 32 KiB are replaced by `{"omittedBytes": n}`, so that no event grows beyond its limit.
#[must_use]
pub fn event_stage(stage: &Stage) -> EventBody {
    EventBody::StageChanged {
        stage: Box::new(Stage {
            id: stage.id,
            execution: stage.execution,
            key: stage.key.clone(),
            parent: stage.parent,
            phase: stage.phase,
            kind: stage.kind.clone(),
            name: stage.name.clone(),
            requires: stage.requires.clone(),
            on_failure: stage.on_failure,
            position: stage.position,
            attempt: stage.attempt,
            status: stage.status,
            config: serde_json::Value::Null,
            resolved: None,
            cursor: serde_json::Value::Null,
            wake: stage.wake.clone(),
            retries: stage.retries,
            outputs: event_outputs(&stage.outputs),
            progress: stage.progress.clone(),
            tasks: stage.tasks.clone(),
            failure: stage.failure.clone(),
            unwinding: stage.unwinding,
            timeout_seconds: stage.timeout_seconds,
            deadline: stage.deadline,
            started_at: stage.started_at,
            ended_at: stage.ended_at,
        }),
    }
}
