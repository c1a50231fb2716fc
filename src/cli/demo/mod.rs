//! `gennaker demo`: server, host, application and traffic on this machine, from version 1.0.0 to
//! 2.0.0, watched over the product's own API. Everything it starts is stopped at its end.

pub mod setup;
pub mod summary;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use self::summary::Group;
use super::client::Client;
use super::follow::{Owned, follow};
use super::load::{self, Load, Report};
use super::screen::Screen;
use super::view::Tree;
use super::{Failure, Outcome, asked_to_end, block_on};
use crate::app::App;
use crate::clock::Clock;
use crate::config::{self, PortRange};
use crate::model::Status;
use crate::telemetry;

/// Flags.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Starts a server and a host in a temporary directory, creates an application,
deploys version 1.0.0 as three real processes, puts a steady load on them, and
deploys 2.0.0 red/black while the tree of stages is drawn. Ctrl-C ends it,
stops all that was started and removes the data.

Examples:
  gennaker demo
  gennaker demo --exit     for programs: ends by itself
  gennaker demo --cron     has the second pipeline started every minute too
  gennaker demo --keep     leaves the data, with the server's log in it

Environment:
  NO_COLOR                 no colours
  TERM=dumb                plain lines, as with --plain

Exit status: 0 it was ended, or with --exit: both deploys and the checks after
them succeeded and no request failed; 1 otherwise.")]
pub struct Args {
    /// End by itself; the status says whether both deploys and the checks after them succeeded and no request failed
    #[arg(long)]
    exit: bool,
    /// Start the pipeline with the checks every minute too; with --exit, wait for one such run
    #[arg(long)]
    cron: bool,
    /// Leave the data directory behind
    #[arg(long)]
    keep: bool,
    /// Plain lines even on a terminal
    #[arg(long)]
    plain: bool,
    /// Port of the server; the next free one is taken where it is in use
    #[arg(long, default_value_t = 7777)]
    port: u16,
    /// Requests per second through the load balancer
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=5_000))]
    rate: u32,
}

/// The first version and the second.
const VERSIONS: [&str; 2] = ["1.0.0", "2.0.0"];
/// Connections of the load.
const CONNECTIONS: u32 = 4;
/// Traffic before and after the second deploy, so that the summary shows a change.
const CALM: Duration = Duration::from_secs(2);
/// From the end of a deploy to the begin of what its end starts.
const STARTED_WITHIN: Duration = Duration::from_secs(30);
/// From one run of the timetable to the next, with time to spare.
const MINUTE: Duration = Duration::from_secs(90);
/// Ports that the load balancer may take.
const LOAD_BALANCER_PORTS: (u16, u16) = (8080, 8179);
/// From one look for a run that is to begin to the next.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// From the end of an execution to the message of it.
const MESSAGE_WITHIN: Duration = Duration::from_secs(2);

