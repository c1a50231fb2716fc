//! What a pipeline says: parameters, stages and notifications, read and written.

use async_graphql::{Enum, InputObject, Object, SimpleObject};

use super::scalars::Json;
use super::stage::masked;
use crate::model;

/// What a stage's failure does to the pipeline around it.
#[derive(Enum, Debug, Clone, Copy, PartialEq, Eq)]
#[graphql(remote = "model::OnFailure")]
pub enum OnFailure {
    /// Cancel the other branches and fail the pipeline.
    FailPipeline,
    /// End this branch; the others finish and the pipeline succeeds.
    StopBranch,
    /// End this branch; the others finish and the pipeline fails.
    StopBranchThenFail,
    /// Go on as if it had succeeded.
    Continue,
}

/// When people are told.
#[derive(Enum, Debug, Clone, Copy, PartialEq, Eq)]
#[graphql(remote = "model::Occasion")]
pub enum Occasion {
    /// The execution began.
    Started,
    /// The execution succeeded.
    Completed,
    /// The execution failed.
    Failed,
    /// The execution was cancelled.
    Canceled,
    /// A manual judgment waits for a person.
    ApprovalNeeded,
}

/// On which occasions people are told.
#[derive(SimpleObject, InputObject, Clone)]
#[graphql(input_name = "NotificationRuleInput")]
pub struct NotificationRule {
    /// The occasions.
    on: Vec<Occasion>,
}

impl From<&model::NotificationRule> for NotificationRule {
    fn from(rule: &model::NotificationRule) -> Self {
        Self { on: rule.on.iter().map(|&occasion| occasion.into()).collect() }
    }
}

impl From<NotificationRule> for model::NotificationRule {
    fn from(rule: NotificationRule) -> Self {
        Self { on: rule.on.into_iter().map(Into::into).collect() }
    }
}

/// What a pipeline does.
pub struct Definition(pub model::PipelineDefinition);

/// What a pipeline does.
#[Object(name = "PipelineDefinition")]
impl Definition {
    /// What it is for.
    async fn description(&self) -> &str {
        &self.0.description
    }
    /// The values that are given when it is started.
    async fn parameters(&self) -> Vec<ParameterDefinition> {
        self.0.parameters.iter().map(ParameterDefinition::from).collect()
    }
    /// Its stages.
    async fn stages(&self) -> Vec<StageDefinition> {
        self.0.stages.iter().map(StageDefinition::from).collect()
    }
    /// On which occasions people are told.
    async fn notifications(&self) -> Vec<NotificationRule> {
        self.0.notifications.iter().map(NotificationRule::from).collect()
    }
    /// What starts it without anybody asking.
    async fn triggers(&self) -> Vec<TriggerDefinition> {
        self.0.triggers.iter().map(TriggerDefinition::from).collect()
    }
    /// The whole definition as one document, for files and tools.
    async fn document(&self) -> Json {
        Json(masked(&serde_json::to_value(&self.0).unwrap_or_default()))
    }
}

/// A value that is given when a pipeline is started.
#[derive(SimpleObject, InputObject)]
#[graphql(input_name = "ParameterDefinitionInput")]
pub struct ParameterDefinition {
    /// Unique within the pipeline.
    name: String,
    /// What it is for.
    #[graphql(default)]
    description: String,
    /// Used where none is given; without it the parameter is required.
    default: Option<Json>,
    /// The values allowed; empty means any.
    #[graphql(default)]
    options: Vec<Json>,
}

impl From<&model::Parameter> for ParameterDefinition {
    fn from(parameter: &model::Parameter) -> Self {
        Self {
            name: parameter.name.clone(),
            description: parameter.description.clone(),
            default: parameter.default.clone().map(Json),
            options: parameter.options.iter().cloned().map(Json).collect(),
        }
    }
}

impl From<ParameterDefinition> for model::Parameter {
    fn from(input: ParameterDefinition) -> Self {
        Self {
            name: input.name,
            description: input.description,
            default: input.default.map(|value| value.0),
            options: input.options.into_iter().map(|value| value.0).collect(),
        }
    }
}

/// A stage as configured in a pipeline.
#[derive(SimpleObject, InputObject)]
#[graphql(input_name = "StageDefinitionInput")]
pub struct StageDefinition {
    /// Unique within the pipeline; letters, digits, `-` and `_`; at most 64.
    key: String,
    /// One of `stageKinds`.
    kind: String,
    /// What people see; the kind's title when empty.
    #[graphql(default)]
    name: String,
    /// Keys of the stages that must have ended before this one starts.
    #[graphql(default)]
    requires: Vec<String>,
    /// As the kind's schema says.
    #[graphql(default_with = "Json(serde_json::json!({}))")]
    config: Json,
    /// What this stage's failure does to the pipeline.
    #[graphql(default_with = "OnFailure::FailPipeline")]
    on_failure: OnFailure,
    /// Seconds from the stage's start to its failure by timeout; the kind's default when absent.
    timeout_seconds: Option<u64>,
}

impl From<&model::StageSpec> for StageDefinition {
    fn from(stage: &model::StageSpec) -> Self {
        Self {
            key: stage.key.clone(),
            kind: stage.kind.clone(),
            name: stage.name.clone(),
            requires: stage.requires.clone(),
            config: Json(masked(&stage.config)),
            on_failure: stage.on_failure.into(),
            timeout_seconds: stage.timeout_seconds,
        }
    }
}

impl From<StageDefinition> for model::StageSpec {
    fn from(input: StageDefinition) -> Self {
        Self {
            key: input.key,
            kind: input.kind,
            name: input.name,
            requires: input.requires,
            config: input.config.0,
            on_failure: input.on_failure.into(),
            timeout_seconds: input.timeout_seconds,
        }
    }
}

/// A trigger as configured in a pipeline: what starts it without anybody asking.
#[derive(SimpleObject, InputObject)]
#[graphql(input_name = "TriggerDefinitionInput")]
pub struct TriggerDefinition {
    /// Unique within the pipeline; letters, digits, `-` and `_`; at most 64.
    key: String,
    /// One of `triggerKinds`.
    kind: String,
    /// False: it is kept, and starts nothing.
    #[graphql(default = true)]
    enabled: bool,
    /// As the kind's schema says.
    #[graphql(default_with = "Json(serde_json::json!({}))")]
    config: Json,
    /// An object: parameter name to value, or to an expression over `trigger`.
    #[graphql(default_with = "Json(serde_json::json!({}))")]
    parameters: Json,
}

impl From<&model::TriggerSpec> for TriggerDefinition {
    fn from(trigger: &model::TriggerSpec) -> Self {
        Self {
            key: trigger.key.clone(),
            kind: trigger.kind.clone(),
            enabled: trigger.enabled,
            config: Json(masked(&trigger.config)),
            parameters: Json(masked(&trigger.parameters)),
        }
    }
}

impl From<TriggerDefinition> for model::TriggerSpec {
    fn from(input: TriggerDefinition) -> Self {
        Self {
            key: input.key,
            kind: input.kind,
            enabled: input.enabled,
            config: input.config.0,
            parameters: input.parameters.0,
        }
    }
}
