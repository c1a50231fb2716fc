//! `gennaker host`: the process that owns load balancers and instances of this machine, and what
//! may be asked of it: `status`, `upgrade`, `stop`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;

use super::{Failure, Outcome, block_on};
use crate::config::{self, HostArgs, LogArgs, LogFormat};
use crate::providers::host::control::{Control, Error};
use crate::providers::host::daemon::{
    ARTIFACT_KEEP_SECONDS, LogOptions, MAX_ARTIFACT_BYTES, MAX_INSTANCES, Options, PortRange, keeper, worker,
};
use crate::providers::host::protocol::{StopHost, Upgrade};
use crate::telemetry;

/// What `gennaker host` is given.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
Without a command it runs a host until it is stopped. `gennaker serve` starts
one by itself where none runs; as a service of its own it outlives the server.
A host holds the load balancers' sockets and runs the instances; each instance
has a small parent that outlives both.

Examples:
  gennaker host --dir /var/lib/gennaker-host --artifact-root /srv/builds
  gennaker host status
  gennaker host upgrade --binary /opt/gennaker-2/gennaker
  gennaker host stop --instances

Files, in its directory:
  host.sock          what the server and these commands speak to; its owner's
  host.lock          held while a host runs; has the keeper's process id
  host.log           what it says, where a server has started it
  groups/, load-balancers/, security-groups/, artifacts/, stats/
                     what is wanted, and what runs

Exit status: 0 done, 1 it went wrong or no host runs there, 2 what was given
cannot be used.")]
pub struct Args {
    /// The host's own directory; one host per directory
    /// [default: `host` in the server's data directory]
    #[arg(long, global = true, env = "GENNAKER_HOST_DIR", value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// The server's file of settings (TOML): what it says of the host holds here too
    /// [default: as for `gennaker serve`]
    #[arg(long, env = "GENNAKER_CONFIG", value_name = "FILE", help_heading = "Settings")]
    pub config: Option<PathBuf>,
    /// The account that this host belongs to
    #[arg(long, env = "GENNAKER_ACCOUNT", value_name = "NAME", default_value = HostArgs::PLACE, value_parser = HostArgs::place)]
    pub account: String,
    /// The location that this host is
    #[arg(long, env = "GENNAKER_LOCATION", value_name = "NAME", default_value = HostArgs::PLACE, value_parser = HostArgs::place)]
    pub location: String,
    /// The machine's name, which its instances and load balancers are shown with
    /// [default: its hostname]
    #[arg(long, env = "GENNAKER_HOST_NAME", value_name = "NAME", value_parser = HostArgs::machine)]
    pub host_name: Option<String>,
    /// Local artifacts must lie below one of these directories; may be repeated
    #[arg(long = "artifact-root", env = "GENNAKER_ARTIFACT_ROOTS", value_name = "DIR", value_delimiter = ':')]
    pub artifact_roots: Vec<PathBuf>,
    /// `secret://file/…` must point below one of these directories; may be repeated
    #[arg(
        long = "secret-dir",
        alias = "secret-root",
        env = "GENNAKER_SECRET_DIRS",
        value_name = "DIR",
        value_delimiter = ':'
    )]
    pub secret_roots: Vec<PathBuf>,
    /// Ports for instances; those that the system gives to outgoing connections are passed over
    #[arg(long = "port-range", alias = "ports", env = "GENNAKER_PORT_RANGE", default_value_t = PortRange::DEFAULT, value_name = "FROM-TO")]
    pub ports: PortRange,
    /// Instances on this host, at most
    #[arg(long, env = "GENNAKER_MAX_INSTANCES", value_name = "COUNT", default_value_t = MAX_INSTANCES)]
    pub max_instances: usize,
    /// Bytes of all unpacked artifacts together, at most
    #[arg(long, env = "GENNAKER_MAX_ARTIFACT_BYTES", default_value_t = MAX_ARTIFACT_BYTES, value_name = "BYTES",
          value_parser = clap::value_parser!(u64).range(1 << 20..))]
    pub max_artifact_bytes: u64,
    /// Bytes of an instance's log, which is kept in 3 files; the oldest goes first
    #[arg(long, env = "GENNAKER_MAX_INSTANCE_LOG_BYTES", value_name = "BYTES",
          default_value_t = HostArgs::MAX_INSTANCE_LOG_BYTES,
          value_parser = clap::value_parser!(u64).range(HostArgs::MIN_INSTANCE_LOG_BYTES..))]
    pub max_instance_log_bytes: u64,
    /// Seconds for which an artifact stays that no server group uses
    #[arg(long, default_value_t = ARTIFACT_KEEP_SECONDS, value_name = "SECONDS")]
    pub artifact_keep_seconds: u64,
    /// How the log is written.
    #[command(flatten)]
    pub log: LogArgs,
    /// Used by a host for its own parts.
    #[arg(long, hide = true, conflicts_with = "adopt")]
    pub worker: bool,
    /// Used by a host for its own parts.
    #[arg(long, hide = true)]
    pub adopt: bool,
    /// Used by a host for its own parts.
    #[arg(long, hide = true, conflicts_with_all = ["worker", "adopt"])]
    pub resume: bool,
    /// What to ask of a running host; None: run one.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What may be asked of a running host.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Command {
    /// Show what the host is and holds, as JSON
    #[command(after_help = "\
Examples:
  gennaker host status
  gennaker host status --dir /var/lib/gennaker-host | jq .instances

Exit status: 0 it answered, 1 no host runs there.")]
    Status,
    /// Replace the running host by another binary, without a dropped request
    #[command(after_help = "\
