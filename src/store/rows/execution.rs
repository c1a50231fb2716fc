//! Executions, their stages and intents, and the keys under which they were started.

use chrono::{DateTime, Utc};
use sea_orm::{QueryResult, Value};

use super::{FORMAT, Reader, id, int, json, json_opt, named, text, time, time_opt};
use crate::model::{Execution, Stage};
use crate::store::{Error, IdempotencyRecord, Intent};

/// The pipeline is none once it was deleted.
pub const EXECUTION: &str = "id, kind, application_id, application_name, \
    (SELECT p.id FROM pipeline p WHERE p.id = execution.pipeline_id) AS pipeline, name, revision, number, status, version, \
    event_seq, started_by, started_by_name, format, parameters, notifications, cancel, failure, created_at, \
    started_at, ended_at, deadline, triggered";

pub const EXECUTION_INSERT: &str = "id, kind, application_id, application_name, pipeline_id, name, revision, \
    number, status, version, event_seq, started_by, started_by_name, format, parameters, notifications, cancel, \
    failure, created_at, started_at, ended_at, deadline, finished, wake_at, lease_owner, lease_number, triggered";

/// Without its stages.
pub fn read_execution(reader: &mut Reader<'_>) -> Result<Execution, Error> {
    Ok(Execution {
        id: reader.id()?,
        kind: reader.named()?,
        application: reader.id()?,
        application_name: reader.get()?,
        pipeline: reader.id_opt()?,
        name: reader.get()?,
        revision: reader.get()?,
        number: reader.get()?,
        status: reader.named()?,
        version: reader.get()?,
        event_seq: reader.get()?,
        started_by: reader.id()?,
        started_by_name: reader.get()?,
        parameters: {
            reader.format()?;
            reader.json()?
        },
        notifications: reader.json()?,
        cancel: reader.json_opt()?,
        failure: reader.json_opt()?,
        created_at: reader.time()?,
        started_at: reader.time_opt()?,
        ended_at: reader.time_opt()?,
        deadline: reader.time()?,
        trigger: reader.json_opt()?,
        stages: Vec::new(),
    })
}

/// In the order of [`EXECUTION_INSERT`]; unowned and due at its creation.
pub fn execution_row(execution: &Execution) -> Vec<Value> {
    let finished = execution.status.is_complete();
    vec![
        id(execution.id.uuid()),
        named(&execution.kind),
        id(execution.application.uuid()),
        text(&execution.application_name),
        Value::Uuid(execution.pipeline.map(|pipeline| pipeline.uuid())),
        text(&execution.name),
        int(execution.revision),
        int(execution.number),
        text(execution.status.as_str()),
        int(execution.version),
        int(execution.event_seq),
        id(execution.started_by.uuid()),
        text(&execution.started_by_name),
        int(FORMAT),
        json(&execution.parameters),
        json(&execution.notifications),
        json_opt(execution.cancel.as_ref()),
        json_opt(execution.failure.as_ref()),
        time(execution.created_at),
        time_opt(execution.started_at),
        time_opt(execution.ended_at),
        time(execution.deadline),
        int(finished.into()),
        time_opt((!finished).then_some(execution.created_at)),
        Value::Uuid(None),
        int(0),
        json_opt(execution.trigger.as_ref()),
    ]
}

pub const EXECUTION_UPDATE: &str = "UPDATE execution SET status = v.column2, finished = v.column3, \
    version = v.column4, event_seq = v.column5, wake_at = v.column6, started_at = v.column7, ended_at = v.column8, \
    deadline = v.column9, cancel = v.column10, failure = v.column11 FROM (VALUES";

pub const EXECUTION_UPDATE_END: &str = ") AS v WHERE execution.id = v.column1";

/// In the order of [`EXECUTION_UPDATE`]: what may change. A finished execution is never due.
pub fn execution_changes(execution: &Execution, wake_at: Option<DateTime<Utc>>) -> Vec<Value> {
    let finished = execution.status.is_complete();
    vec![
        id(execution.id.uuid()),
        text(execution.status.as_str()),
        int(finished.into()),
        int(execution.version),
        int(execution.event_seq),
        time_opt(wake_at.filter(|_| !finished)),
        time_opt(execution.started_at),
        time_opt(execution.ended_at),
        time(execution.deadline),
        json_opt(execution.cancel.as_ref()),
        json_opt(execution.failure.as_ref()),
    ]
}

/// A row is (id, version, event sequence).
pub const EXECUTION_ADVANCE: &str = "UPDATE execution SET version = v.column2, event_seq = v.column3 FROM (VALUES";

/// What was moved in a row of [`execution_changes`] since it was made.
pub fn execution_advanced(row: &mut [Value], version: i64, event_seq: i64) {
    row[3] = int(version);
    row[4] = int(event_seq);
}

pub const STAGE: &str = "id, execution_id, key, parent_id, phase, kind, name, on_failure, position, attempt, \
    status, retries, timeout_seconds, deadline, started_at, ended_at, format, requires, wake, progress, unwinding, \
    failure, tasks, cursor, outputs, resolved, config";

