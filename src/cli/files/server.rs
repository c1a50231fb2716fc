//! What a server has, in the form of documents, and the calls that change it.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{Identity, Kind, Types, whole};
use crate::cli::client::{Client, Error};
use crate::cli::follow::follow;
use crate::cli::remote::{PAGE, all_pages};
use crate::cli::screen::Screen;
use crate::model::Status;

/// A server and what its schema says.
pub struct Server {
    pub client: Client,
    pub types: Types,
}

/// What a server has under an identity.
#[derive(Debug, Clone)]
pub struct Found {
    pub identity: Identity,
    /// In canonical form, `kind` first.
    pub fields: Map<String, Value>,
    /// Of pipelines.
    pub revision: Option<i64>,
    /// Keys of the triggers that wait for a pipeline that was deleted: they start nothing until the
    /// pipeline is saved again.
    pub dead_triggers: Vec<String>,
}

/// What keeps a load balancer or a security group from being deleted.
#[derive(Debug, Default)]
pub struct Users {
    pub load_balancers: Vec<Identity>,
    pub server_groups: Vec<String>,
}

/// A mutation that brings an object to what a document says.
struct Call {
    verb: &'static str,
    input_type: &'static str,
    /// What is selected of the payload beside the errors.
    answer: &'static str,
    input: Value,
}

impl Call {
    fn document(&self) -> String {
        let Self { verb, input_type, answer, .. } = self;
        format!(
            "mutation Call($input: {input_type}!) {{
               {verb}(input: $input) {{ {answer} userErrors {{ code message field }} }}
             }}"
        )
    }
}

