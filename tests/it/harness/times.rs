//! How long trials take: `GENNAKER_TEST_SLOWEST=20` lists the slowest at the end.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

static TOOK: Mutex<Vec<(Duration, String)>> = Mutex::new(Vec::new());

pub fn took(name: String, duration: Duration) {
    TOOK.lock().unwrap_or_else(PoisonError::into_inner).push((duration, name));
}

/// To standard error, if it is asked for.
pub fn tell() {
    let Some(count) = std::env::var("GENNAKER_TEST_SLOWEST").ok().and_then(|count| count.parse().ok()) else { return };
    let mut took = TOOK.lock().unwrap_or_else(PoisonError::into_inner);
    took.sort_by(|a, b| b.cmp(a));
    let all: Duration = took.iter().map(|(duration, _)| *duration).sum();
    eprintln!("{} trials took {:.1} s one by one; the slowest:", took.len(), all.as_secs_f64());
    for (duration, name) in took.iter().take(count) {
        eprintln!("{:8.1} s  {name}", duration.as_secs_f64());
    }
}
