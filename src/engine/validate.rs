//! Whether a pipeline's definition holds: its faults, each by its path.

mod names;

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use super::commands::{Code, Error};
use super::contract::{Fault, Registry, When};
use super::{Options, notices};
use crate::expression;
use crate::model::{NotificationRule, PipelineDefinition, StageSpec, TriggerSpec, check_address};
use crate::near::did_you_mean;
use names::Names;
use serde_json::Value;

/// Stages of a pipeline.
const STAGES_MAX: usize = 100;
/// Parameters of a pipeline.
const PARAMETERS_MAX: usize = 100;
/// Notification rules of a pipeline, and of one of its stages.
const RULES_MAX: usize = 20;
/// Triggers of a pipeline.
const TRIGGERS_MAX: usize = 20;
/// Addresses that the rules of a pipeline and its stages name, all together: each event of an
/// execution carries them, and each message goes to each.
const RECIPIENTS_MAX: usize = 100;
/// Characters of a key or a parameter's name.
const KEY_MAX: usize = 64;
/// Characters of a name or title.
const NAME_MAX: usize = 200;
/// Characters of a description.
const DESCRIPTION_MAX: usize = 4_000;
/// The longest timeout of a stage: a year.
const TIMEOUT_MAX: u64 = 365 * 86_400;

/// Faults of one definition that are told.
const FAULTS_MAX: usize = 50;

/// Checks the whole definition: its first fault.
pub(super) fn definition(definition: &PipelineDefinition, registry: &Registry, options: &Options) -> Result<(), Error> {
    faults(definition, registry, options).into_iter().next().map_or(Ok(()), Err)
}

/// All that is wrong with a definition.
pub(super) fn faults(definition: &PipelineDefinition, registry: &Registry, options: &Options) -> Vec<Error> {
    if definition.format_version != PipelineDefinition::FORMAT_VERSION {
        let message = format!(
            "format version {} is not known; this server writes and reads {}",
            definition.format_version,
            PipelineDefinition::FORMAT_VERSION
        );
        return vec![Error::invalid(&["formatVersion"], message)];
    }
    let stages = &definition.stages;
    if stages.is_empty() || stages.len() > STAGES_MAX {
        let message = format!("a pipeline has 1 to {STAGES_MAX} stages, not {}", stages.len());
        return vec![Error::invalid(&["stages"], message)];
    }
    let mut faults: Vec<Error> =
        text(&["description"], &definition.description, DESCRIPTION_MAX).err().into_iter().collect();
    faults.extend(parameters(definition).err());
    match keys(stages) {
        Ok(()) => {
            let wrong = references(stages);
            faults.extend(if wrong.is_empty() { cycles(stages).err().into_iter().collect() } else { wrong });
        }
        Err(wrong) => faults.push(wrong),
    }
    faults.extend(notifications(definition).err());
    let names = Names::of(definition);
    faults.extend(stages.iter().enumerate().flat_map(|(index, stage)| config(index, stage, &names, registry, options)));
    faults.extend(triggers(definition, registry, options));
    faults.truncate(FAULTS_MAX);
    faults
}

fn text(field: &[&str], text: &str, max: usize) -> Result<(), Error> {
    if text.chars().count() > max {
        return Err(Error::invalid(field, format!("the text has more than {max} characters")));
    }
    Ok(())
}

fn is_key(key: &str) -> bool {
    let allowed = |char: char| char.is_ascii_alphanumeric() || matches!(char, '-' | '_');
    !key.is_empty() && key.len() <= KEY_MAX && key.chars().all(allowed)
}

fn parameters(definition: &PipelineDefinition) -> Result<(), Error> {
    if definition.parameters.len() > PARAMETERS_MAX {
        return Err(Error::invalid(&["parameters"], format!("a pipeline has at most {PARAMETERS_MAX} parameters")));
    }
    let mut names = HashSet::new();
    for (index, parameter) in definition.parameters.iter().enumerate() {
        let at = index.to_string();
        let (name, size) = (&parameter.name, notices::size);
        if !is_key(name) {
            let message = format!("`{name}` is not a parameter's name: 1 to {KEY_MAX} letters, digits, `-` and `_`");
            return Err(Error::invalid(&["parameters", &at, "name"], message));
        }
        if !names.insert(name) {
            let message = format!("two parameters have the name `{name}`");
            return Err(Error::invalid(&["parameters", &at, "name"], message));
        }
        text(&["parameters", &at, "description"], &parameter.description, DESCRIPTION_MAX)?;
        let given: usize = parameter.options.iter().chain(&parameter.default).map(size).sum();
        if given > 16 * 1024 {
            return Err(Error::invalid(&["parameters", &at], "a parameter's default and options take at most 16 KiB"));
        }
        if let Some(default) = &parameter.default
            && !parameter.options.is_empty()
            && !parameter.options.contains(default)
        {
            let message = format!("the default of parameter `{name}` is not one of its options");
            return Err(Error::invalid(&["parameters", &at, "default"], message));
        }
    }
    Ok(())
}

