//! When to look again: back-off of retries, the instant that is written beside the execution, and
//! the instants of executions that are not in memory.

use std::collections::BTreeSet;

use chrono::{DateTime, TimeDelta, Utc};

use super::decide::Decision;
use crate::model::ExecutionId;

/// How long before the n-th retry (from 1): 1 s doubling to 30 s.
pub(super) fn retry_delay(retry: i32) -> TimeDelta {
    let doublings = u32::try_from(retry - 1).unwrap_or(0).min(5);
    TimeDelta::seconds(1i64 << doublings).min(TimeDelta::seconds(30))
}

/// When an owner who has just claimed the execution would have something to do: now when a step
/// is due or under way, otherwise the earliest instant waited for. None when it is over.
pub(super) fn wake_at(decisions: &[Decision], busy: bool, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    if busy || decisions.iter().any(|decision| !matches!(decision, Decision::WaitUntil(_))) {
        return Some(now);
    }
    decisions
        .iter()
        .filter_map(|decision| match decision {
            Decision::WaitUntil(at) => Some(*at),
            _ => None,
        })
        .min()
}

/// The instants of executions that were dropped from memory. Bounded: what is not in here is
/// found by the periodic scan.
#[derive(Debug, Default)]
pub(super) struct Timers(BTreeSet<(DateTime<Utc>, ExecutionId)>);

impl Timers {
    const MAX: usize = 10_000;

    pub fn add(&mut self, at: DateTime<Utc>, execution: ExecutionId) {
        self.0.insert((at, execution));
        if self.0.len() > Self::MAX {
            self.0.pop_last();
        }
    }

    /// The earliest instant.
    pub fn next(&self) -> Option<DateTime<Utc>> {
        self.0.first().map(|(at, _)| *at)
    }

    /// Takes one whose instant has come.
    pub fn due(&mut self, now: DateTime<Utc>) -> Option<ExecutionId> {
        if self.next()? > now {
            return None;
        }
        self.0.pop_first().map(|(_, execution)| execution)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_back_off_from_one_second_to_thirty() {
        let seconds: Vec<i64> = (1..=8).map(|retry| retry_delay(retry).num_seconds()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 30, 30, 30]);
    }

    #[test]
    fn timers_come_in_order_and_not_early() {
        let at = |seconds| DateTime::from_timestamp(seconds, 0).unwrap();
        let (first, second) = (ExecutionId::new(), ExecutionId::new());
        let mut timers = Timers::default();
        timers.add(at(20), second);
        timers.add(at(10), first);
        assert_eq!(timers.due(at(9)), None);
        assert_eq!(timers.due(at(10)), Some(first));
        assert_eq!(timers.due(at(10)), None);
        assert_eq!(timers.next(), Some(at(20)));
        assert_eq!(timers.due(at(30)), Some(second));
    }
}
