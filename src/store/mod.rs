//! The database: SQLite or PostgreSQL behind the same functions. A [`Commit`] is data: guards and
//! writes; sea-orm types stay in here.
//!
//! A commit's way: `prepare` (in the caller's task) → `writer` (groups, COMMIT, answers) → `apply`
//! (inside the transaction). `read` and `page` read; `leases` and `deliveries` have what the store decides itself;
//! `rows` knows the columns, `sql` the dialects, `open` files, locks and migrations.

mod apply;
mod backup;
mod commit;
mod deliveries;
mod health;
mod leases;
mod open;
mod page;
mod postgres;
mod prepare;
mod problems;
mod read;
mod rows;
mod script;
mod sql;
#[cfg(test)]
mod tests;
mod transfer;
mod triggers;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;

use sea_orm::DatabaseConnection;
use tokio::sync::{Mutex, broadcast};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

pub use commit::{
    ClusterKey, Commit, CommitError, Committed, Guard, IdempotencyRecord, Intent, IntentOutcome, NewEvent, ProblemKey,
    Refusal, SlotOutcome, ToldProblem, Write,
};

pub use backup::{BackedUp, Restored, adopt_restored, backup, restore};
pub use deliveries::{Claimed, DeliveryFilter, Tried};
pub use health::Fill;
pub use transfer::{Moved, Table, transfer};
pub use triggers::{Edge, Unreadable};

use crate::clock::Clock;
use crate::model::{ApplicationId, ExecutionId, ExecutionKind, OwnerId, PipelineId, Status, StreamId};

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

impl Options {
    /// Whether a URL of PostgreSQL can be read; nothing is connected to.
    ///
    /// # Errors
    /// What is wrong with it and what is expected; never its password.
    pub fn judge_url(url: &str) -> Result<(), String> {
        open::connect_options(url).map(drop)
    }
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
    /// It was not reached, or a statement failed; the text says why, for the log.
    #[error("database: {0}")]
    Database(String),
    /// A newer binary has been here.
    #[error("the database's schema is at `{found}`, newer than this binary knows (`{known}`); start the newer binary")]
    NewerSchema {
        /// The newest migration that the database has.
        found: String,
        /// The newest that this binary has.
        known: String,
    },
    /// Another process holds the data directory's lock.
    #[error(
        "the data directory {} is in use by another server{}; stop that one first, or give another --data-dir",
        .dir.display(),
        .holder.map(|pid| format!(" (process {pid})")).unwrap_or_default()
    )]
    Locked {
        /// The data directory.
        dir: PathBuf,
        /// Its process id, where it could be read.
        holder: Option<u32>,
    },
    /// The data directory, or a file in it, cannot be used.
    #[error("data directory {}: {source}{}", .path.display(), what_to_do(.source))]
    Directory {
        /// What was tried.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
    /// It was not done, and nothing has changed; the text says why and what to do.
    #[error("{0}")]
    Refused(String),
    /// A row holds what this binary cannot read.
    #[error("stored {what} is not readable: {message}")]
    Corrupt {
        /// Which column, or what sort of thing.
        what: String,
        /// Why.
        message: String,
    },
}

fn what_to_do(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::ReadOnlyFilesystem | std::io::ErrorKind::PermissionDenied => {
            "; make it writable for this user, or give another --data-dir"
        }
        std::io::ErrorKind::StorageFull => "; make room, or give another --data-dir",
        _ => "",
    }
}

impl From<sea_orm::DbErr> for Error {
    fn from(error: sea_orm::DbErr) -> Self {
        Self::Database(sql::describe(&error))
    }
}

impl From<CommitError> for Error {
    fn from(error: CommitError) -> Self {
        Self::Database(error.to_string())
    }
}

/// A slice of a list: at most `limit` items after (or, backward, before) a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageRequest {
    /// The key of the last item the reader has, exclusive.
    pub after: Option<String>,
    /// The key of the first item the reader has, exclusive.
    pub before: Option<String>,
    /// 1 to 1,000.
    pub limit: u64,
    /// Take from the end of the range instead of its beginning; items stay in list order.
    pub backward: bool,
}

/// A slice of a list, in list order.
#[derive(Debug, Clone, PartialEq)]
pub struct Page<T> {
    /// Each with its key.
    pub items: Vec<(String, T)>,
    /// There are items after the last one of the slice.
    pub has_next: bool,
    /// There are items before the first one of the slice.
    pub has_previous: bool,
    /// Items of the whole list.
    pub total: u64,
}

/// Which executions.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ExecutionFilter {
    /// Of this application only.
    pub application: Option<ApplicationId>,
    /// Of this pipeline only.
    pub pipeline: Option<PipelineId>,
    /// Of this kind only.
    pub kind: Option<ExecutionKind>,
    /// In one of these states; empty: in any.
    pub statuses: Vec<Status>,
}

/// The right to work on an execution: held until another owner takes a higher number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// What may be worked on.
    pub execution: ExecutionId,
    /// Who may.
    pub owner: OwnerId,
    /// The fencing number; rises with each claim by another owner.
    pub number: i64,
}

