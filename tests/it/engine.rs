//! Engines that share a PostgreSQL database: who works on what, and who goes on when one dies.
//! Each replica has a store of its own, as servers have.

mod script;
mod unknown;

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use gennaker::clock::Clock;
use gennaker::engine::commands::{Code, Commands, Judgment, SaveApplication, SavePipeline, StartPipeline};
use gennaker::engine::{CrashHook, CrashPoint, Engine, Moment, Options};
use gennaker::model::{
    Actor, CancelMode, EventBody, Execution, ExecutionId, OnFailure, Pipeline, PipelineDefinition, PrincipalId, Role,
    Stage, StageSpec, Status, StreamId, Wake,
};
use gennaker::store::{self, IntentOutcome, Store};

use crate::harness::{Outcome, Schema, postgres, trial_with, wait_for};
use script::World;

pub fn trials() -> Vec<Trial> {
    let mut trials = vec![
        on_postgres("two_replicas_share_the_work", share),
        on_postgres("when_one_dies_the_other_goes_on_within_the_lease", one_dies),
        on_postgres("a_call_is_repeated_by_its_key_after_a_death_at_any_point", keyed_at_each_point),
        on_postgres("a_blind_call_is_made_once_whenever_its_replica_dies", blind_at_each_point),
        on_postgres("who_lost_the_lease_makes_no_further_call", shut_out),
        on_postgres("what_a_stopped_replica_leaves_is_taken_up_at_once", stopped),
        on_postgres("fifty_starts_with_one_key_at_two_replicas_give_one_execution", one_key),
        on_postgres("a_cancel_at_the_other_replica_reaches_the_holder", cancel_elsewhere),
        on_postgres("a_judgment_at_the_other_replica_is_taken_once", judge_elsewhere),
    ];
    trials.extend(unknown::trials());
    trials
}

fn on_postgres(name: &str, case: impl AsyncFnOnce(&Home) -> Outcome + Send + 'static) -> Trial {
    trial_with("engine::postgres", name, postgres(), async || {
        let home = Home::create().await?;
        let outcome = tokio::time::timeout(MAX, case(&home)).await;
        home.schema.drop().await?;
        outcome?
    })
}

/// No case takes as long as this.
const MAX: Duration = Duration::from_secs(180);
/// What has to happen happens by then.
const SOON: Duration = Duration::from_secs(30);

/// A database, and the world outside that all replicas share.
struct Home {
    schema: Schema,
    world: World,
    actor: Actor,
}

/// A server: a store and an engine of its own.
struct Replica {
    store: Store,
    engine: Engine,
    commands: Commands,
    stop: CancellationToken,
    task: JoinHandle<Result<(), store::Error>>,
}

fn options() -> Options {
    Options { lease: Duration::from_secs(1), scan_every: Duration::from_millis(100), ..Options::default() }
}

impl Home {
    async fn create() -> anyhow::Result<Self> {
        let actor = Actor { principal: PrincipalId::new(), name: "ann".to_owned(), roles: vec![Role::Operator] };
        Ok(Self { schema: Schema::create().await?, world: World::default(), actor })
    }

    async fn replica(&self, name: &'static str, options: Options) -> anyhow::Result<Replica> {
        self.replica_at(name, options, &self.schema.url).await
    }

    async fn replica_at(&self, name: &'static str, options: Options, url: &str) -> anyhow::Result<Replica> {
        let place = store::Options {
            database_url: Some(url.to_owned()),
            data_dir: std::env::temp_dir(),
            durability: store::Durability::Full,
            queue_max: 1_000,
        };
        let store = Store::open(&place, Clock::system()).await?;
        let engine = Engine::new(options, store.clone(), self.world.registry(name), Clock::system());
        let stop = CancellationToken::new();
        let task = tokio::spawn({
            let (engine, stop) = (engine.clone(), stop.clone());
            async move { engine.run(stop).await }
        });
        Ok(Replica { store, commands: engine.commands(), engine, stop, task })
    }
}

