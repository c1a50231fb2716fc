//! What people, bots and triggers may ask for. Each is one function that takes who acts, checks
//! that they may, and commits state, events and audit row in one transaction.

mod deliveries;
mod fire;
mod save;
mod start;
mod steer;
mod triggers;

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde_json::Value;
use tokio::sync::Notify;
use tracing::field::{Empty, display};
use tracing::{Instrument as _, Span, error_span};

pub(super) use fire::variables as trigger_variables;
pub use fire::{Fired, Slot};

use super::contract::Registry;
use super::{Options, notices, validate};
use crate::auth::{self, Denied};
use crate::clock::Clock;
use crate::model::{
    Action, Actor, Application, ApplicationId, AuditId, AuditRow, CancelMode, Delivery, DeliveryId, Execution,
    ExecutionId, Pipeline, PipelineDefinition, PipelineId, Resource, StageId, StageSpec, Trigger,
};
use crate::store::{self, CommitError, Store, Write};

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
    /// What sort of refusal.
    pub code: Code,
    /// What failed, on what, and what to do.
    pub message: String,
    /// Where in the input: `["stages", "1", "config", "capacity"]`.
    pub field: Vec<String>,
}

/// What to start.
#[derive(Debug, Clone)]
pub struct StartPipeline {
    /// The pipeline; its newest revision is run.
    pub pipeline: PipelineId,
    /// An object, or null.
    pub parameters: Value,
    /// 1 to 128 characters; kept for at least 24 hours per principal.
    pub idempotency_key: Option<String>,
}

/// An ad-hoc operation: one or a few stages without a pipeline.
#[derive(Debug, Clone)]
pub struct StartOperation {
    /// The application that it belongs to.
    pub application: ApplicationId,
    /// For people: `Resize hello-v002 to 5`.
    pub title: String,
    /// What is done; at least one.
    pub stages: Vec<StageSpec>,
    /// As of [`StartPipeline`].
    pub idempotency_key: Option<String>,
}

/// An execution was started, or found by its key.
#[derive(Debug, Clone)]
pub struct Started {
    /// With its stages.
    pub execution: Execution,
    /// It was started by an earlier call with the same key.
    pub replay: bool,
}

/// A person's word on a manual judgment.
#[derive(Debug, Clone)]
pub struct Judgment {
    /// The stage that waits for it.
    pub stage: StageId,
    /// True: go on; false: stop.
    pub proceed: bool,
    /// One of the stage's inputs, if it has any.
    pub input: Option<String>,
    /// In the person's own words.
    pub comment: Option<String>,
}

/// A pipeline to create, or the next revision of one.
#[derive(Debug, Clone)]
pub struct SavePipeline {
    /// The application that it belongs to.
    pub application: ApplicationId,
    /// The name under which it is found or made.
    pub name: String,
    /// What it is to do from now on.
    pub definition: PipelineDefinition,
    /// The revision that the caller has read; the save is refused if there is a newer one.
    pub expected_revision: Option<i64>,
}

/// A pipeline to check, whose application need not be there yet.
#[derive(Debug, Clone)]
pub struct CheckPipeline {
    /// That application's name.
    pub application: String,
    /// The name under which it would be saved.
    pub name: String,
    /// What it would do.
    pub definition: PipelineDefinition,
    /// As of [`SavePipeline`].
    pub expected_revision: Option<i64>,
    /// Pipelines that are made or changed together with it.
    pub beside: Vec<PipelineBeside>,
}

/// What a pipeline will be when the one beside it is saved: its name, and the pipelines whose ends
/// start it.
#[derive(Debug, Clone)]
pub struct PipelineBeside {
    /// The pipeline's name.
    pub name: PipelineName,
    /// Those whose ends will start it, once it is saved.
    pub started_by: Vec<PipelineName>,
}

/// Application and name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PipelineName {
    /// The application's name.
    pub application: String,
    /// The pipeline's name within it.
    pub name: String,
}

/// An application to create or change.
#[derive(Debug, Clone)]
pub struct SaveApplication {
    /// How it is found; of one that is there it cannot be changed.
    pub name: String,
    /// For people; may be empty.
    pub description: String,
    /// Whom to ask.
    pub email: Option<String>,
}

/// Where commands are given. Cheap to clone.
#[derive(Clone)]
pub struct Commands {
    store: Store,
    registry: Registry,
    clock: Clock,
    options: Arc<Options>,
    /// Told when a trigger may have something to do.
    slots: Arc<Notify>,
}

impl Commands {
    pub(super) fn new(store: Store, registry: Registry, clock: Clock, options: Options, slots: Arc<Notify>) -> Self {
        Self { store, registry, clock, options: Arc::new(options), slots }
    }

