//! Late calls are refused. A fence is the number of a lease on one execution, so numbers compare
//! only within the execution that the operation's key begins with: the highest seen of each is kept.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::files;
use crate::providers::{Error, ErrorKind, Operation};

/// So many executions are remembered, the latest ones.
const MAX: usize = 2_000;

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
        if operation.deadline <= now {
            return Err(Error {
                kind: ErrorKind::Unavailable,
                message: format!("operation {} came after its deadline and was not made", operation.key),
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
        while next.len() > MAX {
            let Some(oldest) = next.iter().min_by_key(|(_, seen)| seen.at).map(|(key, _)| key.clone()) else { break };
            next.remove(&oldest);
        }
        files::write_json(&self.path, &next)
            .map_err(|error| Error { kind: ErrorKind::Unavailable, message: error.to_string() })?;
        *seen = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
}
