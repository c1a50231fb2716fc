//! A pipeline and its immutable revisions.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{ApplicationId, NotificationRule, PipelineId, PrincipalId, StageSpec, TriggerSpec};

/// A pipeline: a name within an application, and the newest of its revisions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pipeline {
    pub id: PipelineId,
    pub application: ApplicationId,
    pub application_name: String,
    /// Unique within the application.
    pub name: String,
    /// The number of the newest revision, from 1.
    pub revision: i64,
    /// The newest revision's definition.
    pub definition: PipelineDefinition,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// What a pipeline said at one time. Never changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Revision {
    pub pipeline: PipelineId,
    pub number: i64,
    pub definition: PipelineDefinition,
    pub created_at: DateTime<Utc>,
    pub created_by: PrincipalId,
    pub created_by_name: String,
}

/// What a pipeline does. Stored as a JSON document that carries `formatVersion`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PipelineDefinition {
    /// The version of this document's format: 1.
    #[serde(default = "format_version")]
    pub format_version: u32,
    #[serde(default)]
    pub description: String,
    #[serde(default)]
    pub parameters: Vec<Parameter>,
    pub stages: Vec<StageSpec>,
    #[serde(default)]
    pub notifications: Vec<NotificationRule>,
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
    pub name: String,
    #[serde(default)]
    pub description: String,
    /// Used where none is given; without it the parameter is required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<Value>,
    /// The values allowed; empty means any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<Value>,
}
