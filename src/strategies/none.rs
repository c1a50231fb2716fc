//! No strategy: the new group joins those there are; nothing is taken away.

use serde_json::{Value, json};

use super::{Deployment, Strategy};
use crate::model::{ChildSpec, Execution};

pub(super) struct None;

impl Strategy for None {
    fn kind(&self) -> &'static str {
        "none"
    }
    fn title(&self) -> &'static str {
        "None"
    }
    fn description(&self) -> &'static str {
        "Creates the new server group and leaves the others as they are: all of them share the traffic."
    }
    fn schema(&self) -> Value {
        json!({"type": "object", "additionalProperties": false, "properties": {}})
    }
    fn example(&self) -> Value {
        json!({})
    }
    fn next(&self, _: &Deployment<'_>) -> Vec<ChildSpec> {
        Vec::new()
    }
    fn unwind(&self, deployment: &Deployment<'_>, _: &Execution) -> Vec<ChildSpec> {
        vec![deployment.disable_created()]
    }
}
