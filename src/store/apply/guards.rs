//! What a commit demands of the rows, looked at within its transaction.

use sea_orm::{ConnectionTrait, DbErr, Value};
use uuid::Uuid;

use super::Batch;
use super::clusters::cluster_values;
use crate::store::sql::{for_update, one};
use crate::store::{Guard, rows};

impl<C: ConnectionTrait> Batch<'_, C> {
    pub(super) async fn holds(&mut self, guard: &Guard) -> Result<bool, DbErr> {
        match guard {
            Guard::ExecutionVersion { id, version } => {
                return Ok(self.rows.get(&id.uuid()).is_some_and(|row| row.version == *version));
            }
            Guard::Lease { execution, owner, number } => {
                return Ok(self
                    .rows
                    .get(&execution.uuid())
                    .is_some_and(|row| row.owner == Some(owner.uuid()) && row.lease == *number));
            }
            Guard::NotCancelled { execution } => {
                return Ok(self.rows.get(&execution.uuid()).is_some_and(|row| !row.cancelled));
            }
            _ => {}
        }
        // The others look at tables: what was gathered has to be there.
        self.flush().await?;
        let lock = for_update(self.db);
        Ok(match guard {
            Guard::ClusterHeld { key, stage } => {
                self.queue(&cluster_values(key)).await?.first().is_some_and(|(_, first)| first == stage)
            }
            Guard::ApplicationNameFree { name } => {
                self.none("SELECT 1 FROM application WHERE name = ?", vec![rows::text(name)]).await?
            }
            Guard::Application { id, version } => {
                let found = self.number("version", "application", id.uuid(), lock).await?;
                found.is_some_and(|found| version.is_none_or(|version| version == found))
            }
            Guard::PipelineNameFree { application, name } => {
                let values = vec![rows::id(application.uuid()), rows::text(name)];
                self.none("SELECT 1 FROM pipeline WHERE application_id = ? AND name = ?", values).await?
            }
            Guard::PipelineRevision { id, revision } => {
                self.number("revision", "pipeline", id.uuid(), lock).await? == Some(*revision)
            }
            Guard::NoneRunning { application } => {
                // Locked first, so that nothing starts between this look and COMMIT.
                self.number("version", "application", application.uuid(), lock).await?;
                let sql = "SELECT 1 FROM execution WHERE application_id = ? AND finished = 0 LIMIT 1";
                self.none(sql, vec![rows::id(application.uuid())]).await?
            }
            Guard::NonePipelineRunning { pipeline } => {
                self.number("revision", "pipeline", pipeline.uuid(), lock).await?;
                let sql = "SELECT 1 FROM execution WHERE pipeline_id = ? AND finished = 0 LIMIT 1";
                self.none(sql, vec![rows::id(pipeline.uuid())]).await?
            }
            Guard::IdempotencyKeyFree { principal, key } => {
                let values = vec![rows::id(principal.uuid()), rows::text(key)];
                self.none("SELECT 1 FROM idempotency WHERE principal_id = ? AND key = ?", values).await?
            }
            Guard::PrincipalNameFree { name } => {
                self.none("SELECT 1 FROM principal WHERE name = ?", vec![rows::text(name)]).await?
            }
            Guard::TriggerDue { trigger, next_at } => {
                let next = self.number("COALESCE(next_at, -1)", "pipeline_trigger", trigger.uuid(), lock).await?;
                next == Some(next_at.timestamp_micros())
            }
            Guard::SlotFree { trigger, slot } => {
                let values = vec![rows::id(trigger.uuid()), rows::text(slot)];
                self.none("SELECT 1 FROM trigger_slot WHERE trigger_id = ? AND slot = ?", values).await?
            }
            Guard::SlotPending { trigger, slot } => {
                let sql =
                    format!("SELECT 1 FROM trigger_slot WHERE trigger_id = ? AND slot = ? AND done_at IS NULL{lock}");
                !self.none(&sql, vec![rows::id(trigger.uuid()), rows::text(slot)]).await?
            }
            Guard::Delivery { id, state } => {
                let sql = format!("SELECT 1 FROM delivery WHERE id = ? AND state = ?{lock}");
                !self.none(&sql, vec![rows::id(id.uuid()), rows::named(state)]).await?
            }
            Guard::ToldProblem { key, revision } => {
                let sql = format!("SELECT revision FROM told_problem WHERE {}{lock}", rows::IS_PROBLEM);
                let found = one(self.db, &sql, key.values()).await?;
                found.map(|row| row.try_get_by_index::<i64>(0)).transpose()? == *revision
            }
            Guard::ExecutionVersion { .. } | Guard::Lease { .. } | Guard::NotCancelled { .. } => {
                unreachable!("answered above")
            }
        })
    }

    async fn none(&self, sql: &str, values: Vec<Value>) -> Result<bool, DbErr> {
        Ok(one(self.db, sql, values).await?.is_none())
    }

    async fn number(&self, column: &str, table: &str, id: Uuid, lock: &str) -> Result<Option<i64>, DbErr> {
        let sql = format!("SELECT {column} FROM {table} WHERE id = ?{lock}");
        one(self.db, &sql, vec![rows::id(id)]).await?.map(|row| row.try_get_by_index(0)).transpose()
    }
}
