//! The inside of a writing transaction, the same for both databases: guards are compared with
//! rows read once per batch, hot rows are gathered and written several at a time, events last.
//!
//! On SQLite there is one writer, so what it has written it need not read: it remembers the
//! guarded columns and the newest position from one batch to the next ([`Memory`]).

mod clusters;
mod guards;
mod memory;

use std::collections::HashMap;

use sea_orm::{ConnectionTrait, DbErr, Value};
use uuid::Uuid;

pub(super) use memory::{Learned, Memory};

use super::prepare::{NewRow, Op, Prepared, body};
use super::script::Script;
use super::sql::{all, execute, for_update, marks, one, padded};
use super::{ClusterClaim, Committed, Refusal, rows};
use crate::model::{EventBody, Execution, ExecutionId, ExecutionKind, OwnerId, StageId, StreamId};
use memory::Row;

/// What one commit of a batch gave.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub committed: Committed,
    pub answer: Answer,
    /// The newest sequence number of each stream that grew.
    pub appended: Vec<(StreamId, i64)>,
}

/// What a commit of the store's own asked for.
#[derive(Debug, Default)]
pub(super) enum Answer {
    #[default]
    Nothing,
    /// The lease's number, if the execution could be taken.
    Claimed(Option<i64>),
    Cluster(ClusterClaim),
    Yes(bool),
    Count(u64),
}

/// One transaction's state.
pub(super) struct Batch<'c, C> {
    db: &'c C,
    rows: HashMap<Uuid, Row>,
    /// What the newest position was before; None: it has to be asked for.
    position: Option<i64>,
    /// Executions of which a guard did not hold: read anew the next time.
    doubted: Vec<Uuid>,
    script: Script,
    /// Whether a statement that stands for itself waits in the script.
    unsent: bool,
    executions: Gathered,
    advances: Gathered,
    stages: Gathered,
    intents: Vec<Vec<Value>>,
    closed: Vec<Vec<Value>>,
    events: Vec<(usize, NewRow)>,
    outcomes: Vec<Result<Outcome, Refusal>>,
    /// Why the last commit that follows none did not happen, for those that follow it.
    refused: Option<Refusal>,
}

/// Rows waiting to be written, one per id: the last counts.
#[derive(Default)]
struct Gathered {
    places: HashMap<Uuid, usize>,
    rows: Vec<Vec<Value>>,
}

impl Gathered {
    fn put(&mut self, id: Uuid, row: Vec<Value>) {
        match self.places.get(&id) {
            Some(place) => self.rows[*place] = row,
            None => {
                self.places.insert(id, self.rows.len());
                self.rows.push(row);
            }
        }
    }

    fn get(&mut self, id: Uuid) -> Option<&mut Vec<Value>> {
        self.places.get(&id).map(|place| &mut self.rows[*place])
    }

    fn remove(&mut self, id: Uuid) {
        let Some(place) = self.places.remove(&id) else { return };
        self.rows.swap_remove(place);
        if let Some(moved) = self.places.values_mut().find(|moved| **moved == self.rows.len()) {
            *moved = place;
        }
    }

    fn take(&mut self) -> Vec<Vec<Value>> {
        self.places.clear();
        std::mem::take(&mut self.rows)
    }
}

