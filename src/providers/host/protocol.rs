//! What the server and a host say to each other: JSON over HTTP/1 on a Unix socket, under `/v1`.
//! Errors are [`crate::providers::Error`] with a matching status. `/status`, `/upgrade` and `/stop`
//! stand outside of the version for good, so that any binary can ask and replace any host.

use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::model::{Capacity, LoadBalancerSpec, SecurityGroupSpec, ServerGroupSpec, Share, TrafficSecond};
use crate::providers::{ErrorKind, Operation};

/// The protocol's version; the first segment of every path but [`STATUS`], [`UPGRADE`] and [`STOP`].
/// A host answers only its own.
pub const VERSION: u32 = 1;

/// `GET`: [`Status`]. In every version, so fields of it are only ever added, with a default.
pub const STATUS: &str = "/status";

/// `POST` of [`Upgrade`]. In every version; fields are only ever added, with a default.
pub const UPGRADE: &str = "/upgrade";

/// `POST` of [`StopHost`]. In every version; fields are only ever added, with a default.
pub const STOP: &str = "/stop";

/// A request's or answer's body has at most this many bytes (snapshots excepted).
pub const MAX_BODY: usize = 1024 * 1024;

/// A snapshot has at most this many bytes.
pub const MAX_SNAPSHOT: usize = 64 * 1024 * 1024;

/// How long `GET /v1/changes` waits at most, in seconds.
pub const MAX_WAIT_SECONDS: u64 = 25;

/// How much of a log `GET /v1/instances/<id>/log` gives at most.
pub const MAX_LOG_BYTES: usize = 64 * 1024;

/// The control socket of the host that owns a directory.
#[must_use]
pub fn socket_path(directory: &Path) -> PathBuf {
    directory.join("host.sock")
}

/// Whether a host can be reached in a directory: the system takes short paths of sockets only.
///
/// # Errors
/// `InvalidInput` when its path is too long.
pub fn check_directory(directory: &Path) -> std::io::Result<()> {
    let path = socket_path(directory);
    match std::os::unix::net::SocketAddr::from_pathname(&path) {
        Ok(_) => Ok(()),
        Err(_) => Err(std::io::Error::new(
            std::io::ErrorKind::InvalidInput,
            format!(
                "a host cannot listen at {} ({} bytes): the system allows paths of sockets of about 100 bytes; give it \
                 a directory with a shorter path (--host-dir of a server, --dir of `gennaker host`)",
                path.display(),
                path.as_os_str().len()
            ),
        )),
    }
}

/// What a host says of itself: `GET /status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// [`VERSION`].
    pub protocol: u32,
    /// Of the binary.
    pub version: String,
    /// Of the process that answers; another one after a restart or an upgrade.
    pub pid: u32,
    /// Of the small parent that holds the sockets.
    pub keeper: Option<u32>,
    /// When that process began.
    pub started_at: DateTime<Utc>,
    /// The host's own.
    pub directory: PathBuf,
    /// The account that it belongs to.
    pub account: String,
    /// The location that it is.
    pub location: String,
    /// Of its directory; another one has another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The machine's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Below which artifacts may lie.
    pub artifact_roots: Vec<PathBuf>,
    /// Below which files with secrets may lie.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_roots: Option<Vec<PathBuf>>,
    /// Ports for instances: `20000-29999`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<String>,
    /// Instances, at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_instances: Option<usize>,
    /// Bytes of an instance's log, at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_instance_log_bytes: Option<u64>,
    /// How many it has, those on their way out too.
    pub server_groups: usize,
    /// How many it has, running or not.
    pub instances: usize,
    /// How many it has.
    pub load_balancers: usize,
    /// How many it has.
    pub security_groups: usize,
    /// What unpacked artifacts take of the disk.
    #[serde(default)]
    pub artifacts: Artifacts,
    /// Rises with each change; that of the newest snapshot.
    pub revision: u64,
}

