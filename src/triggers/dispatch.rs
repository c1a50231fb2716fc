//! Acts upon slots: sleeps until the earliest instant of all timetables, is woken by saves and by
//! ends of executions, and looks again when the sweep says so, since other servers save too.
//!
//! A trigger that cannot be read (its row, its pipeline, the execution whose end it waits for) is
//! left out, and told of once an hour, until it can be.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError};

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::StreamExt;
use tokio::sync::{Mutex, Notify};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::engine::commands::{Commands, Error, Slot};
use crate::engine::contract::{Missed, Registry, Timetable, When};
use crate::measure::{self, Invariant};
use crate::model::{ExecutionId, PendingSlot, Trigger, TriggerId};
use crate::store::{self, Store, Unreadable};

/// A slot this late was missed: no server was there, or its clock was set forward. More than the
/// sweep's period, so that what the timer missed is not lost.
pub(super) const LATE: TimeDelta = TimeDelta::seconds(60);
/// Triggers read in one go.
const BATCH: u64 = 200;
/// Starts under way at once.
const AT_ONCE: usize = 16;
/// After a pass that met an error, or something that cannot be read.
const AGAIN: TimeDelta = TimeDelta::seconds(2);
/// From one word about a trigger that cannot be read to the next.
const TELL_EVERY: TimeDelta = TimeDelta::hours(1);

/// Starts what is due. Cheap to clone.
#[derive(Clone)]
pub struct Dispatcher {
    store: Store,
    commands: Commands,
    registry: Registry,
    clock: Clock,
    wake: Arc<Notify>,
    /// One pass at a time in this server; between servers the commits decide.
    turn: Arc<Mutex<()>>,
    /// When it was last told of which triggers that they cannot be read.
    told: Arc<std::sync::Mutex<HashMap<Option<TriggerId>, DateTime<Utc>>>>,
}

impl Dispatcher {
    /// `wake`: told when something was saved or has ended (see [`crate::engine::Engine::slots`]).
    #[must_use]
    pub fn new(store: Store, commands: Commands, registry: Registry, clock: Clock, wake: Arc<Notify>) -> Self {
        Self { store, commands, registry, clock, wake, turn: Arc::default(), told: Arc::default() }
    }

