//! Holds one claimed execution in memory: runs the steps that are due, applies what they return,
//! decides, and saves each turn as one commit.

use std::collections::{HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::FutureExt;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::task::JoinSet;
use tracing::Instrument as _;

use super::apply::{self, Changes, Later, Report, Seen, Setting, StepEnd, cut};
use super::commands::trigger_variables;
use super::context::{StepContext, StepState};
use super::contract::{DynStage, NOT_MADE, Next, StepError, cluster_topic};
use super::decide::{Decision, Facts, decide, failure};
use super::runner::{Handle, Shared};
use super::{CrashPoint, Moment, ended, notices, timers};
use crate::expression;
use crate::measure::{self, Invariant, engine::StepOutcome};
use crate::model::{Execution, ExecutionId, Failure, IntentId, Progress, Stage, StageId, Status, StreamId, Wake};
use crate::store::{ClusterKey, Commit, CommitError, Guard, Intent, IntentOutcome, Lease, NewEvent, Write};

/// What a worker is told from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Message {
    /// The rows may have changed: cancelled, signalled.
    Changed,
    /// A notice came on the topic that the stage waits on.
    Noticed(StageId),
}

/// When the execution's row is to be looked at again.
#[derive(Debug, Clone, Copy)]
enum Wakes {
    At(Option<DateTime<Utc>>),
    /// The row is due already.
    AsBefore,
}

/// Why a worker leaves before its execution is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gone {
    /// Another owner has it, or it is over.
    Lost,
    /// The server stops.
    Stopped,
}

/// Without a commit for this long the rows are read again: a signal may have been lost.
const RECHECK: Duration = Duration::from_secs(5);
/// A step that has to end may take this long after its last call was answered.
const LINGER: Duration = Duration::from_secs(10);
/// How often progress alone is saved.
const PROGRESS_EVERY: TimeDelta = TimeDelta::seconds(1);
/// Passes of decisions in one turn; more would be a fault in the rules.
const PASSES_MAX: usize = 10_000;

/// See the module.
pub(super) struct Worker {
    shared: Arc<Shared>,
    handle: Handle,
    inbox: UnboundedReceiver<Message>,
    lease: Lease,
    execution: Arc<Execution>,
    facts: Facts,
    steps: JoinSet<Report>,
    states: HashMap<StageId, Arc<StepState>>,
    /// Intents found open when the execution was claimed, by stage, attempt and key.
    open: HashMap<(StageId, i32), HashMap<String, Intent>>,
    /// Calls that are over but not committed, for those who trace.
    told: HashMap<IntentId, Intent>,
    /// Clusters claimed, by topmost stage.
    clusters: HashMap<StageId, HashSet<ClusterKey>>,
    progress: HashMap<StageId, ProgressState>,
    /// Topics on which stages wait.
    topics: HashMap<StageId, String>,
    /// Where the topics stood when the stage's newest step began.
    marks: HashMap<StageId, u64>,
    /// It was begun by an earlier owner, or left memory since.
    resumed: bool,
    claimed_at: DateTime<Utc>,
    synced: tokio::time::Instant,
}

#[derive(Debug, Default)]
struct ProgressState {
    saved_at: Option<DateTime<Utc>>,
    held: Option<Progress>,
}

