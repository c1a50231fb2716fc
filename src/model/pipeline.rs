//! A pipeline and its immutable revisions.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{ApplicationId, NotificationRule, PipelineId, PrincipalId, StageSpec, TriggerSpec};

/// A pipeline: a name within an application, and the newest of its revisions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pipeline {
    /// The same over all revisions.
    pub id: PipelineId,
    /// The application that it belongs to.
    pub application: ApplicationId,
    /// That application's name.
    pub application_name: String,
    /// Unique within the application.
    pub name: String,
    /// The number of the newest revision, from 1.
    pub revision: i64,
    /// The newest revision's definition.
    pub definition: PipelineDefinition,
    /// When the first revision was saved.
    pub created_at: DateTime<Utc>,
    /// When the newest revision was saved.
    pub updated_at: DateTime<Utc>,
}

/// What a pipeline said at one time. Never changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Revision {
    /// The pipeline that it is a revision of.
    pub pipeline: PipelineId,
    /// From 1; one more with each save.
    pub number: i64,
    /// What the pipeline does from this revision on.
    pub definition: PipelineDefinition,
    /// When it was saved.
    pub created_at: DateTime<Utc>,
    /// Who saved it; while it is the newest, its triggers act as this principal.
    pub created_by: PrincipalId,
    /// That principal's name as of then.
    pub created_by_name: String,
}

/// What a pipeline does. Stored as a JSON document that carries `formatVersion`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PipelineDefinition {
    /// The version of this document's format: 1.
    #[serde(default = "format_version")]
    pub format_version: u32,
    /// For people; may be empty.
    #[serde(default)]
    pub description: String,
    /// What is given at the start, in the order that it is asked for.
    #[serde(default)]
    pub parameters: Vec<Parameter>,
    /// Ordered by their `requires`, not by their place in the list.
    pub stages: Vec<StageSpec>,
    /// Rules for the whole execution; stages have their own beside them.
    #[serde(default)]
    pub notifications: Vec<NotificationRule>,
    /// What starts it without anybody asking.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub triggers: Vec<TriggerSpec>,
}

fn format_version() -> u32 {
    PipelineDefinition::FORMAT_VERSION
}

impl PipelineDefinition {
    /// The version of the document's format that this binary writes.
    pub const FORMAT_VERSION: u32 = 1;
}

/// A value that is given when the pipeline is started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Parameter {
    /// Unique within the pipeline; expressions read it under `parameters`.
    pub name: String,
    /// For people; may be empty.
    #[serde(default)]
    pub description: String,
    /// Used where none is given; without it the parameter is required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<Value>,
    /// The values allowed; empty means any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<Value>,
}