    /// The timer: acts upon each slot in its time, until it is told to stop.
    pub async fn run(&self, stop: CancellationToken) {
        loop {
            // A pass is not cut short: what it has begun is over within the store's deadlines.
            let next = match self.pass().await {
                Ok(next) => next,
                Err(error) => {
                    tracing::warn!("triggers could not be looked at; trying again: {error}");
                    Some(self.clock.now() + AGAIN)
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.wake.notified() => {}
                () = self.sleep_until(next) => {}
            }
        }
    }

    /// Catches what the timer missed, and lets it look again.
    ///
    /// # Errors
    /// When the database cannot be read, or a slot could not be acted upon now.
    pub async fn sweep(&self) -> Result<(), Error> {
        let next = self.pass().await;
        self.wake.notify_one();
        next.map(|_| ())
    }

    async fn sleep_until(&self, at: Option<DateTime<Utc>>) {
        match at {
            Some(at) => self.clock.sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    /// Acts upon all that is due; the next instant of all timetables.
    ///
    /// # Errors
    /// When the database cannot be read, or a slot could not be acted upon now.
    pub async fn pass(&self) -> Result<Option<DateTime<Utc>>, Error> {
        let _turn = self.turn.lock().await;
        let mut seen = HashSet::new();
        let mut all_read = true;
        loop {
            let now = self.clock.now();
            let mut due = self.read(self.store.triggers_due(now, BATCH).await?, &mut all_read);
            let mut pending = self.read(self.store.slots_pending(BATCH).await?, &mut all_read);
            // What is there again, although it was acted upon, waits for the next pass.
            due.retain(|trigger| seen.insert((trigger.id, trigger.next_at, None)));
            pending.retain(|slot| seen.insert((slot.trigger.id, None, Some(slot.source))));
            if due.is_empty() && pending.is_empty() {
                // What cannot be read is due for ever.
                let (from, again) = if all_read { (DateTime::UNIX_EPOCH, None) } else { (now, Some(now + AGAIN)) };
                let next = self.store.trigger_next(from).await?;
                return Ok(next.into_iter().chain(again).min());
            }
            let instants = due.iter().map(|trigger| self.instant(trigger, now)).collect::<Vec<_>>();
            let ends = pending.iter().map(|slot| self.end(slot)).collect::<Vec<_>>();
            let instants: Vec<_> = futures_util::stream::iter(instants).buffer_unordered(AT_ONCE).collect().await;
            let ends: Vec<_> = futures_util::stream::iter(ends).buffer_unordered(AT_ONCE).collect().await;
            for read in instants.into_iter().chain(ends) {
                all_read &= read?;
            }
        }
    }

    /// Those that can be read; of the others it is told.
    fn read<T>(&self, found: Vec<Result<T, Unreadable>>, all_read: &mut bool) -> Vec<T> {
        let of = |found: Result<T, Unreadable>| match found {
            Ok(found) => Some(found),
            Err(Unreadable { trigger, error }) => {
                self.tell(trigger, &error);
                *all_read = false;
                None
            }
        };
        found.into_iter().filter_map(of).collect()
    }

    /// Whether what acting upon a trigger needs can be read; if not, it is told.
    async fn can_be_read(&self, trigger: &Trigger, source: Option<ExecutionId>) -> Result<bool, Error> {
        let read = async {
            if let Some(pipeline) = self.store.pipeline(trigger.pipeline).await? {
                self.store.revision(pipeline.id, pipeline.revision).await?;
            }
            if let Some(source) = source {
                self.store.execution(source).await?;
            }
            Ok::<(), store::Error>(())
        };
        match read.await {
            Ok(()) => Ok(true),
            Err(error @ store::Error::Corrupt { .. }) => {
                self.tell(Some(trigger.id), &error);
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn tell(&self, trigger: Option<TriggerId>, error: &store::Error) {
        let now = self.clock.now();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.retain(|_, at| now - *at < TELL_EVERY);
        if told.contains_key(&trigger) {
            return;
        }
        told.insert(trigger, now);
        measure::violated(Invariant::UnreadableRow);
        let id = trigger.map(|id| id.to_string()).unwrap_or_default();
        tracing::error!(
            trigger.id = id,
            "a trigger starts nothing until what is stored of it can be read: {error}; save its pipeline again, or start the newer server that wrote it"
        );
    }

    /// False: it cannot be read.
    async fn end(&self, slot: &PendingSlot) -> Result<bool, Error> {
        if !self.can_be_read(&slot.trigger, Some(slot.source)).await? {
            return Ok(false);
        }
        self.commands.fire_trigger(&slot.trigger, &Slot::Ended(slot.source)).await.map(|_| true)
    }

    /// A timetable's slot has come, and maybe others before it. False: it cannot be read.
    async fn instant(&self, trigger: &Trigger, now: DateTime<Utc>) -> Result<bool, Error> {
        if !self.can_be_read(trigger, None).await? {
            return Ok(false);
        }
        let Some(due) = trigger.next_at else { return Ok(true) };
        let Some(table) = table(&self.store, &self.registry, trigger).await? else {
            // Saved anew it gets its next instant, where its kind is known.
            return self.commands.pass_trigger(trigger, due, None, None).await.map(|()| true);
        };
        let next = table.next(now);
        // Of several at once only the last is worth a start.
        let at = table.last(now).filter(|last| *last > due).unwrap_or(due);
        let late = now - at > LATE;
        if late && table.missed() == Missed::Skip {
            tracing::warn!(trigger.id = %trigger.id, "trigger `{}` missed its slot of {at}, and lets it go", trigger.key);
            return self.commands.pass_trigger(trigger, due, next, Some(at)).await.map(|()| true);
        }
        let slot = Slot::Time { at, due, next, late };
        self.commands.fire_trigger(trigger, &slot).await.map(|_| true)
    }
}

/// The trigger's timetable, if it has one.
pub(super) async fn table(
    store: &Store,
    registry: &Registry,
    trigger: &Trigger,
) -> Result<Option<Box<dyn Timetable>>, store::Error> {
    let Some(pipeline) = store.pipeline(trigger.pipeline).await? else { return Ok(None) };
    let spec = pipeline.definition.triggers.iter().find(|spec| spec.key == trigger.key);
    let known = spec.and_then(|spec| Some((registry.trigger(&spec.kind)?, spec)));
    Ok(known.and_then(|(kind, spec)| match kind.read(&spec.config) {
        Ok(When::Time(table)) => Some(table),
        Ok(When::Ended(_)) | Err(_) => None,
    }))
}
