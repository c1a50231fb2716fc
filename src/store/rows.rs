//! Rows to model and back: the lists of columns, and one pair of functions per table.

use chrono::{DateTime, Utc};
use sea_orm::{QueryResult, TryGetable, Value};
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::{Error, IdempotencyRecord, Intent};
use crate::measure::{self, Invariant};
use crate::model::{
    Application, AuditRow, Delivery, Event, EventBody, Execution, Notification, Pipeline, PipelineDefinition,
    Principal, Revision, Stage, Status, StreamId, Token, Trigger,
};

/// The version of the format in which documents (configs, cursors, events …) are written.
pub(super) const FORMAT: i64 = 1;

// --- values ----------------------------------------------------------------------------------

pub(super) fn time(at: DateTime<Utc>) -> Value {
    Value::BigInt(Some(at.timestamp_micros()))
}

pub(super) fn time_opt(at: Option<DateTime<Utc>>) -> Value {
    Value::BigInt(at.map(|at| at.timestamp_micros()))
}

pub(super) fn text(text: &str) -> Value {
    Value::String(Some(text.to_owned()))
}

pub(super) fn int(number: i64) -> Value {
    Value::BigInt(Some(number))
}

pub(super) fn id(id: Uuid) -> Value {
    Value::Uuid(Some(id))
}

/// A document as text.
pub(super) fn json<T: Serialize>(document: &T) -> Value {
    Value::String(Some(serde_json::to_string(document).expect("model types serialise to JSON")))
}

pub(super) fn json_opt<T: Serialize>(document: Option<&T>) -> Value {
    document.map_or(Value::String(None), json)
}

/// The name of an enum's variant as the model serialises it.
pub(super) fn named<T: Serialize>(variant: &T) -> Value {
    let text = serde_json::to_string(variant).expect("model types serialise to JSON");
    Value::String(Some(text.trim_matches('"').to_owned()))
}

// --- a row being read --------------------------------------------------------------------------

/// A row whose columns are read in the order of its list.
pub(super) struct Reader<'a> {
    row: &'a QueryResult,
    at: usize,
    what: &'static str,
}

impl<'a> Reader<'a> {
    pub(super) fn new(row: &'a QueryResult, what: &'static str) -> Self {
        Self { row, at: 0, what }
    }

    pub(super) fn get<T: TryGetable>(&mut self) -> Result<T, Error> {
        let at = self.at;
        self.at += 1;
        self.row.try_get_by_index(at).map_err(|error| self.corrupt(at, &error))
    }

    fn corrupt(&self, at: usize, error: &dyn std::fmt::Display) -> Error {
        measure::violated(Invariant::UnreadableRow);
        Error::Corrupt { what: self.what.to_owned(), message: format!("column {at}: {error}") }
    }

    fn json<T: DeserializeOwned>(&mut self) -> Result<T, Error> {
        let at = self.at;
        let text: String = self.get()?;
        serde_json::from_str(&text).map_err(|error| self.corrupt(at, &error))
    }

    fn json_opt<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Error> {
        let at = self.at;
        let text: Option<String> = self.get()?;
        text.map(|text| serde_json::from_str(&text).map_err(|error| self.corrupt(at, &error))).transpose()
    }

    /// A pipeline's definition; what a later version has written is not guessed at.
    fn definition(&mut self) -> Result<PipelineDefinition, Error> {
        #[derive(serde::Deserialize)]
        struct Version {
            #[serde(rename = "formatVersion")]
            number: Option<u32>,
        }
        let (at, known) = (self.at, PipelineDefinition::FORMAT_VERSION);
        let text: String = self.get()?;
        let version: Version = serde_json::from_str(&text).map_err(|error| self.corrupt(at, &error))?;
        match version.number {
            Some(other) if other > known => {
                Err(self.corrupt(at, &format!("format {other} is not known; this binary knows {known}")))
            }
            _ => serde_json::from_str(&text).map_err(|error| self.corrupt(at, &error)),
        }
    }

