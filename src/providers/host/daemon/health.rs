//! The checks of one running process, each a task of its own: the platform's (it lives and owns its
//! port), its own, and that of every load balancer it is registered with.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::hub::{Hub, LOOPBACK, Verdict};
use super::probe;
use super::sockets::{self, Listening};
use crate::model::{HealthCheck, HealthSource, HealthState, Probe};
use crate::providers::host::shim::{InstanceDirectory, Running, Start};

/// From one look to the next until it is up.
const STARTING: Duration = Duration::from_millis(100);

/// From one look of the platform to the next when it is up.
const PLATFORM: Duration = Duration::from_secs(1);

/// How long a process may take to listen, where no check says otherwise.
const GRACE: Duration = Duration::from_secs(10);

/// What is checked.
#[derive(Clone)]
pub struct Subject {
    pub hub: Arc<Hub>,
    pub group: String,
    pub start: Start,
    pub directory: InstanceDirectory,
    pub running: Running,
    /// Found running by this worker: the first pass makes it up.
    pub adopted: bool,
}

/// Starts all checks; they end when the set is dropped.
pub fn start(subject: &Subject) -> JoinSet<()> {
    let mut checks = JoinSet::new();
    checks.spawn(platform(subject.clone()));
    let (own, balancers) = subject.hub.read(|inner| {
        inner.groups.get(&subject.group).map_or_else(Default::default, |group| {
            let spec = &group.record.spec;
            (spec.health_check.is_some(), spec.load_balancers.clone())
        })
    });
    if own {
        checks.spawn(check(subject.clone(), HealthSource::Instance));
    }
    for name in balancers {
        checks.spawn(check(subject.clone(), HealthSource::LoadBalancer { name }));
    }
    checks
}

impl Subject {
    /// The check that a source makes now: it may be changed at any time.
    fn health_check(&self, source: &HealthSource) -> Option<HealthCheck> {
        self.hub.read(|inner| match source {
            HealthSource::Platform => None,
            HealthSource::Instance => inner.groups.get(&self.group)?.record.spec.health_check.clone(),
            HealthSource::LoadBalancer { name } => inner.balancers.get(name)?.record.spec.health_check.clone(),
        })
    }

    /// Whether anybody is to talk to it, so that it has to listen.
    fn must_listen(&self) -> bool {
        self.hub.read(|inner| {
            inner.groups.get(&self.group).is_some_and(|group| {
                let spec = &group.record.spec;
                let asked = spec.health_check.as_ref().map(|check| &check.probe);
                !spec.load_balancers.is_empty() || matches!(asked, Some(Probe::Http(_) | Probe::Tcp {}))
            })
        })
    }

    fn grace(&self) -> Duration {
        self.health_check(&HealthSource::Instance)
            .map_or(GRACE, |check| Duration::from_millis(check.start_grace_ms).max(GRACE))
    }

    /// Since the process was started, also by an earlier worker.
    fn age(&self) -> Duration {
        (self.hub.clock.now() - self.running.launched_at).to_std().unwrap_or_default()
    }

    fn verdict(&self, source: &HealthSource) -> Option<Verdict> {
        self.hub.read(|inner| {
            let cell = inner.instance(&self.group, &self.start.instance)?;
            match source {
                HealthSource::Platform => Some(cell.platform.clone()),
                HealthSource::Instance => cell.own.clone(),
                HealthSource::LoadBalancer { name } => cell.balancers.get(name).cloned(),
            }
        })
    }

    /// Tells a verdict, if it is another one for the same process.
    fn tell(&self, source: &HealthSource, verdict: Verdict) {
        if self.verdict(source).as_ref() == Some(&verdict) {
            return;
        }
        self.hub.update(|inner| {
            let Some(cell) = inner.instance_mut(&self.group, &self.start.instance) else { return };
            if cell.record.incarnation != self.start.incarnation {
                return;
            }
            match source {
                HealthSource::Platform => cell.platform = verdict,
                HealthSource::Instance => cell.own = Some(verdict),
                HealthSource::LoadBalancer { name } => {
                    cell.balancers.insert(name.clone(), verdict);
                }
            }
        });
    }
}

async fn platform(subject: Subject) {
    let port = subject.start.port;
    let seen = Arc::new(sockets::Seen::default());
    let Some(process) = subject.running.process.clone() else { return };
    let shim = subject.running.shim.pid;
    loop {
        let verdict = if subject.must_listen() {
            let seen = Arc::clone(&seen);
            let group = process.pid;
            let found = tokio::task::spawn_blocking(move || sockets::listening(port, shim, group, &seen)).await;
            let starting = subject.age() < subject.grace();
            match found {
                Ok(Listening::Own) => Verdict::new(HealthState::Up, format!("listens on port {port}")),
                Ok(Listening::Nobody) if starting => {
                    Verdict::new(HealthState::Starting, format!("does not listen on port {port} yet"))
                }
                Ok(Listening::Nobody) => {
                    Verdict::new(HealthState::Down, format!("nothing listens on port {port}; it must listen on $PORT"))
                }
                Ok(Listening::Foreign) => {
                    Verdict::new(HealthState::Down, format!("port {port} is held by a process that is not its own"))
                }
                Ok(Listening::Unknown) | Err(_) => Verdict::new(HealthState::Up, "runs"),
            }
        } else {
            Verdict::new(HealthState::Up, "runs")
        };
        let up = verdict.state == HealthState::Up;
        subject.tell(&HealthSource::Platform, verdict);
        tokio::time::sleep(if up { PLATFORM } else { STARTING }).await;
    }
}

