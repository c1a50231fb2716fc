//! Makes what runs equal to what is wanted: one task per server group decides how many instances
//! there are, one task per instance keeps its process running, or stops it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::health::{self, Subject};
use super::hub::{GroupCell, Hub, InstanceCell, Phase, Verdict};
use super::instance::{self, Observed};
use super::records::{FORMAT, InstanceRecord};
use super::{files, ports};
use crate::model::HealthState;
use crate::providers::host::shim::{InstanceDirectory, Running, Start};

/// After the end of a process that lived this long the delays begin anew.
const SETTLED: Duration = Duration::from_secs(60);
const FIRST_DELAY: Duration = Duration::from_millis(200);
const LONGEST_DELAY: Duration = Duration::from_secs(30);

/// How often a process is looked at.
const WATCH: Duration = Duration::from_millis(100);

/// How long a shim may take to say that it is there.
const SHIM_PATIENCE: Duration = Duration::from_secs(10);

/// Starts the supervision of a group, and of the instances that it has already.
pub fn start(hub: &Arc<Hub>, group: String) {
    let instances: Vec<String> = hub.read(|inner| {
        inner.groups.get(&group).map(|cell| cell.instances.keys().cloned().collect()).unwrap_or_default()
    });
    for id in instances {
        hub.tasks.spawn(attend(Arc::clone(hub), group.clone(), id));
    }
    hub.tasks.spawn(supervise(Arc::clone(hub), group));
}

async fn supervise(hub: Arc<Hub>, group: String) {
    let Some(wake) = hub.read(|inner| inner.groups.get(&group).map(|cell| Arc::clone(&cell.wake))) else { return };
    loop {
        let next = reconcile(&hub, &group).await;
        let Some(next) = next else { return };
        tokio::select! {
            () = wake.notified() => {}
            () = tokio::time::sleep(next) => {}
            () = hub.stop.cancelled() => return,
        }
    }
}

/// One look at a group. The time until the next one; none when the group is gone.
async fn reconcile(hub: &Arc<Hub>, group: &str) -> Option<Duration> {
    let (desired, live, destroying, enabled, draining) = hub.read(|inner| {
        let cell = inner.groups.get(group)?;
        let destroying = cell.record.destroying;
        let desired = if destroying { 0 } else { cell.record.spec.capacity.desired as usize };
        let live = cell.instances.values().filter(|cell| !cell.record.stopping).count();
        Some((desired, live, destroying, cell.is_enabled(), cell.draining))
    })?;
    let open = !enabled && hub.proxy.open_to(group) > 0;
    if open != draining {
        hub.update(|inner| {
            if let Some(cell) = inner.groups.get_mut(group) {
                cell.draining = open;
            }
        });
    }
    if destroying && hub.read(|inner| inner.groups.get(group).is_some_and(|cell| cell.instances.is_empty())) {
        return forget(hub, group).await;
    }
    let mut problem = None;
    for _ in live..desired {
        if let Err(error) = add(hub, group) {
            problem = Some(error);
            break;
        }
    }
    for _ in desired..live {
        if let Err(error) = retire_one(hub, group) {
            problem = Some(error.to_string());
            break;
        }
    }
    let failed = problem.is_some();
    if hub.read(|inner| inner.groups.get(group).is_some_and(|cell| cell.problem != problem)) {
        hub.update(|inner| {
            if let Some(cell) = inner.groups.get_mut(group) {
                cell.problem = problem;
            }
        });
    }
    Some(if open {
        WATCH
    } else if failed {
        Duration::from_secs(1)
    } else {
        Duration::from_secs(10)
    })
}

/// The last of a group that has no instances any more.
async fn forget(hub: &Arc<Hub>, group: &str) -> Option<Duration> {
    let gone = hub
        .drop_shares_of(group)
        .await
        .and_then(|()| files::remove(&hub.layout.group_spec(group)))
        .and_then(|()| files::remove_tree(&hub.layout.group(group)));
    if let Err(error) = gone {
        tracing::warn!(group, %error, "cannot forget a server group");
        return Some(Duration::from_secs(1));
    }
    hub.update(|inner| inner.groups.remove(group));
    hub.sweep_artifacts();
    None
}

