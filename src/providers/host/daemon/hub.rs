//! What a host holds in memory: groups with their instances, load balancers, security groups. One
//! lock, held shortly; each change raises the revision and feeds the data plane.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Options;
use super::fences::Fences;
use super::handoff::Sockets;
use super::instance::{self, Observed};
use super::records::{BalancerRecord, GroupRecord, InstanceRecord, Layout, SecurityRecord};
use super::shelf::Shelf;
use crate::clock::Clock;
use crate::model::{
    HealthSource, HealthState, InboundRule, Instance, InstanceHealth, LoadBalancer, LoadBalancerProblem,
    LoadBalancerProblemKind, Place, SecurityGroup, ServerGroup,
};
use crate::outbound::{self, Outbound};
use crate::providers::host::launch::Launch;
use crate::providers::host::proxy::{Backend, Config, Proxy};
use crate::providers::host::shim::Running;
use crate::providers::{Error, ErrorKind, Snapshot};

/// Where instances listen.
pub const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// An answer to the server.
pub type Reply<T> = Result<T, Error>;

/// The host. Shared by all its tasks.
pub struct Hub {
    pub options: Options,
    /// Of the directory.
    pub id: String,
    pub layout: Layout,
    pub clock: Clock,
    pub proxy: Proxy,
    pub sockets: Sockets,
    pub fences: Fences,
    /// What artifacts are fetched with: from public addresses only.
    pub outbound: Outbound,
    pub started_at: DateTime<Utc>,
    pub revision: watch::Sender<u64>,
    /// Supervision ends; instances run on.
    pub stop: CancellationToken,
    pub tasks: TaskTracker,
    /// What artifacts take of the disk.
    pub shelf: Shelf,
    /// Read by who is about to use an artifact, written by who sweeps.
    pub artifacts_in_use: tokio::sync::RwLock<()>,
    inner: Mutex<Inner>,
    locks: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

/// What is behind the lock.
#[derive(Default)]
pub struct Inner {
    /// The machine's name.
    pub host: String,
    pub groups: BTreeMap<String, GroupCell>,
    pub balancers: BTreeMap<String, BalancerCell>,
    pub security_groups: BTreeMap<String, SecurityRecord>,
    /// The port given last.
    pub last_port: u16,
}

/// A server group.
pub struct GroupCell {
    pub record: GroupRecord,
    pub launch: Launch,
    pub instances: BTreeMap<String, InstanceCell>,
    /// Wakes its supervisor.
    pub wake: Arc<Notify>,
    pub problem: Option<String>,
    /// Disabled, with requests still open.
    pub draining: bool,
}

/// An instance.
pub struct InstanceCell {
    pub record: InstanceRecord,
    pub phase: Phase,
    pub running: Option<Running>,
    /// Found running by this worker rather than started.
    pub adopted: bool,
    /// Taken out of its load balancers before it is stopped.
    pub draining: bool,
    pub platform: Verdict,
    pub own: Option<Verdict>,
    pub balancers: BTreeMap<String, Verdict>,
    /// It was healthy once, as far as this worker has seen.
    pub was_up: bool,
    /// Wakes its task.
    pub wake: Arc<Notify>,
}

/// Where an instance's process stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Not started yet, or the shim has not said so.
    Starting,
    Running,
    /// Ended; it is started again later.
    Waiting,
    Stopping,
}

/// What one check says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub state: HealthState,
    pub message: String,
}

impl Verdict {
    pub fn new(state: HealthState, message: impl Into<String>) -> Self {
        Self { state, message: message.into() }
    }
    fn is_up(&self) -> bool {
        self.state == HealthState::Up
    }
}

/// A load balancer.
pub struct BalancerCell {
    pub record: BalancerRecord,
    /// Why its listeners are not open in the data plane.
    pub closed: Option<LoadBalancerProblem>,
    /// What the data plane says is in its way.
    pub problems: Vec<LoadBalancerProblem>,
    /// That none of its instances is healthy, although some are to take its traffic.
    pub unserved: Option<LoadBalancerProblem>,
    /// What the data plane was told last.
    pub told: Vec<Backend>,
    /// Its listeners are open in the data plane.
    pub open: bool,
}

impl BalancerCell {
    pub fn new(record: BalancerRecord) -> Self {
        Self { record, closed: None, problems: Vec::new(), unserved: None, told: Vec::new(), open: false }
    }
}

