//! The provider that drives a host over its socket, and starts one where none is.

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use hyper::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::control::{self, Control};
use super::daemon::{self, PortRange};
use super::launch::Launch;
use super::protocol::{
    self, Changes, Done, EnsureAbsent, EnsureCapacity, EnsureEnabled, EnsureLoadBalancer, EnsureSecurityGroup,
    EnsureServerGroup, EnsureShares, LogTail, Status, Traffic,
};
use crate::clock::Clock;
use crate::model::{
    Account, Capacity, LoadBalancer, LoadBalancerSpec, Place, SecurityGroup, SecurityGroupSpec, Served, ServerGroup,
    ServerGroupSpec, Share, TrafficSecond,
};
use crate::providers::{Error, ErrorKind, LogPart, LogPlace, Operation, Provider, ProviderKind, Snapshot};
use crate::secrets::Secrets;

/// How long reads may take.
const READ: Duration = Duration::from_secs(10);

/// An operation takes no longer than this, whatever its deadline.
const LONGEST: Duration = Duration::from_secs(3_600);

/// How long a host may take to start.
const START: Duration = Duration::from_secs(20);

/// How often a missing host is started at most.
const START_AGAIN: Duration = Duration::from_secs(2);

/// Which host to drive, and how to start it.
#[derive(Debug, Clone)]
pub struct Options {
    /// The host's own directory.
    pub directory: PathBuf,
    /// The `gennaker` binary that a host is started from; the running one for most.
    pub binary: PathBuf,
    /// The account that it belongs to; a running host of another is refused.
    pub account: String,
    /// The location that it is; a running host of another is refused.
    pub location: String,
    /// The machine's name, of a host that is started.
    pub host_name: String,
    /// Below which artifacts may lie.
    pub artifact_roots: Vec<PathBuf>,
    /// Below which `secret://file/…` may point.
    pub secret_roots: Vec<PathBuf>,
    /// Ports for instances.
    pub ports: PortRange,
    /// Of a host that is started: bytes of all its unpacked artifacts, at most.
    pub max_artifact_bytes: u64,
    /// Bytes of an instance's log, at most.
    pub max_instance_log_bytes: u64,
    /// Instances, at most.
    pub max_instances: usize,
    /// Of a host that is started: how its log is written.
    pub log: daemon::LogOptions,
}

impl Options {
    /// Account and location `local`, the running binary, and nothing allowed.
    ///
    /// # Errors
    /// Where the system does not tell which binary runs.
    pub fn new(directory: &Path) -> std::io::Result<Self> {
        let defaults = daemon::Options::new(directory)?;
        Ok(Self {
            directory: defaults.directory,
            binary: defaults.program,
            account: defaults.account,
            location: defaults.location,
            host_name: defaults.host_name,
            artifact_roots: defaults.artifact_roots,
            secret_roots: defaults.secret_roots,
            ports: defaults.ports,
            max_artifact_bytes: defaults.max_artifact_bytes,
            max_instance_log_bytes: defaults.max_instance_log_bytes,
            max_instances: defaults.max_instances,
            log: defaults.log,
        })
    }
}

/// The `host` provider. Cheap to clone.
#[derive(Clone)]
pub struct HostProvider(Arc<Inner>);

struct Inner {
    options: Options,
    control: Control,
    clock: Clock,
    revision: watch::Receiver<u64>,
    starter: Arc<Starter>,
    differences: Vec<Difference>,
    served: Option<Served>,
    /// Follows the host's changes; ends with us.
    _follower: JoinSet<()>,
}

