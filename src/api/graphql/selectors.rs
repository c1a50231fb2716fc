//! How mutations name what they act on: by id or by the names people use.

use async_graphql::{ID, InputObject, OneofObject};

use super::command::Refused;
use super::ids::{self, Key};
use super::session::Session;
use crate::api::error::{shown, stored};
use crate::model::{self, ExecutionId, Place, StageId};
use crate::near::did_you_mean;

/// Names an application.
#[derive(OneofObject)]
pub enum ApplicationSelector {
    /// Its id.
    Id(ID),
    /// Its name.
    Name(String),
}

/// Names a pipeline.
#[derive(OneofObject)]
pub enum PipelineSelector {
    /// Its id.
    Id(ID),
    /// Its name within its application.
    Name(PipelineName),
}

/// A pipeline's name within its application.
#[derive(InputObject)]
pub struct PipelineName {
    /// The application's name.
    pub application: String,
    /// The pipeline's name.
    pub name: String,
}

/// Names an execution.
#[derive(OneofObject)]
pub enum ExecutionSelector {
    /// Its id.
    Id(ID),
    /// Its number within its pipeline.
    Number(ExecutionNumber),
}

/// An execution's number within its pipeline, or of an operation within its application.
#[derive(InputObject)]
pub struct ExecutionNumber {
    /// The application's name.
    pub application: String,
    /// The pipeline's name; absent for operations.
    pub pipeline: Option<String>,
    /// Counts from 1.
    pub number: i64,
}

/// Names a stage.
#[derive(OneofObject)]
pub enum StageSelector {
    /// Its id.
    Id(ID),
    /// Its key within its execution.
    Key(StageKey),
}

/// A top-level stage's key within its execution.
#[derive(InputObject)]
pub struct StageKey {
    /// The execution.
    pub execution: ExecutionSelector,
    /// The stage's key in the pipeline.
    pub key: String,
}

/// Names a server group.
#[derive(OneofObject)]
pub enum ServerGroupSelector {
    /// Its id.
    Id(ID),
    /// Its name at its place.
    Name(PlacedName),
}

/// Names a load balancer.
#[derive(OneofObject)]
pub enum LoadBalancerSelector {
    /// Its id.
    Id(ID),
    /// Its name at its place.
    Name(PlacedName),
}

/// Names a security group.
#[derive(OneofObject)]
pub enum SecurityGroupSelector {
    /// Its id.
    Id(ID),
    /// Its name at its place.
    Name(PlacedName),
}

/// Names a principal.
#[derive(OneofObject)]
pub enum PrincipalSelector {
    /// Its id.
    Id(ID),
    /// Its name.
    Name(String),
}

/// A name at an account and location.
#[derive(InputObject)]
pub struct PlacedName {
    /// The account's name.
    #[graphql(default = "local")]
    pub account: String,
    /// The location within the account.
    #[graphql(default = "local")]
    pub location: String,
    /// The name.
    pub name: String,
}

impl PlacedName {
    fn split(self) -> (Place, String) {
        (Place { account: self.account, location: self.location }, self.name)
    }
}

fn wrong_id(id: &ID, what: &str, field: &[&str]) -> Refused {
    match Key::parse(id) {
        Some(_) => Refused::invalid(format!("`{}` is the id of something else, not of {what}", shown(id)), field),
        None => Refused::invalid(ids::not_an_id(id), field),
    }
}

fn gone(id: &ID, what: &str, field: &[&str]) -> Refused {
    Refused::not_found(format!("there is no {what} with the id `{}`; it may have been deleted", shown(id)), field)
}