/// Another instance: recorded with its port before anything of it is started.
fn add(hub: &Arc<Hub>, group: &str) -> Result<(), String> {
    let range = hub.options.ports;
    let record = hub.update(|inner| {
        if inner.instance_count() >= hub.options.max_instances {
            return Err(format!(
                "this host has {} instances, its most; wait for those that are ending, or restart the host with more \
                 (--max-instances)",
                hub.options.max_instances
            ));
        }
        let port = ports::free(range, &inner.ports(), inner.last_port).ok_or_else(|| {
            format!(
                "no port of {range} is free that the system does not give to outgoing connections; destroy old \
                 server groups or restart the host with another --port-range"
            )
        })?;
        inner.last_port = port;
        let cell = inner.groups.get_mut(group).ok_or("the server group is gone")?;
        let id = (0..100)
            .map(|_| format!("{group}-{}", random_suffix()))
            .find(|id| !cell.instances.contains_key(id))
            .ok_or("no free instance id was found")?;
        let record = InstanceRecord {
            format: FORMAT,
            id,
            created_at: hub.clock.now(),
            port,
            incarnation: 0,
            restarts: 0,
            stopping: false,
            last_exit: None,
        };
        cell.instances.insert(record.id.clone(), new_cell(cell, record.clone()));
        Ok(record)
    })?;
    let written = files::make_directory(&hub.layout.instance(group, &record.id).0)
        .and_then(|()| files::write_json(&hub.layout.instance_record(group, &record.id), &record));
    if let Err(error) = written {
        hub.update(|inner| inner.groups.get_mut(group).and_then(|cell| cell.instances.remove(&record.id)));
        return Err(error.to_string());
    }
    hub.tasks.spawn(attend(Arc::clone(hub), group.to_owned(), record.id));
    Ok(())
}

/// The cell of an instance of a group, with a place for each of its checks.
pub fn new_cell(group: &GroupCell, record: InstanceRecord) -> InstanceCell {
    let mut cell = InstanceCell::new(record);
    let starting = || Verdict::new(HealthState::Starting, "not started yet");
    cell.own = group.record.spec.health_check.as_ref().map(|_| starting());
    cell.balancers = group.record.spec.load_balancers.iter().map(|name| (name.clone(), starting())).collect();
    cell
}

fn random_suffix() -> String {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let random = uuid::Uuid::new_v4().into_bytes();
    random[..4].iter().map(|byte| char::from(DIGITS[usize::from(*byte) % DIGITS.len()])).collect()
}

/// Marks one surplus instance as stopping: one that is not up if there is one, else the newest.
fn retire_one(hub: &Arc<Hub>, group: &str) -> std::io::Result<()> {
    let chosen = hub.read(|inner| {
        inner
            .groups
            .get(group)?
            .instances
            .values()
            .filter(|cell| !cell.record.stopping)
            .max_by_key(|cell| {
                (cell.phase != Phase::Running || cell.platform.state != HealthState::Up, cell.record.created_at)
            })
            .map(|cell| cell.record.clone())
    });
    let Some(mut record) = chosen else { return Ok(()) };
    record.stopping = true;
    files::write_json(&hub.layout.instance_record(group, &record.id), &record)?;
    hub.update(|inner| {
        if let Some(cell) = inner.instance_mut(group, &record.id) {
            cell.record.stopping = true;
            cell.wake.notify_one();
        }
    });
    Ok(())
}

/// Keeps one instance's process running until it is to go, or the host goes.
async fn attend(hub: Arc<Hub>, group: String, id: String) {
    let Some((wake, start)) = hub.read(|inner| {
        let cell = inner.groups.get(&group)?;
        let instance = cell.instances.get(&id)?;
        let start = Start {
            instance: id.clone(),
            incarnation: instance.record.incarnation,
            launch: cell.launch.clone(),
            directory: cell.record.artifact.clone(),
            port: instance.record.port,
            secret_roots: hub.options.secret_roots.clone(),
            max_log_bytes: hub.options.max_instance_log_bytes,
        };
        Some((Arc::clone(&instance.wake), start))
    }) else {
        return;
    };
    let directory = hub.layout.instance(&group, &id);
    let mut keeper = Keeper {
        delay: None,
        lived: Duration::ZERO,
        spawned: None,
        runs: None,
        not_before: None,
        counted: false,
        fresh: true,
        hub: Arc::clone(&hub),
        group,
        start,
        directory,
    };
    loop {
        if hub.stop.is_cancelled() {
            return;
        }
        let stopping = hub.read(|inner| inner.instance(&keeper.group, &id).is_none_or(|cell| cell.record.stopping));
        if stopping {
            // Ended by the host's own end too: the next worker goes on with it.
            tokio::select! {
                () = keeper.retire() => {}
                () = hub.stop.cancelled() => {}
            }
            return;
        }
        let next = match keeper.look() {
            Ok(next) => next,
            Err(error) => {
                keeper.note(&error.to_string());
                Duration::from_secs(1)
            }
        };
        tokio::select! {
            () = wake.notified() => {}
            () = tokio::time::sleep(next) => {}
            () = hub.stop.cancelled() => return,
        }
    }
}

