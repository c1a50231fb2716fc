//! What a restore from a backup leaves on the executions that were under way.

/// The lease's number as of the restore: intents with higher ones were recorded since.
pub const UP: &str = "ALTER TABLE execution ADD COLUMN restored_lease bigint";
