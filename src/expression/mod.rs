//! `${ … }` in configs: MiniJinja expressions over what the execution knows, with strict
//! undefined, fuel and limits that are checked before anything is parsed.
//!
//! A string that is exactly one `${ … }` becomes the value itself, in its own type; in other
//! strings the value's text is put in. `$${` is a literal `${`. References to secrets
//! (`secret://…`) pass untouched, and no expression may make one.

mod names;
mod scan;

use std::sync::OnceLock;

use minijinja::value::ValueKind;
use minijinja::{Environment, UndefinedBehavior};
use serde_json::{Map, Number, Value};

pub use names::Reading;
use scan::Part;

/// Bytes of one expression, without its braces.
pub const SOURCE_MAX: usize = 1024;
/// Brackets within brackets in one expression.
pub const NESTING_MAX: usize = 32;
/// Names, numbers, strings and signs in one expression.
pub const TOKENS_MAX: usize = 256;
/// Instructions one expression may take.
const FUEL: u64 = 50_000;
/// Values (array items, object members) that one expression may result in.
const NODES_MAX: usize = 10_000;
/// How deep a result may be.
const DEPTH_MAX: usize = 64;
/// Bytes of text one string may grow to.
const TEXT_MAX: usize = 256 * 1024;
/// What marks a reference to a secret.
const SECRET: &str = "secret://";

/// An expression does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{pointer}: {message}")]
pub struct Error {
    /// JSON pointer of the string, empty for the whole.
    pub pointer: String,
    /// What is wrong, with the expression.
    pub message: String,
}

/// The config with each expression replaced by its value. Bounded, but not free: call it where
/// blocking is allowed when the config is large.
///
/// # Errors
/// At the first expression that is malformed, over a limit, or meets something undefined.
pub fn evaluate(config: &Value, vars: &Value) -> Result<Value, Error> {
    let vars = to_minijinja(vars);
    walk(config, &mut String::new(), &mut |text| evaluate_text(text, &vars))
}

/// Whether any string in the value holds an expression.
#[must_use]
pub fn has_expression(value: &Value) -> bool {
    match value {
        Value::String(text) => is_expression(text),
        Value::Array(items) => items.iter().any(has_expression),
        Value::Object(members) => members.values().any(has_expression),
        _ => false,
    }
}

/// Whether the string holds an expression, well formed or not.
#[must_use]
pub fn is_expression(text: &str) -> bool {
    !text.starts_with(SECRET) && scan::opens(text)
}

/// Checks the syntax of every expression in the value without evaluating any.
///
/// # Errors
/// At the first one that is malformed or over a limit.
pub fn parse_all(value: &Value) -> Result<(), Error> {
    walk(value, &mut String::new(), &mut |text| {
        for part in scan::parts(text)? {
            if let Part::Expression(source) = part {
                compile(source)?;
            }
        }
        Ok(Value::Null)
    })
    .map(|_| ())
}

/// Where in the value expressions stand: JSON pointers of the strings.
#[must_use]
pub fn places(value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    each(value, &mut String::new(), &mut |pointer, _| found.push(pointer.to_owned()));
    found
}

/// What the expressions in the value read, as far as their text alone can say, each with the JSON
/// pointer of its string. What is not well formed is left out: [`parse_all`] says so.
#[must_use]
pub fn readings(value: &Value) -> Vec<(String, Reading)> {
    let mut found = Vec::new();
    each(value, &mut String::new(), &mut |pointer, text| {
        for part in scan::parts(text).unwrap_or_default() {
            if let Part::Expression(source) = part {
                found.extend(names::readings(source).into_iter().map(|reading| (pointer.to_owned(), reading)));
            }
        }
    });
    found
}

/// Whether expressions may call something by that name.
#[must_use]
pub fn is_function(name: &str) -> bool {
    environment().globals().any(|(known, _)| known == name)
}

