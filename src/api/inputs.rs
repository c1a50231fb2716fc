//! Variables against the types that their operation declares, before anything runs: an error names
//! the variable, the place within it and what belongs there.

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

use async_graphql::parser::types::{
    BaseType, OperationDefinition, Type, TypeDefinition, TypeKind, TypeSystemDefinition,
};
use async_graphql::{Name, Value, Variables};

use super::error::{Code, shown};
use super::precheck::Refused;
use crate::near::did_you_mean;

/// The input types of the schema.
#[derive(Default)]
struct Types {
    objects: HashMap<String, Object>,
    enums: HashMap<String, Vec<String>>,
}

struct Object {
    fields: BTreeMap<String, Field>,
    is_one_of: bool,
}

struct Field {
    ty: Type,
    has_default: bool,
}

static TYPES: LazyLock<Types> = LazyLock::new(|| {
    let document = async_graphql::parser::parse_schema(super::sdl()).expect("the printed schema reads back");
    let mut types = Types::default();
    for definition in document.definitions {
        if let TypeSystemDefinition::Type(definition) = definition {
            types.add(definition.node);
        }
    }
    types
});

/// Deeper than any input type of the schema nests.
const LEVELS_MAX: usize = 32;

/// Checks what is given for the operation's variables.
pub(super) fn check(operation: &OperationDefinition, variables: &Variables) -> Result<(), Refused> {
    for (name, value) in variables.iter() {
        no_nul(value, &format!("${name}"))?;
    }
    for definition in &operation.variable_definitions {
        let (name, ty) = (&definition.node.name.node, &definition.node.var_type.node);
        match variables.get(name) {
            Some(value) => TYPES.value(ty, value, &format!("${name}"), 0)?,
            None if ty.nullable || definition.node.default_value.is_some() => {}
            None => {
                let message = format!("the variable `${name}` of type `{ty}` is not given; send it in `variables`");
                return Err(Refused { code: Code::ValidationFailed, message });
            }
        }
    }
    Ok(())
}

/// PostgreSQL has no place for the character U+0000, and nothing means anything by it.
fn no_nul(value: &Value, path: &str) -> Result<(), Refused> {
    match value {
        Value::String(text) if text.contains('\0') => Err(refused(path, HAS_NUL)),
        Value::List(items) => items.iter().enumerate().try_for_each(|(at, item)| no_nul(item, &format!("{path}.{at}"))),
        Value::Object(fields) => fields.iter().try_for_each(|(name, value)| match name.contains('\0') {
            true => Err(refused(path, HAS_NUL)),
            false => no_nul(value, &format!("{path}.{name}")),
        }),
        _ => Ok(()),
    }
}

const HAS_NUL: &str = "has the character NUL (U+0000), which no text may have";

/// The same for texts that stand in the document.
pub(super) fn no_nul_within(document: &str) -> Result<(), Refused> {
    let escapes = |at: usize| document[..at].bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 0;
    let escaped = document.match_indices("\\u0000").any(|(at, _)| escapes(at));
    if !escaped && !document.contains('\0') {
        return Ok(());
    }
    Err(Refused { code: Code::ValidationFailed, message: format!("a text in `query` {HAS_NUL}") })
}

fn refused(path: &str, what: impl std::fmt::Display) -> Refused {
    Refused { code: Code::ValidationFailed, message: format!("the variable `{path}` {what}") }
}

impl Types {
    fn add(&mut self, definition: TypeDefinition) {
        let name = definition.name.node.to_string();
        match definition.kind {
            TypeKind::InputObject(input) => {
                let is_one_of =
                    definition.directives.iter().any(|directive| directive.node.name.node.as_str() == "oneOf");
                let field = |field: async_graphql::parser::types::InputValueDefinition| {
                    let has_default = field.default_value.is_some();
                    (field.name.node.to_string(), Field { ty: field.ty.node, has_default })
                };
                let fields = input.fields.into_iter().map(|positioned| field(positioned.node)).collect();
                self.objects.insert(name, Object { fields, is_one_of });
            }
            TypeKind::Enum(values) => {
                let values = values.values.into_iter().map(|value| value.node.value.node.to_string()).collect();
                self.enums.insert(name, values);
            }
            _ => {}
        }
    }

