//! The shared crash test: for every kind, the engine dies at every point of a run (the intent is
//! saved, the call was made, the step is about to be saved), another one goes on over the same
//! store, and the end is the same as without the crash, with every object made once.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::webhook::{Receiver, rude};
use super::{World, cluster, deploy, shape, stage, waiting};
use crate::engine::{CrashPoint, Moment};
use crate::model::StageSpec;

/// A point of a run, told apart from the others without what differs from run to run.
type Point = (String, Value, Option<String>, &'static str);

fn point(at: &CrashPoint) -> Point {
    let moment = match at.moment {
        Moment::AfterIntent => "after intent",
        Moment::AfterEffect => "after effect",
        Moment::BeforeCommit => "before commit",
    };
    (at.stage.clone(), at.cursor.get("at").cloned().unwrap_or_default(), at.effect.clone(), moment)
}

/// How a run ended.
#[derive(Debug, PartialEq)]
struct End {
    shape: Vec<String>,
    outputs: Vec<Value>,
    inventory: Vec<String>,
    made: Vec<String>,
    kinds: BTreeSet<String>,
}

/// Runs the stages with a crash at the point, if one is given; judgments are answered by going on,
/// with the first of the choices.
async fn run(given: &dyn Fn(&World), stages: Vec<StageSpec>, crash: Option<Point>) -> (End, BTreeSet<String>, bool) {
    answered(given, stages, crash, &|choices| choices.first().cloned()).await
}

async fn answered(
    given: &dyn Fn(&World),
    stages: Vec<StageSpec>,
    crash: Option<Point>,
    answer: &dyn Fn(Vec<String>) -> Option<String>,
) -> (End, BTreeSet<String>, bool) {
    let world = World::new().await;
    given(&world);
    let seen: Arc<Mutex<Vec<Point>>> = Arc::default();
    let recorded = Arc::clone(&seen);
    let dies = move |at: &CrashPoint| {
        let point = point(at);
        let dies = crash.as_ref() == Some(&point);
        recorded.lock().expect("not poisoned").push(point);
        dies
    };
    let mut server = world.serve_until(dies);
    let id = world.start(&server, stages).await;
    let mut crashed = false;
    let execution = loop {
        let at_work =
            |execution: &crate::model::Execution| execution.status.is_complete() || waiting(execution).is_some();
        let died = Arc::clone(&server.dead);
        let execution =
            world.until(id, |execution| at_work(execution) || died.load(std::sync::atomic::Ordering::SeqCst)).await;
        if server.is_dead() {
            crashed = true;
            server.stop().await;
            server = world.serve();
        } else if execution.status.is_complete() {
            break execution;
        } else if let Some(waits) = waiting(&execution) {
            let judged = waits.id;
            let choices = waits.config.get("inputs").cloned().unwrap_or_default();
            let choice = answer(serde_json::from_value(choices).unwrap_or_default());
            world.judge(&server, waits, true, choice.as_deref()).await;
            let waits = |execution: &crate::model::Execution| waiting(execution).is_some_and(|row| row.id == judged);
            world.until(id, |execution| !waits(execution) || died.load(std::sync::atomic::Ordering::SeqCst)).await;
        }
    };
    server.stop().await;
    assert_eq!(world.cloud.made_twice(), Vec::<String>::new());
    assert_eq!(world.cloud.outages(), 0, "a cluster was left with nothing");
    let open: Vec<_> =
        world.store.intents(id).await.expect("read").into_iter().filter(|intent| intent.closed_at.is_none()).collect();
    assert_eq!(open, [], "intents were left open");
    let end = End {
        shape: shape(&execution),
        outputs: execution.stages.iter().map(|stage| without_dates(&stage.outputs)).collect(),
        inventory: world.cloud.inventory(),
        made: world.cloud.made(),
        kinds: execution.stages.iter().map(|stage| stage.kind.clone()).collect(),
    };
    let seen =
        seen.lock().expect("not poisoned").iter().map(|point| serde_json::to_string(point).expect("JSON")).collect();
    (end, seen, crashed)
}

/// Without what no two runs have in common.
fn without_dates(outputs: &Value) -> Value {
    let mut outputs = outputs.clone();
    if let Some(judgment) = outputs.as_object_mut().filter(|outputs| outputs.contains_key("judgment")) {
        assert!(judgment.remove("at").is_some() && judgment.remove("principal").is_some(), "{judgment:?}");
    }
    if let Some(headers) = outputs.get_mut("headers").and_then(Value::as_object_mut) {
        headers.remove("date");
    }
    outputs
}

/// Dies once at every point that a run without crashes passes, and wants the same end each time.
async fn dies_everywhere(given: impl Fn(&World), stages: impl AsyncFn() -> Vec<StageSpec>) -> End {
    let (end, points, _) = run(&given, stages().await, None).await;
    assert!(points.len() > 1, "{points:?}");
    let mut crashes = 0;
    for text in &points {
        let (stage, at, effect, moment): (String, Value, Option<String>, String) =
            serde_json::from_str(text).expect("it was just written");
        let moment = ["after intent", "after effect", "before commit"]
            .into_iter()
            .find(|known| *known == moment)
            .expect("one of them");
        let (again, _, crashed) = run(&given, stages().await, Some((stage, at, effect, moment))).await;
        assert_eq!(again, end, "after a crash at {text}");
        crashes += usize::from(crashed);
    }
    assert!(crashes * 10 >= points.len() * 8, "only {crashes} of {} points were reached again", points.len());
    end
}

/// A test for each case, and one that no kind of stage is missing among them.
macro_rules! cases {
    ($($name:ident: $given:expr, $stages:expr, $check:expr;)+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let end = dies_everywhere($given, $stages).await;
                let check: fn(&End) = $check;
                check(&end);
            }
        )+

        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn every_kind_of_stage_is_among_the_cases() {
            let mut kinds = BTreeSet::new();
            $(
                let (end, ..) = run(&$given, $stages().await, None).await;
                kinds.extend(end.kinds);
            )+
            let world = World::new().await;
            let all: BTreeSet<String> =
                World::kinds(&world.inventory).iter().map(|kind| kind.kind().kind.to_owned()).collect();
            assert_eq!(kinds, all, "give a new kind a case of its own");
        }
    };
}

