//! What the engine does.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, PoisonError, RwLock};
use std::time::Duration;

use metrics::{Counter, Histogram, counter, describe_counter, describe_histogram, histogram};

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepOutcome {
    /// The next step is due at once.
    Goto,
    /// It looks again later.
    Poll,
    /// It waits for a signal.
    Wait,
    /// It waits for its children.
    Spawn,
    /// The stage's own work is over.
    Done,
    /// It failed and is tried again.
    Retry,
    /// It failed, and so does its stage.
    Fail,
    /// A call of it was refused before it was made; the step counts as not run.
    NotMade,
    /// It was ended from without.
    Interrupted,
    /// Code of the stage panicked; counted as a violated invariant too.
    Panicked,
}

const STEP_OUTCOMES: [&str; 10] =
    ["goto", "poll", "wait", "spawn", "done", "retry", "fail", "not_made", "interrupted", "panicked"];

/// Statuses in which something ends.
const ENDS: [&str; 6] = ["SUCCEEDED", "FAILED_CONTINUE", "FAILED", "CANCELED", "STOPPED", "SKIPPED"];

/// How a call outside ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EffectOutcome {
    /// The other side has done it.
    Done,
    /// The other side has answered with an error.
    Failed,
    /// Nobody knows.
    Unknown,
    /// Refused before it was made.
    NotMade,
}

const EFFECT_OUTCOMES: [&str; 4] = ["done", "failed", "unknown", "not_made"];

impl EffectOutcome {
    /// The label's value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        EFFECT_OUTCOMES[self as usize]
    }
}

/// Of one kind of stage.
struct Kind {
    steps: [Counter; 10],
    durations: Histogram,
    ended: [Counter; 6],
}

impl Kind {
    fn new(kind: &str) -> Self {
        let kind = kind.to_owned();
        Self {
            steps: STEP_OUTCOMES
                .map(|outcome| counter!("gennaker_stage_steps_total", "kind" => kind.clone(), "outcome" => outcome)),
            durations: histogram!("gennaker_stage_step_duration_seconds", "kind" => kind.clone()),
            ended: ENDS
                .map(|status| counter!("gennaker_stages_ended_total", "kind" => kind.clone(), "status" => status)),
        }
    }
}

/// By kind; kinds are those of the registry, so there are few.
static KINDS: LazyLock<RwLock<HashMap<String, Arc<Kind>>>> = LazyLock::new(RwLock::default);

fn of_kind(kind: &str) -> Arc<Kind> {
    if let Some(known) = KINDS.read().unwrap_or_else(PoisonError::into_inner).get(kind) {
        return Arc::clone(known);
    }
    let mut kinds = KINDS.write().unwrap_or_else(PoisonError::into_inner);
    Arc::clone(kinds.entry(kind.to_owned()).or_insert_with(|| Arc::new(Kind::new(kind))))
}

static STARTED: LazyLock<Counter> = LazyLock::new(|| counter!("gennaker_executions_started_total"));
static ENDED: LazyLock<[Counter; 6]> =
    LazyLock::new(|| ENDS.map(|status| counter!("gennaker_executions_ended_total", "status" => status)));
static EFFECTS: LazyLock<[Counter; 4]> =
    LazyLock::new(|| EFFECT_OUTCOMES.map(|outcome| counter!("gennaker_effects_total", "outcome" => outcome)));
static EFFECT_DURATION: LazyLock<Histogram> = LazyLock::new(|| histogram!("gennaker_effect_duration_seconds"));
static RETRIES: LazyLock<Counter> = LazyLock::new(|| counter!("gennaker_step_retries_total"));
static LEASES_LOST: LazyLock<Counter> = LazyLock::new(|| counter!("gennaker_leases_lost_total"));
static CALLS_FENCED: LazyLock<Counter> = LazyLock::new(|| counter!("gennaker_calls_fenced_total"));
static SCAN_DURATION: LazyLock<Histogram> = LazyLock::new(|| histogram!("gennaker_scan_duration_seconds"));
static LAG: LazyLock<Histogram> = LazyLock::new(|| histogram!("gennaker_step_lag_seconds"));