/// Claims the execution and works on it until it is over, idle or lost. Returns when to look
/// again, for one that leaves idle.
pub(super) async fn run(
    shared: Arc<Shared>,
    id: ExecutionId,
    handle: Handle,
    inbox: UnboundedReceiver<Message>,
) -> Option<DateTime<Utc>> {
    let serial = handle.serial;
    let claimed = match claim(&shared, id).await {
        Ok(claimed) => claimed,
        Err(error) => {
            tracing::warn!(execution.id = %id, "execution could not be claimed: {error}");
            shared.pulse.claim_failed();
            None
        }
    };
    let Some((lease, execution, open)) = claimed else {
        shared.forget(id, serial);
        return None;
    };
    let resumed = execution.status != Status::NotStarted;
    let span = tracing::Span::current();
    span.record("execution.number", execution.number);
    span.record("application", &execution.application_name);
    let claimed_at = shared.clock.now();
    let mut worker = Worker {
        shared: Arc::clone(&shared),
        handle,
        inbox,
        lease,
        execution: Arc::new(execution),
        facts: Facts::default(),
        steps: JoinSet::new(),
        states: HashMap::new(),
        open,
        told: HashMap::new(),
        clusters: HashMap::new(),
        progress: HashMap::new(),
        topics: HashMap::new(),
        marks: HashMap::new(),
        resumed,
        claimed_at,
        synced: tokio::time::Instant::now(),
    };
    let left = worker.work().await;
    worker.leave_topics();
    match left {
        Ok(at) => at, // it has taken itself off the list
        Err(gone) => {
            if gone == Gone::Lost {
                measure::engine::lease_lost();
                tracing::debug!(execution.id = %id, "execution is another's now, or over");
            }
            shared.forget(id, serial);
            None
        }
    }
}

type Open = HashMap<(StageId, i32), HashMap<String, Intent>>;

async fn claim(shared: &Shared, id: ExecutionId) -> Result<Option<(Lease, Execution, Open)>, crate::store::Error> {
    let Some((lease, execution)) = shared.store.execution_claim(shared.owner, id).await? else { return Ok(None) };
    let mut open = Open::new();
    if execution.status != Status::NotStarted {
        for intent in shared.store.intents(id).await? {
            if intent.closed_at.is_none() {
                open.entry((intent.stage, intent.attempt)).or_default().insert(intent.key.clone(), intent);
            }
        }
    }
    Ok(Some((lease, execution, open)))
}

impl Worker {
    async fn work(&mut self) -> Result<Option<DateTime<Utc>>, Gone> {
        let mut reports = Vec::new();
        loop {
            let next = self.turn(std::mem::take(&mut reports)).await?;
            if self.execution.status.is_complete() {
                self.shared.forget(self.execution.id, self.handle.serial);
                return Ok(None);
            }
            if self.listen() {
                continue;
            }
            if self.idle(next) && self.leave() {
                return Ok(next);
            }
            reports = self.wait(next).await?;
        }
    }

    /// Waits until there is something to do; returns the steps that have ended.
    async fn wait(&mut self, next: Option<DateTime<Utc>>) -> Result<Vec<Report>, Gone> {
        let shared = Arc::clone(&self.shared);
        if shared.stopping.is_cancelled() && self.steps.is_empty() {
            return Err(Gone::Stopped);
        }
        if next.is_none() && self.steps.is_empty() && self.topics.is_empty() {
            measure::violated(Invariant::RunningWithoutWake);
            tracing::error!(execution.id = %self.execution.id, "the execution waits for nothing and is not over");
        }
        let mut reports = Vec::new();
        let mut changed = false;
        tokio::select! {
            () = shared.dead.cancelled() => std::future::pending().await,
            Some(report) = self.steps.join_next() => reports.extend(taken(report)),
            message = self.inbox.recv() => changed |= message.is_some_and(|message| self.hear(message)),
            () = until(&shared, next) => {}
            () = tokio::time::sleep_until(self.synced + RECHECK) => changed = true,
            () = shared.stopping.cancelled(), if !shared.stopping.is_cancelled() => {}
        }
        while let Some(report) = self.steps.try_join_next() {
            reports.extend(taken(report));
        }
        while let Ok(message) = self.inbox.try_recv() {
            changed |= self.hear(message);
        }
        for report in &reports {
            self.absorb(report);
        }
        if changed {
            self.reload().await?;
        }
        Ok(reports)
    }

    /// True: the rows have to be read again.
    fn hear(&mut self, message: Message) -> bool {
        match message {
            Message::Changed => true,
            Message::Noticed(stage) => {
                self.topics.remove(&stage);
                self.facts.noticed.insert(stage);
                false
            }
        }
    }

