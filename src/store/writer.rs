//! Who writes. SQLite: one task, which groups whatever is waiting into one transaction.
//! PostgreSQL: one transaction per commit, tried again where the database says so. Callers hear
//! only after COMMIT.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sea_orm::{
    DatabaseConnection, DatabaseTransaction, DbErr, SqliteTransactionMode, TransactionOptions, TransactionTrait,
};
use tokio::sync::{Mutex, Notify, Semaphore, broadcast, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::apply::{Batch, Learned, Memory, Outcome};
use super::prepare::Prepared;
use super::{CommitError, Refusal, health, postgres, sql};
use crate::model::{ExecutionId, StreamId};

/// The most commits in one transaction.
const BATCH_MAX: usize = 256;
/// How long a caller waits for an answer at most.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// How often PostgreSQL is asked again after a conflict between transactions.
const TRIES: u32 = 20;

/// Who is told after COMMIT.
#[derive(Debug, Clone)]
pub(super) struct Notices {
    pub appended: broadcast::Sender<(StreamId, i64)>,
    pub work: broadcast::Sender<ExecutionId>,
}

impl Notices {
    pub(super) fn new() -> Self {
        Self { appended: broadcast::channel(8192).0, work: broadcast::channel(8192).0 }
    }

    fn tell(&self, prepared: &Prepared, outcome: &Outcome) {
        for grown in &outcome.appended {
            // Nobody listening is no fault.
            let _ = self.appended.send(*grown);
        }
        for execution in &prepared.work {
            let _ = self.work.send(*execution);
        }
    }
}

/// Commits that go in one transaction: a leading one, and those that follow it ([`Prepared::follows`]).
pub(super) type Request = Vec<Part>;

/// One commit on its way.
pub(super) struct Part {
    prepared: Prepared,
    reply: oneshot::Sender<Result<Outcome, CommitError>>,
}

impl Part {
    pub(super) fn new(prepared: Prepared) -> (Self, Answer) {
        let (reply, answer) = oneshot::channel();
        (Self { prepared, reply }, Answer(answer))
    }

    fn answer(self, result: Result<Outcome, CommitError>, notices: &Notices) {
        if let Ok(outcome) = &result {
            notices.tell(&self.prepared, outcome);
        }
        // Whoever asked may have gone.
        let _ = self.reply.send(result);
    }
}

/// What became of a commit.
pub(super) struct Answer(oneshot::Receiver<Result<Outcome, CommitError>>);

impl Answer {
    pub(super) async fn wait(self) -> Result<Outcome, CommitError> {
        match tokio::time::timeout(ANSWER_WITHIN, self.0).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(CommitError::Unknown("the writer ended without an answer".to_owned())),
            Err(_) => Err(CommitError::Unknown(format!("no answer within {} s", ANSWER_WITHIN.as_secs()))),
        }
    }
}

/// Where commits are handed in.
pub(super) enum Writer {
    Queue(mpsc::Sender<Request>),
    Direct {
        db: DatabaseConnection,
        /// One for each commit under way.
        slots: Arc<Semaphore>,
        queue_max: usize,
        notices: Notices,
        replica: uuid::Uuid,
    },
}

impl Writer {
    /// All of it or nothing, and what follows it only with it. Dropping the future does not undo
    /// what was handed in.
    pub(super) async fn write(&self, prepared: Prepared, following: Vec<Part>) -> Result<Outcome, CommitError> {
        let since = Instant::now();
        let (first, answer) = Part::new(prepared);
        self.hand_in(std::iter::once(first).chain(following).collect());
        health::answered(answer.wait().await, since)
    }

    fn hand_in(&self, request: Request) {
        match self {
            Self::Queue(queue) => match queue.try_send(request) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(request)) => refuse(request, CROWDED),
                Err(mpsc::error::TrySendError::Closed(request)) => refuse(request, CLOSED),
            },
            Self::Direct { db, slots, notices, replica, .. } => {
                if slots.is_closed() {
                    return refuse(request, CLOSED);
                }
                let Ok(slot) = Arc::clone(slots).try_acquire_owned() else { return refuse(request, CROWDED) };
                let (db, notices, replica) = (db.clone(), notices.clone(), *replica);
                tokio::spawn(async move {
                    let result = write_one(&db, &all_of(&request), replica).await;
                    answer(request, result, &notices);
                    drop(slot);
                });
            }
        }
    }
}

