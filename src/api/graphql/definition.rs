//! What a pipeline says: parameters, stages and notifications, read and written.

use async_graphql::{Context, Enum, InputObject, Object, Result, SimpleObject};

use super::scalars::Json;
use super::session::{Session, session};
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
    /// The execution, or the stage, began.
    Started,
    /// It succeeded.
    Completed,
    /// It failed.
    Failed,
    /// It was cancelled.
    Canceled,
    /// A manual judgment waits for a person.
    ApprovalNeeded,
    /// Something is in a load balancer's way. The feed tells it without a rule; no rule may ask for it.
    LoadBalancerProblem,
    /// It is no more. The feed tells it without a rule; no rule may ask for it.
    LoadBalancerProblemOver,
}

/// On which occasions whom to tell. Every message goes to the feed `notifications`; a channel
/// takes it further.
#[derive(SimpleObject, InputObject, Clone)]
#[graphql(input_name = "NotificationRuleInput")]
pub struct NotificationRule {
    /// The occasions.
    on: Vec<Occasion>,
    /// Who gets mail.
    email: Option<EmailTarget>,
}

/// Who gets mail.
#[derive(SimpleObject, InputObject, Clone)]
#[graphql(input_name = "EmailTargetInput")]
pub struct EmailTarget {
    /// Addresses, without names; each gets a mail of its own. Shown as `***` to whoever may not
    /// change pipelines.
    to: Vec<String>,
}

/// What stands where an address is that the reader may not see.
const HIDDEN: &str = "***";

impl NotificationRule {
    /// The rule as this reader may see it.
    pub fn shown(rule: &model::NotificationRule, session: &Session<'_>) -> Self {
        let seen = session.sees_targets();
        let shown = |address: &String| if seen { address.clone() } else { HIDDEN.to_owned() };
        Self {
            on: rule.on.iter().map(|&occasion| occasion.into()).collect(),
            email: rule.email.as_ref().map(|email| EmailTarget { to: email.to.iter().map(shown).collect() }),
        }
    }

    fn all(rules: &[model::NotificationRule], session: &Session<'_>) -> Vec<Self> {
        rules.iter().map(|rule| Self::shown(rule, session)).collect()
    }
}

impl From<NotificationRule> for model::NotificationRule {
    fn from(rule: NotificationRule) -> Self {
        Self {
            on: rule.on.into_iter().map(Into::into).collect(),
            email: rule.email.map(|email| model::EmailTarget { to: email.to }),
        }
    }
}

/// The definition with the addresses hidden from whoever may not see them.
fn document(definition: &model::PipelineDefinition, session: &Session<'_>) -> serde_json::Value {
    let mut definition = definition.clone();
    if !session.sees_targets() {
        let stages = definition.stages.iter_mut().flat_map(|stage| &mut stage.notifications);
        for rule in definition.notifications.iter_mut().chain(stages) {
            for address in rule.email.iter_mut().flat_map(|email| &mut email.to) {
                HIDDEN.clone_into(address);
            }
        }
    }
    serde_json::to_value(&definition).unwrap_or_default()
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
    async fn stages(&self, ctx: &Context<'_>) -> Result<Vec<StageDefinition>> {
        let session = session(ctx)?;
        Ok(self.0.stages.iter().map(|stage| StageDefinition::shown(stage, &session)).collect())
    }
    /// On which occasions whom to tell.
    async fn notifications(&self, ctx: &Context<'_>) -> Result<Vec<NotificationRule>> {
        Ok(NotificationRule::all(&self.0.notifications, &session(ctx)?))
    }
    /// What starts it without anybody asking.
    async fn triggers(&self) -> Vec<TriggerDefinition> {
        self.0.triggers.iter().map(TriggerDefinition::from).collect()
    }
    /// The whole definition as one document, for files and tools.
    async fn document(&self, ctx: &Context<'_>) -> Result<Json> {
        Ok(Json(masked(&document(&self.0, &session(ctx)?))))
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
    /// On which occasions of this stage whom to tell, beside what the pipeline's own rules say.
    #[graphql(default)]
    notifications: Vec<NotificationRule>,
}

impl StageDefinition {
    fn shown(stage: &model::StageSpec, session: &Session<'_>) -> Self {
        Self {
            key: stage.key.clone(),
            kind: stage.kind.clone(),
            name: stage.name.clone(),
            requires: stage.requires.clone(),
            config: Json(masked(&stage.config)),
            on_failure: stage.on_failure.into(),
            timeout_seconds: stage.timeout_seconds,
            notifications: NotificationRule::all(&stage.notifications, session),
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
            notifications: input.notifications.into_iter().map(Into::into).collect(),
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