    /// Takes over what the step's context held.
    fn absorb(&mut self, report: &Report) {
        self.facts.busy.remove(&report.stage);
        let Some(state) = self.states.remove(&report.stage) else { return };
        let mut kept = state.kept();
        self.told.extend(kept.told.drain(..).map(|intent| (intent.id, intent)));
        if !kept.open.is_empty() {
            let open = std::mem::take(&mut kept.open);
            self.open.entry((report.stage, report.before.attempt)).or_default().extend(open);
        }
        let clusters = std::mem::take(&mut kept.clusters);
        if !clusters.is_empty()
            && let Some(stage) = self.execution.stage(report.stage)
        {
            let top = super::decide::topmost(&self.execution, stage).id;
            self.clusters.entry(top).or_default().extend(clusters);
        }
    }

    /// Applies the outcomes, decides, commits, and begins the steps that are due. Returns when to
    /// look again.
    async fn turn(&mut self, mut reports: Vec<Report>) -> Result<Option<DateTime<Utc>>, Gone> {
        let now = self.shared.clock.now();
        for report in &mut reports {
            self.hold_progress(report, now);
        }
        let (decisions, now) = loop {
            let now = self.shared.clock.now();
            let mut changes = Changes::default();
            self.apply(&reports, now, &mut changes);
            let decisions = self.decide(now, &mut changes).await;
            self.close_left_open(&mut changes);
            if changes.is_empty() {
                break (decisions, now);
            }
            for report in &reports {
                self.crash(report).await;
            }
            if self.save(&changes, &decisions, now).await? {
                self.saved(&changes, now);
                break (decisions, now);
            }
        };
        if !self.shared.stopping.is_cancelled() {
            for decision in &decisions {
                if let Decision::Step(stage) = decision {
                    self.begin(*stage, now);
                }
            }
        }
        let next = decisions.iter().filter_map(|decision| match decision {
            Decision::WaitUntil(at) if *at > now => Some(*at),
            _ => None,
        });
        Ok(next.chain(self.held_progress_due()).min())
    }

    fn apply(&mut self, reports: &[Report], now: DateTime<Utc>, changes: &mut Changes) {
        let shared = Arc::clone(&self.shared);
        let setting = Setting { registry: &shared.registry, options: &shared.options, now };
        if !reports.is_empty() {
            let execution = Arc::make_mut(&mut self.execution);
            for report in reports {
                let Later { not_before } = apply::outcome(execution, report, &setting, changes);
                if let Some(at) = not_before {
                    self.facts.not_before.insert(report.stage, at);
                }
            }
        }
        let due: Vec<StageId> = self
            .progress
            .iter()
            .filter(|(_, state)| state.held.is_some() && state.saved_at.is_none_or(|at| at + PROGRESS_EVERY <= now))
            .map(|(stage, _)| *stage)
            .collect();
        for stage in due {
            let held = self.progress.get_mut(&stage).and_then(|state| state.held.take());
            let execution = Arc::make_mut(&mut self.execution);
            let index = execution.stages.iter().position(|row| row.id == stage && row.status == Status::Running);
            if let Some(index) = index {
                execution.stages[index].progress = held;
                changes.stages.insert(index, true);
            }
        }
    }

    /// Progress alone is saved once a second: a poll's newer one is held back, and goes with
    /// whatever is saved next of the stage.
    fn hold_progress(&mut self, report: &mut Report, now: DateTime<Utc>) {
        let Some(state) = self.progress.get_mut(&report.stage) else { return };
        let polls = matches!(&report.end, StepEnd::Returned(Ok(Next::Poll { .. })));
        let recent = state.saved_at.is_some_and(|at| at + PROGRESS_EVERY > now);
        if polls && recent && report.outputs.is_empty() && report.intents.is_empty() {
            if let Some(progress) = report.progress.take() {
                state.held = Some(progress);
            }
        } else if report.progress.is_some() {
            state.held = None;
        } else {
            report.progress = state.held.take();
        }
    }

    fn held_progress_due(&self) -> Option<DateTime<Utc>> {
        let held = self.progress.values().filter(|state| state.held.is_some());
        held.filter_map(|state| state.saved_at).map(|at| at + PROGRESS_EVERY).min()
    }

