//! A copy of a SQLite database while it is served, and a database made from such a copy.
//!
//! A restored database is an earlier one: hosts have seen more than it knows. So it gets a new
//! epoch (old cursors are told of the gap), its leases begin above any that a host can have seen,
//! and what was under way looks before it acts.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use migrations::{Migrator, MigratorTrait};
use sea_orm::sqlx::sqlite::SqliteJournalMode;
use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr, TransactionTrait};
use uuid::Uuid;

use super::open::{self, State};
use super::sql::{all, describe, execute, one};
use super::{Error, Options, rows};

/// A backup that was made and read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackedUp {
    /// Of the file.
    pub bytes: u64,
    /// How many are in it.
    pub executions: i64,
    /// Of them, those that a restore would go on with.
    pub unfinished: i64,
}

/// A database that was made from a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// How many are in it.
    pub executions: i64,
    /// Of them, those that go on at the next start.
    pub unfinished: i64,
    /// Where the database that was there before is now.
    pub kept: Option<PathBuf>,
}

const HINT_POSTGRES: &str = "this server's data is in PostgreSQL, which has its own tools:";

/// Copies the database of the data directory into the file, as of one instant, while a server may
/// be writing to it. The file is whole or not there, and only its owner may read it.
///
/// # Errors
/// When the data is in PostgreSQL, there is no database, the file is there and shall not be
/// replaced, or the copy cannot be written or read back.
pub async fn backup(options: &Options, file: &Path, replace: bool) -> Result<BackedUp, Error> {
    if options.database_url.is_some() {
        return refuse(format!(
            "{HINT_POSTGRES} take a backup by `pg_dump --format=custom --file={} \"${{GENNAKER_DATABASE_URL:-$DATABASE_URL}}\"`; `gennaker restore \
             --help` says how to come back from it",
            file.display()
        ));
    }
    let database = options.data_dir.join(open::FILE);
    if !database.exists() {
        return refuse(format!("there is no database in {}; check --data-dir", options.data_dir.display()));
    }
    if !replace && fs::symlink_metadata(file).is_ok() {
        return refuse(format!("{} is there already; name another file, or say --force to replace it", file.display()));
    }
    if fs::canonicalize(file).is_ok_and(|file| fs::canonicalize(&database).is_ok_and(|database| file == database)) {
        return refuse(format!("{} is the database itself; name another file", file.display()));
    }
    open::must_be_sqlite(&database)?;
    let partial = Partial::create(file)?;
    let source = connect(&database, false).await.map_err(|error| match error {
        Error::Database(said) => open::about(&database, said),
        other => other,
    })?;
    let copied = execute(&source, "VACUUM INTO ?", vec![rows::text(&partial.0.to_string_lossy())]).await;
    close(source).await;
    copied.map_err(|error| Error::Refused(format!("{} is not written: {}", file.display(), describe(&error))))?;
    let copy = connect(&partial.0, true).await.map_err(|error| damaged(file, &error.to_string()))?;
    let counted = check(&copy, file).await;
    close(copy).await;
    let (executions, unfinished) = counted?;
    let bytes = partial.finish(file)?;
    Ok(BackedUp { bytes, executions, unfinished })
}

/// Makes the data directory's database from a backup. No server may run on the directory. A
/// database that is there is kept aside under a dated name, if it may be replaced at all.
///
/// # Errors
/// When the data is in PostgreSQL, the directory is in use, there is a database that shall not be
/// replaced, or the file is no backup, is damaged, or newer than this binary.
pub async fn restore(options: &Options, file: &Path, replace: bool, now: DateTime<Utc>) -> Result<Restored, Error> {
    if options.database_url.is_some() {
        return refuse(format!(
            "{HINT_POSTGRES} stop every server, run `pg_restore` into an empty database, then `gennaker restore \
             --in-place` before the first start"
        ));
    }
    let dir = &options.data_dir;
    let database = dir.join(open::FILE);
    if !file.is_file() {
        return refuse(format!("there is no file {}; name one that `gennaker backup` made", file.display()));
    }
    if !dir.exists() {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(|source| Error::Directory { path: dir.clone(), source })?;
    }
    let _lock = open::lock(dir)?;
    if database.exists() && !replace {
        return refuse(format!(
            "there is a database in {}; say --force to keep it aside and put the backup in its place",
            dir.display()
        ));
    }
    let partial = Partial::create(&database)?;
    fs::copy(file, &partial.0).map_err(|error| match error.kind() {
        io::ErrorKind::StorageFull => about(&database, error),
        _ => about(file, error),
    })?;
    let db = connect(&partial.0, false).await.map_err(|error| damaged(file, &error.to_string()))?;
    let counted = begin_anew(&db, file, now).await;
    close(db).await;
    let (executions, unfinished) = counted?;
    let kept = if database.exists() { Some(keep_aside(&database, now).await?) } else { None };
    // A log whose database is gone would be played into the new one.
    for suffix in ["-wal", "-shm"] {
        let left = open::beside(&database, suffix);
        match fs::rename(&left, open::beside(&left, &format!(".replaced-{}", now.format("%Y%m%dT%H%M%SZ")))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(about(&left, error)),
            _ => {}
        }
    }
    partial.finish(&database)?;
    Ok(Restored { executions, unfinished, kept })
}

