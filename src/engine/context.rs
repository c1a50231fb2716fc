//! What a step may see and do. Effects go out only through here: the intent is committed first.

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};
use tokio::sync::Notify;

use super::apply::{cut, delta};
use super::contract::{Cause, Effect, EffectError, NOT_MADE, Repeat, StepError, Ticket};
use super::decide::{is_unwind, topmost};
use super::runner::Shared;
use super::upon::Upon;
use super::worker::Message;
use super::{CrashPoint, Moment};
use crate::measure::engine::{self as measure, EffectOutcome};
use crate::model::{Execution, ExecutionId, IntentId, Phase, Place, Progress, Stage as StageRow, Wake};
use crate::store::{ClusterClaim, ClusterKey, Commit, CommitError, Guard, Intent, IntentOutcome, Lease, Write};

/// The longest a call may take.
const EFFECT_TIMEOUT_MAX: Duration = Duration::from_secs(600);

const UNSAVED: &str = "what the step begins upon was not saved";

/// What a step may see and do. Internals belong to the runner.
pub struct StepContext {
    pub(super) shared: Arc<Shared>,
    pub(super) lease: Lease,
    pub(super) execution: Arc<Execution>,
    /// Of the stage, among the execution's.
    pub(super) index: usize,
    pub(super) state: Arc<StepState>,
    /// What has to be saved before anything of the step leaves the process.
    pub(super) upon: Upon,
    pub(super) worker: tokio::sync::mpsc::UnboundedSender<Message>,
}

/// What the step and its worker share while the step runs.
#[derive(Debug, Default)]
pub(super) struct StepState {
    gate: Mutex<Gate>,
    kept: Mutex<Kept>,
    /// A call was refused before it was made.
    pub not_made: AtomicBool,
    /// The step has to end and nothing of it is outside: it ends now.
    pub kill: Notify,
    /// The step has to end and its last call has just been answered: it ends soon.
    pub linger: Notify,
}

#[derive(Debug, Default)]
struct Gate {
    /// No new effect may begin.
    closed: bool,
    /// Effects under way.
    running: usize,
}

/// What a step has done so far, for its commit.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub progress: Option<Progress>,
    pub outputs: Map<String, Value>,
    pub intents: Vec<(IntentId, IntentOutcome)>,
    /// Those intents themselves, for those who trace.
    pub told: Vec<Intent>,
    /// Intents of this stage and attempt that were found open: their outcome is not known.
    pub open: HashMap<String, Intent>,
    /// Clusters this stage's topmost ancestor has claimed or waits for.
    pub clusters: Vec<ClusterKey>,
}

impl StepState {
    pub fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets no further effect begin and has the step end: at once, or after the call under way.
    pub fn close(&self) {
        let mut gate = self.gate();
        if !gate.closed {
            gate.closed = true;
            if gate.running == 0 {
                self.kill.notify_one();
            }
        }
    }

    fn enter(self: &Arc<Self>) -> Option<Entered> {
        let mut gate = self.gate();
        if gate.closed {
            return None;
        }
        gate.running += 1;
        Some(Entered(Arc::clone(self)))
    }
}

/// An effect is under way.
struct Entered(Arc<StepState>);

impl Drop for Entered {
    fn drop(&mut self) {
        let mut gate = self.0.gate();
        gate.running -= 1;
        if gate.closed && gate.running == 0 {
            self.0.linger.notify_one();
        }
    }
}

impl StepContext {
    /// The whole execution as of this step.
    #[must_use]
    pub fn execution(&self) -> &Execution {
        &self.execution
    }

    /// The stage itself as of this step.
    #[must_use]
    pub fn stage(&self) -> &StageRow {
        &self.execution.stages[self.index]
    }

    /// The stage's own children so far (those its steps have spawned), in the order they were made.
    #[must_use]
    pub fn children(&self) -> Vec<&StageRow> {
        self.execution.children(self.stage().id).filter(|child| child.phase == Phase::Body).collect()
    }

    /// The child of that key, if it was spawned.
    #[must_use]
    pub fn child(&self, key: &str) -> Option<&StageRow> {
        self.execution.children(self.stage().id).find(|child| child.phase == Phase::Body && child.key == key)
    }

    /// What came with the signal that woke this step; None when the wait ran out or there was none.
    #[must_use]
    pub fn signal(&self) -> Option<&Value> {
        match &self.stage().wake {
            Wake::Signal { payload, .. } => payload.as_ref(),
            _ => None,
        }
    }

