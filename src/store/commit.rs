//! A commit as data: guards, evaluated by the writer inside the transaction after the commits
//! before it, then writes. Refused commits touch no other; callers hear only after COMMIT.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::model::{
    Application, ApplicationId, AuditRow, Delivery, DeliveryId, DeliveryState, EventBody, Execution, ExecutionId,
    IntentId, LoadBalancerProblemKind, Notification, OwnerId, Pipeline, PipelineId, Place, Principal, PrincipalId,
    Revision, Stage, StageId, Status, StreamId, Token, TokenId, Trigger, TriggerId,
};

/// All of it or nothing.
#[derive(Debug, Clone, Default)]
pub struct Commit {
    pub guards: Vec<Guard>,
    pub writes: Vec<Write>,
    pub events: Vec<NewEvent>,
}

/// An event to append. For an execution's stream the caller, who holds the version, numbers it;
/// for the notifications the writer does (`seq` is None).
#[derive(Debug, Clone)]
pub struct NewEvent {
    pub stream: StreamId,
    pub seq: Option<i64>,
    pub at: DateTime<Utc>,
    pub body: EventBody,
}

/// What must hold, in the transaction, for the writes to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Guard {
    /// The execution's version is still this one.
    ExecutionVersion {
        id: ExecutionId,
        version: i64,
    },
    /// The lease is still held by this owner under this number.
    Lease {
        execution: ExecutionId,
        owner: OwnerId,
        number: i64,
    },
    /// Nobody has asked to cancel it.
    NotCancelled {
        execution: ExecutionId,
    },
    /// The stage is the first in the cluster's queue.
    ClusterHeld {
        key: ClusterKey,
        stage: StageId,
    },
    ApplicationNameFree {
        name: String,
    },
    /// The application exists, at this version if one is given.
    Application {
        id: ApplicationId,
        version: Option<i64>,
    },
    PipelineNameFree {
        application: ApplicationId,
        name: String,
    },
    /// The pipeline exists and this is its newest revision.
    PipelineRevision {
        id: PipelineId,
        revision: i64,
    },
    /// No unfinished execution of the application.
    NoneRunning {
        application: ApplicationId,
    },
    /// No unfinished execution of the pipeline.
    NonePipelineRunning {
        pipeline: PipelineId,
    },
    /// Nothing was started under this key by this principal (in the last 24 hours at least).
    IdempotencyKeyFree {
        principal: PrincipalId,
        key: String,
    },
    PrincipalNameFree {
        name: String,
    },
    /// The trigger exists, and this is still its next slot.
    TriggerDue {
        trigger: TriggerId,
        next_at: DateTime<Utc>,
    },
    /// Nobody has claimed this slot of the trigger.
    SlotFree {
        trigger: TriggerId,
        slot: String,
    },
    /// The slot waits to be acted upon.
    SlotPending {
        trigger: TriggerId,
        slot: String,
    },
    /// The delivery exists and stands there.
    Delivery {
        id: DeliveryId,
        state: DeliveryState,
    },
    /// What was told last of the problem was told by this revision; None: nothing is known of it.
    ToldProblem {
        key: ProblemKey,
        revision: Option<i64>,
    },
}

