//! The database: SQLite or PostgreSQL behind the same functions. A [`Commit`] is data: guards and
//! writes; sea-orm types stay in here.

mod commit;

use std::path::PathBuf;
use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

pub use commit::{
    ClusterKey, Commit, CommitError, Committed, Guard, IdempotencyRecord, Intent, IntentOutcome, NewEvent, Refusal,
    Write,
};

use crate::clock::Clock;
use crate::model::{
    Application, ApplicationId, AuditRow, Event, Execution, ExecutionId, ExecutionKind, Notification, OwnerId,
    Pipeline, PipelineId, Place, Principal, PrincipalId, Revision, Stage, StageId, Status, StreamId, Token, TokenId,
};

/// Where the data is and how durable it is.
#[derive(Debug, Clone)]
pub struct Options {
    /// `postgres://…`, or none for SQLite in the data directory.
    pub database_url: Option<String>,
    /// Holds `gennaker.db` and its lock file; made with mode 0700 if absent.
    pub data_dir: PathBuf,
    /// SQLite's `synchronous`.
    pub durability: Durability,
    /// Commits that may wait for the writer; one more is refused as overloaded.
    pub queue_max: usize,
}

/// SQLite's `synchronous`: what a power cut may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Durability {
    /// Nothing: every commit is on the disk before it is answered.
    #[default]
    Full,
    /// The last commits before a power cut; a killed process takes nothing.
    Normal,
}

/// The database could not do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("database: {0}")]
    Database(String),
    #[error("the database's schema is at `{found}`, newer than this binary knows (`{known}`); start the newer binary")]
    NewerSchema { found: String, known: String },
    #[error("the data directory {0} is in use by another server")]
    Locked(PathBuf),
    #[error("data directory {path}: {source}")]
    Directory { path: PathBuf, source: std::io::Error },
    #[error("stored {what} is not readable: {message}")]
    Corrupt { what: String, message: String },
}

/// A slice of a list: at most `limit` items after (or, backward, before) a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageRequest {
    /// The key of the last item the reader has, exclusive.
    pub after: Option<String>,
    /// The key of the first item the reader has, exclusive.
    pub before: Option<String>,
    /// 1 to 100.
    pub limit: u64,
    /// Take from the end of the range instead of its beginning; items stay in list order.
    pub backward: bool,
}

/// A slice of a list, in list order.
#[derive(Debug, Clone, PartialEq)]
pub struct Page<T> {
    /// Each with its key.
    pub items: Vec<(String, T)>,
    pub has_next: bool,
    pub has_previous: bool,
    pub total: u64,
}

/// Which executions.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ExecutionFilter {
    pub application: Option<ApplicationId>,
    pub pipeline: Option<PipelineId>,
    pub kind: Option<ExecutionKind>,
    pub statuses: Vec<Status>,
}

/// The right to work on an execution: held until another owner takes a higher number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    pub execution: ExecutionId,
    pub owner: OwnerId,
    /// The fencing number; rises with each claim by another owner.
    pub number: i64,
}

/// Whether a cluster may be changed by who asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClusterClaim {
    Held,
    /// Executions that come before, the holder first.
    Waiting {
        ahead: Vec<ExecutionId>,
    },
    /// As many wait as may.
    Full {
        limit: usize,
    },
}

/// The database. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {}

#[expect(unused_variables, clippy::unused_async, reason = "contract skeleton")]
impl Store {
    /// Opens (or makes) the database, migrates it under a lock (SQLite is copied first), reads or
    /// makes its epoch and starts the writer.
    pub async fn open(options: &Options, clock: Clock) -> Result<Self, Error> {
        todo!()
    }
    /// Ends the writer after what is queued; waits for it.
    pub async fn close(&self) {
        todo!()
    }
    /// The random id of this database, changed by a restore.
    #[must_use]
    pub fn epoch(&self) -> Uuid {
        todo!()
    }