const CROWDED: &str = "too many commits are waiting; try again";
const CLOSED: &str = "the store is closed";

impl Writer {
    /// Takes no more and waits for what is under way (SQLite's task is waited for by its handle).
    pub(super) async fn drain(&self) {
        if let Self::Direct { slots, queue_max, .. } = self {
            let all = u32::try_from(*queue_max).unwrap_or(u32::MAX);
            // Held until it is closed, so that nobody gets in between. Fails only when it was closed before.
            let _all = slots.acquire_many(all).await;
            slots.close();
        }
    }
}

/// None of it was tried.
fn refuse(request: Request, why: &str) {
    for part in request {
        let _ = part.reply.send(Err(CommitError::Unavailable(why.to_owned())));
    }
}

fn all_of<'r>(parts: impl IntoIterator<Item = &'r Part>) -> Vec<&'r Prepared> {
    parts.into_iter().map(|part| &part.prepared).collect()
}

/// Tells each what became of it.
fn answer(parts: impl IntoIterator<Item = Part>, result: Result<Outcomes, CommitError>, notices: &Notices) {
    match result {
        Ok(outcomes) => {
            for (part, outcome) in parts.into_iter().zip(outcomes) {
                part.answer(outcome.map_err(CommitError::Refused), notices);
            }
        }
        Err(error) => parts.into_iter().for_each(|part| part.answer(Err(error.clone()), notices)),
    }
}

/// Why a batch did not happen, or may not have.
enum Broken {
    /// Not one statement was run.
    AtBegin(DbErr),
    /// It did not happen: the transaction is rolled back.
    Before(DbErr),
    /// COMMIT was sent.
    AtCommit(DbErr),
}

impl From<Broken> for CommitError {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::AtBegin(error) | Broken::Before(error) => Self::Unavailable(sql::describe(&error)),
            Broken::AtCommit(error) if sql::full(&error) => Self::Unavailable(sql::describe(&error)),
            Broken::AtCommit(error) => Self::Unknown(sql::describe(&error)),
        }
    }
}

type Outcomes = Vec<Result<Outcome, Refusal>>;

// --- SQLite --------------------------------------------------------------------------------------

/// A SQLite file with what its writer needs.
pub(super) struct File<G> {
    /// The only connection that writes.
    pub db: DatabaseConnection,
    /// Another one, on which the log is carried into the file without holding up the writer.
    pub checkpoints: DatabaseConnection,
    /// Where the write-ahead log is.
    pub log: PathBuf,
    /// Nobody else writes what this writer may remember.
    pub alone: bool,
    /// Kept (it holds the lock on the data directory) until the writer has ended.
    pub guard: G,
}

/// The writer's task: ends when it is told to and nothing is queued, or when the store is gone.
pub(super) async fn run<G>(
    File { db, checkpoints, log, alone, guard }: File<G>,
    mut queue: mpsc::Receiver<Request>,
    notices: Notices,
    stop: CancellationToken,
) {
    let mut log = Log { path: log, commits: 0, long_since: None, shared: Arc::default() };
    let checkpointer = tokio::spawn(carry(checkpoints.clone(), Arc::clone(&log.shared)));
    let mut batch = Vec::with_capacity(BATCH_MAX);
    let mut memory = Memory::default();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled(), if !queue.is_closed() => {
                queue.close();
                continue;
            }
            count = queue.recv_many(&mut batch, BATCH_MAX) => if count == 0 { break },
            () = tokio::time::sleep(PAUSE), if log.commits > 0 => {
                log.carry();
                continue;
            }
        }
        let waiting = std::mem::take(&mut batch);
        if !alone {
            memory = Memory::default();
        }
        let prepared = all_of(waiting.iter().flatten());
        let count = prepared.len();
        crate::measure::store::batch(count);
        match write_batch(&db, &prepared, &mut memory).await {
            Ok(outcomes) => answer(waiting.into_iter().flatten(), Ok(outcomes), &notices),
            Err(Broken::Before(error)) if waiting.len() > 1 && !sql::exhausted(&error) => {
                // One of them is bad: each on its own, so that only the bad one fails.
                tracing::warn!(error = %sql::describe(&error), "a batch of commits failed; trying each on its own");
                for request in waiting {
                    let result = write_batch(&db, &all_of(&request), &mut memory).await;
                    answer(request, result.map_err(CommitError::from), &notices);
                }
            }
            Err(broken) => {
                let error = CommitError::from(broken);
                tracing::warn!(%error, commits = count, "commits failed");
                answer(waiting.into_iter().flatten(), Err(error), &notices);
            }
        }
        log.grew(&db, count).await;
        // Those who were answered may have more to say at once; it goes into the next batch rather
        // than the one after.
        tokio::task::yield_now().await;
    }
    checkpointer.abort();
    // Cancelled, which is what was asked for; its connection may still be at work.
    let _ = checkpointer.await;
    if let Err(error) = checkpoints.close().await {
        tracing::warn!(%error, "the connection for checkpoints did not close");
    }
    // Carried over as a whole, so that the next start finds an empty log. A reader may be in the way;
    // a command beside a running server leaves it to that one, which would wait meanwhile.
    if alone {
        checkpoint(&db, "PRAGMA wal_checkpoint(TRUNCATE)").await;
    }
    if let Err(error) = db.close().await {
        tracing::warn!(%error, "the database's file did not close");
    }
    drop(guard);
}

