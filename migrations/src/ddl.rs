//! One text of DDL for both databases: the few words that differ stand in braces.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::{ConnectionTrait, DbBackend};

/// The words that differ, by database: uuid, bytes, a text that orders by bytes, and a
/// number that is a row's own place in its table (SQLite then needs no index for it).
fn words(backend: DbBackend) -> [(&'static str, &'static str); 4] {
    match backend {
        DbBackend::Postgres => {
            [("{uuid}", "uuid"), ("{bytes}", "bytea"), ("{name}", "text COLLATE \"C\""), ("{place}", "bigint")]
        }
        _ => [("{uuid}", "blob"), ("{bytes}", "blob"), ("{name}", "text"), ("{place}", "integer")],
    }
}

/// Runs statements that are separated by empty lines.
pub async fn run(manager: &SchemaManager<'_>, text: &str) -> Result<(), DbErr> {
    let db = manager.get_connection();
    let mut text = text.to_owned();
    for (word, meaning) in words(db.get_database_backend()) {
        text = text.replace(word, meaning);
    }
    for statement in text.split("\n\n").map(str::trim).filter(|statement| !statement.is_empty()) {
        db.execute_unprepared(statement).await?;
    }
    Ok(())
}