    // --- writing -----------------------------------------------------------------------------
    /// All of it or nothing. Returns once it is durable. See [`Commit`].
    pub async fn commit(&self, commit: Commit) -> Result<Committed, CommitError> {
        todo!()
    }
    /// Woken, after COMMIT, with each (stream, sequence) that grew, here or at another replica. A
    /// reader that lags reads the table; the notice only shortens waits.
    #[must_use]
    pub fn appended(&self) -> tokio::sync::broadcast::Receiver<(StreamId, i64)> {
        todo!()
    }
    /// Woken with executions that have work (started, signalled, cancelled), here or elsewhere.
    #[must_use]
    pub fn work(&self) -> tokio::sync::broadcast::Receiver<ExecutionId> {
        todo!()
    }

    // --- leases ------------------------------------------------------------------------------
    /// Adds this start of a server to those that may own executions.
    pub async fn owner_register(&self, owner: OwnerId) -> Result<(), Error> {
        todo!()
    }
    /// Says that the owner lives: its beat rises by one.
    pub async fn owner_beat(&self, owner: OwnerId) -> Result<(), Error> {
        todo!()
    }
    /// All owners with their beats.
    pub async fn owners(&self) -> Result<Vec<(OwnerId, i64)>, Error> {
        todo!()
    }
    /// Forgets an owner, so that its executions are free to claim at once.
    pub async fn owner_forget(&self, owner: OwnerId) -> Result<(), Error> {
        todo!()
    }
    /// Unfinished executions whose `wake_at` has come and that are unowned, mine, or owned by one
    /// that is not in the owners table (the dead are forgotten first); oldest wake first.
    pub async fn executions_due(&self, me: OwnerId, now: DateTime<Utc>, limit: u64) -> Result<Vec<ExecutionId>, Error> {
        todo!()
    }
    /// The earliest `wake_at` among those of [`Store::executions_due`], whenever it is.
    pub async fn next_due(&self, me: OwnerId) -> Result<Option<DateTime<Utc>>, Error> {
        todo!()
    }
    /// Takes the execution, if it is unowned, mine already (same number), or owned by one that was
    /// forgotten (number + 1), and reads it whole. None when another owns it or it is over.
    pub async fn execution_claim(&self, me: OwnerId, id: ExecutionId) -> Result<Option<(Lease, Execution)>, Error> {
        todo!()
    }

    // --- cluster claims and names ------------------------------------------------------------
    /// Puts the stage into the cluster's queue unless it is in it, and says where it stands.
    /// Repeatable. Left by [`Write::ReleaseClusterClaims`].
    pub async fn cluster_claim(
        &self,
        lease: Lease,
        key: &ClusterKey,
        stage: StageId,
        queue_max: usize,
    ) -> Result<ClusterClaim, CommitError> {
        todo!()
    }
    /// The cluster's queue, the holder first.
    pub async fn cluster_queue(&self, key: &ClusterKey) -> Result<Vec<(ExecutionId, StageId)>, Error> {
        todo!()
    }
    /// Reserves the server group name for (stage, attempt). True when it is theirs, now or since
    /// before; false when it is another's.
    pub async fn name_reserve(
        &self,
        lease: Lease,
        place: &Place,
        name: &str,
        stage: StageId,
        attempt: i32,
    ) -> Result<bool, CommitError> {
        todo!()
    }
    /// The name that (stage, attempt) reserved at that place, if any.
    pub async fn name_reserved(&self, place: &Place, stage: StageId, attempt: i32) -> Result<Option<String>, Error> {
        todo!()
    }

