//! What operators count: the metrics of the process, behind the facade `metrics`. A leaf that all
//! may name, as they may `clock`. Handles are made once and kept; nothing is formatted on the way
//! of a request or a commit.
//!
//! Labels have few values, known beforehand: never an id, never a name that a user gives.

pub mod api;
pub mod engine;
pub mod process;
pub mod store;
pub mod text;
pub mod traces;

use std::sync::{LazyLock, OnceLock};

use metrics::{Counter, counter, describe_counter};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// Upper bounds of what takes time, in seconds.
const SECONDS: [f64; 14] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];
/// Upper bounds of how many commits one transaction carried.
const COMMITS: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// What was counted so far.
#[derive(Debug, Clone)]
pub struct Recorder(PrometheusHandle);

impl Recorder {
    /// All of it in Prometheus' text form.
    #[must_use]
    pub fn render(&self) -> String {
        self.0.render()
    }

    /// Adds up what histograms were given since the last time; without it they grow until somebody
    /// asks.
    pub fn upkeep(&self) {
        self.0.run_upkeep();
    }
}

/// Starts counting, with every metric at 0; a second call in a process gives the same recorder.
/// What was counted before is lost, so this comes first.
#[must_use]
pub fn install() -> Option<Recorder> {
    static INSTALLED: OnceLock<Option<Recorder>> = OnceLock::new();
    INSTALLED
        .get_or_init(|| {
            let builder = PrometheusBuilder::new()
                .set_buckets(&SECONDS)
                .and_then(|builder| builder.set_buckets_for_metric(Matcher::Suffix("_commits".to_owned()), &COMMITS));
            // Fails only where somebody else counts in this process already.
            let handle = builder.and_then(PrometheusBuilder::install_recorder).ok()?;
            describe();
            Some(Recorder(handle))
        })
        .clone()
}

fn describe() {
    describe_counter!(
        "gennaker_invariant_violations_total",
        "What must never happen, by what it was. Anything but 0 is a fault of Gennaker; its log says more."
    );
    LazyLock::force(&VIOLATIONS);
    engine::describe();
    store::describe();
    api::describe();
    traces::describe();
}

/// What must never happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Invariant {
    /// A running execution that nothing would ever look at again.
    RunningWithoutWake,
    /// An execution that has been due for long, is free to take, and that nobody took.
    DueAndNotTaken,
    /// A reader saw a gap in an execution's events.
    EventGap,
    /// An execution is over and an effect of it is open past its deadline.
    IntentLeftOpen,
    /// The rules of an execution give new decisions without an end.
    EndlessDecisions,
    /// Code of ours panicked.
    Panic,
    /// A part of the server ended by itself.
    PartEnded,
    /// A stored row cannot be read.
    UnreadableRow,
}

impl Invariant {
    const ALL: [Self; 8] = [
        Self::RunningWithoutWake,
        Self::DueAndNotTaken,
        Self::EventGap,
        Self::IntentLeftOpen,
        Self::EndlessDecisions,
        Self::Panic,
        Self::PartEnded,
        Self::UnreadableRow,
    ];

    /// The label's value.
    const fn name(self) -> &'static str {
        match self {
            Self::RunningWithoutWake => "running_without_wake",
            Self::DueAndNotTaken => "due_and_not_taken",
            Self::EventGap => "event_gap",
            Self::IntentLeftOpen => "intent_left_open",
            Self::EndlessDecisions => "endless_decisions",
            Self::Panic => "panic",
            Self::PartEnded => "part_ended",
            Self::UnreadableRow => "unreadable_row",
        }
    }
}

static VIOLATIONS: LazyLock<[Counter; 8]> = LazyLock::new(|| {
    Invariant::ALL.map(|invariant| counter!("gennaker_invariant_violations_total", "invariant" => invariant.name()))
});

/// Counts what must never happen. Who finds it logs it too.
pub fn violated(invariant: Invariant) {
    VIOLATIONS[invariant as usize].increment(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_invariant_is_counted_under_its_own_name() {
        for (index, invariant) in Invariant::ALL.into_iter().enumerate() {
            assert_eq!(invariant as usize, index);
        }
        let names: std::collections::BTreeSet<_> = Invariant::ALL.map(Invariant::name).into_iter().collect();
        assert_eq!(names.len(), Invariant::ALL.len());
    }
}