impl Replica {
    async fn stop(self) -> Outcome {
        self.stop.cancel();
        self.task.await??;
        self.store.close().await;
        Ok(())
    }

    /// Waits until its crash hook has ended it.
    async fn dead(self) -> Outcome {
        tokio::time::timeout(SOON, self.task).await???;
        self.store.close().await;
        Ok(())
    }

    async fn pipeline(&self, home: &Home, stages: Vec<StageSpec>) -> anyhow::Result<Pipeline> {
        let application = match self.store.application_by_name("hello").await? {
            Some(application) => application,
            None => {
                let save = SaveApplication { name: "hello".to_owned(), description: String::new(), email: None };
                self.commands.create_application(&home.actor, save).await?
            }
        };
        let definition = PipelineDefinition { stages, format_version: 1, ..PipelineDefinition::default() };
        let save =
            SavePipeline { application: application.id, name: "test".to_owned(), definition, expected_revision: None };
        Ok(self.commands.save_pipeline(&home.actor, save).await?)
    }

    async fn begin(&self, home: &Home, pipeline: &Pipeline) -> anyhow::Result<ExecutionId> {
        let start = StartPipeline { pipeline: pipeline.id, parameters: Value::Null, idempotency_key: None };
        Ok(self.commands.start_pipeline(&home.actor, start).await?.execution.id)
    }

    async fn read(&self, id: ExecutionId) -> anyhow::Result<Execution> {
        self.store.execution(id).await?.ok_or_else(|| anyhow::anyhow!("{id:?} is gone"))
    }

    async fn until(
        &self,
        id: ExecutionId,
        what: &str,
        wanted: impl Fn(&Execution) -> bool,
    ) -> anyhow::Result<Execution> {
        let wanted = &wanted;
        wait_for(what, SOON, || async move { self.read(id).await.ok().filter(wanted) }).await
    }

    /// Waits for the end; the log is gapless then, ends with it, and every call is accounted for.
    async fn over(&self, id: ExecutionId) -> anyhow::Result<Execution> {
        let execution = self.until(id, "the end", |execution| execution.status.is_complete()).await?;
        let events = self.store.events(StreamId::Execution(id), 0, 1_000).await?;
        let seqs: Vec<i64> = events.iter().map(|event| event.seq).collect();
        anyhow::ensure!(seqs == (1..=execution.event_seq).collect::<Vec<_>>(), "{seqs:?}");
        match events.last().map(|event| &event.body) {
            Some(EventBody::ExecutionChanged { execution: seen }) if seen.status == execution.status => {}
            other => anyhow::bail!("the last event is {other:?}"),
        }
        for intent in self.store.intents(id).await? {
            anyhow::ensure!(intent.closed_at.is_some(), "{intent:?}");
        }
        Ok(execution)
    }
}

fn stage(key: &str, requires: &[&str], config: Value) -> StageSpec {
    StageSpec {
        key: key.to_owned(),
        kind: "script".to_owned(),
        name: String::new(),
        requires: requires.iter().map(|key| (*key).to_owned()).collect(),
        config,
        on_failure: OnFailure::FailPipeline,
        timeout_seconds: None,
        notifications: Vec::new(),
    }
}

fn row<'a>(execution: &'a Execution, key: &str) -> anyhow::Result<&'a Stage> {
    execution.stages.iter().find(|stage| stage.key == key).ok_or_else(|| anyhow::anyhow!("no stage {key}"))
}

fn waits(execution: &Execution) -> bool {
    row(execution, "a").is_ok_and(|stage| matches!(stage.wake, Wake::Signal { .. }))
}

fn call(key: &str, gate: &str) -> Value {
    json!({ "call": { "key": key, "gate": gate } })
}

/// Dies where the closure says so.
fn dies(at: impl Fn(&CrashPoint) -> bool + Send + Sync + 'static) -> Options {
    Options { crash: Some(CrashHook(Arc::new(at))), ..options() }
}

