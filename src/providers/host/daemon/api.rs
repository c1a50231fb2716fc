//! The control side: HTTP on a Unix socket that only the host's own user (and root) may talk to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, FromRequest, Path, Query, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use super::hub::{Hub, Reply, refuse};
use super::logs;
use crate::providers::host::protocol::{
    self, Changes, ChangesQuery, Done, EnsureAbsent, EnsureCapacity, EnsureEnabled, EnsureLoadBalancer,
    EnsureSecurityGroup, EnsureServerGroup, EnsureShares, LogPartQuery, LogQuery, LogTail, Status, StopHost, Traffic,
    TrafficQuery, Upgrade,
};
use crate::providers::{ErrorKind, LogPart, LogPlace};
use crate::secrets::{self, Mask, Secrets};

/// What the worker itself has to do.
pub enum Command {
    Upgrade(Upgrade),
    /// Answered when the instances are stopped, if they are to be.
    Stop(StopHost, tokio::sync::oneshot::Sender<()>),
}

/// What the handlers share.
#[derive(Clone)]
pub struct Control {
    pub hub: Arc<Hub>,
    pub commands: mpsc::Sender<Command>,
    pub keeper: Arc<std::sync::atomic::AtomicU32>,
}

/// All paths.
pub fn router(control: Control) -> Router {
    let v1 = Router::new()
        .route("/snapshot", get(snapshot))
        .route("/changes", get(changes))
        .route("/server-groups/{name}", put(server_group))
        .route("/server-groups/{name}/capacity", put(capacity))
        .route("/server-groups/{name}/enabled", put(enabled))
        .route("/server-groups/{name}/destroy", post(destroy))
        .route("/load-balancers/{name}", put(load_balancer))
        .route("/load-balancers/{name}/shares", put(shares))
        .route("/load-balancers/{name}/delete", post(delete_load_balancer))
        .route("/load-balancers/{name}/traffic", get(traffic))
        .route("/security-groups/{name}", put(security_group))
        .route("/security-groups/{name}/delete", post(delete_security_group))
        .route("/instances/{id}/log", get(log))
        .route("/instances/{id}/log-part", get(log_part));
    Router::new()
        .nest(&format!("/v{}", protocol::VERSION), v1)
        .route(protocol::STATUS, get(status))
        .route(protocol::UPGRADE, post(upgrade))
        .route(protocol::STOP, post(stop))
        .layer(DefaultBodyLimit::max(protocol::MAX_BODY))
        .layer(axum::middleware::from_fn_with_state(control.clone(), while_in_charge))
        .with_state(control)
        .fallback(unknown_path)
}

/// A worker that lets go of the state takes no more calls and soon breaks off those that it has: the
/// caller asks again, and the next worker answers.
async fn while_in_charge(State(control): State<Control>, request: Request, next: axum::middleware::Next) -> Response {
    let hub = &control.hub;
    let again = || {
        let error = refuse(ErrorKind::Unavailable, "the host is going down or being replaced; ask again");
        ([(axum::http::header::RETRY_AFTER, "0")], Failed(error)).into_response()
    };
    // The call that ends the host is the one that has it let go.
    if request.uri().path() == protocol::STOP {
        return next.run(request).await;
    }
    if hub.stop.is_cancelled() {
        return again();
    }
    let over = async {
        hub.stop.cancelled().await;
        tokio::time::sleep(LAST_CALLS).await;
    };
    tokio::select! {
        response = next.run(request) => response,
        () = over => again(),
    }
}

/// How long calls may go on after the worker has let go.
const LAST_CALLS: Duration = Duration::from_secs(1);

/// Connections of the host's own user and of root; others are closed unread.
pub struct Guarded(pub UnixListener);

