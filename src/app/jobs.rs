//! What is done now and then: retention, the sweep for triggers, the renewal of leases.

use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::clock::Clock;
use crate::config::Config;
use crate::engine::Engine;
use crate::housekeeping::Job;
use crate::store::{self, Store};
use crate::triggers::Dispatcher;

/// From one look for old executions to the next.
const RETENTION_EVERY: Duration = Duration::from_secs(60 * 60);
/// From one look for what the triggers' timer missed to the next.
const SWEEP_EVERY: Duration = Duration::from_secs(30);
/// Slots of triggers are remembered for this long, so that none is started twice.
const SLOTS_KEPT: TimeDelta = TimeDelta::days(7);
/// Executions deleted in one go, so that other commits get between.
const RETENTION_BATCH: u64 = 100;

/// For how long what is kept; None: for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Keep {
    /// Finished executions, messages to people, and revisions of pipelines that none of those names.
    executions: Option<Duration>,
    /// Entries of the audit log.
    audit: Option<Duration>,
}

impl Keep {
    pub fn of(config: &Config) -> Self {
        Self { executions: config.data.retention, audit: config.data.audit_retention }
    }
}

/// What is done now and then.
pub(super) fn jobs(
    store: &Store,
    clock: &Clock,
    (keep, prune_now): (watch::Receiver<Keep>, Arc<Notify>),
    engine: &Engine,
    dispatcher: &Dispatcher,
    stopping: &CancellationToken,
) -> Vec<Job> {
    let stopping = stopping.clone();
    let (store, clock, engine, dispatcher) = (store.clone(), clock.clone(), engine.clone(), dispatcher.clone());
    let renew_every = engine.renew_every();
    vec![
        Job::new("retention", RETENTION_EVERY, move || {
            let (store, clock, keep) = (store.clone(), clock.clone(), *keep.borrow());
            async move { prune(&store, &clock, keep).await.map_err(|error| error.to_string()) }
        })
        .on(prune_now),
        Job::new("sweep for triggers", SWEEP_EVERY, move || {
            let (dispatcher, stopping) = (dispatcher.clone(), stopping.clone());
            async move {
                // A server that is to end starts nothing by itself.
                if stopping.is_cancelled() {
                    return Ok(());
                }
                dispatcher.sweep().await.map_err(|error| error.to_string())
            }
        }),
        Job::new("renewal of leases", renew_every, move || {
            let engine = engine.clone();
            async move { engine.renew().await.map_err(|error| error.to_string()) }
        }),
    ]
}

async fn prune(store: &Store, clock: &Clock, keep: Keep) -> Result<(), store::Error> {
    let before = |keep: Option<Duration>| {
        keep.and_then(|keep| TimeDelta::from_std(keep).ok()).and_then(|keep| clock.now().checked_sub_signed(keep))
    };
    // Keys end after a day, however long the executions stay.
    store.prune_idempotency().await?;
    store.prune_slots(clock.now() - SLOTS_KEPT).await?;
    if let Some(before) = before(keep.executions) {
        let mut deleted = 0;
        loop {
            match store.prune_executions(before, RETENTION_BATCH).await? {
                0 => break,
                count => deleted += count,
            }
        }
        let messages = store.prune_notifications(before).await?;
        let revisions = store.prune_revisions(before).await?;
        if revisions > 0 {
            info!("{revisions} old revisions of pipelines were deleted, which no kept execution names");
        }
        if deleted + messages > 0 {
            info!("{deleted} finished executions and {messages} messages were deleted, their time being over");
        }
    }
    if let Some(before) = before(keep.audit) {
        let deleted = store.prune_audit(before).await?;
        if deleted > 0 {
            info!("{deleted} entries of the audit log were deleted, their time being over");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::GRACE;
    use super::super::principals::{ADMIN, local_actor};
    use super::*;
    use crate::auth::token;
    use crate::model::{PrincipalKind, Role};
    use crate::store::{Durability, Options};
    use crate::{engine, housekeeping, triggers};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_jobs_of_a_server_delete_what_is_old_and_at_once_when_less_is_kept() {
        let data_dir = std::env::temp_dir().join(format!("gennaker-jobs-{}", uuid::Uuid::new_v4().simple()));
        let options =
            Options { database_url: None, data_dir: data_dir.clone(), durability: Durability::Normal, queue_max: 64 };
        let clock = Clock::manual("2026-11-22T10:00:00Z".parse().expect("an instant"));
        let store = Store::open(&options, clock.clone()).await.expect("opens");
        // Its making is an entry of the audit log.
        let local = local_actor(&store, &clock).await.expect("made");
        let make = async |name: &str| {
            let made = token::ensure_principal(&store, &local, name, PrincipalKind::User, &[Role::Admin], clock.now());
            made.await.map(|_| ()).expect("made");
        };
        make(ADMIN).await;
        let page = store::PageRequest { after: None, before: None, limit: 10, backward: false };
        assert!(store.audit(&page).await.expect("read").total > 0);
        clock.advance(Duration::from_secs(3 * 24 * 3600));
        let registry = triggers::kinds(engine::contract::Registry::default());
        let engine = Engine::new(engine::Options::default(), store.clone(), registry.clone(), clock.clone());
        let dispatcher = Dispatcher::new(store.clone(), engine.commands(), registry, clock.clone(), engine.slots());
        let day = Some(Duration::from_secs(24 * 3600));
        let keep = watch::Sender::new(Keep { executions: day, audit: day });
        let ask = Arc::new(Notify::new());
        let retention = (keep.subscribe(), Arc::clone(&ask));
        let jobs = jobs(&store, &clock, retention, &engine, &dispatcher, &CancellationToken::new());
        let stop = CancellationToken::new();
        let running = tokio::spawn(housekeeping::run(jobs, stop.clone()));
        let emptied = async || {
            let start = std::time::Instant::now();
            while store.audit(&page).await.expect("read").total > 0 {
                assert!(start.elapsed() < Duration::from_secs(20), "retention comes");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        emptied().await;
        // The next time is in an hour; another setting does not wait for it.
        make("another").await;
        clock.advance(Duration::from_secs(12 * 3600));
        keep.send_replace(Keep { executions: day, audit: Some(Duration::from_secs(3600)) });
        ask.notify_one();
        emptied().await;
        stop.cancel();
        tokio::time::timeout(GRACE, running).await.expect("ends within its grace").expect("no panic");
        store.close().await;
        std::fs::remove_dir_all(data_dir).expect("removed");
    }
}