impl<'c, C: ConnectionTrait> Batch<'c, C> {
    /// Reads (and, where there are several writers, locks in the order of their ids) the
    /// executions that the batch's guards look at and that are not remembered.
    pub(super) async fn begin(db: &'c C, batch: &[&Prepared], memory: &Memory) -> Result<Self, DbErr> {
        let mut ids: Vec<Uuid> = batch.iter().flat_map(|prepared| prepared.rows.iter().copied()).collect();
        ids.sort_unstable();
        ids.dedup();
        let mut rows = HashMap::with_capacity(ids.len());
        ids.retain(|id| match memory.rows.get(id) {
            Some(row) => rows.insert(*id, row.clone()).is_some(),
            None => true,
        });
        if !ids.is_empty() {
            let values = padded(ids.into_iter().map(rows::id).collect());
            let sql = format!(
                "SELECT id, version, lease_owner, lease_number, CASE WHEN cancel IS NULL THEN 0 ELSE 1 END, finished \
                 FROM execution WHERE id IN ({}) ORDER BY id{}",
                marks(values.len()),
                for_update(db)
            );
            for row in all(db, &sql, values).await? {
                let cancelled = flag(&row, 4)?;
                rows.insert(
                    row.try_get_by_index(0)?,
                    Row {
                        version: row.try_get_by_index(1)?,
                        owner: row.try_get_by_index(2)?,
                        lease: row.try_get_by_index(3)?,
                        cancelled,
                        finished: flag(&row, 5)?,
                    },
                );
            }
        }
        Ok(Self {
            db,
            rows,
            position: memory.position,
            doubted: Vec::new(),
            script: Script::default(),
            unsent: false,
            executions: Gathered::default(),
            advances: Gathered::default(),
            stages: Gathered::default(),
            intents: Vec::new(),
            closed: Vec::new(),
            events: Vec::new(),
            outcomes: Vec::with_capacity(batch.len()),
            refused: None,
        })
    }

    /// One commit: all its guards, then its writes.
    pub(super) async fn add(&mut self, prepared: &Prepared) -> Result<(), DbErr> {
        if !prepared.follows {
            self.refused = None;
        } else if let Some(refusal) = &self.refused {
            self.outcomes.push(Err(refusal.clone()));
            return Ok(());
        }
        for guard in &prepared.guards {
            if !self.holds(guard).await? {
                self.doubted.extend(&prepared.rows);
                let refusal = Refusal { guard: guard.clone() };
                if !prepared.follows {
                    self.refused = Some(refusal.clone());
                }
                self.outcomes.push(Err(refusal));
                return Ok(());
            }
        }
        let commit = self.outcomes.len();
        let mut outcome = Outcome::default();
        for op in &prepared.ops {
            self.run(op, commit, &mut outcome).await?;
        }
        self.events.extend(prepared.events.iter().map(|event| (commit, event.clone())));
        self.outcomes.push(Ok(outcome));
        Ok(())
    }

    /// Writes what is left. The events' positions are taken last, from a row that stays locked
    /// until COMMIT, so that positions are in the order of commits.
    pub(super) async fn finish(mut self) -> Result<(Vec<Result<Outcome, Refusal>>, Learned), DbErr> {
        self.gather();
        self.append().await?;
        self.script.send(self.db).await?;
        for id in &self.doubted {
            self.rows.remove(id);
        }
        Ok((
            self.outcomes,
            Learned { known: Memory { rows: self.rows, position: self.position }, doubted: self.doubted },
        ))
    }

    // --- writes ------------------------------------------------------------------------------

