//! Opening: the data directory and its lock, the pools, the migration (SQLite copied first,
//! PostgreSQL under an advisory lock), the epoch.

use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use migrations::{Migrator, MigratorTrait};
use sea_orm::sqlx::postgres::PgConnectOptions;
use sea_orm::sqlx::sqlite::{SqliteAutoVacuum, SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sea_orm::sqlx::{self, ConnectOptions as _, Connection as _};
use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbErr, TransactionTrait};
use tokio::sync::{Mutex, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::sql::{execute, one};
use super::writer::{Notices, Writer};
use super::{Durability, Error, Inner, Options, Store, postgres, rows, writer};
use crate::clock::Clock;

pub(super) const FILE: &str = "gennaker.db";
const LOCK_FILE: &str = "gennaker.lock";
/// Connections that only read a SQLite file.
const SQLITE_READERS: u32 = 4;
/// Connections to PostgreSQL, one of them for notices.
const POSTGRES_POOL: u32 = 16;
/// Key of the advisory lock under which PostgreSQL is migrated: "gennaker" as a number.
pub(super) const MIGRATION_LOCK: i64 = 0x6765_6e6e_616b_6572;

/// How the database is opened.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum As {
    /// The one that runs: locks, migrates.
    Server,
    /// A command of an administrator, while a server may be running.
    Tool,
}

pub(super) async fn open(options: &Options, clock: Clock, role: As) -> Result<Store, Error> {
    let notices = Notices::new();
    let stop = CancellationToken::new();
    let queue_max = options.queue_max.clamp(1, Semaphore::MAX_PERMITS);

    let (write, read, task) = if let Some(url) = &options.database_url {
        let db = connect_postgres(url).await?;
        migrate_postgres(&db).await?;
        let replica = Uuid::new_v4();
        let task = tokio::spawn(postgres::listen(db.clone(), replica, notices.clone(), stop.clone()));
        let slots = Arc::new(Semaphore::new(queue_max));
        let notices = notices.clone();
        (Writer::Direct { db: db.clone(), slots, queue_max, notices, replica }, db, task)
    } else {
        let (file, read) = open_sqlite(options, role).await?;
        let (sender, receiver) = mpsc::channel(queue_max);
        let work = writer::run(file, receiver, notices.clone(), stop.clone());
        (Writer::Queue(sender), read, tokio::spawn(work))
    };
    let epoch = read_epoch(&read).await?;
    let guard = stop.clone().drop_guard();
    let task = Mutex::new(Some(task));
    Ok(Store { inner: Arc::new(Inner { write, read, epoch, clock, notices, stop, task, _guard: guard }) })
}

// --- SQLite --------------------------------------------------------------------------------------

/// What SQLite says at the opening, with the file that it says it of.
async fn open_sqlite(options: &Options, role: As) -> Result<(writer::File<Option<File>>, DatabaseConnection), Error> {
    open_file(options, role).await.map_err(|error| match error {
        Error::Database(said) => about(&options.data_dir.join(FILE), said),
        other => other,
    })
}

pub(super) fn about(database: &Path, said: String) -> Error {
    let path = database.display().to_string();
    Error::Database(if said.contains(&path) { said } else { format!("{path}: {said}") })
}

/// Refuses a file that has something in it and is no database: SQLite takes one of a single byte for an
/// empty one, and writes over it.
pub(super) fn must_be_sqlite(path: &Path) -> Result<(), Error> {
    const BEGINS: &[u8; 16] = b"SQLite format 3\0";
    /// The smallest page, and so the smallest database.
    const BYTES_MIN: u64 = 512;
    let fault = |source| Error::Directory { path: path.to_owned(), source };
    let file = File::open(path).map_err(fault)?;
    let metadata = file.metadata().map_err(fault)?;
    if metadata.is_dir() {
        return Err(Error::Refused(format!(
            "{} is a directory, and a database's file belongs there; move it away, or give another data directory",
            path.display()
        )));
    }
    let size = metadata.len();
    let mut begin = Vec::new();
    file.take(BEGINS.len() as u64).read_to_end(&mut begin).map_err(fault)?;
    if size == 0 || (begin == BEGINS && size >= BYTES_MIN) {
        return Ok(());
    }
    let unit = if size == 1 { "byte" } else { "bytes" };
    Err(Error::Refused(format!(
        "{} is no SQLite database (it has {size} {unit}, and a database begins otherwise), and stays as it is; move it \
         away for an empty database, or put a backup in its place with `gennaker restore FILE --force`",
        path.display()
    )))
}

