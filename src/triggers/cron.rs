//! A timetable: five fields (or six with seconds), in a time zone of its own.
//!
//! A fixed time of day that a change to summer time leaves out comes at the first instant after
//! the gap; one that comes twice when the clock is put back is taken once, the first time. What
//! repeats (`*/15`) goes on as time goes on.

use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::{TZ_VARIANTS, Tz};
use croner::errors::CronError;
use croner::parser::{CronParser, Seconds, Year};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::engine::contract::{Missed, Timetable, Trigger, TriggerKind, When};
use crate::near::did_you_mean;

pub(super) struct Cron;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    expression: String,
    #[serde(default = "utc")]
    time_zone: String,
    #[serde(default)]
    missed: Policy,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum Policy {
    #[default]
    Skip,
    RunOnce,
}

fn utc() -> String {
    "UTC".to_owned()
}

impl Trigger for Cron {
    fn kind(&self) -> TriggerKind {
        TriggerKind {
            kind: "cron",
            title: "Timetable",
            description: "Starts the pipeline at the instants of a cron expression, in a time zone of its own. \
                          Parameters may read `${ trigger.scheduledAt }`.",
            schema: json!({
                "$schema": "https://json-schema.org/draft/2020-12/schema",
                "type": "object",
                "additionalProperties": false,
                "properties": {
                    "expression": {
                        "type": "string", "minLength": 1, "maxLength": 200,
                        "description": "Minute, hour, day of month, month, day of week; or six fields with seconds first. \
                                        Also `L`, `W`, `#` and names of days and months."
                    },
                    "timeZone": {
                        "type": "string", "minLength": 1, "maxLength": 100, "default": "UTC",
                        "description": "A zone of the IANA database: `Europe/Berlin`."
                    },
                    "missed": {
                        "enum": ["SKIP", "RUN_ONCE"], "default": "SKIP",
                        "description": "What to do about instants in which no server was there (for more than a minute): \
                                        let them go by, or start once for all of them."
                    }
                },
                "required": ["expression"],
            }),
            example: json!({ "expression": "0 3 * * MON-FRI", "timeZone": "Europe/Berlin", "missed": "RUN_ONCE" }),
        }
    }

    fn read(&self, config: &Value) -> Result<When, (String, String)> {
        let config = Config::deserialize(config).map_err(|error| (String::new(), error.to_string()))?;
        let zone = zone(&config.time_zone).map_err(|message| ("/timeZone".to_owned(), message))?;
        let cron = parse(&config.expression).map_err(|message| ("/expression".to_owned(), message))?;
        let missed = match config.missed {
            Policy::Skip => Missed::Skip,
            Policy::RunOnce => Missed::RunOnce,
        };
        let table = Table { cron, zone, missed };
        if table.next(DateTime::UNIX_EPOCH).is_none() {
            let message =
                format!("`{}` never comes: there is no such day; {EXAMPLE}", config.expression.escape_debug());
            return Err(("/expression".to_owned(), message));
        }
        Ok(When::Time(Box::new(table)))
    }
}

fn zone(name: &str) -> Result<Tz, String> {
    name.parse().map_err(|_| {
        // `berlin` is nearer to `Europe/Berlin` than the whole name says.
        let city = |zone: &Tz| zone.name().rsplit('/').next().unwrap_or_default().to_lowercase();
        let wanted = name.rsplit('/').next().unwrap_or_default().to_lowercase();
        let near = match TZ_VARIANTS.iter().find(|zone| city(zone) == wanted) {
            Some(zone) => format!("; did you mean `{}`?", zone.name()),
            None => did_you_mean(name, TZ_VARIANTS.iter().map(|zone| zone.name())),
        };
        format!("there is no time zone `{}`{near}", name.escape_debug())
    })
}

fn parse(expression: &str) -> Result<croner::Cron, String> {
    let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
    parser.parse(expression).map_err(|error| {
        let fields: Vec<&str> = expression.split_whitespace().collect();
        // The field that does not hold among stars either.
        let faulty = |at: &usize| {
            let mut alone = vec!["*"; fields.len()];
            alone[*at] = fields[*at];
            parser.parse(&alone.join(" ")).is_err()
        };
        let why = match fields.len() {
            count @ 5..=6 => match (0..count).find(faulty) {
                Some(at) => {
                    format!("`{}` is no {} ({})", fields[at].escape_debug(), FIELDS[at + 6 - count], said(&error))
                }
                None => said(&error),
            },
            1 => "it has 1 field".to_owned(),
            count => format!("it has {count} fields"),
        };
        format!("`{}` is not a timetable: {why}; {EXAMPLE}", expression.escape_debug())
    })
}

const FIELDS: [&str; 6] = ["second", "minute", "hour", "day of month", "month", "day of week"];
const EXAMPLE: &str = "write minute, hour, day of month, month and day of week, as `0 3 * * MON-FRI` (at 3:00 from Monday \
                       to Friday), with seconds in front if you like";

fn said(error: &CronError) -> String {
    match error {
        CronError::InvalidPattern(why) | CronError::IllegalCharacters(why) | CronError::ComponentError(why) => {
            why.trim_end_matches('.').to_owned()
        }
        other => other.to_string(),
    }
}

struct Table {
    cron: croner::Cron,
    zone: Tz,
    missed: Missed,
}

impl Timetable for Table {
    fn next(&self, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let found = self.cron.find_next_occurrence(&after.with_timezone(&self.zone), false).ok()?;
        // A clock that is put back must never make a timetable stand still.
        Some(found.with_timezone(&Utc)).filter(|found| *found > after)
    }

