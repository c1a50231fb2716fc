//! One commit a turn: what is in memory made to rows, and what follows once they are saved.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tracing::Instrument as _;

use super::{Gone, Worker};
use crate::engine::apply::Changes;
use crate::engine::contract::cluster_topic;
use crate::engine::decide::Decision;
use crate::engine::upon::{Fate, Upon};
use crate::engine::{ended, notices, timers};
use crate::measure;
use crate::model::StreamId;
use crate::store::{Commit, CommitError, Guard, Intent, IntentOutcome, NewEvent, Write};

/// When the execution's row is to be looked at again.
#[derive(Debug, Clone, Copy)]
enum Wakes {
    At(Option<DateTime<Utc>>),
    /// The row is due already.
    AsBefore,
}

/// What a turn's commit begins from.
#[derive(Debug, Clone, Copy)]
struct Saving {
    /// The execution's version before it.
    version: i64,
    /// The execution's newest event before it.
    seq: i64,
    wake: Wakes,
}

impl Worker {
    /// One commit for the turn, with the intents of the steps that it makes due. False: the rows
    /// were newer, and are in memory now.
    pub(super) async fn save(
        &mut self,
        changes: &Changes,
        decisions: &[Decision],
        now: DateTime<Utc>,
    ) -> Result<bool, Gone> {
        let saving = self.next_version(changes, decisions, now);
        let (upon, fate) = Upon::unsaved();
        self.begin(decisions, now, &upon).await;
        let saved = self.hand_in(changes, saving, &fate, now).await;
        self.begun_upon(fate.is(false));
        saved
    }

    /// Counts the execution's version and events up.
    fn next_version(&mut self, changes: &Changes, decisions: &[Decision], now: DateTime<Utc>) -> Saving {
        let over = self.execution.status.is_complete();
        let wake_at = if over { None } else { timers::wake_at(decisions, !self.facts.busy.is_empty(), now) };
        // Due it is, and due it stays.
        let advance = !changes.execution && wake_at.is_some_and(|at| at <= now) && self.handle.was_due(now);
        let wake = if advance { Wakes::AsBefore } else { Wakes::At(wake_at) };
        let execution = Arc::make_mut(&mut self.execution);
        let saving = Saving { version: execution.version, seq: execution.event_seq, wake };
        let events = i64::try_from(changes.stages.values().filter(|seen| **seen).count()).unwrap_or(i64::MAX);
        execution.version += 1;
        execution.event_seq += events + i64::from(changes.execution);
        saving
    }

    async fn hand_in(
        &mut self,
        changes: &Changes,
        saving: Saving,
        fate: &Fate,
        now: DateTime<Utc>,
    ) -> Result<bool, Gone> {
        let mut pause = Duration::from_millis(20);
        loop {
            let commit = self.commit(changes, saving, now);
            self.shared.alive().await;
            let committed = self.shared.store.commit_with(commit, fate.along()).await;
            fate.is(committed.is_ok());
            match committed {
                Ok(committed) => {
                    if committed.triggered > 0 {
                        self.shared.slots.notify_one();
                    }
                    if let Wakes::At(at) = saving.wake {
                        self.handle.wakes(at);
                    }
                    self.synced = tokio::time::Instant::now();
                    return Ok(true);
                }
                Err(CommitError::Refused(refusal)) => {
                    if let Guard::Lease { .. } = refusal.guard {
                        return Err(Gone::Lost);
                    }
                    self.reload().await?;
                    return Ok(false);
                }
                Err(CommitError::Unavailable(message)) => {
                    tracing::warn!(execution.id = %self.execution.id, "commit is tried again: {message}");
                    self.pause(pause).await?;
                    pause = (pause * 2).min(Duration::from_secs(2));
                }
                Err(CommitError::Unknown(message)) => {
                    tracing::warn!(execution.id = %self.execution.id, "outcome of a commit is not known: {message}");
                    let wanted = Arc::clone(&self.execution);
                    self.reload().await?;
                    return Ok(self.execution == wanted);
                }
            }
        }
    }

    fn commit(&self, changes: &Changes, saving: Saving, now: DateTime<Utc>) -> Commit {
        let Saving { version, mut seq, wake } = saving;
        let execution = &self.execution;
        let stream = StreamId::Execution(execution.id);
        let max = self.shared.options.event_max;
        let mut commit = Commit {
            guards: vec![
                Guard::Lease { execution: execution.id, owner: self.lease.owner, number: self.lease.number },
                Guard::ExecutionVersion { id: execution.id, version },
            ],
            ..Commit::default()
        };
        let mut event = |body| {
            seq += 1;
            NewEvent { stream, seq: Some(seq), at: now, body }
        };
        // An execution's beginning comes before its stages', its end after theirs.
        let first = changes.execution && !execution.status.is_complete();
        if first {
            commit.events.push(event(notices::execution_event(execution, max)));
        }
        for (index, seen) in &changes.stages {
            let stage = &execution.stages[*index];
            commit.writes.push(Write::PutStage(Box::new(stage.clone())));
            if *seen {
                commit.events.push(event(notices::stage_event(stage, max)));
            }
        }
        if changes.execution && !first {
            commit.events.push(event(notices::execution_event(execution, max)));
        }
        commit.writes.push(match wake {
            Wakes::At(wake_at) => Write::UpdateExecution { execution: Box::new(execution.header()), wake_at },
            Wakes::AsBefore => {
                Write::AdvanceExecution { id: execution.id, version: execution.version, event_seq: execution.event_seq }
            }
        });
        if let Some(pipeline) = execution.pipeline.filter(|_| execution.status.is_complete()) {
            let (execution, status) = (execution.id, execution.status);
            commit.writes.push(Write::EndTriggers { pipeline, execution, status, at: now });
        }
        for (id, outcome) in &changes.intents {
            commit.writes.push(Write::CloseIntent { id: *id, at: now, outcome: outcome.clone() });
        }
        for stage in &changes.released {
            commit.writes.push(Write::ReleaseClusterClaims { stage: *stage });
        }
        for notices::Told { notification, deliveries } in &changes.notifications {
            commit.writes.push(Write::InsertNotification(notification.clone()));
            commit.writes.extend(deliveries.iter().cloned().map(Write::InsertDelivery));
            commit.events.push(NewEvent {
                stream: StreamId::Notifications,
                seq: None,
                at: now,
                body: crate::model::EventBody::Notified { notification: Box::new(notification.clone()) },
            });
        }
        commit
    }

