//! What a database that was just restored would start again: slots that had not come when the
//! backup was made, and ends of executions that were still to be acted upon. They may have been
//! acted upon since, which the database does not know.

use chrono::{DateTime, SecondsFormat, Utc};

use super::dispatch::{LATE, table};
use crate::engine::contract::{Missed, Registry};
use crate::model::Trigger;
use crate::store::{Commit, Error, Guard, SlotOutcome, Store, Write};

/// Of each kind, at most.
const MAX: u64 = 10_000;
const WHY: &str = "held back by `gennaker restore --hold`: it may have been started after the backup";

/// Tells of each, and with `hold` lets it go by.
///
/// # Errors
/// When the database cannot be read or written.
pub async fn restored(
    store: &Store,
    registry: &Registry,
    now: DateTime<Utc>,
    hold: bool,
) -> Result<Vec<String>, Error> {
    let mut told = Vec::new();
    // What cannot be read starts nothing.
    for trigger in store.triggers_due(now, MAX).await?.into_iter().flatten() {
        let (Some(due), Some(table)) = (trigger.next_at, table(store, registry, &trigger).await?) else { continue };
        if table.missed() == Missed::Skip && now - due > LATE {
            continue; // it is let go by in any case
        }
        let at = due.to_rfc3339_opts(SecondsFormat::AutoSi, true);
        told.push(format!("{}: was due at {at}", title(store, &trigger).await?));
        if hold {
            let trigger = trigger.id;
            let write = Write::MoveTrigger { trigger, next_at: table.next(now), missed: Some(due) };
            let guards = vec![Guard::TriggerDue { trigger, next_at: due }];
            store.commit(Commit { guards, writes: vec![write], events: Vec::new() }).await?;
        }
    }
    for pending in store.slots_pending(MAX).await?.into_iter().flatten() {
        let slot = pending.source.to_string();
        told.push(format!("{}: waits to act upon the end of {slot}", title(store, &pending.trigger).await?));
        if hold {
            let trigger = pending.trigger.id;
            let outcome = SlotOutcome::Refused(WHY.to_owned());
            let guards = vec![Guard::SlotPending { trigger, slot: slot.clone() }];
            let writes = vec![Write::CloseSlot { trigger, slot, at: now, outcome }];
            store.commit(Commit { guards, writes, events: Vec::new() }).await?;
        }
    }
    Ok(told)
}

async fn title(store: &Store, trigger: &Trigger) -> Result<String, Error> {
    let pipeline = store.pipeline(trigger.pipeline).await?;
    let name = pipeline.map_or_else(String::new, |found| format!("{}/{} ", found.application_name, found.name));
    Ok(format!("trigger {name}`{}`", trigger.key))
}