/// Commits after which the log is carried into the file, if there is no pause before.
const CARRY_AFTER: usize = 2048;
/// Without a commit for this long it is carried too: then nobody waits for the disk beside it.
const PAUSE: Duration = Duration::from_millis(100);
/// Bytes of log at which the writer itself makes it begin anew; above what the file is cut to
/// then (`journal_size_limit`, 64 MiB).
pub(super) const LOG_MAX: u64 = 96 << 20;
/// Bytes above that at which it does not wait for the rest to be carried before.
const LOG_SLACK: u64 = 8 << 20;

/// How far the log runs ahead of the file. SQLite would carry it over within a commit, which then
/// takes as long as writing a thousand pages; so it is done beside the writer.
struct Log {
    path: PathBuf,
    /// Commits since it was last asked for.
    commits: usize,
    /// How often it had been carried when it was found too long.
    long_since: Option<u64>,
    shared: Arc<Carrying>,
}

#[derive(Default)]
struct Carrying {
    wake: Notify,
    /// One checkpoint at a time: SQLite answers a second one with `busy` and does nothing.
    one: Mutex<()>,
    /// How often the log was carried as far as it went.
    times: AtomicU64,
}

impl Log {
    fn carry(&mut self) {
        self.commits = 0;
        self.shared.wake.notify_one();
    }

    async fn grew(&mut self, db: &DatabaseConnection, commits: usize) {
        self.commits += commits;
        if self.commits >= CARRY_AFTER {
            self.carry();
        }
        let size = std::fs::metadata(&self.path).map_or(0, |log| log.len());
        if size <= LOG_MAX {
            return;
        }
        // While commits follow each other without a gap, only their writer can begin the log anew.
        // The most of it is carried before, so that they wait for the rest alone.
        let times = self.shared.times.load(Ordering::Relaxed);
        match self.long_since {
            None => {
                self.long_since = Some(times);
                self.carry();
            }
            // The first may have been under way already.
            Some(since) if times >= since + 2 || size > LOG_MAX + LOG_SLACK => {
                let _one = self.shared.one.lock().await;
                // A long read (a backup) keeps the log from beginning anew: nobody waits for its end.
                let _ = sql::one(db, "PRAGMA busy_timeout = 20", Vec::new()).await;
                checkpoint(db, "PRAGMA wal_checkpoint(RESTART)").await;
                let _ = sql::one(db, "PRAGMA busy_timeout = 10000", Vec::new()).await;
                self.long_since = None;
            }
            Some(_) if self.commits > 0 => self.carry(),
            Some(_) => {}
        }
    }
}

async fn carry(db: DatabaseConnection, shared: Arc<Carrying>) {
    loop {
        shared.wake.notified().await;
        let _one = shared.one.lock().await;
        checkpoint(&db, "PRAGMA wal_checkpoint(PASSIVE)").await;
        shared.times.fetch_add(1, Ordering::Relaxed);
    }
}

