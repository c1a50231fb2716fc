//! What holds in the end: each setting's value and where it came from, without secrets; and the
//! table of limits.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::file::{File, known, settings};
use crate::secrets::SCHEME;

/// Settings that a running server takes over when its file is read again; all others need a
/// restart. Those of TLS only while TLS stays on.
pub const LIVE: &[&str] = &[
    "log-filter",
    "retention-days",
    "audit-retention-days",
    "cors-allowed-origins",
    "trusted-proxies",
    "max-body-bytes",
    "max-page",
    "tls-cert",
    "tls-key",
];

/// What a mask looks like.
const MASK: &str = "***";

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The command line: the flag, with its hyphens.
    Flag(String),
    /// The environment: the variable's name.
    Variable(String),
    /// The file of settings.
    File {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// Nobody gave it.
    Default,
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Flag(name) => write!(f, "flag {name}"),
            Self::Variable(name) => write!(f, "variable {name}"),
            Self::File { path, line } => write!(f, "file {}:{line}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

/// One setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The flag's name, without the hyphens before it.
    pub name: String,
    /// Where the value came from.
    pub source: Source,
    /// As given: may be secret. Empty when it is not set.
    raw: Vec<OsString>,
    /// For people.
    shown: Vec<String>,
    form: Form,
}

/// How a value is written in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Bare,
    Text,
    List,
}

impl Setting {
    /// Whether both have the same value, wherever they have it from.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        self.raw == other.raw
    }

    /// The value as a file would have it, without secrets; None when it is not set.
    #[must_use]
    pub fn value(&self) -> Option<serde_json::Value> {
        use serde_json::Value;
        let bare = |text: &String| serde_json::from_str(text).unwrap_or_else(|_| Value::from(text.as_str()));
        match self.form {
            Form::List => Some(self.shown.iter().map(|text| Value::from(text.as_str())).collect()),
            Form::Bare => self.shown.first().map(bare),
            Form::Text => self.shown.first().map(|text| Value::from(text.as_str())),
        }
    }

    /// Says what holds where nothing was given and the server derives it.
    pub fn derived(&mut self, path: &Path) {
        if self.shown.is_empty() {
            self.shown = vec![path.display().to_string()];
        }
    }
}

/// All settings of a server that a command takes, in the order of its help.
#[must_use]
pub fn effective(command: &Command, matches: &ArgMatches, file: Option<&File>) -> Vec<Setting> {
    let all = settings();
    let is_setting = |name: &str| known(&all).any(|(known, _)| known == name);
    known(command).filter(|(name, _)| is_setting(name)).map(|(name, arg)| setting(name, arg, matches, file)).collect()
}

fn setting(name: &str, arg: &Arg, matches: &ArgMatches, file: Option<&File>) -> Setting {
    let id = arg.get_id().as_str();
    let variable = || arg.get_env().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let source = match (matches.value_source(id), file.and_then(|file| Some((file, file.line(name)?)))) {
        (Some(ValueSource::CommandLine), _) => Source::Flag(format!("--{name}")),
        (Some(ValueSource::EnvVariable), _) => Source::Variable(variable()),
        (_, Some((file, line))) => Source::File { path: file.path().to_owned(), line },
        _ => Source::Default,
    };
    let is_switch = matches!(arg.get_action(), ArgAction::SetTrue | ArgAction::SetFalse);
    let raw: Vec<OsString> = if is_switch {
        vec![matches.get_flag(id).to_string().into()]
    } else {
        matches.get_raw(id).into_iter().flatten().map(ToOwned::to_owned).collect()
    };
    let shown: Vec<_> = raw.iter().map(|value| masked(arg, &value.to_string_lossy())).collect();
    let is_number = || shown.first().is_some_and(|text| text.parse::<f64>().is_ok()) && !is_secret(arg);
    let form = match arg.get_action() {
        ArgAction::Append => Form::List,
        _ if is_switch || is_number() => Form::Bare,
        _ => Form::Text,
    };
    Setting { name: name.to_owned(), source, raw, shown, form }
}

/// A setting whose value may be, or hold, a secret: those that `--help` hides, and what is named so.
pub(super) fn is_secret(arg: &Arg) -> bool {
    let name = arg.get_long().unwrap_or_default();
    arg.is_hide_env_values_set() || name.ends_with("password") || name.ends_with("-secret") || name.ends_with("-token")
}

/// Whether this value of the setting is a secret itself: no reference to one, and no address
/// without a password.
pub(super) fn has_secret(arg: &Arg, value: &str) -> bool {
    is_secret(arg) && masked(arg, value) != value
}

/// The value without what is secret in it.
fn masked(arg: &Arg, value: &str) -> String {
    if value.starts_with(SCHEME) {
        return value.to_owned();
    }
    if value.contains("://") {
        return masked_url(value);
    }
    if is_secret(arg) && !value.is_empty() { MASK.to_owned() } else { value.to_owned() }
}