async fn open_file(options: &Options, role: As) -> Result<(writer::File<Option<File>>, DatabaseConnection), Error> {
    let dir = &options.data_dir;
    let path = dir.join(FILE);
    let fault = |source| Error::Directory { path: dir.clone(), source };
    if role == As::Server && !dir.exists() {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(fault)?;
    }
    let lock = match role {
        As::Server => Some(lock(dir)?),
        As::Tool => None,
    };
    let existed = path.exists();
    if !existed {
        if role == As::Tool {
            return Err(Error::Database(format!("there is no {} yet; start the server once", path.display())));
        }
        // Made here, so that nobody else may read it from the first byte; the files that SQLite
        // puts beside it take over its mode.
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(fault)?;
    }
    must_be_sqlite(&path)?;

    let synchronous = match options.durability {
        Durability::Full => SqliteSynchronous::Full,
        Durability::Normal => SqliteSynchronous::Normal,
    };
    let file = path.clone();
    let writing = move |sqlite: SqliteConnectOptions| {
        sqlite
            .filename(&file)
            .auto_vacuum(SqliteAutoVacuum::Incremental)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(synchronous)
            .pragma("journal_size_limit", "67108864")
            .pragma("wal_autocheckpoint", "0")
    };
    let write = writing.clone();
    let db = connect_sqlite(1, move |sqlite| write(sqlite).pragma("cache_size", "-8000")).await?;
    match role {
        As::Server => {
            if check_version(&db).await? == State::Behind && existed {
                copy(&db, &path).await?;
            }
            Migrator::up(&db, None).await?;
            make_epoch(&db).await?;
            // Nobody else can be alive on this file.
            execute(&db, "DELETE FROM owner", Vec::new()).await?;
        }
        As::Tool if check_version(&db).await? != State::Current => {
            return Err(Error::Database("the schema is older than this binary's; start the server once".to_owned()));
        }
        As::Tool => {}
    }
    let log = beside(&path, "-wal");
    let read = connect_sqlite(SQLITE_READERS, move |sqlite| sqlite.filename(&path).pragma("query_only", "on")).await?;
    let checkpoints = connect_sqlite(1, writing).await?;
    Ok((writer::File { db, checkpoints, log, alone: role == As::Server, guard: lock }, read))
}

pub(super) fn lock(dir: &Path) -> Result<File, Error> {
    let path = dir.join(LOCK_FILE);
    let fault = |source| Error::Directory { path: path.clone(), source };
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(fault)?;
    match file.try_lock() {
        Ok(()) => {
            // For whoever finds the directory taken; the lock holds without it.
            let _ = file.set_len(0).and_then(|()| writeln!(&file, "{}", std::process::id()));
            Ok(file)
        }
        Err(TryLockError::WouldBlock) => {
            let holder = std::fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
            Err(Error::Locked { dir: dir.to_owned(), holder })
        }
        Err(TryLockError::Error(source)) => Err(fault(source)),
    }
}

pub(super) async fn connect_sqlite(
    connections: u32,
    map: impl Fn(SqliteConnectOptions) -> SqliteConnectOptions + Send + Sync + 'static,
) -> Result<DatabaseConnection, Error> {
    // The file's path is set apart from the address, where some characters mean something.
    let mut options = ConnectOptions::new(format!("sqlite:{FILE}"));
    options
        .max_connections(connections)
        .min_connections(1)
        .acquire_timeout(Duration::from_secs(30))
        .idle_timeout(None::<Duration>)
        .max_lifetime(None::<Duration>)
        .test_before_acquire(false)
        .sqlx_logging(false)
        .record_stmt_in_spans(false)
        .map_sqlx_sqlite_opts(move |sqlite| {
            map(sqlite.create_if_missing(false).busy_timeout(Duration::from_secs(10)).foreign_keys(true))
        });
    Ok(Database::connect(options).await?)
}

/// A copy of the file as it is before it is migrated, beside it.
async fn copy(db: &DatabaseConnection, path: &Path) -> Result<(), Error> {
    let target = beside(path, &format!(".before-{}", env!("CARGO_PKG_VERSION")));
    let partial = beside(path, ".before-partial");
    let fault = |source| Error::Directory { path: partial.clone(), source };
    match std::fs::remove_file(&partial) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(fault(error)),
        _ => {}
    }
    execute(db, "VACUUM INTO ?", vec![rows::text(&partial.to_string_lossy())]).await?;
    std::fs::set_permissions(&partial, Permissions::from_mode(0o600)).map_err(fault)?;
    std::fs::rename(&partial, &target).map_err(fault)?;
    tracing::info!(copy = %target.display(), "copied the database before migrating it");
    Ok(())
}

pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

// --- PostgreSQL ------------------------------------------------------------------------------------

pub(super) fn connect_options(url: &str) -> Result<PgConnectOptions, String> {
    const FORM: &str = "its form is postgres://user@host:5432/name?sslmode=require";
    let options: PgConnectOptions = url.parse().map_err(|error: sqlx::Error| {
        let said = match &error {
            sqlx::Error::Configuration(cause) => cause.to_string(),
            other => other.to_string(),
        };
        format!("cannot be read as the URL of a database ({said}); {FORM}")
    })?;
    match options.get_port() {
        0 => Err(format!("names port 0, at which nothing listens; {FORM}")),
        _ => Ok(options),
    }
}

/// One connection on its own first: the pool would only say that it waited in vain, not why.
async fn reach_postgres(url: &str) -> Result<(), Error> {
    let options =
        connect_options(url).map_err(|message| Error::Database(format!("the setting for its URL {message}")))?;
    let at = format!("{}:{}", options.get_host(), options.get_port());
    let why = match tokio::time::timeout(Duration::from_secs(10), options.connect()).await {
        Ok(Ok(connection)) => {
            let _ = connection.close().await;
            return Ok(());
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => "no answer within 10 s".to_owned(),
    };
    Err(Error::Database(format!(
        "no connection to PostgreSQL at {at}: {why}; check GENNAKER_DATABASE_URL (or DATABASE_URL) and that it runs there"
    )))
}

pub(super) async fn connect_postgres(url: &str) -> Result<DatabaseConnection, Error> {
    reach_postgres(url).await?;
    let mut options = ConnectOptions::new(url);
    options
        .max_connections(POSTGRES_POOL)
        .acquire_timeout(Duration::from_secs(30))
        .test_before_acquire_if_idle_for(Duration::from_secs(1))
        .sqlx_logging(false)
        .record_stmt_in_spans(false)
        .statement_timeout(Duration::from_secs(30));
    Ok(Database::connect(options).await?)
}

/// In one transaction, under a lock, so that servers that start together do not race.
pub(super) async fn migrate_postgres(db: &DatabaseConnection) -> Result<(), Error> {
    let tx = db.begin().await?;
    tx.execute_unprepared("SET LOCAL statement_timeout = 0").await?;
    one(&tx, "SELECT 1 FROM (SELECT pg_advisory_xact_lock(?)) AS taken", vec![rows::int(MIGRATION_LOCK)]).await?;
    check_version(&tx).await?;
    Migrator::up(&tx, None).await?;
    make_epoch(&tx).await?;
    tx.commit().await?;
    Ok(())
}

// --- both ------------------------------------------------------------------------------------------

#[derive(Debug, PartialEq, Eq)]
pub(super) enum State {
    Empty,
    Behind,
    Current,
}

/// Refuses a schema with steps that this binary does not know.
pub(super) async fn check_version<C: ConnectionTrait>(db: &C) -> Result<State, Error> {
    let applied = Migrator::get_migration_models(db).await?;
    let known = Migrator::migrations();
    if let Some(found) = applied.iter().rfind(|step| known.iter().all(|known| known.name() != step.version)) {
        return Err(Error::NewerSchema {
            found: found.version.clone(),
            known: known.last().map(|step| step.name().to_owned()).unwrap_or_default(),
        });
    }
    Ok(match applied.len() {
        0 => State::Empty,
        count if count < known.len() => State::Behind,
        _ => State::Current,
    })
}

async fn make_epoch<C: ConnectionTrait>(db: &C) -> Result<(), DbErr> {
    let sql = "INSERT INTO meta (key, value) VALUES ('epoch', ?) ON CONFLICT (key) DO NOTHING";
    execute(db, sql, vec![rows::text(&Uuid::new_v4().to_string())]).await.map(|_| ())
}

async fn read_epoch(db: &DatabaseConnection) -> Result<Uuid, Error> {
    let corrupt = |message: String| Error::Corrupt { what: "epoch".to_owned(), message };
    let row = one(db, "SELECT value FROM meta WHERE key = 'epoch'", Vec::new())
        .await?
        .ok_or_else(|| corrupt("there is none".to_owned()))?;
    let text: String = row.try_get_by_index(0)?;
    Uuid::try_parse(&text).map_err(|error| corrupt(error.to_string()))
}
