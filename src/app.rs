//! The composition: every part is made here, once, from the settings; and ended here, in order.

mod watched;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use ipnet::IpNet;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::api;
use crate::auth::token;
use crate::clock::Clock;
use crate::config::Config;
use crate::engine::contract::INVENTORY_TOPIC;
use crate::engine::{self, Engine};
use crate::housekeeping::{self, Job};
use crate::inventory::Inventory;
use crate::listener::{self, Certificates};
use crate::measure::{self, Invariant};
use crate::model::{Actor, Principal, PrincipalId, PrincipalKind, Role};
use crate::notifiers::email::Email;
use crate::notifiers::{Notifier, Notifiers, deliver};
use crate::outbound::{self, Outbound};
use crate::providers::Provider;
use crate::providers::host::client::{self, HostProvider};
use crate::secrets::Secrets;
use crate::stages;
use crate::store::{self, Commit, CommitError, Guard, Store, Write};
use crate::telemetry::proxy::Proxies;
use crate::telemetry::traces;
use crate::triggers::{self, Dispatcher};

/// The server did not start or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen on {address}: {source}; choose another address with --listen")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("the host in {directory} cannot be used: {message}")]
    Host { directory: String, message: String },
    #[error("mail cannot be set up: {0}")]
    Mail(String),
    #[error("the collector of traces cannot be used: {0}")]
    Traces(String),
    #[error("the first principal cannot be made: {0}")]
    FirstPrincipal(String),
}

/// The name of the principal that the first start makes.
const ADMIN: &str = "admin";
/// The name of the principal that stands for whoever may use the data directory itself.
const LOCAL: &str = "system";

/// How long an account may take for its first answer at the start.
const FIRST_LOOK: Duration = Duration::from_secs(5);
/// Open requests may go on for this long after the steps under way have ended.
const GRACE: Duration = Duration::from_secs(5);
/// From the end of the last step to the close of sockets and streams, so that it is still told.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// From one look for old executions to the next.
const RETENTION_EVERY: Duration = Duration::from_secs(60 * 60);
/// From one look for what the triggers' timer missed to the next.
const SWEEP_EVERY: Duration = Duration::from_secs(30);
/// Slots of triggers are remembered for this long, so that none is started twice.
const SLOTS_KEPT: TimeDelta = TimeDelta::days(7);
/// Executions deleted in one go, so that other commits get between.
const RETENTION_BATCH: u64 = 100;

/// Listens; the address is free again at once after the process has ended.
///
/// # Errors
/// When the address is taken or not ours.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })
}

/// A running server.
pub struct App {
    address: SocketAddr,
    first_token: Option<String>,
    notes: Vec<String>,
    data_dir: PathBuf,
    store: Store,
    engine: Engine,
    lifecycle: api::Lifecycle,
    live: Live,
    /// In the order in which they end.
    tasks: Vec<Task>,
    /// Cancelled when a task has ended that should not have.
    failed: CancellationToken,
    /// Cancelled when the server has been asked to end.
    stopping: CancellationToken,
}

/// Where settings are put that change while the server runs.
struct Live {
    api: watch::Sender<api::Live>,
    keep: watch::Sender<Keep>,
    proxies: watch::Sender<Vec<IpNet>>,
    /// None: plain HTTP, until the next start.
    certificates: Option<Certificates>,
}

impl Live {
    fn new(config: &Config) -> Self {
        Self {
            api: watch::Sender::new(live_api(config)),
            keep: watch::Sender::new(Keep::of(config)),
            proxies: watch::Sender::new(config.server.trusted_proxies.clone()),
            certificates: config.server.tls.as_ref().map(|tls| tls.certificates.clone()),
        }
    }
}

fn live_api(config: &Config) -> api::Live {
    config.limits.api(api::Live { origins: config.server.allowed_origins.clone(), ..api::Live::default() })
}

struct Task {
    name: &'static str,
    stop: CancellationToken,
    handle: JoinHandle<()>,
    /// Given up after this long.
    grace: Duration,
}

