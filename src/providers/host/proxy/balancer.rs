//! One load balancer: what it listens on, who stands behind it, and the state that requests are
//! judged by.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use super::balance::{Pick, State};
use super::limits::Limits;
use super::listen::{Client, Listener};
use super::stats::Stats;
use super::upstream::{Upstream, lock, now_ms};
use super::{Backend, Config};
use crate::clock::Clock;
use crate::model::{LoadBalancerProblem, LoadBalancerProblemKind, Share};

/// How long a kept-alive connection may rest after its listener began to close: long enough for a
/// busy client to be asked with an answer, so that it does not meet a closed connection.
const REST: Duration = Duration::from_secs(1);

/// What all load balancers of a proxy share.
pub(super) struct Shared {
    pub limits: Arc<Limits>,
    pub clock: Clock,
    /// Counts the changes of any load balancer's problems.
    pub problems_changed: watch::Sender<u64>,
    /// Client connections and tunnels.
    pub tracker: TaskTracker,
    /// The server group to which requests are counted that found no instance.
    pub nobody: Arc<str>,
    groups: Mutex<HashMap<Arc<str>, Arc<AtomicUsize>>>,
}

impl Shared {
    pub fn new(limits: Limits, clock: Clock) -> Self {
        Self {
            limits: Arc::new(limits),
            clock,
            problems_changed: watch::channel(0).0,
            tracker: TaskTracker::new(),
            nobody: Arc::from(""),
            groups: Mutex::default(),
        }
    }

    /// Unix time.
    pub fn second(&self) -> i64 {
        self.clock.now().timestamp()
    }

    /// Open requests and tunnels of a server group.
    pub fn open_to(&self, group: &str) -> usize {
        lock(&self.groups).get(group).map_or(0, |open| open.load(Ordering::SeqCst))
    }

    fn group(&self, name: &str) -> (Arc<str>, Arc<AtomicUsize>) {
        let mut groups = lock(&self.groups);
        if let Some((name, open)) = groups.get_key_value(name) {
            return (Arc::clone(name), Arc::clone(open));
        }
        let (name, open) = (Arc::from(name), Arc::default());
        groups.insert(Arc::clone(&name), Arc::clone(&open));
        (name, open)
    }

    /// Forgets server groups to which nothing leads any more.
    pub fn tidy(&self) {
        lock(&self.groups).retain(|_, open| Arc::strong_count(open) > 1);
    }
}

/// One load balancer.
pub(super) struct Balancer {
    pub name: String,
    pub shared: Arc<Shared>,
    pub stats: Arc<Stats>,
    state: RwLock<State>,
    control: Mutex<Control>,
    problems: Mutex<BTreeMap<(LoadBalancerProblemKind, String), LoadBalancerProblem>>,
}

/// What only changes touch, not requests.
#[derive(Default)]
struct Control {
    backends: Vec<Backend>,
    /// Those in `backends`, and those that still have something open.
    upstreams: HashMap<Key, Arc<Upstream>>,
    listeners: Vec<Arc<Listener>>,
}

/// Another number, group or address means another process.
type Key = (String, String, u64, SocketAddr);

fn key(backend: &Backend) -> Key {
    (backend.server_group.clone(), backend.instance.clone(), backend.incarnation, backend.address)
}

impl Balancer {
    pub fn new(name: &str, shared: Arc<Shared>, stats: Arc<Stats>) -> Self {
        Self {
            name: name.to_owned(),
            shared,
            stats,
            state: RwLock::default(),
            control: Mutex::default(),
            problems: Mutex::default(),
        }
    }

    /// Whether the address may enter at the port.
    pub fn admits(&self, address: IpAddr, port: u16) -> bool {
        self.state().admits(address, port)
    }

    /// An instance for a client's request; nothing if the client is no longer let in. Who is picked
    /// is counted in before the state can change, so that after a change nobody goes by the old one.
    pub fn enter(&self, client: &Client) -> Option<Pick> {
        let state = self.state();
        state
            .admits(client.peer, client.listener.address.port())
            .then(|| state.pick(&self.shared.limits, now_ms(), &[], None))
    }

    /// Another instance for a request that those tried did not answer.
    pub fn pick(&self, tried: &[u64], prefer: &Arc<str>) -> Pick {
        self.state().pick(&self.shared.limits, now_ms(), tried, Some(prefer))
    }

    /// Takes a new configuration; listeners as [`super::Proxy::apply`] says, where given.
    pub fn configure(self: &Arc<Self>, config: Config, listeners: Option<Vec<TcpListener>>) -> io::Result<()> {
        let mut control = lock(&self.control);
        let Some(listeners) = listeners else {
            self.replace(&control, Some(config));
            return Ok(());
        };
        let mut wanted = Vec::with_capacity(listeners.len());
        for socket in listeners {
            let identity = Listener::identity(&socket)?;
            let old = control.listeners.iter().find(|listener| listener.is(identity)).cloned();
            let new = match old {
                Some(_) => None,
                None => {
                    socket.set_nonblocking(true)?;
                    Some(tokio::net::TcpListener::from_std(socket)?)
                }
            };
            wanted.push((identity, old, new));
        }
        // From here on nothing fails.
        let drain = Duration::from_secs(config.spec.drain_seconds);
        self.replace(&control, Some(config));
        let before = std::mem::take(&mut control.listeners);
        control.listeners = wanted
            .into_iter()
            .filter_map(|(identity, old, new)| {
                old.or_else(|| new.map(|socket| Listener::start(socket, identity, Arc::clone(self))))
            })
            .collect();
        for listener in before {
            if !control.listeners.iter().any(|kept| Arc::ptr_eq(kept, &listener)) {
                listener.close(REST, drain);
            }
        }
        Ok(())
    }

