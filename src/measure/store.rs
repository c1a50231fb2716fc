//! What the database is asked to do.

use std::sync::LazyLock;
use std::time::Duration;

use metrics::{Counter, Histogram, counter, describe_counter, describe_histogram, histogram};

/// What became of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitOutcome {
    /// It happened.
    Ok,
    /// A guard did not hold.
    Refused,
    /// It did not happen.
    Unavailable,
    /// Nobody knows.
    Unknown,
}

const OUTCOMES: [&str; 4] = ["ok", "refused", "unavailable", "unknown"];

static COMMITS: LazyLock<[Counter; 4]> =
    LazyLock::new(|| OUTCOMES.map(|outcome| counter!("gennaker_store_commits_total", "outcome" => outcome)));
static DURATION: LazyLock<Histogram> = LazyLock::new(|| histogram!("gennaker_store_commit_duration_seconds"));
static BATCH: LazyLock<Histogram> = LazyLock::new(|| histogram!("gennaker_store_batch_commits"));

pub(super) fn describe() {
    describe_counter!("gennaker_store_commits_total", "Commits, by what became of them.");
    describe_histogram!("gennaker_store_commit_duration_seconds", "From handing in a commit to its answer.");
    describe_histogram!("gennaker_store_batch_commits", "Commits that one transaction carried.");
    LazyLock::force(&COMMITS);
    LazyLock::force(&DURATION);
    LazyLock::force(&BATCH);
}

/// A commit was answered.
pub fn commit(outcome: CommitOutcome, took: Duration) {
    COMMITS[outcome as usize].increment(1);
    DURATION.record(took);
}

/// A transaction with so many commits begins.
pub fn batch(commits: usize) {
    BATCH.record(u32::try_from(commits).unwrap_or(u32::MAX));
}
