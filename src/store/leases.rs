//! Who may work on what: owners, leases of executions, queues before clusters, reserved names;
//! and retention.

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::join_all;
use sea_orm::{DbBackend, Value};
use uuid::Uuid;

use super::apply::{Answer, Outcome};
use super::prepare::{Op, Prepared};
use super::sql::{all, one};
use super::{ClusterClaim, ClusterKey, CommitError, Error, Guard, Intent, Lease, Store, rows};
use crate::model::{Execution, ExecutionId, OwnerId, Place, Served, StageId, StreamId};

/// Executions deleted in one transaction, so that nobody waits long behind it.
const PRUNE_AT_ONCE: u64 = 50;

/// Revisions looked for, and deleted, in one go.
const REVISIONS_AT_ONCE: usize = 50;

/// How long the key of a start is remembered at the least.
const KEYS_KEPT: TimeDelta = TimeDelta::hours(24);

impl Lease {
    fn guard(&self) -> Guard {
        Guard::Lease { execution: self.execution, owner: self.owner, number: self.number }
    }
}

impl Store {
    pub(super) async fn write_op(&self, op: Op, lease: Option<&Lease>) -> Result<Outcome, CommitError> {
        let mut prepared = Prepared { ops: vec![op], ..Prepared::default() };
        if let Some(lease) = lease {
            prepared.guards.push(lease.guard());
            prepared.rows.push(lease.execution.uuid());
        }
        self.write(prepared).await
    }

    // --- leases ------------------------------------------------------------------------------

    /// Adds this start of a server to those that may own executions.
    ///
    /// # Errors
    /// When the database cannot do it.
    pub async fn owner_register(&self, owner: OwnerId, serves: &[Served]) -> Result<(), Error> {
        let sql = "INSERT INTO owner (id, beat, serves) VALUES (?, 0, ?) ON CONFLICT (id) DO NOTHING";
        let serves = serde_json::to_string(serves).unwrap_or_default();
        self.write_op(Op::Run { sql, values: vec![rows::id(owner.uuid()), rows::text(&serves)] }, None).await?;
        Ok(())
    }

    /// Owners but this one that reach another host at the same place, with their beats.
    ///
    /// # Errors
    /// When the database cannot do it.
    pub async fn owner_rivals(&self, me: OwnerId, serves: &[Served]) -> Result<Vec<(OwnerId, i64, Served)>, Error> {
        let sql = "SELECT id, beat, serves FROM owner WHERE id <> ? AND serves IS NOT NULL ORDER BY id";
        let mut rivals = Vec::new();
        for row in all(&self.inner.read, sql, vec![rows::id(me.uuid())]).await? {
            let (owner, beat): (Uuid, i64) = (row.try_get_by_index(0)?, row.try_get_by_index(1)?);
            // A later version may write it in another way; then it tells us nothing.
            let theirs: Vec<Served> = serde_json::from_str(&row.try_get_by_index::<String>(2)?).unwrap_or_default();
            let another = |their: &Served| serves.iter().any(|my| my.place == their.place && my.id != their.id);
            rivals.extend(theirs.into_iter().filter(another).map(|their| (owner.into(), beat, their)));
        }
        Ok(rivals)
    }

    /// Says that the owner lives: its beat rises by one. False: it is not registered, or was
    /// forgotten (others took it for dead).
    ///
    /// # Errors
    /// When the database cannot do it.
    pub async fn owner_beat(&self, owner: OwnerId) -> Result<bool, Error> {
        Ok(matches!(self.write_op(Op::Beat(owner), None).await?.answer, Answer::Yes(true)))
    }

    /// All owners with their beats.
    ///
    /// # Errors
    /// When the database cannot do it.
    pub async fn owners(&self) -> Result<Vec<(OwnerId, i64)>, Error> {
        all(&self.inner.read, "SELECT id, beat FROM owner ORDER BY id", Vec::new())
            .await?
            .iter()
            .map(|row| Ok((row.try_get_by_index::<Uuid>(0)?.into(), row.try_get_by_index(1)?)))
            .collect()
    }

    /// Forgets an owner, so that its executions are free to claim at once.
    ///
    /// # Errors
    /// When the database cannot do it.
    pub async fn owner_forget(&self, owner: OwnerId) -> Result<(), Error> {
        let op = Op::Run { sql: "DELETE FROM owner WHERE id = ?", values: vec![rows::id(owner.uuid())] };
        self.write_op(op, None).await?;
        Ok(())
    }

