//! A commit made ready for the writer in the caller's task: documents are already text, so that
//! the writer only compares and sends.

use chrono::{DateTime, Utc};
use sea_orm::Value;
use uuid::Uuid;

use super::{ClusterKey, Commit, Guard, Lease, NewEvent, Write, rows};
use crate::model::{Execution, ExecutionId, OwnerId, Place, StageId, StreamId};

/// What the writer does, all of it or nothing.
#[derive(Debug, Default)]
pub(super) struct Prepared {
    pub guards: Vec<Guard>,
    pub ops: Vec<Op>,
    pub events: Vec<NewRow>,
    /// Executions whose guarded columns have to be read first (and locked).
    pub rows: Vec<Uuid>,
    /// Executions that have work once this is committed.
    pub work: Vec<ExecutionId>,
}

/// An event ready to be written but for its position.
#[derive(Debug, Clone)]
pub(super) struct NewRow {
    pub stream: StreamId,
    pub seq: Option<i64>,
    pub at: DateTime<Utc>,
    pub body: String,
}

/// One change.
#[derive(Debug)]
pub(super) enum Op {
    UpdateExecution {
        id: Uuid,
        version: i64,
        cancelled: bool,
        finished: bool,
        row: Vec<Value>,
    },
    PutStage {
        id: Uuid,
        row: Vec<Value>,
    },
    InsertExecution(Box<Execution>),
    InsertIntent(Vec<Value>),
    /// A statement of its own.
    Run {
        sql: &'static str,
        values: Vec<Value>,
    },
    /// The same, answered by the number of rows it touched.
    Count {
        sql: &'static str,
        values: Vec<Value>,
    },
    /// `INSERT INTO table (columns) VALUES (row)`.
    Insert {
        table: &'static str,
        columns: &'static str,
        row: Vec<Value>,
    },
    Claim {
        me: OwnerId,
        execution: ExecutionId,
    },
    ClaimCluster {
        lease: Lease,
        key: ClusterKey,
        stage: StageId,
        queue_max: usize,
    },
    ReserveName {
        place: Place,
        name: String,
        stage: StageId,
        attempt: i32,
    },
    Beat(OwnerId),
    Prune {
        ended_before: DateTime<Utc>,
        keys_before: DateTime<Utc>,
        limit: u64,
    },
}

/// An event's body as it is stored.
pub(super) fn event_row(event: &NewEvent) -> NewRow {
    NewRow { stream: event.stream, seq: event.seq, at: event.at, body: body(&event.body) }
}

pub(super) fn body(body: &crate::model::EventBody) -> String {
    serde_json::to_string(body).expect("model types serialise to JSON")
}

/// Makes a commit ready.
pub(super) fn prepare(commit: Commit, now: DateTime<Utc>) -> Prepared {
    let mut prepared = Prepared::default();
    let mut leased = false;
    for guard in &commit.guards {
        match guard {
            Guard::ExecutionVersion { id, .. } => prepared.rows.push(id.uuid()),
            Guard::Lease { execution, .. } => {
                leased = true;
                prepared.rows.push(execution.uuid());
            }
            Guard::NotCancelled { execution } => prepared.rows.push(execution.uuid()),
            _ => {}
        }
    }
    for write in commit.writes {
        match &write {
            Write::InsertExecution(execution) => prepared.work.push(execution.id),
            Write::UpdateExecution { execution, wake_at } if !leased && wake_at.is_some_and(|at| at <= now) => {
                prepared.work.push(execution.id);
            }
            _ => {}
        }
        push(&mut prepared.ops, write);
    }
    prepared.rows.sort_unstable();
    prepared.rows.dedup();
    prepared.guards = commit.guards;
    prepared.events = commit.events.iter().map(event_row).collect();
    prepared
}

