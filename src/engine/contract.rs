//! What a stage is: a persisted cursor and small idempotent steps.
//!
//! The engine calls [`Stage::step`] outside any transaction and commits what it returns. A step
//! may be called again with the same cursor after a crash; it touches the outside only through
//! [`StepContext::effect`], which records an intent first. A stage keeps nothing in memory between
//! steps.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

pub use super::context::StepContext;
use super::erased::Erased;
pub use super::erased::{known_faults, unknown_fields};
pub use super::trigger::{KnownTrigger, Missed, Source, Timetable, Trigger, TriggerKind, When};
use crate::model::{ChildSpec, Execution, Stage as StageRow};
use crate::store::ClusterKey;

/// What is to happen after a step.
#[derive(Debug, Clone, PartialEq)]
pub enum Next<C> {
    /// Save the cursor and step again at once.
    Goto(C),
    /// Save the cursor and step again after a while, or earlier on a notice on the topic.
    Poll {
        /// Where the stage stands.
        cursor: C,
        /// How long to wait at the most.
        after: Duration,
        /// Whose notices end the wait earlier; None: nobody's.
        topic: Option<String>,
    },
    /// Save the cursor and step again on the signal ([`StepContext::signal`] has its payload) or
    /// when the time is over (it has none).
    Wait {
        /// Where the stage stands.
        cursor: C,
        /// The signal's name; one of the kind's `SIGNALS`.
        signal: &'static str,
        /// How long to wait for it.
        timeout: Duration,
    },
    /// Save the cursor, run the children (in parallel, but for what `requires` says), and step
    /// again when all have ended well; a child's failure fails this stage by the child's
    /// `on_failure`. Keys must be new among this attempt's children. No children: as `Goto`.
    Spawn {
        /// What to run.
        children: Vec<ChildSpec>,
        /// Where the stage stands when they have ended.
        cursor: C,
    },
    /// The stage's own work is done; an object that others may read.
    Done(Value),
}

/// What went wrong in a step, for people and programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// An upper-case word: `ARTIFACT_NOT_FOUND`.
    pub code: &'static str,
    /// What failed, on what.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// The error beneath, in its own words.
    pub cause: Option<String>,
    /// The end of what the failing instance wrote.
    pub log_tail: Option<String>,
}

impl Cause {
    /// A cause with no more than a code and a message.
    #[must_use]
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None, cause: None, log_tail: None }
    }

    /// The same with what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same with the error beneath.
    #[must_use]
    pub fn because(mut self, cause: impl std::fmt::Display) -> Self {
        self.cause = Some(cause.to_string());
        self
    }
}

/// A step did not work out. Decided where the error is met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepError {
    /// Try the same step again, with back-off (1 s doubling to 30 s, at most 10 times), until the stage's deadline.
    Retry(Cause),
    /// The stage fails.
    Fail(Cause),
}

impl StepError {
    /// The stage fails for this reason.
    #[must_use]
    pub fn fail(code: &'static str, message: impl Into<String>) -> Self {
        Self::Fail(Cause::new(code, message))
    }
}

/// Whether the other side can tell a repeated call from a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    /// It knows the operation's key and finds its own work: the call is made again after an
    /// unknown outcome.
    Keyed,
    /// It does not: after an unknown outcome [`StepContext::effect`] answers
    /// [`EffectError::Unknown`] without calling, and the stage decides.
    Blind,
}

/// Something about to be done outside.
#[derive(Debug, Clone)]
pub struct Effect<'a> {
    /// Names the effect within stage and attempt. The same key means the same effect: if its
    /// intent is already closed as done, the call is still made for [`Repeat::Keyed`] (the
    /// other side answers as before).
    pub key: &'a str,
    /// For people and the log: `create server group web-v002`. No secrets.
    pub what: String,
    /// What is done after an unknown outcome.
    pub repeat: Repeat,
    /// The call is given up after this long; at most 10 minutes.
    pub timeout: Duration,
}

/// What a call outside carries so that the other side can know and order it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ticket {
    /// `<execution>/<stage>/<attempt>/<effect key>`.
    pub operation: String,
    /// The lease's number: the other side keeps the highest seen of each execution and refuses lower ones.
    pub fence: i64,
    /// The call has ended by then.
    pub deadline: DateTime<Utc>,
}

