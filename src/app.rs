//! The composition: every part is made here, once, from the settings; and ended here, in order.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use tokio::net::TcpListener;
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
use crate::model::{Actor, Principal, PrincipalId, PrincipalKind, Role};
use crate::outbound::{self, Outbound};
use crate::providers::Provider;
use crate::providers::host::client::{self, HostProvider};
use crate::secrets::Secrets;
use crate::stages;
use crate::store::{self, Commit, CommitError, Guard, Store, Write};
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
    #[error("the first principal cannot be made: {0}")]
    FirstPrincipal(String),
}

/// The name of the principal that the first start makes.
const ADMIN: &str = "admin";
/// The name of the principal that stands for whoever may use the data directory itself.
const LOCAL: &str = "system";

/// How long an account may take for its first answer at the start.
const FIRST_LOOK: Duration = Duration::from_secs(5);
/// Open requests may go on for this long after the server was asked to end.
const GRACE: Duration = Duration::from_secs(5);
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
    store: Store,
    /// In the order in which they end.
    tasks: Vec<Task>,
    /// Cancelled when a task has ended that should not have.
    failed: CancellationToken,
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
        let host: Arc<dyn Provider> = Arc::new(connect_host(config).await?);
        let inventory = Inventory::new(vec![host]);
        first_look(&inventory).await;
        let outbound = Outbound::new(outbound::Options {
            allow: config.security.outbound_allow.clone(),
            own_listeners: own_listeners(inventory.clone()),
            ..outbound::Options::default()
        });
        let secrets = Secrets::new(config.security.secret_dirs.clone());
        let registry = stages::registry(stages::Deps { inventory: inventory.clone(), outbound, secrets });
        let registry = triggers::kinds(registry);
        let options = config.limits.engine(engine::Options {
            // The data directory is locked: every owner of an earlier start is gone.
            sole_owner: config.data.database_url.is_none(),
            renewed_by_job: true,
            ..engine::Options::default()
        });
        let engine = Engine::new(options, store.clone(), registry.clone(), clock.clone());
        let context = api::Context {
            store: store.clone(),
            commands: engine.commands(),
            registry: registry.clone(),
            inventory: inventory.clone(),
            clock: clock.clone(),
            config: config.limits.api(api::Options { base_url: url(address), ..api::Options::default() }),
        };
        let mut app =
            Self { address, first_token, store: store.clone(), tasks: Vec::new(), failed: CancellationToken::new() };
        let router = api::router(context);
        app.spawn("api", GRACE, |stop| serve(listener, router, stop));
        app.spawn("engine", Duration::from_secs(30), {
            let engine = engine.clone();
            |stop| async move {
                if let Err(error) = engine.run(stop).await {
                    error!("the engine cannot run: {error}");
                }
            }
        });
        app.spawn("inventory notices", GRACE, {
            let inventory = inventory.clone();
            let engine = engine.clone();
            |stop| forward(inventory, engine, stop)
        });
        app.spawn("inventory", GRACE, |stop| async move { inventory.run(stop).await });
        let keep = Keep { executions: config.data.retention, audit: config.data.audit_retention };
        let dispatcher = Dispatcher::new(store.clone(), engine.commands(), registry, clock.clone(), engine.slots());
        let jobs = jobs(&store, &clock, keep, &engine, &dispatcher);
        app.spawn("triggers", GRACE, |stop| async move { dispatcher.run(stop).await });
        app.spawn("housekeeping", GRACE, |stop| housekeeping::run(jobs, stop));
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
        url(self.address)
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

    /// Returns when a part has ended that should not have.
    pub async fn failed(&self) {
        self.failed.cancelled().await;
    }

    /// Ends every part: no new requests, then the engine (steps under way are finished or left to
    /// the next start), the inventory, the database. The host and its instances go on.
    ///
    /// # Errors
    /// When a part had failed before.
    pub async fn stop(mut self) -> Result<(), Failed> {
        let failed = self.failed.is_cancelled();
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
            error!(task = self.name, "task `{}` ended by itself; the server ends", self.name);
            self.failed.cancel();
        }
    }
}

fn url(address: SocketAddr) -> String {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => format!("http://127.0.0.1:{}", address.port()),
        IpAddr::V6(ip) if ip.is_unspecified() => format!("http://[::1]:{}", address.port()),
        _ => format!("http://{address}"),
    }
}

async fn serve(listener: TcpListener, router: axum::Router, stop: CancellationToken) {
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    let graceful = {
        let stop = stop.clone();
        async move { stop.cancelled().await }
    };
    if let Err(error) = axum::serve(listener, service).with_graceful_shutdown(graceful).await {
        error!("the API's listener failed: {error}");
    }
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
#[derive(Clone, Copy)]
struct Keep {
    /// Finished executions, and messages to people.
    executions: Option<Duration>,
    /// Entries of the audit log.
    audit: Option<Duration>,
}

/// What is done now and then.
fn jobs(store: &Store, clock: &Clock, keep: Keep, engine: &Engine, dispatcher: &Dispatcher) -> Vec<Job> {
    let (store, clock, engine, dispatcher) = (store.clone(), clock.clone(), engine.clone(), dispatcher.clone());
    let renew_every = engine.renew_every();
    vec![
        Job::new("retention", RETENTION_EVERY, move || {
            let (store, clock) = (store.clone(), clock.clone());
            async move { prune(&store, &clock, keep).await.map_err(|error| error.to_string()) }
        }),
        Job::new("sweep for triggers", SWEEP_EVERY, move || {
            let dispatcher = dispatcher.clone();
            async move { dispatcher.sweep().await.map_err(|error| error.to_string()) }
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
        ..client::Options::new(&host.dir).map_err(|error| failed(error.to_string()))?
    };
    HostProvider::connect(options).await.map_err(|error| failed(error.message))
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
        let jobs = jobs(&store, &clock, Keep { executions: day, audit: day }, &engine, &dispatcher);
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
