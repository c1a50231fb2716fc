//! Whether what the expressions of a definition read can be there at all. What only values can
//! tell, and what an expression itself asks about, is left to the moment it is evaluated.

use std::collections::HashSet;

use crate::engine::contract::Fault;
use crate::expression::{self, Reading};
use crate::model::PipelineDefinition;
use crate::near::did_you_mean;
use serde_json::Value;

/// What the expressions of a stage's config may read. `worker/config.rs` gives them that.
const VARIABLES: &[&str] = &["parameters", "execution", "stages", "trigger"];
const OF_EXECUTION: &[&str] = &["id", "number", "application", "pipeline", "startedBy"];
const OF_STAGE: &[&str] = &["outputs", "status"];
/// Names that a message lists where none is near.
const LISTED_MAX: usize = 10;

/// The names that a definition declares.
pub(super) struct Names<'a> {
    parameters: Vec<&'a str>,
    stages: Vec<&'a str>,
}

impl<'a> Names<'a> {
    pub(super) fn of(definition: &'a PipelineDefinition) -> Self {
        Self {
            parameters: definition.parameters.iter().map(|parameter| parameter.name.as_str()).collect(),
            stages: definition.stages.iter().map(|stage| stage.key.as_str()).collect(),
        }
    }

    /// What a stage's config reads and nothing will have.
    pub(super) fn faults(&self, config: &Value) -> Vec<Fault> {
        told(config, |reading| {
            unknown(reading, 0, "variable", VARIABLES).or_else(|| match reading.wanted(0)? {
                "parameters" if self.parameters.is_empty() => reading.wanted(1).map(|name| {
                    let read = reading.up_to(1);
                    format!("`{read}`: there is no parameter `{name}`; declare it among the pipeline's parameters")
                }),
                "parameters" => unknown(reading, 1, "parameter", &self.parameters),
                "stages" => unknown(reading, 1, "stage", &self.stages)
                    .or_else(|| unknown(reading, 2, "field of a stage", OF_STAGE)),
                "execution" => unknown(reading, 1, "field of the execution", OF_EXECUTION),
                _ => None,
            })
        })
    }
}

/// What a trigger's parameters read besides `trigger`.
pub(super) fn of_trigger(parameters: &Value) -> Vec<Fault> {
    told(parameters, |reading| {
        let name = reading.wanted(0).filter(|name| *name != "trigger" && !expression::is_function(name))?;
        Some(format!(
            "there is no variable `{name}` here: the parameters of a trigger may read `trigger` alone, as in \
             `${{ trigger.scheduledAt }}` of a cron trigger and `${{ trigger.parameters.version }}` of a pipeline trigger"
        ))
    })
}

fn told(value: &Value, fault: impl Fn(&Reading) -> Option<String>) -> Vec<Fault> {
    let mut seen = HashSet::new();
    let readings = expression::readings(value).into_iter();
    let faults = readings.filter_map(|(pointer, reading)| Some((pointer, fault(&reading)?)));
    faults.filter(|fault| seen.insert(fault.clone())).collect()
}

