//! The command line: a file per command. Exit codes: 0 done, 1 failed, 2 bad input (a token too); of
//! commands that wait for an execution also 3 cancelled, 4 timed out; of those that speak to a server
//! also 5: there is no answer. With `--json` an error is a document on standard output.
//!
//! `shim` and the host's keeper are processes that must stay small, so they are dispatched before
//! any async runtime exists.

mod apply;
pub mod backup;
pub mod client;
pub mod config;
pub mod demo;
mod export;
mod files;
mod follow;
pub mod host;
pub mod load;
mod logs;
pub mod migrate;
mod remote;
pub mod restore;
mod run;
pub mod sample_app;
pub mod schema;
mod screen;
pub mod serve;
pub mod settings;
pub mod shim;
mod status;
mod steer;
pub mod systemd;
pub mod token;
mod view;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use tokio::signal::unix::{Signal, SignalKind, signal};

use settings::Settings;

const MORE: &str = "\
Examples:
  gennaker demo                  a real rollout under traffic, to look at
  gennaker serve                 the server, on http://127.0.0.1:7777
  gennaker apply -f shop.yaml    applications, load balancers, pipelines from
                                 files
  gennaker run shop/deploy --wait
                                 starts a pipeline and shows it until its end
  gennaker token create --principal bot --role operator
  gennaker host status           what runs on this machine
  gennaker config check          whether the settings hold
  gennaker schema > schema.graphql
  gennaker serve --help          the settings, with their variables

Environment:
  GENNAKER_…           every setting has a variable; `--help` names it beside
                       the flag, which stands before it
  GENNAKER_LOG_FILTER  what is logged: `info`, `gennaker=debug`
  NO_COLOR             no colours, whatever the terminal can

Files:
  ~/.local/share/gennaker        data, where no other directory is given: the
                                 database, and the host's directory in it

Exit status: 0 done, 1 it went wrong, 2 what was given cannot be used; of
commands that speak to a server also 5: it cannot be reached, or cannot work
now.";

/// What a command's exit status says where its own help says nothing of it.
const EXIT_STATUS: &str = "Exit status: 0 done, 1 it went wrong, 2 what was given cannot be used.";

/// The same for a command that speaks to a server.
const EXIT_STATUS_REMOTE: &str = "\
Exit status: 0 done, 1 it went wrong, 2 what was given cannot be used (also
the token), 5 the server cannot be reached, or cannot work now.";

/// A continuous delivery server: pipelines, rollouts under live traffic, and a GraphQL API with
/// subscriptions that can be resumed
#[derive(Debug, Parser)]
#[command(name = "gennaker", version, after_help = MORE, max_term_width = 100, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server
    Serve(Box<serve::Args>),
    /// Deploy a real application from one version to the next under traffic, and watch
    Demo(demo::Args),
    /// Bring what files say to a server: applications, security groups, load balancers, pipelines
    Apply(apply::Args),
    /// Write what a server has as files that `apply` reads
    Export(export::Args),
    /// Start a pipeline, and follow it to its end
    Run(run::Args),
    /// What runs, what ran last, and how the server groups are
    Status(status::Args),
    /// Let a stage that waits for a person go on
    Approve(steer::ApproveArgs),
    /// Stop a stage that waits for a person
    Reject(steer::RejectArgs),
    /// End an execution early
    Cancel(steer::CancelArgs),
    /// What an execution or an instance says
    Logs(logs::Args),
    /// The daemon that owns instances and load balancers of this machine
    Host(host::Args),
    /// The parent of one instance; started by the host
    #[command(hide = true)]
    Shim(shim::Args),
    /// A small HTTP server to deploy: shows its version, and fails in chosen ways
    SampleApp(sample_app::Args),
    /// Create, list and revoke the tokens that let programs and people in
    Token(Box<token::Args>),
    /// Print the GraphQL schema
    Schema(schema::Args),
    /// Bring the database's schema up to date, as `serve` does at its start
    Migrate(Box<migrate::Args>),
    /// Check and show the settings: file, variables and flags together
    Config(Box<config::Args>),
    /// Copy the database while the server runs
    Backup(Box<backup::Args>),
    /// Make the database from a backup
    Restore(Box<restore::Args>),
    /// Print or write the units that run server and host under systemd
    Systemd(systemd::Args),
}

