//! Who lives: this owner beats, and forgets owners whose beat it has seen stand still for a full
//! lease on its own monotonic clock. No two machines' clocks are compared. It looks more often than
//! anybody beats, so that little more than a lease passes from a last beat to the takeover.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::runner::Shared;
use crate::model::OwnerId;
use crate::store::Error;

/// Where the database has one user only, everybody else is dead.
pub(super) async fn at_start(shared: &Shared) -> Result<(), Error> {
    if !shared.options.sole_owner {
        return Ok(());
    }
    for (owner, _) in shared.store.owners().await? {
        if owner != shared.owner {
            shared.store.owner_forget(owner).await?;
        }
    }
    Ok(())
}

/// What this server has seen of the others, and when it last renewed its own lease.
#[derive(Debug, Default)]
pub(super) struct Owners {
    seen: Observed,
    renewed: Option<Instant>,
}

/// One beat, and one look at the others.
pub(super) async fn renew(shared: &Shared) -> Result<(), Error> {
    round(shared, |_| true).await
}

/// Beats and looks until it is dropped; where a job renews, it beats only when that is late: a
/// scheduler that has lost its way, or a machine's clock that was put back, must not cost the lease.
pub(super) async fn watch(shared: Arc<Shared>) {
    let lease = shared.options.lease;
    let (step, patience) = (lease / LOOKS, if shared.options.renewed_by_job { lease / 2 } else { lease / 3 });
    // What is left of it at the next look would be late by then.
    let patience = patience.saturating_sub(step / 2);
    let mut look = tokio::time::interval(step.max(Duration::from_millis(10)));
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        let late = |renewed: Option<Instant>| renewed.is_none_or(|renewed| renewed.elapsed() >= patience);
        if let Err(error) = round(&shared, late).await {
            tracing::warn!("owners could not be watched: {error}");
        }
    }
}

/// Looks at the other owners within a lease.
const LOOKS: u32 = 15;

/// A look at the others, after a beat if that is `late`, given when the last one was.
async fn round(shared: &Shared, late: impl FnOnce(Option<Instant>) -> bool) -> Result<(), Error> {
    shared.alive().await;
    let mut owners = shared.owners.lock().await;
    let Some(Owners { seen, renewed }) = owners.as_mut() else { return Ok(()) };
    let began = Instant::now();
    if late(*renewed) {
        if !shared.store.owner_beat(shared.owner).await? {
            // Somebody took this server for dead. What was taken over is guarded by its lease number.
            tracing::warn!("this server was taken for dead, and registers again");
            shared.store.owner_register(shared.owner, &shared.options.serves).await?;
        }
        *renewed = Some(began);
    }
    if shared.options.sole_owner {
        return Ok(());
    }
    let others = shared.store.owners().await?.into_iter().filter(|(owner, _)| *owner != shared.owner);
    for dead in seen.dead(others, Instant::now(), shared.options.lease) {
        tracing::info!("owner {dead} has not beaten for a full lease: its executions are free");
        shared.store.owner_forget(dead).await?;
        shared.freed.notify_one();
    }
    shared.alone.store(seen.0.is_empty(), Ordering::Relaxed);
    Ok(())
}

/// Beats of others, and since when they stand where they stand.
#[derive(Debug, Default)]
struct Observed(HashMap<OwnerId, (i64, Instant)>);

impl Observed {
    fn dead(&mut self, owners: impl Iterator<Item = (OwnerId, i64)>, now: Instant, lease: Duration) -> Vec<OwnerId> {
        let before = std::mem::take(&mut self.0);
        let mut dead = Vec::new();
        for (owner, beat) in owners {
            let since = before.get(&owner).filter(|(present, _)| *present == beat).map_or(now, |(_, since)| *since);
            if now.duration_since(since) >= lease {
                dead.push(owner);
            } else {
                self.0.insert(owner, (beat, since));
            }
        }
        dead
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_dead_when_its_beat_stood_still_for_a_full_lease() {
        let (lease, start) = (Duration::from_secs(15), Instant::now());
        let (still, lively) = (OwnerId::new(), OwnerId::new());
        let mut seen = Observed::default();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut look = |seconds, beat| seen.dead([(still, 7), (lively, beat)].into_iter(), at(seconds), lease);
        assert_eq!(look(0, 1), []);
        assert_eq!(look(10, 2), []);
        assert_eq!(look(14, 2), []);
        assert_eq!(look(15, 3), [still]);
        // Once forgotten and back, it has a full lease again.
        assert_eq!(look(16, 3), []);
        assert_eq!(look(30, 3), [lively]);
    }
}
