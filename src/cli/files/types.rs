//! What a server's own schema says about inputs: which fields there are, of which type, with which
//! default. Documents are checked against it, so that what a server learns, files may say.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::tree::{Content, Node};
use crate::cli::client::{Client, Error};
use crate::model::Occasion;
use crate::near::did_you_mean;

const INTROSPECTION: &str = "
query Types {
  __schema {
    types {
      kind
      name
      fields { name type { ...type } }
      inputFields { name defaultValue type { ...type } }
      enumValues { name }
    }
  }
}
fragment type on __Type { kind name ofType { kind name ofType { kind name ofType { kind name } } } }";

/// A type as GraphQL writes it: `[String!]!`.
#[derive(Debug, Clone, PartialEq)]
pub enum Type {
    Named(String),
    List(Box<Type>),
    Required(Box<Type>),
}

/// A field of an input.
#[derive(Debug, Clone)]
pub struct Field {
    pub name: String,
    pub of: Type,
    pub default: Option<Value>,
}

/// The types of a server's schema.
#[derive(Debug, Default)]
pub struct Types {
    inputs: HashMap<String, Vec<Field>>,
    outputs: HashMap<String, Vec<(String, Type)>>,
    enums: HashMap<String, Vec<String>>,
}

/// What is wrong with a value, by its path in the document.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    pub line: u64,
    pub message: String,
}

