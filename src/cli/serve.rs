//! `gennaker serve`: the server, until it is asked to end.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use tracing::{error, info, warn};

use super::settings::Settings;
use super::{Asked, Failure, Outcome, Signals, block_on};
use crate::app::{self, App};
use crate::clock::Clock;
use crate::config::{self, Setting};
use crate::{footprint, systemd, telemetry};

/// For the close of the database and the end of the process.
const CLOSE_MAX: Duration = Duration::from_secs(5);

/// Flags.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  gennaker serve --artifact-root /srv/builds
  gennaker serve --listen 127.0.0.1:0 --data-dir /tmp/try
  gennaker serve --listen 0.0.0.0:7777 --tls-cert cert.pem --tls-key key.pem
  GENNAKER_DATABASE_URL=postgres://gennaker@db/gennaker \\
    gennaker serve --log json

The first start makes the principal `admin` and prints a token for it, once.
Instances and load balancers belong to the host daemon, which is started if
none runs, and goes on when the server ends: see `gennaker host`.

Signals:
  SIGTERM, SIGINT    ends in order: no new work, steps under way are finished;
                     what is unfinished goes on at the next start; a second
                     one ends it at once
  SIGHUP             reads the file of settings again: see `gennaker config`

Files, in the data directory:
  gennaker.db        the database, where it is SQLite
  gennaker.lock      held while a server runs; has its process id
  host/              the host's directory, where no other one is given
  host/host.log      the host's log

Exit status: 0 asked to end, 1 a part did not start or ended by itself, 2 a
setting does not hold.")]
pub struct Args {
    /// All settings of a server.
    #[command(flatten)]
    pub config: config::Args,
}

/// Serves.
///
/// # Errors
/// When a setting does not hold or a part does not start.
pub fn run(args: Args, settings: Settings) -> Outcome {
    telemetry::start(args.config.log.format, telemetry::Target::Stderr);
    telemetry::set_filter(args.config.log.filter()).map_err(anyhow::Error::msg)?;
    let config =
        settings.validate(args.config).map_err(|faults| Failure::Input(anyhow::Error::msg(faults.join("\n"))))?;
    // Whoever else shares the environment may have set them, so they do not keep the server from its start.
    super::unknown_variables().iter().for_each(|fault| warn!("{fault}"));
    block_on(async move {
        let mut signals = Signals::new()?;
        let data = config.data.describe();
        let starting = async {
            let listener = app::listen(config.server.listen).await?;
            App::start(config, listener, Clock::system()).await
        };
        let app = tokio::select! {
            app = starting => app?,
            () = signals.asked_to_end() => return Ok(ExitCode::SUCCESS),
        };
        announce(&app, &data);
        footprint::give_back_the_start();
        systemd::notify(&format!("READY=1\nSTATUS=serves {}", app.url()));
        let mut life = std::pin::pin!(signs_of_life());
        let mut running = settings.all;
        loop {
            tokio::select! {
                asked = signals.next() => match asked {
                    Asked::ToEnd => break,
                    Asked::ToReload => reload(&app, &mut running),
                },
                () = app.failed() => break,
                () = &mut life => {}
            }
        }
        // The unit's TimeoutStopSec= knows nothing of the settings.
        let stop_max = app.stop_max() + CLOSE_MAX;
        systemd::notify(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={}", stop_max.as_micros()));
        tokio::select! {
            stopped = app.stop() => stopped?,
            // While it ends, the runtime still turns.
            () = &mut life => {}
            () = signals.asked_to_end() => {
                error!("asked a second time: the server ends at once; the next start goes on where this one was");
                return Ok(ExitCode::FAILURE);
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Reads the settings again, with the flags and variables of the start.
fn reload(app: &App, running: &mut [Setting]) {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let (args, settings) = match super::serve_again(&arguments) {
        Ok(read) => read,
        Err(error) => return error!("the settings were read again and do not hold; all stays as it is: {error}"),
    };
    let filter = args.config.log.filter().to_owned();
    let config = match (args.config.validate(), settings.faults.is_empty()) {
        (Ok(config), true) => config,
        (validated, _) => {
            let errors = validated.err().unwrap_or(config::Errors(Vec::new()));
            let said: Vec<_> =
                settings.faults.iter().map(ToString::to_string).chain(settings.explain(&errors)).collect();
            let also = errors.0.iter().any(|error| error.setting.starts_with("--tls-"));
            let also = if also && app.is_secure() { ", also the TLS certificate in use" } else { "" };
            let said = said.join("; ");
            return error!("the settings were read again and do not hold; all stays as it is{also}: {said}");
        }
    };
    let keeps_tls = app.is_secure() == config.server.tls.is_some();
    let (mut taken, mut left) = (Vec::new(), Vec::new());
    for new in settings.all {
        let Some(old) = running.iter_mut().find(|old| old.name == new.name && !old.same(&new)) else { continue };
        if config::LIVE.contains(&new.name.as_str()) && (keeps_tls || !new.name.starts_with("tls-")) {
            taken.push(new.name.clone());
            *old = new;
        } else {
            left.push(new.name);
        }
    }
    taken.extend(app.reload(&config));
    if let Err(error) = telemetry::set_filter(&filter) {
        error!("the log's filter stays as it is: {error}");
    }
    match taken.is_empty() {
        true => info!("the settings were read again; nothing has changed that could be taken over"),
        false => info!("the settings were read again; changed: {}", taken.join(", ")),
    }
    if !left.is_empty() {
        warn!("changed in the settings, and needs a restart: {}", left.join(", "));
    }
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
