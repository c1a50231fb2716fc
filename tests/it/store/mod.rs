//! The store suite: the same cases on SQLite (in a directory of its own) and on PostgreSQL (in a
//! schema of its own), as `store::sqlite::…` and `store::postgres::…`.

mod commits;
mod deliveries;
pub mod killed;
mod leases;
mod nouns;
mod opening;
mod problems;
mod things;

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::FutureExt;
use libtest_mimic::Trial;
use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection, QueryResult, Statement};
use serde_json::{Value, json};
use tokio::sync::broadcast;
use uuid::Uuid;

use gennaker::clock::Clock;
use gennaker::model::{
    About, AboutExecution, Action, Application, ApplicationId, AuditId, AuditRow, Cancel, CancelMode, EventBody,
    Execution, ExecutionId, ExecutionKind, ExecutionRule, Failure, IntentId, Notification, NotificationId, Occasion,
    OnFailure, OwnerId, Phase, Pipeline, PipelineDefinition, PipelineId, Place, Principal, PrincipalId, PrincipalKind,
    Progress, Resource, Revision, Role, Stage, StageId, Status, StreamId, Task, Token, TokenId, Unwinding, Wake,
};
use gennaker::store::{
    ClusterClaim, ClusterKey, Commit, CommitError, Durability, Error, ExecutionFilter, Guard, IdempotencyRecord,
    Intent, IntentOutcome, NewEvent, Options, Page, PageRequest, Store, Write,
};

use crate::harness::{Outcome, Schema, postgres, trial, trial_with};
use things::*;

pub fn trials() -> Vec<Trial> {
    [
        commits::trials(),
        deliveries::trials(),
        killed::trials(),
        leases::trials(),
        nouns::trials(),
        opening::trials(),
        problems::trials(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The trials of a file: its cases by the databases that they are about.
macro_rules! cases {
    (both: $($both:ident),* $(; sqlite: $($sqlite:ident),*)? $(; postgres: $($postgres:ident),*)? $(,)?) => {
        pub fn trials() -> Vec<Trial> {
            vec![
                $(on_sqlite(stringify!($both), $both),)*
                $(on_postgres(stringify!($both), $both),)*
                $($(on_sqlite(stringify!($sqlite), $sqlite),)*)?
                $($(on_postgres(stringify!($postgres), $postgres),)*)?
            ]
        }
    };
}
use cases;

fn on_sqlite(name: &str, case: impl AsyncFnOnce(&Home) + Send + 'static) -> Trial {
    trial("store::sqlite", name, async || Home::sqlite().await?.run(case).await)
}

fn on_postgres(name: &str, case: impl AsyncFnOnce(&Home) + Send + 'static) -> Trial {
    trial_with("store::postgres", name, postgres(), async || Home::postgres().await?.run(case).await)
}

/// No case takes as long as this.
const MAX: Duration = Duration::from_secs(180);

/// A database of the case's own, gone with it.
struct Home {
    store: Store,
    options: Options,
    clock: Clock,
    /// On PostgreSQL.
    schema: Option<Schema>,
}

fn start() -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 123_456_000).expect("an instant")
}

fn directory() -> PathBuf {
    std::env::temp_dir().join(format!("gennaker-store-{}", Uuid::new_v4().simple()))
}

impl Home {
    async fn sqlite() -> anyhow::Result<Self> {
        let options =
            Options { database_url: None, data_dir: directory(), durability: Durability::Normal, queue_max: 4096 };
        Self::open(options, None).await
    }

    async fn postgres() -> anyhow::Result<Self> {
        let schema = Schema::create().await?;
        let options = Options {
            database_url: Some(schema.url.clone()),
            data_dir: directory(),
            durability: Durability::Full,
            queue_max: 4096,
        };
        Self::open(options, Some(schema)).await
    }

    async fn open(options: Options, schema: Option<Schema>) -> anyhow::Result<Self> {
        let clock = Clock::manual(start());
        let store = Store::open(&options, clock.clone()).await?;
        Ok(Self { store, options, clock, schema })
    }

    /// Runs the case; cleans up however it ends.
    async fn run(self, case: impl AsyncFnOnce(&Self)) -> Outcome {
        let ended = tokio::time::timeout(MAX, AssertUnwindSafe(case(&self)).catch_unwind()).await;
        self.store.close().await;
        match self.schema {
            Some(schema) => schema.drop().await?,
            None => std::fs::remove_dir_all(&self.options.data_dir)?,
        }
        match ended {
            Ok(Ok(())) => Ok(()),
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(_) => anyhow::bail!("not over within {} s", MAX.as_secs()),
        }
    }

    /// A connection beside the store's own.
    async fn beside(&self) -> DatabaseConnection {
        let url = self
            .options
            .database_url
            .clone()
            .unwrap_or_else(|| format!("sqlite:{}?mode=rw", self.options.data_dir.join("gennaker.db").display()));
        let mut options = ConnectOptions::new(url);
        options.max_connections(1).sqlx_logging(false);
        Database::connect(options).await.expect("connects")
    }
}

async fn one_row(database: &DatabaseConnection, sql: &str) -> QueryResult {
    let statement = Statement::from_string(database.get_database_backend(), sql);
    database.query_one_raw(statement).await.expect("read").expect("a row")
}