    /// Takes a new list of instances.
    pub fn set_backends(&self, backends: Vec<Backend>) {
        let mut control = lock(&self.control);
        if control.backends == backends {
            return;
        }
        for backend in &backends {
            let upstream = control.upstreams.entry(key(backend)).or_insert_with(|| {
                let (group, open) = self.shared.group(&backend.server_group);
                Arc::new(Upstream::new(group, backend.address, open))
            });
            if backend.enabled {
                upstream.resume();
            }
        }
        control.backends = backends;
        self.replace(&control, self.config());
        // After the switch, so that nothing new is sent to what is taken out.
        let drain = self.drain_time();
        let enabled: HashSet<Key> = control.backends.iter().filter(|backend| backend.enabled).map(key).collect();
        for (key, upstream) in &control.upstreams {
            if !enabled.contains(key) {
                upstream.drain(drain);
            }
        }
    }

    /// Stops accepting and ends connections within the time.
    pub fn close(&self, within: Option<Duration>) {
        let within = within.unwrap_or_else(|| self.drain_time());
        for listener in &lock(&self.control).listeners {
            listener.close(REST.min(within / 2), within);
        }
    }

    /// What has to be done from time to time.
    pub fn tidy(&self) {
        let mut control = lock(&self.control);
        let wanted: HashSet<Key> = control.backends.iter().map(key).collect();
        control.upstreams.retain(|key, upstream| {
            upstream.tidy(&self.shared.limits);
            wanted.contains(key) || upstream.open() > 0
        });
    }

    /// Something is in the way, from now on or still: the message may have changed since.
    pub fn begin_problem(&self, kind: LoadBalancerProblemKind, about: &str, message: String) {
        {
            let mut problems = lock(&self.problems);
            let since = self.shared.clock.now();
            let new = || LoadBalancerProblem { kind, about: about.to_owned(), message: String::new(), since };
            let problem = problems.entry((kind, about.to_owned())).or_insert_with(new);
            if problem.message == message {
                return;
            }
            problem.message.clone_from(&message);
        }
        tracing::info!(load_balancer = %self.name, "{message}");
        self.shared.problems_changed.send_modify(|count| *count += 1);
    }

    /// It is over, if it was the case.
    pub fn end_problem(&self, kind: LoadBalancerProblemKind, about: &str, message: &str) {
        if lock(&self.problems).remove(&(kind, about.to_owned())).is_some() {
            tracing::info!(load_balancer = %self.name, "{message}");
            self.shared.problems_changed.send_modify(|count| *count += 1);
        }
    }

    pub fn problems(&self) -> Vec<LoadBalancerProblem> {
        lock(&self.problems).values().cloned().collect()
    }

    /// The one place where the state that requests see changes.
    fn replace(&self, control: &Control, config: Option<Config>) {
        let usable: Vec<Arc<Upstream>> = control
            .backends
            .iter()
            .filter(|backend| backend.healthy && backend.enabled)
            .filter_map(|backend| control.upstreams.get(&key(backend)).cloned())
            .collect();
        let new = State::new(config, &usable, &self.state());
        let starved = new.starved.clone();
        let shares = new.config.as_ref().map(|config| config.shares.clone()).unwrap_or_default();
        let before = std::mem::replace(&mut *self.state.write().unwrap_or_else(PoisonError::into_inner), new).starved;
        let percent = |basis_points: u32| f64::from(basis_points) / 100.0;
        let is_starved = |group: &str| starved.iter().any(|share| share.server_group == group);
        for Share { server_group, .. } in before.iter().filter(|old| !is_starved(&old.server_group)) {
            let share = shares.iter().find(|share| share.server_group == *server_group && share.basis_points > 0);
            let message = match share {
                Some(share) => {
                    format!("server group `{server_group}` takes its share of {} % again", percent(share.basis_points))
                }
                None => format!("server group `{server_group}` has no share any more"),
            };
            self.end_problem(LoadBalancerProblemKind::Share, server_group, &message);
        }
        for share in &starved {
            let message = format!(
                "the share of {} % of server group `{}` goes to the others: it has no healthy, enabled instance",
                percent(share.basis_points),
                share.server_group
            );
            self.begin_problem(LoadBalancerProblemKind::Share, &share.server_group, message);
        }
    }

    /// Open requests and tunnels to one instance, whatever its incarnation.
    pub fn open_to_instance(&self, instance: &str) -> usize {
        let control = lock(&self.control);
        control.upstreams.iter().filter(|(key, _)| key.1 == instance).map(|(_, upstream)| upstream.open()).sum()
    }

    fn config(&self) -> Option<Config> {
        self.state().config.clone()
    }

    fn drain_time(&self) -> Duration {
        let seconds = self.state().config.as_ref().map_or(30, |config| config.spec.drain_seconds);
        Duration::from_secs(seconds)
    }

    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }
}
