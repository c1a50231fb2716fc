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
    /// All have to hold, else nothing is written.
    pub guards: Vec<Guard>,
    /// Done in this order.
    pub writes: Vec<Write>,
    /// Appended after the writes, in this order.
    pub events: Vec<NewEvent>,
}

/// An event to append. For an execution's stream the caller, who holds the version, numbers it;
/// for the notifications the writer does (`seq` is None).
#[derive(Debug, Clone)]
pub struct NewEvent {
    /// The stream that it goes to.
    pub stream: StreamId,
    /// Its number in an execution's stream; None: the writer gives the next.
    pub seq: Option<i64>,
    /// When it happened.
    pub at: DateTime<Utc>,
    /// What happened.
    pub body: EventBody,
}

/// What must hold, in the transaction, for the writes to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Guard {
    /// The execution's version is still this one.
    ExecutionVersion {
        /// The execution.
        id: ExecutionId,
        /// As it was read.
        version: i64,
    },
    /// The lease is still held by this owner under this number.
    Lease {
        /// The execution that is worked on.
        execution: ExecutionId,
        /// Who holds it.
        owner: OwnerId,
        /// The fencing number.
        number: i64,
    },
    /// Nobody has asked to cancel it.
    NotCancelled {
        /// The execution.
        execution: ExecutionId,
    },
    /// The stage is the first in the cluster's queue.
    ClusterHeld {
        /// The cluster.
        key: ClusterKey,
        /// The stage that claims it.
        stage: StageId,
    },
    /// No application has this name.
    ApplicationNameFree {
        /// The name.
        name: String,
    },
    /// The application exists, at this version if one is given.
    Application {
        /// The application.
        id: ApplicationId,
        /// As it was read; None: any.
        version: Option<i64>,
    },
    /// No pipeline of the application has this name.
    PipelineNameFree {
        /// The application.
        application: ApplicationId,
        /// The name.
        name: String,
    },
    /// The pipeline exists and this is its newest revision.
    PipelineRevision {
        /// The pipeline.
        id: PipelineId,
        /// As it was read.
        revision: i64,
    },
    /// No unfinished execution of the application.
    NoneRunning {
        /// The application.
        application: ApplicationId,
    },
    /// No unfinished execution of the pipeline.
    NonePipelineRunning {
        /// The pipeline.
        pipeline: PipelineId,
    },
    /// Nothing was started under this key by this principal (in the last 24 hours at least).
    IdempotencyKeyFree {
        /// Whose key it is.
        principal: PrincipalId,
        /// The key as the client gave it.
        key: String,
    },
    /// No principal has this name.
    PrincipalNameFree {
        /// The name.
        name: String,
    },
    /// The trigger exists, and this is still its next slot.
    TriggerDue {
        /// The trigger.
        trigger: TriggerId,
        /// The slot.
        next_at: DateTime<Utc>,
    },
    /// Nobody has claimed this slot of the trigger.
    SlotFree {
        /// The trigger.
        trigger: TriggerId,
        /// The slot's key.
        slot: String,
    },
    /// The slot waits to be acted upon.
    SlotPending {
        /// The trigger.
        trigger: TriggerId,
        /// The slot's key.
        slot: String,
    },
    /// The delivery exists and stands there.
    Delivery {
        /// The delivery.
        id: DeliveryId,
        /// Where it has to stand.
        state: DeliveryState,
    },
    /// What was told last of the problem was told by this revision; None: nothing is known of it.
    ToldProblem {
        /// The problem.
        key: ProblemKey,
        /// The provider's revision, as it was read.
        revision: Option<i64>,
    },
}