    fn value(&self, ty: &Type, value: &Value, path: &str, level: usize) -> Result<(), Refused> {
        if level > LEVELS_MAX {
            return Err(refused(path, "is nested too deeply"));
        }
        match (&ty.base, value) {
            (_, Value::Null) if ty.nullable => Ok(()),
            (_, Value::Null) => Err(refused(path, format!("is null; a `{ty}` belongs there"))),
            (BaseType::List(item), Value::List(values)) => values
                .iter()
                .enumerate()
                .try_for_each(|(index, value)| self.value(item, value, &format!("{path}.{index}"), level + 1)),
            // One item counts as a list of one.
            (BaseType::List(item), value) => self.value(item, value, path, level + 1),
            (BaseType::Named(name), value) => self.named(name, value, path, level),
        }
    }

    fn named(&self, name: &Name, value: &Value, path: &str, level: usize) -> Result<(), Refused> {
        if let Some(object) = self.objects.get(name.as_str()) {
            let Value::Object(given) = value else { return Err(wrong(path, value, &format!("a `{name}`"))) };
            return self.object(name, object, given, path, level);
        }
        if let Some(values) = self.enums.get(name.as_str()) {
            let given = match value {
                Value::String(text) => text.as_str(),
                Value::Enum(text) => text.as_str(),
                other => return Err(wrong(path, other, &format!("one of {}", values.join(", ")))),
            };
            if values.iter().any(|value| value == given) {
                return Ok(());
            }
            return Err(wrong(path, value, &format!("one of {}", values.join(", "))));
        }
        match (name.as_str(), value) {
            ("Int", Value::Number(number)) if number.is_i64() || number.is_u64() => Ok(()),
            ("Int", _) => Err(wrong(path, value, "an integer")),
            ("Float", Value::Number(_)) | ("Boolean", Value::Boolean(_)) | ("String", Value::String(_)) => Ok(()),
            ("Float", _) => Err(wrong(path, value, "a number")),
            ("Boolean", _) => Err(wrong(path, value, "`true` or `false`")),
            ("String", _) => Err(wrong(path, value, "a string")),
            // Scalars of our own and unknown types speak for themselves.
            _ => Ok(()),
        }
    }

    fn object(
        &self,
        name: &Name,
        object: &Object,
        given: &async_graphql::indexmap::IndexMap<Name, Value>,
        path: &str,
        level: usize,
    ) -> Result<(), Refused> {
        for (field, value) in given {
            let Some(known) = object.fields.get(field.as_str()) else {
                let near = did_you_mean(field, object.fields.keys().map(String::as_str));
                return Err(refused(path, format!("has a field `{}` that `{name}` does not know{near}", shown(field))));
            };
            self.value(&known.ty, value, &format!("{path}.{field}"), level + 1)?;
        }
        if object.is_one_of {
            let set = given.values().filter(|value| **value != Value::Null).count();
            let names: Vec<String> = object.fields.keys().map(|field| format!("`{field}`")).collect();
            if (given.len(), set) != (1, 1) {
                return Err(refused(path, format!("has {set} of the fields {}; give exactly one", names.join(", "))));
            }
        }
        let missing = object
            .fields
            .iter()
            .find(|(field, known)| !known.ty.nullable && !known.has_default && !given.contains_key(field.as_str()));
        match missing {
            None => Ok(()),
            Some((field, known)) => {
                Err(refused(&format!("{path}.{field}"), format!("is not given; a `{}` belongs there", known.ty)))
            }
        }
    }
}

