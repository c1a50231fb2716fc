//! Statements as texts with `?`, for both databases.

use std::borrow::Cow;

use sea_orm::{ConnectionTrait, DbBackend, DbErr, ExecResult, QueryResult, Statement, Value};

/// The text in the database's dialect: PostgreSQL numbers its parameters.
fn dialect(backend: DbBackend, sql: &str) -> String {
    if backend != DbBackend::Postgres {
        return sql.to_owned();
    }
    let mut text = String::with_capacity(sql.len() + 32);
    let mut number = 0_usize;
    for part in sql.split_inclusive('?') {
        match part.strip_suffix('?') {
            Some(part) => {
                number += 1;
                text.push_str(part);
                text.push('$');
                text.push_str(&number.to_string());
            }
            None => text.push_str(part),
        }
    }
    text
}

fn statement(backend: DbBackend, sql: &str, values: Vec<Value>) -> Statement {
    Statement::from_sql_and_values(backend, dialect(backend, sql), values)
}

pub(super) async fn execute<C: ConnectionTrait>(db: &C, sql: &str, values: Vec<Value>) -> Result<ExecResult, DbErr> {
    db.execute_raw(statement(db.get_database_backend(), sql, values)).await
}

pub(super) async fn one<C: ConnectionTrait>(
    db: &C,
    sql: &str,
    values: Vec<Value>,
) -> Result<Option<QueryResult>, DbErr> {
    db.query_one_raw(statement(db.get_database_backend(), sql, values)).await
}

pub(super) async fn all<C: ConnectionTrait>(db: &C, sql: &str, values: Vec<Value>) -> Result<Vec<QueryResult>, DbErr> {
    db.query_all_raw(statement(db.get_database_backend(), sql, values)).await
}

/// `?,?,?`
pub(super) fn marks(count: usize) -> String {
    let mut text = "?,".repeat(count);
    text.pop();
    text
}

/// Values for an `IN (…)` list: padded to a power of two by repeating the last, so that few
/// different texts are prepared.
pub(super) fn padded(mut values: Vec<Value>) -> Vec<Value> {
    if let Some(last) = values.last().cloned() {
        values.resize(values.len().next_power_of_two(), last);
    }
    values
}

/// ` FOR UPDATE` where there are several writers.
pub(super) fn for_update<C: ConnectionTrait>(db: &C) -> &'static str {
    if db.get_database_backend() == DbBackend::Postgres { " FOR UPDATE" } else { "" }
}

/// The database's code of an error: `23505`, `40001`, `5` …
pub(super) fn code(error: &DbErr) -> Option<Cow<'_, str>> {
    match sqlx_error(error)? {
        sea_orm::sqlx::Error::Database(error) => error.code(),
        _ => None,
    }
}

fn sqlx_error(error: &DbErr) -> Option<&sea_orm::sqlx::Error> {
    use sea_orm::RuntimeErr::SqlxError;
    match error {
        DbErr::Exec(SqlxError(error)) | DbErr::Query(SqlxError(error)) | DbErr::Conn(SqlxError(error)) => {
            Some(error.as_ref())
        }
        _ => None,
    }
}

/// PostgreSQL has rolled the transaction back because of another; a row that another inserted
/// first is one of these, since the guards will see it the next time.
pub(super) fn conflict(error: &DbErr) -> bool {
    matches!(code(error).as_deref(), Some("40001" | "40P01" | "23505" | "55P03"))
}

/// The connection to PostgreSQL is gone: the server was stopped, the network cut.
pub(super) fn connection_lost(error: &DbErr) -> bool {
    use sea_orm::sqlx::Error;
    let code_says = code(error).is_some_and(|code| code.starts_with("57P") || code.starts_with("08"));
    code_says || matches!(sqlx_error(error), Some(Error::Io(_) | Error::WorkerCrashed))
}

/// SQLite is out of something, be it time, disk or a working disk: trying again at once is no use.
pub(super) fn exhausted(error: &DbErr) -> bool {
    matches!(code(error).and_then(|code| primary(&code)), Some(5 | 6 | 8 | 10 | 11 | 13 | 14 | 26))
}

const BUSY: &str = "the database is busy; try again";
const FULL: &str = "the disk is full; make room and try again";
const READ_ONLY: &str = "the database cannot be written to: its disk is mounted read-only or its file is protected; \
                         make it writable and try again";

const FAILING: &str = "the disk does not take what is written to it: it has become read-only or is failing, and the \
                       system's log says more; make it writable and try again";

/// Of what the writer says, that which is meant for everybody.
pub(super) fn advice(message: &str) -> Option<&'static str> {
    [BUSY, FULL, READ_ONLY, FAILING].into_iter().find(|known| *known == message)
}

/// SQLite's code without its kind; none of PostgreSQL's.
fn primary(code: &str) -> Option<u32> {
    if code.len() < 5 { Some(code.parse::<u32>().ok()? & 0xff) } else { None }
}

/// Such a connection was opened while its file could not be written to, and stays as it is.
pub(super) fn read_only(error: &DbErr) -> bool {
    code(error).is_some_and(|code| primary(&code) == Some(8))
}

/// The disk had no room for the log's last page, so the commit is not in it.
pub(super) fn full(error: &DbErr) -> bool {
    code(error).as_deref() == Some("13")
}

/// In words for people; an overloaded SQLite file says so.
pub(super) fn describe(error: &DbErr) -> String {
    match code(error).as_deref() {
        Some("5" | "6" | "261" | "262" | "517") => BUSY.to_owned(),
        Some("13" | "53100") => FULL.to_owned(),
        Some("25006") => READ_ONLY.to_owned(),
        Some(code) if primary(code) == Some(8) => READ_ONLY.to_owned(),
        Some(code) if primary(code) == Some(10) => FAILING.to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_numbered_for_postgresql_only() {
        assert_eq!(dialect(DbBackend::Postgres, "a = ? AND b IN (?,?)"), "a = $1 AND b IN ($2,$3)");
        assert_eq!(dialect(DbBackend::Sqlite, "a = ?"), "a = ?");
    }
}
