//! Deployment strategies: recipes, pure functions from what is known to the next stages.

mod none;
mod red_black;

use serde_json::{Value, json};

use crate::model::{ChildSpec, Execution, OnFailure, Place, Stage};

/// What a strategy may look at.
#[derive(Debug, Clone)]
pub struct Deployment<'a> {
    /// Where the cluster is.
    pub place: &'a Place,
    /// The cluster's name.
    pub cluster: &'a str,
    /// The group that was just made and is healthy.
    pub created: &'a str,
    /// The groups that were enabled when the new one was chosen, newest first.
    pub previous: &'a [String],
    /// The cluster's groups that were disabled when the new one was chosen, newest first.
    pub idle: &'a [String],
    /// The strategy's own options, checked by its schema.
    pub options: &'a Value,
    /// The strategy's stages so far: finished for [`Strategy::next`]; for [`Strategy::unwind`] all
    /// that have begun, since one that was interrupted may have taken effect.
    pub finished: &'a [&'a Stage],
}

impl Deployment<'_> {
    /// Whether the strategy's stage of that key has begun.
    fn begun(&self, key: &str) -> Option<&Stage> {
        self.finished.iter().find(|stage| stage.key == key).copied()
    }

    /// A stage of that kind on a server group of the cluster.
    fn child(&self, verb: &str, kind: &str, title: &str, server_group: &str) -> ChildSpec {
        ChildSpec {
            key: format!("{verb}-{server_group}"),
            kind: kind.to_owned(),
            name: format!("{title} {server_group}"),
            requires: Vec::new(),
            config: json!({
                "account": self.place.account,
                "location": self.place.location,
                "serverGroup": server_group,
            }),
            timeout_seconds: None,
            on_failure: OnFailure::FailPipeline,
        }
    }

    /// Takes the new group out of traffic once the old ones are back.
    fn disable_created(&self) -> ChildSpec {
        let mut child = self.child("disable", "disableServerGroup", "Disable", self.created);
        child.config["mayBeAbsent"] = json!(true);
        // Where nothing was before, nothing is what there was; else the guard keeps the last healthy one.
        child.config["allowLast"] = json!(self.previous.is_empty());
        child
    }
}

/// A deployment strategy.
pub trait Strategy: Send + Sync {
    /// `redBlack`.
    fn kind(&self) -> &'static str;
    /// Its name for people.
    fn title(&self) -> &'static str;
    /// One to three sentences.
    fn description(&self) -> &'static str;
    /// JSON Schema of the options.
    fn schema(&self) -> Value;
    /// Options that pass the schema.
    fn example(&self) -> Value;
    /// The next stages, given those that have finished; empty when the recipe is through. Called
    /// after each batch, at most [`Strategy::batches_max`] times.
    fn next(&self, deployment: &Deployment<'_>) -> Vec<ChildSpec>;
    /// A recipe that is not through by then is at fault, and the deploy fails.
    fn batches_max(&self) -> u32 {
        16
    }
    /// What brings the old groups back after a failure or cancel at this point.
    fn unwind(&self, deployment: &Deployment<'_>, execution: &Execution) -> Vec<ChildSpec>;
}

/// All strategies, by name.
#[must_use]
pub fn all() -> [&'static dyn Strategy; 2] {
    [&none::None, &red_black::RedBlack]
}

/// The strategy of that name.
#[must_use]
pub fn find(kind: &str) -> Option<&'static dyn Strategy> {
    all().into_iter().find(|strategy| strategy.kind() == kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_example_passes_its_schema_and_strays_do_not() {
        for strategy in all() {
            let schema = jsonschema::draft202012::new(&strategy.schema()).expect("a schema");
            assert!(schema.is_valid(&strategy.example()), "{}", strategy.kind());
            assert!(!schema.is_valid(&json!({"unheardOf": 1})), "{}", strategy.kind());
            assert!(std::ptr::eq(find(strategy.kind()).expect("listed").title(), strategy.title()));
        }
        assert!(find("highlander").is_none());
    }
}
