//! Late calls are refused. A fence is the number of a lease on one execution, so numbers compare
//! only within the execution that the operation's key begins with: the highest seen of each is kept.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::files;
use crate::providers::{Error, ErrorKind, Operation};

/// So many executions are remembered without regard to their age.
const KEPT: usize = 2_000;

/// No operation has longer than this, so that what was sent before another worker took over is over
/// by then: an execution whose highest fence was first seen longer ago may be forgotten.
const LONGEST_DEADLINE: Duration = Duration::from_secs(600);

/// More executions than this within that time are not let in.
const MAX: usize = 100_000;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Seen {
    fence: i64,
    at: DateTime<Utc>,
}

/// The highest fence of each execution.
pub struct Fences {
    path: PathBuf,
    seen: Mutex<BTreeMap<String, Seen>>,
}

impl Fences {
    /// Reads what was seen before.
    ///
    /// # Errors
    /// The operating system's, with the path.
    pub fn open(path: PathBuf) -> io::Result<Self> {
        let seen = files::read_json(&path)?.unwrap_or_default();
        Ok(Self { path, seen: Mutex::new(seen) })
    }

    /// Lets a call in, or refuses it: its deadline is over, or a higher fence was seen.
    ///
    /// # Errors
    /// `Fenced`, or `Unavailable` for a call that comes too late or cannot be recorded.
    pub fn admit(&self, operation: &Operation, now: DateTime<Utc>) -> Result<(), Error> {
        let judged = self.judge(operation, now);
        let mut parts = operation.key.split('/');
        let (execution, stage) = (parts.next(), parts.next());
        match &judged {
            Ok(()) => {
                tracing::info!(execution.id = execution, stage.id = stage, "operation {} is taken", operation.key);
            }
            Err(error) => tracing::warn!(execution.id = execution, stage.id = stage, "{}", error.message),
        }
        judged
    }

    fn judge(&self, operation: &Operation, now: DateTime<Utc>) -> Result<(), Error> {
        if operation.deadline <= now {
            return Err(Error {
                kind: ErrorKind::Unavailable,
                message: format!("operation {} came after its deadline and was not made", operation.key),
            });
        }
        if operation.deadline > now + LONGEST_DEADLINE {
            return Err(Error {
                kind: ErrorKind::Invalid,
                message: format!(
                    "operation {} may take until {}; this host takes deadlines within {} s",
                    operation.key,
                    operation.deadline,
                    LONGEST_DEADLINE.as_secs()
                ),
            });
        }
        let scope = operation.key.split_once('/').map_or("", |(execution, _)| execution);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match seen.get(scope) {
            Some(highest) if highest.fence > operation.fence => {
                return Err(Error {
                    kind: ErrorKind::Fenced,
                    message: format!(
                        "operation {} carries fence {}, but {} was seen: another worker has taken over",
                        operation.key, operation.fence, highest.fence
                    ),
                });
            }
            Some(highest) if highest.fence == operation.fence => return Ok(()),
            _ => {}
        }
        let mut next = seen.clone();
        next.insert(scope.to_owned(), Seen { fence: operation.fence, at: now });
        if next.len() > KEPT {
            next.retain(|_, seen| seen.at + LONGEST_DEADLINE >= now);
        }
        if next.len() > MAX {
            return Err(Error {
                kind: ErrorKind::Unavailable,
                message: format!("more than {MAX} executions have changed this host within minutes; try again later"),
            });
        }
        files::write_json(&self.path, &next)
            .map_err(|error| Error { kind: ErrorKind::Unavailable, message: error.to_string() })?;
        *seen = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    fn operation(key: &str, fence: i64, clock: &Clock) -> Operation {
        Operation { key: key.to_owned(), fence, deadline: clock.now() + Duration::from_secs(60) }
    }

    #[test]
    fn a_lower_fence_of_the_same_execution_is_refused_also_after_a_restart() {
        let scratch = files::scratch::Scratch::new();
        let path = scratch.path().join("fences.json");
        let clock = Clock::system();
        let fences = Fences::open(path.clone()).expect("opens");
        fences.admit(&operation("ex_1/st/1/create", 2, &clock), clock.now()).expect("first");
        let fences = Fences::open(path).expect("opens again");
        let refused = fences.admit(&operation("ex_1/st/1/other", 1, &clock), clock.now()).expect_err("late");
        assert_eq!(refused.kind, ErrorKind::Fenced);
        fences.admit(&operation("ex_1/st/1/other", 2, &clock), clock.now()).expect("the same lease");
        fences
            .admit(&operation("ex_2/st/1/other", 1, &clock), clock.now())
            .expect("another execution counts for itself");
    }

    #[test]
    fn a_call_after_its_deadline_is_not_made() {
        let scratch = files::scratch::Scratch::new();
        let clock = Clock::system();
        let fences = Fences::open(scratch.path().join("fences.json")).expect("opens");
        let late = operation("ex_1/st/1/create", 1, &clock);
        let after = late.deadline + Duration::from_secs(1);
        assert_eq!(fences.admit(&late, after).expect_err("late").kind, ErrorKind::Unavailable);
    }

    #[test]
    fn what_a_late_call_may_still_run_into_is_not_forgotten() {
        let scratch = files::scratch::Scratch::new();
        let path = scratch.path().join("fences.json");
        let clock = Clock::system();
        let now = clock.now();
        // Others came after it, more than are kept for ever.
        let others = (0..=KEPT).map(|number| (format!("ex_{number}"), Seen { fence: 1, at: now }));
        let taken_over = ("ex_old".to_owned(), Seen { fence: 2, at: now });
        files::write_json(&path, &others.chain([taken_over]).collect::<BTreeMap<_, _>>()).expect("written");
        let fences = Fences::open(path).expect("opens");
        let at = |key: &str, fence: i64, now: DateTime<Utc>| {
            let deadline = now + Duration::from_secs(60);
            fences.admit(&Operation { key: format!("{key}/st/1/x"), fence, deadline }, now)
        };
        let soon = now + LONGEST_DEADLINE - Duration::from_secs(1);
        at("ex_new", 1, soon).expect("another execution");
        assert_eq!(at("ex_old", 1, soon).expect_err("late").kind, ErrorKind::Fenced);
        at("ex_newer", 1, now + LONGEST_DEADLINE + Duration::from_secs(1)).expect("another execution");
        let left = fences.seen.lock().expect("not poisoned").keys().cloned().collect::<Vec<_>>();
        assert_eq!(left, ["ex_new", "ex_newer"]);
    }

    #[test]
    fn a_deadline_that_is_too_far_is_refused() {
        let scratch = files::scratch::Scratch::new();
        let clock = Clock::system();
        let fences = Fences::open(scratch.path().join("fences.json")).expect("opens");
        let far = Operation { deadline: clock.now() + LONGEST_DEADLINE * 2, ..operation("ex_1/st/1/x", 1, &clock) };
        assert_eq!(fences.admit(&far, clock.now()).expect_err("far").kind, ErrorKind::Invalid);
    }
}