/// The processes that stay for as long as instances run and must be small: their command line is
/// read without the tree of all other commands.
#[derive(Debug, Parser)]
#[command(name = "gennaker", version, max_term_width = 100, disable_help_subcommand = true)]
struct Small {
    #[command(subcommand)]
    command: SmallCommand,
}

/// As in [`Command`].
#[derive(Debug, Subcommand)]
enum SmallCommand {
    /// The daemon that owns instances and load balancers of this machine
    Host(Box<host::Args>),
    /// The parent of one instance; started by the host
    Shim(shim::Args),
}

impl From<Small> for Command {
    fn from(small: Small) -> Self {
        match small.command {
            SmallCommand::Host(args) => Self::Host(*args),
            SmallCommand::Shim(args) => Self::Shim(args),
        }
    }
}

fn parse(arguments: &[OsString]) -> Result<(Command, Settings), settings::Error> {
    if arguments.get(1).is_some_and(|name| name == "host" || name == "shim") {
        let (small, settings) = settings::parse::<Small>(arguments, |_| false)?;
        return Ok((small.into(), settings));
    }
    let (cli, settings) = settings::parse::<Cli>(arguments, config::tolerates)?;
    Ok((cli.command, settings))
}

/// A command did not do what it was asked.
#[derive(Debug)]
pub enum Failure {
    /// What was given cannot be used: exit code 2.
    Input(anyhow::Error),
    /// It went wrong: exit code 1.
    Failed(anyhow::Error),
    /// There is no answer from the server, and another time there may be: exit code 5.
    Away(anyhow::Error),
}

impl Failure {
    /// Bad input.
    pub fn input(error: impl Into<anyhow::Error>) -> Self {
        Self::Input(error.into())
    }

    /// The same, with what it was about.
    fn context(self, about: String) -> Self {
        match self {
            Self::Input(error) => Self::Input(error.context(about)),
            Self::Failed(error) => Self::Failed(error.context(about)),
            Self::Away(error) => Self::Away(error.context(about)),
        }
    }

    /// Tells it; the exit code.
    fn told(self, json: bool) -> ExitCode {
        match self {
            Self::Input(error) => complain(&error, 2, json),
            Self::Failed(error) => complain(&error, 1, json),
            Self::Away(error) => complain(&error, NO_ANSWER, json),
        }
    }
}

/// The exit code where there is no answer from the server.
const NO_ANSWER: u8 = 5;

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// What a command's process ends with.
pub type Outcome = Result<ExitCode, Failure>;

/// Runs the command that the process was started with.
#[must_use]
pub fn main() -> ExitCode {
    // An error means that a provider is there already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let json = arguments.iter().take_while(|argument| *argument != "--").any(|argument| argument == "--json");
    let (command, settings) = match parse(&arguments) {
        Ok(parsed) => parsed,
        Err(settings::Error::Line(error)) if !json || !error.use_stderr() => error.exit(),
        // Its causes say the same at more length.
        Err(error) => return Failure::Input(anyhow::Error::msg(error.to_string())).told(json),
    };
    let outcome = match command {
        Command::Serve(args) => serve::run(*args, settings),
        Command::Config(args) => config::run(*args, settings),
        Command::Demo(args) => demo::run(args),
        Command::Apply(args) => apply::run(args),
        Command::Export(args) => export::run(args),
        Command::Run(args) => run::run(args),
        Command::Status(args) => status::run(args),
        Command::Approve(args) => steer::approve(args),
        Command::Reject(args) => steer::reject(args),
        Command::Cancel(args) => steer::cancel(args),
        Command::Logs(args) => logs::run(args),
        Command::Host(args) => host::run(args),
        Command::Shim(args) => shim::run(args),
        Command::SampleApp(args) => block_on(async { Ok(sample_app::run(args).await.map(|()| ExitCode::SUCCESS)?) }),
        Command::Token(args) => token::run(*args, &settings),
        Command::Schema(args) => schema::run(args),
        Command::Migrate(args) => migrate::run(*args, &settings),
        Command::Backup(args) => backup::run(*args, &settings),
        Command::Restore(args) => restore::run(*args, &settings),
        Command::Systemd(args) => systemd::run(args),
    };
    outcome.unwrap_or_else(|failure| failure.told(json))
}

