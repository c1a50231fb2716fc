//! Variables of the environment: one that does not hold is told by its own name, and so is one that
//! begins as ours do and that nothing reads.

use std::collections::BTreeSet;
use std::ffi::OsString;

use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue};
use clap::{Arg, Command};

use super::Fault;
use super::effective::is_secret;
use super::file::{does_not_hold, holds};
use crate::near::nearest;
use crate::secrets::ENVIRONMENT_PREFIX;

/// What our variables begin with.
const PREFIX: &str = "GENNAKER_";
/// What is not read by any command: by the trials, and by the container's look at its health.
const TRIALS: &str = "GENNAKER_TEST_";
const CONTAINER: &str = "GENNAKER_HEALTH_URL";

/// The variable of the database, and the name by which other programs know it too.
pub(super) const DATABASE_URL: &str = "GENNAKER_DATABASE_URL";
const DATABASE_URL_OF_ALL: &str = "DATABASE_URL";

/// The command as this environment names its variables: `DATABASE_URL` where ours is not set.
#[must_use]
pub fn as_named(command: Command) -> Command {
    if std::env::var_os(DATABASE_URL).is_some() || std::env::var_os(DATABASE_URL_OF_ALL).is_none() {
        return command;
    }
    each_database(command)
}

fn each_database(command: Command) -> Command {
    let is_database = |arg: &Arg| arg.get_env().is_some_and(|name| name == DATABASE_URL);
    let command = command.mut_args(|arg| if is_database(&arg) { arg.env(DATABASE_URL_OF_ALL) } else { arg });
    command.mut_subcommands(each_database)
}

/// Variables that are set and that neither a command reads nor anything else of ours.
#[must_use]
pub fn unknown(command: &Command, set: impl IntoIterator<Item = (OsString, OsString)>) -> Vec<Fault> {
    let mut known = BTreeSet::from([CONTAINER.to_owned()]);
    each_arg(command, &mut |arg| known.extend(variable(arg)));
    // `GENNAKER_SECRET_DIR` is hardly a secret's name: one edit away is a slip.
    let slip = |name: &str| known.iter().any(|known| strsim::damerau_levenshtein(name, known) == 1);
    let set = set.into_iter().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
    let unknown: BTreeSet<_> = set
        .filter(|(name, value)| {
            name.starts_with(PREFIX)
                && !known.contains(name)
                && !name.starts_with(TRIALS)
                && (!name.starts_with(ENVIRONMENT_PREFIX) || slip(name))
                && !of_a_service(name, &value.to_string_lossy())
        })
        .map(|(name, _)| name)
        .collect();
    let fault = |name: String| {
        let own = known.iter().filter_map(|known| known.strip_prefix(PREFIX));
        let hint = nearest(name.strip_prefix(PREFIX).unwrap_or_default(), own).first().map_or_else(
            || "`gennaker serve --help` names all that a server has".to_owned(),
            |near| format!("did you mean `{PREFIX}{near}`?"),
        );
        Fault { place: name, line: None, message: format!("there is no such variable; {hint}") }
    };
    unknown.into_iter().map(fault).collect()
}

