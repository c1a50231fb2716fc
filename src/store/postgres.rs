//! What only PostgreSQL needs: replicas tell each other, by NOTIFY, what grew and what has work.
//! Notices are hints; whoever misses one finds the row later.

use std::time::Duration;

use sea_orm::sqlx::postgres::PgListener;
use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr, Value};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::sql::execute;
use super::writer::Notices;
use crate::model::{ExecutionId, StreamId};

const CHANNEL: &str = "gennaker";
/// NOTIFY takes 8,000 bytes; one entry is at most 55.
const ENTRIES_MAX: usize = 120;

/// Queues the notices, to be sent at COMMIT.
pub(super) async fn announce<C: ConnectionTrait>(
    tx: &C,
    replica: Uuid,
    appended: &[(StreamId, i64)],
    work: &[ExecutionId],
) -> Result<(), DbErr> {
    let entries: Vec<String> = appended
        .iter()
        .map(|(stream, seq)| format!("{}:{seq}", stream.key().simple()))
        .chain(work.iter().map(|execution| format!("{}:w", execution.uuid().simple())))
        .collect();
    for entries in entries.chunks(ENTRIES_MAX) {
        let payload = format!("{} {}", replica.simple(), entries.join(" "));
        let values = vec![Value::String(Some(CHANNEL.to_owned())), Value::String(Some(payload))];
        execute(tx, "SELECT pg_notify(?, ?)", values).await?;
    }
    Ok(())
}

/// Passes on what other replicas announce, until told to stop; connects again when it has to.
pub(super) async fn listen(db: DatabaseConnection, replica: Uuid, notices: Notices, stop: CancellationToken) {
    loop {
        let lost = tokio::select! {
            () = stop.cancelled() => return,
            result = pass_on(&db, replica, &notices) => result,
        };
        if let Err(error) = lost {
            tracing::warn!(%error, "not listening to other replicas; trying again in 2 s");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(Duration::from_secs(2)) => {}
        }
    }
}

async fn pass_on(db: &DatabaseConnection, replica: Uuid, notices: &Notices) -> Result<(), sea_orm::sqlx::Error> {
    let mut listener = PgListener::connect_with(db.get_postgres_connection_pool()).await?;
    listener.listen(CHANNEL).await?;
    loop {
        let notice = listener.recv().await?;
        let mut words = notice.payload().split(' ');
        if words.next().and_then(|from| Uuid::try_parse(from).ok()).is_none_or(|from| from == replica) {
            continue;
        }
        for (key, what) in words.filter_map(|word| word.split_once(':')) {
            let Ok(key) = Uuid::try_parse(key) else { continue };
            match what.parse() {
                Ok(seq) => {
                    let stream = if key.is_nil() { StreamId::Notifications } else { StreamId::Execution(key.into()) };
                    let _ = notices.appended.send((stream, seq));
                }
                Err(_) => {
                    let _ = notices.work.send(key.into());
                }
            }
        }
    }
}