    /// Unfinished executions whose `wake_at` has come and that are unowned, mine, or owned by one
    /// that is not in the owners table (the dead are forgotten first); oldest wake first.
    ///
    /// # Errors
    /// When the database cannot do it.
    pub async fn executions_due(&self, me: OwnerId, now: DateTime<Utc>, limit: u64) -> Result<Vec<ExecutionId>, Error> {
        let sql = "SELECT id FROM execution WHERE wake_at IS NOT NULL AND (lease_owner IS NULL OR lease_owner = ? \
                   OR NOT EXISTS (SELECT 1 FROM owner WHERE owner.id = execution.lease_owner)) \
                   AND wake_at <= ? ORDER BY wake_at LIMIT ?";
        let limit = rows::int(i64::try_from(limit).unwrap_or(i64::MAX));
        all(&self.inner.read, sql, vec![rows::id(me.uuid()), rows::time(now), limit])
            .await?
            .iter()
            .map(|row| Ok(row.try_get_by_index::<Uuid>(0)?.into()))
            .collect()
    }

    /// Takes the execution, if it is unowned, mine already (same number), or owned by one that was
    /// forgotten (number + 1), and reads it whole. None when another owns it or it is over.
    ///
    /// # Errors
    /// When the database cannot do it.
    pub async fn execution_claim(&self, me: OwnerId, id: ExecutionId) -> Result<Option<(Lease, Execution)>, Error> {
        // What is mine already needs no writing; should it be lost meanwhile, the guards say so.
        let sql = "SELECT lease_owner, lease_number FROM execution WHERE id = ? AND finished = 0";
        let Some(row) = one(&self.inner.read, sql, vec![rows::id(id.uuid())]).await? else { return Ok(None) };
        let number = if row.try_get_by_index::<Option<Uuid>>(0)? == Some(me.uuid()) {
            row.try_get_by_index(1)?
        } else {
            let mut prepared = Prepared { ops: vec![Op::Claim { me, execution: id }], ..Prepared::default() };
            prepared.rows.push(id.uuid());
            match self.write(prepared).await?.answer {
                Answer::Claimed(Some(number)) => number,
                _ => return Ok(None),
            }
        };
        let execution = self.execution(id).await?.filter(|execution| !execution.status.is_complete());
        Ok(execution.map(|execution| (Lease { execution: id, owner: me, number }, execution)))
    }

    /// Whether a call of that stage and attempt may have been made in a time that the database has
    /// lost: it was restored from a backup while the execution was under way, and no call of theirs
    /// was recorded since.
    ///
    /// # Errors
    /// When the database cannot say.
    pub async fn made_in_lost_time(&self, intent: &Intent) -> Result<bool, Error> {
        let sql = "SELECT 1 FROM execution e WHERE e.id = ? AND e.restored_lease IS NOT NULL AND NOT EXISTS (\
                   SELECT 1 FROM intent i WHERE i.execution_id = e.id AND i.stage_id = ? AND i.attempt = ? \
                   AND i.lease_number > e.restored_lease)";
        let values =
            vec![rows::id(intent.execution.uuid()), rows::id(intent.stage.uuid()), rows::int(intent.attempt.into())];
        Ok(one(&self.inner.read, sql, values).await?.is_some())
    }

    // --- cluster claims and names ------------------------------------------------------------

    /// Puts the stage into the cluster's queue unless it is in it, and says where it stands.
    /// Repeatable. Left by [`super::Write::ReleaseClusterClaims`], and when the execution ends.
    ///
    /// # Errors
    /// Refused when the lease is lost.
    pub async fn cluster_claim(
        &self,
        lease: Lease,
        key: &ClusterKey,
        stage: StageId,
        queue_max: usize,
    ) -> Result<ClusterClaim, CommitError> {
        let op = Op::ClaimCluster { lease, key: key.clone(), stage, queue_max };
        match self.write_op(op, Some(&lease)).await?.answer {
            Answer::Cluster(claim) => Ok(claim),
            other => Err(CommitError::Unknown(format!("a cluster claim was answered by {other:?}"))),
        }
    }

    /// Reserves the server group name for (stage, attempt). True when it is theirs, now or since
    /// before; false when it is another's.
    ///
    /// # Errors
    /// Refused when the lease is lost.
    pub async fn name_reserve(
        &self,
        lease: Lease,
        place: &Place,
        name: &str,
        stage: StageId,
        attempt: i32,
    ) -> Result<bool, CommitError> {
        let op = Op::ReserveName { place: place.clone(), name: name.to_owned(), stage, attempt };
        Ok(matches!(self.write_op(op, Some(&lease)).await?.answer, Answer::Yes(true)))
    }

