//! A pipeline's triggers as rows, made in the commit that saves it; and the check that pipelines
//! do not start each other in a circle.

use std::collections::{HashMap, HashSet, VecDeque};

use super::{Code, Commands, Error, allow, did_you_mean};
use crate::engine::trigger::{Source, When};
use crate::model::{
    Action, Actor, Pipeline, PipelineDefinition, PipelineId, Resource, Trigger, TriggerId, TriggerSpec,
};
use crate::store::Write;

/// What the save of a pipeline writes of its triggers. `before`: the definition that is replaced.
pub(super) async fn writes(
    commands: &Commands,
    actor: &Actor,
    pipeline: &Pipeline,
    before: Option<&PipelineDefinition>,
) -> Result<Vec<Write>, Error> {
    let present = match before {
        Some(_) => commands.store.triggers(pipeline.id).await?,
        None => Vec::new(),
    };
    let mut kept: HashMap<String, Trigger> = present.into_iter().map(|row| (row.key.clone(), row)).collect();
    let mut rows = Vec::with_capacity(pipeline.definition.triggers.len());
    let mut sources = Vec::new();
    for (index, spec) in pipeline.definition.triggers.iter().enumerate() {
        let old = kept.remove(&spec.key);
        let mut row = blank(pipeline, spec, index, old.as_ref());
        match read(commands, index, spec)? {
            When::Time(table) => {
                // A slot that is due already is not lost by a save that leaves its rule as it is.
                let same = before.is_some_and(|before| before.triggers.iter().any(|old| same_rule(old, spec)));
                let due = old.as_ref().and_then(|old| old.next_at).filter(|_| same);
                let next = || due.or_else(|| table.next(commands.clock.now()));
                row.next_at = if spec.enabled { next() } else { None };
            }
            When::Ended(source) => {
                let found = resolve(commands, actor, pipeline, index, &source).await?;
                sources.push((index, found));
                row.source = Some(found);
                row.statuses = source.statuses;
            }
        }
        rows.push(row);
    }
    circles(commands, pipeline, &sources).await?;
    let gone = kept.into_values().map(|row| Write::DeleteTrigger(row.id));
    Ok(gone.chain(rows.into_iter().map(|row| Write::PutTrigger(Box::new(row)))).collect())
}

/// Whether both come at the same instants.
fn same_rule(old: &TriggerSpec, new: &TriggerSpec) -> bool {
    old.key == new.key && old.kind == new.kind && old.enabled == new.enabled && old.config == new.config
}

fn blank(pipeline: &Pipeline, spec: &TriggerSpec, index: usize, old: Option<&Trigger>) -> Trigger {
    Trigger {
        id: old.map_or_else(TriggerId::new, |old| old.id),
        pipeline: pipeline.id,
        key: spec.key.clone(),
        kind: spec.kind.clone(),
        enabled: spec.enabled,
        position: i64::try_from(index).unwrap_or(i64::MAX),
        source: None,
        statuses: Vec::new(),
        next_at: None,
        last_at: None,
        last_execution: None,
        last_error: None,
        last_error_at: None,
        last_missed_at: None,
    }
}

fn read(commands: &Commands, index: usize, spec: &TriggerSpec) -> Result<When, Error> {
    let unknown = || at(index, &["kind"], format!("trigger kind `{}` is not known to this server", spec.kind));
    let kind = commands.registry.trigger(&spec.kind).ok_or_else(unknown)?;
    kind.read(&spec.config).map_err(|mut faults| at(index, &["config"], faults.swap_remove(0).1))
}

fn at(index: usize, below: &[&str], message: String) -> Error {
    let mut field = vec!["triggers".to_owned(), index.to_string()];
    field.extend(below.iter().map(|part| (*part).to_owned()));
    Error { code: Code::Invalid, message, field }
}

/// The pipeline that is named, which the actor has to be able to see.
async fn resolve(
    commands: &Commands,
    actor: &Actor,
    pipeline: &Pipeline,
    index: usize,
    source: &Source,
) -> Result<PipelineId, Error> {
    if source.application == pipeline.application_name && source.pipeline == pipeline.name {
        return Ok(pipeline.id);
    }
    let resource = Resource::Pipeline { application: source.application.clone(), pipeline: source.pipeline.clone() };
    allow(actor, Action::Read, &resource)?;
    let Some(application) = commands.store.application_by_name(&source.application).await? else {
        let names = commands.store.application_names().await?;
        let near = did_you_mean(&source.application, names.iter().map(String::as_str));
        let message = format!("there is no application `{}`{near}", source.application);
        return Err(at(index, &["config", "application"], message));
    };
    match commands.store.pipeline_by_name(application.id, &source.pipeline).await? {
        Some(found) => Ok(found.id),
        None => {
            let names = commands.store.pipeline_names(application.id).await?;
            let near = did_you_mean(&source.pipeline, names.iter().map(String::as_str));
            let message = format!("application `{}` has no pipeline `{}`{near}", source.application, source.pipeline);
            Err(at(index, &["config", "pipeline"], message))
        }
    }
}

/// Refuses a source that this pipeline starts, itself or through others. Two saves at the same
/// moment may close a circle between them; its executions end at the limit of a chain's length.
async fn circles(commands: &Commands, pipeline: &Pipeline, sources: &[(usize, PipelineId)]) -> Result<(), Error> {
    if sources.is_empty() {
        return Ok(());
    }
    let mut started: HashMap<PipelineId, Vec<PipelineId>> = HashMap::new();
    let mut names = HashMap::from([(pipeline.id, format!("{}/{}", pipeline.application_name, pipeline.name))]);
    for edge in commands.store.trigger_edges().await? {
        // What this pipeline said before is replaced by what it says now.
        if edge.target != pipeline.id {
            started.entry(edge.source).or_default().push(edge.target);
            names.entry(edge.target).or_insert(edge.target_name);
        }
    }
    for (index, source) in sources {
        let Some(way) = way(&started, pipeline.id, *source) else { continue };
        let circle: Vec<&str> =
            way.iter().chain([&pipeline.id]).map(|id| names.get(id).map_or("?", String::as_str)).collect();
        let message = format!("pipelines would start each other without an end: {}", circle.join(" → "));
        return Err(at(*index, &["config", "pipeline"], message));
    }
    Ok(())
}

/// The shortest way along which `from` starts `to`.
fn way(started: &HashMap<PipelineId, Vec<PipelineId>>, from: PipelineId, to: PipelineId) -> Option<Vec<PipelineId>> {
    let mut seen = HashSet::from([from]);
    let mut ways = VecDeque::from([vec![from]]);
    while let Some(way) = ways.pop_front() {
        let last = *way.last()?;
        if last == to {
            return Some(way);
        }
        for next in started.get(&last).into_iter().flatten() {
            if seen.insert(*next) {
                ways.push_back(way.iter().copied().chain([*next]).collect());
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_way_is_found_and_none_where_there_is_none() {
        let [a, b, c, d] = [(); 4].map(|()| PipelineId::new());
        let started = HashMap::from([(a, vec![b, c]), (b, vec![d]), (c, vec![d, a]), (d, vec![])]);
        assert_eq!(way(&started, a, d), Some(vec![a, b, d]));
        assert_eq!(way(&started, a, a), Some(vec![a]));
        assert_eq!(way(&started, b, a), None);
    }
}