impl InstanceCell {
    pub fn new(record: InstanceRecord) -> Self {
        Self {
            record,
            phase: Phase::Starting,
            running: None,
            adopted: false,
            draining: false,
            platform: Verdict::new(HealthState::Starting, "not started yet"),
            own: None,
            balancers: BTreeMap::new(),
            was_up: false,
            wake: Arc::new(Notify::new()),
        }
    }

    /// The verdicts at the start of a process.
    pub fn reset_checks(&mut self, state: HealthState, message: &str) {
        self.platform = Verdict::new(state, message);
        if let Some(own) = &mut self.own {
            *own = Verdict::new(state, message);
        }
        for verdict in self.balancers.values_mut() {
            *verdict = Verdict::new(state, message);
        }
    }

    /// Whether a load balancer may send it requests, health alone considered.
    fn is_healthy_for(&self, balancer: &str) -> bool {
        self.phase == Phase::Running
            && self.platform.is_up()
            && self.own.as_ref().is_none_or(Verdict::is_up)
            && self.balancers.get(balancer).is_some_and(Verdict::is_up)
    }

    /// Whether every check says so.
    fn is_up(&self) -> bool {
        let checks = std::iter::once(&self.platform).chain(&self.own).chain(self.balancers.values());
        self.phase == Phase::Running && { checks }.all(Verdict::is_up)
    }

    /// Whether it is known not to be: it has ended, or a check that it is judged by says so.
    fn is_sick_for(&self, balancer: &str) -> bool {
        let is_down = |verdict: &Verdict| matches!(verdict.state, HealthState::Down | HealthState::Failed);
        let checks = [Some(&self.platform), self.own.as_ref(), self.balancers.get(balancer)];
        match self.phase {
            Phase::Waiting => true,
            Phase::Running => checks.into_iter().flatten().any(is_down),
            Phase::Starting | Phase::Stopping => false,
        }
    }
}

/// How long an instance that was never healthy, or whose host has just started, is not missed.
const FIRST_START: TimeDelta = TimeDelta::minutes(5);

/// Whether a load balancer's requests have somebody who answers them.
enum Service {
    /// They have, or nobody is meant to.
    Some,
    /// It is not known of all yet.
    NotYet,
    /// They have not, and why.
    None(String),
}

impl GroupCell {
    pub fn new(record: GroupRecord, launch: Launch) -> Self {
        Self { record, launch, instances: BTreeMap::new(), wake: Arc::default(), problem: None, draining: false }
    }

    /// In its load balancers, or on its way out of them.
    pub fn is_enabled(&self) -> bool {
        self.record.spec.enabled && !self.record.destroying
    }
}

impl Hub {
    pub fn new(
        options: Options,
        id: String,
        clock: Clock,
        proxy: Proxy,
        sockets: Sockets,
        fences: Fences,
        inner: Inner,
    ) -> Arc<Self> {
        let started_at = clock.now();
        // Rises over restarts too, as long as the machine's clock does.
        let revision = u64::try_from(started_at.timestamp_micros()).unwrap_or(1);
        Arc::new(Self {
            id,
            layout: Layout(options.directory.clone()),
            shelf: Shelf::new(options.max_artifact_bytes),
            options,
            clock,
            proxy,
            sockets,
            fences,
            outbound: Outbound::new(outbound::Options::default()),
            started_at,
            revision: watch::channel(revision).0,
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            artifacts_in_use: tokio::sync::RwLock::default(),
            inner: Mutex::new(inner),
            locks: Mutex::default(),
        })
    }

    /// Reads; nothing is told to anybody.
    pub fn read<R>(&self, read: impl FnOnce(&Inner) -> R) -> R {
        read(&self.lock())
    }

    /// Changes; the revision rises and the data plane hears of it.
    pub fn update<R>(&self, change: impl FnOnce(&mut Inner) -> R) -> R {
        let mut inner = self.lock();
        let result = change(&mut inner);
        for (name, backends) in inner.backends() {
            if let Some(cell) = inner.balancers.get_mut(&name)
                && cell.told != backends
            {
                cell.told.clone_from(&backends);
                self.proxy.set_backends(&name, backends);
            }
        }
        inner.judge_service(self.clock.now(), self.started_at);
        drop(inner);
        self.revision.send_modify(|revision| *revision += 1);
        result
    }