/// An effect did not work out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EffectError<E> {
    /// The call was made and answered with an error.
    Call(E),
    /// The call was made, now or before a crash, and nobody knows whether it took effect.
    Unknown {
        /// [`Effect::what`].
        what: String,
        /// When the call was begun.
        since: DateTime<Utc>,
    },
    /// The call was not made: it changes a cluster that the stage does not hold. A fault of the stage.
    Unclaimed {
        /// [`Effect::what`].
        what: String,
        /// The cluster that is not held.
        cluster: String,
    },
    /// The call was not made: the lease is lost, the execution is cancelled, the database is
    /// away. The step has to end; return this as it is with [`EffectError::into_step`].
    NotMade(String),
}

impl<E> EffectError<E> {
    /// What the step returns: an error of the call as `call` says, everything else as a retry
    /// (a call that was not made does not count as one).
    #[must_use]
    pub fn into_step(self, call: impl FnOnce(E) -> StepError) -> StepError {
        match self {
            Self::Call(error) => call(error),
            Self::Unknown { what, since } => StepError::Retry(Cause::new(
                "OUTCOME_UNKNOWN",
                format!("{what}: begun at {}, and not answered", since.to_rfc3339()),
            )),
            Self::Unclaimed { what, cluster } => StepError::Fail(
                Cause::new("CLUSTER_NOT_HELD", format!("{what}: the stage does not hold cluster `{cluster}`"))
                    .hint("start again; if it happens again, report it as a fault of the server"),
            ),
            Self::NotMade(why) => StepError::Retry(Cause::new(NOT_MADE, why)),
        }
    }
}

/// The code of a cause that says: the call was not made.
pub(super) const NOT_MADE: &str = "EFFECT_NOT_MADE";

/// The topic on which those who wait for a cluster are woken.
#[must_use]
pub fn cluster_topic(key: &ClusterKey) -> String {
    format!("cluster:{}/{}/{}", key.place.account, key.place.location, key.cluster)
}

/// The topic on which changes of the inventory are told.
pub const INVENTORY_TOPIC: &str = "inventory";

/// What a kind of stage says of itself.
#[derive(Debug, Clone, PartialEq)]
pub struct StageKind {
    /// The name in pipelines: `resizeServerGroup`.
    pub kind: &'static str,
    /// What people see where the pipeline gives the stage no name.
    pub title: &'static str,
    /// One to three sentences.
    pub description: &'static str,
    /// JSON Schema (2020-12) of the config.
    pub schema: Value,
    /// A config that passes the schema.
    pub example: Value,
    /// From start to failure by timeout where the pipeline says nothing.
    pub timeout: Duration,
    /// The wait for a signal may be ended by this signal: `judge`.
    pub signals: &'static [&'static str],
}

/// A kind of stage. `Cursor` is stored as JSON; new variants may be added, old ones stay readable.
pub trait Stage: Send + Sync + 'static {
    /// `camelCase`, as in pipelines.
    const KIND: &'static str;
    /// What people see where the pipeline gives the stage no name.
    const TITLE: &'static str;
    /// One to three sentences.
    const DESCRIPTION: &'static str;
    /// From start to failure by timeout where the pipeline says nothing.
    const TIMEOUT: Duration = Duration::from_secs(30 * 60);
    /// Signals that a step may wait for by [`Next::Wait`].
    const SIGNALS: &'static [&'static str] = &[];
    /// What the schema lets through, read after expressions were evaluated.
    type Config: DeserializeOwned + Send + Sync;
    /// Where the steps stand, saved after each; the default is where they begin.
    type Cursor: Serialize + DeserializeOwned + Default + Send + Sync;

    /// JSON Schema of the config. Where a value may be an expression the engine checks the schema
    /// again after evaluation; at save time a string that holds `${` is taken for any type.
    fn schema(&self) -> Value;
    /// A config that passes.
    fn example(&self) -> Value;
    /// What the schema cannot say. Called at save time too, when there are no expressions in the
    /// config. Error: (JSON pointer, message).
    ///
    /// # Errors
    /// The first fault found.
    fn validate(&self, config: &Self::Config) -> Result<(), Fault> {
        let _ = config;
        Ok(())
    }
    /// The same at save time for a config in which expressions stand: what holds whatever they
    /// come to. The schema has been checked, each expression taken for any value.
    ///
    /// # Errors
    /// The first fault found.
    fn validate_known(&self, config: &Value) -> Result<(), Fault> {
        let _ = config;
        Ok(())
    }
    /// Names of the tasks people see, in order.
    fn tasks(&self, config: &Self::Config) -> Vec<&'static str>;
    /// Index into [`Stage::tasks`] of the task this cursor is in.
    fn task(&self, cursor: &Self::Cursor) -> usize;
    /// Stages that must end well before the first step.
    fn before(&self, config: &Self::Config) -> Vec<ChildSpec> {
        let _ = config;
        Vec::new()
    }
    /// Stages that run once the steps are done.
    fn after(&self, config: &Self::Config, outputs: &Value) -> Vec<ChildSpec> {
        let _ = (config, outputs);
        Vec::new()
    }
    /// Stages that bring things back after a failure, a timeout or a cancel at this cursor; they
    /// run one after the other, each whatever became of the one before.
    fn unwind(
        &self,
        execution: &Execution,
        stage: &StageRow,
        config: &Self::Config,
        cursor: &Self::Cursor,
    ) -> Vec<ChildSpec> {
        let _ = (execution, stage, config, cursor);
        Vec::new()
    }
    /// One step.
    fn step(
        &self,
        cx: &StepContext,
        config: &Self::Config,
        cursor: Self::Cursor,
    ) -> impl Future<Output = Result<Next<Self::Cursor>, StepError>> + Send;
}