async fn share(home: &Home) -> Outcome {
    let options = || Options { active_max: 10, ..options() };
    let (one, two) = (home.replica("one", options()).await?, home.replica("two", options()).await?);
    let pipeline = one.pipeline(home, vec![stage("a", &[], json!({ "steps": [call("x", "g")] }))]).await?;
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(one.begin(home, &pipeline).await?);
    }
    // More than one may have in memory: it takes both.
    home.world.calls_reach(20).await?;
    let by = |name| home.world.made().iter().filter(|(_, by)| *by == name).count();
    anyhow::ensure!((by("one"), by("two")) == (10, 10), "{:?}", home.world.made());
    home.world.open("g");
    for id in ids {
        let status = two.over(id).await?.status;
        anyhow::ensure!(status == Status::Succeeded, "{status:?}");
    }
    let operations: HashSet<_> = home.world.calls().into_iter().map(|call| call.ticket.operation).collect();
    anyhow::ensure!((operations.len(), home.world.calls().len()) == (20, 20), "each call is made once");
    one.stop().await?;
    two.stop().await
}

async fn one_dies(home: &Home) -> Outcome {
    let one = home.replica("one", dies(|at| at.moment == Moment::AfterEffect)).await?;
    let steps = json!({ "steps": [call("x", "g"), call("y", "g")] });
    let pipeline = one.pipeline(home, vec![stage("a", &[], steps)]).await?;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(one.begin(home, &pipeline).await?);
    }
    home.world.calls_reach(5).await?;
    let two = home.replica("two", options()).await?;
    // Both beat, three times in a lease: for three leases nothing is taken from the first.
    wait_for("nine beats of each", SOON, || async {
        let owners = two.store.owners().await.ok()?;
        (owners.len() == 2 && owners.iter().all(|(_, beats)| *beats >= 10)).then_some(())
    })
    .await?;
    anyhow::ensure!(home.world.made().iter().all(|(_, by)| *by == "one"), "{:?}", home.world.made());
    home.world.open("g");
    one.dead().await?;
    let death = Instant::now();
    home.world.calls_reach(6).await?;
    // A lease to be sure of the death, a beat to look, and what a busy machine takes.
    anyhow::ensure!(death.elapsed() < options().lease * 2 + Duration::from_secs(3), "{:?}", death.elapsed());
    for id in &ids {
        let execution = two.over(*id).await?;
        anyhow::ensure!(execution.status == Status::Succeeded, "{execution:?}");
        anyhow::ensure!(row(&execution, "a")?.outputs == json!({ "x": "two", "y": "two" }), "{execution:?}");
    }
    let calls = home.world.calls();
    anyhow::ensure!(calls.len() == 15, "five repeated, five new: {:?}", home.world.made());
    let (before, after) = calls.split_at(5);
    for call in before {
        let again = after.iter().find(|again| again.ticket.operation == call.ticket.operation);
        let again = again.ok_or_else(|| anyhow::anyhow!("{call:?} is not repeated by its key"))?;
        anyhow::ensure!(again.ticket.fence > call.ticket.fence, "{call:?} {again:?}");
    }
    two.stop().await
}

/// A replica dies at the n-th crash point, and another goes on; none: there are no more points.
async fn death(home: &Home, point: usize, stages: &[StageSpec]) -> anyhow::Result<Option<(Execution, CrashPoint)>> {
    let hit = Arc::new(Mutex::new(None));
    let options = Options { lease: Duration::from_millis(300), scan_every: Duration::from_millis(50), ..options() };
    let hook = dies({
        let (count, hit) = (AtomicUsize::new(0), Arc::clone(&hit));
        move |at| {
            let here = count.fetch_add(1, Ordering::SeqCst) == point;
            if here {
                *hit.lock().unwrap_or_else(PoisonError::into_inner) = Some(at.clone());
            }
            here
        }
    });
    let one = home.replica("one", Options { crash: hook.crash, ..options.clone() }).await?;
    let pipeline = one.pipeline(home, stages.to_vec()).await?;
    let id = one.begin(home, &pipeline).await?;
    let ended = wait_for("a death or the end", SOON, async || {
        let over = one.task.is_finished() || one.read(id).await.is_ok_and(|read| read.status.is_complete());
        over.then_some(())
    });
    ended.await?;
    if !one.task.is_finished() {
        one.stop().await?;
        return Ok(None);
    }
    one.dead().await?;
    let two = home.replica("two", options).await?;
    let execution = two.over(id).await?;
    two.stop().await?;
    let hit = hit.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Ok(Some((execution, hit.ok_or_else(|| anyhow::anyhow!("it died of something else"))?)))
}