/// The rules of the pipeline and of its stages.
fn notifications(definition: &PipelineDefinition) -> Result<(), Error> {
    let mut recipients = rules(&["notifications"], &definition.notifications)?;
    for (index, stage) in definition.stages.iter().enumerate() {
        recipients += rules(&["stages", &index.to_string(), "notifications"], &stage.notifications)?;
    }
    if recipients > RECIPIENTS_MAX {
        let message = format!(
            "the rules of the pipeline and its stages name {recipients} addresses, at most {RECIPIENTS_MAX} are \
             allowed; use the address of a mailing list"
        );
        return Err(Error::invalid(&["notifications"], message));
    }
    Ok(())
}

/// How many addresses the rules name.
fn rules(at: &[&str], rules: &[NotificationRule]) -> Result<usize, Error> {
    if rules.len() > RULES_MAX {
        return Err(Error::invalid(at, format!("there may be at most {RULES_MAX} notification rules here")));
    }
    let mut recipients = 0;
    for (index, rule) in rules.iter().enumerate() {
        if let Some(place) = rule.on.iter().position(|occasion| !occasion.is_of_executions()) {
            let (rule, place) = (index.to_string(), place.to_string());
            let path = [at, &[rule.as_str(), "on", place.as_str()]].concat();
            let message = "rules are about executions and their stages; of load balancers the feed \
                           `notifications` tells without a rule";
            return Err(Error::invalid(&path, message.to_owned()));
        }
        let Some(email) = &rule.email else { continue };
        let below = |field: &[&str]| [at, &[index.to_string().as_str(), "email", "to"], field].concat().join("\u{0}");
        let fault = |field: &[&str], message: String| {
            let path = below(field);
            Error::invalid(&path.split('\u{0}').collect::<Vec<_>>(), message)
        };
        if email.to.is_empty() {
            return Err(fault(&[], "mail has to go to somebody: name at least one address".to_owned()));
        }
        for (place, address) in email.to.iter().enumerate() {
            check_address(address).map_err(|message| fault(&[&place.to_string()], message))?;
        }
        recipients += email.to.len();
    }
    Ok(recipients)
}

fn keys(stages: &[StageSpec]) -> Result<(), Error> {
    let mut first = HashMap::new();
    for (index, stage) in stages.iter().enumerate() {
        let at = index.to_string();
        let key = stage.key.as_str();
        if !is_key(key) {
            let message = format!("`{key}` is not a stage's key: 1 to {KEY_MAX} letters, digits, `-` and `_`");
            return Err(Error::invalid(&["stages", &at, "key"], message));
        }
        if let Some(other) = first.insert(key, index) {
            let message = format!("stages {other} and {index} have the same key `{key}`");
            return Err(Error::invalid(&["stages", &at, "key"], message));
        }
        text(&["stages", &at, "name"], &stage.name, NAME_MAX)?;
        if stage.timeout_seconds.is_some_and(|seconds| seconds == 0 || seconds > TIMEOUT_MAX) {
            let message = format!("a timeout is 1 to {TIMEOUT_MAX} seconds");
            return Err(Error::invalid(&["stages", &at, "timeoutSeconds"], message));
        }
    }
    Ok(())
}

fn references(stages: &[StageSpec]) -> Vec<Error> {
    let keys: HashSet<&str> = stages.iter().map(|stage| stage.key.as_str()).collect();
    let mut faults = Vec::new();
    for (index, stage) in stages.iter().enumerate() {
        let mut seen = HashSet::new();
        for (place, required) in stage.requires.iter().enumerate() {
            let field = ["stages", &index.to_string(), "requires", &place.to_string()];
            if !keys.contains(required.as_str()) {
                let others = keys.iter().copied().filter(|key| *key != stage.key);
                let near = did_you_mean(required, others);
                let message = format!("stage `{}` requires `{required}`, which is not a stage's key{near}", stage.key);
                faults.push(Error::invalid(&field, message));
            }
            if !seen.insert(required) {
                let message = format!("stage `{}` requires `{required}` twice", stage.key);
                faults.push(Error::invalid(&field, message));
            }
        }
    }
    faults
}

