//! Moves a stopped SQLite server's data to PostgreSQL: every row of every table as it stands, in
//! one transaction, so that no run and no cursor is lost. Tables and columns are read from the
//! databases themselves; nothing here has to be told of a new one.

use std::collections::{BTreeMap, BTreeSet};

use migrations::{Migrator, MigratorTrait};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr, QueryResult, TransactionTrait, Value};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::open::{self, State};
use super::script::Script;
use super::sql::{all, one};
use super::{Error, Options, rows};

/// What was moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// In the order they were moved in, empty ones too.
    pub tables: Vec<Table>,
}

/// One table's share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// As the schema has it.
    pub name: String,
    /// How many were moved.
    pub rows: u64,
}

/// Rows read, and written, at once.
const BATCH: i64 = 512;
/// Not moved: the steps of the schema, which the target has its own of, and owners, of whom none
/// can be alive on a stopped server.
const LEFT_OUT: [&str; 2] = ["seaql_migrations", "owner"];

/// How a column's values are read and written; its type in PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Uuid,
    Bytes,
    Integer,
    Float,
    Text,
}

#[derive(Debug, Clone)]
struct Plan {
    name: String,
    columns: Vec<(String, Kind)>,
}

impl Plan {
    fn list(&self) -> String {
        self.columns.iter().map(|(name, _)| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")
    }
}

/// Moves all of it into an empty PostgreSQL database, telling of each table as it is done. The
/// source is only read. `verify`: both are read again afterwards and compared, row by row.
///
/// # Errors
/// When a server runs on the source, its schema is not this binary's, the target is not empty or
/// cannot be reached, or, after the move, they differ. Before COMMIT the target stays empty.
pub async fn transfer(
    options: &Options,
    target: &str,
    verify: bool,
    mut tell: impl FnMut(&str, u64),
) -> Result<Moved, Error> {
    let database = options.data_dir.join(open::FILE);
    if !database.exists() {
        let dir = options.data_dir.display();
        return Err(Error::Refused(format!("there is no SQLite database in {dir}; check --data-dir")));
    }
    let _lock = open::lock(&options.data_dir)?;
    open::must_be_sqlite(&database)?;
    let source = open::connect_sqlite(1, move |sqlite| sqlite.filename(&database).pragma("query_only", "on")).await?;
    if open::check_version(&source).await? != State::Current {
        let message = "the SQLite database's schema is older than this binary's; run `gennaker migrate` first";
        return Err(Error::Refused(message.to_owned()));
    }
    let db = open::connect_postgres(target).await?;
    let tx = db.begin().await?;
    tx.execute_unprepared("SET LOCAL statement_timeout = 0").await?;
    let lock = vec![rows::int(open::MIGRATION_LOCK)];
    one(&tx, "SELECT 1 FROM (SELECT pg_advisory_xact_lock(?)) AS taken", lock).await?;
    open::check_version(&tx).await?;
    Migrator::up(&tx, None).await?;
    let plans = plan(&source, &tx).await?;
    must_be_empty(&tx, &plans).await?;

    let mut tables = Vec::with_capacity(plans.len());
    for plan in &plans {
        let rows = copy(&source, &tx, plan).await?;
        let counted = count(&tx, &plan.name).await?;
        if counted != rows {
            let name = &plan.name;
            return Err(Error::Refused(format!(
                "{rows} rows of {name} were read, but {counted} are there; nothing was kept"
            )));
        }
        tell(&plan.name, rows);
        tables.push(Table { name: plan.name.clone(), rows });
    }
    tx.commit().await?;
    if verify {
        compare(&source, &db, &plans).await?;
    }
    for db in [source, db] {
        if let Err(error) = db.close().await {
            tracing::warn!(%error, "a connection did not close");
        }
    }
    Ok(Moved { tables })
}

/// Every table of the source with its columns, those first that others refer to.
async fn plan<C: ConnectionTrait>(source: &DatabaseConnection, target: &C) -> Result<Vec<Plan>, Error> {
    let sql = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name";
    let names: Vec<String> = strings(&all(source, sql, Vec::new()).await?, 0)?;
    let mut refers: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for name in names.into_iter().filter(|name| !LEFT_OUT.contains(&name.as_str())) {
        let keys = all(source, "SELECT \"table\" FROM pragma_foreign_key_list(?)", vec![rows::text(&name)]).await?;
        let to = strings(&keys, 0)?.into_iter().filter(|to| *to != name).collect();
        refers.insert(name, to);
    }
    let mut plans = Vec::with_capacity(refers.len());
    while !refers.is_empty() {
        let next =
            refers.iter().find(|(_, to)| to.iter().all(|to| !refers.contains_key(to))).map(|(name, _)| name.clone());
        let Some(next) = next else {
            return Err(Error::Refused("tables refer to each other in a circle; they cannot be moved".to_owned()));
        };
        refers.remove(&next);
        plans.push(Plan { columns: columns(source, target, &next).await?, name: next });
    }
    Ok(plans)
}

async fn columns<C: ConnectionTrait>(
    source: &DatabaseConnection,
    target: &C,
    table: &str,
) -> Result<Vec<(String, Kind)>, Error> {
    let sql = "SELECT column_name::text, data_type::text FROM information_schema.columns \
               WHERE table_schema = current_schema() AND table_name = ?";
    let mut types = BTreeMap::new();
    for row in all(target, sql, vec![rows::text(table)]).await? {
        types.insert(row.try_get_by_index::<String>(0)?, row.try_get_by_index::<String>(1)?);
    }
    let own = all(source, "SELECT name FROM pragma_table_info(?)", vec![rows::text(table)]).await?;
    let mut columns = Vec::new();
    for name in strings(&own, 0)? {
        let refuse = |what: String| Error::Refused(format!("column {table}.{name} cannot be moved: {what}"));
        let kind = match types.get(&name).map(String::as_str) {
            Some("uuid") => Kind::Uuid,
            Some("bytea") => Kind::Bytes,
            Some("bigint") => Kind::Integer,
            Some("double precision") => Kind::Float,
            Some("text") => Kind::Text,
            Some(other) => return Err(refuse(format!("its type in PostgreSQL is {other}"))),
            None => return Err(refuse("PostgreSQL has none of that name".to_owned())),
        };
        columns.push((name, kind));
    }
    Ok(columns)
}

async fn must_be_empty<C: ConnectionTrait>(target: &C, plans: &[Plan]) -> Result<(), Error> {
    for name in plans.iter().map(|plan| plan.name.as_str()).chain(["owner"]) {
        if one(target, &format!("SELECT 1 FROM \"{name}\" LIMIT 1"), Vec::new()).await?.is_some() {
            return Err(Error::Refused(format!(
                "the target is not empty: a server has used it ({name} has rows); name a new database"
            )));
        }
    }
    Ok(())
}

async fn copy<C: ConnectionTrait>(source: &DatabaseConnection, target: &C, plan: &Plan) -> Result<u64, Error> {
    let before = format!("INSERT INTO \"{}\" ({}) VALUES", plan.name, plan.list());
    let mut moved = 0;
    let mut reader = Rows::new(plan);
    loop {
        let batch = reader.next(source).await?;
        if batch.is_empty() {
            return Ok(moved);
        }
        moved += batch.len() as u64;
        let mut script = Script::default();
        script.push_rows(&before, "", batch);
        script.send(target).await?;
    }
}

/// A SQLite table, read some rows at a time in the order in which they were written.
struct Rows<'a> {
    plan: &'a Plan,
    sql: String,
    after: i64,
}