    fn named<T: DeserializeOwned>(&mut self) -> Result<T, Error> {
        let at = self.at;
        let text: String = self.get()?;
        serde_json::from_value(serde_json::Value::String(text)).map_err(|error| self.corrupt(at, &error))
    }

    fn id<T: From<Uuid>>(&mut self) -> Result<T, Error> {
        self.get::<Uuid>().map(T::from)
    }

    fn id_opt<T: From<Uuid>>(&mut self) -> Result<Option<T>, Error> {
        Ok(self.get::<Option<Uuid>>()?.map(T::from))
    }

    pub(super) fn time(&mut self) -> Result<DateTime<Utc>, Error> {
        let at = self.at;
        let micros: i64 = self.get()?;
        DateTime::from_timestamp_micros(micros).ok_or_else(|| self.corrupt(at, &"not an instant"))
    }

    pub(super) fn time_opt(&mut self) -> Result<Option<DateTime<Utc>>, Error> {
        let at = self.at;
        let micros: Option<i64> = self.get()?;
        micros
            .map(|micros| DateTime::from_timestamp_micros(micros).ok_or_else(|| self.corrupt(at, &"not an instant")))
            .transpose()
    }

    fn small(&mut self) -> Result<i32, Error> {
        let at = self.at;
        let number: i64 = self.get()?;
        i32::try_from(number).map_err(|error| self.corrupt(at, &error))
    }

    /// Documents of a later format than this binary writes are not guessed at.
    fn format(&mut self) -> Result<(), Error> {
        let at = self.at;
        match self.get::<i64>()? {
            1..=FORMAT => Ok(()),
            other => Err(self.corrupt(at, &format!("format {other} is not known; this binary knows {FORMAT}"))),
        }
    }
}

// --- execution -----------------------------------------------------------------------------------

/// The pipeline is none once it was deleted.
pub(super) const EXECUTION: &str = "id, kind, application_id, application_name, \
    (SELECT p.id FROM pipeline p WHERE p.id = execution.pipeline_id) AS pipeline, name, revision, number, status, version, \
    event_seq, started_by, started_by_name, format, parameters, notifications, cancel, failure, created_at, \
    started_at, ended_at, deadline, triggered";

pub(super) const EXECUTION_INSERT: &str = "id, kind, application_id, application_name, pipeline_id, name, revision, \
    number, status, version, event_seq, started_by, started_by_name, format, parameters, notifications, cancel, \
    failure, created_at, started_at, ended_at, deadline, finished, wake_at, lease_owner, lease_number, triggered";