/// Follows what each stage requires; a stage met again on the way is a cycle.
fn cycles(stages: &[StageSpec]) -> Result<(), Error> {
    let index: HashMap<&str, usize> =
        stages.iter().enumerate().map(|(index, stage)| (stage.key.as_str(), index)).collect();
    let mut done = vec![false; stages.len()];
    for start in 0..stages.len() {
        // The way from `start`, each with the place of the next requirement to follow.
        let mut way = vec![(start, 0)];
        while let Some((stage, next)) = way.last_mut() {
            let present = *stage;
            let Some(required) = stages[present].requires.get(*next).filter(|_| !done[present]) else {
                done[present] = true;
                way.pop();
                continue;
            };
            *next += 1;
            let Some(required) = index.get(required.as_str()).copied() else { continue };
            if let Some(begin) = way.iter().position(|(stage, _)| *stage == required) {
                // Shown in the direction in which it would run, from its first stage on.
                let mut cycle: Vec<usize> = way[begin..].iter().rev().map(|(stage, _)| *stage).collect();
                let first = cycle.iter().enumerate().min_by_key(|(_, stage)| **stage).map_or(0, |(place, _)| place);
                cycle.rotate_left(first);
                cycle.push(cycle[0]);
                let path: Vec<&str> = cycle.into_iter().map(|stage| stages[stage].key.as_str()).collect();
                let message = format!("stages require each other in a cycle: {}", path.join(" → "));
                return Err(Error::invalid(&["stages", &required.to_string(), "requires"], message));
            }
            if !done[required] {
                way.push((required, 0));
            }
        }
    }
    Ok(())
}

fn config(index: usize, stage: &StageSpec, names: &Names<'_>, registry: &Registry, options: &Options) -> Vec<Error> {
    let at = index.to_string();
    let Some(kind) = registry.get(&stage.kind) else {
        let kinds: Vec<&'static str> = registry.iter().map(|kind| kind.kind().kind).collect();
        let near = did_you_mean(&stage.kind, kinds);
        let message = format!("stage `{}` is of the unknown kind `{}`{near}", stage.key, stage.kind);
        return vec![Error::invalid(&["stages", &at, "kind"], message)];
    };
    let fault = |(pointer, message)| in_config(["stages", &at], &format!("stage `{}`", stage.key), pointer, message);
    if let Err(wrong) = size(&stage.config, options) {
        return vec![fault(wrong)];
    }
    if let Err(error) = expression::parse_all(&stage.config) {
        return vec![fault((error.pointer, error.message))];
    }
    let mut faults = names.faults(&stage.config);
    faults.extend(kind.validate(given(&stage.config)).err().unwrap_or_default());
    faults.into_iter().map(fault).collect()
}

fn size(config: &Value, options: &Options) -> Result<(), Fault> {
    let size = notices::size(config);
    if size > options.config_max {
        let message = format!("it has {size} bytes; at most {} are allowed", options.config_max);
        return Err((String::new(), message));
    }
    Ok(())
}

/// A config that is left out says nothing.
fn given(config: &Value) -> &Value {
    static EMPTY: LazyLock<Value> = LazyLock::new(|| serde_json::json!({}));
    if config.is_null() { &EMPTY } else { config }
}

/// A fault within a config: `whose` says whose it is.
fn in_config(at: [&str; 2], whose: &str, pointer: String, message: String) -> Error {
    let parts = pointer.split('/').skip(1).map(|part| part.replace("~1", "/").replace("~0", "~"));
    let field = at.into_iter().chain(["config"]).map(str::to_owned).chain(parts).collect();
    let place = if pointer.is_empty() { String::new() } else { format!(" at `{pointer}`") };
    Error { code: Code::Invalid, message: format!("{whose}: config{place}: {message}"), field }
}