impl Types {
    /// Asks the server.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn ask(client: &Client) -> Result<Self, Error> {
        let data = client.query(INTROSPECTION, serde_json::json!({})).await?;
        Ok(Self::read(&data))
    }

    fn read(data: &Value) -> Self {
        let mut types = Self::default();
        for of in list(&data["__schema"]["types"]) {
            let name = of["name"].as_str().unwrap_or_default().to_owned();
            let field = |field: &Value| field["name"].as_str().unwrap_or_default().to_owned();
            match of["kind"].as_str() {
                Some("INPUT_OBJECT") => {
                    let fields = list(&of["inputFields"]).iter().map(|input| Field {
                        name: field(input),
                        of: Type::read(&input["type"]),
                        default: input["defaultValue"].as_str().and_then(literal),
                    });
                    types.inputs.insert(name, fields.collect());
                }
                Some("OBJECT") => {
                    let fields = list(&of["fields"]).iter().map(|output| (field(output), Type::read(&output["type"])));
                    types.outputs.insert(name, fields.collect());
                }
                Some("ENUM") => {
                    types.enums.insert(name, list(&of["enumValues"]).iter().map(field).collect());
                }
                _ => {}
            }
        }
        types
    }

    /// The fields of an input; none where the server does not know it.
    pub fn input(&self, name: &str) -> &[Field] {
        self.inputs.get(name).map(Vec::as_slice).unwrap_or_default()
    }

    fn output(&self, of: &str, field: &str) -> Option<&Type> {
        self.outputs.get(of)?.iter().find(|(name, _)| name == field).map(|(_, of)| of)
    }

    /// Checks a value; every fault is added to the list.
    pub fn check(&self, of: &Type, node: &Node, path: &str, faults: &mut Vec<Fault>) {
        let mut fault = |message: String| faults.push(Fault { line: node.line, message });
        match (of, &node.content) {
            (Type::Required(_), Content::Null) => fault(format!("`{path}` has no value")),
            (Type::Required(inner), _) => self.check(inner, node, path, faults),
            (_, Content::Null) => {}
            (Type::List(inner), Content::List(items)) => {
                for (index, item) in items.iter().enumerate() {
                    self.check(inner, item, &format!("{path}.{index}"), faults);
                }
            }
            (Type::List(_), _) => fault(format!("`{path}` is a list, not {}", node.sort())),
            (Type::Named(name), content) => {
                if self.inputs.contains_key(name) {
                    return match content {
                        Content::Map(_) => self.check_fields(self.input(name), node, path, faults),
                        _ => fault(format!("`{path}` is an object, not {}", node.sort())),
                    };
                }
                if let Some(values) = self.enums.get(name) {
                    if !node.text().is_some_and(|text| values.iter().any(|value| value == text)) {
                        let given = node.text().map_or_else(|| node.sort().to_owned(), |text| format!("`{text}`"));
                        let values: Vec<&str> = values.iter().map(String::as_str).filter(|it| may_stand(it)).collect();
                        let all = values.join(", ");
                        let near = did_you_mean(&node.text().unwrap_or_default().to_uppercase(), values);
                        fault(format!("`{path}` is one of {all}, not {given}{near}"));
                    }
                    return;
                }
                let holds = match (name.as_str(), content) {
                    ("Duration", Content::Text(text)) => crate::api::graphql::canonical_span(text).is_some(),
                    ("Int", Content::Number(number)) => number.is_i64() || number.is_u64(),
                    ("Float", Content::Number(_)) | ("Boolean", Content::Bool(_)) => true,
                    ("Int" | "Float" | "Boolean", _) => false,
                    ("JSON", _) | (_, Content::Text(_)) => true,
                    _ => false,
                };
                if !holds {
                    let wanted = match name.as_str() {
                        "Int" => "a whole number",
                        "Float" => "a number",
                        "Boolean" => "true or false",
                        "Duration" => "a span of time such as PT30S or PT0.5S",
                        _ => "a text (put it in quotes)",
                    };
                    let given = match (name.as_str(), node.text()) {
                        ("Duration", Some(text)) => format!("`{text}`"),
                        _ => node.sort().to_owned(),
                    };
                    fault(format!("`{path}` is {wanted}, not {given}"));
                }
            }
        }
    }

    /// Checks an object's fields: known ones only, and all that are required.
    pub fn check_fields(&self, fields: &[Field], node: &Node, path: &str, faults: &mut Vec<Fault>) {
        let Content::Map(entries) = &node.content else { return };
        let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        for (key, line, value) in entries {
            match fields.iter().find(|field| field.name == *key) {
                Some(field) => self.check(&field.of, value, &below(key), faults),
                None => {
                    let near = did_you_mean(key, fields.iter().map(|field| field.name.as_str()));
                    let message = format!("there is no field `{}`{near}", below(key));
                    faults.push(Fault { line: *line, message });
                }
            }
        }
        for field in fields.iter().filter(|field| matches!(field.of, Type::Required(_)) && field.default.is_none()) {
            if !entries.iter().any(|(key, _, _)| *key == field.name) {
                let message = format!("`{}` is missing", below(&field.name));
                faults.push(Fault { line: node.line, message });
            }
        }
    }

    /// A value in the one form in which values are compared and written: fields in the schema's
    /// order, what says no more than the default left out. None where nothing is left.
    pub fn canonical(&self, of: &Type, value: &Value) -> Option<Value> {
        match (of, value) {
            (_, Value::Null) => None,
            (Type::Required(inner), _) => self.canonical(inner, value),
            (Type::List(inner), Value::Array(items)) => {
                // An item stands for itself even where it says nothing.
                let item = |item| self.canonical(inner, item).unwrap_or_else(|| emptied(item));
                Some(items.iter().map(item).collect())
            }
            (Type::Named(name), Value::Object(_)) if self.inputs.contains_key(name) => {
                let mut fields = self.canonical_fields(self.input(name), value);
                if name == "HealthCheckInput" && fields.get("protocol") == Some(&"HTTP".into()) {
                    // Of HTTP alone, so that the schema cannot say it as a default.
                    fields.retain(|field, value| field != "statuses" || *value != serde_json::json!([200]));
                }
                Some(Value::Object(fields))
            }
            (Type::Named(name), Value::String(text)) if name == "Duration" => Some(same_span(text).into()),
            _ => Some(value.clone()),
        }
    }

    /// The fields of an object in that form.
    pub fn canonical_fields(&self, fields: &[Field], value: &Value) -> Map<String, Value> {
        let mut map = Map::new();
        for field in fields {
            let Some(given) = value.get(&field.name).and_then(|given| self.canonical(&field.of, given)) else {
                continue;
            };
            let given = match (field.name.as_str(), given) {
                ("cidr", Value::String(text)) => same::<ipnet::IpNet>(text).into(),
                ("address", Value::String(text)) => same::<std::net::IpAddr>(text).into(),
                (_, given) => given,
            };
            let default = field.default.as_ref().and_then(|default| self.canonical(&field.of, default));
            let nothing = matches!(field.of, Type::List(_)) && given.as_array().is_some_and(Vec::is_empty);
            if default.as_ref() != Some(&given) && !nothing {
                map.insert(field.name.clone(), given);
            }
        }
        map
    }

    /// What to ask of an output to read back the fields of an input; only what both have.
    pub fn selection(&self, fields: &[Field], output: &str) -> String {
        let mut text = String::from("{ __typename");
        for field in fields {
            let Some(of) = self.output(output, &field.name) else { continue };
            text.push(' ');
            text.push_str(&field.name);
            let (input, output) = (field.of.named(), of.named());
            if let Some(inner) = self.inputs.get(input) {
                text.push(' ');
                text.push_str(&self.selection(inner, output));
            } else if self.outputs.contains_key(output) {
                // An input names what the output holds.
                text.push_str(" { name }");
            }
        }
        text.push_str(" }");
        text
    }

    /// What was read by [`Types::selection`], as the input it came from.
    pub fn as_input(&self, fields: &[Field], output: &Value) -> Value {
        let mut map = Map::new();
        for field in fields {
            if let Some(value) = output.get(&field.name) {
                map.insert(field.name.clone(), self.value_as_input(field.of.named(), value));
            }
        }
        Value::Object(map)
    }

    fn value_as_input(&self, input: &str, value: &Value) -> Value {
        match value {
            Value::Array(items) if input != "JSON" => {
                items.iter().map(|item| self.value_as_input(input, item)).collect()
            }
            Value::Object(_) if self.inputs.contains_key(input) => self.as_input(self.input(input), value),
            Value::Object(fields) if input != "JSON" => fields.get("name").cloned().unwrap_or_default(),
            other => other.clone(),
        }
    }
}