impl App {
    /// Starts every part: database, host, inventory, engine, API. When it returns, requests are
    /// answered.
    ///
    /// # Errors
    /// When a part does not start; what was started before is stopped.
    pub async fn start(config: Config, listener: TcpListener, clock: Clock) -> Result<Self, Error> {
        // Before anything counts.
        let _ = measure::install();
        let address =
            listener.local_addr().map_err(|source| Error::Listen { address: config.server.listen, source })?;
        let store = Store::open(&config.data.store_options(), clock.clone()).await?;
        match Self::compose(&config, store.clone(), listener, address, clock).await {
            Ok(app) => Ok(app),
            Err(error) => {
                store.close().await;
                Err(error)
            }
        }
    }

    async fn compose(
        config: &Config,
        store: Store,
        listener: TcpListener,
        address: SocketAddr,
        clock: Clock,
    ) -> Result<Self, Error> {
        let first_token = first_principal(&store, &clock).await?;
        let host = connect_host(config).await?;
        let notes = notes(config, &host);
        let provider: Arc<dyn Provider> = Arc::new(host.clone());
        let inventory = Inventory::new(vec![provider]);
        first_look(&inventory).await;
        let outbound = Outbound::new(outbound::Options {
            allow: config.security.outbound_allow.clone(),
            own_listeners: own_listeners(inventory.clone()),
            ..outbound::Options::default()
        });
        let secrets = Secrets::new(config.security.secret_dirs.clone());
        let notifiers = notifiers(config, &secrets, &clock)?;
        let registry = stages::registry(stages::Deps { inventory: inventory.clone(), outbound, secrets });
        let registry = triggers::kinds(registry);
        let exporter = trace_exporter(config)?;
        let options = config.limits.engine(engine::Options {
            // The data directory is locked: every owner of an earlier start is gone.
            sole_owner: config.data.database_url.is_none(),
            renewed_by_job: true,
            ended: exporter.as_ref().map(|(hook, _)| hook.clone()),
            stop_grace: config.server.shutdown_grace,
            ..engine::Options::default()
        });
        let engine = Engine::new(options, store.clone(), registry.clone(), clock.clone());
        let live = Live::new(config);
        let lifecycle = api::Lifecycle::default();
        let stopping = CancellationToken::new();
        let proxies = Proxies::new(inventory.clone(), clock.clone());
        let log = config.data.database_url.is_none().then(|| config.data.dir.join("gennaker.db-wal"));
        let watched = watched::Watched {
            store: store.clone(),
            engine: engine.clone(),
            host,
            proxies: proxies.clone(),
            stopping: stopping.clone(),
            log,
            clock: clock.clone(),
        };
        let context = api::Context {
            store: store.clone(),
            commands: engine.commands(),
            registry: registry.clone(),
            inventory: inventory.clone(),
            notifiers: notifiers.clone(),
            clock: clock.clone(),
            config: api::Options {
                base_url: url(address, config.server.tls.is_some()),
                public_url: config.smtp.public_url.clone(),
                live: live.api.subscribe(),
                lifecycle: lifecycle.clone(),
                ..api::Options::default()
            },
            probes: watched::probes(watched, config.observe.metrics_public),
        };
        let taking = listener::Options { certificates: live.certificates.clone(), proxies: live.proxies.subscribe() };
        let keep = live.keep.subscribe();
        let mut app = Self {
            address,
            first_token,
            notes,
            data_dir: config.data.dir.clone(),
            store: store.clone(),
            engine: engine.clone(),
            lifecycle: lifecycle.clone(),
            live,
            tasks: Vec::new(),
            failed: CancellationToken::new(),
            stopping,
        };
        let dispatcher = Dispatcher::new(store.clone(), engine.commands(), registry, clock.clone(), engine.slots());
        let jobs = jobs(&store, &clock, keep, &engine, &dispatcher, &app.stopping);
        // Nothing new is started by itself once the server has been asked to end.
        app.spawn("triggers", GRACE, |stop| async move { dispatcher.run(stop).await });
        let mut options = config.smtp.deliveries.clone();
        options.grace = options.grace.min(config.server.shutdown_grace);
        app.spawn("deliveries", options.grace + GRACE, {
            let (store, clock) = (store.clone(), clock.clone());
            let me = engine.owner();
            move |stop| deliver::run(options, notifiers, store, clock, me, stop)
        });
        // Before the API, so that whoever watches still sees what its last steps did.
        app.spawn("engine", config.server.shutdown_grace + GRACE, {
            let engine = engine.clone();
            |stop| async move {
                if let Err(error) = engine.run(stop).await {
                    error!("the engine cannot run: {error}");
                }
            }
        });
        let router = api::router(context);
        app.spawn("api", GRACE, |stop| serve(listener, router, taking, lifecycle, stop));
        if let Some(tls) = config.server.tls.clone() {
            app.spawn("certificate", GRACE, move |stop| tls.certificates.watch(tls.check_every, stop));
        }
        app.spawn("inventory notices", GRACE, {
            let inventory = inventory.clone();
            let engine = engine.clone();
            |stop| forward(inventory, engine, stop)
        });
        app.spawn("inventory", GRACE, |stop| async move { inventory.run(stop).await });
        app.spawn("housekeeping", GRACE, |stop| housekeeping::run(jobs, stop));
        app.spawn("proxy counters", GRACE, |stop| proxies.run(stop));
        app.spawn("metrics", GRACE, upkeep);
        if let Some((_, exporter)) = exporter {
            // The last to end: the engine has told everything by then.
            app.spawn("traces", GRACE, |stop| exporter.run(stop));
        }
        info!(address = %address, "serving {}", app.url());
        Ok(app)
    }

