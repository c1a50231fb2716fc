//! What people save: applications, pipelines with their revisions and triggers, and the slots of these.

use sea_orm::{QueryResult, Value};

use super::{Reader, id, int, json, text, time, time_opt};
use crate::model::{Application, Pipeline, Revision, Status, Trigger};
use crate::store::Error;

pub const APPLICATION: &str = "id, name, description, email, created_at, updated_at, version";

pub fn read_application(row: &QueryResult) -> Result<Application, Error> {
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

pub fn application_row(application: &Application) -> Vec<Value> {
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

pub const PIPELINE: &str = "id, application_id, application_name, name, revision, definition, created_at, updated_at";

pub fn read_pipeline(row: &QueryResult) -> Result<Pipeline, Error> {
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

pub fn pipeline_row(pipeline: &Pipeline) -> Vec<Value> {
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

pub const REVISION: &str = "pipeline_id, number, definition, created_at, created_by, created_by_name";

pub fn read_revision(row: &QueryResult) -> Result<Revision, Error> {
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

pub fn revision_row(revision: &Revision) -> Vec<Value> {
    vec![
        id(revision.pipeline.uuid()),
        int(revision.number),
        json(&revision.definition),
        time(revision.created_at),
        id(revision.created_by.uuid()),
        text(&revision.created_by_name),
    ]
}

pub const TRIGGER: &str = "id, pipeline_id, key, kind, enabled, position, source_id, statuses, next_at, last_at, \
    last_execution_id, last_error, last_error_at, last_missed_at";

pub fn read_trigger(reader: &mut Reader<'_>) -> Result<Trigger, Error> {
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
pub const TRIGGER_PUT: &str = "INSERT INTO pipeline_trigger (id, pipeline_id, key, kind, enabled, position, \
    source_id, statuses, next_at) VALUES (?,?,?,?,?,?,?,?,?) ON CONFLICT (id) DO UPDATE SET kind = excluded.kind, \
    enabled = excluded.enabled, position = excluded.position, source_id = excluded.source_id, \
    statuses = excluded.statuses, next_at = excluded.next_at";

/// In the order of [`TRIGGER_PUT`]. Statuses stand between commas, so that one can be searched for.
pub fn trigger_row(trigger: &Trigger) -> Vec<Value> {
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
pub const SLOTS_OF_END: &str = "INSERT INTO trigger_slot (trigger_id, slot, created_at, source_id) \
    SELECT id, ?, ?, ? FROM pipeline_trigger WHERE source_id = ? AND enabled = 1 AND statuses LIKE ? \
    ON CONFLICT (trigger_id, slot) DO NOTHING";

pub const SLOT: &str = "trigger_id, slot, created_at, done_at, execution_id, error";
