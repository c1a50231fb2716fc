//! `gennaker serve`: the server, until it is asked to end.

use std::process::ExitCode;

use super::{Failure, Outcome, asked_to_end, block_on};
use crate::app::{self, App};
use crate::clock::Clock;
use crate::config;
use crate::{systemd, telemetry};

/// Flags.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  gennaker serve --artifact-root /srv/builds
  gennaker serve --listen 127.0.0.1:0 --data-dir /tmp/try
  DATABASE_URL=postgres://gennaker@db/gennaker gennaker serve --log json

The first start makes the principal `admin` and prints a token for it, once.
Instances and load balancers belong to the host daemon, which is started if
none runs, and goes on when the server ends: see `gennaker host`.

Signals:
  SIGTERM, SIGINT    ends in order: no new work, steps under way are finished;
                     what is unfinished goes on at the next start

Files, in the data directory:
  gennaker.db        the database, where it is SQLite
  gennaker.lock      held while a server runs; has its process id
  host/              the host's directory, where no other one is given
  host/host.log      the host's log

Exit status: 0 asked to end, 1 a part did not start or ended by itself, 2 a
setting does not hold.")]
pub struct Args {
    #[command(flatten)]
    pub config: config::Args,
}

/// Serves.
///
/// # Errors
/// When a setting does not hold or a part does not start.
pub fn run(args: Args) -> Outcome {
    telemetry::start(args.config.log.format, telemetry::Target::Stderr);
    let config = args.config.validate().map_err(Failure::input)?;
    block_on(async move {
        let listener = app::listen(config.server.listen).await?;
        let data = config.data.describe();
        let app = App::start(config, listener, Clock::system()).await?;
        announce(&app, &data);
        systemd::notify(&format!("READY=1\nSTATUS=serves {}", app.url()));
        tokio::select! {
            ended = asked_to_end() => ended?,
            () = app.failed() => {}
            () = signs_of_life() => {}
        }
        systemd::notify("STOPPING=1");
        app.stop().await?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Tells systemd that the runtime still turns, where it wants to know; never ends.
async fn signs_of_life() {
    let Some(every) = systemd::watchdog() else { return std::future::pending().await };
    let mut ticks = tokio::time::interval(every);
    loop {
        ticks.tick().await;
        systemd::notify("WATCHDOG=1");
    }
}

fn announce(app: &App, data: &str) {
    println!("Gennaker serves {} ({data})", app.url());
    println!("  GraphQL   {}/graphql", app.url());
    match app.first_token() {
        // What is printed goes to the journal, where a token must not stand.
        Some(_) if systemd::is_there() => {
            println!("  Explore   {}/#token=<your token>", app.url());
            println!();
            println!("The first start made the principal `admin`. Make a token, as the user that the service runs as:");
            println!("  gennaker token create --principal admin --data-dir {}", app.data_dir().display());
        }
        Some(token) => {
            println!("  Explore   {}/#token={token}", app.url());
            println!();
            println!("The first start made the principal `admin`. Its token is shown this once:");
            println!("  {token}");
        }
        None => println!("  Explore   {}/#token=<your token>", app.url()),
    }
    for note in app.notes() {
        println!();
        println!("Note: {note}.");
    }
}
