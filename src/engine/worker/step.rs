//! One step of a stage, in a task of its own.

use std::future::Future as _;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::FutureExt;
use serde_json::Value;
use tracing::Instrument as _;

use super::Worker;
use crate::engine::apply::{Report, Seen, StepEnd, cut};
use crate::engine::context::{StepContext, StepState};
use crate::engine::contract::{DynStage, NOT_MADE, Next, StepError};
use crate::engine::decide::Decision;
use crate::engine::upon::Upon;
use crate::measure::{self, engine::StepOutcome};
use crate::model::{StageId, Wake};

/// A step that has to end may take this long after its last call was answered.
const LINGER: Duration = Duration::from_secs(10);

impl Worker {
    /// Begins the steps that are due, in tasks of their own; those upon what is not saved yet up to
    /// where they first wait, so that their intents can go along.
    pub(super) async fn begin(&mut self, decisions: &[Decision], turn: DateTime<Utc>, upon: &Upon) {
        if self.shared.is_stopping() {
            return;
        }
        for decision in decisions {
            let Decision::Step(stage) = decision else { continue };
            let Some(step) = self.prepare(*stage, turn, upon) else { continue };
            let mut step = Box::pin(step);
            match std::future::poll_fn(|task| Poll::Ready(step.as_mut().poll(task))).await {
                Poll::Ready(report) => drop(self.steps.spawn(std::future::ready(report))),
                Poll::Pending => drop(self.steps.spawn(step)),
            }
        }
    }

    /// What the steps have begun upon has been saved, or has not.
    pub(super) fn begun_upon(&mut self, saved: bool) {
        let now = self.shared.clock.now();
        for (stage, due) in std::mem::take(&mut self.begun) {
            if saved {
                measure::engine::lag((now - due).to_std().unwrap_or_default());
            } else {
                // It comes back as interrupted, and whatever made it due is still so.
                self.facts.noticed.insert(stage);
            }
        }
    }

    /// The stage's next step; None where one is under way.
    fn prepare(
        &mut self,
        id: StageId,
        turn: DateTime<Utc>,
        upon: &Upon,
    ) -> Option<impl Future<Output = Report> + Send + use<>> {
        let index = self.execution.stages.iter().position(|stage| stage.id == id)?;
        let stage = &self.execution.stages[index];
        if !self.facts.busy.insert(id) {
            return None;
        }
        let noticed = self.facts.noticed.remove(&id);
        let not_before = self.facts.not_before.remove(&id);
        // By a timer: since its instant; by anything else: since the turn that found it out began.
        let due = match &stage.wake {
            Wake::At { at, .. } if !noticed => not_before.unwrap_or(*at),
            _ => not_before.unwrap_or(turn),
        };
        self.begun.push((id, due));
        if let Some(topic) = self.topics.remove(&id) {
            self.shared.topics.leave(&topic, self.execution.id, id);
        }
        self.marks.insert(id, self.shared.topics.mark());
        let state = Arc::new(StepState::default());
        if let Some(open) = self.open.remove(&(id, stage.attempt)) {
            state.kept().open = open;
        }
        self.states.insert(id, Arc::clone(&state));
        let kind = self.shared.registry.get(&stage.kind).cloned();
        let context = StepContext {
            shared: Arc::clone(&self.shared),
            lease: self.lease,
            execution: Arc::clone(&self.execution),
            index,
            state,
            upon: upon.clone(),
            worker: self.handle.sender.clone(),
        };
        let span = tracing::error_span!(
            "step",
            stage.id = %id,
            stage.key = context.stage().key,
            stage.kind = context.stage().kind,
            stage.attempt = context.stage().attempt,
        );
        Some(step(context, kind).instrument(span))
    }
}

/// One step, whatever it does.
async fn step(context: StepContext, kind: Option<Arc<dyn DynStage>>) -> Report {
    let stage = context.stage();
    // Another binary has begun it.
    let Some(kind) = kind else { return Report::of_unknown_kind(stage) };
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
    let end = if context.upon.holds().await { end } else { StepEnd::Interrupted };
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
