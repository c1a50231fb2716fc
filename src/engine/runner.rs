//! Makes it happen: registers this start of the server, claims what is due, and gives each
//! claimed execution a worker. The periodic scan is the truth; signals and timers shorten waits.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::contract::Registry;
use super::sweep::{self, Pulse};
use super::timers::Timers;
use super::worker::{self, Message, Sender};
use super::{Options, Topics, ended, recovery};
use crate::clock::Clock;
use crate::measure;
use crate::model::{ExecutionId, OwnerId};
use crate::store::{Error, Store};

/// Executions a scan looks for beyond those in memory, which may all be due themselves.
const SCAN: usize = 256;
/// More than a notice takes from one server to another and a claim after it.
const POLITENESS_MS: i64 = 5;

fn to_u64(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// What all workers of an engine share.
pub(super) struct Shared {
    pub options: Options,
    pub store: Store,
    pub registry: Registry,
    pub clock: Clock,
    pub owner: OwnerId,
    pub topics: Topics,
    /// Told when a trigger may have something to do.
    pub slots: Arc<Notify>,
    /// Steps under way.
    pub permits: Semaphore,
    /// No new steps; those under way may end.
    pub stopping: CancellationToken,
    /// Whoever runs the engine has asked for its end; `stopping` follows as soon as that is heard.
    stop: OnceLock<CancellationToken>,
    /// When that was said.
    pub stopping_since: OnceLock<tokio::time::Instant>,
    /// What was seen of other owners, once this one is registered.
    pub owners: tokio::sync::Mutex<Option<recovery::Owners>>,
    /// No other owner was seen at the last look.
    pub alone: AtomicBool,
    /// Told when executions of an owner that was taken for dead are free.
    pub freed: Notify,
    /// A crash hook has spoken: nothing is written or called any more.
    pub dead: CancellationToken,
    pub pulse: Arc<Pulse>,
    active: Mutex<HashMap<ExecutionId, Handle>>,
    serial: AtomicU64,
}

/// A worker as others see it.
#[derive(Clone)]
pub(super) struct Handle {
    pub serial: u64,
    pub sender: Sender,
    /// What the worker wrote as the execution's `wake_at`, in microseconds.
    wake: Arc<AtomicI64>,
}

impl Handle {
    /// Whether this worker has written an instant that has come.
    pub fn was_due(&self, now: DateTime<Utc>) -> bool {
        let written = self.wake.load(Ordering::Relaxed);
        written != i64::MIN && written <= now.timestamp_micros()
    }

    /// Remembers what was written.
    pub fn wakes(&self, at: Option<DateTime<Utc>>) {
        self.wake.store(at.map_or(i64::MAX, |at| at.timestamp_micros()), Ordering::Relaxed);
    }
}

impl Shared {
    pub fn new(options: Options, store: Store, registry: Registry, clock: Clock) -> Self {
        Self {
            permits: Semaphore::new(options.concurrency.max(1)),
            options,
            store,
            registry,
            clock,
            owner: OwnerId::new(),
            topics: Topics::default(),
            slots: Arc::default(),
            stopping: CancellationToken::new(),
            stop: OnceLock::new(),
            stopping_since: OnceLock::new(),
            owners: tokio::sync::Mutex::default(),
            alone: AtomicBool::new(true),
            freed: Notify::new(),
            dead: CancellationToken::new(),
            pulse: Arc::default(),
            active: Mutex::default(),
            serial: AtomicU64::new(0),
        }
    }

    /// The executions in memory.
    pub fn active(&self) -> MutexGuard<'_, HashMap<ExecutionId, Handle>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The worker of that serial number has left.
    pub fn forget(&self, id: ExecutionId, serial: u64) {
        let mut active = self.active();
        if active.get(&id).is_some_and(|handle| handle.serial == serial) {
            active.remove(&id);
        }
    }

    /// Nothing is begun from here on; since when, if it was said before.
    pub fn drain(&self) -> tokio::time::Instant {
        self.stopping.cancel();
        *self.stopping_since.get_or_init(tokio::time::Instant::now)
    }

    /// Whether anything new may be begun.
    pub fn is_stopping(&self) -> bool {
        self.stopping.is_cancelled() || self.stop.get().is_some_and(CancellationToken::is_cancelled)
    }

    /// From here on the engine does nothing, as if it were killed.
    pub fn die(&self) {
        self.dead.cancel();
    }

    /// Returns at once while the engine lives, never afterwards.
    pub async fn alive(&self) {
        if self.dead.is_cancelled() {
            std::future::pending::<()>().await;
        }
    }
}

/// See [`super::Engine::run`].
pub(super) async fn run(shared: &Arc<Shared>, stop: CancellationToken) -> Result<(), Error> {
    let mut work = shared.store.work();
    // An engine runs once.
    let _ = shared.stop.set(stop.clone());
    shared.store.owner_register(shared.owner, &shared.options.serves).await?;
    recovery::at_start(shared).await?;
    *shared.owners.lock().await = Some(recovery::Owners::default());
    measure::engine::kinds(shared.registry.names());
    let _beating = shared.pulse.begin();
    let mut watchers = JoinSet::new();
    watchers.spawn(sweep::run(Arc::clone(shared)));
    watchers.spawn({
        let shared = Arc::clone(shared);
        async move {
            if let Err(error) = ended::tell_again(&shared).await {
                tracing::warn!("what ended before the start cannot be told again: {error}");
            }
        }
    });

    let mut runner = Runner {
        shared: Arc::clone(shared),
        workers: JoinSet::new(),
        tasks: HashMap::new(),
        timers: Timers::default(),
        faults: HashMap::new(),
    };
    let mut owners = JoinSet::new();
    owners.spawn(recovery::watch(Arc::clone(shared)));
    let mut scan = tokio::time::interval(shared.options.scan_every);
    scan.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let next = runner.timers.next();
        tokio::select! {
            () = shared.dead.cancelled() => break,
            () = stop.cancelled() => break,
            heard = work.recv() => match heard {
                Ok(id) => match runner.after_you(id) {
                    Some(at) => runner.timers.add(at, id),
                    None => runner.wake(id, false),
                },
                Err(RecvError::Lagged(_)) => scan.reset_immediately(),
                Err(RecvError::Closed) => tokio::time::sleep(shared.options.scan_every).await,
            },
            () = sleep_until(shared, next) => {
                let now = shared.clock.now();
                while let Some(id) = runner.timers.due(now) {
                    runner.wake(id, false);
                }
            }
            _ = scan.tick() => runner.scan().await,
            () = shared.freed.notified() => scan.reset_immediately(),
            Some(joined) = runner.workers.join_next_with_id() => {
                if runner.left(joined) {
                    scan.reset_immediately();
                }
            }
            _ = owners.join_next(), if !owners.is_empty() => {
                // It ends only when it is aborted or by a panic: beat again rather than be taken for dead.
                owners.spawn(recovery::watch(Arc::clone(shared)));
            }
        }
    }
    if shared.dead.is_cancelled() {
        // As if killed: the tasks are dropped where they are.
        runner.workers.abort_all();
        while runner.workers.join_next().await.is_some() {}
        return Ok(());
    }
    let grace_ends = shared.drain() + shared.options.stop_grace;
    let ended = async { while runner.workers.join_next().await.is_some() {} };
    let in_time = tokio::select! {
        ended = tokio::time::timeout_at(grace_ends, ended) => ended.is_ok(),
        () = shared.dead.cancelled() => false,
    };
    runner.workers.abort_all();
    while runner.workers.join_next().await.is_some() {}
    if !in_time {
        tracing::warn!("steps under way did not end in time; they are taken up again at the next start");
    }
    // Nobody renews from here on.
    *shared.owners.lock().await = None;
    if !shared.dead.is_cancelled()
        && let Err(error) = shared.store.owner_forget(shared.owner).await
    {
        tracing::warn!("the executions are free only when the lease is over: {error}");
    }
    Ok(())
}