The new worker takes over the sockets and the state; the old one finishes the
requests it has, and ends. The keeper, the small process that holds copies of
the sockets, goes over to the new binary too. Instances run on. The settings
stay those that the host was started with.

Examples:
  gennaker host upgrade                          the binary was replaced
  gennaker host upgrade --binary /opt/2/gennaker

Exit status: 0 the new one serves, 1 it does not and the old one does, 2 the
file is not this program.")]
    Upgrade {
        /// The new binary; without it, the one at the path as before
        #[arg(long, value_name = "FILE")]
        binary: Option<PathBuf>,
    },
    /// End the host; its instances run on, and the next host takes them over
    #[command(after_help = "\
The load balancers' sockets are closed until a host runs again. A server that
is connected does not start one by itself after this; its next start does.

With --instances nothing is left running until then. The server groups stay
what they are: the next start of a host brings their instances back. To be rid
of them for good, destroy the server groups first.

Examples:
  gennaker host stop                  the instances run on
  gennaker host stop --instances      nothing is left running

Exit status: 0 it has ended, 1 it has not, or none ran.")]
    Stop {
        /// Stop the instances too, each as its stop policy says; the next start of the host brings them back
        #[arg(long)]
        instances: bool,
    },
}

/// How long a command waits for the host to do it.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long stopping may take: the instances have their grace times.
const STOP: Duration = Duration::from_secs(3_700);

/// Runs a host until it is stopped, or asks one. Must be called before any runtime exists.
///
/// # Errors
/// What failed, and what to do.
pub fn run(args: Args) -> Outcome {
    let directory = match &args.dir {
        Some(dir) => std::path::absolute(dir).context("cannot make the host's directory absolute")?,
        None => config::default_host_dir().map_err(Failure::input)?,
    };
    let Some(command) = args.command else { return host(args, &directory) };
    block_on(async move {
        let control = Control::new(&directory);
        match command {
            Command::Status => {
                let status = control.status().await?;
                println!("{}", serde_json::to_string_pretty(&status)?);
            }
            Command::Upgrade { binary } => {
                let binary = binary.as_deref().map(std::path::absolute).transpose()?;
                if let Some(binary) = &binary {
                    is_ours(binary).await.map_err(Failure::input)?;
                }
                let status = control.upgrade(Upgrade { binary }, PATIENCE).await.with_context(|| {
                    format!("the upgrade did not come about; see {}", directory.join("host.log").display())
                })?;
                println!("process {} of version {} has taken over", status.pid, status.version);
            }
            Command::Stop { instances } => {
                control.stop(StopHost { instances }, STOP).await?;
                match instances {
                    true => println!(
                        "stopped, and the instances with it; the next start of the host brings them back, unless their \
                         server groups are destroyed"
                    ),
                    false => println!("stopped; the instances run on, and the next start of the host takes them over"),
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Whether the binary can be run and is one of this program; the host would only log that it is not.
async fn is_ours(binary: &Path) -> anyhow::Result<()> {
    let mut asked = tokio::process::Command::new(binary);
    asked.arg("--version").stdin(std::process::Stdio::null()).kill_on_drop(true);
    let answer = tokio::time::timeout(Duration::from_secs(10), asked.output()).await;
    let answer = answer
        .with_context(|| format!("{} --version gave no answer within 10 s", binary.display()))?
        .with_context(|| format!("cannot run {}", binary.display()))?;
    anyhow::ensure!(
        answer.stdout.starts_with(b"gennaker "),
        "{} is not a gennaker: asked for its --version it does not name itself",
        binary.display()
    );
    Ok(())
}

/// Stops the host of a directory with all its instances; also what a host that is gone left running.
///
/// # Errors
/// What could not be stopped.
pub async fn stop_all(directory: &Path) -> anyhow::Result<()> {
    match Control::new(directory).stop(StopHost { instances: true }, STOP).await {
        Ok(()) => Ok(()),
        Err(Error::Absent { .. }) => worker::stop_left_behind(directory).await,
        Err(error) => Err(error).with_context(|| format!("stopping the host of {}", directory.display())),
    }
}

fn host(args: Args, directory: &Path) -> Outcome {
    let defaults = Options::new(directory)?;
    let options = Options {
        account: args.account,
        location: args.location,
        host_name: args.host_name.unwrap_or(defaults.host_name),
        artifact_roots: args.artifact_roots,
        secret_roots: args.secret_roots,
        ports: args.ports,
        max_instances: args.max_instances,
        max_artifact_bytes: args.max_artifact_bytes,
        max_instance_log_bytes: args.max_instance_log_bytes,
        artifact_keep_seconds: args.artifact_keep_seconds,
        log: LogOptions { format: Some(args.log.format.name().to_owned()), filter: Some(args.log.filter().to_owned()) },
        directory: defaults.directory,
        program: defaults.program,
    };
    telemetry::start(args.log.format, telemetry::Target::Stderr);
    telemetry::set_filter(args.log.filter()).map_err(anyhow::Error::msg)?;
    let outcome = if args.worker {
        worker::run(options)
    } else {
        let origin = match (args.adopt, args.resume) {
            (true, _) => keeper::Origin::Adopts,
            (_, true) => keeper::Origin::Resumes,
            _ => keeper::Origin::New,
        };
        // One that runs already goes on with what it has.
        if origin == keeper::Origin::New {
            options.ports.check().map_err(Failure::input)?;
        }
        keeper::run(options, origin)
    };
    match outcome {
        // What reads lines of JSON reads this one too.
        Err(error) if args.log.format == LogFormat::Json => {
            tracing::error!("the host ends: {error:#}");
            Ok(ExitCode::FAILURE)
        }
        outcome => Ok(outcome.map(|()| ExitCode::SUCCESS)?),
    }
}