impl axum::serve::Listener for Guarded {
    type Io = UnixStream;
    type Addr = tokio::net::unix::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            match self.0.accept().await {
                Ok((stream, address)) => {
                    let own = nix::unistd::geteuid().as_raw();
                    match stream.peer_cred() {
                        Ok(peer) if peer.uid() == own || peer.uid() == 0 => return (stream, address),
                        Ok(peer) => tracing::warn!(uid = peer.uid(), "another user was refused at the control socket"),
                        Err(error) => tracing::warn!(%error, "a peer without credentials was refused"),
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept at the control socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.0.local_addr()
    }
}

struct Failed(crate::providers::Error);

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(protocol::status_of(self.0.kind)).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self.0)).into_response()
    }
}

impl From<crate::providers::Error> for Failed {
    fn from(error: crate::providers::Error) -> Self {
        Self(error)
    }
}

type Answer<T> = Result<Json<T>, Failed>;

/// A body; what is wrong with it is said in the protocol's own words.
struct Body<T>(T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Failed;
    async fn from_request(request: Request, state: &S) -> Result<Self, Failed> {
        let body: Result<Json<T>, JsonRejection> = Json::from_request(request, state).await;
        body.map(|Json(body)| Self(body)).map_err(|error| Failed(refuse(ErrorKind::Invalid, error.body_text())))
    }
}

fn answer<T: Serialize>(reply: Reply<T>) -> Answer<T> {
    reply.map(Json).map_err(Failed)
}

async fn unknown_path(request: Request) -> Failed {
    Failed(unknown(request.uri().path()))
}

/// A call of another version is no word on what is there: the same call is good once both sides
/// are of the same version.
fn unknown(path: &str) -> crate::providers::Error {
    let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    match first.strip_prefix('v').and_then(|version| version.parse::<u32>().ok()) {
        Some(version) if version != protocol::VERSION => {
            let how = if version > protocol::VERSION {
                "run `gennaker host upgrade` with the newer binary"
            } else {
                "upgrade the older server, or run `gennaker host upgrade` with its binary"
            };
            refuse(
                ErrorKind::Unavailable,
                format!(
                    "this host speaks version {} of the protocol and was asked in version {version}; {how}",
                    protocol::VERSION
                ),
            )
        }
        _ => refuse(ErrorKind::NotFound, format!("this host has no {path}")),
    }
}

async fn status(State(control): State<Control>) -> Json<Status> {
    let hub = &control.hub;
    let keeper = control.keeper.load(std::sync::atomic::Ordering::Relaxed);
    let revision = *hub.revision.borrow();
    let artifacts = hub.artifacts();
    let artifacts = tokio::task::spawn_blocking(move || artifacts.usage()).await.unwrap_or_default();
    Json(hub.read(|inner| Status {
        protocol: protocol::VERSION,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        keeper: (keeper != 0).then_some(keeper),
        started_at: hub.started_at,
        directory: hub.options.directory.clone(),
        account: hub.options.account.clone(),
        location: hub.options.location.clone(),
        id: Some(hub.id.clone()),
        host: Some(hub.options.host_name.clone()),
        artifact_roots: hub.options.artifact_roots.clone(),
        secret_roots: Some(hub.options.secret_roots.clone()),
        ports: Some(hub.options.ports.to_string()),
        max_instances: Some(hub.options.max_instances),
        max_instance_log_bytes: Some(hub.options.max_instance_log_bytes),
        server_groups: inner.groups.len(),
        instances: inner.instance_count(),
        load_balancers: inner.balancers.len(),
        security_groups: inner.security_groups.len(),
        artifacts,
        revision,
    }))
}

async fn snapshot(State(control): State<Control>) -> Response {
    Json(control.hub.snapshot()).into_response()
}

async fn changes(State(control): State<Control>, Query(query): Query<ChangesQuery>) -> Json<Changes> {
    let hub = &control.hub;
    let wait = Duration::from_secs(query.wait.unwrap_or(protocol::MAX_WAIT_SECONDS).min(protocol::MAX_WAIT_SECONDS));
    let mut revisions = hub.revision.subscribe();
    tokio::select! {
        // An equal number means no change; a lower one is from another life of the host.
        _ = revisions.wait_for(|revision| *revision != query.after) => {}
        () = tokio::time::sleep(wait) => {}
        () = hub.stop.cancelled() => {}
    }
    Json(Changes { revision: *hub.revision.borrow() })
}

