//! Another pipeline's execution has ended. The commit of that end writes the slot, so that no
//! crash loses it.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::engine::contract::{Source, Trigger, TriggerKind, When};
use crate::model::Status;

pub(super) struct Pipeline;

#[derive(Deserialize)]
struct Config {
    application: String,
    pipeline: String,
    #[serde(default = "succeeded")]
    statuses: Vec<Status>,
}

fn succeeded() -> Vec<Status> {
    vec![Status::Succeeded]
}

impl Trigger for Pipeline {
    fn kind(&self) -> TriggerKind {
        TriggerKind {
            kind: "pipeline",
            title: "Another pipeline",
            description: "Starts the pipeline when an execution of another one has ended. Parameters may read \
                          `${ trigger.execution.number }`, `${ trigger.parameters.<name> }` and \
                          `${ trigger.stages.<key>.outputs.<name> }`. The other pipeline has to be there when this \
                          one is saved; once it is deleted, this trigger says so and starts nothing.",
            schema: json!({
                "$schema": "https://json-schema.org/draft/2020-12/schema",
                "type": "object",
                "additionalProperties": false,
                "properties": {
                    "application": {
                        "type": "string", "minLength": 1, "maxLength": 64,
                        "description": "The application of the other pipeline."
                    },
                    "pipeline": {
                        "type": "string", "minLength": 1, "maxLength": 100,
                        "description": "The other pipeline's name."
                    },
                    "statuses": {
                        "type": "array", "minItems": 1, "uniqueItems": true,
                        "items": { "enum": ["SUCCEEDED", "FAILED", "CANCELED"] },
                        "default": ["SUCCEEDED"],
                        "description": "The ends that count."
                    }
                },
                "required": ["application", "pipeline"],
            }),
            example: json!({ "application": "hello", "pipeline": "deploy hello", "statuses": ["SUCCEEDED"] }),
        }
    }

    fn read(&self, config: &Value) -> Result<When, (String, String)> {
        let config = Config::deserialize(config).map_err(|error| (String::new(), error.to_string()))?;
        let Config { application, pipeline, statuses } = config;
        Ok(When::Ended(Source { application, pipeline, statuses }))
    }
}