    fn spawn<F: Future<Output = ()> + Send + 'static>(
        &mut self,
        name: &'static str,
        grace: Duration,
        run: impl FnOnce(CancellationToken) -> F,
    ) {
        let stop = CancellationToken::new();
        let watch = Watch { name, stop: stop.clone(), failed: self.failed.clone() };
        let future = run(stop.clone());
        let handle = tokio::spawn(async move {
            let _watch = watch;
            future.await;
        });
        self.tasks.push(Task { name, stop, handle, grace });
    }

    /// `http://127.0.0.1:7777`
    #[must_use]
    pub fn url(&self) -> String {
        url(self.address, self.is_secure())
    }

    /// Whether it speaks TLS.
    #[must_use]
    pub const fn is_secure(&self) -> bool {
        self.live.certificates.is_some()
    }

    /// Takes over what can change while the server runs (see [`crate::config::LIVE`]).
    pub fn reload(&self, config: &Config) {
        self.live.api.send_replace(live_api(config));
        self.live.keep.send_replace(Keep::of(config));
        self.live.proxies.send_replace(config.server.trusted_proxies.clone());
        if let (Some(running), Some(new)) = (&self.live.certificates, &config.server.tls) {
            running.replace(&new.certificates);
        }
    }

    /// Where the API listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// A token of the principal `admin`, if this start made it.
    #[must_use]
    pub fn first_token(&self) -> Option<&str> {
        self.first_token.as_deref()
    }

    /// Where the server's data is.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// What whoever starts the server has to know besides: settings that do not hold, and those that
    /// hold and may hurt.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Returns when a part has ended that should not have.
    pub async fn failed(&self) {
        self.failed.cancelled().await;
    }

    /// Ends every part: no new requests, then the engine (steps under way are finished or left to
    /// the next start), open connections (told why), the inventory, the database. The host and its
    /// instances go on.
    ///
    /// # Errors
    /// When a part had failed before.
    pub async fn stop(mut self) -> Result<(), Failed> {
        self.stopping.cancel();
        self.engine.drain();
        let failed = self.failed.is_cancelled();
        info!("stopping: nothing new is begun, and steps under way may end");
        self.lifecycle.draining.cancel();
        for mut task in std::mem::take(&mut self.tasks) {
            task.stop.cancel();
            match tokio::time::timeout(task.grace, &mut task.handle).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => error!(task = task.name, "task `{}` failed: {error}", task.name),
                Err(_) => {
                    warn!(task = task.name, "task `{}` did not end in time and is given up", task.name);
                    task.handle.abort();
                    let _ = task.handle.await;
                }
            }
        }
        self.store.close().await;
        info!("stopped");
        if failed { Err(Failed) } else { Ok(()) }
    }
}

impl Drop for App {
    /// Not [`App::stop`]ped in order: nothing is waited for, as if the process had ended.
    fn drop(&mut self) {
        for task in &self.tasks {
            task.stop.cancel();
            task.handle.abort();
        }
    }
}

/// A part of the server ended by itself; the log says which.
#[derive(Debug, thiserror::Error)]
#[error("a part of the server ended by itself; the log says which")]
pub struct Failed;