async fn keyed_at_each_point(home: &Home) -> Outcome {
    let call = |key: &str| json!({ "call": { "key": key } });
    let stages = [
        stage("a", &[], json!({ "steps": [call("x"), "goto", call("y")] })),
        stage("b", &["a"], json!({ "steps": [{ "spawn": ["z"] }] })),
    ];
    let mut moments = HashSet::new();
    let mut made = 0;
    for point in 0.. {
        let Some((execution, hit)) = death(home, point, &stages).await? else {
            anyhow::ensure!(point > 8, "there are points to die at: {point}");
            break;
        };
        moments.insert(hit.moment);
        anyhow::ensure!(execution.status == Status::Succeeded, "{hit:?}: {execution:?}");
        let calls = home.world.calls().split_off(made);
        made += calls.len();
        for key in ["x", "y", "z"] {
            let tickets: Vec<_> = calls.iter().filter(|call| call.key == key).map(|call| &call.ticket).collect();
            anyhow::ensure!(!tickets.is_empty(), "{hit:?}: {key} was not called");
            for pair in tickets.windows(2) {
                anyhow::ensure!(pair[0].operation == pair[1].operation, "a repeated call has the same key: {hit:?}");
                anyhow::ensure!(pair[0].fence < pair[1].fence, "and a higher fence: {hit:?}");
            }
        }
        let repeats = calls.len() - 3;
        match hit.moment {
            Moment::AfterIntent => anyhow::ensure!(repeats == 0, "it had not been called: {hit:?}"),
            Moment::AfterEffect => anyhow::ensure!(repeats == 1, "it had been called: {hit:?}"),
            Moment::BeforeCommit => anyhow::ensure!(repeats <= 1, "{hit:?}"),
        }
    }
    anyhow::ensure!(moments.len() == 3, "{moments:?}");
    Ok(())
}

async fn blind_at_each_point(home: &Home) -> Outcome {
    let steps = json!({ "steps": [{ "call": { "key": "x", "blind": true } }] });
    let mut made = 0;
    let mut unknown = 0;
    for point in 0.. {
        let Some((execution, hit)) = death(home, point, &[stage("a", &[], steps.clone())]).await? else {
            anyhow::ensure!(point >= 3, "there are points to die at: {point}");
            break;
        };
        let calls = home.world.calls().split_off(made);
        made += calls.len();
        anyhow::ensure!(calls.len() <= 1, "{hit:?}: {calls:?}");
        if execution.status == Status::Succeeded {
            anyhow::ensure!(calls.len() == 1, "{hit:?}: it says that it was called");
        } else {
            let code = execution.failure.map(|failure| failure.code);
            anyhow::ensure!(code.as_deref() == Some("OUTCOME_UNKNOWN"), "{hit:?}: {code:?}");
            unknown += 1;
        }
    }
    anyhow::ensure!(unknown >= 2, "before and after the call nobody can know: {unknown}");
    Ok(())
}

