//! An application: what people deploy, and the owner of pipelines, clusters and their names.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::ApplicationId;

/// An application. Its name is the first part of the names of all that belongs to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Application {
    /// Stays the same when its other fields change.
    pub id: ApplicationId,
    /// Unique; letters, digits, `.` and `_` (see [`super::names`]); lower case.
    pub name: String,
    /// For people; may be empty.
    pub description: String,
    /// Whom to ask.
    pub email: Option<String>,
    /// When it was first saved.
    pub created_at: DateTime<Utc>,
    /// When it was last saved.
    pub updated_at: DateTime<Utc>,
    /// Rises by one with each change; a guard of updates.
    pub version: i64,
}
