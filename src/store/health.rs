//! What those who watch the server ask: whether the database can be read and written, how full
//! things are, and whether its rows hold together.

use std::time::Instant;

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{DatabaseConnection, DbBackend};
use uuid::Uuid;

use super::apply::Outcome;
use super::open::{self, State};
use super::prepare::{Op, Prepared};
use super::sql::{all, one};
use super::writer::Writer;
use super::{CommitError, Error, Store, rows};
use crate::measure::store::{self as measure, CommitOutcome};
use crate::model::{ExecutionId, IntentId};

/// Executions that ended before this are not looked through any more.
const LOOK_BACK: TimeDelta = TimeDelta::minutes(30);
/// The newest ones are looked through, at most so many.
const LOOK_THROUGH: i64 = 2_000;

/// Counts how a commit was answered.
pub(super) fn answered(result: Result<Outcome, CommitError>, since: Instant) -> Result<Outcome, CommitError> {
    let outcome = match &result {
        Ok(_) => CommitOutcome::Ok,
        Err(CommitError::Refused(_)) => CommitOutcome::Refused,
        Err(CommitError::Unavailable(_)) => CommitOutcome::Unavailable,
        Err(CommitError::Unknown(_)) => CommitOutcome::Unknown,
    };
    measure::commit(outcome, since.elapsed());
    result
}

/// How full the store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fill {
    /// Commits that wait for the writer.
    pub queued: usize,
    /// Commits that may wait.
    pub queue_max: usize,
    /// Connections for reading that are in use.
    pub readers_busy: usize,
    /// Connections for reading that are open.
    pub readers: usize,
}

impl Store {
    /// The database answers, and its schema is the one this binary works with.
    ///
    /// # Errors
    /// When it does not answer, or another binary has changed its schema.
    pub async fn check_read(&self) -> Result<(), Error> {
        match open::check_version(&self.inner.read).await? {
            State::Current => Ok(()),
            State::Empty | State::Behind => Err(Error::Database("the schema is older than this binary's".to_owned())),
        }
    }

    /// A very small commit goes through.
    ///
    /// # Errors
    /// When it does not.
    pub async fn check_write(&self) -> Result<(), CommitError> {
        let sql = "INSERT INTO meta (key, value) VALUES ('probe', ?) \
                   ON CONFLICT (key) DO UPDATE SET value = excluded.value";
        let at = self.inner.clock.now().timestamp_micros().to_string();
        let op = Op::Run { sql, values: vec![rows::text(&at)] };
        self.write(Prepared { ops: vec![op], ..Prepared::default() }).await?;
        Ok(())
    }

    /// How full queue and connections are.
    #[must_use]
    pub fn fill(&self) -> Fill {
        let (queued, queue_max) = match &self.inner.write {
            Writer::Queue(queue) => (queue.max_capacity() - queue.capacity(), queue.max_capacity()),
            Writer::Direct { slots, queue_max, .. } => {
                (queue_max.saturating_sub(slots.available_permits()), *queue_max)
            }
        };
        let (readers, idle) = connections(&self.inner.read);
        Fill { queued, queue_max, readers_busy: readers.saturating_sub(idle), readers }
    }

    /// The position of the newest event over all streams.
    ///
    /// # Errors
    /// When the database cannot say.
    pub async fn event_position(&self) -> Result<i64, Error> {
        let row = one(&self.inner.read, "SELECT value FROM counter WHERE key = 'position'", Vec::new()).await?;
        Ok(row.map(|row| row.try_get_by_index(0)).transpose()?.unwrap_or(0))
    }

    /// Unfinished executions: (those whose instant has come, those that wait).
    ///
    /// # Errors
    /// When the database cannot say.
    pub async fn open_executions(&self, now: DateTime<Utc>) -> Result<(i64, i64), Error> {
        let sql = "SELECT COUNT(CASE WHEN wake_at <= ? THEN 1 END), COUNT(*) FROM execution WHERE wake_at IS NOT NULL";
        let Some(row) = one(&self.inner.read, sql, vec![rows::time(now)]).await? else { return Ok((0, 0)) };
        let (due, all): (i64, i64) = (row.try_get_by_index(0)?, row.try_get_by_index(1)?);
        Ok((due, all - due))
    }

    /// Unfinished executions without an instant at which they are looked at; there are none.
    ///
    /// # Errors
    /// When the database cannot say.
    pub async fn executions_without_wake(&self, limit: u64) -> Result<Vec<ExecutionId>, Error> {
        let sql = "SELECT id FROM execution WHERE finished = 0 AND wake_at IS NULL LIMIT ?";
        let limit = rows::int(i64::try_from(limit).unwrap_or(i64::MAX));
        let found = all(&self.inner.read, sql, vec![limit]).await?;
        found.iter().map(|row| Ok(row.try_get_by_index::<Uuid>(0)?.into())).collect()
    }

    /// Effects without an outcome, past their deadline, of executions that ended lately; there are
    /// none.
    ///
    /// # Errors
    /// When the database cannot say.
    pub async fn intents_left_open(
        &self,
        now: DateTime<Utc>,
        limit: u64,
    ) -> Result<Vec<(IntentId, ExecutionId)>, Error> {
        let sql = "SELECT intent.id, intent.execution_id FROM (SELECT id FROM execution WHERE finished = 1 \
                   AND ended_at > ? ORDER BY ended_at DESC LIMIT ?) AS over JOIN intent ON intent.execution_id = over.id \
                   WHERE intent.closed_at IS NULL AND intent.deadline < ? LIMIT ?";
        let limit = rows::int(i64::try_from(limit).unwrap_or(i64::MAX));
        let values = vec![rows::time(now - LOOK_BACK), rows::int(LOOK_THROUGH), rows::time(now), limit];
        let found = all(&self.inner.read, sql, values).await?;
        found
            .iter()
            .map(|row| Ok((row.try_get_by_index::<Uuid>(0)?.into(), row.try_get_by_index::<Uuid>(1)?.into())))
            .collect()
    }
}

/// Open connections, and how many of them are idle.
fn connections(db: &DatabaseConnection) -> (usize, usize) {
    let count = |size: u32| usize::try_from(size).unwrap_or(usize::MAX);
    match db.get_database_backend() {
        DbBackend::Sqlite => {
            let pool = db.get_sqlite_connection_pool();
            (count(pool.size()), pool.num_idle())
        }
        DbBackend::Postgres => {
            let pool = db.get_postgres_connection_pool();
            (count(pool.size()), pool.num_idle())
        }
        _ => (0, 0),
    }
}
