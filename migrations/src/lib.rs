//! The schema, step by step, for SQLite and PostgreSQL. A step that has been released is never
//! changed; the next change is the next step.
//!
//! Times are microseconds since 1970 in UTC (so that both databases order them alike), ids are
//! UUIDs, documents are JSON texts. The name of the newest step is the schema's version.

mod ddl;
mod m20261122_000001_ground;
mod m20261122_000002_leases;
mod m20261122_000003_triggers;
mod m20261122_000004_deliveries;
mod m20261122_000005_restored;

pub use sea_orm_migration::MigratorTrait;
use sea_orm_migration::prelude::*;

/// All steps, oldest first.
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m20261122_000001_ground::Migration),
            Box::new(m20261122_000002_leases::Migration),
            Box::new(m20261122_000003_triggers::Migration),
            Box::new(m20261122_000004_deliveries::Migration),
            Box::new(m20261122_000005_restored::Migration),
        ]
    }
}
