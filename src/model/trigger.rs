//! What starts a pipeline without anybody asking: as it is configured, as it stands, and what an
//! execution says of it afterwards.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{ExecutionId, PipelineId, Status, TriggerId};

/// A trigger as configured in a pipeline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TriggerSpec {
    /// Unique within the pipeline; letters, digits, `-` and `_`; at most 64.
    pub key: String,
    /// The kind's name in the registry: `cron`, `pipeline`.
    pub kind: String,
    /// False: it is kept, and starts nothing.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// As the kind's schema says.
    #[serde(default)]
    pub config: Value,
    /// An object: parameter name to value, or to an expression over `trigger`.
    #[serde(default)]
    pub parameters: Value,
}

const fn yes() -> bool {
    true
}

/// A trigger as it stands: a row, kept in the commits that save its pipeline.
#[derive(Debug, Clone, PartialEq)]
pub struct Trigger {
    /// The same over the pipeline's revisions while its key stays.
    pub id: TriggerId,
    /// The pipeline that it starts.
    pub pipeline: PipelineId,
    /// Unique within the pipeline.
    pub key: String,
    /// The kind's name in the registry.
    pub kind: String,
    /// False: it starts nothing.
    pub enabled: bool,
    /// Place in the pipeline's list, from 0.
    pub position: i64,
    /// The pipeline whose executions' ends start this one; it may have been deleted since.
    pub source: Option<PipelineId>,
    /// The ends that count.
    pub statuses: Vec<Status>,
    /// The next slot of a timetable; none where there is none, or it is disabled.
    pub next_at: Option<DateTime<Utc>>,
    /// When it last started an execution, and which.
    pub last_at: Option<DateTime<Utc>>,
    /// The execution that it last started.
    pub last_execution: Option<ExecutionId>,
    /// Why the newest slot started nothing; none once one has.
    pub last_error: Option<String>,
    /// When that was.
    pub last_error_at: Option<DateTime<Utc>>,
    /// The newest slot that was let go by, since no server was there in its time.
    pub last_missed_at: Option<DateTime<Utc>>,
}

/// The end of an execution that a trigger has still to act upon.
#[derive(Debug, Clone, PartialEq)]
pub struct PendingSlot {
    /// The trigger that has to act.
    pub trigger: Trigger,
    /// The execution that ended.
    pub source: ExecutionId,
}

/// Why an execution was started, where nobody asked for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Triggered {
    /// The trigger's kind and key as of then.
    pub kind: String,
    /// The trigger's key within its pipeline.
    pub key: String,
    /// The slot of the timetable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduled_at: Option<DateTime<Utc>>,
    /// The execution whose end it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<TriggerSource>,
    /// How many executions started each other before this one; 1 for the first that was triggered.
    pub depth: u32,
    /// A sentence for people.
    pub reason: String,
}

/// An execution that started another by its end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TriggerSource {
    /// Its id.
    pub execution: ExecutionId,
    /// The name of its application.
    pub application: String,
    /// The name of its pipeline as of then.
    pub pipeline: String,
    /// Its number within that pipeline.
    pub number: i64,
    /// What it ended as.
    pub status: Status,
}