/// A checkpoint that fails is made up for by the next.
async fn checkpoint(db: &DatabaseConnection, pragma: &str) {
    if let Err(error) = sql::one(db, pragma, Vec::new()).await {
        tracing::warn!(error = %sql::describe(&error), "the log was not carried into the file");
    }
}

async fn write_batch(db: &DatabaseConnection, batch: &[&Prepared], memory: &mut Memory) -> Result<Outcomes, Broken> {
    let options =
        TransactionOptions { sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate), ..Default::default() };
    // Put back only once the transaction is known to have happened.
    let mut known = std::mem::take(memory);
    let tx = match db.begin_with_options(options).await {
        Ok(tx) => tx,
        Err(error) => {
            if sql::read_only(&error) {
                renew(db).await;
            }
            return Err(Broken::AtBegin(error));
        }
    };
    match apply(&tx, batch, &known).await {
        Ok((outcomes, learned)) => {
            if let Err(error) = tx.commit().await {
                renew(db).await;
                return Err(Broken::AtCommit(error));
            }
            known.learn(learned);
            *memory = known;
            Ok(outcomes)
        }
        Err(error) => {
            // The first error says what happened.
            if tx.rollback().await.is_err() {
                renew(db).await;
            }
            Err(Broken::Before(error))
        }
    }
}

/// Gives up the connection; the next transaction makes another. SQLite rolls some failed
/// transactions back by itself (a full disk), of which the driver does not know: it would take the
/// next ones for parts of a transaction that nobody ever commits. And one that was made while the
/// disk was read-only writes never.
async fn renew(db: &DatabaseConnection) {
    // Where none can be made there is none to give up.
    if let Ok(connection) = db.get_sqlite_connection_pool().acquire().await
        && let Err(error) = connection.close().await
    {
        tracing::warn!(%error, "the writer's connection did not close");
    }
}

async fn apply(tx: &DatabaseTransaction, commits: &[&Prepared], memory: &Memory) -> Result<(Outcomes, Learned), DbErr> {
    let mut batch = Batch::begin(tx, commits, memory).await?;
    for prepared in commits {
        batch.add(prepared).await?;
    }
    batch.finish().await
}

// --- PostgreSQL ------------------------------------------------------------------------------------

/// A commit, with what follows it, in its own transaction. Conflicts between transactions (serialization, deadlock, a
/// row that another inserted first) are met by looking at the guards again.
async fn write_one(
    db: &DatabaseConnection,
    commits: &[&Prepared],
    replica: uuid::Uuid,
) -> Result<Outcomes, CommitError> {
    let mut tries = 1;
    loop {
        match try_one(db, commits, replica).await {
            Err(broken) if tries < TRIES && broken.may_be_retried() => {
                // Spread, so that those who met do not meet again.
                let spread = u64::from(uuid::Uuid::new_v4().as_bytes()[0]);
                tokio::time::sleep(Duration::from_micros(u64::from(tries) * 20 * spread)).await;
                tries += 1;
            }
            Err(broken) => return Err(broken.into()),
            Ok(outcomes) => return Ok(outcomes),
        }
    }
}

impl Broken {
    /// Certainly nothing happened, and trying again may help: the database rolled the transaction
    /// back for another's sake, or the connection was lost before COMMIT was sent.
    fn may_be_retried(&self) -> bool {
        match self {
            Self::AtBegin(error) | Self::Before(error) => sql::conflict(error) || sql::connection_lost(error),
            Self::AtCommit(error) => sql::conflict(error),
        }
    }
}

async fn try_one(db: &DatabaseConnection, commits: &[&Prepared], replica: uuid::Uuid) -> Result<Outcomes, Broken> {
    let tx = db.begin().await.map_err(Broken::AtBegin)?;
    let outcomes = async {
        // Others write too: nothing is remembered.
        let (outcomes, _) = apply(&tx, commits, &Memory::default()).await?;
        for (prepared, outcome) in commits.iter().zip(&outcomes) {
            if let Ok(outcome) = outcome {
                postgres::announce(&tx, replica, &outcome.appended, &prepared.work).await?;
            }
        }
        Ok(outcomes)
    };
    match outcomes.await {
        Ok(outcomes) => {
            tx.commit().await.map_err(Broken::AtCommit)?;
            Ok(outcomes)
        }
        Err(error) => {
            let _ = tx.rollback().await;
            Err(Broken::Before(error))
        }
    }
}
