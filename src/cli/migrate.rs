//! `gennaker migrate`: the database's schema brought up to date without serving.

use std::process::ExitCode;

use super::{Failure, Outcome, block_on};
use crate::clock::Clock;
use crate::config::{DataArgs, LogArgs};
use crate::store::Store;
use crate::telemetry;

/// Flags.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  gennaker migrate
  gennaker migrate --data-dir /var/lib/gennaker

`serve` does this at its start; a SQLite file is copied first, beside itself. No
server may run on the data.

Exit status: 0 it is up to date, 1 it is in use, cannot be opened, or is newer
than this binary, 2 a setting does not hold.")]
pub struct Args {
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub log: LogArgs,
}

/// Migrates.
///
/// # Errors
/// When the database cannot be opened, is in use, or is newer than this binary.
pub fn run(args: Args) -> Outcome {
    telemetry::start(args.log.format, telemetry::Target::Stderr);
    let data = args.data.validate().map_err(Failure::input)?;
    block_on(async move {
        let store = Store::open(&data.store_options(), Clock::system()).await?;
        store.close().await;
        println!("the database is up to date: {}", data.describe());
        Ok(ExitCode::SUCCESS)
    })
}