    /// Judges anew what hangs on time alone.
    pub fn look_again(&self) {
        if self.lock().judge_service(self.clock.now(), self.started_at) {
            self.revision.send_modify(|revision| *revision += 1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One operation at a time per object.
    pub async fn exclusive(&self, object: String) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            if locks.len() > 1_000 {
                locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            }
            Arc::clone(locks.entry(object).or_default())
        };
        lock.lock_owned().await
    }

    /// Marks the instances that run already, before anybody is asked to look after them.
    pub fn adopt_running(&self) {
        let layout = &self.layout;
        self.update(|inner| {
            for (name, group) in &mut inner.groups {
                for (id, cell) in &mut group.instances {
                    let directory = layout.instance(name, id);
                    let seen = instance::observe(&directory, cell.record.incarnation);
                    if let (Ok(Observed::Runs(_)), false) = (seen, cell.record.stopping) {
                        cell.adopted = true;
                        cell.reset_checks(HealthState::Unknown, "found running");
                    }
                }
            }
        });
    }

    /// The place that this host is.
    pub fn place(&self) -> Place {
        Place { account: self.options.account.clone(), location: self.options.location.clone() }
    }

    /// Everything, at one instant.
    pub fn snapshot(&self) -> Snapshot {
        let inner = self.lock();
        let revision = *self.revision.borrow();
        Snapshot {
            revision,
            server_groups: inner.groups.values().map(|cell| self.group_view(cell)).collect(),
            load_balancers: inner.balancers.values().map(|cell| inner.balancer_view(cell)).collect(),
            security_groups: inner.security_groups.values().map(|record| inner.security_view(record)).collect(),
        }
    }

    pub fn group_view(&self, cell: &GroupCell) -> ServerGroup {
        let instances: Vec<Instance> =
            cell.instances.values().map(|instance| self.instance_view(cell, instance)).collect();
        let looping = instances
            .iter()
            .find(|instance| instance.state == HealthState::Failed && instance.restarts >= 2)
            .map(|instance| {
                let exit = instance.last_exit.as_deref().unwrap_or("no exit known");
                format!("instance {} keeps ending ({exit}); it was restarted {} times", instance.id, instance.restarts)
            });
        let limits = cell.instances.values().find_map(|instance| instance.running.as_ref()?.limits.clone());
        ServerGroup {
            spec: cell.record.spec.clone(),
            created_at: cell.record.created_at,
            operation: Some(cell.record.operation.clone()),
            instances,
            problem: cell.problem.clone().or(looping),
            limits_enforced_by: limits,
        }
    }

    fn instance_view(&self, group: &GroupCell, cell: &InstanceCell) -> Instance {
        let out = match (group.is_enabled() && !cell.draining, group.draining || cell.draining) {
            (true, _) => None,
            (false, true) => Some(HealthState::Draining),
            (false, false) => Some(HealthState::OutOfService),
        };
        let health = |source, verdict: &Verdict| InstanceHealth {
            source,
            state: verdict.state,
            message: verdict.message.clone(),
        };
        let mut all = vec![health(HealthSource::Platform, &cell.platform)];
        if let Some(own) = &cell.own {
            all.push(health(HealthSource::Instance, own));
        }
        for (name, verdict) in &cell.balancers {
            let mut health = health(HealthSource::LoadBalancer { name: name.clone() }, verdict);
            if let (Some(out), HealthState::Up) = (out, health.state) {
                health.state = out;
            }
            all.push(health);
        }
        let state = if cell.phase == Phase::Waiting {
            HealthState::Failed
        } else {
            let worst = all.iter().map(|health| health.state).max_by_key(|state| severity(*state));
            match (worst.unwrap_or(HealthState::Unknown), out) {
                (HealthState::Up, Some(out)) => out,
                (state, _) => state,
            }
        };
        let running = cell.running.as_ref().filter(|_| matches!(cell.phase, Phase::Running | Phase::Stopping));
        let process = running.and_then(|running| running.process.as_ref());
        Instance {
            id: cell.record.id.clone(),
            server_group: group.record.spec.name.clone(),
            host: self.options.host_name.clone(),
            address: Some(LOOPBACK),
            port: Some(cell.record.port),
            state,
            health: all,
            incarnation: cell.record.incarnation,
            restarts: cell.record.restarts,
            pid: process.and_then(|process| u32::try_from(process.pid).ok()),
            launched_at: running.map(|running| running.launched_at),
            last_exit: cell.record.last_exit.clone(),
        }
    }

    /// What the data plane is told of a load balancer.
    pub fn proxy_config(&self, name: &str) -> Option<Config> {
        let inner = self.lock();
        let record = &inner.balancers.get(name)?.record;
        let inbound: Vec<InboundRule> = record
            .spec
            .security_groups
            .iter()
            .filter_map(|name| inner.security_groups.get(name))
            .flat_map(|group| group.spec.inbound.iter().cloned())
            .collect();
        Some(Config { spec: record.spec.clone(), inbound, shares: record.shares.clone() })
    }
}

const fn severity(state: HealthState) -> u8 {
    match state {
        HealthState::Up => 0,
        HealthState::Draining => 1,
        HealthState::OutOfService => 2,
        HealthState::Starting => 3,
        HealthState::Unknown => 4,
        HealthState::Down => 5,
        HealthState::Failed => 6,
    }
}

impl Inner {
    /// The instances behind every load balancer.
    fn backends(&self) -> Vec<(String, Vec<Backend>)> {
        self.balancers.keys().map(|name| (name.clone(), self.backends_of(name))).collect()
    }