async fn sleep_until(shared: &Shared, at: Option<DateTime<Utc>>) {
    match at {
        Some(at) => shared.clock.sleep_until(at).await,
        None => std::future::pending().await,
    }
}

type Joined = Result<(tokio::task::Id, (ExecutionId, Option<DateTime<Utc>>)), tokio::task::JoinError>;

struct Runner {
    shared: Arc<Shared>,
    workers: JoinSet<(ExecutionId, Option<DateTime<Utc>>)>,
    tasks: HashMap<tokio::task::Id, (ExecutionId, u64)>,
    timers: Timers,
    /// Executions whose worker ended by a fault: how often in a row, and when they are taken up
    /// again at the earliest.
    faults: HashMap<ExecutionId, (u32, tokio::time::Instant)>,
}

impl Runner {
    /// Tells the execution's worker, or makes one. `due`: the scan found it, which says nothing new
    /// of one in memory that has something to do anyway.
    fn wake(&mut self, id: ExecutionId, due: bool) {
        let shared = Arc::clone(&self.shared);
        // What is under way hears of it; nothing else is begun any more.
        if shared.is_stopping() && !shared.active().contains_key(&id) {
            return;
        }
        let mut active = shared.active();
        if let Some(handle) = active.get(&id) {
            let now = if due { shared.clock.now().timestamp_micros() } else { i64::MIN };
            if handle.wake.load(Ordering::Relaxed) > now || !due {
                // A worker that is leaving is found gone by the next scan.
                let _ = handle.sender.send(Message::Changed);
            }
            return;
        }
        let rests = self.faults.get(&id).is_some_and(|(_, until)| *until > tokio::time::Instant::now());
        if rests || active.len() >= shared.options.active_max {
            return; // the scan finds it again
        }
        let (sender, inbox) = mpsc::unbounded_channel();
        let serial = shared.serial.fetch_add(1, Ordering::Relaxed);
        let handle = Handle { serial, sender, wake: Arc::new(AtomicI64::new(i64::MIN)) };
        active.insert(id, handle.clone());
        drop(active);
        let span = tracing::error_span!(
            "execution",
            execution.id = %id,
            execution.number = tracing::field::Empty,
            application = tracing::field::Empty,
        );
        let work = worker::run(shared, id, handle, inbox).instrument(span);
        let task = self.workers.spawn(async move { (id, work.await) });
        self.tasks.insert(task.id(), (id, serial));
    }