/// One change.
#[derive(Debug, Clone)]
pub enum Write {
    /// A new one, whose name [`Guard::ApplicationNameFree`] has found free.
    InsertApplication(Application),
    /// Replaces the row of its id.
    UpdateApplication(Application),
    /// With its pipelines; its executions stay until retention takes them.
    DeleteApplication(ApplicationId),
    /// The pipeline and its first revision.
    InsertPipeline {
        /// The row.
        pipeline: Box<Pipeline>,
        /// Number 1.
        revision: Box<Revision>,
    },
    /// The pipeline as it is now, and its next revision.
    AddRevision {
        /// Replaces the row of its id.
        pipeline: Box<Pipeline>,
        /// Its number is the pipeline's.
        revision: Box<Revision>,
    },
    /// With its revisions and triggers; its executions stay until retention takes them.
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
        /// As it is now.
        execution: Box<Execution>,
        /// When the engine must look again.
        wake_at: Option<DateTime<Utc>>,
    },
    /// Only the version and the event sequence have moved: the execution is as due as it was. The
    /// cheapest change of an execution, since no index knows these two.
    AdvanceExecution {
        /// The execution.
        id: ExecutionId,
        /// The new one.
        version: i64,
        /// The number of its newest event now.
        event_seq: i64,
    },
    /// Inserts the stage, or replaces the row of its id (but for its execution and its position).
    PutStage(Box<Stage>),
    /// Before the call that it announces.
    InsertIntent(Intent),
    /// The call has ended.
    CloseIntent {
        /// The intent.
        id: IntentId,
        /// When.
        at: DateTime<Utc>,
        /// How.
        outcome: IntentOutcome,
    },
    /// The stage leaves every cluster's queue.
    ReleaseClusterClaims {
        /// The stage.
        stage: StageId,
    },
    /// Into the outbox; the event is given beside it.
    InsertNotification(Notification),
    /// The message it belongs to is inserted before it.
    InsertDelivery(Delivery),
    /// It is pending again and due, with all its tries before it.
    ReviveDelivery {
        /// The delivery.
        id: DeliveryId,
        /// When it is due: now.
        at: DateTime<Utc>,
    },
    /// The first that is told of the problem; its message is given beside it.
    InsertToldProblem(ToldProblem),
    /// More of it was told.
    UpdateToldProblem(ToldProblem),
    /// It is over for long enough, as if it had never been.
    ForgetToldProblem(ProblemKey),
    /// In the commit that inserts the execution.
    InsertIdempotency(IdempotencyRecord),
    /// Inserts the trigger, or replaces what a save says of the row of its id; what it has done
    /// so far stays.
    PutTrigger(Box<Trigger>),
    /// With its slots.
    DeleteTrigger(TriggerId),
    /// An execution of the pipeline has ended: every enabled trigger that waits for that gets a
    /// slot, to be acted upon by whoever comes first (see [`Committed::triggered`]).
    EndTriggers {
        /// The pipeline that was run.
        pipeline: PipelineId,
        /// The execution; the slot's key follows from it.
        execution: ExecutionId,
        /// What it ended as; triggers that do not wait for it get none.
        status: Status,
        /// When it ended.
        at: DateTime<Utc>,
    },
    /// The slot is claimed: nobody else can insert it.
    InsertSlot {
        /// The trigger.
        trigger: TriggerId,
        /// The slot's key, unique within the trigger.
        slot: String,
        /// When it was claimed.
        at: DateTime<Utc>,
        /// What it came to.
        outcome: SlotOutcome,
    },
    /// A slot that waited is acted upon.
    CloseSlot {
        /// The trigger.
        trigger: TriggerId,
        /// The slot's key.
        slot: String,
        /// When it was acted upon.
        at: DateTime<Utc>,
        /// What it came to.
        outcome: SlotOutcome,
    },
    /// The trigger waits for another slot. `missed`: one that was let go by.
    MoveTrigger {
        /// The trigger.
        trigger: TriggerId,
        /// The slot that it waits for; None: there is none any more.
        next_at: Option<DateTime<Utc>>,
        /// The newest slot that was let go by, if one was.
        missed: Option<DateTime<Utc>>,
    },
    /// A new one, whose name [`Guard::PrincipalNameFree`] has found free.
    InsertPrincipal(Principal),
    /// The row; the token's text is nowhere in it.
    InsertToken(Token),
    /// The token is no longer valid.
    RevokeToken {
        /// The token.
        id: TokenId,
        /// From when on.
        at: DateTime<Utc>,
    },
    /// The row that says who did what; part of every command's commit.
    InsertAudit(AuditRow),
}

/// A wish to touch something outside, recorded before it is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// Rises with time.
    pub id: IntentId,
    /// The execution that it is part of.
    pub execution: ExecutionId,
    /// The stage whose step it was.
    pub stage: StageId,
    /// The stage's attempt.
    pub attempt: i32,
    /// Names the effect within the stage and attempt: `create`, `call` …
    pub key: String,
    /// For people: `create server group web-v002`.
    pub what: String,
    /// Of the lease under which it was made: the call's fence.
    pub lease_number: i64,
    /// When it was committed.
    pub created_at: DateTime<Utc>,
    /// The call has ended by then, one way or another.
    pub deadline: DateTime<Utc>,
    /// When its outcome was written down; None: it is open.
    pub closed_at: Option<DateTime<Utc>>,
    /// None: not known.
    pub outcome: Option<IntentOutcome>,
}

/// How an effect ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum IntentOutcome {
    /// The other side has done it.
    Done,
    /// The other side has answered with an error, or the call was not made after all.
    Failed {
        /// Why, for people; cut short.
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
    /// Where the load balancer listens.
    pub place: Place,
    /// Its name.
    pub load_balancer: String,
    /// Of what sort the problem is.
    pub kind: LoadBalancerProblemKind,
    /// What of the load balancer: a listener's address, or a server group.
    pub about: String,
}

/// What people were told last of a problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToldProblem {
    /// Which problem.
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
    /// Who started it.
    pub principal: PrincipalId,
    /// The key as the client gave it; unique per principal.
    pub key: String,
    /// SHA-256 of the canonical input.
    pub input_hash: Vec<u8>,
    /// What was started.
    pub execution: ExecutionId,
    /// When; it is kept for at least 24 hours from then on.
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
    /// As it was given.
    pub guard: Guard,
}

/// A cluster: what one operation at a time may change.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ClusterKey {
    /// Where it runs.
    pub place: Place,
    /// `application[-stack[-detail]]`.
    pub cluster: String,
}