/// Notices the end of a task, by panic too.
struct Watch {
    name: &'static str,
    stop: CancellationToken,
    failed: CancellationToken,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !self.stop.is_cancelled() {
            measure::violated(Invariant::PartEnded);
            error!(task = self.name, "task `{}` ended by itself; the server ends", self.name);
            self.failed.cancel();
        }
    }
}

fn url(address: SocketAddr, secure: bool) -> String {
    let scheme = if secure { "https" } else { "http" };
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => format!("{scheme}://127.0.0.1:{}", address.port()),
        IpAddr::V6(ip) if ip.is_unspecified() => format!("{scheme}://[::1]:{}", address.port()),
        _ => format!("{scheme}://{address}"),
    }
}

/// What sends traces, where the settings name a collector.
fn trace_exporter(config: &Config) -> Result<Option<(engine::EndedHook, traces::Exporter)>, Error> {
    let Some(endpoint) = config.observe.otlp_endpoint.clone() else { return Ok(None) };
    let options = traces::Options { endpoint, timeout: config.observe.otlp_timeout };
    traces::start(&options).map(Some).map_err(Error::Traces)
}

/// Histograms keep each number until they are added up.
async fn upkeep(stop: CancellationToken) {
    const EVERY: Duration = Duration::from_secs(2);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EVERY) => if let Some(recorder) = measure::install() {
                recorder.upkeep();
            }
        }
    }
}

/// Serves until asked to stop; then tells WebSockets and event streams, and waits for them and for
/// open requests.
async fn serve(
    listener: TcpListener,
    router: axum::Router,
    options: listener::Options,
    lifecycle: api::Lifecycle,
    stop: CancellationToken,
) {
    let closing = async {
        stop.cancelled().await;
        tokio::time::sleep(LAST_WORDS).await;
        lifecycle.closing.cancel();
        lifecycle.sockets.close();
        lifecycle.sockets.wait().await;
    };
    tokio::join!(listener::serve(listener, router, options, stop.clone()), closing);
}

/// Reads every account once before anybody asks: a server that has just started must not say that
/// nothing runs. An account that cannot be read does not keep the server from starting.
async fn first_look(inventory: &Inventory) {
    for account in inventory.accounts() {
        let read = tokio::time::timeout(FIRST_LOOK, inventory.refresh(&account.name)).await;
        if !matches!(read, Ok(Ok(_))) {
            tracing::warn!(account = account.name, "account `{}` cannot be read yet", account.name);
        }
    }
}

/// Wakes stages that wait for something to change in a cloud.
async fn forward(inventory: Inventory, engine: Engine, stop: CancellationToken) {
    let mut changed = inventory.changed();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            change = changed.changed() => match change {
                Ok(()) => engine.topics().notify(INVENTORY_TOPIC),
                // Cannot be while this task holds the inventory; then nothing would ever come.
                Err(_) => return stop.cancelled().await,
            },
        }
    }
}

/// For how long what is kept; None: for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Keep {
    /// Finished executions, and messages to people.
    executions: Option<Duration>,
    /// Entries of the audit log.
    audit: Option<Duration>,
}

impl Keep {
    fn of(config: &Config) -> Self {
        Self { executions: config.data.retention, audit: config.data.audit_retention }
    }
}

/// What is done now and then.
fn jobs(
    store: &Store,
    clock: &Clock,
    keep: watch::Receiver<Keep>,
    engine: &Engine,
    dispatcher: &Dispatcher,
    stopping: &CancellationToken,
) -> Vec<Job> {
    let stopping = stopping.clone();
    let (store, clock, engine, dispatcher) = (store.clone(), clock.clone(), engine.clone(), dispatcher.clone());
    let renew_every = engine.renew_every();
    vec![
        Job::new("retention", RETENTION_EVERY, move || {
            let (store, clock, keep) = (store.clone(), clock.clone(), *keep.borrow());
            async move { prune(&store, &clock, keep).await.map_err(|error| error.to_string()) }
        }),
        Job::new("sweep for triggers", SWEEP_EVERY, move || {
            let (dispatcher, stopping) = (dispatcher.clone(), stopping.clone());
            async move {
                // A server that is to end starts nothing by itself.
                if stopping.is_cancelled() {
                    return Ok(());
                }
                dispatcher.sweep().await.map_err(|error| error.to_string())
            }
        }),
        Job::new("renewal of leases", renew_every, move || {
            let engine = engine.clone();
            async move { engine.renew().await.map_err(|error| error.to_string()) }
        }),
    ]
}