/// Every string that holds an expression, with its JSON pointer.
fn each(value: &Value, pointer: &mut String, found: &mut dyn FnMut(&str, &str)) {
    match value {
        Value::String(text) if is_expression(text) => found(pointer, text),
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                within(pointer, &index.to_string(), |pointer| each(item, pointer, found));
            }
        }
        Value::Object(members) => {
            for (name, member) in members {
                within(pointer, &escaped(name), |pointer| each(member, pointer, found));
            }
        }
        _ => {}
    }
}

/// A member's name as it stands in a JSON pointer.
fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

fn walk(
    value: &Value,
    pointer: &mut String,
    string: &mut dyn FnMut(&str) -> Result<Value, String>,
) -> Result<Value, Error> {
    match value {
        Value::String(text) if text.starts_with(SECRET) || !text.contains("${") => Ok(value.clone()),
        Value::String(text) => string(text).map_err(|message| Error { pointer: pointer.clone(), message }),
        Value::Array(items) => {
            let mut out = Vec::with_capacity(items.len());
            for (index, item) in items.iter().enumerate() {
                out.push(within(pointer, &index.to_string(), |pointer| walk(item, pointer, string))?);
            }
            Ok(Value::Array(out))
        }
        Value::Object(members) => {
            let mut out = Map::with_capacity(members.len());
            for (name, member) in members {
                let member = within(pointer, &escaped(name), |pointer| walk(member, pointer, string))?;
                out.insert(name.clone(), member);
            }
            Ok(Value::Object(out))
        }
        other => Ok(other.clone()),
    }
}

fn within<T>(pointer: &mut String, name: &str, run: impl FnOnce(&mut String) -> T) -> T {
    let length = pointer.len();
    pointer.push('/');
    pointer.push_str(name);
    let result = run(pointer);
    pointer.truncate(length);
    result
}

fn evaluate_text(text: &str, vars: &minijinja::Value) -> Result<Value, String> {
    let parts = scan::parts(text)?;
    let result = if let [Part::Expression(source)] = parts.as_slice() {
        evaluate_one(source, vars)?
    } else {
        let mut out = String::new();
        for part in parts {
            match part {
                Part::Text(text) => out.push_str(&text),
                Part::Expression(source) => match evaluate_one(source, vars)? {
                    Value::Null => return Err(format!("`${{{source}}}` is null and cannot be part of a text")),
                    Value::String(text) => out.push_str(&text),
                    other => out.push_str(&other.to_string()),
                },
            }
            if out.len() > TEXT_MAX {
                return Err(format!("the text grows beyond {TEXT_MAX} bytes"));
            }
        }
        Value::String(out)
    };
    // What comes from outside (parameters, answers of other systems) must not name secrets.
    if names_secret(&result) {
        return Err(format!("an expression may not result in a reference to a secret (`{SECRET}…`)"));
    }
    Ok(result)
}

fn names_secret(value: &Value) -> bool {
    match value {
        Value::String(text) => text.starts_with(SECRET),
        Value::Array(items) => items.iter().any(names_secret),
        Value::Object(members) => members.values().any(names_secret),
        _ => false,
    }
}

fn evaluate_one(source: &str, vars: &minijinja::Value) -> Result<Value, String> {
    let expression = compile(source)?;
    let value = expression.eval(vars.clone()).map_err(|error| describe(source, &error))?;
    if value.is_undefined() {
        return Err(format!("`{}` is not defined", source.trim()));
    }
    let mut nodes = 0;
    from_minijinja(&value, 0, &mut nodes).map_err(|message| format!("`{}` {message}", source.trim()))
}

fn compile(source: &str) -> Result<minijinja::Expression<'static, 'static>, String> {
    scan::vet(source)?;
    environment().compile_expression_owned(source.trim().to_owned()).map_err(|error| describe(source, &error))
}

fn describe(source: &str, error: &minijinja::Error) -> String {
    let source = source.trim();
    match error.detail() {
        Some(detail) => format!("`{source}`: {}: {detail}", error.kind()),
        None => format!("`{source}`: {}", error.kind()),
    }
}

fn environment() -> &'static Environment<'static> {
    static ENVIRONMENT: OnceLock<Environment<'static>> = OnceLock::new();
    ENVIRONMENT.get_or_init(|| {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_fuel(Some(FUEL));
        // What makes much out of little, or shows more than was asked for.
        for function in ["range", "debug", "namespace", "cycler", "joiner"] {
            environment.remove_global(function);
        }
        for filter in ["pprint", "indent", "format"] {
            environment.remove_filter(filter);
        }
        environment
    })
}

