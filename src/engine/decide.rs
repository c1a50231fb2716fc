//! What may happen next in an execution: pure, synchronous, the whole semantics of the graph.
//!
//! Siblings (the top-level stages, or one parent's children of one phase) are a *scope*. A scope
//! starts what has its requirements, ends as [`Verdict`] says, and when one of it fails the
//! pipeline, the others are ended. A stage goes through: before children, own steps (with the
//! body children they spawn), after children; when it ends badly: what runs below it is ended
//! first, then its unwind children run one by one, then it is over.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};

use crate::model::{CancelMode, Execution, Failure, OnFailure, Phase, Stage, StageId, Status, Unwinding, Wake};

/// One thing to do. Applied in order; then decide again, until nothing but steps and waits is left.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// The execution begins.
    StartExecution,
    /// The execution ran into its deadline: it fails, what runs is ended.
    FailExecution(Failure),
    /// The stage's requirements are there: evaluate its config and begin.
    StartStage(StageId),
    /// The stage's next step is due.
    Step(StageId),
    /// The stage has to end, and a step of it is under way: that ends first.
    Interrupt(StageId),
    /// The stage fails for this reason; it ends once nothing runs below it.
    Fail {
        /// The stage.
        stage: StageId,
        /// Why.
        failure: Failure,
    },
    /// The stage ends badly, now that nothing runs below it: by way of its unwind if it has begun.
    End {
        /// The stage.
        stage: StageId,
        /// What it ends as.
        status: Status,
        /// Its unwind is asked for first.
        unwind: bool,
    },
    /// The stage is over.
    Finish {
        /// The stage.
        stage: StageId,
        /// What it ended as.
        status: Status,
    },
    /// Nothing runs and nothing may start.
    FinishExecution {
        /// What it ended as.
        status: Status,
        /// Why, where it failed.
        failure: Option<Failure>,
    },
    /// Look again at that instant.
    WaitUntil(DateTime<Utc>),
}

/// What the holder of the execution knows beyond its rows.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// A step of these stages is under way.
    pub busy: HashSet<StageId>,
    /// A notice came on the topic these stages wait on.
    pub noticed: HashSet<StageId>,
    /// Later instants than the rows say: polls that changed nothing, retries of a signalled step.
    pub not_before: HashMap<StageId, DateTime<Utc>>,
}

/// How a scope stands.
#[derive(Debug, Clone, PartialEq)]
enum Verdict {
    /// Something runs or may start.
    Pending,
    Good,
    Failed(Box<Failure>),
    Canceled,
}

/// Why everything in a scope has to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// The execution is cancelled: what has not begun is cancelled too.
    Cancel,
    /// A sibling failed, the parent ends, or the execution is past its deadline: what has not
    /// begun stays so.
    Abort,
}

/// The next decisions; empty when the execution is over.
#[must_use]
pub fn decide(execution: &Execution, now: DateTime<Utc>, facts: &Facts) -> Vec<Decision> {
    if execution.status.is_complete() {
        return Vec::new();
    }
    let mut pass = Pass { execution, now, facts, children: children_of(execution), out: Vec::new() };
    pass.execution();
    pass.out
}

fn children_of(execution: &Execution) -> HashMap<(StageId, u8), Vec<usize>> {
    let mut children: HashMap<_, Vec<usize>> = HashMap::new();
    for (index, stage) in execution.stages.iter().enumerate() {
        if let Some(parent) = stage.parent {
            children.entry((parent, stage.phase as u8)).or_default().push(index);
        }
    }
    children
}

struct Pass<'a> {
    execution: &'a Execution,
    now: DateTime<Utc>,
    facts: &'a Facts,
    children: HashMap<(StageId, u8), Vec<usize>>,
    out: Vec<Decision>,
}

