//! Who may work on what: owners, leases of executions, queues before clusters, reserved names;
//! and retention.

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{DbBackend, Value};
use uuid::Uuid;

use super::apply::{Answer, Outcome, QUEUE, queue_row};
use super::prepare::{Op, Prepared};
use super::sql::{all, one};
use super::{ClusterClaim, ClusterKey, CommitError, Error, Guard, Lease, Store, rows};
use crate::model::{Execution, ExecutionId, OwnerId, Place, StageId};

/// Executions deleted in one transaction, so that nobody waits long behind it.
const PRUNE_AT_ONCE: u64 = 50;

/// Unfinished, with an instant to be looked at, and free for an owner to take.
const DUE: &str = "FROM execution WHERE wake_at IS NOT NULL AND (lease_owner IS NULL OR lease_owner = ? \
                   OR NOT EXISTS (SELECT 1 FROM owner WHERE owner.id = execution.lease_owner))";

impl Lease {
    fn guard(&self) -> Guard {
        Guard::Lease { execution: self.execution, owner: self.owner, number: self.number }
    }
}

impl Store {
    async fn write_op(&self, op: Op, lease: Option<&Lease>) -> Result<Outcome, CommitError> {
        let mut prepared = Prepared { ops: vec![op], ..Prepared::default() };
        if let Some(lease) = lease {
            prepared.guards.push(lease.guard());
            prepared.rows.push(lease.execution.uuid());
        }
        self.inner.write.write(prepared).await
    }

    // --- leases ------------------------------------------------------------------------------

    /// Adds this start of a server to those that may own executions.
    ///
    /// # Errors
    /// When the database cannot do it.
    pub async fn owner_register(&self, owner: OwnerId) -> Result<(), Error> {
        let sql = "INSERT INTO owner (id, beat) VALUES (?, 0) ON CONFLICT (id) DO NOTHING";
        self.write_op(Op::Run { sql, values: vec![rows::id(owner.uuid())] }, None).await?;
        Ok(())
    }

    /// Says that the owner lives: its beat rises by one.
    ///
    /// # Errors
    /// When it was forgotten (others took it for dead), or the database cannot do it.
    pub async fn owner_beat(&self, owner: OwnerId) -> Result<(), Error> {
        match self.write_op(Op::Beat(owner), None).await?.answer {
            Answer::Yes(true) => Ok(()),
            _ => Err(Error::Database(format!("{owner} is not registered, or was forgotten by the others"))),
        }
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
        let sql = format!("SELECT id {DUE} AND wake_at <= ? ORDER BY wake_at LIMIT ?");
        let limit = rows::int(i64::try_from(limit).unwrap_or(i64::MAX));
        all(&self.inner.read, &sql, vec![rows::id(me.uuid()), rows::time(now), limit])
            .await?
            .iter()
            .map(|row| Ok(row.try_get_by_index::<Uuid>(0)?.into()))
            .collect()
    }

    /// The earliest `wake_at` among those of [`Store::executions_due`], whenever it is.
    ///
    /// # Errors
    /// When the database cannot do it.
    pub async fn next_due(&self, me: OwnerId) -> Result<Option<DateTime<Utc>>, Error> {
        let sql = format!("SELECT wake_at {DUE} ORDER BY wake_at LIMIT 1");
        match one(&self.inner.read, &sql, vec![rows::id(me.uuid())]).await? {
            Some(row) => rows::Reader::new(&row, "execution").time_opt(),
            None => Ok(None),
        }
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
            match self.inner.write.write(prepared).await?.answer {
                Answer::Claimed(Some(number)) => number,
                _ => return Ok(None),
            }
        };
        let execution = self.execution(id).await?.filter(|execution| !execution.status.is_complete());
        Ok(execution.map(|execution| (Lease { execution: id, owner: me, number }, execution)))
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

    /// The cluster's queue, the holder first.
    ///
    /// # Errors
    /// When the database cannot do it.
    pub async fn cluster_queue(&self, key: &ClusterKey) -> Result<Vec<(ExecutionId, StageId)>, Error> {
        let place = vec![rows::text(&key.place.account), rows::text(&key.place.location), rows::text(&key.cluster)];
        Ok(all(&self.inner.read, QUEUE, place).await?.iter().map(queue_row).collect::<Result<_, _>>()?)
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
        let keys_before = self.inner.clock.now() - TimeDelta::hours(24);
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
}
