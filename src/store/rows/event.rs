//! Events.

use sea_orm::QueryResult;
use uuid::Uuid;

use super::Reader;
use crate::model::{Event, EventBody, StreamId};
use crate::store::Error;

pub const EVENT: &str = "position, stream, seq, at, format, body";

pub fn read_event(row: &QueryResult, stream: StreamId) -> Result<Event, Error> {
    let reader = &mut Reader::new(row, "event");
    let position = reader.get()?;
    let _stream: Uuid = reader.get()?;
    let seq = reader.get()?;
    let at = reader.time()?;
    reader.format()?;
    let body: EventBody = reader.json()?;
    Ok(Event { stream, seq, position, at, body })
}