    /// The instances behind one.
    pub fn backends_of(&self, balancer: &str) -> Vec<Backend> {
        self.groups
            .values()
            .filter(|group| group.record.spec.load_balancers.iter().any(|name| name == balancer))
            .flat_map(|group| {
                group.instances.values().filter(|cell| matches!(cell.phase, Phase::Running | Phase::Stopping)).map(
                    |cell| Backend {
                        server_group: group.record.spec.name.clone(),
                        instance: cell.record.id.clone(),
                        incarnation: cell.record.incarnation,
                        address: SocketAddr::new(LOOPBACK, cell.record.port),
                        healthy: cell.is_healthy_for(balancer),
                        enabled: group.is_enabled() && !cell.draining && cell.phase == Phase::Running,
                    },
                )
            })
            .collect()
    }

    /// Which load balancers have instances and none that is healthy. Whether that is another answer
    /// than before.
    fn judge_service(&mut self, now: DateTime<Utc>, started_at: DateTime<Utc>) -> bool {
        for cell in self.groups.values_mut().flat_map(|group| group.instances.values_mut()) {
            cell.was_up |= cell.is_up();
        }
        let names: Vec<String> = self.balancers.keys().cloned().collect();
        let mut changed = false;
        for name in names {
            let service = self.service_of(&name, now, started_at);
            let Some(cell) = self.balancers.get_mut(&name) else { continue };
            let before = cell.unserved.clone();
            match service {
                Service::Some => {
                    if let Some(over) = cell.unserved.take() {
                        tracing::info!(load_balancer = name, "no longer the case: {}", over.message);
                    }
                }
                // What began stays until something is healthy: a process that crashes again and
                // again is starting in between.
                Service::NotYet => {}
                Service::None(message) => {
                    let present = cell.unserved.as_ref();
                    if present.is_none_or(|present| present.message != message) {
                        tracing::warn!(load_balancer = name, "{message}");
                    }
                    let since = present.map_or(now, |present| present.since);
                    let (kind, about) = (LoadBalancerProblemKind::Instances, String::new());
                    cell.unserved = Some(LoadBalancerProblem { kind, about, message, since });
                }
            }
            changed |= cell.unserved != before;
        }
        changed
    }

    fn service_of(&self, balancer: &str, now: DateTime<Utc>, started_at: DateTime<Utc>) -> Service {
        let (mut groups, mut sick, mut undecided) = (Vec::new(), 0_usize, false);
        for group in self.groups.values() {
            let spec = &group.record.spec;
            if !group.is_enabled() || !spec.load_balancers.iter().any(|name| name == balancer) {
                continue;
            }
            let before = sick;
            for cell in group.instances.values().filter(|cell| !cell.draining && cell.phase != Phase::Stopping) {
                if cell.is_healthy_for(balancer) {
                    return Service::Some;
                }
                // One that is about to start for the first time may take its time.
                let begun = cell.record.created_at.max(started_at);
                let is_sick = cell.is_sick_for(balancer) && (cell.was_up || cell.adopted || now >= begun + FIRST_START);
                sick += usize::from(is_sick);
                undecided |= !is_sick;
            }
            if sick > before {
                groups.push(spec.name.as_str());
            }
        }
        match (undecided, sick) {
            (true, _) => Service::NotYet,
            // Nothing is to serve: nothing is missed.
            (false, 0) => Service::Some,
            (false, _) => Service::None(format!(
                "requests are answered with 503: no instance of {} is healthy (0 of {sick})",
                groups.join(", ")
            )),
        }
    }

