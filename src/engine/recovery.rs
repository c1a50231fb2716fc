//! Who lives: this owner beats, and forgets owners whose beat it has seen stand still for a full
//! lease on its own monotonic clock. No two machines' clocks are compared.

use std::collections::HashMap;
use std::sync::Arc;
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
    shared.alive().await;
    let mut owners = shared.owners.lock().await;
    let Some(owners) = owners.as_mut() else { return Ok(()) };
    let began = Instant::now();
    round(shared, &mut owners.seen).await?;
    owners.renewed = Some(began);
    Ok(())
}

/// Beats and watches until it is dropped; where a job renews, only when that is late: a scheduler
/// that has lost its way, or a machine's clock that was put back, must not cost the lease.
pub(super) async fn watch(shared: Arc<Shared>) {
    let mut beat = tokio::time::interval((shared.options.lease / 3).max(Duration::from_millis(10)));
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        beat.tick().await;
        if shared.options.renewed_by_job && renewed_lately(&shared).await {
            continue;
        }
        if let Err(error) = renew(&shared).await {
            tracing::warn!("owners could not be watched: {error}");
        }
    }
}

async fn renewed_lately(shared: &Shared) -> bool {
    let owners = shared.owners.lock().await;
    let renewed = owners.as_ref().and_then(|owners| owners.renewed);
    renewed.is_some_and(|renewed| renewed.elapsed() < shared.options.lease / 2)
}

async fn round(shared: &Shared, seen: &mut Observed) -> Result<(), Error> {
    let beat = shared.store.owner_beat(shared.owner).await;
    let owners = shared.store.owners().await?;
    if owners.iter().all(|(owner, _)| *owner != shared.owner) {
        // Somebody took this server for dead. What was taken over is guarded by its lease number.
        tracing::warn!("this server was taken for dead, and registers again");
        shared.store.owner_register(shared.owner).await?;
    } else {
        beat?;
    }
    let others = owners.into_iter().filter(|(owner, _)| *owner != shared.owner);
    for dead in seen.dead(others, Instant::now(), shared.options.lease) {
        tracing::info!("owner {dead} has not beaten for a full lease: its executions are free");
        shared.store.owner_forget(dead).await?;
    }
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
