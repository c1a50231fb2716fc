//! The schema, step by step, for SQLite and PostgreSQL. A step that has been released is never
//! changed; the next change is the next step.
//!
//! Times are microseconds since 1970 in UTC (so that both databases order them alike), ids are
//! UUIDs, documents are JSON texts. The name of the newest step is the schema's version.

mod ddl;

pub use sea_orm_migration::MigratorTrait;
use sea_orm_migration::prelude::*;

/// The steps, oldest first: a module for each, named as the step is, with its statements in `UP`.
macro_rules! steps {
    ($($name:ident)*) => {
        $(mod $name;)*

        fn steps() -> Vec<Box<dyn MigrationTrait>> {
            vec![$(Box::new(Step { name: stringify!($name), up: $name::UP })),*]
        }
    };
}

steps! {
    m20261122_000001_ground
    m20261122_000002_leases
    m20261122_000003_triggers
    m20261122_000004_deliveries
    m20261122_000005_restored
    m20261128_000006_served
    m20261128_000007_problems
}

struct Step {
    name: &'static str,
    up: &'static str,
}

impl MigrationName for Step {
    fn name(&self) -> &str {
        self.name
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Step {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        ddl::run(manager, self.up).await
    }

    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}

/// All steps, oldest first.
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        steps()
    }
}
