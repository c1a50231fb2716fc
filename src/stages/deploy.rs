//! Deploys to one or more clusters: one `createServerGroup` child for each, side by side. The
//! clusters are claimed here, one after the other in one order for everybody, so that two deploys
//! of the same clusters cannot wait for each other.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{cloud, create_server_group, schema};
use crate::engine::contract::{Cause, Next, Stage, StepContext, StepError};
use crate::inventory::Inventory;
use crate::model::{ChildSpec, Execution, OnFailure, Phase, Place, Stage as StageRow, Status};

pub(super) struct Deploy {
    pub inventory: Inventory,
}

#[derive(Deserialize)]
pub(super) struct Config {
    clusters: Vec<Value>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(tag = "at", rename_all = "camelCase")]
pub(super) enum Cursor {
    /// In line for the clusters.
    #[default]
    Claim,
    /// The children have been spawned; here again when all have ended well.
    Deployed,
}

impl Config {
    fn entries(&self) -> Result<Vec<create_server_group::Config>, (String, String)> {
        let entry = |(index, entry): (usize, &Value)| {
            create_server_group::Config::deserialize(entry)
                .map_err(|error| (format!("/clusters/{index}"), error.to_string()))
        };
        self.clusters.iter().enumerate().map(entry).collect()
    }
}

impl Stage for Deploy {
    const KIND: &'static str = "deploy";
    const TITLE: &'static str = "Deploy";
    const DESCRIPTION: &'static str = "Deploys a new server group to each of its clusters, side by side, each with its \
                                       strategy. When one fails, the others are brought back too.";
    const TIMEOUT: Duration = Duration::from_secs(3 * 60 * 60);
    type Config = Config;
    type Cursor = Cursor;

    fn schema(&self) -> Value {
        let clusters = json!({
            "type": "array",
            "minItems": 1,
            "maxItems": 20,
            "description": "Where and what to deploy; the cluster is named application-stack-detail.",
            "items": {
                "type": "object",
                "additionalProperties": false,
                "properties": schema::cluster_properties(),
                "required": ["capacity", "launch"]
            }
        });
        schema::object(json!({"clusters": clusters}), &["clusters"])
    }
    fn example(&self) -> Value {
        json!({"clusters": [create_server_group::example()]})
    }
    fn validate(&self, config: &Config) -> Result<(), (String, String)> {
        let mut seen: BTreeMap<(Place, String), usize> = BTreeMap::new();
        for (index, entry) in config.entries()?.iter().enumerate() {
            entry
                .check(&self.inventory)
                .map_err(|(pointer, message)| (format!("/clusters/{index}{pointer}"), message))?;
            let cluster =
                entry.cluster("a").map_err(|error| (format!("/clusters/{index}/stack"), error.to_string()))?;
            if let Some(first) = seen.insert((entry.place(), cluster), index) {
                return Err((format!("/clusters/{index}"), format!("it is the same cluster as entry {first}")));
            }
        }
        Ok(())
    }
    fn validate_known(&self, config: &Value) -> Result<(), (String, String)> {
        let mut seen: BTreeMap<(Place, String), usize> = BTreeMap::new();
        for (index, entry) in config["clusters"].as_array().into_iter().flatten().enumerate() {
            create_server_group::check_known(&self.inventory, entry)
                .map_err(|(pointer, message)| (format!("/clusters/{index}{pointer}"), message))?;
            let cluster = create_server_group::known_cluster(entry);
            if let Some(first) = cluster.and_then(|cluster| seen.insert(cluster, index)) {
                return Err((format!("/clusters/{index}"), format!("it is the same cluster as entry {first}")));
            }
        }
        Ok(())
    }
    fn tasks(&self, _: &Config) -> Vec<&'static str> {
        vec!["Wait for the clusters", "Deploy to the clusters"]
    }
    fn task(&self, cursor: &Cursor) -> usize {
        match cursor {
            Cursor::Claim => 0,
            Cursor::Deployed => 1,
        }
    }

    fn unwind(&self, execution: &Execution, stage: &StageRow, _: &Config, _: &Cursor) -> Vec<ChildSpec> {
        // Those that failed or were cancelled have brought their own cluster back.
        execution
            .children(stage.id)
            .filter(|child| child.phase == Phase::Body && child.status == Status::Succeeded)
            .flat_map(|child| {
                let config = child.resolved.as_ref().unwrap_or(&child.config);
                create_server_group::unwind_succeeded(execution, child, config, &child.cursor)
            })
            .collect()
    }

    async fn step(&self, cx: &StepContext, config: &Config, cursor: Cursor) -> Result<Next<Cursor>, StepError> {
        match cursor {
            Cursor::Claim => self.claim(cx, config).await,
            Cursor::Deployed => Ok(Next::Done(json!({"serverGroups": server_groups(cx)}))),
        }
    }
}

impl Deploy {
    async fn claim(&self, cx: &StepContext, config: &Config) -> Result<Next<Cursor>, StepError> {
        let invalid = |(pointer, message): (String, String)| {
            StepError::Fail(Cause::new("INVALID", format!("config at `{pointer}`: {message}")))
        };
        let entries = config.entries().map_err(invalid)?;
        self.validate(config).map_err(invalid)?;
        let application = &cx.execution().application_name;
        let mut clusters = Vec::with_capacity(entries.len());
        for entry in &entries {
            let cluster =
                entry.cluster(application).map_err(|error| StepError::fail("MALFORMED_NAME", error.to_string()))?;
            clusters.push((entry.place(), cluster));
        }
        let mut in_order = clusters.clone();
        in_order.sort();
        for (place, cluster) in &in_order {
            if let Some(next) = cloud::claim(cx, place, cluster, Cursor::Claim).await? {
                return Ok(next);
            }
        }
        let count = i64::try_from(clusters.len()).unwrap_or(i64::MAX);
        cx.progress(0, count, "clusters", "deploying");
        let children = clusters.iter().zip(&config.clusters).map(|((place, cluster), config)| {
            let places = clusters.iter().filter(|(_, other)| other == cluster).count();
            let (key, name) = if places > 1 {
                let at = format!("{}-{}", place.account, place.location);
                (format!("{cluster}-{at}"), format!("Deploy {cluster} to {}/{}", place.account, place.location))
            } else {
                (cluster.clone(), format!("Deploy {cluster}"))
            };
            ChildSpec {
                key,
                kind: "createServerGroup".to_owned(),
                name,
                requires: Vec::new(),
                config: config.clone(),
                timeout_seconds: None,
                on_failure: OnFailure::FailPipeline,
            }
        });
        Ok(Next::Spawn { children: children.collect(), cursor: Cursor::Deployed })
    }
}

/// What the children have made.
fn server_groups(cx: &StepContext) -> Vec<Value> {
    let children = cx.children();
    let count = i64::try_from(children.len()).unwrap_or(i64::MAX);
    cx.progress(count, count, "clusters", "deployed");
    children
        .into_iter()
        .filter(|child| child.phase == Phase::Body && child.status == Status::Succeeded)
        .map(|child| {
            let of = |key: &str| child.outputs.get(key).cloned().unwrap_or_default();
            json!({
                "account": of("account"),
                "location": of("location"),
                "cluster": of("cluster"),
                "serverGroup": of("serverGroup"),
                "previous": of("previous"),
            })
        })
        .collect()
}
