//! A pipeline's triggers as rows, made in the commit that saves it; and the check that pipelines
//! do not start each other in a circle.

use std::collections::{HashMap, HashSet, VecDeque};

use super::{CheckPipeline, Code, Commands, Error, PipelineBeside, PipelineName, allow};
use crate::engine::trigger::{Source, When};
use crate::model::{
    Action, Actor, Pipeline, PipelineDefinition, PipelineId, Resource, Trigger, TriggerId, TriggerSpec,
};
use crate::near::did_you_mean;
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
    let this = This { id: pipeline.id, name: name(&pipeline.application_name, &pipeline.name) };
    let beside = Beside::default();
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
                let found = resolve(commands, actor, &this, &beside, index, &source).await?;
                sources.push((index, found));
                row.source = Some(found);
                row.statuses = source.statuses;
            }
        }
        rows.push(row);
    }
    if let Some(circle) = circles(commands, &this, &beside, &sources).await?.into_iter().next() {
        return Err(circle);
    }
    let gone = kept.into_values().map(|row| Write::DeleteTrigger(row.id));
    Ok(gone.chain(rows.into_iter().map(|row| Write::PutTrigger(Box::new(row)))).collect())
}

/// What is wrong with what the triggers refer to; a config that does not hold is not told here.
pub(super) async fn faults(
    commands: &Commands,
    actor: &Actor,
    check: &CheckPipeline,
    present: Option<PipelineId>,
) -> Result<Vec<Error>, Error> {
    let this = This { id: present.unwrap_or_else(PipelineId::new), name: name(&check.application, &check.name) };
    let others = check.beside.iter().filter(|other| other.name != this.name);
    let beside = Beside::read(commands, others).await?;
    let (mut faults, mut sources) = (Vec::new(), Vec::new());
    for (index, spec) in check.definition.triggers.iter().enumerate() {
        let Ok(When::Ended(source)) = read(commands, index, spec) else { continue };
        match resolve(commands, actor, &this, &beside, index, &source).await {
            Ok(found) => sources.push((index, found)),
            Err(error) if error.code == Code::Unavailable => return Err(error),
            Err(error) => faults.push(error),
        }
    }
    faults.extend(circles(commands, &this, &beside, &sources).await?);
    Ok(faults)
}

/// The pipeline whose triggers are looked at.
struct This {
    id: PipelineId,
    name: PipelineName,
}

/// Pipelines as they will be, whatever the store says of them.
#[derive(Default)]
struct Beside {
    ids: HashMap<PipelineName, PipelineId>,
    started_by: Vec<(PipelineId, Vec<PipelineName>)>,
}

impl Beside {
    async fn read(commands: &Commands, given: impl Iterator<Item = &PipelineBeside>) -> Result<Self, Error> {
        let mut beside = Self::default();
        for pipeline in given {
            let id = stored(commands, &pipeline.name).await?.unwrap_or_else(PipelineId::new);
            beside.ids.insert(pipeline.name.clone(), id);
            beside.started_by.push((id, pipeline.started_by.clone()));
        }
        Ok(beside)
    }
}

fn name(application: &str, name: &str) -> PipelineName {
    PipelineName { application: application.to_owned(), name: name.to_owned() }
}

/// The pipeline of that name, if there is one.
async fn stored(commands: &Commands, name: &PipelineName) -> Result<Option<PipelineId>, Error> {
    let Some(application) = commands.store.application_by_name(&name.application).await? else { return Ok(None) };
    Ok(commands.store.pipeline_by_name(application.id, &name.name).await?.map(|pipeline| pipeline.id))
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
    this: &This,
    beside: &Beside,
    index: usize,
    source: &Source,
) -> Result<PipelineId, Error> {
    let wanted = name(&source.application, &source.pipeline);
    if wanted == this.name {
        return Ok(this.id);
    }
    if let Some(id) = beside.ids.get(&wanted) {
        return Ok(*id);
    }
    let resource = Resource::Pipeline { application: source.application.clone(), pipeline: source.pipeline.clone() };
    allow(actor, Action::Read, &resource)?;
    let application = commands.store.application_by_name(&source.application).await?;
    let found = match &application {
        Some(application) => commands.store.pipeline_by_name(application.id, &source.pipeline).await?,
        None => None,
    };
    if let Some(found) = found {
        return Ok(found.id);
    }
    let to_come = beside.ids.keys().filter(|other| other.application == source.application);
    let mut names: Vec<String> = to_come.map(|other| other.name.clone()).collect();
    match application {
        Some(application) => names.extend(commands.store.pipeline_names(application.id).await?),
        None if names.is_empty() && source.application != this.name.application => {
            let names = commands.store.application_names().await?;
            let near = did_you_mean(&source.application, names.iter().map(String::as_str));
            let message = format!("there is no application `{}`{near}", source.application);
            return Err(at(index, &["config", "application"], message));
        }
        None => {}
    }
    let near = did_you_mean(&source.pipeline, names.iter().map(String::as_str));
    let message = format!("application `{}` has no pipeline `{}`{near}", source.application, source.pipeline);
    Err(at(index, &["config", "pipeline"], message))
}

/// Refuses a source that this pipeline starts, itself or through others. Two saves at the same
/// moment may close a circle between them; its executions end at the limit of a chain's length.
async fn circles(
    commands: &Commands,
    this: &This,
    beside: &Beside,
    sources: &[(usize, PipelineId)],
) -> Result<Vec<Error>, Error> {
    if sources.is_empty() {
        return Ok(Vec::new());
    }
    let shown = |name: &PipelineName| format!("{}/{}", name.application, name.name);
    let mut started: HashMap<PipelineId, Vec<PipelineId>> = HashMap::new();
    let mut names: HashMap<_, _> = beside.ids.iter().map(|(name, id)| (*id, shown(name))).collect();
    names.insert(this.id, shown(&this.name));
    // What a pipeline said before is replaced by what it says now.
    let replaced: HashSet<PipelineId> = names.keys().copied().collect();
    for edge in commands.store.trigger_edges().await? {
        if !replaced.contains(&edge.target) {
            started.entry(edge.source).or_default().push(edge.target);
            names.entry(edge.target).or_insert(edge.target_name);
        }
    }
    for (target, started_by) in &beside.started_by {
        for source in started_by {
            let known = beside.ids.get(source).copied().or_else(|| (*source == this.name).then_some(this.id));
            // One that is not there is a fault of the pipeline that names it.
            let source = match known {
                Some(id) => Some(id),
                None => stored(commands, source).await?,
            };
            if let Some(source) = source {
                started.entry(source).or_default().push(*target);
            }
        }
    }
    let circle = |(index, source): &(usize, PipelineId)| {
        let way = way(&started, this.id, *source)?;
        let circle: Vec<&str> =
            way.iter().chain([&this.id]).map(|id| names.get(id).map_or("?", String::as_str)).collect();
        let message = format!("pipelines would start each other without an end: {}", circle.join(" → "));
        Some(at(*index, &["config", "pipeline"], message))
    };
    Ok(sources.iter().filter_map(circle).collect())
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