impl<'a> Rows<'a> {
    fn new(plan: &'a Plan) -> Self {
        let sql = format!(
            "SELECT {}, rowid FROM \"{}\" WHERE rowid > ? ORDER BY rowid LIMIT {BATCH}",
            plan.list(),
            plan.name
        );
        Self { plan, sql, after: i64::MIN }
    }

    async fn next(&mut self, source: &DatabaseConnection) -> Result<Vec<Vec<Value>>, Error> {
        let found = all(source, &self.sql, vec![rows::int(self.after)]).await?;
        if let Some(last) = found.last() {
            self.after = last.try_get_by_index(self.plan.columns.len())?;
        }
        Ok(found.iter().map(|row| read(row, self.plan)).collect::<Result<_, _>>()?)
    }
}

fn read(row: &QueryResult, plan: &Plan) -> Result<Vec<Value>, DbErr> {
    let value = |(at, (_, kind)): (usize, &(String, Kind))| {
        Ok(match kind {
            Kind::Uuid => Value::Uuid(row.try_get_by_index::<Option<Uuid>>(at)?),
            Kind::Bytes => Value::Bytes(row.try_get_by_index::<Option<Vec<u8>>>(at)?),
            Kind::Integer => Value::BigInt(row.try_get_by_index::<Option<i64>>(at)?),
            Kind::Float => Value::Double(row.try_get_by_index::<Option<f64>>(at)?),
            Kind::Text => Value::String(row.try_get_by_index::<Option<String>>(at)?),
        })
    };
    plan.columns.iter().enumerate().map(value).collect()
}

