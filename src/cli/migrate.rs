//! `gennaker migrate`: the database's schema brought up to date without serving; or a SQLite
//! server's data moved to PostgreSQL.

use std::process::ExitCode;

use super::settings::Settings;
use super::{Failure, Outcome, block_on};
use crate::clock::Clock;
use crate::config::{DataConfig, DatabaseArgs, LogArgs};
use crate::store::{self, Store};
use crate::telemetry;

/// Flags.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  gennaker migrate
  gennaker migrate --data-dir /var/lib/gennaker
  gennaker migrate --to postgres://gennaker@db/gennaker --verify

`serve` does the first at its start; a SQLite file is copied first, beside
itself. No server may run on the data.

--to moves a stopped SQLite server to an empty PostgreSQL database, in one
transaction: the same ids, numbers and cursors, so that runs go on and
subscribers resume. The SQLite file stays as it is. Afterwards start `serve`
with GENNAKER_DATABASE_URL and the same --data-dir or --host-dir.

Exit status: 0 it is up to date, or moved; 1 it is in use, cannot be opened,
or is newer than this binary, 2 a setting does not hold.")]
pub struct Args {
    /// Move the SQLite data to this empty PostgreSQL database: postgres://user@host/database
    #[arg(long, env = "GENNAKER_MIGRATE_TO", value_name = "URL", hide_env_values = true)]
    pub to: Option<String>,
    /// After the move, read both again and compare every row
    #[arg(long, requires = "to")]
    pub verify: bool,
    /// Where the database is.
    #[command(flatten)]
    pub data: DatabaseArgs,
    /// How the log is written.
    #[command(flatten)]
    pub log: LogArgs,
}

/// Migrates.
///
/// # Errors
/// When the database cannot be opened, is in use, or is newer than this binary.
pub fn run(args: Args, settings: &Settings) -> Outcome {
    telemetry::start(args.log.format, telemetry::Target::Stderr);
    let data = args.data.validate().map_err(|errors| settings.failure(&errors))?;
    if let Some(to) = args.to {
        return transfer(data, to, args.verify);
    }
    block_on(async move {
        let store = Store::open(&data.store_options(), Clock::system()).await?;
        store.close().await;
        println!("the database is up to date: {}", data.describe());
        Ok(ExitCode::SUCCESS)
    })
}

fn transfer(data: DataConfig, to: String, verify: bool) -> Outcome {
    if data.database_url.is_some() {
        let message = "--to moves the SQLite database of the data directory; unset GENNAKER_DATABASE_URL and DATABASE_URL, \
                       and leave --database-url out";
        return Err(Failure::input(anyhow::anyhow!(message)));
    }
    if !["postgres://", "postgresql://"].iter().any(|scheme| to.starts_with(scheme)) {
        return Err(Failure::input(anyhow::anyhow!("--to is not a postgres:// URL")));
    }
    store::Options::judge_url(&to).map_err(|message| Failure::input(anyhow::anyhow!("--to: {message}")))?;
    block_on(async move {
        let tell = |table: &str, rows: u64| println!("  {table}: {rows} rows");
        let moved = store::transfer(&data.store_options(), &to, verify, tell).await?;
        let rows: u64 = moved.tables.iter().map(|table| table.rows).sum();
        let verified = if verify { ", compared row by row" } else { "" };
        println!("moved {rows} rows of {} tables{verified}; {} was only read", moved.tables.len(), data.dir.display());
        println!("start `gennaker serve` with GENNAKER_DATABASE_URL set to that database and the same --data-dir");
        Ok(ExitCode::SUCCESS)
    })
}