fn push(ops: &mut Vec<Op>, write: Write) {
    let insert = |table, columns, row| Op::Insert { table, columns, row };
    match write {
        Write::InsertApplication(application) => {
            ops.push(insert("application", rows::APPLICATION, rows::application_row(&application)));
        }
        Write::UpdateApplication(application) => ops.push(Op::Run {
            sql: "UPDATE application SET name = ?, description = ?, email = ?, updated_at = ?, version = ? WHERE id = ?",
            values: vec![
                rows::text(&application.name),
                rows::text(&application.description),
                Value::String(application.email),
                rows::time(application.updated_at),
                rows::int(application.version),
                rows::id(application.id.uuid()),
            ],
        }),
        Write::DeleteApplication(id) => {
            ops.push(Op::Run { sql: "DELETE FROM application WHERE id = ?", values: vec![rows::id(id.uuid())] });
        }
        Write::InsertPipeline { pipeline, revision } => {
            ops.push(insert("pipeline", rows::PIPELINE, rows::pipeline_row(&pipeline)));
            ops.push(insert("revision", rows::REVISION, rows::revision_row(&revision)));
        }
        Write::AddRevision { pipeline, revision } => {
            ops.push(Op::Run {
                sql: "UPDATE pipeline SET name = ?, revision = ?, definition = ?, updated_at = ? WHERE id = ?",
                values: vec![
                    rows::text(&pipeline.name),
                    rows::int(pipeline.revision),
                    rows::json(&pipeline.definition),
                    rows::time(pipeline.updated_at),
                    rows::id(pipeline.id.uuid()),
                ],
            });
            ops.push(insert("revision", rows::REVISION, rows::revision_row(&revision)));
        }
        Write::DeletePipeline(id) => {
            ops.push(Op::Run { sql: "DELETE FROM pipeline WHERE id = ?", values: vec![rows::id(id.uuid())] });
        }
        Write::InsertExecution(execution) => ops.push(Op::InsertExecution(execution)),
        Write::UpdateExecution { execution, wake_at } => ops.push(Op::UpdateExecution {
            id: execution.id.uuid(),
            version: execution.version,
            cancelled: execution.cancel.is_some(),
            finished: execution.status.is_complete(),
            row: rows::execution_changes(&execution, wake_at),
        }),
        Write::PutStage(stage) => ops.push(Op::PutStage { id: stage.id.uuid(), row: rows::stage_row(&stage) }),
        Write::InsertIntent(intent) => ops.push(Op::InsertIntent(rows::intent_row(&intent))),
        Write::CloseIntent { id, at, outcome } => ops.push(Op::Run {
            sql: "UPDATE intent SET closed_at = ?, outcome = ? WHERE id = ?",
            values: vec![rows::time(at), rows::json(&outcome), rows::id(id.uuid())],
        }),
        Write::ReleaseClusterClaims { stage } => ops.push(Op::Run {
            sql: "DELETE FROM cluster_claim WHERE stage_id = ?",
            values: vec![rows::id(stage.uuid())],
        }),
        Write::InsertNotification(notification) => {
            ops.push(insert("notification", rows::NOTIFICATION, rows::notification_row(&notification)));
        }
        Write::InsertDelivery(delivery) => {
            ops.push(insert("delivery", rows::DELIVERY, rows::delivery_row(&delivery)));
        }
        Write::ReviveDelivery { id, at } => ops.push(Op::Run {
            sql: "UPDATE delivery SET state = 'PENDING', attempts = 0, next_at = ?, lease_owner = NULL WHERE id = ?",
            values: vec![rows::time(at), rows::id(id.uuid())],
        }),
        Write::InsertIdempotency(record) => {
            ops.push(insert("idempotency", rows::IDEMPOTENCY, rows::idempotency_row(&record)));
        }
        Write::InsertPrincipal(principal) => {
            ops.push(insert("principal", rows::PRINCIPAL, rows::principal_row(&principal)));
        }
        Write::InsertToken(token) => ops.push(insert("token", rows::TOKEN, rows::token_row(&token))),
        Write::RevokeToken { id, at } => ops.push(Op::Run {
            sql: "UPDATE token SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL",
            values: vec![rows::time(at), rows::id(id.uuid())],
        }),
        Write::InsertAudit(row) => ops.push(insert("audit", rows::AUDIT, rows::audit_row(&row))),
    }
}