async fn prune(store: &Store, clock: &Clock, keep: Keep) -> Result<(), store::Error> {
    let before = |keep: Option<Duration>| {
        keep.and_then(|keep| TimeDelta::from_std(keep).ok()).and_then(|keep| clock.now().checked_sub_signed(keep))
    };
    // Keys end after a day, however long the executions stay.
    store.prune_idempotency().await?;
    store.prune_slots(clock.now() - SLOTS_KEPT).await?;
    if let Some(before) = before(keep.executions) {
        let mut deleted = 0;
        loop {
            match store.prune_executions(before, RETENTION_BATCH).await? {
                0 => break,
                count => deleted += count,
            }
        }
        let messages = store.prune_notifications(before).await?;
        if deleted + messages > 0 {
            info!("{deleted} finished executions and {messages} messages were deleted, their time being over");
        }
    }
    if let Some(before) = before(keep.audit) {
        let deleted = store.prune_audit(before).await?;
        if deleted > 0 {
            info!("{deleted} entries of the audit log were deleted, their time being over");
        }
    }
    Ok(())
}

/// The channels that the settings give.
fn notifiers(config: &Config, secrets: &Secrets, clock: &Clock) -> Result<Notifiers, Error> {
    let email = config.smtp.email.clone();
    let email = email.map(|options| Email::new(options, secrets.clone(), clock.clone())).transpose();
    let email = email.map_err(Error::Mail)?.map(|email| Arc::new(email) as Arc<dyn Notifier>);
    Ok(Notifiers::new(email))
}

fn own_listeners(inventory: Inventory) -> outbound::OwnListeners {
    Arc::new(move |ip, port| {
        let wanted = SocketAddr::new(ip, port).to_string();
        inventory.load_balancers().iter().any(|load_balancer| load_balancer.bound.contains(&wanted))
    })
}

/// Connects to the host of the directory, or starts one there.
async fn connect_host(config: &Config) -> Result<HostProvider, Error> {
    let host = &config.host;
    let failed = |message: String| Error::Host { directory: host.dir.display().to_string(), message };
    let options = client::Options {
        artifact_roots: host.artifact_roots.clone(),
        secret_roots: config.security.secret_dirs.clone(),
        ports: host.port_range,
        max_artifact_bytes: host.max_artifact_bytes,
        max_instance_log_bytes: host.max_instance_log_bytes,
        max_instances: host.max_instances,
        ..client::Options::new(&host.dir).map_err(|error| failed(error.to_string()))?
    };
    HostProvider::connect(options).await.map_err(|error| failed(error.message))
}

/// See [`App::notes`]; each goes to the log too.
fn notes(config: &Config, host: &HostProvider) -> Vec<String> {
    let differs = host.differences().iter().map(|difference| {
        format!(
            "{} {} does not hold: the host that runs in {} was started with {}. Its instances run on while it is \
             started anew: `gennaker host stop --dir {}`, then start the server again",
            difference.setting,
            difference.asked,
            config.host.dir.display(),
            difference.holds,
            config.host.dir.display(),
        )
    });
    let notes: Vec<String> = config.host.port_range.warning().into_iter().chain(differs).collect();
    notes.iter().for_each(|note| warn!("{note}"));
    notes
}

/// The actor behind commands given on the machine itself: whoever may use the data directory
/// administers the server, and the audit log says that it was done from there.
///
/// # Errors
/// When the database fails.
pub async fn local_actor(store: &Store, clock: &Clock) -> Result<Actor, store::Error> {
    let name = LOCAL;
    loop {
        if let Some(found) = store.principal_by_name(name).await? {
            return Ok(Actor { principal: found.id, name: found.name, roles: found.roles });
        }
        let principal = Principal {
            id: PrincipalId::new(),
            name: name.to_owned(),
            kind: PrincipalKind::System,
            roles: vec![Role::Admin],
            created_at: clock.now(),
        };
        let commit = Commit {
            guards: vec![Guard::PrincipalNameFree { name: name.to_owned() }],
            writes: vec![Write::InsertPrincipal(principal)],
            events: Vec::new(),
        };
        match store.commit(commit).await {
            // Made now or by somebody else meanwhile: read it.
            Ok(_) | Err(CommitError::Refused(_)) => {}
            Err(error) => return Err(store::Error::Database(error.to_string())),
        }
    }
}

