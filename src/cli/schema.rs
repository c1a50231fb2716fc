//! `gennaker schema`: the GraphQL schema as text. The repository keeps it in `schema.graphql`.

use std::io::Write;
use std::process::ExitCode;

use super::Outcome;

/// Flags.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  gennaker schema > schema.graphql")]
pub struct Args {}

/// Prints.
///
/// # Errors
/// When standard output is closed.
pub fn run(Args {}: Args) -> Outcome {
    std::io::stdout().write_all(crate::api::sdl().as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
