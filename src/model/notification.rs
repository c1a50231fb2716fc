//! What people are told, and when.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{ExecutionId, NotificationId, StageId};

/// When a message is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Occasion {
    /// The execution began.
    Started,
    /// The execution succeeded.
    Completed,
    /// The execution failed.
    Failed,
    /// The execution was cancelled.
    Canceled,
    /// A manual judgment waits for a person.
    ApprovalNeeded,
}

/// A rule of a pipeline: on which occasions to tell whom. Without a channel the message goes to
/// the `notifications` feed only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NotificationRule {
    pub on: Vec<Occasion>,
}

/// A message: a row of the outbox, written in the transaction of what it tells about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notification {
    pub id: NotificationId,
    pub occasion: Occasion,
    pub application_name: String,
    pub execution: ExecutionId,
    pub execution_name: String,
    pub execution_number: i64,
    pub stage: Option<StageId>,
    /// One line.
    pub subject: String,
    /// A few lines of plain text.
    pub text: String,
    pub created_at: DateTime<Utc>,
}