/// One change.
#[derive(Debug, Clone)]
pub enum Write {
    InsertApplication(Application),
    UpdateApplication(Application),
    /// With its pipelines; its executions stay until retention takes them.
    DeleteApplication(ApplicationId),
    /// The pipeline and its first revision.
    InsertPipeline {
        pipeline: Box<Pipeline>,
        revision: Box<Revision>,
    },
    /// The pipeline as it is now, and its next revision.
    AddRevision {
        pipeline: Box<Pipeline>,
        revision: Box<Revision>,
    },
    DeletePipeline(PipelineId),
    /// With all its stages. The writer gives it the next number (see [`Committed::numbers`]) and
    /// appends its first events: one for the execution (sequence 1) and one for each stage
    /// (2 …), and keeps `event_seq` accordingly. It is due at once.
    InsertExecution(Box<Execution>),
    /// What changes in an execution's own columns: status, version, event sequence, cancel,
    /// failure, start, end and deadline. `stages` is not looked at, nor is what stays as it was
    /// inserted (number, names, parameters, notifications); the lease stays too. `wake_at`: when
    /// the engine must look again, None for "only after a signal"; an ended execution is never due.
    UpdateExecution {
        execution: Box<Execution>,
        wake_at: Option<DateTime<Utc>>,
    },
    /// Only the version and the event sequence have moved: the execution is as due as it was. The
    /// cheapest change of an execution, since no index knows these two.
    AdvanceExecution {
        id: ExecutionId,
        version: i64,
        event_seq: i64,
    },
    /// Inserts the stage, or replaces the row of its id (but for its execution and its position).
    PutStage(Box<Stage>),
    InsertIntent(Intent),
    CloseIntent {
        id: IntentId,
        at: DateTime<Utc>,
        outcome: IntentOutcome,
    },
    /// The stage leaves every cluster's queue.
    ReleaseClusterClaims {
        stage: StageId,
    },
    /// Into the outbox; the event is given beside it.
    InsertNotification(Notification),
    /// The message it belongs to is inserted before it.
    InsertDelivery(Delivery),
    /// It is pending again and due, with all its tries before it.
    ReviveDelivery {
        id: DeliveryId,
        at: DateTime<Utc>,
    },
    /// The first that is told of the problem; its message is given beside it.
    InsertToldProblem(ToldProblem),
    /// More of it was told.
    UpdateToldProblem(ToldProblem),
    /// It is over for long enough, as if it had never been.
    ForgetToldProblem(ProblemKey),
    InsertIdempotency(IdempotencyRecord),
    /// Inserts the trigger, or replaces what a save says of the row of its id; what it has done
    /// so far stays.
    PutTrigger(Box<Trigger>),
    DeleteTrigger(TriggerId),
    /// An execution of the pipeline has ended: every enabled trigger that waits for that gets a
    /// slot, to be acted upon by whoever comes first (see [`Committed::triggered`]).
    EndTriggers {
        pipeline: PipelineId,
        execution: ExecutionId,
        status: Status,
        at: DateTime<Utc>,
    },
    /// The slot is claimed: nobody else can insert it.
    InsertSlot {
        trigger: TriggerId,
        slot: String,
        at: DateTime<Utc>,
        outcome: SlotOutcome,
    },
    /// A slot that waited is acted upon.
    CloseSlot {
        trigger: TriggerId,
        slot: String,
        at: DateTime<Utc>,
        outcome: SlotOutcome,
    },
    /// The trigger waits for another slot. `missed`: one that was let go by.
    MoveTrigger {
        trigger: TriggerId,
        next_at: Option<DateTime<Utc>>,
        missed: Option<DateTime<Utc>>,
    },
    InsertPrincipal(Principal),
    InsertToken(Token),
    RevokeToken {
        id: TokenId,
        at: DateTime<Utc>,
    },
    InsertAudit(AuditRow),
}

/// A wish to touch something outside, recorded before it is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    pub id: IntentId,
    pub execution: ExecutionId,
    pub stage: StageId,
    /// The stage's attempt.
    pub attempt: i32,
    /// Names the effect within the stage and attempt: `create`, `call` …
    pub key: String,
    /// For people: `create server group web-v002`.
    pub what: String,
    pub lease_number: i64,
    pub created_at: DateTime<Utc>,
    /// The call has ended by then, one way or another.
    pub deadline: DateTime<Utc>,
    pub closed_at: Option<DateTime<Utc>>,
    /// None: not known.
    pub outcome: Option<IntentOutcome>,
}

/// How an effect ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum IntentOutcome {
    Done,
    Failed {
        message: String,
    },
    /// Nobody can know; the stage looked, or asked, before it went on.
    Unknown,
}

/// What a trigger's slot came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SlotOutcome {
    /// This execution was started.
    Started(ExecutionId),
    /// Nothing was, for this reason.
    Refused(String),
}

/// Which problem: there is one of a kind about one thing of a load balancer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProblemKey {
    pub place: Place,
    pub load_balancer: String,
    pub kind: LoadBalancerProblemKind,
    pub about: String,
}

/// What people were told last of a problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToldProblem {
    pub key: ProblemKey,
    /// As it was told at the beginning.
    pub message: String,
    /// Its end was told too.
    pub is_over: bool,
    /// When its beginning was told.
    pub begun_at: DateTime<Utc>,
    /// When its beginning or end was told.
    pub told_at: DateTime<Utc>,
    /// The provider's revision at which it was so.
    pub revision: i64,
}

/// What was started under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyRecord {
    pub principal: PrincipalId,
    pub key: String,
    /// SHA-256 of the canonical input.
    pub input_hash: Vec<u8>,
    pub execution: ExecutionId,
    pub created_at: DateTime<Utc>,
}

/// What a commit gave.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Committed {
    /// The numbers of inserted executions, in the order of the writes.
    pub numbers: Vec<i64>,
    /// Slots of triggers that came to be by the ends of executions.
    pub triggered: u64,
}

/// The commit did not happen, or nobody knows.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CommitError {
    /// A guard did not hold: read again.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// It did not happen and may be tried again later: overloaded, disk full, connection lost before COMMIT.
    #[error("the database is not available: {0}")]
    Unavailable(String),
    /// COMMIT was sent and not answered: read again.
    #[error("the outcome of the commit is not known: {0}")]
    Unknown(String),
}

/// The guard that did not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{guard:?} does not hold")]
pub struct Refusal {
    pub guard: Guard,
}

/// A cluster: what one operation at a time may change.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ClusterKey {
    pub place: Place,
    /// `application[-stack[-detail]]`.
    pub cluster: String,
}
