//! Holds one claimed execution in memory: runs the steps that are due, applies what they return,
//! decides, and saves each turn as one commit.

mod config;
mod save;
mod step;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::task::JoinSet;

use super::apply::{self, Changes, Later, Report, Setting, StepEnd};
use super::context::StepState;
use super::contract::Next;
use super::decide::{Decision, Facts, decide};
use super::runner::{Handle, Shared};
use super::upon::Upon;
use super::{CrashPoint, Moment};
use crate::measure::{self, Invariant};
use crate::model::{Execution, ExecutionId, IntentId, Progress, StageId, Status, Wake};
use crate::store::{ClusterKey, Intent, Lease};

/// Where messages to a worker go.
pub(super) type Sender = UnboundedSender<Message>;

/// What a worker is told from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Message {
    /// The rows may have changed: cancelled, signalled.
    Changed,
    /// A notice came on the topic that the stage waits on.
    Noticed(StageId),
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

/// How often progress alone is saved.
const PROGRESS_EVERY: TimeDelta = TimeDelta::seconds(1);

/// See the module.
pub(super) struct Worker {
    shared: Arc<Shared>,
    handle: Handle,
    inbox: UnboundedReceiver<Message>,
    lease: Lease,
    execution: Arc<Execution>,
    facts: Facts,
    steps: JoinSet<Report>,
    /// Steps that have begun upon what may not be saved yet, and since when they are due.
    begun: Vec<(StageId, DateTime<Utc>)>,
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
        begun: Vec::new(),
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
        // Where there was something to save they have begun upon it.
        self.begin(&decisions, now, &Upon::saved()).await;
        self.begun_upon(true);
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
        for _ in 0..shared.options.passes_max {
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