    async fn run(&mut self, op: &Op, commit: usize, outcome: &mut Outcome) -> Result<(), DbErr> {
        match op {
            Op::UpdateExecution { id, version, cancelled, finished, row } => {
                if let Some(known) = self.rows.get_mut(id) {
                    known.version = *version;
                    known.cancelled = *cancelled;
                    known.finished = *finished;
                }
                self.advances.remove(*id);
                self.executions.put(*id, row.clone());
                if *finished {
                    // Whatever ended it, it stands before no cluster any more.
                    self.script.push("DELETE FROM cluster_claim WHERE execution_id = ?", vec![rows::id(*id)]);
                }
            }
            Op::AdvanceExecution { id, version, event_seq } => {
                if let Some(known) = self.rows.get_mut(id) {
                    known.version = *version;
                }
                match self.executions.get(*id) {
                    Some(row) => rows::execution_advanced(row, *version, *event_seq),
                    None => {
                        self.advances.put(*id, vec![rows::id(*id), rows::int(*version), rows::int(*event_seq)]);
                    }
                }
            }
            Op::PutStage { id, row } => self.stages.put(*id, row.clone()),
            Op::InsertIntent(row) => self.intents.push(row.clone()),
            Op::InsertExecution(execution) => self.insert_execution(execution, commit, outcome).await?,
            Op::CloseIntent(row) => self.closed.push(row.clone()),
            Op::Run { sql, values } => {
                self.gather();
                self.script.push(*sql, values.clone());
                self.unsent = true;
            }
            Op::Count { sql, values } => {
                self.flush().await?;
                outcome.answer = Answer::Count(execute(self.db, sql, values.clone()).await?.rows_affected());
            }
            Op::Ended(values) => {
                // A trigger that was saved before it in this batch waits for it too.
                if self.unsent {
                    self.flush().await?;
                }
                outcome.committed.triggered +=
                    execute(self.db, rows::SLOTS_OF_END, values.clone()).await?.rows_affected();
            }
            Op::Insert { table, columns, row } => {
                let before = format!("INSERT INTO {table} ({columns}) VALUES");
                self.script.push_rows(&before, "", vec![row.clone()]);
            }
            Op::Claim { me, execution } => outcome.answer = Answer::Claimed(self.claim(*me, *execution).await?),
            Op::ClaimCluster { lease, key, stage, queue_max } => {
                outcome.answer = Answer::Cluster(self.claim_cluster(lease, key, *stage, *queue_max).await?);
            }
            Op::ReserveName { place, name, stage, attempt } => {
                self.flush().await?;
                let key = vec![rows::text(&place.account), rows::text(&place.location), rows::text(name)];
                // Locked, so that of those who find its holder's execution over one takes it.
                let lock = for_update(self.db);
                let sql = format!(
                    "SELECT stage_id, attempt FROM name_reservation WHERE account = ? AND location = ? AND name = ?{lock}"
                );
                let mine = match one(self.db, &sql, key.clone()).await? {
                    Some(row) => {
                        let (holder, held): (Uuid, i64) = (row.try_get_by_index(0)?, row.try_get_by_index(1)?);
                        let mine = holder == stage.uuid() && held == i64::from(*attempt);
                        mine || self.take_name_over(key, holder, *stage, *attempt).await?
                    }
                    None => {
                        let sql = "INSERT INTO name_reservation (account, location, name, stage_id, attempt) \
                                   VALUES (?,?,?,?,?)";
                        let rest = [rows::id(stage.uuid()), rows::int((*attempt).into())];
                        self.script.push(sql, key.into_iter().chain(rest).collect());
                        true
                    }
                };
                outcome.answer = Answer::Yes(mine);
            }
            Op::Beat(owner) => {
                self.flush().await?;
                let sql = "UPDATE owner SET beat = beat + 1 WHERE id = ?";
                let changed = execute(self.db, sql, vec![rows::id(owner.uuid())]).await?.rows_affected();
                outcome.answer = Answer::Yes(changed == 1);
            }
            Op::Prune { ended_before, keys_before, limit } => {
                self.flush().await?;
                let sql = "DELETE FROM idempotency WHERE created_at < ?";
                execute(self.db, sql, vec![rows::time(*keys_before)]).await?;
                outcome.answer = Answer::Count(self.prune(rows::time(*ended_before), *limit).await?);
            }
        }
        Ok(())
    }

    /// A name whose holder's execution is over, or pruned, is free again: who asks has looked that
    /// there is no such server group. Without this a cluster would run out of its thousand names.
    async fn take_name_over(
        &mut self,
        name: Vec<Value>,
        holder: Uuid,
        stage: StageId,
        attempt: i32,
    ) -> Result<bool, DbErr> {
        let sql = "SELECT 1 FROM stage s JOIN execution e ON e.id = s.execution_id WHERE s.id = ? AND e.finished = 0";
        if one(self.db, sql, vec![rows::id(holder)]).await?.is_some() {
            return Ok(false);
        }
        let sql =
            "UPDATE name_reservation SET stage_id = ?, attempt = ? WHERE account = ? AND location = ? AND name = ?";
        let values = [rows::id(stage.uuid()), rows::int(attempt.into())].into_iter().chain(name).collect();
        self.script.push(sql, values);
        Ok(true)
    }