/// Unpacked artifacts of a host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Artifacts {
    /// How many there are.
    pub count: usize,
    /// What they take together.
    pub bytes: u64,
    /// How many of them no server group uses; they go when their time is over, or room is needed.
    pub unused: usize,
    /// The most bytes that there may be.
    pub max_bytes: u64,
}

/// `GET /v1/changes?after=N`: the newest revision, as soon as it is another than N or the wait is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// The newest.
    pub revision: u64,
}

/// The query of `GET /v1/changes`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct ChangesQuery {
    /// The revision that the caller has.
    #[serde(default)]
    pub after: u64,
    /// Seconds; at most [`MAX_WAIT_SECONDS`].
    #[serde(default)]
    pub wait: Option<u64>,
}

/// `PUT /v1/server-groups/<name>`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EnsureServerGroup {
    /// Whose call it is.
    pub op: Operation,
    /// As wanted.
    pub spec: ServerGroupSpec,
}

/// `PUT /v1/server-groups/<name>/capacity`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EnsureCapacity {
    /// Whose call it is.
    pub op: Operation,
    /// As wanted.
    pub capacity: Capacity,
}

/// `PUT /v1/server-groups/<name>/enabled`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EnsureEnabled {
    /// Whose call it is.
    pub op: Operation,
    /// In its load balancers, or out of them.
    pub enabled: bool,
}

/// `POST /v1/server-groups/<name>/destroy`, `…/load-balancers/<name>/delete`, `…/security-groups/<name>/delete`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EnsureAbsent {
    /// Whose call it is.
    pub op: Operation,
}

/// `PUT /v1/load-balancers/<name>`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EnsureLoadBalancer {
    /// Whose call it is.
    pub op: Operation,
    /// As wanted.
    pub spec: LoadBalancerSpec,
}

/// `PUT /v1/load-balancers/<name>/shares`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EnsureShares {
    /// Whose call it is.
    pub op: Operation,
    /// All of them; none removes those that are there.
    pub shares: Vec<Share>,
}

/// `PUT /v1/security-groups/<name>`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EnsureSecurityGroup {
    /// Whose call it is.
    pub op: Operation,
    /// As wanted.
    pub spec: SecurityGroupSpec,
}

/// The query of `GET /v1/instances/<id>/log`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct LogQuery {
    /// How much of the end; at most [`MAX_LOG_BYTES`].
    pub bytes: usize,
}

/// The answer: the end of what the instance wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogTail {
    /// What is not UTF-8 is replaced.
    pub text: String,
}

/// The query of `GET /v1/instances/<id>/log-part`; the answer is a [`crate::providers::LogPart`].
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct LogPartQuery {
    /// How much; at most [`MAX_LOG_BYTES`].
    pub bytes: usize,
    /// From this place on: both or neither.
    #[serde(default)]
    pub generation: Option<u64>,
    /// Bytes from the beginning of the generation's file.
    #[serde(default)]
    pub offset: Option<u64>,
}

/// The query of `GET /v1/load-balancers/<name>/traffic`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct TrafficQuery {
    /// Unix time.
    pub since: i64,
}

/// The answer, oldest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Traffic {
    /// One for each second and server group in which something passed.
    pub seconds: Vec<TrafficSecond>,
}

/// `POST /upgrade`: another worker takes over, from this binary.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Upgrade {
    /// The running one's path when absent.
    #[serde(default)]
    pub binary: Option<PathBuf>,
}

/// `POST /stop`: the host ends.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct StopHost {
    /// Stops the instances too; else they run on until a host takes the directory again.
    #[serde(default)]
    pub instances: bool,
}

/// An answer without content.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Done {}

/// The HTTP status that goes with an error.
#[must_use]
pub const fn status_of(kind: ErrorKind) -> u16 {
    match kind {
        ErrorKind::NotFound => 404,
        ErrorKind::Conflict => 409,
        ErrorKind::Invalid => 422,
        ErrorKind::Fenced => 412,
        ErrorKind::Exhausted => 507,
        ErrorKind::Unavailable => 503,
    }
}
