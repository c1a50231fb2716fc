//! Intents: what an execution was about to do outside, and what came of it.

use async_graphql::{Enum, ID, SimpleObject};
use chrono::{DateTime, Utc};

use super::ids::Key;
use crate::store::{self, IntentOutcome};

/// How an effect ended.
#[derive(Enum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum IntentResult {
    /// It was done.
    Done,
    /// The other side refused or failed.
    Failed,
    /// Nobody can know; the stage looked, or asked, before it went on.
    Unknown,
}

/// A wish to touch something outside, recorded before it is done.
#[derive(SimpleObject)]
pub struct Intent {
    /// Opaque and global.
    #[graphql(owned)]
    pub id: ID,
    /// The id of the stage that had it.
    stage_id: ID,
    /// The stage's attempt.
    attempt: i32,
    /// Names the effect within the stage and attempt.
    key: String,
    /// For people: `create server group web-v002`.
    what: String,
    /// When it was recorded.
    created_at: DateTime<Utc>,
    /// The call has ended by then, one way or another.
    deadline: DateTime<Utc>,
    /// When its outcome was recorded.
    closed_at: Option<DateTime<Utc>>,
    /// What came of it; null while nobody has looked.
    result: Option<IntentResult>,
    /// Why it failed.
    message: Option<String>,
}

impl From<store::Intent> for Intent {
    fn from(intent: store::Intent) -> Self {
        let (result, message) = match intent.outcome {
            None => (None, None),
            Some(IntentOutcome::Done) => (Some(IntentResult::Done), None),
            Some(IntentOutcome::Failed { message }) => (Some(IntentResult::Failed), Some(message)),
            Some(IntentOutcome::Unknown) => (Some(IntentResult::Unknown), None),
        };
        Self {
            id: Key::Intent(intent.execution, intent.id).id(),
            stage_id: Key::Stage(intent.stage).id(),
            attempt: intent.attempt,
            key: intent.key,
            what: intent.what,
            created_at: intent.created_at,
            deadline: intent.deadline,
            closed_at: intent.closed_at,
            result,
            message,
        }
    }
}