async fn check(subject: Subject, source: HealthSource) {
    let mut counts = Counts { adopted: subject.adopted, ..Counts::default() };
    let mut state = if subject.adopted { HealthState::Unknown } else { HealthState::Starting };
    loop {
        let Some(check) = subject.health_check(&source) else {
            state = HealthState::Up;
            subject.tell(&source, Verdict::new(state, "no check of its own"));
            tokio::time::sleep(PLATFORM).await;
            continue;
        };
        let asked = Instant::now();
        let timeout = Duration::from_millis(check.timeout_ms.clamp(10, 60_000));
        let seen = probe::probe(&check.probe, LOOPBACK, &subject.start, &subject.directory, timeout).await;
        let in_grace = subject.age() < Duration::from_millis(check.start_grace_ms);
        state = counts.judge(state, seen.is_ok(), &check, in_grace);
        let (Ok(message) | Err(message)) = seen;
        subject.tell(&source, Verdict::new(state, message));
        let interval = match state {
            HealthState::Starting | HealthState::Unknown => STARTING,
            _ => Duration::from_millis(check.interval_ms.clamp(100, 3_600_000)),
        };
        tokio::time::sleep(interval.saturating_sub(asked.elapsed()).max(Duration::from_millis(10))).await;
    }
}

/// Passes and failures in a row.
#[derive(Debug, Default)]
struct Counts {
    passes: u32,
    failures: u32,
    adopted: bool,
}

impl Counts {
    fn judge(&mut self, state: HealthState, passed: bool, check: &HealthCheck, in_grace: bool) -> HealthState {
        let adopted = std::mem::take(&mut self.adopted);
        if passed {
            self.failures = 0;
            self.passes = self.passes.saturating_add(1);
            return match state {
                HealthState::Up => HealthState::Up,
                _ if adopted || self.passes >= check.healthy_threshold.max(1) => HealthState::Up,
                HealthState::Unknown => HealthState::Starting,
                state => state,
            };
        }
        self.passes = 0;
        if state != HealthState::Up && in_grace {
            return if state == HealthState::Unknown { HealthState::Starting } else { state };
        }
        self.failures = self.failures.saturating_add(1);
        if self.failures >= check.unhealthy_threshold.max(1) {
            return HealthState::Down;
        }
        if state == HealthState::Unknown { HealthState::Starting } else { state }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check() -> HealthCheck {
        HealthCheck {
            probe: Probe::Tcp {},
            interval_ms: 1_000,
            timeout_ms: 1_000,
            healthy_threshold: 2,
            unhealthy_threshold: 3,
            start_grace_ms: 10_000,
        }
    }

    fn walk(counts: &mut Counts, from: HealthState, in_grace: bool, seen: &[bool]) -> HealthState {
        seen.iter().fold(from, |state, passed| counts.judge(state, *passed, &check(), in_grace))
    }

    #[test]
    fn thresholds_are_counted_in_a_row() {
        use HealthState::{Down, Starting, Up};
        let cases: [(HealthState, bool, &[bool], HealthState); 8] = [
            (Starting, true, &[true], Starting),
            (Starting, true, &[true, true], Up),
            (Starting, true, &[true, false, true], Starting),
            (Starting, true, &[false; 9], Starting),
            (Starting, false, &[false; 3], Down),
            (Up, true, &[false, false], Up),
            (Up, false, &[false, false, true, false, false], Up),
            (Up, true, &[false; 3], Down),
        ];
        for (from, in_grace, seen, to) in cases {
            assert_eq!(walk(&mut Counts::default(), from, in_grace, seen), to, "{from:?} {seen:?}");
        }
        assert_eq!(walk(&mut Counts::default(), Down, false, &[true, true]), Up);
    }

    #[test]
    fn one_that_was_found_running_is_up_at_the_first_pass() {
        let mut counts = Counts { adopted: true, ..Counts::default() };
        assert_eq!(walk(&mut counts, HealthState::Unknown, false, &[true]), HealthState::Up);
        let mut counts = Counts { adopted: true, ..Counts::default() };
        assert_eq!(walk(&mut counts, HealthState::Unknown, false, &[false]), HealthState::Starting);
    }
}
