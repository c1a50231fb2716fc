//! `gennaker restore`: the database of a data directory, made from a backup.

use std::path::PathBuf;
use std::process::ExitCode;

use chrono::{DateTime, Utc};

use super::settings::Settings;
use super::view::visible;
use super::{Outcome, block_on};
use crate::clock::Clock;
use crate::config::{DatabaseArgs, LogArgs};
use crate::engine::contract::Registry;
use crate::model::DeliveryState;
use crate::store::{self, DeliveryFilter, PageRequest, Store};
use crate::telemetry;
use crate::triggers;

/// Flags.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  gennaker restore /var/backups/gennaker-2026-11-21.db \\
      --data-dir /var/lib/gennaker
  gennaker restore yesterday.db --force
  GENNAKER_DATABASE_URL=postgres://… gennaker restore --in-place
                                  after pg_restore

No server may run on the data. What was under way when the backup was made
goes on at the next start, and looks before it acts: it finds server groups
that it made after the backup, and calls that may have been made then (a
webhook's POST) count as ones of unknown outcome. Cursors of subscriptions
from before are answered with the gap and a snapshot. Executions, names and
tokens made after the backup are not known any more; tokens revoked after it
are valid again: revoke them anew. Give the server the same host directory as
before (--host-dir).

What waited when the backup was made may have been done since, and is done
again by the next start: mails that had not been sent, ends of executions that
triggers had still to act upon, and a slot that a timetable has missed, if it
says RUN_ONCE. They are listed; --hold holds them back: mails become dead
letters (`retryDelivery` sends one), triggers go on with what comes next. An
execution that goes on tells people, and starts what waits for its end, once
more in any case.")]
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
    /// Hold back the mails and triggers of the time before, which may have been sent and started since
    #[arg(long)]
    pub hold: bool,
    /// Where the database shall be.
    #[command(flatten)]
    pub data: DatabaseArgs,
    /// How the log is written.
    #[command(flatten)]
    pub log: LogArgs,
}

/// Restores.
///
/// # Errors
/// When the directory is in use, there is a database, or the file is no usable backup.
pub fn run(args: Args, settings: &Settings) -> Outcome {
    telemetry::start(args.log.format, telemetry::Target::Stderr);
    let data = args.data.validate().map_err(|errors| settings.failure(&errors))?;
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
        let again = again(&options, args.hold, now).await?;
        match (again.is_empty(), args.hold) {
            (true, _) => {}
            (false, true) => println!("held back:"),
            (false, false) => {
                println!("the next start does these, which may have been done after the backup (see --hold):")
            }
        }
        again.iter().for_each(|what| println!("  {}", visible(what)));
        Ok(ExitCode::SUCCESS)
    })
}

/// What waited when the backup was made, and may have been done since.
async fn again(options: &store::Options, hold: bool, now: DateTime<Utc>) -> Result<Vec<String>, store::Error> {
    let store = Store::open(options, Clock::system()).await?;
    let filter = DeliveryFilter { state: Some(DeliveryState::Pending), channel: None };
    let page = PageRequest { after: None, before: None, limit: 100, backward: false };
    let pending = store.deliveries(&filter, &page).await?;
    let mut told = Vec::new();
    for (_, delivery) in &pending.items {
        let subject = store.notification(delivery.notification).await?.map(|found| found.subject).unwrap_or_default();
        told.push(format!("{}: {subject}", delivery.channel));
    }
    if pending.has_next {
        told.push(format!("{} messages in all", pending.total));
    }
    if hold {
        store
            .give_up_deliveries("held back by `gennaker restore --hold`: it may have been sent after the backup")
            .await?;
    }
    told.extend(triggers::restored(&store, &triggers::kinds(Registry::default()), now, hold).await?);
    store.close().await;
    Ok(told)
}