async fn shut_out(home: &Home) -> Outcome {
    // It beats so seldom that it does not learn of what follows, and does not register again.
    let one = home.replica("one", Options { lease: Duration::from_secs(300), ..options() }).await?;
    let pipeline =
        one.pipeline(home, vec![stage("a", &[], json!({ "steps": [call("x", "g"), call("y", "g")] }))]).await?;
    let id = one.begin(home, &pipeline).await?;
    home.world.calls_reach(1).await?;
    let two = home.replica("two", options()).await?;
    let owner = one.engine.owner();
    let beats = || async { two.store.owners().await.ok()?.into_iter().find(|(id, beat)| *id == owner && *beat > 0) };
    wait_for("its first beat", SOON, beats).await?;
    // As if it had been frozen for a lease.
    two.store.owner_forget(owner).await?;
    home.world.calls_reach(2).await?;
    home.world.open("g");
    let execution = two.over(id).await?;
    anyhow::ensure!(execution.status == Status::Succeeded, "{execution:?}");
    let made = home.world.made();
    let expected = [("x", "one"), ("x", "two"), ("y", "two")].map(|(key, by)| (key.to_owned(), by));
    anyhow::ensure!(made == expected, "{made:?}");
    let calls = home.world.calls();
    anyhow::ensure!(calls[0].ticket.operation == calls[1].ticket.operation, "{calls:?}");
    anyhow::ensure!(calls[0].ticket.fence < calls[1].ticket.fence, "{calls:?}");
    one.stop().await?;
    two.stop().await
}

async fn stopped(home: &Home) -> Outcome {
    // The lease is far longer than the case may take: nobody waits for it.
    let options = || Options { lease: Duration::from_secs(300), ..options() };
    let one = home.replica("one", options()).await?;
    let pipeline =
        one.pipeline(home, vec![stage("a", &[], json!({ "steps": [call("x", "g"), call("y", "g")] }))]).await?;
    let id = one.begin(home, &pipeline).await?;
    home.world.calls_reach(1).await?;
    let two = home.replica("two", options()).await?;
    one.stop.cancel();
    home.world.open("g");
    one.stop().await?;
    let execution = two.over(id).await?;
    anyhow::ensure!(execution.status == Status::Succeeded, "{execution:?}");
    anyhow::ensure!(row(&execution, "a")?.outputs == json!({ "x": "one", "y": "two" }), "{execution:?}");
    anyhow::ensure!(home.world.calls().len() == 2, "{:?}", home.world.made());
    two.stop().await
}

async fn one_key(home: &Home) -> Outcome {
    let (one, two) = (home.replica("one", options()).await?, home.replica("two", options()).await?);
    let pipeline = one.pipeline(home, vec![stage("a", &[], json!({ "steps": [call("x", "g")] }))]).await?;
    home.world.open("g");
    let start =
        |parameters| StartPipeline { pipeline: pipeline.id, parameters, idempotency_key: Some("release-7".to_owned()) };
    let calls = (0..50).map(|n| {
        let commands = if n % 2 == 0 { &one.commands } else { &two.commands };
        commands.start_pipeline(&home.actor, start(Value::Null))
    });
    let started = futures_util::future::try_join_all(calls).await?;
    let id = started[0].execution.id;
    anyhow::ensure!(started.iter().all(|started| started.execution.id == id && started.execution.number == 1));
    let news = started.iter().filter(|started| !started.replay).count();
    anyhow::ensure!(news == 1, "{news} say that they started it");
    two.over(id).await?;
    anyhow::ensure!(home.world.calls().len() == 1, "{:?}", home.world.made());
    let pipeline = one.pipeline(home, vec![stage("a", &[], json!({}))]).await?;
    anyhow::ensure!(pipeline.revision == 2);
    let again = two.commands.start_pipeline(&home.actor, start(Value::Null)).await?;
    anyhow::ensure!(again.replay && again.execution.id == id, "the key holds over a new revision");
    one.stop().await?;
    two.stop().await
}