    async fn insert_execution(
        &mut self,
        execution: &Execution,
        commit: usize,
        outcome: &mut Outcome,
    ) -> Result<(), DbErr> {
        let counter = match (execution.kind, execution.pipeline) {
            (ExecutionKind::Pipeline, Some(pipeline)) => pipeline.to_string(),
            _ => execution.application.to_string(),
        };
        let mut execution = execution.clone();
        execution.number = self.count(&counter, 1).await?;
        execution.event_seq = 1 + i64::try_from(execution.stages.len()).unwrap_or(i64::MAX - 1);
        outcome.committed.numbers.push(execution.number);

        let before = format!("INSERT INTO execution ({}) VALUES", rows::EXECUTION_INSERT);
        self.script.push_rows(&before, "", vec![rows::execution_row(&execution)]);
        for stage in &execution.stages {
            self.stages.put(stage.id.uuid(), rows::stage_row(stage));
        }
        self.rows.insert(
            execution.id.uuid(),
            Row {
                version: execution.version,
                owner: None,
                lease: 0,
                cancelled: execution.cancel.is_some(),
                finished: execution.status.is_complete(),
            },
        );
        let bodies =
            std::iter::once(EventBody::execution(&execution)).chain(execution.stages.iter().map(EventBody::stage));
        self.events.extend((1..).zip(bodies).map(|(seq, event)| {
            let stream = StreamId::Execution(execution.id);
            (commit, NewRow { stream, seq: Some(seq), at: execution.created_at, body: body(&event) })
        }));
        Ok(())
    }

    /// The number of the lease, if the execution may be taken.
    async fn claim(&mut self, me: OwnerId, execution: ExecutionId) -> Result<Option<i64>, DbErr> {
        self.flush().await?;
        let Some(row) = self.rows.get(&execution.uuid()).filter(|row| !row.finished) else { return Ok(None) };
        match row.owner {
            Some(owner) if owner == me.uuid() => return Ok(Some(row.lease)),
            Some(owner) => {
                let sql = "SELECT 1 FROM owner WHERE id = ?";
                if one(self.db, sql, vec![rows::id(owner)]).await?.is_some() {
                    return Ok(None);
                }
            }
            None => {}
        }
        let number = row.lease + 1;
        let sql = "UPDATE execution SET lease_owner = ?, lease_number = ? WHERE id = ?";
        let values = vec![rows::id(me.uuid()), rows::int(number), rows::id(execution.uuid())];
        self.script.push(sql, values);
        if let Some(row) = self.rows.get_mut(&execution.uuid()) {
            row.owner = Some(me.uuid());
            row.lease = number;
        }
        Ok(Some(number))
    }

    /// Deletes the oldest that have ended; stages and intents go with them.
    async fn prune(&self, ended_before: Value, limit: u64) -> Result<u64, DbErr> {
        let sql = "SELECT id FROM execution WHERE finished = 1 AND ended_at < ? ORDER BY ended_at LIMIT ?";
        let limit = rows::int(i64::try_from(limit).unwrap_or(i64::MAX));
        let ids: Vec<Uuid> = all(self.db, sql, vec![ended_before, limit])
            .await?
            .iter()
            .map(|row| row.try_get_by_index(0))
            .collect::<Result<_, DbErr>>()?;
        if ids.is_empty() {
            return Ok(0);
        }
        let count = ids.len() as u64;
        let values = padded(ids.into_iter().map(rows::id).collect());
        let marks = marks(values.len());
        for (table, column) in [("event", "stream"), ("cluster_claim", "execution_id"), ("execution", "id")] {
            execute(self.db, &format!("DELETE FROM {table} WHERE {column} IN ({marks})"), values.clone()).await?;
        }
        Ok(count)
    }

