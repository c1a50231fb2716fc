//! What is stored by people: applications and pipelines.

use serde_json::json;

use super::{CheckPipeline, Code, Commands, Error, SaveApplication, SavePipeline, allow, triggers};
use crate::engine::validate;
use crate::model::{Action, Actor, Application, ApplicationId, Pipeline, PipelineId, Resource, Revision};
use crate::store::{Commit, CommitError, Guard, Refusal, Write};

/// Characters of a description.
const DESCRIPTION_MAX: usize = 4_000;
/// Characters of an application's name.
const APPLICATION_NAME_MAX: usize = 64;
/// Characters of a pipeline's name.
const PIPELINE_NAME_MAX: usize = 100;

pub(super) async fn create_application(
    commands: &Commands,
    actor: &Actor,
    save: SaveApplication,
) -> Result<Application, Error> {
    let resource = Resource::Application { application: save.name.clone() };
    allow(actor, Action::Save, &resource)?;
    application_name(&save.name)?;
    description(&save)?;
    email(&save)?;
    let now = commands.clock.now();
    let application = Application {
        id: ApplicationId::new(),
        name: save.name,
        description: save.description,
        email: save.email,
        created_at: now,
        updated_at: now,
        version: 1,
    };
    let detail = json!({ "created": true, "description": application.description, "email": application.email });
    let commit = Commit {
        guards: vec![Guard::ApplicationNameFree { name: application.name.clone() }],
        writes: vec![
            Write::InsertApplication(application.clone()),
            commands.audit(actor, Action::Save, resource, detail),
        ],
        events: Vec::new(),
    };
    match commands.store.commit(commit).await {
        Ok(_) => Ok(application),
        Err(CommitError::Refused(_)) => Err(taken(&application.name)),
        Err(error) => Err(error.into()),
    }
}

fn taken(name: &str) -> Error {
    let message = format!("there is an application `{name}` already");
    Error { code: Code::Conflict, message, field: vec!["name".to_owned()] }
}