impl Server {
    /// Asks for the schema.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn ask(client: Client) -> Result<Self, Error> {
        let types = Types::ask(&client).await?;
        Ok(Self { client, types })
    }

    /// Everything of these kinds in one application; nothing where there is no such application.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn application(&self, name: &str) -> Result<Vec<Found>, Error> {
        let fields = Kind::Application.fields(&self.types);
        let selection = self.types.selection(&fields, Kind::Application.output());
        let document = format!("query One($name: String!) {{ application(name: $name) {selection} }}");
        let data = match self.client.query(&document, json!({ "name": name })).await {
            Err(error) if error.code() == Some("NOT_FOUND") => return Ok(Vec::new()),
            data => data?,
        };
        if data["application"].is_null() {
            return Ok(Vec::new());
        }
        let mut found = vec![self.found(Kind::Application, &data["application"])];
        for (kind, list) in [(Kind::SecurityGroup, "securityGroups"), (Kind::LoadBalancer, "loadBalancers")] {
            let selection = self.types.selection(&kind.fields(&self.types), kind.output());
            for node in self.list(name, list, &selection).await? {
                found.push(self.found(kind, &node));
            }
        }
        let selection = self.types.selection(&Kind::Pipeline.fields(&self.types), Kind::Pipeline.output());
        let selection = format!("{{ name revision definition {selection} triggers {{ key kind problem }} }}");
        for node in self.list(name, "pipelines", &selection).await? {
            let mut definition = node["definition"].clone();
            definition["name"] = node["name"].clone();
            definition["application"] = json!(name);
            let triggers = node["triggers"].as_array().into_iter().flatten();
            let dead = triggers.filter(|trigger| trigger["kind"] == "pipeline" && trigger["problem"].is_string());
            let dead_triggers = dead.filter_map(|trigger| trigger["key"].as_str()).map(str::to_owned).collect();
            let revision = node["revision"].as_i64();
            found.push(Found { revision, dead_triggers, ..self.found(Kind::Pipeline, &definition) });
        }
        Ok(found)
    }

    async fn list(&self, application: &str, list: &str, selection: &str) -> Result<Vec<Value>, Error> {
        let document = format!(
            "query List($name: String!, $after: String) {{
               application(name: $name) {{
                 {list}(after: $after) {{ {PAGE} nodes {selection} }}
               }}
             }}"
        );
        all_pages(&self.client, &document, json!({ "name": application }), &format!("/application/{list}")).await
    }

    /// The names of all applications.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn applications(&self) -> Result<Vec<String>, Error> {
        let document =
            format!("query All($after: String) {{ applications(after: $after) {{ {PAGE} nodes {{ name }} }} }}");
        let nodes = all_pages(&self.client, &document, json!({}), "/applications").await?;
        Ok(nodes.iter().filter_map(|node| node["name"].as_str()).map(str::to_owned).collect())
    }

    fn found(&self, kind: Kind, output: &Value) -> Found {
        let fields = kind.fields(&self.types);
        let mut input = self.types.as_input(&fields, output);
        if kind == Kind::Pipeline {
            input["application"] = output["application"].clone();
            input["name"] = output["name"].clone();
        }
        let fields = whole(kind, self.types.canonical_fields(&fields, &input));
        Found { identity: Identity::of(kind, &fields), fields, revision: None, dead_triggers: Vec::new() }
    }

    /// What is wrong with a document, as the server tells it, once the documents `with` it are there
    /// too. Servers that cannot say so without doing it say nothing.
    ///
    /// # Errors
    /// When the server does not answer, or whoever asks may not save it.
    pub async fn check(
        &self,
        identity: &Identity,
        fields: &Map<String, Value>,
        before: Option<&Found>,
        with: Value,
    ) -> Result<Vec<Value>, Error> {
        let mut call = call(identity, fields, before);
        let knows = |name: &str| self.types.input(call.input_type).iter().any(|field| field.name == name);
        let (only, beside) = (knows("validateOnly"), knows("validateWith"));
        if !only {
            return Ok(Vec::new());
        }
        call.input["validateOnly"] = true.into();
        if beside {
            call.input["validateWith"] = with;
        }
        match self.client.mutate(&call.document(), call.input).await {
            Ok(_) => Ok(Vec::new()),
            Err(error) => error.about_input(),
        }
    }

    /// Brings an object to what a document says; `before` is what the server has. Where an operation does
    /// it, `key` tells one that somebody has begun already from a new one.
    ///
    /// # Errors
    /// The refusal, a failed operation, or when the server does not answer.
    pub async fn save(
        &self,
        identity: &Identity,
        fields: &Map<String, Value>,
        before: Option<&Found>,
        key: Option<&str>,
        timeout: Duration,
        screen: &mut Screen,
    ) -> anyhow::Result<By> {
        let mut call = call(identity, fields, before);
        if let Some(key) = key.filter(|_| !call.answer.is_empty()) {
            call.input["idempotencyKey"] = key.into();
        }
        self.perform(call, timeout, screen).await
    }

    /// What uses an object and has to go before it; nothing where it is gone.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn users(&self, identity: &Identity) -> Result<Users, Error> {
        let (field, lists) = match identity.kind {
            Kind::LoadBalancer => ("loadBalancer", "serverGroups { name }"),
            Kind::SecurityGroup => ("securityGroup", "serverGroups { name } loadBalancers { account location name }"),
            Kind::Application | Kind::Pipeline => return Ok(Users::default()),
        };
        let (account, location) = identity.place.clone().unwrap_or_default();
        let document = format!(
            "query Users($account: String!, $location: String!, $name: String!) {{
               found: {field}(account: $account, location: $location, name: $name) {{ {lists} }}
             }}"
        );
        let place = json!({ "account": account, "location": location, "name": identity.name });
        let data = self.client.query(&document, place).await?;
        let list = |name: &str| data["found"][name].as_array().into_iter().flatten();
        let load_balancers = list("loadBalancers").filter_map(Value::as_object);
        let server_groups = list("serverGroups").filter_map(|group| group["name"].as_str());
        Ok(Users {
            load_balancers: load_balancers.map(|fields| Identity::of(Kind::LoadBalancer, fields)).collect(),
            server_groups: server_groups.map(str::to_owned).collect(),
        })
    }

    /// Deletes an object.
    ///
    /// # Errors
    /// As [`Server::save`].
    pub async fn delete(&self, found: &Found, timeout: Duration, screen: &mut Screen) -> anyhow::Result<()> {
        let identity = &found.identity;
        let place = identity.place.clone().unwrap_or_default();
        let placed = json!({ "name": { "account": place.0, "location": place.1, "name": identity.name } });
        let (verb, input_type, answer, input) = match identity.kind {
            Kind::Application => anyhow::bail!("applications are not pruned"),
            Kind::Pipeline => {
                let name = json!({ "application": identity.application, "name": identity.name });
                ("deletePipeline", "DeletePipelineInput", "", json!({ "pipeline": { "name": name } }))
            }
            Kind::LoadBalancer => {
                ("deleteLoadBalancer", "DeleteLoadBalancerInput", EXECUTION, json!({ "loadBalancer": placed }))
            }
            Kind::SecurityGroup => {
                ("deleteSecurityGroup", "DeleteSecurityGroupInput", EXECUTION, json!({ "securityGroup": placed }))
            }
        };
        self.perform(Call { verb, input_type, answer, input }, timeout, screen).await.map(drop)
    }

    /// Makes a call; where it starts an operation, waits for its end.
    async fn perform(&self, call: Call, timeout: Duration, screen: &mut Screen) -> anyhow::Result<By> {
        let started = self.client.mutate(&call.document(), call.input).await?;
        let execution = &started["execution"];
        if call.answer.is_empty() {
            return Ok(By::Us);
        }
        let name = format!("{} #{}", execution["name"].as_str().unwrap_or_default(), execution["number"]);
        let id = execution["id"].as_str().unwrap_or_default();
        let tree = tokio::time::timeout(timeout, follow(&self.client, id, screen)).await;
        screen.keep();
        let tree = tree.map_err(|_| anyhow::anyhow!("`{name}` is not over within {timeout:?}; it goes on"))??;
        if started["isReplay"] == true {
            return Ok(By::Another);
        }
        if tree.ended() == Some(Status::Succeeded) {
            return Ok(By::Us);
        }
        match tree.failure() {
            Some(failure) => {
                let hint = failure.hint.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default();
                anyhow::bail!("`{name}` failed: {}{hint}", failure.message)
            }
            None => anyhow::bail!("`{name}` ended as {:?}", tree.ended()),
        }
    }
}

