//! The engine with its real parts: a SQLite database, workers, commands. Time is a manual clock
//! where the test is about time.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use chrono::DateTime;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::commands::{Code, Commands, Judgment, SaveApplication, SavePipeline, StartOperation, StartPipeline};
use super::contract::Registry;
use super::script::{self, World};
use super::{CrashHook, CrashPoint, Engine, Moment, Options};
use crate::clock::Clock;
use crate::model::{
    Actor, CancelMode, DeliveryState, EmailTarget, EventBody, Execution, ExecutionId, NotificationRule, Occasion,
    Parameter, Pipeline, PipelineDefinition, PrincipalId, Role, Stage, StageSpec, Status, StreamId, Wake,
};
use crate::store::{self, IntentOutcome, PageRequest, Store};

struct Home {
    store: Store,
    clock: Clock,
    world: World,
    actor: Actor,
    dir: PathBuf,
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn manual() -> Clock {
    Clock::manual(DateTime::from_timestamp(1_800_000_000, 0).unwrap())
}

impl Home {
    async fn new(clock: Clock) -> Self {
        Self::with_queue(clock, 10_000).await
    }

    async fn with_queue(clock: Clock, queue_max: usize) -> Self {
        let dir = std::env::temp_dir().join(format!("gennaker-engine-{}", uuid::Uuid::now_v7().simple()));
        let options = store::Options {
            database_url: None,
            data_dir: dir.clone(),
            durability: store::Durability::Normal,
            queue_max,
        };
        let store = Store::open(&options, clock.clone()).await.unwrap();
        let actor = Actor { principal: PrincipalId::new(), name: "ann".to_owned(), roles: vec![Role::Operator] };
        Self { store, clock, world: World::default(), actor, dir }
    }

    fn options() -> Options {
        Options { sole_owner: true, lease: Duration::from_secs(3), ..Options::default() }
    }

    fn engine(&self, options: Options) -> Engine {
        Engine::new(options, self.store.clone(), script::registry(&self.world), self.clock.clone())
    }

    fn start(&self, options: Options) -> Server {
        Self::run(self.engine(options))
    }

    fn run(engine: Engine) -> Server {
        let stop = CancellationToken::new();
        let task = tokio::spawn({
            let (engine, stop) = (engine.clone(), stop.clone());
            async move { engine.run(stop).await.unwrap() }
        });
        Server { commands: engine.commands(), engine, stop, task }
    }

    async fn pipeline(&self, commands: &Commands, stages: Vec<StageSpec>) -> Pipeline {
        self.defined(commands, PipelineDefinition { stages, format_version: 1, ..PipelineDefinition::default() }).await
    }

    async fn defined(&self, commands: &Commands, definition: PipelineDefinition) -> Pipeline {
        let application = match self.store.application_by_name("hello").await.unwrap() {
            Some(application) => application,
            None => {
                let save = SaveApplication { name: "hello".into(), description: String::new(), email: None };
                commands.create_application(&self.actor, save).await.unwrap()
            }
        };
        let save =
            SavePipeline { application: application.id, name: "test".to_owned(), definition, expected_revision: None };
        commands.save_pipeline(&self.actor, save).await.unwrap()
    }

    async fn begin(&self, commands: &Commands, stages: Vec<StageSpec>) -> ExecutionId {
        let pipeline = self.pipeline(commands, stages).await;
        self.begin_again(commands, &pipeline).await
    }

    async fn begin_again(&self, commands: &Commands, pipeline: &Pipeline) -> ExecutionId {
        let start = StartPipeline { pipeline: pipeline.id, parameters: Value::Null, idempotency_key: None };
        commands.start_pipeline(&self.actor, start).await.unwrap().execution.id
    }

    async fn read(&self, id: ExecutionId) -> Execution {
        self.store.execution(id).await.unwrap().unwrap()
    }