impl Session<'_> {
    pub async fn select_application(&self, selector: ApplicationSelector) -> Result<model::Application, Refused> {
        const FIELD: &[&str] = &["application"];
        match selector {
            ApplicationSelector::Id(id) => {
                let Some(Key::Application(key)) = Key::parse(&id) else {
                    return Err(wrong_id(&id, "an application", FIELD));
                };
                self.application(key).await?.ok_or_else(|| gone(&id, "application", FIELD))
            }
            ApplicationSelector::Name(name) => self.select_application_named(&name, FIELD).await,
        }
    }

    pub async fn select_application_named(&self, name: &str, field: &[&str]) -> Result<model::Application, Refused> {
        match self.application_named(name).await? {
            Some(application) => Ok(application),
            None => Err(Refused::not_found(self.no_application(name).await?, field)),
        }
    }

    pub async fn select_pipeline(&self, selector: PipelineSelector) -> Result<model::Pipeline, Refused> {
        const FIELD: &[&str] = &["pipeline"];
        match selector {
            PipelineSelector::Id(id) => {
                let Some(Key::Pipeline(key)) = Key::parse(&id) else {
                    return Err(wrong_id(&id, "a pipeline", FIELD));
                };
                self.pipeline(key).await?.ok_or_else(|| gone(&id, "pipeline", FIELD))
            }
            PipelineSelector::Name(PipelineName { application, name }) => {
                let application =
                    self.select_application_named(&application, &["pipeline", "name", "application"]).await?;
                match self.pipeline_named(&application, &name).await? {
                    Some(pipeline) => Ok(pipeline),
                    None => {
                        let message = self.no_pipeline(&application, &name).await?;
                        Err(Refused::not_found(message, &["pipeline", "name", "name"]))
                    }
                }
            }
        }
    }

    /// With its stages.
    pub async fn select_execution(&self, selector: ExecutionSelector) -> Result<model::Execution, Refused> {
        const FIELD: &[&str] = &["execution"];
        match selector {
            ExecutionSelector::Id(id) => {
                let Some(Key::Execution(key)) = Key::parse(&id) else {
                    return Err(wrong_id(&id, "an execution", FIELD));
                };
                self.execution(key).await?.ok_or_else(|| gone(&id, "execution", FIELD))
            }
            ExecutionSelector::Number(ExecutionNumber { application, pipeline, number }) => {
                let application =
                    self.select_application_named(&application, &["execution", "number", "application"]).await?;
                let pipeline = match pipeline {
                    None => None,
                    Some(name) => match self.pipeline_named(&application, &name).await? {
                        Some(pipeline) => Some(pipeline),
                        None => {
                            let message = self.no_pipeline(&application, &name).await?;
                            return Err(Refused::not_found(message, &["execution", "number", "pipeline"]));
                        }
                    },
                };
                let key = pipeline.as_ref().map(|pipeline| pipeline.id);
                let found = self.api.store.execution_by_number(application.id, key, number).await;
                found.map_err(stored)?.filter(|execution| self.sees_execution(execution)).ok_or_else(|| {
                    let message = match &pipeline {
                        Some(pipeline) => {
                            format!("pipeline `{}/{}` has no execution {number}", application.name, pipeline.name)
                        }
                        None => format!("application `{}` has no operation {number}", application.name),
                    };
                    Refused::not_found(message, &["execution", "number", "number"])
                })
            }
        }
    }

    pub async fn select_execution_id(&self, selector: ExecutionSelector) -> Result<ExecutionId, Refused> {
        Ok(self.select_execution(selector).await?.id)
    }

    pub async fn select_stage(&self, selector: StageSelector) -> Result<StageId, Refused> {
        const FIELD: &[&str] = &["stage"];
        match selector {
            StageSelector::Id(id) => {
                let Some(Key::Stage(key)) = Key::parse(&id) else {
                    return Err(wrong_id(&id, "a stage", FIELD));
                };
                let stage = self.api.store.stage(key).await.map_err(stored)?;
                let stage = stage.ok_or_else(|| gone(&id, "stage", FIELD))?;
                self.execution(stage.execution).await?.ok_or_else(|| gone(&id, "stage", FIELD))?;
                Ok(stage.id)
            }
            StageSelector::Key(StageKey { execution, key }) => {
                let execution = self.select_execution(execution).await?;
                let top = || execution.stages.iter().filter(|stage| stage.parent.is_none());
                top().find(|stage| stage.key == key).map(|stage| stage.id).ok_or_else(|| {
                    let near = did_you_mean(&key, top().map(|stage| stage.key.as_str()));
                    Refused::not_found(format!("the execution has no stage `{}`{near}", shown(&key)), &["stage", "key"])
                })
            }
        }
    }

    pub async fn select_server_group(&self, selector: ServerGroupSelector) -> Result<model::ServerGroup, Refused> {
        const FIELD: &[&str] = &["serverGroup"];
        let (place, name) = match selector {
            ServerGroupSelector::Name(name) => name.split(),
            ServerGroupSelector::Id(id) => match Key::parse(&id) {
                Some(Key::ServerGroup(place, name)) => (place, name),
                _ => return Err(wrong_id(&id, "a server group", FIELD)),
            },
        };
        let inventory = &self.api.inventory;
        if let Some(found) = inventory.server_group(&place, &name) {
            return Ok(found);
        }
        self.look_again(&place, FIELD).await?;
        inventory.server_group(&place, &name).ok_or_else(|| {
            let all = inventory.server_groups();
            let names = all.iter().filter(|group| group.spec.place == place).map(|group| group.spec.name.as_str());
            missing("server group", &place, &name, names, FIELD)
        })
    }

    pub async fn select_load_balancer(&self, selector: LoadBalancerSelector) -> Result<model::LoadBalancer, Refused> {
        const FIELD: &[&str] = &["loadBalancer"];
        let (place, name) = match selector {
            LoadBalancerSelector::Name(name) => name.split(),
            LoadBalancerSelector::Id(id) => match Key::parse(&id) {
                Some(Key::LoadBalancer(place, name)) => (place, name),
                _ => return Err(wrong_id(&id, "a load balancer", FIELD)),
            },
        };
        let inventory = &self.api.inventory;
        if let Some(found) = inventory.load_balancer(&place, &name) {
            return Ok(found);
        }
        self.look_again(&place, FIELD).await?;
        inventory.load_balancer(&place, &name).ok_or_else(|| {
            let all = inventory.load_balancers();
            let names = all.iter().filter(|one| one.spec.place == place).map(|one| one.spec.name.as_str());
            missing("load balancer", &place, &name, names, FIELD)
        })
    }

    pub async fn select_security_group(
        &self,
        selector: SecurityGroupSelector,
    ) -> Result<model::SecurityGroup, Refused> {
        const FIELD: &[&str] = &["securityGroup"];
        let (place, name) = match selector {
            SecurityGroupSelector::Name(name) => name.split(),
            SecurityGroupSelector::Id(id) => match Key::parse(&id) {
                Some(Key::SecurityGroup(place, name)) => (place, name),
                _ => return Err(wrong_id(&id, "a security group", FIELD)),
            },
        };
        self.security_group_named(&place, &name, FIELD).await
    }

    pub async fn security_group_named(
        &self,
        place: &Place,
        name: &str,
        field: &[&str],
    ) -> Result<model::SecurityGroup, Refused> {
        let inventory = &self.api.inventory;
        if let Some(found) = inventory.security_group(place, name) {
            return Ok(found);
        }
        self.look_again(place, field).await?;
        inventory.security_group(place, name).ok_or_else(|| {
            let all = inventory.security_groups();
            let names = all.iter().filter(|one| one.spec.place == *place).map(|one| one.spec.name.as_str());
            missing("security group", place, name, names, field)
        })
    }

    /// The cached view may be a moment behind what was just made.
    async fn look_again(&self, place: &Place, field: &[&str]) -> Result<(), Refused> {
        match self.api.inventory.refresh(&place.account).await {
            Ok(_) => Ok(()),
            Err(error) => Err(refused_by_provider(&error, field)),
        }
    }

    pub async fn select_principal(&self, selector: PrincipalSelector) -> Result<model::Principal, Refused> {
        const FIELD: &[&str] = &["principal"];
        let store = &self.api.store;
        match selector {
            PrincipalSelector::Id(id) => {
                let Some(Key::Principal(key)) = Key::parse(&id) else {
                    return Err(wrong_id(&id, "a principal", FIELD));
                };
                store.principal(key).await.map_err(stored)?.ok_or_else(|| gone(&id, "principal", FIELD))
            }
            PrincipalSelector::Name(name) => match store.principal_by_name(&name).await.map_err(stored)? {
                Some(principal) => Ok(principal),
                None => {
                    let names = store.principal_names().await.map_err(stored)?;
                    let near = did_you_mean(&name, names.iter().map(String::as_str));
                    Err(Refused::not_found(format!("there is no principal `{}`{near}", shown(&name)), FIELD))
                }
            },
        }
    }
}

/// A provider's error as an answer to a client.
pub fn refused_by_provider(error: &crate::providers::Error, field: &[&str]) -> Refused {
    use crate::engine::commands::Code;
    use crate::providers::ErrorKind;
    let code = match error.kind {
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::Conflict => Code::Conflict,
        ErrorKind::Invalid => Code::Invalid,
        ErrorKind::Fenced | ErrorKind::Exhausted => Code::WrongState,
        ErrorKind::Unavailable => Code::Unavailable,
    };
    super::command::CommandError::new(code, error.message.clone(), field).into()
}

fn missing<'n>(what: &str, place: &Place, name: &str, names: impl Iterator<Item = &'n str>, field: &[&str]) -> Refused {
    let (account, location) = (shown(&place.account), shown(&place.location));
    let near = did_you_mean(name, names);
    Refused::not_found(format!("there is no {what} `{}` in {account}/{location}{near}", shown(name)), field)
}