/// Every command's help ends with what its exit status means.
fn documented(command: clap::Command) -> clap::Command {
    let said = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let remote = command.get_arguments().any(|arg| arg.get_id() == "server");
    let status = if remote { EXIT_STATUS_REMOTE } else { EXIT_STATUS };
    let command = match said.as_str() {
        said if said.contains("Exit status:") => command,
        "" => command.after_help(status),
        said => command.after_help(format!("{said}\n\n{status}")),
    };
    command.mut_subcommands(documented)
}

fn complain(error: &anyhow::Error, code: u8, json: bool) -> ExitCode {
    if json {
        remote::answer(
            &serde_json::json!({ "error": { "code": remote::code_of(error, code), "message": told(error) } }),
        );
    } else {
        remote::warn(&told(error));
    }
    ExitCode::from(code)
}

/// An error with its causes in one line.
fn told(error: &anyhow::Error) -> String {
    // Each level says its own; what a level has quoted already is not said again.
    let said = error.chain().map(ToString::to_string).reduce(|said, cause| match said.contains(&cause) {
        true => said,
        false => format!("{said}: {cause}"),
    });
    said.unwrap_or_default()
}

/// Runs a future on a runtime of its own.
///
/// # Errors
/// When the runtime cannot be made, or the future's own.
pub fn block_on(future: impl Future<Output = Outcome>) -> Outcome {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(future);
    // Blocking calls that nobody waits for any more must not hold up the end.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    outcome
}

/// Variables that begin as ours do, and that no command reads.
fn unknown_variables() -> Vec<crate::config::Fault> {
    crate::config::variables::unknown(&Cli::command(), std::env::vars_os())
}

/// The flags of `serve` and where they come from, read once more; what does not hold in the file is part
/// of the latter.
fn serve_again(arguments: &[OsString]) -> Result<(serve::Args, Settings), settings::Error> {
    // The faults of the file are told together with all others.
    match settings::parse::<Cli>(arguments, config::tolerates)? {
        (Cli { command: Command::Serve(args) }, settings) => Ok((*args, settings)),
        _ => Err(clap::Error::new(clap::error::ErrorKind::InvalidSubcommand).into()),
    }
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// Ctrl-C (SIGINT) or SIGTERM.
    ToEnd,
    /// SIGHUP.
    ToReload,
}

/// The signals of this process; none is lost while these are there.
#[derive(Debug)]
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    /// # Errors
    /// When the handlers cannot be installed.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The next one.
    pub async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.interrupt.recv() => Asked::ToEnd,
            _ = self.terminate.recv() => Asked::ToEnd,
            _ = self.hangup.recv() => Asked::ToReload,
        }
    }

    /// The next one that asks to end; others are let pass.
    pub async fn asked_to_end(&mut self) {
        while self.next().await != Asked::ToEnd {}
    }
}

/// Ends when the process is asked to end: Ctrl-C, SIGTERM or SIGHUP.
///
/// # Errors
/// When the handlers cannot be installed.
pub async fn asked_to_end() -> std::io::Result<()> {
    Signals::new()?.next().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_holds_together() {
        documented(Cli::command()).debug_assert();
        documented(Small::command()).debug_assert();
    }

    #[test]
    fn what_ends_a_help_fits_eighty_columns() {
        fn fits(command: &clap::Command) {
            let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(!text.is_empty(), "{}", command.get_name());
            for line in text.lines() {
                assert!(line.chars().count() <= 78, "{}: {line}", command.get_name());
            }
            command.get_subcommands().for_each(fits);
        }
        fits(&documented(Cli::command()));
    }

    #[test]
    fn what_is_read_without_the_other_commands_is_the_same() {
        let whole = documented(Cli::command());
        for mut command in documented(Small::command()).get_subcommands().cloned() {
            let mut same = whole.find_subcommand(command.get_name()).expect("a command of both").clone();
            assert_eq!(command.render_long_help().to_string(), same.render_long_help().to_string());
        }
    }
}
