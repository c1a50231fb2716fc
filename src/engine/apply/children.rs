//! Stages that stages make: planned by their kinds, checked, and added to the execution.

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::{Changes, STAGES_MAX, Setting};
use crate::engine::contract::DynStage;
use crate::engine::decide::failure;
use crate::engine::notices;
use crate::model::{ChildSpec, Execution, Failure, Phase, Stage, StageId, Status, Wake};

/// Children within children.
const DEPTH_MAX: usize = 8;

pub(super) fn unknown_kind(stage: &Stage) -> Box<Failure> {
    boxed("UNKNOWN_KIND", format!("stage kind `{}` is not known to this server", stage.kind), stage.id)
}

/// A failure as an error: it is a large value.
pub(super) fn boxed(code: &str, message: String, stage: StageId) -> Box<Failure> {
    Box::new(failure(code, message, Some(stage)))
}

/// Children of a kind's own making; a panic in there fails the stage, not the server.
pub(super) fn plan(
    kind: Option<&std::sync::Arc<dyn DynStage>>,
    stage: &Stage,
    make: impl FnOnce(&dyn DynStage) -> Vec<ChildSpec>,
) -> Result<Vec<ChildSpec>, Box<Failure>> {
    let Some(kind) = kind else { return Err(unknown_kind(stage)) };
    catch_unwind(AssertUnwindSafe(|| make(kind.as_ref())))
        .map_err(|_| boxed("PANIC", format!("stage `{}` met a fault while planning its children", stage.key), stage.id))
}

pub(super) fn add_children(
    execution: &mut Execution,
    parent: usize,
    phase: Phase,
    specs: &[ChildSpec],
    setting: &Setting,
    changes: &mut Changes,
) -> Result<(), Box<Failure>> {
    if specs.is_empty() {
        return Ok(());
    }
    let above = &execution.stages[parent];
    let (parent_id, parent_key, attempt) = (above.id, above.key.clone(), above.attempt);
    let refuse = |what: String| Err(boxed("CHILDREN_INVALID", format!("stage `{parent_key}`: {what}"), parent_id));
    if execution.stages.len() + specs.len() > STAGES_MAX {
        return refuse(format!("the execution would have more than {STAGES_MAX} stages"));
    }
    let mut depth = 1;
    let mut up = above.parent;
    while let Some(next) = up.and_then(|id| execution.stage(id)) {
        depth += 1;
        up = next.parent;
    }
    if depth >= DEPTH_MAX {
        return refuse(format!("stages would be nested more than {DEPTH_MAX} deep"));
    }
    let mut keys: std::collections::HashSet<&str> =
        execution.children(parent_id).filter(|child| child.phase == phase).map(|child| child.key.as_str()).collect();
    for spec in specs {
        if !keys.insert(&spec.key) {
            return refuse(format!("two children have the key `{}`", spec.key));
        }
        if setting.registry.get(&spec.kind).is_none() {
            return refuse(format!("child `{}` is of the unknown kind `{}`", spec.key, spec.kind));
        }
        if notices::size(&spec.config) > setting.options.config_max {
            return refuse(format!(
                "the config of child `{}` has more than {} bytes",
                spec.key, setting.options.config_max
            ));
        }
    }
    if let Some((spec, key)) =
        specs.iter().find_map(|spec| Some((spec, spec.requires.iter().find(|key| !keys.contains(key.as_str()))?)))
    {
        return refuse(format!("child `{}` requires `{key}`, which is not among its siblings", spec.key));
    }
    let made: Vec<Stage> = specs
        .iter()
        .enumerate()
        .filter_map(|(offset, spec)| {
            let kind = setting.registry.get(&spec.kind)?;
            let position = i64::try_from(execution.stages.len() + offset).unwrap_or(i64::MAX);
            Some(new_stage(execution, spec, kind.as_ref(), Some((parent_id, phase)), position, attempt))
        })
        .collect();
    for stage in made {
        changes.seen(execution.stages.len());
        execution.stages.push(stage);
    }
    Ok(())
}

/// A stage that has not begun.
pub fn new_stage(
    execution: &Execution,
    spec: &ChildSpec,
    kind: &dyn DynStage,
    parent: Option<(StageId, Phase)>,
    position: i64,
    attempt: i32,
) -> Stage {
    let timeout = spec.timeout_seconds.unwrap_or_else(|| kind.timeout().as_secs()).max(1);
    // A child's id follows from its parent's: should the database be set back to an earlier state, the
    // child that is spawned again has the operation keys under which the first one's work is found.
    let id = parent.map_or_else(StageId::new, |(above, phase)| child_id(above, phase, attempt, &spec.key));
    Stage {
        id,
        execution: execution.id,
        key: spec.key.clone(),
        parent: parent.map(|(id, _)| id),
        phase: parent.map_or(Phase::Body, |(_, phase)| phase),
        kind: spec.kind.clone(),
        name: if spec.name.is_empty() { kind.title().to_owned() } else { spec.name.clone() },
        requires: spec.requires.clone(),
        on_failure: spec.on_failure,
        position,
        attempt,
        status: Status::NotStarted,
        config: spec.config.clone(),
        resolved: None,
        cursor: Value::Null,
        wake: Wake::Now,
        retries: 0,
        outputs: Value::Object(Map::new()),
        progress: None,
        tasks: Vec::new(),
        failure: None,
        unwinding: None,
        timeout_seconds: i64::try_from(timeout).unwrap_or(i64::MAX),
        deadline: None,
        started_at: None,
        ended_at: None,
    }
}

fn child_id(parent: StageId, phase: Phase, attempt: i32, key: &str) -> StageId {
    let phase = match phase {
        Phase::Before => 0_u8,
        Phase::Body => 1,
        Phase::After => 2,
        Phase::Unwind => 3,
    };
    let mut hash = Sha256::new();
    hash.update(parent.uuid().as_bytes());
    hash.update([phase]);
    hash.update(attempt.to_be_bytes());
    hash.update(key.as_bytes());
    let digest = hash.finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    uuid::Builder::from_random_bytes(bytes).into_uuid().into()
}
