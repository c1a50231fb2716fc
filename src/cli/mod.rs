//! The command line: a file per command. Exit codes: 0 done, 1 failed, 2 bad input.
//!
//! `shim` and the host's keeper are processes that must stay small, so they are dispatched before
//! any async runtime exists.

pub mod client;
pub mod demo;
pub mod host;
pub mod load;
pub mod migrate;
pub mod sample_app;
pub mod schema;
pub mod serve;
pub mod shim;
pub mod token;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

const EXAMPLES: &str = "\
Examples:
  gennaker demo                          a real rollout under traffic, to look at
  gennaker serve                         the server, on http://127.0.0.1:7777
  gennaker token create --principal bot --role operator
  gennaker host status                   what runs on this machine
  gennaker schema > schema.graphql";

/// A continuous delivery server: pipelines, rollouts under live traffic, and a GraphQL API with
/// subscriptions that can be resumed
#[derive(Debug, Parser)]
#[command(name = "gennaker", version, after_help = EXAMPLES, disable_help_subcommand = true)]
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
    /// The daemon that owns instances and load balancers of this machine
    Host(host::Args),
    /// The parent of one instance; started by the host
    #[command(hide = true)]
    Shim(shim::Args),
    /// A small HTTP server to deploy: shows its version, and fails in chosen ways
    SampleApp(sample_app::Args),
    /// Create, list and revoke the tokens that let programs and people in
    Token(token::Args),
    /// Print the GraphQL schema
    Schema(schema::Args),
    /// Bring the database's schema up to date, as `serve` does at its start
    Migrate(migrate::Args),
}

/// A command did not do what it was asked.
#[derive(Debug)]
pub enum Failure {
    /// What was given cannot be used: exit code 2.
    Input(anyhow::Error),
    /// It went wrong: exit code 1.
    Failed(anyhow::Error),
}

impl Failure {
    /// Bad input.
    pub fn input(error: impl Into<anyhow::Error>) -> Self {
        Self::Input(error.into())
    }
}

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
    let outcome = match Cli::parse().command {
        Command::Serve(args) => serve::run(*args),
        Command::Demo(args) => demo::run(args),
        Command::Host(args) => host::run(args),
        Command::Shim(args) => shim::run(args),
        Command::SampleApp(args) => block_on(async { Ok(sample_app::run(args).await.map(|()| ExitCode::SUCCESS)?) }),
        Command::Token(args) => token::run(args),
        Command::Schema(args) => schema::run(args),
        Command::Migrate(args) => migrate::run(args),
    };
    match outcome {
        Ok(code) => code,
        Err(Failure::Input(error)) => complain(&error, 2),
        Err(Failure::Failed(error)) => complain(&error, 1),
    }
}

fn complain(error: &anyhow::Error, code: u8) -> ExitCode {
    // Each level says its own; what a level has quoted already is not said again.
    let said = error.chain().map(ToString::to_string).reduce(|said, cause| match said.contains(&cause) {
        true => said,
        false => format!("{said}: {cause}"),
    });
    eprintln!("gennaker: {}", said.unwrap_or_default());
    ExitCode::from(code)
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

/// Ends when the process is asked to end: Ctrl-C, SIGTERM or SIGHUP.
///
/// # Errors
/// When the handlers cannot be installed.
pub async fn asked_to_end() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_holds_together() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