    fn last(&self, until: DateTime<Utc>) -> Option<DateTime<Utc>> {
        // Forward searches only: what comes next is then what was last, also where the clock is
        // changed. The span is widened until it holds an instant.
        let mut span = TimeDelta::minutes(2);
        while span < TimeDelta::days(366 * 9) {
            let mut found = self.next(until - span).filter(|found| *found <= until);
            if found.is_some() {
                while let Some(next) = found.and_then(|found| self.next(found)).filter(|next| *next <= until) {
                    found = Some(next);
                }
                return found;
            }
            span = span * 2;
        }
        None
    }

    fn missed(&self) -> Missed {
        self.missed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(expression: &str, zone: &str) -> Box<dyn Timetable> {
        match Cron.read(&json!({ "expression": expression, "timeZone": zone })) {
            Ok(When::Time(table)) => table,
            Ok(When::Ended(_)) => panic!("a timetable"),
            Err(fault) => panic!("{fault:?}"),
        }
    }

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().expect("an instant")
    }

    /// The instants after one, as they are in UTC.
    fn after(table: &dyn Timetable, start: &str, count: usize) -> Vec<String> {
        let mut now = at(start);
        std::iter::from_fn(|| {
            now = table.next(now)?;
            Some(now.format("%m-%dT%H:%M:%S").to_string())
        })
        .take(count)
        .collect()
    }

    #[test]
    fn a_time_of_day_stays_where_it_is_over_both_changes_in_berlin() {
        let daily = table("0 3 * * *", "Europe/Berlin");
        // Summer time began on 2026-03-29 at 2:00, which became 3:00.
        assert_eq!(after(&*daily, "2026-03-27T12:00:00Z", 3), ["03-28T02:00:00", "03-29T01:00:00", "03-30T01:00:00"]);
        // It ends on 2026-10-25 at 3:00, which becomes 2:00.
        assert_eq!(after(&*daily, "2026-10-23T12:00:00Z", 3), ["10-24T01:00:00", "10-25T02:00:00", "10-26T02:00:00"]);
    }

    #[test]
    fn a_time_that_is_left_out_comes_after_the_gap_and_one_that_comes_twice_is_taken_once() {
        let table = table("30 2 * * *", "Europe/Berlin");
        assert_eq!(after(&*table, "2026-03-28T12:00:00Z", 2), ["03-29T01:00:00", "03-30T00:30:00"]);
        assert_eq!(after(&*table, "2026-10-24T12:00:00Z", 2), ["10-25T00:30:00", "10-26T01:30:00"]);
        // Also asked for in between, in the second of the two hours.
        assert_eq!(after(&*table, "2026-10-25T01:10:00Z", 1), ["10-26T01:30:00"]);
    }

    #[test]
    fn what_repeats_goes_on_through_both_changes() {
        let table = table("*/30 * * * *", "Europe/Berlin");
        assert_eq!(
            after(&*table, "2026-03-29T00:15:00Z", 4),
            ["03-29T00:30:00", "03-29T01:00:00", "03-29T01:30:00", "03-29T02:00:00"]
        );
        assert_eq!(
            after(&*table, "2026-10-25T00:15:00Z", 5),
            ["10-25T00:30:00", "10-25T01:00:00", "10-25T01:30:00", "10-25T02:00:00", "10-25T02:30:00"]
        );
    }

    #[test]
    fn the_last_instant_is_found_whatever_the_span() {
        for (expression, until, last) in [
            ("* * * * *", "2026-11-22T10:00:30Z", "2026-11-22T10:00:00Z"),
            ("* * * * * *", "2026-11-22T10:00:30Z", "2026-11-22T10:00:30Z"),
            ("0 3 * * *", "2026-11-22T02:59:59Z", "2026-11-21T03:00:00Z"),
            ("0 3 * * *", "2026-11-22T03:00:00Z", "2026-11-22T03:00:00Z"),
            ("0 0 29 2 *", "2027-11-22T10:00:00Z", "2024-02-29T00:00:00Z"),
        ] {
            assert_eq!(table(expression, "UTC").last(at(until)), Some(at(last)), "{expression}");
        }
        let daily = table("30 2 * * *", "Europe/Berlin");
        assert_eq!(daily.last(at("2026-10-25T01:45:00Z")), Some(at("2026-10-25T00:30:00Z")));
    }

    #[test]
    fn faults_name_their_place_and_the_nearest_zone() {
        let fault = |config: Value| Cron.read(&config).err().expect("a fault");
        for (zone, near) in [("Europe/Berlim", "Europe/Berlin"), ("berlin", "Europe/Berlin")] {
            let (place, message) = fault(json!({ "expression": "0 3 * * *", "timeZone": zone }));
            assert!(place == "/timeZone" && message.contains(&format!("did you mean `{near}`")), "{message}");
        }
        for expression in ["", "61 * * * *", "* * *", "0 0 * * * * 2026", "hourly", "0 0 30 2 *"] {
            let (place, message) = fault(json!({ "expression": expression }));
            assert_eq!(place, "/expression", "{expression}");
            assert!(message.contains("`0 3 * * MON-FRI`"), "{message}");
        }
        for (expression, says) in [
            ("61 * * * *", "`61` is no minute (Number out of bounds)"),
            ("0 0 25 * * *", "`25` is no hour"),
            ("0 0 * FOO *", "`FOO` is no month"),
            ("* * *", "it has 3 fields"),
            ("hourly", "it has 1 field;"),
            ("0 0 30 2 *", "never comes"),
        ] {
            let (_, message) = fault(json!({ "expression": expression }));
            assert!(message.contains(says), "{expression}: {message}");
        }
    }
}