/// Where the name at that place has to be there and is none of the known ones: what is wrong.
fn unknown(reading: &Reading, place: usize, what: &str, known: &[&str]) -> Option<String> {
    let name = reading.wanted(place)?;
    if known.contains(&name) || (place == 0 && expression::is_function(name)) {
        return None;
    }
    let read = reading.up_to(place);
    // `stages.run-tests` is a subtraction.
    let cut = known.iter().find(|known| known.strip_prefix(name).is_some_and(|rest| rest.starts_with('-')));
    let near = match cut {
        Some(whole) if place > 0 => format!("; write `{}['{whole}']`", reading.up_to(place - 1)),
        _ => did_you_mean(name, known.iter().copied()),
    };
    let near = if near.is_empty() {
        let more = if known.len() > LISTED_MAX { ", …" } else { "" };
        format!("; there is {}{more}", known[..known.len().min(LISTED_MAX)].join(", "))
    } else {
        near
    };
    Some(format!("`{read}`: there is no {what} `{name}`{near}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn names() -> Names<'static> {
        Names { parameters: vec!["version", "my-size", "flag"], stages: vec!["build", "run-tests", "deploy"] }
    }

    #[test]
    fn a_name_that_nothing_has_is_told_with_the_nearest_one() {
        for (source, words) in [
            (
                "${ parameters.verison }",
                "`parameters.verison`: there is no parameter `verison`; did you mean `version`?",
            ),
            ("v${ parameters['verison'] }.tgz", "`parameters['verison']`: there is no parameter `verison`; did you"),
            ("${ parameters.zzzzzz }", "there is no parameter `zzzzzz`; there is version, my-size, flag"),
            ("${ parameters.my-size }", "there is no parameter `my`; write `parameters['my-size']`"),
            ("${ stages.biuld.outputs.x }", "`stages.biuld`: there is no stage `biuld`; did you mean `build`?"),
            ("${ stages.biuld.outputs.x | default('y') }", "no stage `biuld`"),
            ("${ stages.run-tests.outputs.x }", "there is no stage `run`; write `stages['run-tests']`"),
            (
                "${ stages.build.output.x }",
                "`stages.build.output`: there is no field of a stage `output`; did you mean `outputs`?",
            ),
            ("${ execution.aplication }", "no field of the execution `aplication`; did you mean `application`?"),
            ("${ parametres.version }", "`parametres`: there is no variable `parametres`; did you mean `parameters`?"),
            ("${ version }", "no variable `version`; there is parameters, execution, stages, trigger"),
            ("${ 'a' if parameters.flag else parameters.verison }", "no parameter `verison`"),
            ("${ parameters.a | default('b') ~ parameters.verison }", "no parameter `verison`"),
        ] {
            let faults = names().faults(&json!({"a": [source]}));
            // What follows a hyphen is a variable that nothing has, too.
            assert_eq!(faults.len(), if source.contains("-") { 2 } else { 1 }, "{source}: {faults:?}");
            assert!(faults[0].0 == "/a/0" && faults[0].1.contains(words), "{source}: {faults:?}");
        }
        let none = Names { parameters: vec![], stages: vec!["a"] };
        let faults = none.faults(&json!("${ parameters.x }"));
        assert!(faults[0].1.ends_with("declare it among the pipeline's parameters"), "{faults:?}");
        let faults = of_trigger(&json!({"x": "${ parameters.version }"}));
        assert!(faults[0].1.contains("no variable `parameters` here"), "{faults:?}");
    }

    #[test]
    fn what_may_be_there_is_not_refused() {
        for source in [
            "${ parameters.version ~ parameters['my-size'] }",
            "${ stages['run-tests'].outputs.anything.at.all[0] }",
            "${ stages.build.status == 'SUCCEEDED' }",
            "${ execution.startedBy } of ${ execution.number } by ${ trigger.kind } ${ trigger.parameters.whatever }",
            "${ parameters.verison | default('1') }",
            "${ parameters.verison if parameters.verison is defined else parameters.version }",
            "${ stages.gone is defined and stages.gone.outputs.x }",
            "${ parameters[parameters.version] }",
            "${ stages[execution.pipeline].outputs }",
            "${ 'verison' in parameters and parameters.verison }",
            "${ (parameters.verison, 1) | first | default(2) }",
            "${ dict(verison=parameters.version).verison }",
            "${ {'verison': 1}.verison }",
            "${ [{'a': 1}] | map(attribute='a') | list }",
            "${ parameters.flag and true or none }",
            "$${ parameters.verison }",
            "secret://env/${ parameters.verison }",
            "${ 'parameters.verison' }",
        ] {
            assert_eq!(names().faults(&json!(source)), [], "{source}");
        }
        assert_eq!(of_trigger(&json!({"x": "${ trigger.execution.number ~ trigger.parameters.x }"})), []);
    }
}