    /// The name that (stage, attempt) reserved at that place, if any.
    ///
    /// # Errors
    /// When the database cannot do it.
    pub async fn name_reserved(&self, place: &Place, stage: StageId, attempt: i32) -> Result<Option<String>, Error> {
        let sql = "SELECT name FROM name_reservation WHERE stage_id = ? AND attempt = ? AND account = ? \
                   AND location = ? ORDER BY name";
        let values: Vec<Value> = vec![
            rows::id(stage.uuid()),
            rows::int(attempt.into()),
            rows::text(&place.account),
            rows::text(&place.location),
        ];
        let row = one(&self.inner.read, sql, values).await?;
        Ok(row.map(|row| row.try_get_by_index(0)).transpose()?)
    }

    // --- retention -----------------------------------------------------------------------------

    /// Deletes finished executions (with stages, events, intents) that ended before the instant,
    /// oldest first, at most `limit`; returns how many. Idempotency keys older than 24 hours go
    /// with them. Reserved names stay, since the server groups may.
    ///
    /// # Errors
    /// When the database cannot do it; what was deleted until then stays deleted.
    pub async fn prune_executions(&self, ended_before: DateTime<Utc>, limit: u64) -> Result<u64, Error> {
        let keys_before = self.inner.clock.now() - KEYS_KEPT;
        let mut pruned = 0;
        loop {
            let limit = (limit - pruned).min(PRUNE_AT_ONCE);
            let answer = self.write_op(Op::Prune { ended_before, keys_before, limit }, None).await?.answer;
            let Answer::Count(count) = answer else { break };
            pruned += count;
            if count < PRUNE_AT_ONCE {
                break;
            }
        }
        if pruned > 0 && self.inner.read.get_database_backend() == DbBackend::Sqlite {
            // Gives pages back to the file system, some at a time.
            let sql = "PRAGMA incremental_vacuum(4000)";
            self.write_op(Op::Run { sql, values: Vec::new() }, None).await?;
        }
        Ok(pruned)
    }

    /// Deletes revisions of pipelines that were saved before the instant, are not the newest, and
    /// that no execution names any more; returns how many. None of them can be named again, since
    /// only the newest is started.
    ///
    /// # Errors
    /// When the database cannot do it; what was deleted until then stays deleted.
    pub async fn prune_revisions(&self, before: DateTime<Utc>) -> Result<u64, Error> {
        // Found by a reader, so that the writer is not held up by the look through the executions.
        let find = "SELECT r.pipeline_id, r.number FROM revision r JOIN pipeline p ON p.id = r.pipeline_id \
                    WHERE r.created_at < ? AND r.number < p.revision AND (r.pipeline_id, r.number) NOT IN \
                    (SELECT e.pipeline_id, e.revision FROM execution e WHERE e.pipeline_id IS NOT NULL) LIMIT ?";
        let delete = "DELETE FROM revision WHERE pipeline_id = ? AND number = ?";
        let limit = i64::try_from(REVISIONS_AT_ONCE).unwrap_or(i64::MAX);
        let mut deleted = 0;
        loop {
            let found = all(&self.inner.read, find, vec![rows::time(before), rows::int(limit)]).await?;
            let mut ops = Vec::with_capacity(found.len());
            for row in &found {
                let (pipeline, number): (Uuid, i64) = (row.try_get_by_index(0)?, row.try_get_by_index(1)?);
                ops.push(Op::Count { sql: delete, values: vec![rows::id(pipeline), rows::int(number)] });
            }
            // Side by side they are one transaction, or a few.
            for written in join_all(ops.into_iter().map(|op| self.write_op(op, None))).await {
                if let Answer::Count(count) = written?.answer {
                    deleted += count;
                }
            }
            if found.len() < REVISIONS_AT_ONCE {
                return Ok(deleted);
            }
        }
    }

    /// Deletes messages, with their events, that were written before the instant; returns how many
    /// messages. Who follows them behind a deleted event is told of the gap.
    ///
    /// # Errors
    /// When the database cannot do it; what was deleted until then stays deleted.
    pub async fn prune_notifications(&self, before: DateTime<Utc>) -> Result<u64, Error> {
        // Ids and sequence numbers rise with time: the oldest rows are looked at, not all of them.
        let events = "DELETE FROM event WHERE stream = ? AND seq <= (SELECT MAX(seq) FROM (SELECT seq, at FROM event \
                      WHERE stream = ? ORDER BY seq LIMIT 1000) AS oldest WHERE at < ?)";
        let stream = rows::id(StreamId::Notifications.key());
        self.delete_all(events, &[stream.clone(), stream, rows::time(before)]).await?;
        let rows = "DELETE FROM notification WHERE id IN (SELECT id FROM (SELECT id, created_at FROM notification \
                    ORDER BY id LIMIT 1000) AS oldest WHERE created_at < ?)";
        self.delete_all(rows, &[rows::time(before)]).await
    }