impl Type {
    fn read(of: &Value) -> Self {
        match of["kind"].as_str() {
            Some("NON_NULL") => Self::Required(Box::new(Self::read(&of["ofType"]))),
            Some("LIST") => Self::List(Box::new(Self::read(&of["ofType"]))),
            _ => Self::Named(of["name"].as_str().unwrap_or_default().to_owned()),
        }
    }

    /// The type within lists.
    fn named(&self) -> &str {
        match self {
            Self::Named(name) => name,
            Self::List(inner) | Self::Required(inner) => inner.named(),
        }
    }
}

/// Whether a document may say it: the schema has one list of occasions, and not of all are there rules.
fn may_stand(value: &str) -> bool {
    serde_json::from_value::<Occasion>(value.into()).map_or(true, Occasion::is_of_executions)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn emptied(item: &Value) -> Value {
    if item.is_object() { Value::Object(Map::new()) } else { Value::Null }
}

/// A default as the schema writes it: JSON, or the name of an enum's value.
fn literal(text: &str) -> Option<Value> {
    let is_name = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    serde_json::from_str(text).ok().or_else(|| is_name(text).then(|| Value::from(text)))
}

/// A duration in the one way that the API writes it; other text stays, and the server refuses it.
fn same_span(text: &str) -> String {
    crate::api::graphql::canonical_span(text).unwrap_or_else(|| text.to_owned())
}

/// The same of an address: `FE80:0::` is `fe80::`.
fn same<T: std::str::FromStr + ToString>(text: String) -> String {
    text.parse::<T>().map_or(text, |address| address.to_string())
}