/// What is wrong with a config: where (JSON pointer), and what.
pub type Fault = (String, String);

/// A kind of stage with its types erased, for the registry.
pub trait DynStage: Send + Sync {
    /// What the kind says of itself.
    fn kind(&self) -> StageKind;
    /// At save time: a string that holds an expression counts as any type.
    ///
    /// # Errors
    /// All faults found, at least one.
    fn validate(&self, config: &Value) -> Result<(), Vec<Fault>>;
    /// At the stage's start, expressions evaluated: everything is checked.
    ///
    /// # Errors
    /// All faults found, at least one.
    fn validate_resolved(&self, config: &Value) -> Result<(), Vec<Fault>>;
    /// From start to failure by timeout where the pipeline says nothing.
    fn timeout(&self) -> Duration;
    /// What people see where the pipeline gives no name.
    fn title(&self) -> &'static str;
    /// [`Stage::tasks`], and the index of the one that the cursor is in.
    fn tasks(&self, config: &Value, cursor: &Value) -> (Vec<&'static str>, usize);
    /// The cursor as this binary reads it and would store it again.
    ///
    /// # Errors
    /// Why it cannot be read.
    fn reread(&self, cursor: &Value) -> Result<Value, String>;
    /// [`Stage::before`].
    fn before(&self, config: &Value) -> Vec<ChildSpec>;
    /// [`Stage::after`].
    fn after(&self, config: &Value, outputs: &Value) -> Vec<ChildSpec>;
    /// [`Stage::unwind`].
    fn unwind(&self, execution: &Execution, stage: &StageRow, config: &Value, cursor: &Value) -> Vec<ChildSpec>;
    /// [`Stage::step`].
    fn step<'a>(
        &'a self,
        cx: &'a StepContext,
        config: &'a Value,
        cursor: Value,
    ) -> BoxFuture<'a, Result<Next<Value>, StepError>>;
}

/// All kinds of stages and of triggers, by name.
#[derive(Clone, Default)]
pub struct Registry {
    kinds: BTreeMap<&'static str, Arc<dyn DynStage>>,
    triggers: BTreeMap<&'static str, Arc<KnownTrigger>>,
}

impl Registry {
    /// Adds a kind; the last of a name stands.
    ///
    /// # Panics
    /// When the kind's schema is not a JSON Schema: a fault of the kind's code.
    #[must_use]
    pub fn with<S: Stage>(mut self, stage: S) -> Self {
        self.kinds.insert(S::KIND, Arc::new(Erased::new(stage)));
        self
    }
    /// The kind of that name.
    #[must_use]
    pub fn get(&self, kind: &str) -> Option<&Arc<dyn DynStage>> {
        self.kinds.get(kind)
    }
    /// Names of all kinds.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.kinds.keys().copied()
    }
    /// All, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<dyn DynStage>> {
        self.kinds.values()
    }
    /// Adds a kind of trigger; the last of a name stands.
    ///
    /// # Panics
    /// When the kind's schema is not a JSON Schema: a fault of the kind's code.
    #[must_use]
    pub fn with_trigger(mut self, trigger: impl Trigger) -> Self {
        let trigger = KnownTrigger::new(trigger);
        self.triggers.insert(trigger.kind().kind, Arc::new(trigger));
        self
    }
    /// The kind of trigger of that name.
    #[must_use]
    pub fn trigger(&self, kind: &str) -> Option<&Arc<KnownTrigger>> {
        self.triggers.get(kind)
    }
    /// All kinds of triggers, by name.
    pub fn triggers(&self) -> impl Iterator<Item = &Arc<KnownTrigger>> {
        self.triggers.values()
    }
}
