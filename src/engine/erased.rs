//! A kind of stage with its types erased: its schema compiled once, its config and cursor read
//! from JSON with errors that name the place.

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jsonschema::Validator;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::contract::{Cause, DynStage, Next, Stage, StageKind, StepContext, StepError};
use crate::expression;
use crate::model::{ChildSpec, Execution, Stage as StageRow};
use crate::secrets;

/// Keywords whose verdict over a whole object or array hangs on values that are not known yet.
const HANGS_ON_VALUES: &[&str] = &["anyOf", "oneOf", "not", "const", "enum", "contains", "uniqueItems", "if"];

/// See the module.
pub(super) struct Erased<S> {
    stage: S,
    schema: Value,
    validator: Validator,
}

impl<S: Stage> Erased<S> {
    pub(super) fn new(stage: S) -> Self {
        let schema = stage.schema();
        let validator = jsonschema::options()
            .offline()
            .build(&schema)
            .unwrap_or_else(|error| panic!("the schema of stage kind `{}` is not valid: {error}", S::KIND));
        Self { stage, schema, validator }
    }

    /// The typed config; the kinds' hooks get nothing when it does not read, which the
    /// validation at the stage's start has ruled out.
    fn config(config: &Value) -> Option<S::Config> {
        S::Config::deserialize(config).ok()
    }

    fn cursor(cursor: &Value) -> Option<S::Cursor> {
        if cursor.is_null() { Some(S::Cursor::default()) } else { S::Cursor::deserialize(cursor).ok() }
    }
}

impl<S: Stage> DynStage for Erased<S> {
    fn kind(&self) -> StageKind {
        StageKind {
            kind: S::KIND,
            title: S::TITLE,
            description: S::DESCRIPTION,
            schema: self.schema.clone(),
            example: self.stage.example(),
            timeout: S::TIMEOUT,
            signals: S::SIGNALS,
        }
    }

    fn validate(&self, config: &Value) -> Result<(), (String, String)> {
        secrets::no_dead_ends(config)?;
        secrets::no_literals(&self.schema, config)?;
        if !expression::has_expression(config) {
            return self.validate_resolved(config);
        }
        let fault = self.validator.iter_errors(config).find(|error| {
            let instance = error.instance();
            let unknown = match instance.as_ref() {
                Value::String(text) => expression::is_expression(text),
                other => HANGS_ON_VALUES.contains(&error.kind().keyword()) && expression::has_expression(other),
            };
            !unknown
        });
        fault.map_or(Ok(()), |error| Err(fault_of(&error)))
    }

    fn validate_resolved(&self, config: &Value) -> Result<(), (String, String)> {
        if let Some(error) = self.validator.iter_errors(config).next() {
            return Err(fault_of(&error));
        }
        let typed: S::Config = read(config)?;
        self.stage.validate(&typed)
    }

    fn timeout(&self) -> Duration {
        S::TIMEOUT
    }

    fn title(&self) -> &'static str {
        S::TITLE
    }

    fn tasks(&self, config: &Value, cursor: &Value) -> (Vec<&'static str>, usize) {
        match (Self::config(config), Self::cursor(cursor)) {
            (Some(config), Some(cursor)) => (self.stage.tasks(&config), self.stage.task(&cursor)),
            _ => (Vec::new(), 0),
        }
    }

    fn reread(&self, cursor: &Value) -> Result<Value, String> {
        let cursor = S::Cursor::deserialize(cursor).map_err(|error| error.to_string())?;
        serde_json::to_value(cursor).map_err(|error| error.to_string())
    }

    fn before(&self, config: &Value) -> Vec<ChildSpec> {
        Self::config(config).map(|config| self.stage.before(&config)).unwrap_or_default()
    }

    fn after(&self, config: &Value, outputs: &Value) -> Vec<ChildSpec> {
        Self::config(config).map(|config| self.stage.after(&config, outputs)).unwrap_or_default()
    }

    fn unwind(&self, execution: &Execution, stage: &StageRow, config: &Value, cursor: &Value) -> Vec<ChildSpec> {
        match (Self::config(config), Self::cursor(cursor)) {
            (Some(config), Some(cursor)) => self.stage.unwind(execution, stage, &config, &cursor),
            _ => Vec::new(),
        }
    }

    fn step<'a>(
        &'a self,
        cx: &'a StepContext,
        config: &'a Value,
        cursor: Value,
    ) -> BoxFuture<'a, Result<Next<Value>, StepError>> {
        async move {
            let config: S::Config = read(config).map_err(|fault| unreadable("CONFIG_INVALID", "config", fault))?;
            let cursor: S::Cursor = if cursor.is_null() {
                S::Cursor::default()
            } else {
                read(&cursor).map_err(|fault| unreadable("CURSOR_UNREADABLE", "cursor", fault))?
            };
            match self.stage.step(cx, &config, cursor).await? {
                Next::Goto(cursor) => Ok(Next::Goto(write(&cursor)?)),
                Next::Poll { cursor, after, topic } => Ok(Next::Poll { cursor: write(&cursor)?, after, topic }),
                Next::Wait { cursor, signal, timeout } => Ok(Next::Wait { cursor: write(&cursor)?, signal, timeout }),
                Next::Spawn { children, cursor } => Ok(Next::Spawn { children, cursor: write(&cursor)? }),
                Next::Done(outputs) => Ok(Next::Done(outputs)),
            }
        }
        .boxed()
    }
}

