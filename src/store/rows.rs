//! Rows to model and back: the lists of columns, and one pair of functions per table; here, how each
//! kind of value is written and read.

mod access;
mod definition;
mod event;
mod execution;
mod notification;
mod problem;

use chrono::{DateTime, Utc};
use sea_orm::{QueryResult, TryGetable, Value};
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

pub(super) use {access::*, definition::*, event::*, execution::*, notification::*, problem::*};

use super::Error;
use crate::measure::{self, Invariant};
use crate::model::PipelineDefinition;

/// The version of the format in which documents (configs, cursors, events …) are written.
pub(super) const FORMAT: i64 = 1;

// --- values ----------------------------------------------------------------------------------

pub(super) fn time(at: DateTime<Utc>) -> Value {
    Value::BigInt(Some(at.timestamp_micros()))
}

pub(super) fn time_opt(at: Option<DateTime<Utc>>) -> Value {
    Value::BigInt(at.map(|at| at.timestamp_micros()))
}

pub(super) fn text(text: &str) -> Value {
    Value::String(Some(text.to_owned()))
}

pub(super) fn int(number: i64) -> Value {
    Value::BigInt(Some(number))
}

pub(super) fn id(id: Uuid) -> Value {
    Value::Uuid(Some(id))
}

/// A document as text.
pub(super) fn json<T: Serialize>(document: &T) -> Value {
    Value::String(Some(serde_json::to_string(document).expect("model types serialise to JSON")))
}

pub(super) fn json_opt<T: Serialize>(document: Option<&T>) -> Value {
    document.map_or(Value::String(None), json)
}

/// The name of an enum's variant as the model serialises it.
pub(super) fn named<T: Serialize>(variant: &T) -> Value {
    let text = serde_json::to_string(variant).expect("model types serialise to JSON");
    Value::String(Some(text.trim_matches('"').to_owned()))
}

// --- a row being read --------------------------------------------------------------------------

/// A row whose columns are read in the order of its list.
pub(super) struct Reader<'a> {
    row: &'a QueryResult,
    at: usize,
    what: &'static str,
}

impl<'a> Reader<'a> {
    pub(super) fn new(row: &'a QueryResult, what: &'static str) -> Self {
        Self { row, at: 0, what }
    }

    pub(super) fn get<T: TryGetable>(&mut self) -> Result<T, Error> {
        let at = self.at;
        self.at += 1;
        self.row.try_get_by_index(at).map_err(|error| self.corrupt(at, &error))
    }

    fn corrupt(&self, at: usize, error: &dyn std::fmt::Display) -> Error {
        measure::violated(Invariant::UnreadableRow);
        Error::Corrupt { what: self.what.to_owned(), message: format!("column {at}: {error}") }
    }

    fn json<T: DeserializeOwned>(&mut self) -> Result<T, Error> {
        let at = self.at;
        let text: String = self.get()?;
        serde_json::from_str(&text).map_err(|error| self.corrupt(at, &error))
    }

    fn json_opt<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Error> {
        let at = self.at;
        let text: Option<String> = self.get()?;
        text.map(|text| serde_json::from_str(&text).map_err(|error| self.corrupt(at, &error))).transpose()
    }

    /// A pipeline's definition; what a later version has written is not guessed at.
    fn definition(&mut self) -> Result<PipelineDefinition, Error> {
        #[derive(serde::Deserialize)]
        struct Version {
            #[serde(rename = "formatVersion")]
            number: Option<u32>,
        }
        let (at, known) = (self.at, PipelineDefinition::FORMAT_VERSION);
        let text: String = self.get()?;
        let version: Version = serde_json::from_str(&text).map_err(|error| self.corrupt(at, &error))?;
        match version.number {
            Some(other) if other > known => {
                Err(self.corrupt(at, &format!("format {other} is not known; this binary knows {known}")))
            }
            _ => serde_json::from_str(&text).map_err(|error| self.corrupt(at, &error)),
        }
    }

    fn named<T: DeserializeOwned>(&mut self) -> Result<T, Error> {
        let at = self.at;
        let text: String = self.get()?;
        serde_json::from_value(serde_json::Value::String(text)).map_err(|error| self.corrupt(at, &error))
    }

    fn id<T: From<Uuid>>(&mut self) -> Result<T, Error> {
        self.get::<Uuid>().map(T::from)
    }

    fn id_opt<T: From<Uuid>>(&mut self) -> Result<Option<T>, Error> {
        Ok(self.get::<Option<Uuid>>()?.map(T::from))
    }

    pub(super) fn time(&mut self) -> Result<DateTime<Utc>, Error> {
        let at = self.at;
        let micros: i64 = self.get()?;
        DateTime::from_timestamp_micros(micros).ok_or_else(|| self.corrupt(at, &"not an instant"))
    }

    pub(super) fn time_opt(&mut self) -> Result<Option<DateTime<Utc>>, Error> {
        let at = self.at;
        let micros: Option<i64> = self.get()?;
        micros
            .map(|micros| DateTime::from_timestamp_micros(micros).ok_or_else(|| self.corrupt(at, &"not an instant")))
            .transpose()
    }

    fn small(&mut self) -> Result<i32, Error> {
        let at = self.at;
        let number: i64 = self.get()?;
        i32::try_from(number).map_err(|error| self.corrupt(at, &error))
    }

    /// Documents of a later format than this binary writes are not guessed at.
    fn format(&mut self) -> Result<(), Error> {
        let at = self.at;
        match self.get::<i64>()? {
            1..=FORMAT => Ok(()),
            other => Err(self.corrupt(at, &format!("format {other} is not known; this binary knows {FORMAT}"))),
        }
    }
}
