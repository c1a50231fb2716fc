//! Spans of time as people write them in requests and configs: `PT1.5S`, `PT30M`, `P1DT1H`.

use chrono::TimeDelta;

/// As ISO 8601 writes it, in hours, minutes and seconds: `PT1.5S`.
#[must_use]
pub fn print(span: TimeDelta) -> String {
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

/// Reads days, hours, minutes and seconds; none for any other text.
#[must_use]
pub fn parse(text: &str) -> Option<TimeDelta> {
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