cases!(
    deploy_and_its_strategy: two_groups, red_black, |end| {
        assert_eq!(end.made, ["hello-prod-v009"]);
        assert_eq!(end.shape[0], "SUCCEEDED");
    };
    deploy_that_fails_and_is_brought_back: two_groups, crashing, |end| {
        assert_eq!(end.shape[0], "FAILED");
        assert_eq!(end.inventory[..2], ["hello-prod-v007 disabled 2/2", "hello-prod-v008 enabled 2/2"]);
        assert_eq!(end.inventory.len(), 3);
    };
    create_server_group_by_itself: two_groups, create, |end| assert_eq!(end.made, ["hello-prod-v009"]);
    resize_enable_disable_and_destroy: two_groups, server_groups, |end| {
        assert_eq!(end.shape[0], "SUCCEEDED", "{:?}", end.shape);
        assert_eq!(end.inventory[0], "hello-prod-v007 enabled 2/2");
        assert_eq!(end.inventory.len(), 2);
    };
    load_balancers_and_security_groups: old_ones, networks, |end| {
        assert_eq!(end.shape[0], "SUCCEEDED", "{:?}", end.shape);
        assert_eq!(end.inventory[1..], ["lb hello-new [\"127.0.0.1:8080\"] drain 30", "sg hello-new 0 rules"]);
    };
    wait_and_manual_judgment: nothing, waits, |end| {
        assert_eq!(end.shape, ["SUCCEEDED", "wait SUCCEEDED", "manualJudgment SUCCEEDED"]);
    };
    a_webhook_that_may_be_repeated: nothing, async || hook(json!({"method": "PUT", "body": "x"})).await, succeeded;
    a_webhook_that_is_told_to_call_again: nothing, async || hook(json!({"onUnknownOutcome": "retry"})).await, succeeded;
    a_webhook_that_asks_a_person: nothing, unanswered, |end| {
        assert_eq!(end.shape, ["SUCCEEDED", "webhook SUCCEEDED", "  ask-0 SUCCEEDED"]);
    };
);

fn succeeded(end: &End) {
    assert_eq!(end.shape, ["SUCCEEDED", "webhook SUCCEEDED"]);
}

fn nothing(_: &World) {}

fn two_groups(world: &World) {
    world.cloud.given("hello-prod-v007", false, 2);
    world.cloud.given("hello-prod-v008", true, 2);
}

