//! Acts upon slots: sleeps until the earliest instant of all timetables, is woken by saves and by
//! ends of executions, and looks again when the sweep says so, since other servers save too.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::StreamExt;
use tokio::sync::{Mutex, Notify};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::engine::commands::{Commands, Error, Slot};
use crate::engine::contract::{Missed, Registry, Timetable, When};
use crate::model::{PendingSlot, Trigger};
use crate::store::{self, Store};

/// A slot this late was missed: no server was there, or its clock was set forward. More than the
/// sweep's period, so that what the timer missed is not lost.
pub(super) const LATE: TimeDelta = TimeDelta::seconds(60);
/// Triggers read in one go.
const BATCH: u64 = 200;
/// Starts under way at once.
const AT_ONCE: usize = 16;
/// After a pass that met an error.
const AGAIN: Duration = Duration::from_secs(2);

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
}

impl Dispatcher {
    /// `wake`: told when something was saved or has ended (see [`crate::engine::Engine::slots`]).
    #[must_use]
    pub fn new(store: Store, commands: Commands, registry: Registry, clock: Clock, wake: Arc<Notify>) -> Self {
        Self { store, commands, registry, clock, wake, turn: Arc::default() }
    }

    /// The timer: acts upon each slot in its time, until it is told to stop.
    pub async fn run(&self, stop: CancellationToken) {
        loop {
            // A pass is not cut short: what it has begun is over within the store's deadlines.
            let next = match self.pass().await {
                Ok(next) => next,
                Err(error) => {
                    tracing::warn!("triggers could not be looked at; trying again: {error}");
                    self.clock.now().checked_add_signed(TimeDelta::from_std(AGAIN).unwrap_or_default())
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
        loop {
            let now = self.clock.now();
            let mut due = self.store.triggers_due(now, BATCH).await?;
            let mut pending = self.store.slots_pending(BATCH).await?;
            // What is there again, although it was acted upon, waits for the next pass.
            due.retain(|trigger| seen.insert((trigger.id, trigger.next_at, None)));
            pending.retain(|slot| seen.insert((slot.trigger.id, None, Some(slot.source))));
            if due.is_empty() && pending.is_empty() {
                return Ok(self.store.trigger_next().await?);
            }
            let instants = due.iter().map(|trigger| self.instant(trigger, now)).collect::<Vec<_>>();
            let ends = pending.iter().map(|slot| self.end(slot)).collect::<Vec<_>>();
            let instants: Vec<_> = futures_util::stream::iter(instants).buffer_unordered(AT_ONCE).collect().await;
            let ends: Vec<_> = futures_util::stream::iter(ends).buffer_unordered(AT_ONCE).collect().await;
            instants.into_iter().chain(ends).collect::<Result<(), Error>>()?;
        }
    }

    async fn end(&self, slot: &PendingSlot) -> Result<(), Error> {
        self.commands.fire_trigger(&slot.trigger, &Slot::Ended(slot.source)).await.map(|_| ())
    }

    /// A timetable's slot has come, and maybe others before it.
    async fn instant(&self, trigger: &Trigger, now: DateTime<Utc>) -> Result<(), Error> {
        let Some(due) = trigger.next_at else { return Ok(()) };
        let Some(table) = table(&self.store, &self.registry, trigger).await? else {
            // Saved anew it gets its next instant, where its kind is known.
            return self.commands.pass_trigger(trigger, due, None, None).await;
        };
        let next = table.next(now);
        // Of several at once only the last is worth a start.
        let at = table.last(now).filter(|last| *last > due).unwrap_or(due);
        let late = now - at > LATE;
        if late && table.missed() == Missed::Skip {
            tracing::warn!(trigger.id = %trigger.id, "trigger `{}` missed its slot of {at}, and lets it go", trigger.key);
            return self.commands.pass_trigger(trigger, due, next, Some(at)).await;
        }
        let slot = Slot::Time { at, due, next, late };
        self.commands.fire_trigger(trigger, &slot).await.map(|_| ())
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
