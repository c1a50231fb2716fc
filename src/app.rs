//! The composition: every part is made here, once, from the settings; and ended here, in order.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

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
use crate::inventory::Inventory;
use crate::model::{Actor, Principal, PrincipalId, PrincipalKind, Role};
use crate::outbound::{self, Outbound};
use crate::providers::Provider;
use crate::providers::host::client::{self, HostProvider};
use crate::secrets::Secrets;
use crate::stages;
use crate::store::{self, Commit, CommitError, Guard, Store, Write};

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
        let host = connect_host(config).await?;
        let notes = notes(config, &host);
        let host: Arc<dyn Provider> = Arc::new(host);
        let inventory = Inventory::new(vec![host]);
        first_look(&inventory).await;
        let outbound = Outbound::new(outbound::Options {
            allow: config.security.outbound_allow.clone(),
            own_listeners: own_listeners(inventory.clone()),
            ..outbound::Options::default()
        });
        let secrets = Secrets::new(config.security.secret_dirs.clone());
        let registry = stages::registry(stages::Deps { inventory: inventory.clone(), outbound, secrets });
        let options = config.limits.engine(engine::Options {
            // The data directory is locked: every owner of an earlier start is gone.
            sole_owner: config.data.database_url.is_none(),
            ..engine::Options::default()
        });
        let engine = Engine::new(options, store.clone(), registry.clone(), clock.clone());
        let context = api::Context {
            store: store.clone(),
            commands: engine.commands(),
            registry,
            inventory: inventory.clone(),
            clock: clock.clone(),
            config: config.limits.api(api::Options { base_url: url(address), ..api::Options::default() }),
        };
        let mut app = Self {
            address,
            first_token,
            notes,
            data_dir: config.data.dir.clone(),
            store: store.clone(),
            tasks: Vec::new(),
            failed: CancellationToken::new(),
        };
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
            |stop| forward(inventory, engine, stop)
        });
        app.spawn("inventory", GRACE, |stop| async move { inventory.run(stop).await });
        let keep = Keep { executions: config.data.retention, audit: config.data.audit_retention };
        app.spawn("retention", GRACE, |stop| retain(store, clock, keep, stop));
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

/// Deletes what was kept for its time.
async fn retain(store: Store, clock: Clock, keep: Keep, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            result = prune(&store, &clock, keep) => if let Err(error) = result {
                warn!("what is old cannot be deleted now: {error}");
            },
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = clock.sleep(RETENTION_EVERY) => {}
        }
    }
}

async fn prune(store: &Store, clock: &Clock, keep: Keep) -> Result<(), store::Error> {
    let before = |keep: Option<Duration>| {
        keep.and_then(|keep| chrono::TimeDelta::from_std(keep).ok())
            .and_then(|keep| clock.now().checked_sub_signed(keep))
    };
    // Keys end after a day, however long the executions stay.
    store.prune_idempotency().await?;
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
}