fn to_minijinja(value: &Value) -> minijinja::Value {
    match value {
        Value::Null => minijinja::Value::from(()),
        Value::Bool(flag) => minijinja::Value::from(*flag),
        Value::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(number), _, _) => minijinja::Value::from(number),
            (_, Some(number), _) => minijinja::Value::from(number),
            (_, _, number) => minijinja::Value::from(number.unwrap_or(f64::NAN)),
        },
        Value::String(text) => minijinja::Value::from(text.as_str()),
        Value::Array(items) => items.iter().map(to_minijinja).collect(),
        Value::Object(members) => {
            minijinja::Value::from_pairs(members.iter().map(|(name, value)| (name.as_str(), to_minijinja(value))))
        }
    }
}

fn from_minijinja(value: &minijinja::Value, depth: usize, nodes: &mut usize) -> Result<Value, String> {
    *nodes += 1;
    if *nodes > NODES_MAX {
        return Err(format!("results in more than {NODES_MAX} values"));
    }
    if depth > DEPTH_MAX {
        return Err(format!("results in something deeper than {DEPTH_MAX}"));
    }
    match value.kind() {
        ValueKind::None | ValueKind::Undefined => Ok(Value::Null),
        ValueKind::Bool => Ok(Value::Bool(value.is_true())),
        ValueKind::Number => number(value).ok_or_else(|| "results in a number that JSON cannot hold".to_owned()),
        ValueKind::String => match value.as_str() {
            Some(text) if text.len() <= TEXT_MAX => Ok(Value::String(text.to_owned())),
            _ => Err(format!("results in a text beyond {TEXT_MAX} bytes")),
        },
        ValueKind::Seq | ValueKind::Iterable => {
            let mut out = Vec::new();
            for item in value.try_iter().map_err(|error| error.to_string())? {
                out.push(from_minijinja(&item, depth + 1, nodes)?);
            }
            Ok(Value::Array(out))
        }
        ValueKind::Map => {
            let mut out = Map::new();
            for key in value.try_iter().map_err(|error| error.to_string())? {
                let member = value.get_item(&key).map_err(|error| error.to_string())?;
                let member = from_minijinja(&member, depth + 1, nodes)?;
                out.insert(key.to_string(), member);
            }
            Ok(Value::Object(out))
        }
        other => Err(format!("results in a {other}, which is not a JSON value")),
    }
}

