//! Does nothing for a while. No thread is held: the engine is told when to look again.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::schema;
use crate::engine::contract::{Next, Stage, StepContext, StepError};

pub(super) struct Wait;

#[derive(Deserialize)]
pub(super) struct Config {
    seconds: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(tag = "at", rename_all = "camelCase")]
pub(super) enum Cursor {
    /// Nothing is saved yet: the wait begins.
    #[default]
    Start,
    Waiting {
        since: DateTime<Utc>,
        until: DateTime<Utc>,
    },
}

impl Stage for Wait {
    const KIND: &'static str = "wait";
    const TITLE: &'static str = "Wait";
    const DESCRIPTION: &'static str = "Waits for a number of seconds.";
    const TIMEOUT: Duration = Duration::from_secs(31 * 24 * 60 * 60);
    type Config = Config;
    type Cursor = Cursor;

    fn schema(&self) -> Value {
        let seconds = json!({
            "type": "integer", "minimum": 0, "maximum": 30 * 24 * 60 * 60,
            "description": "How long; at most 30 days."
        });
        schema::object(json!({"seconds": seconds}), &["seconds"])
    }
    fn example(&self) -> Value {
        json!({"seconds": 30})
    }
    fn tasks(&self, _: &Config) -> Vec<&'static str> {
        vec!["Wait"]
    }
    fn task(&self, _: &Cursor) -> usize {
        0
    }

    async fn step(&self, cx: &StepContext, config: &Config, cursor: Cursor) -> Result<Next<Cursor>, StepError> {
        let now = cx.now();
        let (since, until) = match cursor {
            Cursor::Start => {
                let seconds = TimeDelta::seconds(i64::try_from(config.seconds).unwrap_or(i64::MAX / 1_000));
                (now, now.checked_add_signed(seconds).unwrap_or(DateTime::<Utc>::MAX_UTC))
            }
            Cursor::Waiting { since, until } => (since, until),
        };
        let total = (until - since).num_seconds();
        let gone = (now - since).num_seconds().clamp(0, total);
        if now >= until {
            cx.progress(total, total, "seconds", format!("waited {total} s"));
            return Ok(Next::Done(json!({"seconds": total})));
        }
        cx.progress(gone, total, "seconds", format!("{} s left", total - gone));
        // A hundred looks at the most, so that a long wait costs little; the last one is exact.
        let every = Duration::from_secs(u64::try_from(total / 100).unwrap_or(0).max(1));
        let left = (until - now).to_std().unwrap_or_default();
        Ok(Next::Poll { cursor: Cursor::Waiting { since, until }, after: left.min(every), topic: None })
    }
}
