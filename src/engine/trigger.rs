//! What a kind of trigger is: it reads its config and says when the pipeline starts. It fires
//! nothing itself; whether a slot is started is decided by the commit that starts it.

use chrono::{DateTime, Utc};
use jsonschema::Validator;
use serde_json::Value;

use super::contract::Fault;
use super::erased::faults_of;
use crate::model::Status;

/// What a kind of trigger says of itself.
#[derive(Debug, Clone, PartialEq)]
pub struct TriggerKind {
    /// The name in pipelines: `cron`.
    pub kind: &'static str,
    /// For people, in lists of kinds.
    pub title: &'static str,
    /// One to three sentences.
    pub description: &'static str,
    /// JSON Schema (2020-12) of the config.
    pub schema: Value,
    /// A config that passes the schema.
    pub example: Value,
}

/// When a trigger starts its pipeline.
pub enum When {
    /// At instants that are known beforehand.
    Time(Box<dyn Timetable>),
    /// When an execution of another pipeline has ended.
    Ended(Source),
}

/// What to do about slots in whose time no server was there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missed {
    /// Let them go by.
    Skip,
    /// One execution for all of them.
    RunOnce,
}

/// A rule for instants.
pub trait Timetable: Send + Sync {
    /// The first instant after this one.
    fn next(&self, after: DateTime<Utc>) -> Option<DateTime<Utc>>;
    /// The last instant that is not after this one.
    fn last(&self, until: DateTime<Utc>) -> Option<DateTime<Utc>>;
    /// What to do about slots in whose time no server was there.
    fn missed(&self) -> Missed;
}

/// The pipeline whose executions' ends count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The name of its application.
    pub application: String,
    /// Its name within the application.
    pub pipeline: String,
    /// The ends that count.
    pub statuses: Vec<Status>,
}

/// A kind of trigger.
pub trait Trigger: Send + Sync + 'static {
    /// What the kind says of itself.
    fn kind(&self) -> TriggerKind;
    /// Reads a config that has passed the schema.
    ///
    /// # Errors
    /// What the schema cannot say: (JSON pointer, message).
    fn read(&self, config: &Value) -> Result<When, Fault>;
}

/// A kind with its schema compiled.
pub struct KnownTrigger {
    trigger: Box<dyn Trigger>,
    schema: Value,
    validator: Validator,
}

impl KnownTrigger {
    pub(super) fn new(trigger: impl Trigger) -> Self {
        let kind = trigger.kind();
        let validator = jsonschema::options()
            .offline()
            .build(&kind.schema)
            .unwrap_or_else(|error| panic!("the schema of trigger kind `{}` is not valid: {error}", kind.kind));
        Self { trigger: Box::new(trigger), schema: kind.schema, validator }
    }

    /// What the kind says of itself.
    #[must_use]
    pub fn kind(&self) -> TriggerKind {
        self.trigger.kind()
    }

    /// When a trigger of this config starts its pipeline.
    ///
    /// # Errors
    /// All faults found, at least one.
    pub fn read(&self, config: &Value) -> Result<When, Vec<Fault>> {
        faults_of(&self.schema, self.validator.iter_errors(config))?;
        self.trigger.read(config).map_err(|fault| vec![fault])
    }
}