pub(super) async fn check_application(
    commands: &Commands,
    actor: &Actor,
    save: &SaveApplication,
    is_new: bool,
) -> Result<(), Vec<Error>> {
    let resource = Resource::Application { application: save.name.clone() };
    allow(actor, Action::Save, &resource).map_err(|denied| vec![denied])?;
    let mut faults = Vec::new();
    if is_new {
        faults.extend(application_name(&save.name).err());
        match commands.store.application_by_name(&save.name).await {
            Ok(None) => {}
            Ok(Some(_)) => faults.push(taken(&save.name)),
            Err(error) => return Err(vec![error.into()]),
        }
    }
    faults.extend([description(save), email(save)].into_iter().filter_map(Result::err));
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

pub(super) async fn update_application(
    commands: &Commands,
    actor: &Actor,
    id: ApplicationId,
    save: SaveApplication,
) -> Result<Application, Error> {
    let before = application(commands, id).await?;
    let resource = Resource::Application { application: before.name.clone() };
    allow(actor, Action::Save, &resource)?;
    if !save.name.is_empty() && save.name != before.name {
        return Err(Error::invalid(
            &["name"],
            format!("an application keeps its name, which is part of others; this one is `{}`", before.name),
        ));
    }
    description(&save)?;
    email(&save)?;
    let after = Application {
        description: save.description,
        email: save.email,
        updated_at: commands.clock.now(),
        version: before.version + 1,
        ..before
    };
    let detail = json!({ "description": after.description, "email": after.email });
    let commit = Commit {
        guards: vec![Guard::Application { id, version: Some(before.version) }],
        writes: vec![Write::UpdateApplication(after.clone()), commands.audit(actor, Action::Save, resource, detail)],
        events: Vec::new(),
    };
    commands.store.commit(commit).await?;
    Ok(after)
}

pub(super) async fn delete_application(commands: &Commands, actor: &Actor, id: ApplicationId) -> Result<(), Error> {
    let application = application(commands, id).await?;
    let resource = Resource::Application { application: application.name.clone() };
    allow(actor, Action::Save, &resource)?;
    let commit = Commit {
        guards: vec![Guard::Application { id, version: None }, Guard::NoneRunning { application: id }],
        writes: vec![
            Write::DeleteApplication(id),
            commands.audit(actor, Action::Save, resource, json!({ "deleted": true })),
        ],
        events: Vec::new(),
    };
    delete(commands, commit, &format!("application `{}`", application.name)).await
}

pub(super) async fn check_pipeline(commands: &Commands, actor: &Actor, check: CheckPipeline) -> Result<(), Vec<Error>> {
    let resource = Resource::Pipeline { application: check.application.clone(), pipeline: check.name.clone() };
    allow(actor, Action::Save, &resource).map_err(|denied| vec![denied])?;
    let mut faults: Vec<Error> = pipeline_name(&check.name).err().into_iter().collect();
    faults.extend(validate::faults(&check.definition, &commands.registry, &commands.options));
    let around = async {
        let before = match commands.store.application_by_name(&check.application).await? {
            Some(application) => commands.store.pipeline_by_name(application.id, &check.name).await?,
            None => None,
        };
        let present = before.as_ref().map_or(0, |pipeline| pipeline.revision);
        let expected = check.expected_revision.filter(|expected| *expected != present);
        let mut faults: Vec<Error> =
            expected.map(|expected| newer(&check.name, expected, present)).into_iter().collect();
        faults.extend(triggers::faults(commands, actor, &check, before.map(|before| before.id)).await?);
        Ok(faults)
    };
    faults.extend(around.await.map_err(|error: Error| vec![error])?);
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

pub(super) async fn save_pipeline(commands: &Commands, actor: &Actor, save: SavePipeline) -> Result<Pipeline, Error> {
    let application = application(commands, save.application).await?;
    let resource = Resource::Pipeline { application: application.name.clone(), pipeline: save.name.clone() };
    allow(actor, Action::Save, &resource)?;
    pipeline_name(&save.name)?;
    validate::definition(&save.definition, &commands.registry, &commands.options)?;

    let now = commands.clock.now();
    let before = commands.store.pipeline_by_name(application.id, &save.name).await?;
    let present = before.as_ref().map_or(0, |pipeline| pipeline.revision);
    if let Some(expected) = save.expected_revision.filter(|expected| *expected != present) {
        return Err(newer(&save.name, expected, present));
    }
    let (id, created_at) = before.as_ref().map_or_else(|| (PipelineId::new(), now), |old| (old.id, old.created_at));
    let pipeline = Pipeline {
        id,
        application: application.id,
        application_name: application.name,
        name: save.name,
        revision: present + 1,
        definition: save.definition.clone(),
        created_at,
        updated_at: now,
    };
    let revision = Revision {
        pipeline: id,
        number: pipeline.revision,
        definition: save.definition,
        created_at: now,
        created_by: actor.principal,
        created_by_name: actor.name.clone(),
    };
    let triggers =
        triggers::writes(commands, actor, &pipeline, before.as_ref().map(|before| &before.definition)).await?;
    let (guards, write) = if before.is_some() {
        (
            vec![Guard::PipelineRevision { id, revision: present }],
            Write::AddRevision { pipeline: Box::new(pipeline.clone()), revision: Box::new(revision) },
        )
    } else {
        (
            vec![
                Guard::Application { id: application.id, version: None },
                Guard::PipelineNameFree { application: application.id, name: pipeline.name.clone() },
            ],
            Write::InsertPipeline { pipeline: Box::new(pipeline.clone()), revision: Box::new(revision) },
        )
    };
    let (stages, count) = (pipeline.definition.stages.len(), pipeline.definition.triggers.len());
    let detail = json!({ "revision": pipeline.revision, "stages": stages, "triggers": count });
    let audit = commands.audit(actor, Action::Save, resource, detail);
    let writes = [write, audit].into_iter().chain(triggers).collect();
    match commands.store.commit(Commit { guards, writes, events: Vec::new() }).await {
        Ok(_) => {
            commands.slots.notify_one();
            Ok(pipeline)
        }
        Err(CommitError::Refused(_)) => Err(newer(&pipeline.name, present, present + 1)),
        Err(error) => Err(error.into()),
    }
}

fn newer(name: &str, expected: i64, present: i64) -> Error {
    let message = match present {
        0 => format!("there is no pipeline `{name}`, but its revision {expected} was expected"),
        _ => format!(
            "pipeline `{name}` has changed: its newest revision is not {expected} but {present} or later; read it again"
        ),
    };
    Error { code: Code::Conflict, message, field: vec!["expectedRevision".to_owned()] }
}

pub(super) async fn delete_pipeline(commands: &Commands, actor: &Actor, id: PipelineId) -> Result<(), Error> {
    let Some(pipeline) = commands.store.pipeline(id).await? else {
        return Err(Error::new(Code::NotFound, format!("there is no pipeline {id}")));
    };
    let resource =
        Resource::Pipeline { application: pipeline.application_name.clone(), pipeline: pipeline.name.clone() };
    allow(actor, Action::Save, &resource)?;
    let commit = Commit {
        guards: vec![
            Guard::PipelineRevision { id, revision: pipeline.revision },
            Guard::NonePipelineRunning { pipeline: id },
        ],
        writes: vec![
            Write::DeletePipeline(id),
            commands.audit(actor, Action::Save, resource, json!({ "deleted": true, "revision": pipeline.revision })),
        ],
        events: Vec::new(),
    };
    delete(commands, commit, &format!("pipeline `{}`", pipeline.name)).await
}

async fn delete(commands: &Commands, commit: Commit, what: &str) -> Result<(), Error> {
    match commands.store.commit(commit).await {
        Ok(_) => Ok(()),
        Err(CommitError::Refused(Refusal { guard: Guard::NoneRunning { .. } | Guard::NonePipelineRunning { .. } })) => {
            Err(Error::new(
                Code::WrongState,
                format!("an execution of {what} is running; cancel it or wait for its end"),
            ))
        }
        Err(error) => Err(error.into()),
    }
}

async fn application(commands: &Commands, id: ApplicationId) -> Result<Application, Error> {
    let application = commands.store.application(id).await?;
    application.ok_or_else(|| Error::new(Code::NotFound, format!("there is no application {id}")))
}

fn application_name(name: &str) -> Result<(), Error> {
    let allowed = |char: char| char.is_ascii_lowercase() || char.is_ascii_digit() || matches!(char, '.' | '_');
    if name.is_empty() || name.len() > APPLICATION_NAME_MAX || !name.chars().all(allowed) {
        return Err(Error::invalid(
            &["name"],
            format!(
                "an application's name has 1 to {APPLICATION_NAME_MAX} lower-case letters, digits, `.` and `_` \
                 (`-` separates it from stack and detail in other names)"
            ),
        ));
    }
    Ok(())
}

fn pipeline_name(name: &str) -> Result<(), Error> {
    let fits = (1..=PIPELINE_NAME_MAX).contains(&name.chars().count());
    if !fits || name.trim() != name || name.chars().any(char::is_control) {
        return Err(Error::invalid(
            &["name"],
            format!("a pipeline's name has 1 to {PIPELINE_NAME_MAX} characters on one line, without spaces around it"),
        ));
    }
    Ok(())
}

fn description(save: &SaveApplication) -> Result<(), Error> {
    if save.description.chars().count() > DESCRIPTION_MAX {
        let message = format!("a description has at most {DESCRIPTION_MAX} characters");
        return Err(Error::invalid(&["description"], message));
    }
    Ok(())
}

fn email(save: &SaveApplication) -> Result<(), Error> {
    if let Some(email) = &save.email {
        let holds = email.len() <= 254
            && !email.chars().any(|char| char.is_whitespace() || char.is_control())
            && email.split_once('@').is_some_and(|(user, host)| !user.is_empty() && !host.is_empty());
        if !holds {
            return Err(Error::invalid(&["email"], format!("`{}` is not an address", email.escape_debug())));
        }
    }
    Ok(())
}