fn same_name(path: &str, body: &str) -> Result<(), Failed> {
    if path == body {
        return Ok(());
    }
    Err(Failed(refuse(ErrorKind::Invalid, format!("the path names {path}, the body {body}"))))
}

async fn server_group(
    State(control): State<Control>,
    Path(name): Path<String>,
    Body(body): Body<EnsureServerGroup>,
) -> Answer<crate::model::ServerGroup> {
    same_name(&name, &body.spec.name)?;
    answer(control.hub.ensure_server_group(&body.op, body.spec).await)
}

async fn capacity(
    State(control): State<Control>,
    Path(name): Path<String>,
    Body(body): Body<EnsureCapacity>,
) -> Answer<crate::model::ServerGroup> {
    answer(control.hub.ensure_capacity(&body.op, &name, body.capacity).await)
}

async fn enabled(
    State(control): State<Control>,
    Path(name): Path<String>,
    Body(body): Body<EnsureEnabled>,
) -> Answer<crate::model::ServerGroup> {
    answer(control.hub.ensure_enabled(&body.op, &name, body.enabled).await)
}

async fn destroy(
    State(control): State<Control>,
    Path(name): Path<String>,
    Body(body): Body<EnsureAbsent>,
) -> Answer<Done> {
    answer(control.hub.ensure_group_destroyed(&body.op, &name).await.map(|()| Done {}))
}

async fn load_balancer(
    State(control): State<Control>,
    Path(name): Path<String>,
    Body(body): Body<EnsureLoadBalancer>,
) -> Answer<crate::model::LoadBalancer> {
    same_name(&name, &body.spec.name)?;
    answer(control.hub.ensure_load_balancer(&body.op, body.spec).await)
}

async fn shares(
    State(control): State<Control>,
    Path(name): Path<String>,
    Body(body): Body<EnsureShares>,
) -> Answer<crate::model::LoadBalancer> {
    answer(control.hub.ensure_shares(&body.op, &name, body.shares).await)
}

async fn delete_load_balancer(
    State(control): State<Control>,
    Path(name): Path<String>,
    Body(body): Body<EnsureAbsent>,
) -> Answer<Done> {
    answer(control.hub.ensure_load_balancer_deleted(&body.op, &name).await.map(|()| Done {}))
}

async fn traffic(
    State(control): State<Control>,
    Path(name): Path<String>,
    Query(query): Query<TrafficQuery>,
) -> Answer<Traffic> {
    if !control.hub.read(|inner| inner.balancers.contains_key(&name)) {
        return Err(Failed(refuse(ErrorKind::NotFound, format!("there is no load balancer {name} on this host"))));
    }
    Ok(Json(Traffic { seconds: control.hub.proxy.traffic(&name, query.since) }))
}

async fn security_group(
    State(control): State<Control>,
    Path(name): Path<String>,
    Body(body): Body<EnsureSecurityGroup>,
) -> Answer<crate::model::SecurityGroup> {
    same_name(&name, &body.spec.name)?;
    answer(control.hub.ensure_security_group(&body.op, body.spec).await)
}

async fn delete_security_group(
    State(control): State<Control>,
    Path(name): Path<String>,
    Body(body): Body<EnsureAbsent>,
) -> Answer<Done> {
    answer(control.hub.ensure_security_group_deleted(&body.op, &name).await.map(|()| Done {}))
}

async fn log(State(control): State<Control>, Path(id): Path<String>, Query(query): Query<LogQuery>) -> Answer<LogTail> {
    let bytes = query.bytes.min(protocol::MAX_LOG_BYTES);
    read_log(&control, &id, move |directory, mask| {
        let text = logs::tail(directory, bytes)?;
        Ok(Json(LogTail { text: mask(&text) }))
    })
    .await
}

