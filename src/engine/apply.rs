//! What a decision or a step's outcome does to the rows: pure, on the execution in memory, with a
//! list of what changed for the commit.

mod children;
mod decision;
mod step;
mod tasks;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

pub(super) use children::new_stage;
pub(super) use decision::decision;
pub(super) use step::{Later, Report, Seen, StepEnd, outcome};

use super::contract::Registry;
use super::{DEADLINE_MAX, Options, notices};
use crate::model::{Failure, IntentId, Judgment, Stage, StageId};
use crate::store::IntentOutcome;

/// The signal whose wait means that a person has to approve.
pub(super) const JUDGE: &str = Judgment::SIGNAL;
/// Stages an execution may have, children included.
const STAGES_MAX: usize = 2_000;
/// Bytes of a failure's message, hint or cause.
const TEXT_MAX: usize = 4 * 1024;

/// Between the stages of a chain: until it is taken up, and until each next one begins.
const BETWEEN: Duration = Duration::from_secs(3600);

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

/// Until when an execution with these stages may take: for as long as any does, or until the longest
/// chain of them has used up the timeout of each.
pub(super) fn deadline(created_at: DateTime<Utc>, stages: &[Stage], options: &Options) -> DateTime<Utc> {
    let mut ends: HashMap<&str, i64> = HashMap::new();
    // Each round sees through one more requirement; a graph without a cycle has no longer chain.
    for _ in stages {
        let before = ends.clone();
        for stage in stages {
            let starts = stage.requires.iter().filter_map(|key| ends.get(key.as_str())).max().copied().unwrap_or(0);
            ends.insert(&stage.key, starts.saturating_add(stage.timeout_seconds));
        }
        if ends == before {
            break;
        }
    }
    let chain = ends.into_values().max().and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(0);
    let span = options.deadline_default.max(Duration::from_secs(chain).saturating_add(BETWEEN));
    created_at + delta(span.min(DEADLINE_MAX))
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
