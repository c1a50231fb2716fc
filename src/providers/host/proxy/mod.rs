//! The data plane of a host: HTTP load balancers in front of instances. Knows nothing of processes
//! or files; the daemon tells it what to listen on and who stands behind.
//!
//! A client's connection is one task. It reads a request, picks an instance under the lock of the
//! load balancer's `balance::State`, drives that instance's connection itself and hands it back
//! to the `upstream::Upstream` when the answer is through. Whatever changes (rules, shares,
//! instances) replaces the state as one; requests that were picked before are counted by then.

mod balance;
mod balancer;
mod body;
mod forward;
mod headers;
mod limits;
mod listen;
mod stats;
#[cfg(test)]
mod tests;
mod upstream;
mod watched;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use self::balancer::{Balancer, Shared};
pub use self::limits::Limits;
use self::stats::Stats;
use self::upstream::lock;
use crate::clock::Clock;
use crate::model::{InboundRule, LoadBalancerProblem, LoadBalancerSpec, Share, TrafficSecond};

/// What a load balancer is to be: given whole, applied at once.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// As wanted.
    pub spec: LoadBalancerSpec,
    /// All rules of its security groups; none, no entry.
    pub inbound: Vec<InboundRule>,
    /// Explicit shares of server groups; the others divide the rest by healthy instances.
    pub shares: Vec<Share>,
}

/// One instance behind a load balancer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// Its server group's name.
    pub server_group: String,
    /// Its id.
    pub instance: String,
    /// Connections are pooled per (instance, incarnation); another number means another process.
    pub incarnation: u64,
    /// Where it takes connections.
    pub address: SocketAddr,
    /// Passes its own and the load balancer's check.
    pub healthy: bool,
    /// Its server group is enabled; false drains what is open within the spec's `drain_seconds`.
    pub enabled: bool,
}

/// The load balancers of a host. Cheap to clone; they end with the last clone.
#[derive(Clone)]
pub struct Proxy {
    inner: Arc<Inner>,
}

struct Inner {
    runtime: Handle,
    shared: Arc<Shared>,
    stats_dir: PathBuf,
    balancers: Mutex<HashMap<String, Arc<Balancer>>>,
    /// Also of load balancers that were there before a restart and are not applied yet.
    stats: Mutex<HashMap<String, Arc<Stats>>>,
    keeper: OnceLock<AbortHandle>,
}

impl Proxy {
    /// With the default limits and the machine's clock. `stats_dir` keeps the counters over a
    /// restart (each second is appended as a line when it is over); it is made if it is not there.
    ///
    /// # Errors
    /// Where the directory cannot be made or read, or the caller is not within a Tokio runtime.
    pub fn new(stats_dir: &Path) -> io::Result<Self> {
        Self::with(stats_dir, Limits::default(), Clock::system())
    }

    /// With limits and a clock (for counting seconds; deadlines go by the machine's steady clock).
    ///
    /// # Errors
    /// As [`Proxy::new`].
    pub fn with(stats_dir: &Path, limits: Limits, clock: Clock) -> io::Result<Self> {
        std::fs::create_dir_all(stats_dir)?;
        let mut stats = HashMap::new();
        for name in Stats::names_in(stats_dir)? {
            stats.insert(name.clone(), Arc::new(Stats::open(stats_dir, &name)));
        }
        let inner = Arc::new(Inner {
            runtime: Handle::try_current().map_err(io::Error::other)?,
            shared: Arc::new(Shared::new(limits, clock)),
            stats_dir: stats_dir.to_owned(),
            balancers: Mutex::default(),
            stats: Mutex::new(stats),
            keeper: OnceLock::new(),
        });
        let keeper = inner.runtime.spawn(keep(Arc::downgrade(&inner))).abort_handle();
        let _ = inner.keeper.set(keeper);
        Ok(Self { inner })
    }

    /// Starts or changes a load balancer on listeners that are already bound. An unchanged listener
    /// (the same socket, or a copy of it) goes on without a gap; one that is no longer in the list
    /// is closed after its connections are done, at the latest after the drain time. Rules and
    /// shares change in one atomic step.
    ///
    /// # Errors
    /// Where a listener is not usable; then nothing has changed.
    pub fn apply(&self, config: Config, listeners: Vec<std::net::TcpListener>) -> io::Result<()> {
        let _runtime = self.inner.runtime.enter();
        self.inner.balancer(&config.spec.name).configure(config, Some(listeners))
    }

    /// Changes rules, shares and drain time without touching listeners.
    pub fn update(&self, config: Config) {
        // Fails only on listeners.
        let _ = self.inner.balancer(&config.spec.name).configure(config, None);
    }

