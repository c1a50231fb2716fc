//! An application: what people deploy, and the owner of pipelines, clusters and their names.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::ApplicationId;

/// An application. Its name is the first part of the names of all that belongs to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Application {
    pub id: ApplicationId,
    /// Unique; letters, digits, `.` and `_` (see [`super::names`]); lower case.
    pub name: String,
    pub description: String,
    /// Whom to ask.
    pub email: Option<String>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    /// Rises by one with each change; a guard of updates.
    pub version: i64,
}
