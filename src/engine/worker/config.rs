//! A stage's config as it starts: expressions evaluated, over what they may read.

use serde_json::{Map, Value, json};

use super::Worker;
use crate::engine::apply::cut;
use crate::engine::commands::trigger_variables;
use crate::engine::decide::failure;
use crate::engine::notices;
use crate::expression;
use crate::model::{Execution, Failure, Stage, StageId};

impl Worker {
    /// The stage's config with expressions evaluated; those of children are values already.
    pub(super) async fn resolve(&self, id: StageId) -> Result<Value, Box<Failure>> {
        let Some(stage) = self.execution.stage(id) else { return Ok(Value::Null) };
        if stage.parent.is_some() {
            return Ok(stage.config.clone());
        }
        let refuse = |code: &str, what: String| {
            Box::new(failure(code, cut(&format!("stage `{}`: {what}", stage.key)), Some(id)))
        };
        let evaluated = if expression::has_expression(&stage.config) {
            let (config, vars) = (stage.config.clone(), variables(&self.execution));
            let evaluation = tokio::task::spawn_blocking(move || expression::evaluate(&config, &vars));
            evaluation.await.map_err(|_| refuse("PANIC", "the expressions met a fault".to_owned()))?
        } else {
            expression::evaluate(&stage.config, &Value::Null)
        };
        let config = evaluated
            .map_err(|error| refuse("EXPRESSION", format!("config at `{}`: {}", error.pointer, error.message)))?;
        let max = self.shared.options.config_max;
        if notices::size(&config) > max {
            return Err(refuse("CONFIG_TOO_LARGE", format!("the config has more than {max} bytes once evaluated")));
        }
        Ok(config)
    }
}

/// What expressions may read; `validate/names.rs` knows the names.
fn variables(execution: &Execution) -> Value {
    let stages: Map<String, Value> = execution
        .stages
        .iter()
        .filter(|stage| stage.parent.is_none())
        .map(|stage: &Stage| (stage.key.clone(), json!({ "outputs": stage.outputs, "status": stage.status.as_str() })))
        .collect();
    json!({
        "parameters": execution.parameters,
        "execution": {
            "id": execution.id,
            "number": execution.number,
            "application": execution.application_name,
            "pipeline": execution.name,
            "startedBy": execution.started_by_name,
        },
        "stages": stages,
        "trigger": execution.trigger.as_ref().map_or_else(|| json!({ "kind": "manual" }), |why| trigger_variables(why)),
    })
}