    /// Adds to a counter and gives its value after that. Its row stays locked until COMMIT.
    async fn count(&self, key: &str, by: i64) -> Result<i64, DbErr> {
        let sql = "INSERT INTO counter (key, value) VALUES (?,?) \
                   ON CONFLICT (key) DO UPDATE SET value = counter.value + excluded.value RETURNING value";
        one(self.db, sql, vec![rows::text(key), rows::int(by)])
            .await?
            .ok_or_else(|| DbErr::RecordNotFound(format!("counter {key}")))?
            .try_get_by_index(0)
    }

    /// Puts what was gathered into the script.
    fn gather(&mut self) {
        let script = &mut self.script;
        let executions = self.executions.take();
        if !executions.is_empty() {
            script.push_rows(rows::EXECUTION_UPDATE, rows::EXECUTION_UPDATE_END, executions);
        }
        let advances = self.advances.take();
        if !advances.is_empty() {
            script.push_rows(rows::EXECUTION_ADVANCE, rows::EXECUTION_UPDATE_END, advances);
        }
        let stages = self.stages.take();
        if !stages.is_empty() {
            script.push_rows(&format!("INSERT INTO stage ({}) VALUES", rows::STAGE), &rows::stage_conflict(), stages);
        }
        let intents = std::mem::take(&mut self.intents);
        if !intents.is_empty() {
            script.push_rows(&format!("INSERT INTO intent ({}) VALUES", rows::INTENT), "", intents);
        }
        let closed = std::mem::take(&mut self.closed);
        if !closed.is_empty() {
            script.push_rows(rows::INTENT_CLOSE, rows::INTENT_CLOSE_END, closed);
        }
    }

    /// Writes what was gathered: before anything is read that it may have changed.
    async fn flush(&mut self) -> Result<(), DbErr> {
        self.gather();
        self.unsent = false;
        self.script.send(self.db).await
    }

    /// The first of so many positions that follow each other.
    async fn positions(&mut self, count: i64) -> Result<i64, DbErr> {
        let Some(newest) = self.position else {
            // Its row stays locked until COMMIT: all else has to be written by then.
            self.script.send(self.db).await?;
            let newest = self.count("position", count).await?;
            self.position = Some(newest);
            return Ok(newest - count + 1);
        };
        self.script.push("UPDATE counter SET value = ? WHERE key = 'position'", vec![rows::int(newest + count)]);
        self.position = Some(newest + count);
        Ok(newest + 1)
    }

    async fn append(&mut self) -> Result<(), DbErr> {
        let events = std::mem::take(&mut self.events);
        if events.is_empty() {
            return Ok(());
        }
        let count = i64::try_from(events.len()).unwrap_or(i64::MAX);
        let first = self.positions(count).await?;
        let unnumbered = events.iter().filter(|(_, event)| event.seq.is_none()).count();
        let mut next = match i64::try_from(unnumbered).unwrap_or(i64::MAX) {
            0 => 0,
            count => self.count("notifications", count).await? - count + 1,
        };
        let mut values = Vec::with_capacity(events.len());
        for (position, (commit, event)) in (first..).zip(events) {
            let seq = event.seq.unwrap_or_else(|| {
                next += 1;
                next - 1
            });
            if let Some(Ok(outcome)) = self.outcomes.get_mut(commit) {
                match outcome.appended.iter_mut().find(|(stream, _)| *stream == event.stream) {
                    Some((_, newest)) => *newest = seq.max(*newest),
                    None => outcome.appended.push((event.stream, seq)),
                }
            }
            values.push(vec![
                rows::int(position),
                rows::id(event.stream.key()),
                rows::int(seq),
                rows::time(event.at),
                rows::int(rows::FORMAT),
                Value::String(Some(event.body)),
            ]);
        }
        self.script.push_rows(&format!("INSERT INTO event ({}) VALUES", rows::EVENT), "", values);
        Ok(())
    }
}

/// A flag, whatever width the database gives the number.
fn flag(row: &sea_orm::QueryResult, at: usize) -> Result<bool, DbErr> {
    match row.try_get_by_index::<i64>(at) {
        Ok(number) => Ok(number != 0),
        Err(_) => row.try_get_by_index::<i32>(at).map(|number| number != 0),
    }
}