    /// Decides and applies until nothing is left but steps and waits.
    async fn decide(&mut self, now: DateTime<Utc>, changes: &mut Changes) -> Vec<Decision> {
        let shared = Arc::clone(&self.shared);
        let setting = Setting { registry: &shared.registry, options: &shared.options, now };
        for _ in 0..PASSES_MAX {
            let decisions = decide(&self.execution, now, &self.facts);
            let mut acted = false;
            for decision in &decisions {
                let resolved = match decision {
                    Decision::WaitUntil(_) => continue,
                    Decision::Interrupt(stage) => {
                        if let Some(state) = self.states.get(stage) {
                            state.close();
                        }
                        continue;
                    }
                    Decision::Step(stage) => {
                        if self.execution.stage(*stage).is_none_or(|stage| !stage.cursor.is_null()) {
                            continue;
                        }
                        None
                    }
                    Decision::StartStage(stage) => Some(self.resolve(*stage).await),
                    _ => None,
                };
                acted |= !matches!(decision, Decision::Step(_));
                apply::decision(Arc::make_mut(&mut self.execution), decision, resolved, &setting, changes);
            }
            if !acted {
                return decisions;
            }
        }
        measure::violated(Invariant::EndlessDecisions);
        tracing::error!(execution.id = %self.execution.id, "decisions of this execution do not come to an end");
        vec![Decision::WaitUntil(now + TimeDelta::seconds(30))]
    }

    /// The stage's config with expressions evaluated; those of children are values already.
    async fn resolve(&self, id: StageId) -> Result<Value, Box<Failure>> {
        let Some(stage) = self.execution.stage(id) else { return Ok(Value::Null) };
        if stage.parent.is_some() {
            return Ok(stage.config.clone());
        }
        let refuse = |code: &str, what: String| {
            Box::new(failure(code, cut(&format!("stage `{}`: {what}", stage.key)), Some(id)))
        };
        let evaluated = if expression::has_expression(&stage.config) {
            let (config, vars) = (stage.config.clone(), variables(&self.execution));
            let evaluation = tokio::task::spawn_blocking(move || expression::evaluate(&config, &vars));
            evaluation.await.map_err(|_| refuse("PANIC", "the expressions met a fault".to_owned()))?
        } else {
            expression::evaluate(&stage.config, &Value::Null)
        };
        let config = evaluated
            .map_err(|error| refuse("EXPRESSION", format!("config at `{}`: {}", error.pointer, error.message)))?;
        let max = self.shared.options.config_max;
        if notices::size(&config) > max {
            return Err(refuse("CONFIG_TOO_LARGE", format!("the config has more than {max} bytes once evaluated")));
        }
        Ok(config)
    }

