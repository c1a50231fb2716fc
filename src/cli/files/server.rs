//! What a server has, in the form of documents, and the calls that change it.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{Identity, Kind, Types, whole};
use crate::cli::client::{Client, Error};
use crate::cli::follow::follow;
use crate::cli::remote::pages;
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
        let mut found = vec![self.found(Kind::Application, &data["application"], None)];
        for (kind, list) in [(Kind::SecurityGroup, "securityGroups"), (Kind::LoadBalancer, "loadBalancers")] {
            let selection = self.types.selection(&kind.fields(&self.types), kind.output());
            for node in self.list(name, list, &selection).await? {
                found.push(self.found(kind, &node, None));
            }
        }
        let selection = self.types.selection(&Kind::Pipeline.fields(&self.types), Kind::Pipeline.output());
        for node in self.list(name, "pipelines", &format!("{{ name revision definition {selection} }}")).await? {
            let mut definition = node["definition"].clone();
            definition["name"] = node["name"].clone();
            definition["application"] = json!(name);
            found.push(self.found(Kind::Pipeline, &definition, node["revision"].as_i64()));
        }
        Ok(found)
    }

    async fn list(&self, application: &str, list: &str, selection: &str) -> Result<Vec<Value>, Error> {
        // Definitions are large: fewer at a time.
        let document = format!(
            "query List($name: String!, $after: String) {{
               application(name: $name) {{
                 {list}(first: 25, after: $after) {{ pageInfo {{ hasNextPage endCursor }} nodes {selection} }}
               }}
             }}"
        );
        pages(&self.client, &document, json!({ "name": application }), &format!("/application/{list}")).await
    }

    /// The names of all applications.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn applications(&self) -> Result<Vec<String>, Error> {
        const ALL: &str = "
