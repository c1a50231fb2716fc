//! `gennaker host`: the process that owns load balancers and instances of this machine, and what
//! may be asked of it: `status`, `upgrade`, `stop`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;

use crate::providers::host::client::control;
use crate::providers::host::daemon::{Options, PortRange, keeper, worker};
use crate::providers::host::protocol::{StopHost, Upgrade};

/// What `gennaker host` is given.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// The host's own directory; one host per directory.
    #[arg(long, global = true, env = "GENNAKER_HOST_DIR", default_value = "gennaker-data/host")]
    pub dir: PathBuf,
    /// The account that this host belongs to.
    #[arg(long, default_value = "local")]
    pub account: String,
    /// The location that this host is.
    #[arg(long, default_value = "local")]
    pub location: String,
    /// Artifacts by path must lie below one of these directories (repeatable).
    #[arg(long = "artifact-root", value_name = "DIRECTORY")]
    pub artifact_roots: Vec<PathBuf>,
    /// `secret://file/…` must point below one of these directories (repeatable).
    #[arg(long = "secret-root", value_name = "DIRECTORY")]
    pub secret_roots: Vec<PathBuf>,
    /// Ports given to instances.
    #[arg(long, default_value_t = PortRange::default(), value_name = "FIRST-LAST")]
    pub ports: PortRange,
    /// Instances on this host, at most.
    #[arg(long, default_value_t = 500)]
    pub max_instances: usize,
    /// Used by a host for its own parts.
    #[arg(long, hide = true, conflicts_with = "adopt")]
    pub worker: bool,
    /// Used by a host for its own parts.
    #[arg(long, hide = true)]
    pub adopt: bool,
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What may be asked of a running host.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Command {
    /// What the host is and holds.
    Status,
    /// Replaces the running host by a binary, without a dropped request.
    Upgrade {
        /// The new binary; the same path as before when absent.
        #[arg(long)]
        binary: Option<PathBuf>,
    },
    /// Ends the host. Its instances run on until a host takes the directory again, unless told.
    Stop {
        /// Stops the instances too.
        #[arg(long)]
        instances: bool,
    },
}

/// How long a command waits for the host to do it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a host until it is stopped, or asks one. Must be called before any runtime exists.
///
/// # Errors
/// What failed, and what to do.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    match &arguments.command {
        None => host(arguments),
        Some(Command::Status) => {
            let status = control::run(&arguments.dir, PATIENCE, |control| async move { control.status().await })?;
            println!("{}", serde_json::to_string_pretty(&status)?);
            Ok(())
        }
        Some(Command::Upgrade { binary }) => {
            let binary = binary.as_deref().map(std::path::absolute).transpose()?;
            let status = control::run(&arguments.dir, PATIENCE, move |control| async move {
                control.upgrade(Upgrade { binary }).await
            })?;
            println!("upgraded: process {} of version {} has taken over", status.pid, status.version);
            Ok(())
        }
        Some(Command::Stop { instances }) => {
            let instances = *instances;
            control::run(&arguments.dir, PATIENCE, move |control| async move {
                control.stop(StopHost { instances }).await
            })?;
            println!("stopped");
            Ok(())
        }
    }
}

fn host(arguments: &Arguments) -> anyhow::Result<()> {
    let directory = std::path::absolute(&arguments.dir).context("cannot make the host's directory absolute")?;
    let options = Options {
        account: arguments.account.clone(),
        location: arguments.location.clone(),
        artifact_roots: arguments.artifact_roots.clone(),
        secret_roots: arguments.secret_roots.clone(),
        ports: arguments.ports,
        max_instances: arguments.max_instances,
        ..Options::new(&directory)?
    };
    if arguments.worker { worker::run(options) } else { keeper::run(options, arguments.adopt) }
}
