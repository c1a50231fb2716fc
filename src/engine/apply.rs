//! What a decision or a step's outcome does to the rows: pure, on the execution in memory, with a
//! list of what changed for the commit.

mod children;
mod decision;
mod step;
mod tasks;

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

pub(super) use children::new_stage;
pub(super) use decision::decision;
pub(super) use step::{Later, Report, Seen, StepEnd, outcome};

use super::contract::Registry;
use super::{Options, notices};
use crate::model::{Failure, IntentId, Stage, StageId};
use crate::store::IntentOutcome;

/// The signal whose wait means that a person has to approve.
pub(super) const JUDGE: &str = "judge";
/// Stages an execution may have, children included.
const STAGES_MAX: usize = 2_000;
/// Bytes of a failure's message, hint or cause.
const TEXT_MAX: usize = 4 * 1024;

/// What a turn changed, for its commit.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Index of the stage; true: people see the change, so there is an event.
    pub stages: BTreeMap<usize, bool>,
    /// The execution's own fields.
    pub execution: bool,
    pub intents: Vec<(IntentId, IntentOutcome)>,
    pub notifications: Vec<notices::Told>,
    /// Top-level stages that ended: their cluster claims are given back.
    pub released: Vec<StageId>,
}

impl Changes {
    pub fn is_empty(&self) -> bool {
        self.stages.is_empty() && !self.execution && self.intents.is_empty()
    }

    fn seen(&mut self, index: usize) {
        self.stages.insert(index, true);
    }

    fn silent(&mut self, index: usize) {
        self.stages.entry(index).or_insert(false);
    }
}

/// What is fixed while something is applied.
pub(super) struct Setting<'a> {
    pub registry: &'a Registry,
    pub options: &'a Options,
    pub now: DateTime<Utc>,
}

fn fail(stage: &mut Stage, failure: Failure, index: usize, changes: &mut Changes) {
    if stage.failure.is_none() {
        let attempt = if failure.stage == Some(stage.id) { stage.attempt } else { failure.attempt };
        stage.failure = Some(Failure { attempt, ..failure });
        changes.seen(index);
    }
}

/// The beginning of a text, at most [`TEXT_MAX`] bytes.
pub(super) fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(TEXT_MAX)].to_owned()
}

fn cut_front(text: &str) -> String {
    text[text.ceil_char_boundary(text.len().saturating_sub(TEXT_MAX))..].to_owned()
}

pub(super) fn delta(span: Duration) -> TimeDelta {
    TimeDelta::from_std(span).unwrap_or(TimeDelta::days(365 * 100)).min(TimeDelta::days(365 * 100))
}