query All($after: String) {
  applications(first: 100, after: $after) { pageInfo { hasNextPage endCursor } nodes { name } }
}";
        let nodes = pages(&self.client, ALL, json!({}), "/applications").await?;
        Ok(nodes.iter().filter_map(|node| node["name"].as_str()).map(str::to_owned).collect())
    }

    fn found(&self, kind: Kind, output: &Value, revision: Option<i64>) -> Found {
        let fields = kind.fields(&self.types);
        let mut input = self.types.as_input(&fields, output);
        if kind == Kind::Pipeline {
            input["application"] = output["application"].clone();
            input["name"] = output["name"].clone();
        }
        let fields = whole(kind, self.types.canonical_fields(&fields, &input));
        Found { identity: Identity::of(kind, &fields), fields, revision }
    }

    /// Whether the server would take a pipeline; the refusal if not. Servers that cannot say so
    /// without saving say nothing.
    ///
    /// # Errors
    /// The refusal, and when the server does not answer.
    pub async fn check_pipeline(&self, fields: &Map<String, Value>) -> Result<(), Error> {
        if !self.types.input(Kind::Pipeline.input()).iter().any(|field| field.name == "validateOnly") {
            return Ok(());
        }
        let mut input = pipeline_input(fields);
        input["validateOnly"] = true.into();
        self.client.mutate(SAVE_PIPELINE, input).await.map(|_| ())
    }

    /// Brings an object to what a document says; `before` is what the server has.
    ///
    /// # Errors
    /// The refusal, a failed operation, or when the server does not answer.
    pub async fn save(
        &self,
        identity: &Identity,
        fields: &Map<String, Value>,
        before: Option<&Found>,
        timeout: Duration,
        screen: &mut Screen,
    ) -> anyhow::Result<()> {
        let mut input = Value::Object(fields.iter().filter(|(key, _)| *key != "kind").map(own).collect());
        match identity.kind {
            Kind::Application if before.is_some() => {
                // What the document leaves out is taken away.
                let input = json!({
                    "application": { "name": identity.name },
                    "description": fields.get("description").cloned().unwrap_or_else(|| "".into()),
                    "email": fields.get("email"),
                });
                self.client.mutate(UPDATE_APPLICATION, input).await?;
            }
            Kind::Application => {
                self.client.mutate(CREATE_APPLICATION, input).await?;
            }
            Kind::Pipeline => {
                let mut input = pipeline_input(fields);
                input["expectedRevision"] = before.and_then(|found| found.revision).unwrap_or(0).into();
                self.client.mutate(SAVE_PIPELINE, input).await?;
            }
            Kind::SecurityGroup | Kind::LoadBalancer => {
                let (verb, input_type) = match identity.kind {
                    Kind::SecurityGroup => ("upsertSecurityGroup", "UpsertSecurityGroupInput"),
                    _ => ("upsertLoadBalancer", "UpsertLoadBalancerInput"),
                };
                self.operate(verb, input_type, input.take(), timeout, screen).await?;
            }
        }
        Ok(())
    }

    /// Deletes an object.
    ///
    /// # Errors
    /// As [`Server::save`].
    pub async fn delete(&self, found: &Found, timeout: Duration, screen: &mut Screen) -> anyhow::Result<()> {
        let identity = &found.identity;
        let place = identity.place.clone().unwrap_or_default();
        let placed = json!({ "name": { "account": place.0, "location": place.1, "name": identity.name } });
        match identity.kind {
            Kind::Application => anyhow::bail!("applications are not pruned"),
            Kind::Pipeline => {
                let name = json!({ "application": identity.application, "name": identity.name });
                self.client.mutate(DELETE_PIPELINE, json!({ "pipeline": { "name": name } })).await?;
            }
            Kind::LoadBalancer => {
                let input = json!({ "loadBalancer": placed });
                self.operate("deleteLoadBalancer", "DeleteLoadBalancerInput", input, timeout, screen).await?;
            }
            Kind::SecurityGroup => {
                let input = json!({ "securityGroup": placed });
                self.operate("deleteSecurityGroup", "DeleteSecurityGroupInput", input, timeout, screen).await?;
            }
        }
        Ok(())
    }

    /// Starts an operation and waits for its end.
    async fn operate(
        &self,
        verb: &str,
        input_type: &str,
        input: Value,
        timeout: Duration,
        screen: &mut Screen,
    ) -> anyhow::Result<()> {
        let document = format!(
            "mutation Operate($input: {input_type}!) {{
               {verb}(input: $input) {{ execution {{ id name number }} userErrors {{ code message field }} }}
             }}"
        );
        let started = self.client.mutate(&document, input).await?;
        let execution = &started["execution"];
        let name = format!("{} #{}", execution["name"].as_str().unwrap_or_default(), execution["number"]);
        let id = execution["id"].as_str().unwrap_or_default();
        let tree = tokio::time::timeout(timeout, follow(&self.client, id, screen)).await;
        screen.keep();
        let tree = tree.map_err(|_| anyhow::anyhow!("`{name}` is not over within {timeout:?}; it goes on"))??;
        if tree.ended() == Some(Status::Succeeded) {
            return Ok(());
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

fn own((key, value): (&String, &Value)) -> (String, Value) {
    (key.clone(), value.clone())
}

fn pipeline_input(fields: &Map<String, Value>) -> Value {
    let mut input = Value::Object(fields.iter().filter(|(key, _)| *key != "kind").map(own).collect());
    input["application"] = json!({ "name": fields.get("application") });
    input
}

const CREATE_APPLICATION: &str = "
mutation Create($input: CreateApplicationInput!) {
  createApplication(input: $input) { application { id } userErrors { code message field } }
}";

const UPDATE_APPLICATION: &str = "
mutation Update($input: UpdateApplicationInput!) {
  updateApplication(input: $input) { application { id } userErrors { code message field } }
}";

const SAVE_PIPELINE: &str = "
mutation Save($input: SavePipelineInput!) {
  savePipeline(input: $input) { pipeline { id revision } userErrors { code message field } }
}";

const DELETE_PIPELINE: &str = "
mutation Delete($input: DeletePipelineInput!) {
  deletePipeline(input: $input) { pipeline { id } userErrors { code message field } }
}";