    /// Closes its listeners and, after the drain time, its connections; forgets its counters.
    pub fn remove(&self, load_balancer: &str) {
        if let Some(balancer) = lock(&self.inner.balancers).remove(load_balancer) {
            balancer.close(None);
        }
        if let Some(stats) = lock(&self.inner.stats).remove(load_balancer) {
            stats.delete();
        }
    }

    /// All instances behind a load balancer, in one atomic step: when this returns, no request goes
    /// to one that is not in the list, not healthy or not enabled, and every request that was on
    /// its way there is counted by [`Proxy::open_to`].
    pub fn set_backends(&self, load_balancer: &str, backends: Vec<Backend>) {
        self.inner.balancer(load_balancer).set_backends(backends);
    }

    /// Open requests and upgraded connections to the instances of a server group, over all load balancers.
    #[must_use]
    pub fn open_to(&self, server_group: &str) -> usize {
        self.inner.shared.open_to(server_group)
    }

    /// The same to one instance, for a server group that gives some of its instances up.
    #[must_use]
    pub fn open_to_instance(&self, instance: &str) -> usize {
        let balancers: Vec<_> = lock(&self.inner.balancers).values().cloned().collect();
        balancers.iter().map(|balancer| balancer.open_to_instance(instance)).sum()
    }

    /// Seconds from `since` (Unix time) on, oldest first, at most 600 seconds back, the one that
    /// runs included. Requests that found no instance are counted under the empty server group.
    #[must_use]
    pub fn traffic(&self, load_balancer: &str, since: i64) -> Vec<TrafficSecond> {
        let stats = lock(&self.inner.stats).get(load_balancer).cloned();
        stats.map(|stats| stats.traffic(self.inner.shared.second(), since)).unwrap_or_default()
    }

    /// What is in a load balancer's way now.
    #[must_use]
    pub fn problems(&self, load_balancer: &str) -> Vec<LoadBalancerProblem> {
        lock(&self.inner.balancers).get(load_balancer).map(|balancer| balancer.problems()).unwrap_or_default()
    }

    /// Woken whenever the problems of any load balancer have changed; the value only counts.
    #[must_use]
    pub fn problems_changed(&self) -> watch::Receiver<u64> {
        self.inner.shared.problems_changed.subscribe()
    }

    /// Stops accepting (another process accepts on the same sockets), lets open requests end up to
    /// the deadline, flushes the counters. Each answer asks its client to connect anew.
    pub async fn drain(&self, up_to: Duration) {
        let balancers: Vec<_> = lock(&self.inner.balancers).values().cloned().collect();
        for balancer in &balancers {
            balancer.close(Some(up_to));
        }
        let tracker = &self.inner.shared.tracker;
        tracker.close();
        // Connections end by themselves at the deadline; a little longer, for them to be gone.
        if tokio::time::timeout(up_to + Duration::from_millis(500), tracker.wait()).await.is_err() {
            tracing::warn!(connections = tracker.len(), "connections are still open at the end of the drain time");
        }
        self.inner.flush(true);
    }
}

impl Inner {
    fn balancer(&self, name: &str) -> Arc<Balancer> {
        let mut balancers = lock(&self.balancers);
        if let Some(balancer) = balancers.get(name) {
            return Arc::clone(balancer);
        }
        let stats = Arc::clone(
            lock(&self.stats).entry(name.to_owned()).or_insert_with(|| Arc::new(Stats::open(&self.stats_dir, name))),
        );
        let balancer = Arc::new(Balancer::new(name, Arc::clone(&self.shared), stats));
        balancers.insert(name.to_owned(), Arc::clone(&balancer));
        balancer
    }

    fn flush(&self, whole: bool) {
        let now = self.shared.second();
        let all: Vec<_> = lock(&self.stats).values().cloned().collect();
        for stats in all {
            if let Err(error) = stats.flush(now, whole) {
                tracing::warn!(dir = %self.stats_dir.display(), %error, "counters cannot be written");
            }
        }
    }

    fn tidy(&self) {
        let balancers: Vec<_> = lock(&self.balancers).values().cloned().collect();
        for balancer in balancers {
            balancer.tidy();
        }
        self.shared.tidy();
        self.flush(false);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(keeper) = self.keeper.get() {
            keeper.abort();
        }
        for balancer in lock(&self.balancers).values() {
            balancer.close(Some(Duration::ZERO));
        }
        self.flush(true);
    }
}

/// Tidies and writes once a second for as long as the proxy is there.
async fn keep(inner: Weak<Inner>) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(inner) = inner.upgrade() else { return };
        // Writes files, so not on a thread that serves requests.
        let _ = tokio::task::spawn_blocking(move || inner.tidy()).await;
    }
}
