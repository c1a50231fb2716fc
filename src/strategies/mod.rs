//! Deployment strategies: recipes, pure functions from what is known to the next stages.

use serde_json::Value;

use crate::model::{ChildSpec, Execution, Place, Stage};

/// What a strategy may look at.
#[derive(Debug, Clone)]
pub struct Deployment<'a> {
    pub place: &'a Place,
    pub cluster: &'a str,
    /// The group that was just made and is healthy.
    pub created: &'a str,
    /// The groups that were enabled when the new one was chosen, newest first.
    pub previous: &'a [String],
    /// The strategy's own options, checked by its schema.
    pub options: &'a Value,
    /// The strategy's stages so far, finished.
    pub finished: &'a [&'a Stage],
}

/// A deployment strategy.
pub trait Strategy: Send + Sync {
    /// `redBlack`.
    fn kind(&self) -> &'static str;
    fn title(&self) -> &'static str;
    fn description(&self) -> &'static str;
    /// JSON Schema of the options.
    fn schema(&self) -> Value;
    fn example(&self) -> Value;
    /// The next stages, given those that have finished; empty when the recipe is through. Called
    /// after each batch, at most [`Strategy::batches_max`] times.
    fn next(&self, deployment: &Deployment<'_>) -> Vec<ChildSpec>;
    fn batches_max(&self) -> u32 {
        16
    }
    /// What brings the old groups back after a failure or cancel at this point.
    fn unwind(&self, deployment: &Deployment<'_>, execution: &Execution) -> Vec<ChildSpec>;
}
