//! A commit made ready for the writer in the caller's task: documents are already text, so that
//! the writer only compares and sends.

use chrono::{DateTime, Utc};
use sea_orm::Value;
use uuid::Uuid;

use super::{ClusterKey, Commit, Guard, Lease, NewEvent, SlotOutcome, Write, rows};
use crate::model::{Execution, ExecutionId, OwnerId, Place, StageId, StreamId, TriggerId};

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
    /// It happens only if the one that leads it does: the last before it, in the same transaction,
    /// that follows none itself.
    pub follows: bool,
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
    AdvanceExecution {
        id: Uuid,
        version: i64,
        event_seq: i64,
    },
    PutStage {
        id: Uuid,
        row: Vec<Value>,
    },
    InsertExecution(Box<Execution>),
    InsertIntent(Vec<Value>),
    CloseIntent(Vec<Value>),
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
    /// An execution's end, for the triggers that wait for it: values of `rows::SLOTS_OF_END`.
    Ended(Vec<Value>),
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
        Write::AdvanceExecution { id, version, event_seq } => {
            ops.push(Op::AdvanceExecution { id: id.uuid(), version, event_seq });
        }
        Write::PutStage(stage) => ops.push(Op::PutStage { id: stage.id.uuid(), row: rows::stage_row(&stage) }),
        Write::InsertIntent(intent) => ops.push(Op::InsertIntent(rows::intent_row(&intent))),
        Write::CloseIntent { id, at, outcome } => {
            ops.push(Op::CloseIntent(vec![rows::id(id.uuid()), rows::time(at), rows::json(&outcome)]));
        }
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
        Write::InsertToldProblem(told) => {
            let row = told.key.values().into_iter().chain(rows::told_problem_row(&told)).collect();
            ops.push(insert("told_problem", rows::TOLD_PROBLEM, row));
        }
        Write::UpdateToldProblem(told) => ops.push(Op::Run {
            sql: "UPDATE told_problem SET message = ?, is_over = ?, begun_at = ?, told_at = ?, revision = ? \
                  WHERE account = ? AND location = ? AND load_balancer = ? AND kind = ? AND about = ?",
            values: rows::told_problem_row(&told).into_iter().chain(told.key.values()).collect(),
        }),
        Write::ForgetToldProblem(key) => ops.push(Op::Run {
            sql: "DELETE FROM told_problem \
                  WHERE account = ? AND location = ? AND load_balancer = ? AND kind = ? AND about = ?",
            values: key.values(),
        }),
        Write::InsertIdempotency(record) => {
            ops.push(insert("idempotency", rows::IDEMPOTENCY, rows::idempotency_row(&record)));
        }
        Write::PutTrigger(trigger) => {
            ops.push(Op::Run { sql: rows::TRIGGER_PUT, values: rows::trigger_row(&trigger) });
        }
        Write::DeleteTrigger(id) => {
            ops.push(Op::Run { sql: "DELETE FROM pipeline_trigger WHERE id = ?", values: vec![rows::id(id.uuid())] });
        }
        Write::EndTriggers { pipeline, execution, status, at } => ops.push(Op::Ended(vec![
            rows::text(&execution.to_string()),
            rows::time(at),
            rows::id(execution.uuid()),
            rows::id(pipeline.uuid()),
            rows::text(&format!("%,{},%", status.as_str())),
        ])),
        Write::InsertSlot { trigger, slot, at, outcome } => {
            let (execution, error) = outcome_columns(&outcome);
            let row =
                vec![rows::id(trigger.uuid()), rows::text(&slot), rows::time(at), rows::time(at), execution, error];
            ops.push(insert("trigger_slot", rows::SLOT, row));
            ops.push(ran(trigger, at, outcome));
        }
        Write::CloseSlot { trigger, slot, at, outcome } => {
            let (execution, error) = outcome_columns(&outcome);
            ops.push(Op::Run {
                sql: "UPDATE trigger_slot SET done_at = ?, execution_id = ?, error = ? WHERE trigger_id = ? AND slot = ?",
                values: vec![rows::time(at), execution, error, rows::id(trigger.uuid()), rows::text(&slot)],
            });
            ops.push(ran(trigger, at, outcome));
        }
        Write::MoveTrigger { trigger, next_at, missed } => ops.push(Op::Run {
            sql: "UPDATE pipeline_trigger SET next_at = ?, last_missed_at = COALESCE(?, last_missed_at) WHERE id = ?",
            values: vec![rows::time_opt(next_at), rows::time_opt(missed), rows::id(trigger.uuid())],
        }),
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

fn outcome_columns(outcome: &SlotOutcome) -> (Value, Value) {
    match outcome {
        SlotOutcome::Started(execution) => (rows::id(execution.uuid()), Value::String(None)),
        SlotOutcome::Refused(error) => (Value::Uuid(None), rows::text(error)),
    }
}

/// What the trigger's own row says of its newest slot.
fn ran(trigger: TriggerId, at: DateTime<Utc>, outcome: SlotOutcome) -> Op {
    let id = rows::id(trigger.uuid());
    match outcome {
        SlotOutcome::Started(execution) => Op::Run {
            sql: "UPDATE pipeline_trigger SET last_at = ?, last_execution_id = ?, last_error = NULL, \
                  last_error_at = NULL WHERE id = ?",
            values: vec![rows::time(at), rows::id(execution.uuid()), id],
        },
        SlotOutcome::Refused(error) => Op::Run {
            sql: "UPDATE pipeline_trigger SET last_error = ?, last_error_at = ? WHERE id = ?",
            values: vec![Value::String(Some(error)), rows::time(at), id],
        },
    }
}