impl HostProvider {
    /// Connects to the host of a directory, or starts one there: in a session of its own, with a
    /// log in its directory, so that it outlives this process.
    ///
    /// # Errors
    /// `Unavailable` when no host can be started, `Invalid` when the directory's path is too long, `Conflict` when the one that runs is another one
    /// (protocol, account or location).
    pub async fn connect(options: Options) -> Result<Self, Error> {
        let directory = std::path::absolute(&options.directory).map_err(|error| unavailable(&error))?;
        let options = Options { directory, ..options };
        protocol::check_directory(&options.directory)
            .map_err(|error| Error { kind: ErrorKind::Invalid, message: error.to_string() })?;
        daemon::files::make_directory(&options.directory).map_err(|error| unavailable(&error))?;
        let control = Control::new(&options.directory);
        let starter = Arc::new(Starter { options: options.clone(), last: tokio::sync::Mutex::new(None) });
        let status = match control.status().await {
            Ok(status) => status,
            Err(control::Error::Refused(error)) => return Err(Error { kind: ErrorKind::Conflict, ..error }),
            Err(_) => {
                let _ = std::fs::remove_file(starter.stopped());
                starter.start().await?;
                starter.wait(&control).await?
            }
        };
        check(&options, &status)?;
        let differences = differences(&options, &status);
        let place = Place { account: options.account.clone(), location: options.location.clone() };
        let served = status.id.clone().map(|id| Served { place, id, host: status.host.clone().unwrap_or_default() });
        let (revision, receiver) = watch::channel(status.revision);
        let mut follower = JoinSet::new();
        follower.spawn(follow(control.clone(), revision));
        let inner = Inner {
            options,
            control,
            clock: Clock::system(),
            revision: receiver,
            starter,
            differences,
            served,
            _follower: follower,
        };
        Ok(Self(Arc::new(inner)))
    }

    /// What this provider says of itself.
    #[must_use]
    pub fn describe() -> ProviderKind {
        ProviderKind {
            kind: "host",
            title: "Host",
            description: "Server groups are processes on a machine, load balancers are listeners of its proxy.",
            schema: Launch::schema(),
            example: Launch::example(),
        }
    }

    /// The host's control side, for what is not the provider's business.
    #[must_use]
    pub fn control(&self) -> &Control {
        &self.0.control
    }

