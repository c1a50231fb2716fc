//! The queues before clusters.

use sea_orm::{ConnectionTrait, DbErr, Value};
use uuid::Uuid;

use super::Batch;
use crate::model::{ExecutionId, StageId};
use crate::store::sql::all;
use crate::store::{ClusterClaim, ClusterKey, Lease, rows};

impl<C: ConnectionTrait> Batch<'_, C> {
    pub(super) async fn claim_cluster(
        &mut self,
        lease: &Lease,
        key: &ClusterKey,
        stage: StageId,
        queue_max: usize,
    ) -> Result<ClusterClaim, DbErr> {
        self.flush().await?;
        let place = cluster_values(key);
        let mut queue = self.queue(&place).await?;
        if !queue.iter().any(|(_, queued)| *queued == stage) {
            // The counter's row is held until COMMIT: arrivals are in order, and counted right.
            let arrival = self.count("cluster_claim", 1).await?;
            queue = self.queue(&place).await?;
            if queue.len() > queue_max {
                return Ok(ClusterClaim::Full { limit: queue_max });
            }
            let sql = "INSERT INTO cluster_claim (account, location, cluster, stage_id, execution_id, arrival) \
                       VALUES (?,?,?,?,?,?)";
            let rest = [rows::id(stage.uuid()), rows::id(lease.execution.uuid()), rows::int(arrival)];
            self.script.push(sql, place.into_iter().chain(rest).collect());
            queue.push((lease.execution, stage));
        }
        let ahead: Vec<ExecutionId> =
            queue.into_iter().take_while(|(_, queued)| *queued != stage).map(|(execution, _)| execution).collect();
        Ok(if ahead.is_empty() { ClusterClaim::Held } else { ClusterClaim::Waiting { ahead } })
    }

    pub(super) async fn queue(&self, place: &[Value]) -> Result<Vec<(ExecutionId, StageId)>, DbErr> {
        all(self.db, QUEUE, place.to_vec()).await?.iter().map(queue_row).collect()
    }
}

/// A cluster as [`QUEUE`] wants it.
pub(super) fn cluster_values(key: &ClusterKey) -> Vec<Value> {
    vec![rows::text(&key.place.account), rows::text(&key.place.location), rows::text(&key.cluster)]
}

/// Who stands before a cluster, the holder first.
const QUEUE: &str = "SELECT execution_id, stage_id FROM cluster_claim WHERE account = ? AND location = ? AND cluster = ? ORDER BY arrival";

fn queue_row(row: &sea_orm::QueryResult) -> Result<(ExecutionId, StageId), DbErr> {
    let (execution, stage): (Uuid, Uuid) = (row.try_get_by_index(0)?, row.try_get_by_index(1)?);
    Ok((execution.into(), stage.into()))
}
