//! What a restore from a backup leaves on the executions that were under way.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        crate::ddl::run(manager, UP).await
    }

    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}

/// The lease's number as of the restore: intents with higher ones were recorded since.
const UP: &str = "ALTER TABLE execution ADD COLUMN restored_lease bigint";