    pub(super) fn saved(&mut self, changes: &Changes, now: DateTime<Utc>) {
        self.tell(changes, now);
        let execution = &self.execution;
        if changes.execution {
            tracing::info!(
                execution.id = %execution.id, application = execution.application_name,
                "execution `{}` #{} is {}", execution.name, execution.number, execution.status.as_str()
            );
        }
        for index in changes.stages.keys() {
            let stage = &self.execution.stages[*index];
            tracing::debug!(
                execution.id = %stage.execution, stage.id = %stage.id, stage.key = stage.key, stage.kind = stage.kind,
                "stage `{}` is {}", stage.key, stage.status.as_str()
            );
            if stage.status.is_complete() {
                self.progress.remove(&stage.id);
                self.open.remove(&(stage.id, stage.attempt));
                self.facts.not_before.remove(&stage.id);
                self.facts.noticed.remove(&stage.id);
                self.marks.remove(&stage.id);
            } else if stage.progress.is_some() {
                self.progress.entry(stage.id).or_default().saved_at = Some(now);
            }
        }
        for stage in &changes.released {
            match self.clusters.remove(stage) {
                Some(clusters) => {
                    for cluster in clusters {
                        self.shared.topics.notify(&cluster_topic(&cluster));
                    }
                }
                // Claimed by an earlier owner: which clusters is not in memory.
                None if self.resumed => self.shared.topics.notify_all("cluster:"),
                None => {}
            }
        }
    }

    /// Counts what began and ended with this commit, and tells those who trace.
    fn tell(&mut self, changes: &Changes, now: DateTime<Utc>) {
        for (id, outcome) in &changes.intents {
            let left_open =
                || self.open.values().find_map(|of_stage| of_stage.values().find(|intent| intent.id == *id));
            let intent = self.told.remove(id).or_else(|| left_open().cloned());
            if let (Some(hook), Some(intent)) = (&self.shared.options.ended, intent) {
                hook.effect(Intent { closed_at: Some(now), outcome: Some(outcome.clone()), ..intent });
            }
        }
        let execution = &self.execution;
        let hook = self.shared.options.ended.as_ref();
        let over = changes.execution && execution.status.is_complete();
        if changes.execution && execution.started_at == Some(now) {
            measure::engine::execution_started();
        }
        for stage in changes.stages.keys().map(|index| &execution.stages[*index]) {
            if stage.status.is_complete() {
                measure::engine::stage_ended(&stage.kind, stage.status.as_str());
                if let Some(hook) = hook {
                    hook.stage(stage);
                }
            }
        }
        if over {
            measure::engine::execution_ended(execution.status.as_str());
        }
        if let (true, Some(hook)) = (over, hook) {
            hook.execution(execution);
            if self.lease.number > 1 {
                // An owner before may have died with what it had not handed on yet.
                let (shared, whole, before) = (Arc::clone(&self.shared), (**execution).clone(), self.claimed_at);
                let telling = async move {
                    if let Err(error) = ended::tell_before(&shared, whole, before).await {
                        tracing::warn!("what ended before this owner's time cannot be told again: {error}");
                    }
                };
                tokio::spawn(telling.in_current_span());
            }
        }
    }

    /// A call whose outcome nobody knows, of a stage that ended before it was looked into, stays
    /// unknown: no step will ask any more.
    pub(super) fn close_left_open(&self, changes: &mut Changes) {
        for index in changes.stages.keys() {
            let stage = &self.execution.stages[*index];
            if let (true, Some(open)) = (stage.status.is_complete(), self.open.get(&(stage.id, stage.attempt))) {
                changes.intents.extend(open.values().map(|intent| (intent.id, IntentOutcome::Unknown)));
            }
        }
    }

    /// Reads the execution again; keeps trying while the database is away.
    pub(super) async fn reload(&mut self) -> Result<(), Gone> {
        let mut pause = Duration::from_millis(20);
        loop {
            self.shared.alive().await;
            match self.shared.store.execution_claim(self.lease.owner, self.execution.id).await {
                // With another number, calls under way carry an old one: somebody was in between.
                Ok(Some((lease, execution))) if lease.number == self.lease.number => {
                    if execution.version != self.execution.version || execution != *self.execution {
                        self.execution = Arc::new(execution);
                    }
                    self.synced = tokio::time::Instant::now();
                    return Ok(());
                }
                Ok(_) => return Err(Gone::Lost),
                Err(error) => {
                    tracing::warn!(execution.id = %self.execution.id, "execution could not be read: {error}");
                    self.pause(pause).await?;
                    pause = (pause * 2).min(Duration::from_secs(2));
                }
            }
        }
    }

    async fn pause(&self, span: Duration) -> Result<(), Gone> {
        if self.shared.stopping.is_cancelled() {
            return Err(Gone::Stopped);
        }
        tokio::time::sleep(span).await;
        Ok(())
    }
}