impl<'a> Pass<'a> {
    fn stage(&self, index: usize) -> &'a Stage {
        &self.execution.stages[index]
    }

    fn scope(&self, parent: StageId, phase: Phase) -> Vec<usize> {
        self.children.get(&(parent, phase as u8)).cloned().unwrap_or_default()
    }

    fn execution(&mut self) {
        let execution = self.execution;
        let mut failed = execution.failure.clone();
        if failed.is_none() && execution.cancel.is_none() && execution.deadline <= self.now {
            let late = failure("TIMEOUT", "the execution did not end before its deadline".to_owned(), None);
            self.out.push(Decision::FailExecution(late.clone()));
            failed = Some(late);
        }
        let ending = match (&execution.cancel, &failed) {
            (Some(_), _) => Some(Ending::Cancel),
            (None, Some(_)) => Some(Ending::Abort),
            (None, None) => None,
        };
        if execution.status == Status::NotStarted && ending.is_none() {
            self.out.push(Decision::StartExecution);
        }
        let top: Vec<usize> = (0..execution.stages.len()).filter(|index| self.stage(*index).parent.is_none()).collect();
        let verdict = self.verdict(&top, ending);
        if verdict == Verdict::Pending {
            self.walk(&top, ending, false);
            self.until(execution.deadline);
            return;
        }
        let (status, failure) = match (verdict, failed) {
            (_, Some(failure)) => (Status::Failed, Some(failure)),
            (Verdict::Failed(failure), None) => (Status::Failed, Some(*failure)),
            // A cancelled stage has a failure only where its unwind did not bring everything back.
            (Verdict::Canceled, None) => {
                let failed = self.first(&top, |stage| stage.status == Status::Canceled && stage.failure.is_some());
                (Status::Canceled, failed.map(failure_of))
            }
            _ => (Status::Succeeded, None),
        };
        self.out.push(Decision::FinishExecution { status, failure });
    }

    /// How the siblings stand together. With an `ending`, what has not begun will not begin.
    fn verdict(&self, scope: &[usize], ending: Option<Ending>) -> Verdict {
        let has = |wanted: Status| scope.iter().any(|index| self.stage(*index).status == wanted);
        if has(Status::Running) || has(Status::Paused) {
            return Verdict::Pending;
        }
        if ending == Some(Ending::Cancel) && has(Status::NotStarted) {
            return Verdict::Pending; // until each of them is cancelled
        }
        if let Some(failed) = self.first(scope, |stage| stage.status == Status::Failed) {
            return Verdict::Failed(Box::new(failure_of(failed)));
        }
        if ending.is_none() && has(Status::NotStarted) {
            let ready = self.ready(scope);
            if scope.iter().any(|index| ready.contains(index)) {
                return Verdict::Pending;
            }
        }
        if has(Status::Canceled) {
            return Verdict::Canceled;
        }
        let spoils =
            |stage: &Stage| stage.status == Status::Stopped && stage.on_failure == OnFailure::StopBranchThenFail;
        if let Some(stopped) = self.first(scope, spoils) {
            return Verdict::Failed(Box::new(failure_of(stopped)));
        }
        if ending.is_none()
            && !has(Status::Stopped)
            && let Some(stuck) = self.first(scope, |stage| stage.status == Status::NotStarted)
        {
            return Verdict::Failed(Box::new(failure(
                "UNREACHABLE",
                format!("stage `{}` can never start: what it requires is missing or requires it in turn", stuck.key),
                Some(stuck.id),
            )));
        }
        Verdict::Good
    }

    fn first(&self, scope: &[usize], matches: impl Fn(&Stage) -> bool) -> Option<&'a Stage> {
        scope
            .iter()
            .map(|index| self.stage(*index))
            .filter(|stage| matches(stage))
            .min_by_key(|stage| (stage.ended_at, stage.position))
    }

    /// Those that have not begun and whose requirements all let them start.
    fn ready(&self, scope: &[usize]) -> HashSet<usize> {
        let lets: HashMap<&str, bool> = scope
            .iter()
            .map(|index| self.stage(*index))
            .map(|stage| (stage.key.as_str(), stage.status.lets_downstream_start()))
            .collect();
        let ready = |stage: &Stage| stage.requires.iter().all(|key| lets.get(key.as_str()).copied().unwrap_or(false));
        scope
            .iter()
            .copied()
            .filter(|index| self.stage(*index).status == Status::NotStarted && ready(self.stage(*index)))
            .collect()
    }

    fn walk(&mut self, scope: &[usize], inherited: Option<Ending>, unwound: bool) {
        // A stage that fails the pipeline ends its siblings at once, before its own unwind is over.
        let fails = scope.iter().any(|index| {
            let stage = self.stage(*index);
            stage.status == Status::Failed
                || (!stage.status.is_complete()
                    && stage.failure.is_some()
                    && stage.on_failure == OnFailure::FailPipeline)
        });
        let ending = inherited.or(fails.then_some(Ending::Abort));
        let ready = if ending.is_none() { self.ready(scope) } else { HashSet::new() };
        for index in scope {
            let stage = self.stage(*index);
            match (stage.status, ending) {
                (Status::NotStarted, Some(Ending::Cancel)) => {
                    self.out.push(Decision::Finish { stage: stage.id, status: Status::Canceled });
                }
                (Status::NotStarted, None) if ready.contains(index) => self.out.push(Decision::StartStage(stage.id)),
                (Status::Running | Status::Paused, _) => self.running(stage, ending, unwound),
                _ => {}
            }
        }
    }

    fn running(&mut self, stage: &'a Stage, ending: Option<Ending>, unwound: bool) {
        if let Some(unwinding) = stage.unwinding {
            // Not ended by the cancel or failure that began it.
            return self.unwinding(stage, unwinding);
        }
        let mut fails = stage.failure.is_some();
        if !fails && ending.is_none() && stage.deadline.is_some_and(|deadline| deadline <= self.now) {
            let message = format!("stage `{}` did not end within {} s", stage.key, stage.timeout_seconds);
            self.out.push(Decision::Fail { stage: stage.id, failure: failure("TIMEOUT", message, Some(stage.id)) });
            fails = true;
        }
        if fails || ending.is_some() {
            let status = if fails { stage.on_failure.status() } else { Status::Canceled };
            return self.ending(stage, status, ending.unwrap_or(Ending::Abort), unwound);
        }

        if let Some(deadline) = stage.deadline {
            self.until(deadline);
        }
        let before = self.scope(stage.id, Phase::Before);
        if self.below(stage, &before, false, unwound) == Below::Waits {
            return;
        }
        let after = self.scope(stage.id, Phase::After);
        if !after.is_empty() {
            if self.below(stage, &after, !unwound, unwound) == Below::Done {
                self.out.push(Decision::Finish { stage: stage.id, status: Status::Succeeded });
            }
            return;
        }
        if stage.status == Status::Paused || self.facts.busy.contains(&stage.id) {
            return;
        }
        let due = match &stage.wake {
            Wake::Now => None,
            Wake::At { at, .. } => Some(*at),
            Wake::Signal { payload: Some(_), .. } => None,
            Wake::Signal { until, .. } => Some(*until),
            Wake::Children => {
                let body = self.scope(stage.id, Phase::Body);
                if self.below(stage, &body, !unwound, unwound) == Below::Waits {
                    return;
                }
                None
            }
        };
        let due = due.max(self.facts.not_before.get(&stage.id).copied());
        match due {
            Some(due) if due > self.now && !self.facts.noticed.contains(&stage.id) => self.until(due),
            _ => self.out.push(Decision::Step(stage.id)),
        }
    }

    /// Goes on with the children of one phase; says whether all of them have ended well.
    fn below(&mut self, stage: &Stage, scope: &[usize], unwind: bool, unwound: bool) -> Below {
        if scope.is_empty() {
            return Below::Done;
        }
        match self.verdict(scope, None) {
            Verdict::Good => return Below::Done,
            Verdict::Pending => self.walk(scope, None, unwound),
            Verdict::Failed(failure) => self.out.push(Decision::Fail { stage: stage.id, failure: *failure }),
            Verdict::Canceled => {
                self.out.push(Decision::End { stage: stage.id, status: Status::Canceled, unwind });
            }
        }
        Below::Waits
    }

    /// Innermost running stages first, then their parents; a step under way ends first.
    fn ending(&mut self, stage: &'a Stage, status: Status, below: Ending, unwound: bool) {
        let mut quiet = true;
        for phase in [Phase::Before, Phase::Body, Phase::After] {
            let scope = self.scope(stage.id, phase);
            self.walk(&scope, Some(below), unwound);
            quiet &= !scope.iter().any(|index| matches!(self.stage(*index).status, Status::Running | Status::Paused));
        }
        if self.facts.busy.contains(&stage.id) {
            self.out.push(Decision::Interrupt(stage.id));
            quiet = false;
        }
        if quiet {
            let before = self.scope(stage.id, Phase::Before);
            let begun = self.verdict(&before, None) == Verdict::Good;
            self.out.push(Decision::End { stage: stage.id, status, unwind: begun && !unwound && !self.left() });
        }
    }

    /// Somebody has said that all is to be left as it is.
    fn left(&self) -> bool {
        self.execution.cancel.as_ref().is_some_and(|cancel| cancel.mode == CancelMode::Leave)
    }

    /// The unwind children one after the other, each whatever became of the one before, until the
    /// deadline is over or somebody says that all is to be left as it is.
    fn unwinding(&mut self, stage: &'a Stage, unwinding: Unwinding) {
        let scope = self.scope(stage.id, Phase::Unwind);
        if unwinding.deadline <= self.now || self.left() {
            let mut open = false;
            for index in scope {
                let child = self.stage(index);
                match child.status {
                    Status::NotStarted => {
                        open = true;
                        self.out.push(Decision::Finish { stage: child.id, status: Status::Canceled });
                    }
                    Status::Running | Status::Paused => {
                        open = true;
                        self.running(child, Some(Ending::Abort), true);
                    }
                    _ => {}
                }
            }
            if !open {
                self.out.push(Decision::Finish { stage: stage.id, status: unwinding.then });
            }
            return;
        }
        self.until(unwinding.deadline);
        match scope.iter().map(|index| self.stage(*index)).find(|child| !child.status.is_complete()) {
            None => self.out.push(Decision::Finish { stage: stage.id, status: unwinding.then }),
            Some(child) if child.status == Status::NotStarted => self.out.push(Decision::StartStage(child.id)),
            Some(child) => self.running(child, None, true),
        }
    }

    fn until(&mut self, at: DateTime<Utc>) {
        if at > self.now {
            self.out.push(Decision::WaitUntil(at));
        }
    }
}