    /// Acts upon a slot of a trigger, once, whoever else tries: starts the pipeline as the
    /// principal who saved its newest revision, with that principal's roles of today. What may not
    /// start is noted at the trigger, and the slot is over too.
    ///
    /// # Errors
    /// `Unavailable`: nobody knows; look again.
    pub async fn fire_trigger(&self, trigger: &Trigger, slot: &Slot) -> Result<Fired, Error> {
        let span = error_span!("trigger", trigger.id = %trigger.id, source.execution.id = Empty, execution.id = Empty);
        if let Slot::Ended(source) = slot {
            span.record("source.execution.id", display(source));
        }
        fire::fire(self, trigger, slot).instrument(span).await
    }

    /// Lets slots of a timetable go by: the trigger waits for `next` instead of `due`.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn pass_trigger(
        &self,
        trigger: &Trigger,
        due: DateTime<Utc>,
        next: Option<DateTime<Utc>>,
        missed: Option<DateTime<Utc>>,
    ) -> Result<(), Error> {
        fire::pass(self, trigger, due, next, missed).await
    }

    /// Starts the pipeline's newest revision, or finds what was started under the key.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`, `Invalid` (a parameter is missing, unknown or not one of its
    /// options), `IdempotencyKeyReused`, `Unavailable`.
    pub async fn start_pipeline(&self, actor: &Actor, start: StartPipeline) -> Result<Started, Error> {
        start::pipeline(self, actor, start).instrument(command()).await
    }

    /// Starts stages without a pipeline.
    ///
    /// # Errors
    /// As [`Commands::start_pipeline`].
    pub async fn start_operation(&self, actor: &Actor, start: StartOperation) -> Result<Started, Error> {
        start::operation(self, actor, start).instrument(command()).await
    }

    /// Whether [`Commands::start_operation`] would start it once its application is there; nothing
    /// changes.
    ///
    /// # Errors
    /// Everything that it would be refused for.
    pub fn check_operation(
        &self,
        actor: &Actor,
        application: &str,
        title: &str,
        stages: &[StageSpec],
    ) -> Result<(), Vec<Error>> {
        start::check_operation(self, actor, application, title, stages)
    }

    /// Cancelling what is being cancelled or over is `WrongState`.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`, `WrongState`, `Invalid` (the reason is too long), `Unavailable`.
    pub async fn cancel(
        &self,
        actor: &Actor,
        execution: ExecutionId,
        reason: &str,
        mode: CancelMode,
    ) -> Result<Execution, Error> {
        let span = command();
        span.record("execution.id", display(execution));
        steer::cancel(self, actor, execution, reason, mode).instrument(span).await
    }

    /// Gives a waiting manual judgment its answer.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`, `WrongState` (it does not wait), `Invalid` (no such input), `Unavailable`.
    pub async fn judge(&self, actor: &Actor, judgment: Judgment) -> Result<Execution, Error> {
        let span = command();
        span.record("stage.id", display(judgment.stage));
        steer::judge(self, actor, judgment).instrument(span).await
    }

    /// Has a delivery that was given up tried again, with all its tries before it.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`, `WrongState` (it is on its way, or was sent), `Unavailable`.
    pub async fn retry_delivery(&self, actor: &Actor, id: DeliveryId) -> Result<Delivery, Error> {
        deliveries::retry(self, actor, id)
            .instrument(error_span!("command", delivery.id = %id, execution.id = Empty))
            .await
    }

    /// Says whether the actor may send a message for a test, and writes down that they do.
    ///
    /// # Errors
    /// `Forbidden`, `Invalid` (not an address), `Unavailable`.
    pub async fn note_test_mail(&self, actor: &Actor, address: &str) -> Result<(), Error> {
        deliveries::note_test(self, actor, address).await
    }

    /// # Errors
    /// `Forbidden`, `Invalid`, `Conflict` (the name is taken), `Unavailable`.
    pub async fn create_application(&self, actor: &Actor, save: SaveApplication) -> Result<Application, Error> {
        save::create_application(self, actor, save).await
    }

    /// Whether [`Commands::create_application`], or for one that is there
    /// [`Commands::update_application`], would do it; nothing changes.
    ///
    /// # Errors
    /// Everything that it would be refused for.
    pub async fn check_application(
        &self,
        actor: &Actor,
        save: SaveApplication,
        is_new: bool,
    ) -> Result<(), Vec<Error>> {
        save::check_application(self, actor, &save, is_new).await
    }

    /// The name stays.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`, `Invalid`, `Conflict` (it changed meanwhile), `Unavailable`.
    pub async fn update_application(
        &self,
        actor: &Actor,
        id: ApplicationId,
        save: SaveApplication,
    ) -> Result<Application, Error> {
        save::update_application(self, actor, id, save).await
    }

    /// Refused while an execution runs.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`, `WrongState`, `Unavailable`.
    pub async fn delete_application(&self, actor: &Actor, id: ApplicationId) -> Result<(), Error> {
        save::delete_application(self, actor, id).await
    }

    /// Creates the pipeline of that name, or adds its next revision.
    ///
    /// # Errors
    /// `NotFound` (the application), `Forbidden`, `Invalid`, `Conflict` (a newer revision), `Unavailable`.
    pub async fn save_pipeline(&self, actor: &Actor, save: SavePipeline) -> Result<Pipeline, Error> {
        save::save_pipeline(self, actor, save).await
    }

    /// Whether [`Commands::save_pipeline`] would save it, once what is made together with it is
    /// there; nothing changes.
    ///
    /// # Errors
    /// Everything that it would be refused for.
    pub async fn check_pipeline(&self, actor: &Actor, check: CheckPipeline) -> Result<(), Vec<Error>> {
        save::check_pipeline(self, actor, check).await
    }

    /// Refused while an execution of it runs.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`, `WrongState`, `Unavailable`.
    pub async fn delete_pipeline(&self, actor: &Actor, id: PipelineId) -> Result<(), Error> {
        save::delete_pipeline(self, actor, id).await
    }

    /// The first fault of a definition, by path: keys, references, cycles, kinds, configs, limits.
    ///
    /// # Errors
    /// `Invalid`, with the field.
    pub fn validate_definition(&self, definition: &PipelineDefinition) -> Result<(), Error> {
        validate::definition(definition, &self.registry, &self.options)
    }

    /// The row that says who did what; its detail is cut to what the log takes.
    fn audit(&self, actor: &Actor, action: Action, resource: Resource, detail: Value) -> Write {
        let detail = if notices::size(&detail) > AUDIT_DETAIL_MAX {
            serde_json::json!({ "leftOut": "the detail is too large for the log" })
        } else {
            detail
        };
        Write::InsertAudit(AuditRow {
            id: AuditId::new(),
            at: self.clock.now(),
            principal: actor.principal,
            principal_name: actor.name.clone(),
            action,
            resource,
            detail,
        })
    }
}

