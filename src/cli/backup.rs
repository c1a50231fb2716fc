//! `gennaker backup`: a copy of the database while it is served.

use std::path::PathBuf;
use std::process::ExitCode;

use super::settings::Settings;
use super::{Outcome, block_on};
use crate::config::{DatabaseArgs, LogArgs};
use crate::store;
use crate::telemetry;

/// Flags.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  gennaker backup /var/backups/gennaker-$(date +%F).db
  gennaker backup --data-dir /var/lib/gennaker --force latest.db

The server may run and goes on writing meanwhile. The copy is of one instant,
is read back and checked, and appears under its name only when it is whole;
only its owner may read it. It holds tokens as hashes, and no secrets that
configs refer to. Instances, load balancers and artifacts are in the host's
own directory and not part of it. For PostgreSQL use pg_dump.")]
pub struct Args {
    /// Where the copy goes
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Replace the file if it is there
    #[arg(long)]
    pub force: bool,
    /// Where the database is.
    #[command(flatten)]
    pub data: DatabaseArgs,
    /// How the log is written.
    #[command(flatten)]
    pub log: LogArgs,
}

/// Backs up.
///
/// # Errors
/// When there is no database, the file is there, or the copy does not come about.
pub fn run(args: Args, settings: &Settings) -> Outcome {
    telemetry::start(args.log.format, telemetry::Target::Stderr);
    let data = args.data.validate().map_err(|errors| settings.failure(&errors))?;
    block_on(async move {
        let made = store::backup(&data.store_options(), &args.file, args.force).await?;
        println!(
            "{}: {} bytes, {} executions ({} unfinished)",
            args.file.display(),
            made.bytes,
            made.executions,
            made.unfinished
        );
        Ok(ExitCode::SUCCESS)
    })
}