fn old_ones(world: &World) {
    world.cloud.given_load_balancer("hello-old");
    world.cloud.given_security_group("hello-old");
}

/// One after the other.
fn chain(mut stages: Vec<StageSpec>) -> Vec<StageSpec> {
    for index in 1..stages.len() {
        stages[index].requires = vec![stages[index - 1].key.clone()];
    }
    stages
}

async fn red_black() -> Vec<StageSpec> {
    vec![deploy(json!({"kind": "redBlack", "scaleDown": true, "maxRemaining": 2}), json!({}))]
}

async fn crashing() -> Vec<StageSpec> {
    vec![deploy(json!({"kind": "redBlack"}), json!({"crash": true}))]
}

async fn create() -> Vec<StageSpec> {
    vec![stage("createServerGroup", cluster(json!({"kind": "none"}), json!({})))]
}

async fn server_groups() -> Vec<StageSpec> {
    let of = |which: &str| json!({"cluster": "hello-prod", "target": which});
    let mut resize = of("newest");
    resize["capacity"] = json!({"min": 1, "desired": 3, "max": 3});
    chain(vec![
        stage("resizeServerGroup", resize),
        stage("enableServerGroup", of("oldest")),
        stage("disableServerGroup", of("newest")),
        stage("destroyServerGroup", of("newest")),
    ])
}

async fn networks() -> Vec<StageSpec> {
    let name = json!({"name": "hello-old"});
    chain(vec![
        stage("upsertSecurityGroup", json!({"name": "hello-new", "inbound": []})),
        stage(
            "upsertLoadBalancer",
            json!({"name": "hello-new", "listeners": [{"port": 8080}], "securityGroups": ["hello-new"]}),
        ),
        stage("deleteLoadBalancer", name.clone()),
        stage("deleteSecurityGroup", name),
    ])
}

async fn waits() -> Vec<StageSpec> {
    chain(vec![stage("wait", json!({"seconds": 1})), stage("manualJudgment", json!({}))])
}

/// A webhook to a server that answers.
async fn hook(config: Value) -> Vec<StageSpec> {
    let (_, address) = Receiver::start(&[]).await;
    let mut whole = json!({"url": format!("http://{address}/")});
    whole.as_object_mut().expect("an object").extend(config.as_object().expect("an object").clone());
    vec![stage("webhook", whole)]
}

/// A webhook to a server that never answers.
async fn unanswered() -> Vec<StageSpec> {
    let (_, address) = rude(usize::MAX).await;
    vec![stage("webhook", json!({"url": format!("http://{address}/"), "onUnknownOutcome": "ask"}))]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_whose_fate_a_person_tells_is_made_once() {
    for moment in ["after intent", "after effect", "before commit"] {
        let (receiver, address) = Receiver::start(&[]).await;
        let config = json!({"url": format!("http://{address}/"), "onUnknownOutcome": "ask"});
        let effect = (moment != "before commit").then(|| "call-0".to_owned());
        let point = ("webhook".to_owned(), Value::Null, effect, moment);
        // Who is asked looks at the other side.
        let looks = |choices: Vec<String>| {
            let truth = if receiver.calls().is_empty() { "call again" } else { "took effect" };
            choices.into_iter().find(|choice| choice == truth)
        };
        let (end, _, crashed) = answered(&nothing, vec![stage("webhook", config)], Some(point), &looks).await;
        assert!(crashed, "{moment}");
        assert_eq!(end.shape[..2], ["SUCCEEDED", "webhook SUCCEEDED"], "{moment}");
        assert_eq!(receiver.calls().len(), 1, "{moment}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_that_may_not_be_repeated_is_never_made_twice() {
    for moment in ["after intent", "after effect", "before commit"] {
        let (receiver, address) = Receiver::start(&[]).await;
        let config = json!({"url": format!("http://{address}/")});
        let effect = (moment != "before commit").then(|| "call-0".to_owned());
        let point = ("webhook".to_owned(), Value::Null, effect, moment);
        let (end, _, crashed) = run(&|_| (), vec![stage("webhook", config)], Some(point)).await;
        assert!(crashed, "{moment}");
        assert_eq!(end.shape, ["FAILED", "webhook FAILED OUTCOME_UNKNOWN"], "{moment}");
        assert_eq!(receiver.calls().len(), usize::from(moment != "after intent"), "{moment}");
    }
}
