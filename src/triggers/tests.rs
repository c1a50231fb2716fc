//! Triggers with their real parts: a SQLite database, the engine, commands, and a clock that the
//! test moves.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::clock::Clock;
use crate::engine::commands::{Code, Commands, SaveApplication, SavePipeline, StartPipeline};
use crate::engine::{Engine, Options};
use crate::inventory::Inventory;
use crate::model::{
    Actor, Application, Execution, Pipeline, PipelineDefinition, Principal, PrincipalId, PrincipalKind, Role, Trigger,
};
use crate::outbound::{self, Outbound};
use crate::secrets::Secrets;
use crate::stages;
use crate::store::{self, Commit, ExecutionFilter, PageRequest, Store, Write};

struct Home {
    store: Store,
    clock: Clock,
    registry: Registry,
    engine: Engine,
    commands: Commands,
    actor: Actor,
    application: Application,
    dir: PathBuf,
    running: Option<(CancellationToken, JoinHandle<()>)>,
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Some((stop, task)) = self.running.take() {
            stop.cancel();
            task.abort();
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn at(text: &str) -> chrono::DateTime<chrono::Utc> {
    text.parse().expect("an instant")
}

impl Home {
    /// On 2026-11-22 at 10:00:30.
    async fn new() -> Self {
        let clock = Clock::manual(at("2026-11-22T10:00:30Z"));
        let dir = std::env::temp_dir().join(format!("gennaker-triggers-{}", uuid::Uuid::now_v7().simple()));
        let options = store::Options {
            database_url: None,
            data_dir: dir.clone(),
            durability: store::Durability::Normal,
            queue_max: 1_000,
        };
        let store = Store::open(&options, clock.clone()).await.expect("opens");
        let inventory = Inventory::new(Vec::new(), clock.clone());
        let outbound = Outbound::new(outbound::Options::default());
        let registry = kinds(stages::registry(stages::Deps { inventory, outbound, secrets: Secrets::new(Vec::new()) }));
        let options = Options { sole_owner: true, ..Options::default() };
        let engine = Engine::new(options, store.clone(), registry.clone(), clock.clone());
        let actor = principal(&store, "ann", Role::Operator).await;
        let commands = engine.commands();
        let save = SaveApplication { name: "hello".into(), description: String::new(), email: None };
        let application = commands.create_application(&actor, save).await.expect("made");
        Self { store, clock, registry, engine, commands, actor, application, dir, running: None }
    }

    fn dispatcher(&self) -> Dispatcher {
        let (commands, registry) = (self.commands.clone(), self.registry.clone());
        Dispatcher::new(self.store.clone(), commands, registry, self.clock.clone(), self.engine.slots())
    }

    /// Lets the engine run.
    fn run(&mut self) {
        let (engine, stop) = (self.engine.clone(), CancellationToken::new());
        let task = tokio::spawn({
            let stop = stop.clone();
            async move { engine.run(stop).await.expect("runs") }
        });
        self.running = Some((stop, task));
    }

    fn advance(&self, to: &str) {
        self.clock.advance((at(to) - self.clock.now()).to_std().expect("forward"));
    }

    async fn try_save(&self, name: &str, definition: Value) -> Result<Pipeline, crate::engine::commands::Error> {
        let definition: PipelineDefinition = serde_json::from_value(definition).expect("a definition");
        let save = SavePipeline {
            application: self.application.id,
            name: name.to_owned(),
            definition,
            expected_revision: None,
        };
        self.commands.save_pipeline(&self.actor, save).await
    }

    async fn save(&self, name: &str, triggers: Value) -> Pipeline {
        self.try_save(name, definition(triggers)).await.expect("saved")
    }

    async fn trigger(&self, pipeline: &Pipeline) -> Trigger {
        self.store.triggers(pipeline.id).await.expect("read").remove(0)
    }

    /// The executions of a pipeline, the oldest first.
    async fn executions(&self, pipeline: &Pipeline) -> Vec<Execution> {
        let filter = ExecutionFilter { pipeline: Some(pipeline.id), ..ExecutionFilter::default() };
        let page = PageRequest { after: None, before: None, limit: 100, backward: false };
        let page = self.store.executions(&filter, &page).await.expect("read");
        page.items.into_iter().rev().map(|(_, execution)| execution).collect()
    }

    async fn wait_for_executions(&self, pipeline: &Pipeline, count: usize) -> Vec<Execution> {
        let start = Instant::now();
        loop {
            let found = self.executions(pipeline).await;
            if found.len() >= count {
                return found;
            }
            assert!(start.elapsed() < Duration::from_secs(30), "{} of {count} executions", found.len());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Starts the pipeline and waits for its end.
    async fn over(&self, pipeline: &Pipeline, parameters: Value) -> Execution {
        let start = StartPipeline { pipeline: pipeline.id, parameters, idempotency_key: None };
        let id = self.commands.start_pipeline(&self.actor, start).await.expect("started").execution.id;
        let start = Instant::now();
        loop {
            let execution = self.store.execution(id).await.expect("read").expect("is there");
            if execution.status.is_complete() {
                return execution;
            }
            assert!(start.elapsed() < Duration::from_secs(30), "it ends");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn principal(store: &Store, name: &str, role: Role) -> Actor {
    let principal = Principal {
        id: PrincipalId::new(),
        name: name.to_owned(),
        kind: PrincipalKind::User,
        roles: vec![role],
        created_at: at("2026-11-22T10:00:00Z"),
    };
    let actor = Actor { principal: principal.id, name: principal.name.clone(), roles: principal.roles.clone() };
    let commit = Commit { writes: vec![Write::InsertPrincipal(principal)], ..Commit::default() };
    store.commit(commit).await.expect("committed");
    actor
}

fn definition(triggers: Value) -> Value {
    json!({
        "parameters": [{ "name": "version", "default": "none" }],
        "stages": [{ "key": "wait", "kind": "wait", "config": { "seconds": 0 } }],
        "triggers": triggers,
    })
}

fn cron(expression: &str, missed: &str) -> Value {
    json!([{ "key": "timed", "kind": "cron", "config": { "expression": expression, "missed": missed } }])
}

fn after(pipeline: &str) -> Value {
    json!([{ "key": "after", "kind": "pipeline", "config": { "application": "hello", "pipeline": pipeline } }])
}

#[tokio::test]
async fn a_slot_is_started_once_whoever_else_tries() {
    let home = Home::new().await;
    let pipeline = home.save("often", cron("* * * * *", "SKIP")).await;
    let (one, other) = (home.dispatcher(), home.dispatcher());
    assert_eq!(one.pass().await.expect("passed"), Some(at("2026-11-22T10:01:00Z")));
    assert!(home.executions(&pipeline).await.is_empty(), "not before its time");
    for minute in 1..=5 {
        home.advance(&format!("2026-11-22T10:0{minute}:01Z"));
        let (a, b) = tokio::join!(one.pass(), other.pass());
        a.expect("passed");
        b.expect("passed");
        assert_eq!(home.executions(&pipeline).await.len(), minute);
    }
    let newest = home.executions(&pipeline).await.pop().expect("one");
    let why = newest.trigger.expect("a trigger");
    assert_eq!((why.kind.as_str(), why.key.as_str(), why.depth), ("cron", "timed", 1));
    assert_eq!(why.scheduled_at, Some(at("2026-11-22T10:05:00Z")));
    assert_eq!(newest.started_by, home.actor.principal);
    let trigger = home.trigger(&pipeline).await;
    assert_eq!((trigger.last_execution, trigger.next_at), (Some(newest.id), Some(at("2026-11-22T10:06:00Z"))));
}

#[tokio::test]
async fn missed_slots_are_let_go_or_run_once() {
    let home = Home::new().await;
    let skip = home.save("skip", cron("*/10 * * * *", "SKIP")).await;
    let once = home.save("once", cron("*/10 * * * *", "RUN_ONCE")).await;
    home.advance("2026-11-22T10:55:00Z");
    let dispatcher = home.dispatcher();
    for _ in 0..2 {
        assert_eq!(dispatcher.pass().await.expect("passed"), Some(at("2026-11-22T11:00:00Z")));
    }
    assert!(home.executions(&skip).await.is_empty());
    assert_eq!(home.trigger(&skip).await.last_missed_at, Some(at("2026-11-22T10:50:00Z")));
    let runs = home.executions(&once).await;
    assert_eq!(runs.len(), 1, "one for five");
    let why = runs[0].trigger.as_ref().expect("a trigger");
    assert_eq!(why.scheduled_at, Some(at("2026-11-22T10:50:00Z")));
    assert!(why.reason.contains("late"), "{}", why.reason);
    // Back in time, both go on.
    home.advance("2026-11-22T11:00:20Z");
    dispatcher.pass().await.expect("passed");
    assert_eq!((home.executions(&skip).await.len(), home.executions(&once).await.len()), (1, 2));
}

#[tokio::test]
async fn a_save_neither_loses_a_slot_that_is_due_nor_repeats_one() {
    let home = Home::new().await;
    let pipeline = home.save("often", cron("* * * * *", "SKIP")).await;
    let before = home.trigger(&pipeline).await;
    home.advance("2026-11-22T10:01:02Z");
    let pipeline = home.save("often", cron("* * * * *", "SKIP")).await;
    assert_eq!(home.trigger(&pipeline).await.id, before.id);
    home.dispatcher().pass().await.expect("passed");
    assert_eq!(home.executions(&pipeline).await.len(), 1);
    // A save that had read the row before the start puts its old instant back.
    let commit = Commit { writes: vec![Write::PutTrigger(Box::new(before))], ..Commit::default() };
    home.store.commit(commit).await.expect("committed");
    assert_eq!(home.dispatcher().pass().await.expect("passed"), Some(at("2026-11-22T10:02:00Z")));
    assert_eq!(home.executions(&pipeline).await.len(), 1);
    // Disabled, it waits for nothing; without it, there is nothing.
    let mut off = cron("* * * * *", "SKIP");
    off[0]["enabled"] = json!(false);
    let pipeline = home.save("often", off).await;
    assert_eq!(home.trigger(&pipeline).await.next_at, None);
    home.advance("2026-11-22T10:05:02Z");
    assert_eq!(home.dispatcher().pass().await.expect("passed"), None);
    let pipeline = home.save("often", json!([])).await;
    assert!(home.store.triggers(pipeline.id).await.expect("read").is_empty());
    assert_eq!(home.executions(&pipeline).await.len(), 1);
}

#[tokio::test]
async fn who_may_not_start_any_more_starts_nothing_and_the_trigger_says_so() {
    let mut home = Home::new().await;
    let viewer = principal(&home.store, "eve", Role::Viewer).await;
    let nobody = Actor { principal: PrincipalId::new(), name: "gone".into(), roles: vec![Role::Operator] };
    for (actor, name, reason) in [(viewer, "seen", "OPERATOR"), (nobody, "left", "does not exist")] {
        // With the role of the moment of the save.
        home.actor = Actor { roles: vec![Role::Operator], ..actor };
        let pipeline = home.save(name, cron("* * * * *", "SKIP")).await;
        home.clock.advance(Duration::from_secs(60));
        home.dispatcher().pass().await.expect("passed");
        assert!(home.executions(&pipeline).await.is_empty());
        let trigger = home.trigger(&pipeline).await;
        assert!(trigger.last_error.as_ref().is_some_and(|error| error.contains(reason)), "{trigger:?}");
        assert!(trigger.next_at > Some(home.clock.now()), "it goes on");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_timer_acts_in_its_time_and_hears_of_saves() {
    let home = Home::new().await;
    let (dispatcher, stop) = (home.dispatcher(), CancellationToken::new());
    let timer = tokio::spawn({
        let (dispatcher, stop) = (dispatcher.clone(), stop.clone());
        async move { dispatcher.run(stop).await }
    });
    let pipeline = home.save("often", cron("* * * * *", "SKIP")).await;
    for minute in 1..=3 {
        home.advance(&format!("2026-11-22T10:0{minute}:00Z"));
        home.wait_for_executions(&pipeline, minute).await;
    }
    stop.cancel();
    tokio::time::timeout(Duration::from_secs(5), timer).await.expect("ends when told").expect("no panic");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_starts_the_other_pipeline_once_with_what_it_hands_over() {
    let mut home = Home::new().await;
    let source = home.save("deploy", json!([])).await;
    let mut triggers = after("deploy");
    triggers[0]["parameters"] = json!({ "version": "${ trigger.parameters.version }/${ trigger.execution.number }/${ trigger.stages.wait.outputs.seconds }" });
    let smoke = home.save("smoke", triggers).await;
    let failed = home
        .save(
            "alarm",
            json!([{ "key": "a", "kind": "pipeline", "config":
            { "application": "hello", "pipeline": "deploy", "statuses": ["FAILED", "CANCELED"] } }]),
        )
        .await;
    home.run();
    // Nobody dispatches: as if the server were killed right after the source's last commit.
    let ended = home.over(&source, json!({ "version": "7" })).await;
    assert!(home.executions(&smoke).await.is_empty());
    let (one, other) = (home.dispatcher(), home.dispatcher());
    let (a, b) = tokio::join!(one.pass(), other.pass());
    a.expect("passed");
    b.expect("passed");
    one.sweep().await.expect("swept");
    let runs = home.executions(&smoke).await;
    assert_eq!(runs.len(), 1);
    assert_eq!(runs[0].parameters, json!({ "version": "7/1/0" }));
    let why = runs[0].trigger.as_ref().and_then(|why| why.source.clone()).expect("a source");
    assert_eq!((why.execution, why.number, why.pipeline.as_str()), (ended.id, 1, "deploy"));
    assert!(home.executions(&failed).await.is_empty(), "another end");
    // With the timer, without a sweep.
    let timer = tokio::spawn({
        let dispatcher = one.clone();
        async move { dispatcher.run(CancellationToken::new()).await }
    });
    home.over(&source, json!({ "version": "8" })).await;
    let runs = home.wait_for_executions(&smoke, 2).await;
    assert_eq!(runs[1].parameters, json!({ "version": "8/2/0" }));
    timer.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parameters_that_cannot_be_evaluated_are_told_at_the_trigger() {
    let mut home = Home::new().await;
    let source = home.save("deploy", json!([])).await;
    let mut triggers = after("deploy");
    triggers[0]["parameters"] = json!({ "version": "${ trigger.parameters.nothing }" });
    let smoke = home.save("smoke", triggers).await;
    home.run();
    home.over(&source, json!(null)).await;
    home.dispatcher().pass().await.expect("passed");
    assert!(home.executions(&smoke).await.is_empty());
    let error = home.trigger(&smoke).await.last_error.expect("an error");
    assert!(error.contains("trigger.parameters.nothing") && error.contains("/version"), "{error}");
}

#[tokio::test]
async fn circles_of_pipelines_are_refused_with_their_way() {
    let home = Home::new().await;
    let own = home.try_save("a", definition(after("a"))).await.expect_err("itself");
    assert!(own.message.contains("hello/a → hello/a"), "{own}");
    home.save("a", json!([])).await;
    home.save("b", after("a")).await;
    home.save("c", after("b")).await;
    let error = home.try_save("a", definition(after("c"))).await.expect_err("a circle");
    assert!(error.message.contains("hello/a → hello/b → hello/c → hello/a"), "{error}");
    assert_eq!(error.field, ["triggers", "0", "config", "pipeline"]);
    // What is replaced does not count.
    home.save("b", json!([])).await;
    home.save("a", after("c")).await;
}

#[tokio::test]
async fn faults_of_triggers_name_their_place() {
    let home = Home::new().await;
    home.save("deploy", json!([])).await;
    let with = |change: &dyn Fn(&mut Value)| {
        let mut triggers = cron("0 3 * * *", "SKIP");
        change(&mut triggers[0]);
        definition(triggers)
    };
    let twice = definition(json!([cron("0 3 * * *", "SKIP")[0], cron("0 4 * * *", "SKIP")[0]]));
    let mut required = definition(cron("0 3 * * *", "SKIP"));
    required["parameters"] = json!([{ "name": "version" }]);
    let table: Vec<(Value, &str, &str)> = vec![
        (twice, "triggers.1.key", "same key"),
        (required, "triggers.0.parameters", "has to give parameter `version`"),
        (with(&|t| t["key"] = json!("a b")), "triggers.0.key", "not a trigger's key"),
        (with(&|t| t["kind"] = json!("crom")), "triggers.0.kind", "did you mean `cron`"),
        (with(&|t| t["config"] = json!({})), "triggers.0.config", "expression"),
        (
            with(&|t| t["config"]["zone"] = json!("UTC")),
            "triggers.0.config.zone",
            "there is expression, timeZone, missed",
        ),
        (with(&|t| t["config"]["expression"] = json!("99 * * * *")), "triggers.0.config.expression", "timetable"),
        (with(&|t| t["config"]["timeZone"] = json!("Europe/Berlim")), "triggers.0.config.timeZone", "Europe/Berlin"),
        (with(&|t| t["parameters"] = json!({ "versio": 1 })), "triggers.0.parameters.versio", "did you mean `version`"),
        (with(&|t| t["parameters"] = json!([1])), "triggers.0.parameters", "object"),
        (with(&|t| t["parameters"] = json!({ "version": "${ 1 +" })), "triggers.0.parameters.version", "closed"),
        (
            with(&|t| t["parameters"] = json!({ "version": "${ trigger.execution.number }" })),
            "triggers.0.parameters.version",
            "trigger.execution.number",
        ),
        (
            with(&|t| t["parameters"] = json!({ "version": "${ parameters.version }" })),
            "triggers.0.parameters.version",
            "may read `trigger` alone",
        ),
        (definition(after("deplot")), "triggers.0.config.pipeline", "did you mean `deploy`"),
        (
            with(&|t| {
                t["kind"] = json!("pipeline");
                t["config"] = json!({ "application": "hallo", "pipeline": "deploy" });
            }),
            "triggers.0.config.application",
            "did you mean `hello`",
        ),
    ];
    for (definition, field, says) in table {
        let error = home.try_save("faulty", definition.clone()).await.expect_err(field);
        assert_eq!((error.code, error.field.join(".").as_str()), (Code::Invalid, field), "{error}");
        assert!(error.message.contains(says), "{says}: {error}");
    }
}

#[tokio::test]
async fn every_example_is_saved() {
    let home = Home::new().await;
    home.save("deploy hello", json!([])).await;
    for kind in home.registry.triggers() {
        let kind = kind.kind();
        let trigger = json!([{ "key": "example", "kind": kind.kind, "config": kind.example }]);
        home.try_save(&format!("example of {}", kind.kind), definition(trigger)).await.expect(kind.kind);
    }
    assert_eq!(home.registry.triggers().count(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_source_starts_nothing_and_a_deleted_pipeline_is_not_started() {
    let mut home = Home::new().await;
    let source = home.save("deploy", json!([])).await;
    let smoke = home.save("smoke", after("deploy")).await;
    home.run();
    home.over(&source, json!(null)).await;
    // The slot is there, its pipeline goes: so does the slot.
    home.commands.delete_pipeline(&home.actor, smoke.id).await.expect("deleted");
    assert!(home.store.slots_pending(10).await.expect("read").is_empty());
    home.dispatcher().pass().await.expect("passed");
    let smoke = home.save("smoke", after("deploy")).await;
    home.commands.delete_pipeline(&home.actor, source.id).await.expect("deleted");
    assert_eq!(home.trigger(&smoke).await.source, Some(source.id), "the trigger shows what is not there any more");
    let again = home.save("deploy", json!([])).await;
    home.over(&again, json!(null)).await;
    home.dispatcher().pass().await.expect("passed");
    assert!(home.executions(&smoke).await.is_empty(), "another pipeline of the same name");
    home.save("smoke", after("deploy")).await;
    home.over(&again, json!(null)).await;
    home.dispatcher().pass().await.expect("passed");
    assert_eq!(home.executions(&smoke).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_of_triggers_ends_somewhere() {
    let mut home = Home::new().await;
    let source = home.save("deploy", json!([])).await;
    let smoke = home.save("smoke", after("deploy")).await;
    home.run();
    let start = StartPipeline { pipeline: source.id, parameters: json!(null), idempotency_key: None };
    let mut execution = home.commands.start_pipeline(&home.actor, start).await.expect("started").execution;
    // The same once more, as the twentieth of a chain.
    let mut ids = std::iter::repeat_with(crate::model::StageId::new);
    execution.id = crate::model::ExecutionId::new();
    for stage in &mut execution.stages {
        (stage.id, stage.execution) = (ids.next().expect("without end"), execution.id);
    }
    execution.trigger = Some(Box::new(crate::model::Triggered {
        kind: "pipeline".into(),
        key: "after".into(),
        scheduled_at: None,
        source: None,
        depth: 20,
        reason: "a test".into(),
    }));
    let commit = Commit { writes: vec![Write::InsertExecution(Box::new(execution))], ..Commit::default() };
    home.store.commit(commit).await.expect("committed");
    let begun = Instant::now();
    while home.store.slots_pending(10).await.expect("read").len() < 2 {
        assert!(begun.elapsed() < Duration::from_secs(30), "both end");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    home.dispatcher().pass().await.expect("passed");
    assert_eq!(home.executions(&smoke).await.len(), 1, "the one that nobody triggered");
    let slots: Vec<_> = home.store.slots_pending(10).await.expect("read").into_iter().flatten().collect();
    assert!(slots.is_empty(), "both are acted upon");
}