fn read<T: DeserializeOwned>(value: &Value) -> Result<T, (String, String)> {
    serde_path_to_error::deserialize(value).map_err(|error| (pointer(error.path()), error.into_inner().to_string()))
}

fn unreadable(code: &'static str, what: &str, (pointer, message): (String, String)) -> StepError {
    StepError::fail(code, format!("{what} at `{pointer}`: {message}"))
}

fn write<T: serde::Serialize>(cursor: &T) -> Result<Value, StepError> {
    serde_json::to_value(cursor)
        .map_err(|error| StepError::Fail(Cause::new("CURSOR_UNREADABLE", "the cursor is not JSON").because(error)))
}

pub(super) fn fault_of(error: &jsonschema::ValidationError<'_>) -> (String, String) {
    // What is not allowed or missing is named by the message; the place is that of its object.
    (error.instance_path().to_string(), error.to_string())
}

fn pointer(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    let mut out = String::new();
    for segment in path {
        let name = match segment {
            Segment::Seq { index } => index.to_string(),
            Segment::Map { key } => key.replace('~', "~0").replace('/', "~1"),
            Segment::Enum { variant } => variant.replace('~', "~0").replace('/', "~1"),
            Segment::Unknown => continue,
        };
        out.push('/');
        out.push_str(&name);
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    struct Sized;

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Config {
        capacity: Capacity,
    }

    #[derive(Deserialize)]
    struct Capacity {
        min: u32,
        max: u32,
    }

    impl Stage for Sized {
        const KIND: &'static str = "sized";
        const TITLE: &'static str = "Sized";
        const DESCRIPTION: &'static str = "Has a size.";
        type Config = Config;
        type Cursor = ();

        fn schema(&self) -> Value {
            json!({
                "type": "object",
                "required": ["capacity"],
                "additionalProperties": false,
                "properties": {
                    "capacity": {
                        "type": "object",
                        "required": ["min", "max"],
                        "properties": {"min": {"type": "integer"}, "max": {"type": "integer"}},
                    },
                    "target": {"oneOf": [
                        {"type": "object", "required": ["name"]},
                        {"type": "object", "required": ["kind"], "properties": {"kind": {"enum": ["newest", "oldest"]}}},
                    ]},
                },
            })
        }
        fn example(&self) -> Value {
            json!({"capacity": {"min": 1, "max": 2}})
        }
        fn tasks(&self, _: &Config) -> Vec<&'static str> {
            Vec::new()
        }
        fn task(&self, (): &()) -> usize {
            0
        }
        fn validate(&self, config: &Config) -> Result<(), (String, String)> {
            if config.capacity.min > config.capacity.max {
                return Err(("/capacity/min".to_owned(), "more than max".to_owned()));
            }
            Ok(())
        }
        async fn step(&self, _: &StepContext, _: &Config, (): ()) -> Result<Next<()>, StepError> {
            Ok(Next::Done(Value::Null))
        }
    }

    #[test]
    fn a_fault_is_named_by_its_place() {
        let kind = Erased::new(Sized);
        let place = |config: Value| kind.validate(&config).map_err(|(pointer, _)| pointer);
        assert_eq!(place(kind.kind().example), Ok(()));
        assert_eq!(place(json!({"capacity": {"min": "1", "max": 2}})), Err("/capacity/min".to_owned()));
        assert_eq!(place(json!({"capacity": {"min": 3, "max": 2}})), Err("/capacity/min".to_owned()));
        // What the schema lets through and the type does not.
        assert_eq!(place(json!({"capacity": {"min": -1, "max": 2}})), Err("/capacity/min".to_owned()));
        let (_, message) = kind.validate(&json!({"capacity": {"min": 1, "max": 2}, "size": 1})).unwrap_err();
        assert!(message.contains("size"), "{message}");
    }

    #[test]
    fn an_expression_counts_as_any_type_until_it_is_known() {
        let kind = Erased::new(Sized);
        for config in [
            json!({"capacity": {"min": "${parameters.min}", "max": 2}}),
            json!({"capacity": "${parameters.capacity}"}),
            json!({"capacity": {"min": 1, "max": 2}, "target": "${parameters.target}"}),
            json!({"capacity": {"min": 1, "max": 2}, "target": {"kind": "${parameters.kind}"}}),
        ] {
            assert_eq!(kind.validate(&config), Ok(()), "{config}");
            assert!(kind.validate_resolved(&config).is_err(), "{config}");
        }
        // What no value can mend is a fault at once.
        assert!(kind.validate(&json!({"capacity": {"min": "${x}"}})).is_err());
        assert!(kind.validate(&json!({"capacity": {"min": "${x}", "max": "two"}})).is_err());
    }
}
