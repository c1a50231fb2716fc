//! The application `hello` on a server: security group, load balancer and the pipeline
//! *deploy hello*, as the demo makes them.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use gennaker::cli::client::Client;
use gennaker::cli::demo::setup;
use gennaker::cli::demo::summary::Group;
use gennaker::cli::load::{self, Load};
use serde_json::{Value, json};

use super::documents::{JUDGE, SAVE, START};
use super::{Followed, Server, follow, gennaker, wait_for};

/// The longest that one deploy may take on a busy machine.
pub const DEPLOY_MAX: Duration = Duration::from_secs(180);

/// The application.
pub struct Hello {
    pub client: Client,
    pub load_balancer: SocketAddr,
    /// What its instances run: the binary under test, by a script, so that each host copies a few bytes
    /// and not the binary.
    program: PathBuf,
}

impl Hello {
    /// Creates it all.
    pub async fn create(server: &Server) -> anyhow::Result<Self> {
        let client = server.client();
        let ports = server.load_balancer_ports();
        setup::create_application(&client).await?;
        let execution = setup::upsert_security_group(&client, ports).await?;
        follow(&client, &execution, DEPLOY_MAX).await?.succeeded()?;
        let execution = setup::upsert_load_balancer(&client, ports).await?;
        follow(&client, &execution, DEPLOY_MAX).await?.succeeded()?;
        let load_balancer = setup::load_balancer_address(&client).await?;
        let hello = Self::of(server, load_balancer)?;
        setup::save_pipeline(&hello.client, hello.pipeline()).await?;
        Ok(hello)
    }

    /// With nothing created yet but its program.
    pub fn of(server: &Server, load_balancer: SocketAddr) -> anyhow::Result<Self> {
        let program = server.dir().join("program/gennaker");
        std::fs::create_dir_all(server.dir().join("program"))?;
        std::fs::write(&program, format!("#!/bin/sh\nexec '{}' \"$@\"\n", gennaker().display()))?;
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
        Ok(Self { client: server.client(), load_balancer, program })
    }

    /// The same application through another client.
    pub fn asked_by(&self, client: Client) -> Self {
        Self { client, load_balancer: self.load_balancer, program: self.program.clone() }
    }

    /// The demo's pipeline.
    pub fn pipeline(&self) -> Value {
        setup::pipeline(&self.program, self.load_balancer)
    }

    /// The demo's pipeline under another name, changed.
    pub async fn save(&self, name: &str, definition: &Value) -> Result<(), gennaker::cli::client::Error> {
        self.client.mutate(SAVE, setup::saving(name, definition.clone())).await.map(|_| ())
    }

    /// Starts a pipeline of the application; the execution's id.
    pub async fn start(&self, pipeline: &str, parameters: Value) -> Result<String, gennaker::cli::client::Error> {
        let input = json!({
            "pipeline": { "name": { "application": setup::APPLICATION, "name": pipeline } },
            "parameters": parameters,
        });
        let payload = self.client.mutate(START, input).await?;
        Ok(payload["execution"]["id"].as_str().unwrap_or_default().to_owned())
    }

    /// A pipeline that asks a person first, then does what the demo's does.
    pub async fn save_gated(&self, name: &str) -> anyhow::Result<()> {
        let mut definition = self.pipeline();
        let stages = definition["stages"].as_array_mut().context("it has stages")?;
        stages[0]["requires"] = json!(["ask"]);
        stages.insert(0, json!({ "key": "ask", "kind": "manualJudgment", "config": { "instructions": "Go on?" } }));
        Ok(self.save(name, &definition).await?)
    }

    /// The id of the execution's first stage once it waits for a person.
    pub async fn asks(&self, execution: &str) -> anyhow::Result<String> {
        wait_for("the judgment to be asked", DEPLOY_MAX, || async {
            let data = self.client.query(FIRST_STAGE, json!({ "id": execution })).await.ok()?;
            let stage = data.pointer("/node/stages/0")?;
            // Its question is asked once its deadline stands.
            (stage["status"] == "RUNNING").then(|| stage["id"].as_str().map(str::to_owned)).flatten()
        })
        .await
    }

    /// Lets it go on.
    pub async fn approve(&self, execution: &str) -> anyhow::Result<()> {
        let stage = self.asks(execution).await?;
        wait_for("the judgment to be taken", DEPLOY_MAX, || async {
            self.client.mutate(JUDGE, json!({ "stage": { "id": stage }, "proceed": true })).await.ok()
        })
        .await?;
        Ok(())
    }

    /// Starts *deploy hello* with a version and follows it to its end.
    pub async fn deploy(&self, version: &str) -> anyhow::Result<Followed> {
        let execution = self.start(setup::PIPELINE, json!({ "version": version })).await?;
        follow(&self.client, &execution, DEPLOY_MAX).await
    }

    /// Its server groups, by name.
    pub async fn groups(&self) -> anyhow::Result<Vec<Group>> {
        Ok(setup::server_groups(&self.client).await?)
    }

    /// Names and whether each is enabled.
    pub async fn names(&self) -> anyhow::Result<Vec<(String, bool)>> {
        Ok(self.groups().await?.into_iter().map(|group| (group.name, group.enabled)).collect())
    }

    /// Steady requests through the load balancer.
    pub fn load(&self, requests_per_second: u32, retry_broken: bool) -> Load {
        Load::start(load::Options {
            target: self.load_balancer,
            path: "/".to_owned(),
            requests_per_second,
            connections: 4,
            retry_broken,
        })
    }
}

const FIRST_STAGE: &str = "
query FirstStage($id: ID!) { node(id: $id) { ... on Execution { stages { id status } } } }";