fn triggers(definition: &PipelineDefinition, registry: &Registry, options: &Options) -> Vec<Error> {
    let triggers = &definition.triggers;
    if triggers.len() > TRIGGERS_MAX {
        return vec![Error::invalid(&["triggers"], format!("a pipeline has at most {TRIGGERS_MAX} triggers"))];
    }
    let mut faults = Vec::new();
    let mut first = HashMap::new();
    for (index, trigger) in triggers.iter().enumerate() {
        let (at, key) = (index.to_string(), trigger.key.as_str());
        if !is_key(key) {
            let message = format!("`{key}` is not a trigger's key: 1 to {KEY_MAX} letters, digits, `-` and `_`");
            faults.push(Error::invalid(&["triggers", &at, "key"], message));
        }
        if let Some(other) = first.insert(key, index) {
            let message = format!("triggers {other} and {index} have the same key `{key}`");
            faults.push(Error::invalid(&["triggers", &at, "key"], message));
        }
        match trigger_config(&at, trigger, registry, options) {
            Ok(when) => faults.extend(trigger_parameters(&at, trigger, definition, &when).err()),
            Err(wrong) => faults.extend(wrong),
        }
    }
    faults
}

fn trigger_config(at: &str, trigger: &TriggerSpec, registry: &Registry, options: &Options) -> Result<When, Vec<Error>> {
    let Some(kind) = registry.trigger(&trigger.kind) else {
        let near = did_you_mean(&trigger.kind, registry.triggers().map(|kind| kind.kind().kind));
        let message = format!("trigger `{}` is of the unknown kind `{}`{near}", trigger.key, trigger.kind);
        return Err(vec![Error::invalid(&["triggers", at, "kind"], message)]);
    };
    let fault =
        |(pointer, message)| in_config(["triggers", at], &format!("trigger `{}`", trigger.key), pointer, message);
    size(&trigger.config, options).map_err(|wrong| vec![fault(wrong)])?;
    kind.read(given(&trigger.config)).map_err(|faults| faults.into_iter().map(fault).collect())
}

/// A trigger that could never start its pipeline is refused when it is saved, not at night.
fn trigger_parameters(
    at: &str,
    trigger: &TriggerSpec,
    definition: &PipelineDefinition,
    when: &When,
) -> Result<(), Error> {
    let empty = serde_json::Map::new();
    let given = match &trigger.parameters {
        Value::Null => &empty,
        Value::Object(given) => given,
        _ => {
            let message = "parameters have to be an object: name to value";
            return Err(Error::invalid(&["triggers", at, "parameters"], message));
        }
    };
    let declared = &definition.parameters;
    for (name, value) in given {
        let field = ["triggers", at, "parameters", name.as_str()];
        let Some(parameter) = declared.iter().find(|parameter| parameter.name == *name) else {
            let near = did_you_mean(name, declared.iter().map(|parameter| parameter.name.as_str()));
            let message = format!("trigger `{}`: the pipeline has no parameter `{name}`{near}", trigger.key);
            return Err(Error::invalid(&field, message));
        };
        expression::parse_all(value)
            .map_err(|error| Error::invalid(&field, format!("trigger `{}`: {}", trigger.key, error.message)))?;
        if let Some((_, message)) = names::of_trigger(value).into_iter().next() {
            return Err(Error::invalid(&field, format!("trigger `{}`: {message}", trigger.key)));
        }
        let known = !expression::has_expression(value);
        if known && !parameter.options.is_empty() && !parameter.options.contains(value) {
            let options: Vec<String> = parameter.options.iter().map(ToString::to_string).collect();
            let message = format!("parameter `{name}` has to be one of {}", options.join(", "));
            return Err(Error::invalid(&field, message));
        }
        if let (false, When::Time(_)) = (known, when)
            && let Err(error) = expression::evaluate(value, &instant())
        {
            return Err(Error::invalid(&field, format!("trigger `{}`: {}", trigger.key, error.message)));
        }
    }
    let missing = declared.iter().find(|wanted| wanted.default.is_none() && !given.contains_key(&wanted.name));
    match missing {
        Some(missing) => {
            let message = format!(
                "trigger `{}` has to give parameter `{}`, which is required and has no default",
                trigger.key, missing.name
            );
            Err(Error::invalid(&["triggers", at, "parameters"], message))
        }
        None => Ok(()),
    }
}

/// What a timetable's expressions may read, to try them out.
fn instant() -> Value {
    serde_json::json!({ "trigger": { "kind": "cron", "key": "a", "scheduledAt": "2026-01-01T00:00:00Z" } })
}