    /// Whether the host answers and speaks our version. Starts none.
    ///
    /// # Errors
    /// Why not, for everybody to read.
    pub async fn reach(&self) -> Result<(), &'static str> {
        match self.0.control.status().await {
            Ok(status) if status.protocol == protocol::VERSION => Ok(()),
            Ok(_) => Err("the host is of another version; run `gennaker host upgrade`"),
            Err(_) if self.0.starter.stopped().exists() => Err(
                "the host was stopped with `gennaker host stop`; start the server again, which starts it with its settings",
            ),
            Err(_) => Err("the host does not answer"),
        }
    }

    /// Settings that the host, which ran before, was not started with: they do not hold.
    #[must_use]
    pub fn differences(&self) -> &[Difference] {
        &self.0.differences
    }

    /// What is reached by it; none where the host is of a version that does not say.
    #[must_use]
    pub fn served(&self) -> Option<&Served> {
        self.0.served.as_ref()
    }

    fn check_place(&self, place: &Place) -> Result<(), Error> {
        let options = &self.0.options;
        if place.account == options.account && place.location == options.location {
            return Ok(());
        }
        Err(Error {
            kind: ErrorKind::NotFound,
            message: format!(
                "account {} has no location {}; it has {}",
                options.account, place.location, options.location
            ),
        })
    }

    async fn read<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        self.insist(Method::GET, path, None::<&()>, READ).await
    }

    async fn ensure<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        op: &Operation,
        body: &(impl Serialize + Sync),
    ) -> Result<T, Error> {
        let within = (op.deadline - self.0.clock.now()).to_std().unwrap_or_default().min(LONGEST);
        self.insist(method, path, Some(body), within).await
    }

    /// Calls until there is an answer; where nobody listens at all, a host is started.
    async fn insist<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
        within: Duration,
    ) -> Result<T, Error> {
        let until = Instant::now() + within;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            // A host that restarts answers within a moment; only then is it taken for gone.
            let patience = left.min(Duration::from_millis(500));
            match self.0.control.call(method.clone(), path, body, left).await {
                Err(error @ control::Error::Absent { .. }) => {
                    if left <= patience {
                        return Err(error.into());
                    }
                    if self.0.starter.stopped().exists() {
                        return Err(Error {
                            kind: ErrorKind::Unavailable,
                            message: format!(
                                "the host was stopped with `gennaker host stop`; start the server again, which starts it with its \
                                 settings, or run `gennaker host --dir {}` with the same ones",
                                self.0.options.directory.display()
                            ),
                        });
                    }
                    if let Err(error) = self.0.starter.start().await {
                        tracing::warn!(%error, "the host cannot be started");
                    }
                }
                Err(error @ control::Error::Broken(_)) if left.is_zero() => return Err(error.into()),
                Err(control::Error::Broken(_)) => {}
                other => {
                    return other.map_err(Error::from).inspect_err(|error| {
                        if error.kind == ErrorKind::Fenced {
                            crate::measure::engine::call_fenced();
                            tracing::warn!("a late call was refused, since another owner has acted after it: {error}");
                        }
                    });
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Whether the host that answers is the one that is meant.
fn check(options: &Options, status: &Status) -> Result<(), Error> {
    let conflict = |message: String| Err(Error { kind: ErrorKind::Conflict, message });
    if status.protocol != protocol::VERSION {
        return conflict(format!(
            "the host on {} speaks version {} of the protocol, this server {}; run `gennaker host upgrade`",
            options.directory.display(),
            status.protocol,
            protocol::VERSION
        ));
    }
    if status.account != options.account || status.location != options.location {
        return conflict(format!(
            "the host on {} is of account {}, location {}, not of {}, {}; give another directory (--host-dir), or that \
             account and location (--account, --location)",
            options.directory.display(),
            status.account,
            status.location,
            options.account,
            options.location
        ));
    }
    Ok(())
}

/// A setting that the running host was not started with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The server's flag.
    pub setting: &'static str,
    /// What was asked for.
    pub asked: String,
    /// What holds.
    pub holds: String,
}

fn differences(options: &Options, status: &Status) -> Vec<Difference> {
    let paths = |paths: &[PathBuf]| {
        let paths: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
        if paths.is_empty() { "none".to_owned() } else { paths.join(", ") }
    };
    let pairs = [
        ("--host-name", options.host_name.clone(), status.host.clone()),
        ("--artifact-root", paths(&options.artifact_roots), Some(paths(&status.artifact_roots))),
        ("--secret-dir", paths(&options.secret_roots), status.secret_roots.as_deref().map(paths)),
        ("--port-range", options.ports.to_string(), status.ports.clone()),
        (
            "--max-artifact-bytes",
            options.max_artifact_bytes.to_string(),
            // A host of an earlier version says nothing of its quota.
            (status.artifacts.max_bytes > 0).then(|| status.artifacts.max_bytes.to_string()),
        ),
        (
            "--max-instance-log-bytes",
            options.max_instance_log_bytes.to_string(),
            status.max_instance_log_bytes.map(|most| most.to_string()),
        ),
        ("--max-instances", options.max_instances.to_string(), status.max_instances.map(|most| most.to_string())),
    ];
    pairs
        .into_iter()
        // An older host does not tell all.
        .filter_map(|(setting, asked, holds)| Some(Difference { setting, asked, holds: holds? }))
        .filter(|difference| difference.asked != difference.holds)
        .collect()
}

/// Starts hosts, not too often.
struct Starter {
    options: Options,
    last: tokio::sync::Mutex<Option<Instant>>,
}

impl Starter {
    /// Stands while the host is stopped because somebody said so.
    fn stopped(&self) -> PathBuf {
        daemon::records::Layout(self.options.directory.clone()).stopped()
    }

    /// Whether somebody else starts it: one of ours would be in its way, and within the bounds of our own service.
    fn is_a_service(&self) -> bool {
        daemon::records::Layout(self.options.directory.clone()).service().exists()
    }

    /// Starts a host unless one was just started; another one that has the directory makes it end at once.
    async fn start(&self) -> Result<(), Error> {
        if self.is_a_service() {
            return Ok(());
        }
        let mut last = self.last.lock().await;
        if last.is_some_and(|at| at.elapsed() < START_AGAIN) {
            return Ok(());
        }
        *last = Some(Instant::now());
        let options = &self.options;
        if !options.directory.is_dir() {
            let message = format!("the host's directory {} is gone", options.directory.display());
            return Err(Error { kind: ErrorKind::Unavailable, message });
        }
        let path = options.directory.join("host.log");
        let open = || {
            use std::os::unix::fs::OpenOptionsExt;
            let log = std::fs::File::options().append(true).create(true).mode(0o600).open(&path)?;
            Ok((log.try_clone()?, log))
        };
        let (out, err) = open().map_err(|error| unavailable(&daemon::files::about(&path, "cannot open", &error)))?;
        let host = daemon::Options {
            directory: options.directory.clone(),
            account: options.account.clone(),
            location: options.location.clone(),
            host_name: options.host_name.clone(),
            artifact_roots: options.artifact_roots.clone(),
            secret_roots: options.secret_roots.clone(),
            ports: options.ports,
            max_instances: options.max_instances,
            max_artifact_bytes: options.max_artifact_bytes,
            max_instance_log_bytes: options.max_instance_log_bytes,
            artifact_keep_seconds: daemon::ARTIFACT_KEEP_SECONDS,
            log: options.log.clone(),
            program: options.binary.clone(),
        };
        let mut command = std::process::Command::new(&options.binary);
        // It does not speak to systemd for us.
        for variable in crate::systemd::VARIABLES {
            command.env_remove(variable);
        }
        let mut child = command
            .args(host.arguments())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .map_err(|error| unavailable(&daemon::files::about(&options.binary, "cannot run", &error)))?;
        // It outlives us; should it not, it is reaped.
        std::thread::Builder::new()
            .name("host".to_owned())
            .spawn(move || drop(child.wait()))
            .map_err(|error| unavailable(&error))?;
        Ok(())
    }

    async fn wait(&self, control: &Control) -> Result<Status, Error> {
        let until = Instant::now() + START;
        loop {
            let error = match control.status().await {
                Ok(status) => return Ok(status),
                Err(control::Error::Refused(error)) => return Err(Error { kind: ErrorKind::Conflict, ..error }),
                Err(error) => error,
            };
            if Instant::now() > until && self.is_a_service() {
                return Err(Error {
                    kind: ErrorKind::Unavailable,
                    message: format!(
                        "{error}; it is a service, which is not ours to start: systemctl start gennaker-host"
                    ),
                });
            }
            if Instant::now() > until {
                let log = self.options.directory.join("host.log");
                return Err(Error {
                    kind: ErrorKind::Unavailable,
                    message: format!("{error}; {} ends with: {}", log.display(), tail(&log)),
                });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// The end of a log, for an error.
fn tail(path: &Path) -> String {
    let read = || {
        let mut file = std::fs::File::open(path)?;
        let size = file.metadata()?.len();
        file.seek(SeekFrom::Start(size.saturating_sub(1_000)))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        std::io::Result::Ok(String::from_utf8_lossy(&text).trim().to_owned())
    };
    read().unwrap_or_else(|error| error.to_string())
}

/// Waits for changes, for ever. Starts no host: only calls do, so that a server on its way out does not.
async fn follow(control: Control, revision: watch::Sender<u64>) {
    loop {
        let after = *revision.borrow();
        let path = format!("/changes?after={after}");
        let within = Duration::from_secs(protocol::MAX_WAIT_SECONDS + 10);
        match control.call::<Changes>(Method::GET, &path, None::<&()>, within).await {
            Ok(changes) => {
                revision.send_if_modified(|revision| std::mem::replace(revision, changes.revision) != changes.revision);
            }
            Err(error) => {
                tracing::debug!(%error, "the host's changes cannot be followed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

fn unavailable(error: &std::io::Error) -> Error {
    Error { kind: ErrorKind::Unavailable, message: error.to_string() }
}

#[async_trait]
impl Provider for HostProvider {
    fn kind(&self) -> ProviderKind {
        Self::describe()
    }

    fn account(&self) -> Account {
        Account {
            name: self.0.options.account.clone(),
            provider: "host".to_owned(),
            locations: vec![self.0.options.location.clone()],
        }
    }

    fn validate_launch(&self, launch: &Value, open: &[String]) -> Result<(), (String, String)> {
        let Some(read) = Launch::read_new_known(launch, open)? else { return Ok(()) };
        let secrets = Secrets::new(self.0.options.secret_roots.iter().cloned());
        secrets.permits_all(&serde_json::json!({ "environment": read.environment }))
    }

    async fn snapshot(&self) -> Result<Snapshot, Error> {
        self.read("/snapshot").await
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.0.revision.clone()
    }

    async fn ensure_server_group(&self, op: &Operation, spec: &ServerGroupSpec) -> Result<ServerGroup, Error> {
        self.check_place(&spec.place)?;
        let body = EnsureServerGroup { op: op.clone(), spec: spec.clone() };
        self.ensure(Method::PUT, &path("server-groups", &spec.name, ""), op, &body).await
    }

    async fn ensure_capacity(
        &self,
        op: &Operation,
        place: &Place,
        name: &str,
        capacity: Capacity,
    ) -> Result<ServerGroup, Error> {
        self.check_place(place)?;
        let body = EnsureCapacity { op: op.clone(), capacity };
        self.ensure(Method::PUT, &path("server-groups", name, "/capacity"), op, &body).await
    }

    async fn ensure_enabled(
        &self,
        op: &Operation,
        place: &Place,
        name: &str,
        enabled: bool,
    ) -> Result<ServerGroup, Error> {
        self.check_place(place)?;
        let body = EnsureEnabled { op: op.clone(), enabled };
        self.ensure(Method::PUT, &path("server-groups", name, "/enabled"), op, &body).await
    }

    async fn ensure_server_group_destroyed(&self, op: &Operation, place: &Place, name: &str) -> Result<(), Error> {
        self.check_place(place)?;
        let body = EnsureAbsent { op: op.clone() };
        let Done {} = self.ensure(Method::POST, &path("server-groups", name, "/destroy"), op, &body).await?;
        Ok(())
    }

    async fn ensure_load_balancer(&self, op: &Operation, spec: &LoadBalancerSpec) -> Result<LoadBalancer, Error> {
        self.check_place(&spec.place)?;
        let body = EnsureLoadBalancer { op: op.clone(), spec: spec.clone() };
        self.ensure(Method::PUT, &path("load-balancers", &spec.name, ""), op, &body).await
    }

    async fn ensure_load_balancer_deleted(&self, op: &Operation, place: &Place, name: &str) -> Result<(), Error> {
        self.check_place(place)?;
        let body = EnsureAbsent { op: op.clone() };
        let Done {} = self.ensure(Method::POST, &path("load-balancers", name, "/delete"), op, &body).await?;
        Ok(())
    }

    async fn ensure_shares(
        &self,
        op: &Operation,
        place: &Place,
        load_balancer: &str,
        shares: &[Share],
    ) -> Result<LoadBalancer, Error> {
        self.check_place(place)?;
        let body = EnsureShares { op: op.clone(), shares: shares.to_vec() };
        self.ensure(Method::PUT, &path("load-balancers", load_balancer, "/shares"), op, &body).await
    }

    async fn ensure_security_group(&self, op: &Operation, spec: &SecurityGroupSpec) -> Result<SecurityGroup, Error> {
        self.check_place(&spec.place)?;
        let body = EnsureSecurityGroup { op: op.clone(), spec: spec.clone() };
        self.ensure(Method::PUT, &path("security-groups", &spec.name, ""), op, &body).await
    }

    async fn ensure_security_group_deleted(&self, op: &Operation, place: &Place, name: &str) -> Result<(), Error> {
        self.check_place(place)?;
        let body = EnsureAbsent { op: op.clone() };
        let Done {} = self.ensure(Method::POST, &path("security-groups", name, "/delete"), op, &body).await?;
        Ok(())
    }

    async fn log_tail(&self, place: &Place, instance: &str, bytes: usize) -> Result<String, Error> {
        self.check_place(place)?;
        let bytes = bytes.min(protocol::MAX_LOG_BYTES);
        let tail: LogTail = self.read(&path("instances", instance, &format!("/log?bytes={bytes}"))).await?;
        Ok(tail.text)
    }

    async fn log_part(
        &self,
        place: &Place,
        instance: &str,
        from: Option<LogPlace>,
        bytes: usize,
    ) -> Result<LogPart, Error> {
        self.check_place(place)?;
        let bytes = bytes.min(protocol::MAX_LOG_BYTES);
        let from = from.map_or_else(String::new, |at| format!("&generation={}&offset={}", at.generation, at.offset));
        self.read(&path("instances", instance, &format!("/log-part?bytes={bytes}{from}"))).await
    }

    async fn traffic(&self, place: &Place, load_balancer: &str, since: i64) -> Result<Vec<TrafficSecond>, Error> {
        self.check_place(place)?;
        let traffic: Traffic =
            self.read(&path("load-balancers", load_balancer, &format!("/traffic?since={since}"))).await?;
        Ok(traffic.seconds)
    }
}

/// A path with a name in it, whatever characters the name has.
fn path(collection: &str, name: &str, rest: &str) -> String {
    let mut path = format!("/{collection}/");
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            path.push(char::from(byte));
        } else {
            path.push_str(&format!("%{byte:02X}"));
        }
    }
    path + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_leave_its_place_in_a_path() {
        assert_eq!(path("server-groups", "web-v001", "/capacity"), "/server-groups/web-v001/capacity");
        assert_eq!(path("instances", "../status?x=1", ""), "/instances/..%2Fstatus%3Fx%3D1");
    }

    #[test]
    fn the_provider_describes_a_launch_that_it_takes() {
        let kind = HostProvider::describe();
        Launch::read(&kind.example).expect("the example passes");
        assert_eq!(kind.kind, "host");
    }

    #[tokio::test]
    async fn a_host_of_another_version_answers_and_is_to_be_upgraded() {
        let scratch = daemon::files::scratch::Scratch::new();
        let status = serde_json::json!({
            "protocol": protocol::VERSION + 1, "version": "99.0.0", "pid": 1, "keeper": null,
            "startedAt": "2030-01-01T00:00:00Z", "directory": scratch.path(),
            "account": "local", "location": "local", "artifactRoots": [], "serverGroups": 0, "instances": 0,
            "loadBalancers": 0, "securityGroups": 0, "revision": 1, "unknownYet": true,
        });
        let router =
            axum::Router::new().route(protocol::STATUS, axum::routing::get(|| async move { axum::Json(status) }));
        let listener = tokio::net::UnixListener::bind(protocol::socket_path(scratch.path())).expect("listens");
        let _server = JoinSet::from_iter([std::future::IntoFuture::into_future(axum::serve(listener, router))]);
        let status = Control::new(scratch.path()).status().await.expect("any version answers");
        assert_eq!(status.version, "99.0.0");
        let connected = HostProvider::connect(Options::new(scratch.path()).expect("options")).await;
        let error = connected.err().expect("another version");
        assert_eq!(error.kind, ErrorKind::Conflict);
        assert!(error.message.contains("gennaker host upgrade"), "{error}");
    }
}
