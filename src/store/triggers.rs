//! Triggers and their slots. Whether a slot is started is decided by guards of the commit that
//! starts it; what is read here only says where to try.

use chrono::{DateTime, Utc};
use sea_orm::Value;

use super::sql::{all, one};
use super::{Error, Store, rows};
use crate::model::{ApplicationId, PendingSlot, PipelineId, Trigger, TriggerId};

/// Triggers of one application that are read at once.
const TRIGGERS_MAX: i64 = 1_000;
/// Pairs of pipelines that are looked at for cycles.
const EDGES_MAX: i64 = 10_000;

/// One pipeline starts another by its executions' ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edge {
    /// The pipeline whose ends count.
    pub source: PipelineId,
    /// The pipeline that is started.
    pub target: PipelineId,
    /// `application/pipeline` of the target.
    pub target_name: String,
}

/// A trigger whose row cannot be read.
#[derive(Debug)]
pub struct Unreadable {
    /// None where even that cannot be read.
    pub trigger: Option<TriggerId>,
    /// Why.
    pub error: Error,
}

impl Unreadable {
    fn new(reader: &mut rows::Reader<'_>, error: Error) -> Self {
        Self { trigger: reader.get::<uuid::Uuid>().ok().map(TriggerId::from), error }
    }
}

impl Store {
    async fn some_triggers(&self, condition: &str, values: Vec<Value>) -> Result<Vec<Trigger>, Error> {
        let sql = format!("SELECT {} FROM pipeline_trigger WHERE {condition}", rows::TRIGGER);
        let rows = all(&self.inner.read, &sql, values).await?;
        rows.iter().map(|row| rows::read_trigger(&mut rows::Reader::new(row, "trigger"))).collect()
    }

    /// # Errors
    /// When the database cannot do it.
    pub async fn trigger(&self, id: TriggerId) -> Result<Option<Trigger>, Error> {
        Ok(self.some_triggers("id = ?", vec![rows::id(id.uuid())]).await?.pop())
    }

    /// A pipeline's triggers, in its order.
    ///
    /// # Errors
    /// When the database cannot do it.
    pub async fn triggers(&self, pipeline: PipelineId) -> Result<Vec<Trigger>, Error> {
        self.some_triggers("pipeline_id = ? ORDER BY position", vec![rows::id(pipeline.uuid())]).await
    }

    /// The triggers of an application's pipelines, at most 1,000.
    ///
    /// # Errors
    /// When the database cannot do it.
    pub async fn triggers_of(&self, application: ApplicationId) -> Result<Vec<Trigger>, Error> {
        let condition = "pipeline_id IN (SELECT id FROM pipeline WHERE application_id = ?) \
                         ORDER BY pipeline_id, position LIMIT ?";
        self.some_triggers(condition, vec![rows::id(application.uuid()), rows::int(TRIGGERS_MAX)]).await
    }

    /// Triggers whose next slot has come, the earliest first; one that cannot be read stands in no
    /// other's way.
    ///
    /// # Errors
    /// When the database cannot do it.
    pub async fn triggers_due(
        &self,
        now: DateTime<Utc>,
        limit: u64,
    ) -> Result<Vec<Result<Trigger, Unreadable>>, Error> {
        let sql = format!("SELECT {} FROM pipeline_trigger WHERE next_at <= ? ORDER BY next_at LIMIT ?", rows::TRIGGER);
        let limit = rows::int(i64::try_from(limit).unwrap_or(i64::MAX));
        let found = all(&self.inner.read, &sql, vec![rows::time(now), limit]).await?;
        let reader = |row| rows::Reader::new(row, "trigger");
        Ok(found
            .iter()
            .map(|row| rows::read_trigger(&mut reader(row)).map_err(|error| Unreadable::new(&mut reader(row), error)))
            .collect())
    }

    /// The earliest next slot of all triggers from an instant on.
    ///
    /// # Errors
    /// When the database cannot do it.
    pub async fn trigger_next(&self, from: DateTime<Utc>) -> Result<Option<DateTime<Utc>>, Error> {
        let sql = "SELECT next_at FROM pipeline_trigger WHERE next_at >= ? ORDER BY next_at LIMIT 1";
        match one(&self.inner.read, sql, vec![rows::time(from)]).await? {
            Some(row) => rows::Reader::new(&row, "trigger").time_opt(),
            None => Ok(None),
        }
    }

    /// Ends of executions that triggers have still to act upon, the oldest first.
    ///
    /// # Errors
    /// When the database cannot do it.
    pub async fn slots_pending(&self, limit: u64) -> Result<Vec<Result<PendingSlot, Unreadable>>, Error> {
        let columns: Vec<String> = rows::TRIGGER.split(", ").map(|column| format!("t.{}", column.trim())).collect();
        let sql = format!(
            "SELECT s.source_id, {} FROM trigger_slot s JOIN pipeline_trigger t ON t.id = s.trigger_id \
             WHERE s.done_at IS NULL ORDER BY s.created_at LIMIT ?",
            columns.join(", ")
        );
        let limit = rows::int(i64::try_from(limit).unwrap_or(i64::MAX));
        let found = all(&self.inner.read, &sql, vec![limit]).await?;
        let read = |row| {
            let reader = &mut rows::Reader::new(row, "slot of a trigger");
            let source = reader.get::<uuid::Uuid>()?.into();
            Ok(PendingSlot { source, trigger: rows::read_trigger(reader)? })
        };
        Ok(found
            .iter()
            .map(|row| {
                read(row).map_err(|error| {
                    let reader = &mut rows::Reader::new(row, "slot of a trigger");
                    let _ = reader.get::<uuid::Uuid>();
                    Unreadable::new(reader, error)
                })
            })
            .collect())
    }

    /// Which pipelines start which.
    ///
    /// # Errors
    /// When the database cannot do it.
    pub async fn trigger_edges(&self) -> Result<Vec<Edge>, Error> {
        let sql = "SELECT t.source_id, t.pipeline_id, p.application_name, p.name FROM pipeline_trigger t \
                   JOIN pipeline p ON p.id = t.pipeline_id WHERE t.source_id IS NOT NULL LIMIT ?";
        let found = all(&self.inner.read, sql, vec![rows::int(EDGES_MAX)]).await?;
        found
            .iter()
            .map(|row| {
                let reader = &mut rows::Reader::new(row, "trigger");
                let (source, target) = (reader.get::<uuid::Uuid>()?.into(), reader.get::<uuid::Uuid>()?.into());
                let (application, name): (String, String) = (reader.get()?, reader.get()?);
                Ok(Edge { source, target, target_name: format!("{application}/{name}") })
            })
            .collect()
    }

    /// Deletes slots that were acted upon before the instant; returns how many.
    ///
    /// # Errors
    /// When the database cannot do it; what was deleted until then stays deleted.
    pub async fn prune_slots(&self, before: DateTime<Utc>) -> Result<u64, Error> {
        let sql = "DELETE FROM trigger_slot WHERE (trigger_id, slot) IN (SELECT trigger_id, slot FROM trigger_slot \
                   WHERE done_at < ? ORDER BY done_at LIMIT 1000)";
        self.delete_all(sql, &[rows::time(before)]).await
    }
}