    /// One commit for the turn. False: the rows were newer, and are in memory now.
    async fn save(&mut self, changes: &Changes, decisions: &[Decision], now: DateTime<Utc>) -> Result<bool, Gone> {
        let over = self.execution.status.is_complete();
        let wake_at = if over { None } else { timers::wake_at(decisions, !self.facts.busy.is_empty(), now) };
        // Due it is, and due it stays.
        let advance = !changes.execution && wake_at.is_some_and(|at| at <= now) && self.handle.was_due(now);
        let wake = if advance { Wakes::AsBefore } else { Wakes::At(wake_at) };
        let execution = Arc::make_mut(&mut self.execution);
        let (version, seq) = (execution.version, execution.event_seq);
        let events = i64::try_from(changes.stages.values().filter(|seen| **seen).count()).unwrap_or(i64::MAX);
        execution.version += 1;
        execution.event_seq += events + i64::from(changes.execution);
        let mut pause = Duration::from_millis(20);
        loop {
            let commit = self.commit(changes, version, seq, wake, now);
            self.shared.alive().await;
            match self.shared.store.commit(commit).await {
                Ok(committed) => {
                    if committed.triggered > 0 {
                        self.shared.slots.notify_one();
                    }
                    if let Wakes::At(at) = wake {
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

    fn commit(&self, changes: &Changes, version: i64, mut seq: i64, wake: Wakes, now: DateTime<Utc>) -> Commit {
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
            Wakes::At(wake_at) => Write::UpdateExecution { execution: Box::new(notices::header(execution)), wake_at },
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

    fn saved(&mut self, changes: &Changes, now: DateTime<Utc>) {
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
    fn close_left_open(&self, changes: &mut Changes) {
        for index in changes.stages.keys() {
            let stage = &self.execution.stages[*index];
            if let (true, Some(open)) = (stage.status.is_complete(), self.open.get(&(stage.id, stage.attempt))) {
                changes.intents.extend(open.values().map(|intent| (intent.id, IntentOutcome::Unknown)));
            }
        }
    }

    /// Reads the execution again; keeps trying while the database is away.
    async fn reload(&mut self) -> Result<(), Gone> {
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

    /// Begins the stage's step in a task of its own.
    fn begin(&mut self, id: StageId, turn: DateTime<Utc>) {
        let Some(index) = self.execution.stages.iter().position(|stage| stage.id == id) else { return };
        let stage = &self.execution.stages[index];
        let Some(kind) = self.shared.registry.get(&stage.kind).cloned() else { return };
        if !self.facts.busy.insert(id) {
            return;
        }
        let noticed = self.facts.noticed.remove(&id);
        let not_before = self.facts.not_before.remove(&id);
        // By a timer: since its instant; by anything else: since the turn that found it out began.
        let due = match &stage.wake {
            Wake::At { at, .. } if !noticed => not_before.unwrap_or(*at),
            _ => not_before.unwrap_or(turn),
        };
        measure::engine::lag((self.shared.clock.now() - due).to_std().unwrap_or_default());
        if let Some(topic) = self.topics.remove(&id) {
            self.shared.topics.leave(&topic, self.execution.id, id);
        }
        self.marks.insert(id, self.shared.topics.mark());
        let state = Arc::new(StepState::default());
        if let Some(open) = self.open.remove(&(id, stage.attempt)) {
            state.kept().open = open;
        }
        self.states.insert(id, Arc::clone(&state));
        let context = StepContext {
            shared: Arc::clone(&self.shared),
            lease: self.lease,
            execution: Arc::clone(&self.execution),
            index,
            state,
            worker: self.handle.sender.clone(),
        };
        let span = tracing::error_span!(
            "step",
            stage.id = %id,
            stage.key = context.stage().key,
            stage.kind = context.stage().kind,
            stage.attempt = context.stage().attempt,
        );
        self.steps.spawn(step(context, kind).instrument(span));
    }

    /// Hears the topics that stages wait on. True: a notice has come already.
    fn listen(&mut self) -> bool {
        let mut noticed = false;
        for stage in &self.execution.stages {
            let Wake::At { topic: Some(topic), .. } = &stage.wake else { continue };
            if stage.status != Status::Running
                || self.facts.busy.contains(&stage.id)
                || self.facts.noticed.contains(&stage.id)
                || self.topics.contains_key(&stage.id)
            {
                continue;
            }
            let topics = &self.shared.topics;
            let mark = self.marks.get(&stage.id).copied().unwrap_or_else(|| topics.mark());
            if topics.wait(topic, mark, self.execution.id, stage.id, &self.handle.sender) {
                self.facts.noticed.insert(stage.id);
                noticed = true;
            } else {
                self.topics.insert(stage.id, topic.clone());
            }
        }
        noticed && !self.shared.stopping.is_cancelled()
    }

    fn leave_topics(&mut self) {
        for (stage, topic) in self.topics.drain() {
            self.shared.topics.leave(&topic, self.execution.id, stage);
        }
    }

    /// Nothing runs, nothing is due soon, nobody is listened to.
    fn idle(&self, next: Option<DateTime<Utc>>) -> bool {
        let soon = self.shared.clock.now() + apply::delta(self.shared.options.idle_after);
        let rows_say_all = self.topics.is_empty() && self.facts.not_before.is_empty();
        self.steps.is_empty() && rows_say_all && next.is_none_or(|at| at > soon)
    }

    /// Takes itself off the list of those in memory, unless there is a message.
    fn leave(&mut self) -> bool {
        let shared = Arc::clone(&self.shared);
        let mut active = shared.active();
        if !self.inbox.is_empty() {
            return false;
        }
        active.remove(&self.execution.id);
        true
    }

    async fn crash(&self, report: &Report) {
        let Some(hook) = &self.shared.options.crash else { return };
        let Some(stage) = self.execution.stage(report.stage) else { return };
        let point = CrashPoint {
            execution: self.execution.id,
            kind: stage.kind.clone(),
            stage: stage.key.clone(),
            cursor: report.before.cursor.clone(),
            effect: None,
            moment: Moment::BeforeCommit,
        };
        if hook.0(&point) {
            self.shared.die();
        }
        self.shared.alive().await;
    }
}

fn taken(joined: Result<Report, tokio::task::JoinError>) -> Option<Report> {
    // A step's own panic is caught within it; what is left is the end of the whole engine.
    joined.inspect_err(|error| tracing::error!("a step's task ended by itself: {error}")).ok()
}

async fn until(shared: &Shared, at: Option<DateTime<Utc>>) {
    match at {
        Some(at) => shared.clock.sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// One step, whatever it does.
async fn step(context: StepContext, kind: Arc<dyn DynStage>) -> Report {
    let stage = context.stage();
    let before = Seen::of(stage);
    let id = stage.id;
    let config = stage.resolved.as_ref().unwrap_or(&Value::Null);
    let state = Arc::clone(&context.state);
    let since = tokio::time::Instant::now();
    let run = async {
        let _permit = context.shared.permits.acquire().await;
        kind.step(&context, config, before.cursor.clone()).await
    };
    let end = tokio::select! {
        biased;
        returned = AssertUnwindSafe(run).catch_unwind() => match returned {
            Ok(Err(_)) if state.not_made.load(Ordering::Acquire) => StepEnd::NotMade,
            Ok(returned) => StepEnd::Returned(returned),
            Err(panic) => StepEnd::Panicked(panic_text(panic.as_ref())),
        },
        () = state.kill.notified() => StepEnd::Interrupted,
        () = async {
            state.linger.notified().await;
            tokio::time::sleep(LINGER).await;
        } => StepEnd::Interrupted,
    };
    let mut kept = state.kept();
    measure::engine::step(&stage.kind, outcome(&end), since.elapsed());
    Report {
        stage: id,
        before,
        end,
        progress: kept.progress.take(),
        outputs: std::mem::take(&mut kept.outputs),
        intents: std::mem::take(&mut kept.intents),
    }
}

fn outcome(end: &StepEnd) -> StepOutcome {
    match end {
        StepEnd::NotMade => StepOutcome::NotMade,
        StepEnd::Interrupted => StepOutcome::Interrupted,
        StepEnd::Panicked(_) => StepOutcome::Panicked,
        StepEnd::Returned(Ok(next)) => match next {
            Next::Goto(_) => StepOutcome::Goto,
            Next::Poll { .. } => StepOutcome::Poll,
            Next::Wait { .. } => StepOutcome::Wait,
            Next::Spawn { .. } => StepOutcome::Spawn,
            Next::Done(_) => StepOutcome::Done,
        },
        StepEnd::Returned(Err(StepError::Retry(cause))) if cause.code == NOT_MADE => StepOutcome::NotMade,
        StepEnd::Returned(Err(StepError::Retry(_))) => StepOutcome::Retry,
        StepEnd::Returned(Err(StepError::Fail(_))) => StepOutcome::Fail,
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    cut(&text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panic".to_owned()))
}

/// What expressions may read.
fn variables(execution: &Execution) -> Value {
    let stages: Map<String, Value> = execution
        .stages
        .iter()
        .filter(|stage| stage.parent.is_none())
        .map(|stage: &Stage| (stage.key.clone(), json!({ "outputs": stage.outputs, "status": stage.status.as_str() })))
        .collect();
    json!({
        "parameters": execution.parameters,
        "execution": {
            "id": execution.id,
            "number": execution.number,
            "application": execution.application_name,
            "pipeline": execution.name,
            "startedBy": execution.started_by_name,
        },
        "stages": stages,
        "trigger": execution.trigger.as_ref().map_or_else(|| json!({ "kind": "manual" }), |why| trigger_variables(why)),
    })
}

/// Where messages to a worker go.
pub(super) type Sender = UnboundedSender<Message>;