    // --- reading -----------------------------------------------------------------------------
    pub async fn application(&self, id: ApplicationId) -> Result<Option<Application>, Error> {
        todo!()
    }
    pub async fn application_by_name(&self, name: &str) -> Result<Option<Application>, Error> {
        todo!()
    }
    /// All names, at most 1,000, for "did you mean".
    pub async fn application_names(&self) -> Result<Vec<String>, Error> {
        todo!()
    }
    /// By name.
    pub async fn applications(&self, page: &PageRequest) -> Result<Page<Application>, Error> {
        todo!()
    }
    pub async fn pipeline(&self, id: PipelineId) -> Result<Option<Pipeline>, Error> {
        todo!()
    }
    pub async fn pipeline_by_name(&self, application: ApplicationId, name: &str) -> Result<Option<Pipeline>, Error> {
        todo!()
    }
    pub async fn pipeline_names(&self, application: ApplicationId) -> Result<Vec<String>, Error> {
        todo!()
    }
    /// By name; of all applications when none is given.
    pub async fn pipelines(
        &self,
        application: Option<ApplicationId>,
        page: &PageRequest,
    ) -> Result<Page<Pipeline>, Error> {
        todo!()
    }
    pub async fn revision(&self, pipeline: PipelineId, number: i64) -> Result<Option<Revision>, Error> {
        todo!()
    }
    /// Newest first.
    pub async fn revisions(&self, pipeline: PipelineId, page: &PageRequest) -> Result<Page<Revision>, Error> {
        todo!()
    }
    /// With its stages.
    pub async fn execution(&self, id: ExecutionId) -> Result<Option<Execution>, Error> {
        todo!()
    }
    /// With its stages. Operations: pipeline none, number within the application.
    pub async fn execution_by_number(
        &self,
        application: ApplicationId,
        pipeline: Option<PipelineId>,
        number: i64,
    ) -> Result<Option<Execution>, Error> {
        todo!()
    }
    /// Newest first, without stages (see [`Store::stages`]).
    pub async fn executions(&self, filter: &ExecutionFilter, page: &PageRequest) -> Result<Page<Execution>, Error> {
        todo!()
    }
    /// The stages of several executions at once, for loaders.
    pub async fn stages(&self, executions: &[ExecutionId]) -> Result<Vec<Stage>, Error> {
        todo!()
    }
    pub async fn stage(&self, id: StageId) -> Result<Option<Stage>, Error> {
        todo!()
    }
    /// Events of a stream after `seq`, in order, at most `limit` (≤ 1,000).
    pub async fn events(&self, stream: StreamId, after_seq: i64, limit: u64) -> Result<Vec<Event>, Error> {
        todo!()
    }
    /// (oldest, newest) sequence number held of a stream; (1, 0) when it is empty.
    pub async fn event_bounds(&self, stream: StreamId) -> Result<(i64, i64), Error> {
        todo!()
    }
    /// An execution with its stages and the newest sequence number of its stream, read at one instant.
    pub async fn execution_snapshot(&self, id: ExecutionId) -> Result<Option<(Execution, i64)>, Error> {
        todo!()
    }
    /// Newest first.
    pub async fn notifications(&self, page: &PageRequest) -> Result<Page<Notification>, Error> {
        todo!()
    }
    /// Intents of an execution, oldest first.
    pub async fn intents(&self, execution: ExecutionId) -> Result<Vec<Intent>, Error> {
        todo!()
    }
    /// The record of a start under (principal, key), if one was kept.
    pub async fn idempotency(&self, principal: PrincipalId, key: &str) -> Result<Option<IdempotencyRecord>, Error> {
        todo!()
    }
    pub async fn principal(&self, id: PrincipalId) -> Result<Option<Principal>, Error> {
        todo!()
    }
    pub async fn principal_by_name(&self, name: &str) -> Result<Option<Principal>, Error> {
        todo!()
    }
    pub async fn principals(&self, page: &PageRequest) -> Result<Page<Principal>, Error> {
        todo!()
    }
    pub async fn token(&self, id: TokenId) -> Result<Option<Token>, Error> {
        todo!()
    }
    /// Oldest first.
    pub async fn tokens(&self, page: &PageRequest) -> Result<Page<Token>, Error> {
        todo!()
    }
    /// Newest first.
    pub async fn audit(&self, page: &PageRequest) -> Result<Page<AuditRow>, Error> {
        todo!()
    }
    /// Deletes finished executions (with stages, events, intents) that ended before the instant,
    /// oldest first, at most `limit`; returns how many.
    pub async fn prune_executions(&self, ended_before: DateTime<Utc>, limit: u64) -> Result<u64, Error> {
        todo!()
    }
    /// How long the newest commits took from call to answer, for the log and the bench.
    #[must_use]
    pub fn commit_latency(&self) -> Option<Duration> {
        todo!()
    }
}