    /// Waits until the execution is as wanted.
    async fn until(&self, id: ExecutionId, what: &str, wanted: impl Fn(&Execution) -> bool) -> Execution {
        let begin = Instant::now();
        loop {
            let execution = self.read(id).await;
            if wanted(&execution) {
                return execution;
            }
            assert!(begin.elapsed() < Duration::from_secs(20), "not reached: {what}: {execution:#?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits for so many more signs of life of a server.
    async fn beats(&self, server: &Server, more: i64) {
        let beat = async || {
            let owners = self.store.owners().await.unwrap();
            owners.iter().find(|(owner, _)| *owner == server.engine.owner()).map_or(0, |(_, beat)| *beat)
        };
        let (begin, first) = (Instant::now(), beat().await);
        while beat().await < first + more {
            assert!(begin.elapsed() < Duration::from_secs(20), "the server does not beat");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Another execution from begin to end: by then this server has looked at all there is to do.
    async fn another_ends(&self, server: &Server) {
        let id = self.begin(&server.commands, vec![stage("a", &[], json!({"steps": ["goto"]}))]).await;
        assert_eq!(self.over(id).await.status, Status::Succeeded);
    }

    async fn over(&self, id: ExecutionId) -> Execution {
        let execution = self.until(id, "the end", |execution| execution.status.is_complete()).await;
        self.log_holds(&execution).await;
        execution
    }

    /// The log has no gaps, each stage's last event is its row, and the last event is the end.
    async fn log_holds(&self, execution: &Execution) {
        let events = self.store.events(StreamId::Execution(execution.id), 0, 1_000).await.unwrap();
        let seqs: Vec<i64> = events.iter().map(|event| event.seq).collect();
        let expected: Vec<i64> = (1..=execution.event_seq).collect();
        assert_eq!(seqs, expected, "the events are gapless");
        for stage in &execution.stages {
            let last = events.iter().rev().find_map(|event| match &event.body {
                EventBody::StageChanged { stage: seen } if seen.id == stage.id => Some(seen),
                _ => None,
            });
            let seen = last.expect("each stage has an event");
            assert_eq!((seen.status, &seen.outputs), (stage.status, &stage.outputs), "{}", stage.key);
            assert!(seen.config.is_null() && seen.resolved.is_none() && seen.cursor.is_null());
        }
        match &events.last().unwrap().body {
            EventBody::ExecutionChanged { execution: seen } => assert_eq!(seen.status, execution.status),
            other => panic!("the last event is {other:?}"),
        }
    }

    async fn intents_are_closed(&self, id: ExecutionId) {
        for intent in self.store.intents(id).await.unwrap() {
            assert!(intent.closed_at.is_some(), "{intent:?}");
        }
    }
}

struct Server {
    engine: Engine,
    commands: Commands,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Server {
    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

fn stage(key: &str, requires: &[&str], config: Value) -> StageSpec {
    StageSpec {
        key: key.to_owned(),
        kind: "script".to_owned(),
        name: String::new(),
        requires: requires.iter().map(|key| (*key).to_owned()).collect(),
        config,
        on_failure: crate::model::OnFailure::FailPipeline,
        timeout_seconds: None,
        notifications: Vec::new(),
    }
}

fn row<'a>(execution: &'a Execution, key: &str) -> &'a Stage {
    execution.stages.iter().find(|stage| stage.key == key).unwrap_or_else(|| panic!("no stage {key}"))
}

fn status(execution: &Execution, key: &str) -> Status {
    row(execution, key).status
}

fn effect(key: &str) -> Value {
    json!({"steps": [{"effect": {"key": key}}]})
}

macro_rules! engine_test {
    ($(async fn $name:ident() $body:block)*) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() $body)*
    };
}

engine_test! {
    async fn a_fork_and_join_runs_and_tells() {
        let home = Home::new(Clock::system()).await;
        let server = home.start(Home::options());
        let definition = PipelineDefinition {
            format_version: 1,
            stages: vec![
                stage("a", &[], effect("a")),
                stage("b", &["a"], effect("b")),
                stage("c", &["a"], json!({"steps": [{"progress": {"completed": 3}}], "outputs": {"n": 5}})),
                stage("d", &["b", "c"], json!({"outputs": {
                    "sum": "${stages.c.outputs.n + 1}", "text": "${execution.application}-$${x}", "by": "${execution.startedBy}",
                    "all": "${(execution.id ~ execution.number ~ execution.pipeline ~ trigger.kind ~ stages.a.status)|length > 40}",
                }})),
            ],
            notifications: vec![NotificationRule { on: vec![Occasion::Started, Occasion::Completed, Occasion::Failed], email: None }],
            ..PipelineDefinition::default()
        };
        let pipeline = home.defined(&server.commands, definition).await;
        let id = home.begin_again(&server.commands, &pipeline).await;
        let execution = home.over(id).await;
        assert_eq!(execution.status, Status::Succeeded);
        assert_eq!(row(&execution, "d").outputs, json!({"sum": 6, "text": "hello-${x}", "by": "ann", "all": true}));
        assert_eq!(row(&execution, "c").progress.as_ref().unwrap().message, "3 of 10");
        assert_eq!(home.world.names()[0], "a");
        home.intents_are_closed(id).await;

        let page = PageRequest { after: None, before: None, limit: 10, backward: false };
        let told = home.store.notifications(&page).await.unwrap();
        let told: Vec<Occasion> = told.items.iter().rev().map(|(_, notification)| notification.occasion).collect();
        assert_eq!(told, [Occasion::Started, Occasion::Completed]);
        let events = home.store.events(StreamId::Notifications, 0, 10).await.unwrap();
        assert_eq!(events.len(), 2);
        let audit = home.store.audit(&page).await.unwrap();
        assert_eq!(audit.items.len(), 3, "application, pipeline and start are in the audit log");
        server.stop().await;
    }

    async fn rules_of_stages_tell_about_their_stage_and_each_address_once() {
        let home = Home::new(Clock::system()).await;
        let server = home.start(Home::options());
        let to = |addresses: &[&str]| Some(EmailTarget { to: addresses.iter().map(|&to| to.to_owned()).collect() });
        let all = vec![Occasion::Started, Occasion::Completed, Occasion::Failed, Occasion::Canceled];
        let told = |key: &str, requires: &[&str], config: Value| StageSpec {
            notifications: vec![
                NotificationRule { on: all.clone(), email: to(&["a@example.org"]) },
                NotificationRule { on: vec![Occasion::Failed], email: to(&["A@example.org", "b@example.org"]) },
            ],
            on_failure: crate::model::OnFailure::Continue,
            ..stage(key, requires, config)
        };
        let definition = PipelineDefinition {
            format_version: 1,
            stages: vec![
                told("good", &[], json!({})),
                told("bad", &["good"], json!({"steps": ["panic"]})),
                stage("quiet", &["bad"], json!({})),
                told("long", &["quiet"], json!({"steps": [{"poll": {"millis": 3_600_000}}]})),
            ],
            ..PipelineDefinition::default()
        };
        let pipeline = home.defined(&server.commands, definition).await;
        let id = home.begin_again(&server.commands, &pipeline).await;
        home.until(id, "the last stage", |execution| status(execution, "long") == Status::Running).await;
        server.commands.cancel(&home.actor, id, "enough", CancelMode::Unwind).await.unwrap();
        assert_eq!(home.over(id).await.status, Status::Canceled);
        let page = PageRequest { after: None, before: None, limit: 10, backward: false };
        let messages = home.store.notifications(&page).await.unwrap();
        let mut seen = Vec::new();
        for (_, message) in messages.items.iter().rev() {
            let deliveries = home.store.deliveries_of(&[message.id]).await.unwrap();
            let targets: Vec<String> = deliveries.iter().map(|delivery| delivery.target.clone()).collect();
            assert!(deliveries.iter().all(|delivery| delivery.state == DeliveryState::Pending && delivery.attempts == 0));
            seen.push((message.occasion, targets.join(" ")));
        }
        assert_eq!(seen, [
            (Occasion::Started, "a@example.org".to_owned()),
            (Occasion::Completed, "a@example.org".to_owned()),
            (Occasion::Started, "a@example.org".to_owned()),
            (Occasion::Failed, "a@example.org b@example.org".to_owned()),
            (Occasion::Started, "a@example.org".to_owned()),
            (Occasion::Canceled, "a@example.org".to_owned()),
        ]);
        server.stop().await;
    }

    async fn a_config_that_grows_too_large_fails_its_stage() {
        let home = Home::new(Clock::system()).await;
        let server = home.start(Options { config_max: 500, ..Home::options() });
        let text = "x".repeat(300);
        let twice = json!({"outputs": ["${stages.a.outputs.text}", "${stages.a.outputs.text}"]});
        let stages = vec![stage("a", &[], json!({"outputs": {"text": text}})), stage("b", &["a"], twice)];
        let id = home.begin(&server.commands, stages).await;
        let execution = home.over(id).await;
        assert_eq!((status(&execution, "a"), status(&execution, "b")), (Status::Succeeded, Status::Failed));
        let failure = execution.failure.unwrap();
        assert!(failure.code == "CONFIG_TOO_LARGE" && failure.message.contains("`b`"), "{failure:?}");
        assert!(failure.message.contains("more than 500 bytes"), "{failure:?}");
        // What a stage makes is held to it too: here less is allowed by the time it is made.
        let child = json!({"key": "big", "config": {"outputs": text}});
        let parent = stage("p", &[], json!({"steps": [{"ticks": {"gate": "go"}}], "after": [child]}));
        let id = home.begin(&server.commands, vec![parent]).await;
        home.until(id, "its step", |execution| status(execution, "p") == Status::Running).await;
        server.stop().await;
        let server = home.start(Options { config_max: 200, ..Home::options() });
        home.world.open("go");
        let execution = home.over(id).await;
        let failure = execution.failure.unwrap();
        assert!(failure.code == "CHILDREN_INVALID" && failure.message.contains("`big`"), "{failure:?}");
        assert!(failure.message.contains("more than 200 bytes") && execution.stages.len() == 1, "{failure:?}");
        server.stop().await;
    }

    async fn no_more_steps_than_the_setting_run_at_once() {
        let home = Home::new(Clock::system()).await;
        let server = home.start(Options { concurrency: 1, ..Home::options() });
        let gated = |key: &str| stage(key, &[], json!({"steps": [{"effect": {"key": key, "gate": key}}]}));
        let id = home.begin(&server.commands, vec![gated("a"), gated("b"), gated("c")]).await;
        home.until(id, "all to have begun", |execution| {
            execution.stages.iter().all(|stage| stage.status == Status::Running)
        })
        .await;
        for count in 1..=3 {
            home.world.calls_reach(count).await;
            let names = home.world.names();
            assert_eq!(names.len(), count, "the others wait for their turn: {names:?}");
            home.world.open(&names[count - 1]);
        }
        assert_eq!(home.over(id).await.status, Status::Succeeded);
        server.stop().await;
    }

    async fn a_stage_that_panics_fails_and_takes_nothing_with_it() {
        let home = Home::new(Clock::system()).await;
        let server = home.start(Home::options());
        let id = home.begin(&server.commands, vec![stage("a", &[], json!({"steps": ["panic"]}))]).await;
        let execution = home.over(id).await;
        assert_eq!(execution.failure.unwrap().code, "PANIC");
        let id = home.begin(&server.commands, vec![stage("a", &[], json!({}))]).await;
        assert_eq!(home.over(id).await.status, Status::Succeeded);
        server.stop().await;
    }

    async fn a_stage_of_a_kind_that_the_next_binary_does_not_know_fails_and_says_so() {
        let home = Home::new(Clock::system()).await;
        let server = home.start(Home::options());
        let id = home.begin(&server.commands, vec![stage("a", &[], json!({"steps": [{"poll": {"millis": 20}}]}))]).await;
        home.until(id, "a step", |execution| status(execution, "a") == Status::Running).await;
        server.stop().await;
        let clock = home.clock.clone();
        let server = Home::run(Engine::new(Home::options(), home.store.clone(), Registry::default(), clock));
        let failure = home.over(id).await.failure.unwrap();
        assert_eq!(failure.code, "UNKNOWN_KIND");
        assert!(failure.message.contains("`script`"), "{failure:?}");
        server.stop().await;
    }

    async fn an_event_leaves_out_what_is_too_large_for_it() {
        let home = Home::new(Clock::system()).await;
        let server = home.start(Options { event_max: 4_096, ..Home::options() });
        let long = "x".repeat(3_000);
        let id = home.begin(&server.commands, vec![stage("a", &[], json!({"outputs": {"text": long}}))]).await;
        let execution = home.until(id, "the end", |execution| execution.status.is_complete()).await;
        assert_eq!(row(&execution, "a").outputs["text"], long);
        let events = home.store.events(StreamId::Execution(id), 0, 100).await.unwrap();
        let told = events.iter().rev().find_map(|event| match &event.body {
            EventBody::StageChanged { stage } => Some(&stage.outputs),
            _ => None,
        });
        assert!(told.unwrap()["leftOut"].is_string(), "{told:?}");
        assert!(events.iter().all(|event| serde_json::to_string(&event.body).unwrap().len() <= 4_096));
        server.stop().await;
    }

    async fn an_expression_that_does_not_hold_fails_its_stage_with_the_place() {
        let home = Home::new(Clock::system()).await;
        let server = home.start(Home::options());
        let config = json!({"outputs": {"x": ["${stages.a.outputs.nope.x}"]}});
        let id = home.begin(&server.commands, vec![stage("a", &[], config)]).await;
        let failure = home.over(id).await.failure.unwrap();
        assert_eq!(failure.code, "EXPRESSION");
        assert!(failure.message.contains("/outputs/x/0") && failure.message.contains("outputs.nope"), "{failure:?}");
        // What holds at save time as any type is checked once it is known.
        let config = json!({"size": "${execution.application}"});
        let id = home.begin(&server.commands, vec![stage("a", &[], config)]).await;
        let failure = home.over(id).await.failure.unwrap();
        assert_eq!(failure.code, "CONFIG_INVALID");
        assert!(failure.message.contains("/size"), "{failure:?}");
        server.stop().await;
    }

    async fn stages_follow_each_other_without_a_pause() {
        let home = Home::new(Clock::system()).await;
        // A scan would take a minute: whatever happens is by the turn itself.
        let server = home.start(Options { scan_every: Duration::from_secs(60), ..Home::options() });
        let mut stages = vec![stage("s0", &[], effect("s0"))];
        for index in 1..30 {
            stages.push(stage(&format!("s{index}"), &[&format!("s{}", index - 1)], effect(&format!("s{index}"))));
        }
        let begin = Instant::now();
        let id = home.begin(&server.commands, stages).await;
        let execution = home.over(id).await;
        assert_eq!(execution.status, Status::Succeeded);
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
        for pair in execution.stages.windows(2) {
            assert_eq!(pair[0].ended_at, pair[1].started_at, "end and start are one turn");
        }
        server.stop().await;
    }

    async fn cancel_ends_a_long_wait_at_once_and_unwinds() {
        let home = Home::new(manual()).await;
        let server = home.start(Home::options());
        let config = json!({
            "steps": [{"effect": {"key": "do"}}, {"poll": {"millis": 3_600_000}}],
            "unwind": [{"key": "back", "config": {"steps": [{"effect": {"key": "undo"}}]}}],
        });
        let stages = vec![stage("a", &[], config), stage("b", &["a"], json!({}))];
        let id = home.begin(&server.commands, stages).await;
        home.until(id, "the wait", |execution| matches!(row(execution, "a").wake, Wake::At { .. })).await;
        // It has left memory by now or not: the cancel reaches it either way.
        server.commands.cancel(&home.actor, id, "enough", CancelMode::Unwind).await.unwrap();
        let execution = home.over(id).await;
        assert_eq!(execution.status, Status::Canceled);
        assert_eq!((status(&execution, "a"), status(&execution, "b")), (Status::Canceled, Status::Canceled));
        assert_eq!(status(&execution, "back"), Status::Succeeded);
        assert_eq!(home.world.names(), ["do", "undo"], "an unwind's effect goes out although it is cancelled");
        let again = server.commands.cancel(&home.actor, id, "", CancelMode::Unwind).await.unwrap_err();
        assert_eq!(again.code, Code::WrongState);
        server.stop().await;
    }

    async fn an_unwind_that_does_not_bring_everything_back_is_told() {
        let home = Home::new(manual()).await;
        let server = home.start(Home::options());
        let config = json!({
            "steps": [{"poll": {"millis": 3_600_000}}],
            "unwind": [{"key": "back", "config": {"steps": ["fail"]}}, {"key": "next", "config": {"steps": []}}],
        });
        let id = home.begin(&server.commands, vec![stage("a", &[], config)]).await;
        home.until(id, "the wait", |execution| matches!(row(execution, "a").wake, Wake::At { .. })).await;
        server.commands.cancel(&home.actor, id, "enough", CancelMode::Unwind).await.unwrap();
        let execution = home.over(id).await;
        assert_eq!(execution.status, Status::Canceled);
        assert_eq!((status(&execution, "back"), status(&execution, "next")), (Status::Failed, Status::Succeeded));
        for failure in [&row(&execution, "a").failure, &execution.failure] {
            let failure = failure.as_ref().expect("somebody has to look");
            assert_eq!(failure.code, "UNWIND_INCOMPLETE");
            assert!(failure.hint.is_some(), "{failure:?}");
        }
        server.stop().await;
    }

    async fn what_is_being_brought_back_may_be_left_as_it_is() {
        let home = Home::new(Clock::system()).await;
        let server = home.start(Home::options());
        let config = json!({
            "steps": [{"poll": {"millis": 3_600_000}}],
            "unwind": [
                {"key": "back", "config": {"steps": [{"effect": {"key": "undo", "gate": "g"}}, {"effect": {"key": "more"}}]}},
                {"key": "next", "config": {"steps": [{"effect": {"key": "last"}}]}},
            ],
        });
        let id = home.begin(&server.commands, vec![stage("a", &[], config)]).await;
        home.until(id, "the wait", |execution| matches!(row(execution, "a").wake, Wake::At { .. })).await;
        server.commands.cancel(&home.actor, id, "enough", CancelMode::Unwind).await.unwrap();
        home.world.calls_reach(1).await;
        let again = server.commands.cancel(&home.actor, id, "", CancelMode::Unwind).await.unwrap_err();
        assert_eq!(again.code, Code::WrongState);
        server.commands.cancel(&home.actor, id, "leave it", CancelMode::Leave).await.unwrap();
        home.world.open("g");
        let execution = home.over(id).await;
        assert_eq!(home.world.names(), ["undo"], "the call under way is the last");
        assert_eq!(execution.status, Status::Canceled);
        assert_eq!((status(&execution, "back"), status(&execution, "next")), (Status::Canceled, Status::Canceled));
        let failure = execution.failure.as_ref().expect("somebody has to look");
        assert_eq!(failure.code, "UNWIND_INCOMPLETE");
        let named = execution.stages.iter().filter(|stage| stage.parent.is_some()).all(|child| failure.message.contains(&child.name));
        assert!(named, "{failure:?}");
        home.intents_are_closed(id).await;
        server.stop().await;
    }

    async fn a_cancel_lets_the_call_under_way_finish_and_no_other_begin() {
        let home = Home::new(Clock::system()).await;
        let server = home.start(Home::options());
        let config = json!({"steps": [{"effect": {"key": "first", "gate": "g"}}, {"effect": {"key": "second"}}]});
        let id = home.begin(&server.commands, vec![stage("a", &[], config)]).await;
        home.world.calls_reach(1).await;
        server.commands.cancel(&home.actor, id, "", CancelMode::Leave).await.unwrap();
        home.another_ends(&server).await;
        assert!(!home.read(id).await.status.is_complete());
        home.world.open("g");
        let execution = home.over(id).await;
        assert_eq!(execution.status, Status::Canceled);
        assert_eq!(home.world.names(), ["first"]);
        assert_eq!(row(&execution, "a").outputs, json!({"first": true}), "the outcome is kept");
        let intents = home.store.intents(id).await.unwrap();
        assert_eq!(intents.iter().map(|intent| intent.outcome.clone()).collect::<Vec<_>>(), [Some(IntentOutcome::Done)]);
        server.stop().await;
    }

    async fn a_step_that_hangs_outside_any_call_is_ended_by_a_cancel() {
        let home = Home::new(Clock::system()).await;
        let server = home.start(Home::options());
        let id = home.begin(&server.commands, vec![stage("a", &[], json!({"steps": ["goto", {"hang": {"gate": "never"}}]}))]).await;
        home.until(id, "the second step", |execution| row(execution, "a").cursor == json!(1)).await;
        server.commands.cancel(&home.actor, id, "", CancelMode::Unwind).await.unwrap();
        assert_eq!(home.over(id).await.status, Status::Canceled);
        server.stop().await;
    }

    async fn a_stage_fails_when_its_time_is_over() {
        let home = Home::new(manual()).await;
        let server = home.start(Home::options());
        let spec = StageSpec { timeout_seconds: Some(90), ..stage("a", &[], json!({"steps": [{"wait": {"seconds": 10_000}}]})) };
        let id = home.begin(&server.commands, vec![spec]).await;
        let sooner = StageSpec { timeout_seconds: Some(89), ..stage("a", &[], json!({"steps": [{"wait": {"seconds": 10_000}}]})) };
        let other = home.begin(&server.commands, vec![sooner]).await;
        for id in [id, other] {
            home.until(id, "the wait", |execution| matches!(row(execution, "a").wake, Wake::Signal { .. })).await;
        }
        home.clock.advance(Duration::from_secs(89));
        assert_eq!(home.over(other).await.failure.unwrap().code, "TIMEOUT");
        assert_eq!(status(&home.read(id).await, "a"), Status::Running);
        home.clock.advance(Duration::from_secs(1));
        let execution = home.over(id).await;
        assert_eq!(execution.failure.unwrap().code, "TIMEOUT");
        server.stop().await;
    }

    async fn a_judgment_wakes_its_stage_and_is_given_once() {
        let home = Home::new(manual()).await;
        let server = home.start(Home::options());
        let definition = PipelineDefinition {
            format_version: 1,
            stages: vec![stage("a", &[], json!({"steps": [{"wait": {"seconds": 600}}], "inputs": ["blue", "green"]}))],
            notifications: vec![NotificationRule { on: vec![Occasion::ApprovalNeeded], email: None }],
            ..PipelineDefinition::default()
        };
        let pipeline = home.defined(&server.commands, definition).await;
        let id = home.begin_again(&server.commands, &pipeline).await;
        let execution =
            home.until(id, "the wait", |execution| matches!(row(execution, "a").wake, Wake::Signal { .. })).await;
        let judgment = |proceed, input: Option<&str>| Judgment {
            stage: row(&execution, "a").id,
            proceed,
            input: input.map(str::to_owned),
            comment: Some("fine".to_owned()),
        };
        let refused = server.commands.judge(&home.actor, judgment(true, Some("red"))).await.unwrap_err();
        assert_eq!((refused.code, refused.field), (Code::Invalid, vec!["input".to_owned()]));
        let viewer = Actor { roles: vec![Role::Viewer], ..home.actor.clone() };
        let denied = server.commands.judge(&viewer, judgment(true, Some("blue"))).await.unwrap_err();
        assert_eq!(denied.code, Code::Forbidden);
        server.commands.judge(&home.actor, judgment(true, Some("blue"))).await.unwrap();
        let ended = home.over(id).await;
        assert_eq!(row(&ended, "a").outputs, json!({
            "judgment": {
                "proceed": true, "input": "blue", "comment": "fine", "by": "ann", "principal": home.actor.principal,
                "at": home.clock.now(),
            },
            "timedOut": false,
        }));
        let late = server.commands.judge(&home.actor, judgment(true, Some("blue"))).await.unwrap_err();
        assert_eq!(late.code, Code::WrongState);
        let events = home.store.events(StreamId::Notifications, 0, 10).await.unwrap();
        assert_eq!(events.len(), 1, "one approval was asked for");

        let id = home.begin_again(&server.commands, &pipeline).await;
        home.until(id, "the wait", |execution| matches!(row(execution, "a").wake, Wake::Signal { .. })).await;
        home.clock.advance(Duration::from_secs(600));
        let ended = home.over(id).await;
        assert_eq!(row(&ended, "a").outputs, json!({"judgment": null, "timedOut": true}));
        server.stop().await;
    }

    async fn decisions_that_do_not_come_to_an_end_are_counted_and_gone_on_with_later() {
        let recorder = crate::measure::install().expect("nobody else counts");
        let counted = || {
            let text = recorder.render();
            let series = "gennaker_invariant_violations_total{invariant=\"endless_decisions\"} ";
            let line = text.lines().find_map(|line| line.strip_prefix(series)).expect("the series is there");
            line.parse::<u64>().expect("a number")
        };
        let home = Home::new(manual()).await;
        let before = counted();
        // One is never enough: what a pass has done is looked at by the next.
        let server = home.start(Options { passes_max: 1, ..Home::options() });
        let patient = StageSpec { timeout_seconds: Some(10 * 86_400), ..stage("a", &[], json!({})) };
        let id = home.begin(&server.commands, vec![patient]).await;
        home.until(id, "a beginning", |execution| execution.status == Status::Running).await;
        assert!(counted() > before, "{before}");
        let begin = Instant::now();
        while home.read(id).await.status != Status::Succeeded {
            home.clock.advance(Duration::from_secs(30));
            assert!(begin.elapsed() < Duration::from_secs(20), "it goes on: {:?}", home.read(id).await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        server.stop().await;
    }

    async fn executions_that_wait_long_leave_memory_and_come_back() {
        let home = Home::new(manual()).await;
        let server = home.start(Home::options());
        let pipeline = home.pipeline(&server.commands, vec![stage("a", &[], json!({"steps": [{"wait": {"seconds": 600}}]}))]).await;
        let mut ids = Vec::new();
        for _ in 0..20 {
            ids.push(home.begin_again(&server.commands, &pipeline).await);
        }
        for id in &ids {
            home.until(*id, "the wait", |execution| matches!(row(execution, "a").wake, Wake::Signal { .. })).await;
        }
        let begin = Instant::now();
        while !server.engine.shared.active().is_empty() {
            assert!(begin.elapsed() < Duration::from_secs(20), "they stay in memory");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        home.clock.advance(Duration::from_secs(600));
        for id in &ids {
            assert_eq!(home.over(*id).await.status, Status::Succeeded);
        }
        server.stop().await;
    }

    async fn a_notice_on_the_topic_ends_a_poll_early() {
        let home = Home::new(manual()).await;
        let server = home.start(Home::options());
        let steps = json!({"steps": [{"topic": {"topic": "inventory", "gate": "g"}}]});
        let id = home.begin(&server.commands, vec![stage("a", &[], steps)]).await;
        home.until(id, "the poll", |execution| matches!(row(execution, "a").wake, Wake::At { .. })).await;
        home.world.open("g");
        server.engine.topics().notify("inventory");
        assert_eq!(home.over(id).await.status, Status::Succeeded);
        server.stop().await;
    }

    async fn a_cluster_is_held_by_one_top_stage_at_a_time() {
        let home = Home::new(manual()).await;
        let server = home.start(Home::options());
        let steps = json!({"steps": [{"claim": {"cluster": "hello"}}, {"effect": {"key": "change", "gate": "g"}}]});
        let pipeline = home.pipeline(&server.commands, vec![stage("a", &[], steps)]).await;
        let first = home.begin_again(&server.commands, &pipeline).await;
        home.world.calls_reach(1).await;
        let second = home.begin_again(&server.commands, &pipeline).await;
        home.until(second, "the queue", |execution| matches!(row(execution, "a").wake, Wake::At { .. })).await;
        assert_eq!(home.world.names().len(), 1);
        home.world.open("g");
        assert_eq!(home.over(first).await.status, Status::Succeeded);
        // No time passes: it is the release that wakes the second.
        assert_eq!(home.over(second).await.status, Status::Succeeded);
        server.stop().await;
    }

    async fn a_call_that_changes_a_cluster_is_made_only_by_who_holds_it() {
        let home = Home::new(manual()).await;
        let server = home.start(Home::options());
        let change = |key: &str| json!({"effect": {"key": key, "cluster": "hello"}});
        let bold = json!({"steps": [change("bold")]});
        let claims = json!({"steps": [{"claim": {"cluster": "hello"}}, change("mine"), {"effect": {"key": "w", "gate": "g"}}]});
        // Nobody holds it: not this stage either.
        let id = home.begin(&server.commands, vec![stage("a", &[], bold.clone())]).await;
        let refused = home.over(id).await;
        assert_eq!(refused.failure.expect("a failure").code, "CLUSTER_NOT_HELD");
        assert!(home.store.intents(id).await.unwrap().is_empty());
        // Another holds it.
        let holder = home.begin(&server.commands, vec![stage("a", &[], claims)]).await;
        home.world.calls_reach(2).await;
        let id = home.begin(&server.commands, vec![stage("a", &[], bold)]).await;
        assert_eq!(home.over(id).await.failure.expect("a failure").code, "CLUSTER_NOT_HELD");
        home.world.open("g");
        assert_eq!(home.over(holder).await.status, Status::Succeeded);
        assert_eq!(home.world.names(), ["mine", "w"]);
        server.stop().await;
    }

    async fn fifty_parallel_starts_with_one_key_give_one_execution() {
        let home = Home::new(Clock::system()).await;
        let server = home.start(Home::options());
        let definition = PipelineDefinition {
            format_version: 1,
            stages: vec![stage("a", &[], effect("a"))],
            parameters: vec![Parameter { name: "v".into(), description: String::new(), default: Some(json!(1)), options: vec![] }],
            ..PipelineDefinition::default()
        };
        let pipeline = home.defined(&server.commands, definition).await;
        let start = |parameters: Value| StartPipeline {
            pipeline: pipeline.id,
            parameters,
            idempotency_key: Some("release-7".to_owned()),
        };
        let calls = (0..50).map(|_| server.commands.start_pipeline(&home.actor, start(json!({"v": 2}))));
        let started = futures_util::future::join_all(calls).await;
        let started: Vec<_> = started.into_iter().map(Result::unwrap).collect();
        let id = started[0].execution.id;
        assert!(started.iter().all(|started| started.execution.id == id && started.execution.number == 1));
        assert_eq!(started.iter().filter(|started| !started.replay).count(), 1);
        home.over(id).await;
        assert_eq!(home.world.names(), ["a"]);
        let other = server.commands.start_pipeline(&home.actor, start(json!({"v": 3}))).await.unwrap_err();
        assert_eq!(other.code, Code::IdempotencyKeyReused);
        let somebody = Actor { principal: PrincipalId::new(), ..home.actor.clone() };
        let theirs = server.commands.start_pipeline(&somebody, start(json!({"v": 3}))).await.unwrap();
        assert!(!theirs.replay, "keys are each principal's own");
        server.stop().await;
    }

    async fn operations_run_without_a_pipeline() {
        let home = Home::new(Clock::system()).await;
        let server = home.start(Home::options());
        let pipeline = home.pipeline(&server.commands, vec![stage("a", &[], json!({}))]).await;
        let start = StartOperation {
            application: pipeline.application,
            title: "Resize hello-v002 to 5".to_owned(),
            stages: vec![stage("a", &[], effect("resize"))],
            idempotency_key: None,
        };
        let started = server.commands.start_operation(&home.actor, start.clone()).await.unwrap();
        let ended = home.over(started.execution.id).await;
        assert_eq!((ended.status, ended.pipeline, ended.number), (Status::Succeeded, None, 1));
        let bad = StartOperation { stages: vec![stage("a", &["b"], json!({}))], ..start };
        let refused = server.commands.start_operation(&home.actor, bad).await.unwrap_err();
        assert_eq!(refused.field, ["stages", "0", "requires", "0"]);
        server.stop().await;
    }

    async fn what_runs_is_not_deleted() {
        let home = Home::new(Clock::system()).await;
        let server = home.start(Home::options());
        let pipeline = home.pipeline(&server.commands, vec![stage("a", &[], json!({"steps": [{"wait": {"seconds": 600}}]}))]).await;
        let id = home.begin_again(&server.commands, &pipeline).await;
        let refused = server.commands.delete_pipeline(&home.actor, pipeline.id).await.unwrap_err();
        assert_eq!(refused.code, Code::WrongState);
        let refused = server.commands.delete_application(&home.actor, pipeline.application).await.unwrap_err();
        assert_eq!(refused.code, Code::WrongState);
        server.commands.cancel(&home.actor, id, "", CancelMode::Unwind).await.unwrap();
        home.over(id).await;
        server.commands.delete_pipeline(&home.actor, pipeline.id).await.unwrap();
        server.commands.delete_application(&home.actor, pipeline.application).await.unwrap();
        assert_eq!(home.read(id).await.status, Status::Canceled, "its executions stay");
        server.stop().await;
    }

    async fn a_save_over_a_newer_revision_is_refused() {
        let home = Home::new(Clock::system()).await;
        let commands = home.engine(Home::options()).commands();
        let pipeline = home.pipeline(&commands, vec![stage("a", &[], json!({}))]).await;
        let save = |expected| SavePipeline {
            application: pipeline.application,
            name: "test".to_owned(),
            definition: pipeline.definition.clone(),
            expected_revision: Some(expected),
        };
        assert_eq!(commands.save_pipeline(&home.actor, save(1)).await.unwrap().revision, 2);
        assert_eq!(commands.save_pipeline(&home.actor, save(1)).await.unwrap_err().code, Code::Conflict);
        let taken = SaveApplication { name: "hello".into(), description: String::new(), email: None };
        assert_eq!(commands.create_application(&home.actor, taken).await.unwrap_err().code, Code::Conflict);
        for name in ["", "Hello", "a-b", "a b", "ü"] {
            let save = SaveApplication { name: name.into(), description: String::new(), email: None };
            assert_eq!(commands.create_application(&home.actor, save).await.unwrap_err().field, ["name"]);
        }
    }

    async fn definitions_that_do_not_hold_are_refused_with_the_place() {
        let home = Home::new(Clock::system()).await;
        let commands = home.engine(Home::options()).commands();
        let refused = |stages: Vec<StageSpec>| {
            let definition = PipelineDefinition { format_version: 1, stages, ..PipelineDefinition::default() };
            let error = commands.validate_definition(&definition).unwrap_err();
            (error.field.join("/"), error.message)
        };
        let ok = |key: &str, requires: &[&str]| stage(key, requires, json!({}));
        assert_eq!(refused(vec![]).0, "stages");
        assert_eq!(refused(vec![ok("a b", &[])]).0, "stages/0/key");
        assert_eq!(refused(vec![ok("a", &[]), ok("a", &[])]).0, "stages/1/key");
        let (field, message) = refused(vec![ok("deploy", &[]), ok("check", &["deplyo"])]);
        assert_eq!(field, "stages/1/requires/0");
        assert!(message.contains("did you mean `deploy`"), "{message}");
        let (_, message) = refused(vec![ok("a", &["c"]), ok("b", &["a"]), ok("c", &["b"]), ok("d", &[])]);
        assert!(message.contains("a → b → c → a"), "{message}");
        let (_, message) = refused(vec![ok("a", &["a"])]);
        assert!(message.contains("a → a"), "{message}");
        let (field, message) = refused(vec![StageSpec { kind: "scrip".into(), ..ok("a", &[]) }]);
        assert_eq!(field, "stages/0/kind");
        assert!(message.contains("did you mean `script`"), "{message}");
        assert_eq!(refused(vec![ok("x", &[]), stage("a", &[], json!({"size": "5"}))]).0, "stages/1/config/size");
        assert_eq!(refused(vec![stage("a", &[], json!({"steps": ["goto", {"poll": {"millis": -1}}]}))]).0, "stages/0/config/steps/1/poll/millis");
        assert_eq!(refused(vec![stage("a", &[], json!({"outputs": ["${1 +}"]}))]).0, "stages/0/config/outputs/0");
        // What nothing will have is not read.
        let (field, message) = refused(vec![ok("build", &[]), stage("a", &[], json!({"outputs": ["${stages.biuld.outputs}"]}))]);
        assert_eq!(field, "stages/1/config/outputs/0");
        assert!(message.contains("`stages.biuld`") && message.contains("did you mean `build`?"), "{message}");
        let (field, message) = refused(vec![stage("a", &[], json!({"size": "${parameters.size}"}))]);
        assert_eq!(field, "stages/0/config/size");
        assert!(message.contains("no parameter `size`"), "{message}");
        // An expression counts as any type until it is known.
        let stages = vec![stage("a", &[], json!({"size": "${parameters.size}"}))];
        let parameters = vec![Parameter { name: "size".to_owned(), description: String::new(), default: None, options: vec![] }];
        let definition = PipelineDefinition { format_version: 1, parameters, stages, ..PipelineDefinition::default() };
        assert_eq!(commands.validate_definition(&definition), Ok(()));
    }
}

/// Two stages with a call each, one after the other, beside one that waits for a person. When the
/// first has made its call, `change` comes in before the commit of its end.
async fn changed_before_a_commit(
    change: impl Fn(Commands, Actor, Execution) -> BoxFuture<'static, ()> + Send + Sync + 'static,
) -> (Home, Server, Execution) {
    let home = Home::new(Clock::system()).await;
    let known: Arc<std::sync::Mutex<Option<BoxFuture<'static, ()>>>> = Arc::default();
    let hook = CrashHook(Arc::new({
        let known = Arc::clone(&known);
        move |at: &CrashPoint| {
            // The step that ends the first stage, by its last cursor; it comes again after a refusal.
            if at.stage == "first" && at.moment == Moment::BeforeCommit && at.cursor == json!(1) {
                let change = known.lock().unwrap().take();
                if let Some(change) = change {
                    tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(change));
                }
            }
            false
        }
    }));
    let server = home.start(Options { crash: Some(hook), ..Home::options() });
    let person = json!({"steps": [{"wait": {"seconds": 60}}]});
    let gated = json!({"steps": [{"effect": {"key": "x", "gate": "known"}}]});
    let stages =
        vec![stage("person", &[], person), stage("first", &[], gated), stage("second", &["first"], effect("y"))];
    let id = home.begin(&server.commands, stages).await;
    home.world.calls_reach(1).await;
    let waits = |execution: &Execution| matches!(row(execution, "person").wake, Wake::Signal { .. });
    let execution = home.until(id, "the wait for a person", waits).await;
    *known.lock().unwrap() = Some(change(server.commands.clone(), home.actor.clone(), execution));
    home.world.open("known");
    let over = home.over(id).await;
    assert!(known.lock().unwrap().is_none(), "it came in between");
    (home, server, over)
}

/// A server that dies at the n-th crash point; then another on the same database.
async fn crash_at(point: usize, stages: Vec<StageSpec>) -> Option<(Home, Execution, CrashPoint)> {
    let home = Home::new(Clock::system()).await;
    let (count, hit) = (Arc::new(AtomicUsize::new(0)), Arc::new(std::sync::Mutex::new(None)));
    let hook = CrashHook(Arc::new({
        let (count, hit) = (Arc::clone(&count), Arc::clone(&hit));
        move |at: &CrashPoint| {
            let here = count.fetch_add(1, Ordering::SeqCst) == point;
            if here {
                *hit.lock().unwrap() = Some(at.clone());
            }
            here
        }
    }));
    let server = home.start(Options { crash: Some(hook), ..Home::options() });
    let id = home.begin(&server.commands, stages).await;
    let begin = Instant::now();
    while !server.task.is_finished() {
        assert!(begin.elapsed() < Duration::from_secs(20), "the crash does not come");
        if home.read(id).await.status.is_complete() {
            server.stop().await;
            return None; // there are no more points
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let before = home.read(id).await;
    // Behind all that the dead may have handed to the store's writer.
    home.store.owner_forget(server.engine.owner()).await.unwrap();
    assert_eq!(home.read(id).await, before, "the dead write nothing");

    let second = home.start(Home::options());
    let execution = home.over(id).await;
    second.stop().await;
    let hit = hit.lock().unwrap().clone().unwrap();
    Some((home, execution, hit))
}

engine_test! {
    async fn a_step_whose_commit_was_refused_comes_again_and_calls_once() {
        let judged = |commands: Commands, actor: Actor, execution: Execution| async move {
            let stage = row(&execution, "person").id;
            let judgment = Judgment { stage, proceed: true, input: None, comment: None };
            commands.judge(&actor, judgment).await.unwrap();
        }.boxed();
        let (home, server, execution) = changed_before_a_commit(judged).await;
        assert_eq!(execution.status, Status::Succeeded);
        assert_eq!(home.world.names(), ["x", "y"]);
        assert_eq!(home.store.intents(execution.id).await.unwrap().len(), 2, "no intent without its call");
        home.intents_are_closed(execution.id).await;
        server.stop().await;
    }

    async fn a_cancel_that_comes_before_the_commit_lets_no_later_call_be_made() {
        let cancelled = |commands: Commands, actor: Actor, execution: Execution| async move {
            commands.cancel(&actor, execution.id, "enough", CancelMode::Unwind).await.unwrap();
        }.boxed();
        let (home, server, execution) = changed_before_a_commit(cancelled).await;
        assert_eq!(execution.status, Status::Canceled);
        assert_eq!(home.world.names(), ["x"]);
        assert_eq!(home.store.intents(execution.id).await.unwrap().len(), 1);
        home.intents_are_closed(execution.id).await;
        server.stop().await;
    }

    async fn keyed_effects_survive_a_crash_at_every_point() {
        let mut moments = std::collections::HashSet::new();
        for point in 0.. {
            let stages = vec![
                stage("a", &[], json!({"steps": [{"effect": {"key": "x"}}, "goto", {"effect": {"key": "y"}}]})),
                stage("b", &["a"], json!({"steps": [{"spawn": {"children": [{"key": "c", "config": {"steps": [{"effect": {"key": "z"}}]}}]}}]})),
            ];
            let Some((home, execution, hit)) = crash_at(point, stages).await else {
                assert!(point > 8, "there are points to crash at: {point}");
                break;
            };
            moments.insert(hit.moment);
            assert_eq!(execution.status, Status::Succeeded, "{hit:?}");
            home.intents_are_closed(execution.id).await;
            let calls = home.world.calls();
            for key in ["x", "y", "z"] {
                let mut made = calls.iter().filter(|(what, _)| what == key).map(|(_, ticket)| ticket);
                let first = made.next().unwrap();
                for again in made {
                    assert_eq!(again.operation, first.operation, "a repeated call has the same key");
                    assert!(again.fence > first.fence, "and a higher fence");
                }
            }
            let repeats = calls.len() - 3;
            // It was called and is not saved as done: only then it is called again.
            let expected = match hit.moment {
                Moment::AfterEffect => 1,
                Moment::AfterIntent => 0,
                Moment::BeforeCommit => repeats.min(1),
            };
            assert_eq!(repeats, expected, "{hit:?}");
        }
        assert_eq!(moments.len(), 3);
    }

    async fn blind_effects_are_never_called_twice() {
        for point in 0.. {
            let steps = json!({"steps": [{"effect": {"key": "x", "blind": true}}]});
            let Some((home, execution, hit)) = crash_at(point, vec![stage("a", &[], steps)]).await else {
                assert!(point >= 3);
                break;
            };
            assert!(home.world.calls().len() <= 1, "{hit:?}");
            home.intents_are_closed(execution.id).await;
            let outcome = home.store.intents(execution.id).await.unwrap()[0].outcome.clone();
            if hit.effect.is_some() || hit.cursor.is_null() {
                assert_eq!(execution.failure.as_ref().unwrap().code, "OUTCOME_UNKNOWN", "{hit:?}");
                assert_eq!(outcome, Some(IntentOutcome::Unknown));
            } else {
                assert_eq!((execution.status, outcome), (Status::Succeeded, Some(IntentOutcome::Done)), "{hit:?}");
            }
        }
    }

    async fn a_call_that_runs_into_its_timeout_is_unknown() {
        let home = Home::new(manual()).await;
        let server = home.start(Home::options());
        let steps = json!({"steps": [{"effect": {"key": "x", "blind": true, "gate": "never", "timeoutMillis": 5_000}}]});
        let id = home.begin(&server.commands, vec![stage("a", &[], steps)]).await;
        home.world.calls_reach(1).await;
        home.clock.advance(Duration::from_secs(5));
        assert_eq!(home.over(id).await.failure.unwrap().code, "OUTCOME_UNKNOWN");
        let intents = home.store.intents(id).await.unwrap();
        assert_eq!(intents[0].outcome, Some(IntentOutcome::Unknown));
        server.stop().await;
    }

    async fn another_server_takes_over_when_the_lease_is_over_and_the_first_is_shut_out() {
        let home = Home::new(Clock::system()).await;
        let options = || Options { sole_owner: false, lease: Duration::from_millis(600), scan_every: Duration::from_millis(50), ..Options::default() };
        let first = home.start(options());
        let steps = json!({"steps": [{"effect": {"key": "x", "gate": "g"}}, {"effect": {"key": "y"}}]});
        let id = home.begin(&first.commands, vec![stage("a", &[], steps)]).await;
        home.world.calls_reach(1).await;
        let second = home.start(options());
        // There are at most three in a lease.
        home.beats(&first, 4).await;
        assert_eq!(home.world.calls().len(), 1, "while the first beats, nothing is taken over");

        // The first loses its place as if it had been frozen for a lease: its row is gone, and again
        // should it beat before the second has looked.
        let taken_over = home.world.calls_reach(2);
        let mut taken_over = std::pin::pin!(taken_over);
        while tokio::time::timeout(Duration::from_millis(10), &mut taken_over).await.is_err() {
            home.store.owner_forget(first.engine.owner()).await.unwrap();
        }
        let calls = home.world.calls();
        assert_eq!(calls[0].1.operation, calls[1].1.operation);
        assert!(calls[1].1.fence > calls[0].1.fence);
        home.world.open("g");
        let execution = home.over(id).await;
        assert_eq!(execution.status, Status::Succeeded);
        assert_eq!(home.world.names(), ["x", "x", "y"], "the first makes no further call");
        first.stop().await;
        second.stop().await;
    }

    async fn a_dead_servers_executions_are_taken_over_after_its_lease() {
        let home = Home::new(Clock::system()).await;
        let options = || Options { sole_owner: false, lease: Duration::from_millis(300), scan_every: Duration::from_millis(50), ..Options::default() };
        let hook = CrashHook(Arc::new(|at: &CrashPoint| at.moment == Moment::AfterEffect));
        let first = home.start(Options { crash: Some(hook), ..options() });
        let id = home.begin(&first.commands, vec![stage("a", &[], effect("x"))]).await;
        first.task.await.unwrap();
        let second = home.start(options());
        assert_eq!(home.over(id).await.status, Status::Succeeded);
        assert_eq!(home.world.names(), ["x", "x"]);
        second.stop().await;
    }

    async fn a_stop_lets_steps_end_and_frees_the_executions() {
        let home = Home::new(Clock::system()).await;
        let options = || Options { sole_owner: false, scan_every: Duration::from_millis(50), ..Options::default() };
        let first = home.start(options());
        let steps = json!({"steps": [{"effect": {"key": "x", "gate": "g"}}, {"effect": {"key": "y"}}]});
        let id = home.begin(&first.commands, vec![stage("a", &[], steps)]).await;
        home.world.calls_reach(1).await;
        first.stop.cancel();
        let witness = home.start(options());
        home.another_ends(&witness).await;
        witness.stop().await;
        assert!(!first.task.is_finished(), "it waits for the step under way");
        home.world.open("g");
        first.task.await.unwrap();
        assert_eq!(home.world.names(), ["x"]);
        assert_eq!(row(&home.read(id).await, "a").outputs, json!({"x": true}));
        assert_eq!(home.store.owners().await.unwrap(), []);
        let second = home.start(options());
        assert_eq!(home.over(id).await.status, Status::Succeeded);
        assert_eq!(home.world.names(), ["x", "y"]);
        second.stop().await;
    }

    async fn a_crash_while_something_is_brought_back_repeats_only_what_is_open() {
        for point in 0.. {
            let config = json!({
                "steps": [{"effect": {"key": "do"}}, "fail"],
                "unwind": [
                    {"key": "first", "config": {"steps": [{"effect": {"key": "undo-1"}}]}},
                    {"key": "second", "config": {"steps": [{"effect": {"key": "undo-2"}}]}},
                ],
            });
            let Some((home, execution, hit)) = crash_at(point, vec![stage("a", &[], config)]).await else {
                assert!(point > 8, "there are points to crash at: {point}");
                break;
            };
            assert_eq!((execution.status, status(&execution, "a")), (Status::Failed, Status::Failed), "{hit:?}");
            assert_eq!(execution.stages.len(), 3, "the unwind is planned once: {hit:?}");
            assert_eq!((status(&execution, "first"), status(&execution, "second")), (Status::Succeeded, Status::Succeeded));
            let mut names = home.world.names();
            names.dedup();
            assert_eq!(names, ["do", "undo-1", "undo-2"], "{hit:?}");
            home.intents_are_closed(execution.id).await;
        }
    }

    async fn a_database_that_is_overloaded_delays_and_loses_nothing() {
        // Two commits may wait: most are refused at first.
        let home = Home::with_queue(Clock::system(), 2).await;
        let server = home.start(Home::options());
        let stages = vec![stage("a", &[], effect("a")), stage("b", &["a"], effect("b"))];
        let pipeline = home.pipeline(&server.commands, stages).await;
        let mut ids = Vec::new();
        while ids.len() < 30 {
            let start = StartPipeline { pipeline: pipeline.id, parameters: Value::Null, idempotency_key: None };
            match server.commands.start_pipeline(&home.actor, start).await {
                Ok(started) => ids.push(started.execution.id),
                Err(error) => assert_eq!(error.code, Code::Unavailable),
            }
        }
        for id in &ids {
            assert_eq!(home.over(*id).await.status, Status::Succeeded);
        }
        let mut names = home.world.names();
        names.sort();
        assert_eq!(names, [vec!["a"; 30], vec!["b"; 30]].concat(), "each effect is made once");
        server.stop().await;
    }

    async fn progress_alone_is_saved_once_a_second_and_the_last_always() {
        let home = Home::new(Clock::system()).await;
        let server = home.start(Home::options());
        let id = home.begin(&server.commands, vec![stage("a", &[], json!({"steps": [{"ticks": {"gate": "g"}}]}))]).await;
        let begin = Instant::now();
        while home.world.ticks() < 60 {
            assert!(begin.elapsed() < Duration::from_secs(20), "the polls do not come");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        home.world.open("g");
        let execution = home.over(id).await;
        let took = begin.elapsed();
        assert_eq!(row(&execution, "a").progress.as_ref().unwrap().completed, home.world.ticks());
        // Two for the beginning, two for the end, and one a second between.
        let most = 6 + i64::try_from(took.as_secs()).unwrap();
        assert!(execution.event_seq <= most + 2, "{} events for {} ticks", execution.event_seq, home.world.ticks());
        server.stop().await;
    }

    async fn large_outputs_fail_the_stage_and_large_events_are_cut() {
        let home = Home::new(Clock::system()).await;
        let server = home.start(Options { outputs_max: 100_000, ..Home::options() });
        let config = |bytes: usize| json!({"outputs": {"text": "x".repeat(bytes)}});
        let id = home.begin(&server.commands, vec![stage("a", &[], config(60_000))]).await;
        let execution = home.until(id, "the end", |execution| execution.status.is_complete()).await;
        assert_eq!(row(&execution, "a").outputs["text"].as_str().unwrap().len(), 60_000);
        let events = home.store.events(StreamId::Execution(id), 0, 100).await.unwrap();
        let longest = events.iter().map(|event| serde_json::to_string(&event.body).unwrap().len()).max().unwrap();
        assert!(longest < 64 * 1024, "{longest}");
        let id = home.begin(&server.commands, vec![stage("a", &[], config(120_000))]).await;
        assert_eq!(home.over(id).await.failure.unwrap().code, "OUTPUTS_TOO_LARGE");
        server.stop().await;

        let server = home.start(Options { execution_outputs_max: 100_000, ..Home::options() });
        let stages = vec![stage("a", &[], config(60_000)), stage("b", &["a"], config(60_000))];
        let id = home.begin(&server.commands, stages).await;
        let execution = home.until(id, "the end", |execution| execution.status.is_complete()).await;
        assert_eq!((status(&execution, "a"), status(&execution, "b")), (Status::Succeeded, Status::Failed));
        server.stop().await;
    }

    async fn five_hundred_executions_run_side_by_side() {
        let home = Home::new(Clock::system()).await;
        let server = home.start(Home::options());
        let stages = vec![stage("a", &[], effect("a")), stage("b", &["a"], json!({})), stage("c", &["b"], json!({}))];
        let pipeline = home.pipeline(&server.commands, stages).await;
        let begin = Instant::now();
        let starts = (0..500).map(|_| home.begin_again(&server.commands, &pipeline));
        let ids = futures_util::future::join_all(starts).await;
        let started = begin.elapsed();
        for id in &ids {
            home.until(*id, "the end", |execution| execution.status == Status::Succeeded).await;
        }
        assert_eq!(home.world.calls().len(), 500);
        eprintln!("500 executions: started in {started:?}, 3,000 transitions by {:?}", begin.elapsed());
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_renewed_when_asked_and_also_where_nobody_asks() {
    let home = Home::new(Clock::system()).await;
    let options = Options { renewed_by_job: true, lease: Duration::from_millis(1_500), ..Options::default() };
    let server = home.start(options);
    let owner = server.engine.owner();
    let beat =
        async || home.store.owners().await.unwrap().into_iter().find(|(id, _)| *id == owner).map(|(_, beat)| beat);
    let start = Instant::now();
    while beat().await.is_none_or(|beat| beat < 3) {
        assert!(start.elapsed() < Duration::from_secs(20), "the engine's own loop renews");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let before = beat().await.unwrap();
    for _ in 0..10 {
        server.engine.renew().await.unwrap();
    }
    assert!(beat().await.unwrap() >= before + 10);
    assert_eq!(server.engine.renew_every(), Duration::from_secs(1));
    server.stop.cancel();
    server.task.await.unwrap();
    // Over, it renews nothing, and is not made an owner again.
    server.engine.renew().await.unwrap();
    assert_eq!(beat().await, None);
}