/// How long the next start waits after the end of a process that lived so long, and that waited
/// itself if it was not the first.
fn next_delay(last: Option<Duration>, lived: Duration) -> Duration {
    match last {
        Some(last) if lived < SETTLED => (last * 2).min(LONGEST_DELAY),
        _ => FIRST_DELAY,
    }
}

/// The running process of an instance, as this worker sees it.
struct Watched {
    running: Running,
    since: Instant,
    /// End with this.
    _checks: JoinSet<()>,
}

struct Keeper {
    hub: Arc<Hub>,
    group: String,
    directory: InstanceDirectory,
    start: Start,
    /// Before the last start, if it was one after an end.
    delay: Option<Duration>,
    /// How long the process was seen running that ended last.
    lived: Duration,
    spawned: Option<Instant>,
    runs: Option<Watched>,
    not_before: Option<Instant>,
    /// The end of this incarnation was recorded.
    counted: bool,
    /// Nothing was started by this worker yet.
    fresh: bool,
}

impl Keeper {
    /// One look at the process; the time until the next.
    fn look(&mut self) -> std::io::Result<Duration> {
        if let Some(watched) = &self.runs {
            if watched.running.shim.is_alive() {
                return Ok(WATCH);
            }
            self.lived = watched.since.elapsed();
            self.runs = None;
        }
        match instance::observe(&self.directory, self.start.incarnation)? {
            Observed::Runs(running) => {
                self.watch(running);
                Ok(WATCH)
            }
            Observed::Starting => Ok(Duration::from_millis(10)),
            Observed::Nothing if self.spawned.is_some_and(|at| at.elapsed() < SHIM_PATIENCE) => {
                Ok(Duration::from_millis(10))
            }
            Observed::Nothing => {
                if self.spawned.is_some() && self.start.incarnation > 0 && !self.counted {
                    self.ended("its shim did not start; see shim.log in its directory".to_owned())?;
                }
                self.start_again()
            }
            Observed::Ended(exit) => {
                if !self.counted {
                    self.ended(exit.to_string())?;
                }
                self.start_again()
            }
        }
    }

    fn watch(&mut self, running: Running) {
        let adopted = self.fresh;
        let state = if adopted { HealthState::Unknown } else { HealthState::Starting };
        self.hub.update(|inner| {
            if let Some(cell) = inner.instance_mut(&self.group, &self.start.instance) {
                cell.phase = Phase::Running;
                cell.adopted = adopted;
                cell.running = Some(running.clone());
                cell.reset_checks(state, "not checked yet");
            }
        });
        let subject = Subject {
            hub: Arc::clone(&self.hub),
            group: self.group.clone(),
            start: self.start.clone(),
            directory: self.directory.clone(),
            running: running.clone(),
            adopted,
        };
        self.runs = Some(Watched { running, since: Instant::now(), _checks: health::start(&subject) });
        self.fresh = false;
        self.counted = false;
        self.not_before = None;
    }

    /// Records how a process ended, and when the next may start.
    fn ended(&mut self, how: String) -> std::io::Result<()> {
        tracing::info!(instance = self.start.instance, incarnation = self.start.incarnation, %how, "instance ended");
        let record = self.hub.update(|inner| {
            let cell = inner.instance_mut(&self.group, &self.start.instance)?;
            cell.phase = Phase::Waiting;
            cell.running = None;
            cell.adopted = false;
            cell.record.last_exit = Some(how.clone());
            cell.reset_checks(HealthState::Failed, &how);
            Some(cell.record.clone())
        });
        if let Some(record) = record {
            files::write_json(&self.hub.layout.instance_record(&self.group, &record.id), &record)?;
        }
        self.counted = true;
        let delay = next_delay(self.delay, std::mem::take(&mut self.lived));
        self.not_before = Some(Instant::now() + delay);
        self.delay = Some(delay);
        Ok(())
    }

