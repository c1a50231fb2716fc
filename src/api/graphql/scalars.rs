//! Scalars beyond GraphQL's own: JSON, Duration and URL. `DateTime` is async-graphql's.

use async_graphql::{InputValueError, InputValueResult, Scalar, ScalarType, Value};
use chrono::TimeDelta;

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
            Value::String(text) => parse(text).map(Self).ok_or_else(|| {
                InputValueError::custom(format!(
                    "`{}` is no duration; write `PT90S`, `PT1.5S` or `PT1H30M`",
                    super::shown(text)
                ))
            }),
            _ => Err(InputValueError::expected_type(value)),
        }
    }
    fn to_value(&self) -> Value {
        Value::String(print(self.0))
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
    parse(text).map(print)
}

fn print(span: TimeDelta) -> String {
    let sign = if span < TimeDelta::zero() { "-" } else { "" };
    let millis = span.num_milliseconds().unsigned_abs();
    let (hours, minutes, seconds, rest) =
        (millis / 3_600_000, millis / 60_000 % 60, millis / 1_000 % 60, millis % 1_000);
    let mut text = format!("{sign}PT");
    for (number, unit) in [(hours, 'H'), (minutes, 'M')] {
        if number > 0 {
            text.push_str(&format!("{number}{unit}"));
        }
    }
    if rest > 0 {
        text.push_str(format!("{seconds}.{rest:03}").trim_end_matches('0'));
        text.push('S');
    } else if seconds > 0 || millis == 0 {
        text.push_str(&format!("{seconds}S"));
    } else if hours == 0 && minutes == 0 {
        text.push_str("0S");
    }
    text
}

fn parse(text: &str) -> Option<TimeDelta> {
    let rest = text.strip_prefix('P')?;
    let (days, time) = rest.split_once('T').unwrap_or((rest, ""));
    if rest.ends_with('T') || rest.is_empty() {
        return None;
    }
    let mut millis = 0_i64;
    let mut part = |text: &mut &str, unit: char, factor: i64| -> Option<()> {
        let Some((number, after)) = text.split_once(unit) else { return Some(()) };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !digits(whole) || !digits(fraction) || (!fraction.is_empty() && unit != 'S') {
            return None;
        }
        if number.ends_with('.') {
            return None;
        }
        let fraction: i64 = format!("{fraction:0<3}").get(..3)?.parse().ok()?;
        let whole = whole.parse::<i64>().ok()?.checked_mul(factor)?;
        millis = millis.checked_add(whole)?.checked_add(fraction)?;
        *text = after;
        Some(())
    };
    let (mut days, mut time) = (days, time);
    part(&mut days, 'D', 86_400_000)?;
    part(&mut time, 'H', 3_600_000)?;
    part(&mut time, 'M', 60_000)?;
    part(&mut time, 'S', 1_000)?;
    (days.is_empty() && time.is_empty()).then(|| TimeDelta::try_milliseconds(millis)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_back_from_their_text() {
        for (millis, text) in [
            (0, "PT0S"),
            (1_500, "PT1.5S"),
            (90_000, "PT1M30S"),
            (1_800_000, "PT30M"),
            (3_600_000, "PT1H"),
            (90_061_001, "PT25H1M1.001S"),
        ] {
            let span = TimeDelta::milliseconds(millis);
            assert_eq!(print(span), text);
            assert_eq!(parse(text), Some(span), "{text}");
        }
        assert_eq!(parse("P1DT1H"), Some(TimeDelta::hours(25)));
        assert_eq!(parse("PT90S"), Some(TimeDelta::seconds(90)));
    }

    #[test]
    fn other_text_is_no_duration() {
        for text in [
            "",
            "P",
            "PT",
            "1S",
            "PT1",
            "PT1.S",
            "PT.5S",
            "PT1.5H",
            "P1S",
            "PT-1S",
            "PT1S1M",
            "PTéS",
            "PT99999999999999999999S",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