async fn cancel_elsewhere(home: &Home) -> Outcome {
    let one = home.replica("one", options()).await?;
    let calling = json!({ "steps": [call("do", "g"), call("never", "g")], "unwind": ["undo"] });
    let waiting = json!({ "steps": [call("do", "open"), "wait", call("never", "g")], "unwind": ["undo"] });
    home.world.open("open");
    for (config, under_way) in [(calling, true), (waiting, false)] {
        let before = home.world.calls().len();
        let pipeline = one.pipeline(home, vec![stage("a", &[], config), stage("b", &["a"], json!({}))]).await?;
        let id = one.begin(home, &pipeline).await?;
        home.world.calls_reach(before + 1).await?;
        if !under_way {
            one.until(id, "the wait", waits).await?;
        }
        let two = home.replica("two", options()).await?;
        two.commands.cancel(&home.actor, id, "enough", CancelMode::Unwind).await?;
        let again = two.commands.cancel(&home.actor, id, "", CancelMode::Unwind).await.map(|_| ());
        let code = again.err().map(|error| error.code);
        anyhow::ensure!(code == Some(Code::WrongState), "{code:?}");
        if under_way {
            // The call under way may end.
            anyhow::ensure!(!two.read(id).await?.status.is_complete());
            home.world.open("g");
        }
        let execution = two.over(id).await?;
        anyhow::ensure!(execution.status == Status::Canceled, "{execution:?}");
        anyhow::ensure!(row(&execution, "b")?.status == Status::Canceled, "{execution:?}");
        anyhow::ensure!(execution.cancel.is_some_and(|cancel| cancel.reason == "enough" && cancel.by_name == "ann"));
        let made = home.world.made().split_off(before);
        anyhow::ensure!(made == [("do".to_owned(), "one"), ("undo".to_owned(), "one")], "{made:?}");
        let outcomes: Vec<_> = two.store.intents(id).await?.into_iter().map(|intent| intent.outcome).collect();
        anyhow::ensure!(outcomes == [Some(IntentOutcome::Done), Some(IntentOutcome::Done)], "{outcomes:?}");
        two.stop().await?;
    }
    one.stop().await
}

async fn judge_elsewhere(home: &Home) -> Outcome {
    let one = home.replica("one", options()).await?;
    let config = json!({ "steps": ["wait", { "call": { "key": "x" } }], "inputs": ["blue", "green"] });
    let pipeline = one.pipeline(home, vec![stage("a", &[], config)]).await?;
    let id = one.begin(home, &pipeline).await?;
    let execution = one.until(id, "the wait", waits).await?;
    let two = home.replica("two", options()).await?;
    let judgment = |input: &str| Judgment {
        stage: execution.stages[0].id,
        proceed: true,
        input: Some(input.to_owned()),
        comment: None,
    };
    let wrong = two.commands.judge(&home.actor, judgment("red")).await.map(|_| ()).err();
    anyhow::ensure!(wrong.as_ref().is_some_and(|error| error.code == Code::Invalid), "{wrong:?}");
    // At both at once, several times each: the first counts.
    let calls = (0..10).map(|n| {
        let (commands, input) = if n % 2 == 0 { (&two.commands, "green") } else { (&one.commands, "blue") };
        let judgment = judgment(input);
        async move { commands.judge(&home.actor, judgment).await.map(|_| input) }
    });
    let answers = futures_util::future::join_all(calls).await;
    let taken: Vec<_> = answers.iter().flatten().collect();
    anyhow::ensure!(taken.len() == 1, "{answers:?}");
    for refused in answers.iter().filter_map(|answer| answer.as_ref().err()) {
        anyhow::ensure!(refused.code == Code::WrongState, "{refused:?}");
    }
    let execution = two.over(id).await?;
    let stage = row(&execution, "a")?;
    anyhow::ensure!(stage.status == Status::Succeeded && stage.outputs["judgment"]["input"] == **taken[0], "{stage:?}");
    let made = home.world.made();
    anyhow::ensure!(made == [("x".to_owned(), "one")], "the holder goes on: {made:?}");
    // By the other replica alone, too.
    let id = one.begin(home, &pipeline).await?;
    let execution = two.until(id, "the wait", waits).await?;
    let judgment = Judgment { stage: execution.stages[0].id, ..judgment("green") };
    two.commands.judge(&home.actor, judgment).await?;
    anyhow::ensure!(two.over(id).await?.status == Status::Succeeded);
    one.stop().await?;
    two.stop().await
}