pub fn read_stage(row: &QueryResult) -> Result<Stage, Error> {
    let reader = &mut Reader::new(row, "stage");
    Ok(Stage {
        id: reader.id()?,
        execution: reader.id()?,
        key: reader.get()?,
        parent: reader.id_opt()?,
        phase: reader.named()?,
        kind: reader.get()?,
        name: reader.get()?,
        on_failure: reader.named()?,
        position: reader.get()?,
        attempt: reader.small()?,
        status: reader.named()?,
        retries: reader.small()?,
        timeout_seconds: reader.get()?,
        deadline: reader.time_opt()?,
        started_at: reader.time_opt()?,
        ended_at: reader.time_opt()?,
        requires: {
            reader.format()?;
            reader.json()?
        },
        wake: reader.json()?,
        progress: reader.json_opt()?,
        unwinding: reader.json_opt()?,
        failure: reader.json_opt()?,
        tasks: reader.json()?,
        cursor: reader.json()?,
        outputs: reader.json()?,
        resolved: reader.json_opt()?,
        config: reader.json()?,
    })
}

/// In the order of [`STAGE`].
pub fn stage_row(stage: &Stage) -> Vec<Value> {
    vec![
        id(stage.id.uuid()),
        id(stage.execution.uuid()),
        text(&stage.key),
        Value::Uuid(stage.parent.map(|parent| parent.uuid())),
        named(&stage.phase),
        text(&stage.kind),
        text(&stage.name),
        named(&stage.on_failure),
        int(stage.position),
        int(stage.attempt.into()),
        text(stage.status.as_str()),
        int(stage.retries.into()),
        int(stage.timeout_seconds),
        time_opt(stage.deadline),
        time_opt(stage.started_at),
        time_opt(stage.ended_at),
        int(FORMAT),
        json(&stage.requires),
        json(&stage.wake),
        json_opt(stage.progress.as_ref()),
        json_opt(stage.unwinding.as_ref()),
        json_opt(stage.failure.as_ref()),
        json(&stage.tasks),
        json(&stage.cursor),
        json(&stage.outputs),
        json_opt(stage.resolved.as_ref()),
        json(&stage.config),
    ]
}

/// The statement that inserts or replaces stages, after their rows.
pub fn stage_conflict() -> String {
    let columns: Vec<String> = STAGE
        .split(", ")
        .map(str::trim)
        // What never changes is in the indexes, which would be written anew for it.
        .filter(|column| !["id", "execution_id", "position"].contains(column))
        .map(|column| format!("{column} = excluded.{column}"))
        .collect();
    format!("ON CONFLICT (id) DO UPDATE SET {}", columns.join(", "))
}

/// Closes intents; a row is (id, when, outcome).
pub const INTENT_CLOSE: &str = "UPDATE intent SET closed_at = v.column2, outcome = v.column3 FROM (VALUES";

pub const INTENT_CLOSE_END: &str = ") AS v WHERE intent.id = v.column1";

pub const INTENT: &str = "id, execution_id, stage_id, attempt, key, what, lease_number, created_at, deadline, \
    closed_at, outcome";

pub fn read_intent(row: &QueryResult) -> Result<Intent, Error> {
    let reader = &mut Reader::new(row, "intent");
    Ok(Intent {
        id: reader.id()?,
        execution: reader.id()?,
        stage: reader.id()?,
        attempt: reader.small()?,
        key: reader.get()?,
        what: reader.get()?,
        lease_number: reader.get()?,
        created_at: reader.time()?,
        deadline: reader.time()?,
        closed_at: reader.time_opt()?,
        outcome: reader.json_opt()?,
    })
}

pub fn intent_row(intent: &Intent) -> Vec<Value> {
    vec![
        id(intent.id.uuid()),
        id(intent.execution.uuid()),
        id(intent.stage.uuid()),
        int(intent.attempt.into()),
        text(&intent.key),
        text(&intent.what),
        int(intent.lease_number),
        time(intent.created_at),
        time(intent.deadline),
        time_opt(intent.closed_at),
        json_opt(intent.outcome.as_ref()),
    ]
}

pub const IDEMPOTENCY: &str = "principal_id, key, input_hash, execution_id, created_at";

pub fn read_idempotency(row: &QueryResult) -> Result<IdempotencyRecord, Error> {
    let reader = &mut Reader::new(row, "idempotency record");
    Ok(IdempotencyRecord {
        principal: reader.id()?,
        key: reader.get()?,
        input_hash: reader.get()?,
        execution: reader.id()?,
        created_at: reader.time()?,
    })
}

pub fn idempotency_row(record: &IdempotencyRecord) -> Vec<Value> {
    vec![
        id(record.principal.uuid()),
        text(&record.key),
        Value::Bytes(Some(record.input_hash.clone())),
        id(record.execution.uuid()),
        time(record.created_at),
    ]
}