fn wrong(path: &str, value: &Value, wanted: &str) -> Refused {
    // What is given may be a secret in the wrong place: its sort is told, and short plain values.
    let given = match value {
        Value::Number(_) | Value::Boolean(_) => format!("`{value}`"),
        Value::Enum(text) => format!("`{}`", shown(text)),
        Value::String(_) => "a string".to_owned(),
        Value::List(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        Value::Binary(_) | Value::Null => "nothing that is a value".to_owned(),
    };
    refused(path, format!("is {given}; {wanted} belongs there"))
}

#[cfg(test)]
mod tests {
    use async_graphql::parser::types::DocumentOperations;
    use serde_json::json;

    use super::*;

    fn fault(declared: &str, variables: serde_json::Value) -> String {
        let text = format!("mutation({declared}) {{ viewer {{ name }} }}");
        let document = async_graphql::parser::parse_query(text).expect("a document");
        let DocumentOperations::Single(operation) = document.operations else { panic!("one operation") };
        match check(&operation.node, &Variables::from_json(variables)) {
            Ok(()) => String::new(),
            Err(refused) => refused.message,
        }
    }

    #[test]
    fn what_does_not_fit_is_named_with_its_place() {
        let group = json!({"name": {"account": "local", "location": "local", "name": "hello-v000"}});
        let resize = |capacity: serde_json::Value| json!({"input": {"serverGroup": group, "capacity": capacity}});
        let declared = "$input: ResizeServerGroupInput!";
        for (declared, variables, wanted) in [
            (declared, json!({}), "`$input` of type `ResizeServerGroupInput!` is not given; send it"),
            (declared, json!({"input": null}), "`$input` is null; a `ResizeServerGroupInput!` belongs there"),
            (declared, json!({"input": 7}), "`$input` is `7`; a `ResizeServerGroupInput` belongs there"),
            (declared, json!({"input": {"serverGroup": group}}), "`$input.capacity` is not given; a `CapacityInput!`"),
            (declared, resize(json!({"min": 1, "max": 3})), "`$input.capacity.desired` is not given; a `Int!`"),
            (
                declared,
                resize(json!({"min": 1.5, "desired": 2, "max": 3})),
                "`$input.capacity.min` is `1.5`; an integer belongs there",
            ),
            (
                declared,
                resize(json!({"min": "1", "desired": 2, "max": 3})),
                "`$input.capacity.min` is a string; an integer belongs there",
            ),
            (
                declared,
                resize(json!({"min": 1, "desired": 2, "max": 3, "maxx": 3})),
                "`$input.capacity` has a field `maxx` that `CapacityInput` does not know",
            ),
            ("$a: ApplicationSelector!", json!({"a": {}}), "`$a` has 0 of the fields `id`, `name`; give exactly one"),
            ("$a: ApplicationSelector!", json!({"a": {"id": "x", "name": "y"}}), "`$a` has 2 of the fields"),
            ("$m: CancelMode", json!({"m": "STAY"}), "`$m` is a string; one of UNWIND, LEAVE belongs there"),
            ("$n: [Int!]", json!({"n": [1, null]}), "`$n.1` is null; a `Int!` belongs there"),
            ("$j: JSON", json!({"j": [{"a": "x\0"}]}), "`$j.0.a` has the character NUL"),
            ("$j: JSON", json!({"j": {"a\0": 1}}), "`$j` has the character NUL"),
        ] {
            let message = fault(declared, variables.clone());
            assert!(message.contains(wanted), "{variables}: {message:?} has not {wanted:?}");
        }
    }

    #[test]
    fn a_document_has_no_nul_in_its_texts() {
        for (document, holds) in [
            (r#"{ a(b: "c\u0000") }"#, false),
            (r#"{ a(b: "c\\\u0000") }"#, false),
            (r#"{ a(b: "c\\u0000") }"#, true),
            (r#"{ a(b: "c\u0001") }"#, true),
        ] {
            assert_eq!(no_nul_within(document).is_ok(), holds, "{document}");
        }
    }

    #[test]
    fn what_fits_passes() {
        for (declared, variables) in [
            ("$n: Int, $m: Int! = 3", json!({})),
            ("$n: [Int!]!", json!({"n": 3})),
            ("$m: CancelMode!", json!({"m": "LEAVE", "other": 1})),
            ("$a: ApplicationSelector", json!({"a": {"name": "hello"}})),
            ("$i: CancelExecutionInput!", json!({"i": {"execution": {"id": "x"}}})),
            ("$j: JSON, $id: ID!", json!({"j": {"a": [1, "b"]}, "id": 7})),
        ] {
            assert_eq!(fault(declared, variables.clone()), "", "{declared} {variables}");
        }
    }
}
