//! The event log: what subscribers read. A stream is gapless; a cursor is (epoch, stream,
//! sequence).

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Execution, ExecutionId, Notification, Stage};

/// A sequence of events without gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StreamId {
    /// All that happens to one execution.
    Execution(ExecutionId),
    /// All messages to people.
    Notifications,
}

impl StreamId {
    /// The key under which the stream's events are stored; nil for the notifications.
    #[must_use]
    pub fn key(self) -> Uuid {
        match self {
            Self::Execution(id) => id.uuid(),
            Self::Notifications => Uuid::nil(),
        }
    }
}

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// The stream that it belongs to.
    pub stream: StreamId,
    /// From 1, without gaps within the stream.
    pub seq: i64,
    /// Over all streams, in the order of commits; may have gaps.
    pub position: i64,
    /// When it was committed, by the server's clock.
    pub at: DateTime<Utc>,
    /// What happened.
    pub body: EventBody,
}

/// What happened: the object as it is after the change. Configs, resolved configs and cursors of
/// stages are left out (null) so that an event stays small. Stored with a format version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum EventBody {
    /// The execution's own fields changed; `stages` is empty.
    ExecutionChanged {
        /// As it is after the change, without its stages.
        execution: Box<Execution>,
    },
    /// A stage began to exist or changed.
    StageChanged {
        /// As it is after the change.
        stage: Box<Stage>,
    },
    /// A message to people was written.
    Notified {
        /// The message, whole.
        notification: Box<Notification>,
    },
}

impl EventBody {
    /// That the execution's own fields are these.
    #[must_use]
    pub fn execution(execution: &Execution) -> Self {
        Self::ExecutionChanged { execution: Box::new(execution.header()) }
    }

    /// That the stage is this one.
    #[must_use]
    pub fn stage(stage: &Stage) -> Self {
        Self::StageChanged { stage: Box::new(Stage { outputs: stage.outputs.clone(), ..stage.header() }) }
    }
}

/// Where a reader stands in a stream: the epoch of the database, the stream, and the sequence number
/// of the last event it has. Its text is opaque to clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// Random; changed when the database is restored from a backup.
    pub epoch: Uuid,
    /// The stream's key ([`StreamId::key`]).
    pub stream: Uuid,
    /// The sequence number of the last event read; 0 before the first.
    pub seq: i64,
}

/// The text is not a cursor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the text is not a cursor of this API")]
pub struct InvalidCursor;

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{}{}{:x}", self.epoch.simple(), self.stream.simple(), self.seq)
    }
}

impl FromStr for Cursor {
    type Err = InvalidCursor;
    fn from_str(text: &str) -> Result<Self, InvalidCursor> {
        let rest = text.strip_prefix('c').filter(|rest| rest.is_ascii() && rest.len() > 64).ok_or(InvalidCursor)?;
        let (epoch, rest) = rest.split_at(32);
        let (stream, seq) = rest.split_at(32);
        Ok(Self {
            epoch: Uuid::try_parse(epoch).map_err(|_| InvalidCursor)?,
            stream: Uuid::try_parse(stream).map_err(|_| InvalidCursor)?,
            seq: i64::from_str_radix(seq, 16).ok().filter(|seq| *seq >= 0).ok_or(InvalidCursor)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_reads_back_from_its_text() {
        let cursor = Cursor { epoch: Uuid::now_v7(), stream: Uuid::now_v7(), seq: 4711 };
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
    }

    #[test]
    fn other_text_is_no_cursor() {
        for text in ["", "c", "c0", "ç", &"x".repeat(70), &format!("c{}-5", "0".repeat(64))] {
            assert_eq!(text.parse::<Cursor>(), Err(InvalidCursor), "{text}");
        }
    }
}
