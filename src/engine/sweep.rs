//! Looks for what must never be: a running execution that nothing would look at again, one that is
//! due and that nobody takes, an effect left open by an execution that is over. What is found is
//! counted and logged, once each; the rules of the engine see to it that nothing is found.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::TimeDelta;
use tokio::time::Instant;
use uuid::Uuid;

use super::runner::Shared;
use crate::measure::{self, Invariant};
use crate::model::ExecutionId;
use crate::store::Error;

/// From one look to the next.
const EVERY: Duration = Duration::from_secs(15);
/// What is due longer than this should have been taken, at a search a second.
const OVERDUE: TimeDelta = TimeDelta::seconds(60);
/// Found at one time, at most.
const FOUND_MAX: u64 = 100;
/// Told ones that are remembered, so that each is told once.
const TOLD_MAX: usize = 10_000;

/// Signs of life of the runner.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    running: AtomicBool,
    times: Mutex<Times>,
}

#[derive(Debug, Default)]
struct Times {
    scanned: Option<Instant>,
    claim_failed: Option<Instant>,
}

impl Pulse {
    fn times(&self) -> std::sync::MutexGuard<'_, Times> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The runner begins; it ends when what is given back is dropped.
    pub fn begin(self: &Arc<Self>) -> Beating {
        self.running.store(true, Ordering::Release);
        self.times().scanned = Some(Instant::now());
        Beating(Arc::clone(self))
    }

    /// A search for due executions ended well.
    pub fn scanned(&self) {
        self.times().scanned = Some(Instant::now());
    }

    /// An execution could not be claimed: the database is at fault, not the rules.
    pub fn claim_failed(&self) {
        self.times().claim_failed = Some(Instant::now());
    }

    pub fn check(&self, now: Instant, scan_every: Duration) -> Result<(), &'static str> {
        if !self.running.load(Ordering::Acquire) {
            return Err("the engine does not run");
        }
        let patience = (scan_every * 5).max(Duration::from_secs(15));
        match self.times().scanned {
            Some(at) if now.duration_since(at) <= patience => Ok(()),
            _ => Err("the engine has not been able to look for due executions for a while"),
        }
    }

    fn claims_work(&self) -> bool {
        self.times().claim_failed.is_none_or(|at| at.elapsed() > Duration::from_secs(120))
    }
}

/// The runner runs.
#[derive(Debug)]
pub(super) struct Beating(Arc<Pulse>);

impl Drop for Beating {
    fn drop(&mut self) {
        self.0.running.store(false, Ordering::Release);
    }
}

/// What is in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Executions in memory.
    pub active: usize,
    /// Steps under way.
    pub steps: usize,
}

pub(super) fn counts(shared: &Shared) -> Counts {
    let active = shared.active().len();
    let steps = shared.options.concurrency.max(1).saturating_sub(shared.permits.available_permits());
    Counts { active, steps }
}

/// Looks again and again until it is dropped.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut sweep = Sweep::default();
    let mut every = tokio::time::interval(EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        shared.alive().await;
        if let Err(error) = sweep.look(&shared).await {
            tracing::warn!("executions could not be looked through: {error}");
        }
    }
}

#[derive(Default)]
struct Sweep {
    told: HashSet<Uuid>,
    /// Overdue at the look before.
    suspects: HashSet<ExecutionId>,
}

impl Sweep {
    async fn look(&mut self, shared: &Shared) -> Result<(), Error> {
        let now = shared.clock.now();
        for id in shared.store.executions_without_wake(FOUND_MAX).await? {
            if self.first(id.uuid()) {
                measure::violated(Invariant::RunningWithoutWake);
                tracing::error!(execution.id = %id, "an unfinished execution has no instant at which it is looked at");
            }
        }
        for (intent, execution) in shared.store.intents_left_open(now, FOUND_MAX).await? {
            if self.first(intent.uuid()) {
                measure::violated(Invariant::IntentLeftOpen);
                tracing::error!(execution.id = %execution, "the execution is over, and its effect {intent} has no outcome");
            }
        }
        self.overdue(shared).await
    }

    /// Due for long, free to take, with room in memory, and not in memory, at two looks in a row.
    async fn overdue(&mut self, shared: &Shared) -> Result<(), Error> {
        let full = shared.active().len() >= shared.options.active_max;
        if full || !shared.pulse.claims_work() {
            self.suspects.clear();
            return Ok(());
        }
        let before = shared.clock.now() - OVERDUE;
        let due = shared.store.executions_due(shared.owner, before, FOUND_MAX).await?;
        let missed: HashSet<ExecutionId> = {
            let active = shared.active();
            due.into_iter().filter(|id| !active.contains_key(id)).collect()
        };
        for id in missed.intersection(&self.suspects).copied().collect::<Vec<_>>() {
            if self.first(id.uuid()) {
                measure::violated(Invariant::DueAndNotTaken);
                tracing::error!(execution.id = %id, "an execution is due for more than a minute, and is not taken");
            }
        }
        self.suspects = missed;
        Ok(())
    }

    fn first(&mut self, id: Uuid) -> bool {
        if self.told.len() >= TOLD_MAX {
            self.told.clear();
        }
        self.told.insert(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runner_that_finds_nothing_out_is_not_working() {
        let pulse = Arc::new(Pulse::default());
        let check = |seconds| pulse.check(Instant::now() + Duration::from_secs(seconds), Duration::from_secs(1));
        assert!(check(0).is_err(), "it has not begun");
        let beating = pulse.begin();
        assert_eq!(check(0), Ok(()));
        assert!(check(20).is_err(), "no search for too long");
        pulse.scanned();
        assert_eq!(check(10), Ok(()));
        drop(beating);
        assert_eq!(check(0), Err("the engine does not run"));
    }
}