/// A token for the principal `admin` where it has never had one: at the first start, and after one
/// that was killed between making the principal and the token. The token's text.
async fn first_principal(store: &Store, clock: &Clock) -> Result<Option<String>, Error> {
    let failed = |error: &dyn std::fmt::Display| Error::FirstPrincipal(error.to_string());
    if let Some(admin) = store.principal_by_name(ADMIN).await?
        && store.has_token(admin.id).await?
    {
        return Ok(None);
    }
    let local = local_actor(store, clock).await?;
    let now = clock.now();
    let admin = token::ensure_principal(store, &local, ADMIN, PrincipalKind::User, &[Role::Admin], now)
        .await
        .map_err(|error| failed(&error))?;
    let (_, text) = token::issue(store, &local, &admin, "made by the first start", now, None)
        .await
        .map_err(|error| failed(&error))?;
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Durability, Options};

    #[tokio::test]
    async fn a_first_start_that_was_killed_before_the_token_is_made_up_for() {
        let data_dir = std::env::temp_dir().join(format!("gennaker-app-{}", uuid::Uuid::new_v4().simple()));
        let options =
            Options { database_url: None, data_dir: data_dir.clone(), durability: Durability::Normal, queue_max: 64 };
        let clock = Clock::system();
        let store = Store::open(&options, clock.clone()).await.expect("opens");
        let local = local_actor(&store, &clock).await.expect("made");
        let roles = [Role::Admin];
        token::ensure_principal(&store, &local, ADMIN, PrincipalKind::User, &roles, clock.now()).await.expect("made");
        let text = first_principal(&store, &clock).await.expect("no fault").expect("a token");
        let id = token::parse(&text).expect("a token's text").id;
        assert!(store.token(id).await.expect("read").is_some());
        assert_eq!(first_principal(&store, &clock).await.expect("no fault"), None, "once");
        // Revoking it was somebody's wish: no start makes another.
        token::revoke(&store, &local, id, clock.now()).await.expect("revoked");
        assert_eq!(first_principal(&store, &clock).await.expect("no fault"), None);
        store.close().await;
        std::fs::remove_dir_all(data_dir).expect("removed");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_jobs_of_a_server_delete_what_is_old() {
        let data_dir = std::env::temp_dir().join(format!("gennaker-jobs-{}", uuid::Uuid::new_v4().simple()));
        let options =
            Options { database_url: None, data_dir: data_dir.clone(), durability: Durability::Normal, queue_max: 64 };
        let clock = Clock::manual("2026-11-22T10:00:00Z".parse().expect("an instant"));
        let store = Store::open(&options, clock.clone()).await.expect("opens");
        // Its making is an entry of the audit log.
        let local = local_actor(&store, &clock).await.expect("made");
        token::ensure_principal(&store, &local, ADMIN, PrincipalKind::User, &[Role::Admin], clock.now())
            .await
            .expect("made");
        let page = store::PageRequest { after: None, before: None, limit: 10, backward: false };
        assert!(store.audit(&page).await.expect("read").total > 0);
        clock.advance(Duration::from_secs(3 * 24 * 3600));
        let registry = triggers::kinds(engine::contract::Registry::default());
        let engine = Engine::new(engine::Options::default(), store.clone(), registry.clone(), clock.clone());
        let dispatcher = Dispatcher::new(store.clone(), engine.commands(), registry, clock.clone(), engine.slots());
        let day = Some(Duration::from_secs(24 * 3600));
        let keep = watch::Sender::new(Keep { executions: day, audit: day });
        let jobs = jobs(&store, &clock, keep.subscribe(), &engine, &dispatcher, &CancellationToken::new());
        let stop = CancellationToken::new();
        let running = tokio::spawn(housekeeping::run(jobs, stop.clone()));
        let start = std::time::Instant::now();
        while store.audit(&page).await.expect("read").total > 0 {
            assert!(start.elapsed() < Duration::from_secs(20), "retention comes");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        stop.cancel();
        tokio::time::timeout(GRACE, running).await.expect("ends within its grace").expect("no panic");
        store.close().await;
        std::fs::remove_dir_all(data_dir).expect("removed");
    }
}