/// Does the same to a PostgreSQL database that was just restored by its own tools.
///
/// # Errors
/// When the data is not in PostgreSQL, a server is at work on it, or it cannot be reached.
pub async fn adopt_restored(options: &Options, now: DateTime<Utc>) -> Result<Restored, Error> {
    let Some(url) = &options.database_url else {
        return refuse("--in-place is for PostgreSQL; for SQLite name the backup's file".to_owned());
    };
    let db = open::connect_postgres(url).await?;
    open::migrate_postgres(&db).await?;
    if beats(&db).await? {
        close(db).await;
        return refuse("a server is at work on this database; stop it first".to_owned());
    }
    let tx = db.begin().await?;
    set_back(&tx, now).await?;
    let (executions, unfinished) = count(&tx).await?;
    tx.commit().await?;
    close(db).await;
    Ok(Restored { executions, unfinished, kept: None })
}

/// Longer than a server takes from one sign of life to the next.
const LISTEN: std::time::Duration = std::time::Duration::from_secs(12);

/// Whether an owner gives signs of life; those that came with the backup give none.
async fn beats(db: &DatabaseConnection) -> Result<bool, Error> {
    let owners = async || -> Result<Vec<(Uuid, i64)>, Error> {
        let rows = all(db, "SELECT id, beat FROM owner ORDER BY id", Vec::new()).await?;
        rows.iter().map(|row| Ok((row.try_get_by_index(0)?, row.try_get_by_index(1)?))).collect()
    };
    let before = owners().await?;
    if before.is_empty() {
        return Ok(false);
    }
    tokio::time::sleep(LISTEN).await;
    Ok(owners().await?.iter().any(|owner| !before.contains(owner)))
}

/// Judges the copy, brings its schema up to date, and marks it as one that was restored.
async fn begin_anew(db: &DatabaseConnection, file: &Path, now: DateTime<Utc>) -> Result<(i64, i64), Error> {
    check(db, file).await?;
    Migrator::up(db, None).await?;
    let tx = db.begin().await?;
    set_back(&tx, now).await?;
    tx.commit().await?;
    Ok(count(db).await?)
}

/// A new epoch; nobody owns anything; and the leases of what is under way begin at a number that is
/// above all that were given out: they rise by one with each claim, this one with each microsecond.
async fn set_back<C: ConnectionTrait>(db: &C, now: DateTime<Utc>) -> Result<(), DbErr> {
    let epoch = rows::text(&Uuid::new_v4().to_string());
    execute(db, "UPDATE meta SET value = ? WHERE key = 'epoch'", vec![epoch]).await?;
    execute(db, "DELETE FROM owner", Vec::new()).await?;
    let sql = "UPDATE execution SET lease_owner = NULL, lease_number = \
               CASE WHEN lease_number >= ? THEN lease_number + 1 ELSE ? END WHERE finished = 0";
    execute(db, sql, vec![rows::time(now), rows::time(now)]).await?;
    let sql = "UPDATE execution SET restored_lease = lease_number WHERE finished = 0";
    execute(db, sql, Vec::new()).await?;
    Ok(())
}

/// The file is a whole database of ours that this binary knows; how many executions it has, and
/// how many of them are unfinished.
async fn check(db: &DatabaseConnection, file: &Path) -> Result<(i64, i64), Error> {
    let found = one(db, "PRAGMA integrity_check(1)", Vec::new()).await;
    let found = found.map_err(|error| damaged(file, &describe(&error)))?;
    let said = found.map(|row| row.try_get_by_index::<String>(0)).transpose()?.unwrap_or_default();
    if said != "ok" {
        return Err(damaged(file, &format!("it is damaged ({said})")));
    }
    if one(db, "SELECT 1 FROM sqlite_master WHERE name = 'seaql_migrations'", Vec::new()).await?.is_none()
        || open::check_version(db).await? == State::Empty
    {
        return Err(damaged(file, "it has no data of this program"));
    }
    Ok(count(db).await?)
}

