//! The command line together with the file of settings. A command reads the file if it takes
//! `--config`: the file's values become the defaults of that command's flags.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgMatches, Command, CommandFactory, FromArgMatches};

use super::Failure;
use crate::config::{self, Errors, Fault, File, Setting};

/// Where the settings of this start came from.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    file: Option<File>,
    /// What did not hold in the file and in variables; none unless the command is there to tell.
    pub faults: Vec<Fault>,
    /// All that the command takes, with values and where they come from.
    pub all: Vec<Setting>,
}

impl Settings {
    /// What does not hold, with the line of the file where it comes from there.
    #[must_use]
    pub fn explain(&self, errors: &Errors) -> Vec<String> {
        let explain = |error: &config::Error| {
            let name = error.setting.trim_start_matches('-');
            match self.all.iter().find(|setting| setting.name == name).map(|setting| &setting.source) {
                Some(config::Source::File { path, line }) => {
                    format!("{}:{line}: `{name}`: {}", path.display(), error.message)
                }
                Some(config::Source::Variable(variable)) => format!("{variable}: {}", error.message),
                _ => error.to_string(),
            }
        };
        errors.0.iter().map(explain).collect()
    }

    /// What a server is to have.
    ///
    /// # Errors
    /// Everything that does not hold, in the file, in variables and in flags.
    pub fn validate(&self, args: config::Args) -> Result<config::Config, Vec<String>> {
        let read = self.faults.iter().map(ToString::to_string);
        match args.validate() {
            Ok(config) if self.faults.is_empty() => Ok(config),
            Ok(_) => Err(read.collect()),
            Err(errors) => Err(read.chain(self.explain(&errors)).collect()),
        }
    }

    /// What does not hold as a reason to end.
    #[must_use]
    pub fn failure(&self, errors: &Errors) -> Failure {
        Failure::Input(anyhow::anyhow!(self.explain(errors).join("\n")))
    }

    /// The file's path, if one is read.
    #[must_use]
    pub fn path(&self) -> Option<&std::path::Path> {
        self.file.as_ref().map(File::path)
    }
}

/// A command line that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Also the help that was asked for.
    #[error("{}", config::in_one_line(.0))]
    Line(#[from] clap::Error),
    /// The file of settings does not hold; all faults of it.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Faults(Vec<Fault>),
}

/// Reads the command line, and the file where the command takes one. `tolerant` says whether the
/// command is to be run although the file has faults.
///
/// # Errors
/// When the line or the file does not hold, and when help is asked for.
pub fn parse<C: CommandFactory + FromArgMatches>(
    arguments: &[OsString],
    tolerant: impl Fn(&[String]) -> bool,
) -> Result<(C, Settings), Error> {
    let fresh = |left_out: &[String]| {
        let command = config::variables::as_named(super::documented(C::command()));
        config::variables::without(command, left_out)
    };
    let (command, matches, left_out, mut faults) = first_look(fresh, arguments)?;
    let path = chosen(&matches);
    let (leaf, inner) = leaf(&command, &matches);
    let takes_file = leaf.get_arguments().any(|arg| arg.get_id() == "config");
    let given = || inner.get_one::<PathBuf>("config").cloned().or_else(File::usual_path);
    let file = takes_file.then(given).flatten().map(|path| File::read(&path)).map(|(file, its)| {
        faults.extend(its);
        file
    });
    if !faults.is_empty() && !tolerant(&path) {
        return Err(Error::Faults(faults));
    }
    if !takes_file {
        return Ok((C::from_arg_matches(&matches)?, Settings::default()));
    }
    let Some(file) = file else {
        let all = config::effective(leaf, inner, None);
        return Ok((C::from_arg_matches(&matches)?, Settings { file: None, faults, all }));
    };
    let mut command = at(fresh(&left_out), &path, &|command| file.apply(command));
    let matches = command.try_get_matches_from_mut(arguments)?;
    let (leaf, inner) = self::leaf(&command, &matches);
    let all = config::effective(leaf, inner, Some(&file));
    Ok((C::from_arg_matches(&matches)?, Settings { file: Some(file), faults, all }))
}

/// What was chosen. Flags whose variable does not hold are named, it is told and not read.
fn first_look(
    fresh: impl Fn(&[String]) -> Command,
    arguments: &[OsString],
) -> Result<(Command, ArgMatches, Vec<String>, Vec<Fault>), clap::Error> {
    let (mut left_out, mut faults) = (Vec::new(), Vec::new());
    loop {
        let mut command = fresh(&left_out);
        let error = match command.try_get_matches_from_mut(arguments) {
            Ok(matches) => return Ok((command, matches, left_out, faults)),
            Err(error) => error,
        };
        let Some((flag, its)) = config::variables::at_fault(fresh(&left_out), arguments, &error) else {
            return Err(error);
        };
        left_out.push(flag);
        faults.extend(its);
    }
}

/// The names of the commands within each other that were chosen.
fn chosen(matches: &ArgMatches) -> Vec<String> {
    let mut path = Vec::new();
    let mut here = matches;
    while let Some((name, inner)) = here.subcommand() {
        path.push(name.to_owned());
        here = inner;
    }
    path
}

fn leaf<'a>(command: &'a Command, matches: &'a ArgMatches) -> (&'a Command, &'a ArgMatches) {
    match matches.subcommand().and_then(|(name, inner)| Some((command.find_subcommand(name)?, inner))) {
        Some((command, inner)) => leaf(command, inner),
        None => (command, matches),
    }
}

/// Changes the command at the end of the path.
fn at(command: Command, path: &[String], change: &dyn Fn(Command) -> Command) -> Command {
    match path.split_first() {
        Some((name, rest)) => command.mut_subcommand(name, |inner| at(inner, rest, change)),
        None => change(command),
    }
}