/// Whether a cluster may be changed by who asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClusterClaim {
    /// It may.
    Held,
    /// Executions that come before, the holder first.
    Waiting {
        /// At least one.
        ahead: Vec<ExecutionId>,
    },
    /// As many wait as may.
    Full {
        /// How many may wait.
        limit: usize,
    },
}

/// Of why a commit did not happen, what a client may be told; none for what is the inside's.
#[must_use]
pub fn advice(why: &str) -> Option<&'static str> {
    sql::advice(why)
}

/// A commit on its way into the transaction of another. See [`Store::following`].
pub struct Following(writer::Part);

/// What became of a commit that was to follow another.
pub struct Followed(writer::Answer);

impl Followed {
    /// Waits until the transaction is over.
    ///
    /// # Errors
    /// See [`CommitError`]: refused where the other was; unknown where it was never handed in.
    pub async fn wait(self) -> Result<Committed, CommitError> {
        let since = std::time::Instant::now();
        Ok(health::answered(self.0.wait().await, since)?.committed)
    }
}

/// The database. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    write: writer::Writer,
    read: DatabaseConnection,
    epoch: Uuid,
    clock: Clock,
    notices: writer::Notices,
    stop: CancellationToken,
    task: Mutex<Option<JoinHandle<()>>>,
    /// Ends the task with the last clone of the store.
    _guard: DropGuard,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the pools: their options hold the password.
        f.debug_struct("Store").field("epoch", &self.inner.epoch).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens (or makes) the database, migrates it under a lock (SQLite is copied first), reads or
    /// makes its epoch and starts the writer.
    ///
    /// # Errors
    /// When another server uses the data directory, when the schema is newer than this binary,
    /// when the database cannot be reached.
    pub async fn open(options: &Options, clock: Clock) -> Result<Self, Error> {
        open::open(options, clock, open::As::Server).await
    }

    /// Opens the database for a command of an administrator (to make a token, say) while a server
    /// may be running on it: neither locks the data directory nor migrates.
    ///
    /// # Errors
    /// When there is no database yet, or its schema is not this binary's.
    pub async fn open_beside(options: &Options, clock: Clock) -> Result<Self, Error> {
        open::open(options, clock, open::As::Tool).await
    }

    /// Ends the writer after what is queued; waits for it. Commits after that are refused as
    /// unavailable.
    pub async fn close(&self) {
        self.inner.write.drain().await;
        self.inner.stop.cancel();
        if let Some(task) = self.inner.task.lock().await.take()
            && let Err(error) = task.await
        {
            tracing::error!(%error, "the store's task ended badly");
        }
        if let Err(error) = self.inner.read.close_by_ref().await {
            tracing::warn!(%error, "the database's connections did not close");
        }
    }

    /// The random id of this database, changed by a restore.
    #[must_use]
    pub fn epoch(&self) -> Uuid {
        self.inner.epoch
    }

    /// All of it or nothing. Returns once it is durable. See [`Commit`].
    ///
    /// # Errors
    /// See [`CommitError`].
    pub async fn commit(&self, commit: Commit) -> Result<Committed, CommitError> {
        self.commit_with(commit, Vec::new()).await
    }

    /// A commit that is to go along with another one, which is made later: hand it to
    /// [`Store::commit_with`], and wait for what becomes of it at the same time.
    #[must_use]
    pub fn following(&self, commit: Commit) -> (Following, Followed) {
        let prepared = prepare::Prepared { follows: true, ..prepare::prepare(commit, self.inner.clock.now()) };
        let (part, answer) = writer::Part::new(prepared);
        (Following(part), Followed(answer))
    }

    /// Like [`Store::commit`]; in the same transaction, behind it and in this order, `following`.
    /// Each of those looks at its own guards, and is refused too where `commit` is.
    ///
    /// # Errors
    /// See [`CommitError`]: that of `commit`.
    pub async fn commit_with(&self, commit: Commit, following: Vec<Following>) -> Result<Committed, CommitError> {
        let prepared = prepare::prepare(commit, self.inner.clock.now());
        let following = following.into_iter().map(|following| following.0).collect();
        Ok(self.inner.write.write(prepared, following).await?.committed)
    }

    async fn write(&self, prepared: prepare::Prepared) -> Result<apply::Outcome, CommitError> {
        self.inner.write.write(prepared, Vec::new()).await
    }

    /// Woken, after COMMIT, with each (stream, sequence) that grew, here or at another replica. A
    /// reader that lags reads the table; the notice only shortens waits.
    #[must_use]
    pub fn appended(&self) -> broadcast::Receiver<(StreamId, i64)> {
        self.inner.notices.appended.subscribe()
    }

    /// Woken with executions that have work (started, signalled, cancelled), here or elsewhere.
    #[must_use]
    pub fn work(&self) -> broadcast::Receiver<ExecutionId> {
        self.inner.notices.work.subscribe()
    }
}