    pub fn balancer_view(&self, cell: &BalancerCell) -> LoadBalancer {
        let spec = &cell.record.spec;
        LoadBalancer {
            bound: if cell.open {
                let listeners = spec.listeners.iter().zip(&cell.record.ports);
                listeners.map(|(listener, port)| SocketAddr::new(listener.address, *port).to_string()).collect()
            } else {
                Vec::new()
            },
            spec: spec.clone(),
            host: self.host.clone(),
            created_at: cell.record.created_at,
            shares: cell.record.shares.clone(),
            server_groups: self.registered_with(&spec.name),
            problems: cell.closed.iter().chain(&cell.unserved).chain(&cell.problems).cloned().collect(),
        }
    }

    pub fn registered_with(&self, balancer: &str) -> Vec<String> {
        self.groups
            .values()
            .filter(|group| group.record.spec.load_balancers.iter().any(|name| name == balancer))
            .map(|group| group.record.spec.name.clone())
            .collect()
    }

    pub fn security_view(&self, record: &SecurityRecord) -> SecurityGroup {
        let name = &record.spec.name;
        SecurityGroup {
            spec: record.spec.clone(),
            created_at: record.created_at,
            load_balancers: self
                .balancers
                .values()
                .filter(|cell| cell.record.spec.security_groups.contains(name))
                .map(|cell| cell.record.spec.name.clone())
                .collect(),
            server_groups: self
                .groups
                .values()
                .filter(|cell| cell.record.spec.security_groups.contains(name))
                .map(|cell| cell.record.spec.name.clone())
                .collect(),
        }
    }

    /// Ports that instances have.
    pub fn ports(&self) -> BTreeSet<u16> {
        self.groups.values().flat_map(|group| group.instances.values()).map(|cell| cell.record.port).collect()
    }

    pub fn instance_count(&self) -> usize {
        self.groups.values().map(|group| group.instances.len()).sum()
    }

    /// How many instances are wanted, all groups together.
    pub fn desired(&self) -> usize {
        self.groups
            .values()
            .filter(|group| !group.record.destroying)
            .map(|group| group.record.spec.capacity.desired as usize)
            .sum()
    }

    pub fn instance_mut(&mut self, group: &str, id: &str) -> Option<&mut InstanceCell> {
        self.groups.get_mut(group)?.instances.get_mut(id)
    }

    pub fn instance(&self, group: &str, id: &str) -> Option<&InstanceCell> {
        self.groups.get(group)?.instances.get(id)
    }

    /// Every check of every instance that was found running has spoken.
    pub fn adopted_are_checked(&self) -> bool {
        self.groups.values().flat_map(|group| group.instances.values()).filter(|cell| cell.adopted).all(|cell| {
            let unknown = |verdict: &Verdict| verdict.state == HealthState::Unknown;
            !unknown(&cell.platform) && !cell.own.as_ref().is_some_and(unknown) && !cell.balancers.values().any(unknown)
        })
    }
}

/// An error for the server.
pub fn refuse(kind: ErrorKind, message: impl Into<String>) -> Error {
    Error { kind, message: message.into() }
}

/// A failure of the machine underneath.
pub fn unavailable(error: &io::Error) -> Error {
    refuse(ErrorKind::Unavailable, error.to_string())
}

/// Names become file names.
///
/// # Errors
/// `Invalid` for what cannot be one.
pub fn check_name(what: &str, name: &str) -> Reply<()> {
    let fits = !name.is_empty()
        && name.len() <= 200
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~^".contains(&byte));
    if fits {
        Ok(())
    } else {
        let shown: String = name.chars().take(80).collect();
        Err(refuse(
            ErrorKind::Invalid,
            format!(
                "`{shown}` is not a name for a {what}: 1 to 200 letters, digits and -._~^, not beginning with a dot"
            ),
        ))
    }
}
