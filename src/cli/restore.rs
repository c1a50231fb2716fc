//! `gennaker restore`: the database of a data directory, made from a backup.

use std::path::PathBuf;
use std::process::ExitCode;

use super::settings::Settings;
use super::{Outcome, block_on};
use crate::clock::Clock;
use crate::config::{DataArgs, LogArgs};
use crate::store;
use crate::telemetry;

/// Flags.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  gennaker restore /var/backups/gennaker-2026-11-21.db --data-dir /var/lib/gennaker
  gennaker restore yesterday.db --force
  DATABASE_URL=postgres://… gennaker restore --in-place      after pg_restore

No server may run on the data. What was under way when the backup was made goes on at the next
start, and looks before it acts: it finds server groups that it made after the backup, and calls
that may have been made then (a webhook's POST) count as ones of unknown outcome. Cursors of
subscriptions from before are answered with the gap and a snapshot. Executions, names and tokens
made after the backup are not known any more; tokens revoked after it are valid again: revoke them
anew. Give the server the same host directory as before (--host-dir).")]
pub struct Args {
    /// What `gennaker backup` made
    #[arg(value_name = "FILE", required_unless_present = "in_place", conflicts_with = "in_place")]
    pub file: Option<PathBuf>,
    /// Keep a database that is there aside, and put the backup in its place
    #[arg(long, conflicts_with = "in_place")]
    pub force: bool,
    /// PostgreSQL only: the database was restored by pg_restore just now, and no server has run since
    #[arg(long)]
    pub in_place: bool,
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub log: LogArgs,
}

/// Restores.
///
/// # Errors
/// When the directory is in use, there is a database, or the file is no usable backup.
pub fn run(args: Args, settings: &Settings) -> Outcome {
    telemetry::start(args.log.format, telemetry::Target::Stderr);
    let data = args.data.validate().map_err(|error| settings.refusal(error))?;
    block_on(async move {
        let (options, now) = (data.store_options(), Clock::system().now());
        let restored = match &args.file {
            Some(file) => store::restore(&options, file, args.force, now).await?,
            None => store::adopt_restored(&options, now).await?,
        };
        println!(
            "restored, {}: {} executions, {} of them go on at the next start",
            data.describe(),
            restored.executions,
            restored.unfinished
        );
        if let Some(kept) = restored.kept {
            println!("the database that was there is kept as {}", kept.display());
        }
        Ok(ExitCode::SUCCESS)
    })
}
