//! The shared crash test: for every kind, the engine dies at every point of a run (the intent is
//! saved, the call was made, the step is about to be saved), another one goes on over the same
//! store, and the end is the same as without the crash, with every object made once.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::webhook::Receiver;
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
}

/// Runs the stages with a crash at the point, if one is given; judgments are answered by going on.
async fn run(given: &dyn Fn(&World), stages: Vec<StageSpec>, crash: Option<Point>) -> (End, BTreeSet<String>, bool) {
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
            world.judge(&server, waits, true, None).await;
            world
                .until(id, |execution| waiting(execution).is_none() || died.load(std::sync::atomic::Ordering::SeqCst))
                .await;
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
    };
    let seen =
        seen.lock().expect("not poisoned").iter().map(|point| serde_json::to_string(point).expect("JSON")).collect();
    (end, seen, crashed)
}

fn without_dates(outputs: &Value) -> Value {
    let mut outputs = outputs.clone();
    if let Some(headers) = outputs.get_mut("headers").and_then(Value::as_object_mut) {
        headers.remove("date");
    }
    outputs
}

/// Dies once at every point that a run without crashes passes, and wants the same end each time.
async fn dies_everywhere(given: impl Fn(&World), stages: impl Fn() -> Vec<StageSpec>) -> End {
    let (end, points, _) = run(&given, stages(), None).await;
    assert!(points.len() > 1, "{points:?}");
    let mut crashes = 0;
    for text in &points {
        let (stage, at, effect, moment): (String, Value, Option<String>, String) =
            serde_json::from_str(text).expect("it was just written");
        let moment = ["after intent", "after effect", "before commit"]
            .into_iter()
            .find(|known| *known == moment)
            .expect("one of them");
        let (again, _, crashed) = run(&given, stages(), Some((stage, at, effect, moment))).await;
        assert_eq!(again, end, "after a crash at {text}");
        crashes += usize::from(crashed);
    }
    assert!(crashes * 10 >= points.len() * 8, "only {crashes} of {} points were reached again", points.len());
    end
}

fn two_groups(world: &World) {
    world.cloud.given("hello-prod-v007", false, 2);
    world.cloud.given("hello-prod-v008", true, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deploy_and_its_strategy() {
    let strategy = json!({"kind": "redBlack", "scaleDown": true, "maxRemaining": 2});
    let end = dies_everywhere(two_groups, || vec![deploy(strategy.clone(), json!({}))]).await;
    assert_eq!(end.made, ["hello-prod-v009"]);
    assert_eq!(end.shape[0], "SUCCEEDED");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deploy_that_fails_and_is_brought_back() {
    let end = dies_everywhere(two_groups, || vec![deploy(json!({"kind": "redBlack"}), json!({"crash": true}))]).await;
    assert_eq!(end.shape[0], "FAILED");
    assert_eq!(end.inventory[..2], ["hello-prod-v007 disabled 2/2", "hello-prod-v008 enabled 2/2"]);
    assert_eq!(end.inventory.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn create_server_group_by_itself() {
    let config = cluster(json!({"kind": "none"}), json!({}));
    let end = dies_everywhere(two_groups, || vec![stage("createServerGroup", config.clone())]).await;
    assert_eq!(end.made, ["hello-prod-v009"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resize_enable_disable_and_destroy() {
    let chain = || {
        let of = |which: &str| json!({"cluster": "hello-prod", "target": which});
        let mut resize = of("newest");
        resize["capacity"] = json!({"min": 1, "desired": 3, "max": 3});
        let mut stages = vec![
            stage("resizeServerGroup", resize),
            stage("enableServerGroup", of("oldest")),
            stage("disableServerGroup", of("newest")),
            stage("destroyServerGroup", of("newest")),
        ];
        for index in 1..stages.len() {
            stages[index].requires = vec![stages[index - 1].key.clone()];
        }
        stages
    };
    let end = dies_everywhere(two_groups, chain).await;
    assert_eq!(end.shape[0], "SUCCEEDED", "{:?}", end.shape);
    assert_eq!(end.inventory[0], "hello-prod-v007 enabled 2/2");
    assert_eq!(end.inventory.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn load_balancers_and_security_groups() {
    let chain = || {
        let name = json!({"name": "hello-old"});
        let mut stages = vec![
            stage("upsertSecurityGroup", json!({"name": "hello-new", "inbound": []})),
            stage(
                "upsertLoadBalancer",
                json!({"name": "hello-new", "listeners": [{"port": 8080}], "securityGroups": ["hello-new"]}),
            ),
            stage("deleteLoadBalancer", name.clone()),
            stage("deleteSecurityGroup", name),
        ];
        for index in 1..stages.len() {
            stages[index].requires = vec![stages[index - 1].key.clone()];
        }
        stages
    };
    let given = |world: &World| {
        world.cloud.given_load_balancer("hello-old");
        world.cloud.given_security_group("hello-old");
    };
    let end = dies_everywhere(given, chain).await;
    assert_eq!(end.shape[0], "SUCCEEDED", "{:?}", end.shape);
    assert_eq!(end.inventory[1..], ["lb hello-new [\"127.0.0.1:8080\"] drain 30", "sg hello-new 0 rules"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wait_and_manual_judgment() {
    let chain = || {
        let mut judgment = stage("manualJudgment", json!({}));
        judgment.requires = vec!["wait".into()];
        vec![stage("wait", json!({"seconds": 1})), judgment]
    };
    let end = dies_everywhere(|_| (), chain).await;
    assert_eq!(end.shape, ["SUCCEEDED", "wait SUCCEEDED", "manualJudgment SUCCEEDED"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_that_may_be_repeated() {
    let (_receiver, address) = Receiver::start(&[]).await;
    let config = json!({"url": format!("http://{address}/"), "method": "PUT", "body": "x"});
    let end = dies_everywhere(|_| (), || vec![stage("webhook", config.clone())]).await;
    assert_eq!(end.shape, ["SUCCEEDED", "webhook SUCCEEDED"]);
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
