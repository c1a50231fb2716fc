//! A kind of stage with its types erased: its schema compiled once, its config and cursor read
//! from JSON with errors that name the place.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jsonschema::error::ValidationErrorKind;
use jsonschema::{ValidationError, Validator};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::contract::{Cause, DynStage, Fault, Next, Stage, StageKind, StepContext, StepError};
use crate::expression;
use crate::model::{ChildSpec, Execution, Stage as StageRow};
use crate::near::did_you_mean;
use crate::secrets;

/// Keywords whose verdict over a whole object or array hangs on values that are not known yet.
const HANGS_ON_VALUES: &[&str] = &["anyOf", "oneOf", "not", "const", "enum", "contains", "uniqueItems", "if"];

/// Faults of one config that are told.
const FAULTS_MAX: usize = 20;

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

    fn validate(&self, config: &Value) -> Result<(), Vec<Fault>> {
        secrets::no_dead_ends(config).and_then(|()| secrets::no_literals(&self.schema, config)).map_err(one)?;
        if !expression::has_expression(config) {
            return self.validate_resolved(config);
        }
        faults_of(&self.schema, self.validator.iter_errors(config).filter(stands))?;
        self.stage.validate_known(config).map_err(one)
    }

    fn validate_resolved(&self, config: &Value) -> Result<(), Vec<Fault>> {
        faults_of(&self.schema, self.validator.iter_errors(config))?;
        let typed: S::Config = read(config).map_err(one)?;
        self.stage.validate(&typed).map_err(one)
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

fn read<T: DeserializeOwned>(value: &Value) -> Result<T, Fault> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let (place, message) = (pointer(error.path()), error.inner().to_string());
        match value.pointer(&place) {
            Some(Value::String(text)) if !message.contains(text.as_str()) => {
                (place, format!("`{}`: {message}", text.escape_debug()))
            }
            _ => (place, message),
        }
    })
}

fn unreadable(code: &'static str, what: &str, (pointer, message): Fault) -> StepError {
    StepError::fail(code, format!("{what} at `{pointer}`: {message}"))
}

fn write<T: serde::Serialize>(cursor: &T) -> Result<Value, StepError> {
    serde_json::to_value(cursor)
        .map_err(|error| StepError::Fail(Cause::new("CURSOR_UNREADABLE", "the cursor is not JSON").because(error)))
}

fn one(fault: Fault) -> Vec<Fault> {
    vec![fault]
}

/// What a schema says of a config, for people.
pub(super) fn faults_of<'a>(
    schema: &Value,
    errors: impl Iterator<Item = ValidationError<'a>>,
) -> Result<(), Vec<Fault>> {
    let mut errors: Vec<_> = errors.take(FAULTS_MAX).collect();
    // A name that is misspelt first: it is why another is missing.
    errors.sort_by_key(|error| !is_unknown_field(error));
    let mut faults: Vec<Fault> = errors.iter().flat_map(|error| explained(schema, error)).take(FAULTS_MAX).collect();
    // A branch of the schema may repeat what another says.
    let mut seen = HashSet::new();
    faults.retain(|fault| seen.insert(fault.clone()));
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

fn is_unknown_field(error: &ValidationError<'_>) -> bool {
    matches!(error.kind(), ValidationErrorKind::AdditionalProperties { .. })
}

/// Whether an error stands, whatever the expressions in the value come to.
fn stands(error: &ValidationError<'_>) -> bool {
    // That nothing may stand there does not hang on what it is.
    if matches!(error.kind(), ValidationErrorKind::FalseSchema) {
        return true;
    }
    match error.instance().as_ref() {
        Value::String(text) => !expression::is_expression(text),
        other => !(HANGS_ON_VALUES.contains(&error.kind().keyword()) && expression::has_expression(other)),
    }
}

/// What a schema says of a value in which expressions stand, each of them taken for any value.
///
/// # Errors
/// All that no value of the expressions can mend, by its place.
pub fn known_faults(schema: &Value, value: &Value) -> Result<(), Vec<Fault>> {
    let Ok(validator) = jsonschema::options().offline().build(schema) else { return Ok(()) };
    faults_of(schema, validator.iter_errors(value).filter(stands))
}

/// What an object has and its schema does not know; what else is wrong with it is not told.
///
/// # Errors
/// All that is unknown, by its place.
pub fn unknown_fields(schema: &Value, value: &Value) -> Result<(), Vec<Fault>> {
    let Ok(validator) = jsonschema::options().offline().build(schema) else { return Ok(()) };
    faults_of(schema, validator.iter_errors(value).filter(is_unknown_field))
}

fn explained(schema: &Value, error: &ValidationError<'_>) -> Vec<Fault> {
    let place = error.instance_path().to_string();
    match error.kind() {
        ValidationErrorKind::AdditionalProperties { unexpected } => {
            let keyword = error.schema_path().to_string();
            let beside = keyword.rsplit_once('/').map_or("", |(object, _)| object);
            let known = schema.pointer(beside).and_then(|object| object["properties"].as_object());
            let names: Vec<&str> = known.into_iter().flatten().map(|(name, _)| name.as_str()).collect();
            let unknown = |name: &String| {
                let mut near = did_you_mean(name, names.iter().copied());
                if near.is_empty() && !names.is_empty() {
                    near = format!("; there is {}", names.join(", "));
                }
                (below(&place, name), format!("there is no field `{}`{near}", name.escape_debug()))
            };
            unexpected.iter().map(unknown).collect()
        }
        ValidationErrorKind::FalseSchema => {
            let name = place.rsplit('/').next().unwrap_or_default().to_owned();
            vec![(place, format!("`{name}` does not go with the other fields here; leave it out"))]
        }
        // What is missing is named by the message; the place is that of its object.
        _ => vec![(place, error.to_string())],
    }
}

/// The pointer to a member of what stands at a pointer.
fn below(pointer: &str, name: &str) -> String {
    format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1"))
}

fn pointer(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    path.iter().fold(String::new(), |out, segment| match segment {
        Segment::Seq { index } => format!("{out}/{index}"),
        Segment::Map { key: name } | Segment::Enum { variant: name } => below(&out, name),
        Segment::Unknown => out,
    })
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
        let place = |config: Value| kind.validate(&config).map_err(|faults| faults[0].0.clone());
        assert_eq!(place(kind.kind().example), Ok(()));
        assert_eq!(place(json!({"capacity": {"min": "1", "max": 2}})), Err("/capacity/min".to_owned()));
        assert_eq!(place(json!({"capacity": {"min": 3, "max": 2}})), Err("/capacity/min".to_owned()));
        // What the schema lets through and the type does not.
        assert_eq!(place(json!({"capacity": {"min": -1, "max": 2}})), Err("/capacity/min".to_owned()));
        // All are told, and what is not known with what is.
        let faults = kind.validate(&json!({"capacity": {"min": "1", "max": []}, "targt": 1, "zz": 2})).unwrap_err();
        let mut places: Vec<&str> = faults.iter().map(|(pointer, _)| pointer.as_str()).collect();
        places.sort_unstable();
        assert_eq!(places, ["/capacity/max", "/capacity/min", "/targt", "/zz"]);
        let of =
            |wanted: &str| faults.iter().find(|(pointer, _)| pointer == wanted).map(|(_, message)| message.as_str());
        assert_eq!(of("/targt"), Some("there is no field `targt`; did you mean `target`?"));
        assert_eq!(of("/zz"), Some("there is no field `zz`; there is capacity, target"));
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
