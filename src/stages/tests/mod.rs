//! The stages over the real engine and a real SQLite store; the cloud is in memory ([`memory`]).

mod cluster;
mod crash;
mod deploy;
mod formats;
mod kinds;
pub mod memory;
mod provider;
mod webhook;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{Deps, registry};
use crate::clock::Clock;
use crate::engine::commands::{Judgment, SaveApplication, StartOperation};
use crate::engine::contract::INVENTORY_TOPIC;
use crate::engine::{self, CrashHook, CrashPoint, Engine};
use crate::inventory::Inventory;
use crate::model::{
    Actor, Application, Execution, ExecutionId, Principal, PrincipalId, PrincipalKind, Role, Stage, StageSpec, Status,
    Wake,
};
use crate::outbound::{self, Outbound};
use crate::secrets::Secrets;
use crate::store::{self, Commit, Durability, Guard, Store, Write};
use memory::Memory;

/// A store, a cloud, an application `hello`, and somebody who may do everything.
pub struct World {
    directory: PathBuf,
    pub store: Store,
    pub cloud: Memory,
    pub inventory: Inventory,
    pub actor: Actor,
    pub application: Application,
    pub clock: Clock,
    stop: CancellationToken,
}

/// An engine at work.
pub struct Server {
    pub engine: Engine,
    /// The hook has said that it dies.
    pub dead: Arc<AtomicBool>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl World {
    pub async fn new() -> Self {
        Self::at(Clock::system()).await
    }

    pub async fn at(clock: Clock) -> Self {
        let directory = std::env::temp_dir().join(format!("gennaker-stages-{}", uuid::Uuid::new_v4().simple()));
        let options = store::Options {
            database_url: None,
            data_dir: directory.clone(),
            durability: Durability::Normal,
            queue_max: 4096,
        };
        let store = Store::open(&options, clock.clone()).await.expect("the store opens");
        let principal = Principal {
            id: PrincipalId::new(),
            name: "ada".into(),
            kind: PrincipalKind::User,
            roles: vec![Role::Admin],
            created_at: clock.now(),
        };
        let actor = Actor { principal: principal.id, name: principal.name.clone(), roles: principal.roles.clone() };
        let commit = Commit {
            guards: vec![Guard::PrincipalNameFree { name: principal.name.clone() }],
            writes: vec![Write::InsertPrincipal(principal)],
            events: vec![],
        };
        store.commit(commit).await.expect("a principal");
        let cloud = Memory::new(clock.clone());
        cloud.given_load_balancer("hello");
        let inventory = Inventory::new(vec![Arc::new(cloud.clone())], clock.clone());
        let stop = CancellationToken::new();
        tokio::spawn({
            let (inventory, stop) = (inventory.clone(), stop.clone());
            async move { inventory.run(stop).await }
        });
        let commands =
            Engine::new(engine::Options::default(), store.clone(), Self::kinds(&inventory), clock.clone()).commands();
        let save = SaveApplication { name: "hello".into(), description: String::new(), email: None };
        let application = commands.create_application(&actor, save).await.expect("an application");
        Self { directory, store, cloud, inventory, actor, application, clock, stop }
    }

    fn kinds(inventory: &Inventory) -> engine::contract::Registry {
        let outbound = Outbound::new(outbound::Options {
            allow: vec!["127.0.0.1".parse().expect("an address")],
            ..outbound::Options::default()
        });
        let secrets =
            Secrets::with_environment([], |name| (name == "GENNAKER_SECRET_HOOK").then(|| "hook-s3cr3t".into()));
        registry(Deps { inventory: inventory.clone(), outbound, secrets })
    }

    pub fn serve(&self) -> Server {
        self.serve_until(|_| false)
    }

    /// Serves until the hook says that it dies.
    pub fn serve_until(&self, dies: impl Fn(&CrashPoint) -> bool + Send + Sync + 'static) -> Server {
        let dead = Arc::new(AtomicBool::new(false));
        let hook = {
            let dead = Arc::clone(&dead);
            CrashHook(Arc::new(move |point| {
                let dies = !dead.load(Ordering::SeqCst) && dies(point);
                if dies {
                    dead.store(true, Ordering::SeqCst);
                }
                dies
            }))
        };
        self.serve_with(engine::Options { crash: Some(hook), ..engine::Options::default() }, dead)
    }

    /// Serves with a queue before each cluster that has so many places.
    pub fn serve_queue(&self, places: usize) -> Server {
        self.serve_with(engine::Options { cluster_queue_max: places, ..engine::Options::default() }, Arc::default())
    }

    fn serve_with(&self, options: engine::Options, dead: Arc<AtomicBool>) -> Server {
        let options = engine::Options { sole_owner: true, scan_every: Duration::from_millis(50), ..options };
        let engine = Engine::new(options, self.store.clone(), Self::kinds(&self.inventory), self.clock.clone());
        let stop = CancellationToken::new();
        let task = tokio::spawn({
            let (engine, stop, mut changed) = (engine.clone(), stop.clone(), self.inventory.changed());
            async move {
                let topics = engine.topics();
                let tell = async {
                    while changed.changed().await.is_ok() {
                        topics.notify(INVENTORY_TOPIC);
                    }
                };
                tokio::select! {
                    _ = engine.run(stop) => {}
                    () = tell => {}
                }
            }
        });
        Server { engine, dead, stop, task }
    }

    pub async fn start(&self, server: &Server, stages: Vec<StageSpec>) -> ExecutionId {
        let start =
            StartOperation { application: self.application.id, title: "test".into(), stages, idempotency_key: None };
        server.engine.commands().start_operation(&self.actor, start).await.expect("it starts").execution.id
    }

    pub async fn execution(&self, id: ExecutionId) -> Execution {
        self.store.execution(id).await.expect("the store reads").expect("the execution is there")
    }

    /// Looks at the execution until it is as wanted.
    pub async fn until(&self, id: ExecutionId, wanted: impl Fn(&Execution) -> bool) -> Execution {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        loop {
            let execution = self.execution(id).await;
            if wanted(&execution) {
                return execution;
            }
            if tokio::time::Instant::now() > deadline {
                panic!("not as wanted within a minute: {}\n{:?}", shape(&execution).join("\n"), self.cloud.inventory());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn finished(&self, id: ExecutionId) -> Execution {
        self.until(id, |execution| execution.status.is_complete()).await
    }

    /// Starts the stages and waits until they are over.
    pub async fn run(&self, stages: Vec<StageSpec>) -> Execution {
        let server = self.serve();
        let id = self.start(&server, stages).await;
        let execution = self.finished(id).await;
        server.stop().await;
        execution
    }

    pub async fn judge(&self, server: &Server, stage: &Stage, proceed: bool, input: Option<&str>) {
        let judgment =
            Judgment { stage: stage.id, proceed, input: input.map(str::to_owned), comment: Some("looks fine".into()) };
        server.engine.commands().judge(&self.actor, judgment).await.expect("it may be judged");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl Server {
    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    pub async fn stop(self) {
        self.stop.cancel();
        let _ = self.task.await;
    }
}

pub fn stage(kind: &str, config: Value) -> StageSpec {
    StageSpec {
        key: kind.to_owned(),
        kind: kind.to_owned(),
        name: String::new(),
        requires: vec![],
        config,
        on_failure: crate::model::OnFailure::FailPipeline,
        timeout_seconds: None,
        notifications: Vec::new(),
    }
}

/// A deploy of one cluster behind the load balancer `hello`.
pub fn deploy(strategy: Value, launch: Value) -> StageSpec {
    stage("deploy", json!({"clusters": [cluster(strategy, launch)]}))
}

pub fn cluster(strategy: Value, launch: Value) -> Value {
    json!({
        "stack": "prod",
        "strategy": strategy,
        "capacity": {"min": 2, "desired": 2, "max": 2},
        "loadBalancers": ["hello"],
        "launch": launch,
        "healthTimeoutSeconds": 1
    })
}

/// The stage that waits for a person's word, if one does.
pub fn waiting(execution: &Execution) -> Option<&Stage> {
    execution
        .stages
        .iter()
        .find(|stage| stage.status == Status::Running && matches!(&stage.wake, Wake::Signal { payload: None, .. }))
}

/// The tree of stages: `key status code`, indented.
pub fn shape(execution: &Execution) -> Vec<String> {
    fn add(execution: &Execution, stage: &Stage, depth: usize, out: &mut Vec<String>) {
        let code = stage.failure.as_ref().map(|failure| format!(" {}", failure.code)).unwrap_or_default();
        out.push(format!("{}{} {}{code}", "  ".repeat(depth), stage.key, stage.status.as_str()));
        for child in execution.children(stage.id) {
            add(execution, child, depth + 1, out);
        }
    }
    let mut out = vec![execution.status.as_str().to_owned()];
    for stage in execution.stages.iter().filter(|stage| stage.parent.is_none()) {
        add(execution, stage, 0, &mut out);
    }
    out
}