pub(super) fn describe() {
    describe_counter!("gennaker_executions_started_total", "Executions that this server began.");
    describe_counter!("gennaker_executions_ended_total", "Executions that ended at this server, by how.");
    describe_counter!("gennaker_stage_steps_total", "Steps of stages, by kind and by what came of them.");
    describe_histogram!("gennaker_stage_step_duration_seconds", "How long steps took, by kind of stage.");
    describe_counter!("gennaker_stages_ended_total", "Stages that ended, by kind and by how.");
    describe_counter!("gennaker_effects_total", "Calls to the outside, by what came of them.");
    describe_histogram!("gennaker_effect_duration_seconds", "How long calls to the outside took.");
    describe_counter!("gennaker_step_retries_total", "Steps that failed and are tried again.");
    describe_counter!("gennaker_leases_lost_total", "Executions that another server took from this one.");
    describe_counter!(
        "gennaker_calls_fenced_total",
        "Late calls of this server that a host refused, since another server had acted after them."
    );
    describe_histogram!("gennaker_scan_duration_seconds", "How long the search for due executions took.");
    describe_histogram!("gennaker_step_lag_seconds", "From the instant at which a step was due to its beginning.");
    LazyLock::force(&STARTED);
    LazyLock::force(&ENDED);
    LazyLock::force(&EFFECTS);
    LazyLock::force(&EFFECT_DURATION);
    LazyLock::force(&RETRIES);
    LazyLock::force(&LEASES_LOST);
    LazyLock::force(&CALLS_FENCED);
    LazyLock::force(&SCAN_DURATION);
    LazyLock::force(&LAG);
}

/// The metrics of these kinds of stages are there from now on, at 0.
pub fn kinds<'a>(kinds: impl IntoIterator<Item = &'a str>) {
    kinds.into_iter().for_each(|kind| drop(of_kind(kind)));
}

/// An execution began.
pub fn execution_started() {
    STARTED.increment(1);
}

/// An execution ended with the status of that name.
pub fn execution_ended(status: &str) {
    if let Some(index) = ENDS.iter().position(|end| *end == status) {
        ENDED[index].increment(1);
    }
}

/// A step of a stage of that kind ended.
pub fn step(kind: &str, outcome: StepOutcome, took: Duration) {
    let metrics = of_kind(kind);
    metrics.steps[outcome as usize].increment(1);
    metrics.durations.record(took);
    if outcome == StepOutcome::Retry {
        RETRIES.increment(1);
    }
}

/// A stage of that kind ended with the status of that name.
pub fn stage_ended(kind: &str, status: &str) {
    if let Some(index) = ENDS.iter().position(|end| *end == status) {
        of_kind(kind).ended[index].increment(1);
    }
}

/// A call to the outside ended; the time it took, if it was made.
pub fn effect(outcome: EffectOutcome, took: Option<Duration>) {
    EFFECTS[outcome as usize].increment(1);
    if let Some(took) = took {
        EFFECT_DURATION.record(took);
    }
}

/// Another server has taken an execution.
pub fn lease_lost() {
    LEASES_LOST.increment(1);
}

/// A host has refused a late call.
pub fn call_fenced() {
    CALLS_FENCED.increment(1);
}

/// The search for due executions took this long.
pub fn scanned(took: Duration) {
    SCAN_DURATION.record(took);
}

/// A step begins this long after it was due.
pub fn lag(lag: Duration) {
    LAG.record(lag);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_stand_in_the_order_of_their_names() {
        assert_eq!(STEP_OUTCOMES[StepOutcome::Goto as usize], "goto");
        assert_eq!(STEP_OUTCOMES[StepOutcome::Panicked as usize], "panicked");
        assert_eq!(STEP_OUTCOMES[StepOutcome::NotMade as usize], "not_made");
        assert_eq!(EFFECT_OUTCOMES[EffectOutcome::NotMade as usize], "not_made");
    }
}