#[derive(PartialEq, Eq)]
enum Below {
    Done,
    Waits,
}

/// A failure with a code and a message.
pub(super) fn failure(code: &str, message: String, stage: Option<StageId>) -> Failure {
    Failure {
        code: code.to_owned(),
        message,
        hint: None,
        stage,
        cause: None,
        attempt: 1,
        retryable: false,
        log_tail: None,
    }
}

fn failure_of(stage: &Stage) -> Failure {
    stage.failure.clone().unwrap_or_else(|| failure("FAILED", format!("stage `{}` failed", stage.key), Some(stage.id)))
}

/// Whether the stage is an unwind child or stands below one.
#[must_use]
pub(super) fn is_unwind(execution: &Execution, stage: &Stage) -> bool {
    let mut stage = Some(stage);
    while let Some(present) = stage {
        if present.phase == Phase::Unwind {
            return true;
        }
        stage = present.parent.and_then(|parent| execution.stage(parent));
    }
    false
}

/// The topmost stage of the stage's ancestry, itself included.
#[must_use]
pub(super) fn topmost<'a>(execution: &'a Execution, stage: &'a Stage) -> &'a Stage {
    let mut top = stage;
    while let Some(parent) = top.parent.and_then(|parent| execution.stage(parent)) {
        top = parent;
    }
    top
}