async fn log_part(
    State(control): State<Control>,
    Path(id): Path<String>,
    Query(query): Query<LogPartQuery>,
) -> Answer<LogPart> {
    let bytes = query.bytes.clamp(1, protocol::MAX_LOG_BYTES);
    let from = query.generation.zip(query.offset).map(|(generation, offset)| LogPlace { generation, offset });
    read_log(&control, &id, move |directory, mask| {
        let part = logs::part(directory, from, bytes)?;
        Ok(Json(LogPart { text: mask(&part.text), ..part }))
    })
    .await
}

/// Reads the log of an instance beside the runtime; `mask` takes out the secrets that its writer was given.
async fn read_log<T: Send + 'static>(
    control: &Control,
    id: &str,
    read: impl FnOnce(&std::path::Path, &dyn Fn(&str) -> String) -> std::io::Result<Json<T>> + Send + 'static,
) -> Answer<T> {
    let hub = &control.hub;
    let found = hub.read(|inner| {
        let (name, group) = inner.groups.iter().find(|(_, group)| group.instances.contains_key(id))?;
        Some((name.clone(), group.launch.environment.clone()))
    });
    let Some((group, environment)) = found else {
        return Err(Failed(refuse(ErrorKind::NotFound, format!("there is no instance {id} on this host"))));
    };
    let directory = hub.layout.instance(&group, id).logs();
    let secrets = Secrets::new(hub.options.secret_roots.iter().cloned());
    tokio::task::spawn_blocking(move || read(&directory, &|text| masked(text, &environment, &secrets)))
        .await
        .map_err(std::io::Error::other)
        .and_then(|answer| answer)
        .map_err(|error| Failed(super::hub::unavailable(&error)))
}

/// A part of a log without the secrets that its writer was given.
fn masked(text: &str, environment: &BTreeMap<String, String>, secrets: &Secrets) -> String {
    if text.is_empty() {
        return String::new();
    }
    let mut mask = Mask::default();
    for (name, value) in environment.iter().filter(|(_, value)| secrets::is_reference(value)) {
        match secrets.resolve(value) {
            Ok(secret) => mask.add(&secret),
            Err(error) => {
                return format!(
                    "(not shown: the secret of variable {name} cannot be masked, because it cannot be read: {error})\n"
                );
            }
        }
    }
    mask.excerpt(text)
}

async fn upgrade(State(control): State<Control>, Body(body): Body<Upgrade>) -> Answer<Done> {
    if let Some(binary) = &body.binary
        && !binary.is_file()
    {
        return Err(Failed(refuse(ErrorKind::Invalid, format!("there is no binary at {}", binary.display()))));
    }
    if control.keeper.load(std::sync::atomic::Ordering::Relaxed) == 0 {
        return Err(Failed(refuse(ErrorKind::Unavailable, "this host has no keeper that could start another worker")));
    }
    order(&control, Command::Upgrade(body)).await?;
    Ok(Json(Done {}))
}

async fn stop(State(control): State<Control>, Body(body): Body<StopHost>) -> Answer<Done> {
    let (done, finished) = tokio::sync::oneshot::channel();
    order(&control, Command::Stop(body, done)).await?;
    // Dropped without a word when the worker ends first: stopped as well.
    let _ = finished.await;
    Ok(Json(Done {}))
}

async fn order(control: &Control, command: Command) -> Result<(), Failed> {
    let sent = control.commands.send(command).await;
    sent.map_err(|_| Failed(refuse(ErrorKind::Unavailable, "the host is going down")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_is_told_what_to_do_and_an_unknown_path_is_not_there() {
        for version in [0, protocol::VERSION + 1] {
            let error = unknown(&format!("/v{version}/snapshot"));
            assert_eq!(error.kind, ErrorKind::Unavailable);
            assert!(error.message.contains("gennaker host upgrade"), "{error}");
        }
        for path in ["/nothing", "/", &format!("/v{}/nothing", protocol::VERSION), "/vx/status"] {
            assert_eq!(unknown(path).kind, ErrorKind::NotFound, "{path}");
        }
    }
}