    /// Where others share the work, a server lets the less busy take what is new: it waits a little
    /// longer with each doubling of what it has. None: it has that one, or nobody to wait for.
    fn after_you(&self, id: ExecutionId) -> Option<DateTime<Utc>> {
        let active = self.shared.active();
        if self.shared.alone.load(Ordering::Relaxed) || active.is_empty() || active.contains_key(&id) {
            return None;
        }
        let doublings = i64::from(active.len().ilog2()) + 1;
        Some(self.shared.clock.now() + TimeDelta::milliseconds(POLITENESS_MS * doublings))
    }

    /// Takes up what is due, until nothing new is found or the memory is full.
    async fn scan(&mut self) {
        let shared = Arc::clone(&self.shared);
        let since = tokio::time::Instant::now();
        loop {
            let active = shared.active().len();
            let limit = active + SCAN;
            let due = shared.store.executions_due(shared.owner, shared.clock.now(), to_u64(limit)).await;
            let due = match due {
                Ok(due) => due,
                Err(error) => return tracing::warn!("due executions could not be read: {error}"),
            };
            let full = due.len() >= limit;
            due.into_iter().for_each(|id| self.wake(id, true));
            if !full || shared.active().len() <= active {
                shared.pulse.scanned();
                return measure::engine::scanned(since.elapsed());
            }
        }
    }

    /// A worker has ended. True: others may be waiting for its place.
    fn left(&mut self, joined: Joined) -> bool {
        let full = self.shared.active().len() + 1 >= self.shared.options.active_max;
        match joined {
            Ok((task, (id, at))) => {
                self.tasks.remove(&task);
                self.faults.remove(&id);
                if let Some(at) = at {
                    self.timers.add(at, id);
                }
            }
            Err(error) => {
                if let Some((id, serial)) = self.tasks.remove(&error.id()) {
                    let (times, until) = self.faults.entry(id).or_insert((0, tokio::time::Instant::now()));
                    *times += 1;
                    let rest = Duration::from_secs(1 << (*times).min(6));
                    *until = tokio::time::Instant::now() + rest;
                    tracing::error!(
                        execution.id = %id,
                        "the worker of an execution ended by a fault, {times} times in a row; it rests for {rest:?}: {error}"
                    );
                    self.shared.forget(id, serial);
                }
            }
        }
        full
    }
}