    fn start_again(&mut self) -> std::io::Result<Duration> {
        if let Some(left) = self.not_before.and_then(|at| at.checked_duration_since(Instant::now()))
            && !left.is_zero()
        {
            return Ok(left);
        }
        let range = self.hub.options.ports;
        let record = self.hub.update(|inner| {
            let taken = inner.ports();
            let last = inner.last_port;
            let cell = inner.instance_mut(&self.group, &self.start.instance)?;
            let mut record = cell.record.clone();
            if !ports::is_free(record.port) {
                // Somebody took it; the instance moves.
                let Some(port) = ports::free(range, &taken, last) else {
                    cell.reset_checks(HealthState::Failed, &format!("no port of {range} is free"));
                    return None;
                };
                record.port = port;
            }
            record.restarts += u32::from(record.incarnation > 0);
            record.incarnation += 1;
            Some(record)
        });
        let Some(record) = record else { return Ok(Duration::from_secs(1)) };
        files::write_json(&self.hub.layout.instance_record(&self.group, &record.id), &record)?;
        self.start.incarnation = record.incarnation;
        self.start.port = record.port;
        self.hub.update(|inner| {
            if let Some(cell) = inner.instance_mut(&self.group, &record.id) {
                // What else is in the record may have changed meanwhile.
                cell.record.incarnation = record.incarnation;
                cell.record.port = record.port;
                cell.record.restarts = record.restarts;
                cell.phase = Phase::Starting;
                cell.reset_checks(HealthState::Starting, "starting");
            }
        });
        self.fresh = false;
        self.counted = false;
        self.spawned = Some(Instant::now());
        if let Err(error) = instance::start(&self.directory, &self.start, &self.hub.options.program) {
            self.ended(error.to_string())?;
        }
        Ok(Duration::from_millis(10))
    }

    /// Out of traffic, stopped, and gone.
    async fn retire(&mut self) {
        let id = self.start.instance.clone();
        let drain = self.hub.update(|inner| {
            let longest = {
                let spec = inner.groups.get(&self.group).map(|cell| cell.record.spec.load_balancers.clone());
                let balancers = spec.unwrap_or_default();
                let seconds =
                    balancers.iter().filter_map(|name| Some(inner.balancers.get(name)?.record.spec.drain_seconds));
                seconds.max()
            };
            let cell = inner.instance_mut(&self.group, &id)?;
            cell.draining = true;
            (cell.phase == Phase::Running).then_some(longest).flatten()
        });
        if let Some(seconds) = drain {
            self.drain(Duration::from_secs(seconds)).await;
        }
        self.hub.update(|inner| {
            if let Some(cell) = inner.instance_mut(&self.group, &id) {
                cell.phase = Phase::Stopping;
            }
        });
        instance::stop(&self.directory, self.start.incarnation, &self.start.launch.stop).await;
        self.runs = None;
        if let Err(error) = files::remove_tree(&self.directory.0) {
            // It is marked as stopping, so the next worker removes what is left.
            tracing::warn!(instance = id, %error, "cannot remove an instance's directory");
        }
        self.hub.update(|inner| {
            if let Some(cell) = inner.groups.get_mut(&self.group) {
                cell.instances.remove(&id);
                cell.wake.notify_one();
            }
        });
    }

    /// Until nothing is open to it any more, or the time is over.
    async fn drain(&self, longest: Duration) {
        let until = Instant::now() + longest;
        // What was given to it in the very moment is counted by then.
        tokio::time::sleep(Duration::from_millis(50)).await;
        while Instant::now() < until && self.hub.proxy.open_to_instance(&self.start.instance) > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn note(&self, message: &str) {
        tracing::warn!(instance = self.start.instance, message, "cannot look after an instance");
        self.hub.update(|inner| {
            if let Some(cell) = inner.instance_mut(&self.group, &self.start.instance) {
                cell.platform = Verdict::new(HealthState::Unknown, message);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_longest_and_begin_anew_after_a_process_that_settled() {
        let ends = |lived: &[u64]| {
            let next = |last: &mut Option<Duration>, lived: &u64| {
                *last = Some(next_delay(*last, Duration::from_secs(*lived)));
                *last
            };
            let delays = lived.iter().scan(None, next);
            delays.map(|delay| delay.as_millis()).collect::<Vec<_>>()
        };
        let doubled = [200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 30_000, 30_000];
        assert_eq!(ends(&[0; 10]), doubled);
        assert_eq!(ends(&[59, 59, 59]), [200, 400, 800]);
        assert_eq!(ends(&[0, 0, 60, 0]), [200, 400, 200, 400]);
    }
}
