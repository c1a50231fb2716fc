//! Where a stage, a task or an execution stands, and what that means for what comes after it.

use serde::{Deserialize, Serialize};

/// The state of a stage, task or execution. Stored by name: append only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Status {
    /// Not begun.
    NotStarted,
    /// In progress.
    Running,
    /// Held by a person; resumable.
    Paused,
    /// Ended well.
    Succeeded,
    /// Failed, and what is downstream goes on, as configured.
    FailedContinue,
    /// Failed; nothing downstream may run. (Spinnaker's TERMINAL.)
    Failed,
    /// Ended by a person or by a sibling's failure.
    Canceled,
    /// Failed; this branch ends, others go on.
    Stopped,
    /// Left out.
    Skipped,
}

impl Status {
    /// Work has finished: nothing leaves such a state but an explicit restart.
    #[must_use]
    pub const fn is_complete(self) -> bool {
        !matches!(self, Self::NotStarted | Self::Running | Self::Paused)
    }

    /// What is downstream may start.
    #[must_use]
    pub const fn lets_downstream_start(self) -> bool {
        matches!(self, Self::Succeeded | Self::FailedContinue | Self::Skipped)
    }

    /// The name as stored and as shown.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotStarted => "NOT_STARTED",
            Self::Running => "RUNNING",
            Self::Paused => "PAUSED",
            Self::Succeeded => "SUCCEEDED",
            Self::FailedContinue => "FAILED_CONTINUE",
            Self::Failed => "FAILED",
            Self::Canceled => "CANCELED",
            Self::Stopped => "STOPPED",
            Self::Skipped => "SKIPPED",
        }
    }

    /// The state of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [
            Self::NotStarted,
            Self::Running,
            Self::Paused,
            Self::Succeeded,
            Self::FailedContinue,
            Self::Failed,
            Self::Canceled,
            Self::Stopped,
            Self::Skipped,
        ]
        .into_iter()
        .find(|status| status.as_str() == name)
    }
}

/// What a stage's failure does to the pipeline around it (the four choices of Spinnaker's
/// "if stage fails").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum OnFailure {
    /// Cancel the other branches and fail the pipeline.
    #[default]
    FailPipeline,
    /// End this branch; the others finish and the pipeline succeeds.
    StopBranch,
    /// End this branch; the others finish and the pipeline fails.
    StopBranchThenFail,
    /// Go on as if it had succeeded.
    Continue,
}

impl OnFailure {
    /// The status of a stage that failed under this choice.
    #[must_use]
    pub const fn status(self) -> Status {
        match self {
            Self::FailPipeline => Status::Failed,
            Self::StopBranch | Self::StopBranchThenFail => Status::Stopped,
            Self::Continue => Status::FailedContinue,
        }
    }
}