/// Kubernetes tells every container of its services: of one that is called `gennaker` by
/// `GENNAKER_SERVICE_HOST`, `GENNAKER_PORT=tcp://…`, `GENNAKER_PORT_7777_TCP_ADDR`.
fn of_a_service(name: &str, value: &str) -> bool {
    let port = |rest: &str| rest.starts_with(|first: char| first.is_ascii_digit());
    name.contains("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.ends_with("_PORT") && value.contains("://")
        || name.split_once("_PORT_").is_some_and(|(_, rest)| port(rest))
}

/// Where a command line does not hold because of a variable: the flag that has it, and what is wrong
/// with it.
#[must_use]
pub fn at_fault(command: Command, arguments: &[OsString], error: &clap::Error) -> Option<(String, Vec<Fault>)> {
    let Some(ContextValue::String(shown)) = error.get(ContextKind::InvalidArg) else { return None };
    // `--max-page <COUNT>`
    let flag = shown.strip_prefix("--")?.split([' ', '=', '[']).next()?;
    let mut found = None;
    each_arg(&command, &mut |arg| {
        if arg.get_long() == Some(flag) && arg.get_env().is_some_and(|name| std::env::var_os(name).is_some()) {
            found = variable(arg).map(|name| (name, arg.clone()));
        }
    });
    let (place, arg) = found?;
    // A flag stands above its variable: then the fault is the flag's, and stays.
    let again = without(command, &[flag.to_owned()]).try_get_matches_from(arguments);
    if again.is_err_and(|again| again.to_string() == error.to_string()) {
        return None;
    }
    // The line says the first item of a list that does not hold.
    let items = std::env::var(&place).ok().zip(arg.get_value_delimiter());
    let mut messages: Vec<_> = match items {
        Some((text, delimiter)) => text.split(delimiter).filter_map(|item| holds(&arg, item).err()).collect(),
        None => Vec::new(),
    };
    if messages.is_empty() {
        messages.push(does_not_hold(error, is_secret(&arg)));
    }
    let fault = |message| Fault { place: place.clone(), line: None, message };
    Some((flag.to_owned(), messages.into_iter().map(fault).collect()))
}

/// The command with these flags as if they had no variables.
#[must_use]
pub fn without(command: Command, flags: &[String]) -> Command {
    if flags.is_empty() {
        return command;
    }
    let left_out = |arg: &Arg| arg.get_long().is_some_and(|long| flags.iter().any(|flag| flag == long));
    let command = command.mut_args(|arg| if left_out(&arg) { arg.env(Resettable::Reset) } else { arg });
    command.mut_subcommands(|inner| without(inner, flags))
}

fn variable(arg: &Arg) -> Option<String> {
    Some(arg.get_env()?.to_string_lossy().into_owned())
}

fn each_arg(command: &Command, see: &mut impl FnMut(&Arg)) {
    command.get_arguments().for_each(&mut *see);
    command.get_subcommands().for_each(|inner| each_arg(inner, see));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(set: &[(&str, &str)]) -> Vec<String> {
        let command = Command::new("gennaker")
            .subcommand(Command::new("serve").arg(Arg::new("listen").long("listen").env("GENNAKER_LISTEN")))
            .subcommand(Command::new("run").arg(Arg::new("token").long("token").env("GENNAKER_TOKEN")))
            .subcommand(Command::new("host").arg(Arg::new("dirs").long("secret-dir").env("GENNAKER_SECRET_DIRS")));
        let set = set.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
        unknown(&command, set).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn variables_that_nothing_reads_are_told_with_the_nearest_name() {
        assert_eq!(
            told(&[
                ("GENNAKER_LISTN", "x"),
                ("GENNAKER_TOKEN", "x"),
                ("GENNAKER_SOMETHING_ELSE", "x"),
                ("LISTEN", "x")
            ]),
            [
                "GENNAKER_LISTN: there is no such variable; did you mean `GENNAKER_LISTEN`?",
                "GENNAKER_SOMETHING_ELSE: there is no such variable; `gennaker serve --help` names all that a server has",
            ]
        );
    }

    #[test]
    fn a_slip_in_the_variable_for_secret_directories_is_not_taken_for_a_secret() {
        for slip in ["GENNAKER_SECRET_DIR", "GENNAKER_SECRET_DISR", "GENNAKER_SECRET_DIRSS"] {
            let expected = format!("{slip}: there is no such variable; did you mean `GENNAKER_SECRET_DIRS`?");
            assert_eq!(told(&[(slip, "/run/secrets")]), [expected]);
        }
        for fine in ["GENNAKER_SECRET_DIRS", "GENNAKER_SECRET_DIRECT"] {
            assert_eq!(told(&[(fine, "/run/secrets")]), Vec::<String>::new());
        }
    }

    #[test]
    fn what_others_read_or_set_is_not_told() {
        let others = [
            ("GENNAKER_SECRET_SMTP", "x"),
            ("GENNAKER_TEST_DATABASE_URL", "x"),
            ("GENNAKER_HEALTH_URL", "x"),
            ("GENNAKER_SERVICE_HOST", "10.0.0.1"),
            ("GENNAKER_SERVICE_PORT_HTTP", "7777"),
            ("GENNAKER_PORT", "tcp://10.0.0.1:7777"),
            ("GENNAKER_PORT_7777_TCP_PROTO", "tcp"),
        ];
        assert_eq!(told(&others), Vec::<String>::new());
        assert_eq!(told(&[("GENNAKER_PORT", "7777")]).len(), 1, "somebody takes it for a setting");
    }
}