/// Shows it.
///
/// # Errors
/// When a part does not start or, with `--exit`, something went wrong on the way.
pub fn run(args: Args) -> Outcome {
    block_on(async move {
        let stop = CancellationToken::new();
        let _watch = Owned(tokio::spawn({
            let stop = stop.clone();
            async move {
                // Without handlers there is no way to end but the end itself.
                if asked_to_end().await.is_ok() {
                    stop.cancel();
                }
            }
        }));
        let mut screen = Screen::new(args.plain);
        let ground = Ground::prepare(args.keep)?;
        let outcome = demo(&args, &ground, &mut screen, &stop).await;
        screen.keep();
        screen.line("");
        screen.line("Stopping the host and its instances …");
        let cleared = ground.clear().await;
        if args.keep {
            screen.line(&format!("Data is left in {}", ground.dir.display()));
        }
        let good = outcome?;
        cleared?;
        // Ending it is how a person ends a demo; a program waits for its verdict.
        Ok(if good || !args.exit { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    })
}

/// True when both deploys and the checks after them succeeded and no request failed.
async fn demo(args: &Args, ground: &Ground, screen: &mut Screen, stop: &CancellationToken) -> anyhow::Result<bool> {
    let app = tokio::select! {
        app = ground.start_server(args.port) => app?,
        () = stop.cancelled() => return Ok(false),
    };
    let verdict = tokio::select! {
        verdict = present(args, &app, ground, screen) => verdict,
        () = app.failed() => Err(anyhow::anyhow!("the server ended by itself; see {}", ground.log().display())),
        () = stop.cancelled() => Ok(false),
    };
    let verdict = match verdict {
        Err(error) if !args.exit => {
            screen.keep();
            screen.line("");
            screen.line(&screen.paint().with("31", &format!("The demo did not work out: {error:#}")));
            screen.line(&format!("The server's log is {}", ground.log().display()));
            Ok(false)
        }
        verdict => verdict,
    };
    if !args.exit && !stop.is_cancelled() {
        screen.line("");
        screen.line("Still serving; Ctrl-C ends it. Look inside:");
        screen.line(&address_of(&app)?);
        tokio::select! {
            () = stop.cancelled() => {}
            error = tell_smoke(args, &app, screen) => {
                screen.line(&format!("The runs of {} are not shown any more: {error:#}", setup::SMOKE));
                stop.cancelled().await;
            }
        }
    }
    app.stop().await?;
    verdict
}

/// The URL with a token in its fragment, which browsers keep to themselves.
fn address_of(app: &App) -> anyhow::Result<String> {
    let token = app.first_token().context("the new server gave no token")?;
    Ok(format!("{}/#token={token}", app.url()))
}

async fn present(args: &Args, app: &App, ground: &Ground, screen: &mut Screen) -> anyhow::Result<bool> {
    let client = Client::new(&app.url(), app.first_token())?;
    screen.line(&screen.paint().bold("Gennaker demo: one application, two versions, live traffic"));
    screen.line("");
    screen.line(&format!("  Data          {}", ground.dir.display()));
    screen.line("  Look inside:");
    // At the start of a line, so that a narrow terminal wraps it at most once and it can be copied whole.
    screen.line(&address_of(app)?);
    show(args, &client, screen).await
}

/// The show itself; true when all went well.
async fn show(args: &Args, client: &Client, screen: &mut Screen) -> anyhow::Result<bool> {
    let executable = std::env::current_exe()?.canonicalize()?;
    setup::create_application(client).await?;
    let execution = setup::upsert_security_group(client, LOAD_BALANCER_PORTS).await?;
    succeed(follow(client, &execution, screen).await?)?;
    let execution = setup::upsert_load_balancer(client, LOAD_BALANCER_PORTS).await?;
    succeed(follow(client, &execution, screen).await?)?;
    let address = setup::load_balancer_address(client).await?;
    setup::save_pipeline(client, setup::pipeline(&executable, address)).await?;
    setup::save_smoke(client, setup::smoke(address, args.cron)).await?;
    screen.line(&format!("  The load balancer listens at http://{address}/"));
    screen.line("");
    let mut messages = Messages::start(client).await?;

    screen.line(&screen.paint().bold(&format!("Version {}", VERSIONS[0])));
    let execution = setup::start_pipeline(client, VERSIONS[0]).await?;
    succeed(follow(client, &execution, screen).await?)?;
    messages.show(&execution, screen).await;
    let first = smoke_after(client, &execution, screen).await?;

    let load = Load::start(load::Options {
        target: address,
        path: "/".to_owned(),
        requests_per_second: args.rate,
        connections: CONNECTIONS,
        retry_broken: false,
    });
    tokio::time::sleep(CALM).await;
    let before = setup::server_groups(client).await?;
    screen.line("");
    screen.line(&screen.paint().bold(&format!("Version {}, under {} requests per second", VERSIONS[1], args.rate)));
    let execution = setup::start_pipeline(client, VERSIONS[1]).await?;
    let second = follow(client, &execution, screen).await?;
    messages.show(&execution, screen).await;
    let good = second.ended() == Some(Status::Succeeded);
    // What failed starts nothing: its smoke is looked for only where there is a fire.
    let smoked = first && good && smoke_after(client, &execution, screen).await?;
    tokio::time::sleep(CALM).await;
    let report = load.stop().await;
    let after = setup::server_groups(client).await?;
    let timely = !(args.cron && args.exit) || smoke_by_timetable(client, screen).await?;
    let runs = setup::smoke_runs(client).await?;

    screen.line("");
    for line in summary::draw(screen.paint(), &report, &before, &after, &runs) {
        screen.line(&line);
    }
    Ok(good && smoked && timely && faultless(&report, &after))
}

/// Shows the run of *smoke hello* that the end of a deploy starts; true when it succeeded.
async fn smoke_after(client: &Client, deploy: &str, screen: &mut Screen) -> anyhow::Result<bool> {
    let what = format!("the run of {} after the deploy", setup::SMOKE);
    smoke_run(client, screen, STARTED_WITHIN, &what, |run| run.after.as_deref() == Some(deploy)).await
}

/// Shows the next run of *smoke hello* that its timetable starts; true when it succeeded.
async fn smoke_by_timetable(client: &Client, screen: &mut Screen) -> anyhow::Result<bool> {
    screen.line("");
    screen.line(&screen.paint().dim(&format!("  waiting for the next full minute, in which {} is due", setup::SMOKE)));
    let newest = setup::smoke_runs(client).await?.last().map_or(0, |run| run.number);
    let wanted = |run: &setup::SmokeRun| run.trigger == "cron" && run.number > newest;
    smoke_run(client, screen, MINUTE, &format!("the run of {} by its timetable", setup::SMOKE), wanted).await
}

async fn smoke_run(
    client: &Client,
    screen: &mut Screen,
    within: Duration,
    what: &str,
    wanted: impl Fn(&setup::SmokeRun) -> bool,
) -> anyhow::Result<bool> {
    let begun = async {
        loop {
            if let Some(run) = setup::smoke_runs(client).await?.into_iter().find(&wanted) {
                return anyhow::Ok(run);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    let run = tokio::time::timeout(within, begun)
        .await
        .with_context(|| format!("{what} has not begun within {} s", within.as_secs()))??;
    screen.line(&screen.paint().dim(&format!("  {} #{}: {}", setup::SMOKE, run.number, run.reason)));
    let tree = follow(client, &run.id, screen).await?;
    Ok(tree.ended() == Some(Status::Succeeded))
}

/// Tells of each run of *smoke hello* while the demo goes on serving; returns only by an error.
async fn tell_smoke(args: &Args, app: &App, screen: &mut Screen) -> anyhow::Error {
    if !args.cron {
        return std::future::pending().await;
    }
    let tell = async {
        let client = Client::new(&app.url(), app.first_token())?;
        let mut told = setup::smoke_runs(&client).await?.last().map_or(0, |run| run.number);
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            for run in setup::smoke_runs(&client).await? {
                let over = Status::from_name(&run.status).is_some_and(Status::is_complete);
                if over && run.number > told {
                    told = run.number;
                    let line =
                        format!("  {} #{} {}: {}", setup::SMOKE, run.number, run.status.to_lowercase(), run.reason);
                    screen.line(&line);
                }
            }
        }
    };
    let ended: anyhow::Result<std::convert::Infallible> = tell.await;
    match ended {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

/// Traffic flowed, none of it failed, and the end of it came from the new version.
fn faultless(report: &Report, after: &[Group]) -> bool {
    let [old, new] = VERSIONS;
    let versions = report.versions();
    report.failed == 0
        && versions.contains_key(old)
        && versions.contains_key(new)
        && after.iter().any(|group| group.version == new && group.enabled)
        && after.iter().all(|group| group.version == new || !group.enabled)
}

fn succeed(tree: Tree) -> anyhow::Result<()> {
    if tree.ended() == Some(Status::Succeeded) {
        return Ok(());
    }
    match tree.failure() {
        Some(failure) => {
            let hint = failure.hint.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default();
            let log = failure.log_tail.as_ref().map(|log| format!("\n{log}")).unwrap_or_default();
            anyhow::bail!("{}: {}{hint}{log}", failure.code, failure.message)
        }
        None => anyhow::bail!("an execution ended as {:?}", tree.ended()),
    }
}

/// Messages to people, as they come over the feed.
struct Messages {
    received: tokio::sync::mpsc::Receiver<Message>,
    _reader: Owned,
}

struct Message {
    execution: String,
    /// It tells how the execution ended.
    is_last: bool,
    text: String,
}

impl Messages {
    async fn start(client: &Client) -> anyhow::Result<Self> {
        let mut subscription = client.subscribe(setup::NOTIFICATIONS, &serde_json::json!({})).await?;
        let (sender, received) = tokio::sync::mpsc::channel(64);
        let reader = Owned(tokio::spawn(async move {
            while let Ok(Some(data)) = subscription.next().await {
                let message = &data["notifications"]["notification"];
                let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
                let message = Message {
                    execution: text(&message["execution"]["id"]),
                    is_last: matches!(message["occasion"].as_str(), Some("COMPLETED" | "FAILED" | "CANCELED")),
                    text: text(&message["subject"]),
                };
                if !message.text.is_empty() && sender.send(message).await.is_err() {
                    return;
                }
            }
        }));
        Ok(Self { received, _reader: reader })
    }

    /// Shows what has come up to the word that an execution is over, which is waited for: it comes on
    /// another connection than the execution's events.
    async fn show(&mut self, execution: &str, screen: &mut Screen) {
        let until = tokio::time::Instant::now() + MESSAGE_WITHIN;
        while let Ok(Some(message)) = tokio::time::timeout_at(until, self.received.recv()).await {
            screen.line(&screen.paint().dim(&format!("  message: {}", message.text)));
            if message.is_last && message.execution == execution {
                return;
            }
        }
    }
}

/// What the demo stands on: a directory, a slice of ports, and a host of its own.
struct Ground {
    dir: PathBuf,
    keep: bool,
    config: config::Config,
    /// Holds the slice of ports for this demo: another one finds it taken.
    _slot: std::net::TcpListener,
}

/// Ports of one demo.
const SLOT_PORTS: u16 = 200;
const SLOTS: u16 = 48;

impl Ground {
    fn prepare(keep: bool) -> Result<Self, Failure> {
        let (slot, ports) = take_slot()?;
        let executable = std::env::current_exe()?.canonicalize()?;
        let dir = temporary_dir().context("a directory for the demo's data")?;
        let root = executable.parent().unwrap_or(Path::new("/")).to_owned();
        let args = config::Args {
            data: config::DataArgs { data_dir: Some(dir.join("data")), ..config::DataArgs::default() },
            host: config::HostArgs { artifact_root: vec![root], port_range: ports, ..config::HostArgs::default() },
            ..config::Args::default()
        };
        let config = args.validate()?;
        let log = std::fs::File::create(dir.join("server.log"))?;
        telemetry::start(config::LogFormat::Text, telemetry::Target::File(log));
        Ok(Self { dir, keep, config, _slot: slot })
    }

    async fn start_server(&self, port: u16) -> anyhow::Result<App> {
        let listener = listen_from(port).await?;
        Ok(App::start(self.config.clone(), listener, Clock::system()).await?)
    }

    fn log(&self) -> PathBuf {
        self.dir.join("server.log")
    }

    /// Stops the host with its instances and removes the data.
    async fn clear(&self) -> anyhow::Result<()> {
        let stopped = crate::cli::host::stop_all(&self.config.host.dir).await;
        if !self.keep {
            std::fs::remove_dir_all(&self.dir).with_context(|| format!("removing {}", self.dir.display()))?;
        }
        stopped
    }
}

/// The wanted port, or the next free one, or any.
async fn listen_from(port: u16) -> anyhow::Result<TcpListener> {
    for port in (port..=port.saturating_add(100)).chain([0]) {
        let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        match TcpListener::bind(address).await {
            Ok(listener) => return Ok(listener),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error).with_context(|| format!("listening on {address}")),
        }
    }
    anyhow::bail!("no free port on 127.0.0.1")
}

/// A slice of the ports for instances that no other demo uses: whoever listens on its first port has it.
fn take_slot() -> anyhow::Result<(std::net::TcpListener, PortRange)> {
    for slot in 0..SLOTS {
        let first = PortRange::DEFAULT.first + slot * SLOT_PORTS;
        if let Ok(listener) = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, first)) {
            return Ok((listener, PortRange { first: first + 1, last: first + SLOT_PORTS - 1 }));
        }
    }
    anyhow::bail!("all ports for demos are taken; end one of those that run")
}

/// A new directory that only this user can read.
fn temporary_dir() -> std::io::Result<PathBuf> {
    use std::os::unix::fs::DirBuilderExt;
    let base = std::env::temp_dir().canonicalize()?;
    let name = format!("gennaker-demo-{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
    let dir = base.join(name);
    std::fs::DirBuilder::new().mode(0o700).create(&dir)?;
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faultless_is_both_versions_no_failure_and_only_the_new_group_enabled() {
        let report = |failed, versions: &[&str]| Report {
            sent: 20,
            failed,
            seconds: [(0, versions.iter().map(|version| ((*version).to_owned(), 10)).collect())].into(),
            ..Report::default()
        };
        let group = |version: &str, enabled| Group {
            name: format!("hello-{version}"),
            version: version.to_owned(),
            enabled,
            healthy: 3,
            instances: 3,
        };
        let [old, new] = VERSIONS;
        let good = report(0, &VERSIONS);
        let after = [group(old, false), group(new, true)];
        assert!(faultless(&good, &after));
        assert!(!faultless(&report(1, &VERSIONS), &after), "a request failed");
        for version in VERSIONS {
            assert!(!faultless(&report(0, &[version]), &after), "only {version} answered");
        }
        assert!(!faultless(&report(0, &[]), &after), "nothing answered");
        assert!(!faultless(&good, &[group(old, true), group(new, true)]), "the old group is enabled");
        assert!(!faultless(&good, &[group(old, false), group(new, false)]), "the new group is not enabled");
        assert!(!faultless(&good, &[group(old, false)]), "there is no new group");
    }
}