fn damaged(file: &Path, what: &str) -> Error {
    Error::Refused(format!("{} is not a usable backup: {what}", file.display()))
}

async fn count<C: ConnectionTrait>(db: &C) -> Result<(i64, i64), DbErr> {
    let sql = "SELECT COUNT(*), COUNT(CASE WHEN finished = 0 THEN 1 END) FROM execution";
    match one(db, sql, Vec::new()).await? {
        Some(row) => Ok((row.try_get_by_index(0)?, row.try_get_by_index(1)?)),
        None => Ok((0, 0)),
    }
}

/// Moves a database out of the way, in an order in which there is one at every moment.
async fn keep_aside(database: &Path, now: DateTime<Utc>) -> Result<PathBuf, Error> {
    let kept = open::beside(database, &format!(".replaced-{}", now.format("%Y%m%dT%H%M%SZ")));
    if kept.exists() {
        return refuse(format!("{} is there already; wait a second and try again", kept.display()));
    }
    // Its log goes into it, unless it is too damaged for that; then the log is kept beside it.
    let opened = match open::must_be_sqlite(database) {
        Ok(()) => connect(database, false).await,
        Err(error) => Err(error),
    };
    match opened {
        Ok(db) => {
            if let Err(error) = one(&db, "PRAGMA wal_checkpoint(TRUNCATE)", Vec::new()).await {
                tracing::warn!(error = %describe(&error), "the old database's log was not carried into it");
            }
            close(db).await;
        }
        Err(error) => tracing::warn!(%error, "the old database cannot be opened; it is kept as it is"),
    }
    fs::hard_link(database, &kept).map_err(|error| about(&kept, error))?;
    for suffix in ["-wal", "-shm"] {
        match fs::rename(open::beside(database, suffix), open::beside(&kept, suffix)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(about(database, error)),
            _ => {}
        }
    }
    Ok(kept)
}

/// A connection of its own; `only_read`: the file is a copy that nobody else has.
async fn connect(path: &Path, only_read: bool) -> Result<DatabaseConnection, Error> {
    let path = path.to_owned();
    open::connect_sqlite(1, move |sqlite| {
        let sqlite = sqlite.filename(&path);
        match only_read {
            true => sqlite.read_only(true),
            false => sqlite.journal_mode(SqliteJournalMode::Wal),
        }
    })
    .await
}

async fn close(db: DatabaseConnection) {
    if let Err(error) = db.close().await {
        tracing::warn!(%error, "a connection to the database did not close");
    }
}

/// A file that is being written, gone unless it was finished.
struct Partial(PathBuf);

impl Partial {
    /// Beside the name that it is to have; errors are about that one.
    fn create(name: &Path) -> Result<Self, Error> {
        let path = open::beside(name, &format!(".partial-{}", Uuid::new_v4().simple()));
        // Readable by nobody else from the first byte.
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        made.map_err(|error| about(name, error))?;
        Ok(Self(path))
    }

    /// Gives it its name once all of it is on the disk; its size in bytes.
    fn finish(self, name: &Path) -> Result<u64, Error> {
        let moved = (|| {
            let file = File::open(&self.0)?;
            file.sync_all()?;
            let bytes = file.metadata()?.len();
            fs::rename(&self.0, name)?;
            let parent = name.parent().filter(|parent| !parent.as_os_str().is_empty());
            File::open(parent.unwrap_or_else(|| Path::new(".")))?.sync_all()?;
            Ok(bytes)
        })();
        moved.map_err(|error| about(name, error))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        for suffix in ["", "-wal", "-shm", "-journal"] {
            // After it was finished there is none.
            let _ = fs::remove_file(open::beside(&self.0, suffix));
        }
    }
}

fn about(path: &Path, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::StorageFull => Error::Refused(format!("no room for {}; name another disk", path.display())),
        _ => Error::Refused(format!("{}: {error}", path.display())),
    }
}

fn refuse<T>(message: String) -> Result<T, Error> {
    Err(Error::Refused(message))
}