/// Around a command about an execution, whose id is recorded once it is known.
fn command() -> Span {
    error_span!("command", execution.id = Empty, stage.id = Empty)
}

/// From here on the lines of the command name the execution.
fn about(execution: ExecutionId) {
    Span::current().record("execution.id", display(execution));
}

/// Bytes of an audit row's detail.
const AUDIT_DETAIL_MAX: usize = 4 * 1024;
/// How often a command reads and tries again when something changed meanwhile.
const TRIES: usize = 16;

impl Error {
    /// A refusal that points at no field.
    pub(super) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), field: Vec::new() }
    }

    /// The input does not hold at that field.
    pub(super) fn invalid(field: &[&str], message: impl Into<String>) -> Self {
        let field = field.iter().map(|part| (*part).to_owned()).collect();
        Self { code: Code::Invalid, message: message.into(), field }
    }

    fn busy(what: &str) -> Self {
        Self::new(Code::Unavailable, format!("{what} changes too often right now; try again"))
    }
}

impl From<Denied> for Error {
    fn from(denied: Denied) -> Self {
        Self::new(Code::Forbidden, denied.to_string())
    }
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        tracing::warn!("a command could not be done: {error}");
        Self::new(Code::Unavailable, "the database cannot be read now; try again")
    }
}

impl From<CommitError> for Error {
    fn from(error: CommitError) -> Self {
        tracing::warn!("a command could not be done: {error}");
        match error {
            CommitError::Refused(_) => Self::new(Code::Conflict, "it changed meanwhile; read it again and retry"),
            CommitError::Unavailable(why) => match store::advice(&why) {
                Some(advice) => Self::new(Code::Unavailable, advice),
                None => Self::new(Code::Unavailable, "the database cannot save now; try again"),
            },
            CommitError::Unknown(why) => Self::new(
                Code::Unavailable,
                format!(
                    "{}; it may or may not have been done: look before trying again",
                    store::advice(&why).unwrap_or("the database did not answer")
                ),
            ),
        }
    }
}

fn allow(actor: &Actor, action: Action, resource: &Resource) -> Result<(), Error> {
    auth::allow(actor, action, resource).map_err(Error::from)
}
