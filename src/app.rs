//! The composition: every part is made here, once, from the settings; and ended here, in order.

mod jobs;
mod parts;
mod principals;
mod tasks;
mod watched;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

pub use principals::local_actor;

use crate::api;
use crate::clock::Clock;
use crate::config::Config;
use crate::engine::{self, Engine};
use crate::housekeeping;
use crate::inventory::{Inventory, problems};
use crate::listener::{self, Certificates};
use crate::measure;
use crate::notifiers::deliver;
use crate::outbound::{self, Outbound};
use crate::providers::Provider;
use crate::secrets::Secrets;
use crate::stages;
use crate::store::{self, Store};
use crate::telemetry::proxy::Proxies;
use crate::triggers::{self, Dispatcher};
use jobs::{Keep, jobs};
use tasks::Task;

/// The server did not start or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is taken, or not this machine's.
    #[error("cannot listen on {address}: {source}; choose another address with --listen")]
    Listen {
        /// As it was asked for.
        address: SocketAddr,
        /// The system's word.
        source: std::io::Error,
    },
    /// The database cannot be opened or read.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// There is no host to work with: none answers and none could be started, or the one that runs is
    /// of another account or location.
    #[error("the host in {directory} cannot be used: {message}")]
    Host {
        /// Its directory.
        directory: String,
        /// Why, and what to do.
        message: String,
    },
    /// Another living server on the same database names the same place and reaches another host there.
    #[error("{0}")]
    Rival(String),
    /// The sender is no address, or the roots are no certificates.
    #[error("mail cannot be set up: {0}")]
    Mail(String),
    /// The collector's client could not be made.
    #[error("the collector of traces cannot be used: {0}")]
    Traces(String),
    /// `admin` has never had a token, and it, or its token, could not be made.
    #[error("the first principal cannot be made: {0}")]
    FirstPrincipal(String),
}

/// Open requests may go on for this long after the steps under way have ended.
const GRACE: Duration = Duration::from_secs(5);

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
    /// Has what is older than that deleted at once.
    prune: Arc<Notify>,
    proxies: watch::Sender<Vec<IpNet>>,
    /// None: plain HTTP, until the next start.
    certificates: Option<Certificates>,
}

impl Live {
    fn new(config: &Config) -> Self {
        Self {
            api: watch::Sender::new(live_api(config)),
            keep: watch::Sender::new(Keep::of(config)),
            prune: Arc::default(),
            proxies: watch::Sender::new(config.server.trusted_proxies.clone()),
            certificates: config.server.tls.as_ref().map(|tls| tls.certificates.clone()),
        }
    }
}

fn live_api(config: &Config) -> api::Live {
    config.limits.api(api::Live { origins: config.server.allowed_origins.clone(), ..api::Live::default() })
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
        let host = parts::connect_host(config).await?;
        let notes = parts::notes(config, &host);
        let serves: Vec<_> = host.served().cloned().into_iter().collect();
        let provider: Arc<dyn Provider> = Arc::new(host.clone());
        let inventory = Inventory::new(vec![provider], clock.clone());
        parts::first_look(&inventory).await;
        let outbound = Outbound::new(outbound::Options {
            allow: config.security.outbound_allow.clone(),
            own_listeners: Arc::new({
                let inventory = inventory.clone();
                move |address, port| inventory.listens_on(address, port)
            }),
            ..outbound::Options::default()
        });
        let secrets = Secrets::new(config.security.secret_dirs.clone());
        let notifiers = parts::notifiers(config, &secrets, &clock)?;
        let registry = stages::registry(stages::Deps { inventory: inventory.clone(), outbound, secrets });
        let registry = triggers::kinds(registry);
        let exporter = parts::trace_exporter(config)?;
        let options = config.limits.engine(engine::Options {
            // The data directory is locked: every owner of an earlier start is gone.
            sole_owner: config.data.database_url.is_none(),
            serves: serves.clone(),
            renewed_by_job: true,
            ended: exporter.as_ref().map(|(hook, _)| hook.clone()),
            stop_grace: config.server.shutdown_grace,
            ..engine::Options::default()
        });
        let (lease, alone) = (options.lease, options.sole_owner);
        let engine = Engine::new(options, store.clone(), registry.clone(), clock.clone());
        if !alone {
            parts::no_rivals(&store, &engine, &serves, lease).await?;
        }
        // Once nothing is left that a start may fail by: it is shown this once.
        let first_token = principals::first_principal(&store, &clock).await?;
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
            serves: if alone { Vec::new() } else { serves },
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
            folds: api::Folds::default(),
        };
        let taking = listener::Options { certificates: live.certificates.clone(), proxies: live.proxies.subscribe() };
        let retention = (live.keep.subscribe(), Arc::clone(&live.prune));
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
        let jobs = jobs(&store, &clock, retention, &engine, &dispatcher, &app.stopping);
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
        app.spawn("api", GRACE, |stop| tasks::serve(listener, router, taking, lifecycle, stop));
        if let Some(tls) = config.server.tls.clone() {
            app.spawn("certificate", GRACE, move |stop| tls.certificates.watch(tls.check_every, stop));
        }
        app.spawn("inventory notices", GRACE, {
            let inventory = inventory.clone();
            let engine = engine.clone();
            |stop| tasks::forward(inventory, engine, stop)
        });
        app.spawn("load balancers' problems", GRACE, {
            let (inventory, store, clock) = (inventory.clone(), store.clone(), clock.clone());
            |stop| problems::tell(inventory, store, clock, stop)
        });
        app.spawn("inventory", GRACE, |stop| async move { inventory.run(stop).await });
        app.spawn("housekeeping", GRACE, |stop| housekeeping::run(jobs, stop));
        app.spawn("proxy counters", GRACE, |stop| proxies.run(stop));
        app.spawn("metrics", GRACE, tasks::upkeep);
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
        self.tasks.push(Task::spawn(name, grace, self.failed.clone(), run));
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

    /// Takes over what can change while the server runs (see [`crate::config::LIVE`]). A certificate
    /// that is another one than before, for people.
    pub fn reload(&self, config: &Config) -> Option<String> {
        self.live.api.send_replace(live_api(config));
        if self.live.keep.send_replace(Keep::of(config)) != Keep::of(config) {
            self.live.prune.notify_one();
        }
        self.live.proxies.send_replace(config.server.trusted_proxies.clone());
        let (running, new) = self.live.certificates.as_ref().zip(config.server.tls.as_ref())?;
        running.replace(&new.certificates).then(|| running.describe())
    }

    /// Where the API listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// How long [`App::stop`] takes at the most, but for the close of the database.
    #[must_use]
    pub fn stop_max(&self) -> Duration {
        self.tasks.iter().map(|task| task.grace).sum()
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
        for task in std::mem::take(&mut self.tasks) {
            task.end().await;
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
            task.abort();
        }
    }
}

/// A part of the server ended by itself; the log says which.
#[derive(Debug, thiserror::Error)]
#[error("a part of the server ended by itself; the log says which")]
pub struct Failed;

fn url(address: SocketAddr, secure: bool) -> String {
    let scheme = if secure { "https" } else { "http" };
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => format!("{scheme}://127.0.0.1:{}", address.port()),
        IpAddr::V6(ip) if ip.is_unspecified() => format!("{scheme}://[::1]:{}", address.port()),
        _ => format!("{scheme}://{address}"),
    }
}
