//! What those who watch the server are told: the checks of `/readyz`, and the metrics that are
//! read when somebody asks. The checks' words are shown to everybody; the log has more.

use std::path::PathBuf;

use tokio_util::sync::CancellationToken;

use super::parts;
use crate::api::probes::Probes;
use crate::clock::Clock;
use crate::engine::Engine;
use crate::measure::text::{Kind, Text};
use crate::measure::{self, process};
use crate::model::{OwnerId, Served};
use crate::providers::host::client::HostProvider;
use crate::store::{self, CommitError, Store};
use crate::telemetry::proxy::Proxies;

/// What is watched.
pub(super) struct Watched {
    pub store: Store,
    pub engine: Engine,
    pub host: HostProvider,
    pub proxies: Proxies,
    /// Cancelled when the server has been asked to end.
    pub stopping: CancellationToken,
    /// What others on the same database are not to have on another host.
    pub serves: Vec<Served>,
    /// The write-ahead log of SQLite.
    pub log: Option<PathBuf>,
    pub clock: Clock,
}

/// All checks and collectors.
pub(super) fn probes(watched: Watched, metrics_public: bool) -> Probes {
    let Watched { store, engine, host, proxies, stopping, serves, log, clock } = watched;
    let (reading, writing, beside, counted) = (store.clone(), store.clone(), store.clone(), store);
    let (running, me) = (engine.clone(), engine.owner());
    let probes = Probes::new(measure::install(), metrics_public)
        .check("server", move || {
            let stopping = stopping.is_cancelled();
            async move { if stopping { Err("the server is ending".to_owned()) } else { Ok(()) } }
        })
        .check("database", move || {
            let store = reading.clone();
            async move { store.check_read().await.map_err(|error| unwell("database", &error)) }
        })
        .check("store", move || {
            let store = writing.clone();
            async move { store.check_write().await.map_err(|error| unwritable(&error)) }
        })
        .check("host", move || {
            let host = host.clone();
            async move { host.reach().await.map_err(ToOwned::to_owned) }
        })
        .check("engine", move || {
            let working = running.is_working().map_err(ToOwned::to_owned);
            async move { working }
        })
        .collect(move || {
            let (store, log, now) = (counted.clone(), log.clone(), clock.now());
            async move { of_store(&store, log, now).await }
        })
        .collect(move || std::future::ready(of_engine(&engine)))
        .collect(move || {
            let mut text = Text::default();
            proxies.write(&mut text);
            process::write(&mut text);
            std::future::ready(text.finish())
        });
    if serves.is_empty() {
        return probes;
    }
    probes.check("location", move || {
        let (store, serves) = (beside.clone(), serves.clone());
        async move { no_rival(&store, me, &serves).await }
    })
}

/// Two servers that began at the same time have not seen each other; one that has just been killed is
/// seen for as long as its lease.
async fn no_rival(store: &Store, me: OwnerId, serves: &[Served]) -> Result<(), String> {
    let rivals = store.owner_rivals(me, serves).await.map_err(|error| unwell("database", &error))?;
    let Some((_, _, their)) = rivals.first() else { return Ok(()) };
    tracing::error!("{}", parts::rival(their));
    Err(parts::rival(their))
}

fn unwell(what: &str, error: &dyn std::fmt::Display) -> String {
    tracing::warn!("the check of the {what} failed: {error}");
    format!("the {what} does not answer, or its schema is not this server's; the log says more")
}

const NOT_WRITTEN: &str = "a small write did not go through; the log says more";

fn unwritable(error: &CommitError) -> String {
    tracing::warn!("a write for the check of the store failed: {error}");
    let (CommitError::Unavailable(why) | CommitError::Unknown(why)) = error else { return NOT_WRITTEN.to_owned() };
    store::advice(why).unwrap_or(NOT_WRITTEN).to_owned()
}

/// A number as Prometheus has them.
#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
fn number(count: usize) -> f64 {
    count as f64
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
fn whole(count: i64) -> f64 {
    count as f64
}

async fn of_store(store: &Store, log: Option<PathBuf>, now: chrono::DateTime<chrono::Utc>) -> String {
    let mut text = Text::default();
    let fill = store.fill();
    let help = "Commits that wait for the database.";
    text.single("gennaker_store_queue_length", Kind::Gauge, help, number(fill.queued));
    let help = "Commits that may wait for the database; one more is refused.";
    text.single("gennaker_store_queue_limit", Kind::Gauge, help, number(fill.queue_max));
    text.family("gennaker_store_readers", Kind::Gauge, "Connections for reading, by what they do.");
    text.sample("gennaker_store_readers", &[("state", "busy")], number(fill.readers_busy));
    text.sample("gennaker_store_readers", &[("state", "idle")], number(fill.readers - fill.readers_busy));
    if let Some(bytes) = log.and_then(|log| std::fs::metadata(log).ok()).map(|log| log.len()) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        text.single("gennaker_store_wal_bytes", Kind::Gauge, "Size of SQLite's write-ahead log.", whole(bytes));
    }
    if let Ok(position) = store.event_position().await {
        let help = "Position of the newest event; it rises by one with each event of any execution.";
        text.single("gennaker_store_event_position", Kind::Gauge, help, whole(position));
    }
    if let Ok((due, waiting)) = store.open_executions(now).await {
        text.family(
            "gennaker_executions_open",
            Kind::Gauge,
            "Unfinished executions: those whose instant has come, and those that wait.",
        );
        text.sample("gennaker_executions_open", &[("state", "due")], whole(due));
        text.sample("gennaker_executions_open", &[("state", "waiting")], whole(waiting));
    }
    text.finish()
}

fn of_engine(engine: &Engine) -> String {
    let mut text = Text::default();
    let counts = engine.counts();
    let help = "Executions in the memory of this server.";
    text.single("gennaker_executions_active", Kind::Gauge, help, number(counts.active));
    text.single("gennaker_stage_steps_active", Kind::Gauge, "Steps of stages under way.", number(counts.steps));
    text.finish()
}