async fn count<C: ConnectionTrait>(db: &C, table: &str) -> Result<u64, Error> {
    let row = one(db, &format!("SELECT COUNT(*) FROM \"{table}\""), Vec::new()).await?;
    let count: i64 = row.map(|row| row.try_get_by_index(0)).transpose()?.unwrap_or_default();
    Ok(u64::try_from(count).unwrap_or_default())
}

// --- comparing ---------------------------------------------------------------------------------

/// Rows and what is in them, whatever their order: the sum of the rows' hashes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Sum {
    rows: u64,
    hash: u128,
}

impl Sum {
    fn add(&mut self, row: &[Value]) {
        let mut hash = Sha256::new();
        for value in row {
            let (tag, bytes) = bytes(value);
            hash.update([tag]);
            hash.update(bytes.len().to_be_bytes());
            hash.update(bytes);
        }
        let digest = hash.finalize();
        let mut half = [0; 16];
        half.copy_from_slice(&digest[..16]);
        self.rows += 1;
        self.hash = self.hash.wrapping_add(u128::from_be_bytes(half));
    }
}

fn bytes(value: &Value) -> (u8, Vec<u8>) {
    match value {
        Value::Uuid(Some(id)) => (1, id.as_bytes().to_vec()),
        Value::Bytes(Some(bytes)) => (2, bytes.clone()),
        Value::BigInt(Some(number)) => (3, number.to_be_bytes().to_vec()),
        Value::Double(Some(number)) => (4, number.to_bits().to_be_bytes().to_vec()),
        Value::String(Some(text)) => (5, text.as_bytes().to_vec()),
        _ => (0, Vec::new()),
    }
}

async fn compare(source: &DatabaseConnection, target: &DatabaseConnection, plans: &[Plan]) -> Result<(), Error> {
    let tx = target.begin().await?;
    tx.execute_unprepared("SET LOCAL statement_timeout = 0").await?;
    for plan in plans {
        let mut here = Sum::default();
        let mut reader = Rows::new(plan);
        loop {
            let batch = reader.next(source).await?;
            if batch.is_empty() {
                break;
            }
            batch.iter().for_each(|row| here.add(row));
        }
        let there = sum_of_target(&tx, plan).await?;
        if here != there {
            return Err(Error::Refused(format!(
                "table {} differs: {} rows here, {} there, or their contents; drop the target database and move again",
                plan.name, here.rows, there.rows
            )));
        }
    }
    tx.commit().await?;
    Ok(())
}

async fn sum_of_target<C: ConnectionTrait>(target: &C, plan: &Plan) -> Result<Sum, Error> {
    // A name of its own for each table: a statement that is prepared once knows its columns.
    let cursor = format!("\"compared {}\"", plan.name);
    let declare = format!("DECLARE {cursor} NO SCROLL CURSOR FOR SELECT {} FROM \"{}\"", plan.list(), plan.name);
    target.execute_unprepared(&declare).await?;
    let mut sum = Sum::default();
    loop {
        let batch = all(target, &format!("FETCH {BATCH} FROM {cursor}"), Vec::new()).await?;
        if batch.is_empty() {
            break;
        }
        for row in &batch {
            sum.add(&read(row, plan)?);
        }
    }
    target.execute_unprepared(&format!("CLOSE {cursor}")).await?;
    Ok(sum)
}

fn strings(rows: &[QueryResult], at: usize) -> Result<Vec<String>, DbErr> {
    rows.iter().map(|row| row.try_get_by_index(at)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_is_of_rows_and_values_but_not_of_their_order() {
        let row = |id: i64, text: Option<&str>| vec![rows::int(id), Value::String(text.map(str::to_owned))];
        let sum = |all: &[Vec<Value>]| {
            let mut sum = Sum::default();
            all.iter().for_each(|row| sum.add(row));
            sum
        };
        let (one, two) = (row(1, Some("a")), row(2, None));
        assert_eq!(sum(&[one.clone(), two.clone()]), sum(&[two.clone(), one.clone()]));
        assert_ne!(sum(&[one.clone(), two.clone()]), sum(&[one.clone(), row(2, Some(""))]));
        assert_ne!(sum(std::slice::from_ref(&one)), sum(&[one.clone(), one]));
    }
}
