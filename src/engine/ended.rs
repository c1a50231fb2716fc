//! What is over, for those who trace: told after it is committed. Those who listen know each by
//! its id, so that telling twice says nothing new; and twice it is told where an owner may have
//! died before it could hand on what it knew.

use std::fmt;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};

use super::runner::Shared;
use crate::model::{Execution, ExecutionId, Stage, Status};
use crate::store::{Error, ExecutionFilter, Intent, PageRequest};

/// What ended this long before a server's start may not have been handed on by the one before.
const AGAIN: TimeDelta = TimeDelta::seconds(60);

/// Something that is over.
#[derive(Debug, Clone)]
pub enum Ended {
    /// An execution; without its stages.
    Execution(Box<Execution>),
    /// A stage; without config, cursor and outputs.
    Stage(Box<Stage>),
    /// A call outside, with its outcome.
    Effect(Box<Intent>),
}

/// Who is told. Must not block.
#[derive(Clone)]
pub struct EndedHook(pub Arc<dyn Fn(Ended) + Send + Sync>);

impl fmt::Debug for EndedHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EndedHook")
    }
}

impl EndedHook {
    pub(super) fn execution(&self, execution: &Execution) {
        self.0(Ended::Execution(Box::new(execution.header())));
    }

    pub(super) fn stage(&self, stage: &Stage) {
        let stage = Stage { progress: None, requires: Vec::new(), tasks: Vec::new(), ..stage.header() };
        self.0(Ended::Stage(Box::new(stage)));
    }

    pub(super) fn effect(&self, intent: Intent) {
        self.0(Ended::Effect(Box::new(intent)));
    }
}

/// Tells what was over in an execution before the instant: what earlier owners knew.
pub(super) async fn tell_before(shared: &Shared, execution: Execution, before: DateTime<Utc>) -> Result<(), Error> {
    let Some(hook) = &shared.options.ended else { return Ok(()) };
    for stage in execution.stages.iter().filter(|stage| stage.ended_at.is_some_and(|at| at <= before)) {
        hook.stage(stage);
    }
    for intent in shared.store.intents(execution.id).await? {
        if intent.closed_at.is_some_and(|at| at <= before) {
            hook.effect(intent);
        }
    }
    Ok(())
}

/// Tells once more what ended shortly before this start.
pub(super) async fn tell_again(shared: &Shared) -> Result<(), Error> {
    let Some(hook) = &shared.options.ended else { return Ok(()) };
    let now = shared.clock.now();
    let page = PageRequest { after: None, before: None, limit: 100, backward: false };
    let statuses = vec![Status::Succeeded, Status::Failed, Status::Canceled];
    let filter = ExecutionFilter { statuses, ..ExecutionFilter::default() };
    let recent = shared.store.executions(&filter, &page).await?.items.into_iter().map(|(_, execution)| execution);
    let recent: Vec<Execution> =
        recent.filter(|execution| execution.ended_at.is_some_and(|at| at + AGAIN >= now)).collect();
    for execution in recent {
        let whole: Option<Execution> = shared.store.execution(execution.id).await?;
        let id: ExecutionId = execution.id;
        hook.execution(&execution);
        if let Some(whole) = whole {
            tracing::debug!(execution.id = %id, "what ended shortly before the start is told again");
            tell_before(shared, whole, now).await?;
        }
    }
    Ok(())
}