fn number(value: &minijinja::Value) -> Option<Value> {
    if value.is_integer() {
        if let Some(number) = value.as_i64() {
            return Some(Value::from(number));
        }
        return u64::try_from(value.clone()).ok().map(Value::from);
    }
    f64::try_from(value.clone()).ok().and_then(Number::from_f64).map(Value::Number)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn vars() -> Value {
        json!({
            "parameters": {"size": 3, "name": "web", "list": [1, 2], "flag": true, "evil": "secret://env/X", "nothing": null},
            "execution": {"number": 7},
            "stages": {"deploy": {"status": "SUCCEEDED", "outputs": {"serverGroup": "web-v002"}}},
        })
    }

    fn text(text: &str) -> Result<Value, String> {
        evaluate(&json!(text), &vars()).map_err(|error| error.message)
    }

    #[test]
    fn a_lone_expression_keeps_its_type() {
        for (source, expected) in [
            ("${parameters.size}", json!(3)),
            ("${ parameters.size + 1 }", json!(4)),
            ("${parameters.list}", json!([1, 2])),
            ("${parameters.flag}", json!(true)),
            ("${1 == 1}", json!(true)),
            ("${3 / 2}", json!(1.5)),
            ("${parameters.nothing}", json!(null)),
            ("${'}' ~ \"{\"}", json!("}{")),
            ("${ {'a': [1, {'b': 2}]} }", json!({"a": [1, {"b": 2}]})),
            ("${stages['deploy'].outputs.serverGroup}", json!("web-v002")),
        ] {
            assert_eq!(text(source), Ok(expected), "{source}");
        }
    }

    #[test]
    fn other_strings_are_interpolated() {
        assert_eq!(text("v${execution.number}-${parameters.name}!"), Ok(json!("v7-web!")));
        assert_eq!(text("list: ${parameters.list}"), Ok(json!("list: [1,2]")));
        assert_eq!(text("$${HOME} and ${parameters.size}"), Ok(json!("${HOME} and 3")));
        assert_eq!(text("$${HOME}"), Ok(json!("${HOME}")));
        assert_eq!(text("costs 5$ {"), Ok(json!("costs 5$ {")));
    }

    #[test]
    fn an_error_names_the_place_and_the_expression() {
        let error = evaluate(&json!({"a/b": [1, "${nope.x}"]}), &vars()).unwrap_err();
        assert_eq!(error.pointer, "/a~1b/1");
        assert!(error.message.contains("nope.x"), "{error}");
        assert!(text("${parameters.missing}").unwrap_err().contains("not defined"));
        assert!(text("x ${parameters.nothing}").unwrap_err().contains("is null"));
        assert!(text("${parameters.size").unwrap_err().contains("not closed"));
        assert!(parse_all(&json!(["${1 +}"])).is_err());
        assert!(parse_all(&json!(["${}"])).is_err());
        assert_eq!(parse_all(&json!({"a": "${anything.at.all}", "b": "$${"})), Ok(()));
    }

    #[test]
    fn secrets_pass_untouched_and_are_not_made() {
        assert_eq!(text("secret://env/${parameters.name}"), Ok(json!("secret://env/${parameters.name}")));
        assert!(!has_expression(&json!("secret://env/${x}")));
        for source in ["${parameters.evil}", "${'secret'}://env/X", "${parameters}", "${[parameters.evil]}"] {
            assert!(text(source).unwrap_err().contains("secret"), "{source}");
        }
    }

    #[test]
    fn what_is_not_defined_may_be_asked_about_but_nothing_below_it() {
        for (source, expected) in [
            ("${parameters.missing | default('x')}", json!("x")),
            ("${parameters.missing is defined}", json!(false)),
            ("${parameters.missing if parameters.missing is defined else 1}", json!(1)),
            ("${(parameters.missing) | default('x')}", json!("x")),
        ] {
            assert_eq!(text(source), Ok(expected), "{source}");
        }
        // So a name above the one that is asked about has to be there.
        assert!(text("${stages.nope.outputs | default('x')}").is_err());
        assert!(text("${stages.nope.outputs is defined}").is_err());
        assert!(text("${parametres | default('x')}").is_ok());
    }

    #[test]
    fn expressions_are_found_with_their_places() {
        let value = json!({"a/b": [1, "x ${parameters.y} ${1}"], "c": "$${no}", "d": "secret://env/${x}"});
        assert_eq!(places(&value), ["/a~1b/1"]);
        let readings = readings(&value);
        assert_eq!(readings.len(), 1, "{readings:?}");
        assert_eq!((readings[0].0.as_str(), readings[0].1.up_to(1)), ("/a~1b/1", "parameters.y"));
        assert!(is_function("dict") && !is_function("range") && !is_function("parameters"));
    }

    #[test]
    fn monsters_end_in_an_error_and_not_in_an_abort() {
        let long = format!("${{{}}}", vec!["1"; 5_000].join("+"));
        let many = format!("${{{}}}", vec!["1"; 400].join("+"));
        let deep = format!("${{{}1{}}}", "(".repeat(200), ")".repeat(200));
        let not = format!("${{{}true}}", "not ".repeat(240));
        let minus = format!("${{{}1}}", "-".repeat(250));
        for source in [&long, &many, &deep] {
            assert!(text(source).is_err(), "{}", &source[..40]);
        }
        // Within the limits: any answer will do, as long as there is one.
        let _ = (text(&not), text(&minus));
        assert!(text("${[0] * 1000000}").is_err());
        assert!(text("${'aaaaaaaaaa' * 100000}").is_err());
    }
}
