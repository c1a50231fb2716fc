//! `gennaker shim`: the parent of one instance. Started by a host, not by people.

use std::path::PathBuf;
use std::process::ExitCode;

use super::Outcome;

/// What `gennaker shim` is given.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The instance's directory.
    #[arg(long)]
    pub dir: PathBuf,
}

/// Runs the instance to its end. Must be called before any thread or runtime exists.
///
/// # Errors
/// What kept the shim from its work.
pub fn run(args: Args) -> Outcome {
    crate::providers::host::shim::run(&args.dir)?;
    Ok(ExitCode::SUCCESS)
}