    /// Deletes entries of the audit log from before the instant; returns how many.
    ///
    /// # Errors
    /// When the database cannot do it; what was deleted until then stays deleted.
    pub async fn prune_audit(&self, before: DateTime<Utc>) -> Result<u64, Error> {
        let sql = "DELETE FROM audit WHERE id IN (SELECT id FROM (SELECT id, at FROM audit ORDER BY id LIMIT 1000) \
                   AS oldest WHERE at < ?)";
        self.delete_all(sql, &[rows::time(before)]).await
    }

    /// Deletes idempotency keys older than 24 hours, whose executions may stay; returns how many.
    ///
    /// # Errors
    /// When the database cannot do it.
    pub async fn prune_idempotency(&self) -> Result<u64, Error> {
        let before = self.inner.clock.now() - KEYS_KEPT;
        self.delete_all("DELETE FROM idempotency WHERE created_at < ?", &[rows::time(before)]).await
    }

    /// Repeats a statement that deletes some, each in a transaction of its own, until it finds none.
    pub(super) async fn delete_all(&self, sql: &'static str, values: &[Value]) -> Result<u64, Error> {
        let mut deleted = 0;
        loop {
            match self.write_op(Op::Count { sql, values: values.to_vec() }, None).await?.answer {
                Answer::Count(count) if count > 0 => deleted += count,
                _ => return Ok(deleted),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::model::{
        About, AboutExecution, Action, AuditId, AuditRow, EventBody, Notification, NotificationId, Occasion,
        PrincipalId, Resource,
    };
    use crate::store::{Commit, Durability, IdempotencyRecord, NewEvent, Options, PageRequest, Write};

    async fn write(store: &Store, at: DateTime<Utc>) {
        let principal = PrincipalId::new();
        let notification = Notification {
            id: NotificationId::new(),
            occasion: Occasion::Started,
            application_name: "web".into(),
            about: About::Execution(AboutExecution {
                execution: ExecutionId::new(),
                execution_name: "deploy".into(),
                execution_number: 1,
                stage: None,
            }),
            subject: "began".into(),
            text: String::new(),
            created_at: at,
        };
        let key = IdempotencyRecord {
            principal,
            key: "k".into(),
            input_hash: vec![1],
            execution: ExecutionId::new(),
            created_at: at,
        };
        let audit = AuditRow {
            id: AuditId::new(),
            at,
            principal,
            principal_name: "ada".into(),
            action: Action::Start,
            resource: Resource::Server,
            detail: serde_json::Value::Null,
        };
        let body = EventBody::Notified { notification: Box::new(notification.clone()) };
        let commit = Commit {
            guards: Vec::new(),
            writes: vec![
                Write::InsertNotification(notification),
                Write::InsertIdempotency(key),
                Write::InsertAudit(audit),
            ],
            events: vec![NewEvent { stream: StreamId::Notifications, seq: None, at, body }],
        };
        store.commit(commit).await.expect("committed");
    }

    #[tokio::test]
    async fn messages_audit_entries_and_keys_go_when_their_time_is_over() {
        let data_dir = std::env::temp_dir().join(format!("gennaker-prune-{}", Uuid::new_v4().simple()));
        let options =
            Options { database_url: None, data_dir: data_dir.clone(), durability: Durability::Normal, queue_max: 64 };
        let now = DateTime::from_timestamp(1_800_000_000, 0).expect("an instant");
        let store = Store::open(&options, Clock::manual(now)).await.expect("opens");
        for days in [400, 40, 2, 0] {
            write(&store, now - TimeDelta::days(days)).await;
        }
        assert_eq!(store.prune_notifications(now - TimeDelta::days(30)).await.expect("pruned"), 2);
        assert_eq!(store.prune_audit(now - TimeDelta::days(365)).await.expect("pruned"), 1);
        assert_eq!(store.prune_idempotency().await.expect("pruned"), 3);
        let page = PageRequest { after: None, before: None, limit: 10, backward: false };
        assert_eq!(store.notifications(&page).await.expect("read").total, 2);
        assert_eq!(store.audit(&page).await.expect("read").total, 3);
        assert_eq!(store.event_bounds(StreamId::Notifications).await.expect("read"), (3, 4));
        assert_eq!(store.prune_notifications(now - TimeDelta::days(30)).await.expect("pruned"), 0);
        store.close().await;
        std::fs::remove_dir_all(data_dir).expect("removed");
    }
}
