//! What becomes of spans on their way to a collector.

use std::sync::LazyLock;

use metrics::{Counter, counter, describe_counter};

/// What became of spans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spans {
    /// The collector has them.
    Exported,
    /// The collector did not take them in time.
    Failed,
    /// There were more than may wait.
    Dropped,
}

const OUTCOMES: [&str; 3] = ["exported", "failed", "dropped"];

static SPANS: LazyLock<[Counter; 3]> =
    LazyLock::new(|| OUTCOMES.map(|outcome| counter!("gennaker_trace_spans_total", "outcome" => outcome)));

pub(super) fn describe() {
    describe_counter!("gennaker_trace_spans_total", "Spans for the collector of traces, by what became of them.");
    LazyLock::force(&SPANS);
}

/// Counts spans.
pub fn spans(outcome: Spans, count: usize) {
    SPANS[outcome as usize].increment(u64::try_from(count).unwrap_or(u64::MAX));
}
