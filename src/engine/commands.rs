//! What people, bots and triggers may ask for. Each is one function that takes who acts, checks
//! that they may, and commits state, events and audit row in one transaction.

use serde_json::Value;

use crate::model::{
    Actor, Application, ApplicationId, CancelMode, Execution, ExecutionId, Pipeline, PipelineDefinition, PipelineId,
    StageId, StageSpec,
};

/// Why a command was refused: a closed set, shown to clients as an enum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The thing named does not exist, or may not be seen.
    NotFound,
    /// A name is taken, or something changed meanwhile.
    Conflict,
    /// The input does not hold: the field says where.
    Invalid,
    /// The actor may not do this.
    Forbidden,
    /// The thing is in a state in which this cannot be done.
    WrongState,
    /// The idempotency key was used with another input.
    IdempotencyKeyReused,
    /// The server cannot do it now; try again.
    Unavailable,
}

/// A command was refused; nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    pub code: Code,
    /// What failed, on what, and what to do.
    pub message: String,
    /// Where in the input: `["stages", "1", "config", "capacity"]`.
    pub field: Vec<String>,
}

/// What to start.
#[derive(Debug, Clone)]
pub struct StartPipeline {
    pub pipeline: PipelineId,
    /// An object, or null.
    pub parameters: Value,
    /// 1 to 128 characters; kept for at least 24 hours per principal.
    pub idempotency_key: Option<String>,
}

/// An ad-hoc operation: one or a few stages without a pipeline.
#[derive(Debug, Clone)]
pub struct StartOperation {
    pub application: ApplicationId,
    /// For people: `Resize hello-v002 to 5`.
    pub title: String,
    pub stages: Vec<StageSpec>,
    pub idempotency_key: Option<String>,
}

/// An execution was started, or found by its key.
#[derive(Debug, Clone)]
pub struct Started {
    pub execution: Execution,
    /// It was started by an earlier call with the same key.
    pub replay: bool,
}

/// A person's word on a manual judgment.
#[derive(Debug, Clone)]
pub struct Judgment {
    pub stage: StageId,
    /// True: go on; false: stop.
    pub proceed: bool,
    /// One of the stage's inputs, if it has any.
    pub input: Option<String>,
    pub comment: Option<String>,
}

/// A pipeline to create, or the next revision of one.
#[derive(Debug, Clone)]
pub struct SavePipeline {
    pub application: ApplicationId,
    pub name: String,
    pub definition: PipelineDefinition,
    /// The revision that the caller has read; the save is refused if there is a newer one.
    pub expected_revision: Option<i64>,
}

/// An application to create or change.
#[derive(Debug, Clone)]
pub struct SaveApplication {
    pub name: String,
    pub description: String,
    pub email: Option<String>,
}

/// Where commands are given. Cheap to clone.
#[derive(Clone)]
pub struct Commands {}

#[allow(unused_variables, clippy::unused_async, clippy::todo, clippy::missing_errors_doc)]
impl Commands {
    pub async fn start_pipeline(&self, actor: &Actor, start: StartPipeline) -> Result<Started, Error> {
        todo!()
    }
    pub async fn start_operation(&self, actor: &Actor, start: StartOperation) -> Result<Started, Error> {
        todo!()
    }
    /// Cancelling what is being cancelled or over is `WrongState`.
    pub async fn cancel(
        &self,
        actor: &Actor,
        execution: ExecutionId,
        reason: &str,
        mode: CancelMode,
    ) -> Result<Execution, Error> {
        todo!()
    }
    pub async fn judge(&self, actor: &Actor, judgment: Judgment) -> Result<Execution, Error> {
        todo!()
    }
    pub async fn create_application(&self, actor: &Actor, save: SaveApplication) -> Result<Application, Error> {
        todo!()
    }
    /// The name stays.
    pub async fn update_application(
        &self,
        actor: &Actor,
        id: ApplicationId,
        save: SaveApplication,
    ) -> Result<Application, Error> {
        todo!()
    }
    /// Refused while an execution runs.
    pub async fn delete_application(&self, actor: &Actor, id: ApplicationId) -> Result<(), Error> {
        todo!()
    }
    pub async fn save_pipeline(&self, actor: &Actor, save: SavePipeline) -> Result<Pipeline, Error> {
        todo!()
    }
    pub async fn delete_pipeline(&self, actor: &Actor, id: PipelineId) -> Result<(), Error> {
        todo!()
    }
    /// The first fault of a definition, by path: keys, references, cycles, kinds, configs, limits.
    pub fn validate_definition(&self, definition: &PipelineDefinition) -> Result<(), Error> {
        todo!()
    }
}