/// The address without its password, also where that stands in the query.
fn masked_url(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (place, query) = rest.split_once('?').map_or((rest, None), |(place, query)| (place, Some(query)));
    // The last one, since a password may hold others.
    let place = match place.rsplit_once('@') {
        Some((who, host)) => match who.split_once(':') {
            Some((user, _)) => format!("{user}:{MASK}@{host}"),
            None => format!("{who}@{host}"),
        },
        None => place.to_owned(),
    };
    let mut shown = format!("{scheme}://{place}");
    for (index, pair) in query.into_iter().flat_map(|query| query.split('&')).enumerate() {
        shown.push(if index == 0 { '?' } else { '&' });
        match pair.split_once('=') {
            Some((name, _))
                if ["pass", "secret", "token", "key"].iter().any(|word| name.to_lowercase().contains(word)) =>
            {
                let _ = write!(shown, "{name}={MASK}");
            }
            _ => shown.push_str(pair),
        }
    }
    shown
}

/// Every limit with its flag and default, as the README has it.
#[must_use]
pub fn limits_table() -> String {
    let command = settings();
    let mut table = String::from("| limit | setting | default |\n|---|---|---|\n");
    for (name, arg) in known(&command).filter(|(name, _)| is_limit(name)) {
        let what = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let default = arg.get_default_values().first().map(|value| value.to_string_lossy().into_owned());
        let default = default.map_or_else(|| "none".to_owned(), |value| in_units(name, &value));
        let _ = writeln!(table, "| {} | `--{name}` | {default} |", what.replace('|', "\\|").replace('\n', " "));
    }
    table
}

fn is_limit(name: &str) -> bool {
    name.starts_with("max-") || name.ends_with("retention-days") || name.contains("quota")
}

/// A number with its unit, which the name ends with.
fn in_units(name: &str, value: &str) -> String {
    const KIB: u64 = 1024;
    let Ok(number) = value.parse::<u64>() else { return value.to_owned() };
    if name.ends_with("-bytes") {
        return match number {
            number if number >= KIB * KIB * KIB && number % (KIB * KIB * KIB) == 0 => {
                format!("{} GiB", number / KIB / KIB / KIB)
            }
            number if number >= KIB * KIB && number % (KIB * KIB) == 0 => format!("{} MiB", number / KIB / KIB),
            number if number >= KIB && number % KIB == 0 => format!("{} KiB", number / KIB),
            number => format!("{number} B"),
        };
    }
    for (end, unit) in [("-days", "days"), ("-hours", "hours"), ("-seconds", "s")] {
        if name.ends_with(end) {
            return format!("{number} {unit}");
        }
    }
    value.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_in_addresses_are_masked_wherever_they_stand() {
        for (url, shown) in [
            ("postgres://g:pw@db/g", "postgres://g:***@db/g"),
            ("postgres://g:p@w:x/y@db:5432/g", "postgres://g:***@db:5432/g"),
            ("postgres://g@db/g", "postgres://g@db/g"),
            (
                "postgres://db/g?user=g&password=pw&sslmode=require",
                "postgres://db/g?user=g&password=***&sslmode=require",
            ),
            ("http://127.0.0.1:4318/v1/traces", "http://127.0.0.1:4318/v1/traces"),
        ] {
            assert_eq!(masked_url(url), shown);
        }
    }

    #[test]
    fn a_secret_is_masked_whole_and_a_reference_is_shown() {
        let arg = Arg::new("x").long("smtp-password");
        assert_eq!(masked(&arg, "pw"), "***");
        assert_eq!(masked(&arg, "secret://env/GENNAKER_SECRET_X"), "secret://env/GENNAKER_SECRET_X");
        assert!(has_secret(&arg, "pw") && !has_secret(&arg, "secret://file/x"));
        assert_eq!(masked(&Arg::new("x").long("listen"), "127.0.0.1:1"), "127.0.0.1:1");
    }

    #[test]
    fn what_changes_at_run_time_are_settings() {
        let command = settings();
        for name in LIVE {
            assert!(known(&command).any(|(known, _)| known == *name), "{name}");
        }
    }

    #[test]
    fn every_limit_is_in_the_table_with_its_unit() {
        let table = limits_table();
        for row in
            ["`--max-config-bytes` | 256 KiB |", "`--max-body-bytes` | 1 MiB |", "`--retention-days` | 30 days |"]
        {
            assert!(table.contains(row), "{table}");
        }
        assert_eq!(in_units("max-x-bytes", "10737418240"), "10 GiB");
        assert_eq!(in_units("max-x-bytes", "1025"), "1025 B");
    }
}