/// Without its stages.
pub(super) fn read_execution(reader: &mut Reader<'_>) -> Result<Execution, Error> {
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
pub(super) fn execution_row(execution: &Execution) -> Vec<Value> {
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

pub(super) const EXECUTION_UPDATE: &str = "UPDATE execution SET status = v.column2, finished = v.column3, \
    version = v.column4, event_seq = v.column5, wake_at = v.column6, started_at = v.column7, ended_at = v.column8, \
    deadline = v.column9, cancel = v.column10, failure = v.column11 FROM (VALUES";

pub(super) const EXECUTION_UPDATE_END: &str = ") AS v WHERE execution.id = v.column1";

/// In the order of [`EXECUTION_UPDATE`]: what may change. A finished execution is never due.
pub(super) fn execution_changes(execution: &Execution, wake_at: Option<DateTime<Utc>>) -> Vec<Value> {
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
pub(super) const EXECUTION_ADVANCE: &str =
    "UPDATE execution SET version = v.column2, event_seq = v.column3 FROM (VALUES";

/// What was moved in a row of [`execution_changes`] since it was made.
pub(super) fn execution_advanced(row: &mut [Value], version: i64, event_seq: i64) {
    row[3] = int(version);
    row[4] = int(event_seq);
}

// --- stage -----------------------------------------------------------------------------------------

pub(super) const STAGE: &str = "id, execution_id, key, parent_id, phase, kind, name, on_failure, position, attempt, \
    status, retries, timeout_seconds, deadline, started_at, ended_at, format, requires, wake, progress, unwinding, \
    failure, tasks, cursor, outputs, resolved, config";

pub(super) fn read_stage(row: &QueryResult) -> Result<Stage, Error> {
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
pub(super) fn stage_row(stage: &Stage) -> Vec<Value> {
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
pub(super) fn stage_conflict() -> String {
    let columns: Vec<String> = STAGE
        .split(", ")
        .map(str::trim)
        // What never changes is in the indexes, which would be written anew for it.
        .filter(|column| !["id", "execution_id", "position"].contains(column))
        .map(|column| format!("{column} = excluded.{column}"))
        .collect();
    format!("ON CONFLICT (id) DO UPDATE SET {}", columns.join(", "))
}

// --- event -----------------------------------------------------------------------------------------

pub(super) const EVENT: &str = "position, stream, seq, at, format, body";

pub(super) fn read_event(row: &QueryResult, stream: StreamId) -> Result<Event, Error> {
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

// --- the others --------------------------------------------------------------------------------------

pub(super) const APPLICATION: &str = "id, name, description, email, created_at, updated_at, version";

pub(super) fn read_application(row: &QueryResult) -> Result<Application, Error> {
    let reader = &mut Reader::new(row, "application");
    Ok(Application {
        id: reader.id()?,
        name: reader.get()?,
        description: reader.get()?,
        email: reader.get()?,
        created_at: reader.time()?,
        updated_at: reader.time()?,
        version: reader.get()?,
    })
}

pub(super) fn application_row(application: &Application) -> Vec<Value> {
    vec![
        id(application.id.uuid()),
        text(&application.name),
        text(&application.description),
        Value::String(application.email.clone()),
        time(application.created_at),
        time(application.updated_at),
        int(application.version),
    ]
}

pub(super) const PIPELINE: &str =
    "id, application_id, application_name, name, revision, definition, created_at, updated_at";

pub(super) fn read_pipeline(row: &QueryResult) -> Result<Pipeline, Error> {
    let reader = &mut Reader::new(row, "pipeline");
    Ok(Pipeline {
        id: reader.id()?,
        application: reader.id()?,
        application_name: reader.get()?,
        name: reader.get()?,
        revision: reader.get()?,
        definition: reader.definition()?,
        created_at: reader.time()?,
        updated_at: reader.time()?,
    })
}

pub(super) fn pipeline_row(pipeline: &Pipeline) -> Vec<Value> {
    vec![
        id(pipeline.id.uuid()),
        id(pipeline.application.uuid()),
        text(&pipeline.application_name),
        text(&pipeline.name),
        int(pipeline.revision),
        json(&pipeline.definition),
        time(pipeline.created_at),
        time(pipeline.updated_at),
    ]
}

pub(super) const REVISION: &str = "pipeline_id, number, definition, created_at, created_by, created_by_name";

pub(super) fn read_revision(row: &QueryResult) -> Result<Revision, Error> {
    let reader = &mut Reader::new(row, "revision");
    Ok(Revision {
        pipeline: reader.id()?,
        number: reader.get()?,
        definition: reader.definition()?,
        created_at: reader.time()?,
        created_by: reader.id()?,
        created_by_name: reader.get()?,
    })
}

pub(super) fn revision_row(revision: &Revision) -> Vec<Value> {
    vec![
        id(revision.pipeline.uuid()),
        int(revision.number),
        json(&revision.definition),
        time(revision.created_at),
        id(revision.created_by.uuid()),
        text(&revision.created_by_name),
    ]
}

/// Closes intents; a row is (id, when, outcome).
pub(super) const INTENT_CLOSE: &str = "UPDATE intent SET closed_at = v.column2, outcome = v.column3 FROM (VALUES";

pub(super) const INTENT_CLOSE_END: &str = ") AS v WHERE intent.id = v.column1";

pub(super) const INTENT: &str = "id, execution_id, stage_id, attempt, key, what, lease_number, created_at, deadline, \
    closed_at, outcome";

pub(super) fn read_intent(row: &QueryResult) -> Result<Intent, Error> {
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

pub(super) fn intent_row(intent: &Intent) -> Vec<Value> {
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

pub(super) const NOTIFICATION: &str = "id, occasion, application_name, execution_id, execution_name, \
    execution_number, stage_id, subject, message, created_at";

pub(super) fn read_notification(row: &QueryResult) -> Result<Notification, Error> {
    let reader = &mut Reader::new(row, "notification");
    Ok(Notification {
        id: reader.id()?,
        occasion: reader.named()?,
        application_name: reader.get()?,
        execution: reader.id()?,
        execution_name: reader.get()?,
        execution_number: reader.get()?,
        stage: reader.id_opt()?,
        subject: reader.get()?,
        text: reader.get()?,
        created_at: reader.time()?,
    })
}

pub(super) fn notification_row(notification: &Notification) -> Vec<Value> {
    vec![
        id(notification.id.uuid()),
        named(&notification.occasion),
        text(&notification.application_name),
        id(notification.execution.uuid()),
        text(&notification.execution_name),
        int(notification.execution_number),
        Value::Uuid(notification.stage.map(|stage| stage.uuid())),
        text(&notification.subject),
        text(&notification.text),
        time(notification.created_at),
    ]
}

/// Without the lease, which is the store's own.
pub(super) const DELIVERY: &str = "id, notification_id, execution_id, channel, target, state, attempts, next_at, \
    last_error, created_at, sent_at";

pub(super) fn read_delivery(row: &QueryResult) -> Result<Delivery, Error> {
    let reader = &mut Reader::new(row, "delivery");
    Ok(Delivery {
        id: reader.id()?,
        notification: reader.id()?,
        execution: reader.id()?,
        channel: reader.get()?,
        target: reader.get()?,
        state: reader.named()?,
        attempts: reader.small()?,
        next_at: reader.time_opt()?,
        last_error: reader.get()?,
        created_at: reader.time()?,
        sent_at: reader.time_opt()?,
    })
}

pub(super) fn delivery_row(delivery: &Delivery) -> Vec<Value> {
    vec![
        id(delivery.id.uuid()),
        id(delivery.notification.uuid()),
        id(delivery.execution.uuid()),
        text(&delivery.channel),
        text(&delivery.target),
        named(&delivery.state),
        int(delivery.attempts.into()),
        time_opt(delivery.next_at),
        Value::String(delivery.last_error.clone()),
        time(delivery.created_at),
        time_opt(delivery.sent_at),
    ]
}

pub(super) const IDEMPOTENCY: &str = "principal_id, key, input_hash, execution_id, created_at";

pub(super) fn read_idempotency(row: &QueryResult) -> Result<IdempotencyRecord, Error> {
    let reader = &mut Reader::new(row, "idempotency record");
    Ok(IdempotencyRecord {
        principal: reader.id()?,
        key: reader.get()?,
        input_hash: reader.get()?,
        execution: reader.id()?,
        created_at: reader.time()?,
    })
}

pub(super) fn idempotency_row(record: &IdempotencyRecord) -> Vec<Value> {
    vec![
        id(record.principal.uuid()),
        text(&record.key),
        Value::Bytes(Some(record.input_hash.clone())),
        id(record.execution.uuid()),
        time(record.created_at),
    ]
}

pub(super) const PRINCIPAL: &str = "id, name, kind, roles, created_at";

pub(super) fn read_principal(row: &QueryResult) -> Result<Principal, Error> {
    let reader = &mut Reader::new(row, "principal");
    Ok(Principal {
        id: reader.id()?,
        name: reader.get()?,
        kind: reader.named()?,
        roles: reader.json()?,
        created_at: reader.time()?,
    })
}

pub(super) fn principal_row(principal: &Principal) -> Vec<Value> {
    vec![
        id(principal.id.uuid()),
        text(&principal.name),
        named(&principal.kind),
        json(&principal.roles),
        time(principal.created_at),
    ]
}

pub(super) const TOKEN: &str = "id, principal_id, description, hash, created_at, expires_at, revoked_at";

pub(super) fn read_token(row: &QueryResult) -> Result<Token, Error> {
    let reader = &mut Reader::new(row, "token");
    Ok(Token {
        id: reader.id()?,
        principal: reader.id()?,
        description: reader.get()?,
        hash: reader.get()?,
        created_at: reader.time()?,
        expires_at: reader.time_opt()?,
        revoked_at: reader.time_opt()?,
    })
}

pub(super) fn token_row(token: &Token) -> Vec<Value> {
    vec![
        id(token.id.uuid()),
        id(token.principal.uuid()),
        text(&token.description),
        Value::Bytes(Some(token.hash.clone())),
        time(token.created_at),
        time_opt(token.expires_at),
        time_opt(token.revoked_at),
    ]
}

pub(super) const AUDIT: &str = "id, at, principal_id, principal_name, action, resource, detail";

pub(super) fn read_audit(row: &QueryResult) -> Result<AuditRow, Error> {
    let reader = &mut Reader::new(row, "audit row");
    Ok(AuditRow {
        id: reader.id()?,
        at: reader.time()?,
        principal: reader.id()?,
        principal_name: reader.get()?,
        action: reader.named()?,
        resource: reader.json()?,
        detail: reader.json()?,
    })
}

pub(super) fn audit_row(row: &AuditRow) -> Vec<Value> {
    vec![
        id(row.id.uuid()),
        time(row.at),
        id(row.principal.uuid()),
        text(&row.principal_name),
        named(&row.action),
        json(&row.resource),
        json(&row.detail),
    ]
}

pub(super) const TRIGGER: &str = "id, pipeline_id, key, kind, enabled, position, source_id, statuses, next_at, last_at, \
    last_execution_id, last_error, last_error_at, last_missed_at";

pub(super) fn read_trigger(reader: &mut Reader<'_>) -> Result<Trigger, Error> {
    Ok(Trigger {
        id: reader.id()?,
        pipeline: reader.id()?,
        key: reader.get()?,
        kind: reader.get()?,
        enabled: reader.get::<i64>()? != 0,
        position: reader.get()?,
        source: reader.id_opt()?,
        statuses: reader.get::<String>()?.split(',').filter_map(Status::from_name).collect(),
        next_at: reader.time_opt()?,
        last_at: reader.time_opt()?,
        last_execution: reader.id_opt()?,
        last_error: reader.get()?,
        last_error_at: reader.time_opt()?,
        last_missed_at: reader.time_opt()?,
    })
}

/// What a save writes of a trigger; what it has done so far stays.
pub(super) const TRIGGER_PUT: &str = "INSERT INTO pipeline_trigger (id, pipeline_id, key, kind, enabled, position, \
    source_id, statuses, next_at) VALUES (?,?,?,?,?,?,?,?,?) ON CONFLICT (id) DO UPDATE SET kind = excluded.kind, \
    enabled = excluded.enabled, position = excluded.position, source_id = excluded.source_id, \
    statuses = excluded.statuses, next_at = excluded.next_at";

/// In the order of [`TRIGGER_PUT`]. Statuses stand between commas, so that one can be searched for.
pub(super) fn trigger_row(trigger: &Trigger) -> Vec<Value> {
    let statuses: String = trigger.statuses.iter().map(|status| format!(",{}", status.as_str())).collect();
    vec![
        id(trigger.id.uuid()),
        id(trigger.pipeline.uuid()),
        text(&trigger.key),
        text(&trigger.kind),
        int(trigger.enabled.into()),
        int(trigger.position),
        Value::Uuid(trigger.source.map(|source| source.uuid())),
        text(&format!("{statuses},")),
        time_opt(trigger.next_at),
    ]
}

/// The end of an execution as a slot of every trigger that waits for it. Values: slot, instant,
/// execution, pipeline, `%,STATUS,%`.
pub(super) const SLOTS_OF_END: &str = "INSERT INTO trigger_slot (trigger_id, slot, created_at, source_id) \
    SELECT id, ?, ?, ? FROM pipeline_trigger WHERE source_id = ? AND enabled = 1 AND statuses LIKE ? \
    ON CONFLICT (trigger_id, slot) DO NOTHING";

pub(super) const SLOT: &str = "trigger_id, slot, created_at, done_at, execution_id, error";