/// Whose call did what was to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    Us,
    /// An earlier call with the same key; it is over, in whatever way.
    Another,
}

const EXECUTION: &str = "execution { id name number } isReplay";

fn call(identity: &Identity, fields: &Map<String, Value>, before: Option<&Found>) -> Call {
    let given = fields.iter().filter(|(key, _)| *key != "kind");
    let mut input: Value = given.map(|(key, value)| (key.clone(), value.clone())).collect();
    let (verb, answer) = match identity.kind {
        Kind::Application if before.is_some() => {
            // What the document leaves out is taken away.
            let input = json!({
                "application": { "name": identity.name },
                "description": fields.get("description").cloned().unwrap_or_else(|| "".into()),
                "email": fields.get("email"),
            });
            return Call { verb: "updateApplication", input_type: "UpdateApplicationInput", answer: "", input };
        }
        Kind::Application => ("createApplication", ""),
        Kind::Pipeline => {
            input["application"] = json!({ "name": identity.application });
            input["expectedRevision"] = before.and_then(|found| found.revision).unwrap_or(0).into();
            ("savePipeline", "")
        }
        Kind::SecurityGroup => ("upsertSecurityGroup", EXECUTION),
        Kind::LoadBalancer => ("upsertLoadBalancer", EXECUTION),
    };
    Call { verb, input_type: identity.kind.input(), answer, input }
}
