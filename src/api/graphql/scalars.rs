//! Scalars beyond GraphQL's own: JSON, Duration and URL. `DateTime` is async-graphql's, with words of ours.

use async_graphql::{InputValueError, InputValueResult, Scalar, ScalarType, Value};
use chrono::TimeDelta;

use crate::model::duration;

/// What a `DateTime` is.
pub const DATE_TIME: &str = "An instant as RFC 3339 writes it, to the microsecond: `2026-11-22T10:00:00.5+00:00`. \
                             Any offset is read; what is answered is in UTC.";

/// Any JSON value: object, list, text, number, boolean or null.
#[derive(Debug, Clone, PartialEq)]
pub struct Json(pub serde_json::Value);

/// Any JSON value: object, list, text, number, boolean or null.
#[Scalar(name = "JSON", specified_by_url = "https://www.rfc-editor.org/rfc/rfc8259")]
impl ScalarType for Json {
    fn parse(value: Value) -> InputValueResult<Self> {
        Ok(Self(value.into_json()?))
    }
    fn to_value(&self) -> Value {
        Value::from_json(self.0.clone()).unwrap_or_default()
    }
}

/// An absolute address of the web.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url(pub String);

/// An absolute address of the web.
#[Scalar(name = "URL", specified_by_url = "https://url.spec.whatwg.org/")]
impl ScalarType for Url {
    fn parse(value: Value) -> InputValueResult<Self> {
        match value {
            Value::String(text) if text.contains("://") => Ok(Self(text)),
            other => Err(InputValueError::expected_type(other)),
        }
    }
    fn to_value(&self) -> Value {
        Value::String(self.0.clone())
    }
}

/// A span of time, to the millisecond.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Duration(pub TimeDelta);

/// A span of time as ISO 8601 writes it, in days, hours, minutes and seconds: `PT1.5S`, `PT30M`.
#[Scalar(name = "Duration", specified_by_url = "https://www.iso.org/iso-8601-date-and-time-format.html")]
impl ScalarType for Duration {
    fn parse(value: Value) -> InputValueResult<Self> {
        match &value {
            Value::String(text) => duration::parse(text).map(Self).ok_or_else(|| {
                InputValueError::custom(format!(
                    "`{}` is no duration; write `PT90S`, `PT1.5S` or `PT1H30M`",
                    super::shown(text)
                ))
            }),
            _ => Err(InputValueError::expected_type(value)),
        }
    }
    fn to_value(&self) -> Value {
        Value::String(duration::print(self.0))
    }
}

impl Duration {
    /// Whole milliseconds, none below zero.
    pub fn millis(self) -> u64 {
        u64::try_from(self.0.num_milliseconds()).unwrap_or(0)
    }

    /// Whole seconds, begun ones counted, none below zero.
    pub fn seconds(self) -> u64 {
        self.millis().div_ceil(1_000)
    }
}

impl From<u64> for Duration {
    /// From milliseconds.
    fn from(millis: u64) -> Self {
        Self(TimeDelta::try_milliseconds(i64::try_from(millis).unwrap_or(i64::MAX)).unwrap_or(TimeDelta::MAX))
    }
}

/// The one way in which [`Duration`] writes the span that a text means; none where it means none.
#[must_use]
pub fn canonical_span(text: &str) -> Option<String> {
    duration::parse(text).map(duration::print)
}
