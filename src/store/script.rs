//! Statements whose answers nobody waits for, in the order in which they are to run. SQLite gets a
//! few of them as one text: each text is a turn to the connection's own thread and back, which in a
//! small transaction takes longer than the statements themselves.

use sea_orm::{ConnectionTrait, DbBackend, DbErr, Value};

use super::sql::{execute, marks};

/// The most rows one statement carries.
const ROWS_MAX: usize = 64;
/// The most statements one text carries. The texts of larger transactions would hardly ever be the
/// same twice, and each would be prepared anew.
const JOINED_MAX: usize = 16;
/// The most values in one text, for the same reason.
const VALUES_MAX: usize = 512;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Script(Vec<(String, Vec<Value>)>);

impl Script {
    pub(super) fn push(&mut self, sql: impl Into<String>, values: Vec<Value>) {
        self.0.push((sql.into(), values));
    }

    /// `{before} (?,…),(?,…) {after}` over all rows, in statements of 64, 32, 16 … rows, so that
    /// the database sees few different texts and keeps them prepared.
    pub(super) fn push_rows(&mut self, before: &str, after: &str, mut rows: Vec<Vec<Value>>) {
        let columns = rows.first().map_or(0, Vec::len);
        let one_row = format!("({})", marks(columns));
        while !rows.is_empty() {
            let count = chunk(rows.len());
            let rest = rows.split_off(count);
            let mut text = String::with_capacity(before.len() + after.len() + count * (one_row.len() + 1) + 2);
            text.push_str(before);
            text.push(' ');
            for index in 0..count {
                if index > 0 {
                    text.push(',');
                }
                text.push_str(&one_row);
            }
            text.push(' ');
            text.push_str(after);
            let mut values = Vec::with_capacity(count * columns);
            values.extend(rows.into_iter().flatten());
            self.push(text, values);
            rows = rest;
        }
    }

    /// Runs what was pushed.
    pub(super) async fn send<C: ConnectionTrait>(&mut self, db: &C) -> Result<(), DbErr> {
        let statements = std::mem::take(&mut self.0);
        let values: usize = statements.iter().map(|(_, values)| values.len()).sum();
        let joined = db.get_database_backend() == DbBackend::Sqlite
            && (2..=JOINED_MAX).contains(&statements.len())
            && values <= VALUES_MAX;
        if !joined {
            for (sql, values) in statements {
                execute(db, &sql, values).await?;
            }
            return Ok(());
        }
        let mut text = String::with_capacity(statements.iter().map(|(sql, _)| sql.len() + 1).sum());
        let mut all = Vec::with_capacity(values);
        for (sql, values) in statements {
            text.push_str(&sql);
            text.push(';');
            all.extend(values);
        }
        execute(db, &text, all).await.map(|_| ())
    }
}

/// The largest power of two that is not above `len`, at most [`ROWS_MAX`].
fn chunk(len: usize) -> usize {
    if len >= ROWS_MAX { ROWS_MAX } else { 1 << len.ilog2() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_cut_into_powers_of_two() {
        assert_eq!((chunk(1), chunk(3), chunk(63), chunk(64), chunk(1000)), (1, 2, 32, 64, 64));
        let mut script = Script::default();
        script.push_rows("INSERT INTO t (a) VALUES", "", (0..100).map(|at| vec![Value::from(at)]).collect());
        let sizes: Vec<usize> = script.0.iter().map(|(_, values)| values.len()).collect();
        assert_eq!(sizes, [64, 32, 4]);
    }
}