    /// Whether the wait of the step before ended by its timeout.
    #[must_use]
    pub fn timed_out(&self) -> bool {
        matches!(&self.stage().wake, Wake::Signal { payload: None, until, .. } if *until <= self.now())
    }

    /// Now, by the engine's clock.
    #[must_use]
    pub fn now(&self) -> DateTime<Utc> {
        self.shared.clock.now()
    }

    /// Says how far the stage is; saved with the step, at most once a second but for the last.
    pub fn progress(&self, completed: i64, total: i64, unit: &str, message: impl Into<String>) {
        let message = cut(&message.into());
        let same = |present: &Progress| {
            present.completed == completed
                && present.total == total
                && present.unit == unit
                && present.message == message
        };
        if self.stage().progress.as_ref().is_some_and(same) {
            self.state.kept().progress = None;
            return;
        }
        let updated_at = self.now();
        self.state.kept().progress = Some(Progress { completed, total, unit: unit.to_owned(), message, updated_at });
    }

    /// Sets the outputs that others may read before the stage is done; merged key by key.
    pub fn output(&self, key: &str, value: Value) {
        self.state.kept().outputs.insert(key.to_owned(), value);
    }

    /// Records the intent (refused when the lease is lost or, outside an unwind, the execution is
    /// cancelled), makes the call under its deadline, and keeps the outcome for the step's commit.
    ///
    /// # Errors
    /// See [`EffectError`]. A call that runs into its timeout is `Unknown` for `Repeat::Blind`;
    /// for `Repeat::Keyed` it is `Unknown` too, and the stage returns it as a `Retry`.
    pub async fn effect<T, E, F, Fut>(&self, effect: Effect<'_>, call: F) -> Result<T, EffectError<E>>
    where
        T: Send,
        E: std::fmt::Display + Send,
        F: FnOnce(Ticket) -> Fut + Send,
        Fut: Future<Output = Result<T, E>> + Send,
    {
        self.guarded(None, effect, call).await
    }

    /// The same for what changes a cluster: the intent is refused too unless the stage's topmost
    /// ancestor holds the cluster in that same transaction.
    ///
    /// # Errors
    /// See [`StepContext::effect`]; `Unclaimed` where the cluster is not held.
    pub async fn effect_on_cluster<T, E, F, Fut>(
        &self,
        cluster: &ClusterKey,
        effect: Effect<'_>,
        call: F,
    ) -> Result<T, EffectError<E>>
    where
        T: Send,
        E: std::fmt::Display + Send,
        F: FnOnce(Ticket) -> Fut + Send,
        Fut: Future<Output = Result<T, E>> + Send,
    {
        self.guarded(Some(cluster), effect, call).await
    }

    async fn guarded<T, E, F, Fut>(
        &self,
        cluster: Option<&ClusterKey>,
        effect: Effect<'_>,
        call: F,
    ) -> Result<T, EffectError<E>>
    where
        T: Send,
        E: std::fmt::Display + Send,
        F: FnOnce(Ticket) -> Fut + Send,
        Fut: Future<Output = Result<T, E>> + Send,
    {
        let Some(_entered) = self.state.enter() else {
            return Err(self.not_made("the stage has to end".to_owned()));
        };
        let known_open = self.state.kept().open.contains_key(effect.key);
        if known_open && !self.upon.holds().await {
            // It stays open for the step that comes instead of this one.
            return Err(self.not_made(UNSAVED.to_owned()));
        }
        let mut found = self.state.kept().open.remove(effect.key);
        if found.is_none() && effect.repeat == Repeat::Blind {
            found = self.lost(&effect).await?;
        }
        if let Some(found) = &found {
            // Whatever comes next, the old call's outcome stays unknown.
            self.state.kept().intents.push((found.id, IntentOutcome::Unknown));
            measure::effect(EffectOutcome::Unknown, None);
            self.tell(found);
            if effect.repeat == Repeat::Blind {
                return Err(EffectError::Unknown { what: effect.what, since: found.created_at });
            }
        }

        let timeout = effect.timeout.min(EFFECT_TIMEOUT_MAX);
        let now = self.now();
        let intent = self.intent(&effect, now, now + delta(timeout));
        let ticket =
            Ticket { operation: self.operation(&intent.key), fence: self.lease.number, deadline: intent.deadline };
        let (id, deadline) = (intent.id, intent.deadline);
        let told = self.shared.options.ended.is_some().then(|| intent.clone());
        self.record(intent, cluster).await?;
        let since = tokio::time::Instant::now();
        self.crash(Moment::AfterIntent, effect.key).await;

        let answer = tokio::select! {
            biased;
            answer = call(ticket) => Some(answer),
            () = self.shared.clock.sleep_until(deadline) => None,
        };
        self.crash(Moment::AfterEffect, effect.key).await;
        let outcome = match &answer {
            Some(Ok(_)) => IntentOutcome::Done,
            Some(Err(error)) => IntentOutcome::Failed { message: cut(&error.to_string()) },
            None => IntentOutcome::Unknown,
        };
        let counted = match &outcome {
            IntentOutcome::Done => EffectOutcome::Done,
            IntentOutcome::Failed { .. } => EffectOutcome::Failed,
            IntentOutcome::Unknown => EffectOutcome::Unknown,
        };
        measure::effect(counted, Some(since.elapsed()));
        tracing::debug!(effect = effect.key, outcome = counted.as_str(), "call outside: {}", effect.what);
        if let Some(intent) = told {
            self.tell(&intent);
        }
        self.state.kept().intents.push((id, outcome));
        match answer {
            Some(Ok(value)) => Ok(value),
            Some(Err(error)) => Err(EffectError::Call(error)),
            None => Err(EffectError::Unknown { what: effect.what, since: now }),
        }
    }

    /// Keeps what those who trace are told once the outcome is committed.
    fn tell(&self, intent: &Intent) {
        if self.shared.options.ended.is_some() {
            self.state.kept().told.push(intent.clone());
        }
    }

    /// The key under which the other side knows an effect of this stage and attempt.
    #[must_use]
    pub fn operation(&self, effect: &str) -> String {
        let stage = self.stage();
        format!("{}/{}/{}/{effect}", self.execution.id, stage.id, stage.attempt)
    }

    /// The database was restored from a backup while this execution was under way: the call may
    /// have been made in the time that the backup does not know. Said once for each call.
    async fn lost<E>(&self, effect: &Effect<'_>) -> Result<Option<Intent>, EffectError<E>> {
        let now = self.now();
        let intent = self.intent(effect, now, now);
        match self.shared.store.made_in_lost_time(&intent).await {
            Ok(false) => Ok(None),
            Ok(true) => {
                self.record(intent.clone(), None).await?;
                Ok(Some(intent))
            }
            Err(error) => Err(self.not_made(error.to_string())),
        }
    }

    fn intent(&self, effect: &Effect<'_>, now: DateTime<Utc>, deadline: DateTime<Utc>) -> Intent {
        let stage = self.stage();
        Intent {
            id: IntentId::new(),
            execution: self.execution.id,
            stage: stage.id,
            attempt: stage.attempt,
            key: effect.key.to_owned(),
            what: cut(&effect.what),
            lease_number: self.lease.number,
            created_at: now,
            deadline,
            closed_at: None,
            outcome: None,
        }
    }

    /// Commits the intent, or says why the call must not be made.
    async fn record<E>(&self, intent: Intent, cluster: Option<&ClusterKey>) -> Result<(), EffectError<E>> {
        let execution = self.execution.id;
        let mut guards = vec![Guard::Lease { execution, owner: self.lease.owner, number: self.lease.number }];
        // An unwind goes on although the execution is cancelled.
        if !is_unwind(&self.execution, self.stage()) {
            guards.push(Guard::NotCancelled { execution });
        }
        if let Some(key) = cluster {
            let stage = topmost(&self.execution, self.stage()).id;
            guards.push(Guard::ClusterHeld { key: key.clone(), stage });
        }
        let (id, what) = (intent.id, intent.what.clone());
        let commit = Commit { guards, writes: vec![Write::InsertIntent(intent)], events: Vec::new() };
        self.shared.alive().await;
        let recorded = match self.upon.take_along(&self.shared.store, commit) {
            Ok(followed) => followed.wait().await,
            Err(commit) if self.upon.holds().await => self.shared.store.commit(commit).await,
            Err(_) => return Err(self.not_made(UNSAVED.to_owned())),
        };
        let error = match recorded {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        if let CommitError::Unknown(_) = &error {
            // If it is there, it says of a call that was not made.
            let outcome = IntentOutcome::Failed { message: "the call was not made".to_owned() };
            self.state.kept().intents.push((id, outcome));
        }
        if let CommitError::Refused(refusal) = &error {
            if let Guard::ClusterHeld { key, .. } = &refusal.guard {
                return Err(EffectError::Unclaimed { what, cluster: key.cluster.clone() });
            }
            // The execution has changed hands or is cancelled: the worker reads it anew.
            let _ = self.worker.send(Message::Changed);
        }
        Err(self.not_made(error.to_string()))
    }

    fn not_made<E>(&self, why: String) -> EffectError<E> {
        measure::effect(EffectOutcome::NotMade, None);
        self.state.not_made.store(true, Ordering::Release);
        EffectError::NotMade(why)
    }

    async fn crash(&self, moment: Moment, effect: &str) {
        if let Some(hook) = &self.shared.options.crash {
            let stage = self.stage();
            let point = CrashPoint {
                execution: self.execution.id,
                kind: stage.kind.clone(),
                stage: stage.key.clone(),
                cursor: stage.cursor.clone(),
                effect: Some(effect.to_owned()),
                moment,
            };
            if hook.0(&point) {
                self.shared.die();
            }
        }
        self.shared.alive().await;
    }

    /// Waits in line for the cluster; the claim belongs to the topmost stage of this stage's
    /// ancestry (itself included) and is given back when that one ends, unwind included.
    /// While waiting, poll on [`super::contract::cluster_topic`].
    ///
    /// # Errors
    /// A retry, when the database could not say.
    pub async fn claim_cluster(&self, key: &ClusterKey) -> Result<ClusterClaim, StepError> {
        self.settled().await?;
        let top = topmost(&self.execution, self.stage()).id;
        self.state.kept().clusters.push(key.clone());
        let max = self.shared.options.cluster_queue_max;
        let claim = self.shared.store.cluster_claim(self.lease, key, top, max).await;
        claim.map_err(|error| self.refused(&error, format!("claim of cluster `{}`", key.cluster)))
    }

    /// What people call that execution: `hello / deploy hello #3`. None: it is gone.
    ///
    /// # Errors
    /// A retry, when the database could not say.
    pub async fn title(&self, execution: ExecutionId) -> Result<Option<String>, StepError> {
        let found = self.shared.store.execution(execution).await.map_err(|error| {
            StepError::Retry(Cause::new("DATABASE_UNAVAILABLE", "execution could not be read").because(error))
        })?;
        Ok(found.map(|found| format!("{} / {} #{}", found.application_name, found.name, found.number)))
    }

    /// The server group name this stage and attempt reserved at the place, if any.
    ///
    /// # Errors
    /// A retry, when the database could not say.
    pub async fn reserved_name(&self, place: &Place) -> Result<Option<String>, StepError> {
        let stage = self.stage();
        let name = self.shared.store.name_reserved(place, stage.id, stage.attempt).await;
        name.map_err(|error| {
            StepError::Retry(Cause::new("DATABASE_UNAVAILABLE", "reserved name could not be read").because(error))
        })
    }

    /// Reserves a name; false when it is another's.
    ///
    /// # Errors
    /// A retry, when the database could not say.
    pub async fn reserve_name(&self, place: &Place, name: &str) -> Result<bool, StepError> {
        self.settled().await?;
        let stage = self.stage();
        let reserved = self.shared.store.name_reserve(self.lease, place, name, stage.id, stage.attempt).await;
        reserved.map_err(|error| self.refused(&error, format!("reservation of the name `{name}`")))
    }

    /// Waits until what the step begins upon is saved.
    async fn settled(&self) -> Result<(), StepError> {
        if self.upon.holds().await {
            return Ok(());
        }
        Err(StepError::Retry(Cause::new(NOT_MADE, UNSAVED)))
    }

    fn refused(&self, error: &CommitError, what: String) -> StepError {
        if let CommitError::Refused(_) = error {
            self.state.not_made.store(true, Ordering::Release);
            let _ = self.worker.send(Message::Changed);
            return StepError::Retry(Cause::new(NOT_MADE, what).because(error));
        }
        StepError::Retry(Cause::new("DATABASE_UNAVAILABLE", format!("{what} did not work out")).because(error))
    }
}
