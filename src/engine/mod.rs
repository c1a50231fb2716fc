//! Durable execution: what a stage is ([`contract`]), what may happen next ([`decide`], pure), who
//! makes it happen (`runner`, and a `worker` for each execution), and what people and triggers may
//! ask for ([`commands`]).

mod apply;
pub mod commands;
mod context;
pub mod contract;
pub mod decide;
mod ended;
mod erased;
mod notices;
mod recovery;
mod runner;
mod sweep;
mod timers;
mod topics;
mod trigger;
mod upon;
mod validate;
mod worker;

#[cfg(test)]
mod script;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

pub use ended::{Ended, EndedHook};
pub use sweep::Counts;
pub use topics::Topics;

use crate::clock::Clock;
use crate::model::{ExecutionId, OwnerId, Served};
use crate::store::Store;
use runner::Shared;

/// No execution takes longer than this, whatever the timeouts of its stages are: a stage of a year,
/// and what comes before and after it.
pub const DEADLINE_MAX: Duration = Duration::from_secs(400 * 86_400);

/// How the engine runs. Times in their names' units where they are not durations.
#[derive(Debug, Clone)]
pub struct Options {
    /// An owner whose beat stood still for this long is taken for dead; it beats three times in it.
    pub lease: Duration,
    /// Nobody else can use this database (SQLite, whose directory is locked): all owners but this
    /// one are dead, and their executions free, at once.
    pub sole_owner: bool,
    /// What this server reaches; others on the same database can see it.
    pub serves: Vec<Served>,
    /// Somebody calls [`Engine::renew`] each [`Engine::renew_every`]; the engine beats by itself only
    /// where that fails to come.
    pub renewed_by_job: bool,
    /// Steps that may be under way at once.
    pub concurrency: usize,
    /// Executions that may be in memory at once; others wait for a place.
    pub active_max: usize,
    /// An execution that has nothing to do for this long leaves the memory.
    pub idle_after: Duration,
    /// Passes of decisions in one turn of an execution; more would be a fault in the rules.
    pub passes_max: usize,
    /// How often the database is asked for due work; signals only shorten this.
    pub scan_every: Duration,
    /// From start to failure by timeout of a whole execution; longer where the timeouts of its
    /// stages come to more, up to [`DEADLINE_MAX`].
    pub deadline_default: Duration,
    /// How long a stage's unwind may take.
    pub unwind_timeout: Duration,
    /// How long steps under way may go on when the server stops.
    pub stop_grace: Duration,
    /// Stages that may wait for one cluster.
    pub cluster_queue_max: usize,
    /// Bytes of a stage's config.
    pub config_max: usize,
    /// Bytes of a stage's outputs.
    pub outputs_max: usize,
    /// Bytes of the outputs of all stages of an execution.
    pub execution_outputs_max: usize,
    /// Bytes of an event.
    pub event_max: usize,
    /// Told what is over, after it is committed.
    pub ended: Option<EndedHook>,
    /// Tests only: asked at the points where a crash hurts most.
    pub crash: Option<CrashHook>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(15),
            sole_owner: false,
            serves: Vec::new(),
            renewed_by_job: false,
            concurrency: 1_000,
            active_max: 2_000,
            idle_after: Duration::from_secs(30),
            passes_max: 10_000,
            scan_every: Duration::from_secs(1),
            deadline_default: Duration::from_secs(72 * 3600),
            unwind_timeout: Duration::from_secs(600),
            stop_grace: Duration::from_secs(10),
            cluster_queue_max: 64,
            config_max: 256 * 1024,
            outputs_max: 1024 * 1024,
            execution_outputs_max: 16 * 1024 * 1024,
            event_max: 64 * 1024,
            ended: None,
            crash: None,
        }
    }
}

/// Says whether the engine dies here; for the test that kills every stage at every point.
#[derive(Clone)]
pub struct CrashHook(pub Arc<dyn Fn(&CrashPoint) -> bool + Send + Sync>);

impl fmt::Debug for CrashHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CrashHook")
    }
}

/// A place where the engine may die.
#[derive(Debug, Clone, PartialEq)]
pub struct CrashPoint {
    /// The execution that is under way.
    pub execution: ExecutionId,
    /// The stage's kind.
    pub kind: String,
    /// The stage's key.
    pub stage: String,
    /// The cursor the step began with.
    pub cursor: serde_json::Value,
    /// The effect's key; None at [`Moment::BeforeCommit`].
    pub effect: Option<String>,
    /// How far the step is.
    pub moment: Moment,
}

/// When the engine may die.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Moment {
    /// The intent is committed, the call is not made.
    AfterIntent,
    /// The call was answered, its outcome is not committed.
    AfterEffect,
    /// The step is over, its outcome is not committed.
    BeforeCommit,
}

/// The engine of one server: claims executions and runs their stages. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

impl Engine {
    /// An engine that does nothing until [`Engine::run`].
    #[must_use]
    pub fn new(options: Options, store: Store, registry: contract::Registry, clock: Clock) -> Self {
        Self { shared: Arc::new(Shared::new(options, store, registry, clock)) }
    }

    /// Where commands are given.
    #[must_use]
    pub fn commands(&self) -> commands::Commands {
        let shared = &self.shared;
        commands::Commands::new(
            shared.store.clone(),
            shared.registry.clone(),
            shared.clock.clone(),
            shared.options.clone(),
            Arc::clone(&shared.slots),
        )
    }

    /// Where notices are given to stages that poll.
    #[must_use]
    pub fn topics(&self) -> Topics {
        self.shared.topics.clone()
    }

    /// Told when a trigger may have something to do: one was saved, or an execution's end is a slot
    /// of one.
    #[must_use]
    pub fn slots(&self) -> Arc<tokio::sync::Notify> {
        Arc::clone(&self.shared.slots)
    }

    /// This start of a server, as executions name it.
    #[must_use]
    pub fn owner(&self) -> OwnerId {
        self.shared.owner
    }

    /// How often the lease has to be renewed: three times within it, in whole seconds.
    #[must_use]
    pub fn renew_every(&self) -> std::time::Duration {
        let seconds = (self.shared.options.lease / 3).as_secs();
        std::time::Duration::from_secs(seconds.max(1))
    }

    /// Says that this server lives, and forgets those that have not said so for a full lease.
    /// Nothing while the engine does not run.
    ///
    /// # Errors
    /// When the database cannot do it.
    pub async fn renew(&self) -> Result<(), crate::store::Error> {
        recovery::renew(&self.shared).await
    }

    /// From now on nothing is begun: no execution is taken up, no step is started; those under way
    /// may end. [`Engine::run`] goes on until its own token says that it has to end.
    pub fn drain(&self) {
        self.shared.drain();
    }

    /// Whether it works: registered, not ended, and its search for due executions not overdue.
    ///
    /// # Errors
    /// Why it does not, for people.
    pub fn is_working(&self) -> Result<(), &'static str> {
        self.shared.pulse.check(tokio::time::Instant::now(), self.shared.options.scan_every)
    }

    /// What is in memory.
    #[must_use]
    pub fn counts(&self) -> Counts {
        sweep::counts(&self.shared)
    }

    /// Runs executions until the token is cancelled (steps under way get the grace of
    /// [`Options::stop_grace`], from [`Engine::drain`] on) or a crash hook says so. Call it once.
    ///
    /// # Errors
    /// When this start of the server cannot be registered in the database.
    pub async fn run(&self, stop: CancellationToken) -> Result<(), crate::store::Error> {
        runner::run(&self.shared, stop).await
    }
}
