//! The host itself: three kinds of process from one binary. The [`keeper`] holds the listening
//! sockets and restarts the [`worker`]; the worker owns the desired state, supervises instances and
//! feeds the data plane; each instance's parent is a [`super::shim`]. Everything a worker knows is
//! in files below one directory, so that the next one comes back complete.
//!
//! In the directory: `host.sock` (control), `host.lock` (the keeper's), `worker.lock`, `host.log`,
//! `fences.json`, `groups/<name>/spec.json`, `groups/<name>/instances/<id>/…`,
//! `load-balancers/<name>.json`, `security-groups/<name>.json`, `artifacts/<sha256>/…`, `stats/`.

mod api;
mod artifact;
mod balancers;
mod fences;
pub mod files;
mod groups;
mod handoff;
mod health;
mod hub;
pub mod identity;
mod instance;
pub mod keeper;
pub mod limits;
pub mod logs;
mod own_log;
mod ports;
mod probe;
pub mod records;
mod shelf;
mod sockets;
mod succession;
mod supervisor;
pub mod worker;

use std::path::{Path, PathBuf};

pub use crate::config::PortRange;

/// Instances on one host, at most, where nothing else is asked for.
pub const MAX_INSTANCES: usize = 500;

/// Bytes of all unpacked artifacts of a host, at most, where nothing else is asked for: 10 GiB.
pub const MAX_ARTIFACT_BYTES: u64 = 10 << 30;

/// Bytes of an instance's log, at most, where nothing else is asked for: 30 MiB.
pub const MAX_INSTANCE_LOG_BYTES: u64 = 30 << 20;

/// How long an unused artifact stays where nothing else is asked for.
pub const ARTIFACT_KEEP_SECONDS: u64 = 10 * 60;

/// How a host's log is written, in the words of the flags; whoever runs the processes sets it up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// `text` or `json`; None: text.
    pub format: Option<String>,
    /// In the syntax of `tracing`'s filters; None: the default of the flag.
    pub filter: Option<String>,
}

/// What a host is started with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Its own; one host per directory.
    pub directory: PathBuf,
    /// The account that it belongs to.
    pub account: String,
    /// The location that it is.
    pub location: String,
    /// The machine's.
    pub host_name: String,
    /// Artifacts by path lie below one of these; none, none.
    pub artifact_roots: Vec<PathBuf>,
    /// `secret://file/…` points below one of these; none, none.
    pub secret_roots: Vec<PathBuf>,
    /// Ports given to instances, but for those of the system's ephemeral range.
    pub ports: PortRange,
    /// Instances on this host, at most.
    pub max_instances: usize,
    /// Bytes of all unpacked artifacts together, at most.
    pub max_artifact_bytes: u64,
    /// Bytes of an instance's log, at most.
    pub max_instance_log_bytes: u64,
    /// For so long an artifact stays that no server group uses.
    pub artifact_keep_seconds: u64,
    /// How its own log is written.
    pub log: LogOptions,
    /// The binary that workers and shims are started from.
    pub program: PathBuf,
}

impl Options {
    /// The defaults for a directory.
    ///
    /// # Errors
    /// Where the system does not tell which binary runs.
    pub fn new(directory: &Path) -> std::io::Result<Self> {
        Ok(Self {
            directory: directory.to_path_buf(),
            account: "local".to_owned(),
            location: "local".to_owned(),
            host_name: machine(),
            artifact_roots: Vec::new(),
            secret_roots: Vec::new(),
            ports: PortRange::DEFAULT,
            max_instances: MAX_INSTANCES,
            max_artifact_bytes: MAX_ARTIFACT_BYTES,
            max_instance_log_bytes: MAX_INSTANCE_LOG_BYTES,
            artifact_keep_seconds: ARTIFACT_KEEP_SECONDS,
            log: LogOptions::default(),
            program: std::env::current_exe()?,
        })
    }

    /// The arguments of `gennaker` that start a host with these options.
    #[must_use]
    pub fn arguments(&self) -> Vec<std::ffi::OsString> {
        let mut arguments: Vec<std::ffi::OsString> = vec!["host".into(), "--dir".into(), self.directory.clone().into()];
        let mut option = |name: &str, value: std::ffi::OsString| {
            arguments.push(name.into());
            arguments.push(value);
        };
        option("--account", self.account.clone().into());
        option("--location", self.location.clone().into());
        option("--host-name", self.host_name.clone().into());
        for root in &self.artifact_roots {
            option("--artifact-root", root.clone().into());
        }
        for root in &self.secret_roots {
            option("--secret-root", root.clone().into());
        }
        option("--ports", self.ports.to_string().into());
        option("--max-instances", self.max_instances.to_string().into());
        option("--max-artifact-bytes", self.max_artifact_bytes.to_string().into());
        option("--max-instance-log-bytes", self.max_instance_log_bytes.to_string().into());
        option("--artifact-keep-seconds", self.artifact_keep_seconds.to_string().into());
        for (name, value) in [("--log", &self.log.format), ("--log-filter", &self.log.filter)] {
            if let Some(value) = value {
                option(name, value.clone().into());
            }
        }
        arguments
    }
}

/// The machine's name, where it has one.
fn machine() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    // What a flag takes.
    let fits = |name: &String| name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    name.filter(|name| (1..=63).contains(&name.len()) && fits(name)).unwrap_or_else(|| "localhost".to_owned())
}
